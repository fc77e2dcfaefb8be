//! The supervised inner loop, over any form and any device.

use super::Strategy;
use super::network::{LoopRows, Network, Rates};
use super::tape::{NetworkSpec, Slot, Whole};
use crate::Scalar;
use crate::device::{ArenaPlan, Device, Region, SupervisedCurvature, SupervisedLoss};
use crate::meta::{Algorithm, InnerConfig, Shape};
use crate::model::Mlp;
use crate::objective::Loss;

/// What the loop is to do.
#[derive(Clone, Debug)]
pub struct SupervisedSpec {
    pub mlp: Mlp,
    pub loss: Loss,
    pub inner: InnerConfig,
    pub strategy: Strategy,
    /// Tasks of this lane.
    pub tasks: usize,
    /// Shape of the whole meta-batch.
    pub shape: Shape,
    /// Evaluate the query set after every step, and do not go back.
    pub trace: bool,
}

impl SupervisedSpec {
    /// The network's part.
    pub fn network(&self) -> NetworkSpec {
        let anil = self.inner.algorithm == Algorithm::Anil;
        let first_moving = if anil { self.mlp.layers() - 1 } else { 0 };
        let normalised = (0..first_moving).any(|layer| self.mlp.batch_norm(layer).is_some());
        NetworkSpec {
            first_moving,
            steady: anil && self.inner.minibatch.is_none() && !normalised,
            whole: Some(Whole {
                loss: self.loss,
                algorithm: self.inner.algorithm,
                momentum: self.inner.optimizer.momentum(),
                weight_decay: self.inner.weight_decay,
            }),
            ..NetworkSpec::new(&self.mlp, &self.inner, self.tasks, &self.shape, self.trace)
        }
    }
}

/// The loop's regions.
pub struct SupervisedLoop<T> {
    pub net: Network<T>,
    spec: SupervisedSpec,
    support_x: Region,
    support_y: Region,
    query_y: Region,
    /// With minibatches: each step's targets.
    targets: Region,
    /// The query loss of each task.
    pub task_loss: Region,
    /// When tracing: losses `[steps + 1, T]` and predictions `[(steps + 1) * T * Kq, outputs]`.
    pub trace_loss: Region,
    pub trace_prediction: Region,
}

impl<T: Scalar> SupervisedLoop<T> {
    pub fn new(plan: &mut ArenaPlan, spec: SupervisedSpec) -> Self {
        let (inner, Shape { shots, queries, .. }) = (&spec.inner, spec.shape);
        let rows = inner.minibatch.unwrap_or(shots);
        let gathers = inner.minibatch.is_some();
        let (inputs, outputs, tasks) = (spec.mlp.inputs(), spec.mlp.outputs(), spec.tasks);
        let net = Network::new(plan, spec.network(), spec.strategy, inner);
        // The resident form has rows of its own.
        let own = if net.resident().is_some() { 0 } else { tasks };
        let traced = if spec.trace { inner.steps + 1 } else { 0 };
        Self {
            net,
            support_x: plan.take(own * shots, if gathers { inputs } else { 0 }),
            support_y: plan.take(own * shots, outputs),
            query_y: plan.take(own * queries, outputs),
            targets: plan.take(if gathers { inner.steps * tasks * rows } else { 0 }, outputs),
            task_loss: plan.take(1, tasks),
            trace_loss: plan.take(traced, tasks),
            trace_prediction: plan.take(traced * tasks * queries, outputs),
            spec,
        }
    }

    /// One meta-step: losses in [`SupervisedLoop::task_loss`], the gradient in the network's region.
    pub fn run<D: Device<T>>(&mut self, device: &D, arena: &mut D::Arena, rates: &Rates<T>, rows: &LoopRows<'_, T>) {
        self.net.set_rates(device, arena, rates);
        if let Some(form) = self.net.resident() {
            let trace = self.spec.trace.then_some([self.trace_loss, self.trace_prediction]);
            form.run(&self.net, device, arena, rows, self.task_loss, trace);
            return;
        }
        LoopRows::load(device, arena, rows.support[1], self.support_y);
        if self.spec.inner.minibatch.is_some() {
            LoopRows::load(device, arena, rows.support[0], self.support_x);
        } else {
            let input_of = |step| self.net.tape.values(0, Slot::Step(step));
            LoopRows::load_steps(device, arena, rows.support[0], input_of, self.spec.inner.steps);
        }
        for query in self.net.spec.queries() {
            LoopRows::load(device, arena, rows.query[0], self.net.tape.values(0, query));
        }
        LoopRows::load(device, arena, rows.query[1], self.query_y);
        for step in 0..self.spec.inner.steps {
            self.trace(device, arena, step);
            let slot = Slot::Step(step);
            self.draw(device, arena, step, rows);
            self.net.forward(device, arena, slot);
            if self.net.makes_outputs(slot) {
                device.supervised_loss(arena, &self.loss_at(slot, true, None));
            }
            self.net.backward(device, arena, slot);
            self.net.update(device, arena, step);
        }
        self.trace(device, arena, self.spec.inner.steps);
        if self.spec.trace {
            return;
        }
        let steps = self.spec.inner.steps;
        if !self.spec.inner.algorithm.differentiates_query() {
            let query = Slot::Query { after: steps };
            self.net.forward(device, arena, query);
            device.supervised_loss(arena, &self.loss_at(query, false, Some(self.task_loss)));
            self.net.displacement(device, arena);
            return;
        }
        for after in (0..=steps).rev() {
            if self.net.spec.has_query(after) {
                self.join(device, arena, after);
            }
            let Some(step) = after.checked_sub(1) else { break };
            if self.spec.inner.algorithm.is_second_order() {
                self.adjoint(device, arena, step);
            } else if self.net.spec.reverses_updates() {
                self.net.reverse_update(device, arena, step);
            }
        }
        self.net.meta_gradient(device, arena);
    }

    /// The query loss after that many steps joins the way back.
    fn join<D: Device<T>>(&self, device: &D, arena: &mut D::Arena, after: usize) {
        let query = Slot::Query { after };
        let task_loss = (after == self.spec.inner.steps).then_some(self.task_loss);
        self.net.forward(device, arena, query);
        device.supervised_loss(arena, &self.loss_at(query, true, task_loss));
        self.net.backward(device, arena, query);
        self.net.begin_adjoint(device, arena, after);
    }

    /// A step's own share of the support rows, with minibatches.
    fn draw<D: Device<T>>(&self, device: &D, arena: &mut D::Arena, step: usize, rows: &LoopRows<'_, T>) {
        if self.spec.inner.minibatch.is_some() {
            let input = self.net.tape.values(0, Slot::Step(step));
            let indices = &rows.indices[step * input.rows..][..input.rows];
            device.gather(arena, self.support_x, indices, input);
            device.gather(arena, self.support_y, indices, self.target(Slot::Step(step)));
        }
    }

    fn target(&self, slot: Slot) -> Region {
        match (slot, self.spec.inner.minibatch) {
            (Slot::Query { .. }, _) => self.query_y,
            (_, None) => self.support_y,
            (Slot::Step(step), Some(rows)) => self.targets.rows(step * self.spec.tasks * rows, self.spec.tasks * rows),
        }
    }

    fn loss_at(&self, slot: Slot, differentiate: bool, task_loss: Option<Region>) -> SupervisedLoss {
        let layers = self.spec.mlp.layers();
        SupervisedLoss {
            tasks: self.spec.tasks,
            loss: self.spec.loss,
            activation: self.spec.mlp.activations()[layers - 1],
            prediction: self.net.tape.values(layers, slot),
            target: self.target(slot),
            delta: differentiate.then(|| self.net.tape.delta(layers - 1, slot)),
            task_loss,
        }
    }

    fn adjoint<D: Device<T>>(&self, device: &D, arena: &mut D::Arena, step: usize) {
        let (slot, layers) = (Slot::Step(step), self.spec.mlp.layers());
        self.net.adjoint_up(device, arena, step);
        // A folded layer has done with the curvature: it is the same number everywhere.
        if !self.net.is_folded() {
            let operation = SupervisedCurvature {
                at: self.loss_at(slot, false, None),
                e_cotangent: self.net.tape.e(layers, slot),
                z_cotangent: self.net.tape.z(layers - 1, slot),
                accumulate: self.net.z_begun(layers - 1),
            };
            device.supervised_curvature(arena, &operation);
        }
        self.net.adjoint_down(device, arena, step);
    }

    /// Evaluates the query set at the weights after `after` steps, when that is asked for.
    fn trace<D: Device<T>>(&self, device: &D, arena: &mut D::Arena, after: usize) {
        if !self.spec.trace {
            return;
        }
        let slot = Slot::Query { after };
        self.net.forward(device, arena, slot);
        device.supervised_loss(arena, &self.loss_at(slot, false, Some(self.trace_loss.rows(after, 1))));
        let prediction = self.net.tape.values(self.spec.mlp.layers(), slot);
        device.copy(arena, prediction, self.trace_prediction.rows(after * prediction.rows, prediction.rows));
    }
}
