//! Holds rendering to what transformers writes, and finds what the assistant said.

use std::path::{Path, PathBuf};

use serde_json::{Value as Json, json};

use super::*;

fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/chat")
}

fn read(name: &str) -> String {
    std::fs::read_to_string(golden().join(name)).unwrap()
}

fn moment() -> Moment {
    Moment::since_1970(1_720_256_700) // 2024-07-06 09:05
}

fn template(name: &str) -> ChatTemplate {
    ChatTemplate::parse(&read(&format!("templates/{name}.jinja")), moment()).unwrap()
}

fn context() -> ChatContext {
    let special_tokens = vec![("bos_token", "<s>".to_owned()), ("eos_token", "</s>".to_owned())];
    ChatContext { special_tokens, tools: Json::Null }
}

fn messages(json: &Json) -> Vec<Json> {
    json.as_array().unwrap().clone()
}

#[test]
fn every_conversation_is_written_as_transformers_writes_it() {
    let conversations: Vec<Json> = serde_json::from_str(&read("conversations.json")).unwrap();
    let cases: Vec<Json> = serde_json::from_str(&read("cases.json")).unwrap();
    let mut refused = 0;
    for case in &cases {
        let conversation = conversations.iter().find(|one| one["name"] == case["conversation"]).unwrap();
        let name = case["template"].as_str().unwrap();
        let template = template(name);
        let context = ChatContext { tools: conversation["tools"].clone(), ..context() };
        let messages = messages(&conversation["messages"]);
        let written = template.render(&messages, case["prompt"] == true, &context);
        match (&case["error"], written) {
            (Json::Null, written) => {
                assert_eq!(
                    written.unwrap(),
                    case["text"].as_str().unwrap(),
                    "{name} {}",
                    case["conversation"]
                );
            }
            (Json::String(said), Err(error)) => {
                refused += 1;
                // Words of the template are passed on; those of the engine differ.
                assert!(!said.contains("alternate") || error.to_string().contains(said.as_str()), "{error}");
            }
            (_, Ok(text)) => panic!("{name} takes {}: {text}", case["conversation"]),
            (_, Err(error)) => panic!("{error}"),
        }
        if !case["spans"].is_null() && case["prompt"] == false {
            let turns = template.render_turns(&messages, 0, &context).unwrap();
            let spans: Vec<[usize; 2]> = turns.spans.iter().map(|span| [span.start, span.end]).collect();
            assert_eq!(json!(spans), case["spans"], "{name} {}", case["conversation"]);
            assert_eq!(turns.text, case["text"].as_str().unwrap());
        }
    }
    assert!(cases.len() >= 100 && refused > 0, "{} cases, {refused} refused", cases.len());
}

/// What the assistant said, by a template and the messages of a conversation.
fn said(name: &str, messages: &Json, from: usize) -> Result<Vec<String>, String> {
    let messages = self::messages(messages);
    let turns =
        template(name).render_turns(&messages, from, &context()).map_err(|error| error.to_string())?;
    assert_eq!(turns.text, template(name).render(&messages, false, &context()).unwrap());
    Ok(turns.spans.into_iter().map(|span| turns.text[span].to_owned()).collect())
}

#[test]
fn a_turn_is_what_follows_the_prompt_up_to_its_end() {
    let two = json!([
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "é"},
        {"role": "user", "content": "b"},
        {"role": "assistant", "content": ""},
    ]);
    assert_eq!(said("smollm2", &two, 0).unwrap(), ["é<|im_end|>\n", "<|im_end|>\n"]);
    assert_eq!(said("smollm2", &two, 2).unwrap(), ["<|im_end|>\n"]);
    assert_eq!(said("smollm2", &two, 4).unwrap(), [""; 0]);
    assert_eq!(said("llama3", &two, 0).unwrap(), ["é<|eot_id|>", "<|eot_id|>"]);
    assert_eq!(said("gemma", &two, 0).unwrap(), ["é<end_of_turn>\n", "<end_of_turn>\n"]);
    assert_eq!(said("mistral", &two, 0).unwrap(), [" é</s>", " </s>"]);
    assert_eq!(said("generation", &two, 0).unwrap(), ["é<|end|>", "<|end|>"]);
    let first = json!([{"role": "assistant", "content": "I begin."}, {"role": "user", "content": "Odd."}]);
    assert_eq!(said("generation", &first, 0).unwrap(), ["I begin.<|end|>"]);
}

#[test]
fn a_template_that_rewrites_what_it_wrote_is_refused() {
    let thoughts = json!([
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "<think>x</think>y"},
        {"role": "user", "content": "b"},
        {"role": "assistant", "content": "z"},
    ]);
    let error = said("qwen3", &thoughts, 0).unwrap_err();
    assert!(error.contains("writes after message 1 changes with the messages that follow"), "{error}");
    assert_eq!(said("qwen3", &thoughts, 2).unwrap(), ["<think>\n\n</think>\n\nz<|im_end|>\n"]);
}

#[test]
fn a_header_that_the_prompt_spells_differently_is_told_apart_where_they_part() {
    let source = "{% for m in messages %}[{{ m.role }}]{{ m.content }}\n{% endfor %}\
                  {% if add_generation_prompt %}[assistant]<think>{% endif %}";
    let template = ChatTemplate::parse(source, moment()).unwrap();
    let messages =
        messages(&json!([{"role": "user", "content": "a"}, {"role": "assistant", "content": "<b>"}]));
    let turns = template.render_turns(&messages, 0, &context()).unwrap();
    assert_eq!(turns.spans.into_iter().map(|span| &turns.text[span]).collect::<Vec<_>>(), ["b>\n"]);
}

#[test]
fn templates_that_do_not_compile_or_do_not_end_are_refused() {
    let error = ChatTemplate::parse("a\n{% if %}", moment()).unwrap_err().to_string();
    assert!(error.starts_with("the chat template cannot be used: ") && error.contains("line 2"), "{error}");
    for endless in [
        "{% for i in range(100000) %}{% for j in range(100000) %}{% endfor %}{% endfor %}",
        "{% set ns = namespace(s='0123456789abcdef') %}{% for i in range(60) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}",
        "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
        "{{ 'a' * 100000000000 }}",
    ] {
        let template = ChatTemplate::parse(endless, moment()).unwrap();
        assert!(template.render(&[], false, &context()).is_err(), "{endless}");
    }
    for cut in
        ["{%", "{%-", "{% generation", "{% generation %}", "{% endgeneration %}", "{{ '{% generation %}' }}"]
    {
        let _ =
            ChatTemplate::parse(cut, moment()).and_then(|template| template.render(&[], true, &context()));
    }
}
