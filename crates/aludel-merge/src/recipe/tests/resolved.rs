//! What parameters resolve to, by level, filter and layer.

use super::scope;
use crate::recipe::{Recipe, Scalar, layer_position};

/// A recipe with one model whose parameters, and those of the recipe, are given in flow style.
fn recipe(model: &str, global: &str) -> Recipe {
    let text = format!(
        "merge_method: linear\nmodels:\n- model: a\n  parameters: {{{model}}}\nparameters: {{{global}}}\n"
    );
    Recipe::parse(&text).unwrap_or_else(|problems| panic!("{text}\n{problems}"))
}

#[test]
fn scalars_are_numbers_truth_values_or_text() {
    let text = |text: &str| Scalar::Text(text.into());
    for (yaml, value) in [
        ("1", Scalar::Number(1.0)),
        ("-0.5", Scalar::Number(-0.5)),
        ("+.5", Scalar::Number(0.5)),
        ("3.", Scalar::Number(3.0)),
        ("1e-3", Scalar::Number(0.001)),
        ("\"1e-3\"", Scalar::Number(0.001)),
        ("'010'", Scalar::Number(10.0)),
        ("1_000.5", Scalar::Number(1000.5)),
        ("0", Scalar::Number(0.0)),
        ("00.5", Scalar::Number(0.5)),
        ("!!float 2", Scalar::Number(2.0)),
        ("true", Scalar::Bool(true)),
        ("Off", Scalar::Bool(false)),
        ("yes", Scalar::Bool(true)),
        ("'yes'", text("yes")),
        ("!!str yes", text("yes")),
        ("sum", text("sum")),
        ("l1", text("l1")),
        ("linf", text("linf")),
        ("1__0", text("1__0")),
        ("_1", text("_1")),
        ("1:30", text("1:30")),
        ("0x10", text("0x10")),
    ] {
        let resolved = scope(&recipe("", &format!("p: {yaml}"))).scalar("p", None, "x", 0.0).unwrap();
        assert_eq!(resolved.value, value, "{yaml}");
    }
}

#[test]
fn a_gradient_is_interpolated_over_the_layers() {
    // Dyadic positions and points, so that every value is exact.
    for (gradient, position, value) in [
        ("[0, 1]", 0.0, 0.0),
        ("[0, 1]", 0.25, 0.25),
        ("[0, 1]", 1.0, 1.0),
        ("[1, 0.5, -1]", 0.25, 0.75),
        ("[1, 0.5, -1]", 0.5, 0.5),
        ("[1, 0.5, -1]", 0.75, -0.25),
        ("[0, 0.5, 0.25, 0.75, 1]", 0.375, 0.375),
        ("[0, 0.5, 0.25, 0.75, 1]", 0.875, 0.875),
        ("[0.3]", 0.5, 0.3),
        ("[2, 4]", -1.0, 2.0),
        ("[2, 4]", 7.0, 4.0),
    ] {
        let resolved = scope(&recipe("", &format!("p: {gradient}"))).number("p", None, "x", position);
        assert_eq!(resolved, Ok(Some(value)), "{gradient} at {position}");
    }
}

#[test]
fn a_position_is_the_share_of_the_way_through_the_layers() {
    assert_eq!([0, 1, 2, 4].map(|layer| layer_position(Some(layer), 5)), [0.0, 0.25, 0.5, 1.0]);
    assert_eq!([layer_position(None, 5), layer_position(Some(0), 1)], [0.0, 1.0]);
}

#[test]
fn the_first_matching_filter_wins() {
    let recipe = recipe(
        "",
        "p: [{filter: mlp.up, value: 1}, {filter: mlp, value: [2, 3]}, {filter: '*', value: 4}, {value: 5}]",
    );
    for (tensor, position, value) in [
        ("layers.0.mlp.up_proj", 1.0, 1.0),
        ("layers.0.mlp.down_proj", 0.0, 2.0),
        ("layers.0.mlp.down_proj", 1.0, 3.0),
        ("norm", 1.0, 4.0),
    ] {
        assert_eq!(scope(&recipe).number("p", None, tensor, position), Ok(Some(value)), "{tensor}");
    }
}

#[test]
fn without_a_filter_or_with_none_every_tensor_is_meant() {
    for choice in ["{value: 7}", "{filter: , value: 7}", "{filter: null, value: 7}", "{filter: '', value: 7}"]
    {
        assert_eq!(
            scope(&recipe("", &format!("p: [{choice}]"))).number("p", None, "norm", 0.0),
            Ok(Some(7.0)),
            "{choice}"
        );
    }
}

#[test]
fn the_model_goes_before_the_recipe_where_its_filters_match() {
    let recipe = recipe("p: [{filter: mlp, value: 1}], q: 2", "p: [{filter: attn, value: 3}], q: 4, r: 5");
    let p = |model, tensor| scope(&recipe).number("p", model, tensor, 0.0).unwrap();
    assert_eq!([p(Some(0), "mlp"), p(Some(0), "attn"), p(Some(0), "norm")], [Some(1.0), Some(3.0), None]);
    assert_eq!([p(None, "mlp"), p(None, "attn")], [None, Some(3.0)]);
    let of_model = ["q", "r", "s"].map(|name| scope(&recipe).number(name, Some(0), "x", 0.0).unwrap());
    assert_eq!(of_model, [Some(2.0), Some(5.0), None]);
    assert_eq!(scope(&recipe).number("q", Some(1), "x", 0.0), Ok(Some(4.0)));
}

#[test]
fn a_resolved_value_knows_where_it_is_written() {
    let recipe = recipe("p: [{filter: mlp, value: 1}, {value: [2, 3]}]", "");
    let place = |tensor| scope(&recipe).scalar("p", Some(0), tensor, 0.5).unwrap().place.to_string();
    assert_eq!(place("mlp"), "4:41 models[0].parameters.p[0].value");
    assert_eq!(place("norm"), "4:53 models[0].parameters.p[1].value");
}

#[test]
fn typed_access_refuses_other_kinds() {
    let recipe = recipe("", "n: 2, b: true, w: count");
    let words = &["sum", "count"];
    assert_eq!(scope(&recipe).choice("w", words, None, "x", 0.0), Ok(Some("count")));
    assert_eq!(scope(&recipe).choice("absent", words, None, "x", 0.0), Ok(None));
    let messages = [
        scope(&recipe).number("b", None, "x", 0.0).unwrap_err(),
        scope(&recipe).boolean("n", None, "x", 0.0).unwrap_err(),
        scope(&recipe).boolean("w", None, "x", 0.0).unwrap_err(),
        scope(&recipe).choice("n", words, None, "x", 0.0).unwrap_err(),
    ]
    .map(|problem| problem.message);
    assert_eq!(
        messages,
        [
            "expected a number, found `true`",
            "expected `true` or `false`, found the number 2",
            "expected `true` or `false`, found the text `count`",
            "expected one of `sum`, `count`, found the number 2",
        ]
    );
}
