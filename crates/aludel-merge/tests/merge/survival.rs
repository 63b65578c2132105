//! Runs that do not come to their end: what they leave.

use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};

use crate::made::{elements, model};
use aludel_checkpoint::DigestCache;
use aludel_merge::execute::{ExecuteOptions, MergeError, Progress, Report, execute};
use aludel_merge::plan::{Plan, PlanOptions};
use aludel_merge::recipe::Recipe;
use serde_json::json;

const TENSORS: usize = 20;

fn plan(folder: &Path) -> Plan {
    for (name, value) in [("a", 1.0), ("b", 2.0)] {
        let tensors: Vec<_> =
            (0..TENSORS).map(|number| (format!("layer.{number}.weight"), value + number as f32)).collect();
        model(&folder.join(name), &json!({}), &tensors);
    }
    let recipe = format!(
        "merge_method: linear\nmodels: [{{model: '{0}/a'}}, {{model: '{0}/b'}}]\nparameters: {{weight: 1}}\n",
        folder.display()
    );
    Plan::new(&Recipe::parse(&recipe).unwrap(), &PlanOptions::default()).unwrap()
}

fn run(
    plan: &Plan,
    target: &Path,
    cancel: &AtomicBool,
    on_progress: &(dyn Fn(Progress) + Sync),
) -> Result<Report, MergeError> {
    let digests = DigestCache::disabled();
    let options = ExecuteOptions {
        digests,
        cancel,
        on_progress,
        sync: false,
        resume: true,
        ..ExecuteOptions::default()
    };
    execute(plan, target, &options)
}

#[test]
fn a_run_without_anything_to_go_on_with_begins() {
    let folder = tempfile::tempdir().unwrap();
    let plan = plan(folder.path());
    let report = run(&plan, &folder.path().join("out"), &AtomicBool::new(false), &|_| {}).unwrap();
    assert_eq!((report.tensors, report.tensors_resumed), (TENSORS, 0));
    let (name, values) = &elements(&folder.path().join("out"))[0];
    let number: f32 = name.split('.').nth(1).unwrap().parse().unwrap();
    assert_eq!(values[0], 1.5 + number);
    assert!(!folder.path().join("out/.journal").exists());
}

#[test]
fn a_run_that_did_nothing_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let plan = plan(folder.path());
    let stopped = run(&plan, &folder.path().join("out"), &AtomicBool::new(true), &|_| {}).unwrap_err();
    assert!(matches!(stopped, MergeError::Interrupted), "{stopped}");
    assert_eq!(folder.path().read_dir().unwrap().count(), 2);
}

#[test]
fn a_model_that_changes_under_the_run_is_named_and_nothing_is_kept() {
    let folder = tempfile::tempdir().unwrap();
    let plan = plan(folder.path());
    let large = folder.path().join("a/model.safetensors");
    let reports = AtomicUsize::new(0);
    let change = |_: Progress| {
        if reports.fetch_add(1, Relaxed) == 0 {
            let file = std::fs::File::options().write(true).open(&large).unwrap();
            file.set_modified(std::time::SystemTime::UNIX_EPOCH).unwrap();
        }
    };
    let slow = AtomicBool::new(false);
    let error = run(&plan, &folder.path().join("out"), &slow, &change).unwrap_err();
    assert!(reports.into_inner() > 0);
    assert!(
        error.to_string().contains("a/model.safetensors is damaged: it changed while it was read"),
        "{error}"
    );
    assert_eq!(folder.path().read_dir().unwrap().count(), 2);
}
