use std::time::{Duration, Instant};

use clap::Args;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::json;

use super::ceilings::{self, Layer, Memory};
use super::explain::{Ceilings, Explanation};
use super::{Compute, Precision, console, on_device};
use crate::device::{Device, Explained};
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
///
/// --explain shows where the time goes: the plan, and a line for each kind of operation with its calls, flop (those of the
/// dual form's corrections apart as well), bytes, time, and its floor: the longer of flop at the large-matrix rate and bytes
/// at the rate of a memory larger than the caches. What stays in a cache can beat a floor set by bytes.
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
    /// Measure one layer instead, act(x W^T + b), of so many rows, inputs and outputs, with ReLU
    #[arg(long, num_args = 3, value_names = ["ROWS", "INPUTS", "OUTPUTS"])]
    product: Vec<usize>,
    /// Time the outer optimizer's step (Adam) as well
    #[arg(long)]
    update: bool,
    /// Leave out the copy of a meta-batch's rows to the device: those of the first meta-step are taken again
    #[arg(long)]
    keep_rows: bool,
    /// Show the plan, and each stage's flop, bytes, floor and time; without --strategy, of the planner's form alone
    #[arg(long)]
    explain: bool,
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
    match compute.precision.unwrap_or(Precision::F32).of_matrices(compute.device)? {
        Some(precision) => {
            on_device!(compute, precision, device => run_on::<f32, _>(arguments, device, precision.name()))
        }
        None => run_on::<f64, _>(arguments, compute.cpu_for_f64()?, f64::NAME),
    }
}

fn run_on<T: Scalar, D: Device<T> + Clone>(arguments: &Arguments, device: D, precision: &str) -> Result<()> {
    let ceiling = ceilings::matrix_rate::<T, D>(&device)?;
    say!("large-matrix rate: {:.0} GFLOP/s, {}, {precision}", ceiling / 1e9, device.label());
    if let [rows, inputs, outputs] = arguments.product[..] {
        let Layer { seconds, rounded } = ceilings::product::<T, D>(&device, [rows, inputs, outputs], Activation::Relu)?;
        let rate = |seconds| 2.0 * (rows * inputs * outputs) as f64 / seconds;
        let tell = |seconds: f64| format!("{:.1} us, {:.1} GFLOP/s", seconds * 1e6, rate(seconds) / 1e9);
        say!("{rows} rows, {inputs} to {outputs}: {}", tell(seconds));
        if let Some(seconds) = rounded {
            say!("with rows and outputs in {precision}: {}", tell(seconds));
        }
        return console::record(&json!({
            "rows": rows, "inputs": inputs, "outputs": outputs, "precision": precision, "device": device.label(),
            "median_ms": seconds * 1e3, "flop_per_second": rate(seconds), "matrix_flop_per_second": ceiling,
            "rounded_ms": rounded.map(|seconds| seconds * 1e3),
        }));
    }
    let memory = if arguments.explain { Some(ceilings::memory::<T, D>(&device)?) } else { None };
    if let Some(Memory { bytes_per_second, bytes }) = memory {
        say!("memory: {:.1} GB/s, on {:.0} MB", bytes_per_second / 1e9, bytes as f64 / 1e6);
    }
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
    let forms = match arguments.compute.strategy.0 {
        Some(form) => vec![Some(form)],
        None if arguments.explain => vec![None],
        None => Strategy::ALL.map(Some).to_vec(),
    };
    for &tasks in &arguments.tasks {
        for &steps in &arguments.steps {
            let mut possible = [true; Strategy::ALL.len()];
            for &form in &forms {
                if form.is_some_and(|form| !possible[form as usize]) && forms.len() > 1 {
                    continue;
                }
                let shape = Shape { tasks, shots: arguments.shots, queries: arguments.queries };
                let m = measure::<T, D>(arguments, device.clone(), shape, steps, form, &mut || {})?;
                possible = m.estimates.map(|estimate| estimate.is_some());
                let (seconds, form) = (m.median.as_secs_f64(), m.form);
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
                let mut record = json!({
                        "tasks": tasks, "steps": steps, "shots": arguments.shots, "queries": arguments.queries,
                        "widths": arguments.widths, "algorithm": arguments.algorithm, "strategy": form,
                        "planned": m.planned, "precision": precision, "device": device.label(),
                        "median_ms": seconds * 1e3, "min_ms": m.fastest.as_secs_f64() * 1e3, "repeats": m.repeats,
                        "meta_steps_per_second": 1.0 / seconds, "tasks_per_second": tasks as f64 / seconds,
                        "flop": m.flop, "flop_per_second": rate, "matrix_flop_per_second": ceiling,
                        "arena_mb": m.bytes as f64 / 1e6, "peak_memory_mb": peak_memory_mb(),
                });
                if let Some(memory) = memory {
                    let ceilings = Ceilings { matrix: ceiling, memory: memory.bytes_per_second };
                    let explanation = explain::<T, D>(arguments, &device, shape, steps, &m, &ceilings)?;
                    let [dual, materialised, resident, folded] = m.estimates;
                    record["explanation"] = json!({
                        "estimates": {
                            "dual": dual, "materialised": materialised, "resident": resident, "folded": folded,
                        },
                        "lanes": m.lanes,
                        "memory_bytes_per_second": memory.bytes_per_second, "stages": explanation.stages,
                        "total": explanation.total,
                    });
                }
                console::record(&record)?;
            }
        }
    }
    say!("* the planner's choice");
    Ok(())
}

/// Says how the meta-step is planned, and where its time goes: measured anew, with an account of every operation.
fn explain<T: Scalar, D: Device<T> + Clone>(
    arguments: &Arguments,
    device: &D,
    shape: Shape,
    steps: usize,
    plain: &Measurement,
    ceilings: &Ceilings,
) -> Result<Explanation> {
    let of = |estimate: Option<f64>| estimate.map_or("none".into(), |flop| format!("{:.4} GFLOP", flop / 1e9));
    let [dual, materialised, resident, folded] = plain.estimates.map(of);
    let by = if arguments.compute.strategy.0.is_some() { "as asked for" } else { "the planner's choice" };
    let estimates = format!("dual {dual}, materialised {materialised}, resident {resident}, folded {folded}");
    say!("plan: {}, {by}; estimates, as large products: {estimates}", plain.form);
    let lanes = if plain.lanes == 1 { "1 lane".into() } else { format!("{} lanes", plain.lanes) };
    say!("      {lanes}, arena {:.3} MB", plain.bytes as f64 / 1e6);
    let explained = Explained::new(device.clone());
    let mut accounts = Vec::new();
    let mut take = || accounts.push(explained.take());
    let accounted = measure::<T, _>(arguments, explained.clone(), shape, steps, Some(plain.form), &mut take)?;
    // The first holds what came before the first meta-step that counts.
    let explanation = Explanation::new(&accounts[1..], ceilings, [&accounted, plain].map(|m| m.median.as_secs_f64()));
    explanation.say();
    Ok(explanation)
}

struct Measurement {
    median: Duration,
    fastest: Duration,
    repeats: usize,
    flop: f64,
    bytes: usize,
    planned: Strategy,
    form: Strategy,
    /// Of each form, what the planner compares: [`MetaLearner::estimate_in`].
    estimates: [Option<f64>; Strategy::ALL.len()],
    lanes: usize,
}

/// `mark` is called before the first meta-step that is timed and after each.
fn measure<T: Scalar, D: Device<T>>(
    arguments: &Arguments,
    device: D,
    shape: Shape,
    steps: usize,
    form: Option<Strategy>,
    mark: &mut dyn FnMut(),
) -> Result<Measurement> {
    let mut rng = ChaCha8Rng::seed_from_u64(0);
    let video = !arguments.discriminator_widths.is_empty();
    let activations = match &arguments.activations {
        Some(text) => Activation::parse_list(text)?,
        None => (2..arguments.widths.len()).map(|_| Activation::Relu).chain([Activation::Tanh]).collect(),
    };
    let mlp = Mlp::new(&arguments.widths, &activations)?;
    let inner = InnerConfig { strategy: form, ..InnerConfig::new(arguments.algorithm, steps) };
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
        let phi = vec![phi(&mlp)?, phi(&discriminator)?];
        let learner = learner(device, config, shape, phi, &[mlp, discriminator])?;
        time(arguments, learner, rows, mark)
    } else {
        let config = SupervisedConfig { mlp: mlp.clone(), loss: arguments.loss, inner };
        let rows = SupervisedRows { support_x: &data[0], support_y: &data[1], query_x: &data[2], query_y: &data[3] };
        time(arguments, learner(device, config, shape, vec![phi(&mlp)?], &[mlp])?, rows, mark)
    }
}

/// A learner with random parameters.
fn learner<T: Scalar, D: Device<T>, O: Objective>(
    device: D,
    config: O,
    shape: Shape,
    phi: Vec<MetaOptimizer<T>>,
    mlps: &[Mlp],
) -> Result<MetaLearner<T, D, O>> {
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    let mut learner = MetaLearner::new(device, config, shape, phi)?;
    for (network, mlp) in mlps.iter().enumerate() {
        learner.set_parameters(network, &Parameters::initialise(mlp, &mut rng))?;
    }
    Ok(learner)
}

/// Repeats the meta-step after two that warm up, and takes the median; of no time at all, one step.
fn time<T: Scalar, D: Device<T>, O: Objective>(
    arguments: &Arguments,
    mut learner: MetaLearner<T, D, O>,
    rows: O::Rows<'_, T>,
    mark: &mut dyn FnMut(),
) -> Result<Measurement> {
    let mut rng = ChaCha8Rng::seed_from_u64(2);
    let outer = OuterConfig::adam(1e-6);
    let (mut submitted, mut begun) = (0, false);
    let mut step = || -> Result<Duration> {
        let start = Instant::now();
        let again = arguments.keep_rows && std::mem::replace(&mut begun, true);
        match (arguments.update, again) {
            (false, false) => drop(learner.run(rows, &mut rng)?),
            (false, true) => drop(learner.run_again(&mut rng)?),
            (true, false) => learner.submit(rows, &outer, &mut rng)?,
            (true, true) => learner.submit_again(&outer, &mut rng)?,
        }
        if !arguments.update {
            return Ok(start.elapsed());
        }
        // On a device that goes on by itself the one before is waited for, so that it always has something to do.
        if submitted == learner.may_submit() - 1 {
            learner.wait()?;
        } else {
            submitted += 1;
        }
        Ok(start.elapsed())
    };
    let (warm_ups, repeats) = if arguments.seconds > 0.0 { (2, 3) } else { (0, 1) };
    for _ in 0..warm_ups {
        step()?;
    }
    mark();
    let begun = Instant::now();
    let mut times = Vec::new();
    while times.len() < repeats || begun.elapsed().as_secs_f64() < arguments.seconds {
        times.push(step()?);
        mark();
    }
    times.sort_unstable();
    Ok(Measurement {
        median: times[times.len() / 2],
        fastest: times[0],
        repeats: times.len(),
        flop: learner.cost().flop(),
        bytes: learner.bytes(),
        planned: learner.planned(),
        form: learner.strategy(),
        estimates: Strategy::ALL.map(|form| learner.estimate_in(form)),
        lanes: learner.lanes(),
    })
}

/// The most memory this process has held, where the system tells.
fn peak_memory_mb() -> Option<f64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.trim().trim_end_matches("kB").trim().parse::<f64>().ok().map(|kb| kb / 1024.0)
}
