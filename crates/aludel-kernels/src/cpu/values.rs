//! Holds what is known between passes: values per tensor, row and column, and the cuts of selections.

use std::sync::Arc;

use super::block::Geometry;
use super::rank::Cut;
use crate::formula::{Extent, Formula, NodeId, Op, binary_f64, unary_f64};

/// Known values, by operation.
#[derive(Clone, Debug)]
pub(crate) struct Values {
    wide: Vec<Option<Vec<f64>>>,
    cuts: Vec<Option<Cut>>,
    /// The cuts of selections within rows.
    row_cuts: Vec<Option<Arc<[Cut]>>>,
}

/// What one reduction over a tensor has come to: a value for the tensor, one for each row or column, or what a selection keeps of it or of each row.
#[derive(Clone, Debug, PartialEq)]
pub struct Statistic(Known);

#[derive(Clone, Debug, PartialEq)]
enum Known {
    Values(Vec<f64>),
    Kept(Cut),
    KeptByRow(Arc<[Cut]>),
}

impl Values {
    /// Nothing but what follows from constants.
    pub(crate) fn new(formula: &Formula, geometry: Geometry) -> Self {
        let count = formula.nodes().len();
        let mut values =
            Self { wide: vec![None; count], cuts: vec![None; count], row_cuts: vec![None; count] };
        values.settle(formula, geometry);
        values
    }

    pub(crate) fn reduced(&mut self, node: NodeId, values: Vec<f64>) {
        self.wide[node.index()] = Some(values);
    }

    pub(crate) fn selected(&mut self, node: NodeId, cut: Cut) {
        self.cuts[node.index()] = Some(cut);
    }

    pub(super) fn selected_by_row(&mut self, node: NodeId, cuts: Vec<Cut>) {
        self.row_cuts[node.index()] = Some(cuts.into());
    }

    /// Takes over what a reduction has come to elsewhere.
    pub(crate) fn take(&mut self, node: NodeId, statistic: Statistic) {
        match statistic.0 {
            Known::Values(values) => self.reduced(node, values),
            Known::Kept(cut) => self.selected(node, cut),
            Known::KeptByRow(cuts) => self.row_cuts[node.index()] = Some(cuts),
        }
    }

    /// What a reduction has come to, once it is known.
    pub(crate) fn statistic(&self, node: NodeId) -> Option<Statistic> {
        let values = self.wide[node.index()].clone().map(Known::Values);
        let kept = || self.cuts[node.index()].map(Known::Kept);
        let by_row = || self.row_cut(node).map(Known::KeptByRow);
        values.or_else(kept).or_else(by_row).map(Statistic)
    }

    pub(crate) fn is_known(&self, node: NodeId) -> bool {
        let at = node.index();
        self.wide[at].is_some() || self.cuts[at].is_some() || self.row_cuts[at].is_some()
    }

    /// The value of an operation below elements; one, or one per row or column.
    pub(crate) fn wide(&self, node: NodeId) -> &[f64] {
        self.wide[node.index()].as_deref().unwrap_or_default()
    }

    pub(crate) fn cut(&self, node: NodeId) -> Option<Cut> {
        self.cuts[node.index()]
    }

    pub(super) fn row_cut(&self, node: NodeId) -> Option<Arc<[Cut]>> {
        self.row_cuts[node.index()].clone()
    }

    /// Computes everything below elements whose operands are known.
    pub(crate) fn settle(&mut self, formula: &Formula, geometry: Geometry) {
        for (node, extent) in formula.ids().zip(formula.extents()) {
            let count = match extent {
                Extent::Element => continue,
                Extent::Tensor => 1,
                Extent::Row => geometry.bands as usize,
                Extent::Column => geometry.columns as usize,
            };
            if self.wide[node.index()].is_none() {
                self.wide[node.index()] = self.compute(formula.op(node), count);
            }
        }
    }

    fn compute(&self, op: Op, count: usize) -> Option<Vec<f64>> {
        let at = |x: NodeId| self.wide[x.index()].as_deref().map(|values| move |i: usize| spread(values, i));
        let rows = 0..count;
        Some(match op {
            Op::Constant(value) => vec![value.0],
            Op::Unary(op, x) => rows.map(at(x)?).map(|x| unary_f64(op, x)).collect(),
            Op::Binary(op, a, b) => {
                let (a, b) = (at(a)?, at(b)?);
                rows.map(|i| binary_f64(op, a(i), b(i))).collect()
            }
            Op::Select(c, a, b) => {
                let (c, a, b) = (at(c)?, at(a)?, at(b)?);
                rows.map(|i| if c(i) != 0.0 { a(i) } else { b(i) }).collect()
            }
            _ => return None,
        })
    }
}

/// One value stands for all rows or columns.
#[inline(always)]
pub(super) fn spread(values: &[f64], row: usize) -> f64 {
    if values.len() == 1 { values[0] } else { values[row] }
}
