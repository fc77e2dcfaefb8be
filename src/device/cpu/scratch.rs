//! Room that each thread keeps from one operation to the next.

use std::cell::RefCell;

use super::aligned::Aligned;
use crate::scalar::Scalar;

#[derive(Default)]
struct Scratch {
    offsets: Vec<usize>,
    /// Numbers of either precision.
    values: Aligned<f64>,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

/// Lends this thread's list of offsets and `elements` numbers of unspecified value.
///
/// Must not be nested: `work` may not start other operations.
pub(super) fn scratch<T: Scalar, R>(elements: usize, work: impl FnOnce(&mut Vec<usize>, &mut [T]) -> R) -> R {
    SCRATCH.with_borrow_mut(|scratch| {
        let words = (elements * size_of::<T>()).div_ceil(size_of::<f64>());
        scratch.values.grow(words).expect("room for a tile");
        let values: &mut [T] = bytemuck::cast_slice_mut(&mut scratch.values[..words]);
        work(&mut scratch.offsets, &mut values[..elements])
    })
}
