//! Whole runs, as `train` carries them out: joint training, meta-steps of the outer optimizer, the adaptation to held-out
//! episodes. They must end with the CPU's numbers, within single precision.

use innerloop::device::cpu::CpuDevice;
use innerloop::device::{Device, MatrixPrecision};
use innerloop::model::{Activation, Mlp};
use innerloop::objective::{FrameShape, Loss, VideoWeights};
use innerloop::run::{
    ClipSource, Evaluation, Job, Pools, RunConfig, Session, SineBatches, SineJob, Tasks, VideoJob, joint_training,
};
use innerloop::tasks::{Condition, Episodes, Latent, Sinusoids};
use innerloop::video::ClipFormat;
use innerloop::{
    Algorithm, InnerConfig, InnerOptimizer, Objective, OuterConfig, Schedule, Shape, SupervisedConfig, VideoConfig,
};

use super::Make;

const STEPS: u64 = 6;
/// Joint training before them.
const PRETRAINING: u64 = 3;
/// The discriminator joins here.
const ADVERSARIAL_FROM: u64 = 2;
const EPISODES: usize = 2;

/// The errors of single precision, grown over the run. Adam divides by the gradient's own size, so it magnifies rounding
/// where a gradient is near 0.
const TOLERANCE: f64 = 5e-5;

/// What a run gives.
struct Outcome {
    /// The losses that `train` reports, step by step.
    metrics: Vec<f64>,
    /// Parameters and rates in the end, of all networks.
    state: Vec<f64>,
    /// Held-out query losses after 0, 1, ... inner steps, and the outputs.
    held_out: Vec<f64>,
    outputs: Vec<f64>,
}

fn wide(values: &[f32]) -> impl Iterator<Item = f64> + '_ {
    values.iter().map(|v| f64::from(*v))
}

fn carry_out<D, O, S>(device: D, config: &RunConfig, objective: O, tasks: S, pools: Option<&Pools>) -> Outcome
where
    D: Device<f32> + Clone,
    O: Objective,
    S: Tasks<O>,
{
    let mut session = Session::new(device.clone(), config.clone(), objective, tasks).unwrap();
    let begin = joint_training(&device, config, pools, config.pretraining, |_| true).unwrap();
    session.set_parameters(&begin).unwrap();
    let mut metrics = Vec::new();
    while session.steps_done() < config.steps {
        let report = session.step().unwrap();
        metrics.push(report.loss);
        metrics.extend(report.discriminator_loss);
    }
    let end = session.checkpoint();
    let steps = config.job.inner().steps + 1;
    let evaluation = Evaluation::draw(config, pools, EPISODES).unwrap();
    let plays = config.adversarial_at(config.steps);
    let trace = evaluation.trace(&device, &end.parameters, &end.phi, steps, plays).unwrap();
    Outcome {
        metrics,
        state: end
            .parameters
            .iter()
            .flat_map(|p| wide(p.values()))
            .chain(end.phi.iter().flat_map(|p| wide(p.values())))
            .collect(),
        held_out: trace.losses.iter().flat_map(|l| wide(&l.task).chain(wide(&l.discriminator))).collect(),
        outputs: trace.outputs.iter().flat_map(|o| wide(o)).collect(),
    }
}

/// The norm of the difference over the norm.
fn same(what: &str, got: &[f64], expected: &[f64]) {
    assert_eq!(got.len(), expected.len(), "{what}");
    let norm = |values: &mut dyn Iterator<Item = f64>| values.map(|v| v * v).sum::<f64>().sqrt();
    let error = norm(&mut got.iter().zip(expected).map(|(g, e)| g - e)) / norm(&mut expected.iter().copied());
    assert!(error <= TOLERANCE, "{what}: off by {error:e}");
}

fn compare(what: &str, got: &Outcome, expected: &Outcome) {
    same(&format!("{what}, metrics"), &got.metrics, &expected.metrics);
    same(&format!("{what}, parameters and rates"), &got.state, &expected.state);
    same(&format!("{what}, held-out losses"), &got.held_out, &expected.held_out);
    same(&format!("{what}, held-out outputs"), &got.outputs, &expected.outputs);
}

fn config(job: Job, shape: Shape, initial_rates: Vec<f64>) -> RunConfig {
    let schedule = Schedule::Cosine { steps: STEPS, floor: 0.02 };
    let outer = OuterConfig { clip: Some(10.0), phi_learning_rate: 0.03, schedule, ..OuterConfig::adam(1e-3) };
    RunConfig {
        job,
        shape,
        outer,
        steps: STEPS,
        first_order: 2,
        multi_step: 4,
        pretraining: PRETRAINING,
        precision: MatrixPrecision::F32,
        seed: 3,
        initial_rates,
    }
}

pub fn sinusoid_run<D: Device<f32> + Clone>(make: Make<'_, D>) {
    let adam = InnerOptimizer::Adam { beta1: 0.9, beta2: 0.999, epsilon: 1e-3 };
    for optimizer in [InnerOptimizer::Sgd { momentum: 0.0 }, adam] {
        let inner = InnerConfig { learn_rates: true, optimizer, ..InnerConfig::new(Algorithm::Maml, 2) };
        let mlp = Mlp::with_hidden(1, &[13, 11], 1, Activation::Relu, Activation::Linear).unwrap();
        let job = SineJob { tasks: Sinusoids::default(), objective: SupervisedConfig { mlp, loss: Loss::Mse, inner } };
        let shape = Shape { tasks: 5, shots: 6, queries: 7 };
        let config = config(Job::Sinusoid(job.clone()), shape, vec![0.01]);
        let batches = || SineBatches::new(&job, shape).unwrap();
        let expected = carry_out(CpuDevice::new(2).unwrap(), &config, job.objective.clone(), batches(), None);
        let got = carry_out(make(3), &config, job.objective.clone(), batches(), None);
        compare(&format!("sinusoids, {optimizer:?}"), &got, &expected);
    }
}

pub fn video_run<D: Device<f32> + Clone>(make: Make<'_, D>) {
    let format = ClipFormat::new(3, 5, 4, 1).unwrap();
    let latent = Latent { noise: 3, condition: Condition::FirstFrame { height: 3, width: 2 } };
    let inner = InnerConfig { learn_rates: true, ..InnerConfig::new(Algorithm::Maml, 2) };
    let (clip, rates) = (format.values(), vec![0.5, 0.01]);
    let generator = Mlp::with_hidden(latent.width(), &[11, 17], clip, Activation::Relu, Activation::Tanh).unwrap();
    let discriminator = Mlp::with_hidden(clip, &[17, 11], 1, Activation::LeakyRelu, Activation::Linear).unwrap();
    let weights = VideoWeights { adversarial: 0.1, reconstruction: 1.0, motion: 0.5, texture: 0.3 };
    let frame = Some(FrameShape { height: format.height, width: format.width, channels: format.channels });
    let job = VideoJob {
        source: ClipSource::MovingShapes { format },
        latent: latent.clone(),
        objective: VideoConfig {
            generator,
            discriminator,
            frames: format.frames,
            frame,
            weights,
            adversarial: true,
            inner,
        },
        adversarial_from: ADVERSARIAL_FROM,
    };
    let shape = Shape { tasks: 3, shots: 3, queries: 2 };
    let config = config(Job::Video(Box::new(job.clone())), shape, rates);
    let pools = job.source.open(&latent.condition, config.seed, shape.shots + shape.queries, false).unwrap();
    let Shape { tasks, shots, queries } = shape;
    let batches = Episodes::new(pools.training.clone(), latent, tasks, shots, queries).unwrap();
    let expected = carry_out(CpuDevice::new(2).unwrap(), &config, job.objective.clone(), batches.clone(), Some(&pools));
    let got = carry_out(make(4), &config, job.objective.clone(), batches, Some(&pools));
    compare("video", &got, &expected);
}
