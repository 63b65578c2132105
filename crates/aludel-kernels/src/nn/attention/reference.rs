//! Defines attention in f64, with all scores at once.

use crate::nn::device::{Attention, Span};

/// The output and the log-sum-exps.
pub(super) fn attention(
    a: &Attention,
    spans: &[Span],
    q: &[f64],
    k: &[f64],
    v: &[f64],
) -> (Vec<f64>, Vec<f64>) {
    let (mut y, mut lse) = (vec![0.0; q.len()], vec![0.0; q.len() / a.width]);
    for span in spans {
        for query in span.queries.clone() {
            for head in 0..a.heads {
                let row = (query * a.heads + head) * a.width;
                let q = &q[row..row + a.width];
                let last = span.keys.end - (span.queries.end - query);
                let first = a.window.map_or(0, |window| (last + 1).saturating_sub(window));
                let keys = first.max(span.keys.start)..last + 1;
                let of_key = |key: usize| (key * a.key_heads + head / (a.heads / a.key_heads)) * a.width;
                let scores: Vec<f64> = keys
                    .clone()
                    .map(|key| {
                        let dot: f64 = q.iter().zip(&k[of_key(key)..]).map(|(q, k)| q * k).sum();
                        let score = f64::from(a.scale) * dot;
                        a.soft_cap.map(f64::from).map_or(score, |cap| cap * (score / cap).tanh())
                    })
                    .collect();
                let most = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                let sum: f64 = scores.iter().map(|s| (s - most).exp()).sum();
                lse[row / a.width] = most + sum.ln();
                for (key, score) in keys.zip(scores) {
                    let p = (score - most).exp() / sum;
                    for (y, v) in y[row..row + a.width].iter_mut().zip(&v[of_key(key)..]) {
                        *y += p * v;
                    }
                }
            }
        }
    }
    (y, lse)
}
