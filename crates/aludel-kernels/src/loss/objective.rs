//! Names the terms that a distillation objective is a weighted sum of.
//!
//! Notation: `P` teacher and `Q` student distribution, both softmaxes at temperature `tau`; `z` student logits. With
//! `g = dL/dQ`, `dL/dz_i = Q_i (g_i - sum_j Q_j g_j) / tau`.

/// A distance between the teacher's and the student's distribution over the vocabulary.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub enum Divergence {
    /// `KL(P, Q) = sum P (log P - log Q)` (Hinton et al. 2015).
    ForwardKl,
    /// `KL(Q, P)` (Gu et al. 2024, MiniLLM).
    ReverseKl,
    /// `beta KL(P, M) + (1 - beta) KL(Q, M)`, `M = beta P + (1 - beta) Q` (Agarwal et al. 2024, GKD); 0 is forward KL,
    /// 1 is reverse KL.
    JensenShannon {
        /// In `[0, 1]`.
        beta: f32,
    },
    /// `KL(P, lambda P + (1 - lambda) Q)` (Ko et al. 2024, DistiLLM).
    SkewedForwardKl {
        /// In `[0, 1)`.
        lambda: f32,
    },
    /// `KL(Q, (1 - lambda) P + lambda Q)` (Ko et al. 2024, DistiLLM).
    SkewedReverseKl {
        /// In `[0, 1)`.
        lambda: f32,
    },
    /// `0.5 sum |P - Q|`.
    TotalVariation,
    /// `-sum P log Q`.
    SoftCrossEntropy,
    /// Mean over the vocabulary of the squared difference of logits divided by the temperature.
    LogitsMse,
}

/// One divergence in an objective.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Term {
    /// Which.
    pub divergence: Divergence,
    /// Factor of value and gradient.
    pub weight: f32,
    /// `tau`, above 0.
    pub temperature: f32,
    /// Value and gradient are multiplied by `tau^2` as well.
    pub scale_by_t2: bool,
}

/// Cross-entropy against the labels in an objective.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LabelTerm {
    /// Factor of value and gradient.
    pub weight: f32,
}

/// What the divergences are taken against.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Target {
    /// The teacher's distribution.
    Teacher,
    /// TAID as published (Shing et al. 2025): `softmax((1 - t) z_student + t z_teacher)`, the student's part detached.
    /// For every divergence, `P` is this distribution.
    InterpolatedLogits {
        /// In `[0, 1]`.
        t: f32,
    },
    /// `a P_teacher + (1 - a) P_student`, the student's part detached.
    Mixture {
        /// In `[0, 1]`.
        a: f32,
    },
}
