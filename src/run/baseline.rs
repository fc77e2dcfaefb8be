use rand_chacha::ChaCha8Rng;

use super::batches::{SineBatches, Tasks};
use super::config::{Job, Pools, RunConfig};
use super::evaluation::{Evaluation, Score};
use super::session::Session;
use crate::device::Device;
use crate::model::Parameters;
use crate::tasks::{Episodes, VideoBatch};
use crate::{
    Error, InnerOptimizer, MetaOptimizer, Objective, RateKind, Result, Schedule, Shape, SupervisedBatch,
    SupervisedConfig, Trace, VideoConfig,
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
    let adversarial = config.adversarial_at(config.steps);
    let mut best: Option<(f64, f64, Trace<f32>)> = None;
    for exponent in -12..=8 {
        let rate = f64::from(exponent).exp2();
        let trace = evaluation.trace(device, parameters, &uniform_phi(config, rate, steps)?, steps, adversarial)?;
        let merit = evaluation.merits(&trace)?.last().copied().unwrap_or(f64::NAN);
        if merit.is_finite() && best.as_ref().is_none_or(|(_, best, _)| merit > *best) {
            best = Some((rate, merit, trace));
        }
    }
    let diverges = || Error::invalid("baseline", "diverges at every rate", "parameters that are finite");
    let (rate, _, trace) = best.ok_or_else(diverges)?;
    Ok(Baseline { rate, scores: evaluation.scores(&trace)? })
}

/// One rate for all layers and `steps` steps; a second network, the discriminator, has its own of the configuration.
pub(super) fn uniform_phi(config: &RunConfig, rate: f64, steps: usize) -> Result<Vec<MetaOptimizer<f32>>> {
    let networks = config.job.networks();
    let phi = networks.iter().enumerate().map(|(network, (_, mlp))| {
        let rate = if network == 0 { rate } else { config.initial_rates[network] };
        MetaOptimizer::uniform(RateKind::PerLayerPerStep, mlp, steps, rate)
    });
    phi.collect()
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
    let mut joint = RunConfig { steps, first_order: 0, multi_step: 0, ..config.clone() };
    joint.outer.trains_parameters = true;
    if let Schedule::Cosine { steps: length, .. } | Schedule::Linear { steps: length, .. } = &mut joint.outer.schedule {
        *length = steps;
    }
    if let Job::Video(job) = &mut joint.job {
        // The discriminator joins for as many steps as in the run.
        job.adversarial_from += steps.saturating_sub(config.steps);
    }
    let inner = joint.job.inner_mut();
    (inner.steps, inner.minibatch, inner.learn_rates, inner.fresh_noise) = (0, None, false, false);
    inner.algorithm = crate::Algorithm::FirstOrderMaml;
    inner.rates = RateKind::PerLayerPerStep;
    inner.optimizer = InnerOptimizer::Sgd { momentum: 0.0 };
    joint.shape = Shape { shots: 1, queries: config.shape.shots + config.shape.queries, ..config.shape };
    match (&joint.job, pools) {
        (Job::Video(job), Some(pools)) => {
            let Shape { tasks, shots, queries } = config.shape;
            let episodes = Episodes::new(pools.training.clone(), job.latent.clone(), tasks, shots, queries)?;
            let tasks = Joint::new(episodes, tasks);
            train(Session::new(device.clone(), joint.clone(), job.objective.clone(), tasks)?, progress)
        }
        (Job::Video(_), None) => Err(Error::invalid("clips", "not opened", "the run's tasks")),
        (Job::Sinusoid(job), _) => {
            let tasks = Joint::new(SineBatches::new(job, config.shape)?, config.shape.tasks);
            train(Session::new(device.clone(), joint.clone(), job.objective.clone(), tasks)?, progress)
        }
    }
}

fn train<O: Objective, S: Tasks<O>, D: Device<f32> + Clone>(
    mut session: Session<O, S, D>,
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
struct Joint<O: Objective, S> {
    tasks: S,
    count: usize,
    drawn: O::Batch,
}

impl<O: Objective, S: Tasks<O>> Joint<O, S> {
    /// Of batches of `count` tasks.
    fn new(tasks: S, count: usize) -> Self {
        Self { tasks, count, drawn: O::Batch::default() }
    }
}

/// For each of `tasks` tasks, its part of `first`, then its part of `second`, in `query`; in `support` the first row of each
/// task, whose `width` numbers nobody looks at: there are no inner steps.
fn join(tasks: usize, width: usize, [first, second]: [&[f32]; 2], [support, query]: [&mut Vec<f32>; 2]) {
    let (a, b) = (first.len() / tasks, second.len() / tasks);
    for task in 0..tasks {
        support.extend_from_slice(&first[task * a..][..width]);
        query.extend_from_slice(&first[task * a..(task + 1) * a]);
        query.extend_from_slice(&second[task * b..(task + 1) * b]);
    }
}

impl Tasks<VideoConfig> for Joint<VideoConfig, Episodes> {
    fn draw(&mut self, rng: &mut ChaCha8Rng, batch: &mut VideoBatch) -> Result<()> {
        let Self { tasks, count, drawn } = self;
        tasks.draw(rng, drawn)?;
        for rows in [&mut batch.support_x, &mut batch.query_x, &mut batch.support_z, &mut batch.query_z] {
            rows.clear();
        }
        let (clip, latent) = (tasks.format().values(), tasks.latent().width());
        join(*count, clip, [&drawn.support_x, &drawn.query_x], [&mut batch.support_x, &mut batch.query_x]);
        join(*count, latent, [&drawn.support_z, &drawn.query_z], [&mut batch.support_z, &mut batch.query_z]);
        Ok(())
    }
}

impl Tasks<SupervisedConfig> for Joint<SupervisedConfig, SineBatches> {
    fn draw(&mut self, rng: &mut ChaCha8Rng, batch: &mut SupervisedBatch) -> Result<()> {
        let Self { tasks, count, drawn } = self;
        tasks.draw(rng, drawn)?;
        join(*count, 1, [&drawn.support_x, &drawn.query_x], [&mut batch.support_x, &mut batch.query_x]);
        join(*count, 1, [&drawn.support_y, &drawn.query_y], [&mut batch.support_y, &mut batch.query_y]);
        Ok(())
    }
}
