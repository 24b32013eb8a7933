//! Whether sums over all ranks are right, and how fast: both ways a run may add gradients.

use super::finding::{Finding, brief};
use crate::config::Reduce;
use crate::dist::{Comm, Own, Reducer};
use crate::error::Result;
use crate::report::step_line::bytes;
use std::cell::Cell;
use std::rc::Rc;
use std::time::Instant;

/// Elements of the buffers, from a message to what a large model sends.
const SIZES: [usize; 3] = [1 << 10, 1 << 18, 16 << 20];

/// A larger buffer that would take longer is not tried.
const PATIENCE: f64 = 5.0;

/// A tenth of an ordinary gigabit network.
const SLOW: f64 = 12e6;

/// One way with one size: the same on every rank but for the times.
#[derive(Clone, Debug, PartialEq)]
pub struct Measured {
    how: Reduce,
    bytes: u64,
    seconds: f64,
    /// Elements that are not the known sum, over all ranks.
    wrong: u64,
}

/// All ranks take part. `room` is the memory that this rank may use; the least of all counts.
pub fn measure(comm: &Comm, room: u64) -> Result<Vec<Measured>> {
    let mut measured = Vec::new();
    if comm.size() == 1 {
        return Ok(measured);
    }
    let room = comm.all_gather(room.to_le_bytes().to_vec())?;
    let room = room.into_iter().filter_map(|b| Some(u64::from_le_bytes(b.try_into().ok()?))).min();
    for how in [Reduce::Exact, Reduce::Fast] {
        // The first time connections are made.
        one(comm, how, SIZES[0])?;
        let mut rate = f64::INFINITY;
        for len in SIZES {
            // Own part, result, what MPI sends, and the other ranks' parts of a slice.
            let too_large = room.is_some_and(|room| 6 * 4 * len as u64 > room);
            if too_large || len as f64 / rate > PATIENCE {
                break;
            }
            let own = one(comm, how, len)?;
            rate = len as f64 / comm.decide(|| Ok(own.seconds))?;
            measured.push(own);
        }
    }
    Ok(measured)
}

/// Rank r gives `i % 1000 + r` as element i: sums are whole numbers that a float holds exactly.
fn one(comm: &Comm, how: Reduce, len: usize) -> Result<Measured> {
    let (rank, size) = (comm.rank(), comm.size());
    let value = |i: usize| (i % 1000) as f32;
    let own: Rc<Vec<Cell<f32>>> =
        Rc::new((0..len).map(|i| Cell::new(value(i) + rank as f32)).collect());
    let mut reducer = Reducer::new(comm, how, len, None);
    comm.barrier()?;
    let begin = Instant::now();
    // As many micro-batches as ranks: one each, a leaf of the tree.
    let (last, keep) = (Some(rank), Box::new(own.clone()));
    reducer.begin(comm, size, Own { gradient: &own, last, parts: Vec::new(), keep })?.finish()?;
    let seconds = begin.elapsed().as_secs_f64();
    let ranks = (size * (size - 1) / 2) as f32;
    let differs = |(i, x): &(usize, &Cell<f32>)| x.get() != value(*i) * size as f32 + ranks;
    let wrong = own.iter().enumerate().filter(differs).count() as u64;
    let all = comm.all_gather(wrong.to_le_bytes().to_vec())?;
    let wrong = all.into_iter().filter_map(|b| Some(u64::from_le_bytes(b.try_into().ok()?))).sum();
    Ok(Measured { how, bytes: 4 * len as u64, seconds, wrong })
}

/// What was measured on rank 0, in words.
pub fn judge(measured: &[Measured], ranks: usize) -> Vec<Finding> {
    let mut findings = Vec::new();
    for how in [Reduce::Exact, Reduce::Fast] {
        let name = if how == Reduce::Exact { "exact" } else { "fast" };
        let of_this: Vec<&Measured> = measured.iter().filter(|m| m.how == how).collect();
        let Some(largest) = of_this.last() else { continue };
        let wrong: u64 = of_this.iter().map(|m| m.wrong).sum();
        if wrong > 0 {
            findings.push(
                Finding::stops(
                    "all-reduce",
                    format!("{name}: {wrong} elements are not the sum over {ranks} ranks"),
                )
                .cause(
                    "MPI delivers wrong numbers: its transport or the memory of a node is at fault",
                )
                .remedy(
                    "try another transport (Open MPI: OMPI_MCA_btl=self,tcp OMPI_MCA_pml=ob1), and \
                     show this to whoever runs the machine",
                ),
            );
            continue;
        }
        let times: Vec<String> =
            of_this.iter().map(|m| format!("{} in {}", bytes(m.bytes), brief(m.seconds))).collect();
        let rate = largest.bytes as f64 / largest.seconds;
        let found = format!("{name}: right; {}, {}/s", times.join(", "), bytes(rate as u64));
        findings.push(match rate < SLOW && largest.bytes > 1_000_000 {
            false => Finding::ok("all-reduce", found),
            true => Finding::warning("all-reduce", found)
                .cause("the ranks talk through a slow network, or wait for cores")
                .remedy(
                    "give each rank its cores; between nodes choose the fast interface \
                     (Open MPI: OMPI_MCA_btl_tcp_if_include=ib0, or a build with UCX)",
                ),
        });
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::super::finding::Status;
    use super::*;

    fn status(seconds: f64, wrong: u64) -> (Status, String) {
        let measured = [Measured { how: Reduce::Exact, bytes: 4 << 20, seconds, wrong }];
        let finding = judge(&measured, 2).remove(0);
        (finding.status, finding.found)
    }

    #[test]
    fn sums() {
        let fine = status(0.01, 0);
        assert_eq!(fine.0, Status::Ok);
        assert!(fine.1.contains("4.2 MB in 10 ms, 419.4 MB/s"), "{}", fine.1);
        assert_eq!(status(4.0, 0).0, Status::Warning);
        assert_eq!(status(0.01, 3).0, Status::Stops);
        assert!(judge(&[], 1).is_empty());
    }
}
