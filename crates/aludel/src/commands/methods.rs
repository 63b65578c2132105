//! `aludel methods`: lists the merge methods and their parameters, as the library declares them.

use std::fmt::Write;

use aludel_document::{Problem, nearest};
use aludel_merge::methods::{self, Base, METHODS, Method};
use aludel_merge::recipe::{DefaultValue, Kind, Level, ParameterSpec};
use serde_json::{Value, json};

use crate::args::MethodsArguments;
use crate::failure::Refusal;
use crate::printer::Printer;

/// Prints all methods, or all about one.
pub(super) fn run(arguments: &MethodsArguments, printer: &Printer) -> anyhow::Result<()> {
    let chosen = arguments.name.as_deref().map(find).transpose()?;
    match (chosen, printer.talk().json) {
        (Some(method), true) => printer.json(&method_json(method)),
        (Some(method), false) => Ok(printer.data(&description(method))?),
        (None, true) => printer.json(&METHODS.iter().map(|method| method_json(*method)).collect::<Vec<_>>()),
        (None, false) => Ok(printer.data(&listing())?),
    }
}

fn find(name: &str) -> Result<&'static dyn Method, Refusal> {
    methods::find(name).ok_or_else(|| {
        let problem = Problem::general(format!("unknown merge method `{name}`"));
        let hint = match nearest(name, METHODS.iter().map(|method| method.name())) {
            Some(meant) => format!("did you mean `{meant}`?"),
            None => "`aludel methods` lists them all".to_owned(),
        };
        Refusal { recipe: None, problems: problem.with_hint(hint).into() }
    })
}

fn listing() -> String {
    let width = METHODS.iter().map(|method| method.name().len()).max().unwrap_or(0);
    let line = |method: &&dyn Method| format!("{:width$}  {}", method.name(), method.summary());
    METHODS.iter().map(line).collect::<Vec<_>>().join("\n")
}

/// Name, summary, what it merges, and a line for each parameter.
fn description(method: &dyn Method) -> String {
    let mut text = format!("{}: {}\n  merges {}", method.name(), method.summary(), members(method));
    let specs = method.parameters();
    let width = specs.iter().map(|spec| spec.name.len()).max().unwrap_or(0);
    for spec in specs {
        let _ = write!(text, "\n  {:width$}  {} ({})", spec.name, spec.summary, qualities(spec).join("; "));
    }
    text
}

fn members(method: &dyn Method) -> String {
    let count = match method.members() {
        (least, usize::MAX) => format!("{least} or more models"),
        (least, most) if least == most => format!("{least} model{}", if least == 1 { "" } else { "s" }),
        (least, most) => format!("{least} to {most} models"),
    };
    match method.base() {
        Base::Required => format!("{count} and `base_model`"),
        Base::First => format!("{count}, one of which is `base_model`"),
        Base::Optional => format!("{count} and, if given, `base_model`"),
        Base::Member => format!("{count}, `base_model` counted if given"),
        Base::Unused => format!("{count}; `base_model` only says whose tokenizer and config are kept"),
    }
}

fn qualities(spec: &ParameterSpec) -> Vec<String> {
    let level = match spec.level {
        Level::Model => "per model or for all",
        Level::Global => "for the whole merge",
    };
    let default = spec.default.map(|default| format!("default {}", default_text(default)));
    [Some(kind(spec.kind)), Some(level.to_owned()), default].into_iter().flatten().collect()
}

fn kind(kind: Kind) -> String {
    match kind {
        Kind::Number => "number or gradient".to_owned(),
        Kind::Bool => "true or false".to_owned(),
        Kind::Choice(words) => words.join(" | "),
        Kind::Text => "text".to_owned(),
    }
}

fn method_json(method: &dyn Method) -> Value {
    let (least, most) = method.members();
    let base = match method.base() {
        Base::Required => "required",
        Base::First => "one of the models",
        Base::Optional => "optional",
        Base::Member => "counted",
        Base::Unused => "unused",
    };
    json!({
        "name": method.name(),
        "summary": method.summary(),
        "base_model": base,
        "models": {"least": least, "most": (most < usize::MAX).then_some(most)},
        "parameters": method.parameters().iter().map(parameter_json).collect::<Vec<_>>(),
    })
}

fn parameter_json(spec: &ParameterSpec) -> Value {
    let (kind, choices) = match spec.kind {
        Kind::Number => ("number", None),
        Kind::Bool => ("bool", None),
        Kind::Choice(words) => ("choice", Some(words)),
        Kind::Text => ("text", None),
    };
    json!({
        "name": spec.name,
        "summary": spec.summary,
        "level": if spec.level == Level::Model { "model" } else { "merge" },
        "kind": kind,
        "choices": choices,
        "default": spec.default.map(default_json),
    })
}

fn default_text(default: DefaultValue) -> String {
    match default {
        DefaultValue::Number(number) => number.to_string(),
        DefaultValue::Bool(truth) => truth.to_string(),
        DefaultValue::Text(text) => text.to_owned(),
    }
}

fn default_json(default: DefaultValue) -> Value {
    match default {
        DefaultValue::Number(number) => number.into(),
        DefaultValue::Bool(truth) => truth.into(),
        DefaultValue::Text(text) => text.into(),
    }
}
