use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::device::MatrixPrecision;
use crate::meta::sealed::Build;
use crate::model::Mlp;
use crate::objective::FrameShape;
use crate::tasks::{ClipFolder, ClipTasks, Condition, Episodes, FolderOptions, Latent, MovingShapes, Sinusoids, split};
use crate::video::ClipFormat;
use crate::{Algorithm, Error, InnerConfig, OuterConfig, Result, Shape, SupervisedConfig, VideoConfig};

/// Everything that a run follows from. Stored in its checkpoints.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RunConfig {
    /// What is trained, on which tasks.
    pub job: Job,
    /// The shape of the meta-batches.
    pub shape: Shape,
    /// The outer optimizer.
    pub outer: OuterConfig,
    /// Length of the run, in meta-steps.
    pub steps: u64,
    /// Meta-steps at the beginning whose gradient is of first order: with MAML, derivative-order annealing (Antoniou et al.
    /// 2019).
    #[serde(default)]
    pub first_order: u64,
    /// Meta-steps at the beginning with a multi-step meta-loss (Antoniou et al. 2019, section 4): at first the mean of the query
    /// losses after each inner step, from which it goes over to the last step's alone.
    #[serde(default)]
    pub multi_step: u64,
    /// Steps of ordinary joint training before the first meta-step.
    #[serde(default)]
    pub pretraining: u64,
    /// What a GPU rounds the operands of large matrix products to; CPUs do not.
    #[serde(default)]
    pub precision: MatrixPrecision,
    /// Where all random numbers come from.
    pub seed: u64,
    /// The inner learning rate each network begins with.
    pub initial_rates: Vec<f64>,
}

/// What is trained, on which tasks.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
#[allow(clippy::large_enum_variant, reason = "a run has one")]
pub enum Job {
    /// A video generator and its discriminator, on clips.
    Video(Box<VideoJob>),
    /// A regressor, on sinusoids.
    Sinusoid(SineJob),
}

/// A video generator and its discriminator, on clips.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct VideoJob {
    /// Where clips come from.
    pub source: ClipSource,
    /// The generator's input row.
    pub latent: Latent,
    /// The networks, their losses and the inner loop.
    pub objective: VideoConfig,
    /// The discriminator takes part from this meta-step on, counted from 0; before it the adversarial term is left out.
    pub adversarial_from: u64,
}

/// A regressor, on sinusoids.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SineJob {
    /// The family of sinusoids.
    pub tasks: Sinusoids,
    /// The network, its loss and the inner loop.
    pub objective: SupervisedConfig,
}

/// Where clips come from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "source", rename_all = "snake_case")]
pub enum ClipSource {
    /// The built-in moving shapes; the run's seed makes them.
    MovingShapes {
        /// The format of the clips.
        format: ClipFormat,
    },
    /// A folder `DIR/TASK/CLIP`.
    Folder {
        /// The folder.
        path: PathBuf,
        /// The format clips are brought to.
        format: ClipFormat,
        /// The fraction of the tasks that is held out, chosen by the run's seed.
        held_out: f64,
        /// Where decoded clips are kept; inside the folder when absent.
        cache: Option<PathBuf>,
    },
}

/// Tasks to learn from, and tasks held out.
#[derive(Clone)]
pub struct Pools {
    /// To learn from.
    pub training: Arc<dyn ClipTasks>,
    /// Held out.
    pub held_out: Arc<dyn ClipTasks>,
    /// What was passed over, for the user to see.
    pub notes: Vec<String>,
}

/// Moving shapes to learn from (as good as endless), held out, and clips of each.
const SHAPE_TASKS: usize = 1 << 20;
const SHAPE_TASKS_HELD_OUT: usize = 64;
const SHAPE_CLIPS: usize = 1 << 10;

impl ClipSource {
    /// The format of the clips.
    pub fn format(&self) -> ClipFormat {
        match self {
            Self::MovingShapes { format } | Self::Folder { format, .. } => *format,
        }
    }

    /// Opens the tasks, with the condition they are to tell, and holds some out; `min_clips` is the fewest clips a task may
    /// have.
    ///
    /// # Errors
    /// As [`ClipFolder::open`] and [`split`], and moving shapes with a condition that is told beside the clips.
    pub fn open(&self, condition: &Condition, seed: u64, min_clips: usize, progress: bool) -> Result<Pools> {
        match self {
            Self::MovingShapes { .. } if condition.is_beside_clip() => {
                let expected = "none or first-frame, or a folder of clips";
                Err(Error::invalid("condition", "is told beside clips, and moving shapes have no files", expected))
            }
            Self::MovingShapes { format } => {
                // Another seed, so no held-out task can be among those to learn from.
                let shapes = |seed, tasks| MovingShapes::new(*format, seed, tasks, SHAPE_CLIPS);
                Ok(Pools {
                    training: Arc::new(shapes(seed, SHAPE_TASKS)?),
                    held_out: Arc::new(shapes(!seed, SHAPE_TASKS_HELD_OUT)?),
                    notes: Vec::new(),
                })
            }
            Self::Folder { path, format, held_out, cache } => {
                let (cache, condition) = (cache.clone(), condition.clone());
                let options = FolderOptions { cache, min_clips, progress, condition, label: None };
                let folder = ClipFolder::open(path, *format, &options)?;
                let mut notes = folder.notes().to_vec();
                let source: Arc<dyn ClipTasks> = Arc::new(folder);
                let (training, held_out) = split(&source, *held_out, seed)?;
                notes.extend(unseen_labels(&options.condition, &training, &held_out));
                Ok(Pools { training: Arc::new(training), held_out: Arc::new(held_out), notes })
            }
        }
    }
}

/// A note on labels that held-out tasks alone have.
fn unseen_labels(condition: &Condition, training: &dyn ClipTasks, held_out: &dyn ClipTasks) -> Option<String> {
    let Condition::Label(labels) = condition else { return None };
    let of = |pool: &dyn ClipTasks| -> BTreeSet<String> {
        (0..pool.len()).map(|task| labels.of_task(&pool.name(task)).to_owned()).collect()
    };
    let (unseen, known) = (of(held_out), of(training));
    let count = unseen.difference(&known).count();
    (count > 0).then(|| {
        format!(
            "{count} of {} labels belong to held-out tasks alone, so the generator never meets them in training; \
             --labels can give one label to several tasks, --held-out 0 holds none out",
            labels.names().len()
        )
    })
}

impl VideoJob {
    /// Meta-batches of these clips for training, of that shape.
    ///
    /// # Errors
    /// As [`Episodes::new`].
    pub fn episodes(&self, clips: Arc<dyn ClipTasks>, shape: Shape) -> Result<Episodes> {
        let Shape { tasks, shots, queries } = shape;
        let episodes = Episodes::new(clips, self.latent.clone(), tasks, shots, queries)?;
        let inner = &self.objective.inner;
        Ok(if inner.fresh_noise { episodes.with_fresh_noise(inner.steps) } else { episodes })
    }
}

impl Job {
    /// The inner loop.
    pub fn inner(&self) -> &InnerConfig {
        match self {
            Self::Video(job) => &job.objective.inner,
            Self::Sinusoid(job) => &job.objective.inner,
        }
    }

    /// The inner loop, to change.
    pub fn inner_mut(&mut self) -> &mut InnerConfig {
        match self {
            Self::Video(job) => &mut job.objective.inner,
            Self::Sinusoid(job) => &mut job.objective.inner,
        }
    }

    /// The networks and the names they go by in checkpoints.
    pub fn networks(&self) -> Vec<(&'static str, &Mlp)> {
        match self {
            Self::Video(job) if job.objective.adversarial => {
                vec![("generator", &job.objective.generator), ("discriminator", &job.objective.discriminator)]
            }
            Self::Video(job) => vec![("generator", &job.objective.generator)],
            Self::Sinusoid(job) => vec![("network", &job.objective.mlp)],
        }
    }
}

impl RunConfig {
    /// Checks that the parts fit together.
    ///
    /// # Errors
    /// Naming the field at fault.
    pub fn check(&self) -> Result<()> {
        self.outer.check()?;
        if self.first_order > 0 && self.job.inner().algorithm != Algorithm::Maml {
            let problem = format!("{} with {}", self.first_order, self.job.inner().algorithm);
            return Err(Error::invalid("first-order steps", problem, "0, or maml, which they turn into fomaml"));
        }
        let inner = self.job.inner();
        if self.multi_step > 0 && !inner.has_losses_on_the_way() {
            let problem = format!("{} with {} of {} inner steps", self.multi_step, inner.algorithm, inner.steps);
            return Err(Error::invalid("multi-step steps", problem, "0, or maml, fomaml or anil with inner steps"));
        }
        let networks = self.job.networks().len();
        if self.initial_rates.len() != networks {
            let problem = format!("{} values", self.initial_rates.len());
            return Err(Error::invalid("initial_rates", problem, format!("{networks}, one for each network")));
        }
        if let Some(rate) = self.initial_rates.iter().find(|rate| !(rate.is_finite() && **rate > 0.0)) {
            return Err(Error::invalid("inner learning rate", rate.to_string(), "a positive number"));
        }
        let job = match &self.job {
            Job::Video(job) => job,
            Job::Sinusoid(job) => return job.objective.check(&self.shape),
        };
        let format = job.source.format();
        format.validate()?;
        job.latent.validate()?;
        for (field, found, expected) in [
            ("generator inputs", job.objective.generator.inputs(), job.latent.width()),
            ("generator outputs", job.objective.generator.outputs(), format.values()),
            ("frames", job.objective.frames, format.frames),
        ] {
            if found != expected {
                return Err(Error::invalid(field, found.to_string(), format!("{expected}, to fit clips of {format}")));
            }
        }
        let ClipFormat { height, width, channels, .. } = format;
        if let Some(frame) = job.objective.frame
            && frame != (FrameShape { height, width, channels })
        {
            return Err(Error::invalid("frame shape", frame.to_string(), format!("that of clips of {format}")));
        }
        if job.objective.inner.fresh_noise && job.latent.noise == 0 {
            return Err(Error::invalid(
                "fresh noise",
                "given without noise in the latent",
                "noise of at least 1 value",
            ));
        }
        if job.latent.condition == Condition::None {
            let weights = &job.objective.weights;
            for (field, weight) in
                [("reconstruction", weights.reconstruction), ("motion", weights.motion), ("texture", weights.texture)]
            {
                if weight > 0.0 {
                    let problem = format!("{weight} without a condition that says which clip is meant");
                    return Err(Error::invalid(format!("{field} weight"), problem, "0, or a condition"));
                }
            }
            if !job.objective.adversarial {
                let problem = "0 without a condition, so that nothing is left to train on";
                return Err(Error::invalid("adversarial weight", problem, "above 0, or a condition"));
            }
        }
        Build::check(&job.objective, &self.shape)
    }
}
