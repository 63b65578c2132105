//! Tests whole recipes: those that are accepted, what their parameters resolve to, and what is refused with which
//! words at which place.

mod accepted;
mod arbitrary;
mod refused;
mod resolved;

use super::{DefaultValue, Kind, Level, ModelEntry, ParameterSpec, Recipe, Scope};

/// The parameters of an imaginary method, with one of every kind and level.
const SPECS: &[ParameterSpec] = &[
    ParameterSpec {
        name: "weight",
        level: Level::Model,
        kind: Kind::Number,
        default: None,
        summary: "share of the model",
    },
    ParameterSpec {
        name: "density",
        level: Level::Model,
        kind: Kind::Number,
        default: Some(DefaultValue::Number(1.0)),
        summary: "fraction kept",
    },
    ParameterSpec {
        name: "normalize",
        level: Level::Global,
        kind: Kind::Bool,
        default: Some(DefaultValue::Bool(true)),
        summary: "whether to divide by the sum of weights",
    },
    ParameterSpec {
        name: "consensus",
        level: Level::Global,
        kind: Kind::Choice(&["sum", "count", "unanimous"]),
        default: Some(DefaultValue::Text("sum")),
        summary: "how signs are agreed on",
    },
];

/// What holds in a recipe of whole models.
fn scope(recipe: &Recipe) -> Scope<'_> {
    recipe.scopes().next().unwrap_or_else(|| unreachable!("a recipe has at least one slice"))
}

/// The models of a recipe of whole models.
fn models(recipe: &Recipe) -> &[ModelEntry] {
    &scope(recipe).slice.sources
}
