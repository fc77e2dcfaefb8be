//! The four products with a layer's weights, and what is fused into their tiles.

use super::matrix::with_activation;
use super::product::{Product, Source};
use super::{Base, CpuArena, CpuDevice};
use crate::device::{
    AdjointBackward, AdjointForward, Corrections, Gate, Linear, LinearBackward, LinearForward, LowRank, Region,
};
use crate::model::Activation;
use crate::scalar::Scalar;

/// The columns `from..to` of a row-major region, and the number of rows a tile covers.
#[derive(Clone, Copy)]
pub(super) struct Columns {
    pub from: usize,
    pub to: usize,
    pub rows: usize,
}

impl Columns {
    /// The tile's row `k`.
    #[inline(always)]
    unsafe fn row<'a, T>(&self, tile: *mut T, stride: usize, k: usize) -> &'a mut [T] {
        // SAFETY: the caller owns `rows` rows of `to - from` elements.
        unsafe { std::slice::from_raw_parts_mut(tile.add(k * stride), self.to - self.from) }
    }

    /// The same columns of row `k` of a region whose rows begin at `pointer`.
    #[inline(always)]
    unsafe fn of<'a, T>(&self, pointer: *mut T, width: usize, k: usize) -> &'a [T] {
        // SAFETY: the caller's region has `rows` rows of `width` elements.
        unsafe { std::slice::from_raw_parts(pointer.add(k * width + self.from), self.to - self.from) }
    }

    /// Adds the tile to the rows that begin at `out`.
    #[inline(always)]
    pub fn add_to<T: Scalar>(&self, tile: *mut T, stride: usize, out: *mut T, width: usize) {
        for k in 0..self.rows {
            // SAFETY: tile and output rows are this job's own.
            unsafe {
                let tile = self.row(tile, stride, k);
                let out = std::slice::from_raw_parts_mut(out.add(k * width + self.from), self.to - self.from);
                out.iter_mut().zip(tile).for_each(|(o, t)| *o += *t);
            }
        }
    }
}

/// `tile = act(tile)`.
#[inline(always)]
fn activate<T: Scalar>(activation: Activation, columns: Columns, tile: *mut T, stride: usize) {
    with_activation!(activation, ACT => for k in 0..columns.rows {
        // SAFETY: the tile is this job's own.
        for value in unsafe { columns.row(tile, stride, k) } {
            *value = ACT.apply(*value);
        }
    });
}

/// `tile *= act'(values)`.
#[inline(always)]
fn gate<T: Scalar>(
    activation: Activation,
    columns: Columns,
    tile: *mut T,
    stride: usize,
    values: *mut T,
    width: usize,
) {
    with_activation!(activation, ACT => for k in 0..columns.rows {
        // SAFETY: the tile is this job's own, the values are a declared region.
        let (tile, values) = unsafe { (columns.row(tile, stride, k), columns.of(values, width, k)) };
        for (t, a) in tile.iter_mut().zip(values) {
            *t *= ACT.derivative(*a);
        }
    });
}

/// `z (+)= tile * delta * curvature(values)`, then `tile *= act'(values)`; the tile lies in place, so its stride is the
/// width of all operands. `operands` are values, delta and z; z is touched only where the activation is curved.
#[inline(always)]
fn adjoint_gate<T: Scalar>(
    activation: Activation,
    columns: Columns,
    tile: *mut T,
    width: usize,
    [values, delta, z]: [*mut T; 3],
    adds: bool,
) {
    with_activation!(activation, ACT => for k in 0..columns.rows {
        // SAFETY: tile and z are this job's own, the others declared regions that are only read.
        unsafe {
            let tile = columns.row(tile, width, k);
            let values = columns.of(values, width, k);
            if ACT.is_curved() {
                let delta = columns.of(delta, width, k);
                let z = columns.row(z.add(columns.from), width, k);
                for i in 0..tile.len() {
                    let part = tile[i] * delta[i] * ACT.curvature(values[i]);
                    z[i] = if adds { z[i] + part } else { part };
                }
            }
            for (t, a) in tile.iter_mut().zip(values) {
                *t *= ACT.derivative(*a);
            }
        }
    });
}

/// What is done to a tile after its product.
#[derive(Clone, Copy)]
pub(super) enum Finish<'a> {
    /// `act(z)`.
    Activate(Activation),
    /// The derivative of the activation below, if any; then the tile is added to a region, if to one.
    Gate { gate: Option<Gate<'a>>, add_to: Option<Region> },
    /// See [`adjoint_gate`].
    Adjoint { gate: Gate<'a>, delta: Region, z_cotangent: Region },
}

impl Finish<'_> {
    /// Not a closure, for a closure cannot be told to be compiled into the kernel and its instruction set.
    #[inline(always)]
    pub fn apply<T: Scalar>(
        &self,
        base: Base<T>,
        (tasks, block, task): (usize, usize, usize),
        columns: Columns,
        tile: *mut T,
        stride: usize,
    ) {
        let at = |region: &Region, block| base.at(region.offset + (block * tasks + task) * columns.rows * region.width);
        match self {
            Finish::Activate(activation) => activate(*activation, columns, tile, stride),
            Finish::Gate { gate: below, add_to } => {
                if let Some(Gate { activation, values, blocks }) = below {
                    gate(*activation, columns, tile, stride, at(values, blocks[block]), values.width);
                }
                if let Some(output) = add_to {
                    columns.add_to(tile, stride, at(output, block), output.width);
                }
            }
            Finish::Adjoint { gate, delta, z_cotangent } => {
                let gate_block = gate.blocks[block];
                // The first block that a gate block gates writes, the others add.
                let adds = gate.blocks[..block].contains(&gate_block);
                let curved = gate.activation.is_curved();
                let z = if curved { at(z_cotangent, gate_block) } else { std::ptr::null_mut() };
                let operands = [at(&gate.values, gate_block), at(delta, block), z];
                adjoint_gate(gate.activation, columns, tile, stride, operands, adds);
            }
        }
    }
}

/// The regions that hold a layer's numbers, for the overlap check.
fn layer_regions(layer: &Linear, tasks: usize) -> [Region; 2] {
    let last = if layer.is_shared() { 0 } else { tasks - 1 };
    let whole = |offset, len| Region { offset, rows: 1, width: last * layer.task_stride + len };
    [whole(layer.weight, layer.inputs * layer.outputs), whole(layer.bias, layer.outputs)]
}

/// What is taken of weights.
fn share_of<T: Scalar>(base: Base<T>, corrections: &Corrections<'_>) -> T {
    // SAFETY: it is in a declared region that is only read.
    corrections.share.map_or(T::ONE, |index| unsafe { *base.at(corrections.scales.offset + index) })
}

/// See [`LinearForward`].
pub(super) fn linear_forward<T: Scalar>(device: &CpuDevice, arena: &mut CpuArena<T>, op: &LinearForward<'_>) {
    let panels = arena.panels(device, &op.layer, true);
    let [weight, bias] = layer_regions(&op.layer, op.tasks);
    let base = arena.shared(&[op.input, weight, bias, op.corrections.scales], &[op.output, op.corrections.scratch]);
    let source = Source { input: op.input, first_block: 0, layer: op.layer, transposed: true, bias: true, panels };
    let product = Product {
        tasks: op.tasks,
        rows: op.rows,
        blocks: op.input.rows / (op.tasks * op.rows),
        width: op.layer.outputs,
        sources: [Some(source), None],
        corrections: op.corrections,
        share: share_of(base, &op.corrections),
        base: None,
        target: Some(op.output),
        finish: Finish::Activate(op.activation),
    };
    product.run(device, base);
}

/// See [`LinearBackward`].
pub(super) fn linear_backward<T: Scalar>(device: &CpuDevice, arena: &mut CpuArena<T>, op: &LinearBackward<'_>) {
    let panels = arena.panels(device, &op.layer, false);
    let [weight, _] = layer_regions(&op.layer, op.tasks);
    let gate_values = op.gate.map_or(op.delta, |g| g.values);
    let base =
        arena.shared(&[op.delta, weight, gate_values, op.corrections.scales], &[op.output, op.corrections.scratch]);
    let source = Source { input: op.delta, first_block: 0, layer: op.layer, transposed: false, bias: false, panels };
    let product = Product {
        tasks: op.tasks,
        rows: op.rows,
        blocks: op.delta.rows / (op.tasks * op.rows),
        width: op.layer.inputs,
        sources: [Some(source), None],
        corrections: op.corrections,
        share: share_of(base, &op.corrections),
        base: None,
        target: Some(op.output),
        finish: Finish::Gate { gate: op.gate, add_to: None },
    };
    product.run(device, base);
}

/// See [`AdjointForward`].
pub(super) fn adjoint_forward<T: Scalar>(device: &CpuDevice, arena: &mut CpuArena<T>, op: &AdjointForward<'_>) {
    let panels = op.input.and_then(|_| arena.panels(device, &op.layer, true));
    let [weight, _] = layer_regions(&op.layer, op.tasks);
    let input = op.input.map_or(op.delta, |(region, _)| region);
    let direction = op.direction.map_or([weight; 2], |d| layer_regions(&d.layer, op.tasks));
    let direction_values = op.direction.map_or(input, |d| d.values);
    let scales = op.corrections.scales;
    let reads = [input, weight, direction[0], direction[1], direction_values, op.gate.values, op.delta, scales];
    let curved = op.gate.activation.is_curved();
    let writes = [op.e_cotangent, op.corrections.scratch, op.z_cotangent];
    let base = arena.shared(&reads, &writes[..if curved { 3 } else { 2 }]);
    let blocks = op.gate.blocks.len();
    let sources = [
        op.input.map(|(input, first_block)| Source {
            input,
            first_block,
            layer: op.layer,
            transposed: true,
            bias: false,
            panels,
        }),
        op.direction.map(|d| Source {
            input: d.values,
            first_block: 0,
            layer: d.layer,
            transposed: true,
            bias: true,
            panels: None,
        }),
    ];
    let product = Product {
        tasks: op.tasks,
        rows: op.rows,
        blocks,
        width: op.layer.outputs,
        sources,
        corrections: op.corrections,
        share: share_of(base, &op.corrections),
        base: None,
        target: Some(op.e_cotangent),
        finish: Finish::Adjoint { gate: op.gate, delta: op.delta, z_cotangent: op.z_cotangent },
    };
    product.run(device, base);
}

/// See [`AdjointBackward`].
pub(super) fn adjoint_backward<T: Scalar>(device: &CpuDevice, arena: &mut CpuArena<T>, op: &AdjointBackward<'_>) {
    let panels = arena.panels(device, &op.layer, false);
    let [weight, _] = layer_regions(&op.layer, op.tasks);
    let direction = op.direction.map_or([weight; 2], |d| layer_regions(&d.layer, op.tasks));
    let direction_values = op.direction.map_or(op.z_cotangent, |d| d.values);
    let gate_values = op.gate.map_or(op.z_cotangent, |g| g.values);
    let reads = [op.z_cotangent, weight, direction[0], direction_values, gate_values, op.corrections.scales];
    let base = arena.shared(&reads, &[op.output, op.corrections.scratch]);
    let source = |input, layer, panels| Source { input, first_block: 0, layer, transposed: false, bias: false, panels };
    let product = Product {
        tasks: op.tasks,
        rows: op.rows,
        blocks: op.z_cotangent.rows / (op.tasks * op.rows),
        width: op.layer.inputs,
        sources: [
            Some(source(op.z_cotangent, op.layer, panels)),
            op.direction.map(|d| source(d.values, d.layer, None)),
        ],
        corrections: op.corrections,
        share: share_of(base, &op.corrections),
        base: None,
        // What is there already is added to, from a tile of its own.
        target: (!op.accumulate).then_some(op.output),
        finish: Finish::Gate { gate: op.gate, add_to: op.accumulate.then_some(op.output) },
    };
    product.run(device, base);
}

/// See [`LowRank`].
pub(super) fn low_rank<T: Scalar>(device: &CpuDevice, arena: &mut CpuArena<T>, op: &LowRank<'_>) {
    let nothing = op.output.rows(0, 0);
    let reads = [op.corrections.scales, op.base.unwrap_or(nothing), op.gate.map_or(nothing, |gate| gate.values)];
    let base = arena.shared(&reads, &[op.output, op.corrections.scratch]);
    let product = Product {
        tasks: op.tasks,
        rows: op.rows,
        blocks: op.output.rows / (op.tasks * op.rows),
        width: op.output.width,
        sources: [None, None],
        corrections: op.corrections,
        share: T::ONE,
        base: op.base,
        target: (!op.accumulate).then_some(op.output),
        finish: Finish::Gate { gate: op.gate, add_to: op.accumulate.then_some(op.output) },
    };
    product.run(device, base);
}
