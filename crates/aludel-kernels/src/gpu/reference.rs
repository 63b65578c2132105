//! Computes a tensor as the CPU's executor does: what devices are held to before they are trusted, tuned or tested.

use std::ops::Range;
use std::sync::Arc;

use super::batch::Tensor;
use crate::cpu::{CHUNK, Compiled, Evaluation, Job, Scratch, Source, WaveKind};
use crate::element::Element;

/// The bytes of a tensor's output, by the stored bytes of its inputs, which are finite.
pub(crate) fn on_the_cpu(tensor: &Tensor, inputs: &[Vec<u8>]) -> Vec<u8> {
    let Tensor { formula, geometry, streams, output, .. } = tensor;
    let tile = geometry.elements.next_multiple_of(CHUNK);
    let compiled = Arc::new(Compiled::new(Arc::clone(formula)));
    let job = Job { streams: streams.clone(), ..Job::new(compiled, *geometry, *output, tile) };
    let mut scratch = Scratch::default();
    let mut out = vec![0; geometry.elements as usize * output.size()];
    let (mut evaluation, mut wave) = Evaluation::start(job);
    let source = Stored { elements: &tensor.inputs, bytes: inputs };
    loop {
        let to = if wave.kind() == WaveKind::Write { &mut out[..] } else { &mut [] };
        // One tile covers the tensor, and what is finite fails nothing.
        let _ = wave.run(0, &source, &mut scratch, to);
        match evaluation.advance(&wave) {
            Some(next) => wave = next,
            None => return out,
        }
    }
}

struct Stored<'a> {
    elements: &'a [Element],
    bytes: &'a [Vec<u8>],
}

impl Source for Stored<'_> {
    fn element(&self, input: usize) -> Element {
        self.elements[input]
    }

    fn bytes(&self, input: usize, elements: Range<u64>) -> &[u8] {
        let width = self.elements[input].size();
        &self.bytes[input][width * elements.start as usize..width * elements.end as usize]
    }
}
