//! The small types that stand in sections: sizes, paths, devices, and the words a key may hold.

use serde::de::{Error as _, Unexpected, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::fmt;
use std::ops::Deref;
use std::path::{Path, PathBuf};

/// How much of a data set: an integer is a number of samples, a number below 1 a fraction.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Size {
    /// Exactly so many samples.
    Samples(u64),
    /// This part of all samples, from 0 up to but not including 1.
    Fraction(f64),
}

impl Size {
    /// Samples out of `total`. A fraction is rounded to the nearest whole number, and to 1 where it
    /// asks for less. An absolute size may exceed `total`: the caller, who knows the data, refuses it.
    pub fn of(self, total: usize) -> u64 {
        match self {
            Size::Samples(n) => n,
            Size::Fraction(0.0) => 0,
            // Exact for any data set: f64 holds whole numbers up to 2^53.
            Size::Fraction(f) => ((f * total as f64).round() as u64).max(1),
        }
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Size::Samples(n) => write!(f, "{n}"),
            Size::Fraction(share) => write!(f, "{share}"),
        }
    }
}

impl Serialize for Size {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Size::Samples(n) => serializer.serialize_u64(*n),
            Size::Fraction(f) => serializer.serialize_f64(*f),
        }
    }
}

impl<'de> Deserialize<'de> for Size {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct SizeVisitor;
        impl Visitor<'_> for SizeVisitor {
            type Value = Size;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a whole number of samples or a fraction from 0 to below 1")
            }
            fn visit_u64<E: serde::de::Error>(self, n: u64) -> Result<Size, E> {
                Ok(Size::Samples(n))
            }
            fn visit_i64<E: serde::de::Error>(self, n: i64) -> Result<Size, E> {
                let n =
                    u64::try_from(n).map_err(|_| E::invalid_value(Unexpected::Signed(n), &self));
                self.visit_u64(n?)
            }
            fn visit_f64<E: serde::de::Error>(self, f: f64) -> Result<Size, E> {
                if (0.0..1.0).contains(&f) {
                    return Ok(Size::Fraction(f));
                }
                Err(E::invalid_value(Unexpected::Float(f), &self))
            }
        }
        deserializer.deserialize_any(SizeVisitor)
    }
}

/// A path as the user wrote it, made absolute from the directory where the command was given.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(transparent)]
pub struct UserPath(PathBuf);

impl UserPath {
    /// Makes `text` absolute without touching the file system; the error says what is wrong.
    pub fn new(text: &str) -> Result<UserPath, String> {
        if text == "~" || text.starts_with("~/") {
            return Err(format!("{text}: only a shell expands ~, write the whole path"));
        }
        let absolute = std::path::absolute(text)
            .map_err(|e| format!("\"{text}\" is not a usable path: {e}"))?;
        match absolute.to_str() {
            Some(_) => Ok(UserPath(absolute)),
            None => Err("the current directory's name is not UTF-8; start elsewhere".to_string()),
        }
    }
}

impl UserPath {
    /// A default's path; it stays relative where the current directory has no usable name.
    pub fn default_at(text: &'static str) -> UserPath {
        UserPath::new(text).unwrap_or_else(|_| UserPath(PathBuf::from(text)))
    }
}

impl Deref for UserPath {
    type Target = Path;
    fn deref(&self) -> &Path {
        &self.0
    }
}

impl AsRef<Path> for UserPath {
    fn as_ref(&self) -> &Path {
        &self.0
    }
}

impl<'de> Deserialize<'de> for UserPath {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        UserPath::new(&text).map_err(D::Error::custom)
    }
}

/// Where tensors live.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(try_from = "String", into = "String")]
pub enum Device {
    /// CUDA where a GPU is visible, then Apple's, then the CPU.
    #[default]
    Auto,
    /// The processor.
    Cpu,
    /// A GPU: the one with this index among the visible ones, or by node-local rank.
    Cuda(Option<usize>),
    /// Apple's GPU.
    Mps,
}

impl TryFrom<String> for Device {
    type Error = String;
    fn try_from(text: String) -> Result<Device, String> {
        match text.as_str() {
            "auto" => Ok(Device::Auto),
            "cpu" => Ok(Device::Cpu),
            "cuda" => Ok(Device::Cuda(None)),
            "mps" => Ok(Device::Mps),
            other => match other.strip_prefix("cuda:").and_then(|n| n.parse().ok()) {
                Some(n) => Ok(Device::Cuda(Some(n))),
                None => Err(format!(
                    "unknown device \"{other}\"; allowed: auto, cpu, cuda, cuda:N, mps"
                )),
            },
        }
    }
}

impl From<Device> for String {
    fn from(device: Device) -> String {
        device.to_string()
    }
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Device::Auto => f.write_str("auto"),
            Device::Cpu => f.write_str("cpu"),
            Device::Cuda(None) => f.write_str("cuda"),
            Device::Cuda(Some(n)) => write!(f, "cuda:{n}"),
            Device::Mps => f.write_str("mps"),
        }
    }
}

/// From where a run goes on.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum Resume {
    /// From the newest checkpoint of the same run, if there is one.
    #[default]
    Auto,
    /// From the beginning (`none`, or `null` as upstream).
    None,
    /// From this checkpoint.
    From(UserPath),
}

impl Serialize for Resume {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Resume::Auto => serializer.serialize_str("auto"),
            Resume::None => serializer.serialize_str("none"),
            Resume::From(path) => path.serialize(serializer),
        }
    }
}

impl<'de> Deserialize<'de> for Resume {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct ResumeVisitor;
        impl Visitor<'_> for ResumeVisitor {
            type Value = Resume;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("auto, none or the path of a checkpoint")
            }
            fn visit_unit<E: serde::de::Error>(self) -> Result<Resume, E> {
                Ok(Resume::None)
            }
            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Resume, E> {
                match text {
                    "auto" => Ok(Resume::Auto),
                    "none" => Ok(Resume::None),
                    path => UserPath::new(path).map(Resume::From).map_err(E::custom),
                }
            }
        }
        deserializer.deserialize_any(ResumeVisitor)
    }
}

/// Which direction of the watched metric is better.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum GreaterIsBetter {
    /// As the metric itself says.
    #[default]
    Auto,
    /// As told.
    Told(bool),
}

impl Serialize for GreaterIsBetter {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            GreaterIsBetter::Auto => serializer.serialize_str("auto"),
            GreaterIsBetter::Told(told) => serializer.serialize_bool(*told),
        }
    }
}

impl<'de> Deserialize<'de> for GreaterIsBetter {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct GreaterVisitor;
        impl Visitor<'_> for GreaterVisitor {
            type Value = GreaterIsBetter;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("auto, true or false")
            }
            fn visit_bool<E: serde::de::Error>(self, told: bool) -> Result<GreaterIsBetter, E> {
                Ok(GreaterIsBetter::Told(told))
            }
            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<GreaterIsBetter, E> {
                match text {
                    "auto" => Ok(GreaterIsBetter::Auto),
                    other => Err(E::invalid_value(Unexpected::Str(other), &self)),
                }
            }
        }
        deserializer.deserialize_any(GreaterVisitor)
    }
}

/// How the ESM embeddings of a cache were masked (DESIGN 3.6).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum MaskPolicy {
    /// K deterministic masked copies of every sequence: right for training by masking.
    #[default]
    Replicas,
    /// The sequence as it is: for supervised recipes, export and inference.
    Unmasked,
}

/// What ESM sees at a modified residue.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum PtmResidue {
    /// `<mask>`, as upstream.
    #[default]
    Mask,
    /// The residue that was modified.
    Original,
}

/// The number type of stored embeddings.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Dtype {
    /// IEEE half precision.
    #[default]
    Float16,
    /// The upper half of a float32; in HDF5 as uint16 with an attribute.
    Bfloat16,
    /// Single precision.
    Float32,
}

impl Dtype {
    /// Bytes of one number.
    pub fn bytes(self) -> usize {
        match self {
            Dtype::Float16 | Dtype::Bfloat16 => 2,
            Dtype::Float32 => 4,
        }
    }

    /// The name in configurations, manifests and attributes.
    pub fn name(self) -> &'static str {
        match self {
            Dtype::Float16 => "float16",
            Dtype::Bfloat16 => "bfloat16",
            Dtype::Float32 => "float32",
        }
    }
}

/// What is stored of a sequence's embeddings.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Pooling {
    /// One vector a residue.
    #[default]
    None,
    /// Their mean.
    Mean,
}

impl Pooling {
    /// The name in configurations, manifests and attributes.
    pub fn name(self) -> &'static str {
        match self {
            Pooling::None => "none",
            Pooling::Mean => "mean",
        }
    }
}

/// What happens to a sequence longer than ESM takes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum OverLength {
    /// It is refused by name.
    #[default]
    Error,
    /// Its beginning is kept.
    Crop,
    /// It is cut into upstream's overlapping windows.
    Windows,
}

/// When the validation set is evaluated.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum EvaluationStrategy {
    /// Every `eval_steps` optimiser steps.
    #[default]
    Steps,
    /// At the end of every epoch.
    Epoch,
}

/// How the learning rate changes after its warm-up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Schedule {
    /// Not at all.
    #[default]
    Constant,
    /// Down to zero in a straight line.
    Linear,
    /// Down to zero along half a cosine.
    Cosine,
}

/// The precision of the forward and backward pass. Parameters, gradients and moments are fp32 always.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// Single precision throughout.
    #[default]
    Fp32,
    /// Autocast to bfloat16.
    Bf16,
    /// Autocast to half precision with dynamic loss scaling; not on the CPU.
    Fp16,
}

/// Through what ranks talk to each other.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Backend {
    /// NCCL where each of several ranks has a GPU of its own, else MPI.
    #[default]
    Auto,
    /// MPI.
    Mpi,
    /// NVIDIA's library, or an error where it cannot be.
    Nccl,
}

/// A further place for a run's figures.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum ReportTo {
    /// Event files in the run directory's `tensorboard/`.
    Tensorboard,
}

/// How gradients are summed over ranks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Reduce {
    /// By one fixed tree: the same bits on any number of ranks.
    #[default]
    Exact,
    /// By the library's all-reduce, in an order that depends on the ranks.
    Fast,
}

#[cfg(test)]
mod tests {
    use super::super::typed::read;
    use super::*;
    use serde_json::{Value, json};

    /// Reads a value as `T` and gives back what `T` writes, or the message.
    fn echo<T: serde::de::DeserializeOwned + Serialize>(value: &Value) -> Result<Value, String> {
        let read: T = read(value, "k").map_err(|e| e.to_string())?;
        Ok(serde_json::to_value(read).unwrap())
    }

    #[test]
    fn sizes() {
        for good in [json!(0), json!(10000), json!(0.25), json!(0.0)] {
            assert_eq!(echo::<Size>(&good), Ok(good));
        }
        for (bad, found) in [
            (json!(1.0), "the number 1.0"),
            (json!(-0.1), "the number -0.1"),
            (json!(-5), "the number -5"),
            (json!("10%"), "the text \"10%\""),
            (json!(null), "null"),
        ] {
            let wanted = format!(
                "k: found {found}, but a whole number of samples or a fraction from 0 to below 1 \
                 is needed"
            );
            assert_eq!(echo::<Size>(&bad), Err(wanted));
        }
        assert_eq!(Size::Samples(7).of(3), 7);
        assert_eq!(
            [0.0, 0.001, 0.1, 0.15, 0.99].map(|f| Size::Fraction(f).of(10)),
            [0, 1, 1, 2, 10]
        );
    }

    #[test]
    fn paths_become_absolute() {
        let cwd = std::env::current_dir().unwrap();
        let path = UserPath::new("data/./a.csv").unwrap();
        assert_eq!(&*path, cwd.join("data/a.csv"));
        assert_eq!(&*UserPath::new("/x/y").unwrap(), Path::new("/x/y"));
        assert!(UserPath::new("~/a.csv").unwrap_err().contains("only a shell expands ~"));
        assert!(UserPath::new("").unwrap_err().contains("not a usable path"));
        assert_eq!(echo::<UserPath>(&json!("/x")), Ok(json!("/x")));
    }

    #[test]
    fn words_read_and_write_as_themselves() {
        for word in ["auto", "cpu", "cuda", "cuda:3", "mps"] {
            assert_eq!(echo::<Device>(&json!(word)), Ok(json!(word)));
        }
        for word in ["cuda:", "cuda:x", "gpu"] {
            let message = echo::<Device>(&json!(word)).unwrap_err();
            assert!(message.ends_with("allowed: auto, cpu, cuda, cuda:N, mps"), "{message}");
        }
        for (given, written) in [
            (json!("auto"), "auto"),
            (json!("none"), "none"),
            (json!(null), "none"),
            (json!("/c"), "/c"),
        ] {
            assert_eq!(echo::<Resume>(&given), Ok(json!(written)));
        }
        assert!(echo::<Resume>(&json!(3)).unwrap_err().contains("auto, none or the path"));
        for value in [json!("auto"), json!(true), json!(false)] {
            assert_eq!(echo::<GreaterIsBetter>(&value), Ok(value));
        }
        assert!(
            echo::<GreaterIsBetter>(&json!("yes")).unwrap_err().contains("auto, true or false")
        );
        for word in ["float16", "bfloat16", "float32"] {
            assert_eq!(echo::<Dtype>(&json!(word)), Ok(json!(word)));
        }
        assert_eq!(
            echo::<Precision>(&json!("fp8")).unwrap_err(),
            "k: unknown value \"fp8\"; did you mean fp16? allowed: fp32, bf16, fp16"
        );
    }
}
