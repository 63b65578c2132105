//! Merges of what FP8 leaves of the inputs: near to the exact ones, by as much as the documents say.

use std::path::Path;

use aludel_checkpoint::Dtype;
use aludel_merge::plan::{Compute, Plan, PlanOptions};
use aludel_merge::recipe::Recipe;
use serde_json::json;

use crate::made::{elements, execute_plan, noise, write};

const NAME: &str = "model.layers.0.mlp.up_proj.weight";

fn plan(recipe: &str, compute: Compute) -> Result<Plan, String> {
    let options = PlanOptions { compute, threads: 2, ..PlanOptions::default() };
    Plan::new(&Recipe::parse(recipe).unwrap(), &options).map_err(|problems| problems.to_string())
}

fn merged(folder: &Path, recipe: &str, compute: Compute) -> Vec<f32> {
    let target = folder.join("out");
    execute_plan(&plan(recipe, compute).unwrap(), &target);
    elements(&target).remove(0).1
}

/// The root mean square of what two tensors differ by, over that of `of`.
fn error(got: &[f32], expected: &[f32], of: &[f32]) -> f64 {
    let square = |x: f32| f64::from(x).powi(2);
    let apart: f64 = got.iter().zip(expected).map(|(x, y)| square(x - y)).sum();
    (apart / of.iter().map(|&x| square(x)).sum::<f64>()).sqrt()
}

#[test]
fn rounding_task_vectors_costs_what_fp8_costs() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let base = noise(400_000, 1);
    for (seed, name) in [(1, "base"), (2, "a"), (3, "b")] {
        let values: Vec<f32> = base
            .iter()
            .zip(noise(400_000, seed))
            .map(|(x, y)| if seed == 1 { *x } else { x + y / 64.0 })
            .collect();
        write(&folder.join(name), &json!({}), &[(NAME, Dtype::F32, &[400, 1000], values)]);
    }
    let sum = format!(
        "merge_method: task_arithmetic\nbase_model: {0}/base\nmodels:\n  - {{model: {0}/a, parameters: {{weight: 0.5}}}}\n  - {{model: {0}/b, parameters: {{weight: 0.5}}}}\n",
        folder.display()
    );
    let (exact, rounded) = (merged(folder, &sum, Compute::Exact), merged(folder, &sum, Compute::Fp8));
    let moved: Vec<f32> = exact.iter().zip(&base).map(|(x, base)| x - base).collect();
    let of_vector = error(&rounded, &exact, &moved);
    assert!((0.02..0.03).contains(&of_vector), "{of_vector}");
    let linear = format!(
        "merge_method: linear\nmodels:\n  - {{model: {0}/a, parameters: {{weight: 0.5}}}}\n  - {{model: {0}/b, parameters: {{weight: 0.5}}}}\n",
        folder.display()
    );
    let (exact, rounded) = (merged(folder, &linear, Compute::Exact), merged(folder, &linear, Compute::Fp8));
    let of_weights = error(&rounded, &exact, &exact);
    assert!((0.02..0.03).contains(&of_weights), "{of_weights}");
    // One model alone is what it is.
    let one = format!(
        "merge_method: linear\nmodels: [{{model: {}/a, parameters: {{weight: 1}}}}]\n",
        folder.display()
    );
    assert_eq!(merged(folder, &one, Compute::Fp8), merged(folder, &one, Compute::Exact));
}

#[test]
fn recipes_that_it_says_nothing_of_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    for (seed, name) in [(1, "a"), (2, "b")] {
        write(&folder.join(name), &json!({}), &[(NAME, Dtype::F32, &[4, 10], noise(40, seed))]);
    }
    let half = |first: &str, second: &str| {
        format!(
            "merge_method: linear\nmodels: [{{model: {first}, parameters: {{weight: 1}}}}, {{model: {second}, parameters: {{weight: 1}}}}]\n"
        )
    };
    let (a, b) = (folder.join("a").display().to_string(), folder.join("b").display().to_string());
    let chain = format!("name: mixed\n{}---\n{}", half(&a, &b), half("mixed", &b));
    let message = plan(&chain, Compute::Fp8).unwrap_err();
    assert!(message.contains("this recipe merges what others make"), "{message}");
    plan(&chain, Compute::Exact).unwrap();
}
