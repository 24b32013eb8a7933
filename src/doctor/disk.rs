//! What a run does with its files, tried out on every node: the side that asks and judges. The side
//! that does it is `probe`.

use super::child::{self, Patience};
use super::finding::{Finding, Status, brief};
use super::places::{Need, Place};
use super::probe::{Event, Facts};
use crate::error::{Error, Result};
use crate::report::step_line::bytes;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;
use std::sync::mpsc::channel;
use std::time::Duration;

/// A place that does not come to its next step by then is said to hang.
const PATIENCE: Patience = Patience {
    first: Duration::from_secs(25),
    between: Duration::from_secs(10),
    whole: Duration::from_secs(20),
};

/// What was made there is tried to be removed for so long, where the probe did not come to it.
const TIDYING: Duration = Duration::from_secs(2);

/// The step before the first one.
const STARTING: &str = "starting";

/// What came of a place.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Answer {
    /// It does what is wanted.
    Works(Facts),
    /// It does not, in the words of an error.
    Fails(String),
    /// It did not answer at this step.
    Hangs(String),
    /// The process that tried it ended at this step, in this way.
    Ended(String, String),
}

/// Tries all places in a process of its own.
pub fn gather(places: &[Place]) -> Result<Vec<Answer>> {
    let request =
        serde_json::to_string(places).map_err(|e| Error::bug(format!("places in JSON: {e}")))?;
    let outcome = child::run(&["probe", &request], &PATIENCE)?;
    let told = || outcome.lines.iter().filter_map(|line| serde_json::from_str(line).ok());
    let ended = outcome.status.map(|status| match outcome.said.lines().last() {
        Some(last) => format!("{status}; {last}"),
        None => status.to_string(),
    });
    let answers = read(told(), places.len(), ended);
    if outcome.gone {
        let made = told().filter_map(|event| match event {
            Event::Makes { place, dir } => Some((place, dir)),
            _ => None,
        });
        tidy(made.filter(|(place, _)| unfinished(answers.get(*place))).map(|(_, dir)| dir));
    }
    Ok(answers)
}

fn unfinished(answer: Option<&Answer>) -> bool {
    matches!(answer, Some(Answer::Ended(..) | Answer::Hangs(_)))
}

/// Removes what the probe could not, as long as that does not hang as well.
fn tidy(dirs: impl Iterator<Item = PathBuf>) {
    for dir in dirs {
        let (done, removed) = channel::<()>();
        std::thread::spawn(move || {
            // What cannot be removed is told by the place's own failure.
            let _ = std::fs::remove_dir_all(dir);
            drop(done);
        });
        let _ = removed.recv_timeout(TIDYING);
    }
}

/// The answers in what the other process told; `ended` is how it ended, if it did.
fn read(events: impl Iterator<Item = Event>, places: usize, ended: Option<String>) -> Vec<Answer> {
    let mut steps = vec![STARTING.to_string(); places];
    let mut answers: Vec<Option<Answer>> = vec![None; places];
    for event in events {
        match event {
            Event::Begins { place, step } if place < places => steps[place] = step,
            Event::Works { place, facts } if place < places => {
                answers[place] = Some(Answer::Works(facts));
            }
            Event::Fails { place, said } if place < places => {
                answers[place] = Some(Answer::Fails(said));
            }
            _ => {}
        }
    }
    let missing = |step| match &ended {
        Some(how) => Answer::Ended(step, how.clone()),
        None => Answer::Hangs(step),
    };
    answers.into_iter().zip(steps).map(|(answer, step)| answer.unwrap_or(missing(step))).collect()
}

/// What the answers of one node mean.
pub fn judge(places: &[Place], answers: &[Answer]) -> Vec<Finding> {
    places.iter().zip(answers).flat_map(|(place, answer)| judge_one(place, answer)).collect()
}

fn judge_one(place: &Place, answer: &Answer) -> Vec<Finding> {
    let (role, path) = (place.role.as_str(), place.path.display());
    match answer {
        Answer::Works(_) if place.need == Need::Read => {
            vec![Finding::ok("files", format!("{role}: {path} can be read"))]
        }
        Answer::Works(facts) => judge_facts(place, facts),
        Answer::Fails(said) => {
            let (what, hint) =
                said.split_once("\n  hint: ").unwrap_or((said, "choose another one"));
            let finding = Finding::stops("files", format!("{role}: {what}"));
            let cause = match place.need {
                Need::Read => "a run reads it on every node",
                _ => "a run writes there",
            };
            vec![finding.cause(cause).remedy(hint)]
        }
        Answer::Hangs(step) if step == STARTING => vec![Finding::note(
            "files",
            format!("{role}: {path}: not looked at, this program took too long to start"),
        )],
        Answer::Hangs(step) => vec![
            Finding::stops(
                "files",
                format!(
                    "{role}: {path} did not answer within {} s, while {step}",
                    PATIENCE.between.as_secs()
                ),
            )
            .cause("its file system hangs (a server or a network that is down), or it is a pipe")
            .remedy(format!(
                "see whether `ls {path}` answers, name another directory, or tell whoever runs the \
                 file system; a .tmp-doctor-* may be left there"
            )),
        ],
        Answer::Ended(step, how) => vec![
            Finding::stops(
                "files",
                format!("{role}: {path}: the probe ended while {step} ({how})"),
            )
            .cause("the system ended it: a limit (`ulimit -a`), or a failing file system")
            .remedy("raise the limit, or name another directory"),
        ],
    }
}

/// Room, kind and speed of a directory that works.
fn judge_facts(place: &Place, facts: &Facts) -> Vec<Finding> {
    let (kind, kept) = kind(facts.magic);
    let mut status = Status::Ok;
    let (mut cause, mut remedy) = (Vec::new(), Vec::new());
    let mut worse = |to: Status, why: &str, what: &str| {
        status = status.max(to);
        cause.push(why.to_string());
        remedy.push(what.to_string());
    };
    let files = match facts.inodes {
        Some(n) if n < 100_000 => format!(" and {n} files"),
        _ => String::new(),
    };
    let other = format!("free some space, or name another directory for {}", place.role);
    // The temporary directory holds unpacked data and little else.
    let shared = place.need == Need::SharedDirectory;
    match facts.free {
        0..20_000_000 => worse(Status::Stops, "the disk or the quota is nearly full", &other),
        20_000_000..1_000_000_000 => {
            worse(
                Status::Warning,
                "checkpoints and caches take more, except of the smallest models",
                &other,
            );
        }
        _ => {}
    }
    match facts.inodes {
        Some(0..20) => worse(Status::Stops, "no more files can be made there", &other),
        Some(20..1000) => worse(Status::Warning, "only few more files can be made there", &other),
        _ => {}
    }
    if facts.fsync > 0.3 {
        let status = if facts.fsync > 3.0 { Status::Warning } else { Status::Note };
        worse(
            status,
            "every checkpoint and shard waits for several such writes",
            "a faster file system",
        );
    }
    if shared && !kept {
        worse(
            Status::Warning,
            "it is memory: what is written there counts as used memory and is lost with the node",
            "name a directory on a disk",
        );
    }
    let here = match facts.existing == place.path {
        true => String::new(),
        false => format!(" (to be made below {})", facts.existing.display()),
    };
    let found = format!(
        "{}: {}{here}: {kind}, {}{files} free, durable write {}",
        place.role,
        place.path.display(),
        bytes(facts.free),
        brief(facts.fsync)
    );
    let mut finding = Finding { status, ..Finding::ok("files", found) };
    if !cause.is_empty() {
        finding = finding.cause(cause.join("; ")).remedy(remedy.join("; "));
    }
    vec![finding]
}

/// A file system's name, and whether it keeps what it holds (from Linux's magic.h and the file
/// systems' own sources).
fn kind(magic: u64) -> (String, bool) {
    let name = match magic as u32 {
        0xef53 => "ext4",
        0x5846_5342 => "XFS",
        0x9123_683e => "Btrfs",
        0x2fc1_2fc1 => "ZFS",
        0x794c_7630 => "overlay",
        0x6969 => "NFS",
        0x0bd0_0bd0 => "Lustre",
        0x4750_4653 => "GPFS",
        0x1983_0326 => "BeeGFS",
        0x00c3_6400 => "CephFS",
        0x6573_5546 => "FUSE",
        0xff53_4d42 | 0xfe53_4d42 => "SMB",
        0x0102_1994 => return ("tmpfs".into(), false),
        0x8584_58f6 => return ("ramfs".into(), false),
        other => return (format!("file system {other:#x}"), true),
    };
    (name.into(), true)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(need: Need) -> Place {
        Place { role: "run.output_dir".into(), path: "/x/out".into(), need }
    }

    fn facts() -> Facts {
        let free = 50_000_000_000;
        Facts { existing: "/x".into(), magic: 0xef53, free, inodes: Some(1 << 20), fsync: 0.004 }
    }

    fn judged(facts: Facts) -> Finding {
        judge_one(&place(Need::SharedDirectory), &Answer::Works(facts)).remove(0)
    }

    #[test]
    fn directories_that_work() {
        let fine = judged(facts());
        assert_eq!(fine.status, Status::Ok);
        let wanted = "run.output_dir: /x/out (to be made below /x): ext4, 50.0 GB free, durable write 4.0 ms";
        assert_eq!(fine.found, wanted);
        for (changed, status) in [
            (Facts { free: 1_000_000, ..facts() }, Status::Stops),
            (Facts { free: 500_000_000, ..facts() }, Status::Warning),
            (Facts { inodes: Some(3), ..facts() }, Status::Stops),
            (Facts { inodes: None, ..facts() }, Status::Ok),
            (Facts { fsync: 0.5, ..facts() }, Status::Note),
            (Facts { fsync: 5.0, ..facts() }, Status::Warning),
            (Facts { magic: 0x0102_1994, ..facts() }, Status::Warning),
        ] {
            let found = judged(changed.clone());
            assert_eq!(found.status, status, "{changed:?}");
            assert_eq!(found.remedy.is_some(), status != Status::Ok);
        }
    }

    #[test]
    fn directories_that_do_not() {
        let said =
            "/x: cannot write: Read-only file system\n  hint: choose a directory".to_string();
        let failed = judge_one(&place(Need::SharedDirectory), &Answer::Fails(said)).remove(0);
        assert_eq!(failed.status, Status::Stops);
        assert_eq!(failed.found, "run.output_dir: /x: cannot write: Read-only file system");
        assert_eq!(failed.remedy.as_deref(), Some("choose a directory"));
    }

    #[test]
    fn what_was_told_until_the_end() {
        let events = || {
            let begins = |place, step: &str| Event::Begins { place, step: step.into() };
            [
                begins(0, "looking"),
                begins(1, "looking"),
                Event::Works { place: 0, facts: facts() },
                begins(1, "writing"),
                Event::Fails { place: 7, said: "of no place".into() },
            ]
            .into_iter()
        };
        let hung = read(events(), 2, None);
        assert_eq!(hung, [Answer::Works(facts()), Answer::Hangs("writing".into())]);
        let finding = judge_one(&place(Need::Read), &hung[1]).remove(0);
        assert!(finding.found.contains("did not answer within 10 s, while writing"));
        let killed = read(events(), 2, Some("signal: 25".into()));
        let finding = judge_one(&place(Need::Read), &killed[1]).remove(0);
        assert!(finding.found.contains("ended while writing (signal: 25)"), "{}", finding.found);
    }
}
