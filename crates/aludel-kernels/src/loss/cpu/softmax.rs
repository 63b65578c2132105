//! Sums exponentials of logits as they stream by, and remembers the first of the greatest.

use super::dispatch;
use super::lanes::FLOOR;

/// A sum of exponentials, counted from the greatest logit so far.
#[derive(Clone, Copy, Debug)]
pub(super) struct Softmax {
    pub(super) most: f32,
    sum: f64,
}

impl Softmax {
    pub(super) const EMPTY: Self = Self { most: FLOOR, sum: 0.0 };

    /// Adds a block of logits at `1 / inverse`; `room` is as long.
    pub(super) fn take(&mut self, x: &[f32], inverse: f32, room: &mut [f32]) {
        let most = dispatch::greatest(x, self.most);
        if most > self.most {
            self.sum *= (f64::from(self.most - most) * f64::from(inverse)).exp();
            self.most = most;
        }
        dispatch::exponentials(x, self.most, inverse, 1.0, room);
        self.sum += dispatch::sum(room);
    }

    /// Of both sets of logits, at temperature 1.
    pub(super) fn join(self, other: Self) -> Self {
        let most = self.most.max(other.most);
        let from = |part: Self| part.sum * f64::from(part.most - most).exp();
        Self { most, sum: from(self) + from(other) }
    }

    /// The sum; NaN where every logit is `-inf`: there is no distribution then.
    pub(super) fn total(self) -> f64 {
        if self.most > FLOOR { self.sum } else { f64::NAN }
    }

    /// `tau log sum e^(z / tau)`.
    pub(super) fn log(self, tau: f64) -> f64 {
        f64::from(self.most) + tau * self.total().ln()
    }
}

/// The first of the greatest logits.
#[derive(Clone, Copy, Debug)]
pub(super) struct Choice {
    most: f32,
    pub(super) column: usize,
}

impl Choice {
    /// Stays where no logit is above `-inf`.
    pub(super) const NONE: Self = Self { most: FLOOR, column: usize::MAX };

    /// Goes on with the block that starts at column `start`.
    pub(super) fn take(&mut self, x: &[f32], start: usize) {
        let most = dispatch::greatest(x, self.most);
        if most > self.most {
            self.most = most;
            self.column = start + x.iter().position(|&z| z == most).unwrap_or(0);
        }
    }
}
