//! Merges mixtures of experts whose experts are put in one order first.

use std::path::{Path, PathBuf};

use crate::agreement::compare;
use crate::made::{Given, elements, noise, write};
use aludel_checkpoint::{Checkpoint, Dtype};
use aludel_merge::execute::{Aligned, ExecuteOptions, Report, execute};
use aludel_merge::plan::{Form, Plan, PlanOptions};
use aludel_merge::recipe::Recipe;
use serde_json::{Value, json};

fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/alignment").canonicalize().unwrap()
}

fn plan(recipe: &str, options: &PlanOptions) -> Plan {
    Plan::new(&Recipe::parse(recipe).unwrap(), options).unwrap()
}

fn run(plan: &Plan, target: &Path) -> Report {
    let options = ExecuteOptions { replace: true, sync: false, ..ExecuteOptions::default() };
    execute(plan, target, &options).unwrap()
}

/// What is wrong with a recipe, with the remedies.
fn refusal(recipe: &str) -> String {
    let problems = Plan::new(&Recipe::parse(recipe).unwrap(), &PlanOptions::default()).unwrap_err();
    let told = problems.into_iter().map(|problem| {
        let place = problem.place.map_or(String::new(), |place| format!("{}:{} ", place.line, place.column));
        format!("{place}{} ({})", problem.message, problem.hint.unwrap_or_default())
    });
    told.collect::<Vec<_>>().join("\n")
}

#[test]
fn outputs_and_orders_agree_with_mergekit_and_scipy() {
    let folder = golden();
    let output = tempfile::tempdir().unwrap();
    let orders: Value = serde_json::from_slice(&std::fs::read(folder.join("orders.json")).unwrap()).unwrap();
    let mut aligned = 0;
    let mut cases: Vec<_> =
        folder.join("cases").read_dir().unwrap().map(|case| case.unwrap().path()).collect();
    cases.sort();
    for case in &cases {
        let recipe = std::fs::read_to_string(case.join("recipe.yml")).unwrap();
        let recipe = recipe.replace(": models/", &format!(": {}/models/", folder.display()));
        for (threads, memory) in [(1, 64 << 20), (3, 128 << 20)] {
            let plan = plan(&recipe, &PlanOptions { threads, memory, ..PlanOptions::default() });
            let target = output.path().join(case.file_name().unwrap());
            let report = run(&plan, &target);
            assert_eq!(report.bytes_read, plan.work.bytes_read);
            for Aligned { experts, model, order, cosine_as_stored, cosine, .. } in &report.aligned {
                let model = Path::new(model).file_name().unwrap().to_string_lossy().into_owned();
                // A slice may have other numbers than its layers.
                let source = if orders[&model].get(experts).is_some() && !experts.contains("layers.2.") {
                    experts.clone()
                } else {
                    experts.replace("layers.2.", "layers.1.")
                };
                assert_eq!(
                    json!(order),
                    orders[&model][&source],
                    "{experts} of {model} in {}",
                    case.display()
                );
                assert!(cosine > cosine_as_stored, "{experts} of {model}: {cosine} {cosine_as_stored}");
                aligned += 1;
            }
            let said = compare(&target, &case.join("expected.safetensors"), &json!({"tier": "exact"}), None);
            assert_eq!(said, Ok(()), "{}", case.display());
        }
    }
    assert_eq!((cases.len(), aligned), (14, 2 * 30));
}

const EXPERTS: usize = 5;
const WIDE: usize = 6;
const HIDDEN: usize = 4;

/// A tiny mixture of two layers in a layout of its family, its values by the seed, and every layer's experts in this order.
fn mixture(folder: &Path, layout: &str, dtype: Dtype, seed: u64, orders: [[usize; EXPERTS]; 2]) {
    let mut tensors: Vec<(String, Vec<usize>, Vec<f32>)> = Vec::new();
    let mut add = |name: String, shape: &[usize]| {
        let number = tensors.len() as u64;
        let elements = shape.iter().product();
        tensors.push((name, shape.to_vec(), noise(elements, seed * 1000 + number)));
    };
    add("model.embed_tokens.weight".into(), &[7, HIDDEN]);
    for layer in 0..2 {
        let block = format!("model.layers.{layer}.mlp");
        add(format!("model.layers.{layer}.self_attn.q_proj.weight"), &[HIDDEN, HIDDEN]);
        add(format!("{block}.shared_expert.up_proj.weight"), &[EXPERTS, HIDDEN]);
        add(format!("{block}.shared_expert_gate.weight"), &[1, HIDDEN]);
        match layout {
            "apart" => {
                add(format!("{block}.gate.weight"), &[EXPERTS, HIDDEN]);
                add(format!("{block}.gate.e_score_correction_bias"), &[EXPERTS]);
                for expert in 0..EXPERTS {
                    add(format!("{block}.experts.{expert}.up_proj.weight"), &[WIDE, HIDDEN]);
                    add(format!("{block}.experts.{expert}.down_proj.weight"), &[HIDDEN, WIDE]);
                }
            }
            _ => {
                add(format!("{block}.router.weight"), &[EXPERTS, HIDDEN]);
                add(format!("{block}.router.bias"), &[EXPERTS]);
                add(format!("{block}.moe_statics.e_score_correction_bias"), &[1, EXPERTS]);
                add(format!("{block}.experts.gate_up_proj"), &[EXPERTS, HIDDEN, 2 * WIDE]);
                add(format!("{block}.experts.gate_up_proj_bias"), &[EXPERTS, 2 * WIDE]);
                add(format!("{block}.experts.down_proj"), &[EXPERTS, WIDE, HIDDEN]);
            }
        }
    }
    let reordered = |(name, _, values): &(String, Vec<usize>, Vec<f32>)| {
        let Some((layer, _)) = name.split_once(".mlp.") else { return values.clone() };
        let order = orders[usize::from(layer.ends_with('1'))];
        if name.contains("shared_expert") {
            return values.clone();
        }
        match name.split_once(".experts.").map(|(block, rest)| (block, rest.split_once('.'))) {
            Some((block, Some((expert, part)))) => {
                let from = format!("{block}.experts.{}.{part}", order[expert.parse::<usize>().unwrap()]);
                tensors.iter().find(|(name, ..)| *name == from).unwrap().2.clone()
            }
            _ => {
                let length = values.len() / EXPERTS;
                order.iter().flat_map(|&expert| values[expert * length..][..length].to_vec()).collect()
            }
        }
    };
    let given: Vec<Given<'_>> =
        tensors.iter().map(|t| (t.0.as_str(), dtype, t.1.as_slice(), reordered(t))).collect();
    write(folder, &json!({"num_hidden_layers": 2}), &given);
}

const AS_THEY_ARE: [[usize; EXPERTS]; 2] = [[0, 1, 2, 3, 4]; 2];
const MOVED: [[usize; EXPERTS]; 2] = [[3, 0, 4, 1, 2], [1, 0, 2, 4, 3]];

/// Recipes of all methods that merge two models, `@x` and `@y` in the places of the models.
const METHODS: &[(&str, &str)] = &[
    ("linear", "models: [{model: @x, parameters: {weight: 0.25}}, {model: @y, parameters: {weight: 0.75}}]"),
    ("slerp", "base_model: @x\nmodels: [{model: @x}, {model: @y}]\nparameters: {t: 0.3}"),
    ("nuslerp", "models: [{model: @x, parameters: {weight: 0.4}}, {model: @y, parameters: {weight: 0.6}}]"),
    (
        "multislerp",
        "models: [{model: @x, parameters: {weight: 0.4}}, {model: @y, parameters: {weight: 0.6}}]",
    ),
    ("karcher", "models: [{model: @x}, {model: @y}]"),
    ("geometric_median", "models: [{model: @x}, {model: @y}]"),
    ("nearswap", "base_model: @x\nmodels: [{model: @x}, {model: @y}]\nparameters: {t: 0.01}"),
    ("arcee_fusion", "base_model: @x\nmodels: [{model: @x}, {model: @y}]"),
    (
        "task_arithmetic",
        "base_model: @z\nmodels: [{model: @x, parameters: {weight: 0.5}}, {model: @y, parameters: {weight: 0.5}}]",
    ),
    (
        "ties",
        "base_model: @z\nmodels: [{model: @x, parameters: {weight: 0.5}}, {model: @y, parameters: {weight: 0.5}}]\nparameters: {density: 0.5}",
    ),
    (
        "dare_ties",
        "base_model: @z\nmodels: [{model: @x, parameters: {weight: 0.5}}, {model: @y, parameters: {weight: 0.5}}]\nparameters: {density: 0.5}",
    ),
    (
        "dare_linear",
        "base_model: @z\nmodels: [{model: @x, parameters: {weight: 0.5}}, {model: @y, parameters: {weight: 0.5}}]\nparameters: {density: 0.5}",
    ),
    (
        "breadcrumbs",
        "base_model: @z\nmodels: [{model: @x, parameters: {weight: 0.5}}, {model: @y, parameters: {weight: 0.5}}]\nparameters: {density: 0.5}",
    ),
    (
        "breadcrumbs_ties",
        "base_model: @z\nmodels: [{model: @x, parameters: {weight: 0.5}}, {model: @y, parameters: {weight: 0.5}}]\nparameters: {density: 0.5}",
    ),
    (
        "della",
        "base_model: @z\nmodels: [{model: @x, parameters: {weight: 0.5}}, {model: @y, parameters: {weight: 0.5}}]\nparameters: {density: 0.5}",
    ),
    (
        "della_linear",
        "base_model: @z\nmodels: [{model: @x, parameters: {weight: 0.5}}, {model: @y, parameters: {weight: 0.5}}]\nparameters: {density: 0.5}",
    ),
    ("model_stock", "base_model: @z\nmodels: [{model: @x}, {model: @y}]"),
    ("sce", "base_model: @z\nmodels: [{model: @x}, {model: @y}]\nparameters: {select_topk: 0.5}"),
    ("ram", "base_model: @z\nmodels: [{model: @x}, {model: @y}]"),
    ("ramplus_tl", "base_model: @z\nmodels: [{model: @x}, {model: @y}]"),
    ("expo", "base_model: @x\nmodels: [{model: @y}]\nparameters: {alpha: 0.5}"),
    (
        "formula",
        "base_model: @x\nmodels: [{model: @y}]\nparameters: {formula: 'base + 0.5 * (model[0] - base)'}",
    ),
];

#[test]
fn a_copy_in_another_order_is_merged_as_if_it_were_in_the_first() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let mut made = 0;
    for (layout, dtype) in [("apart", Dtype::F32), ("together", Dtype::BF16), ("apart", Dtype::F16)] {
        mixture(&at("x"), layout, dtype, 1, AS_THEY_ARE);
        mixture(&at("y"), layout, dtype, 1, MOVED);
        mixture(&at("z"), layout, dtype, 2, AS_THEY_ARE);
        for (method, models) in METHODS {
            // With a base of its own, the first is put in order as well: the copies are what has to come out alike.
            let recipe = |second: &str| {
                let path = |name: &str| format!("'{}'", at(name).display());
                let models =
                    models.replace("@x", &path("x")).replace("@y", &path(second)).replace("@z", &path("z"));
                format!("merge_method: {method}\nalign_experts: true\n{models}\ndtype: float32\n")
            };
            let options = PlanOptions { threads: 2, ..PlanOptions::default() };
            let report = run(&plan(&recipe("y"), &options), &at("aligned"));
            // Listed twice, a model would be one input: a copy is another one.
            mixture(&at("copy"), layout, dtype, 1, AS_THEY_ARE);
            run(&plan(&recipe("copy"), &options), &at("plain"));
            assert_eq!(elements(&at("aligned")), elements(&at("plain")), "{method}, {layout}");
            let of_copy = report.aligned.iter().filter(|aligned| aligned.model.ends_with("/y"));
            let of_copy: Vec<&Aligned> = of_copy.collect();
            assert_eq!(of_copy.len(), 2, "{method}");
            if !models.contains("@z") {
                for (aligned, moved) in of_copy.iter().zip(MOVED) {
                    let back = (0..EXPERTS).map(|place| moved.iter().position(|&e| e == place).unwrap());
                    assert_eq!(aligned.order, back.collect::<Vec<_>>(), "{method}");
                    assert!((aligned.cosine - 1.0).abs() < 1e-12 && aligned.cosine_as_stored < 0.9);
                }
            }
            made += 1;
        }
        // What is averaged with itself is itself.
        let recipe = format!(
            "merge_method: linear\nalign_experts: true\nmodels: [{{model: '{}'}}, {{model: '{}'}}]\nparameters: {{weight: 1}}\ndtype: float32\n",
            at("x").display(),
            at("y").display()
        );
        run(&plan(&recipe, &PlanOptions::default()), &at("average"));
        let passed = format!(
            "merge_method: passthrough\nmodels: [{{model: '{}'}}]\ndtype: float32\n",
            at("x").display()
        );
        run(&plan(&passed, &PlanOptions::default()), &at("itself"));
        assert_eq!(elements(&at("average")), elements(&at("itself")));
    }
    assert_eq!(made, 3 * METHODS.len());
}

/// Experts that are stored in FP8 are put in order by what their numbers and scales stand for, and the scales go with them.
#[test]
fn experts_in_fp8_are_put_in_order_with_their_scales() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let passed = |name: &str| {
        format!("merge_method: passthrough\nmodels: [{{model: '{}'}}]\ndtype: bfloat16\n", at(name).display())
    };
    for (name, orders) in [("x", AS_THEY_ARE), ("y", MOVED), ("copy", AS_THEY_ARE)] {
        mixture(&at("plain"), "apart", Dtype::F32, 1, orders);
        let options = PlanOptions { form: Form::Fp8, ..PlanOptions::default() };
        run(&plan(&passed("plain"), &options), &at(name));
        let stored = Checkpoint::open(&at(name)).unwrap();
        let of_expert = &stored.tensors()["model.layers.0.mlp.experts.2.up_proj.weight"];
        assert_eq!(of_expert.dtype, Dtype::F8_E4M3);
    }
    let recipe = |second: &str| {
        let model = |name: &str| format!("{{model: '{}'}}", at(name).display());
        format!(
            "merge_method: linear\nalign_experts: true\nmodels: [{}, {}]\nparameters: {{weight: 0.5}}\ndtype: float32\n",
            model("x"),
            model(second)
        )
    };
    let report = run(&plan(&recipe("y"), &PlanOptions::default()), &at("aligned"));
    for (aligned, moved) in report.aligned.iter().zip(MOVED) {
        let back = (0..EXPERTS).map(|place| moved.iter().position(|&e| e == place).unwrap());
        assert_eq!(aligned.order, back.collect::<Vec<_>>());
    }
    assert_eq!(report.aligned.len(), 2);
    run(&plan(&recipe("copy"), &PlanOptions::default()), &at("expected"));
    assert_eq!(elements(&at("aligned")), elements(&at("expected")));
}

/// The bytes of a model's weight files.
fn weights(folder: &Path) -> Vec<u8> {
    let mut files: Vec<_> = folder.read_dir().unwrap().map(|file| file.unwrap().path()).collect();
    files.retain(|file| file.extension().is_some_and(|kind| kind == "safetensors"));
    files.sort();
    files.iter().flat_map(|file| std::fs::read(file).unwrap()).collect()
}

#[test]
fn neither_threads_nor_tiles_nor_strips_change_a_byte() {
    // One expert has more elements than a strip has columns, and no whole number of tiles of them.
    let folder = tempfile::tempdir().unwrap();
    for (name, seed) in [("a", 1), ("b", 2)] {
        let experts = (0..3).map(|expert| noise(1900, if name == "a" { expert } else { 100 + 7 * expert }));
        let experts: Vec<f32> = experts.flatten().collect();
        let router = noise(3 * 19, seed);
        let tensors: [Given<'_>; 2] = [
            ("h.0.experts.down_proj", Dtype::BF16, &[3, 100, 19], experts),
            ("h.0.router.weight", Dtype::F32, &[3, 19], router),
        ];
        write(&folder.path().join(name), &json!({}), &tensors);
    }
    let recipe = format!(
        "merge_method: slerp\nalign_experts: true\nbase_model: '{0}/a'\nmodels: [{{model: '{0}/a'}}, {{model: '{0}/b'}}]\nparameters: {{t: 0.4}}\ndtype: float32\n",
        folder.path().display()
    );
    let mut first: Option<(Vec<u8>, Vec<Aligned>)> = None;
    for (threads, tile) in [(1, 1), (2, 1), (7, 4)] {
        let tile = Some(tile * aludel_kernels::cpu::CHUNK);
        let plan = plan(&recipe, &PlanOptions { threads, tile, ..PlanOptions::default() });
        let target = folder.path().join(format!("{threads}"));
        let report = run(&plan, &target);
        let got = (weights(&target), report.aligned);
        assert_eq!(got, *first.get_or_insert(got.clone()), "{threads} threads");
    }
}

#[test]
fn values_that_are_no_numbers_are_told_before_anything_is_merged() {
    let folder = tempfile::tempdir().unwrap();
    for name in ["a", "b"] {
        let mut experts = noise(3 * 8, 5);
        if name == "b" {
            experts[9] = f32::NAN;
        }
        let tensors: [Given<'_>; 2] = [
            ("h.0.experts.down_proj", Dtype::F32, &[3, 4, 2], experts),
            ("h.0.router.weight", Dtype::F32, &[3, 2], noise(6, 1)),
        ];
        write(&folder.path().join(name), &json!({}), &tensors);
    }
    let path = |name: &str| folder.path().join(name).display().to_string();
    let (a, b) = (path("a"), path("b"));
    let plan = plan(
        &format!(
            "merge_method: linear\nalign_experts: true\nmodels: [{{model: '{a}'}}, {{model: '{b}'}}]\nparameters: {{weight: 1}}\n"
        ),
        &PlanOptions { allow_non_finite: true, ..PlanOptions::default() },
    );
    let options = ExecuteOptions { sync: false, ..ExecuteOptions::default() };
    let error = execute(&plan, &folder.path().join("out"), &options).unwrap_err();
    assert_eq!(
        error.to_string(),
        format!(
            "the experts of `h.0` of `{b}` cannot be put in the order of the experts of `{a}`: expert 0 there or expert 1 of `{b}` has \
             a NaN or an infinity: repair the model, or merge without `align_experts`"
        )
    );
    assert!(!folder.path().join("out").exists());
}

#[test]
fn what_cannot_be_aligned_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let written = |name: &str, tensors: &[(&str, Dtype, &[usize])]| {
        for model in ["a", "b"] {
            let given: Vec<Given<'_>> = tensors
                .iter()
                .map(|(name, dtype, shape)| (*name, *dtype, *shape, vec![1.0; shape.iter().product()]))
                .collect();
            write(&at(&format!("{name}-{model}")), &json!({}), &given);
        }
        format!(
            "merge_method: linear\nalign_experts: true\nmodels: [{{model: '{0}-a'}}, {{model: '{0}-b'}}]\nparameters: {{weight: 1}}\n",
            at(name).display()
        )
    };
    let of = |name: &str, tensors: &[(&str, Dtype, &[usize])]| refusal(&written(name, tensors));
    let dense: &[(&str, Dtype, &[usize])] = &[("h.0.w", Dtype::F32, &[2, 2])];
    assert_eq!(
        of("dense", dense),
        "2:16 `align_experts` has nothing to align: no tensors of experts are merged of two or more models (leave it out)"
    );
    let one: (&str, Dtype, &[usize]) = ("h.0.experts.0.w", Dtype::F32, &[2, 2]);
    let two: (&str, Dtype, &[usize]) = ("h.0.experts.2.w", Dtype::F32, &[2, 2]);
    assert_eq!(
        of("gap", &[one, two, ("h.0.gate.weight", Dtype::F32, &[2, 2])]),
        "2:16 the experts of `h.0` cannot be aligned: `w` is of 2 of them, and their numbers are not all those from 0 on ()"
    );
    let other: (&str, Dtype, &[usize]) = ("h.0.experts.1.w", Dtype::F32, &[2, 2]);
    let third: (&str, Dtype, &[usize]) = ("h.0.experts.1.v", Dtype::F32, &[2, 2]);
    assert_eq!(
        of("part", &[one, other, third, ("h.0.gate.weight", Dtype::F32, &[2, 2])]),
        "2:16 the experts of `h.0` cannot be aligned: `v` is of 1 of them, and their numbers are not all those from 0 on ()"
    );
    assert_eq!(
        of("router", &[one, other, ("h.0.gate.weight", Dtype::F32, &[3, 2])]),
        "2:16 the experts of `h.0` cannot be aligned: it has no router with a row for each of the 2 experts (the router is looked for \
         beside the experts, as `gate` or `router`)"
    );
    assert_eq!(
        of(
            "codes",
            &[("h.0.experts.up_proj_blocks", Dtype::U8, &[2, 2]), ("h.0.router.weight", Dtype::F32, &[2, 3])]
        ),
        "2:16 the experts of `h.0.experts.up_proj_blocks` cannot be aligned: it is U8, and not F32, F16 or BF16 ()"
    );
    assert_eq!(
        of(
            "sides",
            &[
                ("h.0.experts.up_proj", Dtype::F32, &[2, 2]),
                ("h.0.experts.down_proj", Dtype::F32, &[4, 2]),
                ("h.0.router.weight", Dtype::F32, &[2, 3])
            ]
        ),
        "2:16 the experts of `h.0` cannot be aligned: `h.0.experts.down_proj` is [4, 2], and others have 2 experts ()"
    );
    let many: &[(&str, Dtype, &[usize])] =
        &[("h.0.experts.up_proj", Dtype::F32, &[5000, 1]), ("h.0.router.weight", Dtype::F32, &[5000, 2])];
    assert_eq!(of("many", many), "2:16 `h.0` has 5000 experts, and at most 4096 can be aligned ()");
    let recipe = written("whole", &[one, other, ("h.0.gate.weight", Dtype::F32, &[2, 2])]);
    let b = format!("'{}-b'", at("whole").display());
    assert_eq!(
        refusal(&format!("name: first\n{recipe}---\n{}", recipe.replace(&b, "first"))),
        "8:16 the experts of `h.0.experts.0.w` of `first` cannot be aligned: it is made by this recipe (write what it is made of to \
         a folder of its own with --intermediate-dir)"
    );
    // The recipe whose result it is may have its experts in order.
    let after = recipe.replace(&b, "first").replace("align_experts: true\n", "");
    let both = Plan::new(
        &Recipe::parse(&format!("name: first\n{recipe}---\n{after}")).unwrap(),
        &PlanOptions::default(),
    );
    assert!(both.unwrap().to_string().contains("aligned  the experts of"));
    let a = format!("'{}-a'", at("whole").display());
    let fisher = |recipe: String, model: &str| {
        recipe
            .replace(&format!("model: {model}"), &format!("model: {model}, parameters: {{fisher: {model}}}"))
    };
    assert_eq!(
        refusal(&fisher(fisher(recipe.replace("linear", "fisher"), &a), &b)),
        "2:16 `fisher` reads statistics, which `align_experts` does not put in order (merge the experts by another method)"
    );
    let wrong =
        Recipe::parse("merge_method: linear\nalign_experts: maybe\nmodels: [{model: a}]\n").unwrap_err();
    assert!(
        wrong.to_string().contains("align_experts: expected `true` or `false`, found `maybe`"),
        "{wrong}"
    );
}
