//! Writes conversations as text by a model's own chat template, as transformers does, and says what the assistant said.
//!
//! In: the template's source (Jinja) and a conversation as JSON messages. Out: text, and the ranges in it that a model
//! learns to write. It knows no tokens: special tokens are text that the template puts there.
//!
//! Like transformers: `trim_blocks` and `lstrip_blocks`; loop controls; methods of Python's strings and mappings;
//! `raise_exception`, `strftime_now` and `tojson` that escapes no HTML; values print as in Python (`None`, `True`).
//! Unlike transformers: `strftime_now` tells the [`Moment`] that it is given and not the time of day, so that a training does
//! not depend on when it ran; a template that computes without end is stopped.
//!
//! Reading order: this file, `python` (values as Python prints them), `moment` (dates), `spans` (what the assistant said).

mod moment;
mod python;
mod spans;

use std::borrow::Cow;
use std::ops::Range;

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Value};
use minijinja::{AutoEscape, Environment, ErrorKind, State};
use serde_json::{Map, Value as Json};

pub use moment::Moment;

use crate::error::Error;

/// A chat template that compiles.
#[derive(Debug)]
pub struct ChatTemplate {
    environment: Environment<'static>,
    /// Whether it says itself, with `{% generation %}`, what the assistant said.
    marks: bool,
}

/// What a template is told beside the messages.
#[derive(Debug, Clone, Default)]
pub struct ChatContext {
    /// Texts of the special tokens by role, such as `bos_token`.
    pub special_tokens: Vec<(&'static str, String)>,
    /// Descriptions of tools, a list; nothing when there are none.
    pub tools: Json,
}

/// A conversation as text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Conversation {
    /// The text.
    pub text: String,
    /// Bytes of it that the model learns to write, in order, without overlap.
    pub spans: Vec<Range<usize>>,
}

/// Steps that a template may take, at one for each instruction and for each 64 bytes made: a conversation of a thousand
/// turns takes some hundred thousand.
const MOST_STEPS: u64 = 4_000_000;
const NAME: &str = "chat";
const MARK: &str = "aludel_generation";

impl ChatTemplate {
    /// Compiles a template. `moment` is what it takes for now.
    ///
    /// # Errors
    /// [`Error::ChatTemplate`].
    pub fn parse(source: &str, moment: Moment) -> Result<Self, Error> {
        let mut environment = Environment::new();
        environment.set_syntax(blocks_trimmed().map_err(|error| unusable(&error))?);
        environment.set_auto_escape_callback(|_| AutoEscape::None);
        environment.set_fuel(Some(MOST_STEPS));
        environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.set_formatter(|out, _, value| Ok(out.write_str(&python::printed(value))?));
        environment.add_filter("tojson", python::tojson);
        environment.add_filter("string", |value: Value| python::printed(&value));
        environment.add_function("raise_exception", |message: String| -> Result<(), minijinja::Error> {
            Err(minijinja::Error::new(ErrorKind::InvalidOperation, message))
        });
        environment.add_function("strftime_now", move |format: &str| moment.format(format));
        environment.add_function(MARK, generation);
        let (source, marks) = spans::replace_marks(source, MARK);
        environment.add_template_owned(NAME, source).map_err(|error| unusable(&error))?;
        Ok(Self { environment, marks })
    }

    /// The text of a conversation; with `prompts`, up to where the assistant's next turn begins.
    ///
    /// # Errors
    /// [`Error::Conversation`]: the template raised, failed or was stopped.
    pub fn render(&self, messages: &[Json], prompts: bool, context: &ChatContext) -> Result<String, Error> {
        let template = self.environment.get_template(NAME).map_err(|error| failed(&error))?;
        template.render(variables(messages, prompts, context)).map_err(|error| failed(&error))
    }

    /// The text of a conversation and what a model learns from it: the assistant's turns from message `from` on.
    ///
    /// A template that has `{% generation %}` blocks decides what they are; `from` is then without effect. For any other,
    /// the conversation is also written up to before and up to after each turn, and both have to be beginnings of the
    /// whole. A turn is what stands between them, without what it has in common with the prompt for it (the `assistant`
    /// header); what ends a turn, such as `<|im_end|>` and a line break, belongs to it.
    ///
    /// # Errors
    /// [`Error::Conversation`], also when a text written so far is not the beginning of the whole.
    pub fn render_turns(
        &self,
        messages: &[Json],
        from: usize,
        context: &ChatContext,
    ) -> Result<Conversation, Error> {
        if self.marks {
            self.render_marked(messages, context)
        } else {
            let render = |end: usize, prompts| self.render(&messages[..end], prompts, context);
            spans::by_beginnings(messages, from, render)
        }
    }

    fn render_marked(&self, messages: &[Json], context: &ChatContext) -> Result<Conversation, Error> {
        let template = self.environment.get_template(NAME).map_err(|error| failed(&error))?;
        let source = template.source();
        let (text, pieces) = template
            .render_with_spans(variables(messages, false, context))
            .map_err(|error| failed(&error))?;
        let is_marked = |range: Range<usize>| source.get(range).is_some_and(|text| text.starts_with(MARK));
        let spans = pieces
            .iter()
            .filter(|piece| is_marked(piece.source_range()))
            .map(minijinja::OutputSpan::output_range)
            .collect();
        Ok(Conversation { text, spans })
    }
}

/// Gives out what stands in a `{% generation %}` block.
fn generation(state: &mut State<'_, '_>, arguments: Kwargs) -> Result<Value, minijinja::Error> {
    let body: Value = arguments.get("caller")?;
    body.call(state, &[])
}

fn variables(messages: &[Json], prompts: bool, context: &ChatContext) -> Value {
    let messages: Value = messages.iter().map(|message| python::value(&with_reasoning(message))).collect();
    let own = [
        ("messages", messages),
        ("add_generation_prompt", Value::from(prompts)),
        ("tools", python::value(&context.tools)),
        ("documents", Value::from(())),
    ];
    let special = context.special_tokens.iter().map(|(role, text)| (*role, Value::from(text.as_str())));
    Value::from_pairs(special.chain(own))
}

/// Templates read what a model thought under one of three names. As in transformers, the one that is given is put under
/// two of them.
fn with_reasoning(message: &Json) -> Cow<'_, Json> {
    const NAMES: [&str; 3] = ["reasoning_content", "thinking", "reasoning"];
    let Some(fields) = message.as_object() else { return Cow::Borrowed(message) };
    let Some(reasoning) =
        NAMES.iter().find_map(|name| fields.get(*name).filter(|thought| !thought.is_null()))
    else {
        return Cow::Borrowed(message);
    };
    let mut named = Map::from_iter([("thinking".to_owned(), reasoning.clone())]);
    named.extend(fields.clone());
    named.insert("reasoning_content".to_owned(), reasoning.clone());
    Cow::Owned(Json::Object(named))
}

fn blocks_trimmed() -> Result<SyntaxConfig, minijinja::Error> {
    SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build()
}

fn unusable(error: &minijinja::Error) -> Error {
    Error::ChatTemplate { detail: explain(error) }
}

fn failed(error: &minijinja::Error) -> Error {
    Error::Conversation { detail: explain(error) }
}

/// What went wrong, in the template's own words where it raised.
fn explain(error: &minijinja::Error) -> String {
    let line = error.line().map_or_else(String::new, |line| format!(" (line {line} of the template)"));
    match (error.kind(), error.detail()) {
        (ErrorKind::OutOfFuel, _) => format!("the template takes more than {MOST_STEPS} steps"),
        (_, Some(detail)) => format!("{detail}{line}"),
        (kind, None) => format!("{kind}{line}"),
    }
}

#[cfg(test)]
mod tests;
