//! The four products with a layer's weights.

use innerloop::device::{AdjointBackward, AdjointForward, Device, Direction, Gate, LinearBackward, LinearForward};
use innerloop::model::Activation;

use super::Make;
use super::corrections::{Terms, corrections, scales};
use super::scene::{Scene, compare};

const ACTIVATIONS: [Activation; 5] =
    [Activation::Linear, Activation::Relu, Activation::LeakyRelu, Activation::Tanh, Activation::Sigmoid];

/// Tasks, rows, inputs, outputs: within a tile and across tiles, in every dimension.
const SHAPES: [(usize, usize, usize, usize); 6] =
    [(1, 1, 1, 1), (3, 5, 7, 1), (2, 3, 1, 67), (4, 5, 70, 33), (2, 33, 17, 65), (5, 7, 16, 64)];

/// Every shape, with shared and per-task weights, with and without corrections; an activation and a number of blocks each.
fn cases(mut check: impl FnMut(u64, (usize, usize, usize, usize), usize, bool, bool, Activation)) {
    let mut case = 0;
    for shape in SHAPES {
        for (shared, corrected) in [(true, false), (true, true), (false, false)] {
            let activation = ACTIVATIONS[case % 5];
            check(case as u64, shape, 1 + case % 3, shared, corrected, activation);
            case += 1;
        }
    }
}

/// Terms of unequal length for every block.
fn terms(scene: &mut Scene, tasks: usize, rows: usize, width: usize, blocks: usize, corrected: bool) -> Terms {
    let counts: Vec<Vec<usize>> = (0..blocks).map(|b| vec![rows, 2, 1 + b]).collect();
    if corrected { Terms::new(scene, tasks, rows, width, &counts) } else { Terms::none() }
}

pub fn linear_forward<D: Device<f32>>(make: Make<'_, D>) {
    cases(|seed, (tasks, rows, inputs, outputs), blocks, shared, corrected, activation| {
        let scene = &mut Scene::new(seed);
        let input = scene.random(blocks * tasks * rows, inputs);
        let layer = scene.layer(tasks, shared, inputs, outputs);
        let terms = terms(scene, tasks, rows, outputs, blocks, corrected);
        let output = scene.written(input.rows, outputs);
        compare!(scene, make, format!("case {seed}"), |device, arena, T| {
            let scales = scales!(terms, T);
            let corrections = corrections!(terms, scales);
            device.linear_forward(arena, &LinearForward { tasks, rows, input, layer, corrections, activation, output });
        });
    });
}

pub fn linear_backward<D: Device<f32>>(make: Make<'_, D>) {
    cases(|seed, (tasks, rows, inputs, outputs), blocks, shared, corrected, activation| {
        let scene = &mut Scene::new(seed);
        let delta = scene.random(blocks * tasks * rows, outputs);
        let layer = scene.layer(tasks, shared, inputs, outputs);
        let terms = terms(scene, tasks, rows, inputs, blocks, corrected);
        let values = scene.random(2 * tasks * rows, inputs);
        let gate = (seed % 4 != 3).then_some(Gate { activation, values, blocks: &[1, 0, 1] });
        let output = scene.written(delta.rows, inputs);
        compare!(scene, make, format!("case {seed}"), |device, arena, T| {
            let scales = scales!(terms, T);
            let corrections = corrections!(terms, scales);
            device.linear_backward(arena, &LinearBackward { tasks, rows, delta, layer, corrections, gate, output });
        });
    });
}

pub fn adjoint_forward<D: Device<f32>>(make: Make<'_, D>) {
    cases(|seed, (tasks, rows, inputs, outputs), blocks, shared, corrected, activation| {
        // The input's cotangent is there for all blocks, for the later ones, or not at all; the gate blocks are distinct,
        // or shared by two output blocks.
        for (first, directed, gates) in
            [(0, true, [0, 1, 2]), (blocks - 1, !corrected, [0, 1, 1]), (blocks, !corrected, [1, 1, 0])]
        {
            let scene = &mut Scene::new(seed);
            let input = (first < blocks).then(|| (scene.random((blocks - first) * tasks * rows, inputs), first));
            let layer = scene.layer(tasks, shared, inputs, outputs);
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
            compare!(
                scene,
                make,
                format!("case {seed}, {blocks} blocks from {first}, {gates:?}"),
                |device, arena, T| {
                    let scales = scales!(terms, T);
                    let corrections = corrections!(terms, scales);
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
                }
            );
        }
    });
}

pub fn adjoint_backward<D: Device<f32>>(make: Make<'_, D>) {
    cases(|seed, (tasks, rows, inputs, outputs), blocks, shared, corrected, activation| {
        for accumulate in [false, true] {
            let scene = &mut Scene::new(seed);
            let z_cotangent = scene.random(blocks * tasks * rows, outputs);
            let layer = scene.layer(tasks, shared, inputs, outputs);
            let direction = (!corrected || accumulate).then(|| Direction {
                layer: scene.layer(tasks, false, inputs, outputs),
                values: scene.random((1 + blocks / 2) * tasks * rows, outputs),
            });
            let terms = terms(scene, tasks, rows, inputs, blocks, corrected);
            let values = scene.random(blocks * tasks * rows, inputs);
            let gate = (seed % 4 != 2).then_some(Gate { activation, values, blocks: &[0, 1, 2, 3] });
            let output = scene.changed(z_cotangent.rows, inputs, accumulate);
            compare!(scene, make, format!("case {seed}, accumulate {accumulate}"), |device, arena, T| {
                let scales = scales!(terms, T);
                let corrections = corrections!(terms, scales);
                let operation = AdjointBackward {
                    tasks,
                    rows,
                    z_cotangent,
                    layer,
                    direction,
                    corrections,
                    gate,
                    output,
                    accumulate,
                };
                device.adjoint_backward(arena, &operation);
            });
        }
    });
}
