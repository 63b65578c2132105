//! Turns records into Markdown tables and puts them into the documents that ask for them.
//!
//! In: the newest record of each definition, and README.md and docs/ with `<!-- bench:NAME -->` and `<!-- /bench -->` around
//! each table, `<!-- figure:NAME CASE KIND -->` and `<!-- /figure -->` around each figure. Out: the documents with their tables brought up to date, or the names of those that are not.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail, ensure};

use crate::definition::{Definition, OverCase};
use crate::figure::figure;
use crate::record::{CaseRecord, Medians, Ratio, Record, newest};

/// Brings every document under `root` up to date; with `check`, only says which are not.
///
/// Errors: a marker is not closed or names no definition; with `check`, a document is out of date.
pub(crate) fn render(root: &Path, check: bool) -> anyhow::Result<()> {
    let records = newest(&root.join("benches/record"))?;
    let mut stale = Vec::new();
    for path in documents(root)? {
        let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let table = |name: &str| Ok(format!("\n{}", block(root, &records, name)?));
        let one = |asked: &str| figure(&records, &|name| definition(root, name), asked);
        let rendered = splice(&text, TABLE, &table).and_then(|text| splice(&text, FIGURE, &one));
        let rendered = rendered.with_context(|| format!("in {}", path.display()))?;
        if rendered != text && check {
            stale.push(path.display().to_string());
        } else if rendered != text {
            fs::write(&path, rendered).with_context(|| format!("cannot write {}", path.display()))?;
            println!("updated {}", path.display());
        }
    }
    ensure!(stale.is_empty(), "out of date: {}; run `cargo run -p aludel-bench -- render`", stale.join(", "));
    Ok(())
}

fn documents(root: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let mut found = vec![root.join("README.md")];
    let mut folders = vec![root.join("docs")];
    while let Some(folder) = folders.pop() {
        let Ok(entries) = folder.read_dir() else { continue };
        for entry in entries {
            let path = entry?.path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "md") {
                found.push(path);
            }
        }
    }
    found.retain(|path| path.exists());
    found.sort();
    Ok(found)
}

/// The beginning of a marker, and what closes it.
type Markers = (&'static str, &'static str);

const TABLE: Markers = ("<!-- bench:", "<!-- /bench -->");
const FIGURE: Markers = ("<!-- figure:", "<!-- /figure -->");

/// Replaces what stands between each pair of markers.
fn splice(
    text: &str,
    (open, close): Markers,
    content: &dyn Fn(&str) -> anyhow::Result<String>,
) -> anyhow::Result<String> {
    let (mut spliced, mut rest) = (String::new(), text);
    while let Some((before, after)) = rest.split_once(open) {
        let Some((name, after)) = after.split_once(OPEN_END) else {
            bail!("a `{open}` marker is not complete")
        };
        let Some((old, after)) = after.split_once(close) else {
            bail!("the marker of `{name}` is not closed")
        };
        ensure!(!old.contains(open), "the marker of `{name}` is not closed");
        spliced.push_str(&format!("{before}{open}{name}{OPEN_END}{}{close}", content(name)?));
        rest = after;
    }
    Ok(spliced + rest)
}

fn definition(root: &Path, name: &str) -> anyhow::Result<Definition> {
    Definition::read(&root.join(format!("benches/definitions/{name}.toml")))
}

fn block(root: &Path, records: &BTreeMap<String, Record>, name: &str) -> anyhow::Result<String> {
    match records.get(name) {
        Some(record) => Ok(table(record) + &caption(record)),
        None if root.join(format!("benches/definitions/{name}.toml")).exists() => {
            Ok("Not measured yet.\n".to_owned())
        }
        None => bail!("`{name}` is no definition"),
    }
}

/// A row for each case, and only the columns that have a figure.
fn table(record: &Record) -> String {
    let columns: Vec<Vec<String>> = COLUMNS.iter().filter_map(|column| filled(record, *column)).collect();
    let row = |at: usize| {
        let cells: Vec<&str> = columns.iter().map(|column| column[at].as_str()).collect();
        format!("| {} |\n", cells.join(" | "))
    };
    let rule = format!("|{}\n", "---|".repeat(columns.len()));
    row(0) + &rule + &(1..=record.cases.len()).map(row).collect::<String>()
}

/// The head of a column and then its cells; `None` when it has no figure.
fn filled(record: &Record, (head, cell): (&str, Cell)) -> Option<Vec<String>> {
    let cells: Vec<Option<String>> = record.cases.iter().map(|case| cell(record, case)).collect();
    if cells.iter().all(Option::is_none) {
        return None;
    }
    let head = match &record.reference {
        Some(name) if head == REFERENCE => name,
        _ => head,
    };
    let cells = cells.into_iter().map(Option::unwrap_or_default);
    Some(std::iter::once(head.to_owned()).chain(cells).collect())
}

fn caption(record: &Record) -> String {
    let machine = &record.machine;
    let tools = [Some(record.aludel.as_str()), record.reference.as_deref()];
    let tools: Vec<&str> = tools.into_iter().flatten().collect();
    let gpu = machine.gpu.as_ref().map_or(String::new(), |gpu| format!(", {gpu}"));
    format!(
        "\n{}. {}, {} cores, {} GB, {}{gpu}; {}; commit {}; {}. Made by\n```sh\n{}\n```\n",
        record.title,
        machine.cpu,
        machine.cores,
        machine.memory_gb,
        machine.system,
        tools.join(", "),
        record.commit,
        &record.date[..record.date.len().min(10)],
        record.command,
    )
}

type Cell = fn(&Record, &CaseRecord) -> Option<String>;

/// Stands for the reference's name.
const REFERENCE: &str = "reference";

const COLUMNS: [(&str, Cell); 22] = [
    ("case", |_, case| Some(case.name.clone())),
    ("aludel: user+sys, wall", |_, case| case.summary.ours.as_ref().map(times)),
    (REFERENCE, |_, case| case.summary.reference.as_ref().map(times)),
    ("floor", |_, case| case.summary.floor.as_ref().map(times)),
    ("user+sys ratio", |_, case| case.summary.cpu.map(|ratio| at_least(ratio, case.bars.cpu))),
    ("wall ratio", |_, case| case.summary.wall.map(|ratio| at_least(ratio, case.bars.wall))),
    ("wall over floor", |_, case| case.summary.over_floor.map(|ratio| at_most(ratio, case.bars.floor))),
    ("peak memory", |_, case| peak(case)),
    ("planned", |_, case| planned(case)),
    ("peak over another", |record, case| over(record, case, case.bars.peak_over.as_ref()?, peak_bytes)),
    ("peak over the reference's", |_, case| peak_over_reference(case)),
    ("wall over another", wall_over),
    ("step; reference's", |_, case| steps(case)),
    ("step ratio", |_, case| case.summary.step.map(|ratio| at_least(ratio, case.bars.step))),
    ("step over another", |record, case| over(record, case, case.bars.step_over.as_ref()?, step_seconds)),
    ("capture; passes alone", |_, case| passes(case)),
    ("capture over passes alone", |_, case| case.summary.pass.map(|ratio| at_most(ratio, case.bars.pass))),
    ("bytes a token", |_, case| bytes_a_token(case)),
    ("KL(live, stored)", |_, case| {
        case.cache?.nearness.map(|near| near.stored.kl.map_or("-".to_owned(), nats))
    }),
    ("KL(stored, live)", |_, case| case.cache?.nearness.map(|near| nats(near.stored.reverse_kl))),
    ("same first choice", |_, case| case.cache?.nearness.map(|near| percent(near.stored.top1))),
    ("kept of the teacher", |_, case| case.cache?.nearness.map(|near| percent(near.stored.kept_mass))),
];

fn times(medians: &Medians) -> String {
    format!("{:.2} s, {:.2} s", medians.cpu, medians.wall)
}

fn at_least(ratio: Ratio, bar: Option<f64>) -> String {
    spread(ratio) + &bar.map_or(String::new(), |bar| verdict(format!("at least {bar}"), ratio.median >= bar))
}

fn at_most(ratio: Ratio, bar: Option<f64>) -> String {
    spread(ratio) + &bar.map_or(String::new(), |bar| verdict(format!("at most {bar}"), ratio.median <= bar))
}

fn spread(ratio: Ratio) -> String {
    format!("{} ({} to {})", digits(ratio.median), digits(ratio.min), digits(ratio.max))
}

/// Three digits or so.
fn digits(value: f64) -> String {
    if value < 10.0 { format!("{value:.2}") } else { format!("{value:.1}") }
}

fn verdict(bar: String, met: bool) -> String {
    format!("; {bar}{}", if met { "" } else { ": **missed**" })
}

fn peak_bytes(case: &CaseRecord) -> Option<f64> {
    case.summary.ours?.peak_bytes.map(|bytes| bytes as f64)
}

fn peak(case: &CaseRecord) -> Option<String> {
    let megabytes = peak_bytes(case)? / 1e6;
    let bar = case.bars.peak_mb.map(|bar| verdict(format!("under {bar}"), megabytes < bar));
    Some(format!("{megabytes:.1} MB{}", bar.unwrap_or_default()))
}

fn planned(case: &CaseRecord) -> Option<String> {
    let planned = case.ours.iter().filter_map(|sample| sample.planned_peak_bytes).max()? as f64;
    let Some(peak) = peak_bytes(case) else { return Some(format!("{:.1} MB", planned / 1e6)) };
    let off = planned / peak - 1.0;
    let bar = case.bars.plan_within;
    let bar = bar.map(|bar| verdict(format!("within {:.0} %", 100.0 * bar), off.abs() <= bar));
    Some(format!("{:.1} MB ({:+.0} %){}", planned / 1e6, 100.0 * off, bar.unwrap_or_default()))
}

/// A figure of this case over that of another.
fn over(
    record: &Record,
    case: &CaseRecord,
    over: &OverCase,
    figure: fn(&CaseRecord) -> Option<f64>,
) -> Option<String> {
    let other = record.cases.iter().find(|other| other.name == over.case)?;
    let ratio = figure(case)? / figure(other)?;
    let bar = verdict(format!("at most {}", over.at_most), ratio <= over.at_most);
    Some(format!("{ratio:.2} of {}{bar}", over.case))
}

fn peak_over_reference(case: &CaseRecord) -> Option<String> {
    let ratio = peak_bytes(case)? / case.summary.reference?.peak_bytes? as f64;
    let bar = case.bars.peak_over_reference?;
    Some(format!("{ratio:.2}{}", verdict(format!("at most {bar}"), ratio <= bar)))
}

fn wall_over(record: &Record, case: &CaseRecord) -> Option<String> {
    let others = case.bars.wall_over.iter().filter_map(|other| over(record, case, other, wall_seconds));
    Some(others.collect::<Vec<_>>().join("<br>")).filter(|cell| !cell.is_empty())
}

fn wall_seconds(case: &CaseRecord) -> Option<f64> {
    case.summary.ours.map(|ours| ours.wall)
}

fn step_seconds(case: &CaseRecord) -> Option<f64> {
    case.summary.ours?.step_seconds
}

fn steps(case: &CaseRecord) -> Option<String> {
    let ours = step_seconds(case)?;
    let reference = case.summary.reference.and_then(|reference| reference.step_seconds);
    let reference = reference.map_or(String::new(), |seconds| format!("; {}", short(seconds)));
    Some(format!("{}{reference}", short(ours)))
}

/// Seconds, or milliseconds where there are few.
fn short(seconds: f64) -> String {
    if seconds < 0.1 { format!("{:.1} ms", 1e3 * seconds) } else { format!("{seconds:.2} s") }
}

fn passes(case: &CaseRecord) -> Option<String> {
    let floor = case.summary.floor?.pass_seconds?;
    Some(format!("{:.2} s; {floor:.2} s", case.summary.ours?.pass_seconds?))
}

fn bytes_a_token(case: &CaseRecord) -> Option<String> {
    let bytes = case.cache?.bytes_a_token();
    let bar = case.bars.bytes_a_token;
    let bar = bar.map(|bar| verdict(format!("at most {bar}"), bytes <= bar));
    Some(format!("{bytes:.1}{}", bar.unwrap_or_default()))
}

/// Four decimal places, or three digits of what is smaller.
fn nats(value: f64) -> String {
    if value.abs() < 0.001 { format!("{value:.2e}") } else { format!("{value:.4}") }
}

fn percent(share: f64) -> String {
    format!("{:.2} %", 100.0 * share)
}

const OPEN_END: &str = " -->";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::capture::{CacheFigures, Distances, Nearness};
    use crate::record::tests::example;

    const README: &str = "# Title\n<!-- bench:test -->\nold\n<!-- /bench -->\nend\n";

    fn root(readme: &str) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir_all(root.path().join("docs/deep")).unwrap();
        fs::write(root.path().join("README.md"), readme).unwrap();
        example("2030-01-02T03:04:05Z", "linear").save(&root.path().join("benches/record"), &[]).unwrap();
        root
    }

    fn read(root: &tempfile::TempDir, path: &str) -> String {
        fs::read_to_string(root.path().join(path)).unwrap()
    }

    #[test]
    fn a_record_becomes_this_block() {
        let root = root(README);
        render(root.path(), false).unwrap();
        let expected = "# Title\n<!-- bench:test -->\n\
            | case | aludel: user+sys, wall | other 1 | floor | user+sys ratio | wall ratio | wall over floor | peak memory |\n\
            |---|---|---|---|---|---|---|---|\n\
            | linear | 4.00 s, 2.00 s | 60.00 s, 30.00 s | 3.00 s, 1.50 s | 15.0 (7.50 to 30.0); at least 9 \
            | 15.0 (7.50 to 30.0); at least 16: **missed** | 1.33 (0.50 to 4.00); at most 1.3: **missed** | 40.0 MB |\n\
            \nA test. Some CPU @ 2 GHz, 2 cores, 8 GB, linux 6.1; aludel 0.1.0, other 1; commit abc; 2030-01-02. Made by\n\
            ```sh\nrun it\n```\n<!-- /bench -->\nend\n";
        assert_eq!(read(&root, "README.md"), expected);
    }

    #[test]
    fn figures_stand_in_sentences() {
        let root = root("It takes <!-- figure:test linear wall-gain other -->9x<!-- /figure -->.\n");
        let error = format!("{:#}", render(root.path(), false).unwrap_err());
        assert!(error.contains("definitions/test.toml"), "{error}");
        fs::create_dir_all(root.path().join("benches/definitions")).unwrap();
        let case = "name = 'linear'\nmodel = 'llama-tiny'\ninputs = ['a']\ndigests = 'warm'\nrecipe = ''\n";
        let text = format!(
            "title = 't'\ncommand = '{{aludel}}'\nruns = 1\n[[cases]]\n{case}[[cases]]\n{}",
            case.replace("linear", "other")
        );
        fs::write(root.path().join("benches/definitions/test.toml"), text).unwrap();
        render(root.path(), false).unwrap();
        let expected =
            "It takes <!-- figure:test linear wall-gain other -->not measured yet<!-- /figure -->.\n";
        assert_eq!(read(&root, "README.md"), expected);
    }

    #[test]
    fn a_stale_document_is_found_and_then_repaired() {
        let root = root("nothing here\n");
        fs::write(root.path().join("docs/deep/speed.md"), README).unwrap();
        let error = render(root.path(), true).unwrap_err();
        assert!(error.to_string().contains("speed.md") && !error.to_string().contains("README"), "{error}");
        assert_eq!(read(&root, "docs/deep/speed.md"), README, "a check writes nothing");
        render(root.path(), false).unwrap();
        render(root.path(), true).unwrap();
        let edited = read(&root, "docs/deep/speed.md").replace("4.00 s", "3.00 s");
        fs::write(root.path().join("docs/deep/speed.md"), edited).unwrap();
        assert!(render(root.path(), true).is_err(), "a figure was changed by hand");
    }

    #[test]
    fn what_a_document_asks_for_must_exist() {
        for (readme, complaint) in [
            ("<!-- bench:other -->\n<!-- /bench -->", "`other` is no definition"),
            ("<!-- bench:test -->\n", "not closed"),
            ("<!-- bench:test -->\n<!-- bench:test -->\n<!-- /bench -->", "not closed"),
        ] {
            let error = format!("{:#}", render(root(readme).path(), false).unwrap_err());
            assert!(error.contains(complaint), "{error}");
        }
    }

    #[test]
    fn a_cache_is_shown_by_its_bytes_and_its_distance_from_its_teacher() {
        let mut record = example("2030-01-02T03:04:05Z", "sampled-12");
        let side = |kl| Distances { kl, reverse_kl: 0.25, top1: 0.9, kept_mass: 0.5, calibration_error: 0.1 };
        let nearness = Nearness { tokens: 100, stored: side(None), control: side(Some(0.0)) };
        let case = &mut record.cases[0];
        case.cache = Some(CacheFigures {
            tokens: 100,
            records: 2,
            vocabulary: 512,
            bytes: 4500,
            nearness: Some(nearness),
        });
        case.bars.bytes_a_token = Some(40.0);
        case.summary.pass = Some(Ratio { median: 1.02, min: 0.98, max: 1.1 });
        case.bars.pass = Some(1.1);
        let text = table(&record);
        assert!(text.contains("| 45.0; at most 40: **missed** | - | 0.2500 | 90.00 % | 50.00 % |"), "{text}");
        assert!(text.contains("| 1.02 (0.98 to 1.10); at most 1.1 |"), "{text}");
        assert_eq!(nats(0.000_123_4), "1.23e-4");
    }

    #[test]
    fn memory_is_held_against_the_plan_and_another_case() {
        let mut record = example("2030-01-02T03:04:05Z", "small");
        record.cases[0].ours[0].planned_peak_bytes = Some(50_000_000);
        record.cases[0].bars.plan_within = Some(0.15);
        record.cases.push(record.cases[0].clone());
        record.cases[1].name = "large".into();
        record.cases[1].summary.ours.as_mut().unwrap().peak_bytes = Some(48_000_000);
        record.cases[1].bars.peak_over = Some(OverCase { case: "small".into(), at_most: 1.1 });
        let text = table(&record);
        assert!(text.contains("50.0 MB (+25 %); within 15 %: **missed**"), "{text}");
        assert!(text.contains("50.0 MB (+4 %); within 15 % |"), "{text}");
        assert!(text.contains("1.20 of small; at most 1.1: **missed**"), "{text}");
    }
}
