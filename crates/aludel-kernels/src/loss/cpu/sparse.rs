//! Computes one row against known columns on the CPU.
//!
//! In: the row's logits and its teacher's known columns. Out: values, and the gradient in place of the logits. Two sweeps over the
//! vocabulary, as for whole rows: exponentials are summed for each temperature with the known columns taken out, then the gradient is
//! written: a sum over temperatures of a factor times the student's softmax everywhere, and at the known columns what was computed for
//! them one by one. What a column adds is [`reference`](crate::loss::reference)'s, in f64: there are few.

use std::ops::Range;

use super::dispatch;
use super::lanes::{FLOOR, LANES};
use super::softmax::{Choice, Softmax};
use crate::loss::device::{Column as Measure, Mode, RowLoss};
use crate::loss::objective::{Divergence, IGNORED, Term};
use crate::loss::reference::Column;
use crate::loss::sparse::reference::at_temperature;
use crate::loss::sparse::{Known, SparseRow, Tail};
use crate::nn::cpu::dispatch::add as add_to;

/// Columns of a block.
const BLOCK: usize = 512;

/// One temperature of the student.
struct Softened {
    temperature: f32,
    /// Over the columns that are not known.
    others: Softmax,
    /// `log sum e^(z / tau)` over all common columns.
    log_sum: f64,
    /// Factor of the softmax in the gradient of columns that are not known.
    share: f64,
}

impl Softened {
    fn new(temperature: f32) -> Self {
        Self { temperature, others: Softmax::EMPTY, log_sum: 0.0, share: 0.0 }
    }

    fn tau(&self) -> f64 {
        f64::from(self.temperature)
    }

    /// `log sum e^(z / tau)` over the columns that are not known.
    fn log_others(&self) -> f64 {
        if self.others.most > FLOOR { self.others.log(self.tau()) / self.tau() } else { f64::NEG_INFINITY }
    }
}

/// Values and gradient of one row, of which the teacher's vocabulary has `columns`. `student` holds all stored columns, `values` the
/// terms' values, then the measures.
pub(in crate::loss) fn run_row(
    loss: RowLoss<'_>,
    columns: usize,
    teacher: SparseRow<'_>,
    label: u32,
    student: &mut [f32],
    values: &mut [f32],
) {
    values.fill(0.0);
    if label != IGNORED {
        Row { loss, teacher, label: label as usize, common: columns.min(loss.student.valid) }
            .run(student, values);
    } else if loss.mode == Mode::Gradient {
        student.fill(0.0);
    }
}

struct Row<'a> {
    loss: RowLoss<'a>,
    teacher: SparseRow<'a>,
    label: usize,
    common: usize,
}

impl Row<'_> {
    fn run(&self, student: &mut [f32], values: &mut [f32]) {
        let objective = self.loss.objective;
        let mut softened = vec![Softened::new(1.0)];
        for term in objective.terms() {
            if softened.iter().all(|known| known.temperature != term.temperature) {
                softened.push(Softened::new(term.temperature));
            }
        }
        let ids = &self.teacher.ids[..self.teacher.ids.partition_point(|id| (*id as usize) < self.common)];
        let known: Vec<f64> = ids.iter().map(|&id| f64::from(floored(student[id as usize]))).collect();
        let mut choice = Choice::NONE;
        self.sum(student, ids, &mut softened, &mut choice);
        let first = choice.column;
        let mut rest = Softmax::EMPTY;
        for columns in blocks(self.common..self.loss.student.valid) {
            let mut block = Block::load(student, columns.clone());
            choice.take(block.logits(), columns.start);
            block.take(&mut rest, 1.0);
        }
        for one in &mut softened {
            one.log_sum = log_sum(known.iter().map(|z| z / one.tau()).chain([one.log_others()]));
        }
        let of_rest = if rest.most > FLOOR { rest.log(1.0) } else { f64::NEG_INFINITY };
        let whole = log_sum([softened[0].log_sum, of_rest].into_iter());
        let cross_entropy = whole - f64::from(floored(student[self.label]));

        // What the terms add to the known columns' gradient, before the labels.
        let mut at_known = vec![0.0; ids.len()];
        let weigh = |term: &Term| self.loss.factor * f64::from(term.weight) * term.squared_temperature();
        for (place, term) in objective.terms().iter().enumerate() {
            let softened = softened.iter_mut().find(|known| known.temperature == term.temperature);
            let Some(softened) = softened else { continue };
            let value = self.term(term, softened, &known, weigh(term), &mut at_known);
            values[place] = (value * term.squared_temperature()) as f32;
        }
        let measures = &mut values[objective.terms().len()..];
        let mut record = |measure: Measure, value: f64| measures[measure as usize] = value as f32;
        record(Measure::CrossEntropy, cross_entropy);
        record(Measure::Correct, f64::from(u8::from(choice.column == self.label)));
        record(Measure::Agreement, f64::from(u8::from(self.teacher.likeliest() == Some(first as u32))));
        if self.loss.mode == Mode::Values {
            for (divergence, measure) in
                [(Divergence::ForwardKl, Measure::ForwardKl), (Divergence::ReverseKl, Measure::ReverseKl)]
            {
                let term = Term { divergence, weight: 0.0, temperature: 1.0, scale_by_t2: false };
                let fits = self.teacher.temperatures.contains(&1.0);
                if fits && (self.teacher.known != Known::Drawn || divergence == Divergence::ForwardKl) {
                    record(measure, self.term(&term, &mut softened[0], &known, 0.0, &mut at_known));
                }
            }
            return;
        }
        self.write(student, ids, &softened, &at_known, whole, cross_entropy);
    }

    /// Sums exponentials of the columns that are not known.
    fn sum(&self, student: &[f32], ids: &[u32], softened: &mut [Softened], choice: &mut Choice) {
        let mut ids = ids.iter().map(|&id| id as usize).peekable();
        for columns in blocks(0..self.common) {
            let mut block = Block::load(student, columns.clone());
            choice.take(block.logits(), columns.start);
            while let Some(id) = ids.next_if(|id| *id < columns.end) {
                block.logits[id - columns.start] = FLOOR;
            }
            for one in softened.iter_mut() {
                block.take(&mut one.others, 1.0 / one.temperature);
            }
        }
    }

    /// The value of a term, without its weight and square; `weight` times its gradient is added: at the known columns, and as a
    /// factor of the softmax elsewhere.
    fn term(
        &self,
        term: &Term,
        softened: &mut Softened,
        known: &[f64],
        weight: f64,
        at_known: &mut [f64],
    ) -> f64 {
        let tau = softened.tau();
        if term.divergence == Divergence::LogitsMse {
            return self.squares(tau, known, weight, at_known);
        }
        let (columns, rest) = at_temperature(self.teacher, term.temperature, self.common);
        let log_q: Vec<f64> = known.iter().map(|z| z / tau - softened.log_sum).collect();
        let log_others = softened.log_others() - softened.log_sum;
        let of_others = log_others.exp();
        let mut value = 0.0;
        // Of each column, `q g`: the slope itself may have no bound where q vanishes.
        let mut flows = Vec::with_capacity(columns.len());
        let mut of_bucket = 0.0;
        let shift = match self.teacher.known {
            Known::Likeliest(Tail::Renormalize) => (1.0 - rest).ln(),
            _ => 0.0,
        };
        for (&(_, log_p), &log_q) in columns.iter().zip(&log_q) {
            let column = Column::new(log_p - shift, log_q);
            if self.teacher.known == Known::Drawn {
                value -= column.p() * log_q;
            } else {
                value += column.value(term.divergence);
            }
            flows.push(column.flow(term.divergence));
        }
        match self.teacher.known {
            Known::Drawn if term.divergence == Divergence::ForwardKl => {
                value -= self.teacher.entropy.map_or(0.0, f64::from);
            }
            Known::Likeliest(Tail::Bucket) if of_others > 0.0 => {
                let bucket = Column::new(rest.ln(), log_others);
                value += bucket.value(term.divergence);
                of_bucket = bucket.flow(term.divergence);
            }
            // Each of the others has no probability, but it may have a slope.
            Known::Likeliest(Tail::Renormalize) if of_others > 0.0 => {
                let bucket = Column::new(f64::NEG_INFINITY, log_others);
                value += bucket.value(term.divergence);
                of_bucket = bucket.flow(term.divergence);
            }
            _ => {}
        }
        let mean = flows.iter().sum::<f64>() + of_bucket;
        for ((sum, flow), log_q) in at_known.iter_mut().zip(flows).zip(log_q) {
            *sum += weight / tau * (flow - log_q.exp() * mean);
        }
        if of_others > 0.0 {
            softened.share += weight / tau * (of_bucket / of_others - mean);
        }
        value
    }

    fn squares(&self, tau: f64, known: &[f64], weight: f64, at_known: &mut [f64]) -> f64 {
        let log_sum = self.teacher.log_sum.map_or(0.0, f64::from);
        let count = known.len().max(1) as f64;
        let mut value = 0.0;
        for ((sum, z), &log_p) in at_known.iter_mut().zip(known).zip(self.teacher.log_p) {
            let difference = (z - f64::from(log_p) - log_sum) / tau;
            value += difference * difference / count;
            *sum += weight * 2.0 * difference / (tau * count);
        }
        value
    }

    /// Writes the gradient in place of the logits.
    fn write(
        &self,
        student: &mut [f32],
        ids: &[u32],
        softened: &[Softened],
        at_known: &[f64],
        whole: f64,
        cross_entropy: f64,
    ) {
        let labels = self.loss.objective.labels().map_or(0.0, |labels| f64::from(labels.weight));
        let of_labels = self.loss.factor * labels;
        let mut known = ids.iter().map(|&id| id as usize).zip(at_known).peekable();
        let mut room = [0.0; BLOCK];
        for columns in blocks(0..self.common).chain(blocks(self.common..self.loss.student.valid)) {
            let block = Block::load(student, columns.clone());
            let used = block.used;
            let mut gradient = [0.0; BLOCK];
            let mut add = |temperature: f32, log_sum: f64, share: f64| {
                if share != 0.0 {
                    // share e^(z / tau - log_sum), counted from the log-sum-exp, which no logit is above.
                    let most = (log_sum * f64::from(temperature)) as f32;
                    let left = (f64::from(most) / f64::from(temperature) - log_sum).exp();
                    let scale = (share * left) as f32;
                    dispatch::exponentials(block.logits(), most, 1.0 / temperature, scale, &mut room[..used]);
                    add_to(&room[..used], 1.0, &mut gradient[..used]);
                }
            };
            add(1.0, whole, of_labels);
            if columns.start < self.common {
                softened.iter().for_each(|one| add(one.temperature, one.log_sum, one.share));
            }
            let at_label = columns.contains(&self.label).then(|| self.label - columns.start);
            if let Some(at) = at_label.filter(|_| of_labels != 0.0) {
                let z = f64::from(block.logits[at]);
                let shares = softened.iter().filter(|_| self.label < self.common);
                let of_terms: f64 = shares.map(|one| one.share * (z / one.tau() - one.log_sum).exp()).sum();
                gradient[at] = (of_terms + of_labels * (-cross_entropy).exp_m1()) as f32;
            }
            while let Some((id, &of_terms)) = known.next_if(|(id, _)| columns.contains(id)) {
                let log_q = f64::from(block.logits[id - columns.start]) - whole;
                let q = if id == self.label { (-cross_entropy).exp_m1() } else { log_q.exp() };
                gradient[id - columns.start] = (of_terms + of_labels * q) as f32;
            }
            if let Some(cap) = self.loss.soft_cap {
                dispatch::through_cap(cap, block.logits(), &mut gradient[..used]);
            }
            let to = &mut student[columns];
            to.copy_from_slice(&gradient[..to.len()]);
        }
        student[self.loss.student.valid..].fill(0.0);
    }
}

/// Logits of some columns, filled up to whole vectors.
struct Block {
    logits: [f32; BLOCK],
    used: usize,
}

impl Block {
    fn load(student: &[f32], columns: Range<usize>) -> Self {
        let mut block = Self { logits: [FLOOR; BLOCK], used: columns.len().next_multiple_of(LANES) };
        dispatch::floor(&student[columns], &mut block.logits[..block.used]);
        block
    }

    fn logits(&self) -> &[f32] {
        &self.logits[..self.used]
    }

    fn take(&mut self, softmax: &mut Softmax, inverse: f32) {
        let mut room = [0.0; BLOCK];
        softmax.take(&self.logits[..self.used], inverse, &mut room[..self.used]);
    }
}

fn blocks(columns: Range<usize>) -> impl Iterator<Item = Range<usize>> {
    let end = columns.end;
    columns.step_by(BLOCK).map(move |start| start..end.min(start + BLOCK))
}

/// NaN stays.
fn floored(z: f32) -> f32 {
    if z < FLOOR { FLOOR } else { z }
}

fn log_sum(logs: impl Iterator<Item = f64> + Clone) -> f64 {
    let most = logs.clone().fold(f64::NEG_INFINITY, f64::max);
    most + logs.map(|x| (x - most).exp()).sum::<f64>().ln()
}
