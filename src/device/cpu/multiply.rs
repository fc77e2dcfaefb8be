//! Products on one thread, in whichever way suits the machine and the size.
//!
//! Small factors are taken straight from where they lie: for these, packing costs more than it saves. So are all in single
//! precision where there is AVX-512 ([`super::avx512`]); the rest goes through the `gemm` crate.

use super::avx512::{self, Right, Term};
use super::matrix::{Kernel, Matrix, Onto, dispatch, multiply, multiply_add};
use crate::scalar::Scalar;

/// Elements of the right factor up to which packing it does not pay: it stays in a core's nearer caches.
const SMALL: usize = 1 << 14;

/// `out = onto + scale * left right`, in whichever way suits the size. Compiled once for each instruction
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
    onto: Onto<T>,
) {
    dispatch(Call { shape, left, right, scale, out, onto });
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
                multiply_any((m, depth, n), left, right, scale, (out, stride), Onto::itself(accumulate));
                accumulate = true;
                continue;
            }
            if count == TOGETHER || (count > 0 && scale != common) {
                avx512::multiply((m, n), &terms[..count], common, (out, stride), Onto::itself(accumulate));
                (count, accumulate) = (0, true);
            }
            terms[count] = Term { left, right: Right::rows(right.pointer, right.row_stride), depth };
            (count, common) = (count + 1, scale);
        }
        if count > 0 {
            avx512::multiply((m, n), &terms[..count], common, (out, stride), Onto::itself(accumulate));
        }
    }
}

struct Call<T> {
    shape: (usize, usize, usize),
    left: Matrix<T>,
    right: Matrix<T>,
    scale: T,
    out: (*mut T, usize),
    onto: Onto<T>,
}

impl<T: Scalar> Kernel for Call<T> {
    #[inline(always)]
    fn run<const FMA: bool, const WIDE: bool>(self) {
        let Self { shape: (m, k, n), left, right, scale, out, onto } = self;
        let wide = is_wide::<T, WIDE>();
        // SAFETY: the promise of `multiply_any`'s caller.
        unsafe {
            if n == 1 && out.1 == 1 && left.row_stride == 1 {
                // A column is computed as a row.
                let onto = match onto {
                    Onto::Rows(before, 1) => Onto::Rows(before, m),
                    _ => Onto::itself(onto.write((m, 1), out)),
                };
                let (left, right) = (right.transposed(), left.transposed());
                multiply_rows::<T, FMA, WIDE>((1, k, m), left, right, scale, (out.0, m), onto);
            } else if wide && (n == 1 || right.column_stride == 1)
                || n > 1 && right.column_stride == 1 && n * k <= SMALL
            {
                multiply_rows::<T, FMA, WIDE>((m, k, n), left, right, scale, out, onto);
            } else {
                let accumulate = onto.write((m, n), out);
                multiply((m, k, n), left, right, scale, out.0, out.1, accumulate);
            }
        }
    }
}

/// Whether [`super::avx512`] serves: [`avx512::serves`], where the instruction set is known.
const fn is_wide<T, const WIDE: bool>() -> bool {
    WIDE && size_of::<T>() == size_of::<f32>()
}

/// `right` has contiguous rows, or but one column.
#[inline(always)]
unsafe fn multiply_rows<T: Scalar, const FMA: bool, const WIDE: bool>(
    shape: (usize, usize, usize),
    left: Matrix<T>,
    right: Matrix<T>,
    scale: T,
    (out, stride): (*mut T, usize),
    onto: Onto<T>,
) {
    // SAFETY: the caller's promise; wide vectors are what the one asks for.
    unsafe {
        if is_wide::<T, WIDE>() {
            let (m, depth, n) = shape;
            let term = Term { left, right: Right::rows(right.pointer, right.row_stride), depth };
            avx512::multiply((m, n), &[term], scale, (out, stride), onto);
        } else {
            let accumulate = onto.write((shape.0, shape.2), (out, stride));
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

    fn numbers<T: Scalar>(count: usize, seed: usize) -> Vec<T> {
        (0..count).map(|i| T::from_f64(((i * 7919 + seed * 31 + 13) % 101) as f64 / 50.0 - 1.0)).collect()
    }

    fn epsilon<T: Scalar>() -> f64 {
        if size_of::<T>() == 4 { f64::from(f32::EPSILON) } else { f64::EPSILON }
    }

    /// Columns with every kind of edge, inner dimensions beyond what is gone through at a time.
    const SHAPES: [(usize, usize, usize); 12] = [
        (1, 1, 1),
        (7, 3, 61),
        (13, 40, 40),
        (40, 25, 1),
        (5, 1, 40),
        (3, 90, 90),
        (6, 0, 5),
        (7, 700, 1),
        (4, 1100, 70),
        (17, 513, 24),
        (2, 33, 131),
        (40, 10, 9),
    ];

    /// Holds an `[m, n]` result, in rows of `n + 3`, against the sum of the terms in double precision.
    fn check<T: Scalar>(
        (m, n): (usize, usize),
        terms: &[(Vec<T>, Vec<T>, usize, T)],
        transposed: bool,
        accumulate: bool,
    ) {
        let stride = n + 3;
        let poison = T::from_f64(f64::NAN);
        let before = if accumulate { T::from_f64(2.0) } else { poison };
        let mut out = vec![before; m * stride];
        let products = terms.iter().map(|(a, b, k, scale)| Product {
            left: if transposed { Matrix::rows(a.as_ptr(), m).transposed() } else { Matrix::rows(a.as_ptr(), *k) },
            right: Matrix::rows(b.as_ptr(), n),
            depth: *k,
            scale: *scale,
        });
        // SAFETY: the arrays have these shapes.
        unsafe { multiply_sum((m, n), products, (out.as_mut_ptr(), stride), accumulate) };
        for r in 0..m {
            for c in 0..n {
                let (mut sum, mut size) = (if accumulate { 2.0 } else { 0.0 }, 2.0);
                for (a, b, k, scale) in terms {
                    for i in 0..*k {
                        let left = if transposed { a[i * m + r] } else { a[r * k + i] };
                        let product = scale.to_f64() * left.to_f64() * b[i * n + c].to_f64();
                        sum += product;
                        size += product.abs();
                    }
                }
                let (error, tolerance) = ((out[r * stride + c].to_f64() - sum).abs(), epsilon::<T>() * 16.0 * size);
                assert!(error <= tolerance, "{} {m} {n} at {r}, {c}: off by {error}", T::NAME);
            }
            // What lies between the rows is nobody's.
            assert!(
                out[r * stride + n..(r + 1) * stride].iter().all(|v| v.to_f64().to_bits() == before.to_f64().to_bits())
            );
        }
    }

    fn every_width_and_layout<T: Scalar>() {
        for (m, k, n) in SHAPES {
            for (transposed, accumulate) in [(false, false), (false, true), (true, false), (true, true)] {
                let term = (numbers::<T>(m * k, 1), numbers::<T>(k * n, 2), k, T::from_f64(0.5));
                check((m, n), &[term], transposed, accumulate);
            }
        }
    }

    /// Few rows and many, one factor and several, more terms than are handed on together.
    fn sums<T: Scalar>() {
        for (m, n) in [(40, 40), (7, 61), (5, 1), (9, 130)] {
            for (depths, scales) in [
                (&[10, 10][..], &[1.0, 1.0][..]),
                (&[3, 600, 5, 80, 80], &[0.5; 5]),
                (&[1, 2, 3, 4, 5, 6, 7, 8, 9, 10], &[0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, -2.0]),
            ] {
                let term = |(i, (k, scale)): (usize, (&usize, &f64))| {
                    (numbers::<T>(m * k, i), numbers::<T>(k * n, i + 7), *k, T::from_f64(*scale))
                };
                let terms: Vec<_> = depths.iter().zip(scales).enumerate().map(term).collect();
                check((m, n), &terms, true, false);
                check((m, n), &terms, false, true);
            }
        }
    }

    #[test]
    fn every_width_and_layout_f32() {
        every_width_and_layout::<f32>();
    }

    #[test]
    fn every_width_and_layout_f64() {
        every_width_and_layout::<f64>();
    }

    #[test]
    fn sums_f32() {
        sums::<f32>();
    }

    #[test]
    fn sums_f64() {
        sums::<f64>();
    }
}
