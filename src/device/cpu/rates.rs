//! The tables of the inner rates, and their gradient.

use super::CpuArena;
use crate::device::{InnerRates, RateTables, RateTablesGradient, Region};
use crate::scalar::Scalar;

/// One number of a region.
fn number<T: Scalar>(arena: &CpuArena<T>, region: Region, at: usize) -> f64 {
    arena.slice(region.elements(at, 1))[0].to_f64()
}

fn set<T: Scalar>(arena: &mut CpuArena<T>, region: Region, at: usize, value: f64) {
    arena.slice_mut(region.elements(at, 1))[0] = T::from_f64(value);
}

/// The rates of one layer.
struct LayerRates<'a, T> {
    arena: &'a CpuArena<T>,
    of: &'a InnerRates,
    layer: usize,
}

impl<T: Scalar> LayerRates<'_, T> {
    fn rate(&self, s: usize) -> f64 {
        let place = if self.of.is_single() { 0 } else { s * self.of.layers + self.layer };
        number(self.arena, self.of.rates, place)
    }

    /// x after the steps `from..to`, and v of step `to`: from `x` on, with `impulse` in step `from`.
    fn column(&self, x: f64, impulse: f64, (from, to): (usize, usize)) -> (f64, f64) {
        let v =
            |v: f64, x: f64, s: usize| self.of.momentum * v + self.of.decay * x + if s == from { impulse } else { 0.0 };
        let step = |(x, before): (f64, f64), s: usize| {
            let after = v(before, x, s);
            (x - self.rate(s) * after, after)
        };
        let (x, before) = (from..to).fold((x, 0.0), step);
        (x, v(before, x, to))
    }

    /// `-c[i][j]`.
    fn entry(&self, i: usize, j: usize) -> f64 {
        if i > j { self.column(0.0, 1.0, (j, i)).0 } else { 0.0 }
    }

    /// What is left after `i` steps of a change of x after `s + 1`.
    fn kept(&self, s: usize, i: usize) -> f64 {
        self.column(1.0, 0.0, (s + 1, i)).0
    }
}

/// See [`RateTables`].
pub(super) fn tables<T: Scalar>(arena: &mut CpuArena<T>, op: &RateTables) {
    let (of, steps) = (&op.of, op.of.steps);
    for layer in 0..of.layers {
        let rates = LayerRates { arena, of, layer };
        let mut values: Vec<f64> =
            (0..=steps).flat_map(|i| (0..steps).map(move |j| (i, j))).map(|(i, j)| rates.entry(i, j)).collect();
        values.extend((0..steps).map(|s| of.bias.map_or(1.0, |region| number(arena, region, s * of.layers + layer))));
        values.push(1.0);
        values.extend((0..=steps).map(|i| rates.column(1.0, 0.0, (0, i)).0));
        for pass in 0..of.queries() {
            let weight = of.query_weights.map_or(1.0, |weights| number(arena, weights, pass));
            values.extend((0..steps).map(|j| weight * rates.entry(steps - pass, j)));
        }
        let own = op.tables.rows(layer, 1);
        values.into_iter().enumerate().for_each(|(at, value)| set(arena, own, at, value));
    }
}

/// See [`RateTablesGradient`].
pub(super) fn gradient<T: Scalar>(arena: &mut CpuArena<T>, op: &RateTablesGradient) {
    let (of, steps) = (&op.of, op.of.steps);
    let parts = 1 + usize::from(of.bias.is_some());
    let mut single = 0.0;
    for (layer, s) in (0..of.layers).flat_map(|layer| (0..steps).map(move |s| (layer, s))) {
        let rates = LayerRates { arena, of, layer };
        let own = op.tables.rows(layer, 1);
        let of_bias = |i: usize, j: usize| match of.bias {
            Some(_) => number(arena, op.of_tables.rows(layer * parts + 1, 1), i * steps + j),
            None => 0.0,
        };
        let of_c = |i: usize, j: usize| {
            let b = number(arena, own, RateTables::bias(steps) + j);
            number(arena, op.of_tables.rows(layer * parts, 1), i * steps + j) + b * of_bias(i, j)
        };
        let of_share = |i: usize| op.of_shares.map_or(0.0, |shares| number(arena, shares.rows(layer, 1), i));
        let p = rates.column(1.0, 0.0, (0, s)).1;
        let moved =
            |i: usize| (0..=s).map(|j| rates.column(0.0, 1.0, (j, s)).1 * of_c(i, j)).sum::<f64>() - p * of_share(i);
        let c = |i: usize| -number(arena, own, i * steps + s);
        let (mut rate, mut bias) = (0.0, 0.0);
        if layer >= op.first_moving {
            rate = (s + 1..=steps).map(|i| rates.kept(s, i) * moved(i)).sum();
            bias = (s + 1..=steps).map(|i| c(i) * of_bias(i, s)).sum();
        }
        single += rate;
        if !of.is_single() {
            set(arena, op.gradient, s * of.layers + layer, rate);
        }
        if let Some(region) = op.bias_gradient {
            set(arena, region, s * of.layers + layer, bias);
        }
    }
    if of.is_single() {
        set(arena, op.gradient, 0, single);
    }
}
