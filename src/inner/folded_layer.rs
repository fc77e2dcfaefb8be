//! What a folded layer keeps: coordinates, images and inner products, and the terms of all that is made of them.

use super::dual_layer::{Terms, transpose};
use super::plan::MAX_DUAL_STEPS;
use super::tape::{NetworkSpec, Slot, Tape};
use crate::device::{ArenaPlan, GramView, Linear, OuterTerm, Region, Term};
use crate::meta::{Algorithm, InnerConfig, RateKind};
use crate::model::Activation;
use crate::objective::Loss;
use crate::{Error, Result, Scalar};

/// Checks that the last layer of these networks can be folded.
///
/// # Errors
/// It cannot.
pub fn check(specs: &[NetworkSpec], inner: &InnerConfig) -> Result<()> {
    let spec = &specs[0];
    let last = spec.layers() - 1;
    let is = |expected: Algorithm, loss: Loss| spec.whole.is_some_and(|w| w.algorithm == expected && w.loss == loss);
    let missing = [
        (spec.whole.is_none(), "the video GAN"),
        (!is(Algorithm::Maml, Loss::Mse), "another algorithm than maml, or another loss than mse"),
        (spec.mlp.activations()[last] != Activation::Linear, "an activation of the outputs"),
        (spec.mlp.batch_norm(last).is_some(), "batch normalisation of the outputs"),
        (last == 0, "a single layer"),
        (!(1..=MAX_DUAL_STEPS).contains(&inner.steps), "that many inner steps, or none"),
        (!inner.optimizer.keeps_rank(), "Adam in the inner loop"),
        (inner.weight_decay != 0.0, "weight decay"),
        (inner.rates.transforms_rows() || inner.rates == RateKind::PerParameter, "that meta-optimizer"),
        (inner.learn_rates, "learned rates"),
        (inner.minibatch.is_some(), "minibatches"),
        (inner.multi_step, "a multi-step loss"),
    ];
    if let Some((_, what)) = missing.into_iter().find(|(missing, _)| *missing) {
        let expected = "another form (or auto): the folded one does exact MAML of a mean square over linear outputs, by gradient \
                        descent with given rates on whole support sets";
        return Err(Error::invalid("strategy", format!("folded with {what}"), expected));
    }
    Ok(())
}

/// The factors of a folded layer's corrections: 1, -1, 1 / c, then `-c coefficients[i][j]` for i up to S.
pub(super) const ONE: usize = 0;
pub(super) const MINUS_ONE: usize = 1;
pub(super) const PER_CURVATURE: usize = 2;
const COEFFICIENTS: usize = 3;

/// Where the factor of step `j`'s rows lies in a pass after `i` steps.
pub(super) fn coefficient(spec: &NetworkSpec, i: usize, j: usize) -> usize {
    COEFFICIENTS + i * spec.steps + j
}

/// How many factors there are.
pub(super) fn factors(spec: &NetworkSpec) -> usize {
    coefficient(spec, spec.steps + 1, 0)
}

/// One region for each of the inner steps, one after the other.
#[derive(Clone, Debug)]
pub(super) struct Steps {
    pub all: Region,
    pub of: Vec<Region>,
}

impl Steps {
    fn new(plan: &mut ArenaPlan, steps: usize, rows: usize, width: usize) -> Self {
        let all = plan.take(steps * rows, width);
        Self { all, of: (0..steps).map(|step| all.rows(step * rows, rows)).collect() }
    }
}

/// The regions. Rows are `[T, K, .]` for a step's and `[T, Kq, .]` for the query's.
#[derive(Debug)]
pub(super) struct Layout {
    /// `c W0^T W0`, `[in, in]`, with a bias that means nothing.
    pub square: Linear,
    /// `[T, K, K]` and `[T, Kq, Kq]`: unit matrices. The former are the first step's own residuals' coordinates.
    pub query_units: Region,
    /// Rows of one 1: for the support, for the query.
    pub ones: [Region; 2],
    /// A bias of zeros, as wide as the layer's output or input.
    pub no_bias: Region,
    /// Coordinates of each step's residuals: by the columns of W0, by the first step's residuals.
    pub a: Steps,
    pub sigma: Steps,
    /// Those of the cotangents of each step's deltas: by W0, by the first step's residuals, by the query's.
    pub cotangent_a: Steps,
    pub cotangent_sigma: Steps,
    pub cotangent_kappa: Steps,
    /// `delta W0`, and inner products of the deltas with the first step's residuals and with the query's.
    pub images: Steps,
    pub first: Steps,
    pub query: Steps,
    /// Inner products with the steps before: of inputs, of residuals with deltas (the first step's left out), of cotangents of
    /// the input's gradient with inputs, of the deltas' cotangents with deltas.
    pub aa: Vec<Region>,
    pub dd: Vec<Region>,
    pub ea: Vec<Region>,
    pub zd: Vec<Region>,
    /// The query's: inner products of inputs, coordinates of its outputs, the image, the residuals' inner products with the
    /// first step's deltas.
    pub query_aa: Region,
    pub query_a: Region,
    pub query_sigma: Region,
    pub query_image: Region,
    pub query_first: Region,
    /// Inner products as they come.
    pub products: Region,
    /// The rows that the first step's deltas, and the query's, are multiplied with in the meta-gradient, and the values of the
    /// column that stands for the bias.
    pub outer: [Region; 2],
    pub outer_bias: [Region; 2],
    /// What is to be multiplied with W0 to be the rest of it: `[in, in]`, and `[in]` for the bias.
    pub inner_gradient: Linear,
    /// As wide as the layer's output: room.
    pub row: Region,
    /// One task's residuals, `[S, K, out]`, for its adapted weights.
    pub residuals: Steps,
}

impl Layout {
    pub fn new(plan: &mut ArenaPlan, spec: &NetworkSpec) -> Self {
        let (steps, support, query) = (spec.steps, spec.support_rows, spec.query_rows);
        let (rows, query_rows) = (spec.tasks * support, spec.tasks * query);
        let layer = spec.layers() - 1;
        let (m, n) = (spec.mlp.widths()[layer], spec.mlp.widths()[layer + 1]);
        let mut square = || {
            let (weight, bias) = (plan.take(m, m).offset, plan.take(1, m).offset);
            Linear { weight, bias, task_stride: 0, inputs: m, outputs: m }
        };
        let (square, inner_gradient) = (square(), square());
        let mut history = |first: usize, least: usize| -> Vec<Region> {
            (0..steps).map(|s| plan.take(if s < least { 0 } else { rows }, s.saturating_sub(first) * support)).collect()
        };
        let (aa, dd, ea, zd) = (history(0, 1), history(1, 2), history(0, 1), history(0, 1));
        let mut of_steps = |width| Steps::new(plan, steps, rows, width);
        let [a, sigma] = [m, support].map(&mut of_steps);
        let [cotangent_a, cotangent_sigma, cotangent_kappa] = [m, support, query].map(&mut of_steps);
        let [images, first, of_query] = [m, support, query].map(&mut of_steps);
        Self {
            square,
            inner_gradient,
            query_units: plan.take(query_rows, query),
            ones: [rows, query_rows].map(|rows| plan.take(rows, 1)),
            no_bias: plan.take(1, m.max(n)),
            a,
            sigma,
            cotangent_a,
            cotangent_sigma,
            cotangent_kappa,
            images,
            first,
            query: of_query,
            aa,
            dd,
            ea,
            zd,
            query_aa: plan.take(query_rows, steps * support),
            query_a: plan.take(query_rows, m),
            query_sigma: plan.take(query_rows, support),
            query_image: plan.take(query_rows, m),
            query_first: plan.take(query_rows, support),
            products: plan.take(rows.max(query_rows), support),
            outer: [rows, query_rows].map(|rows| plan.take(rows, m)),
            outer_bias: [rows, query_rows].map(|rows| plan.take(rows, 1)),
            row: plan.take(1, n),
            residuals: Steps::new(plan, steps, support, n),
        }
    }
}

/// The terms of each pass's corrections: lists of one output block.
#[derive(Debug, Default)]
pub(super) struct Lists {
    /// By step: coordinates of the residuals, their image, the gradient of the input.
    pub a: Vec<Terms>,
    pub sigma: Vec<Terms>,
    pub image: Vec<Terms>,
    pub backward: Vec<Terms>,
    /// The query's: coordinates of its outputs, these, the gradient of its input.
    pub query_a: Terms,
    pub query_sigma: Terms,
    pub query: Terms,
    pub query_backward: Terms,
    /// By step: coordinates of the deltas' cotangents, the cotangent of the input.
    pub up_a: Vec<Terms>,
    pub up_sigma: Vec<Terms>,
    pub up_kappa: Vec<Terms>,
    pub down: Vec<Terms>,
    /// The meta-gradient's rows and biases.
    pub outer: [Terms; 2],
    pub outer_bias: [Terms; 2],
    /// Inner products divided by c, for the support's rows and for the query's.
    pub per_curvature: [Terms; 2],
}

/// `[rows, count]` of column block `n` of a matrix for each task; and the same transposed.
fn view(region: Region, rows: usize, count: usize, n: usize) -> GramView {
    let Region { offset, width, .. } = region;
    GramView { offset: offset + n * count, task_stride: rows * width, row_stride: width, column_stride: 1 }
}

fn transposed(region: Region, rows: usize, count: usize, n: usize) -> GramView {
    transpose(view(region, rows, count, n))
}

impl Lists {
    pub fn new(spec: &NetworkSpec, tape: &Tape, kept: &Layout) -> Self {
        let (steps, k, kq) = (spec.steps, spec.support_rows, spec.query_rows);
        let layer = spec.layers() - 1;
        let query = Slot::Query { after: steps };
        let values: Vec<Region> = (0..steps).map(|s| tape.values(layer, Slot::Step(s))).collect();
        let e: Vec<Region> = (0..steps).map(|s| tape.e(layer, Slot::Step(s))).collect();
        let delta = tape.delta(layer, Slot::Step(0));
        let term = |gram, scale, rows| Term { gram, bias: None, scale, rows };
        // With the column that stands for the bias.
        let biased = |gram, scale, rows| Term { gram, bias: Some(ONE), scale, rows };
        let of = |i, j| coefficient(spec, i, j);
        let plain = |region| view(region, k, k, 0);
        let aa = |i: usize, j| view(kept.aa[i], k, k, j);
        let ea = |i: usize, j| view(kept.ea[i], k, k, j);
        let aa_of_query = |j| view(kept.query_aa, kq, k, j);
        let dd = |i: usize, j: usize| match j.checked_sub(1) {
            None => (kept.first.of[i], 0),
            Some(j) => (kept.dd[i], j),
        };
        let mut this = Self::default();
        for s in 0..steps {
            let minus = term(plain(kept.sigma.of[0]), MINUS_ONE, values[0]);
            let a = (1..s).map(|j| biased(aa(s, j), of(s, j), kept.a.of[j]));
            this.a.push(vec![std::iter::once(minus).chain(a).collect()]);
            this.sigma.push(vec![(0..s).map(|j| biased(aa(s, j), of(s, j), kept.sigma.of[j])).collect()]);
            this.image.push(vec![vec![term(plain(kept.sigma.of[s]), ONE, kept.images.of[0])]]);
            let back = |j: usize| {
                let (region, n) = dd(s, j);
                term(view(region, k, k, n), of(s, j), values[j])
            };
            this.backward.push(vec![(0..s).map(back).collect()]);
        }
        this.query_a = vec![(1..steps).map(|j| biased(aa_of_query(j), of(steps, j), kept.a.of[j])).collect()];
        this.query_sigma = vec![(0..steps).map(|j| biased(aa_of_query(j), of(steps, j), kept.sigma.of[j])).collect()];
        this.query = vec![vec![term(view(kept.query_sigma, kq, k, 0), PER_CURVATURE, delta)]];
        let back = |j: usize| term(transposed(kept.query.of[j], k, kq, 0), of(steps, j), values[j]);
        this.query_backward = vec![(0..steps).map(back).collect()];
        for s in 0..steps {
            let own = |j: usize| ea(s, j);
            let later = |i: usize| (transposed(kept.aa[i], k, k, s), transposed(kept.ea[i], k, k, s));
            let lists = |first: usize, cotangents: &Steps, rows: &Steps| -> Vec<Term> {
                let own = (first..s).map(|j| term(own(j), of(s, j), rows.of[j]));
                let later = (s + 1..steps).flat_map(|i| {
                    let (aa, ea) = later(i);
                    [biased(aa, of(i, s), cotangents.of[i]), term(ea, of(i, s), rows.of[i])]
                });
                own.chain(later).collect()
            };
            this.up_a.push(vec![lists(1, &kept.cotangent_a, &kept.a)]);
            this.up_sigma.push(vec![lists(0, &kept.cotangent_sigma, &kept.sigma)]);
            let kappa = (s + 1..steps).map(|i| biased(later(i).0, of(i, s), kept.cotangent_kappa.of[i]));
            let of_query = biased(transposed(kept.query_aa, kq, k, s), of(steps, s), kept.query_units);
            this.up_kappa.push(vec![kappa.chain([of_query]).collect()]);
            let mut down = vec![
                term(plain(kept.cotangent_sigma.of[s]), ONE, kept.images.of[0]),
                term(view(kept.cotangent_kappa.of[s], k, kq, 0), ONE, kept.query_image),
            ];
            down.extend((0..s).map(|j| term(view(kept.zd[s], k, k, j), of(s, j), values[j])));
            for i in s + 1..steps {
                let (region, n) = dd(i, s);
                down.push(term(transposed(kept.zd[i], k, k, s), of(i, s), values[i]));
                down.push(term(transposed(region, k, k, n), of(i, s), e[i]));
            }
            down.push(term(view(kept.query.of[s], k, kq, 0), of(steps, s), tape.values(layer, query)));
            this.down.push(vec![down]);
        }
        let by_first = |s: usize| transposed(kept.cotangent_sigma.of[s], k, k, 0);
        let by_query = |s: usize| transposed(kept.cotangent_kappa.of[s], k, kq, 0);
        let of_step = |s| [term(by_first(s), ONE, values[s]), term(transposed(kept.sigma.of[s], k, k, 0), ONE, e[s])];
        this.outer[0] = vec![(0..steps).flat_map(of_step).collect()];
        this.outer[1] = vec![(0..steps).map(|s| term(by_query(s), ONE, values[s])).collect()];
        this.outer_bias[0] = vec![(0..steps).map(|s| term(by_first(s), ONE, kept.ones[0])).collect()];
        this.outer_bias[1] = vec![(0..steps).map(|s| term(by_query(s), ONE, kept.ones[0])).collect()];
        let [support, of_query] = [spec.tasks * k, spec.tasks * kq].map(|rows| Region { rows, ..kept.products });
        this.per_curvature = [
            vec![vec![term(plain(kept.sigma.of[0]), PER_CURVATURE, support)]],
            vec![vec![term(view(kept.query_units, kq, kq, 0), PER_CURVATURE, of_query)]],
        ];
        this
    }

    /// Coefficients that a list has at most.
    pub fn largest(&self, spec: &NetworkSpec) -> usize {
        let of_query = [&self.query_a, &self.query_sigma, &self.query, &self.query_backward, &self.per_curvature[1]];
        let steps = [&self.a, &self.sigma, &self.image, &self.backward, &self.up_a, &self.up_sigma, &self.up_kappa];
        let all = steps.into_iter().chain([&self.down]).flatten().chain(of_query);
        let all = all.chain(&self.outer).chain(&self.outer_bias).chain(&self.per_curvature);
        let rows = |terms: &Terms| terms.iter().flatten().map(|term| term.rows.rows).sum::<usize>();
        all.map(rows).max().unwrap_or(0) * spec.support_rows.max(spec.query_rows)
    }
}

/// The meta-gradient's sums over rows: those to be multiplied with W0, the wide ones, and the latter's biases.
#[derive(Debug)]
pub(super) struct Sums<T> {
    pub inner: Vec<OuterTerm<T>>,
    pub wide: Vec<OuterTerm<T>>,
    pub bias: Vec<OuterTerm<T>>,
}

impl<T: Scalar> Sums<T> {
    /// With a layer's curvature c.
    pub fn new(spec: &NetworkSpec, tape: &Tape, kept: &Layout, curvature: f64) -> Self {
        let (layer, weight) = (spec.layers() - 1, spec.task_weight());
        let term = |p, q, bias, scale| OuterTerm { p, q, bias, blocks: 1, scale: T::from_f64(scale), share: None };
        let deltas = [tape.delta(layer, Slot::Step(0)), tape.own(layer, Slot::Query { after: spec.steps })];
        let with = |rows: [Region; 2]| -> Vec<_> {
            deltas.into_iter().zip(rows).map(|(p, q)| term(p, q, T::ZERO, weight)).collect()
        };
        Self {
            inner: vec![
                term(kept.cotangent_a.all, tape.all_values(layer), T::ONE, curvature * weight),
                term(kept.a.all, tape.all_e(layer), T::ZERO, curvature * weight),
            ],
            wide: with(kept.outer),
            bias: with(kept.outer_bias),
        }
    }
}
