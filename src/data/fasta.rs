//! A FASTA file as an index in memory, its sequences read by offset when they are wanted.
//!
//! One pass over the file checks every character and keeps 48 bytes a record, so ten million
//! records take half a gigabyte. A gzip is unpacked once into a nameless file, because compressed
//! text has no offsets. The id is the header's first word, whole: `sp|P12345|NAME` stays as it is.

use super::esm_alphabet::{self as esm, Cleaner};
use super::read_failed;
use crate::error::{Error, Result};
use crate::files;
use crate::progress;
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead, BufReader, Read, Seek, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use xxhash_rust::xxh3::xxh3_64;

/// No sane file has a longer line; what has one is not text.
const LONGEST_LINE: u64 = 64 << 20;

/// What one record needs to be found again and told apart.
struct Record {
    /// Where its `>` is, in bytes from the start of the (unpacked) file.
    offset: u64,
    /// The line of its header, from 1.
    line: u64,
    /// xxh3_64 of the id.
    id_hash: u64,
    /// [`esm::sequence_hash`] of the cleaned sequence.
    sequence_hash: u64,
    /// Bytes of the header, its line end included.
    header: u32,
    /// Bytes from the header's end to the next record.
    raw: u32,
    /// Residues of the cleaned sequence.
    residues: u32,
}

/// What was read, and what was mended on the way. All are numbers of records but `residues`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Records in the file.
    pub records: u64,
    /// Residues of all records of the file.
    pub residues: u64,
    /// Records with lower-case letters, which were raised.
    pub lower_case: u64,
    /// Records that ended in a `*`, which was dropped.
    pub stars: u64,
    /// Records that repeat an earlier id and sequence, which were dropped.
    pub duplicates: u64,
}

/// The records of a FASTA file in its order, each id once. Reading by `&self` is safe from any
/// number of threads.
pub struct FastaIndex {
    path: PathBuf,
    /// The file itself, or its unpacked copy, which has no name and goes with this handle.
    file: File,
    records: Vec<Record>,
    counts: Counts,
}

impl FastaIndex {
    /// Reads and checks a whole FASTA file, plain or gzip; a gzip is unpacked into the directory
    /// `scratch`. Anything wrong in it is a data error with file and line.
    pub fn open(path: &Path, scratch: &Path) -> Result<FastaIndex> {
        let (file, reader) = open(path, scratch)?;
        let mut index = FastaIndex {
            path: path.to_path_buf(),
            file,
            records: vec![],
            counts: Counts::default(),
        };
        index.scan(reader)?;
        index.drop_duplicates()?;
        Ok(index)
    }

    /// The file as the user named it.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Records, without dropped duplicates.
    pub fn len(&self) -> usize {
        self.records.len()
    }

    /// Never true: a file without a record is refused.
    pub fn is_empty(&self) -> bool {
        self.records.is_empty()
    }

    /// What was read and mended.
    pub fn counts(&self) -> Counts {
        self.counts
    }

    /// Residues of every record, in order.
    pub fn lengths(&self) -> impl ExactSizeIterator<Item = u32> + '_ {
        self.records.iter().map(|r| r.residues)
    }

    /// Residues of record `i`.
    pub fn residues(&self, i: usize) -> u32 {
        self.records[i].residues
    }

    /// [`esm::sequence_hash`] of record `i`'s whole sequence.
    pub fn sequence_hash(&self, i: usize) -> u64 {
        self.records[i].sequence_hash
    }

    /// `file:line` of record `i`'s header.
    pub fn place(&self, i: usize) -> String {
        place(&self.path, self.records[i].line)
    }

    /// Reads record `i`'s id.
    pub fn id(&self, i: usize) -> Result<String> {
        let record = &self.records[i];
        let header = self.read(record.offset, record.header)?;
        let id = std::str::from_utf8(first_word(&header)).unwrap_or_default();
        if xxh3_64(id.as_bytes()) != record.id_hash {
            return Err(self.changed(i));
        }
        Ok(id.to_string())
    }

    /// Reads record `i`'s sequence as ESM ids, without `<cls>` and `<eos>`.
    pub fn esm_ids(&self, i: usize) -> Result<Vec<u8>> {
        let record = &self.records[i];
        let raw = self.read(record.offset + u64::from(record.header), record.raw)?;
        let mut cleaner = Cleaner::default();
        let clean = cleaner.push(&raw).is_ok();
        if !clean || esm::sequence_hash(&cleaner.ids) != record.sequence_hash {
            return Err(self.changed(i));
        }
        Ok(cleaner.ids)
    }

    /// Reads record `i`'s cleaned sequence as letters.
    pub fn sequence(&self, i: usize) -> Result<String> {
        Ok(esm::decode(&self.esm_ids(i)?))
    }

    fn read(&self, offset: u64, bytes: u32) -> Result<Vec<u8>> {
        let mut buffer = vec![0; bytes as usize];
        match self.file.read_exact_at(&mut buffer, offset) {
            Ok(()) => Ok(buffer),
            Err(e) => Err(Error::read(&self.path, &e)),
        }
    }

    fn changed(&self, i: usize) -> Error {
        Error::data("the file has changed since it was indexed")
            .at(self.place(i))
            .hint("leave input files alone while they are in use, and run the command again")
    }

    /// The one pass over the file.
    fn scan(&mut self, mut reader: Box<dyn BufRead + Send>) -> Result<()> {
        let mut scan = Scan { path: self.path.clone(), ..Scan::default() };
        let mut line = Vec::new();
        loop {
            progress::tick()?;
            line.clear();
            let read = (&mut reader).take(LONGEST_LINE).read_until(b'\n', &mut line);
            match read.map_err(|e| read_failed(&self.path, &e))? {
                0 => break,
                _ => scan.line(&line)?,
            }
        }
        scan.close()?;
        if scan.records.is_empty() {
            return Err(Error::data("the file is empty: no record in it")
                .at(self.path.display())
                .hint("a FASTA record is a line `>id` and below it the sequence"));
        }
        if u32::try_from(scan.records.len()).is_err() {
            return Err(Error::data("more than 2^32 records").at(self.path.display()));
        }
        scan.records.shrink_to_fit();
        (self.records, self.counts) = (scan.records, scan.counts);
        Ok(())
    }

    /// Keeps the first of equal records; one id with two sequences is an error.
    fn drop_duplicates(&mut self) -> Result<()> {
        let hash = |i: u32| self.records[i as usize].id_hash;
        let mut order: Vec<u32> = (0..self.records.len() as u32).collect();
        order.sort_unstable_by_key(|i| (hash(*i), *i));
        let mut dropped = Vec::new();
        for group in order.chunk_by(|a, b| hash(*a) == hash(*b)).filter(|group| group.len() > 1) {
            progress::tick()?;
            self.compare(group, &mut dropped)?;
        }
        dropped.sort_unstable();
        self.counts.duplicates = dropped.len() as u64;
        let (mut i, mut next) = (0, dropped.into_iter().peekable());
        self.records.retain(|_| {
            i += 1;
            next.next_if_eq(&(i - 1)).is_none()
        });
        Ok(())
    }

    /// Looks at records whose ids have one hash, in the order of the file.
    fn compare(&self, group: &[u32], dropped: &mut Vec<u32>) -> Result<()> {
        let mut kept: Vec<(usize, String)> = Vec::new();
        for i in group.iter().map(|i| *i as usize) {
            let id = self.id(i)?;
            let Some((first, _)) = kept.iter().find(|(_, known)| *known == id) else {
                kept.push((i, id));
                continue;
            };
            let (a, b) = (&self.records[*first], &self.records[i]);
            let same =
                a.sequence_hash == b.sequence_hash && self.esm_ids(*first)? == self.esm_ids(i)?;
            if !same {
                let what = format!("id {id:?} had another sequence on line {}", a.line);
                return Err(Error::data(what)
                    .at(self.place(i))
                    .hint("give one of the two another id, or remove it"));
            }
            dropped.push(i as u32);
        }
        Ok(())
    }
}

/// The file to read by offset, and a reader over the same text from its start.
fn open(path: &Path, scratch: &Path) -> Result<(File, Box<dyn BufRead + Send>)> {
    let reader = files::open_text(path)?;
    let failed = |e| Error::read(path, &e);
    let mut file = File::open(path).map_err(failed)?;
    let mut head = Vec::new();
    (&mut file).take(2).read_to_end(&mut head).map_err(failed)?;
    if !files::is_gzip(&head) {
        return Ok((file, reader));
    }
    let file = unpack(path, reader, scratch)?;
    let again = file.try_clone().map_err(|e| Error::write(scratch, &e))?;
    Ok((file, Box::new(BufReader::with_capacity(1 << 20, again))))
}

/// Unpacks into a file in `scratch` that loses its name at once, so that nothing is left behind.
fn unpack(path: &Path, mut reader: Box<dyn BufRead + Send>, scratch: &Path) -> Result<File> {
    let failed = |e: io::Error| Error::write(scratch, &e);
    let name = files::temporary_name(&scratch.join(path.file_name().unwrap_or_default()));
    match fs::remove_file(&name) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(failed(e)),
        _ => {}
    }
    let mut options = OpenOptions::new();
    let mut file = options.read(true).write(true).create_new(true).open(&name).map_err(failed)?;
    fs::remove_file(&name).map_err(failed)?;
    loop {
        progress::tick()?;
        let part = reader.fill_buf().map_err(|e| read_failed(path, &e))?;
        if part.is_empty() {
            break;
        }
        file.write_all(part).map_err(failed)?;
        let used = part.len();
        reader.consume(used);
    }
    file.rewind().map_err(failed)?;
    Ok(file)
}

fn place(path: &Path, line: u64) -> String {
    format!("{}:{line}", path.display())
}

/// The id in a header line: what follows `>` up to the first white space.
fn first_word(header: &[u8]) -> &[u8] {
    let rest = header.strip_prefix(b">").unwrap_or_default();
    rest.split(u8::is_ascii_whitespace).next().unwrap_or_default()
}

/// The state of the pass.
#[derive(Default)]
struct Scan {
    path: PathBuf,
    line: u64,
    offset: u64,
    /// The record whose lines are being read, and its id for messages.
    current: Option<Record>,
    id: String,
    cleaner: Cleaner,
    records: Vec<Record>,
    counts: Counts,
}

impl Scan {
    fn error(&self, what: impl Into<String>) -> Error {
        Error::data(what).at(place(&self.path, self.line))
    }

    /// Takes the next line, its end included.
    fn line(&mut self, mut text: &[u8]) -> Result<()> {
        self.line += 1;
        if text.len() as u64 == LONGEST_LINE {
            return Err(self.error("a line of more than 64 MiB").hint("is this a text file?"));
        }
        if self.line == 1 && text.starts_with(b"\xef\xbb\xbf") {
            text = &text[3..];
            self.offset = 3;
        }
        if text.starts_with(b">") {
            self.close()?;
            self.header(text)?;
        } else if self.current.is_some() {
            self.letters(text)?;
        } else if !text.trim_ascii().is_empty() {
            return Err(self
                .error("text before the first record")
                .hint("a FASTA file starts with a line `>id`"));
        }
        self.offset += text.len() as u64;
        Ok(())
    }

    fn header(&mut self, text: &[u8]) -> Result<()> {
        let Ok(id) = std::str::from_utf8(first_word(text)) else {
            return Err(self.error("the id is not UTF-8 text").hint("write ids in plain ASCII"));
        };
        if id.is_empty() {
            return Err(self.error("empty id").hint("the id follows the `>` without a space"));
        }
        self.id.clear();
        self.id.push_str(id);
        self.current = Some(Record {
            offset: self.offset,
            line: self.line,
            id_hash: xxh3_64(id.as_bytes()),
            sequence_hash: 0,
            header: text.len() as u32,
            raw: 0,
            residues: 0,
        });
        Ok(())
    }

    fn letters(&mut self, text: &[u8]) -> Result<()> {
        let after_star = self.cleaner.star;
        if let Err(at) = self.cleaner.push(text) {
            let rest = String::from_utf8_lossy(&text[at..]);
            let c = rest.chars().next().unwrap_or_default();
            let id = &self.id;
            if after_star || self.cleaner.star {
                return Err(self
                    .error(format!("{c:?} after a `*` in the sequence of {id}"))
                    .hint("a `*` may stand at the end alone: cut the sequence there, or write X"));
            }
            return Err(esm::bad_letter(c, self.cleaner.ids.len() + 1)
                .at(id)
                .at(place(&self.path, self.line)));
        }
        let raw = self.current.as_ref().map_or(0, |r| u64::from(r.raw)) + text.len() as u64;
        let Ok(raw) = u32::try_from(raw) else {
            return Err(self.error(format!("the sequence of {} exceeds 4 GiB", self.id)));
        };
        if let Some(record) = &mut self.current {
            record.raw = raw;
        }
        Ok(())
    }

    /// Ends the record whose lines were being read.
    fn close(&mut self) -> Result<()> {
        let Some(mut record) = self.current.take() else { return Ok(()) };
        let cleaner = &mut self.cleaner;
        if cleaner.ids.is_empty() {
            return Err(Error::data(format!("{} has no sequence", self.id))
                .at(place(&self.path, record.line))
                .hint("remove the record, or give it a sequence"));
        }
        record.residues = cleaner.ids.len() as u32;
        record.sequence_hash = esm::sequence_hash(&cleaner.ids);
        self.counts.records += 1;
        self.counts.residues += u64::from(record.residues);
        self.counts.lower_case += u64::from(cleaner.lower);
        self.counts.stars += u64::from(cleaner.star);
        cleaner.clear();
        self.records.push(record);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::table::tests::{Scratch, real_files};
    use super::*;
    use proptest::prelude::*;

    fn index(dir: &Scratch, text: impl AsRef<[u8]>) -> Result<FastaIndex> {
        FastaIndex::open(&dir.file("x.fasta", text), &dir.0)
    }

    fn gzip(text: &[u8]) -> Vec<u8> {
        let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gz.write_all(text).unwrap();
        gz.finish().unwrap()
    }

    #[test]
    fn records_stay_small() {
        assert_eq!(size_of::<Record>(), 48);
    }

    #[test]
    fn ids_sequences_and_places() {
        let dir = Scratch::new("fasta-places");
        let text = "\u{feff}\n>sp|P1|A_B some words\r\nMk\r\nTA*\r\n\n>b\nACD EF\n>c\tx\n.-";
        let fasta = index(&dir, text.as_bytes()).unwrap();
        assert_eq!((fasta.len(), fasta.is_empty()), (3, false));
        assert_eq!(fasta.id(0).unwrap(), "sp|P1|A_B");
        assert_eq!(fasta.sequence(0).unwrap(), "MKTA");
        assert_eq!(fasta.sequence(1).unwrap(), "ACDEF");
        assert_eq!((fasta.id(2).unwrap(), fasta.sequence(2).unwrap()), ("c".into(), ".-".into()));
        assert!(fasta.place(1).ends_with("x.fasta:6"), "{}", fasta.place(1));
        assert_eq!(fasta.lengths().collect::<Vec<_>>(), [4, 5, 2]);
        assert_eq!(fasta.sequence_hash(1), esm::sequence_hash(&esm::encode("ACDEF").unwrap()));
        let expected = Counts { records: 3, residues: 11, lower_case: 1, stars: 1, duplicates: 0 };
        assert_eq!(fasta.counts(), expected);
        fn shared_by_threads<T: Send + Sync>(_: &T) {}
        shared_by_threads(&fasta);
    }

    #[test]
    fn what_is_wrong_is_named_with_its_line() {
        let dir = Scratch::new("fasta-wrong");
        let cases = [
            ("", "x.fasta: the file is empty"),
            ("\n \n", "x.fasta: the file is empty"),
            ("ACD\n>a\nACD\n", "x.fasta:1: text before the first record"),
            (">a\nACD\n>b\n\n>c\nACD\n", "x.fasta:3: b has no sequence"),
            (">a\nACD\n>b\n*\n", "x.fasta:3: b has no sequence"),
            (">a\nACD\n> b\nACD\n", "x.fasta:3: empty id"),
            (">a\nACD\n>\nACD\n", "x.fasta:3: empty id"),
            (">a\nACD\nACJ\n", "x.fasta:3: a: residue 6 is 'J'"),
            (">a\nAC\u{e9}\n", "x.fasta:2: a: residue 3 is 'é'"),
            (">a\nA1\n", "x.fasta:2: a: residue 2 is '1'"),
            (">a\nA*\nC\n", "x.fasta:3: 'C' after a `*` in the sequence of a"),
            (">a\nA**\n", "x.fasta:2: '*' after a `*`"),
            (">a\nACD\n>b\nA\n>a x\nACE\n", "x.fasta:5: id \"a\" had another sequence on line 1"),
        ];
        for (text, expected) in cases {
            let error = index(&dir, text).err().expect("it is refused");
            assert_eq!(error.code(), 3);
            assert!(error.to_string().contains(expected), "{text:?} gave {error}");
        }
        let error = index(&dir, b">\xff\xfe\nACD\n").err().unwrap().to_string();
        assert!(error.contains("x.fasta:1: the id is not UTF-8"), "{error}");
        let error = FastaIndex::open(&dir.0.join("none.fasta"), &dir.0).err().unwrap();
        assert_eq!(error.code(), 3);
    }

    #[test]
    fn equal_records_are_kept_once() {
        let dir = Scratch::new("fasta-equal");
        let fasta = index(&dir, b">a\nACD\n>b\nACD\n>a again\nac\nd*\n>c\nA\n>a\nACD\n").unwrap();
        assert_eq!(fasta.counts().duplicates, 2);
        let ids: Vec<String> = (0..fasta.len()).map(|i| fasta.id(i).unwrap()).collect();
        assert_eq!(ids, ["a", "b", "c"]);
    }

    /// Equal hashes alone make nothing equal.
    #[test]
    fn a_collision_of_hashes_is_no_duplicate() {
        let dir = Scratch::new("fasta-collision");
        let mut fasta = index(&dir, b">a\nACD\n>b\nACD\n").unwrap();
        let mut dropped = Vec::new();
        fasta.compare(&[0, 1], &mut dropped).unwrap();
        assert!(dropped.is_empty());
        fasta.records[1].id_hash = fasta.records[0].id_hash;
        assert!(fasta.id(1).err().unwrap().to_string().contains("has changed"));

        // One id, two sequences, one hash: the letters are compared.
        let mut fasta = index(&dir, b">a\nACD\n>b\nACE\n").unwrap();
        dir.file("x.fasta", b">a\nACD\n>a\nACE\n");
        fasta.records[1].id_hash = fasta.records[0].id_hash;
        fasta.records[1].sequence_hash = fasta.records[0].sequence_hash;
        assert!(fasta.compare(&[0, 1], &mut dropped).is_err() && dropped.is_empty());
    }

    #[test]
    fn gzip_leaves_nothing_behind() {
        let dir = Scratch::new("fasta-gzip");
        // Two members, as bgzip and `cat a.gz b.gz` make them.
        let both = [gzip(b">a\nACD\n"), gzip(b">b\nGGG\n")].concat();
        let fasta = index(&dir, &both).unwrap();
        assert_eq!(fasta.sequence(1).unwrap(), "GGG");
        assert_eq!(fs::read_dir(&dir.0).unwrap().count(), 1);

        let letters: String =
            (0..9999u32).map(|i| ['A', 'C', 'D'][(i * i % 7 % 3) as usize]).collect();
        let whole = gzip(format!(">a\n{letters}\n").as_bytes());
        for cut in [whole.len() / 2, whole.len() - 1, 12] {
            let error = index(&dir, &whole[..cut]).err().expect("it is refused");
            assert_eq!(error.code(), 3);
            let text = error.to_string();
            assert!(text.contains("x.fasta: the compressed file is cut short"), "{text}");
        }
        assert_eq!(fs::read_dir(&dir.0).unwrap().count(), 1);
        let path = dir.0.join("x.fasta");
        fs::write(&path, &whole).unwrap();
        let error = FastaIndex::open(&path, &dir.0.join("absent")).err().unwrap();
        assert_eq!(error.code(), 4, "{error}");
    }

    #[test]
    fn a_file_that_changes_is_noticed() {
        let dir = Scratch::new("fasta-changed");
        let fasta = index(&dir, b">a\nACD\n>b\nGGG\n").unwrap();
        let file = OpenOptions::new().write(true).open(dir.0.join("x.fasta")).unwrap();
        file.write_all_at(b"W", 4).unwrap();
        assert!(
            fasta.sequence(0).unwrap_err().to_string().contains("x.fasta:1: the file has changed")
        );
        assert_eq!(fasta.sequence(1).unwrap(), "GGG");
        file.set_len(9).unwrap();
        assert_eq!(fasta.sequence(1).unwrap_err().code(), 3);
    }

    #[test]
    fn swissprot() {
        let Some(folder) = real_files("fasta::swissprot") else { return };
        let dir = Scratch::new("fasta-swissprot");
        let path = folder.join("swissprot_yeast_ecoli_bsub.fasta");
        let started = std::time::Instant::now();
        let fasta = FastaIndex::open(&path, &dir.0).unwrap();
        println!("indexed in {:.3} s: {:?}", started.elapsed().as_secs_f64(), fasta.counts());
        assert_eq!(fasta.len() as u64 + fasta.counts().duplicates, 15_480);
        assert_eq!(fasta.counts().residues, 5_664_813);
        assert_eq!(fasta.lengths().max(), Some(5488));
        assert_eq!(fasta.id(0).unwrap(), "sp|Q04847|ROY1_YEAST");
        assert!(fasta.sequence(0).unwrap().starts_with("MAFQDQDIFIVFSHASL"));
    }

    /// One record as a user may have written it: id, sequence, line width, and habits.
    fn record() -> impl Strategy<Value = (String, usize, bool, bool, bool)> {
        ("[ACDEFGHIKLMNPQRSTVWY]{1,90}", 1usize..40, any::<bool>(), any::<bool>(), any::<bool>())
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn whatever_the_layout(
            records in prop::collection::vec(record(), 1..20), end_open: bool, packed: bool,
        ) {
            let dir = Scratch::new("fasta-layout");
            let mut text = String::new();
            for (i, (sequence, width, lower, star, crlf)) in records.iter().enumerate() {
                let end = if *crlf { "\r\n" } else { "\n" };
                text += &format!(">id{i} about{end}");
                let letters = if *lower { sequence.to_lowercase() } else { sequence.clone() };
                let letters = letters + if *star { "*" } else { "" };
                for part in letters.as_bytes().chunks(*width) {
                    text += std::str::from_utf8(part).unwrap();
                    text += end;
                }
            }
            let text = if end_open { text.trim_end() } else { &text };
            let bytes = if packed { gzip(text.as_bytes()) } else { text.as_bytes().to_vec() };
            let fasta = index(&dir, &bytes).unwrap();
            prop_assert_eq!(fasta.len(), records.len());
            for (i, (sequence, ..)) in records.iter().enumerate() {
                prop_assert_eq!(fasta.id(i).unwrap(), format!("id{i}"));
                prop_assert_eq!(&fasta.sequence(i).unwrap(), sequence);
                prop_assert_eq!(fasta.residues(i) as usize, sequence.len());
            }
        }

        #[test]
        fn no_bytes_make_it_panic(bytes in prop::collection::vec(
            prop_oneof![Just(b'>'), Just(b'\n'), Just(b'A'), Just(b'*'), any::<u8>()], 0..60,
        )) {
            let dir = Scratch::new("fasta-bytes");
            if let Ok(fasta) = index(&dir, &bytes) {
                for i in 0..fasta.len() {
                    fasta.id(i).unwrap();
                    fasta.esm_ids(i).unwrap();
                }
            }
        }
    }
}
