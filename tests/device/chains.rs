//! Narrow layers one after the other in one launch, on Hopper in `bf16`: each link by itself, and whole meta-steps.

use innerloop::Scalar;
use innerloop::device::cpu::CpuDevice;
use innerloop::device::{
    AdjointBackward, AdjointForward, Corrections, Device, Gate, Gram, Linear, LinearBackward, LinearForward,
    MatrixPrecision, Region,
};
use innerloop::model::{Activation, Mlp, Parameters};
use innerloop::objective::{FrameShape, Loss, VideoWeights};
use innerloop::{
    Algorithm, InnerConfig, MetaLearner, MetaOptimizer, Objective, RateKind, Shape, Strategy, SupervisedConfig,
    SupervisedRows, VideoConfig, VideoRows,
};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::Make;
use super::corrections::{Terms, corrections};
use super::products::ACTIVATIONS;
use super::scene::{Scene, compare, rounded, tolerance};

/// Tasks, rows a task, blocks of rows, and the widths of three levels.
type Dimensions = (usize, usize, usize, [usize; 3]);

/// With rows a task of earlier steps. One group of rows and several, of tasks, rows and blocks; a strip of columns and several; more
/// earlier rows than are taken at once; none. Of two cases one layer is no link, and leaves sums; then levels of few columns.
const SHAPES: [(Dimensions, &[usize]); 11] = [
    ((3, 5, 1, [16, 48, 32]), &[5]),
    ((7, 2, 1, [64, 16, 160]), &[2, 2, 2]),
    ((2, 9, 1, [32, 144, 16]), &[9, 9]),
    ((2, 3, 3, [48, 32, 64]), &[3]),
    ((1, 8, 4, [16, 512, 272]), &[9; 16]),
    ((5, 4, 2, [32, 16, 16]), &[]),
    ((3, 5, 1, [20, 48, 32]), &[5, 5]),
    ((2, 5, 2, [32, 48, 20]), &[5]),
    ((3, 5, 2, [48, 32, 1]), &[5, 5]),
    ((2, 9, 1, [3, 16, 8]), &[9; 16]),
    ((5, 4, 3, [16, 160, 2]), &[]),
];

/// How far what is made of numbers with 16 bits may be off; and what is made of that, once it was rounded to 8.
const EXACT: f64 = 3e-5;
const FLIPPED: f64 = 3e-3;

/// One layer, and what is asked of the rows it makes.
struct Layer {
    layer: Linear,
    terms: Terms,
    output: Region,
    /// The same in the precision of products, on the side of the reference.
    rounded: Region,
    y: Vec<Region>,
    products: Region,
}

/// Two layers one after the other, from the first level up or from the last one down.
struct Layers {
    scene: Scene,
    tasks: usize,
    rows: usize,
    blocks: usize,
    input: Region,
    layers: Vec<Layer>,
    what: String,
}

fn layers(upwards: bool, mut check: impl FnMut(usize, &mut Layers)) {
    for (i, ((tasks, rows, blocks, widths), steps)) in SHAPES.into_iter().enumerate() {
        let mut scene = Scene::new(2000 + i as u64);
        scene.align(4);
        let count = blocks * tasks * rows;
        let input = scene.random(count, if upwards { widths[0] } else { widths[2] });
        let levels = if upwards { [0, 1] } else { [1, 0] };
        let first = levels[0];
        let mut operands = vec![input];
        let mut layer = |level: usize| {
            let (inputs, outputs) = (widths[level], widths[level + 1]);
            let width = if upwards { outputs } else { inputs };
            let layer = scene.layer(1, true, inputs, outputs);
            let counts = vec![steps.to_vec(); if steps.is_empty() { 0 } else { blocks }];
            let mut terms = Terms::new(&mut scene, tasks, rows, width, &counts);
            terms.decayed &= !steps.is_empty();
            let y: Vec<Region> = steps.iter().map(|count| scene.random(tasks * count, width)).collect();
            let products = scene.written(count, steps.iter().sum());
            let (output, rounded) = (scene.written(count, width), scene.worked_in(count, width));
            // What comes in of earlier steps counts to 16 bits, and of that some is rounded to the other side.
            let off = if level == first { EXACT } else { FLIPPED };
            [products, output].into_iter().for_each(|region| scene.loosens(region, off));
            operands.push(Region { offset: layer.weight, rows: outputs, width: inputs });
            operands.extend(terms.blocks.iter().flatten().map(|term| term.rows).chain(y.iter().copied()));
            Layer { layer, terms, output, rounded, y, products }
        };
        let layers = levels.map(&mut layer).into();
        scene.rounds(MatrixPrecision::Bf16, &operands);
        scene.magnifies(8.0);
        let what = format!("case {i}, {widths:?}");
        check(i, &mut Layers { scene, tasks, rows, blocks, input, layers, what });
    }
}

/// What the next layer multiplies: in double precision a rounded copy of what was made.
fn taken<T: Scalar, D: Device<T>>(device: &D, arena: &mut D::Arena, layer: &Layer) -> Region {
    if size_of::<T>() != size_of::<f64>() {
        return layer.output;
    }
    let mut values = vec![T::ZERO; layer.output.len()];
    device.download(arena, layer.output, &mut values);
    values.iter_mut().for_each(|value| *value = T::from_f64(rounded(MatrixPrecision::Bf16, value.to_f64())));
    device.upload(arena, layer.rounded, &values);
    layer.rounded
}

fn products<T: Scalar, D: Device<T>>(device: &D, arena: &mut D::Arena, (tasks, rows): (usize, usize), layer: &Layer) {
    if !layer.y.is_empty() {
        device.gram(
            arena,
            &Gram { tasks, rows, x: layer.output, y: &layer.y, output: layer.products, accumulate: false },
        );
    }
}

pub fn forward<D: Device<f32>>(make: Make<'_, D>, _: MatrixPrecision) {
    layers(true, |i, case| {
        let (tasks, rows) = (case.tasks, case.rows);
        compare!(case.scene, make, case.what, |device, arena, T| {
            let mut input = case.input;
            for (n, layer) in case.layers.iter().enumerate() {
                let corrections = corrections!(layer.terms);
                let (activation, output) = (ACTIVATIONS[(i + n) % 5], layer.output);
                let operation =
                    LinearForward { tasks, rows, input, layer: layer.layer, corrections, activation, output };
                device.linear_forward(arena, &operation);
                products::<T, _>(device, arena, (tasks, rows), layer);
                input = taken::<T, _>(device, arena, layer);
            }
        });
    });
}

pub fn backward<D: Device<f32>>(make: Make<'_, D>, _: MatrixPrecision) {
    layers(false, |i, case| {
        let (tasks, rows, blocks) = (case.tasks, case.rows, case.blocks);
        let gates: Vec<Region> = case
            .layers
            .iter()
            .map(|layer| case.scene.random((blocks + 1) * tasks * rows, layer.output.width))
            .collect();
        let order: Vec<usize> = (1..blocks).chain([0]).collect();
        compare!(case.scene, make, case.what, |device, arena, T| {
            let mut delta = case.input;
            for (n, (layer, values)) in case.layers.iter().zip(&gates).enumerate() {
                let corrections = corrections!(layer.terms);
                let gate = Some(Gate { activation: ACTIVATIONS[(i + n) % 5], values: *values, blocks: &order });
                let (layer_of, output) = (layer.layer, layer.output);
                let operation = LinearBackward { tasks, rows, delta, layer: layer_of, corrections, gate, output };
                device.linear_backward(arena, &operation);
                products::<T, _>(device, arena, (tasks, rows), layer);
                delta = taken::<T, _>(device, arena, layer);
            }
        });
    });
}

/// Upwards from a layer without a cotangent of its inputs, or of the last blocks' alone; then downwards, added to what is there.
pub fn adjoint<D: Device<f32>>(make: Make<'_, D>, _: MatrixPrecision) {
    layers(true, |i, case| {
        let (tasks, rows, blocks) = (case.tasks, case.rows, case.blocks);
        let order: Vec<usize> = (0..blocks).rev().collect();
        let regions: Vec<[Region; 3]> = case
            .layers
            .iter()
            .enumerate()
            .map(|(n, layer)| {
                let (count, width) = (layer.output.rows, layer.output.width);
                let values = case.scene.between(count, width, 0.1, 0.9);
                // Others leave it as it is.
                let curved = ACTIVATIONS[(i + n) % 5].is_curved();
                let z_cotangent = case.scene.changed(count, width, !curved);
                case.scene.loosens(z_cotangent, if n == 0 { EXACT } else { FLIPPED });
                [values, case.scene.random(count, width), z_cotangent]
            })
            .collect();
        let down = case.scene.changed(case.input.rows, case.input.width, true);
        case.scene.loosens(down, FLIPPED);
        let lowest = &case.layers[0];
        compare!(case.scene, make, case.what, |device, arena, T| {
            let mut input = (blocks > 1).then(|| (case.input.rows(tasks * rows, (blocks - 1) * tasks * rows), 1));
            for (n, (layer, [values, delta, z_cotangent])) in case.layers.iter().zip(&regions).enumerate() {
                let corrections = corrections!(layer.terms);
                let activation = ACTIVATIONS[(i + n) % 5];
                let operation = AdjointForward {
                    tasks,
                    rows,
                    input,
                    layer: layer.layer,
                    direction: None,
                    corrections,
                    gate: Gate { activation, values: *values, blocks: &order },
                    delta: *delta,
                    z_cotangent: *z_cotangent,
                    e_cotangent: layer.output,
                };
                device.adjoint_forward(arena, &operation);
                products::<T, _>(device, arena, (tasks, rows), layer);
                input = Some((taken::<T, _>(device, arena, layer), 0));
            }
            let operation = AdjointBackward {
                tasks,
                rows,
                z_cotangent: taken::<T, _>(device, arena, lowest),
                layer: lowest.layer,
                direction: None,
                corrections: Corrections::NONE,
                gate: None,
                output: down,
                accumulate: true,
            };
            device.adjoint_backward(arena, &operation);
        });
    });
}

/// Inner products of rows that nothing has made: narrow ones, and wide ones, that end as sums do.
pub fn gram<D: Device<f32>>(make: Make<'_, D>, precision: MatrixPrecision) {
    for (i, ((tasks, rows, blocks, width), counts)) in [
        ((3, 5, 1, 48), vec![5, 5]),
        ((2, 9, 2, 512), vec![9; 16]),
        ((2, 5, 2, 520), vec![5, 5, 2]),
        ((1, 17, 1, 1160), vec![3; 11]),
        ((5, 3, 3, 72), vec![3]),
        ((2, 3, 1, 48), vec![1; 50]),
    ]
    .into_iter()
    .enumerate()
    {
        let scene = &mut Scene::new(2100 + i as u64);
        scene.align(4);
        let x = scene.random(blocks * tasks * rows, width);
        let y: Vec<Region> = counts.iter().map(|count| scene.random(tasks * count, width)).collect();
        let output = scene.written(x.rows, counts.iter().sum());
        // More than a chain has room for are taken as they are.
        if counts.len() < 40 {
            scene.rounds(precision, &y);
        }
        scene.loosens(output, EXACT);
        scene.magnifies(4.0);
        compare!(scene, make, format!("gram {counts:?} of width {width}"), |device, arena, _T| {
            device.gram(arena, &Gram { tasks, rows, x, y: &y, output, accumulate: false });
        });
    }
}

/// The networks' gradients of one meta-batch, three times, in double precision.
fn gradients<T: Scalar, D: Device<T>, O: Objective>(
    device: D,
    objective: &O,
    (shape, steps): (Shape, usize),
    networks: &[Mlp],
    run: impl Fn(&mut MetaLearner<T, D, O>, &mut ChaCha8Rng),
) -> Vec<f64> {
    let mut rng = ChaCha8Rng::seed_from_u64(3);
    let phi = networks.iter().map(|mlp| MetaOptimizer::uniform(RateKind::PerLayerPerStep, mlp, steps, 0.05).unwrap());
    let mut learner = MetaLearner::new(device, objective.clone(), shape, phi.collect()).unwrap();
    for (network, mlp) in networks.iter().enumerate() {
        let parameters = Parameters::<f32>::initialise(mlp, &mut rng);
        learner.set_parameters(network, &parameters.cast()).unwrap();
    }
    let wide = |values: &[T]| values.iter().map(|v| v.to_f64()).collect::<Vec<_>>();
    let mut all = Vec::new();
    // From the second time on much is copied where it is made.
    for _ in 0..3 {
        run(&mut learner, &mut ChaCha8Rng::seed_from_u64(4));
        for network in 0..networks.len() {
            all.extend(wide(learner.gradient(network).values()));
            all.extend(wide(&learner.phi_gradient(network)));
        }
    }
    all
}

fn numbers<T: Scalar>(count: usize, rng: &mut ChaCha8Rng) -> Vec<T> {
    (0..count).map(|_| T::from_f64(f64::from(rng.random_range(-1.0f32..1.0)))).collect()
}

fn close(what: &str, got: &[f64], expected: &[f64]) {
    let square = |values: &mut dyn Iterator<Item = f64>| values.map(|v| v * v).sum::<f64>();
    let difference = square(&mut got.iter().zip(expected).map(|(g, e)| g - e));
    let error = (difference / square(&mut expected.iter().copied())).sqrt();
    assert!(error <= tolerance(MatrixPrecision::Bf16), "{what}: off by {error:e}");
}

/// Whole meta-steps of networks that are narrow, and of such as are wide in one place.
pub fn meta_steps<D: Device<f32>>(make: Make<'_, D>, _: MatrixPrecision) {
    let inner = |algorithm, steps| InnerConfig {
        strategy: Some(Strategy::Dual),
        learn_rates: algorithm != Algorithm::Reptile,
        ..InnerConfig::new(algorithm, steps)
    };
    // The last have more earlier steps than one chain holds the terms and factors of.
    for (algorithm, widths, shots, steps) in [
        (Algorithm::Maml, [16, 32, 48, 544], 5, 3),
        (Algorithm::Maml, [32, 16, 64, 16], 9, 3),
        (Algorithm::Maml, [16, 544, 32, 16], 2, 3),
        (Algorithm::FirstOrderMaml, [16, 544, 32, 16], 3, 3),
        (Algorithm::Reptile, [16, 48, 32, 16], 4, 3),
        (Algorithm::Maml, [16, 48, 32, 16], 1, 14),
    ] {
        let [inputs, hidden @ .., outputs] = widths;
        let activation = if shots == 9 { Activation::Tanh } else { Activation::Relu };
        let mlp = Mlp::with_hidden(inputs, &hidden, outputs, activation, Activation::Linear).unwrap();
        let config = SupervisedConfig { mlp: mlp.clone(), loss: Loss::Mse, inner: inner(algorithm, steps) };
        let shape = Shape { tasks: 6, shots, queries: shots };
        fn run<T: Scalar, D: Device<T>>(device: D, config: &SupervisedConfig, shape: Shape) -> Vec<f64> {
            let (inputs, outputs, rows) = (config.mlp.inputs(), config.mlp.outputs(), shape.tasks * shape.shots);
            gradients::<T, D, _>(
                device,
                config,
                (shape, config.inner.steps),
                std::slice::from_ref(&config.mlp),
                |learner, rng| {
                    let [support_x, query_x] = [(); 2].map(|()| numbers::<T>(rows * inputs, rng));
                    let [support_y, query_y] = [(); 2].map(|()| numbers::<T>(rows * outputs, rng));
                    let rows = SupervisedRows {
                        support_x: &support_x,
                        support_y: &support_y,
                        query_x: &query_x,
                        query_y: &query_y,
                    };
                    learner.run(rows, rng).unwrap();
                },
            )
        }
        let expected = run::<f64, _>(CpuDevice::new(1).unwrap(), &config, shape);
        close(&format!("{algorithm} {widths:?}"), &run::<f32, _>(make(1), &config, shape), &expected);
    }

    let config = VideoConfig {
        generator: Mlp::with_hidden(16, &[48, 32], 4 * 16, Activation::Relu, Activation::Tanh).unwrap(),
        discriminator: Mlp::with_hidden(4 * 16, &[32, 48], 1, Activation::LeakyRelu, Activation::Linear).unwrap(),
        frames: 4,
        frame: Some(FrameShape { height: 4, width: 4, channels: 1 }),
        weights: VideoWeights { adversarial: 0.5, reconstruction: 2.0, motion: 0.5, texture: 0.4 },
        adversarial: true,
        inner: inner(Algorithm::Maml, 3),
    };
    fn run<T: Scalar, D: Device<T>>(device: D, config: &VideoConfig) -> Vec<f64> {
        let shape = Shape { tasks: 5, shots: 3, queries: 3 };
        let networks = [config.generator.clone(), config.discriminator.clone()];
        gradients::<T, D, _>(device, config, (shape, config.inner.steps), &networks, |learner, rng| {
            let [support_x, query_x] = [(); 2].map(|()| numbers::<T>(5 * 3 * 64, rng));
            let [support_z, query_z] = [(); 2].map(|()| numbers::<T>(5 * 3 * 16, rng));
            learner
                .run(
                    VideoRows { support_x: &support_x, support_z: &support_z, query_x: &query_x, query_z: &query_z },
                    rng,
                )
                .unwrap();
        })
    }
    let expected = run::<f64, _>(CpuDevice::new(1).unwrap(), &config);
    close("video", &run::<f32, _>(make(2), &config), &expected);
}
