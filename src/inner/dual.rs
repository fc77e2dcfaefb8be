//! The dual form: adapted weights as the shared ones plus a low-rank history, never stored.
//!
//! After `s` steps `W^(s) = share_s W0 - sum_{j<s} c[s][j] delta_j^T [a_j, 1]`: any inner rule that is linear in the gradients
//! is such a table (plain steps: `c[s][j] = alpha_j`; momentum and weight decay: see `coefficients`). Pass `i` contributes
//! to the meta-gradient `share_i Lambda_i` with `Lambda_i = z_i^T [a_i, 1] + delta_i^T [e_i, 0]` (tildes dropped), and the
//! cotangent of step `j`'s gradient is `-sum_{i>j} c[i][j] Lambda_i`. Where phi transforms rows, the steps' delta and a are
//! what became of them, and 1 is the bias's column. Every inner product of rows that any of this needs is computed once and kept:
//! `a.a`, `delta.delta`, `e.a` and `z.delta` of each pass with the steps before it.

use std::cell::Cell;

use super::change::{LayerChange, LowRankChange};
use super::coefficients::Rule;
use super::dual_layer::{Layer, Terms, bias_index, pass, query_index};
use super::network::{Network, Rates};
use super::tape::{NetworkSpec, Slot, Tape};
use super::transform::Transform;
use crate::Scalar;
use crate::device::{
    AdjointBackward, AdjointForward, ArenaPlan, Corrections, Device, Gate, Gram, GramInner, LinearBackward,
    LinearForward, LowRank, OuterProduct, OuterTerm, Region, Term,
};
use crate::meta::{InnerConfig, InnerOptimizer, Side};
use crate::model::Activation;

/// See the module.
pub(super) struct Dual<T> {
    layers: Vec<Layer<T>>,
    rule: Rule,
    scratch: Region,
    /// With weight decay and a gradient of the rates: products with the shared weights, of one pass and layer.
    shared_products: Region,
    /// Room for the gradient of one layer's tables on the host, as it comes and in double precision.
    host: Cell<(Vec<T>, Vec<f64>)>,
}

impl<T: Scalar> Dual<T> {
    pub fn new(
        plan: &mut ArenaPlan,
        spec: &NetworkSpec,
        tape: &Tape,
        transform: Option<&Transform<T>>,
        inner: &InnerConfig,
    ) -> Self {
        let layers: Vec<Layer<T>> =
            (0..spec.layers()).map(|layer| Layer::new(plan, spec, tape, transform, layer)).collect();
        let coefficients = |terms: &Terms, rows: usize| -> usize {
            terms.iter().flatten().map(|term| term.rows.rows).sum::<usize>() * rows
        };
        let largest = layers
            .iter()
            .flat_map(|l| {
                let [deltas, values] = &l.descended;
                let support = [&l.forward, &l.backward, &l.up, &l.down, deltas, values].into_iter().flatten();
                let query = l.query.iter().chain(&l.backward[spec.steps..]);
                support
                    .map(|t| coefficients(t, spec.support_rows))
                    .chain(query.map(|t| coefficients(t, spec.query_rows)))
                    .collect::<Vec<_>>()
            })
            .max();
        let scratch = plan.take(1, largest.unwrap_or(0));
        let most = layers.iter().map(|l| l.scale_gradient.len() + spec.steps + 1).max().unwrap_or(0);
        let host = Cell::new((vec![T::ZERO; most], vec![0.0; (spec.steps + 3) * spec.steps + 1]));
        let rows = spec.backward_blocks() * spec.tasks * spec.support_rows.max(spec.query_rows);
        let widest = spec.mlp.widths().iter().copied().max().unwrap_or(0);
        let shared_products = plan.take(if spec.decays && spec.rate_gradient { rows } else { 0 }, widest);
        let InnerOptimizer::Sgd { momentum } = inner.optimizer else {
            unreachable!("the configuration's check refuses the dual form of anything else")
        };
        let rule = Rule { momentum, decay: inner.weight_decay };
        Self { layers, rule, scratch, shared_products, host }
    }

    /// Fills the tables, and what depends on them.
    pub fn set_rates(&mut self, spec: &NetworkSpec, rates: &Rates<T>) {
        let Rates::PerLayerPerStep { rates, bias } = rates else {
            unreachable!("the plan has refused per-parameter rates")
        };
        for (index, layer) in self.layers.iter_mut().enumerate() {
            let bias = |step: usize| bias[step * spec.layers() + index] * spec.bias_column(index);
            let rate = |rate: &T| if spec.moves(index) { rate.to_f64() } else { 0.0 };
            layer.coefficients.set(self.rule, rates.iter().skip(index).step_by(spec.layers()).map(rate));
            layer.scales.iter_mut().zip(&layer.coefficients.c).for_each(|(scale, c)| *scale = T::from_f64(-c));
            for (term, slot) in layer.gradient_terms.iter_mut().zip(&layer.gradient_passes) {
                let share = layer.coefficients.share[slot.history()];
                term.scale = T::from_f64(share * spec.weight(*slot) * spec.task_weight());
            }
            for slot in spec.queries() {
                for step in 0..slot.history() {
                    let c = layer.coefficients.c[slot.history() * spec.steps + step];
                    layer.scales[query_index(spec, slot, step)] = T::from_f64(-c * spec.weight(slot));
                }
            }
            let last = &layer.scales[spec.steps * spec.steps..];
            for (step, (term, c)) in layer.displacement_terms.iter_mut().zip(last).enumerate() {
                term.scale = T::from_f64(-c.to_f64() * spec.task_weight());
                term.bias = bias(step);
            }
            for step in 0..spec.steps {
                layer.scales[bias_index(spec.steps, step)] = bias(step);
            }
        }
    }

    /// What `history` steps have made of a layer's weights, as far as `terms` goes.
    fn corrections<'a>(&'a self, layer: usize, history: usize, terms: &'a [Vec<Term>]) -> Corrections<'a, T> {
        let any = terms.iter().any(|block| !block.is_empty());
        let layer = &self.layers[layer];
        Corrections {
            share: T::from_f64(layer.coefficients.share[history]),
            blocks: if any { terms } else { &[] },
            scales: &layer.scales,
            scratch: self.scratch,
        }
    }

    pub fn forward<D: Device<T>>(&self, net: &Network<T>, device: &D, arena: &mut D::Arena, layer: usize, slot: Slot) {
        let (spec, kept) = (&net.spec, &self.layers[layer]);
        let input = net.tape.values(layer, slot);
        let history = slot.history();
        let pass = pass(spec, slot);
        if spec.moves(layer) && history > 0 {
            // A traced query has fewer columns than the region has room for.
            let output = Region { width: history * spec.forward_blocks * spec.support_rows, ..kept.aa[pass] };
            let y = &kept.values[..history * spec.forward_blocks];
            device.gram(arena, &Gram { tasks: spec.tasks, rows: spec.rows(slot), x: input, y, output });
        }
        let terms = match slot {
            Slot::Step(s) => &kept.forward[s],
            Slot::Query { after } => &kept.query[after],
        };
        let (activation, output) = net.product(layer, slot);
        let operation = LinearForward {
            tasks: spec.tasks,
            rows: spec.rows(slot),
            input,
            layer: net.shared_layer(layer),
            corrections: self.corrections(layer, history, terms),
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
        (first, last): (usize, usize),
        delta: Region,
        gate: Option<Gate<'_>>,
        output: Region,
    ) {
        self.delta_products(net, device, arena, layer, slot);
        let operation = LinearBackward {
            tasks: net.spec.tasks,
            rows: net.spec.rows(slot),
            delta,
            layer: net.shared_layer(layer),
            corrections: self.corrections(
                layer,
                slot.history(),
                &self.layers[layer].backward[pass(&net.spec, slot)][first..last],
            ),
            gate,
            output,
        };
        device.linear_backward(arena, &operation);
    }

    /// `delta.delta` of a pass with the steps before it.
    fn delta_products<D: Device<T>>(
        &self,
        net: &Network<T>,
        device: &D,
        arena: &mut D::Arena,
        layer: usize,
        slot: Slot,
    ) {
        let (spec, kept) = (&net.spec, &self.layers[layer]);
        let history = slot.history();
        if spec.moves(layer) && history > 0 {
            let y = &kept.deltas[..history * spec.forward_blocks];
            let (x, output) = (net.tape.delta(layer, slot), kept.dd[pass(spec, slot)]);
            device.gram(arena, &Gram { tasks: spec.tasks, rows: spec.rows(slot), x, y, output });
        }
    }

    pub fn begin_adjoint<D: Device<T>>(&self, net: &Network<T>, device: &D, arena: &mut D::Arena, after: usize) {
        // The query's backward pass ended above layer 0, unless its input gradient was wanted.
        if (net.spec.rate_gradient || net.spec.rates.transforms_rows()) && !net.spec.has_extra_blocks() {
            self.delta_products(net, device, arena, 0, Slot::Query { after });
        }
    }

    /// The cotangent of the rows that step `step` descends, of one side, to `output`.
    pub fn descended_cotangent<D: Device<T>>(
        &self,
        net: &Network<T>,
        device: &D,
        arena: &mut D::Arena,
        (layer, side): (usize, Side),
        step: usize,
        output: Region,
    ) {
        let corrections = self.corrections(layer, 0, &self.layers[layer].descended[side as usize][step]);
        let operation = LowRank { tasks: net.spec.tasks, rows: net.spec.support_rows, corrections, output };
        device.low_rank(arena, &operation);
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
        let (spec, kept, slot) = (&net.spec, &self.layers[layer], Slot::Step(step));
        let first = spec.first_e_block(layer);
        let input = (first < spec.backward_blocks()).then(|| net.tape.e(layer, slot));
        if let Some(x) = input
            && step > 0
        {
            let y = &kept.values[..step * spec.forward_blocks];
            device.gram(arena, &Gram { tasks: spec.tasks, rows: spec.support_rows, x, y, output: kept.ea[step] });
        }
        let operation = AdjointForward {
            tasks: spec.tasks,
            rows: spec.support_rows,
            input: input.map(|region| (region, first)),
            layer: net.shared_layer(layer),
            direction: None,
            corrections: self.corrections(layer, step, &kept.up[step]),
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
        if layer > 0 {
            self.z_products(net, device, arena, layer, step);
        }
        let operation = AdjointBackward {
            tasks: net.spec.tasks,
            rows: net.spec.support_rows,
            z_cotangent,
            layer: net.shared_layer(layer),
            direction: None,
            corrections: self.corrections(layer, step, &self.layers[layer].down[step][first..last]),
            gate,
            output,
            accumulate,
        };
        device.adjoint_backward(arena, &operation);
    }

    /// `z.delta` of a step with the steps before it.
    fn z_products<D: Device<T>>(&self, net: &Network<T>, device: &D, arena: &mut D::Arena, layer: usize, step: usize) {
        let (spec, kept) = (&net.spec, &self.layers[layer]);
        if spec.moves(layer) && step > 0 {
            let y = &kept.deltas[..step * spec.forward_blocks];
            let x = net.tape.z(layer, Slot::Step(step));
            device.gram(arena, &Gram { tasks: spec.tasks, rows: spec.support_rows, x, y, output: kept.zd[step] });
        }
    }

    /// What the downward pass, which ends above layer 0, leaves to do.
    pub fn finish_step<D: Device<T>>(&self, net: &Network<T>, device: &D, arena: &mut D::Arena, step: usize) {
        if net.spec.rate_gradient || net.spec.has_extra_blocks() {
            self.z_products(net, device, arena, 0, step);
        }
    }

    pub fn meta_gradient<D: Device<T>>(&self, net: &Network<T>, device: &D, arena: &mut D::Arena) {
        for (index, layer) in self.layers.iter().enumerate() {
            self.outer_product(net, device, arena, index, &layer.gradient_terms);
        }
    }

    pub fn displacement<D: Device<T>>(&self, net: &Network<T>, device: &D, arena: &mut D::Arena) {
        for (index, layer) in self.layers.iter().enumerate() {
            self.outer_product(net, device, arena, index, &layer.displacement_terms);
            let lost =
                (1.0 - layer.coefficients.share[net.spec.steps]) * net.spec.tasks as f64 * net.spec.task_weight();
            if lost != 0.0 {
                let [from, to] = [net.parameters, net.gradient].map(|flat| net.spec.layer_parameters(flat, index));
                device.add_scaled(arena, from, T::from_f64(lost), to);
            }
        }
    }

    /// Writes one layer of the network's gradient.
    fn outer_product<D: Device<T>>(
        &self,
        net: &Network<T>,
        device: &D,
        arena: &mut D::Arena,
        layer: usize,
        terms: &[OuterTerm<T>],
    ) {
        let out = Network::<T>::layer_at(&net.spec, net.gradient.offset, 0, layer);
        if terms.is_empty() {
            let len = out.outputs * (out.inputs + 1);
            device.fill(arena, Region { offset: out.weight, rows: 1, width: len }, T::ZERO);
        } else {
            device.outer_product(arena, &OuterProduct { tasks: net.spec.tasks, terms, layer: out, accumulate: false });
        }
    }

    /// The gradient of the tables, then of the rates. Where phi transforms rows, behind it that of the bias's column b.
    ///
    /// `dL/dc[i][j] = -<Lambda_i, delta_j^T [a_j, b_j]>` and `dL/db_j = -sum_{i>j} c[i][j] <z_i, delta_j>` are sums over
    /// inner products that are all there.
    pub fn rate_gradient<D: Device<T>>(&self, net: &Network<T>, device: &D, arena: &mut D::Arena, out: &mut [T]) {
        let spec = &net.spec;
        let (steps, layers) = (spec.steps, spec.layers());
        let table = (steps + 1) * steps;
        let (mut host, mut wide) = self.host.take();
        for (index, layer) in self.layers.iter().enumerate().skip(spec.first_moving) {
            self.table_gradient(net, device, arena, index);
            if spec.decays {
                self.share_gradient(net, device, arena, index);
            }
            let (host, of_share) = host.split_at_mut(layer.scale_gradient.len());
            device.download(arena, layer.scale_gradient, host);
            let of_share = &mut of_share[..layer.share_gradient.len()];
            device.download(arena, layer.share_gradient, of_share);
            let (host, of_bias) = host.split_at_mut(table);
            if !of_bias.is_empty() {
                for j in 0..steps {
                    let bias = layer.scales[bias_index(steps, j)];
                    for at in (j + 1..=steps).map(|i| i * steps + j) {
                        host[at] += bias * of_bias[at];
                        // The scales hold -c, and the sums are negated too.
                        out[(steps + j) * layers + index] -= layer.scales[at] * of_bias[at];
                    }
                }
            }
            let (dc, rest) = wide.split_at_mut(table);
            let (dshare, dq) = rest.split_at_mut(steps + 1);
            dc.iter_mut().zip(&*host).for_each(|(to, from)| *to = from.to_f64());
            dshare.fill(0.0);
            dshare.iter_mut().zip(&*of_share).for_each(|(to, from)| *to = from.to_f64());
            let rate = |step: usize, gradient| out[step * layers + index] += T::from_f64(gradient);
            layer.coefficients.reverse(self.rule, dc, dshare, dq, rate);
        }
        self.host.set((host, wide));
    }

    /// The passes that contribute to the meta-gradient.
    fn contributing(spec: &NetworkSpec) -> impl Iterator<Item = Slot> + use<T> {
        let steps = if spec.second_order { spec.steps } else { 0 };
        (0..steps).map(Slot::Step).chain(spec.queries())
    }

    /// The gradient of one layer's `c`; and where phi transforms rows, what that of the bias's column is made of.
    fn table_gradient<D: Device<T>>(&self, net: &Network<T>, device: &D, arena: &mut D::Arena, index: usize) {
        let (spec, layer, steps) = (&net.spec, &self.layers[index], net.spec.steps);
        device.fill(arena, layer.scale_gradient, T::ZERO);
        // With a bias's column that is not 1 its part is told apart.
        let apart = spec.rates.transforms_rows();
        let plus_one = !apart && spec.mlp.batch_norm(index).is_none();
        let group = spec.forward_blocks * spec.support_rows;
        let mut add = |left, right: Option<Region>, plus_one, slot: Slot| {
            let row = layer.scale_gradient.rows(usize::from(right.is_none()), 1);
            let (i, scale) = (slot.history(), spec.weight(slot) * spec.task_weight());
            let output = row.elements(i * steps, i);
            device.gram_inner(arena, &GramInner { left, right, group, plus_one, scale, output });
        };
        for slot in Self::contributing(spec).filter(|slot| slot.history() > 0) {
            let i = pass(spec, slot);
            // In a query pass delta takes the place of z, and only the descended blocks count.
            let z = if i >= steps { layer.dd[i].rows(0, layer.aa[i].rows) } else { layer.zd[i] };
            add(z, Some(layer.aa[i]), plus_one, slot);
            if apart {
                add(z, None, true, slot);
            }
            let skipped = spec.first_e_block(index);
            if i < steps && skipped < spec.backward_blocks() {
                let rows = layer.ea[i].rows;
                add(layer.dd[i].rows(layer.dd[i].rows - rows, rows), Some(layer.ea[i]), false, slot);
            }
        }
    }

    /// The gradient of one layer's shares: `dL/dshare_i = <Lambda_i, W0>`, by way of products with the shared weights.
    fn share_gradient<D: Device<T>>(&self, net: &Network<T>, device: &D, arena: &mut D::Arena, index: usize) {
        let (spec, layer) = (&net.spec, &self.layers[index]);
        device.fill(arena, layer.share_gradient, T::ZERO);
        let room = |rows: usize, width: usize| Region { rows, width, ..self.shared_products };
        let add = |arena: &mut D::Arena, left: Region, right: Region, slot: Slot| {
            let scale = -spec.weight(slot) * spec.task_weight();
            let output = layer.share_gradient.elements(slot.history(), 1);
            let group = left.width;
            device.gram_inner(arena, &GramInner { left, right: Some(right), group, plus_one: false, scale, output });
        };
        for slot in Self::contributing(spec) {
            let (input, z) = (net.tape.values(index, slot), net.tape.z(index, slot));
            let output = room(z.rows, z.width);
            let (tasks, rows) = (spec.tasks, spec.rows(slot));
            let operation = LinearForward {
                tasks,
                rows,
                input,
                layer: net.shared_layer(index),
                corrections: Corrections::NONE,
                activation: Activation::Linear,
                output,
            };
            device.linear_forward(arena, &operation);
            add(arena, z, output, slot);
            let skipped = spec.first_e_block(index);
            if matches!(slot, Slot::Step(_)) && skipped < spec.backward_blocks() {
                let (e, delta) = (net.tape.e(index, slot), net.tape.delta(index, slot));
                let output = room(e.rows, e.width);
                let operation = LinearBackward {
                    tasks,
                    rows,
                    delta: delta.rows(delta.rows - e.rows, e.rows),
                    layer: net.shared_layer(index),
                    corrections: Corrections::NONE,
                    gate: None,
                    output,
                };
                device.linear_backward(arena, &operation);
                add(arena, output, e, slot);
            }
        }
    }

    /// What the steps have made of one task's parameters.
    pub fn change<D: Device<T>>(
        &self,
        net: &Network<T>,
        device: &D,
        arena: &D::Arena,
        task: usize,
    ) -> LowRankChange<T> {
        let spec = &net.spec;
        let layers = self.layers.iter().enumerate().map(|(index, layer)| {
            let (inputs, outputs) = (spec.mlp.widths()[index], spec.mlp.widths()[index + 1]);
            let share = T::from_f64(layer.coefficients.share[spec.steps]);
            let mut change =
                LayerChange { share, deltas: Vec::new(), values: Vec::new(), bias: vec![T::ZERO; outputs] };
            let blocks = if spec.moves(index) { layer.deltas.len() } else { 0 };
            let append = |from: Region, to: &mut Vec<T>| {
                let start = to.len();
                to.resize(start + spec.support_rows * from.width, T::ZERO);
                let rows = from.rows(task * spec.support_rows, spec.support_rows);
                device.download(arena, rows, &mut to[start..]);
            };
            for block in 0..blocks {
                let step = block / spec.forward_blocks;
                let scale = layer.scales[spec.steps * spec.steps + step];
                let bias = layer.scales[bias_index(spec.steps, step)];
                let start = change.deltas.len();
                append(layer.deltas[block], &mut change.deltas);
                append(layer.values[block], &mut change.values);
                for row in change.deltas[start..].chunks_exact_mut(outputs) {
                    for (delta, sum) in row.iter_mut().zip(&mut change.bias) {
                        *delta *= scale;
                        *sum += *delta * bias;
                    }
                }
            }
            if spec.mlp.batch_norm(index).is_some() {
                // No step moves what comes after it: what the share takes of it is given back.
                let range = spec.mlp.bias_range(index);
                device.download(arena, net.parameters.elements(range.start, range.len()), &mut change.bias);
                change.bias.iter_mut().for_each(|bias| *bias *= T::ONE - share);
            }
            debug_assert_eq!(change.values.len() * outputs, change.deltas.len() * inputs);
            change
        });
        LowRankChange::new(&spec.mlp, layers.collect()).expect("rows of the network's own passes")
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
        for (index, layer) in self.layers.iter().enumerate() {
            let last = &layer.scales[spec.steps * spec.steps..];
            let mut terms = Vec::new();
            if spec.moves(index) {
                for (i, (p, q)) in layer.deltas.iter().zip(&layer.values).enumerate() {
                    let rows = |r: &Region| r.rows(task * spec.support_rows, spec.support_rows);
                    let scale = last[i / spec.forward_blocks];
                    let bias = layer.scales[bias_index(spec.steps, i / spec.forward_blocks)];
                    terms.push(OuterTerm { p: rows(p), q: rows(q), bias, blocks: 1, scale });
                }
            }
            self.outer_product(net, device, arena, index, &terms);
            let share = T::from_f64(layer.coefficients.share[spec.steps]);
            let [from, to] = [net.parameters, net.gradient].map(|flat| spec.layer_parameters(flat, index));
            device.add_scaled(arena, from, share, to);
        }
        device.download(arena, net.gradient, out);
    }
}
