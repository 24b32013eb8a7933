//! What every recipe gets: the world, the console, and how this process computes.

use super::devices::{Claim, Home, Place, choose, judge, through_nccl};
use crate::config::{Backend, Device, Distributed, Precision, difference};
use crate::dist::{Limits, World, nccl_library};
use crate::error::{Error, Kind, Result};
use crate::files::host_name;
use crate::progress;
use crate::report::console::Console;
use crate::torch::{self, cuda};
use serde_json::Value;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

/// Set by tests that put a stand-in in NCCL's place, which works on host memory.
const ON_HOST: &str = "TRAINER_NCCL_ON_HOST";

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
    /// Whether some ranks share a GPU (`distributed.share_gpus`); NCCL is not possible then.
    pub shares_gpus: bool,
}

impl Compute {
    fn home(&self) -> Home {
        match self.device {
            tch::Device::Cuda(_) if self.shares_gpus => Home::SharedGpus,
            tch::Device::Cuda(_) => Home::OwnGpus,
            tch::Device::Cpu if std::env::var_os(ON_HOST).is_some() => Home::HostInTests,
            _ => Home::Host,
        }
    }
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
        let (device, shares_gpus) = self.choose_device(device, distributed.share_gpus)?;
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
        let compute = Compute { device, threads, shares_gpus };
        if distributed.backend == Backend::Nccl {
            // What cannot be is refused before any work is done.
            self.route(&compute, distributed)?;
        }
        Ok(compute)
    }

    /// Says what gradients go through, and opens it; all ranks call it together, before training.
    pub fn start_gradients(&self, compute: &Compute, distributed: &Distributed) -> Result<()> {
        let (nccl, why) = self.route(compute, distributed)?;
        let what = if nccl { "NCCL" } else { "MPI" };
        self.console.line(&format!("gradients go through {what}: {why}"));
        if nccl {
            // Before the watchdog, which would call ranks that all wait for NCCL deadlocked.
            let limit =
                distributed.progress_timeout.map(|s| Duration::from_secs(s as u64) * 9 / 10);
            self.world.start_nccl(compute.device, limit)?;
        }
        Ok(())
    }

    fn route(&self, compute: &Compute, distributed: &Distributed) -> Result<(bool, String)> {
        let comm = &self.world.comm;
        through_nccl(distributed.backend, self.world.size(), compute.home(), || {
            let own = nccl_library();
            let text = own.clone().unwrap_or_else(|why| why);
            Ok(match comm.odd_one(text.into_bytes())? {
                None => own,
                Some(odd) => Err(format!(
                    "ranks have different NCCLs: rank 0 {}, rank {} {}",
                    String::from_utf8_lossy(&odd.first),
                    odd.rank,
                    String::from_utf8_lossy(&odd.theirs)
                )),
            })
        })
    }

    /// This rank's device, and whether ranks share GPUs. Compares all ranks.
    fn choose_device(&self, wanted: Device, share: bool) -> Result<(tch::Device, bool)> {
        if wanted == Device::Mps && !tch::utils::has_mps() {
            return Err(Error::launch("this libtorch has no MPS device")
                .at("run.device")
                .hint("use auto or cpu"));
        }
        let gpus = if matches!(wanted, Device::Cpu | Device::Mps) {
            &[]
        } else {
            self.usable_gpus(wanted == Device::Auto)?
        };
        let place = choose(wanted, gpus.len(), self.world.local_rank)?;
        let gpu = match place {
            Place::Gpu(i) => Some(gpus[i].uuid.clone()),
            Place::Cpu => None,
        };
        progress::set_device(match (&gpu, place) {
            (Some(uuid), Place::Gpu(i)) => format!("cuda:{i} {uuid}"),
            _ => platform(tch::Device::Cpu),
        });
        let own = Claim { host: host_name(), gpu, visible: gpus.len() };
        let own = serde_json::to_vec(&own)
            .map_err(|e| Error::bug(format!("a claim cannot be sent: {e}")))?;
        let claims = self.world.comm.all_gather(own)?;
        let claims = claims
            .iter()
            .map(|bytes| serde_json::from_slice(bytes))
            .collect::<std::result::Result<Vec<Claim>, _>>()
            .map_err(|e| Error::bug(format!("a claim cannot be read: {e}")))?;
        let shares = judge(&claims, share)?;
        if shares {
            self.console.warn("ranks share GPUs, as distributed.share_gpus allows: no NCCL");
        }
        let device = match place {
            Place::Gpu(i) => tch::Device::Cuda(i),
            Place::Cpu if wanted == Device::Mps => tch::Device::Mps,
            Place::Cpu if wanted == Device::Auto && tch::utils::has_mps() => tch::Device::Mps,
            Place::Cpu => tch::Device::Cpu,
        };
        Ok((device, shares))
    }

    /// The GPUs that libtorch can compute on, with its CUDA half opened if there is one. Where
    /// something is wrong `auto` says so and gives none.
    fn usable_gpus(&self, auto: bool) -> Result<&'static [cuda::Gpu]> {
        let visible = match cuda::gpus() {
            Ok(list) if list.is_empty() => return Ok(&[]),
            Ok(list) => cuda::load().map(|()| list.as_slice()),
            Err(what) => Err(Error::launch(format!("a GPU seems to be here, but {what}"))
                .hint("look at `nvidia-smi`; a container must be started with its GPUs")),
        };
        match visible {
            Err(error) if auto => {
                let why = error.to_string().replace("\n  hint: ", "; ");
                self.console.warn(&format!("computing on the CPU: {why}"));
                Ok(&[])
            }
            other => other.map_err(|e| e.at("run.device")),
        }
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
        // The model, not the number: ranks have different numbers.
        tch::Device::Cuda(i) => match cuda::gpus().as_ref().ok().and_then(|gpus| gpus.get(i)) {
            Some(gpu) => format!("cuda {}", gpu.name),
            None => "cuda".to_string(),
        },
        other => format!("{other:?}").to_lowercase(),
    };
    format!("{device}, libtorch {}", torch::torch_version())
}
