//! Whole inner loops as one operation.

use innerloop::device::{Device, MatrixPrecision, Resident, ResidentGradient};
use innerloop::model::{Activation, Mlp};
use innerloop::objective::Loss;

use super::Make;
use super::scene::{Scene, compare};

use Activation::{LeakyRelu, Linear, Relu, Sigmoid, Tanh};
use ResidentGradient::{Displacement, Exact, FirstOrder};

/// An inner loop: widths and activations, the loss, what the gradient is of, the first layer that moves, momentum and decay, and
/// whether each parameter has a rate.
type Case<'a> = (&'a [usize], &'a [Activation], Loss, ResidentGradient, usize, [f64; 2], bool);

const CASES: &[Case<'_>] = &[
    (&[1, 1], &[Linear], Loss::Mse, Exact, 0, [0.0, 0.0], false),
    (&[3, 33, 2], &[Tanh, Linear], Loss::Mse, Exact, 0, [0.0, 0.0], false),
    (&[2, 8, 7, 3], &[Relu, Sigmoid, Tanh], Loss::BceWithLogits, Exact, 0, [0.5, 0.1], true),
    (&[4, 5, 40], &[LeakyRelu, Linear], Loss::CrossEntropy, Exact, 0, [0.3, 0.0], false),
    (&[3, 9, 6, 2], &[Tanh, Tanh, Sigmoid], Loss::CrossEntropy, Exact, 2, [0.0, 0.1], false),
    (&[2, 17, 1], &[Tanh, Linear], Loss::Mse, FirstOrder, 0, [0.4, 0.2], false),
    (&[2, 6, 2], &[Relu, Linear], Loss::Mse, FirstOrder, 1, [0.0, 0.0], true),
    (&[5, 12, 3], &[Sigmoid, Linear], Loss::BceWithLogits, Displacement, 0, [0.4, 0.2], false),
];

/// Of networks with two narrow hidden layers: inputs and hidden widths; tasks, rows of both kinds, steps, and what the gradient
/// is of.
type NarrowCase = ([usize; 3], [usize; 4], ResidentGradient);

const NARROW_CASES: &[NarrowCase] = &[
    ([1, 40, 40], [3, 10, 10, 2], Exact),
    ([2, 37, 21], [2, 5, 7, 3], Exact),
    ([8, 3, 40], [1, 16, 1, 1], Exact),
    ([1, 8, 9], [4, 3, 12, 0], Exact),
    ([3, 40, 33], [2, 6, 6, 2], FirstOrder),
    // More tasks than there are multiprocessors for.
    ([1, 9, 6], [301, 3, 2, 1], Exact),
    ([2, 40, 40], [266, 2, 5, 2], Exact),
];

/// More than multiprocessors.
const MANY: usize = 133;

/// How far a gradient may be off whose products are of rounded operands.
const ROUNDED: f64 = 1e-2;

/// Of narrow networks, by the kernels of that precision.
pub fn narrow_loops<D: Device<f32>>(make: Make<'_, D>, precision: MatrixPrecision) {
    for (case, &([inputs, lower, upper], [tasks, shots, queries, steps], kind)) in (1600..).zip(NARROW_CASES) {
        let mlp = &Mlp::new(&[inputs, lower, upper, 1], &[Relu, Relu, Linear]).unwrap();
        let scene = &mut Scene::new(case);
        let count = mlp.parameter_count();
        // Fewer tasks are for the kernels in f32.
        let tasks = if precision == MatrixPrecision::F32 { tasks } else { tasks.max(MANY) };
        let parameters = scene.between(1, count, -0.4, 0.4);
        let rates = scene.between(1, steps * mlp.layers(), 0.02, 0.1);
        let mut rows = |rows: usize| [scene.random(tasks * rows, inputs), scene.between(tasks * rows, 1, 0.01, 1.0)];
        let (support, query) = (rows(shots), rows(queries));
        let gradient = Some([scene.written(1, count), scene.worked_in(tasks, count)]);
        let task_loss = Some(scene.written(1, tasks));
        if precision != MatrixPrecision::F32 {
            // A sum that is next to nothing may come out on the other side of it.
            gradient.iter().flatten().chain(&task_loss).for_each(|region| scene.loosens(*region, ROUNDED));
        }
        compare!(scene, make, format!("case {case}"), |device, arena, T| {
            let operation = Resident {
                mlp,
                loss: Loss::Mse,
                tasks,
                shots,
                queries,
                steps,
                first_moving: 0,
                kind,
                momentum: 0.0 as T,
                decay: 0.0 as T,
                parameters,
                rates,
                per_parameter: false,
                support,
                query,
                scale: 0.5 as T,
                task_loss,
                gradient,
                rate_gradient: None,
                adapted: None,
                trace: None,
            };
            device.resident(arena, &operation);
        });
    }
}

pub fn resident<D: Device<f32>>(make: Make<'_, D>) {
    let mut case = 1500;
    for &(widths, activations, loss, kind, first_moving, [momentum, decay], per_parameter) in CASES {
        let mlp = &Mlp::new(widths, activations).unwrap();
        for (tasks, shots, queries, steps) in [(1, 5, 3, 3), (3, 1, 9, 2), (2, 4, 4, 0)] {
            case += 1;
            let scene = &mut Scene::new(case);
            let count = mlp.parameter_count();
            let parameters = scene.between(1, count, -0.4, 0.4);
            let each = if per_parameter { count } else { steps * mlp.layers() };
            let rates = scene.between(1, each, 0.02, 0.3);
            let mut rows = |rows: usize| {
                let inputs = scene.random(tasks * rows, mlp.inputs());
                [inputs, scene.between(tasks * rows, mlp.outputs(), 0.01, 1.0)]
            };
            let (support, query) = (rows(shots), rows(queries));
            // The room for the sums holds what the device likes, but of one task.
            let sums = tasks == 1;
            let mut summed = |count: usize| sums.then(|| [(); 2].map(|()| scene.written(1, count)));
            let gradient = summed(count);
            let rate_gradient = if kind == Displacement { None } else { summed(each) };
            let task_loss = Some(scene.written(1, tasks));
            let adapted = Some(scene.written(tasks, count));
            let trace = (!sums).then(|| {
                let losses = scene.written(steps + 1, tasks);
                [losses, scene.written((steps + 1) * tasks * queries, mlp.outputs())]
            });
            compare!(scene, make, format!("case {case}"), |device, arena, T| {
                let operation = Resident {
                    mlp,
                    loss,
                    tasks,
                    shots,
                    queries,
                    steps,
                    first_moving,
                    kind,
                    momentum: momentum as T,
                    decay: decay as T,
                    parameters,
                    rates,
                    per_parameter,
                    support,
                    query,
                    scale: 0.5 as T,
                    task_loss,
                    gradient,
                    rate_gradient,
                    adapted,
                    trace,
                };
                device.resident(arena, &operation);
            });
        }
    }
}
