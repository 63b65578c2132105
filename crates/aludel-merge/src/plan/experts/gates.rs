//! Makes the rows of routers: of given hidden states, of the embeddings of prompts, or of random numbers.
//!
//! In: what the recipe asks for, and what those found out who can read text and run models. Out: a derivation for the router of each
//! layer. Tokenizers and forward passes are not known here.

use std::sync::{Arc, OnceLock};

use super::Building;
use crate::derive::{Drawn, Given, Made, PromptRows, Prompted};
use crate::problem::Problem;
use crate::recipe::GateMode;
use crate::streams::stream_key;

/// What is known of gates besides their recipe.
#[derive(Clone, Debug, PartialEq)]
pub enum Gates {
    /// Nothing: it is enough for gates of random numbers, and for showing a plan.
    Unknown,
    /// The tokens of the prompts of every gated expert, in order, for `cheap_embed`.
    Tokens(Vec<PromptTokens>),
    /// The rows of all routers.
    Rows(GateRows),
}

/// Token ids of an expert's prompts, one prompt after another.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PromptTokens {
    /// Of its positive prompts; at least one.
    pub positive: Vec<u32>,
    /// Of its negative ones.
    pub negative: Vec<u32>,
}

/// Rows of routers: for each layer one for each gated expert.
#[derive(Clone, Debug, PartialEq)]
pub struct GateRows {
    /// `layers * experts * width` elements.
    pub values: Arc<[f32]>,
    /// The layers of the base model.
    pub layers: usize,
    /// The gated experts, shared ones last.
    pub experts: usize,
    /// Elements of a row.
    pub width: usize,
}

/// How the routers' rows come about.
pub(super) enum Rows {
    Normal,
    Uniform,
    Prompted(Arc<PromptRows>),
    Given(GateRows),
    /// They are not known yet.
    Awaited,
}

impl Rows {
    /// Settles them for a recipe; what does not fit it is refused.
    pub(super) fn of(building: &Building<'_>, gates: &Gates) -> Result<Self, Problem> {
        let (recipe, width) = (building.recipe, building.width);
        let gated = recipe.gated().len();
        let misfit = |what: String| Err(Problem::general(format!("internal: {what}")));
        match (recipe.gate_mode.value, gates) {
            (GateMode::Random, _) => Ok(Self::Normal),
            (GateMode::UniformRandom, _) => Ok(Self::Uniform),
            (GateMode::CheapEmbed, Gates::Tokens(prompts)) if prompts.len() == gated => {
                building.prompted(prompts).map(|rows| Self::Prompted(Arc::new(rows)))
            }
            (_, Gates::Rows(rows)) => {
                let expected = (building.layers, gated, width);
                let is_whole = rows.values.len() == rows.layers * rows.experts * rows.width;
                if (rows.layers, rows.experts, rows.width) == expected && is_whole {
                    Ok(Self::Given(rows.clone()))
                } else {
                    misfit(format!("gates of {} layers, {} experts", rows.layers, rows.experts))
                }
            }
            (_, Gates::Tokens(prompts)) if prompts.len() != gated => {
                misfit(format!("prompts of {} experts, not {gated}", prompts.len()))
            }
            _ => Ok(Self::Awaited),
        }
    }

    /// The rows of the experts of a router: `count` of them from `first` on.
    pub(super) fn made(
        &self,
        tensor: &str,
        seed: u64,
        layer: usize,
        (first, count): (usize, usize),
        width: usize,
    ) -> Made {
        let key = stream_key(seed, tensor, 0);
        match self {
            Self::Normal => Made::by(Drawn::Normal(key)),
            // As torch begins a linear layer of so many inputs.
            Self::Uniform => Made::by(Drawn::Uniform { key, bound: (1.0 / width as f64).sqrt() as f32 }),
            Self::Prompted(rows) => Made::by(Prompted { rows: Arc::clone(rows), first }),
            Self::Given(rows) => {
                let start = (layer * rows.experts + first) * width;
                let what = "made of hidden states of its experts' prompts";
                Made::by(Given { values: Arc::clone(&rows.values), part: start..start + count * width, what })
            }
            Self::Awaited => {
                let what = "made of its experts' prompts, which are read first";
                Made::by(Given { values: [].into(), part: 0..0, what })
            }
        }
    }
}

impl Building<'_> {
    /// The rows that the embeddings of prompts give.
    fn prompted(&self, prompts: &[PromptTokens]) -> Result<PromptRows, Problem> {
        let name = "model.embed_tokens.weight";
        let (embedding, facts) = self.readable(self.base, name)?;
        let [rows, columns] = facts.shape[..] else {
            return Err(Problem::general(format!("`{name}` is {:?}, not a table", facts.shape)));
        };
        let tokens = prompts.iter().flat_map(|prompt| prompt.positive.iter().chain(&prompt.negative));
        if let Some(token) = tokens.copied().find(|&token| token as usize >= rows) {
            let message = format!("the prompts have token {token}, and `{name}` has {rows} rows");
            return Err(Problem::general(message).with_hint("is it the base model's own tokenizer?"));
        }
        Ok(PromptRows {
            embedding,
            elements: (rows * columns) as u64,
            columns,
            prompts: prompts
                .iter()
                .map(|prompt| (prompt.positive.clone(), prompt.negative.clone()))
                .collect(),
            made: OnceLock::new(),
        })
    }
}
