//! Records what a part of an output is, for whoever joins the parts.
//!
//! A part is a folder with a share of the weight files and `part.json`; the first has everything else that a model folder has, but for
//! the card, which needs the digests that the parts know together.

use std::collections::HashMap;
use std::path::Path;

use aludel_checkpoint::{OutputFolder, WrittenTensor, crc_of_shard};
use serde::{Deserialize, Serialize};

use super::card::Card;
use super::{MergeError, identity};
use crate::plan::{Part, Plan};

/// The file in the folder of a part that says what it is.
pub(super) const PART_FILE: &str = "part.json";

/// What a part is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct PartRecord {
    format: u32,
    #[serde(flatten)]
    pub part: Part,
    /// The same for all parts of one output.
    pub identity: String,
    pub files: Vec<PartFile>,
    pub card: Card,
}

/// A weight file of a part.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct PartFile {
    pub name: String,
    pub bytes: u64,
    pub crc32c: u32,
}

impl PartRecord {
    /// Reads the record of a part; the fault where it is none.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let record: Self = serde_json::from_str(text).map_err(|error| error.to_string())?;
        let Part { number, of } = record.part;
        if record.format != FORMAT {
            return Err(format!("format {} is not read by this version", record.format));
        }
        if !(1..=of).contains(&number) {
            return Err(format!("it says to be part {number} of {of}"));
        }
        let is_name = |name: &str| Path::new(name).file_name().is_some_and(|own| own == name);
        if let Some(file) = record.files.iter().find(|file| !is_name(&file.name)) {
            return Err(format!("{:?} is no name of a file", file.name));
        }
        Ok(record)
    }

    /// Writes the record of a plan's part into its folder.
    pub(super) fn write(
        plan: &Plan,
        folder: &OutputFolder,
        written: &[WrittenTensor],
        card: Card,
    ) -> Result<(), MergeError> {
        let shards = plan.part.shards(&plan.layout);
        let crcs: HashMap<usize, u32> = written.iter().map(|written| (written.tensor, written.crc)).collect();
        let files = shards.filter_map(|shard| {
            let file = &plan.layout.shards()[shard];
            let crc32c = crc_of_shard(&plan.layout, shard, &crcs)?;
            Some(PartFile { name: file.file_name.clone(), bytes: file.bytes, crc32c })
        });
        let record = Self {
            format: FORMAT,
            part: plan.part,
            identity: identity::identity_of_whole(plan)?,
            files: files.collect(),
            card,
        };
        let text = serde_json::to_string_pretty(&record).map_err(identity::undescribed)?;
        Ok(folder.write(PART_FILE, text.as_bytes())?)
    }
}

const FORMAT: u32 = 1;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_of_what_no_part_is_is_refused() {
        let record = |number: &str, name: &str| {
            let card = r#"{"version": "1", "method": "linear", "seed": 0, "models": [], "inputs": [], "recipe": ""}"#;
            let file = format!(r#"{{"name": "{name}", "bytes": 1, "crc32c": 0}}"#);
            let text = format!(
                r#"{{"format": 1, "number": {number}, "of": 2, "identity": "", "files": [{file}], "card": {card}}}"#
            );
            PartRecord::parse(&text).map(|record| record.part.number)
        };
        assert_eq!(record("2", "model.safetensors"), Ok(2));
        assert_eq!(record("3", "model.safetensors").unwrap_err(), "it says to be part 3 of 2");
        for name in ["", ".", "..", "../a", "a/", "/dev/zero"] {
            assert_eq!(record("1", name).unwrap_err(), format!("{name:?} is no name of a file"));
        }
    }
}
