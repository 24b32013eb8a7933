//! Checkpoints, runs and what is written from them.

use super::{case, check, flip, none, truncate};
use crate::common::Scratch;
use std::fs;
use std::path::PathBuf;

/// The run directory, of which there is one.
fn run_dir(scratch: &Scratch) -> PathBuf {
    scratch.find("t-20").into_iter().next().expect("a run was made")
}

/// The newest checkpoint's file.
fn newest(scratch: &Scratch, file: &str) -> PathBuf {
    run_dir(scratch).join("checkpoints/step_00000004").join(file)
}

/// Makes the run look as if it was killed at its end, so that the same command goes on with it.
fn reopen(scratch: &Scratch) {
    let run = run_dir(scratch).join("run.json");
    let text = fs::read_to_string(&run).unwrap();
    fs::write(run, text.replace("\"complete\": true", "\"complete\": false")).unwrap();
}

/// Rank 0's heartbeat in the only run.
fn sign_of_life(dir: &Scratch, beat: &str) {
    let beats = run_dir(dir).join("heartbeats");
    fs::create_dir_all(&beats).unwrap();
    fs::write(beats.join("rank-00000.json"), beat).unwrap();
}

#[test]
fn runs() {
    let base = Scratch::new("runs");
    let made = base.trainer("run c.yaml");
    assert_eq!(made.code, 0, "{}", made.err);
    fs::rename(run_dir(&base), base.path("out/t-2026-01-01-00-00-00")).unwrap();
    reopen(&base);
    const STEP: &str = "out/t-2026-01-01-00-00-00/checkpoints/step_00000004";
    let explicit = |name, more: &str, prepare: fn(&Scratch), says| {
        let mut row = case(name, 5, "train c.yaml", prepare, says);
        row.args += &format!(" --set training.resume_from_checkpoint={STEP}{more}");
        row.says.push(STEP);
        row
    };
    check(
        &base,
        &[
            case(
                "a truncated checkpoint",
                0,
                "train c.yaml",
                |d| truncate(&newest(d, "model.safetensors"), 900),
                "passing over step_00000004 | 900 bytes, the manifest | (step 2) | step 4/4",
            ),
            case(
                "a flipped bit in a checkpoint",
                0,
                "train c.yaml",
                |d| flip(&newest(d, "optimizer.safetensors"), 9),
                "warning: passing over step_00000004 | content is not | (step 2) | step 4/4",
            ),
            case(
                "a lost file of a checkpoint",
                0,
                "train c.yaml",
                |d| fs::remove_file(newest(d, "state.json")).unwrap(),
                "warning: passing over step_00000004 | state.json | step 2)",
            ),
            case(
                "no whole checkpoint",
                0,
                "train c.yaml",
                |d| {
                    for file in d
                        .find("manifest.json")
                        .iter()
                        .filter(|f| f.parent().unwrap().starts_with(run_dir(d)))
                    {
                        fs::remove_file(file).unwrap();
                    }
                },
                "passing over step_00000004 | passing over step_00000002 | step 1/4",
            ),
            explicit(
                "a truncated checkpoint that is named",
                "",
                |d| truncate(&newest(d, "model.safetensors"), 900),
                "900 bytes",
            ),
            explicit(
                "a flipped bit in one that is named",
                "",
                |d| flip(&newest(d, "state.json"), 9),
                "content is not what the manifest says",
            ),
            explicit(
                "a checkpoint of another run",
                " --set training.lr=1e-3",
                none,
                "training.lr | config.yaml | model.init_from",
            ),
            case(
                "a checkpoint of other data",
                5,
                "train c.yaml",
                |d| {
                    let kept: Vec<String> =
                        d.read("data.csv").lines().take(31).map(String::from).collect();
                    d.write("data.csv", kept.join("\n"));
                },
                "checkpoints/step_00000004 | data or its split | --new",
            ),
            case(
                "a checkpoint that is none",
                5,
                "train c.yaml --set training.resume_from_checkpoint=tmp",
                none,
                "tmp | not a whole checkpoint | best.ckpt",
            ),
            case(
                "other threads",
                2,
                "train c.yaml --set distributed.threads_per_rank=2",
                none,
                "distributed.threads_per_rank | 1 threads | set it to 1",
            ),
            case(
                "a damaged checkpoint to predict with",
                5,
                "predict c.yaml --checkpoint out/t-2026-01-01-00-00-00/checkpoints/step_00000004",
                |d| {
                    flip(&newest(d, "model.safetensors"), 9);
                },
                "checkpoints/step_00000004 | content is not what the manifest says",
            ),
            case(
                "a damaged checkpoint, inspected",
                5,
                "inspect out/t-2026-01-01-00-00-00/checkpoints/step_00000004",
                |d| {
                    flip(&newest(d, "model.safetensors"), 9);
                },
                "checkpoints/step_00000004 | content is not",
            ),
            case(
                "another model to predict with",
                5,
                "predict c.yaml --set model.d_model=8",
                none,
                "[59, 16] | [59, 8]",
            ),
            case(
                "a run at work",
                4,
                "train c.yaml",
                |d| {
                    let host = fs::read_to_string("/proc/sys/kernel/hostname").unwrap();
                    let (host, pid) = (host.trim(), std::process::id());
                    sign_of_life(d, &format!("{{\"host\": \"{host}\", \"pid\": {pid}}}"));
                },
                "t-2026-01-01-00-00-00 | already at work: process | --new",
            ),
            case(
                "an old sign of life",
                0,
                "train c.yaml",
                |d| sign_of_life(d, "{\"host\": \"elsewhere\", \"pid\": 7, \"every\": 0.1}"),
                "going on from",
            ),
            case(
                "input that is gone",
                3,
                "predict c.yaml --input gone.fasta",
                none,
                "gone.fasta | check the path",
            ),
            case(
                "output below a file",
                4,
                "predict c.yaml --output c.yaml/x.csv",
                none,
                "c.yaml/x.csv | cannot write",
            ),
            case(
                "hidden states below a file",
                4,
                "predict c.yaml --output c.yaml/x.h5",
                none,
                "c.yaml/x.h5 | cannot write",
            ),
            case(
                "output onto a directory",
                4,
                "predict c.yaml --output d.csv",
                |d| fs::create_dir(d.path("d.csv")).unwrap(),
                "d.csv | cannot write",
            ),
            case(
                "hidden states onto a directory",
                4,
                "predict c.yaml --output d.h5",
                |d| fs::create_dir(d.path("d.h5")).unwrap(),
                "d.h5 | cannot write",
            ),
            case(
                "a kind of file that is not written",
                2,
                "predict c.yaml --output x.json",
                none,
                "--output | x.json | .csv | .h5",
            ),
            case(
                "runs below a file",
                4,
                "train c.yaml --set run.output_dir=c.yaml/out",
                none,
                "c.yaml/out | cannot write | run.output_dir",
            ),
            case(
                "a cache below a file",
                4,
                "embed c.yaml --set esm.cache_dir=c.yaml/cache",
                none,
                "c.yaml/cache | cannot write | esm.cache_dir",
            ),
            case(
                "samples below a file",
                4,
                "sample ptm_mamba c.yaml/x",
                none,
                "c.yaml/x | cannot write",
            ),
            case(
                "an export below a file",
                4,
                "export cache --to h5 --output c.yaml/x",
                none,
                "c.yaml/x | cannot write",
            ),
            case("an export of nothing", 5, "export gone --to h5 --output x", none, "gone"),
            case(
                "a copy that the cache does not have",
                2,
                "export cache --to h5 --output x --replica 2",
                none,
                "--replica | no copy number 2 | trainer inspect cache",
            ),
            case(
                "an export by a mapping of other data",
                3,
                "export cache --to h5 --output x --split-mapping m.json",
                |d| d.write("m.json", "{\"P000\": \"train\"}"),
                "m.json | is in the cache and not here | split_mapping.json of a run",
            ),
            case("a mean without .h5", 2, "predict c.yaml --mean", none, "--mean | .h5"),
            case(
                "no probability",
                2,
                "predict c.yaml --min-probability 7",
                none,
                "--min-probability | from 0 to 1",
            ),
        ],
    );
}
