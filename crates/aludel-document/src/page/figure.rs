//! Draws the curves of one name as a figure of HTML and SVG.
//!
//! The plot is stretched to whatever width there is, and its labels are text beside it, so that they keep their size on a
//! narrow screen. The values are in the figure once more as JSON, for the script that shows them under the pointer.

use std::fmt::Write;

use serde_json::json;

use super::{escape, number};

/// Styles of figures, for the beginning of their page.
pub const STYLES: &str = include_str!("figure.css");

/// The script of figures, for the end of their page.
pub const SCRIPT: &str = include_str!("figure.js");

/// One value, or several neighbouring ones.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Point {
    /// Where it lies: the last of the places that it stands for.
    pub step: u64,
    /// The value, or the mean of several.
    pub mean: f64,
    /// The least of them.
    pub least: f64,
    /// The greatest of them.
    pub greatest: f64,
}

impl Point {
    /// One value.
    pub const fn single(step: u64, value: f64) -> Self {
        Self { step, mean: value, least: value, greatest: value }
    }
}

/// One line of a figure.
#[derive(Clone, Debug, PartialEq)]
pub struct Curve<'a> {
    /// What the key calls it.
    pub name: &'a str,
    /// How it is drawn.
    pub ink: Ink,
    /// At least one, all finite, in order.
    pub points: &'a [Point],
}

/// A colour.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ink {
    /// That of the line that is looked at first.
    First,
    /// That of the line beside it.
    Second,
}

impl Ink {
    /// The name of its style.
    const fn style(self) -> &'static str {
        match self {
            Self::First => "first",
            Self::Second => "second",
        }
    }
}

/// The plot's own units, stretched to the figure.
const WIDTH: f64 = 1000.0;
const HEIGHT: f64 = 300.0;

/// The figure; `curves` are not empty, and `axis` says what their steps count.
pub fn draw(title: &str, unit: &str, axis: &str, curves: &[Curve<'_>]) -> String {
    let frame = Frame::around(curves);
    let axis = escape(axis);
    let mut html = format!("<figure data-axis=\"{axis}\">");
    let _ = write!(html, "<figcaption><b>{}</b> <span>{}</span>", escape(title), escape(unit));
    for curve in curves.iter().filter(|_| curves.len() > 1) {
        let _ = write!(html, "<i class=\"key {}\">{}</i>", curve.ink.style(), escape(curve.name));
    }
    html.push_str("</figcaption><div class=\"chart\"><div class=\"y\">");
    for tick in frame.ticks() {
        let _ = write!(
            html,
            "<span style=\"top:{:.2}%\">{}</span>",
            frame.y(tick) / HEIGHT * 100.0,
            number(tick)
        );
    }
    let last = curves.iter().filter_map(|curve| Some((curve.name, curve.points.last()?.mean)));
    let spoken: Vec<String> = last.map(|(name, value)| format!("{name} ends at {}", number(value))).collect();
    let _ = write!(
        html,
        "</div><div class=\"plot\" tabindex=\"0\" role=\"img\" aria-label=\"{}: {}\">{}<div class=\"cursor\" hidden>\
         </div><div class=\"tip\" role=\"status\" hidden></div></div><div class=\"x\"><span>{}</span><span>{axis}</span>\
         <span>{}</span></div></div>",
        escape(title),
        escape(&spoken.join(", ")),
        svg(&frame, curves),
        frame.first,
        frame.last,
    );
    let _ = write!(html, "<script type=\"application/json\">{}</script></figure>", data(&frame, curves));
    html
}

fn svg(frame: &Frame, curves: &[Curve<'_>]) -> String {
    let mut svg =
        format!("<svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" preserveAspectRatio=\"none\" aria-hidden=\"true\">");
    for tick in frame.ticks() {
        let y = frame.y(tick);
        let _ = write!(svg, "<path class=\"grid\" d=\"M0 {y:.1}H{WIDTH}\"/>");
    }
    for curve in curves {
        let name = curve.ink.style();
        if curve.points.iter().any(|point| point.least < point.greatest) {
            let above = curve.points.iter().map(|point| frame.place(point, point.greatest));
            let below = curve.points.iter().rev().map(|point| frame.place(point, point.least));
            let _ = write!(svg, "<path class=\"band {name}\" d=\"{}Z\"/>", path(above.chain(below)));
        }
        let line = path(curve.points.iter().map(|point| frame.place(point, point.mean)));
        let _ = write!(svg, "<path class=\"line {name}\" d=\"{line}\"/>");
        // A single point has no line, and few are easier to find with dots: lines of no length with round ends.
        for (x, y) in
            curve.points.iter().filter(|_| curve.points.len() <= MOST_DOTS).map(|p| frame.place(p, p.mean))
        {
            let _ = write!(svg, "<path class=\"dot {name}\" d=\"M{x:.1} {y:.1}h0\"/>");
        }
    }
    svg + "</svg>"
}

fn path(places: impl Iterator<Item = (f64, f64)>) -> String {
    let mut path = String::new();
    for (x, y) in places {
        let command = if path.is_empty() { 'M' } else { 'L' };
        let _ = write!(path, "{command}{x:.1} {y:.1}");
    }
    path
}

/// What the script needs: where each value lies, in shares of the plot, and how it reads.
fn data(frame: &Frame, curves: &[Curve<'_>]) -> String {
    let round = |share: f64| (share * 1e4).round() / 1e4;
    let point = |point: &Point| {
        let (x, y) = frame.place(point, point.mean);
        let spread = (point.least < point.greatest)
            .then(|| format!(" ({} to {})", number(point.least), number(point.greatest)));
        let text = number(point.mean) + &spread.unwrap_or_default();
        json!([round(x / WIDTH), round(y / HEIGHT), point.step, text])
    };
    let curves: Vec<_> = curves
        .iter()
        .map(|curve| json!({"name": curve.name, "ink": curve.ink.style(), "points": curve.points.iter().map(point).collect::<Vec<_>>()}))
        .collect();
    // `</script>` must not end the element from inside.
    json!(curves).to_string().replace('<', "\\u003c")
}

/// The steps and values that the plot spans.
struct Frame {
    first: u64,
    last: u64,
    low: f64,
    high: f64,
    /// Between two lines of the grid.
    spacing: f64,
}

impl Frame {
    fn around(curves: &[Curve<'_>]) -> Self {
        let points = || curves.iter().flat_map(|curve| curve.points);
        let first = points().map(|point| point.step).min().unwrap_or(0);
        let last = points().map(|point| point.step).max().unwrap_or(0);
        let low = points().map(|point| point.least).fold(f64::INFINITY, f64::min);
        let high = points().map(|point| point.greatest).fold(f64::NEG_INFINITY, f64::max);
        // A flat curve lies in the middle of some room.
        let room = if high > low { (high - low) * 0.04 } else { (high.abs() * 0.1).max(1e-9) };
        let (low, high) = (low - room, high + room);
        Self { first, last, low, high, spacing: spacing((high - low) / 4.0) }
    }

    fn ticks(&self) -> impl Iterator<Item = f64> {
        let (first, last) = ((self.low / self.spacing).ceil(), (self.high / self.spacing).floor());
        let count = (last - first).clamp(0.0, 10.0) as usize;
        (0..=count).map(move |index| (first + index as f64) * self.spacing).filter(|tick| *tick <= self.high)
    }

    fn place(&self, point: &Point, value: f64) -> (f64, f64) {
        let steps = self.last - self.first;
        let share = if steps == 0 { 0.5 } else { (point.step - self.first) as f64 / steps as f64 };
        (share * WIDTH, self.y(value))
    }

    fn y(&self, value: f64) -> f64 {
        (self.high - value) / (self.high - self.low) * HEIGHT
    }
}

/// The least of 1, 2, 2.5, 5 times a power of ten that is no less than `least`.
fn spacing(least: f64) -> f64 {
    let power = 10f64.powf(least.log10().floor());
    [1.0, 2.0, 2.5, 5.0]
        .into_iter()
        .map(|factor| factor * power)
        .find(|s| *s >= least * (1.0 - 1e-9))
        .unwrap_or(10.0 * power)
}

const MOST_DOTS: usize = 30;

#[cfg(test)]
mod tests {
    use super::*;

    fn points(values: &[(u64, f64)]) -> Vec<Point> {
        values.iter().map(|&(step, value)| Point::single(step, value)).collect()
    }

    fn curve(points: &[Point]) -> Curve<'_> {
        Curve { name: "train", ink: Ink::First, points }
    }

    #[test]
    fn lines_of_the_grid_are_round_numbers() {
        for (least, expected) in
            [(0.11, 0.2), (0.2, 0.2), (0.21, 0.25), (26.0, 50.0), (6.0, 10.0), (1e-7, 1e-7)]
        {
            assert!((spacing(least) / expected - 1.0).abs() < 1e-9, "{least}: {}", spacing(least));
        }
        let frame = Frame::around(&[curve(&points(&[(0, 2.0), (10, 4.0)]))]);
        assert_eq!(frame.ticks().collect::<Vec<_>>(), [2.0, 3.0, 4.0]);
    }

    #[test]
    fn the_first_and_the_last_step_lie_at_the_edges_and_great_values_above() {
        let frame = Frame::around(&[curve(&points(&[(5, 2.0), (10, 4.0), (15, 3.0)]))]);
        let place = |step, value| frame.place(&Point::single(step, value), value);
        assert_eq!(place(5, 3.0), (0.0, 150.0));
        assert_eq!(place(15, 3.0), (1000.0, 150.0));
        assert!(place(10, 4.0).1 > 0.0 && place(10, 4.0).1 < 20.0);
    }

    #[test]
    fn one_point_and_flat_curves_are_drawn_without_a_division_by_zero() {
        for values in [&[(7, 0.0)][..], &[(0, 5.0), (9, 5.0)], &[(0, -3.0)]] {
            let html = draw("a", "b", "step", &[curve(&points(values))]);
            assert!(!html.contains("NaN") && !html.contains("inf"), "{html}");
            assert!(html.contains("class=\"dot first\""));
        }
    }

    #[test]
    fn no_name_ends_the_element_it_stands_in() {
        let html = draw("</script><b onclick=\"x\">", "a&b", "step", &[curve(&points(&[(0, 1.0)]))]);
        assert!(html.contains("&lt;/script&gt;&lt;b onclick=&quot;x&quot;&gt;"), "{html}");
        assert!(html.contains("a&amp;b"));
        assert_eq!(html.matches("</script>").count(), 1);
    }
}
