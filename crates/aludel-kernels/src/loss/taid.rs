//! Moves the target of a distillation from the student towards the teacher, or the other way: two schedules.
//!
//! In: the loss of each optimizer step and how far the training is. Out: the [`Target`] of the next step. The state is
//! small, part of a checkpoint, and changed by [`Annealing::update`] alone: an evaluation asks for the target and leaves it.
//!
//! [`Taid`] is the published one: Shing et al. 2025, "TAID: Temporally Adaptive Interpolated Distillation for Efficient
//! Knowledge Transfer in Language Models", section 3 and algorithm 1. [`Mixture`] interpolates probabilities instead, on a
//! fixed cosine, with a difficulty of each row; its formula is at [`Target::Mixture`].

use serde::{Deserialize, Serialize};

use super::objective::Target;

/// Numbers of the published schedule. The defaults are the paper's.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TaidSettings {
    /// First `t`.
    pub t_start: f64,
    /// Last `t`.
    pub t_end: f64,
    /// Size of the adaptive steps.
    pub alpha: f64,
    /// Decay of the momentum of the relative change of the loss.
    pub beta: f64,
}

impl Default for TaidSettings {
    fn default() -> Self {
        Self { t_start: 0.4, t_end: 1.0, alpha: 5e-4, beta: 0.99 }
    }
}

/// Numbers of the mixture. The weight of the teacher goes from `start` to `end` on half a cosine.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Mixture {
    /// First weight of the teacher.
    pub start: f64,
    /// Last weight of the teacher.
    pub end: f64,
    /// How much less of the teacher a row gets whose label the student does not expect; see [`Target::Mixture`].
    pub difficulty: f64,
}

impl Default for Mixture {
    fn default() -> Self {
        Self { start: 0.9, end: 0.5, difficulty: 0.2 }
    }
}

/// The published schedule with its state. Numbers of the state are serialised by their bits, so that a resumed run has
/// the same ones whatever the format does to decimals.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Taid {
    settings: TaidSettings,
    #[serde(with = "bits")]
    t: f64,
    #[serde(with = "bits")]
    momentum: f64,
    /// Loss of the step before; NaN before the first.
    #[serde(with = "bits")]
    previous: f64,
}

impl Taid {
    /// The state before the first step.
    pub fn new(settings: TaidSettings) -> Self {
        Self { settings, t: settings.t_start, momentum: 0.0, previous: f64::NAN }
    }

    /// Weight of the teacher's logits.
    pub fn t(&self) -> f64 {
        self.t
    }

    /// Takes notice of an optimizer step: its `loss` (mean over valid tokens of the distillation term), and the number
    /// of steps done, this one included, out of `total`.
    pub fn update(&mut self, loss: f64, step: u64, total: u64) {
        let TaidSettings { t_start, t_end, alpha, beta } = self.settings;
        if !self.previous.is_nan() {
            let change = (self.previous - loss) / (self.previous + 1e-15);
            self.momentum = beta * self.momentum + (1.0 - beta) * change;
            let pull = 1.0 / (1.0 + (-self.momentum).exp());
            let linear = t_start + (t_end - t_start) * progress(step, total);
            self.t = t_end.min(linear.max(self.t + alpha * pull * (1.0 - self.t)));
        }
        self.previous = loss;
    }
}

impl Mixture {
    /// Weight of the teacher after `step` of `total` steps.
    pub fn a(&self, step: u64, total: u64) -> f64 {
        let turn = (std::f64::consts::PI * progress(step, total)).cos();
        self.end + (self.start - self.end) * 0.5 * (1.0 + turn)
    }
}

/// A schedule of the target.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "variant", rename_all = "snake_case")]
pub enum Annealing {
    /// The published one.
    Published(Taid),
    /// The mixture of probabilities.
    Mixture(Mixture),
}

impl Annealing {
    /// The target of the step after `step` of `total`.
    pub fn target(&self, step: u64, total: u64) -> Target {
        // Rounding to f32 may not leave the range that a target allows.
        let unit = |x: f64| x.clamp(0.0, 1.0) as f32;
        match self {
            Self::Published(taid) => Target::InterpolatedLogits { t: unit(taid.t) },
            Self::Mixture(mixture) => {
                Target::Mixture { a: unit(mixture.a(step, total)), difficulty: unit(mixture.difficulty) }
            }
        }
    }

    /// Takes notice of an optimizer step, as [`Taid::update`] says. Not for evaluations. A loss that is not finite, such
    /// as that of a step without a valid token, is not taken notice of.
    pub fn update(&mut self, loss: f64, step: u64, total: u64) {
        if let Self::Published(taid) = self
            && loss.is_finite()
        {
            taid.update(loss, step, total);
        }
    }
}

fn progress(step: u64, total: u64) -> f64 {
    if total == 0 { 1.0 } else { (step as f64 / total as f64).min(1.0) }
}

/// Serialises an f64 as the integer of its bits.
mod bits {
    use serde::{Deserialize, Deserializer, Serializer};

    #[expect(clippy::trivially_copy_pass_by_ref, reason = "serde's signature")]
    pub(super) fn serialize<S: Serializer>(value: &f64, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u64(value.to_bits())
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<f64, D::Error> {
        u64::deserialize(deserializer).map(f64::from_bits)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_step_is_only_remembered() {
        let mut taid = Taid::new(TaidSettings::default());
        taid.update(3.0, 1, 10);
        assert_eq!((taid.t, taid.momentum, taid.previous), (0.4, 0.0, 3.0));
        taid.update(2.0, 2, 10);
        assert!((taid.momentum - 0.01 / 3.0).abs() < 1e-12, "{}", taid.momentum);
        assert!((taid.t - 0.52).abs() < 1e-12, "{}", taid.t);
    }

    #[test]
    fn the_mixture_goes_from_its_start_to_its_end() {
        let mixture = Mixture::default();
        assert_eq!(mixture.a(0, 100), 0.9);
        assert!((mixture.a(50, 100) - 0.7).abs() < 1e-12);
        assert!((mixture.a(100, 100) - 0.5).abs() < 1e-12);
        assert_eq!(mixture.a(0, 0), 0.5);
    }

    #[test]
    fn a_saved_state_goes_on_with_the_same_bits() {
        let mut annealing = Annealing::Published(Taid::new(TaidSettings::default()));
        let fresh = serde_json::to_string(&annealing).unwrap();
        let Annealing::Published(read) = serde_json::from_str(&fresh).unwrap() else { panic!("{fresh}") };
        assert!(read.previous.is_nan());
        for step in 1..40 {
            annealing.update(1.0 / (step as f64).sqrt() + 0.1 / 3.0, step, 1000);
        }
        let text = serde_json::to_string(&annealing).unwrap();
        let mut read: Annealing = serde_json::from_str(&text).unwrap();
        assert_eq!(read, annealing);
        annealing.update(0.7, 40, 1000);
        read.update(0.7, 40, 1000);
        assert_eq!(read.target(40, 1000), annealing.target(40, 1000));
    }

    #[test]
    fn a_step_without_a_loss_changes_nothing() {
        let mut annealing = Annealing::Published(Taid::new(TaidSettings::default()));
        annealing.update(1.0, 1, 10);
        let before = annealing;
        annealing.update(f64::NAN, 2, 10);
        assert_eq!(before, annealing);
    }
}
