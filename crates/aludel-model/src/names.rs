//! Names the parameters of a model and the tensors of its folder, and says which of them make up which.
//!
//! In: a [`ModelConfig`]. Out: every parameter with its shape, where the decoder finds it, and every tensor of a model
//! folder with the parameters whose rows it joins: one for most; three for Phi-3's `qkv_proj`, two for its `gate_up_proj`.
//! It reads no file.

use crate::config::{FeedForward, LayerConfig, ModelConfig, Norms, QueryKeyNorm};

/// Name and shape of a parameter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Named {
    pub(crate) name: String,
    pub(crate) shape: Vec<usize>,
}

/// A tensor of a model folder: the rows of these parameters, one after another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Stored {
    pub(crate) name: String,
    pub(crate) shape: Vec<usize>,
    pub(crate) parts: Vec<usize>,
}

/// Everything that a model has.
#[derive(Clone, Debug)]
pub(crate) struct Inventory {
    pub(crate) parameters: Vec<Named>,
    pub(crate) stored: Vec<Stored>,
    pub(crate) places: Places,
}

/// Positions of the parameters.
#[derive(Clone, Debug)]
pub(crate) struct Places {
    pub(crate) embedding: usize,
    pub(crate) layers: Vec<LayerPlaces>,
    pub(crate) norm: usize,
    /// The embedding's where they are tied.
    pub(crate) head: usize,
}

/// Of one layer.
#[derive(Clone, Debug)]
pub(crate) struct LayerPlaces {
    pub(crate) attention_norms: NormPlaces,
    pub(crate) query: Linear,
    pub(crate) key: Linear,
    pub(crate) value: Linear,
    pub(crate) output: Linear,
    pub(crate) query_norm: Option<usize>,
    pub(crate) key_norm: Option<usize>,
    pub(crate) feed_forward_norms: NormPlaces,
    pub(crate) feed_forward: FeedForwardPlaces,
}

/// Norms around one half of a layer.
#[derive(Clone, Copy, Debug)]
pub(crate) struct NormPlaces {
    pub(crate) before: Option<usize>,
    pub(crate) after: Option<usize>,
}

#[derive(Clone, Debug)]
pub(crate) enum FeedForwardPlaces {
    Dense { gate: Linear, up: Linear, down: Linear },
    Experts { router: Linear, experts: ExpertPlaces },
}

/// The experts of one layer: first parameters of `count` each.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ExpertPlaces {
    pub(crate) count: usize,
    pub(crate) gate: usize,
    pub(crate) up: usize,
    pub(crate) down: usize,
}

/// A linear layer.
#[derive(Clone, Debug)]
pub(crate) struct Linear {
    /// Its module's name in files, and the first of its rows there: of `qkv_proj` for all three where they are fused.
    pub(crate) module: String,
    pub(crate) weight: usize,
    pub(crate) bias: Option<usize>,
    pub(crate) inputs: usize,
    pub(crate) outputs: usize,
    pub(crate) adapter: Option<Adapter>,
}

/// The low-rank addition to a linear layer: `scale * B A x`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Adapter {
    /// `[rank, I]`; shared by the parts of a fused matrix.
    pub(crate) a: usize,
    /// `[O, rank]`.
    pub(crate) b: usize,
    pub(crate) rank: usize,
    pub(crate) scale: f32,
}

impl Inventory {
    /// Lists what a model of this config has.
    pub(crate) fn new(config: &ModelConfig) -> Self {
        let mut builder = Builder { parameters: Vec::new(), stored: Vec::new() };
        let embedding =
            builder.plain("model.embed_tokens.weight".into(), vec![config.vocabulary, config.hidden]);
        let layers = (0..config.layers.len()).map(|index| builder.layer(config, index)).collect();
        let norm = builder.plain("model.norm.weight".into(), vec![config.hidden]);
        let head = match config.tied {
            true => embedding,
            false => builder.plain(HEAD.into(), vec![config.vocabulary, config.hidden]),
        };
        let places = Places { embedding, layers, norm, head };
        Self { parameters: builder.parameters, stored: builder.stored, places }
    }
}

struct Builder {
    parameters: Vec<Named>,
    stored: Vec<Stored>,
}

impl Builder {
    /// A parameter that is a tensor of its own.
    fn plain(&mut self, name: String, shape: Vec<usize>) -> usize {
        let place = self.parameter(name.clone(), shape.clone());
        self.stored.push(Stored { name, shape, parts: vec![place] });
        place
    }

    fn parameter(&mut self, name: String, shape: Vec<usize>) -> usize {
        self.parameters.push(Named { name, shape });
        self.parameters.len() - 1
    }

    fn layer(&mut self, config: &ModelConfig, index: usize) -> LayerPlaces {
        let layer = &config.layers[index];
        let prefix = format!("model.layers.{index}");
        let hidden = config.hidden;
        let attention = &layer.attention;
        let (queries, keys) = (attention.query_width(), attention.key_width());
        let [attention_norms, feed_forward_norms] = norm_names(config.family.norms).map(|(before, after)| {
            let mut norm = |name: Option<&str>| {
                name.map(|name| self.plain(format!("{prefix}.{name}.weight"), vec![hidden]))
            };
            NormPlaces { before: norm(before), after: norm(after) }
        });
        let [query, key, value] = self.joined(
            &format!("{prefix}.self_attn"),
            config.family.fused.then_some("qkv_proj"),
            [("q_proj", queries), ("k_proj", keys), ("v_proj", keys)],
            hidden,
            attention.bias,
        );
        let output =
            self.linear(&format!("{prefix}.self_attn.o_proj"), queries, hidden, attention.output_bias);
        let (query_norm, key_norm) = match attention.query_key_norm {
            QueryKeyNorm::None => (None, None),
            QueryKeyNorm::Head => (Some(attention.width), Some(attention.width)),
            QueryKeyNorm::Row => (Some(queries), Some(keys)),
        };
        let mut norm = |name: &str, width: Option<usize>| {
            width.map(|width| self.plain(format!("{prefix}.self_attn.{name}.weight"), vec![width]))
        };
        let (query_norm, key_norm) = (norm("q_norm", query_norm), norm("k_norm", key_norm));
        let feed_forward = self.feed_forward(config, layer, &prefix);
        LayerPlaces {
            attention_norms,
            query,
            key,
            value,
            output,
            query_norm,
            key_norm,
            feed_forward_norms,
            feed_forward,
        }
    }

    fn feed_forward(&mut self, config: &ModelConfig, layer: &LayerConfig, prefix: &str) -> FeedForwardPlaces {
        let hidden = config.hidden;
        match layer.feed_forward {
            FeedForward::Dense { width, bias, .. } => {
                let fused = config.family.fused.then_some("gate_up_proj");
                let block = format!("{prefix}.mlp");
                let [gate, up] =
                    self.joined(&block, fused, [("gate_proj", width), ("up_proj", width)], hidden, bias);
                let down = self.linear(&format!("{block}.down_proj"), width, hidden, bias);
                FeedForwardPlaces::Dense { gate, up, down }
            }
            FeedForward::Experts { count, width, .. } => {
                let names = config.family.experts;
                let block = format!("{prefix}.{}", names.block);
                let router = self.linear(&format!("{block}.gate"), hidden, count, false);
                let mut first = |name: &str, shape: [usize; 2]| {
                    let first = self.parameters.len();
                    for expert in 0..count {
                        self.plain(format!("{block}.experts.{expert}.{name}.weight"), shape.to_vec());
                    }
                    first
                };
                let gate = first(names.gate, [width, hidden]);
                let up = first(names.up, [width, hidden]);
                let down = first(names.down, [hidden, width]);
                FeedForwardPlaces::Experts { router, experts: ExpertPlaces { count, gate, up, down } }
            }
        }
    }

    fn linear(&mut self, module: &str, inputs: usize, outputs: usize, bias: bool) -> Linear {
        let weight = self.plain(format!("{module}.weight"), vec![outputs, inputs]);
        let bias = bias.then(|| self.plain(format!("{module}.bias"), vec![outputs]));
        Linear { module: module.to_owned(), weight, bias, inputs, outputs, adapter: None }
    }

    /// Linear layers of the same input, stored as one where `fused` names it.
    fn joined<const N: usize>(
        &mut self,
        block: &str,
        fused: Option<&str>,
        parts: [(&str, usize); N],
        inputs: usize,
        bias: bool,
    ) -> [Linear; N] {
        let Some(fused) = fused else {
            return parts
                .map(|(name, outputs)| self.linear(&format!("{block}.{name}"), inputs, outputs, bias));
        };
        let module = format!("{block}.{fused}");
        let linears = parts.map(|(name, outputs)| {
            let weight = self.parameter(format!("{block}.{name}.weight"), vec![outputs, inputs]);
            Linear { module: module.clone(), weight, bias: None, inputs, outputs, adapter: None }
        });
        let rows = linears.iter().map(|linear| linear.outputs).sum();
        let parts = linears.iter().map(|linear| linear.weight).collect();
        self.stored.push(Stored { name: format!("{module}.weight"), shape: vec![rows, inputs], parts });
        linears
    }
}

/// Names of the norms before and after each half.
fn norm_names(norms: Norms) -> [(Option<&'static str>, Option<&'static str>); 2] {
    match norms {
        Norms::Before => [(Some("input_layernorm"), None), (Some("post_attention_layernorm"), None)],
        Norms::After => {
            [(None, Some("post_attention_layernorm")), (None, Some("post_feedforward_layernorm"))]
        }
        Norms::Both => [
            (Some("input_layernorm"), Some("post_attention_layernorm")),
            (Some("pre_feedforward_layernorm"), Some("post_feedforward_layernorm")),
        ],
    }
}

/// The output embedding where it is not tied; older files have it where it is, too.
pub(crate) const HEAD: &str = "lm_head.weight";
