//! Defines a block of experts in f64, row by row and expert by expert.

/// A row's weights of all experts: zero for those that it does not choose.
pub(super) fn weights(logits: &[f64], chosen: usize, renormalise: bool) -> Vec<f64> {
    let most = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let sum: f64 = logits.iter().map(|l| (l - most).exp()).sum();
    let p: Vec<f64> = logits.iter().map(|l| (l - most).exp() / sum).collect();
    let mut order: Vec<usize> = (0..p.len()).collect();
    order.sort_by(|&a, &b| p[b].total_cmp(&p[a]));
    let mut weights = vec![0.0; p.len()];
    for &expert in &order[..chosen] {
        weights[expert] = p[expert];
    }
    let sum: f64 = weights.iter().sum();
    if renormalise {
        weights.iter_mut().for_each(|w| *w /= sum);
    }
    weights
}

/// `y_t = sum over experts of weight * (W_expert x_t)`, with experts of one product each, `[O, I]`.
pub(super) fn mixture(
    (experts, chosen, renormalise): (usize, usize, bool),
    (inputs, outputs): (usize, usize),
    logits: &[f64],
    x: &[f64],
    w: &[f64],
) -> Vec<f64> {
    let mut y = Vec::new();
    for (logits, x) in logits.chunks(experts).zip(x.chunks(inputs)) {
        let weights = weights(logits, chosen, renormalise);
        for o in 0..outputs {
            let value = |expert: usize| -> f64 {
                let w = &w[(expert * outputs + o) * inputs..][..inputs];
                w.iter().zip(x).map(|(w, x)| w * x).sum()
            };
            y.push((0..experts).map(|e| weights[e] * value(e)).sum());
        }
    }
    y
}
