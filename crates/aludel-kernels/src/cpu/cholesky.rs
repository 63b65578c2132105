//! Factors a symmetric matrix and solves for many rows at once, by Cholesky's method over tiles, in f64.
//!
//! In: the lower half of a matrix `S`, put together of several. Out: `X` with `X S = B`, or where `S` is not positive
//! definite. Of each diagonal tile the inverse of its factor is kept instead of the factor, so that everything but that
//! is products of tiles. One thread factors; any number may solve, each a [`Panel`] of its own. Rows are solved apart from
//! one another: their bits depend neither on the panel's height nor on what else is in it.
//!
//! f64, because a Gram matrix has the square of its inputs' condition number: in f32 nothing would be left of the
//! directions that inputs hardly vary in, of which a trained layer has many.

use super::tile::{ROWS, TILE, Tile, add_product};

/// Elements of a tile.
const AREA: usize = TILE * TILE;

/// The lower half of a symmetric matrix, filled up to whole tiles with ones on the diagonal.
#[derive(Debug)]
pub struct Symmetric {
    side: usize,
    /// Tile `(i, j)`, `j <= i`, at `i (i + 1) / 2 + j`.
    tiles: Vec<Tile>,
}

/// The factor of a positive definite matrix: below the diagonal its tiles with the sign changed, on the diagonal inverses.
#[derive(Debug)]
pub struct Factor {
    tiles: Vec<Tile>,
}

/// A matrix that is not positive definite.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Indefinite {
    /// The row and column that depends on those before it, or has no positive diagonal.
    pub at: usize,
}

impl Symmetric {
    /// Bytes that a matrix of that side takes.
    pub fn bytes(side: usize) -> u64 {
        let tiles = side.div_ceil(TILE) as u64;
        tiles * (tiles + 1) / 2 * size_of::<Tile>() as u64
    }

    /// Zeros.
    pub fn zeros(side: usize) -> Self {
        let rows = side.div_ceil(TILE);
        let mut matrix = Self { side, tiles: vec![[0.0; AREA]; rows * (rows + 1) / 2] };
        for row in side..rows * TILE {
            *matrix.at(row, row) = 1.0;
        }
        matrix
    }

    /// Adds `factor` times the values to elements of a row, from a column on; those above the diagonal are ignored.
    ///
    /// # Panics
    /// Where the row lies outside.
    pub fn add(&mut self, row: usize, first: usize, values: &[f32], factor: f64) {
        assert!(row < self.side, "row {row} of {}", self.side);
        for (column, &value) in (first..=row).zip(values) {
            *self.at(row, column) += factor * f64::from(value);
        }
    }

    /// Sets an element of the diagonal.
    ///
    /// # Panics
    /// Where the row lies outside.
    pub fn set_diagonal(&mut self, row: usize, value: f64) {
        assert!(row < self.side, "row {row} of {}", self.side);
        *self.at(row, row) = value;
    }

    fn at(&mut self, row: usize, column: usize) -> &mut f64 {
        let tile = &mut self.tiles[place(row / TILE, column / TILE)];
        &mut tile[row % TILE * TILE + column % TILE]
    }

    /// Factors the matrix, in its own memory. `goes_on` is asked every few million products; `None` where it says no.
    ///
    /// # Errors
    /// [`Indefinite`] where a pivot is not positive beyond what rounding may have left of it.
    pub fn factor(mut self, goes_on: impl Fn() -> bool) -> Result<Option<Factor>, Indefinite> {
        let count = self.side.div_ceil(TILE);
        // What rounding may leave of a pivot, as a share of the diagonal.
        let share = self.side as f64 * f64::EPSILON;
        let padded = 0..count * TILE;
        let least: Vec<f64> = padded.map(|row| share * self.at(row, row).abs()).collect();
        let mut transposed = vec![[0.0; AREA]; count];
        for j in 0..count {
            let diagonal = &mut self.tiles[place(j, j)];
            let least = &least[j * TILE..][..TILE];
            factor_tile(diagonal, least).map_err(|at| Indefinite { at: j * TILE + at })?;
            *diagonal = inverted(diagonal);
            let inverse = transposed_tile(diagonal, -1.0);
            for (i, transposed) in transposed.iter_mut().enumerate().skip(j + 1) {
                let below = &mut self.tiles[place(i, j)];
                let values = std::mem::replace(below, [0.0; AREA]);
                add_product(below, &values, &inverse);
                *transposed = transposed_tile(below, -1.0);
            }
            for i in j + 1..count {
                if !goes_on() {
                    return Ok(None);
                }
                let (rows, others) = self.tiles.split_at_mut(place(i, j + 1));
                let left = &rows[place(i, j)];
                for (k, to) in (j + 1..=i).zip(others) {
                    add_product(to, left, &transposed[k]);
                }
            }
        }
        Ok(Some(Factor { tiles: self.tiles }))
    }
}

impl Factor {
    /// Replaces `B` by the `X` with `X S = B`.
    pub fn solve(&self, panel: &mut Panel) {
        let count = panel.tiles();
        let mut solved = vec![0.0; panel.rows * TILE];
        let mut finish = |to: &mut [f64], inverse: &Tile| {
            solved.fill(0.0);
            add_product(&mut solved, to, inverse);
            to.copy_from_slice(&solved);
        };
        // With S = L L^T: first Y L^T = B, then X L = Y.
        for j in 0..count {
            let (before, to) = panel.split(j);
            for (k, known) in before.enumerate() {
                add_product(to, known, &transposed_tile(&self.tiles[place(j, k)], 1.0));
            }
            finish(to, &transposed_tile(&self.tiles[place(j, j)], 1.0));
        }
        for j in (0..count).rev() {
            let (to, after) = panel.split_after(j);
            for (k, known) in (j + 1..count).zip(after) {
                add_product(to, known, &self.tiles[place(k, j)]);
            }
            finish(to, &self.tiles[place(j, j)]);
        }
    }
}

/// Rows that are solved for, column of tiles by column of tiles, filled up with zeros.
#[derive(Clone, Debug)]
pub struct Panel {
    rows: usize,
    values: Vec<f64>,
}

impl Panel {
    /// Bytes of a panel.
    pub fn bytes(rows: usize, columns: usize) -> u64 {
        (rows.next_multiple_of(ROWS) * columns.next_multiple_of(TILE) * size_of::<f64>()) as u64
    }

    /// Zeros.
    pub fn zeros(rows: usize, columns: usize) -> Self {
        let rows = rows.next_multiple_of(ROWS);
        Self { rows, values: vec![0.0; rows * columns.next_multiple_of(TILE)] }
    }

    /// An element.
    ///
    /// # Panics
    /// Where it lies outside.
    pub fn at(&mut self, row: usize, column: usize) -> &mut f64 {
        assert!(row < self.rows, "row {row} of {}", self.rows);
        &mut self.values[(column / TILE * self.rows + row) * TILE + column % TILE]
    }

    /// Adds the product of the `inner`-th column of tiles of `left` and a tile to the `column`-th column of tiles.
    ///
    /// # Panics
    /// Where one of them lies outside or the panels have different heights.
    pub fn add_product(&mut self, column: usize, left: &Self, inner: usize, tile: &Tile) {
        let (area, rows) = (self.rows * TILE, left.rows * TILE);
        add_product(&mut self.values[column * area..][..area], &left.values[inner * rows..][..rows], tile);
    }

    fn tiles(&self) -> usize {
        self.values.len() / (self.rows * TILE).max(1)
    }

    /// The columns of tiles before the `j`-th, and that one.
    fn split(&mut self, j: usize) -> (impl Iterator<Item = &[f64]>, &mut [f64]) {
        let area = self.rows * TILE;
        let (before, rest) = self.values.split_at_mut(j * area);
        (before.chunks_exact(area), &mut rest[..area])
    }

    /// The `j`-th column of tiles, and those after it.
    fn split_after(&mut self, j: usize) -> (&mut [f64], impl Iterator<Item = &[f64]>) {
        let area = self.rows * TILE;
        let (to, after) = self.values[j * area..].split_at_mut(area);
        (to, after.chunks_exact(area))
    }
}

/// The place of a tile of the lower half.
const fn place(i: usize, j: usize) -> usize {
    i * (i + 1) / 2 + j
}

/// Replaces the lower half of a tile by its factor; the row whose pivot is not above `least`.
fn factor_tile(tile: &mut Tile, least: &[f64]) -> Result<(), usize> {
    for column in 0..TILE {
        for row in column..TILE {
            let product = |k: usize| tile[row * TILE + k] * tile[column * TILE + k];
            let rest = (0..column).fold(tile[row * TILE + column], |rest, k| rest - product(k));
            tile[row * TILE + column] = if row > column {
                rest / tile[column * TILE + column]
            } else if rest > least[column] && rest.is_finite() {
                rest.sqrt()
            } else {
                return Err(column);
            };
        }
    }
    Ok(())
}

/// The inverse of the lower half of a tile, with zeros above the diagonal.
fn inverted(lower: &Tile) -> Tile {
    let mut inverse = [0.0; AREA];
    for column in 0..TILE {
        inverse[column * TILE + column] = 1.0 / lower[column * TILE + column];
        for row in column + 1..TILE {
            let product = |k: usize| lower[row * TILE + k] * inverse[k * TILE + column];
            let sum = (column..row).fold(0.0, |sum, k| sum + product(k));
            inverse[row * TILE + column] = -sum / lower[row * TILE + row];
        }
    }
    inverse
}

/// The transposed tile, times `sign`.
fn transposed_tile(tile: &Tile, sign: f64) -> Tile {
    let mut transposed = [0.0; AREA];
    for (row, values) in tile.as_chunks::<TILE>().0.iter().enumerate() {
        for (column, value) in values.iter().enumerate() {
            transposed[column * TILE + row] = sign * value;
        }
    }
    transposed
}

#[cfg(test)]
mod tests {
    use super::*;

    /// No sequence with a period, which would make columns depend on one another.
    fn value(i: usize) -> f64 {
        f64::from(crate::random::uniform(crate::random::StreamKey(7), i as u64)) - 0.5
    }

    /// `sum x x^T` of so many vectors, and a little on the diagonal.
    fn gram(side: usize, vectors: usize, ridge: f64) -> Vec<f32> {
        let element = |i: usize, j: usize| {
            let sum: f64 = (0..vectors).map(|v| value(v * side + i) * value(v * side + j)).sum();
            (sum + if i == j { ridge } else { 0.0 }) as f32
        };
        (0..side * side).map(|place| element(place / side, place % side)).collect()
    }

    fn symmetric(side: usize, values: &[f32]) -> Symmetric {
        let mut matrix = Symmetric::zeros(side);
        for (row, values) in values.chunks(side).enumerate() {
            matrix.add(row, 0, &values[..side / 2], 0.5);
            matrix.add(row, side / 2, &values[side / 2..], 0.5);
        }
        for (row, values) in values.chunks(side).enumerate() {
            matrix.set_diagonal(row, f64::from(values[row]) / 2.0);
        }
        matrix
    }

    #[test]
    fn what_is_solved_fits_the_matrix() {
        for (side, rows) in [(1, 1), (5, 3), (64, 4), (65, 7), (130, 64), (200, 9)] {
            let values = gram(side, side + 3, 0.5);
            let factor = symmetric(side, &values).factor(|| true).unwrap().unwrap();
            let mut panel = Panel::zeros(rows, side);
            let wanted = |row: usize, column: usize| value(row * side + column + 5);
            for row in 0..rows {
                (0..side).for_each(|column| *panel.at(row, column) = wanted(row, column));
            }
            let mut whole = panel.clone();
            factor.solve(&mut panel);
            for row in 0..rows {
                for column in 0..side {
                    let product = |k: usize| f64::from(values[k * side + column]) / 2.0 * *panel.at(row, k);
                    let back: f64 = (0..side).map(product).sum();
                    assert!((back - wanted(row, column)).abs() < 1e-9, "{side}: {back} at {row}, {column}");
                }
                // Alone, a row has the same bits.
                let mut alone = Panel::zeros(1, side);
                (0..side).for_each(|column| *alone.at(0, column) = *whole.at(row, column));
                factor.solve(&mut alone);
                assert!((0..side).all(|k| alone.at(0, k).to_bits() == panel.at(row, k).to_bits()));
            }
        }
    }

    #[test]
    fn a_matrix_that_is_not_positive_definite_is_told_from_one_that_is() {
        // Fewer vectors than the side: the row after them depends on those before it.
        let failed = symmetric(100, &gram(100, 70, 0.0)).factor(|| true).unwrap_err();
        assert!(failed.at >= 70, "{failed:?}");
        assert!(symmetric(100, &gram(100, 70, 1e-3)).factor(|| true).is_ok());
        assert!(symmetric(100, &gram(100, 70, 1e-3)).factor(|| false).unwrap().is_none());
        let mut negative = symmetric(3, &gram(3, 9, 0.0));
        negative.set_diagonal(1, -1.0);
        assert_eq!(negative.factor(|| true).unwrap_err(), Indefinite { at: 1 });
        let mut unknown = symmetric(3, &gram(3, 9, 0.0));
        unknown.set_diagonal(2, f64::NAN);
        assert_eq!(unknown.factor(|| true).unwrap_err(), Indefinite { at: 2 });
    }
}
