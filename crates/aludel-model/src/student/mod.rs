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

mod description;
mod parts;

use std::sync::Arc;

use aludel_kernels::nn::{Device, DeviceError};

use crate::config::{FeedForward, ModelConfig, QueryKeyNorm};
use crate::decoder::Decoder;
use crate::error::{Error, Problems};
use crate::load::WeightType;
use crate::names::{FeedForwardPlaces, Inventory, Linear};
use crate::parameters::Parameter;
use crate::source::Source;
use description::{HeadCut, expected_config, student_json};
use parts::{Choice, Part, Side, most_important};

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
        self.bring_parameter(part.from);
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
        self.bring_parameter(linear.weight);
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
