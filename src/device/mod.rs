//! The list of operations the algorithms are made of, and the devices that carry them out.
//!
//! A device works on one arena: a single allocation, sized from the plan before anything runs. Operations name their
//! operands as [`Region`]s of it, so nothing is allocated in a meta-step. All matrices are row-major.
//!
//! Rows come in **blocks**: a block is `[tasks, rows, width]`, the rows of every task for one role. A network trained on
//! one batch has one block; the discriminator has a block of real and one of generated rows. Blocks that are used
//! together lie one after the other, so that one product with shared weights covers them all.
//!
//! Every region an operation writes must be disjoint from those it reads, unless its contract says otherwise.

pub mod cpu;
#[cfg(any(feature = "cuda", feature = "emulate"))]
pub mod cuda;
mod explained;
mod factors;
mod inner_adam;
mod normalise;
mod operation;
mod outer;
mod precision;
mod rates;
mod region;
mod resident;
mod selection;
mod submitted;
mod work;

pub use explained::{Explained, Stage};
pub use factors::CostFactors;
pub use inner_adam::{Adam, AdamRateGradient, AdamUpdate, ReverseAdam};
pub use normalise::{Normalise, NormaliseAdjoint, NormaliseJacobian};
pub use operation::{
    AdjointBackward, AdjointForward, AdversarialCurvature, AdversarialLoss, ColumnScale, ColumnScaleAdjoint,
    Corrections, Direction, Gate, Gram, GramInner, GramView, InnerUpdate, Linear, LinearBackward, LinearForward,
    LowRank, OuterProduct, OuterTerm, PixelCurvature, PixelLoss, Rate, ReverseUpdate, SupervisedCurvature,
    SupervisedLoss, Term,
};
pub use outer::{CHECKED_GRADIENTS, CHECKED_RATES, FINDINGS, Finding, GradientCheck, OuterStep};
pub use precision::MatrixPrecision;
pub use rates::{InnerRates, RateTables, RateTablesGradient};
pub use region::{ArenaPlan, Region};
pub use resident::{Resident, ResidentGradient};
pub use selection::DeviceKind;
pub use submitted::Submitted;
pub use work::Work;

use crate::Result;
use crate::scalar::Scalar;

/// Something that carries out the operations of the inner and the outer loop, in numbers of type `T`.
///
/// Each operation is documented on its argument structure. Shapes are the caller's duty (the crate's plans make them fit);
/// a device may assume they hold, and must not access memory outside the arena when they do not.
pub trait Device<T: Scalar>: Sync {
    /// Memory of the device.
    type Arena: Send + Sync;

    /// What is kept of work that is submitted again and again.
    type Graph: Default + Send;

    /// Bytes that arenas can have in all, as far as the device knows.
    fn free_bytes(&self) -> Option<u64> {
        None
    }

    /// Allocates an arena of `elements` numbers.
    ///
    /// # Errors
    /// Not that much memory is available.
    fn arena(&self, elements: usize) -> Result<Self::Arena>;

    /// What it is, for people: "2 threads" or the GPU's name.
    fn label(&self) -> String;

    /// The first failure since the last call, of a device whose operations can fail; they do nothing from then on.
    ///
    /// # Errors
    /// What failed.
    fn check(&self) -> Result<()> {
        Ok(())
    }

    /// Copies `from` into a region of the same size.
    fn upload(&self, arena: &mut Self::Arena, to: Region, from: &[T]);
    /// Copies a region into `to`, of the same size.
    fn download(&self, arena: &Self::Arena, from: Region, to: &mut [T]);
    /// Adds `from` to a region of the same size.
    fn add_host(&self, arena: &mut Self::Arena, to: Region, from: &[T]);
    /// Gives up what is in some regions: until they are written to again, nothing may read them. A device need not have written
    /// what nothing has read before.
    fn discard(&self, _arena: &mut Self::Arena, _regions: &[Region]) {}
    /// Sets every element of a region.
    fn fill(&self, arena: &mut Self::Arena, to: Region, value: T);
    /// Copies one region to another of the same size.
    fn copy(&self, arena: &mut Self::Arena, from: Region, to: Region);
    /// `to[i] = from[indices[i]]`, by rows.
    fn gather(&self, arena: &mut Self::Arena, from: Region, indices: &[u32], to: Region);

    /// See [`LinearForward`].
    fn linear_forward(&self, arena: &mut Self::Arena, operation: &LinearForward<'_>);
    /// The same without corrections, to measure with: rows and weights are rounded to what the device multiplies once, until they
    /// are written to, and all that is left of the output is a copy in as many bits. Whether the device can.
    fn linear_forward_rounded(&self, _arena: &mut Self::Arena, _operation: &LinearForward<'_>) -> bool {
        false
    }
    /// See [`LinearBackward`].
    fn linear_backward(&self, arena: &mut Self::Arena, operation: &LinearBackward<'_>);
    /// See [`AdjointForward`].
    fn adjoint_forward(&self, arena: &mut Self::Arena, operation: &AdjointForward<'_>);
    /// See [`AdjointBackward`].
    fn adjoint_backward(&self, arena: &mut Self::Arena, operation: &AdjointBackward<'_>);
    /// See [`Gram`].
    fn gram(&self, arena: &mut Self::Arena, operation: &Gram<'_>);
    /// See [`GramInner`].
    fn gram_inner(&self, arena: &mut Self::Arena, operation: &GramInner);
    /// Several of them, in their order.
    fn gram_inners(&self, arena: &mut Self::Arena, operations: &[GramInner]) {
        operations.iter().for_each(|operation| self.gram_inner(arena, operation));
    }
    /// See [`LowRank`].
    fn low_rank(&self, arena: &mut Self::Arena, operation: &LowRank<'_>);
    /// See [`ColumnScale`].
    fn column_scale(&self, arena: &mut Self::Arena, operation: &ColumnScale);
    /// See [`ColumnScaleAdjoint`].
    fn column_scale_adjoint(&self, arena: &mut Self::Arena, operation: &ColumnScaleAdjoint<T>);
    /// See [`Normalise`].
    fn normalise(&self, arena: &mut Self::Arena, operation: &Normalise);
    /// See [`NormaliseJacobian`].
    fn normalise_jacobian(&self, arena: &mut Self::Arena, operation: &NormaliseJacobian);
    /// See [`NormaliseAdjoint`].
    fn normalise_adjoint(&self, arena: &mut Self::Arena, operation: &NormaliseAdjoint);
    /// See [`RateTables`].
    fn rate_tables(&self, arena: &mut Self::Arena, operation: &RateTables);
    /// See [`RateTablesGradient`].
    fn rate_tables_gradient(&self, arena: &mut Self::Arena, operation: &RateTablesGradient);
    /// See [`OuterProduct`].
    fn outer_product(&self, arena: &mut Self::Arena, operation: &OuterProduct<'_, T>);

    /// See [`InnerUpdate`].
    fn inner_update(&self, arena: &mut Self::Arena, operation: &InnerUpdate<T>);
    /// See [`ReverseUpdate`].
    fn reverse_update(&self, arena: &mut Self::Arena, operation: &ReverseUpdate<T>);
    /// See [`AdamUpdate`].
    fn adam_update(&self, arena: &mut Self::Arena, operation: &AdamUpdate<T>);
    /// See [`AdamRateGradient`].
    fn adam_rate_gradient(&self, arena: &mut Self::Arena, operation: &AdamRateGradient<T>);
    /// See [`ReverseAdam`].
    fn reverse_adam(&self, arena: &mut Self::Arena, operation: &ReverseAdam<T>);
    /// `to = scale * sum over the rows of from`, to one row; or `to += ...` when `accumulate`.
    fn sum_rows(&self, arena: &mut Self::Arena, from: Region, scale: T, to: Region, accumulate: bool);
    /// `to += scale * from`, regions of one size.
    fn add_scaled(&self, arena: &mut Self::Arena, from: Region, scale: T, to: Region);

    /// See [`SupervisedLoss`].
    fn supervised_loss(&self, arena: &mut Self::Arena, operation: &SupervisedLoss);
    /// See [`SupervisedCurvature`].
    fn supervised_curvature(&self, arena: &mut Self::Arena, operation: &SupervisedCurvature);
    /// See [`AdversarialLoss`].
    fn adversarial_loss(&self, arena: &mut Self::Arena, operation: &AdversarialLoss<T>);
    /// See [`AdversarialCurvature`].
    fn adversarial_curvature(&self, arena: &mut Self::Arena, operation: &AdversarialCurvature<T>);
    /// See [`PixelLoss`].
    fn pixel_loss(&self, arena: &mut Self::Arena, operation: &PixelLoss<T>);
    /// See [`PixelCurvature`].
    fn pixel_curvature(&self, arena: &mut Self::Arena, operation: &PixelCurvature<T>);

    /// See [`Resident`]; one task's numbers must fit into [`Device::resident_bytes`].
    fn resident(&self, arena: &mut Self::Arena, operation: &Resident<'_, T>);
    /// Bytes of one task's inner loop ([`Resident::task_bytes`]) that it can keep near the processor.
    fn resident_bytes(&self) -> usize;
    /// How many tasks of [`Resident`] run at once on one processor, and take as long as a single one.
    fn resident_tasks(&self) -> usize;

    /// See [`GradientCheck`].
    fn gradient_check(&self, arena: &mut Self::Arena, operation: &GradientCheck);
    /// See [`OuterStep`].
    fn outer_step(&self, arena: &mut Self::Arena, operation: &OuterStep);

    /// Carries out `work`, which downloads nothing, and keeps `results` for [`Device::results`].
    ///
    /// A device that can makes one graph of the work, which is launched as a whole the next time that the same work is
    /// submitted with `graph`; arguments and uploaded numbers may differ from time to time. `graph` belongs to `arena`.
    fn submit(
        &self,
        arena: &mut Self::Arena,
        graph: &mut Self::Graph,
        results: &[Region],
        work: impl FnOnce(&Self, &mut Self::Arena),
    ) where
        Self: Sized;
    /// The numbers of the `results` regions, one after the other, as the work last submitted with `graph` left them; waits
    /// for it.
    fn results<'g>(&self, graph: &'g mut Self::Graph) -> &'g [T];
    /// How long each kind of work takes it.
    fn cost_factors(&self) -> CostFactors {
        CostFactors::CPU
    }
    /// The share of [`CostFactors::resident`] that such an operation takes, without regard to its regions: less than 1 where the device has something
    /// better for it than for all.
    fn resident_share(&self, _operation: &Resident<'_, T>) -> f64 {
        1.0
    }
    /// Whether the inner rates, where they are learned, are to be kept and changed there: because the host would have to wait for it.
    fn learns_rates(&self) -> bool {
        false
    }
    /// Whether submitted work goes on while the host does other things.
    fn runs_behind(&self) -> bool {
        false
    }

    /// Runs `work` on every lane, each with a device of its own, in parallel where the device can.
    fn for_each_lane<L: Send>(&self, lanes: &mut [L], work: impl Fn(&Self, &mut L) + Sync)
    where
        Self: Sized;
    /// How many lanes can run at once.
    fn lanes(&self) -> usize;
}
