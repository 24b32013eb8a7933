//! Which rank computes where: GPUs by node-local rank, and no GPU given to two ranks unknowingly. And
//! what gradients go through, which depends on it.
//!
//! Pure judgement over what ranks found; `session` asks the machine and the other ranks.

use crate::config::{Backend, Device};
use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};

/// A rank's place, by what it found on its own node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// The processor.
    Cpu,
    /// The GPU with this number among the visible ones.
    Gpu(usize),
}

/// What a rank tells the others about its place.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claim {
    /// Its host.
    pub host: String,
    /// The UUID of its GPU; None on the CPU.
    pub gpu: Option<String>,
    /// How many GPUs it sees.
    pub visible: usize,
}

/// A rank's place, from the configuration, the number of visible GPUs and its number on the node.
///
/// A rank that sees one GPU takes it, whatever its number: a batch system that gives each task its
/// own GPU shows it no other. Whether that GPU is another rank's too, [`judge`] finds out.
pub fn choose(wanted: Device, gpus: usize, local_rank: usize) -> Result<Place> {
    let refuse = |what: String, hint: &str| Err(Error::launch(what).at("run.device").hint(hint));
    match wanted {
        Device::Cpu | Device::Mps => Ok(Place::Cpu),
        Device::Auto if gpus == 0 => Ok(Place::Cpu),
        Device::Cuda(_) if gpus == 0 => refuse(
            "no GPU is visible to this rank".to_string(),
            "ask for GPUs (--gpus-per-node=N), look whether CUDA_VISIBLE_DEVICES hides them, or use \
             auto or cpu",
        ),
        Device::Cuda(Some(i)) if i >= gpus => refuse(
            format!("there are {gpus} visible GPUs, numbered from 0; not number {i}"),
            "choose a smaller number, or cuda alone for one by local rank",
        ),
        Device::Cuda(Some(i)) => Ok(Place::Gpu(i)),
        Device::Auto | Device::Cuda(None) => Ok(Place::Gpu(local_rank % gpus)),
    }
}

/// Whether some ranks share a GPU. Refuses it unless `share` allows it, and refuses ranks of which
/// only some have one; the same answer on every rank.
pub fn judge(claims: &[Claim], share: bool) -> Result<bool> {
    let without = claims.iter().position(|c| c.gpu.is_none());
    let with = claims.iter().position(|c| c.gpu.is_some());
    if let (Some(without), Some(with)) = (without, with) {
        return Err(Error::launch(format!(
            "rank {with} on {} has a GPU, rank {without} on {} sees none",
            claims[with].host, claims[without].host
        ))
        .at("run.device")
        .hint(
            "ask for the same number of GPUs on every node (--gpus-per-node=N), start ranks on \
             nodes of one kind, or set run.device: cpu",
        ));
    }
    let mut pairs = (0..claims.len()).flat_map(|b| (0..b).map(move |a| (a, b)));
    let shared = pairs.find(|&(a, b)| claims[a].gpu.is_some() && claims[a].gpu == claims[b].gpu);
    let Some((a, b)) = shared else { return Ok(false) };
    if share {
        return Ok(true);
    }
    let claim = &claims[a];
    let ranks = claims.iter().filter(|c| c.host == claim.host).count();
    Err(Error::launch(format!(
        "ranks {a} and {b} on {} would compute on the same GPU ({}): {ranks} ranks run there and \
         rank {a} sees {} of its GPUs",
        claim.host,
        claim.gpu.as_deref().unwrap_or_default(),
        claim.visible
    ))
    .at("run.device")
    .hint(
        "give each rank its own: as many GPUs as ranks on a node (--gpus-per-node=N), all visible \
         to all ranks (--gpu-bind=none) or one to each (--gpus-per-task=1, or CUDA_VISIBLE_DEVICES \
         set for each rank); or start fewer ranks; or set distributed.share_gpus: true, which is \
         slower and without NCCL",
    ))
}

/// Where a job's gradients lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Home {
    /// In host memory.
    Host,
    /// In host memory, and tests have put a stand-in in NCCL's place (`tests/nccl/README.md`).
    HostInTests,
    /// On GPUs that some ranks share.
    SharedGpus,
    /// On a GPU of each rank's own.
    OwnGpus,
}

/// Whether gradients go through NCCL, and why, in words that complete "gradients go through MPI: ".
/// `library` is the NCCL that all ranks have, or why they have none; it is asked only where it
/// matters.
pub fn through_nccl(
    wanted: Backend,
    ranks: usize,
    home: Home,
    library: impl FnOnce() -> Result<std::result::Result<String, String>>,
) -> Result<(bool, String)> {
    let mpi = |why: &str| Ok((false, why.to_string()));
    match (wanted, home) {
        (Backend::Mpi, _) => mpi("distributed.backend says so"),
        (Backend::Auto, _) if ranks == 1 => mpi("there is one rank, and nothing to exchange"),
        (Backend::Auto, Home::Host | Home::HostInTests) => mpi("the ranks compute on CPUs"),
        (Backend::Auto, Home::SharedGpus) => mpi("ranks share GPUs"),
        (Backend::Nccl, Home::Host) => Err(Error::usage("nccl needs GPUs, and there are none")
            .at("distributed.backend")
            .hint("use auto or mpi, or give each rank a GPU")),
        (Backend::Nccl, Home::SharedGpus) => Err(Error::usage("nccl cannot share GPUs")
            .at("distributed.backend")
            .hint("use auto or mpi, or give each rank its own GPU")),
        (Backend::Auto, Home::OwnGpus) => match library()? {
            Ok(version) => Ok((true, format!("{version}, each rank has a GPU of its own"))),
            Err(why) => mpi(&why),
        },
        (Backend::Nccl, Home::OwnGpus | Home::HostInTests) => match library()? {
            Ok(version) => Ok((true, format!("{version}, distributed.backend says so"))),
            Err(why) => Err(Error::launch(why).at("distributed.backend").hint("use auto or mpi")),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nccl_is_taken_where_each_of_several_ranks_has_a_gpu() {
        let there = || Ok(Ok("2.28.9".to_string()));
        let missing = || Ok(Err("libnccl.so is not found".to_string()));
        let auto = |ranks, home| through_nccl(Backend::Auto, ranks, home, there).unwrap();
        assert!(auto(2, Home::OwnGpus).0);
        for (ranks, home, why) in [
            (1, Home::OwnGpus, "one rank"),
            (2, Home::Host, "on CPUs"),
            (2, Home::HostInTests, "on CPUs"),
            (2, Home::SharedGpus, "share GPUs"),
        ] {
            let (nccl, text) = auto(ranks, home);
            assert!(!nccl && text.contains(why), "{text}");
        }
        let (nccl, why) = through_nccl(Backend::Auto, 2, Home::OwnGpus, missing).unwrap();
        assert!(!nccl && why.contains("not found"), "{why}");
        assert!(through_nccl(Backend::Nccl, 1, Home::OwnGpus, there).unwrap().0);
        assert!(!through_nccl(Backend::Mpi, 2, Home::OwnGpus, there).unwrap().0);
        let code = |home, library: fn() -> _| {
            through_nccl(Backend::Nccl, 2, home, library).unwrap_err().code()
        };
        assert_eq!(code(Home::Host, there), 2);
        assert_eq!(code(Home::SharedGpus, there), 2);
        assert_eq!(code(Home::OwnGpus, missing), 4);
    }

    fn claim(host: &str, gpu: Option<&str>, visible: usize) -> Claim {
        Claim { host: host.to_string(), gpu: gpu.map(str::to_string), visible }
    }

    /// What ranks of one node claim that see these lists of GPUs.
    fn node(wanted: Device, seen: &[&[&str]]) -> Vec<Claim> {
        let place = |(rank, list): (usize, &&[&str])| {
            let gpu = match choose(wanted, list.len(), rank).unwrap() {
                Place::Cpu => None,
                Place::Gpu(i) => Some(list[i]),
            };
            claim("n1", gpu, list.len())
        };
        seen.iter().enumerate().map(place).collect()
    }

    #[test]
    fn ranks_that_see_all_gpus_take_them_by_local_rank() {
        let all: &[&str] = &["a", "b", "c", "d"];
        let claims = node(Device::Auto, &[all, all, all, all]);
        let taken: Vec<_> = claims.iter().map(|c| c.gpu.as_deref().unwrap()).collect();
        assert_eq!(taken, all);
        assert!(!judge(&claims, false).unwrap());
    }

    #[test]
    fn a_rank_that_sees_one_gpu_takes_it() {
        // One GPU a task: by cgroup, --gpus-per-task, or CUDA_VISIBLE_DEVICES=GPU-….
        let claims = node(Device::Cuda(None), &[&["a"], &["b"], &["c"]]);
        assert_eq!(claims[2].gpu.as_deref(), Some("c"));
        assert!(!judge(&claims, false).unwrap());
    }

    #[test]
    fn ranks_with_several_gpus_each_do_not_collide() {
        let claims = node(Device::Cuda(None), &[&["a", "b"], &["c", "d"], &["e", "f"]]);
        assert!(!judge(&claims, false).unwrap());
    }

    #[test]
    fn more_ranks_than_gpus_are_refused_unless_sharing_is_wished() {
        let all: &[&str] = &["a", "b"];
        let claims = node(Device::Auto, &[all, all, all]);
        let error = judge(&claims, false).unwrap_err();
        assert_eq!(error.code(), 4);
        let text = error.to_string();
        assert!(text.contains("ranks 0 and 2 on n1") && text.contains("(a)"), "{text}");
        assert!(text.contains("--gpu-bind=none") && text.contains("distributed.share_gpus"));
        assert!(judge(&claims, true).unwrap());
    }

    #[test]
    fn one_gpu_bound_to_every_task_is_found_by_its_uuid() {
        // --gpu-bind=single:2 and the like: every rank sees one GPU, and it is the same one.
        let claims = node(Device::Auto, &[&["a"], &["a"]]);
        assert!(judge(&claims, false).unwrap_err().to_string().contains("ranks 0 and 1"));
        // An explicit number is every rank's number.
        let all: &[&str] = &["a", "b"];
        assert!(judge(&node(Device::Cuda(Some(1)), &[all, all]), false).is_err());
        assert!(!judge(&node(Device::Cuda(Some(1)), &[all]), false).unwrap());
    }

    #[test]
    fn parts_of_one_gpu_are_different_gpus() {
        let mig: &[&str] = &["0f3c…-part-1", "0f3c…-part-2"];
        assert!(!judge(&node(Device::Auto, &[mig, mig]), false).unwrap());
    }

    #[test]
    fn nodes_of_different_kinds_are_refused() {
        let claims = [claim("n1", Some("a"), 1), claim("n2", None, 0)];
        for share in [false, true] {
            let error = judge(&claims, share).unwrap_err();
            let text = error.to_string();
            assert_eq!(error.code(), 4);
            assert!(text.contains("rank 0 on n1 has a GPU, rank 1 on n2 sees none"), "{text}");
        }
        // The same UUID under two host names is still one GPU (containers on one machine).
        let claims = [claim("c1", Some("a"), 1), claim("c2", Some("a"), 1)];
        assert!(judge(&claims, false).is_err());
        let cpus = [claim("n1", None, 0), claim("n2", None, 0)];
        assert!(!judge(&cpus, false).unwrap());
    }

    #[test]
    fn a_wish_that_cannot_be_met_is_refused() {
        assert_eq!(choose(Device::Cuda(None), 0, 0).unwrap_err().code(), 4);
        assert_eq!(choose(Device::Cuda(Some(2)), 2, 0).unwrap_err().code(), 4);
        assert_eq!(choose(Device::Auto, 0, 3).unwrap(), Place::Cpu);
        assert_eq!(choose(Device::Cpu, 8, 3).unwrap(), Place::Cpu);
    }
}
