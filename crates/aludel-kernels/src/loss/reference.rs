//! Specifies every objective in f64, as the formulas stand: what all kernels are held to.
//!
//! In: one row of logits of student and teacher. Out: the value of each term and the gradient of the weighted sum. Nothing
//! here is fast or careful about rounding; f64 leaves room enough.

use super::objective::{Divergence, Objective, Target, Term};

/// Values and gradient of one row.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    /// Each term's value, temperature's square included where asked for, weight not.
    pub terms: Vec<f64>,
    /// Cross-entropy against the label.
    pub cross_entropy: f64,
    /// Of the weighted sum by the student's logits.
    pub gradient: Vec<f64>,
}

/// Values and gradient of the row's objective. `student` holds the student's valid columns, `teacher` the teacher's; the
/// divergences are over the columns that both have. `label` is one of the student's.
pub fn row(objective: &Objective, student: &[f64], teacher: &[f64], label: usize) -> Row {
    let common = student.len().min(teacher.len());
    let q = softmax(student, 1.0);
    let mut row = Row {
        terms: vec![],
        cross_entropy: -log_softmax(student, 1.0)[label],
        gradient: vec![0.0; student.len()],
    };
    for term in objective.terms() {
        let target = target(objective.target(), term, &student[..common], &teacher[..common], q[label]);
        let (value, gradient) = divergence(term, &target, &student[..common]);
        row.terms.push(value * term.squared_temperature());
        let factor = f64::from(term.weight) * term.squared_temperature();
        for (sum, gradient) in row.gradient.iter_mut().zip(gradient) {
            *sum += factor * gradient;
        }
    }
    if let Some(labels) = objective.labels() {
        for (column, (sum, q)) in row.gradient.iter_mut().zip(q).enumerate() {
            *sum += f64::from(labels.weight) * (q - f64::from(u8::from(column == label)));
        }
    }
    row
}

/// What a row's student is compared with.
#[derive(Clone, Debug, PartialEq)]
pub struct Compared {
    /// `log P`.
    pub log_p: Vec<f64>,
    /// Logits, where there are any.
    pub logits: Vec<f64>,
}

/// The target of a term: constant in the student's logits as far as gradients go. `q_label` is the student's probability
/// of the row's label.
pub fn target(target: Target, term: &Term, student: &[f64], teacher: &[f64], q_label: f64) -> Compared {
    let tau = f64::from(term.temperature);
    match target {
        Target::Teacher => Compared { log_p: log_softmax(teacher, tau), logits: teacher.to_vec() },
        Target::InterpolatedLogits { t } => {
            let t = f64::from(t);
            // A logit of -inf times 0 is no logit at all.
            let mix = |(&s, &z): (&f64, &f64)| if t == 0.0 { s } else { (1.0 - t) * s + t * z };
            let logits: Vec<f64> = student.iter().zip(teacher).map(mix).collect();
            Compared { log_p: log_softmax(&logits, tau), logits }
        }
        Target::Mixture { a, difficulty } => {
            let a = f64::from(a) * (1.0 - f64::from(difficulty) * (1.0 - q_label));
            let (p, q) = (softmax(teacher, tau), softmax(student, tau));
            let mixed = p.iter().zip(q).map(|(p, q)| (a * p + (1.0 - a) * q).ln());
            Compared { log_p: mixed.collect(), logits: vec![] }
        }
    }
}

/// Value of a term's divergence and its gradient by the student's logits, without weight and without the temperature's
/// square.
pub fn divergence(term: &Term, target: &Compared, student: &[f64]) -> (f64, Vec<f64>) {
    let tau = f64::from(term.temperature);
    let log_q = log_softmax(student, tau);
    let q: Vec<f64> = log_q.iter().map(|x| x.exp()).collect();
    let columns = || target.log_p.iter().zip(&log_q).map(|(&log_p, &log_q)| Column::new(log_p, log_q));
    if term.divergence == Divergence::LogitsMse {
        let count = student.len() as f64;
        let differences: Vec<f64> =
            student.iter().zip(&target.logits).map(|(s, z)| difference(*s, *z) / tau).collect();
        let value = differences.iter().map(|x| x * x).sum::<f64>() / count;
        return (value, differences.iter().map(|x| 2.0 * x / (tau * count)).collect());
    }
    let value = columns().map(|column| column.value(term.divergence)).sum();
    let g: Vec<f64> = columns().map(|column| column.slope(term.divergence)).collect();
    let mean: f64 = q.iter().zip(&g).map(|(q, g)| if *q == 0.0 { 0.0 } else { q * g }).sum();
    let gradient = q.iter().zip(&g).map(|(q, g)| if *q == 0.0 { 0.0 } else { q * (g - mean) / tau });
    // P / Q grows without bound as Q vanishes, its product with Q does not.
    if term.divergence.is_forward() {
        return (value, target.log_p.iter().zip(q).map(|(log_p, q)| (q - log_p.exp()) / tau).collect());
    }
    (value, gradient.collect())
}

/// One column of the vocabulary, or several together.
pub(super) struct Column {
    p: f64,
    q: f64,
    log_p: f64,
    log_q: f64,
}

impl Column {
    pub(super) fn new(log_p: f64, log_q: f64) -> Self {
        Self { p: log_p.exp(), q: log_q.exp(), log_p, log_q }
    }

    /// The teacher's probability.
    pub(super) fn p(&self) -> f64 {
        self.p
    }

    /// `Q g`, which has a bound where the slope has none.
    pub(super) fn flow(&self, divergence: Divergence) -> f64 {
        match divergence {
            _ if divergence.is_forward() => -self.p,
            _ if self.q == 0.0 => 0.0,
            _ => self.q * self.slope(divergence),
        }
    }

    /// What the column adds to the value.
    pub(super) fn value(&self, divergence: Divergence) -> f64 {
        let Self { p, q, log_p, log_q } = *self;
        match divergence {
            Divergence::ForwardKl => product(p, log_p - log_q),
            Divergence::ReverseKl if log_p == f64::NEG_INFINITY => 0.0,
            Divergence::ReverseKl => product(q, log_q - log_p) - q + p,
            Divergence::JensenShannon { beta: 0.0 } => self.value(Divergence::ForwardKl),
            Divergence::JensenShannon { beta: 1.0 } => self.value(Divergence::ReverseKl),
            Divergence::JensenShannon { beta } => {
                let beta = f64::from(beta);
                let log_m = (beta * p + (1.0 - beta) * q).ln();
                beta * product(p, log_p - log_m) + (1.0 - beta) * product(q, log_q - log_m)
            }
            Divergence::SkewedForwardKl { lambda } => {
                let lambda = f64::from(lambda);
                product(p, log_p - (lambda * p + (1.0 - lambda) * q).ln())
            }
            Divergence::SkewedReverseKl { lambda: 0.0 } => self.value(Divergence::ReverseKl),
            Divergence::SkewedReverseKl { lambda } => {
                let lambda = f64::from(lambda);
                product(q, log_q - ((1.0 - lambda) * p + lambda * q).ln())
            }
            Divergence::TotalVariation => 0.5 * (p - q).abs(),
            Divergence::SoftCrossEntropy => -product(p, log_q),
            Divergence::LogitsMse | Divergence::SortedDistance => unreachable!("not of columns"),
        }
    }

    /// `g = dL/dQ`, up to a constant.
    fn slope(&self, divergence: Divergence) -> f64 {
        let Self { p, q, log_p, log_q } = *self;
        match divergence {
            Divergence::ForwardKl | Divergence::SoftCrossEntropy => -p / q,
            Divergence::ReverseKl if log_p == f64::NEG_INFINITY => 0.0,
            Divergence::ReverseKl => log_q - log_p,
            Divergence::JensenShannon { beta: 0.0 } => self.slope(Divergence::ForwardKl),
            Divergence::JensenShannon { beta: 1.0 } => self.slope(Divergence::ReverseKl),
            Divergence::JensenShannon { beta } => {
                let beta = f64::from(beta);
                (1.0 - beta) * (log_q - (beta * p + (1.0 - beta) * q).ln())
            }
            Divergence::SkewedForwardKl { lambda } => {
                let lambda = f64::from(lambda);
                -(1.0 - lambda) * p / (lambda * p + (1.0 - lambda) * q)
            }
            Divergence::SkewedReverseKl { lambda: 0.0 } => self.slope(Divergence::ReverseKl),
            Divergence::SkewedReverseKl { lambda } => {
                let lambda = f64::from(lambda);
                let m = (1.0 - lambda) * p + lambda * q;
                log_q - m.ln() + 1.0 - lambda * q / m
            }
            Divergence::TotalVariation => 0.5 * if q == p { 0.0 } else { (q - p).signum() },
            Divergence::LogitsMse | Divergence::SortedDistance => unreachable!("not of columns"),
        }
    }
}

/// `log softmax(z / tau)`.
pub fn log_softmax(z: &[f64], tau: f64) -> Vec<f64> {
    let most = z.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let sum: f64 = z.iter().map(|z| ((z - most) / tau).exp()).sum();
    z.iter().map(|z| (z - most) / tau - sum.ln()).collect()
}

/// `softmax(z / tau)`.
pub fn softmax(z: &[f64], tau: f64) -> Vec<f64> {
    log_softmax(z, tau).into_iter().map(f64::exp).collect()
}

/// `0 log 0 = 0`.
fn product(probability: f64, log: f64) -> f64 {
    if probability == 0.0 { 0.0 } else { probability * log }
}

/// A logit of `-inf` counts as no difference.
fn difference(student: f64, target: f64) -> f64 {
    if target == f64::NEG_INFINITY { 0.0 } else { student - target }
}

#[cfg(test)]
mod tests {
    use super::super::objective::LabelTerm;
    use super::*;

    const EVERY: [Divergence; 13] = [
        Divergence::ForwardKl,
        Divergence::ReverseKl,
        Divergence::JensenShannon { beta: 0.0 },
        Divergence::JensenShannon { beta: 0.3 },
        Divergence::JensenShannon { beta: 1.0 },
        Divergence::SkewedForwardKl { lambda: 0.0 },
        Divergence::SkewedForwardKl { lambda: 0.1 },
        Divergence::SkewedForwardKl { lambda: 0.7 },
        Divergence::SkewedReverseKl { lambda: 0.0 },
        Divergence::SkewedReverseKl { lambda: 0.1 },
        Divergence::TotalVariation,
        Divergence::SoftCrossEntropy,
        Divergence::LogitsMse,
    ];

    fn logits(seed: f64, count: usize) -> Vec<f64> {
        (0..count).map(|i| 2.5 * (seed + 1.7 * i as f64).sin()).collect()
    }

    /// The gradient against differences of the value. The target is held as it was: it is detached.
    #[test]
    fn gradients_are_those_of_the_values() {
        let (student, mut teacher) = (logits(0.3, 7), logits(1.1, 7));
        for excluded in [None, Some(2)] {
            if let Some(column) = excluded {
                teacher[column] = f64::NEG_INFINITY;
            }
            for divergence in EVERY {
                for kind in [
                    Target::Teacher,
                    Target::InterpolatedLogits { t: 0.6 },
                    Target::Mixture { a: 0.7, difficulty: 0.5 },
                ] {
                    if divergence == Divergence::LogitsMse && matches!(kind, Target::Mixture { .. }) {
                        continue;
                    }
                    let term = Term { divergence, weight: 1.0, temperature: 1.7, scale_by_t2: false };
                    let held = target(kind, &term, &student, &teacher, 0.2);
                    let (_, gradient) = super::divergence(&term, &held, &student);
                    for column in 0..7 {
                        let at = |step: f64| {
                            let mut moved = student.clone();
                            moved[column] += step;
                            super::divergence(&term, &held, &moved).0
                        };
                        let numeric = (at(1e-5) - at(-1e-5)) / 2e-5;
                        let exact = gradient[column];
                        assert!(
                            (numeric - exact).abs() < 1e-8,
                            "{divergence:?} {kind:?} {column}: {numeric} {exact}"
                        );
                    }
                }
            }
        }
    }

    #[test]
    fn a_student_that_is_its_teacher_has_nothing_to_learn() {
        let z = logits(0.9, 5);
        for divergence in EVERY {
            let term = Term { divergence, weight: 1.0, temperature: 1.0, scale_by_t2: true };
            let objective = Objective::new(vec![term], None, Target::Teacher).unwrap();
            let row = row(&objective, &z, &z, 1);
            let entropy: f64 =
                softmax(&z, 1.0).iter().zip(log_softmax(&z, 1.0)).map(|(p, log_p)| -p * log_p).sum();
            let least = if divergence == Divergence::SoftCrossEntropy { entropy } else { 0.0 };
            assert!((row.terms[0] - least).abs() < 1e-12, "{divergence:?}: {}", row.terms[0]);
            assert!(row.gradient.iter().all(|g| g.abs() < 1e-12), "{divergence:?}: {:?}", row.gradient);
        }
    }

    #[test]
    fn weights_temperature_and_labels_add_up() {
        let (student, teacher) = (logits(0.3, 6), logits(1.1, 4));
        let term =
            Term { divergence: Divergence::ForwardKl, weight: 0.5, temperature: 2.0, scale_by_t2: true };
        let labels = Some(LabelTerm { weight: 0.25 });
        let both = row(&Objective::new(vec![term], labels, Target::Teacher).unwrap(), &student, &teacher, 5);
        let one = row(&Objective::new(vec![term], None, Target::Teacher).unwrap(), &student, &teacher, 5);
        let q = softmax(&student, 1.0);
        assert!((both.cross_entropy + q[5].ln()).abs() < 1e-12);
        assert_eq!(one.gradient[4..], [0.0, 0.0], "columns that the teacher lacks");
        for (column, q) in q.iter().enumerate() {
            let label = 0.25 * (q - if column == 5 { 1.0 } else { 0.0 });
            assert!((both.gradient[column] - one.gradient[column] - label).abs() < 1e-12);
        }
        let (p, q) = (log_softmax(&teacher, 2.0), log_softmax(&student[..4], 2.0));
        let kl: f64 = p.iter().zip(q).map(|(p, q)| p.exp() * (p - q)).sum();
        assert!((both.terms[0] - 4.0 * kl).abs() < 1e-12);
    }
}
