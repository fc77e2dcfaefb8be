use std::sync::Arc;

use super::adaptation::video_job;
use super::trainer::stream;
use crate::checkpoint::{Checkpoint, Stage};
use crate::device::Device;
use crate::personal::AdaptedGenerator;
use crate::tasks::{ClipTasks, Condition, Given, Latent};
use crate::{Error, Result, forward, forward_changed};

/// Generates clips from latent rows, `[count, F*H*W*C]`.
///
/// `count` rows take turns with the conditions in `conditions` (`[n, latent]`; their noise is not looked at), each row
/// with noise of its own, drawn from `seed`. Without a condition in the latent, `conditions` may be empty.
///
/// # Errors
/// A checkpoint without a generator, or no condition where one is needed.
pub fn generate<D: Device<f32>>(
    device: &D,
    checkpoint: &Checkpoint,
    conditions: &[f32],
    count: usize,
    seed: u64,
) -> Result<Vec<f32>> {
    let rows = latent_rows(&video_job(checkpoint)?.latent, conditions, count, seed)?;
    forward(device, &checkpoint.parameters[0], &rows)
}

/// Generates clips of several subjects from one shared checkpoint, `[subjects, count, F*H*W*C]`: all of them in one pass
/// through the shared weights, which nobody has a copy of. Each subject's clips are those that [`generate`] makes with an
/// adapted checkpoint, up to rounding.
///
/// Without `conditions` each subject has those of the clips it was adapted with.
///
/// # Errors
/// As [`generate`]; no subjects, or one that was adapted from a generator of another architecture.
pub fn generate_personal<D: Device<f32>>(
    device: &D,
    checkpoint: &Checkpoint,
    subjects: &[&AdaptedGenerator],
    conditions: &[f32],
    count: usize,
    seed: u64,
) -> Result<Vec<f32>> {
    let latent = &video_job(checkpoint)?.latent;
    let mut rows = Vec::new();
    for subject in subjects {
        let conditions = if conditions.is_empty() { &subject.latents } else { conditions };
        rows.extend(latent_rows(latent, conditions, count, seed)?);
    }
    let changes: Vec<_> = subjects.iter().map(|subject| &subject.change).collect();
    forward_changed(device, &checkpoint.parameters[0], &changes, &rows)
}

/// `count` latent rows that take turns with the conditions, each with noise of its own.
fn latent_rows(latent: &Latent, conditions: &[f32], count: usize, seed: u64) -> Result<Vec<f32>> {
    let width = latent.width();
    if count == 0 {
        return Err(Error::invalid("count", "0", "at least 1"));
    }
    let mut rows = vec![0.0; count * width];
    let mut rng = stream(seed, 0);
    for (index, row) in rows.chunks_exact_mut(width).enumerate() {
        if latent.condition != Condition::None {
            let Some(last) = (conditions.len() / width).checked_sub(1) else {
                return Err(Error::invalid("condition", "none is given", latent.condition.wanted()));
            };
            row.copy_from_slice(&conditions[index % (last + 1) * width..][..width]);
        }
        latent.renew_noise(&mut rng, row);
    }
    Ok(rows)
}

/// The latent rows, `[n, latent]`, without noise yet, that tell the generator what is given.
///
/// # Errors
/// A checkpoint without a generator, or conditions that are not of its kind ([`Condition::encode`]).
pub fn conditions_of<'a>(checkpoint: &Checkpoint, given: impl IntoIterator<Item = Given<'a>>) -> Result<Vec<f32>> {
    let job = video_job(checkpoint)?;
    let (format, width) = (job.source.format(), job.latent.width());
    let mut rows = Vec::new();
    for given in given {
        let start = rows.len();
        rows.resize(start + width, 0.0);
        job.latent.write_given(given, &format, &mut rows[start..])?;
    }
    Ok(rows)
}

/// The conditions a checkpoint brings with it: of an adapted one those of the clips it was adapted with; of others its first
/// `count` labels, or the conditions of a clip of each of the first `count` held-out tasks, which `held_out` is asked for.
///
/// # Errors
/// Those of `held_out`, or a checkpoint without a generator.
pub fn own_conditions(
    checkpoint: &Checkpoint,
    count: usize,
    held_out: impl FnOnce() -> Result<Arc<dyn ClipTasks>>,
) -> Result<Vec<f32>> {
    if let Stage::Adapted { latents, .. } = &checkpoint.stage {
        return Ok(latents.clone());
    }
    let latent = &video_job(checkpoint)?.latent;
    if let Condition::Label(labels) = &latent.condition {
        return conditions_of(checkpoint, labels.names().iter().take(count).map(|label| Given::Label(label)));
    }
    let tasks = held_out()?;
    let mut clip = vec![0.0; tasks.format().values()];
    let mut rows = vec![0.0; count.min(tasks.len()) * latent.width()];
    let mut rng = stream(0, 0);
    for (task, row) in rows.chunks_exact_mut(latent.width()).enumerate() {
        tasks.read_into(task, 0, &mut clip);
        latent.write(&mut rng, &*tasks, (task, 0), &clip, row);
    }
    Ok(rows)
}
