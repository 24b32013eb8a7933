//! From the user's file to samples: PTM tokens for the model, ESM ids for its embedding.

use super::sections::Source;
use crate::config::{Dataset, Esm, OverLength, PtmResidue};
use crate::data::esm_alphabet::{self, sequence_hash};
use crate::data::fasta::FastaIndex;
use crate::data::is_fasta;
use crate::data::ptm_vocab::{
    self, Rules, Unknown, encode, to_esm, to_esm_with_residues, tokenize,
};
use crate::data::split::Split;
use crate::data::table::{Columns, read_proteins};
use crate::embed::{Item, Sequences};
use crate::error::{Error, Result};
use crate::progress;
use crate::report::step_line::count;
use std::path::Path;

/// Literal `PTM` in a sequence is proline, threonine, methionine.
const RULES: Rules = Rules { unknown: Unknown::Error, generic_ptm: false };

/// One sample: a window of a protein.
#[derive(Clone, Debug)]
pub struct Sample {
    /// Which record it is of.
    pub record: u32,
    /// Number of the window within the record.
    pub window: u32,
    /// PTM ids, `<cls>` and `<eos>` included.
    pub tokens: Vec<u8>,
    /// ESM ids of the residues, specials left out, before random masking.
    pub esm_ids: Vec<u8>,
    /// What identifies the window in a cache.
    pub item: Item,
}

/// All samples of a data set.
pub struct Samples {
    /// Ids of the records, in the order of the file.
    pub ids: Vec<String>,
    /// Where each record was read.
    pub places: Vec<String>,
    /// Windows of the records, in order.
    pub samples: Vec<Sample>,
    /// Sentences to print.
    pub notes: Vec<String>,
}

/// A record as it was read.
struct Raw {
    id: String,
    place: String,
    ptm_seq: String,
    ori_seq: Option<String>,
}

impl Samples {
    /// Reads `dataset.dataset_location`: a CSV with PTM sequences, a table of sites, or a FASTA of
    /// unmodified proteins. `scratch` takes an unpacked copy of a gzip while it is read.
    pub fn read(dataset: &Dataset, source: &Source, esm: &Esm, scratch: &Path) -> Result<Samples> {
        let path = dataset.dataset_location.as_ref().ok_or_else(|| {
            Error::usage("no data file is named")
                .at("dataset.dataset_location")
                .hint("name a CSV with a column ptm_seq, a table AC_ID,pos,token, or a FASTA")
        })?;
        Self::from_file(path, dataset, source, esm, scratch)
    }

    /// The same for any file.
    pub fn from_file(
        path: &Path,
        dataset: &Dataset,
        source: &Source,
        esm: &Esm,
        scratch: &Path,
    ) -> Result<Samples> {
        let (mut records, mut notes) = if is_fasta(path)? {
            read_fasta(path, scratch)?
        } else {
            read_table(path, source, scratch)?
        };
        if let Some(most) = dataset.subsample.filter(|most| *most < records.len()) {
            notes.push(format!("the first {most} of {} records are used", records.len()));
            records.truncate(most);
        }
        let mut this = Samples { ids: vec![], places: vec![], samples: vec![], notes };
        let mut cropped = 0;
        for raw in records {
            progress::tick()?;
            let record = this.ids.len() as u32;
            cropped += this.add(&raw, record, dataset, esm).map_err(|e| e.at(&raw.place))?;
            this.ids.push(raw.id);
            this.places.push(raw.place);
        }
        if cropped > 0 {
            this.notes.push(format!("{} samples are cropped", count(cropped)));
        }
        Ok(this)
    }

    /// Adds a record's windows; says whether something of it was cut off.
    fn add(&mut self, raw: &Raw, record: u32, dataset: &Dataset, esm: &Esm) -> Result<u64> {
        let tokens = tokenize(&raw.ptm_seq, RULES)?;
        let esm_ids = match (esm.ptm_residue, &raw.ori_seq) {
            (PtmResidue::Mask, _) => tokens.iter().map(|&t| to_esm(t)).collect(),
            (PtmResidue::Original, Some(residues)) => to_esm_with_residues(&tokens, residues)?,
            (PtmResidue::Original, None) => {
                return Err(Error::data("the unmodified sequence is not there")
                    .hint("esm.ptm_residue: original needs a column ori_seq; or set it to mask"));
            }
        };
        let encoded = encode(&tokens, dataset.max_sequence_length, dataset.split_seed)?;
        let (start, kept) = (encoded.start, encoded.ids.len() - 2);
        let parts = esm_alphabet::parts(esm.over_length, kept, esm.max_length)
            .map_err(|e| e.at(&raw.id))?;
        let cut =
            kept < tokens.len() || (esm.over_length == OverLength::Crop && kept > esm.max_length);
        for (window, (from, to)) in parts.into_iter().enumerate() {
            let range = start + from..start + to;
            let own = esm_ids[range.clone()].to_vec();
            let mut ids = vec![ptm_vocab::CLS];
            ids.extend_from_slice(&tokens[range.clone()]);
            ids.push(ptm_vocab::EOS);
            let item = Item {
                range: [range.start as u32, range.end as u32],
                sequence_hash: sequence_hash(&own),
            };
            self.samples.push(Sample {
                record,
                window: window as u32,
                tokens: ids,
                esm_ids: own,
                item,
            });
        }
        Ok(u64::from(cut))
    }

    /// Splits by record, so that windows of one protein stay together.
    pub fn split(&self, dataset: &Dataset) -> Result<Split> {
        match &dataset.split_mapping {
            Some(path) => Split::from_mapping(path, &self.ids, dataset.split_seed),
            None => {
                Split::seeded(&self.ids, dataset.val_size, dataset.test_size, dataset.split_seed)
            }
        }
    }

    /// The samples of these records, in their order.
    pub fn of_records(&self, records: &[u32]) -> Vec<u32> {
        let mut first = vec![0usize; self.ids.len() + 1];
        for sample in &self.samples {
            first[sample.record as usize + 1] += 1;
        }
        for i in 1..first.len() {
            first[i] += first[i - 1];
        }
        let windows = |&r: &u32| first[r as usize] as u32..first[r as usize + 1] as u32;
        records.iter().flat_map(windows).collect()
    }

    /// What a sample is called in messages.
    pub fn name(&self, sample: usize) -> String {
        let sample = &self.samples[sample];
        format!("{} ({})", self.ids[sample.record as usize], self.places[sample.record as usize])
    }

    /// The share of the commonest PTM token among all PTM tokens, and how many there are.
    pub fn commonest_ptm(&self) -> (f64, u64) {
        let mut counts = [0u64; 256];
        let tokens = self.samples.iter().flat_map(|s| &s.tokens);
        tokens.filter(|t| ptm_vocab::is_ptm(**t)).for_each(|t| counts[usize::from(*t)] += 1);
        let total: u64 = counts.iter().sum();
        let most = counts.iter().max().copied().unwrap_or(0);
        (most as f64 / total.max(1) as f64, total)
    }
}

impl Sequences for Samples {
    fn len(&self) -> usize {
        self.samples.len()
    }

    fn item(&self, i: usize) -> Item {
        self.samples[i].item
    }

    fn id(&self, i: usize) -> Result<String> {
        Ok(self.ids[self.samples[i].record as usize].clone())
    }

    fn esm_ids(&self, i: usize) -> Result<Vec<u8>> {
        Ok(self.samples[i].esm_ids.clone())
    }
}

fn read_fasta(path: &Path, scratch: &Path) -> Result<(Vec<Raw>, Vec<String>)> {
    let index = FastaIndex::open(path, scratch)?;
    let records = (0..index.len()).map(|i| {
        let sequence = index.sequence(i)?;
        Ok(Raw {
            id: index.id(i)?,
            place: index.place(i),
            ori_seq: Some(sequence.clone()),
            ptm_seq: sequence,
        })
    });
    let c = index.counts();
    let mut notes = Vec::new();
    for (n, what) in [
        (c.lower_case, "lower-case letters were raised"),
        (c.stars, "trailing * were dropped"),
        (c.duplicates, "repeated records were left out"),
    ] {
        if n > 0 {
            notes.push(format!("{} {what}", count(n)));
        }
    }
    Ok((records.collect::<Result<_>>()?, notes))
}

fn read_table(path: &Path, source: &Source, scratch: &Path) -> Result<(Vec<Raw>, Vec<String>)> {
    let columns = Columns {
        sequence: source.sequence_column_name.clone(),
        id: source.id_column_name.clone(),
    };
    let sequences = source.sequences.as_deref();
    let proteins = read_proteins(path, &columns, sequences, scratch)?;
    let records = proteins.records.into_iter().map(|r| Raw {
        id: r.id,
        place: r.place.to_string(),
        ptm_seq: r.ptm_seq,
        ori_seq: r.ori_seq,
    });
    Ok((records.collect(), proteins.notes))
}
