//! MPI on one thread, never blocking inside the library: operations are posted, then tested until
//! they are done (MPI 4.0, sections 3.7 and 6.12).
//!
//! The raw interface of rsmpi is used, because its safe one ties every request to a scope. All
//! buffers that a request may still touch are owned by this file's types, borrowed until `wait`
//! returns, or kept by the caller (gradients, see `overlap`); an error ends the job, so nothing is
//! freed under a request.

use crate::error::{Error, Result};
use crate::progress;
use mpi::ffi;
use std::ffi::{c_char, c_int, c_void};
use std::ptr;
use std::time::Duration;

/// Longest single message; longer ones go in pieces, because MPI counts are 32-bit.
const PIECE: usize = 1 << 30;

/// The ranks of this job. Copies are of the same communicator.
#[derive(Clone, Copy)]
pub struct Mpi {
    comm: ffi::MPI_Comm,
    /// The same ranks, for gradients alone: what else goes on meanwhile cannot be mistaken for them.
    gradients: ffi::MPI_Comm,
    pub(super) rank: usize,
    pub(super) size: usize,
}

/// Posted operations on buffers that their owner keeps until [`Mpi::test`] says that they are done.
#[derive(Default)]
pub(super) struct Requests(Vec<ffi::MPI_Request>);

/// A posted all-gather of pieces whose lengths every rank knows.
pub struct PendingGather {
    requests: Requests,
    _sent: Box<[u8]>,
    received: Box<[u8]>,
    _counts: Box<[c_int]>,
    _starts: Box<[c_int]>,
}

/// A posted maximum of two integers over all ranks.
pub struct PendingMax {
    requests: Requests,
    _sent: Box<[i64; 2]>,
    received: Box<[i64; 2]>,
}

fn check(what: &str, code: c_int) -> Result<()> {
    if code == ffi::MPI_SUCCESS as c_int {
        return Ok(());
    }
    let mut text = [0 as c_char; 1024];
    let mut length: c_int = 0;
    // SAFETY: the buffer is longer than any MPI error string (MPI_MAX_ERROR_STRING is 256..512).
    let text = unsafe {
        ffi::MPI_Error_string(code, text.as_mut_ptr(), &mut length);
        std::ffi::CStr::from_ptr(text.as_ptr()).to_string_lossy().into_owned()
    };
    Err(Error::launch(format!("{what} failed: {text}"))
        .hint("a rank or a network link is gone; start the job again, it resumes by itself"))
}

/// Tries until it is done: first eagerly, then with short sleeps, so that ranks that share cores
/// let each other work.
pub(super) fn patiently(mut done: impl FnMut() -> Result<bool>) -> Result<()> {
    let mut tries = 0u32;
    while !done()? {
        tries = tries.saturating_add(1);
        match tries {
            0..200 => std::hint::spin_loop(),
            200..2000 => std::thread::yield_now(),
            2000 => progress::set_waiting(true),
            _ => std::thread::sleep(Duration::from_micros(100)),
        }
    }
    if tries >= 2000 {
        progress::set_waiting(false);
        progress::advance();
    }
    Ok(())
}

fn counted(bytes: usize) -> Result<c_int> {
    c_int::try_from(bytes).map_err(|_| Error::bug(format!("a message of {bytes} bytes")))
}

impl Mpi {
    /// The communicator of all ranks. MPI must be initialised, and this stays on its thread.
    pub(super) fn world() -> Result<Mpi> {
        let (mut rank, mut size) = (0, 0);
        // SAFETY: MPI is initialised; the outputs are valid for writing.
        unsafe {
            let comm = ffi::RSMPI_COMM_WORLD;
            check("MPI_Comm_set_errhandler", {
                ffi::MPI_Comm_set_errhandler(comm, ffi::RSMPI_ERRORS_RETURN)
            })?;
            check("MPI_Comm_rank", ffi::MPI_Comm_rank(comm, &mut rank))?;
            check("MPI_Comm_size", ffi::MPI_Comm_size(comm, &mut size))?;
            let mut gradients = ffi::RSMPI_COMM_NULL;
            check("MPI_Comm_dup", ffi::MPI_Comm_dup(comm, &mut gradients))?;
            Ok(Mpi { comm, gradients, rank: rank as usize, size: size as usize })
        }
    }

    /// This process's (rank, number) among the ranks that share its memory, that is, its node.
    pub(super) fn node_rank(&self) -> Result<(usize, usize)> {
        let (mut rank, mut size) = (0, 0);
        // SAFETY: all outputs are valid for writing; the new communicator is freed.
        unsafe {
            let mut node = ffi::RSMPI_COMM_NULL;
            check("MPI_Comm_split_type", {
                ffi::MPI_Comm_split_type(
                    self.comm,
                    ffi::RSMPI_COMM_TYPE_SHARED,
                    self.rank as c_int,
                    ffi::RSMPI_INFO_NULL,
                    &mut node,
                )
            })?;
            check("MPI_Comm_rank", ffi::MPI_Comm_rank(node, &mut rank))?;
            check("MPI_Comm_size", ffi::MPI_Comm_size(node, &mut size))?;
            check("MPI_Comm_free", ffi::MPI_Comm_free(&mut node))?;
        }
        Ok((rank as usize, size as usize))
    }

    /// Ends every process of the job.
    pub(super) fn abort(code: i32) -> ! {
        // SAFETY: MPI is initialised; the call does not come back.
        unsafe {
            ffi::MPI_Abort(ffi::RSMPI_COMM_WORLD, code);
        }
        std::process::exit(code)
    }

    /// Posts the sending of `len` gradients at `data`.
    ///
    /// # Safety
    /// They stay alive and unchanged until `test` says that `requests` are done.
    pub(super) unsafe fn send(
        &self,
        data: *const f32,
        len: usize,
        to: usize,
        tag: c_int,
        requests: &mut Requests,
    ) -> Result<()> {
        for start in (0..len).step_by(PIECE / 4) {
            let mut request = std::mem::MaybeUninit::uninit();
            // SAFETY: within the caller's buffer, which stays as it is until the requests are
            // done; on success the request is set.
            unsafe {
                check("MPI_Isend", {
                    ffi::MPI_Isend(
                        data.add(start).cast::<c_void>(),
                        counted((len - start).min(PIECE / 4))?,
                        ffi::RSMPI_FLOAT,
                        to as c_int,
                        tag,
                        self.gradients,
                        request.as_mut_ptr(),
                    )
                })?;
                requests.0.push(request.assume_init());
            }
        }
        Ok(())
    }

    /// Posts the receiving of `len` gradients at `data`.
    ///
    /// # Safety
    /// They stay alive and untouched until `test` says that `requests` are done.
    pub(super) unsafe fn receive(
        &self,
        data: *mut f32,
        len: usize,
        from: usize,
        tag: c_int,
        requests: &mut Requests,
    ) -> Result<()> {
        for start in (0..len).step_by(PIECE / 4) {
            let mut request = std::mem::MaybeUninit::uninit();
            // SAFETY: within the caller's buffer, which nobody touches until the requests are
            // done; on success the request is set.
            unsafe {
                check("MPI_Irecv", {
                    ffi::MPI_Irecv(
                        data.add(start).cast::<c_void>(),
                        counted((len - start).min(PIECE / 4))?,
                        ffi::RSMPI_FLOAT,
                        from as c_int,
                        tag,
                        self.gradients,
                        request.as_mut_ptr(),
                    )
                })?;
                requests.0.push(request.assume_init());
            }
        }
        Ok(())
    }

    /// Whether all posted operations are done; lets MPI make progress.
    pub(super) fn test(&self, requests: &mut Requests) -> Result<bool> {
        let mut done: c_int = 0;
        // SAFETY: the requests are live; completed ones become null requests.
        check("MPI_Testall", unsafe {
            ffi::MPI_Testall(
                counted(requests.0.len())?,
                requests.0.as_mut_ptr(),
                &mut done,
                ffi::RSMPI_STATUSES_IGNORE,
            )
        })?;
        if done != 0 {
            requests.0.clear();
        }
        Ok(done != 0)
    }

    /// Tests until all posted operations are done.
    fn wait(&self, mut requests: Requests) -> Result<()> {
        patiently(|| self.test(&mut requests))
    }

    /// Waits until every rank has come here.
    pub(super) fn barrier(&self) -> Result<()> {
        let mut request = std::mem::MaybeUninit::uninit();
        // SAFETY: the request is set on success.
        let request = unsafe {
            check("MPI_Ibarrier", ffi::MPI_Ibarrier(self.comm, request.as_mut_ptr()))?;
            request.assume_init()
        };
        self.wait(Requests(vec![request]))
    }

    /// Rank 0's bytes for everyone. Every rank gives a buffer of the same length.
    pub(super) fn broadcast_bytes(&self, bytes: &mut [u8]) -> Result<()> {
        for piece in bytes.chunks_mut(PIECE) {
            let mut request = std::mem::MaybeUninit::uninit();
            // SAFETY: `piece` stays borrowed until the wait below.
            let request = unsafe {
                check("MPI_Ibcast", {
                    ffi::MPI_Ibcast(
                        piece.as_mut_ptr().cast::<c_void>(),
                        counted(piece.len())?,
                        ffi::RSMPI_UINT8_T,
                        0,
                        self.comm,
                        request.as_mut_ptr(),
                    )
                })?;
                request.assume_init()
            };
            self.wait(Requests(vec![request]))?;
        }
        Ok(())
    }

    /// Posts an all-gather; `lengths` are the bytes each rank gives, the same on every rank.
    pub(super) fn post_gather(&self, own: Vec<u8>, lengths: &[usize]) -> Result<PendingGather> {
        assert_eq!(own.len(), lengths[self.rank], "every rank knows every length");
        let mut counts = Vec::with_capacity(lengths.len());
        let mut starts = Vec::with_capacity(lengths.len());
        let mut end = 0usize;
        for length in lengths {
            counts.push(counted(*length)?);
            starts.push(counted(end)?);
            end += length;
        }
        let (counts, starts) = (counts.into_boxed_slice(), starts.into_boxed_slice());
        let sent = own.into_boxed_slice();
        let mut received = vec![0u8; end].into_boxed_slice();
        // An empty box points to address 1, which is Open MPI's MPI_IN_PLACE.
        let from = if sent.is_empty() { ptr::null() } else { sent.as_ptr().cast::<c_void>() };
        let to = if end == 0 { ptr::null_mut() } else { received.as_mut_ptr().cast::<c_void>() };
        let mut request = std::mem::MaybeUninit::uninit();
        // SAFETY: all buffers are boxed and live in the pending gather until it is waited for.
        let request = unsafe {
            check("MPI_Iallgatherv", {
                ffi::MPI_Iallgatherv(
                    from,
                    counts[self.rank],
                    ffi::RSMPI_UINT8_T,
                    to,
                    counts.as_ptr(),
                    starts.as_ptr(),
                    ffi::RSMPI_UINT8_T,
                    self.comm,
                    request.as_mut_ptr(),
                )
            })?;
            request.assume_init()
        };
        Ok(PendingGather {
            requests: Requests(vec![request]),
            _sent: sent,
            received,
            _counts: counts,
            _starts: starts,
        })
    }

    /// All ranks' bytes, one after another.
    pub(super) fn finish_gather(&self, pending: PendingGather) -> Result<Box<[u8]>> {
        let PendingGather { requests, received, _sent, _counts, _starts } = pending;
        self.wait(requests)?;
        Ok(received)
    }

    /// Posts the element-wise maximum over all ranks.
    pub(super) fn post_max(&self, own: [i64; 2]) -> Result<PendingMax> {
        let sent = Box::new(own);
        let mut received = Box::new([0i64; 2]);
        let mut request = std::mem::MaybeUninit::uninit();
        // SAFETY: both buffers are boxed and live in the pending maximum until it is done.
        let request = unsafe {
            check("MPI_Iallreduce", {
                ffi::MPI_Iallreduce(
                    sent.as_ptr().cast::<c_void>(),
                    received.as_mut_ptr().cast::<c_void>(),
                    2,
                    ffi::RSMPI_INT64_T,
                    ffi::RSMPI_MAX,
                    self.comm,
                    request.as_mut_ptr(),
                )
            })?;
            request.assume_init()
        };
        Ok(PendingMax { requests: Requests(vec![request]), _sent: sent, received })
    }

    /// The maximum, if it is there already.
    pub(super) fn test_max(&self, pending: &mut PendingMax) -> Result<Option<[i64; 2]>> {
        Ok(self.test(&mut pending.requests)?.then_some(*pending.received))
    }

    /// Posts the sum over all ranks, in whatever order the library likes (`reduce: fast`), of `len`
    /// gradients at `data` into those at `sum`. All ranks post their sums in one order.
    ///
    /// # Safety
    /// Both stay alive, `data` unchanged and `sum` untouched, until `test` says that `requests` are
    /// done. They do not overlap.
    pub(super) unsafe fn sum(
        &self,
        data: *const f32,
        sum: *mut f32,
        len: usize,
        requests: &mut Requests,
    ) -> Result<()> {
        for start in (0..len).step_by(PIECE / 4) {
            let mut request = std::mem::MaybeUninit::uninit();
            // SAFETY: within the caller's buffers, which stay as the contract says; on success the
            // request is set.
            unsafe {
                check("MPI_Iallreduce", {
                    ffi::MPI_Iallreduce(
                        data.add(start).cast::<c_void>(),
                        sum.add(start).cast::<c_void>(),
                        counted((len - start).min(PIECE / 4))?,
                        ffi::RSMPI_FLOAT,
                        ffi::RSMPI_SUM,
                        self.gradients,
                        request.as_mut_ptr(),
                    )
                })?;
                requests.0.push(request.assume_init());
            }
        }
        Ok(())
    }
}

impl Requests {
    /// Whether none is posted. (Those that are done are forgotten by [`Mpi::test`].)
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}
