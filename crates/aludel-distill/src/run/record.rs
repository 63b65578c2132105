//! Writes a run into the record of a training, and compares it with the one recorded there.
//!
//! In: a run. Out: JSON, a digest of all settings that the weights depend on, and the settings by which a resumed run
//! differs from the one that its checkpoint was made by.

use std::fmt;

use aludel_checkpoint::hexadecimal;
use serde::Serialize;
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

use super::Run;

/// A setting that is not what it was.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Difference {
    /// The keys that lead to it, as in `train.learning_rate`.
    pub path: String,
    /// What was recorded; `None` when there was no such setting.
    pub recorded: Option<Value>,
    /// What it is now; `None` when there is no such setting any more.
    pub now: Option<Value>,
}

/// Settings that change neither the weights after a step nor their order: a resumed run may have others.
const FREE: [&str; 8] = [
    "output",
    "train.checkpointing",
    "train.early_stopping",
    "train.evaluate_every",
    "train.keep",
    "train.offload",
    "train.save_every",
    "train.zero",
];

impl Run {
    /// The run as JSON, with every default filled in.
    ///
    /// # Errors
    /// A path that is no Unicode text, which a parsed run never has.
    pub fn to_json(&self) -> Result<Value, serde_json::Error> {
        serde_json::to_value(self)
    }

    /// SHA-256, in hexadecimal digits, over all settings that the weights depend on.
    ///
    /// # Errors
    /// As [`Run::to_json`].
    pub fn digest(&self) -> Result<String, serde_json::Error> {
        let settings = settings(&self.to_json()?);
        Ok(hexadecimal(&Sha256::digest(serde_json::to_vec(&settings)?)))
    }

    /// The settings that the weights depend on and that differ from a recorded run; none when it may be resumed.
    ///
    /// # Errors
    /// As [`Run::to_json`].
    pub fn differences(&self, recorded: &Value) -> Result<Vec<Difference>, serde_json::Error> {
        let (mut recorded, now) = (settings(recorded), settings(&self.to_json()?));
        let mut differences = Vec::new();
        for (path, now) in now {
            match recorded.shift_remove(&path) {
                Some(recorded) if recorded == now => {}
                recorded => differences.push(Difference { path, recorded, now: Some(now) }),
            }
        }
        let gone = |(path, recorded)| Difference { path, recorded: Some(recorded), now: None };
        differences.extend(recorded.into_iter().map(gone));
        Ok(differences)
    }
}

impl fmt::Display for Difference {
    /// `train.learning_rate is 0.0002 and was 0.0001`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text =
            |value: &Option<Value>| value.as_ref().map_or_else(|| "absent".to_owned(), Value::to_string);
        write!(f, "{} is {} and was {}", self.path, text(&self.now), text(&self.recorded))
    }
}

/// All settings but the free ones, each under its full path. Settings that are not given are left out.
fn settings(run: &Value) -> Map<String, Value> {
    let mut settings = Map::new();
    flatten(run, "", &mut settings);
    settings
}

fn flatten(value: &Value, path: &str, settings: &mut Map<String, Value>) {
    match value {
        Value::Object(entries) => {
            for (key, value) in entries {
                let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
                if !FREE.contains(&path.as_str()) {
                    flatten(value, &path, settings);
                }
            }
        }
        Value::Null => {}
        value => {
            settings.insert(path.to_owned(), value.clone());
        }
    }
}
