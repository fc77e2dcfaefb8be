//! Texts as hashed bags of character n-grams.

use crate::hash::{fnv1a, mix};
use crate::{Error, Result};

/// Lengths of the n-grams, in characters.
const LENGTHS: std::ops::RangeInclusive<usize> = 3..=5;

/// Writes the values of a text to `out`; see [`super::Condition::Text`].
///
/// # Errors
/// A text of white space alone.
pub(super) fn hash(text: &str, out: &mut [f32]) -> Result<()> {
    let words: Vec<String> = text.split_whitespace().map(str::to_lowercase).collect();
    if words.is_empty() {
        return Err(Error::invalid("text", "holds no characters", "a few words"));
    }
    let padded = format!(" {} ", words.join(" "));
    let mut starts: Vec<usize> = padded.char_indices().map(|(start, _)| start).collect();
    starts.push(padded.len());
    out.fill(0.0);
    for length in LENGTHS {
        for ends in starts.windows(length + 1) {
            let hash = mix(fnv1a(&padded.as_bytes()[ends[0]..ends[length]]));
            let place = (hash & (u64::MAX >> 1)) % out.len() as u64;
            out[place as usize] += if hash >> 63 == 0 { 1.0 } else { -1.0 };
        }
    }
    let norm = out.iter().map(|v| v * v).sum::<f32>().sqrt();
    // In few values all n-grams may cancel.
    if norm > 0.0 {
        out.iter_mut().for_each(|v| *v /= norm);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hashed(text: &str) -> Vec<f32> {
        let mut out = vec![f32::NAN; 256];
        hash(text, &mut out).unwrap();
        out
    }

    fn cosine(a: &str, b: &str) -> f32 {
        hashed(a).iter().zip(hashed(b)).map(|(a, b)| a * b).sum()
    }

    #[test]
    fn the_same_in_every_version() {
        // " a " is one n-gram: its hash, computed by another program, tells the place and the sign.
        let single = hashed("A");
        let found: Vec<(usize, f32)> = single.iter().copied().enumerate().filter(|(_, v)| *v != 0.0).collect();
        assert_eq!(found, [(166, 1.0)]);
    }

    #[test]
    fn near_texts_are_near() {
        assert!((cosine("a dog runs", "a dog runs") - 1.0).abs() < 1e-5);
        assert!((cosine("  A DOG\n runs", "a dog runs") - 1.0).abs() < 1e-5);
        assert!(cosine("a dog runs", "the dog runs fast") > 0.4);
        assert!(cosine("a dog runs", "blue square").abs() < 0.25);
        assert!(cosine("Ünï cødé", "ünï CØDÉ") > 0.999);
        assert!(hash(" \n\t", &mut [0.0; 8]).is_err());
        let mut one = [f32::NAN];
        hash("a dog runs", &mut one).unwrap();
        assert!(one[0] == 0.0 || one[0].abs() == 1.0);
    }
}
