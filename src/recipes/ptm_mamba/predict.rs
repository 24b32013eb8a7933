//! A trained model on new data: the probability of every PTM token at every site, or hidden states.
//!
//! A site's probabilities are read where it is hidden, as in training. Sites are hidden in groups
//! of one in [`GROUPS`], so each sequence passes through the model that many times; the groups are
//! strides, so results do not depend on a seed.

use super::samples::{Sample, Samples};
use super::sections::Sections;
use super::setup::init_from;
use super::{Session, UseArgs};
use crate::cache::{ExportRow, export_v1};
use crate::data::esm_alphabet;
use crate::data::ptm_vocab::{self, MASK, TOKENS, is_ptm, is_special};
use crate::embed::Encoder;
use crate::error::{Error, Result};
use crate::models::ptm_mamba::{PtmMamba, mean_over_residues};
use crate::progress;
use crate::recipes::ptm_mamba::embeddings::Online;
use crate::recipes::using::{find_checkpoint, quoted, say_written, write_text};
use crate::torch::Params;
use std::fmt::Write as _;
use std::path::Path;
use tch::{Kind, Tensor};

/// One site in so many is hidden at a time: about the 15 % of training.
const GROUPS: usize = 7;

struct Predictor {
    model: PtmMamba,
    params: Params,
    online: Option<Online>,
}

/// Runs `predict`.
pub fn run(sections: &Sections, session: &Session, args: &UseArgs) -> Result<()> {
    if session.world.size() > 1 {
        return Err(Error::usage("predict runs in one process")
            .hint("start it without mpirun; large inputs can be cut into files"));
    }
    let hidden = hidden_output(args)?;
    let comm = &session.world.comm;
    let compute = sections.compute(session, None)?;
    progress::enter("loading the model");
    let encoder = comm.together(|| {
        let esm = &sections.esm;
        Ok(Encoder::load(&esm.model, esm.layer, sections.shared.run.seed, compute.device))
    })?;
    let online = sections
        .embedding
        .use_esm
        .then(|| Ok::<_, Error>(Online { encoder: encoder?, device: compute.device }))
        .transpose()?;
    let dim = online.as_ref().map(|o| o.encoder.dim() as i64);
    let dim = dim.or(sections.model.shape.esm_embed_dim).unwrap_or(1);
    let params = Params::new(compute.device);
    let model = PtmMamba::new(&params.root(), &sections.model.shape, dim);
    let checkpoint = find_checkpoint(&sections.shared, session, args)?;
    init_from(&params, &checkpoint)?;
    session.console.line(&format!("model: {}", checkpoint.display()));
    progress::enter("reading the data");
    let samples = comm.together(|| read_input(sections, args))?;
    let predictor = Predictor { model, params, online };
    progress::enter("predicting");
    comm.together(|| match hidden {
        Some(path) => predictor.write_hidden(&samples, path, args.mean, session),
        None => predictor.write_sites(&samples, args, session),
    })?;
    session.console.finish();
    say_written(session, args);
    Ok(())
}

/// Least probability that is written.
fn least(args: &UseArgs) -> f64 {
    args.min_probability.unwrap_or(0.01)
}

/// Where hidden states go; None: probabilities are asked for.
fn hidden_output(args: &UseArgs) -> Result<Option<&Path>> {
    let refuse = |what: String, hint: &str| Err(Error::usage(what).at("--output").hint(hint));
    let least = least(args);
    if !(0.0..=1.0).contains(&least) {
        let what = format!("{least} is no probability");
        return Err(Error::usage(what).at("--min-probability").hint("give a number from 0 to 1"));
    }
    let Some(path) = args.output.as_deref() else {
        if args.mean {
            return refuse("--mean is for hidden states".into(), "add --output FILE.h5");
        }
        return Ok(None);
    };
    match path.extension().and_then(|e| e.to_str()) {
        Some("h5") => Ok(Some(path)),
        Some("csv") if args.mean => {
            refuse(format!("{}: --mean is for hidden states", path.display()), "name a .h5 file")
        }
        Some("csv") => Ok(None),
        _ => refuse(
            format!("{}: its kind is told by its extension", path.display()),
            "name a .csv file for probabilities of sites, or a .h5 file for hidden states",
        ),
    }
}

fn read_input(sections: &Sections, args: &UseArgs) -> Result<Samples> {
    let Sections { dataset, source, esm, .. } = sections;
    let scratch = std::env::temp_dir();
    match &args.input {
        Some(path) => Samples::from_file(path, dataset, source, esm, &scratch),
        None => Samples::read(dataset, source, esm, &scratch),
    }
}

impl Predictor {
    /// Hidden states `[L, d]` of one sample with the residues in `hide` hidden.
    fn hidden(&self, sample: &Sample, hide: impl Fn(usize) -> bool) -> Result<Tensor> {
        let device = self.params.device();
        let mut tokens: Vec<i64> = sample.tokens.iter().map(|&t| i64::from(t)).collect();
        let mut esm_ids = sample.esm_ids.clone();
        for residue in 0..esm_ids.len() {
            if hide(residue) && !is_special(sample.tokens[residue + 1]) {
                tokens[residue + 1] = i64::from(MASK);
                esm_ids[residue] = esm_alphabet::MASK;
            }
        }
        let length = tokens.len() as i64;
        let ids = Tensor::from_slice(&tokens).to_device(device).view([1, length]);
        let esm = self.online.as_ref().map(|o| o.embed(&[esm_ids], length)).transpose()?;
        Ok(tch::no_grad(|| self.model.forward(&ids, esm.as_ref(), &[length])))
    }

    /// Probabilities `[residues][59]` of one sample, each read where its residue was hidden.
    fn probabilities(&self, sample: &Sample) -> Result<Vec<Vec<f32>>> {
        let residues = sample.esm_ids.len();
        let mut rows = vec![Vec::new(); residues];
        for group in 0..GROUPS.min(residues) {
            let hidden = self.hidden(sample, |residue| residue % GROUPS == group)?;
            let p = tch::no_grad(|| self.model.logits(&hidden).softmax(-1, Kind::Float));
            for residue in (group..residues).step_by(GROUPS) {
                rows[residue] = Vec::try_from(p.get(0).get(residue as i64 + 1))
                    .map_err(|e| Error::bug(format!("probabilities: {e}")))?;
            }
        }
        Ok(rows)
    }

    /// CSV `id,pos,residue,token,probability`; pos counts from 0, as upstream's tables of sites.
    fn write_sites(&self, samples: &Samples, args: &UseArgs, session: &Session) -> Result<()> {
        let mut csv = String::from("id,pos,residue,token,probability\n");
        let total = samples.samples.len() as u64;
        for (done, sample) in samples.samples.iter().enumerate() {
            progress::tick()?;
            session.console.progress(done as u64, total, &format!("predicting {done}/{total}"));
            let id = quoted(&samples.ids[sample.record as usize]);
            for (residue, row) in self.probabilities(sample)?.iter().enumerate() {
                let pos = sample.item.range[0] as usize + residue;
                let shown = ptm_vocab::decode(&sample.tokens[residue + 1..residue + 2]);
                for (token, p) in row.iter().enumerate() {
                    if is_ptm(token as u8) && f64::from(*p) >= least(args) {
                        let token = quoted(TOKENS[token]);
                        let shown = quoted(&shown);
                        writeln!(csv, "{id},{pos},{shown},{token},{p:.6}")
                            .map_err(|e| Error::bug(format!("CSV: {e}")))?;
                    }
                }
            }
        }
        write_text(args, &csv)
    }

    /// Hidden states as the seed's h5 layout: one dataset, zero-padded, or one mean a sequence.
    fn write_hidden(
        &self,
        samples: &Samples,
        path: &Path,
        mean: bool,
        session: &Session,
    ) -> Result<()> {
        let d = self.params.list()[0].1.size()[1] as usize;
        let total = samples.samples.len() as u64;
        let windows_of = |record| samples.samples.iter().filter(|s| s.record == record).count();
        let rows: Vec<ExportRow> = samples
            .samples
            .iter()
            .map(|sample| ExportRow {
                id: samples.ids[sample.record as usize].clone(),
                window: sample.window,
                windows: windows_of(sample.record) as u32,
                rows: if mean { 1 } else { sample.esm_ids.len() as u32 },
            })
            .collect();
        export_v1(path, &rows, d, 1, |i, out| {
            progress::tick()?;
            session.console.progress(i as u64, total, &format!("hidden states {i}/{total}"));
            let sample = &samples.samples[i];
            let hidden = self.hidden(sample, |_| false)?;
            let length = sample.tokens.len() as i64;
            let own = if mean {
                mean_over_residues(&hidden, &[length])
            } else {
                hidden.get(0).narrow(0, 1, length - 2)
            };
            let flat = own.to_device(tch::Device::Cpu).contiguous().view([-1]);
            *out = Vec::try_from(flat).map_err(|e| Error::bug(format!("hidden states: {e}")))?;
            Ok(())
        })
    }
}
