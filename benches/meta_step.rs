//! Meta-steps, and the single operations that take most of their time.

use std::hint::black_box;
use std::time::Duration;

use criterion::{Criterion, criterion_group, criterion_main};
use innerloop::device::cpu::CpuDevice;
use innerloop::device::{
    ArenaPlan, Corrections, Device, Gram, GramView, Linear, LinearForward, OuterProduct, OuterTerm, Region, Term,
};
use innerloop::model::{Activation, Mlp, Parameters};
use innerloop::objective::{Loss, VideoWeights};
use innerloop::{
    Algorithm, InnerConfig, MetaLearner, MetaOptimizer, Objective, RateKind, Shape, Strategy, SupervisedConfig,
    SupervisedRows, VideoConfig, VideoRows,
};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

const RATE: f64 = 0.01;

fn device() -> CpuDevice {
    CpuDevice::new(2).unwrap()
}

fn numbers(count: usize) -> Vec<f32> {
    let mut rng = ChaCha8Rng::seed_from_u64(0);
    (0..count).map(|_| rng.random_range(-1.0..1.0)).collect()
}

fn learner<O: Objective>(objective: O, shape: Shape, steps: usize, mlps: &[Mlp]) -> MetaLearner<f32, CpuDevice, O> {
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    let phi = mlps.iter().map(|m| MetaOptimizer::uniform(RateKind::PerLayerPerStep, m, steps, RATE).unwrap()).collect();
    let mut learner = MetaLearner::new(device(), objective, shape, phi).unwrap();
    for (network, mlp) in mlps.iter().enumerate() {
        learner.set_parameters(network, &Parameters::initialise(mlp, &mut rng)).unwrap();
    }
    learner
}

fn inner(steps: usize, form: Strategy) -> InnerConfig {
    InnerConfig { strategy: Some(form), ..InnerConfig::new(Algorithm::Maml, steps) }
}

fn supervised(c: &mut Criterion, name: &str, mlp: &Mlp, shape: Shape, steps: &[usize], forms: &[Strategy]) {
    let mut group = c.benchmark_group(name);
    let rows = |count: usize, width: usize| numbers(shape.tasks * count * width);
    let (support_x, support_y) = (rows(shape.shots, mlp.inputs()), rows(shape.shots, mlp.outputs()));
    let (query_x, query_y) = (rows(shape.queries, mlp.inputs()), rows(shape.queries, mlp.outputs()));
    let rows = SupervisedRows { support_x: &support_x, support_y: &support_y, query_x: &query_x, query_y: &query_y };
    for &steps in steps {
        for &form in forms {
            let config = SupervisedConfig { mlp: mlp.clone(), loss: Loss::Mse, inner: inner(steps, form) };
            let mut learner = learner(config, shape, steps, std::slice::from_ref(mlp));
            let mut rng = ChaCha8Rng::seed_from_u64(2);
            group.bench_function(format!("{form}, {steps} steps"), |b| {
                b.iter(|| black_box(learner.run(rows, &mut rng).unwrap().mean()));
            });
        }
    }
}

fn meta_steps(c: &mut Criterion) {
    use Activation::{LeakyRelu, Linear, Relu, Tanh};
    let seed = Mlp::new(&[128, 256, 512, 4096], &[Relu, Relu, Tanh]).unwrap();
    supervised(
        c,
        "seed network, 16 tasks",
        &seed,
        Shape { tasks: 16, shots: 5, queries: 5 },
        &[1],
        &Strategy::ALL[..2],
    );
    let sinusoid = Mlp::new(&[1, 40, 40, 1], &[Relu, Relu, Linear]).unwrap();
    supervised(
        c,
        "sinusoid, 25 tasks",
        &sinusoid,
        Shape { tasks: 25, shots: 10, queries: 10 },
        &[1, 5],
        &Strategy::ALL,
    );

    let (shape, steps) = (Shape { tasks: 16, shots: 5, queries: 5 }, 1);
    let generator = Mlp::new(&[272, 256, 512, 2048], &[Relu, Relu, Tanh]).unwrap();
    let discriminator = Mlp::with_hidden(2048, &[512, 256], 1, LeakyRelu, Linear).unwrap();
    let config = VideoConfig {
        generator: generator.clone(),
        discriminator: discriminator.clone(),
        frames: 8,
        frame: None,
        weights: VideoWeights { adversarial: 0.1, reconstruction: 1.0, motion: 1.0, texture: 0.0 },
        adversarial: true,
        inner: inner(steps, Strategy::Dual),
    };
    let (z, x) = (numbers(16 * 5 * 272), numbers(16 * 5 * 2048));
    let rows = VideoRows { support_z: &z, support_x: &x, query_z: &z, query_x: &x };
    let mut learner = learner(config, shape, steps, &[generator, discriminator]);
    let mut rng = ChaCha8Rng::seed_from_u64(2);
    c.bench_function("video GAN, 16 tasks/dual, 1 steps", |b| {
        b.iter(|| black_box(learner.run(rows, &mut rng).unwrap().mean()));
    });
}

/// The seed network's last layer with 16 tasks of 5 rows, after four inner steps.
fn operations(c: &mut Criterion) {
    const TASKS: usize = 16;
    const ROWS: usize = 5;
    const STEPS: usize = 4;
    const INPUTS: usize = 512;
    const OUTPUTS: usize = 4096;
    let device = device();
    let mut plan = ArenaPlan::default();
    let weight = plan.take(OUTPUTS, INPUTS);
    let bias = plan.take(1, OUTPUTS);
    let gradient = plan.take(OUTPUTS, INPUTS);
    let gradient_bias = plan.take(1, OUTPUTS);
    let mut blocks = |width: usize| -> Vec<Region> { (0..=STEPS).map(|_| plan.take(TASKS * ROWS, width)).collect() };
    let (values, deltas) = (blocks(INPUTS), blocks(OUTPUTS));
    let output = plan.take(TASKS * ROWS, OUTPUTS);
    let gram = plan.take(TASKS * ROWS, STEPS * ROWS);
    let scratch = plan.take(TASKS * ROWS, STEPS * ROWS);
    let scales = plan.take(1, 1);
    let mut arena = Device::<f32>::arena(&device, plan.elements()).unwrap();
    for region in [weight].iter().chain(&values).chain(&deltas) {
        device.upload(&mut arena, *region, &numbers(region.len()));
    }
    device.fill(&mut arena, scales, -1e-3);
    let layer = |weight: Region, bias: Region| Linear {
        weight: weight.offset,
        bias: bias.offset,
        task_stride: 0,
        inputs: INPUTS,
        outputs: OUTPUTS,
    };
    let mut group = c.benchmark_group("operation");

    let products =
        Gram { tasks: TASKS, rows: ROWS, x: values[STEPS], y: &values[..STEPS], output: gram, accumulate: false };
    group.bench_function("gram", |b| b.iter(|| device.gram(&mut arena, &products)));

    let term = |step: usize| Term {
        gram: GramView {
            offset: gram.offset + step * ROWS,
            task_stride: ROWS * STEPS * ROWS,
            row_stride: STEPS * ROWS,
            column_stride: 1,
        },
        bias: Some(0),
        scale: 0,
        rows: deltas[step],
    };
    let terms = [(0..STEPS).map(term).collect::<Vec<_>>()];
    for (name, corrected) in [("linear_forward", false), ("linear_forward with corrections", true)] {
        let operation = LinearForward {
            tasks: TASKS,
            rows: ROWS,
            input: values[STEPS],
            layer: layer(weight, bias),
            corrections: Corrections { share: None, blocks: if corrected { &terms } else { &[] }, scales, scratch },
            activation: Activation::Tanh,
            output,
        };
        group.bench_function(name, |b| b.iter(|| device.linear_forward(&mut arena, &operation)));
    }

    let term = |(p, q): (&Region, &Region)| OuterTerm { p: *p, q: *q, bias: 1.0, blocks: 1, scale: 1.0, share: None };
    let terms: Vec<OuterTerm<f32>> = deltas.iter().zip(&values).map(term).collect();
    let operation =
        OuterProduct { tasks: TASKS, terms: &terms, layer: layer(gradient, gradient_bias), accumulate: false };
    group.bench_function("outer_product", |b| b.iter(|| device.outer_product(&mut arena, &operation)));
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .sample_size(10)
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_millis(1500));
    targets = meta_steps, operations
}
criterion_main!(benches);
