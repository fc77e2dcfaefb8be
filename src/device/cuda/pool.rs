//! The room behind an arena for copies in 16 bits, and which lie there.

use std::ops::Range;

use super::driver::TensorMap;
use crate::device::{MatrixPrecision, Region};

/// Numbers of 16 bits that are written at once; rows begin at multiples of them.
pub(super) const PIECE: usize = 8;

/// How a copy lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Layout {
    /// By rows, for the copy engine.
    Rows,
    /// As the lanes of `kernels/chain.cu` take a layer's weights: for products with its inputs, or with what comes back from its
    /// outputs.
    Fragments { backward: bool },
}

/// A copy of a region.
#[derive(Clone, Copy, Debug)]
pub(super) struct Packed {
    pub region: Region,
    /// Where the copy begins, in numbers of 32 bits.
    pub offset: usize,
    pub precision: MatrixPrecision,
    pub layout: Layout,
    pub map: TensorMap,
    /// Nothing was written to the region since.
    pub fresh: bool,
}

impl Packed {
    pub fn end(&self) -> usize {
        self.offset + packed_len(self.region)
    }

    /// Where the copy of `rows` begins, if they are some of the region's.
    pub fn covers(&self, rows: Region, precision: MatrixPrecision) -> Option<usize> {
        let within = contains(self.region, rows) && self.precision == precision;
        within.then(|| self.offset + (rows.offset - self.region.offset) / 2)
    }

    /// The same, if it is fresh.
    pub fn holds(&self, rows: Region, precision: MatrixPrecision) -> Option<usize> {
        self.covers(rows, precision).filter(|_| self.fresh)
    }
}

/// Whether `rows` are some of a region's rows.
pub(super) fn contains(region: Region, rows: Region) -> bool {
    let inside = rows.width == region.width && rows.offset >= region.offset;
    let end = region.offset + region.len();
    inside && rows.offset + rows.len() <= end && (rows.offset - region.offset).is_multiple_of(region.width)
}

/// The room behind an arena, and what lies there: weights from its beginning on, behind them one product's rows, before its end rows
/// that the kernel which made them has copied too, and at its end the steps' rows.
#[derive(Debug, Default)]
pub(super) struct Pool {
    pub start: usize,
    pub whole: usize,
    /// Of that, what is not for the steps' rows.
    pub room: usize,
    pub kept: Vec<Packed>,
    pub weights: Vec<Packed>,
    /// The end of the weights.
    pub end: usize,
    /// The last two.
    pub produced: [Option<Packed>; 2],
    /// Rows that were copied for a product, so that whoever makes them the next time copies them too.
    pub wanted: Vec<Region>,
    /// What kernels have made as a whole that can leave a copy.
    pub made: Vec<Region>,
}

/// What a region takes when it is copied, in numbers of 32 bits.
pub(super) fn packed_len(region: Region) -> usize {
    region.rows * region.width.div_ceil(PIECE) * (PIECE / 2)
}

impl Pool {
    /// Room for `whole` numbers of 32 bits from `start` on, a multiple of 4; `kept` of them for the steps' rows.
    pub fn new(start: usize, whole: usize, kept: usize) -> Self {
        Self { start, whole, room: (whole - kept) / 4 * 4, ..Self::default() }
    }

    /// Room that an operation may use for itself: all behind the weights.
    pub fn rest(&mut self) -> (usize, usize) {
        self.produced = [None; 2];
        (self.start + self.end, self.room - self.end)
    }

    /// Copies of what is about to be written are of no use any more.
    pub fn written(&mut self, writes: &[Region]) {
        for packed in self.weights.iter_mut().chain(self.produced.iter_mut().flatten()).chain(&mut self.kept) {
            packed.fresh &= !writes.iter().any(|write| write.overlaps(&packed.region));
        }
    }

    /// What is copied where a copy of the steps' rows is asked for: all that is kept with them, or made with them, or they alone.
    pub fn whole(&self, rows: Region, precision: MatrixPrecision) -> Region {
        let kept = self.kept.iter().find(|kept| kept.covers(rows, precision).is_some()).map(|kept| kept.region);
        kept.or_else(|| self.made.iter().copied().find(|made| contains(*made, rows))).unwrap_or(rows)
    }

    /// Of the copies with a place of their own that cover the first of some rows the one that covers most, and how many.
    pub fn first(&self, rows: Region, precision: MatrixPrecision) -> Option<(usize, usize)> {
        let covered = |kept: &Packed| {
            kept.covers(rows.rows(0, 1), precision)?;
            let Region { offset, rows: count, width } = kept.region;
            Some(rows.rows.min(count - (rows.offset - offset) / width))
        };
        let all = self.kept.iter().enumerate().filter_map(|(index, kept)| Some((index, covered(kept)?)));
        all.max_by_key(|(_, count)| *count)
    }

    /// Copies with places of their own that are these rows, one behind the other.
    pub fn run(&self, rows: Region, precision: MatrixPrecision) -> Option<Range<usize>> {
        let from = |start: usize| {
            let mut at = rows.offset;
            for (index, kept) in self.kept.iter().enumerate().skip(start) {
                if kept.precision != precision || (kept.region.offset, kept.region.width) != (at, rows.width) {
                    break;
                }
                at += kept.region.len();
                if at == rows.offset + rows.len() {
                    return Some(start..index + 1);
                }
            }
            None
        };
        (0..self.kept.len()).find_map(from)
    }

    /// A place of its own for a region's copy, if there is room.
    pub fn keep(&mut self, region: Region, precision: MatrixPrecision) -> Option<&Packed> {
        let offset = self.kept.last().map_or(self.start + self.room, Packed::end);
        let new = Packed { region, offset, precision, layout: Layout::Rows, map: TensorMap::default(), fresh: true };
        if new.end() > self.start + self.whole {
            return None;
        }
        self.kept.push(new);
        self.kept.last()
    }

    /// The copy of weights, or of what is treated as such.
    pub fn weight(&self, region: Region, precision: MatrixPrecision) -> Option<usize> {
        self.laid(region, precision, Layout::Rows)
    }

    pub fn laid(&self, region: Region, precision: MatrixPrecision, layout: Layout) -> Option<usize> {
        let same = |kept: &Packed| kept.region == region && kept.precision == precision && kept.layout == layout;
        self.weights.iter().position(same)
    }

    /// Gives a copy a place behind the weights, for which there is room.
    pub fn append(&mut self, region: Region, precision: MatrixPrecision, layout: Layout, map: TensorMap) -> usize {
        let offset = self.start + self.end;
        self.weights.push(Packed { region, offset, precision, layout, map, fresh: false });
        self.end += packed_len(region);
        self.make_room(self.start + self.end);
        self.weights.len() - 1
    }

    /// Forgets produced copies that lie before `end`.
    pub fn make_room(&mut self, end: usize) {
        for produced in &mut self.produced {
            *produced = produced.take().filter(|packed| packed.offset >= end);
        }
    }
}
