//! Keeps a bounded number of requests on their way, and puts what they bring back in order.
//!
//! In: pieces in order. Out: their rows, stored in that order, each once: a piece has a number, and only the next number is ever stored.
//! What was stored is kept when a later piece fails.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};

use aludel_cache::{RecordId, SparseRows};
use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded, unbounded};

use super::client::Fault;
use super::endpoint::Endpoint;
use crate::cache::capture::Speaker;
use crate::cache::store::{Gathered, Store};
use crate::data::Document;
use crate::error::Error;

/// Pieces that are asked for or wait to be stored, for each request at once: so that a slow answer does not make the others wait.
const AHEAD: usize = 4;

/// How long it is before a request to stop is noticed.
const GLANCE: Duration = Duration::from_millis(100);

/// A served teacher at work.
pub(crate) struct ServedRows {
    endpoint: Arc<Endpoint>,
    jobs: Sender<(u64, Arc<Document>)>,
    answers: Receiver<(u64, Result<SparseRows, Fault>)>,
    stop: Arc<AtomicBool>,
    /// Pieces that are not stored yet, in order; the first has the number `next`.
    waiting: VecDeque<(RecordId, Arc<Document>)>,
    next: u64,
    /// Answers that came before their turn.
    ready: BTreeMap<u64, Result<SparseRows, Fault>>,
    room: usize,
    seconds: f64,
}

impl ServedRows {
    /// Threads are not waited for: one that still waits for an answer ends when that comes.
    pub(crate) fn start(endpoint: Endpoint) -> Self {
        let concurrency = endpoint.at_once();
        let endpoint = Arc::new(endpoint);
        let stop = Arc::new(AtomicBool::new(false));
        let (jobs, queue) = bounded::<(u64, Arc<Document>)>(concurrency * AHEAD);
        let (answer, answers) = unbounded();
        for _ in 0..concurrency {
            let (endpoint, stop) = (Arc::clone(&endpoint), Arc::clone(&stop));
            let (queue, answer) = (queue.clone(), answer.clone());
            thread::spawn(move || {
                for (number, document) in queue {
                    if answer.send((number, endpoint.rows(&document, &stop))).is_err() {
                        return;
                    }
                }
            });
        }
        let room = concurrency * AHEAD;
        let (waiting, ready) = (VecDeque::new(), BTreeMap::new());
        Self { endpoint, jobs, answers, stop, waiting, next: 0, ready, room, seconds: 0.0 }
    }

    /// Waits for an answer, and stores all whose turn it is.
    fn receive(&mut self, store: &mut Store<'_>) -> Result<(), Error> {
        let begin = Instant::now();
        let (number, answer) = loop {
            store.check_cancel()?;
            match self.answers.recv_timeout(GLANCE) {
                Ok(answer) => break answer,
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => {
                    return Err(Error::internal("no thread asks any more"));
                }
            }
        };
        self.seconds += begin.elapsed().as_secs_f64();
        self.ready.insert(number, answer);
        while let Some(answer) = self.ready.remove(&self.next) {
            let rows = answer.map_err(|fault| self.endpoint.error(fault))?;
            let Some((id, document)) = self.waiting.pop_front() else {
                return Err(Error::internal("an answer to nothing"));
            };
            store.append(id, &document, Gathered::Sparse(vec![rows]))?;
            self.next += 1;
        }
        Ok(())
    }
}

impl Speaker for ServedRows {
    fn take(&mut self, id: RecordId, document: Document, store: &mut Store<'_>) -> Result<(), Error> {
        while self.waiting.len() >= self.room {
            self.receive(store)?;
        }
        let (number, document) = (self.next + self.waiting.len() as u64, Arc::new(document));
        self.waiting.push_back((id, Arc::clone(&document)));
        self.jobs.send((number, document)).map_err(|_| Error::internal("no thread asks any more"))
    }

    fn outstanding(&self) -> usize {
        self.waiting.len()
    }

    fn settle(&mut self, store: &mut Store<'_>) -> Result<(), Error> {
        if self.waiting.is_empty() { Ok(()) } else { self.receive(store) }
    }

    fn seconds(&self) -> f64 {
        self.seconds
    }
}

impl Drop for ServedRows {
    fn drop(&mut self) {
        self.stop.store(true, Relaxed);
    }
}
