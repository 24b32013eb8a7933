//! What every recipe gets: the world, the console, and how this process computes.

use crate::config::{Device, Distributed, Precision, difference};
use crate::dist::{Limits, World};
use crate::error::{Error, Kind, Result};
use crate::progress;
use crate::report::console::Console;
use crate::torch;
use serde_json::Value;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

/// This process among the ranks, and where it speaks.
pub struct Session {
    /// The ranks.
    pub world: World,
    /// Rank 0's voice; silent elsewhere.
    pub console: Arc<Console>,
}

/// How this process computes; the same on every rank.
#[derive(Clone, Debug)]
pub struct Compute {
    /// Where tensors live.
    pub device: tch::Device,
    /// Threads of each rank.
    pub threads: usize,
}

impl Session {
    /// Sets threads, device and determinism for a command that computes. `stored_threads` is what
    /// a checkpoint of this run was made with.
    pub fn compute(
        &self,
        device: Device,
        precision: Precision,
        distributed: &Distributed,
        stored_threads: Option<usize>,
    ) -> Result<Compute> {
        let device = choose_device(device, self.world.local_rank)?;
        if precision == Precision::Fp16 && device == tch::Device::Cpu {
            return Err(Error::usage("fp16 needs a GPU")
                .at("training.precision")
                .hint("use fp32 or bf16 on the CPU"));
        }
        let threads = match (distributed.threads_per_rank, stored_threads) {
            (Some(asked), Some(stored)) if asked != stored => {
                return Err(Error::usage(format!(
                    "this run was begun with {stored} threads a rank, {asked} would give other last bits"
                ))
                .at("distributed.threads_per_rank")
                .hint(format!("set it to {stored}, or start a new run with `--new`")));
            }
            (Some(threads), _) | (None, Some(threads)) => threads,
            (None, None) => (cores() / self.world.local_size).max(1),
        };
        let (ranks, cores) = (self.world.local_size, cores());
        if threads > 1 && ranks * threads > cores && std::env::var_os("OMP_WAIT_POLICY").is_none() {
            self.console.warn(&format!(
                "{ranks} ranks of {threads} threads share {cores} cores, and waiting threads burn \
                 them: set distributed.threads_per_rank to {} or OMP_WAIT_POLICY=passive",
                (cores / ranks).max(1)
            ));
        }
        tch::set_num_threads(threads as i32);
        torch::set_deterministic(true)?;
        self.agree(device, threads)?;
        progress::set_device(platform(device));
        Ok(Compute { device, threads })
    }

    /// Does work with signs of life in `heartbeats` and the watchdog on; all ranks call it together.
    pub fn watched<T>(
        &self,
        heartbeats: &Path,
        distributed: &Distributed,
        work: impl FnOnce() -> Result<T>,
    ) -> Result<T> {
        let seconds = |limit: Option<usize>| limit.map(|s| Duration::from_secs(s as u64));
        let limits = Limits {
            silence: seconds(distributed.heartbeat_timeout),
            standstill: seconds(distributed.progress_timeout),
        };
        let watch = self.world.watch(heartbeats, limits)?;
        let result = work();
        match &result {
            // The process is about to end, and says so in its last sign of life.
            Err(error) if error.kind() != Kind::Preempted => std::mem::forget(watch),
            _ => watch.leave(&self.world)?,
        }
        result
    }

    /// Refuses ranks that were given another configuration than rank 0, and names the keys.
    pub fn agree_on(&self, resolved: &Value) -> Result<()> {
        let Some(odd) = self.world.comm.odd_one(resolved.to_string().into_bytes())? else {
            return Ok(());
        };
        let read = |bytes: &[u8]| {
            serde_json::from_slice(bytes)
                .map_err(|e| Error::bug(format!("a configuration cannot be read: {e}")))
        };
        let keys = difference(&read(&odd.first)?, &read(&odd.theirs)?);
        let keys = if keys.is_empty() { "some keys".to_string() } else { keys.join(", ") };
        Err(Error::launch(format!(
            "ranks differ: rank 0 and rank {} disagree about {keys}",
            odd.rank
        ))
        .hint("give all ranks the same configuration, from the same working directory"))
    }

    /// Refuses ranks that would compute other bits than rank 0.
    fn agree(&self, device: tch::Device, threads: usize) -> Result<()> {
        let own = format!("{} with {threads} threads", platform(device));
        match self.world.comm.odd_one(own.into_bytes())? {
            None => Ok(()),
            Some(odd) => Err(Error::launch(format!(
                "ranks differ: rank 0 computes on {}, rank {} on {}",
                String::from_utf8_lossy(&odd.first),
                odd.rank,
                String::from_utf8_lossy(&odd.theirs)
            ))
            .hint(
                "start all ranks on nodes of one kind, and set distributed.threads_per_rank; \
                 ATEN_CPU_CAPABILITY=avx2 makes newer CPUs compute as older ones do",
            )),
        }
    }
}

/// Cores that this process may use.
fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// What bits are promised for, beside the number of threads: kernels, device, libtorch.
pub fn platform(device: tch::Device) -> String {
    let device = match device {
        tch::Device::Cpu => format!("cpu {}", torch::kernels_name()),
        other => format!("{other:?}").to_lowercase(),
    };
    format!("{device}, libtorch {}", torch::torch_version())
}

fn choose_device(wanted: Device, local_rank: usize) -> Result<tch::Device> {
    let gpus = tch::Cuda::device_count().max(0) as usize;
    let refuse = |what: &str, hint: &str| Err(Error::launch(what).at("run.device").hint(hint));
    match wanted {
        Device::Cpu => Ok(tch::Device::Cpu),
        Device::Cuda(_) if gpus == 0 => refuse(
            "there is no CUDA device that libtorch can use",
            "run on a node with a GPU, install with `bash jobs/setup.sh --cuda`, or use cpu",
        ),
        Device::Cuda(Some(i)) if i >= gpus => refuse(
            &format!("there are {gpus} visible CUDA devices, numbered from 0; not number {i}"),
            "choose a smaller number, or cuda alone for one by local rank",
        ),
        Device::Cuda(Some(i)) => Ok(tch::Device::Cuda(i)),
        Device::Cuda(None) => Ok(tch::Device::Cuda(local_rank % gpus)),
        Device::Mps if tch::utils::has_mps() => Ok(tch::Device::Mps),
        Device::Mps => refuse("this libtorch has no MPS device", "use cpu"),
        Device::Auto if gpus > 0 => Ok(tch::Device::Cuda(local_rank % gpus)),
        Device::Auto if tch::utils::has_mps() => Ok(tch::Device::Mps),
        Device::Auto => Ok(tch::Device::Cpu),
    }
}
