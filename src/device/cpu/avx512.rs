//! Products in single precision with 512-bit vectors, straight from where the factors lie.
//!
//! Sums of up to 6 rows by 4 vectors stay in registers, a ragged edge is masked, and nothing is packed: on two Zen 4 cores a
//! large product runs at 200 to 213 GFLOP/s, where the `gemm` crate reaches 179 (`benches/results/`).

use super::matrix::{Matrix, Onto};
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

/// `left right`, with `depth` columns to the left and rows to the right.
#[derive(Clone, Copy)]
pub(super) struct Term<T> {
    pub left: Matrix<T>,
    pub right: Right<T>,
    pub depth: usize,
}

impl<T> Term<T> {
    /// `depth` columns to the left and rows to the right, from `begin` on.
    fn piece(&self, begin: usize, depth: usize) -> Self {
        let left = self.left.pointer.wrapping_add(begin * self.left.column_stride);
        let right = self.right.pointer.wrapping_add(begin * self.right.row_stride);
        Self { left: Matrix { pointer: left, ..self.left }, right: Right { pointer: right, ..self.right }, depth }
    }
}

/// `out = onto + scale * sum of terms`, `[m, n]`, which leaves the registers once where the terms are short.
///
/// # Safety
/// [`serves`] says so. Every `left` is `[m, depth]` and every `right` `[depth, n]`, all readable; `out`, with its stride, is
/// writable and overlaps none of them, nor rows it is added onto.
pub(super) unsafe fn multiply<T: Scalar>(
    (m, n): (usize, usize),
    terms: &[Term<T>],
    scale: T,
    (out, stride): (*mut T, usize),
    onto: Onto<T>,
) {
    debug_assert!(serves::<T>());
    #[cfg(target_arch = "x86_64")]
    {
        // SAFETY: T is f32, which leaves the slice as it is.
        let terms = unsafe { std::slice::from_raw_parts(terms.as_ptr().cast::<Term<f32>>(), terms.len()) };
        let (accumulate, before, before_stride) = match onto {
            Onto::Nothing => (false, out.cast_const(), stride),
            Onto::Itself => (true, out.cast_const(), stride),
            Onto::Rows(rows, stride) => (true, rows, stride),
        };
        let (out, before, scale) = (out.cast(), before.cast(), scale.to_f64() as f32);
        let target = x86::Target { out, stride, scale, accumulate, before, before_stride };
        // SAFETY: the caller's promise; the machine has AVX-512.
        unsafe {
            match terms {
                [Term { left, right, depth }] if n == 1 && left.column_stride == 1 && right.row_stride == 1 => {
                    x86::column((m, *depth), left.pointer, left.row_stride, right.pointer, target);
                }
                _ => x86::multiply((m, n), terms, target),
            }
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    unreachable!(
        "this machine has no AVX-512: {:?}",
        (m, n, terms.len(), scale, out, stride, matches!(onto, Onto::Itself))
    );
}

/// Rows of the sums that are in registers at once, for `m` in all: as even as it goes.
pub(super) fn group(m: usize) -> usize {
    m.div_ceil(m.div_ceil(6))
}

/// `out (+)= scale * left right`, `[m, n]`, with the left factor in groups of [`group`] rows, or what is left of them: each
/// `[depth, rows]`, one after the other.
///
/// # Safety
/// As [`multiply`].
pub(super) unsafe fn multiply_groups<T: Scalar>(
    (m, depth, n): (usize, usize, usize),
    left: *const T,
    right: Right<T>,
    scale: T,
    (out, stride): (*mut T, usize),
    accumulate: bool,
) {
    debug_assert!(serves::<T>());
    #[cfg(target_arch = "x86_64")]
    {
        let right =
            Right { pointer: right.pointer.cast(), row_stride: right.row_stride, panel_stride: right.panel_stride };
        let (out, scale) = (out.cast(), scale.to_f64() as f32);
        let target = x86::Target { out, stride, scale, accumulate, before: out, before_stride: stride };
        // SAFETY: the caller's promise; T is f32, and the machine has AVX-512.
        unsafe { x86::groups((m, depth, n), left.cast(), right, target) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    unreachable!(
        "this machine has no AVX-512: {:?}",
        (m, depth, n, left, right.pointer, scale, out, stride, accumulate)
    );
}

#[cfg(target_arch = "x86_64")]
// One index runs through pointers and several arrays at once.
#[allow(clippy::needless_range_loop)]
mod x86 {
    use std::arch::x86_64::*;

    use super::{COLUMNS, Right, Term, group};
    use crate::device::cpu::matrix::Matrix;

    /// Numbers in a vector.
    const LANES: usize = 16;
    /// Rows of the right factor that are gone through at a time: their piece of a panel stays in the L2 cache.
    const DEPTH: usize = 512;
    /// Rows of several terms that are summed up in registers: more of them would push the left factors, which are gone through
    /// across their rows, out of the L1 cache between two strips.
    const SHORT: usize = 96;

    /// Where a product goes, and how.
    #[derive(Clone, Copy)]
    pub struct Target {
        pub out: *mut f32,
        pub stride: usize,
        pub scale: f32,
        /// Whether it is added to what lies before it.
        pub accumulate: bool,
        pub before: *const f32,
        pub before_stride: usize,
    }

    impl Target {
        /// From this row and column on.
        fn part(self, row: usize, column: usize) -> Self {
            let out = self.out.wrapping_add(row * self.stride + column);
            let before = self.before.wrapping_add(row * self.before_stride + column);
            Self { out, before, ..self }
        }

        /// The same, to add to.
        fn begun(self) -> Self {
            Self { accumulate: true, before: self.out, before_stride: self.stride, ..self }
        }
    }

    /// See [`super::multiply`].
    #[target_feature(enable = "avx512f,avx512vl")]
    pub unsafe fn multiply(shape: (usize, usize), terms: &[Term<f32>], mut target: Target) {
        let mut rest = terms;
        while let Some(first) = rest.first() {
            // As many terms as are short together, or one, piece by piece.
            let mut depth = 0;
            let short = |t: &&Term<f32>| {
                depth += t.depth;
                depth <= SHORT
            };
            let count = rest.iter().take_while(short).count().max(1);
            if count > 1 {
                // SAFETY: the caller's promise.
                unsafe { pass(shape, &rest[..count], target) };
                target = target.begun();
            } else {
                for begin in (0..first.depth.max(1)).step_by(DEPTH) {
                    let piece = first.piece(begin, DEPTH.min(first.depth - begin));
                    // SAFETY: the caller's promise.
                    unsafe { pass(shape, &[piece], target) };
                    target = target.begun();
                }
            }
            rest = &rest[count..];
        }
    }

    /// All strips.
    #[target_feature(enable = "avx512f,avx512vl")]
    unsafe fn pass((m, n): (usize, usize), terms: &[Term<f32>], target: Target) {
        let group = group(m);
        for row in (0..m).step_by(group) {
            for column in (0..n).step_by(COLUMNS) {
                let size = (group.min(m - row), (n - column).min(COLUMNS));
                // SAFETY: `group` rows, or what is left of them, and at most 64 columns from here on exist.
                unsafe { rows(size, (row, column), terms, target.part(row, column)) };
            }
        }
    }

    /// See [`super::multiply_groups`].
    #[target_feature(enable = "avx512f,avx512vl")]
    pub unsafe fn groups((m, depth, n): (usize, usize, usize), left: *const f32, right: Right<f32>, target: Target) {
        let group = group(m);
        for row in (0..m).step_by(group) {
            let height = group.min(m - row);
            // A strip goes `row` rows further.
            let pointer = left.wrapping_add(row * depth).wrapping_sub(row);
            let left = Matrix { pointer, row_stride: 1, column_stride: height };
            for column in (0..n).step_by(COLUMNS) {
                let size = (height, (n - column).min(COLUMNS));
                let term = Term { left, right, depth };
                // SAFETY: as in `pass`.
                unsafe { rows(size, (row, column), &[term], target.part(row, column)) };
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
            // SAFETY: the output and what lies before it have m rows.
            unsafe {
                let before = if target.accumulate { *target.before.add(row * target.before_stride) } else { 0.0 };
                *target.out.add(row * target.stride) = before + sum;
            }
        }
    }

    /// No columns beyond the full vectors of a strip; up to 8, in a vector of half the width; more.
    const NO_TAIL: u8 = 0;
    const HALF: u8 = 1;
    const WHOLE: u8 = 2;

    /// Picks the strip of this size.
    #[target_feature(enable = "avx512f,avx512vl")]
    #[inline]
    unsafe fn rows((rows, columns): (usize, usize), from: (usize, usize), terms: &[Term<f32>], target: Target) {
        let tail = match columns % LANES {
            0 => NO_TAIL,
            1..=8 => HALF,
            _ => WHOLE,
        };
        macro_rules! strips {
            ($($rows:literal)*) => {
                match rows {
                    $($rows => strips!($rows: 0 1 2 3),)*
                    _ => unreachable!("a group has 1 to 6 rows"),
                }
            };
            ($rows:literal: $($full:literal)*) => {
                match (columns / LANES, tail) {
                    $(
                        ($full, NO_TAIL) => strip::<$rows, $full, NO_TAIL>(columns, from, terms, target),
                        ($full, HALF) => strip::<$rows, $full, HALF>(columns, from, terms, target),
                        ($full, _) => strip::<$rows, $full, WHOLE>(columns, from, terms, target),
                    )*
                    _ => strip::<$rows, 4, NO_TAIL>(columns, from, terms, target),
                }
            };
        }
        // SAFETY: the caller's promise.
        unsafe { strips!(1 2 3 4 5 6) }
    }

    /// `M` rows, `V` full vectors and a tail of columns, which is masked. With 256-bit units a tail of half a vector takes
    /// half the time of a whole one.
    #[target_feature(enable = "avx512f,avx512vl")]
    unsafe fn strip<const M: usize, const V: usize, const TAIL: u8>(
        columns: usize,
        (row, column): (usize, usize),
        terms: &[Term<f32>],
        target: Target,
    ) {
        let mask = ((1_u32 << (columns % LANES)) - 1) as __mmask16;
        let half = mask as __mmask8;
        let mut sums = [[_mm512_setzero_ps(); V]; M];
        let mut tails = [_mm512_setzero_ps(); M];
        let mut halves = [_mm256_setzero_ps(); M];
        for Term { left, right, depth } in terms {
            let mut factors = left.pointer.wrapping_add(row * left.row_stride);
            let mut from = right.pointer.wrapping_add(column / COLUMNS * right.panel_stride);
            for _ in 0..*depth {
                // SAFETY: the first `columns` elements of a row of `right`, an element of M rows of `left`.
                unsafe {
                    let mut values = [_mm512_setzero_ps(); V];
                    for v in 0..V {
                        values[v] = _mm512_loadu_ps(from.add(v * LANES));
                    }
                    let rest = from.add(V * LANES);
                    let tail = if TAIL == WHOLE { _mm512_maskz_loadu_ps(mask, rest) } else { _mm512_setzero_ps() };
                    let half_tail = if TAIL == HALF { _mm256_maskz_loadu_ps(half, rest) } else { _mm256_setzero_ps() };
                    for m in 0..M {
                        let factor = _mm512_set1_ps(*factors.add(m * left.row_stride));
                        for v in 0..V {
                            sums[m][v] = _mm512_fmadd_ps(factor, values[v], sums[m][v]);
                        }
                        match TAIL {
                            WHOLE => tails[m] = _mm512_fmadd_ps(factor, tail, tails[m]),
                            HALF => halves[m] = _mm256_fmadd_ps(_mm512_castps512_ps256(factor), half_tail, halves[m]),
                            _ => {}
                        }
                    }
                }
                factors = factors.wrapping_add(left.column_stride);
                from = from.wrapping_add(right.row_stride);
            }
        }
        let scale = _mm512_set1_ps(target.scale);
        let half_scale = _mm256_set1_ps(target.scale);
        let at = |m: usize, v: usize| target.out.wrapping_add(m * target.stride + v * LANES);
        let before_at = |m: usize, v: usize| target.before.wrapping_add(m * target.before_stride + v * LANES);
        // Everything is loaded before anything is stored: a load that touches the line of a masked store waits for it.
        for m in 0..M {
            // SAFETY: the first `columns` elements of M rows of the output.
            unsafe {
                for v in 0..V {
                    let before = if target.accumulate { _mm512_loadu_ps(before_at(m, v)) } else { _mm512_setzero_ps() };
                    sums[m][v] = _mm512_fmadd_ps(scale, sums[m][v], before);
                }
                if TAIL == WHOLE {
                    let mask = if target.accumulate { mask } else { 0 };
                    tails[m] = _mm512_fmadd_ps(scale, tails[m], _mm512_maskz_loadu_ps(mask, before_at(m, V)));
                }
                if TAIL == HALF {
                    let half = if target.accumulate { half } else { 0 };
                    halves[m] = _mm256_fmadd_ps(half_scale, halves[m], _mm256_maskz_loadu_ps(half, before_at(m, V)));
                }
            }
        }
        for m in 0..M {
            // SAFETY: as above.
            unsafe {
                for v in 0..V {
                    _mm512_storeu_ps(at(m, v), sums[m][v]);
                }
                match TAIL {
                    WHOLE => _mm512_mask_storeu_ps(at(m, V), mask, tails[m]),
                    HALF => _mm256_mask_storeu_ps(at(m, V), half, halves[m]),
                    _ => {}
                }
            }
        }
    }
}
