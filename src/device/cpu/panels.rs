//! Shared weights laid out for the products they take part in, kept until they are written.
//!
//! A meta-step multiplies with the same weights in every pass of every inner step; laid out once as panels of 64 columns
//! they are read from end to end, in the order in which the product wants them.

use super::aligned::Aligned;
use super::avx512;
use super::matrix::{Kernel, Matrix, dispatch};
use super::transpose::transpose;
use super::{Base, CpuArena, CpuDevice};
use crate::device::{Linear, Region};
use crate::scalar::Scalar;

/// Elements of a weight from which its panels pay.
const LARGE: usize = 1 << 14;

/// The panels of one factor `[k, n]`: columns `64 i..64 i + 64` are contiguous, `[k, 64]`; the last may be partly filled.
#[derive(Clone, Copy)]
pub(super) struct Panels<T> {
    first: Base<T>,
    k: usize,
}

impl<T: Scalar> Panels<T> {
    /// The columns from `column` on, a multiple of 64.
    pub fn starting_at(self, column: usize) -> avx512::Right<T> {
        debug_assert_eq!(column % avx512::COLUMNS, 0);
        let size = self.k * avx512::COLUMNS;
        let pointer = self.first.at(column / avx512::COLUMNS * size).cast_const();
        avx512::Right { pointer, row_stride: avx512::COLUMNS, panel_stride: size }
    }
}

/// One weight's panels.
#[derive(Debug)]
struct Entry<T> {
    weight: Region,
    transposed: bool,
    values: Aligned<T>,
    /// Whether they still hold what the weight does.
    fresh: bool,
}

/// The panels an arena keeps.
#[derive(Debug, Default)]
pub(super) struct PanelCache<T> {
    entries: Vec<Entry<T>>,
}

impl<T> PanelCache<T> {
    /// A region is about to be written.
    pub fn written(&mut self, region: &Region) {
        for entry in &mut self.entries {
            entry.fresh &= !entry.weight.overlaps(region);
        }
    }
}

impl<T: Scalar> CpuArena<T> {
    /// The panels of a layer's `W` (`[outputs, inputs]`), or of `W^T`; none where they would not pay.
    pub(super) fn panels(&mut self, device: &CpuDevice, layer: &Linear, transposed: bool) -> Option<Panels<T>> {
        let Linear { inputs, outputs, .. } = *layer;
        if !layer.is_shared() || inputs.min(outputs) < 2 || inputs * outputs < LARGE || !avx512::serves::<T>() {
            return None;
        }
        let weight = Region { offset: layer.weight, rows: outputs, width: inputs };
        let (k, n) = if transposed { (inputs, outputs) } else { (outputs, inputs) };
        let entries = &mut self.panels.entries;
        let known = entries.iter().position(|e| e.weight == weight && e.transposed == transposed);
        if known.is_none() {
            // Without the memory for it a product does without panels.
            let values = Aligned::zeros(k * n.next_multiple_of(avx512::COLUMNS)).ok()?;
            entries.push(Entry { weight, transposed, values, fresh: false });
        }
        let index = known.unwrap_or(entries.len() - 1);
        let entry = &mut entries[index];
        let first = Base(entry.values.as_mut_ptr());
        if !std::mem::replace(&mut entry.fresh, true) {
            let from = Base(self.values[layer.weight..].as_ptr().cast_mut());
            device.run_ranges(n.div_ceil(avx512::COLUMNS), 4 * k * avx512::COLUMNS, |begin, end| {
                let from = Matrix::rows(from.at(0).cast_const(), inputs);
                dispatch(Pack { from, k, n, transposed, panels: (begin, end), to: first.at(0) });
            });
        }
        Some(Panels { first, k })
    }
}

/// Writes some panels.
struct Pack<T> {
    from: Matrix<T>,
    k: usize,
    n: usize,
    transposed: bool,
    panels: (usize, usize),
    to: *mut T,
}

impl<T: Scalar> Kernel for Pack<T> {
    #[inline(always)]
    fn run<const FMA: bool, const WIDE: bool>(self) {
        const COLUMNS: usize = avx512::COLUMNS;
        let Self { from: Matrix { pointer, row_stride, .. }, k, n, .. } = self;
        for panel in self.panels.0..self.panels.1 {
            let (column, width) = (panel * COLUMNS, COLUMNS.min(n - panel * COLUMNS));
            // SAFETY: the weight is `[n, k]` if transposed and `[k, n]` if not; every panel has room for `[k, 64]`.
            unsafe {
                let to = self.to.add(column * k);
                if self.transposed {
                    let from = Matrix::rows(pointer.add(column * row_stride), row_stride);
                    transpose::<T, WIDE>(from, width, k, to, COLUMNS);
                } else {
                    for row in 0..k {
                        let from = pointer.add(row * row_stride + column);
                        std::ptr::copy_nonoverlapping(from, to.add(row * COLUMNS), width);
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::{ArenaPlan, Corrections, Device, LinearBackward, LinearForward};
    use crate::model::Activation;

    /// A product with a large weight follows every way in which the weight can change.
    #[test]
    fn a_written_weight_is_laid_out_anew() {
        const ROWS: usize = 7;
        let (inputs, outputs) = (150, 201);
        let device = CpuDevice::new(2).unwrap();
        let mut plan = ArenaPlan::default();
        let (x, d) = (plan.take(ROWS, inputs), plan.take(ROWS, outputs));
        let (weight, other, bias) = (plan.take(outputs, inputs), plan.take(outputs, inputs), plan.take(1, outputs));
        let (forward, backward) = (plan.take(ROWS, outputs), plan.take(ROWS, inputs));
        let mut arena: CpuArena<f32> = device.arena(plan.elements()).unwrap();
        let numbers = |region: Region, seed: usize| -> Vec<f32> {
            (0..region.len()).map(|i| ((i * 7919 + seed * 31) % 101) as f32 / 50.0 - 1.0).collect()
        };
        for (region, seed) in [(x, 1), (d, 2), (weight, 3), (other, 4)] {
            device.upload(&mut arena, region, &numbers(region, seed));
        }
        let layer = Linear { weight: weight.offset, bias: bias.offset, task_stride: 0, inputs, outputs };
        let corrections = Corrections::NONE;
        let check = |arena: &mut CpuArena<f32>, after: &str| {
            let operation = LinearForward {
                tasks: ROWS,
                rows: 1,
                input: x,
                layer,
                corrections,
                activation: Activation::Linear,
                output: forward,
            };
            device.linear_forward(arena, &operation);
            let operation =
                LinearBackward { tasks: ROWS, rows: 1, delta: d, layer, corrections, gate: None, output: backward };
            device.linear_backward(arena, &operation);
            for (input, output, stride) in [(x, forward, (inputs, 1)), (d, backward, (1, inputs))] {
                for (r, c) in (0..ROWS).flat_map(|r| (0..output.width).map(move |c| (r, c))) {
                    let product = |i: usize| {
                        let w = arena.slice(weight)[c * stride.0 + i * stride.1];
                        f64::from(arena.slice(input)[r * input.width + i]) * f64::from(w)
                    };
                    let expected: f64 = (0..input.width).map(product).sum();
                    let error = (f64::from(arena.slice(output)[r * output.width + c]) - expected).abs();
                    assert!(error < 1e-4, "{after}: off by {error} at {r}, {c}");
                }
            }
        };
        check(&mut arena, "upload");
        check(&mut arena, "nothing");
        device.copy(&mut arena, other, weight);
        check(&mut arena, "copy");
        device.add_scaled(&mut arena, other, 0.5, weight);
        check(&mut arena, "add_scaled");
        device.fill(&mut arena, weight.elements(inputs + 1, 1), 3.0);
        check(&mut arena, "fill of one element");
        device.add_host(&mut arena, weight.rows(outputs - 1, 1), &vec![1.0; inputs]);
        check(&mut arena, "add_host to the last row");
    }
}
