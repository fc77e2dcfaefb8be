use rand_chacha::ChaCha8Rng;

use super::batches::{Batches, SineBatches, VideoBatches, sine_rows, video_rows};
use super::config::{Job, Pools, RunConfig};
use super::evaluation::{Evaluation, Score};
use super::session::Session;
use crate::device::Device;
use crate::model::Parameters;
use crate::tasks::{SineBatch, VideoBatch};
use crate::{
    Error, InnerOptimizer, MetaOptimizer, RateKind, Result, Schedule, Shape, SupervisedConfig, SupervisedRows,
    VideoConfig, VideoRows,
};

/// A starting point without meta-learning, and how well it adapts at its best rate.
#[derive(Clone, Debug)]
pub struct Baseline {
    /// The one inner learning rate (the generator's, for clips) that came out best.
    pub rate: f64,
    /// The scores after 0, 1, ... steps.
    pub scores: Vec<Score>,
}

/// Adapts from `parameters` with one rate for all layers and steps, and takes the best of 21 rates between 2^-12 and 2^8,
/// judged on the very episodes that are reported: the choice favours the baseline.
///
/// # Errors
/// As [`Evaluation::trace`].
pub fn best_uniform_rate<D: Device<f32> + Clone>(
    device: &D,
    config: &RunConfig,
    evaluation: &Evaluation,
    parameters: &[Parameters<f32>],
    steps: usize,
) -> Result<Baseline> {
    let mut best: Option<Baseline> = None;
    for exponent in -12..=8 {
        let rate = f64::from(exponent).exp2();
        let networks = config.job.networks();
        let phi = networks.iter().enumerate().map(|(network, (_, mlp))| {
            let rate = if network == 0 { rate } else { config.initial_rates[network] };
            MetaOptimizer::uniform(RateKind::PerLayerPerStep, mlp, steps, rate)
        });
        let adversarial = config.adversarial_at(config.steps);
        let phi = phi.collect::<Result<Vec<_>>>()?;
        let trace = evaluation.trace(device, parameters, &phi, steps, adversarial)?;
        let scores = evaluation.scores(&trace)?;
        let merit = |scores: &[Score]| scores.last().map_or(f64::NAN, Score::merit);
        let better = best.as_ref().is_none_or(|best| merit(&scores) > merit(&best.scores));
        if better && merit(&scores).is_finite() {
            best = Some(Baseline { rate, scores });
        }
    }
    best.ok_or_else(|| Error::invalid("baseline", "diverges at every rate", "parameters that are finite"))
}

/// Where the streams of joint training begin: far from those of the meta-steps.
const JOINT_STREAM: u64 = 1 << 41;

/// Ordinary training on the clips of all tasks together, without an inner loop: `steps` outer steps with the run's
/// optimizer and batches (support and query rows alike), from its initial parameters. `progress` is called after each
/// step; when it says false, training ends early.
///
/// # Errors
/// As [`Session::new`] and [`Session::step`].
pub fn joint_training<D: Device<f32> + Clone>(
    device: &D,
    config: &RunConfig,
    pools: Option<&Pools>,
    steps: u64,
    progress: impl FnMut(u64) -> bool,
) -> Result<Vec<Parameters<f32>>> {
    let mut joint = RunConfig { steps, ..config.clone() };
    if let Schedule::Cosine { steps: length, .. } = &mut joint.outer.schedule {
        *length = steps;
    }
    if let Job::Video(job) = &mut joint.job {
        // The discriminator joins for as many steps as in the run.
        job.adversarial_from += steps.saturating_sub(config.steps);
    }
    let inner = joint.job.inner_mut();
    (inner.steps, inner.minibatch, inner.learn_rates) = (0, None, false);
    inner.algorithm = crate::Algorithm::FirstOrderMaml;
    inner.rates = RateKind::PerLayerPerStep;
    inner.optimizer = InnerOptimizer::Sgd { momentum: 0.0 };
    joint.shape = Shape { shots: 1, queries: config.shape.shots + config.shape.queries, ..config.shape };
    match (&joint.job, pools) {
        (Job::Video(job), Some(pools)) => {
            let batches = Joint(VideoBatches::new(job, pools, config.shape)?);
            train(Session::new(device.clone(), joint.clone(), job.objective.clone(), batches)?, progress)
        }
        (Job::Video(_), None) => Err(Error::invalid("clips", "not opened", "the run's tasks")),
        (Job::Sinusoid(job), _) => {
            let batches = Joint(SineBatches::new(job, config.shape)?);
            train(Session::new(device.clone(), joint.clone(), job.objective.clone(), batches)?, progress)
        }
    }
}

fn train<D: Device<f32>, B: Batches>(
    mut session: Session<D, B>,
    mut progress: impl FnMut(u64) -> bool,
) -> Result<Vec<Parameters<f32>>> {
    session.set_first_stream(JOINT_STREAM);
    while session.steps_done() < session.config().steps {
        session.step()?;
        if !progress(session.steps_done()) {
            break;
        }
    }
    let networks = session.config().job.networks().len();
    Ok((0..networks).map(|network| session.learner().parameters(network)).collect())
}

/// The batches of a run with support and query rows put together as query rows.
struct Joint<B>(B);

/// For each of `tasks` tasks, its part of `first`, then its part of `second`.
fn join(tasks: usize, first: &[f32], second: &[f32], out: &mut Vec<f32>) {
    out.clear();
    let (a, b) = (first.len() / tasks, second.len() / tasks);
    for task in 0..tasks {
        out.extend_from_slice(&first[task * a..(task + 1) * a]);
        out.extend_from_slice(&second[task * b..(task + 1) * b]);
    }
}

/// A batch as drawn, and as joined.
#[derive(Default)]
struct JoinedBatch<T> {
    drawn: T,
    x: Vec<f32>,
    y: Vec<f32>,
}

impl Batches for Joint<VideoBatches> {
    type Objective = VideoConfig;
    type Batch = JoinedBatch<VideoBatch>;

    fn draw(&self, rng: &mut ChaCha8Rng, batch: &mut Self::Batch) -> Result<()> {
        self.0.draw(rng, &mut batch.drawn)?;
        let rows = video_rows(&batch.drawn);
        join(batch.drawn.tasks, rows.support_x, rows.query_x, &mut batch.x);
        join(batch.drawn.tasks, rows.support_z, rows.query_z, &mut batch.y);
        Ok(())
    }

    fn rows<'a>(&self, batch: &'a Self::Batch) -> VideoRows<'a, f32> {
        let rows = batch.drawn.shots + batch.drawn.queries;
        // The one support row is not looked at: there are no inner steps.
        let (x, z) = (&batch.x[..batch.x.len() / rows], &batch.y[..batch.y.len() / rows]);
        VideoRows { support_x: x, support_z: z, query_x: &batch.x, query_z: &batch.y }
    }
}

impl Batches for Joint<SineBatches> {
    type Objective = SupervisedConfig;
    type Batch = JoinedBatch<SineBatch<f32>>;

    fn draw(&self, rng: &mut ChaCha8Rng, batch: &mut Self::Batch) -> Result<()> {
        self.0.draw(rng, &mut batch.drawn)?;
        let rows = sine_rows(&batch.drawn);
        let tasks = self.0.shape().tasks;
        join(tasks, rows.support_x, rows.query_x, &mut batch.x);
        join(tasks, rows.support_y, rows.query_y, &mut batch.y);
        Ok(())
    }

    fn rows<'a>(&self, batch: &'a Self::Batch) -> SupervisedRows<'a, f32> {
        let tasks = self.0.shape().tasks;
        let (x, y) = (&batch.x[..tasks], &batch.y[..tasks]);
        SupervisedRows { support_x: x, support_y: y, query_x: &batch.x, query_y: &batch.y }
    }
}
