//! The dual form's last layer, where it is linear and ends in a mean square: nothing as wide as its output but the first
//! step's rows and the query's.
//!
//! Such a layer's deltas are its residuals times a number, `delta_s = c (z_s - target)` with `c = 2 / (K out)`, and so lie in a
//! small space: with `y_s = delta_s / c`, and the history's coefficients C of the dual form,
//!
//! ```text
//! y_s = (x_s - x_0) W0^T + y_0 + sum_j C_sj y_j  =  a_s W0^T + sigma_s y_0          (a_0 = 0, sigma_0 = 1)
//! ```
//!
//! where rows of `a` are as wide as the layer's *input*, and those of `sigma` have K numbers. A cotangent of a delta lies there
//! too, with the query's residuals `y_q = delta_q / c` beside the first step's. What anyone asks of such rows are inner
//! products with each other and products with W0, so a second form of each is enough, its image:
//!
//! ```text
//! delta_s W0     = a_s (c W0^T W0) + sigma_s (delta_0 W0)
//! delta_s . y_0  = (y_s . delta_0)^T,     delta_s . y_q
//! y_s . delta_j  = a_s . (delta_j W0) + sigma_s . (delta_j y_0)
//! ```
//!
//! So a step costs products with `W0^T W0`, `[in, in]` and the same for all tasks, where it cost products with W0, `[out, in]`. With W0
//! itself remain two products for the first step and two for the query, and of the meta-gradient's sum
//!
//! ```text
//! sum_s z_s^T x_s + delta_s^T e_s  =  W0 B + delta_0^T r_0 + delta_q^T r_q
//! ```
//!
//! two terms of K rows. The coordinates are of residuals' *differences*, so little is lost where residuals are small.

use super::coefficients::{Coefficients, Rule};
use super::dual_layer::{Terms, blocks_of};
use super::folded_layer::{Layout, Lists, MINUS_ONE, ONE, PER_CURVATURE, Sums, coefficient, factors};
use super::network::Network;
use super::tape::{NetworkSpec, Slot, Tape};
use crate::Scalar;
use crate::device::{
    AdjointBackward, ArenaPlan, Corrections, Device, Gate, Gram, Linear, LinearBackward, LinearForward, LowRank,
    OuterProduct, OuterTerm, Region,
};
use crate::model::Activation;

/// See the module.
pub(super) struct Folded<T> {
    pub(super) layer: usize,
    /// The layer's inputs, by step.
    pub(super) inputs: Vec<Region>,
    /// c.
    curvature: f64,
    pub(super) kept: Layout,
    lists: Lists,
    sums: Sums<T>,
    /// The factors of all corrections, what the host has put there last, and whether that and the constants are there.
    factors: Region,
    pub(super) values: Vec<T>,
    there: bool,
    constants: bool,
    coefficients: Coefficients,
    scratch: Region,
}

impl<T: Scalar> Folded<T> {
    pub fn new(plan: &mut ArenaPlan, spec: &NetworkSpec, tape: &Tape) -> Self {
        let kept = Layout::new(plan, spec);
        let lists = Lists::new(spec, tape, &kept);
        let curvature = 2.0 / (spec.support_rows * spec.mlp.outputs()) as f64;
        let mut values = vec![T::ZERO; factors(spec)];
        (values[ONE], values[MINUS_ONE]) = (T::ONE, -T::ONE);
        values[PER_CURVATURE] = T::from_f64(1.0 / curvature);
        Self {
            layer: spec.layers() - 1,
            inputs: (0..spec.steps).map(|s| tape.values(spec.layers() - 1, Slot::Step(s))).collect(),
            curvature,
            sums: Sums::new(spec, tape, &kept, curvature),
            factors: plan.take(1, values.len()),
            values,
            there: false,
            constants: false,
            coefficients: Coefficients::new(spec.steps),
            scratch: plan.take(1, lists.largest(spec)),
            kept,
            lists,
        }
    }

    /// Whether it is this layer.
    pub fn is(&self, layer: usize) -> bool {
        self.layer == layer
    }

    /// Takes the rates for the coming meta-step, and the weights as they are.
    pub fn begin<D: Device<T>>(
        &mut self,
        spec: &NetworkSpec,
        device: &D,
        arena: &mut D::Arena,
        (rule, rates): (Rule, &[T]),
        parameters: Region,
    ) {
        let own = rates.iter().skip(self.layer).step_by(spec.layers());
        self.coefficients.set(rule, own.map(|rate| rate.to_f64()));
        for (at, c) in self.coefficients.c.iter().enumerate() {
            let value = T::from_f64(-c * self.curvature);
            let own = &mut self.values[coefficient(spec, 0, at)];
            self.there &= *own == value;
            *own = value;
        }
        if !self.there {
            device.upload(arena, self.factors, &self.values);
            self.there = true;
        }
        if !self.constants {
            self.put_constants(device, arena);
            self.constants = true;
        }
        let weight = parameters.offset + spec.mlp.weight_range(self.layer).start;
        let square = self.kept.square;
        let rows = Region { offset: weight, rows: spec.mlp.outputs(), width: square.inputs };
        let scale = T::from_f64(self.curvature);
        let terms = &[OuterTerm { p: rows, q: rows, bias: T::ZERO, blocks: 1, scale, share: None }];
        device.outer_product(arena, &OuterProduct { tasks: 1, terms, layer: square, accumulate: false });
    }

    fn put_constants<D: Device<T>>(&self, device: &D, arena: &mut D::Arena) {
        let kept = &self.kept;
        for units in [kept.sigma.of[0], kept.query_units] {
            let of = |at: usize| if at / units.width % units.width == at % units.width { T::ONE } else { T::ZERO };
            device.upload(arena, units, &(0..units.len()).map(of).collect::<Vec<_>>());
        }
        kept.ones.iter().for_each(|ones| device.fill(arena, *ones, T::ONE));
        device.fill(arena, kept.no_bias, T::ZERO);
        device.fill(arena, kept.a.of[0], T::ZERO);
    }

    pub(super) fn corrections<'a>(&'a self, terms: &'a Terms) -> Corrections<'a> {
        Corrections { share: None, blocks: blocks_of(terms), scales: self.factors, scratch: self.scratch }
    }

    /// `output = base + terms`.
    fn sum<'a>(
        &'a self,
        (tasks, rows): (usize, usize),
        base: Option<Region>,
        terms: &'a Terms,
        output: Region,
    ) -> LowRank<'a> {
        LowRank { tasks, rows, base, corrections: self.corrections(terms), gate: None, output, accumulate: false }
    }

    /// Inner products of coordinates with images: the sum of all these.
    fn products<D: Device<T>>(
        device: &D,
        arena: &mut D::Arena,
        (tasks, rows): (usize, usize),
        of: &[(Region, &[Region])],
        output: Region,
    ) {
        for (at, (x, y)) in of.iter().enumerate() {
            device.gram(arena, &Gram { tasks, rows, x: *x, y, output, accumulate: at > 0 });
        }
    }

    /// The layer's weights, with no bias.
    pub(super) fn weights(&self, net: &Network<T>) -> Linear {
        Linear { bias: self.kept.no_bias.offset, ..net.shared_layer(self.layer) }
    }

    pub fn forward<D: Device<T>>(&self, net: &Network<T>, device: &D, arena: &mut D::Arena, slot: Slot) {
        let (spec, kept, lists) = (&net.spec, &self.kept, &self.lists);
        let shape @ (tasks, rows) = (spec.tasks, spec.rows(slot));
        let input = net.tape.values(self.layer, slot);
        let before = &self.inputs[..slot.history()];
        let output = |input, terms| LinearForward {
            tasks,
            rows,
            input,
            layer: net.shared_layer(self.layer),
            corrections: self.corrections(terms),
            activation: Activation::Linear,
            output: net.tape.values(self.layer + 1, slot),
        };
        match slot {
            Slot::Step(0) => device.linear_forward(arena, &output(input, &lists.sigma[0])),
            Slot::Step(s) => {
                Self::products(device, arena, shape, &[(input, before)], kept.aa[s]);
                device.low_rank(arena, &self.sum(shape, Some(input), &lists.a[s], kept.a.of[s]));
                let first = Some(kept.sigma.of[0]);
                device.low_rank(arena, &self.sum(shape, first, &lists.sigma[s], kept.sigma.of[s]));
                let operation = LinearForward {
                    tasks,
                    rows,
                    input: kept.a.of[s],
                    layer: Linear { bias: kept.no_bias.offset, ..kept.square },
                    corrections: self.corrections(&lists.image[s]),
                    activation: Activation::Linear,
                    output: kept.images.of[s],
                };
                device.linear_forward(arena, &operation);
            }
            Slot::Query { .. } => {
                Self::products(device, arena, shape, &[(input, before)], kept.query_aa);
                device.low_rank(arena, &self.sum(shape, Some(input), &lists.query_a, kept.query_a));
                device.low_rank(arena, &self.sum(shape, None, &lists.query_sigma, kept.query_sigma));
                device.linear_forward(arena, &output(kept.query_a, &lists.query));
            }
        }
    }

    /// The gradient of the layer's input, times the derivative of the activation below.
    pub fn backward<D: Device<T>>(
        &self,
        net: &Network<T>,
        device: &D,
        arena: &mut D::Arena,
        slot: Slot,
        gate: Option<Gate<'_>>,
        output: Region,
    ) {
        let (spec, kept, lists) = (&net.spec, &self.kept, &self.lists);
        let shape = (spec.tasks, spec.rows(slot));
        match slot {
            Slot::Step(0) => {
                self.image(net, device, arena, slot, kept.images.of[0], kept.first.of[0]);
                device.low_rank(
                    arena,
                    &LowRank { gate, ..self.sum(shape, Some(kept.images.of[0]), &lists.backward[0], output) },
                );
            }
            Slot::Step(s) => {
                let (a, sigma) = (kept.a.of[s], kept.sigma.of[s]);
                let [images, first] = [&kept.images.of, &kept.first.of];
                let with_first = [(a, &images[..1]), (sigma, &first[..1])];
                Self::products(device, arena, shape, &with_first, first[s]);
                if s > 1 {
                    let with_others = [(a, &images[1..s]), (sigma, &first[1..s])];
                    Self::products(device, arena, shape, &with_others, kept.dd[s]);
                }
                device
                    .low_rank(arena, &LowRank { gate, ..self.sum(shape, Some(images[s]), &lists.backward[s], output) });
            }
            Slot::Query { .. } => {
                self.image(net, device, arena, slot, kept.query_image, kept.query_first);
                // Of all steps at once, each a block.
                let support = (spec.tasks, spec.support_rows);
                let of_query = [(kept.a.all, &[kept.query_image][..]), (kept.sigma.all, &[kept.query_first])];
                Self::products(device, arena, support, &of_query, kept.query.all);
                let terms = &lists.query_backward;
                device.low_rank(arena, &LowRank { gate, ..self.sum(shape, Some(kept.query_image), terms, output) });
            }
        }
    }

    /// What there is of deltas as wide as the output: their product with W0, and the inner products of their residuals with the
    /// first step's deltas.
    fn image<D: Device<T>>(
        &self,
        net: &Network<T>,
        device: &D,
        arena: &mut D::Arena,
        slot: Slot,
        image: Region,
        first: Region,
    ) {
        let shape @ (tasks, rows) = (net.spec.tasks, net.spec.rows(slot));
        let delta = net.tape.delta(self.layer, slot);
        let operation = LinearBackward {
            tasks,
            rows,
            delta,
            layer: net.shared_layer(self.layer),
            corrections: Corrections::NONE,
            gate: None,
            output: image,
        };
        device.linear_backward(arena, &operation);
        let products = Region { rows: first.rows, ..self.kept.products };
        let deltas = [net.tape.delta(self.layer, Slot::Step(0))];
        Self::products(device, arena, shape, &[(delta, &deltas)], products);
        let terms = &self.lists.per_curvature[usize::from(slot != Slot::Step(0))];
        device.low_rank(arena, &self.sum(shape, None, terms, first));
    }

    /// The cotangents of a step's deltas.
    pub fn adjoint_up<D: Device<T>>(&self, net: &Network<T>, device: &D, arena: &mut D::Arena, step: usize) {
        let (spec, kept, lists) = (&net.spec, &self.kept, &self.lists);
        let shape = (spec.tasks, spec.support_rows);
        let e = net.tape.e(self.layer, Slot::Step(step));
        if step > 0 {
            Self::products(device, arena, shape, &[(e, &self.inputs[..step])], kept.ea[step]);
        }
        let of = [
            (Some(e), &lists.up_a[step], &kept.cotangent_a),
            (None, &lists.up_sigma[step], &kept.cotangent_sigma),
            (None, &lists.up_kappa[step], &kept.cotangent_kappa),
        ];
        for (base, terms, to) in of {
            device.low_rank(arena, &self.sum(shape, base, terms, to.of[step]));
        }
    }

    /// The cotangent of the layer's input, times the derivative of the activation below.
    pub fn adjoint_down<D: Device<T>>(
        &self,
        net: &Network<T>,
        device: &D,
        arena: &mut D::Arena,
        step: usize,
        gate: Option<Gate<'_>>,
        (output, accumulate): (Region, bool),
    ) {
        let kept = &self.kept;
        let (tasks, rows) = (net.spec.tasks, net.spec.support_rows);
        if step > 0 {
            let of = [
                (kept.cotangent_a.of[step], &kept.images.of[..step]),
                (kept.cotangent_sigma.of[step], &kept.first.of[..step]),
                (kept.cotangent_kappa.of[step], &kept.query.of[..step]),
            ];
            Self::products(device, arena, (tasks, rows), &of, kept.zd[step]);
        }
        let operation = AdjointBackward {
            tasks,
            rows,
            z_cotangent: kept.cotangent_a.of[step],
            layer: kept.square,
            direction: None,
            corrections: self.corrections(&self.lists.down[step]),
            gate,
            output,
            accumulate,
        };
        device.adjoint_backward(arena, &operation);
    }

    /// Writes the layer's part of the network's gradient.
    pub fn meta_gradient<D: Device<T>>(&self, net: &Network<T>, device: &D, arena: &mut D::Arena) {
        let (spec, kept, lists) = (&net.spec, &self.kept, &self.lists);
        let out = Network::<T>::layer_at(spec, net.gradient.offset, 0, self.layer);
        let query = Slot::Query { after: spec.steps };
        let (support_shape, query_shape) = ((spec.tasks, spec.support_rows), (spec.tasks, spec.query_rows));
        let bases = [(None, None), (Some(net.tape.values(self.layer, query)), Some(kept.ones[1]))];
        for (i, (shape, (base, bias_base))) in [support_shape, query_shape].into_iter().zip(bases).enumerate() {
            device.low_rank(arena, &self.sum(shape, base, &lists.outer[i], kept.outer[i]));
            device.low_rank(arena, &self.sum(shape, bias_base, &lists.outer_bias[i], kept.outer_bias[i]));
        }
        let sum = |arena: &mut D::Arena, terms: &[OuterTerm<T>], layer: Linear, accumulate: bool| {
            device.outer_product(arena, &OuterProduct { tasks: spec.tasks, terms, layer, accumulate });
        };
        sum(arena, &self.sums.wide, out, false);
        sum(arena, &self.sums.bias, Linear { weight: out.bias, bias: kept.row.offset, inputs: 1, ..out }, true);
        sum(arena, &self.sums.inner, kept.inner_gradient, false);
        self.add_multiple(net, device, arena, out);
    }

    /// Adds W0 times what is in the inner gradient to a layer's numbers.
    fn add_multiple<D: Device<T>>(&self, net: &Network<T>, device: &D, arena: &mut D::Arena, out: Linear) {
        let (kept, weights) = (&self.kept, self.weights(net));
        let rows = |offset, width| Region { offset, rows: out.outputs, width };
        let operation = AdjointBackward {
            tasks: 1,
            rows: out.outputs,
            z_cotangent: rows(weights.weight, out.inputs),
            layer: kept.inner_gradient,
            direction: None,
            corrections: Corrections::NONE,
            gate: None,
            output: rows(out.weight, out.inputs),
            accumulate: true,
        };
        device.adjoint_backward(arena, &operation);
        let operation = LinearForward {
            tasks: 1,
            rows: 1,
            input: Region { offset: kept.inner_gradient.bias, rows: 1, width: out.inputs },
            layer: weights,
            corrections: Corrections::NONE,
            activation: Activation::Linear,
            output: kept.row,
        };
        device.linear_forward(arena, &operation);
        device.add_scaled(arena, kept.row, T::ONE, Region { offset: out.bias, ..kept.row });
    }
}
