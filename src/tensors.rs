//! Safetensors files: tensors on their way in and out, and networks under PyTorch's names.

use std::collections::HashMap;
use std::path::Path;

use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, TensorView};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::model::{Activation, Mlp, Parameters};
use crate::{Error, Result};

/// The names of a network's Linear layers in a PyTorch `nn.Sequential` that goes by `prefix`: `generator.main.0`,
/// `generator.main.2`, ..., or `0`, `2`, ... without a prefix. Activations count too.
fn layer_names(prefix: &str, mlp: &Mlp) -> Vec<String> {
    let dot = if prefix.is_empty() { "" } else { "." };
    let mut index = 0;
    let mut names = Vec::new();
    for activation in mlp.activations() {
        names.push(format!("{prefix}{dot}{index}"));
        index += if *activation == Activation::Linear { 1 } else { 2 };
    }
    names
}

/// Tensors on their way into a file: name, type, shape, little-endian bytes.
#[derive(Default)]
pub(crate) struct Tensors(Vec<(String, Dtype, Vec<usize>, Vec<u8>)>);

impl Tensors {
    pub(crate) fn push_f32(&mut self, name: String, shape: Vec<usize>, values: &[f32]) {
        let bytes = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        self.0.push((name, Dtype::F32, shape, bytes));
    }

    pub(crate) fn push_pairs(&mut self, name: String, pairs: &[(f64, f64)]) {
        let bytes = pairs.iter().flat_map(|(a, b)| [a.to_le_bytes(), b.to_le_bytes()]).flatten().collect();
        self.0.push((name, Dtype::F64, vec![pairs.len(), 2], bytes));
    }

    /// A network's weights, `[out, in]`, and biases, `[out]`.
    pub(crate) fn push_network(&mut self, prefix: &str, parameters: &Parameters<f32>) {
        let mlp = parameters.mlp();
        for (layer, name) in layer_names(prefix, mlp).into_iter().enumerate() {
            let (inputs, outputs) = (mlp.widths()[layer], mlp.widths()[layer + 1]);
            self.push_f32(format!("{name}.weight"), vec![outputs, inputs], parameters.weight(layer));
            self.push_f32(format!("{name}.bias"), vec![outputs], parameters.bias(layer));
        }
    }

    /// The file's bytes, with `header` as JSON in the metadata field `field`.
    pub(crate) fn serialize_with(&self, field: &str, header: &impl Serialize) -> Result<Vec<u8>> {
        let header = serde_json::to_string(header);
        let header = header.map_err(|e| Error::invalid("header", e.to_string(), "what JSON can hold"))?;
        self.serialize(Some(HashMap::from([(field.to_owned(), header)])))
    }

    /// The file's bytes.
    pub(crate) fn serialize(&self, metadata: Option<HashMap<String, String>>) -> Result<Vec<u8>> {
        let failed = |e: safetensors::SafeTensorError| {
            Error::invalid("tensors", e.to_string(), "tensors that safetensors can hold")
        };
        let views: Vec<_> = (self.0.iter())
            .map(|(name, dtype, shape, bytes)| Ok((name, TensorView::new(*dtype, shape.clone(), bytes)?)))
            .collect::<Result<_, _>>()
            .map_err(failed)?;
        safetensors::serialize(views, metadata).map_err(failed)
    }
}

/// A safetensors file that is being read.
pub(crate) struct TensorFile<'a> {
    path: &'a Path,
    file: SafeTensors<'a>,
    metadata: HashMap<String, String>,
    kind: &'static str,
    origin: &'static str,
    /// What is to be done about a tensor that is missing or wrong.
    remedy: &'static str,
}

impl<'a> TensorFile<'a> {
    /// From a file's bytes; `path` is what errors call it, `kind` what it should be, `origin` who writes
    /// such files, `remedy` what is to be done about a wrong tensor.
    ///
    /// # Errors
    /// Bytes that are no safetensors file.
    pub(crate) fn new(path: &'a Path, bytes: &'a [u8], [kind, origin, remedy]: [&'static str; 3]) -> Result<Self> {
        let broken = |e: safetensors::SafeTensorError| {
            let remedy = format!("name a .safetensors file that {origin} wrote, or copy it again");
            Error::file(path, format!("is not a whole {kind} ({e})"), remedy)
        };
        let (_, header) = SafeTensors::read_metadata(bytes).map_err(broken)?;
        let file = SafeTensors::deserialize(bytes).map_err(broken)?;
        Ok(Self { path, file, metadata: header.metadata().clone().unwrap_or_default(), kind, origin, remedy })
    }

    /// What the metadata field `field` holds as JSON; its `format` has to be `format`.
    ///
    /// # Errors
    /// No such field, another format, or something else than is wanted.
    pub(crate) fn header<H: DeserializeOwned>(&self, field: &str, format: u32) -> Result<H> {
        /// The one field that every format has.
        #[derive(Deserialize)]
        struct Format {
            format: u32,
        }
        let text = self.metadata.get(field).ok_or_else(|| {
            let problem = format!("is a safetensors file, but not a {} of innerloop", self.kind);
            Error::file(self.path, problem, format!("name a file that {} wrote", self.origin))
        })?;
        let broken = |e: serde_json::Error| self.error(format!("has a header that cannot be read ({e})"));
        let Format { format: found } = serde_json::from_str(text).map_err(broken)?;
        if found != format {
            return Err(self.error(format!("has format {found}, this version reads format {format}")));
        }
        serde_json::from_str(text).map_err(broken)
    }

    /// An error about a value names the file too.
    pub(crate) fn fits<V>(&self, result: Result<V>) -> Result<V> {
        result.map_err(|e| self.error(format!("does not fit its own configuration ({e})")))
    }

    pub(crate) fn error(&self, problem: impl Into<String>) -> Error {
        Error::file(self.path, problem, self.remedy)
    }

    /// A network's parameters.
    ///
    /// # Errors
    /// Tensors that are missing, of another shape or type, or not finite.
    pub(crate) fn network(&self, prefix: &str, mlp: &Mlp) -> Result<Parameters<f32>> {
        // Nothing is set aside for what the architecture claims: the tensors have to be there.
        let mut values = Vec::new();
        for (layer, name) in layer_names(prefix, mlp).into_iter().enumerate() {
            let (inputs, outputs) = (mlp.widths()[layer], mlp.widths()[layer + 1]);
            values.extend(self.f32(&format!("{name}.weight"), Some(&[outputs, inputs]))?);
            values.extend(self.f32(&format!("{name}.bias"), Some(&[outputs]))?);
        }
        Parameters::from_values(mlp, values)
    }

    pub(crate) fn contains(&self, name: &str) -> bool {
        self.file.tensor(name).is_ok()
    }

    fn bytes(&self, name: &str, dtype: Dtype, shape: Option<&[usize]>) -> Result<&[u8]> {
        let view = self.file.tensor(name).map_err(|_| self.error(format!("has no tensor {name:?}")))?;
        if view.dtype() != dtype || shape.is_some_and(|shape| view.shape() != shape) {
            let expected = shape.map_or(String::new(), |shape| format!(" {shape:?}"));
            let problem =
                format!("has tensor {name:?} as {:?} {:?}, not {dtype:?}{expected}", view.dtype(), view.shape());
            return Err(self.error(problem));
        }
        Ok(view.data())
    }

    pub(crate) fn f32(&self, name: &str, shape: Option<&[usize]>) -> Result<Vec<f32>> {
        let values: Vec<f32> =
            self.bytes(name, Dtype::F32, shape)?.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
        match values.iter().find(|v| !v.is_finite()) {
            Some(value) => Err(self.error(format!("has {value} in tensor {name:?}"))),
            None => Ok(values),
        }
    }

    pub(crate) fn pairs(&self, name: &str, count: usize) -> Result<Vec<(f64, f64)>> {
        let numbers: Vec<f64> = self
            .bytes(name, Dtype::F64, Some(&[count, 2]))?
            .as_chunks()
            .0
            .iter()
            .map(|b| f64::from_le_bytes(*b))
            .collect();
        Ok(numbers.as_chunks::<2>().0.iter().map(|[first, second]| (*first, *second)).collect())
    }
}
