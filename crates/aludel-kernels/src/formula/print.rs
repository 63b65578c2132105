//! Prints a formula as lines of readable assignments: shared terms get a name, the rest is written in place.

use std::fmt;

use super::{Axis, Binary, Formula, NodeId, Op, Outcome, Unary};

impl fmt::Display for Formula {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let uses = self.uses();
        let mut names = vec![None; self.nodes.len()];
        let mut count = 0;
        for node in self.ids() {
            if self.deserves_a_name(node, &uses) {
                writeln!(f, "t{count} = {}", self.text(node, &names))?;
                names[node.index()] = Some(count);
                count += 1;
            }
        }
        let results = self.outcome().nodes().iter();
        let results: Vec<String> = results.map(|&node| self.text(node, &names)).collect();
        match (self.outcome(), &results[..]) {
            (Outcome::Scaled([_, node]), [quotients, scales]) => {
                let scales = names[node.index()].map_or_else(|| scales.clone(), |name| format!("t{name}"));
                write!(f, "out = {quotients}, scaled by {scales}")
            }
            (Outcome::Figures(_), _) => write!(f, "figures = {}", results.join(", ")),
            _ => write!(f, "out = {}", results.join(", ")),
        }
    }
}

impl Formula {
    /// How often each operation is used by those that the output needs. Users come after what they use.
    fn uses(&self) -> Vec<usize> {
        let mut uses = vec![0usize; self.nodes.len()];
        self.outcome().nodes().iter().for_each(|node| uses[node.index()] = 1);
        for node in self.ids().collect::<Vec<_>>().into_iter().rev() {
            if uses[node.index()] > 0 {
                self.op(node).operands().for_each(|x| uses[x.index()] += 1);
            }
        }
        uses
    }

    fn deserves_a_name(&self, node: NodeId, uses: &[usize]) -> bool {
        let is_leaf = matches!(self.op(node), Op::Input(_) | Op::Constant(_));
        let used = uses[node.index()];
        !is_leaf && Some(node) != self.output() && (used > 1 || (used == 1 && self.op(node).is_reduction()))
    }

    fn text(&self, node: NodeId, names: &[Option<usize>]) -> String {
        let show =
            |x: NodeId| names[x.index()].map_or_else(|| self.text(x, names), |name| format!("t{name}"));
        let over = |axis| match axis {
            Axis::Tensor => "",
            Axis::Row => "row_",
            Axis::Column => "column_",
        };
        match self.op(node) {
            Op::Input(input) => format!("x{input}"),
            Op::Constant(value) => format!("{}", value.0),
            Op::Random(stream) => format!("random({stream})"),
            Op::Unary(Unary::Negate, x) => format!("-{}", show(x)),
            Op::Unary(op, x) => format!("{}({})", unary_name(op), show(x)),
            Op::Binary(op, a, b) => match binary_sign(op) {
                Ok(sign) => format!("({} {sign} {})", show(a), show(b)),
                Err(name) => format!("{name}({}, {})", show(a), show(b)),
            },
            Op::Select(c, a, b) => format!("select({}, {}, {})", show(c), show(a), show(b)),
            Op::Sum(x, axis) => format!("{}sum({})", over(axis), show(x)),
            Op::Dot(x, y, axis) => format!("{}dot({}, {})", over(axis), show(x), show(y)),
            Op::Largest(x, axis) => format!("{}largest({})", over(axis), show(x)),
            Op::Greatest(x, axis) => format!("{}greatest({})", over(axis), show(x)),
            Op::Top(x, count) => format!("top({}, {})", show(x), show(count)),
            Op::Kth(x, count) => format!("kth({}, {})", show(x), show(count)),
            Op::Rank(x) => format!("row_rank({})", show(x)),
            Op::RowTop(x, count) => format!("row_top({}, {})", show(x), show(count)),
        }
    }
}

fn unary_name(op: Unary) -> &'static str {
    match op {
        Unary::Negate => "negate",
        Unary::Absolute => "abs",
        Unary::SquareRoot => "sqrt",
        Unary::Exponential => "exp",
        Unary::ExponentialLessOne => "expm1",
        Unary::Logarithm => "log",
        Unary::LogarithmOfOneMore => "log1p",
        Unary::RoundToE4m3 => "e4m3",
        Unary::Sine => "sin",
        Unary::Cosine => "cos",
        Unary::ArcCosine => "acos",
    }
}

fn binary_sign(op: Binary) -> Result<&'static str, &'static str> {
    match op {
        Binary::Add => Ok("+"),
        Binary::Subtract => Ok("-"),
        Binary::Multiply => Ok("*"),
        Binary::Divide => Ok("/"),
        Binary::Less => Ok("<"),
        Binary::LessOrEqual => Ok("<="),
        Binary::Equal => Ok("=="),
        Binary::Minimum => Err("min"),
        Binary::Maximum => Err("max"),
    }
}

#[cfg(test)]
mod tests {
    use super::super::Graph;
    use super::*;

    #[test]
    fn shared_terms_and_reductions_are_named() {
        let graph = Graph::new();
        let (b, x) = (graph.input(0), graph.input(1));
        let d = x - b;
        let formula = graph.finish(b + d * d.top(7) * (d.norm(Axis::Row) + 0.5)).unwrap();
        let expected = "t0 = (x1 - x0)\nt1 = top(t0, 7)\nt2 = row_dot(t0, t0)\nout = (x0 + ((t0 * t1) * (sqrt(t2) + 0.5)))";
        assert_eq!(formula.to_string(), expected);
    }
}
