//! Defines the product in f64.

/// `y = scale * x w^T + b` over the rows of `x`, which is `[T, I]`; `w` is `[O, I]`.
pub(super) fn linear(inputs: usize, scale: f64, x: &[f64], w: &[f64], bias: &[f64]) -> Vec<f64> {
    x.chunks(inputs)
        .flat_map(|x| {
            w.chunks(inputs)
                .zip(bias)
                .map(|(w, b)| b + scale * x.iter().zip(w).map(|(x, w)| x * w).sum::<f64>())
                .collect::<Vec<_>>()
        })
        .collect()
}
