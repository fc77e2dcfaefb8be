//! The losses with their first and second derivatives.

use innerloop::Scalar;
use innerloop::device::{
    AdversarialCurvature, AdversarialLoss, Device, PixelCurvature, PixelLoss, Region, SupervisedCurvature,
    SupervisedLoss,
};
use innerloop::objective::{FrameShape, Loss};
use rand::RngExt;

use crate::case::{ACTIVATIONS, Case, Image, each, first, for_seeds};

fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

fn softplus(x: f64) -> f64 {
    x.max(0.0) + (-x.abs()).exp().ln_1p()
}

/// `exp(p) / sum exp(p)` of one row.
fn softmax(image: &Image, region: Region, row: usize) -> Vec<f64> {
    let e: Vec<f64> = (0..region.width).map(|c| image.at(region, row, c).exp()).collect();
    let total: f64 = e.iter().sum();
    e.iter().map(|e| e / total).collect()
}

/// A loss at random predictions; targets are probabilities where the loss wants them.
fn supervised<T: Scalar>(case: &mut Case<T>) -> (usize, SupervisedLoss) {
    let ((tasks, rows, _), (outputs, _)) = (case.rows(), case.widths());
    let loss = case.pick(&[Loss::Mse, Loss::BceWithLogits, Loss::CrossEntropy]);
    let activation = case.pick(&ACTIVATIONS);
    let target = match loss {
        Loss::Mse => case.random(tasks * rows, outputs),
        _ => case.filled(tasks * rows, outputs, |rng| rng.random_range(0.0..1.0)),
    };
    let (delta, task_loss) = (case.poisoned(tasks * rows, outputs), case.poisoned(1, tasks));
    let op = SupervisedLoss {
        tasks,
        loss,
        activation,
        prediction: case.values(tasks * rows, outputs, activation),
        target,
        delta: case.coin().then_some(delta),
        task_loss: case.coin().then_some(task_loss),
    };
    (rows, op)
}

#[test]
fn supervised_loss() {
    fn check<T: Scalar>(seed: u64) {
        let mut case = Case::<T>::new(seed);
        let (rows, op) = supervised(&mut case);
        let image = case.image();
        let outputs = op.prediction.width;
        let elements = (rows * outputs) as f64;
        let delta = each([1, op.tasks, rows, outputs], |[_, t, k, c]| {
            let row = t * rows + k;
            let (p, y) = (image.at(op.prediction, row, c), image.at(op.target, row, c));
            let gradient = match op.loss {
                Loss::Mse => 2.0 * (p - y) / elements,
                Loss::BceWithLogits => (sigmoid(p) - y) / elements,
                Loss::CrossEntropy => {
                    // d/dp of sum_i y_i (log sum exp(p) - p_i)
                    let mass: f64 = (0..outputs).map(|c| image.at(op.target, row, c)).sum();
                    (mass * softmax(&image, op.prediction, row)[c] - y) / rows as f64
                }
            };
            gradient * first(op.activation, p)
        });
        let loss = (0..op.tasks)
            .map(|t| {
                let element = |row, c| {
                    let (p, y) = (image.at(op.prediction, row, c), image.at(op.target, row, c));
                    match op.loss {
                        Loss::Mse => (p - y).powi(2) / elements,
                        Loss::BceWithLogits => -(y * sigmoid(p).ln() + (1.0 - y) * sigmoid(-p).ln()) / elements,
                        Loss::CrossEntropy => -y * softmax(&image, op.prediction, row)[c].ln() / rows as f64,
                    }
                };
                (t * rows..(t + 1) * rows)
                    .flat_map(|r| (0..outputs).map(move |c| (r, c)))
                    .map(|(r, c)| element(r, c))
                    .sum()
            })
            .collect();
        let mut expected = Vec::new();
        expected.extend(op.delta.map(|region| (region, delta)));
        expected.extend(op.task_loss.map(|region| (region, loss)));
        case.judge(&format!("{} loss", op.loss), 5e-6, &expected, |d, arena| d.supervised_loss(arena, &op));
    }
    for_seeds!(60, check);
}

#[test]
fn supervised_curvature() {
    fn check<T: Scalar>(seed: u64) {
        let mut case = Case::<T>::new(seed);
        let (rows, at) = supervised(&mut case);
        let outputs = at.prediction.width;
        let accumulate = case.coin();
        let op = SupervisedCurvature {
            at,
            e_cotangent: case.random(at.tasks * rows, outputs),
            z_cotangent: case.output(at.tasks * rows, outputs, accumulate),
            accumulate,
        };
        let image = case.image();
        let elements = (rows * outputs) as f64;
        let expected = each([1, at.tasks, rows, outputs], |[_, t, k, c]| {
            let row = t * rows + k;
            let (p, e) = (image.at(at.prediction, row, c), image.at(op.e_cotangent, row, c));
            let product = match at.loss {
                Loss::Mse => 2.0 * e / elements,
                Loss::BceWithLogits => sigmoid(p) * (1.0 - sigmoid(p)) * e / elements,
                Loss::CrossEntropy => {
                    // Row c of mass * (diag(q) - q q^T), times e.
                    let q = softmax(&image, at.prediction, row);
                    let mass: f64 = (0..outputs).map(|c| image.at(at.target, row, c)).sum();
                    let hessian = |i: usize| q[c] * (f64::from(u8::from(i == c)) - q[i]);
                    let product = (0..outputs).map(|i| hessian(i) * image.at(op.e_cotangent, row, i)).sum::<f64>();
                    mass * product / rows as f64
                }
            };
            let before = if accumulate { image.at(op.z_cotangent, row, c) } else { 0.0 };
            before + first(at.activation, p) * product
        });
        let expected = [(op.z_cotangent, expected)];
        case.judge(&format!("{} curvature", at.loss), 1e-5, &expected, |d, arena| d.supervised_curvature(arena, &op));
    }
    for_seeds!(60, check);
}

fn adversarial<T: Scalar>(case: &mut Case<T>) -> (usize, AdversarialLoss<T>) {
    let (tasks, rows, _) = case.rows();
    let activation = case.pick(&ACTIVATIONS);
    let (discriminator, generator) = (case.poisoned(1, tasks), case.poisoned(1, tasks));
    let op = AdversarialLoss {
        tasks,
        weight: T::from_f64(0.3),
        logits: case.values(2 * tasks * rows, 1, activation),
        activation,
        delta: case.poisoned(3 * tasks * rows, 1),
        discriminator_loss: case.coin().then_some(discriminator),
        generator_loss: case.coin().then_some(generator),
    };
    (rows, op)
}

#[test]
fn adversarial_loss() {
    fn check<T: Scalar>(seed: u64) {
        let mut case = Case::<T>::new(seed);
        let (rows, op) = adversarial(&mut case);
        let image = case.image();
        let weight = op.weight.to_f64();
        let logit = |block, t, k| image.at(op.logits, (block * op.tasks + t) * rows + k, 0);
        let delta = each([3, op.tasks, rows, 1], |[block, t, k, _]| {
            let (real, generated) = (logit(0, t, k), logit(1, t, k));
            // The derivative of softplus is the sigmoid.
            let (gradient, at) = match block {
                0 => (-sigmoid(-real), real),
                1 => (sigmoid(generated), generated),
                _ => (-weight * sigmoid(-generated), generated),
            };
            gradient / rows as f64 * first(op.activation, at)
        });
        let mean = |of: &dyn Fn(usize) -> f64| (0..rows).map(of).sum::<f64>() / rows as f64;
        let discriminator =
            (0..op.tasks).map(|t| mean(&|k| softplus(-logit(0, t, k))) + mean(&|k| softplus(logit(1, t, k)))).collect();
        let generator = (0..op.tasks).map(|t| weight * mean(&|k| softplus(-logit(1, t, k)))).collect();
        let mut expected = vec![(op.delta, delta)];
        expected.extend(op.discriminator_loss.map(|region| (region, discriminator)));
        expected.extend(op.generator_loss.map(|region| (region, generator)));
        case.judge("adversarial_loss", 2e-6, &expected, |d, arena| d.adversarial_loss(arena, &op));
    }
    for_seeds!(60, check);
}

#[test]
fn adversarial_curvature() {
    fn check<T: Scalar>(seed: u64) {
        let mut case = Case::<T>::new(seed);
        let (rows, at) = adversarial(&mut case);
        let accumulate = case.coin();
        let op = AdversarialCurvature {
            at,
            e_cotangent: case.random(3 * at.tasks * rows, 1),
            z_cotangent: case.output(2 * at.tasks * rows, 1, accumulate),
            accumulate,
        };
        let image = case.image();
        let expected = each([2, at.tasks, rows, 1], |[block, t, k, _]| {
            let row = |block| (block * at.tasks + t) * rows + k;
            let logit = image.at(at.logits, row(block), 0);
            let second = sigmoid(logit) * sigmoid(-logit) / rows as f64;
            let mut product = second * image.at(op.e_cotangent, row(block), 0);
            if block == 1 {
                product += at.weight.to_f64() * second * image.at(op.e_cotangent, row(2), 0);
            }
            let before = if accumulate { image.at(op.z_cotangent, row(block), 0) } else { 0.0 };
            before + first(at.activation, logit) * product
        });
        let expected = [(op.z_cotangent, expected)];
        case.judge("adversarial_curvature", 2e-6, &expected, |d, arena| d.adversarial_curvature(arena, &op));
    }
    for_seeds!(60, check);
}

fn pixel<T: Scalar>(case: &mut Case<T>) -> (usize, PixelLoss<T>) {
    let (tasks, rows, _) = case.rows();
    let frame =
        FrameShape { height: case.pick(&[1, 2, 5, 8]), width: case.pick(&[1, 3, 4, 7]), channels: case.pick(&[1, 3]) };
    let frames = case.pick(&[1, 2, 3, 4]);
    let clip = frames * frame.height * frame.width * frame.channels;
    let activation = case.pick(&ACTIVATIONS);
    let task_loss = case.random(1, tasks);
    let op = PixelLoss {
        tasks,
        frame,
        reconstruction: T::from_f64(case.pick(&[0.0, 0.8])),
        motion: T::from_f64(case.pick(&[0.0, 0.6])),
        texture: T::from_f64(case.pick(&[0.0, 0.7])),
        prediction: case.values(tasks * rows, clip, activation),
        target: case.random(tasks * rows, clip),
        activation,
        upstream: case.random(tasks * rows, clip),
        delta: case.poisoned(tasks * rows, clip),
        task_loss: case.coin().then_some(task_loss),
    };
    (rows, op)
}

/// The loss of one row's error, and its gradient: the weighted means of v^2 and of its squared differences in time and
/// within frames, from the definition. The means are over a task's rows.
fn quadratic<T: Scalar>(op: &PixelLoss<T>, rows: usize, v: &[f64]) -> (f64, Vec<f64>) {
    let FrameShape { height, width, channels } = op.frame;
    let frames = v.len() / (height * width * channels);
    let at = |f, y, x, c| ((f * height + y) * width + x) * channels + c;
    // Each term's weight and its pairs: what is squared is the first less the second.
    let mut terms: [(f64, Vec<_>); 4] =
        [op.reconstruction, op.motion, op.texture, op.texture].map(|w| (w.to_f64(), vec![]));
    for (f, y, x, c) in each([frames, height, width, channels], |[f, y, x, c]| (f, y, x, c)) {
        terms[0].1.push((at(f, y, x, c), None));
        if f > 0 {
            terms[1].1.push((at(f, y, x, c), Some(at(f - 1, y, x, c))));
        }
        if y > 0 {
            terms[2].1.push((at(f, y, x, c), Some(at(f, y - 1, x, c))));
        }
        if x > 0 {
            terms[3].1.push((at(f, y, x, c), Some(at(f, y, x - 1, c))));
        }
    }
    let (mut loss, mut gradient) = (0.0, vec![0.0; v.len()]);
    for (weight, pairs) in terms {
        let factor = weight / (rows * pairs.len()) as f64;
        for (here, other) in pairs {
            let difference = v[here] - other.map_or(0.0, |other| v[other]);
            loss += factor * difference * difference;
            gradient[here] += 2.0 * factor * difference;
            if let Some(other) = other {
                gradient[other] -= 2.0 * factor * difference;
            }
        }
    }
    (loss, gradient)
}

#[test]
fn pixel_loss() {
    fn check<T: Scalar>(seed: u64) {
        let mut case = Case::<T>::new(seed);
        let (rows, op) = pixel(&mut case);
        let image = case.image();
        let clip = op.prediction.width;
        let (mut delta, mut loss) = (Vec::new(), op.task_loss.map_or(Vec::new(), |r| image.of(r).to_vec()));
        for row in 0..op.tasks * rows {
            let error: Vec<_> =
                (0..clip).map(|i| image.at(op.prediction, row, i) - image.at(op.target, row, i)).collect();
            let (value, gradient) = quadratic(&op, rows, &error);
            let slope = |i| first(op.activation, image.at(op.prediction, row, i));
            delta.extend((0..clip).map(|i| (image.at(op.upstream, row, i) + gradient[i]) * slope(i)));
            if let Some(loss) = loss.get_mut(row / rows) {
                *loss += value;
            }
        }
        let mut expected = vec![(op.delta, delta)];
        expected.extend(op.task_loss.map(|region| (region, loss)));
        case.judge("pixel_loss", 2e-6, &expected, |d, arena| d.pixel_loss(arena, &op));
    }
    for_seeds!(75, check);
}

#[test]
fn pixel_curvature() {
    fn check<T: Scalar>(seed: u64) {
        let mut case = Case::<T>::new(seed);
        let (rows, at) = pixel(&mut case);
        let clip = at.prediction.width;
        let accumulate = case.coin();
        let op = PixelCurvature {
            at,
            e_cotangent: case.random(at.tasks * rows, clip),
            z_cotangent: case.output(at.tasks * rows, clip, accumulate),
            accumulate,
        };
        let image = case.image();
        let mut expected = Vec::new();
        for row in 0..at.tasks * rows {
            // The loss is quadratic: its Hessian times e is its gradient at e.
            let e: Vec<_> = (0..clip).map(|i| image.at(op.e_cotangent, row, i)).collect();
            let (_, product) = quadratic(&at, rows, &e);
            for (i, product) in product.into_iter().enumerate() {
                let before = if accumulate { image.at(op.z_cotangent, row, i) } else { 0.0 };
                let slope = first(at.activation, image.at(at.prediction, row, i));
                expected.push(before + slope * (image.at(at.upstream, row, i) + product));
            }
        }
        let expected = [(op.z_cotangent, expected)];
        case.judge("pixel_curvature", 2e-6, &expected, |d, arena| d.pixel_curvature(arena, &op));
    }
    for_seeds!(75, check);
}
