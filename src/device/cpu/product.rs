//! A product of rows with weights, tile by tile: corrections, bias and everything that follows are applied to a tile while it is hot.

use super::avx512;
use super::linear::{Columns, Finish};
use super::low_rank::{self, Apply, Products, Rows};
use super::matrix::{Kernel, Matrix, Onto, dispatch};
use super::multiply::multiply_any;
use super::panels::Panels;
use super::scratch::scratch;
use super::transpose::transpose;
use super::{Base, CpuDevice};
use crate::device::{Corrections, Linear, Region};
use crate::scalar::Scalar;

/// Rows of a tile at most: with [`TILE_COLUMNS`] they stay in a core's L2 cache.
const TILE_ROWS: usize = 512;
/// Columns of a tile at most.
const TILE_COLUMNS: usize = 128;
/// Rows of a transposed piece of a weight at most: with [`TILE_COLUMNS`] it stays there as well.
const PANEL_ROWS: usize = 512;
/// Rows a task up to which a product with its own transposed weights is made of inner products.
const FEW_ROWS: usize = 16;
/// Inner dimension from which inner products are worth their final sums.
const LONG: usize = 64;

/// A product that is added to the blocks from `first_block` on.
#[derive(Clone, Copy)]
pub(super) struct Source<T> {
    pub input: Region,
    pub first_block: usize,
    pub layer: Linear,
    /// With `W^T` (and the layer's outputs as columns) rather than with `W`.
    pub transposed: bool,
    /// Whether the layer's bias belongs to it.
    pub bias: bool,
    /// The weight as panels.
    pub panels: Option<Panels<T>>,
}

impl<T> Source<T> {
    /// Where the factor to the right begins, from column `column` on: `[k, columns]`, or `[columns, k]` if transposed.
    fn weights(&self, task: usize, column: usize) -> usize {
        let start = self.layer.weight + task * self.layer.task_stride;
        start + if self.transposed { column * self.layer.inputs } else { column }
    }
}

/// What the four operations share: sources, corrections and the shape of the output.
pub(super) struct Product<'a, T> {
    pub tasks: usize,
    pub rows: usize,
    pub blocks: usize,
    pub width: usize,
    pub sources: [Option<Source<T>>; 2],
    pub corrections: Corrections<'a>,
    /// The factor of the sources' weights and biases.
    pub share: T,
    /// What blocks that no source reaches begin with: rows as those of the output, or 0.
    pub base: Option<Region>,
    /// Where tiles are computed; a thread's own scratch when there is none.
    pub target: Option<Region>,
    pub finish: Finish<'a>,
}

/// Tasks `first..last`, columns `from..to`.
#[derive(Clone, Copy)]
struct Span {
    tasks: (usize, usize),
    columns: (usize, usize),
}

impl<T: Scalar> Product<'_, T> {
    fn inner(&self) -> usize {
        self.sources.iter().flatten().map(|s| s.input.width).sum()
    }

    /// Cuts the output into tiles: enough of them for the threads, each small enough for the cache.
    fn tiles(&self, threads: usize) -> (usize, usize) {
        let shared = self.sources.iter().flatten().all(|s| s.layer.is_shared());
        let flop = 2 * self.blocks * self.tasks * self.rows * self.width * self.inner().max(1);
        let wanted = if threads == 1 || flop < 1 << 16 { 1 } else { 4 * threads };
        let task_ranges = (self.blocks * self.tasks * self.rows).div_ceil(TILE_ROWS).min(self.tasks);
        if !shared {
            // Every task has its own weights: nothing is gained by wide ranges of tasks.
            let columns = self.width.div_ceil(2 * TILE_COLUMNS);
            return (wanted.div_ceil(columns).max(task_ranges).min(self.tasks), columns);
        }
        let columns = self.width.div_ceil(TILE_COLUMNS);
        let columns = columns.max(wanted.div_ceil(task_ranges).min(self.width.div_ceil(32)));
        (task_ranges.max(wanted.div_ceil(columns).min(self.tasks)), columns)
    }

    /// Computes every tile.
    pub fn run(&self, device: &CpuDevice, base: Base<T>) {
        low_rank::assemble(device, base, self.tasks, self.rows, &self.corrections);
        let (task_ranges, column_ranges) = self.tiles(device.threads());
        // Column edges at multiples of a vector or a panel, so that only the last tile has a ragged edge.
        let paneled = self.sources.iter().flatten().any(|s| s.panels.is_some());
        let edge = if paneled { avx512::COLUMNS } else { 16 };
        let columns = self.width.div_ceil(column_ranges).next_multiple_of(edge).min(self.width);
        let column_ranges = self.width.div_ceil(columns);
        device.run(task_ranges * column_ranges, |job| {
            let (range, column) = (job % task_ranges, job / task_ranges * columns);
            let tasks = (self.tasks * range / task_ranges, self.tasks * (range + 1) / task_ranges);
            let span = Span { tasks, columns: (column, self.width.min(column + columns)) };
            let width = span.columns.1 - span.columns.0;
            let room = if self.target.is_some() { 0 } else { self.blocks * (tasks.1 - tasks.0) * self.rows * width };
            let panel = |s: &Source<T>| {
                if s.transposed && s.panels.is_none() { s.input.width.min(PANEL_ROWS) * width } else { 0 }
            };
            let panel = self.sources.iter().flatten().map(panel).max().unwrap_or(0);
            scratch(room + panel, |offsets, own| {
                let (own, panel) = own.split_at_mut(room);
                let (own, panel) = (own.as_mut_ptr(), panel.as_mut_ptr());
                dispatch(Tile { product: self, base, span, own, panel, offsets });
            });
        });
    }
}

/// One tile of a product.
struct Tile<'a, T> {
    product: &'a Product<'a, T>,
    base: Base<T>,
    span: Span,
    own: *mut T,
    /// Room for a transposed piece of a weight.
    panel: *mut T,
    offsets: &'a mut Vec<usize>,
}

impl<T: Scalar> Tile<'_, T> {
    /// Where the tile's rows of one block and task begin, and their stride.
    fn place(&self, block: usize, task: usize) -> (*mut T, usize) {
        let Span { tasks: (first, last), columns: (from, to) } = self.span;
        let rows = self.product.rows;
        match self.product.target {
            Some(region) => {
                let row = (block * self.product.tasks + task) * rows;
                (self.base.at(region.offset + row * region.width + from), region.width)
            }
            None => {
                let width = to - from;
                (self.own.wrapping_add((block * (last - first) + task - first) * rows * width), width)
            }
        }
    }

    /// One product: `rows` rows of a source from `(block, task)` on, with that task's weights.
    #[inline(always)]
    fn multiply<const FMA: bool, const WIDE: bool>(
        &mut self,
        source: &Source<T>,
        (block, task): (usize, usize),
        rows: usize,
        onto: Onto<T>,
    ) {
        let product = self.product;
        let (from, to) = self.span.columns;
        let (k, width) = (source.input.width, to - from);
        let row = ((block - source.first_block) * product.tasks + task) * product.rows;
        let left = self.base.at(source.input.offset + row * k);
        let (start, stride) = (source.weights(task, from), source.layer.inputs);
        let (out, out_stride) = self.place(block, task);
        let share = product.share;
        // SAFETY: the operands are declared regions of these shapes, tile and panel are this job's own.
        unsafe {
            if let Some(panels) = source.panels {
                let left = Matrix::rows(left.cast_const(), k);
                let right = panels.starting_at(from);
                let term = avx512::Term { left, right, depth: k };
                avx512::multiply((rows, width), &[term], share, (out, out_stride), onto);
            } else if source.transposed && !source.layer.is_shared() && k >= LONG && rows <= FEW_ROWS && share == T::ONE
            {
                self.offsets.clear();
                self.offsets.extend((0..width).map(|column| start + column * stride));
                let y = Rows { base: self.base, offsets: self.offsets };
                let accumulate = onto.write((rows, width), (out, out_stride));
                // A function of its own: in one so large its sums would not stay in registers.
                dispatch(Products { x: left.cast_const(), rows, width: k, y, out, out_stride, accumulate });
            } else if source.transposed && width > 1 {
                for first in (0..k).step_by(PANEL_ROWS) {
                    let count = PANEL_ROWS.min(k - first);
                    transpose::<T, WIDE>(
                        Matrix::rows(self.base.at(start + first), stride),
                        width,
                        count,
                        self.panel,
                        width,
                    );
                    let left = Matrix::rows(left.add(first).cast_const(), k);
                    let right = Matrix::rows(self.panel.cast_const(), width);
                    let onto = if first > 0 { Onto::Itself } else { onto };
                    multiply_any((rows, count, width), left, right, share, (out, out_stride), onto);
                }
            } else {
                let (left, right) = (Matrix::rows(left.cast_const(), k), Matrix::rows(self.base.at(start), stride));
                let right = if source.transposed { right.transposed() } else { right };
                multiply_any((rows, k, width), left, right, share, (out, out_stride), onto);
            }
        }
    }

    /// All products and biases, without corrections.
    #[inline(always)]
    fn products<const FMA: bool, const WIDE: bool>(&mut self) {
        let product = self.product;
        let Span { tasks: (first, last), columns: (from, to) } = self.span;
        let (count, width) = (last - first, to - from);
        // A share of a bias is added; a whole one is what the product is put onto.
        let fused = product.share == T::ONE;
        let mut begun = [false; 8];
        for source in product.sources.iter().flatten() {
            let blocks = source.input.rows / (product.tasks * product.rows);
            let range = source.first_block..source.first_block + blocks;
            let onto = |tile: &Self, begun: bool, task: usize| {
                if begun {
                    Onto::Itself
                } else if source.bias && fused {
                    Onto::Rows(tile.bias(source, task), 0)
                } else {
                    Onto::Nothing
                }
            };
            let whole = count == product.tasks && source.layer.is_shared();
            if whole && range.clone().all(|b| !begun[b]) {
                let onto = onto(self, false, 0);
                self.multiply::<FMA, WIDE>(source, (range.start, 0), blocks * count * product.rows, onto);
                if source.bias && !fused {
                    let places = range.clone().flat_map(|block| (first..last).map(move |task| (block, task)));
                    places.for_each(|(block, task)| self.add_bias(source, block, task));
                }
            } else {
                for block in range.clone() {
                    if source.layer.is_shared() {
                        let onto = onto(self, begun[block], 0);
                        self.multiply::<FMA, WIDE>(source, (block, first), count * product.rows, onto);
                    } else {
                        for task in first..last {
                            let onto = onto(self, begun[block], task);
                            self.multiply::<FMA, WIDE>(source, (block, task), product.rows, onto);
                        }
                    }
                    if source.bias && (begun[block] || !fused) {
                        (first..last).for_each(|task| self.add_bias(source, block, task));
                    }
                }
            }
            range.for_each(|block| begun[block] = true);
        }
        for block in (0..product.blocks).filter(|b| !begun[*b]) {
            for task in first..last {
                let (tile, stride) = self.place(block, task);
                for k in 0..product.rows {
                    // SAFETY: the tile is this job's own, the base a declared region that is only read.
                    unsafe {
                        let own = std::slice::from_raw_parts_mut(tile.add(k * stride), width);
                        let row = (block * product.tasks + task) * product.rows + k;
                        match product.base {
                            Some(rows) => {
                                own.copy_from_slice(self.base.slice(rows.offset + row * rows.width + from, width))
                            }
                            None => own.fill(T::ZERO),
                        }
                    }
                }
            }
        }
    }

    /// The tile's columns of a source's bias.
    fn bias(&self, source: &Source<T>, task: usize) -> *const T {
        let start = source.layer.bias + task * source.layer.task_stride;
        self.base.at(start + self.span.columns.0).cast_const()
    }

    #[inline(always)]
    fn add_bias(&self, source: &Source<T>, block: usize, task: usize) {
        let width = self.span.columns.1 - self.span.columns.0;
        let (tile, stride) = self.place(block, task);
        for k in 0..self.product.rows {
            // SAFETY: the bias is a declared region, the tile this job's own.
            unsafe {
                let bias = std::slice::from_raw_parts(self.bias(source, task), width);
                let row = std::slice::from_raw_parts_mut(tile.add(k * stride), width);
                row.iter_mut().zip(bias).for_each(|(r, b)| *r += self.product.share * *b);
            }
        }
    }
}

impl<T: Scalar> Kernel for Tile<'_, T> {
    #[inline(always)]
    fn run<const FMA: bool, const WIDE: bool>(mut self) {
        self.products::<FMA, WIDE>();
        let product = self.product;
        let (from, to) = self.span.columns;
        for block in 0..product.blocks {
            for task in self.span.tasks.0..self.span.tasks.1 {
                let (tile, tile_stride) = self.place(block, task);
                if !product.corrections.blocks.is_empty() {
                    let apply = Apply {
                        base: self.base,
                        corrections: &product.corrections,
                        tasks: product.tasks,
                        rows: product.rows,
                        block,
                        task,
                        columns: from..to,
                        tile,
                        tile_stride,
                        offsets: self.offsets,
                    };
                    dispatch(apply);
                }
                let columns = Columns { from, to, rows: product.rows };
                product.finish.apply(self.base, (product.tasks, block, task), columns, tile, tile_stride);
            }
        }
    }
}
