//! Prints contents and comparisons as tables for people.

use std::fmt;

use aludel_document::page::number;

use super::compare::{Comparison, Uncompared};
use super::contents::{Contents, Counted};
use super::figures::{Figures, ModelFigures, PairFigures};
use super::sums::pairs;
use crate::plan::Bytes;

impl fmt::Display for Contents {
    /// What the model is and its layers; with `{:#}` every tensor instead of the layers.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "model         {}", self.model)?;
        if let Some(architecture) = self.architecture() {
            writeln!(f, "architecture  {architecture}")?;
        }
        let text = number(self.parameters as f64);
        let exact = if text == self.parameters.to_string() {
            String::new()
        } else {
            format!(" ({})", self.parameters)
        };
        let (tensors, bytes) = (self.tensors.len(), Bytes(self.bytes));
        writeln!(f, "parameters    {text}{exact} in {tensors} tensors, {bytes}")?;
        for (dtype, Counted { tensors, parameters, bytes }) in &self.types {
            let (parameters, bytes) = (number(*parameters as f64), Bytes(*bytes));
            writeln!(f, "type          {dtype}: {parameters} parameters in {tensors} tensors, {bytes}")?;
        }
        if !self.side_files.is_empty() {
            writeln!(f, "files         {}", self.side_files.join(", "))?;
        }
        let mut table = Table::default();
        if f.alternate() {
            table.add(["tensor", "type", "shape", "parameters", "size"].map(str::to_owned));
            for tensor in &self.tensors {
                let (name, dtype, shape) =
                    (tensor.name.clone(), tensor.dtype.clone(), format!("{:?}", tensor.shape));
                table.add([
                    name,
                    dtype,
                    shape,
                    number(tensor.parameters as f64),
                    Bytes(tensor.bytes).to_string(),
                ]);
            }
        } else {
            table.add(["layer", "tensors", "parameters", "size"].map(str::to_owned));
            for (name, Counted { tensors, parameters, bytes }) in &self.groups {
                table.add([
                    name.clone(),
                    tensors.to_string(),
                    number(*parameters as f64),
                    Bytes(*bytes).to_string(),
                ]);
            }
        }
        write!(f, "\n{table}")
    }
}

impl Contents {
    fn architecture(&self) -> Option<String> {
        let facts = [
            self.architecture.clone(),
            self.layers.map(|layers| format!("{layers} layers")),
            self.vocabulary.map(|tokens| format!("{tokens} tokens")),
            self.tied_embeddings
                .map(|tied| if tied { "tied embeddings" } else { "a head of its own" }.to_owned()),
        ];
        let facts: Vec<String> = facts.into_iter().flatten().collect();
        (!facts.is_empty()).then(|| facts.join(", "))
    }
}

impl fmt::Display for Comparison {
    /// A table for each model, for each pair and for all, by layer; with `{:#}` by tensor.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "base  {}", self.base)?;
        for (index, model) in self.models.iter().enumerate() {
            let mut table = Table::default();
            let below = format!("<= {}", number(self.threshold));
            let columns = ["delta norm", "relative", "largest", "cosine", "unchanged", &below];
            table.add(std::iter::once(self.unit(f)).chain(columns).map(str::to_owned));
            for (name, figures) in self.rows(f) {
                if let Some(Some(figures)) = figures.models.get(index) {
                    table.add(std::iter::once(name.to_owned()).chain(of_model(figures)));
                }
            }
            write!(f, "\n\nmodel {model} less the base\n{table}")?;
        }
        for (at, (first, second)) in pairs(self.models.len()).enumerate() {
            let mut table = Table::default();
            let columns = ["cosine", "both change", "agree", "conflict"];
            table.add(std::iter::once(self.unit(f)).chain(columns).map(str::to_owned));
            for (name, figures) in self.rows(f) {
                if let Some(Some(figures)) = figures.pairs.get(at) {
                    table.add(std::iter::once(name.to_owned()).chain(of_pair(figures)));
                }
            }
            write!(f, "\n\nchanges of {} and {}\n{table}", self.models[first], self.models[second])?;
        }
        if self.models.len() > 2 {
            let mut table = Table::default();
            table.add([self.unit(f), "any changes", "conflict"].map(str::to_owned));
            for (name, figures) in self.rows(f) {
                table.add([name.to_owned(), percent(figures.moved), percent(figures.conflict)]);
            }
            write!(f, "\n\nchanges of all models\n{table}")?;
        }
        self.print_uncompared(f)
    }
}

impl Comparison {
    /// What the rows of the tables are.
    fn unit(&self, f: &fmt::Formatter<'_>) -> &'static str {
        if f.alternate() { "tensor" } else { "layer" }
    }

    fn rows(&self, f: &fmt::Formatter<'_>) -> Vec<(&str, &Figures)> {
        let mut rows: Vec<(&str, &Figures)> = match f.alternate() {
            true => self.tensors.iter().map(|tensor| (tensor.name.as_str(), &tensor.figures)).collect(),
            false => self.groups.iter().map(|group| (group.name.as_str(), &group.figures)).collect(),
        };
        rows.push(("all", &self.whole));
        rows
    }

    /// One line for each reason.
    fn print_uncompared(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.uncompared.is_empty() {
            writeln!(f)?;
        }
        let mut groups: Vec<(&Uncompared, usize)> = Vec::new();
        for one in &self.uncompared {
            match groups
                .iter_mut()
                .find(|(known, _)| (&known.model, &known.reason) == (&one.model, &one.reason))
            {
                Some((_, count)) => *count += 1,
                None => groups.push((one, 1)),
            }
        }
        for (Uncompared { tensor, model, reason }, count) in groups {
            let others = if count > 1 { format!(" and {} more", count - 1) } else { String::new() };
            let model = model.as_ref().map_or_else(String::new, |model| format!(" of {model}"));
            write!(f, "\nnot compared: {tensor}{others}{model}: {reason}")?;
        }
        Ok(())
    }
}

fn of_model(figures: &ModelFigures) -> [String; 6] {
    [
        number(figures.delta_norm),
        figures.relative.map_or_else(none, number),
        number(figures.largest),
        cosine(figures.cosine),
        percent(figures.unchanged),
        percent(figures.small),
    ]
}

fn of_pair(figures: &PairFigures) -> [String; 4] {
    [cosine(figures.cosine), percent(figures.both), percent(figures.agreement), percent(figures.conflict)]
}

fn none() -> String {
    "-".to_owned()
}

/// A cosine; models that were fine-tuned differ in its later digits.
pub(super) fn cosine(cosine: Option<f64>) -> String {
    match cosine {
        Some(cosine) if cosine.is_finite() => format!("{cosine:.5}"),
        Some(_) => "not finite".to_owned(),
        None => none(),
    }
}

pub(super) fn percent(share: Option<f64>) -> String {
    share.map_or_else(none, |share| format!("{:.2} %", share * 100.0))
}

/// Rows of cells: the first column begins at the left, the others end at the right.
#[derive(Default)]
pub(crate) struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    pub(crate) fn add(&mut self, row: impl IntoIterator<Item = String>) {
        self.rows.push(row.into_iter().collect());
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let width = |column: usize| {
            self.rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max()
        };
        let widths: Vec<usize> = (0..).map_while(width).collect();
        for (index, row) in self.rows.iter().enumerate() {
            let cells = row.iter().zip(&widths).enumerate().map(|(column, (cell, &width))| match column {
                0 => format!("{cell:width$}"),
                _ => format!("{cell:>width$}"),
            });
            let line = cells.collect::<Vec<_>>().join("  ");
            write!(f, "{}{line}", if index == 0 { "" } else { "\n" })?;
        }
        Ok(())
    }
}
