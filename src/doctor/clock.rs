//! How far the clocks of the ranks' nodes differ from rank 0's.
//!
//! Rank 0 broadcasts, the others read their clocks when it arrives, and rank 0 gathers: each reading
//! was taken between the beginning and the end of the round on rank 0's own clock, which bounds the
//! difference from both sides. Many rounds narrow it down.

use super::finding::{Finding, brief};
use crate::dist::Comm;
use crate::error::{Error, Result};
use std::time::{SystemTime, UNIX_EPOCH};

const ROUNDS: usize = 20;

/// Names of runs are made of the time, in seconds.
const TOO_FAR: f64 = 2.0;
const NOTABLE: f64 = 0.1;

/// A rank's clock minus rank 0's lies between these, in seconds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Bounds {
    low: f64,
    high: f64,
}

impl Bounds {
    /// The least that the clocks differ.
    fn least(self) -> f64 {
        if self.low > 0.0 { self.low } else { (-self.high).max(0.0) }
    }
}

fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |d| d.as_secs_f64())
}

/// All ranks take part; rank 0 learns the bounds of every rank.
pub fn gather(comm: &Comm) -> Result<Vec<Bounds>> {
    let mut bounds = vec![Bounds { low: f64::NEG_INFINITY, high: f64::INFINITY }; comm.size()];
    for _ in 0..ROUNDS {
        comm.barrier()?;
        let begin = now();
        comm.broadcast(vec![0])?;
        let readings = comm.all_gather(now().to_le_bytes().to_vec())?;
        let end = now();
        for (bounds, reading) in bounds.iter_mut().zip(readings) {
            let reading = reading.try_into().map(f64::from_le_bytes);
            let reading = reading.map_err(|_| Error::bug("a clock of other than eight bytes"))?;
            bounds.low = bounds.low.max(reading - end);
            bounds.high = bounds.high.min(reading - begin);
        }
    }
    Ok(bounds)
}

/// What the bounds mean; `hosts` has the host of every rank.
pub fn judge(bounds: &[Bounds], hosts: &[String]) -> Vec<Finding> {
    let within = bounds.iter().map(|b| b.low.abs().max(b.high.abs())).fold(0.0, f64::max);
    let far = |limit: f64| (0..bounds.len()).filter(move |rank| bounds[*rank].least() > limit);
    if far(NOTABLE).next().is_none() {
        return vec![Finding::ok("clock", format!("clocks agree within {}", brief(within)))];
    }
    far(NOTABLE)
        .map(|rank| {
            let by = bounds[rank].least();
            let way = if bounds[rank].low > 0.0 { "ahead of" } else { "behind" };
            let found = format!("the clock is {} {way} rank 0's", brief(by));
            let finding = match by > TOO_FAR {
                true => Finding::warning("clock", found)
                    .cause(
                        "names of runs, records and `trainer status` have the wrong time, and files \
                         seem to come from the future",
                    )
                    .remedy("have the node's clock synchronised (chronyc tracking, ntpq -p)"),
                false => Finding::note("clock", found),
            };
            finding.on(rank, &hosts[rank])
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::super::finding::Status;
    use super::*;

    fn judged(low: f64, high: f64) -> Vec<Finding> {
        let hosts = ["a".to_string(), "b".to_string()];
        judge(&[Bounds { low: -1e-4, high: 1e-4 }, Bounds { low, high }], &hosts)
    }

    #[test]
    fn skew() {
        let fine = judged(-0.5, 0.5);
        assert_eq!((fine.len(), fine[0].status), (1, Status::Ok));
        let ahead = judged(30.0, 30.1);
        assert_eq!(ahead[0].status, Status::Warning);
        assert!(ahead[0].found.contains("30.0 s ahead of rank 0's"), "{}", ahead[0].found);
        assert!(ahead[0].ranks.contains(&1) && ahead[0].hosts.contains("b"));
        let behind = judged(-0.4, -0.3);
        assert_eq!(behind[0].status, Status::Note);
        assert!(behind[0].found.contains("300 ms behind"), "{}", behind[0].found);
    }

    #[test]
    fn alone_there_is_no_skew() {
        let bounds = gather(&Comm::Solo).unwrap();
        assert!(bounds[0].low <= 0.0 && bounds[0].high >= 0.0, "{bounds:?}");
    }
}
