//! Turns what a row holds into tokens and the label of each.
//!
//! In: a [`Record`]. Out: a [`Document`], in which row t of a model's input predicts label t, the token after it. Which tokens
//! are learned:
//!
//! - a text: all; it begins with what the tokenizer puts before a text and ends with the end-of-text token;
//! - a prompt with its completion: the completion and the end-of-text token. Both are tokenized as one text; a token that
//!   begins in the prompt belongs to it;
//! - a conversation: what the assistant says, as the chat template or its beginnings tell
//!   ([`ChatTemplate::render_turns`]); the template alone decides what stands around;
//! - tokens by their ids: all, or those that the row's labels name; nothing is put around them;
//! - with `loss_on: all`: all tokens but the first, of any row.
//!
//! The last token of a document predicts nothing and is no input; neither are tokens after the last that is learned.

use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use aludel_kernels::loss::IGNORED;
use aludel_model::chat::ChatContext;
use aludel_model::tokenizer::Tokens;
use aludel_model::{ChatTemplate, Tokenizer};

use super::record::{Fault, Record};
use crate::error::Error;
use crate::run::{Data, LongDocuments, LossOn};

/// The tokens of a row: T inputs, and for each the token that it predicts or [`IGNORED`].
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Document {
    /// T token ids.
    pub ids: Vec<u32>,
    /// T labels; the last is no [`IGNORED`]. Empty where there is nothing to learn.
    pub labels: Vec<u32>,
}

/// Makes documents.
#[derive(Debug)]
pub struct Encoder {
    tokenizer: Arc<Tokenizer>,
    template: Option<ChatTemplate>,
    context: ChatContext,
    loss_on: LossOn,
    /// The longest document, where longer ones are truncated.
    longest: Option<usize>,
}

impl Encoder {
    /// An encoder for the student's tokenizer, with the chat template of the settings or else the tokenizer's.
    ///
    /// # Errors
    /// [`Error::Io`] for a chat template that cannot be read; [`Error::Model`] for one that does not compile.
    pub fn new(tokenizer: Arc<Tokenizer>, settings: &Data) -> Result<Self, Error> {
        let template = match &settings.chat_template {
            Some(path) => Some(ChatTemplate::parse(&read_template(path)?, settings.date)?),
            None => tokenizer.chat_template(settings.date)?,
        };
        let context = tokenizer.chat_context();
        let longest = match settings.long_documents {
            LongDocuments::Truncate => Some(settings.sequence_length),
            LongDocuments::Split => None,
        };
        Ok(Self { tokenizer, template, context, loss_on: settings.loss_on, longest })
    }

    /// The document of a row.
    pub(super) fn encode(&self, record: &Record) -> Result<Document, Fault> {
        let mut document = match record {
            Record::Text { text, begins, ends } => self.text(text, *begins, *ends)?,
            Record::Completion { prompt, completion } => self.completion(prompt, completion)?,
            Record::Conversation { messages, from, tools } => self.conversation(messages, *from, tools)?,
            Record::Tokens { ids, learned } => self.given(ids, learned.as_deref())?,
        };
        if let Some(longest) = self.longest {
            document.ids.truncate(longest);
            document.labels.truncate(longest);
        }
        document.trim();
        Ok(document)
    }

    fn text(&self, text: &str, begins: bool, ends: bool) -> Result<Document, Fault> {
        let tokens = self.tokens(text)?;
        let mut ids = if begins { self.tokenizer.before().to_vec() } else { Vec::new() };
        ids.extend(&tokens.ids);
        if ends {
            self.end(&mut ids);
        }
        Ok(Document::new(ids, |_| true))
    }

    fn completion(&self, prompt: &str, completion: &str) -> Result<Document, Fault> {
        let tokens = self.tokens(&format!("{prompt}{completion}"))?;
        let mut ids = self.tokenizer.before().to_vec();
        let given = ids.len() + tokens.starts.partition_point(|&start| start < prompt.len());
        ids.extend(&tokens.ids);
        self.end(&mut ids);
        let everything = self.loss_on == LossOn::All;
        Ok(Document::new(ids, |at| everything || at >= given))
    }

    fn conversation(
        &self,
        messages: &[serde_json::Value],
        from: usize,
        tools: &serde_json::Value,
    ) -> Result<Document, Fault> {
        let Some(template) = &self.template else {
            return Err(Fault {
                message: "the student's tokenizer has no chat template to write a conversation by".to_owned(),
                hint: Some("name a file with one: `chat_template:` under `data:`".to_owned()),
            });
        };
        let context = ChatContext { tools: tools.clone(), ..self.context.clone() };
        if self.loss_on == LossOn::All {
            let text = template.render(messages, false, &context).map_err(|error| refused(&error))?;
            return Ok(Document::new(self.tokens(&text)?.ids, |_| true));
        }
        let turns = template.render_turns(messages, from, &context).map_err(|error| refused(&error))?;
        let tokens = self.tokens(&turns.text)?;
        let learned = inside(&tokens.starts, &turns.spans);
        Ok(Document::new(tokens.ids, |at| learned[at]))
    }

    /// Tokens that another tool made.
    fn given(&self, ids: &[u32], learned: Option<&[bool]>) -> Result<Document, Fault> {
        let vocabulary = self.tokenizer.vocabulary();
        if let Some(id) = ids.iter().find(|id| **id as usize >= vocabulary) {
            return Err(Fault {
                message: format!("token {id} is none of the tokenizer's, which has ids below {vocabulary}"),
                hint: Some("were the tokens made by another tokenizer?".to_owned()),
            });
        }
        let learned = learned.filter(|_| self.loss_on == LossOn::Completions);
        Ok(Document::new(ids.to_vec(), |at| learned.is_none_or(|learned| learned[at])))
    }

    fn tokens(&self, text: &str) -> Result<Tokens, Fault> {
        self.tokenizer.encode_plain(text).map_err(|error| refused(&error))
    }

    /// Ends a text: with what the tokenizer puts after one, and with the end-of-text token unless that is it.
    fn end(&self, ids: &mut Vec<u32>) {
        ids.extend(self.tokenizer.after());
        let eos = self.tokenizer.special().eos;
        if let Some(eos) = eos.filter(|eos| ids.last() != Some(eos)) {
            ids.push(eos);
        }
    }
}

impl Document {
    /// `learned` says of each token but the first whether it is a label.
    fn new(mut ids: Vec<u32>, learned: impl Fn(usize) -> bool) -> Self {
        let label = |(at, &id): (usize, &u32)| if learned(at) { id } else { IGNORED };
        let labels = ids.iter().enumerate().skip(1).map(label).collect();
        ids.pop();
        Self { ids, labels }
    }

    /// Leaves out what comes after the last label.
    fn trim(&mut self) {
        let rows = self.labels.iter().rposition(|&label| label != IGNORED).map_or(0, |last| last + 1);
        self.ids.truncate(rows);
        self.labels.truncate(rows);
    }

    /// How many labels are learned.
    pub fn targets(&self) -> usize {
        self.labels.iter().filter(|&&label| label != IGNORED).count()
    }
}

fn refused(error: &aludel_model::Error) -> Fault {
    Fault { message: error.to_string(), hint: None }
}

/// Of each start, whether it lies in one of the spans. Both are in ascending order.
fn inside(starts: &[usize], spans: &[Range<usize>]) -> Vec<bool> {
    let mut spans = spans.iter().peekable();
    starts
        .iter()
        .map(|start| {
            while spans.next_if(|span| span.end <= *start).is_some() {}
            spans.peek().is_some_and(|span| span.contains(start))
        })
        .collect()
}

fn read_template(path: &Path) -> Result<String, Error> {
    std::fs::read_to_string(path).map_err(Error::io("read the chat template", path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_hold_the_tokens_that_begin_in_them() {
        assert_eq!(inside(&[0, 1, 2, 3, 4, 5], &[1..3, 4..5]), [false, true, true, false, true, false]);
        assert_eq!(inside(&[0, 0, 7, 7], &[0..1, 3..5, 7..8]), [true, true, true, true]);
        assert_eq!(inside(&[], &[0..1, 2..3]), [false; 0]);
        assert_eq!(inside(&[3], &[]), [false]);
    }

    #[test]
    fn labels_are_the_tokens_that_follow() {
        let mut document = Document::new(vec![5, 6, 7, 8, 9], |at| at == 1 || at == 3);
        assert_eq!(document.ids, [5, 6, 7, 8]);
        assert_eq!(document.labels, [6, IGNORED, 8, IGNORED]);
        document.trim();
        assert_eq!((document.ids.as_slice(), document.targets()), (&[5, 6, 7][..], 2));
        for ids in [vec![], vec![1]] {
            assert_eq!(Document::new(ids, |_| true), Document::default());
        }
        let mut ignored = Document::new(vec![1, 2, 3], |_| false);
        ignored.trim();
        assert_eq!(ignored, Document::default());
    }
}
