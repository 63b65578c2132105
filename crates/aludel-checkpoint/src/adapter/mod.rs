//! Opens LoRA adapters as peft saves them, and says how they are written.
//!
//! In: a folder with `adapter_config.json` and `adapter_model.safetensors`. Out: an [`Adapter`]: for each module of a model
//! its factors, its scale and what else belongs to it, and the tensors that stand in the place of the model's. Headers
//! only are read, and no product is computed; whether a model has the modules is not known here.

mod config;
mod names;
mod write;

pub use config::AdapterConfig;
pub use write::{AdapterFiles, AdapterTensor};

use std::path::{Path, PathBuf};

use indexmap::IndexMap;

use crate::checkpoint::{Checkpoint, TensorEntry};
use crate::error::Error;
use crate::names::fault_of_plain_name;
use crate::side_files::travels;
use names::{Part, part_of};

/// The file that says what an adapter is.
pub const ADAPTER_CONFIG: &str = "adapter_config.json";

/// The file of an adapter's weights.
pub const ADAPTER_WEIGHTS: &str = "adapter_model.safetensors";

/// An adapter whose config and header have been read and held against each other.
#[derive(Clone, Debug)]
pub struct Adapter {
    path: PathBuf,
    config: AdapterConfig,
    checkpoint: Checkpoint,
    modules: IndexMap<String, AdapterModule>,
    replaced: IndexMap<String, String>,
}

/// What an adapter adds to one module: `s B A`, where B has a row for each output and A a column for each input.
#[derive(Clone, Debug, PartialEq)]
pub struct AdapterModule {
    /// The tensor A: `[rank, inputs]`, of a convolution with its other sides after.
    pub a: String,
    /// The tensor B: `[outputs, rank]`.
    pub b: String,
    /// The rows of A.
    pub rank: usize,
    /// The product of A's other sides.
    pub inputs: usize,
    /// The rows of B.
    pub outputs: usize,
    /// s.
    pub scale: f64,
    /// Whether the module is an embedding, which is stored as the transpose of `B A`.
    pub is_embedding: bool,
    /// DoRA's magnitudes, one for each output.
    pub magnitude: Option<String>,
    /// What is added, times s, to the module's bias.
    pub bias: Option<String>,
}

impl Adapter {
    /// Whether a path is a folder that holds an adapter.
    pub fn is_at(path: &Path) -> bool {
        path.join(ADAPTER_CONFIG).is_file()
    }

    /// Opens an adapter's folder.
    ///
    /// Errors: [`Error::NotFound`]; [`Error::NotACheckpoint`] where it holds no adapter; [`Error::Unsupported`] for another
    /// kind than LoRA and for settings and tensors that are not understood; [`Error::Damaged`] where config and weights
    /// contradict each other; [`Error::Io`].
    pub fn open(path: &Path) -> Result<Self, Error> {
        if !path.try_exists().map_err(Error::io("read", path))? {
            let remedy =
                "give the folder that peft saved the adapter in, or the `owner/name` of an adapter on a hub"
                    .into();
            return Err(Error::NotFound { path: path.to_path_buf(), remedy });
        }
        if !Self::is_at(path) {
            let detail = format!("an adapter is a folder with {ADAPTER_CONFIG}, as peft saves it");
            return Err(Error::not_a_checkpoint(path, detail));
        }
        let config = AdapterConfig::read(&path.join(ADAPTER_CONFIG))?;
        let weights = weights_file(path)?;
        let checkpoint = Checkpoint::open(&weights)?;
        if let Some(name) = checkpoint.encoded().keys().next() {
            let detail = format!(
                "its tensor {name:?} is not stored as plain numbers; save it with `safe_serialization`"
            );
            return Err(Error::unsupported(&weights, detail));
        }
        let (modules, replaced) = parts(&checkpoint, &config)?;
        Ok(Self { path: path.to_path_buf(), config, checkpoint, modules, replaced })
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What `adapter_config.json` says.
    pub fn config(&self) -> &AdapterConfig {
        &self.config
    }

    /// The weights.
    pub fn checkpoint(&self) -> &Checkpoint {
        &self.checkpoint
    }

    /// The modules by their names in the model, such as `model.layers.0.self_attn.q_proj`.
    pub fn modules(&self) -> &IndexMap<String, AdapterModule> {
        &self.modules
    }

    /// The adapter's tensors that stand in the place of whole ones of the model (saved modules, trained biases), by the
    /// names of those.
    pub fn replaced(&self) -> &IndexMap<String, String> {
        &self.replaced
    }
}

/// The files of weights of an adapter, the first of which is read.
const WEIGHTS: [&str; 2] = [ADAPTER_WEIGHTS, "adapter_model.bin"];

/// The files of an adapter that are read, of all that its folder would have: config, weights, and a tokenizer that it may bring.
///
/// Errors: why there is no adapter among them.
pub fn needed_adapter_files(names: &[String]) -> Result<Vec<String>, String> {
    let has = |wanted: &str| names.iter().any(|name| name == wanted);
    if !has(ADAPTER_CONFIG) {
        return Err(format!("it has no {ADAPTER_CONFIG}, so that it is no adapter"));
    }
    let weights = WEIGHTS.into_iter().find(|name| has(name));
    let weights = weights.ok_or_else(|| format!("it has no {ADAPTER_WEIGHTS}"))?;
    let beside = names.iter().filter(|name| travels(name) && fault_of_plain_name(name).is_none());
    let mut needed: Vec<String> = beside.filter(|name| *name != ADAPTER_CONFIG).cloned().collect();
    needed.sort();
    needed.extend([ADAPTER_CONFIG, weights].map(str::to_owned));
    Ok(needed)
}

fn weights_file(folder: &Path) -> Result<PathBuf, Error> {
    let file = WEIGHTS.iter().map(|name| folder.join(name)).find(|file| file.symlink_metadata().is_ok());
    file.ok_or_else(|| Error::not_a_checkpoint(folder, format!("it holds no {ADAPTER_WEIGHTS}")))
}

type Parts = (IndexMap<String, AdapterModule>, IndexMap<String, String>);

/// The tensors of one module, as they are found.
#[derive(Default)]
struct Found<'a> {
    a: Option<(&'a str, &'a TensorEntry)>,
    b: Option<(&'a str, &'a TensorEntry)>,
    is_embedding: bool,
    magnitude: Option<(&'a str, &'a TensorEntry)>,
    bias: Option<(&'a str, &'a TensorEntry)>,
}

fn parts(checkpoint: &Checkpoint, config: &AdapterConfig) -> Result<Parts, Error> {
    let file = &checkpoint.files()[0].path;
    let (mut found, mut replaced): (IndexMap<String, Found<'_>>, IndexMap<String, String>) =
        Default::default();
    for (name, entry) in checkpoint.tensors() {
        let (module, part) = part_of(name).ok_or_else(|| {
            let detail = format!(
                "its tensor {name:?} is none of LoRA's; merge the adapter with peft (`merge_and_unload`) and give the \
                 merged model"
            );
            Error::unsupported(file, detail)
        })?;
        let place = match part {
            Part::Whole => {
                if let Some(other) = replaced.insert(module.clone(), name.clone()) {
                    return Err(Error::damaged(file, format!("{other:?} and {name:?} are both {module:?}")));
                }
                continue;
            }
            Part::A { is_embedding } => {
                let module = found.entry(module).or_default();
                module.is_embedding |= is_embedding;
                &mut module.a
            }
            Part::B { is_embedding } => {
                let module = found.entry(module).or_default();
                module.is_embedding |= is_embedding;
                &mut module.b
            }
            Part::Magnitude => &mut found.entry(module).or_default().magnitude,
            Part::Bias => &mut found.entry(module).or_default().bias,
        };
        if let Some((other, _)) = place.replace((name, entry)) {
            return Err(Error::damaged(file, format!("{other:?} and {name:?} are one and the same factor")));
        }
    }
    let modules = found.into_iter().map(|(name, found)| {
        let module = found.module(&name, config).map_err(|detail| Error::damaged(file, detail))?;
        Ok((name, module))
    });
    let modules: IndexMap<String, AdapterModule> = modules.collect::<Result<_, Error>>()?;
    if modules.is_empty() && replaced.is_empty() {
        return Err(Error::damaged(file, "it holds no tensors"));
    }
    Ok((modules, replaced))
}

impl Found<'_> {
    /// The module, or what its tensors and the config contradict each other in.
    fn module(&self, name: &str, config: &AdapterConfig) -> Result<AdapterModule, String> {
        let missing = |side: &str| format!("{name:?} has no lora_{side}");
        let (a, a_entry) = self.a.ok_or_else(|| missing("A"))?;
        let (b, b_entry) = self.b.ok_or_else(|| missing("B"))?;
        let (rank, a_rest) = sides(a_entry).ok_or_else(|| not_a_matrix(a, a_entry))?;
        let (outputs, b_rest) = sides(b_entry).ok_or_else(|| not_a_matrix(b, b_entry))?;
        if b_rest != rank {
            return Err(format!(
                "{a:?} is {:?} and {b:?} is {:?}: they have no product",
                a_entry.shape, b_entry.shape
            ));
        }
        let expected = config.rank_of(name);
        if rank != expected {
            return Err(format!("{a:?} has rank {rank} where {ADAPTER_CONFIG} says {expected}"));
        }
        for (what, vector) in [("magnitudes", self.magnitude), ("biases", self.bias)] {
            let Some((vector, entry)) = vector else { continue };
            if entry.elements() != outputs as u64 {
                return Err(format!(
                    "{vector:?} is {:?} where {outputs} {what} belong to {b:?}",
                    entry.shape
                ));
            }
        }
        if config.is_dora() != self.magnitude.is_some() {
            return Err(if config.is_dora() {
                format!("{name:?} has no lora_magnitude_vector, and {ADAPTER_CONFIG} says `use_dora`")
            } else {
                format!("{name:?} has a lora_magnitude_vector, and {ADAPTER_CONFIG} does not say `use_dora`")
            });
        }
        let named = |part: Option<(&str, &TensorEntry)>| part.map(|(name, _)| name.to_owned());
        Ok(AdapterModule {
            a: a.to_owned(),
            b: b.to_owned(),
            rank,
            inputs: a_rest,
            outputs,
            scale: config.scale_of(name),
            is_embedding: self.is_embedding,
            magnitude: named(self.magnitude),
            bias: named(self.bias),
        })
    }
}

/// The first side and the product of the others, none of which is 0.
fn sides(entry: &TensorEntry) -> Option<(usize, usize)> {
    let (&first, rest) = entry.shape.split_first()?;
    let rest = rest.iter().try_fold(1_usize, |product, &side| product.checked_mul(side));
    rest.filter(|&rest| entry.shape.len() > 1 && first > 0 && rest > 0).map(|rest| (first, rest))
}

fn not_a_matrix(name: &str, entry: &TensorEntry) -> String {
    format!("{name:?} is {:?}, which is no matrix", entry.shape)
}
