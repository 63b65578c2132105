//! Reads what stands under `objective:` and `taid:`.
//!
//! In: their nodes. Out: an [`Objective`], a weighted sum of terms, and how its target moves. Formulas stand with the
//! kernels ([`aludel_kernels::loss`]); whether a layer exists is asked by those who know the models.

use aludel_document::{Content, Cursor, Key, Problem, Problems, listed, nearest, quoted};
use aludel_kernels::loss::{self, Annealing, Divergence, LabelTerm, Mixture, TaidSettings, Term};
use serde::Serialize;

use super::fields::{self, BELOW_ONE, Fields, NOT_NEGATIVE, TEMPERATURE, UNIT};

/// What is minimised: the weighted sum of its terms.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(transparent)]
pub struct Objective {
    /// At least one.
    pub terms: Vec<ObjectiveTerm>,
}

/// One term.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ObjectiveTerm {
    /// What is measured.
    #[serde(flatten)]
    pub loss: Loss,
    /// Factor of value and gradient.
    pub weight: f64,
}

/// What a term measures.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(tag = "loss", rename_all = "snake_case")]
pub enum Loss {
    /// `KL(P, Q)`.
    ForwardKl(Softening),
    /// `KL(Q, P)`.
    ReverseKl(Softening),
    /// Generalised Jensen-Shannon divergence.
    Jsd {
        /// Share of the teacher in the mixture, in `[0, 1]`.
        beta: f64,
        /// Temperature.
        #[serde(flatten)]
        softening: Softening,
    },
    /// `KL(P, lambda P + (1 - lambda) Q)`.
    SkewedForwardKl {
        /// In `[0, 1)`.
        lambda: f64,
        /// Temperature.
        #[serde(flatten)]
        softening: Softening,
    },
    /// `KL(Q, (1 - lambda) P + lambda Q)`.
    SkewedReverseKl {
        /// In `[0, 1)`.
        lambda: f64,
        /// Temperature.
        #[serde(flatten)]
        softening: Softening,
    },
    /// `0.5 sum |P - Q|`.
    TotalVariation(Softening),
    /// `-sum P log Q`.
    SoftCrossEntropy(Softening),
    /// Mean squared difference of logits.
    LogitsMse(Softening),
    /// Distance of sorted probabilities.
    Uld(Softening),
    /// Cross-entropy against the labels.
    CrossEntropy,
    /// Mean squared difference of hidden states.
    HiddenMse {
        /// Which are compared.
        layers: Layers,
    },
    /// One minus the cosine of hidden states.
    HiddenCosine {
        /// Which are compared.
        layers: Layers,
    },
    /// Difference of attention maps of the hidden states.
    AttentionTransfer {
        /// Which are compared.
        layers: Layers,
    },
}

/// The temperature that both distributions are taken at.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Softening {
    /// From 0.01 to 1000.
    pub temperature: f64,
    /// Value and gradient are multiplied by the temperature's square.
    pub scale_by_t2: bool,
}

/// Which layers of the student are compared with which of the teacher.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Layers {
    /// Every layer of the student, with layers of the teacher at even distances, the last with the last.
    Every,
    /// The last with the last.
    Last,
    /// Pairs of a student's and a teacher's layer, both counted from 0, by student layer.
    Pairs(Vec<(u64, u64)>),
}

/// How the target moves from the student towards the teacher.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(tag = "variant", rename_all = "snake_case")]
pub enum Taid {
    /// Interpolated logits, with `t` adapted to the loss.
    Published(TaidSettings),
    /// Mixed probabilities, with the teacher's share on a cosine.
    Mixture(Mixture),
}

impl Taid {
    /// The schedule before the first step.
    pub fn annealing(self) -> Annealing {
        match self {
            Self::Published(settings) => Annealing::Published(loss::Taid::new(settings)),
            Self::Mixture(mixture) => Annealing::Mixture(mixture),
        }
    }
}

impl Objective {
    /// The terms that compare distributions over the vocabulary, as the kernels take them.
    pub fn divergences(&self) -> Vec<Term> {
        self.terms.iter().filter_map(ObjectiveTerm::divergence).collect()
    }

    /// Cross-entropy against the labels, where it is a term: the weights of several are added.
    pub fn labels(&self) -> Option<LabelTerm> {
        let hard = |term: &&ObjectiveTerm| term.loss == Loss::CrossEntropy;
        let mut weights = self.terms.iter().filter(hard).map(|term| term.weight as f32).peekable();
        weights.peek()?;
        Some(LabelTerm { weight: weights.sum() })
    }

    /// The terms that compare hidden states.
    pub fn hidden(&self) -> impl Iterator<Item = &ObjectiveTerm> {
        self.terms.iter().filter(|term| term.layers().is_some())
    }

    /// Whether it compares sorted probabilities, and so asks for no token that teacher and student share.
    pub fn is_sorted(&self) -> bool {
        self.terms.iter().any(|term| matches!(term.loss, Loss::Uld(_)))
    }

    /// Whether any term compares with a teacher.
    pub fn needs_teacher(&self) -> bool {
        self.terms.iter().any(|term| term.loss != Loss::CrossEntropy)
    }
}

impl ObjectiveTerm {
    /// The term as the kernels take it; `None` for one that is not about distributions over the vocabulary.
    pub fn divergence(&self) -> Option<Term> {
        let (divergence, softening) = match self.loss {
            Loss::ForwardKl(softening) => (Divergence::ForwardKl, softening),
            Loss::ReverseKl(softening) => (Divergence::ReverseKl, softening),
            Loss::Jsd { beta, softening } => (Divergence::JensenShannon { beta: beta as f32 }, softening),
            Loss::SkewedForwardKl { lambda, softening } => {
                (Divergence::SkewedForwardKl { lambda: lambda as f32 }, softening)
            }
            Loss::SkewedReverseKl { lambda, softening } => {
                (Divergence::SkewedReverseKl { lambda: lambda as f32 }, softening)
            }
            Loss::TotalVariation(softening) => (Divergence::TotalVariation, softening),
            Loss::SoftCrossEntropy(softening) => (Divergence::SoftCrossEntropy, softening),
            Loss::LogitsMse(softening) => (Divergence::LogitsMse, softening),
            Loss::Uld(softening) => (Divergence::SortedDistance, softening),
            _ => return None,
        };
        Some(Term {
            divergence,
            weight: self.weight as f32,
            temperature: softening.temperature as f32,
            scale_by_t2: softening.scale_by_t2,
        })
    }

    /// The layers compared, for a term about hidden states.
    pub fn layers(&self) -> Option<&Layers> {
        match &self.loss {
            Loss::HiddenMse { layers }
            | Loss::HiddenCosine { layers }
            | Loss::AttentionTransfer { layers } => Some(layers),
            _ => None,
        }
    }
}

/// The names of the losses, each with the keys that it takes beside `loss` and `weight`.
const LOSSES: [(&str, &[&str]); 13] = [
    ("forward_kl", SOFTENED),
    ("reverse_kl", SOFTENED),
    ("jsd", &["temperature", "scale_by_t2", "beta"]),
    ("skewed_forward_kl", SKEWED),
    ("skewed_reverse_kl", SKEWED),
    ("total_variation", SOFTENED),
    ("soft_cross_entropy", SOFTENED),
    ("logits_mse", SOFTENED),
    ("uld", SOFTENED),
    ("cross_entropy", &[]),
    ("hidden_mse", HIDDEN),
    ("hidden_cosine", HIDDEN),
    ("attention_transfer", HIDDEN),
];
const SOFTENED: &[&str] = &["temperature", "scale_by_t2"];
const SKEWED: &[&str] = &["temperature", "scale_by_t2", "lambda"];
const HIDDEN: &[&str] = &["layers"];

const TERM: &[Key] = &[
    Key::read("loss"),
    Key::read("weight"),
    Key::read("temperature"),
    Key::read("scale_by_t2"),
    Key::read("beta"),
    Key::read("lambda"),
    Key::read("layers"),
];

/// The objective of a run that has none: cross-entropy alone, or forward KL from a teacher.
pub(super) fn default(has_teacher: bool) -> Objective {
    let loss = if has_teacher {
        Loss::ForwardKl(Softening { temperature: 1.0, scale_by_t2: true })
    } else {
        Loss::CrossEntropy
    };
    Objective { terms: vec![ObjectiveTerm { loss, weight: 1.0 }] }
}

pub(super) fn read(cursor: Cursor<'_>, problems: &mut Problems) -> Option<Objective> {
    let items = match &cursor.node.content {
        Content::Sequence(_) => problems.take(cursor.items())?,
        _ => vec![cursor.clone()],
    };
    if items.is_empty() {
        problems.push(
            cursor.problem("the list is empty").with_hint("give at least one term, or leave `objective` out"),
        );
    }
    let terms: Vec<Option<ObjectiveTerm>> = items.into_iter().map(|item| term(item, problems)).collect();
    let terms: Vec<ObjectiveTerm> = terms.into_iter().collect::<Option<_>>()?;
    if !terms.is_empty() && terms.iter().all(|term| term.weight == 0.0) {
        problems.push(
            cursor.problem("every weight is 0").with_hint("nothing would be learned: raise one of them"),
        );
    }
    Some(Objective { terms })
}

/// A term: a mapping, or the name of a loss alone.
fn term(cursor: Cursor<'_>, problems: &mut Problems) -> Option<ObjectiveTerm> {
    if matches!(cursor.node.content, Content::Plain(_) | Content::Quoted(_)) {
        let name = problems.take(loss_name(&cursor))?;
        let softening = Softening { temperature: 1.0, scale_by_t2: scaled_by_default(name) };
        let settings = Settings { softening, beta: 0.5, lambda: 0.1, layers: Layers::Every };
        return Some(ObjectiveTerm { loss: settings.into_loss(name)?, weight: 1.0 });
    }
    let mut fields = Fields::open(cursor, TERM, "", problems)?;
    if !fields.has("loss") {
        fields.report("loss", "`loss` is missing", format!("it is one of {}", listed(names())));
    }
    let name = fields.read("loss", loss_name)?;
    refuse_foreign_keys(&mut fields, name);
    let settings = Settings {
        softening: Softening {
            temperature: fields.number("temperature", 1.0, &TEMPERATURE),
            scale_by_t2: fields.truth("scale_by_t2", scaled_by_default(name)),
        },
        beta: fields.number("beta", 0.5, &UNIT),
        lambda: fields.number("lambda", 0.1, &BELOW_ONE),
        layers: fields.read("layers", layers).unwrap_or(Layers::Every),
    };
    let weight = fields.number("weight", 1.0, &NOT_NEGATIVE);
    Some(ObjectiveTerm { loss: settings.into_loss(name)?, weight })
}

/// What the keys of a term say, whichever loss it is.
struct Settings {
    softening: Softening,
    beta: f64,
    lambda: f64,
    layers: Layers,
}

impl Settings {
    fn into_loss(self, name: &str) -> Option<Loss> {
        let Self { softening, beta, lambda, layers } = self;
        Some(match name {
            "forward_kl" => Loss::ForwardKl(softening),
            "reverse_kl" => Loss::ReverseKl(softening),
            "jsd" => Loss::Jsd { beta, softening },
            "skewed_forward_kl" => Loss::SkewedForwardKl { lambda, softening },
            "skewed_reverse_kl" => Loss::SkewedReverseKl { lambda, softening },
            "total_variation" => Loss::TotalVariation(softening),
            "soft_cross_entropy" => Loss::SoftCrossEntropy(softening),
            "logits_mse" => Loss::LogitsMse(softening),
            "uld" => Loss::Uld(softening),
            "cross_entropy" => Loss::CrossEntropy,
            "hidden_mse" => Loss::HiddenMse { layers },
            "hidden_cosine" => Loss::HiddenCosine { layers },
            "attention_transfer" => Loss::AttentionTransfer { layers },
            _ => return None,
        })
    }
}

/// The gradients of the others do not shrink with the temperature's square.
fn scaled_by_default(name: &str) -> bool {
    !matches!(name, "total_variation" | "logits_mse" | "uld")
}

pub(super) fn names() -> impl Iterator<Item = &'static str> {
    LOSSES.iter().map(|(name, _)| *name)
}

fn loss_name(value: &Cursor<'_>) -> Result<&'static str, Problem> {
    let text = value.text("the name of a loss")?;
    names().find(|name| *name == text).ok_or_else(|| {
        let hint = match nearest(text, names()) {
            Some(meant) => format!("did you mean `{meant}`?"),
            None => format!("losses are {}", listed(names())),
        };
        value.problem(format!("{} is no loss", quoted(text))).with_hint(hint)
    })
}

fn refuse_foreign_keys(fields: &mut Fields<'_, '_>, name: &str) {
    let own = LOSSES.iter().find(|(known, _)| *known == name).map_or(&[][..], |(_, keys)| keys);
    let foreign = |key: &&Key| !matches!(key.name, "loss" | "weight") && !own.contains(&key.name);
    for key in TERM.iter().filter(foreign).filter(|key| fields.has(key.name)).collect::<Vec<_>>() {
        let hint = match own {
            [] => "remove it".to_owned(),
            own => format!("it takes {}, beside `weight`", listed(own.iter().copied())),
        };
        fields.report(key.name, format!("`{name}` takes no `{}`", key.name), hint);
    }
}

/// `every`, `last`, or pairs as in `{0: 0, 5: 11}`.
fn layers(value: &Cursor<'_>) -> Result<Layers, Problem> {
    let Content::Mapping(_) = value.node.content else {
        return fields::choice(value, &[("every", Layers::Every), ("last", Layers::Last)]).map_err(
            |problem| {
                problem.with_hint("or pairs of a student's and a teacher's layer, as in `{0: 0, 5: 11}`")
            },
        );
    };
    let pair = |(student, place, teacher): (&str, _, Cursor<'_>)| {
        let message = || format!("{} is no layer of the student", quoted(student));
        let student = student.parse().map_err(|_| {
            Problem::at(place, message()).with_hint("write layers as numbers from 0, as in `{0: 0, 5: 11}`")
        })?;
        Ok((student, fields::count(&teacher, 0)?))
    };
    let mut pairs = value.entries()?.into_iter().map(pair).collect::<Result<Vec<_>, Problem>>()?;
    pairs.sort_unstable();
    match pairs.windows(2).find(|pair| pair[0].0 == pair[1].0) {
        _ if pairs.is_empty() => {
            Err(value.problem("no layers are compared").with_hint("write `every`, `last` or pairs"))
        }
        Some(pair) => Err(value.problem(format!("layer {} of the student is given twice", pair[0].0))),
        None => Ok(Layers::Pairs(pairs)),
    }
}

const PUBLISHED: &[Key] =
    &[Key::read("variant"), Key::read("t_start"), Key::read("t_end"), Key::read("alpha"), Key::read("beta")];
const MIXTURE: &[Key] =
    &[Key::read("variant"), Key::read("start"), Key::read("end"), Key::read("difficulty")];

#[derive(Clone, Copy)]
enum Variant {
    Published,
    Mixture,
}

pub(super) fn read_taid(cursor: Cursor<'_>, problems: &mut Problems) -> Option<Taid> {
    let words = [("published", Variant::Published), ("mixture", Variant::Mixture)];
    if matches!(cursor.node.content, Content::Plain(_) | Content::Quoted(_)) {
        let variant = problems.take(fields::choice(&cursor, &words))?;
        return Some(match variant {
            Variant::Published => Taid::Published(TaidSettings::default()),
            Variant::Mixture => Taid::Mixture(Mixture::default()),
        });
    }
    let variant = match cursor.field("variant").map(|value| fields::choice(&value, &words)) {
        Some(chosen) => problems.take(chosen)?,
        None => Variant::Published,
    };
    match variant {
        Variant::Published => published(Fields::open(cursor, PUBLISHED, "", problems)?),
        Variant::Mixture => mixture(Fields::open(cursor, MIXTURE, "", problems)?),
    }
}

fn published(mut fields: Fields<'_, '_>) -> Option<Taid> {
    let default = TaidSettings::default();
    let t_start = fields.number("t_start", default.t_start, &UNIT);
    let t_end = fields.number("t_end", default.t_end, &UNIT);
    if t_end < t_start {
        let message = format!("t ends at {t_end} and begins at {t_start}, but it only grows");
        fields.report("t_end", message, "make `t_end` at least `t_start`");
    }
    let alpha = fields.number("alpha", default.alpha, &NOT_NEGATIVE);
    let beta = fields.number("beta", default.beta, &BELOW_ONE);
    Some(Taid::Published(TaidSettings { t_start, t_end, alpha, beta }))
}

fn mixture(mut fields: Fields<'_, '_>) -> Option<Taid> {
    let default = Mixture::default();
    Some(Taid::Mixture(Mixture {
        start: fields.number("start", default.start, &UNIT),
        end: fields.number("end", default.end, &UNIT),
        difficulty: fields.number("difficulty", default.difficulty, &UNIT),
    }))
}

/// For the test of the reference.
#[cfg(test)]
pub(super) const ALL_KEYS: [&[Key]; 3] = [TERM, PUBLISHED, MIXTURE];
