//! Work as one graph: what a piece of work asks for is kept, and the next time it is launched as a whole.
//!
//! The first time everything is carried out as it comes, so that a failure names the operation. The second time it is kept
//! and a graph is made of it. From then on the launches are only held against those of the last time: the graph is told of
//! arguments that differ (rates, the outer optimizer's step, minibatches), and made anew where other kernels, grids or copies
//! are asked for.
//!
//! Only when all of it is known can be told which of the numbers that it writes nothing reads before they are discarded: kernels
//! that may leave such out are told to.

use std::sync::PoisonError;

use bytemuck::Zeroable;

use super::driver::{ArgumentPiece, Driver, GraphStep, GraphWork, Kernel};
use super::{CudaArena, CudaDevice, NOWHERE};
use crate::device::{Region, Submitted};

/// Work that was submitted to a [`CudaDevice`]; see [`crate::device::Device::submit`].
pub struct CudaGraph<D: Driver> {
    record: Record,
    /// Once the work was asked for a second time.
    graph: Option<D::Graph>,
    /// Whether the first time has been.
    begun: bool,
    /// Whether the last time was a replay, and [`CudaGraph::results`] are still to be fetched from it.
    replayed: bool,
    results: Submitted<f32>,
    /// While work is recorded: the launches that have other arguments, and what the coming step keeps to.
    changed: Vec<usize>,
    regions: Vec<(usize, usize)>,
    /// What steps may leave out; what the record has them leave out, and had the last time.
    outputs: Vec<Output>,
    left_out: Vec<LeftOut>,
    last_left_out: Vec<LeftOut>,
}

/// An output that a step may leave out.
#[derive(Clone, Copy, Debug)]
struct Output {
    step: usize,
    /// The byte of the arguments where its offset lies.
    at: usize,
    region: Region,
    read: bool,
    discarded: bool,
}

/// An output that a step leaves out, and what was there in its arguments.
#[derive(Clone, Copy, Debug)]
struct LeftOut {
    step: usize,
    at: usize,
    offset: u64,
}

impl<D: Driver> Default for CudaGraph<D> {
    fn default() -> Self {
        Self {
            record: Record::default(),
            graph: None,
            begun: false,
            replayed: false,
            results: Submitted::default(),
            changed: Vec::new(),
            regions: Vec::new(),
            outputs: Vec::new(),
            left_out: Vec::new(),
            last_left_out: Vec::new(),
        }
    }
}

/// What was asked for, in order.
#[derive(Default)]
struct Record {
    steps: Vec<Step>,
    pieces: Vec<ArgumentPiece>,
    regions: Vec<(usize, usize)>,
    /// What goes in, until there is a graph whose own room it can be written to.
    staging: Vec<f32>,
}

/// A step, and where its pieces and regions end; they begin where those of the step before end.
#[derive(Clone, Copy)]
struct Step {
    work: GraphWork,
    pieces: usize,
    regions: usize,
}

impl Record {
    fn begin(&self, index: usize) -> [usize; 2] {
        index.checked_sub(1).map_or([0, 0], |last| [self.steps[last].pieces, self.steps[last].regions])
    }

    fn step(&self, index: usize) -> GraphStep<'_> {
        let ([pieces, regions], step) = (self.begin(index), self.steps[index]);
        GraphStep {
            work: step.work,
            arguments: &self.pieces[pieces..step.pieces],
            regions: &self.regions[regions..step.regions],
        }
    }

    /// Puts another offset at byte `at` of a step's arguments; returns what was there.
    fn replace(&mut self, index: usize, at: usize, offset: u64) -> u64 {
        let [first, _] = self.begin(index);
        let bytes: &mut [u8] = bytemuck::cast_slice_mut(&mut self.pieces[first..]);
        let place = &mut bytes[at..at + size_of::<u64>()];
        let before = bytemuck::pod_read_unaligned(place);
        place.copy_from_slice(&offset.to_ne_bytes());
        before
    }

    /// Forgets the steps from `index` on.
    fn truncate(&mut self, index: usize) {
        let [pieces, regions] = self.begin(index);
        self.steps.truncate(index);
        self.pieces.truncate(pieces);
        self.regions.truncate(regions);
    }

    fn push(&mut self, work: GraphWork, arguments: &[u8], regions: &[(usize, usize)]) {
        let first = self.pieces.len();
        self.pieces.resize(first + arguments.len().div_ceil(size_of::<ArgumentPiece>()), ArgumentPiece::zeroed());
        bytemuck::cast_slice_mut(&mut self.pieces[first..])[..arguments.len()].copy_from_slice(arguments);
        self.regions.extend_from_slice(regions);
        self.steps.push(Step { work, pieces: self.pieces.len(), regions: self.regions.len() });
    }
}

/// Work in the course of being asked for.
pub(super) struct Recording<D: Driver> {
    of: CudaGraph<D>,
    /// Steps and numbers that went in, so far.
    position: usize,
    staged: usize,
    results: usize,
    /// Whether all of them were the last time's, arguments apart; from the first that is not, the record is written anew.
    same: bool,
}

impl<D: Driver> Recording<D> {
    fn new(of: CudaGraph<D>) -> Self {
        let same = of.graph.is_some();
        let mut this = Self { of, position: 0, staged: 0, results: 0, same };
        let CudaGraph { record, changed, outputs, left_out, .. } = &mut this.of;
        changed.clear();
        outputs.clear();
        if same {
            // What is asked for is held against what was.
            for LeftOut { step, at, offset } in left_out {
                record.replace(*step, *at, *offset);
            }
        } else {
            *record = Record::default();
            left_out.clear();
        }
        this
    }

    /// Tells it that the coming step, or what is asked for beside steps, may read a region.
    pub fn reads(&mut self, region: Region) {
        self.outputs_in(region, |output| output.read = true);
    }

    /// See [`crate::device::Device::discard`].
    pub fn discard(&mut self, region: Region) {
        let end = region.offset + region.len();
        self.outputs_in(region, |output| {
            let inside = output.region.offset >= region.offset && output.region.offset + output.region.len() <= end;
            output.discarded |= inside && !output.read;
        });
    }

    fn outputs_in(&mut self, region: Region, mark: impl Fn(&mut Output)) {
        let known = self.of.outputs.iter_mut().filter(|output| !output.discarded);
        known.filter(|output| output.region.overlaps(&region)).for_each(mark);
    }

    /// Tells it that the last step may leave an output out, by the offset at byte `at` of its arguments.
    pub fn may_leave_out(&mut self, at: usize, region: Region) {
        let Some(step) = self.position.checked_sub(1).filter(|_| !region.is_empty()) else { return };
        self.of.outputs.push(Output { step, at, region, read: false, discarded: false });
    }

    /// Has steps leave out what nothing reads; those that left out something else the last time have changed.
    fn leave_out(&mut self) {
        let CudaGraph { record, changed, outputs, left_out, last_left_out, .. } = &mut self.of;
        std::mem::swap(left_out, last_left_out);
        left_out.clear();
        for Output { step, at, .. } in outputs.iter().filter(|output| output.discarded) {
            let offset = record.replace(*step, *at, NOWHERE);
            left_out.push(LeftOut { step: *step, at: *at, offset });
        }
        let place = |of: &LeftOut| (of.step, of.at);
        for (some, others) in [(&*left_out, &*last_left_out), (&*last_left_out, &*left_out)] {
            let alone = |of: &&LeftOut| others.iter().all(|other| place(other) != place(of));
            changed.extend(some.iter().filter(alone).map(|of| of.step));
        }
        changed.sort_unstable();
        changed.dedup();
    }

    /// Tells it what the coming step keeps to.
    pub fn keep_to(&mut self, regions: impl Iterator<Item = (usize, usize)>) {
        self.of.regions.extend(regions);
    }

    /// From here on the work is another than the last time's: the record is cut off, with what went in so far.
    fn part_ways(&mut self, driver: &D) -> Result<(), String> {
        let CudaGraph { record, graph, .. } = &mut self.of;
        self.same = false;
        record.truncate(self.position);
        if let Some(graph) = graph {
            record.staging.clear();
            record.staging.extend_from_slice(&driver.staging(graph)?[..self.staged]);
        }
        Ok(())
    }

    fn add(&mut self, driver: &D, work: GraphWork, arguments: &[u8]) -> Result<(), String> {
        let (index, last) = (self.position, &self.of.record);
        // Other work, too, is a launch that keeps to other regions: those after it may go on with them.
        let known = |step: &Step| step.work == work && last.step(index).regions == self.of.regions;
        if self.same && !last.steps.get(index).is_some_and(known) {
            self.part_ways(driver)?;
        }
        let CudaGraph { record, regions, changed, .. } = &mut self.of;
        if self.same {
            let [first, _] = record.begin(index);
            let kept: &mut [u8] = bytemuck::cast_slice_mut(&mut record.pieces[first..record.steps[index].pieces]);
            if kept[..arguments.len()] != *arguments {
                kept[..arguments.len()].copy_from_slice(arguments);
                changed.push(index);
            }
        } else {
            record.push(work, arguments, regions);
        }
        regions.clear();
        self.position += 1;
        Ok(())
    }

    /// A launch.
    pub fn launch(
        &mut self,
        driver: &D,
        kernel: Kernel,
        (grid, shared): ([u32; 3], u32),
        arguments: &[u8],
    ) -> Result<(), String> {
        self.add(driver, GraphWork::Launch { kernel, grid, shared }, arguments)
    }

    /// A copy of numbers of the host's.
    pub fn write(&mut self, driver: &D, offset: usize, from: &[f32]) -> Result<(), String> {
        if from.is_empty() {
            self.of.regions.clear();
            return Ok(());
        }
        let first = self.staged;
        self.add(driver, GraphWork::Write { from: first, offset, len: from.len() }, &[])?;
        self.staged += from.len();
        match &mut self.of.graph {
            Some(graph) if self.same => driver.staging(graph)?[first..self.staged].copy_from_slice(from),
            _ => self.of.record.staging.extend_from_slice(from),
        }
        Ok(())
    }

    fn read(&mut self, driver: &D, region: Region) -> Result<(), String> {
        if region.is_empty() {
            return Ok(());
        }
        self.reads(region);
        self.of.regions.push((region.offset, region.len()));
        let work = GraphWork::Read { offset: region.offset, to: self.results, len: region.len() };
        self.results += region.len();
        self.add(driver, work, &[])
    }

    /// Starts what was asked for.
    ///
    /// # Safety
    /// As [`Driver::graph`].
    unsafe fn replay(&mut self, driver: &D, memory: &D::Memory) -> Result<(), String> {
        // Work that broke off earlier is other work as well.
        if self.same && self.position < self.of.record.steps.len() {
            self.part_ways(driver)?;
        }
        self.leave_out();
        let CudaGraph { record, graph, changed, .. } = &mut self.of;
        if let Some(graph) = graph.as_mut().filter(|_| self.same) {
            for index in changed.drain(..) {
                // SAFETY: the caller's promise.
                unsafe { driver.change(memory, graph, index, &record.step(index)) }?;
            }
            // SAFETY: the caller's promise.
            return unsafe { driver.replay(memory, graph) };
        }
        *graph = None;
        let steps: Vec<_> = (0..record.steps.len()).map(|index| record.step(index)).collect();
        // SAFETY: the caller's promise.
        let made = graph.insert(unsafe { driver.graph(memory, &steps) }?);
        driver.staging(made)?.copy_from_slice(&record.staging);
        record.staging = Vec::new();
        // SAFETY: the caller's promise.
        unsafe { driver.replay(memory, made) }
    }
}

/// See [`crate::device::Device::submit`].
pub(super) fn submit<D: Driver>(
    device: &CudaDevice<D>,
    arena: &mut CudaArena<D>,
    graph: &mut CudaGraph<D>,
    results: &[Region],
    work: impl FnOnce(&CudaDevice<D>, &mut CudaArena<D>),
) {
    if !std::mem::replace(&mut graph.begun, true) {
        return graph.results.carry_out(device, arena, results, work);
    }
    graph.results.make_room(results);
    // What was put off is no part of the work; what the work puts off is.
    arena.flush();
    let nested = arena.recording().replace(Recording::new(std::mem::take(graph)));
    assert!(nested.is_none(), "work is submitted within submitted work");
    work(device, arena);
    arena.flush();
    let Some(mut recording) = arena.recording().take() else { return };
    let steps = recording.position;
    let mut done = false;
    device.attempt(format_args!("a graph of {steps} kernels and copies"), || {
        results.iter().try_for_each(|region| recording.read(&device.driver, *region))?;
        // SAFETY: the kernels' accesses were checked as they were asked for, and keep to this arena, whose owner holds the
        // graph too.
        unsafe { recording.replay(&device.driver, &arena.memory) }?;
        done = true;
        Ok(())
    });
    // After a failure the record and the graph may differ.
    let begun_anew = |results| CudaGraph { results, ..CudaGraph::default() };
    *graph = if done { CudaGraph { replayed: true, ..recording.of } } else { begun_anew(recording.of.results) };
}

/// See [`crate::device::Device::results`].
pub(super) fn results<'g, D: Driver>(device: &CudaDevice<D>, graph: &'g mut CudaGraph<D>) -> &'g [f32] {
    if std::mem::take(&mut graph.replayed) {
        let CudaGraph { graph: Some(of), results, .. } = &mut *graph else { return graph.results.results() };
        device.attempt(format_args!("the replay of a graph"), || {
            results.room().copy_from_slice(device.driver.results(of)?);
            Ok(())
        });
    }
    graph.results.results()
}

impl<D: Driver> CudaArena<D> {
    /// The work that is being asked for, if any.
    pub(super) fn recording(&self) -> std::sync::MutexGuard<'_, Option<Recording<D>>> {
        self.recording.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
