//! Losses with their first and second derivatives.

use innerloop::device::{
    AdversarialCurvature, AdversarialLoss, Device, PixelCurvature, PixelLoss, SupervisedCurvature, SupervisedLoss,
};
use innerloop::model::Activation;
use innerloop::objective::{FrameShape, Loss};

use super::Make;
use super::scene::{Scene, compare};

const LOSSES: [Loss; 3] = [Loss::Mse, Loss::BceWithLogits, Loss::CrossEntropy];
/// Tasks, rows, outputs, and alignment.
const SHAPES: [(usize, usize, usize, usize); 7] =
    [(1, 1, 1, 1), (3, 5, 7, 1), (2, 9, 33, 1), (4, 3, 130, 1), (3, 5, 7, 4), (2, 5, 560, 4), (2, 5, 560, 1)];

fn supervised(mut check: impl FnMut(&mut Scene, SupervisedLoss, bool)) {
    let mut case = 600;
    for (tasks, rows, outputs, alignment) in SHAPES {
        for loss in LOSSES {
            // The cross-entropy of one class is 0 with gradient 0: nothing to be right about.
            let outputs = if loss == Loss::CrossEntropy { outputs.max(2) } else { outputs };
            for activation in [Activation::Linear, Activation::Tanh] {
                case += 1;
                let scene = &mut Scene::new(case);
                scene.align(alignment);
                let prediction = scene.between(tasks * rows, outputs, -4.0, 4.0);
                let target = scene.between(tasks * rows, outputs, 0.0, 1.0);
                let at = SupervisedLoss { tasks, loss, activation, prediction, target, delta: None, task_loss: None };
                check(scene, at, case % 2 == 0 || alignment > 1);
            }
        }
    }
}

pub fn supervised_loss<D: Device<f32>>(make: Make<'_, D>) {
    supervised(|scene, at, both| {
        let delta = Some(scene.written(at.prediction.rows, at.prediction.width));
        let task_loss = both.then(|| scene.written(1, at.tasks));
        let operation = SupervisedLoss { delta, task_loss, ..at };
        compare!(scene, make, format!("{} of {:?}", at.loss, at.prediction), |device, arena, _T| {
            device.supervised_loss(arena, &operation);
        });
    });
}

pub fn supervised_curvature<D: Device<f32>>(make: Make<'_, D>) {
    supervised(|scene, at, accumulate| {
        let e_cotangent = scene.random(at.prediction.rows, at.prediction.width);
        let z_cotangent = scene.changed(at.prediction.rows, at.prediction.width, accumulate);
        let operation = SupervisedCurvature { at, e_cotangent, z_cotangent, accumulate };
        compare!(scene, make, format!("{} of {:?}", at.loss, at.prediction), |device, arena, _T| {
            device.supervised_curvature(arena, &operation);
        });
    });
}

pub fn adversarial<D: Device<f32>>(make: Make<'_, D>) {
    for (case, (tasks, rows, activation)) in
        [(1, 1, Activation::Linear), (3, 5, Activation::Tanh), (2, 150, Activation::Linear)].into_iter().enumerate()
    {
        for (with_losses, accumulate) in [(true, false), (false, true)] {
            let scene = &mut Scene::new(700 + case as u64);
            let logits = scene.between(2 * tasks * rows, 1, -6.0, 6.0);
            let delta = scene.written(3 * tasks * rows, 1);
            let discriminator_loss = with_losses.then(|| scene.written(1, tasks));
            let generator_loss = with_losses.then(|| scene.written(1, tasks));
            let e_cotangent = scene.random(3 * tasks * rows, 1);
            let z_cotangent = scene.changed(2 * tasks * rows, 1, accumulate);
            compare!(scene, make, format!("adversarial {tasks} x {rows}"), |device, arena, T| {
                let weight = 0.7 as T;
                let at =
                    AdversarialLoss { tasks, weight, logits, activation, delta, discriminator_loss, generator_loss };
                device.adversarial_loss(arena, &at);
                let operation = AdversarialCurvature { at, e_cotangent, z_cotangent, accumulate };
                device.adversarial_curvature(arena, &operation);
            });
        }
    }
}

pub fn pixel<D: Device<f32>>(make: Make<'_, D>) {
    // Tasks, rows; frames, height, width, channels; w_mot, w_tex.
    let cases = [
        ((1, 1), [1, 1, 1, 1], 0.5, 0.5),
        ((3, 5), [1, 7, 1, 1], 0.5, 0.0),
        ((2, 2), [3, 5, 10, 1], 0.5, 0.7),
        ((2, 3), [4, 1, 11, 3], 0.0, 0.7),
        ((2, 1), [2, 1, 1, 3], 1.0, 0.7),
        ((1, 2), [3, 13, 9, 3], 0.5, 0.7),
    ];
    for (case, ((tasks, rows), [frames, height, width, channels], motion, texture)) in cases.into_iter().enumerate() {
        let frame = FrameShape { height, width, channels };
        for (with_loss, accumulate) in [(true, false), (false, true)] {
            let scene = &mut Scene::new(800 + case as u64);
            let (count, width) = (tasks * rows, frames * height * width * channels);
            let prediction = scene.random(count, width);
            let target = scene.random(count, width);
            let upstream = scene.random(count, width);
            let delta = scene.written(count, width);
            let task_loss = with_loss.then(|| scene.changed(1, tasks, true));
            let e_cotangent = scene.random(count, width);
            let z_cotangent = scene.changed(count, width, accumulate);
            compare!(scene, make, format!("pixel {count} x {frames} x {frame}"), |device, arena, T| {
                let at = PixelLoss {
                    tasks,
                    frame,
                    reconstruction: 1.5 as T,
                    motion: motion as T,
                    texture: texture as T,
                    prediction,
                    target,
                    activation: Activation::Tanh,
                    upstream,
                    delta,
                    task_loss,
                };
                device.pixel_loss(arena, &at);
                let operation = PixelCurvature { at, e_cotangent, z_cotangent, accumulate };
                device.pixel_curvature(arena, &operation);
            });
        }
    }
}
