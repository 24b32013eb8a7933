//! Configurations that cannot be, and the command line itself.

use super::{case, check, edit, none};
use crate::common::Scratch;

/// Needs nothing but data; the setting follows.
const ONLINE: &str = "train c.yaml --set training.use_precomputed_embeddings=false --set ";

#[test]
fn configurations() {
    let base = Scratch::new("configurations");
    let set = |name, setting: &'static str, code, says| {
        let mut row = case(name, code, ONLINE, none, says);
        row.args += setting;
        row
    };
    let mut table = vec![
        case("no command", 2, "embark c.yaml", none, "unrecognized subcommand | embed"),
        case("no configuration", 2, "train gone.yaml", none, "gone.yaml | check the path"),
        case(
            "a mistyped key",
            2,
            "train c.yaml",
            |d| edit(d, "c.yaml", "max_steps", "max_step"),
            "c.yaml:18 | unknown key training.max_step | mean max_steps? | allowed: num_train_epochs",
        ),
        case(
            "a mistyped section",
            2,
            "train c.yaml",
            |d| edit(d, "c.yaml", "training:", "trainning:"),
            "c.yaml:16 | unknown section trainning | did you mean training?",
        ),
        case(
            "a mistyped key within a key",
            2,
            "train c.yaml",
            |d| edit(d, "c.yaml", "d_state", "d_stat"),
            "c.yaml:15 | d_stat | did you mean d_state?",
        ),
        case(
            "a mistyped key of ESM-2",
            2,
            "train c.yaml",
            |d| edit(d, "c.yaml", "num_attention_heads", "num_heads"),
            "esm.model | num_attention_heads",
        ),
        case(
            "a word for a number",
            2,
            "train c.yaml",
            |d| edit(d, "c.yaml", "max_steps: 4", "max_steps: four"),
            "c.yaml:18 | training.max_steps | \"four\"",
        ),
        case(
            "a value that is none",
            2,
            "train c.yaml",
            |d| edit(d, "c.yaml", "replicas: 2", "mask_policy: replica"),
            "c.yaml:10 | esm.mask_policy | replicas | unmasked",
        ),
        case(
            "two names of one setting",
            2,
            "train c.yaml",
            |d| edit(d, "c.yaml", "max_steps: 4", "lr: 1e-3\n  learning_rate: 1e-3"),
            "c.yaml:18 | c.yaml:19 | two names of one setting; keep one",
        ),
        case(
            "the same key twice",
            2,
            "train c.yaml",
            |d| edit(d, "c.yaml", "max_steps: 4", "lr: 1e-3\n  lr: 1e-3"),
            "c.yaml:19 | lr",
        ),
        case(
            "not YAML",
            2,
            "train c.yaml",
            |d| edit(d, "c.yaml", "{d_state: 4}", "{d_state: 4"),
            "c.yaml:1",
        ),
        case(
            "an unknown recipe",
            2,
            "train c.yaml",
            |d| edit(d, "c.yaml", "ptm_mamba", "ptm_mambo"),
            "c.yaml:1 | `ptm_mambo` | did you mean `ptm_mamba`?",
        ),
        case(
            "no recipe",
            2,
            "train c.yaml",
            |d| edit(d, "c.yaml", "recipe: ptm_mamba\n", ""),
            "c.yaml | recipe: ptm_mamba",
        ),
        case(
            "an unknown recipe of samples",
            2,
            "sample ptm_mambo x",
            none,
            "did you mean `ptm_mamba`?",
        ),
        case(
            "a part beyond the last",
            2,
            "embed c.yaml --part 4/4",
            none,
            "--part | `4/4` | such as 0/4",
        ),
        case("a part that is none", 2, "embed c.yaml --part two", none, "--part | `two`"),
        case(
            "a section that is gone",
            2,
            "train c.yaml",
            |d| edit(d, "c.yaml", "  model: {hidden", "  #{hidden"),
            "esm.model | c.yaml | training.use_esm: false",
        ),
        set("no =", "training.lr", 2, "--set training.lr | needs a ="),
        set(
            "an unknown key from --set",
            "training.lrr=1",
            2,
            "--set training.lrr=1 | did you mean lr?",
        ),
        set(
            "another width of ESM",
            "model.esm_embed_dim=17",
            2,
            "model.esm_embed_dim | 16 wide, not 17",
        ),
        set("dt_rank 0", "model.ssm_cfg.dt_rank=0", 2, "model.ssm_cfg.dt_rank"),
        set("dt_rank no number", "model.ssm_cfg.dt_rank=some", 2, "model.ssm_cfg.dt_rank | auto"),
        set("d_state below 1", "model.ssm_cfg.d_state=-3", 2, "model.ssm_cfg.d_state | -3"),
        set("a width beyond memory", "model.d_model=1000000000000", 2, "model.d_model"),
        set("layers beyond memory", "model.n_layer=1000000000000", 2, "model.n_layer"),
        set("no sample", "dataset.subsample=0", 2, "dataset.subsample | at least 1, or null"),
        set(
            "an unknown metric",
            "training.metric_for_best_model=val_los",
            2,
            "training.metric_for_best_model | val_los | loss | ptm_acc",
        ),
        set(
            "the wrong way up",
            "training.greater_is_better=true",
            2,
            "training.greater_is_better | auto",
        ),
        set("a rate below 0", "training.lr=-1", 2, "training.lr | above 0"),
        set(
            "no micro-batch",
            "training.micro_batches_per_step=0",
            2,
            "training.micro_batches_per_step | at least 1",
        ),
        set("a probability above 1", "masking.mask_prob=1.5", 2, "masking.mask_prob | from 0 to 1"),
        set(
            "heads that do not divide",
            "esm.model.num_attention_heads=3",
            2,
            "esm.model | num_attention_heads | 3 heads",
        ),
        set("a layer beyond the last", "esm.layer=3", 2, "esm.layer | layers 1 to 2"),
        set("fp16 on a CPU", "training.precision=fp16", 2, "training.precision | fp32 or bf16"),
        set("nccl", "distributed.backend=nccl", 2, "distributed.backend | auto or mpi"),
        set("a name with a slash", "run.name=a/b", 2, "run.name"),
        set("two masks", "esm.mask_prob=0.5", 2, "esm.mask_prob | masking.mask_prob"),
        set(
            "split sizes above all",
            "dataset.val_size=35",
            2,
            "dataset.val_size | there are 40 | lower dataset.val_size",
        ),
        set(
            "threads beyond reason",
            "distributed.threads_per_rank=1000000",
            2,
            "distributed.threads_per_rank",
        ),
        set(
            "more than memory",
            "model.d_model=65536 --set model.ssm_cfg.expand=64",
            4,
            "making the model | not enough memory | were asked for | model.d_model",
        ),
        set("workers beyond reason", "training.num_workers=1000000", 2, "training.num_workers"),
    ];
    let mut gpu = set("no GPU", "run.device=cuda", 4, "run.device | no GPU is visible | cpu");
    gpu.env = vec![("CUDA_VISIBLE_DEVICES", "")];
    table.push(gpu);
    check(&base, &table);
}
