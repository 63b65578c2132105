//! Specifies the distance of sorted probabilities in f64, as it is defined: every probability written out, sorted and subtracted.

use crate::loss::objective::{Objective, Term};
use crate::loss::reference::{Row, log_softmax, softmax};
use crate::loss::sparse::reference::at_temperature;
use crate::loss::sparse::{Known, SparseRow, Tail};

/// A teacher's row.
#[derive(Clone, Copy, Debug)]
pub enum Teacher<'a> {
    /// The logits of all its columns.
    Logits(&'a [f64]),
    /// The likeliest of so many columns.
    Known(SparseRow<'a>, usize),
}

/// Values and gradient of the row's objective: terms are 0 without a teacher. `student` holds the student's valid columns.
///
/// # Panics
/// Of draws: they have no order.
pub fn row(objective: &Objective, student: &[f64], teacher: Option<Teacher<'_>>, label: usize) -> Row {
    let log_q = log_softmax(student, 1.0);
    let mut row = Row { terms: vec![], cross_entropy: -log_q[label], gradient: vec![0.0; student.len()] };
    for term in objective.terms() {
        let (value, gradient) = match teacher {
            Some(teacher) => distance(term, student, teacher),
            None => (0.0, vec![0.0; student.len()]),
        };
        row.terms.push(value * term.squared_temperature());
        let factor = f64::from(term.weight) * term.squared_temperature();
        row.gradient.iter_mut().zip(gradient).for_each(|(sum, gradient)| *sum += factor * gradient);
    }
    if let Some(labels) = objective.labels() {
        for (column, (sum, log_q)) in row.gradient.iter_mut().zip(log_q).enumerate() {
            *sum += f64::from(labels.weight) * (log_q.exp() - f64::from(u8::from(column == label)));
        }
    }
    row
}

/// `sum_r |P_(r) - Q_(r)|` and its gradient by the student's logits, without weight and without the temperature's square.
fn distance(term: &Term, student: &[f64], teacher: Teacher<'_>) -> (f64, Vec<f64>) {
    let tau = f64::from(term.temperature);
    let q = softmax(student, tau);
    let (mut p, mut ranks) = probabilities(teacher, term.temperature);
    p.sort_by(|a, b| b.total_cmp(a));
    p.resize(p.len().max(q.len()), 0.0);
    ranks = ranks.min(p.len());
    let mut order: Vec<usize> = (0..q.len()).collect();
    order.sort_by(|&a, &b| student[b].total_cmp(&student[a]));
    // What the teacher has beyond the student's columns.
    let mut value: f64 = p[..ranks].iter().skip(q.len()).sum();
    let mut slopes = vec![0.0; q.len()];
    let mut rank = 0;
    for equal in order.chunk_by(|&a, &b| student[a] == student[b]) {
        let differences = p[..ranks].iter().skip(rank).take(equal.len()).map(|p| q[equal[0]] - p);
        value += differences.clone().map(f64::abs).sum::<f64>();
        let sign = |difference: f64| if difference == 0.0 { 0.0 } else { difference.signum() };
        let slope = differences.map(sign).sum::<f64>() / equal.len() as f64;
        equal.iter().for_each(|&column| slopes[column] = slope);
        rank += equal.len();
    }
    let mean: f64 = q.iter().zip(&slopes).map(|(q, g)| q * g).sum();
    (value, q.iter().zip(slopes).map(|(q, g)| q * (g - mean) / tau).collect())
}

/// The teacher's probabilities, and how many ranks are compared.
fn probabilities(teacher: Teacher<'_>, temperature: f32) -> (Vec<f64>, usize) {
    let (row, columns) = match teacher {
        Teacher::Logits(logits) => return (softmax(logits, f64::from(temperature)), usize::MAX),
        Teacher::Known(row, columns) => (row, columns),
    };
    let Known::Likeliest(tail) = row.known else { panic!("draws have no order") };
    let (known, rest) = at_temperature(row, temperature, columns);
    let mut p: Vec<f64> = known.iter().map(|(_, log_p)| log_p.exp()).collect();
    let others = columns - p.len();
    match tail {
        Tail::Bucket => p.resize(columns, rest / others.max(1) as f64),
        Tail::Renormalize => p.iter_mut().for_each(|p| *p /= 1.0 - rest),
        Tail::Ignore => return (p, known.len()),
    }
    (p, usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::loss::objective::{Divergence, LabelTerm, Target};

    fn objective(temperature: f32, labels: Option<f32>) -> Objective {
        let term =
            Term { divergence: Divergence::SortedDistance, weight: 0.7, temperature, scale_by_t2: false };
        let labels = labels.map(|weight| LabelTerm { weight });
        Objective::new(vec![term], labels, Target::Teacher).unwrap()
    }

    #[test]
    fn the_distance_is_that_of_the_papers_formula() {
        // Probabilities 1/2, 1/4, 1/4 against 1/8, 7/8: |7/8 - 1/2| + |1/8 - 1/4| + |0 - 1/4|.
        let teacher = [0.25f64.ln(), 0.5f64.ln(), 0.25f64.ln()];
        let student = [0.125f64.ln(), 0.875f64.ln()];
        let row = row(&objective(1.0, None), &student, Some(Teacher::Logits(&teacher)), 0);
        assert!((row.terms[0] - 0.75).abs() < 1e-12, "{row:?}");
        // g is -1 for the first column (1/8 < 1/4) and 1 for the second: Q_1 (1 - 6/8) and the opposite.
        assert!((row.gradient[1] - f64::from(0.7f32) * 0.875 * 0.25).abs() < 1e-12, "{row:?}");
        assert!((row.gradient[0] + row.gradient[1]).abs() < 1e-12);
    }

    #[test]
    fn gradients_are_those_of_the_values() {
        let logits = |seed: f64, count: usize| -> Vec<f64> {
            (0..count).map(|i| 2.0 * (seed + 1.7 * i as f64).sin()).collect()
        };
        let (student, teacher) = (logits(0.3, 7), logits(1.1, 9));
        let log_p: Vec<f32> = [0.4f32, 0.1, 0.3].iter().map(|p| p.ln()).collect();
        let known = |tail| SparseRow {
            known: Known::Likeliest(tail),
            temperatures: &[1.0, 2.0],
            ids: &[1, 4, 8],
            log_p: &log_p,
            tails: &[0.2, 0.35],
            log_sum: None,
            entropy: None,
        };
        let rows = [Tail::Bucket, Tail::Renormalize, Tail::Ignore].map(|tail| Teacher::Known(known(tail), 9));
        for teacher in rows.into_iter().chain([Teacher::Logits(&teacher), Teacher::Logits(&teacher[..4])]) {
            for objective in [objective(1.0, None), objective(2.0, Some(0.3))] {
                let value = |student: &[f64]| {
                    let row = row(&objective, student, Some(teacher), 2);
                    0.7 * row.terms[0]
                        + objective.labels().map_or(0.0, |_| f64::from(0.3f32) * row.cross_entropy)
                };
                let gradient = row(&objective, &student, Some(teacher), 2).gradient;
                for column in 0..7 {
                    let at = |step: f64| {
                        let mut moved = student.clone();
                        moved[column] += step;
                        value(&moved)
                    };
                    let numeric = (at(1e-6) - at(-1e-6)) / 2e-6;
                    // Weights are f32.
                    assert!((numeric - gradient[column]).abs() < 1e-7, "{teacher:?} {column}: {numeric}");
                }
            }
        }
    }

    #[test]
    fn equal_columns_share_the_slopes_of_their_ranks() {
        // Q is 1/4 four times, P 1/2, 1/4, 1/8, 1/8: slopes -1, 0, 1, 1 of the ranks, 1/4 on average, and so no gradient.
        let teacher = [0.5f64.ln(), 0.25f64.ln(), 0.125f64.ln(), 0.125f64.ln()];
        let row = row(&objective(1.0, None), &[0.0; 4], Some(Teacher::Logits(&teacher)), 0);
        assert!(
            (row.terms[0] - 0.5).abs() < 1e-12 && row.gradient.iter().all(|g| g.abs() < 1e-15),
            "{row:?}"
        );
        let student = [0.0, 0.0, 1.0, 1.0];
        let gradient =
            self::row(&objective(1.0, None), &student, Some(Teacher::Logits(&teacher)), 0).gradient;
        assert_eq!((gradient[0], gradient[2]), (gradient[1], gradient[3]));
    }

    #[test]
    fn tokens_may_change_places() {
        let teacher = [1.0, -0.5, 2.0, 0.3];
        let student = [0.3, 2.0, 1.0, -0.5];
        let row = row(&objective(1.0, None), &student, Some(Teacher::Logits(&teacher)), 0);
        assert!(row.terms[0] < 1e-15 && row.gradient.iter().all(|g| g.abs() < 1e-15), "{row:?}");
    }
}
