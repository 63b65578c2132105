//! Rebuilds tokenizer.json and the small files beside it from a GGUF file's vocabulary.
//!
//! In: the header and the embedding's number of rows. Out: named files as bytes, in the formats of Hugging Face's
//! tokenizers and transformers, and warnings about what the file leaves open. Byte-level BPE ("gpt2") and SentencePiece
//! BPE ("llama") are rebuilt; other kinds are refused by name.

use serde::Serialize;
use serde::ser::{SerializeMap, Serializer};
use serde_json::{Map, Value, json};

use super::header::Header;
use super::merges::{Merge, listed, rebuilt};
use super::pre_tokenizer::{Splitting, UNNAMED, find};
use super::vocabulary::{Special, Vocabulary};
use crate::error::Error;

/// A file of the output folder: its name and content.
pub(crate) type SideFile = (&'static str, Vec<u8>);

/// The tokenizer's files.
#[derive(Debug, Default)]
pub(super) struct Tokenizer {
    pub(super) files: Vec<SideFile>,
    /// Ids for config.json, such as `bos_token_id`.
    pub(super) ids: Map<String, Value>,
    pub(super) warnings: Vec<String>,
}

/// Rebuilds the tokenizer of a file whose embedding has `rows` rows; without files, and with a warning, when the file
/// has no vocabulary.
///
/// Errors: [`Error::Unsupported`] for a kind of tokenizer or a way of splitting that is not known, by name;
/// [`Error::Damaged`].
pub(super) fn rebuild(header: &Header, rows: u64) -> Result<Tokenizer, Error> {
    let Some(vocabulary) = Vocabulary::read(header, rows)? else {
        let warnings = vec!["the file has no vocabulary, so the output has no tokenizer".into()];
        return Ok(Tokenizer { warnings, ..Tokenizer::default() });
    };
    let mut warnings = Vec::new();
    let kind = header.metadata.text("tokenizer.ggml.model")?;
    let (pipeline, merges) = match kind {
        Some("gpt2") => (byte_level(header, &mut warnings)?, listed(&vocabulary)?),
        Some("llama") => (sentence_piece(header)?, rebuilt(&vocabulary)?),
        other => {
            let detail = format!(
                "its tokenizer is {:?}; \"gpt2\" and \"llama\" are rebuilt",
                other.unwrap_or("not named")
            );
            return Err(Error::unsupported(header.path(), detail));
        }
    };
    let ends = Ends::read(&vocabulary, pipeline.adds_bos)?;
    let files = vec![
        ("tokenizer.json", tokenizer_json(&vocabulary, &pipeline, &ends, &merges)?),
        ("tokenizer_config.json", pretty(&tokenizer_config(&vocabulary, &ends)?.into())),
        ("special_tokens_map.json", pretty(&roles(&vocabulary).into())),
        ("generation_config.json", pretty(&ids(&vocabulary).into())),
    ];
    Ok(Tokenizer { files, ids: ids(&vocabulary), warnings })
}

/// What surrounds the vocabulary: one of the two families.
struct Pipeline {
    normalizer: Value,
    pre_tokenizer: Value,
    decoder: Value,
    ignores_merges: bool,
    falls_back_to_bytes: bool,
    /// Where the file does not say.
    adds_bos: bool,
}

fn byte_level(header: &Header, warnings: &mut Vec<String>) -> Result<Pipeline, Error> {
    let splitting = splitting(header, warnings)?;
    Ok(Pipeline {
        normalizer: splitting.normalizer(),
        pre_tokenizer: splitting.pre_tokenizer(),
        decoder: json!({ "type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true }),
        ignores_merges: splitting.ignores_merges,
        falls_back_to_bytes: false,
        adds_bos: splitting.adds_bos,
    })
}

fn splitting(header: &Header, warnings: &mut Vec<String>) -> Result<Splitting, Error> {
    match header.metadata.text("tokenizer.ggml.pre")? {
        None | Some("default") => {
            warnings.push(
                "the file does not say how its tokenizer splits text (tokenizer.ggml.pre); GPT-2's way was taken, \
                 compare some tokens with the original model"
                    .into(),
            );
            Ok(UNNAMED)
        }
        Some(name) => find(name).ok_or_else(|| {
            let detail = format!("its tokenizer splits text in the way {name:?}, which is not known");
            Error::unsupported(header.path(), detail)
        }),
    }
}

/// Spaces become `▁`; with a leading one where the file asks for it, which is SentencePiece's default.
fn sentence_piece(header: &Header) -> Result<Pipeline, Error> {
    let prefix = header.metadata.flag("tokenizer.ggml.add_space_prefix")?.unwrap_or(true);
    let replace = json!({ "type": "Replace", "pattern": { "String": " " }, "content": SPACE });
    let restore = json!({ "type": "Replace", "pattern": { "String": SPACE }, "content": " " });
    let mut normalizers = vec![replace];
    let mut decoders = vec![restore, json!({ "type": "ByteFallback" }), json!({ "type": "Fuse" })];
    if prefix {
        normalizers.insert(0, json!({ "type": "Prepend", "prepend": SPACE }));
        decoders.push(json!({ "type": "Strip", "content": " ", "start": 1, "stop": 0 }));
    }
    Ok(Pipeline {
        normalizer: json!({ "type": "Sequence", "normalizers": normalizers }),
        pre_tokenizer: Value::Null,
        decoder: json!({ "type": "Sequence", "decoders": decoders }),
        ignores_merges: false,
        falls_back_to_bytes: true,
        adds_bos: true,
    })
}

/// Tokens that are put around every text.
struct Ends<'a> {
    bos: Option<(u32, &'a str)>,
    eos: Option<(u32, &'a str)>,
}

impl<'a> Ends<'a> {
    fn read(vocabulary: &Vocabulary<'a>, adds_bos: bool) -> Result<Self, Error> {
        let metadata = &vocabulary.header.metadata;
        let token = |id: Option<u32>| id.map(|id| (id, vocabulary.texts[id as usize]));
        let bos = metadata.flag("tokenizer.ggml.add_bos_token")?.unwrap_or(adds_bos);
        let eos = metadata.flag("tokenizer.ggml.add_eos_token")?.unwrap_or(false);
        let Special { bos: bos_id, eos: eos_id, .. } = vocabulary.special;
        Ok(Self { bos: token(bos_id).filter(|_| bos), eos: token(eos_id).filter(|_| eos) })
    }

    /// The `post_processor` of tokenizer.json.
    fn post_processor(&self) -> Value {
        if self.bos.is_none() && self.eos.is_none() {
            return Value::Null;
        }
        let mut tokens = Map::new();
        for (id, text) in [self.bos, self.eos].into_iter().flatten() {
            tokens.insert(text.to_owned(), json!({ "id": text, "ids": [id], "tokens": [text] }));
        }
        let single = self.around("A", 0);
        let pair = [single.clone(), self.around("B", 1)].concat();
        json!({ "type": "TemplateProcessing", "single": single, "pair": pair, "special_tokens": tokens })
    }

    fn around(&self, sequence: &str, type_id: u32) -> Vec<Value> {
        let special = |(_, text)| json!({ "SpecialToken": { "id": text, "type_id": type_id } });
        let sequence = json!({ "Sequence": { "id": sequence, "type_id": type_id } });
        self.bos.map(special).into_iter().chain([sequence]).chain(self.eos.map(special)).collect()
    }
}

fn tokenizer_json(
    vocabulary: &Vocabulary<'_>,
    pipeline: &Pipeline,
    ends: &Ends<'_>,
    merges: &[Merge<'_>],
) -> Result<Vec<u8>, Error> {
    let unknown = vocabulary.special.unknown.map(|id| vocabulary.texts[id as usize]);
    let file = TokenizerFile {
        version: "1.0",
        truncation: (),
        padding: (),
        added_tokens: vocabulary.added().map(AddedToken::new).collect(),
        normalizer: &pipeline.normalizer,
        pre_tokenizer: &pipeline.pre_tokenizer,
        post_processor: ends.post_processor(),
        decoder: &pipeline.decoder,
        model: Model {
            kind: "BPE",
            dropout: (),
            // Every byte is a token of a byte-level vocabulary: nothing is unknown to it.
            unk_token: unknown.filter(|_| pipeline.falls_back_to_bytes),
            continuing_subword_prefix: (),
            end_of_word_suffix: (),
            fuse_unk: pipeline.falls_back_to_bytes,
            byte_fallback: pipeline.falls_back_to_bytes,
            ignore_merges: pipeline.ignores_merges,
            vocab: Ids(&vocabulary.texts),
            merges,
        },
    };
    let written = serde_json::to_vec(&file);
    written.map_err(|error| {
        Error::damaged(vocabulary.header.path(), format!("its tokenizer is no JSON: {error}"))
    })
}

/// tokenizer.json, borrowing the vocabulary.
#[derive(Serialize)]
struct TokenizerFile<'a> {
    version: &'static str,
    truncation: (),
    padding: (),
    added_tokens: Vec<AddedToken<'a>>,
    normalizer: &'a Value,
    pre_tokenizer: &'a Value,
    post_processor: Value,
    decoder: &'a Value,
    model: Model<'a>,
}

#[derive(Serialize)]
struct AddedToken<'a> {
    id: u32,
    content: &'a str,
    single_word: bool,
    lstrip: bool,
    rstrip: bool,
    normalized: bool,
    special: bool,
}

impl<'a> AddedToken<'a> {
    fn new((id, content, special): (u32, &'a str, bool)) -> Self {
        Self { id, content, single_word: false, lstrip: false, rstrip: false, normalized: false, special }
    }
}

#[derive(Serialize)]
struct Model<'a> {
    #[serde(rename = "type")]
    kind: &'static str,
    dropout: (),
    unk_token: Option<&'a str>,
    continuing_subword_prefix: (),
    end_of_word_suffix: (),
    fuse_unk: bool,
    byte_fallback: bool,
    ignore_merges: bool,
    vocab: Ids<'a>,
    merges: &'a [Merge<'a>],
}

/// Texts as the keys of an object, their positions as its values.
struct Ids<'a>(&'a [&'a str]);

impl Serialize for Ids<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.0.len()))?;
        for (id, text) in self.0.iter().enumerate() {
            map.serialize_entry(text, &id)?;
        }
        map.end()
    }
}

/// The class names no architecture: transformers then takes tokenizer.json as it is instead of rebuilding it.
fn tokenizer_config(vocabulary: &Vocabulary<'_>, ends: &Ends<'_>) -> Result<Map<String, Value>, Error> {
    let header = vocabulary.header;
    let mut config = Map::new();
    config.insert("add_bos_token".into(), ends.bos.is_some().into());
    config.insert("add_eos_token".into(), ends.eos.is_some().into());
    config.extend(roles(vocabulary));
    if let Some(template) = chat_template(header)? {
        config.insert("chat_template".into(), template);
    }
    config.insert("clean_up_tokenization_spaces".into(), false.into());
    let length = header.metadata.count(&format!("{}.context_length", header.architecture()?))?;
    config.insert("model_max_length".into(), length.into());
    config.insert("tokenizer_class".into(), "PreTrainedTokenizerFast".into());
    Ok(config)
}

/// The chat template, or a list of named ones.
fn chat_template(header: &Header) -> Result<Option<Value>, Error> {
    let main = header.metadata.text("tokenizer.chat_template")?;
    let Some(names) = header.metadata.texts("tokenizer.chat_templates")? else {
        return Ok(main.map(Value::from));
    };
    let mut templates: Vec<Value> = main.map(|main| named("default", main)).into_iter().collect();
    for name in names.iter() {
        if let Some(template) = header.metadata.text(&format!("tokenizer.chat_template.{name}"))? {
            templates.push(named(name, template));
        }
    }
    Ok((!templates.is_empty()).then(|| templates.into()))
}

fn named(name: &str, template: &str) -> Value {
    json!({ "name": name, "template": template })
}

/// `bos_token` and its like, as texts.
fn roles(vocabulary: &Vocabulary<'_>) -> Map<String, Value> {
    let text = |id: u32| Value::from(vocabulary.texts[id as usize]);
    vocabulary.special.roles().map(|(role, id)| (role.to_owned(), text(id))).collect()
}

/// `bos_token_id` and its like.
fn ids(vocabulary: &Vocabulary<'_>) -> Map<String, Value> {
    let wanted = |role: &str| role != "unk_token";
    vocabulary
        .special
        .roles()
        .filter(|(role, _)| wanted(role))
        .map(|(role, id)| (format!("{role}_id"), id.into()))
        .collect()
}

/// Two-space indentation and a final newline, as transformers writes them.
pub(super) fn pretty(value: &Value) -> Vec<u8> {
    format!("{value:#}\n").into_bytes()
}

/// SentencePiece's visible space.
const SPACE: &str = "\u{2581}";
