//! Specifies the losses against rows of some columns in f64, over the whole vocabulary, as they are defined.
//!
//! In: a row of the student's logits, a row of the teacher's known columns. Out: as [`reference::row`](crate::loss::reference::row).
//! With `P` the teacher's probabilities at a term's temperature, `1 - tail` in all, `Q` the student's, `K` the known columns:
//!
//! - [`Tail::Renormalize`]: the divergence of `P / sum P` over `K`, and nothing elsewhere, from `Q`;
//! - [`Tail::Bucket`]: of `(P over K, tail)` from `(Q over K, 1 - sum of Q over K)`;
//! - [`Tail::Ignore`]: the sum over `K` of what each column adds (`p log p/q` of forward KL, `q log q/p - q + p` of reverse KL, and so on);
//! - draws: `-H - sum of shares log Q` for forward KL, with `H` the entropy of what was drawn from; no `H` for cross-entropy;
//! - [`Divergence::LogitsMse`]: the mean over `K`, whatever the tail.

use super::{Known, SparseRow, Tail};
use crate::loss::objective::{Divergence, Objective, Term};
use crate::loss::reference::{Column, Compared, Row, divergence, log_softmax};

/// Values and gradient of the row's objective. `student` holds the student's valid columns, `columns` is the size of the teacher's
/// vocabulary, `label` one of the student's.
pub fn row(
    objective: &Objective,
    student: &[f64],
    columns: usize,
    teacher: SparseRow<'_>,
    label: usize,
) -> Row {
    let common = &student[..student.len().min(columns)];
    let log_q = log_softmax(student, 1.0);
    let mut row = Row { terms: vec![], cross_entropy: -log_q[label], gradient: vec![0.0; student.len()] };
    for term in objective.terms() {
        let (value, gradient) = one(term, common, teacher);
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

/// The known columns that the student has as well, with their log-probabilities at a temperature, and the probability of all others.
pub(in crate::loss) fn at_temperature(
    teacher: SparseRow<'_>,
    temperature: f32,
    common: usize,
) -> (Vec<(usize, f64)>, f64) {
    let place = teacher.temperatures.iter().position(|known| *known == temperature).unwrap_or(0);
    let inverse = if teacher.known == Known::Drawn { 1.0 } else { 1.0 / f64::from(temperature) };
    let known = teacher.ids.iter().zip(teacher.log_p).map(|(&id, &x)| (id as usize, f64::from(x) * inverse));
    let known: Vec<(usize, f64)> = known.filter(|(id, _)| *id < common).collect();
    let tail = teacher.tails.get(place).map_or(0.0, |tail| f64::from(*tail)).clamp(0.0, 1.0);
    let sum: f64 = known.iter().map(|(_, x)| x.exp()).sum();
    let shift = sum.ln() - (1.0 - tail).ln();
    (known.into_iter().map(|(id, x)| (id, x - shift)).collect(), tail)
}

fn one(term: &Term, student: &[f64], teacher: SparseRow<'_>) -> (f64, Vec<f64>) {
    let tau = f64::from(term.temperature);
    let log_q = log_softmax(student, tau);
    let (known, rest) = at_temperature(teacher, term.temperature, student.len());
    if term.divergence == Divergence::LogitsMse {
        return squares(student, teacher, tau);
    }
    let is_known = |column: usize| known.iter().any(|(id, _)| *id == column);
    // Of each column, `Q g`.
    let mut flows = vec![0.0; student.len()];
    let mut value = 0.0;
    let tail = match teacher.known {
        Known::Drawn => {
            value -=
                teacher.entropy.filter(|_| term.divergence == Divergence::ForwardKl).map_or(0.0, f64::from);
            for &(id, log_p) in &known {
                value -= log_p.exp() * log_q[id];
                flows[id] = -log_p.exp();
            }
            return (value, through_softmax(&log_q, &flows, tau));
        }
        Known::Likeliest(tail) => tail,
    };
    match tail {
        Tail::Renormalize => {
            let mut log_p = vec![f64::NEG_INFINITY; student.len()];
            known.iter().for_each(|&(id, x)| log_p[id] = x - (1.0 - rest).ln());
            return divergence(term, &Compared { log_p, logits: vec![] }, student);
        }
        Tail::Bucket => {
            let others = log_q.iter().enumerate().filter(|(column, _)| !is_known(*column));
            let of_others: f64 = others.map(|(_, x)| x.exp()).sum();
            let bucket = Column::new(rest.ln(), of_others.ln());
            if of_others > 0.0 {
                value += bucket.value(term.divergence);
                let slope = bucket.flow(term.divergence) / of_others;
                flows.iter_mut().zip(&log_q).for_each(|(flow, log_q)| *flow = log_q.exp() * slope);
            }
        }
        Tail::Ignore => {}
    }
    for &(id, log_p) in &known {
        let column = Column::new(log_p, log_q[id]);
        value += column.value(term.divergence);
        flows[id] = column.flow(term.divergence);
    }
    (value, through_softmax(&log_q, &flows, tau))
}

/// `Q_i (g_i - sum_j Q_j g_j) / tau`, from `Q g`.
fn through_softmax(log_q: &[f64], flows: &[f64], tau: f64) -> Vec<f64> {
    let mean: f64 = flows.iter().sum();
    log_q.iter().zip(flows).map(|(log_q, flow)| (flow - log_q.exp() * mean) / tau).collect()
}

/// The mean over the known columns of the squared difference of logits over the temperature.
fn squares(student: &[f64], teacher: SparseRow<'_>, tau: f64) -> (f64, Vec<f64>) {
    let log_sum = teacher.log_sum.map_or(0.0, f64::from);
    let known = teacher.ids.iter().zip(teacher.log_p).filter(|(id, _)| (**id as usize) < student.len());
    let count = known.clone().count().max(1) as f64;
    let (mut value, mut gradient) = (0.0, vec![0.0; student.len()]);
    for (&id, &log_p) in known {
        let difference = (student[id as usize] - f64::from(log_p) - log_sum) / tau;
        value += difference * difference / count;
        gradient[id as usize] = 2.0 * difference / (tau * count);
    }
    (value, gradient)
}
