//! Opens the report of a run in a browser: nothing sticks out, curves tell their values, nothing is loaded.
//!
//! The tests need Chromium. Where it is not installed they say so and prove nothing; with `ALUDEL_REQUIRE_CHROMIUM=1` they
//! fail instead, which is how CI runs them.

#[path = "../../../aludel-document/tests/browser/mod.rs"]
mod browser;

use std::path::Path;

use aludel_distill::record::{Entry, Fact, Phase, Summary, render};
use serde_json::Value;

/// A run of 1000 steps with every sort of curve.
fn page() -> String {
    let mut entries = Vec::new();
    for step in 0..=1000u64 {
        let progress = step as f64 / 1000.0;
        let noise = ((step * 7919) % 101) as f64 / 101.0 - 0.5;
        let loss = 2.0 + 4.0 * (-5.0 * progress).exp();
        if step > 0 {
            let values = [
                ("loss", loss + 0.4 * noise),
                ("cross_entropy", loss + 0.3),
                ("learning_rate", 1e-4 * (1.0 + (std::f64::consts::PI * progress).cos()) / 2.0),
                ("gradient_norm", 1.0 + noise),
                ("tokens", 4096.0 * step as f64),
                ("tokens_per_second", 1500.0 + 40.0 * noise),
                ("memory_bytes", 2.1e9),
            ];
            entries.push(entry(Phase::Train, step, &values));
        }
        if step % 100 == 0 {
            let values = [
                ("loss", loss + 0.1),
                ("cross_entropy", loss + 0.5),
                ("kl", loss / 4.0),
                ("top1", 0.7 - loss / 10.0),
            ];
            entries.push(entry(Phase::Validation, step, &values));
        }
    }
    let summary = Summary {
        title: "SmolLM2-135M-half from SmolLM2-135M".into(),
        settings: format!("teacher: models/{}\nstudent: models/half\n", "a-very-long-name-".repeat(12)),
        models: vec![
            Fact::new("teacher", "models/SmolLM2-135M"),
            Fact::new("digest", "0123456789abcdef".repeat(4)),
        ],
        environment: vec![Fact::new("aludel", "0.1.0"), Fact::new("threads", 2)],
        steps: 1000,
        outcome: "complete".into(),
    };
    render(&summary, &entries)
}

fn entry(phase: Phase, step: u64, values: &[(&str, f64)]) -> Entry {
    let values = values.iter().map(|&(name, value)| (name.to_owned(), value)).collect();
    Entry { phase, step, time: 0.0, values }
}

/// What the probe found, at a window of this size.
fn probe(chromium: &Path, size: &str) -> Value {
    browser::probe(chromium, &page(), PROBE, size)
}

const PROBE: &str = r#"
const found = [...document.querySelectorAll("figure")].map((figure) => {
  const plot = figure.querySelector(".plot");
  const tip = plot.querySelector(".tip");
  const box = plot.getBoundingClientRect();
  const texts = [0.0001, 0.5, 0.9999].map((share) => {
    plot.dispatchEvent(new PointerEvent("pointermove", { clientX: box.left + share * box.width, clientY: box.top + 9 }));
    const inside = tip.getBoundingClientRect();
    return [tip.innerText, !tip.hidden && inside.left >= box.left - 1 && inside.right <= box.right + 1];
  });
  plot.dispatchEvent(new KeyboardEvent("keydown", { key: "Home" }));
  const home = tip.innerText;
  plot.dispatchEvent(new KeyboardEvent("keydown", { key: "ArrowRight" }));
  const right = tip.innerText;
  plot.dispatchEvent(new PointerEvent("pointerleave"));
  const line = plot.querySelector(".line").getBoundingClientRect();
  return { title: figure.querySelector("b").innerText, texts, home, right, hidden: tip.hidden,
    line: line.width / box.width, margin: figure.clientWidth - box.width };
});
report({ found });
"#;

fn check(found: &Value) {
    assert_eq!(found["errors"], serde_json::json!([]));
    assert_eq!(found["content"], found["width"], "the page scrolls sideways");
    let figures = found["found"].as_array().unwrap();
    let titles: Vec<&str> = figures.iter().map(|figure| figure["title"].as_str().unwrap()).collect();
    let expected = [
        "Loss",
        "Cross-entropy of the text",
        "KL from teacher to student",
        "Top-1 agreement with the teacher",
        "Learning rate",
        "Norm of the gradient",
        "Tokens trained on",
        "Speed",
        "Memory",
    ];
    assert_eq!(titles, expected);
    for figure in figures {
        assert_eq!(figure["hidden"], true, "{figure}");
        assert!(figure["line"].as_f64().unwrap() > 0.98, "{figure}");
        assert!(figure["margin"].as_f64().unwrap() < 90.0, "{figure}");
        assert!(figure["texts"].as_array().unwrap().iter().all(|text| text[1] == true), "{figure}");
    }
    let text = |figure: usize, place: usize| figures[figure]["texts"][place][0].as_str().unwrap().to_owned();
    assert_eq!(text(0, 0), "step 0\ntrain 5.952 (5.828 to 6.085) at step 3\nvalidation 6.1");
    assert_eq!(text(0, 2), "step 1000\ntrain 2.203\nvalidation 2.127");
    assert_eq!(text(2, 1), "step 500\nvalidation 0.5821");
    assert_eq!(figures[2]["home"], "step 0\nvalidation 1.5");
    assert_eq!(figures[2]["right"], "step 100\nvalidation 1.107");
}

#[test]
fn the_page_works_in_a_browser_on_a_desk_and_on_a_phone() {
    let Some(chromium) = browser::chromium() else { return };
    let desk = probe(&chromium, "1280,900");
    assert_eq!(desk["width"], 1280);
    check(&desk);
    let phone = probe(&chromium, "390,844");
    assert!(phone["width"].as_u64().unwrap() <= 500, "{}", phone["width"]);
    check(&phone);
}

/// For people: `REPORT_PICTURES=folder cargo test -p aludel-distill --test distill page -- --ignored` leaves pictures to look at.
#[test]
#[ignore = "makes pictures for people"]
fn pictures() {
    browser::pictures("report", &page(), 2600);
}
