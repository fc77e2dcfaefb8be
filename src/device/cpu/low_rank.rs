//! The dual form's per-task corrections: inner products of rows (Gram matrices) and their application to a tile.

use super::matrix::{Kernel, dispatch, multiply_add};
use super::scratch::scratch;
use super::{Base, CpuArena, CpuDevice};
use crate::device::{Corrections, Gram, GramInner};
use crate::scalar::Scalar;

/// Assembles `scale * (gram + bias)` of every term into one `[K, N]` matrix for each output block and task.
pub(super) fn assemble<T: Scalar>(
    device: &CpuDevice,
    base: Base<T>,
    tasks: usize,
    rows: usize,
    corrections: &Corrections<'_>,
) {
    for (block, terms) in corrections.blocks.iter().enumerate() {
        let n = columns(corrections, block, tasks);
        let start = coefficient_offset(corrections, block, tasks, rows);
        device.run_ranges(tasks, rows * n, |first, last| {
            for task in first..last {
                let mut column = start + task * rows * n;
                for term in terms {
                    // SAFETY: they are in a declared region that is only read.
                    let scales = unsafe { base.slice(corrections.scales.offset, corrections.scales.len()) };
                    let (scale, bias) = (scales[term.scale], term.bias.map_or(T::ZERO, |index| scales[index]));
                    let count = term.rows.rows / tasks;
                    let from = term.gram.offset + task * term.gram.task_stride;
                    for k in 0..rows {
                        let from = from + k * term.gram.row_stride;
                        for i in 0..count {
                            // SAFETY: the Gram matrices and the scratch are declared regions; each task writes its own.
                            unsafe {
                                let value = *base.at(from + i * term.gram.column_stride);
                                *base.at(column + k * n + i) = scale * (value + bias);
                            }
                        }
                    }
                    column += count;
                }
            }
        });
    }
}

/// Number of correction rows of a block, for each task.
fn columns(corrections: &Corrections<'_>, block: usize, tasks: usize) -> usize {
    corrections.blocks[block].iter().map(|term| term.rows.rows / tasks).sum()
}

fn coefficient_offset(corrections: &Corrections<'_>, block: usize, tasks: usize, rows: usize) -> usize {
    let before: usize = (0..block).map(|b| columns(corrections, b, tasks)).sum();
    corrections.scratch.offset + before * tasks * rows
}

/// Adds one task's corrections of one block to a `[K, columns]` tile.
pub(super) struct Apply<'a, T> {
    pub base: Base<T>,
    pub corrections: &'a Corrections<'a>,
    pub tasks: usize,
    pub rows: usize,
    pub block: usize,
    pub task: usize,
    /// The tile's columns in the output.
    pub columns: std::ops::Range<usize>,
    pub tile: *mut T,
    pub tile_stride: usize,
    /// Reused room for the rows' places in the arena.
    pub offsets: &'a mut Vec<usize>,
}

impl<T: Scalar> Kernel for Apply<'_, T> {
    #[inline(always)]
    fn run<const FMA: bool, const WIDE: bool>(self) {
        self.offsets.clear();
        for term in &self.corrections.blocks[self.block] {
            let count = term.rows.rows / self.tasks;
            for i in 0..count {
                let row = term.rows.offset + (self.task * count + i) * term.rows.width;
                self.offsets.push(row + self.columns.start);
            }
        }
        let n = self.offsets.len();
        if n == 0 {
            return;
        }
        let start = coefficient_offset(self.corrections, self.block, self.tasks, self.rows);
        let coefficients = self.base.at(start + self.task * self.rows * n).cast_const();
        let width = self.columns.len();
        let rows = Rows { base: self.base, offsets: self.offsets };
        // Rows of the tile that are held in registers together: as even as K allows.
        let group = self.rows.div_ceil(self.rows.div_ceil(6));
        let mut row = 0;
        while row < self.rows {
            let size = group.min(self.rows - row);
            // SAFETY: the tile is `[rows, width]`, the coefficients `[rows, n]`, every row has `width` elements.
            unsafe {
                let tile = self.tile.add(row * self.tile_stride);
                let coefficients = coefficients.add(row * n);
                match size {
                    1 => strip::<T, 1, FMA, WIDE>(tile, self.tile_stride, width, coefficients, &rows),
                    2 => strip::<T, 2, FMA, WIDE>(tile, self.tile_stride, width, coefficients, &rows),
                    3 => strip::<T, 3, FMA, WIDE>(tile, self.tile_stride, width, coefficients, &rows),
                    4 => strip::<T, 4, FMA, WIDE>(tile, self.tile_stride, width, coefficients, &rows),
                    5 => strip::<T, 5, FMA, WIDE>(tile, self.tile_stride, width, coefficients, &rows),
                    _ => strip::<T, 6, FMA, WIDE>(tile, self.tile_stride, width, coefficients, &rows),
                }
            }
            row += size;
        }
    }
}

/// Rows that lie anywhere in the arena: one task's corrections, or one weight's.
pub(super) struct Rows<'a, T> {
    pub base: Base<T>,
    pub offsets: &'a [usize],
}

/// `tile[K, width] += coefficients[K, n] @ rows[n, width]`.
#[inline(always)]
unsafe fn strip<T: Scalar, const K: usize, const FMA: bool, const WIDE: bool>(
    tile: *mut T,
    stride: usize,
    width: usize,
    coefficients: *const T,
    rows: &Rows<'_, T>,
) {
    let mut c = 0;
    // As many columns at once as 6 rows of them have registers for.
    let most = if WIDE { 32 } else { 64 / size_of::<T>() };
    // SAFETY: columns `c..c + W` stay below `width`.
    unsafe {
        while most >= 32 && c + 32 <= width {
            columns_of::<T, K, 32, FMA>(tile.add(c), stride, c, coefficients, rows);
            c += 32;
        }
        while most >= 16 && c + 16 <= width {
            columns_of::<T, K, 16, FMA>(tile.add(c), stride, c, coefficients, rows);
            c += 16;
        }
        while c + 8 <= width {
            columns_of::<T, K, 8, FMA>(tile.add(c), stride, c, coefficients, rows);
            c += 8;
        }
        while c < width {
            columns_of::<T, K, 1, FMA>(tile.add(c), stride, c, coefficients, rows);
            c += 1;
        }
    }
}

// By indices alone: sums stay in registers only where everything is inlined, and without link-time optimisation iterators may not be.
#[allow(clippy::needless_range_loop)]
#[inline(always)]
unsafe fn columns_of<T: Scalar, const K: usize, const W: usize, const FMA: bool>(
    tile: *mut T,
    stride: usize,
    column: usize,
    coefficients: *const T,
    rows: &Rows<'_, T>,
) {
    let n = rows.offsets.len();
    // SAFETY: as in `strip`.
    unsafe {
        let mut sums = [[T::ZERO; W]; K];
        for k in 0..K {
            sums[k] = *tile.add(k * stride).cast::<[T; W]>();
        }
        for i in 0..n {
            let row = *rows.offsets.get_unchecked(i);
            let values = *rows.base.at(row + column).cast::<[T; W]>();
            for k in 0..K {
                let factor = *coefficients.add(k * n + i);
                for w in 0..W {
                    sums[k][w] = multiply_add::<T, FMA>(factor, values[w], sums[k][w]);
                }
            }
        }
        for k in 0..K {
            *tile.add(k * stride).cast::<[T; W]>() = sums[k];
        }
    }
}

/// See [`Gram`].
pub(super) fn gram<T: Scalar>(device: &CpuDevice, arena: &mut CpuArena<T>, op: &Gram<'_>) {
    let (tasks, rows, width) = (op.tasks, op.rows, op.x.width);
    let n: usize = op.y.iter().map(|y| y.rows / tasks).sum();
    let blocks = op.x.rows / (tasks * rows);
    assert_eq!(op.output.len(), op.x.rows * n, "the output must hold every product");
    let base = arena.shared(&[op.x], &[op.output]);
    device.run_ranges(blocks * tasks, 2 * rows * n * width, |first, last| {
        scratch::<T, _>(0, |offsets, _| {
            for item in first..last {
                let task = item % tasks;
                offsets.clear();
                for y in op.y {
                    let count = y.rows / tasks;
                    offsets.extend((0..count).map(|i| y.offset + (task * count + i) * width));
                }
                let x = base.at(op.x.offset + item * rows * width).cast_const();
                let out = base.at(op.output.offset + item * rows * n);
                let y = Rows { base, offsets };
                dispatch(Products { x, rows, width, y, out, out_stride: n, accumulate: op.accumulate });
            }
        });
    });
}

/// `out[rows, y.len()] (+)= x y^T`.
pub(super) struct Products<'a, T> {
    pub x: *const T,
    pub rows: usize,
    pub width: usize,
    pub y: Rows<'a, T>,
    pub out: *mut T,
    pub out_stride: usize,
    pub accumulate: bool,
}

impl<T: Scalar> Kernel for Products<'_, T> {
    #[inline(always)]
    fn run<const FMA: bool, const WIDE: bool>(self) {
        let n = self.y.offsets.len();
        let group = self.rows.div_ceil(self.rows.div_ceil(5));
        let mut row = 0;
        while row < self.rows {
            let size = group.min(self.rows - row);
            // As many sums as there are registers.
            let columns = if WIDE { 4 } else { 2 };
            for column in (0..n).step_by(columns) {
                let y = Rows { base: self.y.base, offsets: &self.y.offsets[column..n.min(column + columns)] };
                // SAFETY: rows `row..row + size` of x and of the output exist; every y has `width` elements.
                unsafe {
                    let x = self.x.add(row * self.width);
                    let out = self.out.add(row * self.out_stride + column);
                    let out = Sums { out, stride: self.out_stride, accumulate: self.accumulate };
                    if WIDE {
                        patches::<T, 4, 16, FMA>(size, x, self.width, &y, &out);
                    } else {
                        patches::<T, 2, 8, FMA>(size, x, self.width, &y, &out);
                    }
                }
            }
            row += size;
        }
    }
}

/// Where inner products go.
struct Sums<T> {
    out: *mut T,
    stride: usize,
    accumulate: bool,
}

/// The sum of W numbers, a power of two, by halves.
#[inline(always)]
fn sum_of<T: Scalar, const W: usize>(mut v: [T; W]) -> T {
    let mut half = W / 2;
    while half > 0 {
        for i in 0..half {
            v[i] += v[i + half];
        }
        half /= 2;
    }
    v[0]
}

/// [`patch`] of `rows` rows, up to 5.
#[inline(always)]
unsafe fn patches<T: Scalar, const N: usize, const W: usize, const FMA: bool>(
    rows: usize,
    x: *const T,
    width: usize,
    y: &Rows<'_, T>,
    out: &Sums<T>,
) {
    // SAFETY: the caller's promise.
    unsafe {
        match rows {
            1 => patch::<T, 1, N, W, FMA>(x, width, y, out),
            2 => patch::<T, 2, N, W, FMA>(x, width, y, out),
            3 => patch::<T, 3, N, W, FMA>(x, width, y, out),
            4 => patch::<T, 4, N, W, FMA>(x, width, y, out),
            _ => patch::<T, 5, N, W, FMA>(x, width, y, out),
        }
    }
}

/// Up to K x N inner products at once, W numbers at a time.
// By indices alone, as above.
#[allow(clippy::needless_range_loop)]
#[inline(always)]
unsafe fn patch<T: Scalar, const K: usize, const N: usize, const W: usize, const FMA: bool>(
    x: *const T,
    width: usize,
    y: &Rows<'_, T>,
    out: &Sums<T>,
) {
    // A missing column repeats the last one: its products are computed and dropped.
    let last = y.offsets.len() - 1;
    let y: [*const T; N] = std::array::from_fn(|i| y.base.at(y.offsets[i.min(last)]).cast_const());
    let mut sums = [[[T::ZERO; W]; N]; K];
    let accumulate = out.accumulate;
    let whole = width - width % W;
    // SAFETY: the caller's promise.
    unsafe {
        let mut c = 0;
        while c < whole {
            let mut columns = [[T::ZERO; W]; N];
            for i in 0..N {
                columns[i] = *y[i].add(c).cast::<[T; W]>();
            }
            for k in 0..K {
                let values = *x.add(k * width + c).cast::<[T; W]>();
                for i in 0..N {
                    for w in 0..W {
                        sums[k][i][w] = multiply_add::<T, FMA>(values[w], columns[i][w], sums[k][i][w]);
                    }
                }
            }
            c += W;
        }
        for k in 0..K {
            for i in 0..=last {
                let mut total = sum_of(sums[k][i]);
                for c in whole..width {
                    total += *x.add(k * width + c) * *y[i].add(c);
                }
                let out = out.out.add(k * out.stride + i);
                *out = if accumulate { *out + total } else { total };
            }
        }
    }
}

/// See [`GramInner`].
pub(super) fn gram_inner<T: Scalar>(arena: &mut CpuArena<T>, op: &GramInner) {
    let one = if op.plus_one { 1.0 } else { 0.0 };
    for group in 0..op.output.width {
        let mut sum = 0.0;
        for row in 0..op.left.rows {
            let left = &arena.slice(op.left.rows(row, 1))[group * op.group..][..op.group];
            sum += match op.right {
                Some(right) => {
                    let right = &arena.slice(right.rows(row, 1))[group * op.group..][..op.group];
                    left.iter().zip(right).map(|(l, r)| l.to_f64() * (r.to_f64() + one)).sum::<f64>()
                }
                None => left.iter().map(|l| l.to_f64() * one).sum(),
            };
        }
        let out = &mut arena.slice_mut(op.output)[group];
        *out = T::from_f64(out.to_f64() - op.scale * sum);
    }
}
