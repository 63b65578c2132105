//! Builds what an expression computes for one tensor.
//!
//! In: a parsed script and the tensor. Out: an expression on the formula graph, or the first part that has no meaning there:
//! a name that nothing has, a reduction of what is not one value per element, an index of no model.

use std::collections::HashMap;
use std::ops::Range;

use aludel_kernels::formula::{Axis, Expr, Extent, FormulaError, Graph};

use super::fault::Fault;
use super::functions::{FUNCTIONS, Function, OverModels};
use super::parse::{Node, NodeKind, Script};
use crate::methods::{Member, Tensor};
use crate::problem::Problem;
use crate::recipe::nearest;

/// Why nothing was built: a part of the expression, or a parameter that it names.
pub(super) enum Failure {
    Fault(Fault),
    Parameter(Box<Problem>),
}

impl From<Fault> for Failure {
    fn from(fault: Fault) -> Self {
        Self::Fault(fault)
    }
}

type Built<'g> = Result<Expr<'g>, Failure>;

/// Names that the tensor gives a value.
pub(super) const GIVEN: [&str; 7] = ["base", "model", "models", "elements", "rows", "columns", "layer"];

pub(super) fn build<'g>(graph: &'g Graph, tensor: &Tensor<'_>, script: &Script<'_>) -> Built<'g> {
    let mut builder = Builder { graph, tensor, named: HashMap::new(), member: None };
    for definition in &script.definitions {
        let name = definition.name;
        let is_taken = GIVEN.contains(&name) || FUNCTIONS.iter().any(|function| function.name == name);
        if is_taken || builder.named.contains_key(name) {
            let message = format!("`{name}` has a meaning already");
            return Err(Fault::new(definition.at.clone(), message).with_hint("choose another name").into());
        }
        let value = builder.value(&definition.value)?;
        builder.named.insert(name, value);
    }
    let output = builder.value(&script.output)?;
    if output.extent() != Extent::Element {
        let message = "the result is not one value for each element";
        let hint = "add it to, or multiply it with, a model's elements";
        return Err(Fault::new(script.output.at.clone(), message).with_hint(hint).into());
    }
    Ok(output)
}

struct Builder<'a, 'g> {
    graph: &'g Graph,
    tensor: &'a Tensor<'a>,
    named: HashMap<&'a str, Expr<'g>>,
    /// The model that `model` stands for inside of what runs over all models.
    member: Option<usize>,
}

impl<'a, 'g> Builder<'a, 'g> {
    fn value(&mut self, node: &Node<'a>) -> Built<'g> {
        // Long sums nest to the left: a loop, where recursion would be as deep as they are long.
        let mut spine = Vec::new();
        let mut first = node;
        while let NodeKind::Between(sign, left, right) = &first.kind {
            spine.push((*sign, right.as_ref()));
            first = left;
        }
        let mut value = self.simple(first)?;
        for (sign, right) in spine.into_iter().rev() {
            value = if sign == "^" {
                power(self.graph, value, right)?
            } else {
                self.between(sign, value, right)?
            };
        }
        Ok(value)
    }

    fn simple(&mut self, node: &Node<'a>) -> Built<'g> {
        match &node.kind {
            NodeKind::Number(number) => Ok(self.graph.constant(*number)),
            NodeKind::Name(name) => self.name(name, &node.at),
            NodeKind::Indexed(name, index) => self.indexed(name, *index, &node.at),
            NodeKind::Call(name, arguments) => self.call(name, arguments, &node.at),
            NodeKind::Negated(operand) => Ok(-self.value(operand)?),
            NodeKind::Not(operand) => Ok(!self.truth(operand)?),
            NodeKind::Between(..) => self.value(node),
        }
    }

    fn between(&mut self, sign: &str, left: Expr<'g>, right: &Node<'a>) -> Built<'g> {
        let right = self.value(right)?;
        let truth = |x: Expr<'g>| !x.equal(0.0);
        Ok(match sign {
            "+" => left + right,
            "-" => left - right,
            "*" => left * right,
            "/" => left / right,
            "<" => left.less(right),
            "<=" => left.less_or_equal(right),
            ">" => right.less(left),
            ">=" => right.less_or_equal(left),
            "==" => left.equal(right),
            "!=" => !left.equal(right),
            "and" => truth(left).and(truth(right)),
            _ => truth(left).or(truth(right)),
        })
    }

    fn truth(&mut self, node: &Node<'a>) -> Built<'g> {
        Ok(!self.value(node)?.equal(0.0))
    }

    fn name(&mut self, name: &str, at: &Range<usize>) -> Built<'g> {
        if let Some(&value) = self.named.get(name) {
            return Ok(value);
        }
        let tensor = self.tensor;
        let number = |value: u64| self.graph.constant(value as f64);
        match name {
            "base" => self.tensor.base.map(|base| self.graph.input(base.input)).ok_or_else(|| {
                let fault = Fault::new(at.clone(), "the recipe has no base model");
                fault.with_hint("add `base_model:` at the top of the recipe").into()
            }),
            "model" => match self.member {
                Some(member) => Ok(self.graph.input(tensor.members[member].input)),
                None => Err(Fault::new(at.clone(), "which model?")
                    .with_hint(
                        "write `model[0]`, or use it inside of `total(...)`, which adds over all models",
                    )
                    .into()),
            },
            "models" => Ok(number(tensor.members.len() as u64)),
            "elements" => Ok(number(tensor.elements)),
            "columns" => Ok(number(tensor.columns)),
            "rows" => Ok(number(tensor.elements / tensor.columns.max(1))),
            "layer" => Ok(self.graph.constant(tensor.position)),
            _ => {
                let member = self.member.map(|member| &self.tensor.members[member]);
                self.parameter(name, member, at)
            }
        }
    }

    fn indexed(&mut self, name: &str, index: usize, at: &Range<usize>) -> Built<'g> {
        let count = self.tensor.members.len();
        let Some(member) = self.tensor.members.get(index) else {
            let message = format!("there is no model {index}: the recipe has {count}, counted from 0");
            let has_base = self.tensor.base.is_some();
            let fault = Fault::new(at.clone(), message);
            return Err(if has_base { fault.with_hint("the base model is `base`") } else { fault }.into());
        };
        if name == "model" {
            return Ok(self.graph.input(member.input));
        }
        if GIVEN.contains(&name) || self.named.contains_key(name) {
            return Err(Fault::new(at.clone(), format!("`{name}` is not one for each model")).into());
        }
        self.parameter(name, Some(member), at)
    }

    /// A number of the recipe.
    fn parameter(&self, name: &str, member: Option<&Member>, at: &Range<usize>) -> Built<'g> {
        let tensor = self.tensor;
        let entry = member.and_then(|member| member.entry);
        let of_tensor = member.map_or(tensor.name, |member| &member.tensor);
        let found = tensor.scope.number(name, entry, of_tensor, tensor.position);
        if let Some(value) = found.map_err(|problem| Failure::Parameter(Box::new(problem)))? {
            return Ok(self.graph.constant(value));
        }
        let sources = &tensor.scope.slice.sources;
        let of_models = sources.iter().any(|model| model.parameters.find(name).is_some());
        let of_all = tensor.scope.is_given(name, None);
        let (message, hint) = match member {
            _ if FUNCTIONS.iter().any(|function| function.name == name) => {
                (format!("`{name}` is a function"), format!("call it: `{name}(...)`"))
            }
            Some(member) if of_models || of_all => (
                format!("`{}` has no `{name}` for {}", member.name, tensor.name),
                format!("give `{name}:` under its `parameters:`, or a value without a filter"),
            ),
            None if of_models => (
                format!("`{name}` is given for models: of which one?"),
                format!("write `{name}[0]`, or use it inside of `total(...)`"),
            ),
            None if of_all => (
                format!("no filter of `{name}` selects {}", tensor.name),
                "add a value without a filter".into(),
            ),
            _ => (format!("unknown name `{name}`"), self.hint_for(name)),
        };
        Err(Fault::new(at.clone(), message).with_hint(hint).into())
    }

    fn hint_for(&self, name: &str) -> String {
        let functions = FUNCTIONS.iter().map(|function| function.name);
        let known = GIVEN.into_iter().chain(self.named.keys().copied()).chain(functions);
        match nearest(name, known) {
            Some(meant) => format!("did you mean `{meant}`?"),
            None => format!("give `{name}:` under `parameters:`, or define it: `{name} = ...;`"),
        }
    }

    fn call(&mut self, name: &str, arguments: &[Node<'a>], at: &Range<usize>) -> Built<'g> {
        let Some(function) = FUNCTIONS.iter().find(|function| function.name == name) else {
            let message = format!("unknown function `{name}`");
            let names = FUNCTIONS.iter().map(|function| function.name);
            let hint = match nearest(name, names) {
                Some(meant) => format!("did you mean `{meant}`?"),
                None => "docs/formula.md lists them".to_owned(),
            };
            return Err(Fault::new(at.clone(), message).with_hint(hint).into());
        };
        check_count(function, arguments, at)?;
        match function.over {
            Some(over) => self.over_models(over, &arguments[0], at),
            None => self.apply(name, arguments, at),
        }
    }

    /// Evaluates an argument once for each model.
    fn over_models(&mut self, over: OverModels, argument: &Node<'a>, at: &Range<usize>) -> Built<'g> {
        if self.member.is_some() {
            let message = "this runs over all models inside of what runs over all models already";
            return Err(Fault::new(at.clone(), message).with_hint("name it before: `part = ...;`").into());
        }
        let mut result: Option<Expr<'g>> = None;
        for member in 0..self.tensor.members.len() {
            self.member = Some(member);
            let value = self.value(argument);
            self.member = None;
            let value = value?;
            result = Some(result.map_or(value, |result| match over {
                OverModels::Total | OverModels::Average => result + value,
                OverModels::Most => result.max(value),
                OverModels::Least => result.min(value),
            }));
        }
        let result = result.unwrap_or_else(|| self.graph.constant(0.0));
        let count = self.tensor.members.len() as f64;
        Ok(if over == OverModels::Average { result / count } else { result })
    }

    fn apply(&mut self, name: &str, arguments: &[Node<'a>], at: &Range<usize>) -> Built<'g> {
        if name == "random" {
            return self.random(arguments.first(), at);
        }
        let mut values = Vec::new();
        for argument in arguments {
            values.push(self.value(argument)?);
        }
        let x = values[0];
        let (axis, reduction) = match name.split_once('_') {
            Some(("row", rest)) => (Axis::Row, rest),
            Some(("column", rest)) => (Axis::Column, rest),
            _ => (Axis::Tensor, name),
        };
        let elements = |position: usize| require_elements(name, values[position], &arguments[position]);
        let size = match axis {
            Axis::Tensor => self.tensor.elements,
            Axis::Row => self.tensor.columns,
            Axis::Column => self.tensor.elements / self.tensor.columns.max(1),
        };
        Ok(match reduction {
            "sum" => elements(0)?.sum(axis),
            "mean" => elements(0)?.sum(axis) / size as f64,
            "norm" => elements(0)?.norm(axis),
            "largest" => elements(0)?.largest(axis),
            "greatest" => elements(0)?.greatest(axis),
            "dot" => elements(0)?.dot(elements(1)?, axis),
            "rank" => self.ranked(elements(0)?.rank(), at)?,
            "top" => self.ranked(elements(0)?.top(require_one(values[1], &arguments[1])?), at)?,
            "kth" => self.ranked(elements(0)?.kth(require_one(values[1], &arguments[1])?), at)?,
            "sin" | "cos" | "acos" => {
                let x = require_wide(name, x, &arguments[0])?;
                match name {
                    "sin" => x.sin(),
                    "cos" => x.cos(),
                    _ => x.acos(),
                }
            }
            "abs" => x.abs(),
            "sqrt" => x.sqrt(),
            "exp" => x.exp(),
            "log" => x.ln(),
            "expm1" => x.exp_m1(),
            "log1p" => x.ln_1p(),
            "sign" => self.graph.constant(0.0).less(x) - x.less(0.0),
            "min" => values[1..].iter().fold(x, |least, &value| least.min(value)),
            "max" => values[1..].iter().fold(x, |most, &value| most.max(value)),
            "clamp" => x.max(values[1]).min(values[2]),
            _ => x.select(values[1], values[2]),
        })
    }

    /// A rank or selection, unless what it ranks needs ranks or random numbers itself.
    fn ranked(&self, ranked: Expr<'g>, at: &Range<usize>) -> Result<Expr<'g>, Fault> {
        match self.graph.finish(ranked) {
            Err(FormulaError::Rank { .. }) => {
                let message = "what is ranked or selected by can itself hold no rank, and what is ranked no random number";
                Err(Fault::new(at.clone(), message))
            }
            _ => Ok(ranked),
        }
    }

    /// The numbers of a stream: that of the model, or of a whole number.
    fn random(&self, stream: Option<&Node<'a>>, at: &Range<usize>) -> Built<'g> {
        match (stream.map(|node| &node.kind), self.member) {
            (Some(NodeKind::Number(number)), _) if number.fract() == 0.0 && *number < 65_536.0 => {
                Ok(self.graph.random(*number as u16))
            }
            (None, Some(member)) => {
                let entry = self.tensor.members[member].entry.unwrap_or_default();
                Ok(self.graph.random(entry as u16))
            }
            _ => Err(Fault::new(at.clone(), "which random numbers?")
                .with_hint("write `random(0)`, or `random()` inside of `total(...)` for those of the model")
                .into()),
        }
    }
}

fn check_count(function: &Function, arguments: &[Node<'_>], at: &Range<usize>) -> Result<(), Fault> {
    let (least, most) = function.arguments;
    if (least..=most).contains(&arguments.len()) {
        return Ok(());
    }
    let wanted = match (least, most) {
        (least, usize::MAX) => format!("{least} or more arguments"),
        (1, 1) => "1 argument".to_owned(),
        (least, most) if least == most => format!("{least} arguments"),
        (least, most) => format!("{least} to {most} arguments"),
    };
    let message = format!("`{}` takes {wanted}, not {}", function.name, arguments.len());
    Err(Fault::new(at.clone(), message).with_hint(function.summary))
}

fn extent_in_words(x: Expr<'_>) -> &'static str {
    match x.extent() {
        Extent::Tensor => "one value for the whole tensor",
        Extent::Row => "one value for each row",
        Extent::Column => "one value for each column",
        Extent::Element => "one value for each element",
    }
}

fn require_elements<'g>(name: &str, x: Expr<'g>, node: &Node<'_>) -> Result<Expr<'g>, Fault> {
    if x.extent() == Extent::Element {
        return Ok(x);
    }
    let message = format!("`{name}` runs over elements, and this is {}", extent_in_words(x));
    Err(Fault::new(node.at.clone(), message))
}

fn require_one<'g>(x: Expr<'g>, node: &Node<'_>) -> Result<Expr<'g>, Fault> {
    if x.extent() == Extent::Tensor {
        return Ok(x);
    }
    Err(Fault::new(
        node.at.clone(),
        format!("a count is one value for the tensor, and this is {}", extent_in_words(x)),
    ))
}

fn require_wide<'g>(name: &str, x: Expr<'g>, node: &Node<'_>) -> Result<Expr<'g>, Fault> {
    if x.extent() != Extent::Element {
        return Ok(x);
    }
    let message = format!("`{name}` is computed for a tensor, row or column, not for each element");
    Err(Fault::new(node.at.clone(), message))
}

/// A whole power by multiplication, or a square root.
fn power<'g>(graph: &'g Graph, x: Expr<'g>, exponent: &Node<'_>) -> Result<Expr<'g>, Fault> {
    let number = match &exponent.kind {
        NodeKind::Number(number) => Some(*number),
        NodeKind::Negated(operand) => match operand.kind {
            NodeKind::Number(number) => Some(-number),
            _ => None,
        },
        _ => None,
    };
    let times = |count: u32| (1..count).fold(x, |product, _| product * x);
    match number {
        Some(0.5) => Ok(x.sqrt()),
        Some(n) if n.fract() == 0.0 && (1.0..=16.0).contains(&n) => Ok(times(n as u32)),
        Some(n) if n.fract() == 0.0 && (-16.0..=-1.0).contains(&n) => {
            Ok(graph.constant(1.0) / times(-n as u32))
        }
        _ => Err(Fault::new(
            exponent.at.clone(),
            "an exponent is 0.5 or a whole number from -16 to 16, and not 0",
        )
        .with_hint("for others write `exp(y * log(x))`")),
    }
}
