//! NVIDIA GPUs: every operation is a kernel of the crate's own (`kernels/*.cu`), launched by the module of the same name.
//!
//! [`CudaDevice`] is generic over a [`Driver`]: [`GpuDriver`] drives a real GPU (feature `cuda`), [`EmulatedDriver`] runs
//! the same kernels on the CPU to test them and their launchers (feature `emulate`).
//!
//! Operations are asynchronous: only downloads and [`Device::results`] wait. Work that is submitted again and again,
//! such as a meta-step, is one CUDA graph. An operation that fails is remembered, those that follow
//! do nothing, and [`Device::check`] tells. Results are the same from run to run.

mod arena;
mod array;
mod chain;
mod column_scale;
mod driver;
#[cfg(feature = "emulate")]
mod emulated;
mod ended;
mod factors;
mod finish;
#[cfg(feature = "cuda")]
mod gpu;
#[cfg(feature = "cuda")]
mod gpu_graph;
mod graph;
mod hopper;
mod hopper_copied;
mod hopper_outer;
mod inner_adam;
mod inner_update;
mod linear;
mod loss;
mod low_rank;
mod narrow;
mod narrow_mma;
mod normalise;
mod optimizer;
mod outer_product;
mod pack;
mod pool;
mod rates;
mod reduction;
mod resident;
mod settle;
mod tensor;
mod thin;
mod tiles;
mod tune;

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

pub use arena::CudaArena;
pub use driver::{ArgumentPiece, Driver, GraphStep, GraphWork, Kernel, PackedMatrix, TensorMap, WrittenMatrices};
#[cfg(feature = "emulate")]
pub use emulated::{EmulatedDriver, EmulatedGraph, EmulatedMemory};
#[cfg(feature = "cuda")]
pub use gpu::GpuDriver;
#[cfg(feature = "cuda")]
pub use gpu_graph::GpuGraph;
pub use graph::CudaGraph;
pub use hopper::Warpgroups;
pub use tiles::{Fastest, Tiles};
pub use tune::{Tuning, tune};

use super::{
    AdamRateGradient, AdamUpdate, AdjointBackward, AdjointForward, AdversarialCurvature, AdversarialLoss, ColumnScale,
    ColumnScaleAdjoint, CostFactors, Device, GradientCheck, Gram, GramInner, InnerUpdate, LinearBackward,
    LinearForward, LowRank, MatrixPrecision, Normalise, NormaliseAdjoint, NormaliseJacobian, OuterProduct, OuterStep,
    PixelCurvature, PixelLoss, RateTables, RateTablesGradient, Region, Resident, ReverseAdam, ReverseUpdate,
    SupervisedCurvature, SupervisedLoss,
};
use crate::model::Activation;
use crate::{Error, Result};

/// A GPU, or an emulated one.
#[derive(Clone)]
pub struct CudaDevice<D> {
    driver: D,
    precision: MatrixPrecision,
    /// Which kernels are the fastest, where that was measured.
    tiles: Option<Arc<tiles::Index>>,
    warpgroups: Warpgroups,
    /// Whether narrow layers go to one launch.
    chains: bool,
    /// The first failure since the last [`Device::check`].
    failure: Arc<Mutex<Option<Error>>>,
}

#[cfg(feature = "cuda")]
impl CudaDevice<GpuDriver> {
    /// GPU number `ordinal`.
    ///
    /// # Errors
    /// No driver, no such GPU, or one that the kernels were not compiled for.
    pub fn new(ordinal: usize) -> Result<Self> {
        Ok(Self::with_driver(GpuDriver::open(ordinal)?))
    }
}

#[cfg(feature = "emulate")]
impl CudaDevice<EmulatedDriver> {
    /// An emulated GPU; see [`EmulatedDriver::new`].
    pub fn emulated(seed: u64) -> Self {
        Self::with_driver(EmulatedDriver::new(seed))
    }
}

impl<D: Driver> CudaDevice<D> {
    /// A device over a driver.
    pub fn with_driver(driver: D) -> Self {
        let tiles = Tiles::kept(&driver.model());
        let (precision, warpgroups) = (MatrixPrecision::F32, Warpgroups::default());
        Self { driver, precision, tiles: None, warpgroups, chains: true, failure: Arc::default() }
            .with_tiles(tiles.as_ref())
    }

    /// The same device with large matrix products in another precision; [`MatrixPrecision::F32`] at first.
    #[must_use]
    pub fn with_precision(self, precision: MatrixPrecision) -> Self {
        Self { precision, ..self }
    }

    /// The same device with other measurements of which kernels are the fastest, or with none; at first those that are kept
    /// for its model, if any.
    #[must_use]
    pub fn with_tiles(self, tiles: Option<&Tiles>) -> Self {
        Self { tiles: tiles.map(|tiles| Arc::new(tiles::Index::new(tiles))), ..self }
    }

    /// The same device with or without narrow layers one after the other in one launch, where they can be: with products for
    /// Hopper's warpgroups, in `bf16`. With, at first.
    #[must_use]
    pub fn with_chains(self, chains: bool) -> Self {
        Self { chains, ..self }
    }

    /// What its maker calls it.
    pub fn model(&self) -> String {
        self.driver.model()
    }

    /// What it rounds the operands of large matrix products to.
    pub fn precision(&self) -> MatrixPrecision {
        self.precision
    }

    /// What the driver calls the device.
    pub fn name(&self) -> String {
        self.driver.name()
    }

    fn failure(&self) -> MutexGuard<'_, Option<Error>> {
        self.failure.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Does `work` unless something failed before; remembers its failure. `what` was done, in words.
    fn attempt(&self, what: fmt::Arguments<'_>, work: impl FnOnce() -> Result<(), String>) {
        let mut failure = self.failure();
        if failure.is_none()
            && let Err(problem) = work()
        {
            *failure = Some(Error::Device { device: self.driver.name(), action: what.to_string(), problem });
        }
    }

    /// Launches a kernel whose accesses [`CudaArena::check`] has allowed; `shapes` are for the error.
    fn launch<A: Arguments>(
        &self,
        arena: &CudaArena<D>,
        kernel: Kernel,
        grid: [usize; 3],
        arguments: &A,
        shapes: fmt::Arguments<'_>,
    ) {
        self.launch_with(arena, kernel, grid, 0, arguments, shapes);
    }

    /// The same, with so many bytes of shared memory for each block beside what the kernel declares.
    fn launch_with<A: Arguments>(
        &self,
        arena: &CudaArena<D>,
        kernel: Kernel,
        grid: [usize; 3],
        shared: u32,
        arguments: &A,
        shapes: fmt::Arguments<'_>,
    ) {
        assert!(A::KERNELS.contains(&kernel), "{kernel:?} takes other arguments");
        if grid.contains(&0) {
            return;
        }
        let [x, y, z] = grid;
        let what = format_args!("kernel {} over a grid of {x} x {y} x {z} blocks ({shapes})", kernel.name());
        let mut recording = arena.recording();
        self.attempt(what, || {
            // The driver's limits; a grid beyond them means more than 2^31 rows or 2^22 columns.
            if x > i32::MAX as usize || y > 65_535 || z > 65_535 {
                return Err("the grid is too large; use a smaller meta-batch or network".into());
            }
            let grid = grid.map(|n| n as u32);
            if let Some(recording) = recording.as_mut() {
                return recording.launch(&self.driver, kernel, (grid, shared), bytemuck::bytes_of(arguments));
            }
            // SAFETY: the structure is the kernel's (`Arguments`), the regions were checked, and work on a device is
            // carried out in order.
            unsafe { self.driver.launch(&arena.memory, kernel, grid, shared, std::ptr::from_ref(arguments).cast()) }
        });
    }
}

/// The argument structure of one or more kernels.
///
/// # Safety
/// It is `repr(C)`, its twin in `kernels/` has the same fields in the same order, and the kernels take it.
unsafe trait Arguments: bytemuck::Pod {
    /// The kernels that take it.
    const KERNELS: &[Kernel];
}

/// Implements [`Arguments`], and holds each structure's size against its twin's.
macro_rules! arguments {
    ($($structure:ident, $size:literal => $($kernel:ident)*;)*) => { $(
        const _: () = assert!(size_of::<$structure>() == $size, "mirrored in kernels/");
        // With the arena's address before it. Drivers take more, but graphs are known to break on it.
        const _: () = {
            let before = if align_of::<$structure>() > 8 { align_of::<$structure>() } else { 8 };
            assert!(size_of::<$structure>() + before <= 4096, "more arguments than a kernel of a graph is sure to take");
        };
        // SAFETY: `repr(C)`, written field by field after its twin, whose size is asserted too.
        unsafe impl Arguments for $structure {
            const KERNELS: &[Kernel] = &[$(Kernel::$kernel),*];
        }
    )* };
}
use arguments;

/// The offset of a region that is not there: `NOWHERE` in `kernels/kernel.cuh`.
const NOWHERE: u64 = u64::MAX;

/// In checks, the region of an operand that is not there.
const NOTHING: Region = Region { offset: 0, rows: 0, width: 0 };

/// A size or an offset as kernels take it.
fn wide(value: usize) -> u64 {
    value as u64
}

/// A dimension as kernels take it.
///
/// # Panics
/// On one beyond 2^31: the arena would hold more than any GPU has.
fn narrow(value: usize) -> u32 {
    assert!(i32::try_from(value).is_ok(), "a dimension of {value} is more than a kernel can index");
    value as u32
}

/// The activation as kernels take it: `Activation` in `kernels/activation.cuh`.
fn activation_code(activation: Activation) -> u32 {
    match activation {
        Activation::Linear => 0,
        Activation::Relu => 1,
        Activation::LeakyRelu => 2,
        Activation::Tanh => 3,
        Activation::Sigmoid => 4,
    }
}

/// Blocks of one element a thread.
fn blocks_of(elements: usize) -> usize {
    elements.div_ceil(driver::THREADS as usize)
}

/// Blocks of plain loops, 8 elements a thread: `SPAN` in `kernels/pieces.cuh`.
fn spans_of(elements: usize) -> usize {
    elements.div_ceil(8 * driver::THREADS as usize)
}

impl<D: Driver> Device<f32> for CudaDevice<D> {
    type Arena = CudaArena<D>;
    type Graph = CudaGraph<D>;

    fn label(&self) -> String {
        match self.precision {
            MatrixPrecision::F32 => self.name(),
            rounded => format!("{}, large products in {rounded}", self.name()),
        }
    }

    fn free_bytes(&self) -> Option<u64> {
        let free = self.driver.free_bytes()?;
        // What an arena takes beside its elements, so that it is one that fits.
        let sixteenths = self.room_for_packed(16) as u64;
        let sums = ((outer_product::ROOM + arena::COUNTERS) * size_of::<f32>()) as u64;
        Some(free.saturating_sub(sums) / (16 + sixteenths) * 16)
    }

    fn arena(&self, elements: usize) -> Result<CudaArena<D>> {
        CudaArena::new(self, elements)
    }

    fn check(&self) -> Result<()> {
        self.failure().take().map_or(Ok(()), Err)
    }

    fn upload(&self, arena: &mut CudaArena<D>, to: Region, from: &[f32]) {
        assert_eq!(to.len(), from.len());
        arena.check(&[], &[to]);
        let what = format_args!("upload of {} numbers", from.len());
        let recording = arena.recording.get_mut().unwrap_or_else(PoisonError::into_inner);
        self.attempt(what, || match recording {
            Some(recording) => recording.write(&self.driver, to.offset, from),
            None => self.driver.write(&mut arena.memory, to.offset, from),
        });
    }
    fn download(&self, arena: &CudaArena<D>, from: Region, to: &mut [f32]) {
        assert_eq!(from.len(), to.len());
        arena.check(&[from], &[]);
        assert!(arena.recording().is_none(), "submitted work must not wait for the device");
        let what = format_args!("download of {} numbers, or a kernel before it", to.len());
        self.attempt(what, || self.driver.read(&arena.memory, from.offset, to));
    }
    /// By way of the host: lanes, of which a GPU has one, are all that asks for it.
    fn add_host(&self, arena: &mut CudaArena<D>, to: Region, from: &[f32]) {
        let mut sum = vec![0.0; to.len()];
        self.download(arena, to, &mut sum);
        sum.iter_mut().zip(from).for_each(|(s, f)| *s += *f);
        self.upload(arena, to, &sum);
    }
    fn discard(&self, arena: &mut CudaArena<D>, regions: &[Region]) {
        // What was put off comes before; a sum of gradients is none of the rows' that may be left out.
        finish::flush(arena);
        if let Some(recording) = arena.recording().as_mut() {
            regions.iter().for_each(|region| recording.discard(*region));
        }
    }
    fn fill(&self, arena: &mut CudaArena<D>, to: Region, value: f32) {
        array::fill(self, arena, to, value);
    }
    fn copy(&self, arena: &mut CudaArena<D>, from: Region, to: Region) {
        array::copy(self, arena, from, to);
    }
    fn gather(&self, arena: &mut CudaArena<D>, from: Region, indices: &[u32], to: Region) {
        array::gather(self, arena, from, indices, to);
    }

    fn linear_forward(&self, arena: &mut CudaArena<D>, operation: &LinearForward<'_>) {
        linear::forward(self, arena, operation);
    }
    fn linear_forward_rounded(&self, arena: &mut CudaArena<D>, operation: &LinearForward<'_>) -> bool {
        linear::forward_rounded(self, arena, operation)
    }
    fn linear_backward(&self, arena: &mut CudaArena<D>, operation: &LinearBackward<'_>) {
        linear::backward(self, arena, operation);
    }
    fn adjoint_forward(&self, arena: &mut CudaArena<D>, operation: &AdjointForward<'_>) {
        linear::adjoint_forward(self, arena, operation);
    }
    fn adjoint_backward(&self, arena: &mut CudaArena<D>, operation: &AdjointBackward<'_>) {
        linear::adjoint_backward(self, arena, operation);
    }
    fn gram(&self, arena: &mut CudaArena<D>, operation: &Gram<'_>) {
        low_rank::gram(self, arena, operation);
    }
    fn gram_inner(&self, arena: &mut CudaArena<D>, operation: &GramInner) {
        self.gram_inners(arena, std::slice::from_ref(operation));
    }
    fn gram_inners(&self, arena: &mut CudaArena<D>, operations: &[GramInner]) {
        low_rank::gram_inners(self, arena, operations);
    }
    fn low_rank(&self, arena: &mut CudaArena<D>, operation: &LowRank<'_>) {
        low_rank::low_rank(self, arena, operation);
    }
    fn column_scale(&self, arena: &mut CudaArena<D>, operation: &ColumnScale) {
        column_scale::forward(self, arena, operation);
    }
    fn column_scale_adjoint(&self, arena: &mut CudaArena<D>, operation: &ColumnScaleAdjoint<f32>) {
        column_scale::adjoint(self, arena, operation);
    }
    fn normalise(&self, arena: &mut CudaArena<D>, operation: &Normalise) {
        normalise::forward(self, arena, operation);
    }
    fn normalise_jacobian(&self, arena: &mut CudaArena<D>, operation: &NormaliseJacobian) {
        normalise::jacobian(self, arena, operation);
    }
    fn normalise_adjoint(&self, arena: &mut CudaArena<D>, operation: &NormaliseAdjoint) {
        normalise::adjoint(self, arena, operation);
    }
    fn rate_tables(&self, arena: &mut CudaArena<D>, operation: &RateTables) {
        rates::tables(self, arena, operation);
    }
    fn rate_tables_gradient(&self, arena: &mut CudaArena<D>, operation: &RateTablesGradient) {
        rates::gradient(self, arena, operation);
    }
    fn outer_product(&self, arena: &mut CudaArena<D>, operation: &OuterProduct<'_, f32>) {
        outer_product::outer_product(self, arena, operation);
    }

    fn inner_update(&self, arena: &mut CudaArena<D>, operation: &InnerUpdate<f32>) {
        inner_update::inner_update(self, arena, operation);
    }
    fn reverse_update(&self, arena: &mut CudaArena<D>, operation: &ReverseUpdate<f32>) {
        inner_update::reverse_update(self, arena, operation);
    }
    fn adam_update(&self, arena: &mut CudaArena<D>, operation: &AdamUpdate<f32>) {
        inner_adam::update(self, arena, operation);
    }
    fn adam_rate_gradient(&self, arena: &mut CudaArena<D>, operation: &AdamRateGradient<f32>) {
        inner_adam::rates_of_step(self, arena, operation);
    }
    fn reverse_adam(&self, arena: &mut CudaArena<D>, operation: &ReverseAdam<f32>) {
        inner_adam::reverse(self, arena, operation);
    }
    fn sum_rows(&self, arena: &mut CudaArena<D>, from: Region, scale: f32, to: Region, accumulate: bool) {
        array::sum_rows(self, arena, from, scale, to, accumulate);
    }
    fn add_scaled(&self, arena: &mut CudaArena<D>, from: Region, scale: f32, to: Region) {
        array::add_scaled(self, arena, from, scale, to);
    }

    fn supervised_loss(&self, arena: &mut CudaArena<D>, operation: &SupervisedLoss) {
        loss::supervised(self, arena, operation);
    }
    fn supervised_curvature(&self, arena: &mut CudaArena<D>, operation: &SupervisedCurvature) {
        loss::supervised_curvature(self, arena, operation);
    }
    fn adversarial_loss(&self, arena: &mut CudaArena<D>, operation: &AdversarialLoss<f32>) {
        loss::adversarial(self, arena, operation);
    }
    fn adversarial_curvature(&self, arena: &mut CudaArena<D>, operation: &AdversarialCurvature<f32>) {
        loss::adversarial_curvature(self, arena, operation);
    }
    fn pixel_loss(&self, arena: &mut CudaArena<D>, operation: &PixelLoss<f32>) {
        loss::pixel(self, arena, operation);
    }
    fn pixel_curvature(&self, arena: &mut CudaArena<D>, operation: &PixelCurvature<f32>) {
        loss::pixel_curvature(self, arena, operation);
    }

    fn resident(&self, arena: &mut CudaArena<D>, operation: &Resident<'_, f32>) {
        resident::resident(self, arena, operation);
    }
    fn resident_bytes(&self) -> usize {
        self.driver.shared_bytes()
    }
    /// One: a block has a task.
    fn resident_tasks(&self) -> usize {
        1
    }

    fn gradient_check(&self, arena: &mut CudaArena<D>, operation: &GradientCheck) {
        optimizer::gradient_check(self, arena, operation);
    }
    fn outer_step(&self, arena: &mut CudaArena<D>, operation: &OuterStep) {
        optimizer::outer_step(self, arena, operation);
    }

    fn submit(
        &self,
        arena: &mut CudaArena<D>,
        graph: &mut CudaGraph<D>,
        results: &[Region],
        work: impl FnOnce(&Self, &mut CudaArena<D>),
    ) {
        graph::submit(self, arena, graph, results, work);
    }
    fn results<'g>(&self, graph: &'g mut CudaGraph<D>) -> &'g [f32] {
        graph::results(self, graph)
    }
    fn cost_factors(&self) -> CostFactors {
        factors::factors(self)
    }
    fn resident_share(&self, operation: &Resident<'_, f32>) -> f64 {
        factors::resident_share(operation)
    }
    fn learns_rates(&self) -> bool {
        true
    }
    fn runs_behind(&self) -> bool {
        true
    }

    fn for_each_lane<L: Send>(&self, lanes: &mut [L], work: impl Fn(&Self, &mut L) + Sync) {
        lanes.iter_mut().for_each(|lane| work(self, lane));
    }
    /// One: a GPU is filled by operations over all tasks.
    fn lanes(&self) -> usize {
        1
    }
}
