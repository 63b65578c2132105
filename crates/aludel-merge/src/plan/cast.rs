//! Settles who plays which part in each slice of a recipe.
//!
//! In: slices, and the method, which says whether it needs a base and how many models it merges. Out: a [`Cast`] for each
//! slice: its base, its members, and which tensors its formulas read. Models are opened on the way.

use aludel_document::Located;

use super::models::{Models, Role};
use crate::methods::{Base, Member, Method};
use crate::problem::{Problem, Problems};
use crate::recipe::{Input, Scope};

/// The models of one slice and the parts that they play.
#[derive(Debug)]
pub(super) struct Cast<'r> {
    pub scope: Scope<'r>,
    /// The base, where it is no member. Its `tensor` and those of the members are filled in for each tensor.
    pub base: Option<Member>,
    /// The members, in order.
    pub members: Vec<Member>,
    /// What the slice's formulas read: a tensor of each of these, in this order.
    pub taken: Vec<Taken>,
    /// Each member's file of statistics, by its position among [`Models::sources`], for methods that read some.
    pub statistics: Vec<usize>,
    /// Whether all of its models could be opened.
    pub is_complete: bool,
}

/// Layers of a model that a slice takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Taken {
    /// The model's position among [`Models::list`].
    pub model: usize,
    /// The first of its layers; `None` for whole models.
    pub first_layer: Option<usize>,
    /// The entry that asks for it, in the slice's sources.
    pub entry: Option<usize>,
}

impl Cast<'_> {
    /// The base model, by its position among [`Models::list`].
    pub(super) fn base_of(&self, models: &Models) -> Option<usize> {
        models.position(&self.scope.base_model()?.value)
    }

    /// The position in [`Cast::taken`] of what gives the output its shape and type: the base's, where there is one.
    pub(super) fn leading(&self, models: &Models) -> usize {
        let base = self.base_of(models);
        let is_base = |taken: &Taken| Some(taken.model) == base;
        self.taken.iter().position(is_base).unwrap_or(0)
    }

    /// Each member's statistics with the checkpoint that the member is, both by their positions among [`Models::sources`].
    /// Of a model with an adapter nothing is known: it lies in no file.
    pub(super) fn statistics_of(&self, models: &Models) -> Vec<(usize, usize)> {
        let of_member = |(&statistics, member): (&usize, &Member)| {
            let model = &models.list[self.taken[usize::from(member.input)].model];
            let source = model.source().filter(|&source| models.sources[source].model == model.name)?;
            Some((statistics, source))
        };
        self.statistics.iter().zip(&self.members).filter_map(of_member).collect()
    }

    /// The input of a model's layers, added unless it is there.
    fn take(&mut self, taken: Taken) -> u16 {
        let same = |known: &Taken| (known.model, known.first_layer) == (taken.model, taken.first_layer);
        let position = self.taken.iter().position(same).unwrap_or_else(|| {
            self.taken.push(taken);
            self.taken.len() - 1
        });
        position as u16
    }
}

/// Casts one slice. What is wrong is added to `problems`, and the models that could be opened are cast all the same, so that
/// what is wrong between them is told too.
pub(super) fn cast<'r>(
    scope: Scope<'r>,
    method: &dyn Method,
    models: &mut Models,
    problems: &mut Problems,
) -> Cast<'r> {
    check_parts(scope, method, problems);
    let mut cast = Cast {
        scope,
        base: None,
        members: Vec::new(),
        taken: Vec::new(),
        statistics: Vec::new(),
        is_complete: true,
    };
    for input in in_order(scope, method) {
        let has_base = cast.base.is_some() && !scope.slice.is_whole;
        let is_base = input.is_base && is_apart(method) && !has_base;
        let role = if is_base { Role::Base } else { Role::Member };
        let Some(model) = models.open(input.reference, role, problems) else {
            cast.is_complete = false;
            continue;
        };
        let layers = scope.entry(input.entry).and_then(|entry| entry.layers.as_ref());
        let first_layer = layers.map(|layers| layers.value.start);
        let input_number = cast.take(Taken { model, first_layer, entry: input.entry });
        let name = input.reference.value.text().to_owned();
        let member = Member { input: input_number, entry: input.entry, name, tensor: String::new() };
        if is_base {
            cast.base.get_or_insert(member);
        } else {
            cast.members.push(member);
        }
    }
    if let Some(statistics) = method.statistics() {
        for member in &cast.members {
            let file = statistics_of(member, scope, statistics.name());
            let source = file.and_then(|file| models.open_statistics(&file, statistics));
            cast.statistics.extend(problems.take(source));
        }
    }
    cast
}

/// The file of statistics that a member names.
fn statistics_of(member: &Member, scope: Scope<'_>, parameter: &str) -> Result<Located<String>, Problem> {
    scope.string(parameter, member.entry, "", 0.0)?.ok_or_else(|| {
        let method = &scope.recipe.merge_method.value;
        let message = format!("`{method}` needs `{parameter}` for model `{}`", member.name);
        let problem = match scope.entry(member.entry) {
            Some(entry) => Problem::at(entry.reference.place.clone(), message),
            None => Problem::general(message),
        };
        problem.with_hint("name the file with its statistics, without a filter")
    })
}

/// Whether the base is no member.
fn is_apart(method: &dyn Method) -> bool {
    matches!(method.base(), Base::Required | Base::Optional)
}

/// The models that take part, the base first where the method wants it so.
fn in_order<'r>(scope: Scope<'r>, method: &dyn Method) -> Vec<Input<'r>> {
    let mut inputs = scope.models_with_base();
    match method.base() {
        Base::Unused => inputs.retain(|input| input.entry.is_some()),
        Base::First => inputs.sort_by_key(|input| !input.is_base),
        Base::Required | Base::Optional | Base::Member => {}
    }
    inputs
}

/// Whether the slice lists what the method wants.
fn check_parts(scope: Scope<'_>, method: &dyn Method, problems: &mut Problems) {
    let name = method.name();
    let inputs = scope.models_with_base();
    let base_problem = missing_base(scope, method, &inputs);
    let lacks_base = base_problem.is_some();
    problems.extend(base_problem);
    let unlisted = inputs.iter().find(|input| input.is_base && input.entry.is_none());
    // Of a base that modules leave out, config and side files are taken, and the parts that no module names.
    if let (Base::Unused, Some(base), None) = (method.base(), unlisted, &scope.part.name) {
        let message = format!("`{name}` does not use a base model, and `models` does not list this one");
        let problem = Problem::at(base.reference.place.clone(), message);
        problems.push(problem.with_hint("list it under `models` or remove `base_model`"));
    }
    let mut bases = 0;
    let is_member = |input: &&Input<'_>| match method.base() {
        Base::Required | Base::Optional if input.is_base => {
            bases += 1;
            bases > 1 && !scope.slice.is_whole
        }
        Base::Required | Base::Optional | Base::First | Base::Member => true,
        Base::Unused => input.entry.is_some(),
    };
    let count = inputs.iter().filter(is_member).count();
    let (least, most) = method.members();
    let has_base = scope.base_model().is_some();
    let besides = if is_apart(method) && has_base { " besides the base" } else { "" };
    let place = if scope.slice.is_whole { &scope.recipe.merge_method.place } else { &scope.slice.place };
    if count < least && !(lacks_base && method.base() == Base::First) {
        let message = format!("`{name}` merges at least {least} model(s){besides}, but {count} is listed");
        problems.push(Problem::at(place.clone(), message));
    }
    if count > most {
        let message = format!("`{name}` merges at most {most} model(s){besides}, but {count} are listed");
        problems.push(Problem::at(place.clone(), message));
    }
}

/// What is wrong with the base model of a method that needs one.
fn missing_base(scope: Scope<'_>, method: &dyn Method, inputs: &[Input<'_>]) -> Option<Problem> {
    if !matches!(method.base(), Base::Required | Base::First) || inputs.iter().any(|input| input.is_base) {
        return None;
    }
    Some(match scope.base_model() {
        None => {
            let place = scope.recipe.merge_method.place.clone();
            Problem::at(place, format!("`{}` needs a base model", method.name()))
                .with_hint("add `base_model:` at the top of the recipe")
        }
        Some(base) => {
            let message = format!("this slice has no layers of its base model, `{}`", base.value.text());
            Problem::at(scope.slice.place.clone(), message).with_hint(
                "list the base among the `sources` with its `layer_range`, or give the slice a `base_model` of its own",
            )
        }
    })
}
