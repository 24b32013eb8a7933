//! A small synthetic table: made-up alloys whose strength, stiffness and phase follow from their
//! elements by a simple rule, so that a model can be seen to learn within a minute. It says nothing
//! about metallurgy.

use crate::error::Result;
use crate::files;
use crate::rng::{Key, Purpose, Stream};
use std::io::Write;
use std::path::Path;

/// (symbol, MPa it adds to the strength, GPa to the modulus, g/cm³ to the density, valence
/// electrons), each times its atomic fraction.
type Made = (&'static str, f64, f64, f64, f64);

/// Alloys are drawn from one of two palettes, as real ones mostly are.
const PALETTES: [&[Made]; 2] = [
    &[
        ("Al", 1400.0, 70.0, 2.7, 3.0),
        ("Co", 300.0, 209.0, 8.9, 9.0),
        ("Cr", 700.0, 279.0, 7.2, 6.0),
        ("Cu", 100.0, 130.0, 9.0, 11.0),
        ("Fe", 350.0, 211.0, 7.9, 8.0),
        ("Mn", 200.0, 198.0, 7.2, 7.0),
        ("Ni", 250.0, 200.0, 8.9, 10.0),
    ],
    &[
        ("Hf", 800.0, 141.0, 13.3, 4.0),
        ("Mo", 1900.0, 329.0, 10.3, 6.0),
        ("Nb", 900.0, 105.0, 8.6, 5.0),
        ("Ta", 1300.0, 186.0, 16.7, 5.0),
        ("Ti", 800.0, 116.0, 4.5, 4.0),
        ("V", 1000.0, 128.0, 6.1, 5.0),
        ("Zr", 700.0, 94.0, 6.5, 4.0),
    ],
];
/// (word, MPa it adds).
const PROCESSES: [(&str, f64); 4] =
    [("CAST", 0.0), ("WROUGHT", 200.0), ("POWDER", 300.0), ("ANNEAL", -100.0)];
const HEADER: &str = "IDENTIFIER: Reference ID,FORMULA,PROPERTY: Microstructure,\
    PROPERTY: Processing method,PROPERTY: BCC/FCC/other,PROPERTY: Calculated Density (g/cm$^3$),\
    PROPERTY: Type of test,PROPERTY: Test temperature ($^\\circ$C),PROPERTY: YS (MPa),\
    PROPERTY: Calculated Young modulus (GPa),REFERENCE: doi";
const ALLOYS: u32 = 300;

/// Writes `dir/alloys.csv` with the column names of the MPEA table, and says what it is.
pub fn write(dir: &Path, seed: u64) -> Result<String> {
    files::make_dir(dir)?;
    let path = dir.join("alloys.csv");
    let mut rows = 0;
    files::write_atomic(&path, |out| {
        writeln!(out, "{HEADER}")?;
        for alloy in 0..ALLOYS {
            let mut stream = Key::new(seed, Purpose::Sample).stream(alloy, 1);
            let lines = alloy_rows(alloy, &mut stream);
            rows += lines.len();
            lines.iter().try_for_each(|line| writeln!(out, "{line}"))?;
        }
        Ok(())
    })?;
    Ok(format!(
        "{}: {rows} synthetic rows of {ALLOYS} alloys (random compositions and made-up rules for YS, \
         Young's modulus and phase, for trying the program alone)",
        path.display()
    ))
}

/// One alloy, measured at one to four temperatures.
fn alloy_rows(alloy: u32, stream: &mut Stream) -> Vec<String> {
    let palette = PALETTES[stream.below(2) as usize];
    let mut picked: Vec<&Made> = palette.iter().collect();
    stream.shuffle(&mut picked);
    picked.truncate(3 + stream.below(4) as usize);
    picked.sort_by_key(|made| made.0);
    let amounts: Vec<f64> = picked.iter().map(|_| (1 + stream.below(10)) as f64 / 10.0).collect();
    let total: f64 = amounts.iter().sum();
    let mixed = |of: fn(&Made) -> f64| -> f64 {
        picked.iter().zip(&amounts).map(|(made, amount)| of(made) * amount / total).sum()
    };
    let (strength, modulus, density, electrons) =
        (mixed(|m| m.1), mixed(|m| m.2), mixed(|m| m.3), mixed(|m| m.4));
    let (structure, phase) = match electrons {
        e if e >= 8.0 => ("FCC", "FCC"),
        e if e < 6.87 => ("BCC", "BCC"),
        _ => ("FCC+BCC", "other"),
    };
    let formula: Vec<String> =
        picked.iter().zip(&amounts).map(|(made, amount)| format!("{}{amount}", made.0)).collect();
    let (process, added) = PROCESSES[stream.below(4) as usize];
    let test = if stream.below(2) == 0 { "C" } else { "T" };
    (0..1 + stream.below(4))
        .map(|measurement| {
            let temperature = if measurement == 0 { 25.0 } else { 200.0 * measurement as f64 };
            let weaker = 1.0 - temperature / 2000.0;
            let noise = 1.0 + 0.03 * stream.normal();
            let ys = (strength + added + 150.0) * weaker * noise;
            // Some values are missing, as in real tables.
            let ys = if stream.uniform() < 0.1 { String::new() } else { format!("{ys:.0}") };
            let modulus = if stream.uniform() < 0.3 { String::new() } else { format!("{modulus:.0}") };
            format!(
                "{alloy},{},{structure},{process},{phase},{density:.1},{test},{temperature:.1},{ys},\
                 {modulus},10.0/synthetic.{alloy}",
                formula.join(" ")
            )
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::super::table::config::TextSection;
    use super::super::table::fixtures::{Scratch, dataset, own};
    use super::super::table::prepare::prepare;

    #[test]
    fn every_target_can_be_prepared() {
        let dir = Scratch::new("synthetic");
        super::write(&dir.0, 1).unwrap();
        let table = dir.0.join("alloys.csv");
        let own = own(
            &dir,
            "targets: {ys: YS, e: Calculated Young modulus, phase: BCC/FCC/other}\n\
             classes: {FCC: [FCC], BCC: [BCC], Other: '*'}",
        );
        let prepared = prepare(&dataset(&table), &own, &TextSection::default(), &|_| {}).unwrap();
        assert!(prepared.rows > 500, "{}", prepared.rows);
        for report in prepared.reports {
            let (train, val) = (&report.parts["train"], &report.parts["val"]);
            assert!(train.samples > 300 && val.samples > 50, "{}", report.to_text());
            assert_eq!(report.leak.rows, 0);
            for class in &train.classes {
                assert!(*class > 60, "{:?}", train.classes);
            }
        }
        let first = std::fs::read(&table).unwrap();
        super::write(&dir.0, 1).unwrap();
        assert_eq!(std::fs::read(&table).unwrap(), first);
        super::write(&dir.0, 2).unwrap();
        assert_ne!(std::fs::read(&table).unwrap(), first);
    }
}
