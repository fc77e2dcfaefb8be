//! Transposing a piece of a weight into a thread's own room.
//!
//! A product wants the factor to its right with contiguous rows. Squares are turned in registers where
//! vectors can be masked.

use super::matrix::Matrix;
use crate::scalar::Scalar;

/// Side of a square: a 256-bit register of f32, of which eight turn at once.
const SIDE: usize = 8;

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
                    let (from, to) = (from.cast(), to.cast());
                    if shape == (SIDE, SIDE) {
                        square::<true>(shape, from, row_stride, to, to_stride);
                    } else {
                        square::<false>(shape, from, row_stride, to, to_stride);
                    }
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

/// 8 x 8 numbers of 32 bits, or up to that many where not `FULL`: three rounds that interleave single numbers, pairs and fours.
///
/// # Safety
/// As [`transpose`].
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512vl")]
#[inline]
unsafe fn square<const FULL: bool>(
    (rows, columns): (usize, usize),
    from: *const f32,
    stride: usize,
    to: *mut f32,
    to_stride: usize,
) {
    use std::arch::x86_64::*;
    let mask = |count: usize| if FULL { __mmask8::MAX } else { ((1_u32 << count) - 1) as __mmask8 };
    let mut a = [_mm256_setzero_ps(); SIDE];
    for (r, line) in a.iter_mut().enumerate() {
        if FULL || r < rows {
            // SAFETY: the first `columns` elements of row r.
            *line = unsafe { _mm256_maskz_loadu_ps(mask(columns), from.add(r * stride)) };
        }
    }
    let pair = |i: usize| (_mm256_unpacklo_ps(a[i], a[i + 1]), _mm256_unpackhi_ps(a[i], a[i + 1]));
    // Columns 0 and 4, 1 and 5, 2 and 6, 3 and 7 of four rows.
    let four = |i: usize| {
        let ((low, high), (low_2, high_2)) = (pair(i), pair(i + 2));
        [
            _mm256_shuffle_ps::<0b01_00_01_00>(low, low_2),
            _mm256_shuffle_ps::<0b11_10_11_10>(low, low_2),
            _mm256_shuffle_ps::<0b01_00_01_00>(high, high_2),
            _mm256_shuffle_ps::<0b11_10_11_10>(high, high_2),
        ]
    };
    let (top, bottom) = (four(0), four(4));
    let mut lines = a;
    for c in 0..SIDE / 2 {
        lines[c] = _mm256_permute2f128_ps::<0x20>(top[c], bottom[c]);
        lines[c + SIDE / 2] = _mm256_permute2f128_ps::<0x31>(top[c], bottom[c]);
    }
    for (c, line) in lines.iter().enumerate() {
        if FULL || c < columns {
            // SAFETY: the first `rows` elements of row c of the result.
            unsafe { _mm256_mask_storeu_ps(to.add(c * to_stride), mask(rows), *line) };
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
