//! Calls the inputs of the next block into the cache while a block is computed.
//!
//! Blocks of several inputs in turn are no pattern that the hardware follows. A core has few fetches under way at once, so
//! they are spread over the block's instructions: all at once, the core would wait for them.

use super::block::{BLOCK, Segment, Source};
use super::dispatch;
use super::wave::{Wave, WaveKind};

/// Inputs that are fetched ahead; those of a formula of more are left to the hardware.
const INPUTS: usize = 8;

/// Bytes that a fetch brings.
const LINE: usize = 64;

/// What is still to be fetched.
pub(super) struct Ahead<'a> {
    windows: [&'a [u8]; INPUTS],
    current: usize,
    /// Bytes fetched at a time.
    share: usize,
}

impl<'a> Ahead<'a> {
    /// The block after the only segment of one, where a sweep will come to it.
    #[inline(always)]
    pub(super) fn of(wave: &Wave, source: &'a dyn Source, segments: &[Segment]) -> Self {
        let mut ahead = Self { windows: [&[]; INPUTS], current: 0, share: LINE };
        let ([segment], WaveKind::Reduce | WaveKind::Write) = (segments, wave.kind()) else { return ahead };
        let start = segment.elements().end;
        let elements = start..wave.geometry.elements.min(start + BLOCK as u64);
        let mut bytes = 0;
        for (window, &input) in ahead.windows.iter_mut().zip(&wave.program.inputs) {
            if !source.is_made(usize::from(input)) {
                *window = source.bytes(usize::from(input), elements.clone());
                bytes += window.len();
            }
        }
        ahead.share = bytes.div_ceil(wave.program.instructions.len().max(1)).next_multiple_of(LINE);
        ahead
    }

    /// Fetches the next share.
    #[inline(always)]
    pub(super) fn fetch(&mut self) {
        while let Some(window) = self.windows.get_mut(self.current) {
            if window.is_empty() {
                self.current += 1;
                continue;
            }
            let (now, later) = window.split_at(self.share.min(window.len()));
            dispatch::prefetch(now);
            *window = later;
            return;
        }
    }
}
