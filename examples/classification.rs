//! Few-shot classification on data of your own: `cargo run --release --example classification`
//!
//! 5-way, 3-shot: a task is five classes, each a cloud of points round its own random centre in a random plane of a
//! 16-dimensional space. Shown: cross-entropy on one-hot targets, accuracy before and after adapting, first-order MAML beside
//! MAML.

use std::ops::ControlFlow;

use innerloop::device::cpu::CpuDevice;
use innerloop::model::{Activation, Mlp, Parameters};
use innerloop::objective::Loss;
use innerloop::rand::{RngExt, SeedableRng};
use innerloop::rand_chacha::ChaCha8Rng;
use innerloop::{
    Algorithm, InnerConfig, Result, Shape, SupervisedBatch, SupervisedConfig, Trainer, TrainingConfig, forward,
};

const INPUTS: usize = 16;
const WAYS: usize = 5;
const SHOTS: usize = 3;
const QUERIES: usize = 5;
const TASKS: usize = 16;

/// Inputs `[rows, INPUTS]` and one-hot targets `[rows, WAYS]`.
type Rows = (Vec<f32>, Vec<f32>);

/// Draws a task: support rows, then query rows, class after class.
fn draw_task(rng: &mut ChaCha8Rng) -> [Rows; 2] {
    let mut vector = |scale: f32| -> [f32; INPUTS] { std::array::from_fn(|_| scale * rng.random_range(-1.0..1.0)) };
    let plane = [vector(1.0), vector(1.0)];
    let centres: [[f32; INPUTS]; WAYS] = std::array::from_fn(|class| {
        let (sin, cos) = (class as f32 * std::f32::consts::TAU / WAYS as f32).sin_cos();
        std::array::from_fn(|i| cos * plane[0][i] + sin * plane[1][i])
    });
    [SHOTS, QUERIES].map(|count| {
        let (mut x, mut y) = (Vec::new(), Vec::new());
        for (class, centre) in centres.iter().enumerate() {
            for _ in 0..count {
                let noise = vector(0.6);
                x.extend(centre.iter().zip(noise).map(|(c, n)| c + n));
                y.extend((0..WAYS).map(|way| if way == class { 1.0 } else { 0.0 }));
            }
        }
        (x, y)
    })
}

/// The fraction of rows whose largest logit is at the right class.
fn accuracy(device: &CpuDevice, parameters: &Parameters<f32>, (x, y): &Rows) -> Result<f64> {
    let largest = |row: &[f32]| (0..WAYS).max_by(|a, b| row[*a].total_cmp(&row[*b]));
    let logits = forward(device, parameters, x)?;
    let rows = logits.chunks_exact(WAYS).zip(y.chunks_exact(WAYS));
    let right = rows.filter(|(logits, target)| largest(logits) == largest(target)).count();
    Ok((right * WAYS) as f64 / y.len() as f64)
}

fn main() -> Result<()> {
    let device = CpuDevice::new(0)?;
    for algorithm in [Algorithm::Maml, Algorithm::FirstOrderMaml] {
        let mlp = Mlp::with_hidden(INPUTS, &[64, 64], WAYS, Activation::Relu, Activation::Linear)?;
        let inner = InnerConfig { learn_rates: true, ..InnerConfig::new(algorithm, 3) };
        let objective = SupervisedConfig { mlp, loss: Loss::CrossEntropy, inner };
        let shape = Shape { tasks: TASKS, shots: WAYS * SHOTS, queries: WAYS * QUERIES };
        let tasks = |rng: &mut ChaCha8Rng, batch: &mut SupervisedBatch| {
            for _ in 0..TASKS {
                let [support, query] = draw_task(rng);
                batch.push_task((&support.0, &support.1), (&query.0, &query.1));
            }
            Ok(())
        };
        let mut trainer = Trainer::new(device.clone(), objective, TrainingConfig::new(shape, &[0.3]), tasks)?;
        trainer.train(1500, |step| {
            if step.step.is_multiple_of(500) {
                println!("{algorithm}, meta-step {}: query loss {:.3}", step.step, step.loss);
            }
            ControlFlow::Continue(())
        })?;

        let mut rng = ChaCha8Rng::seed_from_u64(1);
        let (mut before, mut after) = (0.0, 0.0);
        const HELD_OUT: usize = 200;
        for _ in 0..HELD_OUT {
            let [support, query] = draw_task(&mut rng);
            before += accuracy(&device, &trainer.learner().parameters(0), &query)? / HELD_OUT as f64;
            after += accuracy(&device, &trainer.adapt(&support.0, &support.1)?, &query)? / HELD_OUT as f64;
        }
        println!(
            "{algorithm}: accuracy on {HELD_OUT} new tasks {:.1} % before adapting, {:.1} % after",
            100.0 * before,
            100.0 * after
        );
    }
    Ok(())
}
