//! Gives a method what it may know about one tensor: who takes part, and its parameters resolved for that tensor.

use aludel_kernels::formula::{Expr, Graph};

use super::RowLayout;
use crate::problem::Problem;
use crate::recipe::{DefaultValue, Kind, Located, ParameterSpec, Recipe, Scope};

/// A model that takes part in the merge of a tensor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// Its input in the formula.
    pub input: u16,
    /// Its position in the recipe's `models` or in the slice's `sources`, which also keys its random numbers; `None` for a
    /// base that is not listed.
    pub entry: Option<usize>,
    /// The reference as written.
    pub name: String,
    /// What the tensor is called there, which is what filters of the model's parameters are held against: another name than
    /// the output's where layers are renumbered.
    pub tensor: String,
}

/// One output tensor, as a method sees it.
#[derive(Clone, Copy, Debug)]
pub struct Tensor<'a> {
    /// Its name.
    pub name: &'a str,
    /// Its sides.
    pub shape: &'a [usize],
    /// Its elements.
    pub elements: u64,
    /// The elements of each of its rows.
    pub columns: u64,
    /// Where its attention heads are: nowhere, or why that cannot be told. Known for methods that take their granularity.
    pub heads: Result<Option<RowLayout>, &'a str>,
    /// Where it stands among the layers, from 0 to 1.
    pub position: f64,
    /// The base model, where it is no member.
    pub base: Option<&'a Member>,
    /// The members, in the recipe's order.
    pub members: &'a [Member],
    /// The input with each member's statistics of the tensor, where its file has them; empty for methods that read none.
    pub statistics: &'a [Option<u16>],
    /// The recipe, for places in it.
    pub recipe: &'a Recipe,
    /// The slice of the recipe, for its parameters.
    pub scope: Scope<'a>,
    /// What the method declares.
    pub specs: &'static [ParameterSpec],
}

impl<'a> Tensor<'a> {
    /// The base model's elements; those of the first member where a method needs no base.
    pub(crate) fn base_input<'g>(&self, graph: &'g Graph) -> Expr<'g> {
        graph.input(self.base.or(self.members.first()).map_or(0, |member| member.input))
    }

    /// The base model's elements, where there is one that is no member.
    pub(crate) fn optional_base<'g>(&self, graph: &'g Graph) -> Option<Expr<'g>> {
        self.base.map(|base| graph.input(base.input))
    }

    /// The inputs with the members' statistics; `None` where no file has any of this tensor.
    pub(crate) fn statistics_of_all(&self) -> Result<Option<Vec<u16>>, Problem> {
        let lacking = self.members.iter().zip(self.statistics).find(|(_, input)| input.is_none());
        let having = self.members.iter().zip(self.statistics).find(|(_, input)| input.is_some());
        match (lacking, having) {
            (_, None) => Ok(None),
            (None, Some(_)) => Ok(Some(self.statistics.iter().flatten().copied().collect())),
            (Some((lacking, _)), Some((having, _))) => {
                let message = format!(
                    "the statistics of `{}` have no tensor {}, which those of `{}` have",
                    lacking.name, self.name, having.name
                );
                Err(Problem::general(message).with_hint("collect the statistics of all models alike"))
            }
        }
    }

    /// A number of the whole merge.
    pub(crate) fn number(&self, name: &'static str) -> Result<f64, Problem> {
        self.number_of(name, None)
    }

    /// A number of the whole merge that lies in a range.
    pub(crate) fn number_within(&self, name: &'static str, range: (f64, f64)) -> Result<f64, Problem> {
        let value = self.number(name)?;
        self.within(name, None, value, range)
    }

    /// A number of a member.
    pub(crate) fn member_number(&self, name: &'static str, member: &Member) -> Result<f64, Problem> {
        self.number_of(name, Some(member))
    }

    /// A number of a member that lies in a range.
    pub(crate) fn member_number_within(
        &self,
        name: &'static str,
        member: &Member,
        (low, high): (f64, f64),
    ) -> Result<f64, Problem> {
        let value = self.member_number(name, member)?;
        self.within(name, Some(member), value, (low, high))
    }

    /// A switch of the whole merge.
    pub(crate) fn switch(&self, name: &'static str) -> Result<bool, Problem> {
        let given = self.scope.boolean(name, None, self.name, self.position)?;
        let default = matches!(self.spec(name).and_then(|spec| spec.default), Some(DefaultValue::Bool(true)));
        Ok(given.unwrap_or(default))
    }

    /// A choice of the whole merge.
    pub(crate) fn choice(&self, name: &'static str) -> Result<&'static str, Problem> {
        let Some(ParameterSpec { kind: Kind::Choice(words), default, .. }) = self.spec(name) else {
            return Ok("");
        };
        let default = if let Some(DefaultValue::Text(word)) = default { word } else { "" };
        Ok(self.scope.choice(name, words, None, self.name, self.position)?.unwrap_or(default))
    }

    /// A text of the whole merge.
    pub(crate) fn text(&self, name: &'static str) -> Result<Located<String>, Problem> {
        let given = self.scope.string(name, None, self.name, self.position)?;
        given.ok_or_else(|| self.missing(name, None))
    }

    fn number_of(&self, name: &'static str, member: Option<&Member>) -> Result<f64, Problem> {
        let (entry, tensor) = self.place_of(member);
        if let Some(value) = self.scope.number(name, entry, tensor, self.position)? {
            return Ok(value);
        }
        match self.spec(name).and_then(|spec| spec.default) {
            Some(DefaultValue::Number(value)) => Ok(value),
            _ => Err(self.missing(name, member)),
        }
    }

    /// Whose parameters hold, and the name that filters are held against.
    fn place_of<'m>(&'m self, member: Option<&'m Member>) -> (Option<usize>, &'m str) {
        member.map_or((None, self.name), |member| (member.entry, &member.tensor))
    }

    fn missing(&self, name: &str, member: Option<&Member>) -> Problem {
        let method = &self.recipe.merge_method.value;
        let (entry, tensor) = self.place_of(member);
        let (place, owner) = match member.and_then(|member| Some((self.scope.entry(entry)?, member))) {
            Some((entry, member)) => (&entry.reference.place, format!("model `{}`", member.name)),
            None => (&self.recipe.merge_method.place, "the merge".to_owned()),
        };
        let message = format!("`{method}` needs `{name}` for {owner}");
        // A hint is the same for all tensors, so that the planner says it once.
        if self.scope.is_given(name, entry) {
            let message = format!("{message}, and no filter of it selects {tensor}");
            Problem::at(place.clone(), message)
                .with_hint(format!("add an entry without a filter to `{name}`"))
        } else {
            let hint = format!("add `{name}:` under its `parameters:`, or at the top for all models");
            Problem::at(place.clone(), message).with_hint(hint)
        }
    }

    fn within(
        &self,
        name: &'static str,
        member: Option<&Member>,
        value: f64,
        (low, high): (f64, f64),
    ) -> Result<f64, Problem> {
        if (low..=high).contains(&value) {
            return Ok(value);
        }
        let range = match (low, high) {
            (f64::MIN_POSITIVE, f64::MAX) => "be positive".to_owned(),
            (low, f64::MAX) => format!("be at least {low}"),
            (low, high) => format!("lie between {low} and {high}"),
        };
        let (_, tensor) = self.place_of(member);
        let message = format!("`{name}` is {value} for {tensor}, but has to {range}");
        Err(self.problem_at(name, member, message))
    }

    /// A problem of a member's parameter, where it is given.
    pub(crate) fn problem_of(&self, name: &str, member: &Member, message: String) -> Problem {
        self.problem_at(name, Some(member), message)
    }

    /// A problem of a parameter of the whole merge, where it is given.
    pub(crate) fn problem_of_merge(&self, name: &str, message: String) -> Problem {
        self.problem_at(name, None, message)
    }

    fn problem_at(&self, name: &str, member: Option<&Member>, message: String) -> Problem {
        let (entry, tensor) = self.place_of(member);
        match self.scope.scalar(name, entry, tensor, self.position) {
            Some(scalar) => Problem::at(scalar.place, message),
            None => Problem::general(message),
        }
    }

    fn spec(&self, name: &str) -> Option<&'static ParameterSpec> {
        self.specs.iter().find(|spec| spec.name == name)
    }
}
