//! The four products with a layer's weights.

use std::mem::offset_of;

use super::chain::{self, Layer};
use super::driver::{Driver, Kernel};
use super::finish;
use super::hopper::{self, Raw};
use super::low_rank::{self, Gate, apply_corrections};
use super::tensor::{Choice, Kernels, operands};
use super::thin;
use super::{Arguments, CudaArena, CudaDevice, NOTHING, NOWHERE, activation_code, blocks_of, narrow, wide};
use crate::device::{
    self, AdjointBackward, AdjointForward, Corrections, Linear, LinearBackward, LinearForward, LowRank,
    MatrixPrecision, Region,
};
use crate::model::Activation;

/// Rows and columns of a block's tile in f32: `TILE` in `kernels/tile.cuh`.
pub(super) const TILE: usize = 64;

pub(super) const FORWARD: Kernels = Kernels {
    plain: Kernel::LinearForward,
    tensor: [Some(Kernel::LinearForward16x64), Some(Kernel::LinearForward64x64), Some(Kernel::LinearForward128x128)],
};
pub(super) const BACKWARD: Kernels = Kernels {
    plain: Kernel::LinearBackward,
    tensor: [Some(Kernel::LinearBackward16x64), Some(Kernel::LinearBackward64x64), Some(Kernel::LinearBackward128x128)],
};
pub(super) const ADJOINT: Kernels = Kernels {
    plain: Kernel::AdjointForward,
    tensor: [Some(Kernel::AdjointForward16x64), Some(Kernel::AdjointForward64x64), Some(Kernel::AdjointForward128x128)],
};

/// The kernels of one operation: for all cores, for Hopper's warpgroups, and what ends the sums that these leave.
struct All {
    products: Kernels,
    warpgroups: hopper::Kernels,
    finish: Kernel,
}

const ALL_FORWARD: All = All { products: FORWARD, warpgroups: hopper::FORWARD, finish: Kernel::FinishForward };
const ALL_BACKWARD: All = All { products: BACKWARD, warpgroups: hopper::BACKWARD, finish: Kernel::FinishBackward };
const ALL_ADJOINT: All = All { products: ADJOINT, warpgroups: hopper::ADJOINT, finish: Kernel::FinishAdjoint };

#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct Source {
    input: u64,
    weight: u64,
    bias: u64,
    group_stride: u64,
    inner: u32,
    first: u32,
    rows: u32,
    unused: u32,
}

#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
pub(super) struct Product {
    gate: Gate,
    output: u64,
    groups: u32,
    group_rows: u32,
    blocks: u32,
    width: u32,
    begun: u32,
    activation: u32,
    delta: u64,
    z: u64,
    gated: u32,
    operands: u32,
    share: u64,
    sources: [Source; 2],
}

/// What becomes of its sums: its first fields.
pub(super) type ProductEnd = [u64; 12];
const _: () = assert!(size_of::<ProductEnd>() == offset_of!(Product, sources));

#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct AdjointGate {
    gate: Gate,
    output: u64,
    delta: u64,
    z: u64,
    blocks: u32,
    width: u32,
}

super::arguments! {
    Product, 192 =>
        LinearForward LinearForward16x64 LinearForward64x64 LinearForward128x128
        LinearBackward LinearBackward16x64 LinearBackward64x64 LinearBackward128x128
        AdjointForward AdjointForward16x64 AdjointForward64x64 AdjointForward128x128
        ThinForward ThinForward16 ThinBackward ThinBackward16 ThinAdjoint ThinAdjoint16;
    AdjointGate, 64 => AdjointGate;
}

impl Product {
    /// Where its output's offset lies, in bytes.
    pub const OUTPUT: usize = offset_of!(Self, output);

    /// What becomes of its sums, as a link of a chain takes it; where the first source's weight and bias lie, and the rows that this
    /// reaches, the first and how many.
    pub fn as_link(&self) -> (ProductEnd, [u64; 2], [u32; 2]) {
        let all: [u64; size_of::<Self>() / size_of::<u64>()] = bytemuck::cast(*self);
        let end: ProductEnd = std::array::from_fn(|i| all[i]);
        let Source { weight, bias, first, rows, .. } = self.sources[0];
        (end, [weight, bias], [first, rows])
    }

    /// Whether the output already holds a part of the result; whether it goes anywhere.
    pub fn begun(&self) -> bool {
        self.begun != 0
    }

    pub fn writes(&self) -> bool {
        self.output != NOWHERE
    }

    /// So many blocks of rows as they are, which go nowhere.
    pub fn of_rows(rows: Region, blocks: usize) -> Self {
        let shape = Shape { tasks: 1, rows: rows.rows / blocks, output: rows, shared: true, share: NOTHING };
        Self { output: NOWHERE, ..shape.product([Source::NONE; 2]) }
    }

    /// Whether all that an end touches beside sums lies at multiples of 16 bytes.
    pub fn in_fours(&self) -> bool {
        let [bias, delta, z] = [self.sources[0].bias, self.delta, self.z];
        let gate = if self.gated != 0 || delta != NOWHERE { self.gate.offset() } else { 0 };
        [bias, delta, z, gate, self.output].iter().all(|offset| *offset == NOWHERE || offset % 4 == 0)
    }

    /// Whether an end reads a gate's values, and delta: one of the adjoint pass upwards, or of a pass backwards.
    pub fn reads(&self, adjoint: bool, backward: bool) -> (bool, bool) {
        let gated = if adjoint { self.delta != NOWHERE } else { backward && self.gated != 0 };
        (gated, adjoint && gated && self.z != NOWHERE)
    }

    /// The activation that an end of the adjoint pass upwards, or of the forward pass, goes by.
    pub fn activation_of(&self, adjoint: bool) -> u32 {
        let gated = self.delta != NOWHERE;
        if adjoint && gated { self.gate.activation() } else { self.activation }
    }

    /// Whether these are the gate's values, row by row, and are read.
    pub fn is_gated_by(&self, values: Region) -> bool {
        let (gated, _) = self.reads(true, false);
        gated && self.gate.is_of(values, self.blocks as usize)
    }

    /// Rows of one group, in all blocks.
    pub fn rows_of_group(&self) -> usize {
        self.blocks as usize * self.group_rows as usize
    }

    /// Those that have weights of their own, or one where all are shared.
    pub fn groups(&self) -> usize {
        self.groups as usize
    }

    /// Columns of the output.
    pub fn width(&self) -> usize {
        self.width as usize
    }
}

impl Source {
    const NONE: Self =
        Self { input: 0, weight: 0, bias: NOWHERE, group_stride: 0, inner: 0, first: 0, rows: 0, unused: 0 };

    /// `input` times the layer's weights, added to the output rows from `first` on.
    fn new(input: Region, layer: &Linear, first: usize, with_bias: bool) -> Self {
        Self {
            input: wide(input.offset),
            weight: wide(layer.weight),
            bias: if with_bias { wide(layer.bias) } else { NOWHERE },
            group_stride: wide(layer.task_stride),
            inner: narrow(input.width),
            first: narrow(first),
            rows: narrow(input.rows),
            unused: 0,
        }
    }
}

/// What an operation's kernels touch, but for corrections: the weights and rows of its product; all that is multiplied, of which
/// there may be copies; and what else is read, and written.
struct Touched<'a> {
    operands: (Region, Region),
    multiplied: &'a [Region],
    reads: &'a [Region],
    writes: &'a [Region],
}

/// What the four operations have in common: T, K, the output and its blocks, whether all weights are shared, and where the
/// share of them that is taken lies.
struct Shape {
    tasks: usize,
    rows: usize,
    output: Region,
    shared: bool,
    share: Region,
}

impl Shape {
    fn blocks(&self) -> usize {
        self.output.rows / (self.tasks * self.rows)
    }

    fn product(&self, sources: [Source; 2]) -> Product {
        let (groups, group_rows) = if self.shared { (1, self.tasks * self.rows) } else { (self.tasks, self.rows) };
        Product {
            sources,
            gate: Gate::NONE,
            output: wide(self.output.offset),
            groups: narrow(groups),
            group_rows: narrow(group_rows),
            blocks: narrow(self.blocks()),
            width: narrow(self.output.width),
            begun: 0,
            activation: 0,
            delta: NOWHERE,
            z: NOWHERE,
            gated: 0,
            operands: 0,
            share: if self.share.is_empty() { NOWHERE } else { wide(self.share.offset) },
        }
    }

    /// Carries an operation out: `call` is that of a product without corrections, which come with the gate of `corrections`.
    fn carry_out<D: Driver>(
        &self,
        device: &CudaDevice<D>,
        arena: &mut CudaArena<D>,
        kernels: &All,
        call: Product,
        (corrections, gate): (&Corrections<'_>, Option<&device::Gate<'_>>),
        Touched { operands: operands_at, multiplied, reads, writes }: Touched<'_>,
    ) {
        // What a task's own weights are multiplied with is few rows: it takes as long as reading the weights.
        let precision = if self.shared { device.precision } else { MatrixPrecision::F32 };
        let call = Product { operands: operands(precision), ..call };
        let rows = call.rows_of_group();
        let (inner, width) = (call.sources[0].inner, call.width);
        let (tasks, task_rows, blocks) = (self.tasks, self.rows, call.blocks);
        let weights = if self.shared { "shared" } else { "per-task" };
        let shapes = format_args!(
            "{blocks} blocks of {tasks} tasks x {task_rows} rows, {inner} to {width}, {weights} weights, {precision}"
        );
        let accumulate = call.begun != 0;
        let narrow_layer = Layer {
            kernel: kernels.finish,
            product: call,
            corrections,
            shape: (tasks, task_rows),
            operands: operands_at,
            first: call.sources[0].first as usize / (tasks * task_rows),
            output: self.output,
            multiplied,
            reads,
            writes,
        };
        if self.shared && call.sources[1].rows == 0 && chain::with_layer(device, arena, &narrow_layer) {
            return;
        }
        arena.flush();
        arena.admit(multiplied, writes);
        arena.admit(reads, writes);
        // Before the first step there are none.
        let corrected = corrections.blocks.iter().any(|terms| !terms.is_empty());
        let plan = if self.shared { hopper::plan(device, operands_at, self.output, arena.sums.1) } else { None };
        let multiply = |arena: &CudaArena<D>, call: &Product, plan, raw: Option<Raw>| {
            // Sums are all that is written then, and operands all that is read.
            let touched = (if raw.is_some() { &[] } else { reads }, writes);
            hopper::multiply(
                device,
                arena,
                &kernels.warpgroups,
                plan,
                call,
                operands_at,
                (self.output, raw),
                touched,
                shapes,
            )
        };
        let shape = (self.tasks, self.rows);
        if self.shared && call.sources.iter().all(|source| source.rows == 0) && low_rank::in_one_launch(corrections) {
            let nothing = Raw { offset: self.output.offset, parts: 0 };
            finish::finish(
                device,
                arena,
                kernels.finish,
                call,
                corrections,
                shape,
                (nothing, self.output),
                (reads, writes),
            );
            return;
        }
        if let Some(plan) = plan
            && low_rank::in_one_launch(corrections)
        {
            if !corrected && plan.parts == 1 {
                if multiply(arena, &call, plan, None) {
                    return;
                }
            } else if let Some(raw) = self.place_of_sums(arena, plan, accumulate)
                && multiply(arena, &call, plan, Some(raw))
            {
                finish::finish(
                    device,
                    arena,
                    kernels.finish,
                    call,
                    corrections,
                    shape,
                    (raw, self.output),
                    (reads, writes),
                );
                return;
            }
        }
        arena.keep_to(multiplied.iter().chain(reads).chain(writes));
        let begun = apply_corrections(device, arena, corrections, shape, self.output, gate, accumulate);
        let call = Product { begun: (begun || accumulate).into(), ..call };
        if let Some(plan) = plan
            && multiply(arena, &call, plan, None)
        {
            return;
        }
        if !self.shared && thin::multiply(device, arena, kernels.products.plain, &call, shapes) {
            return;
        }
        let Choice { kernel, down, across } =
            kernels.products.choose(device.tiles.as_deref(), precision, rows, self.output.width);
        device.launch(arena, kernel, [call.groups as usize * down, across, 1], &call, shapes);
    }

    /// Where the sums of a plan's parts go: one part's where they are ended, unless something is there already.
    fn place_of_sums<D: Driver>(&self, arena: &CudaArena<D>, plan: hopper::Plan, accumulate: bool) -> Option<Raw> {
        let (offset, room) = arena.sums;
        let parts = plan.parts;
        if parts == 1 && !accumulate {
            return Some(Raw { offset: self.output.offset, parts });
        }
        (parts * self.output.len() <= room).then_some(Raw { offset, parts })
    }
}

/// A layer's weights as they lie, if they are shared.
fn weight_rows(layer: &Linear) -> Region {
    Region { offset: layer.weight, rows: layer.outputs, width: layer.inputs }
}

/// The regions that hold a layer's numbers.
fn layer_regions(layer: &Linear, tasks: usize) -> [Region; 2] {
    let last = if layer.is_shared() { 0 } else { tasks - 1 };
    let whole = |offset, len| Region { offset, rows: 1, width: last * layer.task_stride + len };
    [whole(layer.weight, layer.inputs * layer.outputs), whole(layer.bias, layer.outputs)]
}

/// The number that is the share of the weights that is taken, if it is not all.
fn share_of(corrections: &Corrections<'_>) -> Region {
    corrections.share.map_or(NOTHING, |index| corrections.scales.elements(index, 1))
}

/// Its shape and product, all but what the latter's operands are rounded to.
fn forward_of(op: &LinearForward<'_>) -> (Shape, Product) {
    let shared = op.layer.is_shared();
    let shape = Shape { tasks: op.tasks, rows: op.rows, output: op.output, shared, share: share_of(&op.corrections) };
    let call = Product {
        activation: activation_code(op.activation),
        ..shape.product([Source::new(op.input, &op.layer, 0, true), Source::NONE])
    };
    (shape, call)
}

/// See [`LinearForward`].
pub(super) fn forward<D: Driver>(device: &CudaDevice<D>, arena: &mut CudaArena<D>, op: &LinearForward<'_>) {
    let [weight, bias] = layer_regions(&op.layer, op.tasks);
    let (shape, call) = forward_of(op);
    let operands = (weight_rows(&op.layer), op.input);
    let touched =
        Touched { operands, multiplied: &[op.input, weight], reads: &[bias, shape.share], writes: &[op.output] };
    shape.carry_out(device, arena, &ALL_FORWARD, call, (&op.corrections, None), touched);
}

/// See [`Device::linear_forward_rounded`](device::Device::linear_forward_rounded).
pub(super) fn forward_rounded<D: Driver>(
    device: &CudaDevice<D>,
    arena: &mut CudaArena<D>,
    op: &LinearForward<'_>,
) -> bool {
    let [weight, bias] = layer_regions(&op.layer, op.tasks);
    let (shape, call) = forward_of(op);
    let call = Product { operands: operands(device.precision), ..call };
    arena.check(&[op.input, weight, bias, shape.share], &[]);
    let operands = (weight_rows(&op.layer), op.input);
    shape.shared && hopper::multiply_rounded(device, arena, &call, operands, (bias, op.output))
}

/// See [`LinearBackward`].
pub(super) fn backward<D: Driver>(device: &CudaDevice<D>, arena: &mut CudaArena<D>, op: &LinearBackward<'_>) {
    adjoint_backward(
        device,
        arena,
        &AdjointBackward {
            tasks: op.tasks,
            rows: op.rows,
            z_cotangent: op.delta,
            layer: op.layer,
            direction: None,
            corrections: op.corrections,
            gate: op.gate,
            output: op.output,
            accumulate: false,
        },
    );
}

/// See [`LowRank`]: with a base, whose rows are ended as if they were a product's sums.
pub(super) fn low_rank<D: Driver>(device: &CudaDevice<D>, arena: &CudaArena<D>, op: &LowRank<'_>, base: Region) {
    let (gate, shape) = (op.gate.as_ref(), (op.tasks, op.rows));
    let of = Shape { tasks: op.tasks, rows: op.rows, output: op.output, shared: true, share: NOTHING };
    let call = Product {
        begun: op.accumulate.into(),
        gate: gate.map_or(Gate::NONE, |gate| Gate::new(gate, of.blocks(), op.tasks * op.rows)),
        gated: gate.is_some().into(),
        operands: operands(device.precision),
        ..of.product([Source::NONE; 2])
    };
    let (reads, writes) = ([base, gate.map_or(NOTHING, |gate| gate.values)], [op.output]);
    arena.flush();
    arena.admit(&reads, &writes);
    let fits = low_rank::in_one_launch(&op.corrections);
    let first = if fits { &op.corrections } else { &Corrections::NONE };
    let rows = (Raw { offset: base.offset, parts: 1 }, op.output);
    finish::finish(device, arena, Kernel::FinishBackward, call, first, shape, rows, (&reads, &writes));
    if !fits {
        apply_corrections(device, arena, &op.corrections, shape, op.output, gate, true);
    }
}

/// See [`AdjointBackward`].
pub(super) fn adjoint_backward<D: Driver>(device: &CudaDevice<D>, arena: &mut CudaArena<D>, op: &AdjointBackward<'_>) {
    let [weight, _] = layer_regions(&op.layer, op.tasks);
    let direction = op.direction.map_or(weight, |d| layer_regions(&d.layer, op.tasks)[0]);
    let direction_values = op.direction.map_or(op.z_cotangent, |d| d.values);
    let gate_values = op.gate.map_or(NOTHING, |g| g.values);
    let shared = op.layer.is_shared() && op.direction.is_none();
    let shape = Shape { tasks: op.tasks, rows: op.rows, output: op.output, shared, share: share_of(&op.corrections) };
    // The gate multiplies corrections and product alike, so the one can be added to the other behind it.
    let gate = op.gate.as_ref();
    let second = op.direction.map_or(Source::NONE, |d| Source::new(d.values, &d.layer, 0, false));
    let call = Product {
        begun: op.accumulate.into(),
        gate: gate.map_or(Gate::NONE, |gate| Gate::new(gate, shape.blocks(), op.tasks * op.rows)),
        gated: gate.is_some().into(),
        ..shape.product([Source::new(op.z_cotangent, &op.layer, 0, false), second])
    };
    let operands = (weight_rows(&op.layer), op.z_cotangent);
    let multiplied = [op.z_cotangent, weight, direction, direction_values];
    let touched =
        Touched { operands, multiplied: &multiplied, reads: &[gate_values, shape.share], writes: &[op.output] };
    shape.carry_out(device, arena, &ALL_BACKWARD, call, (&op.corrections, gate), touched);
}

/// See [`AdjointForward`].
pub(super) fn adjoint_forward<D: Driver>(device: &CudaDevice<D>, arena: &mut CudaArena<D>, op: &AdjointForward<'_>) {
    let [weight, _] = layer_regions(&op.layer, op.tasks);
    let input = op.input.map_or(op.delta, |(region, _)| region);
    let direction = op.direction.map_or([weight, NOTHING], |d| layer_regions(&d.layer, op.tasks));
    let direction_values = op.direction.map_or(input, |d| d.values);
    let curved = op.gate.activation.is_curved();
    let gated = op.gate.activation != Activation::Linear;
    let multiplied = [op.input.map_or(NOTHING, |_| input), weight, direction[0], direction_values];
    let shared = op.direction.is_none() && op.layer.is_shared();
    let share = share_of(&op.corrections);
    let shape = Shape { tasks: op.tasks, rows: op.rows, output: op.e_cotangent, shared, share };
    let values = if gated { op.gate.values } else { NOTHING };
    let reads = [direction[1], values, if curved { op.delta } else { NOTHING }, share];
    let per_block = op.tasks * op.rows;
    let sources = [
        op.input.map_or(Source::NONE, |(input, first)| Source::new(input, &op.layer, first * per_block, false)),
        op.direction.map_or(Source::NONE, |d| Source::new(d.values, &d.layer, 0, true)),
    ];
    let blocks = &op.gate.blocks[..shape.blocks()];
    // Blocks that share a gate block add to one z: only a kernel that sees them all can do that in order.
    let together = curved && (1..blocks.len()).any(|b| blocks[..b].contains(&blocks[b]));
    let gate = Gate::new(&op.gate, shape.blocks(), per_block);
    let (delta, z) = (wide(op.delta.offset), if curved { wide(op.z_cotangent.offset) } else { NOWHERE });
    let call = Product {
        gate,
        // Without an activation there is no gate.
        delta: if together || !gated { NOWHERE } else { delta },
        z: if together { NOWHERE } else { z },
        ..shape.product(sources)
    };
    let rows = op.input.map_or(Region { rows: 0, ..input }, |(input, _)| input);
    let writes = &[op.e_cotangent, op.z_cotangent][..if curved { 2 } else { 1 }];
    let touched = Touched { operands: (weight_rows(&op.layer), rows), multiplied: &multiplied, reads: &reads, writes };
    shape.carry_out(device, arena, &ALL_ADJOINT, call, (&op.corrections, None), touched);
    if together {
        arena.check(&reads, writes);
        let call = AdjointGate {
            gate,
            output: wide(op.e_cotangent.offset),
            delta,
            z,
            blocks: narrow(blocks.len()),
            width: narrow(op.e_cotangent.width),
        };
        let grid = [op.gate.values.rows, blocks_of(op.e_cotangent.width), 1];
        let shapes = format_args!("{} rows of {}", op.gate.values.rows, op.e_cotangent.width);
        device.launch(arena, Kernel::AdjointGate, grid, &call, shapes);
    }
}
