//! A small synthetic data set: random proteins in which each modification has a motif of its own,
//! so that a model can be seen to learn within a minute. It says nothing about biology.

use crate::error::Result;
use crate::files;
use crate::rng::{Key, Purpose, Stream};
use std::io::Write;
use std::path::Path;

/// (token, unmodified residue, two residues before, two after, how often).
const MOTIFS: &[(&str, char, &str, &str, u64)] = &[
    ("<Phosphoserine>", 'S', "RR", "PE", 5),
    ("<Phosphothreonine>", 'T', "KD", "PW", 4),
    ("<N6-acetyllysine>", 'K', "GG", "HH", 4),
    ("<N-linked (GlcNAc...) asparagine>", 'N', "YC", "FS", 4),
    ("<Phosphotyrosine>", 'Y', "EE", "MV", 4),
    ("<Omega-N-methylarginine>", 'R', "FG", "GF", 4),
];

/// Residues about as often as in Swiss-Prot, out of a thousand.
const RESIDUES: &[(char, u64)] = &[
    ('L', 97),
    ('A', 83),
    ('G', 71),
    ('V', 69),
    ('E', 67),
    ('S', 66),
    ('I', 59),
    ('K', 58),
    ('R', 55),
    ('D', 55),
    ('T', 53),
    ('P', 47),
    ('N', 41),
    ('Q', 39),
    ('F', 39),
    ('Y', 29),
    ('M', 24),
    ('H', 23),
    ('C', 14),
    ('W', 11),
];

const PROTEINS: usize = 800;

/// Writes `dir/ptm.csv` with the columns `unique_id,ori_seq,ptm_seq`, and says what it is.
pub fn write(dir: &Path, seed: u64) -> Result<String> {
    files::make_dir(dir)?;
    let path = dir.join("ptm.csv");
    let mut sites = 0;
    files::write_atomic(&path, |out| {
        writeln!(out, "unique_id,ori_seq,ptm_seq")?;
        for i in 0..PROTEINS {
            let mut stream = Key::new(seed, Purpose::Sample).stream(i as u32, 0);
            let (plain, modified, own) = protein(&mut stream);
            sites += own;
            writeln!(out, "SYN{i:05},{plain},\"{modified}\"")?;
        }
        Ok(())
    })?;
    Ok(format!(
        "{}: {PROTEINS} synthetic proteins with {sites} planted sites of {} kinds (random sequences \
         and made-up motifs, for trying the program alone)",
        path.display(),
        MOTIFS.len()
    ))
}

fn pick<'a, T>(stream: &mut Stream, items: &'a [T], weight: impl Fn(&T) -> u64) -> &'a T {
    let mut left = stream.below(items.iter().map(&weight).sum());
    for item in items {
        if left < weight(item) {
            return item;
        }
        left -= weight(item);
    }
    &items[items.len() - 1]
}

/// (without modifications, with them, number of sites).
fn protein(stream: &mut Stream) -> (String, String, u64) {
    let length = 40 + stream.below(120) as usize;
    let (mut plain, mut modified, mut sites) = (String::from("M"), String::from("M"), 0);
    while plain.len() < length {
        if stream.uniform() < 0.08 {
            let (token, residue, before, after, _) = pick(stream, MOTIFS, |m| m.4);
            plain.push_str(&format!("{before}{residue}{after}"));
            modified.push_str(&format!("{before}{token}{after}"));
            sites += 1;
        } else {
            let residue = pick(stream, RESIDUES, |r| r.1).0;
            plain.push(residue);
            modified.push(residue);
        }
    }
    (plain, modified, sites)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::ptm_vocab::{Rules, Unknown, is_ptm, to_esm_with_residues, tokenize};

    #[test]
    fn sites_are_where_the_plain_sequence_says() {
        let mut stream = Key::new(1, Purpose::Sample).stream(0, 0);
        let (plain, modified, sites) = protein(&mut stream);
        let rules = Rules { unknown: Unknown::Error, generic_ptm: false };
        let tokens = tokenize(&modified, rules).unwrap();
        assert_eq!(tokens.iter().filter(|t| is_ptm(**t)).count() as u64, sites);
        to_esm_with_residues(&tokens, &plain).unwrap();
    }
}
