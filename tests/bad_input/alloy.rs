//! Tables of alloys, samples and models that the recipe `alloy` cannot use, and odd tables that it
//! can.

#[path = "../common/alloys.rs"]
mod alloys;

use super::{Case, case, check, edit, none};
use crate::common::Scratch;
use alloys::{CONFIG, HEADER, table};
use std::fs;

/// With `c.yaml` and `alloys.csv` of the recipe.
fn scratch(name: &str) -> Scratch {
    let scratch = Scratch::new(name);
    scratch.write("c.yaml", CONFIG);
    scratch.write("alloys.csv", table(alloys::ROWS));
    scratch
}

/// A line more at the end of the table, line 50.
fn append(scratch: &Scratch, line: &str) {
    scratch.write("alloys.csv", scratch.read("alloys.csv") + line);
}

/// `prepare`, or another command, with a setting.
fn set(name: &'static str, code: i32, args: &'static str, says: &'static str) -> Case {
    case(name, code, args, none, says)
}

#[test]
fn tables() {
    let base = scratch("alloy-tables");
    let wrong = |name, prepare: fn(&Scratch), says| case(name, 3, "run c.yaml", prepare, says);
    let odd = |name, prepare: fn(&Scratch)| {
        case(name, 0, "run c.yaml", prepare, "48 rows, 6 columns | train 36, val 12 | done: ")
    };
    let by_class = "prepare c.yaml --set dataset.target=Microstructure --set dataset.classes=auto";
    check(
        &base,
        &[
            set(
                "no such column",
                2,
                "run c.yaml --set dataset.target=Hardness",
                "dataset.target: | alloys.csv has no column \"Hardness\" | PROPERTY: YS (MPa)",
            ),
            set(
                "a column with a slip",
                2,
                "run c.yaml --set dataset.target=YSS",
                "no column \"YSS\" | did you mean \"PROPERTY: YS (MPa)\"?",
            ),
            set(
                "no target",
                2,
                "run c.yaml --set dataset.target=null",
                "dataset.target | no target is named",
            ),
            set(
                "a class where a number is needed",
                3,
                "run c.yaml --set dataset.target=Microstructure",
                "alloys.csv:2: PROPERTY: Microstructure is \" | not a number | dataset.classes",
            ),
            wrong(
                "a word where a number is needed",
                |d| append(d, "b,Fe1 Ni1,CAST,12o,300,FCC\n"),
                "alloys.csv:50: PROPERTY: YS (MPa) is \"12o\", not a number | dataset.missing",
            ),
            wrong(
                "an infinite target",
                |d| append(d, "b,Fe1 Ni1,CAST,-inf,300,FCC\n"),
                "alloys.csv:50: PROPERTY: YS (MPa) is infinite",
            ),
            wrong(
                "an unknown element",
                |d| append(d, "b,Fe1 Xx1,CAST,120,300,FCC\n"),
                "alloys.csv:50: formula \"Fe1 Xx1\": \"Xx\" is no chemical element | did you mean",
            ),
            wrong(
                "a row that is long",
                |d| append(d, "b,Fe1,Ni1,CAST,120,300,FCC\n"),
                "alloys.csv:50: the row has 7 fields, the column names are 6",
            ),
            wrong(
                "semicolons among commas",
                |d| append(d, "b;Fe1 Ni1;CAST;120;300;FCC\n"),
                "alloys.csv:50: the fields of this row are parted by semicolons",
            ),
            wrong("column names alone", |d| d.write("alloys.csv", HEADER), "alloys.csv | no row"),
            wrong("an empty table", |d| d.write("alloys.csv", ""), "alloys.csv | is empty"),
            wrong(
                "no column names",
                |d| d.write("alloys.csv", "1,2,3\n4,5,6\n"),
                "alloys.csv:1 | holds numbers, not column names",
            ),
            wrong(
                "not UTF-8",
                |d| d.write("alloys.csv", [HEADER.as_bytes(), b"\xff,Fe1,CAST,1,300,x\n"].concat()),
                "alloys.csv:2 | UTF-8",
            ),
            wrong(
                "values of which none is there",
                |d| d.write("alloys.csv", format!("{HEADER}a,Fe1,CAST,,300,FCC\n")),
                "alloys.csv: no row can be used | 1: no value of the target",
            ),
            case("no file", 3, "run c.yaml --set dataset.dataset_location=x.csv", none, "x.csv"),
            case(
                "no formula",
                2,
                "run c.yaml",
                |d| edit(d, "alloys.csv", "FORMULA", "material"),
                "alloys.csv:1 | what the alloys are made of | dataset.columns",
            ),
            case(
                "a class with one member",
                3,
                by_class,
                |d| append(d, "b,Fe1 Ni1,CAST,120,300,HCP\n"),
                "class \"HCP\" has 1 member | dataset.classes",
            ),
            set(
                "a class without a member",
                3,
                "run c.yaml --set dataset.target=Microstructure \
                 --set dataset.classes.A=FCC --set dataset.classes.B=HCP",
                "class \"B\" has 0 members",
            ),
            set(
                "one class alone",
                2,
                "run c.yaml --set dataset.target=Microstructure --set dataset.classes.A=FCC",
                "dataset.classes | two classes or more",
            ),
            set(
                "nothing to train on",
                2,
                "run c.yaml --set dataset.val_size=48",
                "dataset.val_size: no row is left to train on | 48 rows",
            ),
            case(
                "a part without a composition",
                2,
                "run c.yaml --set dataset.val_size=0.15",
                |d| {
                    d.write("alloys.csv", format!("{HEADER}{}", "a,Fe1,CAST,1,300,FCC\n".repeat(3)))
                },
                "dataset.val_size: the val part is empty | 0.15 of 3 rows of 1 compositions",
            ),
            odd("a BOM", |d| d.write("alloys.csv", format!("\u{feff}{}", d.read("alloys.csv")))),
            odd("Windows line ends", |d| {
                d.write("alloys.csv", d.read("alloys.csv").replace('\n', "\r\n"));
            }),
            odd("quoted newlines", |d| {
                let text = d.read("alloys.csv").replace(",CAST,", ",\"CAST\nand more\",");
                assert!(text.contains('"'));
                d.write("alloys.csv", text);
            }),
            odd("semicolons", |d| {
                d.write("alloys.csv", d.read("alloys.csv").replace(',', ";"));
            }),
            case(
                "values that are no numbers",
                0,
                "run c.yaml",
                |d| {
                    append(d, "b,Fe1 Ni1,CAST,NaN,300,FCC\nc,Fe1 Ni1,CAST,n/a,300,FCC\n");
                    edit(d, "alloys.csv", ",300,", ",inf,");
                },
                "2 rows dropped: no value of the target (lines 50, 51) | an infinite number counts as \
                 missing | done: ",
            ),
        ],
    );
}

#[test]
fn configurations_of_alloys() {
    let base = scratch("alloy-configurations");
    let refused = |name, args, says| set(name, 2, args, says);
    check(
        &base,
        &[
            refused(
                "an unknown metric",
                "run c.yaml --set training.metric_for_best_model=val_r3",
                "training.metric_for_best_model | `val_r3` | did you mean `val_r2`? | val_mae_raw",
            ),
            refused(
                "a metric of classes",
                "run c.yaml --set training.metric_for_best_model=val_accuracy",
                "training.metric_for_best_model | `val_accuracy` | known here: val_loss",
            ),
            refused(
                "fp16 on a CPU",
                "run c.yaml --set training.precision=fp16",
                "training.precision | fp16 needs a GPU | fp32 or bf16",
            ),
            refused(
                "weights without classes",
                "run c.yaml --set loss.class_weights=balanced",
                "loss.class_weights | there are no classes",
            ),
            refused(
                "too few weights",
                "run c.yaml --set dataset.target=Microstructure --set dataset.classes=auto \
                 --set loss.class_weights=[1,2]",
                "loss.class_weights: 2 weights for 3 classes: BCC, FCC, FCC+BCC",
            ),
            refused(
                "a weight of 0",
                "run c.yaml --set dataset.target=Microstructure --set dataset.classes=auto \
                 --set loss.class_weights=[1,0,1]",
                "loss.class_weights | 0 is no weight above 0",
            ),
            refused(
                "a layer that is not there",
                "run c.yaml --set freeze.layers=0-5",
                "freeze.layers: there is no layer 2 | layers 0 to 1",
            ),
            refused(
                "a name that is not there",
                "run c.yaml --set freeze.names=[encoder.layers.0.*]",
                "freeze.names[0]: no parameter is called encoder.layers.0.* | did you mean",
            ),
            refused(
                "everything frozen",
                "run c.yaml --set freeze.names=['*']",
                "freeze | every parameter is frozen",
            ),
            refused(
                "stages the wrong way round",
                "run c.yaml --set stages=[train,pretrain]",
                "stages | is no order of stages | [pretrain, train]",
            ),
            refused("an unknown stage", "run c.yaml --set stages=[tune]", "stages | tune"),
            refused(
                "validation samples alone",
                "run c.yaml --set dataset.val_data=alloys.csv",
                "dataset.train_data | val_data is given, and train_data is not",
            ),
            set(
                "ready samples without texts",
                3,
                "run c.yaml --set dataset.val_data=alloys.csv --set dataset.train_data=alloys.csv",
                "alloys.csv:1: no column \"text\"",
            ),
            case(
                "a sentence without its style",
                2,
                "run c.yaml",
                |d| edit(d, "c.yaml", "element_facts: false", "template: ['It is {FORMULA}.']"),
                "c.yaml:7 | text.template | text.style is not template",
            ),
            refused(
                "a section of another recipe",
                "run c.yaml --set esm.replicas=2",
                "unknown section esm | training",
            ),
            refused(
                "a key of another recipe",
                "run c.yaml --set model.d_model=16",
                "unknown key model.d_model | hidden_size",
            ),
            refused(
                "a key with a slip",
                "run c.yaml --set model.init_form=m",
                "unknown key model.init_form | did you mean init_from?",
            ),
            refused(
                "heads that do not divide",
                "run c.yaml --set model.num_attention_heads=3",
                "model: num_attention_heads: 3 heads do not cut a width of 32",
            ),
            refused(
                "more tokens than positions",
                "run c.yaml --set dataset.max_sequence_length=4096",
                "dataset.max_sequence_length: the model takes 510 tokens, not 4096",
            ),
            set(
                "training before prepare",
                3,
                "train c.yaml",
                "all_data: the samples are not prepared | trainer prepare",
            ),
        ],
    );
}

/// A tokenizer of 40 ids, where the model has 300.
fn small_tokenizer(scratch: &Scratch) {
    let words: String = (0..35).map(|i| format!("word{i}\n")).collect();
    scratch.write("tok/vocab.txt", format!("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\n{words}"));
}

/// The run's best checkpoint becomes `m`.
fn take(scratch: &Scratch) {
    let best = scratch.find("t-20").pop().unwrap().join("best.ckpt");
    fs::rename(fs::canonicalize(best).unwrap(), scratch.path("m")).unwrap();
}

#[test]
fn models_of_alloys() {
    let base = Scratch::new("alloy-models");
    fs::rename(base.path("c.yaml"), base.path("ptm.yaml")).unwrap();
    edit(&base, "ptm.yaml", "output_dir: out", "output_dir: ptm");
    let trained = base.trainer("train ptm.yaml --set training.use_esm=false");
    assert_eq!(trained.code, 0, "{}", trained.err);
    let runs: Vec<_> = fs::read_dir(base.path("ptm")).unwrap().map(Result::unwrap).collect();
    assert_eq!(runs.len(), 1);
    fs::rename(runs[0].path(), base.path("other")).unwrap();
    base.write("c.yaml", CONFIG);
    base.write("alloys.csv", table(alloys::ROWS));
    let trained = base.trainer("run c.yaml");
    assert_eq!(trained.code, 0, "{}", trained.err);
    let damaged = |name, args, prepare: fn(&Scratch), says| case(name, 5, args, prepare, says);
    check(
        &base,
        &[
            set("what is right", 0, "predict c.yaml --output p.csv", "48 rows predicted"),
            set(
                "--mean",
                2,
                "predict c.yaml --mean --output p.csv",
                "--mean and --min-probability are for other recipes",
            ),
            damaged(
                "a model of another recipe",
                "predict c.yaml --checkpoint other",
                none,
                "other | no model that the recipe alloy has trained | RUN/best.ckpt",
            ),
            damaged(
                "another recipe's model to evaluate",
                "evaluate c.yaml --checkpoint other",
                none,
                "other | no model that the recipe alloy has trained",
            ),
            damaged(
                "a model of alloys for proteins",
                "predict ptm.yaml --checkpoint m --input data.csv",
                take,
                "m | missing | unexpected",
            ),
            damaged(
                "no run to predict with",
                "predict c.yaml --set run.name=u",
                none,
                "no run called u | --checkpoint",
            ),
            damaged("no checkpoint", "predict c.yaml --checkpoint gone", none, "gone"),
            damaged(
                "a pickle as checkpoint",
                "predict c.yaml --checkpoint m.pkl",
                |d| d.write("m.pkl", "x"),
                "m.pkl | pickle | torch.load",
            ),
            damaged(
                "a pickle to start from",
                "run c.yaml --set model.init_from=m.pt",
                |d| d.write("m.pt", "x"),
                "m.pt | pickle | torch.load",
            ),
            damaged(
                "a pickle as weights",
                "run c.yaml --set model.init_from=m",
                |d| {
                    take(d);
                    fs::rename(d.path("m/model.safetensors"), d.path("m/pytorch_model.bin"))
                        .unwrap();
                },
                "pytorch_model.bin | pickle | torch.load",
            ),
            damaged(
                "no directory to start from",
                "run c.yaml --set model.init_from=gone",
                none,
                "gone: there is no such directory | config.json",
            ),
            damaged(
                "a directory that is no model",
                "run c.yaml --set model.init_from=tmp",
                none,
                "tmp: no config.json here | Hugging Face directory",
            ),
            case(
                "a tokenizer of another model",
                2,
                "run c.yaml --set model.tokenizer=tok --set model.model_type=bert \
                 --set model.vocab_size=3000",
                small_tokenizer,
                "tok | does not fit the model: only 40 of the model's 3000",
            ),
            case(
                "a model that a tokenizer outgrows",
                2,
                "run c.yaml --set model.tokenizer=tok --set model.model_type=bert \
                 --set model.vocab_size=30",
                small_tokenizer,
                "tok | its ids go up to 39, the model's vocab_size is 30",
            ),
            damaged(
                "no tokenizer",
                "run c.yaml --set model.tokenizer=tmp",
                none,
                "tmp: no tokenizer in this directory | tokenizer.json",
            ),
            damaged(
                "weights of another shape",
                "run c.yaml --set model.init_from=m --set model.hidden_size=64",
                take,
                "m/model.safetensors | has the shape | the model wants",
            ),
            damaged(
                "a checkpoint of another target",
                "evaluate c.yaml --set dataset.normalization=none",
                |d| {
                    let again = d.trainer("prepare c.yaml --set dataset.normalization=none");
                    assert_eq!(again.code, 0, "{}", again.err);
                },
                "another target or normalisation",
            ),
            case(
                "a new table without formulas",
                3,
                "predict c.yaml --input new.csv --output p.csv",
                |d| d.write("new.csv", "phase,id\nFCC,1\n"),
                "new.csv:1: no column says what the alloys are made of | FORMULA",
            ),
            case(
                "an unknown element far down",
                3,
                "predict c.yaml --input new.csv --output p.csv",
                |d| {
                    let good: String = (0..300).map(|_| "Fe1 Ni1\n").collect();
                    d.write("new.csv", format!("FORMULA\n{good}Fe1 Xx1\n"));
                },
                "new.csv:302: formula \"Fe1 Xx1\" | no chemical element",
            ),
            case(
                "a row without a formula",
                3,
                "predict c.yaml --input new.csv",
                |d| d.write("new.csv", "FORMULA,YS\nFe1,1\n,2\n"),
                "new.csv:3: the row has no composition",
            ),
            case(
                "on two ranks, told once",
                3,
                "predict c.yaml --input new.csv --output p.csv",
                |d| d.write("new.csv", "FORMULA\nFe1\nXx1\n"),
                "new.csv:3: formula \"Xx1\"",
            )
            .ranks(2),
            set("no new table", 3, "predict c.yaml --input gone.csv", "gone.csv"),
            set(
                "a row that is not there",
                2,
                "inspect c.yaml --row 99",
                "alloys.csv: there is no row 99, the table has 48",
            ),
        ],
    );
}
