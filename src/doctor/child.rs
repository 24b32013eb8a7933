//! A process of this program that does one thing for another one, and is given up when it hangs.
//!
//! It is told nothing of the launcher: it is no rank. One that a dead file system holds cannot be
//! ended by anybody; it is killed all the same and left behind.

use crate::error::{Error, Result};
use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

/// What became of it.
pub struct Outcome {
    /// Lines of standard output.
    pub lines: Vec<String>,
    /// Standard error, where the process ended.
    pub said: String,
    /// How it ended; None: it did not in time, and was killed.
    pub status: Option<ExitStatus>,
    /// Whether it is gone now: nothing of it still runs, or hangs.
    pub gone: bool,
}

/// How long it may take.
pub struct Patience {
    /// Until its first line, or its end: a program of this size starts slowly from a cold disk.
    pub first: Duration,
    /// From one line to the next.
    pub between: Duration,
    /// In all, after the first line.
    pub whole: Duration,
}

/// Variables that make a process a rank.
const RANKS: [&str; 6] = ["OMPI_", "PMIX_", "PMI_", "MPI_LOCAL", "SLURM_STEP", "SLURM_PROCID"];

/// Runs this program with these arguments, for at most so long.
pub fn run(arguments: &[&str], patience: &Patience) -> Result<Outcome> {
    let fail = |e: std::io::Error| {
        Error::launch(format!("cannot start another process: {e}"))
            .hint("see `ulimit -u` and the memory that is left")
    };
    let mut command = Command::new(std::env::current_exe().map_err(fail)?);
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    for (name, _) in std::env::vars_os() {
        if RANKS.iter().any(|prefix| name.to_string_lossy().starts_with(prefix)) {
            command.env_remove(name);
        }
    }
    let mut child = command.spawn().map_err(fail)?;
    let errors = child.stderr.take().map(listen);
    let mut lines = Vec::new();
    if let Some(out) = child.stdout.take().map(listen) {
        let mut until = Instant::now() + patience.first;
        let mut end = None;
        while let Ok(line) = out.recv_timeout(until.saturating_duration_since(Instant::now())) {
            lines.push(line);
            let now = Instant::now();
            until = (now + patience.between).min(*end.get_or_insert(now + patience.whole));
        }
    }
    // It has closed its standard output, or its time is up.
    let status = ended(&mut child, Duration::from_millis(200)).map_err(fail)?;
    let gone = match status {
        Some(_) => true,
        None => {
            // Nothing but the system can keep it now.
            let _ = child.kill();
            ended(&mut child, Duration::from_secs(1)).map_err(fail)?.is_some()
        }
    };
    let said: Vec<String> =
        errors.filter(|_| gone).map_or_else(Vec::new, |errors| errors.iter().collect());
    Ok(Outcome { lines, said: said.join("\n"), status, gone })
}

/// How it ended, if it does so in time.
fn ended(child: &mut Child, patience: Duration) -> std::io::Result<Option<ExitStatus>> {
    let begin = Instant::now();
    loop {
        match child.try_wait()? {
            None if begin.elapsed() < patience => std::thread::sleep(Duration::from_millis(2)),
            status => return Ok(status),
        }
    }
}

/// The lines of a pipe, read by a thread that ends with the pipe, or with this process.
fn listen(pipe: impl Read + Send + 'static) -> Receiver<String> {
    let (sender, receiver) = channel();
    std::thread::spawn(move || {
        for line in BufReader::new(pipe).lines().map_while(std::result::Result::ok) {
            if sender.send(line).is_err() {
                break;
            }
        }
    });
    receiver
}
