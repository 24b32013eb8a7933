//! The font in the program: how wide a text is, and its outline. No system font is needed.
//!
//! `font/DejaVuSans.ttf` is DejaVu Sans 2.37, cut down to Latin, Greek, and common signs (see
//! `font/README.md`). Letters stand side by side without kerning; the SVG tells the viewer the
//! width computed here.

use std::sync::LazyLock;
use tiny_skia::PathBuilder;
use ttf_parser::{Face, GlyphId, OutlineBuilder};

static FACE: LazyLock<Face<'static>> = LazyLock::new(|| {
    let bytes = include_bytes!("font/DejaVuSans.ttf");
    Face::parse(bytes, 0).expect("the font is part of the program, and its test reads it")
});

/// What a text ends with that was cut.
const ELLIPSIS: char = '…';

/// The height of capitals and digits as a share of the font's size.
pub const CAPITALS: f64 = 0.73;

/// The width of a text in pixels.
pub fn width(text: &str, size: f64) -> f64 {
    let units: u64 = text.chars().map(|c| advance(glyph(c))).sum();
    units as f64 * scale(size)
}

/// Whether the font has all letters of a text.
pub fn covers(text: &str) -> bool {
    text.chars().all(|c| FACE.glyph_index(c).is_some())
}

/// As much of a text as `room` pixels hold, with an ellipsis where something is cut.
pub fn fit(text: &str, size: f64, room: f64) -> String {
    if width(text, size) <= room {
        return text.to_string();
    }
    let mut short: Vec<char> = text.chars().collect();
    while !short.is_empty() {
        short.pop();
        let cut = short.iter().collect::<String>().trim_end().to_string() + &ELLIPSIS.to_string();
        if width(&cut, size) <= room {
            return cut;
        }
    }
    String::new()
}

/// Draws the letters of a text; `place` says where in the picture a point lies that is `x` to the
/// right of the text's beginning and `y` above its baseline.
pub fn outline(
    text: &str,
    size: f64,
    path: &mut PathBuilder,
    place: impl Fn(f64, f64) -> (f64, f64),
) {
    let scale = scale(size);
    let mut pen = 0;
    for c in text.chars() {
        let glyph = glyph(c);
        let begin = pen as f64 * scale;
        let at = |x: f32, y: f32| {
            let (x, y) = place(begin + f64::from(x) * scale, f64::from(y) * scale);
            (x as f32, y as f32)
        };
        FACE.outline_glyph(glyph, &mut Letter { path, at });
        pen += advance(glyph);
    }
}

/// The letter's glyph, or the box that stands for those that are not there.
fn glyph(c: char) -> GlyphId {
    FACE.glyph_index(c).unwrap_or(GlyphId(0))
}

fn advance(glyph: GlyphId) -> u64 {
    u64::from(FACE.glyph_hor_advance(glyph).unwrap_or(0))
}

fn scale(size: f64) -> f64 {
    size / f64::from(FACE.units_per_em())
}

struct Letter<'a, At> {
    path: &'a mut PathBuilder,
    at: At,
}

impl<At: Fn(f32, f32) -> (f32, f32)> OutlineBuilder for Letter<'_, At> {
    fn move_to(&mut self, x: f32, y: f32) {
        let (x, y) = (self.at)(x, y);
        self.path.move_to(x, y);
    }

    fn line_to(&mut self, x: f32, y: f32) {
        let (x, y) = (self.at)(x, y);
        self.path.line_to(x, y);
    }

    fn quad_to(&mut self, x1: f32, y1: f32, x: f32, y: f32) {
        let ((x1, y1), (x, y)) = ((self.at)(x1, y1), (self.at)(x, y));
        self.path.quad_to(x1, y1, x, y);
    }

    fn curve_to(&mut self, x1: f32, y1: f32, x2: f32, y2: f32, x: f32, y: f32) {
        let ((x1, y1), (x2, y2), (x, y)) = ((self.at)(x1, y1), (self.at)(x2, y2), (self.at)(x, y));
        self.path.cubic_to(x1, y1, x2, y2, x, y);
    }

    fn close(&mut self) {
        self.path.close();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_font_has_what_pictures_need() {
        assert!(covers(
            "Predicted yield strength (MPa) R² = 0.93, ±σ µm °C Å × − – … ≥ é ö ł Ω 10⁻³ H₂O"
        ));
        assert!(!covers("合金"));
        assert!((width("10", 100.0) / width("1", 100.0) - 2.0).abs() < 1e-9, "digits are even");
        assert!((30.0..80.0).contains(&width("M", 60.0)));
    }

    #[test]
    fn cutting() {
        assert_eq!(fit("BCC", 12.0, 100.0), "BCC");
        let cut = fit("FCC + BCC + Laves", 12.0, 60.0);
        assert!(cut.starts_with("FCC") && cut.ends_with('…') && width(&cut, 12.0) <= 60.0, "{cut}");
        assert_eq!(fit("FCC", 12.0, 1.0), "");
    }
}
