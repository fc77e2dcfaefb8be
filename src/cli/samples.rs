//! Animations that show what adapting does.

use std::path::Path;

use crate::Result;
use crate::video::{ClipFormat, Montage, write_gif};

/// Clips as they are, as generated before adapting, and after; `[clips, F*H*W*C]` each.
pub(super) struct Comparison<'a> {
    pub format: ClipFormat,
    pub truth: &'a [f32],
    pub before: &'a [f32],
    pub after: &'a [f32],
    /// Every how many-th clip is shown.
    pub stride: usize,
}

/// Clips shown at most.
const SHOWN: usize = 8;

/// How large the pixels of small frames are shown.
pub(super) fn scale(format: &ClipFormat) -> usize {
    (96 / format.height.max(format.width)).clamp(1, 6)
}

/// Writes three rows, truth, before and after, with a column for each of the first few clips.
pub(super) fn write_comparison(path: &Path, comparison: &Comparison<'_>) -> Result<()> {
    let size = comparison.format.values();
    let clips = |values| <[f32]>::chunks_exact(values, size).step_by(comparison.stride).take(SHOWN).collect();
    let rows = [comparison.truth, comparison.before, comparison.after].map(clips).to_vec();
    let montage = Montage::new(comparison.format, rows);
    write_gif(path, &Montage { scale: scale(&comparison.format), background: 255, ..montage })
}
