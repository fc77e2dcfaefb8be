//! The weight gradient of many rows at once: `sum_t P_t^T Q_t`.

use super::matrix::Matrix;
use super::multiply::{Product, multiply_sum};
use super::packed;
use super::scratch::scratch;
use super::{Base, CpuArena, CpuDevice};
use crate::device::{Linear, OuterProduct, OuterTerm, Region};
use crate::scalar::Scalar;

/// Outputs and inputs of a tile at most: a tile stays in the L2 cache while every term is added to it.
const TILE_OUTPUTS: usize = 256;
const TILE_INPUTS: usize = 512;

/// A term's factor.
fn scale_of<T: Scalar>(base: Base<T>, term: &OuterTerm<T>) -> T {
    // SAFETY: a declared region that is only read.
    term.share.map_or(term.scale, |share| unsafe { term.scale * *base.at(share.offset) })
}

/// See [`OuterProduct`].
pub(super) fn outer_product<T: Scalar>(device: &CpuDevice, arena: &mut CpuArena<T>, op: &OuterProduct<'_, T>) {
    let Linear { inputs, outputs, .. } = op.layer;
    let last = if op.layer.is_shared() { 0 } else { op.tasks - 1 };
    let whole = |offset, len| Region { offset, rows: 1, width: last * op.layer.task_stride + len };
    let writes = [whole(op.layer.weight, inputs * outputs), whole(op.layer.bias, outputs)];
    let mut base = arena.shared(&[], &writes[..if op.layer.is_shared() { 2 } else { 1 }]);
    for term in op.terms {
        let share = term.share.unwrap_or(term.p.rows(0, 0));
        base = arena.shared(&[term.p, term.q, share], &writes[..1]);
    }
    if !op.layer.is_shared() {
        device.run(op.tasks, |task| of_task(base, op, task));
        return;
    }
    // By the whole, so that sums do not depend on the number of threads.
    let most = op.terms.iter().map(|term| term.p.rows).max().unwrap_or(0);
    let packs = packed::pays::<T>((outputs, inputs), most);
    let threads = device.threads();
    let column_tiles = inputs.div_ceil(TILE_INPUTS);
    let wanted = if threads == 1 { 1 } else { (2 * threads).div_ceil(column_tiles) };
    let row_tiles = outputs.div_ceil(TILE_OUTPUTS).max(wanted.min(outputs.div_ceil(32)));
    let (height, width) = (outputs.div_ceil(row_tiles), inputs.div_ceil(column_tiles));
    device.run(row_tiles * column_tiles, |job| {
        let (row, column) = (job / column_tiles * height, job % column_tiles * width);
        let (rows, columns) = (height.min(outputs.saturating_sub(row)), width.min(inputs.saturating_sub(column)));
        if rows == 0 || columns == 0 {
            return;
        }
        let products = op.terms.iter().map(|term| Product {
            left: Matrix::rows(base.at(term.p.offset + row).cast_const(), outputs).transposed(),
            right: Matrix::rows(base.at(term.q.offset + column).cast_const(), inputs),
            depth: term.p.rows,
            scale: scale_of(base, term),
        });
        let out = base.at(op.layer.weight + row * inputs + column);
        let shape = (rows, columns);
        // SAFETY: declared regions; each job writes its own tile.
        unsafe {
            if packs {
                scratch(packed::room(shape), |_, room| {
                    packed::multiply_sum(shape, products, (out, inputs), op.accumulate, room);
                });
            } else {
                multiply_sum(shape, products, (out, inputs), op.accumulate);
            }
        }
        if column == 0 {
            // SAFETY: the job of the first column owns these biases.
            let bias = unsafe { base.slice_mut(op.layer.bias + row, rows) };
            if !op.accumulate {
                bias.fill(T::ZERO);
            }
            for term in op.terms.iter().filter(|t| t.bias != T::ZERO) {
                add_rows(base, &term.p, row, scale_of(base, term) * term.bias, bias);
            }
        }
    });
}

/// `bias += scale * sum over the rows of p`, from column `from` on.
pub(super) fn add_rows<T: Scalar>(base: Base<T>, p: &Region, from: usize, scale: T, bias: &mut [T]) {
    pulp::Arch::new().dispatch(|| {
        for r in 0..p.rows {
            // SAFETY: a declared region that is only read.
            let row = unsafe { base.slice(p.offset + r * p.width + from, bias.len()) };
            bias.iter_mut().zip(row).for_each(|(b, v)| *b += scale * *v);
        }
    });
}

/// One task's own, whose rows are found in every block.
fn of_task<T: Scalar>(base: Base<T>, op: &OuterProduct<'_, T>, task: usize) {
    let Linear { inputs, outputs, .. } = op.layer;
    let rows = |term: &OuterTerm<T>, block: usize| {
        let rows = term.p.rows / (op.tasks * term.blocks);
        let first = (block * op.tasks + task) * rows;
        (term.p.rows(first, rows), term.q.rows(first, rows))
    };
    let pieces = || op.terms.iter().flat_map(|term| (0..term.blocks).map(move |block| (term, rows(term, block))));
    let products = pieces().map(|(term, (p, q))| Product {
        left: Matrix::rows(base.at(p.offset).cast_const(), outputs).transposed(),
        right: Matrix::rows(base.at(q.offset).cast_const(), inputs),
        depth: p.rows,
        scale: scale_of(base, term),
    });
    let out = base.at(op.layer.weight + task * op.layer.task_stride);
    // SAFETY: declared regions; each job writes its own task's weights.
    let bias = unsafe {
        multiply_sum((outputs, inputs), products, (out, inputs), op.accumulate);
        base.slice_mut(op.layer.bias + task * op.layer.task_stride, outputs)
    };
    if !op.accumulate {
        bias.fill(T::ZERO);
    }
    for (term, (p, _)) in pieces().filter(|(term, _)| term.bias != T::ZERO) {
        add_rows(base, &p, 0, scale_of(base, term) * term.bias, bias);
    }
}
