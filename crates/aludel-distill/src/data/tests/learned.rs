//! Which tokens a document has, and which of them are learned.

use aludel_kernels::loss::IGNORED;

use super::*;

const TEMPLATE: &str = "{% for m in messages %}<{{ m.role }}>{{ m.content }}</>\n{% endfor %}\
                        {% if add_generation_prompt %}<assistant>{% endif %}";

/// The document of the only row of a file.
fn document(row: &serde_json::Value, more: &str) -> Result<Document, String> {
    let folder = Folder::new();
    let template = folder.write("template.jinja", TEMPLATE);
    let path = folder.write("a.jsonl", row.to_string());
    let settings = settings(&[&path], &format!("chat_template: \"{}\", {more}", template.display()));
    let corpus = Corpus::open(&settings).unwrap();
    encoder(&settings).encode(&corpus.train.read(0).unwrap()).map_err(|fault| fault.message)
}

/// The text of a document's inputs, and of the tokens that it learns.
fn told(document: &Document) -> (String, String) {
    let tokenizer = tokenizer();
    let learned: Vec<u32> = document.labels.iter().copied().filter(|&label| label != IGNORED).collect();
    assert_eq!(document.ids.len(), document.labels.len());
    for (at, &label) in document.labels.iter().enumerate() {
        let follows = document.ids.get(at + 1).is_none_or(|&id| id == label);
        assert!(label == IGNORED || follows, "label {at} is the token after it");
    }
    (tokenizer.decode(&document.ids, true).unwrap(), tokenizer.decode(&learned, true).unwrap())
}

#[test]
fn a_text_is_learned_up_to_its_end() {
    for text in ["The alchemist", "Größe 日本語 🦀", "a", "x<|endoftext|>"] {
        let document = document(&serde_json::json!({ "text": text }), "").unwrap();
        let mut ids = tokenizer().encode(text).unwrap();
        if ids.last() != Some(&0) {
            ids.push(0);
        }
        assert_eq!(document.ids, ids[..ids.len() - 1], "{text}");
        assert_eq!(document.labels, ids[1..], "{text}");
    }
    // Nothing comes before the end of an empty text that could predict it.
    assert_eq!(document(&serde_json::json!({"text": ""}), "").unwrap(), Document::default());
}

#[test]
fn of_a_prompt_with_its_completion_the_completion_is_learned() {
    let row = serde_json::json!({"prompt": "2 + 2 =", "completion": " 4é"});
    assert_eq!(told(&document(&row, "").unwrap()), ("2 + 2 = 4é".into(), " 4é<|endoftext|>".into()));
    let (inputs, learned) = told(&document(&row, "loss_on: all").unwrap());
    let first = tokenizer().encode(&inputs).unwrap()[0];
    assert_eq!((tokenizer().token(first).unwrap() + &learned).replace('Ġ', " "), "2 + 2 = 4é<|endoftext|>");
    // A token that begins in the prompt belongs to it: here the only one.
    let the = tokenizer().encode(" the").unwrap();
    assert_eq!(the.len(), 1, "this test needs a token for a word");
    let joined = document(&serde_json::json!({"prompt": " t", "completion": "he"}), "").unwrap();
    assert_eq!((joined.ids, joined.labels), (the, vec![0]));
    let nothing = document(&serde_json::json!({"prompt": "", "completion": ""}), "").unwrap();
    assert_eq!(nothing, Document::default());
}

#[test]
fn of_a_conversation_the_assistant_is_learned() {
    let messages = serde_json::json!([
        {"role": "user", "content": "q1"},
        {"role": "assistant", "content": "a1 é"},
        {"role": "user", "content": "q2"},
        {"role": "assistant", "content": "a2"},
        {"role": "user", "content": "q3"},
    ]);
    let row = serde_json::json!({ "messages": messages });
    let (inputs, learned) = told(&document(&row, "").unwrap());
    assert_eq!(learned, "a1 é</>\na2</>\n");
    // What comes after the last token that is learned is no input.
    assert_eq!(inputs, "<user>q1</>\n<assistant>a1 é</>\n<user>q2</>\n<assistant>a2</>");
    let (inputs, learned) = told(&document(&row, "loss_on: all").unwrap());
    assert!(inputs.ends_with("q3</>") && learned.starts_with("user>q1"), "{inputs} {learned}");
    let pair = serde_json::json!({"prompt": messages.as_array().unwrap()[..3], "completion": [messages[3]]});
    assert_eq!(told(&document(&pair, "").unwrap()).1, "a2</>\n");
    let silent = serde_json::json!({"messages": [{"role": "user", "content": "q"}]});
    assert_eq!(document(&silent, "").unwrap(), Document::default());
}

#[test]
fn a_long_document_is_truncated_where_asked() {
    let row = serde_json::json!({"text": "abcdefghijklmnopqrstuvwxyz"});
    let whole = document(&row, "sequence_length: 8").unwrap();
    let cut = document(&row, "sequence_length: 8, long_documents: truncate").unwrap();
    assert!(whole.ids.len() > 8 && cut.ids == whole.ids[..8] && cut.labels == whole.labels[..8]);
    let row = serde_json::json!({"prompt": "abcdefghijklmnopqrstuvwxyz", "completion": "x"});
    assert_eq!(document(&row, "sequence_length: 8, long_documents: truncate").unwrap(), Document::default());
}

#[test]
fn a_conversation_needs_a_template() {
    let folder = Folder::new();
    let path = folder.write("a.jsonl", "{\"messages\": [{\"role\": \"user\"}]}");
    let settings = settings(&[&path], "");
    let corpus = Corpus::open(&settings).unwrap();
    let fault = encoder(&settings).encode(&corpus.train.read(0).unwrap()).unwrap_err();
    assert_eq!(fault.message, "the student's tokenizer has no chat template to write a conversation by");
}
