//! The memory of a device, and what launches may touch of it.

use std::sync::{Mutex, PoisonError};

use super::driver::Driver;
use super::{CudaDevice, finish, graph, outer_product, pool, reduction, settle};
use crate::Result;
use crate::device::Region;
use crate::device::region::check_access;

/// Counters behind an arena.
pub(super) const COUNTERS: usize = 16_384;

/// Memory of a [`CudaDevice`]: the regions, and behind them room for partial sums and for copies in 16 bits.
pub struct CudaArena<D: Driver> {
    pub(super) memory: D::Memory,
    pub(super) elements: usize,
    /// Where the room for the parts of large sums is, offset and length.
    pub(super) sums: (usize, usize),
    /// Where that for copies is.
    pub(super) copies: (usize, usize),
    pub(super) pool: Mutex<pool::Pool>,
    /// The end of a product that waits for what comes next.
    pub(super) pending: Mutex<finish::Pending<D>>,
    /// A sum of gradients that does so too.
    pub(super) settling: Mutex<Option<settle::Pending<D>>>,
    /// Work that is being submitted; what is asked for goes there instead.
    pub(super) recording: Mutex<Option<graph::Recording<D>>>,
}

impl<D: Driver> CudaArena<D> {
    /// An arena of `elements`, with the room behind it.
    pub(super) fn new(device: &CudaDevice<D>, elements: usize) -> Result<Self> {
        // Sixteen bytes' worth, so that regions that begin at multiples of that can be copied by as much, emulated too.
        let sums = (elements.next_multiple_of(2) + reduction::PARTIALS + COUNTERS).next_multiple_of(4);
        let sums = (sums, outer_product::room_for_sums(elements));
        let start = sums.0 + sums.1;
        let room = device.room_for_packed(elements).next_multiple_of(4);
        let mut memory = device.driver.allocate(start + room)?;
        D::keep_to(&memory, std::iter::once((sums.0 - COUNTERS, COUNTERS)));
        device.attempt(format_args!("the counters behind an arena"), || {
            device.driver.write(&mut memory, sums.0 - COUNTERS, &vec![0.0; COUNTERS])
        });
        let pool = Mutex::new(pool::Pool::new(start, room, device.room_for_kept(elements)));
        let (pending, settling, recording) = (Mutex::default(), Mutex::default(), Mutex::default());
        let copies = (start, room);
        Ok(Self { memory, elements, sums, copies, pool, pending, settling, recording })
    }

    /// Checks an operation's regions, see [`check_access`], and tells the driver of them. What was put off goes first.
    pub(super) fn check(&self, reads: &[Region], writes: &[Region]) {
        self.flush();
        self.admit(reads, writes);
        self.keep_to(reads.iter().chain(writes));
    }

    /// Launches what was put off.
    pub(super) fn flush(&self) {
        finish::flush(self);
        settle::flush(self);
    }

    /// Checks regions of an operation that is a part of the one that was put off.
    pub(super) fn admit(&self, reads: &[Region], writes: &[Region]) {
        check_access(self.elements, reads, writes);
        self.pool.lock().unwrap_or_else(PoisonError::into_inner).written(writes);
    }

    /// Tells the driver what the coming launch keeps to; it may read all of it.
    pub(super) fn keep_to<'a>(&self, regions: impl Iterator<Item = &'a Region> + Clone) {
        if let Some(recording) = self.recording().as_mut() {
            regions.clone().for_each(|region| recording.reads(*region));
        }
        self.let_touch(regions);
    }

    /// The same of a launch that reads nothing of what it writes.
    pub(super) fn keep_to_writing(&self, reads: &[Region], writes: &[Region]) {
        self.keep_to(reads.iter());
        self.let_touch(writes.iter());
    }

    fn let_touch<'a>(&self, regions: impl Iterator<Item = &'a Region>) {
        let behind = [(self.partials(), reduction::PARTIALS), (self.counters(), COUNTERS), self.sums, self.copies];
        let regions = regions.map(|region| (region.offset, region.len())).chain(behind);
        match self.recording().as_mut() {
            Some(recording) => recording.keep_to(regions),
            None => D::keep_to(&self.memory, regions),
        }
    }

    /// Tells that the last launch writes a region that nothing may be going to read, by the offset that lies at byte `at` of its
    /// arguments: where that is [`NOWHERE`](super::NOWHERE) it leaves it out.
    pub(super) fn may_leave_out(&self, at: usize, region: Region) {
        if let Some(recording) = self.recording().as_mut() {
            recording.may_leave_out(at, region);
        }
    }

    /// Where the room for partial sums begins.
    pub(super) fn partials(&self) -> usize {
        self.elements.next_multiple_of(2)
    }

    /// Where blocks count themselves; zeros between launches.
    pub(super) fn counters(&self) -> usize {
        self.sums.0 - COUNTERS
    }
}
