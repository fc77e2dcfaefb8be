//! The joint inner loop of the video GAN: both players move at once, from the same point.

use super::Strategy;
use super::network::{LoopRows, Network, Rates};
use super::tape::{NetworkSpec, Slot};
use crate::Scalar;
use crate::device::{AdversarialCurvature, AdversarialLoss, ArenaPlan, Device, PixelCurvature, PixelLoss, Region};
use crate::meta::{Shape, VideoConfig};
use crate::model::Mlp;

/// What the loop is to do.
#[derive(Clone, Debug)]
pub struct GanSpec {
    pub config: VideoConfig,
    pub strategy: Strategy,
    /// Tasks of this lane.
    pub tasks: usize,
    /// Shape of the whole meta-batch.
    pub shape: Shape,
    /// Evaluate the query set after every step, and do not go back.
    pub trace: bool,
}

impl GanSpec {
    fn network(&self, mlp: &Mlp) -> NetworkSpec {
        NetworkSpec::new(mlp, &self.config.inner, self.tasks, &self.shape, self.trace)
    }

    /// The generator's part.
    fn generator(&self) -> NetworkSpec {
        self.network(&self.config.generator)
    }

    /// The discriminator's part, if it takes part.
    fn discriminator(&self) -> Option<NetworkSpec> {
        let blocks = vec![REAL, GENERATED, GENERATED];
        let spec =
            || NetworkSpec { forward_blocks: 2, gate_blocks: blocks, ..self.network(&self.config.discriminator) };
        self.config.adversarial.then(spec)
    }

    /// Both.
    pub fn networks(&self) -> Vec<NetworkSpec> {
        std::iter::once(self.generator()).chain(self.discriminator()).collect()
    }
}

/// Blocks of the discriminator.
const REAL: usize = 0;
const GENERATED: usize = 1;
/// Its third backward block: the generator's loss, whose gradient passes through to the generator.
const THROUGH: usize = 2;

/// The loop's regions.
pub struct GanLoop<T> {
    pub generator: Network<T>,
    pub discriminator: Option<Network<T>>,
    /// Whether the discriminator, if there is one, takes part in the next run.
    pub plays: bool,
    pub spec: GanSpec,
    support_x: Region,
    support_z: Region,
    /// Clips without a discriminator to hold them: the steps', then the query's.
    clips: Region,
    query_clips: Region,
    /// dL_G/d(clip) that comes from the discriminator, and the cotangent of the clip.
    upstream: Region,
    clip_cotangent: Region,
    /// The query losses of each task.
    pub generator_loss: Region,
    pub discriminator_loss: Region,
    /// When tracing: `[steps + 1, T]` twice, and generated clips `[(steps + 1) * T * Kq, clip]`.
    pub trace_generator_loss: Region,
    pub trace_discriminator_loss: Region,
    pub trace_clips: Region,
}

impl<T: Scalar> GanLoop<T> {
    pub fn new(plan: &mut ArenaPlan, spec: GanSpec) -> Self {
        let (config, inner, Shape { shots, queries, .. }) = (&spec.config, &spec.config.inner, spec.shape);
        let rows = inner.minibatch.unwrap_or(shots);
        let generator = Network::new(plan, spec.generator(), spec.strategy, inner);
        let discriminator = spec.discriminator().map(|n| Network::new(plan, n, spec.strategy, inner));
        let (clip, tasks) = (config.generator.outputs(), spec.tasks);
        let own = if config.adversarial { 0 } else { clip };
        let through = tasks * rows.max(queries);
        let gathered = if inner.minibatch.is_some() { tasks * shots } else { 0 };
        let traced = if spec.trace { inner.steps + 1 } else { 0 };
        Self {
            support_x: plan.take(gathered, clip),
            support_z: plan.take(gathered, config.generator.inputs()),
            clips: plan.take(inner.steps * tasks * rows, own),
            query_clips: plan.take(tasks * queries, own),
            upstream: plan.take(through, clip),
            clip_cotangent: plan.take(through, clip),
            generator_loss: plan.take(1, tasks),
            discriminator_loss: plan.take(1, tasks),
            trace_generator_loss: plan.take(traced, tasks),
            trace_discriminator_loss: plan.take(traced, tasks),
            trace_clips: plan.take(traced * tasks * queries, clip),
            generator,
            discriminator,
            plays: true,
            spec,
        }
    }

    /// Both, or the generator alone.
    pub fn networks_mut(&mut self) -> impl Iterator<Item = &mut Network<T>> {
        std::iter::once(&mut self.generator).chain(&mut self.discriminator)
    }

    /// The discriminator, where it takes part.
    fn player(&self) -> Option<&Network<T>> {
        self.discriminator.as_ref().filter(|_| self.plays)
    }

    /// The networks that take part.
    fn players(&self) -> impl Iterator<Item = &Network<T>> {
        std::iter::once(&self.generator).chain(self.player())
    }

    /// One meta-step: losses in [`GanLoop::generator_loss`] and its twin, the gradients in the networks' regions.
    pub fn run<D: Device<T>>(&mut self, device: &D, arena: &mut D::Arena, rates: &[Rates<T>], rows: &LoopRows<'_, T>) {
        self.generator.set_rates(device, arena, &rates[0]);
        if let Some(discriminator) = &mut self.discriminator {
            discriminator.set_rates(device, arena, &rates[1]);
        }
        if self.player().is_none() {
            // Nothing comes from the discriminator.
            device.fill(arena, self.upstream, T::ZERO);
            device.fill(arena, self.clip_cotangent, T::ZERO);
        }
        let steps = self.spec.config.inner.steps;
        if self.spec.config.inner.minibatch.is_some() {
            LoopRows::load(device, arena, rows.support[1], self.support_x);
        } else {
            let latents_of = |step| self.generator.tape.values(0, Slot::Step(step));
            if rows.steps_apart == 0 && steps > 0 {
                // There are other lanes' behind.
                let latents = &rows.support[0][..latents_of(0).len().min(rows.support[0].len())];
                LoopRows::load_steps(device, arena, latents, latents_of, steps);
            }
            LoopRows::load_steps(device, arena, rows.support[1], |step| self.clip(Slot::Step(step)), steps);
        }
        for query in self.generator.spec.queries() {
            LoopRows::load(device, arena, rows.query[0], self.generator.tape.values(0, query));
            LoopRows::load(device, arena, rows.query[1], self.clip(query));
        }
        for step in 0..steps {
            self.trace(device, arena, step);
            let slot = Slot::Step(step);
            self.load(device, arena, step, rows);
            self.forward(device, arena, slot, None);
            self.backward(device, arena, slot, None);
            for net in self.players() {
                net.update(device, arena, step);
            }
        }
        self.trace(device, arena, steps);
        if self.spec.trace {
            return;
        }
        if self.spec.config.inner.algorithm.differentiates_query() {
            self.pull_back(device, arena);
        } else {
            let query = Slot::Query { after: steps };
            self.forward(device, arena, query, Some((self.generator_loss, self.discriminator_loss)));
            device.pixel_loss(arena, &self.pixel(query, self.upstream, Some(self.generator_loss)));
            for net in self.players() {
                net.displacement(device, arena);
            }
        }
    }

    /// A step's own rows: with minibatches its share of them, with fresh noise its latents.
    fn load<D: Device<T>>(&self, device: &D, arena: &mut D::Arena, step: usize, rows: &LoopRows<'_, T>) {
        let slot = Slot::Step(step);
        let (z, clip) = (self.generator.tape.values(0, slot), self.clip(slot));
        let latents = |len: usize| {
            let from = &rows.support[0][step * rows.steps_apart..];
            &from[..len.min(from.len())]
        };
        if self.spec.config.inner.minibatch.is_some() {
            let indices = &rows.indices[step * z.rows..][..z.rows];
            if step == 0 || rows.steps_apart > 0 {
                LoopRows::load(device, arena, latents(self.support_z.len()), self.support_z);
            }
            device.gather(arena, self.support_z, indices, z);
            device.gather(arena, self.support_x, indices, clip);
        } else if rows.steps_apart > 0 {
            LoopRows::load(device, arena, latents(z.len()), z);
        }
    }

    /// Where a pass's real clips lie.
    fn clip(&self, slot: Slot) -> Region {
        match (&self.discriminator, slot) {
            (Some(net), _) => net.tape.values_block(0, slot, REAL),
            (None, Slot::Query { .. }) => self.query_clips,
            (None, Slot::Step(step)) => {
                let rows = self.clips.rows / self.spec.config.inner.steps;
                self.clips.rows(step * rows, rows)
            }
        }
    }

    /// The generated clips of a pass, in the generator's own tape.
    fn generated(&self, slot: Slot) -> Region {
        self.generator.tape.values(self.spec.config.generator.layers(), slot)
    }

    /// Both players' forward passes, the adversarial losses and the discriminator's top deltas.
    fn forward<D: Device<T>>(&self, device: &D, arena: &mut D::Arena, slot: Slot, losses: Option<(Region, Region)>) {
        self.generator.forward(device, arena, slot);
        if let Some(net) = self.player() {
            device.copy(arena, self.generated(slot), net.tape.values_block(0, slot, GENERATED));
            net.forward(device, arena, slot);
            device.adversarial_loss(arena, &self.adversarial(net, slot, losses));
        } else if let Some((generator, discriminator)) = losses {
            device.fill(arena, generator, T::ZERO);
            device.fill(arena, discriminator, T::ZERO);
        }
    }

    fn adversarial(&self, net: &Network<T>, slot: Slot, losses: Option<(Region, Region)>) -> AdversarialLoss<T> {
        let layers = net.spec.layers();
        AdversarialLoss {
            tasks: self.spec.tasks,
            weight: T::from_f64(self.spec.config.weights.adversarial),
            logits: net.tape.values(layers, slot),
            activation: net.spec.mlp.activations()[layers - 1],
            delta: net.tape.delta(layers - 1, slot),
            discriminator_loss: losses.map(|l| l.1),
            generator_loss: losses.map(|l| l.0),
        }
    }

    fn pixel(&self, slot: Slot, upstream: Region, task_loss: Option<Region>) -> PixelLoss<T> {
        let layers = self.spec.config.generator.layers();
        let prediction = self.generated(slot);
        PixelLoss {
            tasks: self.spec.tasks,
            frame: self.spec.config.frame_shape(),
            reconstruction: T::from_f64(self.spec.config.weights.reconstruction),
            motion: T::from_f64(self.spec.config.weights.motion),
            texture: T::from_f64(self.spec.config.weights.texture),
            prediction,
            target: self.clip(slot),
            activation: self.spec.config.generator.activations()[layers - 1],
            upstream: upstream.rows(0, prediction.rows),
            delta: self.generator.tape.delta(layers - 1, slot),
            task_loss,
        }
    }

    /// Both players' gradients, from the deltas at the discriminator's top; adds to the generator's loss.
    fn backward<D: Device<T>>(&self, device: &D, arena: &mut D::Arena, slot: Slot, generator_loss: Option<Region>) {
        if let Some(net) = self.player() {
            net.backward(device, arena, slot);
            let upstream = self.upstream.rows(0, self.generated(slot).rows);
            net.backward_to_input(device, arena, slot, THROUGH, upstream);
        }
        device.pixel_loss(arena, &self.pixel(slot, self.upstream, generator_loss));
        self.generator.backward(device, arena, slot);
    }

    /// The query losses after that many steps join the way back.
    fn join<D: Device<T>>(&self, device: &D, arena: &mut D::Arena, after: usize) {
        let query = Slot::Query { after };
        let losses = (self.generator_loss, self.discriminator_loss);
        let losses = (after == self.spec.config.inner.steps).then_some(losses);
        self.forward(device, arena, query, losses);
        self.backward(device, arena, query, losses.map(|l| l.0));
        for net in self.players() {
            net.begin_adjoint(device, arena, after);
        }
    }

    /// From the query's gradients back through the joint steps, to the meta-gradient.
    fn pull_back<D: Device<T>>(&self, device: &D, arena: &mut D::Arena) {
        for after in (0..=self.spec.config.inner.steps).rev() {
            if self.generator.spec.has_query(after) {
                self.join(device, arena, after);
            }
            let Some(step) = after.checked_sub(1) else { break };
            if self.spec.config.inner.algorithm.is_second_order() {
                self.adjoint(device, arena, step);
            } else if self.generator.spec.reverses_updates() {
                for net in self.players() {
                    net.reverse_update(device, arena, step);
                }
            }
        }
        for net in self.players() {
            net.meta_gradient(device, arena);
        }
    }

    /// The transposed Jacobian of one joint step.
    fn adjoint<D: Device<T>>(&self, device: &D, arena: &mut D::Arena, step: usize) {
        let (slot, layers) = (Slot::Step(step), self.spec.config.generator.layers());
        self.generator.adjoint_up(device, arena, step);
        let e_cotangent = self.generator.tape.e(layers, slot);
        let clip_cotangent = self.clip_cotangent.rows(0, e_cotangent.rows);
        if let Some(net) = self.player() {
            let top = net.spec.layers();
            // What the generator's gradient asks of the clip's gradient enters the discriminator at its input.
            device.copy(arena, e_cotangent, net.tape.e(0, slot));
            net.adjoint_up(device, arena, step);
            let operation = AdversarialCurvature {
                at: self.adversarial(net, slot, None),
                e_cotangent: net.tape.e(top, slot),
                z_cotangent: net.tape.z(top - 1, slot),
                accumulate: net.z_begun(top - 1),
            };
            device.adversarial_curvature(arena, &operation);
            net.adjoint_down(device, arena, step);
            net.adjoint_to_input(device, arena, step, GENERATED, clip_cotangent);
        }
        let operation = PixelCurvature {
            at: self.pixel(slot, clip_cotangent, None),
            e_cotangent,
            z_cotangent: self.generator.tape.z(layers - 1, slot),
            accumulate: self.generator.z_begun(layers - 1),
        };
        device.pixel_curvature(arena, &operation);
        self.generator.adjoint_down(device, arena, step);
    }

    /// Evaluates the query set at the weights after `after` steps, when that is asked for.
    fn trace<D: Device<T>>(&self, device: &D, arena: &mut D::Arena, after: usize) {
        if !self.spec.trace {
            return;
        }
        let slot = Slot::Query { after };
        let losses = (self.trace_generator_loss.rows(after, 1), self.trace_discriminator_loss.rows(after, 1));
        self.forward(device, arena, slot, Some(losses));
        device.pixel_loss(arena, &self.pixel(slot, self.upstream, Some(losses.0)));
        let generated = self.generated(slot);
        device.copy(arena, generated, self.trace_clips.rows(after * generated.rows, generated.rows));
    }
}
