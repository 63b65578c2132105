//! Renders a comparison as one HTML page that needs nothing else: no network, no other file.
//!
//! In: a [`Comparison`]. Out: a page with the figures of whole models, heatmaps by kind of tensor and layer for every model and every
//! pair, and the figures of every layer. It is readable without scripts; with them, a heatmap tells the value under the pointer and
//! under the arrow keys.

mod heatmap;

use std::fmt::Write;

use aludel_document::page::{self, escape, number};

use super::compare::{Comparison, Kinds};
use super::figures::Figures;
use super::print::{cosine, percent};
use heatmap::{Heatmap, Scale};

/// The page.
pub fn render(comparison: &Comparison) -> String {
    let title = format!("Changes from {}", comparison.base);
    let mut page = page::begin(&title, CSS);
    let models = comparison.models.len();
    let parameters = number(comparison.whole.parameters as f64);
    let plural = if models == 1 { "model" } else { "models" };
    let _ = write!(page, "<p class=\"under\">{models} {plural} compared over {parameters} parameters</p>");
    page.push_str(&overview(comparison));
    for (index, model) in comparison.models.iter().enumerate() {
        let _ = write!(page, "<h2>{} less the base</h2>", escape(model));
        page.push_str(&heatmaps(comparison, &of_model(index)));
    }
    for pair in comparison.whole.pairs.iter().flatten() {
        let (first, second) = (&comparison.models[pair.first], &comparison.models[pair.second]);
        let _ = write!(page, "<h2>Changes of {} and {}</h2>", escape(first), escape(second));
        page.push_str(&heatmaps(comparison, &of_pair(pair.first, pair.second)));
    }
    if models > 2 {
        page.push_str("<h2>Changes of all models</h2>");
        let conflict = Metric {
            title: "Conflict",
            unit: "share of the elements that any model changes, which some raise and others lower",
            scale: Scale::Share,
            value: Box::new(|figures| figures.conflict),
        };
        page.push_str(&heatmaps(comparison, &[conflict]));
    }
    page.push_str(&layers(comparison));
    page.push_str(&uncompared(comparison));
    page::end(&mut page, SCRIPT);
    page
}

/// What is looked at of figures.
type Value = dyn Fn(&Figures) -> Option<f64>;

/// What a heatmap shows.
struct Metric {
    title: &'static str,
    unit: &'static str,
    scale: Scale,
    value: Box<Value>,
}

fn of_model(index: usize) -> [Metric; 3] {
    let of = move |figures: &Figures| figures.models.get(index).copied().flatten();
    [
        Metric {
            title: "Relative change",
            unit: "norm of the change over the norm of the base",
            scale: Scale::FromZero,
            value: Box::new(move |figures| of(figures)?.relative),
        },
        Metric {
            title: "Cosine with the base",
            unit: "darker where it is further from 1",
            scale: Scale::BelowOne,
            value: Box::new(move |figures| of(figures)?.cosine),
        },
        Metric {
            title: "Unchanged",
            unit: "share of elements that are exactly the base's",
            scale: Scale::Share,
            value: Box::new(move |figures| of(figures)?.unchanged),
        },
    ]
}

fn of_pair(first: usize, second: usize) -> [Metric; 2] {
    let of = move |figures: &Figures| {
        figures.pairs.iter().flatten().find(|pair| (pair.first, pair.second) == (first, second)).copied()
    };
    [
        Metric {
            title: "Cosine of the changes",
            unit: "from opposite to alike",
            scale: Scale::Signed,
            value: Box::new(move |figures| of(figures)?.cosine),
        },
        Metric {
            title: "Sign conflict",
            unit: "share of the elements that both change, which they change in opposite directions",
            scale: Scale::Share,
            value: Box::new(move |figures| of(figures)?.conflict),
        },
    ]
}

fn heatmaps(comparison: &Comparison, metrics: &[Metric]) -> String {
    let mut html = String::from("<div class=\"figures\">");
    for metric in metrics {
        for kinds in &comparison.kinds {
            html.push_str(&heatmap(kinds, metric, comparison.kinds.len() > 1));
        }
    }
    if comparison.kinds.is_empty() {
        html.push_str("<p class=\"under\">No tensor is in a layer.</p>");
    }
    html + "</div>"
}

fn heatmap(kinds: &Kinds, metric: &Metric, names_stack: bool) -> String {
    let stack = kinds.prefix.trim_end_matches('.');
    let title = if names_stack { format!("{}: {stack}", metric.title) } else { metric.title.to_owned() };
    let value = |figures: &Option<Figures>| figures.as_ref().and_then(&metric.value);
    let rows = kinds.rows.iter().map(|(name, layers)| (name.as_str(), layers.iter().map(value).collect()));
    Heatmap {
        title: &title,
        unit: metric.unit,
        columns: &kinds.layers,
        rows: rows.collect(),
        scale: metric.scale,
    }
    .draw()
}

/// The figures of whole models.
fn overview(comparison: &Comparison) -> String {
    let mut table = String::from(
        "<h2>All layers together</h2><div class=\"table\"><table class=\"numbers\"><thead><tr><th>model</th>\
         <th>norm of the change</th><th>relative</th><th>largest</th><th>cosine with the base</th><th>unchanged</th>",
    );
    let _ = write!(table, "<th>at most {}</th></tr></thead><tbody>", number(comparison.threshold));
    for (model, figures) in comparison.models.iter().zip(&comparison.whole.models) {
        let Some(figures) = figures else { continue };
        let _ = write!(
            table,
            "<tr><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td></tr>",
            escape(model),
            number(figures.delta_norm),
            figures.relative.map_or_else(String::new, number),
            number(figures.largest),
            cosine(figures.cosine),
            percent(figures.unchanged),
            percent(figures.small),
        );
    }
    table.push_str("</tbody></table></div>");
    if comparison.whole.pairs.is_empty() {
        return table;
    }
    table.push_str(
        "<div class=\"table below\"><table class=\"numbers\"><thead><tr><th>changes of</th><th>cosine</th><th>both change</th>\
         <th>agree</th><th>conflict</th></tr></thead><tbody>",
    );
    for pair in comparison.whole.pairs.iter().flatten() {
        let _ = write!(
            table,
            "<tr><td>{} and {}</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td></tr>",
            escape(&comparison.models[pair.first]),
            escape(&comparison.models[pair.second]),
            cosine(pair.cosine),
            percent(pair.both),
            percent(pair.agreement),
            percent(pair.conflict),
        );
    }
    table + "</tbody></table></div>"
}

/// The figures of every layer: for each model the relative change, for each pair cosine and conflict.
fn layers(comparison: &Comparison) -> String {
    let mut table = String::from(
        "<h2>By layer</h2><div class=\"table\"><table class=\"numbers layers\"><thead><tr><th>layer</th><th>parameters</th>",
    );
    for model in &comparison.models {
        let _ = write!(table, "<th>{}: relative change</th>", escape(model));
    }
    for pair in comparison.whole.pairs.iter().flatten() {
        let names = format!("{} and {}", comparison.models[pair.first], comparison.models[pair.second]);
        let _ = write!(table, "<th>{0}: cosine</th><th>{0}: conflict</th>", escape(&names));
    }
    table.push_str("</tr></thead><tbody>");
    for group in &comparison.groups {
        let figures = &group.figures;
        let parameters = number(figures.parameters as f64);
        let _ = write!(table, "<tr><td>{}</td><td>{parameters}</td>", escape(&group.name));
        for model in &figures.models {
            let relative = model.and_then(|model| model.relative);
            let _ = write!(table, "<td>{}</td>", relative.map_or_else(|| "-".to_owned(), number));
        }
        for pair in &figures.pairs {
            let (alike, conflict) = (pair.and_then(|pair| pair.cosine), pair.and_then(|pair| pair.conflict));
            let _ = write!(table, "<td>{}</td><td>{}</td>", cosine(alike), percent(conflict));
        }
        table.push_str("</tr>");
    }
    table + "</tbody></table></div>"
}

fn uncompared(comparison: &Comparison) -> String {
    if comparison.uncompared.is_empty() {
        return String::new();
    }
    let mut table = String::from(
        "<h2>Not compared</h2><div class=\"table\"><table><thead><tr><th>tensor</th><th>model</th><th>reason</th></tr></thead><tbody>",
    );
    for one in &comparison.uncompared {
        let (tensor, reason) = (escape(&one.tensor), escape(&one.reason));
        let model = one.model.as_deref().map_or_else(|| "all".to_owned(), escape);
        let _ = write!(table, "<tr><td>{tensor}</td><td>{model}</td><td>{reason}</td></tr>");
    }
    table + "</tbody></table></div>"
}

const CSS: &str = include_str!("page.css");
const SCRIPT: &str = include_str!("page.js");
