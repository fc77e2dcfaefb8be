//! All forms give the same numbers, on any number of threads.

use innerloop::model::{Activation, Mlp, Parameters};
use innerloop::objective::{Loss, VideoWeights};
use innerloop::{
    Algorithm, InnerConfig, InnerOptimizer, Losses, MetaLearner, MetaOptimizer, RateKind, Shape, Strategy,
    SupervisedConfig, VideoConfig,
};
use proptest::prelude::{ProptestConfig, TestCaseError, any, prop_assert, prop_assert_eq, proptest};

use crate::problems::{ALL, Kind, Outcome, Problem, SMOOTH, VIDEO, distance, folding, normalised, supervised, video};

/// Two agree in everything, to `tolerance`.
fn hold(got: &Outcome, want: &Outcome, tolerance: f64) -> Result<(), TestCaseError> {
    let near = |what: &str, got: &[f64], want: &[f64]| {
        let error = distance(got, want);
        prop_assert!(error <= tolerance, "{what} differ by {error:e}: {got:?} and {want:?}");
        Ok(())
    };
    let losses = |what: &str, got: &Losses<f64>, want: &Losses<f64>| {
        near(what, &got.task, &want.task)?;
        near(what, &got.discriminator, &want.discriminator)
    };
    losses("losses", &got.losses, &want.losses)?;
    for (what, got, want) in [
        ("gradients", &got.gradient, &want.gradient),
        ("rate gradients", &got.rate_gradient, &want.rate_gradient),
        ("traced outputs", &got.trace_outputs, &want.trace_outputs),
    ] {
        prop_assert_eq!(got.len(), want.len());
        got.iter().zip(want).try_for_each(|(g, w)| near(what, g, w))?;
    }
    for (got, want) in got.adapted.iter().flatten().zip(want.adapted.iter().flatten()) {
        near("adapted parameters", got, want)?;
    }
    prop_assert_eq!(got.trace_losses.len(), want.trace_losses.len());
    got.trace_losses.iter().zip(&want.trace_losses).try_for_each(|(g, w)| losses("traced losses", g, w))
}

fn check(problem: &Problem) -> Result<(), TestCaseError> {
    let materialised = problem.solve(Strategy::Materialised, 1);
    hold(&problem.solve(Strategy::Materialised, 3), &materialised, 1e-12)?;
    if problem.forms().contains(&Strategy::Dual) {
        let dual = problem.solve(Strategy::Dual, 1);
        hold(&dual, &materialised, 1e-10)?;
        hold(&problem.solve(Strategy::Dual, 3), &dual, 1e-12)?;
    }
    if problem.forms().contains(&Strategy::Resident) {
        let resident = problem.solve(Strategy::Resident, 1);
        hold(&resident, &materialised, 1e-10)?;
        for threads in [2, 3] {
            prop_assert_eq!(&problem.solve(Strategy::Resident, threads), &resident, "{} threads", threads);
        }
    }
    // The trace's end is the meta-step's query loss.
    let last = materialised.trace_losses.last().unwrap();
    prop_assert!(distance(&last.task, &materialised.losses.task) <= 1e-12);
    prop_assert!(distance(&last.discriminator, &materialised.losses.discriminator) <= 1e-12);
    let learns = problem.inner().learn_rates && problem.inner().algorithm.differentiates_query();
    prop_assert!(learns || materialised.rate_gradient.iter().flatten().all(|g| *g == 0.0));
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn supervised_forms_agree(
        problem in supervised(20, 4, false, ALL)
    ) {
        check(&problem)?;
    }

    #[test]
    fn folded_forms_agree(problem in folding(20, 4)) {
        let dual = problem.solve(Strategy::Dual, 1);
        let folded = problem.solve(Strategy::Folded, 1);
        hold(&folded, &dual, 1e-10)?;
        hold(&problem.solve(Strategy::Folded, 3), &folded, 1e-12)?;
    }

    #[test]
    fn normalised_forms_agree(problem in normalised(20, 4, false, &SMOOTH[..3])) {
        check(&problem)?;
    }

    #[test]
    fn video_forms_agree(problem in video(16, 4, false, VIDEO), fresh_noise in any::<bool>()) {
        check(&if fresh_noise { problem.with_fresh_noise() } else { problem })?;
    }
}

/// Large enough for one lane, with all threads in every operation.
#[test]
fn large_networks_agree() {
    use Activation::{Relu, Tanh};
    let mlp = Mlp::new(&[33, 300, 310, 17], &[Relu, Tanh, Activation::Linear]).unwrap();
    let wave = |n: usize, by: f64| (0..n).map(|i| (i as f64 * by).sin()).collect::<Vec<_>>();
    let mut values = wave(mlp.parameter_count(), 1.7);
    values.iter_mut().for_each(|v| *v *= 0.1);
    let inner = InnerConfig {
        rates: RateKind::Shared,
        learn_rates: true,
        optimizer: InnerOptimizer::Sgd { momentum: 0.5 },
        ..InnerConfig::new(Algorithm::Maml, 2)
    };
    let problem = Problem {
        shape: Shape { tasks: 17, shots: 7, queries: 5 },
        rows: [wave(17 * 7 * 33, 0.7), wave(17 * 7 * 17, 0.3), wave(17 * 5 * 33, 0.9), wave(17 * 5 * 17, 1.1)],
        parameters: vec![Parameters::from_values(&mlp, values).unwrap()],
        rates: vec![vec![0.05]],
        kind: Kind::Supervised(SupervisedConfig { mlp, loss: Loss::Mse, inner }),
        seed: 0,
    };
    check(&problem).unwrap();
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    /// More tasks than a vector has lanes, and what the resident form has.
    #[test]
    fn groups_of_tasks_agree(
        problem in supervised(20, 4, false, &[RateKind::PerLayerPerStep, RateKind::PerParameter]),
        tasks in 1..40usize,
    ) {
        let mut problem = problem.with_tasks(tasks);
        problem.inner_mut().minibatch = None;
        problem.inner_mut().multi_step = false;
        check(&problem)?;
    }
}

/// What there is no resident form of is refused by name, and the planner takes another.
#[test]
fn what_has_no_resident_form_is_refused() {
    let mlp = Mlp::new(&[2, 3, 2], &[Activation::Tanh, Activation::Linear]).unwrap();
    let sgd = InnerConfig { rates: RateKind::Shared, ..InnerConfig::new(Algorithm::Maml, 2) };
    let build = |mlp: &Mlp, inner: &InnerConfig, strategy: Option<Strategy>| {
        let phi = MetaOptimizer::uniform(inner.rates, mlp, inner.steps, 0.1).unwrap();
        let inner = InnerConfig { strategy, ..inner.clone() };
        let config = SupervisedConfig { mlp: mlp.clone(), loss: Loss::Mse, inner };
        let device = innerloop::device::cpu::CpuDevice::new(1).unwrap();
        let shape = Shape { tasks: 16, shots: 3, queries: 2 };
        MetaLearner::<f32, _, _>::new(device, config, shape, vec![phi]).map(|l| l.strategy()).map_err(|e| e.to_string())
    };
    for (inner, reason) in [
        (InnerConfig { minibatch: Some(2), ..sgd.clone() }, "minibatches"),
        (InnerConfig { multi_step: true, ..sgd.clone() }, "a multi-step loss"),
        (InnerConfig { optimizer: InnerOptimizer::ADAM, ..sgd.clone() }, "Adam"),
        (InnerConfig { rates: RateKind::RowColumn, ..sgd.clone() }, "transforms rows"),
    ] {
        let message = build(&mlp, &inner, Some(Strategy::Resident)).unwrap_err();
        assert!(message.starts_with("strategy: resident with") && message.contains(reason), "{message}");
        assert_ne!(build(&mlp, &inner, None), Ok(Strategy::Resident), "{reason}");
    }
    let large = Mlp::new(&[300, 1000, 2], &[Activation::Tanh, Activation::Linear]).unwrap();
    let message = build(&large, &sgd, Some(Strategy::Resident)).unwrap_err();
    assert!(message.contains("bytes a task") && message.contains("at most"), "{message}");
    assert_ne!(build(&large, &sgd, None), Ok(Strategy::Resident));
    assert_eq!(build(&mlp, &sgd, Some(Strategy::Resident)), Ok(Strategy::Resident));
    let sinusoids = Mlp::new(&[1, 40, 40, 1], &[Activation::Relu, Activation::Relu, Activation::Linear]).unwrap();
    let five = InnerConfig { steps: 5, ..sgd };
    assert_eq!(build(&sinusoids, &five, None), Ok(Strategy::Resident));
}

#[test]
fn the_video_gan_has_no_anil() {
    let linear = [Activation::Linear];
    let (generator, discriminator) = (Mlp::new(&[2, 4], &linear).unwrap(), Mlp::new(&[4, 1], &linear).unwrap());
    let inner = InnerConfig { rates: RateKind::Shared, ..InnerConfig::new(Algorithm::Anil, 1) };
    let phi = [&generator, &discriminator].map(|m| MetaOptimizer::uniform(RateKind::Shared, m, 1, 0.1).unwrap());
    let weights = VideoWeights { adversarial: 1.0, reconstruction: 1.0, motion: 1.0, texture: 0.0 };
    let config = VideoConfig { generator, discriminator, frames: 2, frame: None, weights, adversarial: true, inner };
    let device = innerloop::device::cpu::CpuDevice::new(1).unwrap();
    let shape = Shape { tasks: 1, shots: 1, queries: 1 };
    let error = MetaLearner::<f64, _, _>::new(device, config, shape, phi.to_vec()).map(|_| ()).unwrap_err().to_string();
    assert!(error.contains("algorithm") && error.contains("anil"), "{error}");
}

/// The tables of the dual form grow with the square of the steps: too many are refused, and the planner knows.
#[test]
fn absurd_numbers_of_steps_are_refused() {
    let mlp = Mlp::new(&[1024, 1024], &[Activation::Linear]).unwrap();
    let shape = Shape { tasks: 1, shots: 1, queries: 1 };
    let build = |steps: usize, strategy: Option<Strategy>| {
        let inner = InnerConfig { rates: RateKind::Shared, strategy, ..InnerConfig::new(Algorithm::Reptile, steps) };
        let phi = MetaOptimizer::uniform(RateKind::Shared, &mlp, steps, 0.1).unwrap();
        let config = SupervisedConfig { mlp: mlp.clone(), loss: Loss::Mse, inner };
        let device = innerloop::device::cpu::CpuDevice::new(1).unwrap();
        MetaLearner::<f32, _, _>::new(device, config, shape, vec![phi]).map(|l| l.strategy()).map_err(|e| e.to_string())
    };
    for steps in [10_001, usize::MAX] {
        assert!(build(steps, None).unwrap_err().contains("inner steps"));
    }
    assert!(build(1001, Some(Strategy::Dual)).unwrap_err().contains("inner steps"));
    assert_eq!(build(1001, None), Ok(Strategy::Materialised));
}

/// The first checkpoints hold the momentum where the rule is now.
#[test]
fn stored_rules_are_read_in_both_forms() {
    let stored = |optimizer| InnerConfig { optimizer, ..InnerConfig::new(Algorithm::Maml, 3) };
    for optimizer in [InnerOptimizer::Sgd { momentum: 0.5 }, InnerOptimizer::ADAM] {
        let text = serde_json::to_string(&stored(optimizer)).unwrap();
        assert_eq!(serde_json::from_str::<InnerConfig>(&text).unwrap(), stored(optimizer));
    }
    let mut old = serde_json::to_value(stored(InnerOptimizer::Sgd { momentum: 0.0 })).unwrap();
    old.as_object_mut().unwrap().remove("optimizer");
    old["momentum"] = serde_json::json!(0.25);
    let expected = stored(InnerOptimizer::Sgd { momentum: 0.25 });
    assert_eq!(serde_json::from_value::<InnerConfig>(old).unwrap(), expected);
}

#[test]
fn constants_of_adam_out_of_range_are_refused() {
    let mlp = Mlp::new(&[1, 1], &[Activation::Linear]).unwrap();
    for (beta1, beta2, epsilon, field) in [
        (1.0, 0.9, 1e-8, "beta1"),
        (0.9, -0.1, 1e-8, "beta2"),
        (0.9, f64::NAN, 1e-8, "beta2"),
        (0.9, 0.9, 0.0, "epsilon"),
        (0.9, 0.9, f64::INFINITY, "epsilon"),
    ] {
        let optimizer = InnerOptimizer::Adam { beta1, beta2, epsilon };
        let inner = InnerConfig { optimizer, rates: RateKind::Shared, ..InnerConfig::new(Algorithm::Maml, 1) };
        let phi = MetaOptimizer::uniform(RateKind::Shared, &mlp, 1, 0.1).unwrap();
        let config = SupervisedConfig { mlp: mlp.clone(), loss: Loss::Mse, inner };
        let device = innerloop::device::cpu::CpuDevice::new(1).unwrap();
        let shape = Shape { tasks: 1, shots: 1, queries: 1 };
        let error = MetaLearner::<f64, _, _>::new(device, config, shape, vec![phi]).map(|_| ()).unwrap_err();
        assert!(error.to_string().starts_with(field), "{error}");
    }
}
