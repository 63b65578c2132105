//! Prepares steps on a thread of its own, a few ahead of the training.
//!
//! In: a [`Stream`]. Out: its steps, in its order. The thread waits when it is far enough ahead, and ends when the loader is
//! dropped.

use std::panic::resume_unwind;
use std::sync::mpsc::{Receiver, sync_channel};
use std::thread::JoinHandle;

use super::stream::{Step, Stream};
use crate::error::Error;

/// Steps that are prepared in the background.
#[derive(Debug)]
pub struct Loader {
    /// `None` only while it is dropped.
    steps: Option<Receiver<Result<Step, Error>>>,
    thread: Option<JoinHandle<()>>,
}

impl Loader {
    /// Starts to prepare up to `ahead` steps; at least one is.
    ///
    /// # Errors
    /// [`Error::Io`]: the system has no thread to spare.
    pub fn start(mut stream: Stream, ahead: usize) -> Result<Self, Error> {
        let (sender, steps) = sync_channel(ahead.max(1));
        let work = move || {
            while let Some(step) = stream.next_step().transpose() {
                let failed = step.is_err();
                // Nobody waits any more when the loader is gone.
                if sender.send(step).is_err() || failed {
                    return;
                }
            }
        };
        let thread = std::thread::Builder::new().name("data".to_owned()).spawn(work);
        let thread = thread.map_err(Error::io("start a thread for", std::path::Path::new("the data")))?;
        Ok(Self { steps: Some(steps), thread: Some(thread) })
    }
}

impl Iterator for Loader {
    type Item = Result<Step, Error>;

    /// The next step, once it is ready. After an error there is none.
    fn next(&mut self) -> Option<Self::Item> {
        match self.steps.as_ref()?.recv() {
            Ok(step) => Some(step),
            // The thread is done; had it panicked, the data would seem to end here.
            Err(_) => match self.thread.take()?.join() {
                Ok(()) => None,
                Err(panic) => resume_unwind(panic),
            },
        }
    }
}

impl Drop for Loader {
    fn drop(&mut self) {
        drop(self.steps.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join(); // What it would have given is not wanted any more.
        }
    }
}
