//! Opens the page of a comparison in a browser: nothing sticks out, heatmaps tell their values, nothing is loaded.
//!
//! See `browser` for what happens where there is none.

#[path = "../../../aludel-document/tests/browser/mod.rs"]
mod browser;

use std::path::Path;

use crate::made::{Given, noise, quietly, write};
use aludel_checkpoint::Dtype;
use aludel_merge::inspect::{Settings, compare, page};
use aludel_merge::plan::PlanOptions;
use serde_json::{Value, json};

const LAYERS: usize = 24;

const KINDS: [&str; 6] = [
    "input_layernorm.weight",
    "self_attn.q_proj.weight",
    "self_attn.o_proj.weight",
    "mlp.experts.0.down_proj.weight",
    "mlp.experts.1.down_proj.weight",
    "post_attention_layernorm.weight",
];

/// A comparison of two models of some layers, which move more from layer to layer, and differ more and more in it.
fn page() -> String {
    let folder = tempfile::tempdir().unwrap();
    let names: Vec<String> = (0..LAYERS)
        .flat_map(|layer| KINDS.map(|kind| format!("model.layers.{layer}.{kind}")))
        .chain(["model.embed_tokens.weight".into(), "lm_head.weight".into()])
        .collect();
    let model = |model: u64| {
        let tensor = |(index, name): (usize, &'static str)| -> Given<'static> {
            let base = noise(64, index as u64);
            let common = noise(64, 5000 + index as u64);
            let own = noise(64, 10_000 * model + index as u64);
            let depth = index as f32 / (LAYERS * KINDS.len()) as f32;
            let change = |i: usize| {
                if model == 0 { 0.0 } else { depth * 0.3 * (common[i] * (1.0 - depth) + own[i] * depth) }
            };
            (name, Dtype::F32, &[8, 8], base.iter().enumerate().map(|(i, base)| base + change(i)).collect())
        };
        let path = folder
            .path()
            .join(["base", "a-model-with-a-name-that-is-rather-long-for-a-heading", "b"][model as usize]);
        let names = names.iter().map(|name| &*name.clone().leak());
        write(&path, &json!({}), &names.enumerate().map(tensor).collect::<Vec<_>>());
        path.to_str().unwrap().to_owned()
    };
    let references = [model(0), model(1), model(2)];
    let settings =
        Settings { base: &references[0], models: &[&references[1], &references[2]], threshold: 1e-3 };
    let comparison = quietly(|execute| compare(&settings, &PlanOptions::default(), execute)).unwrap();
    // Folders of tests have names of their own, which the test of the page is not about.
    page::render(&comparison).replace(folder.path().to_str().unwrap(), "models")
}

const PROBE: &str = r#"
const found = [...document.querySelectorAll(".heatmap")].map((figure) => {
  const plot = figure.querySelector(".plot");
  const box = plot.getBoundingClientRect();
  const value = figure.querySelector(".value");
  const at = (x, y) => {
    const place = { clientX: box.left + x * box.width, clientY: box.top + y * box.height };
    plot.dispatchEvent(new PointerEvent("pointermove", place));
    return value.textContent;
  };
  const texts = [at(0.001, 0.001), at(0.999, 0.999)];
  const marked = plot.querySelectorAll(".at").length;
  plot.dispatchEvent(new PointerEvent("pointerleave"));
  const left = value.textContent.trim();
  const press = (key) => {
    plot.dispatchEvent(new KeyboardEvent("keydown", { key }));
    return value.textContent;
  };
  const keys = ["ArrowRight", "ArrowRight", "ArrowDown"].map(press);
  plot.dispatchEvent(new FocusEvent("blur"));
  const cells = [...plot.querySelectorAll("rect")].map((cell) => cell.getBoundingClientRect());
  const names = [...figure.querySelectorAll(".rows span")].map((name) => name.getBoundingClientRect());
  const rows = names.map((name, row) => Math.abs(name.top - cells[row * 24].top));
  const opacities = [...plot.querySelectorAll("rect")].map((cell) => Number(cell.getAttribute("fill-opacity")));
  return { title: figure.querySelector("b").textContent, texts, marked, left, keys, cells: cells.length,
    reach: (cells.at(-1).right - box.left) / box.width, rows: Math.max(...rows), opacities,
    fill: getComputedStyle(plot.querySelector("rect")).fill };
});
const lines = [...document.querySelectorAll(".layers td:first-child")].map((cell) => cell.clientHeight);
report({ found, lines: Math.max(...lines) });
"#;

fn check(page: &Value) {
    assert_eq!(page["errors"], json!([]));
    assert_eq!(page["content"], page["width"], "the page scrolls sideways");
    assert!(page["lines"].as_u64().unwrap() < 45, "the name of a layer takes one line: {}", page["lines"]);
    let figures = page["found"].as_array().unwrap();
    let titles: Vec<&str> = figures.iter().map(|figure| figure["title"].as_str().unwrap()).collect();
    let of_model = ["Relative change", "Cosine with the base", "Unchanged"];
    assert_eq!(titles, [&of_model[..], &of_model, &["Cosine of the changes", "Sign conflict"]].concat());
    for figure in figures {
        // Both experts of a layer are one row.
        assert_eq!(figure["cells"], LAYERS * (KINDS.len() - 1), "{figure}");
        assert_eq!((&figure["marked"], &figure["left"]), (&json!(1), &json!("")), "{figure}");
        assert!((figure["reach"].as_f64().unwrap() - 1.0).abs() < 0.01, "{figure}");
        assert!(figure["rows"].as_f64().unwrap() <= 2.0, "names stand beside their rows: {figure}");
        assert_ne!(figure["fill"], "rgb(0, 0, 0)", "{figure}");
        let texts = &figure["texts"];
        assert!(texts[0].as_str().unwrap().starts_with("layer 0, input_layernorm.weight: "), "{texts}");
        assert!(texts[1].as_str().unwrap().starts_with("layer 23, self_attn.q_proj.weight: "), "{texts}");
        let keys = &figure["keys"];
        assert!(keys[0].as_str().unwrap().starts_with("layer 0, input_layernorm.weight: "), "{keys}");
        assert!(keys[1].as_str().unwrap().starts_with("layer 1, input_layernorm.weight: "), "{keys}");
        assert!(keys[2].as_str().unwrap().starts_with("layer 1, mlp.experts.*.down_proj.weight: "), "{keys}");
    }
    let opacities: Vec<f64> =
        figures[0]["opacities"].as_array().unwrap().iter().map(|value| value.as_f64().unwrap()).collect();
    assert!(opacities.contains(&1.0), "the greatest value has all of the colour");
    let sum = |layers: std::ops::Range<usize>| layers.map(|layer| opacities[layer]).sum::<f64>();
    assert!(sum(12..24) > 2.0 * sum(0..12), "what moves more is darker");
}

#[test]
fn the_page_works_in_a_browser_on_a_desk_and_on_a_phone() {
    let Some(chromium) = browser::chromium() else { return };
    let probe = |size: &str| browser::probe(&chromium as &Path, &page(), PROBE, size);
    let desk = probe("1280,900");
    assert_eq!(desk["width"], 1280);
    check(&desk);
    let phone = probe("390,844");
    assert!(phone["width"].as_u64().unwrap() <= 500, "{}", phone["width"]);
    check(&phone);
}

/// For people: `REPORT_PICTURES=folder cargo test -p aludel-merge --test merge page -- --ignored` leaves pictures to look at.
#[test]
#[ignore = "makes pictures for people"]
fn pictures() {
    browser::pictures("comparison", &page(), 2600);
}
