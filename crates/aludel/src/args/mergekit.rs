//! Takes the flags that people paste with mergekit's commands.
//!
//! In: arguments. Out: those of mergekit's flags that were given. None changes what is done here: a flag is silently true already, or
//! has no effect, which is said once, or asks for what is not done, which is refused with what to do instead.

use aludel_document::Problem;
use clap::{Arg, ArgAction, ArgMatches, Args, Command, Error, FromArgMatches};

use crate::failure::Refusal;
use crate::printer::Printer;

/// The flags of mergekit that were given.
#[derive(Clone, Debug, Default)]
pub(crate) struct MergekitFlags {
    given: Vec<&'static Flag>,
}

/// A flag of mergekit's.
#[derive(Debug)]
struct Flag {
    name: &'static str,
    takes_value: bool,
    effect: Effect,
}

/// What becomes of a flag.
#[derive(Debug, PartialEq, Eq)]
enum Effect {
    /// Nothing: things are so without it.
    True,
    /// Nothing, which may be other than expected.
    None(&'static str),
    /// It is refused, with a remedy.
    Refused(&'static str, &'static str),
}

const fn switch(name: &'static str, effect: Effect) -> Flag {
    Flag { name, takes_value: false, effect }
}

const fn value(name: &'static str, effect: Effect) -> Flag {
    Flag { name, takes_value: true, effect }
}

const CPU: Effect = Effect::None("`aludel merge --device cuda` is what computes on a GPU");
const STREAMED: Effect = Effect::None("weights are streamed, in as much memory as --memory says");
const NO_CODE: Effect = Effect::None("no code of a model is ever run");

/// All of them: `--device`, ..., and both forms of those with a `--no-` form. What aludel has by the same name is not among them.
const FLAGS: &[Flag] = &[
    switch("cuda", CPU),
    switch("no-cuda", Effect::True),
    value("device", CPU),
    switch("multi-gpu", CPU),
    switch("no-multi-gpu", Effect::True),
    switch("gpu-rich", CPU),
    switch("read-to-gpu", CPU),
    switch("no-read-to-gpu", Effect::True),
    switch("low-cpu-memory", STREAMED),
    switch("no-low-cpu-memory", Effect::True),
    switch("lazy-unpickle", Effect::True),
    switch("no-lazy-unpickle", STREAMED),
    switch("async-write", Effect::True),
    switch("no-async-write", Effect::True),
    value("write-threads", Effect::True),
    switch("clone-tensors", Effect::True),
    switch("no-clone-tensors", Effect::True),
    switch("copy-tokenizer", Effect::True),
    switch(
        "no-copy-tokenizer",
        Effect::None("the tokenizer is written all the same; delete what is not wanted"),
    ),
    switch("write-model-card", Effect::True),
    switch(
        "no-write-model-card",
        Effect::None("the model card is written all the same; delete what is not wanted"),
    ),
    switch("safe-serialization", Effect::True),
    switch(
        "no-safe-serialization",
        Effect::Refused("weights are written as safetensors only", "leave it out; torch can save them anew"),
    ),
    switch(
        "allow-crimes",
        Effect::None("models are merged where their tensors have the same names and shapes"),
    ),
    switch("no-allow-crimes", Effect::True),
    switch("trust-remote-code", NO_CODE),
    switch("no-trust-remote-code", Effect::True),
    value("transformers-cache", Effect::None("the hub's cache is where HF_HUB_CACHE or HF_HOME says")),
    value(
        "lora-merge-cache",
        Effect::None("adapters are applied while their model is read, and nothing is cached"),
    ),
    value("lora-merge-dtype", Effect::None("adapters are applied in float32")),
    switch("no-quiet", Effect::True),
];

impl MergekitFlags {
    /// Says what has no effect, and refuses what cannot be done.
    pub(crate) fn heed(&self, printer: &Printer) -> Result<(), Refusal> {
        for flag in &self.given {
            match flag.effect {
                Effect::True => {}
                Effect::None(reason) => {
                    printer.warning(&format_args!("--{} has no effect: {reason}", flag.name));
                }
                Effect::Refused(reason, remedy) => {
                    let problem = Problem::general(format!("--{}: {reason}", flag.name)).with_hint(remedy);
                    return Err(Refusal { recipe: None, problems: problem.into() });
                }
            }
        }
        Ok(())
    }
}

impl Args for MergekitFlags {
    fn augment_args(command: Command) -> Command {
        // What the command has by the same name is its own.
        let own: Vec<String> =
            command.get_arguments().map(|argument| argument.get_id().to_string()).collect();
        FLAGS.iter().filter(|flag| !own.iter().any(|id| id == flag.name)).fold(command, |command, flag| {
            let action = if flag.takes_value { ArgAction::Set } else { ArgAction::SetTrue };
            command.arg(Arg::new(flag.name).long(flag.name).hide(true).action(action).value_name("VALUE"))
        })
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for MergekitFlags {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, Error> {
        let is_given = |flag: &&Flag| match flag.takes_value {
            // A command's own argument has another type.
            true => matches.try_get_one::<String>(flag.name).is_ok_and(|value| value.is_some()),
            false => matches.get_flag(flag.name),
        };
        Ok(Self { given: FLAGS.iter().filter(is_given).collect() })
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}
