//! Holds the arrays of one block of columns, and fills them from one another.

use std::ops::Range;

use super::dispatch;
use super::lanes::{LANES, Points};
use super::plan::What;
use super::row::State;
use super::softmax::Softmax;
use crate::loss::divergence::Point;
use crate::loss::objective::Target;
use crate::nn::cpu::buffer::Values;

/// Columns of a block: its arrays take 20 KB and stay in the first cache.
pub(super) const BLOCK: usize = 512;

type Lane = [f32; BLOCK];

/// One block of a row.
pub(super) struct Block {
    /// Columns in use, rounded up to whole vectors: the last ones hold no logit.
    used: usize,
    student: Lane,
    teacher: Lane,
    target: Lane,
    columns: Arrays,
    value: Lane,
    flow: Lane,
    gradient: Lane,
}

/// Where [`Points`] are kept.
struct Arrays {
    p: Lane,
    q: Lane,
    d: Lane,
    log_q: Lane,
}

impl Arrays {
    fn points(&mut self, used: usize) -> Points<'_> {
        Points {
            p: &mut self.p[..used],
            q: &mut self.q[..used],
            d: &mut self.d[..used],
            log_q: &mut self.log_q[..used],
        }
    }
}

impl Block {
    pub(super) fn new() -> Self {
        const ZEROS: Lane = [0.0; BLOCK];
        Self {
            used: 0,
            student: ZEROS,
            teacher: ZEROS,
            target: ZEROS,
            columns: Arrays { p: ZEROS, q: ZEROS, d: ZEROS, log_q: ZEROS },
            value: ZEROS,
            flow: ZEROS,
            gradient: ZEROS,
        }
    }

    /// Reads the logits of these columns.
    pub(super) fn load(&mut self, student: &[f32], teacher: Option<Values<'_>>, columns: Range<usize>) {
        self.used = columns.len().next_multiple_of(LANES);
        dispatch::floor(&student[columns.clone()], &mut self.student[..self.used]);
        match teacher {
            Some(Values::F32(teacher)) => dispatch::floor(&teacher[columns], &mut self.teacher[..self.used]),
            Some(teacher) => {
                let raw = &mut self.target[..columns.len()];
                teacher.slice(columns).decode(raw);
                dispatch::floor(raw, &mut self.teacher[..self.used]);
            }
            None => {}
        }
    }

    pub(super) fn student(&self) -> &[f32] {
        &self.student[..self.used]
    }

    pub(super) fn teacher(&self) -> &[f32] {
        &self.teacher[..self.used]
    }

    pub(super) fn value(&self) -> &[f32] {
        &self.value[..self.used]
    }

    pub(super) fn flow(&self) -> &[f32] {
        &self.flow[..self.used]
    }

    pub(super) fn gradient_mut(&mut self) -> &mut [f32] {
        &mut self.gradient[..self.used]
    }

    pub(super) fn sum_student(&mut self, softmax: &mut Softmax, temperature: f32) {
        softmax.take(&self.student[..self.used], 1.0 / temperature, &mut self.value[..self.used]);
    }

    /// Makes interpolated logits; other targets have the teacher's.
    pub(super) fn make_target(&mut self, target: Target, anchors: (f32, f32)) {
        let used = self.used;
        if let Target::InterpolatedLogits { t } = target {
            let student = (&self.student[..used], anchors.0);
            // A logit of -inf times 0 is no logit at all.
            let teacher = if t == 0.0 { student } else { (&self.teacher[..used], anchors.1) };
            dispatch::interpolate(student, teacher, t, &mut self.target[..used]);
        }
    }

    pub(super) fn sum_target(&mut self, softmax: &mut Softmax, target: Target, temperature: f32) {
        let used = self.used;
        let logits = if is_interpolated(target) { &self.target } else { &self.teacher };
        softmax.take(&logits[..used], 1.0 / temperature, &mut self.value[..used]);
    }

    /// Makes the probabilities that the group compares.
    pub(super) fn make_points(&mut self, state: &State<'_>) {
        if !state.group.compares_distributions() {
            return;
        }
        self.make_target(state.group.target, state.anchors);
        let used = self.used;
        let has_no_teacher = state.group.target == Target::InterpolatedLogits { t: 0.0 };
        let teacher = if has_no_teacher { &self.student } else { &self.teacher };
        let target = if is_interpolated(state.group.target) { &self.target } else { teacher };
        let points = self.columns.points(used);
        dispatch::points(state.scales, &self.student[..used], &teacher[..used], &target[..used], points);
        if let Some(weights) = state.weights() {
            dispatch::mix(weights, self.columns.points(used));
        }
    }

    /// The slope of the block's first column.
    pub(super) fn slope(&self, what: What) -> f32 {
        let Arrays { p, q, d, log_q } = &self.columns;
        match what {
            What::Distributions(kind) => {
                dispatch::slope(kind, Point { p: p[0], q: q[0], d: d[0], log_q: log_q[0] })
            }
            What::Logits => 0.0,
        }
    }

    /// Makes values and flows of the term at `place` of the group. `count` is the number of common columns.
    pub(super) fn make_locals(&mut self, state: &State<'_>, place: usize, count: usize) {
        let used = self.used;
        match state.group.slots[place].what {
            What::Distributions(kind) => {
                let points = self.columns.points(used);
                let (value, flow) = (&mut self.value[..used], &mut self.flow[..used]);
                dispatch::locals(kind, state.origins[place], points, value, flow);
            }
            What::Logits => {
                // No weight of Q is taken off: the flow is the gradient.
                let share = 1.0 / count as f32;
                let (student, teacher) = (&self.student[..used], &self.teacher[..used]);
                let (value, flow) = (&mut self.value[..used], &mut self.flow[..used]);
                dispatch::squares(state.scales.rate, share, student, teacher, value, flow);
            }
        }
    }

    /// Makes the flows of the term at `place` of the group alone.
    pub(super) fn make_flows(&mut self, state: &State<'_>, place: usize, count: usize) {
        let used = self.used;
        match state.group.slots[place].what {
            What::Distributions(kind) => {
                let points = self.columns.points(used);
                dispatch::flows(kind, state.origins[place], points, &mut self.flow[..used]);
            }
            What::Logits => self.make_locals(state, place, count),
        }
    }

    /// Starts with the gradient of the cross-entropy against a label elsewhere: `share e^(z - most)`, or with zeros.
    pub(super) fn start_gradient(&mut self, labels: Option<(f32, f32)>) {
        let used = self.used;
        match labels {
            Some((most, share)) => {
                dispatch::exponentials(&self.student[..used], most, 1.0, share, &mut self.gradient[..used]);
            }
            None => self.gradient[..used].fill(0.0),
        }
    }

    /// Adds `factor (flow - total Q)`.
    pub(super) fn add_gradient(&mut self, factor: f32, total: f32) {
        let used = self.used;
        let (flow, q) = (&self.flow[..used], &self.columns.q[..used]);
        dispatch::add_gradient(factor, total, flow, q, &mut self.gradient[..used]);
    }

    /// Writes the gradient out.
    pub(super) fn finish_gradient(&mut self, soft_cap: Option<f32>, to: &mut [f32]) {
        if let Some(cap) = soft_cap {
            let used = self.used;
            dispatch::through_cap(cap, &self.student[..used], &mut self.gradient[..used]);
        }
        to.copy_from_slice(&self.gradient[..to.len()]);
    }
}

fn is_interpolated(target: Target) -> bool {
    matches!(target, Target::InterpolatedLogits { .. })
}
