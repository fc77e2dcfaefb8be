//! Personal files: what adapting to one subject has made of a shared checkpoint, and nothing of the checkpoint itself.
//!
//! | tensor | shape | |
//! |---|---|---|
//! | `generator.N.deltas`, `.values`, `.bias` | `[rank, out]`, `[rank, in]`, `[out]` F32 | layer N's change: [`LowRankChange`] |
//! | `generator.share` | `[layers]` F32 | what is left of the shared weights: 1 without weight decay |
//! | `subject.latents` | `[clips, latent]` F32 | the rows of the clips that were adapted with |
//! | `phi.generator`, `phi.discriminator` | `[1]`, `[steps, layers]` or `[values]` F32 | a tuned meta-optimizer |
//!
//! A file has the first three, or the last, or all. The metadata field `innerloop_personal` holds `format`, `subject`, `base`
//! (a fingerprint of the checkpoint's generator) as JSON; phi is for the subject's number of steps.

use std::io::Write;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::checkpoint::{Checkpoint, Subject};
use crate::hash::fnv1a;
use crate::model::Parameters;
use crate::tensors::{TensorFile, Tensors};
use crate::{Error, InnerConfig, LayerChange, LowRankChange, MetaOptimizer, Result};

const FIELD: &str = "innerloop_personal";
const FORMAT: u32 = 1;

/// What adapting to one subject has made of a shared checkpoint.
#[derive(Clone, Debug, PartialEq)]
pub struct Personal {
    /// Whom it is for.
    pub subject: Subject,
    /// The [`fingerprint`] of the generator that it changes.
    pub base: u64,
    /// The generator adapted to the subject.
    pub adapted: Option<AdaptedGenerator>,
    /// Meta-optimizers tuned on the subject's clips, one for each network.
    pub phi: Option<Vec<MetaOptimizer<f32>>>,
}

/// A generator adapted to a subject.
#[derive(Clone, Debug, PartialEq)]
pub struct AdaptedGenerator {
    /// What adapting has made of its parameters.
    pub change: LowRankChange<f32>,
    /// The latent rows of the clips it was adapted with, `[clips, latent]`.
    pub latents: Vec<f32>,
}

#[derive(Serialize, Deserialize)]
struct Header {
    format: u32,
    subject: Subject,
    /// In hexadecimal: JSON's numbers are not made for 64 bits.
    base: String,
}

/// Tells one network's parameters from another's.
pub fn fingerprint(parameters: &Parameters<f32>) -> u64 {
    fnv1a(bytemuck::cast_slice(parameters.values()))
}

impl Personal {
    /// Writes the file: to a temporary file, synced, then renamed. Returns its size in bytes.
    ///
    /// # Errors
    /// A place that cannot be written to, or a full disk; what was there before is left as it was.
    pub fn write(&self, path: &Path) -> Result<usize> {
        let bytes = self.encode()?;
        crate::atomic::write(path, |out| out.write_all(&bytes))?;
        Ok(bytes.len())
    }

    /// Reads a file that was made for this checkpoint.
    ///
    /// # Errors
    /// A file that is missing, cut short, damaged, no personal file, or made for another checkpoint.
    pub fn read(path: &Path, checkpoint: &Checkpoint) -> Result<Self> {
        let bytes = std::fs::read(path).map_err(|e| Error::io(path, "read", e))?;
        Self::decode(path, &bytes, checkpoint)
    }

    /// The file's bytes.
    ///
    /// # Errors
    /// Numbers that safetensors cannot hold.
    pub fn encode(&self) -> Result<Vec<u8>> {
        let mut tensors = Tensors::default();
        if let Some(AdaptedGenerator { change, latents }) = &self.adapted {
            let widths = change.mlp().widths();
            for (index, layer) in change.layers().iter().enumerate() {
                let (rank, inputs, outputs) = (change.rank(index), widths[index], widths[index + 1]);
                tensors.push_f32(format!("generator.{index}.deltas"), vec![rank, outputs], &layer.deltas);
                tensors.push_f32(format!("generator.{index}.values"), vec![rank, inputs], &layer.values);
                tensors.push_f32(format!("generator.{index}.bias"), vec![outputs], &layer.bias);
            }
            let shares: Vec<f32> = change.layers().iter().map(|layer| layer.share).collect();
            tensors.push_f32("generator.share".to_owned(), vec![shares.len()], &shares);
            let rows = self.subject.clips.max(1);
            tensors.push_f32("subject.latents".to_owned(), vec![rows, latents.len() / rows], latents);
        }
        for (phi, role) in self.phi.iter().flatten().zip(["generator", "discriminator"]) {
            tensors.push_f32(format!("phi.{role}"), phi.shape(), phi.values());
        }
        let header = Header { format: FORMAT, subject: self.subject.clone(), base: format!("{:016x}", self.base) };
        tensors.serialize_with(FIELD, &header)
    }

    /// A personal file for this checkpoint from its bytes; `path` is what errors call it.
    ///
    /// # Errors
    /// As [`Personal::read`].
    pub fn decode(path: &Path, bytes: &[u8], checkpoint: &Checkpoint) -> Result<Self> {
        let remedy = "make it anew from this checkpoint, with innerloop adapt --tune";
        let tensors = TensorFile::new(path, bytes, ["personal file", "innerloop adapt --tune", remedy])?;
        let Header { subject, base, .. } = tensors.header(FIELD, FORMAT)?;
        tensors.fits(InnerConfig::check_steps(subject.steps))?;
        let networks = checkpoint.config.job.networks();
        let [(_, generator), ..] = networks[..] else { return Err(tensors.error("belongs to no network")) };
        let own = fingerprint(&checkpoint.parameters[0]);
        if u64::from_str_radix(&base, 16) != Ok(own) {
            return Err(tensors.error(format!("was made for another checkpoint ({base}) than this ({own:016x})")));
        }
        let phi = tensors.contains("phi.generator").then(|| {
            let rates = checkpoint.config.job.inner().rates;
            (networks.iter())
                .map(|(role, mlp)| {
                    let values = tensors.f32(&format!("phi.{role}"), None)?;
                    tensors.fits(MetaOptimizer::from_values(rates, mlp, subject.steps, values))
                })
                .collect::<Result<Vec<_>>>()
        });
        let adapted = tensors.contains("generator.share").then(|| {
            let shares = tensors.f32("generator.share", Some(&[generator.layers()]))?;
            let layer = |(index, share)| -> Result<LayerChange<f32>> {
                let of = |what: &str| tensors.f32(&format!("generator.{index}.{what}"), None);
                Ok(LayerChange { share, deltas: of("deltas")?, values: of("values")?, bias: of("bias")? })
            };
            let layers = shares.into_iter().enumerate().map(layer).collect::<Result<Vec<_>>>()?;
            let change = tensors.fits(LowRankChange::new(generator, layers))?;
            let shape = [subject.clips, generator.inputs()];
            Ok(AdaptedGenerator { change, latents: tensors.f32("subject.latents", Some(&shape))? })
        });
        let (adapted, phi) = (adapted.transpose()?, phi.transpose()?);
        if adapted.is_none() && phi.is_none() {
            return Err(tensors.error("holds neither an adapted generator nor a meta-optimizer"));
        }
        Ok(Self { subject, base: own, adapted, phi })
    }
}
