//! What adaptation has made of single tasks: their losses and outputs step by step, and their parameters.

use rand::Rng;

use super::learner::{Losses, MetaLearner, Trace};
use super::objective::Objective;
use crate::device::{Device, Region};
use crate::inner::LowRankChange;
use crate::model::Parameters;
use crate::{Error, Result, Scalar};

impl<T: Scalar, D: Device<T>, O: Objective> MetaLearner<T, D, O> {
    /// Adapts to every task of the batch and evaluates the query set after 0, 1, ... steps.
    ///
    /// # Errors
    /// Rows that do not fit, or a learner that was not made by [`MetaLearner::tracer`].
    pub fn trace(&mut self, rows: O::Rows<'_, T>, rng: &mut impl Rng) -> Result<Trace<T>> {
        if !self.lanes[0].shape.trace {
            return Err(Error::invalid("learner", "made for meta-steps", "one made by MetaLearner::tracer"));
        }
        self.run(rows, rng)?;
        let steps = self.objective.inner().steps;
        let outputs = self.objective.networks()[0].1.outputs() * self.shape.queries;
        let mut trace = Trace { losses: Vec::new(), outputs: Vec::new() };
        for after in 0..=steps {
            let mut losses = Losses { task: vec![T::ZERO; self.shape.tasks], discriminator: Vec::new() };
            let mut output = vec![T::ZERO; self.shape.tasks * outputs];
            for lane in &self.lanes {
                let regions = O::losses(&lane.inner);
                let tasks = lane.shape.tasks.clone();
                let read = |region: Region, to: &mut [T]| {
                    let rows = region.rows / (steps + 1);
                    self.device.download(&lane.arena, region.rows(after * rows, rows), to);
                };
                read(regions.trace_primary, &mut losses.task[tasks.clone()]);
                if let Some(region) = regions.trace_secondary {
                    losses.discriminator.resize(self.shape.tasks, T::ZERO);
                    read(region, &mut losses.discriminator[tasks.clone()]);
                }
                read(regions.trace_output, &mut output[tasks.start * outputs..tasks.end * outputs]);
            }
            trace.losses.push(losses);
            trace.outputs.push(output);
        }
        Ok(trace)
    }

    /// The lane that a task of the last run is in, and the task's number there.
    fn lane_of(&self, task: usize) -> Result<(usize, usize)> {
        if !self.has_rows {
            return Err(Error::invalid("rows", "none of a run", "MetaLearner::run before"));
        }
        let lane = self.lanes.iter().position(|lane| lane.shape.tasks.contains(&task));
        let expected = || format!("below {}", self.shape.tasks);
        let lane = lane.ok_or_else(|| Error::invalid("task", task.to_string(), expected()))?;
        Ok((lane, task - self.lanes[lane].shape.tasks.start))
    }

    /// What the last run has made of one task's parameters, in a few rows.
    ///
    /// # Errors
    /// A task beyond the meta-batch, no run since the last meta-step that was submitted ([`MetaLearner::submit`]), a form that does not
    /// hold such rows, or a device that failed.
    pub fn change(&self, network: usize, task: usize) -> Result<LowRankChange<T>> {
        let (lane, local) = self.lane_of(task)?;
        let lane = &self.lanes[lane];
        let change = O::network(&lane.inner, network).change(&self.device, &lane.arena, local);
        self.device.check()?;
        change.ok_or_else(|| {
            let problem = format!("{}, whose changes are of full rank", self.strategy);
            Error::invalid("strategy", problem, "dual, which keeps their rows")
        })
    }

    /// One task's adapted parameters, after the last run. Uses the room of the meta-gradient.
    ///
    /// # Errors
    /// A task beyond the meta-batch, no run since the last meta-step that was submitted ([`MetaLearner::submit`]), or a device that
    /// failed.
    pub fn adapted(&mut self, network: usize, task: usize) -> Result<Parameters<T>> {
        let (lane, local) = self.lane_of(task)?;
        let lane = &mut self.lanes[lane];
        let mut parameters = Parameters::zeros(self.objective.networks()[network].1);
        let net = O::network(&lane.inner, network);
        net.adapted(&self.device, &mut lane.arena, local, parameters.values_mut());
        self.device.check()?;
        Ok(parameters)
    }
}
