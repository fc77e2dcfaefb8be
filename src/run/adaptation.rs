use std::sync::Arc;

use rand_chacha::ChaCha8Rng;

use super::config::{Job, VideoJob};
use super::evaluation::{mean_psnr, tracer};
use super::trainer::stream;
use crate::checkpoint::{Checkpoint, Stage, Subject};
use crate::device::Device;
use crate::tasks::{ClipTasks, Episodes, VideoBatch};
use crate::{Error, MetaLearner, MetaOptimizer, Result, Shape, Strategy, Trace, VideoConfig};

/// How a generator is adapted to a subject.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AdaptationOptions {
    /// Clips to adapt with; as many as in training when absent, all of them when there are no more.
    pub shots: Option<usize>,
    /// Inner steps; as many as in training when absent. Steps beyond those use phi's last rates.
    pub steps: Option<usize>,
    /// What the choice of clips and the noise are drawn from.
    pub seed: u64,
}

/// What adapting to a subject has come to, step by step.
#[derive(Clone, Debug)]
pub struct Course {
    /// Clips adapted with, and clips judged on.
    pub batch: VideoBatch,
    /// Whether the clips judged on are those adapted with, because there were no others.
    pub judged_on_support: bool,
    /// Losses and generated clips after 0, 1, ... steps.
    pub trace: Trace<f32>,
    /// PSNR in dB after 0, 1, ... steps.
    pub psnr: Vec<f64>,
}

/// A generator adapted to one subject.
#[derive(Clone, Debug)]
pub struct Adaptation {
    /// The adapted checkpoint.
    pub checkpoint: Checkpoint,
    /// How it came about.
    pub course: Course,
}

/// A checkpoint's job on clips.
///
/// # Errors
/// A checkpoint of something else.
pub fn video_job(checkpoint: &Checkpoint) -> Result<&VideoJob> {
    match &checkpoint.config.job {
        Job::Video(job) => Ok(job),
        Job::Sinusoid(_) => Err(Error::invalid(
            "checkpoint",
            "trained on sinusoids",
            "one that was trained on clips: it has a generator",
        )),
    }
}

/// Adapts a checkpoint to the one task of `subject`.
///
/// # Errors
/// A checkpoint that is adapted already or not of a generator, or too few clips.
pub fn adapt<D: Device<f32> + Clone>(
    device: &D,
    checkpoint: &Checkpoint,
    subject: Arc<dyn ClipTasks>,
    options: &AdaptationOptions,
) -> Result<Adaptation> {
    let mut drawn = Drawn::new(checkpoint, subject, options)?;
    let strategy = video_job(checkpoint)?.objective.inner.strategy;
    let (mut learner, course) = drawn.follow(device, checkpoint, &checkpoint.phi, strategy)?;
    let plays = checkpoint.config.adversarial_at(checkpoint.step);
    let mut parameters = Vec::new();
    for (network, shared) in checkpoint.parameters.iter().enumerate() {
        // A discriminator that takes no part is not adapted.
        parameters.push(if network == 0 || plays { learner.adapted(network, 0)? } else { shared.clone() });
    }
    let stage = Stage::Adapted { subject: drawn.subject, latents: course.batch.support_z.clone() };
    Ok(Adaptation { checkpoint: Checkpoint { parameters, stage, ..checkpoint.clone() }, course })
}

/// Clips of a subject, drawn to adapt with and to judge on.
pub(super) struct Drawn {
    pub subject: Subject,
    pub batch: VideoBatch,
    judged_on_support: bool,
    rng: ChaCha8Rng,
}

impl Drawn {
    pub fn new(checkpoint: &Checkpoint, subject: Arc<dyn ClipTasks>, options: &AdaptationOptions) -> Result<Self> {
        let job = video_job(checkpoint)?;
        if let Stage::Adapted { subject, .. } = &checkpoint.stage {
            let problem = format!("adapted already, to {:?}", subject.name);
            return Err(Error::invalid("checkpoint", problem, "the one that train wrote"));
        }
        let (name, clips) = (subject.name(0), subject.clips(0));
        let shots = options.shots.unwrap_or(checkpoint.config.shape.shots.min(clips));
        if shots == 0 || shots > clips {
            let expected = format!("1 to {clips}, the number of clips of {name:?}");
            return Err(Error::invalid("shots", shots.to_string(), expected));
        }
        let mut rng = stream(options.seed, 0);
        let mut batch = VideoBatch::default();
        Episodes::new(subject, job.latent.clone(), 1, shots, clips - shots)?.fixed(&[0], &mut rng, &mut batch)?;
        let judged_on_support = clips == shots;
        if judged_on_support {
            batch.query_x.clone_from(&batch.support_x);
            batch.query_z.clone_from(&batch.support_z);
            batch.queries = shots;
        }
        let steps = options.steps.unwrap_or(job.objective.inner.steps);
        Ok(Self { subject: Subject { name, clips: shots, steps }, batch, judged_on_support, rng })
    }

    /// Adapts with this phi in this form, and judges after every step.
    pub fn follow<D: Device<f32> + Clone>(
        &mut self,
        device: &D,
        checkpoint: &Checkpoint,
        phi: &[MetaOptimizer<f32>],
        strategy: Option<Strategy>,
    ) -> Result<(MetaLearner<f32, D, VideoConfig>, Course)> {
        let (job, steps) = (video_job(checkpoint)?, self.subject.steps);
        let mut objective = job.objective.clone();
        (objective.inner.steps, objective.inner.strategy) = (steps, strategy);
        let phi = phi.iter().map(|phi| phi.with_steps(steps)).collect();
        let shape = Shape { tasks: 1, shots: self.batch.shots, queries: self.batch.queries };
        let plays = checkpoint.config.adversarial_at(checkpoint.step);
        let mut learner = tracer(device, objective, shape, phi, &checkpoint.parameters, plays)?;
        let trace = learner.trace(self.batch.rows(), &mut self.rng)?;
        let psnr = (trace.outputs.iter())
            .map(|generated| mean_psnr(generated, &self.batch.query_x, &job.source.format()))
            .collect::<Result<_>>()?;
        let course = Course { batch: self.batch.clone(), judged_on_support: self.judged_on_support, trace, psnr };
        Ok((learner, course))
    }
}
