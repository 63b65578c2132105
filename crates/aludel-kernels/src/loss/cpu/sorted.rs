//! Computes one row against the sorted probabilities of a teacher on the CPU.
//!
//! In: the row's logits, its teacher's row. Out: values, and the gradient in place of the logits. Logits are sorted, not probabilities:
//! their order is the same at every temperature. Only as many ranks are sorted as the teacher has probabilities that differ, where the others
//! are all compared with one number, whatever their order. A row's scratch is of the size of its logits.

use super::dispatch;
use super::lanes::LANES;
use super::softmax::{Choice, Softmax};
use crate::loss::device::{Column as Measure, Mode, RowLoss};
use crate::loss::objective::{IGNORED, Term};
use crate::loss::sparse::reference::at_temperature;
use crate::loss::sparse::{Known, SparseRow, Tail};

/// A teacher's row.
#[derive(Clone, Copy)]
pub(in crate::loss) enum Teacher<'a> {
    /// All columns that are tokens.
    Logits(&'a [f32]),
    /// The likeliest of so many columns.
    Known(SparseRow<'a>, usize),
}

/// Values and gradient of one row. `student` holds all stored columns, `values` the terms' values, then the measures; `factor` is that of
/// the terms' gradient.
pub(in crate::loss) fn run_row(
    loss: RowLoss<'_>,
    (teacher, factor): (Option<Teacher<'_>>, f64),
    label: u32,
    student: &mut [f32],
    values: &mut [f32],
) {
    values.fill(0.0);
    if label == IGNORED {
        if loss.mode == Mode::Gradient {
            student.fill(0.0);
        }
        return;
    }
    let (valid, label) = (loss.student.valid, label as usize);
    let logits = Logits::of(&student[..valid]);
    let whole = logits.softmax(1.0);
    let cross_entropy = whole.log(1.0) - f64::from(logits.values[label]);
    let terms = loss.objective.terms();
    values[terms.len() + Measure::CrossEntropy as usize] = cross_entropy as f32;
    values[terms.len() + Measure::Correct as usize] = f32::from(u8::from(logits.first() == label));
    let mut gradient = vec![0.0; logits.values.len()];
    let of_labels = loss.factor * loss.objective.labels().map_or(0.0, |labels| f64::from(labels.weight));
    if of_labels != 0.0 {
        let share = (of_labels / whole.total()) as f32;
        dispatch::exponentials(&logits.values, whole.most, 1.0, share, &mut gradient);
        gradient[label] = (of_labels * (-cross_entropy).exp_m1()) as f32;
    }
    if let Some(teacher) = teacher {
        let ranks = Ranks::of(&logits, teacher);
        for (term, value) in terms.iter().zip(values.iter_mut()) {
            *value = ranks.add(term, factor, &logits, teacher, &mut gradient) as f32;
        }
    }
    if loss.mode == Mode::Gradient {
        if let Some(cap) = loss.soft_cap {
            dispatch::through_cap(cap, &logits.values, &mut gradient);
        }
        student[..valid].copy_from_slice(&gradient[..valid]);
        student[valid..].fill(0.0);
    }
}

/// Logits filled up to whole vectors with columns of no probability, which change no distance.
struct Logits {
    values: Vec<f32>,
    valid: usize,
}

impl Logits {
    fn of(logits: &[f32]) -> Self {
        let mut values = vec![0.0; logits.len().next_multiple_of(LANES)];
        dispatch::floor(logits, &mut values);
        Self { values, valid: logits.len() }
    }

    fn softmax(&self, temperature: f32) -> Softmax {
        let mut softmax = Softmax::EMPTY;
        softmax.take(&self.values, 1.0 / temperature, &mut vec![0.0; self.values.len()]);
        softmax
    }

    fn first(&self) -> usize {
        let mut choice = Choice::NONE;
        choice.take(&self.values, 0);
        choice.column
    }

    /// Their probabilities, counted from a sum over these and maybe others.
    fn probabilities(&self, softmax: Softmax, temperature: f32) -> Vec<f32> {
        let mut p = vec![0.0; self.values.len()];
        let share = (1.0 / softmax.total()) as f32;
        dispatch::exponentials(&self.values, softmax.most, 1.0 / temperature, share, &mut p);
        p
    }
}

/// The student's columns by rank, as far as their order matters, and the teacher's logits in order.
struct Ranks {
    /// The student's columns.
    columns: Vec<u32>,
    /// All of the teacher's, where they are known.
    teacher: Option<Logits>,
}

/// What the teacher has at each rank.
pub(in crate::loss) struct Told {
    /// At the first ranks, from the greatest down.
    pub(in crate::loss) p: Vec<f32>,
    /// At every later one, below `columns`.
    pub(in crate::loss) rest: f32,
    /// How many ranks there are, of which later ones have nothing.
    pub(in crate::loss) columns: usize,
    /// Whether ranks after the first are compared.
    pub(in crate::loss) goes_on: bool,
}

impl Ranks {
    fn of(student: &Logits, teacher: Teacher<'_>) -> Self {
        let key = |(column, &z): (usize, &f32)| u64::from(descending(z)) << 32 | column as u64;
        let mut keys: Vec<u64> = student.values.iter().enumerate().map(key).collect();
        let (sorted, columns, teacher) = match teacher {
            Teacher::Logits(logits) => {
                let mut keys: Vec<u32> = logits.iter().map(|&z| descending(z)).collect();
                keys.sort_unstable();
                let in_order: Vec<f32> = keys.into_iter().map(ascending).collect();
                (logits.len(), logits.len(), Some(Logits::of(&in_order)))
            }
            Teacher::Known(row, columns) => (row.ids.len(), columns, None),
        };
        // All that the teacher has columns for, where later ranks are compared with nothing.
        let ordered = if columns < student.valid { columns } else { sorted };
        if (1..keys.len()).contains(&ordered) {
            keys.select_nth_unstable(ordered - 1);
            // And what is equal to the last of them.
            let last = keys[ordered - 1] >> 32;
            let (_, others) = keys.split_at_mut(ordered);
            others.sort_unstable_by_key(|key| key >> 32 != last);
            let equal = others.partition_point(|key| key >> 32 == last);
            keys[..ordered + equal].sort_unstable();
        } else {
            keys.sort_unstable();
        }
        Self { columns: keys.into_iter().map(|key| key as u32).collect(), teacher }
    }

    /// Value of a term; `factor` times its weighted gradient is added.
    fn add(
        &self,
        term: &Term,
        factor: f64,
        student: &Logits,
        teacher: Teacher<'_>,
        gradient: &mut [f32],
    ) -> f64 {
        let tau = f64::from(term.temperature);
        let q = student.probabilities(student.softmax(term.temperature), term.temperature);
        let told = self.told(teacher, term.temperature);
        let (mut value, mut mean) = (told.beyond(q.len()), 0.0);
        let mut slopes = vec![0.0f32; q.len()];
        let mut rank = 0;
        let is_equal = |a: &u32, b: &u32| student.values[*a as usize] == student.values[*b as usize];
        for equal in self.columns.chunk_by(is_equal) {
            let q = q[equal[0] as usize];
            let differences = (rank..rank + equal.len()).map_while(|rank| Some(q - told.at(rank)?));
            rank += equal.len();
            let mut sum = 0.0f32;
            for difference in differences {
                value += f64::from(difference.abs());
                sum += if difference == 0.0 { 0.0 } else { difference.signum() };
            }
            let slope = sum / equal.len() as f32;
            equal.iter().for_each(|&column| slopes[column as usize] = slope);
            mean += f64::from(q) * f64::from(slope) * equal.len() as f64;
        }
        let scale = factor * f64::from(term.weight) * term.squared_temperature() / tau;
        for ((sum, q), slope) in gradient.iter_mut().zip(q).zip(slopes) {
            *sum += (scale * f64::from(q) * (f64::from(slope) - mean)) as f32;
        }
        value * term.squared_temperature()
    }

    fn told(&self, teacher: Teacher<'_>, temperature: f32) -> Told {
        match (teacher, &self.teacher) {
            (Teacher::Known(row, columns), _) => Told::of_known(row, columns, temperature),
            (Teacher::Logits(logits), Some(sorted)) => {
                let mut p = sorted.probabilities(sorted.softmax(temperature), temperature);
                p.truncate(logits.len());
                Told { p, rest: 0.0, columns: logits.len(), goes_on: true }
            }
            (Teacher::Logits(_), None) => Told { p: vec![], rest: 0.0, columns: 0, goes_on: true },
        }
    }
}

impl Told {
    pub(in crate::loss) fn of_known(row: SparseRow<'_>, columns: usize, temperature: f32) -> Self {
        let (known, rest) = at_temperature(row, temperature, columns);
        let tail = match row.known {
            Known::Likeliest(tail) => tail,
            Known::Drawn => Tail::Ignore,
        };
        let share = if tail == Tail::Renormalize { 1.0 - rest } else { 1.0 };
        let mut p: Vec<f32> = known.iter().map(|(_, log_p)| (log_p.exp() / share) as f32).collect();
        p.sort_unstable_by(|a, b| b.total_cmp(a));
        let others = columns.saturating_sub(p.len()).max(1) as f64;
        let rest = if tail == Tail::Bucket { (rest / others) as f32 } else { 0.0 };
        Self { p, rest, columns, goes_on: tail != Tail::Ignore }
    }

    /// At a rank, unless it is not compared.
    fn at(&self, rank: usize) -> Option<f32> {
        match self.p.get(rank) {
            Some(&p) => Some(p),
            None if !self.goes_on => None,
            None => Some(if rank < self.columns { self.rest } else { 0.0 }),
        }
    }

    /// The sum of what stands at ranks that a student of so many columns does not have.
    fn beyond(&self, columns: usize) -> f64 {
        let known: f64 = self.p.iter().skip(columns).map(|&p| f64::from(p)).sum();
        let others = self.columns.saturating_sub(columns.max(self.p.len())) as f64;
        known + if self.goes_on { others * f64::from(self.rest) } else { 0.0 }
    }
}

/// Orders as the numbers do from the greatest down.
fn descending(z: f32) -> u32 {
    let bits = z.to_bits();
    let ascending = if bits >> 31 == 1 { !bits } else { bits | 1 << 31 };
    !ascending
}

/// The number of a key.
fn ascending(key: u32) -> f32 {
    let ascending = !key;
    f32::from_bits(if ascending >> 31 == 1 { ascending & !(1 << 31) } else { !ascending })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_order_numbers_from_the_greatest_down_and_give_them_back() {
        let numbers = [f32::INFINITY, 3.5, 1e-40, 0.0, -0.0, -2.0, -1e30, f32::NEG_INFINITY];
        let keys = numbers.map(descending);
        assert!(keys.is_sorted_by(|a, b| a < b), "{keys:?}");
        assert_eq!(keys.map(|key| ascending(key).to_bits()), numbers.map(f32::to_bits));
    }
}
