//! Which cores each rank may use, whom it shares them with, and how many threads want them.

use super::facts::RankFacts;
use super::finding::Finding;
use crate::config::Cores;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;

/// One rank's cores.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Facts {
    /// Numbers of the cores it is bound to; empty where the system does not say.
    pub own: BTreeSet<usize>,
    /// How many it may use at a time.
    pub usable: usize,
    /// Cores of this job on the node.
    pub of_job: usize,
    /// NUMA domains that its cores lie in.
    pub domains: usize,
    /// OMP_WAIT_POLICY.
    pub wait_policy: Option<String>,
}

/// Asks the system.
pub fn gather() -> Facts {
    let Cores { own, usable, of_job } = Cores::of_this_process();
    let domains = domains_of(&own);
    let wait_policy = std::env::var("OMP_WAIT_POLICY").ok();
    Facts { own, usable, of_job, domains, wait_policy }
}

/// NUMA domains with a core of these.
fn domains_of(cores: &BTreeSet<usize>) -> usize {
    let nodes = fs::read_dir("/sys/devices/system/node").into_iter().flatten().flatten();
    let lists = nodes.filter_map(|node| fs::read_to_string(node.path().join("cpulist")).ok());
    let theirs = lists.filter_map(|list| Cores::parse_list(list.trim()));
    theirs.filter(|domain| !domain.is_disjoint(cores)).count().max(1)
}

/// The ranks of one node.
struct Node<'a> {
    ranks: Vec<&'a RankFacts>,
    threads: usize,
}

/// What that means with `threads` a rank; None: as many as fit.
pub fn judge(all: &[RankFacts], threads: Option<usize>) -> Vec<Finding> {
    let mut nodes: BTreeMap<&str, Vec<&RankFacts>> = BTreeMap::new();
    for facts in all {
        nodes.entry(&facts.node).or_default().push(facts);
    }
    let mut findings = Vec::new();
    for ranks in nodes.into_values() {
        let fitting = ranks.iter().map(|f| f.cpu.usable).min().unwrap_or(1) / ranks.len();
        let node = Node { threads: threads.unwrap_or(fitting.max(1)), ranks };
        let found = node.judge();
        findings.extend(node.ranks.iter().flat_map(|f| {
            let here = |finding: &Finding| finding.clone().on(f.rank, &f.host);
            found.iter().map(here).collect::<Vec<_>>()
        }));
    }
    findings
}

impl Node<'_> {
    fn judge(&self) -> Vec<Finding> {
        let mut findings = self.binding();
        let number = self.ranks.len();
        let cpus = || self.ranks.iter().map(|f| &f.cpu);
        let union: BTreeSet<usize> = cpus().flat_map(|cpu| cpu.own.iter().copied()).collect();
        let quota = cpus().any(|cpu| !cpu.own.is_empty() && cpu.usable < cpu.own.len());
        let cores = match quota || union.is_empty() {
            true => cpus().map(|cpu| cpu.usable).max().unwrap_or(1),
            false => union.len(),
        };
        let wanted = number * self.threads;
        let plural = |n: usize, noun: &str| format!("{n} {noun}{}", if n == 1 { "" } else { "s" });
        let found = format!(
            "{} of {} on {}",
            plural(number, "rank"),
            plural(self.threads, "thread"),
            plural(cores, "core")
        );
        if wanted > cores && findings.is_empty() {
            let waiting = match (self.threads, cpus().next().and_then(|c| c.wait_policy.clone())) {
                (1, _) => "",
                (_, Some(_)) => "; waiting threads sleep (OMP_WAIT_POLICY)",
                (_, None) => "; a run sets OMP_WAIT_POLICY=passive, or waiting threads would spin",
            };
            findings.push(
                Finding::warning("cores", found)
                    .cause(format!("they take turns: more ranks make nothing faster here{waiting}"))
                    .remedy(self.fitting(cores)),
            );
        } else if wanted <= cores {
            findings.push(Finding::ok("cores", found));
        }
        if quota {
            findings.push(Finding::note(
                "cores",
                format!("a control group allows {cores} of {} cores at a time", union.len()),
            ));
        }
        let domains = cpus().map(|cpu| cpu.domains).max().unwrap_or(1);
        if domains > 1 && number > 1 {
            findings.push(
                Finding::note("binding", format!("ranks move between {domains} NUMA domains"))
                    .cause("memory of another domain is slower to reach")
                    .remedy(
                        "mpirun --map-by numa --bind-to numa, or srun --cpu-bind=ldoms \
                         --mem-bind=local",
                    ),
            );
        }
        findings
    }

    fn fitting(&self, cores: usize) -> String {
        let ranks = (cores / self.threads).max(1);
        let fewer = format!("start at most {ranks} rank{} here", if ranks == 1 { "" } else { "s" });
        match self.threads {
            1 => fewer,
            _ => {
                let threads = (cores / self.ranks.len()).max(1);
                format!("{fewer}, or set distributed.threads_per_rank: {threads}")
            }
        }
    }

    /// Ranks that were bound to too little.
    fn binding(&self) -> Vec<Finding> {
        let remedy = "mpirun --bind-to none, or --map-by slot:PE=N with N threads a rank; srun \
                      --cpus-per-task=N --cpu-bind=cores; and no taskset around the program";
        let Some(first) = self.ranks.first() else { return Vec::new() };
        let number = self.ranks.len();
        let same = self.ranks.iter().all(|f| f.cpu.own == first.cpu.own);
        let bound = first.cpu.own.len();
        let need = self.threads * number;
        if number > 1 && same && bound > 0 && bound < need && bound < first.cpu.of_job {
            let list: Vec<String> = first.cpu.own.iter().take(8).map(usize::to_string).collect();
            let found = format!(
                "all {number} ranks are bound to the same {bound} of the job's {} cores ({})",
                first.cpu.of_job,
                list.join(", ")
            );
            let cause = "they were started with one binding for all, and take turns on it";
            return vec![Finding::warning("binding", found).cause(cause).remedy(remedy)];
        }
        let tight = |f: &&&RankFacts| {
            let own = f.cpu.own.len();
            own > 0 && own < self.threads && own < f.cpu.of_job
        };
        self.ranks
            .iter()
            .filter(tight)
            .map(|f| {
                let (own, threads) = (f.cpu.own.len(), self.threads);
                Finding::warning("binding", format!("bound to {own} cores for {threads} threads"))
                    .cause("the launcher gave each rank fewer cores than it has threads")
                    .remedy(remedy)
            })
            .take(1)
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::super::facts::tests::ranks_on;
    use super::super::finding::Status;
    use super::*;

    /// Ranks of one node, bound so, of a job with this many cores there.
    fn judged(bound: &[&[usize]], of_job: usize, threads: Option<usize>) -> Vec<(Status, String)> {
        let mut all = ranks_on("a", bound.len());
        for (facts, own) in all.iter_mut().zip(bound) {
            let own: BTreeSet<usize> = own.iter().copied().collect();
            facts.cpu = Facts { usable: own.len(), own, of_job, domains: 1, wait_policy: None };
        }
        let merged = super::super::finding::merge(judge(&all, threads));
        merged.into_iter().map(|f| (f.status, format!("{}: {}", f.check, f.found))).collect()
    }

    #[test]
    fn cores_and_threads() {
        let fine = judged(&[&[0, 1], &[0, 1]], 2, Some(1));
        assert_eq!(fine, [(Status::Ok, "cores: 2 ranks of 1 thread on 2 cores".into())]);
        let crowded = judged(&[&[0, 1], &[0, 1]], 2, Some(2));
        assert_eq!(crowded[0].0, Status::Warning);
        assert!(crowded[0].1.contains("2 ranks of 2 threads on 2 cores"), "{crowded:?}");
        assert_eq!(judged(&[&[0, 1], &[2, 3]], 4, None)[0].0, Status::Ok);
    }

    #[test]
    fn bindings() {
        let one_for_all = judged(&[&[3], &[3]], 8, Some(1));
        assert_eq!(one_for_all.len(), 1, "{one_for_all:?}");
        assert!(one_for_all[0].1.contains("all 2 ranks are bound to the same 1 of"));
        let tight = judged(&[&[0], &[1]], 8, Some(4));
        assert!(tight[0].1.contains("bound to 1 cores for 4 threads"), "{tight:?}");
        assert_eq!(judged(&[&[0], &[1]], 8, Some(1))[0].0, Status::Ok);
    }
}
