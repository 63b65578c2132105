//! `aludel generate`: continues a text, a piece at a time as it comes.

use std::time::{Instant, SystemTime, UNIX_EPOCH};

use aludel_document::Problem;
use aludel_kernels::nn::Cpu;
use aludel_model::chat::Moment;
use aludel_model::generate::Generation;
use aludel_model::sample::Sampling;
use aludel_model::{Decoder, Tokenizer, Use};
use serde_json::json;

use crate::args::GenerateArguments;
use crate::failure::{Interrupted, Refusal};
use crate::hub;
use crate::printer::Printer;
use crate::progress::duration;
use crate::settings::Verbosity;
use crate::signals::Signals;

use super::device;

/// Generates; the text is the result, or JSON with the text in it.
pub(super) fn run(arguments: &GenerateArguments, printer: &Printer) -> anyhow::Result<()> {
    let folder = hub::locate(&hub::open(printer), &arguments.model)?;
    let device = device::open_cpu(&arguments.computing)?;
    let tokenizer = Tokenizer::open(&folder).map_err(refuse)?;
    let prompt = prompt(arguments, &tokenizer)?;
    let model = Decoder::open(&folder, device, Use::Frozen).map_err(refuse)?;
    let signals = Signals::listen()?;
    let begin = Instant::now();
    let mut text = Text::new(&tokenizer, &prompt)?;
    let is_json = printer.talk().json;
    for token in generation(arguments, &model, &tokenizer, &prompt)? {
        if let Some(signal) = signals.received() {
            return Err(Interrupted { signal, left: Some("the text ends here".to_owned()) }.into());
        }
        let piece = text.add(token?, false)?;
        if !is_json {
            printer.part(&piece)?;
        }
    }
    let rest = text.finish()?;
    if is_json {
        let tokens = text.tokens.len() - prompt.len();
        return printer.json(&json!({
            "text": text.given,
            "prompt_tokens": prompt.len(),
            "tokens": tokens,
            "seconds": begin.elapsed().as_secs_f64(),
        }));
    }
    printer.part(&format!("{rest}\n"))?;
    printer.say(Verbosity::Verbose, &summary(&text, prompt.len(), begin));
    Ok(())
}

fn summary(text: &Text<'_>, prompt: usize, begin: Instant) -> String {
    let (tokens, seconds) = (text.tokens.len() - prompt, begin.elapsed().as_secs_f64());
    let rate = tokens as f64 / seconds.max(1e-9);
    format!("{prompt} tokens read, {tokens} generated in {}: {rate:.1} tokens/s", duration(seconds))
}

fn generation<'m>(
    arguments: &GenerateArguments,
    model: &'m Decoder<Cpu>,
    tokenizer: &Tokenizer,
    prompt: &[u32],
) -> anyhow::Result<Generation<'m, Cpu>> {
    let sampling = Sampling {
        temperature: arguments.temperature,
        top_k: arguments.top_k,
        top_p: arguments.top_p,
        seed: arguments.seed,
    };
    let stops = &tokenizer.special().stops;
    Ok(Generation::new(model, prompt, arguments.max_tokens, stops, sampling)?)
}

/// The tokens to continue.
fn prompt(arguments: &GenerateArguments, tokenizer: &Tokenizer) -> anyhow::Result<Vec<u32>> {
    let tokens = if arguments.chat {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        let Some(template) = tokenizer.chat_template(Moment::since_1970(now)).map_err(refuse)? else {
            let message = format!("{} has no chat template", arguments.model.display());
            return Err(problem(Problem::general(message).with_hint("leave out --chat")).into());
        };
        let messages = [json!({"role": "user", "content": arguments.prompt})];
        let text = template.render(&messages, true, &tokenizer.chat_context()).map_err(refuse)?;
        tokenizer.encode_plain(&text)?.ids
    } else {
        [tokenizer.before(), &tokenizer.encode_plain(&arguments.prompt)?.ids].concat()
    };
    if tokens.is_empty() {
        return Err(problem(Problem::general("the prompt has no tokens").with_hint("give some text")).into());
    }
    Ok(tokens)
}

fn refuse(error: aludel_model::Error) -> Refusal {
    problem(Problem::general(error.to_string()))
}

fn problem(problem: Problem) -> Refusal {
    Refusal { recipe: None, problems: problem.into() }
}

/// Text of tokens as they come. A token may be a part of a character, which is held back until it is whole.
struct Text<'t> {
    tokenizer: &'t Tokenizer,
    tokens: Vec<u32>,
    /// Bytes of the prompt's text, which the tokens are decoded together with: some tokenizers begin a text differently.
    prompt: usize,
    /// What was given out.
    given: String,
}

impl<'t> Text<'t> {
    fn new(tokenizer: &'t Tokenizer, prompt: &[u32]) -> anyhow::Result<Self> {
        let length = tokenizer.decode(prompt, false)?.len();
        Ok(Self { tokenizer, tokens: prompt.to_vec(), prompt: length, given: String::new() })
    }

    /// The text that a further token completes.
    fn add(&mut self, token: u32, is_last: bool) -> anyhow::Result<String> {
        self.tokens.push(token);
        self.rest(is_last)
    }

    /// What was held back.
    fn finish(&mut self) -> anyhow::Result<String> {
        self.rest(true)
    }

    fn rest(&mut self, is_last: bool) -> anyhow::Result<String> {
        let text = self.tokenizer.decode(&self.tokens, false)?;
        let new = text.get(self.prompt + self.given.len()..).unwrap_or_default();
        if !is_last && new.ends_with(char::REPLACEMENT_CHARACTER) {
            return Ok(String::new());
        }
        self.given.push_str(new);
        Ok(new.to_owned())
    }
}
