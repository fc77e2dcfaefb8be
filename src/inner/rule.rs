//! The rules of the materialised form's inner steps, with the state that each keeps.
//!
//! Adam's exact second-order gradient needs both moments after every step, `[S, T, P]` each, beside the weights' own; the
//! gradients are computed anew from the steps' rows on the way back, which costs K rows a task, and no memory.

use super::network::Network;
use super::tape::{NetworkSpec, Slot};
use crate::Scalar;
use crate::device::{
    Adam, AdamRateGradient, AdamUpdate, ArenaPlan, Device, InnerUpdate, Linear, Rate, Region, ReverseAdam,
    ReverseUpdate,
};
use crate::meta::{InnerConfig, InnerOptimizer, RateKind, Side};

/// A rule, with the regions of its state.
pub(super) enum Rule<T> {
    Sgd {
        momentum: T,
        /// What each step subtracted, before the rate; `[slots, T * P]` where that is needed.
        velocities: Option<Region>,
    },
    Adam {
        betas: [f64; 2],
        epsilon: f64,
        /// After each step, `[slots, T * P]`; one slot, renewed in place, where nothing goes back through the steps.
        moments: [Region; 2],
        /// Their cotangents, one slot in second order.
        cotangents: [Region; 2],
    },
}

/// One layer of one inner step.
#[derive(Clone, Copy)]
pub(super) struct Place<T> {
    pub layer: usize,
    pub step: usize,
    pub rate: Rate<T>,
}

/// One layer's arrays on the way back.
#[derive(Clone, Copy)]
pub(super) struct Back {
    /// The cotangent of the weights after the step, per task.
    pub cotangent: Linear,
    /// The cotangent of the step's gradient, per task.
    pub direction: Linear,
    /// The gradient of the layer's rates, if it is wanted.
    pub rate_gradient: Option<Region>,
}

/// One layer of one step's `[T, P]` parameters.
fn per_task<T: Scalar>(spec: &NetworkSpec, slots: Region, step: usize, layer: usize) -> Linear {
    let slot = slots.rows(step % slots.rows, 1);
    Network::<T>::layer_at(spec, slot.offset, spec.mlp.parameter_count(), layer)
}

impl<T: Scalar> Rule<T> {
    pub fn new(plan: &mut ArenaPlan, spec: &NetworkSpec, inner: &InnerConfig) -> Self {
        let (steps, parameters) = (spec.steps, spec.mlp.parameter_count());
        match inner.optimizer {
            InnerOptimizer::Sgd { momentum } => {
                let needed = momentum != 0.0 || inner.rates == RateKind::PerParameter || spec.rate_gradient;
                let slots = if spec.rate_gradient { steps } else { steps.min(2) };
                let velocities = needed.then(|| plan.take(slots, spec.tasks * parameters));
                Self::Sgd { momentum: T::from_f64(momentum), velocities }
            }
            InnerOptimizer::Adam { beta1, beta2, epsilon } => {
                let slots = if spec.second_order || spec.rate_gradient { steps } else { steps.min(1) };
                let moments = [(); 2].map(|()| plan.take(slots, spec.tasks * parameters));
                let adjoint = usize::from(spec.second_order);
                let cotangents = [(); 2].map(|()| plan.take(adjoint, spec.tasks * parameters));
                Self::Adam { betas: [beta1, beta2], epsilon, moments, cotangents }
            }
        }
    }

    /// The step forwards, from the weights `from` to `to`, with the value of the bias's column, a factor of it on the device, and the
    /// weight decay; all are gradient descent's alone.
    pub fn update<D: Device<T>>(
        &self,
        net: &Network<T>,
        device: &D,
        arena: &mut D::Arena,
        Place { layer, step, rate }: Place<T>,
        (from, to): (Linear, Linear),
        (bias, bias_factor, decay): (T, Option<Region>, T),
    ) {
        let (tasks, rows) = (net.spec.tasks, net.spec.support_rows);
        let [delta, values] = Side::BOTH.map(|side| net.tape.descended(layer, Slot::Step(step), side));
        match *self {
            Self::Sgd { momentum, velocities } => {
                let velocity = |step| velocities.map(|v| per_task::<T>(&net.spec, v, step, layer));
                let (velocity, new_velocity) = (step.checked_sub(1).and_then(velocity), velocity(step));
                let operation = InnerUpdate {
                    tasks,
                    rows,
                    delta,
                    values,
                    bias,
                    bias_factor,
                    from,
                    to,
                    rate,
                    momentum,
                    decay,
                    velocity,
                    new_velocity,
                };
                device.inner_update(arena, &operation);
            }
            Self::Adam { betas, epsilon, moments, .. } => {
                let after = |step| moments.map(|m| per_task::<T>(&net.spec, m, step, layer));
                let adam = Adam::at_step(betas, epsilon, step + 1);
                let (moments, new_moments) = (step.checked_sub(1).map(after), after(step));
                let operation = AdamUpdate { tasks, rows, delta, values, from, to, rate, adam, moments, new_moments };
                device.adam_update(arena, &operation);
            }
        }
    }

    /// The step backwards: the gradient of the rates, and from the cotangent of the weights that of the gradient. In a
    /// first-order algorithm nothing asks for the latter.
    pub fn reverse<D: Device<T>>(
        &self,
        net: &Network<T>,
        device: &D,
        arena: &mut D::Arena,
        Place { layer, step, rate }: Place<T>,
        Back { cotangent, direction, rate_gradient }: Back,
    ) {
        let spec = &net.spec;
        let (tasks, scale, accumulate) = (spec.tasks, T::from_f64(spec.task_weight()), step + 1 < spec.steps);
        match *self {
            Self::Sgd { momentum, velocities } => {
                let operation = ReverseUpdate {
                    tasks,
                    weight_cotangent: cotangent,
                    direction,
                    accumulate,
                    momentum,
                    rate,
                    velocity: velocities.map(|v| per_task::<T>(spec, v, step, layer)),
                    rate_gradient,
                    scale,
                };
                device.reverse_update(arena, &operation);
            }
            Self::Adam { betas, epsilon, moments, cotangents } => {
                let adam = Adam::at_step(betas, epsilon, step + 1);
                let moments = moments.map(|m| per_task::<T>(spec, m, step, layer));
                if let Some(rate_gradient) = rate_gradient {
                    let moved = direction;
                    let weight_cotangent = cotangent;
                    let operation =
                        AdamRateGradient { tasks, weight_cotangent, moments, adam, moved, rate_gradient, scale };
                    device.adam_rate_gradient(arena, &operation);
                }
                if spec.second_order {
                    let operation = ReverseAdam {
                        tasks,
                        rows: spec.support_rows,
                        delta: net.tape.descended(layer, Slot::Step(step), Side::Delta),
                        values: net.tape.descended(layer, Slot::Step(step), Side::Values),
                        weight_cotangent: cotangent,
                        moments,
                        moment_cotangents: cotangents.map(|c| per_task::<T>(spec, c, 0, layer)),
                        accumulate,
                        rate,
                        adam,
                        direction,
                    };
                    device.reverse_adam(arena, &operation);
                }
            }
        }
    }
}
