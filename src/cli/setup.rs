//! The options that describe a run, and the run they describe.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

use crate::device::MatrixPrecision;
use crate::model::{Activation, Mlp};
use crate::objective::{FrameShape, Loss, VideoWeights};
use crate::run::{ClipSource, Job, RunConfig, SineJob, VideoJob};
use crate::tasks::{ClipFolder, Condition, Labels, Latent, Sinusoids};
use crate::video::ClipFormat;
use crate::{
    Algorithm, Error, InnerConfig, InnerOptimizer, OuterConfig, OuterKind, RateKind, Result, Schedule, Shape,
    SupervisedConfig, VideoConfig,
};

/// Built-in tasks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum BuiltIn {
    /// Clips of shapes that move
    Shapes,
    /// Sinusoid regression (Finn et al. 2017)
    Sinusoid,
}

/// What the generator is told of the clip.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum ConditionKind {
    /// The clip's first frame, in gray
    FirstFrame,
    /// The label of the clip's task, from --labels or the folder's name
    Label,
    /// The vector in CLIP.npy beside the clip: an embedding made elsewhere
    Vector,
    /// The text in CLIP.txt beside the clip, as hashed character n-grams
    Text,
    /// The sound in CLIP.wav beside the clip, as log-mel features
    Audio,
    /// Nothing; then there is no reconstruction either, and the discriminator plays from the start
    None,
}

/// The outer optimizer's rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Outer {
    Adam,
    Sgd,
}

/// The course of the outer learning rate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Course {
    Cosine,
    /// Falls evenly to 0, as Reptile's
    Linear,
    Constant,
}

/// The rule of the inner steps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Inner {
    /// Gradient descent
    Sgd,
    /// Kingma & Ba 2015; always in the materialised form
    Adam,
}

/// What becomes of a gradient before it is descended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum MetaOptimizerKind {
    /// One learning rate, which stays as it is
    Fixed,
    /// One learning rate, learned
    Shared,
    /// A learning rate for each layer and inner step
    PerLayerPerStep,
    /// For each layer and step, a rate for each output unit times one for each input unit
    RowColumn,
    /// A learning rate for each parameter (Meta-SGD)
    PerParameter,
    /// For each layer, small networks that transform the gradient's factors (see --rank)
    Network,
}

/// Hidden units of a meta-optimizer's networks, unless told otherwise.
pub(super) const RANK: usize = 16;

/// What the outer loop trains.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Part {
    /// The networks' shared parameters
    Theta,
    /// The meta-optimizer
    Phi,
}

/// The options that describe a run. Defaults given as "A or B" are those for clips and those for sinusoids.
#[derive(Clone, Debug, Args)]
pub(super) struct Setup {
    /// Folder of clips, DIR/TASK/CLIP; a clip is a GIF, an animated PNG, a .y4m, a .npy, a folder of PNG or JPEG frames,
    /// or, with ffmpeg on PATH, any video. Built-in tasks when absent
    #[arg(value_name = "DIR")]
    pub(super) clips: Option<PathBuf>,
    /// Which built-in tasks
    #[arg(long, conflicts_with = "clips", default_value = "shapes")]
    tasks: BuiltIn,

    /// Height and width of the frames
    #[arg(long, value_name = "HxW", default_value = "16x16", value_parser = parse_size, help_heading = "Clips")]
    size: (usize, usize),
    /// Frames in a clip
    #[arg(long, default_value_t = 8, help_heading = "Clips")]
    frames: usize,
    /// RGB rather than gray
    #[arg(long, help_heading = "Clips")]
    color: bool,
    /// Fraction of the folder's tasks that is held out
    #[arg(long, value_name = "FRACTION", default_value_t = 0.25, help_heading = "Clips")]
    held_out: f64,
    /// Where decoded clips are kept; DIR/.innerloop-cache when absent
    #[arg(long, value_name = "DIR", help_heading = "Clips")]
    pub(super) cache: Option<PathBuf>,

    /// Hidden widths of the generator, or of the regressor [default: 256,512 or 40,40]
    #[arg(long, value_delimiter = ',', help_heading = "Networks")]
    #[arg(hide_default_value = true, default_value = "256,512", default_value_if("tasks", "sinusoid", "40,40"))]
    generator_widths: Vec<usize>,
    /// Hidden widths of the discriminator
    #[arg(long, value_delimiter = ',', default_value = "512,256", help_heading = "Networks")]
    discriminator_widths: Vec<usize>,
    /// Values of noise in the generator's input
    #[arg(long, default_value_t = 16, help_heading = "Networks")]
    noise: usize,
    /// What the generator is told of the clip
    #[arg(long, default_value = "first-frame", help_heading = "Networks")]
    condition: ConditionKind,
    /// Size the first frame is shrunk to
    #[arg(long, value_name = "HxW", default_value = "16x16", value_parser = parse_size, help_heading = "Networks")]
    condition_size: (usize, usize),
    /// Labels of the tasks: lines `task,label`, or a .json object; with --condition label. The tasks' names when absent
    #[arg(long, value_name = "FILE", help_heading = "Networks")]
    labels: Option<PathBuf>,
    /// Values that a text is hashed to; with --condition text
    #[arg(long, value_name = "N", default_value_t = 256, help_heading = "Networks")]
    text_width: usize,
    /// Mel bands of a sound, for each frame of a clip; with --condition audio
    #[arg(long, value_name = "N", default_value_t = 20, help_heading = "Networks")]
    audio_bands: usize,

    /// Weight of the adversarial term; 0 leaves the discriminator out [default: 0.001, or 1 with --condition none]
    #[arg(long, help_heading = "Losses")]
    #[arg(hide_default_value = true, default_value = "0.001", default_value_if("condition", "none", "1"))]
    adversarial_weight: f64,
    /// The discriminator joins after this fraction of the run; before it, reconstruction alone is trained [default: 0.9, or 0
    /// with --condition none]
    #[arg(long, value_name = "FRACTION", help_heading = "Losses")]
    #[arg(hide_default_value = true, default_value = "0.9", default_value_if("condition", "none", "0"))]
    adversarial_from: f64,
    /// Weight of the mean squared error of the pixels [default: 1, or 0 with --condition none]
    #[arg(long, help_heading = "Losses")]
    #[arg(hide_default_value = true, default_value = "1", default_value_if("condition", "none", "0"))]
    reconstruction_weight: f64,
    /// Weight of the mean squared error of the differences of successive frames
    #[arg(long, default_value_t = 0.0, help_heading = "Losses")]
    motion_weight: f64,
    /// Weight of the mean squared error of the differences of neighbouring pixels
    #[arg(long, default_value_t = 0.0, help_heading = "Losses")]
    texture_weight: f64,

    #[arg(long, default_value = "maml", help_heading = "Inner loop")]
    algorithm: Algorithm,
    /// Inner steps [default: 5 or 1]
    #[arg(long, help_heading = "Inner loop")]
    #[arg(hide_default_value = true, default_value = "5", default_value_if("tasks", "sinusoid", "1"))]
    inner_steps: usize,
    /// Support rows (clips) a task [default: 5 or 10]
    #[arg(long, help_heading = "Inner loop")]
    #[arg(hide_default_value = true, default_value = "5", default_value_if("tasks", "sinusoid", "10"))]
    shots: usize,
    /// Query rows (clips) a task [default: 5 or 10]
    #[arg(long, help_heading = "Inner loop")]
    #[arg(hide_default_value = true, default_value = "5", default_value_if("tasks", "sinusoid", "10"))]
    queries: usize,
    /// The inner learning rate, or what the learned ones begin with [default: 1 or 0.01; 0.01 with Adam]
    #[arg(long, help_heading = "Inner loop")]
    #[arg(hide_default_value = true, default_value = "1")]
    #[arg(default_value_ifs([("tasks", "sinusoid", Some("0.01")), ("inner_optimizer", "adam", Some("0.01"))]))]
    inner_lr: f64,
    /// The discriminator's inner learning rate, or what the learned ones begin with
    #[arg(long, default_value_t = 0.01, help_heading = "Inner loop")]
    discriminator_lr: f64,
    /// What becomes of a gradient before it is descended
    #[arg(long, default_value = "per-layer-per-step", help_heading = "Inner loop")]
    meta_optimizer: MetaOptimizerKind,
    /// Hidden units of the networks of --meta-optimizer network
    #[arg(long, default_value_t = RANK, help_heading = "Inner loop")]
    rank: usize,
    /// The rule of the inner steps
    #[arg(long, default_value = "sgd", help_heading = "Inner loop")]
    inner_optimizer: Inner,
    /// Momentum of the inner steps; with sgd
    #[arg(long, default_value_t = 0.0, help_heading = "Inner loop")]
    momentum: f64,
    /// Draw the generator's noise anew for each inner step, as FIGR does (Clouâtre & Demers 2019); for clips
    #[arg(long, help_heading = "Inner loop")]
    fresh_noise: bool,
    /// Weight decay of the inner optimizer
    #[arg(long, default_value_t = 0.0, help_heading = "Inner loop")]
    weight_decay: f64,
    /// Support rows an inner step sees, drawn anew for each; all when absent
    #[arg(long, help_heading = "Inner loop")]
    minibatch: Option<usize>,

    /// Meta-steps [default: 2500 or 70000]
    #[arg(long, help_heading = "Outer loop")]
    #[arg(hide_default_value = true, default_value = "2500", default_value_if("tasks", "sinusoid", "70000"))]
    steps: u64,
    /// Steps of ordinary joint training, before the first meta-step [default: a quarter of the run, or none]
    #[arg(long, value_name = "N", help_heading = "Outer loop", default_value_if("tasks", "sinusoid", "0"))]
    pretraining: Option<u64>,
    /// Tasks in a meta-batch [default: 8 or 25]
    #[arg(long, help_heading = "Outer loop")]
    #[arg(hide_default_value = true, default_value = "8", default_value_if("tasks", "sinusoid", "25"))]
    meta_batch: usize,
    /// What is trained: the parameters, the meta-optimizer, or both
    #[arg(long, value_delimiter = ',', default_value = "theta,phi", help_heading = "Outer loop")]
    train: Vec<Part>,
    /// Meta-steps at the beginning that take maml for fomaml, whose gradient is of first order (Antoniou et al. 2019)
    #[arg(long, value_name = "N", default_value_t = 0, help_heading = "Outer loop")]
    first_order_steps: u64,
    /// Meta-steps at the beginning whose loss is that after every inner step, going over to the last one's (Antoniou et al. 2019)
    #[arg(long, value_name = "N", default_value_t = 0, help_heading = "Outer loop")]
    multi_step_steps: u64,
    /// The outer optimizer
    #[arg(long, default_value = "adam", help_heading = "Outer loop")]
    outer: Outer,
    /// The outer learning rate
    #[arg(long, default_value_t = 1e-3, help_heading = "Outer loop")]
    outer_lr: f64,
    /// The outer learning rate of the inner rates' logarithms
    #[arg(long, default_value_t = 0.03, help_heading = "Outer loop")]
    phi_lr: f64,
    /// The outer learning rate of the meta-optimizer's factors, where it is row-column or a network
    #[arg(long, default_value_t = 0.01, help_heading = "Outer loop")]
    phi_factor_lr: f64,
    /// The outer learning rate of the meta-optimizer's weights, where it is a network
    #[arg(long, default_value_t = 3e-4, help_heading = "Outer loop")]
    phi_weight_lr: f64,
    /// The largest norm a network's gradient may have [default: 10, or none]
    #[arg(long, help_heading = "Outer loop")]
    #[arg(hide_default_value = true, default_value = "10", default_value_if("tasks", "sinusoid", None))]
    clip: Option<f64>,
    /// The course of the outer learning rates [default: cosine or constant]
    #[arg(long, help_heading = "Outer loop")]
    #[arg(hide_default_value = true, default_value = "cosine", default_value_if("tasks", "sinusoid", "constant"))]
    schedule: Course,
    /// Seed of everything that is drawn
    #[arg(long, default_value_t = 0, help_heading = "Outer loop")]
    seed: u64,
}

/// `HxW`.
pub(super) fn parse_size(text: &str) -> Result<(usize, usize)> {
    let wrong = || Error::invalid("size", format!("{text:?}"), "HEIGHTxWIDTH, e.g. 16x16");
    let (height, width) = text.split_once('x').ok_or_else(wrong)?;
    match (height.trim().parse(), width.trim().parse()) {
        (Ok(height), Ok(width)) if height > 0 && width > 0 => Ok((height, width)),
        _ => Err(wrong()),
    }
}

impl Setup {
    /// Hidden units of the meta-optimizer's networks.
    pub(super) fn rank(&self) -> usize {
        self.rank
    }

    /// The run that the options describe.
    pub(super) fn config(&self) -> Result<RunConfig> {
        let sinusoids = self.clips.is_none() && self.tasks == BuiltIn::Sinusoid;
        let inner = InnerConfig {
            optimizer: self.optimizer()?,
            minibatch: self.minibatch,
            weight_decay: self.weight_decay,
            rates: match self.meta_optimizer {
                MetaOptimizerKind::Fixed | MetaOptimizerKind::Shared => RateKind::Shared,
                MetaOptimizerKind::PerLayerPerStep => RateKind::PerLayerPerStep,
                MetaOptimizerKind::RowColumn => RateKind::RowColumn,
                MetaOptimizerKind::PerParameter => RateKind::PerParameter,
                MetaOptimizerKind::Network => RateKind::Network { rank: self.rank },
            },
            learn_rates: self.trains_phi()?,
            fresh_noise: self.fresh_noise,
            ..InnerConfig::new(self.algorithm, self.inner_steps)
        };
        let shape = Shape { tasks: self.meta_batch, shots: self.shots, queries: self.queries };
        let (steps, inner_lr) = (self.steps, self.inner_lr);
        let (job, initial_rates) = if sinusoids {
            (Job::Sinusoid(self.sinusoid(inner)?), vec![inner_lr])
        } else {
            let job = self.video(inner, steps)?;
            let rates = if job.objective.adversarial { vec![inner_lr, self.discriminator_lr] } else { vec![inner_lr] };
            (Job::Video(Box::new(job)), rates)
        };
        let outer = OuterConfig {
            kind: match self.outer {
                Outer::Sgd => OuterKind::Sgd,
                Outer::Adam => OuterConfig::adam(self.outer_lr).kind,
            },
            learning_rate: self.outer_lr,
            phi_learning_rate: self.phi_lr,
            schedule: match self.schedule {
                Course::Constant => Schedule::Constant,
                Course::Cosine => Schedule::Cosine { steps, floor: 0.02 },
                Course::Linear => Schedule::Linear { steps, floor: 0.0 },
            },
            clip: self.clip,
            trains_parameters: self.train.contains(&Part::Theta),
            phi_factor_learning_rate: self.phi_factor_lr,
            phi_weight_learning_rate: self.phi_weight_lr,
        };
        let pretraining = self.pretraining.unwrap_or(steps / 4);
        let first_order = self.first_order_steps;
        let (multi_step, seed) = (self.multi_step_steps, self.seed);
        let precision = MatrixPrecision::F32;
        let config = RunConfig {
            job,
            shape,
            outer,
            steps,
            first_order,
            multi_step,
            pretraining,
            precision,
            seed,
            initial_rates,
        };
        config.check()?;
        Ok(config)
    }

    fn optimizer(&self) -> Result<InnerOptimizer> {
        match self.inner_optimizer {
            Inner::Sgd => Ok(InnerOptimizer::Sgd { momentum: self.momentum }),
            Inner::Adam if self.momentum == 0.0 => Ok(InnerOptimizer::ADAM),
            Inner::Adam => {
                let problem = format!("{} with --inner-optimizer adam", self.momentum);
                Err(Error::invalid("--momentum", problem, "none, or --inner-optimizer sgd"))
            }
        }
    }

    fn condition(&self) -> Result<Condition> {
        if self.labels.is_some() && self.condition != ConditionKind::Label {
            return Err(Error::invalid("--labels", "given without --condition label", "both or neither"));
        }
        let cache = self.cache.as_deref();
        let clips = || {
            let told = "is told beside clips, which the built-in tasks have no files for";
            self.clips.as_deref().ok_or_else(|| Error::invalid("--condition", told, "a folder of clips with it"))
        };
        Ok(match self.condition {
            ConditionKind::None => Condition::None,
            ConditionKind::FirstFrame => {
                let (height, width) = self.condition_size;
                Condition::FirstFrame { height, width }
            }
            ConditionKind::Label => {
                let tasks = ClipFolder::task_names(clips()?, cache)?;
                Condition::Label(match &self.labels {
                    Some(path) => Labels::read(path, tasks)?,
                    None => Labels::of_tasks(tasks),
                })
            }
            ConditionKind::Vector => Condition::vector_like_that_of(&ClipFolder::first_clip(clips()?, cache)?)?,
            ConditionKind::Text => clips().map(|_| Condition::Text { width: self.text_width })?,
            ConditionKind::Audio => {
                clips().map(|_| Condition::Audio { bands: self.audio_bands, segments: self.frames })?
            }
        })
    }

    /// Whether phi is trained: if asked for, and if there is something to train and a gradient to train it with.
    fn trains_phi(&self) -> Result<bool> {
        let trainable = self.meta_optimizer != MetaOptimizerKind::Fixed && self.algorithm.differentiates_query();
        if !trainable && !self.train.contains(&Part::Theta) {
            let problem =
                format!("phi alone, with {} and a meta-optimizer that is {:?}", self.algorithm, self.meta_optimizer);
            let expected = "theta too, or an algorithm other than reptile and a meta-optimizer that is not fixed";
            return Err(Error::invalid("--train", problem.to_lowercase(), expected));
        }
        Ok(trainable && self.train.contains(&Part::Phi))
    }

    fn sinusoid(&self, inner: InnerConfig) -> Result<SineJob> {
        let mlp = Mlp::with_hidden(1, &self.generator_widths, 1, Activation::Relu, Activation::Linear)?;
        Ok(SineJob { tasks: Sinusoids::default(), objective: SupervisedConfig { mlp, loss: Loss::Mse, inner } })
    }

    fn video(&self, inner: InnerConfig, steps: u64) -> Result<VideoJob> {
        let ((height, width), channels) = (self.size, if self.color { 3 } else { 1 });
        let format = ClipFormat::new(self.frames, height, width, channels)?;
        let latent = Latent { noise: self.noise, condition: self.condition()? };
        latent.validate()?;
        if !(0.0..=1.0).contains(&self.adversarial_from) {
            let problem = self.adversarial_from.to_string();
            return Err(Error::invalid("--adversarial-from", problem, "a fraction from 0 to 1"));
        }
        let source = match &self.clips {
            None => ClipSource::MovingShapes { format },
            Some(path) => ClipSource::Folder {
                path: std::path::absolute(path).map_err(|e| Error::io(path, "read", e))?,
                format,
                held_out: self.held_out,
                cache: self.cache.clone(),
            },
        };
        let hidden = &self.generator_widths;
        let clip = format.values();
        let objective = VideoConfig {
            generator: Mlp::with_hidden(latent.width(), hidden, clip, Activation::Relu, Activation::Tanh)?,
            discriminator: Mlp::with_hidden(
                clip,
                &self.discriminator_widths,
                1,
                Activation::LeakyRelu,
                Activation::Linear,
            )?,
            frames: self.frames,
            frame: Some(FrameShape { height, width, channels }),
            weights: VideoWeights {
                adversarial: self.adversarial_weight,
                reconstruction: self.reconstruction_weight,
                motion: self.motion_weight,
                texture: self.texture_weight,
            },
            adversarial: self.adversarial_weight > 0.0,
            inner,
        };
        let adversarial_from = (steps as f64 * self.adversarial_from).round() as u64;
        Ok(VideoJob { source, latent, objective, adversarial_from })
    }
}
