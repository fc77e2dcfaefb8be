//! Omniglot as published: `cargo run --release --example omniglot -- --data FOLDER [--ways 5] [--shots 1,5] [--seed 0,1,2]`
//!
//! The network without convolutions of Finn, Abbeel & Levine (2017, table 1): 28x28 pixels, 256-128-64-64 with batch
//! normalisation and ReLU, trained by MAML with one inner step, judged on new characters after up to 10. Accuracies as a
//! table, OUT.json and OUT.svg. Shown: batch normalisation, cross-entropy on one-hot targets, images of one's own, tracing.

use std::f32::consts::TAU;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::time::Instant;

use clap::Parser;
use image::imageops::{FilterType, resize};
use innerloop::chart::{Chart, Line};
use innerloop::device::cpu::CpuDevice;
use innerloop::model::{Activation, BatchNorm, Mlp, Parameters};
use innerloop::objective::Loss;
use innerloop::rand::seq::index::sample;
use innerloop::rand::{RngExt, SeedableRng, seq::SliceRandom};
use innerloop::rand_chacha::ChaCha8Rng;
use innerloop::{
    Algorithm, Error, InnerConfig, MetaLearner, MetaOptimizer, RateKind, Result, Shape, SupervisedBatch,
    SupervisedConfig, Trainer, TrainingConfig, run::Estimate,
};
use serde::{Deserialize, Serialize};

#[derive(Parser)]
struct Arguments {
    /// Folder with images_background_small1 and images_background_small2, or images_background and images_evaluation
    #[arg(long)]
    data: PathBuf,
    /// Characters a task
    #[arg(long, default_value_t = 5)]
    ways: usize,
    /// Support drawings of each character, and as many to judge by; several make an experiment each
    #[arg(long, value_delimiter = ',', default_value = "1")]
    shots: Vec<usize>,
    /// Inner learning rate
    #[arg(long, default_value_t = 0.4)]
    inner_rate: f64,
    /// Published: 60000, for the whole of Omniglot
    #[arg(long, default_value_t = 1000)]
    meta_steps: u64,
    /// Several make several runs
    #[arg(long, value_delimiter = ',', default_value = "0")]
    seed: Vec<u64>,
    /// Threads; 0 for all cores
    #[arg(long, default_value_t = 0)]
    threads: usize,
    /// What another program wrote as OUT.json, to stand beside this one's under the file's name
    #[arg(long)]
    beside: Option<PathBuf>,
    /// Writes OUT.json and OUT.svg
    #[arg(long, default_value = "omniglot")]
    out: String,
}

const SIDE: usize = 28;
const PIXELS: usize = SIDE * SIDE;
/// Tasks a meta-step, new tasks to judge on, and those of them at once; inner steps to judge after.
const TASKS: usize = 32;
const JUDGED: usize = 600;
const AT_ONCE: usize = 50;
const STEPS: usize = 10;

/// The drawings of one character, ink 1.
type Character = Vec<Vec<f32>>;

/// What an experiment came to.
#[derive(Serialize, Deserialize)]
struct Record {
    ways: usize,
    inner_rate: f64,
    meta_steps: u64,
    runs: Vec<Run>,
}

#[derive(Serialize, Deserialize)]
struct Run {
    seed: u64,
    shots: usize,
    /// Of a meta-step.
    milliseconds: f64,
    /// After 0, 1, ... inner steps, of 600 new tasks.
    accuracies: Vec<Estimate>,
}

fn entries(folder: &Path) -> Result<Vec<PathBuf>> {
    let read = |entry: std::io::Result<std::fs::DirEntry>| entry.map(|entry| entry.path());
    let entries = std::fs::read_dir(folder).and_then(|entries| entries.map(read).collect());
    let mut entries: Vec<_> = entries.map_err(|e| Error::io(folder, "read", e))?;
    entries.retain(|path| !path.file_name().is_some_and(|name| name.to_string_lossy().starts_with('.')));
    entries.sort();
    Ok(entries)
}

/// ALPHABET/CHARACTER/*.png, 105x105, made 28x28.
fn characters(folder: &Path) -> Result<Vec<Character>> {
    let drawing = |path: &PathBuf| {
        let image = image::open(path).map_err(|e| Error::file(path, e.to_string(), "unpack the set again"))?;
        let small = resize(&image.to_luma8(), SIDE as u32, SIDE as u32, FilterType::Lanczos3);
        Ok(small.pixels().map(|pixel| 1.0 - f32::from(pixel.0[0]) / 255.0).collect())
    };
    let mut characters = Vec::new();
    for alphabet in entries(folder)? {
        for character in entries(&alphabet)? {
            characters.push(entries(&character)?.iter().map(drawing).collect::<Result<_>>()?);
        }
    }
    Ok(characters)
}

/// The characters to train on, and those to judge on.
fn split(folder: &Path) -> Result<[Vec<Character>; 2]> {
    let sets = |names: [&str; 2]| Some(names.map(|name| folder.join(name))).filter(|s| s.iter().all(|s| s.is_dir()));
    if let Some([background, evaluation]) = sets(["images_background", "images_evaluation"]) {
        let mut all = [characters(&background)?, characters(&evaluation)?].concat();
        all.shuffle(&mut ChaCha8Rng::seed_from_u64(1));
        let rest = all.split_off(all.len().min(1200));
        return Ok([all, rest]);
    }
    if let Some([train, test]) = sets(["images_background_small1", "images_background_small2"]) {
        return Ok([characters(&train)?, characters(&test)?]);
    }
    let remedy = "download images_background_small1.zip and images_background_small2.zip (or, for the published split, \
                  images_background.zip and images_evaluation.zip) from the python folder of github.com/brendenlake/omniglot, \
                  unzip both there, and name that folder";
    Err(Error::file(folder, "holds no Omniglot", remedy))
}

/// A drawing, turned to the left so many times.
fn turned(drawing: &[f32], turns: usize) -> impl Iterator<Item = f32> {
    (0..PIXELS).map(move |at| {
        let (row, column) = (at / SIDE, at % SIDE);
        let (row, column) = match turns {
            0 => (row, column),
            1 => (column, SIDE - 1 - row),
            2 => (SIDE - 1 - row, SIDE - 1 - column),
            _ => (SIDE - 1 - column, row),
        };
        drawing[row * SIDE + column]
    })
}

/// Adds tasks of so many characters, each turned its own way, with as many query drawings as support drawings.
fn draw(
    rng: &mut ChaCha8Rng,
    from: &[Character],
    (tasks, ways, shots): (usize, usize, usize),
    to: &mut SupervisedBatch,
) {
    for _ in 0..tasks {
        let (mut x, mut y) = ([Vec::new(), Vec::new()], Vec::new());
        for (way, character) in sample(rng, from.len(), ways).into_iter().enumerate() {
            let (drawings, turns) = (&from[character], rng.random_range(0..4));
            for (i, drawing) in sample(rng, drawings.len(), 2 * shots).into_iter().enumerate() {
                x[i / shots].extend(turned(&drawings[drawing], turns));
            }
            y.extend((0..shots * ways).map(|i| if i % ways == way { 1.0 } else { 0.0 }));
        }
        to.push_task((&x[0], &y), (&x[1], &y));
    }
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

/// After 0, 1, ... inner steps the share of query drawings told right, over new tasks.
fn judge(
    device: &CpuDevice,
    parameters: &Parameters<f32>,
    from: &[Character],
    shots: usize,
    rate: f64,
    seed: u64,
) -> Result<Vec<Estimate>> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    rng.set_stream(u64::MAX); // far from those of the meta-steps
    let (mlp, ways) = (parameters.mlp().clone(), parameters.mlp().outputs());
    let phi = MetaOptimizer::uniform(RateKind::PerLayerPerStep, &mlp, STEPS, rate)?;
    let objective = SupervisedConfig { mlp, loss: Loss::CrossEntropy, inner: InnerConfig::new(Algorithm::Maml, STEPS) };
    let shape = Shape { tasks: AT_ONCE, shots: ways * shots, queries: ways * shots };
    let mut learner = MetaLearner::tracer(device.clone(), objective, shape, vec![phi])?;
    learner.set_parameters(0, parameters)?;
    let mut accuracies = vec![Vec::new(); STEPS + 1];
    let largest = |row: &[f32]| (0..ways).max_by(|a, b| row[*a].total_cmp(&row[*b]));
    for _ in 0..JUDGED / AT_ONCE {
        let mut batch = SupervisedBatch::default();
        draw(&mut rng, from, (AT_ONCE, ways, shots), &mut batch);
        let trace = learner.trace(batch.rows(), &mut rng)?;
        for (accuracies, logits) in accuracies.iter_mut().zip(&trace.outputs) {
            accuracies.extend(logits.chunks_exact(shape.queries * ways).map(|task| {
                let told = task.chunks_exact(ways).enumerate();
                let right = told.filter(|(row, logits)| largest(logits) == Some(row / shots)).count();
                right as f64 / shape.queries as f64
            }));
        }
    }
    Ok(accuracies.iter().map(|values| Estimate::of(values)).collect())
}

fn run(
    device: &CpuDevice,
    [train, test]: &[Vec<Character>; 2],
    arguments: &Arguments,
    shots: usize,
    seed: u64,
) -> Result<Run> {
    let Arguments { ways, inner_rate, meta_steps, .. } = *arguments;
    let mlp = Mlp::with_hidden(PIXELS, &[256, 128, 64, 64], ways, Activation::Relu, Activation::Linear)?
        .with_batch_norm(BatchNorm::default())?;
    let initial = small_weights(&mlp, &mut ChaCha8Rng::seed_from_u64(seed));
    let objective = SupervisedConfig { mlp, loss: Loss::CrossEntropy, inner: InnerConfig::new(Algorithm::Maml, 1) };
    let shape = Shape { tasks: TASKS, shots: ways * shots, queries: ways * shots };
    let config = TrainingConfig { seed, ..TrainingConfig::new(shape, &[inner_rate]) };
    let tasks = |rng: &mut ChaCha8Rng, batch: &mut SupervisedBatch| {
        draw(rng, train, (TASKS, ways, shots), batch);
        Ok(())
    };
    let mut trainer = Trainer::new(device.clone(), objective, config, tasks)?;
    trainer.set_parameters(&[initial])?;
    let start = Instant::now();
    trainer.train(meta_steps, |step| {
        if step.step.is_multiple_of(500) {
            eprintln!("{shots} shots, seed {seed}: step {} of {meta_steps}, query loss {:.3}", step.step, step.loss);
        }
        ControlFlow::Continue(())
    })?;
    let milliseconds = 1e3 * start.elapsed().as_secs_f64() / meta_steps as f64;
    let accuracies = judge(device, &trainer.learner().parameters(0), test, shots, inner_rate, seed)?;
    Ok(Run { seed, shots, milliseconds, accuracies })
}

/// The means over a program's runs with so many shots, with Student's intervals; of a single run, its own.
fn over_seeds(record: &Record, shots: usize) -> Vec<Estimate> {
    let runs: Vec<_> = record.runs.iter().filter(|run| run.shots == shots).collect();
    let mean = |step: usize| match runs[..] {
        [run] => run.accuracies[step],
        _ => Estimate::of_few(&runs.iter().map(|run| run.accuracies[step].mean).collect::<Vec<_>>()),
    };
    (0..runs.iter().map(|run| run.accuracies.len()).min().unwrap_or(0)).map(mean).collect()
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let (ways, most) = (arguments.ways, arguments.shots.iter().copied().max().unwrap_or(0));
    let sets = split(&arguments.data)?;
    if let Some(drawings) = sets.iter().flatten().map(Vec::len).min().filter(|drawings| *drawings < 2 * most) {
        return Err(Error::invalid(
            "shots",
            most.to_string(),
            format!("at most {}, half of the drawings", drawings / 2),
        ));
    }
    if let Some(characters) = sets.iter().map(Vec::len).min().filter(|characters| *characters < ways) {
        return Err(Error::invalid(
            "ways",
            ways.to_string(),
            format!("at most {characters}, the characters there are"),
        ));
    }
    let device = CpuDevice::new(arguments.threads)?;
    let Arguments { inner_rate, meta_steps, .. } = arguments;
    let mut record = Record { ways, inner_rate, meta_steps, runs: Vec::new() };
    for (shots, seed) in arguments.shots.iter().flat_map(|shots| arguments.seed.iter().map(move |seed| (*shots, *seed)))
    {
        record.runs.push(run(&device, &sets, &arguments, shots, seed)?);
    }
    let write = |path: &str, text: String| std::fs::write(path, text).map_err(|e| Error::io(path, "write", e));
    let text = serde_json::to_string_pretty(&record).map_err(|e| Error::invalid("record", e.to_string(), "numbers"))?;
    write(&format!("{}.json", arguments.out), text + "\n")?;

    let mut programs = vec![("innerloop".to_owned(), record)];
    if let Some(path) = &arguments.beside {
        let text = std::fs::read_to_string(path).map_err(|e| Error::io(path, "read", e))?;
        let other =
            serde_json::from_str(&text).map_err(|e| Error::file(path, e.to_string(), "name another OUT.json"))?;
        let stem = path.file_stem().unwrap_or_default().to_string_lossy();
        programs.push((stem.into_owned(), other));
    }
    println!(
        "\nAccuracy in %, {ways} ways, {JUDGED} new tasks a seed, ± 95 % over the seeds (of one: over the tasks)\n"
    );
    println!("| inner steps | seeds | ms a meta-step | 0 | 1 | 3 | 10 |\n|---|---|---|---|---|---|---|");
    let mut lines = Vec::new();
    for (shots, (name, record)) in arguments.shots.iter().flat_map(|shots| programs.iter().map(move |p| (*shots, p))) {
        let accuracies = over_seeds(record, shots);
        if accuracies.is_empty() {
            continue;
        }
        let times: Vec<f64> = record.runs.iter().filter(|r| r.shots == shots).map(|r| r.milliseconds).collect();
        let label = format!("{name}, {shots} shots");
        let cell = |step: usize| {
            accuracies.get(step).map(|a| format!("{:.1} ±{:.1}", 100.0 * a.mean, 100.0 * a.margin)).unwrap_or_default()
        };
        let time = times.iter().sum::<f64>() / times.len() as f64;
        println!("| {label} | {} | {time:.1} | {} |", times.len(), [0, 1, 3, 10].map(cell).join(" | "));
        lines.push((label, accuracies));
    }
    let lines = lines.iter().map(|(label, accuracies)| {
        let percent = |value: f64| 100.0 * value;
        let points = accuracies.iter().zip(0..).map(|(a, step)| (f64::from(step), percent(a.mean))).collect();
        Line { label, points, margins: accuracies.iter().map(|a| percent(a.margin)).collect() }
    });
    let (title, x, y) = ("Omniglot, new characters", "inner steps", "accuracy in %");
    let chart = Chart { title, x, y, lines: lines.collect(), marks: true, logarithmic: false };
    chart.write(format!("{}.svg", arguments.out).as_ref())
}
