//! Reads the values of parameters: scalars, gradients over the layers, and choices by tensor name.
//!
//! In: a node under `parameters:`. Out: a [`Setting`] that answers for any tensor at any layer. Which kind of value a
//! parameter wants is not known here.

use aludel_document::{Content, Cursor, Located, Scalar};

use super::keys::FILTERED;
use crate::problem::{Problem, Problems};

/// A value that may change from layer to layer.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// The same for all layers.
    Scalar(Scalar),
    /// At least one number, spread evenly from the first layer to the last and interpolated between.
    Gradient(Vec<f64>),
}

/// A value that may change from tensor to tensor.
#[derive(Debug, Clone, PartialEq)]
pub enum Setting {
    /// The same for all tensors of a layer.
    Everywhere(Located<Value>),
    /// The first whose filter matches; at least one.
    Filtered(Vec<FilteredValue>),
}

/// A value for the tensors that a filter selects.
#[derive(Debug, Clone, PartialEq)]
pub struct FilteredValue {
    /// A part of the tensor's name; `None` (also written `*`) selects every tensor.
    pub filter: Option<String>,
    /// Their value.
    pub value: Located<Value>,
}

/// Where a tensor stands among the layers, from 0 to 1: 0 for tensors of no layer. A single layer stands at 1, the end of
/// a gradient, as in mergekit.
pub fn layer_position(layer: Option<usize>, layers: usize) -> f64 {
    match layer {
        Some(layer) if layers > 1 => layer as f64 / (layers - 1) as f64,
        Some(_) => 1.0,
        None => 0.0,
    }
}

impl Setting {
    /// The value for a tensor at a position from 0 to 1; `None` when no filter selects it.
    pub fn resolve(&self, tensor: &str, position: f64) -> Option<Located<Scalar>> {
        let value = match self {
            Self::Everywhere(value) => value,
            Self::Filtered(choices) => &choices.iter().find(|choice| choice.selects(tensor))?.value,
        };
        Some(Located { value: value.value.at(position), place: value.place.clone() })
    }

    /// The values that it may resolve to, gradients whole.
    pub fn values(&self) -> impl Iterator<Item = &Located<Value>> {
        let (single, choices) = match self {
            Self::Everywhere(value) => (Some(value), [].as_slice()),
            Self::Filtered(choices) => (None, choices.as_slice()),
        };
        single.into_iter().chain(choices.iter().map(|choice| &choice.value))
    }

    /// Reads a setting; `None` when it has no usable value, with the reasons among the problems.
    pub(super) fn read(cursor: &Cursor<'_>, problems: &mut Problems) -> Option<Self> {
        match cursor.items() {
            Ok(items) if items.iter().any(|item| item.node.is_mapping()) => read_filtered(&items, problems),
            _ => problems.take(read_value(cursor)).map(Self::Everywhere),
        }
    }
}

impl FilteredValue {
    fn selects(&self, tensor: &str) -> bool {
        self.filter.as_ref().is_none_or(|part| tensor.contains(part.as_str()))
    }

    fn read(cursor: &Cursor<'_>, problems: &mut Problems) -> Option<Self> {
        if !cursor.node.is_mapping() {
            problems.push(cursor.mismatch("`filter` and `value`, as in the rest of this list"));
            return None;
        }
        cursor.check_keys(FILTERED, "", problems);
        let filter = match cursor.field("filter").map(|filter| filter.text("a part of a tensor's name")) {
            Some(text) => Some(problems.take(text)?.to_owned()).filter(|part| part != "*"),
            None => None,
        };
        let missing = || cursor.problem("`value` is missing").with_hint("add `value:` beside `filter:`");
        let value = cursor.field("value").ok_or_else(missing).and_then(|value| read_value(&value));
        Some(Self { filter, value: problems.take(value)? })
    }
}

impl Value {
    /// The value at a position from 0, the first layer, to 1, the last.
    fn at(&self, position: f64) -> Scalar {
        match self {
            Self::Scalar(scalar) => scalar.clone(),
            Self::Gradient(points) => Scalar::Number(interpolate(points, position)),
        }
    }
}

/// Straight lines between points that are spread evenly over 0 to 1. Positions outside count as the nearer end.
fn interpolate(points: &[f64], position: f64) -> f64 {
    let last = points.len() - 1;
    let scaled = position.clamp(0.0, 1.0) * last as f64;
    let left = (scaled as usize).min(last);
    let right = (left + 1).min(last);
    let fraction = scaled - left as f64;
    (1.0 - fraction) * points[left] + fraction * points[right]
}

fn read_filtered(items: &[Cursor<'_>], problems: &mut Problems) -> Option<Setting> {
    let choices: Vec<Option<FilteredValue>> =
        items.iter().map(|item| FilteredValue::read(item, problems)).collect();
    choices.into_iter().collect::<Option<_>>().map(Setting::Filtered)
}

fn read_value(cursor: &Cursor<'_>) -> Result<Located<Value>, Problem> {
    let value = match &cursor.node.content {
        Content::Sequence(_) => Value::Gradient(read_gradient(cursor)?),
        Content::Mapping(_) => {
            return Err(cursor
                .mismatch("a value or a list")
                .with_hint("put `filter` and `value` into a list: start with `- filter:`"));
        }
        Content::Plain(_) | Content::Quoted(_) => Value::Scalar(cursor.scalar()?),
    };
    Ok(cursor.locate(value))
}

fn read_gradient(cursor: &Cursor<'_>) -> Result<Vec<f64>, Problem> {
    let points = cursor.items()?;
    if points.is_empty() {
        return Err(cursor
            .problem("the list is empty")
            .with_hint("give one number for each point of the gradient"));
    }
    points.iter().map(read_point).collect()
}

fn read_point(cursor: &Cursor<'_>) -> Result<f64, Problem> {
    let mismatch = || cursor.mismatch("a number, as a list of values is a gradient over the layers");
    match &cursor.node.content {
        Content::Plain(_) | Content::Quoted(_) => match cursor.scalar()? {
            Scalar::Number(number) => Ok(number),
            _ => Err(mismatch()),
        },
        _ => Err(mismatch()),
    }
}
