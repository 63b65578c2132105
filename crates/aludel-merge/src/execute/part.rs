//! Records what a part of an output is, for whoever joins the parts.
//!
//! A part is a folder with a share of the weight files and `part.json`; the first has everything else that a model folder has, but for
//! the card, which needs the digests that the parts know together.

use std::collections::HashMap;

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
