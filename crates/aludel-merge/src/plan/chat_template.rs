//! Finds the chat template that a recipe asks for.
//!
//! In: the value of `chat_template`: Jinja as it is, the name of a format, or `auto` for what most of the models have. Out: the
//! template's text, for `chat_template.jinja`. The named ones are written from the formats' own descriptions: ChatML
//! (OpenAI), Alpaca (Stanford), Llama 3 (Meta), Mistral Instruct (Mistral AI), EXAONE (LG AI Research).

use std::path::Path;

use aludel_document::{Located, listed, nearest, quoted};
use serde_json::Value;

use super::SideFiles;
use crate::problem::Problem;

/// The file that transformers reads a template from, before any other place.
pub(super) const TEMPLATE_FILE: &str = "chat_template.jinja";

/// Where older models keep theirs.
pub(super) const TOKENIZER_CONFIG: &str = "tokenizer_config.json";

/// The template asked for; `models` are the side files of every model of the merge, in order.
pub(super) fn template(asked: &Located<String>, models: &[&SideFiles]) -> Result<String, Problem> {
    let name = asked.value.as_str();
    if name == "auto" {
        return most_common(models).ok_or_else(|| {
            let message = "none of the models has a chat template";
            Problem::at(asked.place.clone(), message).with_hint("remove the key, or name a template")
        });
    }
    if name.contains("{{") || name.contains("{%") {
        return Ok(name.to_owned());
    }
    let known = TEMPLATES.iter().find(|(known, _)| *known == name).map(|(_, text)| (*text).to_owned());
    known.ok_or_else(|| {
        let message = format!("{} is no chat template that is known by name", quoted(name));
        let names = TEMPLATES.iter().map(|(name, _)| *name).chain(["auto"]);
        let problem = Problem::at(asked.place.clone(), message);
        match nearest(name, names.clone()) {
            Some(meant) => problem.with_hint(format!("did you mean `{meant}`?")),
            None => problem.with_hint(format!("known are {}; or write the template itself", listed(names))),
        }
    })
}

/// Puts a template among side files, in the place of every other.
pub(super) fn put(template: String, files: &mut SideFiles) {
    let is_template = |name: &Path| name == Path::new(TEMPLATE_FILE);
    files.names.retain(|name| !is_template(name));
    files.written.retain(|file| !is_template(&file.name));
    if let Some(mut config) = tokenizer_config(files)
        && config.as_object_mut().is_some_and(|object| object.shift_remove("chat_template").is_some())
    {
        files.write(TOKENIZER_CONFIG, format!("{config:#}\n"));
    }
    files.write(TEMPLATE_FILE, template);
}

/// The template that most models have; among equally many, the one of the earliest model.
fn most_common(models: &[&SideFiles]) -> Option<String> {
    let templates: Vec<String> = models.iter().filter_map(|files| own(files)).collect();
    let count = |template: &String| templates.iter().filter(|other| *other == template).count();
    let most = templates.iter().map(count).max()?;
    templates.iter().find(|template| count(template) == most).cloned()
}

/// The template of a model.
fn own(files: &SideFiles) -> Option<String> {
    files.read_text(TEMPLATE_FILE).or_else(|| {
        let config = tokenizer_config(files)?;
        match config.get("chat_template")? {
            Value::String(template) => Some(template.clone()),
            // Several by name, of which one is the default.
            Value::Array(several) => several
                .iter()
                .find(|one| one.get("name").and_then(Value::as_str) == Some("default"))
                .and_then(|one| Some(one.get("template")?.as_str()?.to_owned())),
            _ => None,
        }
    })
}

fn tokenizer_config(files: &SideFiles) -> Option<Value> {
    serde_json::from_str(&files.read_text(TOKENIZER_CONFIG)?).ok()
}

/// Templates by the names of their formats.
const TEMPLATES: [(&str, &str); 5] = [
    (
        "chatml",
        "{%- for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}{%- endfor %}\
         {%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{%- endif %}",
    ),
    (
        "alpaca",
        "{%- for message in messages %}{%- if message['role'] == 'system' %}{{ message['content'] + '\n\n' }}\
         {%- elif message['role'] == 'user' %}{{ '### Instruction:\n' + message['content'] + '\n\n' }}\
         {%- else %}{{ '### Response:\n' + message['content'] + eos_token + '\n\n' }}{%- endif %}{%- endfor %}\
         {%- if add_generation_prompt %}{{ '### Response:\n' }}{%- endif %}",
    ),
    (
        "llama3",
        "{{- bos_token }}{%- for message in messages %}\
         {{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' + message['content'] | trim + '<|eot_id|>' }}\
         {%- endfor %}{%- if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{%- endif %}",
    ),
    (
        "mistral",
        "{{- bos_token }}{%- set ns = namespace(system='') %}{%- for message in messages %}\
         {%- if message['role'] == 'system' %}{%- set ns.system = message['content'] + '\n\n' %}\
         {%- elif message['role'] == 'user' %}{{ '[INST] ' + ns.system + message['content'] + ' [/INST]' }}{%- set ns.system = '' %}\
         {%- else %}{{ ' ' + message['content'] + eos_token }}{%- endif %}{%- endfor %}",
    ),
    (
        "exaone",
        "{%- if messages and messages[0]['role'] != 'system' %}{{ '[|system|][|endofturn|]\n' }}{%- endif %}\
         {%- for message in messages %}{{ '[|' + message['role'] + '|]' + message['content'] }}\
         {%- if message['role'] == 'user' %}{{ '\n' }}{%- else %}{{ '[|endofturn|]\n' }}{%- endif %}{%- endfor %}\
         {%- if add_generation_prompt %}{{ '[|assistant|]' }}{%- endif %}",
    ),
];
