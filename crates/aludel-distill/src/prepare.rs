//! Loads the models of a run and sees that they fit each other.
//!
//! In: a run. Out: the student, ready to be trained; its teacher, frozen; the tokenizer of both, or of each where they need not have the
//! same. Nothing is written.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use aludel_checkpoint::{Checkpoint, Config, Dtype, TensorEntry};
use aludel_document::Problem;
use aludel_kernels::element::Element;
use aludel_kernels::loss::LossDevice;
use aludel_model::{AdapterSpec, Cut, Decoder, LayerChoice, Tokenizer, Use, WeightType};

use crate::error::Error;
use crate::run::{KeptLayers, LoraTargets, Run, Student, Weights};

/// The models of a run.
pub struct Models<D: LossDevice> {
    /// To be trained.
    pub student: Decoder<D>,
    /// Frozen.
    pub teacher: Option<Decoder<D>>,
    /// Of the student, and of the teacher unless it has its own.
    pub tokenizers: Tokenizers,
    /// The type in which the student's folder is to store weights: that of the folder it comes from.
    pub stored: Element,
}

/// By what a run reads its data.
#[derive(Clone, Debug)]
pub struct Tokenizers {
    /// The student's.
    pub student: Arc<Tokenizer>,
    /// The teacher's, where an objective asks for no token that both have.
    pub teacher: Option<Arc<Tokenizer>>,
}

impl Tokenizers {
    /// Those of a run; they have to mean the same unless its objective compares sorted probabilities.
    pub(crate) fn of(run: &Run) -> Result<Self, Error> {
        let teacher = match teachers_path(run).filter(|_| run.objective.is_sorted()) {
            Some(path) => Some(Arc::new(Tokenizer::open(path)?)),
            None => None,
        };
        Ok(Self { student: Arc::new(tokenizer(run)?), teacher })
    }

    /// The one that the teacher's rows are in.
    pub(crate) fn of_teacher(&self) -> &Arc<Tokenizer> {
        self.teacher.as_ref().unwrap_or(&self.student)
    }
}

impl<D: LossDevice> Models<D> {
    /// Loads them.
    ///
    /// # Errors
    /// [`Error::Problems`].
    pub fn load(device: &Arc<D>, run: &Run) -> Result<Self, Error> {
        Self::load_all(device, run).map_err(Error::into_problem)
    }

    fn load_all(device: &Arc<D>, run: &Run) -> Result<Self, Error> {
        let tokenizers = Tokenizers::of(run)?;
        let (student, teacher) = decoders(device, run)?;
        Ok(Self { student, teacher, tokenizers, stored: stored(run)? })
    }
}

/// The student of a run, ready to be trained, and its teacher.
pub(crate) fn decoders<D: LossDevice>(
    device: &Arc<D>,
    run: &Run,
) -> Result<(Decoder<D>, Option<Decoder<D>>), Error> {
    if run.served.is_some() {
        return Err(Problem::general("the teacher is served, and a training needs what it says at hand")
            .with_hint("run `aludel cache capture` with this file, then write `teacher: {cache: CACHE}`")
            .into());
    }
    let teacher = match &run.teacher {
        Some(path) => {
            let purpose = if run.train.offload.teacher { Use::FrozenAside } else { Use::Frozen };
            Some(Decoder::open(path, Arc::clone(device), purpose)?)
        }
        None => None,
    };
    let mut student = student(device, run, teacher.as_ref())?;
    if let Some(lora) = &run.train.lora {
        student.add_adapters(&AdapterSpec {
            rank: lora.rank,
            alpha: lora.alpha,
            rank_stabilised: false,
            targets: match &lora.targets {
                LoraTargets::AllLinear => vec!["all-linear".to_owned()],
                LoraTargets::Named(names) => names.clone(),
            },
            seed: run.train.seed,
        })?;
    }
    Ok((student, teacher))
}

/// Whether it is known where the tokenizer of the teacher is.
pub(crate) fn has_teachers_tokenizer(run: &Run) -> bool {
    teachers_path(run).is_some()
}

/// The student's tokenizer, which has to mean the same as the teacher's unless sorted probabilities are compared.
pub(crate) fn tokenizer(run: &Run) -> Result<Tokenizer, Error> {
    let [Some(path), teacher] = tokenizer_paths(run) else {
        return Err(Problem::general("the student has no tokenizer")
            .with_hint("put one beside its config.json, or name a teacher whose tokenizer it takes over")
            .into());
    };
    let tokenizer = Tokenizer::open(path)?;
    if let Some(teacher) = teacher.filter(|_| !run.objective.is_sorted()) {
        let hint = "compare sorted probabilities, which needs no tokens in common (`loss: uld`), or take models of one family";
        check_tokenizers(&Tokenizer::open(teacher)?, &tokenizer, hint)?;
    }
    Ok(tokenizer)
}

/// Where the tokenizer of the run is, and where its teacher's, where that is another.
fn tokenizer_paths(run: &Run) -> [Option<&Path>; 2] {
    let own = match &run.student {
        Student::Model(path) => Some(path.as_path()),
        Student::FromTeacher { .. } => None,
        Student::FromConfig { config, .. } => Some(folder_of(config)).filter(|folder| has_tokenizer(folder)),
    };
    let served = || run.served.as_ref().and_then(|served| served.tokenizer.as_deref());
    let teacher = run.teacher.as_deref().or_else(served);
    [own.or(teacher), teacher.filter(|teacher| own.is_some_and(|own| own != *teacher))]
}

/// Where the teacher's own tokenizer is, if the run says so.
fn teachers_path(run: &Run) -> Option<&Path> {
    let of_cache =
        || run.cache.as_ref().and_then(|cache| cache.tokenizer.as_deref().or(cache.model.as_deref()));
    let served = || run.served.as_ref().and_then(|served| served.tokenizer.as_deref());
    run.teacher.as_deref().or_else(of_cache).or_else(served)
}

/// Where there are tokenizers with the teacher's tokens: the teacher's, and the student's unless it has others.
pub(crate) fn teachers_paths(run: &Run) -> impl Iterator<Item = &Path> {
    let paths = if run.objective.is_sorted() { [teachers_path(run), None] } else { tokenizer_paths(run) };
    paths.into_iter().flatten()
}

/// The type of most weights in the folder that the student comes from. Quantised ones become bfloat16; new ones are stored
/// as they are trained.
fn stored(run: &Run) -> Result<Element, Error> {
    let path = match (&run.student, &run.teacher) {
        (Student::Model(path), _) | (Student::FromTeacher { .. }, Some(path)) => path,
        _ if run.train.weights == Weights::Float32 => return Ok(Element::F32),
        _ => return Ok(Element::BF16),
    };
    if path.is_file() {
        return Ok(Element::BF16);
    }
    let checkpoint = Checkpoint::open(path)?;
    let elements = |dtype| {
        let of_type = checkpoint.tensors().values().filter(move |tensor| tensor.dtype == dtype);
        of_type.map(TensorEntry::elements).sum::<u64>()
    };
    let types = [(Dtype::F32, Element::F32), (Dtype::BF16, Element::BF16), (Dtype::F16, Element::F16)];
    Ok(types
        .into_iter()
        .max_by_key(|(dtype, _)| elements(*dtype))
        .map_or(Element::F32, |(_, element)| element))
}

/// Refuses tokenizers of which an id means one thing here and another there.
pub(crate) fn check_tokenizers(teacher: &Tokenizer, student: &Tokenizer, hint: &str) -> Result<(), Error> {
    match teacher.compare(student) {
        Ok(_) => Ok(()),
        Err(error) => Err(Problem::general(error.to_string()).with_hint(hint).into()),
    }
}

/// The file that a student's `config` names itself or by its folder.
pub(crate) fn config_file(config: &Path) -> PathBuf {
    if config.is_dir() { config.join("config.json") } else { config.to_path_buf() }
}

fn folder_of(config: &Path) -> &Path {
    if config.is_dir() { config } else { config.parent().unwrap_or(Path::new("")) }
}

fn has_tokenizer(folder: &Path) -> bool {
    folder.join("tokenizer.json").is_file()
}

fn student<D: LossDevice>(
    device: &Arc<D>,
    run: &Run,
    teacher: Option<&Decoder<D>>,
) -> Result<Decoder<D>, Error> {
    let device = Arc::clone(device);
    let weights = match run.train.weights {
        Weights::Float32 => WeightType::Float32,
        Weights::Bfloat16 => WeightType::BFloat16,
    };
    // Adapters leave the weights as they are.
    let purpose = if run.train.lora.is_some() { Use::Frozen } else { Use::Trainable(weights) };
    match &run.student {
        Student::Model(path) => Ok(Decoder::open(path, device, purpose)?),
        Student::FromConfig { config, seed } => {
            let mut student = Decoder::fresh(Config::read(&config_file(config))?, device, weights, *seed)?;
            let folder = folder_of(config);
            let side_files = if has_tokenizer(folder) { Some(folder) } else { run.teacher.as_deref() };
            if let Some(folder) = side_files.filter(|folder| folder.is_dir()) {
                student.take_side_files_of(folder)?;
            }
            Ok(student)
        }
        Student::FromTeacher { layers, heads, ffn } => {
            let Some(teacher) = teacher else { return Err(Error::internal("a student without its teacher")) };
            let cut =
                Cut { layers: layer_choice(layers), heads: heads.map(places), feed_forward: ffn.map(places) };
            Ok(Decoder::from_teacher(teacher, &cut, weights)?)
        }
    }
}

fn layer_choice(layers: &KeptLayers) -> LayerChoice {
    match layers {
        KeptLayers::All => LayerChoice::All,
        KeptLayers::These(layers) => LayerChoice::Listed(layers.iter().copied().map(places).collect()),
        KeptLayers::Every(distance) => LayerChoice::Every(places(*distance)),
    }
}

/// A number that no model reaches stays one.
fn places(number: u64) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX)
}
