//! The inner step of Adam, backwards too.

use innerloop::device::{Adam, AdamRateGradient, AdamUpdate, Device, Linear, Rate, ReverseAdam};

use super::Make;
use super::gradients::rate;
use super::scene::{Content, Scene, compare};

/// Tasks, rows, inputs and outputs.
const SHAPES: [[usize; 4]; 4] = [[1, 1, 1, 1], [3, 5, 7, 1], [2, 19, 65, 3], [2, 5, 3, 70]];

/// Single precision follows the step where the root is well above its rounding.
const EPSILON: f64 = 1e-2;

/// Both moments of every task; the second is not negative.
fn moments(scene: &mut Scene, [tasks, _, inputs, outputs]: [usize; 4]) -> [Linear; 2] {
    let first = scene.layer(tasks, false, inputs, outputs);
    let parameters = (inputs + 1) * outputs;
    let region = scene.between(1, tasks * parameters, 0.05, 1.0);
    [first, Linear { weight: region.offset, bias: region.offset + inputs * outputs, task_stride: parameters, ..first }]
}

pub fn adam_update<D: Device<f32>>(make: Make<'_, D>) {
    let mut case = 1300;
    for shape in SHAPES {
        let [tasks, rows, inputs, outputs] = shape;
        for (shared, step, per_parameter) in [(true, 1, false), (false, 2, false), (false, 7, true)] {
            case += 1;
            let scene = &mut Scene::new(case);
            let blocks = 1 + case as usize % 2;
            let delta = scene.random(blocks * tasks * rows, outputs);
            let values = scene.random(blocks * tasks * rows, inputs);
            let from = scene.layer(tasks, shared, inputs, outputs);
            let to = scene.layer_of(tasks, false, inputs, outputs, Content::Written);
            let rates = scene.layer(1, true, inputs, outputs);
            let before = (step > 1).then(|| moments(scene, shape));
            let after = [(); 2].map(|()| scene.layer_of(tasks, false, inputs, outputs, Content::Written));
            compare!(scene, make, format!("case {case}"), |device, arena, T| {
                let operation = AdamUpdate {
                    tasks,
                    rows,
                    delta,
                    values,
                    from,
                    to,
                    rate: rate(case, per_parameter, rates, 0.3 as T),
                    adam: Adam::at_step([0.9, 0.99], EPSILON, step),
                    moments: before,
                    new_moments: after,
                };
                device.adam_update(arena, &operation);
            });
            // Twice in place, from what was written.
            let again = scene.layer_of(tasks, false, inputs, outputs, Content::Written);
            compare!(scene, make, format!("case {case}, in place"), |device, arena, T| {
                for (step, before, to) in [(step, before, to), (step + 1, Some(after), again)] {
                    let operation = AdamUpdate {
                        tasks,
                        rows,
                        delta,
                        values,
                        from,
                        to,
                        rate: Rate::Uniform(0.3 as T),
                        adam: Adam::at_step([0.9, 0.99], EPSILON, step),
                        moments: before,
                        new_moments: after,
                    };
                    device.adam_update(arena, &operation);
                }
            });
        }
    }
}

pub fn adam_rate_gradient<D: Device<f32>>(make: Make<'_, D>) {
    let mut case = 1400;
    for shape in SHAPES {
        let [tasks, _, inputs, outputs] = shape;
        for per_parameter in [false, true] {
            case += 1;
            let scene = &mut Scene::new(case);
            let weight_cotangent = scene.layer(tasks, false, inputs, outputs);
            let moments = moments(scene, shape);
            let moved = scene.layer_of(tasks, false, inputs, outputs, Content::Written);
            let count = if per_parameter { (inputs + 1) * outputs } else { 1 };
            let rate_gradient = scene.changed(1, count, true);
            compare!(scene, make, format!("case {case}"), |device, arena, T| {
                let adam = Adam::at_step([0.9, 0.99], EPSILON, 3);
                let scale = 0.5 as T;
                let operation =
                    AdamRateGradient { tasks, weight_cotangent, moments, adam, moved, rate_gradient, scale };
                device.adam_rate_gradient(arena, &operation);
            });
        }
    }
}

pub fn reverse_adam<D: Device<f32>>(make: Make<'_, D>) {
    let mut case = 1500;
    for shape in SHAPES {
        let [tasks, rows, inputs, outputs] = shape;
        for (step, accumulate, per_parameter) in [(1, true, false), (9, false, false), (4, true, true)] {
            case += 1;
            let scene = &mut Scene::new(case);
            let blocks = 1 + case as usize % 2;
            let delta = scene.random(blocks * tasks * rows, outputs);
            let values = scene.random(blocks * tasks * rows, inputs);
            let weight_cotangent = scene.layer(tasks, false, inputs, outputs);
            let moments = moments(scene, shape);
            let content = if accumulate { Content::Changed } else { Content::Written };
            let moment_cotangents = [(); 2].map(|()| scene.layer_of(tasks, false, inputs, outputs, content));
            let direction = scene.layer_of(tasks, false, inputs, outputs, Content::Written);
            let rates = scene.layer(1, true, inputs, outputs);
            compare!(scene, make, format!("case {case}"), |device, arena, T| {
                let operation = ReverseAdam {
                    tasks,
                    rows,
                    delta,
                    values,
                    weight_cotangent,
                    moments,
                    moment_cotangents,
                    accumulate,
                    rate: rate(case, per_parameter, rates, 0.3 as T),
                    adam: Adam::at_step([0.9, 0.99], EPSILON, step),
                    direction,
                };
                device.reverse_adam(arena, &operation);
            });
        }
    }
}
