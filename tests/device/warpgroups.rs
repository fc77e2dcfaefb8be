//! Products with shared weights on Hopper's warpgroups: by every tile, and beyond its edges.

use innerloop::device::{Device, MatrixPrecision};

use super::Make;
use super::products::{self, ACTIVATIONS, Case};

/// Tasks, rows of a task, width, inner dimension and blocks: with one stage and with more than a pipeline has, of odd sizes and of
/// such as can be read by 16 bytes; more tiles than there are blocks.
const SHAPES: [(usize, usize, usize, usize, usize); 9] = [
    // By 64 x 64.
    (1, 1, 1, 1, 1),
    (2, 3, 67, 70, 2),
    (1, 33, 64, 452, 1),
    (3, 7, 201, 65, 3),
    // By 128 rows.
    (5, 13, 130, 33, 1),
    (1, 43, 257, 449, 2),
    // By 256 rows.
    (1, 130, 131, 66, 1),
    (2, 65, 40, 321, 2),
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

pub fn adjoint<D: Device<f32>>(make: Make<'_, D>, precision: MatrixPrecision) {
    cases(|case| products::adjoint(make, precision, case));
}
