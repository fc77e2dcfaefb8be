//! Changing the size of frames without aliasing.

/// Separable triangle filter from one frame size to another, its weights computed once.
///
/// When shrinking, the triangle is as wide as two output pixels, so that every input pixel counts; when enlarging this
/// is bilinear interpolation; at equal sizes it is the identity.
pub(super) struct Resizer {
    from: (usize, usize),
    vertical: Axis,
    horizontal: Axis,
    narrowed: Vec<f32>,
}

/// For each output position the first input position and its run of weights.
struct Axis {
    taps: Vec<(usize, std::ops::Range<usize>)>,
    weights: Vec<f32>,
}

impl Axis {
    fn triangle(from: usize, to: usize) -> Self {
        let scale = from as f64 / to as f64;
        let reach = scale.max(1.0);
        let (mut taps, mut weights) = (Vec::with_capacity(to), Vec::new());
        for position in 0..to {
            let centre = (position as f64 + 0.5) * scale - 0.5;
            let first = (centre - reach).ceil().max(0.0) as usize;
            let last = ((centre + reach).floor() as usize).min(from - 1);
            let start = weights.len();
            weights.extend((first..=last).map(|i| (1.0 - (i as f64 - centre).abs() / reach).max(0.0) as f32));
            let total: f32 = weights[start..].iter().sum();
            weights[start..].iter_mut().for_each(|w| *w /= total);
            taps.push((first, start..weights.len()));
        }
        Self { taps, weights }
    }
}

impl Resizer {
    /// From frames of (height, width) to frames of (height, width), all at least 1.
    pub(super) fn new(from: (usize, usize), to: (usize, usize)) -> Self {
        Self {
            from,
            vertical: Axis::triangle(from.0, to.0),
            horizontal: Axis::triangle(from.1, to.1),
            narrowed: Vec::new(),
        }
    }

    pub(super) fn from(&self) -> (usize, usize) {
        self.from
    }

    /// Appends the resized `picture` (H*W*`channels` values) to `out`.
    pub(super) fn append(&mut self, picture: &[f32], channels: usize, out: &mut Vec<f32>) {
        let (row_in, row_out) = (self.from.1 * channels, self.horizontal.taps.len() * channels);
        self.narrowed.clear();
        for row in picture.chunks_exact(row_in) {
            for (first, weights) in &self.horizontal.taps {
                for channel in 0..channels {
                    let values = row[first * channels + channel..].iter().step_by(channels);
                    self.narrowed
                        .push(self.horizontal.weights[weights.clone()].iter().zip(values).map(|(w, v)| w * v).sum());
                }
            }
        }
        for (first, weights) in &self.vertical.taps {
            let start = out.len();
            out.resize(start + row_out, 0.0);
            let rows = self.narrowed[first * row_out..].chunks_exact(row_out);
            for (weight, row) in self.vertical.weights[weights.clone()].iter().zip(rows) {
                out[start..].iter_mut().zip(row).for_each(|(sum, value)| *sum += weight * value);
            }
        }
    }
}

/// Shrinks (or enlarges) one frame of (height, width) and `channels` 1 or 3 to a gray picture of size `to`, each pixel
/// the Rec. 601 luma averaged over the area it covers. Allocates nothing.
pub(crate) fn shrink_to_gray(
    frame: &[f32],
    (height, width): (usize, usize),
    channels: usize,
    to: (usize, usize),
    out: &mut [f32],
) {
    let (tall, wide) = (height as f32 / to.0 as f32, width as f32 / to.1 as f32);
    for (y, row) in out.chunks_exact_mut(to.1).enumerate() {
        let (top, bottom) = (y as f32 * tall, (y + 1) as f32 * tall);
        for (x, value) in row.iter_mut().enumerate() {
            let (left, right) = (x as f32 * wide, (x + 1) as f32 * wide);
            let (mut sum, mut area) = (0.0, 0.0);
            for (j, tall) in covered(top, bottom, height) {
                for (i, wide) in covered(left, right, width) {
                    let pixel = &frame[(j * width + i) * channels..][..channels];
                    sum += tall * wide * luma(pixel);
                    area += tall * wide;
                }
            }
            *value = sum / area;
        }
    }
}

/// The pixels that [start, end) touches, each with the length of it that lies inside.
fn covered(start: f32, end: f32, limit: usize) -> impl Iterator<Item = (usize, f32)> {
    let first = (start as usize).min(limit - 1);
    let last = (end.ceil() as usize).clamp(first + 1, limit);
    (first..last).map(move |i| (i, (end.min((i + 1) as f32) - start.max(i as f32)).max(f32::MIN_POSITIVE)))
}

/// Rec. 601 luma of a gray or RGB pixel.
pub(super) fn luma(pixel: &[f32]) -> f32 {
    match *pixel {
        // Exactly gray stays exactly the same gray.
        [r, g, b] if r != g || g != b => 0.299 * r + 0.587 * g + 0.114 * b,
        _ => pixel[0],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_sizes_are_the_identity_and_constants_stay_constant() {
        let picture: Vec<f32> = (0..5 * 7 * 3).map(|i| (i as f32 * 0.37).sin()).collect();
        let mut out = Vec::new();
        Resizer::new((5, 7), (5, 7)).append(&picture, 3, &mut out);
        assert_eq!(out, picture);
        for to in [(1, 1), (2, 3), (11, 4), (40, 70)] {
            let mut out = Vec::new();
            Resizer::new((5, 7), to).append(&[0.25; 35], 1, &mut out);
            assert_eq!(out.len(), to.0 * to.1);
            assert!(out.iter().all(|v| (v - 0.25).abs() < 1e-6));
        }
    }

    #[test]
    fn shrinking_a_fine_checkerboard_gives_its_mean() {
        let board: Vec<f32> = (0..64 * 64).map(|i| if (i / 64 + i % 64) % 2 == 0 { 1.0 } else { -1.0 }).collect();
        let mut out = Vec::new();
        Resizer::new((64, 64), (8, 8)).append(&board, 1, &mut out);
        assert!(out.iter().all(|v| v.abs() < 0.02), "{out:?}");
    }

    #[test]
    fn area_averaging_counts_parts_of_pixels() {
        let mut out = [0.0; 2];
        shrink_to_gray(&[0.0, 0.3, 0.9], (1, 3), 1, (1, 2), &mut out);
        assert!((out[0] - 0.1).abs() < 1e-6 && (out[1] - 0.7).abs() < 1e-6, "{out:?}");
        let mut out = [0.0; 4];
        shrink_to_gray(&[1.0, 0.0, -1.0], (1, 1), 3, (2, 2), &mut out);
        assert!(out.iter().all(|v| (v - (0.299 - 0.114)).abs() < 1e-6));
    }
}
