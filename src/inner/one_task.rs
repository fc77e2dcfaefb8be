//! What the dual form's steps have made of one task's parameters.

use super::change::{LayerChange, LowRankChange};
use super::dual::Dual;
use super::dual_layer::{bias_index, share_index};
use super::folded::Folded;
use super::folded_layer::{PER_CURVATURE, coefficient};
use super::network::Network;
use super::tape::Slot;
use crate::Scalar;
use crate::device::{Device, GramView, LinearForward, OuterProduct, OuterTerm, Region, Term};
use crate::model::Activation;

impl<T: Scalar> Dual<T> {
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
            let scales = self.tables.read(device, arena, index);
            let share = share_index(spec, index, spec.steps).map_or(T::ONE, |place| scales[place]);
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
                let scale = scales[spec.steps * spec.steps + step];
                let bias = scales[bias_index(spec.steps, step)];
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
        let folded = self.folded.as_ref().map(|folded| folded.change(net, device, arena, task));
        LowRankChange::new(&spec.mlp, layers.chain(folded).collect()).expect("rows of the network's own passes")
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
            let scales = self.tables.read(device, arena, index);
            let last = &scales[spec.steps * spec.steps..];
            let mut terms = Vec::new();
            if spec.moves(index) {
                for (i, (p, q)) in layer.deltas.iter().zip(&layer.values).enumerate() {
                    let rows = |r: &Region| r.rows(task * spec.support_rows, spec.support_rows);
                    let scale = last[i / spec.forward_blocks];
                    let bias = scales[bias_index(spec.steps, i / spec.forward_blocks)];
                    terms.push(OuterTerm { p: rows(p), q: rows(q), bias, blocks: 1, scale, share: None });
                }
            }
            self.outer_product(net, device, arena, index, &terms);
            let share = share_index(spec, index, spec.steps).map_or(T::ONE, |place| scales[place]);
            let [from, to] = [net.parameters, net.gradient].map(|flat| spec.layer_parameters(flat, index));
            device.add_scaled(arena, from, share, to);
        }
        if let Some(folded) = &self.folded {
            folded.displacement_of(net, device, arena, task);
            let [from, to] = [net.parameters, net.gradient].map(|flat| spec.layer_parameters(flat, spec.layers() - 1));
            device.add_scaled(arena, from, T::ONE, to);
        }
        device.download(arena, net.gradient, out);
    }
}

impl<T: Scalar> Folded<T> {
    /// Those of the folded layer, whose rows are made anew from the shared weights and the first step's residuals.
    fn change<D: Device<T>>(&self, net: &Network<T>, device: &D, arena: &D::Arena, task: usize) -> LayerChange<T> {
        let (spec, kept) = (&net.spec, &self.kept);
        let (rows, layer) = (spec.support_rows, net.shared_layer(self.layer));
        let (m, n) = (layer.inputs, layer.outputs);
        let read = |region: Region| {
            let mut numbers = vec![T::ZERO; region.len()];
            device.download(arena, region, &mut numbers);
            numbers
        };
        let own = |region: Region| read(region.rows(task * rows, rows));
        let weights = read(Region { offset: layer.weight, rows: n, width: m });
        let first = own(net.tape.delta(self.layer, Slot::Step(0)));
        let dot = |a: &[T], b: &[T]| a.iter().zip(b).map(|(a, b)| a.to_f64() * b.to_f64()).sum::<f64>();
        let mut change = LayerChange { share: T::ONE, deltas: vec![], values: vec![], bias: vec![T::ZERO; n] };
        for step in 0..spec.steps {
            let (a, sigma) = (own(kept.a.of[step]), own(kept.sigma.of[step]));
            let scale = self.values[coefficient(spec, spec.steps, step)].to_f64();
            for (a, sigma) in a.chunks_exact(m).zip(sigma.chunks_exact(rows)) {
                for (output, bias) in change.bias.iter_mut().enumerate() {
                    let residuals = sigma.iter().zip(first.iter().skip(output).step_by(n));
                    let from_first: f64 = residuals.map(|(sigma, delta)| sigma.to_f64() * delta.to_f64()).sum();
                    let from_weights = dot(a, &weights[output * m..][..m]);
                    let residual = from_weights + from_first * self.values[PER_CURVATURE].to_f64();
                    let delta = T::from_f64(scale * residual);
                    change.deltas.push(delta);
                    *bias += delta;
                }
            }
            change.values.extend(own(self.inputs[step]));
        }
        change
    }

    /// What the steps have made of one task's weights, to the network's region of gradients.
    fn displacement_of<D: Device<T>>(&self, net: &Network<T>, device: &D, arena: &mut D::Arena, task: usize) {
        let (spec, kept) = (&net.spec, &self.kept);
        let (steps, rows) = (spec.steps, spec.support_rows);
        let own = |region: Region| region.rows(task * rows, rows);
        let mut terms = Vec::new();
        for step in 0..steps {
            let sigma = own(kept.sigma.of[step]);
            let gram = GramView { offset: sigma.offset, task_stride: 0, row_stride: rows, column_stride: 1 };
            let delta = own(net.tape.delta(self.layer, Slot::Step(0)));
            let term = vec![vec![Term { gram, bias: None, scale: PER_CURVATURE, rows: delta }]];
            let operation = LinearForward {
                tasks: 1,
                rows,
                input: own(kept.a.of[step]),
                layer: self.weights(net),
                corrections: self.corrections(&term),
                activation: Activation::Linear,
                output: kept.residuals.of[step],
            };
            device.linear_forward(arena, &operation);
            let scale = self.values[coefficient(spec, steps, step)];
            let (p, q) = (kept.residuals.of[step], own(self.inputs[step]));
            terms.push(OuterTerm { p, q, bias: T::ONE, blocks: 1, scale, share: None });
        }
        let layer = Network::<T>::layer_at(spec, net.gradient.offset, 0, self.layer);
        device.outer_product(arena, &OuterProduct { tasks: 1, terms: &terms, layer, accumulate: false });
    }
}
