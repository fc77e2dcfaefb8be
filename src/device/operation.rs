//! The operations' arguments and contracts.
//!
//! Shapes: `T` tasks, `K` rows a task and block, `B` blocks; a region named "`B` blocks of width w" is `[B * T * K, w]`.

use super::Region;
use crate::model::Activation;
use crate::objective::{FrameShape, Loss};
use crate::scalar::Scalar;

/// Where one Linear layer's numbers lie: weight `[outputs, inputs]` and bias `[outputs]`.
#[derive(Clone, Copy, Debug)]
pub struct Linear {
    /// First element of the weight.
    pub weight: usize,
    /// First element of the bias.
    pub bias: usize,
    /// Elements from one task's weights to the next one's; 0 when all tasks share them.
    pub task_stride: usize,
    /// Width of the input.
    pub inputs: usize,
    /// Width of the output.
    pub outputs: usize,
}

impl Linear {
    /// Whether all tasks share the weights.
    pub fn is_shared(&self) -> bool {
        self.task_stride == 0
    }
}

/// A `[rows, columns]` matrix of inner products for each task, inside the arena.
#[derive(Clone, Copy, Debug)]
pub struct GramView {
    /// Element (0, 0) of task 0.
    pub offset: usize,
    /// Elements from one task to the next.
    pub task_stride: usize,
    /// Elements from one row to the next.
    pub row_stride: usize,
    /// Elements from one column to the next.
    pub column_stride: usize,
}

/// One summand of a low-rank correction: `scale * (gram + bias) @ rows`, for each task.
#[derive(Clone, Copy, Debug)]
pub struct Term {
    /// The coefficients, `[K, count]`, where `rows` holds `count` rows a task.
    pub gram: GramView,
    /// Which of [`Corrections::scales`] is added to every coefficient: the value of the column that stands for the bias.
    pub bias: Option<usize>,
    /// Which of [`Corrections::scales`] multiplies them.
    pub scale: usize,
    /// One block `[T, count, width]`, as wide as the operation's output.
    pub rows: Region,
}

/// What the inner steps make of a product with the shared weights (dual form, section "Why"): a share of it, and what they
/// add.
#[derive(Clone, Copy, Debug)]
pub struct Corrections<'a> {
    /// Which of `scales` is the factor of the operation's products with weights, and of their biases: what weight decay has left
    /// of them. Without it they are whole.
    pub share: Option<usize>,
    /// Terms for each output block; empty when there are none at all.
    pub blocks: &'a [Vec<Term>],
    /// The factors that all this refers to, on the device, so that what it works out itself can be among them.
    pub scales: Region,
    /// Room for the assembled coefficients.
    pub scratch: Region,
}

impl Corrections<'_> {
    /// No corrections.
    pub const NONE: Self = {
        let nothing = Region { offset: 0, rows: 0, width: 0 };
        Self { share: None, blocks: &[], scales: nothing, scratch: nothing }
    };
}

/// Multiplies by the derivative of an activation.
#[derive(Clone, Copy, Debug)]
pub struct Gate<'a> {
    /// The activation.
    pub activation: Activation,
    /// Its values, in blocks as wide as the operation's output.
    pub values: Region,
    /// For each output block, the block of `values` that gates it.
    pub blocks: &'a [usize],
}

/// A second product with a direction in weight space, one for each task (materialised form), added to the first
/// `values.rows / (T * K)` blocks.
#[derive(Clone, Copy, Debug)]
pub struct Direction {
    /// The direction.
    pub layer: Linear,
    /// What is multiplied with it.
    pub values: Region,
}

/// `output = act(input W^T + b + corrections)`; W and b are a share of the layer's.
#[derive(Clone, Copy, Debug)]
pub struct LinearForward<'a> {
    /// T.
    pub tasks: usize,
    /// K.
    pub rows: usize,
    /// Blocks of width `layer.inputs`.
    pub input: Region,
    /// W and b.
    pub layer: Linear,
    /// Added before the activation.
    pub corrections: Corrections<'a>,
    /// act.
    pub activation: Activation,
    /// Written: as many rows as `input`, of width `layer.outputs`.
    pub output: Region,
}

/// `output = (delta W + corrections) * act'(gate)`.
#[derive(Clone, Copy, Debug)]
pub struct LinearBackward<'a> {
    /// T.
    pub tasks: usize,
    /// K.
    pub rows: usize,
    /// Blocks of width `layer.outputs`.
    pub delta: Region,
    /// W.
    pub layer: Linear,
    /// Added to the product.
    pub corrections: Corrections<'a>,
    /// The activation below, if any.
    pub gate: Option<Gate<'a>>,
    /// Written: as many rows as `delta`, of width `layer.inputs`.
    pub output: Region,
}

/// The adjoint pass upwards through one layer (dual form, section "The adjoint form"):
///
/// ```text
/// g            = input W^T + direction + corrections          (the cotangent of delta)
/// z_cotangent  = sum over the blocks b of each gate block:  g_b * delta_b * act''(a) / act'(a)
/// e_cotangent  = g * act'(a)
/// ```
#[derive(Clone, Copy, Debug)]
pub struct AdjointForward<'a> {
    /// T.
    pub tasks: usize,
    /// K.
    pub rows: usize,
    /// The cotangent of the layer's input gradient: blocks of width `layer.inputs`, for the output's blocks from `.1` on;
    /// blocks without one have none.
    pub input: Option<(Region, usize)>,
    /// W.
    pub layer: Linear,
    /// Materialised form: the direction with its bias.
    pub direction: Option<Direction>,
    /// Dual form.
    pub corrections: Corrections<'a>,
    /// The layer's activation, its values and their blocks.
    pub gate: Gate<'a>,
    /// delta: as many rows as `e_cotangent`.
    pub delta: Region,
    /// Written, when the activation is curved: as many rows as `gate.values`.
    pub z_cotangent: Region,
    /// Written: blocks of width `layer.outputs`.
    pub e_cotangent: Region,
}

/// The adjoint pass downwards: `output (+)= (z_cotangent W + direction + corrections) * act'(gate)`.
#[derive(Clone, Copy, Debug)]
pub struct AdjointBackward<'a> {
    /// T.
    pub tasks: usize,
    /// K.
    pub rows: usize,
    /// Blocks of width `layer.outputs`.
    pub z_cotangent: Region,
    /// W.
    pub layer: Linear,
    /// Materialised form: the direction, without its bias.
    pub direction: Option<Direction>,
    /// Dual form.
    pub corrections: Corrections<'a>,
    /// The activation below, if any.
    pub gate: Option<Gate<'a>>,
    /// Added to, or written: as many rows as `z_cotangent`, of width `layer.inputs`.
    pub output: Region,
    /// Whether `output` already holds a part of the result.
    pub accumulate: bool,
}

/// Inner products of rows within each task.
///
/// `output`, `[x blocks, T, K, N]`, gets `x_b[t, k] . y[t, n]`, where the `N` columns are the rows of all `y`, in order.
#[derive(Clone, Copy, Debug)]
pub struct Gram<'a> {
    /// T.
    pub tasks: usize,
    /// K.
    pub rows: usize,
    /// Blocks.
    pub x: Region,
    /// Single blocks `[T, ., width]`.
    pub y: &'a [Region],
    /// Written, or added to.
    pub output: Region,
    /// Whether to add to what is there.
    pub accumulate: bool,
}

/// `output[c] += -scale * sum over rows and over the columns of group c: left * (right + plus_one)`, in double precision.
///
/// The operands are `[rows, groups * group]` matrices of inner products; the sum is the same from run to run.
#[derive(Clone, Copy, Debug)]
pub struct GramInner {
    /// `[rows, groups * group]`.
    pub left: Region,
    /// As `left`; absent, it counts as 0.
    pub right: Option<Region>,
    /// Columns a group.
    pub group: usize,
    /// Adds 1 to `right`.
    pub plus_one: bool,
    /// The factor.
    pub scale: f64,
    /// One row of `groups` elements.
    pub output: Region,
}

/// One summand of [`OuterProduct`].
#[derive(Clone, Copy, Debug)]
pub struct OuterTerm<T> {
    /// Rows of width `outputs`.
    pub p: Region,
    /// As many rows, of width `inputs`.
    pub q: Region,
    /// The value of the column that is appended to `q`, whose product goes to the bias; 0 for none.
    pub bias: T,
    /// Number of blocks in `p` and `q`; matters to per-task weights only.
    pub blocks: usize,
    /// The factor.
    pub scale: T,
    /// A number on the device that is a factor too: [`Corrections::share`]'s, of a pass.
    pub share: Option<Region>,
}

/// `weight (+)= sum over terms of scale * p^T q`, `bias (+)= sum of scale * p^T bias`.
///
/// With shared weights the rows of all tasks are summed; with per-task weights each task's own (the regions are then blocks).
#[derive(Clone, Copy, Debug)]
pub struct OuterProduct<'a, T> {
    /// T.
    pub tasks: usize,
    /// The summands.
    pub terms: &'a [OuterTerm<T>],
    /// Written, or added to.
    pub layer: Linear,
    /// Whether to add to what is there.
    pub accumulate: bool,
}

/// `output (+)= (base + corrections) * act'(gate)`: see [`Corrections`].
#[derive(Clone, Copy, Debug)]
pub struct LowRank<'a> {
    /// T.
    pub tasks: usize,
    /// K.
    pub rows: usize,
    /// Rows that the corrections are added to, as many and as wide as the output's; absent, they are 0.
    pub base: Option<Region>,
    /// One list of terms for each block of `output`. A share means nothing: there is no product.
    pub corrections: Corrections<'a>,
    /// The activation whose derivative all this is multiplied with, if any.
    pub gate: Option<Gate<'a>>,
    /// Written, or added to: blocks of the width of the terms' rows.
    pub output: Region,
    /// Whether to add to what is there.
    pub accumulate: bool,
}

/// `to = act(from * scale)`, with a factor for each column: a layer whose weight is diagonal.
#[derive(Clone, Copy, Debug)]
pub struct ColumnScale {
    /// Rows.
    pub from: Region,
    /// One row, as wide.
    pub scale: Region,
    /// act.
    pub activation: Activation,
    /// Written: as `from`.
    pub to: Region,
}

/// The transpose of [`ColumnScale`]: with `u = cotangent * act'(to)`,
/// `gradient += weight * sum over the rows of u * from`, then `cotangent = u * scale`.
#[derive(Clone, Copy, Debug)]
pub struct ColumnScaleAdjoint<T> {
    /// The operation, done.
    pub of: ColumnScale,
    /// Read as the cotangent of `of.to`, written as that of `of.from`.
    pub cotangent: Region,
    /// Added to, when asked for: the gradient of `of.scale`.
    pub gradient: Option<Region>,
    /// The factor of the gradient.
    pub weight: T,
}

/// The rate an inner update is scaled by.
#[derive(Clone, Copy, Debug)]
pub enum Rate<T> {
    /// One number.
    Uniform(T),
    /// One number, which is on the device.
    Single(Region),
    /// One a parameter (Meta-SGD): the layer's rates, shared by all tasks.
    PerParameter(Linear),
}

/// Materialised form: `v' = momentum * v + delta^T [a, bias] + decay * from`, `to = from - rate * v'`, for each task and one
/// layer.
#[derive(Clone, Copy, Debug)]
pub struct InnerUpdate<T> {
    /// T.
    pub tasks: usize,
    /// K.
    pub rows: usize,
    /// Blocks of width `outputs`: the gradient's rows.
    pub delta: Region,
    /// As many rows of width `inputs`.
    pub values: Region,
    /// The value of the column that stands for the bias.
    pub bias: T,
    /// A number on the device that is a factor of it.
    pub bias_factor: Option<Region>,
    /// The weights before, shared or per task.
    pub from: Linear,
    /// Written: the weights after, per task.
    pub to: Linear,
    /// The rate.
    pub rate: Rate<T>,
    /// The momentum coefficient.
    pub momentum: T,
    /// The weight decay.
    pub decay: T,
    /// v, when there is one from an earlier step.
    pub velocity: Option<Linear>,
    /// Where v' is kept, when it is needed later.
    pub new_velocity: Option<Linear>,
}

/// Materialised form, one layer of one inner step backwards:
/// `rate_gradient -= scale * <weight_cotangent, velocity>`, then `direction = momentum * direction - rate * weight_cotangent`.
#[derive(Clone, Copy, Debug)]
pub struct ReverseUpdate<T> {
    /// T.
    pub tasks: usize,
    /// The cotangent of the weights after the step, per task.
    pub weight_cotangent: Linear,
    /// Read and written: the cotangent of the gradient, per task.
    pub direction: Linear,
    /// Whether `direction` holds that of the following step.
    pub accumulate: bool,
    /// The momentum coefficient.
    pub momentum: T,
    /// The rate.
    pub rate: Rate<T>,
    /// The step's v'; needed for the rate's gradient.
    pub velocity: Option<Linear>,
    /// Added to: one element for a uniform rate, the layer's parameters (shared layout, weight then bias) otherwise.
    pub rate_gradient: Option<Region>,
    /// The factor of the rate's gradient.
    pub scale: T,
}

/// A supervised loss at the output, and `delta = dL/da * act'(a)`.
///
/// Losses are means over a task's rows and outputs (`mse`, `bce_with_logits`) or rows (`cross_entropy`).
#[derive(Clone, Copy, Debug)]
pub struct SupervisedLoss {
    /// T.
    pub tasks: usize,
    /// The loss.
    pub loss: Loss,
    /// The output activation.
    pub activation: Activation,
    /// `[T * K, outputs]`.
    pub prediction: Region,
    /// `[T * K, outputs]`.
    pub target: Region,
    /// Written, when asked for.
    pub delta: Option<Region>,
    /// Written, when asked for: the loss of each task, `[1, T]`.
    pub task_loss: Option<Region>,
}

/// `z_cotangent (+)= act'(a) * L''(a) e_cotangent`.
#[derive(Clone, Copy, Debug)]
pub struct SupervisedCurvature {
    /// The loss at which point.
    pub at: SupervisedLoss,
    /// `[T * K, outputs]`.
    pub e_cotangent: Region,
    /// Written or added to, `[T * K, outputs]`.
    pub z_cotangent: Region,
    /// Whether to add.
    pub accumulate: bool,
}

/// The adversarial losses, on the discriminator's logits, `[2 blocks: real, generated; 1]`.
///
/// `L_D = mean softplus(-real) + mean softplus(generated)`, adversarial part of `L_G = weight * mean softplus(-generated)`.
#[derive(Clone, Copy, Debug)]
pub struct AdversarialLoss<T> {
    /// T.
    pub tasks: usize,
    /// w_adv.
    pub weight: T,
    /// Two blocks of width 1.
    pub logits: Region,
    /// The discriminator's output activation.
    pub activation: Activation,
    /// Written: three blocks of width 1: the deltas of `L_D` (real, generated) and of `L_G` (generated).
    pub delta: Region,
    /// Written, when asked for: `L_D` of each task, `[1, T]`.
    pub discriminator_loss: Option<Region>,
    /// Written, when asked for: the adversarial part of `L_G`, `[1, T]`.
    pub generator_loss: Option<Region>,
}

/// `z_cotangent (+)= act'(a) * L''(a) e_cotangent`, where the generated block gets the parts of both losses.
#[derive(Clone, Copy, Debug)]
pub struct AdversarialCurvature<T> {
    /// The losses at which point.
    pub at: AdversarialLoss<T>,
    /// Three blocks of width 1, as `at.delta`.
    pub e_cotangent: Region,
    /// Written or added to: two blocks of width 1.
    pub z_cotangent: Region,
    /// Whether to add.
    pub accumulate: bool,
}

/// The reconstruction, motion and texture terms of `L_G` on generated clips, and the generator's
/// `delta = (upstream + dL/da) * act'(a)`.
///
/// `w_rec * mean v^2 + w_mot * mean (d_t v)^2 + w_tex * (mean (d_x v)^2 + mean (d_y v)^2)`, where `v = f - x`: see
/// [`VideoWeights`](crate::objective::VideoWeights). Means are over a task's rows.
#[derive(Clone, Copy, Debug)]
pub struct PixelLoss<T> {
    /// T.
    pub tasks: usize,
    /// How the values of a frame lie; a clip's frames lie one after the other in a row.
    pub frame: FrameShape,
    /// w_rec.
    pub reconstruction: T,
    /// w_mot.
    pub motion: T,
    /// w_tex.
    pub texture: T,
    /// f, `[T * K, clip]`.
    pub prediction: Region,
    /// x, `[T * K, clip]`.
    pub target: Region,
    /// The generator's output activation.
    pub activation: Activation,
    /// The gradient that comes from the discriminator, `[T * K, clip]`.
    pub upstream: Region,
    /// Written, `[T * K, clip]`.
    pub delta: Region,
    /// Added to, when asked for: `[1, T]`.
    pub task_loss: Option<Region>,
}

/// The squared differences of all values `distance` apart within each run of `period` values, times `factor`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Differences {
    pub factor: f64,
    pub period: usize,
    pub distance: usize,
}

/// The quadratic form that [`PixelLoss`] is of one row of v.
#[derive(Clone, Copy, Debug)]
pub(super) struct Quadratic {
    /// The factor of a squared value.
    pub pixel: f64,
    /// In time.
    pub motion: Differences,
    /// Across the lines of a frame, then along them.
    pub texture: [Differences; 2],
}

impl<T: Scalar> PixelLoss<T> {
    /// The terms, with the factors that make them means over one task's rows.
    pub(super) fn quadratic(&self) -> Quadratic {
        let rows = self.prediction.rows / self.tasks;
        let FrameShape { height, width, channels } = self.frame;
        let factor = |weight: T, count: usize| if count > 0 { weight.to_f64() / count as f64 } else { 0.0 };
        let differences = |weight, period, distance| {
            // `period - distance` differences in each run.
            let count = rows * (self.prediction.width / period) * (period - distance);
            Differences { factor: factor(weight, count), period, distance }
        };
        let line = width * channels;
        let frame = height * line;
        Quadratic {
            pixel: factor(self.reconstruction, rows * self.prediction.width),
            motion: differences(self.motion, self.prediction.width, frame),
            texture: [differences(self.texture, frame, line), differences(self.texture, line, channels)],
        }
    }
}

/// `z_cotangent (+)= act'(a) * (upstream + L'' e_cotangent)`.
#[derive(Clone, Copy, Debug)]
pub struct PixelCurvature<T> {
    /// The loss at which point; its `upstream` is the cotangent that comes from the discriminator.
    pub at: PixelLoss<T>,
    /// `[T * K, clip]`.
    pub e_cotangent: Region,
    /// Written or added to, `[T * K, clip]`.
    pub z_cotangent: Region,
    /// Whether to add.
    pub accumulate: bool,
}
