//! `export`: a cache into the seed's `{train,val,test}_embeddings.h5`, a checkpoint into upstream's
//! tensor names.

use crate::cache::{Cache, ExportRow, Fingerprint, RecordRef, export_v1};
use crate::error::{Error, Result};
use crate::files;
use crate::recipes::Session;
use crate::report::step_line::count;
use crate::torch::{Entry, WeightFile, write_safetensors};
use crate::train::run_dir;
use clap::{Args, ValueEnum};
use std::collections::HashMap;
use std::path::{Path, PathBuf};

/// Where to.
#[derive(Clone, Copy, ValueEnum)]
pub enum Layout {
    /// A cache as `{train,val,test}_embeddings.h5` of ptm-mlm.
    H5,
    /// A checkpoint with upstream's tensor names, as safetensors.
    Upstream,
}

/// What `export` takes.
#[derive(Args)]
pub struct ExportArgs {
    /// A cache, a checkpoint or a run (its best).
    source: PathBuf,
    /// The layout.
    #[arg(long)]
    to: Layout,
    /// The directory to write into.
    #[arg(long)]
    output: PathBuf,
    /// Which ids go to which file (`split_mapping.json` of a run) [default: all to train].
    #[arg(long)]
    split_mapping: Option<PathBuf>,
    /// Which masked copy of a cache.
    #[arg(long, default_value_t = 0)]
    replica: u16,
}

/// Runs `export`.
pub fn run(args: &ExportArgs, session: &Session) -> Result<()> {
    if session.world.size() > 1 {
        return Err(Error::usage("export runs in one process").hint("start it without mpirun"));
    }
    files::make_dir(&args.output)?;
    match args.to {
        Layout::H5 => cache_to_h5(args, session)?,
        Layout::Upstream => checkpoint_to_upstream(args, session)?,
    }
    Ok(())
}

fn cache_to_h5(args: &ExportArgs, session: &Session) -> Result<()> {
    let cache = Cache::open(&args.source)?;
    let parts = Parts::read(args.split_mapping.as_deref())?;
    let mut found: HashMap<&str, Vec<(RecordRef, ExportRow)>> = HashMap::new();
    for record in cache.records() {
        let head = cache.head(record)?;
        if head.replica != args.replica {
            continue;
        }
        let part = parts.part_of(&head.id)?;
        // The seed's rows hold <cls> and <eos> too.
        let rows = head.residues + 2;
        let row = ExportRow { id: head.id, window: 0, windows: 1, rows };
        found.entry(part).or_default().push((record, row));
    }
    if found.is_empty() {
        return Err(Error::usage(format!("the cache has no copy number {}", args.replica))
            .at("--replica")
            .hint(format!("`trainer inspect {}` says how many there are", args.source.display())));
    }
    for (part, records) in found.iter_mut() {
        number_windows(&cache, records)?;
        let path = args.output.join(format!("{part}_embeddings.h5"));
        let rows: Vec<ExportRow> = records.iter().map(|(_, row)| row.clone()).collect();
        let dim = cache.manifest().plan.dim;
        let total = rows.len() as u64;
        export_v1(&path, &rows, dim, 1, |i, out| {
            session.console.progress(i as u64, total, &format!("writing {part} {i}/{total}"));
            cache.read_with_specials(records[i].0, out)
        })?;
        session.console.finish();
        session.console.line(&format!("{}: {} embeddings", path.display(), count(total)));
    }
    if masked(cache.fingerprint()) {
        session.console.warn("these embeddings saw masked sequences (mask_policy: replicas)");
    }
    Ok(())
}

/// Which ids go to which file.
struct Parts(Option<(PathBuf, HashMap<String, String>)>);

impl Parts {
    fn read(path: Option<&Path>) -> Result<Parts> {
        let read = |path: &Path| {
            let parts = serde_json::from_str(&files::read_text(path)?)
                .map_err(|e| Error::data(format!("not a split mapping: {e}")).at(path.display()))?;
            Ok((path.to_path_buf(), parts))
        };
        Ok(Parts(path.map(read).transpose()?))
    }

    fn part_of(&self, id: &str) -> Result<&'static str> {
        let Some((path, parts)) = &self.0 else { return Ok("train") };
        let part = parts.get(id).map(String::as_str);
        let known = ["train", "val", "test"].into_iter().find(|known| part == Some(*known));
        known.ok_or_else(|| {
            let what = match part {
                Some(part) => format!("{id} belongs to {part:?}, not to train, val or test"),
                None => format!("{id} is in the cache and not here"),
            };
            Error::data(what)
                .at(path.display())
                .hint("give the split_mapping.json of a run on this cache, or none")
        })
    }
}

/// Numbers the windows of each id in the order of their first residue.
fn number_windows(cache: &Cache, records: &mut [(RecordRef, ExportRow)]) -> Result<()> {
    let mut starts = Vec::with_capacity(records.len());
    for (record, _) in records.iter() {
        starts.push(cache.head(*record)?.range[0]);
    }
    let mut order: Vec<usize> = (0..records.len()).collect();
    order.sort_by(|&a, &b| (&records[a].1.id, starts[a]).cmp(&(&records[b].1.id, starts[b])));
    let mut rest = order.as_slice();
    while let Some(&first) = rest.first() {
        let n = rest.iter().take_while(|&&i| records[i].1.id == records[first].1.id).count();
        for (window, &i) in rest[..n].iter().enumerate() {
            records[i].1.window = window as u32;
            records[i].1.windows = n as u32;
        }
        rest = &rest[n..];
    }
    Ok(())
}

fn masked(fingerprint: &Fingerprint) -> bool {
    fingerprint.meaning.get("mask_policy").and_then(|v| v.as_str()) == Some("replicas")
}

/// Upstream's names are ours; what upstream stores twice (the tied head) is written twice.
fn checkpoint_to_upstream(args: &ExportArgs, session: &Session) -> Result<()> {
    let source = run_dir::best_of(&args.source);
    let file = WeightFile::open(&source)?;
    let names: Vec<String> = file.names().map(String::from).collect();
    let mut entries = Vec::new();
    for name in &names {
        entries.push(Entry { name: name.clone(), tensor: file.read(name)? });
    }
    let embedding = "backbone.embedding.weight";
    if file.contains(embedding) {
        entries.push(Entry { name: "lm_head.weight".into(), tensor: file.read(embedding)? });
    }
    let path = args.output.join("model.safetensors");
    write_safetensors(&path, &entries)?;
    let config = source.join("config.json");
    if config.is_file() {
        files::write_text(&args.output.join("config.json"), &files::read_text(&config)?)?;
    }
    session.console.line(&format!("{}: {} tensors", path.display(), entries.len()));
    Ok(())
}
