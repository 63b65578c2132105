//! Faulty recipes, and the whole of what is said about them.

use super::SPECS;
use crate::recipe::Recipe;

/// All problems of a recipe, those of its parameters included, one per line.
fn problems(text: &str) -> Vec<String> {
    let problems = match Recipe::parse(text) {
        Ok(recipe) => recipe.check_parameters(SPECS),
        Err(problems) => problems,
    };
    problems.iter().map(ToString::to_string).collect()
}

#[track_caller]
fn assert_problems(table: &[(&str, &[&str])]) {
    for (text, expected) in table {
        assert_eq!(problems(text), *expected, "{text}");
    }
}

/// A recipe with nothing wrong but the parameters of the whole merge, which begin on line 4, column 3.
fn with_parameters(yaml: &str) -> String {
    format!("merge_method: ties\nmodels: [{{model: a}}]\nparameters:\n  {yaml}\n")
}

#[test]
fn all_faults_are_reported_at_once_from_top_to_bottom() {
    let text = "\
merge_methd: ties
base_model: a+
models:
  - model: x
    parameters:
      weight: null
      density: [1, high]
    weight: 2
  - modle: y
  - z
parameters:
  normalize: [
    {filter: mlp, vlaue: 1},
    {value: .nan},
  ]
dtype: int8
dtype: float16
slices:
  - sources: []
";
    assert_eq!(
        problems(text),
        [
            "1:1 merge_methd: unknown key `merge_methd` (did you mean `merge_method`?)",
            "1:1: `merge_method` is missing (add it, as in `merge_method: linear`)",
            "2:13 base_model: `a+` has nothing before or after a `+` (write the folder of the model, a `+`, and the folder of the adapter)",
            "6:15 models[0].parameters.weight: expected a value, found nothing (give it a value or remove its key)",
            "7:20 models[0].parameters.density[1]: expected a number, as a list of values is a gradient over the layers, found `high`",
            "8:5 models[0].weight: unknown key `weight` (values for the merge method stand under `parameters:`; known here: `model`, `parameters`)",
            "9:5 models[1].modle: unknown key `modle` (did you mean `model`?)",
            "9:5 models[1]: `model` is missing (name the model: `- model: path/of/the/model`)",
            "10:5 models[2]: expected a mapping, found `z` (write it as `- model: path/of/the/model`)",
            "13:5 parameters.normalize[0]: `value` is missing (add `value:` beside `filter:`)",
            "13:19 parameters.normalize[0].vlaue: unknown key `vlaue` (did you mean `value`?)",
            "14:13 parameters.normalize[1].value: `.nan` is not a finite number",
            "16:8 dtype: `int8` is no element type that a merge computes on (accepted are `float32`, `float16` and `bfloat16`)",
            "17:1 dtype: `dtype` is given twice, first on line 16 (keep one of them)",
            "19:3 slices: `slices` and `models` exclude each other (keep one of them)",
        ]
    );
}

#[test]
fn what_is_no_yaml_is_one_problem() {
    assert_problems(&[
        ("merge_method: [1", &["2:1: not valid YAML: while parsing a flow sequence, expected ',' or ']'"]),
        (
            "models:\n- model: a\n parameters: b",
            &["3:2: not valid YAML: while parsing a block mapping, did not find expected key"],
        ),
        (
            "t:\n  - filter: *\n",
            &[
                "2:13: not valid YAML: while scanning an anchor or alias, did not find expected alphabetic or numeric \
               character (to mean the character itself, quote it: \"*\" or \"&\")",
            ],
        ),
        (
            "t: *t",
            &[
                "1:4: not valid YAML: while parsing node, found unknown anchor (to mean the character itself, quote it: \"*\" or \"&\")",
            ],
        ),
    ]);
}

#[test]
fn what_is_no_mapping_is_one_problem() {
    let hint = "(a recipe begins with `merge_method:` and `models:`)";
    for (text, problem) in [
        ("", "1:1: the recipe is empty"),
        ("# nothing\n", "1:1: the recipe is empty"),
        ("--- ~", "1:5: the recipe is empty"),
        ("linear", "1:1: expected a mapping, found `linear`"),
        ("- a", "1:1: expected a mapping, found a list"),
    ] {
        let said = problems(text);
        assert_eq!(said.len(), 1, "{text}");
        assert_eq!(said[0].trim_end_matches(hint).trim_end(), problem, "{text}");
    }
}

#[test]
fn what_mergekit_has_and_this_version_lacks_is_named() {
    assert_eq!(
        problems("merge_method: linear\nmodels:\n- model: a\n  layer_range: [0, 2]"),
        [
            "4:3 models[0].layer_range: `layer_range` is not supported by this version yet (it belongs to the sources of `slices`; merge whole models)"
        ]
    );
}

#[test]
fn what_is_missing_is_named() {
    assert_problems(&[
        (
            "dtype: half",
            &[
                "1:1: `merge_method` is missing (add it, as in `merge_method: linear`)",
                "1:1: `models` is missing (list the models to merge under `models:`, or runs of their layers under `slices:`)",
            ],
        ),
        (
            "models: []\nmerge_method:",
            &[
                "1:1: `merge_method` is missing (add it, as in `merge_method: linear`)",
                "1:9 models: `models` is empty (list at least one model)",
            ],
        ),
        (
            "merge_method: linear\nmodels:\n- parameters: {weight: 1}",
            &["3:3 models[0]: `model` is missing (name the model: `- model: path/of/the/model`)"],
        ),
    ]);
}

#[test]
fn recipes_of_one_text_are_linked_or_told_why_not() {
    let named = |name: &str, model: &str| {
        format!("name: {name}\nmerge_method: linear\nmodels: [{{model: {model}}}]\n---\n")
    };
    let unnamed = |model: &str| format!("merge_method: linear\nmodels: [{{model: {model}}}]\n");
    for (text, expected) in [
        (
            named("a", "b") + &named("b", "a") + &unnamed("a"),
            "7:18 models[0].model: `a` is made of itself: `a` of `b` of `a` (a recipe can only merge results that do not need its own)",
        ),
        (
            named("a", "a") + &unnamed("a"),
            "3:18 models[0].model: `a` is made of itself: `a` of `a` (a recipe can only merge results that do not need its own)",
        ),
        (
            named("a", "x") + &named("b", "x") + &unnamed("b"),
            "1:7 name: nothing is made of `a` (merge it in another recipe of this file, or remove it)",
        ),
        (
            named("a", "x") + &unnamed("a") + "---\n" + &unnamed("a"),
            "8:15 merge_method: this recipe has no `name`, and neither has an earlier one: only one result can be the output (name all but the one that is to be written)",
        ),
        (
            named("a", "x") + &named("a", "x") + &unnamed("a"),
            "5:7 name: `a` is the name of an earlier recipe too (give each its own name)",
        ),
        ("name: [a]\n".to_owned() + &unnamed("x"), "1:7 name: expected text, found a list"),
        (
            unnamed("x") + "---\nfirst\n",
            "4:1: expected a mapping, found `first` (a recipe begins with `merge_method:` and `models:`)",
        ),
    ] {
        assert_eq!(problems(&text), [expected], "{text}");
    }
    let many: String = (0..65).map(|stage| named(&format!("s{stage}"), "x")).collect();
    assert_eq!(problems(&many), ["258:15 merge_method: 65 recipes in one file; at most 64 are linked"]);
}

#[test]
fn slices_are_checked_before_any_model_is_opened() {
    let slice = |yaml: &str| format!("merge_method: linear\nslices:\n- {yaml}\n");
    let source = |range: &str| slice(&format!("sources: [{{model: a, layer_range: {range}}}]"));
    let in_range = "3:37 slices[0].sources[0].layer_range";
    let two = "give the first layer and the one after the last, as in `layer_range: [0, 16]`";
    for (text, expected) in [
        (
            slice("sources: [{model: a, layer_range: [0, 2]}, {model: b, layer_range: [1, 4]}, {model: c, layer_range: [2, 4]}]"),
            "3:70 slices[0].sources[1].layer_range: this source has 3 layers, and `a` has 2 (the sources of a slice are merged layer by layer: give all of them equally many)".to_owned(),
        ),
        (source("[0, 2, 3]"), format!("{in_range}: a layer range has two numbers, found 3 ({two})")),
        (source("4"), format!("{in_range}: expected a list, found `4` ({two})")),
        (source("[2, 2]"), format!("{in_range}: the layer range [2, 2] holds no layer (the second number is that of the layer after the last)")),
        (source("[-1, 2]"), "3:38 slices[0].sources[0].layer_range[0]: expected the number of a layer, counted from 0, found `-1`".into()),
        (source("[0, 1.5]"), "3:41 slices[0].sources[0].layer_range[1]: expected the number of a layer, counted from 0, found `1.5`".into()),
        (source("[0, 1e300]"), "3:41 slices[0].sources[0].layer_range[1]: expected the number of a layer, counted from 0, found `1e300`".into()),
        (slice("sources: [{model: a}]"), format!("3:13 slices[0].sources[0]: `layer_range` is missing ({two})")),
        (slice("sources: []"), "3:12 slices[0].sources: `sources` is empty (list at least one model)".into()),
        (
            slice("{base_model: a}"),
            "3:3 slices[0]: `sources` is missing (write it as `- sources: [{model: path/of/the/model, layer_range: [0, 16]}]`)".into(),
        ),
        (
            slice("{sources: [{model: a, layer_range: [0, 1]}], residual_weight: 0.5}"),
            "3:48 slices[0].residual_weight: `residual_weight` is not supported by this version yet (remove it: mergekit reads it and does nothing with it)".into(),
        ),
        (
            "merge_method: linear\nslices: []\n".into(),
            "2:9 slices: `slices` is empty (list at least one slice, each with its `sources`)".into(),
        ),
    ] {
        assert_eq!(problems(&text), [expected], "{text}");
    }
}

#[test]
fn modules_are_checked_before_any_model_is_opened() {
    assert_problems(&[
        (
            "merge_method: linear\nmodules: {}\n",
            &[
                "2:10 modules: `modules` is empty (name the parts of the model that are merged, as in `text_decoder: {models: [...]}`)",
            ],
        ),
        (
            "merge_method: linear\nmodules:\n  encoder: {model: a}\n",
            &[
                "3:12 modules.encoder: `models` is missing (list the models to merge under `models:`, or runs of their layers under `slices:`)",
                "3:13 modules.encoder.model: unknown key `model` (did you mean `models`?)",
            ],
        ),
        (
            "merge_method: linear\nmodules:\n  encoder: {models: [{model: a}], slices: [{sources: [{model: a, layer_range: [0, 1]}]}]}\n",
            &["3:43 modules.encoder.slices: `slices` and `models` exclude each other (keep one of them)"],
        ),
        (
            "merge_method: ties\nmodules:\n  e: {models: [{model: a, parameters: {normalize: true}}], parameters: {wieght: 1}}\n",
            &[
                "3:40 modules.e.models[0].parameters.normalize: `normalize` holds for the whole merge and cannot be set for one model (move it to the `parameters:` at the top of the recipe)",
                "3:73 modules.e.parameters.wieght: `ties` takes no parameter `wieght` (did you mean `weight`?)",
            ],
        ),
    ]);
}

#[test]
fn shapes_that_do_not_fit_say_what_does() {
    assert_problems(&[
        (
            "merge_method: [ties]\nmodels: [{model: a}]",
            &["1:15 merge_method: expected the name of a merge method, found a list"],
        ),
        ("merge_method: ties\nmodels: {model: a}", &["2:9 models: expected a list, found a mapping"]),
        (
            "merge_method: ties\nmodels: [{model: [a]}]",
            &["2:18 models[0].model: expected the path of a model, found a list"],
        ),
        (
            "merge_method: ties\nmodels: [{model: a}]\nchat_template: {a: b}",
            &["3:16 chat_template: expected text, found a mapping"],
        ),
        (
            "merge_method: ties\nmodels: [{model: a}]\nparameters: [weight]",
            &["3:13 parameters: expected a mapping, found a list"],
        ),
        ("merge_method: ties\nmodels: [{model: a}]\n? [x]\n: y", &["3:3: a key is text, found a list"]),
        ("merge_method: ties\nmodels: [{model: a}]\n<<: 1", &["3:5: `<<` merges mappings, found `1`"]),
        (
            "merge_method: !m ties\nmodels: [{model: a}]",
            &["1:15 merge_method: the tag `!m` has no meaning in a recipe (remove it)"],
        ),
        (
            "merge_method: ties\nmodels: [{model: a}]\ndtype: bfloat",
            &[
                "3:8 dtype: `bfloat` is no element type that a merge computes on (did you mean `float`? accepted are `float32`, `float16` and `bfloat16`)",
            ],
        ),
    ]);
}

#[test]
fn values_of_no_kind_are_refused() {
    for (yaml, problem) in [
        (
            "weight:",
            "4:3 parameters.weight: expected a value, found nothing (give it a value or remove its key)",
        ),
        ("weight: .inf", "4:11 parameters.weight: `.inf` is not a finite number"),
        ("weight: '-.INF'", "4:11 parameters.weight: `-.INF` is not a finite number"),
        ("weight: nan", "4:11 parameters.weight: `nan` is not a finite number"),
        ("weight: 1e999", "4:11 parameters.weight: `1e999` is not a finite number"),
        (
            "weight: 010",
            "4:11 parameters.weight: `010` is octal to some YAML readers and decimal to others (write it without leading zeros)",
        ),
        (
            "weight: []",
            "4:11 parameters.weight: the list is empty (give one number for each point of the gradient)",
        ),
        (
            "weight: [1, [2]]",
            "4:15 parameters.weight[1]: expected a number, as a list of values is a gradient over the layers, found a list",
        ),
        (
            "weight: [true]",
            "4:12 parameters.weight[0]: expected a number, as a list of values is a gradient over the layers, found `true`",
        ),
        (
            "weight: {filter: a, value: 1}",
            "4:11 parameters.weight: expected a value or a list, found a mapping (put `filter` and `value` into a list: start with `- filter:`)",
        ),
        (
            "weight: [{value: 1}, 2]",
            "4:24 parameters.weight[1]: expected `filter` and `value`, as in the rest of this list, found `2`",
        ),
        (
            "weight: [{filter: [a], value: 1}]",
            "4:21 parameters.weight[0].filter: expected a part of a tensor's name, found a list",
        ),
        (
            "weight: [{value: [{value: 1}]}]",
            "4:21 parameters.weight[0].value[0]: expected a number, as a list of values is a gradient over the layers, found a mapping",
        ),
        (
            "weight: [{value: 1, fliter: a}]",
            "4:23 parameters.weight[0].fliter: unknown key `fliter` (did you mean `filter`?)",
        ),
    ] {
        assert_eq!(problems(&with_parameters(yaml)), [problem], "{yaml}");
    }
}

#[test]
fn parameters_are_held_against_what_the_method_takes() {
    let everywhere = "it takes here: `weight`, `density`, `normalize`, `consensus`";
    for (yaml, problem) in [
        ("wieght: 1", "4:3 parameters.wieght: `ties` takes no parameter `wieght` (did you mean `weight`?)".to_owned()),
        ("t: 1", format!("4:3 parameters.t: `ties` takes no parameter `t` ({everywhere})")),
        ("weight: heavy", "4:11 parameters.weight: expected a number, found the text `heavy`".into()),
        ("weight: true", "4:11 parameters.weight: expected a number, found `true`".into()),
        ("weight: [{filter: a, value: 1}, {value: no}]", "4:43 parameters.weight[1].value: expected a number, found `false`".into()),
        ("normalize: 2", "4:14 parameters.normalize: expected `true` or `false`, found the number 2".into()),
        ("normalize: [0, 1]", "4:14 parameters.normalize: expected `true` or `false`, found a list of numbers".into()),
        ("consensus: Sum", "4:14 parameters.consensus: expected one of `sum`, `count`, `unanimous`, found the text `Sum` (did you mean `sum`?)".into()),
        ("consensus: 1", "4:14 parameters.consensus: expected one of `sum`, `count`, `unanimous`, found the number 1".into()),
    ] {
        assert_eq!(problems(&with_parameters(yaml)), [problem], "{yaml}");
    }
    for fitting in
        ["weight: [0, 1]", "weight: '2'", "density: 0", "normalize: 0", "normalize: no", "consensus: count"]
    {
        assert_eq!(problems(&with_parameters(fitting)), [""; 0], "{fitting}");
    }
}

#[test]
fn parameters_of_a_model_are_fewer() {
    let text = "\
merge_method: ties
models:
  - model: a
    parameters:
      normalize: true
      consensu: sum
      density: [{value: x}]
      weight: 1
parameters:
  density: y
";
    assert_eq!(
        problems(text),
        [
            "5:7 models[0].parameters.normalize: `normalize` holds for the whole merge and cannot be set for one model (move it to the `parameters:` at the top of the recipe)",
            "6:7 models[0].parameters.consensu: `ties` takes no parameter `consensu` (it takes here: `weight`, `density`)",
            "7:25 models[0].parameters.density[0].value: expected a number, found the text `x`",
            "10:12 parameters.density: expected a number, found the text `y`",
        ]
    );
}

#[test]
fn a_method_without_parameters_says_so() {
    let recipe = Recipe::parse(&with_parameters("t: 1")).unwrap();
    let problems = recipe.check_parameters(&[]);
    assert_eq!(
        problems.to_string(),
        "4:3 parameters.t: `ties` takes no parameter `t` (it takes none here: remove it)"
    );
}

#[test]
fn a_repeated_key_is_a_problem_at_every_depth() {
    let text = "\
merge_method: ties
models:
  - model: a
    parameters: &p
      weight: 1
      weight: 2
      density: [{value: 1, value: 2}]
  - model: b
    parameters: *p
";
    assert_eq!(
        problems(text),
        [
            "6:7 models[0].parameters.weight: `weight` is given twice, first on line 5 (keep one of them)",
            "7:28 models[0].parameters.density[0].value: `value` is given twice, first on line 7 (keep one of them)",
        ]
    );
}

#[test]
fn what_a_message_repeats_cannot_steer_a_terminal() {
    let said = problems("merge_method: ties\nmodels: [{model: a}]\n\"a\\e[31m\\n\": 1");
    assert!(said[0].starts_with(r"3:1 `a\u{1b}[31m\n`: unknown key `a\u{1b}[31m\n`"), "{}", said[0]);
}
