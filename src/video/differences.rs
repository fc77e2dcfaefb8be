//! How near clips come to those they should be in what moves, in what is fine, and in how calm they are.

use super::clip::ClipFormat;
use crate::{Error, Result};

/// Checks that both hold the same number of whole clips, at least one.
fn check(name: &str, prediction: &[f32], target: &[f32], format: &ClipFormat) -> Result<()> {
    format.validate()?;
    if prediction.len() != target.len() || target.is_empty() || !target.len().is_multiple_of(format.values()) {
        let problem = format!("prediction has {} values, target {}", prediction.len(), target.len());
        return Err(Error::invalid(name, problem, format!("the same number of clips of {format}, at least 1")));
    }
    Ok(())
}

/// The mean square of the differences of `prediction - target` between values `distance` apart within each run of
/// `period` values; none where there are no such values.
fn mean_square(prediction: &[f32], target: &[f32], period: usize, distance: usize) -> Option<f64> {
    let error = |i: usize| f64::from(prediction[i]) - f64::from(target[i]);
    let squares: f64 = (0..target.len())
        .step_by(period)
        .flat_map(|start| start + distance..start + period)
        .map(|i| (error(i) - error(i - distance)).powi(2))
        .sum();
    let count = target.len() / period * (period - distance);
    (count > 0).then(|| squares / count as f64)
}

/// Motion error of one or more clips, each F*H*W*C values in [-1, 1]: the root mean square, over all values, of the
/// difference between the prediction's and the target's differences of successive frames. None for clips of one frame.
///
/// # Errors
/// If the two do not hold the same number of whole clips, at least 1.
pub fn motion_error(prediction: &[f32], target: &[f32], format: &ClipFormat) -> Result<Option<f64>> {
    check("motion error", prediction, target, format)?;
    Ok(mean_square(prediction, target, format.values(), format.frame_values()).map(f64::sqrt))
}

/// Texture error of one or more clips, each F*H*W*C values in [-1, 1]: the root of `mean (d_x v)^2 + mean (d_y v)^2`,
/// where v is the prediction less the target and d_x and d_y are the differences of neighbouring pixels of a frame, side
/// by side and one above the other, each channel by itself. None for frames of one pixel.
///
/// # Errors
/// If the two do not hold the same number of whole clips, at least 1.
pub fn texture_error(prediction: &[f32], target: &[f32], format: &ClipFormat) -> Result<Option<f64>> {
    check("texture error", prediction, target, format)?;
    let line = format.width * format.channels;
    let across = mean_square(prediction, target, format.frame_values(), line);
    let along = mean_square(prediction, target, line, format.channels);
    Ok((across.is_some() || along.is_some()).then(|| (across.unwrap_or(0.0) + along.unwrap_or(0.0)).sqrt()))
}

/// Temporal flicker of one or more clips, each F*H*W*C values in [-1, 1]: the sum over all values of the magnitude of the
/// second difference of successive frames, `|f[t+1] - 2 f[t] + f[t-1]|`, of the prediction over that of the target. At 1 the
/// prediction is as restless as the target, above it flickers, below it is smoother. None where the target has no second
/// difference: clips of fewer than 3 frames, or all even motion.
///
/// # Errors
/// If the two do not hold the same number of whole clips, at least 1.
pub fn flicker(prediction: &[f32], target: &[f32], format: &ClipFormat) -> Result<Option<f64>> {
    check("flicker", prediction, target, format)?;
    let frame = format.frame_values();
    let restlessness = |clips: &[f32]| -> f64 {
        let second = |clip: &[f32], i: usize| {
            let at = |i: usize| f64::from(clip[i]);
            (at(i + 2 * frame) - 2.0 * at(i + frame) + at(i)).abs()
        };
        let starts = format.values().saturating_sub(2 * frame);
        clips.chunks_exact(format.values()).map(|clip| (0..starts).map(|i| second(clip, i)).sum::<f64>()).sum()
    };
    let truth = restlessness(target);
    Ok((truth > 0.0).then(|| restlessness(prediction) / truth))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn close(found: Result<Option<f64>>, expected: f64) {
        let found = found.unwrap().unwrap();
        assert!((found - expected).abs() < 1e-6, "{found} {expected}");
    }

    #[test]
    fn motion_and_flicker_by_hand() {
        // Two clips of 3 frames of 2 values.
        let format = ClipFormat::new(3, 1, 2, 1).unwrap();
        let target = [0.0, 0.0, 0.5, 0.0, 0.0, 0.0, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1];
        let mut prediction = target;
        // Frame 1 of the second clip is off by 0.4: its two differences are, of 8 in all.
        prediction[8] += 0.4;
        close(motion_error(&prediction, &target, &format), (2.0 * 0.16_f64 / 8.0).sqrt());
        close(motion_error(&target, &target, &format), 0.0);
        // |0 - 2 * 0.5 + 0| = 1 in the target; 2 * 0.4 more in the prediction.
        close(flicker(&prediction, &target, &format), 1.8);
        close(flicker(&target, &target, &format), 1.0);
        // A clip is no neighbour of the next: an offset of a whole clip is no motion.
        let shifted: Vec<f32> = target.iter().enumerate().map(|(i, v)| if i < 6 { v + 0.2 } else { *v }).collect();
        close(motion_error(&shifted, &target, &format), 0.0);
        // Nothing to tell where nothing moves, or unevenly.
        let still = ClipFormat::new(1, 3, 2, 1).unwrap();
        assert_eq!(motion_error(&prediction, &target, &still).unwrap(), None);
        assert_eq!(flicker(&prediction, &target, &still).unwrap(), None);
        assert_eq!(flicker(&prediction[6..], &target[6..], &format).unwrap(), None);
    }

    #[test]
    fn texture_by_hand() {
        // 2 x 2 pixels of 3 channels; the error is 0.3 in the last channel of the first pixel alone.
        let format = ClipFormat::new(1, 2, 2, 3).unwrap();
        let target: Vec<f32> = (0..12).map(|i| (i as f32).sin()).collect();
        let mut prediction = target.clone();
        prediction[2] += 0.3;
        // One of 6 differences each way.
        close(texture_error(&prediction, &target, &format), (2.0 * 0.09_f64 / 6.0).sqrt());
        let brighter: Vec<f32> = target.iter().map(|v| v + 0.25).collect();
        close(texture_error(&brighter, &target, &format), 0.0);
        let line = ClipFormat::new(1, 1, 4, 3).unwrap();
        close(texture_error(&prediction, &target, &line), (0.09_f64 / 9.0).sqrt());
        assert_eq!(texture_error(&[0.0], &[0.0], &ClipFormat::new(1, 1, 1, 1).unwrap()).unwrap(), None);
    }

    #[test]
    fn other_lengths_are_refused() {
        let format = ClipFormat::new(3, 1, 2, 1).unwrap();
        for (p, t) in [(6, 12), (5, 5), (0, 0)] {
            let (p, t) = (vec![0.0; p], vec![0.0; t]);
            for figure in [motion_error, texture_error, flicker] {
                let message = figure(&p, &t, &format).unwrap_err().to_string();
                assert!(message.contains("3x1x2x1"), "{message}");
            }
        }
    }
}
