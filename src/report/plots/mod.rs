//! The pictures people look at after a run: predicted against true values, the confusion matrix,
//! ROC curves. Each is a small struct of borrowed data that writes itself as SVG and as PNG.

mod confusion;
mod predicted_true;
mod roc;

pub use confusion::ConfusionPicture;
pub use predicted_true::{Points, PredictedTrue};
pub use roc::RocPicture;

use super::picture::{Anchor, Colour, Scene, Style, font};

/// Width of a picture in pixels, where its content does not ask for more.
const WIDTH: f64 = 900.0;

/// From the top to what is below the title, and from the right of a plot to the edge.
const TOP: f64 = 62.0;
const RIGHT: f64 = 34.0;

/// From the bottom of a plot to the first line of notes; the axis's numbers and title lie there.
const BELOW_AXIS: f64 = 84.0;

/// Sizes of letters.
const TITLE_SIZE: f64 = 22.0;
const TEXT_SIZE: f64 = 15.0;
const NOTE_SIZE: f64 = 13.0;

/// From one line of notes to the next.
const NOTE_LEADING: f64 = 19.0;

/// How tall a picture is whose notes begin at `y`.
fn height_with_notes(y: f64, notes: &[String]) -> f64 {
    y + NOTE_LEADING * notes.len() as f64
}

/// The title above everything, cut where it is too long.
fn draw_title(scene: &mut Scene, left: f64, title: &str) {
    let room = f64::from(scene.size().0) - left - RIGHT;
    let title = font::fit(title, TITLE_SIZE, room);
    scene.text((left, 40.0), Style::new(TITLE_SIZE, Anchor::Start), &title);
}

/// Small print, a line each, from `y` downwards.
fn draw_notes(scene: &mut Scene, left: f64, y: f64, notes: &[String]) {
    let room = f64::from(scene.size().0) - left - 10.0;
    for (line, note) in notes.iter().enumerate() {
        let style = Style::new(NOTE_SIZE, Anchor::Start).colour(Colour(0x55_55_55));
        let at = (left, y + NOTE_LEADING * line as f64);
        scene.text(at, style, &font::fit(note, NOTE_SIZE, room));
    }
}

/// Says in a note where the PNG cannot show all letters.
fn note_letters<'a>(notes: &mut Vec<String>, mut texts: impl Iterator<Item = &'a str>) {
    if !texts.all(font::covers) {
        notes
            .push("letters shown as boxes are not in the PNG's font; the SVG has them".to_string());
    }
}

/// A figure to so many decimals, with a true minus sign; a dash where there is none.
fn decimals(value: Option<f64>, decimals: usize) -> String {
    match value.filter(|value| value.is_finite()) {
        Some(value) => format!("{value:.decimals$}").replace('-', "\u{2212}"),
        None => "–".to_string(),
    }
}

#[cfg(test)]
mod testing {
    use super::Scene;
    use tiny_skia::Pixmap;

    /// Checks what must hold for any picture, and gives its texts in order and its pixels.
    #[track_caller]
    pub fn examine(scene: &Scene) -> (Vec<String>, Pixmap) {
        let svg = scene.to_svg();
        let tree = roxmltree::Document::parse(&svg).unwrap();
        assert!(!svg.contains("NaN") && !svg.contains("inf"), "{svg}");
        let (width, height) = scene.size();
        assert_eq!(tree.root_element().attribute("width"), Some(width.to_string().as_str()));
        let png = scene.to_png().unwrap();
        assert_eq!((scene.to_svg(), scene.to_png().unwrap()), (svg.clone(), png.clone()));
        let pixels = Pixmap::decode_png(&png).unwrap();
        assert_eq!((pixels.width(), pixels.height()), (width, height));
        let texts = tree.descendants().filter(|node| node.has_tag_name("text"));
        let texts: Vec<_> = texts.collect();
        for text in &texts {
            let at = |name: &str| text.attribute(name).unwrap().parse::<f64>().unwrap();
            let inside = (0.0..f64::from(width)).contains(&at("x"))
                && (0.0..=f64::from(height)).contains(&at("y"));
            assert!(inside, "outside the picture: {text:?}");
        }
        (texts.iter().map(|node| node.text().unwrap_or_default().to_string()).collect(), pixels)
    }

    /// How many pixels have exactly this colour.
    pub fn count(pixels: &Pixmap, colour: super::Colour) -> usize {
        let [r, g, b] = colour.channels();
        let same =
            |p: &&tiny_skia::PremultipliedColorU8| (p.red(), p.green(), p.blue()) == (r, g, b);
        pixels.pixels().iter().filter(same).count()
    }
}
