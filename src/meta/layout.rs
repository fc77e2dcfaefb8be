//! Where everything of a learner lies, and whether that much memory can be had, before any of it is taken.

use super::MetaOptimizer;
use super::learner::Shape;
use super::objective::{LaneShape, Objective};
use crate::device::{ArenaPlan, Device, FINDINGS, Region};
use crate::inner::Strategy;
use crate::{Error, Result, Scalar};

/// See the module.
pub(super) struct LaidOut<T: Scalar, O: Objective> {
    /// Each lane's shape, its loop, and the numbers its arena holds.
    pub lanes: Vec<(LaneShape, O::Loop<T>, usize)>,
    /// Adam's moments, in the first lane's arena.
    pub moments: Vec<[Region; 2]>,
    pub weight_moments: Vec<[Region; 2]>,
    /// Those of rates that are learned on the device.
    pub rate_moments: Vec<[Region; 2]>,
    /// What the outer optimizer asks beforehand, there too.
    pub findings: Region,
}

impl<T: Scalar, O: Objective> LaidOut<T, O> {
    pub fn new<D: Device<T>>(
        objective: &O,
        shape: Shape,
        phi: &[MetaOptimizer<T>],
        strategy: Strategy,
        trace: bool,
        device: &D,
    ) -> Self {
        let whole = LaneShape { tasks: 0..shape.tasks, shape, strategy, trace };
        // The resident form's operation spreads the tasks over the threads by itself.
        let resident = strategy == Strategy::Resident;
        let lanes = if resident { 1 } else { crate::inner::lanes(&objective.specs(&whole), device.lanes()) };
        let findings = ArenaPlan::default().take(0, 0);
        let (moments, weight_moments, rate_moments) = Default::default();
        let mut this = Self { lanes: Vec::new(), moments, weight_moments, rate_moments, findings };
        for lane in 0..lanes {
            // The first lane begins first, and so takes what is left over.
            let tasks = (shape.tasks * lane).div_ceil(lanes)..(shape.tasks * (lane + 1)).div_ceil(lanes);
            let lane_shape = LaneShape { tasks, ..whole.clone() };
            let mut plan = ArenaPlan::default();
            let built = objective.build::<T>(&mut plan, &lane_shape);
            if lane == 0 && !trace {
                let mut moments = |count: usize| [(); 2].map(|()| plan.take(1, count));
                this.moments = objective.networks().iter().map(|(_, mlp)| moments(mlp.parameter_count())).collect();
                this.weight_moments = phi.iter().map(|phi| moments(phi.weights().len())).collect();
                let all_learned = (0..phi.len()).all(|network| O::network(&built, network).learned.is_some());
                if lanes == 1 && device.learns_rates() && all_learned {
                    this.rate_moments = phi.iter().map(|phi| moments(phi.rate_count())).collect();
                }
                this.findings = plan.take(1, FINDINGS);
            }
            this.lanes.push((lane_shape, built, plan.elements()));
        }
        this
    }

    pub fn bytes(&self) -> usize {
        self.lanes.iter().map(|(_, _, elements)| elements * size_of::<T>()).sum()
    }
}

/// Checks that `bytes` for a meta-batch of `tasks` are free on the device; `bytes_of` says what others take.
///
/// # Errors
/// They are not; the message names the largest meta-batch that would fit.
pub(super) fn check_memory<T: Scalar, D: Device<T>>(
    device: &D,
    tasks: usize,
    bytes: usize,
    bytes_of: impl Fn(usize) -> usize,
) -> Result<()> {
    let Some(free) = device.free_bytes() else { return Ok(()) };
    if bytes as u64 <= free {
        return Ok(());
    }
    let (mut most, mut too_many) = (0, tasks);
    while too_many - most > 1 {
        let middle = most + (too_many - most) / 2;
        if bytes_of(middle) as u64 <= free { most = middle } else { too_many = middle }
    }
    let gigabytes = |bytes: u64| bytes as f64 / 1e9;
    let (needed, free) = (gigabytes(bytes as u64), gigabytes(free));
    let problem =
        format!("a meta-batch of {tasks} takes {needed:.2} GB, and {free:.2} GB are free on {}", device.label());
    let expected = match most {
        0 => "a smaller network, fewer inner steps or fewer rows a task: not one task fits".to_owned(),
        _ => format!("a meta-batch of at most {most}, or a smaller network, fewer inner steps or rows"),
    };
    Err(Error::invalid("memory", problem, expected))
}
