//! Parses the rotary embeddings of a config.json, in the spelling of transformers 4 or 5.

use serde_json::{Map, Value};

use super::keys::{Keys, count_of, positive_of, short};
use super::read::{MOST_POSITIONS, Reader, Shape, could_matter};
use super::rope::{Rope, Scaling, long_attention, yarn_attention};

impl Reader<'_, '_> {
    /// The rotary embeddings, and which of them each layer has.
    pub(super) fn ropes(
        &mut self,
        shape: &Shape,
        windows: &[Option<usize>],
    ) -> (Vec<Rope>, Vec<Option<usize>>) {
        let turned = self.turned(shape.layers);
        let global = self.rope(shape, Some("full_attention"));
        if !self.family.local_rope {
            return (vec![global], turned.into_iter().map(|turned| turned.then_some(0)).collect());
        }
        let local = self.rope(shape, Some("sliding_attention"));
        (vec![global, local], windows.iter().map(|window| Some(usize::from(window.is_some()))).collect())
    }

    /// The rotary embedding of layers of this type.
    fn rope(&mut self, shape: &Shape, kind: Option<&'static str>) -> Rope {
        let family = self.family;
        let is_local = kind == Some("sliding_attention");
        let old = self.keys.object("rope_scaling");
        let new = self.keys.object("rope_parameters");
        let nested = new.and_then(|new| new.get(kind?)).and_then(Value::as_object);
        let old_theta = self.keys.positive("rope_theta");
        let old_local = if family.local_rope { self.keys.positive("rope_local_base_freq") } else { None };
        let (default, theta) =
            if is_local { (10_000.0, old_local) } else { (family.defaults.theta, old_theta) };
        let own = nested.or(new.filter(|new| !new.values().any(Value::is_object)));
        // Where a family has two, an old scaling is of the layers that see everything.
        let scaling = own.or(old.filter(|_| !is_local)).cloned().unwrap_or_default();
        let mut part = Part { keys: self.keys, object: scaling, asked: vec!["rope_theta"] };
        let theta = part.positive("rope_theta").or(theta).unwrap_or(default);
        let partial = part.partial(family.partial_rotary);
        let rotated = (shape.width as f64 * partial) as usize;
        if rotated < 2 || !rotated.is_multiple_of(2) || theta <= 1.0 {
            part.keys.problem(format!(
                "a rotary embedding of {rotated} elements with base {theta}: the elements must be even and the base above 1"
            ));
        }
        let scaling = part.scaling(shape.positions, rotated);
        part.refuse_rest();
        Rope { rotated: rotated.max(2), theta, scaling }
    }
}

/// The object that describes one rotary embedding.
struct Part<'a, 'b> {
    keys: &'a mut Keys<'b>,
    object: Map<String, Value>,
    asked: Vec<&'static str>,
}

impl Part<'_, '_> {
    fn value(&mut self, key: &'static str) -> Option<Value> {
        self.asked.push(key);
        self.object.get(key).filter(|value| !value.is_null()).cloned()
    }

    fn positive(&mut self, key: &'static str) -> Option<f64> {
        let value = self.value(key)?;
        let number = positive_of(&value);
        if number.is_none() {
            self.keys.problem(format!(
                "{key} of the rotary embedding is {}, which is no number above 0",
                short(&value)
            ));
        }
        number
    }

    fn required(&mut self, key: &'static str) -> f64 {
        if self.value(key).is_none() {
            self.keys.problem(format!("{key} of the rotary embedding is missing"));
        }
        self.positive(key).unwrap_or(1.0)
    }

    /// Which part of a head is turned.
    fn partial(&mut self, supported: bool) -> f64 {
        let outer = self.keys.positive("partial_rotary_factor");
        let part = self.positive("partial_rotary_factor").or(outer).unwrap_or(1.0);
        if part > 1.0 || (part < 1.0 && !supported) {
            self.keys.problem(format!("partial_rotary_factor {part} is not supported for this family"));
            return 1.0;
        }
        part
    }

    /// Positions of the first training: at the top of the file, here, or all of them.
    fn original(&mut self, positions: usize) -> usize {
        let outer = self.keys.count("original_max_position_embeddings", MOST_POSITIONS);
        let own = self.value("original_max_position_embeddings");
        let own = own.as_ref().and_then(count_of).filter(|count| (1..=MOST_POSITIONS).contains(count));
        let original = outer.or(own).unwrap_or(positions);
        if original < 2 {
            self.keys.problem("original_max_position_embeddings is below 2");
        }
        original.max(2)
    }

    fn scaling(&mut self, positions: usize, rotated: usize) -> Scaling {
        self.keys.value("original_max_position_embeddings");
        let old = self.value("type");
        let kind = self.value("rope_type").or(old);
        match kind.as_ref().map(|kind| kind.as_str()) {
            None | Some(Some("default")) => Scaling::None,
            Some(Some("linear")) => Scaling::Linear { factor: self.required("factor") },
            Some(Some("dynamic")) => self.dynamic(positions, rotated),
            Some(Some("llama3")) => self.llama3(positions),
            Some(Some("yarn")) => self.yarn(positions),
            // "su" is what Phi-3 called it first.
            Some(Some("longrope" | "su")) => self.long(positions, rotated),
            Some(_) => {
                let kind = kind.unwrap_or_default();
                self.keys.problem(format!(
                    "rope_type {} is not supported; default, linear, dynamic, llama3, yarn and longrope are",
                    short(&kind)
                ));
                Scaling::None
            }
        }
    }

    fn dynamic(&mut self, positions: usize, rotated: usize) -> Scaling {
        if rotated <= 2 {
            self.keys.problem("dynamic scaling needs heads of more than 2 rotated elements");
        }
        self.value("original_max_position_embeddings");
        let factor = self.required("factor");
        if factor < 1.0 {
            self.keys.problem(format!("factor {factor} of the rotary embedding is below 1"));
        }
        Scaling::Dynamic { factor, positions }
    }

    fn llama3(&mut self, positions: usize) -> Scaling {
        let (low, high) = (self.required("low_freq_factor"), self.required("high_freq_factor"));
        if low >= high {
            self.keys.problem(format!("low_freq_factor {low} is not below high_freq_factor {high}"));
        }
        Scaling::Llama3 { factor: self.required("factor"), low, high, original: self.original(positions) }
    }

    fn yarn(&mut self, positions: usize) -> Scaling {
        let original = self.original(positions);
        let factor = self.positive("factor").unwrap_or(positions as f64 / original as f64);
        let (m, all) = (self.positive("mscale"), self.positive("mscale_all_dim"));
        let computed = match m.zip(all) {
            Some((m, all)) => yarn_attention(factor, m) / yarn_attention(factor, all),
            None => yarn_attention(factor, 1.0),
        };
        Scaling::Yarn {
            factor,
            attention: self.positive("attention_factor").unwrap_or(computed),
            fast: self.positive("beta_fast").unwrap_or(32.0),
            slow: self.positive("beta_slow").unwrap_or(1.0),
            truncated: self.value("truncate").and_then(|value| value.as_bool()).unwrap_or(true),
            original,
        }
    }

    fn long(&mut self, positions: usize, rotated: usize) -> Scaling {
        let original = self.original(positions);
        let factor = self.positive("factor").unwrap_or(positions as f64 / original as f64);
        let attention = self.positive("attention_factor").unwrap_or(long_attention(factor, original));
        let (short, long) = (self.divisors("short_factor", rotated), self.divisors("long_factor", rotated));
        Scaling::Long { short, long, attention, original }
    }

    fn divisors(&mut self, key: &'static str, rotated: usize) -> Vec<f64> {
        let list = self.value(key);
        let list = list.as_ref().and_then(Value::as_array).filter(|list| list.len() == rotated / 2);
        let numbers = list.and_then(|list| list.iter().map(positive_of).collect::<Option<Vec<f64>>>());
        numbers.unwrap_or_else(|| {
            self.keys.problem(format!(
                "{key} of the rotary embedding is no list of {} numbers above 0",
                rotated / 2
            ));
            vec![1.0; rotated / 2]
        })
    }

    fn refuse_rest(&mut self) {
        let unknown = self.object.iter().filter(|(key, value)| {
            !self.asked.contains(&key.as_str())
                && could_matter(value)
                && *key != "original_max_position_embeddings"
        });
        let unknown: Vec<String> = unknown.map(|(key, _)| short(&key.as_str().into())).collect();
        for key in unknown {
            self.keys.problem(format!("{key} of the rotary embedding is not understood"));
        }
    }
}
