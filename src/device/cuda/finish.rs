//! The ends of products that Hopper's warpgroups have left as sums.
//!
//! An end is put off until it is known what comes next: a loss of what comes out, inner products of those rows with earlier ones,
//! and narrow layers that they go into (`chain.rs`) are the same launch's, while the rows are at hand. Whatever else comes next,
//! the end goes first.

use std::sync::{MutexGuard, PoisonError};

use bytemuck::Zeroable;

use super::driver::{Driver, Kernel};
use super::hopper::Raw;
use super::linear::Product;
use super::low_rank::{self, Applied, Corrections, Factor, GROUP, check_corrections};
use super::{Arguments, COUNTERS, CudaArena, CudaDevice, NOWHERE, activation_code, chain, loss, narrow, pack, settle, wide};
use crate::device::{self, Gram, Region, SupervisedCurvature, SupervisedLoss};
use crate::objective::Loss;

/// Factors of a Gram matrix at most: `ENDED_LIST` in `kernels/ended.cuh`.
const LIST: usize = 32;
/// Columns of a warp: of `kernels/finish.cu`.
const STRIP: usize = 128;
/// Bytes of shared memory for what is read beside the sums: what a block of three to a multiprocessor can have beside what it declares.
pub(super) const STAGED: usize = 48 << 10;

#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct EndedLoss {
    prediction: u64,
    target: u64,
    output: u64,
    packed: u64,
    kind: u32,
    begun: u32,
    scale: f32,
    unused: u32,
}

#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
pub(super) struct EndedGram {
    pub y: [Factor; LIST],
    pub output: u64,
    parts: u64,
    counters: u64,
    pub columns: u32,
    pub most: u32,
}

#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
pub(super) struct Finish {
    pub corrections: Corrections,
    pub product: Product,
    pub raw: u64,
    pub packed: u64,
    loss: EndedLoss,
    pub gram: EndedGram,
    pub parts: u32,
    copied: u32,
    staged: u32,
    loss_of_gate: u32,
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
    grid: [usize; 3],
    /// T and K.
    pub shape: (usize, usize),
    /// Rows that go into an output at most.
    most: usize,
    /// Factors of the inner products.
    pub factors: usize,
    raw: Raw,
    pub given: Given,
    output: Region,
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
    Product(chain::Given),
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

/// What the kernels' names for losses are: `Following` in `kernels/ended.cuh`.
fn following(loss: Loss, bends: bool) -> Option<u32> {
    match (loss, bends) {
        (Loss::Mse, false) => Some(1),
        (Loss::BceWithLogits, false) => Some(2),
        (Loss::Mse, true) => Some(3),
        (Loss::BceWithLogits, true) => Some(4),
        (Loss::CrossEntropy, _) => None,
    }
}

/// Ends `output`, whose sums lie at `raw`, with the corrections, all of which one launch holds. `reads` and `writes` are the
/// operation's, which have been checked.
#[allow(clippy::too_many_arguments)]
pub(super) fn finish<D: Driver>(
    device: &CudaDevice<D>,
    arena: &CudaArena<D>,
    kernel: Kernel,
    product: Product,
    corrections: &device::Corrections<'_, f32>,
    shape: (usize, usize),
    (raw, output): (Raw, Region),
    (reads, writes): (&[Region], &[Region]),
) {
    check_corrections(corrections, shape, |rows, coefficients| arena.admit(&[rows, coefficients], &[output]));
    let end = End::new(device, arena, kernel, product, corrections, shape, (raw, output), Given::Sums);
    arena.pending().append(end, corrections, (reads, writes));
}

/// The steps' rows that corrections are made of.
pub(super) fn rows_of(corrections: &device::Corrections<'_, f32>) -> impl Iterator<Item = Region> {
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
        corrections: &device::Corrections<'_, f32>,
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

    /// Whether it can be a link of a chain: all that it reads of earlier steps is copied, and no loss follows.
    pub fn is_link(&self) -> bool {
        let copied = self.call.copied != 0 || (self.most == 0 && self.call.gram.columns == 0);
        let thin = chain::is_thin(self.made.width);
        (thin || (copied && self.call.corrections.in_fours())) && self.call.loss.kind == 0
    }
}

impl<D: Driver> Pending<D> {
    /// Puts an end off as well.
    pub fn append(
        &mut self,
        end: End<D>,
        corrections: &device::Corrections<'_, f32>,
        (reads, writes): (&[Region], &[Region]),
    ) {
        self.reads.extend_from_slice(reads);
        self.writes.extend_from_slice(writes);
        check_corrections(corrections, end.shape, |_, coefficients| self.reads.push(coefficients));
        if end.call.copied == 0 {
            self.reads.extend(rows_of(corrections));
        }
        self.ends.push(end);
    }

    pub fn launch(&mut self, arena: &CudaArena<D>) {
        if self.ends.is_empty() {
            return;
        }
        arena.keep_to(self.reads.iter().chain(&self.writes));
        match self.ends.as_slice() {
            // Nothing was asked of them.
            [end] if matches!(end.given, Given::Rows) && end.call.gram.columns == 0 => {}
            [end] if !chain::is_alone(end) => end.launch(arena),
            chain => chain::launch(arena, chain),
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

    /// Whether a loss of these rows, of which it reads `others`, can be a part of the launch: by the same activation.
    fn goes_on_with(&self, kernel: Kernel, op: &SupervisedLoss, rows: Region, others: &[Region]) -> bool {
        let activation = activation_code(op.activation);
        let fits = |end: &End<D>| {
            let alone = matches!(end.given, Given::Sums) && end.call.gram.columns == 0;
            let alike = end.call.product.activation_of(kernel == Kernel::FinishAdjoint) == Some(activation);
            alone && alike && end.kernel == kernel && end.made == rows && end.call.corrections.in_fours()
        };
        self.ends.len() == 1 && self.ends.iter().all(fits) && self.takes(others, false)
    }

    /// Whether it can read these, by fours or one by one.
    fn takes(&self, regions: &[Region], by_ones: bool) -> bool {
        let made = |region: &Region| self.writes.iter().any(|write| write.overlaps(region));
        regions.iter().all(|region| (by_ones || region.offset.is_multiple_of(4)) && !made(region))
    }

    fn follow(&mut self, arena: &CudaArena<D>, loss: EndedLoss, read: Region, made: Region) {
        let Some(end) = self.ends.last_mut() else { return };
        let packed = pack::produced(&end.device, arena, made);
        end.call.loss = EndedLoss { output: wide(made.offset), packed: packed.map_or(NOWHERE, wide), ..loss };
        end.made = made;
        self.reads.push(read);
        self.writes.push(made);
    }
}

/// Has the end that was put off go on with the delta of a loss, if it makes the prediction; says whether.
pub(super) fn with_delta<D: Driver>(arena: &CudaArena<D>, op: &SupervisedLoss, delta: Region) -> bool {
    let pending = &mut *arena.pending();
    let Some(kind) = following(op.loss, false) else { return false };
    let fits = pending.goes_on_with(Kernel::FinishForward, op, op.prediction, &[op.target]);
    if !fits || !delta.offset.is_multiple_of(4) || !pending.is_apart(delta) {
        return false;
    }
    arena.admit(&[op.prediction, op.target], &[delta]);
    let loss = EndedLoss { target: wide(op.target.offset), ..EndedLoss::new(op, kind) };
    pending.follow(arena, loss, op.target, delta);
    true
}

/// Puts the task losses of a prediction off as well, if it is made by the end that was put off; says whether.
pub(super) fn with_task_losses<D: Driver>(arena: &CudaArena<D>, op: &SupervisedLoss, task_loss: Region) -> bool {
    let pending = &mut *arena.pending();
    let made = pending.ends.len() == 1 && pending.ends[0].output == op.prediction;
    if !made || pending.losses.is_some() || !pending.is_apart(task_loss) {
        return false;
    }
    arena.admit(&[op.prediction, op.target], &[task_loss]);
    // What goes on with the end must not touch them.
    pending.reads.push(op.target);
    pending.writes.push(task_loss);
    pending.losses = Some(*op);
    true
}

/// The same of a loss's curvature, if it makes the cotangent of the gradient.
pub(super) fn with_curvature<D: Driver>(arena: &CudaArena<D>, op: &SupervisedCurvature) -> bool {
    let pending = &mut *arena.pending();
    let Some(kind) = following(op.at.loss, true) else { return false };
    let (prediction, z) = (op.at.prediction, op.z_cotangent);
    // What it adds to is the same thread's.
    let own = z != op.e_cotangent && pending.writes.contains(&z);
    let fits = pending.goes_on_with(Kernel::FinishAdjoint, &op.at, op.e_cotangent, &[prediction]);
    if !fits || !z.offset.is_multiple_of(4) || !(own || pending.is_apart(z)) {
        return false;
    }
    arena.admit(&[prediction, op.e_cotangent], &[z]);
    let loss =
        EndedLoss { prediction: wide(prediction.offset), begun: op.accumulate.into(), ..EndedLoss::new(&op.at, kind) };
    pending.follow(arena, loss, prediction, z);
    if let Some(end) = pending.ends.last_mut() {
        end.call.loss_of_gate = end.call.product.is_gated_by(prediction).into();
    }
    true
}

/// Has the end that was put off, or a link of a chain, go on with inner products of the rows it makes; says whether.
pub(super) fn with_gram<D: Driver>(device: &CudaDevice<D>, arena: &CudaArena<D>, op: &Gram<'_>) -> bool {
    with_rows(device, arena, op);
    let pending = &mut *arena.pending();
    let columns: usize = op.y.iter().map(|y| y.rows / op.tasks).sum();
    let thin = chain::is_thin(op.x.width);
    let fours = pending.takes(op.y, thin) && pending.is_apart(op.output);
    let linked = pending.ends.len() > 1;
    let Some(end) = pending.ends.last_mut() else { return false };
    let fits = end.made == op.x && end.shape == (op.tasks, op.rows) && (thin || end.call.corrections.in_fours());
    if !fours || !fits || columns == 0 || op.y.len() > LIST || end.call.gram.columns != 0 {
        return false;
    }
    // Where blocks share a row, each leaves its part behind the sums that are to be ended.
    let [across, down, blocks] = end.grid;
    let items = across * blocks;
    let len = if down == 1 { 0 } else { items * down * GROUP * columns };
    let (sums, room) = arena.sums;
    let taken = if end.raw.offset < sums { 0 } else { (end.raw.parts * end.output.len()).next_multiple_of(4) };
    let alone = !linked && !chain::is_alone(end);
    // A thin end that is alone does not go on; one of a chain takes the other rows as they are.
    if alone && (thin || items > COUNTERS || taken + len > room) {
        return false;
    }
    // They are taken from copies, and so are those of the corrections, if there are any.
    let mut copies = [0; LIST];
    if thin {
        copies.iter_mut().zip(op.y).for_each(|(copy, y)| *copy = y.offset);
    } else {
        let may = end.call.copied != 0 || end.most == 0;
        if !may || !pack::kept(&end.device, arena, op.y.iter().copied(), &mut copies) {
            return false;
        }
        end.call.copied = 1;
    }
    arena.admit(&[op.x], &[op.output]);
    let gram = &mut end.call.gram;
    let mut column = 0;
    for ((factor, y), copy) in gram.y.iter_mut().zip(op.y).zip(copies) {
        let count = y.rows / op.tasks;
        *factor = Factor { rows: wide(copy), count: narrow(count), column: narrow(column) };
        gram.most = gram.most.max(narrow(count));
        column += count;
    }
    gram.output = wide(op.output.offset);
    gram.parts = wide(sums + taken);
    gram.counters = wide(arena.counters());
    gram.columns = narrow(columns);
    end.factors = op.y.len();
    if thin {
        pending.reads.extend_from_slice(op.y);
    }
    pending.writes.push(op.output);
    true
}

/// Puts rows off as they are, of which inner products are asked for, unless they were made last.
fn with_rows<D: Driver>(device: &CudaDevice<D>, arena: &CudaArena<D>, op: &Gram<'_>) {
    let (shape, x) = ((op.tasks, op.rows), op.x);
    settle::flush(arena);
    let mut pending = arena.pending();
    let thin = chain::is_thin(x.width);
    let fours = thin || op.y.iter().chain([&x]).all(|rows| rows.offset.is_multiple_of(4));
    if pending.ends.last().is_some_and(|end| end.made == x && end.shape == shape) || !fours || op.y.len() > LIST {
        return;
    }
    // Copies that are made on the way come before what was put off.
    let apart = op.y.iter().all(|y| pending.is_apart(pack::copied_with(device, arena, *y)));
    if !apart || !chain::may_take_rows(device, &pending, op) {
        pending.launch(arena);
    }
    let mut copies = [0; LIST];
    let takes = if thin {
        chain::may_take_rows(device, &pending, op)
    } else {
        pack::kept(device, arena, op.y.iter().copied(), &mut copies)
    };
    if takes {
        pending.take_rows(device, arena, x, shape);
    }
}

impl<D: Driver> Pending<D> {
    /// Rows that lie there, as they are, for what comes next.
    pub fn take_rows(&mut self, device: &CudaDevice<D>, arena: &CudaArena<D>, rows: Region, shape: (usize, usize)) {
        let blocks = rows.rows / (shape.0 * shape.1);
        let (product, raw) = (Product::of_rows(rows, blocks), Raw { offset: rows.offset, parts: 1 });
        let (kernel, none) = (Kernel::FinishForward, &device::Corrections::NONE);
        let end = End::new(device, arena, kernel, product, none, shape, (raw, rows), Given::Rows);
        self.append(end, none, (&[rows], &[]));
    }
}

impl Finish {
    /// Makes room in shared memory for what is read beside the sums, if there is enough; returns the bytes.
    fn stage(&mut self, kernel: Kernel, rows: usize) -> usize {
        let (gated, curved) = self.product.reads(kernel == Kernel::FinishAdjoint, kernel == Kernel::FinishBackward);
        let losses = self.loss.kind != 0 && self.loss_of_gate == 0;
        let things = self.parts as usize + usize::from(gated) + usize::from(curved) + usize::from(losses);
        let numbers = things * rows.min(GROUP) * self.corrections.strips() * STRIP;
        let bytes = numbers * size_of::<f32>();
        let staged = self.corrections.in_fours() && bytes <= STAGED;
        self.staged = if staged { narrow(numbers) } else { 0 };
        if staged { bytes } else { 0 }
    }
}

impl EndedLoss {
    fn new(op: &SupervisedLoss, kind: u32) -> Self {
        let scale = loss::scale(op);
        Self { kind, scale, ..Self::zeroed() }
    }
}

impl<D: Driver> CudaArena<D> {
    pub(super) fn pending(&self) -> MutexGuard<'_, Pending<D>> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
