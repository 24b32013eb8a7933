//! Graphics cards: which there are, whether libtorch sees them, and whether ranks share one.

use super::facts::RankFacts;
use super::finding::Finding;
use crate::config::Device;
use crate::torch::cuda;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs;

/// One rank's view.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Facts {
    /// Model of each card that the driver of this node knows.
    pub cards: Vec<String>,
    /// Model of each card that is visible to this rank.
    pub visible: Vec<String>,
    /// CUDA_VISIBLE_DEVICES.
    pub variable: Option<String>,
    /// What keeps this program from computing on visible cards.
    pub trouble: Option<String>,
    /// The UUID of the card that this rank would take.
    pub chosen: Option<String>,
}

/// Asks driver and libtorch. A rank takes the card of its number on the node, as a run does.
pub fn gather(local_rank: usize) -> Facts {
    let mut facts = Facts {
        cards: cards("/proc/driver/nvidia/gpus"),
        variable: std::env::var("CUDA_VISIBLE_DEVICES").ok(),
        ..Facts::default()
    };
    match cuda::gpus() {
        Ok(gpus) if gpus.is_empty() => {}
        Ok(gpus) => {
            facts.visible = gpus.iter().map(|gpu| gpu.name.clone()).collect();
            facts.chosen = Some(gpus[local_rank % gpus.len()].uuid.clone());
            facts.trouble = cuda::load().err().map(|e| e.to_string().replace("\n  hint: ", "; "));
        }
        Err(what) => facts.trouble = Some(what.clone()),
    }
    facts
}

/// The cards in the driver's own list.
fn cards(list: &str) -> Vec<String> {
    let entries = fs::read_dir(list).into_iter().flatten().flatten();
    let texts = entries.filter_map(|e| fs::read_to_string(e.path().join("information")).ok());
    let model = |text: String| {
        let value = text.lines().find_map(|line| line.strip_prefix("Model:"));
        value.map_or("unknown".to_string(), |value| value.trim().to_string())
    };
    let mut cards: Vec<String> = texts.map(model).collect();
    cards.sort();
    cards
}

/// What that means for a run that computes on `device`; `share` allows ranks to share a card.
pub fn judge(all: &[RankFacts], device: Device, share: bool) -> Vec<Finding> {
    if device == Device::Cpu {
        return vec![Finding::ok("GPU", "not wanted (run.device: cpu)")];
    }
    let some_have = all.iter().any(|facts| facts.gpu.chosen.is_some());
    let mut findings: Vec<Finding> =
        all.iter().map(|f| judge_one(&f.gpu, some_have).on(f.rank, &f.host)).collect();
    let mut takers: BTreeMap<&str, Vec<&RankFacts>> = BTreeMap::new();
    for facts in all {
        if let Some(uuid) = &facts.gpu.chosen {
            takers.entry(uuid).or_default().push(facts);
        }
    }
    for (uuid, ranks) in takers.into_iter().filter(|(_, ranks)| ranks.len() > 1) {
        let found = format!("{} ranks share one card ({uuid})", ranks.len());
        let finding = match share {
            true => Finding::note("GPU", found)
                .cause("distributed.share_gpus allows it; NCCL is not possible then"),
            false => Finding::stops("GPU", found)
                .cause("there are more ranks on the node than cards, or each is shown the same one")
                .remedy(
                    "start as many ranks on a node as it has cards (sbatch --gpus-per-node=N, srun \
                     --gpu-bind=none), or set distributed.share_gpus: true",
                ),
        };
        findings.push(ranks.iter().fold(finding, |finding, f| finding.on(f.rank, &f.host)));
    }
    findings
}

fn judge_one(gpu: &Facts, some_have: bool) -> Finding {
    let hidden = gpu.variable.as_deref().is_some_and(|list| list.is_empty() || list == "-1");
    let bad = if some_have { Finding::stops } else { Finding::warning };
    match (gpu.cards.len().max(gpu.visible.len()), &gpu.trouble) {
        (0, None) if some_have => Finding::stops("GPU", "no GPU here, and other ranks have one")
            .cause("ranks on unlike devices compute other bits: a run refuses them")
            .remedy("start all ranks on nodes of one kind, or set run.device: cpu"),
        (0, None) => Finding::ok("GPU", "none; computing on the CPU"),
        (_, Some(trouble)) => bad("GPU", format!("not usable: {trouble}"))
            .cause("a GPU is here, and driver, container or libtorch do not fit together")
            .remedy(
                "look at `nvidia-smi`; `bash jobs/setup.sh --cuda` installs a libtorch with CUDA",
            ),
        (n, None) if gpu.visible.is_empty() => {
            let cause = match hidden {
                true => "CUDA_VISIBLE_DEVICES names none of them",
                false => "the job was given none",
            };
            bad("GPU", format!("{n} in the node ({}), none visible", gpu.cards.join(", ")))
                .cause(cause)
                .remedy("unset CUDA_VISIBLE_DEVICES, or ask for GPUs: sbatch --gpus-per-node=N")
        }
        (_, None) => Finding::ok(
            "GPU",
            format!("{} visible ({})", gpu.visible.len(), gpu.visible.join(", ")),
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::super::facts::tests::ranks_on;
    use super::super::finding::Status;
    use super::*;

    fn worst(all: &[RankFacts]) -> Finding {
        judge(all, Device::Auto, false).into_iter().max_by_key(|f| f.status).unwrap()
    }

    fn sees(uuid: &str) -> Facts {
        let card = || vec!["NVIDIA H200".to_string()];
        let chosen = Some(uuid.to_string());
        Facts { cards: card(), visible: card(), chosen, ..Facts::default() }
    }

    #[test]
    fn cards_and_who_takes_them() {
        let mut all = ranks_on("a", 2);
        assert_eq!(worst(&all).status, Status::Ok);
        for facts in &mut all {
            facts.gpu = Facts { chosen: None, visible: vec![], ..sees("") };
        }
        assert!(worst(&all).cause.unwrap().contains("given none"));
        all[0].gpu.variable = Some(String::new());
        assert!(judge(&all, Device::Auto, false)[0].cause.as_ref().unwrap().contains("VISIBLE"));
        all.iter_mut().for_each(|facts| facts.gpu = sees("GPU-1"));
        let shared = worst(&all);
        assert_eq!((shared.status, shared.ranks.len()), (Status::Stops, 2));
        assert!(judge(&all, Device::Auto, true).iter().all(|f| f.status < Status::Warning));
        assert_eq!(judge(&all, Device::Cpu, false)[0].status, Status::Ok);
        all[1].gpu = sees("GPU-2");
        assert_eq!(worst(&all).status, Status::Ok);
        all[1].gpu.trouble = Some("no CUDA half".into());
        assert_eq!(worst(&all).status, Status::Stops);
        all[1].gpu = Facts::default();
        assert_eq!(worst(&all).status, Status::Stops);
    }

    #[test]
    fn the_drivers_list() {
        let dir = std::env::temp_dir().join(format!("trainer-cards-{}", std::process::id()));
        fs::create_dir_all(dir.join("0000:01:00.0")).unwrap();
        let text = "Model: \t\t NVIDIA H200\nIRQ:   \t\t 42\nGPU UUID: \t GPU-1\n";
        fs::write(dir.join("0000:01:00.0/information"), text).unwrap();
        assert_eq!(cards(dir.to_str().unwrap()), ["NVIDIA H200"]);
        assert!(cards("/nowhere").is_empty());
        fs::remove_dir_all(dir).unwrap();
    }
}
