//! Tests the figures that the page begins with.

use super::*;

fn entry(phase: Phase, step: u64, values: &[(&str, f64)]) -> Entry {
    let values = values.iter().map(|&(name, value)| (name.to_owned(), value)).collect();
    Entry { phase, step, time: 0.0, values }
}

fn run() -> Vec<Entry> {
    vec![
        entry(Phase::Validation, 0, &[("kl", 2.5), ("top1", 0.25), ("loss", 4.0)]),
        entry(
            Phase::Train,
            1,
            &[("loss", 4.5), ("tokens_per_second", 100.0), ("memory_bytes", 2e8), ("tokens", 64.0)],
        ),
        entry(
            Phase::Train,
            2,
            &[("loss", 3.5), ("tokens_per_second", 300.0), ("memory_bytes", 1e8), ("tokens", 128.0)],
        ),
        entry(Phase::Validation, 2, &[("kl", 0.5), ("top1", 0.75), ("loss", 4.0)]),
    ]
}

#[test]
fn agreement_before_and_after_says_what_became_better() {
    let page = render(&Summary::default(), &run());
    let row = "<td>KL from teacher to student, nats a token</td><td>2.5</td><td>0.5</td><td class=\"better\">-2</td>";
    assert!(page.contains(row), "{page}");
    let row = "<td>Top-1 agreement with the teacher, share of tokens</td><td>0.25</td><td>0.75</td><td class=\"better\">+0.5</td>";
    assert!(page.contains(row), "{page}");
    assert!(page.contains("<td>4</td><td>4</td><td class=\"\">0</td>"), "{page}");
    let reversed: Vec<Entry> = run().into_iter().rev().collect();
    assert!(render(&Summary::default(), &reversed).contains("<td class=\"worse\">+2</td>"));
}

#[test]
fn the_first_figures_are_the_last_losses_the_median_speed_and_the_most_memory() {
    let page = render(&Summary::default(), &run());
    for tile in [
        "<span>training loss, last step</span><b>3.5</b>",
        "<span>validation loss, last</span><b>4</b>",
        "<span>tokens trained on</span><b>128</b>",
        "<span>tokens a second, median</span><b>300</b>",
        "<span>memory, peak</span><b>200 MB</b>",
    ] {
        assert!(page.contains(tile), "{tile}: {page}");
    }
}

#[test]
fn a_run_without_measurements_has_a_page_too() {
    let page = render(&Summary { steps: 10, ..Summary::default() }, &[]);
    assert!(page.contains("0 of 10 steps, not complete"));
    assert!(page.contains("Nothing has been measured yet."));
    let one = [entry(Phase::Validation, 0, &[("kl", f64::NAN)])];
    assert!(render(&Summary::default(), &one).contains("not finite"));
}

#[test]
fn nothing_in_a_run_can_act_in_the_page() {
    let evil = "</pre><script>alert(1)</script>";
    let summary = Summary {
        title: evil.into(),
        settings: evil.into(),
        models: vec![Fact::new(evil, evil)],
        outcome: evil.into(),
        ..Summary::default()
    };
    let page = render(&summary, &[entry(Phase::Train, 1, &[(evil, 1.0)])]);
    assert!(!page.contains("<script>alert"));
    assert!(!page.contains(evil));
}

#[test]
fn the_page_is_written_from_the_files_of_a_run() {
    let folder = tempfile::tempdir().unwrap();
    assert!(matches!(write(folder.path()), Err(Error::Io { .. })));
    let summary = Summary { title: "Small from large".into(), steps: 2, ..Summary::default() };
    summary.write(folder.path()).unwrap();
    let mut metrics = crate::record::Metrics::create(&crate::record::metrics_path(folder.path())).unwrap();
    run().iter().for_each(|entry| metrics.append(entry).unwrap());
    let path = write(folder.path()).unwrap();
    assert_eq!(std::fs::read_to_string(path).unwrap(), render(&summary, &run()));
}
