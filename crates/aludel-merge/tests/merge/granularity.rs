//! Merges by row and by head beyond what the goldens have: many tiles, little memory, fused projections, and what is refused.

use std::path::{Path, PathBuf};

use aludel_checkpoint::Dtype;
use aludel_kernels::formula::{Expr, Graph, interpret_in_bands};
use aludel_merge::plan::{Form, Plan, PlanOptions};
use aludel_merge::recipe::Recipe;
use serde_json::{Value, json};

use crate::made::{elements, execute_plan, noise, write};

const Q: &str = "h.0.attn.c_attn.weight";
const O: &str = "h.0.attn.c_proj.weight";
const MLP: &str = "h.0.mlp.c_fc.weight";

/// Tensors whose heads are runs of rows and of columns, each of several tiles. GPT-2 has its inputs first.
const SHAPES: [(&str, [usize; 2]); 3] = [(Q, [300, 240]), (O, [240, 300]), (MLP, [90, 800])];

fn gpt2() -> Value {
    json!({"model_type": "gpt2", "n_embd": 240, "n_head": 4, "n_layer": 1})
}

fn models(folder: &Path, config: &Value) {
    for (seed, name) in [(1, "base"), (2, "a"), (3, "b")] {
        let tensor = |(at, (name, shape)): (u64, &(&'static str, [usize; 2]))| {
            let count = shape[0] * shape[1];
            let base = noise(count, at);
            let change = noise(count, 10 * seed + at);
            let values = base.iter().zip(&change).map(|(x, y)| if seed == 1 { *x } else { x + y / 16.0 });
            (*name, Dtype::F32, shape.to_vec(), values.collect::<Vec<f32>>())
        };
        let tensors: Vec<_> = (0..).zip(&SHAPES).map(tensor).collect();
        let given: Vec<crate::made::Given<'_>> = tensors
            .iter()
            .map(|(name, dtype, shape, values)| (*name, *dtype, &shape[..], values.clone()))
            .collect();
        write(&folder.join(name), config, &given);
    }
}

fn ties(folder: &Path, granularity: &str) -> String {
    format!(
        "merge_method: ties\nbase_model: {0}/base\nmodels:\n  - {{model: {0}/a, parameters: {{weight: 0.5, density: 0.4}}}}\n  - {{model: {0}/b, parameters: {{weight: 0.25, density: 0.4}}}}\nparameters: {{granularity: {granularity}, normalize: false}}\ndtype: float32\n",
        folder.display()
    )
}

fn plan(recipe: &str, options: PlanOptions) -> Result<Plan, String> {
    Plan::new(&Recipe::parse(recipe).unwrap(), &options).map_err(|problems| problems.to_string())
}

fn agrees<'g>(graph: &'g Graph, positive: Expr<'g>, part: Expr<'g>) -> Expr<'g> {
    positive.select(graph.constant(0.0).less(part), part.less(0.0))
}

/// What the definition of the formulas gives of a tensor, in rows of so many elements of which so many bands are selected in.
fn expected(folder: &Path, name: &str, columns: usize, bands: usize) -> Vec<f32> {
    let of = |model: &str| -> Vec<f32> {
        elements(&folder.join(model)).into_iter().find(|(tensor, _)| tensor == name).unwrap().1
    };
    let (base, a, b) = (of("base"), of("a"), of("b"));
    let graph = Graph::new();
    let start = graph.input(0);
    let count = (0.4 * (base.len() / bands) as f64).floor();
    let part = |input, weight: f64| {
        let vector = graph.input(input) - start;
        vector * vector.row_top(count) * weight
    };
    let (x, y) = (part(1, 0.5), part(2, 0.25));
    let positive = graph.constant(0.0).less_or_equal(x + y);
    let formula =
        graph.finish(start + (x * agrees(&graph, positive, x) + y * agrees(&graph, positive, y))).unwrap();
    interpret_in_bands(&formula, &[&base, &a, &b], (columns, bands), &[])
}

#[test]
fn heads_of_several_tiles_are_each_a_tensor_of_their_own() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    models(folder, &gpt2());
    let recipe = ties(folder, "[{filter: attn, value: head}, {value: row}]");
    let merged = |number: u32, options: PlanOptions| -> Vec<(String, Vec<f32>)> {
        let target = folder.join(format!("out-{number}"));
        execute_plan(&plan(&recipe, options).unwrap(), &target);
        elements(&target)
    };
    let one = merged(1, PlanOptions { threads: 1, tile: Some(1 << 16), ..PlanOptions::default() });
    let many = merged(2, PlanOptions { threads: 3, ..PlanOptions::default() });
    assert!(one == many, "threads and tiles change nothing");
    // Heads of q, k and v are 60 columns of every row; those of the output's are 60 rows; the rest is by row.
    for (name, columns, bands) in [(Q, 60, 4), (O, 60 * 300, 4), (MLP, 800, 90)] {
        let got = &one.iter().find(|(tensor, _)| tensor == name).unwrap().1;
        assert!(*got == expected(folder, name, columns, bands), "{name}");
    }
}

#[test]
fn what_cannot_be_done_is_said_before_any_weight_is_read() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    models(folder, &gpt2());
    let refused = |recipe: &str, options| plan(recipe, options).unwrap_err();
    let recipe = ties(folder, "head");
    let linear = format!(
        "merge_method: linear\nmodels: [{{model: {}/a, parameters: {{weight: 1}}}}]\nparameters: {{granularity: head}}\n",
        folder.display()
    );
    assert_eq!(
        refused(&linear, PlanOptions::default()),
        "3:14 parameters.granularity: `linear` takes no parameter `granularity` (it takes here: `weight`, `normalize`; `granularity` is a parameter of `slerp`, `nuslerp`, `ties`, `dare_linear`, `dare_ties`, `model_stock`)"
    );
    let stock = format!(
        "merge_method: model_stock\nbase_model: {0}/base\nmodels: [{{model: {0}/a}}, {{model: {0}/b}}]\nparameters: {{granularity: row, filter_wise: true}}\n",
        folder.display()
    );
    let message = refused(&stock, PlanOptions::default());
    assert!(
        message.contains("`filter_wise` and `granularity` both say what angles are taken over"),
        "{message}"
    );
    // Layers of GPT-2 are not made FP8, those of others are.
    let other: PathBuf = folder.join("other");
    let llama = "model.layers.0.self_attn.q_proj.weight";
    for (seed, name) in [(1, "base"), (2, "a"), (3, "b")] {
        let config = json!({"model_type": "llama", "hidden_size": 64, "num_attention_heads": 4});
        write(&other.join(name), &config, &[(llama, Dtype::F32, &[64, 64], noise(4096, seed))]);
    }
    let fp8 = PlanOptions { form: Form::Fp8, ..PlanOptions::default() };
    let message = refused(&ties(&other, "head"), fp8.clone());
    assert!(message.contains("is merged by head, and FP8 has a scale for each row"), "{message}");
    plan(&ties(&other, "row"), fp8).unwrap();
    std::fs::write(folder.join("base/config.json"), "{}").unwrap();
    let message = refused(&recipe, PlanOptions::default());
    assert!(message.contains("no heads can be told apart: config.json has neither `head_dim`"), "{message}");
}
