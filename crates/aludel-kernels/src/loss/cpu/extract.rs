//! Sweeps a row of logits for what a cache keeps of it.

use super::dispatch;
use super::lanes::FLOOR;
use super::softmax::Softmax;

/// Columns whose greatest logit is looked at first.
const BLOCK: usize = 128;

/// `log sum e^(z / tau)`; NaN where there is a NaN, or no logit at all.
pub(in crate::loss) fn log_sum(logits: &[f32], temperature: f32) -> f64 {
    let tau = f64::from(temperature);
    let (mut softmax, mut room, mut exponentials) = (Softmax::EMPTY, [0.0; BLOCK], [0.0; BLOCK]);
    for block in logits.chunks(BLOCK) {
        dispatch::floor(block, &mut room);
        softmax.take(&room, 1.0 / temperature, &mut exponentials);
    }
    softmax.log(tau) / tau
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
