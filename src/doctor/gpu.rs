//! Graphics cards: which there are, whether libtorch sees them, and whether ranks share one.

use super::facts::RankFacts;
use super::finding::Finding;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs;

/// One rank's view.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Facts {
    /// Model and identity of each card that the driver of this node knows.
    pub cards: Vec<(String, String)>,
    /// Cards that libtorch can use here.
    pub usable: usize,
    /// CUDA_VISIBLE_DEVICES.
    pub visible: Option<String>,
    /// The card that this rank would take, as a number among the usable ones.
    pub chosen: Option<usize>,
}

/// Asks driver and libtorch. A rank takes the card of its number on the node, as a run does.
pub fn gather(local_rank: usize) -> Facts {
    let usable = tch::Cuda::device_count().max(0) as usize;
    Facts {
        cards: cards("/proc/driver/nvidia/gpus"),
        usable,
        visible: std::env::var("CUDA_VISIBLE_DEVICES").ok(),
        chosen: (usable > 0).then(|| local_rank % usable),
    }
}

/// The cards in the driver's own list.
fn cards(list: &str) -> Vec<(String, String)> {
    let entries = fs::read_dir(list).into_iter().flatten().flatten();
    let texts = entries.filter_map(|e| fs::read_to_string(e.path().join("information")).ok());
    let mut cards: Vec<(String, String)> = texts
        .map(|text| {
            let field = |name: &str| {
                let value = text.lines().find_map(|line| line.strip_prefix(name)?.split_once(':'));
                value.map_or("unknown".to_string(), |(_, value)| value.trim().to_string())
            };
            (field("Model"), field("GPU UUID"))
        })
        .collect();
    cards.sort();
    cards
}

/// What that means.
pub fn judge(all: &[RankFacts]) -> Vec<Finding> {
    let some_have = all.iter().any(|facts| facts.gpu.usable > 0);
    let mut findings: Vec<Finding> =
        all.iter().map(|f| judge_one(&f.gpu, some_have).on(f.rank, &f.host)).collect();
    let mut takers: BTreeMap<(&str, &str, usize), Vec<&RankFacts>> = BTreeMap::new();
    for facts in all {
        if let Some(chosen) = facts.gpu.chosen {
            let visible = facts.gpu.visible.as_deref().unwrap_or("");
            takers.entry((&facts.node, visible, chosen)).or_default().push(facts);
        }
    }
    for ((_, _, card), ranks) in takers.into_iter().filter(|(_, ranks)| ranks.len() > 1) {
        let finding = Finding::warning("GPU", format!("{} ranks share card {card}", ranks.len()))
            .cause("there are more ranks on the node than cards; NCCL refuses that")
            .remedy("start as many ranks on a node as it has cards (sbatch --gpus-per-node=N)");
        findings.push(ranks.iter().fold(finding, |finding, f| finding.on(f.rank, &f.host)));
    }
    findings
}

fn judge_one(gpu: &Facts, some_have: bool) -> Finding {
    let hidden = gpu.visible.as_deref().is_some_and(|list| list.is_empty() || list == "-1");
    let models: Vec<&str> = gpu.cards.iter().map(|(model, _)| model.as_str()).collect();
    match (gpu.cards.len(), gpu.usable) {
        (0, 0) if some_have => Finding::stops("GPU", "no GPU here, and other ranks have one")
            .cause("ranks on unlike devices compute other bits: a run refuses them")
            .remedy("start all ranks on nodes of one kind, or set run.device: cpu"),
        (0, 0) => Finding::ok("GPU", "none; computing on the CPU"),
        (n, 0) if hidden => {
            let finding = if some_have { Finding::stops } else { Finding::warning };
            finding("GPU", format!("{n} in the node ({}), all hidden", models.join(", ")))
                .cause("CUDA_VISIBLE_DEVICES names none of them")
                .remedy(
                    "unset CUDA_VISIBLE_DEVICES, or ask Slurm for GPUs (sbatch --gpus-per-node=N)",
                )
        }
        (n, 0) => {
            Finding::warning("GPU", format!("{n} in the node ({}), none usable", models.join(", ")))
                .cause("this libtorch has no CUDA, or the job was given no GPU")
                .remedy("bash jobs/setup.sh --cuda; under Slurm sbatch --gpus-per-node=N")
        }
        (_, usable) => Finding::ok("GPU", format!("{usable} usable ({})", models.join(", "))),
    }
}

#[cfg(test)]
mod tests {
    use super::super::facts::tests::ranks_on;
    use super::super::finding::Status;
    use super::*;

    fn worst(all: &[RankFacts]) -> Finding {
        judge(all).into_iter().max_by_key(|f| f.status).unwrap()
    }

    fn card() -> (String, String) {
        ("NVIDIA H200".into(), "GPU-1".into())
    }

    #[test]
    fn cards_and_who_takes_them() {
        let mut all = ranks_on("a", 2);
        assert_eq!(worst(&all).status, Status::Ok);
        for facts in &mut all {
            facts.gpu = Facts { cards: vec![card()], ..Facts::default() };
        }
        assert!(worst(&all).remedy.unwrap().contains("--cuda"));
        all[0].gpu.visible = Some(String::new());
        assert!(judge(&all)[0].cause.as_ref().unwrap().contains("CUDA_VISIBLE_DEVICES"));
        for facts in &mut all {
            facts.gpu = Facts { usable: 1, chosen: Some(0), cards: vec![card()], visible: None };
        }
        let shared = worst(&all);
        assert_eq!((shared.status, shared.ranks.len()), (Status::Warning, 2));
        // Each sees one card, and not the same.
        all[1].gpu.visible = Some("1".into());
        assert_eq!(worst(&all).status, Status::Ok);
        all[1].gpu = Facts::default();
        assert_eq!(worst(&all).status, Status::Stops);
    }

    #[test]
    fn the_drivers_list() {
        let dir = std::env::temp_dir().join(format!("trainer-cards-{}", std::process::id()));
        fs::create_dir_all(dir.join("0000:01:00.0")).unwrap();
        let text = "Model: \t\t NVIDIA H200\nIRQ:   \t\t 42\nGPU UUID: \t GPU-1\n";
        fs::write(dir.join("0000:01:00.0/information"), text).unwrap();
        assert_eq!(cards(dir.to_str().unwrap()), [card()]);
        assert!(cards("/nowhere").is_empty());
        fs::remove_dir_all(dir).unwrap();
    }
}
