//! Defines the rotation in f64.

pub(super) fn rotate(
    sign: f64,
    (heads, width, rotated): (usize, usize, usize),
    cos: &[f64],
    sin: &[f64],
    positions: &[u32],
    x: &[f64],
) -> Vec<f64> {
    let half = rotated / 2;
    let mut y = x.to_vec();
    for (t, &position) in positions.iter().enumerate() {
        for head in 0..heads {
            for i in 0..half {
                let (c, s) = (cos[position as usize * half + i], sign * sin[position as usize * half + i]);
                let (low, high) = ((t * heads + head) * width + i, (t * heads + head) * width + i + half);
                y[low] = x[low] * c - x[high] * s;
                y[high] = x[high] * c + x[low] * s;
            }
        }
    }
    y
}
