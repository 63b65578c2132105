//! Sweeps a row of logits for what a cache keeps of it.

use super::dispatch;
use super::lanes::FLOOR;
use super::softmax::Softmax;

/// Columns whose greatest logit is looked at first.
const BLOCK: usize = 128;

/// `log sum e^(z / tau)`; NaN where there is a NaN, or no logit at all.
pub(in crate::loss) fn log_sum(logits: &[f32], temperature: f32) -> f64 {
    let tau = f64::from(temperature);
    softmax(logits, temperature).log(tau) / tau
}

fn softmax(logits: &[f32], temperature: f32) -> Softmax {
    let (mut softmax, mut room, mut exponentials) = (Softmax::EMPTY, [0.0; BLOCK], [0.0; BLOCK]);
    for block in logits.chunks(BLOCK) {
        dispatch::floor(block, &mut room);
        softmax.take(&room, 1.0 / temperature, &mut exponentials);
    }
    softmax
}

/// Some neighbouring columns of a row.
pub(in crate::loss) struct Block<'a> {
    /// Where they begin.
    pub(in crate::loss) start: usize,
    /// Their probabilities; 0 behind the last column.
    pub(in crate::loss) p: &'a [f32],
    /// The sum of these.
    pub(in crate::loss) sum: f64,
    /// What they add to the entropy.
    pub(in crate::loss) entropy: f64,
}

/// Hands out the probabilities of a row, block after block.
pub(in crate::loss) fn each_block(logits: &[f32], temperature: f32, mut take: impl FnMut(Block<'_>)) {
    let softmax = softmax(logits, temperature);
    let (inverse, share) = (1.0 / temperature, (1.0 / softmax.total()) as f32);
    // log p = (z - most) / tau - shift
    let shift = softmax.total().ln() as f32;
    let (mut room, mut p) = ([0.0; BLOCK], [0.0; BLOCK]);
    for (at, block) in logits.chunks(BLOCK).enumerate() {
        dispatch::floor(block, &mut room);
        dispatch::exponentials(&room, softmax.most, inverse, share, &mut p);
        let sum = dispatch::sum(&p);
        room.iter_mut().zip(&p).for_each(|(z, p)| *z = p * (shift - (*z - softmax.most) * inverse));
        take(Block { start: at * BLOCK, p: &p, sum, entropy: dispatch::sum(&room) });
    }
}

/// The least finite logit and the greatest; `None` where one is NaN or infinity, or none is finite.
pub(in crate::loss) fn extent(logits: &[f32]) -> Option<(f32, f32)> {
    let (mut extent, mut room) = ((f32::INFINITY, FLOOR), [0.0; BLOCK]);
    for block in logits.chunks(BLOCK) {
        dispatch::floor(block, &mut room);
        let (least, most) = dispatch::extent(&room)?;
        extent = (extent.0.min(least), extent.1.max(most));
    }
    (extent.0 <= extent.1).then_some(extent)
}

/// Rounds logits to levels, a level to each of `to`, and gives the sum of `e^(z - top)` over those whose level is 0.
pub(in crate::loss) fn levels(logits: &[f32], (top, step): (f32, f32), most: u8, to: &mut [u8]) -> f64 {
    let (mut sum, mut room, mut p, mut found) = (0.0, [0.0; BLOCK], [0.0; BLOCK], [0; BLOCK]);
    for (block, to) in logits.chunks(BLOCK).zip(to.chunks_mut(BLOCK)) {
        dispatch::floor(block, &mut room);
        dispatch::levels(&room, top, step, most, &mut found);
        to.copy_from_slice(&found[..to.len()]);
        if to.contains(&0) {
            dispatch::exponentials(&room, top, 1.0, 1.0, &mut p);
            sum += dispatch::sum_below(&p, &found);
        }
    }
    sum
}

/// All columns that can be among the `k` greatest, and not many more: the k-th greatest of the blocks' greatest logits is a bound,
/// since so many blocks have a logit that is no less.
pub(in crate::loss) fn above(logits: &[f32], k: usize) -> Vec<(u32, f32)> {
    let mut room = [0.0; BLOCK];
    let greatest: Vec<f32> = logits
        .chunks(BLOCK)
        .map(|block| {
            dispatch::floor(block, &mut room);
            dispatch::greatest(&room, FLOOR)
        })
        .collect();
    let bound = match k.checked_sub(1).filter(|at| *at < greatest.len()) {
        Some(at) => *greatest.clone().select_nth_unstable_by(at, |a, b| b.total_cmp(a)).1,
        None => f32::NEG_INFINITY,
    };
    let blocks = logits.chunks(BLOCK).zip(greatest).enumerate();
    let columns = blocks.filter(|(_, (_, most))| *most >= bound).flat_map(|(at, (block, _))| {
        let columns = block.iter().enumerate().map(move |(column, &z)| ((at * BLOCK + column) as u32, z));
        columns.filter(move |(_, z)| *z >= bound)
    });
    columns.collect()
}
