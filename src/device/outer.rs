//! What a step of the outer optimizer takes: whether the meta-step went well, and the change of the parameters.

use super::Region;

/// Gradients that one [`GradientCheck`] takes at most.
pub const CHECKED_GRADIENTS: usize = 6;
/// Those of rates among them, which come last.
pub const CHECKED_RATES: usize = 2;
/// Width of [`GradientCheck::findings`].
pub const FINDINGS: usize = 1 + 2 * CHECKED_GRADIENTS;

/// Finds out whether losses and gradients are finite, and by how much each gradient is to be scaled down.
///
/// The findings stay on the device, for the [`OuterStep`]s that follow. The first of them becomes 1 where anything is not
/// finite, and otherwise stays as it is: so a meta-step that went wrong lets none that follow it change anything, until
/// someone sets it to 0 again. Then there are, for each gradient, its factor and its Euclidean norm (summed in double
/// precision, the same from run to run).
#[derive(Clone, Copy, Debug)]
pub struct GradientCheck {
    /// Losses of the tasks.
    pub losses: [Option<Region>; 2],
    /// Gradients; those that are not there get no findings.
    pub gradients: [Option<Region>; CHECKED_GRADIENTS],
    /// The largest norm a gradient may have, but for those of rates, which are not scaled down.
    pub clip: Option<f64>,
    /// Written, one row of [`FINDINGS`].
    pub findings: Region,
}

impl GradientCheck {
    /// The largest norm that the gradient at this place may have.
    pub fn clip_of(&self, place: usize) -> Option<f64> {
        self.clip.filter(|_| place < CHECKED_GRADIENTS - CHECKED_RATES)
    }

    /// What is read.
    pub fn operands(&self) -> impl Iterator<Item = Region> {
        self.losses.into_iter().chain(self.gradients).flatten()
    }
}

/// What [`GradientCheck`] found of one gradient.
#[derive(Clone, Copy, Debug)]
pub struct Finding {
    /// All it found, one row of [`FINDINGS`].
    pub findings: Region,
    /// The gradient's place among those that were checked.
    pub gradient: usize,
}

impl Finding {
    /// Where it says that nothing may change: by a number other than 0.
    pub fn flag(&self) -> usize {
        self.findings.offset
    }

    /// Where the gradient's factor is.
    pub fn factor(&self) -> usize {
        self.findings.offset + 1 + 2 * self.gradient
    }
}

/// One step of the outer optimizer over a flat array of parameters, unless it was found that nothing may change. Where it
/// says `factor`, that was found too.
#[derive(Clone, Copy, Debug)]
pub enum OuterStep {
    /// `parameters -= rate * factor * gradient`.
    Sgd {
        /// Whether the parameters are positive, and it is their logarithms that move: of p, of gradient g, `ln p` has the gradient `p g`.
        in_logarithm: bool,
        /// Changed.
        parameters: Region,
        /// Read.
        gradient: Region,
        /// The learning rate.
        rate: f64,
        /// Whether it may, and the factor (clipping).
        finding: Finding,
    },
    /// Adam (Kingma & Ba 2015, algorithm 1).
    Adam {
        /// As in gradient descent.
        in_logarithm: bool,
        /// Changed.
        parameters: Region,
        /// Read.
        gradient: Region,
        /// First moment; changed.
        first: Region,
        /// Second moment; changed.
        second: Region,
        /// The learning rate.
        rate: f64,
        /// Whether it may, and the factor (clipping).
        finding: Finding,
        /// Decay of the moments.
        betas: (f64, f64),
        /// Added to the denominator.
        epsilon: f64,
        /// The number of this step, from 1.
        step: u64,
    },
}
