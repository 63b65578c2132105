//! Turns the first Ctrl-C or termination request into a flag, and the second into an exit.
//!
//! A run that sees the flag removes what it staged. One that does not come to look at it is ended by the second request;
//! its staging folder then stays, hidden, until the next run on the same target.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::flag;

/// What has been asked for from outside.
pub(crate) struct Signals {
    cancel: Arc<AtomicBool>,
    number: Arc<AtomicUsize>,
}

impl Signals {
    /// Listens from now on. Until then a signal ends the process at once, which is right while nothing has been written.
    pub(crate) fn listen() -> std::io::Result<Self> {
        let signals = Self { cancel: Arc::default(), number: Arc::default() };
        for signal in [SIGINT, SIGTERM] {
            // The order matters: the first signal finds the flag down, and then raises it.
            flag::register_conditional_shutdown(signal, 128 + signal, Arc::clone(&signals.cancel))?;
            flag::register_usize(signal, Arc::clone(&signals.number), signal as usize)?;
            flag::register(signal, Arc::clone(&signals.cancel))?;
        }
        Ok(signals)
    }

    /// Raised by the first signal.
    pub(crate) fn cancel(&self) -> &AtomicBool {
        &self.cancel
    }

    /// The number of the last signal, if there was one.
    pub(crate) fn received(&self) -> Option<u8> {
        Some(self.number.load(Ordering::SeqCst) as u8).filter(|number| *number > 0)
    }
}
