//! Whether a file that one rank makes is seen by the others, and how soon.

use super::finding::{Finding, brief};
use super::places::Place;
use crate::dist::Comm;
use crate::error::{Error, Result};
use crate::files::host_name;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

/// Longer than network file systems usually remember that a name is not there.
const PATIENCE: Duration = Duration::from_secs(5);

/// Seconds until each rank saw the files of others; None where one of them was not seen.
pub type Seen = Vec<Option<f64>>;

/// All ranks take part. Rank 0 makes a file in `dir` and the others look for it, then the last rank
/// makes one. They have looked before: a name that was not there is remembered.
pub fn gather(comm: &Comm, dir: &Path) -> Result<Seen> {
    let mut worst = Some(0.0f64);
    // One name on all ranks.
    let own = format!(".tmp-doctor-seen-{}-{}", host_name(), std::process::id());
    let name = String::from_utf8_lossy(&comm.broadcast(own.into_bytes())?).into_owned();
    for maker in [0, comm.size() - 1] {
        let path = dir.join(format!("{name}-{maker}"));
        // What is there is of no interest, that it was asked for is.
        let _ = fs::metadata(&path);
        comm.barrier()?;
        if comm.rank() == maker {
            // A rank that cannot is seen by the others not seeing it.
            let _ = fs::write(&path, b"seen");
        }
        comm.barrier()?;
        let begin = Instant::now();
        let mut seen = path.exists();
        while !seen && begin.elapsed() < PATIENCE {
            std::thread::sleep(Duration::from_millis(5));
            seen = path.exists();
        }
        worst = worst.filter(|_| seen).map(|longest| longest.max(begin.elapsed().as_secs_f64()));
        comm.barrier()?;
        if comm.rank() == maker {
            let _ = fs::remove_file(&path);
        }
    }
    let own = worst.unwrap_or(-1.0).to_le_bytes().to_vec();
    let all = comm.all_gather(own)?;
    let number = |bytes: Vec<u8>| {
        let bytes = bytes.try_into().map_err(|_| Error::bug("a time of other than eight bytes"))?;
        Ok(Some(f64::from_le_bytes(bytes)).filter(|seconds| *seconds >= 0.0))
    };
    all.into_iter().map(number).collect()
}

/// What that means; `hosts` has the host of every rank.
pub fn judge(place: &Place, seen: &Seen, hosts: &[String]) -> Vec<Finding> {
    let (role, dir) = (&place.role, place.path.display());
    let unseen = (0..seen.len()).filter(|rank| seen[*rank].is_none());
    let lost: Vec<Finding> = unseen
        .map(|rank| {
            Finding::stops(
                "shared files",
                format!("{role}: {dir}: files of other ranks are not seen"),
            )
            .cause(
                "it is another directory on each of these hosts (a disk of the node's own?), \
                     or its file system shows new files later than after 5 s",
            )
            .remedy(format!("name a directory that all nodes share for {role}"))
            .on(rank, &hosts[rank])
        })
        .collect();
    if !lost.is_empty() {
        return lost;
    }
    let longest = seen.iter().flatten().copied().fold(0.0, f64::max);
    let found = format!("{role}: files of other ranks are seen within {}", brief(longest));
    vec![match longest > 1.0 {
        false => Finding::ok("shared files", found),
        true => Finding::note("shared files", found)
            .cause("its file system remembers for a while that a file was not there")
            .remedy("nothing: the program waits for what it needs; but starts are slower"),
    }]
}

#[cfg(test)]
mod tests {
    use super::super::finding::Status;
    use super::super::places::Need;
    use super::*;

    #[test]
    fn seen_and_not_seen() {
        let place = Place { role: "x".into(), path: "/x".into(), need: Need::SharedDirectory };
        let hosts = ["a".to_string(), "b".to_string()];
        let status = |seen: Seen| {
            let found = judge(&place, &seen, &hosts);
            (found[0].status, found[0].ranks.iter().copied().collect::<Vec<_>>())
        };
        assert_eq!(status(vec![Some(0.0), Some(0.02)]), (Status::Ok, vec![]));
        assert_eq!(status(vec![Some(0.0), Some(3.0)]).0, Status::Note);
        assert_eq!(status(vec![Some(0.0), None]), (Status::Stops, vec![1]));
    }
}
