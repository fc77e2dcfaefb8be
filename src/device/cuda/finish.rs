//! The ends of products that Hopper's warpgroups have left as sums.
//!
//! An end is put off until it is known what comes next: a loss of what comes out, inner products of those rows with earlier ones,
//! and narrow layers that they go into (`chain.rs`) are the same launch's, while the rows are at hand. Whatever else comes next,
//! the end goes first.

use std::mem::offset_of;
use std::sync::{MutexGuard, PoisonError};

use bytemuck::Zeroable;

use super::driver::{Driver, Kernel};
use super::ended::{EndedGram, EndedLoss};
use super::hopper::Raw;
use super::linear::Product;
use super::low_rank::{self, Applied, Corrections, GROUP, check_corrections};
use super::{Arguments, CudaArena, CudaDevice, NOWHERE, chain, loss, narrow, pack, wide};
use crate::device::{self, Region, SupervisedLoss};

/// Columns of a warp: of `kernels/finish.cu`.
const STRIP: usize = 128;
/// Bytes of shared memory for what is read beside the sums: what a block of three to a multiprocessor can have beside what it declares.
pub(super) const STAGED: usize = 48 << 10;

#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
pub(super) struct Finish {
    pub corrections: Corrections,
    pub product: Product,
    pub raw: u64,
    pub packed: u64,
    pub loss: EndedLoss,
    pub gram: EndedGram,
    pub parts: u32,
    pub copied: u32,
    staged: u32,
    pub loss_of_gate: u32,
}

super::arguments! {
    Finish, 3976 => FinishForward FinishBackward FinishAdjoint;
}

/// The end of a product that was asked for and not launched yet, or several that are a chain; and what they touch, in room that is
/// kept.
pub(super) struct Pending<D: Driver> {
    pub ends: Vec<End<D>>,
    /// The task losses of the prediction that it makes, which come after it.
    pub losses: Option<SupervisedLoss>,
    pub reads: Vec<Region>,
    pub writes: Vec<Region>,
}

pub(super) struct End<D: Driver> {
    pub device: CudaDevice<D>,
    pub kernel: Kernel,
    pub call: Finish,
    pub grid: [usize; 3],
    /// T and K.
    pub shape: (usize, usize),
    /// Rows that go into an output at most.
    pub most: usize,
    /// Factors of the inner products.
    pub factors: usize,
    pub raw: Raw,
    pub given: Given,
    pub output: Region,
    /// The rows made last: the output's, or the loss's.
    pub made: Region,
}

/// What an end is of.
#[derive(Clone, Copy, Debug)]
pub(super) enum Given {
    /// Sums that lie there, or nothing.
    Sums,
    /// Rows, as they are.
    Rows,
    /// The product of the rows that the end before makes.
    Product(chain::Taken),
}

impl<D: Driver> Default for Pending<D> {
    fn default() -> Self {
        Self { ends: Vec::new(), losses: None, reads: Vec::new(), writes: Vec::new() }
    }
}

/// Whether a kernel is one of this file's.
#[cfg(feature = "cuda")]
pub(super) fn ends(kernel: Kernel) -> bool {
    [Kernel::FinishForward, Kernel::FinishBackward, Kernel::FinishAdjoint].contains(&kernel)
}

/// Ends `output`, whose sums lie at `raw`, with the corrections, all of which one launch holds. `reads` and `writes` are the
/// operation's, which have been checked.
#[allow(clippy::too_many_arguments)]
pub(super) fn finish<D: Driver>(
    device: &CudaDevice<D>,
    arena: &CudaArena<D>,
    kernel: Kernel,
    product: Product,
    corrections: &device::Corrections<'_>,
    shape: (usize, usize),
    (raw, output): (Raw, Region),
    (reads, writes): (&[Region], &[Region]),
) {
    arena.admit(&[corrections.scales], &[output]);
    check_corrections(corrections, shape, |rows, gram| arena.admit(&[rows, gram], &[output]));
    let end = End::new(device, arena, kernel, product, corrections, shape, (raw, output), Given::Sums);
    arena.pending().append(end, corrections, (reads, writes));
}

/// The steps' rows that corrections are made of.
pub(super) fn rows_of(corrections: &device::Corrections<'_>) -> impl Iterator<Item = Region> {
    corrections.blocks.iter().flatten().map(|term| term.rows)
}

/// Launches what was put off, if there is anything.
pub(super) fn flush<D: Driver>(arena: &CudaArena<D>) {
    arena.pending().launch(arena);
}

impl<D: Driver> End<D> {
    /// Of an operation whose regions have been checked.
    #[allow(clippy::too_many_arguments)]
    pub fn new(
        device: &CudaDevice<D>,
        arena: &CudaArena<D>,
        kernel: Kernel,
        product: Product,
        corrections: &device::Corrections<'_>,
        shape: (usize, usize),
        (raw, output): (Raw, Region),
        given: Given,
    ) -> Self {
        let pieces = product.in_fours() && raw.offset.is_multiple_of(4);
        let mut applied = Applied::new(corrections, shape, output, 0, pieces);
        // All of the steps' rows as they are, or all as copies.
        let mut copies = [0; low_rank::LIST];
        let thin = chain::is_thin(output.width);
        let copied = !thin && applied.call.in_fours() && pack::kept(device, arena, rows_of(corrections), &mut copies);
        if copied {
            applied.take_copies(&copies);
        }
        let Applied { call, grid, most } = applied;
        // Rows as they are are not made.
        let makes = call.in_fours() && !thin && !matches!(given, Given::Rows);
        let packed = if makes { pack::produced(device, arena, output) } else { None };
        let call = Finish {
            corrections: call,
            product,
            raw: wide(raw.offset),
            packed: packed.map_or(NOWHERE, wide),
            loss: EndedLoss::zeroed(),
            gram: EndedGram::zeroed(),
            parts: narrow(raw.parts),
            copied: copied.into(),
            staged: 0,
            loss_of_gate: 0,
        };
        let device = device.clone();
        Self { device, kernel, call, grid, shape, most, factors: 0, raw, given, output, made: output }
    }

    fn launch(&self, arena: &CudaArena<D>) {
        let Self { device, kernel, shape, most, output, .. } = self;
        let (mut call, mut grid, (mut tasks, mut rows)) = (self.call, self.grid, *shape);
        let columns = call.gram.columns;
        // Without corrections and inner products it does not matter whose the rows are, and they are taken by eights.
        if *most == 0 && columns == 0 {
            (tasks, rows) = (1, output.rows);
            let pieces = call.corrections.in_fours();
            let mut plain = Applied::new(&device::Corrections::NONE, (tasks, rows), *output, 0, pieces);
            plain.spread_rows();
            (call.corrections, grid) = (plain.call, plain.grid);
        }
        let bytes = call.stage(*kernel, rows);
        let (width, parts) = (output.width, self.raw.parts);
        let shapes = format_args!(
            "{tasks} tasks x {rows} rows of {width} in {parts} parts, {most} correction rows, {columns} inner products"
        );
        device.launch_with(arena, *kernel, grid, narrow(bytes), &call, shapes);
    }

    /// Tells what of it may be left out: outputs that nothing was in.
    fn may_leave_out(&self, arena: &CudaArena<D>) {
        let Finish { product, loss, .. } = &self.call;
        if self.made != self.output && !loss.begun() {
            arena.may_leave_out(offset_of!(Finish, loss) + EndedLoss::OUTPUT, self.made);
        }
        if !product.begun() && product.writes() {
            arena.may_leave_out(offset_of!(Finish, product) + Product::OUTPUT, self.output);
        }
    }

    /// Whether it can be a link of a chain: all that it reads of earlier steps is copied, and no loss follows.
    pub fn is_link(&self) -> bool {
        let copied = self.call.copied != 0 || (self.most == 0 && self.call.gram.columns == 0);
        let thin = chain::is_thin(self.made.width);
        let corrections = &self.call.corrections;
        let terms = chain::may_link(&corrections.terms[..corrections.terms()]);
        terms && (thin || (copied && corrections.in_fours())) && self.call.loss.kind == 0
    }
}

impl<D: Driver> Pending<D> {
    /// Puts an end off as well.
    pub fn append(
        &mut self,
        end: End<D>,
        corrections: &device::Corrections<'_>,
        (reads, writes): (&[Region], &[Region]),
    ) {
        self.reads.extend_from_slice(reads);
        self.writes.extend_from_slice(writes);
        self.reads.push(corrections.scales);
        check_corrections(corrections, end.shape, |_, gram| self.reads.push(gram));
        if end.call.copied == 0 {
            self.reads.extend(rows_of(corrections));
        }
        self.ends.push(end);
    }

    pub fn launch(&mut self, arena: &CudaArena<D>) {
        if self.ends.is_empty() {
            return;
        }
        match self.ends.as_slice() {
            // Nothing was asked of them.
            [end] if matches!(end.given, Given::Rows) && end.call.gram.columns == 0 => {}
            [end] if !chain::is_alone(end) => {
                let begun = [(end.output, end.call.product.begun()), (end.made, end.call.loss.begun())];
                arena.keep_to(begun.iter().filter(|(_, begun)| *begun).map(|(region, _)| region));
                arena.keep_to_writing(&self.reads, &self.writes);
                end.launch(arena);
                end.may_leave_out(arena);
            }
            chain => {
                arena.keep_to(self.reads.iter().chain(&self.writes));
                chain::launch(arena, chain);
            }
        }
        if let Some(op) = self.losses.take() {
            arena.keep_to([op.prediction, op.target].iter().chain(&op.task_loss));
            loss::task_losses(&self.ends[0].device, arena, &op);
        }
        self.ends.clear();
        self.reads.clear();
        self.writes.clear();
    }

    /// Whether a region has nothing to do with what the launch touches already.
    pub fn is_apart(&self, region: Region) -> bool {
        !self.reads.iter().chain(&self.writes).any(|other| other.overlaps(&region))
    }
}

impl Finish {
    /// Makes room in shared memory for what is read beside the sums, if there is enough; returns the bytes.
    fn stage(&mut self, kernel: Kernel, rows: usize) -> usize {
        let (gated, curved) = self.product.reads(kernel == Kernel::FinishAdjoint, kernel == Kernel::FinishBackward);
        let losses = self.loss.kind != 0 && self.loss_of_gate == 0 && self.loss.reads();
        let things = self.parts as usize + usize::from(gated) + usize::from(curved) + usize::from(losses);
        let numbers = things * rows.min(GROUP) * self.corrections.strips() * STRIP;
        let bytes = numbers * size_of::<f32>();
        let staged = self.corrections.in_fours() && bytes <= STAGED;
        self.staged = if staged { narrow(numbers) } else { 0 };
        if staged { bytes } else { 0 }
    }
}

impl<D: Driver> CudaArena<D> {
    pub(super) fn pending(&self) -> MutexGuard<'_, Pending<D>> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
