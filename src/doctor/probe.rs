//! What a run does with its files, tried out: the side that does it.
//!
//! This runs in a process of its own (`trainer probe`), because a file system that hangs holds a
//! process that nothing can end. Every place has a thread. What happens is told line by line, so
//! that the other side (`disk`) knows at which step it stayed.

use super::places::{Need, Place};
use crate::error::{Error, Result};
use crate::files::{host_name, open_text, replace_link, sync_dir, write_text};
use serde::{Deserialize, Serialize};
use std::fs::{self, File};
use std::io::{BufRead, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

/// A line of the report; `place` is a number in the list of places.
#[derive(Debug, Serialize, Deserialize)]
pub enum Event {
    /// This begins now, in words that complete "while ...".
    Begins { place: usize, step: String },
    /// This directory was made for trying, and is to be removed.
    Makes { place: usize, dir: PathBuf },
    /// The place does what is wanted.
    Works { place: usize, facts: Facts },
    /// It does not: the error's text, with its hint.
    Fails { place: usize, said: String },
}

/// What was learnt of a place that works.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Facts {
    /// The directory that exists already: the place itself, or the nearest one above it.
    pub existing: PathBuf,
    /// The file system's magic number.
    pub magic: u64,
    /// Bytes that this user may still write.
    pub free: u64,
    /// Files that may still be made; None where the file system does not count them.
    pub inodes: Option<u64>,
    /// Seconds that a small durable write takes.
    pub fsync: f64,
}

/// Bytes that are written to see whether there is room.
const MEGABYTE: usize = 1 << 20;

/// Tries all places and tells on standard output. `request` is their list in JSON.
pub fn run(request: &str) -> Result<()> {
    let places: Vec<Place> = serde_json::from_str(request)
        .map_err(|e| Error::bug(format!("the list of places to probe: {e}")))?;
    let out = Mutex::new(std::io::stdout());
    let tell = |event: Event| {
        if let (Ok(mut out), Ok(line)) = (out.lock(), serde_json::to_string(&event)) {
            // With nobody listening any more there is nobody to tell.
            let _ = out.write_all(format!("{line}\n").as_bytes()).and_then(|()| out.flush());
        }
    };
    std::thread::scope(|scope| {
        for (number, place) in places.iter().enumerate() {
            let tell = &tell;
            scope.spawn(move || {
                let step = |step: &str| tell(Event::Begins { place: number, step: step.into() });
                let made = |dir: &Path| tell(Event::Makes { place: number, dir: dir.into() });
                tell(match probe(place, &step, &made) {
                    Ok(facts) => Event::Works { place: number, facts },
                    Err(error) => Event::Fails { place: number, said: error.to_string() },
                });
            });
        }
    });
    Ok(())
}

fn probe(place: &Place, step: &dyn Fn(&str), made: &dyn Fn(&Path)) -> Result<Facts> {
    step("looking it up");
    if place.need == Need::Read {
        return read(&place.path, step);
    }
    let existing = nearest(&place.path)?;
    if place.need == Need::OwnDirectory && existing != place.path {
        return Err(Error::launch("this directory does not exist")
            .at(place.path.display())
            .hint(format!("mkdir -p {}, or name another one", place.path.display())));
    }
    step("asking for its free space");
    let fail = |e: rustix::io::Errno| Error::write(&existing, &e.into());
    let sizes = rustix::fs::statvfs(&existing).map_err(fail)?;
    let kind = rustix::fs::statfs(&existing).map_err(fail)?;
    step("making a directory");
    let scratch = Scratch::make(&existing)?;
    made(&scratch.0);
    let fsync = write(&scratch.0, step)?;
    if place.need == Need::SharedDirectory {
        hdf5(&scratch.0, step)?;
    }
    step("removing what was made");
    scratch.remove()?;
    Ok(Facts {
        magic: kind.f_type as u64,
        free: sizes.f_bavail * sizes.f_frsize,
        inodes: (sizes.f_files > 0).then_some(sizes.f_favail),
        fsync,
        existing,
    })
}

/// The directory itself, or the nearest one above it that exists.
fn nearest(path: &Path) -> Result<PathBuf> {
    // What is wrong is then told of a directory further up.
    let above =
        |kind| matches!(kind, std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory);
    for dir in path.ancestors() {
        match fs::metadata(dir) {
            Ok(found) if found.is_dir() => return Ok(dir.to_path_buf()),
            Ok(_) => {
                return Err(Error::launch("this is a file, a directory is needed")
                    .at(dir.display())
                    .hint("choose another directory, or move the file away"));
            }
            Err(e) if !above(e.kind()) => {
                return Err(Error::write(dir, &e));
            }
            Err(_) if fs::symlink_metadata(dir).is_ok() => {
                let target = fs::read_link(dir).unwrap_or_default();
                return Err(Error::launch(format!(
                    "this is a link to {}, which does not exist",
                    target.display()
                ))
                .at(dir.display())
                .hint("make the directory that it points to, or remove the link"));
            }
            Err(_) => {}
        }
    }
    Err(Error::launch("no directory above it exists").at(path.display()))
}

/// A directory that goes away with everything in it.
struct Scratch(PathBuf);

impl Scratch {
    fn make(parent: &Path) -> Result<Scratch> {
        static NUMBER: AtomicUsize = AtomicUsize::new(0);
        let number = NUMBER.fetch_add(1, Ordering::SeqCst);
        let name = format!(".tmp-doctor-{}-{}-{number}", host_name(), std::process::id());
        let dir = parent.join(name);
        fs::create_dir(&dir).map_err(|e| Error::write(parent, &e))?;
        Ok(Scratch(dir))
    }

    fn remove(self) -> Result<()> {
        fs::remove_dir_all(&self.0).map_err(|e| Error::write(&self.0, &e))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // Gone already after `remove`; after a failure, that is what is told.
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Everything that checkpoints, caches and records count on. Returns the seconds of a small durable
/// write, the middle one of three.
fn write(dir: &Path, step: &dyn Fn(&str)) -> Result<f64> {
    let broken = |what: &str| {
        Err(Error::launch(what)
            .at(dir.display())
            .hint("checkpoints and caches need that: choose a directory on another file system"))
    };
    step("writing a megabyte");
    let first = dir.join("first");
    let fail = |e: std::io::Error| Error::write(dir, &e);
    let mut file = File::create_new(&first).map_err(fail)?;
    file.write_all(&vec![7; MEGABYTE]).map_err(fail)?;
    step("waiting for it to be durable (fsync)");
    file.sync_all().map_err(fail)?;
    if fs::metadata(&first).map_err(fail)?.len() != MEGABYTE as u64 {
        return broken("a file has another size than was written");
    }
    step("making a file that is there already");
    match File::create_new(&first) {
        Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {}
        _ => return broken("a file can be made anew though it is there (O_EXCL does not hold)"),
    }
    let mut times = Vec::new();
    let second = dir.join("second");
    for text in ["a", "b", "c"] {
        step("replacing a file durably (fsync, rename)");
        let begin = Instant::now();
        write_text(&second, text)?;
        times.push(begin.elapsed().as_secs_f64());
        let mut found = String::new();
        File::open(&second).and_then(|mut f| f.read_to_string(&mut found)).map_err(fail)?;
        if found != text {
            return broken("a file that was replaced by rename still has its old content");
        }
    }
    step("replacing a link");
    for target in ["first", "second"] {
        replace_link(Path::new(target), &dir.join("link"))?;
        if fs::read_link(dir.join("link")).map_err(fail)? != Path::new(target) {
            return broken("a link that was replaced by rename still points to its old target");
        }
    }
    sync_dir(dir)?;
    times.sort_by(f64::total_cmp);
    Ok(times[1])
}

/// A small HDF5 file, written and read as the embedding cache does, without locks.
fn hdf5(dir: &Path, step: &dyn Fn(&str)) -> Result<()> {
    step("writing an HDF5 file");
    let path = dir.join("probe.h5");
    let fail = |e: hdf5::Error| {
        Error::launch(format!("HDF5 cannot use it: {}", e.to_string().lines().next().unwrap_or("")))
            .at(dir.display())
            .hint("choose a directory on another file system (esm.cache_dir)")
    };
    let numbers: Vec<f32> = (0..1000u16).map(f32::from).collect();
    let make = || {
        let file = hdf5::FileBuilder::new().with_fapl(|p| p.file_locking(false)).create(&path)?;
        file.new_dataset_builder().with_data(&numbers).create("x")?;
        file.close()
    };
    make().map_err(fail)?;
    step("reading an HDF5 file");
    let read = || hdf5::File::open(&path)?.dataset("x")?.read_raw::<f32>();
    if read().map_err(fail)? != numbers {
        return Err(Error::launch("an HDF5 file has other numbers than were written")
            .at(dir.display())
            .hint("choose a directory on another file system (esm.cache_dir)"));
    }
    Ok(())
}

/// Whether a file or directory can be read, by its beginning.
fn read(path: &Path, step: &dyn Fn(&str)) -> Result<Facts> {
    let found = fs::metadata(path).map_err(|e| Error::read(path, &e))?;
    if found.is_dir() {
        step("listing it");
        fs::read_dir(path).map_err(|e| Error::read(path, &e))?;
    } else {
        step("reading its beginning");
        let mut text = open_text(path)?;
        text.fill_buf().map_err(|e| Error::read(path, &e))?;
    }
    Ok(Facts { existing: path.to_path_buf(), ..Facts::default() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_that_works_is_left_as_it_was() {
        let dir = std::env::temp_dir().join(format!("trainer-probe-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        let steps = Mutex::new(0);
        let place = |path: PathBuf, need| Place { role: "x".into(), path, need };
        let count = |_: &str| *steps.lock().unwrap() += 1;
        let deep = place(dir.join("not/there"), Need::SharedDirectory);
        let facts = probe(&deep, &count, &|_| ()).unwrap();
        assert_eq!(facts.existing, dir);
        assert!(facts.fsync > 0.0 && facts.free > 0, "{facts:?}");
        assert!(*steps.lock().unwrap() > 8);
        assert_eq!(fs::read_dir(&dir).unwrap().count(), 0);

        fs::write(dir.join("file"), "text").unwrap();
        let absent =
            probe(&place(dir.join("no"), Need::OwnDirectory), &count, &|_| ()).unwrap_err();
        assert!(absent.to_string().contains("does not exist"), "{absent}");
        let below =
            probe(&place(dir.join("file/x"), Need::OwnDirectory), &count, &|_| ()).unwrap_err();
        assert!(below.to_string().contains("a file"), "{below}");
        std::os::unix::fs::symlink("nowhere", dir.join("link")).unwrap();
        let link =
            probe(&place(dir.join("link"), Need::OwnDirectory), &count, &|_| ()).unwrap_err();
        assert!(link.to_string().contains("a link to nowhere"), "{link}");
        probe(&place(dir.join("file"), Need::Read), &count, &|_| ()).unwrap();
        let missing = probe(&place(dir.join("no"), Need::Read), &count, &|_| ()).unwrap_err();
        assert_eq!(missing.code(), 3);
        fs::remove_dir_all(dir).unwrap();
    }
}
