//! ROC curves, one class against the rest.

use super::super::picture::axes::{Plot, Range};
use super::super::picture::{Anchor, Colour, Pen, Scene, Style, font};
use super::super::step_line::{count, counted};
use super::{BELOW_AXIS, RIGHT, TEXT_SIZE, TOP, WIDTH};
use crate::error::{Error, Result};
use crate::metrics::classification::{Classification, classification};
use crate::metrics::ranking::roc_curve;
use std::path::Path;

/// More curves are not told apart. Those of the classes with the most samples are drawn.
const MOST_CURVES: usize = 10;

/// Points of a curve that lie closer together than this, in pixels, are one.
const CLOSE: f64 = 0.3;

/// About so many ticks an axis.
const TICKS: usize = 5;

/// How lines differ once colours are used up.
const DASHES: [&[f64]; 2] = [&[], &[7.0, 4.0]];

/// The ROC curves of a classifier. With two classes there is one, class 1's.
#[derive(Clone, Copy, Debug)]
pub struct RocPicture<'a> {
    /// Stands above the picture.
    pub title: &'a str,
    /// The classes' names.
    pub classes: &'a [String],
    /// Probabilities [samples, classes], row by row.
    pub probabilities: &'a [f64],
    /// The samples' class numbers.
    pub targets: &'a [usize],
}

/// One line of the legend, and the curve it stands for.
struct Curve {
    legend: String,
    points: Vec<(f64, f64)>,
    pen: Pen,
}

impl RocPicture<'_> {
    /// Writes `PATH.svg` and `PATH.png`. Samples whose probabilities are not all finite are left
    /// out and counted in the picture; a class without a curve (no sample, or every sample) is
    /// named in it.
    ///
    /// # Errors
    /// No sample that can be drawn (exit code 3), sizes that do not match (70), files that cannot
    /// be written (4).
    pub fn write(&self, path_without_extension: &Path) -> Result<()> {
        self.scene()?.write(path_without_extension)
    }

    /// The picture; fails like [`RocPicture::write`].
    pub fn scene(&self) -> Result<Scene> {
        let width = self.classes.len();
        if width < 2 || self.probabilities.len() != width * self.targets.len() {
            return Err(Error::bug(format!(
                "the picture of {width} classes: {} probabilities and {} targets",
                self.probabilities.len(),
                self.targets.len()
            )));
        }
        let rows = self.probabilities.chunks_exact(width).zip(self.targets);
        let whole = rows.filter(|(row, _)| row.iter().all(|p| p.is_finite()));
        let (rows, targets): (Vec<&[f64]>, Vec<usize>) =
            whole.map(|(row, target)| (row, *target)).unzip();
        if targets.is_empty() {
            return Err(Error::data(format!("no sample of `{}` can be drawn", self.title))
                .hint("there are none, or none has probabilities that are all finite"));
        }
        let figures = classification(&rows.concat(), width, &targets)?;
        let range = Range { low: 0.0, high: 1.0 };
        let left = Plot::left_room(&range, TICKS);
        let side = WIDTH - left - RIGHT;
        let plot = Plot { corner: (left, TOP), size: (side, side), x: range, y: range };
        let curves = self.curves(&plot, &rows, &targets, &figures)?;
        let mut notes = self.notes(&figures, targets.len());
        super::note_letters(
            &mut notes,
            self.classes.iter().map(String::as_str).chain([self.title]),
        );
        let below = TOP + side + BELOW_AXIS;
        let mut scene = Scene::new(WIDTH, super::height_with_notes(below, &notes), self.title);
        super::draw_title(&mut scene, left, self.title);
        plot.draw_axes(&mut scene, TICKS, "False positive rate", "True positive rate");
        let pen = Pen { dashes: &[9.0, 6.0], ..Pen::new(Colour::GREY, 1.4) };
        scene.line(vec![plot.place(0.0, 0.0), plot.place(1.0, 1.0)], pen);
        plot.outline(&mut scene);
        for curve in &curves {
            scene.line(curve.points.clone(), curve.pen);
        }
        self.draw_legend(&mut scene, &plot, &curves, &figures);
        super::draw_notes(&mut scene, left, below, &notes);
        Ok(scene)
    }

    /// The classes that have a curve in this picture: those with the most samples.
    fn drawn(&self, figures: &Classification) -> Vec<usize> {
        let mut classes: Vec<usize> = match self.classes.len() {
            2 => vec![1],
            n => (0..n).collect(),
        };
        classes.retain(|class| figures.per_class[*class].auc.is_some());
        classes.sort_by_key(|class| std::cmp::Reverse(figures.per_class[*class].support));
        classes.truncate(MOST_CURVES);
        classes.sort_unstable();
        classes
    }

    fn curves(
        &self,
        plot: &Plot,
        rows: &[&[f64]],
        targets: &[usize],
        figures: &Classification,
    ) -> Result<Vec<Curve>> {
        let mut curves = Vec::new();
        for (place, class) in self.drawn(figures).into_iter().enumerate() {
            let scores: Vec<f64> = rows.iter().map(|row| row[class]).collect();
            let positives: Vec<bool> = targets.iter().map(|target| *target == class).collect();
            let points = roc_curve(&scores, &positives)?.unwrap_or_default();
            let places =
                points.iter().map(|p| plot.place(p.false_positive_rate, p.true_positive_rate));
            let colours = Colour::SERIES.len();
            let pen = Pen {
                colour: Colour::SERIES[place % colours],
                width: 2.4,
                dashes: DASHES[place / colours % DASHES.len()],
            };
            let ClassLine { name, auc, support } = self.class_line(class, figures);
            let legend = format!("{name}: AUC {auc}, n = {support}");
            curves.push(Curve { legend, points: thinned(places), pen });
        }
        Ok(curves)
    }

    fn class_line(&self, class: usize, figures: &Classification) -> ClassLine {
        let of = &figures.per_class[class];
        ClassLine {
            name: font::fit(&self.classes[class], TEXT_SIZE, 240.0),
            auc: super::decimals(of.auc, 3),
            support: count(of.support),
        }
    }

    /// Lines with what they stand for, in the lower right corner, below good curves.
    fn draw_legend(
        &self,
        scene: &mut Scene,
        plot: &Plot,
        curves: &[Curve],
        figures: &Classification,
    ) {
        let chance = Pen { dashes: &[9.0, 6.0], ..Pen::new(Colour::GREY, 1.4) };
        let mut lines: Vec<(Option<Pen>, String)> =
            curves.iter().map(|curve| (Some(curve.pen), curve.legend.clone())).collect();
        if self.classes.len() > 2 {
            lines.push((None, format!("macro AUC {}", super::decimals(figures.auc, 3))));
        }
        lines.push((Some(chance), "chance".to_string()));
        let (pad, leading, sample) = (14.0, 23.0, 44.0);
        let widest = lines.iter().map(|(_, text)| font::width(text, TEXT_SIZE)).fold(0.0, f64::max);
        let size = (2.0 * pad + sample + widest, 2.0 * pad + leading * lines.len() as f64 - 11.0);
        let corner = (
            plot.corner.0 + plot.size.0 - 14.0 - size.0,
            plot.corner.1 + plot.size.1 - 14.0 - size.1,
        );
        scene.rect(corner, size, Colour::WHITE, 0.9);
        scene.frame(corner, size, Pen::new(Colour(0xBB_BB_BB), 1.0));
        for (line, (pen, text)) in lines.into_iter().enumerate() {
            let y = corner.1 + pad + 11.0 + leading * line as f64;
            let x = corner.0 + pad;
            if let Some(pen) = pen {
                let middle = y - font::CAPITALS * TEXT_SIZE / 2.0;
                scene.line(vec![(x, middle), (x + sample - 12.0, middle)], pen);
            }
            scene.text((x + sample, y), Style::new(TEXT_SIZE, Anchor::Start), &text);
        }
    }

    fn notes(&self, figures: &Classification, samples: usize) -> Vec<String> {
        let mut notes = Vec::new();
        let left_out = self.targets.len() - samples;
        if left_out > 0 {
            let samples = counted(left_out as u64, "sample");
            notes.push(format!("{samples} left out, with probabilities that are not finite"));
        }
        let without: Vec<&str> = (0..self.classes.len())
            .filter(|class| figures.per_class[*class].auc.is_none())
            .map(|class| self.classes[class].as_str())
            .collect();
        if !without.is_empty() {
            notes.push(format!("no curve, all samples or none: {}", without.join(", ")));
        }
        let with = self.classes.len() - without.len();
        if with > MOST_CURVES {
            notes.push(format!(
                "the {MOST_CURVES} classes with the most samples, of {with}; the macro AUC is of all"
            ));
        }
        notes
    }
}

/// What the legend says about a class.
struct ClassLine {
    name: String,
    auc: String,
    support: String,
}

/// A curve without the points that no eye could tell from their neighbours.
fn thinned(points: impl Iterator<Item = (f64, f64)>) -> Vec<(f64, f64)> {
    let mut kept: Vec<(f64, f64)> = Vec::new();
    let mut last = None;
    for point in points {
        let far = |from: &(f64, f64)| {
            (point.0 - from.0).abs() >= CLOSE || (point.1 - from.1).abs() >= CLOSE
        };
        if kept.last().is_none_or(far) {
            kept.push(point);
        }
        last = Some(point);
    }
    if let Some(last) = last.filter(|last| kept.last() != Some(last)) {
        kept.push(last);
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::super::testing::{count as pixels_of, examine};
    use super::*;

    fn names(count: usize) -> Vec<String> {
        (0..count).map(|i| format!("class {i}")).collect()
    }

    /// Probabilities that rise with a wave and, less or more by class, with the truth.
    fn sample(classes: usize, n: usize) -> (Vec<f64>, Vec<usize>) {
        let targets: Vec<usize> = (0..n).map(|i| (i * i + i / 3) % 17 % classes).collect();
        let mut flat = Vec::new();
        for (i, target) in targets.iter().enumerate() {
            let score = |k: usize| {
                let wave = ((i * (k + 3)) as f64 * 0.7).sin().abs();
                wave + if k == *target { 0.3 + 0.3 * k as f64 } else { 0.1 }
            };
            let sum: f64 = (0..classes).map(score).sum();
            flat.extend((0..classes).map(|k| score(k) / sum));
        }
        (flat, targets)
    }

    #[test]
    fn a_curve_a_class_and_the_macro_mean() {
        let (probabilities, targets) = sample(3, 200);
        let classes = names(3);
        let picture = RocPicture {
            title: "ROC",
            classes: &classes,
            probabilities: &probabilities,
            targets: &targets,
        };
        let (texts, pixels) = examine(&picture.scene().unwrap());
        let figures = classification(&probabilities, 3, &targets).unwrap();
        for (k, class) in figures.per_class.iter().enumerate() {
            let wanted = format!("class {k}: AUC {:.3}, n = {}", class.auc.unwrap(), class.support);
            assert!(texts.contains(&wanted), "{wanted} is not among {texts:?}");
            assert!(pixels_of(&pixels, Colour::SERIES[k]) > 300);
        }
        assert!(texts.contains(&format!("macro AUC {:.3}", figures.auc.unwrap())));
        assert_eq!(pixels.width(), 900);
    }

    #[test]
    fn two_classes_have_one_curve() {
        let (probabilities, targets) = sample(2, 50);
        let classes = names(2);
        let picture = RocPicture {
            title: "ROC",
            classes: &classes,
            probabilities: &probabilities,
            targets: &targets,
        };
        let (texts, pixels) = examine(&picture.scene().unwrap());
        assert!(texts.iter().any(|t| t.starts_with("class 1: AUC")));
        assert!(!texts.iter().any(|t| t.starts_with("class 0") || t.starts_with("macro")));
        assert_eq!(pixels_of(&pixels, Colour::SERIES[1]), 0);
    }

    #[test]
    fn odd_data_is_drawn() {
        let classes = names(3);
        let scene = |probabilities: &[f64], targets: &[usize]| {
            RocPicture { title: "ROC", classes: &classes, probabilities, targets }.scene()
        };
        let (texts, _) = examine(&scene(&[0.2, 0.3, 0.5], &[1]).unwrap());
        assert!(
            texts.iter().any(|t| t == "no curve, all samples or none: class 0, class 1, class 2")
        );
        let nan = [f64::NAN, 0.0, 0.0, 0.2, 0.3, 0.5, 0.5, 0.3, 0.2];
        let (texts, _) = examine(&scene(&nan, &[0, 1, 2]).unwrap());
        assert!(texts.iter().any(|t| t.starts_with("1 sample left out")), "{texts:?}");
        assert_eq!(scene(&[], &[]).unwrap_err().code(), 3);
        assert_eq!(scene(&nan[..3], &[0]).unwrap_err().code(), 3);
        assert_eq!(scene(&[0.5], &[0]).unwrap_err().code(), 70);
    }

    #[test]
    fn many_classes_and_many_samples() {
        let (probabilities, targets) = sample(14, 20_000);
        let classes = names(14);
        let picture = RocPicture {
            title: "ROC",
            classes: &classes,
            probabilities: &probabilities,
            targets: &targets,
        };
        let scene = picture.scene().unwrap();
        let size = scene.to_svg().len();
        assert!(size < 500_000, "{size} bytes");
        let (texts, _) = examine(&scene);
        assert_eq!(texts.iter().filter(|t| t.contains(": AUC")).count(), MOST_CURVES);
        assert!(texts.iter().any(|t| t.starts_with("the 10 classes with the most samples")));
    }

    #[test]
    fn thinning_keeps_the_ends() {
        let curve = (0..=1000).map(|i| (f64::from(i) * 0.01, 0.0));
        let kept = thinned(curve);
        assert!(kept.len() < 40 && kept[0] == (0.0, 0.0) && kept.last() == Some(&(10.0, 0.0)));
    }
}
