//! Moving shapes: video tasks made up on the spot, for trying things and for tests.

use std::fmt;

use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

use super::law::{Arena, Law};
use super::shape::{Looks, Outline};
use super::source::ClipTasks;
use crate::hash::mix;
use crate::video::ClipFormat;
use crate::{Error, Result};

/// Tasks whose clips show one shape that moves by one law.
///
/// A task has its own outline, size, angle, colours or brightness, texture, background and [`Law`] with all its
/// parameters; a clip has only its own start. So a few clips of a task are enough to continue the first frame of
/// another, and none are not. Everything follows from (seed, task, clip) alone; nothing is stored.
#[derive(Clone, Debug)]
pub struct MovingShapes {
    format: ClipFormat,
    seed: u64,
    tasks: usize,
    clips: usize,
}

/// One task: its looks, its law and the room it moves in.
struct Subject {
    looks: Looks,
    law: Law,
    arena: Arena,
}

impl MovingShapes {
    /// `tasks` tasks of `clips_per_task` clips each.
    ///
    /// # Errors
    /// If the format is not valid or a count is 0.
    pub fn new(format: ClipFormat, seed: u64, tasks: usize, clips_per_task: usize) -> Result<Self> {
        format.validate()?;
        for (field, count) in [("tasks", tasks), ("clips_per_task", clips_per_task)] {
            if count == 0 {
                return Err(Error::invalid(field, "is 0", "at least 1"));
            }
        }
        Ok(Self { format, seed, tasks, clips: clips_per_task })
    }

    /// The law of motion of `task`.
    ///
    /// # Panics
    /// If there is no such task.
    pub fn law(&self, task: usize) -> Law {
        self.subject(task).law
    }

    /// The words for the laws of motion.
    pub fn motions() -> Vec<&'static str> {
        Law::NAMES.to_vec()
    }

    /// The words for the outlines.
    pub fn outlines() -> Vec<&'static str> {
        Outline::ALL.map(Outline::name).to_vec()
    }

    /// The words for the law of motion and the outline of `task`.
    ///
    /// # Panics
    /// If there is no such task.
    pub fn kinds(&self, task: usize) -> [&'static str; 2] {
        let subject = self.subject(task);
        [subject.law.name(), subject.looks.outline.name()]
    }

    /// Where the shape's centre is in each frame of a clip: (x, y) in units of the frame's shorter side.
    ///
    /// # Panics
    /// If there is no such task or clip.
    pub fn path(&self, task: usize, clip: usize) -> Vec<[f32; 2]> {
        let subject = self.subject(task);
        let start = self.start(&subject, task, clip);
        (0..self.format.frames).map(|frame| subject.law.at(start, self.time(frame), &subject.arena)).collect()
    }

    fn subject(&self, task: usize) -> Subject {
        assert!(task < self.tasks, "task {task} of {}", self.tasks);
        let mut rng = self.rng(task, u64::MAX);
        let looks = Looks::draw(&mut rng, self.format.channels);
        let side = self.format.height.min(self.format.width) as f32;
        let extent = [self.format.width as f32 / side, self.format.height as f32 / side];
        let arena = Arena { extent, margin: 0.55 * looks.radius };
        Subject { looks, law: Law::draw(&mut rng, &arena), arena }
    }

    fn start(&self, subject: &Subject, task: usize, clip: usize) -> [f32; 2] {
        assert!(clip < self.clips, "clip {clip} of {}", self.clips);
        subject.law.draw_start(&mut self.rng(task, clip as u64), &subject.arena)
    }

    fn rng(&self, task: usize, clip: u64) -> ChaCha8Rng {
        ChaCha8Rng::seed_from_u64(mix(mix(mix(self.seed) ^ task as u64) ^ clip))
    }

    /// 0 at the first frame, 1 at the last.
    fn time(&self, frame: usize) -> f32 {
        frame as f32 / (self.format.frames - 1).max(1) as f32
    }
}

impl ClipTasks for MovingShapes {
    fn format(&self) -> ClipFormat {
        self.format
    }

    fn len(&self) -> usize {
        self.tasks
    }

    fn name(&self, task: usize) -> String {
        let [motion, outline] = self.kinds(task);
        format!("{task:05} {motion} {outline}")
    }

    fn clips(&self, _task: usize) -> usize {
        self.clips
    }

    fn read_into(&self, task: usize, clip: usize, out: &mut [f32]) {
        let subject = self.subject(task);
        let start = self.start(&subject, task, clip);
        for (frame, values) in out.chunks_exact_mut(self.format.frame_values()).enumerate() {
            let t = self.time(frame);
            subject.looks.render(subject.law.at(start, t, &subject.arena), &self.format, values);
        }
    }
}

impl fmt::Display for MovingShapes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "moving shapes ({} tasks of {} clips, seed {})", self.tasks, self.clips, self.seed)
    }
}
