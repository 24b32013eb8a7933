//! What the tests of this recipe share: a directory of their own, real files, sections.

use super::config::AlloyDataset;
use crate::config::{ConfigFile, Dataset, Size, UserPath};
use std::path::{Path, PathBuf};

/// A directory of its own for a test, removed at the end.
pub struct Scratch(pub PathBuf);

impl Scratch {
    pub fn new(name: &str) -> Scratch {
        let name = format!("trainer-alloy-{name}-{}", std::process::id());
        let dir = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&dir).unwrap();
        Scratch(dir)
    }

    pub fn file(&self, name: &str, text: impl AsRef<[u8]>) -> PathBuf {
        std::fs::write(self.0.join(name), text).unwrap();
        self.0.join(name)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// The MPEA table, if the environment says where real files are.
pub fn mpea(test: &str) -> Option<PathBuf> {
    let folder = std::env::var_os("TRAINER_DATA").map(PathBuf::from);
    if folder.is_none() {
        eprintln!("SKIPPED {test}: TRAINER_DATA does not say where the real files are");
    }
    folder.map(|folder| folder.join("MPEA_dataset.csv"))
}

/// The shared section for a table.
pub fn dataset(table: &Path) -> Dataset {
    Dataset {
        dataset_location: Some(UserPath::new(table.to_str().unwrap()).unwrap()),
        val_size: Size::Fraction(0.15),
        test_size: Size::Samples(0),
        ..Dataset::default()
    }
}

/// The recipe's own keys, from lines of YAML, with prepared data in `dir`.
pub fn own(dir: &Scratch, yaml: &str) -> AlloyDataset {
    let lines: String = yaml.lines().map(|line| format!("  {line}\n")).collect();
    let config = ConfigFile::from_text("c.yaml", &format!("dataset:\n{lines}"), &[]).unwrap();
    let mut own: AlloyDataset = config.section("dataset").unwrap();
    own.check().unwrap();
    own.prepared_dir = UserPath::new(dir.0.join("all_data").to_str().unwrap()).unwrap();
    own
}
