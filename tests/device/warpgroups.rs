//! Products with shared weights on Hopper's warpgroups: by every tile, and beyond its edges.

use innerloop::device::{Corrections, Device, LinearForward, MatrixPrecision, Region};

use super::Make;
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
            for top in [first, second] {
                device.fill(arena, top, 0.0);
            }
        });
    }
}

pub fn adjoint<D: Device<f32>>(make: Make<'_, D>, precision: MatrixPrecision) {
    cases(|case| products::adjoint(make, precision, case));
}
