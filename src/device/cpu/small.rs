//! Products on one thread, in whichever way suits the machine and the size.
//!
//! Small factors are taken straight from where they lie: for these, packing costs more than it saves. So are all in single
//! precision where there is AVX-512 ([`super::avx512`]); the rest goes through the `gemm` crate.

use super::avx512::{self, Right, Term};
use super::matrix::{Kernel, Matrix, dispatch, multiply, multiply_add};
use crate::scalar::Scalar;

/// Elements of the right factor up to which packing it does not pay: it stays in a core's nearer caches.
const SMALL: usize = 1 << 14;

/// `out (+)= scale * left right` like [`multiply`], in whichever way suits the size. Compiled once for each instruction
/// set, not into every kernel that calls it.
///
/// # Safety
/// As [`multiply`].
pub(super) unsafe fn multiply_any<T: Scalar>(
    shape: (usize, usize, usize),
    left: Matrix<T>,
    right: Matrix<T>,
    scale: T,
    out: (*mut T, usize),
    accumulate: bool,
) {
    dispatch(Call { shape, left, right, scale, out, accumulate });
}

/// One term of a sum of products: `scale * left right`, with `depth` columns to the left and rows to the right.
pub(super) struct Product<T> {
    pub left: Matrix<T>,
    pub right: Matrix<T>,
    pub depth: usize,
    pub scale: T,
}

/// `out (+)= sum of scale * left right`, `[m, n]`; every `right` has contiguous rows.
///
/// # Safety
/// As [`multiply`], for every term.
pub(super) unsafe fn multiply_sum<T: Scalar>(
    (m, n): (usize, usize),
    products: impl Iterator<Item = Product<T>>,
    (out, stride): (*mut T, usize),
    mut accumulate: bool,
) {
    /// Terms that are handed on together.
    const TOGETHER: usize = 8;
    let together = avx512::serves::<T>() && n > 1;
    let null = Matrix::rows(std::ptr::null(), 0);
    let mut terms = [Term { left: null, right: Right::rows(null.pointer, 0), depth: 0 }; TOGETHER];
    let (mut count, mut common) = (0, T::ZERO);
    // SAFETY: the caller's promise.
    unsafe {
        for Product { left, right, depth, scale } in products {
            if !together {
                multiply_any((m, depth, n), left, right, scale, (out, stride), accumulate);
                accumulate = true;
                continue;
            }
            if count == TOGETHER || (count > 0 && scale != common) {
                avx512::multiply((m, n), &terms[..count], common, (out, stride), accumulate);
                (count, accumulate) = (0, true);
            }
            terms[count] = Term { left, right: Right::rows(right.pointer, right.row_stride), depth };
            (count, common) = (count + 1, scale);
        }
        if count > 0 {
            avx512::multiply((m, n), &terms[..count], common, (out, stride), accumulate);
        }
    }
}

struct Call<T> {
    shape: (usize, usize, usize),
    left: Matrix<T>,
    right: Matrix<T>,
    scale: T,
    out: (*mut T, usize),
    accumulate: bool,
}

impl<T: Scalar> Kernel for Call<T> {
    #[inline(always)]
    fn run<const FMA: bool, const WIDE: bool>(self) {
        let Self { shape: (m, k, n), left, right, scale, out, accumulate } = self;
        // SAFETY: the promise of `multiply_any`'s caller.
        unsafe {
            if n == 1 && out.1 == 1 && left.row_stride == 1 {
                // A column is computed as a row.
                let (left, right) = (right.transposed(), left.transposed());
                multiply_rows::<T, FMA, WIDE>((1, k, m), left, right, scale, (out.0, m), accumulate);
            } else if n == 1 && WIDE && size_of::<T>() == size_of::<f32>() {
                multiply_rows::<T, FMA, WIDE>((m, k, 1), left, right, scale, out, accumulate);
            } else if n > 1 && right.column_stride == 1 && (WIDE && size_of::<T>() == 4 || n * k <= SMALL) {
                multiply_rows::<T, FMA, WIDE>((m, k, n), left, right, scale, out, accumulate);
            } else {
                multiply((m, k, n), left, right, scale, out.0, out.1, accumulate);
            }
        }
    }
}

/// `right` has contiguous rows.
#[inline(always)]
unsafe fn multiply_rows<T: Scalar, const FMA: bool, const WIDE: bool>(
    shape: (usize, usize, usize),
    left: Matrix<T>,
    right: Matrix<T>,
    scale: T,
    (out, stride): (*mut T, usize),
    accumulate: bool,
) {
    // SAFETY: the caller's promise; wide vectors are what the one asks for.
    unsafe {
        if WIDE && size_of::<T>() == size_of::<f32>() {
            let (m, depth, n) = shape;
            let term = Term { left, right: Right::rows(right.pointer, right.row_stride), depth };
            avx512::multiply((m, n), &[term], scale, (out, stride), accumulate);
        } else {
            multiply_small::<T, FMA>(shape, left, right, scale, (out, stride), accumulate);
        }
    }
}

/// The same with whatever vectors there are.
#[inline(always)]
unsafe fn multiply_small<T: Scalar, const FMA: bool>(
    (m, k, n): (usize, usize, usize),
    left: Matrix<T>,
    right: Matrix<T>,
    scale: T,
    (out, stride): (*mut T, usize),
    accumulate: bool,
) {
    debug_assert_eq!(right.column_stride, 1);
    // Rows whose sums are held in registers together: as even as m allows.
    let group = m.div_ceil(m.div_ceil(6));
    let mut row = 0;
    while row < m {
        let size = group.min(m - row);
        // SAFETY: rows `row..row + size` of `left` and `out` exist.
        unsafe {
            let left = Matrix { pointer: left.pointer.add(row * left.row_stride), ..left };
            let out = (out.add(row * stride), stride);
            match size {
                1 => rows::<T, 1, FMA>(k, n, left, right, scale, out, accumulate),
                2 => rows::<T, 2, FMA>(k, n, left, right, scale, out, accumulate),
                3 => rows::<T, 3, FMA>(k, n, left, right, scale, out, accumulate),
                4 => rows::<T, 4, FMA>(k, n, left, right, scale, out, accumulate),
                5 => rows::<T, 5, FMA>(k, n, left, right, scale, out, accumulate),
                _ => rows::<T, 6, FMA>(k, n, left, right, scale, out, accumulate),
            }
        }
        row += size;
    }
}

/// `M` rows of the product.
#[inline(always)]
unsafe fn rows<T: Scalar, const M: usize, const FMA: bool>(
    k: usize,
    n: usize,
    left: Matrix<T>,
    right: Matrix<T>,
    scale: T,
    out: (*mut T, usize),
    accumulate: bool,
) {
    let mut column = 0;
    macro_rules! strips {
        ($($width:literal)*) => {
            $(while n - column >= $width {
                // SAFETY: columns `column..column + width` stay below `n`.
                unsafe { strip::<T, M, $width, FMA>(k, column, left, right, scale, out, accumulate) };
                column += $width;
            })*
        };
    }
    strips!(32 16 8 4 1);
}

/// `M` rows and `W` columns of the product.
#[inline(always)]
unsafe fn strip<T: Scalar, const M: usize, const W: usize, const FMA: bool>(
    k: usize,
    column: usize,
    left: Matrix<T>,
    right: Matrix<T>,
    scale: T,
    (out, stride): (*mut T, usize),
    accumulate: bool,
) {
    let mut sums = [[T::ZERO; W]; M];
    // SAFETY: the caller's bounds.
    unsafe {
        for i in 0..k {
            let values = *right.pointer.add(i * right.row_stride + column).cast::<[T; W]>();
            for (m, sum) in sums.iter_mut().enumerate() {
                let factor = *left.pointer.add(m * left.row_stride + i * left.column_stride);
                for (s, v) in sum.iter_mut().zip(values) {
                    *s = multiply_add::<T, FMA>(factor, v, *s);
                }
            }
        }
        for (m, sum) in sums.into_iter().enumerate() {
            let out = &mut *out.add(m * stride + column).cast::<[T; W]>();
            for (o, s) in out.iter_mut().zip(sum) {
                *o = if accumulate { multiply_add::<T, FMA>(scale, s, *o) } else { scale * s };
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_width_and_layout() {
        let value = |i: usize| ((i * 7919 + 13) % 101) as f64 / 50.0 - 1.0;
        for (m, k, n) in [(1, 1, 1), (7, 3, 61), (13, 40, 40), (40, 25, 1), (5, 1, 40), (3, 90, 90), (6, 0, 5)] {
            for transposed in [false, true] {
                for accumulate in [false, true] {
                    let a: Vec<f64> = (0..m * k).map(value).collect();
                    let b: Vec<f64> = (0..k * n).map(|i| value(i + 7)).collect();
                    let left =
                        if transposed { Matrix::rows(a.as_ptr(), m).transposed() } else { Matrix::rows(a.as_ptr(), k) };
                    let at = |r: usize, c: usize| if transposed { c * m + r } else { r * k + c };
                    let mut out = vec![if accumulate { 2.0 } else { f64::NAN }; m * n];
                    let right = Matrix::rows(b.as_ptr(), n);
                    // SAFETY: the arrays have these shapes.
                    unsafe { multiply_any((m, k, n), left, right, 0.5, (out.as_mut_ptr(), n), accumulate) };
                    for r in 0..m {
                        for c in 0..n {
                            let sum: f64 = (0..k).map(|i| a[at(r, i)] * b[i * n + c]).sum();
                            let expected = 0.5 * sum + if accumulate { 2.0 } else { 0.0 };
                            assert!((out[r * n + c] - expected).abs() < 1e-12, "{m} {k} {n} at {r}, {c}");
                        }
                    }
                }
            }
        }
    }
}
