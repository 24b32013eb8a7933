//! The cores that this process may compute on, and whether it has them to itself.
//!
//! A launcher may bind each rank to cores of its own, or let all ranks roam over the same ones. One
//! rank cannot see the others' binding before MPI is up; its own and its parent's tell enough.

use std::collections::BTreeSet;

/// What is known of this process's cores.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cores {
    /// Numbers of the cores that this process may run on; empty where the system does not say.
    pub own: BTreeSet<usize>,
    /// How many of them it may use at a time, which a control group can lower.
    pub usable: usize,
    /// Cores of this job on this node: those of the process which started this one, or Slurm's.
    pub of_job: usize,
}

impl Cores {
    /// Asks the system.
    pub fn of_this_process() -> Cores {
        let usable = std::thread::available_parallelism().map_or(1, usize::from);
        let own = allowed("self").unwrap_or_default();
        let parent = std::os::unix::process::parent_id().to_string();
        let of_parent = allowed(&parent).map_or(usable, |cores| cores.len());
        // Slurm's daemon is not held to the cores of the jobs that it starts.
        let slurm = std::env::var("SLURM_CPUS_ON_NODE").ok().and_then(|text| text.parse().ok());
        Cores { own, usable, of_job: of_parent.min(slurm.unwrap_or(usize::MAX)) }
    }

    /// Whether `ranks` processes of this node with `threads` each have more threads than cores, as
    /// far as one of them can tell. Ranks that were each given a share of the job's cores count
    /// as alone on it.
    pub fn crowded(&self, ranks: usize, threads: usize) -> bool {
        let bound = self.usable < self.of_job && self.usable * ranks <= self.of_job;
        let ranks = if bound { 1 } else { ranks };
        ranks * threads > self.usable
    }

    /// Numbers such as `0-3,8,10-11`.
    pub fn parse_list(list: &str) -> Option<BTreeSet<usize>> {
        let mut cores = BTreeSet::new();
        for range in list.split(',') {
            let (first, last) = range.split_once('-').unwrap_or((range, range));
            cores.extend(first.parse::<usize>().ok()?..=last.parse::<usize>().ok()?);
        }
        Some(cores)
    }
}

/// The cores a process may run on, from the kernel's list.
fn allowed(process: &str) -> Option<BTreeSet<usize>> {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).ok()?;
    let list = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:"))?;
    Cores::parse_list(list.trim())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_cores() {
        let cores = |list: &str| Cores::parse_list(list).map(|c| c.into_iter().collect::<Vec<_>>());
        assert_eq!(cores("0-2,8,10-11"), Some(vec![0, 1, 2, 8, 10, 11]));
        assert_eq!(cores("5"), Some(vec![5]));
        assert_eq!(cores(""), None);
        let here = Cores::of_this_process();
        assert!(here.usable >= 1, "{here:?}");
        assert!(here.own.is_empty() || here.usable <= here.own.len(), "{here:?}");
    }

    #[test]
    fn crowds() {
        let cores = |usable, of_job| Cores { own: BTreeSet::new(), usable, of_job };
        // All ranks on the same cores.
        assert!(cores(2, 2).crowded(2, 2));
        assert!(!cores(4, 4).crowded(2, 2));
        // Eight cores each of sixteen, and one core for two threads.
        assert!(!cores(8, 16).crowded(2, 8));
        assert!(cores(1, 16).crowded(2, 2));
        // Fewer than the job's, and yet not enough for a share each.
        assert!(cores(4, 6).crowded(2, 3));
        assert!(!cores(1, 1).crowded(1, 1));
    }
}
