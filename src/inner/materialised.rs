//! The materialised form: every task has weights of its own, `[T, P]` for each step that is gone back through.

use std::cell::Cell;

use super::network::{Network, Rates};
use super::rule::{Back, Place, Rule};
use super::tape::{NetworkSpec, Slot};
use crate::Scalar;
use crate::device::{
    AdjointBackward, AdjointForward, ArenaPlan, Corrections, Device, Direction, Gate, Linear, LinearBackward,
    LinearForward, OuterProduct, OuterTerm, Rate, Region,
};
use crate::meta::{InnerConfig, RateKind};

const NOWHERE: Region = Region { offset: 0, rows: 0, width: 0 };

/// See the module.
pub(super) struct Materialised<T> {
    /// Adapted weights, `[slots, T * P]`: after step `s` in slot `(s - 1) % slots`. Before the first step they are the shared ones.
    weights: Region,
    /// How a step moves them.
    rule: Rule<T>,
    /// The cotangents of the weights and of the step's gradient, `[T, P]`.
    cotangent: Region,
    direction: Region,
    /// Per-parameter rates, `[1, P]`.
    rates: Option<Region>,
    /// Uniform rates, `[steps, layers]`.
    uniform: Vec<T>,
    /// Room for the gradient of the rates on the host.
    host: Cell<Vec<T>>,
    /// In the rates' layout.
    rate_gradient: Region,
}

impl<T: Scalar> Materialised<T> {
    pub fn new(plan: &mut ArenaPlan, spec: &NetworkSpec, inner: &InnerConfig) -> Self {
        let (steps, parameters) = (spec.steps, spec.mlp.parameter_count());
        let per_parameter = inner.rates == RateKind::PerParameter;
        let adjoint = usize::from(spec.second_order || spec.rate_gradient) * spec.tasks;
        let count = if per_parameter { parameters } else { steps * spec.layers() };
        Self {
            weights: plan.take(if spec.second_order { steps } else { steps.min(2) }, spec.tasks * parameters),
            rule: Rule::new(plan, spec, inner),
            cotangent: plan.take(spec.tasks, parameters),
            direction: plan.take(adjoint, parameters),
            rates: per_parameter.then(|| plan.take(1, parameters)),
            uniform: vec![T::ZERO; if per_parameter { 0 } else { count }],
            host: Cell::new(vec![T::ZERO; if spec.rate_gradient { count } else { 0 }]),
            rate_gradient: plan.take(1, if spec.rate_gradient { count } else { 0 }),
        }
    }

    pub fn set_rates<D: Device<T>>(&mut self, device: &D, arena: &mut D::Arena, rates: &Rates<T>) {
        match (rates, self.rates) {
            (Rates::PerParameter(values), Some(region)) => device.upload(arena, region, values),
            (Rates::PerLayerPerStep(values), None) => self.uniform.copy_from_slice(values),
            _ => unreachable!("the plan was made for the other kind of rates"),
        }
    }

    fn rate(&self, spec: &NetworkSpec, layer: usize, step: usize) -> Rate<T> {
        match self.rates {
            Some(region) => Rate::PerParameter(Network::<T>::layer_at(spec, region.offset, 0, layer)),
            None => Rate::Uniform(self.uniform[step * spec.layers() + layer]),
        }
    }

    /// One layer of `[T, P]` parameters.
    fn per_task(spec: &NetworkSpec, region: Region, layer: usize) -> Linear {
        Network::<T>::layer_at(spec, region.offset, spec.mlp.parameter_count(), layer)
    }

    /// The layer's weights after `history` steps.
    fn layer(&self, net: &Network<T>, layer: usize, history: usize) -> Linear {
        if history == 0 || !net.spec.moves(layer) {
            net.shared_layer(layer)
        } else {
            let slot = self.weights.rows((history - 1) % self.weights.rows, 1);
            Self::per_task(&net.spec, slot, layer)
        }
    }

    fn no_corrections<'a>() -> Corrections<'a, T> {
        Corrections { blocks: &[], scales: &[], scratch: NOWHERE }
    }

    pub fn forward<D: Device<T>>(&self, net: &Network<T>, device: &D, arena: &mut D::Arena, layer: usize, slot: Slot) {
        let operation = LinearForward {
            tasks: net.spec.tasks,
            rows: net.spec.rows(slot),
            input: net.tape.values(layer, slot),
            layer: self.layer(net, layer, slot.history()),
            corrections: Self::no_corrections(),
            activation: net.spec.mlp.activations()[layer],
            output: net.tape.values(layer + 1, slot),
        };
        device.linear_forward(arena, &operation);
    }

    #[allow(clippy::too_many_arguments)]
    pub fn backward<D: Device<T>>(
        &self,
        net: &Network<T>,
        device: &D,
        arena: &mut D::Arena,
        layer: usize,
        slot: Slot,
        delta: Region,
        gate: Option<Gate<'_>>,
        output: Region,
    ) {
        let operation = LinearBackward {
            tasks: net.spec.tasks,
            rows: net.spec.rows(slot),
            delta,
            layer: self.layer(net, layer, slot.history()),
            corrections: Self::no_corrections(),
            gate,
            output,
        };
        device.linear_backward(arena, &operation);
    }

    pub fn update<D: Device<T>>(&self, net: &Network<T>, device: &D, arena: &mut D::Arena, step: usize) {
        for layer in net.spec.first_moving..net.spec.layers() {
            let place = Place { layer, step, rate: self.rate(&net.spec, layer, step) };
            let weights = (self.layer(net, layer, step), self.layer(net, layer, step + 1));
            self.rule.update(net, device, arena, place, weights);
        }
    }

    pub fn begin_adjoint<D: Device<T>>(&self, net: &Network<T>, device: &D, arena: &mut D::Arena) {
        let spec = &net.spec;
        let query = Slot::Query { after: spec.steps };
        for layer in 0..spec.layers() {
            let terms = [OuterTerm {
                p: net.tape.descended(layer, query),
                q: net.tape.values(layer, query),
                with_bias: true,
                blocks: spec.forward_blocks,
                scale: T::ONE,
            }];
            let layer = Self::per_task(spec, self.cotangent, layer);
            device.outer_product(arena, &OuterProduct { tasks: spec.tasks, terms: &terms, layer, accumulate: false });
        }
        device.fill(arena, self.rate_gradient, T::ZERO);
    }

    /// Step `step` backwards, as far as the rule of the steps goes.
    pub fn reverse_update<D: Device<T>>(&self, net: &Network<T>, device: &D, arena: &mut D::Arena, step: usize) {
        let spec = &net.spec;
        for layer in spec.first_moving..spec.layers() {
            let rate_gradient = spec.rate_gradient.then(|| match self.rates {
                Some(_) => {
                    let range = spec.mlp.weight_range(layer).start..spec.mlp.bias_range(layer).end;
                    self.rate_gradient.elements(range.start, range.len())
                }
                None => self.rate_gradient.elements(step * spec.layers() + layer, 1),
            });
            let place = Place { layer, step, rate: self.rate(spec, layer, step) };
            let back = Back {
                cotangent: Self::per_task(spec, self.cotangent, layer),
                direction: Self::per_task(spec, self.direction, layer),
                rate_gradient,
            };
            self.rule.reverse(net, device, arena, place, back);
        }
    }

    pub fn adjoint_up<D: Device<T>>(
        &self,
        net: &Network<T>,
        device: &D,
        arena: &mut D::Arena,
        layer: usize,
        step: usize,
        gate: Gate<'_>,
    ) {
        let (spec, slot) = (&net.spec, Slot::Step(step));
        let first = spec.first_e_block(layer);
        let operation = AdjointForward {
            tasks: spec.tasks,
            rows: spec.support_rows,
            input: (first < spec.backward_blocks()).then(|| (net.tape.e(layer, slot), first)),
            layer: self.layer(net, layer, step),
            direction: Some(Direction {
                layer: Self::per_task(spec, self.direction, layer),
                values: net.tape.values(layer, slot),
            }),
            corrections: Self::no_corrections(),
            gate,
            delta: net.tape.delta(layer, slot),
            z_cotangent: net.tape.z(layer, slot),
            e_cotangent: net.tape.e(layer + 1, slot),
        };
        device.adjoint_forward(arena, &operation);
    }

    #[allow(clippy::too_many_arguments)]
    pub fn adjoint_down<D: Device<T>>(
        &self,
        net: &Network<T>,
        device: &D,
        arena: &mut D::Arena,
        layer: usize,
        step: usize,
        (first, last): (usize, usize),
        z_cotangent: Region,
        gate: Option<Gate<'_>>,
        output: Region,
        accumulate: bool,
    ) {
        let spec = &net.spec;
        let block = spec.tasks * spec.support_rows;
        let descended = net.tape.descended(layer, Slot::Step(step)).rows(first * block, (last - first) * block);
        let operation = AdjointBackward {
            tasks: spec.tasks,
            rows: spec.support_rows,
            z_cotangent,
            layer: self.layer(net, layer, step),
            direction: spec
                .moves(layer)
                .then(|| Direction { layer: Self::per_task(spec, self.direction, layer), values: descended }),
            corrections: Self::no_corrections(),
            gate,
            output,
            accumulate,
        };
        device.adjoint_backward(arena, &operation);
    }

    /// The step's part of the cotangent of the weights.
    pub fn finish_step<D: Device<T>>(&self, net: &Network<T>, device: &D, arena: &mut D::Arena, step: usize) {
        let (spec, slot) = (&net.spec, Slot::Step(step));
        for layer in 0..spec.layers() {
            let first = spec.first_e_block(layer);
            let z = OuterTerm {
                p: net.tape.z(layer, slot),
                q: net.tape.values(layer, slot),
                with_bias: true,
                blocks: spec.forward_blocks,
                scale: T::ONE,
            };
            let delta = net.tape.delta(layer, slot);
            let e = net.tape.e(layer, slot);
            let e = OuterTerm {
                p: delta.rows(delta.rows - e.rows, e.rows),
                q: e,
                with_bias: false,
                blocks: spec.backward_blocks() - first,
                scale: T::ONE,
            };
            let terms = [z, e];
            let terms = if e.blocks > 0 { &terms[..] } else { &terms[..1] };
            let layer = Self::per_task(spec, self.cotangent, layer);
            device.outer_product(arena, &OuterProduct { tasks: spec.tasks, terms, layer, accumulate: true });
        }
    }

    pub fn meta_gradient<D: Device<T>>(&self, net: &Network<T>, device: &D, arena: &mut D::Arena) {
        device.sum_rows(arena, self.cotangent, T::from_f64(net.spec.task_weight()), net.gradient, false);
    }

    pub fn displacement<D: Device<T>>(&self, net: &Network<T>, device: &D, arena: &mut D::Arena) {
        let spec = &net.spec;
        if spec.steps == 0 {
            device.fill(arena, net.gradient, T::ZERO);
            return;
        }
        let scale = T::from_f64(spec.task_weight());
        // Differences first, so that nothing cancels: the cotangent's room holds them.
        let adapted = self.weights.rows((spec.steps - 1) % self.weights.rows, 1);
        device.copy(arena, adapted, self.cotangent);
        for task in 0..spec.tasks {
            device.add_scaled(arena, net.parameters, -T::ONE, self.cotangent.rows(task, 1));
        }
        device.sum_rows(arena, self.cotangent, -scale, net.gradient, false);
        for layer in 0..spec.first_moving {
            let Linear { weight, inputs, outputs, .. } = Network::<T>::layer_at(spec, net.gradient.offset, 0, layer);
            device.fill(arena, Region { offset: weight, rows: 1, width: outputs * (inputs + 1) }, T::ZERO);
        }
    }

    pub fn rate_gradient<D: Device<T>>(&self, device: &D, arena: &mut D::Arena, out: &mut [T]) {
        let mut host = self.host.take();
        device.download(arena, self.rate_gradient, &mut host);
        out.iter_mut().zip(&host).for_each(|(o, g)| *o += *g);
        self.host.set(host);
    }

    pub fn adapted<D: Device<T>>(
        &self,
        net: &Network<T>,
        device: &D,
        arena: &mut D::Arena,
        task: usize,
        out: &mut [T],
    ) {
        let spec = &net.spec;
        device.download(arena, net.parameters, out);
        if spec.steps == 0 {
            return;
        }
        let parameters = spec.mlp.parameter_count();
        let adapted = self.weights.rows((spec.steps - 1) % self.weights.rows, 1);
        let first = spec.mlp.weight_range(spec.first_moving).start;
        let from = adapted.elements(task * parameters + first, parameters - first);
        device.download(arena, from, &mut out[first..]);
    }
}
