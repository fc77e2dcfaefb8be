//! The plain loops over flat arrays.

use super::{CpuArena, CpuDevice};
use crate::device::Region;
use crate::scalar::Scalar;

/// See [`crate::device::Device::sum_rows`].
pub(super) fn sum_rows<T: Scalar>(
    device: &CpuDevice,
    arena: &mut CpuArena<T>,
    from: Region,
    scale: T,
    to: Region,
    accumulate: bool,
) {
    let base = arena.shared(&[from], &[to]);
    device.run_ranges(from.width, from.rows, |first, last| {
        // SAFETY: each job writes its own columns.
        let out = unsafe { base.slice_mut(to.offset + first, last - first) };
        if !accumulate {
            out.fill(T::ZERO);
        }
        for row in 0..from.rows {
            // SAFETY: a declared region that is only read.
            let row = unsafe { base.slice(from.offset + row * from.width + first, last - first) };
            out.iter_mut().zip(row).for_each(|(o, r)| *o += scale * *r);
        }
    });
}

/// See [`crate::device::Device::add_scaled`].
pub(super) fn add_scaled<T: Scalar>(device: &CpuDevice, arena: &mut CpuArena<T>, from: Region, scale: T, to: Region) {
    assert_eq!(from.len(), to.len());
    let base = arena.shared(&[from], &[to]);
    device.run_ranges(from.len(), 1, |first, last| {
        // SAFETY: each job writes its own elements.
        let (out, from) =
            unsafe { (base.slice_mut(to.offset + first, last - first), base.slice(from.offset + first, last - first)) };
        out.iter_mut().zip(from).for_each(|(o, f)| *o += scale * *f);
    });
}
