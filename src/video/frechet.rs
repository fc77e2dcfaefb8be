//! How near the distribution of generated clips comes to that of true ones, by features that nothing has trained.

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::clip::ClipFormat;
use crate::{Error, Result};

/// Widths of the random network's layers.
const HIDDEN: usize = 128;
const FEATURES: usize = 64;
/// The seed of its weights: the same in every run.
const SEED: u64 = 0x00F1_D0C1;
/// A pivot of a covariance that is smaller than this part of its largest variance is rounding error.
const ROUNDING: f64 = 1e-12;

/// The true clips that others are compared with, as the Gaussian of their features.
///
/// The Fréchet distance (Dowson & Landau 1982) is that of Gaussians fitted to the features of both sets,
/// `|m1 - m2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2))`, as in the Fréchet inception distance (Heusel et al. 2017). But the features
/// are 64 outputs of a fixed random network of two layers, `B relu(A x)`, whose weights are signs drawn from a fixed seed,
/// over the root of the layer's width. It is deterministic, and tells of a difference in any direction, but knows nothing
/// of what people see: compare its values only with one another, for clips of one format and sets of one size.
#[derive(Clone, Debug)]
pub struct FrechetReference {
    format: ClipFormat,
    truth: Gaussian,
}

impl FrechetReference {
    /// Of some clips, each F*H*W*C values in [-1, 1].
    ///
    /// # Errors
    /// If `clips` are not whole clips, at least 2.
    pub fn new(clips: &[f32], format: &ClipFormat) -> Result<Self> {
        format.validate()?;
        Ok(Self { format: *format, truth: Gaussian::of(clips, format)? })
    }

    /// The distance of other clips, at least 0: that of a set to itself is 0 up to rounding.
    ///
    /// # Errors
    /// As [`FrechetReference::new`].
    pub fn distance(&self, clips: &[f32]) -> Result<f64> {
        Ok(self.truth.distance(&Gaussian::of(clips, &self.format)?))
    }
}

/// The features of all clips, `[n, FEATURES]`.
fn features(clips: &[f32], values: usize) -> Vec<f64> {
    let mut rng = ChaCha8Rng::seed_from_u64(SEED);
    let rows: Vec<&[f32]> = clips.chunks_exact(values).collect();
    let mut hidden = layer(&rows, values, HIDDEN, &mut rng);
    // Not f32::max, which would make 0 of NaN.
    hidden.iter_mut().filter(|h| **h < 0.0).for_each(|h| *h = 0.0);
    let rows: Vec<&[f32]> = hidden.chunks_exact(HIDDEN).collect();
    layer(&rows, HIDDEN, FEATURES, &mut rng).into_iter().map(f64::from).collect()
}

/// Every row's products with `outputs` rows of random signs over `sqrt(inputs)`, `[rows, outputs]`.
fn layer(rows: &[&[f32]], inputs: usize, outputs: usize, rng: &mut ChaCha8Rng) -> Vec<f32> {
    let (mut signs, mut out) = (vec![0.0; inputs], vec![0.0; rows.len() * outputs]);
    for output in 0..outputs {
        for run in signs.chunks_mut(64) {
            let bits = rng.next_u64();
            run.iter_mut().enumerate().for_each(|(i, sign)| *sign = if bits >> i & 1 == 1 { 1.0 } else { -1.0 });
        }
        for (row, out) in rows.iter().zip(out.chunks_exact_mut(outputs)) {
            out[output] = (dot(row, &signs) / (inputs as f64).sqrt()) as f32;
        }
    }
    out
}

/// In sixteen sums side by side, for speed; the same on every machine.
fn dot(x: &[f32], y: &[f32]) -> f64 {
    let mut lanes = [0.0_f32; 16];
    let ((x, x_rest), (y, y_rest)) = (x.as_chunks::<16>(), y.as_chunks::<16>());
    for (x, y) in x.iter().zip(y) {
        lanes.iter_mut().zip(x.iter().zip(y)).for_each(|(lane, (x, y))| *lane += x * y);
    }
    let rest = x_rest.iter().zip(y_rest).map(|(x, y)| x * y);
    lanes.into_iter().chain(rest).map(f64::from).sum()
}

/// A Gaussian, its covariance `L L^T` by its factor.
#[derive(Clone, Debug)]
struct Gaussian {
    mean: Vec<f64>,
    /// L by columns, `[n, n]`: row `j` is column `j`.
    columns: Vec<f64>,
    /// The trace of the covariance.
    trace: f64,
}

impl Gaussian {
    /// Of the features of clips.
    fn of(clips: &[f32], format: &ClipFormat) -> Result<Self> {
        let values = format.values();
        if clips.len() < 2 * values || !clips.len().is_multiple_of(values) {
            let expected = format!("2 or more clips of {format}");
            return Err(Error::invalid("Frechet distance", format!("{} values", clips.len()), expected));
        }
        Ok(Self::fit(&features(clips, values), FEATURES))
    }

    /// Of the rows of `samples`, `[2 or more, n]`.
    fn fit(samples: &[f64], n: usize) -> Self {
        let count = (samples.len() / n) as f64;
        let mut mean = vec![0.0; n];
        for row in samples.chunks_exact(n) {
            mean.iter_mut().zip(row).for_each(|(mean, v)| *mean += v / count);
        }
        let mut covariance = vec![0.0; n * n];
        for row in samples.chunks_exact(n) {
            for i in 0..n {
                for j in 0..n {
                    covariance[i * n + j] += (row[i] - mean[i]) * (row[j] - mean[j]) / (count - 1.0);
                }
            }
        }
        Self::new(mean, covariance)
    }

    /// Cholesky's factor of a covariance, which may be singular: its columns beyond the rank are 0.
    fn new(mean: Vec<f64>, mut covariance: Vec<f64>) -> Self {
        let n = mean.len();
        let variances = (0..n).map(|i| covariance[i * n + i]);
        let (trace, largest) = (variances.clone().sum(), variances.fold(0.0, f64::max));
        let mut columns = vec![0.0; n * n];
        for j in 0..n {
            let pivot = covariance[j * n + j];
            if pivot <= ROUNDING * largest {
                continue;
            }
            let column = &mut columns[j * n..(j + 1) * n];
            (j..n).for_each(|i| column[i] = covariance[i * n + j] / pivot.sqrt());
            for i in j..n {
                for k in j..n {
                    covariance[i * n + k] -= column[i] * column[k];
                }
            }
        }
        Self { mean, columns, trace }
    }

    /// The Fréchet distance. With `S = L L^T`, the trace of `(S1 S2)^(1/2)` is the sum of the singular values of
    /// `L1^T L2`.
    fn distance(&self, other: &Self) -> f64 {
        let n = self.mean.len();
        let squares: f64 = self.mean.iter().zip(&other.mean).map(|(a, b)| (a - b).powi(2)).sum();
        let mut product = Vec::with_capacity(n * n);
        for a in self.columns.chunks_exact(n) {
            product.extend(other.columns.chunks_exact(n).map(|b| inner(a, b)));
        }
        let distance = squares + self.trace + other.trace - 2.0 * sum_of_singular_values(product, n);
        // Not f64::max, which would make 0 of NaN.
        if distance < 0.0 { 0.0 } else { distance }
    }
}

fn inner(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// Of an `[n, n]` matrix, by one-sided Jacobi rotations (Hestenes 1958): they make its rows orthogonal, whose lengths are
/// then the singular values.
fn sum_of_singular_values(mut matrix: Vec<f64>, n: usize) -> f64 {
    const SWEEPS: usize = 40;
    for _ in 0..SWEEPS {
        let mut rotated = false;
        for second in 1..n {
            let (head, tail) = matrix.split_at_mut(second * n);
            let q = &mut tail[..n];
            for p in head.chunks_exact_mut(n) {
                let (pp, qq, pq) = (inner(p, p), inner(q, q), inner(p, q));
                if pq.is_nan() || pq.abs() <= 1e-14 * (pp * qq).sqrt() {
                    continue;
                }
                rotated = true;
                let zeta = (qq - pp) / (2.0 * pq);
                let tangent = zeta.signum() / (zeta.abs() + zeta.hypot(1.0));
                let cosine = 1.0 / tangent.hypot(1.0);
                let sine = cosine * tangent;
                for (a, b) in p.iter_mut().zip(q.iter_mut()) {
                    (*a, *b) = (cosine * *a - sine * *b, sine * *a + cosine * *b);
                }
            }
        }
        if !rotated {
            break;
        }
    }
    matrix.chunks_exact(n).map(|row| inner(row, row).sqrt()).sum()
}

#[cfg(test)]
mod tests {
    use rand::RngExt;

    use super::*;

    fn close(found: f64, expected: f64, tolerance: f64) {
        assert!((found - expected).abs() <= tolerance * expected.abs().max(1.0), "{found} {expected}");
    }

    #[test]
    fn of_gaussians_with_a_closed_form() {
        // In one dimension: (m1 - m2)^2 + (s1 - s2)^2.
        let line = |mean: f64, deviation: f64| Gaussian::new(vec![mean], vec![deviation * deviation]);
        close(line(1.0, 2.0).distance(&line(-0.5, 0.7)), 1.5 * 1.5 + 1.3 * 1.3, 1e-12);
        // [[a, b], [b, c]] and s I commute: tr (S1 S2)^(1/2) = sqrt(s) (sqrt(l1) + sqrt(l2)), where
        // (sqrt(l1) + sqrt(l2))^2 = a + c + 2 sqrt(a c - b^2).
        let (a, b, c, s) = (2.0, 0.9, 1.2, 0.4_f64);
        let (first, second) =
            (Gaussian::new(vec![0.0; 2], vec![a, b, b, c]), Gaussian::new(vec![0.3, -0.4], vec![s, 0.0, 0.0, s]));
        let root = (s * (a + c + 2.0 * (a * c - b * b).sqrt())).sqrt();
        close(first.distance(&second), 0.25 + a + c + 2.0 * s - 2.0 * root, 1e-12);
        close(second.distance(&first), first.distance(&second), 1e-12);
        // Two that do not commute: tr (S1 S2)^(1/2) of 2 x 2 matrices is sqrt(tr(S1 S2) + 2 sqrt(det S1 det S2)).
        let (d, e, f) = (0.5, -0.3, 1.7);
        let third = Gaussian::new(vec![0.0; 2], vec![d, e, e, f]);
        let trace = a * d + 2.0 * b * e + c * f;
        let root = (trace + 2.0 * ((a * c - b * b) * (d * f - e * e)).sqrt()).sqrt();
        close(first.distance(&third), a + c + d + f - 2.0 * root, 1e-12);
        // A singular one, [1, 1]^T [1, 1], whose root is itself over sqrt(2): tr is |[1, 1] S [1, 1]^T|^(1/2).
        let singular = Gaussian::new(vec![0.0; 2], vec![1.0; 4]);
        close(singular.distance(&third), 2.0 + d + f - 2.0 * (d + 2.0 * e + f).sqrt(), 1e-12);
    }

    #[test]
    fn of_clips() {
        let format = ClipFormat::new(3, 5, 7, 1).unwrap();
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        let mut clips = |spread: f32| -> Vec<f32> {
            (0..150 * format.values()).map(|_| spread * rng.random_range(-1.0..1.0)).collect()
        };
        let (truth, alike, tame) = (clips(1.0), clips(1.0), clips(0.5));
        let reference = FrechetReference::new(&truth, &format).unwrap();
        close(reference.distance(&truth).unwrap(), 0.0, 1e-6);
        let (alike, tame) = (reference.distance(&alike).unwrap(), reference.distance(&tame).unwrap());
        assert!(0.0 < alike && 2.0 * alike < tame, "{alike} {tame}");
        // The order of the clips does not matter, but which values go together does.
        let mut turned = truth.clone();
        turned.rotate_left(3 * format.values());
        close(reference.distance(&turned).unwrap(), 0.0, 1e-5);
        // Fewer clips than features: the covariance is singular.
        let few = &truth[..5 * format.values()];
        close(FrechetReference::new(few, &format).unwrap().distance(few).unwrap(), 0.0, 1e-5);
        assert!(reference.distance(&vec![f32::NAN; truth.len()]).unwrap().is_nan());
        for wrong in [0, 1, format.values(), 2 * format.values() + 1] {
            let message = reference.distance(&truth[..wrong]).unwrap_err().to_string();
            assert!(message.contains("2 or more clips of 3x5x7x1"), "{message}");
        }
    }
}
