//! Says what a row holds: a text, a prompt with its completion, a conversation, or tokens.
//!
//! In: a row as JSON and the names of its columns. Out: a [`Record`], or what is wrong with the row and what to do about it.

use aludel_document::{listed, nearest, quoted};
use aludel_kernels::loss::IGNORED;
use serde_json::{Map, Value as Json};

use crate::run::Columns;

/// What a row holds.
#[derive(Debug, Clone, PartialEq)]
pub enum Record {
    /// A text, or a part of one.
    Text {
        /// The text.
        text: String,
        /// Nothing of the same text comes before it.
        begins: bool,
        /// Nothing of the same text comes after it.
        ends: bool,
    },
    /// A text that is given and a text that is learned.
    Completion {
        /// What is given.
        prompt: String,
        /// What follows.
        completion: String,
    },
    /// Messages of a conversation.
    Conversation {
        /// The messages, each an object.
        messages: Vec<Json>,
        /// The first message that is learned.
        from: usize,
        /// Tools that the assistant is told of; null when there are none.
        tools: Json,
    },
    /// Tokens by their ids, as another tool made them of a text.
    Tokens {
        /// All of them.
        ids: Vec<u32>,
        /// Of each, whether it is learned; all are where this does not say.
        learned: Option<Vec<bool>>,
    },
}

/// What is wrong with a row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Fault {
    pub(super) message: String,
    pub(super) hint: Option<String>,
}

impl Fault {
    fn new(message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { message: message.into(), hint: Some(hint.into()) }
    }
}

impl Record {
    /// Reads a line of JSON.
    pub(super) fn from_line(line: &[u8], columns: &Columns) -> Result<Self, Fault> {
        let row = serde_json::from_slice(line).map_err(|error| {
            Fault::new(format!("not valid JSON: {error}"), "each line is one JSON object")
        })?;
        match row {
            Json::Object(row) => Self::from_row(row, columns),
            other => Err(Fault::new(
                format!("expected an object, found {}", kind(&other)),
                "each line is one JSON object",
            )),
        }
    }

    /// Reads a row by its columns; `messages` go before `prompt` and `completion`, both before `text`, and all before `input_ids`.
    fn from_row(mut row: Map<String, Json>, columns: &Columns) -> Result<Self, Fault> {
        let has = |name: &str| row.get(name).is_some_and(|value| !value.is_null());
        let (prompt, completion) = (has(&columns.prompt), has(&columns.completion));
        if has(&columns.messages) {
            let messages = take_messages(&mut row, &columns.messages)?;
            return Ok(Self::Conversation { messages, from: 0, tools: take_tools(&mut row)? });
        }
        match (prompt, completion) {
            (true, true) => return Self::completion(row, columns),
            (true, false) => return Err(missing(&row, &columns.completion, &columns.prompt)),
            (false, true) => return Err(missing(&row, &columns.prompt, &columns.completion)),
            (false, false) => {}
        }
        if has(&columns.text) {
            return Ok(Self::Text { text: take_text(&mut row, &columns.text)?, begins: true, ends: true });
        }
        if has(&columns.input_ids) {
            return Self::tokens(&row, columns);
        }
        Err(nothing(&row, columns))
    }

    fn tokens(row: &Map<String, Json>, columns: &Columns) -> Result<Self, Fault> {
        const HINT: &str = "tokens are a list of ids, such as `[12, 7, 300]`";
        let name = quoted(&columns.input_ids);
        let id =
            |value: &Json| value.as_u64().and_then(|id| u32::try_from(id).ok()).filter(|id| *id != IGNORED);
        let ids =
            row[&columns.input_ids].as_array().and_then(|ids| ids.iter().map(id).collect::<Option<Vec<_>>>());
        let ids = ids.ok_or_else(|| Fault::new(format!("{name} is no list of token ids"), HINT))?;
        let Some(labels) = row.get(&columns.labels).filter(|labels| !labels.is_null()) else {
            return Ok(Self::Tokens { ids, learned: None });
        };
        let labels: Option<Vec<i64>> =
            labels.as_array().and_then(|labels| labels.iter().map(Json::as_i64).collect());
        let labels = labels.filter(|labels| labels.len() == ids.len());
        let agree = labels.filter(|labels| {
            labels.iter().zip(&ids).all(|(&label, &id)| label < 0 || label == i64::from(id))
        });
        let learned = agree.map(|labels| labels.iter().map(|label| *label >= 0).collect::<Vec<_>>());
        let learned = learned.ok_or_else(|| {
            let hint = "a label stands at the place of its own token, and is its id, or -100 where it is not learned";
            Fault::new(format!("{} are not those of {name}", quoted(&columns.labels)), hint)
        })?;
        Ok(Self::Tokens { ids, learned: Some(learned) })
    }

    /// A prompt and a completion, both texts or both messages.
    fn completion(mut row: Map<String, Json>, columns: &Columns) -> Result<Self, Fault> {
        if row[&columns.prompt].is_array() && row[&columns.completion].is_array() {
            let mut messages = take_messages(&mut row, &columns.prompt)?;
            let from = messages.len();
            messages.extend(take_messages(&mut row, &columns.completion)?);
            return Ok(Self::Conversation { messages, from, tools: take_tools(&mut row)? });
        }
        let prompt = take_text(&mut row, &columns.prompt)?;
        Ok(Self::Completion { prompt, completion: take_text(&mut row, &columns.completion)? })
    }
}

fn take_text(row: &mut Map<String, Json>, name: &str) -> Result<String, Fault> {
    match row.remove(name).unwrap_or_default() {
        Json::String(text) => Ok(text),
        other => {
            Err(Fault { message: format!("{} is no text but {}", quoted(name), kind(&other)), hint: None })
        }
    }
}

fn take_messages(row: &mut Map<String, Json>, name: &str) -> Result<Vec<Json>, Fault> {
    const HINT: &str = "a conversation is a list such as `[{\"role\": \"user\", \"content\": \"...\"}]`";
    let value = row.remove(name).unwrap_or_default();
    let Json::Array(messages) = value else {
        return Err(Fault::new(
            format!("{} is no list of messages but {}", quoted(name), kind(&value)),
            HINT,
        ));
    };
    let whose = |message: &Json| message.get("role").is_some_and(Json::is_string);
    match messages.iter().position(|message| !whose(message)) {
        Some(at) => Err(Fault::new(format!("message {at} of {} has no `role`", quoted(name)), HINT)),
        None if messages.is_empty() => Err(Fault::new(format!("{} is empty", quoted(name)), HINT)),
        None => Ok(messages),
    }
}

/// Tools may be JSON in a text, as columns of a table cannot hold arbitrary objects.
fn take_tools(row: &mut Map<String, Json>) -> Result<Json, Fault> {
    let tools = match row.remove("tools").unwrap_or_default() {
        Json::String(text) if text.is_empty() => Json::Null,
        Json::String(text) => serde_json::from_str(&text).unwrap_or(Json::String(text)),
        other => other,
    };
    match tools {
        Json::Null | Json::Array(_) => Ok(tools),
        other => Err(Fault::new(
            format!("`tools` is no list but {}", kind(&other)),
            "leave it out where there are none",
        )),
    }
}

fn missing(row: &Map<String, Json>, name: &str, beside: &str) -> Fault {
    let message = format!("{} is missing beside {}", quoted(name), quoted(beside));
    match nearest(name, row.keys().map(String::as_str)) {
        Some(meant) if meant != name => Fault::new(message, named(name, meant)),
        _ => Fault { message, hint: None },
    }
}

fn nothing(row: &Map<String, Json>, columns: &Columns) -> Fault {
    let known = [&columns.text, &columns.messages, &columns.prompt, &columns.completion, &columns.input_ids];
    let message = format!(
        "the row has neither {} nor {} nor {} with {} nor {}",
        quoted(known[0]),
        quoted(known[1]),
        quoted(known[2]),
        quoted(known[3]),
        quoted(known[4])
    );
    let names = || row.keys().map(String::as_str);
    let meant = known.into_iter().find_map(|name| Some((name, nearest(name, names())?)));
    match meant {
        Some((name, meant)) if meant != name => Fault::new(message, named(name, meant)),
        _ if row.is_empty() => Fault { message, hint: None },
        _ => {
            let own = listed(names().take(10));
            Fault::new(message, format!("its columns are {own}; say which with `columns:` under `data:`"))
        }
    }
}

fn named(name: &str, meant: &str) -> String {
    format!("did you mean {}? then write `columns: {{{name}: {meant}}}` under `data:`", quoted(meant))
}

fn kind(value: &Json) -> &'static str {
    match value {
        Json::Null => "nothing",
        Json::Bool(_) => "a truth value",
        Json::Number(_) => "a number",
        Json::String(_) => "a text",
        Json::Array(_) => "a list",
        Json::Object(_) => "an object",
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(line: &str) -> Result<Record, String> {
        Record::from_line(line.as_bytes(), &Columns::default()).map_err(|fault| match fault.hint {
            Some(hint) => format!("{} ({hint})", fault.message),
            None => fault.message,
        })
    }

    #[test]
    fn rows_are_texts_completions_or_conversations() {
        let user = json!({"role": "user", "content": "q"});
        let assistant = json!({"role": "assistant", "content": "a"});
        let conversation = |from, tools| Record::Conversation {
            messages: vec![user.clone(), assistant.clone()],
            from,
            tools,
        };
        let completion = Record::Completion { prompt: "p".into(), completion: "c".into() };
        for (row, record) in [
            (json!({"text": "é\n", "id": 3}), Record::Text { text: "é\n".into(), begins: true, ends: true }),
            (json!({"prompt": "p", "completion": "c", "text": "t"}), completion),
            (json!({"messages": [user, assistant], "text": null}), conversation(0, Json::Null)),
            (json!({"messages": [user, assistant], "tools": [1]}), conversation(0, json!([1]))),
            (json!({"messages": [user, assistant], "tools": "[{}]"}), conversation(0, json!([{}]))),
            (json!({"prompt": [user], "completion": [assistant]}), conversation(1, Json::Null)),
            (json!({"input_ids": [3, 0]}), Record::Tokens { ids: vec![3, 0], learned: None }),
            (
                json!({"input_ids": [3, 0, 7], "labels": [-100, 0, 7], "text": null}),
                Record::Tokens { ids: vec![3, 0, 7], learned: Some(vec![false, true, true]) },
            ),
        ] {
            assert_eq!(read(&row.to_string()).unwrap(), record, "{row}");
        }
    }

    #[test]
    fn what_is_wrong_with_a_row_is_said_with_a_remedy() {
        for (line, expected) in [
            (
                "{\"text\": ",
                "not valid JSON: EOF while parsing a value at line 1 column 9 (each line is one JSON object)",
            ),
            ("[1]", "expected an object, found a list (each line is one JSON object)"),
            ("{\"text\": 3}", "`text` is no text but a number"),
            (
                "{}",
                "the row has neither `text` nor `messages` nor `prompt` with `completion` nor `input_ids`",
            ),
            (
                "{\"texts\": \"a\"}",
                "the row has neither `text` nor `messages` nor `prompt` with `completion` nor `input_ids` (did you mean `texts`? then write `columns: {text: texts}` under `data:`)",
            ),
            (
                "{\"body\": \"a\", \"id\": 1}",
                "the row has neither `text` nor `messages` nor `prompt` with `completion` nor `input_ids` (its columns are `body`, `id`; say which with `columns:` under `data:`)",
            ),
            ("{\"prompt\": \"a\"}", "`completion` is missing beside `prompt`"),
            (
                "{\"prompt\": \"a\", \"completions\": \"b\"}",
                "`completion` is missing beside `prompt` (did you mean `completions`? then write `columns: {completion: completions}` under `data:`)",
            ),
            ("{\"prompt\": [], \"completion\": \"b\"}", "`prompt` is no text but a list"),
            (
                "{\"input_ids\": [1, -1]}",
                "`input_ids` is no list of token ids (tokens are a list of ids, such as `[12, 7, 300]`)",
            ),
            (
                "{\"input_ids\": [1, 2], \"labels\": [2, -100]}",
                "`labels` are not those of `input_ids` (a label stands at the place of its own token, and is its id, or -100 where it is not learned)",
            ),
            (
                "{\"messages\": []}",
                "`messages` is empty (a conversation is a list such as `[{\"role\": \"user\", \"content\": \"...\"}]`)",
            ),
            (
                "{\"messages\": [{\"role\": \"user\"}, {\"content\": \"b\"}]}",
                "message 1 of `messages` has no `role` (a conversation is a list such as `[{\"role\": \"user\", \"content\": \"...\"}]`)",
            ),
            (
                "{\"messages\": [{\"role\": \"user\"}], \"tools\": \"none\"}",
                "`tools` is no list but a text (leave it out where there are none)",
            ),
        ] {
            assert_eq!(read(line).unwrap_err(), expected, "{line}");
        }
    }

    #[test]
    fn nesting_is_bounded() {
        let deep = format!("{{\"text\": {}}}", "[".repeat(100_000));
        assert!(read(&deep).unwrap_err().starts_with("not valid JSON: recursion limit exceeded"));
    }
}
