//! Networks in and out of PyTorch, as safetensors files with PyTorch's names.
//!
//! A PyTorch `nn.Sequential` names its Linear layers by their place, and activations have a place too: `0.weight`, `0.bias`,
//! `2.weight`, ... A module that keeps the `nn.Sequential` under a name puts it before them: `main.0.weight`. That name is
//! the `prefix` here. In Python, `safetensors.torch.save_file(module.state_dict(), path)` writes what [`read`] reads, and
//! `module.load_state_dict(safetensors.torch.load_file(path))` loads what [`write()`] wrote.
//!
//! ```
//! use innerloop::model::{Activation, Mlp, Parameters};
//! # use innerloop::rand::SeedableRng;
//! # let mut rng = innerloop::rand_chacha::ChaCha8Rng::seed_from_u64(0);
//! # let folder = tempfile::tempdir().unwrap();
//! # let path = folder.path().join("network.safetensors");
//! // nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 2))
//! let mlp = Mlp::new(&[3, 8, 2], &[Activation::Tanh, Activation::Linear])?;
//! let parameters = Parameters::initialise(&mlp, &mut rng);
//! innerloop::pytorch::write(&path, &[("", &parameters)])?;
//! assert_eq!(innerloop::pytorch::read(&path, "", &mlp)?, parameters);
//! # Ok::<(), innerloop::Error>(())
//! ```
//!
//! Networks with batch normalisation are refused: in `nn.BatchNorm1d` it goes with a factor and with running averages, which
//! are not here.

use std::io::Write;
use std::path::Path;

use crate::model::{Mlp, Parameters};
use crate::tensors::{TensorFile, Tensors};
use crate::{Error, Result};

/// PyTorch's modules have another batch normalisation.
fn check(mlp: &Mlp) -> Result<()> {
    if mlp.has_batch_norm() {
        return Err(Error::invalid(
            "network",
            mlp.summary(),
            "one without: PyTorch's has a factor and running averages",
        ));
    }
    Ok(())
}

/// Writes networks to one file, each under its prefix.
///
/// # Errors
/// The same tensor twice, a network with batch normalisation, or a place that cannot be written to.
pub fn write(path: impl AsRef<Path>, networks: &[(&str, &Parameters<f32>)]) -> Result<()> {
    for (index, (prefix, parameters)) in networks.iter().enumerate() {
        check(parameters.mlp())?;
        if networks[..index].iter().any(|(other, _)| other == prefix) {
            return Err(Error::invalid("networks", format!("two under the prefix {prefix:?}"), "a prefix for each"));
        }
    }
    let mut tensors = Tensors::default();
    networks.iter().for_each(|(prefix, parameters)| tensors.push_network(prefix, parameters));
    let bytes = tensors.serialize(None)?;
    crate::atomic::write(path.as_ref(), |out| out.write_all(&bytes))
}

/// Reads the network that lies under `prefix`; other tensors of the file are passed over.
///
/// # Errors
/// A network with batch normalisation, a file that cannot be read, or tensors that are missing, of another shape, not F32 or not finite.
pub fn read(path: impl AsRef<Path>, prefix: &str, mlp: &Mlp) -> Result<Parameters<f32>> {
    check(mlp)?;
    let path = path.as_ref();
    let bytes = std::fs::read(path).map_err(|e| Error::io(path, "read", e))?;
    let remedy = "check the prefix, the widths and the activations, and save the module in float32";
    TensorFile::new(path, &bytes, ["safetensors file", "safetensors", remedy])?.network(prefix, mlp)
}
