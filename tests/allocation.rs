//! After the first meta-step the crate allocates nothing.
//!
//! Allocations of the whole process are counted, on all threads, in two kinds. The `gemm` crate takes its packing room
//! anew in every product: buffers aligned to cache lines, and a `Vec<bool>`. Alignment tells them apart from the numbers,
//! indices and lists of this crate, which are aligned to 2 to 32 bytes. Of those there must be none but rayon's: the queue
//! through which a job enters the pool from outside is a list of blocks of 63 jobs, and a meta-step enters a few times.
//! With several threads a thread's first job of a kind (its scratch) adds a few at the beginning, until every thread has
//! met every kind of job; how soon depends on the scheduler.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};

use innerloop::device::cpu::CpuDevice;
use innerloop::model::{Activation, BatchNorm, Mlp, Parameters};
use innerloop::objective::{FrameShape, Loss, VideoWeights};
use innerloop::{
    Algorithm, InnerConfig, InnerOptimizer, MetaLearner, MetaOptimizer, Objective, OuterConfig, RateKind, Shape,
    Strategy, SupervisedConfig, SupervisedRows, VideoConfig, VideoRows,
};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

static COUNT: AtomicUsize = AtomicUsize::new(0);

fn count(layout: Layout) {
    if (2..=32).contains(&layout.align()) {
        COUNT.fetch_add(1, Ordering::Relaxed);
    }
}

struct Counting;

// SAFETY: hands everything on to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout);
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(pointer, layout) }
    }
    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count(layout);
        // SAFETY: the caller's promise.
        unsafe { System.realloc(pointer, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const SHAPE: Shape = Shape { tasks: 6, shots: 5, queries: 4 };
const STEPS: usize = 64;

fn wave(n: usize) -> Vec<f32> {
    (0..n).map(|i| (i as f32 * 0.37).sin()).collect()
}

/// Allocations in [`STEPS`] meta-steps after the first few.
fn allocations<O: Objective>(
    objective: &O,
    mlps: &[&Mlp],
    inner: &InnerConfig,
    rows: O::Rows<'_, f32>,
    threads: usize,
) -> usize {
    let device = CpuDevice::new(threads).unwrap();
    let phi = mlps.iter().map(|m| MetaOptimizer::uniform(inner.rates, m, inner.steps, 0.05).unwrap()).collect();
    let mut learner = MetaLearner::new(device, objective.clone(), SHAPE, phi).unwrap();
    let mut rng = ChaCha8Rng::seed_from_u64(3);
    for (i, mlp) in mlps.iter().enumerate() {
        learner.set_parameters(i, &Parameters::initialise(mlp, &mut rng)).unwrap();
    }
    let outer = OuterConfig { clip: Some(1.0), ..OuterConfig::adam(1e-4) };
    let mut advance = |steps: usize| {
        for _ in 0..steps {
            learner.run(rows, &mut rng).unwrap();
            learner.update(&outer).unwrap();
        }
    };
    // One step; with several threads as many as it takes for each of them to have had a turn at everything.
    advance(if threads == 1 { 1 } else { 40 });
    let before = COUNT.load(Ordering::Relaxed);
    advance(STEPS);
    COUNT.load(Ordering::Relaxed) - before
}

/// Any allocation of the crate's own would come to one a meta-step; the queue and the harness come to a handful.
const FEW: usize = STEPS / 2;

fn check<O: Objective>(what: &str, objective: &O, mlps: &[&Mlp], inner: &InnerConfig, rows: O::Rows<'_, f32>) {
    let alone = allocations(objective, mlps, inner, rows, 1);
    let together = allocations(objective, mlps, inner, rows, 3);
    println!("{what}: {alone} allocations in {STEPS} meta-steps on one thread, {together} on three");
    assert!(alone <= FEW, "{what}: {alone} allocations in {STEPS} meta-steps on one thread");
    assert!(together <= FEW, "{what}: {together} allocations in {STEPS} meta-steps on three threads");
}

fn supervised(what: &str, mlp: &Mlp, inner: &InnerConfig) {
    let config = SupervisedConfig { mlp: mlp.clone(), loss: Loss::Mse, inner: inner.clone() };
    let [support_x, support_y] = [mlp.inputs(), mlp.outputs()].map(|width| wave(6 * 5 * width));
    let [query_x, query_y] = [mlp.inputs(), mlp.outputs()].map(|width| wave(6 * 4 * width));
    let rows = SupervisedRows { support_x: &support_x, support_y: &support_y, query_x: &query_x, query_y: &query_y };
    check(what, &config, &[mlp], inner, rows);
}

fn variants() -> Vec<(String, InnerConfig)> {
    let mut all = Vec::new();
    for strategy in [Strategy::Dual, Strategy::Materialised] {
        for algorithm in [Algorithm::Maml, Algorithm::FirstOrderMaml, Algorithm::Reptile] {
            for minibatch in [None, Some(3)] {
                let inner = InnerConfig {
                    strategy: Some(strategy),
                    minibatch,
                    optimizer: InnerOptimizer::Sgd { momentum: 0.5 },
                    learn_rates: true,
                    ..InnerConfig::new(algorithm, 3)
                };
                all.push((format!("{strategy} {algorithm} {minibatch:?}"), inner));
            }
        }
    }
    all
}

/// All in one test: another one beside it, or the harness reporting it, would be counted too.
#[test]
fn meta_steps_allocate_nothing() {
    lanes_of_small_networks();
    operations_of_a_large_network();
    the_video_gan();
}

/// The sinusoid network: tasks in lanes when there are several threads.
fn lanes_of_small_networks() {
    let mlp = Mlp::with_hidden(1, &[40, 40], 1, Activation::Relu, Activation::Linear).unwrap();
    for (what, inner) in variants() {
        supervised(&format!("sinusoids, {what}"), &mlp, &inner);
    }
    for algorithm in [Algorithm::Maml, Algorithm::FirstOrderMaml, Algorithm::Reptile] {
        let inner = InnerConfig {
            strategy: Some(Strategy::Resident),
            optimizer: InnerOptimizer::Sgd { momentum: 0.5 },
            learn_rates: true,
            ..InnerConfig::new(algorithm, 3)
        };
        supervised(&format!("sinusoids, resident {algorithm}"), &mlp, &inner);
    }
    let meta_sgd = InnerConfig {
        rates: RateKind::PerParameter,
        learn_rates: true,
        strategy: Some(Strategy::Materialised),
        ..InnerConfig::new(Algorithm::Maml, 2)
    };
    supervised("sinusoids, meta-sgd", &mlp, &meta_sgd);
    let mlp = mlp.with_batch_norm(BatchNorm::default()).unwrap();
    for strategy in [Strategy::Dual, Strategy::Materialised] {
        let inner = InnerConfig { strategy: Some(strategy), ..InnerConfig::new(Algorithm::Maml, 3) };
        supervised(&format!("sinusoids, normalised, {strategy}"), &mlp, &inner);
    }
}

/// Large enough for all threads to share each operation.
fn operations_of_a_large_network() {
    let mlp = Mlp::with_hidden(100, &[250], 300, Activation::Tanh, Activation::Linear).unwrap();
    for strategy in [Strategy::Dual, Strategy::Materialised] {
        let inner = InnerConfig {
            rates: RateKind::Shared,
            learn_rates: true,
            strategy: Some(strategy),
            ..InnerConfig::new(Algorithm::Maml, 1)
        };
        supervised(&format!("large, {strategy}"), &mlp, &inner);
    }
    let inner = InnerConfig { strategy: Some(Strategy::Folded), ..InnerConfig::new(Algorithm::Maml, 3) };
    supervised("large, folded", &mlp, &inner);
}

fn the_video_gan() {
    let generator = Mlp::with_hidden(6, &[20], 24, Activation::Relu, Activation::Tanh).unwrap();
    let discriminator = Mlp::with_hidden(24, &[16], 1, Activation::LeakyRelu, Activation::Linear).unwrap();
    let weights = VideoWeights { adversarial: 0.1, reconstruction: 1.0, motion: 0.5, texture: 0.5 };
    let (support_x, support_z) = (wave(6 * 5 * 24), wave(6 * 5 * 6));
    let (query_x, query_z) = (wave(6 * 4 * 24), wave(6 * 4 * 6));
    let rows = VideoRows { support_x: &support_x, support_z: &support_z, query_x: &query_x, query_z: &query_z };
    for (what, inner) in variants() {
        for adversarial in [true, false] {
            let config = VideoConfig {
                generator: generator.clone(),
                discriminator: discriminator.clone(),
                frames: 4,
                frame: Some(FrameShape { height: 3, width: 2, channels: 1 }),
                weights,
                adversarial,
                inner: inner.clone(),
            };
            let mlps = [&generator, &discriminator];
            check(&format!("video, {what}"), &config, &mlps[..if adversarial { 2 } else { 1 }], &inner, rows);
        }
    }
}
