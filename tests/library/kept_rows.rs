//! Meta-steps on rows that are on the device already: to the last bit those on the same rows once more.

use crate::fixtures::assert_error;
use innerloop::device::cpu::CpuDevice;
use innerloop::model::{Activation, Mlp, Parameters};
use innerloop::objective::{Loss, VideoWeights};
use innerloop::{
    Algorithm, InnerConfig, MetaLearner, MetaOptimizer, Objective, OuterConfig, Shape, Strategy, SupervisedConfig,
    SupervisedRows, VideoConfig, VideoRows,
};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

const SHAPE: Shape = Shape { tasks: 5, shots: 4, queries: 3 };

fn numbers(inputs: usize, outputs: usize) -> [Vec<f32>; 4] {
    let mut rng = ChaCha8Rng::seed_from_u64(3);
    let (support, query) = (SHAPE.tasks * SHAPE.shots, SHAPE.tasks * SHAPE.queries);
    [support * inputs, support * outputs, query * inputs, query * outputs]
        .map(|len| (0..len).map(|_| rng.random_range(-1.0..1.0)).collect())
}

fn learner<O: Objective>(objective: &O, mlps: &[&Mlp], inner: &InnerConfig) -> MetaLearner<f32, CpuDevice, O> {
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    let phi = mlps.iter().map(|mlp| MetaOptimizer::uniform(inner.rates, mlp, inner.steps, 0.05).unwrap()).collect();
    let mut learner = MetaLearner::new(CpuDevice::new(2).unwrap(), objective.clone(), SHAPE, phi).unwrap();
    for (network, mlp) in mlps.iter().enumerate() {
        learner.set_parameters(network, &Parameters::initialise(mlp, &mut rng)).unwrap();
    }
    learner
}

/// Three meta-steps with the rows given each time, and with those of the first kept.
fn check<O: Objective>(what: &str, objective: &O, mlps: &[&Mlp], inner: &InnerConfig, rows: O::Rows<'_, f32>) {
    let outer = OuterConfig::adam(1e-2);
    let [mut given, mut kept] = [(); 2].map(|()| learner(objective, mlps, inner));
    let [mut rng_given, mut rng_kept] = [(); 2].map(|()| ChaCha8Rng::seed_from_u64(2));
    assert_error(kept.run_again(&mut rng_kept).map(|_| ()), &["rows", "none on the device"]);
    for step in 0..3 {
        let expected = given.run(rows, &mut rng_given).unwrap().clone();
        let got = match step {
            0 => kept.run(rows, &mut rng_kept).unwrap(),
            1 => kept.run_again(&mut rng_kept).unwrap(),
            _ => {
                kept.submit_again(&outer, &mut rng_kept).unwrap();
                kept.wait().unwrap()
            }
        };
        assert_eq!(*got, expected, "{what}, step {step}");
        given.update(&outer).unwrap();
        if step < 2 {
            kept.update(&outer).unwrap();
        }
    }
    for network in 0..mlps.len() {
        assert_eq!(kept.parameters(network), given.parameters(network), "{what}");
    }
}

#[test]
fn meta_steps_on_kept_rows() {
    let mlp = Mlp::new(&[3, 7, 6], &[Activation::Tanh, Activation::Linear]).unwrap();
    let [support_x, support_y, query_x, query_y] = &numbers(mlp.inputs(), mlp.outputs());
    let rows = SupervisedRows { support_x, support_y, query_x, query_y };
    let generator = Mlp::new(&[5, 6, 8], &[Activation::Relu, Activation::Tanh]).unwrap();
    let discriminator = Mlp::new(&[8, 7, 1], &[Activation::LeakyRelu, Activation::Linear]).unwrap();
    let [support_z, support_x, query_z, query_x] = &numbers(generator.inputs(), generator.outputs());
    let clips = VideoRows { support_z, support_x, query_z, query_x };
    for strategy in Strategy::ALL {
        for minibatch in [None, Some(2)] {
            let inner = InnerConfig { strategy: Some(strategy), minibatch, ..InnerConfig::new(Algorithm::Maml, 2) };
            let what = format!("{strategy}, minibatches of {minibatch:?}");
            let whole_sets = matches!(strategy, Strategy::Resident | Strategy::Folded);
            if !whole_sets || minibatch.is_none() {
                let config = SupervisedConfig { mlp: mlp.clone(), loss: Loss::Mse, inner: inner.clone() };
                check(&what, &config, &[&mlp], &inner, rows);
            }
            if !whole_sets {
                let config = video(&generator, &discriminator, inner.clone());
                check(&what, &config, &[&generator, &discriminator], &inner, clips);
            }
        }
    }
}

fn video(generator: &Mlp, discriminator: &Mlp, inner: InnerConfig) -> VideoConfig {
    VideoConfig {
        generator: generator.clone(),
        discriminator: discriminator.clone(),
        frames: 2,
        frame: None,
        weights: VideoWeights { adversarial: 0.1, reconstruction: 1.0, motion: 1.0, texture: 0.0 },
        adversarial: true,
        inner,
    }
}

#[test]
fn fresh_noise_is_not_kept() {
    let generator = Mlp::new(&[5, 6, 8], &[Activation::Relu, Activation::Tanh]).unwrap();
    let discriminator = Mlp::new(&[8, 7, 1], &[Activation::LeakyRelu, Activation::Linear]).unwrap();
    let inner = InnerConfig { fresh_noise: true, ..InnerConfig::new(Algorithm::Maml, 1) };
    let config = video(&generator, &discriminator, inner.clone());
    let mut learner = learner(&config, &[&generator, &discriminator], &inner);
    let [support_z, support_x, query_z, query_x] = &numbers(generator.inputs(), generator.outputs());
    let mut rng = ChaCha8Rng::seed_from_u64(2);
    learner.run(VideoRows { support_z, support_x, query_z, query_x }, &mut rng).unwrap();
    assert_error(learner.run_again(&mut rng).map(|_| ()), &["rows", "fresh noise"]);
}
