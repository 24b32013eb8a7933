//! Reading and writing safetensors, strictly: one file, or several with an index.
//!
//! Only the header is parsed; each tensor is read at its place when it is asked for, so a large
//! model never stands in memory twice.

use super::torch_error;
use crate::error::{Error, Result};
use crate::files;
use crate::progress;
use safetensors::tensor::{Dtype, Metadata, TensorInfo, TensorView};
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use tch::{Kind, Tensor};

/// Headers longer than this are damage, not weights.
const LONGEST_HEADER: u64 = 100 << 20;

/// One tensor's name and values, to be written.
pub struct Entry {
    /// Name in the file.
    pub name: String,
    /// Contiguous float32 on the CPU.
    pub tensor: Tensor,
}

/// Where a tensor's bytes lie.
struct Place {
    file: usize,
    info: TensorInfo,
    start: u64,
}

/// An opened set of weights: a file, or the files of a directory.
pub struct WeightFile {
    root: PathBuf,
    files: Vec<(PathBuf, File)>,
    tensors: BTreeMap<String, Place>,
}

/// Refuses files that Python would unpickle: they can run code, and are never read.
pub fn refuse_pickle(path: &Path) -> Result<()> {
    let extension = path.extension().and_then(|e| e.to_str()).unwrap_or_default();
    // Upstream's checkpoints are files called best.ckpt; ours are directories.
    let upstream = extension == "ckpt" && path.is_file();
    if !upstream && !matches!(extension, "pt" | "pth" | "pkl" | "bin") {
        return Ok(());
    }
    Err(Error::damaged("this is a Python pickle, which can run code and is never read")
        .at(path.display())
        .hint(format!(
            "convert it once: python -c \"import torch, safetensors.torch as s; \
             d = torch.load('{0}', map_location='cpu', weights_only=True); \
             d = d.get('model', d); \
             s.save_file({{k: v.clone() for k, v in d.items()}}, '{0}.safetensors')\"",
            path.display()
        )))
}

impl WeightFile {
    /// Opens `path`: a `.safetensors` file, or a directory with `model.safetensors` or
    /// `model.safetensors.index.json` (a model in several files).
    pub fn open(path: &Path) -> Result<WeightFile> {
        refuse_pickle(path)?;
        if path.is_file() {
            return Self::from_files(path, &[path.to_path_buf()]);
        }
        let (single, index) =
            (path.join("model.safetensors"), path.join("model.safetensors.index.json"));
        if single.is_file() {
            return Self::from_files(path, &[single]);
        }
        if index.is_file() {
            return Self::from_files(path, &files_of_index(&index)?);
        }
        if !path.exists() {
            return Err(Error::damaged("there is no such file or directory")
                .at(path.display())
                .hint("check the path; weights are a .safetensors file or a directory with one"));
        }
        for name in ["pytorch_model.bin", "model.pt", "model.pth"] {
            let pickle = path.join(name);
            if pickle.is_file() {
                refuse_pickle(&pickle)?;
            }
        }
        Err(Error::damaged("no model.safetensors in this directory")
            .at(path.display())
            .hint("name a Hugging Face directory with config.json and model.safetensors"))
    }

    fn from_files(root: &Path, paths: &[PathBuf]) -> Result<WeightFile> {
        let mut this =
            WeightFile { root: root.to_path_buf(), files: Vec::new(), tensors: BTreeMap::new() };
        for path in paths {
            let file = File::open(path).map_err(|e| Error::read(path, &e))?;
            for (name, info, start) in read_header(path, &file)? {
                let place = Place { file: this.files.len(), info, start };
                if this.tensors.insert(name.clone(), place).is_some() {
                    return Err(Error::damaged(format!("tensor {name} stands in two files"))
                        .at(path.display()));
                }
            }
            this.files.push((path.clone(), file));
        }
        Ok(this)
    }

    /// What was opened.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Names of all tensors, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// Whether there is a tensor of this name.
    pub fn contains(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    /// A tensor's shape.
    pub fn shape(&self, name: &str) -> Option<&[usize]> {
        self.tensors.get(name).map(|p| p.info.shape.as_slice())
    }

    /// The file that holds a tensor, for messages.
    pub fn place(&self, name: &str) -> String {
        let file = self.tensors.get(name).map(|p| &self.files[p.file].0);
        file.unwrap_or(&self.root).display().to_string()
    }

    fn bytes(&self, name: &str) -> Result<(&TensorInfo, Vec<u8>)> {
        let place = self.tensors.get(name).ok_or_else(|| {
            Error::damaged(format!("there is no tensor {name}")).at(self.root.display())
        })?;
        let (path, file) = &self.files[place.file];
        let (from, to) = place.info.data_offsets;
        let mut bytes = vec![0u8; to - from];
        file.read_exact_at(&mut bytes, place.start + from as u64)
            .map_err(|e| Error::read(path, &e))?;
        Ok((&place.info, bytes))
    }

    /// Reads one tensor as float32 (from float32, float16, bfloat16 or float64) on the CPU.
    pub fn read(&self, name: &str) -> Result<Tensor> {
        let (info, bytes) = self.bytes(name)?;
        let kind = match info.dtype {
            Dtype::F32 => Kind::Float,
            Dtype::F16 => Kind::Half,
            Dtype::BF16 => Kind::BFloat16,
            Dtype::F64 => Kind::Double,
            Dtype::I64 => Kind::Int64,
            other => {
                return Err(Error::damaged(format!("tensor {name} has the type {other:?}"))
                    .at(self.place(name))
                    .hint("weights are float32, float16, bfloat16 or float64"));
            }
        };
        let shape: Vec<i64> = info.shape.iter().map(|&n| n as i64).collect();
        let tensor = Tensor::f_from_data_size(&bytes, &shape, kind)
            .map_err(|e| torch_error("reading weights", e))?;
        Ok(if kind == Kind::Int64 { tensor } else { tensor.to_kind(Kind::Float) })
    }

    /// Reads one tensor of booleans.
    pub fn read_bool(&self, name: &str) -> Result<Tensor> {
        let (info, bytes) = self.bytes(name)?;
        if info.dtype != Dtype::BOOL {
            return Err(
                Error::damaged(format!("tensor {name} is not boolean")).at(self.place(name))
            );
        }
        let shape: Vec<i64> = info.shape.iter().map(|&n| n as i64).collect();
        Tensor::f_from_data_size(&bytes, &shape, Kind::Bool)
            .map_err(|e| torch_error("reading weights", e))
    }

    /// SHA-256 over name, type, shape and bytes of the tensors that `keep` names, sorted by the
    /// name `keep` gives: the identity of a model whatever its files look like.
    pub fn hash(&self, keep: impl Fn(&str) -> Option<String>) -> Result<String> {
        let mut kept: Vec<(String, &str)> =
            self.names().filter_map(|name| keep(name).map(|own| (own, name))).collect();
        kept.sort();
        let mut hash = Sha256::new();
        for (own, name) in kept {
            let (info, bytes) = self.bytes(name)?;
            update_hash(&mut hash, &own, &format!("{:?}", info.dtype), &info.shape, &bytes);
        }
        Ok(files::hex(&hash.finalize()))
    }
}

fn update_hash(hash: &mut Sha256, name: &str, dtype: &str, shape: &[usize], bytes: &[u8]) {
    hash.update(format!("{name}\0{dtype}\0{shape:?}\0"));
    hash.update(bytes);
}

/// The same hash over tensors in memory (float32), for weights that never were a file.
pub fn content_hash(entries: &[(String, Tensor)]) -> Result<String> {
    let mut sorted: Vec<&(String, Tensor)> = entries.iter().collect();
    sorted.sort_by(|a, b| a.0.cmp(&b.0));
    let mut hash = Sha256::new();
    for (name, tensor) in sorted {
        progress::tick()?;
        let shape: Vec<usize> = tensor.size().iter().map(|&n| n as usize).collect();
        update_hash(&mut hash, name, "F32", &shape, &bytes_of(tensor)?);
    }
    Ok(files::hex(&hash.finalize()))
}

/// The bytes of a float32 tensor in row order.
fn bytes_of(tensor: &Tensor) -> Result<Vec<u8>> {
    let flat = tensor.to_device(tch::Device::Cpu).to_kind(Kind::Float).contiguous().view([-1]);
    let mut bytes = vec![0u8; flat.numel() * 4];
    flat.f_copy_data_u8(&mut bytes, flat.numel()).map_err(|e| torch_error("copying", e))?;
    Ok(bytes)
}

/// The files that an index of a model in several files names.
fn files_of_index(index: &Path) -> Result<Vec<PathBuf>> {
    #[derive(serde::Deserialize)]
    struct Index {
        weight_map: HashMap<String, String>,
    }
    let parsed: Index = serde_json::from_str(&files::read_text(index)?)
        .map_err(|e| Error::damaged(format!("not an index of weights: {e}")).at(index.display()))?;
    let mut names: Vec<String> = parsed.weight_map.into_values().collect();
    names.sort();
    names.dedup();
    let dir = index.parent().unwrap_or(Path::new("."));
    names
        .iter()
        .map(|name| {
            if Path::new(name).components().count() != 1 || name.starts_with('.') {
                return Err(Error::damaged(format!("{name} is not a file of this directory"))
                    .at(index.display()));
            }
            let path = dir.join(name);
            if !path.is_file() {
                return Err(Error::damaged(format!("{name} is missing"))
                    .at(index.display())
                    .hint("the model was not copied completely"));
            }
            Ok(path)
        })
        .collect()
}

/// Names, types, shapes and places of a file's tensors, checked against its size.
fn read_header(path: &Path, file: &File) -> Result<Vec<(String, TensorInfo, u64)>> {
    let damaged = |what: String| {
        Error::damaged(what)
            .at(path.display())
            .hint("the file is truncated or not safetensors; copy it again")
    };
    let size = file.metadata().map_err(|e| Error::read(path, &e))?.len();
    let mut head = vec![0u8; size.min(32) as usize];
    file.read_exact_at(&mut head, 0).map_err(|e| Error::read(path, &e))?;
    if files::is_lfs_pointer(&head) {
        return Err(Error::damaged("this is a Git-LFS pointer, not the weights")
            .at(path.display())
            .hint(files::LFS_HINT));
    }
    let Some(word) = head.first_chunk::<8>() else {
        return Err(damaged("it is shorter than a header".into()));
    };
    let length = u64::from_le_bytes(*word);
    if length > LONGEST_HEADER || 8 + length > size {
        return Err(damaged(format!("its header claims {length} bytes, the file has {size}")));
    }
    let mut header = vec![0u8; length as usize];
    file.read_exact_at(&mut header, 8).map_err(|e| Error::read(path, &e))?;
    let metadata: Metadata =
        serde_json::from_slice(&header).map_err(|e| damaged(format!("bad header: {e}")))?;
    let start = 8 + length;
    let end = metadata.data_len() as u64;
    if start + end != size {
        return Err(damaged(format!(
            "{} bytes of data are promised, {} are there",
            end,
            size - start
        )));
    }
    let tensors = metadata.tensors();
    let mut list: Vec<_> =
        tensors.into_iter().map(|(name, info)| (name, info.clone(), start)).collect();
    list.sort_by(|a, b| a.0.cmp(&b.0));
    Ok(list)
}

/// Writes tensors durably, whole or not at all. Metadata is exactly `{format: pt}`: with more keys
/// the crate's map order would change the bytes from run to run.
pub fn write_safetensors(path: &Path, entries: &[Entry]) -> Result<()> {
    let mut owned = Vec::with_capacity(entries.len());
    for entry in entries {
        let shape: Vec<usize> = entry.tensor.size().iter().map(|&n| n as usize).collect();
        owned.push((entry.name.clone(), shape, bytes_of(&entry.tensor)?));
    }
    let mut views = Vec::with_capacity(owned.len());
    for (name, shape, bytes) in &owned {
        let view = TensorView::new(Dtype::F32, shape.clone(), bytes)
            .map_err(|e| Error::bug(format!("tensor {name}: {e}")))?;
        views.push((name.as_str(), view));
    }
    let metadata = HashMap::from([("format".to_string(), "pt".to_string())]);
    let bytes = safetensors::serialize(views, Some(metadata))
        .map_err(|e| Error::bug(format!("safetensors: {e}")).at(path.display()))?;
    files::write_atomic(path, |out| std::io::Write::write_all(out, &bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pickles_are_refused_and_a_checkpoint_directory_is_none() {
        let dir = std::env::temp_dir().join(format!("trainer-pickles-{}", std::process::id()));
        std::fs::create_dir_all(dir.join("best.ckpt")).unwrap();
        std::fs::write(dir.join("last.ckpt"), b"PK").unwrap();
        for name in ["last.ckpt", "model.pt", "pytorch_model.bin"] {
            let error = refuse_pickle(&dir.join(name)).unwrap_err();
            assert!(
                error.code() == 5 && error.to_string().contains("d.get('model', d)"),
                "{error}"
            );
        }
        refuse_pickle(&dir.join("best.ckpt")).unwrap();
        refuse_pickle(&dir.join("model.safetensors")).unwrap();
        std::fs::remove_dir_all(dir).unwrap();
    }
}
