//! Says what was extracted and how exact it is: per tensor, per kind of tensor, and over all.

use std::fmt;
use std::path::PathBuf;

use indexmap::IndexMap;
use serde::Serialize;

use super::Settings;
use crate::inspect::Table;
use crate::plan::{Bytes, LayerName};

/// What was extracted.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Report {
    /// The folder that was written.
    pub output: PathBuf,
    /// The fine-tuned model.
    pub finetuned: String,
    /// Its base.
    pub base: String,
    /// The type of the factors, by torch's name.
    pub dtype: String,
    /// The rank of most tensors.
    pub rank: usize,
    /// The norm of all that differs.
    pub norm: f64,
    /// The norm of what the adapter lacks, as a share of that.
    pub error: f64,
    /// Tensors with factors.
    pub extracted: Vec<Extracted>,
    /// Tensors that are saved whole.
    pub saved: Vec<Saved>,
    /// Tensors that differ, or that were not compared, and are not in the adapter.
    pub left_out: Vec<LeftOut>,
    /// Tensors in which the models do not differ.
    pub unchanged: usize,
    /// Rows of the embedding in the base and in the fine-tuned model, where they differ: the base has to be resized for the adapter.
    pub resized: Option<(usize, usize)>,
    /// Bytes of both models' tensors.
    pub bytes_read: u64,
    /// Bytes of the adapter's tensors.
    pub bytes_written: u64,
    /// From start to end.
    pub seconds: f64,
    /// The most memory the process had resident, in bytes, where the system tells.
    pub peak_memory: Option<u64>,
}

/// A tensor with factors.
#[derive(Clone, Debug, Serialize)]
pub struct Extracted {
    /// Its name.
    pub tensor: String,
    /// How many singular values are kept.
    pub rank: usize,
    /// The norm of what the fine-tuned model has beyond its base.
    pub norm: f64,
    /// The norm of what the factors lack of it, as a share.
    pub error: f64,
    /// The singular values that are kept, descending.
    pub singular_values: Vec<f64>,
}

/// A tensor that is saved whole.
#[derive(Clone, Debug, Serialize)]
pub struct Saved {
    /// Its name.
    pub tensor: String,
    /// The norm of what the fine-tuned model has beyond its base; `None` where the base has another number of rows.
    pub norm: Option<f64>,
}

/// A tensor that is not in the adapter.
#[derive(Clone, Debug, Serialize)]
pub struct LeftOut {
    /// Its name.
    pub tensor: String,
    /// The norm of what the fine-tuned model has beyond its base; `None` where it is not known.
    pub norm: Option<f64>,
    /// Why.
    pub reason: String,
}

impl Report {
    pub(super) fn of(settings: &Settings<'_>) -> Self {
        Self {
            finetuned: settings.finetuned.to_owned(),
            base: settings.base.to_owned(),
            dtype: settings.dtype.torch_name().to_owned(),
            ..Self::default()
        }
    }

    /// Sums norms and errors over all tensors.
    pub(super) fn sum_up(&mut self, bytes_written: u64, bytes_read: u64) {
        let squares = |norms: &mut dyn Iterator<Item = f64>| norms.map(|norm| norm * norm).sum::<f64>();
        let left_out = squares(&mut self.left_out.iter().filter_map(|left_out| left_out.norm));
        let saved = squares(&mut self.saved.iter().filter_map(|saved| saved.norm));
        let extracted = squares(&mut self.extracted.iter().map(|extracted| extracted.norm));
        let lacking = squares(&mut self.extracted.iter().map(|extracted| extracted.error * extracted.norm));
        self.norm = (left_out + saved + extracted).sqrt();
        self.error = if self.norm > 0.0 { (left_out + lacking).sqrt() / self.norm } else { 0.0 };
        (self.bytes_written, self.bytes_read) = (bytes_written, bytes_read);
    }

    /// What the adapter is, in a sentence.
    pub fn summary(&self) -> String {
        let plural =
            |count: usize, noun: &str| format!("{count} {noun}{}", if count == 1 { "" } else { "s" });
        let ranks = self.extracted.iter().map(|extracted| extracted.rank);
        let rank = match (ranks.clone().min(), ranks.max()) {
            (Some(least), Some(most)) if least < most => format!(" of rank {least} to {most}"),
            (Some(rank), _) => format!(" of rank {rank}"),
            _ => String::new(),
        };
        let saved = match self.saved.len() {
            0 => String::new(),
            count => format!(", {count} saved whole"),
        };
        let left_out = match self.left_out.iter().filter(|left_out| left_out.norm.is_some()).count() {
            0 => String::new(),
            count => format!(", {count} left out"),
        };
        let tensors = plural(self.extracted.len(), "tensor");
        format!("{tensors}{rank}{saved}{left_out}: relative error {}", figure(self.error))
    }
}

/// Three digits that say something.
pub(super) fn figure(value: f64) -> String {
    match value {
        0.0 => "0".to_owned(),
        value if (1e-3..1e5).contains(&value.abs()) => {
            let digits = (2 - value.abs().log10().floor() as i32).max(0) as usize;
            format!("{value:.digits$}")
        }
        value => format!("{value:.2e}"),
    }
}

/// Tensors that are one kind: the same in every layer.
#[derive(Default)]
struct Group<'r> {
    members: Vec<&'r Extracted>,
}

impl Group<'_> {
    fn norm(&self) -> f64 {
        self.members.iter().map(|member| member.norm.powi(2)).sum::<f64>().sqrt()
    }

    fn error(&self) -> f64 {
        self.members.iter().map(|member| (member.error * member.norm).powi(2)).sum::<f64>().sqrt()
            / self.norm()
    }

    fn row(&self, name: String) -> [String; 7] {
        let ranks = || self.members.iter().map(|member| member.rank);
        let (least, most) = (ranks().min().unwrap_or(0), ranks().max().unwrap_or(0));
        let rank = if least == most { most.to_string() } else { format!("{least} to {most}") };
        let worst = self.members.iter().map(|member| member.error).fold(0.0, f64::max);
        let largest = self.members.iter().filter_map(|member| member.singular_values.first());
        let smallest = self.members.iter().filter_map(|member| member.singular_values.last());
        [
            name,
            self.members.len().to_string(),
            rank,
            figure(self.norm()),
            figure(self.error()),
            figure(worst),
            format!(
                "{} to {}",
                figure(largest.copied().fold(0.0, f64::max)),
                figure(smallest.copied().fold(f64::INFINITY, f64::min))
            ),
        ]
    }
}

impl fmt::Display for Report {
    /// A table by kind of tensor; with `{:#}` by tensor. What is saved and what is left out follows.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut table = Table::default();
        let columns = ["tensor", "count", "rank", "norm", "error", "worst", "singular values"];
        table.add(columns.map(str::to_owned));
        let mut groups: IndexMap<String, Group<'_>> = IndexMap::new();
        for extracted in &self.extracted {
            let name = if f.alternate() { extracted.tensor.clone() } else { kind(&extracted.tensor) };
            groups.entry(name).or_default().members.push(extracted);
        }
        for (name, group) in &groups {
            table.add(group.row(name.clone()));
        }
        let all = Group { members: self.extracted.iter().collect() };
        if groups.len() > 1 {
            table.add(all.row("all".to_owned()));
        }
        if !groups.is_empty() {
            write!(f, "{table}")?;
        }
        self.write_others(f)?;
        write!(f, "\n{}", self.summary())
    }
}

impl Report {
    /// What has no factors, by kind and reason.
    fn write_others(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let saved = self.saved.iter().map(|saved| (&saved.tensor, saved.norm, "saved whole".to_owned()));
        let left_out = self.left_out.iter();
        let left_out = left_out.map(|out| (&out.tensor, out.norm, format!("left out: {}", out.reason)));
        let mut groups: IndexMap<(String, String), (usize, f64, bool)> = IndexMap::new();
        for (tensor, norm, what) in saved.chain(left_out) {
            let name = if f.alternate() { tensor.clone() } else { kind(tensor) };
            let (count, square, is_known) = groups.entry((name, what)).or_insert((0, 0.0, true));
            *count += 1;
            *square += norm.unwrap_or(0.0).powi(2);
            *is_known &= norm.is_some();
        }
        if groups.is_empty() {
            return Ok(());
        }
        let mut table = Table::default();
        table.add(["tensor", "count", "norm", ""].map(str::to_owned));
        for ((name, what), (count, square, is_known)) in groups {
            let norm = if is_known { figure(square.sqrt()) } else { "-".to_owned() };
            table.add([name, count.to_string(), norm, what]);
        }
        let gap = if self.extracted.is_empty() { "" } else { "\n\n" };
        write!(f, "{gap}{table}")
    }
}

/// The name of a tensor without its layer.
fn kind(tensor: &str) -> String {
    match LayerName::of(tensor) {
        Some(LayerName { prefix, rest, .. }) => format!("{prefix}*.{rest}"),
        None => tensor.to_owned(),
    }
}

/// What was read and written, and how fast.
impl Report {
    /// `1.2 GB/s read, adapter of 9.8 MB`.
    pub fn speed(&self) -> String {
        let rate = Bytes((self.bytes_read as f64 / self.seconds.max(1e-3)) as u64);
        let memory =
            self.peak_memory.map_or(String::new(), |bytes| format!(", peak memory {}", Bytes(bytes)));
        format!("{rate}/s read, {} written{memory}", Bytes(self.bytes_written))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_have_three_digits() {
        for (value, text) in [
            (0.0, "0"),
            (0.051_23, "0.0512"),
            (1.0, "1.00"),
            (123.4, "123"),
            (9e-5, "9.00e-5"),
            (2e6, "2.00e6"),
        ] {
            assert_eq!(figure(value), text);
        }
    }

    #[test]
    fn errors_are_summed_over_what_differs() {
        let extracted =
            |norm, error| Extracted { tensor: "a".into(), rank: 1, norm, error, singular_values: vec![1.0] };
        let mut report = Report {
            extracted: vec![extracted(3.0, 0.5), extracted(4.0, 0.0)],
            saved: vec![
                Saved { tensor: "s".into(), norm: Some(2.0) },
                Saved { tensor: "r".into(), norm: None },
            ],
            left_out: vec![
                LeftOut { tensor: "l".into(), norm: Some(1.0), reason: String::new() },
                LeftOut { tensor: "m".into(), norm: None, reason: String::new() },
            ],
            ..Report::default()
        };
        report.sum_up(0, 0);
        assert!((report.norm - 30f64.sqrt()).abs() < 1e-12);
        assert!((report.error - (3.25f64 / 30.0).sqrt()).abs() < 1e-12);
        assert_eq!(report.summary(), "2 tensors of rank 1, 2 saved whole, 1 left out: relative error 0.329");
    }
}
