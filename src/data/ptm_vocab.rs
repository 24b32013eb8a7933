//! The 59 tokens of PTM-Mamba: tokenising, cropping in whole tokens, and the way to ESM's ids.
//!
//! The ids are upstream's (programmablebio/ptm-mamba, `protein_lm/tokenizer`). Two things differ on
//! purpose: a token is matched as long as possible and never cut in half by cropping; an unknown
//! `<...>` is one `<unk>` at most, never a run of stray letters.

use super::esm_alphabet as esm;
use crate::error::{Error, Result, nearest};
use crate::rng::{Key, Purpose};
use xxhash_rust::xxh3::xxh3_64;

/// The tokens in the order of their ids.
pub const TOKENS: [&str; 59] = [
    "<cls>",
    "<pad>",
    "<eos>",
    "<unk>",
    ".",
    "-",
    "<null_1>",
    "<mask>",
    "L",
    "A",
    "G",
    "V",
    "S",
    "E",
    "R",
    "T",
    "I",
    "D",
    "P",
    "K",
    "Q",
    "N",
    "F",
    "Y",
    "M",
    "H",
    "W",
    "C",
    "X",
    "B",
    "U",
    "Z",
    "O",
    "PTM",
    "<N-linked (GlcNAc...) asparagine>",
    "<Pyrrolidone carboxylic acid>",
    "<Phosphoserine>",
    "<Phosphothreonine>",
    "<N-acetylalanine>",
    "<N-acetylmethionine>",
    "<N6-acetyllysine>",
    "<Phosphotyrosine>",
    "<S-diacylglycerol cysteine>",
    "<N6-(pyridoxal phosphate)lysine>",
    "<N-acetylserine>",
    "<N6-carboxylysine>",
    "<N6-succinyllysine>",
    "<S-palmitoyl cysteine>",
    "<O-(pantetheine 4'-phosphoryl)serine>",
    "<Sulfotyrosine>",
    "<O-linked (GalNAc...) threonine>",
    "<Omega-N-methylarginine>",
    "<N-myristoyl glycine>",
    "<4-hydroxyproline>",
    "<Asymmetric dimethylarginine>",
    "<N5-methylglutamine>",
    "<4-aspartylphosphate>",
    "<S-geranylgeranyl cysteine>",
    "<4-carboxyglutamate>",
];

/// Stands before every sequence.
pub const CLS: u8 = 0;
/// Fills a batch up to its width.
pub const PAD: u8 = 1;
/// Stands after every sequence.
pub const EOS: u8 = 2;
/// Something that is no token.
pub const UNK: u8 = 3;
/// A position to be predicted.
pub const MASK: u8 = 7;
/// The generic token, neither special nor a PTM.
pub const GENERIC_PTM: u8 = 33;

/// The id of `L`: ids below are special, ids from here to 32 are residue letters.
const FIRST_LETTER: u8 = 8;

/// Whether the id names a modified residue.
pub fn is_ptm(id: u8) -> bool {
    id > GENERIC_PTM
}

/// Whether the id is never masked nor scored. As upstream, `.`, `-` and `<null_1>` are among them.
pub fn is_special(id: u8) -> bool {
    id < FIRST_LETTER
}

/// The id of a token as spelt in [`TOKENS`].
pub fn id(token: &str) -> Option<u8> {
    TOKENS.iter().position(|t| *t == token).map(|i| i as u8)
}

/// The id of a modified residue's token; an unknown one is a data error with the nearest name.
pub fn ptm_id(token: &str) -> Result<u8> {
    match id(token) {
        Some(id) if is_ptm(id) => Ok(id),
        _ => {
            Err(Error::data(format!("{token:?} is not one of the 25 PTM tokens"))
                .hint(meant(token)))
        }
    }
}

fn meant(token: &str) -> String {
    match nearest(token, TOKENS[usize::from(GENERIC_PTM) + 1..].iter().copied()) {
        Some(name) => format!("did you mean {name}?"),
        None => "the tokens are listed in src/data/ptm_vocab.rs".to_string(),
    }
}

/// What to do with text that is no token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unknown {
    /// Refuse it, with its position.
    Error,
    /// One `<unk>` for a character, or for a whole `<...>`.
    Unk,
}

/// How text is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rules {
    /// What to do with text that is no token.
    pub unknown: Unknown,
    /// Whether the three letters `PTM` are the generic token (id 33). In residues they are proline,
    /// threonine, methionine (3 % of Swiss-Prot sequences contain them), as upstream reads them.
    pub generic_ptm: bool,
}

/// The ids of a text, without `<cls>` and `<eos>` of our own. An unknown token is a data error that
/// names it and its position (counted from 1, in tokens); the caller adds file and line.
pub fn tokenize(text: &str, rules: Rules) -> Result<Vec<u8>> {
    let mut ids = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let (id, used) = match longest_match(rest, rules) {
            Some(found) => found,
            None => {
                // A whole `<...>` is one unknown residue, not a run of letters.
                let tag = (first == '<').then(|| rest.find('>')).flatten();
                let used = tag.map_or(first.len_utf8(), |end| end + 1);
                if rules.unknown == Unknown::Error {
                    return Err(unknown(&rest[..used], ids.len() + 1));
                }
                (UNK, used)
            }
        };
        ids.push(id);
        rest = &rest[used..];
    }
    Ok(ids)
}

/// The longest token at the start of `rest`, and its bytes. No letter is the start of a `<...>`.
fn longest_match(rest: &str, rules: Rules) -> Option<(u8, usize)> {
    let first = *rest.as_bytes().first()?;
    match first {
        b'<' => {
            let tag = &rest[..=rest.find('>')?];
            Some((id(tag)?, tag.len()))
        }
        b'P' if rules.generic_ptm && rest.starts_with("PTM") => Some((GENERIC_PTM, 3)),
        _ => Some((from_esm(esm::id(first)?)?, 1)),
    }
}

fn unknown(token: &str, position: usize) -> Error {
    let error = Error::data(format!("token {position} is {token:?}, not in the PTM vocabulary"));
    match token.chars().next() {
        Some('<') if token.len() > 1 => error.hint(meant(token)),
        Some('<') => error.hint("a modified residue is written <...>, and here the > is missing"),
        Some(c) if c.is_ascii_lowercase() => error.hint("write residues as upper-case letters"),
        _ => error.hint("residues are upper-case letters (no J), modified residues are <...>"),
    }
}

/// The text of ids. Ids above 58 are a bug of the caller.
pub fn decode(ids: &[u8]) -> String {
    ids.iter().map(|id| TOKENS[usize::from(*id)]).collect()
}

/// A sample's ids between `<cls>` and `<eos>`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Encoded {
    /// `<cls>`, the kept tokens, `<eos>`.
    pub ids: Vec<u8>,
    /// How many tokens were cut off in front: residue `start + i` is `ids[1 + i]`.
    pub start: usize,
}

/// Adds `<cls>` and `<eos>` to tokens, of which at most `max_sequence_length - 2` are kept where a
/// limit is given. The part kept starts at a random token, the same for equal (seed, tokens) in
/// every epoch and on every rank. A limit below 3 is a usage error.
pub fn encode(tokens: &[u8], max_sequence_length: Option<usize>, seed: u64) -> Result<Encoded> {
    let room = match max_sequence_length {
        Some(max) if max < 3 => {
            return Err(Error::usage(format!("{max} leaves no room between <cls> and <eos>"))
                .at("dataset.max_sequence_length")
                .hint("give at least 3, or null for no limit"));
        }
        Some(max) => max - 2,
        None => tokens.len(),
    };
    let start = crop_start(tokens, room, seed);
    let kept = &tokens[start..tokens.len().min(start + room)];
    let mut ids = Vec::with_capacity(kept.len() + 2);
    ids.push(CLS);
    ids.extend_from_slice(kept);
    ids.push(EOS);
    Ok(Encoded { ids, start })
}

fn crop_start(tokens: &[u8], room: usize, seed: u64) -> usize {
    if tokens.len() <= room {
        return 0;
    }
    let hash = xxh3_64(tokens);
    let mut stream = Key::new(seed, Purpose::Crop).stream(hash as u32, (hash >> 32) as u32);
    stream.below((tokens.len() - room + 1) as u64) as usize
}

/// ESM's id of one of ours: the same token, or `<mask>` where ESM has none (all PTM tokens).
pub fn to_esm(id: u8) -> u8 {
    match id {
        CLS => esm::CLS,
        PAD => esm::PAD,
        EOS => esm::EOS,
        UNK => esm::UNK,
        4..=6 => id + 25,
        FIRST_LETTER..GENERIC_PTM => id - 4,
        _ => esm::MASK,
    }
}

/// Our id of one of ESM's; none for ids that ESM does not have.
pub fn from_esm(id: u8) -> Option<u8> {
    match id {
        0..=3 => Some(id),
        4..=28 => Some(id + 4),
        29..=31 => Some(id - 25),
        esm::MASK => Some(MASK),
        _ => None,
    }
}

/// ESM's ids of tokens with the unmodified residue at each PTM site. `tokens` and `residues`
/// (`ori_seq`) are of equal length and agree at every other site, or it is a data error.
pub fn to_esm_with_residues(tokens: &[u8], residues: &str) -> Result<Vec<u8>> {
    let residues = esm::encode(residues).map_err(|e| e.at("ori_seq"))?;
    if residues.len() != tokens.len() {
        let (n, m) = (residues.len(), tokens.len());
        return Err(Error::data(format!("ori_seq has {n} residues, ptm_seq has {m} tokens")));
    }
    let mut ids = Vec::with_capacity(tokens.len());
    for (i, (token, residue)) in tokens.iter().zip(residues).enumerate() {
        if !is_ptm(*token) && to_esm(*token) != residue {
            let (theirs, ours) = (esm::TOKENS[usize::from(residue)], TOKENS[usize::from(*token)]);
            return Err(Error::data(format!(
                "residue {} is {theirs} in ori_seq but {ours} in ptm_seq",
                i + 1
            )));
        }
        ids.push(residue);
    }
    Ok(ids)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const STRICT: Rules = Rules { unknown: Unknown::Error, generic_ptm: false };
    const LOOSE: Rules = Rules { unknown: Unknown::Unk, generic_ptm: false };

    #[test]
    fn known_ids() {
        assert_eq!(id("L"), Some(8));
        assert_eq!(id("<Phosphoserine>"), Some(36));
        assert_eq!(id("<4-carboxyglutamate>"), Some(58));
        assert!(is_ptm(34) && !is_ptm(33) && is_special(7) && !is_special(8));
        let ids = tokenize("M<Phosphoserine>K<N-linked (GlcNAc...) asparagine>", STRICT).unwrap();
        assert_eq!(ids, [24, 36, 19, 34]);
    }

    #[test]
    fn proline_threonine_methionine_is_three_residues_unless_asked() {
        assert_eq!(tokenize("PTMK", STRICT).unwrap(), [18, 15, 24, 19]);
        let generic = Rules { generic_ptm: true, ..STRICT };
        assert_eq!(tokenize("PTPTMK", generic).unwrap(), [18, 15, 33, 19]);
    }

    #[test]
    fn unknown_text_is_refused_with_its_position_or_becomes_unk() {
        let error = tokenize("MK<Phosphoserin>L", STRICT).unwrap_err();
        assert_eq!(error.code(), 3);
        let text = error.to_string();
        assert!(text.contains("token 3 is \"<Phosphoserin>\""), "{text}");
        assert!(text.contains("did you mean <Phosphoserine>?"), "{text}");
        assert_eq!(tokenize("MK<Phosphoserin>L", LOOSE).unwrap(), [24, 19, UNK, 8]);
        assert_eq!(tokenize("MäJ<K", LOOSE).unwrap(), [24, UNK, UNK, UNK, 19]);
        assert!(tokenize("MK<Phos", STRICT).unwrap_err().to_string().contains("> is missing"));
        assert!(tokenize("Mk", STRICT).unwrap_err().to_string().contains("upper-case"));
    }

    #[test]
    fn esm_sees_no_modification() {
        let tokens = tokenize("<cls>M<Phosphoserine>.-<null_1><mask><pad>O<eos>", STRICT).unwrap();
        let ids: Vec<u8> = tokens.iter().map(|t| to_esm(*t)).collect();
        assert_eq!(esm::decode(&ids), "<cls>M<mask>.-<null_1><mask><pad>O<eos>");
        assert_eq!(to_esm(GENERIC_PTM), esm::MASK);
        for (i, token) in esm::TOKENS.iter().enumerate() {
            let ours = from_esm(i as u8).unwrap();
            assert_eq!((TOKENS[usize::from(ours)], to_esm(ours)), (*token, i as u8));
        }
        assert_eq!(from_esm(33), None);
    }

    #[test]
    fn residues_come_back_under_the_modifications() {
        let tokens = tokenize("M<Phosphoserine>K", STRICT).unwrap();
        let ids = to_esm_with_residues(&tokens, "MSK").unwrap();
        assert_eq!(esm::decode(&ids), "MSK");
        assert!(to_esm_with_residues(&tokens, "MS").unwrap_err().to_string().contains("3 tokens"));
        let error = to_esm_with_residues(&tokens, "MSR").unwrap_err().to_string();
        assert!(error.contains("residue 3 is R in ori_seq but K in ptm_seq"), "{error}");
    }

    #[test]
    fn a_limit_without_room_is_refused() {
        assert_eq!(encode(&[8, 9], Some(2), 0).unwrap_err().code(), 2);
        assert_eq!(encode(&[], None, 0).unwrap().ids, [CLS, EOS]);
    }

    #[test]
    fn every_crop_happens() {
        let tokens: Vec<u8> = (8..28).collect();
        let starts: std::collections::BTreeSet<usize> =
            (0..2000).map(|seed| encode(&tokens, Some(12), seed).unwrap().start).collect();
        assert_eq!(starts, (0..=10).collect());
    }

    fn any_token() -> impl Strategy<Value = u8> {
        (0u8..59).prop_filter("the generic token reads as three letters", |id| *id != GENERIC_PTM)
    }

    proptest! {
        #[test]
        fn tokenizing_undoes_decoding(ids in prop::collection::vec(any_token(), 0..300)) {
            prop_assert_eq!(tokenize(&decode(&ids), STRICT).unwrap(), ids);
        }

        #[test]
        fn any_text_tokenizes_without_panic(text in "\\PC{0,40}[<>PTMa]{0,20}\\PC{0,10}") {
            let ids = tokenize(&text, LOOSE).unwrap();
            prop_assert!(ids.len() <= text.chars().count());
            prop_assert_eq!(tokenize(&text, STRICT).is_ok(), decode(&ids) == text);
        }

        #[test]
        fn a_crop_is_a_run_of_whole_tokens(
            ids in prop::collection::vec(any_token(), 0..100), max in 3usize..60, seed: u64,
        ) {
            let cropped = encode(&ids, Some(max), seed).unwrap();
            prop_assert_eq!(cropped.ids.len(), max.min(ids.len() + 2));
            let kept = &cropped.ids[1..cropped.ids.len() - 1];
            prop_assert_eq!(kept, &ids[cropped.start..cropped.start + kept.len()]);
            prop_assert_eq!(cropped.ids[0], CLS);
            prop_assert_eq!(*cropped.ids.last().unwrap(), EOS);
            prop_assert_eq!(encode(&ids, Some(max), seed).unwrap(), cropped);
            prop_assert_eq!(encode(&ids, None, seed).unwrap().ids.len(), ids.len() + 2);
        }
    }
}
