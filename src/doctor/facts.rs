//! What each rank knows of itself, brought to every rank.

use super::{cpu, gpu, launch, limits, memory};
use crate::dist::World;
use crate::error::{Error, Result};
use crate::files::host_name;
use serde::{Deserialize, Serialize};

/// One rank's facts; nothing in them needed another rank.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct RankFacts {
    /// Its number.
    pub rank: usize,
    /// The name of its host in messages.
    pub host: String,
    /// The machine it runs on, which several of Slurm's nodes may share in tests.
    pub node: String,
    /// Its number on its node.
    pub local_rank: usize,
    /// Launcher and libraries.
    pub launch: launch::Facts,
    /// Cores.
    pub cpu: cpu::Facts,
    /// Memory.
    pub memory: memory::Facts,
    /// `ulimit`.
    pub limits: limits::Facts,
    /// Graphics cards.
    pub gpu: gpu::Facts,
    /// Bytes free in /dev/shm.
    pub shared: Option<u64>,
}

/// Gathers the facts of all ranks, in order of rank, on every rank.
pub fn gather(world: &World) -> Result<Vec<RankFacts>> {
    let node = host_name();
    let shm = rustix::fs::statvfs("/dev/shm").ok();
    let own = RankFacts {
        rank: world.rank(),
        host: std::env::var("SLURMD_NODENAME").unwrap_or_else(|_| node.clone()),
        node,
        local_rank: world.local_rank,
        launch: launch::gather(),
        cpu: cpu::gather(),
        memory: memory::gather(),
        limits: limits::gather(),
        gpu: gpu::gather(world.local_rank),
        shared: shm.map(|stat| stat.f_bavail * stat.f_frsize),
    };
    let bug = |e: serde_json::Error| Error::bug(format!("a rank's facts in JSON: {e}"));
    let all = world.comm.all_gather(serde_json::to_vec(&own).map_err(bug)?)?;
    all.iter().map(|one| serde_json::from_slice(one).map_err(bug)).collect()
}

#[cfg(test)]
pub mod tests {
    use super::*;

    /// Ranks from 0 that know no more than their host.
    pub fn ranks_on(host: &str, number: usize) -> Vec<RankFacts> {
        let one = |rank| RankFacts {
            rank,
            host: host.into(),
            node: host.into(),
            local_rank: rank,
            ..RankFacts::default()
        };
        (0..number).map(one).collect()
    }
}
