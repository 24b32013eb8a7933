//! CSV files (`.tsv` by name: tab-separated; either may be gzip) and the protein tables among them.
//!
//! Every row keeps its line, so that whatever is found wrong later can be told with its place. A
//! table has one of two shapes, told by its columns: finished sequences, or sites ([`labels`]).

use super::{labels, read_failed};
use crate::error::{Error, Result, nearest};
use crate::files;
use crate::progress;
use std::collections::{HashMap, HashSet};
use std::fmt;
use std::path::Path;
use std::sync::Arc;

/// The unmodified sequence, where a table has it.
pub const ORI_SEQ: &str = "ori_seq";
/// The seed's other name of the id column.
pub const AC_ID: &str = "AC_ID";

/// A line of a file, for messages.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    file: Arc<str>,
    /// The line, from 1.
    pub line: u64,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.file, self.line)
    }
}

/// A row's fields, as many as the table has columns.
pub struct Row {
    /// The line on which the row starts, from 1.
    pub line: u64,
    /// The fields.
    pub fields: csv::StringRecord,
}

/// A whole table in memory.
pub struct Table {
    file: Arc<str>,
    /// The names in the first line, without white space around them.
    pub columns: Vec<String>,
    /// The other rows; a table without any is refused.
    pub rows: Vec<Row>,
}

impl Table {
    /// The file as the user named it.
    pub fn file(&self) -> &str {
        &self.file
    }

    /// Where a row stands.
    pub fn place(&self, row: &Row) -> Place {
        Place { file: self.file.clone(), line: row.line }
    }

    /// The index of a column, if there is one of that name; two of that name are a data error.
    pub fn find(&self, name: &str) -> Result<Option<usize>> {
        let mut found = self.columns.iter().enumerate().filter(|(_, column)| *column == name);
        let first = found.next().map(|(i, _)| i);
        if found.next().is_some() {
            return Err(self.error(format!("two columns are called {name:?}")));
        }
        Ok(first)
    }

    /// The index of a column that must be there; the data error names the columns there are.
    pub fn column(&self, name: &str) -> Result<usize> {
        self.find(name)?.ok_or_else(|| self.missing(name))
    }

    /// An error about the line of column names.
    fn error(&self, what: impl Into<String>) -> Error {
        Error::data(what).at(format!("{}:1", self.file))
    }

    fn missing(&self, name: &str) -> Error {
        let error =
            self.error(format!("no column {name:?}; the columns are {}", self.columns.join(", ")));
        match nearest(name, self.columns.iter().map(String::as_str)) {
            Some(near) => error.hint(format!("did you mean {near:?}?")),
            None => error.hint("name the column in the dataset section of the configuration"),
        }
    }
}

/// A row's field without white space around it; an empty one is a data error that names the column.
pub(super) fn filled<'a>(table: &'a Table, row: &'a Row, column: usize) -> Result<&'a str> {
    let field = row.fields.get(column).unwrap_or_default().trim();
    if field.is_empty() {
        let what = format!("{} is empty", table.columns[column]);
        return Err(Error::data(what).at(table.place(row)).hint("fill it in or remove the row"));
    }
    Ok(field)
}

/// Reads a whole CSV or TSV file. No row, rows of unequal length and text that is not UTF-8 are
/// data errors with file and line.
pub fn read_table(path: &Path) -> Result<Table> {
    let name = path.to_string_lossy().to_ascii_lowercase();
    let tabs = name.trim_end_matches(".gz").ends_with(".tsv");
    let mut reader = csv::ReaderBuilder::new()
        .delimiter(if tabs { b'\t' } else { b',' })
        .from_reader(files::open_text(path)?);
    let columns: Vec<String> = match reader.headers() {
        Ok(columns) => columns.iter().map(|c| c.trim().to_string()).collect(),
        Err(error) => return Err(csv_error(path, error)),
    };
    if columns.is_empty() {
        return Err(Error::data("the file is empty").at(path.display()));
    }
    let mut rows = Vec::new();
    for fields in reader.into_records() {
        progress::tick()?;
        let fields = fields.map_err(|e| csv_error(path, e))?;
        let line = fields.position().map_or(0, csv::Position::line);
        rows.push(Row { line, fields });
    }
    if rows.is_empty() {
        return Err(Error::data("no row below the column names").at(path.display()));
    }
    Ok(Table { file: path.display().to_string().into(), columns, rows })
}

fn csv_error(path: &Path, error: csv::Error) -> Error {
    let line = error.position().map_or(1, csv::Position::line);
    let what = match error.into_kind() {
        csv::ErrorKind::Io(error) => return read_failed(path, &error),
        csv::ErrorKind::UnequalLengths { expected_len, len, .. } => {
            format!("the row has {len} fields, the column names are {expected_len}")
        }
        csv::ErrorKind::Utf8 { .. } => "the row is not UTF-8 text".to_string(),
        _ => "the row is not CSV".to_string(),
    };
    Error::data(what)
        .at(format!("{}:{line}", path.display()))
        .hint("fields with commas stand in double quotes; save the file as CSV in UTF-8")
}

/// Which columns hold what (`dataset.sequence_column_name`, `dataset.id_column_name`).
#[derive(Clone, Debug)]
pub struct Columns {
    /// The sequence with its modifications written in, `<Phosphoserine>` and so on.
    pub sequence: String,
    /// The id; where there is no such column, `AC_ID`, and else the number of the row from 0.
    pub id: String,
}

/// What a table holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// A row is a protein with its modifications written into the sequence.
    Proteins,
    /// A row is one modified site of a protein: `AC_ID,pos,token`.
    Labels,
}

/// Tells the shape by the columns. Neither is a data error about the sequence column.
pub fn detect(table: &Table, columns: &Columns) -> Result<Shape> {
    if table.find(&columns.sequence)?.is_some() {
        return Ok(Shape::Proteins);
    }
    for name in [AC_ID, labels::POS, labels::TOKEN] {
        if table.find(name)?.is_none() {
            return Err(table.missing(&columns.sequence));
        }
    }
    Ok(Shape::Labels)
}

/// One protein as the user gave it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProteinRecord {
    /// Its id, unique among those kept.
    pub id: String,
    /// Where it was read: its row, or the first of its sites.
    pub place: Place,
    /// The sequence with its modifications written in.
    pub ptm_seq: String,
    /// The sequence without them, where the user gave it.
    pub ori_seq: Option<String>,
}

/// The proteins of a file, with what a person should know about how they were read.
#[derive(Clone, Debug)]
pub struct Proteins {
    /// In the order of the file, ids and sequences each once.
    pub records: Vec<ProteinRecord>,
    /// Records left out because an earlier one has the same sequence.
    pub duplicates: usize,
    /// Sentences to print.
    pub notes: Vec<String>,
}

/// Reads the proteins of a file of either shape. `sequences` is where a table of sites without
/// `ori_seq` finds its sequences, `scratch` where that file is unpacked if it is a gzip.
pub fn read_proteins(
    path: &Path,
    columns: &Columns,
    sequences: Option<&Path>,
    scratch: &Path,
) -> Result<Proteins> {
    let table = read_table(path)?;
    match detect(&table, columns)? {
        Shape::Proteins => proteins(&table, columns),
        Shape::Labels => labels::proteins(&table, sequences, scratch),
    }
}

/// The proteins of a table with a sequence column.
pub fn proteins(table: &Table, columns: &Columns) -> Result<Proteins> {
    let sequence = table.column(&columns.sequence)?;
    let original = table.find(ORI_SEQ)?.filter(|column| *column != sequence);
    let mut notes = Vec::new();
    let id = id_column(table, columns, &mut notes)?;
    let mut records = Vec::with_capacity(table.rows.len());
    for (i, row) in table.rows.iter().enumerate() {
        progress::tick()?;
        records.push(ProteinRecord {
            id: match id {
                Some(column) => filled(table, row, column)?.to_string(),
                None => i.to_string(),
            },
            place: table.place(row),
            ptm_seq: filled(table, row, sequence)?.to_string(),
            ori_seq: original.map(|c| filled(table, row, c).map(str::to_string)).transpose()?,
        });
    }
    without_duplicates(records, notes)
}

/// The column of ids, or none where rows are numbered instead; a substitute is noted.
fn id_column(table: &Table, columns: &Columns, notes: &mut Vec<String>) -> Result<Option<usize>> {
    let file = table.file();
    if let Some(column) = table.find(&columns.id)? {
        return Ok(Some(column));
    }
    let found = table.find(AC_ID)?;
    notes.push(match found {
        Some(_) => format!("{file}: no column {:?}; ids are taken from {AC_ID}", columns.id),
        None => format!("{file}: no column {:?}; ids are the row numbers, from 0", columns.id),
    });
    Ok(found)
}

/// Keeps the first of records with the same `ptm_seq`; one id with two sequences is an error.
pub(super) fn without_duplicates(
    records: Vec<ProteinRecord>,
    mut notes: Vec<String>,
) -> Result<Proteins> {
    let mut by_id: HashMap<&str, &ProteinRecord> = HashMap::with_capacity(records.len());
    let mut sequences: HashSet<&str> = HashSet::with_capacity(records.len());
    let mut first = Vec::with_capacity(records.len());
    for record in &records {
        let known = by_id.entry(&record.id).or_insert(record);
        if known.ptm_seq != record.ptm_seq {
            let (id, line) = (&record.id, known.place.line);
            return Err(Error::data(format!("id {id:?} had another sequence on line {line}"))
                .at(&record.place)
                .hint("give one of the two another id, or remove it"));
        }
        first.push(sequences.insert(&record.ptm_seq));
    }
    let before = records.len();
    let mut first = first.into_iter();
    let records: Vec<ProteinRecord> =
        records.into_iter().filter(|_| first.next().unwrap_or_default()).collect();
    let duplicates = before - records.len();
    if duplicates > 0 {
        notes.push(format!(
            "{duplicates} of {before} records repeat an earlier sequence and are left out"
        ));
    }
    Ok(Proteins { records, duplicates, notes })
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::path::PathBuf;

    /// A directory of its own for a test, removed at the end.
    pub struct Scratch(pub PathBuf);

    impl Scratch {
        pub fn new(name: &str) -> Scratch {
            let name = format!("trainer-table-{name}-{}", std::process::id());
            let dir = std::env::temp_dir().join(name);
            std::fs::create_dir_all(&dir).unwrap();
            Scratch(dir)
        }

        pub fn file(&self, name: &str, text: impl AsRef<[u8]>) -> PathBuf {
            std::fs::write(self.0.join(name), text).unwrap();
            self.0.join(name)
        }
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }

    /// The folder of real files, if the environment names it.
    pub fn real_files(test: &str) -> Option<PathBuf> {
        let folder = std::env::var_os("TRAINER_DATA").map(PathBuf::from);
        if folder.is_none() {
            eprintln!("SKIPPED {test}: TRAINER_DATA does not say where the real files are");
        }
        folder
    }

    pub fn columns() -> Columns {
        Columns { sequence: "ptm_seq".into(), id: "unique_id".into() }
    }

    fn read(dir: &Scratch, text: &str) -> Result<Proteins> {
        read_proteins(&dir.file("x.csv", text), &columns(), None, &dir.0)
    }

    fn refusal(dir: &Scratch, text: &str) -> String {
        let error = read(dir, text).expect_err("it is refused");
        assert_eq!(error.code(), 3, "{error}");
        error.to_string()
    }

    #[test]
    fn records_keep_their_lines() {
        let dir = Scratch::new("lines");
        let text = "\u{feff}unique_id,note,ptm_seq ,ori_seq\n\
                    a,\"two\nlines\", MK<Phosphoserine> ,MKS\nb,,ACD,ACD\nc,,ACD,ACD\n";
        let proteins = read(&dir, text).unwrap();
        assert_eq!(proteins.records.len(), 2);
        assert_eq!((proteins.duplicates, proteins.notes.len()), (1, 1));
        let (a, b) = (&proteins.records[0], &proteins.records[1]);
        assert_eq!((a.id.as_str(), a.ptm_seq.as_str()), ("a", "MK<Phosphoserine>"));
        assert_eq!(a.ori_seq.as_deref(), Some("MKS"));
        assert_eq!((a.place.line, b.place.line), (2, 4));
        assert!(b.place.to_string().ends_with("x.csv:4"));
    }

    #[test]
    fn ids_fall_back_as_upstream_and_say_so() {
        let dir = Scratch::new("ids");
        let proteins = read(&dir, "AC_ID,ptm_seq\nP1,ACD\n").unwrap();
        assert_eq!((proteins.records[0].id.as_str(), proteins.notes.len()), ("P1", 1));
        let proteins = read(&dir, "ptm_seq\nACD\nACD\nMK\n").unwrap();
        assert_eq!(proteins.records[1].id, "2");
        assert!(proteins.notes[0].contains("row numbers"), "{:?}", proteins.notes);
    }

    #[test]
    fn what_is_wrong_is_named_with_its_line() {
        let dir = Scratch::new("wrong");
        let cases = [
            ("", "x.csv: the file is empty"),
            ("unique_id,ptm_seq\n", "x.csv: no row below"),
            (
                "unique_id,ptmseq\na,ACD\n",
                "x.csv:1: no column \"ptm_seq\"; the columns are unique_id, ptmseq",
            ),
            ("unique_id,ptmseq\na,ACD\n", "did you mean \"ptmseq\"?"),
            ("unique_id,ptm_seq,ptm_seq\na,ACD,ACD\n", "x.csv:1: two columns are called"),
            ("unique_id,ptm_seq\na,ACD\nb\n", "x.csv:3: the row has 1 fields"),
            ("unique_id,ptm_seq\na,ACD\n ,MK\n", "x.csv:3: unique_id is empty"),
            ("unique_id,ptm_seq\na,\n", "x.csv:2: ptm_seq is empty"),
            (
                "unique_id,ptm_seq\na,ACD\nb,MK\na,MKV\n",
                "x.csv:4: id \"a\" had another sequence on line 2",
            ),
            (
                "unique_id,ptm_seq\na,ACD\nb,ACD\nb,MKV\n",
                "x.csv:4: id \"b\" had another sequence on line 3",
            ),
        ];
        for (text, expected) in cases {
            let refusal = refusal(&dir, text);
            assert!(refusal.contains(expected), "{text:?} gave {refusal}");
        }
        let path = dir.file("y.csv", b"unique_id,ptm_seq\na,AC\xff\n");
        let error = read_table(&path).err().unwrap().to_string();
        assert!(error.contains("y.csv:2: the row is not UTF-8"), "{error}");
    }

    #[test]
    fn gzip_and_tabs() {
        use std::io::Write;
        let dir = Scratch::new("gzip");
        let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gz.write_all(b"unique_id\tptm_seq\na,b\tACD\n").unwrap();
        let bytes = gz.finish().unwrap();
        let path = dir.file("x.tsv.gz", &bytes);
        assert_eq!(proteins(&read_table(&path).unwrap(), &columns()).unwrap().records[0].id, "a,b");
        for cut in [9, 1] {
            let path = dir.file("y.tsv.gz", &bytes[..bytes.len() - cut]);
            let error = read_table(&path).err().unwrap();
            assert_eq!(error.code(), 3);
            assert!(error.to_string().contains("y.tsv.gz: the compressed file is cut"), "{error}");
        }
    }

    #[test]
    fn shapes() {
        let dir = Scratch::new("shapes");
        let shape = |text: &str| detect(&read_table(&dir.file("x.csv", text)).unwrap(), &columns());
        assert_eq!(shape("unique_id,ptm_seq\na,b\n").unwrap(), Shape::Proteins);
        assert_eq!(shape("AC_ID,pos,token\na,1,b\n").unwrap(), Shape::Labels);
        assert_eq!(shape("AC_ID,pos\na,1\n").unwrap_err().code(), 3);
    }

    #[test]
    fn swissprot() {
        let Some(folder) = real_files("table::swissprot") else { return };
        let path = folder.join("ptm_swissprot_yeast_bsub.csv");
        let proteins = read_proteins(&path, &columns(), None, Path::new("/")).unwrap();
        assert_eq!(proteins.records.len() + proteins.duplicates, 3004);
        assert_eq!(proteins.records.len(), 2903);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn the_first_of_equals_stays(sequences in prop::collection::vec("[AC]{1,3}", 1..40)) {
            let dir = Scratch::new("first");
            let rows: String =
                sequences.iter().enumerate().map(|(i, s)| format!("id{i},{s}\n")).collect();
            let proteins = read(&dir, &format!("unique_id,ptm_seq\n{rows}")).unwrap();
            let mut expected: Vec<(String, &String)> = Vec::new();
            for (i, s) in sequences.iter().enumerate() {
                if !expected.iter().any(|(_, known)| *known == s) {
                    expected.push((format!("id{i}"), s));
                }
            }
            prop_assert_eq!(proteins.duplicates, sequences.len() - expected.len());
            let found: Vec<(String, &String)> =
                proteins.records.iter().map(|r| (r.id.clone(), &r.ptm_seq)).collect();
            prop_assert_eq!(found, expected);
        }
    }
}
