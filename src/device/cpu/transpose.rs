//! Transposing a piece of a weight into a thread's own room.
//!
//! The `gemm` crate packs a factor whose rows are not contiguous element by element, which misses the cache once a row;
//! squares that are read and written by whole cache lines do not.

use super::matrix::Matrix;
use crate::scalar::Scalar;

/// Side of a square: a cache line of f32.
const SIDE: usize = 16;

/// `to[c, r] = from[r, c]` for `rows` rows and `columns` columns; a row of `to` is `rows` elements. `from` is row-major.
///
/// # Safety
/// `from` is readable in these bounds, and `to` writable for `rows * columns` elements elsewhere.
#[inline(always)]
pub(super) unsafe fn transpose<T: Scalar>(from: Matrix<T>, rows: usize, columns: usize, to: *mut T) {
    let Matrix { pointer, row_stride, column_stride } = from;
    debug_assert_eq!(column_stride, 1);
    for r in (0..rows).step_by(SIDE) {
        for c in (0..columns).step_by(SIDE) {
            // SAFETY: the caller's bounds.
            unsafe {
                let from = pointer.add(r * row_stride + c);
                let to = to.add(c * rows + r);
                if r + SIDE <= rows && c + SIDE <= columns {
                    let square: [[T; SIDE]; SIDE] =
                        std::array::from_fn(|r| *from.add(r * row_stride).cast::<[T; SIDE]>());
                    for c in 0..SIDE {
                        *to.add(c * rows).cast::<[T; SIDE]>() = square.map(|row| row[c]);
                    }
                } else {
                    for r in 0..SIDE.min(rows - r) {
                        for c in 0..SIDE.min(columns - c) {
                            *to.add(c * rows + r) = *from.add(r * row_stride + c);
                        }
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn squares_and_edges() {
        for (rows, columns, stride) in [(16, 16, 16), (32, 48, 50), (37, 21, 21), (1, 40, 40), (40, 1, 3)] {
            let from: Vec<f32> = (0..rows * stride).map(|i| i as f32).collect();
            let mut to = vec![-1.0; rows * columns];
            // SAFETY: both arrays have room.
            unsafe { transpose(Matrix::rows(from.as_ptr(), stride), rows, columns, to.as_mut_ptr()) };
            for r in 0..rows {
                for c in 0..columns {
                    assert_eq!(to[c * rows + r], from[r * stride + c]);
                }
            }
        }
    }
}
