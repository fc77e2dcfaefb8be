//! What a learner takes is known before it is taken, and too much is an error that says what would fit.

use innerloop::device::cpu::CpuDevice;
use innerloop::model::{Activation, Mlp};
use innerloop::objective::{Loss, VideoWeights};
use innerloop::{
    Algorithm, InnerConfig, MetaLearner, MetaOptimizer, Objective, RateKind, Result, Shape, Strategy, SupervisedConfig,
    VideoConfig,
};

fn inner(strategy: Strategy) -> InnerConfig {
    InnerConfig { strategy: Some(strategy), learn_rates: true, ..InnerConfig::new(Algorithm::Maml, 3) }
}

fn mlp(widths: &[usize]) -> Mlp {
    Mlp::with_hidden(widths[0], &widths[1..2], widths[2], Activation::Tanh, Activation::Linear).unwrap()
}

/// The learner's bytes, if it can be had.
fn bytes<O: Objective>(device: &CpuDevice, objective: &O, mlps: &[&Mlp], tasks: usize) -> Result<u64> {
    let phi = mlps.iter().map(|mlp| MetaOptimizer::<f32>::uniform(RateKind::PerLayerPerStep, mlp, 3, 0.1).unwrap());
    let shape = Shape { tasks, shots: 4, queries: 3 };
    MetaLearner::new(device.clone(), objective.clone(), shape, phi.collect()).map(|learner| learner.bytes() as u64)
}

fn check<O: Objective>(objective: &O, mlps: &[&Mlp]) {
    for threads in [1, 3] {
        let device = CpuDevice::new(threads).unwrap();
        let of = |device: &CpuDevice, tasks| bytes(device, objective, mlps, tasks);
        let five = of(&device, 5).unwrap();
        let tight = device.clone().with_memory_limit(five);
        assert_eq!(of(&tight, 5).unwrap(), five, "what just fits is taken");
        let short = device.clone().with_memory_limit(five - 1);
        for tasks in [5, 6, 40] {
            let message = of(&short, tasks).unwrap_err().to_string();
            assert!(message.starts_with("memory: ") && !message.contains('\n'), "{message}");
            assert!(message.contains(&format!("a meta-batch of {tasks} takes")), "{message}");
            let most = message.split("at most ").nth(1).unwrap().split(',').next().unwrap().parse::<usize>().unwrap();
            assert!((1..5).contains(&most), "{message}");
            assert!(of(&short, most).is_ok() && of(&short, most + 1).is_err(), "{message}");
        }
        let message = of(&device.with_memory_limit(1000), 40).unwrap_err().to_string();
        assert!(message.contains("not one task fits"), "{message}");
    }
}

#[test]
fn the_error_names_the_largest_meta_batch_that_fits() {
    for strategy in [Strategy::Dual, Strategy::Materialised] {
        let network = mlp(&[5, 20, 7]);
        check(&SupervisedConfig { mlp: network.clone(), loss: Loss::Mse, inner: inner(strategy) }, &[&network]);
        let (generator, discriminator) = (mlp(&[6, 15, 24]), mlp(&[24, 9, 1]));
        let video = VideoConfig {
            generator: generator.clone(),
            discriminator: discriminator.clone(),
            frames: 4,
            frame: None,
            weights: VideoWeights { adversarial: 0.1, reconstruction: 1.0, motion: 0.5, texture: 0.0 },
            adversarial: true,
            inner: inner(strategy),
        };
        check(&video, &[&generator, &discriminator]);
    }
}

#[test]
fn what_no_machine_has_is_refused_and_not_tried() {
    let network = mlp(&[1000, 1000, 1000]);
    let config = SupervisedConfig { mlp: network.clone(), loss: Loss::Mse, inner: inner(Strategy::Materialised) };
    let message = bytes(&CpuDevice::new(1).unwrap(), &config, &[&network], 1_000_000).unwrap_err().to_string();
    assert!(message.contains("memory") && message.contains("GB") && message.contains("meta-batch"), "{message}");
}
