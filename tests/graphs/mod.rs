//! Meta-steps as graphs, and submitted ahead: to the last bit what single launches give, also where a step differs from the
//! one before, or goes wrong.

use std::sync::atomic::Ordering;

use innerloop::device::cuda::{CudaDevice, Kernel, Warpgroups};
use innerloop::device::{ArenaPlan, Corrections, Device, Linear, LinearForward, MatrixPrecision, Region};
use innerloop::model::{Activation, Mlp, Parameters};
use innerloop::objective::{Loss, VideoWeights};
use innerloop::{
    Algorithm, Error, InnerConfig, InnerOptimizer, MetaLearner, MetaOptimizer, Objective, OptimizerState, OuterConfig,
    OuterKind, RateKind, Schedule, Shape, Strategy, SupervisedConfig, SupervisedRows, VideoConfig, VideoRows,
};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::Refusing;

const SHAPE: Shape = Shape { tasks: 3, shots: 4, queries: 2 };
const STEPS: u64 = 7;
/// The rates of most.
const PLAIN: RateKind = RateKind::PerLayerPerStep;
/// The discriminator joins here.
const ADVERSARIAL_FROM: u64 = 4;

type Learner<O> = MetaLearner<f32, CudaDevice<Refusing>, O>;

/// The rows of one meta-step: support inputs and targets, query inputs and targets.
fn numbers(seed: u64, inputs: usize, outputs: usize) -> [Vec<f32>; 4] {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let (support, query) = (SHAPE.tasks * SHAPE.shots, SHAPE.tasks * SHAPE.queries);
    [support * inputs, support * outputs, query * inputs, query * outputs]
        .map(|len| (0..len).map(|_| rng.random_range(-1.0..1.0)).collect())
}

fn supervised(numbers: &[Vec<f32>; 4]) -> SupervisedRows<'_, f32> {
    let [support_x, support_y, query_x, query_y] = numbers;
    SupervisedRows { support_x, support_y, query_x, query_y }
}

fn video(numbers: &[Vec<f32>; 4]) -> VideoRows<'_, f32> {
    let [support_z, support_x, query_z, query_x] = numbers;
    VideoRows { support_z, support_x, query_z, query_x }
}

fn learner<O: Objective>(driver: &Refusing, objective: &O, mlps: &[&Mlp]) -> Learner<O> {
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    let phi = mlps.iter().map(|mlp| MetaOptimizer::initialise(driver.rates, mlp, 2, 0.05, &mut rng).unwrap()).collect();
    let device =
        CudaDevice::with_driver(driver.clone()).with_precision(driver.precision).with_warpgroups(Warpgroups::Always);
    let mut learner = MetaLearner::new(device, objective.clone(), SHAPE, phi).unwrap();
    for (network, mlp) in mlps.iter().enumerate() {
        learner.set_parameters(network, &Parameters::initialise(mlp, &mut rng)).unwrap();
    }
    learner
}

/// What a learner has come to.
fn state<O: Objective>(learner: &Learner<O>, networks: usize) -> (Vec<Parameters<f32>>, OptimizerState<f32>) {
    ((0..networks).map(|network| learner.parameters(network)).collect(), learner.optimizer_state())
}

/// What changes from step to step beside the rows: the discriminator joins, and the query losses' weights move to the last.
fn begin_step<O: Objective>(learner: &mut Learner<O>, objective: &O, step: u64) {
    learner.set_adversarial(step >= ADVERSARIAL_FROM);
    if objective.inner().multi_step {
        let last = 0.5 + 0.05 * step as f64;
        learner.set_query_weights(&[1.0 - last, last]).unwrap();
    }
}

fn outer(kind: OuterKind) -> OuterConfig {
    let schedule = Schedule::Cosine { steps: STEPS, floor: 0.1 };
    OuterConfig { kind, schedule, clip: Some(0.3), ..OuterConfig::adam(1e-3) }
}

/// Every step on a learner of its own, launch by launch: the losses, and the states after each step.
#[allow(clippy::type_complexity)]
fn launch_by_launch<'a, O: Objective>(
    objective: &O,
    mlps: &[&Mlp],
    outer: &OuterConfig,
    (precision, rates): (MatrixPrecision, RateKind),
    rows: impl Fn(usize) -> O::Rows<'a, f32>,
) -> (Vec<Vec<f32>>, Vec<(Vec<Parameters<f32>>, OptimizerState<f32>)>) {
    let driver = Refusing { precision, rates, ..Refusing::new(None) };
    let mut learner_of_step = learner(&driver, objective, mlps);
    let (mut losses, mut states) = (Vec::new(), Vec::new());
    for step in 0..STEPS {
        begin_step(&mut learner_of_step, objective, step);
        let mut rng = ChaCha8Rng::seed_from_u64(step);
        losses.push(learner_of_step.run(rows(step as usize), &mut rng).unwrap().task.clone());
        learner_of_step.update(outer).unwrap();
        let (parameters, optimizer) = state(&learner_of_step, mlps.len());
        let phi: Vec<_> = (0..mlps.len()).map(|network| learner_of_step.phi(network)).collect();
        learner_of_step = learner(&driver, objective, mlps);
        parameters.iter().enumerate().for_each(|(n, p)| learner_of_step.set_parameters(n, p).unwrap());
        learner_of_step.restore(&optimizer, &phi).unwrap();
        states.push((parameters, optimizer));
    }
    assert_eq!(driver.graphs.load(Ordering::Relaxed), 0, "a graph of what was asked for once");
    (losses, states)
}

fn check<'a, O: Objective>(
    name: &str,
    objective: &O,
    mlps: &[&Mlp],
    kind: OuterKind,
    (precision, rates): (MatrixPrecision, RateKind),
    rows: impl Fn(usize) -> O::Rows<'a, f32>,
) {
    let outer = outer(kind);
    let (losses, states) = launch_by_launch(objective, mlps, &outer, (precision, rates), &rows);
    for ahead in [false, true] {
        let driver = Refusing { precision, rates, ..Refusing::new(None) };
        let mut learner = learner(&driver, objective, mlps);
        assert_eq!(learner.may_submit(), 2, "{name}");
        let mut got = Vec::new();
        for step in 0..STEPS {
            begin_step(&mut learner, objective, step);
            let mut rng = ChaCha8Rng::seed_from_u64(step);
            if ahead {
                learner.submit(rows(step as usize), &outer, &mut rng).unwrap();
                assert_eq!(learner.steps_done(), step + 1);
                if step > 0 {
                    got.push(learner.wait().unwrap().task.clone());
                }
            } else {
                got.push(learner.run(rows(step as usize), &mut rng).unwrap().task.clone());
                learner.update(&outer).unwrap();
            }
        }
        if ahead {
            got.push(learner.wait().unwrap().task.clone());
            learner.wait().unwrap_err();
        }
        assert_eq!(got, losses, "{name}, ahead: {ahead}");
        assert!(state(&learner, mlps.len()) == *states.last().unwrap(), "{name}, ahead: {ahead}: other parameters");
        let count = |counter: &std::sync::atomic::AtomicUsize| counter.load(Ordering::Relaxed);
        // Two in turn: a whole meta-step each, or the inner loops and the outer steps. The discriminator's part makes both
        // anew.
        assert_eq!(count(&driver.graphs), 2 * mlps.len(), "{name}, ahead: {ahead}");
        assert_eq!(count(&driver.replays), if ahead { 5 } else { 12 }, "{name}, ahead: {ahead}");
        assert!(count(&driver.changes) > 0, "{name}: the schedule changes arguments");
    }
}

fn wide() -> Mlp {
    Mlp::with_hidden(3, &[16, 8], 8, Activation::Tanh, Activation::Tanh).unwrap()
}

/// From the second meta-step on rows are copied by what makes them, and fewer by a kernel of their own.
pub fn rows_are_copied_where_they_are_made() {
    let (mlp, driver) = (wide(), Refusing { precision: MatrixPrecision::Bf16, ..Refusing::new(None) });
    let inner = InnerConfig { strategy: Some(Strategy::Dual), ..InnerConfig::new(Algorithm::Maml, 2) };
    let config = SupervisedConfig { mlp: mlp.clone(), loss: Loss::Mse, inner };
    let mut learner = learner(&driver, &config, &[&mlp]);
    let packs = [11, 12, 13].map(|seed| {
        driver.launched.lock().unwrap().clear();
        learner.run(supervised(&numbers(seed, 3, 8)), &mut ChaCha8Rng::seed_from_u64(seed)).unwrap();
        driver.launched.lock().unwrap().iter().filter(|kernel| **kernel == Kernel::Pack).count()
    });
    // The second makes a graph, the third replays it.
    assert!(packs[1] > 0 && packs[1] + 3 < packs[0] && packs[2] == 0, "{packs:?}");
}

/// Single networks in every form, and the video GAN, whose discriminator joins on the way.
pub fn replay_meta_steps() {
    let mlp = Mlp::with_hidden(3, &[9, 5], 2, Activation::Tanh, Activation::Linear).unwrap();
    let batches: Vec<_> = (0..STEPS).map(|step| numbers(step + 10, 3, 2)).collect();
    let adam = OuterKind::Adam { beta1: 0.9, beta2: 0.99, epsilon: 1e-8 };
    for (name, optimizer, strategy, kind) in [
        ("dual", InnerOptimizer::Sgd { momentum: 0.5 }, Strategy::Dual, adam),
        ("materialised", InnerOptimizer::Sgd { momentum: 0.5 }, Strategy::Materialised, OuterKind::Sgd),
        ("inner Adam", InnerOptimizer::ADAM, Strategy::Materialised, adam),
        ("resident", InnerOptimizer::Sgd { momentum: 0.5 }, Strategy::Resident, adam),
        ("folded", InnerOptimizer::Sgd { momentum: 0.5 }, Strategy::Folded, adam),
    ] {
        let inner = InnerConfig {
            optimizer,
            strategy: Some(strategy),
            minibatch: (!matches!(strategy, Strategy::Resident | Strategy::Folded)).then_some(3),
            ..InnerConfig::new(Algorithm::Maml, 2)
        };
        let config = SupervisedConfig { mlp: mlp.clone(), loss: Loss::Mse, inner };
        // With copies of the weights that hold from one write of them to the next, too.
        for precision in [MatrixPrecision::F32, MatrixPrecision::Bf16] {
            check(name, &config, &[&mlp], kind, (precision, PLAIN), |step| supervised(&batches[step]));
        }
    }
    // Rates that are learned, and stay on the device.
    for (rates, strategy, weight_decay, multi_step) in [
        (RateKind::Shared, Strategy::Dual, 0.0, false),
        (RateKind::PerLayerPerStep, Strategy::Dual, 0.0, false),
        (RateKind::PerLayerPerStep, Strategy::Dual, 0.1, false),
        (RateKind::Shared, Strategy::Dual, 0.1, true),
        (RateKind::Network { rank: 2 }, Strategy::Dual, 0.0, true),
        (RateKind::PerParameter, Strategy::Materialised, 0.0, false),
        (RateKind::Shared, Strategy::Materialised, 0.1, true),
        (RateKind::PerLayerPerStep, Strategy::Materialised, 0.0, false),
        (RateKind::Network { rank: 2 }, Strategy::Materialised, 0.1, false),
        (RateKind::Shared, Strategy::Resident, 0.0, false),
        (RateKind::PerLayerPerStep, Strategy::Resident, 0.0, false),
    ] {
        let inner = InnerConfig {
            rates,
            strategy: Some(strategy),
            learn_rates: true,
            weight_decay,
            multi_step,
            ..InnerConfig::new(Algorithm::Maml, 2)
        };
        let config = SupervisedConfig { mlp: mlp.clone(), loss: Loss::Mse, inner };
        let name = format!("{rates:?} learned, {strategy:?}, decay {weight_decay}, multi-step {multi_step}");
        check(&name, &config, &[&mlp], adam, (MatrixPrecision::F32, rates), |step| supervised(&batches[step]));
    }
    // Of widths whose rows the kernels that make them copy.
    let wide = wide();
    let inner = InnerConfig { strategy: Some(Strategy::Dual), ..InnerConfig::new(Algorithm::Maml, 2) };
    let config = SupervisedConfig { mlp: wide.clone(), loss: Loss::Mse, inner };
    let batches: Vec<_> = (0..STEPS).map(|step| numbers(step + 50, 3, 8)).collect();
    check("copies", &config, &[&wide], adam, (MatrixPrecision::F16, PLAIN), |step| supervised(&batches[step]));
    // So wide that its rows go through memory, where only the copies of them do.
    let wider = Mlp::with_hidden(3, &[24], 520, Activation::Relu, Activation::Linear).unwrap();
    let config = SupervisedConfig { mlp: wider.clone(), ..config };
    let batches: Vec<_> = (0..STEPS).map(|step| numbers(step + 50, 3, 520)).collect();
    check("left out", &config, &[&wider], adam, (MatrixPrecision::Bf16, PLAIN), |step| supervised(&batches[step]));
    let inner = InnerConfig { strategy: Some(Strategy::Folded), ..config.inner.clone() };
    let config = SupervisedConfig { inner, ..config };
    check("folded", &config, &[&wider], adam, (MatrixPrecision::Bf16, PLAIN), |step| supervised(&batches[step]));
    let generator = Mlp::with_hidden(3, &[5], 6, Activation::Relu, Activation::Tanh).unwrap();
    let discriminator = Mlp::with_hidden(6, &[4], 1, Activation::LeakyRelu, Activation::Linear).unwrap();
    let config = VideoConfig {
        generator: generator.clone(),
        discriminator: discriminator.clone(),
        frames: 2,
        frame: None,
        weights: VideoWeights { adversarial: 0.5, reconstruction: 1.0, motion: 0.5, texture: 0.0 },
        adversarial: true,
        inner: InnerConfig {
            strategy: Some(Strategy::Dual),
            learn_rates: true,
            ..InnerConfig::new(Algorithm::Maml, 2)
        },
    };
    let batches: Vec<_> = (0..STEPS).map(|step| numbers(step + 30, 3, 6)).collect();
    check("video", &config, &[&generator, &discriminator], adam, (MatrixPrecision::Bf16, PLAIN), |step| {
        video(&batches[step])
    });
}

/// What is discarded before anything reads it need not be written by a graph; all else is.
pub fn only_what_nothing_reads_is_left_out() {
    // Of two parts, which another kernel ends.
    let (tasks, rows, inputs, width) = (2, 4, 128, 520);
    let device = CudaDevice::emulated(3).with_precision(MatrixPrecision::Bf16).with_warpgroups(Warpgroups::Always);
    let mut plan = ArenaPlan::default();
    let [input, weight, bias] = [(tasks * rows, inputs), (width, inputs), (1, width)].map(|(r, w)| plan.take(r, w));
    let [output, copy] = [0; 2].map(|_| plan.take(tasks * rows, width));
    let mut arena = device.arena(4 * plan.elements()).unwrap();
    let layer = Linear { weight: weight.offset, bias: bias.offset, task_stride: 0, inputs, outputs: width };
    let numbers: Vec<f32> = (0..weight.len()).map(|i| (i as f32).sin()).collect();
    for region in [input, weight, bias] {
        device.upload(&mut arena, region, &numbers[..region.len()]);
    }
    let download = |arena: &_, region: Region| {
        let mut numbers = vec![0.0; region.len()];
        device.download(arena, region, &mut numbers);
        numbers
    };
    let corrections = Corrections::NONE;
    let operation = LinearForward { tasks, rows, input, layer, corrections, activation: Activation::Relu, output };
    device.linear_forward(&mut arena, &operation);
    let expected = download(&arena, output);
    // Whether the output is copied before and after it is discarded, and whether it is a result.
    for [discarded, read, late, result] in [
        [false, false, false, false],
        [true, false, false, false],
        [true, true, false, false],
        [true, false, true, false],
        [true, false, false, true],
        [false, true, false, true],
    ] {
        let mut graph = Default::default();
        // The first time is no graph, the third one a replay; then what is read differs.
        for time in 0..5 {
            let read = read || time == 4;
            device.fill(&mut arena, output, f32::NAN);
            let results: &[Region] = if result { &[output] } else { &[] };
            device.submit(&mut arena, &mut graph, results, |device, arena| {
                device.linear_forward(arena, &operation);
                if read {
                    device.copy(arena, output, copy);
                }
                if discarded {
                    device.discard(arena, &[output.rows(0, 3), output]);
                }
                if late {
                    device.linear_forward(arena, &operation);
                }
            });
            let left_out = discarded && !read && !late && time > 0;
            let what = format!("discarded {discarded}, read {read}, written again {late}, time {time}");
            assert_eq!(download(&arena, output) != expected, left_out, "{what}");
            assert!(!read || download(&arena, copy) == expected, "{what}");
            // The result is read after what it reads was given up; that is no concern of a device's.
            assert!(!result || discarded || device.results(&mut graph) == expected, "{what}");
        }
    }
}

/// A meta-step that goes wrong changes nothing, and neither does the one that was already submitted after it; the next one
/// goes on from where things were.
pub fn a_fault_stops_what_follows() {
    let mlp = Mlp::with_hidden(3, &[6], 2, Activation::Tanh, Activation::Linear).unwrap();
    let inner = InnerConfig { strategy: Some(Strategy::Dual), ..InnerConfig::new(Algorithm::Maml, 2) };
    let config = SupervisedConfig { mlp: mlp.clone(), loss: Loss::Mse, inner };
    let batches: Vec<_> = (0..STEPS).map(|step| numbers(step + 50, 3, 2)).collect();
    let adam = outer(OuterKind::Adam { beta1: 0.9, beta2: 0.99, epsilon: 1e-8 });
    let (_, states) =
        launch_by_launch(&config, &[&mlp], &adam, (MatrixPrecision::F32, PLAIN), |step| supervised(&batches[step]));
    for faulty in [1, 4] {
        let mut spoilt = batches[faulty].clone();
        // Targets so far off that the loss cannot be written down.
        spoilt[3].fill(1e30);
        let mut learner = learner(&Refusing::new(None), &config, &[&mlp]);
        let mut rng = ChaCha8Rng::seed_from_u64(0);
        for batch in &batches[..faulty] {
            learner.submit(supervised(batch), &adam, &mut rng).unwrap();
            learner.wait().unwrap();
        }
        learner.submit(supervised(&spoilt), &adam, &mut rng).unwrap();
        learner.submit(supervised(&batches[faulty + 1]), &adam, &mut rng).unwrap();
        let message = learner.submit(supervised(&spoilt), &adam, &mut rng).unwrap_err().to_string();
        assert!(message.contains("2 submitted"), "{message}");
        diverged(learner.wait().unwrap_err(), "loss", faulty as u64 + 1);
        learner.wait().unwrap_err();
        assert!(state(&learner, 1) == states[faulty - 1], "step {} has changed something", faulty + 1);
        for batch in &batches[faulty..] {
            learner.submit(supervised(batch), &adam, &mut rng).unwrap();
            learner.wait().unwrap();
        }
        assert!(state(&learner, 1) == *states.last().unwrap(), "the steps after step {} went elsewhere", faulty + 1);
    }
}

fn diverged(error: Error, expected: &str, number: u64) {
    match error {
        Error::Diverged { what, value, step } => {
            assert_eq!((what, step), (expected, number));
            assert!(!value.is_finite(), "{value}");
        }
        other => panic!("{other}"),
    }
}

/// A gradient can be too large to be written down where no loss is: the loss is linear in logits that small weights keep
/// small, the gradient of these weights is in proportion to the inputs.
pub fn a_gradient_alone_diverges() {
    let mlp = Mlp::with_hidden(3, &[6], 2, Activation::LeakyRelu, Activation::Linear).unwrap();
    let config =
        SupervisedConfig { mlp: mlp.clone(), loss: Loss::BceWithLogits, inner: InnerConfig::new(Algorithm::Maml, 2) };
    let mut parameters = Parameters::zeros(&mlp);
    parameters.values_mut()[mlp.weight_range(0)].fill(1e-3);
    parameters.values_mut()[mlp.weight_range(1)].fill(10.0);
    let (mut batch, sgd) = (numbers(90, 3, 2), outer(OuterKind::Sgd));
    let mut learner = learner(&Refusing::new(None), &config, &[&mlp]);
    learner.set_parameters(0, &parameters).unwrap();
    batch[2].fill(1e38);
    for repeat in 0..3 {
        let mut rng = ChaCha8Rng::seed_from_u64(0);
        if repeat == 2 {
            assert!(learner.run(supervised(&batch), &mut rng).unwrap().mean().is_finite());
            diverged(learner.update(&sgd).unwrap_err(), "gradient", 1);
        } else {
            learner.submit(supervised(&batch), &sgd, &mut rng).unwrap();
            diverged(learner.wait().unwrap_err(), "gradient", 1);
        }
        assert_eq!((learner.parameters(0), learner.steps_done()), (parameters.clone(), 0));
    }
}

/// A driver that refuses graphs is told of with the device's name, and the learner goes on when it no longer does.
pub fn refused_graphs_are_told() {
    let mlp = Mlp::with_hidden(3, &[6], 2, Activation::Tanh, Activation::Linear).unwrap();
    let config = SupervisedConfig { mlp: mlp.clone(), loss: Loss::Mse, inner: InnerConfig::new(Algorithm::Maml, 2) };
    let batch = numbers(70, 3, 2);
    let driver = Refusing::new(None);
    let mut learner = learner(&driver, &config, &[&mlp]);
    let mut rng = ChaCha8Rng::seed_from_u64(0);
    let first = learner.run(supervised(&batch), &mut rng).unwrap().clone();
    driver.refuses_graphs.store(true, Ordering::Relaxed);
    for _ in 0..2 {
        let message = learner.run(supervised(&batch), &mut rng).unwrap_err().to_string();
        assert!(message.contains("cuda:9") && message.contains("a graph of "), "{message}");
        // As if for the first time.
        assert_eq!(*learner.run(supervised(&batch), &mut rng).unwrap(), first);
    }
    driver.refuses_graphs.store(false, Ordering::Relaxed);
    for _ in 0..3 {
        assert_eq!(*learner.run(supervised(&batch), &mut rng).unwrap(), first);
    }
    assert!(driver.replays.load(Ordering::Relaxed) > 0);
}
