//! How near a clip comes to the one it should be.

use super::clip::ClipFormat;
use crate::{Error, Result};

/// The span of values: from -1 to 1.
const PEAK: f64 = 2.0;
/// Side and standard deviation, in pixels, of the window of Wang et al. (2004).
const WINDOW: usize = 11;
const SIGMA: f64 = 1.5;

/// Peak signal-to-noise ratio in dB: `10 log10(4 / mean (prediction - target)^2)` for values in [-1, 1], whose
/// peak-to-peak span is 2. Equal inputs give infinity.
///
/// # Errors
/// If the lengths differ or are 0.
pub fn psnr(prediction: &[f32], target: &[f32]) -> Result<f64> {
    if prediction.len() != target.len() || target.is_empty() {
        return Err(Error::invalid(
            "psnr",
            format!("prediction has {} values, target {}", prediction.len(), target.len()),
            "the same number of values, at least 1",
        ));
    }
    let squares: f64 = prediction.iter().zip(target).map(|(&p, &t)| (f64::from(p) - f64::from(t)).powi(2)).sum();
    Ok(10.0 * (PEAK * PEAK * target.len() as f64 / squares).log10())
}

/// Structural similarity (Wang et al. 2004) of two clips, each F*H*W*C values in [-1, 1]: the mean over all frames,
/// channels and places of an 11 x 11 Gaussian window (standard deviation 1.5 pixels, wholly inside the frame), with
/// K1 = 0.01, K2 = 0.03 and a span of 2. On frames smaller than 11 pixels the window is as large an odd square as fits,
/// with the same deviation. Equal clips give 1.
///
/// # Errors
/// If a length is not F*H*W*C.
pub fn ssim(prediction: &[f32], target: &[f32], format: &ClipFormat) -> Result<f64> {
    format.validate()?;
    for (name, values) in [("prediction", prediction), ("target", target)] {
        if values.len() != format.values() {
            return Err(Error::invalid(
                format!("ssim {name}"),
                format!("has {} values", values.len()),
                format!("{}, a clip of {format}", format.values()),
            ));
        }
    }
    let window = Window::new(format.height, format.width);
    let pairs = prediction.chunks_exact(format.frame_values()).zip(target.chunks_exact(format.frame_values()));
    let mut sum = 0.0;
    for (p, t) in pairs {
        for channel in 0..format.channels {
            let plane =
                |frame: &[f32]| frame[channel..].iter().step_by(format.channels).map(|&v| f64::from(v)).collect();
            sum += window.similarity(plane(p), plane(t));
        }
    }
    Ok(sum / (format.frames * format.channels) as f64)
}

/// A separable Gaussian window and the size of the planes it passes over.
struct Window {
    weights: Vec<f64>,
    height: usize,
    width: usize,
}

impl Window {
    fn new(height: usize, width: usize) -> Self {
        let fits = WINDOW.min(height).min(width);
        let side = fits - (fits + 1) % 2;
        let centre = (side / 2) as f64;
        let mut weights: Vec<f64> =
            (0..side).map(|i| (-(i as f64 - centre).powi(2) / (2.0 * SIGMA * SIGMA)).exp()).collect();
        let total: f64 = weights.iter().sum();
        weights.iter_mut().for_each(|w| *w /= total);
        Self { weights, height, width }
    }

    /// The mean of the similarity map of two planes of H*W values.
    fn similarity(&self, p: Vec<f64>, t: Vec<f64>) -> f64 {
        let product = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(x, y)| x * y).collect::<Vec<_>>();
        let (pp, tt, pt) = (product(&p, &p), product(&t, &t), product(&p, &t));
        let [p, t, pp, tt, pt] = [p, t, pp, tt, pt].map(|plane| self.smooth(&plane));
        let (c1, c2) = ((0.01 * PEAK).powi(2), (0.03 * PEAK).powi(2));
        let map = (0..p.len()).map(|i| {
            let (mean_p, mean_t) = (p[i], t[i]);
            let covariance = pt[i] - mean_p * mean_t;
            let variances = pp[i] - mean_p * mean_p + tt[i] - mean_t * mean_t;
            (2.0 * mean_p * mean_t + c1) * (2.0 * covariance + c2)
                / ((mean_p * mean_p + mean_t * mean_t + c1) * (variances + c2))
        });
        map.sum::<f64>() / p.len() as f64
    }

    /// The weighted mean under the window at each place where it lies wholly inside.
    fn smooth(&self, plane: &[f64]) -> Vec<f64> {
        let side = self.weights.len();
        let (tall, wide) = (self.height - side + 1, self.width - side + 1);
        let mut narrowed = Vec::with_capacity(self.height * wide);
        for row in plane.chunks_exact(self.width) {
            narrowed
                .extend(row.windows(side).map(|run| run.iter().zip(&self.weights).map(|(v, w)| v * w).sum::<f64>()));
        }
        let mut out = vec![0.0; tall * wide];
        for (y, row) in out.chunks_exact_mut(wide).enumerate() {
            for (weight, source) in self.weights.iter().zip(narrowed[y * wide..].chunks_exact(wide)) {
                row.iter_mut().zip(source).for_each(|(sum, value)| *sum += weight * value);
            }
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn psnr_by_hand() {
        // Error 0.2 everywhere: 10 log10(4 / 0.04) = 20 dB.
        assert!((psnr(&[0.2, -0.3], &[0.0, -0.5]).unwrap() - 20.0).abs() < 1e-5);
        // Black for white: 10 log10(4 / 4) = 0 dB.
        assert_eq!(psnr(&[-1.0; 3], &[1.0; 3]).unwrap(), 0.0);
        assert_eq!(psnr(&[0.5], &[0.5]).unwrap(), f64::INFINITY);
        assert!(psnr(&[], &[]).is_err() && psnr(&[0.0], &[0.0, 0.0]).is_err());
    }

    #[test]
    fn ssim_of_flat_frames_by_hand() {
        // Without variance only the luminance term is left: (2ab + c1) / (a^2 + b^2 + c1), c1 = 0.0004.
        for (height, width) in [(1, 1), (2, 5), (7, 7), (16, 20)] {
            let format = ClipFormat::new(2, height, width, 3).unwrap();
            let (p, t) = (vec![0.5; format.values()], vec![0.25; format.values()]);
            let expected = (2.0 * 0.5 * 0.25 + 0.0004) / (0.25 + 0.0625 + 0.0004);
            assert!((ssim(&p, &t, &format).unwrap() - expected).abs() < 1e-9);
            assert!((ssim(&p, &p, &format).unwrap() - 1.0).abs() < 1e-9);
        }
    }

    #[test]
    fn ssim_of_one_window_by_hand() {
        // A 3 x 3 frame is one window. Target: v = 1 in the centre, 0 around; prediction: its negative.
        let format = ClipFormat::new(1, 3, 3, 1).unwrap();
        let mut target = [0.0; 9];
        target[4] = 1.0;
        let edge = (-1.0 / 4.5_f64).exp();
        let centre = (1.0 / (1.0 + 2.0 * edge)).powi(2);
        let variance = centre - centre * centre;
        let (c1, c2) = (0.0004, 0.0036);
        let expected = (-2.0 * centre * centre + c1) * (-2.0 * variance + c2)
            / ((2.0 * centre * centre + c1) * (2.0 * variance + c2));
        let found = ssim(&target.map(|v| -v), &target, &format).unwrap();
        assert!((found - expected).abs() < 1e-9, "{found} {expected}");
    }

    #[test]
    fn ssim_falls_with_noise_and_refuses_other_lengths() {
        let format = ClipFormat::new(1, 16, 16, 1).unwrap();
        let target: Vec<f32> = (0..256).map(|i| (i as f32 * 0.1).sin()).collect();
        let noisy =
            |a: f32| target.iter().enumerate().map(|(i, v)| v + a * (i as f32 * 12.9).sin()).collect::<Vec<_>>();
        let (little, much) = (ssim(&noisy(0.1), &target, &format), ssim(&noisy(0.5), &target, &format));
        assert!(1.0 > little.as_ref().copied().unwrap() && little.unwrap() > much.unwrap());
        assert!(ssim(&target[1..], &target, &format).is_err());
    }
}
