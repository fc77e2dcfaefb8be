//! Whole inner loops of small networks: a block a task, everything of the task in shared memory.

use bytemuck::Zeroable;

use super::driver::{Driver, Kernel};
use super::loss::loss_code;
use super::narrow::narrow_loop;
use super::{Arguments, CudaArena, CudaDevice, NOWHERE, activation_code, array, narrow, narrow_mma, settle, wide};
use crate::device::resident::{Pass, Places, padded};
use crate::device::{Region, Resident as Operation, ResidentGradient};
use crate::inner::LAYERS;
use crate::model::Mlp;
use crate::objective::Loss;

#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct ResidentPass {
    rows: u32,
    inputs: u32,
    targets: u32,
    values: u32,
    deltas: u32,
    scale: f32,
}

impl ResidentPass {
    /// With the loss a mean of so many elements of each row.
    fn new(pass: Pass, elements: usize) -> Self {
        let Pass { rows, inputs, targets, values, deltas } = pass;
        Self {
            rows: narrow(rows),
            inputs: narrow(inputs),
            targets: narrow(targets),
            values: narrow(values),
            deltas: narrow(deltas),
            scale: 1.0 / (rows * elements) as f32,
        }
    }
}

#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct ResidentLayer {
    inputs: u32,
    outputs: u32,
    row: u32,
    above: u32,
    weight: u32,
    bias: u32,
    plain: u32,
    level: u32,
    activation: u32,
    by_inputs: u32,
    by_pieces: u32,
    by_outputs: u32,
}

/// Every layer, and zeros for those that are not there.
fn layers(mlp: &Mlp) -> [ResidentLayer; LAYERS] {
    let mut layers = [ResidentLayer::zeroed(); LAYERS];
    let (mut place, mut plain, mut level) = (0, 0, 0);
    for ((layer, pair), activation) in layers.iter_mut().zip(mlp.widths().windows(2)).zip(mlp.activations()) {
        let &[inputs, outputs] = pair else { unreachable!("windows of two") };
        let (row, above) = (padded(inputs), padded(outputs));
        let bias = place + outputs * row;
        *layer = ResidentLayer {
            inputs: narrow(inputs),
            outputs: narrow(outputs),
            row: narrow(row),
            above: narrow(above),
            weight: narrow(place),
            bias: narrow(bias),
            plain: narrow(plain),
            level: narrow(level),
            activation: activation_code(*activation),
            by_inputs: reciprocal(inputs),
            by_pieces: reciprocal(inputs.div_ceil(4)),
            by_outputs: reciprocal(outputs),
        };
        place = bias + above;
        plain += (inputs + 1) * outputs;
        level += above;
    }
    layers
}

/// What `divided` in `kernels/resident.cuh` divides by.
fn reciprocal(divisor: usize) -> u32 {
    if divisor == 1 { 0 } else { ((1u64 << 32) / divisor as u64 + 1) as u32 }
}

#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct Resident {
    parameters: u64,
    rates: u64,
    support_x: u64,
    support_y: u64,
    query_x: u64,
    query_y: u64,
    task_loss: u64,
    gradients: u64,
    rate_gradients: u64,
    adapted: u64,
    trace_loss: u64,
    trace_output: u64,
    weights: u32,
    weight_slots: u32,
    velocities: u32,
    velocity_slots: u32,
    padded: u32,
    slots: u32,
    slot: u32,
    support: ResidentPass,
    query: ResidentPass,
    e: u32,
    z: u32,
    cotangent: u32,
    direction: u32,
    length: u32,
    tasks: u32,
    steps: u32,
    layers: u32,
    first_moving: u32,
    count: u32,
    loss: u32,
    per_parameter: u32,
    goes_back: u32,
    exact: u32,
    reverses: u32,
    displacement: u32,
    momentum: f32,
    decay: f32,
    unused: u32,
    layer: [ResidentLayer; LAYERS],
}

super::arguments! {
    Resident, 1016 => Resident;
}

/// See [`Operation`].
pub(super) fn resident<D: Driver>(device: &CudaDevice<D>, arena: &mut CudaArena<D>, op: &Operation<'_, f32>) {
    let (reads, writes) = op.access();
    arena.check(&reads, &writes);
    if narrow_mma::narrow_loop(device, arena, op) || narrow_loop(device, arena, op) {
        return;
    }
    let places = Places::new(op, padded);
    let place = |region: Option<Region>| region.map_or(NOWHERE, |region| wide(region.offset));
    let elements = if op.loss == Loss::CrossEntropy { 1 } else { op.mlp.outputs() };
    let call = Resident {
        parameters: wide(op.parameters.offset),
        rates: wide(op.rates.offset),
        support_x: wide(op.support[0].offset),
        support_y: wide(op.support[1].offset),
        query_x: wide(op.query[0].offset),
        query_y: wide(op.query[1].offset),
        task_loss: place(op.task_loss),
        gradients: place(op.gradient.map(|[_, room]| room)),
        rate_gradients: place(op.rate_gradient.map(|[_, room]| room)),
        adapted: place(op.adapted),
        trace_loss: place(op.trace.map(|[losses, _]| losses)),
        trace_output: place(op.trace.map(|[_, outputs]| outputs)),
        weights: narrow(places.weights),
        weight_slots: narrow(places.weight_slots),
        velocities: narrow(places.velocities),
        velocity_slots: narrow(places.velocity_slots),
        padded: narrow(places.parameters),
        slots: narrow(places.slots),
        slot: narrow(places.slot),
        support: ResidentPass::new(places.step(0), elements),
        query: ResidentPass::new(places.query, elements),
        e: narrow(places.e),
        z: narrow(places.z),
        cotangent: narrow(places.cotangent),
        direction: narrow(places.direction),
        length: narrow(places.len),
        tasks: narrow(op.tasks),
        steps: narrow(op.steps),
        layers: narrow(op.mlp.layers()),
        first_moving: narrow(op.first_moving),
        count: narrow(op.mlp.parameter_count()),
        loss: loss_code(op.loss),
        per_parameter: op.per_parameter.into(),
        goes_back: op.goes_back().into(),
        exact: op.is_exact().into(),
        reverses: op.reverses_steps().into(),
        displacement: (op.kind == ResidentGradient::Displacement).into(),
        momentum: op.momentum,
        decay: op.decay,
        unused: 0,
        layer: layers(op.mlp),
    };
    let bytes = narrow(places.len * size_of::<f32>());
    let Operation { tasks, steps, shots, queries, .. } = op;
    let shapes = format_args!("{tasks} tasks, {steps} steps, {shots} and {queries} rows, {bytes} bytes each");
    device.launch_with(arena, Kernel::Resident, [op.tasks, 1, 1], bytes, &call, shapes);
    let displacement = op.kind == ResidentGradient::Displacement;
    if let Some([to, from]) = op.gradient {
        settle::sum_rows(device, arena, from, if displacement { -op.scale } else { op.scale }, to);
    }
    if let Some([to, from]) = op.rate_gradient.filter(|_| op.goes_back()) {
        array::sum_rows(device, arena, from, -op.scale, to, false);
    }
}
