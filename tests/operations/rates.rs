//! Tables of the inner rates, held against the inner optimizer itself, and their gradient, against differences of the tables.

use innerloop::Scalar;
use innerloop::device::{Device, InnerRates, RateTables, RateTablesGradient};

use crate::case::{Case, for_seeds};

/// A parameter after each number of steps: with momentum and weight decay, from `parameter` on, where the gradients are 0 but for a 1
/// in step `bump`.
fn steps_of(
    steps: usize,
    (momentum, decay): (f64, f64),
    (mut parameter, bump): (f64, Option<usize>),
    rate: impl Fn(usize) -> f64,
) -> Vec<f64> {
    let mut velocity = 0.0;
    let mut all = vec![parameter];
    for s in 0..steps {
        velocity = momentum * velocity + f64::from(u8::from(bump == Some(s))) + decay * parameter;
        parameter -= rate(s) * velocity;
        all.push(parameter);
    }
    all
}

/// `c`, `[steps + 1, steps]`, and the shares.
fn coefficients(steps: usize, rule: (f64, f64), rate: impl Fn(usize) -> f64) -> (Vec<f64>, Vec<f64>) {
    let columns: Vec<_> = (0..steps).map(|j| steps_of(steps, rule, (0.0, Some(j)), &rate)).collect();
    let c = (0..=steps).flat_map(|i| columns.iter().map(move |column| -column[i])).collect();
    (c, steps_of(steps, rule, (1.0, None), &rate))
}

#[test]
fn tables_and_their_gradient() {
    fn check<T: Scalar>(seed: u64) {
        let mut case = Case::<T>::new(seed);
        let (steps, layers) = (case.pick(&[1, 2, 5]), case.pick(&[1, 3]));
        let (single, biased) = (case.coin(), case.coin());
        let (momentum, decay, first_moving) = (case.pick(&[0.0, 0.9]), case.pick(&[0.0, 0.3]), case.below(layers));
        let rule = (momentum, decay);
        let (each, table) = (steps * layers, InnerRates::table(steps));
        let rates = case.random(1, if single { 1 } else { each });
        let bias = biased.then(|| case.random(1, each));
        let query_weights = case.coin().then(|| case.random(1, steps));
        let of = InnerRates { steps, layers, momentum, decay, rates, bias, query_weights };
        let width = RateTables::width(steps, of.queries());
        let tables = case.poisoned(layers, width);
        let image = case.image();
        let rate = |s: usize, layer: usize| image.at(rates, 0, if single { 0 } else { s * layers + layer });
        let column = |s: usize, layer: usize| bias.map_or(1.0, |bias| image.at(bias, 0, s * layers + layer));
        let mut expected = Vec::new();
        for layer in 0..layers {
            let (c, shares) = coefficients(steps, rule, |s| rate(s, layer));
            expected.extend(c.iter().map(|c| -c));
            expected.extend((0..steps).map(|s| column(s, layer)));
            expected.push(1.0);
            expected.extend(shares);
            for pass in 0..of.queries() {
                let weight = query_weights.map_or(1.0, |weights| image.at(weights, 0, pass));
                expected.extend(c[(steps - pass) * steps..][..steps].iter().map(|c| -weight * c));
            }
        }
        let op = RateTables { of, tables };
        case.judge("rate_tables", 1e-6, &[(tables, expected.clone())], |d, arena| d.rate_tables(arena, &op));

        let parts = 1 + usize::from(biased);
        let mut made = expected.into_iter();
        let tables = case.filled(layers, width, |_| made.next().unwrap());
        let of_tables = case.random(layers * parts, table);
        let of_shares = (decay != 0.0).then(|| case.random(layers, steps + 1));
        let gradient = case.poisoned(1, rates.len());
        let bias_gradient = biased.then(|| case.poisoned(1, each));
        let image = case.image();
        let mut expected = [vec![0.0; each], vec![0.0; each]];
        for (layer, s) in (first_moving..layers).flat_map(|layer| (0..steps).map(move |s| (layer, s))) {
            let of_bias = |at: usize| if biased { image.at(of_tables, layer * parts + 1, at) } else { 0.0 };
            let of_c = |at: usize| image.at(of_tables, layer * parts, at) + column(at % steps, layer) * of_bias(at);
            let of_share = |i: usize| of_shares.map_or(0.0, |shares| image.at(shares, layer, i));
            // They are linear in each of the rates, so that any difference is the derivative.
            let changed = |by: f64| coefficients(steps, rule, |i| rate(i, layer) + if i == s { by } else { 0.0 });
            let ((more, more_left), (less, less_left)) = (changed(0.5), changed(-0.5));
            let tables = (0..table).map(|at| (more[at] - less[at]) * of_c(at)).sum::<f64>();
            let shares = (0..=steps).map(|i| (more_left[i] - less_left[i]) * of_share(i)).sum::<f64>();
            expected[0][s * layers + layer] = tables + shares;
            let (c, _) = coefficients(steps, rule, |i| rate(i, layer));
            let own = (0..table).filter(|at| at % steps == s);
            expected[1][s * layers + layer] = own.map(|at| c[at] * of_bias(at)).sum();
        }
        let [of_rates, of_column] = expected;
        let of_rates = if single { vec![of_rates.iter().sum()] } else { of_rates };
        let expected: Vec<_> =
            [(gradient, of_rates)].into_iter().chain(bias_gradient.map(|to| (to, of_column))).collect();
        let op = RateTablesGradient { of, tables, of_tables, of_shares, first_moving, gradient, bias_gradient };
        case.judge("rate_tables_gradient", 3e-6, &expected, |d, arena| d.rate_tables_gradient(arena, &op));
    }
    for_seeds!(60, check);
}
