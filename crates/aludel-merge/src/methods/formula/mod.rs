//! Merges by an expression that the recipe gives: `merge_method: formula`.
//!
//! In: the recipe's `formula`, for example `base + total(weight * (model - base))`. Out: the same kind of formula as every
//! other method builds, so that passes, threads, tiles and memory are the executor's as ever. The expression is parsed and
//! built when the merge is planned; what is wrong with it is told with its line and column in the recipe. `docs/formula.md`
//! describes the language. mergekit has no such method.
//!
//! Reading order: `lexer`, `parse` (text to a tree), `functions` (what can be called), `build` (a tree to a formula),
//! `fault` (what is wrong, and where that stands in the recipe).

mod build;
mod fault;
mod functions;
mod lexer;
mod parse;

use aludel_kernels::formula::{Expr, Graph};

use self::build::Failure;
use super::{Base, Method, Tensor};
use crate::problem::{Problem, Problems};
use crate::recipe::{Kind, Level, Located, ParameterSpec, Recipe, Scalar, Value};

const FORMULA: &str = "formula";

/// `formula`.
pub(super) struct ByFormula;

impl Method for ByFormula {
    fn name(&self) -> &'static str {
        FORMULA
    }

    fn summary(&self) -> &'static str {
        "an expression of your own over the models, see docs/formula.md"
    }

    fn base(&self) -> Base {
        Base::Optional
    }

    fn members(&self) -> (usize, usize) {
        (1, usize::MAX)
    }

    fn parameters(&self) -> &'static [ParameterSpec] {
        &[ParameterSpec {
            name: FORMULA,
            level: Level::Global,
            kind: Kind::Text,
            default: None,
            summary: "the expression; the numbers that it names are parameters too",
        }]
    }

    /// Every name that one of the formulas uses and that nothing else gives a value.
    fn own_numbers(&self, recipe: &Recipe) -> Result<Vec<String>, Problems> {
        let mut problems = Problems::new();
        let mut names = Vec::new();
        for value in given(recipe) {
            let Value::Scalar(Scalar::Text(text)) = &value.value else { continue };
            match parse::parse(text) {
                Ok(script) => {
                    let is_own = |name: &str| {
                        !build::GIVEN.contains(&name) && script.definitions.iter().all(|d| d.name != name)
                    };
                    names.extend(script.names().into_iter().filter(|name| is_own(name)).map(str::to_owned));
                }
                Err(fault) => problems.push(fault.into_problem(&recipe.text, &value.place, text)),
            }
        }
        problems.into_result(names)
    }

    fn formula<'g>(&self, graph: &'g Graph, tensor: &Tensor<'_>) -> Result<Expr<'g>, Problem> {
        let Located { value: text, place } = tensor.text(FORMULA)?;
        let in_recipe = |fault: fault::Fault| fault.into_problem(&tensor.recipe.text, &place, &text);
        let script = parse::parse(&text).map_err(in_recipe)?;
        build::build(graph, tensor, &script).map_err(|failure| match failure {
            Failure::Fault(fault) => in_recipe(fault),
            Failure::Parameter(problem) => *problem,
        })
    }
}

/// Every formula that the recipe gives at any level, each once.
fn given(recipe: &Recipe) -> Vec<&Located<Value>> {
    let parts = recipe.parts.iter().map(|part| &part.parameters);
    let slices = recipe.parts.iter().flat_map(|part| &part.slices).map(|slice| &slice.parameters);
    let levels = slices.chain(parts).chain([&recipe.parameters]);
    levels.filter_map(|level| level.find(FORMULA)).flat_map(|given| given.setting.values()).collect()
}
