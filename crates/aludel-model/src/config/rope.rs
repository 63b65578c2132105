//! Computes the angles of rotary position embedding, with every supported scaling.
//!
//! In: the base, the rotated elements of a head and a scaling, checked when they were read. Out: for a document of a given
//! length, the inverse frequencies and the factor of cosine and sine. Frequencies are computed in f64 and rounded to f32
//! once; an angle is then their f32 product with the position, as the models were trained with, so that angles of long
//! documents agree with those of other implementations.

use std::f64::consts::PI;

/// A rotary embedding.
#[derive(Clone, Debug, PartialEq)]
pub struct Rope {
    /// R, the rotated elements of a head; even.
    pub rotated: usize,
    /// The base of the frequencies, above 1.
    pub theta: f64,
    /// What stretches it to longer documents.
    pub scaling: Scaling,
}

/// How the frequencies `theta^(-2i/R)` are changed.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Scaling {
    /// They are not.
    None,
    /// All are divided (Chen et al. 2023, position interpolation).
    Linear {
        /// By this.
        factor: f64,
    },
    /// The base grows with the document once that is longer than the model was made for (NTK-aware, dynamic).
    Dynamic {
        /// How much.
        factor: f64,
        /// Positions up to which nothing changes.
        positions: usize,
    },
    /// Low frequencies are divided, high ones are not, those between are blended (Llama 3.1).
    Llama3 {
        /// Divisor of the low frequencies.
        factor: f64,
        /// Turns over `original` positions below which a frequency is low.
        low: f64,
        /// Turns from which it is high; not `low`.
        high: f64,
        /// Positions of the first training.
        original: usize,
    },
    /// As Llama 3 with a ramp over the frequencies' numbers (Peng et al. 2023, YaRN).
    Yarn {
        /// Divisor of the low frequencies.
        factor: f64,
        /// Factor of cosine and sine.
        attention: f64,
        /// Turns from which a frequency stays.
        fast: f64,
        /// Turns up to which it is divided.
        slow: f64,
        /// Whether the ramp's ends are whole numbers.
        truncated: bool,
        /// Positions of the first training.
        original: usize,
    },
    /// Every frequency has a divisor of its own, another one for long documents (Ding et al. 2024, LongRoPE).
    Long {
        /// Divisors for documents of up to `original` positions, R / 2 of them.
        short: Vec<f64>,
        /// Divisors for longer ones, R / 2 of them.
        long: Vec<f64>,
        /// Factor of cosine and sine.
        attention: f64,
        /// Positions of the first training.
        original: usize,
    },
}

impl Rope {
    /// Whether a document of this length is turned as any shorter one.
    pub(crate) fn is_plain(&self, length: usize) -> bool {
        match self.scaling {
            Scaling::Dynamic { positions: most, .. } | Scaling::Long { original: most, .. } => length <= most,
            _ => true,
        }
    }

    /// The R / 2 inverse frequencies for a document of `length` positions.
    pub(crate) fn frequencies(&self, length: usize) -> Vec<f32> {
        let plain = |theta: f64| (0..self.rotated / 2).map(move |i| theta.powf(-self.exponent(i)));
        let rounded = |frequencies: &mut dyn Iterator<Item = f64>| frequencies.map(|f| f as f32).collect();
        match &self.scaling {
            Scaling::None => rounded(&mut plain(self.theta)),
            Scaling::Linear { factor } => rounded(&mut plain(self.theta).map(|f| f / factor)),
            &Scaling::Dynamic { factor, positions } => {
                rounded(&mut plain(self.dynamic_base(factor, positions, length)))
            }
            &Scaling::Llama3 { factor, low, high, original } => {
                rounded(&mut plain(self.theta).map(|f| llama3(f, factor, low, high, original)))
            }
            Scaling::Yarn { .. } => rounded(&mut self.yarn().into_iter()),
            Scaling::Long { short, long, original, .. } => {
                let divisors = if length > *original { long } else { short };
                rounded(&mut plain(self.theta).zip(divisors).map(|(f, divisor)| f / divisor))
            }
        }
    }

    /// The factor of cosine and sine.
    pub(crate) fn amplitude(&self) -> f64 {
        match self.scaling {
            Scaling::Yarn { attention, .. } | Scaling::Long { attention, .. } => attention,
            _ => 1.0,
        }
    }

    fn exponent(&self, i: usize) -> f64 {
        2.0 * i as f64 / self.rotated as f64
    }

    fn dynamic_base(&self, factor: f64, positions: usize, length: usize) -> f64 {
        let stretch = length.max(positions) as f64 / positions as f64;
        let rotated = self.rotated as f64;
        self.theta * (factor * stretch - (factor - 1.0)).powf(rotated / (rotated - 2.0))
    }

    fn yarn(&self) -> Vec<f64> {
        let Scaling::Yarn { factor, fast, slow, truncated, original, .. } = self.scaling else {
            return Vec::new();
        };
        let rotated = self.rotated as f64;
        // The number of the frequency that turns so often over the original positions.
        let number_of =
            |turns: f64| rotated * (original as f64 / (turns * 2.0 * PI)).ln() / (2.0 * self.theta.ln());
        let (mut low, mut high) = (number_of(fast), number_of(slow));
        if truncated {
            (low, high) = (low.floor(), high.ceil());
        }
        (low, high) = (low.max(0.0), high.min(rotated - 1.0));
        if low == high {
            high += 0.001;
        }
        let blend = |i: usize| {
            let divided = ((i as f64 - low) / (high - low)).clamp(0.0, 1.0);
            let frequency = self.theta.powf(-self.exponent(i));
            frequency / factor * divided + frequency * (1.0 - divided)
        };
        (0..self.rotated / 2).map(blend).collect()
    }
}

fn llama3(frequency: f64, factor: f64, low: f64, high: f64, original: usize) -> f64 {
    let turns = original as f64 * frequency / (2.0 * PI);
    if turns < low {
        frequency / factor
    } else if turns > high {
        frequency
    } else {
        let kept = (turns - low) / (high - low);
        (1.0 - kept) * frequency / factor + kept * frequency
    }
}

/// The factor that YaRN gives cosine and sine, and that the scores so have twice: `0.1 m ln(factor) + 1`.
pub(super) fn yarn_attention(factor: f64, m: f64) -> f64 {
    if factor <= 1.0 { 1.0 } else { 0.1 * m * factor.ln() + 1.0 }
}

/// The factor that LongRoPE gives cosine and sine.
pub(super) fn long_attention(factor: f64, original: usize) -> f64 {
    if factor <= 1.0 { 1.0 } else { (1.0 + factor.ln() / (original as f64).ln()).sqrt() }
}
