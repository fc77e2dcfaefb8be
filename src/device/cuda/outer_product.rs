//! The weight gradient of many rows.

use super::driver::{Driver, Kernel};
use super::tensor::{Choice, Kernels, operands};
use super::{Arguments, CudaArena, CudaDevice, NOTHING, NOWHERE, blocks_of, narrow, thin, wide};
use super::{hopper_copied, hopper_outer};
use crate::device::{self, Linear, MatrixPrecision, Region};

/// Terms of one launch: `TERMS` in `kernels/outer_product.cu`.
const TERMS: usize = 64;

pub(super) const OUTER_PRODUCT: Kernels = Kernels {
    plain: Kernel::OuterProduct,
    tensor: [None, Some(Kernel::OuterProduct64x64), Some(Kernel::OuterProduct128x128)],
};

#[repr(C)]
#[derive(Clone, Copy, Default, bytemuck::Pod, bytemuck::Zeroable)]
struct OuterTerm {
    p: u64,
    q: u64,
    rows: u32,
    blocks: u32,
    bias: f32,
    scale: f32,
    share: u64,
}

#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct OuterProduct {
    terms: [OuterTerm; TERMS],
    weight: u64,
    bias: u64,
    group_stride: u64,
    partials: u64,
    count: u32,
    groups: u32,
    inputs: u32,
    outputs: u32,
    begun: u32,
    operands: u32,
}

#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct OuterTotal {
    partials: u64,
    weight: u64,
    bias: u64,
    weights: u64,
    length: u64,
    parts: u32,
    begun: u32,
}

super::arguments! {
    OuterProduct, 2616 =>
        OuterProduct OuterProduct64x64 OuterProduct128x128 ThinOuterProduct ThinOuterProduct16;
    OuterTotal, 48 => OuterTotal;
}

/// Multiprocessors that parts of sums are to fill: an H100's.
pub(super) const MULTIPROCESSORS: usize = 132;

/// Rows of a stage: `DEPTH` in `kernels/tile.cuh`.
const DEPTH: usize = 16;

/// Stages of a part at least, so that more is read than is left among the partial sums.
const LEAST: usize = 8;

/// Numbers of an arena's room for partial sums, at most.
pub(super) const ROOM: usize = 8 << 20;

/// Those of an arena of `elements`: a tiny one's sums have few parts.
pub(super) fn room_for_sums(elements: usize) -> usize {
    elements.min(ROOM).next_multiple_of(4)
}

/// Into how many parts a sum is cut whose output has `tiles` tiles: so many that `blocks` are reached, if each has `least` of the
/// stages and `len` numbers fit as often into the room. At least one; it follows from the shapes alone.
pub(super) fn parts(
    tiles: usize,
    blocks: usize,
    (stages, least): (usize, usize),
    (len, room): (usize, usize),
) -> usize {
    (blocks / tiles.max(1)).min(stages / least).min(room / len.max(1)).max(1)
}

/// Adds `count` partial sums up, in their order, to a shared layer's gradient.
pub(super) fn total<D: Driver>(
    device: &CudaDevice<D>,
    arena: &CudaArena<D>,
    layer: &Linear,
    count: usize,
    begun: bool,
) {
    let weights = layer.inputs * layer.outputs;
    let length = weights + layer.outputs;
    let call = OuterTotal {
        partials: wide(arena.sums.0),
        weight: wide(layer.weight),
        bias: wide(layer.bias),
        weights: wide(weights),
        length: wide(length),
        parts: narrow(count),
        begun: begun.into(),
    };
    device.launch(
        arena,
        Kernel::OuterTotal,
        [blocks_of(length), 1, 1],
        &call,
        format_args!("{count} parts of {length}"),
    );
}

/// See [`device::OuterProduct`].
pub(super) fn outer_product<D: Driver>(
    device: &CudaDevice<D>,
    arena: &mut CudaArena<D>,
    op: &device::OuterProduct<'_, f32>,
) {
    let Linear { weight, bias, task_stride, inputs, outputs } = op.layer;
    let shared = op.layer.is_shared();
    let groups = if shared { 1 } else { op.tasks };
    // A task's own rows are few: they take as long as writing its gradient.
    let precision = if shared { device.precision } else { MatrixPrecision::F32 };
    let Choice { kernel, down, across } = OUTER_PRODUCT.choose(device.tiles.as_deref(), precision, outputs, inputs);
    let whole = |offset, len| Region { offset, rows: 1, width: (groups - 1) * task_stride + len };
    let written = [whole(weight, inputs * outputs), whole(bias, outputs)];
    arena.flush();
    for term in op.terms {
        written.iter().for_each(|region| arena.admit(&[term.p, term.q, term.share.unwrap_or(NOTHING)], &[*region]));
    }
    if shared && hopper_copied::outer_product(device, arena, op) {
        return;
    }
    arena.keep_to(op.terms.iter().flat_map(|term| [&term.p, &term.q].into_iter().chain(&term.share)).chain(&written));
    if shared && hopper_outer::outer_product(device, arena, op) {
        return;
    }
    // Blocks that a multiprocessor holds.
    let held = match kernel {
        Kernel::OuterProduct => 4,
        Kernel::OuterProduct64x64 => 6,
        _ => 2,
    };
    for (turn, part) in op.terms.chunks(TERMS).enumerate() {
        let begun = op.accumulate || turn > 0;
        let mut call = OuterProduct {
            terms: [OuterTerm::default(); TERMS],
            weight: wide(weight),
            bias: wide(bias),
            group_stride: wide(task_stride),
            partials: wide(arena.sums.0),
            count: narrow(part.len()),
            groups: narrow(groups),
            inputs: narrow(inputs),
            outputs: narrow(outputs),
            begun: begun.into(),
            operands: operands(precision),
        };
        for (to, term) in call.terms.iter_mut().zip(part) {
            // With shared weights the rows of all tasks and blocks are one sum.
            let blocks = if shared { 1 } else { term.blocks };
            *to = OuterTerm {
                p: wide(term.p.offset),
                q: wide(term.q.offset),
                rows: narrow(term.p.rows / (groups * blocks)),
                blocks: narrow(blocks),
                bias: term.bias,
                scale: term.scale,
                share: term.share.map_or(NOWHERE, |share| wide(share.offset)),
            };
        }
        let rows: usize = part.iter().map(|term| term.p.rows).sum();
        let stages = part.iter().map(|term| term.p.rows.div_ceil(DEPTH)).sum();
        let size = ((inputs + 1) * outputs, arena.sums.1);
        let parts = if shared { parts(down * across, held * MULTIPROCESSORS, (stages, LEAST), size) } else { 1 };
        let few = if shared { None } else { thin::choose(thin::OUTER_PRODUCT, rows / groups) };
        let (kernel, grid) = match few {
            // Its bias lies where the weight ends.
            Some(kernel) if bias == weight + inputs * outputs => (kernel, thin::gradient_grid(groups, inputs, outputs)),
            _ => (kernel, [groups * down, across, parts]),
        };
        let shapes = format_args!("{rows} rows in {} terms, {groups} x {outputs} x {inputs}, {precision}", part.len());
        device.launch(arena, kernel, grid, &call, shapes);
        if parts > 1 {
            total(device, arena, &op.layer, parts, begun);
        }
    }
}
