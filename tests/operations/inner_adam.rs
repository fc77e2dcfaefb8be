//! The inner step of Adam as its paper writes it, and its pull-back as the derivative of that.

use innerloop::Scalar;
use innerloop::device::{Adam, AdamRateGradient, AdamUpdate, Device, Linear, Rate, Region, ReverseAdam};

use crate::case::{Case, Image, for_seeds};

const BETAS: [f64; 2] = [0.9, 0.99];

/// What the operations have in common: rows, weights and moments of random content.
struct Layer<T> {
    shape: [usize; 4],
    rows: [Region; 2],
    rate: Rate<T>,
    step: usize,
    epsilon: f64,
}

impl<T: Scalar> Layer<T> {
    fn new(case: &mut Case<T>) -> Self {
        let ((tasks, rows, blocks), (inputs, outputs)) = (case.rows(), case.widths());
        let rates = case.layer(1, inputs, outputs, true, false);
        let per_parameter = case.coin();
        Self {
            shape: [tasks, rows, inputs, outputs],
            rows: [case.random(blocks * tasks * rows, outputs), case.random(blocks * tasks * rows, inputs)],
            rate: case.rate(per_parameter, rates),
            step: case.pick(&[1, 2, 40]),
            epsilon: case.pick(&[1e-3, 0.1]),
        }
    }

    fn adam(&self) -> Adam<T> {
        Adam::at_step(BETAS, self.epsilon, self.step)
    }

    fn parameters(&self) -> usize {
        let [.., inputs, outputs] = self.shape;
        outputs * (inputs + 1)
    }

    /// Per-task numbers at random; second moments are not negative.
    fn moments(&self, case: &mut Case<T>) -> [Linear; 2] {
        let [tasks, _, inputs, outputs] = self.shape;
        let first = case.layer(tasks, inputs, outputs, false, false);
        [first, case.positive_layer(tasks, inputs, outputs)]
    }

    fn written(&self, case: &mut Case<T>, written: bool) -> Linear {
        let [tasks, _, inputs, outputs] = self.shape;
        case.layer(tasks, inputs, outputs, false, written)
    }

    fn rate(&self, image: &Image, i: usize) -> f64 {
        match self.rate {
            Rate::Uniform(rate) => rate.to_f64(),
            Rate::Single(region) => image.at(region, 0, 0),
            Rate::PerParameter(layer) => image.0[layer.weight + i],
        }
    }

    /// One task's gradient.
    fn gradient(&self, image: &Image, task: usize) -> Vec<f64> {
        let ([tasks, rows, inputs, outputs], [delta, values]) = (self.shape, self.rows);
        let mut gradient = vec![0.0; self.parameters()];
        for row in (0..delta.rows).filter(|row| row / rows % tasks == task) {
            for o in 0..outputs {
                let delta = image.at(delta, row, o);
                for i in 0..inputs {
                    gradient[o * inputs + i] += delta * image.at(values, row, i);
                }
                gradient[outputs * inputs + o] += delta;
            }
        }
        gradient
    }

    /// What is subtracted before the rate, given m' and v'.
    fn moved(&self, m: f64, v: f64) -> f64 {
        let unbiased = |moment: f64, beta: f64| moment / (1.0 - beta.powf(self.step as f64));
        unbiased(m, BETAS[0]) / (unbiased(v, BETAS[1]).sqrt() + self.epsilon)
    }
}

#[test]
fn adam_update() {
    fn check<T: Scalar>(seed: u64) {
        let mut case = Case::<T>::new(seed);
        let layer = Layer::new(&mut case);
        let [tasks, rows, inputs, outputs] = layer.shape;
        let (shared, begun, in_place) = (case.coin(), case.coin(), case.coin());
        let before = layer.moments(&mut case);
        let fresh = [(); 2].map(|()| layer.written(&mut case, true));
        let op = AdamUpdate {
            tasks,
            rows,
            delta: layer.rows[0],
            values: layer.rows[1],
            from: case.layer(tasks, inputs, outputs, shared, false),
            to: layer.written(&mut case, true),
            rate: layer.rate,
            adam: layer.adam(),
            moments: begun.then_some(before),
            new_moments: if begun && in_place { before } else { fresh },
        };
        let image = case.image();
        let of = |layer: &Linear, task| image.of(case.region_of(layer, task));
        let mut expected = Vec::new();
        for task in 0..tasks {
            let from = of(&op.from, if shared { 0 } else { task });
            let gradient = layer.gradient(&image, task);
            let old = |which: usize, i: usize| if begun { of(&before[which], task)[i] } else { 0.0 };
            let m: Vec<_> = (0..from.len()).map(|i| BETAS[0] * old(0, i) + (1.0 - BETAS[0]) * gradient[i]).collect();
            let v: Vec<_> =
                (0..from.len()).map(|i| BETAS[1] * old(1, i) + (1.0 - BETAS[1]) * gradient[i].powi(2)).collect();
            let to = (0..from.len()).map(|i| from[i] - layer.rate(&image, i) * layer.moved(m[i], v[i])).collect();
            expected.push((case.region_of(&op.to, task), to));
            expected.push((case.region_of(&op.new_moments[0], task), m));
            expected.push((case.region_of(&op.new_moments[1], task), v));
        }
        case.judge("adam_update", 3e-6, &expected, |d, arena| d.adam_update(arena, &op));
    }
    for_seeds!(75, check);
}

#[test]
fn adam_rate_gradient() {
    fn check<T: Scalar>(seed: u64) {
        let mut case = Case::<T>::new(seed);
        let layer = Layer::new(&mut case);
        let [tasks, ..] = layer.shape;
        let moments = layer.moments(&mut case);
        let count = if matches!(layer.rate, Rate::PerParameter(_)) { layer.parameters() } else { 1 };
        let op = AdamRateGradient {
            tasks,
            weight_cotangent: layer.written(&mut case, false),
            moments,
            adam: layer.adam(),
            moved: layer.written(&mut case, true),
            rate_gradient: case.random(1, count),
            scale: T::from_f64(0.25),
        };
        let image = case.image();
        let of = |layer: &Linear, task| image.of(case.region_of(layer, task));
        let (mut expected, mut gradient) = (Vec::new(), image.of(op.rate_gradient).to_vec());
        for task in 0..tasks {
            let moved: Vec<_> =
                of(&moments[0], task).iter().zip(of(&moments[1], task)).map(|(m, v)| layer.moved(*m, *v)).collect();
            for (i, moved) in moved.iter().enumerate() {
                gradient[i % count] -= 0.25 * of(&op.weight_cotangent, task)[i] * moved;
            }
            expected.push((case.region_of(&op.moved, task), moved));
        }
        expected.push((op.rate_gradient, gradient));
        case.judge("adam_rate_gradient", 1e-5, &expected, |d, arena| d.adam_rate_gradient(arena, &op));
    }
    for_seeds!(75, check);
}

/// The derivatives of `-rate * moved` in m' and v' by central differences, in double precision; the cotangents of what
/// comes before by the chain rule.
#[test]
fn reverse_adam() {
    fn check<T: Scalar>(seed: u64) {
        let mut case = Case::<T>::new(seed);
        let layer = Layer::new(&mut case);
        let [tasks, rows, ..] = layer.shape;
        let accumulate = case.coin();
        let moments = layer.moments(&mut case);
        let cotangents = [(); 2].map(|()| layer.written(&mut case, !accumulate));
        let op = ReverseAdam {
            tasks,
            rows,
            delta: layer.rows[0],
            values: layer.rows[1],
            weight_cotangent: layer.written(&mut case, false),
            moments,
            moment_cotangents: cotangents,
            accumulate,
            rate: layer.rate,
            adam: layer.adam(),
            direction: layer.written(&mut case, true),
        };
        let image = case.image();
        let of = |layer: &Linear, task| image.of(case.region_of(layer, task));
        let mut expected = Vec::new();
        for task in 0..tasks {
            let gradient = layer.gradient(&image, task);
            let mut pulled = [Vec::new(), Vec::new(), Vec::new()];
            for (i, g) in gradient.iter().enumerate() {
                let (m, v) = (of(&moments[0], task)[i], of(&moments[1], task)[i]);
                let outer = -layer.rate(&image, i) * of(&op.weight_cotangent, task)[i];
                // Five points, so that the differences are good to more digits than single precision has.
                let slope =
                    |f: &dyn Fn(f64) -> f64, h: f64| (8.0 * (f(h) - f(-h)) - f(2.0 * h) + f(-2.0 * h)) / (12.0 * h);
                let by_m = outer * slope(&|h| layer.moved(m + h, v), 1e-3);
                let by_v = outer * slope(&|h| layer.moved(m, v + h), 1e-4 * v);
                let later = |which: usize| if accumulate { of(&cotangents[which], task)[i] } else { 0.0 };
                let (of_m, of_v) = (by_m + BETAS[0] * later(0), by_v + BETAS[1] * later(1));
                pulled[0].push(of_m);
                pulled[1].push(of_v);
                pulled[2].push((1.0 - BETAS[0]) * of_m + 2.0 * (1.0 - BETAS[1]) * g * of_v);
            }
            for (to, values) in [&cotangents[0], &cotangents[1], &op.direction].into_iter().zip(pulled) {
                expected.push((case.region_of(to, task), values));
            }
        }
        case.judge_to("reverse_adam", [1e-9, 1e-5], &expected, |d, arena| d.reverse_adam(arena, &op));
    }
    for_seeds!(75, check);
}

/// Where every gradient so far was 0 the step has the slope `rate * (1 - beta1) / (1 - beta1^step) / epsilon`, and nothing
/// is NaN.
#[test]
fn reverse_adam_without_gradients() {
    fn check<T: Scalar>(seed: u64) {
        let mut case = Case::<T>::new(seed);
        let (tasks, inputs, outputs) = (2, 3, 5);
        let zeros = |case: &mut Case<T>, rows, width| case.filled(rows, width, |_| 0.0);
        let (delta, values) = (zeros(&mut case, tasks, outputs), case.random(tasks, inputs));
        let parameters = outputs * (inputs + 1);
        let layer = |region: Region| Linear {
            weight: region.offset,
            bias: region.offset + inputs * outputs,
            task_stride: parameters,
            inputs,
            outputs,
        };
        let zero = zeros(&mut case, tasks, parameters);
        let (cotangent, direction) = (case.random(tasks, parameters), case.poisoned(tasks, parameters));
        let moment_cotangents = [(); 2].map(|()| case.poisoned(tasks, parameters));
        let op = ReverseAdam {
            tasks,
            rows: 1,
            delta,
            values,
            weight_cotangent: layer(cotangent),
            moments: [layer(zero); 2],
            moment_cotangents: moment_cotangents.map(layer),
            accumulate: false,
            rate: Rate::Uniform(T::from_f64(0.5)),
            adam: Adam::at_step(BETAS, 1e-8, 1),
            direction: layer(direction),
        };
        let pulled = |scale: f64| case.image().of(cotangent).iter().map(|c| -0.5 * scale * c).collect();
        let expected = [
            (moment_cotangents[0], pulled(10.0 * 1e8)),
            (moment_cotangents[1], vec![0.0; tasks * parameters]),
            (direction, pulled(1e8)),
        ];
        case.judge("reverse_adam", 1e-6, &expected, |d, arena| d.reverse_adam(arena, &op));
    }
    for_seeds!(2, check);
}
