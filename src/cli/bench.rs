use std::time::{Duration, Instant};

use clap::Args;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::json;

use super::{Compute, Precision, console, on_device};
use crate::device::Device;
use crate::model::{Activation, Mlp, Parameters};
use crate::objective::{Loss, VideoWeights};
use crate::{
    Algorithm, Error, InnerConfig, MetaLearner, MetaOptimizer, Objective, OuterConfig, RateKind, Result, Scalar, Shape,
    Strategy, SupervisedConfig, SupervisedRows, VideoConfig, VideoRows,
};

/// Measure meta-steps a second, tasks a second and flop a second, for each form and any shape
///
/// Times the meta-gradient of one supervised network, or of the video GAN with --discriminator-widths, on random data;
/// says what fraction of this machine's large-matrix rate was reached. --json prints one object a measurement.
#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// Widths of the network (or the generator): inputs, hidden, outputs
    #[arg(long, value_delimiter = ',', default_value = "128,256,512,4096")]
    widths: Vec<usize>,
    /// One activation a layer; ReLU and Tanh at the end when absent
    #[arg(long)]
    activations: Option<String>,
    /// Makes it the video GAN: hidden widths of the discriminator
    #[arg(long, value_delimiter = ',')]
    discriminator_widths: Vec<usize>,
    /// Frames in a clip, for the video GAN
    #[arg(long, default_value_t = 8)]
    frames: usize,
    #[arg(long, default_value = "maml")]
    algorithm: Algorithm,
    /// The supervised loss
    #[arg(long, default_value = "mse")]
    loss: Loss,
    /// Tasks in a meta-batch; several make several measurements
    #[arg(long, value_delimiter = ',', default_value = "16,64")]
    tasks: Vec<usize>,
    /// Inner steps; several make several measurements
    #[arg(long, value_delimiter = ',', default_value = "1,5")]
    steps: Vec<usize>,
    /// Support rows a task
    #[arg(long, default_value_t = 5)]
    shots: usize,
    /// Query rows a task
    #[arg(long, default_value_t = 5)]
    queries: usize,
    /// Time the outer optimizer's step (Adam) as well
    #[arg(long)]
    update: bool,
    /// Seconds a measurement takes at least; 0 for a single meta-step, to see what memory it takes
    #[arg(long, default_value_t = 1.0)]
    seconds: f64,
    #[command(flatten)]
    compute: Compute,
}

pub(super) fn run(arguments: &Arguments) -> Result<()> {
    if !(arguments.seconds.is_finite() && arguments.seconds >= 0.0) {
        return Err(Error::invalid("--seconds", arguments.seconds.to_string(), "0 or above"));
    }
    let compute = &arguments.compute;
    match compute.precision.unwrap_or(Precision::F32).of_matrices() {
        Some(precision) => {
            on_device!(compute, precision, device => run_on::<f32, _>(arguments, device, precision.name()))
        }
        None => run_on::<f64, _>(arguments, compute.cpu_for_f64()?, f64::NAME),
    }
}

fn run_on<T: Scalar, D: Device<T> + Clone>(arguments: &Arguments, device: D, precision: &str) -> Result<()> {
    let ceiling = matrix_rate::<T, D>(&device)?;
    say!("large-matrix rate: {:.0} GFLOP/s, {}, {precision}", ceiling / 1e9, device.label());
    say!(
        "{:>6} {:>5} {:>13} {:>10} {:>12} {:>11} {:>9} {:>6}",
        "tasks",
        "steps",
        "form",
        "ms",
        "meta-steps/s",
        "tasks/s",
        "GFLOP/s",
        "%"
    );
    let chosen = arguments.compute.strategy.0;
    let forms = chosen.map_or(vec![Strategy::Dual, Strategy::Materialised], |form| vec![form]);
    for &tasks in &arguments.tasks {
        for &steps in &arguments.steps {
            for &form in &forms {
                let shape = Shape { tasks, shots: arguments.shots, queries: arguments.queries };
                let m = measure::<T, D>(arguments, device.clone(), shape, steps, form)?;
                let seconds = m.median.as_secs_f64();
                let rate = m.flop / seconds;
                say!(
                    "{tasks:>6} {steps:>5} {:>13} {:>10.3} {:>12.1} {:>11.0} {:>9.1} {:>6.1}",
                    format!("{form}{}", if m.planned == form { "*" } else { " " }),
                    seconds * 1e3,
                    1.0 / seconds,
                    tasks as f64 / seconds,
                    rate / 1e9,
                    100.0 * rate / ceiling,
                );
                console::record(&json!({
                        "tasks": tasks, "steps": steps, "shots": arguments.shots, "queries": arguments.queries,
                        "widths": arguments.widths, "algorithm": arguments.algorithm, "strategy": form,
                        "planned": m.planned, "precision": precision, "device": device.label(),
                        "median_ms": seconds * 1e3, "min_ms": m.fastest.as_secs_f64() * 1e3, "repeats": m.repeats,
                        "meta_steps_per_second": 1.0 / seconds, "tasks_per_second": tasks as f64 / seconds,
                        "flop": m.flop, "flop_per_second": rate, "matrix_flop_per_second": ceiling,
                        "arena_mb": m.bytes as f64 / 1e6, "peak_memory_mb": peak_memory_mb(),
                }))?;
            }
        }
    }
    say!("* the planner's choice");
    Ok(())
}

struct Measurement {
    median: Duration,
    fastest: Duration,
    repeats: usize,
    flop: f64,
    bytes: usize,
    planned: Strategy,
}

fn measure<T: Scalar, D: Device<T>>(
    arguments: &Arguments,
    device: D,
    shape: Shape,
    steps: usize,
    form: Strategy,
) -> Result<Measurement> {
    let mut rng = ChaCha8Rng::seed_from_u64(0);
    let video = !arguments.discriminator_widths.is_empty();
    let activations = match &arguments.activations {
        Some(text) => Activation::parse_list(text)?,
        None => (2..arguments.widths.len()).map(|_| Activation::Relu).chain([Activation::Tanh]).collect(),
    };
    let mlp = Mlp::new(&arguments.widths, &activations)?;
    let inner = InnerConfig { strategy: Some(form), ..InnerConfig::new(arguments.algorithm, steps) };
    let phi = |mlp: &Mlp| MetaOptimizer::uniform(RateKind::PerLayerPerStep, mlp, steps, 0.01);
    let mut numbers = |rows: usize, width: usize| -> Vec<T> {
        (0..shape.tasks * rows * width).map(|_| T::from_f64(rng.random_range(-1.0..1.0))).collect()
    };
    let data = [
        numbers(shape.shots, mlp.inputs()),
        numbers(shape.shots, mlp.outputs()),
        numbers(shape.queries, mlp.inputs()),
        numbers(shape.queries, mlp.outputs()),
    ];
    if video {
        let hidden = &arguments.discriminator_widths;
        let discriminator = Mlp::with_hidden(mlp.outputs(), hidden, 1, Activation::LeakyRelu, Activation::Linear)?;
        let config = VideoConfig {
            generator: mlp.clone(),
            discriminator: discriminator.clone(),
            frames: arguments.frames,
            frame: None,
            weights: VideoWeights { adversarial: 0.1, reconstruction: 1.0, motion: 1.0, texture: 0.0 },
            adversarial: true,
            inner,
        };
        let rows = VideoRows { support_z: &data[0], support_x: &data[1], query_z: &data[2], query_x: &data[3] };
        time(arguments, device, config, shape, vec![phi(&mlp)?, phi(&discriminator)?], &[mlp, discriminator], rows)
    } else {
        let config = SupervisedConfig { mlp: mlp.clone(), loss: arguments.loss, inner };
        let rows = SupervisedRows { support_x: &data[0], support_y: &data[1], query_x: &data[2], query_y: &data[3] };
        time(arguments, device, config, shape, vec![phi(&mlp)?], &[mlp], rows)
    }
}

/// Repeats the meta-step after two that warm up, and takes the median; of no time at all, one step.
fn time<T: Scalar, D: Device<T>, O: Objective>(
    arguments: &Arguments,
    device: D,
    config: O,
    shape: Shape,
    phi: Vec<MetaOptimizer<T>>,
    mlps: &[Mlp],
    rows: O::Rows<'_, T>,
) -> Result<Measurement> {
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    let mut learner = MetaLearner::new(device, config, shape, phi)?;
    for (network, mlp) in mlps.iter().enumerate() {
        learner.set_parameters(network, &Parameters::initialise(mlp, &mut rng))?;
    }
    let outer = OuterConfig::adam(1e-6);
    let mut step = || -> Result<Duration> {
        let start = Instant::now();
        learner.run(rows, &mut rng)?;
        if arguments.update {
            learner.update(&outer)?;
        }
        Ok(start.elapsed())
    };
    let (warm_ups, repeats) = if arguments.seconds > 0.0 { (2, 3) } else { (0, 1) };
    for _ in 0..warm_ups {
        step()?;
    }
    let begun = Instant::now();
    let mut times = Vec::new();
    while times.len() < repeats || begun.elapsed().as_secs_f64() < arguments.seconds {
        times.push(step()?);
    }
    times.sort_unstable();
    Ok(Measurement {
        median: times[times.len() / 2],
        fastest: times[0],
        repeats: times.len(),
        flop: learner.cost().flop(),
        bytes: learner.bytes(),
        planned: learner.planned(),
    })
}

/// What this machine reaches on a 2048 x 2048 x 2048 product of the same precision, on the same device.
fn matrix_rate<T: Scalar, D: Device<T>>(device: &D) -> Result<f64> {
    use crate::device::{ArenaPlan, Corrections, Linear, LinearForward};
    const N: usize = 2048;
    let mut plan = ArenaPlan::default();
    let (x, w, b, out) = (plan.take(N, N), plan.take(N, N), plan.take(1, N), plan.take(N, N));
    let mut arena = device.arena(plan.elements())?;
    for region in [x, w] {
        device.fill(&mut arena, region, T::from_f64(0.5));
    }
    let operation = LinearForward {
        tasks: N,
        rows: 1,
        input: x,
        layer: Linear { weight: w.offset, bias: b.offset, task_stride: 0, inputs: N, outputs: N },
        corrections: Corrections::NONE,
        activation: Activation::Linear,
        output: out,
    };
    let mut best = f64::INFINITY;
    for _ in 0..5 {
        let start = Instant::now();
        device.linear_forward(&mut arena, &operation);
        // A device may still be at work: a download waits for it.
        device.download(&arena, out.elements(0, 1), &mut [T::ZERO]);
        best = best.min(start.elapsed().as_secs_f64());
    }
    Ok(2.0 * (N * N * N) as f64 / best)
}

/// The most memory this process has held, where the system tells.
fn peak_memory_mb() -> Option<f64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.trim().trim_end_matches("kB").trim().parse::<f64>().ok().map(|kb| kb / 1024.0)
}
