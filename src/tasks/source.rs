//! What every source of clips offers.

use std::sync::Arc;

use crate::video::ClipFormat;

/// Tasks that are told by clips, all of one format.
///
/// Methods that take an index panic if it is out of range, as slices do.
pub trait ClipTasks: Send + Sync {
    /// The format of every clip.
    fn format(&self) -> ClipFormat;

    /// How many tasks there are.
    fn len(&self) -> usize;

    /// Whether there are none.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// A name for people, different for each task and the same in every run.
    fn name(&self, task: usize) -> String;

    /// How many clips `task` has.
    fn clips(&self, task: usize) -> usize;

    /// Writes clip `clip` of `task` to `out`: F*H*W*C values in [-1, 1].
    fn read_into(&self, task: usize, clip: usize, out: &mut [f32]);

    /// How many values [`ClipTasks::condition_into`] writes: 0 where nothing is told of clips beside themselves.
    fn condition_width(&self) -> usize {
        0
    }

    /// Writes the values of a [`Condition`](super::Condition) that cannot be made from the clip itself (a label, a vector, a
    /// text, a sound) to `out`.
    fn condition_into(&self, _task: usize, _clip: usize, _out: &mut [f32]) {}
}

impl<S: ClipTasks + ?Sized> ClipTasks for Arc<S> {
    fn format(&self) -> ClipFormat {
        (**self).format()
    }

    fn len(&self) -> usize {
        (**self).len()
    }

    fn name(&self, task: usize) -> String {
        (**self).name(task)
    }

    fn clips(&self, task: usize) -> usize {
        (**self).clips(task)
    }

    fn read_into(&self, task: usize, clip: usize, out: &mut [f32]) {
        (**self).read_into(task, clip, out);
    }

    fn condition_width(&self) -> usize {
        (**self).condition_width()
    }

    fn condition_into(&self, task: usize, clip: usize, out: &mut [f32]) {
        (**self).condition_into(task, clip, out);
    }
}
