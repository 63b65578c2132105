//! Splits an output into windows that many threads write at once, and multiplies matrices into them.
//!
//! In: an exclusive slice and the rows and columns of each window. Out: windows that do not overlap. The only place where
//! the library of products is called; every call computes one window on one thread, so that what is computed depends on the
//! windows alone.
#![expect(
    unsafe_code,
    reason = "windows of one slice on several threads, and the library of products, take pointers"
)]

use std::marker::PhantomData;
use std::ops::Range;

use crate::nn::device::Accumulate;

/// An exclusive borrow of some rows and columns of a row-major array.
pub(in crate::nn) struct Window<'a> {
    start: *mut f32,
    stride: usize,
    rows: Range<usize>,
    columns: Range<usize>,
    owner: PhantomData<&'a mut [f32]>,
}

// SAFETY: a window is an exclusive borrow of its own elements, like `&mut [f32]`, which is Send.
unsafe impl Send for Window<'_> {}

/// A matrix to read: dense or strided, possibly transposed.
#[derive(Clone, Copy)]
pub(in crate::nn) struct Matrix<'a> {
    values: &'a [f32],
    rows: usize,
    columns: usize,
    row_stride: usize,
    column_stride: usize,
}

impl<'a> Window<'a> {
    /// The whole of a dense array.
    pub(in crate::nn) fn whole(values: &'a mut [f32], rows: usize, columns: usize) -> Self {
        assert_eq!(values.len(), rows * columns, "a dense array of {rows} x {columns}");
        Self {
            start: values.as_mut_ptr(),
            stride: columns,
            rows: 0..rows,
            columns: 0..columns,
            owner: PhantomData,
        }
    }

    /// Windows of every range of rows with every range of columns, columns running faster. `values` is row-major with
    /// `stride` columns. Ranges of each kind ascend and do not overlap.
    pub(in crate::nn) fn split(
        values: &'a mut [f32],
        stride: usize,
        rows: &[Range<usize>],
        columns: &[Range<usize>],
    ) -> Vec<Self> {
        assert!(is_ascending(rows) && is_ascending(columns), "windows overlap");
        assert!(rows.last().is_none_or(|last| last.end * stride <= values.len()), "rows of a window");
        assert!(columns.last().is_none_or(|last| last.end <= stride), "columns of a window");
        let start = values.as_mut_ptr();
        let window = |rows: &Range<usize>, columns: &Range<usize>| Self {
            // By wrapping arithmetic, because an empty window may lie behind the end.
            start: start.wrapping_add(rows.start * stride + columns.start),
            stride,
            rows: rows.clone(),
            columns: columns.clone(),
            owner: PhantomData,
        };
        rows.iter().flat_map(|r| columns.iter().map(move |c| window(r, c))).collect()
    }

    /// The rows of the array that it covers.
    pub(in crate::nn) fn rows(&self) -> Range<usize> {
        self.rows.clone()
    }

    /// The columns of the array that it covers.
    pub(in crate::nn) fn columns(&self) -> Range<usize> {
        self.columns.clone()
    }

    /// One row, counted from the window's first.
    pub(in crate::nn) fn row(&mut self, row: usize) -> &mut [f32] {
        assert!(row < self.rows.len(), "row {row} of {}", self.rows.len());
        // SAFETY: the row is one of the window's, whose elements lie in the slice that it was split from (asserted there)
        // and belong to no other window; the borrow of `self` keeps the row exclusive.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(row * self.stride), self.columns.len()) }
    }

    /// Some of its rows, counted from the window's first.
    pub(in crate::nn) fn part(&mut self, rows: Range<usize>) -> Window<'_> {
        assert!(rows.start <= rows.end && rows.end <= self.rows.len(), "rows of a window");
        Window {
            start: self.start.wrapping_add(rows.start * self.stride),
            stride: self.stride,
            rows: self.rows.start + rows.start..self.rows.start + rows.end,
            columns: self.columns.clone(),
            owner: PhantomData,
        }
    }

    /// Sets all elements.
    pub(in crate::nn) fn fill(&mut self, value: f32) {
        for row in 0..self.rows.len() {
            self.row(row).fill(value);
        }
    }

    /// `self = scale * a b`, or added to it.
    pub(in crate::nn) fn multiply(&mut self, scale: f32, a: Matrix<'_>, b: Matrix<'_>, into: Accumulate) {
        let (rows, columns, depth) = (self.rows.len(), self.columns.len(), a.columns);
        assert_eq!((a.rows, b.rows, b.columns), (rows, depth, columns), "shapes of a product");
        if rows == 0 || columns == 0 {
            return;
        }
        if depth == 0 {
            if into == Accumulate::Overwrite {
                self.fill(0.0);
            }
            return;
        }
        // SAFETY: the window's elements are exclusively ours (see `row`) and those of `a` and `b` lie in their slices
        // (asserted by `Matrix`), so they do not overlap them; all strides are in elements and fit, because the slices do.
        unsafe {
            gemm::gemm(
                rows,
                columns,
                depth,
                self.start,
                1,
                self.stride as isize,
                into == Accumulate::Add,
                a.values.as_ptr(),
                a.column_stride as isize,
                a.row_stride as isize,
                b.values.as_ptr(),
                b.column_stride as isize,
                b.row_stride as isize,
                1.0,
                scale,
                false,
                false,
                false,
                gemm::Parallelism::None,
            );
        }
    }
}

impl<'a> Matrix<'a> {
    /// `rows` rows of `columns` elements, one every `stride` elements.
    pub(in crate::nn) fn new(values: &'a [f32], rows: usize, columns: usize, stride: usize) -> Self {
        let end = if rows == 0 || columns == 0 { 0 } else { (rows - 1) * stride + columns };
        assert!(end <= values.len(), "a matrix of {rows} x {columns} by {stride} in {}", values.len());
        Self { values, rows, columns, row_stride: stride, column_stride: 1 }
    }

    /// Rows without gaps.
    pub(in crate::nn) fn dense(values: &'a [f32], rows: usize, columns: usize) -> Self {
        Self::new(values, rows, columns, columns)
    }

    /// Rows become columns.
    pub(in crate::nn) fn transposed(self) -> Self {
        Self {
            rows: self.columns,
            columns: self.rows,
            row_stride: self.column_stride,
            column_stride: self.row_stride,
            ..self
        }
    }
}

/// Cuts `0..len` into pieces of `size`, the last one shorter.
pub(crate) fn pieces(range: Range<usize>, size: usize) -> Vec<Range<usize>> {
    range.clone().step_by(size).map(|start| start..(start + size).min(range.end)).collect()
}

fn is_ascending(ranges: &[Range<usize>]) -> bool {
    ranges.iter().all(|range| range.start <= range.end)
        && ranges.windows(2).all(|pair| pair[0].end <= pair[1].start)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_cover_what_they_say() {
        let mut values = vec![0.0; 5 * 7];
        let windows = Window::split(&mut values, 7, &[0..2, 3..5], &[0..3, 3..4, 6..7]);
        for (index, mut window) in windows.into_iter().enumerate() {
            window.fill(index as f32 + 1.0);
        }
        let expected: Vec<f32> = [
            [1.0, 1.0, 1.0, 2.0, 0.0, 0.0, 3.0],
            [1.0, 1.0, 1.0, 2.0, 0.0, 0.0, 3.0],
            [0.0; 7],
            [4.0, 4.0, 4.0, 5.0, 0.0, 0.0, 6.0],
            [4.0, 4.0, 4.0, 5.0, 0.0, 0.0, 6.0],
        ]
        .concat();
        assert_eq!(values, expected);
    }

    #[test]
    fn products_of_transposed_and_strided_matrices() {
        // a is 2 x 3 inside rows of 4; b^T is 2 x 3.
        let a = [1.0, 2.0, 3.0, 99.0, 4.0, 5.0, 6.0];
        let b = [1.0, 0.0, -1.0, 2.0, 1.0, 0.5];
        let mut y = [f32::NAN; 4];
        let (a, b) = (Matrix::new(&a, 2, 3, 4), Matrix::dense(&b, 2, 3).transposed());
        Window::whole(&mut y, 2, 2).multiply(2.0, a, b, Accumulate::Overwrite);
        assert_eq!(y, [-4.0, 11.0, -4.0, 32.0]);
        Window::whole(&mut y, 2, 2).multiply(-1.0, a, b, Accumulate::Add);
        assert_eq!(y, [-2.0, 5.5, -2.0, 16.0]);
    }

    #[test]
    fn a_product_over_nothing_is_zero() {
        let mut y = [f32::NAN; 2];
        let (a, b) = (Matrix::dense(&[], 1, 0), Matrix::dense(&[], 0, 2));
        Window::whole(&mut y, 1, 2).multiply(1.0, a, b, Accumulate::Overwrite);
        assert_eq!(y, [0.0, 0.0]);
    }

    #[test]
    #[should_panic(expected = "windows overlap")]
    fn overlapping_windows_are_refused() {
        Window::split(&mut [0.0; 8], 4, &[0..1, 1..2], &[0..3, 2..4]);
    }

    #[test]
    #[should_panic(expected = "rows of a window")]
    fn windows_outside_are_refused() {
        Window::split(&mut [0.0; 8], 4, &[0..2, 2..3], &[0..3, 3..4]);
    }

    #[test]
    fn pieces_cover_a_range() {
        assert_eq!(pieces(3..10, 3), [3..6, 6..9, 9..10]);
        assert_eq!(pieces(3..3, 3), []);
    }
}
