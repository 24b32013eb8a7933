//! A scene as PNG, painted by tiny-skia on the CPU.

use super::{Anchor, Colour, Pen, Scene, Shape, Style, font};
use crate::error::{Error, Result};
use crate::progress;
use tiny_skia::{
    Color, FillRule, LineJoin, Paint, Path, PathBuilder, Pixmap, Rect, Stroke, StrokeDash,
    Transform,
};

/// The whole file.
pub fn paint(scene: &Scene) -> Result<Vec<u8>> {
    let (width, height) = scene.size;
    let mut canvas = Pixmap::new(width, height)
        .ok_or_else(|| Error::bug(format!("no picture can be {width} x {height} pixels")))?;
    canvas.fill(Color::WHITE);
    for shape in &scene.shapes {
        draw(&mut canvas, shape)?;
    }
    canvas.encode_png().map_err(|e| Error::bug(format!("a picture could not be encoded: {e}")))
}

fn draw(canvas: &mut Pixmap, shape: &Shape) -> Result<()> {
    match shape {
        Shape::Boxes { corners, size, fill, opacity } => {
            let paint = paint_of(*fill, *opacity);
            for (x, y) in corners {
                let (w, h) = (size.0 as f32, size.1 as f32);
                if let Some(rect) = Rect::from_xywh(*x as f32, *y as f32, w, h) {
                    canvas.fill_rect(rect, &paint, Transform::identity(), None);
                }
                progress::tick()?;
            }
        }
        Shape::Dots { centres, radius, fill, opacity } => {
            let paint = paint_of(*fill, *opacity);
            for (x, y) in centres {
                fill_path(
                    canvas,
                    PathBuilder::from_circle(*x as f32, *y as f32, *radius as f32),
                    &paint,
                );
                progress::tick()?;
            }
        }
        Shape::Line { points, pen } => line(canvas, points, pen),
        Shape::Text { at, style, text } => words(canvas, *at, style, text),
    }
    Ok(())
}

/// What has no area, such as a space, is no path.
fn fill_path(canvas: &mut Pixmap, path: Option<Path>, paint: &Paint) {
    if let Some(path) = path {
        canvas.fill_path(&path, paint, FillRule::Winding, Transform::identity(), None);
    }
}

fn line(canvas: &mut Pixmap, points: &[(f64, f64)], pen: &Pen) {
    let mut path = PathBuilder::new();
    for (i, (x, y)) in points.iter().enumerate() {
        match i {
            0 => path.move_to(*x as f32, *y as f32),
            _ => path.line_to(*x as f32, *y as f32),
        }
    }
    let dash = StrokeDash::new(pen.dashes.iter().map(|length| *length as f32).collect(), 0.0);
    // As in SVG, where nothing else is said: butt caps and mitred joins.
    let stroke =
        Stroke { width: pen.width as f32, line_join: LineJoin::Miter, dash, ..Stroke::default() };
    if let Some(path) = path.finish() {
        canvas.stroke_path(&path, &paint_of(pen.colour, 1.0), &stroke, Transform::identity(), None);
    }
}

fn words(canvas: &mut Pixmap, (x, y): (f64, f64), style: &Style, text: &str) {
    let width = font::width(text, style.size);
    let before = match style.anchor {
        Anchor::Start => 0.0,
        Anchor::Middle => width / 2.0,
        Anchor::End => width,
    };
    let mut path = PathBuilder::new();
    font::outline(text, style.size, &mut path, |right, up| match style.turned {
        false => (x + right - before, y - up),
        true => (x - up, y - (right - before)),
    });
    fill_path(canvas, path.finish(), &paint_of(style.colour, 1.0));
}

fn paint_of(colour: Colour, opacity: f64) -> Paint<'static> {
    let [red, green, blue] = colour.channels();
    let mut paint = Paint { anti_alias: true, ..Paint::default() };
    paint.set_color_rgba8(red, green, blue, (opacity.clamp(0.0, 1.0) * 255.0).round() as u8);
    paint
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Red, green and blue at a pixel of what was encoded.
    fn pixel(png: &Pixmap, x: u32, y: u32) -> [u8; 3] {
        let pixel = png.pixel(x, y).unwrap().demultiply();
        [pixel.red(), pixel.green(), pixel.blue()]
    }

    /// How many pixels of a part are not paper.
    fn ink(png: &Pixmap, x: std::ops::Range<u32>, y: std::ops::Range<u32>) -> usize {
        let all = y.flat_map(|y| x.clone().map(move |x| (x, y)));
        all.filter(|(x, y)| pixel(png, *x, *y) != [255; 3]).count()
    }

    #[test]
    fn every_shape_leaves_ink_where_it_lies() {
        let mut scene = Scene::new(200.0, 200.0, "");
        scene.rect((10.0, 10.0), (20.0, 20.0), Colour(0x01_02_03), 1.0);
        scene.dots(vec![(60.0, 20.0)], 8.0, Colour(0xFF_00_00), 0.5);
        scene.line(vec![(10.0, 60.0), (90.0, 60.0)], Pen::new(Colour(0x00_FF_00), 4.0));
        scene.text((10.0, 120.0), Style::new(30.0, Anchor::Start), "HH");
        scene.text((150.0, 190.0), Style::new(30.0, Anchor::Start).turned(), "HHHH");
        let png = Pixmap::decode_png(&scene.to_png().unwrap()).unwrap();
        assert_eq!((png.width(), png.height()), (200, 200));
        assert_eq!(pixel(&png, 20, 20), [1, 2, 3]);
        let [red, green, _] = pixel(&png, 60, 20);
        assert!(red == 255 && (126..=128).contains(&green), "{red} {green}");
        assert_eq!(pixel(&png, 50, 60), [0, 255, 0]);
        assert_eq!(pixel(&png, 100, 60), [255; 3]);
        // Text stands above its baseline, and turned text to the left of it and upwards.
        assert!(ink(&png, 10..60, 98..120) > 100 && ink(&png, 10..60, 121..140) == 0);
        assert!(ink(&png, 128..150, 90..190) > 200 && ink(&png, 151..200, 0..200) == 0);
    }

    #[test]
    fn a_text_without_a_letter_is_none() {
        let mut scene = Scene::new(20.0, 20.0, "");
        scene.text((10.0, 10.0), Style::new(10.0, Anchor::Middle), " ");
        let png = Pixmap::decode_png(&scene.to_png().unwrap()).unwrap();
        assert_eq!(ink(&png, 0..20, 0..20), 0);
    }
}
