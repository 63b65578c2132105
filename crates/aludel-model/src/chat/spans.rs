//! Finds what the assistant said in the text of a conversation.
//!
//! In: a template's `{% generation %}` tags, or the texts of the conversation's beginnings. Out: ranges of bytes.

use serde_json::Value as Json;

use super::Conversation;
use crate::error::Error;

/// The source with `{% generation %}` blocks turned into call blocks of `function`, which trim white space alike, and
/// whether there are any. Both are blocks with a scope of their own, as transformers' extension has it.
pub(super) fn replace_marks(source: &str, function: &str) -> (String, bool) {
    let mut replaced = String::with_capacity(source.len());
    let mut rest = source;
    let mut marks = false;
    while let Some(at) = rest.find("{%") {
        let (before, tag) = rest.split_at(at);
        replaced.push_str(before);
        rest = match mark(tag) {
            Some((Mark { opens, left, right }, after)) => {
                marks |= opens;
                let word = if opens { format!("call {function}()") } else { "endcall".to_owned() };
                replaced.push_str(&format!("{{%{left} {word} {right}%}}"));
                after
            }
            None => {
                replaced.push_str("{%");
                &tag[2..]
            }
        };
    }
    replaced.push_str(rest);
    (replaced, marks)
}

struct Mark<'a> {
    opens: bool,
    /// `-`, `+` or nothing after `{%`.
    left: &'a str,
    /// `-`, `+` or nothing before `%}`.
    right: &'a str,
}

/// Reads a tag that begins with `{%`; `None` when it is another one.
fn mark(tag: &str) -> Option<(Mark<'_>, &str)> {
    let (left, rest) = sign(tag.strip_prefix("{%")?);
    let rest = rest.trim_start();
    let word = &rest[..rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '_')?];
    let opens = match word {
        "generation" => true,
        "endgeneration" => false,
        _ => return None,
    };
    let (right, rest) = sign(rest[word.len()..].trim_start());
    Some((Mark { opens, left, right }, rest.strip_prefix("%}")?))
}

fn sign(text: &str) -> (&str, &str) {
    text.split_at(usize::from(text.starts_with(['-', '+'])))
}

/// The text of a conversation and the assistant's turns from message `from` on. `render(end, prompts)` writes the
/// messages before `end`, and the prompt for the assistant's next turn where asked.
pub(super) fn by_beginnings(
    messages: &[Json],
    from: usize,
    render: impl Fn(usize, bool) -> Result<String, Error>,
) -> Result<Conversation, Error> {
    let text = render(messages.len(), false)?;
    let mut spans = Vec::new();
    for (turn, message) in messages.iter().enumerate().skip(from) {
        if message["role"] != "assistant" {
            continue;
        }
        // A template may refuse to begin with the assistant, and then there is nothing before.
        let (before, prompt) = match turn {
            0 => (String::new(), render(0, true).unwrap_or_default()),
            turn => (render(turn, false)?, render(turn, true)?),
        };
        let last = turn + 1 == messages.len();
        let after = if last { text.clone() } else { render(turn + 1, false)? };
        for (part, which) in [(&before, "before"), (&after, "after")] {
            if !text.starts_with(part.as_str()) {
                return Err(changed(turn, which));
            }
        }
        // A prompt that is no continuation of what is before it has nothing to say about the turn.
        let prompt = if prompt.starts_with(&before) { common(&prompt, &after) } else { before.len() };
        let start = prompt.max(before.len());
        if start < after.len() {
            spans.push(start..after.len());
        }
    }
    Ok(Conversation { text, spans })
}

fn changed(turn: usize, which: &str) -> Error {
    let detail = format!(
        "what the template writes {which} message {turn} changes with the messages that follow, so that the assistant's \
         turns cannot be told apart; mark them in the template with {{% generation %}}, or learn every token"
    );
    Error::Conversation { detail }
}

/// Bytes that two texts have in common at their beginning, whole characters only.
fn common(a: &str, b: &str) -> usize {
    let same = a.char_indices().zip(b.chars()).find(|((_, a), b)| a != b);
    same.map_or(a.len().min(b.len()), |((at, _), _)| at)
}
