//! Compiles kernels once: keeps what is loaded, and has images remembered between runs.
//!
//! In: source texts. Out: loaded modules. An image is remembered by the digest of everything that it depends on. Where images are
//! kept is a [`KernelStore`]'s concern; this crate knows no paths.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};

use super::CudaError;
use super::driver::{self, Driver, Module};
use crate::gpu::KernelStore;

/// The kernels of one device.
pub(crate) struct Kernels {
    options: Vec<String>,
    store: Arc<dyn KernelStore>,
    loaded: Mutex<HashMap<String, Arc<Module>>>,
    compiled: AtomicU64,
}

impl Kernels {
    /// Those of formulas: no fused multiplication, no flushing of small numbers, divisions and roots rounded to nearest, which gives the
    /// CPU's bits.
    pub(super) fn new(architecture: &str, store: Box<dyn KernelStore>) -> Self {
        let options = ["--fmad=false", "--ftz=false", "--prec-div=true", "--prec-sqrt=true", "--std=c++17"];
        Self::with(&options, architecture, store)
    }

    /// Those of the operations on models, which are held to tolerances.
    pub(crate) fn of_models(architecture: &str, store: Box<dyn KernelStore>) -> Self {
        Self::with(&["--std=c++17"], architecture, store)
    }

    /// Compiles a text and forgets it: what a test can do without a device. Where the compiler's library is not there, it says so.
    #[cfg(test)]
    pub(crate) fn assert_compiles(&self, source: &str) {
        match driver::compile(source, &self.options) {
            Ok(image) => assert!(image.starts_with(b"\x7fELF")),
            Err(CudaError::NoCompiler) => {
                assert!(std::env::var_os("ALUDEL_REQUIRE_NVRTC").is_none(), "there is no libnvrtc");
                eprintln!("NOT TESTED: there is no libnvrtc to compile kernels with");
            }
            Err(error) => panic!("{error}\n{source}"),
        }
    }

    fn with(options: &[&str], architecture: &str, store: Box<dyn KernelStore>) -> Self {
        let architecture = format!("--gpu-architecture={architecture}");
        let options = options.iter().map(|option| (*option).to_owned()).chain([architecture]).collect();
        Self { options, store: Arc::from(store), loaded: Mutex::default(), compiled: AtomicU64::new(0) }
    }

    pub(super) fn store(&self) -> &dyn KernelStore {
        &*self.store
    }

    /// For whoever remembers more than images.
    pub(crate) fn shared_store(&self) -> Arc<dyn KernelStore> {
        Arc::clone(&self.store)
    }

    /// How many texts this process had to compile.
    pub(crate) fn compiled(&self) -> u64 {
        self.compiled.load(Relaxed)
    }

    /// The module of a text.
    pub(crate) fn module(&self, driver: &Driver, source: &str) -> Result<Arc<Module>, CudaError> {
        let name = self.name(source);
        if let Some(module) = self.lock().get(&name) {
            return Ok(Arc::clone(module));
        }
        // Compiled outside of the lock: two threads may compile the same text, and threads with different ones do not wait.
        let remembered = self.store.load(&name).and_then(|image| driver.load(image).ok());
        let module = match remembered {
            Some(module) => module,
            None => {
                let image = driver::compile(source, &self.options)?;
                self.compiled.fetch_add(1, Relaxed);
                self.store.save(&name, &image);
                driver.load(image)?
            }
        };
        let module = Arc::new(module);
        Ok(Arc::clone(self.lock().entry(name).or_insert(module)))
    }

    /// The digest of a text, of how it is compiled and by which version of this crate.
    fn name(&self, source: &str) -> String {
        let parts = [env!("CARGO_PKG_VERSION"), &self.options.join(" "), source];
        crate::gpu::name_of(&parts) + ".cubin"
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<String, Arc<Module>>> {
        self.loaded.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl std::fmt::Debug for Kernels {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Kernels").field("options", &self.options).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::super::dialect::{self, CudaC, Shape, Shapes};
    use super::*;
    use crate::element::Element;
    use crate::formula::{Axis, Graph};
    use crate::gpu::{NoStore, texts};

    /// Needs no device, but the compiler's library: where it is not installed there is nothing to hold the texts against.
    #[test]
    fn kernels_compile() {
        let graph = Graph::new();
        let (base, x) = (graph.input(0), graph.input(1));
        let d = x - base;
        let kept = d * d.top(70_000) * graph.random(0).less(0.5);
        let scale = d.norm(Axis::Tensor) / kept.abs().sum(Axis::Tensor) + d.largest(Axis::Tensor);
        let merged = base + kept * scale + (d.exp() - d.abs().ln_1p()).less(d.kth(7)).select(d, d.sqrt());
        let formula = graph.finish(merged).unwrap();
        let kernels = Kernels::new("sm_90", Box::new(NoStore));
        let types = [Element::F32, Element::F16, Element::BF16];
        for (output, vector) in types.into_iter().zip([4, 8, 16]) {
            let shape = Shape { threads: 128, vector, parts: 4 };
            let shapes = Shapes { write: shape, select: Shape { parts: 1, ..shape } };
            let texts = texts::<CudaC>(&formula, &[output, Element::BF16], output, shapes).unwrap();
            let of_passes = texts.passes.iter().flat_map(|pass| pass.selecting.iter().chain(&pass.reducing));
            let all = of_passes.chain([&texts.writing]).map(|text| text.source.clone());
            for text in all.chain([dialect::resolving()]) {
                kernels.assert_compiles(&text);
            }
        }
    }

    #[test]
    fn images_are_named_for_all_that_they_depend_on() {
        let of =
            |architecture: &str, source: &str| Kernels::new(architecture, Box::new(NoStore)).name(source);
        let name = of("sm_90", "a");
        assert_eq!(name.len(), 64 + ".cubin".len());
        assert_eq!(name, of("sm_90", "a"));
        assert_ne!(name, of("sm_80", "a"));
        assert_ne!(name, of("sm_90", "b"));
    }
}
