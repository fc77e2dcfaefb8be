//! Small products for many tasks at once: every element is a vector that holds one number of each task, so that whatever the
//! shapes are, every multiply-add fills a vector, and nothing is summed across one.

use super::matrix::{Kernel, dispatch, multiply_add};
use crate::scalar::Scalar;

/// A matrix of vectors: element (i, j) is vector `start + i * row + j * column`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Grid {
    pub start: usize,
    pub row: usize,
    pub column: usize,
}

impl Grid {
    /// Row-major.
    pub fn rows(start: usize, width: usize) -> Self {
        Self { start, row: width, column: 1 }
    }

    /// The same row over and over.
    pub fn one_row(start: usize) -> Self {
        Self { start, row: 0, column: 1 }
    }

    /// The same vector everywhere.
    pub fn constant(start: usize) -> Self {
        Self { start, row: 0, column: 0 }
    }

    pub fn transposed(self) -> Self {
        Self { start: self.start, row: self.column, column: self.row }
    }

    fn at(&self, row: usize, column: usize) -> usize {
        self.start + row * self.row + column * self.column
    }
}

/// `left right`, with `depth` columns to the left and rows to the right.
#[derive(Clone, Copy)]
pub(super) struct Term {
    pub left: Grid,
    pub right: Grid,
    pub depth: usize,
}

/// A product of shape `[m, n]`: `out = onto + scale * sum of terms`.
#[derive(Clone, Copy)]
pub(super) struct Product<'a, T> {
    pub shape: (usize, usize),
    pub terms: &'a [Term],
    pub scale: T,
    pub onto: Option<Grid>,
    pub out: Grid,
}

/// Carries a product out in `room`, whose vectors have [`Scalar::LANES`] numbers.
///
/// # Safety
/// All grids lie in `room`, which begins at a cache line; `out` overlaps no factor, and nothing it is added onto but itself.
pub(super) unsafe fn multiply<T: Scalar>(room: *mut T, product: Product<'_, T>) {
    match T::LANES {
        8 => dispatch(Call::<T, 8> { room, product }),
        _ => dispatch(Call::<T, 16> { room, product }),
    }
}

struct Call<'a, T, const LANES: usize> {
    room: *mut T,
    product: Product<'a, T>,
}

impl<T: Scalar, const LANES: usize> Kernel for Call<'_, T, LANES> {
    #[inline(always)]
    fn run<const FMA: bool, const WIDE: bool>(self) {
        #[cfg(target_arch = "x86_64")]
        if WIDE && size_of::<T>() == size_of::<f32>() {
            let Product { shape, terms, scale, onto, out } = self.product;
            let product = Product { shape, terms, scale: scale.to_f64() as f32, onto, out };
            // SAFETY: T is f32; the promise of `multiply`'s caller.
            unsafe { tiles::<f32, x86::Wide, LANES, 6, 4>(self.room.cast(), product) };
            return;
        }
        // SAFETY: the promise of `multiply`'s caller.
        unsafe { tiles::<T, Plain<T, LANES, FMA>, LANES, 2, 2>(self.room, self.product) };
    }
}

/// A vector in registers.
trait Vector<T>: Copy {
    fn splat(value: T) -> Self;
    /// # Safety
    /// The vector at `from` is readable.
    unsafe fn load(from: *const T) -> Self;
    /// # Safety
    /// The vector at `to` is writable.
    unsafe fn store(self, to: *mut T);
    /// `self * factor + to`.
    fn multiply_add(self, factor: Self, to: Self) -> Self;
}

/// As the compiler sees fit.
#[derive(Clone, Copy)]
struct Plain<T, const LANES: usize, const FMA: bool>([T; LANES]);

impl<T: Scalar, const LANES: usize, const FMA: bool> Vector<T> for Plain<T, LANES, FMA> {
    #[inline(always)]
    fn splat(value: T) -> Self {
        Self([value; LANES])
    }
    #[inline(always)]
    unsafe fn load(from: *const T) -> Self {
        // SAFETY: the caller's promise.
        Self(unsafe { from.cast::<[T; LANES]>().read() })
    }
    #[inline(always)]
    unsafe fn store(self, to: *mut T) {
        // SAFETY: the caller's promise.
        unsafe { to.cast::<[T; LANES]>().write(self.0) };
    }
    #[inline(always)]
    fn multiply_add(self, factor: Self, to: Self) -> Self {
        Self(std::array::from_fn(|i| multiply_add::<T, FMA>(self.0[i], factor.0[i], to.0[i])))
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    /// One register of 512 bits; only where the machine has them.
    #[derive(Clone, Copy)]
    pub(super) struct Wide(__m512);

    impl super::Vector<f32> for Wide {
        #[inline(always)]
        fn splat(value: f32) -> Self {
            // SAFETY: the machine has AVX-512.
            Self(unsafe { _mm512_set1_ps(value) })
        }
        #[inline(always)]
        unsafe fn load(from: *const f32) -> Self {
            // SAFETY: as above, and the caller's promise.
            Self(unsafe { _mm512_loadu_ps(from) })
        }
        #[inline(always)]
        unsafe fn store(self, to: *mut f32) {
            // SAFETY: as above, and the caller's promise.
            unsafe { _mm512_storeu_ps(to, self.0) };
        }
        #[inline(always)]
        fn multiply_add(self, factor: Self, to: Self) -> Self {
            // SAFETY: as above.
            Self(unsafe { _mm512_fmadd_ps(self.0, factor.0, to.0) })
        }
    }
}

/// Tiles of at most `ROWS` (6) by `COLUMNS` (4) vectors, as even as the shape allows.
///
/// # Safety
/// As [`multiply`].
#[inline(always)]
unsafe fn tiles<T: Scalar, V: Vector<T>, const LANES: usize, const ROWS: usize, const COLUMNS: usize>(
    room: *mut T,
    product: Product<'_, T>,
) {
    let (m, n) = product.shape;
    let even = |size: usize, most: usize| size.div_ceil(size.div_ceil(most).max(1)).max(1);
    let (height, width) = (even(m, ROWS), even(n, COLUMNS));
    macro_rules! pick {
        ($rows:expr, $columns:expr, $at:expr; $($m:literal)*) => { match $rows { $($m => pick!(@ $columns, $at, $m; 1 2 3 4),)* _ => {} } };
        (@ $columns:expr, $at:expr, $m:literal; $($n:literal)*) => {
            match $columns {
                // Larger tiles than those asked for are never met, and not compiled.
                $($n if $m <= ROWS && $n <= COLUMNS => tile::<T, V, LANES, $m, $n>(room, $at, &product),)*
                _ => {}
            }
        };
    }
    for row in (0..m).step_by(height) {
        for column in (0..n).step_by(width) {
            let (rows, columns) = (height.min(m - row), width.min(n - column));
            // SAFETY: the tile lies inside the product.
            unsafe { pick!(rows, columns, (row, column); 1 2 3 4 5 6) }
        }
    }
}

/// # Safety
/// As [`multiply`]; the tile lies inside the product.
#[inline(always)]
unsafe fn tile<T: Scalar, V: Vector<T>, const LANES: usize, const M: usize, const N: usize>(
    room: *mut T,
    (row, column): (usize, usize),
    product: &Product<'_, T>,
) {
    let at = |vector: usize| room.wrapping_add(vector * LANES);
    let mut sums = [[V::splat(T::ZERO); N]; M];
    for Term { left, right, depth } in product.terms {
        let (mut l, mut r) = (at(left.at(row, 0)).cast_const(), at(right.at(0, column)).cast_const());
        for _ in 0..*depth {
            // SAFETY: M elements of a column to the left and N of a row to the right.
            unsafe {
                let factors: [V; N] = std::array::from_fn(|n| V::load(r.add(n * right.column * LANES)));
                for (m, sums) in sums.iter_mut().enumerate() {
                    let value = V::load(l.add(m * left.row * LANES));
                    for (sum, factor) in sums.iter_mut().zip(factors) {
                        *sum = value.multiply_add(factor, *sum);
                    }
                }
            }
            l = l.wrapping_add(left.column * LANES);
            r = r.wrapping_add(right.row * LANES);
        }
    }
    let scale = V::splat(product.scale);
    for (m, sums) in sums.iter().enumerate() {
        for (n, sum) in sums.iter().enumerate() {
            let before = match product.onto {
                // SAFETY: an element of what is added to.
                Some(onto) => unsafe { V::load(at(onto.at(row + m, column + n))) },
                None => V::splat(T::ZERO),
            };
            // SAFETY: an element of the output.
            unsafe { scale.multiply_add(*sum, before).store(at(product.out.at(row + m, column + n))) };
        }
    }
}
