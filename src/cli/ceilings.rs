//! What a device reaches at best: the rates that measurements are held against.

use std::time::Instant;

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

/// Flop a second on a 2048 x 2048 x 2048 product.
pub(super) fn matrix_rate<T: Scalar, D: Device<T>>(device: &D) -> Result<f64> {
    const N: usize = 2048;
    let mut plan = ArenaPlan::default();
    let (x, w, b, out) = (plan.take(N, N), plan.take(N, N), plan.take(1, N), plan.take(N, N));
    let mut arena = device.arena(plan.elements())?;
    for region in [x, w] {
        device.fill(&mut arena, region, T::from_f64(0.5));
    }
    let operation = LinearForward {
        tasks: N,
        rows: 1,
        input: x,
        layer: Linear { weight: w.offset, bias: b.offset, task_stride: 0, inputs: N, outputs: N },
        corrections: Corrections::NONE,
        activation: Activation::Linear,
        output: out,
    };
    let seconds = fastest(5, || {
        device.linear_forward(&mut arena, &operation);
        device.download(&arena, out.elements(0, 1), &mut [T::ZERO]);
    });
    Ok(2.0 * (N * N * N) as f64 / seconds)
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
