//! Computes the learning rate of every step.
//!
//! In: the settings of a run and its number of steps. Out: a rate for each step, the same wherever the run was resumed.
//! With `i` steps done, `W` of warm-up, `N` in all, `peak` and `floor`:
//!
//! ```text
//! i < W        peak * i / W
//! cosine       floor + (peak - floor) * (1 + cos(pi * p)) / 2      with p = (i - W) / max(1, N - W), at most 1
//! linear       floor + (peak - floor) * (1 - p)
//! constant     peak
//! ```
//!
//! These are the curves of transformers' `get_cosine_schedule_with_warmup` and its siblings, so that runs can be compared: the
//! first step of a warm-up has rate 0, and the last step of a run does not quite reach the floor.

use crate::run::{Schedule, Train, Warmup};

/// The learning rate over a run.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LearningRate {
    shape: Schedule,
    peak: f64,
    floor: f64,
    warmup: u64,
    steps: u64,
}

impl LearningRate {
    /// The settings, over `steps` steps. A share of warm-up is rounded up to whole steps.
    pub fn new(train: &Train, steps: u64) -> Self {
        let warmup = match train.warmup {
            Warmup::Steps(steps) => steps,
            Warmup::Share(share) => (share * steps as f64).ceil() as u64,
        };
        Self {
            shape: train.schedule,
            peak: train.learning_rate,
            floor: train.minimum_learning_rate,
            warmup,
            steps,
        }
    }

    /// The rate of the step that comes after `done` steps.
    pub fn after(&self, done: u64) -> f64 {
        if done < self.warmup {
            return self.peak * done as f64 / self.warmup as f64;
        }
        let falling = self.steps.saturating_sub(self.warmup).max(1);
        let progress = ((done - self.warmup) as f64 / falling as f64).min(1.0);
        let share = match self.shape {
            Schedule::Cosine => (1.0 + (std::f64::consts::PI * progress).cos()) / 2.0,
            Schedule::Linear => 1.0 - progress,
            Schedule::Constant => return self.peak,
        };
        self.floor + (self.peak - self.floor) * share
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rate(schedule: Schedule, warmup: Warmup, floor: f64) -> LearningRate {
        let train =
            Train { schedule, warmup, learning_rate: 0.5, minimum_learning_rate: floor, ..Train::default() };
        LearningRate::new(&train, 10)
    }

    fn curve(rate: LearningRate, upto: u64) -> Vec<f64> {
        (0..=upto).map(|done| rate.after(done)).collect()
    }

    fn assert_close(got: &[f64], want: &[f64]) {
        assert!(
            got.len() == want.len() && got.iter().zip(want).all(|(a, b)| (a - b).abs() < 1e-15),
            "{got:?}"
        );
    }

    /// `[r / 0.5 for ...]` of transformers 5.24's `get_cosine_schedule_with_warmup(optimizer, 2, 10)` at rate 0.5.
    #[test]
    fn the_cosine_is_that_of_transformers() {
        let root = 0.5f64.sqrt();
        let at = |angle: f64| 0.25 * (1.0 + angle);
        let (c1, c3) = ((std::f64::consts::PI / 8.0).cos(), (3.0 * std::f64::consts::PI / 8.0).cos());
        let want = [0.0, 0.25, 0.5, at(c1), at(root), at(c3), at(0.0), at(-c3), at(-root), at(-c1), 0.0];
        assert_close(&curve(rate(Schedule::Cosine, Warmup::Steps(2), 0.0), 10), &want);
    }

    #[test]
    fn a_line_falls_evenly_to_its_floor_and_stays_there() {
        let want = [0.5, 0.46, 0.42, 0.38, 0.34, 0.3, 0.26, 0.22, 0.18, 0.14, 0.1, 0.1];
        assert_close(&curve(rate(Schedule::Linear, Warmup::Steps(0), 0.1), 11), &want);
    }

    #[test]
    fn a_constant_rate_only_warms_up() {
        assert_close(
            &curve(rate(Schedule::Constant, Warmup::Share(0.11), 0.0), 4),
            &[0.0, 0.25, 0.5, 0.5, 0.5],
        );
    }

    #[test]
    fn a_warm_up_may_take_the_whole_run() {
        for schedule in [Schedule::Cosine, Schedule::Linear] {
            let rate = rate(schedule, Warmup::Steps(10), 0.0);
            assert_close(&[rate.after(9), rate.after(10), rate.after(11)], &[0.45, 0.5, 0.0]);
        }
    }
}
