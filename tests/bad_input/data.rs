//! Data files that cannot be read as proteins.

use super::{LFS, case, check, edit, gzip, none};
use crate::common::PROTEINS;
use crate::common::Scratch;

#[test]
fn data_files() {
    let base = Scratch::new("data-files");
    let fasta = |name, text: fn(&Scratch), says| {
        case(name, 3, "embed c.yaml --set dataset.dataset_location=p.fasta", text, says)
    };
    check(
        &base,
        &[
            case(
                "no file",
                3,
                "embed c.yaml --set dataset.dataset_location=gone.csv",
                none,
                "gone.csv | check the path",
            ),
            case(
                "an empty file",
                3,
                "embed c.yaml",
                |d| d.write("data.csv", ""),
                "data.csv | the file is empty",
            ),
            case(
                "names of columns alone",
                3,
                "embed c.yaml",
                |d| d.write("data.csv", "unique_id,ptm_seq\n"),
                "data.csv | no row",
            ),
            case(
                "a missing column",
                3,
                "embed c.yaml",
                |d| edit(d, "data.csv", "ptm_seq", "ptm_sec"),
                "data.csv:1 | no column \"ptm_seq\" | did you mean \"ptm_sec\"?",
            ),
            case(
                "a row that is short",
                3,
                "embed c.yaml",
                |d| edit(d, "data.csv", "P003,", "P003"),
                "data.csv:5 | 2 fields | 3",
            ),
            case(
                "an empty id",
                3,
                "embed c.yaml",
                |d| edit(d, "data.csv", "P003,", ","),
                "data.csv:5 | unique_id is empty",
            ),
            case(
                "an empty sequence",
                3,
                "embed c.yaml",
                |d| d.write("data.csv", "unique_id,ptm_seq\nA,MK\nB,\n"),
                "data.csv:3 | ptm_seq is empty",
            ),
            case(
                "an id twice",
                3,
                "embed c.yaml",
                |d| edit(d, "data.csv", "P007,", "P003,"),
                "data.csv:9 | \"P003\" had another sequence on line 5",
            ),
            case(
                "no residue",
                3,
                "embed c.yaml",
                |d| d.write("data.csv", "unique_id,ptm_seq\nA,MK\nB,MJK\n"),
                "data.csv:3 | token 2 | J",
            ),
            case(
                "an unknown modification",
                3,
                "embed c.yaml",
                |d| d.write("data.csv", "unique_id,ptm_seq\nA,MK\nB,M<Phosphoserin>K\n"),
                "data.csv:3 | did you mean <Phosphoserine>?",
            ),
            case(
                "lower case",
                3,
                "embed c.yaml",
                |d| d.write("data.csv", "unique_id,ptm_seq\nA,MK\nB,Mk\n"),
                "data.csv:3 | upper-case",
            ),
            case(
                "not UTF-8",
                3,
                "embed c.yaml",
                |d| d.write("data.csv", b"unique_id,ptm_seq\nA,M\xff\n"),
                "data.csv:2 | UTF-8",
            ),
            case(
                "a Git-LFS pointer",
                3,
                "embed c.yaml",
                |d| d.write("data.csv", LFS),
                "data.csv | Git-LFS pointer | git lfs pull",
            ),
            case(
                "a directory",
                3,
                "embed c.yaml --set dataset.dataset_location=tmp",
                none,
                "tmp | directory",
            ),
            case(
                "a truncated gzip",
                3,
                "embed c.yaml --set dataset.dataset_location=d.csv.gz",
                |d| {
                    let whole = gzip(&d.read("data.csv"));
                    d.write("d.csv.gz", &whole[..whole.len() - 9]);
                },
                "d.csv.gz | gzip",
            ),
            case(
                "a truncated gzip of FASTA",
                3,
                "embed c.yaml --set dataset.dataset_location=p.fasta.gz",
                |d| {
                    let whole = gzip(&">A\nMKLV\n".repeat(100));
                    d.write("p.fasta.gz", &whole[..whole.len() - 9]);
                },
                "p.fasta.gz | gzip",
            ),
            fasta(
                "text before the first record",
                |d| d.write("p.fasta", "\n>A\nMK\n>\nMK\n"),
                "p.fasta:4 | empty id",
            ),
            case(
                "text before >",
                3,
                "embed c.yaml --set dataset.dataset_location=p.fasta",
                |d| d.write("p.fasta", "MKL\n>A\nMK\n"),
                "p.fasta:1 | >id",
            ),
            fasta(
                "an empty record",
                |d| d.write("p.fasta", ">A\nMK\n>B\n\n>C\nMK\n"),
                "p.fasta:3 | B",
            ),
            fasta(
                "an id with two sequences",
                |d| d.write("p.fasta", ">A\nMK\n>B\nML\n>A\nMV\n"),
                "p.fasta:5 | \"A\" had another sequence on line 1",
            ),
            fasta(
                "no letter of a protein",
                |d| d.write("p.fasta", ">A\nMK\n>B\nMK\nM1K\n"),
                "p.fasta:5 | '1'",
            ),
            case(
                "an empty FASTA",
                3,
                "inspect p.fasta",
                |d| d.write("p.fasta", ""),
                "p.fasta | empty",
            ),
            case(
                "over the budget",
                3,
                "embed c.yaml --set training.max_tokens_per_batch=50",
                none,
                "esm.max_tokens_per_batch | P0",
            ),
            case(
                "over the budget of training",
                3,
                "train c.yaml --set training.use_esm=false --set training.max_tokens_per_batch=50",
                none,
                "training.max_tokens_per_batch | P0 | data.csv:",
            ),
            case(
                "over ESM's length",
                3,
                "embed c.yaml --set esm.max_length=40",
                none,
                "esm.max_length | P0 | data.csv: | windows",
            ),
            case(
                "a mapping without an id",
                3,
                "train c.yaml --set training.use_esm=false --set dataset.split_mapping=m.json",
                |d| {
                    d.write("m.json", "{\"P000\": \"train\"}");
                },
                "m.json | 39 of 40 | P001",
            ),
            case(
                "a mapping with an unknown part",
                3,
                "train c.yaml --set training.use_esm=false --set dataset.split_mapping=m.json",
                |d| {
                    d.write("m.json", "{\"P000\": \"vol\"}");
                },
                "m.json | P000 | did you mean \"val\"?",
            ),
            case(
                "a mapping that is none",
                3,
                "train c.yaml --set training.use_esm=false --set dataset.split_mapping=m.json",
                |d| d.write("m.json", "[1]"),
                "m.json:1",
            ),
            case(
                "everything is held out",
                3,
                "train c.yaml --set training.use_esm=false --set dataset.split_mapping=m.json",
                |d| {
                    let rows: Vec<String> =
                        (0..PROTEINS).map(|i| format!("\"P{i:03}\": \"val\"")).collect();
                    d.write("m.json", format!("{{{}}}", rows.join(",")));
                },
                "train on",
            ),
            case(
                "sites without sequences",
                3,
                "embed c.yaml",
                |d| d.write("data.csv", "AC_ID,pos,token\nA,1,<Phosphoserine>\n"),
                "data.csv | sequences",
            ),
            case("nothing to inspect", 3, "inspect gone", none, "gone | no such file"),
        ],
    );
}
