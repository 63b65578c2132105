//! Opens the models of a recipe by their headers, each once.
//!
//! In: references, with the places where they stand. Out: [`Model`]s, which tell the names, shapes and types of their
//! tensors and their config. What a model is to the merge is settled elsewhere.

use std::path::PathBuf;
use std::sync::Arc;

use aludel_checkpoint::{Adapter, Checkpoint, Config, Dtype};
use aludel_document::Located;
use aludel_hub::Hub;
use indexmap::IndexMap;
use serde::Serialize;

use super::adapters::adapted;
use super::{SideFiles, WrittenFile};
use crate::derive::{Decoded, Made};
use crate::methods::Statistics;
use crate::problem::{Problem, Problems};
use crate::recipe::{ModelReference, nearest};

/// A model that is read.
#[derive(Clone, Debug, Serialize)]
pub struct Source {
    /// The reference as written.
    pub model: String,
    /// Where it lies.
    pub path: PathBuf,
    /// Bytes of weights to download before they can be merged; nothing lies at `path` but their headers then.
    pub missing_bytes: u64,
    /// What it is to the merge.
    pub role: Role,
    /// Its tensors.
    pub tensors: usize,
    /// Bytes of its weight files.
    pub bytes: u64,
    /// How it is stored, where that is not as plain numbers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
    #[serde(skip)]
    pub(crate) checkpoint: Arc<Checkpoint>,
}

/// What a model is to the merge.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// The base model, which is no member.
    Base,
    /// A member.
    Member,
    /// An adapter, which makes another model of one.
    Adapter,
    /// Statistics of a member, which is a model of its own.
    Statistics,
}

/// What the planner knows of a tensor.
#[derive(Clone, Debug)]
pub(crate) struct Facts {
    pub shape: Vec<usize>,
    /// The type that it is stored in; of a tensor that is made, the one that its model would have stored it in.
    pub dtype: Dtype,
    /// How its elements are made of stored ones, where they are.
    pub made: Option<Made>,
}

/// A model as the planner sees it.
#[derive(Clone, Debug)]
pub(crate) struct Model {
    /// The reference as written.
    pub name: String,
    pub tensors: IndexMap<String, Facts>,
    pub config: Option<Config>,
    pub side_files: SideFiles,
    pub origin: Origin,
}

/// Where the tensors of a model are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Origin {
    /// In a checkpoint, by its position in [`Models::sources`].
    Source(usize),
    /// Nowhere: a stage makes them, by its position among the stages.
    Stage(usize),
}

impl Model {
    /// A checkpoint that is opened as a source of this number.
    fn of(name: &str, checkpoint: &Checkpoint, source: usize) -> Self {
        let stored = |(name, entry): (&String, &aludel_checkpoint::TensorEntry)| {
            (name.clone(), Facts { shape: entry.shape.clone(), dtype: entry.dtype, made: None })
        };
        let decoded = |(name, encoded): (&String, &aludel_checkpoint::Encoded)| {
            let made = Some(Made::by(Decoded::new(source, name, encoded)));
            (name.clone(), Facts { shape: encoded.shape.clone(), dtype: encoded.dtype, made })
        };
        let written = |made: &aludel_checkpoint::MadeFile| WrittenFile {
            name: made.name.clone(),
            text: made.text.clone(),
        };
        let tensors = checkpoint.tensors().iter().map(stored);
        Self {
            name: name.to_owned(),
            tensors: tensors.chain(checkpoint.encoded().iter().map(decoded)).collect(),
            config: checkpoint.config().cloned(),
            side_files: SideFiles {
                folder: checkpoint.path().to_path_buf(),
                names: checkpoint.side_files().to_vec(),
                written: checkpoint.made_files().iter().map(written).collect(),
            },
            origin: Origin::Source(source),
        }
    }

    /// The same model under another name.
    pub(super) fn renamed(&self, name: &str) -> Self {
        Self { name: name.to_owned(), ..self.clone() }
    }

    /// The names of its tensors, in order.
    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// The position among the sources of the checkpoint that it is; `None` for the result of a stage.
    pub(crate) const fn source(&self) -> Option<usize> {
        match self.origin {
            Origin::Source(source) => Some(source),
            Origin::Stage(_) => None,
        }
    }

    pub(crate) fn has(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }
}

/// Every model that the merge refers to, in the order in which they were asked for.
#[derive(Debug)]
pub(super) struct Models {
    hub: Hub,
    pub list: Vec<Model>,
    pub sources: Vec<Source>,
    /// References that could not be opened, so that the reason is told once for each place.
    refused: Vec<(String, String)>,
    /// Stages that have problems of their own, so that those who use them cannot be planned.
    failed: Vec<String>,
    /// The names of all stages, for hints.
    stages: Vec<String>,
    /// As [`PlanOptions::results`](super::PlanOptions::results).
    results: Vec<(String, PathBuf)>,
}

impl Models {
    /// No models yet, which are looked for there, and stages of these names to come.
    pub(super) fn with_stages(names: impl Iterator<Item = String>, hub: Hub) -> Self {
        let (list, sources, refused, failed, results) = Default::default();
        Self { hub, list, sources, refused, failed, stages: names.collect(), results }
    }

    /// The same, with names that stand for folders.
    pub(super) fn with_results(self, results: Vec<(String, PathBuf)>) -> Self {
        Self { results, ..self }
    }

    /// Adds the result of a stage.
    pub(super) fn add_stage(&mut self, model: Model) {
        self.list.push(model);
    }

    /// Takes note that a stage cannot be planned, for reasons that have been told.
    pub(super) fn add_failed_stage(&mut self, name: &str) {
        self.failed.push(name.to_owned());
    }

    /// The model of a reference among those opened.
    pub(super) fn position(&self, reference: &ModelReference) -> Option<usize> {
        self.list.iter().position(|model| model.name == reference.text())
    }

    /// The position of the model, opened unless it is there already; `None` with a problem where it cannot be.
    pub(super) fn open(
        &mut self,
        reference: &Located<ModelReference>,
        role: Role,
        problems: &mut Problems,
    ) -> Option<usize> {
        let (name, place) = (reference.value.text(), &reference.place);
        if let Some(known) = self.position(&reference.value) {
            return Some(known);
        }
        if self.failed.iter().any(|failed| failed == name) {
            return None;
        }
        if let Some((_, reason)) = self.refused.iter().find(|(refused, _)| refused == name) {
            problems.push(Problem::at(place.clone(), reason.clone()));
            return None;
        }
        if let Some((model, adapter)) = reference.value.adapter() {
            return self.open_adapted(reference, model, &adapter, role, problems);
        }
        let result = self.results.iter().find(|(result, _)| result == name);
        let found = match result {
            Some((_, folder)) => Ok(aludel_hub::Located { path: folder.clone(), missing_bytes: 0 }),
            None => self.hub.locate(&reference.value.path().to_string_lossy(), reference.value.revision()),
        };
        let opened = found.map_err(|error| error.to_string()).and_then(|located| {
            let checkpoint = Checkpoint::open_source(&located.path).map_err(|error| error.to_string())?;
            Ok((located, checkpoint))
        });
        match opened {
            Ok((located, checkpoint)) => {
                self.list.push(Model::of(name, &checkpoint, self.sources.len()));
                self.add_source(name, located.path, role, checkpoint);
                self.sources.last_mut()?.missing_bytes = located.missing_bytes;
                Some(self.list.len() - 1)
            }
            Err(error) => {
                self.refused.push((name.to_owned(), error.clone()));
                let problem = Problem::at(place.clone(), error);
                problems.push(match nearest(name, self.stages.iter().map(String::as_str)) {
                    Some(stage) => {
                        problem.with_hint(format!("did you mean the result of the recipe named `{stage}`?"))
                    }
                    None => problem,
                });
                None
            }
        }
    }

    /// As [`Self::open`], of a model with an adapter.
    fn open_adapted(
        &mut self,
        reference: &Located<ModelReference>,
        model: ModelReference,
        adapter: &ModelReference,
        role: Role,
        problems: &mut Problems,
    ) -> Option<usize> {
        let place = &reference.place;
        let carrier = Located { value: model, place: place.clone() };
        let carrier = self.open(&carrier, role, problems);
        let path = adapter.path();
        let found = self.hub.locate_adapter(&path.to_string_lossy(), adapter.revision());
        let opened = found.map_err(|error| error.to_string()).and_then(|located| {
            Ok((Adapter::open(&located.path).map_err(|error| error.to_string())?, located))
        });
        let opened = problems.take(opened.map_err(|error| Problem::at(place.clone(), error)));
        let (carrier, (opened, located)) = (&self.list[carrier?], opened?);
        let Origin::Source(base) = carrier.origin else {
            let message = format!(
                "`{}` is made by this recipe, and an adapter is added to a model on disk",
                carrier.name
            );
            let hint = "write what it is added to into a folder of its own with --intermediate-dir";
            problems.push(Problem::at(place.clone(), message).with_hint(hint));
            return None;
        };
        match adapted(reference.value.text(), carrier, base, &opened, self.sources.len()) {
            Ok(model) => self.list.push(model),
            Err(faults) => {
                for fault in faults {
                    problems.push(Problem { place: Some(place.clone()), ..fault });
                }
                return None;
            }
        }
        let checkpoint = opened.checkpoint().clone();
        self.add_source(adapter.text(), located.path, Role::Adapter, checkpoint);
        self.sources.last_mut()?.missing_bytes = located.missing_bytes;
        Some(self.list.len() - 1)
    }

    /// The position among the sources of a file of statistics, opened unless it is there already.
    pub(super) fn open_statistics(
        &mut self,
        file: &Located<String>,
        wanted: Statistics,
    ) -> Result<usize, Problem> {
        let is_it = |source: &Source| source.role == Role::Statistics && source.model == file.value;
        if let Some(known) = self.sources.iter().position(is_it) {
            return Ok(known);
        }
        let path = PathBuf::from(&file.value);
        let checkpoint =
            Checkpoint::open(&path).map_err(|error| Problem::at(file.place.clone(), error.to_string()))?;
        if let Some(kind) = checkpoint.metadata().get("kind").filter(|kind| *kind != wanted.name()) {
            let message = format!("`{}` has statistics of the kind `{kind}`", file.value);
            let hint = format!("collect those of the kind `{}`", wanted.name());
            return Err(Problem::at(file.place.clone(), message).with_hint(hint));
        }
        self.add_source(&file.value, path, Role::Statistics, checkpoint);
        Ok(self.sources.len() - 1)
    }

    fn add_source(&mut self, name: &str, path: PathBuf, role: Role, checkpoint: Checkpoint) {
        self.sources.push(Source {
            model: name.to_owned(),
            path,
            missing_bytes: 0,
            role,
            tensors: checkpoint.tensors().len() + checkpoint.encoded().len(),
            bytes: checkpoint.files().iter().map(|file| file.bytes).sum(),
            note: checkpoint.note().map(str::to_owned),
            checkpoint: Arc::new(checkpoint),
        });
    }
}
