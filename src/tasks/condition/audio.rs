//! Sounds as log-mel features.

use std::f64::consts::TAU;
use std::path::Path;

use hound::{SampleFormat, WavReader};
use realfft::RealFftPlanner;

use crate::video::read_bounded;
use crate::{Error, Result};

/// The length of a window and from one to the next, in seconds.
const WINDOW: f64 = 0.025;
const HOP: f64 = 0.010;
/// Where the highest band ends, in Hz.
const HIGHEST: f64 = 8000.0;
/// What is below counts as silence, in dB.
const FLOOR: f64 = -80.0;
/// Rates that sounds are recorded at, in Hz, with room to spare.
const RATES: std::ops::RangeInclusive<u32> = 1000..=768_000;

/// The features of a WAV file, `[segments, bands]`; see [`super::Condition::Audio`].
///
/// # Errors
/// A file that cannot be read, is no WAV file or holds no sound.
pub(super) fn log_mel(path: &Path, bands: usize, segments: usize) -> Result<Vec<f32>> {
    let (samples, rate) = read(path)?;
    let windows = spectrogram(&samples, rate, bands);
    let count = windows.len() / bands;
    let mut out = Vec::with_capacity(segments * bands);
    for segment in 0..segments {
        let first = segment * count / segments;
        let last = ((segment + 1) * count / segments).max(first + 1);
        for band in 0..bands {
            let sum: f64 = (first..last).map(|window| windows[window * bands + band]).sum();
            let decibels = sum / (last - first) as f64;
            out.push((1.0 - 2.0 * decibels / FLOOR) as f32);
        }
    }
    Ok(out)
}

/// The samples, in [-1, 1], averaged over the channels, and how many there are in a second.
fn read(path: &Path) -> Result<(Vec<f64>, u32)> {
    let wrong = |problem: String| Error::file(path, problem, "save it as WAV: PCM of 8 to 32 bits, or 32-bit float");
    let broken = |e: hound::Error| wrong(format!("is no WAV file that can be read ({e})"));
    let bytes = read_bounded(path)?;
    let mut reader = WavReader::new(bytes.as_slice()).map_err(broken)?;
    let spec = reader.spec();
    if !RATES.contains(&spec.sample_rate) || spec.channels == 0 {
        return Err(wrong(format!("has {} channels at {} Hz", spec.channels, spec.sample_rate)));
    }
    let mut mono = Vec::new();
    let (channels, mut sum, mut summed) = (f64::from(spec.channels), 0.0, 0);
    let mut push = |sample: f64| {
        (sum, summed) = (sum + sample, summed + 1);
        if summed == spec.channels {
            mono.push(sum / channels);
            (sum, summed) = (0.0, 0);
        }
    };
    match spec.sample_format {
        SampleFormat::Float => {
            for sample in reader.samples::<f32>() {
                let sample = sample.map_err(broken)?;
                if !sample.is_finite() {
                    return Err(wrong(format!("holds {sample}")));
                }
                push(f64::from(sample));
            }
        }
        SampleFormat::Int => {
            let full = f64::from(spec.bits_per_sample.saturating_sub(1)).exp2();
            for sample in reader.samples::<i32>() {
                push(f64::from(sample.map_err(broken)?) / full);
            }
        }
    }
    if mono.is_empty() {
        return Err(wrong("holds no sound".to_owned()));
    }
    Ok((mono, spec.sample_rate))
}

/// Decibels in each band of each window, `[windows, bands]`, none below [`FLOOR`].
fn spectrogram(samples: &[f64], rate: u32, bands: usize) -> Vec<f64> {
    let rate = f64::from(rate);
    let (window, hop) = ((WINDOW * rate).round() as usize, (HOP * rate).round() as usize);
    let hann: Vec<f64> = (0..window).map(|i| 0.5 - 0.5 * (TAU * (i as f64 + 0.5) / window as f64).cos()).collect();
    // Twice as long as the window, so that the narrowest band holds a few of the spectrum's values.
    let length = (2 * window).next_power_of_two();
    let transform = RealFftPlanner::new().plan_fft_forward(length);
    let (mut input, mut spectrum) = (transform.make_input_vec(), transform.make_output_vec());
    let mut scratch = transform.make_scratch_vec();
    // By Parseval's theorem a sine of full scale has this power in half of the spectrum.
    let full = 0.25 * length as f64 * hann.iter().map(|w| w * w).sum::<f64>();
    let triangles: Vec<Vec<(usize, f64)>> = (0..bands).map(|band| triangle(band, bands, rate, length)).collect();
    let count = 1 + samples.len().saturating_sub(window) / hop;
    let mut out = Vec::with_capacity(count * bands);
    for start in (0..count).map(|index| index * hop) {
        input.fill(0.0);
        for ((value, sample), weight) in input.iter_mut().zip(&samples[start..]).zip(&hann) {
            *value = sample * weight;
        }
        transform
            .process_with_scratch(&mut input, &mut spectrum, &mut scratch)
            .expect("the arrays are those that the transform has made");
        for triangle in &triangles {
            let power: f64 = triangle.iter().map(|(place, weight)| weight * spectrum[*place].norm_sqr()).sum();
            out.push((10.0 * (power / full).log10()).max(FLOOR));
        }
    }
    out
}

/// The weights of a band in a spectrum of `length / 2 + 1` values.
fn triangle(band: usize, bands: usize, rate: f64, length: usize) -> Vec<(usize, f64)> {
    let mel = |frequency: f64| 2595.0 * (1.0 + frequency / 700.0).log10();
    let centre = (band + 1) as f64;
    let weight = |place: usize| {
        let at = mel(place as f64 * rate / length as f64) / mel(HIGHEST) * (bands + 1) as f64;
        1.0 - (at - centre).abs()
    };
    (0..=length / 2).map(|place| (place, weight(place))).filter(|(_, weight)| *weight > 0.0).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use hound::{WavSpec, WavWriter};

    /// A sine of 1000 Hz in every channel, silent in its first half.
    fn wav(path: &Path, rate: u32, bits: u16, sample_format: SampleFormat, channels: u16) {
        let mut writer =
            WavWriter::create(path, WavSpec { channels, sample_rate: rate, bits_per_sample: bits, sample_format })
                .unwrap();
        for i in 0..rate {
            let sine = (TAU * 1000.0 * f64::from(i) / f64::from(rate)).sin();
            let value = if i < rate / 2 { 0.0 } else { sine };
            for _ in 0..channels {
                match sample_format {
                    SampleFormat::Float => writer.write_sample(value as f32).unwrap(),
                    SampleFormat::Int => {
                        let full = f64::from(bits - 1).exp2() - 1.0;
                        writer.write_sample((value * full).round() as i32).unwrap();
                    }
                }
            }
        }
        writer.finalize().unwrap();
    }

    #[test]
    fn a_sine_is_in_its_band_and_its_time_at_every_rate_and_depth() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("sine.wav");
        let (bands, segments) = (20, 4);
        // The band whose centre is nearest to 1000 Hz.
        let mel = |f: f64| 2595.0 * (1.0 + f / 700.0).log10();
        let near = (mel(1000.0) / mel(8000.0) * 21.0).round() as usize - 1;
        let mut all: Vec<Vec<f32>> = Vec::new();
        for (rate, bits, format, channels) in [
            (16_000, 16, SampleFormat::Int, 1),
            (44_100, 24, SampleFormat::Int, 2),
            (48_000, 32, SampleFormat::Int, 1),
            (8_000, 8, SampleFormat::Int, 1),
            (22_050, 32, SampleFormat::Float, 3),
        ] {
            wav(&path, rate, bits, format, channels);
            let features = log_mel(&path, bands, segments).unwrap();
            assert_eq!(features.len(), bands * segments);
            assert!(features[..bands].iter().all(|v| *v == -1.0), "silence at {rate} Hz, {bits} bits");
            let sounding = &features[3 * bands..];
            let loudest = (0..bands).max_by(|a, b| sounding[*a].total_cmp(&sounding[*b])).unwrap();
            assert_eq!(loudest, near);
            // Within 3 dB of full scale; four bands away at least 35 dB less.
            assert!((0.925..=1.01).contains(&sounding[near]), "{}", sounding[near]);
            assert!(
                sounding[near + 4] < sounding[near] - 35.0 / 40.0 && sounding[near - 4] < sounding[near] - 35.0 / 40.0
            );
            all.push(sounding.to_vec());
        }
        for other in &all {
            assert!((other[near] - all[0][near]).abs() < 0.02, "the same sound at another rate");
        }
    }

    #[test]
    fn short_and_bad_sounds() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.wav");
        wav(&path, 8000, 16, SampleFormat::Int, 1);
        let whole = std::fs::read(&path).unwrap();
        for end in (0..whole.len()).step_by(whole.len() / 300) {
            std::fs::write(&path, &whole[..end]).unwrap();
            match log_mel(&path, 4, 8) {
                Ok(features) => assert!(features.iter().all(|v| v.is_finite())),
                Err(error) => {
                    let text = error.to_string();
                    assert!(text.contains("a.wav") && !text.contains('\n'), "{text}");
                }
            }
        }
        // Three samples: shorter than a window.
        let spec = WavSpec { channels: 1, sample_rate: 8000, bits_per_sample: 16, sample_format: SampleFormat::Int };
        let write = |samples: &[i16], spec| {
            let mut writer = WavWriter::create(&path, spec).unwrap();
            samples.iter().for_each(|s| writer.write_sample(*s).unwrap());
            writer.finalize().unwrap();
        };
        write(&[9000, -9000, 9000], spec);
        let features = log_mel(&path, 4, 3).unwrap();
        assert!(features.len() == 12 && features.iter().all(|v| v.is_finite()));
        write(&[], spec);
        assert!(log_mel(&path, 4, 3).unwrap_err().to_string().contains("no sound"));
        write(&[1], WavSpec { sample_rate: 10, ..spec });
        assert!(log_mel(&path, 4, 3).unwrap_err().to_string().contains("10 Hz"));
        std::fs::write(&path, "not a sound").unwrap();
        assert!(log_mel(&path, 4, 3).unwrap_err().to_string().contains("no WAV file"));
    }
}
