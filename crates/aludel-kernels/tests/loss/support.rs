//! Makes devices, buffers, numbers and objectives for the tests.

use std::num::NonZeroUsize;
use std::sync::Arc;

use aludel_kernels::element::Element;
use aludel_kernels::loss::{Divergence, LabelTerm, Objective, Target, Term};
use aludel_kernels::nn::Device;
use aludel_kernels::nn::cpu::{Buffer, Cpu};

pub(crate) fn cpu(threads: usize) -> Cpu {
    Cpu::new(NonZeroUsize::new(threads)).unwrap()
}

/// A buffer to write.
pub(crate) fn buffer(device: &Cpu, values: &[f32]) -> Buffer {
    let mut buffer = device.zeros(values.len(), Element::F32).unwrap();
    device.write(&mut buffer, 0, values).unwrap();
    buffer
}

/// A buffer of another type.
pub(crate) fn stored(device: &Cpu, values: &[f32], element: Element) -> Buffer {
    device.import(Arc::new(element.encode(values)), element).unwrap()
}

pub(crate) fn read(device: &Cpu, buffer: &Buffer) -> Vec<f32> {
    device.read(buffer, 0..device.len(buffer)).unwrap()
}

pub(crate) fn wide(values: &[f32]) -> Vec<f64> {
    values.iter().map(|&x| f64::from(x)).collect()
}

pub(crate) fn norm(values: &[f64]) -> f64 {
    values.iter().map(|x| x * x).sum::<f64>().sqrt()
}

/// `|got - expected| / |expected|`, or the plain distance where nothing but rounding is expected.
pub(crate) fn distance(got: &[f32], expected: &[f64]) -> f64 {
    assert_eq!(got.len(), expected.len());
    let off: Vec<f64> = got.iter().zip(expected).map(|(&got, expected)| f64::from(got) - expected).collect();
    let norm_expected = norm(expected);
    norm(&off) / if norm_expected > 1e-12 { norm_expected } else { 1.0 }
}

/// Numbers that look drawn from a normal distribution.
pub(crate) struct Numbers(pub(crate) u64);

impl Numbers {
    fn uniform(&mut self) -> f32 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 40) as f32 / (1u32 << 24) as f32
    }

    pub(crate) fn below(&mut self, end: usize) -> usize {
        ((self.uniform() * end as f32) as usize).min(end - 1)
    }

    pub(crate) fn normal(&mut self) -> f32 {
        (0..12).map(|_| self.uniform()).sum::<f32>() - 6.0
    }

    pub(crate) fn normals(&mut self, count: usize, scale: f32) -> Vec<f32> {
        (0..count).map(|_| scale * self.normal()).collect()
    }
}

/// Every divergence, at several parameters.
pub(crate) const DIVERGENCES: [Divergence; 14] = [
    Divergence::ForwardKl,
    Divergence::ReverseKl,
    Divergence::JensenShannon { beta: 0.0 },
    Divergence::JensenShannon { beta: 0.1 },
    Divergence::JensenShannon { beta: 0.5 },
    Divergence::JensenShannon { beta: 1.0 },
    Divergence::SkewedForwardKl { lambda: 0.0 },
    Divergence::SkewedForwardKl { lambda: 0.1 },
    Divergence::SkewedForwardKl { lambda: 0.6 },
    Divergence::SkewedReverseKl { lambda: 0.0 },
    Divergence::SkewedReverseKl { lambda: 0.1 },
    Divergence::TotalVariation,
    Divergence::SoftCrossEntropy,
    Divergence::LogitsMse,
];

pub(crate) const TARGETS: [Target; 5] = [
    Target::Teacher,
    Target::InterpolatedLogits { t: 0.4 },
    Target::InterpolatedLogits { t: 0.0 },
    Target::Mixture { a: 0.9, difficulty: 0.0 },
    Target::Mixture { a: 0.6, difficulty: 0.5 },
];

pub(crate) fn term(divergence: Divergence, temperature: f32) -> Term {
    Term { divergence, weight: 1.0, temperature, scale_by_t2: true }
}

/// All pairs of divergence and target that there are.
pub(crate) fn every(temperature: f32) -> Vec<Objective> {
    let pairs = DIVERGENCES.iter().flat_map(|&divergence| TARGETS.map(|target| (divergence, target)));
    pairs.filter_map(|(d, target)| Objective::new(vec![term(d, temperature)], None, target).ok()).collect()
}

/// Several terms of several temperatures, and the labels.
pub(crate) fn mixed(target: Target) -> Objective {
    let terms = vec![
        Term { weight: 0.5, ..term(Divergence::ForwardKl, 2.0) },
        Term { weight: 0.3, scale_by_t2: false, ..term(Divergence::ReverseKl, 1.0) },
        Term { weight: 0.2, ..term(Divergence::JensenShannon { beta: 0.5 }, 2.0) },
        Term { weight: 0.7, ..term(Divergence::TotalVariation, 4.0) },
    ];
    Objective::new(terms, Some(LabelTerm { weight: 0.25 }), target).unwrap()
}
