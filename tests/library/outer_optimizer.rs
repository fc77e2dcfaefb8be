//! The outer optimizer: its rules, what it does when something diverges, and that it continues where it stopped.

use innerloop::device::cpu::CpuDevice;
use innerloop::model::{Activation, Mlp, Parameters};
use innerloop::objective::{Loss, VideoWeights};
use innerloop::{
    Algorithm, InnerConfig, MetaLearner, MetaOptimizer, Objective, OuterConfig, OuterKind, RateKind, Scalar, Schedule,
    Shape, Strategy, SupervisedConfig, SupervisedRows, VideoConfig, VideoRows,
};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

const SHAPE: Shape = Shape { tasks: 5, shots: 3, queries: 2 };
const ADAM: OuterKind = OuterKind::Adam { beta1: 0.8, beta2: 0.95, epsilon: 1e-6 };

fn wave(n: usize, by: f64) -> Vec<f64> {
    (0..n).map(|i| (i as f64 * by + by).sin()).collect()
}

fn rng() -> ChaCha8Rng {
    ChaCha8Rng::seed_from_u64(5)
}

fn inner() -> InnerConfig {
    InnerConfig { learn_rates: true, rates: RateKind::PerLayerPerStep, ..InnerConfig::new(Algorithm::Maml, 2) }
}

fn supervised() -> SupervisedConfig {
    let mlp = Mlp::with_hidden(3, &[7, 6], 2, Activation::Tanh, Activation::Linear).unwrap();
    SupervisedConfig { mlp, loss: Loss::Mse, inner: inner() }
}

fn video() -> VideoConfig {
    let generator = Mlp::with_hidden(3, &[5], 6, Activation::Relu, Activation::Tanh).unwrap();
    let discriminator = Mlp::with_hidden(6, &[4], 1, Activation::LeakyRelu, Activation::Linear).unwrap();
    let weights = VideoWeights { adversarial: 0.5, reconstruction: 1.0, motion: 0.5, texture: 0.0 };
    VideoConfig { generator, discriminator, frames: 2, frame: None, weights, adversarial: true, inner: inner() }
}

fn learner<O: Objective>(objective: &O, mlps: &[&Mlp]) -> MetaLearner<f64, CpuDevice, O> {
    learner_of(RateKind::PerLayerPerStep, objective, mlps)
}

fn learner_of<O: Objective>(kind: RateKind, objective: &O, mlps: &[&Mlp]) -> MetaLearner<f64, CpuDevice, O> {
    // Three threads, hence three lanes that must all get the new parameters.
    let device = CpuDevice::new(3).unwrap();
    let phi = mlps.iter().map(|m| MetaOptimizer::initialise(kind, m, 2, 0.1, &mut rng()).unwrap()).collect();
    let mut learner = MetaLearner::new(device, objective.clone(), SHAPE, phi).unwrap();
    for (i, mlp) in mlps.iter().enumerate() {
        learner.set_parameters(i, &Parameters::initialise(mlp, &mut rng())).unwrap();
    }
    learner
}

/// A vector under the outer optimizer, element by element as the rules are written down.
struct Scalars {
    values: Vec<f64>,
    moments: Vec<(f64, f64)>,
}

impl Scalars {
    fn new(values: &[f64]) -> Self {
        Self { values: values.to_vec(), moments: vec![(0.0, 0.0); values.len()] }
    }

    /// What the rule subtracts from each element in step `t`, counted from 1.
    fn changes(&mut self, kind: OuterKind, rate: f64, t: i32, gradient: &[f64]) -> Vec<f64> {
        let rule = |(g, (m, v)): (&f64, &mut (f64, f64))| match kind {
            OuterKind::Sgd => rate * g,
            OuterKind::Adam { beta1, beta2, epsilon } => {
                *m = beta1 * *m + (1.0 - beta1) * g;
                *v = beta2 * *v + (1.0 - beta2) * g.powi(2);
                rate * (*m / (1.0 - beta1.powi(t))) / ((*v / (1.0 - beta2.powi(t))).sqrt() + epsilon)
            }
        };
        gradient.iter().zip(&mut self.moments).map(rule).collect()
    }
}

fn near(got: &[f64], want: &[f64], what: &str) {
    for (g, w) in got.iter().zip(want) {
        assert!((g - w).abs() <= 1e-12 * (1.0 + w.abs()), "{what}: {g}, not {w}");
    }
}

/// Six updates against a recomputation from the gradients the learner reports.
fn follow<O: Objective>(
    kind: RateKind,
    objective: &O,
    mlps: &[&Mlp],
    rows: O::Rows<'_, f64>,
    config: &OuterConfig,
) -> bool {
    let mut learner = learner_of(kind, objective, mlps);
    let mut parameters: Vec<_> = (0..mlps.len()).map(|i| Scalars::new(learner.parameters(i).values())).collect();
    let mut phi: Vec<_> = (0..mlps.len()).map(|i| Scalars::new(learner.phi(i).values())).collect();
    let mut clipped = false;
    for t in 1..=6 {
        learner.run(rows, &mut rng()).unwrap();
        let factor = match config.schedule {
            Schedule::Constant => 1.0,
            Schedule::Cosine { steps, floor } => {
                let progress = (f64::from(t - 1) / steps as f64).min(1.0);
                floor + (1.0 - floor) * (1.0 + (std::f64::consts::PI * progress).cos()) / 2.0
            }
            Schedule::Linear { steps, floor } => floor.max(1.0 - (1.0 - floor) * f64::from(t - 1) / steps as f64),
        };
        for i in 0..mlps.len() {
            let mut gradient = learner.gradient(i).values().to_vec();
            let norm = gradient.iter().map(|g| g * g).sum::<f64>().sqrt();
            if let Some(clip) = config.clip.filter(|clip| norm > *clip) {
                gradient.iter_mut().for_each(|g| *g *= clip / norm);
                clipped = true;
            }
            let changes = parameters[i].changes(config.kind, config.learning_rate * factor, t, &gradient);
            parameters[i].values.iter_mut().zip(changes).for_each(|(p, c)| *p -= c);
            // Rates move in their logarithm: d/d(log rate) = rate * d/d(rate). What follows them moves as it is.
            let rates = if kind.transforms_rows() { 2 * 2 * mlps[i].layers() } else { phi[i].values.len() };
            let widths: usize = mlps[i].widths().windows(2).map(|pair| pair[0] + pair[1]).sum();
            let factors = if kind.transforms_rows() { 2 * widths } else { 0 };
            let mut gradient = learner.phi_gradient(i);
            gradient.iter_mut().zip(&phi[i].values).take(rates).for_each(|(g, rate)| *g *= rate);
            assert!(gradient[..rates].iter().any(|g| *g != 0.0));
            assert!(rates == gradient.len() || gradient[rates..].iter().any(|g| *g != 0.0));
            let norm = gradient[rates..].iter().map(|g| g * g).sum::<f64>().sqrt();
            if let Some(clip) = config.clip.filter(|clip| norm > *clip) {
                gradient[rates..].iter_mut().for_each(|g| *g *= clip / norm);
            }
            // Both rates are applied to a change of unit rate.
            let changes = phi[i].changes(config.kind, factor, t, &gradient);
            for (k, (p, c)) in phi[i].values.iter_mut().zip(changes).enumerate() {
                *p = if k < rates {
                    (p.ln() - config.phi_learning_rate * c).exp()
                } else if k < rates + factors {
                    *p - config.phi_factor_learning_rate * c
                } else {
                    *p - config.phi_weight_learning_rate * c
                };
            }
        }
        learner.update(config).unwrap();
        assert_eq!(learner.steps_done(), t as u64);
        for i in 0..mlps.len() {
            near(learner.parameters(i).values(), &parameters[i].values, "parameters");
            near(learner.phi(i).values(), &phi[i].values, "rates");
        }
    }
    clipped
}

#[test]
fn updates_follow_their_rules() {
    let (config, gan) = (supervised(), video());
    let [x, y] = [3, 2].map(|width| (wave(5 * 3 * width, 0.7), wave(5 * 2 * width, 0.4)));
    let rows = SupervisedRows { support_x: &x.0, support_y: &y.0, query_x: &x.1, query_y: &y.1 };
    let [clips, latents] = [6, 3].map(|width| (wave(5 * 3 * width, 0.3), wave(5 * 2 * width, 0.9)));
    let videos = VideoRows { support_x: &clips.0, support_z: &latents.0, query_x: &clips.1, query_z: &latents.1 };
    for kind in [OuterKind::Sgd, ADAM] {
        for clip in [None, Some(0.05)] {
            // The run is longer than the schedule: the rate stays at the floor.
            let falling = [Schedule::Cosine { steps: 4, floor: 0.1 }, Schedule::Linear { steps: 4, floor: 0.1 }];
            for schedule in falling.into_iter().chain([Schedule::Constant]) {
                let outer = OuterConfig {
                    kind,
                    learning_rate: 0.05,
                    phi_learning_rate: 0.2,
                    schedule,
                    clip,
                    ..OuterConfig::adam(1.0)
                };
                let clipped = follow(RateKind::PerLayerPerStep, &config, &[&config.mlp], rows, &outer);
                assert_eq!(clipped, clip.is_some());
                let clipped =
                    follow(RateKind::PerLayerPerStep, &gan, &[&gan.generator, &gan.discriminator], videos, &outer);
                assert_eq!(clipped, clip.is_some());
            }
        }
    }
}

#[test]
fn weights_of_phi_follow_their_rules() {
    let (config, gan) = (supervised(), video());
    let [x, y] = [3, 2].map(|width| (wave(5 * 3 * width, 0.7), wave(5 * 2 * width, 0.4)));
    let rows = SupervisedRows { support_x: &x.0, support_y: &y.0, query_x: &x.1, query_y: &y.1 };
    let [clips, latents] = [6, 3].map(|width| (wave(5 * 3 * width, 0.3), wave(5 * 2 * width, 0.9)));
    let videos = VideoRows { support_x: &clips.0, support_z: &latents.0, query_x: &clips.1, query_z: &latents.1 };
    for kind in [RateKind::RowColumn, RateKind::Network { rank: 2 }] {
        let inner = InnerConfig { rates: kind, ..inner() };
        let config = SupervisedConfig { inner: inner.clone(), ..config.clone() };
        let gan = VideoConfig { inner, ..gan.clone() };
        for clip in [None, Some(1e-3)] {
            let outer = OuterConfig {
                kind: ADAM,
                phi_factor_learning_rate: 0.03,
                phi_weight_learning_rate: 0.07,
                clip,
                ..OuterConfig::adam(0.05)
            };
            follow(kind, &config, &[&config.mlp], rows, &outer);
            follow(kind, &gan, &[&gan.generator, &gan.discriminator], videos, &outer);
        }
    }
}

/// phi alone is trained when the parameters are not.
#[test]
fn parameters_that_are_not_trained_stay() {
    let inner = InnerConfig { rates: RateKind::Network { rank: 2 }, ..inner() };
    let config = SupervisedConfig { inner, ..supervised() };
    let [x, y] = [3, 2].map(|width| (wave(5 * 3 * width, 0.7), wave(5 * 2 * width, 0.4)));
    let rows = SupervisedRows { support_x: &x.0, support_y: &y.0, query_x: &x.1, query_y: &y.1 };
    let mut learner = learner_of(config.inner.rates, &config, &[&config.mlp]);
    let before = (learner.parameters(0), learner.phi(0));
    for _ in 0..2 {
        learner.run(rows, &mut rng()).unwrap();
        learner.update(&OuterConfig { trains_parameters: false, ..OuterConfig::adam(0.1) }).unwrap();
    }
    assert_eq!(learner.parameters(0), before.0);
    let moved = learner.phi(0).values().iter().zip(before.1.values()).filter(|(a, b)| a != b).count();
    assert!(moved * 10 > before.1.values().len() * 9, "only {moved} values of phi moved");
}

/// Derivative-order annealing: the steps before and after are those of learners that never were anything else.
#[test]
fn another_algorithm_takes_over() {
    let [x, y] = [3, 2].map(|width| (wave(5 * 3 * width, 0.7), wave(5 * 2 * width, 0.4)));
    let rows = SupervisedRows { support_x: &x.0, support_y: &y.0, query_x: &x.1, query_y: &y.1 };
    let kind = RateKind::Network { rank: 2 };
    let of = |algorithm| {
        let inner = InnerConfig { rates: kind, algorithm, ..inner() };
        SupervisedConfig { inner, ..supervised() }
    };
    let (first, second) = (of(Algorithm::FirstOrderMaml), of(Algorithm::Maml));
    let step = |learner: &mut MetaLearner<f64, CpuDevice, SupervisedConfig>| {
        learner.run(rows, &mut rng()).unwrap();
        learner.update(&OuterConfig::adam(0.02)).unwrap();
    };
    let mut whole = learner_of(kind, &second, &[&second.mlp]);
    whole.set_algorithm(Algorithm::FirstOrderMaml).unwrap();
    (0..2).for_each(|_| step(&mut whole));
    let mut apart = learner_of(kind, &first, &[&first.mlp]);
    (0..2).for_each(|_| step(&mut apart));
    assert_eq!(whole.parameters(0), apart.parameters(0));
    let (parameters, phi, state) = (apart.parameters(0), apart.phi(0), apart.optimizer_state());
    let mut apart = learner_of(kind, &second, &[&second.mlp]);
    apart.set_parameters(0, &parameters).unwrap();
    apart.restore(&state, &[phi]).unwrap();
    whole.set_algorithm(Algorithm::Maml).unwrap();
    (0..2).for_each(|_| step(&mut whole));
    (0..2).for_each(|_| step(&mut apart));
    assert_eq!((whole.parameters(0), whole.phi(0)), (apart.parameters(0), apart.phi(0)));
    assert_eq!(whole.optimizer_state(), apart.optimizer_state());
}

#[test]
fn rates_that_are_not_learned_stay() {
    for (algorithm, learn_rates) in [(Algorithm::Maml, false), (Algorithm::Reptile, true)] {
        let config = SupervisedConfig { inner: InnerConfig { learn_rates, algorithm, ..inner() }, ..supervised() };
        let [x, y] = [3, 2].map(|width| (wave(5 * 3 * width, 0.7), wave(5 * 2 * width, 0.4)));
        let rows = SupervisedRows { support_x: &x.0, support_y: &y.0, query_x: &x.1, query_y: &y.1 };
        let mut learner = learner(&config, &[&config.mlp]);
        let before = (learner.parameters(0), learner.phi(0));
        learner.run(rows, &mut rng()).unwrap();
        learner.update(&OuterConfig { kind: ADAM, ..OuterConfig::adam(0.1) }).unwrap();
        assert_ne!(learner.parameters(0), before.0);
        assert_eq!(learner.phi(0), before.1);
    }
}

#[test]
fn phi_alone_is_trained_without_the_gradient_of_the_parameters() {
    let config = SupervisedConfig { inner: inner(), ..supervised() };
    let [x, y] = [3, 2].map(|width| (wave(5 * 3 * width, 0.7), wave(5 * 2 * width, 0.4)));
    let rows = SupervisedRows { support_x: &x.0, support_y: &y.0, query_x: &x.1, query_y: &y.1 };
    let outer = OuterConfig { trains_parameters: false, ..OuterConfig::adam(0.1) };
    let mut learners = [(); 2].map(|()| learner(&config, &[&config.mlp]));
    learners[1].set_trains_parameters(false);
    let before = learners[0].parameters(0);
    for learner in &mut learners {
        learner.run(rows, &mut rng()).unwrap();
        learner.update(&outer).unwrap();
    }
    let [whole, without] = learners;
    assert!(without.gradient(0).values().iter().all(|g| *g == 0.0));
    assert!(whole.gradient(0).values().iter().any(|g| *g != 0.0));
    assert_ne!(without.phi(0), learner(&config, &[&config.mlp]).phi(0));
    assert_eq!((without.phi(0), without.parameters(0)), (whole.phi(0), before));
    let mut without = without;
    let error = without.update(&OuterConfig::adam(0.1)).unwrap_err().to_string();
    assert!(error.contains("not computed") && error.contains("set_trains_parameters"), "{error}");
}

/// One linear unit, one task, one row: numbers that overflow just where it is wanted.
fn overflow<T: Scalar>(steps: usize, rate: f64, [support_x, support_y, query_x, query_y]: [f64; 4], what: &str) {
    for strategy in [Strategy::Dual, Strategy::Materialised] {
        let mlp = Mlp::new(&[1, 1], &[Activation::Linear]).unwrap();
        let inner = InnerConfig {
            rates: RateKind::Shared,
            learn_rates: steps > 0,
            strategy: Some(strategy),
            ..InnerConfig::new(Algorithm::Maml, steps)
        };
        let phi = MetaOptimizer::<T>::uniform(RateKind::Shared, &mlp, steps, rate).unwrap();
        let config = SupervisedConfig { mlp: mlp.clone(), loss: Loss::Mse, inner };
        let shape = Shape { tasks: 1, shots: 1, queries: 1 };
        let mut learner = MetaLearner::new(CpuDevice::new(1).unwrap(), config, shape, vec![phi]).unwrap();
        let outer = OuterConfig::adam(0.1);
        // One good update first, so that there is a state to lose.
        let one = [T::ONE];
        let good = SupervisedRows { support_x: &one, support_y: &one, query_x: &one, query_y: &one };
        learner.run(good, &mut rng()).unwrap();
        learner.update(&outer).unwrap();
        learner.set_parameters(0, &Parameters::zeros(&mlp)).unwrap();
        let before = (learner.parameters(0), learner.phi(0), learner.optimizer_state());
        assert!(before.2.networks[0][0].values()[0] != T::ZERO);

        let [support_x, support_y, query_x, query_y] =
            [support_x, support_y, query_x, query_y].map(|v| [T::from_f64(v)]);
        let bad = SupervisedRows { support_x: &support_x, support_y: &support_y, query_x: &query_x, query_y: &query_y };
        learner.run(bad, &mut rng()).unwrap();
        let message = learner.update(&outer).unwrap_err().to_string();
        assert!(message.starts_with(what) && message.contains("meta-step 2;"), "{message}");
        assert_eq!((learner.parameters(0), learner.phi(0), learner.optimizer_state()), before);

        // And a good batch goes on from there.
        learner.run(good, &mut rng()).unwrap();
        learner.update(&outer).unwrap();
        assert_eq!(learner.steps_done(), 2);
        assert!(learner.parameters(0).values().iter().all(|v| v.is_finite()));
    }
}

#[test]
fn what_is_not_finite_changes_nothing() {
    overflow::<f64>(0, 0.1, [1.0, 1.0, 1.0, 1e200], "loss became inf");
    overflow::<f64>(0, 0.1, [1.0, 1.0, 1.0, f64::NAN], "loss became NaN");
    overflow::<f32>(2, 0.1, [1.0, 1e30, 1.0, 1.0], "loss became ");
    // A finite loss whose gradient is not: 2 * 1e15 * 1e30.
    overflow::<f32>(0, 0.1, [1.0, 1.0, 1e30, 1e15], "gradient became ");
    // Two finite gradients whose product, the rate's gradient, is not.
    overflow::<f32>(1, 1e-25, [1.0, 1.8e19, 1.0, 1.8e19], "gradient of the rates became ");
}

/// Continues bit by bit where another learner stopped.
fn resume<O: Objective>(objective: &O, mlps: &[&Mlp], rows: O::Rows<'_, f64>) {
    let schedule = Schedule::Cosine { steps: 8, floor: 0.0 };
    let outer = OuterConfig { kind: ADAM, schedule, clip: Some(0.5), ..OuterConfig::adam(0.02) };
    let advance = |learner: &mut MetaLearner<f64, CpuDevice, O>| {
        for _ in 0..3 {
            learner.run(rows, &mut rng()).unwrap();
            learner.update(&outer).unwrap();
        }
    };
    let mut whole = learner(objective, mlps);
    advance(&mut whole);
    let all = 0..mlps.len();
    let parameters: Vec<_> = all.clone().map(|i| whole.parameters(i)).collect();
    let phi: Vec<_> = all.clone().map(|i| whole.phi(i)).collect();
    let state = whole.optimizer_state();
    assert_eq!(state.steps, 3);
    advance(&mut whole);

    let mut second = learner(objective, mlps);
    for (i, parameters) in parameters.iter().enumerate() {
        second.set_parameters(i, parameters).unwrap();
    }
    second.restore(&state, &phi).unwrap();
    assert_eq!(second.optimizer_state(), state);
    advance(&mut second);
    for i in all {
        assert_eq!(whole.parameters(i), second.parameters(i));
        assert_eq!(whole.phi(i), second.phi(i));
    }
    assert_eq!(whole.optimizer_state(), second.optimizer_state());
}

#[test]
fn a_restored_learner_continues_bit_by_bit() {
    let (config, gan) = (supervised(), video());
    let [x, y] = [3, 2].map(|width| (wave(5 * 3 * width, 0.7), wave(5 * 2 * width, 0.4)));
    let rows = SupervisedRows { support_x: &x.0, support_y: &y.0, query_x: &x.1, query_y: &y.1 };
    resume(&config, &[&config.mlp], rows);
    let [clips, latents] = [6, 3].map(|width| (wave(5 * 3 * width, 0.3), wave(5 * 2 * width, 0.9)));
    let videos = VideoRows { support_x: &clips.0, support_z: &latents.0, query_x: &clips.1, query_z: &latents.1 };
    resume(&gan, &[&gan.generator, &gan.discriminator], videos);
}

#[test]
fn the_state_of_other_networks_is_refused() {
    let (config, gan) = (supervised(), video());
    let mut one = learner(&config, &[&config.mlp]);
    let two = learner(&gan, &[&gan.generator, &gan.discriminator]);
    let before = one.optimizer_state();
    let phi = [two.phi(0), two.phi(1)];
    assert!(one.restore(&two.optimizer_state(), &phi).is_err());
    assert!(one.restore(&before, &phi).is_err());
    assert_eq!(one.optimizer_state(), before);
}
