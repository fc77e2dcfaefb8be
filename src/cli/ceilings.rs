//! What a device reaches at best: the rates that measurements are held against.

use std::time::Instant;

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::device::{ArenaPlan, Corrections, Device, Linear, LinearForward};
use crate::model::Activation;
use crate::{Result, Scalar};

/// The shortest of some runs, in seconds. A device may still be at work: `run` waits for it.
fn fastest(runs: usize, mut run: impl FnMut()) -> f64 {
    let time = |_| {
        let start = Instant::now();
        run();
        start.elapsed().as_secs_f64()
    };
    (0..runs).map(time).fold(f64::INFINITY, f64::min)
}

/// Flop a second on a large product: of 2048 x 2048 x 2048, or 4096 on a device that goes on by itself.
pub(super) fn matrix_rate<T: Scalar, D: Device<T>>(device: &D) -> Result<f64> {
    let n = if device.runs_behind() { 4096 } else { 2048 };
    Ok(2.0 * (n * n * n) as f64 / product::<T, D>(device, [n; 3], Activation::Linear)?.seconds)
}

/// How long a layer takes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Layer {
    pub seconds: f64,
    /// The same with all operands and the output in the bits that the device multiplies, if it can.
    pub rounded: Option<f64>,
}

/// What a layer takes, act(x W^T + b) of `rows` rows, from `inputs` to `outputs`.
pub(super) fn product<T: Scalar, D: Device<T>>(
    device: &D,
    [rows, inputs, outputs]: [usize; 3],
    activation: Activation,
) -> Result<Layer> {
    let mut plan = ArenaPlan::default();
    let (x, w) = (plan.take(rows, inputs), plan.take(outputs, inputs));
    let (b, output) = (plan.take(1, outputs), plan.take(rows, outputs));
    // A device has room for copies in 16 bits behind an arena: a part of its size, for which there is more than the operands and the
    // output.
    plan.take(1, 4 * (x.len() + w.len() + output.len()));
    let mut arena = device.arena(plan.elements())?;
    let mut rng = ChaCha8Rng::seed_from_u64(0);
    for region in [x, w, b] {
        let numbers: Vec<T> = (0..region.len()).map(|_| T::from_f64(rng.random_range(-1.0..1.0))).collect();
        device.upload(&mut arena, region, &numbers);
    }
    let operation = LinearForward {
        tasks: 1,
        rows,
        input: x,
        layer: Linear { weight: w.offset, bias: b.offset, task_stride: 0, inputs, outputs },
        corrections: Corrections::NONE,
        activation,
        output,
    };
    // One after the other, so that a start and a wait are shared by many.
    let count = if device.runs_behind() { 20 } else { 1 };
    let time = |arena: &mut D::Arena, rounded| {
        let seconds = fastest(5, || {
            for _ in 0..count {
                if rounded {
                    device.linear_forward_rounded(arena, &operation);
                } else {
                    device.linear_forward(arena, &operation);
                }
            }
            device.download(arena, output.elements(0, 1), &mut [T::ZERO]);
        });
        seconds / f64::from(count)
    };
    // In this order: copies that are kept leave less room to those of one product.
    let seconds = time(&mut arena, false);
    let rounded = device.linear_forward_rounded(&mut arena, &operation).then(|| time(&mut arena, true));
    let layer = Layer { seconds, rounded };
    device.check()?;
    Ok(layer)
}

/// How fast memory is.
#[derive(Clone, Copy, Debug)]
pub(super) struct Memory {
    /// Bytes read and written a second.
    pub bytes_per_second: f64,
    /// Bytes of the two arrays it was measured on, together.
    pub bytes: usize,
}

/// The better of a copy and an addition (`y += a x`, which takes every thread) of arrays that take twice the room of
/// the largest cache together, 256 MB at least and 2 GB at most.
pub(super) fn memory<T: Scalar, D: Device<T>>(device: &D) -> Result<Memory> {
    let array = largest_cache().clamp(1 << 27, 1 << 30);
    let elements = array / size_of::<T>();
    let mut plan = ArenaPlan::default();
    let [x, y] = [(); 2].map(|()| plan.take(1, elements));
    let mut arena = device.arena(plan.elements())?;
    for region in [x, y] {
        device.fill(&mut arena, region, T::ONE);
    }
    let copy = fastest(3, || {
        device.copy(&mut arena, x, y);
        device.download(&arena, y.elements(0, 1), &mut [T::ZERO]);
    });
    let addition = fastest(3, || {
        device.add_scaled(&mut arena, x, T::ONE, y);
        device.download(&arena, y.elements(0, 1), &mut [T::ZERO]);
    });
    let bytes = array as f64;
    Ok(Memory { bytes_per_second: (2.0 * bytes / copy).max(3.0 * bytes / addition), bytes: 2 * array })
}

/// Bytes of the processor's largest cache, where the system tells; otherwise 0.
fn largest_cache() -> usize {
    let size = |index: usize| {
        let text = std::fs::read_to_string(format!("/sys/devices/system/cpu/cpu0/cache/index{index}/size")).ok()?;
        cache_size(text.trim())
    };
    (0..8).filter_map(size).max().unwrap_or(0)
}

/// "48K" or "32M" in bytes.
fn cache_size(text: &str) -> Option<usize> {
    let (number, unit) = text.split_at(text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len()));
    let unit = match unit {
        "" => 1,
        "K" => 1 << 10,
        "M" => 1 << 20,
        "G" => 1 << 30,
        _ => return None,
    };
    number.parse::<usize>().ok()?.checked_mul(unit)
}

#[cfg(test)]
mod tests {
    use super::{cache_size, memory};
    use crate::device::cpu::CpuDevice;

    #[test]
    fn sizes_of_caches() {
        assert_eq!(
            ["48K", "2048K", "3M", "1G", "512"].map(cache_size),
            [49152, 2 << 20, 3 << 20, 1 << 30, 512].map(Some)
        );
        assert_eq!(["", "K", "12X", "-1K"].map(cache_size), [None; 4]);
    }

    #[test]
    fn memory_is_neither_instant_nor_still() {
        let measured = memory::<f32, _>(&CpuDevice::new(2).unwrap()).unwrap();
        assert!(measured.bytes >= 1 << 28 && (1e8..1e13).contains(&measured.bytes_per_second), "{measured:?}");
    }
}
