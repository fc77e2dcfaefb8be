//! An arena with random numbers in some regions and NaN everywhere else, and the comparison of what became of it.

use innerloop::device::cpu::CpuDevice;
use innerloop::device::{Device, Linear, MatrixPrecision, Region};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// Orders of execution, or runs, that must agree to the last bit.
const SEEDS: u64 = 2;

/// Sums of up to a few hundred products in single precision: an error of 6e-8 each, which grows as their root.
const TOLERANCE: f64 = 2e-6;
/// The same on tensor cores, whose sums keep fewer bits on the way than `f32` rounds to: an H100 was off by up to 4.9e-6.
const TENSOR_TOLERANCE: f64 = 1e-5;

pub struct Scene {
    values: Vec<f32>,
    pub rng: ChaCha8Rng,
    writes: Vec<Region>,
    /// What the operation may do as it likes with.
    rooms: Vec<Region>,
    alignment: usize,
    precision: MatrixPrecision,
    /// What the operation rounds to that precision before it multiplies it.
    operands: Vec<Region>,
    /// What is made of operands before they are rounded.
    exact: Vec<Region>,
    /// How much larger rounding becomes on the way.
    magnified: f64,
    /// What is made of numbers that may be rounded to either side, and how far it may be off for that.
    loose: Vec<(Region, f64)>,
}

impl Scene {
    pub fn new(seed: u64) -> Self {
        Self {
            values: Vec::new(),
            rng: ChaCha8Rng::seed_from_u64(seed),
            writes: Vec::new(),
            rooms: Vec::new(),
            alignment: 1,
            precision: MatrixPrecision::F32,
            operands: Vec::new(),
            exact: Vec::new(),
            magnified: 1.0,
            loose: Vec::new(),
        }
    }

    /// Lets the regions to come begin at multiples of this many elements.
    pub fn align(&mut self, alignment: usize) {
        self.alignment = alignment;
    }

    /// The operation rounds these regions to the precision before it multiplies them.
    pub fn rounds(&mut self, precision: MatrixPrecision, operands: &[Region]) {
        self.precision = precision;
        self.operands.extend(operands);
    }

    /// The operation writes this from operands as they are.
    pub fn writes_exactly(&mut self, region: Region) {
        self.exact.push(region);
    }

    /// Several operations, one after the other, make rounding so many times as large.
    pub fn magnifies(&mut self, factor: f64) {
        self.magnified = factor;
    }

    /// The operation makes this of what it has made and rounded before, where numbers that are halfway may go to either side: so far
    /// it may be off.
    pub fn loosens(&mut self, region: Region, tolerance: f64) {
        self.loose.push((region, tolerance));
    }

    /// A gap, then room for a region; the offsets are of every alignment, or of the one asked for.
    fn room(&mut self, rows: usize, width: usize) -> Region {
        let gap = self.rng.random_range(1..20);
        self.values.resize((self.values.len() + gap).next_multiple_of(self.alignment), f32::NAN);
        let region = Region { offset: self.values.len(), rows, width };
        self.values.resize(self.values.len() + region.len(), f32::NAN);
        region
    }

    /// Random numbers.
    pub fn random(&mut self, rows: usize, width: usize) -> Region {
        let region = self.room(rows, width);
        for value in &mut self.values[region.offset..region.offset + region.len()] {
            *value = self.rng.random_range(-1.0..1.0);
        }
        region
    }

    /// Random numbers from `low` to `high`.
    pub fn between(&mut self, rows: usize, width: usize, low: f32, high: f32) -> Region {
        let region = self.room(rows, width);
        for value in &mut self.values[region.offset..region.offset + region.len()] {
            *value = self.rng.random_range(low..high);
        }
        region
    }

    /// These numbers.
    pub fn holding(&mut self, numbers: &[f32]) -> Region {
        let region = self.room(1, numbers.len());
        self.values[region.offset..region.offset + region.len()].copy_from_slice(numbers);
        region
    }

    /// NaN, to be written by the operation.
    pub fn written(&mut self, rows: usize, width: usize) -> Region {
        let region = self.room(rows, width);
        self.writes.push(region);
        region
    }

    /// Random numbers that the operation changes, or NaN that it writes.
    pub fn changed(&mut self, rows: usize, width: usize, begun: bool) -> Region {
        if !begun {
            return self.written(rows, width);
        }
        let region = self.random(rows, width);
        self.writes.push(region);
        region
    }

    /// Marks a region as one that the operation changes.
    pub fn also_written(&mut self, region: Region) -> &mut Self {
        self.writes.push(region);
        self
    }

    /// Room that the operation may leave anything in.
    pub fn worked_in(&mut self, rows: usize, width: usize) -> Region {
        let region = self.room(rows, width);
        self.rooms.push(region);
        region
    }

    /// Room whose content does not matter.
    pub fn scratch(&mut self, elements: usize) -> Region {
        self.room(1, elements)
    }

    /// A layer's weight and bias, shared, or one for each task with a gap between, aligned as regions are.
    pub fn layer(&mut self, tasks: usize, shared: bool, inputs: usize, outputs: usize) -> Linear {
        self.layer_of(tasks, shared, inputs, outputs, Content::Random)
    }

    pub fn layer_of(&mut self, tasks: usize, shared: bool, inputs: usize, outputs: usize, content: Content) -> Linear {
        let parameters = (inputs + 1) * outputs;
        let stride = (parameters + 3).next_multiple_of(self.alignment);
        let (count, gap) = if shared { (1, 0) } else { (tasks, stride - parameters) };
        let region = self.room(1, count * (parameters + gap));
        for task in 0..count {
            let part = region.elements(task * (parameters + gap), parameters);
            if content != Content::Written {
                for value in &mut self.values[part.offset..part.offset + parameters] {
                    *value = self.rng.random_range(-1.0..1.0);
                }
            }
            if content != Content::Random {
                self.writes.push(part);
            }
        }
        let task_stride = if shared { 0 } else { parameters + gap };
        Linear { weight: region.offset, bias: region.offset + inputs * outputs, task_stride, inputs, outputs }
    }

    /// Runs the operation on both devices and compares.
    pub fn compare<D: Device<f32>>(
        &self,
        make: super::Make<'_, D>,
        what: &str,
        reference: impl Fn(&CpuDevice, &mut <CpuDevice as Device<f64>>::Arena),
        operation: impl Fn(&D, &mut D::Arena),
    ) {
        let whole = Region { offset: 0, rows: 1, width: self.values.len() };
        let cpu = CpuDevice::new(1).unwrap();
        let mut arena = Device::<f64>::arena(&cpu, self.values.len()).unwrap();
        let mut outcome = |values: &[f64]| {
            cpu.upload(&mut arena, whole, values);
            reference(&cpu, &mut arena);
            let mut expected = vec![0.0; values.len()];
            cpu.download(&arena, whole, &mut expected);
            expected
        };
        let mut values: Vec<f64> = self.values.iter().map(|v| f64::from(*v)).collect();
        let unrounded = outcome(&values);
        for operand in &self.operands {
            let part = &mut values[operand.offset..operand.offset + operand.len()];
            part.iter_mut().for_each(|v| *v = rounded(self.precision, *v));
        }
        let mut expected = outcome(&values);
        for region in &self.exact {
            let range = region.offset..region.offset + region.len();
            expected[range.clone()].copy_from_slice(&unrounded[range]);
        }

        let mut first: Option<Vec<f32>> = None;
        for seed in 0..SEEDS {
            let device = make(seed);
            let mut arena = device.arena(self.values.len()).unwrap();
            device.upload(&mut arena, whole, &self.values);
            operation(&device, &mut arena);
            let mut got = vec![0.0f32; self.values.len()];
            device.download(&arena, whole, &mut got);
            device.check().unwrap();
            match &first {
                None => {
                    let exact = if self.precision == MatrixPrecision::F32 { TOLERANCE } else { TENSOR_TOLERANCE };
                    self.judge(what, &expected, &got, exact, 1);
                    // A few outputs alone may be sums that cancel, which no rounding of operands can meet.
                    let rounded = self.magnified * tolerance(self.precision);
                    self.judge(&format!("{what}, unrounded"), &unrounded, &got, rounded, 16);
                    first = Some(got);
                }
                Some(first) => {
                    let differs = first.iter().zip(&got).position(|(a, b)| a.to_bits() != b.to_bits());
                    assert_eq!(differs, None, "{what}: the result depends on the order of execution");
                }
            }
        }
    }

    /// Holds every region of at least `fewest` elements to what is expected.
    fn judge(&self, what: &str, expected: &[f64], got: &[f32], tolerance: f64, fewest: usize) {
        let mut untouched = vec![true; got.len()];
        for write in &self.writes {
            let range = write.offset..write.offset + write.len();
            untouched[range.clone()].fill(false);
            let (mut difference, mut norm) = (0.0, 0.0);
            for (e, g) in expected[range.clone()].iter().zip(&got[range]) {
                difference += (f64::from(*g) - e) * (f64::from(*g) - e);
                norm += e * e;
            }
            let loose = self.loose.iter().find(|(region, _)| region == write).map_or(0.0, |(_, loose)| *loose);
            let tolerance = tolerance.max(loose);
            let error = if norm > 0.0 { (difference / norm).sqrt() } else { difference.sqrt() };
            assert!(error <= tolerance || write.len() < fewest, "{what}: {write:?} is off by {error:e}");
        }
        for room in &self.rooms {
            untouched[room.offset..room.offset + room.len()].fill(false);
        }
        for (i, _) in untouched.iter().enumerate().filter(|(_, untouched)| **untouched) {
            let (before, after) = (self.values[i], got[i]);
            assert_eq!(
                before.to_bits(),
                after.to_bits(),
                "{what}: element {i} is not its to write: {before} to {after}"
            );
        }
    }
}

/// How far a result may be off that of unrounded operands.
pub fn tolerance(precision: MatrixPrecision) -> f64 {
    match precision {
        MatrixPrecision::F32 => 2e-5,
        MatrixPrecision::Tf32 | MatrixPrecision::F16 => 5e-3,
        MatrixPrecision::Bf16 => 5e-2,
    }
}

/// The nearest number of the precision, of two the even one.
pub fn rounded(precision: MatrixPrecision, value: f64) -> f64 {
    let (bits, smallest_exponent) = match precision {
        MatrixPrecision::F32 => return value,
        MatrixPrecision::Tf32 => (11, -126),
        MatrixPrecision::Bf16 => (8, -126),
        MatrixPrecision::F16 => (11, -14),
    };
    let exponent = ((value.to_bits() >> 52 & 0x7ff) as i32 - 1023).max(smallest_exponent);
    let unit = 2f64.powi(exponent + 1 - bits);
    (value / unit).round_ties_even() * unit
}

/// What a layer holds before the operation, and whether that changes it.
#[derive(Clone, Copy, PartialEq)]
pub enum Content {
    Random,
    Changed,
    Written,
}

/// Expands an operation twice: on the CPU with `T = f64`, on the device with `T = f32`.
macro_rules! compare {
    ($scene:expr, $make:expr, $what:expr, |$device:ident, $arena:ident, $t:ident| $body:expr) => {
        $scene.compare(
            $make,
            &$what,
            |$device, $arena| {
                #[allow(dead_code)]
                type $t = f64;
                $body
            },
            |$device, $arena| {
                #[allow(dead_code)]
                type $t = f32;
                $body
            },
        )
    };
}
pub(crate) use compare;
