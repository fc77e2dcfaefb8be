//! Holding tasks out.

use std::sync::Arc;

use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;

use super::source::ClipTasks;
use crate::video::{ClipFormat, natural_order};
use crate::{Error, Result};

/// Some of a source's tasks, in a given order.
#[derive(Clone)]
pub struct Subset {
    source: Arc<dyn ClipTasks>,
    tasks: Vec<usize>,
}

impl Subset {
    /// The tasks of `source` with the indices `tasks`.
    ///
    /// # Errors
    /// If an index is out of range.
    pub fn new(source: Arc<dyn ClipTasks>, tasks: Vec<usize>) -> Result<Self> {
        if let Some(task) = tasks.iter().find(|&&task| task >= source.len()) {
            return Err(Error::invalid(
                "subset",
                format!("names task {task}"),
                format!("indices below the number of tasks, {}", source.len()),
            ));
        }
        Ok(Self { source, tasks })
    }

    /// The tasks' indices in the source.
    pub fn tasks(&self) -> &[usize] {
        &self.tasks
    }
}

impl ClipTasks for Subset {
    fn format(&self) -> ClipFormat {
        self.source.format()
    }

    fn len(&self) -> usize {
        self.tasks.len()
    }

    fn name(&self, task: usize) -> String {
        self.source.name(self.tasks[task])
    }

    fn clips(&self, task: usize) -> usize {
        self.source.clips(self.tasks[task])
    }

    fn read_into(&self, task: usize, clip: usize, out: &mut [f32]) {
        self.source.read_into(self.tasks[task], clip, out);
    }

    fn condition_width(&self) -> usize {
        self.source.condition_width()
    }

    fn condition_into(&self, task: usize, clip: usize, out: &mut [f32]) {
        self.source.condition_into(self.tasks[task], clip, out);
    }
}

/// Splits tasks into those to learn from and those held out (`held_out_fraction` of them, rounded; at least one if the
/// fraction is above 0). Both parts are in natural order of names. The choice depends on the names and the seed alone,
/// not on the order in which a file system lists them.
///
/// # Errors
/// If the fraction is not in [0, 1), or if it leaves no task to learn from.
pub fn split(source: &Arc<dyn ClipTasks>, held_out_fraction: f64, seed: u64) -> Result<(Subset, Subset)> {
    if !(0.0..1.0).contains(&held_out_fraction) {
        return Err(Error::invalid("held_out_fraction", format!("is {held_out_fraction}"), "at least 0 and below 1"));
    }
    let total = source.len();
    let mut held_out = (total as f64 * held_out_fraction).round() as usize;
    if held_out_fraction > 0.0 {
        held_out = held_out.max(1);
    }
    if held_out >= total {
        return Err(Error::invalid(
            "held_out_fraction",
            format!("is {held_out_fraction} of {total} tasks, which leaves none to learn from"),
            "more tasks or a smaller fraction",
        ));
    }
    let mut named: Vec<(String, usize)> = (0..total).map(|task| (source.name(task), task)).collect();
    named.sort_by(|a, b| natural_order(&a.0, &b.0).then(a.1.cmp(&b.1)));
    let mut places: Vec<usize> = (0..total).collect();
    places.shuffle(&mut ChaCha8Rng::seed_from_u64(seed));
    let part = |places: &[usize]| {
        let mut places = places.to_vec();
        places.sort_unstable();
        Subset { source: Arc::clone(source), tasks: places.into_iter().map(|place| named[place].1).collect() }
    };
    let (out, kept) = places.split_at(held_out);
    Ok((part(kept), part(out)))
}
