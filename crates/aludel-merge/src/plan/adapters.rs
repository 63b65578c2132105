//! Plans a model with an adapter: which of its tensors are made anew, and of what.
//!
//! In: a model and an opened adapter. Out: the model that peft would merge the two into, or everything that keeps them
//! apart. Products are left to the executor ([`crate::derive`]). A module is found by its name, or where prefixes differ
//! (`transformer.h.0` for `h.0`) by the only tensor that ends so.

use aludel_checkpoint::{Adapter, AdapterModule, Dtype, LARGEST_SIDE_FILE, is_float, read_text};

use super::models::{Facts, Model};
use super::output::untied;
use super::tensors::{HEAD, is_embedding, is_head, ties_embeddings};
use super::vocabulary::with_vocabulary;
use crate::derive::{Adapted, Made, Orientation, Readable, Saved, Shifted, Stored};
use crate::problem::Problem;
use crate::recipe::nearest;

/// A model with an adapter. `base` and `source` are the positions of the model's weights and the adapter's among the
/// sources; the problems have no place yet.
pub(super) fn adapted(
    name: &str,
    model: &Model,
    base: usize,
    adapter: &Adapter,
    source: usize,
) -> Result<Model, Vec<Problem>> {
    let mut building = Building {
        model: model.renamed(name),
        base,
        base_name: &model.name,
        adapter,
        adapter_name: adapter.path().display().to_string(),
        source,
        are_inputs_first: false,
        problems: Vec::new(),
    };
    building.are_inputs_first = building.are_inputs_first();
    building.head_apart();
    for (tensor, stored) in adapter.replaced() {
        building.replace(tensor, stored);
    }
    for (module, parts) in adapter.modules() {
        building.adapt(module, parts);
    }
    if building.problems.is_empty() { Ok(building.model) } else { Err(building.problems) }
}

struct Building<'a> {
    model: Model,
    base: usize,
    base_name: &'a str,
    adapter: &'a Adapter,
    adapter_name: String,
    source: usize,
    /// How square weights lie, whose shape does not tell.
    are_inputs_first: bool,
    problems: Vec<Problem>,
}

impl Building<'_> {
    /// Gives a tied model a head of its own where the adapter changes only one of the two: so peft computes.
    fn head_apart(&mut self) {
        if !ties_embeddings(&self.model) || self.model.names().any(is_head) {
            return;
        }
        let Some(embedding) = self.model.names().find(|name| is_embedding(name)).map(str::to_owned) else {
            return;
        };
        let modules = self.adapter.modules().keys().map(|module| format!("{module}.weight"));
        let touched: Vec<String> = modules.chain(self.adapter.replaced().keys().cloned()).collect();
        let changes_head = touched.iter().any(|name| is_head(name));
        let changes_embedding = touched.iter().any(|name| same_end(name, &embedding));
        if changes_head || changes_embedding && !self.adapter.config().keeps_tied() {
            let facts = self.model.tensors[&embedding].clone();
            let by = self.readable(&embedding, &facts);
            let made = Made::by(Saved { by, from: embedding });
            self.model.tensors.insert(HEAD.to_owned(), Facts { made: Some(made), ..facts });
            self.model.config = self.model.config.take().map(untied);
        }
    }

    fn replace(&mut self, tensor: &str, stored: &str) {
        let Some((name, facts)) = self.find(tensor) else { return self.tell_missing(tensor) };
        let entry = &self.adapter.checkpoint().tensors()[stored];
        let is_vocabulary = is_embedding(&name) || is_head(&name);
        let is_resized = is_vocabulary && facts.shape.get(1..) == entry.shape.get(1..);
        if facts.shape != entry.shape && !is_resized {
            return self.tell_shapes(&name, &facts.shape, stored, &entry.shape);
        }
        if facts.shape != entry.shape && is_embedding(&name) {
            self.resize(entry.shape[0]);
        }
        let shape = entry.shape.clone();
        let (Some(by), true) = (self.stored(stored), self.is_computed(&name, &facts)) else { return };
        let by = Readable { stored: by, made: None };
        let made = Made::by(Saved { by, from: self.adapter_name.clone() });
        self.model.tensors.insert(name, Facts { shape, dtype: facts.dtype, made: Some(made) });
    }

    fn adapt(&mut self, module: &str, parts: &AdapterModule) {
        let weight = format!("{module}.weight");
        let Some((name, facts)) = self.find(&weight) else { return self.tell_missing(&weight) };
        let Some(orientation) = self.orientation(&facts, parts) else {
            let shape = [parts.outputs, parts.inputs];
            return self.tell_shapes(&name, &facts.shape, "B A", &shape);
        };
        let stored = (self.stored(&parts.a), self.stored(&parts.b), self.stored_if(parts.magnitude.as_ref()));
        let (Some(a), Some(b), Some(magnitude)) = stored else { return };
        if !self.is_computed(&name, &facts) {
            return;
        }
        let made = Made::by(Adapted {
            weight: self.readable(&name, &facts),
            a,
            b,
            magnitude,
            orientation,
            rank: parts.rank,
            inputs: parts.inputs,
            outputs: parts.outputs,
            scale: parts.scale as f32,
            adapter: self.adapter_name.clone(),
            state: Default::default(),
        });
        self.model.tensors.insert(name, Facts { made: Some(made), ..facts });
        if let Some(bias) = &parts.bias {
            self.shift(&format!("{module}.bias"), bias, parts);
        }
    }

    fn shift(&mut self, tensor: &str, bias: &str, parts: &AdapterModule) {
        let Some((name, facts)) = self.find(tensor) else { return self.tell_missing(tensor) };
        if facts.shape.iter().product::<usize>() != parts.outputs {
            return self.tell_shapes(&name, &facts.shape, bias, &[parts.outputs]);
        }
        let (Some(by), true) = (self.stored(bias), self.is_computed(&name, &facts)) else { return };
        let made = Made::by(Shifted {
            vector: self.readable(&name, &facts),
            by,
            scale: parts.scale as f32,
            adapter: self.adapter_name.clone(),
        });
        self.model.tensors.insert(name, Facts { made: Some(made), ..facts });
    }

    /// Whether the modules whose shape tells it have their inputs first, else what the config says: peft goes by the kind of
    /// the module, which no file tells.
    fn are_inputs_first(&self) -> bool {
        let modules = self.adapter.modules().iter().filter(|(_, parts)| !parts.is_embedding);
        let told =
            modules.filter(|(_, parts)| parts.inputs != parts.outputs).filter_map(|(module, parts)| {
                let (_, facts) = self.find(&format!("{module}.weight"))?;
                Some(facts.shape.first() == Some(&parts.inputs))
            });
        let told: Vec<bool> = told.collect();
        match told.first() {
            Some(&first) if told.iter().all(|&other| other == first) => first,
            _ => self.adapter.config().is_fan_in_fan_out(),
        }
    }

    fn orientation(&self, facts: &Facts, parts: &AdapterModule) -> Option<Orientation> {
        let (&first, rest) = facts.shape.split_first()?;
        let sides = (first, rest.iter().product::<usize>());
        let is_inputs_first = sides == (parts.inputs, parts.outputs);
        let is_outputs_first = sides == (parts.outputs, parts.inputs);
        match (is_outputs_first, is_inputs_first) {
            (_, true) if parts.is_embedding => Some(Orientation::InputsFirst),
            _ if parts.is_embedding => None,
            (true, true) if self.are_inputs_first => Some(Orientation::InputsFirst),
            (true, _) => Some(Orientation::OutputsFirst),
            (false, true) => Some(Orientation::InputsFirst),
            (false, false) => None,
        }
    }

    /// The model's tensor of that name, or the only one whose name ends so or that the name ends in.
    fn find(&self, name: &str) -> Option<(String, Facts)> {
        let entry = |name: &str| Some((name.to_owned(), self.model.tensors.get(name)?.clone()));
        entry(name).or_else(|| {
            let mut alike = self.model.names().filter(|other| same_end(name, other));
            let only = alike.next().filter(|_| alike.next().is_none())?;
            entry(only)
        })
    }

    fn readable(&self, name: &str, facts: &Facts) -> Readable {
        let stored = Stored { source: self.base, tensor: name.to_owned() };
        Readable { stored, made: facts.made.clone() }
    }

    /// A tensor of the adapter, unless it is of a type that is not computed on.
    fn stored(&mut self, name: &str) -> Option<Stored> {
        let dtype = self.adapter.checkpoint().tensors()[name].dtype;
        if !is_float(dtype) {
            self.tell_type(name, dtype);
            return None;
        }
        Some(Stored { source: self.source, tensor: name.to_owned() })
    }

    /// As [`Self::stored`], of a tensor that need not be there.
    fn stored_if(&mut self, name: Option<&String>) -> Option<Option<Stored>> {
        match name {
            None => Some(None),
            Some(name) => self.stored(name).map(Some),
        }
    }

    fn is_computed(&mut self, name: &str, facts: &Facts) -> bool {
        let is_computed = facts.made.is_some() || is_float(facts.dtype);
        if !is_computed {
            let message = format!(
                "`{name}` of `{}` is {}, which no adapter can be added to",
                self.base_name, facts.dtype
            );
            self.problems.push(Problem::general(message).with_hint("give the model in F32, F16 or BF16"));
        }
        is_computed
    }

    /// A model that gets another number of tokens: the adapter brings the tokenizer for them.
    fn resize(&mut self, tokens: usize) {
        self.model.config = self.model.config.take().map(|config| with_vocabulary(&config, tokens, None));
        for name in TOKENIZER_FILES {
            if let Ok(text) = read_text(&self.adapter.path().join(name), LARGEST_SIDE_FILE) {
                self.model.side_files.write(name, text);
            }
        }
    }

    fn tell_missing(&mut self, tensor: &str) {
        let message =
            format!("adapter `{}` changes `{tensor}`, which `{}` has not", self.adapter_name, self.base_name);
        let hint = match (self.adapter.config().base_model(), nearest(tensor, self.model.names())) {
            (Some(base), _) if !base.is_empty() => format!("it was trained on `{base}`"),
            (_, Some(near)) => {
                format!("the model's nearest is `{near}`; was the adapter trained on another model?")
            }
            _ => "was the adapter trained on another model?".to_owned(),
        };
        self.problems.push(Problem::general(message).with_hint(hint));
    }

    fn tell_shapes(&mut self, name: &str, shape: &[usize], adapter: &str, adapter_shape: &[usize]) {
        let message = format!(
            "`{name}` is {shape:?} in `{}`, and {adapter} of adapter `{}` is {adapter_shape:?}",
            self.base_name, self.adapter_name
        );
        let hint = "an adapter fits the model that it was trained on";
        self.problems.push(Problem::general(message).with_hint(hint));
    }

    fn tell_type(&mut self, name: &str, dtype: Dtype) {
        let message =
            format!("`{name}` of adapter `{}` is {dtype}, which is not computed on", self.adapter_name);
        self.problems.push(Problem::general(message).with_hint("save the adapter in F32, F16 or BF16"));
    }
}

/// Whether one name is the end of the other, at a dot.
fn same_end(name: &str, other: &str) -> bool {
    let ends = |long: &str, short: &str| {
        long.strip_suffix(short).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
    };
    ends(name, other) || ends(other, name)
}

/// What of a model's files its tokenizer may be.
pub(crate) const TOKENIZER_FILES: [&str; 5] = [
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
];
