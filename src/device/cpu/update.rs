//! The materialised form's inner update and its transpose.

use super::matrix::{Matrix, Onto};
use super::multiply::multiply_any;
use super::outer_product::add_rows;
use super::{Base, CpuArena, CpuDevice};
use crate::device::{InnerUpdate, Linear, Rate, Region, ReverseUpdate};
use crate::scalar::Scalar;

/// Elements of a weight that are copied and updated at a time.
const PIECE: usize = 1 << 15;

/// Weight and bias of one task, as one run of elements: they lie one after the other.
fn task_range(layer: &Linear, task: usize) -> (usize, usize) {
    debug_assert_eq!(layer.bias, layer.weight + layer.inputs * layer.outputs);
    (layer.weight + task * layer.task_stride, (layer.inputs + 1) * layer.outputs)
}

/// All tasks' elements, for the overlap check.
pub(super) fn region(layer: &Linear, tasks: usize) -> Region {
    let (offset, len) = task_range(layer, 0);
    Region { offset, rows: 1, width: (tasks - 1) * layer.task_stride + len }
}

/// One task's parameters of a layer.
///
/// # Safety
/// As [`Base::slice`].
pub(super) unsafe fn read<'a, T: Scalar>(base: Base<T>, layer: &Linear, task: usize) -> &'a [T] {
    let (offset, len) = task_range(layer, task);
    // SAFETY: the caller's promise.
    unsafe { base.slice(offset, len) }
}

/// One task's parameters of a layer, to change.
///
/// # Safety
/// As [`Base::slice_mut`].
pub(super) unsafe fn write<'a, T: Scalar>(base: Base<T>, layer: &Linear, task: usize) -> &'a mut [T] {
    let (offset, len) = task_range(layer, task);
    // SAFETY: the caller's promise.
    unsafe { base.slice_mut(offset, len) }
}

/// What is read of a rate.
pub(super) fn rate_region<T: Scalar>(rate: &Rate<T>) -> Region {
    match rate {
        Rate::Uniform(_) => Region { offset: 0, rows: 0, width: 0 },
        Rate::Single(rate) => *rate,
        Rate::PerParameter(layer) => region(layer, 1),
    }
}

/// A rate at hand, or where there is one for each parameter.
#[derive(Clone, Copy)]
enum OwnRate<T> {
    One(T),
    Each(Linear),
}

impl<T: Scalar> OwnRate<T> {
    fn new(arena: &CpuArena<T>, rate: &Rate<T>) -> Self {
        match rate {
            Rate::Uniform(rate) => Self::One(*rate),
            Rate::Single(region) => Self::One(arena.slice(*region)[0]),
            Rate::PerParameter(rates) => Self::Each(*rates),
        }
    }
}

/// See [`InnerUpdate`].
pub(super) fn inner_update<T: Scalar>(device: &CpuDevice, arena: &mut CpuArena<T>, op: &InnerUpdate<T>) {
    let factor = op.bias_factor.unwrap_or(op.delta.rows(0, 0));
    let reads = [op.delta, op.values, region(&op.from, op.tasks), rate_region(&op.rate), factor];
    let to = region(&op.to, op.tasks);
    let writes = [to, op.new_velocity.map_or(Region { width: 0, ..to }, |v| region(&v, op.tasks))];
    let rate = OwnRate::new(arena, &op.rate);
    let bias = op.bias_factor.map_or(op.bias, |factor| op.bias * arena.slice(factor)[0]);
    let base = arena.shared(&reads, &writes);
    let gradient = WeightGradient { tasks: op.tasks, rows: op.rows, delta: op.delta, values: op.values };
    device.run(op.tasks, |task| {
        // SAFETY: declared regions; each job writes its own task's weights.
        let (from, to) = unsafe { (read(base, &op.from, task), write(base, &op.to, task)) };
        let Some(kept) = op.new_velocity else {
            // Nothing else needs the gradient: it goes straight into the weights, a piece that stays in the cache at a time.
            let OwnRate::One(rate) = rate else { unreachable!("per-parameter rates keep the velocity") };
            let Linear { inputs, outputs, .. } = op.to;
            let share = T::ONE - rate * op.decay;
            let step = (PIECE / inputs).max(1);
            for first in (0..outputs).step_by(step) {
                let last = outputs.min(first + step);
                let before = from[first * inputs..].as_ptr();
                let onto = if op.decay == T::ZERO {
                    Onto::Rows(before, inputs)
                } else {
                    let piece = first * inputs..last * inputs;
                    to[piece.clone()].iter_mut().zip(&from[piece]).for_each(|(t, f)| *t = share * *f);
                    Onto::Itself
                };
                gradient.add_weight(base, task, -rate, to.as_mut_ptr(), (first, last), onto);
            }
            to[inputs * outputs..].iter_mut().zip(&from[inputs * outputs..]).for_each(|(t, f)| *t = share * *f);
            gradient.add_bias(base, task, -rate * bias, to.as_mut_ptr());
            return;
        };
        // SAFETY: as above.
        let velocity = unsafe { write(base, &kept, task) };
        match op.velocity {
            Some(before) => {
                // SAFETY: an earlier step's velocity, which is only read.
                let before = unsafe { read(base, &before, task) };
                velocity.iter_mut().zip(before).for_each(|(v, b)| *v = op.momentum * *b);
            }
            None => velocity.fill(T::ZERO),
        }
        if op.decay != T::ZERO {
            velocity.iter_mut().zip(from).for_each(|(v, f)| *v += op.decay * *f);
        }
        gradient.add_weight(base, task, T::ONE, velocity.as_mut_ptr(), (0, op.to.outputs), Onto::Itself);
        gradient.add_bias(base, task, bias, velocity.as_mut_ptr());
        pulp::Arch::new().dispatch(|| match rate {
            OwnRate::One(rate) => {
                for ((t, f), v) in to.iter_mut().zip(from).zip(&*velocity) {
                    *t = *f - rate * *v;
                }
            }
            OwnRate::Each(rates) => {
                // SAFETY: the rates are only read.
                let rates = unsafe { read(base, &rates, 0) };
                for (((t, f), v), rate) in to.iter_mut().zip(from).zip(&*velocity).zip(rates) {
                    *t = *f - *rate * *v;
                }
            }
        });
    });
}

/// The rows that a layer's gradients are made of, task by task: `delta^T [a, 1]`.
pub(super) struct WeightGradient {
    pub tasks: usize,
    pub rows: usize,
    pub delta: Region,
    pub values: Region,
}

impl WeightGradient {
    /// `out = onto + scale * delta^T a`, the outputs `first..last` of a task's weight.
    fn add_weight<T: Scalar>(
        &self,
        base: Base<T>,
        task: usize,
        scale: T,
        out: *mut T,
        (first, last): (usize, usize),
        onto: Onto<T>,
    ) {
        let (inputs, outputs) = (self.values.width, self.delta.width);
        let per_block = self.tasks * self.rows;
        for block in 0..self.delta.rows / per_block {
            let row = block * per_block + task * self.rows;
            let delta = Matrix::rows(base.at(self.delta.offset + row * outputs + first).cast_const(), outputs);
            let values = Matrix::rows(base.at(self.values.offset + row * inputs).cast_const(), inputs);
            // SAFETY: declared regions; `out` is this job's own.
            unsafe {
                let out = out.add(first * inputs);
                let onto = if block > 0 { Onto::Itself } else { onto };
                multiply_any((last - first, self.rows, inputs), delta.transposed(), values, scale, (out, inputs), onto);
            }
        }
    }

    /// `out = delta^T [a, 1]`: a task's weight, then its bias.
    pub fn write<T: Scalar>(&self, base: Base<T>, task: usize, out: &mut [T]) {
        out.fill(T::ZERO);
        self.add_weight(base, task, T::ONE, out.as_mut_ptr(), (0, self.delta.width), Onto::Itself);
        self.add_bias(base, task, T::ONE, out.as_mut_ptr());
    }

    /// `out += scale * delta^T 1`, a task's bias; `out` begins with its weight.
    fn add_bias<T: Scalar>(&self, base: Base<T>, task: usize, scale: T, out: *mut T) {
        let (inputs, outputs) = (self.values.width, self.delta.width);
        let per_block = self.tasks * self.rows;
        // SAFETY: declared regions; `out` is this job's own.
        let bias = unsafe { std::slice::from_raw_parts_mut(out.add(inputs * outputs), outputs) };
        for block in 0..self.delta.rows / per_block {
            let rows = self.delta.rows(block * per_block + task * self.rows, self.rows);
            add_rows(base, &rows, 0, scale, bias);
        }
    }
}

/// See [`ReverseUpdate`].
pub(super) fn reverse_update<T: Scalar>(device: &CpuDevice, arena: &mut CpuArena<T>, op: &ReverseUpdate<T>) {
    if let (Some(gradient), Some(velocity)) = (op.rate_gradient, op.velocity) {
        rate_gradient(arena, op.tasks, (&op.weight_cotangent, &velocity), op.scale, gradient);
    }
    let reads = [region(&op.weight_cotangent, op.tasks), rate_region(&op.rate)];
    let rate = OwnRate::new(arena, &op.rate);
    let base = arena.shared(&reads, &[region(&op.direction, op.tasks)]);
    device.run(op.tasks, |task| {
        // SAFETY: declared regions; each job writes its own task's direction.
        let (cotangent, direction) =
            unsafe { (read(base, &op.weight_cotangent, task), write(base, &op.direction, task)) };
        let momentum = if op.accumulate { op.momentum } else { T::ZERO };
        pulp::Arch::new().dispatch(|| {
            // SAFETY: the rates are only read.
            let rates = |rates: &Linear| unsafe { read(base, rates, 0) };
            let pairs = direction.iter_mut().zip(cotangent);
            // Without momentum what is there counts for nothing, be it NaN.
            match (rate, momentum == T::ZERO) {
                (OwnRate::One(rate), true) => pairs.for_each(|(d, c)| *d = -(rate * *c)),
                (OwnRate::One(rate), false) => pairs.for_each(|(d, c)| *d = momentum * *d - rate * *c),
                (OwnRate::Each(r), true) => pairs.zip(rates(&r)).for_each(|((d, c), r)| *d = -(*r * *c)),
                (OwnRate::Each(r), false) => {
                    pairs.zip(rates(&r)).for_each(|((d, c), r)| *d = momentum * *d - *r * *c);
                }
            }
        });
    });
}

/// `gradient -= scale * <cotangent, moved>`, of one rate or of one for each parameter: task by task, so that the order of
/// the sum never changes.
pub(super) fn rate_gradient<T: Scalar>(
    arena: &mut CpuArena<T>,
    tasks: usize,
    (cotangent, moved): (&Linear, &Linear),
    scale: T,
    gradient: Region,
) {
    let base = arena.shared(&[region(cotangent, tasks), region(moved, tasks)], &[gradient]);
    for task in 0..tasks {
        // SAFETY: declared regions; nothing else runs.
        let (cotangent, moved, gradient) = unsafe {
            (read(base, cotangent, task), read(base, moved, task), base.slice_mut(gradient.offset, gradient.len()))
        };
        if let [gradient] = gradient {
            let dot: f64 = cotangent.iter().zip(moved).map(|(c, v)| c.to_f64() * v.to_f64()).sum();
            *gradient -= scale * T::from_f64(dot);
        } else {
            for ((g, c), m) in gradient.iter_mut().zip(cotangent).zip(moved) {
                *g -= scale * *c * *m;
            }
        }
    }
}
