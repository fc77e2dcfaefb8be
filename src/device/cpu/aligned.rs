//! Numbers that begin at a cache line, so that a vector which is as wide as one never straddles two.

use std::collections::TryReserveError;
use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};

use crate::scalar::Scalar;

/// A cache line.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
struct Line([u64; 8]);

// SAFETY: plain numbers without padding.
unsafe impl bytemuck::Zeroable for Line {}
// SAFETY: as above.
unsafe impl bytemuck::Pod for Line {}

/// A slice of numbers on the heap, all 0 at first.
#[derive(Debug, Default)]
pub(super) struct Aligned<T> {
    lines: Vec<Line>,
    len: usize,
    numbers: PhantomData<T>,
}

impl<T: Scalar> Aligned<T> {
    /// `len` zeros.
    ///
    /// # Errors
    /// Not that much memory can be had.
    pub fn zeros(len: usize) -> Result<Self, TryReserveError> {
        let mut aligned = Self { lines: Vec::new(), len: 0, numbers: PhantomData };
        aligned.grow(len)?;
        Ok(aligned)
    }

    /// Makes room for `len` numbers at least; what is new is 0.
    ///
    /// # Errors
    /// As [`Aligned::zeros`].
    pub fn grow(&mut self, len: usize) -> Result<(), TryReserveError> {
        let lines = len.div_ceil(size_of::<Line>() / size_of::<T>());
        if lines > self.lines.len() {
            self.lines.try_reserve_exact(lines - self.lines.len())?;
            self.lines.resize(lines, Line([0; 8]));
        }
        self.len = self.len.max(len);
        Ok(())
    }
}

impl<T: Scalar> Deref for Aligned<T> {
    type Target = [T];
    fn deref(&self) -> &[T] {
        &bytemuck::cast_slice(&self.lines)[..self.len]
    }
}

impl<T: Scalar> DerefMut for Aligned<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        &mut bytemuck::cast_slice_mut(&mut self.lines)[..self.len]
    }
}
