//! Holds a recipe's parameters against what its merge method declares, and reads them as the declared kinds.
//!
//! In: a parsed recipe and the method's [`ParameterSpec`]s. Out: problems, or typed values for a model and a tensor. What
//! the values may be beyond their kind (a density in 0 to 1, say) is the method's to say.

use aludel_document::{Located, Scalar, listed, nearest, quoted};

use super::value::Value;
use super::{Parameters, Recipe};
use crate::problem::{Place, Problem, Problems};

/// A parameter that a merge method takes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ParameterSpec {
    /// Its key under `parameters:`.
    pub name: &'static str,
    /// Where it may stand.
    pub level: Level,
    /// What it is.
    pub kind: Kind,
    /// What holds when it is not given; `None` when it has to be given or its absence means something of its own.
    pub default: Option<DefaultValue>,
    /// One line for help texts.
    pub summary: &'static str,
}

/// Where a parameter may stand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Level {
    /// At a model, or further up (slice, module, recipe) for all models there.
    Model,
    /// At a slice, a module or the top of the recipe, not at a model.
    Global,
}

/// What a parameter is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A finite number, or a gradient of them.
    Number,
    /// `true` or `false`, also written 1 or 0.
    Bool,
    /// One of these words.
    Choice(&'static [&'static str]),
    /// Any text.
    Text,
}

/// A default.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum DefaultValue {
    /// Of a [`Kind::Number`].
    Number(f64),
    /// Of a [`Kind::Bool`].
    Bool(bool),
    /// Of a [`Kind::Choice`].
    Text(&'static str),
}

impl Recipe {
    /// Everything wrong with the recipe's parameters for a method that takes `specs`: unknown names, names at the wrong
    /// level, values of the wrong kind under any filter.
    pub fn check_parameters(&self, specs: &[ParameterSpec]) -> Problems {
        self.check_parameters_and(specs, &[], &|_| Vec::new())
    }

    /// As [`Recipe::check_parameters`], where numbers of these names are parameters too, at any level, and `others` knows which
    /// methods take a parameter.
    pub fn check_parameters_and(
        &self,
        specs: &[ParameterSpec],
        numbers: &[String],
        others: &dyn Fn(&str) -> Vec<&'static str>,
    ) -> Problems {
        let check = Check { method: &self.merge_method.value, specs, numbers, others };
        let mut problems = Problems::new();
        for part in &self.parts {
            for slice in &part.slices {
                for source in &slice.sources {
                    check.level(&source.parameters, Level::Model, &mut problems);
                }
                check.level(&slice.parameters, Level::Global, &mut problems);
            }
            check.level(&part.parameters, Level::Global, &mut problems);
        }
        check.level(&self.parameters, Level::Global, &mut problems);
        problems
    }
}

struct Check<'a> {
    method: &'a str,
    specs: &'a [ParameterSpec],
    numbers: &'a [String],
    others: &'a dyn Fn(&str) -> Vec<&'static str>,
}

impl Check<'_> {
    fn level(&self, parameters: &Parameters, level: Level, problems: &mut Problems) {
        for (name, parameter) in parameters.iter() {
            let is_number = self.numbers.iter().any(|number| number == name);
            match self.specs.iter().find(|spec| spec.name == name) {
                None if is_number => {
                    let wrong = |value| Kind::Number.check(value).err();
                    problems.extend(parameter.setting.values().filter_map(wrong));
                }
                None => problems.push(self.unknown(name, &parameter.place, level)),
                Some(spec) if spec.level == Level::Global && level == Level::Model => {
                    problems.push(misplaced(name, &parameter.place));
                }
                Some(spec) => {
                    let wrong = |value| spec.kind.check(value).err();
                    problems.extend(parameter.setting.values().filter_map(wrong));
                }
            }
        }
    }

    fn unknown(&self, name: &str, place: &Place, level: Level) -> Problem {
        let allowed = |spec: &&ParameterSpec| level == Level::Global || spec.level == Level::Model;
        let specs = self.specs.iter().filter(allowed).map(|spec| spec.name);
        let names: Vec<&str> = specs.chain(self.numbers.iter().map(String::as_str)).collect();
        let message = format!("{} takes no parameter {}", quoted(self.method), quoted(name));
        let problem = Problem::at(place.clone(), message);
        let others = (self.others)(name);
        let taken = match others.is_empty() {
            true => String::new(),
            false => format!("; {} is a parameter of {}", quoted(name), listed(others)),
        };
        match nearest(name, names.iter().copied()) {
            Some(meant) if taken.is_empty() => problem.with_hint(format!("did you mean `{meant}`?")),
            _ if names.is_empty() => problem.with_hint(format!("it takes none here: remove it{taken}")),
            _ => problem.with_hint(format!("it takes here: {}{taken}", listed(names))),
        }
    }
}

fn misplaced(name: &str, place: &Place) -> Problem {
    Problem::at(
        place.clone(),
        format!("{} holds for the whole merge and cannot be set for one model", quoted(name)),
    )
    .with_hint("move it to the `parameters:` at the top of the recipe")
}

impl Kind {
    /// Checks one value, whichever layers it is for.
    fn check(self, value: &Located<Value>) -> Result<(), Problem> {
        match (&value.value, self) {
            (Value::Gradient(_), Self::Number) => Ok(()),
            (Value::Gradient(_), _) => Err(Problem::at(
                value.place.clone(),
                format!("expected {}, found a list of numbers", self.noun()),
            )),
            (Value::Scalar(scalar), _) => {
                self.check_scalar(&Located { value: scalar.clone(), place: value.place.clone() })
            }
        }
    }

    fn check_scalar(self, scalar: &Located<Scalar>) -> Result<(), Problem> {
        match self {
            Self::Number => as_number(scalar).map(|_| ()),
            Self::Bool => as_bool(scalar).map(|_| ()),
            Self::Choice(words) => as_choice(scalar, words).map(|_| ()),
            Self::Text => as_text(scalar).map(|_| ()),
        }
    }

    fn noun(self) -> String {
        match self {
            Self::Number => "a number".into(),
            Self::Bool => "`true` or `false`".into(),
            Self::Choice(words) => format!("one of {}", listed(words.iter().copied())),
            Self::Text => "text".into(),
        }
    }
}

pub(super) fn as_number(scalar: &Located<Scalar>) -> Result<f64, Problem> {
    match scalar.value {
        Scalar::Number(number) => Ok(number),
        _ => Err(mismatch(scalar, Kind::Number.noun())),
    }
}

pub(super) fn as_bool(scalar: &Located<Scalar>) -> Result<bool, Problem> {
    match scalar.value {
        Scalar::Bool(truth) => Ok(truth),
        Scalar::Number(1.0) => Ok(true),
        Scalar::Number(0.0) => Ok(false),
        _ => Err(mismatch(scalar, Kind::Bool.noun())),
    }
}

pub(super) fn as_text(scalar: &Located<Scalar>) -> Result<Located<String>, Problem> {
    match &scalar.value {
        Scalar::Text(text) => Ok(Located { value: text.clone(), place: scalar.place.clone() }),
        _ => Err(mismatch(scalar, Kind::Text.noun())),
    }
}

pub(super) fn as_choice(scalar: &Located<Scalar>, words: &[&'static str]) -> Result<&'static str, Problem> {
    let text = match &scalar.value {
        Scalar::Text(text) => text.as_str(),
        _ => "",
    };
    words.iter().copied().find(|word| *word == text).ok_or_else(|| {
        let problem = mismatch(scalar, format!("one of {}", listed(words.iter().copied())));
        match nearest(text, words.iter().copied()) {
            Some(meant) => problem.with_hint(format!("did you mean `{meant}`?")),
            None => problem,
        }
    })
}

fn mismatch(scalar: &Located<Scalar>, expected: String) -> Problem {
    let found = match &scalar.value {
        Scalar::Number(number) => format!("the number {number}"),
        Scalar::Bool(truth) => format!("`{truth}`"),
        Scalar::Text(text) => format!("the text {}", quoted(text)),
    };
    Problem::at(scalar.place.clone(), format!("expected {expected}, found {found}"))
}
