//! The four products with a layer's weights.

use innerloop::device::{
    AdjointBackward, AdjointForward, Device, Direction, Gate, Linear, LinearBackward, LinearForward, MatrixPrecision,
    Region,
};
use innerloop::model::Activation;

use super::Make;
use super::corrections::{Terms, corrections};
use super::scene::{Scene, compare};

pub const ACTIVATIONS: [Activation; 5] =
    [Activation::Linear, Activation::Relu, Activation::LeakyRelu, Activation::Tanh, Activation::Sigmoid];

/// Tasks, rows, width and inner dimension: within a tile and across tiles, in every dimension.
const SHAPES: [(usize, usize, usize, usize); 6] =
    [(1, 1, 1, 1), (3, 5, 1, 7), (2, 3, 67, 1), (4, 5, 33, 70), (2, 33, 65, 17), (5, 7, 64, 16)];

/// Tasks, rows, width, inner dimension and blocks, where every task has weights of its own and few rows: one, up to 8, up to
/// 16 and more in all of its blocks; within strips and chunks and across them; by pieces of four and not.
const THIN: [(usize, usize, usize, usize, usize); 9] = [
    (2, 1, 68, 132, 1),
    (3, 5, 130, 37, 1),
    (2, 8, 260, 516, 1),
    (2, 3, 20, 1028, 3),
    (1, 16, 67, 513, 1),
    (2, 17, 64, 64, 1),
    (2, 2, 132, 600, 2),
    (2, 9, 1, 129, 1),
    (2, 4, 36, 1, 3),
];

/// Rows, widths and inner dimensions around the tiles and stages of tensor cores, each with each.
const TENSOR_ROWS: [usize; 4] = [1, 5, 17, 130];
const TENSOR_WIDTHS: [usize; 4] = [1, 7, 33, 129];
const TENSOR_INNER: [usize; 3] = [1, 15, 100];

/// Rows, width and inner dimension for each of the larger tiles and beyond its edges; for copies by 16 bytes, and not.
const TENSOR_LARGE: [(usize, usize, usize); 5] =
    [(17, 132, 100), (130, 2689, 15), (130, 2692, 20), (257, 5377, 15), (260, 5380, 52)];

#[derive(Clone, Copy)]
pub struct Case {
    pub seed: u64,
    pub tasks: usize,
    pub rows: usize,
    /// Of the output.
    pub width: usize,
    pub inner: usize,
    pub blocks: usize,
    pub shared: bool,
    pub corrected: bool,
    pub aligned: bool,
    pub activation: Activation,
}

impl Case {
    fn scene(&self) -> Scene {
        let mut scene = Scene::new(self.seed);
        scene.align(if self.aligned { 4 } else { 1 });
        scene
    }

    /// What is rounded: the rows and the weights of a product with shared weights.
    fn rounds(&self, scene: &mut Scene, precision: MatrixPrecision, rows: &[Region], layer: &Linear) {
        let weight = Region { offset: layer.weight, rows: layer.outputs, width: layer.inputs };
        if layer.is_shared() {
            scene.rounds(precision, &[rows, &[weight]].concat());
        }
    }
}

/// Every shape, with shared and per-task weights, with and without corrections; an activation and a number of blocks each. Those
/// for tensor cores with shared weights.
fn cases(precision: MatrixPrecision, mut check: impl FnMut(Case)) {
    let mut number = 0;
    let mut next = |(tasks, rows, width, inner), blocks, (shared, corrected), aligned| {
        let activation = ACTIVATIONS[number % 5];
        check(Case { seed: number as u64, tasks, rows, width, inner, blocks, shared, corrected, aligned, activation });
        number += 1;
    };
    for (i, shape) in SHAPES.into_iter().enumerate() {
        for (j, kind) in [(true, false), (true, true), (false, false)].into_iter().enumerate() {
            next(shape, 1 + (3 * i + j) % 3, kind, false);
        }
    }
    if precision == MatrixPrecision::F32 {
        for (tasks, rows, width, inner, blocks) in THIN {
            for aligned in [true, false] {
                next((tasks, rows, width, inner), blocks, (false, false), aligned);
            }
        }
        return;
    }
    for rows in TENSOR_ROWS {
        for width in TENSOR_WIDTHS {
            for inner in TENSOR_INNER {
                next((1, rows, width, inner), 1, (true, false), false);
            }
        }
    }
    for (rows, width, inner) in TENSOR_LARGE {
        // Copies one by one are the same in every precision, and of so many outputs they take long to emulate.
        if precision != MatrixPrecision::Bf16 && width == 5377 {
            continue;
        }
        next((1, rows, width, inner), 1, (true, false), width % 4 == 0);
    }
}

/// Terms of unequal length for every block.
fn terms(scene: &mut Scene, tasks: usize, rows: usize, width: usize, blocks: usize, corrected: bool) -> Terms {
    let counts: Vec<Vec<usize>> = (0..blocks).map(|b| vec![rows, 2, 1 + b]).collect();
    if corrected { Terms::new(scene, tasks, rows, width, &counts) } else { Terms::none() }
}

pub fn linear_forward<D: Device<f32>>(make: Make<'_, D>, precision: MatrixPrecision) {
    cases(precision, |case| forward(make, precision, case));
}

pub fn forward<D: Device<f32>>(make: Make<'_, D>, precision: MatrixPrecision, case: Case) {
    let Case { seed, tasks, rows, width: outputs, inner: inputs, blocks, shared, corrected, activation, .. } = case;
    let scene = &mut case.scene();
    let input = scene.random(blocks * tasks * rows, inputs);
    let layer = scene.layer(tasks, shared, inputs, outputs);
    case.rounds(scene, precision, &[input], &layer);
    let terms = terms(scene, tasks, rows, outputs, blocks, corrected);
    let output = scene.written(input.rows, outputs);
    compare!(scene, make, format!("case {seed}"), |device, arena, T| {
        let corrections = corrections!(terms);
        device.linear_forward(arena, &LinearForward { tasks, rows, input, layer, corrections, activation, output });
    });
}

pub fn linear_backward<D: Device<f32>>(make: Make<'_, D>, precision: MatrixPrecision) {
    cases(precision, |case| backward(make, precision, case));
}

pub fn backward<D: Device<f32>>(make: Make<'_, D>, precision: MatrixPrecision, case: Case) {
    let Case { seed, tasks, rows, width: inputs, inner: outputs, blocks, shared, corrected, activation, .. } = case;
    let scene = &mut case.scene();
    let delta = scene.random(blocks * tasks * rows, outputs);
    let layer = scene.layer(tasks, shared, inputs, outputs);
    case.rounds(scene, precision, &[delta], &layer);
    let terms = terms(scene, tasks, rows, inputs, blocks, corrected);
    let values = scene.random(2 * tasks * rows, inputs);
    let gate = (seed % 4 != 3).then_some(Gate { activation, values, blocks: &[1, 0, 1] });
    let output = scene.written(delta.rows, inputs);
    compare!(scene, make, format!("case {seed}"), |device, arena, T| {
        let corrections = corrections!(terms);
        device.linear_backward(arena, &LinearBackward { tasks, rows, delta, layer, corrections, gate, output });
    });
}

pub fn adjoint_forward<D: Device<f32>>(make: Make<'_, D>, precision: MatrixPrecision) {
    cases(precision, |case| adjoint(make, precision, case));
}

pub fn adjoint<D: Device<f32>>(make: Make<'_, D>, precision: MatrixPrecision, case: Case) {
    let Case { seed, tasks, rows, width: outputs, inner: inputs, blocks, shared, corrected, activation, .. } = case;
    // The input's cotangent is there for all blocks, for the later ones, or not at all; the gate blocks are distinct,
    // or shared by two output blocks.
    for (first, directed, gates) in
        [(0, true, [0, 1, 2]), (blocks - 1, !corrected, [0, 1, 1]), (blocks, !corrected, [1, 1, 0])]
    {
        // With one block the second is the first.
        if precision != MatrixPrecision::F32 && blocks == 1 && gates == [0, 1, 1] {
            continue;
        }
        // A direction is a task's own: nothing of it is for tensor cores.
        let directed = directed && precision == MatrixPrecision::F32;
        let scene = &mut case.scene();
        let input = (first < blocks).then(|| (scene.random((blocks - first) * tasks * rows, inputs), first));
        let layer = scene.layer(tasks, shared, inputs, outputs);
        if let Some((input, _)) = input {
            case.rounds(scene, precision, &[input], &layer);
        }
        let direction = directed.then(|| Direction {
            layer: scene.layer(tasks, false, inputs, outputs),
            values: scene.random((1 + blocks / 2) * tasks * rows, inputs),
        });
        let terms = terms(scene, tasks, rows, outputs, blocks, corrected);
        let gates = &gates[..blocks];
        let gate_blocks = gates.iter().max().map_or(1, |b| b + 1);
        let values = scene.random(gate_blocks * tasks * rows, outputs);
        let gate = Gate { activation, values, blocks: gates };
        let delta = scene.random(blocks * tasks * rows, outputs);
        // Only blocks that gate something get a cotangent.
        let covered = (0..gate_blocks).all(|b| gates.contains(&b));
        let written = activation.is_curved() && covered;
        let z_cotangent = if written { scene.written(values.rows, outputs) } else { scene.scratch(values.len()) };
        if activation.is_curved() && !covered {
            continue;
        }
        let e_cotangent = scene.written(delta.rows, outputs);
        compare!(scene, make, format!("case {seed}, {blocks} blocks from {first}, {gates:?}"), |device, arena, T| {
            let corrections = corrections!(terms);
            let operation = AdjointForward {
                tasks,
                rows,
                input,
                layer,
                direction,
                corrections,
                gate,
                delta,
                z_cotangent,
                e_cotangent,
            };
            device.adjoint_forward(arena, &operation);
        });
    }
}

pub fn adjoint_backward<D: Device<f32>>(make: Make<'_, D>, precision: MatrixPrecision) {
    cases(precision, |case| adjoint_down(make, precision, case));
}

pub fn adjoint_down<D: Device<f32>>(make: Make<'_, D>, precision: MatrixPrecision, case: Case) {
    let Case { seed, tasks, rows, width: inputs, inner: outputs, blocks, shared, corrected, activation, .. } = case;
    for accumulate in [false, true] {
        // Without a direction, and not accumulated, it is the backward pass.
        if precision != MatrixPrecision::F32 && !accumulate {
            continue;
        }
        let scene = &mut case.scene();
        let z_cotangent = scene.random(blocks * tasks * rows, outputs);
        let layer = scene.layer(tasks, shared, inputs, outputs);
        let directed = (!corrected || accumulate) && precision == MatrixPrecision::F32;
        let direction = directed.then(|| Direction {
            layer: scene.layer(tasks, false, inputs, outputs),
            values: scene.random((1 + blocks / 2) * tasks * rows, outputs),
        });
        case.rounds(scene, precision, &[z_cotangent], &layer);
        let terms = terms(scene, tasks, rows, inputs, blocks, corrected);
        let values = scene.random(blocks * tasks * rows, inputs);
        let gate = (seed % 4 != 2).then_some(Gate { activation, values, blocks: &[0, 1, 2, 3] });
        let output = scene.changed(z_cotangent.rows, inputs, accumulate);
        compare!(scene, make, format!("case {seed}, accumulate {accumulate}"), |device, arena, T| {
            let corrections = corrections!(terms);
            let operation =
                AdjointBackward { tasks, rows, z_cotangent, layer, direction, corrections, gate, output, accumulate };
            device.adjoint_backward(arena, &operation);
        });
    }
}
