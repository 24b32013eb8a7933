//! NCCL: one communicator a job, never blocking inside the library, so that a lost rank or link ends
//! in an error instead of a hang.
//!
//! The communicator is made with `blocking = 0`: a call may come back before it has taken effect,
//! and until `ncclCommGetAsyncError` says that it has, no other may be made. Whatever goes wrong
//! aborts the communicator, which also frees a GPU that waits for a rank that is gone. Gradients
//! alone take this way; everything small stays on MPI.

use super::mpi::patiently;
use super::{Comm, World, world};
use crate::error::{Error, Result};
use crate::progress;
use crate::torch::Lane;
use cudarc::nccl::sys::{self, ncclResult_t as Code};
use std::cell::{Cell, RefCell};
use std::ffi::{CStr, c_char, c_int, c_uint, c_void};
use std::rc::Rc;
use std::sync::mpsc;
use std::time::{Duration, Instant};

/// How long an abort may take before it is left to the end of the process.
const ABORT: Duration = Duration::from_secs(5);

/// Where errors point to.
const KEY: &str = "distributed.backend";

thread_local! {
    /// This job's communicator, on the thread that made it.
    static JOINED: RefCell<Option<Rc<Nccl>>> = const { RefCell::new(None) };
}

/// A communicator of all ranks and the stream it works on.
pub struct Nccl {
    /// Null once it is aborted or destroyed.
    comm: Cell<sys::ncclComm_t>,
    pub(super) lane: Lane,
    pub(super) rank: usize,
    pub(super) size: usize,
    /// How long one exchange may take.
    limit: Option<Duration>,
}

/// `ncclConfig_t` as NCCL 2.14 had it; every later one reads it and takes its defaults for the rest.
#[repr(C)]
struct Config {
    size: usize,
    magic: c_uint,
    version: c_uint,
    blocking: c_int,
    cga_cluster_size: c_int,
}

impl Config {
    const NON_BLOCKING: Config = Config {
        size: std::mem::size_of::<Config>(),
        magic: 0xcafe_beef,
        version: 21_400,
        blocking: 0,
        cga_cluster_size: c_int::MIN, // NCCL's word for "undefined"
    };
}

/// A call that was refused.
pub(super) struct Refused {
    what: &'static str,
    code: Code,
}

/// What may be posted within one exchange.
pub(super) struct Exchange<'a>(&'a Nccl);

/// The version of the NCCL that would be loaded, such as `2.28.9`, or why there is none.
pub fn nccl_library() -> std::result::Result<String, String> {
    // SAFETY: only asks the dynamic loader whether the library is there.
    if !unsafe { sys::is_culib_present() } {
        return Err("libnccl.so is not found (`bash jobs/setup.sh` links it)".to_string());
    }
    let mut v = 0;
    // SAFETY: the library is there; the result is valid for writing.
    match unsafe { sys::ncclGetVersion(&mut v) } {
        Code::ncclSuccess => Ok(format!("{}.{}.{}", v / 10_000, v / 100 % 100, v % 100)),
        code => Err(format!("libnccl.so does not answer: {code:?}")),
    }
}

impl World {
    /// Makes the job's communicator for ranks that compute on `device`; all ranks call it together,
    /// with [`nccl_library`] there. No exchange may take longer than `limit`. A job has one: a second
    /// call does nothing.
    pub fn start_nccl(&self, device: tch::Device, limit: Option<Duration>) -> Result<()> {
        if joined().is_none() {
            JOINED.set(Some(Rc::new(Nccl::new(&self.comm, device, limit)?)));
        }
        Ok(())
    }
}

/// The communicator that [`World::start_nccl`] made, if it did.
pub(super) fn joined() -> Option<Rc<Nccl>> {
    JOINED.with_borrow(Clone::clone)
}

/// Gives the communicator back; all ranks do, with nothing under way. What goes wrong here harms
/// nothing any more.
pub(super) fn leave() {
    let Some(nccl) = JOINED.take() else { return };
    if let Err(error) = nccl.destroy() {
        tracing::warn!("{error}");
    }
}

fn unique_id() -> Result<sys::ncclUniqueId> {
    let mut id = sys::ncclUniqueId { internal: [0; 128] };
    // SAFETY: the result is valid for writing.
    match unsafe { sys::ncclGetUniqueId(&mut id) } {
        Code::ncclSuccess => Ok(id),
        code => Err(failed("ncclGetUniqueId", code, "")),
    }
}

fn failed(what: &str, code: Code, last: &str) -> Error {
    // SAFETY: gives a static text for every code.
    let text = unsafe { CStr::from_ptr(sys::ncclGetErrorString(code)) };
    let last = if last.is_empty() { String::new() } else { format!(": {last}") };
    Error::launch(format!("{what} failed: {}{last}", text.to_string_lossy())).at(KEY).hint(
        "a rank, a GPU or a network link is gone: start the job again, it resumes by itself; \
         NCCL_DEBUG=INFO says more, distributed.backend: mpi does without NCCL",
    )
}

impl Nccl {
    fn new(comm: &Comm, device: tch::Device, limit: Option<Duration>) -> Result<Nccl> {
        progress::enter("starting NCCL");
        let (rank, size) = (comm.rank(), comm.size());
        let lane = Lane::new(device)?;
        let own = if rank == 0 { unique_id()?.internal.map(|b| b as u8).to_vec() } else { vec![] };
        let id: [u8; 128] = comm
            .broadcast(own)?
            .try_into()
            .map_err(|_| Error::bug("an NCCL id is of 128 bytes"))?;
        let id = sys::ncclUniqueId { internal: id.map(|b| b as c_char) };
        let mut config = Config::NON_BLOCKING;
        let config = (&raw mut config).cast::<sys::ncclConfig_t>();
        let mut raw = std::ptr::null_mut();
        // SAFETY: the result is valid for writing; the configuration says how long it is, and is
        // read within the call.
        let code = unsafe {
            sys::ncclCommInitRankConfig(&mut raw, size as c_int, id, rank as c_int, config)
        };
        let start = world::start_limit()?;
        let start = limit.map_or(start, |limit| start.min(limit));
        let mut nccl = Nccl { comm: Cell::new(raw), lane, rank, size, limit: Some(start) };
        nccl.check(Refused { what: "making an NCCL communicator", code })?;
        nccl.limit = limit;
        Ok(nccl)
    }

    /// Posts what `post` does as one exchange, and waits until the library has taken it.
    pub(super) fn exchange(
        &self,
        post: impl FnOnce(&Exchange) -> std::result::Result<(), Refused>,
    ) -> Result<()> {
        let what = "an exchange of gradients over NCCL";
        // SAFETY: a group is a property of this thread alone.
        self.check(Refused { what, code: unsafe { sys::ncclGroupStart() } })?;
        let posted = post(&Exchange(self));
        // SAFETY: the group above is open, and is closed whatever was posted.
        let code = unsafe { sys::ncclGroupEnd() };
        posted.or_else(|refused| self.check(refused))?;
        self.check(Refused { what, code })
    }

    /// Sums `len` numbers at `data` over all ranks in place, in whatever order the library likes.
    ///
    /// # Safety
    /// They are the device's and stay alive until the lane has done it.
    pub(super) unsafe fn sum(&self, data: *mut f32, len: usize) -> Result<()> {
        let what = "the sum of gradients over NCCL";
        // SAFETY: as the caller promises; the communicator and its stream are live.
        let code = unsafe {
            sys::ncclAllReduce(
                data.cast::<c_void>(),
                data.cast::<c_void>(),
                len,
                sys::ncclDataType_t::ncclFloat32,
                sys::ncclRedOp_t::ncclSum,
                self.comm.get(),
                self.lane.handle().cast(),
            )
        };
        self.check(Refused { what, code })
    }

    /// Waits until the lane has done everything, with an eye on the other ranks.
    pub(super) fn wait(&self) -> Result<()> {
        let (what, start) = ("the sum of gradients over NCCL", Instant::now());
        patiently(|| {
            self.settled(what)?;
            match self.lane.idle()? {
                true => Ok(true),
                false => self.in_time(what, start).map(|()| false),
            }
        })
    }

    /// Whether a call was taken; where it is still being taken that is waited for.
    fn check(&self, Refused { what, code }: Refused) -> Result<()> {
        match code {
            Code::ncclSuccess => Ok(()),
            Code::ncclInProgress => {
                let start = Instant::now();
                patiently(|| match self.settled(what)? {
                    true => Ok(true),
                    false => self.in_time(what, start).map(|()| false),
                })
            }
            code => Err(self.broken(what, code)),
        }
    }

    /// Whether the library is ready for the next call.
    fn settled(&self, what: &str) -> Result<bool> {
        let mut state = Code::ncclSuccess;
        // SAFETY: the communicator is live; the result is valid for writing.
        let code = unsafe { sys::ncclCommGetAsyncError(self.comm.get(), &mut state) };
        match (code, state) {
            (Code::ncclSuccess, Code::ncclSuccess) => Ok(true),
            (Code::ncclSuccess, Code::ncclInProgress) => Ok(false),
            (Code::ncclSuccess, code) | (code, _) => Err(self.broken(what, code)),
        }
    }

    fn in_time(&self, what: &str, start: Instant) -> Result<()> {
        let Some(limit) = self.limit.filter(|limit| start.elapsed() > *limit) else {
            return Ok(());
        };
        self.abort();
        Err(Error::launch(format!("{what} is not over after {:.0} s", limit.as_secs_f64()))
            .at(KEY)
            .hint(
                "some rank, its GPU or a network link hangs: `trainer status` of the run tells what \
                 each rank does, NCCL_DEBUG=INFO says more; where steps may take that long, raise \
                 distributed.progress_timeout, and TRAINER_START_TIMEOUT for the start",
            ))
    }

    /// Gives the communicator up and says why.
    fn broken(&self, what: &str, code: Code) -> Error {
        // SAFETY: gives null or a text of the library's, for a live communicator or none.
        let last = unsafe {
            let text = sys::ncclGetLastError(self.comm.get());
            if text.is_null() {
                String::new()
            } else {
                CStr::from_ptr(text).to_string_lossy().trim().to_string()
            }
        };
        self.abort();
        failed(what, code, &last)
    }

    /// Ends what is under way. Tried on a thread of its own: it must not hang where a GPU does.
    fn abort(&self) {
        struct Raw(sys::ncclComm_t);
        // SAFETY: an abort may come from any thread, and this one uses the communicator no more.
        unsafe impl Send for Raw {}
        let raw = Raw(self.comm.replace(std::ptr::null_mut()));
        if raw.0.is_null() {
            return;
        }
        let (tell, over) = mpsc::channel();
        // Without the thread the end of the process does it.
        let _ = std::thread::Builder::new().name("nccl abort".to_string()).spawn(move || {
            let raw = raw;
            // SAFETY: a live communicator, which nobody else uses any more.
            let _ = tell.send(unsafe { sys::ncclCommAbort(raw.0) });
        });
        let _ = over.recv_timeout(ABORT);
    }

    fn destroy(&self) -> Result<()> {
        if self.comm.get().is_null() {
            return Ok(());
        }
        progress::enter("leaving NCCL");
        let what = "leaving NCCL";
        // SAFETY: the communicator is live, and all ranks are here.
        self.check(Refused { what, code: unsafe { sys::ncclCommFinalize(self.comm.get()) } })?;
        let raw = self.comm.replace(std::ptr::null_mut());
        // SAFETY: finalised, and used no more.
        match unsafe { sys::ncclCommDestroy(raw) } {
            Code::ncclSuccess | Code::ncclInProgress => Ok(()),
            code => Err(failed(what, code, "")),
        }
    }
}

impl Exchange<'_> {
    /// Posts the sending of `len` numbers. Between two ranks messages keep their order.
    ///
    /// # Safety
    /// They are the device's and stay alive until the lane has done it.
    pub(super) unsafe fn send(
        &self,
        data: *const f32,
        len: usize,
        to: usize,
    ) -> std::result::Result<(), Refused> {
        // SAFETY: as the caller promises; the communicator and its stream are live.
        let code = unsafe {
            sys::ncclSend(
                data.cast::<c_void>(),
                len,
                sys::ncclDataType_t::ncclFloat32,
                to as c_int,
                self.0.comm.get(),
                self.0.lane.handle().cast(),
            )
        };
        posted("sending gradients over NCCL", code)
    }

    /// Posts the receiving of `len` numbers.
    ///
    /// # Safety
    /// They are the device's and stay alive until the lane has done it.
    pub(super) unsafe fn receive(
        &self,
        data: *mut f32,
        len: usize,
        from: usize,
    ) -> std::result::Result<(), Refused> {
        // SAFETY: as the caller promises; the communicator and its stream are live.
        let code = unsafe {
            sys::ncclRecv(
                data.cast::<c_void>(),
                len,
                sys::ncclDataType_t::ncclFloat32,
                from as c_int,
                self.0.comm.get(),
                self.0.lane.handle().cast(),
            )
        };
        posted("receiving gradients over NCCL", code)
    }
}

/// Within a group nothing is waited for.
fn posted(what: &'static str, code: Code) -> std::result::Result<(), Refused> {
    match code {
        Code::ncclSuccess | Code::ncclInProgress => Ok(()),
        code => Err(Refused { what, code }),
    }
}
