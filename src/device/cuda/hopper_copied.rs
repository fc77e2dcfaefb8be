//! The meta-gradient's sum over the rows of all tasks on Hopper, of rows that are kept in bf16.

use super::driver::{Driver, Kernel, PANEL, TensorMap};
use super::hopper_outer::{STAGE, is_for_warpgroups, tiles, used};
use super::outer_product::{MULTIPROCESSORS, parts, total};
use super::pack;
use super::{Arguments, CudaArena, CudaDevice, narrow, wide};
use crate::device::{self, Linear, OuterTerm, Region};

/// Stages of a part at least.
const LEAST: usize = 4;

/// Terms of one launch: `COPIED_TERMS` in `kernels/hopper_copied.cu`.
const TERMS: usize = 14;

/// Threads a block and bytes of shared memory.
pub(super) fn block_of(kernel: Kernel) -> Option<(u32, u32)> {
    match kernel {
        Kernel::HopperCopied128x128 => Some((384, 197_728)),
        Kernel::HopperCopied128x256 => Some((384, 197_696)),
        _ => None,
    }
}

#[repr(C)]
#[derive(Clone, Copy, Default, bytemuck::Pod, bytemuck::Zeroable)]
struct CopiedTerm {
    rows: u32,
    bias: f32,
    scale: f32,
    unused: u32,
}

#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct HopperCopied {
    p: [TensorMap; TERMS],
    q: [TensorMap; TERMS],
    terms: [CopiedTerm; TERMS],
    partials: u64,
    count: u32,
    inputs: u32,
    outputs: u32,
    unused: [u32; 3],
}

super::arguments! {
    HopperCopied, 3840 => HopperCopied128x128 HopperCopied128x256;
}

/// Carries the operation out, of a layer with shared weights, if that is for warpgroups and there is room to keep all of its rows;
/// says whether it was. Its regions have been checked.
pub(super) fn outer_product<D: Driver>(
    device: &CudaDevice<D>,
    arena: &CudaArena<D>,
    op: &device::OuterProduct<'_, f32>,
) -> bool {
    if !is_for_warpgroups(device, arena, op) || !keeps_all(device, arena, op) {
        return false;
    }
    let Linear { weight, bias, inputs, outputs, .. } = op.layer;
    let written = [(weight, inputs * outputs), (bias, outputs)];
    let written = written.map(|(offset, width)| Region { offset, rows: 1, width });
    let (columns, tiles) = tiles(&op.layer);
    let kernel = if columns == 256 { Kernel::HopperCopied128x256 } else { Kernel::HopperCopied128x128 };
    let mut pieces = used(op).flat_map(|term| Pieces { device, arena, term: *term }).peekable();
    let mut begun = op.accumulate;
    while pieces.peek().is_some() {
        let mut call = HopperCopied {
            p: [TensorMap::default(); TERMS],
            q: [TensorMap::default(); TERMS],
            terms: [CopiedTerm::default(); TERMS],
            partials: wide(arena.sums.0),
            count: 0,
            inputs: narrow(inputs),
            outputs: narrow(outputs),
            unused: [0; 3],
        };
        let (mut rows, mut stages) = (0, 0);
        let maps = call.p.iter_mut().zip(&mut call.q);
        for ((to, (p, q)), (term, copies)) in call.terms.iter_mut().zip(maps).zip(pieces.by_ref()) {
            let [of_p, of_q] = [(term.p, copies[0]), (term.q, copies[1])];
            *to = CopiedTerm { rows: narrow(term.p.rows), bias: term.bias, scale: term.scale, unused: 0 };
            *p = pack::describe(device, arena, of_p.0, of_p.1, PANEL).unwrap_or_default();
            *q = pack::describe(device, arena, of_q.0, of_q.1, PANEL).unwrap_or_default();
            rows += term.p.rows;
            stages += term.p.rows.div_ceil(STAGE);
            call.count += 1;
        }
        let size = ((inputs + 1) * outputs, arena.sums.1);
        let parts = parts(tiles[0] * tiles[1], MULTIPROCESSORS, (stages, LEAST), size);
        let shapes = format_args!("{rows} rows in {} terms, {outputs} x {inputs}, copies", call.count);
        arena.keep_to(written.iter());
        device.launch(arena, kernel, [tiles[0], tiles[1], parts], &call, shapes);
        total(device, arena, &op.layer, parts, begun);
        begun = true;
    }
    true
}

/// Whether there is, or will be, a copy of all rows that are multiplied.
fn keeps_all<D: Driver>(device: &CudaDevice<D>, arena: &CudaArena<D>, op: &device::OuterProduct<'_, f32>) -> bool {
    used(op).flat_map(|term| [term.p, term.q]).all(|rows| {
        let mut row = 0;
        while row < rows.rows {
            match pack::keep_first(device, arena, rows.rows(row, rows.rows - row)) {
                Some(count) => row += count,
                None => return false,
            }
        }
        true
    })
}

/// What is left of a term, by pieces of which each operand lies in one copy; with these come where the copies begin.
struct Pieces<'a, D: Driver> {
    device: &'a CudaDevice<D>,
    arena: &'a CudaArena<D>,
    term: OuterTerm<f32>,
}

impl<D: Driver> Iterator for Pieces<'_, D> {
    type Item = (OuterTerm<f32>, [usize; 2]);

    fn next(&mut self) -> Option<Self::Item> {
        let OuterTerm { p, q, .. } = self.term;
        if p.is_empty() {
            return None;
        }
        let [of_p, of_q] = [p, q].map(|rows| pack::first_copy(self.device, self.arena, rows));
        let (of_p, of_q) = (of_p?, of_q?);
        let count = of_p.0.min(of_q.0);
        let rest = |rows: Region| rows.rows(count, rows.rows - count);
        let piece = OuterTerm { p: p.rows(0, count), q: q.rows(0, count), ..self.term };
        self.term = OuterTerm { p: rest(p), q: rest(q), ..self.term };
        Some((piece, [of_p.1, of_q.1]))
    }
}
