//! Products in single precision with 512-bit vectors, straight from where the factors lie.
//!
//! Sums of up to 6 rows by 4 vectors stay in registers, a ragged edge is masked, and nothing is packed: on Zen 4 this reaches
//! the machine's peak within 4 % and outruns the `gemm` crate by a tenth (`benches/results/`).

use super::matrix::Matrix;
use crate::scalar::Scalar;

/// Columns of a strip at most: four vectors.
pub(super) const COLUMNS: usize = 64;

/// Whether [`multiply`] serves numbers of this type on this machine.
pub(super) fn serves<T: Scalar>() -> bool {
    #[cfg(target_arch = "x86_64")]
    return size_of::<T>() == size_of::<f32>() && matches!(pulp::Arch::new(), pulp::Arch::V4(_));
    #[cfg(not(target_arch = "x86_64"))]
    return false;
}

/// The factor to the right: contiguous rows, cut into panels of 64 columns that lie anywhere.
#[derive(Clone, Copy)]
pub(super) struct Right<T> {
    pub pointer: *const T,
    /// From one row of a panel to the next.
    pub row_stride: usize,
    /// From one panel to the next.
    pub panel_stride: usize,
}

impl<T> Right<T> {
    /// A plain row-major matrix.
    pub fn rows(pointer: *const T, row_stride: usize) -> Self {
        Self { pointer, row_stride, panel_stride: COLUMNS }
    }
}

/// `out (+)= scale * left right`.
///
/// # Safety
/// [`serves`] says so. `left` is `[m, k]` and `right` `[k, n]`, both readable; `out`, with its stride, is writable and overlaps neither.
pub(super) unsafe fn multiply<T: Scalar>(
    shape: (usize, usize, usize),
    left: Matrix<T>,
    right: Right<T>,
    scale: T,
    (out, stride): (*mut T, usize),
    accumulate: bool,
) {
    #[cfg(target_arch = "x86_64")]
    {
        let right =
            Right { pointer: right.pointer.cast(), row_stride: right.row_stride, panel_stride: right.panel_stride };
        let target = x86::Target { out: out.cast(), stride, scale: scale.to_f64() as f32, accumulate };
        // SAFETY: the caller's promise; T is f32, and the machine has AVX-512.
        unsafe {
            if shape.2 == 1 && left.column_stride == 1 && right.row_stride == 1 {
                x86::column((shape.0, shape.1), left.pointer.cast(), left.row_stride, right.pointer, target);
            } else {
                x86::multiply(shape, left.cast(), right, target);
            }
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    unreachable!(
        "this machine has no AVX-512: {:?}",
        (shape, left.pointer, right.pointer, scale, out, stride, accumulate)
    );
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use super::super::matrix::Matrix;
    use super::{COLUMNS, Right};

    /// Numbers in a vector.
    const LANES: usize = 16;
    /// Rows of the right factor that are gone through at a time: their piece of a panel stays in the L2 cache.
    const DEPTH: usize = 512;

    /// Where a product goes, and how.
    #[derive(Clone, Copy)]
    pub struct Target {
        pub out: *mut f32,
        pub stride: usize,
        pub scale: f32,
        pub accumulate: bool,
    }

    /// See [`super::multiply`].
    #[target_feature(enable = "avx512f")]
    pub unsafe fn multiply((m, k, n): (usize, usize, usize), left: Matrix<f32>, right: Right<f32>, target: Target) {
        // As even as m allows.
        let group = m.div_ceil(m.div_ceil(6));
        for first in (0..k.max(1)).step_by(DEPTH) {
            let depth = DEPTH.min(k - first);
            for row in (0..m).step_by(group) {
                for column in (0..n).step_by(COLUMNS) {
                    // SAFETY: `group` rows, or what is left of them, and at most 64 columns from here on exist.
                    unsafe {
                        let left = Matrix {
                            pointer: left.pointer.add(row * left.row_stride + first * left.column_stride),
                            ..left
                        };
                        let panel = column / COLUMNS * right.panel_stride;
                        let right = Matrix::rows(right.pointer.add(panel + first * right.row_stride), right.row_stride);
                        let out = target.out.add(row * target.stride + column);
                        let target = Target { out, accumulate: target.accumulate || first > 0, ..target };
                        rows(group.min(m - row), (n - column).min(COLUMNS), depth, left, right, target);
                    }
                }
            }
        }
    }

    /// `out[m] (+)= scale * left[m, k] right[k]`, with contiguous rows to the left and a contiguous column to the right.
    #[target_feature(enable = "avx512f")]
    pub unsafe fn column(
        (m, k): (usize, usize),
        left: *const f32,
        row_stride: usize,
        right: *const f32,
        target: Target,
    ) {
        for row in 0..m {
            let mut sum = _mm512_setzero_ps();
            for first in (0..k).step_by(LANES) {
                let mask = ((1_u32 << LANES.min(k - first)) - 1) as __mmask16;
                // SAFETY: the elements `first..k` of a row and of the column exist.
                unsafe {
                    let left = _mm512_maskz_loadu_ps(mask, left.add(row * row_stride + first));
                    let right = _mm512_maskz_loadu_ps(mask, right.add(first));
                    sum = _mm512_fmadd_ps(left, right, sum);
                }
            }
            let sum = target.scale * _mm512_reduce_add_ps(sum);
            // SAFETY: the output has m rows.
            let out = unsafe { &mut *target.out.add(row * target.stride) };
            *out = if target.accumulate { *out + sum } else { sum };
        }
    }

    /// Picks the strip of this size.
    #[target_feature(enable = "avx512f")]
    #[inline]
    unsafe fn rows(rows: usize, columns: usize, k: usize, left: Matrix<f32>, right: Matrix<f32>, target: Target) {
        macro_rules! strips {
        ($($rows:literal)*) => {
            match (rows, columns.div_ceil(LANES)) {
                $(
                    ($rows, 1) => strip::<$rows, 1>(columns, k, left, right, target),
                    ($rows, 2) => strip::<$rows, 2>(columns, k, left, right, target),
                    ($rows, 3) => strip::<$rows, 3>(columns, k, left, right, target),
                    ($rows, _) => strip::<$rows, 4>(columns, k, left, right, target),
                )*
                _ => unreachable!("a group has 1 to 6 rows"),
            }
        };
    }
        // SAFETY: the caller's promise.
        unsafe { strips!(1 2 3 4 5 6) }
    }

    /// `M` rows, `V` vectors of which the last may be partly filled.
    #[target_feature(enable = "avx512f")]
    unsafe fn strip<const M: usize, const V: usize>(
        columns: usize,
        k: usize,
        left: Matrix<f32>,
        right: Matrix<f32>,
        target: Target,
    ) {
        let mask = ((1_u32 << (columns - (V - 1) * LANES)) - 1) as __mmask16;
        let mut sums = [[_mm512_setzero_ps(); V]; M];
        // SAFETY: the first `columns` elements of k rows of `right`, k elements of M rows of `left`.
        unsafe {
            for i in 0..k {
                let from = right.pointer.add(i * right.row_stride);
                let mut values = [_mm512_setzero_ps(); V];
                for v in 0..V - 1 {
                    values[v] = _mm512_loadu_ps(from.add(v * LANES));
                }
                values[V - 1] = _mm512_maskz_loadu_ps(mask, from.add((V - 1) * LANES));
                for m in 0..M {
                    let factor = _mm512_set1_ps(*left.pointer.add(m * left.row_stride + i * left.column_stride));
                    for v in 0..V {
                        sums[m][v] = _mm512_fmadd_ps(factor, values[v], sums[m][v]);
                    }
                }
            }
        }
        let scale = _mm512_set1_ps(target.scale);
        let edge = |v: usize| if v + 1 < V { __mmask16::MAX } else { mask };
        let at = |m: usize, v: usize| target.out.wrapping_add(m * target.stride + v * LANES);
        // Everything is loaded before anything is stored: a load that touches the line of a masked store waits for it.
        for m in 0..M {
            for v in 0..V {
                sums[m][v] = if target.accumulate {
                    // SAFETY: the first `columns` elements of M rows of the output.
                    _mm512_fmadd_ps(scale, sums[m][v], unsafe { _mm512_maskz_loadu_ps(edge(v), at(m, v)) })
                } else {
                    _mm512_mul_ps(scale, sums[m][v])
                };
            }
        }
        for m in 0..M {
            for v in 0..V {
                // SAFETY: as above.
                unsafe { _mm512_mask_storeu_ps(at(m, v), edge(v), sums[m][v]) };
            }
        }
    }
}
