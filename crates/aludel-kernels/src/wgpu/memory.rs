//! Holds what batches live in: a buffer of tables and working space, one of inputs and outputs, and the launches that wait to be submitted.
//!
//! Launches are recorded, and submitted together when something is waited for. Where the device's memory is the host's, inputs and outputs are mapped, and
//! lanes write and read them where they lie; elsewhere they go by way of a lane's own buffer, a piece at a time.

use std::sync::mpsc;
use std::sync::{Arc, Mutex, PoisonError};

use ::wgpu::{
    BindGroup, BindGroupDescriptor, BindGroupEntry, BindGroupLayout, BindingResource, Buffer, BufferBinding,
    BufferDescriptor, BufferSize, BufferUsages, CommandEncoder, CommandEncoderDescriptor,
    ComputePassDescriptor, ComputePipeline, ErrorFilter, MapMode, PollType, Queue, SubmissionIndex,
};

use super::WgpuError;
use super::device::ready;
use crate::gpu::Sizes;

/// Blocks of one row of a dispatch; see `text/prelude.wgsl`.
const ROW: u64 = 32_768;

/// Words that a kernel is told; see `text/prelude.wgsl`.
const TOLD: usize = 8;

/// Launches that are submitted at once, at the most.
const LAUNCHES: usize = 512;

/// Copies and maps are of whole words.
const WORD: u64 = 4;

/// The device, as its memory sees it.
#[derive(Debug)]
pub(super) struct Link {
    pub(super) device: ::wgpu::Device,
    pub(super) queue: Queue,
    pub(super) layout: BindGroupLayout,
    /// Whether the device's memory is the host's.
    pub(super) is_shared: bool,
    /// What the device has complained about.
    pub(super) complaint: Arc<Mutex<Option<String>>>,
}

/// What a batch lives in.
#[derive(Debug)]
pub struct Memory {
    state: Buffer,
    data: Buffer,
    told: Buffer,
    /// Bytes from what one kernel is told to what the next one is.
    stride: u64,
    group: BindGroup,
    pending: Mutex<Vec<Launch>>,
}

#[derive(Debug)]
struct Launch {
    kernel: ComputePipeline,
    blocks: u64,
    told: [u32; TOLD],
}

/// Moves bytes between the host and a device, for one thread.
#[derive(Debug)]
pub struct Lane {
    link: Arc<Link>,
    host: Vec<u8>,
    /// Buffers that pieces go by way of, up and down, where memory is not shared.
    ways: Option<[Buffer; 2]>,
}

impl Link {
    fn buffer(&self, bytes: u64, usage: BufferUsages, is_mapped: bool) -> Result<Buffer, WgpuError> {
        let size = bytes.max(WORD).next_multiple_of(16);
        let scope = self.device.push_error_scope(ErrorFilter::OutOfMemory);
        let descriptor = BufferDescriptor { label: None, size, usage, mapped_at_creation: is_mapped };
        let buffer = self.device.create_buffer(&descriptor);
        match ready(scope.pop()) {
            Some(_) => Err(WgpuError::OutOfMemory { bytes }),
            None => Ok(buffer),
        }
    }

    /// Says what the device has complained about.
    pub(super) fn check(&self, doing: &'static str) -> Result<(), WgpuError> {
        let complaint = self.complaint.lock().unwrap_or_else(PoisonError::into_inner).take();
        complaint.map_or(Ok(()), |message| Err(WgpuError::Failed { doing, message }))
    }

    fn encoder(&self) -> CommandEncoder {
        self.device.create_command_encoder(&CommandEncoderDescriptor::default())
    }

    fn submit(&self, encoder: CommandEncoder) -> SubmissionIndex {
        self.queue.submit([encoder.finish()])
    }

    /// Maps a buffer; waits for what was submitted so far that has to do with it.
    fn map(
        &self,
        buffer: &Buffer,
        bytes: u64,
        mode: MapMode,
        after: Option<SubmissionIndex>,
    ) -> Result<(), WgpuError> {
        let failed = |message: String| WgpuError::Failed { doing: "map memory", message };
        let (told, answer) = mpsc::channel();
        buffer.slice(..bytes).map_async(mode, move |result| {
            // Nobody listens where waiting has failed.
            let _ = told.send(result);
        });
        let wait = PollType::Wait { submission_index: after, timeout: None };
        self.device.poll(wait).map_err(|error| failed(error.to_string()))?;
        self.check("map memory")?;
        answer.recv().map_err(|error| failed(error.to_string()))?.map_err(|error| failed(error.to_string()))
    }
}

impl Memory {
    pub(super) fn new(link: &Link, sizes: Sizes, earlier: Option<Self>) -> Result<Self, WgpuError> {
        let earlier = earlier.filter(|memory| memory.data.size() >= sizes.data);
        if let Some(memory) = &earlier
            && link.is_shared
        {
            memory.data.unmap();
            link.map(&memory.data, memory.data.size(), MapMode::Write, None)?;
        }
        let kept = match earlier {
            Some(memory) if memory.state.size() >= sizes.working => return Ok(memory),
            Some(memory) => Some(memory.data),
            None => None,
        };
        let copied = BufferUsages::STORAGE | BufferUsages::COPY_SRC | BufferUsages::COPY_DST;
        let mapped = if link.is_shared {
            BufferUsages::MAP_READ | BufferUsages::MAP_WRITE
        } else {
            BufferUsages::empty()
        };
        let state = link.buffer(sizes.working, copied, false)?;
        let data = kept.map_or_else(|| link.buffer(sizes.data, copied | mapped, link.is_shared), Ok)?;
        let stride = u64::from(link.device.limits().min_uniform_buffer_offset_alignment).max(4 * TOLD as u64);
        let usage = BufferUsages::UNIFORM | BufferUsages::COPY_DST;
        let told = link.buffer(stride * LAUNCHES as u64, usage, false)?;
        let one = BufferBinding { buffer: &told, offset: 0, size: BufferSize::new(4 * TOLD as u64) };
        let resources = [BindingResource::Buffer(one), state.as_entire_binding(), data.as_entire_binding()];
        let entries: Vec<BindGroupEntry<'_>> =
            (0..).zip(resources).map(|(binding, resource)| BindGroupEntry { binding, resource }).collect();
        let layout = &link.layout;
        let descriptor = BindGroupDescriptor { label: None, layout, entries: &entries };
        let group = link.device.create_bind_group(&descriptor);
        link.check("set memory up")?;
        Ok(Self { state, data, told, stride, group, pending: Mutex::default() })
    }

    /// Sends bytes to tables or working space: before everything that is not submitted yet.
    pub(super) fn send(&self, link: &Link, offset: u64, bytes: &[u8]) -> Result<(), WgpuError> {
        let whole = bytes.len().next_multiple_of(WORD as usize);
        if whole == bytes.len() {
            link.queue.write_buffer(&self.state, offset, bytes);
        } else {
            let mut padded = bytes.to_vec();
            padded.resize(whole, 0);
            link.queue.write_buffer(&self.state, offset, &padded);
        }
        link.check("send tables to the device")
    }

    /// Records a launch.
    pub(super) fn launch(
        &self,
        link: &Link,
        kernel: &ComputePipeline,
        blocks: u64,
        places: &[u64],
    ) -> Result<(), WgpuError> {
        if blocks == 0 {
            return Ok(());
        }
        let mut told = [0; TOLD];
        // The second word is the veil, which is 0.
        told[0] = blocks as u32;
        told[2..].iter_mut().zip(places).for_each(|(told, &place)| *told = place as u32);
        let mut pending = self.pending();
        pending.push(Launch { kernel: kernel.clone(), blocks, told });
        if pending.len() < LAUNCHES {
            return Ok(());
        }
        let mut encoder = link.encoder();
        self.record(link, &mut encoder, &mut pending);
        link.submit(encoder);
        link.check("start kernels")
    }

    fn record(&self, link: &Link, encoder: &mut CommandEncoder, pending: &mut Vec<Launch>) {
        if pending.is_empty() {
            return;
        }
        let mut bytes = vec![0; pending.len() * self.stride as usize];
        for (to, launch) in bytes.chunks_mut(self.stride as usize).zip(&*pending) {
            for (to, word) in to.as_chunks_mut().0.iter_mut().zip(launch.told) {
                *to = word.to_le_bytes();
            }
        }
        link.queue.write_buffer(&self.told, 0, &bytes);
        let mut pass = encoder.begin_compute_pass(&ComputePassDescriptor::default());
        for (at, launch) in pending.drain(..).enumerate() {
            pass.set_pipeline(&launch.kernel);
            pass.set_bind_group(0, &self.group, &[(at as u64 * self.stride) as u32]);
            pass.dispatch_workgroups(launch.blocks.min(ROW) as u32, launch.blocks.div_ceil(ROW) as u32, 1);
        }
    }

    /// Submits what is recorded, waits for it, and copies bytes of tables or working space.
    pub(super) fn receive(&self, link: &Link, offset: u64, to: &mut [u8]) -> Result<(), WgpuError> {
        let bytes = (to.len() as u64).next_multiple_of(WORD);
        let usage = BufferUsages::COPY_DST | BufferUsages::MAP_READ;
        let way = link.buffer(bytes, usage, false)?;
        let mut encoder = link.encoder();
        self.record(link, &mut encoder, &mut self.pending());
        encoder.copy_buffer_to_buffer(&self.state, offset, &way, 0, bytes);
        let after = link.submit(encoder);
        link.map(&way, bytes, MapMode::Read, Some(after))?;
        read(&way, 0, to.len(), |bytes| to.copy_from_slice(bytes))
    }

    /// Hands inputs and outputs, which lanes have filled, to the device.
    pub(super) fn filled(&self, link: &Link) {
        if link.is_shared {
            self.data.unmap();
        }
    }

    /// Hands inputs and outputs, which nothing computes on any more, to lanes.
    pub(super) fn computed(&self, link: &Link) -> Result<(), WgpuError> {
        if link.is_shared {
            link.map(&self.data, self.data.size(), MapMode::Read, None)?;
        }
        Ok(())
    }

    fn pending(&self) -> std::sync::MutexGuard<'_, Vec<Launch>> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Lane {
    pub(super) fn new(link: &Arc<Link>, bytes: usize) -> Result<Self, WgpuError> {
        let way = |usage| link.buffer(bytes as u64, usage, false);
        let ways = if link.is_shared {
            None
        } else {
            let up = way(BufferUsages::MAP_WRITE | BufferUsages::COPY_SRC)?;
            Some([up, way(BufferUsages::MAP_READ | BufferUsages::COPY_DST)?])
        };
        Ok(Self { link: Arc::clone(link), host: vec![0; bytes], ways })
    }

    pub(super) fn upload(
        &mut self,
        memory: &Memory,
        offset: u64,
        length: usize,
        fill: impl FnOnce(&mut [u8]),
    ) -> Result<(), WgpuError> {
        let Self { link, host, ways } = self;
        let bytes = &mut host[..length];
        fill(bytes);
        let Some([up, _]) = ways else { return write(&memory.data, offset, bytes) };
        let whole = (length as u64).next_multiple_of(WORD);
        link.map(up, whole, MapMode::Write, None)?;
        write(up, 0, bytes)?;
        up.unmap();
        let mut encoder = link.encoder();
        encoder.copy_buffer_to_buffer(up, 0, &memory.data, offset, whole);
        link.submit(encoder);
        link.check("copy to the device")
    }

    pub(super) fn download<T>(
        &mut self,
        memory: &Memory,
        offset: u64,
        length: usize,
        take: impl FnOnce(&[u8]) -> T,
    ) -> Result<T, WgpuError> {
        let Self { link, ways, .. } = self;
        let Some([_, down]) = ways else { return read(&memory.data, offset, length, take) };
        let whole = (length as u64).next_multiple_of(WORD);
        let mut encoder = link.encoder();
        encoder.copy_buffer_to_buffer(&memory.data, offset, down, 0, whole);
        let after = link.submit(encoder);
        link.map(down, whole, MapMode::Read, Some(after))?;
        let taken = read(down, 0, length, take)?;
        down.unmap();
        Ok(taken)
    }
}

/// Writes bytes into a mapped buffer.
fn write(buffer: &Buffer, offset: u64, bytes: &[u8]) -> Result<(), WgpuError> {
    let end = offset + (bytes.len() as u64).next_multiple_of(WORD);
    let mut view = buffer.get_mapped_range_mut(offset..end).map_err(unmapped)?;
    view.slice(..bytes.len()).copy_from_slice(bytes);
    Ok(())
}

/// Has `take` see bytes of a mapped buffer.
fn read<T>(
    buffer: &Buffer,
    offset: u64,
    length: usize,
    take: impl FnOnce(&[u8]) -> T,
) -> Result<T, WgpuError> {
    let end = offset + (length as u64).next_multiple_of(WORD);
    let view = buffer.get_mapped_range(offset..end).map_err(unmapped)?;
    Ok(take(&view[..length]))
}

fn unmapped(error: impl std::fmt::Display) -> WgpuError {
    WgpuError::Failed { doing: "reach mapped memory", message: error.to_string() }
}
