//! Weight gradients and what the materialised form does with them.

use innerloop::device::{
    Device, InnerUpdate, Linear, MatrixPrecision, OuterProduct, OuterTerm, Rate, Region, ReverseUpdate,
};

use super::Make;
use super::scene::{Content, Scene, compare};

/// Inputs and outputs of a task's own: within strips and tiles and across them; by pieces of four, the first three, and not.
const THIN: [(usize, usize); 6] = [(132, 130), (4, 260), (516, 8), (132, 129), (131, 5), (1, 130)];

/// Inputs, outputs and rows a task for tensor cores: around their tiles and stages, and for the larger tile.
fn tensor_shapes() -> impl Iterator<Item = (usize, usize, usize)> {
    let around = [1, 7, 33, 129].into_iter().flat_map(|inputs| {
        let outputs = [1, 5, 17, 130].into_iter();
        outputs.flat_map(move |outputs| [1, 15, 100].into_iter().map(move |rows| (inputs, outputs, rows)))
    });
    around.chain([(132, 20, 100), (5377, 257, 15), (5380, 260, 52)])
}

/// A sum of `count` terms of `rows` rows a task, some of more.
#[derive(Clone, Copy)]
struct Sum {
    seed: u64,
    inputs: usize,
    outputs: usize,
    tasks: usize,
    rows: usize,
    /// Of every second term.
    more: usize,
    count: usize,
    shared: bool,
    accumulate: bool,
    aligned: bool,
    scales: [f64; 3],
    /// Whether the operands are copies, so that the bias's gradient is of rounded rows too.
    copied: bool,
    /// Whether some terms have a factor on the device.
    shares: bool,
}

/// Powers of two: so operands are rounded to the same before they are scaled and after.
const EXACT: [f64; 3] = [1.0, -0.5, 0.25];

/// What cases begin from.
const PLAIN: Sum = Sum {
    seed: 0,
    inputs: 1,
    outputs: 1,
    tasks: 1,
    rows: 1,
    more: 17,
    count: 1,
    shared: true,
    accumulate: false,
    aligned: true,
    scales: EXACT,
    copied: false,
    shares: false,
};

fn sum<D: Device<f32>>(make: Make<'_, D>, precision: MatrixPrecision, case: Sum) {
    let Sum { seed, inputs, outputs, tasks, rows, more, count, shared, accumulate, aligned, scales, copied, shares } =
        case;
    let scene = &mut Scene::new(seed);
    scene.align(if aligned { 4 } else { 1 });
    let terms: Vec<(Region, Region, f64, usize)> = (0..count)
        .map(|i| {
            let blocks = 1 + i % 3;
            let rows = blocks * tasks * (rows + i % 2 * more);
            (scene.random(rows, outputs), scene.random(rows, inputs), [1.0, 0.0, -0.6][i % 3], blocks)
        })
        .collect();
    let share = shares.then(|| scene.holding(&[0.5]));
    let content = if accumulate { Content::Changed } else { Content::Written };
    let layer = scene.layer_of(tasks, shared, inputs, outputs, content);
    if shared {
        let operands: Vec<Region> = terms.iter().flat_map(|(p, q, ..)| [*p, *q]).collect();
        scene.rounds(precision, &operands);
        if !copied {
            scene.writes_exactly(Region { offset: layer.bias, rows: 1, width: outputs });
        }
    }
    let what = format!("{outputs} x {inputs}, shared {shared}, accumulate {accumulate}, {count} terms of {rows}");
    compare!(scene, make, what, |device, arena, T| {
        let mut terms: Vec<OuterTerm<T>> = terms
            .iter()
            .enumerate()
            .map(|(i, (p, q, bias, blocks))| {
                let scale = scales[i % 3] as T;
                let share = share.filter(|_| i % 2 == 0);
                OuterTerm { p: *p, q: *q, bias: *bias as T, blocks: *blocks, scale, share }
            })
            .collect();
        device.outer_product(arena, &OuterProduct { tasks, terms: &terms, layer, accumulate });
        if copied {
            // Once more, of some terms from a row within the copies on.
            for (i, term) in terms.iter_mut().enumerate() {
                let from = if i % 2 == 0 { 0 } else { term.p.rows / 3 };
                [term.p, term.q] = [term.p, term.q].map(|side| side.rows(from, side.rows - from));
            }
            device.outer_product(arena, &OuterProduct { tasks, terms: &terms, layer, accumulate: true });
        }
    });
}

pub fn outer_product<D: Device<f32>>(make: Make<'_, D>, precision: MatrixPrecision) {
    let mut case = 300;
    let mut check = |(inputs, outputs), (tasks, rows, more, count), (shared, accumulate), aligned| {
        case += 1;
        sum(
            make,
            precision,
            Sum {
                seed: case,
                inputs,
                outputs,
                tasks,
                rows,
                more,
                count,
                shared,
                accumulate,
                aligned,
                shares: case % 3 == 0,
                ..PLAIN
            },
        );
    };
    for shape in [(1, 1), (7, 3), (65, 1), (1, 66), (70, 130)] {
        for (shared, accumulate, many) in
            [(true, false, false), (true, true, true), (false, false, false), (false, true, true)]
        {
            let count = if many && shape.0 < 10 { 67 } else { 2 };
            check(shape, (3, 5, 17, count), (shared, accumulate), false);
        }
    }
    if precision == MatrixPrecision::F32 {
        // Of few rows a task: up to 8, up to 16, and more, in one term and in several.
        for (i, shape) in THIN.into_iter().enumerate() {
            for (rows, more, count) in [(5, 0, 1), (2, 1, 2), (3, 1, 2), (1, 0, 5), (17, 0, 1)] {
                check(shape, (2, rows, more, count), (false, (i + count) % 2 == 0), i < 3);
            }
        }
    }
    // In parts, which begin within terms.
    for (inputs, outputs, rows, aligned) in [(1, 3, 400, false), (66, 70, 163, false), (68, 64, 160, true)] {
        for accumulate in [false, true] {
            check((inputs, outputs), (1, rows, 17, 4), (true, accumulate), aligned);
        }
    }
    if precision != MatrixPrecision::F32 {
        for (i, (inputs, outputs, rows)) in tensor_shapes().enumerate() {
            check((inputs, outputs), (1, rows, 17, 1 + i % 2), (true, i % 3 == 0), inputs % 4 == 0);
        }
    }
}

/// Inputs, outputs, rows and terms for Hopper's warpgroups: by both tiles and beyond their edges, of one stage and of more than a
/// pipeline has, in parts or not, with more terms than a launch takes.
const HOPPER_SUMS: [(usize, usize, usize, usize); 8] = [
    (1, 4, 40, 1),
    (9, 64, 3, 27),
    (70, 132, 65, 3),
    (128, 68, 260, 4),
    (129, 64, 64, 2),
    (257, 68, 130, 5),
    (256, 132, 40, 4),
    (520, 20, 190, 2),
];

/// The same of rows that are copied in bf16, since a row is whole pieces of a copy.
const COPIED_SUMS: [(usize, usize, usize, usize); 3] = [(8, 72, 40, 27), (128, 64, 130, 2), (136, 136, 65, 3)];

/// Of copies, in so many stages that a pipeline is gone through again and again: a tile's sum in parts, and many tiles, each whole.
/// `rows` are those of the first; the second's are fewer.
pub fn outer_product_of_many_rows<D: Device<f32>>(make: Make<'_, D>, (rows, wide): (usize, (usize, usize))) {
    for (seed, (inputs, outputs), rows) in [(381, (256, 128), rows), (382, wide, rows.min(2048))] {
        let case = Sum { seed, inputs, outputs, rows, more: 0, copied: true, ..PLAIN };
        sum(make, MatrixPrecision::Bf16, case);
    }
}

/// Of scales that are no powers of two, one of them none at all; some p not aligned for the copy engine.
pub fn outer_product_on_warpgroups<D: Device<f32>>(make: Make<'_, D>, precision: MatrixPrecision) {
    let copies = precision == MatrixPrecision::Bf16;
    let sums = HOPPER_SUMS.into_iter().chain(COPIED_SUMS.into_iter().filter(|_| copies));
    for (i, (inputs, outputs, rows, count)) in sums.enumerate() {
        for accumulate in [false, true] {
            let scales = if accumulate { [0.3, -0.7, 1.1] } else { [-0.7, 0.0, 0.3] };
            let (seed, copied) = (350 + i as u64, i >= HOPPER_SUMS.len());
            sum(make, precision, Sum { seed, inputs, outputs, rows, count, accumulate, scales, copied, ..PLAIN });
        }
    }
    // Others, and terms that are all none.
    for (seed, outputs, aligned, scales, shares) in [
        (371, 64, false, EXACT, false),
        (372, 67, true, EXACT, false),
        (373, 64, true, [0.0; 3], false),
        (374, 64, true, EXACT, true),
    ] {
        let (inputs, rows, count, accumulate) = (33, 50, 3, seed == 373);
        sum(make, precision, Sum { seed, inputs, outputs, rows, count, accumulate, aligned, scales, shares, ..PLAIN });
    }
}

/// A rate for each parameter, or a single one, in every other case on the device.
pub fn rate<T>(case: u64, per_parameter: bool, rates: Linear, one: T) -> Rate<T> {
    match case % 2 {
        _ if per_parameter => Rate::PerParameter(rates),
        0 => Rate::Uniform(one),
        _ => Rate::Single(Region { offset: rates.weight, rows: 1, width: 1 }),
    }
}

pub fn inner_update<D: Device<f32>>(make: Make<'_, D>) {
    let mut case = 400;
    let shapes = [(1, 1, 1, 1), (3, 5, 7, 1), (2, 19, 65, 3), (2, 5, 3, 70)].map(|shape| (shape, false));
    // Of few rows, which one and two blocks of make more than 8 and more than 16, too.
    let thin = THIN.iter().enumerate().map(|(i, (inputs, outputs))| ((2, [5, 8, 9][i % 3], *inputs, *outputs), i < 3));
    for ((tasks, rows, inputs, outputs), aligned) in shapes.into_iter().chain(thin) {
        for (from_shared, keeps, begun, per_parameter) in [
            (true, false, false, false),
            (false, true, false, false),
            (false, true, true, false),
            (true, true, true, true),
        ] {
            case += 1;
            let scene = &mut Scene::new(case);
            scene.align(if aligned { 4 } else { 1 });
            let blocks = 1 + case as usize % 2;
            let delta = scene.random(blocks * tasks * rows, outputs);
            let values = scene.random(blocks * tasks * rows, inputs);
            let from = scene.layer(tasks, from_shared, inputs, outputs);
            let to = scene.layer_of(tasks, false, inputs, outputs, Content::Written);
            let rates = scene.layer(1, true, inputs, outputs);
            let velocity = begun.then(|| scene.layer(tasks, false, inputs, outputs));
            let new_velocity = keeps.then(|| scene.layer_of(tasks, false, inputs, outputs, Content::Written));
            let bias_factor = (case % 3 == 0).then(|| scene.random(1, 1));
            compare!(scene, make, format!("case {case}"), |device, arena, T| {
                let operation = InnerUpdate {
                    tasks,
                    rows,
                    delta,
                    values,
                    bias: if begun { 0.6 } else { 1.0 },
                    bias_factor,
                    from,
                    to,
                    rate: rate(case, per_parameter, rates, 0.3 as T),
                    momentum: 0.9 as T,
                    decay: if keeps { 0.3 } else { 0.1 },
                    velocity,
                    new_velocity,
                };
                device.inner_update(arena, &operation);
            });
        }
    }
}

pub fn reverse_update<D: Device<f32>>(make: Make<'_, D>) {
    let mut case = 500;
    // The largest layer has more parameters than one pass of the sum's grid covers.
    for (tasks, inputs, outputs) in [(1, 1, 1), (3, 7, 5), (2, 33, 40), (2, 255, 130), (2, 43, 52)] {
        for (momentum, accumulate, per_parameter, learns) in [
            (0.0, false, false, false),
            (0.5, true, false, true),
            (0.9, false, true, true),
            (0.0, true, true, true),
            (0.0, true, false, true),
        ] {
            case += 1;
            let scene = &mut Scene::new(case);
            scene.align(if outputs % 4 == 0 { 4 } else { 1 });
            let weight_cotangent = scene.layer(tasks, false, inputs, outputs);
            let begun = accumulate && momentum != 0.0;
            let content = if begun { Content::Changed } else { Content::Written };
            let direction = scene.layer_of(tasks, false, inputs, outputs, content);
            let rates = scene.layer(1, true, inputs, outputs);
            let velocity = learns.then(|| scene.layer(tasks, false, inputs, outputs));
            let count = if per_parameter { (inputs + 1) * outputs } else { 1 };
            let rate_gradient = learns.then(|| scene.changed(1, count, true));
            compare!(scene, make, format!("case {case}"), |device, arena, T| {
                let operation = ReverseUpdate {
                    tasks,
                    weight_cotangent,
                    direction,
                    accumulate,
                    momentum: momentum as T,
                    rate: rate(case, per_parameter, rates, 0.3 as T),
                    velocity,
                    rate_gradient,
                    scale: 0.5 as T,
                };
                device.reverse_update(arena, &operation);
            });
        }
    }
}
