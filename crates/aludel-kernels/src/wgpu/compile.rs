//! Compiles kernels once: keeps what is loaded, and has what the driver made of them remembered between runs, where it gives it out.
//!
//! In: source texts. Out: pipelines. What is remembered has a name by the digest of everything that it depends on, and its own digest before
//! it, so that a driver sees nothing but what it has written itself. Drivers for Metal and Direct3D 12 remember for themselves.
#![expect(unsafe_code, reason = "what a driver has compiled is given back to it")]

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, MutexGuard, PoisonError};

use ::wgpu::{
    AdapterInfo, ComputePipeline, ComputePipelineDescriptor, ErrorFilter, Features, PipelineCacheDescriptor,
    PipelineCompilationOptions, PipelineLayout, ShaderModule, ShaderModuleDescriptor, ShaderSource,
};
use sha2::{Digest, Sha256};

use super::WgpuError;
use super::device::ready;
use crate::gpu::KernelStore;

/// The kernels of one device.
pub(super) struct Kernels {
    device: ::wgpu::Device,
    layout: PipelineLayout,
    /// What the driver is, in words.
    driver: String,
    store: Box<dyn KernelStore>,
    modules: Mutex<HashMap<String, ShaderModule>>,
    pipelines: Mutex<HashMap<(String, String), ComputePipeline>>,
    compiled: AtomicU64,
}

impl Kernels {
    pub(super) fn new(
        device: &::wgpu::Device,
        layout: PipelineLayout,
        info: &AdapterInfo,
        store: Box<dyn KernelStore>,
    ) -> Self {
        let AdapterInfo { name, vendor, device: model, driver, driver_info, backend, .. } = info;
        let driver = format!("{backend} {vendor:x} {model:x} {name} {driver} {driver_info}");
        let (modules, pipelines) = Default::default();
        let device = device.clone();
        Self { device, layout, driver, store, modules, pipelines, compiled: AtomicU64::new(0) }
    }

    /// How many kernels this process had to compile.
    pub(super) fn compiled(&self) -> u64 {
        self.compiled.load(Relaxed)
    }

    /// A kernel of a text.
    pub(super) fn pipeline(&self, source: &str, name: &str) -> Result<ComputePipeline, WgpuError> {
        let key = (source.to_owned(), name.to_owned());
        if let Some(pipeline) = lock(&self.pipelines).get(&key) {
            return Ok(pipeline.clone());
        }
        // Compiled outside of the lock: two threads may compile the same text, and threads with different ones do not wait.
        let pipeline = self.compile(source, name)?;
        Ok(lock(&self.pipelines).entry(key).or_insert(pipeline).clone())
    }

    fn compile(&self, source: &str, name: &str) -> Result<ComputePipeline, WgpuError> {
        let scope = self.device.push_error_scope(ErrorFilter::Validation);
        let module = self.module(source);
        let file = self.file(source, name);
        let remembered = self.store.load(&file).and_then(checked);
        let cache = self.device.features().contains(Features::PIPELINE_CACHE).then(|| {
            let data = remembered.as_deref();
            let descriptor = PipelineCacheDescriptor { label: None, data, fallback: true };
            // SAFETY: the bytes are what `get_data` gave for this very text and driver: their digest stands before them, and their
            // name is that of what they depend on.
            unsafe { self.device.create_pipeline_cache(&descriptor) }
        });
        let pipeline = self.device.create_compute_pipeline(&ComputePipelineDescriptor {
            label: Some(name),
            layout: Some(&self.layout),
            module: &module,
            entry_point: Some(name),
            compilation_options: PipelineCompilationOptions::default(),
            cache: cache.as_ref(),
        });
        if let Some(error) = ready(scope.pop()) {
            return Err(WgpuError::Compile { log: error.to_string() });
        }
        if remembered.is_none() {
            self.compiled.fetch_add(1, Relaxed);
            if let Some(data) = cache.and_then(|cache| cache.get_data()) {
                let digest = Sha256::digest(&data);
                self.store.save(&file, &[&digest[..], &data].concat());
            }
        }
        Ok(pipeline)
    }

    fn module(&self, source: &str) -> ShaderModule {
        let mut modules = lock(&self.modules);
        let make = || {
            let source = ShaderSource::Wgsl(source.into());
            self.device.create_shader_module(ShaderModuleDescriptor { label: None, source })
        };
        modules.entry(source.to_owned()).or_insert_with(make).clone()
    }

    fn file(&self, source: &str, name: &str) -> String {
        crate::gpu::name_of(&[env!("CARGO_PKG_VERSION"), &self.driver, name, source]) + ".pipeline"
    }
}

/// What was remembered, where it is what was saved.
fn checked(bytes: Vec<u8>) -> Option<Vec<u8>> {
    let (digest, data) = bytes.split_at_checked(32)?;
    (Sha256::digest(data)[..] == *digest).then(|| data.to_owned())
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl std::fmt::Debug for Kernels {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Kernels").field("driver", &self.driver).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_driver_sees_only_what_it_has_written() {
        let data = b"a pipeline";
        let saved = [&Sha256::digest(data)[..], data].concat();
        assert_eq!(checked(saved.clone()).as_deref(), Some(&data[..]));
        for at in [0, 31, 32, saved.len() - 1] {
            let mut damaged = saved.clone();
            damaged[at] ^= 1;
            assert_eq!(checked(damaged), None);
        }
        assert_eq!(checked(saved[..40].to_vec()), None);
        assert_eq!(checked(vec![1; 8]), None);
    }
}
