use serde::{Deserialize, Serialize};

use super::config::{Job, Pools, RunConfig};
use super::estimate::Estimate;
use super::trainer::stream;
use crate::device::Device;
use crate::model::Parameters;
use crate::tasks::{Episodes, VideoBatch};
use crate::video::{ClipFormat, FrechetReference, flicker, motion_error, psnr, refine, ssim, texture_error};
use crate::{Error, Losses, MetaLearner, MetaOptimizer, Objective, Result, Shape, SupervisedBatch, Trace};

/// How the query sets of all episodes come out after some inner steps.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Score {
    /// The loss: that of the generator, or the mean squared error of a sinusoid.
    pub loss: Estimate,
    /// Peak signal-to-noise ratio of clips, in dB.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub psnr: Option<Estimate>,
    /// Structural similarity of clips.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub ssim: Option<Estimate>,
    /// [`motion_error`] of clips.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub motion_error: Option<Estimate>,
    /// [`texture_error`] of clips.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub texture_error: Option<Estimate>,
    /// [`flicker`] of clips, over the tasks whose true clips have any.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub flicker: Option<Estimate>,
    /// Distance of the clips of all episodes together from the true ones: see [`FrechetReference`].
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub frechet: Option<f64>,
}

impl Score {
    /// What is compared, the higher the better.
    pub fn merit(&self) -> f64 {
        self.psnr.map_or(-self.loss.mean, |psnr| psnr.mean)
    }
}

/// Episodes of held-out tasks, drawn once, for every contestant the same.
pub struct Evaluation {
    config: RunConfig,
    shape: Shape,
    episodes: Drawn,
    refines: bool,
}

enum Drawn {
    Clips(Box<VideoBatch>, ClipFormat),
    Sinusoids(SupervisedBatch),
}

/// The stream of the run's seed that held-out episodes are drawn from: far from those of the meta-steps.
const HELD_OUT_STREAM: u64 = 1 << 40;

impl Evaluation {
    /// Draws `episodes` episodes of held-out tasks, each with the run's numbers of support and query rows. With fewer
    /// tasks than episodes the tasks take turns, with other clips each time.
    ///
    /// # Errors
    /// Held-out tasks with too few clips.
    pub fn draw(config: &RunConfig, pools: Option<&Pools>, episodes: usize) -> Result<Self> {
        let shape = Shape { tasks: episodes, ..config.shape };
        let mut rng = stream(config.seed, HELD_OUT_STREAM);
        let episodes = match (&config.job, pools) {
            (Job::Video(job), Some(pools)) => {
                let mut batch = VideoBatch::default();
                let held_out = pools.held_out.clone();
                if held_out.is_empty() {
                    let expected = "a fraction above 0 in train --held-out, so that some tasks are kept back";
                    return Err(Error::invalid("held-out tasks", "none", expected));
                }
                Episodes::new(held_out, job.latent.clone(), shape.tasks, shape.shots, shape.queries)?
                    .draw(&mut rng, &mut batch)?;
                Drawn::Clips(Box::new(batch), job.source.format())
            }
            (Job::Video(_), None) => return Err(Error::invalid("clips", "not opened", "the run's tasks")),
            (Job::Sinusoid(job), _) => {
                let mut batch = SupervisedBatch::default();
                job.tasks.draw_batch(&mut rng, shape.tasks, shape.shots, shape.queries, &mut batch)?;
                Drawn::Sinusoids(batch)
            }
        };
        Ok(Self { config: config.clone(), shape, episodes, refines: false })
    }

    /// Judges clips after the pass of [`refine`].
    #[must_use]
    pub fn refined(self) -> Self {
        Self { refines: true, ..self }
    }

    /// The episodes' shape.
    pub fn shape(&self) -> Shape {
        self.shape
    }

    /// The clips of the episodes, where they are clips.
    pub fn clips(&self) -> Option<&VideoBatch> {
        match &self.episodes {
            Drawn::Clips(batch, _) => Some(batch),
            Drawn::Sinusoids(_) => None,
        }
    }

    /// Adapts `parameters` by `phi` to every episode, and returns the query losses and outputs after 0, 1, ..., `steps`
    /// steps. Steps beyond those of phi use its last rates. `adversarial`: whether the discriminator takes part.
    ///
    /// # Errors
    /// Parameters or phi of another architecture.
    pub fn trace<D: Device<f32> + Clone>(
        &self,
        device: &D,
        parameters: &[Parameters<f32>],
        phi: &[MetaOptimizer<f32>],
        steps: usize,
        adversarial: bool,
    ) -> Result<Trace<f32>> {
        let mut job = self.config.job.clone();
        job.inner_mut().steps = steps;
        if let Some(phi) = phi.first() {
            job.inner_mut().rates = phi.kind();
        }
        let phi = phi.iter().map(|phi| phi.with_steps(steps)).collect();
        let mut rng = stream(self.config.seed, HELD_OUT_STREAM + 1);
        match (&job, &self.episodes) {
            (Job::Video(job), Drawn::Clips(batch, _)) => {
                let mut learner = tracer(device, job.objective.clone(), self.shape, phi, parameters, adversarial)?;
                let mut trace = learner.trace(batch.rows(), &mut rng)?;
                if self.refines {
                    let format = job.source.format();
                    trace.outputs.iter_mut().try_for_each(|clips| refine(clips, &format))?;
                }
                Ok(trace)
            }
            (Job::Sinusoid(job), Drawn::Sinusoids(batch)) => {
                let mut learner = tracer(device, job.objective.clone(), self.shape, phi, parameters, false)?;
                learner.trace(batch.rows(), &mut rng)
            }
            _ => Err(Error::invalid("episodes", "of another job", "those of this run")),
        }
    }

    /// [`Score::merit`] after 0, 1, ... steps of a trace, without the other figures of a score.
    ///
    /// # Errors
    /// None for a trace of these episodes.
    pub fn merits(&self, trace: &Trace<f32>) -> Result<Vec<f64>> {
        let steps = trace.losses.iter().zip(&trace.outputs);
        steps.map(|(losses, outputs)| Ok(self.compared(losses, outputs)?.0.merit())).collect()
    }

    /// The figures of one step of a trace that its merit is made of; and its clips beside the true ones, where there are any.
    fn compared<'a>(&'a self, losses: &Losses<f32>, outputs: &'a [f32]) -> Result<(Score, Option<Pairs<'a>>)> {
        let losses: Vec<f64> = losses.task.iter().map(|l| f64::from(*l)).collect();
        let score = Score { loss: Estimate::of(&losses), ..Score::default() };
        let Drawn::Clips(batch, format) = &self.episodes else { return Ok((score, None)) };
        let pairs = Pairs { generated: outputs, truth: &batch.query_x, format, clips: self.shape.queries };
        let psnr = pairs.estimate(|generated, truth, format| mean_psnr(generated, truth, format).map(Some))?;
        Ok((Score { psnr, ..score }, Some(pairs)))
    }

    /// The scores after 0, 1, ... steps of a trace.
    ///
    /// # Errors
    /// None for a trace of these episodes.
    pub fn scores(&self, trace: &Trace<f32>) -> Result<Vec<Score>> {
        let reference = match &self.episodes {
            // The spread of one clip cannot be told.
            Drawn::Clips(batch, format) if batch.query_x.len() > format.values() => {
                Some(FrechetReference::new(&batch.query_x, format)?)
            }
            _ => None,
        };
        (trace.losses.iter().zip(&trace.outputs))
            .map(|(losses, outputs)| {
                let (score, pairs) = self.compared(losses, outputs)?;
                let Some(pairs) = pairs else { return Ok(score) };
                Ok(Score {
                    ssim: pairs.estimate(|generated, truth, format| mean_ssim(generated, truth, format).map(Some))?,
                    motion_error: pairs.estimate(motion_error)?,
                    texture_error: pairs.estimate(texture_error)?,
                    flicker: pairs.estimate(flicker)?,
                    frechet: reference.as_ref().map(|reference| reference.distance(outputs)).transpose()?,
                    ..score
                })
            })
            .collect()
    }
}

/// A figure of generated clips, given the true ones, where it exists.
type ClipFigure = fn(&[f32], &[f32], &ClipFormat) -> Result<Option<f64>>;

/// Generated clips beside the true ones, `clips` of each task.
struct Pairs<'a> {
    generated: &'a [f32],
    truth: &'a [f32],
    format: &'a ClipFormat,
    clips: usize,
}

impl Pairs<'_> {
    /// A figure of each task's clips, over the tasks where it exists.
    fn estimate(&self, figure: ClipFigure) -> Result<Option<Estimate>> {
        let size = self.format.values() * self.clips;
        let tasks = self.generated.chunks_exact(size).zip(self.truth.chunks_exact(size));
        let values = tasks.filter_map(|(generated, truth)| figure(generated, truth, self.format).transpose());
        let values = values.collect::<Result<Vec<f64>>>()?;
        Ok((!values.is_empty()).then(|| Estimate::of(&values)))
    }
}

/// The mean PSNR of clips. One met exactly counts as 100 dB.
pub(super) fn mean_psnr(generated: &[f32], truth: &[f32], format: &ClipFormat) -> Result<f64> {
    mean_of_clips(generated, truth, format, |generated, truth| Ok(psnr(generated, truth)?.min(100.0)))
}

fn mean_ssim(generated: &[f32], truth: &[f32], format: &ClipFormat) -> Result<f64> {
    mean_of_clips(generated, truth, format, |generated, truth| ssim(generated, truth, format))
}

fn mean_of_clips(
    generated: &[f32],
    truth: &[f32],
    format: &ClipFormat,
    figure: impl Fn(&[f32], &[f32]) -> Result<f64>,
) -> Result<f64> {
    let count = (truth.len() / format.values()) as f64;
    let pairs = generated.chunks_exact(format.values()).zip(truth.chunks_exact(format.values()));
    Ok(pairs.map(|(generated, truth)| figure(generated, truth)).sum::<Result<f64>>()? / count)
}

/// A learner that only adapts, with its parameters set, and with one latent for each clip.
pub(crate) fn tracer<D: Device<f32> + Clone, O: Objective>(
    device: &D,
    mut objective: O,
    shape: Shape,
    phi: Vec<MetaOptimizer<f32>>,
    parameters: &[Parameters<f32>],
    adversarial: bool,
) -> Result<MetaLearner<f32, D, O>> {
    objective.inner_mut().fresh_noise = false;
    let mut learner = MetaLearner::tracer(device.clone(), objective, shape, phi)?;
    for (network, parameters) in parameters.iter().enumerate() {
        learner.set_parameters(network, parameters)?;
    }
    learner.set_adversarial(adversarial);
    Ok(learner)
}
