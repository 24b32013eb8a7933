//! Reads a table row by row, in memory that does not depend on its length: CSV with commas,
//! semicolons or tabs, any of them gzipped.

use crate::data::read_failed;
use crate::error::{Error, Result};
use crate::files;
use crate::progress;
use csv::{Position, StringRecord};
use std::io::BufRead;
use std::path::{Path, PathBuf};

const DELIMITERS: [u8; 3] = [b',', b';', b'\t'];
/// Rows between two signs of life.
const TICK: u64 = 512;

/// A table that is being read.
pub struct TableReader {
    path: PathBuf,
    csv: csv::Reader<Box<dyn BufRead + Send>>,
    /// The first line's fields.
    pub headers: StringRecord,
    /// What parts fields.
    pub delimiter: u8,
    most: u64,
    row: u64,
    /// The csv crate counts a line at its `\n`, which it leaves to the next record behind a `\r`.
    behind: u64,
    /// The line of the last row, if its last field took the end of its line in.
    open_quote: Option<u64>,
}

/// Which row a record is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Its number, from 1; the line of column names does not count.
    pub row: u64,
    /// The line of the file on which it begins, from 1.
    pub line: u64,
}

impl TableReader {
    /// Opens a table and reads its column names; at most `most` rows will be read.
    pub fn open(path: &Path, most: Option<usize>) -> Result<TableReader> {
        let mut text = files::open_text(path)?;
        let (delimiter, behind) = {
            let head = text.fill_buf().map_err(|e| read_failed(path, &e))?;
            recognised(path, head)?;
            (delimiter(head), u64::from(has_windows_ends(head)))
        };
        let mut csv =
            csv::ReaderBuilder::new().delimiter(delimiter).flexible(true).from_reader(text);
        let headers = match csv.headers() {
            Ok(headers) => headers.clone(),
            Err(error) => return Err(csv_failed(path, error)),
        };
        if headers.is_empty() {
            return Err(Error::data("the file is empty").at(path.display()));
        }
        if headers.iter().all(|header| header.trim().parse::<f64>().is_ok()) {
            return Err(Error::data("the first line holds numbers, not column names")
                .at(format!("{}:1", path.display()))
                .hint("give the table a first line with the names of its columns"));
        }
        let most = most.map_or(u64::MAX, |most| most as u64);
        Ok(TableReader {
            path: path.to_path_buf(),
            csv,
            headers,
            delimiter,
            most,
            row: 0,
            behind,
            open_quote: None,
        })
    }

    /// The file as the user named it.
    pub fn file(&self) -> String {
        self.path.display().to_string()
    }

    /// Reads the next row into `record`; None at the end. A row of another length than the column
    /// names, and text that is not UTF-8, are data errors with file and line.
    pub fn read(&mut self, record: &mut StringRecord) -> Result<Option<Place>> {
        if self.row.is_multiple_of(TICK) {
            progress::tick()?;
        }
        if self.row == self.most {
            return Ok(None);
        }
        match self.csv.read_record(record) {
            Ok(true) => {}
            Ok(false) => match self.open_quote {
                None => return Ok(None),
                Some(line) => {
                    return Err(Error::data("a double quote opens in this row and is not closed")
                        .at(format!("{}:{line}", self.path.display()))
                        .hint(
                            "all rows below it are taken for one field: close it, or take it out",
                        ));
                }
            },
            Err(error) => return Err(csv_failed(&self.path, error)),
        }
        self.row += 1;
        let line = record.position().map_or(0, Position::line) + self.behind;
        if record.len() != self.headers.len() {
            return Err(self.wrong_length(record, line));
        }
        let last = record.get(record.len() - 1).unwrap_or_default();
        self.open_quote = last.ends_with('\n').then_some(line);
        Ok(Some(Place { row: self.row, line }))
    }

    fn wrong_length(&self, record: &StringRecord, line: u64) -> Error {
        let (found, wanted) = (record.len(), self.headers.len());
        let place = format!("{}:{line}", self.path.display());
        let other = DELIMITERS.into_iter().filter(|d| *d != self.delimiter).find(|other| {
            let more: usize =
                record.iter().map(|field| field.bytes().filter(|b| b == other).count()).sum();
            found < wanted && more > 0 && more + 1 >= wanted - found
        });
        match other {
            Some(other) => Error::data(format!(
                "the fields of this row are parted by {}, those of the first line by {}",
                delimiter_name(other),
                delimiter_name(self.delimiter)
            ))
            .at(place)
            .hint("save the table with one delimiter throughout"),
            None => {
                Error::data(format!("the row has {found} fields, the column names are {wanted}"))
                    .at(place)
                    .hint("fields that hold a delimiter stand in double quotes")
            }
        }
    }
}

/// Refuses what is no text in UTF-8 by its first bytes.
fn recognised(path: &Path, head: &[u8]) -> Result<()> {
    let (what, hint) = if head.starts_with(b"PK\x03\x04") {
        ("this is a spreadsheet or zip file, not text", "save the sheet as CSV (UTF-8)")
    } else if head.starts_with(b"\xff\xfe") || head.starts_with(b"\xfe\xff") {
        ("this text is UTF-16", "save it as UTF-8: `iconv -f UTF-16 -t UTF-8 OLD > NEW`")
    } else if head.starts_with(b"\x80") {
        (
            "this is a Python pickle, which is not read",
            "in Python: pandas.read_pickle(OLD).to_csv(NEW, index=False)",
        )
    } else {
        return Ok(());
    };
    let error = if head[0] == 0x80 { Error::damaged(what) } else { Error::data(what) };
    Err(error.at(path.display()).hint(hint))
}

/// The delimiter that the first line holds most of, outside quotes; a comma where it holds none.
fn delimiter(head: &[u8]) -> u8 {
    let mut counts = [0usize; 3];
    let mut quoted = false;
    for byte in head {
        match byte {
            b'"' => quoted = !quoted,
            b'\n' | b'\r' if !quoted => break,
            _ if quoted => {}
            _ => {
                if let Some(i) = DELIMITERS.iter().position(|d| d == byte) {
                    counts[i] += 1;
                }
            }
        }
    }
    // The first of equals is the commonest in practice.
    let most = counts.iter().max().copied().unwrap_or(0);
    counts.iter().position(|n| *n == most).map_or(b',', |i| DELIMITERS[i])
}

/// Whether the first line ends with `\r\n`.
fn has_windows_ends(head: &[u8]) -> bool {
    let end = head.iter().position(|b| *b == b'\n');
    end.is_some_and(|end| end > 0 && head[end - 1] == b'\r')
}

fn delimiter_name(delimiter: u8) -> &'static str {
    match delimiter {
        b';' => "semicolons",
        b'\t' => "tabs",
        _ => "commas",
    }
}

fn csv_failed(path: &Path, error: csv::Error) -> Error {
    let line = error.position().map_or(1, Position::line);
    let what = match error.into_kind() {
        csv::ErrorKind::Io(error) => return read_failed(path, &error),
        csv::ErrorKind::Utf8 { .. } => "the row is not UTF-8 text",
        _ => "the row is not CSV",
    };
    Error::data(what)
        .at(format!("{}:{line}", path.display()))
        .hint("save the table as CSV in UTF-8: `iconv -f LATIN1 -t UTF-8 OLD > NEW`")
}

#[cfg(test)]
mod tests {
    use super::super::fixtures::Scratch;
    use super::*;
    use std::io::Write;

    fn all(path: &Path) -> Result<(Vec<Vec<String>>, Vec<u64>)> {
        let mut reader = TableReader::open(path, None)?;
        let mut record = StringRecord::new();
        let (mut rows, mut lines) = (Vec::new(), Vec::new());
        rows.push(reader.headers.iter().map(String::from).collect());
        while let Some(place) = reader.read(&mut record)? {
            assert_eq!(place.row, rows.len() as u64);
            rows.push(record.iter().map(String::from).collect());
            lines.push(place.line);
        }
        Ok((rows, lines))
    }

    #[test]
    fn delimiters_line_ends_and_marks_mean_nothing() {
        let dir = Scratch::new("delimiters");
        let plain = "FORMULA,x y,z\nAl1,\"a\nb\",1\nCo1,c,2\n";
        let expected = all(&dir.file("plain.csv", plain)).unwrap();
        assert_eq!(expected.1, [2, 4]);
        let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gz.write_all(plain.as_bytes()).unwrap();
        let zipped = gz.finish().unwrap();
        for (name, bytes) in [
            ("semicolons", plain.replace(',', ";").into_bytes()),
            ("tabs", plain.replace(',', "\t").into_bytes()),
            ("mark", format!("\u{feff}{plain}").into_bytes()),
            ("gz", zipped.clone()),
        ] {
            assert_eq!(all(&dir.file(name, bytes)).unwrap(), expected, "{name}");
        }
        let windows = all(&dir.file("windows", plain.replace('\n', "\r\n"))).unwrap();
        assert_eq!(windows.0[2], expected.0[2]);
        assert_eq!(windows.1, [2, 4]);
        let error = all(&dir.file("cut.gz", &zipped[..zipped.len() - 9])).unwrap_err();
        assert!(error.to_string().contains("cut short or damaged"), "{error}");
    }

    #[test]
    fn what_is_wrong_is_named_with_its_line() {
        let dir = Scratch::new("reader");
        let cases: [(&[u8], i32, &str); 10] = [
            (b"", 3, "t.csv: the file is empty"),
            (b"a,b\n1,2\n1;2\n", 3, "t.csv:3: the fields of this row are parted by semicolons"),
            (
                b"a;b;c\n1;2;3\n1,2,3\n",
                3,
                "t.csv:3: the fields of this row are parted by commas, those of the first line by semicolons",
            ),
            (b"a,b,c\n1,2\n", 3, "t.csv:2: the row has 2 fields, the column names are 3"),
            (
                b"a,b\n1,\"2\n3,4\n",
                3,
                "t.csv:2: a double quote opens in this row and is not closed",
            ),
            (b"a,b\n1,2,3\n", 3, "t.csv:2: the row has 3 fields"),
            (b"a,b\n1,\xb5m\n", 3, "t.csv:2: the row is not UTF-8 text"),
            (b"1,2.5\n1,2\n", 3, "t.csv:1: the first line holds numbers"),
            (b"\xff\xfea\0", 3, "t.csv: this text is UTF-16"),
            (b"\x80\x04\x95", 5, "to_csv(NEW, index=False)"),
        ];
        for (bytes, code, expected) in cases {
            let error = all(&dir.file("t.csv", bytes)).unwrap_err();
            assert_eq!(error.code(), code, "{error}");
            assert!(error.to_string().contains(expected), "{error}");
        }
    }

    #[test]
    fn only_the_first_rows() {
        let dir = Scratch::new("alloy-first");
        let mut reader =
            TableReader::open(&dir.file("t.csv", "a,b\n1,2\n3,4\n5,6\n"), Some(2)).unwrap();
        let mut record = StringRecord::new();
        let mut n = 0;
        while reader.read(&mut record).unwrap().is_some() {
            n += 1;
        }
        assert_eq!(n, 2);
    }
}
