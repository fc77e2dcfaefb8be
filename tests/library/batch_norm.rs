//! Batch normalisation as a user meets it: what it computes, what it is kept with, and what is refused.

use crate::fixtures::assert_error;
use crate::fixtures::command::succeed;
use innerloop::checkpoint::{Checkpoint, Stage, Subject};
use innerloop::device::cpu::CpuDevice;
use innerloop::model::{Activation, BatchNorm, Mlp, Parameters};
use innerloop::objective::{Loss, VideoWeights};
use innerloop::run::Job;
use innerloop::{
    Algorithm, InnerConfig, MetaLearner, MetaOptimizer, RateKind, Result, Shape, SupervisedConfig, SupervisedRows,
    VideoConfig, forward, pytorch,
};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

const SHAPE: Shape = Shape { tasks: 3, shots: 5, queries: 4 };

fn plain() -> Mlp {
    Mlp::new(&[4, 6, 5, 2], &[Activation::Tanh, Activation::Relu, Activation::Linear]).unwrap()
}

fn normalised() -> Mlp {
    plain().with_batch_norm(BatchNorm::new(0.01).unwrap()).unwrap()
}

/// Parameters of which none is 0.
fn parameters(mlp: &Mlp) -> Parameters<f64> {
    let mut rng = ChaCha8Rng::seed_from_u64(3);
    Parameters::from_values(mlp, (0..mlp.parameter_count()).map(|_| rng.random_range(-1.0..1.0)).collect()).unwrap()
}

fn rows(count: usize, seed: u64) -> Vec<f64> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    (0..count).map(|_| rng.random_range(-1.0..1.0)).collect()
}

/// The network's outputs, from the definition.
fn by_hand(parameters: &Parameters<f64>, inputs: &[f64]) -> Vec<f64> {
    let mlp = parameters.mlp();
    let count = inputs.len() / mlp.inputs();
    let mut a = inputs.to_vec();
    for layer in 0..mlp.layers() {
        let (inputs, outputs) = (mlp.widths()[layer], mlp.widths()[layer + 1]);
        let mut z = vec![0.0; count * outputs];
        for o in 0..outputs {
            let weights = &parameters.weight(layer)[o * inputs..][..inputs];
            let mut column: Vec<f64> =
                a.chunks(inputs).map(|row| row.iter().zip(weights).map(|(a, w)| a * w).sum()).collect();
            if let Some(norm) = mlp.batch_norm(layer) {
                let mean = column.iter().sum::<f64>() / count as f64;
                let variance = column.iter().map(|u| (u - mean).powi(2)).sum::<f64>() / count as f64;
                column.iter_mut().for_each(|u| *u = (*u - mean) / (variance + norm.epsilon()).sqrt());
            }
            for (row, u) in column.iter().enumerate() {
                z[row * outputs + o] = mlp.activations()[layer].apply(u + parameters.bias(layer)[o]);
            }
        }
        a = z;
    }
    a
}

fn distance(got: &[f64], want: &[f64]) -> f64 {
    assert_eq!(got.len(), want.len());
    got.iter().zip(want).map(|(g, w)| (g - w).abs()).fold(0.0, f64::max)
}

#[test]
fn forward_normalises_over_the_rows_given() {
    let parameters = parameters(&normalised());
    for count in [1, 2, 7] {
        let inputs = rows(4 * count, 5);
        let got = forward(&CpuDevice::new(2).unwrap(), &parameters, &inputs).unwrap();
        assert!(distance(&got, &by_hand(&parameters, &inputs)) < 1e-13);
    }
    let unlike = Parameters::from_values(&plain(), parameters.values().to_vec()).unwrap();
    let inputs = rows(28, 5);
    assert!(distance(&by_hand(&unlike, &inputs), &by_hand(&parameters, &inputs)) > 0.1);
}

/// The end of the trace is the adapted network over the task's query rows; the shifts have stayed.
#[test]
fn adapting_leaves_the_shifts() {
    let (mlp, steps) = (normalised(), 3);
    let shared = parameters(&mlp);
    let [support_x, support_y] = [4, 2].map(|width| rows(SHAPE.tasks * SHAPE.shots * width, 1));
    let [query_x, query_y] = [4, 2].map(|width| rows(SHAPE.tasks * SHAPE.queries * width, 2));
    let rows = SupervisedRows { support_x: &support_x, support_y: &support_y, query_x: &query_x, query_y: &query_y };
    for strategy in [innerloop::Strategy::Dual, innerloop::Strategy::Materialised] {
        let inner = InnerConfig { strategy: Some(strategy), ..InnerConfig::new(Algorithm::Maml, steps) };
        let config = SupervisedConfig { mlp: mlp.clone(), loss: Loss::Mse, inner };
        let phi = MetaOptimizer::uniform(RateKind::PerLayerPerStep, &mlp, steps, 0.2).unwrap();
        let mut tracer = MetaLearner::tracer(CpuDevice::new(2).unwrap(), config, SHAPE, vec![phi]).unwrap();
        tracer.set_parameters(0, &shared).unwrap();
        let trace = tracer.trace(rows, &mut ChaCha8Rng::seed_from_u64(0)).unwrap();
        for task in 0..SHAPE.tasks {
            let of_task = |values: &[f64]| values.chunks(values.len() / SHAPE.tasks).nth(task).unwrap().to_vec();
            let adapted = tracer.adapted(0, task).unwrap();
            let got = of_task(&trace.outputs[steps]);
            assert!(distance(&got, &by_hand(&adapted, &of_task(&query_x))) < 1e-12);
            assert!(distance(&of_task(&trace.outputs[0]), &by_hand(&shared, &of_task(&query_x))) < 1e-12);
            assert!((0..2).all(|layer| adapted.bias(layer) == shared.bias(layer)));
            assert!((0..3).all(|layer| adapted.weight(layer) != shared.weight(layer)));
            assert!(adapted.bias(2) != shared.bias(2));
        }
    }
}

#[test]
fn architectures_that_there_are_not() {
    let norm = BatchNorm::default();
    for epsilon in [0.0, -1.0, 1e-13, f64::NAN, f64::INFINITY] {
        assert_error(BatchNorm::new(epsilon), &["epsilon", "1e-12"]);
    }
    assert_error(plain().with_batch_norms(&[None, None, Some(norm)]), &["output layer", "hidden"]);
    assert_error(plain().with_batch_norms(&[Some(norm)]), &["1 for 3 layers"]);
    let single = Mlp::new(&[2, 1], &[Activation::Linear]).unwrap();
    assert_error(single.with_batch_norm(norm), &["no hidden layer"]);
    assert!(plain().with_batch_norms(&[None; 3]).unwrap() == plain());
}

#[test]
fn initial_shifts_are_0() {
    let mut rng = ChaCha8Rng::seed_from_u64(0);
    let parameters = Parameters::<f64>::initialise(&normalised(), &mut rng);
    assert!((0..2).all(|layer| parameters.bias(layer).iter().all(|b| *b == 0.0)));
    assert!(parameters.bias(2).iter().chain(parameters.weight(0)).all(|value| *value != 0.0));
}

/// A file without the option, as all were before there was one, is one without batch normalisation, and stays the same.
#[test]
fn it_is_kept_in_files() {
    let old = r#"{"widths":[4,6,5,2],"activations":["tanh","relu","linear"]}"#;
    assert!(serde_json::from_str::<Mlp>(old).unwrap() == plain());
    assert_eq!(serde_json::to_string(&plain()).unwrap(), old);
    let some = plain().with_batch_norms(&[None, Some(BatchNorm::new(0.5).unwrap()), None]).unwrap();
    let text = serde_json::to_string(&some).unwrap();
    assert!(text.contains(r#""batch_norm":[0.0,0.5,0.0]"#), "{text}");
    assert!(serde_json::from_str::<Mlp>(&text).unwrap() == some);
    for wrong in ["[0.0,-0.5,0.0]", "[0.5]", "[0.0,0.0,0.5]"] {
        assert!(serde_json::from_str::<Mlp>(&text.replace("[0.0,0.5,0.0]", wrong)).is_err(), "{wrong}");
    }
}

#[test]
fn checkpoints_keep_it() {
    let folder = tempfile::tempdir().unwrap();
    succeed(folder.path(), "train --tasks sinusoid --generator-widths 8 --steps 2 --inner-steps 2 --out run");
    let path = folder.path().join("run/checkpoint.safetensors");
    let mut checkpoint = Checkpoint::read(&path).unwrap();
    let Job::Sinusoid(job) = &mut checkpoint.config.job else { panic!("another job") };
    job.objective.mlp = job.objective.mlp.clone().with_batch_norm(BatchNorm::default()).unwrap();
    let values = checkpoint.parameters[0].values().to_vec();
    checkpoint.parameters = vec![Parameters::from_values(&job.objective.mlp, values).unwrap()];
    let subject = Subject { name: "a wave".into(), clips: 1, steps: 1 };
    checkpoint.stage = Stage::Adapted { subject, latents: Vec::new() };
    checkpoint.write(&path).unwrap();
    let read = Checkpoint::read(&path).unwrap();
    assert_eq!(read.config, checkpoint.config);
    assert_eq!(read.parameters, checkpoint.parameters);
}

fn learner(mlp: &Mlp, inner: InnerConfig, shape: Shape) -> Result<MetaLearner<f32, CpuDevice, SupervisedConfig>> {
    let phi = MetaOptimizer::initialise(inner.rates, mlp, inner.steps, 0.1, &mut ChaCha8Rng::seed_from_u64(0))?;
    let config = SupervisedConfig { mlp: mlp.clone(), loss: Loss::Mse, inner };
    MetaLearner::new(CpuDevice::new(1)?, config, shape, vec![phi])
}

#[test]
fn what_does_not_go_with_it_is_refused() {
    let inner = |rates| InnerConfig { rates, ..InnerConfig::new(Algorithm::Maml, 1) };
    for rates in [RateKind::RowColumn, RateKind::Network { rank: 2 }] {
        assert_error(learner(&normalised(), inner(rates), SHAPE).map(|_| ()), &["meta-optimizer", "normalisation"]);
        assert!(learner(&plain(), inner(rates), SHAPE).is_ok());
    }
    let one_row = Shape { shots: 1, ..SHAPE };
    let shared = inner(RateKind::Shared);
    assert_error(learner(&normalised(), shared.clone(), one_row).map(|_| ()), &["support rows", "at least 2"]);
    let minibatch = InnerConfig { minibatch: Some(1), ..shared.clone() };
    assert_error(learner(&normalised(), minibatch, SHAPE).map(|_| ()), &["support rows", "at least 2"]);
    // Without inner steps no support row is looked at.
    assert!(learner(&normalised(), InnerConfig { steps: 0, ..shared.clone() }, one_row).is_ok());

    let mut learner = learner(&normalised(), shared, SHAPE).unwrap();
    let values = vec![0.0; plain().parameter_count()];
    let other = learner.set_parameters(0, &Parameters::from_values(&plain(), values.clone()).unwrap());
    assert_error(other, &["network parameters", "[0.01, 0.01, 0.0]"]);
    let folder = tempfile::tempdir().unwrap();
    let parameters = Parameters::from_values(&normalised(), values.iter().map(|_| 0.0).collect()).unwrap();
    let path = folder.path().join("network.safetensors");
    assert_error(pytorch::write(&path, &[("", &parameters)]), &["network", "normalisation", "running averages"]);
    assert_error(pytorch::read(&path, "", &normalised()), &["network", "normalisation", "running averages"]);

    let linear = Activation::Linear;
    let generator = Mlp::new(&[2, 3, 4], &[Activation::Relu, linear]).unwrap();
    let discriminator = Mlp::new(&[4, 3, 1], &[Activation::Relu, linear]).unwrap();
    let weights = VideoWeights { adversarial: 1.0, reconstruction: 1.0, motion: 0.0, texture: 0.0 };
    let inner = InnerConfig { rates: RateKind::Shared, ..InnerConfig::new(Algorithm::Maml, 1) };
    for which in [0, 1] {
        let mut networks = [generator.clone(), discriminator.clone()];
        networks[which] = networks[which].clone().with_batch_norm(BatchNorm::default()).unwrap();
        let phi = networks.iter().map(|mlp| MetaOptimizer::<f32>::uniform(RateKind::Shared, mlp, 1, 0.1).unwrap());
        let (phi, [generator, discriminator]) = (phi.collect(), networks.clone());
        let inner = inner.clone();
        let config =
            VideoConfig { generator, discriminator, frames: 2, frame: None, weights, adversarial: true, inner };
        let made = MetaLearner::new(CpuDevice::new(1).unwrap(), config, SHAPE, phi).map(|_| ());
        assert_error(made, &["batch normalisation", "video GAN"]);
    }
}
