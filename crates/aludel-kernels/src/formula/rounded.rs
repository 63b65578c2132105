//! Makes a formula that sees some of its inputs through E4M3, as if they were stored in FP8.
//!
//! In: a formula, the inputs meant and the base, where they are seen as what they differ from it by. Out: a formula of values that are each
//! divided by a scale of their row, rounded, and multiplied again. What it costs in exactness can be measured so; no byte is saved by it.

use super::{Axis, Binary, Formula, FormulaError, Literal, NodeId, Op, Unary};
use crate::element::Encoding;

impl Formula {
    /// Rounds inputs, or what they differ from `base` by, with a scale for each row: `max(largest magnitude / 448, 2^-126)`, rounded
    /// to f32.
    ///
    /// # Errors
    /// [`FormulaError`]; none for a formula that is verified.
    pub fn with_rounded(&self, inputs: &[u16], base: Option<u16>) -> Result<Self, FormulaError> {
        let mut rewriting = Rewriting { nodes: Vec::with_capacity(4 * self.nodes.len()) };
        let mut places: Vec<NodeId> = Vec::with_capacity(self.nodes.len());
        // What each rounded input differs by, once it is met.
        let mut differences: Vec<Option<NodeId>> = vec![None; usize::from(self.inputs)];
        let is_meant = |input: u16| inputs.contains(&input) && Some(input) != base;
        for op in &self.nodes {
            let place = match (*op, base) {
                (Op::Input(input), None) if is_meant(input) => {
                    let whole = rewriting.push(Op::Input(input));
                    rewriting.rounded(whole)
                }
                (Op::Input(input), Some(base)) if is_meant(input) => {
                    let difference = rewriting.difference(input, base);
                    differences[usize::from(input)] = Some(difference);
                    let base = rewriting.push(Op::Input(base));
                    rewriting.push(Op::Binary(Binary::Add, base, difference))
                }
                (Op::Binary(Binary::Subtract, x, y), Some(base)) if self.op(y) == Op::Input(base) => {
                    let known = match self.op(x) {
                        Op::Input(input) => differences[usize::from(input)],
                        _ => None,
                    };
                    known.unwrap_or_else(|| rewriting.push(op.renumbered(|node| places[node.index()])))
                }
                _ => rewriting.push(op.renumbered(|node| places[node.index()])),
            };
            places.push(place);
        }
        let outcome = self.outcome.moved(|node| places[node.index()]);
        let formula = Self { nodes: rewriting.nodes, outcome, inputs: self.inputs, streams: self.streams };
        formula.verify()?;
        Ok(formula)
    }
}

/// Nodes of the new formula; equal ones are one.
struct Rewriting {
    nodes: Vec<Op>,
}

impl Rewriting {
    fn push(&mut self, op: Op) -> NodeId {
        let known = self.nodes.iter().position(|&known| known == op);
        let at = known.unwrap_or_else(|| {
            self.nodes.push(op);
            self.nodes.len() - 1
        });
        NodeId(at as u32)
    }

    fn difference(&mut self, input: u16, base: u16) -> NodeId {
        let (x, base) = (self.push(Op::Input(input)), self.push(Op::Input(base)));
        let difference = self.push(Op::Binary(Binary::Subtract, x, base));
        self.rounded(difference)
    }

    fn rounded(&mut self, x: NodeId) -> NodeId {
        let constant = |value: f32| Op::Constant(Literal(f64::from(value)));
        let largest = self.push(Op::Largest(x, Axis::Row));
        let range = self.push(constant(Encoding::E4M3_LARGEST));
        let scale = self.push(Op::Binary(Binary::Divide, largest, range));
        let least = self.push(constant(f32::MIN_POSITIVE));
        let scale = self.push(Op::Binary(Binary::Maximum, scale, least));
        let quotient = self.push(Op::Binary(Binary::Divide, x, scale));
        let rounded = self.push(Op::Unary(Unary::RoundToE4m3, quotient));
        self.push(Op::Binary(Binary::Multiply, rounded, scale))
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Graph, interpret};

    #[test]
    fn differences_are_rounded_where_there_is_a_base_and_values_where_there_is_none() {
        let graph = Graph::new();
        let (base, x, y) = (graph.input(0), graph.input(1), graph.input(2));
        let formula = graph.finish(base + (x - base) * 0.5 + y).unwrap();
        // Rows have the scale 28 / 448; in it 15.4 lies between the codes of 15 and 16, and 13.4 between those of 13 and 14.
        let inputs: [&[f32]; 3] = [&[100.0, 100.0], &[128.0, 115.4], &[28.0, 13.4]];
        let of =
            |rounded: &[u16], base| interpret(&formula.with_rounded(rounded, base).unwrap(), &inputs, 2, &[]);
        for (got, expected) in [
            (of(&[1], Some(0)), 100.0 + 7.5 + 13.4),
            (of(&[2], None), 100.0 + 7.7 + 13.0),
            // Of the second input, -86.6 is the largest difference in its row, and so a code by itself.
            (of(&[1, 2], Some(0)), 100.0 + 7.5 + 13.4),
        ] {
            assert!((got[1] - expected).abs() < 1e-4, "{got:?}, should be {expected}");
        }
        assert_eq!(formula.with_rounded(&[], Some(0)).unwrap(), formula);
    }
}
