//! Holds merge methods to what goldens cannot show: what they refuse and where, convergence, and shares of random masks.

use std::path::{Path, PathBuf};

use aludel_checkpoint::{Checkpoint, Dtype, Layout, OutputFolder, OutputTensor, WeightMap};
use aludel_kernels::element::Element;
use aludel_kernels::random::{StreamKey, uniform};
use aludel_merge::execute::{ExecuteOptions, execute};
use aludel_merge::plan::{Plan, PlanOptions, Step};
use aludel_merge::problem::Problems;
use aludel_merge::recipe::Recipe;

fn plan(recipe: &str) -> Result<Plan, Problems> {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden").canonicalize().unwrap();
    let text = recipe.replace('@', &format!("{}/models/", golden.display()));
    let text = text.replace('%', &format!("{}/statistics/", golden.display()));
    Plan::new(&Recipe::parse(&text)?, &PlanOptions::default())
}

#[test]
fn what_a_method_cannot_do_is_refused_at_its_place() {
    for (recipe, expected) in [
        (
            "merge_method: della\nbase_model: @base\nmodels:\n- model: @a\n  parameters: {weight: 1, density: 0.9}\n",
            "5:36 models[0].parameters.density: `density` 0.9 with `epsilon` 0.15 for lm_head.weight: density - epsilon \
             and density + epsilon have to lie between 0 and 1 (choose a smaller `epsilon`, or `density: 1` to keep everything)",
        ),
        (
            "merge_method: sce\nbase_model: @base\nmodels: [{model: @a}]\nparameters: {select_topk: 0.5}\n",
            "1:15 merge_method: `select_topk` selects by the variance between models, and there is one (list another model or \
             remove `select_topk`)",
        ),
        (
            "merge_method: sce\nbase_model: @base\nmodels: [{model: @a}]\nparameters: {select_topk: 1.5}\n",
            "4:27 parameters.select_topk: `select_topk` is 1.5 for lm_head.weight, but has to lie between 0 and 1",
        ),
        (
            "merge_method: karcher\nmodels: [{model: @a}, {model: @b}]\nparameters: {max_iter: 1001}\n",
            "3:24 parameters.max_iter: `max_iter` is 1001 for lm_head.weight, but has to lie between 0 and 1000",
        ),
        (
            "merge_method: multislerp\nmodels:\n- {model: @a, parameters: {weight: 1}}\n- {model: @b, parameters: {weight: -1}}\n",
            "1:15 merge_method: the weights for lm_head.weight sum to 0, so they cannot be normalised (change a weight \
             or set `normalize_weights: false`)",
        ),
        (
            "merge_method: nuslerp\nmodels: [{model: @a}, {model: @b}, {model: @c}]\nparameters: {weight: 1}\n",
            "1:15 merge_method: `nuslerp` merges at most 2 model(s), but 3 are listed",
        ),
        (
            "merge_method: nuslerp\nbase_model: @base\nmodels: [{model: @a}]\nparameters: {weight: 1}\n",
            "1:15 merge_method: `nuslerp` merges at least 2 model(s) besides the base, but 1 is listed",
        ),
        (
            "merge_method: nuslerp\nmodels: [{model: @a}, {model: @b}]\n",
            "2:18 models[0].model: `nuslerp` needs `weight` for model",
        ),
        (
            "merge_method: geometric_median\nmodels: [{model: @a, parameters: {weight: -1}}, {model: @b}]\n",
            "`weight` is -1 for lm_head.weight, but has to be at least 0",
        ),
        (
            "merge_method: geometric_median\nmodels: [{model: @a}, {model: @b}]\nparameters: {smoothing: 0}\n",
            "3:25 parameters.smoothing: `smoothing` is 0 for lm_head.weight, but has to be positive",
        ),
        (
            "merge_method: geometric_median\nmodels: [{model: @a}, {model: @b}]\nparameters: {weight: 0}\n",
            "1:15 merge_method: all weights for lm_head.weight are 0",
        ),
        (
            "merge_method: nearswap\nbase_model: @base\nmodels: [{model: @a}]\n",
            "1:15 merge_method: `nearswap` needs `t` for the merge",
        ),
        (
            "merge_method: arcee_fusion\nmodels: [{model: @a}, {model: @b}]\n",
            "1:15 merge_method: `arcee_fusion` needs a base model (add `base_model:` at the top of the recipe)",
        ),
        (
            "merge_method: expo\nbase_model: @base\nmodels: [{model: @a}]\n",
            "1:15 merge_method: `expo` needs `alpha` for the merge",
        ),
        (
            "merge_method: ram\nbase_model: @base\nmodels: [{model: @a}]\nparameters: {r: 0.1}\n",
            "4:14 parameters.r: `ram` takes no parameter `r`",
        ),
    ] {
        let problems = plan(&format!("{recipe}dtype: float32\n")).unwrap_err();
        let said = problems.to_string();
        assert!(said.contains(expected), "{said:?} does not contain {expected:?}");
    }
}

#[test]
fn models_weights_and_bases_that_a_method_has_no_use_for_are_told() {
    let two = "models: [{model: @a, parameters: {weight: 1}}, {model: @b, parameters: {weight: 1}}]\n";
    let one = |parameters: &str| {
        format!("base_model: @base\nmodels: [{{model: @a, parameters: {{{parameters}}}}}]\n")
    };
    let needs_base =
        "1:15 merge_method: `METHOD` needs a base model (add `base_model:` at the top of the recipe)";
    let with_base = |rest: &str| format!("base_model: @base\nmodels: [{{model: @a}}, {{model: @b}}]\n{rest}");
    let mut cases = vec![
        (
            "linear",
            "models:\n- {model: @a, parameters: {weight: 1}}\n- {model: @b, parameters: {weight: -1}}\n"
                .to_owned(),
            "1:15 merge_method: the weights for lm_head.weight sum to 0, so they cannot be normalised (change a weight or \
             set `normalize: false`)",
        ),
        ("slerp", with_base("parameters: {t: 0.5}\n"), "`slerp` merges at most 2 model(s), but 3 are listed"),
        ("slerp", one(""), "1:15 merge_method: `slerp` needs `t` for the merge"),
        (
            "nearswap",
            with_base("parameters: {t: 0.1}\n"),
            "`nearswap` merges at most 2 model(s), but 3 are listed",
        ),
        ("arcee_fusion", with_base(""), "`arcee_fusion` merges at most 2 model(s), but 3 are listed"),
        ("passthrough", two.to_owned(), "`passthrough` merges at most 1 model(s), but 2 are listed"),
        ("model_stock", one(""), "merges at least 2 model(s) besides the base, but 1 is listed"),
        (
            "dare_linear",
            one("weight: 1") + "parameters: {rescale_mode: l3}\n",
            "4:28 parameters.rescale_mode: expected one of `l1`, `l2`, `linf`, `density`, found the text `l3`",
        ),
        (
            "ties",
            one("weight: [{filter: mlp, value: 1}]"),
            ", and no filter of it selects lm_head.weight (add an entry without a filter to `weight`)",
        ),
        (
            "della",
            one("weight: 1, density: 0.5, epsilon: -1"),
            "`epsilon` is -1 for lm_head.weight, but has to lie between 0 and 1",
        ),
        (
            "della_linear",
            one("weight: 1, density: 0.1"),
            "`density` 0.1 with `epsilon` 0.15 for lm_head.weight",
        ),
    ];
    for method in
        ["ties", "dare_ties", "dare_linear", "breadcrumbs", "breadcrumbs_ties", "della", "della_linear"]
    {
        cases.push((method, one(""), "models[0].model: `METHOD` needs `weight` for model"));
        cases.push((method, two.to_owned(), needs_base));
        for density in ["1.5", "-0.1"] {
            let density = one(&format!("weight: 1, density: {density}"));
            cases.push((method, density, "for lm_head.weight, but has to lie between 0 and 1"));
        }
    }
    for (method, models) in [
        ("linear", "models: [{model: @a}]\n".to_owned()),
        ("multislerp", one("")),
        ("task_arithmetic", one("")),
    ] {
        cases.push((method, models, "models[0].model: `METHOD` needs `weight` for model"));
    }
    for method in ["task_arithmetic", "slerp", "model_stock", "sce", "ram", "ramplus_tl", "nearswap", "expo"]
    {
        cases.push((method, "models: [{model: @a}, {model: @b}]\n".to_owned(), needs_base));
    }
    for (method, rest, expected) in cases {
        let problems =
            plan(&format!("merge_method: {method}\n{rest}dtype: float32\n")).unwrap_err().to_string();
        let expected = expected.replace("METHOD", method);
        assert!(problems.contains(&expected), "{method}: {problems:?} does not contain {expected:?}");
    }
}

/// A model has hundreds of tensors, and one mistake in a recipe is one.
#[test]
fn what_holds_for_every_tensor_is_told_once() {
    let recipe = |parameters: &str| {
        format!(
            "merge_method: ties\nbase_model: @base\nmodels: [{{model: @a, parameters: {{{parameters}}}}}]\ndtype: float32\n"
        )
    };
    for (parameters, count) in
        [("weight: [{filter: mlp, value: 1}]", 1), ("density: 0.5", 1), ("weight: 1, density: 1.5", 1)]
    {
        let problems = plan(&recipe(parameters)).unwrap_err();
        assert_eq!(problems.count(), count, "{parameters}: {problems}");
    }
}

#[test]
fn statistics_have_to_fit_the_models() {
    let recipe = |a: &str, b: &str| {
        format!(
            "merge_method: fisher\ndtype: float32\nmodels:\n- {{model: @a, parameters: {{{a}}}}}\n- {{model: @b, parameters: {{{b}}}}}\n"
        )
    };
    for (a, b, expected) in [
        ("fisher: '%fisher-a.safetensors'", "", "models[1].model: `fisher` needs `fisher` for model"),
        ("fisher: '%none.safetensors'", "fisher: '%fisher-b.safetensors'", "4:"),
        (
            "fisher: 3",
            "fisher: '%fisher-b.safetensors'",
            "models[0].parameters.fisher: expected text, found the number 3",
        ),
        (
            "fisher: '%gram-a.safetensors'",
            "fisher: '%fisher-b.safetensors'",
            "`model.layers.0.mlp.down_proj.weight` is F32 [12, 12] in",
        ),
        (
            "fisher: '%fisher-a-matrices.safetensors'",
            "fisher: '%fisher-b.safetensors'",
            "have no tensor model.norm.weight, which those of",
        ),
    ] {
        let said = plan(&recipe(a, b)).unwrap_err().to_string();
        assert!(said.contains(expected), "{said:?} does not contain {expected:?}");
    }
    let whole = plan(&recipe("fisher: '%fisher-a.safetensors'", "fisher: '%fisher-b.safetensors'")).unwrap();
    let norm = whole.steps.iter().find(|step| step.tensor == "model.norm.weight").unwrap();
    assert_eq!(norm.inputs.iter().map(|input| input.source).collect::<Vec<_>>(), [0, 1, 2, 3]);
    assert!(whole.dropped.is_empty() && whole.sources.len() == 4);
}

/// What `regmean` reads, and what it cannot merge.
#[test]
fn gram_matrices_have_to_fit_the_models() {
    let recipe = |a: &str, b: &str| {
        format!(
            "merge_method: regmean\ndtype: float32\nmodels:\n- {{model: @a, parameters: {{{a}}}}}\n- {{model: @b, parameters: {{{b}}}}}\n"
        )
    };
    let (a, b) = ("gram: '%gram-a.safetensors'", "gram: '%gram-b.safetensors'");
    for (recipe, expected) in [
        (recipe(a, ""), "models[1].model: `regmean` needs `gram` for model"),
        (recipe("gram: '%fisher-a.safetensors'", b), "has to be F32, F16 or BF16 [8, 8]"),
        (recipe(a, b) + "parameters: {alpha: 1.5}\n", "`alpha` is 1.5 for"),
        (recipe(a, b) + "parameters: {ridge: -1}\n", "`ridge` is -1 for"),
        (recipe(a, b) + "parameters: {weight: 0}\n", "1:15 merge_method: all weights for"),
        (
            recipe(a, b).replacen("dtype", "name: first\ndtype", 1)
                + "---\nmerge_method: linear\nmodels: [{model: first}]\nparameters: {weight: 1}\ndtype: float32\n",
            "1:15 merge_method: `regmean` solves for whole tensors, which no later recipe can go on from (merge this recipe by itself first",
        ),
        (
            format!(
                "merge_method: linear\nname: first\nmodels: [{{model: @a}}]\nparameters: {{weight: 1}}\n---\n{}",
                recipe(a, b).replace("@b", "first")
            ),
            "`first` is made by this recipe, and `regmean` merges models on disk",
        ),
    ] {
        let said = plan(&recipe).unwrap_err().to_string();
        assert!(said.contains(expected), "{said:?} does not contain {expected:?}");
    }
    let whole = plan(&recipe(a, b)).unwrap();
    let fitted = |step: &&Step| step.tensor.contains("proj");
    assert_eq!(whole.steps.iter().filter(fitted).map(|step| step.inputs.len()).collect::<Vec<_>>(), [1; 21]);
    assert!(whole.dropped.is_empty() && whole.sources.len() == 4);
    let told = format!("{whole:#}");
    assert!(
        told.contains(
            "(x0 is model.layers.0.self_attn.q_proj.weight, fitted to 2 layer(s) by a solve of side 8 in f64)"
        ),
        "{told}"
    );
}

/// A model of one tensor.
fn model(folder: &Path, shape: &[usize], values: &[f32]) -> PathBuf {
    let tensor = OutputTensor { name: "w".into(), dtype: Dtype::F32, shape: shape.to_vec() };
    let layout = Layout::plan(vec![tensor], u64::MAX).unwrap();
    let mut output = OutputFolder::create(folder, false).unwrap();
    output.skip_sync();
    let shards = output.shards(&layout).unwrap();
    shards.write_at(&layout.placement(0), 0, &Element::F32.encode(values)).unwrap();
    shards.finish().unwrap();
    output.write("config.json", b"{}").unwrap();
    output.finish().unwrap()
}

/// The one tensor of the merge of models of `shape`, `@0` the first of them.
fn merged(recipe: &str, shape: &[usize], models: &[Vec<f32>]) -> Vec<f32> {
    let folder = tempfile::tempdir().unwrap();
    let mut text = format!("{recipe}dtype: float32\n");
    for (index, values) in models.iter().enumerate() {
        let path = model(&folder.path().join(format!("m{index}")), shape, values);
        text = text.replace(&format!("@{index}"), &path.display().to_string());
    }
    let plan = Plan::new(&Recipe::parse(&text).unwrap(), &PlanOptions::default());
    let target = folder.path().join("out");
    let options = ExecuteOptions { sync: false, ..ExecuteOptions::default() };
    execute(&plan.map_err(|problems| problems.to_string()).unwrap(), &target, &options).unwrap();
    let checkpoint = Checkpoint::open(&target).unwrap();
    let entry = checkpoint.tensor("w").unwrap();
    Element::F32.decode(WeightMap::open(&checkpoint).unwrap().bytes(entry, 0..entry.bytes))
}

fn noise(model: u64, count: usize) -> Vec<f32> {
    (0..count as u64).map(|i| uniform(StreamKey(model), i) - 0.5).collect()
}

/// At the solution the unit vectors towards the models cancel: after the default number of steps they do so to 1e-6.
#[test]
fn the_geometric_median_converges() {
    let models: Vec<Vec<f32>> = (0..5)
        .map(|i| noise(i, 1000).into_iter().map(|x| x * if i == 4 { 30.0 } else { 1.0 }).collect())
        .collect();
    let recipe = "merge_method: geometric_median\nmodels: [{model: @0}, {model: @1}, {model: @2}, {model: @3}, {model: @4}]\n";
    let median = merged(recipe, &[10, 100], &models);
    let mut pull = vec![0.0f64; 1000];
    for model in &models {
        let towards: Vec<f64> =
            model.iter().zip(&median).map(|(&x, &m)| f64::from(x) - f64::from(m)).collect();
        let distance = towards.iter().map(|t| t * t).sum::<f64>().sqrt();
        pull.iter_mut().zip(&towards).for_each(|(pull, t)| *pull += t / distance);
    }
    let rest = pull.iter().map(|p| p * p).sum::<f64>().sqrt();
    assert!(rest < 1e-6, "{rest:e}");
    // The outlier is thirty times as large as the others and moves the result by less than their size.
    let size = median.iter().map(|&m| f64::from(m) * f64::from(m)).sum::<f64>().sqrt();
    assert!(size < 1000f64.sqrt() * 0.3, "{size}");
}

/// In every row the larger elements are kept more often, and the mean share is the density.
#[test]
fn della_keeps_large_elements_more_often() {
    let (rows, columns) = (2000, 50);
    let values: Vec<f32> = (0..rows * columns).map(|i| 1.0 + (i % columns) as f32).collect();
    let recipe = "merge_method: della_linear\nbase_model: @0\nmodels:\n- model: @1\n  parameters: {weight: 1, density: 0.5, \
                  epsilon: 0.4}\nparameters: {rescale: false}\n";
    let kept = merged(recipe, &[rows, columns], &[vec![0.0; rows * columns], values]);
    let share = |column: usize| {
        kept.iter().skip(column).step_by(columns).filter(|&&x| x != 0.0).count() as f64 / rows as f64
    };
    for (column, probability) in [(0, 0.1), (25, 0.5 + 0.8 * (25.0 / 49.0 - 0.5)), (49, 0.9)] {
        // Five standard deviations of 2000 draws.
        let spread = 5.0 * (probability * (1.0 - probability) / rows as f64).sqrt();
        assert!((share(column) - probability).abs() < spread, "{column}: {}", share(column));
    }
}

/// mergekit divides 0 by 0 here and drops everything.
#[test]
fn della_keeps_a_row_of_one_element_by_its_density() {
    let recipe = "merge_method: della_linear\nbase_model: @0\nmodels:\n- model: @1\n  parameters: {weight: 1, density: 0.5}\n\
                  parameters: {rescale: false}\n";
    let kept = merged(recipe, &[10_000, 1], &[vec![0.0; 10_000], vec![1.0; 10_000]]);
    let share = kept.iter().filter(|&&x| x == 1.0).count();
    assert!(share.abs_diff(5000) < 250 && kept.iter().all(|&x| x == 0.0 || x == 1.0), "{share}");
}

/// Opposite directions have no mean: the first model's direction, the weighted mean, the straight line.
#[test]
fn opposite_models_have_a_result() {
    let a = noise(3, 60);
    let opposite: Vec<f32> = a.iter().map(|x| -x).collect();
    let pair = [a.clone(), opposite];
    let close = |got: &[f32], factor: f32| got.iter().zip(&a).all(|(g, x)| (g - factor * x).abs() < 1e-6);
    let karcher = merged("merge_method: karcher\nmodels: [{model: @0}, {model: @1}]\n", &[6, 10], &pair);
    assert!(close(&karcher, 1.0), "{karcher:?}");
    let weighted =
        "models: [{model: @0, parameters: {weight: 0.75}}, {model: @1, parameters: {weight: 0.25}}]\n";
    let nuslerp = merged(&format!("merge_method: nuslerp\n{weighted}"), &[60], &pair);
    assert!(close(&nuslerp, 0.5), "{nuslerp:?}");
    let even = "merge_method: multislerp\nmodels: [{model: @0}, {model: @1}]\nparameters: {weight: 1}\n";
    let multislerp = merged(even, &[60], &pair);
    assert!(close(&multislerp, 0.0), "{multislerp:?}");
}

/// The first dimension of three: one angle for each place of the other two.
#[test]
fn nuslerp_along_the_first_of_three_dimensions() {
    let (a, b) = (noise(1, 3 * 4 * 5), noise(2, 3 * 4 * 5));
    let recipe = "merge_method: nuslerp\nmodels: [{model: @0}, {model: @1}]\nparameters: {weight: 1, nuslerp_flatten: false, \
                  nuslerp_row_wise: true}\n";
    let got = merged(recipe, &[3, 4, 5], &[a.clone(), b.clone()]);
    for place in 0..20 {
        let of = |x: &[f32]| -> Vec<f64> { (0..3).map(|i| f64::from(x[i * 20 + place])).collect() };
        let (a, b) = (of(&a), of(&b));
        let dot = |x: &[f64], y: &[f64]| x.iter().zip(y).map(|(x, y)| x * y).sum::<f64>();
        let angle = (dot(&a, &b) / (dot(&a, &a) * dot(&b, &b)).sqrt()).acos();
        let share = (angle / 2.0).sin() / angle.sin();
        for i in 0..3 {
            let expected = share * (a[i] + b[i]);
            assert!((f64::from(got[i * 20 + place]) - expected).abs() < 1e-6, "{place} {i}");
        }
    }
}

/// Where nothing varies nothing can be selected, and where every weight is 0 all weigh the same.
#[test]
fn sce_of_equal_models() {
    let (base, x) = (noise(1, 60), noise(2, 60));
    let recipe = |topk: f64, floor: f64| {
        format!(
            "merge_method: sce\nbase_model: @0\nmodels: [{{model: @1}}, {{model: @2}}, {{model: @3}}]\nparameters: {{select_topk: \
             {topk}, weight_floor: {floor}}}\n"
        )
    };
    let equal = [base.clone(), x.clone(), x.clone(), x.clone()];
    assert_eq!(merged(&recipe(0.5, 1e-6), &[60], &equal), base);
    let whole = merged(&recipe(1.0, 0.0), &[60], &equal);
    assert!(whole.iter().zip(&x).all(|(got, x)| (got - x).abs() < 1e-6), "{whole:?}");
    let none = [base.clone(), base.clone(), base.clone(), base.clone()];
    assert_eq!(merged(&recipe(1.0, 0.0), &[60], &none), base);
}

/// What the task vectors of three models of one element each come to, by each way of electing signs.
#[test]
fn signs_are_elected_by_sum_by_count_or_by_all() {
    // Weighted task vectors of each element: both signs with the larger sum and the smaller count, one sign, zeros among one sign, none, and a sum of 0, which counts as positive.
    let vectors = [[3.0, 1.0, 0.0, 0.0, -2.0], [-1.0, 2.0, 4.0, 0.0, -1.0], [-1.0, 0.5, 0.0, 0.0, 3.0]];
    let models: Vec<Vec<f32>> = std::iter::once(vec![10.0; 5])
        .chain(vectors.iter().map(|vector| vector.iter().map(|x| 10.0 + x).collect()))
        .collect();
    for (consensus, normalize, expected) in [
        ("sum", false, [3.0, 3.5, 4.0, 0.0, 3.0]),
        ("sum", true, [3.0, 3.5 / 3.0, 4.0, 0.0, 3.0]),
        ("count", false, [-2.0, 3.5, 4.0, 0.0, -3.0]),
        ("count", true, [-1.0, 3.5 / 3.0, 4.0, 0.0, -1.5]),
        ("unanimous", false, [0.0, 3.5, 4.0, 0.0, 0.0]),
        ("unanimous", true, [0.0, 3.5 / 3.0, 4.0, 0.0, 0.0]),
    ] {
        for method in ["ties", "dare_ties", "breadcrumbs_ties", "della"] {
            let recipe = format!(
                "merge_method: {method}\nbase_model: @0\nmodels: [{{model: @1}}, {{model: @2}}, {{model: @3}}]\nparameters: {{weight: 1, \
                 consensus: {consensus}, normalize: {normalize}{}}}\n",
                if method.starts_with("breadcrumbs") { ", gamma: 0" } else { "" }
            );
            let got = merged(&recipe, &[5], &models);
            let off =
                got.iter().zip(expected).map(|(got, expected)| (f64::from(*got) - 10.0 - expected).abs());
            assert!(off.fold(0.0, f64::max) < 1e-6, "{method}, {consensus}, {normalize}: {got:?}");
        }
    }
}

/// Each mode restores what it is called for; what is too small to be divided by stays as it is.
#[test]
fn rescaling_restores_a_norm_or_the_mean() {
    let whole = noise(7, 4000);
    let l1 = |x: &[f32]| x.iter().map(|x| f64::from(x.abs())).sum::<f64>();
    let l2 = |x: &[f32]| x.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt();
    let largest = |x: &[f32]| x.iter().map(|x| f64::from(x.abs())).fold(0.0, f64::max);
    let recipe = |mode: &str| {
        format!(
            "merge_method: dare_linear\nbase_model: @0\nmodels: [{{model: @1}}]\nparameters: {{weight: 1, density: 0.3, {mode}}}\n"
        )
    };
    let of = |mode: &str, factor: f32| {
        let vector = whole.iter().map(|x| x * factor).collect();
        merged(&recipe(mode), &[4000], &[vec![0.0; 4000], vector])
    };
    let kept = of("rescale: false", 1.0);
    let same = |got: f64, expected: f64| (got / expected - 1.0).abs() < 1e-6;
    assert!(same(l1(&of("rescale_mode: l1", 1.0)), l1(&whole)));
    assert!(same(l2(&of("rescale_mode: l2", 1.0)), l2(&whole)));
    assert!(same(largest(&of("rescale_mode: linf", 1.0)), largest(&whole)));
    assert!(of("rescale_mode: density", 1.0).iter().zip(&kept).all(|(got, kept)| *got == kept / 0.3));
    for mode in ["l1", "l2", "linf"] {
        let tiny = of(&format!("rescale_mode: {mode}"), 1e-12);
        let plain = of("rescale: false", 1e-12);
        assert!(tiny == plain && plain.iter().any(|&x| x != 0.0), "{mode}");
    }
}

/// mergekit fails where nothing is kept, and drops everything where breadcrumbs leave nothing out at the top.
#[test]
fn what_keeps_nothing_is_the_base_and_what_drops_nothing_is_the_model() {
    let (base, x) = (noise(1, 90), noise(2, 90));
    let models = [base.clone(), x.clone()];
    let recipe = |method: &str, parameters: &str| {
        format!(
            "merge_method: {method}\nbase_model: @0\nmodels: [{{model: @1}}]\nparameters: {{weight: 1, {parameters}}}\n"
        )
    };
    for method in ["ties", "dare_linear", "dare_ties", "breadcrumbs", "breadcrumbs_ties"] {
        for density in ["0", "0.01"] {
            if density == "0" || !method.starts_with("dare") {
                let kept_none =
                    merged(&recipe(method, &format!("density: {density}, rescale: true")), &[90], &models);
                assert_eq!(kept_none, base, "{method}, {density}");
            }
        }
    }
    for method in ["breadcrumbs", "breadcrumbs_ties"] {
        let kept = |density: f64| {
            let got = merged(&recipe(method, &format!("density: {density}, gamma: 0")), &[90], &models);
            got.iter().zip(&base).map(|(got, base)| got - base).collect::<Vec<f32>>()
        };
        let third = kept(1.0 / 3.0);
        assert_eq!(third.iter().filter(|&&x| x != 0.0).count(), 30, "{method}");
        let least_kept = third.iter().filter(|&&x| x != 0.0).fold(f32::MAX, |least, x| least.min(x.abs()));
        let left_out = kept(1.0).into_iter().zip(&third).filter(|(_, kept)| **kept == 0.0);
        let most_left_out = left_out.fold(0.0_f32, |most, (x, _)| most.max(x.abs()));
        assert!(least_kept >= most_left_out, "{method}: the largest are kept");
        let all = kept(1.0);
        let off = all.iter().zip(x.iter().zip(&base)).map(|(got, (x, base))| (got - (x - base)).abs());
        assert!(off.fold(0.0, f32::max) < 1e-6, "{method}");
    }
}
