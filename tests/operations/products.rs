//! The four products with a layer's weights.

use innerloop::Scalar;
use innerloop::device::{
    AdjointBackward, AdjointForward, Device, Direction, Gate, LinearBackward, LinearForward, Term,
};

use crate::case::{ACTIVATIONS, Case, each, first, for_seeds, second, value};

const SEEDS: u64 = 75;
/// Sums of up to 257 + 257 + 30 products in f32, relative to the norm.
const SINGLE: f64 = 5e-6;

/// Terms for every block, or none at all.
fn terms<T: Scalar>(case: &mut Case<T>, tasks: usize, rows: usize, blocks: usize, width: usize) -> Vec<Vec<Term>> {
    if case.coin() { case.terms(tasks, rows, blocks, width) } else { Vec::new() }
}

#[test]
fn linear_forward() {
    fn check<T: Scalar>(seed: u64) {
        let mut case = Case::<T>::new(seed);
        let ((tasks, rows, blocks), (inputs, outputs)) = (case.rows(), case.widths());
        let (shared, activation) = (case.coin(), case.pick(&ACTIVATIONS));
        let share = case.pick(&[1.0, 0.8]);
        let terms = terms(&mut case, tasks, rows, blocks, outputs);
        let op = LinearForward {
            tasks,
            rows,
            input: case.random(blocks * tasks * rows, inputs),
            layer: case.layer(tasks, inputs, outputs, shared, false),
            corrections: case.corrections(tasks, rows, &terms, share),
            activation,
            output: case.poisoned(blocks * tasks * rows, outputs),
        };
        let image = case.image();
        let expected = each([blocks, tasks, rows, outputs], |[b, t, k, o]| {
            let row = (b * tasks + t) * rows + k;
            let product: f64 = (0..inputs).map(|i| image.at(op.input, row, i) * image.weight(&op.layer, t, o, i)).sum();
            let correction = image.correction(&op.corrections, tasks, [b, t, k, o]);
            value(activation, share * (product + image.bias(&op.layer, t, o)) + correction)
        });
        case.judge("linear_forward", SINGLE, &[(op.output, expected)], |d, arena| d.linear_forward(arena, &op));
    }
    for_seeds!(SEEDS, check);
}

#[test]
fn linear_backward() {
    fn check<T: Scalar>(seed: u64) {
        let mut case = Case::<T>::new(seed);
        let ((tasks, rows, blocks), (inputs, outputs)) = (case.rows(), case.widths());
        let (shared, gated, activation) = (case.coin(), case.coin(), case.pick(&ACTIVATIONS));
        let share = case.pick(&[1.0, 0.8]);
        let terms = terms(&mut case, tasks, rows, blocks, inputs);
        let gate_count = case.pick(&[1, 2]);
        let gate_blocks: Vec<_> = (0..blocks).map(|_| case.pick(&[0, gate_count - 1])).collect();
        let values = case.values(gate_count * tasks * rows, inputs, activation);
        let op = LinearBackward {
            tasks,
            rows,
            delta: case.random(blocks * tasks * rows, outputs),
            layer: case.layer(tasks, inputs, outputs, shared, false),
            corrections: case.corrections(tasks, rows, &terms, share),
            gate: gated.then_some(Gate { activation, values, blocks: &gate_blocks }),
            output: case.poisoned(blocks * tasks * rows, inputs),
        };
        let image = case.image();
        let expected = each([blocks, tasks, rows, inputs], |[b, t, k, i]| {
            let row = (b * tasks + t) * rows + k;
            let product: f64 =
                (0..outputs).map(|o| image.at(op.delta, row, o) * image.weight(&op.layer, t, o, i)).sum();
            let gate = (gate_blocks[b] * tasks + t) * rows + k;
            let gate = if gated { first(activation, image.at(values, gate, i)) } else { 1.0 };
            (share * product + image.correction(&op.corrections, tasks, [b, t, k, i])) * gate
        });
        case.judge("linear_backward", SINGLE, &[(op.output, expected)], |d, arena| d.linear_backward(arena, &op));
    }
    for_seeds!(SEEDS, check);
}

#[test]
fn adjoint_forward() {
    fn check<T: Scalar>(seed: u64) {
        let mut case = Case::<T>::new(seed);
        let ((tasks, rows, blocks), (inputs, outputs)) = (case.rows(), case.widths());
        let (shared, activation) = (case.coin(), case.pick(&ACTIVATIONS));
        let share = case.pick(&[1.0, 0.8]);
        let terms = terms(&mut case, tasks, rows, blocks, outputs);
        // Several blocks may share a gate block, as the discriminator's second and third do.
        let gate_count = case.pick(&[1, 2]).min(blocks);
        let gate_blocks: Vec<_> = (0..blocks).map(|b| b.min(gate_count - 1)).collect();
        let first_input = case.below(blocks + 1);
        let input_rows = (blocks - first_input) * tasks * rows;
        let directed = case.below(blocks + 1);
        let direction = Direction {
            layer: case.layer(tasks, inputs, outputs, false, false),
            values: case.random(directed * tasks * rows, inputs),
        };
        let gate_rows = gate_count * tasks * rows;
        let input = case.random(input_rows, inputs);
        let op = AdjointForward {
            tasks,
            rows,
            input: (input_rows > 0).then_some((input, first_input)),
            layer: case.layer(tasks, inputs, outputs, shared, false),
            direction: (directed > 0).then_some(direction),
            corrections: case.corrections(tasks, rows, &terms, share),
            gate: Gate { activation, values: case.values(gate_rows, outputs, activation), blocks: &gate_blocks },
            delta: case.random(blocks * tasks * rows, outputs),
            z_cotangent: case.poisoned(gate_rows, outputs),
            e_cotangent: case.poisoned(blocks * tasks * rows, outputs),
        };
        let image = case.image();
        let row = |b, t, k| (b * tasks + t) * rows + k;
        let g = each([blocks, tasks, rows, outputs], |[b, t, k, o]| {
            let mut sum = 0.0;
            if b >= first_input {
                let row = row(b - first_input, t, k);
                sum += (0..inputs).map(|i| image.at(input, row, i) * image.weight(&op.layer, t, o, i)).sum::<f64>();
            }
            if b < directed {
                let Direction { layer, values } = direction;
                sum += image.bias(&layer, t, o);
                let weight = |i| image.weight(&layer, t, o, i);
                sum += (0..inputs).map(|i| image.at(values, row(b, t, k), i) * weight(i)).sum::<f64>();
            }
            share * sum + image.correction(&op.corrections, tasks, [b, t, k, o])
        });
        let e = each([blocks, tasks, rows, outputs], |[b, t, k, o]| {
            let a = image.at(op.gate.values, row(gate_blocks[b], t, k), o);
            g[row(b, t, k) * outputs + o] * first(activation, a)
        });
        let z = each([gate_count, tasks, rows, outputs], |[gate, t, k, o]| {
            let a = image.at(op.gate.values, row(gate, t, k), o);
            let blocks = (0..blocks).filter(|b| gate_blocks[*b] == gate);
            let part = |b| g[row(b, t, k) * outputs + o] * image.at(op.delta, row(b, t, k), o);
            blocks.map(part).sum::<f64>() * second(activation, a) / first(activation, a)
        });
        let mut expected = vec![(op.e_cotangent, e)];
        if activation.is_curved() {
            expected.push((op.z_cotangent, z));
        }
        case.judge("adjoint_forward", SINGLE, &expected, |d, arena| d.adjoint_forward(arena, &op));
    }
    for_seeds!(2 * SEEDS, check);
}

#[test]
fn adjoint_backward() {
    fn check<T: Scalar>(seed: u64) {
        let mut case = Case::<T>::new(seed);
        let ((tasks, rows, blocks), (inputs, outputs)) = (case.rows(), case.widths());
        let (shared, gated, activation) = (case.coin(), case.coin(), case.pick(&ACTIVATIONS));
        let share = case.pick(&[1.0, 0.8]);
        let accumulate = case.coin();
        let terms = terms(&mut case, tasks, rows, blocks, inputs);
        let gate_count = case.pick(&[1, 2]);
        let gate_blocks: Vec<_> = (0..blocks).map(|_| case.pick(&[0, gate_count - 1])).collect();
        let values = case.values(gate_count * tasks * rows, inputs, activation);
        let directed = case.below(blocks + 1);
        let direction = Direction {
            layer: case.layer(tasks, inputs, outputs, false, false),
            values: case.random(directed * tasks * rows, outputs),
        };
        let op = AdjointBackward {
            tasks,
            rows,
            z_cotangent: case.random(blocks * tasks * rows, outputs),
            layer: case.layer(tasks, inputs, outputs, shared, false),
            direction: (directed > 0).then_some(direction),
            corrections: case.corrections(tasks, rows, &terms, share),
            gate: gated.then_some(Gate { activation, values, blocks: &gate_blocks }),
            output: case.output(blocks * tasks * rows, inputs, accumulate),
            accumulate,
        };
        let image = case.image();
        let expected = each([blocks, tasks, rows, inputs], |[b, t, k, i]| {
            let row = (b * tasks + t) * rows + k;
            let mut sum: f64 =
                (0..outputs).map(|o| image.at(op.z_cotangent, row, o) * image.weight(&op.layer, t, o, i)).sum();
            if b < directed {
                let weight = |o| image.weight(&direction.layer, t, o, i);
                sum += (0..outputs).map(|o| image.at(direction.values, row, o) * weight(o)).sum::<f64>();
            }
            let gate = (gate_blocks[b] * tasks + t) * rows + k;
            let gate = if gated { first(activation, image.at(values, gate, i)) } else { 1.0 };
            let before = if accumulate { image.at(op.output, row, i) } else { 0.0 };
            before + (share * sum + image.correction(&op.corrections, tasks, [b, t, k, i])) * gate
        });
        case.judge("adjoint_backward", SINGLE, &[(op.output, expected)], |d, arena| d.adjoint_backward(arena, &op));
    }
    for_seeds!(2 * SEEDS, check);
}
