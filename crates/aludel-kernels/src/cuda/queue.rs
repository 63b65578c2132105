//! Holds operations of a stream back and submits them by batches; a batch that comes again is submitted as a graph, by one call.
//!
//! In: operations in their order, memory to give back. Out: the same, in the same order, later: whoever waits for the stream, or orders it with another, has
//! it [`Queue::flush`]ed first. Steps of a training are the same operations over and over, on the same addresses; what differs are
//! numbers that kernels are told (tables of packed documents, rates), which a graph is told anew. Where a batch is unlike those before in anything else, it
//! is submitted as it is. What is computed is the same either way, in the same order. Small memory is shared out here (`arena`), so that whoever asks for the
//! same in the same order has the same addresses.
//!
//! Large work is not worth it: a batch goes when memory of [`HELD`] bytes waits to be given back, and one of few operations never is a graph.
//! `ALUDEL_GRAPHS=0` does without graphs, and shares no memory out.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hasher};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use cudarc::driver::CudaStream;

use super::CudaError;
use super::arena::Arena;
use super::driver::{driver, free, submit};
use super::graph::Graph;
use super::operation::Operation;

/// Operations that a graph is worth making of.
const LEAST: usize = 16;

/// Operations of a batch: enough that submitting them by one call is nothing, few enough that the device begins early.
const MOST: usize = 128;

/// Bytes that may wait to be given back.
const HELD: usize = 64 << 20;

/// How often a batch has to have come before it is worth a graph, which takes as long to make as some batches do to be submitted.
const OFTEN: u32 = 4;

/// Batches that are remembered, and graphs, which have memory of the device.
const KNOWN: usize = 512;
const GRAPHS: usize = 128;

/// Operations of one stream.
#[derive(Debug)]
pub(crate) struct Queue {
    stream: Arc<CudaStream>,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    makes_graphs: bool,
    /// Operations are written down on it, when a graph is made of them.
    writer: Arc<CudaStream>,
    operations: Vec<Operation>,
    /// Addresses and bytes.
    freed: Vec<(u64, usize)>,
    arena: Arena,
    /// By the forms of their operations.
    known: HashMap<u64, Known>,
    submitted: Submitted,
    /// Of a batch that nobody who could have been told of it has submitted.
    failure: Option<CudaError>,
}

/// A batch that has come before.
#[derive(Debug)]
struct Known {
    /// Batches before it when it came last.
    last: u64,
    graph: Made,
}

#[derive(Debug)]
enum Made {
    /// It has come so often.
    NotYet(u32),
    /// The driver makes none of it, or refuses to tell it what differs.
    Never,
    Graph(Box<Graph>),
}

/// What a stream has been told, and how.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Submitted {
    /// Operations in all.
    pub operations: u64,
    /// Batches of them.
    pub batches: u64,
    /// Operations that went as parts of graphs.
    pub by_graphs: u64,
    /// Graphs that were made.
    pub graphs: u64,
    /// Kernels of graphs that were told other things than the time before.
    pub updates: u64,
}

impl Queue {
    pub(super) fn new(stream: &Arc<CudaStream>) -> Result<Self, CudaError> {
        let state = State {
            makes_graphs: std::env::var("ALUDEL_GRAPHS").map_or(true, |setting| setting != "0"),
            writer: stream.context().new_stream().map_err(driver("make a stream"))?,
            operations: Vec::with_capacity(MOST),
            freed: Vec::new(),
            arena: Arena::default(),
            known: HashMap::new(),
            submitted: Submitted::default(),
            failure: None,
        };
        Ok(Self { stream: Arc::clone(stream), state: Mutex::new(state) })
    }

    /// Takes an operation, with the failure of one before.
    pub(super) fn push(&self, operation: Operation) -> Result<(), CudaError> {
        let mut state = self.lock();
        state.operations.push(operation);
        if state.operations.len() < MOST { Ok(()) } else { state.submit(&self.stream) }
    }

    /// Submits everything.
    pub(super) fn flush(&self) -> Result<(), CudaError> {
        self.lock().submit(&self.stream)
    }

    /// Memory for so many bytes, of what is shared out here: `take` asks the device for more.
    pub(super) fn small(
        &self,
        bytes: usize,
        take: impl FnOnce(usize) -> Result<u64, CudaError>,
    ) -> Option<Result<u64, CudaError>> {
        let mut state = self.lock();
        if !state.shares_out(bytes) {
            return None;
        }
        if let Some(address) = state.arena.take(bytes) {
            return Some(Ok(address));
        }
        let chunk = state.arena.next_chunk(bytes);
        Some(take(chunk).and_then(|start| {
            state.arena.add(start, chunk);
            state.arena.take(bytes).ok_or(CudaError::OutOfMemory { bytes: bytes as u64 })
        }))
    }

    /// Gives memory back after the operations so far.
    pub(super) fn free(&self, address: u64, bytes: usize) {
        let mut state = self.lock();
        state.freed.push((address, bytes));
        let waiting: usize = state.freed.iter().map(|(_, bytes)| bytes).sum();
        if (state.operations.is_empty() || waiting >= HELD)
            && let Err(failure) = state.submit(&self.stream)
        {
            state.failure = Some(failure);
        }
    }

    /// Submits everything, and gives the device all memory back that nobody uses.
    pub(super) fn trim(&self) -> Result<(), CudaError> {
        let mut state = self.lock();
        let submitted = state.submit(&self.stream);
        state.arena.unused().into_iter().for_each(|chunk| free(&self.stream, chunk));
        submitted
    }

    pub(super) fn submitted(&self) -> Submitted {
        self.lock().submitted
    }

    /// A panic elsewhere leaves nothing half-done here.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Queue {
    fn drop(&mut self) {
        // Nobody can look at what the operations would compute.
        let state = self.state.get_mut().unwrap_or_else(PoisonError::into_inner);
        for (address, bytes) in std::mem::take(&mut state.freed) {
            state.give(&self.stream, address, bytes);
        }
        state.arena.drain().for_each(|chunk| free(&self.stream, chunk));
    }
}

impl State {
    fn shares_out(&self, bytes: usize) -> bool {
        self.makes_graphs && Arena::has(bytes)
    }

    fn give(&mut self, stream: &CudaStream, address: u64, bytes: usize) {
        if self.shares_out(bytes) {
            self.arena.give(address, bytes);
        } else {
            free(stream, address);
        }
    }

    fn submit(&mut self, stream: &CudaStream) -> Result<(), CudaError> {
        let operations = std::mem::replace(&mut self.operations, Vec::with_capacity(MOST));
        let submitted = match self.failure.take() {
            Some(failure) => Err(failure),
            None if operations.is_empty() => Ok(()),
            None => self.submit_batch(stream, operations),
        };
        for (address, bytes) in std::mem::take(&mut self.freed) {
            self.give(stream, address, bytes);
        }
        submitted
    }

    fn submit_batch(&mut self, stream: &CudaStream, operations: Vec<Operation>) -> Result<(), CudaError> {
        stream.context().bind_to_thread().map_err(driver("use the device"))?;
        let count = operations.len() as u64;
        self.submitted.batches += 1;
        self.submitted.operations += count;
        match self.graph_of(operations) {
            Err(operations) => one_by_one(stream, &operations),
            Ok(graph) if graph.launch(stream).is_ok() => {
                self.submitted.by_graphs += count;
                Ok(())
            }
            // A device may have memory for its operations, and none for the graph.
            Ok(graph) => one_by_one(stream, graph.operations()),
        }
    }

    /// The graph of a batch, told what differs; or the batch, where there is none.
    fn graph_of(&mut self, operations: Vec<Operation>) -> Result<&Graph, Vec<Operation>> {
        if !self.makes_graphs || operations.len() < LEAST {
            return Err(operations);
        }
        let (form, now) = (form(&operations), self.submitted.batches);
        self.forget(form);
        let known = self.known.entry(form).or_insert(Known { last: now, graph: Made::NotYet(0) });
        known.last = now;
        known.graph = match std::mem::replace(&mut known.graph, Made::Never) {
            Made::NotYet(times) if times < OFTEN => {
                known.graph = Made::NotYet(times + 1);
                return Err(operations);
            }
            Made::NotYet(_) => {
                let graph = Graph::of(&self.writer, operations)?;
                self.submitted.graphs += 1;
                Made::Graph(Box::new(graph))
            }
            Made::Graph(graph) if !graph.has_form_of(&operations) => {
                known.graph = Made::Graph(graph);
                return Err(operations);
            }
            Made::Graph(mut graph) => {
                self.submitted.updates += graph.update(operations)?;
                Made::Graph(graph)
            }
            Made::Never => return Err(operations),
        };
        match &known.graph {
            Made::Graph(graph) => Ok(graph),
            Made::NotYet(_) | Made::Never => unreachable!("a graph has been put there"),
        }
    }

    /// Makes room for a batch that has not come before, and for its graph: the one that has not come for longest goes.
    fn forget(&mut self, form: u64) {
        let is_graph = |known: &Known| matches!(known.graph, Made::Graph(_));
        let oldest = |known: &HashMap<u64, Known>, goes: &dyn Fn(&Known) -> bool| {
            let going = known.iter().filter(|(_, known)| goes(known));
            going.min_by_key(|(_, known)| known.last).map(|(form, _)| *form)
        };
        if self.known.len() >= KNOWN && !self.known.contains_key(&form) {
            oldest(&self.known, &|_| true).and_then(|form| self.known.remove(&form));
        }
        if self.known.get(&form).is_some_and(|known| matches!(known.graph, Made::NotYet(OFTEN)))
            && self.known.values().filter(|known| is_graph(known)).count() >= GRAPHS
        {
            oldest(&self.known, &is_graph).and_then(|form| self.known.remove(&form));
        }
    }
}

fn one_by_one(stream: &CudaStream, operations: &[Operation]) -> Result<(), CudaError> {
    operations.iter().try_for_each(|operation| submit(stream, operation))
}

fn form(operations: &[Operation]) -> u64 {
    let mut hasher = DefaultHasher::new();
    operations.iter().for_each(|operation| operation.hash_form(&mut hasher));
    hasher.finish()
}
