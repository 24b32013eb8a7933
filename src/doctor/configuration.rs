//! Whether a run of this configuration would get as far as its first step: the configuration, its
//! data and the model's shape, checked by this program's own dry run.

use super::child::{self, Patience};
use super::finding::Finding;
use super::places::Wanted;
use crate::config::difference;
use crate::dist::Comm;
use crate::error::{Error, Result};
use serde_json::Value;
use std::path::Path;
use std::time::Duration;

/// Large data take longer to read; then a run will tell.
const PATIENCE: Patience = Patience {
    first: Duration::from_secs(15),
    between: Duration::from_secs(1),
    whole: Duration::from_secs(1),
};

/// What a refusal means.
pub fn refused(error: &Error) -> Finding {
    let text = error.to_string();
    let (what, hint) = text.split_once("\n  hint: ").unwrap_or((&text, "see the message"));
    Finding::stops("configuration", what)
        .cause(format!("a run would end with exit code {}", error.code()))
        .remedy(hint)
}

/// The dry run on this rank alone.
pub fn dry_run(config: &Path, set: &[String]) -> Result<Finding> {
    let path = config.to_string_lossy();
    let mut arguments = vec!["train", &path, "--dry-run", "--quiet"];
    set.iter().for_each(|change| arguments.extend(["--set", change.as_str()]));
    let outcome = child::run(&arguments, &PATIENCE)?;
    Ok(judge(&outcome.said, outcome.status.map(|status| status.code())))
}

/// What a dry run's last words mean; `code` is None where it did not end, and Some(None) where a
/// signal ended it.
fn judge(said: &str, code: Option<Option<i32>>) -> Finding {
    match code {
        Some(Some(0)) => Finding::ok("configuration", "configuration, data and model fit together"),
        None => Finding::note(
            "configuration",
            format!(
                "reading the data takes longer than {} s: not looked at",
                PATIENCE.first.as_secs()
            ),
        ),
        Some(code) => {
            let ended = match code {
                Some(code) => format!("a run would end with exit code {code}"),
                None => "a run would be ended by the system, perhaps for want of memory".into(),
            };
            let (what, hint) = said.split_once("\n  hint: ").unwrap_or((said, "see the message"));
            // "error while reading the data: what"
            let what = what.lines().last().unwrap_or_default();
            let what = what.strip_prefix("error").unwrap_or(what).trim_start_matches(':').trim();
            let what = if what.is_empty() { "the dry run said nothing" } else { what };
            Finding::stops("configuration", what).cause(ended).remedy(hint.trim())
        }
    }
}

/// Whether the ranks and the micro-batches of a step go together.
pub fn judge_ranks(wanted: &Wanted, ranks: usize) -> Option<Finding> {
    let m = wanted.micro_batches?;
    if ranks > m {
        let found = format!("{ranks} ranks and {m} micro-batches a step");
        return Some(
            Finding::stops("configuration", found)
                .cause(
                    "ranks without a micro-batch have nothing to do: a run ends with exit code 2",
                )
                .remedy(format!(
                    "raise training.micro_batches_per_step to {ranks}, start at most {m} ranks, or \
                     set distributed.allow_idle_ranks: true"
                )),
        );
    }
    let idle = 1.0 - m as f64 / (m.div_ceil(ranks) * ranks) as f64;
    (idle > 0.0).then(|| {
        Finding::note(
            "configuration",
            format!("{ranks} ranks are idle {:.0} % of a step", 100.0 * idle),
        )
        .cause(format!("{m} micro-batches a step do not divide among them"))
        .remedy(format!("start a number of ranks that divides {m}"))
    })
}

/// What a rank read of the configuration: its keys, or why it cannot.
pub type Read = std::result::Result<Value, Box<Finding>>;

/// What every rank read, in order of rank. All ranks take part: a rank that fails must not leave
/// the others to wait.
pub fn gather(comm: &Comm, own: Read) -> Result<Vec<Read>> {
    let bug = |e: serde_json::Error| Error::bug(format!("a configuration in JSON: {e}"));
    let all = comm.all_gather(serde_json::to_vec(&own).map_err(bug)?)?;
    all.iter().map(|one| serde_json::from_slice(one).map_err(bug)).collect()
}

/// Refusals, and ranks that read something else than rank 0.
pub fn judge_read(all: &[Read], hosts: &[String]) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (rank, read) in all.iter().enumerate() {
        let finding = match (read, &all[0]) {
            (Err(refusal), _) => refusal.as_ref().clone(),
            (Ok(own), Ok(first)) if own != first => {
                let keys = difference(first, own).join(", ");
                Finding::stops("configuration", format!("other than on rank 0: {keys}"))
                    .cause(
                        "a run compares the configurations of its ranks, and ends with exit code 4",
                    )
                    .remedy("start all ranks in the same directory, on a disk that all nodes share")
            }
            _ => continue,
        };
        findings.push(finding.on(rank, &hosts[rank]));
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::super::finding::Status;
    use super::*;

    #[test]
    fn last_words_of_a_dry_run() {
        let said = "warning: x\nerror while reading the data: a.csv:3: bad\n  hint: mend it";
        let finding = judge(said, Some(Some(3)));
        assert_eq!(finding.status, Status::Stops);
        assert_eq!(finding.found, "while reading the data: a.csv:3: bad");
        assert_eq!(finding.remedy.as_deref(), Some("mend it"));
        assert!(finding.cause.unwrap().contains("exit code 3"));
        assert_eq!(judge("", Some(Some(0))).status, Status::Ok);
        assert_eq!(judge("", None).status, Status::Note);
        assert_eq!(judge("", Some(None)).status, Status::Stops);
    }

    #[test]
    fn configurations_that_differ() {
        let hosts: Vec<String> = ["a", "a", "b"].map(String::from).to_vec();
        let read = |lr: f64| Ok(serde_json::json!({"training": {"lr": lr, "eps": 1.0}}));
        assert!(judge_read(&[read(0.1), read(0.1)], &hosts).is_empty());
        let refused = refused(&Error::usage("no such key").at("c.yaml:3").hint("lr?"));
        let found = judge_read(&[read(0.1), read(0.2), Err(Box::new(refused))], &hosts);
        assert_eq!(found[0].found, "other than on rank 0: training.lr");
        assert_eq!(found[1].found, "c.yaml:3: no such key");
        assert!(found[1].ranks.contains(&2) && found[1].hosts.contains("b"));
    }

    #[test]
    fn ranks_and_micro_batches() {
        let wanted = Wanted { micro_batches: Some(8), ..Wanted::nothing() };
        assert!(judge_ranks(&wanted, 4).is_none());
        assert!(judge_ranks(&wanted, 3).unwrap().found.contains("11 %"));
        let many = judge_ranks(&wanted, 9).unwrap();
        assert_eq!(many.status, Status::Stops);
        assert!(many.remedy.unwrap().contains("micro_batches_per_step to 9"));
        assert!(judge_ranks(&Wanted::nothing(), 9).is_none());
    }
}
