//! One arena filled with random operands, the operation's effect on it, and the judgement.

use std::sync::LazyLock;

use innerloop::Scalar;
use innerloop::device::cpu::{CpuArena, CpuDevice};
use innerloop::device::{ArenaPlan, Corrections, Device, GramView, Linear, Rate, Region, Term};
use innerloop::model::Activation;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// Lies between the regions, where nobody has any business.
const GUARD: f64 = 12345.0;
/// Widths around vectors and tiles.
pub const WIDTHS: [usize; 5] = [1, 17, 33, 130, 257];
/// Every activation.
pub const ACTIVATIONS: [Activation; 5] =
    [Activation::Linear, Activation::Relu, Activation::LeakyRelu, Activation::Tanh, Activation::Sigmoid];

static DEVICES: LazyLock<[CpuDevice; 2]> = LazyLock::new(|| [1, 3].map(|threads| CpuDevice::new(threads).unwrap()));

/// Runs a check in both precisions for so many seeds; it runs the operation on 1 and on 3 threads.
macro_rules! for_seeds {
    ($seeds:expr, $check:ident) => {
        for seed in 0..$seeds {
            $check::<f64>(seed);
            $check::<f32>(seed);
        }
    };
}
pub(crate) use for_seeds;

pub fn value(activation: Activation, z: f64) -> f64 {
    match activation {
        Activation::Linear => z,
        Activation::Relu => z.max(0.0),
        Activation::LeakyRelu => z.max(0.2 * z),
        Activation::Tanh => z.tanh(),
        Activation::Sigmoid => 1.0 / (1.0 + (-z).exp()),
    }
}

/// The first derivative where the value is `a`.
pub fn first(activation: Activation, a: f64) -> f64 {
    match activation {
        Activation::Linear => 1.0,
        Activation::Relu => f64::from(a > 0.0),
        Activation::LeakyRelu => [0.2, 1.0][usize::from(a > 0.0)],
        Activation::Tanh => 1.0 - a * a,
        Activation::Sigmoid => a * (1.0 - a),
    }
}

/// The second derivative where the value is `a`.
pub fn second(activation: Activation, a: f64) -> f64 {
    match activation {
        Activation::Linear | Activation::Relu | Activation::LeakyRelu => 0.0,
        Activation::Tanh => -2.0 * a * (1.0 - a * a),
        Activation::Sigmoid => a * (1.0 - a) * (1.0 - 2.0 * a),
    }
}

/// The arena before an operation.
pub struct Case<T> {
    plan: ArenaPlan,
    pub rng: ChaCha8Rng,
    seed: u64,
    image: Vec<T>,
    /// Regions an operation may leave anything in.
    scratch: Vec<Region>,
}

impl<T: Scalar> Case<T> {
    pub fn new(seed: u64) -> Self {
        let rng = ChaCha8Rng::seed_from_u64(seed);
        let mut case = Self { plan: ArenaPlan::default(), rng, seed, image: Vec::new(), scratch: Vec::new() };
        case.poisoned(1, 1);
        case
    }

    pub fn pick<V: Copy>(&mut self, from: &[V]) -> V {
        from[self.rng.random_range(0..from.len())]
    }

    pub fn below(&mut self, bound: usize) -> usize {
        self.rng.random_range(0..bound)
    }

    pub fn coin(&mut self) -> bool {
        self.rng.random()
    }

    /// T, K and a number of blocks; now and then more tasks than one tile holds.
    pub fn rows(&mut self) -> (usize, usize, usize) {
        (self.pick(&[1, 1, 3, 3, 3, 41]), self.pick(&[1, 5, 7]), self.pick(&[1, 2, 3]))
    }

    /// Two widths: every pair comes up in turn.
    pub fn widths(&self) -> (usize, usize) {
        let pair = self.seed as usize % 25;
        (WIDTHS[pair % 5], WIDTHS[pair / 5])
    }

    pub fn filled(&mut self, rows: usize, width: usize, mut make: impl FnMut(&mut ChaCha8Rng) -> f64) -> Region {
        let region = self.plan.take(rows, width);
        self.image.extend((0..region.len()).map(|_| T::from_f64(make(&mut self.rng))));
        self.plan.take(1, 1);
        self.image.resize(self.plan.elements(), T::from_f64(GUARD));
        region
    }

    /// Another number in the place of one.
    pub fn set(&mut self, region: Region, element: usize, value: f64) {
        self.image[region.offset + element] = T::from_f64(value);
    }

    pub fn random(&mut self, rows: usize, width: usize) -> Region {
        self.filled(rows, width, |rng| rng.random_range(-1.0..1.0))
    }

    pub fn poisoned(&mut self, rows: usize, width: usize) -> Region {
        self.filled(rows, width, |_| f64::NAN)
    }

    /// NaN where it is to be written, numbers where it is to be added to.
    pub fn output(&mut self, rows: usize, width: usize, added_to: bool) -> Region {
        if added_to { self.random(rows, width) } else { self.poisoned(rows, width) }
    }

    /// Values that an activation can have.
    pub fn values(&mut self, rows: usize, width: usize, activation: Activation) -> Region {
        self.filled(rows, width, |rng| value(activation, rng.random_range(-2.0..2.0)))
    }

    /// A layer whose bias follows its weight; per-task ones lie some elements apart.
    pub fn layer(&mut self, tasks: usize, inputs: usize, outputs: usize, shared: bool, written: bool) -> Linear {
        let parameters = outputs * (inputs + 1);
        let (copies, task_stride) = if shared { (1, 0) } else { (tasks, parameters + 3) };
        let region = self.output(1, copies * parameters + (copies - 1) * 3, !written);
        for task in 1..copies {
            let gap = region.offset + task * task_stride - 3;
            self.image[gap..gap + 3].fill(T::from_f64(GUARD));
        }
        Linear { weight: region.offset, bias: region.offset + inputs * outputs, task_stride, inputs, outputs }
    }

    /// Numbers from 0.01 to 1 for each task, laid out as [`Case::layer`] does.
    pub fn positive_layer(&mut self, tasks: usize, inputs: usize, outputs: usize) -> Linear {
        let layer = self.layer(tasks, inputs, outputs, false, false);
        for task in 0..tasks {
            let region = self.region_of(&layer, task);
            for value in &mut self.image[region.offset..][..region.len()] {
                *value = T::from_f64(self.rng.random_range(0.01..1.0));
            }
        }
        layer
    }

    /// The rates of a layer's parameters, or a single one, at hand or in the arena.
    pub fn rate(&mut self, per_parameter: bool, rates: Linear) -> Rate<T> {
        let one = Region { offset: rates.weight, rows: 1, width: 1 };
        match self.coin() {
            _ if per_parameter => Rate::PerParameter(rates),
            true => Rate::Single(one),
            false => Rate::Uniform(T::from_f64(0.2)),
        }
    }

    /// One task's weight and bias, of a layer made by [`Case::layer`].
    pub fn region_of(&self, layer: &Linear, task: usize) -> Region {
        let offset = layer.weight + task * layer.task_stride;
        Region { offset, rows: 1, width: layer.outputs * (layer.inputs + 1) }
    }

    /// Up to three terms for each block, with Gram matrices of every orientation.
    pub fn terms(&mut self, tasks: usize, rows: usize, blocks: usize, width: usize) -> Vec<Vec<Term>> {
        let mut all = Vec::new();
        for _ in 0..blocks {
            let mut terms = Vec::new();
            for _ in 0..self.pick(&[0, 1, 2, 3]) {
                let count = self.pick(&[1, 2, 5]);
                let (spare, bias, scale) =
                    (self.pick(&[0, 3]), self.pick(&[None, Some(0), Some(2)]), self.pick(&[0, 1, 2]));
                let (height, columns) = if self.coin() { (rows, count) } else { (count, rows) };
                let upright = height == rows && columns == count;
                let matrix = self.random(tasks * height, columns + spare);
                let (row_stride, column_stride) = if upright { (matrix.width, 1) } else { (1, matrix.width) };
                let gram = GramView {
                    offset: matrix.offset + spare,
                    task_stride: height * matrix.width,
                    row_stride,
                    column_stride,
                };
                let rows = self.random(tasks * count, width);
                terms.push(Term { gram, bias, scale, rows });
            }
            all.push(terms);
        }
        all
    }

    /// The operation's scratch, as large as its terms need.
    pub fn corrections<'a>(
        &mut self,
        tasks: usize,
        rows: usize,
        terms: &'a [Vec<Term>],
        share: f64,
    ) -> Corrections<'a> {
        let count: usize = terms.iter().flatten().map(|t| t.rows.rows / tasks).sum();
        let scratch = self.poisoned(1, count * tasks * rows);
        self.scratch.push(scratch);
        let mut numbers = [-0.4, 0.3, 1.1, share].into_iter();
        let scales = self.filled(1, 4, |_| numbers.next().unwrap());
        Corrections { share: (share != 1.0).then_some(3), blocks: terms, scales, scratch }
    }

    pub fn image(&self) -> Image {
        Image(self.image.iter().map(|v| v.to_f64()).collect())
    }

    /// Runs the operation on 1 and on 3 threads and holds its effect against what is expected of it: the regions
    /// written, with their content, row-major. Nothing else may change.
    pub fn judge(
        &self,
        what: &str,
        single: f64,
        expected: &[(Region, Vec<f64>)],
        operation: impl Fn(&CpuDevice, &mut CpuArena<T>),
    ) {
        self.judge_to(what, [1e-12, single], expected, operation);
    }

    /// The same with a tolerance for each precision.
    pub fn judge_to(
        &self,
        what: &str,
        [double, single]: [f64; 2],
        expected: &[(Region, Vec<f64>)],
        operation: impl Fn(&CpuDevice, &mut CpuArena<T>),
    ) {
        let whole = Region { offset: 0, rows: 1, width: self.image.len() };
        for device in &*DEVICES {
            let mut arena = Device::<T>::arena(device, whole.len()).unwrap();
            device.upload(&mut arena, whole, &self.image);
            operation(device, &mut arena);
            let after = arena.slice(whole);
            let place = format!("{what}, {}, seed {}, {} threads", T::NAME, self.seed, device.threads());
            let mut untouched = vec![true; whole.len()];
            for region in &self.scratch {
                untouched[region.offset..][..region.len()].fill(false);
            }
            for (region, values) in expected {
                assert_eq!(region.len(), values.len(), "{place}: the test expects another shape");
                let got = &after[region.offset..][..region.len()];
                let squares: f64 = got.iter().zip(values).map(|(g, v)| (g.to_f64() - v).powi(2)).sum();
                let norm: f64 = values.iter().map(|v| v * v).sum();
                // What is exactly zero must be zero; a few numbers alone may cancel, and lose a digit in f32.
                let digits = if region.len() < 16 { 10.0 } else { 1.0 };
                let tolerance = if T::NAME == "f64" { double } else { single * digits };
                let error = (squares / norm.max(f64::MIN_POSITIVE)).sqrt();
                assert!(error <= tolerance, "{place}: {region:?} is off by {error:e}");
                untouched[region.offset..][..region.len()].fill(false);
            }
            for (i, (now, before)) in after.iter().zip(&self.image).enumerate() {
                let same = now == before || now.to_f64().is_nan() && before.to_f64().is_nan();
                assert!(!untouched[i] || same, "{place}: element {i} was {before} and is {now}");
            }
        }
    }
}

/// The arena's content, in double precision.
pub struct Image(pub Vec<f64>);

impl Image {
    pub fn at(&self, region: Region, row: usize, column: usize) -> f64 {
        assert!(row < region.rows && column < region.width);
        self.0[region.offset + row * region.width + column]
    }

    pub fn of(&self, region: Region) -> &[f64] {
        &self.0[region.offset..][..region.len()]
    }

    pub fn weight(&self, layer: &Linear, task: usize, output: usize, input: usize) -> f64 {
        self.0[layer.weight + task * layer.task_stride + output * layer.inputs + input]
    }

    pub fn bias(&self, layer: &Linear, task: usize, output: usize) -> f64 {
        self.0[layer.bias + task * layer.task_stride + output]
    }

    /// `sum scale * (gram + bias) @ rows`, one element.
    pub fn correction(&self, corrections: &Corrections<'_>, tasks: usize, [block, task, k, column]: [usize; 4]) -> f64 {
        let mut sum = 0.0;
        for term in corrections.blocks.get(block).into_iter().flatten() {
            let (GramView { offset, task_stride, row_stride, column_stride }, count) =
                (term.gram, term.rows.rows / tasks);
            for i in 0..count {
                let gram = self.0[offset + task * task_stride + k * row_stride + i * column_stride];
                let factor = gram + term.bias.map_or(0.0, |index| self.at(corrections.scales, 0, index));
                sum +=
                    self.at(corrections.scales, 0, term.scale) * factor * self.at(term.rows, task * count + i, column);
            }
        }
        sum
    }
}

/// Every element of `blocks` blocks `[tasks, rows, width]`, from its block, task, row within the task, and column.
pub fn each<E>([blocks, tasks, rows, width]: [usize; 4], mut element: impl FnMut([usize; 4]) -> E) -> Vec<E> {
    let mut out = Vec::with_capacity(blocks * tasks * rows * width);
    for block in 0..blocks {
        for task in 0..tasks {
            for k in 0..rows {
                for column in 0..width {
                    out.push(element([block, task, k, column]));
                }
            }
        }
    }
    out
}
