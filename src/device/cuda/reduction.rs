//! Sums in double precision over large regions.

use super::driver::{Driver, Kernel};
use super::{Arguments, CudaArena, CudaDevice, blocks_of, narrow, wide};
use crate::device::{Linear, Region};

/// Partial sums at most.
pub(super) const SUMS: usize = 256;
/// The room they take in the arena, in elements.
pub(super) const PARTIALS: usize = SUMS * size_of::<f64>() / size_of::<f32>();

#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct Dot {
    x: u64,
    y: u64,
    x_stride: u64,
    y_stride: u64,
    length: u64,
    output: u64,
    tasks: u32,
    unused: u32,
}

#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct AddTotal {
    partials: u64,
    output: u64,
    scale: f64,
    count: u32,
    unused: u32,
}

super::arguments! {
    Dot, 56 => Dot;
    AddTotal, 32 => AddTotal;
}

/// `output += scale * sum over the tasks of x . y`, of one element; x and y are a layer's parameters.
pub(super) fn add_dot<D: Driver>(
    device: &CudaDevice<D>,
    arena: &mut CudaArena<D>,
    (x, y): (&Linear, &Linear),
    tasks: usize,
    scale: f32,
    output: Region,
) {
    let length = (x.inputs + 1) * x.outputs;
    let count = dot(device, arena, (x.weight, x.task_stride), (y.weight, y.task_stride), length, tasks);
    let call = AddTotal {
        partials: wide(arena.partials()),
        output: wide(output.offset),
        scale: scale.into(),
        count: narrow(count),
        unused: 0,
    };
    device.launch(arena, Kernel::AddTotal, [1, 1, 1], &call, format_args!("{count} partial sums"));
}

/// Leaves the partial sums of `sum over the tasks of x . y` behind the arena's regions; returns how many. Both are given
/// as an offset and a stride from task to task.
pub(super) fn dot<D: Driver>(
    device: &CudaDevice<D>,
    arena: &CudaArena<D>,
    x: (usize, usize),
    y: (usize, usize),
    length: usize,
    tasks: usize,
) -> usize {
    let count = blocks_of(length).min(SUMS);
    let call = Dot {
        x: wide(x.0),
        y: wide(y.0),
        x_stride: wide(x.1),
        y_stride: wide(y.1),
        length: wide(length),
        output: wide(arena.partials()),
        tasks: narrow(tasks),
        unused: 0,
    };
    device.launch(arena, Kernel::Dot, [count, 1, 1], &call, format_args!("{tasks} tasks of {length}"));
    count
}
