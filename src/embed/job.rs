//! The embedding job: plan, shards, ranks, progress.
//!
//! Equal sequences are computed once and stored for every id. The plan is a function of the
//! sequences alone; unfinished shards are dealt to ranks cyclically, each shard is one rank's work,
//! and a shard's bytes do not depend on who makes it. So a job that was killed at any instant, and
//! goes on with other ranks, ends with the same files.

use super::encoder::Encoder;
use super::sequences::Sequences;
use crate::cache::{self, Fingerprint, INPUTS, Manifest, Plan, RecordHead, ShardWriter, Start};
use crate::config::{Dtype, Pooling};
use crate::data::masks::Masks;
use crate::data::plan_embed::EmbedPlan;
use crate::dist::{Comm, deadline, restarts};
use crate::error::{Error, Result};
use crate::files;
use crate::progress;
use crate::report::console::Console;
use crate::report::step_line::{bytes, count, duration, percent, rate};
use crate::torch::slice_of;
use serde_json::{Map, Value, json};
use std::path::{Path, PathBuf};
use std::time::Instant;
use tch::Device;
use xxhash_rust::xxh3::Xxh3;

/// Raised when the plan's rules change, because the bytes of a cache change with it.
const PLAN_VERSION: u32 = 1;

/// A shard holds about this many bytes of embeddings, fewer where there would be few shards.
const SHARD_BYTES: u64 = 256 << 20;

/// So many shards at least, where there is work enough, so that ranks can share it.
const LEAST_SHARDS: u64 = 64;

/// Free space that must remain beside the cache.
const SPARE_BYTES: u64 = 64 << 20;

/// What a job is told, beside the sequences and the encoder.
pub struct JobConfig {
    /// Where the cache goes.
    pub dir: PathBuf,
    /// Number type of what is stored.
    pub dtype: Dtype,
    /// Per residue, or one mean.
    pub pooling: Pooling,
    /// Masked copies (number, masks); None: the sequences as they are.
    pub replicas: Option<(u16, Masks)>,
    /// Padded tokens of a batch, specials included.
    pub max_tokens: usize,
    /// What the embeddings mean, beside the encoder's own part.
    pub meaning: Map<String, Value>,
    /// How they are made, beside the plan's own part.
    pub making: Map<String, Value>,
    /// The disjoint share of the shards that this job owns: number `part.0` of `part.1`.
    pub part: (usize, usize),
}

/// How a job ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// The cache is finished.
    Complete,
    /// This part is done; others are not.
    PartDone,
}

/// What a job came to, on this rank.
#[derive(Clone, Copy, Debug, Default)]
pub struct Summary {
    /// Residues computed on this rank, replicas counted.
    pub residues: u64,
    /// Seconds in ESM-2.
    pub forward_seconds: f64,
    /// Seconds from the first batch to the last shard.
    pub seconds: f64,
}

/// A planned job.
pub struct Work<'a> {
    sequences: &'a dyn Sequences,
    encoder: &'a Encoder,
    config: &'a JobConfig,
    plan: EmbedPlan,
    /// Windows sorted so that equal sequences stand together, and where each group begins.
    grouped: Vec<u32>,
    starts: Vec<u32>,
}

impl<'a> Work<'a> {
    /// Plans a job: groups equal sequences, cuts batches and shards.
    pub fn plan(
        sequences: &'a dyn Sequences,
        encoder: &'a Encoder,
        config: &'a JobConfig,
    ) -> Result<Work<'a>> {
        if sequences.is_empty() {
            return Err(Error::data("there is no sequence to embed"));
        }
        let mut grouped: Vec<u32> = (0..sequences.len() as u32).collect();
        grouped.sort_unstable_by_key(|&i| {
            let item = sequences.item(i as usize);
            (item.residues(), item.sequence_hash, i)
        });
        let same = |a: u32, b: u32| {
            let (a, b) = (sequences.item(a as usize), sequences.item(b as usize));
            (a.residues(), a.sequence_hash) == (b.residues(), b.sequence_hash)
        };
        let mut starts = vec![0u32];
        for at in 1..grouped.len() {
            progress::tick()?;
            if !same(grouped[at - 1], grouped[at]) {
                starts.push(at as u32);
            }
        }
        let first = |g: usize| grouped[starts[g] as usize] as usize;
        let lengths: Vec<u32> =
            (0..starts.len()).map(|g| sequences.item(first(g)).residues() + 2).collect();
        let tokens: u64 = lengths.iter().map(|&n| u64::from(n)).sum();
        let copies = u64::from(config.replicas.map_or(1, |r| r.0));
        let row = (encoder.dim() * config.dtype.bytes()) as u64;
        let per_unit = (SHARD_BYTES / (row * copies)).min(tokens.div_ceil(LEAST_SHARDS)).max(1);
        let name = |g: usize| sequences.id(first(g)).unwrap_or_else(|e| e.to_string());
        let plan = EmbedPlan::new(&lengths, config.max_tokens, per_unit, name)?;
        starts.push(grouped.len() as u32);
        Ok(Work { sequences, encoder, config, plan, grouped, starts })
    }

    fn copies(&self) -> u16 {
        self.config.replicas.map_or(1, |r| r.0)
    }

    /// The windows that share sequence `group`.
    fn members(&self, group: u32) -> &[u32] {
        let (from, to) = (self.starts[group as usize], self.starts[group as usize + 1]);
        &self.grouped[from as usize..to as usize]
    }

    /// The cache's plan: fingerprint and counts.
    pub fn cache_plan(&self) -> Result<Plan> {
        let config = self.config;
        let mut meaning = self.encoder.identity().clone();
        meaning.extend(config.meaning.clone());
        let mut making = config.making.clone();
        making.insert("plan_version".into(), json!(PLAN_VERSION));
        making.insert("plan".into(), json!(format!("{:016x}", self.plan.hash())));
        making.insert("max_tokens_per_batch".into(), json!(config.max_tokens));
        making.insert(INPUTS.into(), json!(self.inputs_hash()?));
        let copies = u64::from(self.copies());
        let residues: u64 =
            (0..self.sequences.len()).map(|i| u64::from(self.sequences.item(i).residues())).sum();
        Ok(Plan {
            fingerprint: Fingerprint { meaning, making },
            dim: self.encoder.dim(),
            dtype: config.dtype,
            pooling: config.pooling,
            shards: self.plan.units() as u32,
            sequences: self.sequences.len() as u64,
            records: self.sequences.len() as u64 * copies,
            residues: residues * copies,
        })
    }

    fn inputs_hash(&self) -> Result<String> {
        let mut hash = Xxh3::new();
        for i in 0..self.sequences.len() {
            progress::tick()?;
            let item = self.sequences.item(i);
            hash.update(self.sequences.id(i)?.as_bytes());
            hash.update(&[0]);
            hash.update(&item.sequence_hash.to_le_bytes());
            item.range.iter().for_each(|n| hash.update(&n.to_le_bytes()));
        }
        Ok(format!("{:016x}", hash.digest()))
    }

    /// Bytes that the whole cache will take, roughly from above.
    pub fn bytes(&self, plan: &Plan) -> u64 {
        let rows = match plan.pooling {
            Pooling::None => plan.residues + 2 * plan.records,
            Pooling::Mean => plan.records,
        };
        rows * (plan.dim * plan.dtype.bytes()) as u64 + plan.records * 96
    }

    /// What will be done, for people to read before it begins.
    pub fn describe(&self, plan: &Plan) -> String {
        let padding = self.plan.padding();
        let batches = self.plan.batches() * usize::from(self.copies());
        let sparse = if self.encoder.is_packed() { " (but not computed: packed)" } else { "" };
        format!(
            "{} | {} sequences ({} different), {} residues x {} copies | {} batches in {} shards, \
             padding {:.1} %{sparse} | {} to write, {} free",
            self.encoder.describe(),
            count(self.sequences.len() as u64),
            count(self.starts.len() as u64 - 1),
            count(plan.residues / u64::from(self.copies())),
            self.copies(),
            count(batches as u64),
            plan.shards,
            100.0 * (padding.padded - padding.tokens) as f64 / padding.padded.max(1) as f64,
            bytes(self.bytes(plan)),
            files::free_bytes(&self.config.dir).map_or("unknown".to_string(), bytes)
        )
    }

    /// The records of a shard, in the order in which they are stored.
    fn heads(&self, unit: usize) -> Result<Vec<RecordHead>> {
        let mut heads = Vec::new();
        for &group in self.plan.unit_sequences(unit) {
            for &i in self.members(group) {
                let item = self.sequences.item(i as usize);
                for replica in 0..self.copies() {
                    heads.push(RecordHead {
                        id: self.sequences.id(i as usize)?,
                        sequence_hash: item.sequence_hash,
                        replica,
                        range: item.range,
                        residues: item.residues(),
                    });
                }
            }
        }
        Ok(heads)
    }
}

/// Makes the cache, or what is missing of it.
pub fn run(work: &Work, comm: &Comm, console: &Console) -> Result<(Ended, Summary)> {
    let dir = &work.config.dir;
    progress::enter("looking at the cache");
    let plan = work.cache_plan()?;
    let missing: Option<Vec<u32>> = comm.decide(|| begin(work, dir, &plan, console))?;
    let Some(missing) = missing else { return Ok((Ended::Complete, Summary::default())) };
    let (number, parts) = work.config.part;
    let own: Vec<u32> = missing
        .into_iter()
        .filter(|unit| *unit as usize % parts == number)
        .skip(comm.rank())
        .step_by(comm.size())
        .collect();
    let mut worker = Worker {
        work,
        console,
        summary: Summary::default(),
        start: Instant::now(),
        done: 0,
        total: own.iter().map(|&unit| work.tokens_of(unit as usize)).sum(),
    };
    progress::enter("embedding");
    let result = comm.together(|| own.iter().try_for_each(|&unit| worker.shard(unit, &plan)));
    worker.summary.seconds = worker.start.elapsed().as_secs_f64();
    let summary = worker.summary;
    console.finish();
    result?;
    progress::enter("finishing the cache");
    comm.barrier()?;
    let finished = comm.decide(|| Ok(cache::finish(dir)?.is_some()))?;
    Ok((if finished { Ended::Complete } else { Ended::PartDone }, summary))
}

/// What one part of the work keeps beside the cache while it grows.
pub fn side_name(kind: &str, (number, parts): (usize, usize)) -> String {
    format!("{kind}-{number}-of-{parts}")
}

/// What is missing (None: nothing), after checking that it can be written.
fn begin(work: &Work, dir: &Path, plan: &Plan, console: &Console) -> Result<Option<Vec<u32>>> {
    files::make_dir(dir)?;
    let missing = match cache::begin(dir, plan)? {
        Start::Finished(manifest) => {
            console.line(&format!(
                "{} is finished: {}",
                dir.display(),
                describe_manifest(&manifest)
            ));
            return Ok(None);
        }
        Start::Resume(missing) => missing,
    };
    let (number, parts) = work.config.part;
    let own = |unit: &&u32| **unit as usize % parts == number;
    let (all, left) = (0..plan.shards, missing.iter().filter(own).count());
    let done = all.filter(|unit| own(&unit)).count() - left;
    restarts::note(&dir.join(side_name(cache::STARTS, work.config.part)), done as u64, "shards")?;
    console.line(&work.describe(plan));
    let share = missing.len() as f64 / f64::from(plan.shards.max(1));
    if missing.len() < plan.shards as usize {
        console.line(&format!(
            "{} of {} shards are done already",
            plan.shards as usize - missing.len(),
            plan.shards
        ));
    }
    let needed = (work.bytes(plan) as f64 * share) as u64 + SPARE_BYTES;
    if let Some(free) = files::free_bytes(dir).filter(|free| *free < needed) {
        return Err(Error::launch(format!(
            "the cache needs {}, only {} are free",
            bytes(needed),
            bytes(free)
        ))
        .at(dir.display())
        .hint("free some space, choose another esm.cache_dir, or store less (esm.dtype, esm.pooling, esm.replicas)"));
    }
    Ok(Some(missing))
}

fn describe_manifest(manifest: &Manifest) -> String {
    let plan = &manifest.plan;
    format!(
        "{} records, {} residues, {} wide, {}",
        count(plan.records),
        count(plan.residues),
        plan.dim,
        plan.dtype.name()
    )
}

impl Work<'_> {
    fn tokens_of(&self, unit: usize) -> u64 {
        let groups = self.plan.unit_sequences(unit).iter();
        let one: u64 = groups
            .map(|&g| u64::from(self.sequences.item(self.members(g)[0] as usize).residues()))
            .sum();
        one * u64::from(self.copies())
    }
}

struct Worker<'a> {
    work: &'a Work<'a>,
    console: &'a Console,
    summary: Summary,
    start: Instant,
    done: u64,
    total: u64,
}

impl Worker<'_> {
    /// Computes and writes one shard. Where the job is to end, nothing of it is left.
    fn shard(&mut self, unit: u32, plan: &Plan) -> Result<()> {
        let work = self.work;
        let config = work.config;
        let heads = work.heads(unit as usize)?;
        let meaning = &plan.fingerprint.meaning;
        let (dim, dtype, pooling) = (plan.dim, plan.dtype, plan.pooling);
        let mut writer =
            ShardWriter::create(&config.dir, unit, &heads, dim, dtype, pooling, meaning)?;
        let mut record = 0;
        for batch in work.plan.unit(unit as usize) {
            let groups = work.plan.batch(batch).sequences;
            let plain: Vec<Vec<u8>> = groups
                .iter()
                .map(|&g| work.sequences.esm_ids(work.members(g)[0] as usize))
                .collect::<Result<_>>()?;
            for replica in 0..work.copies() {
                progress::tick()?;
                self.batch(&mut writer, record, groups, &plain, replica)?;
            }
            record += groups.iter().map(|&g| work.members(g).len()).sum::<usize>()
                * usize::from(work.copies());
        }
        writer.finish()?;
        Ok(())
    }

    /// One copy of one batch: its records begin at `first` in the shard, copies side by side.
    fn batch(
        &mut self,
        writer: &mut ShardWriter,
        first: usize,
        groups: &[u32],
        plain: &[Vec<u8>],
        replica: u16,
    ) -> Result<()> {
        let work = self.work;
        let mut masked = plain.to_vec();
        if let Some((_, masks)) = &work.config.replicas {
            for (ids, &group) in masked.iter_mut().zip(groups) {
                let item = work.sequences.item(work.members(group)[0] as usize);
                masks.apply(ids, u64::from(replica), item.sequence_hash);
            }
        }
        let rows: Vec<&[u8]> = masked.iter().map(Vec::as_slice).collect();
        let start = Instant::now();
        let hidden = work.encoder.embed(&rows)?;
        let mut hidden = hidden.to_device(Device::Cpu).contiguous();
        self.summary.forward_seconds += start.elapsed().as_secs_f64();
        deadline::stepped(start.elapsed());
        let dim = work.encoder.dim();
        let values = slice_of(&mut hidden).ok_or_else(|| Error::bug("embeddings are float32"))?;
        let (mut at, mut record) = (0, first);
        for (ids, &group) in masked.iter().zip(groups) {
            let own = &values[at..at + (ids.len() + 2) * dim];
            at += own.len();
            let (embeddings, special) = arrange(own, dim, work.config.pooling);
            for _ in work.members(group) {
                let number = record + usize::from(replica);
                writer.put(number, &embeddings, &special)?;
                record += usize::from(work.copies());
            }
            self.summary.residues += ids.len() as u64;
            self.done += ids.len() as u64;
        }
        self.report();
        Ok(())
    }

    fn report(&self) {
        let seconds = self.start.elapsed().as_secs_f64();
        // Too early, the speed would be that of making the first file.
        if seconds < 1.0 && self.done < self.total {
            return;
        }
        let speed = self.done as f64 / seconds.max(1e-9);
        let left = (self.total - self.done) as f64 / speed.max(1e-9);
        let text = format!(
            "embedding {} | {} residues/s on this rank | left {}",
            percent(self.done as f64, self.total as f64),
            rate(speed),
            duration(left)
        );
        self.console.progress(self.done, self.total, &text);
    }
}

/// Residues (or their mean) and specials of one sequence's rows `<cls>`, residues, `<eos>`.
fn arrange(rows: &[f32], dim: usize, pooling: Pooling) -> (Vec<f32>, Vec<f32>) {
    let residues = &rows[dim..rows.len() - dim];
    match pooling {
        Pooling::None => {
            let special = [&rows[..dim], &rows[rows.len() - dim..]].concat();
            (residues.to_vec(), special)
        }
        Pooling::Mean => {
            let n = (residues.len() / dim) as f64;
            let mut sum = vec![0f64; dim];
            for row in residues.chunks_exact(dim) {
                sum.iter_mut().zip(row).for_each(|(s, x)| *s += f64::from(*x));
            }
            (sum.iter().map(|s| (s / n) as f32).collect(), Vec::new())
        }
    }
}
