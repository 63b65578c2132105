//! Defines what a formula computes, one operation and one element at a time.
//!
//! In: whole tensors in f32. Out: the whole output tensor in f32. This is the specification that executors are held
//! to: elementwise operations agree with it bit for bit, reductions to f64 rounding. It is not for use on real
//! tensors.

use super::{Axis, Binary, Extent, Formula, NodeId, Op, Outcome, Unary, elementary};
use crate::element::rounded_to_e4m3;
use crate::random::{self, StreamKey};

/// Computes a formula by its definition; of one with scales, the quotients and then the scales; the figures of one that measures,
/// rounded. All inputs have the same length, a
/// multiple of `columns` (the row length).
pub fn interpret(formula: &Formula, inputs: &[&[f32]], columns: usize, streams: &[StreamKey]) -> Vec<f32> {
    interpret_in_bands(formula, inputs, (columns, usize::MAX), streams)
}

/// As [`interpret()`], where rows whose numbers are equal modulo `bands` count as one.
pub fn interpret_in_bands(
    formula: &Formula,
    inputs: &[&[f32]],
    (columns, bands): (usize, usize),
    streams: &[StreamKey],
) -> Vec<f32> {
    let elements = inputs.first().map_or(0, |input| input.len());
    let columns = columns.max(1);
    let bands = bands.min(elements / columns).max(1);
    let mut machine = Machine { formula, inputs, streams, elements, columns, bands, values: Vec::new() };
    for op in formula.nodes() {
        let value = machine.value(op);
        machine.values.push(value);
    }
    match formula.outcome() {
        Outcome::Tensor(output) => (0..elements).map(|i| machine.element(*output, i)).collect(),
        Outcome::Scaled([output, scales]) => {
            let quotients = (0..elements).map(|i| machine.element(*output, i));
            quotients.chain((0..machine.bands).map(|row| machine.wide(*scales, row) as f32)).collect()
        }
        Outcome::Figures(figures) => figures.iter().map(|&node| machine.wide(node, 0) as f32).collect(),
    }
}

enum Value {
    /// Per tensor, row or column.
    Wide(Extent, Vec<f64>),
    Element(Vec<f32>),
}

struct Machine<'a> {
    formula: &'a Formula,
    inputs: &'a [&'a [f32]],
    streams: &'a [StreamKey],
    elements: usize,
    columns: usize,
    /// How many values there are by row.
    bands: usize,
    values: Vec<Value>,
}

impl Machine<'_> {
    fn value(&self, op: &Op) -> Value {
        match *op {
            Op::Input(input) => Value::Element(self.inputs[input as usize].to_vec()),
            Op::Constant(value) => Value::Wide(Extent::Tensor, vec![value.0]),
            Op::Random(stream) => {
                let key = self.streams[stream as usize];
                Value::Element((0..self.elements as u64).map(|i| random::uniform(key, i)).collect())
            }
            Op::Unary(op, x) => self.map(&[x], |v| unary_f32(op, v[0]), |v| unary_f64(op, v[0])),
            Op::Binary(op, a, b) => {
                self.map(&[a, b], |v| binary_f32(op, v[0], v[1]), |v| binary_f64(op, v[0], v[1]))
            }
            Op::Select(c, a, b) => self.map(
                &[c, a, b],
                |v| if v[0] != 0.0 { v[1] } else { v[2] },
                |v| if v[0] != 0.0 { v[1] } else { v[2] },
            ),
            Op::Sum(x, axis) => self.fold(axis, 0.0, |i| f64::from(self.element(x, i)), |a, b| a + b),
            Op::Dot(x, y, axis) => {
                let product = |i| f64::from(self.element(x, i)) * f64::from(self.element(y, i));
                self.fold(axis, 0.0, product, |a, b| a + b)
            }
            Op::Largest(x, axis) => self.fold(axis, 0.0, |i| f64::from(self.element(x, i).abs()), f64::max),
            Op::Greatest(x, axis) => {
                self.fold(axis, f64::NEG_INFINITY, |i| f64::from(self.element(x, i)), f64::max)
            }
            Op::Top(x, count) => Value::Element(self.top(x, self.count(count))),
            Op::Kth(x, count) => Value::Wide(Extent::Tensor, vec![self.kth(x, self.count(count))]),
            Op::Rank(x) => Value::Element(self.ranks(x)),
            Op::RowTop(x, count) => Value::Element(self.row_top(x, self.count(count))),
        }
    }

    fn map(&self, operands: &[NodeId], f: impl Fn(&[f32]) -> f32, g: impl Fn(&[f64]) -> f64) -> Value {
        let extents = self.formula.extents();
        let extent = operands.iter().map(|x| extents[x.index()]).fold(Extent::Tensor, Extent::join);
        let count = match extent {
            Extent::Tensor => 1,
            Extent::Row => self.bands,
            Extent::Column => self.columns,
            Extent::Element => {
                let at = |i| f(&operands.iter().map(|&x| self.element(x, i)).collect::<Vec<_>>());
                return Value::Element((0..self.elements).map(at).collect());
            }
        };
        let at = |row| g(&operands.iter().map(|&x| self.wide(x, row)).collect::<Vec<_>>());
        Value::Wide(extent, (0..count).map(at).collect())
    }

    fn fold(
        &self,
        axis: Axis,
        start: f64,
        value: impl Fn(usize) -> f64,
        combine: impl Fn(f64, f64) -> f64,
    ) -> Value {
        let (extent, count) = match axis {
            Axis::Tensor => (Extent::Tensor, 1),
            Axis::Row => (Extent::Row, self.bands),
            Axis::Column => (Extent::Column, self.columns),
        };
        let mut values = vec![start; count];
        for i in 0..self.elements {
            let group = match axis {
                Axis::Tensor => 0,
                Axis::Row => self.band(i),
                Axis::Column => i % self.columns,
            };
            values[group] = combine(values[group], value(i));
        }
        Value::Wide(extent, values)
    }

    fn count(&self, count: NodeId) -> usize {
        self.wide(count, 0) as usize
    }

    fn magnitude(&self, x: NodeId, i: usize) -> u32 {
        self.element(x, i).to_bits() & 0x7fff_ffff
    }

    /// All elements, the largest magnitude first, the lowest flat index first among equals.
    fn order(&self, x: NodeId) -> Vec<usize> {
        let mut order: Vec<usize> = (0..self.elements).collect();
        order.sort_by_key(|&i| (std::cmp::Reverse(self.magnitude(x, i)), i));
        order
    }

    fn top(&self, x: NodeId, count: usize) -> Vec<f32> {
        let mut kept = vec![0.0; self.elements];
        for &i in self.order(x).iter().take(count) {
            kept[i] = 1.0;
        }
        kept
    }

    fn row_top(&self, x: NodeId, count: usize) -> Vec<f32> {
        let mut kept = vec![0.0; self.elements];
        let order = self.order(x);
        for band in 0..self.bands {
            let of_band = order.iter().filter(|&&i| self.band(i) == band);
            of_band.take(count).for_each(|&i| kept[i] = 1.0);
        }
        kept
    }

    fn kth(&self, x: NodeId, count: usize) -> f64 {
        match count.checked_sub(1) {
            None => f64::INFINITY,
            Some(at) => {
                self.order(x).get(at).map_or(0.0, |&i| f64::from(f32::from_bits(self.magnitude(x, i))))
            }
        }
    }

    fn ranks(&self, x: NodeId) -> Vec<f32> {
        let mut ranks = vec![0.0; self.elements];
        for row in 0..self.rows() {
            let mut order: Vec<usize> = (row * self.columns..(row + 1) * self.columns).collect();
            order.sort_by_key(|&i| (self.magnitude(x, i), i));
            (0..).zip(order).for_each(|(rank, i): (u32, usize)| ranks[i] = rank as f32);
        }
        ranks
    }

    fn rows(&self) -> usize {
        self.elements / self.columns
    }

    fn band(&self, i: usize) -> usize {
        i / self.columns % self.bands
    }

    fn element(&self, node: NodeId, i: usize) -> f32 {
        match &self.values[node.index()] {
            Value::Element(values) => values[i],
            Value::Wide(Extent::Column, _) => self.wide(node, i % self.columns) as f32,
            Value::Wide(..) => self.wide(node, self.band(i)) as f32,
        }
    }

    fn wide(&self, node: NodeId, group: usize) -> f64 {
        match &self.values[node.index()] {
            Value::Wide(_, values) => values[if values.len() == 1 { 0 } else { group }],
            Value::Element(_) => unreachable!("verified: a value per element never meets a lower extent"),
        }
    }
}

/// The definition of every operation with one operand, at the extents above elements.
pub(crate) fn unary_f64(op: Unary, x: f64) -> f64 {
    match op {
        Unary::Negate => -x,
        Unary::Absolute => x.abs(),
        Unary::SquareRoot => x.sqrt(),
        Unary::Exponential => elementary::exp(x),
        Unary::ExponentialLessOne => elementary::exp_m1(x),
        Unary::Logarithm => elementary::ln(x),
        Unary::LogarithmOfOneMore => elementary::ln_1p(x),
        Unary::RoundToE4m3 => f64::from(rounded_to_e4m3(x as f32)),
        Unary::Sine => x.sin(),
        Unary::Cosine => x.cos(),
        Unary::ArcCosine => x.acos(),
    }
}

/// The definition of every operation with two operands, at the extents above elements.
pub(crate) fn binary_f64(op: Binary, a: f64, b: f64) -> f64 {
    match op {
        Binary::Add => a + b,
        Binary::Subtract => a - b,
        Binary::Multiply => a * b,
        Binary::Divide => a / b,
        Binary::Minimum => {
            if b < a {
                b
            } else {
                a
            }
        }
        Binary::Maximum => {
            if b > a {
                b
            } else {
                a
            }
        }
        Binary::Less => f64::from(u8::from(a < b)),
        Binary::LessOrEqual => f64::from(u8::from(a <= b)),
        Binary::Equal => f64::from(u8::from(a == b)),
    }
}

fn unary_f32(op: Unary, x: f32) -> f32 {
    match op {
        Unary::Negate => -x,
        Unary::Absolute => x.abs(),
        Unary::SquareRoot => x.sqrt(),
        Unary::RoundToE4m3 => rounded_to_e4m3(x),
        Unary::Exponential | Unary::ExponentialLessOne | Unary::Logarithm | Unary::LogarithmOfOneMore => {
            unary_f64(op, f64::from(x)) as f32
        }
        Unary::Sine | Unary::Cosine | Unary::ArcCosine => unreachable!("verified: not on elements"),
    }
}

fn binary_f32(op: Binary, a: f32, b: f32) -> f32 {
    match op {
        Binary::Add => a + b,
        Binary::Subtract => a - b,
        Binary::Multiply => a * b,
        Binary::Divide => a / b,
        Binary::Minimum => {
            if b < a {
                b
            } else {
                a
            }
        }
        Binary::Maximum => {
            if b > a {
                b
            } else {
                a
            }
        }
        Binary::Less => f32::from(u8::from(a < b)),
        Binary::LessOrEqual => f32::from(u8::from(a <= b)),
        Binary::Equal => f32::from(u8::from(a == b)),
    }
}

#[cfg(test)]
mod tests {
    use super::super::Graph;
    use super::*;

    #[test]
    fn the_definition_agrees_with_values_worked_by_hand() {
        let graph = Graph::new();
        let (x, y) = (graph.input(0), graph.input(1));
        let out = x * y.sum(Axis::Row) + x.dot(y, Axis::Tensor) - y.largest(Axis::Tensor);
        let formula = graph.finish(out).unwrap();
        let got = interpret(&formula, &[&[1.0, 2.0, 3.0, 4.0], &[1.0, -1.0, 2.0, -5.0]], 2, &[]);
        // Row sums of y: 0 and -3; x·y = 1 - 2 + 6 - 20 = -15; largest |y| = 5.
        assert_eq!(got, [-20.0, -20.0, -29.0, -32.0]);
    }

    #[test]
    fn equal_magnitudes_keep_the_lowest_index() {
        let graph = Graph::new();
        let x = graph.input(0);
        let formula = graph.finish(x.top(3)).unwrap();
        assert_eq!(interpret(&formula, &[&[1.0, -2.0, 2.0, 1.0, -1.0]], 5, &[]), [1.0, 1.0, 1.0, 0.0, 0.0]);
    }
}
