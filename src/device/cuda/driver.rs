use std::ffi::c_void;

use bytemuck::{Pod, Zeroable};

use crate::Result;

/// What lies under [`super::CudaDevice`]: memory, copies and launches, on a GPU or emulated.
///
/// Work is carried out in the order it was asked for. Errors are the driver's own words; the device adds what was done.
pub trait Driver: Clone + Send + Sync {
    /// A run of `f32` numbers.
    type Memory: Send + Sync;

    /// Work that is carried out as a whole, as often as wanted, with room for what goes in and what comes out.
    type Graph: Send;

    /// What errors call the device.
    fn name(&self) -> String;

    /// Memory for so many numbers, all zero.
    ///
    /// # Errors
    /// Not that much memory is available.
    fn allocate(&self, elements: usize) -> Result<Self::Memory>;

    /// Bytes that can be allocated, as far as it knows.
    fn free_bytes(&self) -> Option<u64> {
        None
    }

    /// Copies `from` to the numbers from `offset` on.
    ///
    /// # Errors
    /// A copy, or a launch before it, failed.
    fn write(&self, memory: &mut Self::Memory, offset: usize, from: &[f32]) -> Result<(), String>;

    /// Copies the numbers from `offset` on to `to`.
    ///
    /// # Errors
    /// A copy, or a launch before it, failed.
    fn read(&self, memory: &Self::Memory, offset: usize, to: &mut [f32]) -> Result<(), String>;

    /// Told, before every launch and copy, which numbers it keeps to, by offset and length: what to hold it to, where a
    /// driver can. Several calls before one launch add up.
    fn keep_to(_memory: &Self::Memory, _regions: impl Iterator<Item = (usize, usize)>) {}

    /// Starts a kernel over `memory`.
    ///
    /// # Safety
    /// `arguments` points to the kernel's argument structure, which keeps to `memory`; nothing else uses what the kernel
    /// writes until it has ended.
    ///
    /// # Errors
    /// The driver refuses.
    unsafe fn launch(
        &self,
        memory: &Self::Memory,
        kernel: Kernel,
        grid: [u32; 3],
        arguments: *const c_void,
    ) -> Result<(), String>;

    /// Makes a graph of `steps` over `memory`, to be carried out in their order.
    ///
    /// # Safety
    /// As [`Driver::launch`] for every launch; `memory` outlives the graph.
    ///
    /// # Errors
    /// The driver refuses a step, or there is no room.
    unsafe fn graph(&self, memory: &Self::Memory, steps: &[GraphStep<'_>]) -> Result<Self::Graph, String>;

    /// Gives step `index`, a launch of the same kernel over the same grid, other arguments from the next replay on.
    ///
    /// # Safety
    /// As [`Driver::graph`].
    ///
    /// # Errors
    /// The driver refuses.
    unsafe fn change(
        &self,
        memory: &Self::Memory,
        graph: &mut Self::Graph,
        index: usize,
        step: &GraphStep<'_>,
    ) -> Result<(), String>;

    /// The numbers that go in. They are to be written anew before every replay; waits until the last one has taken them.
    ///
    /// # Errors
    /// Work before this failed.
    fn staging<'g>(&self, graph: &'g mut Self::Graph) -> Result<&'g mut [f32], String>;

    /// Starts the graph, after what was asked for before.
    ///
    /// # Safety
    /// As [`Driver::graph`].
    ///
    /// # Errors
    /// The driver refuses, or work before this failed.
    unsafe fn replay(&self, memory: &Self::Memory, graph: &mut Self::Graph) -> Result<(), String>;

    /// The numbers that the last replay has brought out; waits for it.
    ///
    /// # Errors
    /// It failed, or work before it.
    fn results<'g>(&self, graph: &'g mut Self::Graph) -> Result<&'g [f32], String>;
}

/// A piece of a kernel's argument structure.
#[derive(Clone, Copy, Debug, PartialEq, Pod, Zeroable)]
#[repr(C, align(64))]
pub struct ArgumentPiece([u64; 8]);

/// One step of a [`Driver::Graph`].
#[derive(Clone, Copy, Debug)]
pub struct GraphStep<'a> {
    /// What it does.
    pub work: GraphWork,
    /// A launch's argument structure.
    pub arguments: &'a [ArgumentPiece],
    /// The numbers of the memory it keeps to, by offset and length (see [`Driver::keep_to`]).
    pub regions: &'a [(usize, usize)],
}

/// What a step of a graph does; offsets and lengths in numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GraphWork {
    /// A kernel's launch.
    Launch {
        /// Which.
        kernel: Kernel,
        /// Over which grid.
        grid: [u32; 3],
    },
    /// A copy into the memory.
    Write {
        /// The first of the numbers that go in.
        from: usize,
        /// Where to.
        offset: usize,
        /// How many.
        len: usize,
    },
    /// A copy out of the memory.
    Read {
        /// Where from.
        offset: usize,
        /// The first of the numbers that come out.
        to: usize,
        /// How many.
        len: usize,
    },
}

impl GraphStep<'_> {
    /// How many numbers go into a graph of these steps, and come out.
    pub fn rooms(steps: &[Self]) -> [usize; 2] {
        steps.iter().fold([0, 0], |[staging, results], step| match step.work {
            GraphWork::Launch { .. } => [staging, results],
            GraphWork::Write { from, len, .. } => [staging.max(from + len), results],
            GraphWork::Read { to, len, .. } => [staging, results.max(to + len)],
        })
    }
}

/// Threads a block, of every kernel: `THREADS` in `kernels/kernel.cuh`.
pub(super) const THREADS: u32 = 128;

/// Columns a block sums down: `COLUMNS` in `kernels/stripes.cuh`.
pub(super) const COLUMNS: usize = 32;

/// Names every kernel once: the enumeration, the names in the fatbin and the emulated entries.
macro_rules! kernels {
    ($($variant:ident $name:ident $emulated:ident,)*) => {
        /// A kernel of `kernels/*.cu`.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[allow(missing_docs)]
        pub enum Kernel { $($variant,)* }

        impl Kernel {
            /// Every kernel, in the order of their discriminants.
            pub const ALL: &[Self] = &[$(Self::$variant,)*];

            /// Its name in CUDA.
            pub fn name(self) -> &'static str {
                match self { $(Self::$variant => stringify!($name),)* }
            }
        }

        #[cfg(feature = "emulate")]
        pub(super) mod emulated {
            use std::ffi::c_void;

            type Entry = unsafe extern "C" fn(*mut f32, *const c_void, *const u32, u64);

            unsafe extern "C" {
                $(fn $emulated(arena: *mut f32, arguments: *const c_void, grid: *const u32, seed: u64);)*
            }

            pub fn entry(kernel: super::Kernel) -> Entry {
                match kernel { $(super::Kernel::$variant => $emulated,)* }
            }
        }
    };
}

kernels! {
    LinearForward linear_forward emulate_linear_forward,
    LinearForward16x64 linear_forward_16x64 emulate_linear_forward_16x64,
    LinearForward64x64 linear_forward_64x64 emulate_linear_forward_64x64,
    LinearForward128x128 linear_forward_128x128 emulate_linear_forward_128x128,
    LinearBackward linear_backward emulate_linear_backward,
    LinearBackward16x64 linear_backward_16x64 emulate_linear_backward_16x64,
    LinearBackward64x64 linear_backward_64x64 emulate_linear_backward_64x64,
    LinearBackward128x128 linear_backward_128x128 emulate_linear_backward_128x128,
    AdjointForward adjoint_forward emulate_adjoint_forward,
    AdjointForward16x64 adjoint_forward_16x64 emulate_adjoint_forward_16x64,
    AdjointForward64x64 adjoint_forward_64x64 emulate_adjoint_forward_64x64,
    AdjointForward128x128 adjoint_forward_128x128 emulate_adjoint_forward_128x128,
    AdjointGate adjoint_gate emulate_adjoint_gate,
    ApplyCorrections apply_corrections emulate_apply_corrections,
    Gram gram emulate_gram,
    GramInner gram_inner emulate_gram_inner,
    ColumnScale column_scale emulate_column_scale,
    ColumnScaleAdjoint column_scale_adjoint emulate_column_scale_adjoint,
    Normalise normalise emulate_normalise,
    NormaliseJacobian normalise_jacobian emulate_normalise_jacobian,
    NormaliseAdjoint normalise_adjoint emulate_normalise_adjoint,
    OuterProduct outer_product emulate_outer_product,
    OuterProduct64x64 outer_product_64x64 emulate_outer_product_64x64,
    OuterProduct128x128 outer_product_128x128 emulate_outer_product_128x128,
    InnerUpdate inner_update emulate_inner_update,
    ReverseUpdate reverse_update emulate_reverse_update,
    RateGradient rate_gradient emulate_rate_gradient,
    AdamUpdate adam_update emulate_adam_update,
    AdamMoved adam_moved emulate_adam_moved,
    ReverseAdam reverse_adam emulate_reverse_adam,
    Dot dot emulate_dot,
    AddTotal add_total emulate_add_total,
    CheckGradient check_gradient emulate_check_gradient,
    Sgd sgd emulate_sgd,
    Adam adam emulate_adam,
    Fill fill emulate_fill,
    Copy copy emulate_copy,
    Gather gather emulate_gather,
    AddScaled add_scaled emulate_add_scaled,
    SumRows sum_rows emulate_sum_rows,
    ElementwiseDelta elementwise_delta emulate_elementwise_delta,
    ElementwiseCurvature elementwise_curvature emulate_elementwise_curvature,
    CrossEntropyDelta cross_entropy_delta emulate_cross_entropy_delta,
    CrossEntropyCurvature cross_entropy_curvature emulate_cross_entropy_curvature,
    SupervisedLoss supervised_loss emulate_supervised_loss,
    AdversarialLoss adversarial_loss emulate_adversarial_loss,
    AdversarialCurvature adversarial_curvature emulate_adversarial_curvature,
    PixelDelta pixel_delta emulate_pixel_delta,
    PixelCurvature pixel_curvature emulate_pixel_curvature,
    PixelLoss pixel_loss emulate_pixel_loss,
}
