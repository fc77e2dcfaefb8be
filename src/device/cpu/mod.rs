//! The CPU: matrix products by kernels of our own where there is AVX-512 and through the `gemm` crate elsewhere, threads
//! through `rayon`, everything else vectorised with `pulp`.
//!
//! A product is cut into tiles that fit the L2 cache; the low-rank corrections, the bias, the activation and its
//! derivative are applied to a tile right after it was computed. The order of every sum depends on shapes and on the
//! number of threads only, so results are the same from run to run.

mod adversarial;
mod aligned;
mod avx512;
mod column_scale;
mod elementwise;
mod inner_adam;
mod lanes;
mod lanes_loss;
mod linear;
mod low_rank;
mod matrix;
mod memory;
mod multiply;
mod normalise;
mod outer;
mod outer_product;
mod packed;
mod panels;
mod pixel;
mod product;
mod rates;
mod resident;
mod resident_adjoint;
mod scratch;
mod supervised;
mod transpose;
mod update;

use std::sync::Arc;

use rayon::prelude::*;

use self::aligned::Aligned;
use self::panels::PanelCache;
use super::region::check_access;
use super::{
    AdamRateGradient, AdamUpdate, AdjointBackward, AdjointForward, AdversarialCurvature, AdversarialLoss, ColumnScale,
    ColumnScaleAdjoint, Device, GradientCheck, Gram, GramInner, InnerUpdate, LinearBackward, LinearForward, LowRank,
    Normalise, NormaliseAdjoint, NormaliseJacobian, OuterProduct, OuterStep, PixelCurvature, PixelLoss, RateTables,
    RateTablesGradient, Region, Resident, ReverseAdam, ReverseUpdate, Submitted, SupervisedCurvature, SupervisedLoss,
};
use crate::scalar::Scalar;
use crate::{Error, Result};

/// The CPU device: a pool of threads.
#[derive(Clone, Debug)]
pub struct CpuDevice {
    pool: Arc<rayon::ThreadPool>,
    /// Operations run on the calling thread alone (inside a lane).
    serial: bool,
    /// Bytes that it is allowed at most.
    memory_limit: Option<u64>,
}

impl CpuDevice {
    /// The same device, on which a learner may take no more than so many bytes.
    #[must_use]
    pub fn with_memory_limit(self, bytes: u64) -> Self {
        Self { memory_limit: Some(bytes), ..self }
    }

    /// A device of `threads` threads; 0 takes as many as the machine has cores.
    ///
    /// # Errors
    /// The operating system refuses to start them.
    pub fn new(threads: usize) -> Result<Self> {
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .thread_name(|i| format!("innerloop-{i}"))
            .build()
            .map_err(|e| Error::invalid("threads", format!("{threads}: {e}"), "a number the machine can start"))?;
        Ok(Self { pool: Arc::new(pool), serial: false, memory_limit: None })
    }

    /// Number of threads.
    pub fn threads(&self) -> usize {
        if self.serial { 1 } else { self.pool.current_num_threads() }
    }

    /// Runs `work` on one of the device's own threads: what it starts there does not wait for a thread to wake.
    pub fn within<R: Send>(&self, work: impl FnOnce() -> R + Send) -> R {
        self.pool.install(work)
    }

    /// Runs `job(0..jobs)`, in parallel unless there is but one thread or one job.
    fn run(&self, jobs: usize, job: impl Fn(usize) + Sync) {
        if self.threads() == 1 || jobs <= 1 {
            (0..jobs).for_each(job);
        } else {
            self.pool.install(|| (0..jobs).into_par_iter().with_max_len(1).for_each(&job));
        }
    }

    /// Runs `job(start, end)` over pieces of `0..items`; `cost` is the work of one item, in flop or bytes.
    fn run_ranges(&self, items: usize, cost: usize, job: impl Fn(usize, usize) + Sync) {
        /// Work below this is not worth waking another thread for.
        const GRAIN: usize = 1 << 15;
        let pieces = (items.saturating_mul(cost) / GRAIN).clamp(1, 4 * self.threads()).min(items.max(1));
        let pieces = if self.threads() == 1 { 1 } else { pieces };
        self.run(pieces, |i| job(items * i / pieces, items * (i + 1) / pieces));
    }
}

/// Memory of the CPU device.
#[derive(Debug)]
pub struct CpuArena<T> {
    values: Aligned<T>,
    panels: PanelCache<T>,
}

impl<T: Scalar> CpuArena<T> {
    /// The elements of a region.
    pub fn slice(&self, region: Region) -> &[T] {
        &self.values[region.offset..region.offset + region.len()]
    }

    /// The elements of a region, to change.
    pub fn slice_mut(&mut self, region: Region) -> &mut [T] {
        self.panels.written(&region);
        &mut self.values[region.offset..region.offset + region.len()]
    }

    /// The arena as a pointer that tiles on several threads can share.
    ///
    /// The exclusive borrow is what makes writing through it sound, as long as the tiles are disjoint and nothing read is
    /// written: `reads` and `writes` are checked for that here, once an operation.
    fn shared(&mut self, reads: &[Region], writes: &[Region]) -> Base<T> {
        check_access(self.values.len(), reads, writes);
        writes.iter().for_each(|region| self.panels.written(region));
        Base(self.values.as_mut_ptr())
    }
}

/// The arena's first element, shared by the threads that work on one operation (see [`CpuArena::shared`]).
#[derive(Clone, Copy, Debug)]
struct Base<T>(*mut T);

// SAFETY: the threads of one operation write disjoint tiles and read what none of them writes.
unsafe impl<T: Send> Send for Base<T> {}
// SAFETY: as above.
unsafe impl<T: Sync> Sync for Base<T> {}

impl<T: Scalar> Base<T> {
    /// Pointer to element `offset`; the caller keeps inside the regions it declared to [`CpuArena::shared`].
    fn at(self, offset: usize) -> *mut T {
        self.0.wrapping_add(offset)
    }

    /// # Safety
    /// The elements lie in a declared region, and nobody writes them meanwhile.
    unsafe fn slice<'a>(self, offset: usize, len: usize) -> &'a [T] {
        // SAFETY: the caller's promise.
        unsafe { std::slice::from_raw_parts(self.at(offset), len) }
    }

    /// # Safety
    /// The elements lie in a declared written region, and nobody else touches them meanwhile.
    unsafe fn slice_mut<'a>(self, offset: usize, len: usize) -> &'a mut [T] {
        // SAFETY: the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.at(offset), len) }
    }
}

impl<T: Scalar> Device<T> for CpuDevice {
    type Arena = CpuArena<T>;
    type Graph = Submitted<T>;

    fn label(&self) -> String {
        format!("{} threads", self.threads())
    }

    fn free_bytes(&self) -> Option<u64> {
        [memory::free_bytes(), self.memory_limit].into_iter().flatten().min()
    }

    fn arena(&self, elements: usize) -> Result<Self::Arena> {
        let values = Aligned::zeros(elements).map_err(|_| {
            let gigabytes = elements as f64 * size_of::<T>() as f64 / 1e9;
            Error::invalid("memory", format!("{gigabytes:.1} GB cannot be had"), "a smaller meta-batch or network")
        })?;
        Ok(CpuArena { values, panels: PanelCache::default() })
    }

    fn upload(&self, arena: &mut Self::Arena, to: Region, from: &[T]) {
        arena.slice_mut(to).copy_from_slice(from);
    }
    fn download(&self, arena: &Self::Arena, from: Region, to: &mut [T]) {
        to.copy_from_slice(arena.slice(from));
    }
    fn add_host(&self, arena: &mut Self::Arena, to: Region, from: &[T]) {
        arena.slice_mut(to).iter_mut().zip(from).for_each(|(t, f)| *t += *f);
    }
    fn fill(&self, arena: &mut Self::Arena, to: Region, value: T) {
        arena.slice_mut(to).fill(value);
    }
    fn copy(&self, arena: &mut Self::Arena, from: Region, to: Region) {
        assert_eq!(from.len(), to.len());
        arena.panels.written(&to);
        arena.values.copy_within(from.offset..from.offset + from.len(), to.offset);
    }
    fn gather(&self, arena: &mut Self::Arena, from: Region, indices: &[u32], to: Region) {
        assert_eq!(indices.len(), to.rows);
        for (row, index) in indices.iter().enumerate() {
            self.copy(arena, from.rows(*index as usize, 1), to.rows(row, 1));
        }
    }

    fn linear_forward(&self, arena: &mut Self::Arena, operation: &LinearForward<'_>) {
        linear::linear_forward(self, arena, operation);
    }
    fn linear_backward(&self, arena: &mut Self::Arena, operation: &LinearBackward<'_>) {
        linear::linear_backward(self, arena, operation);
    }
    fn adjoint_forward(&self, arena: &mut Self::Arena, operation: &AdjointForward<'_>) {
        linear::adjoint_forward(self, arena, operation);
    }
    fn adjoint_backward(&self, arena: &mut Self::Arena, operation: &AdjointBackward<'_>) {
        linear::adjoint_backward(self, arena, operation);
    }
    fn gram(&self, arena: &mut Self::Arena, operation: &Gram<'_>) {
        low_rank::gram(self, arena, operation);
    }
    fn gram_inner(&self, arena: &mut Self::Arena, operation: &GramInner) {
        low_rank::gram_inner(arena, operation);
    }
    fn low_rank(&self, arena: &mut Self::Arena, operation: &LowRank<'_>) {
        linear::low_rank(self, arena, operation);
    }
    fn column_scale(&self, arena: &mut Self::Arena, operation: &ColumnScale) {
        column_scale::forward(self, arena, operation);
    }
    fn column_scale_adjoint(&self, arena: &mut Self::Arena, operation: &ColumnScaleAdjoint<T>) {
        column_scale::adjoint(self, arena, operation);
    }
    fn normalise(&self, arena: &mut Self::Arena, operation: &Normalise) {
        normalise::forward(self, arena, operation);
    }
    fn normalise_jacobian(&self, arena: &mut Self::Arena, operation: &NormaliseJacobian) {
        normalise::jacobian(self, arena, operation);
    }
    fn normalise_adjoint(&self, arena: &mut Self::Arena, operation: &NormaliseAdjoint) {
        normalise::adjoint(self, arena, operation);
    }
    fn rate_tables(&self, arena: &mut Self::Arena, operation: &RateTables) {
        rates::tables(arena, operation);
    }
    fn rate_tables_gradient(&self, arena: &mut Self::Arena, operation: &RateTablesGradient) {
        rates::gradient(arena, operation);
    }
    fn outer_product(&self, arena: &mut Self::Arena, operation: &OuterProduct<'_, T>) {
        outer_product::outer_product(self, arena, operation);
    }

    fn inner_update(&self, arena: &mut Self::Arena, operation: &InnerUpdate<T>) {
        update::inner_update(self, arena, operation);
    }
    fn reverse_update(&self, arena: &mut Self::Arena, operation: &ReverseUpdate<T>) {
        update::reverse_update(self, arena, operation);
    }
    fn adam_update(&self, arena: &mut Self::Arena, operation: &AdamUpdate<T>) {
        inner_adam::update(self, arena, operation);
    }
    fn adam_rate_gradient(&self, arena: &mut Self::Arena, operation: &AdamRateGradient<T>) {
        inner_adam::rates_of_step(self, arena, operation);
    }
    fn reverse_adam(&self, arena: &mut Self::Arena, operation: &ReverseAdam<T>) {
        inner_adam::reverse(self, arena, operation);
    }
    fn sum_rows(&self, arena: &mut Self::Arena, from: Region, scale: T, to: Region, accumulate: bool) {
        elementwise::sum_rows(self, arena, from, scale, to, accumulate);
    }
    fn add_scaled(&self, arena: &mut Self::Arena, from: Region, scale: T, to: Region) {
        elementwise::add_scaled(self, arena, from, scale, to);
    }

    fn supervised_loss(&self, arena: &mut Self::Arena, operation: &SupervisedLoss) {
        supervised::loss(self, arena, operation);
    }
    fn supervised_curvature(&self, arena: &mut Self::Arena, operation: &SupervisedCurvature) {
        supervised::curvature(self, arena, operation);
    }
    fn adversarial_loss(&self, arena: &mut Self::Arena, operation: &AdversarialLoss<T>) {
        adversarial::loss(arena, operation);
    }
    fn adversarial_curvature(&self, arena: &mut Self::Arena, operation: &AdversarialCurvature<T>) {
        adversarial::curvature(arena, operation);
    }
    fn pixel_loss(&self, arena: &mut Self::Arena, operation: &PixelLoss<T>) {
        pixel::loss(self, arena, operation);
    }
    fn pixel_curvature(&self, arena: &mut Self::Arena, operation: &PixelCurvature<T>) {
        pixel::curvature(self, arena, operation);
    }

    fn resident(&self, arena: &mut Self::Arena, operation: &Resident<'_, T>) {
        resident::resident(self, arena, operation);
    }
    fn resident_bytes(&self) -> usize {
        resident::TASK_BYTES
    }
    fn resident_tasks(&self) -> usize {
        T::LANES
    }

    fn gradient_check(&self, arena: &mut Self::Arena, operation: &GradientCheck) {
        outer::gradient_check(arena, operation);
    }
    fn outer_step(&self, arena: &mut Self::Arena, operation: &OuterStep) {
        outer::outer_step(self, arena, operation);
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
        if let [lane] = lanes {
            // Inside the pool an operation's threads are woken without a detour over the calling thread.
            self.pool.install(|| work(self, lane));
        } else {
            let serial = Self { serial: true, ..self.clone() };
            self.pool.install(|| lanes.par_iter_mut().with_max_len(1).for_each(|lane| work(&serial, lane)));
        }
    }
    fn lanes(&self) -> usize {
        self.threads()
    }
}
