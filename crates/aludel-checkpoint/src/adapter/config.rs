//! Reads `adapter_config.json`: rank and scale of each module, and every setting that changes what an adapter computes.
//!
//! A setting that is not understood and not at rest (null, false, empty) is refused: the adapter would be applied otherwise
//! than it was trained.

use std::path::Path;

use regex::Regex;
use serde_json::{Map, Value};

use crate::config::Config;
use crate::error::Error;

/// What `adapter_config.json` says.
#[derive(Clone, Debug)]
pub struct AdapterConfig {
    object: Map<String, Value>,
    rank: usize,
    alpha: f64,
    rank_pattern: Vec<(Regex, usize)>,
    alpha_pattern: Vec<(Regex, f64)>,
    is_rank_stabilised: bool,
    is_dora: bool,
    is_fan_in_fan_out: bool,
}

impl AdapterConfig {
    /// Reads the file.
    ///
    /// Errors: [`Error::Io`], [`Error::Damaged`], [`Error::Unsupported`].
    pub(super) fn read(path: &Path) -> Result<Self, Error> {
        Self::of(Config::read(path)?.object().clone(), path)
    }

    fn of(object: Map<String, Value>, path: &Path) -> Result<Self, Error> {
        check_kind(&object, path)?;
        check_settings(&object, path)?;
        let damaged = |detail: String| Error::damaged(path, detail);
        let fields = Fields { object: &object };
        Ok(Self {
            rank: fields.rank("r", &Value::from(8)).map_err(damaged)?,
            alpha: fields.number("lora_alpha", &Value::from(8)).map_err(damaged)?,
            rank_pattern: fields.pattern("rank_pattern", Fields::as_rank).map_err(damaged)?,
            alpha_pattern: fields.pattern("alpha_pattern", Fields::as_number).map_err(damaged)?,
            is_rank_stabilised: fields.switch("use_rslora").map_err(damaged)?,
            is_dora: fields.switch("use_dora").map_err(damaged)?,
            is_fan_in_fan_out: fields.switch("fan_in_fan_out").map_err(damaged)?,
            object,
        })
    }

    /// Every key and value.
    pub fn object(&self) -> &Map<String, Value> {
        &self.object
    }

    /// The rank of modules that no pattern names.
    pub fn rank(&self) -> usize {
        self.rank
    }

    /// The rank of a module.
    pub fn rank_of(&self, module: &str) -> usize {
        first_match(&self.rank_pattern, module).unwrap_or(self.rank)
    }

    /// The factor of a module's product: `alpha / rank`, or `alpha / sqrt(rank)` (rsLoRA).
    pub fn scale_of(&self, module: &str) -> f64 {
        let alpha = first_match(&self.alpha_pattern, module).unwrap_or(self.alpha);
        let rank = self.rank_of(module) as f64;
        alpha / if self.is_rank_stabilised { rank.sqrt() } else { rank }
    }

    /// Whether modules have magnitudes (DoRA).
    pub fn is_dora(&self) -> bool {
        self.is_dora
    }

    /// Whether the modules' weights are stored with their inputs first, as GPT-2's are.
    pub fn is_fan_in_fan_out(&self) -> bool {
        self.is_fan_in_fan_out
    }

    /// Whether a tied head follows what the adapter makes of the embedding.
    pub fn keeps_tied(&self) -> bool {
        self.object.get("ensure_weight_tying").and_then(Value::as_bool).unwrap_or(false)
    }

    /// What the adapter was trained on: a path or a name on a hub.
    pub fn base_model(&self) -> Option<&str> {
        self.object.get("base_model_name_or_path")?.as_str()
    }
}

/// peft takes the first key that is the module's name or matches its end as a regular expression.
fn first_match<T: Copy>(patterns: &[(Regex, T)], module: &str) -> Option<T> {
    patterns.iter().find(|(pattern, _)| pattern.is_match(module)).map(|(_, value)| *value)
}

fn check_kind(object: &Map<String, Value>, path: &Path) -> Result<(), Error> {
    let kind = object.get("peft_type").and_then(Value::as_str).unwrap_or_default();
    if kind == "LORA" {
        return Ok(());
    }
    let detail = match kind {
        "" => "`peft_type` is missing; a LoRA adapter says `\"peft_type\": \"LORA\"`".to_owned(),
        kind => format!(
            "`peft_type` is {kind:?}, and only LORA is read; merge the adapter with peft (`merge_and_unload`) and give the \
             merged model"
        ),
    };
    Err(Error::unsupported(path, detail))
}

fn check_settings(object: &Map<String, Value>, path: &Path) -> Result<(), Error> {
    let is_at_rest = |value: &Value| match value {
        Value::Null | Value::Bool(false) => true,
        Value::Array(items) => items.is_empty(),
        Value::Object(fields) => fields.is_empty(),
        Value::String(text) => text.is_empty(),
        _ => false,
    };
    let is_unknown = |(key, value): &(&String, &Value)| !KNOWN.contains(&key.as_str()) && !is_at_rest(value);
    match object.iter().find(is_unknown) {
        None => Ok(()),
        Some((key, value)) => {
            let detail = format!(
                "`{key}: {value}` is not understood; merge the adapter with peft (`merge_and_unload`) and give the merged \
                 model"
            );
            Err(Error::unsupported(path, detail))
        }
    }
}

/// Keys that are read here, that say how the adapter was trained, or that chose the modules whose tensors it holds.
const KNOWN: [&str; 34] = [
    "alora_invocation_string",
    "alpha_pattern",
    "auto_mapping",
    "base_model_name_or_path",
    "bias",
    "corda_config",
    "ensure_weight_tying",
    "eva_config",
    "exclude_modules",
    "fan_in_fan_out",
    "inference_mode",
    "init_lora_weights",
    "layers_pattern",
    "layers_to_transform",
    "loftq_config",
    "lora_alpha",
    "lora_bias",
    "lora_dropout",
    "lora_ga_config",
    "megatron_config",
    "megatron_core",
    "modules_to_save",
    "peft_type",
    "peft_version",
    "qalora_group_size",
    "r",
    "rank_pattern",
    "revision",
    "runtime_config",
    "target_modules",
    "task_type",
    "use_dora",
    "use_rslora",
    "velora_config",
];

struct Fields<'a> {
    object: &'a Map<String, Value>,
}

impl Fields<'_> {
    fn value<'v>(&'v self, key: &str, default: &'v Value) -> &'v Value {
        self.object.get(key).filter(|value| !value.is_null()).unwrap_or(default)
    }

    fn rank(&self, key: &str, default: &Value) -> Result<usize, String> {
        let value = self.value(key, default);
        Self::as_rank(value).ok_or_else(|| format!("`{key}` is {value}, where a rank of at least 1 belongs"))
    }

    fn number(&self, key: &str, default: &Value) -> Result<f64, String> {
        let value = self.value(key, default);
        Self::as_number(value).ok_or_else(|| format!("`{key}` is {value}, where a number belongs"))
    }

    fn switch(&self, key: &str) -> Result<bool, String> {
        let value = self.value(key, &Value::Bool(false));
        value.as_bool().ok_or_else(|| format!("`{key}` is {value}, where true or false belongs"))
    }

    /// Values by patterns of module names, in the file's order.
    fn pattern<T>(&self, key: &str, read: impl Fn(&Value) -> Option<T>) -> Result<Vec<(Regex, T)>, String> {
        let empty = Value::Object(Map::new());
        let value = self.value(key, &empty);
        let object =
            value.as_object().ok_or_else(|| format!("`{key}` is {value}, where a mapping belongs"))?;
        let one = |(name, value): (&String, &Value)| {
            let pattern = Regex::new(&format!(r"^(?:.*\.)?(?:{name})$"))
                .map_err(|error| format!("`{key}` has a pattern that cannot be read: {error}"))?;
            let value = read(value)
                .ok_or_else(|| format!("`{key}` of {name:?} is {value}, which does not belong there"))?;
            Ok((pattern, value))
        };
        object.iter().map(one).collect()
    }

    fn as_rank(value: &Value) -> Option<usize> {
        usize::try_from(value.as_u64()?).ok().filter(|&rank| rank > 0)
    }

    fn as_number(value: &Value) -> Option<f64> {
        value.as_f64().filter(|number| number.is_finite())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<AdapterConfig, String> {
        let object = serde_json::from_str(text).unwrap();
        AdapterConfig::of(object, Path::new("adapter_config.json")).map_err(|error| error.to_string())
    }

    #[test]
    fn patterns_name_modules_by_their_end_the_first_before_all() {
        let config = read(
            r#"{"peft_type": "LORA", "r": 4, "lora_alpha": 6, "rank_pattern": {"q_proj": 2, "layers.1.+": 3},
                "alpha_pattern": {"model.layers.0.v_proj": 1.5}}"#,
        )
        .unwrap();
        for (module, rank, scale) in [
            ("model.layers.0.q_proj", 2, 3.0),
            ("q_proj", 2, 3.0),
            ("model.layers.1.q_proj", 2, 3.0),
            ("model.layers.1.v_proj", 3, 2.0),
            ("model.layers.0.v_proj", 4, 0.375),
            ("model.layers.0.xq_proj", 4, 1.5),
            ("q_proj.inner", 4, 1.5),
        ] {
            assert_eq!((config.rank_of(module), config.scale_of(module)), (rank, scale), "{module}");
        }
    }

    #[test]
    fn ranks_may_be_stabilised_and_have_pefts_defaults() {
        let config = read(r#"{"peft_type": "LORA", "use_rslora": true, "r": null}"#).unwrap();
        assert_eq!((config.rank(), config.scale_of("x")), (8, 8.0 / 8.0_f64.sqrt()));
    }

    #[test]
    fn what_would_be_applied_wrongly_is_refused() {
        for (text, told) in [
            ("{}", "`peft_type` is missing"),
            (r#"{"peft_type": "IA3"}"#, "only LORA is read"),
            (r#"{"peft_type": "LORA", "r": 0}"#, "`r` is 0"),
            (r#"{"peft_type": "LORA", "lora_alpha": "x"}"#, "`lora_alpha` is"),
            (r#"{"peft_type": "LORA", "use_dora": 1}"#, "`use_dora` is 1"),
            (r#"{"peft_type": "LORA", "rank_pattern": {"(": 1}}"#, "cannot be read"),
            (r#"{"peft_type": "LORA", "rank_pattern": {"x": -1}}"#, "does not belong there"),
            (
                r#"{"peft_type": "LORA", "layer_replication": [[0, 1]]}"#,
                "`layer_replication: [[0,1]]` is not understood",
            ),
            (r#"{"peft_type": "LORA", "use_qalora": true}"#, "not understood"),
        ] {
            let error = read(text).unwrap_err();
            assert!(error.contains(told), "{text}: {error}");
        }
        read(r#"{"peft_type": "LORA", "use_qalora": false, "layer_replication": null, "new": {}}"#).unwrap();
    }
}
