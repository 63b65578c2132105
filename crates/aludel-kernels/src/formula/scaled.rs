//! Makes a formula that writes rows of a smaller range of one that writes a tensor.
//!
//! In: a formula and the largest number of the range. Out: a formula of quotients, and of the scales that give the values back.

use super::{Axis, Binary, Formula, FormulaError, Literal, NodeId, Op, Outcome};

impl Formula {
    /// Divides each row of the output by a scale of its own, `max(largest magnitude / range, 2^-126)`, rounded to f32: the quotients and the
    /// scales are the outcome. The bound from below is for rows of zeros.
    ///
    /// # Errors
    /// [`FormulaError::Output`] for a formula that writes no tensor, or has scales already.
    pub fn scaled(&self, range: f32) -> Result<Self, FormulaError> {
        let Outcome::Tensor(output) = self.outcome else { return Err(FormulaError::Output) };
        let mut nodes = self.nodes.clone();
        let mut push = |op: Op| {
            let known = nodes.iter().position(|&known| known == op);
            let at = known.unwrap_or_else(|| {
                nodes.push(op);
                nodes.len() - 1
            });
            NodeId(at as u32)
        };
        let constant = |value: f32| Op::Constant(Literal(f64::from(value)));
        let largest = push(Op::Largest(output, Axis::Row));
        let range = push(constant(range));
        let scale = push(Op::Binary(Binary::Divide, largest, range));
        let least = push(constant(f32::MIN_POSITIVE));
        let scales = push(Op::Binary(Binary::Maximum, scale, least));
        let quotients = push(Op::Binary(Binary::Divide, output, scales));
        let formula = Self { nodes, outcome: Outcome::Scaled([quotients, scales]), ..self.clone() };
        formula.verify()?;
        Ok(formula)
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Graph, interpret};
    use super::*;

    #[test]
    fn rows_are_divided_by_what_brings_them_into_the_range() {
        let graph = Graph::new();
        let formula = graph.finish(graph.input(0) * 2.0).unwrap().scaled(4.0).unwrap();
        let expected = "t0 = (x0 * 2)\nt1 = row_largest(t0)\nt2 = max((t1 / 4), 0.000000000000000000000000000000000000011754943508222875)\nout = (t0 / t2), scaled by t2";
        assert_eq!(formula.to_string(), expected);
        let got = interpret(&formula, &[&[1.0, -4.0, 0.0, 0.0]], 2, &[]);
        assert_eq!(got, [1.0, -4.0, 0.0, 0.0, 2.0, f32::MIN_POSITIVE]);
        assert_eq!(formula.scaled(4.0), Err(FormulaError::Output));
    }
}
