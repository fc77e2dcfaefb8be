//! Batch normalisation over a task's rows.

use innerloop::device::{Device, Normalise, NormaliseAdjoint, NormaliseJacobian};
use innerloop::model::Activation;

use super::Make;
use super::scene::{Scene, compare};

pub fn normalise<D: Device<f32>>(make: Make<'_, D>) {
    use Activation::{LeakyRelu, Linear, Relu, Sigmoid, Tanh};
    let shapes = [
        (1, 1, 1, Linear),
        (3, 5, 129, LeakyRelu),
        (7, 25, 33, Tanh),
        (2, 2, 257, Sigmoid),
        (40, 6, 16, Relu),
        (5, 131, 65, Tanh),
    ];
    for (case, (tasks, rows, width, activation)) in shapes.into_iter().enumerate() {
        let scene = &mut Scene::new(1180 + case as u64);
        let all = tasks * rows;
        let u = scene.changed(all, width, true);
        let shift = scene.random(1, width);
        let (inverse, output) = (scene.written(tasks, width), scene.written(all, width));
        // Of another pass: any numbers will do.
        let (x, own) = (scene.random(all, width), scene.between(tasks, width, 0.5, 2.0));
        let values = scene.between(all, width, 0.1, 0.9);
        let [from, y_delta, u_delta, cotangent] = [(); 4].map(|()| scene.random(all, width));
        let accumulate = case % 2 == 0;
        let to = scene.changed(all, width, accumulate);
        let (u_cotangent, e_cotangent) = (scene.written(all, width), scene.written(all, width));
        let y_cotangent = scene.written(if activation.is_curved() { all } else { 0 }, width);
        compare!(scene, make, format!("{tasks} x {rows} x {width}, {activation:?}"), |device, arena, _T| {
            device.normalise(arena, &Normalise { tasks, epsilon: 1e-3, rows: u, inverse, shift, activation, output });
            let operation = NormaliseJacobian { tasks, normalised: x, inverse: own, from, to, accumulate };
            device.normalise_jacobian(arena, &operation);
            let operation = NormaliseAdjoint {
                tasks,
                normalised: x,
                inverse: own,
                activation,
                values,
                y_delta,
                u_delta,
                cotangent,
                u_cotangent,
                y_cotangent,
                e_cotangent,
            };
            device.normalise_adjoint(arena, &operation);
        });
    }
}
