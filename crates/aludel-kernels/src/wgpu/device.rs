//! Lists adapters, opens one, and does for batches in its memory what they ask of any device.
//!
//! In: a position among the adapters, and a store for kernels. Out: a [`Device`] that all threads share, which has been found to compute what the CPU
//! does.

use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Waker};

use ::wgpu::{
    Adapter, AdapterInfo, Backends, BindGroupLayoutDescriptor, BindGroupLayoutEntry, BindingType,
    BufferBindingType, BufferSize, ComputePipeline, DeviceDescriptor, DeviceType, Features, Instance,
    InstanceDescriptor, PipelineLayoutDescriptor, ShaderStages,
};

use super::WgpuError;
use super::compile::Kernels;
use super::dialect::{Wgsl, resolving};
use super::memory::{Lane, Link, Memory};
use super::prove::prove;
use super::selection::{self, OfTies, Resolving};
use crate::cpu::Geometry;
use crate::gpu::{Backend, KernelStore, Preparations, Selecting, Selections, Sizes, Sought};

/// What a driver says of an adapter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AdapterFacts {
    /// Its name.
    pub name: String,
    /// What it is reached by, such as `vulkan`.
    pub api: String,
    /// The driver, in its own words.
    pub driver: String,
    /// Whether it is a program on the CPU.
    pub is_software: bool,
    /// Whether its memory is the host's.
    pub is_shared: bool,
    /// Bytes of the largest batch.
    pub batch: u64,
}

/// A GPU.
pub struct Device {
    link: Arc<Link>,
    kernels: Kernels,
    facts: AdapterFacts,
    resolving: Resolving,
    preparations: Preparations<Self>,
}

/// Bytes of a batch, where its tensors are small. Nobody tells how much memory there is.
const BATCH: u64 = 256 << 20;

/// What all drivers show, GPUs of their own memory first and programs on the CPU last.
pub fn adapters() -> Vec<AdapterFacts> {
    enumerate().iter().map(facts_of).collect()
}

fn enumerate() -> Vec<Adapter> {
    let backends = Backends::VULKAN | Backends::METAL | Backends::DX12;
    let instance =
        Instance::new(InstanceDescriptor { backends, ..InstanceDescriptor::new_without_display_handle() });
    let mut adapters = ready(instance.enumerate_adapters(backends));
    adapters.sort_by_key(|adapter| match adapter.get_info().device_type {
        DeviceType::DiscreteGpu => 0,
        DeviceType::IntegratedGpu => 1,
        DeviceType::VirtualGpu | DeviceType::Other => 2,
        DeviceType::Cpu => 3,
    });
    adapters
}

fn facts_of(adapter: &Adapter) -> AdapterFacts {
    let AdapterInfo { name, device_type, driver, driver_info, backend, .. } = adapter.get_info();
    let limits = adapter.limits();
    let is_mappable = adapter.features().contains(Features::MAPPABLE_PRIMARY_BUFFERS);
    AdapterFacts {
        name,
        api: backend.to_str().to_owned(),
        driver: format!("{driver} {driver_info}").trim().to_owned(),
        is_software: device_type == DeviceType::Cpu,
        is_shared: is_mappable && matches!(device_type, DeviceType::IntegratedGpu | DeviceType::Cpu),
        batch: limits.max_storage_buffer_binding_size.min(limits.max_buffer_size),
    }
}

impl Device {
    /// Opens an adapter by its position in [`adapters`].
    ///
    /// # Errors
    /// [`WgpuError::NoAdapter`] and [`WgpuError::NoSuchAdapter`] where there is nothing to open; [`WgpuError::Differs`] where it computes
    /// something else than the CPU; others where the driver fails.
    pub fn open(ordinal: usize, store: Box<dyn KernelStore>) -> Result<Arc<Self>, WgpuError> {
        let adapters = enumerate();
        let Some(adapter) = adapters.get(ordinal) else {
            return Err(match adapters.len() {
                0 => WgpuError::NoAdapter,
                count => WgpuError::NoSuchAdapter { ordinal, count },
            });
        };
        let is_shared = facts_of(adapter).is_shared;
        Self::of(adapter, is_shared, store)
    }

    /// Opens an adapter, whose memory is taken to be the host's or not.
    pub(super) fn of(
        adapter: &Adapter,
        is_shared: bool,
        store: Box<dyn KernelStore>,
    ) -> Result<Arc<Self>, WgpuError> {
        let failed = |message: String| WgpuError::Failed { doing: "open", message };
        let mapping = if is_shared { Features::MAPPABLE_PRIMARY_BUFFERS } else { Features::empty() };
        let required_features = mapping | (adapter.features() & Features::PIPELINE_CACHE);
        let descriptor = DeviceDescriptor {
            required_features,
            required_limits: adapter.limits(),
            ..DeviceDescriptor::default()
        };
        let opened = ready(adapter.request_device(&descriptor));
        let (device, queue) = opened.map_err(|error| failed(error.to_string()))?;
        let complaint = Arc::new(Mutex::new(None));
        let heard = Arc::clone(&complaint);
        device.on_uncaptured_error(Arc::new(move |error: ::wgpu::Error| {
            // The first one is the cause of the others.
            heard.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert_with(|| error.to_string());
        }));
        let storage = BufferBindingType::Storage { read_only: false };
        let entry = |binding, ty, is_told: bool| BindGroupLayoutEntry {
            binding,
            visibility: ShaderStages::COMPUTE,
            ty: BindingType::Buffer {
                ty,
                has_dynamic_offset: is_told,
                min_binding_size: is_told.then_some(BufferSize::new(32)).flatten(),
            },
            count: None,
        };
        let entries =
            [entry(0, BufferBindingType::Uniform, true), entry(1, storage, false), entry(2, storage, false)];
        let layout =
            device.create_bind_group_layout(&BindGroupLayoutDescriptor { label: None, entries: &entries });
        let bound = [Some(&layout)];
        let of_pipelines = PipelineLayoutDescriptor { bind_group_layouts: &bound, ..Default::default() };
        let of_pipelines = device.create_pipeline_layout(&of_pipelines);
        let kernels = Kernels::new(&device, of_pipelines, &adapter.get_info(), store);
        let text = resolving();
        let resolving = Resolving {
            clear: kernels.pipeline(&text, "clear_histogram")?,
            digit: kernels.pipeline(&text, "find_digit")?,
            chunk: kernels.pipeline(&text, "find_chunk")?,
        };
        let facts = AdapterFacts { is_shared, ..facts_of(adapter) };
        let link = Arc::new(Link { device, queue, layout, is_shared, complaint });
        let preparations = Preparations::default();
        let device = Arc::new(Self { link, kernels, facts, resolving, preparations });
        prove(&device)?;
        Ok(device)
    }

    /// What the driver says of it.
    pub const fn facts(&self) -> &AdapterFacts {
        &self.facts
    }

    pub(super) const fn resolving(&self) -> &Resolving {
        &self.resolving
    }
}

impl Backend for Device {
    type Error = WgpuError;
    type Dialect = Wgsl;
    type Kernel = ComputePipeline;
    type Selection = OfTies;
    type Memory = Memory;
    type Lane = Lane;

    const SELECTION_WORDS: usize = selection::WORDS;
    const SWEEP: &'static str = "count_digits";
    const LEFT: &'static str = "it has NaN, infinities or numbers below 2^-126";

    fn batch_bytes(&self) -> u64 {
        BATCH.min(self.facts.batch)
    }

    fn name(&self) -> &str {
        &self.facts.name
    }

    fn compiled(&self) -> u64 {
        self.kernels.compiled()
    }

    fn shapes(&self) {}

    fn preparations(&self) -> &Preparations<Self> {
        &self.preparations
    }

    fn room(&self, _: u64) -> Result<u64, WgpuError> {
        Ok(self.facts.batch)
    }

    fn lane(&self, bytes: usize) -> Result<Lane, WgpuError> {
        Lane::new(&self.link, bytes)
    }

    fn no_text() -> WgpuError {
        WgpuError::Formula
    }

    fn kernel(&self, source: &str, name: &str) -> Result<ComputePipeline, WgpuError> {
        self.kernels.pipeline(source, name)
    }

    fn selection(&self, source: &str) -> Result<OfTies, WgpuError> {
        let count = self.kernels.pipeline(source, "count_ties")?;
        Ok(OfTies { count, locate: self.kernels.pipeline(source, "locate_ties")? })
    }

    fn memory(&self, sizes: Sizes, earlier: Option<Memory>) -> Result<Memory, WgpuError> {
        Memory::new(&self.link, sizes, earlier)
    }

    fn place(_: &Memory, offset: u64) -> u64 {
        offset / 4
    }

    fn place_of_data(_: &Memory, offset: u64) -> u64 {
        offset / 8
    }

    fn send(&self, memory: &Memory, offset: u64, bytes: &[u8]) -> Result<(), WgpuError> {
        memory.send(&self.link, offset, bytes)
    }

    fn receive(&self, memory: &Memory, offset: u64, to: &mut [u8]) -> Result<(), WgpuError> {
        memory.receive(&self.link, offset, to)
    }

    fn launch(
        &self,
        memory: &Memory,
        kernel: &ComputePipeline,
        _: u32,
        blocks: u64,
        places: &[u64],
    ) -> Result<(), WgpuError> {
        memory.launch(&self.link, kernel, blocks, places)
    }

    fn space_of(geometry: Geometry) -> [u64; 3] {
        selection::space_of(geometry)
    }

    fn words_of(sought: &Sought) -> Vec<u64> {
        selection::words_of(sought)
    }

    fn select(
        &self,
        memory: &Memory,
        kernels: &Selecting<Self>,
        selections: &Selections,
    ) -> Result<(), WgpuError> {
        selection::select(self, memory, kernels, selections)
    }

    fn filled(&self, memory: &Memory) -> Result<(), WgpuError> {
        memory.filled(&self.link);
        self.link.check("take memory over")
    }

    fn computed(&self, memory: &Memory) -> Result<(), WgpuError> {
        memory.computed(&self.link)
    }

    fn upload(
        lane: &mut Lane,
        memory: &Memory,
        offset: u64,
        length: usize,
        fill: impl FnOnce(&mut [u8]),
    ) -> Result<(), WgpuError> {
        lane.upload(memory, offset, length, fill)
    }

    fn download<T>(
        lane: &mut Lane,
        memory: &Memory,
        offset: u64,
        length: usize,
        take: impl FnOnce(&[u8]) -> T,
    ) -> Result<T, WgpuError> {
        lane.download(memory, offset, length, take)
    }
}

impl std::fmt::Debug for Device {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Device").field("facts", &self.facts).finish_non_exhaustive()
    }
}

/// What a future comes to that a native driver has at once.
pub(super) fn ready<T>(future: impl Future<Output = T>) -> T {
    let mut future = pin!(future);
    loop {
        if let Poll::Ready(value) = future.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            return value;
        }
        std::thread::yield_now();
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::gpu::NoStore;

    /// The first adapter, reached by its memory being the host's or not; `None` where there is none, or it cannot be.
    pub(in crate::wgpu) fn first(is_shared: bool) -> Option<Arc<Device>> {
        let adapters = enumerate();
        let adapter = adapters.first()?;
        if is_shared && !facts_of(adapter).is_shared {
            return None;
        }
        Some(Device::of(adapter, is_shared, Box::new(NoStore)).unwrap())
    }

    #[test]
    fn there_are_so_many_adapters() {
        let count = adapters().len();
        let error = Device::open(count + 1, Box::new(NoStore)).unwrap_err();
        let none = count == 0 && error == WgpuError::NoAdapter;
        assert!(none || error == WgpuError::NoSuchAdapter { ordinal: count + 1, count });
    }
}
