use std::ops::Range;

/// A supervised meta-batch; every field is row-major.
#[derive(Clone, Copy, Debug)]
pub struct SupervisedRows<'a, T> {
    /// Support inputs, `[tasks, shots, inputs]`.
    pub support_x: &'a [T],
    /// Support targets, `[tasks, shots, outputs]`.
    pub support_y: &'a [T],
    /// Query inputs, `[tasks, queries, inputs]`.
    pub query_x: &'a [T],
    /// Query targets, `[tasks, queries, outputs]`.
    pub query_y: &'a [T],
}

/// A supervised meta-batch of one's own; every field is row-major, task after task. Its memory is reused from draw to draw.
#[derive(Clone, Debug, PartialEq)]
pub struct SupervisedBatch<T = f32> {
    /// Support inputs, `[tasks, shots, inputs]`.
    pub support_x: Vec<T>,
    /// Support targets, `[tasks, shots, outputs]`.
    pub support_y: Vec<T>,
    /// Query inputs, `[tasks, queries, inputs]`.
    pub query_x: Vec<T>,
    /// Query targets, `[tasks, queries, outputs]`.
    pub query_y: Vec<T>,
}

impl<T> Default for SupervisedBatch<T> {
    fn default() -> Self {
        Self { support_x: Vec::new(), support_y: Vec::new(), query_x: Vec::new(), query_y: Vec::new() }
    }
}

impl<T: Copy> SupervisedBatch<T> {
    /// Removes all tasks.
    pub fn clear(&mut self) {
        for values in [&mut self.support_x, &mut self.support_y, &mut self.query_x, &mut self.query_y] {
            values.clear();
        }
    }

    /// Adds a task: the inputs and targets of its support rows and of its query rows.
    pub fn push_task(&mut self, support: (&[T], &[T]), query: (&[T], &[T])) {
        self.support_x.extend_from_slice(support.0);
        self.support_y.extend_from_slice(support.1);
        self.query_x.extend_from_slice(query.0);
        self.query_y.extend_from_slice(query.1);
    }

    /// The batch as a learner takes it.
    pub fn rows(&self) -> SupervisedRows<'_, T> {
        SupervisedRows {
            support_x: &self.support_x,
            support_y: &self.support_y,
            query_x: &self.query_x,
            query_y: &self.query_y,
        }
    }
}

/// A video meta-batch; every field is row-major. Row k of `z` belongs to row k of `x`.
#[derive(Clone, Copy, Debug)]
pub struct VideoRows<'a, T> {
    /// Support clips, `[tasks, shots, clip]`, in [-1, 1].
    pub support_x: &'a [T],
    /// The generator's inputs for them, `[tasks, shots, latent]`: noise, then the condition. With
    /// [`InnerConfig::fresh_noise`](crate::InnerConfig::fresh_noise) one such array for each inner step, `[steps, tasks, shots, latent]`.
    pub support_z: &'a [T],
    /// Query clips, `[tasks, queries, clip]`.
    pub query_x: &'a [T],
    /// The generator's inputs for them, `[tasks, queries, latent]`.
    pub query_z: &'a [T],
}

/// The part of a `[tasks, ...]` array that belongs to some of the tasks.
pub(super) fn part<'a, T>(values: &'a [T], tasks: usize, range: &Range<usize>) -> &'a [T] {
    let each = values.len() / tasks;
    &values[range.start * each..range.end * each]
}
