//! Sinusoid regression as published: `cargo run --release --example sinusoid -- [--seed 0,1,2] [--out sinusoid]`
//!
//! MAML as Finn, Abbeel & Levine (2017, section 5.1) train it, beside a network trained on all tasks at once; Reptile as the
//! code of Nichol, Achiam & Schulman (2018) does, with another network and another family. Mean squared error on new tasks,
//! as a table, OUT.json and OUT.svg. Shown: parameters to begin with, minibatches, a schedule, curves over inner steps.

use std::f32::consts::TAU;
use std::ops::ControlFlow;

use clap::Parser;
use innerloop::chart::{Chart, Line};
use innerloop::device::cpu::CpuDevice;
use innerloop::model::{Activation, Mlp, Parameters};
use innerloop::objective::Loss;
use innerloop::rand::{RngExt, SeedableRng};
use innerloop::rand_chacha::ChaCha8Rng;
use innerloop::{
    Algorithm, Error, InnerConfig, Losses, MetaLearner, MetaOptimizer, OuterConfig, RateKind, Result, Schedule, Shape,
    SupervisedBatch, SupervisedConfig, Tasks, Trainer, TrainingConfig, run::Estimate, tasks::Sinusoids,
};
use serde::Serialize;
use serde_json::json;

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
}

/// New tasks to judge on, each by so many points.
const JUDGED: usize = 600;
const POINTS: usize = 100;
/// Beyond this error, four times the largest square there is to predict, an adaptation has diverged.
const DIVERGED: f64 = 100.0;

/// After 0, 1, ... inner steps the error on new tasks that have not diverged, and how many have after the last.
#[derive(Clone, Serialize)]
struct Row {
    label: String,
    rate: f64,
    errors: Vec<Estimate>,
    diverged: usize,
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

/// Trains from these parameters on; says how far it is.
fn train(
    (name, device): (&str, &CpuDevice),
    (from, inner): (&Parameters<f32>, InnerConfig),
    (config, steps): (TrainingConfig, u64),
    tasks: impl Tasks<SupervisedConfig>,
) -> Result<Parameters<f32>> {
    let objective = SupervisedConfig { mlp: from.mlp().clone(), loss: Loss::Mse, inner };
    let mut trainer = Trainer::new(device.clone(), objective, config, tasks)?;
    trainer.set_parameters(std::slice::from_ref(from))?;
    trainer.train(steps, |step| {
        if step.step.is_multiple_of(10_000) {
            eprintln!("{name}: step {} of {steps}, query loss {:.3}", step.step, step.loss);
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
    let sound = |l: &Losses<f32>| l.task.iter().map(|e| f64::from(*e)).filter(|e| *e < DIVERGED).collect();
    let sound: Vec<Vec<f64>> = trace.losses.iter().map(sound).collect();
    let (errors, diverged) = (sound.iter().map(|e| Estimate::of(e)).collect(), JUDGED - sound[steps].len());
    Ok(Row { label: format!("{name}, {shots} points"), rate, errors, diverged })
}

fn run(device: &CpuDevice, meta_steps: u64, seed: u64) -> Result<Vec<Row>> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let family = Sinusoids::default();
    let relu = Mlp::with_hidden(1, &[40, 40], 1, Activation::Relu, Activation::Linear)?;
    let random = small_weights(&relu, &mut rng);
    let shape = |tasks, shots, queries| Shape { tasks, shots, queries };
    let seeded = |shape, rate: f64| TrainingConfig { seed, ..TrainingConfig::new(shape, &[rate]) };

    let batches = |rng: &mut ChaCha8Rng, batch: &mut SupervisedBatch| family.draw_batch(rng, 25, 10, 10, batch);
    let (config, inner) = (seeded(shape(25, 10, 10), 0.01), InnerConfig::new(Algorithm::Maml, 1));
    let maml = train(("MAML", device), (&random, inner), (config, meta_steps), batches)?;

    // Without an inner step the query rows are all that counts.
    let batches = |rng: &mut ChaCha8Rng, batch: &mut SupervisedBatch| family.draw_batch(rng, 25, 1, 10, batch);
    let (config, inner) = (seeded(shape(25, 1, 10), 0.01), InnerConfig::new(Algorithm::FirstOrderMaml, 0));
    let joint = train(("joint training", device), (&random, inner), (config, meta_steps), batches)?;

    // One task a step, known at 50 points; each of 5 inner steps sees 10 of them.
    let all_phases = Sinusoids { phase: (0.0, TAU), ..family };
    let x: [f32; 50] = std::array::from_fn(|i| -5.0 + 10.0 * i as f32 / 49.0);
    let batches = |rng: &mut ChaCha8Rng, batch: &mut SupervisedBatch| {
        let wave = all_phases.task(rng)?;
        let y = x.map(|x| wave.at(x));
        batch.push_task((&x, &y), (&x[..1], &y[..1]));
        Ok(())
    };
    let tanh = Mlp::with_hidden(1, &[64, 64], 1, Activation::Tanh, Activation::Linear)?;
    let initial = Parameters::initialise(&tanh, &mut rng);
    let inner = InnerConfig { minibatch: Some(10), ..InnerConfig::new(Algorithm::Reptile, 5) };
    let steps = meta_steps * 3 / 7;
    let outer = OuterConfig { schedule: Schedule::Linear { steps, floor: 0.0 }, ..OuterConfig::sgd(0.1) };
    let config = TrainingConfig { outer, ..seeded(shape(1, 50, 1), 0.02) };
    let reptile = train(("Reptile", device), (&initial, inner), (config, steps), batches)?;

    // The rates of the joint network are those in the captions of the paper's figures.
    [
        (("MAML", &maml), &family, (5, 0.01, 10)),
        (("MAML", &maml), &family, (10, 0.01, 10)),
        (("joint training", &joint), &family, (5, 0.01, 10)),
        (("joint training", &joint), &family, (10, 0.02, 10)),
        (("random", &random), &family, (10, 0.01, 10)),
        (("Reptile, phases to 2 pi", &reptile), &all_phases, (10, 0.02, 32)),
    ]
    .into_iter()
    .map(|(network, family, adapting)| judge(device, network, family, adapting, seed))
    .collect()
}

fn print(title: &str, rows: &[Row]) {
    println!("\n{title}\n\n| inner steps | rate | 0 | 1 | 5 | 10 | 32 | diverged |\n|---|---|---|---|---|---|---|---|");
    for row in rows {
        let cell = |error: &Estimate| format!("{:.3} ±{:.3}", error.mean, error.margin);
        let cells = [0, 1, 5, 10, 32].map(|step| row.errors.get(step).map(cell).unwrap_or_default());
        println!("| {} | {} | {} | {} |", row.label, row.rate, cells.join(" | "), row.diverged);
    }
}

/// The means over the runs, with Student's intervals, and all that diverged; of a single run, its own.
fn over_runs(runs: &[Vec<Row>]) -> Vec<Row> {
    let means = |i: usize, step: usize| runs.iter().map(|run| run[i].errors[step].mean).collect::<Vec<_>>();
    let mut rows = runs.first().cloned().unwrap_or_default();
    for (i, row) in rows.iter_mut().enumerate().filter(|_| runs.len() > 1) {
        row.errors = (0..row.errors.len()).map(|step| Estimate::of_few(&means(i, step))).collect();
        row.diverged = runs.iter().map(|run| run[i].diverged).sum();
    }
    rows
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let device = CpuDevice::new(0)?;
    let mut runs = Vec::new();
    for seed in &arguments.seed {
        runs.push(run(&device, arguments.meta_steps, *seed)?);
        print(&format!("Seed {seed}: mean squared error, ± 95 % over {JUDGED} tasks"), &runs[runs.len() - 1]);
    }
    let rows = over_runs(&runs);
    if runs.len() > 1 {
        print(&format!("Means over {} seeds, ± 95 % over the seeds", runs.len()), &rows);
    }
    let Arguments { meta_steps, seed, .. } = &arguments;
    let record = json!({"meta_steps": meta_steps, "seeds": seed, "tasks_judged": JUDGED, "runs": runs, "mean": rows});
    let path = format!("{}.json", arguments.out);
    std::fs::write(&path, format!("{record:#}\n")).map_err(|e| Error::io(&path, "write", e))?;

    let lines = rows.iter().map(|row| {
        let shown = row.errors.iter().take(11).zip(0..).map(|(e, step)| ((f64::from(step), e.mean), e.margin));
        let (points, margins) = shown.unzip();
        Line { label: &row.label, points, margins }
    });
    let (title, x, y) = ("Sinusoid regression, new tasks", "inner steps", "mean squared error");
    let chart = Chart { title, x, y, lines: lines.collect(), marks: true, logarithmic: true };
    chart.write(format!("{}.svg", arguments.out).as_ref())
}
