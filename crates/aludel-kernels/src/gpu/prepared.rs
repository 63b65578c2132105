//! Compiles the kernels of formulas, and keeps them.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::batch::Tensor;
use super::texts::{PassTexts, Text, texts};
use super::{Backend, ShapesOf};
use crate::element::Element;
use crate::formula::Formula;

/// The kernels of a device's formulas.
#[derive(Debug)]
pub struct Preparations<B: Backend>(Mutex<Known<B>>);

type Known<B> = HashMap<Key<ShapesOf<B>>, Arc<Prepared<B>>>;

/// What the kernels of a formula depend on.
#[derive(Debug, PartialEq, Eq, Hash)]
struct Key<S> {
    formula: Arc<Formula>,
    inputs: Vec<Element>,
    output: Element,
    shapes: S,
}

/// The compiled kernels of a formula.
#[derive(Debug)]
pub struct Prepared<B: Backend> {
    /// Equal for formulas that share all kernels.
    pub(super) signature: Vec<String>,
    pub(crate) passes: Vec<PassKernels<B>>,
    pub(crate) writing: Compiled<B>,
}

/// The compiled kernels of a pass.
#[derive(Debug)]
pub(crate) struct PassKernels<B: Backend> {
    pub selecting: Vec<Selecting<B>>,
    pub reducing: Vec<Compiled<B>>,
}

/// The compiled kernels of selections.
#[derive(Debug)]
pub struct Selecting<B: Backend> {
    /// All but the one that sweeps.
    pub others: B::Selection,
    /// The one that sweeps.
    pub sweep: Compiled<B>,
}

/// A kernel and what is bound to it.
#[derive(Debug)]
pub struct Compiled<B: Backend> {
    /// The kernel.
    pub kernel: B::Kernel,
    /// Its text.
    pub text: Text,
}

impl<B: Backend> Default for Preparations<B> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<B: Backend> Preparations<B> {
    /// The kernels of a tensor's formula.
    pub(super) fn of(
        &self,
        device: &B,
        tensor: &Tensor,
        shapes: ShapesOf<B>,
    ) -> Result<Arc<Prepared<B>>, B::Error> {
        let Tensor { formula, inputs, output, .. } = tensor;
        let key = Key { formula: Arc::clone(formula), inputs: inputs.clone(), output: *output, shapes };
        if let Some(prepared) = self.lock().get(&key) {
            return Ok(Arc::clone(prepared));
        }
        let texts = texts::<B::Dialect>(formula, inputs, *output, shapes).ok_or_else(B::no_text)?;
        let mut signature = Vec::new();
        let passes = texts.passes.into_iter().map(|pass| PassKernels::of(device, pass, &mut signature));
        let passes = passes.collect::<Result<_, _>>()?;
        let writing = Compiled::of(device, texts.writing, "write_tensors", &mut signature)?;
        let prepared = Arc::new(Prepared { signature, passes, writing });
        Ok(Arc::clone(self.lock().entry(key).or_insert(prepared)))
    }

    fn lock(&self) -> MutexGuard<'_, Known<B>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<B: Backend> PassKernels<B> {
    fn of(device: &B, texts: PassTexts, signature: &mut Vec<String>) -> Result<Self, B::Error> {
        let mut pass = Self { selecting: Vec::new(), reducing: Vec::new() };
        for text in texts.selecting {
            let others = device.selection(&text.source)?;
            pass.selecting
                .push(Selecting { others, sweep: Compiled::of(device, text, B::SWEEP, signature)? });
        }
        for text in texts.reducing {
            pass.reducing.push(Compiled::of(device, text, "reduce_chunks", signature)?);
        }
        Ok(pass)
    }
}

impl<B: Backend> Compiled<B> {
    fn of(device: &B, text: Text, name: &str, signature: &mut Vec<String>) -> Result<Self, B::Error> {
        let kernel = device.kernel(&text.source, name)?;
        signature.push(text.source.clone());
        Ok(Self { kernel, text })
    }
}
