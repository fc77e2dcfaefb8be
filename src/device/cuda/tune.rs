//! Measures which kernel is fastest for which shape.

use std::time::Instant;

use super::driver::{Driver, Kernel};
use super::tensor::Kernels;
use super::tiles::{Fastest, Tiles};
use super::{CudaDevice, Warpgroups, linear, outer_product};
use crate::device::{
    AdjointForward, ArenaPlan, Corrections, Device, Gate, Linear, LinearBackward, LinearForward, MatrixPrecision,
    OuterProduct, OuterTerm, Region,
};
use crate::model::Activation;
use crate::{Error, Result};

/// What to measure.
#[derive(Clone, Debug, PartialEq)]
pub struct Tuning {
    /// What operands are rounded to.
    pub precisions: Vec<MatrixPrecision>,
    /// Rows of the output.
    pub rows: Vec<usize>,
    /// Columns of the output.
    pub columns: Vec<usize>,
    /// Length of the sums.
    pub inner: usize,
    /// Seconds for each kernel and shape, at least.
    pub seconds: f64,
}

impl Default for Tuning {
    /// From a few tasks' rows to those of thousands, and the widths of small and large layers.
    fn default() -> Self {
        Self {
            precisions: vec![MatrixPrecision::Tf32, MatrixPrecision::Bf16, MatrixPrecision::F16],
            rows: vec![5, 25, 80, 320, 1280, 5120, 20_480, 65_536],
            columns: vec![64, 128, 256, 512, 1024, 4096, 16_384, 65_536],
            inner: 512,
            seconds: 0.01,
        }
    }
}

/// An output beyond this is left out: the nearest smaller one stands for it.
const LARGEST_OUTPUT: usize = 1 << 28;

impl Tuning {
    /// # Errors
    /// Nothing to measure, or not on tensor cores.
    fn check(&self) -> Result<()> {
        let counts = [&self.rows, &self.columns];
        if self.inner == 0 || counts.iter().any(|sizes| sizes.is_empty() || sizes.contains(&0)) {
            let problem = format!("rows {:?}, columns {:?}, inner {}", self.rows, self.columns, self.inner);
            return Err(Error::invalid("shapes to tune for", problem, "at least one of each, none of them 0"));
        }
        if self.precisions.is_empty() || self.precisions.contains(&MatrixPrecision::F32) {
            let problem = format!("{:?}", self.precisions);
            return Err(Error::invalid("precisions to tune for", problem, "tf32, bf16 or f16: f32 has one tile"));
        }
        Ok(())
    }

    /// The shapes, rows and columns.
    fn shapes(&self) -> impl Iterator<Item = (usize, usize)> {
        let pairs = self.rows.iter().flat_map(|rows| self.columns.iter().map(|columns| (*rows, *columns)));
        pairs.filter(|(rows, columns)| rows * columns <= LARGEST_OUTPUT)
    }
}

/// The operands of every product of one shape.
struct Operands {
    rows: usize,
    columns: usize,
    inner: usize,
    /// `[rows, inner]`, `[inner, rows]`.
    left: Region,
    left_transposed: Region,
    /// `[inner, columns]`, and room for a bias of either.
    right: Region,
    bias: Region,
    /// `[rows, columns]`.
    output: Region,
    delta: Region,
    values: Region,
    /// How many numbers there are.
    len: usize,
}

impl Operands {
    fn new(rows: usize, columns: usize, inner: usize) -> Self {
        let mut plan = ArenaPlan::default();
        // Every region begins where wide copies can.
        let mut take = |rows: usize, width: usize| {
            plan.take(1, plan.elements().next_multiple_of(4) - plan.elements());
            plan.take(rows, width)
        };
        let (left, left_transposed, right) = (take(rows, inner), take(inner, rows), take(inner, columns));
        let bias = take(1, columns.max(rows).max(inner));
        let (output, delta, values) = (take(rows, columns), take(rows, columns), take(rows, columns));
        Self { rows, columns, inner, left, left_transposed, right, bias, output, delta, values, len: plan.elements() }
    }

    /// Carries out the product whose kernels these are.
    fn multiply<D: Driver>(&self, product: Kernel, device: &CudaDevice<D>, arena: &mut super::CudaArena<D>) {
        let (tasks, rows, corrections) = (self.rows, 1, Corrections::NONE);
        let (weight, bias) = (self.right.offset, self.bias.offset);
        let up = Linear { weight, bias, task_stride: 0, inputs: self.inner, outputs: self.columns };
        let down = Linear { inputs: self.columns, outputs: self.inner, ..up };
        let gate = Gate { activation: Activation::Relu, values: self.values, blocks: &[0] };
        match product {
            Kernel::LinearForward => {
                let (input, activation, output) = (self.left, Activation::Relu, self.output);
                let operation = LinearForward { tasks, rows, input, layer: up, corrections, activation, output };
                device.linear_forward(arena, &operation);
            }
            Kernel::LinearBackward => {
                let (delta, gate, output) = (self.left, Some(gate), self.output);
                let operation = LinearBackward { tasks, rows, delta, layer: down, corrections, gate, output };
                device.linear_backward(arena, &operation);
            }
            Kernel::AdjointForward => {
                let operation = AdjointForward {
                    tasks,
                    rows,
                    input: Some((self.left, 0)),
                    layer: up,
                    direction: None,
                    corrections,
                    gate,
                    delta: self.delta,
                    z_cotangent: self.values,
                    e_cotangent: self.output,
                };
                device.adjoint_forward(arena, &operation);
            }
            _ => {
                let layer = Linear {
                    weight: self.output.offset,
                    bias,
                    task_stride: 0,
                    inputs: self.columns,
                    outputs: self.rows,
                };
                let terms = [OuterTerm {
                    p: self.left_transposed,
                    q: self.right,
                    bias: 1.0,
                    blocks: 1,
                    scale: 1.0,
                    share: None,
                }];
                let tasks = self.inner;
                device.outer_product(arena, &OuterProduct { tasks, terms: &terms, layer, accumulate: false });
            }
        }
    }
}

/// The products that have kernels on tensor cores.
const PRODUCTS: [&Kernels; 4] = [&linear::FORWARD, &linear::BACKWARD, &linear::ADJOINT, &outer_product::OUTER_PRODUCT];

/// Times every kernel for every shape; `progress` is told how many shapes are done, of how many.
///
/// # Errors
/// Nothing to measure, too little memory, or a device that failed.
pub fn tune<D: Driver>(
    device: &CudaDevice<D>,
    tuning: &Tuning,
    mut progress: impl FnMut(usize, usize),
) -> Result<Tiles> {
    tuning.check()?;
    let all = tuning.shapes().count();
    let mut tiles = Tiles { gpu: device.model(), ..Tiles::default() };
    for (done, (rows, columns)) in tuning.shapes().enumerate() {
        progress(done, all);
        let operands = Operands::new(rows, columns, tuning.inner);
        let mut arena = device.arena(operands.len)?;
        for (kernels, precision) in PRODUCTS.iter().flat_map(|k| tuning.precisions.iter().map(move |p| (*k, *p))) {
            let entry = |kernel: Kernel, microseconds| Fastest {
                product: kernels.plain.name().into(),
                precision,
                rows,
                columns,
                kernel: kernel.name().into(),
                microseconds,
            };
            let mut times = Vec::new();
            for kernel in kernels.on_tensor_cores() {
                // A table with but this kernel, which every shape is nearest to.
                let only = Tiles { fastest: vec![entry(kernel, Vec::new())], ..Tiles::default() };
                // What warpgroups would take, they take by a rule of their own.
                let device = device.clone().with_precision(precision).with_warpgroups(Warpgroups::Never);
                let device = device.with_tiles(Some(&only));
                let time = seconds_of(&device, &mut arena, &operands, kernels.plain, tuning.seconds)?;
                times.push((time, kernel));
            }
            times.sort_by(|a, b| a.0.total_cmp(&b.0));
            if let Some((_, kernel)) = times.first() {
                let microseconds = times.iter().map(|(time, _)| (time * 1e9).round() / 1e3).collect();
                tiles.fastest.push(entry(*kernel, microseconds));
            }
        }
    }
    progress(all, all);
    Ok(tiles)
}

/// Seconds that one of many products takes, one after the other.
fn seconds_of<D: Driver>(
    device: &CudaDevice<D>,
    arena: &mut super::CudaArena<D>,
    operands: &Operands,
    product: Kernel,
    least: f64,
) -> Result<f64> {
    let mut time = |count: usize| -> Result<f64> {
        let start = Instant::now();
        for _ in 0..count {
            operands.multiply(product, device, arena);
        }
        // Waits for them.
        device.download(arena, operands.output.elements(0, 1), &mut [0.0]);
        device.check()?;
        Ok(start.elapsed().as_secs_f64())
    };
    time(1)?;
    let mut count = 1;
    loop {
        let seconds = time(count)?;
        if seconds >= least {
            return Ok(seconds / count as f64);
        }
        count =
            if seconds > 0.0 { (count as f64 * (1.2 * least / seconds)).ceil().min(1e6) as usize } else { 2 * count };
    }
}
