//! A device that keeps account of what another one does.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::work::{Counted, Work};
use super::{
    AdamRateGradient, AdamUpdate, AdjointBackward, AdjointForward, AdversarialCurvature, AdversarialLoss, ColumnScale,
    ColumnScaleAdjoint, CostFactors, Device, GradientCheck, Gram, GramInner, InnerUpdate, LinearBackward,
    LinearForward, LowRank, Normalise, NormaliseAdjoint, NormaliseJacobian, OuterProduct, OuterStep, PixelCurvature,
    PixelLoss, RateTables, RateTablesGradient, Region, Resident, ReverseAdam, ReverseUpdate, Submitted,
    SupervisedCurvature, SupervisedLoss,
};
use crate::Result;
use crate::scalar::Scalar;

/// All operations of one kind.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Stage {
    /// How many.
    pub calls: u64,
    /// Their flop and bytes.
    pub work: Work,
    /// Wall-clock time, in seconds. Of `n` lanes that run at once, each is counted as an `n`th: the times of the stages add
    /// up to that of the whole, as far as the lanes take equally long.
    pub seconds: f64,
}

/// Passes every operation on to the device inside, counts its flop and bytes, and measures its time.
///
/// The results are the same bit by bit. Copies share one account. Each operation is waited for, also on a device that would
/// go on meanwhile, such as a GPU: there the times hold a launch and a wait each.
#[derive(Clone, Debug)]
pub struct Explained<D> {
    inner: D,
    stages: Arc<Mutex<BTreeMap<&'static str, Stage>>>,
}

impl<D> Explained<D> {
    /// Keeps account of `inner`.
    pub fn new(inner: D) -> Self {
        Self { inner, stages: Arc::default() }
    }

    /// What was done since the last call, by the operations' names (those of [`Device`]'s methods).
    pub fn take(&self) -> BTreeMap<&'static str, Stage> {
        std::mem::take(&mut *self.stages())
    }

    fn stages(&self) -> MutexGuard<'_, BTreeMap<&'static str, Stage>> {
        self.stages.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn add(&self, name: &'static str, Stage { calls, work, seconds }: Stage) {
        let mut stages = self.stages();
        let stage = stages.entry(name).or_default();
        *stage = Stage { calls: stage.calls + calls, work: stage.work + work, seconds: stage.seconds + seconds };
    }

    fn record(&self, name: &'static str, work: Work, time: Duration) {
        self.add(name, Stage { calls: 1, work, seconds: time.as_secs_f64() });
    }

    /// Carries an operation out, and waits for it.
    fn operate<T: Scalar>(
        &self,
        name: &'static str,
        work: Work,
        arena: &mut D::Arena,
        operation: impl FnOnce(&D, &mut D::Arena),
    ) where
        D: Device<T>,
    {
        let start = Instant::now();
        operation(&self.inner, arena);
        // A download waits for what came before; an arena in which something was done has an element.
        if work.bytes > 0 {
            self.inner.download(arena, Region { offset: 0, rows: 1, width: 1 }, &mut [T::ZERO]);
        }
        self.record(name, work, start.elapsed());
    }
}

/// Methods whose only argument knows its work.
macro_rules! pass_on {
    ($($name:ident($operation:ty);)*) => {
        $(fn $name(&self, arena: &mut Self::Arena, operation: &$operation) {
            let work = Counted::<T>::work(operation);
            self.operate(stringify!($name), work, arena, |inner, arena| inner.$name(arena, operation));
        })*
    };
}

impl<T: Scalar, D: Device<T> + Clone> Device<T> for Explained<D> {
    type Arena = D::Arena;
    type Graph = Submitted<T>;

    fn free_bytes(&self) -> Option<u64> {
        self.inner.free_bytes()
    }
    fn arena(&self, elements: usize) -> Result<Self::Arena> {
        self.inner.arena(elements)
    }
    fn label(&self) -> String {
        self.inner.label()
    }
    fn check(&self) -> Result<()> {
        self.inner.check()
    }

    fn upload(&self, arena: &mut Self::Arena, to: Region, from: &[T]) {
        let work = Work::new::<T>(0, 2 * to.len());
        self.operate("upload", work, arena, |inner, arena| inner.upload(arena, to, from));
    }
    fn download(&self, arena: &Self::Arena, from: Region, to: &mut [T]) {
        let start = Instant::now();
        self.inner.download(arena, from, to);
        self.record("download", Work::new::<T>(0, 2 * from.len()), start.elapsed());
    }
    fn add_host(&self, arena: &mut Self::Arena, to: Region, from: &[T]) {
        let work = Work::new::<T>(0, 3 * to.len());
        self.operate("add_host", work, arena, |inner, arena| inner.add_host(arena, to, from));
    }
    fn discard(&self, arena: &mut Self::Arena, regions: &[Region]) {
        self.inner.discard(arena, regions);
    }
    fn fill(&self, arena: &mut Self::Arena, to: Region, value: T) {
        let work = Work::new::<T>(0, to.len());
        self.operate("fill", work, arena, |inner, arena| inner.fill(arena, to, value));
    }
    fn copy(&self, arena: &mut Self::Arena, from: Region, to: Region) {
        let work = Work::new::<T>(0, 2 * to.len());
        self.operate("copy", work, arena, |inner, arena| inner.copy(arena, from, to));
    }
    fn gather(&self, arena: &mut Self::Arena, from: Region, indices: &[u32], to: Region) {
        let work = Work::new::<T>(0, 2 * to.len()) + Work::new::<u32>(0, indices.len());
        self.operate("gather", work, arena, |inner, arena| inner.gather(arena, from, indices, to));
    }
    fn sum_rows(&self, arena: &mut Self::Arena, from: Region, scale: T, to: Region, accumulate: bool) {
        let work = Work::new::<T>(from.len(), from.len() + if accumulate { 2 } else { 1 } * to.len());
        let sum = |inner: &D, arena: &mut D::Arena| inner.sum_rows(arena, from, scale, to, accumulate);
        self.operate("sum_rows", work, arena, sum);
    }
    fn add_scaled(&self, arena: &mut Self::Arena, from: Region, scale: T, to: Region) {
        let work = Work::new::<T>(0, from.len() + 2 * to.len());
        self.operate("add_scaled", work, arena, |inner, arena| inner.add_scaled(arena, from, scale, to));
    }

    pass_on! {
        linear_forward(LinearForward<'_>);
        linear_backward(LinearBackward<'_>);
        adjoint_forward(AdjointForward<'_>);
        adjoint_backward(AdjointBackward<'_>);
        gram(Gram<'_>);
        gram_inner(GramInner);
        low_rank(LowRank<'_>);
        column_scale(ColumnScale);
        column_scale_adjoint(ColumnScaleAdjoint<T>);
        normalise(Normalise);
        normalise_jacobian(NormaliseJacobian);
        normalise_adjoint(NormaliseAdjoint);
        rate_tables(RateTables);
        rate_tables_gradient(RateTablesGradient);
        outer_product(OuterProduct<'_, T>);
        inner_update(InnerUpdate<T>);
        reverse_update(ReverseUpdate<T>);
        adam_update(AdamUpdate<T>);
        adam_rate_gradient(AdamRateGradient<T>);
        reverse_adam(ReverseAdam<T>);
        resident(Resident<'_, T>);
        supervised_loss(SupervisedLoss);
        supervised_curvature(SupervisedCurvature);
        adversarial_loss(AdversarialLoss<T>);
        adversarial_curvature(AdversarialCurvature<T>);
        pixel_loss(PixelLoss<T>);
        pixel_curvature(PixelCurvature<T>);
        gradient_check(GradientCheck);
        outer_step(OuterStep);
    }

    fn submit(
        &self,
        arena: &mut Self::Arena,
        graph: &mut Submitted<T>,
        results: &[Region],
        work: impl FnOnce(&Self, &mut Self::Arena),
    ) {
        graph.carry_out(self, arena, results, work);
    }
    fn results<'g>(&self, graph: &'g mut Submitted<T>) -> &'g [T] {
        graph.results()
    }

    fn for_each_lane<L: Send>(&self, lanes: &mut [L], work: impl Fn(&Self, &mut L) + Sync) {
        let at_once = lanes.len().min(self.inner.lanes()).max(1) as f64;
        self.inner.for_each_lane(lanes, |device, lane| {
            // An account of its own, so that the lanes do not wait for each other.
            let own = Self::new(device.clone());
            work(&own, lane);
            for (name, stage) in own.take() {
                self.add(name, Stage { seconds: stage.seconds / at_once, ..stage });
            }
        });
    }
    fn lanes(&self) -> usize {
        self.inner.lanes()
    }
    fn cost_factors(&self) -> CostFactors {
        self.inner.cost_factors()
    }
    fn resident_share(&self, operation: &Resident<'_, T>) -> f64 {
        self.inner.resident_share(operation)
    }
    fn learns_rates(&self) -> bool {
        self.inner.learns_rates()
    }
    fn resident_bytes(&self) -> usize {
        self.inner.resident_bytes()
    }
    fn resident_tasks(&self) -> usize {
        self.inner.resident_tasks()
    }
}
