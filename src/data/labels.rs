//! The table of modified sites (`AC_ID,pos,token`, one row a site) and its join with sequences.
//!
//! `pos` counts residues from 0, as upstream's `ptm_labels.csv` does. The sequences are the table's
//! own `ori_seq` column, or a second file: a CSV with an id and `ori_seq`, or a FASTA.

use super::fasta::FastaIndex;
use super::table::{
    AC_ID, ORI_SEQ, ProteinRecord, Proteins, Row, Table, filled, read_table, without_duplicates,
};
use super::{esm_alphabet, is_fasta, ptm_vocab};
use crate::error::{Error, Result};
use crate::progress;
use std::collections::{BTreeMap, HashMap};
use std::path::Path;

/// The column of positions, from 0.
pub const POS: &str = "pos";
/// The column of PTM tokens, `<Phosphoserine>` and so on.
pub const TOKEN: &str = "token";

/// One protein's sites: position to (token id, line).
#[derive(Default)]
struct Sites<'a> {
    id: &'a str,
    rows: Vec<&'a Row>,
    tokens: BTreeMap<usize, (u8, u64)>,
    ori_seq: Option<String>,
}

/// The proteins of a table of sites, in the order of their first site. Equal rows count once.
/// Positions outside the sequence, unknown tokens, a second token on one residue and ids without a
/// sequence are data errors with file and line. A gzip of `sequences` is unpacked in `scratch`.
pub fn proteins(table: &Table, sequences: Option<&Path>, scratch: &Path) -> Result<Proteins> {
    let mut groups = group(table)?;
    let mut notes = Vec::new();
    let own = match sequences {
        None => Some(table.column(ORI_SEQ).map_err(|error| {
            error.hint("sites alone are not enough: name a CSV or FASTA with the sequences")
        })?),
        Some(path) => {
            let unused = join(&mut groups, path, scratch)?;
            if unused > 0 {
                let path = path.display();
                notes.push(format!("{path}: {unused} sequences have no site and are left out"));
            }
            None
        }
    };
    let mut repeated = 0;
    let mut records = Vec::with_capacity(groups.len());
    for mut sites in groups {
        progress::tick()?;
        if let Some(column) = own {
            sites.ori_seq = Some(own_sequence(table, &sites, column)?);
        }
        let ori_seq = sites.ori_seq.take().ok_or_else(|| no_sequence(table, &sites, sequences))?;
        repeated += fill(table, &mut sites, &ori_seq)?;
        records.push(ProteinRecord {
            id: sites.id.to_string(),
            place: table.place(sites.rows[0]),
            ptm_seq: substitute(&ori_seq, &sites.tokens),
            ori_seq: Some(ori_seq),
        });
    }
    if repeated > 0 {
        notes.push(format!("{}: {repeated} rows repeat an earlier one", table.file()));
    }
    without_duplicates(records, notes)
}

/// The rows of each protein, proteins in the order of their first row.
fn group(table: &Table) -> Result<Vec<Sites<'_>>> {
    let column = table.column(AC_ID)?;
    let mut groups: Vec<Sites> = Vec::new();
    let mut known: HashMap<&str, usize> = HashMap::new();
    for row in &table.rows {
        let id = filled(table, row, column)?;
        let group = *known.entry(id).or_insert_with(|| {
            groups.push(Sites { id, ..Sites::default() });
            groups.len() - 1
        });
        groups[group].rows.push(row);
    }
    Ok(groups)
}

/// The one sequence that a protein's rows all carry.
fn own_sequence(table: &Table, sites: &Sites, column: usize) -> Result<String> {
    let first = filled(table, sites.rows[0], column)?;
    for row in &sites.rows {
        if filled(table, row, column)? != first {
            let line = sites.rows[0].line;
            let what = format!("id {:?} had another {ORI_SEQ} on line {line}", sites.id);
            return Err(Error::data(what).at(table.place(row)));
        }
    }
    for (i, byte) in first.bytes().enumerate() {
        if esm_alphabet::id(byte).is_none() {
            let c = first[i..].chars().next().unwrap_or_default();
            return Err(esm_alphabet::bad_letter(c, i + 1)
                .at(ORI_SEQ)
                .at(table.place(sites.rows[0])));
        }
    }
    Ok(first.to_string())
}

fn no_sequence(table: &Table, sites: &Sites, sequences: Option<&Path>) -> Error {
    let file = sequences.unwrap_or(Path::new(ORI_SEQ)).display();
    Error::data(format!("no sequence of {:?} in {file}", sites.id))
        .at(table.place(sites.rows[0]))
        .hint(
            "the ids of both files must be the same; a FASTA header sp|P12345|NAME is also P12345",
        )
}

/// Reads the sites of one protein; returns how many rows repeat an earlier one.
fn fill(table: &Table, sites: &mut Sites, ori_seq: &str) -> Result<usize> {
    let (pos, token) = (table.column(POS)?, table.column(TOKEN)?);
    let mut repeated = 0;
    for row in &sites.rows {
        let place = table.place(row);
        let text = filled(table, row, pos)?;
        let Some(at) = text.parse::<usize>().ok().filter(|at| *at < ori_seq.len()) else {
            let n = ori_seq.len();
            let what = format!("{POS} is {text:?}, but {:?} has {n} residues", sites.id);
            return Err(Error::data(what)
                .at(place)
                .hint(format!("positions are whole numbers from 0 to {}", n - 1)));
        };
        let id = ptm_vocab::ptm_id(filled(table, row, token)?).map_err(|e| e.at(&place))?;
        match sites.tokens.insert(at, (id, row.line)) {
            None => {}
            Some((known, _)) if known == id => repeated += 1,
            Some((known, line)) => {
                let known = ptm_vocab::TOKENS[usize::from(known)];
                let what = format!("residue {at} of {:?} carries {known} by line {line}", sites.id);
                return Err(Error::data(what).at(place).hint("a residue has one modification"));
            }
        }
    }
    Ok(repeated)
}

/// The sequence with its modifications written in. Residues are single bytes, checked before.
fn substitute(ori_seq: &str, tokens: &BTreeMap<usize, (u8, u64)>) -> String {
    let mut text = String::with_capacity(ori_seq.len() + 24 * tokens.len());
    let mut done = 0;
    for (at, (token, _)) in tokens {
        text.push_str(&ori_seq[done..*at]);
        text.push_str(ptm_vocab::TOKENS[usize::from(*token)]);
        done = at + 1;
    }
    text + &ori_seq[done..]
}

/// Gives every protein its sequence from another file; returns how many of that file nobody wants.
fn join(groups: &mut [Sites], path: &Path, scratch: &Path) -> Result<usize> {
    let mut wanted: HashMap<&str, usize> = HashMap::new();
    for (i, sites) in groups.iter().enumerate() {
        wanted.insert(sites.id, i);
    }
    let mut unused = 0;
    let mut offer = |id: &str, place: String, read: &dyn Fn() -> Result<String>| -> Result<()> {
        let Some(group) = wanted.get(id).or_else(|| wanted.get(accession(id)?)) else {
            unused += 1;
            return Ok(());
        };
        let sequence = read().map_err(|e| e.at(&place))?;
        let sites = &mut groups[*group];
        if sites.ori_seq.as_ref().is_some_and(|known| *known != sequence) {
            let what = format!("a second, different sequence of {:?}", sites.id);
            return Err(Error::data(what).at(place).hint("leave one of them in the file"));
        }
        sites.ori_seq = Some(sequence);
        Ok(())
    };
    if is_fasta(path)? {
        let index = FastaIndex::open(path, scratch)?;
        for i in 0..index.len() {
            offer(&index.id(i)?, index.place(i), &|| index.sequence(i))?;
        }
    } else {
        let table = read_table(path)?;
        let names = [AC_ID, "unique_id", "id"];
        let id = names.iter().find_map(|name| table.find(name).transpose()).transpose()?;
        let id = id.map_or_else(|| table.column(AC_ID), Ok)?;
        let column = table.column(ORI_SEQ)?;
        for row in &table.rows {
            let read = || {
                let sequence = filled(&table, row, column)?;
                esm_alphabet::encode(sequence).map(|_| sequence.to_string())
            };
            offer(filled(&table, row, id)?, table.place(row).to_string(), &read)?;
        }
    }
    Ok(unused)
}

/// UniProt's accession in an id of the form `sp|P12345|NAME`.
fn accession(id: &str) -> Option<&str> {
    let mut parts = id.split('|');
    match (parts.next(), parts.next(), parts.next(), parts.next()) {
        (Some("sp" | "tr"), Some(accession), Some(_), None) => Some(accession),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::super::table::read_proteins;
    use super::super::table::tests::{Scratch, columns, real_files};
    use super::*;
    use proptest::prelude::*;

    const SEQUENCES: &str = "unique_id,ori_seq\na,MKSTS\nb,ACD\nc,GGG\n";

    fn read(dir: &Scratch, labels: &str, sequences: &str) -> Result<Proteins> {
        let other = dir.file("seq.txt", sequences);
        read_proteins(&dir.file("x.csv", labels), &columns(), Some(&other), &dir.0)
    }

    #[test]
    fn sites_are_written_into_their_sequences() {
        let dir = Scratch::new("sites");
        let text = "AC_ID,pos,token\nb,1,<S-palmitoyl cysteine>\na,4,<Phosphoserine>\n\
                    a,0,<N-acetylmethionine>\na,4,<Phosphoserine>\n";
        let fasta = ">sp|a|X_Y\nMKSTS\n>b\nacd\n>c\nGGG\n";
        for sequences in [SEQUENCES, fasta] {
            let proteins = read(&dir, text, sequences).unwrap();
            let [b, a] = &proteins.records[..] else { panic!("{proteins:?}") };
            assert_eq!((b.id.as_str(), b.ptm_seq.as_str()), ("b", "A<S-palmitoyl cysteine>D"));
            assert_eq!(a.ptm_seq, "<N-acetylmethionine>KST<Phosphoserine>");
            assert_eq!((a.ori_seq.as_deref(), a.place.line), (Some("MKSTS"), 3));
            let notes = proteins.notes.join("\n");
            assert!(notes.contains("1 sequences have no site"), "{notes}");
            assert!(notes.contains("1 rows repeat"), "{notes}");
        }
    }

    #[test]
    fn the_tables_own_sequences() {
        let dir = Scratch::new("own");
        let own = |text: &str| read_proteins(&dir.file("x.csv", text), &columns(), None, &dir.0);
        let text = "AC_ID,pos,token,ori_seq\na,2,<Phosphoserine>,MKS\n";
        assert_eq!(own(text).unwrap().records[0].ptm_seq, "MK<Phosphoserine>");
        for (rows, expected) in [
            ("a,2,<Phosphoserine>,MKS\na,1,<Phosphoserine>,MSS\n", "x.csv:3: id \"a\" had another"),
            ("a,2,<Phosphoserine>,MKSé\n", "x.csv:2: ori_seq: residue 4 is 'é'"),
        ] {
            let error = own(&format!("AC_ID,pos,token,ori_seq\n{rows}")).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
        let error = own("AC_ID,pos,token\na,2,<Phosphoserine>\n").unwrap_err();
        assert_eq!(error.code(), 3);
        assert!(error.to_string().contains("no column \"ori_seq\""), "{error}");
    }

    #[test]
    fn what_is_wrong_is_named_with_its_line() {
        let dir = Scratch::new("sites-wrong");
        let cases = [
            ("a,5,<Phosphoserine>", "x.csv:3: pos is \"5\", but \"a\" has 5 residues"),
            ("a,-1,<Phosphoserine>", "x.csv:3: pos is \"-1\""),
            ("a,2.0,<Phosphoserine>", "whole numbers from 0 to 4"),
            ("a,2,<Phosphoserin>", "x.csv:3: \"<Phosphoserin>\" is not one of"),
            ("a,2,S", "x.csv:3: \"S\" is not one of"),
            ("a,2,", "x.csv:3: token is empty"),
            ("z,2,<Phosphoserine>", "x.csv:3: no sequence of \"z\""),
            (
                "a,0,<Phosphothreonine>",
                "x.csv:3: residue 0 of \"a\" carries <N-acetylmethionine> by line 2",
            ),
        ];
        for (row, expected) in cases {
            let text = format!("AC_ID,pos,token\na,0,<N-acetylmethionine>\n{row}\n");
            let error = read(&dir, &text, SEQUENCES).unwrap_err();
            assert_eq!(error.code(), 3);
            assert!(error.to_string().contains(expected), "{row} gave {error}");
        }
        let text = "AC_ID,pos,token\na,0,<N-acetylmethionine>\n";
        let error = read(&dir, text, ">sp|a|X\nMK\n>tr|a|Y\nMKK\n").unwrap_err().to_string();
        assert!(error.contains("seq.txt:3: a second, different sequence"), "{error}");
        let error = read(&dir, text, "unique_id,ori_seq\na,MJ\n").unwrap_err().to_string();
        assert!(error.contains("seq.txt:2: residue 2 is 'J'"), "{error}");
    }

    /// The site table joined with either file of sequences gives the table of finished sequences.
    #[test]
    fn swissprot() {
        let Some(folder) = real_files("labels::swissprot") else { return };
        let scratch = Scratch::new("sites-swissprot");
        let finished = folder.join("ptm_swissprot_yeast_bsub.csv");
        let fasta = folder.join("swissprot_yeast_ecoli_bsub.fasta");
        let labels =
            crate::files::read_text(&folder.join("ptm_swissprot_yeast_bsub_labels.csv")).unwrap();
        // The FASTA has the reviewed proteins only.
        let index = FastaIndex::open(&fasta, &scratch.0).unwrap();
        let known: std::collections::HashSet<String> = (0..index.len())
            .map(|i| accession(&index.id(i).unwrap()).unwrap().to_string())
            .collect();
        let reviewed: String = labels
            .lines()
            .filter(|row| {
                *row == "AC_ID,pos,token" || known.contains(row.split(',').next().unwrap())
            })
            .map(|row| format!("{row}\n"))
            .collect();
        let table = read_table(&finished).unwrap();
        let (id, ptm_seq) = (table.column("unique_id").unwrap(), table.column("ptm_seq").unwrap());
        let ptm_seqs: HashMap<&str, &str> =
            table.rows.iter().map(|row| (&row.fields[id], &row.fields[ptm_seq])).collect();
        for (labels, sequences, at_least) in [(&labels, &finished, 2903), (&reviewed, &fasta, 2000)]
        {
            let labels = scratch.file("labels.csv", labels);
            let joined = read_proteins(&labels, &columns(), Some(sequences), &scratch.0).unwrap();
            assert!(joined.records.len() >= at_least, "{}", joined.records.len());
            for record in joined.records {
                assert_eq!(ptm_seqs[record.id.as_str()], record.ptm_seq);
            }
        }
    }

    proptest! {
        #[test]
        fn substitution_replaces_single_residues(
            ori in "[ACDEFGHIKLMNPQRSTVWY]{1,60}",
            sites in prop::collection::btree_map(0usize..60, 34u8..59, 0..20),
        ) {
            let sites: BTreeMap<usize, (u8, u64)> = sites
                .into_iter()
                .filter(|(at, _)| *at < ori.len())
                .map(|(at, token)| (at, (token, 0)))
                .collect();
            let strict =
                ptm_vocab::Rules { unknown: ptm_vocab::Unknown::Error, generic_ptm: false };
            let tokens = ptm_vocab::tokenize(&substitute(&ori, &sites), strict).unwrap();
            prop_assert_eq!(tokens.len(), ori.len());
            for (i, token) in tokens.iter().enumerate() {
                let expected = sites.get(&i).map(|(token, _)| *token);
                let plain = ptm_vocab::id(&ori[i..=i]);
                prop_assert_eq!(Some(*token), expected.or(plain));
            }
            prop_assert!(ptm_vocab::to_esm_with_residues(&tokens, &ori).is_ok());
        }
    }
}
