//! Replays every golden case: the recipe is merged as the command would, and the output is held against what mergekit
//! wrote for it, in the case's tier; what mergekit wrote in f32 is written in bf16 and f16 as well. See `tests/golden/README.md`.

use std::path::Path;

use crate::agreement::{HALVES, compare, is_whole};
use aludel_checkpoint::Dtype;
use aludel_merge::execute::{ExecuteOptions, execute};
use aludel_merge::plan::{Plan, PlanOptions};
use aludel_merge::recipe::Recipe;
use serde_json::Value;

#[test]
fn outputs_agree_with_mergekit() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden").canonicalize().unwrap();
    let output = tempfile::tempdir().unwrap();
    let mut cases: Vec<_> =
        std::fs::read_dir(folder.join("cases")).unwrap().map(|entry| entry.unwrap().path()).collect();
    cases.sort();
    let mut failures = Vec::new();
    for case in &cases {
        let mut replayed = |out_dtype| {
            if let Err(failure) = replay(&folder, case, output.path(), out_dtype) {
                failures.push(format!("{}: {failure}", case.file_name().unwrap().to_string_lossy()));
            }
        };
        replayed(None);
        if is_whole(&case.join("expected.safetensors")) {
            HALVES.iter().for_each(|half| replayed(Some(*half)));
        }
    }
    assert!(failures.is_empty(), "{} of {} cases:\n{}", failures.len(), cases.len(), failures.join("\n"));
    assert!(cases.len() >= 230, "only {} cases were found", cases.len());
}

fn replay(folder: &Path, case: &Path, output: &Path, out_dtype: Option<(&str, Dtype)>) -> Result<(), String> {
    let description: Value = serde_json::from_slice(&std::fs::read(case.join("case.json")).unwrap()).unwrap();
    let text = std::fs::read_to_string(case.join("recipe.yml")).unwrap();
    let text = text.replace("model: models/", &format!("model: {}/models/", folder.display()));
    let text = text.replace(": statistics/", &format!(": {}/statistics/", folder.display()));
    let text = match out_dtype {
        None => text,
        Some((half, _)) => format!("{}\nout_dtype: {half}\n", text.replace("\nout_dtype: float32", "")),
    };
    let recipe = Recipe::parse(&text);
    let options =
        PlanOptions { seed: description["seed"].as_u64().unwrap_or(0), threads: 2, ..PlanOptions::default() };
    let plan =
        Plan::new(&recipe.map_err(|p| p.to_string())?, &options).map_err(|problems| problems.to_string())?;
    let target = output.join(case.file_name().unwrap());
    let run = ExecuteOptions { replace: true, sync: false, ..ExecuteOptions::default() };
    execute(&plan, &target, &run).map_err(|error| error.to_string())?;
    compare(&target, &case.join("expected.safetensors"), &description, out_dtype.map(|(_, dtype)| dtype))
}
