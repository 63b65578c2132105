//! Updates parameters by AdamW, with clipping by the norm of all gradients together.
//!
//! In: trained parameters and their gradients, always in the same order, and a learning rate. Out: parameters changed in
//! place. Masters are f32: the weights themselves where they are f32, else the weights and what they lack of f32.
//! Gradients come with every factor of theirs applied; here they are only clipped. Of several processes each may hold the state of some parameters only and update those; what the others have made of theirs is then handed round.

mod state;

use aludel_kernels::element::Element;
use aludel_kernels::nn::device::KnownNorm;
use aludel_kernels::nn::{Device, DeviceError, Update};

use crate::error::Error;
use crate::group::{Group, fullest, owners};
use crate::run::{Moments as MomentType, Train};
use crate::state::{Content, ContentMut, Item};
use state::{Due, Slot, State};

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
    /// Whether masters and moments lie in the host's memory.
    pub is_aside: bool,
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
            is_aside: train.offload.optimizer,
        }
    }
}

/// Which parameters' state a process holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Held {
    /// That of all.
    All,
    /// The share of process `rank` of `size`.
    Share { rank: usize, size: usize },
    /// The largest share of so many processes.
    Most(usize),
}

impl Held {
    /// Of a process of a group, by the settings.
    pub(crate) fn of<D: Device>(train: &Train, group: Option<&Group<D>>) -> Self {
        match group.filter(|_| train.zero > 0) {
            Some(group) => Self::Share { rank: group.rank(), size: group.size() },
            None => Self::All,
        }
    }
}

/// AdamW's state over all trained parameters.
pub struct Optimizer<D: Device> {
    settings: AdamW,
    slots: Vec<Slot<D>>,
    steps: u64,
}

impl<D: Device> Optimizer<D> {
    /// Moments of zero and masters equal to the weights; of processes that share them, this one's.
    ///
    /// # Errors
    /// What the device reports.
    pub(crate) fn new<'a>(
        device: &D,
        settings: AdamW,
        weights: impl IntoIterator<Item = &'a D::Buffer>,
        held: Held,
    ) -> Result<Self, DeviceError>
    where
        D::Buffer: 'a,
    {
        let weights: Vec<&D::Buffer> = weights.into_iter().collect();
        let lens: Vec<usize> = weights.iter().map(|weights| device.len(weights)).collect();
        let shares = |size| owners(&lens, size).into_iter().map(Some).collect();
        let (owners, own) = match held {
            Held::All => (vec![None; weights.len()], None),
            Held::Share { rank, size } => (shares(size), Some(rank)),
            Held::Most(size) => (shares(size), Some(fullest(&lens, size))),
        };
        let slot = |(weights, owner): (&&D::Buffer, Option<usize>)| {
            let is_here = owner.is_none() || owner == own;
            let state = is_here.then(|| State::new(device, settings, weights)).transpose()?;
            let is_own_master = device.element(weights) == Element::F32;
            Ok(Slot { len: device.len(weights), is_own_master, owner, state })
        };
        let slots = weights.iter().zip(owners).map(slot).collect::<Result<_, DeviceError>>()?;
        Ok(Self { settings, slots, steps: 0 })
    }

    /// Whether other processes hold a part of the state.
    pub fn is_shared(&self) -> bool {
        self.slots.iter().any(|slot| slot.owner.is_some())
    }

    /// Steps taken.
    pub fn steps(&self) -> u64 {
        self.steps
    }

    /// Takes a step; returns the norm of all gradients together, before clipping. When that is not finite, nothing
    /// is changed and no step is counted. All processes of a group take it together, with the same gradients.
    ///
    /// # Errors
    /// What the device reports, and what processes that share the state say.
    ///
    /// # Panics
    /// Where the parameters are not as many as at the start: a bug of the caller.
    pub fn step(
        &mut self,
        device: &D,
        learning_rate: f64,
        mut trained: Vec<Trained<'_, D>>,
        group: Option<&Group<D>>,
    ) -> Result<f64, Error> {
        assert_eq!(trained.len(), self.slots.len(), "the parameters in training have changed");
        let gradients: Vec<&D::Buffer> = trained.iter().map(|parameter| parameter.gradient).collect();
        let clip = device.gradient_norm(&gradients, self.settings.clip)?;
        let AdamW { betas, epsilon, weight_decay, .. } = self.settings;
        let update = Update {
            learning_rate: learning_rate as f32,
            beta1: betas[0] as f32,
            beta2: betas[1] as f32,
            epsilon: epsilon as f32,
            weight_decay: weight_decay as f32,
            step: self.steps + 1,
            gradient_scale: 1.0,
        };
        let (mut here, mut aside) = (Vec::new(), Vec::new());
        for (parameter, slot) in trained.iter_mut().zip(&mut self.slots) {
            match slot.state.as_mut().map(|state| state.due(update, parameter)) {
                Some(Due::Here(one)) => here.push(one),
                Some(Due::Aside(one)) => aside.push(one),
                None => {}
            }
        }
        // The host waits for the norm while the device goes on.
        device.adamw(update, Some(&clip), &mut here);
        drop(here);
        let norm = device.read_norm(&clip)?;
        if !norm.is_finite() {
            return Ok(norm);
        }
        self.steps += 1;
        if !aside.is_empty() {
            let gradient_scale = KnownNorm::new(norm, self.settings.clip).scale;
            aside.iter_mut().for_each(|one| one.update.gradient_scale = gradient_scale);
            device.adamw_aside(&mut aside)?;
        }
        if let Some(group) = group.filter(|_| self.is_shared()) {
            let owned = trained.into_iter().zip(&self.slots);
            let owned = owned.filter_map(|(parameter, slot)| Some((slot.owner?, parameter.weights)));
            group.spread_buffers(device, owned.collect())?;
        }
        Ok(norm)
    }

    /// The state in order to be saved: masters and moments of the parameters, which have these weights and names.
    pub fn items<'a>(
        &'a self,
        names: &[String],
        weights: impl IntoIterator<Item = &'a D::Buffer>,
    ) -> Vec<Item<Content<'a, D>>> {
        let moments = self.settings.moments;
        let slots = self.slots.iter().zip(weights).zip(names);
        slots.flat_map(|((slot, weights), name)| slot.items(moments, weights, name)).collect()
    }

    /// The state, and the weights that are restored with it, in order to be restored: those that are their own masters, and those whose masters another
    /// process holds.
    pub fn items_mut<'a>(
        &'a mut self,
        names: &[String],
        weights: impl IntoIterator<Item = &'a mut D::Buffer>,
    ) -> Vec<Item<ContentMut<'a, D>>>
    where
        D::Buffer: 'a,
    {
        let slots = self.slots.iter_mut().zip(weights).zip(names);
        let moments = self.settings.moments;
        slots.flat_map(|((slot, weights), name)| slot.items_mut(moments, weights, name)).collect()
    }

    /// Takes up a restored state: `steps` have been taken, and weights whose masters lie aside are rounded from those anew.
    ///
    /// # Errors
    /// What the device reports.
    pub fn resume<'a>(
        &mut self,
        device: &D,
        steps: u64,
        weights: impl IntoIterator<Item = &'a mut D::Buffer>,
    ) -> Result<(), DeviceError>
    where
        D::Buffer: 'a,
    {
        self.steps = steps;
        let held = self
            .slots
            .iter()
            .zip(weights)
            .filter_map(|(slot, weights)| Some((slot.state.as_ref()?, weights)));
        for (state, weights) in held {
            state.round(device, weights)?;
        }
        Ok(())
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
        let mut optimizer = Optimizer::new(&device, settings(clip), &weights, Held::All).unwrap();
        let mut norms = Vec::new();
        for step in steps {
            let gradients = step.map(|value| buffer(&device, &[value], Element::F32));
            let trained = weights.iter_mut().zip(&gradients).zip([true, false]);
            let trained = trained.map(|((weights, gradient), decays)| Trained { weights, gradient, decays });
            norms.push(optimizer.step(&device, 0.1, trained.collect(), None).unwrap());
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
        let mut optimizer = Optimizer::new(&device, settings(None), [&weights], Held::All).unwrap();
        let gradient = buffer(&device, &[1.0], Element::F32);
        for _ in 0..10 {
            let trained = vec![Trained { weights: &mut weights, gradient: &gradient, decays: false }];
            optimizer.step(&device, 0.001, trained, None).unwrap();
        }
        assert_eq!(optimizer.steps(), 10);
        // 0.99 rounded to eight bits; alone, each step would have been rounded away.
        assert_eq!(device.read(&weights, 0..1).unwrap(), [0.98828125]);
    }
}
