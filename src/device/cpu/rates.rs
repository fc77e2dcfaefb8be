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

/// `c[i][j]` of a layer.
fn coefficient<T: Scalar>(arena: &CpuArena<T>, of: &InnerRates, layer: usize, (i, j): (usize, usize)) -> f64 {
    let rate = |s: usize| number(arena, of.rates, if of.is_single() { 0 } else { s * of.layers + layer });
    // Horner's, from the last step on.
    (j..i).rev().fold(0.0, |sum, s| sum * of.momentum + rate(s))
}

/// See [`RateTables`].
pub(super) fn tables<T: Scalar>(arena: &mut CpuArena<T>, op: &RateTables) {
    let (of, steps) = (&op.of, op.of.steps);
    let bias = InnerRates::table(steps);
    for layer in 0..of.layers {
        let own = op.tables.rows(layer, 1);
        for (i, j) in (0..=steps).flat_map(|i| (0..steps).map(move |j| (i, j))) {
            let c = coefficient(arena, of, layer, (i, j));
            set(arena, own, i * steps + j, -c);
            if i == steps {
                set(arena, own, bias + steps + 1 + j, -c);
            }
        }
        for s in 0..steps {
            let value = of.bias.map_or(1.0, |region| number(arena, region, s * of.layers + layer));
            set(arena, own, bias + s, value);
        }
        set(arena, own, bias + steps, 1.0);
    }
}

/// See [`RateTablesGradient`].
pub(super) fn gradient<T: Scalar>(arena: &mut CpuArena<T>, op: &RateTablesGradient) {
    let (of, steps) = (&op.of, op.of.steps);
    let table = InnerRates::table(steps);
    let parts = 1 + usize::from(of.bias.is_some());
    let mut single = 0.0;
    for (layer, s) in (0..of.layers).flat_map(|layer| (0..steps).map(move |s| (layer, s))) {
        let moves = layer >= op.first_moving;
        let own = op.tables.rows(layer, 1);
        let of_bias = |i: usize, j: usize| match of.bias {
            Some(_) => number(arena, op.of_tables.rows(layer * parts + 1, 1), i * steps + j),
            None => 0.0,
        };
        let of_c = |i: usize, j: usize| {
            let b = number(arena, own, table + j);
            number(arena, op.of_tables.rows(layer * parts, 1), i * steps + j) + b * of_bias(i, j)
        };
        let column = |j: usize| (s + 1..=steps).map(|i| of_c(i, j)).sum::<f64>();
        let rate = if moves { (0..=s).fold(0.0, |sum, j| sum * of.momentum + column(j)) } else { 0.0 };
        let c = |i: usize| -number(arena, own, i * steps + s);
        let bias = if moves { (s + 1..=steps).map(|i| c(i) * of_bias(i, s)).sum::<f64>() } else { 0.0 };
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
