//! Sums of products over many rows, `sum of P^T Q`, of pieces that are first laid out for the registers.
//!
//! Gone through where it lies, `P` is read down its columns: a page further from row to row, in the same few sets of every
//! cache. Copied once for each tile it is read from end to end.

use super::avx512::{self, COLUMNS, Right};
use super::multiply::Product;
use crate::scalar::Scalar;

/// Rows of the factors that are laid out at a time, at most: with a tile's columns they stay in the L2 cache.
const DEPTH: usize = 256;
/// Products of two numbers, for each number that is copied, from which it pays; and rows of the factors.
const WORTH: usize = 32;
const MANY_ROWS: usize = 24;

/// Whether it pays for an output `[m, n]` and so many rows of the factors, on this machine.
pub(super) fn pays<T: Scalar>((m, n): (usize, usize), rows: usize) -> bool {
    avx512::serves::<T>() && rows >= MANY_ROWS && m * n >= WORTH * (m + n)
}

/// Numbers that [`multiply_sum`] needs room for.
pub(super) fn room((m, n): (usize, usize)) -> usize {
    DEPTH * (m + n.next_multiple_of(COLUMNS))
}

/// `out (+)= sum of scale * left right`, `[m, n]`, where each `left` is the transpose of contiguous rows.
///
/// # Safety
/// [`pays`] says so; `room` is that of [`room`]; and as [`super::multiply::multiply_sum`].
pub(super) unsafe fn multiply_sum<T: Scalar>(
    (m, n): (usize, usize),
    products: impl Iterator<Item = Product<T>>,
    (out, stride): (*mut T, usize),
    mut accumulate: bool,
    room: &mut [T],
) {
    let (lefts, rights) = room.split_at_mut(DEPTH * m);
    let group = avx512::group(m);
    for Product { left, right, depth, scale } in products {
        debug_assert_eq!(left.row_stride, 1);
        // As even as the depth allows.
        let piece = depth.div_ceil(depth.div_ceil(DEPTH).max(1)).max(1);
        for begin in (0..depth).step_by(piece) {
            let depth = piece.min(depth - begin);
            for row in 0..depth {
                let at = begin + row;
                // SAFETY: row `at` of either factor, m and n numbers of it.
                let (left, right) = unsafe {
                    (
                        std::slice::from_raw_parts(left.pointer.add(at * left.column_stride), m),
                        std::slice::from_raw_parts(right.pointer.add(at * right.row_stride), n),
                    )
                };
                for (first, values) in (0..).step_by(group).zip(left.chunks(group)) {
                    // Of fixed size, which is but two moves.
                    match <&[T; 6]>::try_from(values) {
                        Ok(values) => lefts[first * depth + row * 6..][..6].copy_from_slice(values),
                        Err(_) => lefts[first * depth + row * values.len()..][..values.len()].copy_from_slice(values),
                    }
                }
                for (first, values) in (0..).step_by(COLUMNS).zip(right.chunks(COLUMNS)) {
                    rights[first * depth + row * COLUMNS..][..values.len()].copy_from_slice(values);
                }
            }
            let right = Right { pointer: rights.as_ptr(), row_stride: COLUMNS, panel_stride: depth * COLUMNS };
            // SAFETY: the factors were laid out so; and the caller's promise.
            unsafe { avx512::multiply_groups((m, depth, n), lefts.as_ptr(), right, scale, (out, stride), accumulate) };
            accumulate = true;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::matrix::Matrix;
    use super::*;

    /// Sums of products of every edge: groups and panels that are not full, pieces of the depth that are not even.
    #[test]
    fn sums_of_every_edge() {
        const GAP: usize = 3;
        let number = |i: usize, seed: usize| ((i * 7919 + seed * 31) % 101) as f32 / 50.0 - 1.0;
        for (m, n) in [(1, 1), (6, 64), (7, 65), (13, 130), (64, 200), (131, 72)] {
            if !avx512::serves::<f32>() {
                return;
            }
            for (depths, accumulate) in
                [(&[1][..], false), (&[DEPTH, 0, 5], true), (&[2 * DEPTH + 1, 30], false), (&[DEPTH + 1], true)]
            {
                let factor = |width: usize, seed: usize| {
                    move |depth: &usize| {
                        (0..depth * (width + GAP)).map(|i| number(i, seed + depth)).collect::<Vec<f32>>()
                    }
                };
                let lefts: Vec<_> = depths.iter().map(factor(m, 1)).collect();
                let rights: Vec<_> = depths.iter().map(factor(n, 2)).collect();
                let before: Vec<f32> = (0..m * (n + GAP)).map(|i| number(i, 9)).collect();
                let mut out = before.clone();
                let scales = [0.5, -2.0, 3.0];
                let products = (0..depths.len()).map(|i| Product {
                    left: Matrix::rows(lefts[i].as_ptr(), m + GAP).transposed(),
                    right: Matrix::rows(rights[i].as_ptr(), n + GAP),
                    depth: depths[i],
                    scale: scales[i],
                });
                let mut room = vec![f32::NAN; room((m, n))];
                // SAFETY: the arrays have these shapes.
                unsafe { multiply_sum((m, n), products, (out.as_mut_ptr(), n + GAP), accumulate, &mut room) };
                for (at, (got, before)) in out.iter().zip(&before).enumerate() {
                    let (r, c) = (at / (n + GAP), at % (n + GAP));
                    if c >= n {
                        assert!(got == before, "written beyond the row at {r}, {c}");
                        continue;
                    }
                    let (mut sum, mut size) = (if accumulate { f64::from(*before) } else { 0.0 }, 1.0);
                    for (i, depth) in depths.iter().enumerate() {
                        for k in 0..*depth {
                            let product = f64::from(scales[i])
                                * f64::from(lefts[i][k * (m + GAP) + r])
                                * f64::from(rights[i][k * (n + GAP) + c]);
                            sum += product;
                            size += product.abs();
                        }
                    }
                    let error = (f64::from(*got) - sum).abs();
                    assert!(error <= 2e-6 * size, "{m} x {n}, {depths:?}, at {r}, {c}: off by {error}");
                }
            }
        }
    }
}
