//! The way from a table to samples, on small tables: what is dropped, changed, left out, refused.

use super::config::{Style, TextSection};
use super::fixtures::{Scratch, check_parts, dataset, dropped, make, own, quietly, read};
use super::prepare::is_prepared;
use super::rows::{TextRows, row_text};
use super::samples::{Samples, read_samples, texts_stamp, training_texts};
use super::target::Target;
use crate::config::{Dataset, Size, UserPath};
use std::collections::BTreeMap;
use std::path::PathBuf;

/// A table of 60 rows with 20 compositions: `f` gives further rows.
fn small(dir: &Scratch, name: &str, further: &str) -> PathBuf {
    let mut text = String::from("id,FORMULA,process,YS (MPa),T (K),phase,doi\n");
    for i in 0..60 {
        let phase = ["FCC", "BCC", "mixed"][i % 3];
        let temperature = 300 + 100 * (i / 20);
        text += &format!("a{i},Al{} Co1 Ni1,CAST,{},{temperature},{phase},d\n", i % 20, 100 + i);
    }
    dir.file(name, text + further)
}

#[test]
fn every_dropped_row_and_changed_cell_is_listed() {
    let dir = Scratch::new("counts");
    let further = "b0,Al1 Co1,CAST,,300,FCC,d\nb1,Al1 Co1,CAST,nan,300,FCC,d\n\
                   b2,Al1 Co1,CAST,-5,300,FCC,d\nb3,,CAST,5,300,FCC,d\n\
                   b4,Al1 Co1,CAST,1.5 GPa,300,FCC,d\nb5,Al1 Co1,CAST,120 ± 5,-3,FCC,d\n\
                   b6,Al1 Co1,CAST,120,inf,FCC,d\nb7,Al1 Co1,n/a,9000,300,FCC,d\n";
    let table = small(&dir, "t.csv", further);
    let own = own(&dir, "target: YS\noutliers: {range: [0, 5000]}\nid_column_name: id");
    let (report, samples) = make(&dataset(&table), &own);
    let expected = [
        ("a physically impossible value of the target", 1),
        ("an outlier of the target", 1),
        ("no composition", 1),
        ("no value of the target", 2),
    ];
    assert_eq!(dropped(&report), BTreeMap::from(expected));
    assert_eq!(report.dropped["no value of the target"].lines, [62, 63]);
    assert_eq!(report.rows, 68);
    assert_eq!(samples.train.len() + samples.val.len(), 63);
    let ys = &report.changed["PROPERTY: YS (MPa)"];
    assert_eq!(ys["a number in another unit is converted"].lines, [66]);
    assert_eq!(ys["a spread behind the number (±) is dropped"].lines, [67]);
    let t = &report.changed["PROPERTY: T (K)"];
    assert_eq!(t["a physically impossible number counts as missing"].lines, [67]);
    assert_eq!(t["an infinite number counts as missing"].lines, [68]);
    assert_eq!(report.changed.len(), 2);
    let all: BTreeMap<&str, &str> = samples
        .train
        .iter()
        .chain(&samples.val)
        .map(|s| (s.id.as_str(), s.target_raw.as_str()))
        .collect();
    assert_eq!((all["b4"], all["b5"]), ("1500", "120"));
    let text =
        std::fs::read_to_string(own.prepared_dir.join("all_data_YS/prepare_report.txt")).unwrap();
    assert!(text.contains("2 rows dropped: no value of the target (lines 62, 63)"), "{text}");
    let (headers, rows) = read(&own.prepared_dir.join("all_data_YS.csv"));
    assert_eq!((headers.get(3), rows.len()), (Some("PROPERTY: YS (MPa)"), 63));
    check_parts(&own, &samples);
}

#[test]
fn outliers_by_quartiles_of_the_training_part() {
    let dir = Scratch::new("iqr");
    let table = small(&dir, "t.csv", "b0,W1,CAST,99999,300,FCC,d\n");
    let own = own(&dir, "target: YS\noutliers: {iqr: 3}");
    let (report, samples) = make(&dataset(&table), &own);
    assert_eq!(dropped(&report), BTreeMap::from([("an outlier of the target", 1)]));
    assert_eq!(samples.train.len() + samples.val.len(), 60);
    let Target::Regression { mean, .. } = samples.target else { panic!() };
    assert!((100.0..160.0).contains(&mean));
}

#[test]
fn shuffled_rows_change_nothing() {
    let dir = Scratch::new("shuffled");
    let table = small(&dir, "t.csv", "");
    let text = std::fs::read_to_string(&table).unwrap();
    let mut lines: Vec<&str> = text.lines().collect();
    let own = own(&dir, "target: YS\nid_column_name: id");
    let sorted = |mut samples: Samples| {
        for part in [&mut samples.train, &mut samples.val] {
            part.iter_mut().for_each(|sample| sample.place.clear());
            part.sort_by(|a, b| a.id.cmp(&b.id));
        }
        (samples.train, samples.val, samples.target)
    };
    for split in ["grouped", "random"] {
        let mut own = own.clone();
        own.split = serde_json::from_str(&format!("{split:?}")).unwrap();
        let first = sorted(make(&dataset(&table), &own).1);
        assert!(!first.1.is_empty());
        lines[1..].rotate_left(23);
        lines[1..].reverse();
        let turned = dir.file("turned.csv", lines.join("\r\n"));
        assert_eq!(sorted(make(&dataset(&turned), &own).1), first);
    }
}

#[test]
fn a_table_of_element_columns() {
    let dir = Scratch::new("elements");
    let mut text = String::from("W,Nb,Cr composition,YS (MPa)\n");
    for i in 0..40 {
        text += &format!("{},1,,{}\n", i % 8 + 1, 100 + i);
    }
    let own = own(&dir, "target: YS");
    let (report, samples) = make(&dataset(&dir.file("t.csv", text)), &own);
    let compositions: u64 = report.parts.values().map(|part| part.compositions).sum();
    assert_eq!((compositions, report.leak.rows), (8, 0));
    let text = &samples
        .train
        .iter()
        .find(|s| s.target_raw == "100" || s.target_raw == "108")
        .unwrap()
        .text;
    assert!(text.starts_with("In atomic percent it is W 50, Nb 50. Tungsten (W): "), "{text}");
}

#[test]
fn prepared_data_are_known_again() {
    let dir = Scratch::new("known");
    let table = small(&dir, "t.csv", "");
    let shared = dataset(&table);
    let own = own(&dir, "targets: {y: YS, p: phase}\ntarget: y\nclasses: auto");
    let text = TextSection::default();
    assert!(!is_prepared(&shared, &own, &text).unwrap());
    assert!(
        read_samples(&shared, &own, &text).unwrap_err().to_string().contains("trainer prepare")
    );
    let prepared = quietly(&shared, &own, &text).unwrap();
    assert_eq!((prepared.reports.len(), prepared.rows), (2, 60));
    assert!(is_prepared(&shared, &own, &text).unwrap());
    let bytes = |short: &str| {
        std::fs::read(own.prepared_dir.join(format!("{short}/tr_{short}_text.csv"))).unwrap()
    };
    let before = bytes("y");
    let known = texts_stamp(&own).unwrap();
    let texts: Vec<String> = training_texts(&own).unwrap().map(Result::unwrap).collect();
    let samples = read_samples(&shared, &own, &text).unwrap();
    assert!(texts.iter().eq(samples.train.iter().map(|sample| &sample.text)));
    // Other keys, another table and a missing file are each seen.
    let other = Dataset { split_seed: 43, ..shared.clone() };
    assert!(!is_prepared(&other, &own, &text).unwrap());
    assert!(read_samples(&other, &own, &text).unwrap_err().to_string().contains("other settings"));
    let simple = TextSection { style: Style::Simple, ..text.clone() };
    assert!(!is_prepared(&shared, &own, &simple).unwrap());
    small(&dir, "t.csv", "b0,W1,CAST,99,300,FCC,d\n");
    assert!(!is_prepared(&shared, &own, &text).unwrap());
    small(&dir, "t.csv", "");
    assert!(is_prepared(&shared, &own, &text).unwrap());
    std::fs::remove_file(own.prepared_dir.join("p/vl_p_text.csv")).unwrap();
    assert!(!is_prepared(&shared, &own, &text).unwrap());
    // What a killed process left goes; what a living one writes stays.
    let left = |pid: &str| {
        let name = format!(".tmp-tr_y_text.csv-{}-{pid}", crate::files::host_name());
        own.prepared_dir.join("y").join(name)
    };
    std::fs::write(left("4194305"), "cut").unwrap();
    std::fs::write(left("1"), "being written").unwrap();
    quietly(&shared, &own, &text).unwrap();
    assert!(!left("4194305").exists() && left("1").exists());
    std::fs::remove_file(left("1")).unwrap();
    assert_eq!((bytes("y"), texts_stamp(&own).unwrap()), (before, known));
    let mut classes = own.clone();
    classes.target = Some("p".into());
    let samples = read_samples(&shared, &classes, &text).unwrap();
    let Target::Classes { names, .. } = &samples.target else { panic!() };
    assert_eq!(*names, ["BCC", "FCC", "mixed"]);
    assert!(samples.train.iter().all(|s| names[s.target as usize] == s.target_raw));
    let leftovers = std::fs::read_dir(own.prepared_dir.join("y")).unwrap();
    assert!(leftovers.flatten().all(|e| !e.file_name().to_string_lossy().starts_with(".tmp")));
}

#[test]
fn new_rows_have_the_texts_of_training() {
    let dir = Scratch::new("new-rows");
    let table = small(&dir, "t.csv", "");
    let shared = dataset(&table);
    let own = own(&dir, "target: YS\nid_column_name: id");
    let (_, samples) = make(&shared, &own);
    let plan = samples.text.clone().unwrap();
    let texts: BTreeMap<String, String> =
        samples.train.iter().chain(&samples.val).map(|s| (s.id.clone(), s.text.clone())).collect();
    let mut n = 0;
    for row in TextRows::open(&table, &plan).unwrap() {
        let row = row.unwrap();
        n += 1;
        assert_eq!(row.row, n);
        assert_eq!(texts[&row.id], row.text.unwrap());
    }
    assert_eq!(n, 60);
    // Another order, no target, a column less, and a formula that is none.
    let new = dir.file("new.csv", "phase;FORMULA;id\nFCC;Al0 Co1 Ni1;x\nFCC;Qq1;y\nFCC;;z\n");
    let mut rows = TextRows::open(&new, &plan).unwrap();
    assert!(rows.notes[0].contains("PROPERTY: process"), "{:?}", rows.notes);
    let first = rows.next().unwrap().unwrap();
    assert_eq!((first.id.as_str(), first.row), ("x", 1));
    assert!(
        first
            .text
            .unwrap()
            .starts_with("The alloy is Al0 Co1 Ni1. In atomic percent it is Co 50, Ni 50.")
    );
    let second = rows.next().unwrap().unwrap();
    let error = second.text.unwrap_err();
    assert_eq!(second.id, "y");
    assert!(
        error.to_string().contains("new.csv:3: formula \"Qq1\": \"Qq\" is no chemical element"),
        "{error}"
    );
    assert!(rows.next().unwrap().unwrap().text.unwrap_err().to_string().contains("no composition"));
    assert!(rows.next().is_none());
    let lacking = dir.file("lacking.csv", "phase,id\nFCC,1\n");
    assert_eq!(TextRows::open(&lacking, &plan).err().unwrap().code(), 3);
    let seventh = row_text(&shared, &own, 7).unwrap();
    assert_eq!(seventh.text, texts["a6"]);
    assert!(seventh.place.ends_with("t.csv:8"));
    let left: Vec<&str> = seventh.left_out.iter().map(|(name, ..)| name.as_str()).collect();
    assert_eq!(left, ["IDENTIFIER: id", "PROPERTY: YS (MPa)", "REFERENCE: doi"]);
    assert_eq!(row_text(&shared, &own, 61).unwrap_err().code(), 2);
}

/// Rows that spell a class word, or a number that is the target in another unit, are found.
#[test]
fn leaking_values_are_left_out() {
    let dir = Scratch::new("leaking");
    let mut text = String::from("FORMULA,YS (MPa),stress at yielding,code,remark,phase\n");
    for i in 0..90 {
        let phase = ["FCC", "BCC", "mixed"][i % 3];
        let code = ["p", "q", "r"][i % 3];
        let remark = if i == 50 { "FCC I think" } else { "fine" };
        let x = 100 + 7 * (i * i % 31);
        text +=
            &format!("Al{i} Co1 Ni1,{x},{},{code},{remark},{phase}\n", f64::from(x as u32) * 0.145);
    }
    let table = dir.file("t.csv", text);
    let left = |target: &str, classes: &str| -> Vec<String> {
        let own = own(&dir, &format!("target: {target}\n{classes}"));
        let (report, samples) = make(&dataset(&table), &own);
        for sample in samples.train.iter().chain(&samples.val) {
            let words = ["FCC", "BCC", "mixed"];
            assert!(
                target != "phase" || words.iter().all(|w| !sample.text.contains(w)),
                "{}",
                sample.text
            );
        }
        report.text.left_out.into_iter().map(|l| l.column).collect()
    };
    assert_eq!(left("YS", ""), ["PROPERTY: YS (MPa)", "PROPERTY: stress at yielding"]);
    let expected = ["PROPERTY: code", "PROPERTY: remark", "PROPERTY: phase"];
    assert_eq!(left("phase", "classes: auto"), expected);
    assert_eq!(left("phase", "classes: auto\nexclude: [YS]")[0], "PROPERTY: YS (MPa)");
}

#[test]
fn ready_samples_need_no_preparation() {
    let dir = Scratch::new("ready");
    let ready =
        |name: &str, text: &str| UserPath::new(dir.file(name, text).to_str().unwrap()).unwrap();
    let read = |train: (&str, &str), val: (&str, &str), target: &str| {
        let mut own = own(&dir, target);
        own.train_data = Some(ready(train.0, train.1));
        own.val_data = Some(ready(val.0, val.1));
        assert!(is_prepared(&Dataset::default(), &own, &TextSection::default()).unwrap());
        assert_eq!(
            quietly(&Dataset::default(), &own, &TextSection::default()).unwrap_err().code(),
            2
        );
        read_samples(&Dataset::default(), &own, &TextSection::default())
    };
    let train = ("a.csv", "text,target,target_raw\nx,-1,100\ny,1,300\nz,0,200\n");
    let val = ("b.jsonl", "{\"text\": \"w\", \"target\": 2, \"target_raw\": 400, \"id\": \"q\"}\n");
    let samples = read(train, val, "target: YS").unwrap();
    assert_eq!(
        samples.target,
        Target::Regression { name: "YS".into(), unit: None, mean: 200.0, std: 100.0 }
    );
    assert_eq!((samples.val[0].id.as_str(), samples.train[2].id.as_str()), ("q", "3"));
    assert!(
        samples.val[0].place.ends_with("b.jsonl:1") && samples.train[0].place.ends_with("a.csv:2")
    );
    let classes =
        ("c.csv", "id,text,target,target_raw\n1,x,1,BCC\n2,y,0,FCC\n3,z,2,HCP\n4,z,2,B2\n");
    let samples = read(classes, ("d.csv", "text,target,target_raw\nx,1,BCC\n"), "").unwrap();
    let names = ["FCC", "BCC", "2"].map(String::from).to_vec();
    assert_eq!(samples.target, Target::Classes { name: "target".into(), names });
    let refused = [
        (("a.csv", "txt,target\nx,1\n"), 3, "a.csv:1: no column \"text\""),
        (("a.csv", "text,label\nx,1\n"), 3, "a.csv:1: no column \"target\""),
        (("a.csv", "text,target\n,1\n"), 3, "a.csv:2: text is empty"),
        (("a.csv", "text,target\nx,FCC\n"), 3, "a.csv:2: target is \"FCC\", not a number"),
        (("a.csv", "text,target\nx,inf\n"), 3, "a.csv:2: target is inf, which is not finite"),
        (
            ("a.csv", "text,target,target_raw\nx,0,1\ny,1,2\nz,5,3\n"),
            3,
            "a.csv:3: target is not a straight line",
        ),
        (("a.csv", "text,target\n"), 3, "a.csv: there is no sample in it"),
        (("a.jsonl", "{\"text\": 1"), 3, "a.jsonl:1: not a JSON object"),
        (("a.pkl", "\u{80}"), 3, "a.pkl"),
    ];
    for (train, code, expected) in refused {
        let error = read(train, val, "").unwrap_err();
        assert_eq!(error.code(), code, "{error}");
        assert!(error.to_string().contains(expected), "{error}");
    }
    let mut own = own(&dir, "");
    own.train_data = Some(UserPath::new(dir.file("p.pkl", b"\x80\x04").to_str().unwrap()).unwrap());
    own.val_data = own.train_data.clone();
    let error = read_samples(&Dataset::default(), &own, &TextSection::default()).unwrap_err();
    assert_eq!(error.code(), 5, "{error}");
}

#[test]
fn bad_input_is_named_with_its_remedy() {
    let dir = Scratch::new("bad");
    let head = "FORMULA,YS (MPa),phase\n";
    let good: String =
        (0..20).map(|i| format!("Al{i} Co1,{},{}\n", 100 + i, ["a", "b"][i % 2])).collect();
    let cases: Vec<(&str, String, i32, &str)> = vec![
        ("target: UTS", format!("{head}{good}"), 2, "dataset.target: T.csv has no column \"UTS\""),
        ("target: YSS", format!("{head}{good}"), 2, "did you mean \"PROPERTY: YS (MPa)\""),
        (
            "targets: {a: UTS}",
            format!("{head}{good}"),
            2,
            "dataset.targets.a: T.csv has no column \"UTS\"",
        ),
        (
            "target: phase",
            format!("{head}{good}"),
            3,
            "T.csv:2: PROPERTY: phase is \"a\", not a number",
        ),
        (
            "target: YS",
            format!("{head}{good}Al1 Co1,12o,a\n"),
            3,
            "T.csv:22: PROPERTY: YS (MPa) is \"12o\", not a number",
        ),
        (
            "target: YS",
            format!("{head}{good}Al1 Co1,-inf,a\n"),
            3,
            "T.csv:22: PROPERTY: YS (MPa) is infinite",
        ),
        (
            "target: YS",
            format!("{head}{good}Al1 Xx2,5,a\n"),
            3,
            "T.csv:22: formula \"Al1 Xx2\": \"Xx\" is no chemical element",
        ),
        (
            "target: phase\nclasses: auto",
            format!("{head}{good}W1,1,c\n"),
            3,
            "class \"c\" has 1 member",
        ),
        (
            "target: phase\nclasses: {a: a, z: [q]}",
            format!("{head}{good}"),
            3,
            "class \"z\" has 0 members",
        ),
        (
            "target: phase\nclasses: auto",
            "FORMULA,phase\nAl1,a\nCo1,a\nNi1,a\nFe1,a\nMn1,a\nCr1,a\n".into(),
            3,
            "has one class alone: a",
        ),
        (
            "target: YS",
            format!("{head}Al1,1,a\nAl1,2,a\nAl2,3,a\n"),
            2,
            "PROPERTY: YS (MPa): dataset.val_size: the val part is empty: 0.15 of 3 rows of 1 compositions",
        ),
        (
            "target: YS",
            format!("{head}Al1,,a\n"),
            3,
            "T.csv: no row can be used for PROPERTY: YS (MPa) (1: no value of the target)",
        ),
        ("target: YS", head.into(), 3, "T.csv: no row below the column names"),
        (
            "target: YS",
            format!("{head}{good}").replace("Al", "W1 Al").replace("1 Al3 ", "1,Al3 "),
            3,
            "T.csv:5: the row has 4 fields, the column names are 3",
        ),
        (
            "target: YS",
            format!("{head}{good}").replace("Al9 Co1,109,", "Al9 Co1;109;"),
            3,
            "T.csv:11: the fields of this row are parted by semicolons",
        ),
        (
            "target: YS",
            good.replace("Al0 Co1,100,a", "name,YS,x"),
            2,
            "no column says what the alloys are made of",
        ),
        (
            "target: YS",
            format!("{head}Al1,5,a\nCo1,5,a\nNi1,5,a\nFe1,5,a\n"),
            3,
            "PROPERTY: YS (MPa): every training row has the value 5",
        ),
        (
            "target: YS\nclasses: auto\ntargets: {a: YS, b: T}",
            "FORMULA,YS,T\nAl1,1,2\nCo1,2,3\n".into(),
            2,
            "every target holds numbers, and classes are given",
        ),
        (
            "target: YS\nexclude: [ph]",
            format!("{head}{good}"),
            2,
            "dataset.exclude: T.csv has no column \"ph\"",
        ),
        (
            "target: YS\nid_column_name: phase",
            format!("{head}{good}"),
            3,
            "T.csv:4: the id \"a\" stands on line 2 already",
        ),
        (
            "target: YS\ncolumns: {nothing: FORMULA}",
            format!("{head}{good}"),
            2,
            "dataset.columns: T.csv has no column \"nothing\"",
        ),
    ];
    for (yaml, text, code, expected) in cases {
        let table = dir.file("t.csv", &text);
        let own = own(&dir, yaml);
        let error = quietly(&dataset(&table), &own, &TextSection::default())
            .map(|p| panic!("{yaml} gave {:?}", p.reports[0].to_text()))
            .unwrap_err();
        let said = error.to_string().replace(table.to_str().unwrap(), "T.csv");
        assert_eq!(error.code(), code, "{said}");
        assert!(said.contains(expected), "{yaml}\n{said}\nwanted {expected}");
    }
    // What looks odd and is not wrong.
    let plain = format!("{head}{good}");
    for odd in [
        format!("\u{feff}{plain}"),
        plain.replace('\n', "\r\n"),
        plain.replace("Al3 ", "\"Al3\n\" ").replace("\" Co1", " Co1\""),
        plain.replace(',', ";"),
    ] {
        let own = own(&dir, "target: YS");
        let (report, samples) = make(&dataset(&dir.file("t.csv", odd)), &own);
        assert_eq!((report.rows, samples.train.len() + samples.val.len()), (20, 20));
    }
}

#[test]
fn a_mapping_says_the_parts() {
    let dir = Scratch::new("alloy-mapping");
    let table = small(&dir, "t.csv", "");
    let parts: BTreeMap<String, &str> =
        (0..60).map(|i| (format!("a{i}"), ["train", "val", "test"][i % 3])).collect();
    let mapping = dir.file("m.json", serde_json::to_string(&parts).unwrap());
    let mut shared = dataset(&table);
    shared.split_mapping = Some(UserPath::new(mapping.to_str().unwrap()).unwrap());
    shared.test_size = Size::Samples(0);
    let own = own(&dir, "target: YS\nid_column_name: id");
    let (report, samples) = make(&shared, &own);
    assert_eq!((samples.train.len(), samples.val.len(), samples.test.len()), (20, 20, 20));
    assert!(samples.val.iter().all(|s| parts[&s.id] == "val"));
    assert_eq!(report.split, "mapping");
    // 60 rows of 20 compositions dealt in turn: every held-out one is also trained on.
    assert_eq!((report.leak.rows, report.leak.of_rows), (40, 40));
}
