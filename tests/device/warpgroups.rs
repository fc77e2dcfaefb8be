//! Products with shared weights on Hopper's warpgroups: by every tile, and beyond its edges.

use innerloop::device::{
    AdjointForward, Corrections, Device, Gate, Gram, Linear, LinearBackward, LinearForward, MatrixPrecision, Region,
    SupervisedCurvature, SupervisedLoss,
};
use innerloop::objective::Loss;

use super::Make;
use super::corrections::{Terms, corrections};
use super::products::{self, ACTIVATIONS, Case};
use super::scene::{Scene, compare};

/// Tasks, rows of a task, width, inner dimension and blocks: with one stage and with more than a pipeline has, of odd sizes and of
/// such as can be read by 16 bytes; more tiles than there are blocks.
const SHAPES: [(usize, usize, usize, usize, usize); 9] = [
    // By 64 x 64.
    (1, 1, 1, 1, 1),
    (2, 3, 67, 70, 2),
    (1, 33, 64, 452, 1),
    (3, 7, 201, 65, 3),
    // By 128 rows, and by 160.
    (5, 13, 130, 33, 1),
    (1, 43, 257, 449, 2),
    (2, 65, 40, 321, 2),
    // By 256 rows.
    (1, 130, 131, 66, 1),
    (1, 257, 260, 20, 1),
];

/// Every shape, without corrections and, the smaller ones, with them.
fn cases(mut check: impl FnMut(Case)) {
    for (i, (tasks, rows, width, inner, blocks)) in SHAPES.into_iter().enumerate() {
        for corrected in [false, true] {
            if corrected && i % 2 == 0 {
                continue;
            }
            let activation = ACTIVATIONS[(i + usize::from(corrected)) % 5];
            let aligned = width % 4 == 0 && inner % 4 == 0;
            check(Case {
                seed: 100 + i as u64,
                tasks,
                rows,
                width,
                inner,
                blocks,
                shared: true,
                corrected,
                aligned,
                activation,
            });
        }
    }
}

pub fn forward<D: Device<f32>>(make: Make<'_, D>, precision: MatrixPrecision) {
    cases(|case| products::forward(make, precision, case));
}

/// Added to what is there, too.
pub fn backward<D: Device<f32>>(make: Make<'_, D>, precision: MatrixPrecision) {
    cases(|case| {
        products::backward(make, precision, case);
        if case.rows < 100 {
            products::adjoint_down(make, precision, case);
        }
    });
}

/// Rows, inputs and outputs of a layer that copies its outputs to 16 bits, by every tile and beyond its edges.
const COPIED: [(usize, usize, usize); 6] =
    [(5, 64, 8), (40, 33, 72), (170, 64, 56), (67, 20, 136), (90, 64, 264), (300, 64, 144)];

/// A layer whose outputs were copied for the next one before copies them itself from then on, and nothing changes.
pub fn copies<D: Device<f32>>(make: Make<'_, D>, precision: MatrixPrecision) {
    for (i, (rows, inputs, outputs)) in COPIED.into_iter().enumerate() {
        let scene = &mut Scene::new(200 + i as u64);
        scene.align(4);
        let input = scene.random(rows, inputs);
        let (lower, upper) = (scene.layer(1, true, inputs, outputs), scene.layer(1, true, outputs, 9));
        scene.rounds(precision, &[input, Region { offset: lower.weight, rows: outputs, width: inputs }]);
        let between = scene.written(rows, outputs);
        let [first, second] = [(); 2].map(|()| scene.written(rows, 9));
        let difference = scene.written(rows, 9);
        compare!(scene, make, format!("{rows} rows, {inputs} to {outputs}"), |device, arena, T| {
            let corrections = Corrections::NONE;
            for (top, activation) in [(first, ACTIVATIONS[i % 5]), (second, ACTIVATIONS[i % 5])] {
                for (input, layer, output) in [(input, lower, between), (between, upper, top)] {
                    let op = LinearForward { tasks: 1, rows, input, layer, corrections, activation, output };
                    device.linear_forward(arena, &op);
                }
            }
            device.copy(arena, second, difference);
            device.add_scaled(arena, first, -1.0, difference);
            // What they are, of rows that were not to be rounded, is of no matter.
            [first, second].into_iter().for_each(|top| device.fill(arena, top, 0.0));
        });
    }
}

pub fn adjoint<D: Device<f32>>(make: Make<'_, D>, precision: MatrixPrecision) {
    cases(|case| products::adjoint(make, precision, case));
}

/// Tasks, rows of a task, width, inner dimension, blocks.
type Dimensions = (usize, usize, usize, usize, usize);

/// With rows a task of each earlier step, and alignment: of one warp's columns and of several blocks', several groups of rows, more
/// earlier rows than are taken at once, widths that are kept in 16 bits and not, rows that are not aligned, and no earlier steps.
const ENDED: [(Dimensions, &[usize], usize); 8] = [
    ((3, 5, 136, 33, 1), &[5], 4),
    ((2, 9, 520, 40, 1), &[9, 9], 4),
    ((1, 3, 1032, 20, 2), &[3], 4),
    ((2, 4, 64, 65, 1), &[4; 10], 4),
    ((2, 5, 132, 36, 2), &[5, 2], 4),
    ((2, 3, 67, 20, 1), &[3, 3], 1),
    ((1, 2, 2056, 8, 1), &[17, 17], 4),
    ((2, 5, 264, 100, 1), &[], 4),
];

/// What follows an end in the same launch, or in one of its own where it does not fit: a loss, and inner products.
struct Ended {
    scene: Scene,
    tasks: usize,
    rows: usize,
    input: Region,
    layer: Linear,
    terms: Terms,
    /// Rows of other steps, and the inner products with them.
    y: Vec<Region>,
    products: Region,
    what: String,
}

/// Each case, of outputs on a layer's upper side or on its lower one.
fn ended(precision: MatrixPrecision, upper: bool, mut check: impl FnMut(usize, &mut Ended)) {
    for (i, ((tasks, rows, width, inner, blocks), steps, alignment)) in ENDED.into_iter().enumerate() {
        let mut scene = Scene::new(900 + i as u64);
        scene.align(alignment);
        let input = scene.random(blocks * tasks * rows, inner);
        let (inputs, outputs) = if upper { (inner, width) } else { (width, inner) };
        let layer = scene.layer(tasks, true, inputs, outputs);
        let counts = vec![steps.to_vec(); if steps.is_empty() { 0 } else { blocks }];
        let mut terms = Terms::new(&mut scene, tasks, rows, width, &counts);
        terms.decayed &= !steps.is_empty();
        let own: Vec<Region> = terms.blocks.iter().flatten().map(|term| term.rows).collect();
        let mut y = vec![scene.random(tasks * 2, width)];
        y.extend(own.first());
        y.extend(steps.iter().map(|count| scene.random(tasks * count, width)));
        let columns = y.iter().map(|y| y.rows / tasks).sum();
        let products = scene.written(blocks * tasks * rows, columns);
        let weight = Region { offset: layer.weight, rows: outputs, width: inputs };
        let mut rounded = vec![input, weight];
        if precision == MatrixPrecision::Bf16 && alignment == 4 && width % 8 == 0 {
            rounded.extend(own.iter().chain(y.iter().filter(|y| !own.contains(y))));
        }
        scene.rounds(precision, &rounded);
        scene.magnifies(4.0);
        let what = format!("case {i}, {width} wide");
        check(i, &mut Ended { scene, tasks, rows, input, layer, terms, y, products, what });
    }
}

pub fn ended_forward<D: Device<f32>>(make: Make<'_, D>, precision: MatrixPrecision) {
    for followed in [true, false] {
        ended(precision, true, |i, case| {
            let Ended { scene, tasks, rows, input, layer, terms, y, products, what, .. } = case;
            let (tasks, rows, input, layer, products) = (*tasks, *rows, *input, *layer, *products);
            let activation = ACTIVATIONS[i % 5];
            let output = scene.written(input.rows, layer.outputs);
            let target = scene.between(input.rows, layer.outputs, 0.0, 1.0);
            let delta = followed.then(|| scene.written(input.rows, layer.outputs));
            let loss = if i % 2 == 0 { Loss::Mse } else { Loss::BceWithLogits };
            let blocks = input.rows / rows / tasks;
            compare!(scene, make, what, |device, arena, T| {
                let corrections = corrections!(terms);
                device.linear_forward(
                    arena,
                    &LinearForward { tasks, rows, input, layer, corrections, activation, output },
                );
                if delta.is_some() {
                    let tasks = blocks * tasks;
                    let operation =
                        SupervisedLoss { tasks, loss, activation, prediction: output, target, delta, task_loss: None };
                    device.supervised_loss(arena, &operation);
                }
                let x = delta.unwrap_or(output);
                device.gram(arena, &Gram { tasks, rows, x, y, output: products, accumulate: false });
            });
        });
    }
}

pub fn ended_backward<D: Device<f32>>(make: Make<'_, D>, precision: MatrixPrecision) {
    ended(precision, false, |i, case| {
        let Ended { scene, tasks, rows, input: delta, layer, terms, y, products, what, .. } = case;
        let (tasks, rows, delta, layer, products) = (*tasks, *rows, *delta, *layer, *products);
        let values = scene.random(2 * tasks * rows, layer.inputs);
        let gate = Some(Gate { activation: ACTIVATIONS[i % 5], values, blocks: &[1, 0] });
        let output = scene.written(delta.rows, layer.inputs);
        compare!(scene, make, what, |device, arena, T| {
            let corrections = corrections!(terms);
            device.linear_backward(arena, &LinearBackward { tasks, rows, delta, layer, corrections, gate, output });
            device.gram(arena, &Gram { tasks, rows, x: output, y, output: products, accumulate: false });
        });
    });
}

pub fn ended_adjoint<D: Device<f32>>(make: Make<'_, D>, precision: MatrixPrecision) {
    ended(precision, true, |i, case| {
        let Ended { scene, tasks, rows, input, layer, terms, y, products, what, .. } = case;
        let (tasks, rows, input, layer, products) = (*tasks, *rows, *input, *layer, *products);
        let activation = ACTIVATIONS[(i + 3) % 5];
        let values = scene.between(input.rows, layer.outputs, 0.1, 0.9);
        let blocks = input.rows / rows / tasks;
        let gate = Gate { activation, values, blocks: &[0, 1][..blocks] };
        let delta = scene.random(input.rows, layer.outputs);
        let e_cotangent = scene.written(input.rows, layer.outputs);
        let accumulate = activation.is_curved();
        let z_cotangent = scene.written(input.rows, layer.outputs);
        let loss = if i % 2 == 0 { Loss::Mse } else { Loss::BceWithLogits };
        compare!(scene, make, what, |device, arena, T| {
            let corrections = corrections!(terms);
            let operation = AdjointForward {
                tasks,
                rows,
                input: Some((input, 0)),
                layer,
                direction: None,
                corrections,
                gate,
                delta,
                z_cotangent,
                e_cotangent,
            };
            device.adjoint_forward(arena, &operation);
            let at = SupervisedLoss {
                tasks: blocks * tasks,
                loss,
                activation,
                prediction: values,
                target: values,
                delta: None,
                task_loss: None,
            };
            device.supervised_curvature(arena, &SupervisedCurvature { at, e_cotangent, z_cotangent, accumulate });
            device.gram(arena, &Gram { tasks, rows, x: z_cotangent, y, output: products, accumulate: false });
        });
    });
}
