//! An ESM-2 with its weights, ready for inference, and what identifies it.

use crate::data::esm_alphabet::{CLS, EOS, PAD};
use crate::error::{Error, Result};
use crate::files;
use crate::models::esm2::{Esm2, Esm2Config};
use crate::torch::{Params, WeightFile, content_hash, torch_error};
use serde_json::{Map, Value, json};
use std::path::Path;
use tch::{Device, Tensor};

/// The model and its layer.
pub struct Encoder {
    model: Esm2,
    layer: i64,
    device: Device,
    identity: Map<String, Value>,
    /// The weights were drawn from the run's seed.
    drawn: bool,
}

impl Encoder {
    /// Makes the model that `esm.model` describes: a Hugging Face directory (text), or a
    /// configuration whose weights are drawn from `seed` (map). `layer` counts from 1; None is the
    /// last, after the final norm.
    pub fn load(model: &Value, layer: Option<usize>, seed: u64, device: Device) -> Result<Encoder> {
        let dir = model.as_str().map(Path::new);
        let here = |e: Error| e.at("esm.model");
        let config = match dir {
            Some(dir) => read_config(dir).map_err(here)?,
            None => serde_json::from_value::<Esm2Config>(model.clone()).map_err(|e| {
                Error::usage(format!("not the shape of an ESM-2: {e}")).at("esm.model").hint(
                    "give hidden_size, num_hidden_layers, num_attention_heads and \
                     intermediate_size, or the path of a model directory",
                )
            })?,
        };
        config.validate().map_err(|e| match dir {
            Some(dir) => e.at(dir.join("config.json").display()),
            None => e.at("esm.model"),
        })?;
        let last = config.num_hidden_layers as usize;
        let layer = layer.unwrap_or(last);
        if layer < 1 || layer > last {
            return Err(Error::usage(format!("this model has layers 1 to {last}, not {layer}"))
                .at("esm.layer"));
        }
        let params = Params::new(device);
        let model = Esm2::new(&params.root(), &config);
        let weights = match dir {
            Some(dir) => {
                let file = WeightFile::open(dir).map_err(here)?;
                let report = params.load(&file, Esm2Config::rename).map_err(here)?;
                report.strict(&file).map_err(here)?;
                file.hash(Esm2Config::rename)?
            }
            None => {
                params.initialise(seed)?;
                content_hash(&params.list())?
            }
        };
        let mut identity = Map::new();
        identity.insert("weights".into(), json!(weights));
        identity.insert(
            "model".into(),
            serde_json::to_value(&config).map_err(|e| Error::bug(format!("ESM-2's shape: {e}")))?,
        );
        identity.insert("layer".into(), json!(layer));
        Ok(Encoder { model, layer: layer as i64, device, identity, drawn: dir.is_none() })
    }

    /// Width D of the embeddings.
    pub fn dim(&self) -> usize {
        self.model.config().hidden_size as usize
    }

    /// Weights, shape and layer: the model's part of a cache's meaning.
    pub fn identity(&self) -> &Map<String, Value> {
        &self.identity
    }

    /// A short description for people.
    pub fn describe(&self) -> String {
        let c = self.model.config();
        let drawn = if self.drawn { ", untrained: weights drawn from run.seed" } else { "" };
        format!(
            "ESM-2 {} layers x {}, {} heads, layer {}{drawn}",
            c.num_hidden_layers, c.hidden_size, c.num_attention_heads, self.layer
        )
    }

    /// Whether batches are computed without padding.
    pub fn is_packed(&self) -> bool {
        self.device == Device::Cpu
    }

    /// Hidden states of sequences of ESM ids without specials, `[T, D]` on the encoder's device:
    /// the sequences lie one after another, each as `<cls>`, residues, `<eos>`.
    pub fn embed(&self, sequences: &[&[u8]]) -> Result<Tensor> {
        let total: usize = sequences.iter().map(|s| s.len() + 2).sum();
        let mut ids = Vec::with_capacity(total);
        let mut offsets = vec![0i64];
        for sequence in sequences {
            ids.push(CLS);
            ids.extend_from_slice(sequence);
            ids.push(EOS);
            offsets.push(ids.len() as i64);
        }
        if self.is_packed() {
            return self.model.forward_packed(&ids, &offsets, self.layer);
        }
        self.padded(&ids, &offsets)
    }

    /// The same as one padded batch, for devices without the packed kernels.
    fn padded(&self, ids: &[u8], offsets: &[i64]) -> Result<Tensor> {
        let rows: Vec<&[u8]> =
            offsets.windows(2).map(|w| &ids[w[0] as usize..w[1] as usize]).collect();
        let width = rows.iter().map(|r| r.len()).max().unwrap_or(0);
        let mut padded = vec![i64::from(PAD); rows.len() * width];
        let mut mask = vec![0i64; rows.len() * width];
        let mut kept = Vec::with_capacity(ids.len());
        for (r, row) in rows.iter().enumerate() {
            for (i, &id) in row.iter().enumerate() {
                padded[r * width + i] = i64::from(id);
                mask[r * width + i] = 1;
                kept.push((r * width + i) as i64);
            }
        }
        let shape = [rows.len() as i64, width as i64];
        let there = |v: &[i64]| Tensor::from_slice(v).to_device(self.device);
        let (padded, mask) = (there(&padded).view(shape), there(&mask).view(shape));
        tch::no_grad(|| {
            let hidden = self.model.forward(&padded, &mask, self.layer);
            let dim = hidden.size()[2];
            hidden
                .f_reshape([-1, dim])
                .and_then(|h| h.f_index_select(0, &there(&kept)))
                .map_err(|e| torch_error("ESM-2", e))
        })
    }
}

fn read_config(dir: &Path) -> Result<Esm2Config> {
    if !dir.is_dir() {
        crate::torch::refuse_pickle(dir)?;
        return Err(Error::damaged("there is no such directory").at(dir.display()).hint(
            "esm.model names a Hugging Face directory with config.json and model.safetensors, for \
             instance a copy of facebook/esm2_t33_650M_UR50D",
        ));
    }
    let path = dir.join("config.json");
    let text = files::read_text(&path).map_err(|_| {
        Error::damaged("there is no config.json in this directory")
            .at(dir.display())
            .hint("name a Hugging Face directory with config.json and model.safetensors")
    })?;
    let value: Value = serde_json::from_str(&text)
        .map_err(|e| Error::damaged(format!("not JSON: {e}")).at(path.display()))?;
    if let Some(kind) = value.get("model_type").and_then(Value::as_str)
        && kind != "esm"
    {
        return Err(
            Error::damaged(format!("this is a model of type {kind}, not esm")).at(path.display())
        );
    }
    serde_json::from_value(value)
        .map_err(|e| Error::damaged(format!("not an ESM-2: {e}")).at(path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_way_of_a_gpu_gives_the_cpu_s_embeddings() {
        let shape = json!({
            "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
            "intermediate_size": 32
        });
        let encoder = Encoder::load(&shape, None, 1, Device::Cpu).unwrap();
        let (ids, offsets) = ([CLS, 5, 6, 32, 7, EOS, CLS, 9, EOS], [0i64, 6, 9]);
        let packed = encoder.model.forward_packed(&ids, &offsets, encoder.layer).unwrap();
        let padded = encoder.padded(&ids, &offsets).unwrap();
        assert_eq!(padded.size(), [9, 16]);
        let deviation = (&packed - &padded).abs().max().double_value(&[]);
        assert!(deviation < 2e-5 * packed.abs().max().double_value(&[]), "{deviation}");
        let inputs: [&[u8]; 2] = [&ids[1..5], &ids[7..8]];
        assert_eq!(encoder.embed(&inputs).unwrap(), packed);
    }
}
