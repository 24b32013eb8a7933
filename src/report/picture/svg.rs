//! A scene as SVG: text stays text, and what comes from data is escaped.

use super::{Anchor, Colour, Pen, Scene, Shape, Style, font};
use std::fmt::Write;

/// The font of the PNG first, then what is like it.
const FONTS: &str = "DejaVu Sans, Verdana, Arial, sans-serif";

/// The whole file.
pub fn paint(scene: &Scene) -> String {
    let (width, height) = scene.size;
    let title = escape(&scene.title);
    let mut out = format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n\
         <svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" \
         viewBox=\"0 0 {width} {height}\" font-family=\"{FONTS}\" role=\"img\">\n\
         <title>{title}</title>\n\
         <rect width=\"{width}\" height=\"{height}\" fill=\"{}\"/>\n",
        colour(Colour::WHITE)
    );
    for shape in &scene.shapes {
        match shape {
            Shape::Boxes { corners, size, fill, opacity } => {
                let (width, height) = (number(size.0), number(size.1));
                let each = corners.iter().map(|(x, y)| {
                    let (x, y) = (number(*x), number(*y));
                    format!("<rect x=\"{x}\" y=\"{y}\" width=\"{width}\" height=\"{height}\"/>")
                });
                group(&mut out, *fill, *opacity, each);
            }
            Shape::Dots { centres, radius, fill, opacity } => {
                let radius = number(*radius);
                let each = centres.iter().map(|(x, y)| {
                    format!("<circle cx=\"{}\" cy=\"{}\" r=\"{radius}\"/>", number(*x), number(*y))
                });
                group(&mut out, *fill, *opacity, each);
            }
            Shape::Line { points, pen } => line(&mut out, points, pen),
            Shape::Text { at, style, text } => words(&mut out, *at, style, text),
        }
    }
    out + "</svg>\n"
}

fn group(out: &mut String, fill: Colour, opacity: f64, each: impl Iterator<Item = String>) {
    *out += &format!("<g fill=\"{}\"", colour(fill));
    if opacity < 1.0 {
        *out += &format!(" fill-opacity=\"{}\"", number(opacity));
    }
    *out += ">";
    for (i, element) in each.enumerate() {
        *out += if i % 8 == 0 { "\n" } else { "" };
        *out += &element;
    }
    *out += "</g>\n";
}

fn line(out: &mut String, points: &[(f64, f64)], pen: &Pen) {
    let points: Vec<String> =
        points.iter().map(|(x, y)| format!("{},{}", number(*x), number(*y))).collect();
    *out += &format!(
        "<polyline points=\"{}\" fill=\"none\" stroke=\"{}\" stroke-width=\"{}\"",
        points.join(" "),
        colour(pen.colour),
        number(pen.width)
    );
    if !pen.dashes.is_empty() {
        let dashes: Vec<String> = pen.dashes.iter().map(|length| number(*length)).collect();
        *out += &format!(" stroke-dasharray=\"{}\"", dashes.join(" "));
    }
    *out += "/>\n";
}

fn words(out: &mut String, at: (f64, f64), style: &Style, text: &str) {
    let (x, y) = (number(at.0), number(at.1));
    *out += &format!("<text x=\"{x}\" y=\"{y}\" font-size=\"{}\"", number(style.size));
    match style.anchor {
        Anchor::Start => {}
        Anchor::Middle => *out += " text-anchor=\"middle\"",
        Anchor::End => *out += " text-anchor=\"end\"",
    }
    // Another font may be wider or narrower; told the width, the viewer stretches it to what the
    // layout reckons with. Where our font lacks letters, we do not know their width.
    if font::covers(text) && text.chars().nth(1).is_some() {
        let width = number(font::width(text, style.size));
        *out += &format!(" textLength=\"{width}\" lengthAdjust=\"spacingAndGlyphs\"");
    }
    if style.turned {
        *out += &format!(" transform=\"rotate(-90 {x} {y})\"");
    }
    *out += &format!(" fill=\"{}\">{}</text>\n", colour(style.colour), escape(text));
}

fn colour(colour: Colour) -> String {
    format!("#{:06x}", colour.0)
}

/// At most two decimals and no more digits than needed.
fn number(value: f64) -> String {
    let mut text = String::new();
    // Writing to a String does not fail.
    let _ = write!(text, "{value:.2}");
    let text = text.trim_end_matches('0').trim_end_matches('.');
    if text == "-0" { "0".to_string() } else { text.to_string() }
}

/// Text between tags, or in quotes.
fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out += "&amp;",
            '<' => out += "&lt;",
            '>' => out += "&gt;",
            '"' => out += "&quot;",
            '\'' => out += "&#39;",
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_short() {
        let numbers = [1.0, -0.001, 0.5, 123.456, 100.0, 1e6].map(number);
        assert_eq!(numbers, ["1", "0", "0.5", "123.46", "100", "1000000"]);
    }

    #[test]
    fn everything_from_data_is_escaped() {
        let mut scene = Scene::new(10.0, 10.0, "<script>&\"'");
        scene.text((1.0, 2.0), Style::new(10.0, Anchor::End).turned(), "a<b>&\u{1}\"c\"'</text>");
        let svg = scene.to_svg();
        let tree = roxmltree::Document::parse(&svg).unwrap();
        let of = |name: &str| tree.descendants().find(|n| n.has_tag_name(name)).unwrap().text();
        assert_eq!(of("title"), Some("<script>&\"'"));
        assert_eq!(of("text"), Some("a<b>& \"c\"'</text>"));
        assert!(!svg.contains("<script>"));
    }

    #[test]
    fn what_the_font_lacks_is_the_viewers_to_measure() {
        let mut scene = Scene::new(10.0, 10.0, "");
        scene.text((0.0, 0.0), Style::new(10.0, Anchor::Start), "合金");
        assert!(!scene.to_svg().contains("textLength"));
    }
}
