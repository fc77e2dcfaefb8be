//! The library in a program of one's own: tasks, networks, callbacks, weights.

use std::ops::ControlFlow::{Break, Continue};

use crate::fixtures::assert_error;
use innerloop::device::cpu::CpuDevice;
use innerloop::model::{Activation, Mlp, Parameters};
use innerloop::objective::{Loss, VideoWeights};
use innerloop::tasks::{Condition, Episodes, Latent, MovingShapes};
use innerloop::video::ClipFormat;
use innerloop::{
    Algorithm, InnerConfig, Shape, SupervisedBatch, SupervisedConfig, Tasks, Trainer, TrainingConfig, VideoConfig,
    forward, pytorch,
};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

const SHAPE: Shape = Shape { tasks: 4, shots: 5, queries: 3 };

fn network(loss: Loss) -> SupervisedConfig {
    let mlp = Mlp::new(&[2, 9, 6, 1], &[Activation::Tanh, Activation::LeakyRelu, Activation::Linear]).unwrap();
    SupervisedConfig { mlp, loss, inner: InnerConfig { learn_rates: true, ..InnerConfig::new(Algorithm::Maml, 2) } }
}

/// Planes y = a x0 + b x1.
fn planes(rng: &mut ChaCha8Rng, batch: &mut SupervisedBatch) -> innerloop::Result<()> {
    for _ in 0..SHAPE.tasks {
        let (a, b) = (rng.random_range(-1.0..1.0_f32), rng.random_range(-1.0..1.0));
        let mut rows = |count: usize| -> (Vec<f32>, Vec<f32>) {
            let x: Vec<f32> = (0..2 * count).map(|_| rng.random_range(-1.0..1.0)).collect();
            let y = x.chunks(2).map(|x| a * x[0] + b * x[1]).collect();
            (x, y)
        };
        let (support, query) = (rows(SHAPE.shots), rows(SHAPE.queries));
        batch.push_task((&support.0, &support.1), (&query.0, &query.1));
    }
    Ok(())
}

fn trainer<S: Tasks<SupervisedConfig>>(seed: u64, tasks: S) -> Trainer<SupervisedConfig, S, CpuDevice> {
    let config = TrainingConfig { seed, ..TrainingConfig::new(SHAPE, &[0.1]) };
    Trainer::new(CpuDevice::new(1).unwrap(), network(Loss::Mse), config, tasks).unwrap()
}

#[test]
fn the_callback_sees_every_step_and_can_break_off() {
    let mut trainer = trainer(0, planes);
    let mut seen = Vec::new();
    trainer
        .train(50, |step| {
            assert!(step.loss.is_finite() && step.discriminator_loss.is_none());
            seen.push(step.step);
            if step.step == 7 { Break(()) } else { Continue(()) }
        })
        .unwrap();
    assert_eq!(seen, (1..=7).collect::<Vec<_>>());
    assert_eq!(trainer.steps_done(), 7);
    trainer
        .train(3, |step| {
            seen.push(step.step);
            Continue(())
        })
        .unwrap();
    assert_eq!(seen, (1..=10).collect::<Vec<_>>(), "training goes on where it was broken off");
}

#[test]
fn training_learns_and_is_made_again_by_its_seed() {
    let mut losses = Vec::new();
    let mut first = trainer(3, planes);
    first
        .train(400, |step| {
            losses.push(step.loss);
            Continue(())
        })
        .unwrap();
    let mean = |losses: &[f64]| losses.iter().sum::<f64>() / losses.len() as f64;
    assert!(mean(&losses[300..]) < 0.5 * mean(&losses[..50]), "{} to {}", mean(&losses[..50]), mean(&losses[300..]));
    let mut again = trainer(3, planes);
    again.train(400, |_| Continue(())).unwrap();
    assert_eq!(first.learner().parameters(0), again.learner().parameters(0));
    assert_eq!(first.learner().phi(0), again.learner().phi(0));
    let mut other = trainer(4, planes);
    other.train(400, |_| Continue(())).unwrap();
    assert!(first.learner().parameters(0) != other.learner().parameters(0));
}

#[test]
fn adapting_is_the_inner_loop_on_the_rows_given() {
    let mut trainer = trainer(0, planes);
    trainer.train(20, |_| Continue(())).unwrap();
    let (x, y) = ([0.3, -0.2, 0.9, 0.4, -0.5, 0.7], [0.1, -0.6, 0.5]);
    let adapted = trainer.adapt(&x, &y).unwrap();
    // Gradient descent on the mean squared error, with a difference quotient for the gradient.
    let device = CpuDevice::new(1).unwrap();
    let loss = |parameters: &Parameters<f64>| {
        let outputs = forward(&device, parameters, &x.map(f64::from)).unwrap();
        outputs.iter().zip(y).map(|(p, y)| (p - f64::from(y)).powi(2)).sum::<f64>() / y.len() as f64
    };
    let mut expected = trainer.learner().parameters(0).cast::<f64>();
    let mlp = expected.mlp().clone();
    let layers = mlp.layers();
    for step in 0..2 {
        let mut next = expected.clone();
        for layer in 0..layers {
            let rate = f64::from(trainer.learner().phi(0).values()[step * layers + layer]);
            for index in mlp.weight_range(layer).start..mlp.bias_range(layer).end {
                let moved = |by: f64| {
                    let mut moved = expected.clone();
                    moved.values_mut()[index] += by;
                    loss(&moved)
                };
                next.values_mut()[index] -= rate * (moved(1e-5) - moved(-1e-5)) / 2e-5;
            }
        }
        expected = next;
    }
    let norm = |values: &mut dyn Iterator<Item = f64>| values.map(|v| v * v).sum::<f64>().sqrt();
    let moved = norm(
        &mut expected.values().iter().zip(trainer.learner().parameters(0).values()).map(|(a, b)| a - f64::from(*b)),
    );
    let off = norm(&mut expected.values().iter().zip(adapted.values()).map(|(a, b)| a - f64::from(*b)));
    assert!(off < 1e-4 * moved, "off by {off:e}, moved by {moved:e}");
}

#[test]
fn weights_come_from_files_and_go_to_files() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("network.safetensors");
    let mut first = trainer(0, planes);
    first.train(5, |_| Continue(())).unwrap();
    let parameters = first.learner().parameters(0);
    pytorch::write(&path, &[("main", &parameters)]).unwrap();
    let mlp = parameters.mlp().clone();
    let read = pytorch::read(&path, "main", &mlp).unwrap();
    assert_eq!(read, parameters);
    let mut second = trainer(9, planes);
    second.set_parameters(&[read]).unwrap();
    assert_eq!(second.learner().parameters(0), parameters);

    assert_error(pytorch::write(&path, &[("a", &parameters), ("a", &parameters)]), &["two under the prefix \"a\""]);
    assert_error(pytorch::read(&path, "", &mlp), &["network.safetensors", "no tensor \"0.weight\"", "prefix"]);
    let wide = Mlp::new(&[2, 9, 7, 1], mlp.activations()).unwrap();
    assert_error(pytorch::read(&path, "main", &wide), &["main.2.weight", "[6, 9]", "[7, 9]", "widths"]);
    assert_error(second.set_parameters(&[Parameters::zeros(&wide)]), &["parameters", "[2, 9, 6, 1]"]);
    std::fs::write(&path, "not tensors").unwrap();
    assert_error(pytorch::read(&path, "main", &mlp), &["network.safetensors", "not a whole safetensors file"]);
    assert_error(pytorch::read(folder.path().join("missing"), "main", &mlp), &["missing", "check the path"]);
}

#[test]
fn what_does_not_fit_is_told() {
    let device = CpuDevice::new(1).unwrap();
    let new = |config| Trainer::new(device.clone(), network(Loss::Mse), config, planes).map(drop);
    assert_error(new(TrainingConfig::new(SHAPE, &[])), &["inner rates", "0 values", "1, one for each network"]);
    assert_error(new(TrainingConfig::new(SHAPE, &[0.1, 0.1])), &["inner rates", "2 values"]);
    assert_error(new(TrainingConfig::new(Shape { tasks: 0, ..SHAPE }, &[0.1])), &["shape", "at least one task"]);
    let nothing = |_: &mut ChaCha8Rng, _: &mut SupervisedBatch| Ok(());
    assert_error(trainer(0, nothing).step(), &["support.x", "0 numbers", "40"]);
    let failing = |_: &mut ChaCha8Rng, _: &mut SupervisedBatch| {
        Err(innerloop::Error::invalid("readings", "missing", "a sensor that is on"))
    };
    assert_error(trainer(0, failing).train(3, |_| Continue(())), &["readings", "a sensor that is on"]);
    let trained = trainer(0, planes);
    assert_error(trained.adapt(&[], &[]), &["shape", "at least one"]);
    assert_error(trained.adapt(&[0.0; 6], &[0.0; 2]), &["support.y", "2 numbers", "3"]);
    assert_error(trained.adapt(&[0.0; 5], &[0.0; 2]), &["support.x", "5 numbers", "4"]);
}

#[test]
fn a_video_gan_of_ones_own() {
    let format = ClipFormat::new(3, 6, 6, 1).unwrap();
    let latent = Latent { noise: 2, condition: Condition::FirstFrame { height: 3, width: 3 } };
    let shapes = std::sync::Arc::new(MovingShapes::new(format, 1, 50, 20).unwrap());
    let episodes = Episodes::new(shapes, latent.clone(), SHAPE.tasks, SHAPE.shots, SHAPE.queries).unwrap();
    let hidden =
        |inputs, outputs, output| Mlp::with_hidden(inputs, &[8], outputs, Activation::LeakyRelu, output).unwrap();
    let objective = VideoConfig {
        generator: hidden(latent.width(), format.values(), Activation::Tanh),
        discriminator: hidden(format.values(), 1, Activation::Linear),
        frames: 3,
        frame: None,
        weights: VideoWeights { adversarial: 0.1, reconstruction: 1.0, motion: 0.1, texture: 0.0 },
        adversarial: true,
        inner: InnerConfig::new(Algorithm::Maml, 2),
    };
    let config = TrainingConfig { adversarial_from: 3, ..TrainingConfig::new(SHAPE, &[0.5, 0.01]) };
    let mut trainer = Trainer::new(CpuDevice::new(1).unwrap(), objective, config, episodes).unwrap();
    let begin = trainer.learner().parameters(1);
    let mut plays = Vec::new();
    trainer
        .train(5, |step| {
            plays.push(step.discriminator_loss.is_some());
            Continue(())
        })
        .unwrap();
    assert_eq!(plays, [false, false, false, true, true]);
    assert!(trainer.learner().parameters(1) != begin);
    let parameters: Vec<_> = (0..2).map(|network| trainer.learner().parameters(network)).collect();
    let mut rng = ChaCha8Rng::seed_from_u64(0);
    trainer.set_parameters(&parameters).unwrap();
    assert_eq!(trainer.learner().parameters(0), parameters[0]);
    assert!(Parameters::<f32>::initialise(parameters[0].mlp(), &mut rng) != parameters[0]);
}
