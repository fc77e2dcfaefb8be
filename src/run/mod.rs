//! A training run: what it trains on and trains ([`RunConfig`]), its meta-batches, and its course ([`Session`]).
//!
//! Everything a run does follows from its configuration: meta-step `n` draws from stream `n` of the run's seed, so a
//! resumed run sees what the run would have seen.

mod adaptation;
mod baseline;
mod batches;
mod config;
mod estimate;
mod evaluation;
mod generation;
mod personal;
mod session;
mod trainer;
mod transfer;

pub use adaptation::{Adaptation, AdaptationOptions, Course, adapt, video_job};
pub use baseline::{Baseline, best_uniform_rate, joint_training};
pub use batches::{SineBatches, Tasks};
pub use config::{ClipSource, Job, Pools, RunConfig, SineJob, VideoJob};
pub use estimate::Estimate;
pub use evaluation::{Evaluation, Score};
pub use generation::{conditions_of, generate, generate_personal, own_conditions};
pub use personal::{Personalisation, Tune, Tuning, personalise};
pub use session::Session;
pub use trainer::{StepReport, Trainer, TrainingConfig};
pub use transfer::{
    Method, TransferCurves, TransferOutcome, TransferPlan, TransferPools, TransferProgress, TransferSummary, transfer,
    transfer_summary,
};
