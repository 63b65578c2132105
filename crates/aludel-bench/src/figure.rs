//! Single figures of records, for sentences and tables that people write.
//!
//! In: `overlap at-once wall-saved in-turn`: a definition, one of its cases, what is wanted of it, and the case that it is held against, where
//! there is one. Out: a few words, which say that nothing is measured where there is no record.

use std::collections::BTreeMap;

use anyhow::{Context, bail, ensure};

use crate::definition::Definition;
use crate::record::{CaseRecord, Medians, Record};

/// The words for a figure; `definition` reads one by its name.
///
/// Errors: it names no definition, case or figure.
pub(crate) fn figure(
    records: &BTreeMap<String, Record>,
    definition: &dyn Fn(&str) -> anyhow::Result<Definition>,
    asked: &str,
) -> anyhow::Result<String> {
    let words: Vec<&str> = asked.split_whitespace().collect();
    let [name, case, kind, other @ ..] = words.as_slice() else {
        bail!("`{asked}` is no definition, case and figure")
    };
    let known = definition(name)?;
    for wanted in [case].into_iter().chain(other) {
        ensure!(known.cases.iter().any(|known| known.name == **wanted), "`{name}` has no case `{wanted}`");
    }
    ensure!(KINDS.contains(kind), "there is no figure `{kind}`, but {}", KINDS.join(", "));
    let Some(record) = records.get(*name) else { return Ok(MISSING.to_owned()) };
    let of = |name: &str| record.cases.iter().find(|case| case.name == name);
    let Some(ours) = of(case) else { return Ok(MISSING.to_owned()) };
    let against = other.first().and_then(|other| of(other));
    if other.len() != usize::from(against.is_some()) {
        return Ok(MISSING.to_owned());
    }
    let other = against;
    let text = match *kind {
        "machine" => {
            let date = &record.date[..record.date.len().min(10)];
            Some(format!("{}, {} cores, {date}", record.machine.cpu, record.machine.cores))
        }
        "cpu-ratio" => ours.summary.cpu.map(|ratio| times(ratio.median)),
        "step-ratio" => ours.summary.step.map(|ratio| times(ratio.median)),
        "wall-gain" => quotient(other, Some(ours), wall).map(times),
        "wall-saved" => quotient(Some(ours), other, wall).map(|share| saved(share, "time")),
        "peak-saved" => quotient(Some(ours), other, peak).map(|share| saved(share, "memory")),
        "peak-saved-reference" => {
            let reference = ours.summary.reference.and_then(|reference| peak(&reference));
            let ours = ours.summary.ours.and_then(|ours| peak(&ours));
            ours.zip(reference).map(|(ours, reference)| saved(ours / reference, "memory"))
        }
        _ => ours.summary.ours.and_then(|ours| peak(&ours)).map(|bytes| format!("{:.2} GB", bytes / 1e9)),
    };
    text.with_context(|| format!("the record of `{name}` has no `{kind}` of `{case}`"))
}

const KINDS: [&str; 8] = [
    "machine",
    "cpu-ratio",
    "step-ratio",
    "wall-gain",
    "wall-saved",
    "peak-saved",
    "peak-saved-reference",
    "peak",
];

const MISSING: &str = "not measured yet";

fn wall(medians: &Medians) -> Option<f64> {
    Some(medians.wall)
}

fn peak(medians: &Medians) -> Option<f64> {
    medians.peak_bytes.map(|bytes| bytes as f64)
}

fn quotient(
    above: Option<&CaseRecord>,
    below: Option<&CaseRecord>,
    figure: fn(&Medians) -> Option<f64>,
) -> Option<f64> {
    let of = |case: Option<&CaseRecord>| figure(&case?.summary.ours?);
    Some(of(above)? / of(below)?)
}

fn times(ratio: f64) -> String {
    if ratio < 10.0 { format!("{ratio:.2}x") } else { format!("{ratio:.1}x") }
}

fn saved(share: f64, what: &str) -> String {
    let percent = 100.0 * (1.0 - share);
    if percent < 0.0 {
        format!("{:.0} % more {what}", -percent)
    } else {
        format!("{percent:.0} % less {what}")
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::record::tests::example;

    /// Two cases, of which the second takes half of the time and of the memory.
    fn records() -> BTreeMap<String, Record> {
        let mut record = example("2030-01-02T03:04:05Z", "in-turn");
        record.definition = "overlap".into();
        record.cases.push(record.cases[0].clone());
        record.cases[1].name = "at-once".into();
        let ours = record.cases[1].summary.ours.as_mut().unwrap();
        (ours.wall, ours.peak_bytes) = (ours.wall / 2.0, ours.peak_bytes.map(|bytes| bytes / 2));
        BTreeMap::from([("overlap".to_owned(), record)])
    }

    fn asked(records: &BTreeMap<String, Record>, text: &str) -> anyhow::Result<String> {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../benches/definitions");
        let read = |name: &str| Definition::read(&folder.join(name).with_extension("toml"));
        figure(records, &read, text)
    }

    #[test]
    fn figures_are_words() {
        let records = records();
        for (text, words) in [
            ("overlap at-once wall-saved in-turn", "50 % less time"),
            ("overlap in-turn wall-saved at-once", "100 % more time"),
            ("overlap at-once wall-gain in-turn", "2.00x"),
            ("overlap at-once peak-saved in-turn", "50 % less memory"),
            ("overlap at-once peak", "0.02 GB"),
            ("overlap in-turn cpu-ratio", "15.0x"),
            ("overlap at-once machine", "Some CPU @ 2 GHz, 2 cores, 2030-01-02"),
            ("overlap reading wall-gain in-turn", MISSING),
            ("grouped ties-grouped wall-gain ties-single", MISSING),
        ] {
            assert_eq!(asked(&records, text).unwrap(), words, "{text}");
        }
    }

    #[test]
    fn what_is_asked_for_must_exist() {
        for (text, complaint) in [
            ("overlap at-once", "is no definition, case and figure"),
            ("overlap at-last wall-gain in-turn", "`overlap` has no case `at-last`"),
            ("overlap at-once speed", "there is no figure `speed`"),
            ("overlap at-once step-ratio", "has no `step-ratio` of `at-once`"),
        ] {
            let error = format!("{:#}", asked(&records(), text).unwrap_err());
            assert!(error.contains(complaint), "{error}");
        }
    }
}
