//! Holds leading singular values and their factors to a whole decomposition in f64.

use super::*;
use crate::nn::cpu::testing::{cpu, values as noise};

fn product(a: &[f32], b: &[f32], depth: usize) -> Vec<f32> {
    let columns = b.len() / depth;
    let dot = |i: usize, j: usize| (0..depth).map(|k| a[i * depth + k] * b[k * columns + j]).sum();
    (0..a.len() / depth).flat_map(|i| (0..columns).map(move |j| dot(i, j))).collect()
}

/// The singular values in f64, by nalgebra's own decomposition.
fn exact(matrix: Matrix<'_>) -> Vec<f64> {
    let dense = nalgebra::DMatrix::from_row_iterator(
        matrix.rows,
        matrix.columns,
        matrix.values.iter().map(|&x| f64::from(x)),
    );
    let mut values: Vec<f64> = dense.singular_values().iter().copied().collect();
    values.sort_by(|a, b| b.total_cmp(a));
    values
}

/// The error of rank `rank`, computed from the difference.
fn error(matrix: Matrix<'_>, triplets: &Triplets, rank: usize) -> f64 {
    let (cpu, count) = (cpu(2), triplets.values.len());
    let left: Vec<f32> = triplets.left.chunks(count).flat_map(|row| row[..rank].to_vec()).collect();
    let mut difference = matrix.values.to_vec();
    subtract(&cpu, &left, &triplets.right[..rank * matrix.columns], rank, matrix.columns, &mut difference);
    sum_of_squares(&cpu, &difference).sqrt()
}

fn leading_of(matrix: Matrix<'_>, wanted: usize, threads: usize) -> Triplets {
    leading(&cpu(threads), &matrix, wanted, StreamKey(3), &mut |_| true).unwrap()
}

#[test]
fn errors_are_within_a_hundredth_of_the_best() {
    for (rows, columns) in [(96, 128), (200, 70), (41, 401)] {
        let flat = noise(rows * columns, 1);
        let decaying = {
            let scaled = noise(rows * 64, 2).into_iter().enumerate().map(|(at, x)| x / (1 + at % 64) as f32);
            product(&scaled.collect::<Vec<_>>(), &noise(64 * columns, 3), 64)
        };
        let low = product(&noise(rows * 8, 4), &noise(8 * columns, 5), 8);
        let noisy: Vec<f32> = low.iter().zip(&flat).map(|(low, flat)| low + 0.3 * flat).collect();
        for values in [&flat, &decaying, &noisy] {
            let matrix = Matrix { values, rows, columns };
            let expected = exact(matrix);
            for rank in [1, 4, 16, 30] {
                let triplets = leading_of(matrix, rank, 2);
                let best = expected[rank..].iter().map(|s| s * s).sum::<f64>().sqrt();
                let got = error(matrix, &triplets, rank);
                assert!(
                    got <= 1.01 * best && got >= best * (1.0 - 1e-5),
                    "{rows}x{columns} {rank}: {got} for {best}"
                );
                let first = (triplets.values[0] - expected[0]).abs() / expected[0];
                assert!(first < 1e-2, "{rows}x{columns} {rank}: {} for {}", triplets.values[0], expected[0]);
            }
        }
    }
}

#[test]
fn a_matrix_of_low_rank_is_found_whole() {
    let (rows, columns) = (130, 90);
    let mut left = noise(rows * 5, 6);
    // Spread over four orders of magnitude.
    left.iter_mut().enumerate().for_each(|(at, x)| *x *= 10f32.powi(-((at % 5) as i32)));
    let values = product(&left, &noise(5 * columns, 7), 5);
    let matrix = Matrix { values: &values, rows, columns };
    let norm = sum_of_squares(&cpu(2), &values).sqrt();
    for wanted in [5, 24] {
        let triplets = leading_of(matrix, wanted, 2);
        assert!(error(matrix, &triplets, 5) < 1e-6 * norm, "{}", error(matrix, &triplets, 5) / norm);
    }
    let all = leading_of(matrix, 90, 2);
    assert!(error(matrix, &all, all.values.len()) < 1e-6 * norm);
}

#[test]
fn left_vectors_are_orthonormal_and_right_ones_scaled() {
    let (rows, columns) = (300, 50);
    let values = noise(rows * columns, 8);
    let triplets = leading_of(Matrix { values: &values, rows, columns }, 20, 2);
    let count = triplets.values.len();
    assert_eq!(count, 36);
    let dot = |i: usize, j: usize| -> f64 {
        triplets.left.chunks(count).map(|row| f64::from(row[i]) * f64::from(row[j])).sum()
    };
    for i in 0..count {
        for j in 0..count {
            let expected = if i == j { 1.0 } else { 0.0 };
            assert!((dot(i, j) - expected).abs() < 1e-5, "{i} {j}: {}", dot(i, j));
        }
        let length = sum_of_squares(&cpu(1), &triplets.right[i * columns..(i + 1) * columns]).sqrt();
        assert!((length / triplets.values[i] - 1.0).abs() < 1e-5);
    }
}

#[test]
fn threads_change_no_bit_and_keys_do() {
    let (rows, columns) = (700, 333);
    let values = noise(rows * columns, 9);
    let matrix = Matrix { values: &values, rows, columns };
    let one = leading_of(matrix, 40, 1);
    assert_eq!(leading_of(matrix, 40, 3), one);
    let other = leading(&cpu(1), &matrix, 40, StreamKey(4), &mut |_| true).unwrap();
    assert_ne!(other, one);
}

/// A matrix that is not at hand.
struct Apart<'a>(Matrix<'a>);

impl Rows for Apart<'_> {
    fn sides(&self) -> (usize, usize) {
        self.0.sides()
    }

    fn read(&self, rows: Range<usize>, to: &mut [f32]) {
        self.0.read(rows, to);
    }
}

#[test]
fn a_matrix_that_is_read_in_pieces_has_the_same_triplets() {
    let (rows, columns) = (4100, 2100);
    let low = product(&noise(rows * 3, 10), &noise(3 * columns, 11), 3);
    let values: Vec<f32> = low.iter().zip(noise(rows * columns, 12)).map(|(low, x)| low + 0.01 * x).collect();
    let matrix = Matrix { values: &values, rows, columns };
    let mut pieces = Vec::new();
    each_piece(&Apart(matrix), |rows, _| pieces.push(rows));
    assert_eq!(pieces, [0..3994, 3994..4100]);
    let found = leading_of(matrix, 3, 2);
    let apart = leading(&cpu(1), &Apart(matrix), 3, StreamKey(3), &mut |_| true).unwrap();
    assert_eq!(apart, found);
    // What three values leave is the noise: sums of four uniform numbers, of variance 1.7^2 / 3, a hundredth of them.
    let left = error(matrix, &found, 3) / ((rows * columns) as f64 * 1e-4 * 1.7 * 1.7 / 3.0).sqrt();
    assert!((0.98..1.01).contains(&left), "{left}");
}

#[test]
fn what_has_no_triplets_is_told() {
    let of = |values: &[f32], rows| {
        let matrix = Matrix { values, rows, columns: values.len() / rows };
        leading(&cpu(1), &matrix, 2, StreamKey(0), &mut |_| true)
    };
    assert_eq!(of(&[0.0; 12], 3).unwrap(), Triplets { values: vec![], left: vec![], right: vec![] });
    assert_eq!(of(&[f32::NAN; 12], 3), Err(SvdError::NotFinite));
    assert_eq!(of(&[3e38; 12], 3), Err(SvdError::NotFinite));
    let one = of(&[-2.0], 1).unwrap();
    assert_eq!((one.values.len(), one.left[0] * one.right[0]), (1, -2.0));
    let matrix = Matrix { values: &[1.0; 12], rows: 3, columns: 4 };
    let mut asked = 0;
    let mut stop = |_| {
        asked += 1;
        asked < 4
    };
    assert_eq!(leading(&cpu(1), &matrix, 2, StreamKey(0), &mut stop), Err(SvdError::Stopped));
}
