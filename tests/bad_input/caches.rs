//! Embedding caches that do not fit, are not whole, or saw the answers.

use super::{case, check, edit, flip, none, truncate};
use crate::common::Scratch;
use std::fs;
use std::path::PathBuf;

/// Changes the first shard that stands in the cache.
fn shard(scratch: &Scratch) -> PathBuf {
    scratch.find("shard-").into_iter().next().expect("the cache has shards")
}

fn unmasked(scratch: &Scratch) {
    edit(scratch, "c.yaml", "replicas: 2", "mask_policy: unmasked");
    fs::remove_dir_all(scratch.path("cache")).unwrap();
    assert_eq!(scratch.trainer("embed c.yaml").code, 0);
}

fn upstream(scratch: &Scratch) {
    unmasked(scratch);
    let done = scratch.trainer("export cache --to h5 --output up");
    assert_eq!(done.code, 0, "{}", done.err);
}

fn unfinished(scratch: &Scratch) {
    fs::remove_file(shard(scratch)).unwrap();
    let done = scratch.trainer("embed c.yaml --part 1/2");
    assert_eq!(done.code, 0, "{}", done.err);
    assert!(!scratch.path("cache/manifest.json").exists(), "{}", done.err);
}

#[test]
fn caches() {
    let base = Scratch::new("caches");
    let made = base.trainer("embed c.yaml");
    assert_eq!(made.code, 0, "{}", made.err);
    let other = |name, args, says| {
        let mut row = case(name, 5, args, none, says);
        row.says.extend(["cache", "esm.cache_dir"]);
        row
    };
    check(
        &base,
        &[
            other(
                "another seed of masks",
                "train c.yaml --set esm.mask_seed=1",
                "mask_seed = 0, but now mask_seed = 1",
            ),
            other("other weights", "train c.yaml --set run.seed=1", "weights = "),
            other(
                "another type of numbers",
                "train c.yaml --set esm.dtype=float32",
                "dtype = \"float16\", but now dtype = \"float32\"",
            ),
            other(
                "another number of copies",
                "embed c.yaml --set esm.replicas=3",
                "replicas = 2, but now replicas = 3",
            ),
            other(
                "another shape of ESM",
                "embed c.yaml --set esm.model.intermediate_size=48",
                "cache",
            ),
            case(
                "other data",
                5,
                "embed c.yaml",
                |d| edit(d, "data.csv", "P003,", "Q003,"),
                "inputs = | esm.cache_dir",
            ),
            case(
                "data that the cache does not have",
                5,
                "train c.yaml",
                |d| edit(d, "data.csv", "P003,", "Q003,"),
                "Q003 | not in the cache | esm.cache_dir",
            ),
            case(
                "no cache",
                5,
                "train c.yaml --set esm.cache_dir=gone",
                none,
                "gone | no manifest.json | trainer embed",
            ),
            case("an unfinished cache", 5, "train c.yaml", unfinished, "cache | trainer embed"),
            case(
                "an unfinished cache with other threads",
                5,
                "embed c.yaml --set distributed.threads_per_rank=2",
                unfinished,
                "threads = 1, but now threads = 2 | esm.cache_dir",
            ),
            case(
                "a truncated shard",
                5,
                "train c.yaml",
                |d| truncate(&shard(d), 1000),
                "shard- | bytes | trainer embed",
            ),
            case(
                "a truncated shard, inspected",
                5,
                "inspect cache",
                |d| truncate(&shard(d), 1000),
                "shard- | trainer embed",
            ),
            case(
                "a flipped bit in a shard, inspected",
                5,
                "inspect cache",
                |d| {
                    let s = shard(d);
                    let n = fs::metadata(&s).unwrap().len() as usize;
                    flip(&s, n / 2);
                },
                "shard- | trainer embed",
            ),
            case(
                "flipped bits in every shard",
                5,
                "train c.yaml",
                |d| {
                    for shard in d.find("shard-") {
                        let n = fs::metadata(&shard).unwrap().len() as usize;
                        for from_end in (1..n / 2).step_by(8) {
                            flip(&shard, from_end);
                        }
                    }
                },
                "shard-",
            ),
            case(
                "a manifest that is none",
                5,
                "train c.yaml",
                |d| d.write("cache/manifest.json", "{}"),
                "manifest.json",
            ),
            case(
                "an unmasked cache",
                5,
                "train c.yaml",
                unmasked,
                "cache | would read the answers | allow_leak | mask_policy: replicas",
            ),
            case(
                "an unmasked cache, allowed",
                0,
                "train c.yaml --set training.allow_leak=true",
                unmasked,
                "step 4/4",
            ),
            case(
                "upstream's files",
                5,
                "train c.yaml --set training.embeddings_dir=up",
                upstream,
                "up | would read the answers | allow_leak",
            ),
            case(
                "upstream's files, allowed",
                0,
                "train c.yaml --set training.embeddings_dir=up --set training.allow_leak=true",
                upstream,
                "step 4/4",
            ),
            case(
                "not HDF5",
                5,
                "train c.yaml --set training.embeddings_dir=up --set training.allow_leak=true",
                |d| d.write("up/train_embeddings.h5", "text"),
                "train_embeddings.h5",
            ),
            case(
                "a mean for a model of residues",
                2,
                "train c.yaml",
                |d| {
                    edit(d, "c.yaml", "replicas: 2", "pooling: mean");
                    fs::remove_dir_all(d.path("cache")).unwrap();
                    assert_eq!(d.trainer("embed c.yaml").code, 0);
                },
                "esm.pooling | a vector a residue",
            ),
        ],
    );
}
