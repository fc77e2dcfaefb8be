//! The dual form: adapted weights as the shared ones plus a low-rank history, never stored.
//!
//! After `s` steps `W^(s) = W0 - sum_{j<s} c[s][j] delta_j^T [a_j, 1]`: any inner rule that is linear in the gradients is a
//! table `c` (plain steps: `c[s][j] = alpha_j`; momentum: see [`Dual::set_rates`]). Pass `i` contributes to the meta-gradient
//! `Lambda_i = z_i^T [a_i, 1] + delta_i^T [e_i, 0]` (tildes dropped), so that the cotangent of step `j`'s gradient is
//! `-sum_{i>j} c[i][j] Lambda_i`. Every inner product of rows that any of this needs is computed once and kept:
//! `a.a`, `delta.delta`, `e.a` and `z.delta` of each pass with the steps before it.

use std::cell::Cell;

use super::dual_layer::{Layer, Terms};
use super::network::{Network, Rates};
use super::tape::{NetworkSpec, Slot, Tape};
use crate::Scalar;
use crate::device::{
    AdjointBackward, AdjointForward, ArenaPlan, Corrections, Device, Gate, Gram, GramInner, LinearBackward,
    LinearForward, OuterProduct, OuterTerm, Region, Term,
};

/// See the module.
pub(super) struct Dual<T> {
    layers: Vec<Layer<T>>,
    momentum: f64,
    scratch: Region,
    /// Room for the gradient of one layer's `c` on the host.
    host: Cell<Vec<T>>,
}

impl<T: Scalar> Dual<T> {
    pub fn new(plan: &mut ArenaPlan, spec: &NetworkSpec, tape: &Tape, momentum: f64) -> Self {
        let layers: Vec<Layer<T>> = (0..spec.layers()).map(|layer| Layer::new(plan, spec, tape, layer)).collect();
        let coefficients = |terms: &Terms, rows: usize| -> usize {
            terms.iter().flatten().map(|term| term.rows.rows).sum::<usize>() * rows
        };
        let largest = layers
            .iter()
            .flat_map(|l| {
                let support = [&l.forward, &l.backward, &l.up, &l.down].into_iter().flatten();
                let query = l.query.iter().chain(l.backward.last());
                support
                    .map(|t| coefficients(t, spec.support_rows))
                    .chain(query.map(|t| coefficients(t, spec.query_rows)))
                    .collect::<Vec<_>>()
            })
            .max();
        let scratch = plan.take(1, largest.unwrap_or(0));
        let host = Cell::new(vec![T::ZERO; (spec.steps + 1) * spec.steps]);
        Self { layers, momentum, scratch, host }
    }

    /// Fills the table c. With rates `alpha` and momentum `mu`, `v_i = sum_{j<=i} mu^(i-j) g_j`, so
    /// `c[s][j] = sum_{j<=i<s} alpha_i mu^(i-j)`.
    pub fn set_rates(&mut self, spec: &NetworkSpec, rates: &Rates<T>) {
        let Rates::PerLayerPerStep(rates) = rates else { unreachable!("the plan has refused per-parameter rates") };
        for (index, layer) in self.layers.iter_mut().enumerate() {
            for j in 0..spec.steps {
                let mut c = 0.0;
                for s in j + 1..=spec.steps {
                    let rate = if spec.moves(index) { rates[(s - 1) * spec.layers() + index].to_f64() } else { 0.0 };
                    c += rate * self.momentum.powi((s - 1 - j) as i32);
                    layer.scales[s * spec.steps + j] = T::from_f64(-c);
                }
            }
            let last = &layer.scales[spec.steps * spec.steps..];
            for (term, c) in layer.displacement_terms.iter_mut().zip(last) {
                term.scale = T::from_f64(-c.to_f64() * spec.task_weight());
            }
        }
    }

    fn corrections<'a>(&'a self, layer: usize, terms: &'a [Vec<Term>]) -> Corrections<'a, T> {
        let any = terms.iter().any(|block| !block.is_empty());
        Corrections { blocks: if any { terms } else { &[] }, scales: &self.layers[layer].scales, scratch: self.scratch }
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
        let operation = LinearForward {
            tasks: spec.tasks,
            rows: spec.rows(slot),
            input,
            layer: net.shared_layer(layer),
            corrections: self.corrections(layer, terms),
            activation: spec.mlp.activations()[layer],
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
            corrections: self.corrections(layer, &self.layers[layer].backward[pass(&net.spec, slot)][first..last]),
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

    pub fn begin_adjoint<D: Device<T>>(&self, net: &Network<T>, device: &D, arena: &mut D::Arena) {
        // The query's backward pass ended above layer 0, unless its input gradient was wanted.
        if net.spec.rate_gradient && !net.spec.has_extra_blocks() {
            self.delta_products(net, device, arena, 0, Slot::Query { after: net.spec.steps });
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
            corrections: self.corrections(layer, &kept.up[step]),
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
        if layer > 0 {
            self.z_products(net, device, arena, layer, step);
        }
        let operation = AdjointBackward {
            tasks: net.spec.tasks,
            rows: net.spec.support_rows,
            z_cotangent,
            layer: net.shared_layer(layer),
            direction: None,
            corrections: self.corrections(layer, &self.layers[layer].down[step][first..last]),
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

    /// The gradient of c, then of the rates: the transpose of [`Dual::set_rates`].
    ///
    /// `dL/dc[i][j] = -<Lambda_i, delta_j^T [a_j, 1]>` is a sum over inner products that are all there.
    pub fn rate_gradient<D: Device<T>>(&self, net: &Network<T>, device: &D, arena: &mut D::Arena, out: &mut [T]) {
        let spec = &net.spec;
        let (steps, layers) = (spec.steps, spec.layers());
        let group = spec.forward_blocks * spec.support_rows;
        let mut host = self.host.take();
        for (index, layer) in self.layers.iter().enumerate().skip(spec.first_moving) {
            device.fill(arena, layer.scale_gradient, T::ZERO);
            let mut add = |left, right, plus_one, i: usize| {
                let output = layer.scale_gradient.elements(i * steps, i);
                let scale = spec.task_weight();
                device.gram_inner(arena, &GramInner { left, right, group, plus_one, scale, output });
            };
            let first = if spec.second_order { 1 } else { steps };
            for i in first..=steps {
                // In the query pass delta takes the place of z, and only the descended blocks count.
                let z = if i == steps { layer.dd[i].rows(0, layer.aa[i].rows) } else { layer.zd[i] };
                add(z, layer.aa[i], true, i);
                let skipped = spec.first_e_block(index);
                if i < steps && skipped < spec.backward_blocks() {
                    let rows = layer.ea[i].rows;
                    add(layer.dd[i].rows(layer.dd[i].rows - rows, rows), layer.ea[i], false, i);
                }
            }
            device.download(arena, layer.scale_gradient, &mut host);
            for i in 0..steps {
                for s in i + 1..=steps {
                    for j in 0..=i {
                        let power = self.momentum.powi((i - j) as i32);
                        out[i * layers + index] += host[s * steps + j] * T::from_f64(power);
                    }
                }
            }
        }
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
        for (index, layer) in self.layers.iter().enumerate() {
            let last = &layer.scales[spec.steps * spec.steps..];
            let mut terms = Vec::new();
            if spec.moves(index) {
                for (i, (p, q)) in layer.deltas.iter().zip(&layer.values).enumerate() {
                    let rows = |r: &Region| r.rows(task * spec.support_rows, spec.support_rows);
                    let scale = last[i / spec.forward_blocks];
                    terms.push(OuterTerm { p: rows(p), q: rows(q), with_bias: true, blocks: 1, scale });
                }
            }
            self.outer_product(net, device, arena, index, &terms);
        }
        device.add_scaled(arena, net.parameters, T::ONE, net.gradient);
        device.download(arena, net.gradient, out);
    }
}

/// The index of a pass among those of a layer: the steps, then the query.
fn pass(spec: &NetworkSpec, slot: Slot) -> usize {
    match slot {
        Slot::Step(s) => s,
        Slot::Query { .. } => spec.steps,
    }
}
