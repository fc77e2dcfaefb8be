//! The materialised form: every task has weights of its own, `[T, P]` for each step that is gone back through.

use std::cell::Cell;

use super::learned::Learned;
use super::network::{Network, Rates};
use super::rule::{Back, Place, Rule};
use super::tape::{NetworkSpec, Slot};
use super::transform::Transform;
use crate::Scalar;
use crate::device::{
    AdjointBackward, AdjointForward, ArenaPlan, Corrections, Device, Direction, Gate, Gram, GramInner, Linear,
    LinearBackward, LinearForward, OuterProduct, OuterTerm, Rate, Region, Term,
};
use crate::meta::{InnerConfig, RateKind, Side};
use crate::model::Activation;

/// See the module.
pub(super) struct Materialised<T> {
    /// Adapted weights, `[slots, T * P]`: after step `s` in slot `(s - 1) % slots`. Before the first step they are the shared ones.
    weights: Region,
    /// Where layers have batch normalisation: the shared weights, with zeros in the place of those layers' biases, which
    /// have no part in products and do not move.
    product_weights: Option<Region>,
    /// How a step moves them.
    rule: Rule<T>,
    /// The cotangents of the weights and of the step's gradient, `[T, P]`.
    cotangent: Region,
    direction: Region,
    /// Per-parameter rates, `[1, P]`.
    rates: Option<Region>,
    /// Whether the coming run takes those that are learned on the device.
    learns: bool,
    /// Uniform rates, and the values of the bias's column, `[steps, layers]`.
    uniform: Vec<T>,
    bias: Vec<T>,
    /// By layer, where phi transforms rows.
    transformed: Vec<Transformed>,
    /// Where phi transforms rows: the bias's column less 1 in every step and layer, then 1.
    scales: Region,
    scale_values: Vec<T>,
    scratch: Region,
    /// Room for the gradient of the rates on the host.
    host: Cell<Vec<T>>,
    /// In the rates' layout.
    pub rate_gradient: Region,
    decay: T,
}

/// What is added to the adjoint pass of one layer where phi transforms rows.
struct Transformed {
    /// The cotangents of the gradient's own rows, by side.
    own: [Vec<Vec<Term>>; 2],
    /// The direction's bias, `[T, outputs]`, as often as the bias's column is more than 1.
    bias: Vec<Vec<Term>>,
    bias_rows: Region,
    /// Its products with the deltas that are descended: `[F * T * K, 1]`.
    products: Region,
}

impl Transformed {
    fn new<T: Scalar>(plan: &mut ArenaPlan, spec: &NetworkSpec, transform: &Transform<T>, layer: usize) -> Self {
        let rows = if spec.moves(layer) { spec.tasks } else { 0 };
        let bias_rows = plan.take(rows, spec.width(layer, Side::Delta));
        let one = spec.steps * spec.layers();
        let of = |side, blocks| {
            let mut terms = if spec.moves(layer) { transform.pulled_back(spec, layer, side, one) } else { Vec::new() };
            terms.resize(blocks, Vec::new());
            terms
        };
        let term = Term { gram: transform.one(), bias: None, scale: 0, rows: bias_rows };
        Self {
            own: [of(Side::Delta, spec.backward_blocks()), of(Side::Values, spec.forward_blocks)],
            bias: vec![vec![term]; spec.forward_blocks],
            bias_rows,
            products: plan.take(spec.forward_blocks * rows * spec.support_rows, 1),
        }
    }
}

impl<T: Scalar> Materialised<T> {
    pub fn new(
        plan: &mut ArenaPlan,
        spec: &NetworkSpec,
        transform: Option<&Transform<T>>,
        inner: &InnerConfig,
    ) -> Self {
        let (steps, parameters) = (spec.steps, spec.mlp.parameter_count());
        let per_parameter = inner.rates == RateKind::PerParameter;
        let adjoint = usize::from(spec.second_order || (!spec.trace && spec.reverses_updates())) * spec.tasks;
        let each = steps * spec.layers();
        let count = match transform {
            Some(_) => 2 * each,
            None if per_parameter => parameters,
            None => each,
        };
        let rows = spec.forward_blocks * spec.tasks * spec.support_rows;
        let slots = if spec.second_order || spec.query_passes > 1 { steps } else { steps.min(2) };
        let transform = transform.filter(|_| spec.pulls_rows_back());
        let transformed = transform.map_or(Vec::new(), |transform| {
            let layer = |layer| Transformed::new(plan, spec, transform, layer);
            (0..spec.layers()).map(layer).collect()
        });
        Self {
            weights: plan.take(slots, spec.tasks * parameters),
            product_weights: spec.mlp.has_batch_norm().then(|| plan.take(1, parameters)),
            rule: Rule::new(plan, spec, inner),
            cotangent: plan.take(spec.tasks, parameters),
            direction: plan.take(adjoint, parameters),
            rates: per_parameter.then(|| plan.take(1, parameters)),
            learns: false,
            uniform: vec![T::ZERO; if per_parameter { 0 } else { each }],
            bias: vec![T::ONE; each],
            scales: plan.take(1, if transformed.is_empty() { 0 } else { each + 1 }),
            scale_values: vec![T::ONE; if transformed.is_empty() { 0 } else { each + 1 }],
            scratch: plan.take(if transformed.is_empty() { 0 } else { rows }, spec.support_rows.max(1)),
            transformed,
            host: Cell::new(vec![T::ZERO; if spec.rate_gradient { count } else { 0 }]),
            rate_gradient: plan.take(1, if spec.rate_gradient { count } else { 0 }),
            decay: T::from_f64(inner.weight_decay),
        }
    }

    /// Takes the rates for the coming run, and the shared parameters.
    pub fn begin<D: Device<T>>(
        &mut self,
        spec: &NetworkSpec,
        device: &D,
        arena: &mut D::Arena,
        (rates, learned): (&Rates<T>, Option<&Learned>),
        parameters: Region,
    ) {
        if let Some(product_weights) = self.product_weights {
            device.copy(arena, parameters, product_weights);
            for layer in (0..spec.layers()).filter(|layer| spec.mlp.batch_norm(*layer).is_some()) {
                let range = spec.mlp.bias_range(layer);
                device.fill(arena, product_weights.elements(range.start, range.len()), T::ZERO);
            }
        }
        self.learns = *rates == Rates::Learned;
        match (rates, self.rates) {
            (Rates::PerParameter(values), Some(region)) => device.upload(arena, region, values),
            (Rates::Learned, _) => {
                let column = learned.and_then(|learned| Learned::parts(spec, learned.rates).1);
                if let Some(column) = column.filter(|_| !self.scales.is_empty()) {
                    let scales = self.scales.elements(0, column.len());
                    device.fill(arena, scales, T::from_f64(-1.0));
                    device.add_scaled(arena, column, T::ONE, scales);
                    device.fill(arena, self.scales.elements(column.len(), 1), T::ONE);
                }
            }
            (Rates::PerLayerPerStep { rates, bias }, None) => {
                self.uniform.copy_from_slice(rates);
                self.bias.copy_from_slice(bias);
                if !self.scales.is_empty() {
                    self.scale_values.iter_mut().zip(bias).for_each(|(scale, bias)| *scale = *bias - T::ONE);
                    device.upload(arena, self.scales, &self.scale_values);
                }
            }
            _ => unreachable!("the plan was made for the other kind of rates"),
        }
    }

    /// Where rates that the device can learn lie.
    pub fn place_learned(&self, plan: &mut ArenaPlan, spec: &NetworkSpec) -> Learned {
        let gradient = self.rate_gradient;
        match self.rates {
            Some(rates) => Learned { rates, gradient },
            None if Learned::is_single(spec) => Learned::new(plan, spec),
            None => Learned { rates: plan.take(1, gradient.len()), gradient },
        }
    }

    /// Those that are learned on the device, if the run takes them.
    fn learned(&self, net: &Network<T>) -> Option<Learned> {
        net.learned.filter(|_| self.learns)
    }

    fn rate(&self, net: &Network<T>, layer: usize, step: usize) -> Rate<T> {
        let spec = &net.spec;
        let place = step * spec.layers() + layer;
        match (self.rates, self.learned(net)) {
            (Some(region), _) => Rate::PerParameter(Network::<T>::layer_at(spec, region.offset, 0, layer)),
            (None, Some(Learned { rates, .. })) => {
                Rate::Single(rates.elements(if Learned::is_single(spec) { 0 } else { place }, 1))
            }
            (None, None) => Rate::Uniform(self.uniform[place]),
        }
    }

    /// One layer of `[T, P]` parameters.
    fn per_task(spec: &NetworkSpec, region: Region, layer: usize) -> Linear {
        Network::<T>::layer_at(spec, region.offset, spec.mlp.parameter_count(), layer)
    }

    /// The layer's weights after `history` steps.
    fn layer(&self, net: &Network<T>, layer: usize, history: usize) -> Linear {
        if history == 0 || !net.spec.moves(layer) {
            match self.product_weights {
                Some(shared) => Network::<T>::layer_at(&net.spec, shared.offset, 0, layer),
                None => net.shared_layer(layer),
            }
        } else {
            let slot = self.weights.rows((history - 1) % self.weights.rows, 1);
            Self::per_task(&net.spec, slot, layer)
        }
    }

    /// What is added to a layer's adjoint pass, of the blocks given, where phi transforms rows.
    fn own_rows(&self, spec: &NetworkSpec, layer: usize, side: Side, blocks: (usize, usize)) -> Corrections<'_> {
        match self.transformed.get(layer).filter(|_| spec.moves(layer)) {
            Some(transformed) => {
                let terms = &transformed.own[side as usize][blocks.0..blocks.1];
                Corrections { blocks: terms, scales: self.scales, scratch: self.scratch, ..Corrections::NONE }
            }
            None => Corrections::NONE,
        }
    }

    pub fn forward<D: Device<T>>(&self, net: &Network<T>, device: &D, arena: &mut D::Arena, layer: usize, slot: Slot) {
        let (activation, output) = net.product(layer, slot);
        let operation = LinearForward {
            tasks: net.spec.tasks,
            rows: net.spec.rows(slot),
            input: net.tape.values(layer, slot),
            layer: self.layer(net, layer, slot.history()),
            corrections: Corrections::NONE,
            activation,
            output,
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
            corrections: Corrections::NONE,
            gate,
            output,
        };
        device.linear_backward(arena, &operation);
    }

    pub fn update<D: Device<T>>(&self, net: &Network<T>, device: &D, arena: &mut D::Arena, step: usize) {
        for layer in net.spec.first_moving..net.spec.layers() {
            let at = step * net.spec.layers() + layer;
            let column = self.learned(net).and_then(|learned| Learned::parts(&net.spec, learned.rates).1);
            let bias = if column.is_some() { T::ONE } else { self.bias[at] } * net.spec.bias_column(layer);
            let factor = column.map(|column| column.elements(at, 1));
            let place = Place { layer, step, rate: self.rate(net, layer, step) };
            let weights = (self.layer(net, layer, step), self.layer(net, layer, step + 1));
            self.rule.update(net, device, arena, place, weights, (bias, factor, self.decay));
        }
    }

    pub fn begin_adjoint<D: Device<T>>(&self, net: &Network<T>, device: &D, arena: &mut D::Arena, after: usize) {
        let spec = &net.spec;
        let query = Slot::Query { after };
        let accumulate = after < spec.steps;
        for layer in 0..spec.layers() {
            let terms = [OuterTerm {
                p: net.tape.own(layer, query),
                q: net.tape.values(layer, query),
                bias: spec.bias_column(layer),
                blocks: spec.forward_blocks,
                scale: T::from_f64(spec.weight(query)),
                share: None,
            }];
            let layer = Self::per_task(spec, self.cotangent, layer);
            device.outer_product(arena, &OuterProduct { tasks: spec.tasks, terms: &terms, layer, accumulate });
        }
        if !accumulate {
            device.fill(arena, self.rate_gradient, T::ZERO);
        }
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
            let place = Place { layer, step, rate: self.rate(net, layer, step) };
            let back = Back {
                cotangent: Self::per_task(spec, self.cotangent, layer),
                direction: Self::per_task(spec, self.direction, layer),
                rate_gradient,
            };
            self.rule.reverse(net, device, arena, place, back);
        }
        if spec.decays {
            let parameters = spec.mlp.parameter_count();
            let first = spec.mlp.weight_range(spec.first_moving).start;
            for at in (0..spec.tasks).map(|task| task * parameters + first) {
                let part = |region: Region| region.elements(at, parameters - first);
                device.add_scaled(arena, part(self.direction), self.decay, part(self.cotangent));
            }
        }
    }

    /// The cotangent of the rows that step `step` descends, of one side, to `output`; with the deltas', the gradient of the
    /// bias's column.
    pub fn descended_cotangent<D: Device<T>>(
        &self,
        net: &Network<T>,
        device: &D,
        arena: &mut D::Arena,
        (layer, side): (usize, Side),
        step: usize,
        output: Region,
    ) {
        let (spec, slot) = (&net.spec, Slot::Step(step));
        let (tasks, rows) = (spec.tasks, spec.support_rows);
        let direction = Self::per_task(spec, self.direction, layer);
        let delta = net.tape.descended(layer, slot, Side::Delta);
        if side == Side::Values {
            let operation = LinearBackward {
                tasks,
                rows,
                delta,
                layer: direction,
                corrections: Corrections::NONE,
                gate: None,
                output,
            };
            device.linear_backward(arena, &operation);
            return;
        }
        let Transformed { bias, bias_rows, products, .. } = &self.transformed[layer];
        for task in 0..tasks {
            let from = Region { offset: direction.bias + task * direction.task_stride, rows: 1, ..*bias_rows };
            device.copy(arena, from, bias_rows.rows(task, 1));
        }
        let at = step * spec.layers() + layer;
        if spec.rate_gradient {
            device.gram(arena, &Gram { tasks, rows, x: delta, y: &[*bias_rows], output: *products, accumulate: false });
            let output = self.rate_gradient.elements(spec.steps * spec.layers() + at, 1);
            let scale = -spec.task_weight();
            let (left, right) = (*products, None);
            device.gram_inner(arena, &GramInner { left, right, group: 1, plus_one: true, scale, output });
        }
        let operation = LinearForward {
            tasks,
            rows,
            input: net.tape.descended(layer, slot, Side::Values),
            layer: direction,
            // The product has the bias once.
            corrections: Corrections {
                blocks: bias,
                scales: self.scales.elements(at, 1),
                scratch: self.scratch,
                ..Corrections::NONE
            },
            activation: Activation::Linear,
            output,
        };
        device.linear_forward(arena, &operation);
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
            direction: self.transformed.is_empty().then(|| Direction {
                layer: Self::per_task(spec, self.direction, layer),
                values: net.tape.values(layer, slot),
            }),
            corrections: self.own_rows(spec, layer, Side::Delta, (0, spec.backward_blocks())),
            gate,
            delta: net.tape.delta(layer, slot),
            z_cotangent: net.tape.z(layer, slot),
            e_cotangent: net.product_cotangent(layer, slot),
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
        let own = net.tape.own(layer, Slot::Step(step)).rows(first * block, (last - first) * block);
        let operation = AdjointBackward {
            tasks: spec.tasks,
            rows: spec.support_rows,
            z_cotangent,
            layer: self.layer(net, layer, step),
            direction: (spec.moves(layer) && self.transformed.is_empty())
                .then(|| Direction { layer: Self::per_task(spec, self.direction, layer), values: own }),
            corrections: self.own_rows(spec, layer, Side::Values, (first, last)),
            gate,
            output,
            accumulate,
        };
        device.adjoint_backward(arena, &operation);
    }

    /// The step's part of the cotangent of the weights.
    pub fn finish_step<D: Device<T>>(&self, net: &Network<T>, device: &D, arena: &mut D::Arena, step: usize) {
        let (spec, slot) = (&net.spec, Slot::Step(step));
        let later = |layer| spec.is_steady(layer) && step > 0;
        for layer in (0..spec.layers()).filter(|layer| !later(*layer)) {
            let first = spec.first_e_block(layer);
            let z = OuterTerm {
                p: net.tape.z(layer, slot),
                q: net.tape.values(layer, slot),
                bias: spec.bias_column(layer),
                blocks: spec.forward_blocks,
                scale: T::ONE,
                share: None,
            };
            let delta = net.tape.delta(layer, slot);
            let e = net.tape.e(layer, slot);
            let e = OuterTerm {
                p: delta.rows(delta.rows - e.rows, e.rows),
                q: e,
                bias: T::ZERO,
                blocks: spec.backward_blocks() - first,
                scale: T::ONE,
                share: None,
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
