//! Parses what differs from layer to layer: windows, and who is turned.

use super::family::Windows;
use super::read::{MOST_LAYERS, Reader, Shape};

impl Reader<'_, '_> {
    /// For each layer, what it sees.
    pub(super) fn windows(&mut self, shape: &Shape) -> Vec<Option<usize>> {
        let layers = shape.layers;
        let family = self.family;
        if family.windows == Windows::None {
            if let Some(types) = self.layer_types(layers)
                && types.contains(&true)
            {
                self.keys
                    .problem(format!("layer_types has sliding layers, which {} has not", family.model_type));
            }
            return vec![None; layers];
        }
        let default = family.defaults.window.filter(|_| self.keys.is_absent("sliding_window"));
        let window = self.keys.count("sliding_window", usize::MAX).or(default);
        let used = match family.windows {
            Windows::AllIfUsed | Windows::Last | Windows::WithoutRope => {
                self.keys.flag("use_sliding_window", false)
            }
            _ => true,
        };
        let window = window.filter(|_| used);
        let types = self.layer_types(layers);
        let by_rule = |reader: &mut Self| match family.windows {
            Windows::None => vec![false; layers],
            Windows::All | Windows::AllIfUsed => vec![true; layers],
            Windows::Last => {
                let first = reader.keys.count_or_zero("max_window_layers", MOST_LAYERS).unwrap_or(28);
                (0..layers).map(|layer| layer >= first).collect()
            }
            Windows::WithoutRope => reader.turned(layers).iter().map(|turned| !turned).collect(),
            Windows::Alternating { period } => {
                let period = reader.keys.pattern().unwrap_or(period);
                (0..layers).map(|layer| !(layer + 1).is_multiple_of(period)).collect()
            }
        };
        // Asked for in any case: it is known, and the list overrules it.
        let sliding = by_rule(self);
        let sliding = match family.windows {
            Windows::All | Windows::AllIfUsed => sliding,
            _ => types.unwrap_or(sliding),
        };
        if window.is_none()
            && sliding.contains(&true)
            && matches!(family.windows, Windows::Alternating { .. })
        {
            self.keys.problem("layers slide, and sliding_window is null");
        }
        sliding.into_iter().map(|slides| window.filter(|_| slides)).collect()
    }

    /// For each layer, whether it slides, where the file has a list of types.
    fn layer_types(&mut self, layers: usize) -> Option<Vec<bool>> {
        self.keys.list("layer_types", layers, |kind| match kind.as_str()? {
            "full_attention" => Some(false),
            "sliding_attention" => Some(true),
            _ => None,
        })
    }

    /// For each layer, whether it turns queries and keys (SmolLM3).
    pub(super) fn turned(&mut self, layers: usize) -> Vec<bool> {
        if !self.family.skips_rope {
            return vec![true; layers];
        }
        let interval = self.keys.count("no_rope_layer_interval", MOST_LAYERS).unwrap_or(4);
        let flags = self.keys.list("no_rope_layers", layers, |flag| match flag.as_u64()? {
            0 => Some(false),
            1 => Some(true),
            _ => None,
        });
        flags.unwrap_or_else(|| (0..layers).map(|layer| !(layer + 1).is_multiple_of(interval)).collect())
    }
}
