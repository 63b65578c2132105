//! Cuts a student out of a teacher: some of its layers, some of its heads, a part of its feed-forward width.
//!
//! In: a loaded teacher and a [`Cut`]. Out: a [`Decoder`] with trained parameters that are copies of the teacher's. Heads and
//! feed-forward units are kept by importance, each layer on its own, in their order; it looks at weights only, not at
//! data:
//!
//! - unit `j` of a feed-forward block: `|gate[j, :]| * |up[j, :]| * |down[:, j]|`;
//! - query head `h`: `|value[k, :]| * |output[:, h]|`, `k` its key and value head;
//! - key and value head `k` with its query heads: the root of the sum of their squares;
//!
//! where `|.|` is the Frobenius norm. A product, because scaling one factor up and another one down changes nothing that
//! the model computes. Of equal ones the first is kept. Biases and norms do not count.

use std::sync::Arc;

use aludel_checkpoint::Config;
use aludel_kernels::nn::{Device, DeviceError};
use serde_json::{Value, json};

use crate::config::{FeedForward, ModelConfig, QueryKeyNorm};
use crate::decoder::Decoder;
use crate::error::{Error, Problems};
use crate::load::WeightType;
use crate::names::{FeedForwardPlaces, Inventory, LayerPlaces, Linear};
use crate::parameters::Parameter;
use crate::source::Source;

/// What a student takes over.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cut {
    /// Which layers.
    pub layers: LayerChoice,
    /// How many query heads of each layer; all where it is not given. A multiple of the query heads that share a key head
    /// keeps whole groups, another multiple of the number of key heads keeps as many of each group.
    pub heads: Option<usize>,
    /// Inner width of the feed-forward blocks; all of it where it is not given.
    pub feed_forward: Option<usize>,
}

/// Which of the teacher's layers a student takes over.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum LayerChoice {
    /// All.
    #[default]
    All,
    /// Layers 0, n, 2n and so on.
    Every(usize),
    /// These, in this order; one may occur twice.
    Listed(Vec<usize>),
}

impl<D: Device> Decoder<D> {
    /// A student cut out of `teacher`, on the same device, to be trained.
    ///
    /// Errors: [`Error::Change`] for a cut that the teacher does not allow; what the device says.
    pub fn from_teacher(teacher: &Self, cut: &Cut, weights: WeightType) -> Result<Self, Error> {
        let config = teacher.config();
        let layers = chosen_layers(&cut.layers, config.layers.len())?;
        let heads = cut.heads.map(|heads| HeadCut::new(config, heads)).transpose()?;
        check_width(config, cut.feed_forward)?;
        if teacher.adapters().is_some() {
            return Err(Error::change("the teacher has adapters; save it merged and cut that"));
        }
        let expected = expected_config(config, &layers, heads, cut.feed_forward);
        let json = student_json(&teacher.source().config, config, &layers, &expected);
        // The student is what its saved config says, or there is none.
        if ModelConfig::parse(&json)? != expected {
            return Err(Error::change("this choice of layers cannot be written down in a config.json"));
        }
        let inventory = Inventory::new(&expected);
        let mut sources =
            vec![Part { from: 0, rows: Side::All, columns: Side::All }; inventory.parameters.len()];
        let places = teacher.places();
        sources[inventory.places.embedding].from = places.embedding;
        sources[inventory.places.norm].from = places.norm;
        sources[inventory.places.head].from = places.head;
        for (layer, to) in layers.iter().zip(&inventory.places.layers) {
            let choice = teacher.choose(*layer, heads, cut.feed_forward)?;
            choice.describe(&places.layers[*layer], to, config.layers[*layer].attention.width, &mut sources);
        }
        let parameters = inventory.parameters.iter().zip(&sources).map(|(named, part)| {
            let buffer = teacher.taken(part, named.shape.iter().product(), weights)?;
            let (name, shape) = (named.name.clone(), named.shape.clone());
            Ok(Parameter { name, shape, buffer, trainable: true })
        });
        let parameters = parameters.collect::<Result<_, DeviceError>>()?;
        let source = Source { config: json, ..teacher.source().clone() };
        Ok(Self::assemble(Arc::clone(teacher.device()), expected, inventory, parameters, source))
    }

    /// The values of one parameter, cut.
    fn taken(&self, part: &Part, elements: usize, weights: WeightType) -> Result<D::Buffer, DeviceError> {
        let device = self.device();
        let mut buffer = device.zeros(elements, weights.element())?;
        let parameter = self.parameters().at(part.from);
        if part.rows == Side::All && part.columns == Side::All {
            device.copy(&parameter.buffer, &mut buffer);
            return Ok(buffer);
        }
        let values = device.read(&parameter.buffer, 0..parameter.elements())?;
        let columns = parameter.shape.get(1).copied().unwrap_or(1);
        let kept = part.columns.indices(columns);
        let rows = part.rows.indices(parameter.shape[0]);
        let cut: Vec<f32> = rows
            .iter()
            .flat_map(|row| {
                let row = &values[row * columns..(row + 1) * columns];
                kept.iter().map(move |&column| row[column])
            })
            .collect();
        device.write(&mut buffer, 0, &cut)?;
        Ok(buffer)
    }

    /// What of one layer is kept.
    fn choose(
        &self,
        layer: usize,
        heads: Option<HeadCut>,
        width: Option<usize>,
    ) -> Result<Choice, DeviceError> {
        let places = &self.places().layers[layer];
        let attention = &self.config().layers[layer].attention;
        let row_norms = attention.query_key_norm == QueryKeyNorm::Row;
        let mut choice = Choice { row_norms, ..Choice::default() };
        if let Some(cut) = heads {
            let group = attention.heads / attention.key_heads;
            let values = self.norms(&places.value, Along::Rows, attention.width)?;
            let outputs = self.norms(&places.output, Along::Columns, attention.width)?;
            let of_head: Vec<f64> =
                outputs.iter().enumerate().map(|(head, output)| output * values[head / group]).collect();
            choice.keep_heads(cut, group, &of_head);
        }
        if let (Some(width), FeedForwardPlaces::Dense { gate, up, down }) = (width, &places.feed_forward) {
            let gates = self.norms(gate, Along::Rows, 1)?;
            let ups = self.norms(up, Along::Rows, 1)?;
            let downs = self.norms(down, Along::Columns, 1)?;
            let importance: Vec<f64> =
                gates.iter().zip(&ups).zip(&downs).map(|((gate, up), down)| gate * up * down).collect();
            choice.units = Some(most_important(&importance, width));
        }
        Ok(choice)
    }

    /// Frobenius norms of runs of `width` rows, or columns, of a matrix.
    fn norms(&self, linear: &Linear, along: Along, width: usize) -> Result<Vec<f64>, DeviceError> {
        let (rows, columns) = (linear.outputs, linear.inputs);
        let values = self.device().read(self.parameters().buffer(linear.weight), 0..rows * columns)?;
        let count = if along == Along::Rows { rows } else { columns } / width;
        let mut squares = vec![0.0; count];
        for (row, values) in values.chunks_exact(columns).enumerate() {
            for (column, value) in values.iter().enumerate() {
                let run = if along == Along::Rows { row } else { column } / width;
                squares[run] += f64::from(*value).powi(2);
            }
        }
        Ok(squares.into_iter().map(f64::sqrt).collect())
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Along {
    Rows,
    Columns,
}

/// How heads are cut.
#[derive(Clone, Copy, Debug)]
enum HeadCut {
    /// So many groups stay whole.
    Groups(usize),
    /// So many heads of each group stay.
    Within(usize),
}

impl HeadCut {
    fn new(config: &ModelConfig, heads: usize) -> Result<Self, Error> {
        // All layers have the same heads: config.json has one number for them.
        let Some(attention) = config.layers.first().map(|layer| &layer.attention) else {
            return Err(Error::change("a model without layers has no heads"));
        };
        let (all, groups) = (attention.heads, attention.key_heads);
        let group = all / groups;
        let fits = |heads: usize| {
            (heads.is_multiple_of(group) || heads.is_multiple_of(groups))
                && config.hidden.is_multiple_of(heads)
        };
        if heads == 0 || heads > all || !fits(heads) {
            let allowed: Vec<String> =
                (1..=all).filter(|&heads| fits(heads)).map(|heads| heads.to_string()).collect();
            let detail = format!("{heads} of {all} heads cannot be kept; {} can", allowed.join(", "));
            return Err(Error::change(detail));
        }
        Ok(if heads.is_multiple_of(group) {
            Self::Groups(heads / group)
        } else {
            Self::Within(heads / groups)
        })
    }
}

/// What of one layer is kept; all where nothing is said.
#[derive(Default)]
struct Choice {
    /// Norms of queries and keys have a weight for each element of a row.
    row_norms: bool,
    heads: Option<Vec<usize>>,
    key_heads: Option<Vec<usize>>,
    units: Option<Vec<usize>>,
}

impl Choice {
    fn keep_heads(&mut self, cut: HeadCut, group: usize, importance: &[f64]) {
        let members = |key_head: usize| key_head * group..(key_head + 1) * group;
        match cut {
            HeadCut::Groups(count) => {
                let of_group: Vec<f64> = importance
                    .chunks_exact(group)
                    .map(|heads| heads.iter().map(|head| head * head).sum::<f64>().sqrt())
                    .collect();
                let kept = most_important(&of_group, count);
                self.heads = Some(kept.iter().flat_map(|&key_head| members(key_head)).collect());
                self.key_heads = Some(kept);
            }
            HeadCut::Within(count) => {
                let of_group = importance.chunks_exact(group).enumerate().flat_map(|(key_head, heads)| {
                    most_important(heads, count).into_iter().map(move |head| key_head * group + head)
                });
                self.heads = Some(of_group.collect());
            }
        }
    }

    /// Says for every parameter of a student's layer where it comes from.
    fn describe(&self, from: &LayerPlaces, to: &LayerPlaces, head_width: usize, sources: &mut [Part]) {
        let heads = Side::of(&self.heads, head_width);
        let key_heads = Side::of(&self.key_heads, head_width);
        let units = Side::of(&self.units, 1);
        let mut set = |from: usize, to: usize, rows: &Side, columns: &Side| {
            sources[to] = Part { from, rows: rows.clone(), columns: columns.clone() };
        };
        let mut linear = |from: &Linear, to: &Linear, rows: &Side, columns: &Side| {
            set(from.weight, to.weight, rows, columns);
            if let Some((from, to)) = from.bias.zip(to.bias) {
                set(from, to, rows, &Side::All);
            }
        };
        linear(&from.query, &to.query, &heads, &Side::All);
        linear(&from.key, &to.key, &key_heads, &Side::All);
        linear(&from.value, &to.value, &key_heads, &Side::All);
        linear(&from.output, &to.output, &Side::All, &heads);
        match (&from.feed_forward, &to.feed_forward) {
            (
                FeedForwardPlaces::Dense { gate, up, down },
                FeedForwardPlaces::Dense { gate: to_gate, up: to_up, down: to_down },
            ) => {
                linear(gate, to_gate, &units, &Side::All);
                linear(up, to_up, &units, &Side::All);
                linear(down, to_down, &Side::All, &units);
            }
            (
                FeedForwardPlaces::Experts { router, experts },
                FeedForwardPlaces::Experts { router: to_router, experts: to_experts },
            ) => {
                linear(router, to_router, &Side::All, &Side::All);
                let firsts = [
                    (experts.gate, to_experts.gate),
                    (experts.up, to_experts.up),
                    (experts.down, to_experts.down),
                ];
                for (from, to) in firsts {
                    for expert in 0..experts.count {
                        set(from + expert, to + expert, &Side::All, &Side::All);
                    }
                }
            }
            _ => unreachable!("a student's layer is of its teacher's kind: the configs were compared"),
        }
        // One weight for all elements of a row is cut as the row is, one for each head is not.
        let of_heads = if self.row_norms { &heads } else { &Side::All };
        let of_keys = if self.row_norms { &key_heads } else { &Side::All };
        let norms = [
            (from.query_norm, to.query_norm, of_heads),
            (from.key_norm, to.key_norm, of_keys),
            (from.attention_norms.before, to.attention_norms.before, &Side::All),
            (from.attention_norms.after, to.attention_norms.after, &Side::All),
            (from.feed_forward_norms.before, to.feed_forward_norms.before, &Side::All),
            (from.feed_forward_norms.after, to.feed_forward_norms.after, &Side::All),
        ];
        for (from, to, rows) in norms {
            if let Some((from, to)) = from.zip(to) {
                set(from, to, rows, &Side::All);
            }
        }
    }
}

/// Where a student's parameter comes from.
#[derive(Clone, Debug)]
struct Part {
    from: usize,
    rows: Side,
    columns: Side,
}

/// What is kept along one side of a matrix.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Side {
    All,
    /// These runs of so many rows or columns.
    Runs {
        width: usize,
        kept: Vec<usize>,
    },
}

impl Side {
    fn of(kept: &Option<Vec<usize>>, width: usize) -> Self {
        kept.clone().map_or(Self::All, |kept| Self::Runs { width, kept })
    }

    fn indices(&self, len: usize) -> Vec<usize> {
        match self {
            Self::All => (0..len).collect(),
            Self::Runs { width, kept } => {
                kept.iter().flat_map(|run| run * width..(run + 1) * width).collect()
            }
        }
    }
}

/// The positions of the `count` largest, ascending; of equal ones the first.
fn most_important(importance: &[f64], count: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..importance.len()).collect();
    order.sort_by(|&a, &b| importance[b].total_cmp(&importance[a]));
    order.truncate(count);
    order.sort_unstable();
    order
}

fn chosen_layers(choice: &LayerChoice, count: usize) -> Result<Vec<usize>, Error> {
    let layers: Vec<usize> = match choice {
        LayerChoice::All => (0..count).collect(),
        LayerChoice::Every(0) => return Err(Error::change("every 0th layer was asked for")),
        LayerChoice::Every(step) => (0..count).step_by(*step).collect(),
        LayerChoice::Listed(layers) => layers.clone(),
    };
    let outside = layers.iter().filter(|&&layer| layer >= count);
    let mut problems: Vec<String> =
        outside.map(|layer| format!("layer {layer} was asked for of {count}")).collect();
    if layers.is_empty() {
        problems.push("no layer was asked for".into());
    }
    Problems::none_or(problems, Error::Change)?;
    Ok(layers)
}

fn check_width(config: &ModelConfig, width: Option<usize>) -> Result<(), Error> {
    let Some(width) = width else { return Ok(()) };
    let wrong = config.layers.iter().find_map(|layer| match layer.feed_forward {
        FeedForward::Dense { width: all, .. } if width == 0 || width > all => {
            Some(format!("{width} of {all} feed-forward units cannot be kept"))
        }
        FeedForward::Dense { .. } => None,
        FeedForward::Experts { .. } => Some("experts are not cut; leave their width as it is".into()),
    });
    wrong.map_or(Ok(()), |wrong| Err(Error::change(wrong)))
}

/// The student, described.
fn expected_config(
    config: &ModelConfig,
    layers: &[usize],
    heads: Option<HeadCut>,
    width: Option<usize>,
) -> ModelConfig {
    let mut student = config.clone();
    student.layers = layers.iter().map(|&layer| config.layers[layer].clone()).collect();
    for layer in &mut student.layers {
        let attention = &mut layer.attention;
        match heads {
            Some(HeadCut::Groups(groups)) => {
                attention.heads = attention.heads / attention.key_heads * groups;
                attention.key_heads = groups;
            }
            Some(HeadCut::Within(heads)) => attention.heads = heads * attention.key_heads,
            None => {}
        }
        if let (Some(kept), FeedForward::Dense { width, .. }) = (width, &mut layer.feed_forward) {
            *width = kept;
        }
    }
    student
}

/// The student's config.json: the teacher's with what changed, and lists where the teacher's has rules for its layers.
fn student_json(teacher: &Config, config: &ModelConfig, layers: &[usize], student: &ModelConfig) -> Config {
    let mut json = teacher.with("num_hidden_layers", layers.len().into());
    if let Some(layer) = student.layers.first() {
        let attention = &layer.attention;
        let before = &config.layers[layers[0]].attention;
        if attention.heads != before.heads {
            json = json
                .with("num_attention_heads", attention.heads.into())
                .with("num_key_value_heads", attention.key_heads.into())
                .with("head_dim", attention.width.into());
        }
    }
    let width = student.layers.iter().find_map(|layer| match layer.feed_forward {
        FeedForward::Dense { width, .. } => Some(width),
        FeedForward::Experts { .. } => None,
    });
    if let Some(width) = width {
        json = json.with("intermediate_size", width.into());
    }
    if config.family.has_layer_types() {
        let types = student.layers.iter().map(|layer| match layer.attention.window {
            Some(_) => "sliding_attention",
            None => "full_attention",
        });
        json = json.with("layer_types", types.collect::<Vec<_>>().into());
    }
    if json.value("no_rope_layers").is_some()
        || config.layers.iter().any(|layer| layer.attention.rope.is_none())
    {
        let flags = student.layers.iter().map(|layer| u8::from(layer.attention.rope.is_some()));
        json = json.with("no_rope_layers", flags.collect::<Vec<_>>().into());
    }
    if json.value("decoder_sparse_step").is_some() || json.value("mlp_only_layers").is_some() {
        let is_dense = |layer: &FeedForward| matches!(layer, FeedForward::Dense { .. });
        let dense: Vec<usize> =
            (0..layers.len()).filter(|&layer| is_dense(&student.layers[layer].feed_forward)).collect();
        json = json.with("mlp_only_layers", dense.into()).with("decoder_sparse_step", json!(1));
    }
    if json.value("max_window_layers").and_then(Value::as_u64).is_some_and(|n| n > layers.len() as u64) {
        json = json.with("max_window_layers", layers.len().into());
    }
    json
}
