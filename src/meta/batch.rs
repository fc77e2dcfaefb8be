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

/// A video meta-batch; every field is row-major. Row k of `z` belongs to row k of `x`.
#[derive(Clone, Copy, Debug)]
pub struct VideoRows<'a, T> {
    /// Support clips, `[tasks, shots, clip]`, in [-1, 1].
    pub support_x: &'a [T],
    /// The generator's inputs for them, `[tasks, shots, latent]`: noise, then the condition.
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
