//! TensorBoard event files for scalars, written by hand: a few protocol-buffer fields in TFRecord
//! frames are all it takes, and any TensorBoard reads them.
//!
//! Formats: TensorFlow's `event.proto` (wall_time 1, step 2, file_version 3, summary 5,
//! session_log 7), `summary.proto` (Value 1: tag 1, simple_value 2), and `record_writer.h` (length,
//! masked CRC-32C of the length, data, masked CRC-32C of the data; little-endian).
//!
//! Event files are not cut back when a run resumes. A `session_log START` event with a step tells
//! TensorBoard to forget every earlier event of that step or a later one in the same directory.

use crate::error::{Error, Result};
use crate::files;
use std::fs::{File, OpenOptions};
use std::io::{BufWriter, ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

/// The version from which TensorBoard honours `session_log START`.
const FILE_VERSION: &[u8] = b"brain.Event:2";

/// `SessionLog.SessionStatus.START`.
const START: u64 = 1;

/// An event file of one process.
#[derive(Debug)]
pub struct TensorBoard {
    out: BufWriter<File>,
    path: PathBuf,
}

impl TensorBoard {
    /// Starts a new event file in `dir`, which is made if need be. `resumed` is the checkpoint's
    /// step that the run goes on from: earlier files' events after it are purged.
    pub fn create(dir: &Path, resumed: Option<u64>) -> Result<Self> {
        files::make_dir(dir)?;
        let (file, path) = new_file(dir)?;
        let mut board = TensorBoard { out: BufWriter::new(file), path };
        let mut version = Vec::new();
        bytes_field(&mut version, 3, FILE_VERSION);
        board.event(0, &version)?;
        if let Some(step) = resumed {
            let mut status = Vec::new();
            varint_field(&mut status, 1, START);
            let mut start = Vec::new();
            bytes_field(&mut start, 7, &status);
            board.event(step + 1, &start)?;
        }
        board.flush()?;
        Ok(board)
    }

    /// Adds one point to the curve `tag` (`train/loss`); TensorBoard stores float32.
    pub fn scalar(&mut self, tag: &str, value: f64, step: u64) -> Result<()> {
        let mut point = Vec::new();
        bytes_field(&mut point, 1, tag.as_bytes());
        point.push(2 << 3 | 5);
        point.extend((value as f32).to_le_bytes());
        let mut summary = Vec::new();
        bytes_field(&mut summary, 1, &point);
        let mut what = Vec::new();
        bytes_field(&mut what, 5, &summary);
        self.event(step, &what)
    }

    /// Hands everything to the operating system, so that TensorBoard sees it.
    pub fn flush(&mut self) -> Result<()> {
        self.out.flush().map_err(|e| Error::write(&self.path, &e))
    }

    /// Writes one event: time, step, and `what` as already encoded fields.
    fn event(&mut self, step: u64, what: &[u8]) -> Result<()> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let mut event = vec![1 << 3 | 1];
        event.extend(now.as_secs_f64().to_le_bytes());
        varint_field(&mut event, 2, step);
        event.extend(what);
        self.out.write_all(&frame(&event)).map_err(|e| Error::write(&self.path, &e))
    }
}

/// A file that was not there: TensorBoard reads the files of a directory in the order of their
/// names, so the name starts with the time, and no earlier file is ever added to.
fn new_file(dir: &Path) -> Result<(File, PathBuf)> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let (host, process) = (files::host_name(), std::process::id());
    let mut attempt = 0;
    loop {
        let path = dir.join(format!("events.out.tfevents.{now:010}.{host}.{process}.{attempt}"));
        match OpenOptions::new().write(true).create_new(true).open(&path) {
            Ok(file) => return Ok((file, path)),
            Err(e) if e.kind() == ErrorKind::AlreadyExists => attempt += 1,
            Err(e) => return Err(Error::write(&path, &e)),
        }
    }
}

fn varint(out: &mut Vec<u8>, mut n: u64) {
    while n >= 0x80 {
        out.push(n as u8 | 0x80);
        n >>= 7;
    }
    out.push(n as u8);
}

fn varint_field(out: &mut Vec<u8>, field: u64, n: u64) {
    varint(out, field << 3);
    varint(out, n);
}

fn bytes_field(out: &mut Vec<u8>, field: u64, bytes: &[u8]) {
    varint(out, field << 3 | 2);
    varint(out, bytes.len() as u64);
    out.extend(bytes);
}

/// One TFRecord.
fn frame(data: &[u8]) -> Vec<u8> {
    let length = (data.len() as u64).to_le_bytes();
    let mut record = Vec::with_capacity(data.len() + 16);
    record.extend(length);
    record.extend(masked(crc32c(&length)).to_le_bytes());
    record.extend(data);
    record.extend(masked(crc32c(data)).to_le_bytes());
    record
}

/// TFRecord's mask, so that a checksum of data with checksums in it stays good.
fn masked(crc: u32) -> u32 {
    crc.rotate_right(15).wrapping_add(0xA282_EAD8)
}

/// CRC-32C (Castagnoli), reflected, a byte at a time.
fn crc32c(bytes: &[u8]) -> u32 {
    const TABLE: [u32; 256] = crc_table();
    let step = |crc: u32, byte: &u8| TABLE[((crc ^ u32::from(*byte)) & 0xFF) as usize] ^ (crc >> 8);
    !bytes.iter().fold(!0, step)
}

const fn crc_table() -> [u32; 256] {
    let mut table = [0u32; 256];
    let mut i = 0;
    while i < 256 {
        let mut crc = i as u32;
        let mut bit = 0;
        while bit < 8 {
            crc = if crc & 1 == 1 { crc >> 1 ^ 0x82F6_3B78 } else { crc >> 1 };
            bit += 1;
        }
        table[i] = crc;
        i += 1;
    }
    table
}

#[cfg(test)]
mod tests {
    use super::super::scratch;
    use super::*;

    /// One field of a message: its number, and its varint, fixed bits or bytes.
    #[derive(Debug, PartialEq)]
    enum Field<'a> {
        Number(u64, u64),
        Bytes(u64, &'a [u8]),
    }

    fn take_varint(data: &mut &[u8]) -> u64 {
        let mut n = 0;
        for shift in (0..).step_by(7) {
            let byte = data[0];
            *data = &data[1..];
            n |= u64::from(byte & 0x7F) << shift;
            if byte < 0x80 {
                break;
            }
        }
        n
    }

    fn fields(mut data: &[u8]) -> Vec<Field<'_>> {
        let mut found = Vec::new();
        while !data.is_empty() {
            let key = take_varint(&mut data);
            let length = match key & 7 {
                0 => {
                    found.push(Field::Number(key >> 3, take_varint(&mut data)));
                    continue;
                }
                1 => 8,
                2 => take_varint(&mut data) as usize,
                5 => 4,
                other => panic!("wire type {other}"),
            };
            found.push(Field::Bytes(key >> 3, &data[..length]));
            data = &data[length..];
        }
        found
    }

    /// The events of a file, their frames checked.
    fn events(mut data: &[u8]) -> Vec<Vec<u8>> {
        let mut found = Vec::new();
        while !data.is_empty() {
            let length = u64::from_le_bytes(data[..8].try_into().unwrap()) as usize;
            let end = 12 + length;
            for (bytes, at) in [(&data[..8], 8), (&data[12..end], end)] {
                let stored = u32::from_le_bytes(data[at..at + 4].try_into().unwrap());
                assert_eq!(stored, masked(crc32c(bytes)));
            }
            found.push(data[12..end].to_vec());
            data = &data[end + 4..];
        }
        found
    }

    #[test]
    fn checksums_are_the_known_ones() {
        assert_eq!(crc32c(b"123456789"), 0xE306_9283);
        // RFC 3720, B.4: 32 bytes of zeros, and of ones.
        assert_eq!(crc32c(&[0; 32]), 0x8A91_36AA);
        assert_eq!(crc32c(&[0xFF; 32]), 0x62A8_AB43);
        // How every event file begins: the length of its first event, 24, and that one's checksum.
        assert_eq!(frame(&[0; 24])[..12], [0x18, 0, 0, 0, 0, 0, 0, 0, 0xA3, 0x7F, 0x4B, 0x22]);
    }

    #[test]
    fn what_is_written_is_read_back() {
        let dir = scratch("events");
        let mut board = TensorBoard::create(&dir, Some(300)).unwrap();
        board.scalar("train/loss", 2.5, 301).unwrap();
        board.flush().unwrap();
        let events = events(&std::fs::read(&board.path).unwrap());
        assert_eq!(events.len(), 3);
        let decoded: Vec<Vec<Field>> = events.iter().map(|event| fields(event)).collect();
        assert_eq!(decoded[0][1..], [Field::Number(2, 0), Field::Bytes(3, FILE_VERSION)]);
        assert_eq!(decoded[1][1..], [Field::Number(2, 301), Field::Bytes(7, &[8, 1])]);
        assert_eq!(decoded[2][1], Field::Number(2, 301));
        let Field::Bytes(5, summary) = decoded[2][2] else { panic!("no summary: {decoded:?}") };
        let [Field::Bytes(1, value)] = fields(summary)[..] else { panic!("no value") };
        let expected = [Field::Bytes(1, b"train/loss"), Field::Bytes(2, &2.5f32.to_le_bytes())];
        assert_eq!(fields(value), expected);
        let Field::Bytes(1, time) = decoded[2][0] else { panic!("no time") };
        assert!(f64::from_le_bytes(time.try_into().unwrap()) > 1.7e9);
        std::fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn an_earlier_file_is_never_touched() {
        let dir = scratch("two-files");
        let first = TensorBoard::create(&dir, None).unwrap();
        let second = TensorBoard::create(&dir, None).unwrap();
        assert!(first.path < second.path);
        assert_eq!(std::fs::read_dir(&dir).unwrap().count(), 2);
        std::fs::remove_dir_all(dir).unwrap();
    }
}
