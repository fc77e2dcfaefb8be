/// Contiguous rows of the arena, `[rows, width]`, row-major, beginning at element `offset`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Region {
    /// First element.
    pub offset: usize,
    /// Number of rows.
    pub rows: usize,
    /// Elements a row.
    pub width: usize,
}

impl Region {
    /// Number of elements.
    pub fn len(&self) -> usize {
        self.rows * self.width
    }

    /// Whether there is nothing in it.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Rows `start..start + count` of this region.
    #[must_use]
    pub fn rows(&self, start: usize, count: usize) -> Self {
        assert!(start + count <= self.rows, "rows {start}+{count} of {}", self.rows);
        Self { offset: self.offset + start * self.width, rows: count, width: self.width }
    }

    /// Elements `start..start + count` of this region, as one row.
    #[must_use]
    pub fn elements(&self, start: usize, count: usize) -> Self {
        assert!(start + count <= self.len(), "elements {start}+{count} of {}", self.len());
        Self { offset: self.offset + start, rows: 1, width: count }
    }

    /// Whether the two have an element in common.
    pub fn overlaps(&self, other: &Self) -> bool {
        let empty = self.is_empty() || other.is_empty();
        !empty && self.offset < other.offset + other.len() && other.offset < self.offset + self.len()
    }
}

/// Holds an operation to its contract: every region lies in an arena of `elements`, and what is written overlaps neither
/// what is read nor what else is written.
pub(super) fn check_access(elements: usize, reads: &[Region], writes: &[Region]) {
    for (i, write) in writes.iter().enumerate() {
        assert!(write.offset + write.len() <= elements, "{write:?} lies outside the arena");
        for other in reads.iter().chain(&writes[i + 1..]) {
            assert!(!write.overlaps(other), "{write:?} overlaps {other:?}");
        }
    }
    for read in reads {
        assert!(read.offset + read.len() <= elements, "{read:?} lies outside the arena");
    }
}

/// Lays regions out one after the other, and counts what they take, before anything is allocated.
#[derive(Debug, Default)]
pub struct ArenaPlan {
    elements: usize,
}

impl ArenaPlan {
    /// Regions begin at multiples of this many elements (at least a cache line).
    const ALIGNMENT: usize = 16;

    /// The next region of this shape.
    pub fn take(&mut self, rows: usize, width: usize) -> Region {
        let region = Region { offset: self.elements, rows, width };
        self.elements += region.len().next_multiple_of(Self::ALIGNMENT);
        region
    }

    /// Elements taken so far.
    pub fn elements(&self) -> usize {
        self.elements
    }
}
