//! Renders a run as one HTML page that needs nothing else: no network, no other file.
//!
//! In: the summary and the entries of a run. Out: a page with the run's figures, its curves, the student's agreement with
//! its teacher before and after, settings and surroundings. It is readable without scripts; with them, curves tell their
//! values under the pointer and under the arrow keys. A policy in the page forbids it to load anything.

mod series;

use std::fmt::Write;
use std::path::{Path, PathBuf};

use aludel_document::page::figure::{self, Ink};
use aludel_document::page::{self, escape, number};

use super::metrics::{Entry, Phase};
use super::summary::{Fact, Summary};
use crate::error::Error;

/// Writes `report.html` from what is in a run's folder; returns its path.
///
/// # Errors
/// [`Error::Io`], [`Error::Damaged`].
pub fn write(folder: &Path) -> Result<PathBuf, Error> {
    let summary = Summary::read(folder)?;
    let entries = super::read_metrics(&super::metrics_path(folder))?;
    let path = folder.join("report.html");
    super::replace(&path, render(&summary, &entries).as_bytes())?;
    Ok(path)
}

/// The page.
pub fn render(summary: &Summary, entries: &[Entry]) -> String {
    let mut page = page::begin(&summary.title, &[figure::STYLES, CSS].concat());
    let _ = write!(page, "<p class=\"under\">{}</p>", escape(&standing(summary, entries)));
    page.push_str(&tiles(entries));
    page.push_str(&agreement(entries));
    page.push_str("<h2>Curves</h2><div class=\"figures\">");
    let curves = series::curves(entries);
    if curves.is_empty() {
        page.push_str("<p class=\"under\">Nothing has been measured yet.</p>");
    }
    for (name, curves) in &curves {
        let (title, unit) = heading(name);
        let curves: Vec<_> = curves.iter().map(drawn).collect();
        page.push_str(&figure::draw(&title, unit, "step", &curves));
    }
    page.push_str("</div>");
    page.push_str(&facts("Models and data", &summary.models));
    page.push_str(&facts("Environment", &summary.environment));
    let settings = escape(summary.settings.trim_end());
    let _ = write!(page, "<h2>Settings</h2><div class=\"table\"><pre>{settings}</pre></div>");
    page::end(&mut page, figure::SCRIPT);
    page
}

fn drawn(curve: &series::Curve) -> figure::Curve<'_> {
    let ink = if curve.phase == Phase::Train { Ink::First } else { Ink::Second };
    figure::Curve { name: curve.phase.name(), ink, points: &curve.points }
}

fn standing(summary: &Summary, entries: &[Entry]) -> String {
    let step = entries.last().map_or(0, |entry| entry.step);
    let outcome = if summary.outcome.is_empty() { "not complete" } else { &summary.outcome };
    format!("{step} of {} steps, {outcome}", summary.steps)
}

/// The figures that are looked for first.
fn tiles(entries: &[Entry]) -> String {
    let mut tiles = String::from("<div class=\"tiles\">");
    let mut tile = |name: &str, value: Option<String>| {
        if let Some(value) = value {
            let _ = write!(tiles, "<div><span>{name}</span><b>{}</b></div>", escape(&value));
        }
    };
    let last = |phase, name| values(entries, phase, name).last();
    tile("training loss, last step", last(Phase::Train, "loss").map(number));
    tile("validation loss, last", last(Phase::Validation, "loss").map(number));
    tile("tokens trained on", last(Phase::Train, "tokens").map(number));
    tile("tokens a second, median", median(values(entries, Phase::Train, "tokens_per_second")).map(number));
    let memory =
        entries.iter().filter_map(|entry| entry.values.get("memory_bytes")).copied().reduce(f64::max);
    tile("memory, peak", memory.map(bytes_text));
    tiles + "</div>"
}

fn values<'a>(
    entries: &'a [Entry],
    phase: Phase,
    name: &'a str,
) -> impl DoubleEndedIterator<Item = f64> + 'a {
    let of_phase = entries.iter().filter(move |entry| entry.phase == phase);
    of_phase.filter_map(move |entry| entry.values.get(name).copied()).filter(|value| value.is_finite())
}

fn median(values: impl Iterator<Item = f64>) -> Option<f64> {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied()
}

/// What validation measured before the first step and after the last.
fn agreement(entries: &[Entry]) -> String {
    let mut validations = entries.iter().filter(|entry| entry.phase == Phase::Validation);
    let (Some(first), last) = (validations.next(), validations.next_back()) else { return String::new() };
    let mut table = String::from(
        "<h2>The student before and after</h2><div class=\"table\"><table class=\"measures\"><thead><tr><th>on held-out text</th>",
    );
    let _ = write!(table, "<th>step {}</th>", first.step);
    if let Some(last) = last {
        let _ = write!(table, "<th>step {}</th><th>change</th>", last.step);
    }
    table.push_str("</tr></thead><tbody>");
    for (name, &before) in &first.values {
        let (title, unit) = heading(name);
        let unit = if unit.is_empty() { String::new() } else { format!(", {unit}") };
        let _ = write!(table, "<tr><td>{}{}</td><td>{}</td>", escape(&title), escape(&unit), number(before));
        if let Some(&after) = last.and_then(|last| last.values.get(name)) {
            let is_better = if is_better_when_greater(name) { after > before } else { after < before };
            let class = if is_better { "better" } else { "worse" };
            let sign = if after > before { "+" } else { "" };
            let class = if after == before { "" } else { class };
            let _ = write!(
                table,
                "<td>{}</td><td class=\"{class}\">{sign}{}</td>",
                number(after),
                number(after - before)
            );
        }
        table.push_str("</tr>");
    }
    table + "</tbody></table></div>"
}

fn facts(title: &str, facts: &[Fact]) -> String {
    if facts.is_empty() {
        return String::new();
    }
    let mut table = format!("<h2>{title}</h2><div class=\"table\"><table class=\"facts\"><tbody>");
    for Fact { name, value } in facts {
        let _ = write!(table, "<tr><th>{}</th><td>{}</td></tr>", escape(name), escape(value));
    }
    table + "</tbody></table></div>"
}

/// Title and unit of a value.
fn heading(name: &str) -> (String, &'static str) {
    let (title, unit) = match name {
        "loss" => ("Loss", "the objective, a token"),
        "cross_entropy" => ("Cross-entropy of the text", "nats a token"),
        "perplexity" => ("Perplexity", ""),
        "accuracy" => ("Next token right", "share of tokens"),
        "kl" => ("KL from teacher to student", "nats a token"),
        "kl_reverse" => ("KL from student to teacher", "nats a token"),
        "forward_kl" => ("Forward KL", TERM),
        "reverse_kl" => ("Reverse KL", TERM),
        "jsd" => ("Jensen-Shannon divergence", TERM),
        "skewed_forward_kl" => ("Skewed forward KL", TERM),
        "skewed_reverse_kl" => ("Skewed reverse KL", TERM),
        "total_variation" => ("Total variation", TERM),
        "soft_cross_entropy" => ("Soft cross-entropy", TERM),
        "logits_mse" => ("Squared difference of logits", TERM),
        "hidden_mse" => ("Squared difference of hidden states", TERM),
        "hidden_cosine" => ("Cosine distance of hidden states", TERM),
        "attention_transfer" => ("Attention transfer", TERM),
        "top1" => ("Top-1 agreement with the teacher", "share of tokens"),
        "learning_rate" => ("Learning rate", ""),
        "gradient_norm" => ("Norm of the gradient", "before clipping"),
        "tokens" => ("Tokens trained on", "so far"),
        "tokens_per_second" => ("Speed", "tokens a second"),
        "memory_bytes" => ("Memory", "bytes, peak so far"),
        "taid_t" => ("TAID's t", "share of the teacher"),
        "taid_a" => ("Mixture's a", "share of the teacher"),
        other => return (other.replace('_', " "), ""),
    };
    (title.to_owned(), unit)
}

const TERM: &str = "a term of the objective";

/// `2.1 GB`.
fn bytes_text(bytes: f64) -> String {
    let text = number(bytes);
    let digits = text.trim_end_matches(['k', 'M', 'G']);
    format!("{digits} {}B", &text[digits.len()..])
}

fn is_better_when_greater(name: &str) -> bool {
    matches!(name, "accuracy" | "top1")
}

const CSS: &str = include_str!("page.css");

#[cfg(test)]
mod tests;
