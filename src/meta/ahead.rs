//! Whole meta-steps, submitted to a device that goes on by itself.

use std::collections::VecDeque;

use rand::Rng;

use super::OuterConfig;
use super::learner::{Losses, MetaLearner, learned_gradients};
use super::objective::Objective;
use super::outer_step::fault;
use crate::device::Device;
use crate::{Error, Result, Scalar};

/// Meta-steps that a device may have before it at once: one to work on, and one to go on with.
const AT_ONCE: usize = 2;

/// The meta-steps that were submitted.
pub(super) struct Ahead<G> {
    /// Each kept to be replayed; they take turns.
    graphs: [G; AT_ONCE],
    turn: usize,
    /// Those that were not waited for, the first one first.
    submitted: VecDeque<Submission>,
}

struct Submission {
    turn: usize,
    /// The number of the step, from 1, and the steps that each network had taken part in before it.
    step: u64,
    steps_of: [u64; 2],
}

impl<G: Default> Default for Ahead<G> {
    fn default() -> Self {
        Self { graphs: Default::default(), turn: 0, submitted: VecDeque::with_capacity(AT_ONCE) }
    }
}

impl<T: Scalar, D: Device<T>, O: Objective> MetaLearner<T, D, O> {
    /// How many meta-steps may be submitted before one has to be waited for: more than one on a device that goes on by itself, and
    /// learns phi's rates itself if they are learned.
    pub fn may_submit(&self) -> usize {
        if self.device.runs_behind() && self.lanes.len() == 1 && !self.host_learns() { AT_ONCE } else { 1 }
    }

    /// A whole meta-step, [`MetaLearner::run`] and [`MetaLearner::update`]: on a device that goes on by itself it is one
    /// piece of work, which nothing is waited for in, and no task's adapted parameters are left of. [`MetaLearner::wait`] tells how
    /// it went.
    ///
    /// # Errors
    /// As [`MetaLearner::run`] and [`MetaLearner::update`], where the device does not go on by itself; or
    /// [`MetaLearner::may_submit`] meta-steps that were not waited for.
    pub fn submit(&mut self, rows: O::Rows<'_, T>, config: &OuterConfig, rng: &mut impl Rng) -> Result<()> {
        self.submit_on(Some(rows), config, rng)
    }

    /// [`MetaLearner::submit`] on the rows of the last run or meta-step, which are still on the device: nothing is copied
    /// there.
    ///
    /// # Errors
    /// As [`MetaLearner::submit`] and [`MetaLearner::run_again`].
    pub fn submit_again(&mut self, config: &OuterConfig, rng: &mut impl Rng) -> Result<()> {
        self.submit_on(None, config, rng)
    }

    fn submit_on(&mut self, rows: Option<O::Rows<'_, T>>, config: &OuterConfig, rng: &mut impl Rng) -> Result<()> {
        let most = self.may_submit();
        if self.ahead.submitted.len() >= most {
            let problem = format!("{} submitted", self.ahead.submitted.len());
            return Err(Error::invalid("meta-steps", problem, "MetaLearner::wait before the next one"));
        }
        let mut steps_of = [0; 2];
        steps_of.iter_mut().zip(&self.steps_of).for_each(|(to, from)| *to = *from);
        let submission = Submission { turn: self.ahead.turn, step: self.steps_done + 1, steps_of };
        if most == 1 {
            self.run_on(rows, rng)?;
            self.update(config)?;
            self.ahead.submitted.push_back(submission);
            return Ok(());
        }
        self.check_trains(config)?;
        self.prepare(rows, rng)?;
        let learned = self.learned;
        let mut graph = std::mem::take(&mut self.ahead.graphs[submission.turn]);
        let mut lanes = std::mem::take(&mut self.lanes);
        let (work, first) = (self.outer_work(config), &mut lanes[0]);
        let losses = O::losses(&first.inner).of_tasks();
        let checked = losses.map(|region| (!region.is_empty()).then_some(region));
        let results = [losses[0], losses[1], self.findings];
        self.device.submit(&mut first.arena, &mut graph, &results, |device, arena| {
            O::run(&mut first.inner, device, arena, &self.rates, rows, &first.shape, &first.indices);
            learned_gradients::<T, D, O>(device, arena, &first.inner, &learned);
            for network in 0..self.phi.len() {
                O::network(&first.inner, network).discard_rows(device, arena);
            }
            work.carry_out::<T, D, O>(device, arena, &first.inner, checked);
        });
        self.lanes = lanes;
        self.has_rows = false;
        self.ahead.graphs[submission.turn] = graph;
        self.ahead.turn = (submission.turn + 1) % AT_ONCE;
        self.ahead.submitted.push_back(submission);
        for network in 0..self.phi.len() {
            self.steps_of[network] += u64::from(O::plays(&self.lanes[0].inner, network));
        }
        self.steps_done += 1;
        Ok(())
    }

    /// Waits for the first meta-step that was submitted and not waited for; returns its query losses at the adapted
    /// parameters.
    ///
    /// # Errors
    /// A loss or a gradient that is not finite: that meta-step, and any submitted after it, has left the parameters as they
    /// were, and counts as not done. Or nothing submitted, or a device that failed.
    pub fn wait(&mut self) -> Result<&Losses<T>> {
        let Some(Submission { turn, step, steps_of }) = self.ahead.submitted.pop_front() else {
            return Err(Error::invalid("meta-steps", "none submitted", "MetaLearner::submit before"));
        };
        if self.may_submit() == 1 {
            return Ok(&self.losses);
        }
        let results = self.device.results(&mut self.ahead.graphs[turn]);
        let (losses, findings) = results.split_at(results.len() - self.findings.len());
        self.losses.take(0..self.shape.tasks, self.shape.tasks, losses);
        let fault = self.losses.fault().or_else(|| fault(findings));
        let checked = self.device.check();
        if fault.is_none() && checked.is_ok() {
            return Ok(&self.losses);
        }
        self.ahead.submitted.clear();
        self.steps_done = step - 1;
        self.steps_of.iter_mut().zip(steps_of).for_each(|(to, from)| *to = from);
        self.forget_fault();
        checked?;
        match fault {
            Some((what, value)) => Err(Error::Diverged { what, value, step }),
            None => Ok(&self.losses),
        }
    }
}
