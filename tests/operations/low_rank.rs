//! Inner products of rows, what is made of them, and the weight gradient of many rows.

use innerloop::Scalar;
use innerloop::device::{Device, Gate, Gram, GramInner, LowRank, OuterProduct, OuterTerm};

use crate::case::{ACTIVATIONS, Case, each, first, for_seeds};

#[test]
fn gram() {
    fn check<T: Scalar>(seed: u64) {
        let mut case = Case::<T>::new(seed);
        let ((tasks, rows, blocks), (width, _)) = (case.rows(), case.widths());
        let counts: Vec<usize> = (0..case.pick(&[1, 2, 4])).map(|_| case.pick(&[1, 3, 4, 6])).collect();
        let y: Vec<_> = counts.iter().map(|count| case.random(tasks * count, width)).collect();
        let n = counts.iter().sum();
        let x = case.random(blocks * tasks * rows, width);
        let accumulate = case.coin();
        let op = Gram { tasks, rows, x, y: &y, output: case.output(x.rows, n, accumulate), accumulate };
        let image = case.image();
        let columns: Vec<_> = (0..y.len()).flat_map(|r| (0..counts[r]).map(move |i| (r, i))).collect();
        let expected = each([blocks, tasks, rows, n], |[b, t, k, column]| {
            let (r, i) = columns[column];
            let (row, other) = ((b * tasks + t) * rows + k, t * counts[r] + i);
            let begun = if accumulate { image.at(op.output, row, column) } else { 0.0 };
            begun + (0..width).map(|c| image.at(x, row, c) * image.at(y[r], other, c)).sum::<f64>()
        });
        case.judge("gram", 3e-6, &[(op.output, expected)], |d, arena| d.gram(arena, &op));
    }
    for_seeds!(75, check);
}

#[test]
fn gram_inner() {
    fn check<T: Scalar>(seed: u64) {
        let mut case = Case::<T>::new(seed);
        let (rows, groups, group) = (case.pick(&[1, 7, 33]), case.pick(&[1, 3]), case.pick(&[1, 5, 17]));
        let op = GramInner {
            left: case.random(rows, groups * group),
            right: [Some(case.random(rows, groups * group)), None][case.below(2)],
            group,
            plus_one: case.coin(),
            scale: 0.25,
            output: case.random(1, groups),
        };
        let image = case.image();
        let one = f64::from(u8::from(op.plus_one));
        let expected = (0..groups)
            .map(|c| {
                let columns = c * group..(c + 1) * group;
                let pairs = (0..rows).flat_map(|r| columns.clone().map(move |i| (r, i)));
                let right = |r, i| op.right.map_or(0.0, |right| image.at(right, r, i));
                let sum: f64 = pairs.map(|(r, i)| image.at(op.left, r, i) * (right(r, i) + one)).sum();
                image.at(op.output, 0, c) - op.scale * sum
            })
            .collect();
        // Summed in double precision: only the result is rounded.
        case.judge("gram_inner", 1e-7, &[(op.output, expected)], |d, arena| d.gram_inner(arena, &op));
    }
    for_seeds!(60, check);
}

#[test]
fn low_rank() {
    fn check<T: Scalar>(seed: u64) {
        let mut case = Case::<T>::new(seed);
        let ((tasks, rows, blocks), (width, _)) = (case.rows(), case.widths());
        let terms = if seed == 0 { Vec::new() } else { case.terms(tasks, rows, blocks, width) };
        let corrections = case.corrections(tasks, rows, &terms, 1.0);
        let all = blocks * tasks * rows;
        let (gated, activation, accumulate) = (case.coin(), case.pick(&ACTIVATIONS), case.coin());
        let gate_count = case.pick(&[1, 2]);
        let gate_blocks: Vec<_> = (0..blocks).map(|_| case.pick(&[0, gate_count - 1])).collect();
        let values = case.values(gate_count * tasks * rows, width, activation);
        let op = LowRank {
            tasks,
            rows,
            base: case.coin().then(|| case.random(all, width)),
            corrections,
            gate: gated.then_some(Gate { activation, values, blocks: &gate_blocks }),
            output: case.output(all, width, accumulate),
            accumulate,
        };
        let (output, image) = (op.output, case.image());
        let expected = each([blocks, tasks, rows, width], |[b, t, k, column]| {
            let row = (b * tasks + t) * rows + k;
            let base = op.base.map_or(0.0, |base| image.at(base, row, column));
            let gate = image.at(values, (gate_blocks[b] * tasks + t) * rows + k, column);
            let gate = if gated { first(activation, gate) } else { 1.0 };
            let begun = if accumulate { image.at(output, row, column) } else { 0.0 };
            begun + (base + image.correction(&op.corrections, tasks, [b, t, k, column])) * gate
        });
        case.judge("low_rank", 3e-6, &[(output, expected)], |d, arena| d.low_rank(arena, &op));
    }
    for_seeds!(50, check);
}

#[test]
fn outer_product() {
    fn check<T: Scalar>(seed: u64) {
        let mut case = Case::<T>::new(seed);
        let ((tasks, ..), (inputs, outputs)) = (case.rows(), case.widths());
        let (shared, accumulate) = (case.coin(), case.coin());
        let shapes: Vec<_> =
            (0..case.pick(&[1, 2, 4])).map(|_| (case.pick(&[1, 5, 7]), case.pick(&[1, 2, 3]))).collect();
        let terms: Vec<OuterTerm<T>> = shapes
            .iter()
            .map(|&(rows, blocks)| OuterTerm {
                p: case.random(blocks * tasks * rows, outputs),
                q: case.random(blocks * tasks * rows, inputs),
                bias: T::from_f64(case.pick(&[0.0, 1.0, -0.7])),
                blocks,
                scale: T::from_f64(case.pick(&[-0.5, 1.0, 0.3])),
                share: case.coin().then(|| case.random(1, 1)),
            })
            .collect();
        let layer = case.layer(tasks, inputs, outputs, shared, !accumulate);
        let image = case.image();
        let copies = if shared { 1 } else { tasks };
        let mut expected = Vec::new();
        for copy in 0..copies {
            let parameters = case.region_of(&layer, copy);
            let mut values = vec![0.0; parameters.len()];
            if accumulate {
                values.copy_from_slice(image.of(parameters));
            }
            for (term, (rows, blocks)) in terms.iter().zip(&shapes) {
                let scale = term.scale.to_f64() * term.share.map_or(1.0, |share| image.at(share, 0, 0));
                for row in (0..term.p.rows).filter(|row| shared || row / rows % tasks == copy) {
                    assert!(row < blocks * tasks * rows);
                    for o in 0..outputs {
                        let p = scale * image.at(term.p, row, o);
                        for i in 0..inputs {
                            values[o * inputs + i] += p * image.at(term.q, row, i);
                        }
                        values[outputs * inputs + o] += p * term.bias.to_f64();
                    }
                }
            }
            expected.push((parameters, values));
        }
        let op = OuterProduct { tasks, terms: &terms, layer, accumulate };
        case.judge("outer_product", 5e-6, &expected, |d, arena| d.outer_product(arena, &op));
    }
    for_seeds!(75, check);
}
