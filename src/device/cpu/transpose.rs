//! Transposing a piece of a weight into a thread's own room.
//!
//! A product wants the factor to its right with contiguous rows. Squares are read and written by whole cache lines, and
//! turned in registers where there are 512-bit ones.

use super::matrix::Matrix;
use crate::scalar::Scalar;

/// Side of a square: a cache line of f32.
const SIDE: usize = 16;

/// `to[c, r] = from[r, c]` for `rows` rows and `columns` columns, with `to_stride` elements from one row of `to` to the next. `from` is
/// row-major.
///
/// # Safety
/// `from` is readable in these bounds, and `to` writable elsewhere. `WIDE`: the machine has
/// AVX-512.
#[inline(always)]
pub(super) unsafe fn transpose<T: Scalar, const WIDE: bool>(
    from: Matrix<T>,
    rows: usize,
    columns: usize,
    to: *mut T,
    to_stride: usize,
) {
    let Matrix { pointer, row_stride, column_stride } = from;
    debug_assert_eq!(column_stride, 1);
    for r in (0..rows).step_by(SIDE) {
        for c in (0..columns).step_by(SIDE) {
            let shape = (SIDE.min(rows - r), SIDE.min(columns - c));
            // SAFETY: the caller's bounds.
            unsafe {
                let from = pointer.add(r * row_stride + c);
                let to = to.add(c * to_stride + r);
                #[cfg(target_arch = "x86_64")]
                if WIDE && size_of::<T>() == size_of::<f32>() {
                    square(shape, from.cast(), row_stride, to.cast(), to_stride);
                    continue;
                }
                for r in 0..shape.0 {
                    for c in 0..shape.1 {
                        *to.add(c * to_stride + r) = *from.add(r * row_stride + c);
                    }
                }
            }
        }
    }
}

/// Up to 16 x 16 numbers of 32 bits: four rounds that interleave row `i` with row `i + 8`.
///
/// # Safety
/// As [`transpose`].
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
#[inline]
unsafe fn square((rows, columns): (usize, usize), from: *const f32, stride: usize, to: *mut f32, to_stride: usize) {
    use std::arch::x86_64::*;
    let low = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
    let high = _mm512_setr_epi32(8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
    let mask = |count: usize| ((1_u32 << count) - 1) as __mmask16;
    let mut lines = [_mm512_setzero_ps(); SIDE];
    for (r, line) in lines.iter_mut().enumerate() {
        if r < rows {
            // SAFETY: the first `columns` elements of row r.
            *line = unsafe { _mm512_maskz_loadu_ps(mask(columns), from.add(r * stride)) };
        }
    }
    for _ in 0..4 {
        let mut next = lines;
        for i in 0..SIDE / 2 {
            next[2 * i] = _mm512_permutex2var_ps(lines[i], low, lines[i + SIDE / 2]);
            next[2 * i + 1] = _mm512_permutex2var_ps(lines[i], high, lines[i + SIDE / 2]);
        }
        lines = next;
    }
    for (c, line) in lines.iter().enumerate() {
        if c < columns {
            // SAFETY: the first `rows` elements of row c of the result.
            unsafe { _mm512_mask_storeu_ps(to.add(c * to_stride), mask(rows), *line) };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::matrix::{Kernel, dispatch};
    use super::*;

    struct Case<T> {
        from: Vec<T>,
        stride: usize,
        shape: (usize, usize),
        to: *mut T,
    }

    impl<T: Scalar> Kernel for Case<T> {
        fn run<const FMA: bool, const WIDE: bool>(self) {
            let from = Matrix::rows(self.from.as_ptr(), self.stride);
            // SAFETY: both arrays have room.
            unsafe { transpose::<T, WIDE>(from, self.shape.0, self.shape.1, self.to, self.shape.0) };
        }
    }

    fn squares_and_edges<T: Scalar>() {
        for (rows, columns, stride) in [(16, 16, 16), (32, 48, 50), (37, 21, 21), (1, 40, 40), (40, 1, 3), (8, 40, 41)]
        {
            let from: Vec<T> = (0..rows * stride).map(|i| T::from_f64(i as f64)).collect();
            let mut to = vec![T::from_f64(-1.0); rows * columns + 1];
            dispatch(Case { from: from.clone(), stride, shape: (rows, columns), to: to.as_mut_ptr() });
            for r in 0..rows {
                for c in 0..columns {
                    assert!(to[c * rows + r] == from[r * stride + c], "{rows} {columns} at {r}, {c}");
                }
            }
            assert!(to[rows * columns] == T::from_f64(-1.0), "{rows} {columns}: wrote past the end");
        }
    }

    #[test]
    fn squares_and_edges_f32() {
        squares_and_edges::<f32>();
    }

    #[test]
    fn squares_and_edges_f64() {
        squares_and_edges::<f64>();
    }
}
