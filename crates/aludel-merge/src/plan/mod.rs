//! Turns a recipe into a complete, immutable description of the work, reading headers only.
//!
//! In: a [`Recipe`] and [`PlanOptions`]. Out: a [`Plan`], or every problem that the headers show, all at once. The plan
//! names every output tensor with its formula and inputs, every tensor that is dropped and why, where each output byte
//! will lie, and what the work will cost; [`crate::execute`] does exactly that and decides nothing again.

mod adapters;
mod align;
mod budget;
mod build;
mod cast;
mod chat_template;
mod delta;
mod experts;
mod fits;
mod formulas;
mod fp8;
mod heads;
mod layer_config;
mod measure;
mod models;
mod modules;
mod output;
mod part;
mod print;
mod side_files;
mod slices;
mod stacks;
mod stage;
mod tensors;
mod transplant;
mod vocabulary;

pub(crate) use adapters::TOKENIZER_FILES;
pub use aludel_delta::Values;
pub use budget::{MEMORY_DEFAULT, Work};
pub(crate) use delta::DeltaPlan;
pub use experts::{GateRows, Gates, PromptTokens};
pub(crate) use measure::{Opened, Wanted};
pub(crate) use models::{Facts, Model};
pub use models::{Role, Source};
pub use part::Part;
pub use print::Bytes;
pub use side_files::{SideFiles, WrittenFile};
pub(crate) use stacks::LayerName;
pub(crate) use tensors::{DERIVED, HEAD, is_derived, is_embedding, is_head, name_in, ties_embeddings};
pub use transplant::{Approximation, Likeness, PieceWeights, Transplant};
pub(crate) use vocabulary::is_of_vocabulary;

use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::Arc;

use aludel_checkpoint::{Checkpoint, Config, Dtype, Layout};
use aludel_hub::Hub;
use aludel_kernels::cpu::Geometry;
use aludel_kernels::element::{Element, Encoding};
use aludel_kernels::formula::Formula;
use serde::Serialize;

use crate::derive::{Alignment, Made, Readable, Stored};
use crate::methods::RowLayout;
use crate::problem::Problems;
use crate::recipe::{ExpertsRecipe, Recipe};

/// What a plan depends on besides the recipe.
#[derive(Clone, Debug)]
pub struct PlanOptions {
    /// The output folder; its file system has to have room.
    pub target: Option<PathBuf>,
    /// Whether a folder at the target will give way.
    pub replace: bool,
    /// Keys the random numbers.
    pub seed: u64,
    /// Threads that compute; at least 1.
    pub threads: usize,
    /// Bytes of memory that the merge may take beyond the process itself.
    pub memory: u64,
    /// The most tensor data in one output file, in bytes.
    pub shard_bytes: u64,
    /// Elements per unit of work, a multiple of [`CHUNK`](aludel_kernels::cpu::CHUNK); chosen from the memory when `None`.
    pub tile: Option<u64>,
    /// Compute with NaN and infinities in the inputs instead of refusing them.
    pub allow_non_finite: bool,
    /// Where models are looked for.
    pub hub: Hub,
    /// The part of the output that is written.
    pub part: Part,
    /// How the output is stored.
    pub form: Form,
    /// What is computed on.
    pub compute: Compute,
    /// Names in the recipe that stand for folders, before anything is looked for: results that earlier runs have written.
    pub results: Vec<(String, PathBuf)>,
    /// Where the recipe's random streams begin, so that runs of one sequence share none.
    pub first_stream: u16,
}

impl Default for PlanOptions {
    fn default() -> Self {
        Self {
            target: None,
            replace: false,
            seed: 0,
            threads: std::thread::available_parallelism().map_or(1, usize::from),
            memory: MEMORY_DEFAULT,
            shard_bytes: 5_000_000_000,
            tile: None,
            allow_non_finite: false,
            hub: Hub::none(),
            part: Part::WHOLE,
            form: Form::Dense,
            compute: Compute::Exact,
            results: Vec::new(),
            first_stream: 0,
        }
    }
}

/// How an output is stored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Form {
    /// As a model folder.
    #[default]
    Dense,
    /// As what it differs by from the base model; what is added to that is exact or rounded.
    SparseDelta(Values),
    /// As a model folder whose linear weights are FP8 with a scale for each row, as compressed-tensors has them.
    Fp8,
}

/// What a merge computes on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Compute {
    /// The values of the models.
    #[default]
    Exact,
    /// What E4M3 leaves of them, or of task vectors where the method has a base, with a scale for each row: approximate.
    Fp8,
}

impl Compute {
    /// Whether it is what a merge does unless told otherwise.
    pub(crate) const fn is_exact(&self) -> bool {
        matches!(self, Self::Exact)
    }
}

/// A merge, ready to run.
#[derive(Clone, Debug, Serialize)]
pub struct Plan {
    /// The version of this library.
    pub version: &'static str,
    /// The recipe as written.
    pub recipe: String,
    /// The merge method.
    pub method: &'static str,
    /// Keys the random numbers.
    pub seed: u64,
    /// Whether NaN and infinities in the inputs are computed with.
    pub allow_non_finite: bool,
    /// The part of the output that is written.
    pub part: Part,
    /// What is computed on.
    #[serde(skip_serializing_if = "Compute::is_exact")]
    pub compute: Compute,
    /// What has to be measured before the plan can be carried out, which is then made anew with it; mostly nothing.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub awaited: Vec<String>,
    /// The recipes whose results this one merges, in an order in which each comes after those that it merges. Their formulas
    /// are built into those of the output.
    pub stages: Vec<PlannedStage>,
    /// The models that are read, in the recipe's order.
    pub sources: Vec<Source>,
    /// The distinct formulas of all steps.
    pub formulas: Vec<PlannedFormula>,
    /// One step for each output tensor, in writing order.
    pub steps: Vec<Step>,
    /// Input tensors that are not in the output, and why.
    pub dropped: Vec<Dropped>,
    /// The output folder's content besides weights.
    pub side_files: SideFiles,
    /// Where every output tensor will lie.
    pub layout: Layout,
    /// What it will cost.
    pub work: Work,
    #[serde(skip)]
    pub(crate) config: Option<Config>,
    /// What the output is stored as the difference from; `None` where it is stored as it is.
    #[serde(skip)]
    pub(crate) delta: Option<DeltaPlan>,
    /// Sources that are statistics, each with the source that they are to be of.
    #[serde(skip)]
    pub(crate) statistics: Vec<(usize, usize)>,
    /// For each step, the other one of a tensor and its scales.
    #[serde(skip)]
    pub(crate) partners: Vec<Option<usize>>,
    /// For each step, the bytes that are read for an element of each of its inputs.
    #[serde(skip)]
    pub(crate) widths: Vec<Vec<u64>>,
}

/// A recipe whose result the output is made of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PlannedStage {
    /// What the result is called.
    pub name: String,
    /// Its merge method.
    pub method: &'static str,
}

/// A formula that one or more steps evaluate.
#[derive(Clone, Debug, Serialize)]
pub struct PlannedFormula {
    /// Readable text: `x0`, `x1`, … are the step's inputs in order.
    pub text: String,
    /// Sweeps over all elements: those that reduce, and the one that writes.
    pub passes: usize,
    /// Registers of a thread that evaluates it.
    pub registers: usize,
    /// Why a GPU leaves it to the CPU, where it does.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub only_on_cpu: Option<&'static str>,
    #[serde(skip)]
    pub(crate) formula: Arc<Formula>,
    /// The inputs that each pass reads.
    #[serde(skip)]
    pub(crate) reads: Vec<Vec<u16>>,
}

/// How one output tensor comes about.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Step {
    /// Its name.
    pub tensor: String,
    /// Its sides.
    pub shape: Vec<usize>,
    /// The type that is written.
    pub dtype: Dtype,
    /// What is done.
    pub action: Action,
    /// The tensors that it is made of.
    pub inputs: Vec<StepInput>,
}

impl Step {
    /// The elements of the tensor; 1 for a scalar.
    pub fn elements(&self) -> u64 {
        self.shape.iter().map(|&side| side as u64).product()
    }

    /// The geometry that its formula is computed in; `None` where it has none.
    pub(crate) fn geometry(&self) -> Option<Geometry> {
        let Action::Compute { columns, bands, .. } = self.action else { return None };
        Some(RowLayout { columns, bands }.geometry(self.elements()))
    }
}

impl Action {
    /// Evaluates a formula over rows.
    pub(crate) const fn compute(formula: usize, RowLayout { columns, bands }: RowLayout) -> Self {
        Self::Compute { formula, columns, bands }
    }
}

/// What a step does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    /// Evaluates a formula, by its position in [`Plan::formulas`].
    Compute {
        /// The position.
        formula: usize,
        /// Elements of each row.
        columns: u64,
        /// Every so many-th row counts to the same group, where rows are not groups by themselves.
        #[serde(skip_serializing_if = "Option::is_none")]
        bands: Option<u64>,
    },
    /// Copies bytes that are the same in all inputs, which is checked while copying.
    Copy,
    /// Nothing of its own: they are the scales of another tensor, whose step knows and writes them.
    Scales,
}

/// A tensor of a source.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct StepInput {
    /// The position in [`Plan::sources`].
    pub source: usize,
    /// The tensor's name there.
    pub tensor: String,
    /// How its elements are made of stored ones, where they are.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) made: Option<Made>,
}

/// An input tensor that is not in the output.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Dropped {
    /// The position in [`Plan::sources`].
    pub source: usize,
    /// The tensor's name.
    pub tensor: String,
    /// Why.
    pub reason: String,
}

/// A stored tensor that an input is made of, or is.
pub(crate) struct StoredPart {
    /// Bytes for each element of the input.
    pub width: u64,
    /// Bytes of the tensor.
    pub bytes: u64,
    /// Bytes of its file.
    pub file: u64,
}

impl StepInput {
    /// The stored tensors that it is made of: itself, unless it is derived.
    pub(crate) fn reads(&self) -> Vec<Stored> {
        self.readable().reads()
    }

    /// What is read for it.
    pub(crate) fn readable(&self) -> Readable {
        let stored = Stored { source: self.source, tensor: self.tensor.clone() };
        Readable { stored, made: self.made.clone() }
    }

    /// What is read of the sources for an input of so many elements.
    pub(crate) fn stored(&self, elements: u64, sources: &[Source]) -> Vec<StoredPart> {
        let part = |source: usize, tensor: &str| {
            let checkpoint = &sources[source].checkpoint;
            let encoded = || checkpoint.encoded().get(tensor);
            let (bytes, file) = match checkpoint.tensor(tensor) {
                Some(entry) => (entry.bytes, entry.file),
                None => encoded().and_then(|made| Some((made.stored_bytes(), made.files().next()?)))?,
            };
            let width = bytes.div_ceil(elements.max(1));
            Some(StoredPart { width, bytes, file: checkpoint.files()[file].bytes })
        };
        self.reads().iter().filter_map(|read| part(read.source, &read.tensor)).collect()
    }
}

/// The orders of experts that steps depend on, each once.
pub(crate) fn alignments<'s>(steps: impl IntoIterator<Item = &'s Step>) -> Vec<&'s Alignment> {
    let made = steps.into_iter().flat_map(|step| &step.inputs).filter_map(|input| input.made.as_ref());
    let mut known = HashSet::new();
    let alignments = made.filter_map(|made| made.alignment()).map(|alignment| &**alignment);
    alignments.filter(|&alignment| known.insert(std::ptr::from_ref(alignment))).collect()
}

/// How a type is computed on; `None` for types that are copied.
pub(crate) const fn element_of(dtype: Dtype) -> Option<Element> {
    match dtype {
        Dtype::F32 => Some(Element::F32),
        Dtype::F16 => Some(Element::F16),
        Dtype::BF16 => Some(Element::BF16),
        _ => None,
    }
}

/// How the elements of a computed output are stored; `None` for types that nothing is computed in.
pub(crate) fn encoding_of(dtype: Dtype) -> Option<Encoding> {
    if dtype == Dtype::F8_E4M3 { Some(Encoding::E4m3) } else { element_of(dtype).map(Encoding::from) }
}

impl Plan {
    /// Plans a merge.
    ///
    /// # Errors
    /// All problems found: in the recipe, in the models' headers, between them, and with the space for the output.
    pub fn new(recipe: &Recipe, options: &PlanOptions) -> Result<Self, Problems> {
        build::plan(recipe, options)
    }

    /// Plans a mixture of experts. Without the gates that its recipe asks for, the plan is good for showing.
    ///
    /// # Errors
    /// As [`Plan::new`].
    pub fn of_experts(
        recipe: &ExpertsRecipe,
        gates: &Gates,
        options: &PlanOptions,
    ) -> Result<Self, Problems> {
        experts::plan(recipe, gates, options)
    }

    /// Plans a model with the tokenizer of another. `cut` cuts a text into the tokens of the model, for those who approximate by pieces.
    ///
    /// # Errors
    /// As [`Plan::new`], and what `cut` says.
    pub fn of_transplant(
        transplant: &Transplant<'_>,
        cut: &dyn Fn(&str) -> Result<Vec<u32>, String>,
        options: &PlanOptions,
    ) -> Result<Self, Problems> {
        transplant::plan(transplant, cut, options)
    }

    /// The checkpoint of a step's input.
    pub(crate) fn checkpoint(&self, input: &StepInput) -> &Checkpoint {
        &self.sources[input.source].checkpoint
    }

    /// The file that a step is written to, if it is.
    pub(crate) fn shard(&self, step: usize) -> Option<usize> {
        (step < self.layout.tensors().len()).then(|| self.layout.placement(step).shard)
    }

    /// Bytes that a step reads, each pass counted.
    pub(crate) fn bytes_read(&self, step: usize) -> u64 {
        let elements = self.steps[step].elements();
        let bytes: Vec<u64> = self.widths[step].iter().map(|width| width * elements).collect();
        budget::bytes_read(&self.steps[step], &self.formulas, &bytes)
    }

    /// Bytes of an element of all inputs of a step together.
    pub(crate) fn input_width(&self, step: usize) -> u64 {
        self.widths[step].iter().sum()
    }
}
