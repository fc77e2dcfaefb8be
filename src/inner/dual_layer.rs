//! What the dual form keeps of one layer: inner products of rows, and the terms of its corrections.

use super::coefficients::Coefficients;
use super::tape::{NetworkSpec, Slot, Tape};
use super::transform::Transform;
use crate::Scalar;
use crate::device::{ArenaPlan, GramView, OuterTerm, RateTables, Region, Term};
use crate::meta::Side;

/// Correction terms for each output block.
pub(super) type Terms = Vec<Vec<Term>>;

/// The blocks of corrections that these are: none where none has a term.
pub(super) fn blocks_of(terms: &[Vec<Term>]) -> &[Vec<Term>] {
    if terms.iter().any(|block| !block.is_empty()) { terms } else { &[] }
}

/// What one layer keeps.
pub(super) struct Layer<T> {
    /// Backward blocks from this one on have an e cotangent.
    first_e: usize,
    /// Inner products with the earlier steps, by [`pass`]: `[blocks, T, K, s * F * K]`.
    pub aa: Vec<Region>,
    pub dd: Vec<Region>,
    pub ea: Vec<Region>,
    pub zd: Vec<Region>,
    /// The single blocks of the rows that the steps' updates take, step by step.
    pub values: Vec<Region>,
    pub deltas: Vec<Region>,
    /// Terms by pass; the query's forward ones by the number of steps before it.
    pub forward: Vec<Terms>,
    pub query: Vec<Terms>,
    pub backward: Vec<Terms>,
    pub up: Vec<Terms>,
    pub down: Vec<Terms>,
    /// The cotangents of the rows that a step's update takes, by side, where phi transforms them.
    pub descended: [Vec<Terms>; 2],
    /// The inner optimizer in numbers.
    pub coefficients: Coefficients,
    /// The meta-gradient, and the pass that each term belongs to.
    pub gradient_terms: Vec<OuterTerm<T>>,
    pub gradient_passes: Vec<Slot>,
    pub displacement_terms: Vec<OuterTerm<T>>,
}

impl<T: Scalar> Layer<T> {
    pub fn new(
        plan: &mut ArenaPlan,
        spec: &NetworkSpec,
        tape: &Tape,
        transform: Option<&Transform<T>>,
        layer: usize,
    ) -> Self {
        let (steps, f, b) = (spec.steps, spec.forward_blocks, spec.backward_blocks());
        let first_e = spec.first_e_block(layer);
        let moves = spec.moves(layer);
        let mut products = |blocks: usize, exists: &dyn Fn(Slot) -> bool| -> Vec<Region> {
            (0..steps)
                .map(Slot::Step)
                .chain(spec.queries())
                .map(|slot| {
                    let rows = blocks * spec.tasks * spec.rows(slot);
                    let exists = moves && slot.history() > 0 && exists(slot);
                    plan.take(if exists { rows } else { 0 }, slot.history() * f * spec.support_rows)
                })
                .collect()
        };
        let has_adjoint = |slot| spec.second_order && matches!(slot, Slot::Step(_));
        let aa = products(f, &|_| true);
        let dd = products(b, &|_| true);
        let ea = products(b - first_e, &has_adjoint);
        let zd = products(f, &has_adjoint);
        let blocks = |side| -> Vec<Region> {
            (0..steps * f).map(|i| tape.descended_block(layer, Slot::Step(i / f), side, i % f)).collect()
        };
        let gradient_terms = gradient_terms(spec, tape, layer);
        let mut this = Self {
            first_e,
            values: blocks(Side::Values),
            deltas: blocks(Side::Delta),
            forward: Vec::new(),
            query: Vec::new(),
            backward: Vec::new(),
            up: Vec::new(),
            down: Vec::new(),
            descended: [Vec::new(), Vec::new()],
            coefficients: Coefficients::new(steps),
            gradient_passes: gradient_terms.iter().map(|(pass, _)| *pass).collect(),
            gradient_terms: gradient_terms.into_iter().map(|(_, term)| term).collect(),
            displacement_terms: Vec::new(),
            aa,
            dd,
            ea,
            zd,
        };
        if moves {
            let rows = |s, side| tape.descended(layer, Slot::Step(s), side);
            this.displacement_terms = (0..steps)
                .map(|s| (rows(s, Side::Delta), rows(s, Side::Values)))
                .map(|(p, q)| OuterTerm { p, q, bias: T::ONE, blocks: f, scale: T::ZERO, share: None })
                .collect();
        }
        // What the steps before a pass add to its products with the weights: `region` holds their coefficients.
        let history = |slot: Slot, blocks, region: Region, plus_one: bool, rows: &[Region]| -> Terms {
            let i = slot.history();
            // A pass after `i` steps has `i` groups of columns, also where the region has room for more.
            let region = Region { width: i * f * spec.support_rows, ..region };
            let term = |b, n| {
                let gram = block_view(spec, region, spec.rows(slot), b, n);
                let bias = plus_one.then(|| bias_index(steps, n / f));
                Term { gram, bias, scale: i * steps + n / f, rows: rows[n] }
            };
            let count = if moves { i * f } else { 0 };
            (0..blocks).map(|b| (0..count).map(|n| term(b, n)).collect()).collect()
        };
        for slot in (0..steps).map(Slot::Step) {
            let i = pass(spec, slot);
            this.forward.push(history(slot, f, this.aa[i], true, &this.deltas));
        }
        for slot in (0..steps).map(Slot::Step).chain(spec.queries()) {
            let i = pass(spec, slot);
            this.backward.push(history(slot, b, this.dd[i], false, &this.values));
        }
        for slot in (0..=steps).map(|after| Slot::Query { after }) {
            let exists = spec.trace || spec.has_query(slot.history());
            let terms = exists.then(|| history(slot, f, this.aa[pass(spec, slot)], true, &this.deltas));
            this.query.push(terms.unwrap_or_default());
        }
        for s in 0..steps {
            let [mut up, mut down] = [b, f].map(|blocks| vec![Vec::new(); blocks]);
            if moves && (spec.second_order || spec.pulls_rows_back()) {
                let later = [this.later_deltas(spec, tape, layer, s), this.later_values(spec, tape, layer, s)];
                let later = match transform {
                    Some(transform) => {
                        for (terms, later) in this.descended.iter_mut().zip(later) {
                            terms.push(later);
                        }
                        // What became of these when they were pulled back is added as it is.
                        Side::BOTH.map(|side| transform.pulled_back(spec, layer, side, RateTables::one(steps)))
                    }
                    None => later,
                };
                this.own_history(spec, s, &mut up, &mut down);
                let [deltas, values] = later;
                up.iter_mut().zip(deltas).for_each(|(terms, later)| terms.extend(later));
                down.iter_mut().zip(values).for_each(|(terms, later)| terms.extend(later));
            }
            if spec.second_order {
                this.up.push(up);
                this.down.push(down);
            }
        }
        this
    }

    /// What the steps before `s` add to the adjoint pass's products with the weights.
    fn own_history(&self, spec: &NetworkSpec, s: usize, up: &mut Terms, down: &mut Terms) {
        let (steps, f, first_e, rows) = (spec.steps, spec.forward_blocks, self.first_e, spec.support_rows);
        for n in 0..s * f {
            let scale = s * steps + n / f;
            for (block, terms) in up.iter_mut().enumerate().skip(first_e) {
                let gram = block_view(spec, self.ea[s], rows, block - first_e, n);
                terms.push(Term { gram, bias: None, scale, rows: self.deltas[n] });
            }
            for (block, terms) in down.iter_mut().enumerate() {
                let gram = block_view(spec, self.zd[s], rows, block, n);
                terms.push(Term { gram, bias: None, scale, rows: self.values[n] });
            }
        }
    }

    /// The passes after step `s` that ask something of it.
    fn later_passes(spec: &NetworkSpec, s: usize) -> impl Iterator<Item = Slot> + use<T> {
        let steps = if spec.second_order { s + 1..spec.steps } else { 0..0 };
        steps.map(Slot::Step).chain(spec.queries().filter(move |slot| slot.history() > s))
    }

    /// The cotangent of the deltas that step `s` descends: what later passes ask for.
    fn later_deltas(&self, spec: &NetworkSpec, tape: &Tape, layer: usize, s: usize) -> Terms {
        let (steps, f, b, first_e) = (spec.steps, spec.forward_blocks, spec.backward_blocks(), self.first_e);
        let mut terms = vec![Vec::new(); f];
        for (block, terms) in terms.iter_mut().enumerate() {
            for slot in Self::later_passes(spec, s) {
                let (i, rows, scale) = (pass(spec, slot), spec.rows(slot), later_scale(spec, slot, s));
                for other in 0..f {
                    let gram = transposed_view(spec, self.aa[i], rows, other, s * f + block);
                    let bias = Some(bias_index(steps, s));
                    terms.push(Term { gram, bias, scale, rows: tape.z_block(layer, slot, other) });
                }
                for other in first_e..if i < steps { b } else { 0 } {
                    let gram = transposed_view(spec, self.ea[i], rows, other - first_e, s * f + block);
                    terms.push(Term { gram, bias: None, scale, rows: tape.delta_block(layer, slot, other) });
                }
            }
        }
        terms
    }

    /// The cotangent of the values that step `s` descends.
    fn later_values(&self, spec: &NetworkSpec, tape: &Tape, layer: usize, s: usize) -> Terms {
        let (steps, f, b, first_e) = (spec.steps, spec.forward_blocks, spec.backward_blocks(), self.first_e);
        let mut terms = vec![Vec::new(); f];
        for (block, terms) in terms.iter_mut().enumerate() {
            for slot in Self::later_passes(spec, s) {
                let (i, rows, scale) = (pass(spec, slot), spec.rows(slot), later_scale(spec, slot, s));
                let zd = if i >= steps { self.dd[i] } else { self.zd[i] };
                for other in 0..f {
                    let gram = transposed_view(spec, zd, rows, other, s * f + block);
                    terms.push(Term { gram, bias: None, scale, rows: tape.values_block(layer, slot, other) });
                }
                for other in first_e..if i < steps { b } else { 0 } {
                    let gram = transposed_view(spec, self.dd[i], rows, other, s * f + block);
                    let rows = tape.e_block(layer, slot, other - first_e, b - first_e);
                    terms.push(Term { gram, bias: None, scale, rows });
                }
            }
        }
        terms
    }
}

/// Numbers of one layer's table.
pub(super) fn table_width(spec: &NetworkSpec) -> usize {
    RateTables::width(spec.steps, spec.query_passes)
}

/// Where the value of the bias's column at step `s` lies in a layer's table.
pub(super) fn bias_index(steps: usize, s: usize) -> usize {
    RateTables::bias(steps) + s
}

/// Where the share lies there that weight decay has left of the weights after `history` steps, if it has taken any.
pub(super) fn share_index(spec: &NetworkSpec, layer: usize, history: usize) -> Option<usize> {
    let decayed = spec.decays && spec.moves(layer) && history > 0;
    decayed.then(|| RateTables::shares(spec.steps) + history)
}

/// Where `-w c[i][s]` lies there, for a query pass after `i` steps whose loss has the weight `w`.
pub(super) fn query_index(spec: &NetworkSpec, query: Slot, s: usize) -> usize {
    RateTables::queries(spec.steps) + (pass(spec, query) - spec.steps) * spec.steps + s
}

/// Where the scale of what a later pass asks of step `s` lies there.
fn later_scale(spec: &NetworkSpec, slot: Slot, s: usize) -> usize {
    match slot {
        Slot::Step(i) => i * spec.steps + s,
        Slot::Query { .. } => query_index(spec, slot, s),
    }
}

/// The index of a pass among those of a layer: the steps, then the query's, the last first.
pub(super) fn pass(spec: &NetworkSpec, slot: Slot) -> usize {
    match slot {
        Slot::Step(s) => s,
        // Where they are not gone back from, the query passes take turns.
        Slot::Query { after } => spec.steps + (spec.steps - after) % spec.query_passes,
    }
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
    transpose(block_view(spec, region, rows, block, n))
}

/// The same matrices, rows for columns.
pub(super) fn transpose(view: GramView) -> GramView {
    GramView { row_stride: view.column_stride, column_stride: view.row_stride, ..view }
}

/// The rows whose outer products are the meta-gradient, and the pass each belongs to. Where the steps have one scale, as
/// they have without weight decay, they make one term.
fn gradient_terms<T: Scalar>(spec: &NetworkSpec, tape: &Tape, layer: usize) -> Vec<(Slot, OuterTerm<T>)> {
    let scale = T::from_f64(spec.task_weight());
    let term = |p: Region, q: Region, bias| OuterTerm { p, q, bias, blocks: 1, scale, share: None };
    let one = spec.bias_column(layer);
    let of_query = |slot| (slot, term(tape.own(layer, slot), tape.values(layer, slot), one));
    let mut terms: Vec<_> = spec.queries().map(of_query).collect();
    if !spec.second_order || spec.steps == 0 {
        return terms;
    }
    // The first layer that moves takes steady rows, of which there is one step's.
    let whole = spec.is_steady(layer) || !(spec.decays || spec.steady);
    if whole {
        terms.push((Slot::Step(0), term(tape.all_z(layer), tape.all_values(layer), one)));
        if spec.first_e_block(layer) == 0 {
            terms.push((Slot::Step(0), term(tape.all_delta(layer), tape.all_e(layer), T::ZERO)));
        }
    }
    let (first_e, blocks) = (spec.first_e_block(layer), spec.backward_blocks());
    for s in 0..spec.steps {
        let slot = Slot::Step(s);
        if !whole {
            terms.push((slot, term(tape.z(layer, slot), tape.values(layer, slot), one)));
        }
        if !whole || first_e > 0 {
            for block in first_e..blocks {
                let e = tape.e_block(layer, slot, block - first_e, blocks - first_e);
                terms.push((slot, term(tape.delta_block(layer, slot, block), e, T::ZERO)));
            }
        }
    }
    terms
}
