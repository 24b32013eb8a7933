//! A model's parameters in the order it declares them.
//!
//! A model declares each parameter with a name, a shape and how it is initialised, and keeps the
//! tensor. The values come afterwards, either from a seed (each parameter from its own name, so
//! they do not depend on the order or on who makes them) or from a file, strictly by name. The
//! declared order is the one order of every collective, flat buffer and file.

use super::torch_error;
use super::weights::WeightFile;
use crate::error::{Error, Result};
use crate::progress;
use crate::rng::{Key, Purpose};
use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;
use tch::{Device, Kind, Tensor};

/// How a parameter starts.
#[derive(Clone, Debug)]
pub enum Init {
    /// One number everywhere.
    Constant(f64),
    /// Normal with mean 0 and this standard deviation.
    Normal(f64),
    /// Uniform between minus and plus this bound.
    Uniform(f64),
    /// Given values, row by row, repeated until the parameter is full (Mamba's A).
    Values(Vec<f32>),
    /// Mamba's dt bias: the inverse softplus of a step that is log-uniform in [1e-3, 1e-1] and at
    /// least 1e-4.
    InverseSoftplusStep,
}

impl Init {
    /// PyTorch's default for a linear layer's weight and bias: uniform in ±1/sqrt(fan_in).
    pub fn linear(fan_in: i64) -> Init {
        Init::Uniform(1.0 / (fan_in as f64).sqrt())
    }

    fn fill(&self, out: &mut [f32], key: Key) {
        let mut stream = key.stream(0, 0);
        match self {
            Init::Constant(value) => out.fill(*value as f32),
            Init::Normal(std) => out.iter_mut().for_each(|x| *x = (std * stream.normal()) as f32),
            Init::Uniform(bound) => {
                out.iter_mut().for_each(|x| *x = (bound * (2.0 * stream.uniform() - 1.0)) as f32)
            }
            Init::Values(values) => {
                out.iter_mut().zip(values.iter().cycle()).for_each(|(x, v)| *x = *v)
            }
            Init::InverseSoftplusStep => out.iter_mut().for_each(|x| {
                let (low, high) = (1e-3f64.ln(), 1e-1f64.ln());
                let step = (low + stream.uniform() * (high - low)).exp().max(1e-4);
                *x = (step + (-(-step).exp_m1()).ln()) as f32;
            }),
        }
    }
}

/// One declared parameter.
struct Entry {
    name: String,
    tensor: Tensor,
    init: Init,
}

/// All parameters of a model, in declaration order.
#[derive(Clone)]
pub struct Params {
    entries: Rc<RefCell<Vec<Entry>>>,
    device: Device,
}

/// A place in a model's tree of names, at which parameters are declared.
#[derive(Clone)]
pub struct Path {
    params: Params,
    prefix: String,
}

/// What came of loading weights by name.
#[derive(Debug, Default)]
pub struct LoadReport {
    /// Parameters that got their values.
    pub loaded: usize,
    /// Declared, but not in the file.
    pub missing: Vec<String>,
    /// In the file, but not declared.
    pub unexpected: Vec<String>,
}

impl Params {
    /// No parameters yet; the ones to come live on `device`.
    pub fn new(device: Device) -> Params {
        Params { entries: Rc::default(), device }
    }

    /// The top of the tree of names.
    pub fn root(&self) -> Path {
        Path { params: self.clone(), prefix: String::new() }
    }

    /// Where the parameters live.
    pub fn device(&self) -> Device {
        self.device
    }

    /// Names and tensors in declaration order.
    pub fn list(&self) -> Vec<(String, Tensor)> {
        let entries = self.entries.borrow();
        entries.iter().map(|e| (e.name.clone(), e.tensor.shallow_clone())).collect()
    }

    /// Number of scalars.
    pub fn count(&self) -> usize {
        self.entries.borrow().iter().map(|e| e.tensor.numel()).sum()
    }

    /// Fills every parameter from (seed, its name).
    pub fn initialise(&self, seed: u64) -> Result<()> {
        let key = Key::new(seed, Purpose::Init);
        for entry in self.entries.borrow_mut().iter_mut() {
            progress::tick()?;
            let mut values = vec![0f32; entry.tensor.numel()];
            entry.init.fill(&mut values, key.named(&entry.name));
            let values = Tensor::from_slice(&values).view(entry.tensor.size().as_slice());
            tch::no_grad(|| entry.tensor.f_copy_(&values))
                .map_err(|e| torch_error("initialise", e))?;
        }
        Ok(())
    }

    /// Copies values by name. `rename` maps a name in the file to a declared one (None: ignore it
    /// without a word). Shapes must match; missing and unexpected names are reported, and it is
    /// the caller who refuses them ([`LoadReport::strict`]).
    pub fn load(
        &self,
        file: &WeightFile,
        rename: impl Fn(&str) -> Option<String>,
    ) -> Result<LoadReport> {
        let mut sources: HashMap<String, String> = HashMap::new();
        for name in file.names() {
            if let Some(target) = rename(name)
                && let Some(other) = sources.insert(target.clone(), name.to_string())
            {
                return Err(Error::damaged(format!(
                    "two tensors stand for the parameter {target}: {other} and {name}"
                ))
                .at(file.place(name)));
            }
        }
        let mut report = LoadReport::default();
        for entry in self.entries.borrow_mut().iter_mut() {
            progress::tick()?;
            let Some(source) = sources.remove(&entry.name) else {
                report.missing.push(entry.name.clone());
                continue;
            };
            let value = file.read(&source)?;
            if value.size() != entry.tensor.size() {
                return Err(Error::damaged(format!(
                    "tensor {source} has the shape {:?}, the model wants {:?}",
                    value.size(),
                    entry.tensor.size()
                ))
                .at(file.place(&source))
                .hint("the configuration and the weights are of different models"));
            }
            tch::no_grad(|| entry.tensor.f_copy_(&value)).map_err(|e| torch_error("load", e))?;
            report.loaded += 1;
        }
        report.unexpected = sources.into_values().collect();
        report.unexpected.sort();
        Ok(report)
    }
}

impl LoadReport {
    /// Refuses missing and unexpected tensors (exit code 5), naming the first few.
    pub fn strict(&self, file: &WeightFile) -> Result<()> {
        if self.missing.is_empty() && self.unexpected.is_empty() {
            return Ok(());
        }
        let list = |names: &[String]| {
            let more = names.len().saturating_sub(4);
            let shown = names.iter().take(4).cloned().collect::<Vec<_>>().join(", ");
            if more > 0 { format!("{shown} and {more} more") } else { shown }
        };
        let mut parts = Vec::new();
        if !self.missing.is_empty() {
            parts.push(format!("{} missing ({})", self.missing.len(), list(&self.missing)));
        }
        if !self.unexpected.is_empty() {
            parts.push(format!(
                "{} unexpected ({})",
                self.unexpected.len(),
                list(&self.unexpected)
            ));
        }
        Err(Error::damaged(format!("the tensors are not this model's: {}", parts.join(", ")))
            .at(file.root().display())
            .hint("the configuration and the weights are of different models"))
    }
}

impl Path {
    /// The place `name` below this one.
    pub fn sub(&self, name: impl std::fmt::Display) -> Path {
        Path { params: self.params.clone(), prefix: self.full(&name.to_string()) }
    }

    fn full(&self, name: &str) -> String {
        if self.prefix.is_empty() { name.to_string() } else { format!("{}.{name}", self.prefix) }
    }

    /// Declares a float32 parameter and gives its tensor, whose values come later.
    pub fn param(&self, name: &str, shape: &[i64], init: Init) -> Tensor {
        let tensor = Tensor::zeros(shape, (Kind::Float, self.params.device));
        let entry = Entry { name: self.full(name), tensor: tensor.shallow_clone(), init };
        self.params.entries.borrow_mut().push(entry);
        tensor
    }

    /// Where parameters declared here live.
    pub fn device(&self) -> Device {
        self.params.device
    }
}
