//! Holds what is chosen and how it is weighed against definitions in f64 that compute everything.

use nalgebra::{DMatrix, DVector};

use super::*;
use crate::nn::cpu::testing::values;

struct Rows {
    width: usize,
    values: Vec<f32>,
}

impl Table for Rows {
    fn rows(&self) -> usize {
        self.values.len() / self.width
    }
    fn width(&self) -> usize {
        self.width
    }
    fn read(&self, first: usize, to: &mut [f32]) {
        to.copy_from_slice(&self.values[first * self.width..][..to.len()]);
    }
    fn row(&self, row: usize, to: &mut [f32]) {
        self.read(row, to);
    }
}

fn rows(count: usize, width: usize, seed: u64) -> Rows {
    Rows { width, values: values(count * width, seed) }
}

impl Rows {
    fn column(&self, row: u32) -> DVector<f64> {
        let row = &self.values[row as usize * self.width..][..self.width];
        DVector::from_iterator(self.width, row.iter().map(|&x| f64::from(x)))
    }

    fn matrix(&self, rows: &[u32]) -> DMatrix<f64> {
        DMatrix::from_columns(&rows.iter().map(|&row| self.column(row)).collect::<Vec<_>>())
    }
}

fn vector(vectors: &[f32], index: usize, width: usize) -> DVector<f64> {
    DVector::from_iterator(width, vectors[index * width..][..width].iter().map(|&x| f64::from(x)))
}

/// Orthogonal matching pursuit as it is defined, least squares by singular values.
fn defined(table: &Rows, vector: &DVector<f64>, most: usize) -> Combination {
    let mut chosen: Vec<u32> = Vec::new();
    let mut factors = DVector::zeros(0);
    let mut left = vector.clone();
    for _ in 0..most {
        let mut best = (0.0, None);
        for row in (0..table.rows() as u32).filter(|row| !chosen.contains(row)) {
            let product = table.column(row).dot(&left).abs();
            if product > best.0 {
                best = (product, Some(row));
            }
        }
        chosen.push(best.1.unwrap());
        let matrix = table.matrix(&chosen);
        factors = matrix.clone().svd(true, true).solve(vector, 1e-14).unwrap();
        left = vector - matrix * &factors;
    }
    chosen.into_iter().zip(factors.iter().copied()).collect()
}

fn assert_near(found: &Combination, expected: &Combination, what: &str) {
    let of = |combination: &Combination| combination.iter().map(|(row, _)| *row).collect::<Vec<_>>();
    assert_eq!(of(found), of(expected), "{what}");
    for ((_, found), (_, expected)) in found.iter().zip(expected) {
        assert!(
            (found - expected).abs() <= 1e-9 * expected.abs().max(1.0),
            "{what}: {found}, not {expected}"
        );
    }
}

#[test]
fn matching_pursuit_is_as_defined() {
    // Blocks that are full, one that is not, and a table smaller than a block.
    for (count, width, most) in [(700, 24, 8), (256, 7, 5), (40, 64, 12), (3, 5, 2), (1, 1, 1)] {
        let table = rows(count, width, 1);
        let norms = norms(&table);
        let vectors = values(6 * width, 2);
        let found = matched(&table, &norms, &vectors, most);
        for (index, found) in found.iter().enumerate() {
            let expected = defined(&table, &vector(&vectors, index, width), most);
            assert_near(found, &expected, &format!("{count} rows of {width}, vector {index}"));
        }
    }
}

#[test]
fn a_vector_is_approximated_alike_in_any_company() {
    let table = rows(600, 40, 3);
    let (norms, vectors) = (norms(&table), values(70 * 40, 4));
    let together = matched(&table, &norms, &vectors, 9);
    let near = neighbours(&table, &norms, &vectors, 9, Metric::Euclidean, Weighting::Barycentric);
    for (index, vector) in vectors.chunks_exact(40).enumerate() {
        assert_eq!(matched(&table, &norms, vector, 9), together[index..=index], "{index}");
        let alone = neighbours(&table, &norms, vector, 9, Metric::Euclidean, Weighting::Barycentric);
        assert_eq!(alone, near[index..=index], "{index}");
    }
}

#[test]
fn equal_rows_are_told_by_their_places_and_what_is_explained_is_not_approximated_further() {
    let mut table = rows(300, 12, 5);
    // Three rows are the same, and larger than all others.
    for row in [290, 17, 100] {
        table.values[row * 12..][..12].copy_from_slice(&[3.0; 12]);
    }
    let norms = norms(&table);
    let found = matched(&table, &norms, &[1.5; 12], 4);
    assert_eq!(found, [vec![(17, 0.5)]]);
    let near = neighbours(&table, &norms, &[3.0; 12], 3, Metric::Euclidean, Weighting::DistanceProportional);
    assert_eq!(near[0].iter().map(|(row, _)| *row).collect::<Vec<_>>(), [17, 100, 290]);
    assert!(near[0].iter().all(|(_, weight)| (weight - 1.0 / 3.0).abs() < 1e-12), "{near:?}");
    // The second and third of them are the first: least squares leaves them out.
    let near = neighbours(&table, &norms, &[3.0; 12], 3, Metric::Euclidean, Weighting::LeastSquares);
    assert_eq!(near[0], [(17, 1.0), (100, 0.0), (290, 0.0)]);
    let near = neighbours(&table, &norms, &[3.0; 12], 3, Metric::Euclidean, Weighting::Barycentric);
    assert_eq!(near[0], [(17, 1.0), (100, 0.0), (290, 0.0)]);
}

#[test]
fn nothing_is_approximated_by_nothing() {
    let table = rows(20, 4, 6);
    let norms = norms(&table);
    assert_eq!(matched(&table, &norms, &[0.0; 4], 3), [vec![]]);
    assert_eq!(matched(&table, &norms, &[f32::NAN, 0.0, 0.0, 0.0], 3), [vec![]]);
    assert_eq!(matched(&table, &norms, &[1.0; 4], 0), [vec![]]);
    assert_eq!(matched(&table, &norms, &[], 3), Vec::<Combination>::new());
    // Four rows of four elements leave nothing: there is no fifth.
    assert_eq!(matched(&table, &norms, &values(4, 7), 9)[0].len(), 4);
    let zeros = Rows { width: 4, values: vec![0.0; 8] };
    assert_eq!(matched(&zeros, &super::norms(&zeros), &[1.0; 4], 2), [vec![]]);
    let none = Rows { width: 4, values: Vec::new() };
    assert_eq!(matched(&none, &[], &[1.0; 4], 2), [vec![]]);
    assert_eq!(
        neighbours(&none, &[], &[1.0; 4], 2, Metric::Cosine, Weighting::Barycentric),
        [Combination::new()]
    );
}

#[test]
fn values_too_large_for_products_in_f32_are_compared_in_f64() {
    let mut table = rows(300, 8, 8);
    table.values.iter_mut().for_each(|value| *value *= 1e30);
    let norms = norms(&table);
    let vectors: Vec<f32> = values(3 * 8, 9).iter().map(|value| value * 1e30).collect();
    let found = matched(&table, &norms, &vectors, 3);
    for (index, found) in found.iter().enumerate() {
        assert_near(found, &defined(&table, &vector(&vectors, index, 8), 3), &index.to_string());
    }
}

#[test]
fn the_nearest_rows_are_those_of_all_distances() {
    for (count, width, wanted) in [(900, 16, 20), (257, 5, 1), (30, 9, 40)] {
        let table = rows(count, width, 10);
        let (norms, vectors) = (norms(&table), values(4 * width, 11));
        for metric in [Metric::Euclidean, Metric::Cosine] {
            let found = neighbours(&table, &norms, &vectors, wanted, metric, Weighting::DistanceProportional);
            for (index, found) in found.iter().enumerate() {
                let x = vector(&vectors, index, width);
                let apart = |row: u32| match metric {
                    Metric::Euclidean => (table.column(row) - &x).norm(),
                    Metric::Cosine => -table.column(row).dot(&x) / (x.norm() * table.column(row).norm()),
                };
                let mut all: Vec<u32> = (0..count as u32).collect();
                all.sort_by(|&a, &b| apart(a).total_cmp(&apart(b)));
                all.truncate(wanted);
                let weight = |row: u32| match metric {
                    Metric::Euclidean => 1.0 / apart(row),
                    Metric::Cosine => -apart(row),
                };
                let sum = all.iter().map(|&row| weight(row)).sum::<f64>().max(1e-6);
                let expected = all.iter().map(|&row| (row, weight(row) / sum)).collect();
                assert_near(found, &expected, &format!("{count} rows, {metric:?}, vector {index}"));
            }
        }
    }
}

#[test]
fn weights_are_least_squares_with_and_without_a_sum_of_one() {
    let table = rows(200, 12, 12);
    let (norms, vectors) = (norms(&table), values(3 * 12, 13));
    let neighbours = |weighting| neighbours(&table, &norms, &vectors, 5, Metric::Euclidean, weighting);
    let (free, tied) = (neighbours(Weighting::LeastSquares), neighbours(Weighting::Barycentric));
    for (index, (free, tied)) in free.iter().zip(&tied).enumerate() {
        let x = vector(&vectors, index, 12);
        let rows: Vec<u32> = free.iter().map(|(row, _)| *row).collect();
        let matrix = table.matrix(&rows);
        let solved = matrix.clone().svd(true, true).solve(&x, 1e-14).unwrap();
        assert_near(free, &rows.iter().copied().zip(solved.iter().copied()).collect(), "without");
        // The conditions of a minimum under a constraint: one system of the weights and a multiplier.
        let mut system = DMatrix::from_element(6, 6, 1.0);
        system.view_mut((0, 0), (5, 5)).copy_from(&(matrix.transpose() * &matrix));
        system[(5, 5)] = 0.0;
        let mut right = DVector::from_element(6, 1.0);
        right.rows_mut(0, 5).copy_from(&(matrix.transpose() * &x));
        let solved = system.lu().solve(&right).unwrap();
        assert_near(tied, &rows.iter().copied().zip(solved.iter().copied()).collect(), "with");
        assert!((tied.iter().map(|(_, weight)| weight).sum::<f64>() - 1.0).abs() < 1e-12);
    }
}

/// A table whose results nobody waits for.
struct Unwanted(Rows);

impl Table for Unwanted {
    fn rows(&self) -> usize {
        self.0.rows()
    }
    fn width(&self) -> usize {
        self.0.width()
    }
    fn read(&self, first: usize, to: &mut [f32]) {
        self.0.read(first, to);
    }
    fn row(&self, _: usize, _: &mut [f32]) {
        unreachable!("nothing has been chosen");
    }
    fn is_wanted(&self) -> bool {
        false
    }
}

#[test]
fn what_is_not_wanted_is_given_up() {
    let table = Unwanted(rows(300, 24, 1));
    let (norms, vectors) = (norms(&table), values(5 * 24, 2));
    assert!(matched(&table, &norms, &vectors, 8).iter().all(Vec::is_empty));
    let near = neighbours(&table, &norms, &vectors, 4, Metric::Cosine, Weighting::Barycentric);
    assert!(near.iter().all(Vec::is_empty));
}
