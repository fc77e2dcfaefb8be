//! The dual form's tables: the factors of its corrections, which the inner rates make, and the rates' gradient from theirs.

use std::borrow::Cow;

use super::dual::Dual;
use super::dual_layer::{bias_index, pass, query_index, share_index, table_width};
use super::learned::Learned;
use super::network::{Network, Rates};
use super::tape::{NetworkSpec, Slot};
use crate::Scalar;
use crate::device::{
    ArenaPlan, Corrections, Device, GramInner, InnerRates, LinearBackward, LinearForward, RateTables,
    RateTablesGradient, Region,
};
use crate::model::Activation;

/// The factors of every layer's corrections, and their gradient.
pub(super) struct Tables<T> {
    /// See [`RateTables`].
    region: Region,
    /// That of `c`, laid as the tables; where phi transforms rows, a second row of each layer is that of the bias's column.
    gradient: Region,
    /// That of the shares, where they depend on learned rates.
    pub(super) share_gradient: Region,
    /// The weights of several query passes' losses, for tables that are made on the device, and as they go there.
    query_weights: Option<Region>,
    query_values: Vec<T>,
    /// What the host has put there last, and whether it is there.
    values: Vec<T>,
    there: bool,
    /// Whether they were made on the device last.
    made: bool,
}

impl<T: Scalar> Tables<T> {
    pub fn new(plan: &mut ArenaPlan, spec: &NetworkSpec) -> Self {
        let (layers, width) = (spec.layers(), table_width(spec));
        let parts = if spec.rates.transforms_rows() { 2 } else { 1 };
        Self {
            region: plan.take(layers, width),
            gradient: plan.take(layers * parts, InnerRates::table(spec.steps)),
            share_gradient: plan.take(if spec.decays && spec.rate_gradient { layers } else { 0 }, spec.steps + 1),
            query_weights: (!spec.query_weights.is_empty()).then(|| plan.take(1, spec.query_passes)),
            query_values: vec![T::ZERO; spec.query_passes],
            values: vec![T::ONE; layers * width],
            there: false,
            made: false,
        }
    }

    /// One layer's, on the device.
    pub fn region_of(&self, layer: usize) -> Region {
        self.region.rows(layer, 1)
    }

    /// The gradient of one layer's.
    pub fn gradient_of(&self, layer: usize) -> Region {
        let parts = self.gradient.rows / self.region.rows;
        self.gradient.rows(layer * parts, parts)
    }

    /// One layer's, as the host has put them there.
    fn of(&self, layer: usize) -> &[T] {
        &self.values[layer * self.region.width..][..self.region.width]
    }

    /// One layer's, whoever has made them.
    pub fn read<D: Device<T>>(&self, device: &D, arena: &D::Arena, layer: usize) -> Cow<'_, [T]> {
        if !self.made {
            return Cow::Borrowed(self.of(layer));
        }
        let mut values = vec![T::ZERO; self.region.width];
        device.download(arena, self.region_of(layer), &mut values);
        Cow::Owned(values)
    }

    fn set(&mut self, layer: usize, at: usize, value: T) {
        let own = &mut self.values[layer * self.region.width + at];
        self.there &= *own == value;
        *own = value;
    }

    /// To the device, unless they are there.
    fn upload<D: Device<T>>(&mut self, device: &D, arena: &mut D::Arena) {
        self.made = false;
        if !self.there {
            device.upload(arena, self.region, &self.values);
            self.there = true;
        }
    }

    /// Has the device make them.
    fn make<D: Device<T>>(&mut self, spec: &NetworkSpec, device: &D, arena: &mut D::Arena, of: &InnerRates) {
        (self.there, self.made) = (false, true);
        if let Some(region) = self.query_weights {
            let values = self.query_values.iter_mut().zip(spec.queries());
            values.for_each(|(value, slot)| *value = T::from_f64(spec.weight(slot)));
            device.upload(arena, region, &self.query_values);
        }
        device.rate_tables(arena, &RateTables { of: *of, tables: self.region });
        // In a layer with batch normalisation the bias has no part.
        for layer in (0..spec.layers()).filter(|layer| of.bias.is_some() && spec.mlp.batch_norm(*layer).is_some()) {
            device.fill(arena, self.region_of(layer).elements(bias_index(spec.steps, 0), spec.steps), T::ZERO);
        }
    }
}

impl<T: Scalar> Dual<T> {
    /// Fills the tables, and what depends on them.
    pub fn set_rates<D: Device<T>>(
        &mut self,
        spec: &NetworkSpec,
        device: &D,
        arena: &mut D::Arena,
        (rates, learned): (&Rates<T>, Option<&Learned>),
        parameters: Region,
    ) {
        match (rates, learned) {
            (Rates::PerLayerPerStep { rates, bias }, _) => {
                self.fill_tables(spec, rates, bias);
                self.tables.upload(device, arena);
                if let Some(folded) = &mut self.folded {
                    folded.begin(spec, device, arena, (self.rule, rates), parameters);
                }
            }
            (Rates::Learned, Some(learned)) => {
                self.tables.make(spec, device, arena, &self.rates_of(spec, learned));
                self.take_shares(spec);
            }
            _ => unreachable!("the plan has refused per-parameter rates, and rates on the device where they are not"),
        }
    }

    fn rates_of(&self, spec: &NetworkSpec, learned: &Learned) -> InnerRates {
        learned.inner_rates(spec, self.rule, self.tables.query_weights)
    }

    /// Has the meta-gradient's terms take the shares from tables that the device has made.
    fn take_shares(&mut self, spec: &NetworkSpec) {
        for (index, layer) in self.layers.iter_mut().enumerate() {
            let table = self.tables.region_of(index);
            for (term, slot) in layer.gradient_terms.iter_mut().zip(&layer.gradient_passes) {
                let share = share_index(spec, index, slot.history());
                term.scale = T::from_f64(spec.weight(*slot) * spec.task_weight());
                term.share = share.map(|place| table.elements(place, 1));
            }
        }
    }

    fn fill_tables(&mut self, spec: &NetworkSpec, rates: &[T], bias: &[T]) {
        let tables = &mut self.tables;
        for (index, layer) in self.layers.iter_mut().enumerate() {
            let bias = |step: usize| bias[step * spec.layers() + index] * spec.bias_column(index);
            let rate = |rate: &T| if spec.moves(index) { rate.to_f64() } else { 0.0 };
            layer.coefficients.set(self.rule, rates.iter().skip(index).step_by(spec.layers()).map(rate));
            for (at, c) in layer.coefficients.c.iter().enumerate() {
                tables.set(index, at, T::from_f64(-c));
            }
            for (term, slot) in layer.gradient_terms.iter_mut().zip(&layer.gradient_passes) {
                let share = layer.coefficients.share[slot.history()];
                term.scale = T::from_f64(share * spec.weight(*slot) * spec.task_weight());
                term.share = None;
            }
            for (i, share) in layer.coefficients.share.iter().enumerate() {
                tables.set(index, RateTables::shares(spec.steps) + i, T::from_f64(*share));
            }
            for slot in spec.queries() {
                for step in 0..slot.history() {
                    let c = layer.coefficients.c[slot.history() * spec.steps + step];
                    tables.set(index, query_index(spec, slot, step), T::from_f64(-c * spec.weight(slot)));
                }
            }
            let last = &tables.of(index)[spec.steps * spec.steps..];
            for (step, (term, scale)) in layer.displacement_terms.iter_mut().zip(last).enumerate() {
                term.scale = T::from_f64(-scale.to_f64() * spec.task_weight());
                term.bias = bias(step);
            }
            for step in 0..spec.steps {
                tables.set(index, bias_index(spec.steps, step), bias(step));
            }
        }
    }

    /// The gradient of the tables, then of the rates. Where phi transforms rows, behind it that of the bias's column b.
    ///
    /// `dL/dc[i][j] = -<Lambda_i, delta_j^T [a_j, b_j]>` and `dL/db_j = -sum_{i>j} c[i][j] <z_i, delta_j>` are sums over
    /// inner products that are all there.
    pub fn rate_gradient<D: Device<T>>(&self, net: &Network<T>, device: &D, arena: &mut D::Arena, out: &mut [T]) {
        let spec = &net.spec;
        let (steps, layers) = (spec.steps, spec.layers());
        let table = InnerRates::table(steps);
        let (mut host, mut wide) = self.host.take();
        self.table_gradients(net, device, arena);
        for (index, layer) in self.layers.iter().enumerate().skip(spec.first_moving) {
            let (host, of_share) = host.split_at_mut(self.tables.gradient_of(index).len());
            device.download(arena, self.tables.gradient_of(index), host);
            let of_shares = self.tables.share_gradient;
            let of_share = &mut of_share[..of_shares.width.min(of_shares.len())];
            device.download(arena, of_shares.elements(index * of_share.len(), of_share.len()), of_share);
            let (host, of_bias) = host.split_at_mut(table);
            if !of_bias.is_empty() {
                for j in 0..steps {
                    let bias = self.tables.of(index)[bias_index(steps, j)];
                    for at in (j + 1..=steps).map(|i| i * steps + j) {
                        host[at] += bias * of_bias[at];
                        // The scales hold -c, and the sums are negated too.
                        out[(steps + j) * layers + index] -= self.tables.of(index)[at] * of_bias[at];
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

    /// The gradient of rates that are on the device, to where theirs lies.
    pub fn learned_gradient<D: Device<T>>(
        &self,
        net: &Network<T>,
        device: &D,
        arena: &mut D::Arena,
        learned: &Learned,
    ) {
        let spec = &net.spec;
        self.table_gradients(net, device, arena);
        let (gradient, bias_gradient) = Learned::parts(spec, learned.gradient);
        let operation = RateTablesGradient {
            of: self.rates_of(spec, learned),
            tables: self.tables.region,
            of_tables: self.tables.gradient,
            of_shares: spec.decays.then_some(self.tables.share_gradient),
            first_moving: spec.first_moving,
            gradient,
            bias_gradient,
        };
        device.rate_tables_gradient(arena, &operation);
    }

    /// The passes that contribute to the meta-gradient.
    fn contributing(spec: &NetworkSpec) -> impl Iterator<Item = Slot> + use<T> {
        let steps = if spec.second_order { spec.steps } else { 0 };
        (0..steps).map(Slot::Step).chain(spec.queries())
    }

    /// The gradient of every layer's `c` and shares; and where phi transforms rows, what that of the bias's column is made of.
    fn table_gradients<D: Device<T>>(&self, net: &Network<T>, device: &D, arena: &mut D::Arena) {
        let spec = &net.spec;
        device.fill(arena, self.tables.gradient, T::ZERO);
        let mut terms = self.inner.take();
        terms.clear();
        // What adds to the same numbers comes later, so that devices can take many at once.
        for second in [false, true] {
            for layer in spec.first_moving..spec.layers() {
                self.table_terms(spec, layer, second, &mut terms);
            }
        }
        device.gram_inners(arena, &terms);
        self.inner.set(terms);
        if spec.decays {
            device.fill(arena, self.tables.share_gradient, T::ZERO);
            (spec.first_moving..spec.layers()).for_each(|layer| self.share_gradient(net, device, arena, layer));
        }
    }

    /// Those of `z^T a` of one layer, or those of `delta^T e`.
    fn table_terms(&self, spec: &NetworkSpec, index: usize, second: bool, terms: &mut Vec<GramInner>) {
        let (layer, steps) = (&self.layers[index], spec.steps);
        // With a bias's column that is not 1 its part is told apart.
        let apart = spec.rates.transforms_rows();
        let plus_one = !apart && spec.mlp.batch_norm(index).is_none();
        let group = spec.forward_blocks * spec.support_rows;
        let skipped = spec.first_e_block(index);
        let mut add = |left, right: Option<Region>, plus_one, slot: Slot| {
            let row = self.tables.gradient_of(index).rows(usize::from(right.is_none()), 1);
            let (i, scale) = (slot.history(), spec.weight(slot) * spec.task_weight());
            terms.push(GramInner { left, right, group, plus_one, scale, output: row.elements(i * steps, i) });
        };
        for slot in Self::contributing(spec).filter(|slot| slot.history() > 0) {
            let i = pass(spec, slot);
            if second {
                if i < steps && skipped < spec.backward_blocks() {
                    let rows = layer.ea[i].rows;
                    add(layer.dd[i].rows(layer.dd[i].rows - rows, rows), Some(layer.ea[i]), false, slot);
                }
                continue;
            }
            // In a query pass delta takes the place of z, and only the descended blocks count.
            let z = if i >= steps { layer.dd[i].rows(0, layer.aa[i].rows) } else { layer.zd[i] };
            add(z, Some(layer.aa[i]), plus_one, slot);
            if apart {
                add(z, None, true, slot);
            }
        }
    }

    /// The gradient of one layer's shares: `dL/dshare_i = <Lambda_i, W0>`, by way of products with the shared weights.
    fn share_gradient<D: Device<T>>(&self, net: &Network<T>, device: &D, arena: &mut D::Arena, index: usize) {
        let spec = &net.spec;
        let gradient = self.tables.share_gradient.rows(index, 1);
        let room = |rows: usize, width: usize| Region { rows, width, ..self.shared_products };
        let add = |arena: &mut D::Arena, left: Region, right: Region, slot: Slot| {
            let scale = -spec.weight(slot) * spec.task_weight();
            let output = gradient.elements(slot.history(), 1);
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
}
