//! Transfer to kinds of task that training never saw: methods trained alike, judged alike, over several seeds.

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::baseline::{best_uniform_rate, joint_training, uniform_phi};
use super::config::{ClipSource, Job, Pools, RunConfig, VideoJob};
use super::estimate::Estimate;
use super::evaluation::Evaluation;
use super::session::Session;
use crate::device::Device;
use crate::model::Parameters;
use crate::tasks::{ClipTasks, HeldOutKinds, MovingShapes, Subset};
use crate::{Algorithm, Error, MetaOptimizer, RateKind, Result, Shape};

/// A way to come to a starting point and to adapt from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Method {
    /// MAML with one inner learning rate, which stays as it is.
    Fixed,
    /// MAML with one inner learning rate, learned.
    Shared,
    /// MAML with a learned rate for each layer and step.
    PerLayerPerStep,
    /// MAML with learned rates of output and input units.
    RowColumn,
    /// MAML with networks that transform the gradient.
    Network,
    /// Reptile, with one inner learning rate.
    Reptile,
    /// Ordinary training on the clips of all tasks.
    Joint,
    /// No training.
    Random,
}

impl Method {
    /// All of them.
    pub const ALL: [Self; 8] = [
        Self::Fixed,
        Self::Shared,
        Self::PerLayerPerStep,
        Self::RowColumn,
        Self::Network,
        Self::Reptile,
        Self::Joint,
        Self::Random,
    ];

    /// A name for people.
    pub fn name(self) -> &'static str {
        match self {
            Self::Fixed => "MAML, fixed",
            Self::Shared => "MAML, shared",
            Self::PerLayerPerStep => "MAML, per-layer-per-step",
            Self::RowColumn => "MAML, row-column",
            Self::Network => "MAML, network",
            Self::Reptile => "Reptile",
            Self::Joint => "joint training",
            Self::Random => "random initialisation",
        }
    }

    /// Whether it learns how to adapt, rather than where to adapt from alone.
    pub fn learns_phi(self) -> bool {
        !matches!(self, Self::Fixed | Self::Reptile | Self::Joint | Self::Random)
    }

    /// The run that meta-trains it.
    fn configure(self, base: &RunConfig, rank: usize) -> RunConfig {
        let mut config = base.clone();
        let inner = config.job.inner_mut();
        inner.learn_rates = self.learns_phi();
        (inner.algorithm, inner.rates) = match self {
            Self::Reptile => (Algorithm::Reptile, RateKind::Shared),
            Self::PerLayerPerStep => (Algorithm::Maml, RateKind::PerLayerPerStep),
            Self::RowColumn => (Algorithm::Maml, RateKind::RowColumn),
            Self::Network => (Algorithm::Maml, RateKind::Network { rank }),
            Self::Fixed | Self::Shared | Self::Joint | Self::Random => (Algorithm::Maml, RateKind::Shared),
        };
        if self == Self::Reptile {
            (config.first_order, config.multi_step) = (0, 0);
        }
        config.outer.trains_parameters = true;
        config
    }
}

impl fmt::Display for Method {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What is compared.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TransferPlan {
    /// What every method's training follows from, algorithm and meta-optimizer aside. Its seed is the first seed.
    pub config: RunConfig,
    /// The kinds of task that are judged on and never trained on.
    pub held_out: HeldOutKinds,
    /// The methods, each once.
    pub methods: Vec<Method>,
    /// How many seeds; at least two.
    pub seeds: u64,
    /// Numbers of support clips to adapt with when judged; that of training among them.
    pub shots: Vec<usize>,
    /// Inner steps when judged.
    pub steps: usize,
    /// Episodes that each number of shots is judged on.
    pub episodes: usize,
    /// Hidden units of [`Method::Network`].
    pub rank: usize,
}

/// The tasks of one seed.
pub struct TransferPools {
    /// To train on.
    pub training: Arc<dyn ClipTasks>,
    /// Of the kinds trained on. Moving shapes: other tasks; a folder: the tasks trained on, with clips drawn anew.
    pub seen: Arc<dyn ClipTasks>,
    /// Of the held-out kinds.
    pub unseen: Arc<dyn ClipTasks>,
    /// What was passed over, for the user to see.
    pub notes: Vec<String>,
}

/// Query PSNR in dB, the mean over the episodes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TransferCurves<T = f64> {
    /// With the shots of training, after 0, 1, ... inner steps.
    pub steps: Vec<T>,
    /// After the last step, with each number of shots.
    pub shots: Vec<T>,
}

/// How one method came out with one seed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TransferOutcome {
    /// The seed.
    pub seed: u64,
    /// The method.
    pub method: Method,
    /// The generator's rate when judged, where the method learns none: the best of a grid on episodes of training tasks.
    pub rate: Option<f64>,
    /// On kinds that were held out.
    pub unseen: TransferCurves,
    /// On kinds that were trained on.
    pub seen: TransferCurves,
}

/// How one method came out over all seeds: means over the seeds, with Student's t-intervals.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TransferSummary {
    /// The method.
    pub method: Method,
    /// On kinds that were held out.
    pub unseen: TransferCurves<Estimate>,
    /// On kinds that were trained on.
    pub seen: TransferCurves<Estimate>,
}

/// How far a comparison is.
pub enum TransferProgress<'a> {
    /// The tasks of a seed are open.
    Opened(u64, &'a TransferPools),
    /// A method begins with a seed; its training takes that many steps.
    Begun(u64, Method, u64),
    /// So many of them are done.
    Trained(u64),
    /// All outcomes so far: worth keeping, to go on from.
    Judged(&'a [TransferOutcome]),
}

/// Moving shapes that are looked through for tasks to train on, and for others to judge on.
const SHAPES: usize = 1 << 15;
const SHAPES_JUDGED: usize = 1 << 10;
/// Clips of each.
const SHAPE_CLIPS: usize = 1 << 10;

impl TransferPlan {
    /// Checks that the parts fit together.
    ///
    /// # Errors
    /// Naming the field at fault.
    pub fn check(&self) -> Result<()> {
        self.job()?;
        for (field, value, least) in [
            ("seeds", self.seeds, 2),
            ("methods", self.methods.len() as u64, 1),
            ("episodes", self.episodes as u64, 1),
            ("inner steps", self.steps as u64, 1),
            ("shots", self.shots.iter().min().map_or(0, |shots| *shots as u64), 1),
        ] {
            if value < least {
                return Err(Error::invalid(field, value.to_string(), format!("at least {least}")));
            }
        }
        let trained = self.config.shape.shots;
        if !self.shots.contains(&trained) {
            return Err(Error::invalid(
                "shots",
                format!("{:?}", self.shots),
                format!("those of training too, {trained}"),
            ));
        }
        self.methods.iter().try_for_each(|method| method.configure(&self.config, self.rank).check())
    }

    fn job(&self) -> Result<&VideoJob> {
        match &self.config.job {
            Job::Video(job) => Ok(job),
            Job::Sinusoid(_) => Err(Error::invalid("transfer", "of sinusoids", "clips, which have kinds")),
        }
    }

    fn seeded(&self, seed: u64) -> RunConfig {
        RunConfig { seed, ..self.config.clone() }
    }

    /// Opens the tasks of one seed; `progress`: whether to show it.
    ///
    /// # Errors
    /// As [`ClipSource::open`], and kinds that the tasks do not have.
    pub fn open(&self, seed: u64, progress: bool) -> Result<TransferPools> {
        let job = self.job()?;
        let shots = self.shots.iter().max().map_or(0, |shots| *shots);
        let min_clips = shots.saturating_add(self.config.shape.queries);
        let pools = |training: Subset, seen: Subset, unseen: Subset, notes| TransferPools {
            training: Arc::new(training),
            seen: Arc::new(seen),
            unseen: Arc::new(unseen),
            notes,
        };
        match (&job.source, &self.held_out) {
            (ClipSource::MovingShapes { format }, held_out) => {
                // Other seeds, as in `ClipSource::open`, so that no task is both trained and judged on.
                let split = |seed, tasks| held_out.split_shapes(&MovingShapes::new(*format, seed, tasks, SHAPE_CLIPS)?);
                let ((training, _), (seen, unseen)) = (split(seed, SHAPES)?, split(!seed, SHAPES_JUDGED)?);
                Ok(pools(training, seen, unseen, Vec::new()))
            }
            (ClipSource::Folder { held_out, .. }, HeldOutKinds::Drawn) => {
                if *held_out == 0.0 {
                    return Err(Error::invalid(
                        "held_out",
                        "0",
                        "a fraction above 0, so that some tasks are kept back",
                    ));
                }
                let Pools { training, held_out, notes } =
                    job.source.open(&job.latent.condition, seed, min_clips, progress)?;
                Ok(TransferPools { seen: training.clone(), training, unseen: held_out, notes })
            }
            (ClipSource::Folder { path, format, cache, .. }, kinds) => {
                let whole =
                    ClipSource::Folder { path: path.clone(), format: *format, held_out: 0.0, cache: cache.clone() };
                let Pools { training, notes, .. } = whole.open(&job.latent.condition, seed, min_clips, progress)?;
                let (training, unseen) = kinds.split_named(&training)?;
                Ok(pools(training.clone(), training, unseen, notes))
            }
        }
    }
}

/// Trains each method with each seed on some kinds of task, and judges it on those kinds and on kinds it never met.
///
/// All methods of a seed begin with the same parameters, draw the same meta-batches, and adapt to the same episodes. Those that
/// learn no rates adapt with the one that serves them best on episodes of training tasks (see [`best_uniform_rate`]). `done`
/// are outcomes of the same plan to go on from.
///
/// # Errors
/// As [`TransferPlan::check`], [`TransferPlan::open`] and [`Session::step`], what `progress` returns, and adaptation that does
/// not stay finite.
pub fn transfer<D: Device<f32> + Clone>(
    device: &D,
    plan: &TransferPlan,
    done: Vec<TransferOutcome>,
    show: bool,
    progress: &mut dyn FnMut(TransferProgress<'_>) -> Result<()>,
) -> Result<Vec<TransferOutcome>> {
    plan.check()?;
    let mut outcomes = done;
    for seed in (0..plan.seeds).map(|index| plan.config.seed.wrapping_add(index)) {
        let is_done = |outcomes: &[TransferOutcome], method| {
            outcomes.iter().any(|outcome| outcome.seed == seed && outcome.method == method)
        };
        if plan.methods.iter().all(|method| is_done(&outcomes, *method)) {
            continue;
        }
        let pools = plan.open(seed, show)?;
        progress(TransferProgress::Opened(seed, &pools))?;
        let judges = Judges::draw(plan, seed, &pools)?;
        for &method in &plan.methods {
            if is_done(&outcomes, method) {
                continue;
            }
            let config = plan.seeded(seed);
            let length = if method == Method::Random { 0 } else { config.pretraining + config.steps };
            progress(TransferProgress::Begun(seed, method, length))?;
            let trained =
                train(device, plan, &config, method, &pools, &mut |step| progress(TransferProgress::Trained(step)))?;
            outcomes.push(judges.judge(device, plan, &config, method, trained)?);
            progress(TransferProgress::Judged(&outcomes))?;
        }
    }
    Ok(outcomes)
}

/// What training gave: parameters, and phi where the method learns it.
struct Trained {
    parameters: Vec<Parameters<f32>>,
    phi: Option<Vec<MetaOptimizer<f32>>>,
}

fn train<D: Device<f32> + Clone>(
    device: &D,
    plan: &TransferPlan,
    config: &RunConfig,
    method: Method,
    pools: &TransferPools,
    progress: &mut dyn FnMut(u64) -> Result<()>,
) -> Result<Trained> {
    if method == Method::Random {
        return Ok(Trained { parameters: config.initial_parameters(), phi: None });
    }
    let mut joint = |steps| {
        let mut told = Ok(());
        let pools = pools.judged_on(&pools.seen);
        let parameters = joint_training(device, config, Some(&pools), steps, |step| {
            told = progress(step);
            told.is_ok()
        });
        told.and(parameters)
    };
    if method == Method::Joint {
        return Ok(Trained { parameters: joint(config.pretraining + config.steps)?, phi: None });
    }
    let pretrained = if config.pretraining > 0 { Some(joint(config.pretraining)?) } else { None };
    let run = method.configure(config, plan.rank);
    let Job::Video(video) = &run.job else { return Err(Error::invalid("transfer", "of sinusoids", "clips")) };
    let episodes = video.episodes(pools.training.clone(), config.shape)?;
    let mut session = Session::new(device.clone(), run.clone(), video.objective.clone(), episodes)?;
    if let Some(parameters) = pretrained {
        session.set_parameters(&parameters)?;
    }
    while session.steps_done() < config.steps {
        session.step()?;
        progress(config.pretraining + session.steps_done())?;
    }
    let checkpoint = session.checkpoint();
    Ok(Trained { parameters: checkpoint.parameters, phi: method.learns_phi().then_some(checkpoint.phi) })
}

impl TransferPools {
    fn judged_on(&self, held_out: &Arc<dyn ClipTasks>) -> Pools {
        Pools { training: self.training.clone(), held_out: held_out.clone(), notes: Vec::new() }
    }
}

/// The episodes of one seed: to choose rates by, and to judge by, for each number of shots.
struct Judges {
    tuning: Evaluation,
    unseen: Vec<Evaluation>,
    seen: Vec<Evaluation>,
}

impl Judges {
    fn draw(plan: &TransferPlan, seed: u64, pools: &TransferPools) -> Result<Self> {
        let draw = |tasks: &Arc<dyn ClipTasks>, shots| {
            let shape = Shape { shots, ..plan.config.shape };
            let config = RunConfig { shape, ..plan.seeded(seed) };
            Evaluation::draw(&config, Some(&pools.judged_on(tasks)), plan.episodes)
        };
        let all = |tasks| plan.shots.iter().map(|shots| draw(tasks, *shots)).collect::<Result<Vec<_>>>();
        Ok(Self {
            tuning: draw(&pools.training, plan.config.shape.shots)?,
            unseen: all(&pools.unseen)?,
            seen: all(&pools.seen)?,
        })
    }

    fn judge<D: Device<f32> + Clone>(
        &self,
        device: &D,
        plan: &TransferPlan,
        config: &RunConfig,
        method: Method,
        Trained { parameters, phi }: Trained,
    ) -> Result<TransferOutcome> {
        let (rate, phi) = match phi {
            Some(phi) => (None, phi),
            None => {
                let rate = best_uniform_rate(device, config, &self.tuning, &parameters, plan.steps)?.rate;
                (Some(rate), uniform_phi(config, rate, plan.steps)?)
            }
        };
        let plays = config.adversarial_at(config.steps);
        let curves = |evaluations: &[Evaluation]| {
            let mut curves = TransferCurves { steps: Vec::new(), shots: Vec::new() };
            for (evaluation, shots) in evaluations.iter().zip(&plan.shots) {
                let trace = evaluation.trace(device, &parameters, &phi, plan.steps, plays)?;
                let scores = evaluation.merits(&trace)?;
                if let Some(step) = scores.iter().position(|score| !score.is_finite()) {
                    let problem = format!("{method} with seed {} is not finite after step {step}", config.seed);
                    return Err(Error::invalid("transfer", problem, "a lower inner learning rate, or fewer steps"));
                }
                curves.shots.extend(scores.last());
                if *shots == config.shape.shots {
                    curves.steps = scores;
                }
            }
            Ok(curves)
        };
        Ok(TransferOutcome {
            seed: config.seed,
            method,
            rate,
            unseen: curves(&self.unseen)?,
            seen: curves(&self.seen)?,
        })
    }
}

/// The means over the seeds, for each method that has at least one outcome.
pub fn transfer_summary(plan: &TransferPlan, outcomes: &[TransferOutcome]) -> Vec<TransferSummary> {
    let summary = |method: &Method| {
        let of = |kinds: fn(&TransferOutcome) -> &TransferCurves| {
            let curves: Vec<&TransferCurves> = outcomes.iter().filter(|o| o.method == *method).map(kinds).collect();
            let estimates = |values: fn(&TransferCurves) -> &Vec<f64>| {
                let points = curves.iter().map(|curves| values(curves).len()).min().unwrap_or(0);
                let seeds = |point: usize| curves.iter().map(|curves| values(curves)[point]).collect::<Vec<_>>();
                (0..points).map(|point| Estimate::of_few(&seeds(point))).collect()
            };
            TransferCurves { steps: estimates(|curves| &curves.steps), shots: estimates(|curves| &curves.shots) }
        };
        TransferSummary { method: *method, unseen: of(|outcome| &outcome.unseen), seen: of(|outcome| &outcome.seen) }
    };
    let has_outcome = |method: &&Method| outcomes.iter().any(|outcome| outcome.method == **method);
    plan.methods.iter().filter(has_outcome).map(summary).collect()
}
