//! A picture as a list of shapes, painted twice: as SVG text and as PNG pixels.
//!
//! Both painters draw every shape of the one list, so the two files show the same. Lengths are
//! pixels, x to the right and y down from the upper left corner. Equal scenes give equal bytes.

pub mod axes;
pub mod font;
mod raster;
mod svg;

use crate::error::Result;
use crate::files;
use std::ffi::OsString;
use std::io::Write;
use std::path::{Path, PathBuf};

/// An opaque colour, `0xRRGGBB`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Colour(pub u32);

impl Colour {
    /// Paper.
    pub const WHITE: Colour = Colour(0xFF_FF_FF);
    /// Text, frames, axes.
    pub const INK: Colour = Colour(0x22_22_22);
    /// What stands back: secondary text and series, lines to compare with.
    pub const GREY: Colour = Colour(0x8C_8C_8C);
    /// Grid lines.
    pub const FAINT: Colour = Colour(0xE6_E6_E6);
    /// Series, in an order in which neighbours are told apart by people with any kind of colour
    /// vision (the set of Okabe and Ito, without yellow).
    pub const SERIES: [Colour; 7] = [
        Colour(0x00_72_B2),
        Colour(0xD5_5E_00),
        Colour(0x00_9E_73),
        Colour(0xCC_79_A7),
        Colour(0xE6_9F_00),
        Colour(0x56_B4_E9),
        Colour(0x22_22_22),
    ];

    /// Red, green and blue.
    pub fn channels(self) -> [u8; 3] {
        [(self.0 >> 16) as u8, (self.0 >> 8) as u8, self.0 as u8]
    }

    /// The colour that is so far (0 to 1) on the way to another.
    pub fn towards(self, other: Colour, share: f64) -> Colour {
        let (from, to) = (self.channels(), other.channels());
        let mixed = (0..3).map(|i| f64::from(from[i]) * (1.0 - share) + f64::from(to[i]) * share);
        Colour(mixed.fold(0, |colour, channel| colour << 8 | channel.round() as u32))
    }
}

/// Which point of a text its x is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Anchor {
    /// Its beginning.
    Start,
    /// Its middle.
    Middle,
    /// Its end.
    End,
}

/// How a line is drawn.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Pen {
    /// Its colour.
    pub colour: Colour,
    /// Its width.
    pub width: f64,
    /// Lengths of dashes and gaps in turn, an even number of them; none for a whole line.
    pub dashes: &'static [f64],
}

impl Pen {
    /// A whole line.
    pub fn new(colour: Colour, width: f64) -> Pen {
        Pen { colour, width, dashes: &[] }
    }
}

/// How a text is set, in the one font there is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Style {
    /// Height of the font.
    pub size: f64,
    /// Which point of the text is given.
    pub anchor: Anchor,
    /// Its colour.
    pub colour: Colour,
    /// Whether it runs upwards instead of to the right.
    pub turned: bool,
}

impl Style {
    /// Upright dark text.
    pub fn new(size: f64, anchor: Anchor) -> Style {
        Style { size, anchor, colour: Colour::INK, turned: false }
    }

    /// The same in another colour.
    pub fn colour(self, colour: Colour) -> Style {
        Style { colour, ..self }
    }

    /// The same, running upwards.
    pub fn turned(self) -> Style {
        Style { turned: true, ..self }
    }
}

/// What a scene is made of.
#[derive(Clone, Debug, PartialEq)]
enum Shape {
    /// Equal rectangles by their upper left corners.
    Boxes { corners: Vec<(f64, f64)>, size: (f64, f64), fill: Colour, opacity: f64 },
    /// Equal circles by their centres.
    Dots { centres: Vec<(f64, f64)>, radius: f64, fill: Colour, opacity: f64 },
    /// A line through points.
    Line { points: Vec<(f64, f64)>, pen: Pen },
    /// One line of text; `at` lies on its baseline.
    Text { at: (f64, f64), style: Style, text: String },
}

/// A picture that grows, what is added later lying above.
#[derive(Clone, Debug, PartialEq)]
pub struct Scene {
    size: (u32, u32),
    title: String,
    shapes: Vec<Shape>,
}

impl Scene {
    /// White paper of at least one pixel; the title is for readers that see no picture.
    pub fn new(width: f64, height: f64, title: &str) -> Scene {
        let pixels = |length: f64| length.ceil().clamp(1.0, 20_000.0) as u32;
        Scene { size: (pixels(width), pixels(height)), title: clean(title), shapes: Vec::new() }
    }

    /// A filled rectangle.
    pub fn rect(&mut self, corner: (f64, f64), size: (f64, f64), fill: Colour, opacity: f64) {
        self.boxes(vec![corner], size, fill, opacity);
    }

    /// Equal filled rectangles.
    pub fn boxes(
        &mut self,
        corners: Vec<(f64, f64)>,
        size: (f64, f64),
        fill: Colour,
        opacity: f64,
    ) {
        self.shapes.push(Shape::Boxes { corners, size, fill, opacity });
    }

    /// Equal filled circles.
    pub fn dots(&mut self, centres: Vec<(f64, f64)>, radius: f64, fill: Colour, opacity: f64) {
        self.shapes.push(Shape::Dots { centres, radius, fill, opacity });
    }

    /// A line through two points or more; fewer are no line.
    pub fn line(&mut self, points: Vec<(f64, f64)>, pen: Pen) {
        if points.len() > 1 {
            self.shapes.push(Shape::Line { points, pen });
        }
    }

    /// The outline of a rectangle.
    pub fn frame(&mut self, (x, y): (f64, f64), (width, height): (f64, f64), pen: Pen) {
        let corners = [(x, y), (x + width, y), (x + width, y + height), (x, y + height), (x, y)];
        self.line(corners.to_vec(), pen);
    }

    /// One line of text with `at` on its baseline. Control characters and runs of spaces become one
    /// space each.
    pub fn text(&mut self, at: (f64, f64), style: Style, text: &str) {
        self.shapes.push(Shape::Text { at, style, text: clean(text) });
    }

    /// Width and height in pixels.
    pub fn size(&self) -> (u32, u32) {
        self.size
    }

    /// The picture as SVG.
    pub fn to_svg(&self) -> String {
        svg::paint(self)
    }

    /// The picture as PNG. Letters that the font lacks (Latin, Greek and signs are there) are drawn
    /// as boxes; in the SVG they are the viewer's.
    pub fn to_png(&self) -> Result<Vec<u8>> {
        raster::paint(self)
    }

    /// Writes `PATH.svg` and `PATH.png`, each whole or not at all.
    pub fn write(&self, path_without_extension: &Path) -> Result<()> {
        files::write_text(&with_suffix(path_without_extension, ".svg"), &self.to_svg())?;
        let png = self.to_png()?;
        files::write_atomic(&with_suffix(path_without_extension, ".png"), |out| out.write_all(&png))
    }
}

/// The path with more at its end; `with_extension` would take a dot in the name for its own.
fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut whole = OsString::from(path);
    whole.push(suffix);
    PathBuf::from(whole)
}

/// One line of characters that XML allows.
fn clean(text: &str) -> String {
    let allowed = |c: char| !c.is_control() && !matches!(c, '\u{fffe}' | '\u{ffff}');
    let spaced: String = text.chars().map(|c| if allowed(c) { c } else { ' ' }).collect();
    spaced.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::scratch;

    #[test]
    fn names_with_dots_keep_them() {
        let dir = scratch("picture");
        let mut scene = Scene::new(40.0, 20.0, "t");
        scene.rect((0.0, 0.0), (40.0, 20.0), Colour(0x12_34_56), 1.0);
        scene.write(&dir.join("val.best v1.2")).unwrap();
        let mut names: Vec<_> =
            std::fs::read_dir(&dir).unwrap().map(|e| e.unwrap().file_name()).collect();
        names.sort();
        assert_eq!(names, ["val.best v1.2.png", "val.best v1.2.svg"]);
        assert_eq!(scene.write(&dir.join("absent/x")).unwrap_err().code(), 4);
        std::fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn colours_mix() {
        assert_eq!(Colour::WHITE.towards(Colour(0), 1.0), Colour(0));
        assert_eq!(Colour(0x10_00_00).towards(Colour(0x20_00_FF), 0.5), Colour(0x18_00_80));
    }

    #[test]
    fn what_xml_forbids_is_a_space() {
        assert_eq!(clean("a\u{0}b\n\tc \u{ffff}d "), "a b c d");
    }
}
