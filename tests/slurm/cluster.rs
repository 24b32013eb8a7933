//! A private Slurm of three virtual nodes (`cluster.sh`), and jobs on it.

use crate::harness::{Job, Scratch, TRAINER, entries, is_open_mpi, last_step};
use std::cell::RefCell;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Two cores carry one cluster at a time.
static ALONE: Mutex<()> = Mutex::new(());

/// Set where a machine without Slurm is a failure and no reason to skip.
const REQUIRED: &str = "TRAINER_REQUIRE_SLURM";

/// Nothing is waited for longer.
const LIMIT: Duration = Duration::from_secs(180);

/// A running cluster and a directory for the test on it. When it is dropped, `cluster.sh` sees the
/// end of its input and stops everything; so it does when this process dies in any other way.
pub struct Cluster {
    pub scratch: Scratch,
    dir: PathBuf,
    script: Child,
    pipes: RefCell<Option<(ChildStdin, BufReader<ChildStdout>)>>,
    _alone: MutexGuard<'static, ()>,
}

/// A job, or one task of an array (`12_1`).
pub struct Batch<'a> {
    cluster: &'a Cluster,
    pub id: String,
}

/// A file of `jobs/`.
pub fn job_file(name: &str) -> String {
    format!("{}/jobs/{name}", env!("CARGO_MANIFEST_DIR"))
}

/// The plugin of srun for the MPI that is tested.
pub fn plugin() -> &'static str {
    if is_open_mpi() { "--mpi=pmix" } else { "--mpi=pmi2" }
}

/// What keeps this machine from being a cluster.
fn obstacle() -> Option<String> {
    let id = Command::new("id").arg("-u").output().expect("id is on PATH");
    if id.stdout.trim_ascii() != b"0" {
        return Some("only root can start a cluster".to_string());
    }
    let path = format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default());
    let missing = |tool: &&str| !std::env::split_paths(&path).any(|dir| dir.join(tool).exists());
    let tools = ["munged", "slurmctld", "slurmd", "srun", "sbatch", "ip"];
    let missing: Vec<&str> = tools.into_iter().filter(missing).collect();
    (!missing.is_empty()).then(|| format!("there is no {} here", missing.join(", ")))
}

/// A banner that the test harness does not swallow.
fn skipped(test: &str, why: &str) {
    let line = "#".repeat(80);
    let text = format!(
        "{line}\n# NOT RUN, it needs a Slurm: {test}\n# {why}; on Debian, as root:\n\
         #   bash jobs/setup.sh --slurm-tests\n{line}\n"
    );
    let _ = std::io::stderr().write_all(text.as_bytes());
}

impl Cluster {
    /// Three idle nodes n1 to n3 of four CPUs each. None where that cannot be, which is said loudly,
    /// or is a failure where TRAINER_REQUIRE_SLURM is set.
    pub fn start(test: &str) -> Option<Cluster> {
        let alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(why) = obstacle() {
            assert!(std::env::var_os(REQUIRED).is_none(), "{REQUIRED} is set, but {why}");
            skipped(test, &why);
            return None;
        }
        // Not in TMPDIR: paths of sockets must be short.
        let dir = PathBuf::from(format!("/tmp/slurm-{}-{test}", std::process::id()));
        let mut script = Command::new("bash")
            .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/slurm/cluster.sh"))
            .arg(&dir)
            .arg("3")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("bash is on PATH");
        let said = BufReader::new(script.stdout.take().unwrap());
        let pipes = RefCell::new(Some((script.stdin.take().unwrap(), said)));
        let scratch = Scratch::new(test);
        let cluster = Cluster { scratch, dir, script, pipes, _alone: alone };
        cluster.hears("ready");
        Some(cluster)
    }

    fn hears(&self, wanted: &str) {
        let mut line = String::new();
        self.pipes.borrow_mut().as_mut().unwrap().1.read_line(&mut line).unwrap();
        assert_eq!(line.trim_end(), wanted, "what cluster.sh says");
    }

    /// Power cut of a node, or its return: `fail n2`, `start n2`.
    pub fn node(&self, order: &str) {
        writeln!(self.pipes.borrow_mut().as_mut().unwrap().0, "{order}").unwrap();
        self.hears(order);
    }

    fn conf(&self) -> String {
        self.dir.join("slurm.conf").display().to_string()
    }

    /// `srun` and the like with the program behind it, as a launch that is watched.
    pub fn launch(&self, command: &[&str], args: &[&str]) -> Job {
        let conf = format!("SLURM_CONF={}", self.conf());
        self.scratch.start(&[&["env", &conf], command].concat(), args)
    }

    /// A client of Slurm, which must succeed; what it prints.
    pub fn ask(&self, command: &[&str]) -> String {
        let asked = Command::new("timeout")
            .args(["-k", "5", "30"])
            .args(command)
            .current_dir(self.scratch.path(""))
            .env("SLURM_CONF", self.conf())
            .env("TRAINER", TRAINER)
            .env("TMPDIR", self.scratch.path("t"))
            .env("OMPI_ALLOW_RUN_AS_ROOT", "1")
            .env("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1")
            .output()
            .expect("timeout is on PATH");
        let said = String::from_utf8_lossy(&asked.stdout);
        let error = String::from_utf8_lossy(&asked.stderr);
        assert!(asked.status.success(), "{command:?}\n{said}{error}");
        said.trim_end().to_string()
    }

    /// Submits a job file, with options of sbatch in front of it.
    pub fn submit(&self, options: &[&str], file: &str, args: &[&str]) -> Batch<'_> {
        let id = self.ask(&[&["sbatch", "--parsable"], options, &[file], args].concat());
        self.job(&id)
    }

    /// A job that is there already.
    pub fn job(&self, id: &str) -> Batch<'_> {
        Batch { cluster: self, id: id.to_string() }
    }

    /// The program's processes on this cluster, in the order in which they were started.
    pub fn ranks(&self) -> Vec<i32> {
        let conf = format!("SLURM_CONF={}/", self.dir.display());
        let ours = |pid: &i32| {
            let of = |what| fs::read(format!("/proc/{pid}/{what}")).unwrap_or_default();
            // A zombie has no environment any more.
            let environment = of("environ");
            of("comm") == b"trainer\n"
                && environment.split(|b| *b == 0).any(|v| v.starts_with(conf.as_bytes()))
        };
        let all = entries(Path::new("/proc")).into_iter().filter_map(|name| name.parse().ok());
        let mut found: Vec<i32> = all.filter(ours).collect();
        found.sort();
        found
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        drop(self.pipes.take());
        let ended = self.script.wait();
        if std::thread::panicking() {
            eprintln!("left for inspection: {}", self.dir.display());
            return;
        }
        assert!(ended.is_ok_and(|status| status.success()), "cluster.sh failed");
        fs::remove_dir_all(&self.dir).unwrap();
    }
}

impl Batch<'_> {
    /// A field of `scontrol show job`, such as JobState or Restarts.
    pub fn field(&self, name: &str) -> String {
        let shown = self.cluster.ask(&["scontrol", "show", "job", "-o", &self.id]);
        let shown = shown.lines().next().unwrap_or_default();
        let found = shown.split(' ').find_map(|f| f.strip_prefix(name)?.strip_prefix('='));
        found.unwrap_or_else(|| panic!("no {name} in {shown}")).to_string()
    }

    /// `RUNNING`, `PENDING` and so on.
    pub fn state(&self) -> String {
        self.field("JobState")
    }

    /// How often it went back into the queue.
    pub fn restarts(&self) -> String {
        self.field("Restarts")
    }

    /// What it printed: `NAME-ID.out` in the directory of sbatch.
    pub fn said(&self) -> String {
        let end = format!("-{}.out", self.id);
        let logs =
            entries(&self.cluster.scratch.path("")).into_iter().filter(|n| n.ends_with(&end));
        logs.map(|n| fs::read_to_string(self.cluster.scratch.path(&n)).unwrap_or_default())
            .collect()
    }

    /// Waits for something about this job, which must not fail meanwhile.
    pub fn until(&self, what: &str, mut holds: impl FnMut() -> bool) {
        let started = Instant::now();
        while !holds() {
            let state = self.state();
            assert!(
                started.elapsed() < LIMIT && state != "FAILED",
                "job {} is {state}, waiting until {what}\n{}",
                self.id,
                self.said()
            );
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Waits until its training has taken this step, which must find it running.
    pub fn until_step(&self, output_dir: &Path, step: u64) {
        self.until(&format!("it is at step {step}"), || last_step(output_dir) >= step);
        assert_eq!(self.state(), "RUNNING", "{}", self.said());
    }

    /// Waits until it is neither running nor on its way in or out, and says what became of it.
    pub fn ends(&self) -> String {
        let started = Instant::now();
        loop {
            let state = self.state();
            if !["PENDING", "RUNNING", "COMPLETING"].contains(&state.as_str()) {
                return state;
            }
            assert!(started.elapsed() < LIMIT, "job {} is still {state}\n{}", self.id, self.said());
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Waits until it is complete, and requires so many restarts, which it must have noticed.
    pub fn completes(&self, restarts: usize) {
        assert_eq!(self.ends(), "COMPLETED", "{}", self.said());
        assert_eq!(self.restarts(), restarts.to_string(), "{}", self.said());
        let last = format!("restart {restarts} on ");
        assert!(self.said().contains(&last), "{last}\n{}", self.said());
    }
}
