//! Sinusoid regression as published: `cargo run --release --example sinusoid -- [--seed 0,1,2] [--out sinusoid]`
//!
//! MAML as Finn, Abbeel & Levine (2017, section 5.1) and their code train it, beside what they compare it with, a network
//! trained on all tasks at once; and Reptile as Nichol, Achiam & Schulman (2018) and their code train it, which have another
//! network and another family of sinusoids. Mean squared error after 0, 1, 5 and 10 inner steps on 600 new tasks, as a table,
//! OUT.json and OUT.svg. Shown: parameters of one's own to begin with, minibatches, a schedule, curves over inner steps.

use std::f32::consts::TAU;
use std::ops::ControlFlow;
use std::time::Instant;

use clap::Parser;
use innerloop::chart::{Chart, Line};
use innerloop::device::cpu::CpuDevice;
use innerloop::model::{Activation, Mlp, Parameters};
use innerloop::objective::Loss;
use innerloop::rand::{RngExt, SeedableRng};
use innerloop::rand_chacha::ChaCha8Rng;
use innerloop::run::Estimate;
use innerloop::tasks::Sinusoids;
use innerloop::{
    Algorithm, Error, InnerConfig, MetaLearner, MetaOptimizer, OuterConfig, RateKind, Result, Schedule, Shape,
    SupervisedBatch, SupervisedConfig, Tasks, Trainer, TrainingConfig,
};
use serde::Serialize;
use serde_json::json;

/// Reproduces the sinusoid regression of Finn et al. (2017) and of Nichol et al. (2018)
#[derive(Parser)]
struct Arguments {
    /// Meta-steps of MAML, and steps of joint training; Reptile takes 3 for each 7
    #[arg(long, default_value_t = 70_000)]
    meta_steps: u64,
    /// Several make several runs
    #[arg(long, value_delimiter = ',', default_value = "0")]
    seed: Vec<u64>,
    /// Writes OUT.json and OUT.svg
    #[arg(long, default_value = "sinusoid")]
    out: String,
    /// 0 for all cores
    #[arg(long, default_value_t = 0)]
    threads: usize,
}

const TRAINING: Shape = Shape { tasks: 25, shots: 10, queries: 10 };
/// New tasks to judge on, each by so many points.
const JUDGED: usize = 600;
const POINTS: usize = 100;
/// The columns of the table.
const STEPS: [usize; 5] = [0, 1, 5, 10, 32];

/// How one network does on new tasks: `errors` after 0, 1, ... inner steps.
#[derive(Serialize)]
struct Row {
    label: String,
    rate: f64,
    errors: Vec<Estimate>,
}

/// As the authors' code begins: weights normal with deviation 0.01, cut off at two of them, biases 0.
fn small_weights(mlp: &Mlp, rng: &mut ChaCha8Rng) -> Parameters<f32> {
    let mut parameters = Parameters::zeros(mlp);
    for weight in (0..mlp.layers()).flat_map(|layer| mlp.weight_range(layer)) {
        let mut normal = || (-2.0 * (1.0 - rng.random::<f32>()).ln()).sqrt() * (TAU * rng.random::<f32>()).cos();
        let drawn = std::iter::repeat_with(&mut normal).find(|z| z.abs() <= 2.0);
        parameters.values_mut()[weight] = 0.01 * drawn.unwrap_or(0.0);
    }
    parameters
}

/// Trains, and says how far it is; begins with `from`, or with PyTorch's initialisation.
fn train(
    (name, device): (&str, &CpuDevice),
    (mlp, inner): (&Mlp, InnerConfig),
    config: TrainingConfig,
    steps: u64,
    from: Option<&Parameters<f32>>,
    tasks: impl Tasks<SupervisedConfig>,
) -> Result<Parameters<f32>> {
    let (begun, mut sum) = (Instant::now(), 0.0);
    let objective = SupervisedConfig { mlp: mlp.clone(), loss: Loss::Mse, inner };
    let mut trainer = Trainer::new(device.clone(), objective, config, tasks)?;
    if let Some(parameters) = from {
        trainer.set_parameters(std::slice::from_ref(parameters))?;
    }
    trainer.train(steps, |step| {
        sum += step.loss;
        if step.step.is_multiple_of(10_000) || step.step == steps {
            let (mean, seconds) = (sum / ((step.step - 1) % 10_000 + 1) as f64, begun.elapsed().as_secs_f64());
            eprintln!("{name}: step {}, query loss {mean:.3}, {seconds:.0} s", step.step);
            sum = 0.0;
        }
        ControlFlow::Continue(())
    })?;
    Ok(trainer.learner().parameters(0))
}

/// Adapts to new tasks of the family, with one rate, and judges after each of `steps` steps.
fn judge(
    device: &CpuDevice,
    (name, parameters): (&str, &Parameters<f32>),
    family: &Sinusoids,
    (shots, rate, steps): (usize, f64, usize),
    seed: u64,
) -> Result<Row> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    rng.set_stream(u64::MAX); // far from those of the meta-steps
    let mut batch = SupervisedBatch::default();
    family.draw_batch(&mut rng, JUDGED, shots, POINTS, &mut batch)?;
    let mlp = parameters.mlp().clone();
    let phi = MetaOptimizer::uniform(RateKind::PerLayerPerStep, &mlp, steps, rate)?;
    let objective = SupervisedConfig { mlp, loss: Loss::Mse, inner: InnerConfig::new(Algorithm::Maml, steps) };
    let shape = Shape { tasks: JUDGED, shots, queries: POINTS };
    let mut learner = MetaLearner::tracer(device.clone(), objective, shape, vec![phi])?;
    learner.set_parameters(0, parameters)?;
    let trace = learner.trace(batch.rows(), &mut rng)?;
    let errors = trace.losses.iter().map(|l| Estimate::of(&l.task.iter().map(|e| f64::from(*e)).collect::<Vec<_>>()));
    Ok(Row { label: format!("{name}, {shots} points"), rate, errors: errors.collect() })
}

fn run(device: &CpuDevice, meta_steps: u64, seed: u64) -> Result<Vec<Row>> {
    let family = Sinusoids::default();
    let mlp = Mlp::with_hidden(1, &[40, 40], 1, Activation::Relu, Activation::Linear)?;
    let random = small_weights(&mlp, &mut ChaCha8Rng::seed_from_u64(seed));
    let begin = Some(&random);
    let Shape { tasks, shots, queries } = TRAINING;
    let seeded = |shape, rate: f64| TrainingConfig { seed, ..TrainingConfig::new(shape, &[rate]) };

    let batches =
        |rng: &mut ChaCha8Rng, batch: &mut SupervisedBatch| family.draw_batch(rng, tasks, shots, queries, batch);
    let inner = InnerConfig::new(Algorithm::Maml, 1);
    let maml = train(("MAML", device), (&mlp, inner), seeded(TRAINING, 0.01), meta_steps, begin, batches)?;

    // No inner step: the query rows are all there is, and no one looks at the support row.
    let batches = |rng: &mut ChaCha8Rng, batch: &mut SupervisedBatch| family.draw_batch(rng, tasks, 1, shots, batch);
    let (inner, shape) =
        (InnerConfig::new(Algorithm::FirstOrderMaml, 0), Shape { shots: 1, queries: shots, ..TRAINING });
    let joint = train(("joint training", device), (&mlp, inner), seeded(shape, 0.01), meta_steps, begin, batches)?;

    let all_phases = Sinusoids { phase: (0.0, TAU), ..family };
    let tanh = Mlp::with_hidden(1, &[64, 64], 1, Activation::Tanh, Activation::Linear)?;
    // One task a step, known at 50 points, gone through in minibatches of 10.
    let x: [f32; 50] = std::array::from_fn(|i| -5.0 + 10.0 * i as f32 / 49.0);
    let batches = |rng: &mut ChaCha8Rng, batch: &mut SupervisedBatch| {
        let wave = all_phases.task(rng)?;
        let y = x.map(|x| wave.at(x));
        batch.push_task((&x, &y), (&x[..1], &y[..1]));
        Ok(())
    };
    let inner = InnerConfig { minibatch: Some(10), ..InnerConfig::new(Algorithm::Reptile, 5) };
    let steps = meta_steps * 3 / 7;
    let outer = OuterConfig { schedule: Schedule::Linear { steps, floor: 0.0 }, ..OuterConfig::sgd(0.1) };
    let config = TrainingConfig { outer, ..seeded(Shape { tasks: 1, shots: 50, queries: 1 }, 0.02) };
    let reptile = train(("Reptile", device), (&tanh, inner), config, steps, None, batches)?;

    // The rates of the joint network are those in the captions of the paper's figures.
    [
        (("MAML", &maml), &family, (5, 0.01, 10)),
        (("MAML", &maml), &family, (10, 0.01, 10)),
        (("joint training", &joint), &family, (5, 0.01, 10)),
        (("joint training", &joint), &family, (10, 0.02, 10)),
        (("random", &random), &family, (10, 0.01, 10)),
        (("Reptile, phases to 2 pi", &reptile), &all_phases, (10, 0.02, 32)),
    ]
    .map(|(network, family, adapting)| judge(device, network, family, adapting, seed))
    .into_iter()
    .collect()
}

fn print(title: &str, rows: &[Row]) {
    println!(
        "\n{title}\n\n| | rate | {} |\n|---|---|{}",
        STEPS.map(|s| s.to_string()).join(" | "),
        "---|".repeat(STEPS.len())
    );
    for row in rows {
        let cell = |e: &Estimate| format!("{:.3} ±{:.3}", e.mean, e.margin);
        let cells = STEPS.map(|step| row.errors.get(step).map_or(String::new(), cell));
        println!("| {} | {} | {} |", row.label, row.rate, cells.join(" | "));
    }
}

/// The means over the runs, with Student's intervals; of a single run, its own.
fn over_runs(mut runs: Vec<Vec<Row>>) -> Vec<Row> {
    let mut rows = runs.pop().unwrap_or_default();
    if !runs.is_empty() {
        for (i, row) in rows.iter_mut().enumerate() {
            for (step, error) in row.errors.iter_mut().enumerate() {
                let others = runs.iter().map(|run| run[i].errors[step].mean);
                *error = Estimate::of_few(&others.chain([error.mean]).collect::<Vec<_>>());
            }
        }
    }
    rows
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let device = CpuDevice::new(arguments.threads)?;
    let runs: Vec<_> =
        arguments.seed.iter().map(|seed| run(&device, arguments.meta_steps, *seed)).collect::<Result<_>>()?;
    for (seed, rows) in arguments.seed.iter().zip(&runs) {
        print(&format!("Seed {seed}: mean squared error, ± 95 % over {JUDGED} tasks, by inner steps"), rows);
    }
    let seeds: Vec<_> =
        arguments.seed.iter().zip(&runs).map(|(seed, rows)| json!({"seed": seed, "rows": rows})).collect();
    let mut record = json!({"meta_steps": arguments.meta_steps, "tasks_judged": JUDGED, "runs": seeds});
    let rows = over_runs(runs);
    if arguments.seed.len() > 1 {
        print(&format!("Means over {} seeds, ± 95 % over the seeds", arguments.seed.len()), &rows);
    }
    record["mean"] = json!(rows);
    let path = format!("{}.json", arguments.out);
    std::fs::write(&path, format!("{record:#}\n")).map_err(|e| Error::io(&path, "write", e))?;

    let lines = rows.iter().map(|row| {
        let shown = row.errors.iter().take(11).enumerate();
        let (points, margins) = shown.map(|(step, error)| ((step as f64, error.mean), error.margin)).unzip();
        Line { label: &row.label, points, margins }
    });
    let (title, x, y) = ("Sinusoid regression, new tasks", "inner steps", "mean squared error");
    let chart = Chart { title, x, y, lines: lines.collect(), marks: true, logarithmic: true };
    chart.write(format!("{}.svg", arguments.out).as_ref())
}
