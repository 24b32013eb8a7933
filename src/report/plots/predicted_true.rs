//! Predicted against true values, with the line on which predictions are right.

use super::super::picture::axes::{Plot, Range};
use super::super::picture::{Anchor, Colour, Pen, Scene, Style, font};
use super::super::step_line::{counted, figure};
use super::{BELOW_AXIS, RIGHT, TEXT_SIZE, TOP, WIDTH};
use crate::error::{Error, Result};
use crate::metrics::regression::{Regression, regression};
use std::collections::BTreeMap;
use std::path::Path;

/// More points than this are drawn as cells that tell how many lie in each: every point stays
/// visible, and a million of them are no larger a file.
const MOST_DOTS: usize = 5_000;

/// The side of such a cell in pixels, and the shades there are.
const CELL: f64 = 4.0;
const SHADES: usize = 8;

/// Values beyond this are left out with those that are not finite: the arithmetic of the axes
/// would overflow.
const LARGEST: f64 = 1e100;

/// About so many ticks an axis.
const TICKS: usize = 8;

/// One series; the slices are equally long.
#[derive(Clone, Copy, Debug)]
pub struct Points<'a> {
    /// What the picture calls it.
    pub name: &'a str,
    /// True values.
    pub truth: &'a [f64],
    /// Predicted values, in the same unit.
    pub predicted: &'a [f64],
}

/// The picture of a regression.
#[derive(Clone, Copy, Debug)]
pub struct PredictedTrue<'a> {
    /// Stands above the picture.
    pub title: &'a str,
    /// What is predicted: `Yield strength`.
    pub quantity: &'a str,
    /// Its unit, or nothing.
    pub unit: &'a str,
    /// What the model was trained on, in grey behind the rest.
    pub train: Option<Points<'a>>,
    /// What it is judged by.
    pub validation: Points<'a>,
}

/// A series as it is drawn.
struct Series {
    name: String,
    colour: Colour,
    /// (true, predicted), without what cannot be drawn.
    points: Vec<(f64, f64)>,
    left_out: usize,
    figures: Option<Regression>,
}

impl Series {
    fn new(points: &Points, colour: Colour) -> Result<Series> {
        if points.truth.len() != points.predicted.len() {
            return Err(Error::bug(format!(
                "the picture of {}: {} true values and {} predicted ones",
                points.name,
                points.truth.len(),
                points.predicted.len()
            )));
        }
        let drawable = |value: f64| value.abs() <= LARGEST;
        let all = points.truth.iter().copied().zip(points.predicted.iter().copied());
        let kept: Vec<(f64, f64)> = all.filter(|(t, p)| drawable(*t) && drawable(*p)).collect();
        let (truth, predicted): (Vec<f64>, Vec<f64>) = kept.iter().copied().unzip();
        let figures = match kept.is_empty() {
            true => None,
            false => Some(regression(&predicted, &truth)?),
        };
        let left_out = points.truth.len() - kept.len();
        Ok(Series { name: points.name.to_string(), colour, points: kept, left_out, figures })
    }
}

impl PredictedTrue<'_> {
    /// Writes `PATH.svg` and `PATH.png`. Points that are not finite are left out and counted in the
    /// picture.
    ///
    /// # Errors
    /// No point that can be drawn (exit code 3), unequal lengths (70), files that cannot be
    /// written (4).
    pub fn write(&self, path_without_extension: &Path) -> Result<()> {
        self.scene()?.write(path_without_extension)
    }

    /// The picture; fails like [`PredictedTrue::write`].
    pub fn scene(&self) -> Result<Scene> {
        let train = self.train.as_ref().map(|points| Series::new(points, Colour::GREY));
        let validation = Series::new(&self.validation, Colour::SERIES[0]);
        let series: Vec<Series> = train.into_iter().chain([validation]).collect::<Result<_>>()?;
        let values = series.iter().flat_map(|s| &s.points).flat_map(|(t, p)| [*t, *p]);
        let range = Range::around(values).ok_or_else(|| {
            Error::data(format!("no point of `{}` can be drawn", self.title))
                .hint("its predictions or true values are none, or none of them is finite")
        })?;
        let mut notes = notes(&series);
        let names = series.iter().map(|one| one.name.as_str());
        super::note_letters(&mut notes, names.chain([self.title, self.quantity, self.unit]));
        let left = Plot::left_room(&range, TICKS);
        let side = WIDTH - left - RIGHT;
        let plot = Plot { corner: (left, TOP), size: (side, side), x: range, y: range };
        let below = TOP + side + BELOW_AXIS;
        let mut scene = Scene::new(WIDTH, super::height_with_notes(below, &notes), self.title);
        super::draw_title(&mut scene, left, self.title);
        let unit = if self.unit.is_empty() { String::new() } else { format!(" ({})", self.unit) };
        let axis = |what: &str| format!("{}, {what}{unit}", self.quantity);
        plot.draw_axes(&mut scene, TICKS, &axis("true"), &axis("predicted"));
        for one in &series {
            draw_points(&mut scene, &plot, one);
        }
        // Above the points, which would hide it where predictions are good.
        let diagonal = vec![plot.place(range.low, range.low), plot.place(range.high, range.high)];
        let pen = Pen { dashes: &[9.0, 6.0], ..Pen::new(Colour::INK, 1.4) };
        scene.line(diagonal, pen);
        plot.outline(&mut scene);
        self.draw_box(&mut scene, &plot, &series);
        super::draw_notes(&mut scene, left, below, &notes);
        Ok(scene)
    }

    /// Marker, name, n, R² and MAE of each series, in the corner off the diagonal where fewer
    /// points lie.
    fn draw_box(&self, scene: &mut Scene, plot: &Plot, series: &[Series]) {
        let rows: Vec<[String; 4]> = series.iter().map(|one| self.box_row(one)).collect();
        let heads = ["", "n", "R²", &unit_head("MAE", self.unit)].map(str::to_string);
        let cells = || std::iter::once(&heads).chain(&rows);
        let wide = |column: usize| {
            let widths = cells().map(|row| font::width(&row[column], TEXT_SIZE));
            widths.fold(0.0, f64::max)
        };
        let (pad, gap, leading, marker) = (12.0, 20.0, 23.0, 20.0);
        let width = 2.0 * pad + marker + (0..4).map(wide).sum::<f64>() + 3.0 * gap;
        let height = 2.0 * pad + leading * (rows.len() + 1) as f64 - 8.0;
        let corner = emptier_corner(plot, (width, height), series);
        scene.rect(corner, (width, height), Colour::WHITE, 0.9);
        scene.frame(corner, (width, height), Pen::new(Colour(0xBB_BB_BB), 1.0));
        for (line, row) in cells().enumerate() {
            let y = corner.1 + pad + 11.0 + leading * line as f64;
            if line > 0 {
                let centre = (corner.0 + pad + 6.0, y - font::CAPITALS * TEXT_SIZE / 2.0);
                scene.dots(vec![centre], 5.5, series[line - 1].colour, 1.0);
            }
            let mut x = corner.0 + pad + marker;
            scene.text((x, y), Style::new(TEXT_SIZE, Anchor::Start), &row[0]);
            x += wide(0);
            for (column, text) in row.iter().enumerate().skip(1) {
                x += gap + wide(column);
                scene.text((x, y), Style::new(TEXT_SIZE, Anchor::End), text);
            }
        }
    }

    fn box_row(&self, series: &Series) -> [String; 4] {
        let name = font::fit(&series.name, TEXT_SIZE, 200.0);
        let n = super::super::step_line::count(series.points.len() as u64);
        let r2 = super::decimals(series.figures.map(|f| f.r2), 3);
        let mae =
            series.figures.map_or("–".to_string(), |f| figure(f.mae).replace('-', "\u{2212}"));
        [name, n, r2, mae]
    }
}

fn unit_head(name: &str, unit: &str) -> String {
    match unit {
        "" => name.to_string(),
        unit => format!("{name} ({})", font::fit(unit, TEXT_SIZE, 120.0)),
    }
}

/// Of the corners above and below the diagonal, the one where a box of that size hides fewer points.
fn emptier_corner(plot: &Plot, size: (f64, f64), series: &[Series]) -> (f64, f64) {
    let (left, top) = (plot.corner.0 + 14.0, plot.corner.1 + 14.0);
    let right = plot.corner.0 + plot.size.0 - 14.0 - size.0;
    let bottom = plot.corner.1 + plot.size.1 - 14.0 - size.1;
    let hidden = |corner: (f64, f64)| {
        let places = series.iter().flat_map(|s| &s.points).map(|(t, p)| plot.place(*t, *p));
        places
            .filter(|(x, y)| {
                (corner.0..corner.0 + size.0).contains(x)
                    && (corner.1..corner.1 + size.1).contains(y)
            })
            .count()
    };
    let (above, below) = ((left, top), (right, bottom));
    if hidden(below) < hidden(above) { below } else { above }
}

fn draw_points(scene: &mut Scene, plot: &Plot, series: &Series) {
    let places = series.points.iter().map(|(truth, predicted)| plot.place(*truth, *predicted));
    let count = series.points.len();
    if count <= MOST_DOTS {
        let (radius, opacity) = match count {
            0..500 => (4.0, 0.6),
            500..2000 => (3.2, 0.5),
            _ => (2.5, 0.4),
        };
        scene.dots(places.collect(), radius, series.colour, opacity);
        return;
    }
    let mut cells: BTreeMap<(i64, i64), usize> = BTreeMap::new();
    for (x, y) in places {
        *cells.entry(((x / CELL).floor() as i64, (y / CELL).floor() as i64)).or_default() += 1;
    }
    let most = cells.values().copied().max().unwrap_or(1);
    let mut shades = vec![Vec::new(); SHADES];
    for ((column, row), points) in cells {
        // Logarithmic, so that a cell with one point shows beside one with thousands.
        let share = (points as f64).ln() / (most.max(2) as f64).ln();
        let shade = (share * (SHADES - 1) as f64).round() as usize;
        shades[shade].push((column as f64 * CELL, row as f64 * CELL));
    }
    for (shade, corners) in shades.into_iter().enumerate().filter(|(_, c)| !c.is_empty()) {
        let opacity = 0.45 + 0.55 * shade as f64 / (SHADES - 1) as f64;
        scene.boxes(corners, (CELL, CELL), series.colour, opacity);
    }
}

/// What the picture does not show as it is.
fn notes(series: &[Series]) -> Vec<String> {
    let mut notes = Vec::new();
    for one in series.iter().filter(|one| one.left_out > 0) {
        let points = counted(one.left_out as u64, "point");
        notes.push(format!("{}: {points} left out, not finite", one.name));
    }
    for one in series.iter().filter(|one| one.points.len() > MOST_DOTS) {
        let points = counted(one.points.len() as u64, "point");
        notes.push(format!(
            "{}: {points}, drawn as cells of {CELL} pixels; the fuller a cell, the darker",
            one.name
        ));
    }
    notes
}

#[cfg(test)]
mod tests {
    use super::super::testing::{count, examine};
    use super::*;

    fn points<'a>(name: &'a str, truth: &'a [f64], predicted: &'a [f64]) -> Points<'a> {
        Points { name, truth, predicted }
    }

    fn picture<'a>(train: Option<Points<'a>>, validation: Points<'a>) -> PredictedTrue<'a> {
        let (title, quantity, unit) = ("A <title>", "Yield strength", "MPa");
        PredictedTrue { title, quantity, unit, train, validation }
    }

    #[test]
    fn two_series_with_their_figures() {
        let truth: Vec<f64> = (0..40).map(|i| 100.0 + 25.0 * f64::from(i)).collect();
        let near: Vec<f64> = truth.iter().map(|t| t + 10.0).collect();
        let train = points("train", &truth, &near);
        let validation = points("validation", &truth[..3], &near[..3]);
        let (texts, pixels) = examine(&picture(Some(train), validation).scene().unwrap());
        let wanted = [
            "A <title>",
            "Yield strength, true (MPa)",
            "Yield strength, predicted (MPa)",
            "train",
            "validation",
            "MAE (MPa)",
            "40",
            "3",
            "10",
            "0.760",
            "600",
        ];
        for text in wanted {
            assert!(texts.iter().any(|found| found == text), "{text} is not among {texts:?}");
        }
        assert!((850..=1000).contains(&pixels.height()) && pixels.width() == 900);
        // The markers of the box are opaque, and so is the diagonal.
        assert!(count(&pixels, Colour::SERIES[0]) > 40 && count(&pixels, Colour::GREY) > 40);
    }

    #[test]
    fn odd_data_is_drawn() {
        let one = [5.0];
        let same = [2.0; 7];
        let wild = [1.0, f64::NAN, 3.0, 4.0, 1e300];
        let other = [1.5, 2.0, f64::INFINITY, 4.5, 5.0];
        examine(&picture(None, points("validation", &one, &one)).scene().unwrap());
        examine(&picture(None, points("validation", &same, &same)).scene().unwrap());
        let empty = points("validation", &[], &[]);
        let (texts, _) = examine(&picture(Some(points("t", &one, &one)), empty).scene().unwrap());
        assert!(texts.iter().filter(|text| *text == "–").count() >= 2, "{texts:?}");
        let (texts, _) =
            examine(&picture(None, points("validation", &wild, &other)).scene().unwrap());
        let note = "validation: 3 points left out, not finite";
        assert!(texts.iter().any(|text| text == note), "{texts:?}");
        assert_eq!(picture(None, empty).scene().unwrap_err().code(), 3);
        let nothing = points("validation", &[f64::NAN], &[1.0]);
        assert_eq!(picture(None, nothing).scene().unwrap_err().code(), 3);
        let uneven = points("validation", &one, &same);
        assert_eq!(picture(None, uneven).scene().unwrap_err().code(), 70);
    }

    #[test]
    fn a_hundred_thousand_points_make_a_small_file() {
        let wave = |i: u32, k: f64| (f64::from(i) * k).sin();
        let truth: Vec<f64> = (0..100_000).map(|i| 1000.0 + 400.0 * wave(i, 0.37)).collect();
        let predicted: Vec<f64> = (0..100_000)
            .map(|i| truth[i as usize] + 150.0 * wave(i, 1.13) * wave(i, 7.7))
            .collect();
        let scene = picture(None, points("validation", &truth, &predicted)).scene().unwrap();
        let size = scene.to_svg().len();
        assert!(size < 2_000_000, "{size} bytes");
        let (texts, pixels) = examine(&scene);
        assert!(texts.iter().any(|text| text.contains("100,000 points, drawn as cells")));
        assert!(count(&pixels, Colour::SERIES[0]) > 100, "the fullest cells are opaque");
    }

    #[test]
    fn a_box_goes_where_fewer_points_lie() {
        let (truth, predicted) = ([0.0, 0.02, 0.04, 1.0], [1.0, 0.98, 0.96, 0.0]);
        let series = Series::new(&points("v", &truth, &predicted), Colour::INK).unwrap();
        let range = Range { low: 0.0, high: 1.0 };
        let plot = Plot { corner: (0.0, 0.0), size: (500.0, 500.0), x: range, y: range };
        let (x, y) = emptier_corner(&plot, (100.0, 100.0), &[series]);
        assert!(x > 300.0 && y > 300.0);
    }
}
