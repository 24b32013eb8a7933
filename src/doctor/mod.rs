//! An active preflight: whether a run would work here, and if not, why and what to do.
//!
//! Each probe gathers facts and judges them apart from that, so that judging can be tested without
//! the machine that is wrong. Rank 0 judges; every rank learns how it ended.
//!
//! - `finding`, `table`: what was found, merged over ranks, for people and programs
//! - `facts`: what each rank knows of itself: `launch`, `cpu`, `memory`, `limits`, `gpu`
//! - `clock`, `all_reduce`, `shared`: what takes several ranks
//! - `places`, `disk`, `probe`, `child`: what a run does on disk, tried in a process of its own
//! - `configuration`: whether a run would get to its first step

mod all_reduce;
mod child;
mod clock;
mod configuration;
mod cpu;
mod disk;
mod facts;
mod finding;
mod gpu;
mod launch;
mod limits;
mod memory;
mod places;
mod probe;
mod shared;
mod table;

pub use finding::{Finding, Status};
pub use probe::run as probe;
pub use table::Report;

use crate::config::ConfigFile;
use crate::dist::{World, fail};
use crate::error::{Error, Result};
use crate::progress;
use facts::RankFacts;
use places::{Need, Wanted};
use serde_json::Value;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

/// The configuration that a run would be started with.
pub struct Target<'a> {
    /// Its path.
    pub config: &'a Path,
    /// Changes, as `--set` gives them.
    pub set: &'a [String],
}

/// No part of this takes longer where all ranks are alive and hear each other.
const PATIENCE: Duration = Duration::from_secs(60);

/// Looks at everything. All ranks take part, and all get the report.
pub fn examine(world: &World, target: Option<&Target>) -> Result<Report> {
    let begin = Instant::now();
    let part = Parts::begin();
    let comm = &world.comm;
    part.enter("asking the ranks about themselves");
    let all = facts::gather(world)?;
    let hosts: Vec<String> = all.iter().map(|facts| facts.host.clone()).collect();
    part.enter("reading the configuration");
    let (wanted, own) = match target.map(read_configuration) {
        Some(Ok((wanted, keys))) => (wanted, Ok(keys)),
        Some(Err(error)) => (Wanted::nothing(), Err(Box::new(configuration::refused(&error)))),
        None => (Wanted::nothing(), Ok(Value::Null)),
    };
    let read = configuration::gather(comm, own)?;
    let readable = read.iter().all(|one| one.is_ok() && *one == read[0]);
    // All ranks look at the same places.
    let wanted = if readable { wanted } else { Wanted::nothing() };

    let mut findings = launch::judge(&all);
    findings.extend(cpu::judge(&all, wanted.threads));
    findings.extend(memory::judge(&all));
    findings.extend(limits::judge(&all));
    for facts in all.iter().filter(|facts| facts.local_rank == 0) {
        let node: Vec<&RankFacts> = all.iter().filter(|other| other.node == facts.node).collect();
        let found = limits::judge_shared(facts.shared, node.len()).into_iter();
        findings.extend(found.map(|f| node.iter().fold(f, |f, one| f.on(one.rank, &one.host))));
    }
    findings.extend(gpu::judge(&all, wanted.device, wanted.share_gpus));
    if comm.size() > 1 {
        part.enter("comparing clocks");
        findings.extend(clock::judge(&clock::gather(comm)?, &hosts));
        part.enter("adding numbers over all ranks (all-reduce)");
        let room = all[comm.rank()].memory.left().unwrap_or(u64::MAX) / 4 / world.local_size as u64;
        findings.extend(all_reduce::judge(&all_reduce::measure(comm, room)?, comm.size()));
    }
    let (found, can_read) = look_at_files(world, &part, &wanted, &all)?;
    findings.extend(found);
    findings.extend(configuration::judge_read(&read, &hosts));
    if let Some(target) = target.filter(|_| readable) {
        findings.extend(look_at_configuration(world, &part, &wanted, target, can_read)?);
    }
    report(world, all, findings, begin)
}

/// Every node's first rank tries the places; then all see whether they share them. Also says whether
/// what is to be read can be read everywhere.
fn look_at_files(
    world: &World,
    part: &Parts,
    wanted: &Wanted,
    all: &[RankFacts],
) -> Result<(Vec<Finding>, bool)> {
    let comm = &world.comm;
    part.enter("trying the files of a run");
    let own = match world.local_rank {
        0 => Some(disk::gather(&wanted.places)?),
        _ => None,
    };
    let bug = |e: serde_json::Error| Error::bug(format!("answers in JSON: {e}"));
    let answers = comm.all_gather(serde_json::to_vec(&own).map_err(bug)?)?;
    let answers: Vec<Option<Vec<disk::Answer>>> = answers
        .iter()
        .map(|one| serde_json::from_slice(one).map_err(bug))
        .collect::<Result<_>>()?;
    let mut findings = Vec::new();
    for (facts, answers) in all.iter().zip(&answers) {
        let found = answers.iter().flat_map(|answers| disk::judge(&wanted.places, answers));
        // A node's first rank speaks for all of them.
        let node: Vec<&RankFacts> = all.iter().filter(|f| f.node == facts.node).collect();
        findings
            .extend(found.map(|f| node.iter().fold(f, |f, facts| f.on(facts.rank, &facts.host))));
    }
    let hosts: Vec<String> = all.iter().map(|facts| facts.host.clone()).collect();
    let mut can_read = true;
    for (number, place) in wanted.places.iter().enumerate() {
        let existing = answers.iter().flatten().map(|answers| match &answers[number] {
            disk::Answer::Works(facts) => Some(&facts.existing),
            _ => None,
        });
        let existing: Option<Vec<&PathBuf>> = existing.collect();
        // What does not work on some node is told already, and may hang.
        let Some(existing) = existing else {
            can_read &= place.need != Need::Read;
            continue;
        };
        if comm.size() > 1 && place.need == Need::SharedDirectory {
            part.enter(format!("looking for other ranks' files in {}", place.path.display()));
            let seen = shared::gather(comm, existing[0])?;
            findings.extend(shared::judge(place, &seen, &hosts));
        }
    }
    Ok((findings, can_read))
}

/// What the configuration asks of the machine, and its keys.
fn read_configuration(target: &Target) -> Result<(Wanted, Value)> {
    let file = ConfigFile::load(target.config, target.set)?;
    Ok((Wanted::of(&file)?, Value::Object(file.tree().clone())))
}

fn look_at_configuration(
    world: &World,
    part: &Parts,
    wanted: &Wanted,
    target: &Target,
    can_read: bool,
) -> Result<Vec<Finding>> {
    let mut found: Vec<Finding> =
        configuration::judge_ranks(wanted, world.size()).into_iter().collect();
    // Where the data cannot be read that is told already, and a dry run might hang.
    if can_read {
        part.enter("trying the configuration (a dry run)");
        // What ranks do together is not in it: rank 0 does it alone.
        found.push(world.comm.decide(|| configuration::dry_run(target.config, target.set))?);
    }
    Ok(found)
}

/// The same report on every rank: rank 0's. What names no rank was found on all of them.
fn report(
    world: &World,
    all: Vec<RankFacts>,
    findings: Vec<Finding>,
    begin: Instant,
) -> Result<Report> {
    let everywhere = |f: Finding| all.iter().fold(f, |f, facts| f.on(facts.rank, &facts.host));
    let placed = findings.into_iter().map(|f| match f.ranks.is_empty() {
        true => everywhere(f),
        false => f,
    });
    let findings = world.comm.decide(|| Ok(finding::merge(placed)))?;
    let hosts: BTreeSet<String> = all.into_iter().map(|facts| facts.host).collect();
    Ok(Report {
        trainer: env!("CARGO_PKG_VERSION").to_string(),
        ranks: world.size(),
        hosts: hosts.into_iter().collect(),
        seconds: begin.elapsed().as_secs_f64(),
        verdict: findings.iter().map(|f| f.status).max().unwrap_or(Status::Ok),
        findings,
    })
}

/// The parts of the examination. Where one does not end, because a rank or the network does not
/// answer, the job is ended.
struct Parts(Sender<()>);

impl Parts {
    fn begin() -> Parts {
        let (next, begun) = channel();
        std::thread::spawn(move || {
            loop {
                match begun.recv_timeout(PATIENCE) {
                    Ok(()) => {}
                    Err(RecvTimeoutError::Disconnected) => return,
                    Err(RecvTimeoutError::Timeout) => fail(
                        &Error::launch(format!("no answer for {} s", PATIENCE.as_secs())).hint(
                            "a rank is stopped or gone, or MPI's network between the nodes does \
                             not work (Open MPI: OMPI_MCA_btl_tcp_if_include=the interface that \
                             connects them; firewalls)",
                        ),
                    ),
                }
            }
        });
        Parts(next)
    }

    /// This part begins, in words that complete "while ...".
    fn enter(&self, what: impl Into<String>) {
        progress::enter(what);
        // The thread lives as long as this does.
        let _ = self.0.send(());
    }
}
