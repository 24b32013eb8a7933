//! Who may import whom. The table is DESIGN's, the facts are the `crate::` paths in the source.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

/// Room → rooms it may use, beside itself. `error` and `progress` may be used everywhere.
const ALLOWED: &[(&str, &str)] = &[
    ("error", ""),
    ("progress", ""),
    ("rng", ""),
    ("files", ""),
    ("config", "rng files"),
    ("torch", "rng files"),
    ("dist", "config files torch"),
    ("metrics", "torch"),
    ("nn", "torch rng"),
    ("data", "torch config rng files"),
    ("models", "nn torch"),
    ("report", "metrics config files"),
    ("cache", "data config files"),
    ("embed", "models cache data dist report torch config files"),
    ("train", "data torch metrics dist report config rng files"),
    ("recipes", "rng files config torch dist metrics nn data models report cache embed train"),
    ("doctor", "files config torch dist report recipes"),
    (
        "commands",
        "rng files config torch dist metrics nn data models report cache embed train recipes doctor",
    ),
    ("lib", "everything is declared there"),
    ("main", "commands dist recipes"),
];

fn rust_files(dir: &Path, found: &mut Vec<std::path::PathBuf>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            rust_files(&path, found);
        } else if path.extension().is_some_and(|e| e == "rs") && !path.ends_with("build.rs") {
            found.push(path);
        }
    }
}

/// The rooms that a file names after `crate::` (or, in main.rs, `trainer::`), comments left out.
fn uses(text: &str) -> BTreeSet<String> {
    let mut rooms = BTreeSet::new();
    for line in text.lines().map(|l| l.split("//").next().unwrap_or_default()) {
        for prefix in ["crate::", "trainer::"] {
            for (at, _) in line.match_indices(prefix) {
                let rest = &line[at + prefix.len()..];
                let room: String =
                    rest.chars().take_while(|c| c.is_ascii_lowercase() || *c == '_').collect();
                rooms.insert(room);
            }
        }
    }
    rooms
}

#[test]
fn rooms_import_only_what_they_may() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let allowed: BTreeMap<&str, &str> = ALLOWED.iter().copied().collect();
    let mut files = Vec::new();
    rust_files(&src, &mut files);
    assert!(files.len() > 50, "only {} files were found", files.len());
    let mut wrong = Vec::new();
    for path in files {
        let relative = path.strip_prefix(&src).unwrap();
        let first = relative.components().next().unwrap().as_os_str().to_str().unwrap();
        let room = first.trim_end_matches(".rs");
        let may: Vec<&str> = allowed
            .get(room)
            .unwrap_or_else(|| panic!("the room {room} is not in the table"))
            .split(' ')
            .collect();
        for used in uses(&fs::read_to_string(&path).unwrap()) {
            let everywhere = ["error", "progress"].contains(&used.as_str());
            if used != room && !everywhere && !may.contains(&used.as_str()) && room != "lib" {
                wrong.push(format!("{} uses {used}", relative.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn unsafe_code_stays_in_its_rooms() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    rust_files(&src, &mut files);
    for path in files {
        let text = fs::read_to_string(&path).unwrap();
        let relative = path.strip_prefix(&src).unwrap().to_str().unwrap().to_string();
        let code = text.lines().filter(|l| !l.trim_start().starts_with("//"));
        let found = code.filter(|l| l.contains("unsafe {") || l.contains("unsafe extern")).count();
        let home = ["torch/", "dist/"].iter().any(|room| relative.starts_with(room));
        assert!(home || found == 0, "{relative} has unsafe code");
    }
}

#[test]
fn the_table_can_be_broken() {
    assert!(uses("use crate::models::esm2;").contains("models"));
    assert!(uses("let x = crate::dist::stop::requested();").contains("dist"));
    assert!(uses("// use crate::dist;").is_empty());
}
