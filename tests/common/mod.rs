//! What tests of the command line share: a scratch directory with a tiny configuration and data
//! set, the program run in it, alone or under mpirun, and what it said.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A tiny run, two seconds from data to trained model. Tests speak of its lines by number.
pub const CONFIG: &str = "\
recipe: ptm_mamba
run: {name: t, output_dir: out, device: cpu}
dataset:
  dataset_location: data.csv
  val_size: 6
  test_size: 6
  max_sequence_length: 64
esm:
  model: {hidden_size: 16, num_hidden_layers: 2, num_attention_heads: 2, intermediate_size: 32}
  replicas: 2
  cache_dir: cache
model:
  d_model: 16
  n_layer: 1
  ssm_cfg: {d_state: 4}
training:
  use_precomputed_embeddings: true
  max_steps: 4
  eval_steps: 2
  per_device_train_batch_size: 4
  max_tokens_per_batch: 512
  micro_batches_per_step: 2
distributed:
  threads_per_rank: 1
";

/// Proteins of [`data`]; number i stands on line i + 2.
pub const PROTEINS: usize = 40;

/// `unique_id,ori_seq,ptm_seq` of [`PROTEINS`] random proteins `P000`…, 20 to 58 residues long.
pub fn data() -> String {
    let mut csv = String::from("unique_id,ori_seq,ptm_seq\n");
    let mut state = 1u64;
    let mut draw = |below: u64| {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 33) % below
    };
    for i in 0..PROTEINS {
        let (mut plain, mut modified) = (String::from("M"), String::from("M"));
        for _ in 0..19 + draw(39) {
            let residue = b"ACDEFGHIKLMNPQRSTVWY"[draw(20) as usize] as char;
            plain.push(residue);
            match residue {
                'S' => modified.push_str("<Phosphoserine>"),
                'K' => modified.push_str("<N6-acetyllysine>"),
                other => modified.push(other),
            }
        }
        csv += &format!("P{i:03},{plain},{modified}\n");
    }
    csv
}

/// What a process did.
pub struct Outcome {
    pub code: i32,
    pub out: String,
    pub err: String,
    pub seconds: f64,
}

/// A private directory, removed at the end; every process works in it.
pub struct Scratch {
    dir: PathBuf,
}

impl Scratch {
    /// With `c.yaml`, `data.csv` and an empty `tmp`, which is TMPDIR.
    pub fn new(name: &str) -> Scratch {
        let dir = std::env::temp_dir().join(format!("trainer-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&dir);
        fs::create_dir_all(dir.join("tmp")).unwrap();
        let scratch = Scratch { dir };
        scratch.write("c.yaml", CONFIG);
        scratch.write("data.csv", data());
        scratch
    }

    pub fn path(&self, name: impl AsRef<Path>) -> PathBuf {
        self.dir.join(name)
    }

    pub fn write(&self, name: &str, content: impl AsRef<[u8]>) {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }

    pub fn read(&self, name: impl AsRef<Path>) -> String {
        let path = self.path(name);
        fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
    }

    /// The program alone. Arguments stand in one text, cut at spaces.
    pub fn trainer(&self, args: &str) -> Outcome {
        self.launch("", args, &[])
    }

    /// The program on this many ranks of Open MPI.
    pub fn mpirun(&self, ranks: usize, args: &str) -> Outcome {
        self.launch(&format!("mpirun --oversubscribe --bind-to none -n {ranks}"), args, &[])
    }

    /// The program behind a launcher (or none), with these variables set.
    pub fn launch(&self, launcher: &str, args: &str, env: &[(&str, &str)]) -> Outcome {
        let start = std::time::Instant::now();
        let mut command = Command::new("timeout");
        // The program takes TERM for a wish to stop, so KILL it is.
        command.args(["-s", "KILL", "120"]).args(launcher.split_whitespace());
        command.arg(env!("CARGO_BIN_EXE_trainer")).args(args.split_whitespace());
        command.current_dir(&self.dir).env("TMPDIR", self.path("tmp"));
        // Tests may themselves run under a launcher.
        let foreign = ["OMPI_", "PMI", "SLURM_", "MPI_LOCAL", "TRAINER_"];
        for (name, _) in std::env::vars() {
            if foreign.iter().any(|prefix| name.starts_with(prefix)) {
                command.env_remove(name);
            }
        }
        command.env("OMPI_ALLOW_RUN_AS_ROOT", "1").env("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1");
        // Sockets of mpirun have paths of at most a hundred bytes.
        if !launcher.is_empty() {
            command.env("OMPI_MCA_orte_tmpdir_base", "/tmp");
        }
        command.envs(env.iter().copied());
        let output = command.output().expect("timeout (coreutils) starts");
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        Outcome {
            code: output.status.code().unwrap_or(-1),
            out: text(output.stdout),
            err: text(output.stderr),
            seconds: start.elapsed().as_secs_f64(),
        }
    }

    /// All files and directories below this one whose name begins so.
    pub fn find(&self, prefix: &str) -> Vec<PathBuf> {
        let mut found = Vec::new();
        let mut open = vec![self.dir.clone()];
        while let Some(dir) = open.pop() {
            for entry in fs::read_dir(&dir).unwrap().map(Result::unwrap) {
                if entry.file_name().to_string_lossy().starts_with(prefix) {
                    found.push(entry.path());
                }
                if entry.file_type().unwrap().is_dir() {
                    open.push(entry.path());
                }
            }
        }
        found.sort();
        found
    }

    /// Unfinished files.
    pub fn leftovers(&self) -> Vec<PathBuf> {
        self.find(".tmp-")
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.dir);
    }
}
