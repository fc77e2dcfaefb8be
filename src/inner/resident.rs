//! The resident form: the whole inner loop is one operation, and the device keeps each task near its processor meanwhile.

use std::cell::Cell;

use super::learned::Learned;
use super::network::{LoopRows, Network, Rates};
use super::plan::Nearby;
use super::tape::NetworkSpec;
use crate::device::{ArenaPlan, Device, Region, Resident, ResidentGradient};
use crate::meta::{Algorithm, InnerConfig, RateKind};
use crate::{Error, Result, Scalar};

/// The regions.
pub struct ResidentForm<T> {
    /// In the rates' layout.
    rates: Region,
    /// Inputs and targets.
    support: [Region; 2],
    query: [Region; 2],
    /// For each task, gradients of the parameters and of the rates; and the sum of the latter.
    gradients: Region,
    rate_gradients: Region,
    pub rate_gradient: Region,
    /// For each rate the index of the first, where all are one.
    first: Vec<u32>,
    /// Room for the gradient of the rates on the host.
    host: Cell<Vec<T>>,
}

/// Layers at most: a kernel's arguments hold their widths.
pub(crate) const LAYERS: usize = 16;

const NOTHING: Region = Region { offset: 0, rows: 0, width: 0 };

/// The operation as far as the network's shape goes: what it costs, and what it takes.
pub(super) fn outline<T: Scalar>(spec: &NetworkSpec) -> Resident<'_, T> {
    let whole = spec.whole.as_ref();
    let kind = match whole.map_or(Algorithm::Maml, |whole| whole.algorithm) {
        Algorithm::Maml | Algorithm::Anil => ResidentGradient::Exact,
        Algorithm::FirstOrderMaml => ResidentGradient::FirstOrder,
        Algorithm::Reptile => ResidentGradient::Displacement,
    };
    Resident {
        mlp: &spec.mlp,
        loss: whole.map_or(crate::objective::Loss::Mse, |whole| whole.loss),
        tasks: spec.tasks,
        shots: spec.support_rows,
        queries: spec.query_rows,
        steps: spec.steps,
        first_moving: spec.first_moving,
        kind,
        momentum: T::from_f64(whole.map_or(0.0, |whole| whole.momentum)),
        decay: T::from_f64(whole.map_or(0.0, |whole| whole.weight_decay)),
        parameters: NOTHING,
        rates: NOTHING,
        per_parameter: spec.rates == RateKind::PerParameter,
        support: [NOTHING; 2],
        query: [NOTHING; 2],
        scale: T::from_f64(spec.task_weight()),
        task_loss: (!spec.trace).then_some(NOTHING),
        gradient: (!spec.trace).then_some([NOTHING; 2]),
        rate_gradient: spec.rate_gradient.then_some([NOTHING; 2]),
        adapted: None,
        trace: spec.trace.then_some([NOTHING; 2]),
    }
}

/// Whether there is a resident form.
///
/// # Errors
/// Something that it has not, named.
pub fn check<T: Scalar>(specs: &[NetworkSpec], inner: &InnerConfig, nearby: &Nearby) -> Result<()> {
    let spec = &specs[0];
    let missing = [
        (spec.whole.is_none(), "the video GAN"),
        (!inner.optimizer.keeps_rank(), "Adam in the inner loop"),
        (inner.rates.transforms_rows(), "a meta-optimizer that transforms rows"),
        (inner.minibatch.is_some(), "minibatches"),
        (inner.multi_step, "a multi-step loss"),
        (spec.mlp.has_batch_norm(), "batch normalisation"),
    ];
    if let Some((_, what)) = missing.into_iter().find(|(missing, _)| *missing) {
        let expected = "another form (or auto): the resident one does supervised losses after gradient descent on whole \
                        support sets";
        return Err(Error::invalid("strategy", format!("resident with {what}"), expected));
    }
    if spec.layers() > LAYERS {
        let expected = format!("at most {LAYERS} layers, or another form (or auto)");
        return Err(Error::invalid("strategy", format!("resident with {} layers", spec.layers()), expected));
    }
    let bytes = outline::<T>(spec).task_bytes();
    if bytes > nearby.bytes {
        let problem = format!("resident with {bytes} bytes a task");
        let expected = format!("at most {} bytes, of a smaller network or fewer steps or rows; or auto", nearby.bytes);
        return Err(Error::invalid("strategy", problem, expected));
    }
    Ok(())
}

impl<T: Scalar> ResidentForm<T> {
    pub fn new(plan: &mut ArenaPlan, spec: &NetworkSpec) -> Self {
        let (tasks, parameters) = (spec.tasks, spec.mlp.parameter_count());
        let rates = match spec.rates {
            RateKind::PerParameter => parameters,
            _ => spec.steps * spec.layers(),
        };
        let learned = if spec.rate_gradient { rates } else { 0 };
        let mut rows =
            |rows: usize| [spec.mlp.inputs(), spec.mlp.outputs()].map(|width| plan.take(tasks * rows, width));
        Self {
            support: rows(spec.support_rows),
            query: rows(spec.query_rows),
            rates: plan.take(1, rates),
            gradients: plan.take(if spec.trace { 0 } else { tasks }, parameters),
            rate_gradients: plan.take(tasks, learned),
            rate_gradient: plan.take(1, learned),
            first: vec![0; if Learned::is_single(spec) { learned } else { 0 }],
            host: Cell::new(vec![T::ZERO; learned]),
        }
    }

    /// Where rates that the device learns lie; a single one has room of its own.
    pub fn learned(&self, plan: &mut ArenaPlan, spec: &NetworkSpec) -> Learned {
        if Learned::is_single(spec) {
            return Learned::new(plan, spec);
        }
        Learned { rates: self.rates, gradient: self.rate_gradient }
    }

    pub fn set_rates<D: Device<T>>(
        &self,
        spec: &NetworkSpec,
        device: &D,
        arena: &mut D::Arena,
        rates: &Rates<T>,
        learned: Option<&Learned>,
    ) {
        match rates {
            Rates::PerLayerPerStep { rates, .. } | Rates::PerParameter(rates) => {
                device.upload(arena, self.rates, rates);
            }
            Rates::Learned => {
                if let Some(learned) = learned.filter(|_| Learned::is_single(spec)) {
                    device.gather(arena, learned.rates, &self.first, Learned::by_ones(self.rates));
                }
            }
        }
    }

    /// The operation that adapts, and does nothing else.
    fn operation<'a>(&self, net: &'a Network<T>) -> Resident<'a, T> {
        Resident {
            parameters: net.parameters,
            rates: self.rates,
            support: self.support,
            query: self.query,
            task_loss: None,
            gradient: None,
            rate_gradient: None,
            trace: None,
            ..outline(&net.spec)
        }
    }

    /// One meta-step, or a trace.
    pub fn run<D: Device<T>>(
        &self,
        net: &Network<T>,
        device: &D,
        arena: &mut D::Arena,
        rows: &LoopRows<'_, T>,
        task_loss: Region,
        trace: Option<[Region; 2]>,
    ) {
        for (to, from) in self.support.into_iter().chain(self.query).zip(rows.support.into_iter().chain(rows.query)) {
            LoopRows::load(device, arena, from, to);
        }
        let spec = &net.spec;
        // Reptile trains nothing else, so it computes it all the same.
        let displacement = outline::<T>(spec).kind == ResidentGradient::Displacement;
        let wanted = trace.is_none() && (net.wants_gradient || displacement);
        let operation = Resident {
            task_loss: trace.is_none().then_some(task_loss),
            gradient: wanted.then_some([net.gradient, self.gradients]),
            rate_gradient: spec.rate_gradient.then_some([self.rate_gradient, self.rate_gradients]),
            trace,
            ..self.operation(net)
        };
        device.resident(arena, &operation);
    }

    pub fn rate_gradient<D: Device<T>>(&self, device: &D, arena: &mut D::Arena, out: &mut [T]) {
        let mut host = self.host.take();
        device.download(arena, self.rate_gradient, &mut host);
        out.iter_mut().zip(&host).for_each(|(o, g)| *o += *g);
        self.host.set(host);
    }

    /// Adapts once more, to that task alone.
    pub fn adapted<D: Device<T>>(
        &self,
        net: &Network<T>,
        device: &D,
        arena: &mut D::Arena,
        task: usize,
        out: &mut [T],
    ) {
        let spec = &net.spec;
        let rows = |region: Region, count: usize| region.rows(task * count, count);
        let operation = Resident {
            tasks: 1,
            support: self.support.map(|region| rows(region, spec.support_rows)),
            query: self.query.map(|region| rows(region, spec.query_rows)),
            adapted: Some(net.gradient),
            ..self.operation(net)
        };
        device.resident(arena, &operation);
        device.download(arena, net.gradient, out);
    }
}
