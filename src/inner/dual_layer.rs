//! What the dual form keeps of one layer: inner products of rows, and the terms of its corrections.

use super::tape::{NetworkSpec, Slot, Tape};
use crate::Scalar;
use crate::device::{ArenaPlan, GramView, OuterTerm, Region, Term};

/// Correction terms for each output block.
pub(super) type Terms = Vec<Vec<Term>>;

/// What one layer keeps.
pub(super) struct Layer<T> {
    /// Inner products with the earlier steps, by pass (the query's last): `[blocks, T, K, s * F * K]`.
    pub aa: Vec<Region>,
    pub dd: Vec<Region>,
    pub ea: Vec<Region>,
    pub zd: Vec<Region>,
    /// The single blocks of the steps' values and descended deltas, step by step.
    pub values: Vec<Region>,
    pub deltas: Vec<Region>,
    /// Terms by pass.
    pub forward: Vec<Terms>,
    pub query: Vec<Terms>,
    pub backward: Vec<Terms>,
    pub up: Vec<Terms>,
    pub down: Vec<Terms>,
    /// `-c[s][j]` at `s * steps + j`.
    pub scales: Vec<T>,
    /// The gradient of `c`, laid as `scales`.
    pub scale_gradient: Region,
    pub gradient_terms: Vec<OuterTerm<T>>,
    pub displacement_terms: Vec<OuterTerm<T>>,
}

impl<T: Scalar> Layer<T> {
    pub fn new(plan: &mut ArenaPlan, spec: &NetworkSpec, tape: &Tape, layer: usize) -> Self {
        let (steps, f, b) = (spec.steps, spec.forward_blocks, spec.backward_blocks());
        let first_e = spec.first_e_block(layer);
        let moves = spec.moves(layer);
        let slot = |i: usize| if i == steps { Slot::Query { after: steps } } else { Slot::Step(i) };
        let mut products = |blocks: usize, from: usize, to: usize| -> Vec<Region> {
            (0..=steps)
                .map(|i| {
                    let rows = blocks * spec.tasks * spec.rows(slot(i));
                    let exists = moves && (from..=to).contains(&i);
                    plan.take(if exists { rows } else { 0 }, i * f * spec.support_rows)
                })
                .collect()
        };
        let last_adjoint = if spec.second_order { steps.saturating_sub(1) } else { 0 };
        let aa = products(f, 1, steps);
        let dd = products(b, 1, steps);
        let ea = products(b - first_e, 1, last_adjoint);
        let zd = products(f, 1, last_adjoint);
        let scale_gradient = plan.take(1, (steps + 1) * steps);
        let blocks = |block: &dyn Fn(Slot, usize) -> Region| -> Vec<Region> {
            (0..steps * f).map(|i| block(Slot::Step(i / f), i % f)).collect()
        };
        let mut this = Self {
            values: blocks(&|slot, block| tape.values_block(layer, slot, block)),
            deltas: blocks(&|slot, block| tape.delta_block(layer, slot, block)),
            forward: Vec::new(),
            query: Vec::new(),
            backward: Vec::new(),
            up: Vec::new(),
            down: Vec::new(),
            scales: vec![T::ZERO; (steps + 1) * steps],
            scale_gradient,
            gradient_terms: gradient_terms(spec, tape, layer),
            displacement_terms: Vec::new(),
            aa,
            dd,
            ea,
            zd,
        };
        if moves {
            let descended = |s| (tape.descended(layer, Slot::Step(s)), tape.values(layer, Slot::Step(s)));
            this.displacement_terms = (0..steps)
                .map(descended)
                .map(|(p, q)| OuterTerm { p, q, with_bias: true, blocks: f, scale: T::ZERO })
                .collect();
        }
        let query_from = if spec.trace { 0 } else { steps };
        for i in 0..=steps {
            let history = |blocks, gram: &dyn Fn(usize, usize) -> GramView, plus_one, rows: &[Region]| -> Terms {
                let term = |b, n| Term { gram: gram(b, n), plus_one, scale: i * steps + n / f, rows: rows[n] };
                let count = if moves { i * f } else { 0 };
                (0..blocks).map(|b| (0..count).map(|n| term(b, n)).collect()).collect()
            };
            let view = |region: &Region, rows| {
                let region = *region;
                // A pass after `i` steps has `i` groups of columns, also where the region has room for more.
                let region = Region { width: i * f * spec.support_rows, ..region };
                move |block, n| block_view(spec, region, rows, block, n)
            };
            if i < steps {
                this.forward.push(history(f, &view(&this.aa[i], spec.support_rows), true, &this.deltas));
                this.backward.push(history(b, &view(&this.dd[i], spec.support_rows), false, &this.values));
            } else {
                this.backward.push(history(b, &view(&this.dd[i], spec.query_rows), false, &this.values));
            }
            if i >= query_from {
                this.query.push(history(f, &view(&this.aa[steps], spec.query_rows), true, &this.deltas));
            } else {
                this.query.push(Vec::new());
            }
        }
        if spec.second_order {
            for s in 0..steps {
                let up = this.up_terms(spec, tape, layer, s);
                let down = this.down_terms(spec, tape, layer, s);
                this.up.push(up);
                this.down.push(down);
            }
        }
        this
    }

    /// The cotangent of delta at step `s`: the product's own corrections and what later passes ask for.
    fn up_terms(&self, spec: &NetworkSpec, tape: &Tape, layer: usize, s: usize) -> Terms {
        let (steps, f, b) = (spec.steps, spec.forward_blocks, spec.backward_blocks());
        let first_e = spec.first_e_block(layer);
        let mut terms = vec![Vec::new(); b];
        if !spec.moves(layer) {
            return terms;
        }
        for (block, terms) in terms.iter_mut().enumerate() {
            if block >= first_e {
                for n in 0..s * f {
                    let gram = block_view(spec, self.ea[s], spec.support_rows, block - first_e, n);
                    terms.push(Term { gram, plus_one: false, scale: s * steps + n / f, rows: self.deltas[n] });
                }
            }
            if block >= f {
                continue;
            }
            for i in s + 1..=steps {
                let (slot, rows) = later(spec, i);
                let scale = i * steps + s;
                for other in 0..f {
                    let gram = transposed_view(spec, self.aa[i], rows, other, s * f + block);
                    terms.push(Term { gram, plus_one: true, scale, rows: tape.z_block(layer, slot, other) });
                }
                for other in first_e..if i < steps { b } else { 0 } {
                    let gram = transposed_view(spec, self.ea[i], rows, other - first_e, s * f + block);
                    terms.push(Term { gram, plus_one: false, scale, rows: tape.delta_block(layer, slot, other) });
                }
            }
        }
        terms
    }

    /// The cotangent of the layer's input at step `s`.
    fn down_terms(&self, spec: &NetworkSpec, tape: &Tape, layer: usize, s: usize) -> Terms {
        let (steps, f, b) = (spec.steps, spec.forward_blocks, spec.backward_blocks());
        let first_e = spec.first_e_block(layer);
        let mut terms = vec![Vec::new(); f];
        if !spec.moves(layer) {
            return terms;
        }
        for (block, terms) in terms.iter_mut().enumerate() {
            for n in 0..s * f {
                let gram = block_view(spec, self.zd[s], spec.support_rows, block, n);
                terms.push(Term { gram, plus_one: false, scale: s * steps + n / f, rows: self.values[n] });
            }
            for i in s + 1..=steps {
                let (slot, rows) = later(spec, i);
                let scale = i * steps + s;
                let zd = if i == steps { self.dd[i] } else { self.zd[i] };
                for other in 0..f {
                    let gram = transposed_view(spec, zd, rows, other, s * f + block);
                    terms.push(Term { gram, plus_one: false, scale, rows: tape.values_block(layer, slot, other) });
                }
                for other in first_e..if i < steps { b } else { 0 } {
                    let gram = transposed_view(spec, self.dd[i], rows, other, s * f + block);
                    let rows = tape.e_block(layer, slot, other - first_e, b - first_e);
                    terms.push(Term { gram, plus_one: false, scale, rows });
                }
            }
        }
        terms
    }
}

/// A later pass and its rows.
fn later(spec: &NetworkSpec, i: usize) -> (Slot, usize) {
    let slot = if i == spec.steps { Slot::Query { after: i } } else { Slot::Step(i) };
    (slot, spec.rows(slot))
}

/// Inner products of block `block` (with `rows` rows a task) with column block `n`.
fn block_view(spec: &NetworkSpec, region: Region, rows: usize, block: usize, n: usize) -> GramView {
    let width = region.width;
    GramView {
        offset: region.offset + block * spec.tasks * rows * width + n * spec.support_rows,
        task_stride: rows * width,
        row_stride: width,
        column_stride: 1,
    }
}

/// The same, seen from the column block.
fn transposed_view(spec: &NetworkSpec, region: Region, rows: usize, block: usize, n: usize) -> GramView {
    let view = block_view(spec, region, rows, block, n);
    GramView { row_stride: view.column_stride, column_stride: view.row_stride, ..view }
}

/// The rows whose outer products are the meta-gradient.
fn gradient_terms<T: Scalar>(spec: &NetworkSpec, tape: &Tape, layer: usize) -> Vec<OuterTerm<T>> {
    let query = Slot::Query { after: spec.steps };
    let scale = T::from_f64(spec.task_weight());
    let term = |p: Region, q: Region, with_bias| OuterTerm { p, q, with_bias, blocks: 1, scale };
    let mut terms = vec![term(tape.descended(layer, query), tape.values(layer, query), true)];
    if spec.second_order && spec.steps > 0 {
        terms.push(term(tape.all_z(layer), tape.all_values(layer), true));
        if spec.first_e_block(layer) == 0 {
            terms.push(term(tape.all_delta(layer), tape.all_e(layer), false));
        } else if spec.has_extra_blocks() {
            for s in (0..spec.steps).map(Slot::Step) {
                for block in spec.forward_blocks..spec.backward_blocks() {
                    let blocks = spec.backward_blocks() - spec.forward_blocks;
                    let e = tape.e_block(layer, s, block - spec.forward_blocks, blocks);
                    terms.push(term(tape.delta_block(layer, s, block), e, false));
                }
            }
        }
    }
    terms
}
