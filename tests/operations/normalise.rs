//! Batch normalisation over a task's rows: values, Jacobian and adjoint, as plainly as they read.

use innerloop::Scalar;
use innerloop::device::{Device, Normalise, NormaliseAdjoint, NormaliseJacobian, Region};

use crate::case::{ACTIVATIONS, Case, WIDTHS, first, for_seeds, second, value};

const EPSILON: f64 = 0.02;

/// One column of one task: x, and the inverse of its denominator.
fn normalised(u: &[f64]) -> (Vec<f64>, f64) {
    let count = u.len() as f64;
    let mean = u.iter().sum::<f64>() / count;
    let variance = u.iter().map(|u| (u - mean).powi(2)).sum::<f64>() / count;
    let inverse = 1.0 / (variance + EPSILON).sqrt();
    (u.iter().map(|u| (u - mean) * inverse).collect(), inverse)
}

/// The whole Jacobian of x, times v.
fn jacobian(x: &[f64], inverse: f64, v: &[f64]) -> Vec<f64> {
    let count = x.len() as f64;
    let entry = |i: usize, j: usize| inverse * (f64::from(i == j) - 1.0 / count - x[i] * x[j] / count);
    (0..x.len()).map(|i| (0..x.len()).map(|j| entry(i, j) * v[j]).sum()).collect()
}

/// The derivative of `<g, J v>` by element `k` of u, from those of every entry of J: the inverse's is `-inverse^2 x_k / n`,
/// that of x is J.
fn slope(x: &[f64], inverse: f64, (g, v): (&[f64], &[f64]), k: usize) -> f64 {
    let count = x.len() as f64;
    let unit: Vec<f64> = (0..x.len()).map(|i| f64::from(i == k)).collect();
    let (of_inverse, of_x) = (-inverse * inverse * x[k] / count, jacobian(x, inverse, &unit));
    let entry = |i: usize, j: usize| {
        let within = f64::from(i == j) - 1.0 / count - x[i] * x[j] / count;
        of_inverse * within - inverse * (of_x[i] * x[j] + x[i] * of_x[j]) / count
    };
    (0..x.len()).flat_map(|i| (0..x.len()).map(move |j| (i, j))).map(|(i, j)| g[i] * entry(i, j) * v[j]).sum()
}

/// Calls `column` with the places of each task's column, and its values in each of the regions.
fn by_columns(tasks: usize, rows: usize, width: usize, mut column: impl FnMut(usize, usize, &[usize])) {
    for (task, c) in (0..tasks).flat_map(|task| (0..width).map(move |c| (task, c))) {
        let places: Vec<_> = (0..rows).map(|k| (task * rows + k) * width + c).collect();
        column(task, c, &places);
    }
}

fn at(values: &[f64], places: &[usize]) -> Vec<f64> {
    places.iter().map(|place| values[*place]).collect()
}

/// Tasks, rows a task and width; a single row now and then, whose variance is 0.
fn shape<T: Scalar>(case: &mut Case<T>) -> (usize, usize, usize) {
    (case.pick(&[1, 3, 7]), case.pick(&[1, 2, 5, 13]), case.pick(&WIDTHS))
}

/// What a forward pass leaves behind for random u.
fn normalised_rows<T: Scalar>(case: &mut Case<T>, (tasks, rows, width): (usize, usize, usize)) -> (Region, Region) {
    let u: Vec<f64> = (0..tasks * rows * width).map(|i| ((i * 7919 % 1009) as f64 * 0.37).sin()).collect();
    let (mut x, mut inverses) = (u.clone(), vec![0.0; tasks * width]);
    by_columns(tasks, rows, width, |task, c, places| {
        let (column, inverse) = normalised(&at(&u, places));
        places.iter().zip(column).for_each(|(place, value)| x[*place] = value);
        inverses[task * width + c] = inverse;
    });
    let mut x = x.into_iter();
    let mut inverses = inverses.into_iter();
    let x = case.filled(tasks * rows, width, |_| x.next().unwrap());
    (x, case.filled(tasks, width, |_| inverses.next().unwrap()))
}

#[test]
fn normalise() {
    fn check<T: Scalar>(seed: u64) {
        let mut case = Case::<T>::new(seed);
        let (tasks, rows, width) = shape(&mut case);
        let activation = case.pick(&ACTIVATIONS);
        let (u, shift) = (case.random(tasks * rows, width), case.random(1, width));
        let (inverse, output) = (case.poisoned(tasks, width), case.poisoned(tasks * rows, width));
        let image = case.image();
        let (before, b) = (image.of(u).to_vec(), image.of(shift).to_vec());
        let (mut x, mut inverses, mut values) = (before.clone(), vec![0.0; tasks * width], before.clone());
        by_columns(tasks, rows, width, |task, c, places| {
            let (column, inverse) = normalised(&at(&before, places));
            inverses[task * width + c] = inverse;
            for (place, column) in places.iter().zip(column) {
                x[*place] = column;
                values[*place] = value(activation, column + b[c]);
            }
        });
        let op = Normalise { tasks, epsilon: EPSILON, rows: u, inverse, shift, activation, output };
        let expected = [(u, x), (inverse, inverses), (output, values)];
        case.judge("normalise", 2e-6, &expected, |d, arena| d.normalise(arena, &op));
    }
    for_seeds!(60, check);
}

#[test]
fn normalise_jacobian() {
    fn check<T: Scalar>(seed: u64) {
        let mut case = Case::<T>::new(seed);
        let (tasks, rows, width) = shape(&mut case);
        let accumulate = case.coin();
        let (x, inverse) = normalised_rows(&mut case, (tasks, rows, width));
        let from = case.random(tasks * rows, width);
        let to = if accumulate { case.random(tasks * rows, width) } else { case.poisoned(tasks * rows, width) };
        let image = case.image();
        let mut expected = if accumulate { image.of(to).to_vec() } else { vec![0.0; to.len()] };
        by_columns(tasks, rows, width, |task, c, places| {
            let product = jacobian(&at(image.of(x), places), image.at(inverse, task, c), &at(image.of(from), places));
            places.iter().zip(product).for_each(|(place, product)| expected[*place] += product);
        });
        let op = NormaliseJacobian { tasks, normalised: x, inverse, from, to, accumulate };
        case.judge("normalise_jacobian", 4e-6, &[(to, expected)], |d, arena| d.normalise_jacobian(arena, &op));
    }
    for_seeds!(60, check);
}

#[test]
fn normalise_adjoint() {
    fn check<T: Scalar>(seed: u64) {
        let mut case = Case::<T>::new(seed);
        let (tasks, rows, width) = shape(&mut case);
        let activation = case.pick(&ACTIVATIONS);
        let (x, inverse) = normalised_rows(&mut case, (tasks, rows, width));
        let values = case.values(tasks * rows, width, activation);
        let (y_delta, cotangent) = (case.random(tasks * rows, width), case.random(tasks * rows, width));
        let before = case.image();
        let mut product = vec![0.0; y_delta.len()];
        by_columns(tasks, rows, width, |task, c, places| {
            let delta =
                jacobian(&at(before.of(x), places), before.at(inverse, task, c), &at(before.of(y_delta), places));
            places.iter().zip(delta).for_each(|(place, delta)| product[*place] = delta);
        });
        let mut product = product.into_iter();
        let u_delta = case.filled(tasks * rows, width, |_| product.next().unwrap());
        let [u_cotangent, y_cotangent, e_cotangent] = [(); 3].map(|()| case.poisoned(tasks * rows, width));
        let image = case.image();
        let mut expected = [(); 3].map(|()| vec![0.0; x.len()]);
        by_columns(tasks, rows, width, |task, c, places| {
            let (x, inverse) = (at(image.of(x), places), image.at(inverse, task, c));
            let (v, g) = (at(image.of(y_delta), places), at(image.of(cotangent), places));
            let h = jacobian(&x, inverse, &g);
            for (i, place) in places.iter().enumerate() {
                let a = image.of(values)[*place];
                expected[0][*place] = slope(&x, inverse, (&g, &v), i);
                let (first, second) = (first(activation, a), second(activation, a));
                // Away from kinks a curved activation's first derivative is never 0.
                expected[1][*place] = if second == 0.0 { 0.0 } else { h[i] * v[i] * second / first };
                expected[2][*place] = h[i] * first;
            }
        });
        let op = NormaliseAdjoint {
            tasks,
            normalised: x,
            inverse,
            activation,
            values,
            y_delta,
            u_delta,
            cotangent,
            u_cotangent,
            y_cotangent,
            e_cotangent,
        };
        let [u, y, e] = expected;
        let mut written = vec![(u_cotangent, u), (e_cotangent, e)];
        if activation.is_curved() {
            written.push((y_cotangent, y));
        }
        case.judge("normalise_adjoint", 2e-5, &written, |d, arena| d.normalise_adjoint(arena, &op));
    }
    for_seeds!(40, check);
}
