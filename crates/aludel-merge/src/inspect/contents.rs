//! Lists what is in a model, from its headers alone.

use aludel_checkpoint::{Config, tensor_bytes};
use aludel_hub::Hub;
use indexmap::IndexMap;
use serde::Serialize;

use super::groups::group;
use crate::plan::{Facts, Opened};
use crate::problem::Problems;

/// What is in a model.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Contents {
    /// The reference as given.
    pub model: String,
    /// The architecture that its config names.
    pub architecture: Option<String>,
    /// The layers that its config counts.
    pub layers: Option<usize>,
    /// The tokens that its config counts.
    pub vocabulary: Option<usize>,
    /// Whether its config ties the head to the embedding.
    pub tied_embeddings: Option<bool>,
    /// Elements of all tensors.
    pub parameters: u64,
    /// Bytes of all tensors.
    pub bytes: u64,
    /// The tensors of each type, by their number.
    pub types: IndexMap<String, Counted>,
    /// The tensors of each layer, and of each part that is no layer, in the model's order.
    pub groups: IndexMap<String, Counted>,
    /// Every tensor, in the model's order.
    pub tensors: Vec<TensorFacts>,
    /// The names of the files that travel with the weights.
    pub side_files: Vec<String>,
}

/// How much something amounts to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Counted {
    /// Tensors.
    pub tensors: usize,
    /// Their elements.
    pub parameters: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// A tensor.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct TensorFacts {
    /// Its name.
    pub name: String,
    /// Its type.
    pub dtype: String,
    /// Its sides, slowest first.
    pub shape: Vec<usize>,
    /// Its elements.
    pub parameters: u64,
    /// Its bytes.
    pub bytes: u64,
    /// Its layer, or what else it is part of.
    pub group: String,
}

impl Counted {
    fn add(&mut self, tensor: &TensorFacts) {
        self.tensors += 1;
        self.parameters += tensor.parameters;
        self.bytes += tensor.bytes;
    }
}

/// Lists a model that is named as in a recipe; of one on a hub, headers are enough.
///
/// # Errors
/// The model cannot be opened.
pub fn contents(model: &str, hub: &Hub) -> Result<Contents, Problems> {
    let opened = Opened::open(&[model], hub)?;
    let opened = opened.model(0);
    let mut tensors: Vec<TensorFacts> = opened.tensors.iter().map(facts).collect();
    // Files order tensors by offset, as writers please; people look for the fourth layer between the third and the fifth.
    tensors.sort_by_cached_key(|tensor| natural(&tensor.name));
    let (mut types, mut groups) = (IndexMap::<String, Counted>::new(), IndexMap::<String, Counted>::new());
    let mut all = Counted::default();
    for tensor in &tensors {
        all.add(tensor);
        types.entry(tensor.dtype.clone()).or_default().add(tensor);
        groups.entry(tensor.group.clone()).or_default().add(tensor);
    }
    types.sort_by(|_, a, _, b| b.parameters.cmp(&a.parameters));
    let config = opened.config.as_ref();
    Ok(Contents {
        model: model.to_owned(),
        architecture: config.and_then(Config::architecture).map(str::to_owned),
        layers: config.and_then(Config::hidden_layers),
        vocabulary: config.and_then(Config::vocabulary),
        tied_embeddings: config.and_then(Config::ties_embeddings),
        parameters: all.parameters,
        bytes: all.bytes,
        types,
        groups,
        tensors,
        side_files: opened.side_files.names.iter().map(|name| name.display().to_string()).collect(),
    })
}

fn facts((name, facts): (&String, &Facts)) -> TensorFacts {
    TensorFacts {
        name: name.clone(),
        dtype: format!("{:?}", facts.dtype),
        shape: facts.shape.clone(),
        parameters: facts.shape.iter().map(|&side| side as u64).product(),
        // A header whose sizes overflow is refused when it is read.
        bytes: tensor_bytes(facts.dtype, &facts.shape).unwrap_or_default(),
        group: group(name),
    }
}

/// Orders names with numbers in them by those.
pub(crate) fn natural(name: &str) -> Vec<(u64, String)> {
    let key = |part: &str| match part.parse() {
        Ok(number) => (number, String::new()),
        Err(_) => (u64::MAX, part.to_owned()),
    };
    name.split('.').map(key).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_are_in_the_order_of_their_numbers() {
        let mut names = ["layers.10.a", "layers.9.b", "layers.9.a", "embed", "layers.2.z"];
        names.sort_by_cached_key(|name| natural(name));
        assert_eq!(names, ["embed", "layers.2.z", "layers.9.a", "layers.9.b", "layers.10.a"]);
    }
}
