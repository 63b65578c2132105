//! Prints a plan for people.

use std::fmt;

use indexmap::IndexMap;

use super::{Action, Plan, Role, Step, alignments};

impl fmt::Display for Plan {
    /// The summary; with `{:#}` also every step.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "method   {}", self.method)?;
        for stage in &self.stages {
            writeln!(f, "stage    {} ({}), in the same passes", stage.name, stage.method)?;
        }
        for source in &self.sources {
            let role = match source.role {
                Role::Base => "base ",
                Role::Member => "model",
                Role::Adapter => "lora ",
                Role::Statistics => "stats",
            };
            writeln!(f, "{role}    {} ({} tensors, {})", source.model, source.tensors, Bytes(source.bytes))?;
            if source.missing_bytes > 0 {
                writeln!(f, "         {} of it to download first", Bytes(source.missing_bytes))?;
            }
            if let Some(note) = &source.note {
                writeln!(f, "         {note}")?;
            }
        }
        self.awaited.iter().try_for_each(|awaited| writeln!(f, "first    {awaited}"))?;
        if !self.compute.is_exact() {
            writeln!(f, "compute  on inputs rounded to FP8: the result is approximate")?;
        }
        self.print_output(f)?;
        self.print_formulas(f)?;
        self.print_alignments(f)?;
        if f.alternate() {
            self.steps.iter().try_for_each(|step| self.print_step(f, step))?;
        }
        self.print_dropped(f)?;
        let work = &self.work;
        writeln!(f, "read     {} in all passes", Bytes(work.bytes_read))?;
        writeln!(f, "write    {}", Bytes(work.bytes_written))?;
        write!(
            f,
            "memory   {} at the most, {} threads, tiles of {} elements",
            Bytes(work.peak_memory),
            work.threads,
            work.tile
        )
    }
}

impl Plan {
    fn print_output(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shards = self.layout.shards().len();
        let files = self.side_files.names.len() + self.side_files.written.len();
        let copied = |from_one: bool| {
            let is_copied =
                |step: &&Step| step.action == Action::Copy && (step.inputs.len() == 1) == from_one;
            self.steps.iter().filter(is_copied).count()
        };
        writeln!(f, "output   {} tensors in {shards} file(s), {files} side file(s)", self.steps.len())?;
        let scaled = self.steps.iter().filter(|step| step.action == Action::Scales).count();
        if scaled > 0 {
            writeln!(f, "fp8      {scaled} weights, each with a tensor of scales")?;
        }
        for (copied, how) in [
            (copied(true), "tensors as they are"),
            (copied(false), "tensors of other types, which all models have to agree on"),
        ] {
            if copied > 0 {
                writeln!(f, "copied   {copied} {how}")?;
            }
        }
        Ok(())
    }

    fn print_formulas(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut passes: Vec<(usize, usize)> = Vec::new();
        for step in &self.steps {
            let Action::Compute { formula, .. } = step.action else { continue };
            let count = self.formulas[formula].passes;
            match passes.iter_mut().find(|(known, _)| *known == count) {
                Some((_, steps)) => *steps += 1,
                None => passes.push((count, 1)),
            }
        }
        for (count, steps) in passes {
            writeln!(f, "passes   {count} over {steps} tensors")?;
        }
        Ok(())
    }

    fn print_alignments(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut layers: IndexMap<(&str, &str), usize> = IndexMap::new();
        for alignment in alignments(&self.steps) {
            *layers.entry((&alignment.model, &alignment.reference)).or_default() += 1;
        }
        for ((model, reference), layers) in layers {
            writeln!(
                f,
                "aligned  the experts of {model} in {layers} layer(s), in the order of those of {reference}"
            )?;
        }
        Ok(())
    }

    fn print_step(&self, f: &mut fmt::Formatter<'_>, step: &Step) -> fmt::Result {
        write!(f, "  {} {:?} {}", step.tensor, step.shape, step.dtype)?;
        for (i, input) in step.inputs.iter().enumerate() {
            match &input.made {
                Some(made) => write!(f, " (x{i} is {}, {})", input.tensor, made.describe())?,
                None if input.tensor != step.tensor => write!(f, " (x{i} is {})", input.tensor)?,
                None => {}
            }
        }
        match step.action {
            Action::Copy => writeln!(f, ": copy"),
            Action::Scales => writeln!(f, ": written with what it scales"),
            Action::Compute { formula, .. } => {
                let formula = &self.formulas[formula];
                writeln!(f, ": {} pass(es)", formula.passes)?;
                formula.text.lines().try_for_each(|line| writeln!(f, "      {line}"))
            }
        }
    }

    fn print_dropped(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut told: Vec<(usize, &str)> = Vec::new();
        for dropped in &self.dropped {
            let key = (dropped.source, dropped.reason.as_str());
            if told.contains(&key) {
                continue;
            }
            told.push(key);
            let same = self.dropped.iter().filter(|d| (d.source, d.reason.as_str()) == key);
            let names: Vec<&str> = same.map(|dropped| dropped.tensor.as_str()).collect();
            let others =
                if names.len() > 1 { format!(" and {} more", names.len() - 1) } else { String::new() };
            let model = &self.sources[dropped.source].model;
            writeln!(f, "dropped  {}{others} of {model}: {}", names[0], dropped.reason)?;
        }
        Ok(())
    }
}

/// A number of bytes in decimal units.
#[derive(Clone, Copy, Debug)]
pub struct Bytes(pub u64);

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            bytes @ 0..1_000 => write!(f, "{bytes} B"),
            bytes @ 1_000..1_000_000 => write!(f, "{:.1} kB", bytes as f64 / 1e3),
            bytes @ 1_000_000..1_000_000_000 => write!(f, "{:.1} MB", bytes as f64 / 1e6),
            bytes => write!(f, "{:.2} GB", bytes as f64 / 1e9),
        }
    }
}
