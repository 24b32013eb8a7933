//! What must hold on several processes: the same bits on any number of ranks, after any kill, after
//! any signal; one cache however it was made; an error on one rank that ends all of them.
//!
//! Everything runs the real program under the real `mpirun`, on 60 small proteins or 48 alloys and
//! tiny models. Where chance picks the moment of a kill, the seed is printed; `MPI_TEST_SEED` replays
//! it.

mod alloy;
mod cache;
mod exact;
mod faults;
mod harness;
mod killed;
mod phases;
mod signals;
mod watchdog;
