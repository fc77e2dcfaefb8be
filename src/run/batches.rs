use rand_chacha::ChaCha8Rng;

use super::config::{Pools, SineJob, VideoJob};
use crate::meta::sealed::Build;
use crate::tasks::{Episodes, SineBatch, VideoBatch};
use crate::{Objective, Result, Shape, SupervisedConfig, SupervisedRows, VideoConfig, VideoRows};

/// Where the meta-batches of an objective come from.
pub trait Batches {
    /// What they train.
    type Objective: Objective;
    /// A meta-batch; its memory is reused.
    type Batch: Default;

    /// Draws a meta-batch of tasks to learn from.
    ///
    /// # Errors
    /// Clips that cannot be had.
    fn draw(&self, rng: &mut ChaCha8Rng, batch: &mut Self::Batch) -> Result<()>;

    /// A meta-batch as the learner takes it.
    fn rows<'a>(&self, batch: &'a Self::Batch) -> <Self::Objective as Build>::Rows<'a, f32>;
}

/// Meta-batches of clips.
#[derive(Clone)]
pub struct VideoBatches {
    training: Episodes,
}

impl VideoBatches {
    /// From the tasks to learn from.
    ///
    /// # Errors
    /// A task with too few clips.
    pub fn new(job: &VideoJob, pools: &Pools, shape: Shape) -> Result<Self> {
        let Shape { tasks, shots, queries } = shape;
        Ok(Self { training: Episodes::new(pools.training.clone(), job.latent, tasks, shots, queries)? })
    }
}

/// A batch of clips as rows.
pub(super) fn video_rows(batch: &VideoBatch) -> VideoRows<'_, f32> {
    VideoRows {
        support_x: &batch.support_x,
        support_z: &batch.support_z,
        query_x: &batch.query_x,
        query_z: &batch.query_z,
    }
}

/// A batch of sinusoids as rows.
pub(super) fn sine_rows(batch: &SineBatch<f32>) -> SupervisedRows<'_, f32> {
    SupervisedRows {
        support_x: &batch.support_x,
        support_y: &batch.support_y,
        query_x: &batch.query_x,
        query_y: &batch.query_y,
    }
}

impl Batches for VideoBatches {
    type Objective = VideoConfig;
    type Batch = VideoBatch;

    fn draw(&self, rng: &mut ChaCha8Rng, batch: &mut VideoBatch) -> Result<()> {
        self.training.draw(rng, batch)
    }

    fn rows<'a>(&self, batch: &'a VideoBatch) -> VideoRows<'a, f32> {
        video_rows(batch)
    }
}

/// Meta-batches of sinusoids.
#[derive(Clone)]
pub struct SineBatches {
    job: SineJob,
    shape: Shape,
}

impl SineBatches {
    /// Of the job's family.
    ///
    /// # Errors
    /// A family with a reversed range.
    pub fn new(job: &SineJob, shape: Shape) -> Result<Self> {
        job.tasks.validate()?;
        Ok(Self { job: job.clone(), shape })
    }

    /// The meta-batches' shape.
    pub(super) fn shape(&self) -> Shape {
        self.shape
    }
}

impl Batches for SineBatches {
    type Objective = SupervisedConfig;
    type Batch = SineBatch<f32>;

    fn draw(&self, rng: &mut ChaCha8Rng, batch: &mut SineBatch<f32>) -> Result<()> {
        let Shape { tasks, shots, queries } = self.shape;
        self.job.tasks.draw_batch(rng, tasks, shots, queries, batch)
    }

    fn rows<'a>(&self, batch: &'a SineBatch<f32>) -> SupervisedRows<'a, f32> {
        sine_rows(batch)
    }
}
