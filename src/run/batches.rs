use rand_chacha::ChaCha8Rng;

use super::config::SineJob;
use crate::tasks::{Episodes, VideoBatch};
use crate::{Objective, Result, Shape, SupervisedBatch, SupervisedConfig, VideoConfig};

/// Where the meta-batches of an objective come from: a distribution of tasks.
///
/// A closure `|rng, batch| ...` will do. For a [`SupervisedConfig`] the batch is a [`SupervisedBatch`], for a [`VideoConfig`] a
/// [`VideoBatch`]; [`Episodes`] draws those from any source of clips.
pub trait Tasks<O: Objective> {
    /// Fills `batch` with a meta-batch of the learner's shape. A [`SupervisedBatch`] comes empty, a [`VideoBatch`] as it was
    /// left; both keep their memory. Whatever is random should come from `rng`, which has a stream of its own for each
    /// meta-step, so that a run can be made again.
    ///
    /// # Errors
    /// Rows that cannot be had; training stops with this error.
    fn draw(&mut self, rng: &mut ChaCha8Rng, batch: &mut O::Batch) -> Result<()>;
}

impl<O: Objective, F: FnMut(&mut ChaCha8Rng, &mut O::Batch) -> Result<()>> Tasks<O> for F {
    fn draw(&mut self, rng: &mut ChaCha8Rng, batch: &mut O::Batch) -> Result<()> {
        self(rng, batch)
    }
}

impl Tasks<VideoConfig> for Episodes {
    fn draw(&mut self, rng: &mut ChaCha8Rng, batch: &mut VideoBatch) -> Result<()> {
        Episodes::draw(self, rng, batch)
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
}

impl Tasks<SupervisedConfig> for SineBatches {
    fn draw(&mut self, rng: &mut ChaCha8Rng, batch: &mut SupervisedBatch) -> Result<()> {
        let Shape { tasks, shots, queries } = self.shape;
        self.job.tasks.draw_batch(rng, tasks, shots, queries, batch)
    }
}
