//! Starting the program alone and under `mpirun`, watching it, and ending it in every way.

use serde_json::Value;
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

pub const TRAINER: &str = env!("CARGO_BIN_EXE_trainer");

/// No launch takes longer; `timeout` ends it then, and the test with it.
const LIMIT: &str = "120";

/// A small generator (SplitMix64), seeded from the environment or the clock; the seed is printed.
pub struct Dice(u64);

impl Dice {
    pub fn new(test: &str) -> Dice {
        let clock = || {
            let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
            u64::from(now.unwrap().subsec_nanos())
        };
        let told = std::env::var("MPI_TEST_SEED").ok();
        let seed = told.map_or_else(clock, |s| s.parse().expect("MPI_TEST_SEED is a number"));
        eprintln!("{test}: MPI_TEST_SEED={seed}");
        Dice(seed)
    }

    /// A number from `low` to `high`, both included.
    pub fn roll(&mut self, low: u64, high: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        low + (z ^ (z >> 31)) % (high - low + 1)
    }
}

/// A directory of a test's own; it goes away unless the test fails.
pub struct Scratch(PathBuf);

impl Scratch {
    pub fn new(name: &str) -> Scratch {
        static NUMBER: AtomicUsize = AtomicUsize::new(0);
        let number = NUMBER.fetch_add(1, Ordering::SeqCst);
        let own = format!("tmpi-{}-{number}-{name}", std::process::id());
        let dir = std::env::temp_dir().join(own);
        fs::create_dir_all(dir.join("t")).unwrap();
        write_proteins(&dir.join("ptm.csv"), 60, 20, 60);
        Scratch(dir)
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// Writes a configuration: the common one with these `section.key=value` changes.
    pub fn config(&self, name: &str, changes: &[&str]) -> PathBuf {
        let mut sections: BTreeMap<&str, BTreeMap<String, String>> = BTreeMap::new();
        let data = format!("dataset.dataset_location={}", self.path("ptm.csv").display());
        let out = format!("run.output_dir={}", self.path(name).display());
        let cache = format!("esm.cache_dir={}", self.path("cache").display());
        let common = COMMON.lines().chain([data.as_str(), &out, &cache]);
        for line in common.chain(changes.iter().copied()).filter(|l| !l.is_empty()) {
            let (key, value) = line.split_once('=').unwrap();
            let (section, key) = key.split_once('.').unwrap();
            sections.entry(section).or_default().insert(key.into(), value.into());
        }
        let mut text = "recipe: ptm_mamba\n".to_string();
        for (section, keys) in sections {
            text += &format!("{section}:\n");
            keys.iter().for_each(|(k, v)| text += &format!("  {k}: {v}\n"));
        }
        let path = self.path(&format!("{name}.yaml"));
        fs::write(&path, text).unwrap();
        path
    }

    /// The program on this many ranks, or alone.
    pub fn launch(&self, ranks: Option<usize>, args: &[&str]) -> Job {
        match ranks {
            None => self.start(&[TRAINER], args),
            Some(n) => {
                let n = n.to_string();
                self.start(&[mpirun(), &["-n", &n, TRAINER]].concat(), args)
            }
        }
    }

    /// Any command line in front of the program's arguments.
    pub fn start(&self, command: &[&str], args: &[&str]) -> Job {
        static NUMBER: AtomicUsize = AtomicUsize::new(0);
        let log = self.path(&format!("log-{}", NUMBER.fetch_add(1, Ordering::SeqCst)));
        let output = |suffix| Stdio::from(File::create(log.with_extension(suffix)).unwrap());
        let child = Command::new("timeout")
            .args(["-k", "5", LIMIT])
            .args(command)
            .args(args)
            .env("OMPI_ALLOW_RUN_AS_ROOT", "1")
            .env("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1")
            // The launcher's own files stay here even where it is killed.
            .env("TMPDIR", self.path("t"))
            .current_dir(&self.0)
            .stdin(Stdio::null())
            .stdout(output("out"))
            .stderr(output("err"))
            .spawn()
            .expect("timeout and mpirun are on PATH");
        Job { child, log, started: Instant::now() }
    }

    /// Runs to the end and requires this exit code.
    pub fn run(&self, ranks: Option<usize>, args: &[&str], code: i32) -> Ended {
        let ended = self.launch(ranks, args).wait();
        assert_eq!(ended.code, code, "{ranks:?} ranks, {args:?}\n{}", ended.err);
        ended
    }

    /// The only run below an output directory.
    pub fn only_run(&self, name: &str) -> PathBuf {
        let runs = entries(&self.path(name));
        assert_eq!(runs.len(), 1, "one run goes on, no second is begun: {runs:?}");
        self.path(name).join(&runs[0])
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("left for inspection: {}", self.0.display());
        } else {
            fs::remove_dir_all(&self.0).unwrap();
        }
    }
}

/// What starts ranks: `mpirun` of Open MPI, or the command in TRAINER_MPIEXEC (another MPI's).
pub fn mpirun() -> &'static [&'static str] {
    static OTHER: OnceLock<Vec<&'static str>> = OnceLock::new();
    OTHER.get_or_init(|| match std::env::var("TRAINER_MPIEXEC") {
        Ok(own) => own.leak().split(' ').collect(),
        Err(_) => vec!["mpirun", "--oversubscribe", "--bind-to", "none"],
    })
}

/// Whether that is Open MPI's.
pub fn is_open_mpi() -> bool {
    mpirun()[0] == "mpirun"
}

const COMMON: &str = "
run.name=t
run.device=cpu
dataset.val_size=10
dataset.test_size=10
esm.model={hidden_size: 16, num_hidden_layers: 2, num_attention_heads: 2, intermediate_size: 32}
esm.replicas=2
esm.max_tokens_per_batch=200
model.model_type=bidirectional_mamba
model.d_model=16
model.n_layer=1
model.vocab_size=59
model.ssm_cfg={d_state: 4, d_conv: 4, expand: 2, dt_rank: auto}
model.rms_norm=true
model.residual_in_fp32=true
model.fused_add_norm=true
training.use_precomputed_embeddings=false
training.num_train_epochs=1000
training.max_steps=20
training.eval_steps=10
training.per_device_train_batch_size=2
training.micro_batches_per_step=8
training.lr=3.0e-3
training.report_to=[]
distributed.threads_per_rank=1
";

/// Random proteins with some modified residues, the same every time.
pub fn write_proteins(path: &Path, number: usize, shortest: u64, longest: u64) {
    let residues: Vec<char> = "ACDEFGHIKLMNPQRSTVWY".chars().collect();
    let mut dice = Dice(7);
    let mut text = "unique_id,ptm_seq\n".to_string();
    for i in 0..number {
        let mut sequence = String::new();
        for _ in 0..dice.roll(shortest, longest) {
            match dice.roll(0, 24) {
                r @ 0..20 => sequence.push(residues[r as usize]),
                20 | 21 => sequence.push_str("<Phosphoserine>"),
                22 | 23 => sequence.push_str("<N6-acetyllysine>"),
                _ => sequence.push_str("<Phosphothreonine>"),
            }
        }
        text += &format!("P{i:03},{sequence}\n");
    }
    fs::write(path, text).unwrap();
}

/// A launch that is going on.
pub struct Job {
    child: Child,
    log: PathBuf,
    started: Instant,
}

/// A launch that is over.
pub struct Ended {
    pub code: i32,
    pub out: String,
    pub err: String,
    pub seconds: f64,
}

impl Job {
    /// Waits for the end, which must come by itself.
    pub fn wait(self) -> Ended {
        let ended = self.wait_any();
        assert!(ended.code != 124 && ended.code != 137, "it hung or was killed\n{}", ended.err);
        ended
    }

    /// Waits for the end of a job in which something was killed. A hang is no end.
    pub fn wait_any(mut self) -> Ended {
        use std::os::unix::process::ExitStatusExt;
        let status = self.child.wait().unwrap();
        let seconds = self.started.elapsed().as_secs_f64();
        let code = status.code().unwrap_or_else(|| 128 + status.signal().unwrap());
        assert_ne!(code, 124, "it hung, see {}", self.log.display());
        let text = |suffix| fs::read(self.log.with_extension(suffix)).unwrap();
        let text = |suffix| String::from_utf8_lossy(&text(suffix)).into_owned();
        Ended { code, out: text("out"), err: text("err"), seconds }
    }

    pub fn is_over(&mut self) -> bool {
        self.child.try_wait().unwrap().is_some()
    }

    /// Waits until `condition` holds; false where the job ended first.
    pub fn until(&mut self, mut condition: impl FnMut() -> bool) -> bool {
        while !condition() {
            if self.is_over() {
                return false;
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        true
    }

    /// The processes of this program in this job, in the order in which they were started.
    pub fn ranks(&self) -> Vec<i32> {
        self.processes(|command| command == "trainer")
    }

    /// The process that `timeout` started: mpirun, or the program itself.
    pub fn leader(&self) -> i32 {
        let own = self.child.id() as i32;
        let children = processes().into_iter().filter(|p| p.parent == own);
        children.map(|p| p.pid).next().expect("it has been started")
    }

    fn processes(&self, wanted: impl Fn(&str) -> bool) -> Vec<i32> {
        let all = processes();
        let mut family = vec![self.child.id() as i32];
        let mut at = 0;
        while at < family.len() {
            let parent = family[at];
            family.extend(all.iter().filter(|p| p.parent == parent).map(|p| p.pid));
            at += 1;
        }
        let ours = all.iter().filter(|p| family.contains(&p.pid) && wanted(&p.name));
        ours.map(|p| p.pid).collect()
    }

    /// SIGKILL for all of the job at once, as when a node loses power. False: it was over already.
    pub fn kill(mut self) -> bool {
        let all = self.processes(|_| true);
        if self.is_over() {
            return false;
        }
        // What starts processes first, so that none is started meanwhile.
        all.iter().for_each(|pid| signal(*pid, "KILL"));
        let status = self.child.wait().unwrap();
        // Gone, not only told to go: the next start must find nobody at work.
        while all.iter().any(|pid| is_alive(*pid)) {
            std::thread::sleep(Duration::from_millis(2));
        }
        status.code() != Some(0)
    }
}

pub fn signal(pid: i32, name: &str) {
    let sent = Command::new("kill").args([format!("-{name}"), pid.to_string()]).output();
    sent.expect("kill is on PATH");
}

struct Process {
    pid: i32,
    parent: i32,
    name: String,
}

/// Whether a process is there and no zombie.
pub fn is_alive(pid: i32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"));
    stat.is_ok_and(|s| !s.rsplit(')').next().unwrap_or_default().trim_start().starts_with('Z'))
}

fn processes() -> Vec<Process> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let Ok(pid) = entry.file_name().to_string_lossy().parse::<i32>() else { continue };
        let Ok(stat) = fs::read_to_string(entry.path().join("stat")) else { continue };
        let (Some(open), Some(close)) = (stat.find('('), stat.rfind(')')) else { continue };
        let parent = stat[close + 1..].split_whitespace().nth(1);
        let parent = parent.and_then(|p| p.parse().ok()).unwrap_or(0);
        found.push(Process { pid, parent, name: stat[open + 1..close].to_string() });
    }
    found.sort_by_key(|p| p.pid);
    found
}

/// The names in a directory, sorted; none where there is no such directory.
pub fn entries(dir: &Path) -> Vec<String> {
    let Ok(list) = fs::read_dir(dir) else { return Vec::new() };
    let mut names: Vec<String> =
        list.map(|e| e.unwrap().file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

/// Every file below a directory with its bytes.
pub fn contents(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    let names = entries(dir).into_iter();
    names.map(|name| (name.clone(), fs::read(dir.join(name)).unwrap())).collect()
}

/// Weights and moments of a checkpoint.
pub fn bits(run: &Path, checkpoint: &str) -> [Vec<u8>; 2] {
    let read = |name| fs::read(run.join(checkpoint).join(name)).unwrap();
    [read("model.safetensors"), read("optimizer.safetensors")]
}

/// The records of a run without what differs from machine to machine and from hour to hour.
pub fn records(run: &Path) -> Vec<Value> {
    let text = fs::read_to_string(run.join("metrics.jsonl")).unwrap_or_default();
    let whole = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    whole
        .map(|mut record| {
            for key in ["seconds", "waiting_seconds", "memory_bytes"] {
                record.as_object_mut().unwrap().remove(key);
            }
            record
        })
        .collect()
}

/// The last training step in a run's records, 0 where there is none yet.
pub fn last_step(output_dir: &Path) -> u64 {
    let Some(run) = entries(output_dir).pop() else { return 0 };
    let last = records(&output_dir.join(run)).into_iter().rfind(|r| r["kind"] == "train");
    last.map_or(0, |record| record["step"].as_u64().unwrap())
}

/// Requires two finished runs to be the same but for time: bits, records, figures, links, and that
/// nothing half-done is left.
pub fn assert_same_run(a: &Path, b: &Path, what: &str) {
    for checkpoint in ["last.ckpt", "best.ckpt"] {
        let target = |run: &Path| fs::read_link(run.join(checkpoint)).unwrap();
        assert_eq!(target(a), target(b), "{what}: {checkpoint}");
        assert!(target(b).is_relative(), "{what}: {checkpoint} is a relative link");
        assert!(bits(a, checkpoint) == bits(b, checkpoint), "{what}: {checkpoint} differs in bits");
    }
    let (own, other) = (records(a), records(b));
    for (x, y) in own.iter().zip(&other) {
        assert_eq!(x, y, "{what}: records");
    }
    assert_eq!(own.len(), other.len(), "{what}: as many records");
    let json = |run: &Path| -> Value {
        serde_json::from_str(&fs::read_to_string(run.join("metrics.json")).unwrap()).unwrap()
    };
    assert_eq!(json(a), json(b), "{what}: metrics.json");
    assert_eq!(entries(a), entries(b), "{what}: files of the run, no temporaries");
    let checkpoints = |run: &Path| entries(&run.join("checkpoints"));
    assert!(checkpoints(b).iter().all(|n| n.starts_with("step_")), "{what}: {:?}", checkpoints(b));
}
