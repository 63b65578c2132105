//! Reads what stands under `train:`.
//!
//! In: its node. Out: [`Train`]. How many steps an epoch has, and what fits into memory, is not known here.

use aludel_document::{Content, Cursor, Key, Problem, Problems, Scalar};
use serde::Serialize;

use super::fields::{self, BELOW_ONE, Bounds, Fields, NOT_NEGATIVE, POSITIVE};

/// How long and with which settings.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Train {
    /// When the run ends.
    pub length: Length,
    /// Sequences of an optimizer step; a multiple of `micro_batch`.
    pub batch_size: usize,
    /// Sequences that go through the models at once.
    pub micro_batch: usize,
    /// Highest learning rate.
    pub learning_rate: f64,
    /// Where the learning rate ends, for schedules that fall.
    pub minimum_learning_rate: f64,
    /// How the learning rate falls after the warm-up.
    pub schedule: Schedule,
    /// How long the learning rate rises from 0.
    pub warmup: Warmup,
    /// Decoupled weight decay of matrices; other parameters have none.
    pub weight_decay: f64,
    /// Decay rates of AdamW's two moments.
    pub betas: [f64; 2],
    /// Added to the root of AdamW's second moment.
    pub epsilon: f64,
    /// The largest norm of all gradients together; `None` does not clip.
    pub clip: Option<f64>,
    /// Type of the weights in forward and backward; masters are f32.
    pub weights: Weights,
    /// Type of the gradients of matrices on a device whose activations have 16 bits.
    #[serde(skip_serializing_if = "Weights::is_float32")]
    pub gradients: Weights,
    /// Type of AdamW's moments.
    pub moments: Moments,
    /// The stage of ZeRO: 1 shares AdamW's state and masters out among processes.
    pub zero: u64,
    /// What lies in the host's memory rather than in a device's own.
    pub offload: Offload,
    /// Settings that the run's file leaves to whoever sees that it fits the memory.
    #[serde(skip)]
    pub open: Open,
    /// Low-rank adapters instead of full fine-tuning.
    pub lora: Option<Lora>,
    /// Which activations are computed again in the backward pass.
    pub checkpointing: Checkpointing,
    /// Steps between evaluations; `None` evaluates at the end only.
    pub evaluate_every: Option<u64>,
    /// Steps between checkpoints; `None` writes none but the final model.
    pub save_every: Option<u64>,
    /// How many of the latest checkpoints are kept; the best one is kept besides.
    pub keep: usize,
    /// Ends the run early.
    pub early_stopping: Option<EarlyStopping>,
    /// Of the order of the data and of new weights.
    pub seed: u64,
}

impl Train {
    /// How many micro-batches a step has.
    pub fn micro_batches(&self) -> usize {
        self.batch_size / self.micro_batch
    }
}

/// When a run ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Length {
    /// After so many optimizer steps; the data begins again as often as needed.
    Steps(u64),
    /// When every row was read so many times.
    Epochs(u64),
}

/// How the learning rate falls after the warm-up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Schedule {
    /// Half a cosine.
    Cosine,
    /// A straight line.
    Linear,
    /// Not at all.
    Constant,
}

/// How long the learning rate rises from 0.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Warmup {
    /// This share of all steps, rounded up; at least 0 and below 1.
    Share(f64),
    /// So many steps.
    Steps(u64),
}

/// Type of the weights in forward and backward, or of their gradients.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Weights {
    /// 32 bits.
    Float32,
    /// 16 bits with 8 of exponent.
    Bfloat16,
}

impl Weights {
    fn is_float32(&self) -> bool {
        *self == Self::Float32
    }
}

/// Type of AdamW's moments.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Moments {
    /// 32 bits.
    Float32,
    /// 8 bits, with a scale for each block.
    Int8,
}

/// Low-rank adapters.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Lora {
    /// At least 1.
    pub rank: usize,
    /// The product of the two factors is scaled by `alpha / rank`.
    pub alpha: f64,
    /// Which layers have one.
    pub targets: LoraTargets,
}

/// Which layers have an adapter.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum LoraTargets {
    /// Every linear layer of the blocks.
    AllLinear,
    /// Layers of these names, such as `q_proj`.
    Named(Vec<String>),
}

/// Which activations are computed again in the backward pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Checkpointing {
    /// None.
    None,
    /// Those inside each block.
    Block,
    /// Those inside each group of so many blocks.
    Every(u64),
}

/// Settings that a run's file does not give.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Open {
    /// `checkpointing`.
    pub checkpointing: bool,
    /// `moments`.
    pub moments: bool,
    /// `offload`.
    pub offload: bool,
}

/// What lies in the host's memory rather than in a device's own.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Offload {
    /// Masters and moments of AdamW.
    pub optimizer: bool,
    /// Weights of the teacher's layers.
    pub teacher: bool,
}

/// Ends a run when the validation loss no longer falls.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct EarlyStopping {
    /// Evaluations without improvement that end the run; at least 1.
    pub patience: u64,
    /// By how much the loss has to fall to count as an improvement.
    pub minimum_improvement: f64,
}

const KEYS: &[Key] = &[
    Key::read("steps"),
    Key::read("epochs"),
    Key::read("batch_size"),
    Key::read("micro_batch"),
    Key::read("learning_rate"),
    Key::read("minimum_learning_rate"),
    Key::read("schedule"),
    Key::read("warmup"),
    Key::read("weight_decay"),
    Key::read("betas"),
    Key::read("epsilon"),
    Key::read("clip"),
    Key::read("weights"),
    Key::read("gradients"),
    Key::read("moments"),
    Key::read("zero"),
    Key::read("offload"),
    Key::read("lora"),
    Key::read("checkpointing"),
    Key::read("evaluate_every"),
    Key::read("save_every"),
    Key::read("keep"),
    Key::read("early_stopping"),
    Key::read("seed"),
];
const LORA: &[Key] = &[Key::read("rank"), Key::read("alpha"), Key::read("targets")];
const EARLY_STOPPING: &[Key] = &[Key::read("patience"), Key::read("minimum_improvement")];

impl Default for Train {
    fn default() -> Self {
        Self {
            length: Length::Epochs(1),
            batch_size: 8,
            micro_batch: 1,
            learning_rate: 1e-4,
            minimum_learning_rate: 0.0,
            schedule: Schedule::Cosine,
            warmup: Warmup::Share(0.03),
            weight_decay: 0.0,
            betas: [0.9, 0.999],
            epsilon: 1e-8,
            clip: Some(1.0),
            weights: Weights::Float32,
            gradients: Weights::Float32,
            moments: Moments::Float32,
            zero: 0,
            offload: Offload::default(),
            open: Open { checkpointing: true, moments: true, offload: true },
            lora: None,
            checkpointing: Checkpointing::None,
            evaluate_every: None,
            save_every: None,
            keep: 2,
            early_stopping: None,
            seed: 0,
        }
    }
}

pub(super) fn read(cursor: Cursor<'_>, problems: &mut Problems) -> Option<Train> {
    let mut fields = Fields::open(cursor, KEYS, "", problems)?;
    let default = Train::default();
    let learning_rate = fields.number("learning_rate", default.learning_rate, &POSITIVE);
    let (batch_size, micro_batch) = batch(&mut fields, &default);
    let open = Open {
        checkpointing: !fields.has("checkpointing"),
        moments: !fields.has("moments"),
        offload: !fields.has("offload"),
    };
    let train = Train {
        length: length(&mut fields, default.length),
        batch_size,
        micro_batch,
        learning_rate,
        minimum_learning_rate: minimum(&mut fields, learning_rate),
        schedule: fields.choice("schedule", SCHEDULES, default.schedule),
        warmup: fields.read("warmup", warmup).unwrap_or(default.warmup),
        weight_decay: fields.number("weight_decay", default.weight_decay, &NOT_NEGATIVE),
        betas: fields.read("betas", betas).unwrap_or(default.betas),
        epsilon: fields.number("epsilon", default.epsilon, &POSITIVE),
        clip: fields.read("clip", clip).unwrap_or(default.clip),
        weights: fields.choice("weights", WEIGHTS, default.weights),
        gradients: fields.choice("gradients", WEIGHTS, default.gradients),
        moments: fields.choice("moments", MOMENTS, default.moments),
        zero: zero(&mut fields, default.zero),
        offload: fields.read("offload", offload).unwrap_or(default.offload),
        open,
        lora: lora(&mut fields),
        checkpointing: fields.read("checkpointing", checkpointing).unwrap_or(default.checkpointing),
        evaluate_every: fields.optional_count("evaluate_every", 1),
        save_every: fields.optional_count("save_every", 1),
        keep: fields.count("keep", default.keep as u64, 1) as usize,
        early_stopping: early_stopping(&mut fields),
        seed: fields.count("seed", default.seed, 0),
    };
    check_warmup(&mut fields, &train);
    Some(train)
}

const SCHEDULES: &[(&str, Schedule)] =
    &[("cosine", Schedule::Cosine), ("linear", Schedule::Linear), ("constant", Schedule::Constant)];
const WEIGHTS: &[(&str, Weights)] = &[
    ("float32", Weights::Float32),
    ("bfloat16", Weights::Bfloat16),
    ("f32", Weights::Float32),
    ("bf16", Weights::Bfloat16),
];
const MOMENTS: &[(&str, Moments)] =
    &[("float32", Moments::Float32), ("int8", Moments::Int8), ("f32", Moments::Float32)];

/// 0 or 1.
fn zero(fields: &mut Fields<'_, '_>, default: u64) -> u64 {
    let stage = fields.count("zero", default, 0);
    if stage > 1 {
        let message = format!("stage {stage} of ZeRO would share out more than AdamW's state and masters");
        fields.report("zero", message, "write `zero: 1`, which shares those out, or `zero: 0`");
    }
    stage.min(1)
}

fn length(fields: &mut Fields<'_, '_>, default: Length) -> Length {
    if fields.has("steps") && fields.has("epochs") {
        fields.report("epochs", "`steps` and `epochs` exclude each other", "keep one of them");
    }
    let epochs = fields.optional_count("epochs", 1).map(Length::Epochs);
    fields.optional_count("steps", 1).map(Length::Steps).or(epochs).unwrap_or(default)
}

/// Sequences of a step and of a micro-batch: more than a step can hold would only be a slip.
fn batch(fields: &mut Fields<'_, '_>, default: &Train) -> (usize, usize) {
    const MOST: u64 = 1 << 20;
    let mut size = |key: &str, default: usize| {
        let size = fields.count(key, default as u64, 1);
        if size > MOST {
            fields.report(
                key,
                format!("{size} sequences are more than {MOST}"),
                "a step holds a few to a few hundred",
            );
        }
        size.min(MOST) as usize
    };
    let (batch_size, micro_batch) =
        (size("batch_size", default.batch_size), size("micro_batch", default.micro_batch));
    if batch_size % micro_batch != 0 {
        let message =
            format!("a step of {batch_size} sequences is no whole number of micro-batches of {micro_batch}");
        fields.report("micro_batch", message, "make `batch_size` a multiple of `micro_batch`");
    }
    (batch_size, micro_batch)
}

fn minimum(fields: &mut Fields<'_, '_>, highest: f64) -> f64 {
    let minimum = fields.number("minimum_learning_rate", 0.0, &NOT_NEGATIVE);
    if minimum > highest {
        let message = format!("the learning rate would end at {minimum}, above {highest}");
        fields.report("minimum_learning_rate", message, "make it at most `learning_rate`");
    }
    minimum
}

/// `0.03` and `3%` are shares of all steps, `1` and above are steps.
fn warmup(value: &Cursor<'_>) -> Result<Warmup, Problem> {
    const EXPECTED: &str = "a share of all steps below 1, or a number of steps";
    let wrong = || value.mismatch(EXPECTED).with_hint("as in `warmup: 0.03`, `warmup: 3%` or `warmup: 100`");
    let share = match fields::share(value) {
        Some(percent) => percent?,
        None => match fields::scalar(value, EXPECTED)? {
            Scalar::Number(number) if number >= 1.0 => {
                return fields::count(value, 1).map(Warmup::Steps).map_err(|_| wrong());
            }
            Scalar::Number(share) => share,
            _ => return Err(wrong()),
        },
    };
    if (0.0..1.0).contains(&share) { Ok(Warmup::Share(share)) } else { Err(wrong()) }
}

fn check_warmup(fields: &mut Fields<'_, '_>, train: &Train) {
    if let (Warmup::Steps(warmup), Length::Steps(steps)) = (train.warmup, train.length)
        && warmup > steps
    {
        let message = format!("the warm-up takes {warmup} steps, and the run has {steps}");
        fields.report("warmup", message, "shorten the warm-up or give a share, as in `warmup: 3%`");
    }
}

fn betas(value: &Cursor<'_>) -> Result<[f64; 2], Problem> {
    let items = value.items().map_err(|problem| problem.with_hint("as in `betas: [0.9, 0.999]`"))?;
    let [first, second] = items.as_slice() else {
        let message = format!("expected two numbers, found {}", items.len());
        return Err(value.problem(message).with_hint("as in `betas: [0.9, 0.999]`"));
    };
    Ok([fields::number(first, &BELOW_ONE)?, fields::number(second, &BELOW_ONE)?])
}

/// A norm above 0; `0`, `none` and `false` do not clip.
fn clip(value: &Cursor<'_>) -> Result<Option<f64>, Problem> {
    const BOUNDS: Bounds = Bounds { noun: "a number above 0, or `none`", holds: |norm| norm >= 0.0 };
    match fields::scalar(value, BOUNDS.noun)? {
        Scalar::Bool(false) => Ok(None),
        Scalar::Text(text) if text == "none" => Ok(None),
        _ => fields::number(value, &BOUNDS).map(|norm| Some(norm).filter(|&norm| norm > 0.0)),
    }
}

/// `none`, `block` or `every-4`.
fn checkpointing(value: &Cursor<'_>) -> Result<Checkpointing, Problem> {
    let expected = "`none`, `block` or `every-` and a number of blocks";
    let text = value.text(expected)?;
    let every = |text: &str| {
        let blocks = text.strip_prefix("every-")?.parse().ok()?;
        (1..=1_000_000).contains(&blocks).then_some(Checkpointing::Every(blocks))
    };
    match text {
        "none" | "false" => Ok(Checkpointing::None),
        "block" | "true" => Ok(Checkpointing::Block),
        text => {
            every(text).ok_or_else(|| value.mismatch(expected).with_hint("as in `checkpointing: every-4`"))
        }
    }
}

/// `optimizer`, `teacher`, a list of both, or `none`.
fn offload(value: &Cursor<'_>) -> Result<Offload, Problem> {
    const WORDS: &[(&str, Offload)] = &[
        ("optimizer", Offload { optimizer: true, teacher: false }),
        ("teacher", Offload { optimizer: false, teacher: true }),
        ("none", Offload { optimizer: false, teacher: false }),
    ];
    let Content::Sequence(_) = &value.node.content else { return fields::choice(value, WORDS) };
    value.items()?.iter().try_fold(Offload::default(), |all, item| {
        let one = fields::choice(item, &WORDS[..2])?;
        Ok(Offload { optimizer: all.optimizer || one.optimizer, teacher: all.teacher || one.teacher })
    })
}

fn lora(fields: &mut Fields<'_, '_>) -> Option<Lora> {
    const MOST: u64 = 1 << 16;
    let cursor = fields.cursor.field("lora")?;
    let mut fields = Fields::open(cursor, LORA, "", fields.problems)?;
    let rank = fields.count("rank", 16, 1);
    if rank > MOST {
        fields.report("rank", format!("a rank of {rank} is more than {MOST}"), "ranks are usually 4 to 256");
    }
    let alpha = fields.number("alpha", 2.0 * rank as f64, &POSITIVE);
    let targets = fields.read("targets", targets).unwrap_or(LoraTargets::AllLinear);
    Some(Lora { rank: rank.min(MOST) as usize, alpha, targets })
}

/// `all-linear`, as PEFT calls it, or names.
fn targets(value: &Cursor<'_>) -> Result<LoraTargets, Problem> {
    let name = |value: &Cursor<'_>| value.text("the name of a layer").map(str::to_owned);
    match &value.node.content {
        Content::Sequence(items) if items.is_empty() => Err(value
            .problem("the list is empty")
            .with_hint("name at least one layer, or write `all-linear`")),
        Content::Sequence(_) => {
            value.items()?.iter().map(name).collect::<Result<_, _>>().map(LoraTargets::Named)
        }
        _ => match name(value)?.as_str() {
            "all-linear" => Ok(LoraTargets::AllLinear),
            one => Ok(LoraTargets::Named(vec![one.to_owned()])),
        },
    }
}

fn early_stopping(fields: &mut Fields<'_, '_>) -> Option<EarlyStopping> {
    let cursor = fields.cursor.field("early_stopping")?;
    let mut fields = Fields::open(cursor, EARLY_STOPPING, "", fields.problems)?;
    if !fields.has("patience") {
        fields.report(
            "patience",
            "`patience` is missing",
            "give the evaluations to wait, as in `{patience: 3}`",
        );
    }
    Some(EarlyStopping {
        patience: fields.count("patience", 1, 1),
        minimum_improvement: fields.number("minimum_improvement", 0.0, &NOT_NEGATIVE),
    })
}

/// For the test of the reference.
#[cfg(test)]
pub(super) const ALL_KEYS: [&[Key]; 3] = [KEYS, LORA, EARLY_STOPPING];
