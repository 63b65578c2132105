//! Defines every merge method as a formula: one file each, one line each in [`METHODS`]. One of them, `regmean`, solves for
//! linear layers instead.
//!
//! In: which tensors stand where and the method's parameters for one tensor, through a [`Tensor`]. Out: an expression
//! over them. A method reads no weights, knows no files and decides nothing about passes, threads or memory.

mod arcee_fusion;
mod breadcrumbs;
mod context;
mod dare;
mod della;
mod directions;
mod expo;
mod fisher;
mod formula;
mod geometric_median;
mod granularity;
mod karcher;
mod linear;
mod model_stock;
mod multislerp;
mod nearswap;
mod nuslerp;
mod passthrough;
mod ram;
mod regmean;
mod sce;
mod slerp;
mod statistics;
mod task_arithmetic;
mod task_vectors;
mod ties;

pub use context::{Member, Tensor};
pub(crate) use granularity::NAME as GRANULARITY;
pub use granularity::RowLayout;
pub use regmean::Fit;
pub use statistics::Statistics;

use aludel_kernels::formula::{Expr, Graph};

use crate::problem::{Problem, Problems};
use crate::recipe::{ParameterSpec, Recipe, nearest};

/// How a method treats the base model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Base {
    /// It has to be given, and is no member of the merge.
    Required,
    /// It has to be one of the models, and is the first of them.
    First,
    /// It may be given, and is no member of the merge.
    Optional,
    /// It is a member like any other, listed or not.
    Member,
    /// It plays no part; a model of the list that is named as base is a member like any other.
    Unused,
}

/// A merge method.
pub trait Method: Sync {
    /// Its name in recipes.
    fn name(&self) -> &'static str;

    /// One line that says what it does.
    fn summary(&self) -> &'static str;

    /// How it treats the base model.
    fn base(&self) -> Base;

    /// The fewest and the most members that it merges, the base not counted where [`Base::Required`].
    fn members(&self) -> (usize, usize);

    /// The parameters that it takes.
    fn parameters(&self) -> &'static [ParameterSpec];

    /// The names of numbers that the recipe itself makes parameters of this method.
    ///
    /// # Errors
    /// Everything wrong with what says so.
    fn own_numbers(&self, recipe: &Recipe) -> Result<Vec<String>, Problems> {
        let _ = recipe;
        Ok(Vec::new())
    }

    /// What it reads of each member besides its weights.
    fn statistics(&self) -> Option<Statistics> {
        None
    }

    /// How a tensor is fitted to those of the members, where that is not by a formula of its elements.
    ///
    /// # Errors
    /// As [`Method::formula`].
    fn fit(&self, tensor: &Tensor<'_>) -> Result<Option<Fit>, Problem> {
        let _ = tensor;
        Ok(None)
    }

    /// What counts as a row of the tensor: what its last dimension runs over, unless the method or its parameters see it otherwise.
    ///
    /// # Errors
    /// A parameter that has to be known for it is wrong.
    fn rows(&self, tensor: &Tensor<'_>) -> Result<RowLayout, Problem> {
        Ok(tensor.asked_rows()?.unwrap_or(RowLayout::of(tensor.columns)))
    }

    /// The merged tensor, unless it is [fitted](Method::fit).
    ///
    /// # Errors
    /// A parameter that is missing or out of its range for this tensor.
    fn formula<'g>(&self, graph: &'g Graph, tensor: &Tensor<'_>) -> Result<Expr<'g>, Problem>;
}

/// All methods, in the order in which they are listed to people.
pub const METHODS: &[&dyn Method] = &[
    &linear::Linear,
    &slerp::Slerp,
    &nuslerp::NuSlerp,
    &multislerp::MultiSlerp,
    &karcher::Karcher,
    &geometric_median::GeometricMedian,
    &fisher::Fisher,
    &regmean::RegMean,
    &task_arithmetic::TaskArithmetic,
    &ties::Ties,
    &dare::DareLinear,
    &dare::DareTies,
    &breadcrumbs::Breadcrumbs,
    &breadcrumbs::BreadcrumbsTies,
    &della::DellaLinear,
    &della::Della,
    &sce::Sce,
    &ram::Ram,
    &ram::RamPlus,
    &model_stock::ModelStock,
    &nearswap::NearSwap,
    &arcee_fusion::ArceeFusion,
    &expo::Expo,
    &passthrough::Passthrough,
    &formula::ByFormula,
];

/// The method of a name.
pub fn find(name: &str) -> Option<&'static dyn Method> {
    METHODS.iter().copied().find(|method| method.name() == name)
}

/// The methods that take a parameter of this name.
pub(crate) fn taking(parameter: &str) -> Vec<&'static str> {
    let takes = |method: &&&dyn Method| method.parameters().iter().any(|spec| spec.name == parameter);
    METHODS.iter().filter(takes).map(|method| method.name()).collect()
}

/// What to say about a name that is no method's.
pub(crate) fn hint_for(name: &str) -> String {
    let names = METHODS.iter().map(|method| method.name());
    match nearest(name, names.clone()) {
        Some(meant) => format!("did you mean `{meant}`?"),
        None => format!("known methods: {}", names.collect::<Vec<_>>().join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_method_is_found_by_its_name() {
        for method in METHODS {
            assert_eq!(find(method.name()).map(Method::name), Some(method.name()));
        }
        assert!(find("tie").is_none());
        assert_eq!(hint_for("tie"), "did you mean `ties`?");
    }
}
