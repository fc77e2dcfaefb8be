//! Supervised losses of many tasks at once, in the layout of [`super::lanes`]: `[rows, outputs]` vectors of one number a task.

use super::supervised::{curvature_by_element, delta_by_element, term};
use crate::model::Activation;
use crate::objective::Loss;
use crate::scalar::Scalar;

/// A loss over so many rows and outputs, behind an activation.
#[derive(Clone, Copy)]
pub(super) struct LanesLoss {
    pub loss: Loss,
    pub activation: Activation,
    pub rows: usize,
    pub outputs: usize,
}

/// Numbers in a vector at most.
pub(super) const MOST: usize = 16;

/// One row's softmax, task by task: the largest logit, the sum of the exponentials relative to it, the sum of the targets.
struct Softmax<T> {
    top: [T; MOST],
    total: [T; MOST],
    mass: [T; MOST],
}

impl<T: Scalar> Softmax<T> {
    #[inline(always)]
    fn of(p: &[T], y: &[T]) -> Self {
        let mut this = Self { top: [T::ZERO; MOST], total: [T::ZERO; MOST], mass: [T::ZERO; MOST] };
        this.top[..T::LANES].copy_from_slice(&p[..T::LANES]);
        for p in p.chunks(T::LANES) {
            this.top.iter_mut().zip(p).for_each(|(top, p)| *top = top.max(*p));
        }
        for (p, y) in p.chunks(T::LANES).zip(y.chunks(T::LANES)) {
            for i in 0..p.len() {
                this.total[i] += (p[i] - this.top[i]).exp();
                this.mass[i] += y[i];
            }
        }
        this
    }

    /// The probability of logit `p` in task `i`.
    #[inline(always)]
    fn probability(&self, i: usize, p: T) -> T {
        (p - self.top[i]).exp() / self.total[i]
    }
}

impl LanesLoss {
    /// Elements a task's mean goes over.
    fn count(&self) -> f64 {
        (self.rows * self.outputs) as f64
    }

    /// Numbers in a row.
    fn row<T: Scalar>(&self) -> usize {
        self.outputs * T::LANES
    }

    /// dL/dz.
    pub fn delta<T: Scalar>(&self, p: &[T], y: &[T], delta: &mut [T]) {
        let act = self.activation;
        pulp::Arch::new().dispatch(|| {
            if self.loss != Loss::CrossEntropy {
                delta_by_element(self.loss, act, self.count(), (p, y), delta);
                return;
            }
            let (row, scale) = (self.row::<T>(), T::from_f64(1.0 / self.rows as f64));
            for ((p, y), delta) in p.chunks(row).zip(y.chunks(row)).zip(delta.chunks_mut(row)) {
                let softmax = Softmax::of(p, y);
                let outputs = p.chunks(T::LANES).zip(y.chunks(T::LANES)).zip(delta.chunks_mut(T::LANES));
                for ((p, y), delta) in outputs {
                    for i in 0..p.len() {
                        let q = softmax.probability(i, p[i]);
                        delta[i] = scale * (q * softmax.mass[i] - y[i]) * act.derivative(p[i]);
                    }
                }
            }
        });
    }

    /// `z += act'(a) L''(a) e`.
    pub fn curvature<T: Scalar>(&self, p: &[T], y: &[T], e: &[T], z: &mut [T]) {
        let act = self.activation;
        pulp::Arch::new().dispatch(|| {
            if self.loss != Loss::CrossEntropy {
                curvature_by_element(self.loss, act, self.count(), (p, e), z);
                return;
            }
            let (row, scale) = (self.row::<T>(), T::from_f64(1.0 / self.rows as f64));
            for (((p, y), e), z) in p.chunks(row).zip(y.chunks(row)).zip(e.chunks(row)).zip(z.chunks_mut(row)) {
                let softmax = Softmax::of(p, y);
                let mut inner = [T::ZERO; MOST];
                for (p, e) in p.chunks(T::LANES).zip(e.chunks(T::LANES)) {
                    for i in 0..p.len() {
                        inner[i] += softmax.probability(i, p[i]) * e[i];
                    }
                }
                for ((p, e), z) in p.chunks(T::LANES).zip(e.chunks(T::LANES)).zip(z.chunks_mut(T::LANES)) {
                    for i in 0..p.len() {
                        let q = softmax.probability(i, p[i]);
                        z[i] += scale * softmax.mass[i] * q * (e[i] - inner[i]) * act.derivative(p[i]);
                    }
                }
            }
        });
    }

    /// The loss of each task, to `losses`.
    pub fn value<T: Scalar>(&self, p: &[T], y: &[T], losses: &mut [T]) {
        let mut sums = [0.0; MOST];
        let count = pulp::Arch::new().dispatch(|| {
            let row = self.row::<T>();
            for (p, y) in p.chunks(row).zip(y.chunks(row)) {
                let softmax = (self.loss == Loss::CrossEntropy).then(|| Softmax::of(p, y));
                for (p, y) in p.chunks(T::LANES).zip(y.chunks(T::LANES)) {
                    for i in 0..p.len() {
                        let value = match &softmax {
                            Some(softmax) => y[i] * (softmax.top[i] + softmax.total[i].ln() - p[i]),
                            None => term(self.loss, p[i], y[i]),
                        };
                        sums[i] += value.to_f64();
                    }
                }
            }
            if self.loss == Loss::CrossEntropy { self.rows as f64 } else { self.count() }
        });
        losses.iter_mut().zip(sums).for_each(|(loss, sum)| *loss = T::from_f64(sum / count));
    }
}
