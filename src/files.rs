//! Files that are whole or absent: temporary name, fsync, rename, fsync of the directory.
//!
//! Also reads text that may be gzip, and recognises a Git-LFS pointer that stands in for data.

use crate::error::{Error, Result};
use crate::progress;
use flate2::read::MultiGzDecoder;
use sha2::{Digest, Sha256};
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, BufWriter, Read, Write};
use std::path::{Path, PathBuf};

/// A name in the same directory that no other process uses: `.tmp-NAME-HOST-PID`.
/// Leftovers of killed processes are recognised by the prefix ([`is_temporary`]).
pub fn temporary_name(path: &Path) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!(".tmp-{name}-{}-{}", host_name(), std::process::id()))
}

/// Whether a directory entry is an unfinished file of this program.
pub fn is_temporary(name: &str) -> bool {
    name.starts_with(".tmp-")
}

/// This machine's name, with anything odd replaced, fit for a file name.
pub fn host_name() -> String {
    let name = rustix::system::uname().nodename().to_string_lossy().into_owned();
    let fits = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '.';
    name.chars().map(|c| if fits(c) { c } else { '_' }).collect()
}

/// Makes a renamed or removed name durable.
pub fn sync_dir(dir: &Path) -> Result<()> {
    let dir = if dir.as_os_str().is_empty() { Path::new(".") } else { dir };
    File::open(dir).and_then(|d| d.sync_all()).map_err(|e| Error::write(dir, &e))
}

/// Creates a directory and its parents.
pub fn make_dir(dir: &Path) -> Result<()> {
    fs::create_dir_all(dir).map_err(|e| Error::write(dir, &e))
}

/// Gives a finished, already synced file or directory its final name, durably.
pub fn publish(temporary: &Path, path: &Path) -> Result<()> {
    fs::rename(temporary, path).map_err(|e| Error::write(path, &e))?;
    sync_dir(path.parent().unwrap_or(Path::new(".")))
}

/// Does `write`, and where it fails removes the file that it was writing.
pub fn or_remove<T>(temporary: &Path, write: impl FnOnce() -> Result<T>) -> Result<T> {
    write().inspect_err(|_| {
        // The first error is the one worth telling; a leftover is recognised by its name.
        let _ = fs::remove_file(temporary);
    })
}

/// Writes a whole file durably: it is there with all its bytes, or not at all.
pub fn write_atomic(
    path: &Path,
    fill: impl FnOnce(&mut BufWriter<File>) -> io::Result<()>,
) -> Result<()> {
    let temporary = temporary_name(path);
    let write = || {
        let mut out = BufWriter::new(File::create(&temporary)?);
        fill(&mut out)?;
        out.flush()?;
        out.get_ref().sync_all()
    };
    or_remove(&temporary, || {
        write().map_err(|e| Error::write(path, &e))?;
        publish(&temporary, path)
    })
}

/// Writes a whole small file durably.
pub fn write_text(path: &Path, text: &str) -> Result<()> {
    write_atomic(path, |out| out.write_all(text.as_bytes()))
}

/// Writes a small file that nobody has written yet.
pub fn write_new(path: &Path, text: &str) -> io::Result<()> {
    let mut file = fs::OpenOptions::new().write(true).create_new(true).open(path)?;
    file.write_all(text.as_bytes())
}

/// Points a relative symbolic link at `target` (a name beside it or below), replacing any old one
/// in one step.
pub fn replace_link(target: &Path, link: &Path) -> Result<()> {
    let temporary = temporary_name(link);
    match fs::remove_file(&temporary) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(Error::write(link, &e)),
        _ => {}
    }
    or_remove(&temporary, || {
        std::os::unix::fs::symlink(target, &temporary).map_err(|e| Error::write(link, &e))?;
        publish(&temporary, link)
    })
}

/// Writes to standard output. A reader that has seen enough (`| head`) is no failure.
pub fn print(text: &str) -> Result<()> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(e) if e.kind() != io::ErrorKind::BrokenPipe => {
            Err(Error::write(Path::new("standard output"), &e))
        }
        _ => Ok(()),
    }
}

/// Reads a whole small text file.
pub fn read_text(path: &Path) -> Result<String> {
    fs::read_to_string(path).map_err(|e| Error::read(path, &e))
}

/// Whether the first bytes are those of a Git-LFS pointer, which stands where a file should be.
pub fn is_lfs_pointer(head: &[u8]) -> bool {
    head.starts_with(b"version https://git-lfs")
}

/// What to do about one.
pub const LFS_HINT: &str =
    "fetch the real file with `git lfs pull` where the repository was cloned";

/// Whether the first bytes say gzip.
pub fn is_gzip(head: &[u8]) -> bool {
    head.starts_with(&[0x1f, 0x8b])
}

/// Opens text for reading, unpacking gzip where the first bytes say so.
pub fn open_text(path: &Path) -> Result<Box<dyn BufRead + Send>> {
    let file = File::open(path).map_err(|e| Error::read(path, &e))?;
    if file.metadata().map_err(|e| Error::read(path, &e))?.is_dir() {
        return Err(Error::data("this is a directory, a file is needed").at(path.display()));
    }
    let mut reader = BufReader::with_capacity(1 << 20, file);
    let head = reader.fill_buf().map_err(|e| Error::read(path, &e))?;
    if is_lfs_pointer(head) {
        return Err(Error::data("this is a Git-LFS pointer, not the data itself")
            .at(path.display())
            .hint(LFS_HINT));
    }
    if is_gzip(head) {
        return Ok(Box::new(BufReader::with_capacity(1 << 20, MultiGzDecoder::new(reader))));
    }
    Ok(Box::new(reader))
}

/// SHA-256 of a file's bytes in hexadecimal.
pub fn sha256_file(path: &Path) -> Result<String> {
    let mut file = File::open(path).map_err(|e| Error::read(path, &e))?;
    let mut hash = Sha256::new();
    let mut buffer = vec![0u8; 1 << 20];
    loop {
        let n = file.read(&mut buffer).map_err(|e| Error::read(path, &e))?;
        if n == 0 {
            return Ok(hex(&hash.finalize()));
        }
        hash.update(&buffer[..n]);
        progress::tick()?;
    }
}

/// Bytes in lower-case hexadecimal.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// Bytes free for this user on the file system that holds `path` (or will hold it).
pub fn free_bytes(path: &Path) -> Option<u64> {
    let mut existing = path;
    while !existing.exists() {
        existing = match existing.parent() {
            Some(p) if !p.as_os_str().is_empty() => p,
            _ => Path::new("."),
        };
    }
    let stat = rustix::fs::statvfs(existing).ok()?;
    Some(stat.f_bavail * stat.f_frsize)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scratch(name: &str) -> PathBuf {
        let dir = std::env::temp_dir().join(format!("trainer-files-{name}-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        dir
    }

    #[test]
    fn a_failed_write_leaves_nothing() {
        let dir = scratch("failed");
        let path = dir.join("x");
        let failed = write_atomic(&path, |_| Err(io::Error::from_raw_os_error(libc::ENOSPC)));
        let error = failed.unwrap_err();
        assert_eq!(error.code(), 4);
        assert!(error.to_string().contains("disk or your quota is full"), "{error}");
        fs::create_dir(dir.join("taken")).unwrap();
        assert_eq!(write_text(&dir.join("taken"), "text").unwrap_err().code(), 4);
        let names: Vec<_> = fs::read_dir(&dir).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(names, ["taken"]);
        fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn gzip_lfs_and_links() {
        let dir = scratch("gzip");
        let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gz.write_all(b"ACDE\n").unwrap();
        fs::write(dir.join("a.gz"), gz.finish().unwrap()).unwrap();
        let mut text = String::new();
        open_text(&dir.join("a.gz")).unwrap().read_to_string(&mut text).unwrap();
        assert_eq!(text, "ACDE\n");
        fs::write(dir.join("p"), "version https://git-lfs.github.com/spec/v1\n").unwrap();
        assert!(open_text(&dir.join("p")).err().unwrap().to_string().contains("git lfs pull"));
        for target in ["a.gz", "p"] {
            replace_link(Path::new(target), &dir.join("link")).unwrap();
            assert_eq!(fs::read_link(dir.join("link")).unwrap(), Path::new(target));
        }
        fs::remove_dir_all(dir).unwrap();
    }
}
