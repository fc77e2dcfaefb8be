//! Tables of the inner rates, held against the inner optimizer's recursion, and their gradient, against the tables' linearity.

use innerloop::Scalar;
use innerloop::device::{Device, InnerRates, RateTables, RateTablesGradient};

use crate::case::{Case, for_seeds};

/// `c`, `[steps + 1, steps]`, by going through the steps with each gradient alone.
fn coefficients(steps: usize, momentum: f64, rate: impl Fn(usize) -> f64) -> Vec<f64> {
    let mut c = vec![0.0; (steps + 1) * steps];
    for j in 0..steps {
        let (mut velocity, mut moved) = (0.0, 0.0);
        for i in 0..=steps {
            c[i * steps + j] = moved;
            velocity = momentum * velocity + f64::from(u8::from(i == j));
            moved += if i < steps { rate(i) * velocity } else { 0.0 };
        }
    }
    c
}

#[test]
fn tables_and_their_gradient() {
    fn check<T: Scalar>(seed: u64) {
        let mut case = Case::<T>::new(seed);
        let (steps, layers) = (case.pick(&[1, 2, 5]), case.pick(&[1, 3]));
        let (single, biased) = (case.coin(), case.coin());
        let (momentum, first_moving) = (case.pick(&[0.0, 0.9]), case.below(layers));
        let (each, table) = (steps * layers, InnerRates::table(steps));
        let rates = case.random(1, if single { 1 } else { each });
        let bias = biased.then(|| case.random(1, each));
        let of = InnerRates { steps, layers, momentum, rates, bias };
        let tables = case.poisoned(layers, RateTables::width(steps));
        let image = case.image();
        let rate = |s: usize, layer: usize| image.at(rates, 0, if single { 0 } else { s * layers + layer });
        let column = |s: usize, layer: usize| bias.map_or(1.0, |bias| image.at(bias, 0, s * layers + layer));
        let mut expected = Vec::new();
        for layer in 0..layers {
            let c = coefficients(steps, momentum, |s| rate(s, layer));
            expected.extend(c.iter().map(|c| -c));
            expected.extend((0..steps).map(|s| column(s, layer)));
            expected.push(1.0);
            expected.extend(c[steps * steps..].iter().map(|c| -c));
        }
        let op = RateTables { of, tables };
        case.judge("rate_tables", 1e-6, &[(tables, expected.clone())], |d, arena| d.rate_tables(arena, &op));

        let parts = 1 + usize::from(biased);
        let mut made = expected.into_iter();
        let tables = case.filled(layers, RateTables::width(steps), |_| made.next().unwrap());
        let of_tables = case.random(layers * parts, table);
        let gradient = case.poisoned(1, rates.len());
        let bias_gradient = biased.then(|| case.poisoned(1, each));
        let image = case.image();
        let mut expected = [vec![0.0; each], vec![0.0; each]];
        for (layer, s) in (first_moving..layers).flat_map(|layer| (0..steps).map(move |s| (layer, s))) {
            let of_bias = |at: usize| if biased { image.at(of_tables, layer * parts + 1, at) } else { 0.0 };
            let of_c = |at: usize| image.at(of_tables, layer * parts, at) + column(at % steps, layer) * of_bias(at);
            // Linear in the rates: their derivative is what one alone gives.
            let alone = coefficients(steps, momentum, |i| f64::from(u8::from(i == s)));
            expected[0][s * layers + layer] = (0..table).map(|at| alone[at] * of_c(at)).sum();
            let c = coefficients(steps, momentum, |i| rate(i, layer));
            let own = (0..table).filter(|at| at % steps == s);
            expected[1][s * layers + layer] = own.map(|at| c[at] * of_bias(at)).sum();
        }
        let [of_rates, of_column] = expected;
        let of_rates = if single { vec![of_rates.iter().sum()] } else { of_rates };
        let expected: Vec<_> =
            [(gradient, of_rates)].into_iter().chain(bias_gradient.map(|to| (to, of_column))).collect();
        let op = RateTablesGradient { of, tables, of_tables, first_moving, gradient, bias_gradient };
        case.judge("rate_tables_gradient", 3e-6, &expected, |d, arena| d.rate_tables_gradient(arena, &op));
    }
    for_seeds!(60, check);
}
