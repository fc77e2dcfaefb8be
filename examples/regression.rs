//! Meta-learning for regression on tasks of your own: `cargo run --release --example regression`
//!
//! A task is a damped oscillation y = exp(-d x) cos(f x) with its own damping d and frequency f. Ten noisy points of a new
//! one are enough after meta-training. Shown: a type that implements `Tasks`, learned inner rates, progress and early stop.

use std::ops::ControlFlow;

use innerloop::device::cpu::CpuDevice;
use innerloop::model::{Activation, Mlp};
use innerloop::objective::Loss;
use innerloop::rand::RngExt;
use innerloop::rand_chacha::ChaCha8Rng;
use innerloop::{
    Algorithm, InnerConfig, Result, Shape, SupervisedBatch, SupervisedConfig, Tasks, Trainer, TrainingConfig, forward,
};

const SHAPE: Shape = Shape { tasks: 25, shots: 10, queries: 10 };

/// Oscillations with a damping and a frequency of their own.
struct Oscillations {
    noise: f32,
}

fn oscillation(damping: f32, frequency: f32, x: f32) -> f32 {
    (-damping * x).exp() * (frequency * x).cos()
}

impl Tasks<SupervisedConfig> for Oscillations {
    fn draw(&mut self, rng: &mut ChaCha8Rng, batch: &mut SupervisedBatch) -> Result<()> {
        for _ in 0..SHAPE.tasks {
            let (damping, frequency) = (rng.random_range(0.1..1.0), rng.random_range(1.0..4.0));
            let mut points = |count: usize, noise: f32| -> (Vec<f32>, Vec<f32>) {
                let point = |_| {
                    let x = rng.random_range(0.0..3.0);
                    (x, oscillation(damping, frequency, x) + noise * rng.random_range(-1.0..1.0))
                };
                (0..count).map(point).unzip()
            };
            let (support, query) = (points(SHAPE.shots, self.noise), points(SHAPE.queries, 0.0));
            batch.push_task((&support.0, &support.1), (&query.0, &query.1));
        }
        Ok(())
    }
}

fn main() -> Result<()> {
    let device = CpuDevice::new(0)?;
    let mlp = Mlp::with_hidden(1, &[64, 64], 1, Activation::Tanh, Activation::Linear)?;
    let inner = InnerConfig { learn_rates: true, ..InnerConfig::new(Algorithm::Maml, 5) };
    let objective = SupervisedConfig { mlp, loss: Loss::Mse, inner };
    let config = TrainingConfig::new(SHAPE, &[0.05]);
    let mut trainer = Trainer::new(device.clone(), objective, config, Oscillations { noise: 0.02 })?;

    // Stops when the mean of the last 200 meta-steps no longer gains a hundredth.
    let (mut sum, mut last) = (0.0, f64::INFINITY);
    trainer.train(20_000, |step| {
        sum += step.loss;
        if !step.step.is_multiple_of(200) {
            return ControlFlow::Continue(());
        }
        let mean = sum / 200.0;
        println!("meta-step {:5}: query loss after adapting {mean:.5}", step.step);
        let enough = step.step >= 5_000 && mean > 0.99 * last;
        (sum, last) = (0.0, mean);
        if enough { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    })?;

    // A task that was never seen.
    let x: Vec<f32> = (0..10).map(|i| 0.3 * i as f32).collect();
    let y: Vec<f32> = x.iter().map(|x| oscillation(0.4, 2.5, *x)).collect();
    let adapted = trainer.adapt(&x, &y)?;
    println!("{:>6} {:>8} {:>8} {:>8}", "x", "truth", "before", "after");
    for x in [0.15, 0.75, 1.35, 1.95, 2.55] {
        let before = forward(&device, &trainer.learner().parameters(0), &[x])?[0];
        let after = forward(&device, &adapted, &[x])?[0];
        println!("{x:>6.2} {:>8.3} {before:>8.3} {after:>8.3}", oscillation(0.4, 2.5, x));
    }
    Ok(())
}
