//! Holds the formula method to the methods that it can spell, and its errors to the places that they point at.

use std::path::{Path, PathBuf};

use aludel_merge::execute::{ExecuteOptions, execute};
use aludel_merge::plan::{Plan, PlanOptions};
use aludel_merge::problem::Problems;
use aludel_merge::recipe::Recipe;

fn models() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/models").canonicalize().unwrap()
}

fn plan(recipe: &str) -> Result<Plan, Problems> {
    let text = recipe.replace("@", &format!("{}/", models().display()));
    Plan::new(&Recipe::parse(&text)?, &PlanOptions { seed: 5, ..PlanOptions::default() })
}

fn merged(recipe: &str) -> Vec<u8> {
    let folder = tempfile::tempdir().unwrap();
    let target = folder.path().join("out");
    let options = ExecuteOptions { sync: false, ..ExecuteOptions::default() };
    execute(&plan(recipe).map_err(|problems| problems.to_string()).unwrap(), &target, &options).unwrap();
    std::fs::read(target.join("model.safetensors")).unwrap()
}

const MODELS: &str = "base_model: @base
models:
  - {model: @a, parameters: {weight: 0.6, density: 0.4}}
  - {model: @b, parameters: {weight: [-0.3, 0.8], density: 0.5}}
dtype: float32
";

fn by(method: &str, parameters: &str) -> String {
    format!("merge_method: {method}\n{MODELS}parameters: {{{parameters}}}\n")
}

fn formula(expression: &str) -> String {
    format!("merge_method: formula\n{MODELS}parameters:\n  lambda: 0.9\n  formula: >\n    {expression}\n")
}

/// The recipe without what the formula does not use.
fn without(recipe: &str, names: &[&str]) -> String {
    let mut recipe = recipe.to_owned();
    if names.contains(&"density") {
        recipe = recipe.replace(", density: 0.4", "").replace(", density: 0.5", "");
    }
    if names.contains(&"weight") {
        recipe = recipe.replace("weight: 0.6", "").replace("weight: [-0.3, 0.8]", "");
    }
    if names.contains(&"lambda") {
        recipe = recipe.replace("  lambda: 0.9\n", "");
    }
    recipe
}

#[test]
fn known_methods_can_be_spelled() {
    let arithmetic = by("task_arithmetic", "lambda: 0.9");
    let arithmetic = without(&arithmetic, &["density"]);
    let spelled = formula("base + total((model - base) * weight) * lambda");
    assert!(merged(&arithmetic) == merged(&without(&spelled, &["density"])));

    let dare = by("dare_linear", "lambda: 0.9, rescale: false");
    let spelled = formula("base + total((model - base) * (random() < density) * weight) * lambda");
    assert!(merged(&dare) == merged(&spelled));

    let ties = by("ties", "lambda: 0.9, normalize: false");
    let spelled = formula(
        "elected = total((model - base) * top(model - base, density * elements) * weight) >= 0;
    base + total(
      (model - base) * top(model - base, density * elements) * weight
      * where(elected, (model - base) * top(model - base, density * elements) * weight > 0,
                       (model - base) * top(model - base, density * elements) * weight < 0)
    ) * lambda",
    );
    assert!(merged(&ties) == merged(&spelled));

    let slerp = "merge_method: slerp\nbase_model: @a\nmodels: [{model: @a}, {model: @b}]\ndtype: float32\n\
                 parameters: {t: [0.1, 0.7]}\n";
    let spelled = "merge_method: formula\nmodels: [{model: @a}, {model: @b}]\ndtype: float32\nparameters:\n  t: [0.1, 0.7]\n  \
                   formula: >\n    c = dot(model[0], model[1]) / (norm(model[0]) * norm(model[1]));\n    \
                   model[0] * where(0.9995 < abs(c), 1 - t, sin(acos(c) * (1 - t)) / sin(acos(c)))\n    \
                   + model[1] * where(0.9995 < abs(c), t, sin(acos(c) * t) / sin(acos(c)))\n";
    assert!(merged(slerp) == merged(spelled));
}

#[test]
fn every_kind_of_value_meets_every_other() {
    let expression = "d = model[0] - base;
    r = row_mean(abs(d)) + columns / (1 + elements + rows);
    c = column_largest(model[1]) * column_greatest(d) + column_dot(d, d) - column_norm(base) + column_mean(d);
    q = kth(d, elements / 2) + largest(d) - greatest(d) + mean(d) + norm(base) * log1p(1) - sum(d);
    base + clamp(d * r * c, -1, 1) * q ^ 2 + sign(d) * least(model) - most(weight * model) / average(abs(model) + 1)
    + where(not (d != 0) or row_rank(d) >= 2 and d == d, exp(d) - expm1(d), -sqrt(abs(d))) * min(layer, models, 3)
    + row_sum(d) * row_dot(d, base) + row_norm(d) * row_largest(d) * row_greatest(d) + column_sum(d) ^ -1 * 1e-9
    + log(abs(d) + 1) ^ 0.5 * max(d, base) * random(3) + lambda * cos(q) * density[1]";
    let plan = plan(&without(&formula(expression), &[])).map_err(|problems| problems.to_string()).unwrap();
    assert!(plan.formulas.iter().all(|formula| formula.passes == 2), "{}", plan.formulas[0].text);
    assert!(!merged(&formula(expression)).is_empty());
}

/// The first place where the recipe is wrong, and what is said.
fn refused(recipe: &str) -> (usize, usize, String) {
    let problems = plan(recipe).unwrap_err();
    let problem = problems.iter().next().unwrap();
    let place = problem.place.clone().unwrap_or_else(|| panic!("{problem} has no place"));
    let hint = problem.hint.as_ref().map_or(String::new(), |hint| format!(" ({hint})"));
    (place.line, place.column, format!("{}{hint}", problem.message))
}

#[test]
fn problems_point_into_the_expression() {
    for (expression, line, column, message) in [
        ("base + modle[0]", 9, 12, "unknown name `modle` (did you mean `model`?)"),
        (
            "base +\n      norm(row_norm(base))\n      * base",
            10,
            12,
            "`norm` runs over elements, and this is one value for each row",
        ),
        (
            "base + model",
            9,
            12,
            "which model? (write `model[0]`, or use it inside of `total(...)`, which adds over all models)",
        ),
        (
            "base + model[2]",
            9,
            12,
            "there is no model 2: the recipe has 2, counted from 0 (the base model is `base`)",
        ),
        (
            "norm(base)",
            9,
            5,
            "the result is not one value for each element (add it to, or multiply it with, a model's elements)",
        ),
        (
            "base * weight",
            9,
            12,
            "`weight` is given for models: of which one? (write `weight[0]`, or use it inside of `total(...)`)",
        ),
        ("base * (1 + ", 9, 16, "expected a value, found the end of the formula"),
        ("base $ 1", 9, 10, "`$` has no meaning in a formula"),
        ("base * nrm(base)", 9, 12, "unknown function `nrm` (did you mean `norm`?)"),
        ("base * dot(base)", 9, 12, "`dot` takes 2 arguments, not 1 (dot(x, y): the inner product)"),
        (
            "total(total(model))",
            9,
            11,
            "this runs over all models inside of what runs over all models already (name it before: `part = ...;`)",
        ),
        ("base = 1; base", 9, 5, "`base` has a meaning already (choose another name)"),
        ("base * sin(base)", 9, 16, "`sin` is computed for a tensor, row or column, not for each element"),
        (
            "base ^ 2.5",
            9,
            12,
            "an exponent is 0.5 or a whole number from -16 to 16, and not 0 (for others write `exp(y * log(x))`)",
        ),
        (
            "base * top(base, row_sum(base))",
            9,
            22,
            "a count is one value for the tensor, and this is one value for each row",
        ),
        (
            "base * top(row_rank(base), 3)",
            9,
            12,
            "what is ranked or selected by can itself hold no rank, and what is ranked no random number",
        ),
        (
            "base * random()",
            9,
            12,
            "which random numbers? (write `random(0)`, or `random()` inside of `total(...)` for those of the model)",
        ),
        ("base * norm", 9, 12, "`norm` is a function (call it: `norm(...)`)"),
        ("base * base[0]", 9, 12, "`base` is not one for each model"),
    ] {
        let recipe = without(&formula(expression), &["lambda", "density"]);
        let recipe = if expression.contains("weight") { recipe } else { without(&recipe, &["weight"]) };
        assert_eq!(refused(&recipe), (line, column, message.to_owned()), "{expression}");
    }
}

#[test]
fn parameters_are_checked_against_the_expression() {
    let unused = refused(&without(&formula("base + total(weight * (model - base))"), &["density"]));
    let message = "`formula` takes no parameter `lambda` (it takes here: `formula`, `weight`; `lambda` is a parameter of `task_arithmetic`, `ties`, `dare_linear`, `dare_ties`, `breadcrumbs`, `breadcrumbs_ties`, `della_linear`, `della`)";
    assert_eq!(unused, (8, 3, message.to_owned()));
    let text = formula("base * lambda").replace("lambda: 0.9", "lambda: x");
    let (line, column, message) = refused(&without(&text, &["weight", "density"]));
    assert_eq!((line, column, message.as_str()), (8, 11, "expected a number, found the text `x`"));
    let missing = "merge_method: formula\nmodels: [{model: @a}]\ndtype: float32\n";
    assert!(refused(missing).2.starts_with("`formula` needs `formula` for the merge"));
    let no_base =
        "merge_method: formula\nmodels: [{model: @a}]\nparameters: {formula: \"model[0] - base\"}\n";
    let message = "the recipe has no base model (add `base_model:` at the top of the recipe)";
    assert_eq!(refused(no_base), (3, 35, message.to_owned()));
    let partly =
        without(&formula("base + total(weight * model)"), &["density", "lambda"]).replace("weight: 0.6", "");
    assert!(refused(&partly).2.ends_with("a value without a filter)"), "{:?}", refused(&partly));
}
