//! The dual form: adapted weights as the shared ones plus a low-rank history, never stored.
//!
//! After `s` steps `W^(s) = share_s W0 - sum_{j<s} c[s][j] delta_j^T [a_j, 1]`: any inner rule that is linear in the gradients
//! is such a table (plain steps: `c[s][j] = alpha_j`; momentum and weight decay: see `coefficients`). Pass `i` contributes
//! to the meta-gradient `share_i Lambda_i` with `Lambda_i = z_i^T [a_i, 1] + delta_i^T [e_i, 0]` (tildes dropped), and the
//! cotangent of step `j`'s gradient is `-sum_{i>j} c[i][j] Lambda_i`. Where phi transforms rows, the steps' delta and a are
//! what became of them, and 1 is the bias's column. Every inner product of rows that any of this needs is computed once and kept:
//! `a.a`, `delta.delta`, `e.a` and `z.delta` of each pass with the steps before it.

use std::cell::Cell;

use super::coefficients::Rule;
use super::dual_layer::{Layer, Terms, blocks_of, pass, share_index};
use super::dual_rates::Tables;
use super::folded::Folded;
use super::network::Network;
use super::tape::{NetworkSpec, Slot, Tape};
use super::transform::Transform;
use crate::Scalar;
use crate::device::{
    AdjointBackward, AdjointForward, ArenaPlan, Corrections, Device, Gate, Gram, GramInner, LinearBackward,
    LinearForward, LowRank, OuterProduct, OuterTerm, Region, Term,
};
use crate::meta::{InnerConfig, InnerOptimizer, Side};

/// See the module.
pub(super) struct Dual<T> {
    pub(super) layers: Vec<Layer<T>>,
    pub(super) rule: Rule,
    pub(super) tables: Tables<T>,
    scratch: Region,
    /// With weight decay and a gradient of the rates: products with the shared weights, of one pass and layer.
    pub(super) shared_products: Region,
    /// Room for the gradient of one layer's tables on the host, as it comes and in double precision.
    pub(super) host: Cell<(Vec<T>, Vec<f64>)>,
    /// And for what the gradient of all of them is made of.
    pub(super) inner: Cell<Vec<GramInner>>,
    /// The last layer, where it is folded; `layers` are those before it then.
    pub(super) folded: Option<Folded<T>>,
}

impl<T: Scalar> Dual<T> {
    pub fn new(
        plan: &mut ArenaPlan,
        spec: &NetworkSpec,
        tape: &Tape,
        transform: Option<&Transform<T>>,
        (inner, folds): (&InnerConfig, bool),
    ) -> Self {
        let layers: Vec<Layer<T>> = (0..spec.layers() - usize::from(folds))
            .map(|layer| Layer::new(plan, spec, tape, transform, layer))
            .collect();
        let folded = folds.then(|| Folded::new(plan, spec, tape));
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
        let tables = Tables::new(plan, spec);
        let most = tables.gradient_of(0).len() + spec.steps + 1;
        let host = Cell::new((vec![T::ZERO; most], vec![0.0; (spec.steps + 3) * spec.steps + 1]));
        let rows = spec.backward_blocks() * spec.tasks * spec.support_rows.max(spec.query_rows);
        let widest = spec.mlp.widths().iter().copied().max().unwrap_or(0);
        let shared_products = plan.take(if spec.decays && spec.rate_gradient { rows } else { 0 }, widest);
        let InnerOptimizer::Sgd { momentum } = inner.optimizer else {
            unreachable!("the configuration's check refuses the dual form of anything else")
        };
        let rule = Rule { momentum, decay: inner.weight_decay };
        Self { layers, rule, tables, scratch, shared_products, host, inner: Cell::default(), folded }
    }

    /// What `history` steps have made of a layer's weights, as far as `terms` goes.
    fn corrections<'a>(
        &'a self,
        spec: &NetworkSpec,
        (layer, history): (usize, usize),
        terms: &'a [Vec<Term>],
    ) -> Corrections<'a> {
        Corrections {
            share: share_index(spec, layer, history),
            blocks: blocks_of(terms),
            scales: self.tables.region_of(layer),
            scratch: self.scratch,
        }
    }

    /// The last layer, if it is folded and this one.
    fn folded_at(&self, layer: usize) -> Option<&Folded<T>> {
        self.folded.as_ref().filter(|folded| folded.is(layer))
    }

    pub fn forward<D: Device<T>>(&self, net: &Network<T>, device: &D, arena: &mut D::Arena, layer: usize, slot: Slot) {
        if let Some(folded) = self.folded_at(layer) {
            folded.forward(net, device, arena, slot);
            return;
        }
        let (spec, kept) = (&net.spec, &self.layers[layer]);
        let input = net.tape.values(layer, slot);
        let history = slot.history();
        let pass = pass(spec, slot);
        if spec.moves(layer) && history > 0 {
            // A traced query has fewer columns than the region has room for.
            let output = Region { width: history * spec.forward_blocks * spec.support_rows, ..kept.aa[pass] };
            let y = &kept.values[..history * spec.forward_blocks];
            device.gram(
                arena,
                &Gram { tasks: spec.tasks, rows: spec.rows(slot), x: input, y, output, accumulate: false },
            );
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
            corrections: self.corrections(spec, (layer, history), terms),
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
        if let Some(folded) = self.folded_at(layer) {
            folded.backward(net, device, arena, slot, gate, output);
            return;
        }
        self.delta_products(net, device, arena, layer, slot);
        let operation = LinearBackward {
            tasks: net.spec.tasks,
            rows: net.spec.rows(slot),
            delta,
            layer: net.shared_layer(layer),
            corrections: self.corrections(
                &net.spec,
                (layer, slot.history()),
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
            device.gram(arena, &Gram { tasks: spec.tasks, rows: spec.rows(slot), x, y, output, accumulate: false });
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
        let corrections = self.corrections(&net.spec, (layer, 0), &self.layers[layer].descended[side as usize][step]);
        let operation = LowRank {
            tasks: net.spec.tasks,
            rows: net.spec.support_rows,
            corrections,
            output,
            base: None,
            gate: None,
            accumulate: false,
        };
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
        if let Some(folded) = self.folded_at(layer) {
            folded.adjoint_up(net, device, arena, step);
            return;
        }
        let (spec, kept, slot) = (&net.spec, &self.layers[layer], Slot::Step(step));
        let first = spec.first_e_block(layer);
        let input = (first < spec.backward_blocks()).then(|| net.tape.e(layer, slot));
        if let Some(x) = input
            && step > 0
        {
            let y = &kept.values[..step * spec.forward_blocks];
            device.gram(
                arena,
                &Gram { tasks: spec.tasks, rows: spec.support_rows, x, y, output: kept.ea[step], accumulate: false },
            );
        }
        let operation = AdjointForward {
            tasks: spec.tasks,
            rows: spec.support_rows,
            input: input.map(|region| (region, first)),
            layer: net.shared_layer(layer),
            direction: None,
            corrections: self.corrections(spec, (layer, step), &kept.up[step]),
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
        if let Some(folded) = self.folded_at(layer) {
            folded.adjoint_down(net, device, arena, step, gate, (output, accumulate));
            return;
        }
        if layer > 0 {
            self.z_products(net, device, arena, layer, step);
        }
        let operation = AdjointBackward {
            tasks: net.spec.tasks,
            rows: net.spec.support_rows,
            z_cotangent,
            layer: net.shared_layer(layer),
            direction: None,
            corrections: self.corrections(&net.spec, (layer, step), &self.layers[layer].down[step][first..last]),
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
            device.gram(
                arena,
                &Gram { tasks: spec.tasks, rows: spec.support_rows, x, y, output: kept.zd[step], accumulate: false },
            );
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
        if let Some(folded) = &self.folded {
            folded.meta_gradient(net, device, arena);
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
    pub(super) fn outer_product<D: Device<T>>(
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
}
