//! How much longer a device takes over one kind of work than over another: what the planner compares forms by.

/// How long each kind of work takes, in units of the time of one flop of a large product with weights that all tasks share; see
/// [`Cost::estimate`](crate::Cost::estimate).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct CostFactors {
    /// A flop of the dual form's corrections.
    pub low_rank: f64,
    /// A flop of a product with weights of a task's own.
    pub per_task: f64,
    /// An element of such weights, read or written.
    pub per_task_elements: f64,
    /// A flop of the resident form.
    pub resident: f64,
    /// An element of parameters that it reads or writes.
    pub resident_elements: f64,
    /// An operation over all tasks, whatever its size.
    pub operation: f64,
    /// How many tasks of the resident form run at once where other forms have the whole device for a single task: fewer take as
    /// long. On a CPU 1, whose threads other forms cannot all use for few tasks either.
    pub resident_at_once: usize,
}

impl CostFactors {
    /// Measured on CPUs (`innerloop bench`, over networks from 1-40-40-1 to 128-256-512-4096): corrections reach about a fifth of the
    /// rate of a large product, a task's own products three quarters, and a weight that is streamed from the caches costs as
    /// much time as about 8 flop. From memory it is several times that, where the choice is clear anyway. The resident form's are
    /// fitted to times of networks from 1-8-1 to 196-64-32-5, in `benches/results/2026-11-25-resident.md`.
    pub const CPU: Self = Self {
        low_rank: 5.0,
        per_task: 1.3,
        per_task_elements: 8.0,
        resident: 0.4,
        resident_elements: 5.0,
        operation: 0.0,
        resident_at_once: 1,
    };
}
