//! Random meta-learning problems, and everything a learner says about one.

use innerloop::device::cpu::CpuDevice;
use innerloop::model::{Activation, BatchNorm, Mlp, Parameters};
use innerloop::objective::{FrameShape, Loss, VideoWeights};
use innerloop::{
    Algorithm, InnerConfig, InnerOptimizer, Losses, MetaLearner, MetaOptimizer, RateKind, Shape, Strategy as Form,
    SupervisedConfig, SupervisedRows, VideoConfig, VideoRows, forward, forward_changed,
};
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// An objective with its numbers.
#[derive(Clone, Debug)]
pub struct Problem {
    pub kind: Kind,
    pub shape: Shape,
    /// Inputs and targets of the support set, then of the query set.
    pub rows: [Vec<f64>; 4],
    pub parameters: Vec<Parameters<f64>>,
    pub rates: Vec<Vec<f64>>,
    /// Of the minibatches.
    pub seed: u64,
}

#[derive(Clone, Debug)]
pub enum Kind {
    Supervised(SupervisedConfig),
    Video(VideoConfig),
}

/// What a learner answers; every list has one entry a network, or one a task.
#[derive(Debug, PartialEq)]
pub struct Outcome {
    pub losses: Losses<f64>,
    pub gradient: Vec<Vec<f64>>,
    pub rate_gradient: Vec<Vec<f64>>,
    /// By network, then by task.
    pub adapted: Vec<Vec<Vec<f64>>>,
    pub trace_losses: Vec<Losses<f64>>,
    pub trace_outputs: Vec<Vec<f64>>,
}

impl Problem {
    pub fn inner(&self) -> &InnerConfig {
        match &self.kind {
            Kind::Supervised(config) => &config.inner,
            Kind::Video(config) => &config.inner,
        }
    }

    pub fn inner_mut(&mut self) -> &mut InnerConfig {
        match &mut self.kind {
            Kind::Supervised(config) => &mut config.inner,
            Kind::Video(config) => &mut config.inner,
        }
    }

    /// The weights of the query losses after 1, 2, ... steps in the meta-loss.
    pub fn query_weights(&self) -> Vec<f64> {
        let steps = self.inner().steps;
        let mut weights = vec![0.0; steps];
        for (i, weight) in weights.iter_mut().enumerate() {
            *weight = match self.inner().multi_step {
                true => 0.3 + (self.seed % 7) as f64 * i as f64 / 10.0,
                false => f64::from(i + 1 == steps),
            };
        }
        weights
    }

    /// The same with latents of their own for each inner step, where there are any.
    pub fn with_fresh_noise(mut self) -> Self {
        let steps = self.inner().steps;
        if steps > 0 {
            self.inner_mut().fresh_noise = true;
            let mut rng = ChaCha8Rng::seed_from_u64(self.seed);
            let more = self.rows[0].len() * (steps - 1);
            self.rows[0].extend((0..more).map(|_| rng.random_range(-1.5..1.5)));
        }
        self
    }

    /// The same configuration with so many tasks, whose rows are drawn anew.
    pub fn with_tasks(self, tasks: usize) -> Self {
        let Self { kind, shape, seed, .. } = self;
        problem(kind, Shape { tasks, ..shape }, seed)
    }

    /// The nearest that has the folded form.
    fn folding(mut self) -> Self {
        let Kind::Supervised(config) = &mut self.kind else { unreachable!() };
        let mlp = &config.mlp;
        let mut activations = mlp.activations().to_vec();
        *activations.last_mut().unwrap() = Activation::Linear;
        let mut widths = mlp.widths().to_vec();
        if mlp.layers() == 1 {
            widths.insert(1, 3);
            activations.insert(0, Activation::Tanh);
        }
        config.mlp = Mlp::new(&widths, &activations).unwrap();
        config.loss = Loss::Mse;
        let inner = &mut config.inner;
        if matches!(inner.optimizer, InnerOptimizer::Adam { .. }) {
            inner.optimizer = InnerOptimizer::Sgd { momentum: 0.3 };
        }
        *inner = InnerConfig {
            algorithm: Algorithm::Maml,
            steps: inner.steps.max(1),
            weight_decay: 0.0,
            minibatch: None,
            learn_rates: false,
            multi_step: false,
            ..inner.clone()
        };
        problem(self.kind, self.shape, self.seed)
    }

    /// The same with batch normalisation in the hidden layers, from the first on, whose epsilon is given.
    fn with_batch_norms(mut self, epsilons: &[Option<f64>]) -> Self {
        let Kind::Supervised(config) = &mut self.kind else { unreachable!() };
        // A single row has no variance.
        config.inner.minibatch =
            config.inner.minibatch.map(|rows| rows.max(2)).filter(|rows| *rows <= self.shape.shots);
        if self.shape.shots > 1 {
            let hidden = config.mlp.layers() - 1;
            let norm = |epsilon: &Option<f64>| epsilon.map(|epsilon| BatchNorm::new(epsilon).unwrap());
            let norms: Vec<_> = epsilons.iter().take(hidden).map(norm).chain([None]).collect();
            config.mlp = config.mlp.clone().with_batch_norms(&norms).unwrap();
            self.parameters = vec![Parameters::from_values(&config.mlp, self.parameters[0].values().to_vec()).unwrap()];
        }
        self
    }

    /// The forms that exist for it.
    pub fn forms(&self) -> &'static [Form] {
        let inner = self.inner();
        let adam = matches!(inner.optimizer, InnerOptimizer::Adam { .. });
        let resident = matches!(self.kind, Kind::Supervised(_))
            && self.networks()[0].parameter_count() < 10_000
            && !self.networks()[0].has_batch_norm()
            && !(adam || inner.rates.transforms_rows() || inner.minibatch.is_some() || inner.multi_step);
        match (adam || inner.rates == RateKind::PerParameter, resident) {
            (false, false) => &[Form::Dual, Form::Materialised],
            (false, true) => &[Form::Dual, Form::Materialised, Form::Resident],
            (true, false) => &[Form::Materialised],
            (true, true) => &[Form::Materialised, Form::Resident],
        }
    }

    pub fn networks(&self) -> Vec<Mlp> {
        match &self.kind {
            Kind::Supervised(config) => vec![config.mlp.clone()],
            Kind::Video(config) if config.adversarial => vec![config.generator.clone(), config.discriminator.clone()],
            Kind::Video(config) => vec![config.generator.clone()],
        }
    }

    /// Runs the meta-step, and the trace, in that form on so many threads.
    pub fn solve(&self, form: Form, threads: usize) -> Outcome {
        let mut problem = self.clone();
        problem.inner_mut().strategy = Some(form);
        let [a, b, c, d] = &self.rows;
        match &problem.kind {
            Kind::Supervised(config) => {
                let rows = SupervisedRows { support_x: a, support_y: b, query_x: c, query_y: d };
                problem.carry_out(config, rows, threads)
            }
            Kind::Video(config) => {
                let rows = VideoRows { support_z: a, support_x: b, query_z: c, query_x: d };
                problem.carry_out(config, rows, threads)
            }
        }
    }

    fn carry_out<O: innerloop::Objective>(&self, config: &O, rows: O::Rows<'_, f64>, threads: usize) -> Outcome {
        let networks = self.networks();
        let phi: Vec<_> = networks
            .iter()
            .zip(&self.rates)
            .map(|(mlp, rates)| {
                MetaOptimizer::from_values(self.inner().rates, mlp, self.inner().steps, rates.clone()).unwrap()
            })
            .collect();
        let device = CpuDevice::new(threads).unwrap();
        let mut learner = MetaLearner::new(device.clone(), config.clone(), self.shape, phi.clone()).unwrap();
        let mut tracer = MetaLearner::tracer(device, config.clone(), self.shape, phi).unwrap();
        for (i, parameters) in self.parameters.iter().enumerate() {
            learner.set_parameters(i, parameters).unwrap();
            tracer.set_parameters(i, parameters).unwrap();
        }
        let draws = || ChaCha8Rng::seed_from_u64(self.seed);
        if self.inner().multi_step {
            learner.set_query_weights(&self.query_weights()).unwrap();
        }
        // Twice: the second run must not see what the first has left behind.
        learner.run(rows, &mut ChaCha8Rng::seed_from_u64(self.seed + 1)).unwrap();
        let losses = learner.run(rows, &mut draws()).unwrap().clone();
        let trace = tracer.trace(rows, &mut draws()).unwrap();
        let all = 0..networks.len();
        let gradient = all.clone().map(|i| learner.gradient(i).values().to_vec()).collect();
        let rate_gradient = all.clone().map(|i| learner.phi_gradient(i)).collect();
        let mut adapted = Vec::new();
        for i in all {
            let tasks = 0..self.shape.tasks;
            let of_learner: Vec<_> = tasks.clone().map(|t| learner.adapted(i, t).unwrap().values().to_vec()).collect();
            let of_tracer: Vec<_> = tasks.map(|t| tracer.adapted(i, t).unwrap().values().to_vec()).collect();
            let error = distance(&of_learner.concat(), &of_tracer.concat());
            assert!(error <= 1e-12, "a tracer adapts otherwise than a learner: {error:e}");
            if matches!(self.inner().strategy, Some(Form::Dual | Form::Folded)) {
                self.check_changes(&learner, i, &of_learner);
            }
            adapted.push(of_learner);
        }
        Outcome { losses, gradient, rate_gradient, adapted, trace_losses: trace.losses, trace_outputs: trace.outputs }
    }
}

impl Problem {
    /// What the rows of a learner's changes make of the shared parameters, written out and in one forward pass of all tasks,
    /// must be the adapted ones.
    fn check_changes<O: innerloop::Objective>(
        &self,
        learner: &MetaLearner<f64, CpuDevice, O>,
        network: usize,
        adapted: &[Vec<f64>],
    ) {
        let shared = &self.parameters[network];
        let mlp = shared.mlp();
        let changes: Vec<_> = (0..self.shape.tasks).map(|task| learner.change(network, task).unwrap()).collect();
        for (change, adapted) in changes.iter().zip(adapted) {
            let mut written = shared.clone();
            for (index, layer) in change.layers().iter().enumerate() {
                let (inputs, outputs) = (mlp.widths()[index], mlp.widths()[index + 1]);
                for (at, value) in written.values_mut()[mlp.weight_range(index)].iter_mut().enumerate() {
                    let rows = layer.deltas.chunks_exact(outputs).zip(layer.values.chunks_exact(inputs));
                    let moved: f64 = rows.map(|(delta, a)| delta[at / inputs] * a[at % inputs]).sum();
                    *value = layer.share * *value + moved;
                }
                let bias = &mut written.values_mut()[mlp.bias_range(index)];
                bias.iter_mut().zip(&layer.bias).for_each(|(b, moved)| *b = layer.share * *b + moved);
            }
            let error = distance(written.values(), adapted);
            assert!(error <= 1e-12, "a change written out differs from the adapted parameters: {error:e}");
        }
        let mut rng = ChaCha8Rng::seed_from_u64(self.seed);
        let size = 3 * mlp.inputs();
        let inputs: Vec<f64> = (0..changes.len() * size).map(|_| rng.random_range(-1.0..1.0)).collect();
        let device = CpuDevice::new(1).unwrap();
        let together = forward_changed(&device, shared, &changes.iter().collect::<Vec<_>>(), &inputs).unwrap();
        let apart: Vec<f64> = (adapted.iter().zip(inputs.chunks_exact(size)))
            .flat_map(|(adapted, inputs)| {
                forward(&device, &Parameters::from_values(mlp, adapted.clone()).unwrap(), inputs).unwrap()
            })
            .collect();
        let error = distance(&together, &apart);
        assert!(
            error <= 1e-12,
            "a forward pass of all changes differs from those of the adapted parameters: {error:e}"
        );
    }
}

/// The norm of the difference over the norm; what is 0 but for rounding in numbers of order 1 counts as 0.
pub fn distance(got: &[f64], want: &[f64]) -> f64 {
    assert_eq!(got.len(), want.len());
    let norm = |values: &mut dyn Iterator<Item = f64>| values.map(|v| v * v).sum::<f64>().sqrt();
    let difference = norm(&mut got.iter().zip(want).map(|(g, w)| g - w));
    difference / norm(&mut want.iter().copied()).max(1e-3)
}

fn activation(smooth: bool) -> impl Strategy<Value = Activation> {
    use Activation::{LeakyRelu, Linear, Relu, Sigmoid, Tanh};
    prop::sample::select(if smooth { vec![Tanh, Sigmoid] } else { vec![Linear, Relu, LeakyRelu, Tanh, Sigmoid] })
}

/// From `inputs` to `outputs` in up to `depth` layers.
fn mlp(
    inputs: impl Strategy<Value = usize>,
    outputs: impl Strategy<Value = usize>,
    width: usize,
    depth: usize,
    smooth: bool,
) -> impl Strategy<Value = Mlp> {
    let hidden = vec((1..=width, activation(smooth)), 0..depth);
    (inputs, hidden, outputs, activation(smooth)).prop_map(|(inputs, hidden, outputs, last)| {
        let widths: Vec<_> = std::iter::once(inputs).chain(hidden.iter().map(|h| h.0)).chain([outputs]).collect();
        let activations: Vec<_> = hidden.iter().map(|h| h.1).chain([last]).collect();
        Mlp::new(&widths, &activations).unwrap()
    })
}

fn shape() -> impl Strategy<Value = Shape> {
    (1..=4usize, 1..=6usize, 1..=6usize).prop_map(|(tasks, shots, queries)| Shape { tasks, shots, queries })
}

/// Inner loops, with the algorithms and the kinds of rates given.
fn inner(algorithms: Vec<Algorithm>, rates: Vec<RateKind>, shots: usize) -> impl Strategy<Value = InnerConfig> {
    // A large epsilon keeps Adam's slopes such that differences over a finite step can follow them.
    let optimizer = prop_oneof![
        Just(InnerOptimizer::Sgd { momentum: 0.0 }),
        (0.1..0.9).prop_map(|momentum| InnerOptimizer::Sgd { momentum }),
        (0.0..0.95, 0.0..0.999, 0.3..1.0).prop_map(|(beta1, beta2, epsilon)| InnerOptimizer::Adam {
            beta1,
            beta2,
            epsilon
        }),
    ];
    let minibatch = option::of(1..=shots);
    let weight_decay = prop_oneof![Just(0.0), 0.1..0.5];
    let rates = prop::sample::select(rates);
    let flags = (any::<bool>(), any::<bool>());
    (prop::sample::select(algorithms), 0..=4usize, optimizer, weight_decay, minibatch, rates, flags).prop_map(
        |(algorithm, steps, optimizer, weight_decay, minibatch, rates, (learn_rates, multi_step))| InnerConfig {
            // Gradient descent alone decays weights, and is what transformed rows are for.
            optimizer: match optimizer {
                InnerOptimizer::Adam { .. } if rates.transforms_rows() => InnerOptimizer::Sgd { momentum: 0.5 },
                other => other,
            },
            weight_decay: if matches!(optimizer, InnerOptimizer::Adam { .. }) { 0.0 } else { weight_decay },
            minibatch,
            rates,
            multi_step: multi_step && steps > 0 && algorithm != Algorithm::Reptile,
            learn_rates: learn_rates && (algorithm != Algorithm::Reptile || !rates.transforms_rows()),
            ..InnerConfig::new(algorithm, steps)
        },
    )
}

/// Fills in the numbers.
fn problem(kind: Kind, shape: Shape, seed: u64) -> Problem {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let (inputs, outputs) = match &kind {
        Kind::Supervised(config) => (config.mlp.inputs(), config.mlp.outputs()),
        Kind::Video(config) => (config.generator.inputs(), config.generator.outputs()),
    };
    let mut uniform =
        |n: usize, from: f64, to: f64| -> Vec<f64> { (0..n).map(|_| rng.random_range(from..to)).collect() };
    let (support, query) = (shape.tasks * shape.shots, shape.tasks * shape.queries);
    let mut targets = |rows: usize| match &kind {
        Kind::Supervised(SupervisedConfig { loss: Loss::BceWithLogits, .. }) => uniform(rows * outputs, 0.0, 1.0),
        Kind::Supervised(SupervisedConfig { loss: Loss::CrossEntropy, .. }) => {
            let mut values = uniform(rows * outputs, 0.01, 1.0);
            for row in values.chunks_mut(outputs) {
                let total: f64 = row.iter().sum();
                row.iter_mut().for_each(|v| *v /= total);
            }
            values
        }
        _ => uniform(rows * outputs, -1.0, 1.0),
    };
    let (support_y, query_y) = (targets(support), targets(query));
    let rows = [uniform(support * inputs, -1.5, 1.5), support_y, uniform(query * inputs, -1.5, 1.5), query_y];
    let mut problem = Problem { kind, shape, rows, parameters: Vec::new(), rates: Vec::new(), seed };
    for mlp in problem.networks() {
        problem.parameters.push(Parameters::initialise(&mlp, &mut rng));
        let (kind, steps) = (problem.inner().rates, problem.inner().steps);
        let phi = MetaOptimizer::<f64>::initialise(kind, &mlp, steps, 0.1, &mut rng).unwrap();
        let rates = if kind.transforms_rows() { steps * mlp.layers() } else { phi.values().len() };
        // Far from the identity where phi transforms rows.
        let draw = |i| if i < rates { rng.random_range(0.02..0.3) } else { rng.random_range(-0.5..1.0) };
        problem.rates.push((0..phi.values().len()).map(draw).collect());
    }
    problem
}

/// Every kind of phi.
pub const ALL: &[RateKind] = &[
    RateKind::Shared,
    RateKind::PerLayerPerStep,
    RateKind::PerParameter,
    RateKind::RowColumn,
    RateKind::Network { rank: 3 },
];
/// Those whose losses are smooth in all their parameters.
pub const SMOOTH: &[RateKind] = ALL.split_at(4).0;
/// Those of the video GAN: all of them.
pub const VIDEO: &[RateKind] = ALL;

/// Supervised problems.
pub fn supervised(width: usize, depth: usize, smooth: bool, rates: &[RateKind]) -> impl Strategy<Value = Problem> {
    use Algorithm::{Anil, FirstOrderMaml, Maml, Reptile};
    let rates = rates.to_vec();
    let loss = prop::sample::select(vec![Loss::Mse, Loss::BceWithLogits, Loss::CrossEntropy]);
    let inner =
        move |shape: Shape| (Just(shape), inner(vec![Maml, FirstOrderMaml, Anil, Reptile], rates.clone(), shape.shots));
    (mlp(1..=width, 1..=width, width, depth, smooth), loss, shape().prop_flat_map(inner), any::<u64>()).prop_map(
        |(mlp, loss, (shape, inner), seed)| {
            problem(Kind::Supervised(SupervisedConfig { mlp, loss, inner }), shape, seed >> 1)
        },
    )
}

/// Supervised problems some of whose hidden layers, as a rule, have batch normalisation.
pub fn normalised(width: usize, depth: usize, smooth: bool, rates: &[RateKind]) -> impl Strategy<Value = Problem> {
    let epsilons = vec(option::weighted(0.8, 0.1..1.0), depth);
    (supervised(width, depth, smooth, rates), epsilons)
        .prop_map(|(problem, epsilons)| problem.with_batch_norms(&epsilons))
}

/// Supervised problems that have the folded form.
pub fn folding(width: usize, depth: usize) -> impl Strategy<Value = Problem> {
    supervised(width, depth, false, &ALL[..2]).prop_map(Problem::folding)
}

/// Video problems.
pub fn video(width: usize, depth: usize, smooth: bool, rates: &[RateKind]) -> impl Strategy<Value = Problem> {
    use Algorithm::{FirstOrderMaml, Maml, Reptile};
    let rates = rates.to_vec();
    let weight = || prop_oneof![Just(0.0), 0.2..2.0];
    let weights =
        (0.0..1.0, weight(), weight(), weight()).prop_map(|(adversarial, reconstruction, motion, texture)| {
            VideoWeights { adversarial, reconstruction, motion, texture }
        });
    let sizes = (1..=4usize, 1..=3usize, 1..=2usize, 1..=2usize);
    let players = sizes.prop_flat_map(move |(frames, height, columns, channels)| {
        let frame = FrameShape { height, width: columns, channels };
        let clip = frames * height * columns * channels;
        let generator = mlp(1..=width, Just(clip), width, depth, smooth);
        ((Just(frames), Just(frame)), generator, mlp(Just(clip), Just(1), width, depth, smooth))
    });
    let inner =
        move |shape: Shape| (Just(shape), inner(vec![Maml, FirstOrderMaml, Reptile], rates.clone(), shape.shots));
    (players, weights, any::<bool>(), shape().prop_flat_map(inner), any::<u64>()).prop_map(
        |(((frames, frame), generator, discriminator), weights, adversarial, (shape, inner), seed)| {
            let config =
                VideoConfig { generator, discriminator, frames, frame: Some(frame), weights, adversarial, inner };
            problem(Kind::Video(config), shape, seed >> 1)
        },
    )
}
