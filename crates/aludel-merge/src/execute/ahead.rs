//! Decides what is read before it is computed on.
//!
//! In: the steps under way and those that follow, in their order, which is that of the files. Out: what is wanted next. What is read and not
//! begun is bounded, for the steps under way and for those that follow apart, so that neither starves the other.

use std::collections::VecDeque;
use std::ops::Range;

use super::active::{Active, Work, unit_of_tile};
use super::task::{all_inputs, sweeps};
use crate::plan::{Action, Plan};

/// Elements of a step's inputs that will be computed on soon.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Wanted {
    pub step: usize,
    pub inputs: Vec<u16>,
    pub elements: Range<u64>,
}

/// How far reading is ahead of computing.
#[derive(Debug, Default)]
pub(super) struct Ahead {
    /// The step beyond those under way that is looked at next, and the unit of its first sweep.
    step: usize,
    unit: usize,
    /// Units of steps under way that were read and nobody has begun.
    current: usize,
    /// Units and groups of later steps.
    later: usize,
}

impl Ahead {
    /// The next unit of the steps under way, unless `depth` of them wait.
    pub(super) fn of_current(
        &mut self,
        active: &mut VecDeque<Active>,
        depth: usize,
        plan: &Plan,
    ) -> Option<Vec<Wanted>> {
        if self.current >= depth {
            return None;
        }
        active.iter_mut().find_map(|active| {
            let (step, elements) = (active.step, plan.steps[active.step].elements());
            let unit = active.claim_ahead(elements.div_ceil(plan.work.tile) as usize)?;
            self.current += 1;
            let inputs = match &active.work {
                Work::Compute { wave, .. } if sweeps(wave) => wave.reads().to_vec(),
                _ => all_inputs(plan, step),
            };
            Some(vec![Wanted { step, inputs, elements: unit_of_tile(unit, plan.work.tile, elements) }])
        })
    }

    /// The next unit or group from the step on that is begun next, unless `depth` of them wait.
    pub(super) fn of_later(
        &mut self,
        next: usize,
        depth: usize,
        plan: &Plan,
        group: impl Fn(usize) -> Option<Range<usize>>,
        undone: impl Fn(usize) -> usize,
    ) -> Option<Vec<Wanted>> {
        if self.step < next {
            (self.step, self.unit) = (next, 0);
        }
        while self.later < depth && self.step < plan.steps.len() {
            let whole = |step: usize| Wanted {
                step,
                inputs: all_inputs(plan, step),
                elements: 0..plan.steps[step].elements(),
            };
            if let Some(steps) = group(self.step) {
                self.later += 1;
                self.step = undone(steps.end);
                return Some(steps.map(whole).collect());
            }
            let Wanted { step, inputs, elements } = whole(self.step);
            let elements = unit_of_tile(self.unit, plan.work.tile, elements.end);
            // Scales are written with what they scale, and nothing is read for them.
            if !elements.is_empty() && plan.steps[step].action != Action::Scales {
                self.later += 1;
                self.unit += 1;
                return Some(vec![Wanted { step, inputs, elements }]);
            }
            (self.step, self.unit) = (undone(self.step + 1), 0);
        }
        None
    }

    /// Takes note that a step is begun whose sweep has so many units; how many of them were read.
    pub(super) fn begin_step(&mut self, step: usize, units: usize) -> usize {
        let asked = match step.cmp(&self.step) {
            std::cmp::Ordering::Less => units,
            std::cmp::Ordering::Equal => self.unit,
            std::cmp::Ordering::Greater => 0,
        };
        // Nothing is read twice: the step is no later one any more.
        if step == self.step {
            (self.step, self.unit) = (step + 1, 0);
        }
        self.later -= asked;
        self.current += asked;
        asked
    }

    /// Takes note that a group is begun that starts with this step.
    pub(super) fn begin_group(&mut self, step: usize) {
        if step < self.step {
            self.later -= 1;
        }
    }

    /// Takes note that a unit is begun that was read.
    pub(super) const fn begin_unit(&mut self) {
        self.current -= 1;
    }
}
