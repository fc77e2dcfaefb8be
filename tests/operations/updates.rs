//! The materialised form's update with its transpose, and the outer optimizer.

use innerloop::Scalar;
use innerloop::device::{
    Device, FINDINGS, Finding, GradientCheck, InnerUpdate, Linear, OuterStep, Rate, Region, ReverseUpdate,
};

use crate::case::{Case, Image, for_seeds};

/// The rate of parameter `i` of a layer.
fn rate<T: Scalar>(image: &Image, rate: Rate<T>, i: usize) -> f64 {
    match rate {
        Rate::Uniform(rate) => rate.to_f64(),
        Rate::Single(region) => image.at(region, 0, 0),
        Rate::PerParameter(layer) => image.0[layer.weight + i],
    }
}

#[test]
fn inner_update() {
    fn check<T: Scalar>(seed: u64) {
        let mut case = Case::<T>::new(seed);
        let ((tasks, rows, blocks), (inputs, outputs)) = (case.rows(), case.widths());
        let (shared, per_parameter) = (case.coin(), case.coin());
        // Without a place for the velocity there is neither momentum nor a rate for each parameter.
        let keeps = per_parameter || case.coin();
        let had = keeps && case.coin();
        let rates = case.layer(1, inputs, outputs, true, false);
        let velocity = case.layer(tasks, inputs, outputs, false, false);
        let new_velocity = case.layer(tasks, inputs, outputs, false, true);
        let op = InnerUpdate {
            tasks,
            rows,
            delta: case.random(blocks * tasks * rows, outputs),
            values: case.random(blocks * tasks * rows, inputs),
            bias: T::from_f64(case.pick(&[1.0, 0.6])),
            bias_factor: case.coin().then(|| case.random(1, 1)),
            from: case.layer(tasks, inputs, outputs, shared, false),
            to: case.layer(tasks, inputs, outputs, false, true),
            rate: case.rate(per_parameter, rates),
            momentum: T::from_f64(0.7),
            decay: T::from_f64(case.pick(&[0.0, 0.4])),
            velocity: had.then_some(velocity),
            new_velocity: keeps.then_some(new_velocity),
        };
        let image = case.image();
        let mut expected = Vec::new();
        for task in 0..tasks {
            let from = image.of(case.region_of(&op.from, if shared { 0 } else { task }));
            let bias = op.bias.to_f64() * op.bias_factor.map_or(1.0, |factor| image.at(factor, 0, 0));
            let mut v = vec![0.0; outputs * (inputs + 1)];
            if had {
                let before = image.of(case.region_of(&velocity, task));
                v.iter_mut().zip(before).for_each(|(v, b)| *v = op.momentum.to_f64() * b);
            }
            v.iter_mut().zip(from).for_each(|(v, f)| *v += op.decay.to_f64() * f);
            for row in (0..blocks * tasks * rows).filter(|row| row / rows % tasks == task) {
                for o in 0..outputs {
                    let delta = image.at(op.delta, row, o);
                    for i in 0..inputs {
                        v[o * inputs + i] += delta * image.at(op.values, row, i);
                    }
                    v[outputs * inputs + o] += bias * delta;
                }
            }
            let to = (0..v.len()).map(|i| from[i] - rate(&image, op.rate, i) * v[i]).collect();
            expected.push((case.region_of(&op.to, task), to));
            if keeps {
                expected.push((case.region_of(&new_velocity, task), v));
            }
        }
        case.judge("inner_update", 3e-6, &expected, |d, arena| d.inner_update(arena, &op));
    }
    for_seeds!(75, check);
}

#[test]
fn reverse_update() {
    fn check<T: Scalar>(seed: u64) {
        let mut case = Case::<T>::new(seed);
        let ((tasks, ..), (inputs, outputs)) = (case.rows(), case.widths());
        let (per_parameter, accumulate, learns) = (case.coin(), case.coin(), case.coin());
        let parameters = outputs * (inputs + 1);
        let rates = case.layer(1, inputs, outputs, true, false);
        let velocity = case.layer(tasks, inputs, outputs, false, false);
        let rate_gradient = case.random(1, if per_parameter { parameters } else { 1 });
        let op = ReverseUpdate {
            tasks,
            weight_cotangent: case.layer(tasks, inputs, outputs, false, false),
            direction: case.layer(tasks, inputs, outputs, false, !accumulate),
            accumulate,
            momentum: T::from_f64(case.pick(&[0.0, 0.7])),
            rate: case.rate(per_parameter, rates),
            velocity: learns.then_some(velocity),
            rate_gradient: learns.then_some(rate_gradient),
            scale: T::from_f64(0.25),
        };
        let image = case.image();
        let (mut expected, mut gradient) = (Vec::new(), image.of(rate_gradient).to_vec());
        let of = |layer: &Linear, task| image.of(case.region_of(layer, task));
        for task in 0..tasks {
            let (cotangent, velocity) = (of(&op.weight_cotangent, task), of(&velocity, task));
            let direction = (0..parameters)
                .map(|i| {
                    let before = if accumulate { of(&op.direction, task)[i] } else { 0.0 };
                    op.momentum.to_f64() * before - rate(&image, op.rate, i) * cotangent[i]
                })
                .collect();
            expected.push((case.region_of(&op.direction, task), direction));
            for i in 0..parameters {
                gradient[if per_parameter { i } else { 0 }] -= op.scale.to_f64() * cotangent[i] * velocity[i];
            }
        }
        if learns {
            expected.push((rate_gradient, gradient));
        }
        case.judge("reverse_update", 3e-6, &expected, |d, arena| d.reverse_update(arena, &op));
    }
    for_seeds!(75, check);
}

/// Norms to the rounding of one number, factors that bring them down to the bound, and whatever is not finite.
#[test]
fn gradient_check() {
    fn check<T: Scalar>(seed: u64) {
        let mut case = Case::<T>::new(seed);
        let gradients = [1, 17, 20_001].map(|len| case.random(1, len));
        let losses = case.random(1, 5);
        // What is found last is overwritten, what nothing is found of stays.
        let findings = case.filled(1, FINDINGS, |_| 0.0);
        let clip = case.coin().then_some(3.0);
        // The last is one of rates, which are not scaled down.
        let gradients = [Some(gradients[0]), None, Some(gradients[1]), None, None, Some(gradients[2])];
        let op = GradientCheck { losses: [None, Some(losses)], gradients, clip, findings };
        let spoilt = case.pick(&[None, Some(losses), gradients[0], gradients[5]]);
        if let Some(region) = spoilt {
            let value = case.pick(&[f64::NAN, f64::INFINITY]);
            case.set(region, region.len() - 1, value);
        }
        let image = case.image();
        let mut found = vec![f64::from(spoilt.is_some())];
        for (place, gradient) in gradients.into_iter().enumerate() {
            let clip = clip.filter(|_| place < 4);
            let norm = gradient.map(|region| image.of(region).iter().map(|g| g * g).sum::<f64>().sqrt());
            let factor = |norm: f64| clip.filter(|clip| norm > *clip).map_or(1.0, |clip| clip / norm);
            found.extend(norm.map_or([0.0, 0.0], |norm| [factor(norm), norm]));
        }
        if spoilt.is_none_or(|region| region == losses) {
            case.judge("gradient_check", 1e-7, &[(findings, found)], |d, arena| d.gradient_check(arena, &op));
        } else {
            case.judge(
                "gradient_check of what is not finite",
                0.0,
                &[(findings.elements(0, 1), vec![1.0])],
                |d, arena| {
                    d.gradient_check(arena, &op);
                    // The rest is no number to compare.
                    d.fill(arena, findings.elements(1, FINDINGS - 1), T::ZERO);
                },
            );
        }
    }
    for_seeds!(24, check);
}

/// Adam as its paper writes it, from the moments that are there.
#[test]
fn outer_step() {
    fn check<T: Scalar>(seed: u64) {
        let mut case = Case::<T>::new(seed);
        let len = case.pick(&[1, 17, 257, 20_001]);
        let [parameters, gradient, first]: [Region; 3] = std::array::from_fn(|_| case.random(1, len));
        let second = case.filled(1, len, |rng| rand::RngExt::random_range(rng, 0.0..1.0));
        let (rate, factor, (beta1, beta2), epsilon) = (0.05, 0.5, (0.9, 0.99), 1e-3);
        let refused = case.coin();
        let mut held = [9.0; FINDINGS];
        (held[0], held[5]) = (f64::from(refused), factor);
        let mut held = held.into_iter();
        let findings = case.filled(1, FINDINGS, |_| held.next().unwrap());
        let finding = Finding { findings, gradient: 2 };
        let step = case.pick(&[1, 2, 1000]);
        let in_logarithm = case.coin();
        let adam = OuterStep::Adam {
            in_logarithm,
            parameters,
            gradient,
            first,
            second,
            rate,
            finding,
            betas: (beta1, beta2),
            epsilon,
            step,
        };
        let image = case.image();
        let [p, g, m, v] = [parameters, gradient, first, second].map(|region| image.of(region));
        let g: Vec<f64> = g.iter().zip(p).map(|(g, p)| if in_logarithm { g * p } else { *g }).collect();
        let moved = |p: f64, change: f64| if in_logarithm { p * (-change).exp() } else { p - change };
        let m: Vec<f64> = (0..len).map(|i| beta1 * m[i] + (1.0 - beta1) * (factor * g[i])).collect();
        let v: Vec<f64> = (0..len).map(|i| beta2 * v[i] + (1.0 - beta2) * (factor * g[i]).powi(2)).collect();
        let unbiased = |moment: f64, beta: f64| moment / (1.0 - beta.powf(step as f64));
        let change = |i: usize| rate * unbiased(m[i], beta1) / (unbiased(v[i], beta2).sqrt() + epsilon);
        let adapted = (0..len).map(|i| moved(p[i], change(i))).collect();
        let expected = [(parameters, adapted), (first, m), (second, v)];
        let expected = if refused { &[] } else { &expected[..] };
        case.judge("adam", 1e-6, expected, |d, arena| d.outer_step(arena, &adam));

        let sgd = OuterStep::Sgd { in_logarithm, parameters, gradient, rate, finding };
        let descended = (0..len).map(|i| moved(p[i], rate * factor * g[i])).collect();
        let expected = if refused { &[] } else { &[(parameters, descended)][..] };
        case.judge("sgd", 1e-6, expected, |d, arena| d.outer_step(arena, &sgd));
    }
    for_seeds!(24, check);
}
