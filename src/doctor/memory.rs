//! How much memory a node has for its ranks: what is free, and what a control group or a limit of
//! the process allows of it.

use super::facts::RankFacts;
use super::finding::Finding;
use crate::report::step_line::bytes;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// A rank that does nothing yet holds about this much.
const LEAST: u64 = 300_000_000;
/// Below this, training of anything but the smallest models ends early.
const LITTLE: u64 = 1_000_000_000;
/// Libraries alone map this much address space.
const ADDRESSES: u64 = 8_000_000_000;

/// One rank's memory.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Facts {
    /// Bytes of the node.
    pub total: Option<u64>,
    /// Bytes of the node that are free or can be freed.
    pub available: Option<u64>,
    /// Limit of the control group, and what it has left of it.
    pub group: Option<(u64, u64)>,
    /// `ulimit -v` in bytes.
    pub addresses: Option<u64>,
}

impl Facts {
    /// Bytes that this node's ranks may still use together.
    pub fn left(&self) -> Option<u64> {
        let group = self.group.map(|(_, left)| left);
        self.available.into_iter().chain(group).min()
    }
}

/// Asks the system.
pub fn gather() -> Facts {
    let meminfo = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let kilobytes = |name: &str| -> Option<u64> {
        let line = meminfo.lines().find_map(|line| line.strip_prefix(name))?;
        Some(line.trim_start_matches(':').trim().strip_suffix(" kB")?.parse::<u64>().ok()? * 1024)
    };
    let own = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    Facts {
        total: kilobytes("MemTotal"),
        available: kilobytes("MemAvailable"),
        group: group(&own, Path::new("/sys/fs/cgroup")),
        addresses: super::limits::soft("Max address space"),
    }
}

/// The tightest (limit, left) of a process's control groups and those above them, of either version.
/// `own` is its `/proc/self/cgroup`.
fn group(own: &str, root: &Path) -> Option<(u64, u64)> {
    let number = |path: PathBuf| fs::read_to_string(path).ok()?.trim().parse::<u64>().ok();
    let mut tightest: Option<(u64, u64)> = None;
    for line in own.lines() {
        let mut parts = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (parts.next(), parts.next()) else { continue };
        let (base, limit, usage, cache) = match controllers {
            "" => (root.to_path_buf(), "memory.max", "memory.current", "inactive_file "),
            list if list.split(',').any(|c| c == "memory") => (
                root.join("memory"),
                "memory.limit_in_bytes",
                "memory.usage_in_bytes",
                "total_inactive_file ",
            ),
            _ => continue,
        };
        // In a container the path may be the host's: then only the root is there.
        for dir in Path::new(path.trim_start_matches('/')).ancestors().map(|p| base.join(p)) {
            let Some(limit) = number(dir.join(limit)) else { continue };
            let stat = fs::read_to_string(dir.join("memory.stat")).unwrap_or_default();
            let cached =
                stat.lines().find_map(|line| line.strip_prefix(cache)?.parse::<u64>().ok());
            let used = number(dir.join(usage)).unwrap_or(0).saturating_sub(cached.unwrap_or(0));
            let left = limit.saturating_sub(used);
            // Version 1 writes "no limit" as a number near the largest there is.
            if limit < 1 << 60 && tightest.is_none_or(|(_, least)| left < least) {
                tightest = Some((limit, left));
            }
        }
    }
    tightest
}

/// What that means, node by node.
pub fn judge(all: &[RankFacts]) -> Vec<Finding> {
    let mut nodes: BTreeMap<&str, Vec<&RankFacts>> = BTreeMap::new();
    for facts in all {
        nodes.entry(&facts.node).or_default().push(facts);
    }
    let mut findings = Vec::new();
    for ranks in nodes.values() {
        let found = judge_node(&ranks[0].memory, ranks.len() as u64);
        for facts in ranks {
            findings.extend(found.iter().map(|f| f.clone().on(facts.rank, &facts.host)));
        }
    }
    findings
}

fn judge_node(memory: &Facts, ranks: u64) -> Vec<Finding> {
    let mut findings = Vec::new();
    if let Some(limit) = memory.addresses.filter(|limit| *limit < ADDRESSES) {
        findings.push(
            Finding::warning("memory", format!("addresses are limited to {}", bytes(limit)))
                .cause("`ulimit -v` counts libraries and files too, and libtorch maps gigabytes")
                .remedy("ulimit -v unlimited, in the job script or by whoever set it"),
        );
    }
    let Some(left) = memory.left() else {
        findings.push(Finding::note("memory", "the system does not say how much there is"));
        return findings;
    };
    let mut found = format!("{} left", bytes(left));
    if ranks > 1 {
        found += &format!(" for {ranks} ranks, {} each", bytes(left / ranks));
    }
    let limited = memory.group.filter(|(_, of_group)| *of_group == left).map(|(limit, _)| limit);
    let (cause, remedy) = match limited {
        Some(limit) => {
            found += &format!(" (the job's limit is {})", bytes(limit));
            (
                "the job's control group allows no more",
                "ask for more: sbatch --mem=… or --mem-per-cpu=…",
            )
        }
        None => {
            ("the node has no more that is free", "start fewer ranks here, or take a larger node")
        }
    };
    findings.push(match left / ranks.max(1) {
        0..LEAST => Finding::stops("memory", found).cause(cause).remedy(remedy),
        LEAST..LITTLE => Finding::warning("memory", found)
            .cause(cause)
            .remedy(format!("{remedy}; or lower training.max_tokens_per_batch")),
        _ => Finding::ok("memory", found),
    });
    findings
}

#[cfg(test)]
mod tests {
    use super::super::finding::Status;
    use super::*;

    const GB: u64 = 1_000_000_000;

    fn judged(facts: Facts, ranks: u64) -> Vec<(Status, String)> {
        judge_node(&facts, ranks).into_iter().map(|f| (f.status, f.found)).collect()
    }

    #[test]
    fn memory_is_shared_by_the_ranks() {
        let facts = Facts { available: Some(4 * GB), ..Facts::default() };
        assert_eq!(
            judged(facts.clone(), 2),
            [(Status::Ok, "4.0 GB left for 2 ranks, 2.0 GB each".into())]
        );
        assert_eq!(judged(facts.clone(), 8)[0].0, Status::Warning);
        assert_eq!(judged(facts.clone(), 64)[0].0, Status::Stops);
        let group = Facts { group: Some((GB, GB / 10)), ..facts };
        let found = judged(group, 1);
        assert_eq!(found[0].0, Status::Stops);
        assert!(found[0].1.contains("the job's limit is 1.0 GB"), "{found:?}");
        let narrow = Facts { available: Some(9 * GB), addresses: Some(GB), ..Facts::default() };
        assert_eq!(judged(narrow, 1)[0].0, Status::Warning);
        assert_eq!(judged(Facts::default(), 1)[0].0, Status::Note);
    }

    #[test]
    fn control_groups_of_both_versions() {
        let root = std::env::temp_dir().join(format!("trainer-cgroup-{}", std::process::id()));
        let write = |name: &str, text: &str| {
            let path = root.join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        assert_eq!(group("0::/job/step\n", &root), None);
        write("job/memory.max", "1000\n");
        write("job/memory.current", "700\n");
        write("job/memory.stat", "anon 5\ninactive_file 100\n");
        write("job/step/memory.max", "max\n");
        assert_eq!(group("0::/job/step\n", &root), Some((1000, 400)));
        write("memory/memory.limit_in_bytes", "9223372036854771712\n");
        write("memory/slurm/memory.limit_in_bytes", "600\n");
        write("memory/slurm/memory.usage_in_bytes", "500\n");
        assert_eq!(group("3:cpu:/x\n4:memory,x:/slurm/job\n", &root), Some((600, 100)));
        fs::remove_dir_all(root).unwrap();
    }
}
