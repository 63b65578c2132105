//! Computes values and gradient of an objective for one row of logits, block by block.
//!
//! In: a [`Plan`], the row's logits and label. Out: the row's values and, in place of the student's logits, its gradient.
//! The row is streamed two or three times: log-sum-exps of every temperature; sums that some gradients need, for the groups
//! that have such a term; the gradient. A block's arrays stay in the first cache, so that groups cost arithmetic and not
//! memory. A row depends on nothing but itself: any number of threads and any chunk of rows give the same bits.

use std::ops::Range;

use super::block::{BLOCK, Block};
use super::dispatch;
use super::lanes::{FLOOR, Scales};
use super::plan::{Group, Plan};
use super::softmax::{Choice, Softmax};
use crate::loss::device::Column;
use crate::loss::divergence::Weights;
use crate::loss::objective::{IGNORED, Target};
use crate::nn::cpu::buffer::Values;

/// One row.
pub(super) struct Row<'a> {
    /// All stored columns.
    pub(super) student: &'a mut [f32],
    /// All stored columns of the teacher.
    pub(super) teacher: Option<Values<'a>>,
    pub(super) label: u32,
    /// The terms' values, then [`Column`]s.
    pub(super) values: &'a mut [f32],
}

/// What the first pass finds out.
struct Sums {
    /// For each of the plan's temperatures, over the common columns.
    student: Vec<Softmax>,
    /// For each group.
    targets: Vec<Softmax>,
    /// Over all columns of the student, at temperature 1.
    whole: Softmax,
    /// The teacher's first choice and the student's, over the common columns.
    common: (Choice, Choice),
    /// The student's over all its columns.
    choice: Choice,
}

/// A group with what its row adds to it.
pub(super) struct State<'a> {
    pub(super) group: &'a Group,
    pub(super) scales: Scales,
    /// Both greatest logits: interpolated logits are counted from them.
    pub(super) anchors: (f32, f32),
    /// Of a mixture.
    weights: Option<Weights>,
    /// For each of the group's slots, the slope of the student's first choice.
    pub(super) origins: Vec<f32>,
    /// Sums of values and of flows, likewise.
    values: Vec<f64>,
    flows: Vec<f64>,
}

impl Row<'_> {
    /// Does all of it.
    pub(super) fn run(mut self, plan: &Plan) {
        let mut values = vec![0.0; self.values.len()];
        if self.label != IGNORED {
            self.compute(plan, &mut values);
        } else if plan.with_gradient {
            self.student.fill(0.0);
        }
        for (to, value) in self.values.iter_mut().zip(values) {
            *to = value as f32;
        }
    }

    fn compute(&mut self, plan: &Plan, values: &mut [f64]) {
        let mut block = Block::new();
        let anchors = self.anchors(plan, &mut block);
        let sums = self.sums(plan, anchors, &mut block);
        let label = self.label as usize;
        let at_label = self.student[label];
        let cross_entropy = sums.whole.log(1.0) - f64::from(if at_label < FLOOR { FLOOR } else { at_label });
        let mut record = |column: Column, value: f64| values[plan.terms + column as usize] = value;
        record(Column::CrossEntropy, cross_entropy);
        record(Column::Correct, f64::from(u8::from(sums.choice.column == label)));
        let agrees = self.teacher.is_some() && sums.common.0.column == sums.common.1.column;
        record(Column::Agreement, f64::from(u8::from(agrees)));

        let groups = plan.groups.iter().zip(&sums.targets);
        let mut states: Vec<State<'_>> = groups
            .map(|(group, target)| {
                State::new(plan, group, sums.student[group.temperature], *target, anchors, cross_entropy)
            })
            .collect();
        self.set_origins(plan, sums.common.1, &mut states, &mut block);
        self.measure(plan, &mut states, &mut block);
        if plan.with_gradient {
            self.write(plan, &mut states, sums.whole, cross_entropy, &mut block);
        }
        for state in &states {
            for (slot, &value) in state.group.slots.iter().zip(&state.values) {
                values[slot.place] = finite_or_infinite(value) * slot.scale;
            }
        }
    }

    /// Both greatest logits, where some target is interpolated between them.
    fn anchors(&self, plan: &Plan, block: &mut Block) -> (f32, f32) {
        let is_interpolated = |group: &Group| matches!(group.target, Target::InterpolatedLogits { .. });
        let mut most = (FLOOR, FLOOR);
        if plan.groups.iter().any(is_interpolated) {
            for columns in blocks(0..plan.common) {
                block.load(self.student, self.teacher, columns);
                most.0 = dispatch::greatest(block.student(), most.0);
                most.1 = dispatch::greatest(block.teacher(), most.1);
            }
        }
        most
    }

    fn sums(&self, plan: &Plan, anchors: (f32, f32), block: &mut Block) -> Sums {
        let mut student = vec![Softmax::EMPTY; plan.temperatures.len()];
        let mut targets = vec![Softmax::EMPTY; plan.groups.len()];
        let (mut teachers, mut choice) = (Choice::NONE, Choice::NONE);
        for columns in blocks(0..plan.common) {
            block.load(self.student, self.teacher, columns.clone());
            choice.take(block.student(), columns.start);
            if self.teacher.is_some() {
                teachers.take(block.teacher(), columns.start);
            }
            for (softmax, &temperature) in student.iter_mut().zip(&plan.temperatures) {
                block.sum_student(softmax, temperature);
            }
            for (softmax, group) in targets.iter_mut().zip(&plan.groups) {
                if group.compares_distributions() {
                    block.make_target(group.target, anchors);
                    block.sum_target(softmax, group.target, plan.temperatures[group.temperature]);
                }
            }
        }
        let common = (teachers, choice);
        let mut rest = Softmax::EMPTY;
        for columns in blocks(plan.common..plan.valid) {
            block.load(self.student, None, columns.clone());
            choice.take(block.student(), columns.start);
            block.sum_student(&mut rest, 1.0);
        }
        Sums { whole: student[0].join(rest), student, targets, common, choice }
    }

    /// Finds the slopes of the student's first choice, where slopes are needed.
    fn set_origins(&self, plan: &Plan, choice: Choice, states: &mut [State<'_>], block: &mut Block) {
        if choice.column >= plan.common || !plan.with_gradient {
            return;
        }
        block.load(self.student, self.teacher, choice.column..choice.column + 1);
        for state in states.iter_mut().filter(|state| !state.group.is_balanced()) {
            block.make_points(state);
            for (origin, slot) in state.origins.iter_mut().zip(&state.group.slots) {
                *origin = block.slope(slot.what);
            }
        }
    }

    /// Sums what gradients need beforehand, or everything where there is no gradient.
    fn measure(&self, plan: &Plan, states: &mut [State<'_>], block: &mut Block) {
        let mut wanted: Vec<_> =
            states.iter_mut().filter(|state| !(plan.with_gradient && state.group.is_balanced())).collect();
        if wanted.is_empty() {
            return;
        }
        for columns in blocks(0..plan.common) {
            block.load(self.student, self.teacher, columns);
            for state in &mut wanted {
                block.make_points(state);
                for place in 0..state.values.len() {
                    block.make_locals(state, place, plan.common);
                    state.values[place] += dispatch::sum(block.value());
                    if !state.group.slots[place].what.is_balanced() {
                        state.flows[place] += dispatch::sum(block.flow());
                    }
                }
            }
        }
    }

    /// Writes the gradient, and sums the values that [`Row::measure`] left out.
    fn write(
        &mut self,
        plan: &Plan,
        states: &mut [State<'_>],
        whole: Softmax,
        cross_entropy: f64,
        block: &mut Block,
    ) {
        let label = self.label as usize;
        let of_label = plan.label_factor * (-cross_entropy).exp_m1();
        let share = (plan.label_factor / whole.total()) as f32;
        for columns in blocks(0..plan.common).chain(blocks(plan.common..plan.valid)) {
            let is_common = columns.start < plan.common;
            block.load(self.student, self.teacher.filter(|_| is_common), columns.clone());
            block.start_gradient((plan.label_factor != 0.0).then_some((whole.most, share)));
            if plan.label_factor != 0.0 && columns.contains(&label) {
                block.gradient_mut()[label - columns.start] = of_label as f32;
            }
            for state in states.iter_mut().filter(|_| is_common) {
                block.make_points(state);
                for (place, slot) in state.group.slots.iter().enumerate() {
                    if state.group.is_balanced() {
                        block.make_locals(state, place, plan.common);
                        state.values[place] += dispatch::sum(block.value());
                    } else {
                        block.make_flows(state, place, plan.common);
                    }
                    block.add_gradient(slot.factor as f32, state.flows[place] as f32);
                }
            }
            block.finish_gradient(plan.soft_cap, &mut self.student[columns]);
        }
        self.student[plan.valid..].fill(0.0);
    }
}

impl<'a> State<'a> {
    fn new(
        plan: &Plan,
        group: &'a Group,
        student: Softmax,
        target: Softmax,
        anchors: (f32, f32),
        cross_entropy: f64,
    ) -> Self {
        let temperature = plan.temperatures[group.temperature];
        let tau = f64::from(temperature);
        let (t, log_of_target, weights) = match group.target {
            Target::Teacher => (1.0, target.log(tau), None),
            Target::InterpolatedLogits { t } => {
                let t = f64::from(t);
                let start = (1.0 - t) * f64::from(anchors.0) + t * f64::from(anchors.1);
                (t, start + target.log(tau), None)
            }
            Target::Mixture { a, difficulty } => {
                let surprise = -(-cross_entropy).exp_m1();
                let a = f64::from(a) * (1.0 - f64::from(difficulty) * surprise);
                (1.0, target.log(tau), Some(Weights::of_p(a)))
            }
        };
        // log P - log Q = (t (z_teacher - z_student) - log_of_target + log_of_student) / tau
        let shift = if t == 0.0 { 0.0 } else { (log_of_target - student.log(tau)) / t };
        let high = shift as f32;
        let scales = Scales {
            inverse: 1.0 / temperature,
            student: (student.most, (1.0 / student.total()) as f32, student.total().ln() as f32),
            target: (target.most, (1.0 / target.total()) as f32),
            rate: (t / tau) as f32,
            shift: (high, (shift - f64::from(high)) as f32),
        };
        let sums = || vec![0.0; group.slots.len()];
        let origins = vec![0.0; group.slots.len()];
        Self { group, scales, anchors, weights, origins, values: sums(), flows: sums() }
    }

    /// The weights of a mixture's parts.
    pub(super) fn weights(&self) -> Option<Weights> {
        self.weights
    }
}

fn blocks(columns: Range<usize>) -> impl Iterator<Item = Range<usize>> {
    let end = columns.end;
    columns.step_by(BLOCK).map(move |start| start..end.min(start + BLOCK))
}

/// A column that the student rules out and the teacher does not makes a divergence infinite: its logit of [`FLOOR`] shows
/// in the value.
fn finite_or_infinite(value: f64) -> f64 {
    if value > 1e20 { f64::INFINITY } else { value }
}
