//! Defines the update in f64, as the paper's algorithm states it.

use crate::nn::device::Update;

/// New parameter, first and second moment.
pub(super) fn adamw(u: &Update, gradient: f64, [w, m, v]: [f64; 3]) -> [f64; 3] {
    let (b1, b2, lr) = (f64::from(u.beta1), f64::from(u.beta2), f64::from(u.learning_rate));
    let g = gradient * f64::from(u.gradient_scale);
    let m = b1 * m + (1.0 - b1) * g;
    let v = b2 * v + (1.0 - b2) * g * g;
    let m_hat = m / (1.0 - b1.powf(u.step as f64));
    let v_hat = v / (1.0 - b2.powf(u.step as f64));
    let w = w - lr * f64::from(u.weight_decay) * w - lr * m_hat / (v_hat.sqrt() + f64::from(u.epsilon));
    [w, m, v]
}
