//! Makes a config true to layers that were stacked anew: their count, and everything that it lists by layer.
//!
//! In: the config of the model that gives it, the stacked layers with the model and layer that each comes from, and the
//! configs of those models. Out: the config to write. A list counts as one by layer when it is as long as the model has
//! layers; rules that fit no list (every n-th layer is of another kind) are kept where the stacked layers still obey them
//! and refused where they do not.

use aludel_checkpoint::Config;
use serde_json::{Map, Value};

use super::models::Models;
use super::slices::{Origin, Stacked};
use crate::problem::Problem;

/// Where a config counts the layers of a stack.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Counted {
    /// The nested object that holds the count, such as `text_config`; `None` for the top.
    object: Option<&'static str>,
    /// The keys, one or more.
    keys: Vec<&'static str>,
    pub layers: usize,
}

const OF_ANY: [&str; 4] = ["num_hidden_layers", "n_layer", "num_layers", "n_layers"];
const OF_ENCODER: [&str; 2] = ["encoder_layers", "num_encoder_layers"];
const OF_DECODER: [&str; 2] = ["decoder_layers", "num_decoder_layers"];
const OF_TOWER: [&str; 5] = ["num_hidden_layers", "depth", "num_layers", "n_layers", "layers"];

impl Counted {
    /// Finds the count of the stack whose tensors' names begin with `prefix`.
    pub(super) fn of(config: &Config, prefix: &str) -> Option<Self> {
        let has = |word: &str| prefix.split(['.', '_']).any(|part| part.starts_with(word));
        if has("vision") || has("visual") {
            return Self::among(config, &["vision_config"], &[&OF_TOWER]);
        }
        if has("audio") {
            return Self::among(config, &["audio_config"], &[&OF_TOWER, &OF_ENCODER]);
        }
        let groups: &[&[&'static str]] = if has("decoder") {
            &[&OF_DECODER, &OF_ANY]
        } else if has("encoder") {
            &[&OF_ENCODER, &OF_ANY]
        } else {
            &[&OF_ANY]
        };
        // Top-level keys of a config with parts may describe something else; a text part says it best.
        Self::among(config, &["text_config", "language_config", "llm_config", ""], groups)
    }

    /// The first object that has a key of a group, and every key of all groups there that says the same.
    fn among(config: &Config, objects: &[&'static str], groups: &[&[&'static str]]) -> Option<Self> {
        let count = |object: &Map<String, Value>, key: &str| usize::try_from(object.get(key)?.as_u64()?).ok();
        objects.iter().find_map(|&name| {
            let name = Some(name).filter(|name| !name.is_empty());
            let object = object(config, name)?;
            let first =
                groups.iter().position(|group| group.iter().any(|key| count(object, key).is_some()))?;
            let layers = groups[first].iter().find_map(|key| count(object, key))?;
            // A count of any stack repeats that of an encoder, never that of a decoder.
            let repeats = groups[first] == OF_ENCODER;
            let groups = if repeats { &groups[first..] } else { &groups[first..=first] };
            let keys = groups.iter().copied().flatten().copied();
            let keys = keys.filter(|key| count(object, key) == Some(layers)).collect();
            Some(Self { object: name, keys, layers })
        })
    }
}

fn object<'c>(config: &'c Config, name: Option<&str>) -> Option<&'c Map<String, Value>> {
    name.map_or(Some(config.object()), |name| config.object().get(name)?.as_object())
}

/// The config with the stacked layers in the place of its own.
///
/// # Errors
/// The config says of layers what no change can make true of the stacked ones.
pub(super) fn with_layers(config: &Config, stacked: &Stacked, models: &Models) -> Result<Config, Problem> {
    let Some(counted) = Counted::of(config, &stacked.prefix) else {
        let message = format!(
            "config.json has no count of the layers `{}N`, of which the output has {}",
            stacked.prefix,
            stacked.origins.len()
        );
        return Err(Problem::general(message)
            .with_hint("add `num_hidden_layers` to the config.json of the model that is listed first"));
    };
    let mut whole = config.object().clone();
    let part = match counted.object {
        None => Some(&mut whole),
        Some(name) => whole.get_mut(name).and_then(Value::as_object_mut),
    };
    if let Some(part) = part {
        let rebuilt = Rebuilt { stacked, models, counted: &counted }.object(part)?;
        *part = rebuilt;
    }
    Ok(Config::from_object(whole))
}

struct Rebuilt<'a> {
    stacked: &'a Stacked,
    models: &'a Models,
    counted: &'a Counted,
}

impl Rebuilt<'_> {
    fn object(&self, old: &Map<String, Value>) -> Result<Map<String, Value>, Problem> {
        let mut new = old.clone();
        for (key, value) in old {
            let list = value.as_array().map_or(&[] as &[Value], Vec::as_slice);
            if self.counted.keys.contains(&key.as_str()) {
                new[key] = self.stacked.origins.len().into();
            } else if INDEX_LISTS.contains(&key.as_str()) {
                new[key] = self.indexes(key)?;
            } else if list.len() == self.counted.layers && !OF_NO_LAYER.contains(&key.as_str()) {
                new[key] = Value::Array(self.by_layer(key)?);
            } else if FIRST_LAYERS.contains(&key.as_str()) && value.is_u64() {
                new[key] = self.first_layers(key, old)?;
            } else if PERIODS.contains(&key.as_str()) {
                self.check_period(key, old)?;
            }
        }
        // GPT-Neo repeats its list in another form.
        if let (Some(layers), true) =
            (new.get("attention_layers").cloned(), new.contains_key("attention_types"))
        {
            new["attention_types"] = serde_json::json!([[layers, 1]]);
        }
        Ok(new)
    }

    /// The layers of a model's config, where it is one.
    fn facts(&self, origin: Origin) -> Option<&Map<String, Value>> {
        object(self.models.list[origin.model].config.as_ref()?, self.counted.object)
    }

    fn value(&self, origin: Origin, key: &str) -> Result<&Value, Problem> {
        let value = self.facts(origin).and_then(|facts| facts.get(key));
        value.ok_or_else(|| self.no_value(origin, key))
    }

    fn no_value(&self, origin: Origin, key: &str) -> Problem {
        let model = &self.models.list[origin.model].name;
        let message = format!("config.json of `{model}` does not say `{key}` of layer {}", origin.layer);
        Problem::general(message)
            .with_hint("complete it there: the output's is put together from its models'")
    }

    fn by_layer(&self, key: &str) -> Result<Vec<Value>, Problem> {
        let of = |&origin: &Origin| {
            let value = self.value(origin, key)?.get(origin.layer);
            value.cloned().ok_or_else(|| self.no_value(origin, key))
        };
        self.stacked.origins.iter().map(of).collect()
    }

    /// A list of the numbers of layers.
    fn indexes(&self, key: &str) -> Result<Value, Problem> {
        let mut indexes = Vec::new();
        for (layer, &origin) in self.stacked.origins.iter().enumerate() {
            let listed = self.value(origin, key)?.as_array();
            if listed.is_some_and(|list| list.contains(&origin.layer.into())) {
                indexes.push(Value::from(layer));
            }
        }
        Ok(Value::Array(indexes))
    }

    /// A number of layers at the beginning that are of another kind than the rest.
    fn first_layers(&self, key: &str, old: &Map<String, Value>) -> Result<Value, Problem> {
        let mut is_first = Vec::new();
        for &origin in &self.stacked.origins {
            let first = self.value(origin, key)?.as_u64();
            is_first.push(first.is_some_and(|first| (origin.layer as u64) < first));
        }
        let count = is_first.iter().take_while(|&&first| first).count();
        let is_in_order = !is_first[count..].contains(&true);
        // Where every layer's kind is listed, or the kind is not in use, the number decides nothing.
        let is_window = key == "max_window_layers";
        let is_off = old.get("use_sliding_window") == Some(&false.into());
        let decides = !(is_window && (is_off || old.contains_key("layer_types")));
        if is_in_order || !decides {
            return Ok(is_first.iter().filter(|&&first| first).count().into());
        }
        let message = format!(
            "config.json says by `{key}` that the first layers are of another kind, and in the output they would not come first"
        );
        Err(Problem::general(message).with_hint("choose layer ranges that keep layers of that kind first"))
    }

    /// A rule by which every so many layers one is of another kind.
    fn check_period(&self, key: &str, old: &Map<String, Value>) -> Result<(), Problem> {
        let decides = !(old.contains_key("layer_types") || old.contains_key("layers_block_type"));
        let Some(period) = old.get(key).and_then(Value::as_u64).filter(|&period| period > 1 && decides)
        else {
            return Ok(());
        };
        let keeps = |(layer, origin): (usize, &Origin)| layer as u64 % period == origin.layer as u64 % period;
        if self.stacked.origins.iter().enumerate().all(keeps) {
            return Ok(());
        }
        let message = format!(
            "config.json says by `{key}: {period}` which layers are of another kind, and the slices do not keep that rhythm"
        );
        let hint = format!("begin the layer ranges, and end all but the last, at multiples of {period}");
        Err(Problem::general(message).with_hint(hint))
    }
}

/// Lists that are not by layer, whatever their length.
const OF_NO_LAYER: [&str; 8] = [
    "architectures",
    "bad_words_ids",
    "begin_suppress_tokens",
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
    "suppress_tokens",
    "tie_encoder_decoder",
];

/// Lists of the numbers of those layers that are of another kind.
const INDEX_LISTS: [&str; 5] =
    ["cross_attention_layers", "full_attn_idxs", "global_attention_layers", "mlp_only_layers", "moe_layers"];

/// Numbers of layers at the beginning that are of another kind.
const FIRST_LAYERS: [&str; 2] = ["first_k_dense_replace", "max_window_layers"];

/// Rules by which every so many layers one is of another kind.
const PERIODS: [&str; 9] = [
    "attn_layer_period",
    "decoder_sparse_step",
    "expert_layer_period",
    "full_attention_interval",
    "global_attn_every_n_layers",
    "interleave_moe_layer_step",
    "moe_layer_freq",
    "no_rope_layer_interval",
    "sliding_window_pattern",
];
