//! The weight gradient of many rows.

use super::driver::{Driver, Kernel};
use super::tensor::{Choice, Kernels, operands};
use super::{Arguments, CudaArena, CudaDevice, narrow, thin, wide};
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
}

#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct OuterProduct {
    terms: [OuterTerm; TERMS],
    weight: u64,
    bias: u64,
    group_stride: u64,
    count: u32,
    groups: u32,
    inputs: u32,
    outputs: u32,
    begun: u32,
    operands: u32,
}

super::arguments! {
    OuterProduct, 2096 =>
        OuterProduct OuterProduct64x64 OuterProduct128x128 ThinOuterProduct ThinOuterProduct16;
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
    for term in op.terms {
        arena.check(&[term.p, term.q], &[whole(weight, inputs * outputs)]);
        arena.check(&[term.p, term.q], &[whole(bias, outputs)]);
    }
    for (turn, part) in op.terms.chunks(TERMS).enumerate() {
        let mut call = OuterProduct {
            terms: [OuterTerm::default(); TERMS],
            weight: wide(weight),
            bias: wide(bias),
            group_stride: wide(task_stride),
            count: narrow(part.len()),
            groups: narrow(groups),
            inputs: narrow(inputs),
            outputs: narrow(outputs),
            begun: (op.accumulate || turn > 0).into(),
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
            };
        }
        let rows: usize = part.iter().map(|term| term.p.rows).sum();
        let few = if shared { None } else { thin::choose(thin::OUTER_PRODUCT, rows / groups) };
        let (kernel, grid) = match few {
            // Its bias lies where the weight ends.
            Some(kernel) if bias == weight + inputs * outputs => (kernel, thin::gradient_grid(groups, inputs, outputs)),
            _ => (kernel, [groups * down, across, 1]),
        };
        let shapes = format_args!("{rows} rows in {} terms, {groups} x {outputs} x {inputs}, {precision}", part.len());
        device.launch(arena, kernel, grid, &call, shapes);
    }
}
