//! The meta-gradient's sum over the rows of all tasks on Hopper.

use std::sync::PoisonError;

use super::driver::{Driver, Kernel, PANEL, PackedMatrix, TensorMap};
use super::outer_product::{MULTIPROCESSORS, parts, total};
use super::tensor::operands;
use super::{Arguments, CudaArena, CudaDevice, Warpgroups, blocks_of, narrow, wide};
use crate::device::{self, Linear, MatrixPrecision, OuterTerm};

/// Terms of one launch: `HOPPER_TERMS` in `kernels/hopper_outer.cuh`.
pub(super) const TERMS: usize = 24;

/// Rows of a stage: `PANEL` in `kernels/wgmma.cuh`.
pub(super) const STAGE: usize = 64;

/// Numbers of 16 bits that are packed at once; rows begin at multiples of them.
const PIECE: usize = 8;

/// Stages of a part at least.
const LEAST: usize = 2;

/// Operations from which on a sum is large, and outputs that it has then. An estimate.
const LARGE: (usize, usize) = (200_000_000, 64);

/// How far scales may lie apart: sums are rescaled from one to the next.
const APART: f32 = 1e18;

/// Threads a block and bytes of shared memory.
pub(super) fn block_of(kernel: Kernel) -> Option<(u32, u32)> {
    match kernel {
        Kernel::HopperOuter128x128 => Some((384, 197_696)),
        Kernel::HopperOuter128x256 => Some((384, 197_680)),
        _ => None,
    }
}

#[repr(C)]
#[derive(Clone, Copy, Default, bytemuck::Pod, bytemuck::Zeroable)]
struct HopperTerm {
    q: u64,
    rows: u32,
    bias: f32,
    scale: f32,
    unused: u32,
}

#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct HopperOuter {
    p: [TensorMap; TERMS],
    q: TensorMap,
    terms: [HopperTerm; TERMS],
    packed: u64,
    partials: u64,
    count: u32,
    inputs: u32,
    outputs: u32,
    operands: u32,
    unused: [u32; 8],
}

super::arguments! {
    HopperOuter, 3840 => HopperOuterPack HopperOuter128x128 HopperOuter128x256;
}

/// The terms that count.
pub(super) fn used<'a>(op: &device::OuterProduct<'a, f32>) -> impl Iterator<Item = &'a OuterTerm<f32>> + use<'a> {
    op.terms.iter().filter(|term| term.scale != 0.0 && term.p.rows > 0)
}

/// Whether the sum over a shared layer's rows is large, and one that warpgroups can form.
pub(super) fn is_for_warpgroups<D: Driver>(
    device: &CudaDevice<D>,
    arena: &CudaArena<D>,
    op: &device::OuterProduct<'_, f32>,
) -> bool {
    let Linear { inputs, outputs, .. } = op.layer;
    let rows: usize = used(op).map(|term| term.p.rows).sum();
    let large =
        device.warpgroups == Warpgroups::Always || (outputs >= LARGE.1 && 2 * rows * inputs * outputs >= LARGE.0);
    let scales = || used(op).map(|term| term.scale.abs());
    let (least, most) = (scales().fold(f32::INFINITY, f32::min), scales().fold(0.0, f32::max));
    // They take factors that are known before; scales that are no numbers are not less than anything either.
    let known = used(op).all(|term| term.share.is_none());
    let scaled = known && scales().all(f32::is_finite) && least >= f32::MIN_POSITIVE && most < APART * least;
    let fits = (inputs + 1) * outputs <= arena.sums.1;
    device.warpgroups().is_some() && rows > 0 && large && fits && scaled
}

/// Columns of a tile, and how many tiles there are of outputs and of inputs.
pub(super) fn tiles(layer: &Linear) -> (usize, [usize; 2]) {
    let columns = if layer.inputs > 128 { 256 } else { 128 };
    (columns, [layer.outputs.div_ceil(128), layer.inputs.div_ceil(columns)])
}

/// Carries the operation out, of a layer with shared weights, if that is for warpgroups; says whether it was.
pub(super) fn outer_product<D: Driver>(
    device: &CudaDevice<D>,
    arena: &CudaArena<D>,
    op: &device::OuterProduct<'_, f32>,
) -> bool {
    let Linear { inputs, outputs, .. } = op.layer;
    let (packed, room) = arena.pool.lock().unwrap_or_else(PoisonError::into_inner).rest();
    let pitch = inputs.next_multiple_of(PIECE);
    let stages: usize = used(op).map(|term| term.p.rows.div_ceil(STAGE)).sum();
    let aligned = outputs % 4 == 0 && used(op).all(|term| term.p.offset % 4 == 0);
    let len = (inputs + 1) * outputs;
    if !is_for_warpgroups(device, arena, op) || !aligned || stages * STAGE * pitch / 2 > room {
        return false;
    }
    let (columns, tiles) = tiles(&op.layer);
    let kernel = if columns == 256 { Kernel::HopperOuter128x256 } else { Kernel::HopperOuter128x128 };
    let mut terms = used(op).peekable();
    let mut begun = op.accumulate;
    while terms.peek().is_some() {
        let mut call = HopperOuter {
            p: [TensorMap::default(); TERMS],
            q: TensorMap::default(),
            terms: [HopperTerm::default(); TERMS],
            packed: wide(packed),
            partials: wide(arena.sums.0),
            count: 0,
            inputs: narrow(inputs),
            outputs: narrow(outputs),
            operands: operands(device.precision),
            unused: [0; 8],
        };
        let (mut rows, mut stages) = (0, 0);
        for ((to, map), term) in call.terms.iter_mut().zip(&mut call.p).zip(terms.by_ref()) {
            let OuterTerm { p, q, bias, scale, .. } = *term;
            *to = HopperTerm { q: wide(q.offset), rows: narrow(p.rows), bias, scale, unused: 0 };
            // The engine takes one of its numbers for two of 16 bits.
            let width = 2 * outputs;
            *map = describe(
                device,
                arena,
                PackedMatrix { offset: p.offset, rows: p.rows, width, pitch: width, bf16: true, tall: PANEL },
            );
            rows += p.rows;
            stages += p.rows.div_ceil(STAGE);
            call.count += 1;
        }
        let bf16 = device.precision == MatrixPrecision::Bf16;
        call.q = describe(
            device,
            arena,
            PackedMatrix { offset: packed, rows: stages * STAGE, width: inputs, pitch, bf16, tall: PANEL },
        );
        let parts = parts(tiles[0] * tiles[1], MULTIPROCESSORS, (stages, LEAST), (len, arena.sums.1));
        let shapes = format_args!("{rows} rows in {} terms, {outputs} x {inputs}, {}", call.count, device.precision);
        let pieces = blocks_of(STAGE * pitch / PIECE);
        device.launch(arena, Kernel::HopperOuterPack, [stages, pieces, 1], &call, shapes);
        device.launch(arena, kernel, [tiles[0], tiles[1], parts], &call, shapes);
        total(device, arena, &op.layer, parts, begun);
        begun = true;
    }
    true
}

/// Describes a matrix to the copy engine.
fn describe<D: Driver>(device: &CudaDevice<D>, arena: &CudaArena<D>, matrix: PackedMatrix) -> TensorMap {
    let PackedMatrix { rows, width, .. } = matrix;
    let mut map = TensorMap::default();
    device.attempt(format_args!("the description of {rows} rows of {width}, {}", device.precision), || {
        map = device.driver.tensor_map(&arena.memory, matrix)?;
        Ok(())
    });
    map
}
