//! The meta-gradient's sum over the rows of all tasks on Hopper.

use std::sync::PoisonError;

use super::driver::{Driver, Kernel, PANEL, PackedMatrix, TensorMap};
use super::outer_product::{MULTIPROCESSORS, parts, total};
use super::tensor::operands;
use super::{Arguments, CudaArena, CudaDevice, Warpgroups, blocks_of, narrow, wide};
use crate::device::{self, Linear, MatrixPrecision, OuterTerm};

/// Terms of one launch: `HOPPER_TERMS` in `kernels/hopper_outer.cu`.
const TERMS: usize = 24;

/// Rows of a stage: `PANEL` in `kernels/wgmma.cuh`.
const STAGE: usize = 64;

/// Numbers of 16 bits that are packed at once; rows begin at multiples of them.
const PIECE: usize = 8;

/// Stages of a part at least.
const LEAST: usize = 2;

/// Operations from which on a sum is large, and outputs that it has then. An estimate.
const LARGE: (usize, usize) = (200_000_000, 64);

/// How far scales may lie apart: sums are rescaled from one to the next.
const APART: f32 = 1e18;

/// Threads a block and bytes of shared memory.
#[cfg(feature = "cuda")]
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

/// Carries the operation out, of a layer with shared weights, if that is for warpgroups; says whether it was.
pub(super) fn outer_product<D: Driver>(
    device: &CudaDevice<D>,
    arena: &CudaArena<D>,
    op: &device::OuterProduct<'_, f32>,
) -> bool {
    let Linear { inputs, outputs, .. } = op.layer;
    let used = || op.terms.iter().filter(|term| term.scale != 0.0 && term.p.rows > 0);
    let (packed, room) = arena.pool.lock().unwrap_or_else(PoisonError::into_inner).rest();
    let pitch = inputs.next_multiple_of(PIECE);
    let (mut rows, mut stages, mut aligned) = (0, 0, outputs % 4 == 0);
    let (mut least, mut most) = (f32::INFINITY, 0.0f32);
    for term in used() {
        rows += term.p.rows;
        stages += term.p.rows.div_ceil(STAGE);
        aligned &= term.p.offset % 4 == 0;
        (least, most) = (least.min(term.scale.abs()), most.max(term.scale.abs()));
    }
    let large =
        device.warpgroups == Warpgroups::Always || (outputs >= LARGE.1 && 2 * rows * inputs * outputs >= LARGE.0);
    let len = (inputs + 1) * outputs;
    let fits = stages * STAGE * pitch / 2 <= room && len <= arena.sums.1;
    // Scales that are no numbers are not less than anything either.
    let scaled = used().all(|term| term.scale.is_finite()) && most < APART * least;
    if device.warpgroups().is_none() || rows == 0 || !(large && aligned && fits && scaled) {
        return false;
    }
    let (kernel, columns) =
        if inputs > 128 { (Kernel::HopperOuter128x256, 256) } else { (Kernel::HopperOuter128x128, 128) };
    let tiles = [outputs.div_ceil(128), inputs.div_ceil(columns)];
    let mut terms = used().peekable();
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
