//! What follows the end of a product in the same launch: a loss of what comes out or its curvature, and inner products of those rows
//! with earlier ones (`kernels/ended.cuh`).

use std::mem::offset_of;

use bytemuck::Zeroable;

use super::arena::COUNTERS;
use super::driver::{Driver, Kernel};
use super::finish::{End, Given, Pending};
use super::hopper::Raw;
use super::linear::Product;
use super::low_rank::{Factor, GROUP};
use super::{CudaArena, CudaDevice, NOTHING, NOWHERE, activation_code, chain, loss, narrow, pack, settle, wide};
use crate::device::{Corrections, Gram, Region, SupervisedCurvature, SupervisedLoss};
use crate::model::Activation;
use crate::objective::Loss;

/// Factors of a Gram matrix at most: `ENDED_LIST` in `kernels/ended.cuh`.
const LIST: usize = 32;

#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
pub(super) struct EndedLoss {
    prediction: u64,
    target: u64,
    output: u64,
    packed: u64,
    pub kind: u32,
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
    // That of a mean square is the same everywhere, and so is the derivative without an activation.
    let reads = op.at.loss != Loss::Mse || op.at.activation != Activation::Linear;
    let of = if reads { wide(prediction.offset) } else { NOWHERE };
    let loss = EndedLoss { prediction: of, begun: op.accumulate.into(), ..EndedLoss::new(&op.at, kind) };
    pending.follow(arena, loss, if reads { prediction } else { NOTHING }, z);
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
    let holds = chain::has_room(pending, op);
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
    if !alone && !holds {
        return false;
    }
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

/// Puts rows off as they are, of which inner products are asked for, unless they were made last and it can go on with them.
fn with_rows<D: Driver>(device: &CudaDevice<D>, arena: &CudaArena<D>, op: &Gram<'_>) {
    let (shape, x) = ((op.tasks, op.rows), op.x);
    settle::flush(arena);
    let mut pending = arena.pending();
    let thin = chain::is_thin(x.width);
    let fours = thin || op.y.iter().chain([&x]).all(|rows| rows.offset.is_multiple_of(4));
    let follows = pending.ends.last().is_some_and(|end| end.made == x && end.shape == shape);
    if (follows && chain::has_room(&pending, op)) || !fours || op.y.len() > LIST {
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
        let (kernel, none) = (Kernel::FinishForward, &Corrections::NONE);
        let end = End::new(device, arena, kernel, product, none, shape, (raw, rows), Given::Rows);
        self.append(end, none, (&[rows], &[]));
    }

    /// Whether a loss of these rows, of which it reads `others`, can be a part of the launch: by the same activation.
    fn goes_on_with(&self, kernel: Kernel, op: &SupervisedLoss, rows: Region, others: &[Region]) -> bool {
        let activation = activation_code(op.activation);
        let fits = |end: &End<D>| {
            let alone = matches!(end.given, Given::Sums) && end.call.gram.columns == 0;
            let alike = end.call.product.activation_of(kernel == Kernel::FinishAdjoint) == activation;
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

impl EndedLoss {
    /// Where its output's offset lies, in bytes.
    pub const OUTPUT: usize = offset_of!(Self, output);

    /// Whether the output already holds a part of the result; whether it reads anything beside what comes out.
    pub fn begun(&self) -> bool {
        self.begun != 0
    }

    pub fn reads(&self) -> bool {
        self.prediction != NOWHERE
    }

    fn new(op: &SupervisedLoss, kind: u32) -> Self {
        let scale = loss::scale(op);
        Self { kind, scale, ..Self::zeroed() }
    }
}
