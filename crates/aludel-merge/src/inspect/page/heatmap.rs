//! Draws values by kind of tensor and layer as a heatmap of HTML and SVG.
//!
//! The cells are stretched to whatever width there is, and the names beside them are text, so that they keep their size on a narrow
//! screen. A cell's colour is one of two, more or less opaque, so that it fits light and dark pages. Every cell has its value as a title;
//! the page's script shows it below.

use std::fmt::Write;

use aludel_document::page::{escape, number};

/// How values become colours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Scale {
    /// From 0 to 1.
    Share,
    /// From 0 to the greatest value.
    FromZero,
    /// From the least value to 1, which has no colour.
    BelowOne,
    /// From -1 to 1, with a colour for either side.
    Signed,
}

/// A heatmap; rows are as long as there are columns.
pub(super) struct Heatmap<'a> {
    pub title: &'a str,
    pub unit: &'a str,
    /// The numbers of the layers.
    pub columns: &'a [usize],
    pub rows: Vec<(&'a str, Vec<Option<f64>>)>,
    pub scale: Scale,
}

/// A row's height in the plot's own units, and in pixels.
const ROW: usize = 16;

impl Heatmap<'_> {
    pub(super) fn draw(&self) -> String {
        let bounds = self.bounds();
        let mut html = String::from("<figure class=\"heatmap\"><figcaption>");
        let _ = write!(html, "<b>{}</b> <span>{}</span></figcaption>", escape(self.title), escape(self.unit));
        html.push_str("<div class=\"chart\"><div class=\"rows\">");
        for (name, _) in &self.rows {
            let _ = write!(html, "<span title=\"{0}\"><bdi>{0}</bdi></span>", escape(name));
        }
        let (width, height) = (self.columns.len(), self.rows.len() * ROW);
        let _ = write!(
            html,
            "</div><div class=\"plot\" tabindex=\"0\" role=\"img\" aria-label=\"{}\" style=\"height:{height}px\">\
             <svg viewBox=\"0 0 {width} {height}\" preserveAspectRatio=\"none\" data-columns=\"{width}\">",
            escape(&self.spoken(bounds)),
        );
        for (row, (name, values)) in self.rows.iter().enumerate() {
            for (column, (value, layer)) in values.iter().zip(self.columns).enumerate() {
                html.push_str(&self.cell(bounds, (column, row), &format!("layer {layer}, {name}"), *value));
            }
        }
        let (first, last) =
            (self.columns.first().copied().unwrap_or(0), self.columns.last().copied().unwrap_or(0));
        let _ = write!(
            html,
            "</svg></div><div class=\"x\"><span>{first}</span><span>layer</span><span>{last}</span></div></div>\
             <div class=\"legend\"><span>{}</span><i class=\"{}\"></i><span>{}</span></div>\
             <p class=\"value\" role=\"status\">&nbsp;</p></figure>",
            number(bounds.0),
            self.scale.name(),
            number(bounds.1),
        );
        html
    }

    /// The values that the ends of the scale stand for.
    fn bounds(&self) -> (f64, f64) {
        let values =
            || self.rows.iter().flat_map(|(_, values)| values).flatten().copied().filter(|x| x.is_finite());
        match self.scale {
            Scale::Share => (0.0, 1.0),
            Scale::FromZero => (0.0, values().fold(0.0, f64::max)),
            Scale::BelowOne => (values().fold(1.0, f64::min), 1.0),
            Scale::Signed => (-1.0, 1.0),
        }
    }

    fn cell(
        &self,
        bounds: (f64, f64),
        (column, row): (usize, usize),
        place: &str,
        value: Option<f64>,
    ) -> String {
        let (class, opacity) = match value.filter(|value| value.is_finite()) {
            Some(value) => self.scale.color(value, bounds),
            None => ("none", 1.0),
        };
        let value = value.map_or_else(|| "nothing to compare".to_owned(), precise);
        // Whole numbers of pixels high; neighbours in a row overlap a little, so that no line shows between them.
        format!(
            "<rect class=\"{class}\" x=\"{column}\" y=\"{}\" width=\"1.02\" height=\"{}\" fill-opacity=\"{opacity:.3}\">\
             <title>{}: {value}</title></rect>",
            row * ROW,
            ROW - 1,
            escape(place),
        )
    }

    fn spoken(&self, (low, high): (f64, f64)) -> String {
        let (rows, layers) = (self.rows.len(), self.columns.len());
        format!(
            "{}: {rows} kinds of tensors in {layers} layers, from {} to {}",
            self.title,
            number(low),
            number(high)
        )
    }
}

impl Scale {
    const fn name(self) -> &'static str {
        match self {
            Self::Share | Self::FromZero => "rising",
            Self::BelowOne => "falling",
            Self::Signed => "signed",
        }
    }

    /// The colour's name, and how opaque it is.
    fn color(self, value: f64, (low, high): (f64, f64)) -> (&'static str, f64) {
        let share =
            |distance: f64, whole: f64| if whole > 0.0 { (distance / whole).clamp(0.0, 1.0) } else { 0.0 };
        match self {
            Self::Share | Self::FromZero => ("more", share(value, high)),
            Self::BelowOne => ("more", share(1.0 - value, 1.0 - low)),
            Self::Signed if value < 0.0 => ("less", share(-value, 1.0)),
            Self::Signed => ("more", share(value, 1.0)),
        }
    }
}

/// Six digits: cosines of fine-tuned models begin with several nines.
fn precise(value: f64) -> String {
    if value.is_finite() && value.abs() >= 1e-4 { format!("{value:.6}") } else { number(value) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ends_of_a_scale_have_no_colour_and_all_of_it() {
        for (scale, bounds, value, expected) in [
            (Scale::Share, (0.0, 1.0), 0.25, ("more", 0.25)),
            (Scale::FromZero, (0.0, 0.5), 0.5, ("more", 1.0)),
            (Scale::FromZero, (0.0, 0.0), 0.0, ("more", 0.0)),
            (Scale::BelowOne, (0.5, 1.0), 0.5, ("more", 1.0)),
            (Scale::BelowOne, (1.0, 1.0), 1.0, ("more", 0.0)),
            (Scale::Signed, (-1.0, 1.0), -0.5, ("less", 0.5)),
            (Scale::Signed, (-1.0, 1.0), 1.0, ("more", 1.0)),
        ] {
            assert_eq!(scale.color(value, bounds), expected, "{scale:?} of {value}");
        }
    }

    #[test]
    fn what_is_absent_or_not_finite_is_told_and_spoils_nothing() {
        let rows = vec![("a<b", vec![Some(0.5), None]), ("c", vec![Some(f64::NAN), Some(0.25)])];
        let html = Heatmap { title: "t", unit: "u", columns: &[3, 4], rows, scale: Scale::FromZero }.draw();
        assert_eq!(html.matches("<rect").count(), 4);
        assert!(html.contains("fill-opacity=\"1.000\"><title>layer 3, a&lt;b: 0.500000</title>"), "{html}");
        assert!(html.contains("class=\"none\" x=\"1\" y=\"0\""), "{html}");
        assert!(html.contains("<title>layer 3, c: not finite</title>"), "{html}");
        assert!(!html.contains("NaN") && !html.contains("inf"), "{html}");
    }
}
