//! Turns probabilities into whole numbers and back.
//!
//! In: a log-probability `x`. Out: its level, with `A` the resolution: `A (1 - e^(x/2))` to the nearest, and below
//! `e^(x/2) = 4 / A`, where these steps would grow past half a nat, half a nat a step. An error of `d` in a log-probability costs
//! `p d^2 / 2` of KL, so equal steps of the square root of `p` spend bits where they are worth most.

/// Levels of a resolution.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Levels {
    resolution: f64,
    /// Where half nats begin.
    edge: f64,
}

impl Levels {
    pub(crate) fn new(resolution: u32) -> Self {
        let resolution = f64::from(resolution);
        Self { resolution, edge: 2.0 * (4.0 / resolution).ln() }
    }

    /// The level of a log-probability of at most 0.
    pub(crate) fn of(self, log_p: f64) -> u32 {
        let level = if log_p >= self.edge {
            self.resolution * (1.0 - (log_p / 2.0).exp())
        } else {
            self.resolution - 4.0 + 2.0 * (self.edge - log_p)
        };
        // Far below what a logit in f32 can say; conversions of floats saturate.
        level.round().clamp(0.0, 1e9) as u32
    }

    /// The log-probability of a level.
    pub(crate) fn log_p(self, level: u32) -> f64 {
        let level = f64::from(level);
        let beyond = level - (self.resolution - 4.0);
        if beyond <= 0.0 { 2.0 * (1.0 - level / self.resolution).ln() } else { self.edge - beyond / 2.0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_are_even_in_the_root_and_then_in_nats() {
        for resolution in [16, 352, 65536] {
            let levels = Levels::new(resolution);
            assert_eq!((levels.of(0.0), levels.log_p(0)), (0, 0.0));
            for level in 0..resolution + 50 {
                let log_p = levels.log_p(level);
                assert_eq!(levels.of(log_p), level, "{resolution}");
                let next = levels.log_p(level + 1);
                let step = log_p - next;
                assert!(step > 0.0 && step < 0.72, "{resolution} {level}: {step}");
                if level >= resolution - 4 {
                    assert!((step - 0.5).abs() < 1e-9);
                }
            }
        }
        assert_eq!(Levels::new(352).of(f64::NEG_INFINITY), 1_000_000_000);
    }
}
