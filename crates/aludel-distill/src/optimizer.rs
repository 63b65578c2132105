//! Updates parameters by AdamW, with clipping by the norm of all gradients together.
//!
//! In: trained parameters and their gradients, always in the same order, and a learning rate. Out: parameters changed in
//! place. Masters are f32: the weights themselves where they are f32, else a copy that the weights are rounded from after
//! every step. Gradients come with every factor of theirs applied; here they are only clipped.

use aludel_kernels::element::Element;
use aludel_kernels::nn::{Device, DeviceError, Update};

use crate::run::{Moments as MomentType, Train};
use crate::state::{Content, ContentMut, Item};

/// A parameter in training.
pub struct Trained<'a, D: Device> {
    /// Its values, in the type that forward and backward use.
    pub weights: &'a mut D::Buffer,
    /// f32, of the same length.
    pub gradient: &'a D::Buffer,
    /// Whether weight decay is meant for it.
    pub decays: bool,
}

/// What AdamW takes from the settings of a run.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamW {
    /// Decay rates of the moments.
    pub betas: [f64; 2],
    /// Added to the root of the second moment.
    pub epsilon: f64,
    /// Decoupled decay of matrices.
    pub weight_decay: f64,
    /// The largest norm of all gradients together.
    pub clip: Option<f64>,
    /// The type of the moments.
    pub moments: MomentType,
}

impl AdamW {
    /// The part of a run's settings.
    pub fn of(train: &Train) -> Self {
        Self {
            betas: train.betas,
            epsilon: train.epsilon,
            weight_decay: train.weight_decay,
            clip: train.clip,
            moments: train.moments,
        }
    }
}

/// AdamW's state over all trained parameters.
pub struct Optimizer<D: Device> {
    settings: AdamW,
    slots: Vec<Slot<D>>,
    steps: u64,
}

/// The state of one parameter.
struct Slot<D: Device> {
    len: usize,
    /// `None` where the weights are f32 and so their own master.
    master: Option<D::Buffer>,
    moments: Moments<D>,
}

enum Moments<D: Device> {
    Whole { first: D::Buffer, second: D::Buffer },
    Eight(D::Moments),
}

impl<D: Device> Optimizer<D> {
    /// Moments of zero and masters equal to the weights.
    ///
    /// # Errors
    /// What the device reports.
    pub fn new<'a>(
        device: &D,
        settings: AdamW,
        weights: impl IntoIterator<Item = &'a D::Buffer>,
    ) -> Result<Self, DeviceError>
    where
        D::Buffer: 'a,
    {
        let slot = |weights: &D::Buffer| Slot::new(device, settings.moments, weights);
        Ok(Self { settings, slots: weights.into_iter().map(slot).collect::<Result<_, _>>()?, steps: 0 })
    }

    /// Steps taken.
    pub fn steps(&self) -> u64 {
        self.steps
    }

    /// Takes a step; returns the norm of all gradients together, before clipping. When that is not finite, nothing
    /// is changed and no step is counted.
    ///
    /// # Errors
    /// What the device reports.
    ///
    /// # Panics
    /// Where the parameters are not as many as at the start: a bug of the caller.
    pub fn step(
        &mut self,
        device: &D,
        learning_rate: f64,
        trained: Vec<Trained<'_, D>>,
    ) -> Result<f64, DeviceError> {
        assert_eq!(trained.len(), self.slots.len(), "the parameters in training have changed");
        let gradients: Vec<&D::Buffer> = trained.iter().map(|parameter| parameter.gradient).collect();
        let norm = device.sum_of_all_squares(&gradients)?.sqrt();
        if !norm.is_finite() {
            return Ok(norm);
        }
        self.steps += 1;
        let AdamW { betas, epsilon, weight_decay, clip, .. } = self.settings;
        let update = |decays: bool| Update {
            learning_rate: learning_rate as f32,
            beta1: betas[0] as f32,
            beta2: betas[1] as f32,
            epsilon: epsilon as f32,
            weight_decay: if decays { weight_decay as f32 } else { 0.0 },
            step: self.steps,
            gradient_scale: clipping(norm, clip) as f32,
        };
        for (parameter, slot) in trained.into_iter().zip(&mut self.slots) {
            slot.step(device, update(parameter.decays), parameter);
        }
        Ok(norm)
    }

    /// The state in order to be saved: masters and moments of the parameters, which have these names.
    pub fn items<'a>(&'a self, names: &[String]) -> Vec<Item<Content<'a, D>>> {
        let of_slot = |(slot, name): (&'a Slot<D>, &String)| slot.items(name);
        self.slots.iter().zip(names).flat_map(of_slot).collect()
    }

    /// The state in order to be restored.
    pub fn items_mut<'a>(&'a mut self, names: &[String]) -> Vec<Item<ContentMut<'a, D>>> {
        let of_slot = |(slot, name): (&'a mut Slot<D>, &String)| slot.items_mut(name);
        self.slots.iter_mut().zip(names).flat_map(of_slot).collect()
    }

    /// Takes up a restored state: `steps` have been taken, and weights that are not their own masters are rounded from
    /// those anew.
    pub fn resume<'a>(&mut self, device: &D, steps: u64, weights: impl IntoIterator<Item = &'a mut D::Buffer>)
    where
        D::Buffer: 'a,
    {
        self.steps = steps;
        for (slot, weights) in self.slots.iter().zip(weights) {
            if let Some(master) = &slot.master {
                device.copy(master, weights);
            }
        }
    }
}

/// `min(1, clip / (norm + 1e-6))`, as torch has it.
fn clipping(norm: f64, clip: Option<f64>) -> f64 {
    clip.map_or(1.0, |clip| (clip / (norm + 1e-6)).min(1.0))
}

impl<D: Device> Slot<D> {
    fn new(device: &D, moments: MomentType, weights: &D::Buffer) -> Result<Self, DeviceError> {
        let len = device.len(weights);
        let zeros = || device.zeros(len, Element::F32);
        let moments = match moments {
            MomentType::Float32 => Moments::Whole { first: zeros()?, second: zeros()? },
            MomentType::Int8 => Moments::Eight(device.moments(len)?),
        };
        let master = if device.element(weights) == Element::F32 {
            None
        } else {
            let mut master = zeros()?;
            device.copy(weights, &mut master);
            Some(master)
        };
        Ok(Self { len, master, moments })
    }

    fn step(&mut self, device: &D, update: Update, parameter: Trained<'_, D>) {
        let Trained { weights, gradient, .. } = parameter;
        let (master, stored) = match &mut self.master {
            Some(master) => (master, Some(weights)),
            None => (weights, None),
        };
        match &mut self.moments {
            Moments::Whole { first, second } => {
                device.adamw(update, gradient, master, first, second, stored);
            }
            Moments::Eight(moments) => device.adamw8(update, gradient, master, moments, stored),
        }
    }

    fn items<'a>(&'a self, name: &str) -> Vec<Item<Content<'a, D>>> {
        let item = |part: &str, content| Item { name: format!("{part}/{name}"), content };
        let mut items: Vec<_> =
            self.master.iter().map(|master| item("master", Content::Buffer(master))).collect();
        match &self.moments {
            Moments::Whole { first, second } => {
                items.push(item("first", Content::Buffer(first)));
                items.push(item("second", Content::Buffer(second)));
            }
            Moments::Eight(moments) => items.push(item("moments", Content::Moments(moments))),
        }
        items
    }

    fn items_mut<'a>(&'a mut self, name: &str) -> Vec<Item<ContentMut<'a, D>>> {
        let item = |part: &str, content| Item { name: format!("{part}/{name}"), content };
        let mut items: Vec<_> =
            self.master.iter_mut().map(|master| item("master", ContentMut::Buffer(master))).collect();
        match &mut self.moments {
            Moments::Whole { first, second } => {
                items.push(item("first", ContentMut::Buffer(first)));
                items.push(item("second", ContentMut::Buffer(second)));
            }
            Moments::Eight(moments) => items.push(item("moments", ContentMut::Moments(moments, self.len))),
        }
        items
    }
}

#[cfg(test)]
mod tests {
    use aludel_kernels::nn::Cpu;

    use super::*;

    fn buffer(device: &Cpu, values: &[f32], element: Element) -> <Cpu as Device>::Buffer {
        let mut buffer = device.zeros(values.len(), element).unwrap();
        device.write(&mut buffer, 0, values).unwrap();
        buffer
    }

    fn settings(clip: Option<f64>) -> AdamW {
        let train = Train { weight_decay: 0.5, clip, betas: [0.9, 0.99], epsilon: 1e-8, ..Train::default() };
        AdamW::of(&train)
    }

    /// Weights of a matrix and of a norm after steps with these gradients.
    fn after(clip: Option<f64>, steps: &[[f32; 2]]) -> (Vec<f32>, Vec<f64>) {
        let device = Cpu::new(None).unwrap();
        let mut weights = [1.0, 2.0].map(|value| buffer(&device, &[value], Element::F32));
        let mut optimizer = Optimizer::new(&device, settings(clip), &weights).unwrap();
        let mut norms = Vec::new();
        for step in steps {
            let gradients = step.map(|value| buffer(&device, &[value], Element::F32));
            let trained = weights.iter_mut().zip(&gradients).zip([true, false]);
            let trained = trained.map(|((weights, gradient), decays)| Trained { weights, gradient, decays });
            norms.push(optimizer.step(&device, 0.1, trained.collect()).unwrap());
        }
        (weights.iter().map(|weights| device.read(weights, 0..1).unwrap()[0]).collect(), norms)
    }

    fn assert_close(got: &[f32], want: &[f64]) {
        assert!(
            got.iter().zip(want).all(|(&got, want)| (f64::from(got) - want).abs() < 1e-6),
            "{got:?} {want:?}"
        );
    }

    /// The first step of Adam is one of size `rate` whatever the gradient; matrices shrink by `rate * decay` besides.
    #[test]
    fn only_matrices_decay_and_a_first_step_has_the_size_of_the_rate() {
        let (weights, norms) = after(None, &[[3.0, -4.0]]);
        assert_close(&weights, &[1.0 * (1.0 - 0.05) - 0.1, 2.0 + 0.1]);
        assert_eq!(norms, [5.0]);
    }

    /// Written out: m and v of both steps, with their corrections.
    #[test]
    fn gradients_are_clipped_together() {
        let clip = |gradient: f64, norm: f64| gradient * (1.0 / (norm + 1e-6)).min(1.0);
        let second = |first: f64, second: f64| {
            let m = (0.9 * 0.1 * first + 0.1 * second) / (1.0 - 0.81);
            let v = (0.99 * 0.01 * first * first + 0.01 * second * second) / (1.0 - 0.9801);
            0.1 * m / (v.sqrt() + 1e-8)
        };
        let (weights, norms) = after(Some(1.0), &[[3.0, -4.0], [0.3, 0.4]]);
        assert!((norms[1] - 0.5).abs() < 1e-6);
        let want = [
            (1.0 * 0.95 - 0.1) * 0.95 - second(clip(3.0, 5.0), 0.3),
            2.0 + 0.1 - second(clip(-4.0, 5.0), 0.4),
        ];
        assert_close(&weights, &want);
    }

    #[test]
    fn a_gradient_that_is_not_finite_changes_nothing() {
        for bad in [f32::NAN, f32::INFINITY] {
            let (weights, norms) = after(Some(1.0), &[[bad, 1.0]]);
            assert_eq!(weights, [1.0, 2.0]);
            assert!(!norms[0].is_finite());
        }
    }

    /// Steps that are too small for bfloat16 add up in the master.
    #[test]
    fn masters_keep_what_rounded_weights_lose() {
        let device = Cpu::new(None).unwrap();
        let mut weights = buffer(&device, &[1.0], Element::BF16);
        let mut optimizer = Optimizer::new(&device, settings(None), [&weights]).unwrap();
        let gradient = buffer(&device, &[1.0], Element::F32);
        for _ in 0..10 {
            let trained = vec![Trained { weights: &mut weights, gradient: &gradient, decays: false }];
            optimizer.step(&device, 0.001, trained).unwrap();
        }
        assert_eq!(optimizer.steps(), 10);
        // 0.99 rounded to eight bits; alone, each step would have been rounded away.
        assert_eq!(device.read(&weights, 0..1).unwrap(), [0.98828125]);
    }
}
