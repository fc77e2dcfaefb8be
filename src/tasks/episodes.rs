//! Episodes: for each of some tasks, clips to learn from and others to be judged on.

use std::sync::Arc;

use rand::{Rng, RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;

use super::latent::Latent;
use super::source::ClipTasks;
use crate::video::ClipFormat;
use crate::{Error, Result, VideoRows};

/// A meta-batch of T tasks; each array is [T, rows, width], row-major. Row k of `z` belongs to row k of `x`.
///
/// Start from `VideoBatch::default()`; its memory is reused from draw to draw.
#[derive(Clone, Debug, Default)]
pub struct VideoBatch {
    /// T.
    pub tasks: usize,
    /// Support rows a task, K.
    pub shots: usize,
    /// Query rows a task, Kq.
    pub queries: usize,
    /// Support clips, [T, K, F*H*W*C].
    pub support_x: Vec<f32>,
    /// Support latents, [T, K, latent width]; of [`Episodes::with_fresh_noise`] [steps, T, K, latent width].
    pub support_z: Vec<f32>,
    /// Query clips, [T, Kq, F*H*W*C].
    pub query_x: Vec<f32>,
    /// Query latents, [T, Kq, latent width].
    pub query_z: Vec<f32>,
    /// The index of each task in its source, `[T]`.
    pub chosen: Vec<usize>,
    /// The clips of each task, support first, [T, K + Kq], and a seed for each task's noise.
    clips: Vec<usize>,
    seeds: Vec<u64>,
    /// Room for one drawing of distinct numbers.
    order: Vec<usize>,
}

impl VideoBatch {
    /// The batch as a learner takes it.
    pub fn rows(&self) -> VideoRows<'_, f32> {
        VideoRows {
            support_x: &self.support_x,
            support_z: &self.support_z,
            query_x: &self.query_x,
            query_z: &self.query_z,
        }
    }
}

/// Draws meta-batches from a source of clips.
#[derive(Clone)]
pub struct Episodes {
    source: Arc<dyn ClipTasks>,
    latent: Latent,
    tasks_per_batch: usize,
    shots: usize,
    queries: usize,
    /// Support latents a clip.
    noises: usize,
}

impl Episodes {
    /// Batches of `tasks_per_batch` tasks with `shots` support and `queries` query clips each; `queries` may be 0.
    ///
    /// # Errors
    /// If the source is empty, `tasks_per_batch` or `shots` is 0, the latent is not valid or has a condition that the source
    /// does not tell, or a task has fewer than `shots + queries` clips; the message names the task.
    pub fn new(
        source: Arc<dyn ClipTasks>,
        latent: Latent,
        tasks_per_batch: usize,
        shots: usize,
        queries: usize,
    ) -> Result<Self> {
        latent.validate()?;
        for (field, count) in [("tasks", source.len()), ("tasks_per_batch", tasks_per_batch), ("shots", shots)] {
            if count == 0 {
                return Err(Error::invalid(field, "is 0", "at least 1"));
            }
        }
        let (told, condition) = (source.condition_width(), &latent.condition);
        if condition.is_beside_clip() && told != condition.width() {
            let problem = format!("the tasks tell {told} values of a clip");
            return Err(Error::invalid("condition", problem, format!("{}, as the latent has", condition.width())));
        }
        let wanted = shots.saturating_add(queries);
        if let Some(task) = (0..source.len()).find(|&task| source.clips(task) < wanted) {
            return Err(Error::invalid(
                "shots + queries",
                format!("{shots} + {queries}, but task {:?} has {} clips", source.name(task), source.clips(task)),
                "at most as many as each task has clips; add clips or lower shots or queries",
            ));
        }
        Ok(Self { source, latent, tasks_per_batch, shots, queries, noises: 1 })
    }

    /// Draws the noise of the support latents anew for each of `steps` inner steps, as
    /// [`InnerConfig::fresh_noise`](crate::InnerConfig::fresh_noise) asks for; the first step has the noise that it has without.
    #[must_use]
    pub fn with_fresh_noise(self, steps: usize) -> Self {
        Self { noises: steps.max(1), ..self }
    }

    /// The format of the clips.
    pub fn format(&self) -> ClipFormat {
        self.source.format()
    }

    /// The make-up of the latents.
    pub fn latent(&self) -> &Latent {
        &self.latent
    }

    /// The source of the clips.
    pub fn source(&self) -> &Arc<dyn ClipTasks> {
        &self.source
    }

    /// Draws a batch: distinct tasks (as far as there are enough; each is drawn once before any is drawn again), and of
    /// each task distinct clips. What is drawn depends on the state of `rng` alone, not on the number of threads.
    ///
    /// # Errors
    /// None for the sources of this crate, whose tasks and clips were checked by [`Episodes::new`].
    pub fn draw(&self, rng: &mut ChaCha8Rng, batch: &mut VideoBatch) -> Result<()> {
        batch.chosen.clear();
        while batch.chosen.len() < self.tasks_per_batch {
            let wanted = (self.tasks_per_batch - batch.chosen.len()).min(self.source.len());
            draw_distinct(rng, self.source.len(), wanted, &mut batch.order);
            batch.chosen.extend_from_slice(&batch.order);
        }
        self.fill(rng, batch);
        Ok(())
    }

    /// Fills a batch with the tasks of the given indices, in their order, and random distinct clips of each.
    ///
    /// # Errors
    /// If `tasks` is empty or an index is out of range.
    pub fn fixed(&self, tasks: &[usize], rng: &mut ChaCha8Rng, batch: &mut VideoBatch) -> Result<()> {
        if tasks.is_empty() {
            return Err(Error::invalid("tasks", "is empty", "at least one task"));
        }
        if let Some(task) = tasks.iter().find(|&&task| task >= self.source.len()) {
            return Err(Error::invalid(
                "tasks",
                format!("names task {task}"),
                format!("indices below the number of tasks, {}", self.source.len()),
            ));
        }
        batch.chosen.clear();
        batch.chosen.extend_from_slice(tasks);
        self.fill(rng, batch);
        Ok(())
    }

    /// Draws clips and seeds one task after another, then fills the rows of all tasks in parallel.
    fn fill(&self, rng: &mut ChaCha8Rng, batch: &mut VideoBatch) {
        (batch.tasks, batch.shots, batch.queries) = (batch.chosen.len(), self.shots, self.queries);
        batch.clips.clear();
        batch.seeds.clear();
        for &task in &batch.chosen {
            draw_distinct(rng, self.source.clips(task), self.shots + self.queries, &mut batch.order);
            batch.clips.extend_from_slice(&batch.order);
            batch.seeds.push(rng.next_u64());
        }
        let VideoBatch { chosen, clips, seeds, support_x, support_z, query_x, query_z, .. } = batch;
        let plan = Plan { episodes: self, chosen, clips, seeds };
        plan.fill_rows(0, self.shots, support_x, support_z);
        plan.renew_noise(support_z);
        plan.fill_rows(self.shots, self.queries, query_x, query_z);
    }
}

/// Which clips and which noise a batch is to hold.
struct Plan<'a> {
    episodes: &'a Episodes,
    chosen: &'a [usize],
    clips: &'a [usize],
    seeds: &'a [u64],
}

impl Plan<'_> {
    /// Fills `x` and `z` with `rows` rows a task, from the clips that stand at `first` in each task's list.
    fn fill_rows(&self, first: usize, rows: usize, x: &mut Vec<f32>, z: &mut Vec<f32>) {
        let Episodes { source, latent, shots, queries, .. } = self.episodes;
        let (width, latent_width) = (source.format().values(), latent.width());
        // Old values are all overwritten.
        x.resize(self.chosen.len() * rows * width, 0.0);
        z.resize(self.chosen.len() * rows * latent_width, 0.0);
        let tasks = (x.par_chunks_exact_mut((rows * width).max(1)))
            .zip(z.par_chunks_exact_mut((rows * latent_width).max(1)))
            .zip(self.chosen.par_iter().zip(self.clips.par_chunks_exact(shots + queries)))
            .zip(self.seeds.par_iter());
        tasks.for_each(|(((x, z), (&task, clips)), &seed)| {
            let mut rng = ChaCha8Rng::seed_from_u64(seed);
            // Support and query noise of a task come from different streams of one seed.
            rng.set_stream(first as u64);
            let rows = x.chunks_exact_mut(width).zip(z.chunks_exact_mut(latent_width));
            for ((x, z), &clip) in rows.zip(&clips[first..]) {
                source.read_into(task, clip, x);
                latent.write(&mut rng, source, (task, clip), x, z);
            }
        });
    }
}

impl Plan<'_> {
    /// Appends the latents with other noise, as often as they are wanted.
    fn renew_noise(&self, z: &mut Vec<f32>) {
        let Episodes { latent, noises, .. } = self.episodes;
        let len = z.len();
        for noise in 1..*noises {
            z.extend_from_within(..len);
            let rows = z[noise * len..].chunks_exact_mut(len / self.chosen.len());
            for (rows, &seed) in rows.zip(self.seeds) {
                let mut rng = ChaCha8Rng::seed_from_u64(seed);
                // Those below are the support and query clips'.
                rng.set_stream((noise as u64) << 32);
                rows.chunks_exact_mut(latent.width()).for_each(|row| latent.renew_noise(&mut rng, row));
            }
        }
    }
}

/// `wanted` distinct numbers below `total`, in random order, by Floyd's method: no memory of `total` numbers is needed.
fn draw_distinct(rng: &mut ChaCha8Rng, total: usize, wanted: usize, out: &mut Vec<usize>) {
    out.clear();
    for top in total - wanted..total {
        let number = rng.random_range(0..=top);
        let number = if out.contains(&number) { top } else { number };
        // Floyd's method draws a fair set; putting each number at a random place makes the order fair too.
        let place = rng.random_range(0..=out.len());
        out.push(number);
        let last = out.len() - 1;
        out.swap(place, last);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distinct_numbers_are_distinct_and_fair() {
        let mut rng = ChaCha8Rng::seed_from_u64(5);
        let (mut out, mut counts) = (Vec::new(), [[0_u32; 6]; 3]);
        for _ in 0..12_000 {
            draw_distinct(&mut rng, 6, 3, &mut out);
            assert!(out.len() == 3 && out[0] != out[1] && out[1] != out[2] && out[0] != out[2]);
            (0..3).for_each(|place| counts[place][out[place]] += 1);
        }
        assert!(counts.iter().flatten().all(|&count| (1800..2200).contains(&count)), "{counts:?}");
        draw_distinct(&mut rng, 4, 4, &mut out);
        out.sort_unstable();
        assert_eq!(out, [0, 1, 2, 3]);
        draw_distinct(&mut rng, 4, 0, &mut out);
        assert!(out.is_empty());
    }
}
