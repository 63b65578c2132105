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
//! The last token of a document predicts nothing and is no input; neither are tokens after the last that is learned. Where the teacher
//! has other tokens, a row is encoded for both, each by its own tokenizer and chat template.

use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use aludel_kernels::loss::IGNORED;
use aludel_model::chat::ChatContext;
use aludel_model::tokenizer::Tokens;
use aludel_model::{ChatTemplate, Tokenizer};

use super::align::{Place, Spelled, Taught, beginnings};
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
    /// The same row for a teacher with other tokens.
    pub taught: Option<Box<Taught>>,
}

/// Makes documents.
#[derive(Debug)]
pub struct Encoder {
    student: Speller,
    /// For a teacher with other tokens, and the length of the pieces that a cache has of its documents.
    teacher: Option<(Speller, Option<usize>)>,
}

/// Spells rows by one tokenizer.
#[derive(Debug)]
struct Speller {
    /// "student" or "teacher".
    whose: &'static str,
    tokenizer: Arc<Tokenizer>,
    template: Option<ChatTemplate>,
    context: ChatContext,
    loss_on: LossOn,
    /// The longest document, where longer ones are truncated.
    longest: Option<usize>,
    /// Whether it is asked where tokens begin.
    is_placed: bool,
}

/// Tokens as they come together, each with its place.
#[derive(Default)]
struct Spelling {
    ids: Vec<u32>,
    places: Vec<Option<Place>>,
}

impl Encoder {
    /// An encoder for the student's tokenizer, with the chat template of the settings or else the tokenizer's.
    ///
    /// # Errors
    /// [`Error::Io`] for a chat template that cannot be read; [`Error::Model`] for one that does not compile.
    pub fn new(tokenizer: Arc<Tokenizer>, settings: &Data) -> Result<Self, Error> {
        Ok(Self { student: Speller::new("student", tokenizer, settings)?, teacher: None })
    }

    /// Documents have a teacher with other tokens beside them, with the settings that it reads rows by
    /// ([`Run::teachers_data`](crate::run::Run::teachers_data)). `pieces` is the length of the pieces of a cache; `None` for a live one.
    ///
    /// # Errors
    /// [`Error::Model`] for a chat template that does not compile.
    pub fn with_teacher(
        mut self,
        tokenizer: Arc<Tokenizer>,
        settings: &Data,
        pieces: Option<usize>,
    ) -> Result<Self, Error> {
        let teacher = Speller { is_placed: true, ..Speller::new("teacher", tokenizer, settings)? };
        self.student.is_placed = true;
        self.teacher = Some((teacher, pieces));
        Ok(self)
    }

    /// The document of a row.
    pub(super) fn encode(&self, record: &Record) -> Result<Document, Fault> {
        let student = self.student.spell(record)?;
        let Some((teacher, pieces)) = &self.teacher else { return Ok(student.document) };
        let taught = teacher.spell(record)?;
        let turns = (student.turns.len(), taught.turns.len());
        match Taught::of(&student, taught, *pieces) {
            Some(taught) => Ok(Document { taught: Some(Box::new(taught)), ..student.document }),
            None => Err(Fault {
                message: format!(
                    "the student's chat template writes {} turns of the assistant, and the teacher's {}",
                    turns.0, turns.1
                ),
                hint: Some("give the student the teacher's way to mark turns by `chat_template:`".to_owned()),
            }),
        }
    }
}

impl Speller {
    fn new(whose: &'static str, tokenizer: Arc<Tokenizer>, settings: &Data) -> Result<Self, Error> {
        let template = match &settings.chat_template {
            Some(path) => Some(ChatTemplate::parse(&read_template(path)?, settings.date)?),
            None => tokenizer.chat_template(settings.date)?,
        };
        let context = tokenizer.chat_context();
        let longest = match settings.long_documents {
            LongDocuments::Truncate => Some(settings.sequence_length),
            LongDocuments::Split => None,
        };
        Ok(Self { whose, tokenizer, template, context, loss_on: settings.loss_on, longest, is_placed: false })
    }

    fn spell(&self, record: &Record) -> Result<Spelled, Fault> {
        let mut spelled = match record {
            Record::Text { text, begins, ends } => self.text(text, *begins, *ends)?,
            Record::Completion { prompt, completion } => self.completion(prompt, completion)?,
            Record::Conversation { messages, from, tools } => self.conversation(messages, *from, tools)?,
            Record::Tokens { ids, learned } => self.given(ids, learned.as_deref())?,
        };
        let document = &mut spelled.document;
        if let Some(longest) = self.longest {
            document.truncate(longest);
        }
        document.trim();
        spelled.places.truncate(document.ids.len());
        Ok(spelled)
    }

    fn text(&self, text: &str, begins: bool, ends: bool) -> Result<Spelled, Fault> {
        let tokens = self.tokens(text)?;
        let mut spelling = Spelling::default();
        if begins {
            spelling.add(self.tokenizer.before(), []);
        }
        spelling.add(&tokens.ids, self.places(text)?);
        if ends {
            self.end(&mut spelling, text.len());
        }
        Ok(spelling.into_spelled(vec![text.to_owned()], |_| true))
    }

    fn completion(&self, prompt: &str, completion: &str) -> Result<Spelled, Fault> {
        let text = format!("{prompt}{completion}");
        let tokens = self.tokens(&text)?;
        let mut spelling = Spelling::default();
        spelling.add(self.tokenizer.before(), []);
        let given = spelling.ids.len() + tokens.starts.partition_point(|&start| start < prompt.len());
        spelling.add(&tokens.ids, self.places(&text)?);
        self.end(&mut spelling, text.len());
        let everything = self.loss_on == LossOn::All;
        Ok(spelling.into_spelled(vec![text], |at| everything || at >= given))
    }

    fn conversation(
        &self,
        messages: &[serde_json::Value],
        from: usize,
        tools: &serde_json::Value,
    ) -> Result<Spelled, Fault> {
        let Some(template) = &self.template else {
            let whose = self.whose;
            let hint = match whose {
                "student" => "name a file with one: `chat_template:` under `data:`",
                _ => "put one into its folder: `chat_template.jinja`",
            };
            return Err(Fault {
                message: format!("the {whose}'s tokenizer has no chat template to write a conversation by"),
                hint: Some(hint.to_owned()),
            });
        };
        let context = ChatContext { tools: tools.clone(), ..self.context.clone() };
        if self.loss_on == LossOn::All && !self.is_placed {
            let text = template.render(messages, false, &context).map_err(|error| refused(&error))?;
            let mut spelling = Spelling::default();
            spelling.add(&self.tokens(&text)?.ids, []);
            return Ok(spelling.into_spelled(Vec::new(), |_| true));
        }
        let turns = template.render_turns(messages, from, &context).map_err(|error| refused(&error))?;
        let tokens = self.tokens(&turns.text)?;
        let mut spelling = Spelling::default();
        let places = self.places(&turns.text)?;
        spelling.add(&tokens.ids, places.into_iter().map(|place| in_turns(place?.byte, &turns.spans)));
        let texts = turns.spans.iter().map(|span| turns.text[span.clone()].to_owned()).collect();
        let learned = inside(&tokens.starts, &turns.spans);
        let everything = self.loss_on == LossOn::All;
        Ok(spelling.into_spelled(texts, |at| everything || learned[at]))
    }

    /// The place of each token of a text; none where nobody asks.
    fn places(&self, text: &str) -> Result<Vec<Option<Place>>, Fault> {
        if !self.is_placed {
            return Ok(Vec::new());
        }
        let spans = self.tokenizer.spans(text).map_err(|error| refused(&error))?;
        let place = |byte: Option<usize>| byte.map(|byte| Place { turn: 0, byte });
        Ok(beginnings(&spans).into_iter().map(place).collect())
    }

    /// Tokens that another tool made.
    fn given(&self, ids: &[u32], learned: Option<&[bool]>) -> Result<Spelled, Fault> {
        if self.is_placed {
            return Err(Fault {
                message: "tokens without their text cannot be aligned with those of another tokenizer"
                    .to_owned(),
                hint: Some("give the text itself, or leave `loss: uld` out".to_owned()),
            });
        }
        let vocabulary = self.tokenizer.vocabulary();
        if let Some(id) = ids.iter().find(|id| **id as usize >= vocabulary) {
            return Err(Fault {
                message: format!("token {id} is none of the tokenizer's, which has ids below {vocabulary}"),
                hint: Some("were the tokens made by another tokenizer?".to_owned()),
            });
        }
        let learned = learned.filter(|_| self.loss_on == LossOn::Completions);
        let document = Document::new(ids.to_vec(), |at| learned.is_none_or(|learned| learned[at]));
        Ok(Spelled { document, places: Vec::new(), turns: Vec::new() })
    }

    fn tokens(&self, text: &str) -> Result<Tokens, Fault> {
        self.tokenizer.encode_plain(text).map_err(|error| refused(&error))
    }

    /// Ends a text of so many bytes: with what the tokenizer puts after one, and with the end-of-text token unless that is it.
    fn end(&self, spelling: &mut Spelling, byte: usize) {
        let place = Some(Place { turn: 0, byte });
        spelling.add(self.tokenizer.after(), [place]);
        let eos = self.tokenizer.special().eos;
        if let Some(eos) = eos.filter(|eos| spelling.ids.last() != Some(eos)) {
            spelling.add(&[eos], [place]);
        }
    }
}

impl Spelling {
    /// Adds tokens, the first of them with these places.
    fn add(&mut self, ids: &[u32], places: impl IntoIterator<Item = Option<Place>>) {
        self.places.resize(self.ids.len(), None);
        self.ids.extend(ids);
        self.places.extend(places.into_iter().take(ids.len()));
        self.places.resize(self.ids.len(), None);
    }

    /// `learned` says of each token but the first whether it is a label.
    fn into_spelled(self, turns: Vec<String>, learned: impl Fn(usize) -> bool) -> Spelled {
        let places = self.places.into_iter().skip(1).collect();
        Spelled { document: Document::new(self.ids, learned), places, turns }
    }
}

impl Document {
    /// `learned` says of each token but the first whether it is a label.
    fn new(mut ids: Vec<u32>, learned: impl Fn(usize) -> bool) -> Self {
        let label = |(at, &id): (usize, &u32)| if learned(at) { id } else { IGNORED };
        let labels = ids.iter().enumerate().skip(1).map(label).collect();
        ids.pop();
        Self { ids, labels, taught: None }
    }

    fn truncate(&mut self, rows: usize) {
        self.ids.truncate(rows);
        self.labels.truncate(rows);
    }

    /// Leaves out what comes after the last label.
    fn trim(&mut self) {
        let rows = self.labels.iter().rposition(|&label| label != IGNORED).map_or(0, |last| last + 1);
        self.truncate(rows);
    }

    /// How many labels are learned.
    pub fn targets(&self) -> usize {
        self.labels.iter().filter(|&&label| label != IGNORED).count()
    }
}

fn refused(error: &aludel_model::Error) -> Fault {
    Fault { message: error.to_string(), hint: None }
}

/// Where a byte of a conversation lies in its turns.
fn in_turns(byte: usize, spans: &[Range<usize>]) -> Option<Place> {
    let turn = spans.partition_point(|span| span.end <= byte);
    let span = spans.get(turn).filter(|span| span.contains(&byte))?;
    Some(Place { turn, byte: byte - span.start })
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
