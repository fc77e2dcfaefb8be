//! Checkpoints: a safetensors file with the networks under PyTorch's names, and beside them phi, the outer optimizer's
//! state, the state of the random numbers and the configuration.
//!
//! A network's tensors are named as those of a PyTorch module that keeps its layers in an `nn.Sequential` called `main`:
//! `generator.main.0.weight` is the first Linear layer's, `generator.main.2.weight` the second's, since the activation
//! between them counts too. The discriminator's final Sigmoid has no tensors.
//!
//! | tensor | shape | |
//! |---|---|---|
//! | `generator.main.N.weight`, `.bias` | `[out, in]`, `[out]` F32 | also `discriminator.…`; sinusoids have `network.…` |
//! | `phi.generator` | `[1]`, `[steps, layers]` or `[values]` F32 | phi, in the order of [`MetaOptimizer::from_values`] |
//! | `optimizer.generator.first`, `.second` | `[parameters]` F32 | Adam's moments, in the order of the network's tensors |
//! | `optimizer.phi.generator` | `[values, 2]` F64 | Adam's moments of phi |
//! | `subject.latents` | `[clips, latent]` F32 | of an adapted checkpoint: the rows it was adapted with |
//!
//! The metadata field `innerloop` holds the rest as JSON: `format`, `config`, `step`, `rng` (the seed and the next stream
//! of ChaCha8), and `steps_of` (outer steps of each network) or `subject`. One field, so that equal checkpoints are equal
//! byte for byte.

use std::io::Write;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::model::Parameters;
use crate::run::RunConfig;
use crate::tensors::{TensorFile, Tensors};
use crate::{Error, MetaOptimizer, OptimizerState, Result};

/// The metadata field, and the format's number.
const FIELD: &str = "innerloop";
const FORMAT: u32 = 1;

/// A state of a run, or a generator adapted to a subject.
#[derive(Clone, Debug, PartialEq)]
pub struct Checkpoint {
    /// What the run follows from.
    pub config: RunConfig,
    /// Of each network, in the order of [`crate::run::Job::networks`].
    pub parameters: Vec<Parameters<f32>>,
    /// Of each network.
    pub phi: Vec<MetaOptimizer<f32>>,
    /// Meta-steps done.
    pub step: u64,
    /// What it is for.
    pub stage: Stage,
}

/// What a checkpoint is for.
#[derive(Clone, Debug, PartialEq)]
pub enum Stage {
    /// To go on training, or to adapt.
    Training {
        /// The outer optimizer's state.
        optimizer: Box<OptimizerState<f32>>,
    },
    /// Adapted to one subject, to generate.
    Adapted {
        /// The subject.
        subject: Subject,
        /// The latent rows of the clips it was adapted with, `[clips, latent]`.
        latents: Vec<f32>,
    },
}

/// Whom a generator was adapted to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Subject {
    /// The task's name.
    pub name: String,
    /// How many clips it was adapted with.
    pub clips: usize,
    /// How many inner steps were taken.
    pub steps: usize,
}

/// What the metadata field holds.
#[derive(Serialize, Deserialize)]
struct Header {
    format: u32,
    config: RunConfig,
    step: u64,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    rng: Option<RngState>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    steps_of: Option<Vec<u64>>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    subject: Option<Subject>,
}

#[derive(Serialize, Deserialize)]
struct RngState {
    generator: String,
    seed: u64,
    stream: u64,
}

impl Checkpoint {
    /// Writes the checkpoint: to a temporary file, synced, then renamed.
    ///
    /// # Errors
    /// A place that cannot be written to, or a full disk; what was there before is left as it was.
    pub fn write(&self, path: &Path) -> Result<()> {
        let bytes = self.encode()?;
        crate::atomic::write(path, |out| out.write_all(&bytes))
    }

    /// Reads a checkpoint.
    ///
    /// # Errors
    /// A file that is missing, cut short, damaged, not a checkpoint, or of another architecture than it says.
    pub fn read(path: &Path) -> Result<Self> {
        let bytes = std::fs::read(path).map_err(|e| Error::io(path, "read", e))?;
        Self::decode(path, &bytes)
    }

    /// The file's bytes.
    ///
    /// # Errors
    /// Numbers that safetensors cannot hold.
    pub fn encode(&self) -> Result<Vec<u8>> {
        let mut tensors = Tensors::default();
        let networks = self.config.job.networks();
        let mut header = Header {
            format: FORMAT,
            config: self.config.clone(),
            step: self.step,
            rng: None,
            steps_of: None,
            subject: None,
        };
        for (((name, _), parameters), phi) in networks.iter().zip(&self.parameters).zip(&self.phi) {
            tensors.push_network(&format!("{name}.main"), parameters);
            tensors.push_f32(format!("phi.{name}"), phi.shape(), phi.values());
        }
        match &self.stage {
            Stage::Training { optimizer } => {
                for (((name, mlp), moments), phi) in networks.iter().zip(&optimizer.networks).zip(&optimizer.phi) {
                    for (moment, order) in moments.iter().zip(["first", "second"]) {
                        let shape = vec![mlp.parameter_count()];
                        tensors.push_f32(format!("optimizer.{name}.{order}"), shape, moment.values());
                    }
                    tensors.push_pairs(format!("optimizer.phi.{name}"), phi);
                }
                let stream = self.step + 1;
                header.rng = Some(RngState { generator: "ChaCha8".into(), seed: self.config.seed, stream });
                header.steps_of = Some(optimizer.steps_of.clone());
            }
            Stage::Adapted { subject, latents } => {
                let rows = subject.clips.max(1);
                tensors.push_f32("subject.latents".to_owned(), vec![rows, latents.len() / rows], latents);
                header.subject = Some(subject.clone());
            }
        }
        tensors.serialize_with(FIELD, &header)
    }

    /// A checkpoint from a file's bytes; `path` is what errors call it.
    ///
    /// # Errors
    /// As [`Checkpoint::read`].
    pub fn decode(path: &Path, bytes: &[u8]) -> Result<Self> {
        let remedy = "take a checkpoint that this version of innerloop wrote";
        let tensors = TensorFile::new(path, bytes, ["checkpoint", "innerloop train or adapt", remedy])?;
        let Header { config, step, steps_of, subject, .. } = tensors.header(FIELD, FORMAT)?;
        config.check().map_err(|e| tensors.error(format!("its configuration does not fit together ({e})")))?;
        let (inner, networks) = (config.job.inner(), config.job.networks());
        let (mut parameters, mut phi) = (Vec::new(), Vec::new());
        for (name, mlp) in &networks {
            parameters.push(tensors.network(&format!("{name}.main"), mlp)?);
            let values = tensors.f32(&format!("phi.{name}"), None)?;
            phi.push(tensors.fits(MetaOptimizer::from_values(inner.rates, mlp, inner.steps, values))?);
        }
        let stage = if let Some(subject) = subject {
            Stage::Adapted { subject, latents: tensors.f32("subject.latents", None)? }
        } else {
            let steps_of = steps_of.ok_or_else(|| tensors.error("does not say how many steps its networks took"))?;
            let mut optimizer = OptimizerState { networks: Vec::new(), phi: Vec::new(), steps_of, steps: step };
            for ((name, mlp), phi) in networks.iter().zip(&phi) {
                let moment = |order| -> Result<Parameters<f32>> {
                    let values = tensors.f32(&format!("optimizer.{name}.{order}"), Some(&[mlp.parameter_count()]))?;
                    tensors.fits(Parameters::from_values(mlp, values))
                };
                optimizer.networks.push([moment("first")?, moment("second")?]);
                optimizer.phi.push(tensors.pairs(&format!("optimizer.phi.{name}"), phi.values().len())?);
            }
            Stage::Training { optimizer: Box::new(optimizer) }
        };
        Ok(Self { config, parameters, phi, step, stage })
    }
}
