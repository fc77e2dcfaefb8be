//! Personalisation: from a few clips of one subject to a small file that belongs to a shared checkpoint.

use std::sync::Arc;

use super::adaptation::{AdaptationOptions, Course, Drawn, video_job};
use super::trainer::{Trainer, TrainingConfig};
use crate::checkpoint::Checkpoint;
use crate::device::Device;
use crate::personal::{AdaptedGenerator, Personal, fingerprint};
use crate::tasks::{ClipTasks, Episodes, VideoBatch};
use crate::video::ClipFormat;
use crate::{
    Algorithm, Error, InnerOptimizer, MetaOptimizer, OuterConfig, RateKind, Result, Schedule, Shape, Strategy,
};

/// What is made of a subject's clips.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Tune {
    /// The generator, adapted by the checkpoint's meta-optimizer.
    Weights,
    /// The meta-optimizer, trained on the subject's clips: it adapts to more of them later.
    Optimizer(Tuning),
    /// The meta-optimizer, and the generator adapted by it.
    Both(Tuning),
}

/// How a meta-optimizer is trained on one subject's clips.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Tuning {
    /// Meta-steps.
    pub steps: u64,
    /// The factor of the outer learning rates of phi that the checkpoint was trained with.
    pub rate: f64,
}

impl Tuning {
    /// The factor that is taken where none is asked for: with few clips, larger ones help more on most subjects and do harm on
    /// some.
    pub const RATE: f64 = 0.3;

    /// That many meta-steps, at [`Tuning::RATE`].
    pub fn new(steps: u64) -> Self {
        Self { steps, rate: Self::RATE }
    }
}

/// What personalising has come to.
#[derive(Clone, Debug)]
pub struct Personalisation {
    /// What is kept of it.
    pub personal: Personal,
    /// Adapting with the meta-optimizer that is kept.
    pub course: Course,
    /// PSNR in dB after 0, 1, ... steps of adapting with the checkpoint's own, where another was made.
    pub psnr_before_tuning: Option<Vec<f64>>,
}

/// Personalises a checkpoint for the one task of `subject`. The clips that are not adapted with are judged on; the
/// meta-optimizer, too, is trained without them: each episode parts the clips that are adapted with into a support and a
/// query set.
///
/// # Errors
/// As [`super::adapt`]; to tune weights, an inner loop or strategy whose changes are of full rank; to tune the optimizer,
/// fewer than two clips to adapt with.
pub fn personalise<D: Device<f32> + Clone>(
    device: &D,
    checkpoint: &Checkpoint,
    subject: Arc<dyn ClipTasks>,
    options: &AdaptationOptions,
    tune: Tune,
) -> Result<Personalisation> {
    let inner = &video_job(checkpoint)?.objective.inner;
    let keeps_weights = !matches!(tune, Tune::Optimizer(_));
    let full_rank = match (inner.optimizer, inner.rates) {
        (InnerOptimizer::Adam { .. }, _) => Some("adam in the inner loop"),
        (_, RateKind::PerParameter) => Some("a rate for each parameter"),
        _ => None,
    };
    if let Some(rule) = full_rank.filter(|_| keeps_weights) {
        let expected =
            "optimizer, or a checkpoint trained with sgd and another meta-optimizer, whose steps are of low rank";
        return Err(Error::invalid("tune", format!("weights of a checkpoint trained with {rule}"), expected));
    }
    // Rows are what is kept, and only the dual form has them.
    let strategy = if keeps_weights { Some(inner.strategy.unwrap_or(Strategy::Dual)) } else { inner.strategy };
    let mut drawn = Drawn::new(checkpoint, subject, options)?;
    let (phi, psnr_before_tuning) = match tune {
        Tune::Weights => (None, None),
        Tune::Optimizer(tuning) | Tune::Both(tuning) => {
            let (_, before) = drawn.follow(device, checkpoint, &checkpoint.phi, strategy)?;
            (Some(tuned(device, checkpoint, &drawn, tuning, options.seed)?), Some(before.psnr))
        }
    };
    let (learner, course) = drawn.follow(device, checkpoint, phi.as_ref().unwrap_or(&checkpoint.phi), strategy)?;
    let adapted = if keeps_weights {
        Some(AdaptedGenerator { change: learner.change(0, 0)?, latents: course.batch.support_z.clone() })
    } else {
        None
    };
    let base = fingerprint(&checkpoint.parameters[0]);
    let personal = Personal { subject: drawn.subject, base, adapted, phi };
    Ok(Personalisation { personal, course, psnr_before_tuning })
}

/// The checkpoint's phi, trained on the clips that are adapted with.
fn tuned<D: Device<f32> + Clone>(
    device: &D,
    checkpoint: &Checkpoint,
    drawn: &Drawn,
    tuning: Tuning,
    seed: u64,
) -> Result<Vec<MetaOptimizer<f32>>> {
    let (config, job) = (&checkpoint.config, video_job(checkpoint)?);
    let clips = drawn.subject.clips;
    if clips < 2 {
        let expected = "at least 2 clips to adapt with: one to learn from and one to be judged on";
        return Err(Error::invalid("tune", format!("the optimizer, with {clips} clip"), expected));
    }
    let mut objective = job.objective.clone();
    objective.inner.steps = drawn.subject.steps;
    objective.inner.learn_rates = true;
    objective.inner.fresh_noise = false;
    if !objective.inner.algorithm.differentiates_query() {
        // What trained the networks has no gradient for phi.
        objective.inner.algorithm = Algorithm::Maml;
    }
    // With the last loss alone the earlier steps end up too long: what they harm, the last one mends.
    objective.inner.multi_step = objective.inner.has_losses_on_the_way();
    let shots = config.shape.shots.min(clips - 1);
    let queries = config.shape.queries.min(clips - shots);
    let shape = Shape { tasks: EPISODES, shots, queries };
    let own = OwnClips::new(job.source.format(), job.latent.noise, drawn);
    let episodes = Episodes::new(Arc::new(own), job.latent.clone(), EPISODES, shots, queries)?;
    let plays = config.adversarial_at(checkpoint.step);
    let outer = OuterConfig {
        phi_learning_rate: tuning.rate * config.outer.phi_learning_rate,
        phi_factor_learning_rate: tuning.rate * config.outer.phi_factor_learning_rate,
        phi_weight_learning_rate: tuning.rate * config.outer.phi_weight_learning_rate,
        schedule: Schedule::Cosine { steps: tuning.steps, floor: 0.02 },
        trains_parameters: false,
        ..config.outer
    };
    let training = TrainingConfig {
        shape,
        inner_rates: config.initial_rates.clone(),
        outer,
        seed,
        adversarial_from: if plays { 0 } else { u64::MAX },
    };
    let steps = drawn.subject.steps;
    let phi = checkpoint.phi.iter().map(|phi| phi.with_steps(steps)).collect();
    let mut trainer = Trainer::assemble(device.clone(), objective, training, episodes, phi)?;
    trainer.set_parameters(&checkpoint.parameters)?;
    for _ in 0..tuning.steps {
        trainer.step()?;
    }
    Ok((0..checkpoint.phi.len()).map(|network| trainer.learner().phi(network)).collect())
}

/// Episodes in a meta-step of tuning.
const EPISODES: usize = 2;

/// The clips that a subject is adapted with, as a task of their own.
struct OwnClips {
    format: ClipFormat,
    name: String,
    clips: usize,
    values: Vec<f32>,
    /// `[clips, latent]`, and how many numbers of noise a row begins with.
    latents: Vec<f32>,
    noise: usize,
}

impl OwnClips {
    fn new(format: ClipFormat, noise: usize, drawn: &Drawn) -> Self {
        let VideoBatch { support_x, support_z, .. } = &drawn.batch;
        let (values, latents) = (support_x.clone(), support_z.clone());
        Self { format, name: drawn.subject.name.clone(), clips: drawn.subject.clips, values, latents, noise }
    }
}

impl ClipTasks for OwnClips {
    fn format(&self) -> ClipFormat {
        self.format
    }

    fn len(&self) -> usize {
        1
    }

    fn name(&self, _task: usize) -> String {
        self.name.clone()
    }

    fn clips(&self, _task: usize) -> usize {
        self.clips
    }

    fn read_into(&self, _task: usize, clip: usize, out: &mut [f32]) {
        let size = self.format.values();
        out.copy_from_slice(&self.values[clip * size..][..size]);
    }

    fn condition_width(&self) -> usize {
        self.latents.len() / self.clips - self.noise
    }

    fn condition_into(&self, _task: usize, clip: usize, out: &mut [f32]) {
        let width = self.latents.len() / self.clips;
        out.copy_from_slice(&self.latents[clip * width..][self.noise..width]);
    }
}
