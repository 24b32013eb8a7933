//! Axes: a range of values on a stretch of pixels, ticks at round numbers, and the frame of a plot.

use super::{Anchor, Colour, Pen, Scene, Style, font};

/// Size of the numbers at ticks.
pub const TICK_SIZE: f64 = 15.0;

/// Size of the words along an axis.
const TITLE_SIZE: f64 = 17.0;

/// From a tick's number to the frame, and the length of the tick.
const GAP: f64 = 10.0;
const TICK: f64 = 5.0;

/// A range of values, the lower end first.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Range {
    /// The value at the beginning of the axis.
    pub low: f64,
    /// The value at its end, always above `low`.
    pub high: f64,
}

impl Range {
    /// A range that holds all values with a margin; `None` where there are none. Values must be
    /// finite and their squares too. Equal ones get room on both sides.
    pub fn around(values: impl Iterator<Item = f64>) -> Option<Range> {
        let ends = values.fold(None, |ends: Option<(f64, f64)>, value| {
            let (low, high) = ends.unwrap_or((value, value));
            Some((low.min(value), high.max(value)))
        });
        let (low, high) = ends?;
        let size = low.abs().max(high.abs());
        // Closer together than any tick could tell them apart.
        let margin = match high - low > 1e-9 * size {
            true => 0.04 * (high - low),
            false if size > 0.0 => 0.05 * size,
            false => 1.0,
        };
        Some(Range { low: low - margin, high: high + margin })
    }

    /// Ticks at multiples of 1, 2 or 5 times a power of ten, about so many, with their numbers.
    pub fn ticks(&self, about: usize) -> Vec<(f64, String)> {
        let (factor, power) = step((self.high - self.low) / about.max(1) as f64);
        let step = factor * 10f64.powi(power);
        // Ends that are multiples themselves are ticks, whatever the division makes of them.
        let first = (self.low / step - 1e-9).ceil() as i64;
        let last = (self.high / step + 1e-9).floor() as i64;
        let size = self.low.abs().max(self.high.abs());
        // Numbers that would be long are written with the exponent of the largest.
        let exponent = size.log10().floor() as i32;
        let shown = if (-3..6).contains(&exponent) { 0 } else { exponent };
        let decimals = (shown - power).max(0) as usize;
        let label = |multiple: i64| {
            let value = multiple as f64 * factor * 10f64.powi(power - shown);
            let text = format!("{value:.decimals$}").replace('-', "\u{2212}");
            match shown {
                _ if multiple == 0 => "0".to_string(),
                0 => text,
                _ => format!("{text}e{shown}").replace('-', "\u{2212}"),
            }
        };
        (first..=last).map(|multiple| (multiple as f64 * step, label(multiple))).collect()
    }
}

/// The smallest 1, 2 or 5 times a power of ten that is not below a value above zero, as factor and
/// power.
fn step(least: f64) -> (f64, i32) {
    let power = least.log10().floor() as i32;
    let rest = least / 10f64.powi(power);
    // Room for the rounding of the division, lest 2.0000000000000004 become 5.
    match [1.0, 2.0, 5.0].into_iter().find(|factor| rest <= factor * (1.0 + 1e-9)) {
        Some(factor) => (factor, power),
        None => (1.0, power + 1),
    }
}

/// A square or oblong part of a picture in which values are places.
#[derive(Clone, Copy, Debug)]
pub struct Plot {
    /// Its upper left corner.
    pub corner: (f64, f64),
    /// Its width and height.
    pub size: (f64, f64),
    /// What lies along it from left to right.
    pub x: Range,
    /// What lies along it from the bottom upwards.
    pub y: Range,
}

impl Plot {
    /// Where a pair of values lies.
    pub fn place(&self, x: f64, y: f64) -> (f64, f64) {
        let across = (x - self.x.low) / (self.x.high - self.x.low);
        let up = (y - self.y.low) / (self.y.high - self.y.low);
        (self.corner.0 + across * self.size.0, self.corner.1 + (1.0 - up) * self.size.1)
    }

    /// Room that the numbers and the title of the vertical axis take to the left of the frame.
    pub fn left_room(y: &Range, about: usize) -> f64 {
        let widest = y.ticks(about).into_iter().map(|(_, text)| font::width(&text, TICK_SIZE));
        widest.fold(0.0, f64::max) + GAP + 2.7 * TITLE_SIZE
    }

    /// Grid, ticks with numbers, and the titles of both axes. The frame itself comes last, above
    /// what was plotted: [`Plot::outline`].
    pub fn draw_axes(&self, scene: &mut Scene, about: usize, x_title: &str, y_title: &str) {
        let (left, top) = self.corner;
        let (right, bottom) = (left + self.size.0, top + self.size.1);
        let grid = Pen::new(Colour::FAINT, 1.0);
        let ink = Pen::new(Colour::INK, 1.2);
        let number = |anchor| Style::new(TICK_SIZE, anchor);
        for (value, text) in self.x_ticks(about) {
            let (x, _) = self.place(value, self.y.low);
            scene.line(vec![(x, top), (x, bottom)], grid);
            scene.line(vec![(x, bottom), (x, bottom + TICK)], ink);
            let y = bottom + GAP + font::CAPITALS * TICK_SIZE;
            scene.text((x, y), number(Anchor::Middle), &text);
        }
        for (value, text) in self.y.ticks(about) {
            let (_, y) = self.place(self.x.low, value);
            scene.line(vec![(left, y), (right, y)], grid);
            scene.line(vec![(left - TICK, y), (left, y)], ink);
            let middle = y + font::CAPITALS * TICK_SIZE / 2.0;
            scene.text((left - GAP, middle), number(Anchor::End), &text);
        }
        let title = Style::new(TITLE_SIZE, Anchor::Middle);
        let below = bottom + GAP + TICK_SIZE + 1.5 * TITLE_SIZE;
        let x_title = font::fit(x_title, TITLE_SIZE, self.size.0);
        scene.text((left + self.size.0 / 2.0, below), title, &x_title);
        let beside = left - Self::left_room(&self.y, about) + 1.6 * TITLE_SIZE;
        let y_title = font::fit(y_title, TITLE_SIZE, self.size.1);
        scene.text((beside, top + self.size.1 / 2.0), title.turned(), &y_title);
    }

    /// The frame around the plot.
    pub fn outline(&self, scene: &mut Scene) {
        scene.frame(self.corner, self.size, Pen::new(Colour::INK, 1.4));
    }

    /// As many ticks as stand beside each other without touching.
    fn x_ticks(&self, about: usize) -> Vec<(f64, String)> {
        (1..=about)
            .rev()
            .map(|about| self.x.ticks(about))
            .find(|ticks| {
                let room = self.size.0 / ticks.len().max(1) as f64;
                ticks.iter().all(|(_, text)| font::width(text, TICK_SIZE) < 0.85 * room)
            })
            .unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn texts(low: f64, high: f64, about: usize) -> Vec<String> {
        Range { low, high }.ticks(about).into_iter().map(|(_, text)| text).collect()
    }

    #[test]
    fn ticks_are_round_numbers() {
        assert_eq!(texts(-20.0, 2100.0, 6), ["0", "500", "1000", "1500", "2000"]);
        assert_eq!(texts(-0.5, 0.6, 6), ["−0.4", "−0.2", "0", "0.2", "0.4", "0.6"]);
        assert_eq!(texts(0.0, 1.0, 5), ["0", "0.2", "0.4", "0.6", "0.8", "1.0"]);
        assert_eq!(texts(-1.1e7, 1.2e7, 4), ["−1e7", "0", "1e7"]);
        assert_eq!(texts(0.0, 2.1e-5, 4), ["0", "1e−5", "2e−5"]);
    }

    #[test]
    fn equal_values_get_room() {
        for value in [0.0, 5.0, -1e-30, 1e20] {
            let range = Range::around([value, value].into_iter()).unwrap();
            assert!(range.low < value && value < range.high, "{range:?}");
            assert!(!range.ticks(6).is_empty());
        }
        assert_eq!(Range::around(std::iter::empty()), None);
    }

    proptest! {
        #[test]
        fn ticks_lie_inside_are_few_and_their_numbers_differ(
            low in -1e9..1e9f64, size in 1e-6..1e9f64, about in 4usize..9,
        ) {
            let range = Range::around([low, low + size].into_iter()).unwrap();
            let ticks = range.ticks(about);
            let about_as_many = (1..=about + 1).contains(&ticks.len());
            prop_assert!(about_as_many, "{} of {about}: {ticks:?}", ticks.len());
            let slack = 1e-9 * (range.high - range.low);
            for (value, _) in &ticks {
                prop_assert!((range.low - slack..=range.high + slack).contains(value));
            }
            for pair in ticks.windows(2) {
                prop_assert!(pair[0].0 < pair[1].0 && pair[0].1 != pair[1].1, "{pair:?}");
            }
        }
    }
}
