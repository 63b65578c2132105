//! Gives every tensor of a GGUF file its Hugging Face name and the change that undoes what the converter did to it.
//!
//! In: the header and its architecture's row. Out: one [`Mapped`] per tensor, or a reason for which a tensor is left out.
//! A name that the row does not know is an error, as is a layer that lacks what another has: nothing is lost silently.

use std::collections::{BTreeMap, BTreeSet};

use super::architecture::Architecture;
use super::header::{Header, TensorInfo};
use crate::error::Error;

/// A tensor of the file and what it becomes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Mapped {
    /// Position in [`Header::tensors`].
    pub(crate) tensor: usize,
    /// The Hugging Face name.
    pub(crate) name: String,
    pub(crate) change: Change,
}

/// What is done to a tensor's values on the way out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Change {
    None,
    /// Rows `2j` and `2j + 1` of a head become rows `j` and `j + rows / 2` of it. `rows` per head, even.
    UnpairRotary {
        rows: u64,
    },
    /// 1 is subtracted: transformers adds it when it computes the norm.
    SubtractOne,
}

impl Change {
    /// Where the file has a row of the output, in heads of `rows` rows that were paired.
    pub(crate) const fn paired_row(row: u64, rows: u64) -> u64 {
        let (head, inner, half) = (row / rows, row % rows, rows / 2);
        head * rows + 2 * (inner % half) + inner / half
    }
}

/// A tensor of the file that the output does without.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Dropped {
    /// Its name in the file.
    pub name: String,
    /// Why nothing is lost.
    pub reason: &'static str,
}

/// Every tensor of a file, sorted into what is written and what is not.
#[derive(Debug)]
pub(super) struct Names {
    pub(super) mapped: Vec<Mapped>,
    pub(super) dropped: Vec<Dropped>,
}

/// Head counts, which say how query and key rows were reordered.
#[derive(Clone, Copy, Debug)]
pub(super) struct Heads {
    pub(super) query: u64,
    pub(super) key: u64,
}

/// Maps every tensor.
///
/// Errors: [`Error::Unsupported`] with all names that the architecture's row does not know; [`Error::Damaged`] when the
/// embedding, the final norm or a tensor of a layer is missing or query or key rows do not divide into heads.
pub(super) fn map(header: &Header, row: &Architecture, layers: u64, heads: Heads) -> Result<Names, Error> {
    let mut names = Names { mapped: Vec::new(), dropped: Vec::new() };
    let mut unknown = Vec::new();
    for (tensor, info) in header.tensors().iter().enumerate() {
        if let Some(reason) = derived(&info.name) {
            names.dropped.push(Dropped { name: info.name.clone(), reason });
            continue;
        }
        match hugging_face_name(&info.name, row, layers) {
            Some(name) => {
                let change = change(header, info, row, heads)?;
                names.mapped.push(Mapped { tensor, name, change });
            }
            None => unknown.push(info.name.as_str()),
        }
    }
    refuse_unknown(header, row, &unknown)?;
    check_whole(header, layers)?;
    Ok(names)
}

/// Why a tensor can be computed from others or from the config; `None` for one that cannot.
fn derived(name: &str) -> Option<&'static str> {
    if name == "rope_freqs.weight"
        || name == "rope_factors_long.weight"
        || name == "rope_factors_short.weight"
    {
        return Some("config.json's rope_scaling says the same");
    }
    (name.ends_with(".attn_rot_embd") || name.ends_with(".attn_rot_embd.weight"))
        .then_some("config.json's rope_theta says the same")
}

fn hugging_face_name(name: &str, row: &Architecture, layers: u64) -> Option<String> {
    let (stem, kind) = name.rsplit_once('.').filter(|(_, kind)| matches!(*kind, "weight" | "bias"))?;
    if let Some((_, global)) = GLOBAL.iter().find(|(known, _)| *known == stem) {
        return Some(format!("{global}.{kind}"));
    }
    let (layer, part) = split_layer(stem)?;
    let (_, inner) = row.layer.iter().find(|(known, _)| *known == part)?;
    (layer < layers).then(|| format!("model.layers.{layer}.{inner}.{kind}"))
}

/// The layer's number and the rest of a name such as `blk.3.attn_q`; a number is written in one way only.
fn split_layer(stem: &str) -> Option<(u64, &str)> {
    let (number, part) = stem.strip_prefix("blk.")?.split_once('.')?;
    let layer: u64 = number.parse().ok()?;
    (layer.to_string() == number).then_some((layer, part))
}

fn change(header: &Header, info: &TensorInfo, row: &Architecture, heads: Heads) -> Result<Change, Error> {
    if row.shifts_norms && info.name.ends_with("norm.weight") {
        return Ok(Change::SubtractOne);
    }
    let part = info.name.rsplit_once('.').and_then(|(stem, _)| split_layer(stem)).map(|(_, part)| part);
    let count = match part {
        Some("attn_q") if row.pairs_rotary => heads.query,
        Some("attn_k") if row.pairs_rotary => heads.key,
        _ => return Ok(Change::None),
    };
    let rows = info.shape[0] as u64;
    if count == 0 || !rows.is_multiple_of(2 * count) {
        let detail = format!("tensor {:?}: its {rows} rows do not divide into {count} heads", info.name);
        return Err(Error::damaged(header.path(), detail));
    }
    // A bias is one row to the file; its elements are reordered, which blocks of several do not allow.
    if info.shape.len() == 1 && info.block.elements() > 1 {
        let detail = format!("tensor {:?}: a bias stored as {}", info.name, info.block.name());
        return Err(Error::unsupported(header.path(), detail));
    }
    Ok(Change::UnpairRotary { rows: rows / count })
}

fn refuse_unknown(header: &Header, row: &Architecture, unknown: &[&str]) -> Result<(), Error> {
    if unknown.is_empty() {
        return Ok(());
    }
    let shown: Vec<&str> = unknown.iter().take(MOST_NAMES_SHOWN).copied().collect();
    let more = unknown.len() - shown.len();
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    let detail =
        format!("architecture {:?} has no place for its tensors {}{more}", row.gguf, shown.join(", "));
    Err(Error::unsupported(header.path(), detail))
}

/// Every layer has the tensors that any layer has, and the embedding and the final norm are there.
fn check_whole(header: &Header, layers: u64) -> Result<(), Error> {
    let missing = |name: &str| Err(Error::damaged(header.path(), format!("tensor {name:?} is missing")));
    for name in ["token_embd.weight", "output_norm.weight"] {
        if header.tensor(name).is_none() {
            return missing(name);
        }
    }
    let mut parts: BTreeMap<&str, BTreeSet<u64>> = BTreeMap::new();
    for (layer, part) in header.tensors().iter().filter_map(|info| split_layer(&info.name)) {
        if derived(&format!("blk.0.{part}")).is_none() {
            parts.entry(part).or_default().insert(layer);
        }
    }
    if parts.is_empty() && layers > 0 {
        return missing("blk.0.attn_q.weight");
    }
    for (part, found) in parts {
        if let Some(layer) =
            (0..layers).zip(&found).find_map(|(layer, &found)| (layer != found).then_some(layer))
        {
            return missing(&format!("blk.{layer}.{part}"));
        }
        if (found.len() as u64) < layers {
            return missing(&format!("blk.{}.{part}", found.len()));
        }
    }
    Ok(())
}

const GLOBAL: [(&str, &str); 3] =
    [("token_embd", "model.embed_tokens"), ("output_norm", "model.norm"), ("output", "lm_head")];

const MOST_NAMES_SHOWN: usize = 8;

#[cfg(test)]
mod tests {
    use super::super::architecture::find;
    use super::*;

    fn named(architecture: &str, name: &str) -> Option<String> {
        hugging_face_name(name, find(architecture).unwrap(), 30)
    }

    #[test]
    fn names_follow_the_table() {
        for (architecture, gguf, expected) in [
            ("llama", "token_embd.weight", "model.embed_tokens.weight"),
            ("llama", "output.weight", "lm_head.weight"),
            ("llama", "blk.29.ffn_norm.weight", "model.layers.29.post_attention_layernorm.weight"),
            ("qwen2", "blk.3.attn_q.bias", "model.layers.3.self_attn.q_proj.bias"),
            ("qwen3", "blk.0.attn_k_norm.weight", "model.layers.0.self_attn.k_norm.weight"),
            ("phi3", "blk.0.ffn_up.weight", "model.layers.0.mlp.gate_up_proj.weight"),
            ("gemma2", "blk.0.ffn_norm.weight", "model.layers.0.pre_feedforward_layernorm.weight"),
            ("olmo2", "blk.1.post_ffw_norm.weight", "model.layers.1.post_feedforward_layernorm.weight"),
            ("starcoder2", "blk.1.ffn_down.bias", "model.layers.1.mlp.c_proj.bias"),
        ] {
            assert_eq!(named(architecture, gguf).as_deref(), Some(expected), "{architecture} {gguf}");
        }
    }

    #[test]
    fn other_names_have_no_place() {
        for name in [
            "blk.30.attn_q.weight",
            "blk.00.attn_q.weight",
            "blk.+1.attn_q.weight",
            "blk.0.attn_q",
            "blk.0.attn_q.scale",
            "blk.0.ffn_gate_exps.weight",
            "attn_q.weight",
            "v.blk.0.attn_q.weight",
        ] {
            assert_eq!(named("llama", name), None, "{name}");
        }
    }
}
