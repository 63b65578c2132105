//! Reads what a recipe merges: whole models, slices of layers, or the modules of models with several parts.
//!
//! In: the nodes under `models`, `slices` and `modules`. Out: [`Part`]s, each a list of [`Slice`]s. Whole models are one
//! slice without layer ranges, so that everything after this knows one form only. Which layers a model has is not known
//! here.

use std::ops::Range;

use aludel_document::{Content, Cursor, Located, Scalar};

use super::keys::{MODEL, MODULE, SLICE, SOURCE};
use super::read::{located, optional};
use super::{ModelReference, Parameters};
use crate::problem::{Place, Problem, Problems};

/// A part of the output: all of it, or one module of a model that has several.
#[derive(Debug, Clone)]
pub struct Part {
    /// The module's name.
    pub name: Option<Located<String>>,
    /// Runs of layers, one after another in the output; at least one.
    pub slices: Vec<Slice>,
    /// Parameters that hold for the module.
    pub parameters: Parameters,
}

/// A run of the output's layers, made of equally long runs of layers of its sources; or whole models.
#[derive(Debug, Clone)]
pub struct Slice {
    /// Where it is written.
    pub place: Place,
    /// Whether it is the list of `models`, whose entries have no layer ranges.
    pub is_whole: bool,
    /// The models that it is made of, in the author's order; at least one.
    pub sources: Vec<ModelEntry>,
    /// The model that task vectors start from in this slice.
    pub base_model: Option<Located<ModelReference>>,
    /// Parameters that hold for the slice.
    pub parameters: Parameters,
}

/// One entry of `models`, or of the `sources` of a slice.
#[derive(Debug, Clone)]
pub struct ModelEntry {
    /// Which model.
    pub reference: Located<ModelReference>,
    /// Which of its layers; `None` in `models`. Never empty.
    pub layers: Option<Located<Range<usize>>>,
    /// Its own parameters, which go before all others.
    pub parameters: Parameters,
}

impl Slice {
    /// How many layers the slice adds to the output; `None` for whole models.
    pub fn layers(&self) -> Option<usize> {
        self.sources.first()?.layers.as_ref().map(|layers| layers.value.len())
    }
}

/// The three keys that say what is merged, of which a recipe has exactly one.
const SUBJECTS: [&str; 3] = ["models", "slices", "modules"];

/// Reads what a recipe merges.
pub(super) fn read_parts(root: &Cursor<'_>, problems: &mut Problems) -> Option<Vec<Part>> {
    match only_subject(root, &SUBJECTS, problems)? {
        ("modules", cursor) => read_modules(&cursor, problems),
        subject => {
            let slices = read_subject(subject, problems)?;
            Some(vec![Part { name: None, slices, parameters: Parameters::default() }])
        }
    }
}

fn read_subject((key, cursor): (&str, Cursor<'_>), problems: &mut Problems) -> Option<Vec<Slice>> {
    match key {
        "slices" => read_slices(&cursor, problems),
        _ => Some(vec![read_models(&cursor, problems)?]),
    }
}

fn read_modules(cursor: &Cursor<'_>, problems: &mut Problems) -> Option<Vec<Part>> {
    let entries = problems.take(cursor.entries())?;
    if entries.is_empty() {
        let hint = "name the parts of the model that are merged, as in `text_decoder: {models: [...]}`";
        problems.push(cursor.problem("`modules` is empty").with_hint(hint));
    }
    let parts: Vec<Option<Part>> = entries
        .into_iter()
        .map(|(name, place, module)| read_module(name, place, &module, problems))
        .collect();
    parts.into_iter().collect()
}

fn read_module(name: &str, place: Place, cursor: &Cursor<'_>, problems: &mut Problems) -> Option<Part> {
    if !cursor.node.is_mapping() {
        problems.push(cursor.mismatch("a mapping with `models` or `slices`"));
        return None;
    }
    cursor.check_keys(MODULE, "values for the merge method stand under `parameters:`", problems);
    let slices = only_subject(cursor, &["models", "slices"], problems);
    let slices = slices.and_then(|subject| read_subject(subject, problems));
    let parameters = Parameters::read(cursor, problems);
    let name = Some(Located { value: name.to_owned(), place });
    Some(Part { name, slices: slices?, parameters })
}

/// The one key of `subjects` that is given; further ones are problems.
fn only_subject<'c>(
    parent: &Cursor<'c>,
    subjects: &[&'static str],
    problems: &mut Problems,
) -> Option<(&'static str, Cursor<'c>)> {
    let given = subjects.iter().filter_map(|&key| Some((key, parent.field(key)?)));
    let given: Vec<(&'static str, Cursor<'c>)> = given.collect();
    if given.is_empty() {
        let hint = "list the models to merge under `models:`, or runs of their layers under `slices:`";
        problems.push(parent.problem("`models` is missing").with_hint(hint));
    }
    for (other, cursor) in given.iter().skip(1) {
        let message = format!("`{other}` and `{}` exclude each other", given[0].0);
        problems.push(cursor.problem(message).with_hint("keep one of them"));
    }
    given.into_iter().next()
}

fn read_models(cursor: &Cursor<'_>, problems: &mut Problems) -> Option<Slice> {
    let items = problems.take(cursor.items())?;
    if items.is_empty() {
        problems.push(cursor.problem("`models` is empty").with_hint("list at least one model"));
    }
    let sources = all(&items, |item| read_entry(item, true, problems))?;
    let (base_model, parameters) = (None, Parameters::default());
    Some(Slice { place: cursor.place(), is_whole: true, sources, base_model, parameters })
}

fn read_slices(cursor: &Cursor<'_>, problems: &mut Problems) -> Option<Vec<Slice>> {
    let items = problems.take(cursor.items())?;
    if items.is_empty() {
        let hint = "list at least one slice, each with its `sources`";
        problems.push(cursor.problem("`slices` is empty").with_hint(hint));
    }
    all(&items, |item| read_slice(item, problems))
}

fn read_slice(cursor: &Cursor<'_>, problems: &mut Problems) -> Option<Slice> {
    let hint = "write it as `- sources: [{model: path/of/the/model, layer_range: [0, 16]}]`";
    if !cursor.node.is_mapping() {
        problems.push(cursor.mismatch("a mapping with `sources`").with_hint(hint));
        return None;
    }
    cursor.check_keys(SLICE, "values for the merge method stand under `parameters:`", problems);
    let missing = || cursor.problem("`sources` is missing").with_hint(hint);
    let sources = cursor.field("sources").ok_or_else(missing);
    let sources = problems.take(sources).and_then(|cursor| read_sources(&cursor, problems));
    let base_model = optional(cursor, "base_model", problems, located(ModelReference::read));
    let parameters = Parameters::read(cursor, problems);
    Some(Slice { place: cursor.place(), is_whole: false, sources: sources?, base_model, parameters })
}

fn read_sources(cursor: &Cursor<'_>, problems: &mut Problems) -> Option<Vec<ModelEntry>> {
    let items = problems.take(cursor.items())?;
    if items.is_empty() {
        problems.push(cursor.problem("`sources` is empty").with_hint("list at least one model"));
    }
    let sources = all(&items, |item| read_entry(item, false, problems))?;
    check_lengths(&sources, problems);
    Some(sources)
}

/// Every item, if all of them could be read; the rest is looked at in any case.
fn all<T>(items: &[Cursor<'_>], read: impl FnMut(&Cursor<'_>) -> Option<T>) -> Option<Vec<T>> {
    let entries: Vec<Option<T>> = items.iter().map(read).collect();
    entries.into_iter().collect()
}

fn read_entry(cursor: &Cursor<'_>, is_whole: bool, problems: &mut Problems) -> Option<ModelEntry> {
    let (keys, hint) = if is_whole {
        (MODEL, "write it as `- model: path/of/the/model`")
    } else {
        (SOURCE, "write it as `- {model: path/of/the/model, layer_range: [0, 16]}`")
    };
    if !cursor.node.is_mapping() {
        problems.push(cursor.mismatch("a mapping").with_hint(hint));
        return None;
    }
    cursor.check_keys(keys, "values for the merge method stand under `parameters:`", problems);
    let missing =
        || cursor.problem("`model` is missing").with_hint("name the model: `- model: path/of/the/model`");
    let reference =
        cursor.field("model").ok_or_else(missing).and_then(|model| located(ModelReference::read)(&model));
    let reference = problems.take(reference);
    let layers = if is_whole { Some(None) } else { problems.take(read_layers(cursor)).map(Some) };
    let parameters = Parameters::read(cursor, problems);
    Some(ModelEntry { reference: reference?, layers: layers?, parameters })
}

fn read_layers(source: &Cursor<'_>) -> Result<Located<Range<usize>>, Problem> {
    let hint = "give the first layer and the one after the last, as in `layer_range: [0, 16]`";
    let missing = || source.problem("`layer_range` is missing").with_hint(hint);
    let cursor = source.field("layer_range").ok_or_else(missing)?;
    let items = cursor.items().map_err(|problem| problem.with_hint(hint))?;
    let [first, end] = items.as_slice() else {
        let message = format!("a layer range has two numbers, found {}", items.len());
        return Err(cursor.problem(message).with_hint(hint));
    };
    let (first, end) = (read_layer(first)?, read_layer(end)?);
    if first < end {
        return Ok(cursor.locate(first..end));
    }
    let message = format!("the layer range [{first}, {end}] holds no layer");
    Err(cursor.problem(message).with_hint("the second number is that of the layer after the last"))
}

/// A number of a layer. Far more than any model has are refused here, so that later sums cannot overflow.
fn read_layer(cursor: &Cursor<'_>) -> Result<usize, Problem> {
    let mismatch = || cursor.mismatch("the number of a layer, counted from 0");
    if !matches!(cursor.node.content, Content::Plain(_) | Content::Quoted(_)) {
        return Err(mismatch());
    }
    match cursor.scalar()? {
        Scalar::Number(number) if number.fract() == 0.0 && (0.0..=MOST_LAYERS).contains(&number) => {
            Ok(number as usize)
        }
        _ => Err(mismatch()),
    }
}

const MOST_LAYERS: f64 = 1e6;

fn check_lengths(sources: &[ModelEntry], problems: &mut Problems) {
    let ranges = sources.iter().filter_map(|source| Some((source, source.layers.as_ref()?)));
    let ranges: Vec<_> = ranges.collect();
    let Some((first, expected)) = ranges.first() else { return };
    for (_, layers) in ranges.iter().filter(|(_, layers)| layers.value.len() != expected.value.len()) {
        let message = format!(
            "this source has {} layers, and `{}` has {}",
            layers.value.len(),
            first.reference.value.text(),
            expected.value.len()
        );
        let hint = "the sources of a slice are merged layer by layer: give all of them equally many";
        problems.push(Problem::at(layers.place.clone(), message).with_hint(hint));
    }
}
