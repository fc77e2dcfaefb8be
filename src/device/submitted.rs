use super::{Device, Region};
use crate::scalar::Scalar;

/// The results of submitted work, on a device that carries it out at once.
#[derive(Clone, Debug)]
pub struct Submitted<T> {
    results: Vec<T>,
}

impl<T> Default for Submitted<T> {
    fn default() -> Self {
        Self { results: Vec::new() }
    }
}

impl<T: Scalar> Submitted<T> {
    /// See [`Device::submit`].
    pub(super) fn carry_out<D: Device<T>>(
        &mut self,
        device: &D,
        arena: &mut D::Arena,
        results: &[Region],
        work: impl FnOnce(&D, &mut D::Arena),
    ) {
        work(device, arena);
        self.make_room(results);
        let mut to = self.room();
        for region in results {
            let (part, rest) = to.split_at_mut(region.len());
            device.download(arena, *region, part);
            to = rest;
        }
    }

    /// Room for the numbers of the regions.
    pub(super) fn make_room(&mut self, results: &[Region]) {
        self.results.resize(results.iter().map(Region::len).sum(), T::ZERO);
    }

    /// All of the room.
    pub(super) fn room(&mut self) -> &mut [T] {
        &mut self.results
    }

    /// See [`Device::results`].
    pub(super) fn results(&self) -> &[T] {
        &self.results
    }
}
