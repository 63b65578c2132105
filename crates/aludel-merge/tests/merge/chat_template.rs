//! Plans and runs merges that ask for a chat template: by name, literal, or that of most models.

use std::fs;
use std::path::Path;

use crate::made::{merged, model};
use serde_json::{Value, json};

const LITERAL: &str = "{% for message in messages %}{{ message.content }}{% endfor %}";

/// A model whose template stands in `chat_template.jinja`, in `tokenizer_config.json`, or nowhere.
fn with_template(folder: &Path, jinja: Option<&str>, config: Option<Value>) {
    model(folder, &json!({}), &[("w".to_owned(), 1.0)]);
    if let Some(jinja) = jinja {
        fs::write(folder.join("chat_template.jinja"), jinja).unwrap();
    }
    let mut tokenizer = json!({"model_max_length": 10, "eos_token": "x"});
    if let Some(template) = config {
        tokenizer["chat_template"] = template;
    }
    fs::write(folder.join("tokenizer_config.json"), tokenizer.to_string()).unwrap();
}

/// The output's template and tokenizer config, where it has them.
fn outcome(folder: &Path, asked: &str) -> Result<(Option<String>, Value), String> {
    let models = ["a", "b", "c", "d"].map(|name| format!("{{model: {}}}", folder.join(name).display()));
    let recipe = format!(
        "merge_method: linear\nmodels: [{}]\nparameters: {{weight: 1}}\n{asked}\n",
        models.join(", ")
    );
    merged(&recipe, &folder.join("out")).map_err(|problems| problems.to_string())?;
    let config = fs::read(folder.join("out/tokenizer_config.json")).unwrap();
    let template = fs::read_to_string(folder.join("out/chat_template.jinja")).ok();
    Ok((template, serde_json::from_slice(&config).unwrap()))
}

#[test]
fn a_template_is_taken_by_name_as_it_is_or_from_most_models() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    with_template(&folder.join("a"), None, Some(json!("of a")));
    with_template(&folder.join("b"), Some("of b and c"), None);
    with_template(
        &folder.join("c"),
        None,
        Some(json!([{"name": "tools", "template": "of c"}, {"name": "default", "template": "of b and c"}])),
    );
    with_template(&folder.join("d"), None, None);
    let without = json!({"model_max_length": 10, "eos_token": "x"});

    let (template, config) = outcome(folder, "").unwrap();
    assert_eq!((template, &config["chat_template"]), (None, &json!("of a")));
    assert_eq!(outcome(folder, "chat_template: auto").unwrap(), (Some("of b and c".into()), without.clone()));
    let literal = outcome(folder, &format!("chat_template: '{LITERAL}'")).unwrap();
    assert_eq!(literal, (Some(LITERAL.into()), without.clone()));
    for (name, part) in [
        ("chatml", "<|im_start|>"),
        ("llama3", "<|start_header_id|>"),
        ("mistral", "[INST] "),
        ("alpaca", "### Instruction:\\n"),
        ("exaone", "[|endofturn|]"),
    ] {
        let (template, config) = outcome(folder, &format!("chat_template: {name}")).unwrap();
        let part = part.replace("\\n", "\n");
        assert!(template.as_ref().is_some_and(|template| template.contains(&part)), "{name}: {template:?}");
        assert_eq!(config, without);
    }
}

#[test]
fn a_template_that_is_not_known_or_not_there_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    ["a", "b", "c", "d"].iter().for_each(|name| with_template(&folder.join(name), None, None));
    for (asked, problem) in [
        (
            "chatlm",
            "4:16 chat_template: `chatlm` is no chat template that is known by name (did you mean `chatml`?)",
        ),
        (
            "zephyr",
            "4:16 chat_template: `zephyr` is no chat template that is known by name (known are `chatml`, `alpaca`, `llama3`, `mistral`, `exaone`, `auto`; or write the template itself)",
        ),
        (
            "auto",
            "4:16 chat_template: none of the models has a chat template (remove the key, or name a template)",
        ),
    ] {
        assert_eq!(outcome(folder, &format!("chat_template: {asked}")).unwrap_err(), problem);
    }
}
