//! Has a method take its statistics for each row of a matrix, or for each head of an attention projection, instead of the whole tensor.
//!
//! In: the recipe's `granularity` for a tensor, and where the heads of it lie ([`Tensor::heads`]). Out: the axis of the method's reductions, and
//! which elements they are over. Every group of elements comes out as if it were a tensor of its own. Tensors that have no heads, and vectors
//! under `row`, stay whole.

use aludel_kernels::cpu::Geometry;
use aludel_kernels::formula::{Axis, Expr};

use super::Tensor;
use crate::problem::Problem;
use crate::recipe::{DefaultValue, Kind, Level, ParameterSpec};

pub(super) const GRANULARITY: ParameterSpec = ParameterSpec {
    name: NAME,
    level: Level::Global,
    kind: Kind::Choice(&["tensor", "row", "head"]),
    default: Some(DefaultValue::Text("tensor")),
    summary: "what statistics are taken over: the tensor, each row of a matrix, each attention head",
};

pub(crate) const NAME: &str = "granularity";

/// How the elements of a tensor are grouped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RowLayout {
    /// Elements of a row.
    pub columns: u64,
    /// Every so many-th row counts to the same group, where rows are not groups by themselves.
    pub bands: Option<u64>,
}

impl RowLayout {
    /// Each by itself.
    pub const fn of(columns: u64) -> Self {
        Self { columns, bands: None }
    }

    /// The geometry of a tensor of so many elements.
    pub fn geometry(self, elements: u64) -> Geometry {
        let geometry = Geometry::new(elements, self.columns);
        self.bands.map_or(geometry, |bands| geometry.in_bands(bands))
    }
}

/// What a method takes its statistics over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Groups {
    pub axis: Axis,
    /// Elements of each group.
    pub elements: u64,
}

impl Groups {
    /// 1 for the `count` largest magnitudes of each group, else 0.
    pub(super) fn top(self, x: Expr<'_>, count: u64) -> Expr<'_> {
        if self.axis == Axis::Tensor { x.top(count) } else { x.row_top(count) }
    }
}

impl Tensor<'_> {
    /// The rows that the recipe asks for; `None` where the tensor stays whole.
    pub(super) fn asked_rows(&self) -> Result<Option<RowLayout>, Problem> {
        match self.choice(NAME)? {
            "row" if self.shape.len() > 1 => Ok(Some(RowLayout::of(self.columns))),
            "head" => self.heads.map_err(|reason| {
                let problem = self.problem_of_merge(NAME, format!("no heads can be told apart: {reason}"));
                problem.with_hint("merge by `granularity: row`, or say by a filter which tensors are meant")
            }),
            _ => Ok(None),
        }
    }

    /// What statistics of the tensor are taken over.
    pub(super) fn groups(&self) -> Result<Groups, Problem> {
        Ok(match self.asked_rows()? {
            None => Groups { axis: Axis::Tensor, elements: self.elements },
            Some(rows) => {
                let bands = rows.geometry(self.elements).bands.max(1);
                Groups { axis: Axis::Row, elements: self.elements / bands }
            }
        })
    }

    /// Refuses another parameter that says what statistics are taken over.
    pub(super) fn refuse_granularity_beside(&self, other: &'static str) -> Result<(), Problem> {
        if self.choice(NAME)? == "tensor" {
            return Ok(());
        }
        let message = format!("`{other}` and `{NAME}` both say what angles are taken over");
        Err(self.problem_of_merge(NAME, message).with_hint(format!("leave `{other}` out")))
    }
}
