//! Makes the tables of rotary position embedding that a step needs and says which of their rows each token uses.
//!
//! In: for each document, its first position and how many follow. Out: for each rotary embedding of the model, tables on the
//! device and row numbers. Tables of embeddings that are the same for every document are kept and grow; a document that is
//! longer than its embedding was made for, under a scaling that depends on the length, has rows of its own, so that a
//! packed step equals its documents one by one.

use std::sync::{Arc, Mutex, PoisonError};

use aludel_kernels::element::Element;
use aludel_kernels::nn::{Device, DeviceError, Direction, Heads};

use crate::config::Rope;

/// Cosines and sines, `[positions, R / 2]` each.
struct Table<D: Device> {
    positions: usize,
    cos: D::Buffer,
    sin: D::Buffer,
}

/// How the rows of a step are turned.
pub(crate) struct Rotation<D: Device> {
    rotated: usize,
    table: Arc<Table<D>>,
    rows: Arc<D::Indices>,
}

/// Positions of one document in a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stretch {
    pub(crate) first: usize,
    pub(crate) count: usize,
}

impl Stretch {
    /// The document's length when the stretch ends.
    fn length(self) -> usize {
        self.first + self.count
    }
}

/// The tables of a model.
pub(crate) struct Rotary<D: Device> {
    ropes: Vec<Rope>,
    /// For each embedding, the table that serves all documents.
    tables: Mutex<Vec<Option<Arc<Table<D>>>>>,
}

impl<D: Device> Rotary<D> {
    pub(crate) fn new(ropes: Vec<Rope>) -> Self {
        let tables = Mutex::new(ropes.iter().map(|_| None).collect());
        Self { ropes, tables }
    }

    /// The rotations of a step, one for each embedding of the model.
    pub(crate) fn rotations(
        &self,
        device: &D,
        stretches: &[Stretch],
    ) -> Result<Vec<Rotation<D>>, DeviceError> {
        let plain = Arc::new(device.indices(&positions(stretches))?);
        let rotation = |index: usize| {
            let rope = &self.ropes[index];
            let longest = stretches.iter().map(|stretch| stretch.length()).max().unwrap_or(0);
            let (table, rows) = if rope.is_plain(longest) {
                (self.shared(device, index, longest)?, Arc::clone(&plain))
            } else {
                let (table, rows) = separate(device, rope, stretches)?;
                (Arc::new(table), Arc::new(rows))
            };
            Ok(Rotation { rotated: rope.rotated, table, rows })
        };
        (0..self.ropes.len()).map(rotation).collect()
    }

    /// The table that serves all documents up to this length.
    fn shared(&self, device: &D, index: usize, longest: usize) -> Result<Arc<Table<D>>, DeviceError> {
        let mut tables = self.tables.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(table) = tables[index].as_ref().filter(|table| table.positions >= longest) {
            return Ok(Arc::clone(table));
        }
        let rope = &self.ropes[index];
        let positions = longest.next_power_of_two().max(SMALLEST_TABLE);
        let mut values = Angles::default();
        values.extend(rope, longest, positions);
        let table = Arc::new(values.table(device)?);
        tables[index] = Some(Arc::clone(&table));
        Ok(table)
    }
}

impl<D: Device> Rotation<D> {
    /// Turns heads in place.
    pub(crate) fn turn(&self, device: &D, direction: Direction, shape: Heads, x: &mut D::Buffer) {
        device.rotate(direction, shape, self.rotated, &self.table.cos, &self.table.sin, &self.rows, x);
    }
}

/// A table with rows of their own for documents that are longer than the embedding was made for.
fn separate<D: Device>(
    device: &D,
    rope: &Rope,
    stretches: &[Stretch],
) -> Result<(Table<D>, D::Indices), DeviceError> {
    let mut angles = Angles::default();
    let shared = stretches.iter().map(|s| s.length()).filter(|&length| rope.is_plain(length)).max();
    angles.extend(rope, shared.unwrap_or(0), shared.unwrap_or(0));
    let mut rows = Vec::new();
    for stretch in stretches {
        let base = if rope.is_plain(stretch.length()) {
            0
        } else {
            let base = angles.positions;
            angles.extend(rope, stretch.length(), stretch.length());
            base
        };
        rows.extend((stretch.first..stretch.length()).map(|position| (base + position) as u32));
    }
    Ok((angles.table(device)?, device.indices(&rows)?))
}

/// Cosines and sines on the host.
#[derive(Default)]
struct Angles {
    positions: usize,
    cos: Vec<f32>,
    sin: Vec<f32>,
}

impl Angles {
    /// Appends rows for positions `0..positions` of a document of `length`.
    fn extend(&mut self, rope: &Rope, length: usize, positions: usize) {
        let frequencies = rope.frequencies(length);
        let amplitude = rope.amplitude();
        for position in 0..positions {
            for frequency in &frequencies {
                let angle = f64::from(position as f32 * frequency);
                self.cos.push((angle.cos() * amplitude) as f32);
                self.sin.push((angle.sin() * amplitude) as f32);
            }
        }
        self.positions += positions;
    }

    fn table<D: Device>(self, device: &D) -> Result<Table<D>, DeviceError> {
        let buffer = |values: &[f32]| {
            let mut buffer = device.zeros(values.len(), Element::F32)?;
            device.write(&mut buffer, 0, values)?;
            Ok::<_, DeviceError>(buffer)
        };
        Ok(Table { positions: self.positions, cos: buffer(&self.cos)?, sin: buffer(&self.sin)? })
    }
}

fn positions(stretches: &[Stretch]) -> Vec<u32> {
    stretches.iter().flat_map(|stretch| (stretch.first..stretch.length()).map(|p| p as u32)).collect()
}

/// Positions of the first table, so that generation does not make one for every few tokens.
const SMALLEST_TABLE: usize = 256;
