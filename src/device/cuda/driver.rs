use std::ffi::c_void;

use bytemuck::{Pod, Zeroable};

use super::hopper;
use crate::Result;
use crate::device::MatrixPrecision;

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

    /// What its maker calls it.
    fn model(&self) -> String {
        self.name()
    }

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

    /// Bytes of shared memory that a block can have.
    fn shared_bytes(&self) -> usize;

    /// How many multiprocessors carry out the kernels of `kernels/hopper.cu`; none on a device other than Hopper.
    fn warpgroups(&self) -> Option<u32> {
        None
    }

    /// Describes a matrix in `memory` to Hopper's copy engine.
    ///
    /// # Errors
    /// The driver refuses, or the device has no such engine.
    fn tensor_map(&self, _memory: &Self::Memory, _matrix: PackedMatrix) -> Result<TensorMap, String> {
        Err("it has no engine that copies tiles".into())
    }

    /// Describes matrices in `memory` that Hopper's copy engine is to write.
    ///
    /// # Errors
    /// The driver refuses, or the device has no such engine.
    fn written_map(&self, _memory: &Self::Memory, _matrices: WrittenMatrices) -> Result<TensorMap, String> {
        Err("it has no engine that writes tiles".into())
    }

    /// Starts a kernel over `memory`, with so many bytes of shared memory for its blocks beside what it declares.
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
        shared: u32,
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
        /// With how many bytes of shared memory beside what it declares.
        shared: u32,
    },
    /// A copy into the memory, of one number at least.
    Write {
        /// The first of the numbers that go in.
        from: usize,
        /// Where to.
        offset: usize,
        /// How many.
        len: usize,
    },
    /// A copy out of the memory, of one number at least.
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

/// Rows of 16-bit numbers, each of which begins at a multiple of 16 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PackedMatrix {
    /// Where it begins, in numbers of 32 bits: a multiple of 4.
    pub offset: usize,
    /// Number of rows.
    pub rows: usize,
    /// Numbers a row.
    pub width: usize,
    /// Numbers from the beginning of a row to that of the next: a multiple of 8.
    pub pitch: usize,
    /// Whether they are `bf16`, and not `f16`.
    pub bf16: bool,
    /// Rows of a tile, which is 64 numbers wide.
    pub tall: u32,
}

/// Matrices that lie one behind the other, and are written by tiles of 32 rows of 128 bytes; rows begin at multiples of 16.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WrittenMatrices {
    /// Where they begin, in numbers of 32 bits: a multiple of 4.
    pub offset: usize,
    /// How many.
    pub count: usize,
    /// Rows of each.
    pub rows: usize,
    /// Numbers a row.
    pub width: usize,
    /// What they are rounded to: `bf16`, `f16`, or nothing.
    pub precision: MatrixPrecision,
}

impl WrittenMatrices {
    /// Bytes of a number, and from the beginning of a row to that of the next.
    pub(super) fn bytes(&self) -> [usize; 2] {
        let number = if self.precision == MatrixPrecision::F32 { 4 } else { 2 };
        [number, (self.width * number).next_multiple_of(16)]
    }
}

/// A matrix as Hopper's copy engine takes it: `TensorMap` in `kernels/wgmma.cuh`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C, align(64))]
pub struct TensorMap(pub [u64; 16]);

/// Numbers of 16 bits that tiles are wide, and rows of most.
pub(super) const PANEL: u32 = 64;

/// Rows of the tiles that it writes: `HANDED` in `kernels/hopper.cuh`.
pub(super) const WRITTEN: u32 = 32;

/// Threads a block, of every kernel that does not name others: `THREADS` in `kernels/kernel.cuh`.
pub(super) const THREADS: u32 = 128;

/// Threads a block of a kernel, and bytes of shared memory beside those it declares: as the launch has asked, or as those for
/// warpgroups always take.
pub(super) fn block_of(kernel: Kernel, asked: u32) -> (u32, u32) {
    let threads = match kernel {
        Kernel::NarrowFew => 192,
        Kernel::Resident => 256,
        Kernel::Chain => 512,
        Kernel::SumTallRows | Kernel::Settle => 1024,
        _ => THREADS,
    };
    hopper::block_of(kernel).unwrap_or((threads, asked))
}

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

            /// The kernel of that name.
            pub fn named(name: &str) -> Option<Self> {
                Self::ALL.iter().copied().find(|kernel| kernel.name() == name)
            }

            /// Its name in CUDA.
            pub fn name(self) -> &'static str {
                match self { $(Self::$variant => stringify!($name),)* }
            }
        }

        #[cfg(feature = "emulate")]
        pub(super) mod emulated {
            use std::ffi::c_void;

            /// The grid, threads a block, and bytes of shared memory that are asked for: `Launched` in `kernels/emulation/cuda.h`.
            #[repr(C)]
            pub struct Launched {
                pub grid: [u32; 3],
                pub threads: u32,
                pub shared: u32,
            }

            type Entry = unsafe extern "C" fn(*mut f32, *const c_void, *const Launched, u64);

            unsafe extern "C" {
                $(fn $emulated(arena: *mut f32, arguments: *const c_void, launched: *const Launched, seed: u64);)*
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
    ThinForward thin_forward emulate_thin_forward,
    ThinForward16 thin_forward_16 emulate_thin_forward_16,
    ThinBackward thin_backward emulate_thin_backward,
    ThinBackward16 thin_backward_16 emulate_thin_backward_16,
    ThinAdjoint thin_adjoint emulate_thin_adjoint,
    ThinAdjoint16 thin_adjoint_16 emulate_thin_adjoint_16,
    Pack pack emulate_pack,
    PackFragments pack_fragments emulate_pack_fragments,
    Chain chain emulate_chain,
    HopperForward64x64 hopper_forward_64x64 emulate_hopper_forward_64x64,
    HopperForward64x160 hopper_forward_64x160 emulate_hopper_forward_64x160,
    HopperForward128x128 hopper_forward_128x128 emulate_hopper_forward_128x128,
    HopperForward128x160 hopper_forward_128x160 emulate_hopper_forward_128x160,
    HopperForward128x256 hopper_forward_128x256 emulate_hopper_forward_128x256,
    HopperBackward64x64 hopper_backward_64x64 emulate_hopper_backward_64x64,
    HopperBackward64x160 hopper_backward_64x160 emulate_hopper_backward_64x160,
    HopperBackward128x128 hopper_backward_128x128 emulate_hopper_backward_128x128,
    HopperBackward128x160 hopper_backward_128x160 emulate_hopper_backward_128x160,
    HopperBackward128x256 hopper_backward_128x256 emulate_hopper_backward_128x256,
    HopperAdjoint64x64 hopper_adjoint_64x64 emulate_hopper_adjoint_64x64,
    HopperAdjoint64x160 hopper_adjoint_64x160 emulate_hopper_adjoint_64x160,
    HopperAdjoint128x128 hopper_adjoint_128x128 emulate_hopper_adjoint_128x128,
    HopperAdjoint128x160 hopper_adjoint_128x160 emulate_hopper_adjoint_128x160,
    HopperAdjoint128x256 hopper_adjoint_128x256 emulate_hopper_adjoint_128x256,
    ApplyCorrections apply_corrections emulate_apply_corrections,
    FinishForward finish_forward emulate_finish_forward,
    FinishBackward finish_backward emulate_finish_backward,
    FinishAdjoint finish_adjoint emulate_finish_adjoint,
    Gram gram emulate_gram,
    GramInner gram_inner emulate_gram_inner,
    ColumnScale column_scale emulate_column_scale,
    ColumnScaleAdjoint column_scale_adjoint emulate_column_scale_adjoint,
    Normalise normalise emulate_normalise,
    NormaliseJacobian normalise_jacobian emulate_normalise_jacobian,
    NormaliseAdjoint normalise_adjoint emulate_normalise_adjoint,
    RateTables rate_tables emulate_rate_tables,
    RateTablesGradient rate_tables_gradient emulate_rate_tables_gradient,
    OuterProduct outer_product emulate_outer_product,
    OuterProduct64x64 outer_product_64x64 emulate_outer_product_64x64,
    OuterProduct128x128 outer_product_128x128 emulate_outer_product_128x128,
    OuterTotal outer_total emulate_outer_total,
    HopperOuterPack hopper_outer_pack emulate_hopper_outer_pack,
    HopperOuter128x128 hopper_outer_128x128 emulate_hopper_outer_128x128,
    HopperOuter128x256 hopper_outer_128x256 emulate_hopper_outer_128x256,
    HopperCopied128x128 hopper_copied_128x128 emulate_hopper_copied_128x128,
    HopperCopied128x256 hopper_copied_128x256 emulate_hopper_copied_128x256,
    ThinOuterProduct thin_outer_product emulate_thin_outer_product,
    ThinOuterProduct16 thin_outer_product_16 emulate_thin_outer_product_16,
    InnerUpdate inner_update emulate_inner_update,
    ThinInnerUpdate thin_inner_update emulate_thin_inner_update,
    ThinInnerUpdate16 thin_inner_update_16 emulate_thin_inner_update_16,
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
    Settle settle emulate_settle,
    Fill fill emulate_fill,
    Copy copy emulate_copy,
    Gather gather emulate_gather,
    AddScaled add_scaled emulate_add_scaled,
    SumRows sum_rows emulate_sum_rows,
    SumTallRows sum_tall_rows emulate_sum_tall_rows,
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
    NarrowMany narrow_many emulate_narrow_many,
    NarrowFew narrow_few emulate_narrow_few,
    NarrowMma narrow_mma emulate_narrow_mma,
    Resident resident emulate_resident,
}
