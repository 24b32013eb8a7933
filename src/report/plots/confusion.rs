//! The confusion matrix: counts, the share of each row, and a shade for that share.

use super::super::picture::{Anchor, Colour, Pen, Scene, Style, font};
use super::super::step_line::count;
use super::{RIGHT, TEXT_SIZE, WIDTH};
use crate::error::{Error, Result};
use std::path::Path;

/// The least side of a cell that holds numbers, and the greatest of any, in pixels.
const LEAST_CELL: f64 = 46.0;
const GREATEST_CELL: f64 = 300.0;

/// With more classes the numbers are left out, cells shrink to what fits into this, and names stay
/// as long as they can be read.
const MOST_WITH_NUMBERS: usize = 40;
const GREATEST_SIDE: f64 = MOST_WITH_NUMBERS as f64 * LEAST_CELL;
const LEAST_NAMED: f64 = 11.0;

/// Shades from an empty share through half to the whole row.
const SHADES: [Colour; 3] = [Colour::WHITE, Colour(0x9E_CA_E1), Colour(0x08_30_6B)];

/// So many steps there are between white and the darkest.
const STEPS: usize = 100;

/// From this share on white letters stand out more than dark ones.
const DARK: f64 = 0.72;

/// Space beside the matrix for the scale of shades.
const SCALE_ROOM: f64 = 96.0;

/// The longest that a class name may be.
const NAME_ROOM: f64 = 190.0;

/// From the matrix to its names.
const GAP: f64 = 10.0;

/// The confusion matrix of a classifier.
#[derive(Clone, Copy, Debug)]
pub struct ConfusionPicture<'a> {
    /// Stands above the picture.
    pub title: &'a str,
    /// The classes' names.
    pub classes: &'a [String],
    /// How many samples of class i were called class j, `counts[i][j]`.
    pub counts: &'a [Vec<u64>],
}

/// Where everything lies.
struct Layout {
    cell: f64,
    corner: (f64, f64),
    side: f64,
    /// Size of names, none where they cannot be read.
    names: Option<f64>,
    numbers: bool,
    turned: bool,
}

impl ConfusionPicture<'_> {
    /// Writes `PATH.svg` and `PATH.png`.
    ///
    /// # Errors
    /// No sample (exit code 3), sizes that do not match (70), files that cannot be written (4).
    pub fn write(&self, path_without_extension: &Path) -> Result<()> {
        self.scene()?.write(path_without_extension)
    }

    /// The picture; fails like [`ConfusionPicture::write`].
    pub fn scene(&self) -> Result<Scene> {
        let n = self.classes.len();
        if n == 0 || self.counts.len() != n || self.counts.iter().any(|row| row.len() != n) {
            return Err(Error::bug(format!(
                "the picture of {n} classes: a confusion matrix of {} rows",
                self.counts.len()
            )));
        }
        let samples: u64 = self.counts.iter().flatten().sum();
        if samples == 0 {
            return Err(Error::data(format!("no sample of `{}` can be drawn", self.title))
                .hint("the part of the data that is evaluated must hold one sample or more"));
        }
        let layout = self.layout();
        let mut notes = self.notes(&layout, samples);
        super::note_letters(
            &mut notes,
            self.classes.iter().map(String::as_str).chain([self.title]),
        );
        let names_below = match layout.names {
            Some(size) if layout.turned => self.longest(size) + GAP,
            Some(size) => size + GAP,
            None => 0.0,
        };
        let below = layout.corner.1 + layout.side + names_below + 62.0;
        let width = (layout.corner.0 + layout.side + SCALE_ROOM + RIGHT).max(WIDTH);
        let mut scene = Scene::new(width, super::height_with_notes(below, &notes), self.title);
        super::draw_title(&mut scene, 34.0, self.title);
        self.draw_cells(&mut scene, &layout);
        self.draw_names(&mut scene, &layout);
        let title = Style::new(17.0, Anchor::Middle);
        let middle = layout.corner.0 + layout.side / 2.0;
        let bottom = layout.corner.1 + layout.side + names_below;
        scene.text((middle, bottom + 28.0), title, "Predicted class");
        let middle = layout.corner.1 + layout.side / 2.0;
        scene.text((30.0, middle), title.turned(), "True class");
        draw_scale(&mut scene, &layout);
        super::draw_notes(&mut scene, 34.0, below, &notes);
        Ok(scene)
    }

    fn layout(&self) -> Layout {
        let n = self.classes.len();
        let numbers = n <= MOST_WITH_NUMBERS;
        let fits = |room: f64| room / n as f64;
        let rough = match numbers {
            true => fits(640.0).clamp(LEAST_CELL, GREATEST_CELL),
            false => GREATEST_SIDE / n as f64,
        };
        let names = (rough >= LEAST_NAMED).then(|| TEXT_SIZE.min(rough - 1.0));
        let beside = match names {
            Some(size) => self.longest(size).max(if numbers { 64.0 } else { 0.0 }) + GAP,
            None => 0.0,
        };
        let left = 34.0 + 17.0 + beside;
        // Few classes fill the width that is there.
        let cell = match numbers {
            true => rough.min(fits(WIDTH - left - SCALE_ROOM - RIGHT).max(LEAST_CELL)),
            false => rough,
        };
        let turned = names.is_some_and(|size| self.longest(size) > cell - 8.0);
        let corner = (left, super::TOP);
        Layout { cell, corner, side: cell * n as f64, names, numbers, turned }
    }

    /// The width of the longest name as it is drawn.
    fn longest(&self, size: f64) -> f64 {
        let widths = self.classes.iter().map(|name| font::width(name, size).min(NAME_ROOM));
        widths.fold(0.0, f64::max)
    }

    fn draw_cells(&self, scene: &mut Scene, layout: &Layout) {
        let mut of_shade = vec![Vec::new(); STEPS + 1];
        for (i, row) in self.counts.iter().enumerate() {
            let support: u64 = row.iter().sum();
            for (j, &samples) in row.iter().enumerate().filter(|(_, samples)| **samples > 0) {
                let share = samples as f64 / support as f64;
                of_shade[(share * STEPS as f64).round() as usize].push(layout.cell_corner(i, j));
            }
        }
        for (step, corners) in of_shade.into_iter().enumerate().filter(|(_, c)| !c.is_empty()) {
            let fill = shade(step as f64 / STEPS as f64);
            scene.boxes(corners, (layout.cell, layout.cell), fill, 1.0);
        }
        for (i, row) in self.counts.iter().enumerate().filter(|_| layout.numbers) {
            let support: u64 = row.iter().sum();
            for (j, &samples) in row.iter().enumerate() {
                let share = (samples > 0).then(|| samples as f64 / support as f64);
                draw_numbers(scene, layout.cell_corner(i, j), layout.cell, samples, share);
            }
        }
        let pen = Pen::new(Colour(0xC4_C4_C4), 1.0);
        if layout.numbers {
            for line in 1..self.classes.len() {
                let at = layout.cell * line as f64;
                let (x, y) = layout.corner;
                scene.line(vec![(x + at, y), (x + at, y + layout.side)], pen);
                scene.line(vec![(x, y + at), (x + layout.side, y + at)], pen);
            }
        }
        let frame = (layout.side, layout.side);
        scene.frame(layout.corner, frame, Pen::new(Colour::INK, 1.4));
    }

    fn draw_names(&self, scene: &mut Scene, layout: &Layout) {
        let Some(size) = layout.names else { return };
        let half = font::CAPITALS * size / 2.0;
        let (left, top) = layout.corner;
        for (class, name) in self.classes.iter().enumerate() {
            let middle = layout.cell * (class as f64 + 0.5);
            let name = font::fit(name, size, NAME_ROOM);
            let beside = left - GAP;
            let support: u64 = self.counts[class].iter().sum();
            let below = top + layout.side + GAP;
            if layout.numbers {
                scene.text((beside, top + middle - 2.0), Style::new(size, Anchor::End), &name);
                let small = Style::new(12.0, Anchor::End).colour(Colour(0x55_55_55));
                let text = format!("n = {}", count(support));
                scene.text((beside, top + middle + 14.0), small, &text);
            } else {
                scene.text((beside, top + middle + half), Style::new(size, Anchor::End), &name);
            }
            if layout.turned {
                let at = (left + middle + half, below);
                scene.text(at, Style::new(size, Anchor::End).turned(), &name);
            } else {
                let at = (left + middle, below + font::CAPITALS * size);
                scene.text(at, Style::new(size, Anchor::Middle), &name);
            }
        }
    }

    fn notes(&self, layout: &Layout, samples: u64) -> Vec<String> {
        let right: u64 = (0..self.classes.len()).map(|class| self.counts[class][class]).sum();
        let recalls = self.counts.iter().enumerate().filter_map(|(class, row)| {
            let support: u64 = row.iter().sum();
            (support > 0).then(|| row[class] as f64 / support as f64)
        });
        let recalls: Vec<f64> = recalls.collect();
        let balanced = recalls.iter().sum::<f64>() / recalls.len() as f64;
        let mut notes = vec![format!(
            "n = {}, accuracy {:.3}, balanced accuracy {balanced:.3}; percentages are of a row",
            count(samples),
            right as f64 / samples as f64
        )];
        let absent = self.classes.len() - recalls.len();
        if absent > 0 {
            notes.push(format!(
                "true classes without a sample: {absent}, left out of the balanced accuracy"
            ));
        }
        if !layout.numbers {
            let named = if layout.names.is_none() { " and names" } else { "" };
            notes.push(format!(
                "{} classes: numbers{named} are left out, the shade is the share of a row",
                self.classes.len()
            ));
        }
        notes
    }
}

impl Layout {
    fn cell_corner(&self, row: usize, column: usize) -> (f64, f64) {
        (self.corner.0 + self.cell * column as f64, self.corner.1 + self.cell * row as f64)
    }
}

/// A count above its percentage, as large as the cell allows; of nothing a faint zero alone.
fn draw_numbers(
    scene: &mut Scene,
    corner: (f64, f64),
    cell: f64,
    samples: u64,
    share: Option<f64>,
) {
    let middle = (corner.0 + cell / 2.0, corner.1 + cell / 2.0);
    let fitting = |text: &str, of_cell: f64, most: f64| {
        let wished = (cell * of_cell).clamp(11.0, most);
        wished.min(wished * (cell - 6.0) / font::width(text, wished))
    };
    let number = count(samples);
    let size = fitting(&number, 0.2, 24.0);
    let style = Style::new(size, Anchor::Middle);
    let Some(share) = share else {
        let at = (middle.0, middle.1 + font::CAPITALS * size / 2.0);
        scene.text(at, style.colour(Colour::GREY), &number);
        return;
    };
    let ink = if share < DARK { Colour::INK } else { Colour::WHITE };
    scene.text((middle.0, middle.1 - 0.02 * cell.min(190.0)), style.colour(ink), &number);
    let percent = format!("{:.1}%", 100.0 * share);
    let size = fitting(&percent, 0.13, 16.0);
    let under = middle.1 + 0.06 * cell.min(190.0) + font::CAPITALS * size + 1.0;
    scene.text((middle.0, under), Style::new(size, Anchor::Middle).colour(ink), &percent);
}

fn shade(share: f64) -> Colour {
    match share < 0.5 {
        true => SHADES[0].towards(SHADES[1], 2.0 * share),
        false => SHADES[1].towards(SHADES[2], 2.0 * share - 1.0),
    }
}

/// What shades mean, to the right of the matrix.
fn draw_scale(scene: &mut Scene, layout: &Layout) {
    let (x, top) = (layout.corner.0 + layout.side + 26.0, layout.corner.1);
    let height = layout.side.min(320.0);
    let step = height / STEPS as f64;
    for i in 0..STEPS {
        let share = (i as f64 + 0.5) / STEPS as f64;
        let y = top + height - step * (i + 1) as f64;
        // A little taller than its share, so that no paper shines through between two.
        scene.rect((x, y), (16.0, step + if i == 0 { 0.0 } else { 0.6 }), shade(share), 1.0);
    }
    scene.frame((x, top), (16.0, height), Pen::new(Colour::INK, 1.0));
    for quarter in 0..=4 {
        let share = f64::from(quarter) / 4.0;
        let y = top + height * (1.0 - share) + font::CAPITALS * 12.0 / 2.0;
        let text = format!("{:.0}%", 100.0 * share);
        scene.text((x + 22.0, y), Style::new(12.0, Anchor::Start), &text);
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{count as pixels_of, examine};
    use super::*;

    fn scene(classes: &[String], counts: &[Vec<u64>]) -> Result<Scene> {
        ConfusionPicture { title: "Confusion matrix", classes, counts }.scene()
    }

    fn names(all: &[&str]) -> Vec<String> {
        all.iter().map(|name| name.to_string()).collect()
    }

    #[test]
    fn counts_and_shares_of_rows() {
        let classes = names(&["FCC", "<b>BCC</b> & co", "Other"]);
        let counts = vec![vec![40, 10, 0], vec![3, 1000, 0], vec![0, 0, 0]];
        let (texts, pixels) = examine(&scene(&classes, &counts).unwrap());
        for text in ["40", "80.0%", "1,000", "99.7%", "<b>BCC</b> & co", "n = 50", "n = 0", "0"] {
            assert!(texts.iter().any(|found| found == text), "{text} is not among {texts:?}");
        }
        // Each name stands once beside and once below.
        assert_eq!(texts.iter().filter(|text| *text == "Other").count(), 2);
        assert!(texts.iter().any(|text| text.starts_with("true classes without a sample: 1")));
        assert!(pixels_of(&pixels, shade(0.8)) > 2_000);
        assert_eq!(pixels.width(), 900);
    }

    #[test]
    fn letters_that_are_not_in_the_font_are_told() {
        let told = |name: &str| {
            let (texts, _) =
                examine(&scene(&names(&[name, "b"]), &[vec![1, 0], vec![0, 1]]).unwrap());
            texts.iter().any(|text| text.starts_with("letters shown as boxes"))
        };
        assert!(told("面心立方") && !told("α + β′"));
    }

    #[test]
    fn all_of_a_class_is_darkest() {
        let (_, pixels) = examine(&scene(&names(&["a", "b"]), &[vec![1, 0], vec![0, 1]]).unwrap());
        assert!(pixels_of(&pixels, SHADES[2]) > 10_000);
    }

    #[test]
    fn any_number_of_classes_and_long_names() {
        for n in [1usize, 2, 7, 23, 40, 41, 90, 200] {
            let classes: Vec<String> =
                (0..n).map(|i| format!("FCC + BCC + Laves phase number {i}")).collect();
            let counts: Vec<Vec<u64>> = (0..n)
                .map(|i| (0..n).map(|j| ((i * j) % 5 * 12345) as u64 + 1).collect())
                .collect();
            let (texts, pixels) = examine(&scene(&classes, &counts).unwrap());
            assert!(pixels.width() <= 2300 && pixels.height() <= 2300, "{n} classes");
            let numbered = texts.iter().any(|text| text.ends_with('%') && text.contains('.'));
            assert_eq!(numbered, n <= MOST_WITH_NUMBERS, "{n} classes");
            assert_eq!(texts.iter().any(|text| text.starts_with("FCC")), n <= 160);
        }
    }

    #[test]
    fn what_cannot_be_drawn() {
        let classes = names(&["a", "b"]);
        assert_eq!(scene(&classes, &[vec![0, 0], vec![0, 0]]).unwrap_err().code(), 3);
        assert_eq!(scene(&classes, &[vec![1, 0]]).unwrap_err().code(), 70);
        assert_eq!(scene(&[], &[]).unwrap_err().code(), 70);
    }
}
