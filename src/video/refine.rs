//! Temporal smoothing that keeps edges.

use rayon::prelude::*;

use super::clip::ClipFormat;
use crate::{Error, Result};

/// Differences of a value from one frame to the next that are far above this are motion, and stay; clips are in [-1, 1].
const NOISE: f32 = 0.1;
/// The weight of a neighbouring frame that does not differ at all, beside 1 for the frame itself.
const NEIGHBOUR: f32 = 0.5;

/// Smooths clips `[clips, F*H*W*C]` in time: each value becomes a mean over itself and its neighbours in the frames before
/// and after, which count the less the more they differ (a bilateral filter, Tomasi & Manduchi 1998, along time alone).
///
/// # Errors
/// Values that are not a whole number of clips.
pub fn refine(clips: &mut [f32], format: &ClipFormat) -> Result<()> {
    if !clips.len().is_multiple_of(format.values()) {
        let expected = format!("a multiple of {}, the values of a clip of {format}", format.values());
        return Err(Error::invalid("clips", format!("{} values", clips.len()), expected));
    }
    let frame = format.frame_values();
    clips.par_chunks_exact_mut(format.values()).for_each(|clip| {
        for place in 0..frame {
            let mut before: Option<f32> = None;
            for at in (place..clip.len()).step_by(frame) {
                let own = clip[at];
                let after = clip.get(at + frame).copied();
                let (mut sum, mut weights) = (own, 1.0);
                for other in [before, after].into_iter().flatten() {
                    let distance = (other - own) / NOISE;
                    let weight = NEIGHBOUR * (-0.5 * distance * distance).exp();
                    sum += weight * other;
                    weights += weight;
                }
                before = Some(own);
                clip[at] = sum / weights;
            }
        }
    });
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::video::flicker;

    fn format(frames: usize) -> ClipFormat {
        ClipFormat::new(frames, 1, 2, 1).unwrap()
    }

    #[test]
    fn small_trembling_is_calmed_and_edges_stay() {
        // One pixel trembles, the other jumps from dark to bright half way.
        let mut clip: Vec<f32> =
            (0..8).flat_map(|t| [0.05 * if t % 2 == 0 { 1.0 } else { -1.0 }, if t < 4 { -0.9 } else { 0.9 }]).collect();
        let before = clip.clone();
        refine(&mut clip, &format(8)).unwrap();
        for t in 0..8 {
            assert!(clip[2 * t].abs() < 0.6 * before[2 * t].abs(), "{clip:?}");
            assert!((clip[2 * t + 1] - before[2 * t + 1]).abs() < 1e-6, "an edge in time moved");
        }
        let calm = flicker(&clip, &before, &format(8)).unwrap().unwrap();
        assert!(calm < 0.9, "{calm}");
    }

    #[test]
    fn means_are_over_the_frames_as_they_were() {
        let mut clip = vec![0.0, 0.0, 0.1, 0.0, 0.0, 0.0];
        refine(&mut clip, &format(3)).unwrap();
        let weight = 0.5 * (-0.5_f32).exp();
        let expected = [weight * 0.1 / (1.0 + weight), 0.0, 0.1 / (1.0 + 2.0 * weight), 0.0];
        clip.iter().zip(expected).for_each(|(found, expected)| assert!((found - expected).abs() < 1e-7, "{clip:?}"));
        assert_eq!(clip[0], clip[4], "time has no direction");
    }

    #[test]
    fn single_frames_and_part_clips() {
        let mut still = vec![0.3, -0.7];
        refine(&mut still, &format(1)).unwrap();
        assert_eq!(still, [0.3, -0.7]);
        let message = refine(&mut [0.0; 5], &format(2)).unwrap_err().to_string();
        assert!(message.contains("5 values") && message.contains("multiple of 4"), "{message}");
    }
}
