//! What ties an objective's configuration to its inner loop.

use std::ops::Range;

use super::batch::part;
use super::{Shape, SupervisedBatch, SupervisedConfig, SupervisedRows, VideoConfig, VideoRows};
use crate::device::{ArenaPlan, Device, Region};
use crate::inner::{GanLoop, GanSpec, LoopRows, Network, NetworkSpec, Rates, Strategy, SupervisedLoop, SupervisedSpec};
use crate::model::Mlp;
use crate::tasks::VideoBatch;
use crate::{Error, InnerConfig, Result, Scalar};

/// An objective a [`crate::MetaLearner`] can be made for: [`SupervisedConfig`] or [`VideoConfig`].
pub trait Objective: Clone + Send + Sync + sealed::Build {}

impl Objective for SupervisedConfig {}
impl Objective for VideoConfig {}

/// One lane's share of the meta-batch.
#[derive(Clone, Debug)]
pub struct LaneShape {
    pub tasks: Range<usize>,
    pub shape: Shape,
    pub strategy: Strategy,
    pub trace: bool,
}

/// The regions of one lane's losses.
pub struct LossRegions {
    pub primary: Region,
    pub secondary: Option<Region>,
    pub trace_primary: Region,
    pub trace_secondary: Option<Region>,
    pub trace_output: Region,
}

impl LossRegions {
    /// Those at the adapted parameters; without a discriminator the second is empty.
    pub fn of_tasks(&self) -> [Region; 2] {
        [self.primary, self.secondary.unwrap_or(self.primary.rows(0, 0))]
    }
}

pub(crate) mod sealed {
    use super::*;

    /// What a learner asks of an objective.
    pub trait Build {
        /// A meta-batch, borrowed.
        type Rows<'a, T: Scalar>: Copy + Sync;
        /// A meta-batch, owned.
        type Batch: Default;
        /// The inner loop.
        type Loop<T: Scalar>: Send;

        fn rows(batch: &Self::Batch) -> Self::Rows<'_, f32>;
        /// Empties a batch that is filled by adding to it.
        fn clear(_batch: &mut Self::Batch) {}
        fn inner(&self) -> &InnerConfig;
        fn inner_mut(&mut self) -> &mut InnerConfig;
        fn check(&self, shape: &Shape) -> Result<()>;
        /// The networks and the roles they play.
        fn networks(&self) -> Vec<(&'static str, &Mlp)>;
        /// What the networks do, for a lane.
        fn specs(&self, lane: &LaneShape) -> Vec<NetworkSpec>;
        fn build<T: Scalar>(&self, plan: &mut ArenaPlan, lane: &LaneShape) -> Self::Loop<T>;
        fn check_rows<T: Scalar>(&self, shape: &Shape, rows: Self::Rows<'_, T>) -> Result<()>;
        /// A meta-step, with the last one's rows where there are none.
        fn run<T: Scalar, D: Device<T>>(
            inner: &mut Self::Loop<T>,
            device: &D,
            arena: &mut D::Arena,
            rates: &[Rates<T>],
            rows: Option<Self::Rows<'_, T>>,
            lane: &LaneShape,
            indices: &[u32],
        );
        fn network<T: Scalar>(inner: &Self::Loop<T>, index: usize) -> &Network<T>;
        /// Whether the discriminator, if there is one, takes part in runs.
        fn set_adversarial<T: Scalar>(_inner: &mut Self::Loop<T>, _plays: bool) {}
        /// Whether that network takes part in runs.
        fn plays<T: Scalar>(_inner: &Self::Loop<T>, _index: usize) -> bool {
            true
        }
        /// All networks, to set them up.
        fn networks_mut<T: Scalar>(inner: &mut Self::Loop<T>) -> impl Iterator<Item = &mut Network<T>>;
        fn losses<T: Scalar>(inner: &Self::Loop<T>) -> LossRegions;
    }
}

/// Each named array must hold so many numbers.
fn check_lengths(fields: &[(&str, usize, usize)]) -> Result<()> {
    match fields.iter().find(|(_, found, expected)| found != expected) {
        Some((field, found, expected)) => {
            Err(Error::invalid(*field, format!("{found} numbers"), format!("{expected}, to fit the shape")))
        }
        None => Ok(()),
    }
}

impl SupervisedConfig {
    fn spec(&self, lane: &LaneShape) -> SupervisedSpec {
        SupervisedSpec {
            mlp: self.mlp.clone(),
            loss: self.loss,
            inner: self.inner.clone(),
            strategy: lane.strategy,
            tasks: lane.tasks.len(),
            shape: lane.shape,
            trace: lane.trace,
        }
    }
}

impl sealed::Build for SupervisedConfig {
    type Rows<'a, T: Scalar> = SupervisedRows<'a, T>;
    type Batch = SupervisedBatch;
    type Loop<T: Scalar> = SupervisedLoop<T>;

    fn rows(batch: &SupervisedBatch) -> SupervisedRows<'_, f32> {
        batch.rows()
    }
    fn clear(batch: &mut SupervisedBatch) {
        batch.clear();
    }

    fn inner(&self) -> &InnerConfig {
        &self.inner
    }
    fn inner_mut(&mut self) -> &mut InnerConfig {
        &mut self.inner
    }
    fn check(&self, shape: &Shape) -> Result<()> {
        SupervisedConfig::check(self, shape)
    }
    fn networks(&self) -> Vec<(&'static str, &Mlp)> {
        vec![("network", &self.mlp)]
    }
    fn specs(&self, lane: &LaneShape) -> Vec<NetworkSpec> {
        vec![self.spec(lane).network()]
    }
    fn build<T: Scalar>(&self, plan: &mut ArenaPlan, lane: &LaneShape) -> Self::Loop<T> {
        SupervisedLoop::new(plan, self.spec(lane))
    }
    fn check_rows<T: Scalar>(&self, shape: &Shape, rows: Self::Rows<'_, T>) -> Result<()> {
        let (support, query) = (shape.tasks * shape.shots, shape.tasks * shape.queries);
        check_lengths(&[
            ("support.x", rows.support_x.len(), support * self.mlp.inputs()),
            ("support.y", rows.support_y.len(), support * self.mlp.outputs()),
            ("query.x", rows.query_x.len(), query * self.mlp.inputs()),
            ("query.y", rows.query_y.len(), query * self.mlp.outputs()),
        ])
    }
    fn run<T: Scalar, D: Device<T>>(
        inner: &mut Self::Loop<T>,
        device: &D,
        arena: &mut D::Arena,
        rates: &[Rates<T>],
        rows: Option<Self::Rows<'_, T>>,
        lane: &LaneShape,
        indices: &[u32],
    ) {
        let of = |values| part(values, lane.shape.tasks, &lane.tasks);
        let rows = rows.map_or(LoopRows::of_last_run(indices), |rows| LoopRows {
            support: [of(rows.support_x), of(rows.support_y)],
            query: [of(rows.query_x), of(rows.query_y)],
            indices,
            steps_apart: 0,
        });
        inner.run(device, arena, &rates[0], &rows);
    }
    fn network<T: Scalar>(inner: &Self::Loop<T>, _: usize) -> &Network<T> {
        &inner.net
    }
    fn networks_mut<T: Scalar>(inner: &mut Self::Loop<T>) -> impl Iterator<Item = &mut Network<T>> {
        std::iter::once(&mut inner.net)
    }
    fn losses<T: Scalar>(inner: &Self::Loop<T>) -> LossRegions {
        LossRegions {
            primary: inner.task_loss,
            secondary: None,
            trace_primary: inner.trace_loss,
            trace_secondary: None,
            trace_output: inner.trace_prediction,
        }
    }
}

impl VideoConfig {
    /// Numbers in the support latents of the whole meta-batch for one inner step.
    fn latents_of_a_step(&self, shape: &Shape) -> usize {
        shape.tasks * shape.shots * self.generator.inputs()
    }

    fn spec(&self, lane: &LaneShape) -> GanSpec {
        GanSpec {
            config: self.clone(),
            strategy: lane.strategy,
            tasks: lane.tasks.len(),
            shape: lane.shape,
            trace: lane.trace,
        }
    }
}

impl sealed::Build for VideoConfig {
    type Rows<'a, T: Scalar> = VideoRows<'a, T>;
    type Batch = VideoBatch;
    type Loop<T: Scalar> = GanLoop<T>;

    fn rows(batch: &VideoBatch) -> VideoRows<'_, f32> {
        batch.rows()
    }

    fn inner(&self) -> &InnerConfig {
        &self.inner
    }
    fn inner_mut(&mut self) -> &mut InnerConfig {
        &mut self.inner
    }
    fn check(&self, shape: &Shape) -> Result<()> {
        VideoConfig::check(self)?;
        self.inner.check(shape.shots)
    }
    fn networks(&self) -> Vec<(&'static str, &Mlp)> {
        let mut networks = vec![("generator", &self.generator)];
        if self.adversarial {
            networks.push(("discriminator", &self.discriminator));
        }
        networks
    }
    fn specs(&self, lane: &LaneShape) -> Vec<NetworkSpec> {
        self.spec(lane).networks()
    }
    fn build<T: Scalar>(&self, plan: &mut ArenaPlan, lane: &LaneShape) -> Self::Loop<T> {
        GanLoop::new(plan, self.spec(lane))
    }
    fn check_rows<T: Scalar>(&self, shape: &Shape, rows: Self::Rows<'_, T>) -> Result<()> {
        let (support, query) = (shape.tasks * shape.shots, shape.tasks * shape.queries);
        let (latent, clip) = (self.generator.inputs(), self.generator.outputs());
        let sets = if self.inner.fresh_noise { self.inner.steps } else { 1 };
        check_lengths(&[
            ("support.x", rows.support_x.len(), support * clip),
            ("support.z", rows.support_z.len(), self.latents_of_a_step(shape) * sets),
            ("query.x", rows.query_x.len(), query * clip),
            ("query.z", rows.query_z.len(), query * latent),
        ])
    }
    fn run<T: Scalar, D: Device<T>>(
        inner: &mut Self::Loop<T>,
        device: &D,
        arena: &mut D::Arena,
        rates: &[Rates<T>],
        rows: Option<Self::Rows<'_, T>>,
        lane: &LaneShape,
        indices: &[u32],
    ) {
        let of = |values| part(values, lane.shape.tasks, &lane.tasks);
        // Up to the end where there are more than one step's latents: the lane's rows of each lie that far apart.
        let config = &inner.spec.config;
        let (latents, fresh) = (config.latents_of_a_step(&lane.shape), config.inner.fresh_noise);
        let first = latents / lane.shape.tasks * lane.tasks.start;
        let rows = rows.map_or(LoopRows::of_last_run(indices), |rows| LoopRows {
            support: [&rows.support_z[first..], of(rows.support_x)],
            query: [of(rows.query_z), of(rows.query_x)],
            indices,
            steps_apart: if fresh { latents } else { 0 },
        });
        inner.run(device, arena, rates, &rows);
    }
    fn network<T: Scalar>(inner: &Self::Loop<T>, index: usize) -> &Network<T> {
        match &inner.discriminator {
            Some(discriminator) if index == 1 => discriminator,
            _ => &inner.generator,
        }
    }
    fn set_adversarial<T: Scalar>(inner: &mut Self::Loop<T>, plays: bool) {
        inner.plays = plays;
    }
    fn networks_mut<T: Scalar>(inner: &mut Self::Loop<T>) -> impl Iterator<Item = &mut Network<T>> {
        inner.networks_mut()
    }
    fn plays<T: Scalar>(inner: &Self::Loop<T>, index: usize) -> bool {
        index == 0 || inner.plays
    }
    fn losses<T: Scalar>(inner: &Self::Loop<T>) -> LossRegions {
        LossRegions {
            primary: inner.generator_loss,
            secondary: Some(inner.discriminator_loss),
            trace_primary: inner.trace_generator_loss,
            trace_secondary: Some(inner.trace_discriminator_loss),
            trace_output: inner.trace_clips,
        }
    }
}
