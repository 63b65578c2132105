//! Matches the tensors of two models by their names.

use aludel_checkpoint::{Dtype, is_float};
use serde::Serialize;

use crate::derive::Stored;
use crate::inspect::natural;
use crate::plan::{Facts, Model, Opened};

/// The shapes of a tensor in two models.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Shapes {
    /// The tensor.
    pub tensor: String,
    /// Its sides in the first model.
    pub first: Vec<usize>,
    /// Its sides in the second.
    pub second: Vec<usize>,
}

/// The types of a tensor in two models.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Types {
    /// The tensor.
    pub tensor: String,
    /// Its type in the first model.
    pub first: String,
    /// Its type in the second.
    pub second: String,
}

/// A tensor whose bytes are compared.
pub(super) struct StoredPair {
    pub first: Stored,
    pub second: Stored,
    pub shape: Vec<usize>,
}

/// The tensors of two models, side by side.
#[derive(Default)]
pub(super) struct Matched {
    /// The names of all tensors, in their natural order.
    pub order: Vec<String>,
    /// Those whose values are compared as numbers.
    pub computed: Vec<String>,
    pub stored: Vec<StoredPair>,
    pub only_in_first: Vec<String>,
    pub only_in_second: Vec<String>,
    pub shapes: Vec<Shapes>,
    pub types: Vec<Types>,
}

/// Matches the tensors of the two models. Types that are computed on may differ without a word if `ignore_types`.
pub(super) fn matched(opened: &Opened, ignore_types: bool) -> Matched {
    let (first, second) = (opened.model(0), opened.model(1));
    let mut matched = Matched::default();
    let mut names: Vec<&String> = first.tensors.keys().collect();
    names.extend(second.tensors.keys().filter(|name| !first.has(name)));
    names.sort_by_cached_key(|name| natural(name));
    for name in names {
        match (first.tensors.get(name), second.tensors.get(name)) {
            (Some(a), Some(b)) => matched.pair(name, (first, a), (second, b), ignore_types),
            (Some(_), None) => matched.only_in_first.push(name.clone()),
            (None, _) => matched.only_in_second.push(name.clone()),
        }
        matched.order.push(name.clone());
    }
    matched
}

impl Matched {
    fn pair(&mut self, name: &str, first: (&Model, &Facts), second: (&Model, &Facts), ignore_types: bool) {
        let (a, b) = (first.1, second.1);
        let tensor = name.to_owned();
        let are_computed = is_float(a.dtype) && is_float(b.dtype);
        if a.dtype != b.dtype && !(ignore_types && are_computed) {
            let text = |dtype: Dtype| format!("{dtype:?}");
            self.types.push(Types { tensor: tensor.clone(), first: text(a.dtype), second: text(b.dtype) });
        }
        if a.shape != b.shape {
            self.shapes.push(Shapes { tensor, first: a.shape.clone(), second: b.shape.clone() });
        } else if are_computed {
            self.computed.push(tensor);
        } else if let (true, Some(first), Some(second)) =
            (a.dtype == b.dtype, stored(first.0, name), stored(second.0, name))
        {
            self.stored.push(StoredPair { first, second, shape: a.shape.clone() });
        }
    }
}

fn stored(model: &Model, tensor: &str) -> Option<Stored> {
    Some(Stored { source: model.source()?, tensor: tensor.to_owned() })
}
