//! Problem files: one meta-step in a safetensors file, and its answer in another, so that anyone can hold the crate
//! against a program of their own.
//!
//! Tensors: `layers.L.weight|bias` (or `generator.…` and `discriminator.…`), `support.x|y|z` and `query.x|y|z` as
//! `[tasks, rows, width]`, and `rates` where they are learned (`[steps, layers]`, or `rates.L.weight|bias` for one a
//! parameter). A phi that transforms rows (see [`RateKind`]) has `phi.rates` and `phi.bias`, `[steps, layers]` each, and by
//! layer and side (`delta` or `values`) `phi.L.SIDE.factors` `[steps, width]`, and, where it is a network, `phi.L.SIDE.down` `[rank,
//! width]`, `.down_bias` `[rank]`, `.scale` `[steps, rank]`, `.up` `[width, rank]` and `.up_bias` `[width]` (network; biases
//! on the values' side only); for the GAN with `phi.generator` and `phi.discriminator` in place of `phi`. Metadata:
//! `problem` (supervised or gan), `algorithm`, `activations`, `loss`, `inner_steps`, `inner_lr`, `rates` (shared,
//! per_layer_per_step, per_parameter, row_column, network), `rank`, `inner_optimizer` (sgd, the default, with `momentum`
//! and `weight_decay`, or adam with `beta1`, `beta2` and `epsilon`), `query_weights` (of the query losses after 1, 2, ... steps,
//! separated by commas; absent, the last alone counts), `batch_norm` (supervised: the epsilon of each layer's batch
//! normalisation, separated by commas, 0 for none; absent, no layer has one); for the GAN `generator_activations`,
//! `discriminator_activations`, `generator_lr`, `discriminator_lr`, `frames`, `adversarial_weight`,
//! `reconstruction_weight`, `motion_weight`, `fresh_noise` (true: `support.z` is `[steps, tasks, shots, width]`), and, where there is a texture term, `texture_weight`, `frame_height`,
//! `frame_width` and `channels`.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use rand::SeedableRng;
use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, TensorView};

use crate::device::Device;
use crate::meta::PhiLayout;
use crate::model::{Activation, Mlp, Parameters};
use crate::objective::{FrameShape, VideoWeights};
use crate::{
    Algorithm, Error, InnerConfig, InnerOptimizer, MetaLearner, MetaOptimizer, Objective, RateKind, Result, Scalar,
    Shape, Strategy, SupervisedConfig, SupervisedRows, VideoConfig, VideoRows,
};

/// A named array of double-precision numbers.
#[derive(Clone, Debug, PartialEq)]
pub struct Tensor {
    /// Its shape.
    pub shape: Vec<usize>,
    /// Its elements, row-major.
    pub values: Vec<f64>,
}

/// A problem file's content.
#[derive(Clone, Debug)]
pub struct Problem {
    path: PathBuf,
    tensors: HashMap<String, Tensor>,
    metadata: HashMap<String, String>,
}

impl Problem {
    /// Reads a problem file (tensors in F64 or F32).
    ///
    /// # Errors
    /// A file that cannot be read, is not a safetensors file, or holds numbers that are not finite.
    pub fn read(path: &Path) -> Result<Self> {
        let bytes = std::fs::read(path).map_err(|e| Error::io(path, "read", e))?;
        Self::decode(path, &bytes)
    }

    /// The same from a file's bytes; `path` is only what errors speak of.
    ///
    /// # Errors
    /// As [`Problem::read`], but for the reading.
    pub fn decode(path: &Path, bytes: &[u8]) -> Result<Self> {
        let broken = |e: safetensors::SafeTensorError| {
            Error::file(path, format!("not a whole safetensors file ({e})"), "write it again")
        };
        let (_, header) = SafeTensors::read_metadata(bytes).map_err(broken)?;
        let file = SafeTensors::deserialize(bytes).map_err(broken)?;
        let mut tensors = HashMap::new();
        for (name, view) in file.iter() {
            tensors.insert(name.to_owned(), widen(path, name, &view)?);
        }
        let metadata = header.metadata().clone().unwrap_or_default();
        Ok(Self { path: path.into(), tensors, metadata })
    }

    /// The tensors, by name.
    pub fn tensors(&self) -> &HashMap<String, Tensor> {
        &self.tensors
    }

    fn error(&self, problem: impl Into<String>, remedy: impl Into<String>) -> Error {
        Error::file(&self.path, problem, remedy)
    }

    fn tensor(&self, name: &str, dimensions: usize) -> Result<&Tensor> {
        let tensor = self.tensors.get(name);
        let tensor = tensor.ok_or_else(|| self.error(format!("no tensor {name:?}"), "add it"))?;
        if tensor.shape.len() != dimensions {
            let problem = format!("tensor {name:?} has shape {:?}", tensor.shape);
            return Err(self.error(problem, format!("it must have {dimensions} dimensions")));
        }
        Ok(tensor)
    }

    fn field<V: FromStr>(&self, name: &str) -> Result<V> {
        let text = self.metadata.get(name);
        let text = text.ok_or_else(|| self.error(format!("no metadata field {name:?}"), "add it"))?;
        text.parse().map_err(|_| self.error(format!("metadata field {name:?} is {text:?}"), "correct it"))
    }

    fn field_or<V: FromStr>(&self, name: &str, default: V) -> Result<V> {
        if self.metadata.contains_key(name) { self.field(name) } else { Ok(default) }
    }

    /// The numbers of a tensor that must have this shape.
    fn shaped(&self, name: &str, shape: &[usize]) -> Result<&Vec<f64>> {
        let tensor = self.tensor(name, shape.len())?;
        if tensor.shape != shape {
            let problem = format!("tensor {name:?} has shape {:?}", tensor.shape);
            return Err(self.error(problem, format!("it must be {shape:?}")));
        }
        Ok(&tensor.values)
    }

    /// The network whose tensors begin with `prefix`.
    fn network<T: Scalar>(&self, prefix: &str, activations: &str) -> Result<Parameters<T>> {
        let activations = Activation::parse_list(&self.field::<String>(activations)?)?;
        let mut widths = Vec::new();
        let mut values = Vec::new();
        for layer in 0..activations.len() {
            let (weight, bias) = (format!("{prefix}.{layer}.weight"), format!("{prefix}.{layer}.bias"));
            let (w, b) = (self.tensor(&weight, 2)?, self.tensor(&bias, 1)?);
            if widths.is_empty() {
                widths.push(w.shape[1]);
            }
            if w.shape[1] != widths[layer] || w.shape[0] != b.shape[0] {
                let problem = format!("{weight} is {:?} and {bias} {:?}", w.shape, b.shape);
                return Err(self.error(problem, format!("the layer's input has width {}", widths[layer])));
            }
            widths.push(w.shape[0]);
            values.extend(w.values.iter().chain(&b.values).map(|v| T::from_f64(*v)));
        }
        let beyond = format!("{prefix}.{}.weight", activations.len());
        if self.tensors.contains_key(&beyond) {
            let problem = format!("{beyond} is there, but activations name {} layers", activations.len());
            return Err(self.error(problem, "name one activation a layer"));
        }
        Parameters::from_values(&Mlp::new(&widths, &activations)?, values)
    }

    /// The numbers in a metadata field, separated by commas; `None` where there is no such field.
    fn list(&self, name: &str) -> Result<Option<Vec<f64>>> {
        let Some(text) = self.metadata.get(name) else { return Ok(None) };
        let numbers = text.split(',').map(str::parse).collect::<std::result::Result<_, _>>();
        numbers.map(Some).map_err(|_| {
            let problem = format!("metadata field {name:?} is {text:?}");
            self.error(problem, "it must be numbers separated by commas")
        })
    }

    /// The supervised network, with its batch normalisations.
    fn supervised_network<T: Scalar>(&self) -> Result<Parameters<T>> {
        let parameters = self.network::<T>("layers", "activations")?;
        let mlp = parameters.mlp().clone().with_epsilons(&self.list("batch_norm")?.unwrap_or_default())?;
        Parameters::from_values(&mlp, parameters.values().to_vec())
    }

    /// `[tasks, rows, width]` numbers.
    fn rows<T: Scalar>(&self, name: &str, width: usize) -> Result<(usize, usize, Vec<T>)> {
        let tensor = self.tensor(name, 3)?;
        if tensor.shape[2] != width {
            let problem = format!("{name} has width {}", tensor.shape[2]);
            return Err(self.error(problem, format!("the network needs {width}")));
        }
        Ok((tensor.shape[0], tensor.shape[1], tensor.values.iter().map(|v| T::from_f64(*v)).collect()))
    }

    /// Numbers that belong, row by row, to those of `to`.
    fn rows_beside<T: Scalar>(&self, name: &str, to: &str, width: usize) -> Result<Vec<T>> {
        let (tasks, rows, values) = self.rows(name, width)?;
        let beside = self.tensor(to, 3)?;
        if beside.shape[..2] != [tasks, rows] {
            let problem = format!("{name} is {tasks} x {rows} rows");
            return Err(self.error(problem, format!("{to} has {} x {}", beside.shape[0], beside.shape[1])));
        }
        Ok(values)
    }

    fn shape(&self, support: (usize, usize), query: (usize, usize)) -> Result<Shape> {
        if support.0 != query.0 {
            let problem = format!("{} support and {} query tasks", support.0, query.0);
            return Err(self.error(problem, "each task needs both"));
        }
        Ok(Shape { tasks: support.0, shots: support.1, queries: query.1 })
    }

    /// Phi of one network, whose tensors begin with `prefix` where it transforms rows.
    fn phi<T: Scalar>(
        &self,
        kind: RateKind,
        prefix: &str,
        mlp: &Mlp,
        steps: usize,
        rate: f64,
    ) -> Result<MetaOptimizer<T>> {
        let values = match kind {
            RateKind::Shared => return MetaOptimizer::uniform(kind, mlp, steps, rate),
            RateKind::PerLayerPerStep => self.shaped("rates", &[steps, mlp.layers()])?.clone(),
            RateKind::PerParameter => {
                let mut values = Vec::new();
                for layer in 0..mlp.layers() {
                    let (inputs, outputs) = (mlp.widths()[layer], mlp.widths()[layer + 1]);
                    values.extend(self.shaped(&format!("rates.{layer}.weight"), &[outputs, inputs])?);
                    values.extend(self.shaped(&format!("rates.{layer}.bias"), &[outputs])?);
                }
                values
            }
            RateKind::RowColumn | RateKind::Network { .. } => {
                let mut values = Vec::new();
                for (name, shape) in phi_tensors(kind, mlp, steps) {
                    values.extend(self.shaped(&format!("{prefix}.{name}"), &shape)?);
                }
                values
            }
        };
        MetaOptimizer::from_values(kind, mlp, steps, values.into_iter().map(T::from_f64).collect())
    }

    /// Carries the meta-step out in precision `T`.
    ///
    /// # Errors
    /// A field that is missing or does not fit, named; `dual` where the dual form does not exist.
    pub fn solve<T: Scalar>(&self, device: impl Device<T>, strategy: Option<Strategy>) -> Result<Answer> {
        match self.field::<String>("problem")?.as_str() {
            "supervised" => self.solve_supervised(device, strategy),
            "gan" => self.solve_gan(device, strategy),
            other => Err(self.error(format!("metadata field \"problem\" is {other:?}"), "supervised or gan are known")),
        }
    }

    fn inner(&self, strategy: Option<Strategy>) -> Result<InnerConfig> {
        let kind = match self.field_or("rates", "shared".to_owned())?.as_str() {
            "shared" => RateKind::Shared,
            "per_layer_per_step" => RateKind::PerLayerPerStep,
            "per_parameter" => RateKind::PerParameter,
            "row_column" => RateKind::RowColumn,
            "network" => RateKind::Network { rank: self.field("rank")? },
            other => {
                let remedy = "shared, per_layer_per_step, per_parameter, row_column or network are known";
                return Err(self.error(format!("metadata field \"rates\" is {other:?}"), remedy));
            }
        };
        let algorithm: Algorithm = self.field("algorithm")?;
        Ok(InnerConfig {
            optimizer: self.optimizer()?,
            weight_decay: self.field_or("weight_decay", 0.0)?,
            rates: kind,
            learn_rates: kind != RateKind::Shared && algorithm.differentiates_query(),
            multi_step: self.metadata.contains_key("query_weights"),
            fresh_noise: self.field_or("fresh_noise", false)?,
            strategy,
            ..InnerConfig::new(algorithm, self.field("inner_steps")?)
        })
    }

    /// Sets the weights of a multi-step loss, if there are any.
    fn set_query_weights<T: Scalar, D: Device<T>, O: Objective>(
        &self,
        learner: &mut MetaLearner<T, D, O>,
    ) -> Result<()> {
        self.list("query_weights")?.map_or(Ok(()), |weights| learner.set_query_weights(&weights))
    }

    fn optimizer(&self) -> Result<InnerOptimizer> {
        let momentum = self.field_or("momentum", 0.0)?;
        match self.field_or("inner_optimizer", "sgd".to_owned())?.as_str() {
            "sgd" => Ok(InnerOptimizer::Sgd { momentum }),
            "adam" if momentum != 0.0 => {
                Err(self.error(format!("metadata field \"momentum\" is {momentum}"), "with adam there is only beta1"))
            }
            "adam" => Ok(InnerOptimizer::Adam {
                beta1: self.field_or("beta1", 0.9)?,
                beta2: self.field_or("beta2", 0.999)?,
                epsilon: self.field_or("epsilon", 1e-8)?,
            }),
            other => {
                let problem = format!("metadata field \"inner_optimizer\" is {other:?}");
                Err(self.error(problem, "sgd or adam are known"))
            }
        }
    }

    fn solve_supervised<T: Scalar>(&self, device: impl Device<T>, strategy: Option<Strategy>) -> Result<Answer> {
        let parameters = self.supervised_network::<T>()?;
        let mlp = parameters.mlp();
        let inner = self.inner(strategy)?;
        let (tasks, shots, support_x) = self.rows::<T>("support.x", mlp.inputs())?;
        let (query_tasks, queries, query_x) = self.rows::<T>("query.x", mlp.inputs())?;
        let support_y = self.rows_beside::<T>("support.y", "support.x", mlp.outputs())?;
        let query_y = self.rows_beside::<T>("query.y", "query.x", mlp.outputs())?;
        let phi = self.phi(inner.rates, "phi", mlp, inner.steps, self.field_or("inner_lr", 0.0)?)?;
        let config = SupervisedConfig { mlp: mlp.clone(), loss: self.field("loss")?, inner: inner.clone() };
        let shape = self.shape((tasks, shots), (query_tasks, queries))?;
        let rows =
            SupervisedRows { support_x: &support_x, support_y: &support_y, query_x: &query_x, query_y: &query_y };
        let mut learner = MetaLearner::new(device, config, shape, vec![phi])?;
        learner.set_parameters(0, &parameters)?;
        self.set_query_weights(&mut learner)?;
        let losses = learner.run(rows, &mut no_minibatches())?.clone();
        let mut answer = Answer::default();
        answer.push("loss", vec![1], vec![losses.mean()]);
        answer.push("task_loss", vec![shape.tasks], wide(&losses.task));
        answer.push_network("grad", &learner.gradient(0));
        if inner.learn_rates {
            let gradient = learner.phi_gradient(0);
            match inner.rates {
                RateKind::PerParameter => {
                    answer.push_network("rates_grad", &Parameters::from_values(mlp, gradient)?);
                }
                RateKind::RowColumn | RateKind::Network { .. } => {
                    answer.push_phi("phi_grad", &phi_tensors(inner.rates, mlp, inner.steps), &gradient);
                }
                _ => answer.push("rates_grad", vec![inner.steps, mlp.layers()], wide(&gradient)),
            }
        }
        Ok(answer)
    }

    /// How a frame's values lie: a problem without a texture term need not say.
    fn frame_shape(&self) -> Result<Option<FrameShape>> {
        const FIELDS: [&str; 3] = ["frame_height", "frame_width", "channels"];
        if !FIELDS.iter().any(|field| self.metadata.contains_key(*field)) {
            return Ok(None);
        }
        let [height, width, channels] = FIELDS.map(|field| self.field(field));
        Ok(Some(FrameShape { height: height?, width: width?, channels: channels? }))
    }

    fn solve_gan<T: Scalar>(&self, device: impl Device<T>, strategy: Option<Strategy>) -> Result<Answer> {
        let generator = self.network::<T>("generator", "generator_activations")?;
        let discriminator = self.network::<T>("discriminator", "discriminator_activations")?;
        let inner = self.inner(strategy)?;
        if inner.rates != RateKind::Shared && !inner.rates.transforms_rows() {
            let remedy = "gan problems have shared rates, row_column or network";
            return Err(self.error("metadata field \"rates\" is neither shared nor transforms rows", remedy));
        }
        let (latent, clip) = (generator.mlp().inputs(), generator.mlp().outputs());
        let (tasks, shots, support_x) = self.rows::<T>("support.x", clip)?;
        let (query_tasks, queries, query_x) = self.rows::<T>("query.x", clip)?;
        let support_z = if inner.fresh_noise {
            let values = self.shaped("support.z", &[inner.steps, tasks, shots, latent])?;
            values.iter().map(|v| T::from_f64(*v)).collect()
        } else {
            self.rows_beside::<T>("support.z", "support.x", latent)?
        };
        let query_z = self.rows_beside::<T>("query.z", "query.x", latent)?;
        let config = VideoConfig {
            generator: generator.mlp().clone(),
            discriminator: discriminator.mlp().clone(),
            frames: self.field("frames")?,
            frame: self.frame_shape()?,
            weights: VideoWeights {
                adversarial: self.field("adversarial_weight")?,
                reconstruction: self.field("reconstruction_weight")?,
                motion: self.field("motion_weight")?,
                texture: self.field_or("texture_weight", 0.0)?,
            },
            adversarial: true,
            inner: inner.clone(),
        };
        // With a phi that transforms rows the rates are its own.
        let rate = |name| if inner.rates.transforms_rows() { Ok(0.0) } else { self.field(name) };
        let phi = vec![
            self.phi(inner.rates, "phi.generator", generator.mlp(), inner.steps, rate("generator_lr")?)?,
            self.phi(inner.rates, "phi.discriminator", discriminator.mlp(), inner.steps, rate("discriminator_lr")?)?,
        ];
        let shape = self.shape((tasks, shots), (query_tasks, queries))?;
        let rows = VideoRows { support_x: &support_x, support_z: &support_z, query_x: &query_x, query_z: &query_z };
        let mut learner = MetaLearner::new(device, config, shape, phi)?;
        learner.set_parameters(0, &generator)?;
        learner.set_parameters(1, &discriminator)?;
        self.set_query_weights(&mut learner)?;
        let losses = learner.run(rows, &mut no_minibatches())?.clone();
        let mut answer = Answer::default();
        answer.push("generator_loss", vec![shape.tasks], wide(&losses.task));
        answer.push("discriminator_loss", vec![shape.tasks], wide(&losses.discriminator));
        answer.push_network("generator.grad", &learner.gradient(0));
        answer.push_network("discriminator.grad", &learner.gradient(1));
        if inner.learn_rates {
            for (network, (name, mlp)) in
                [("generator", generator.mlp()), ("discriminator", discriminator.mlp())].into_iter().enumerate()
            {
                let tensors = phi_tensors(inner.rates, mlp, inner.steps);
                answer.push_phi(&format!("phi_grad.{name}"), &tensors, &learner.phi_gradient(network));
            }
        }
        Ok(answer)
    }
}

/// The arrays of a phi that transforms rows, by name and shape, in the order of [`MetaOptimizer::from_values`].
fn phi_tensors(kind: RateKind, mlp: &Mlp, steps: usize) -> Vec<(String, Vec<usize>)> {
    let rates = ["rates", "bias"].map(|name| (name.to_owned(), vec![steps, mlp.layers()]));
    let layout = PhiLayout::new(kind, mlp, steps);
    rates.into_iter().chain(layout.tensors().iter().map(|t| (t.name.clone(), t.shape.clone()))).collect()
}

/// Problem files have no minibatches, so nothing is ever drawn.
fn no_minibatches() -> rand_chacha::ChaCha8Rng {
    rand_chacha::ChaCha8Rng::seed_from_u64(0)
}

fn wide<T: Scalar>(values: &[T]) -> Vec<f64> {
    values.iter().map(|v| v.to_f64()).collect()
}

fn widen(path: &Path, name: &str, view: &TensorView<'_>) -> Result<Tensor> {
    let data = view.data();
    let values: Vec<f64> = match view.dtype() {
        Dtype::F64 => data.as_chunks::<8>().0.iter().map(|b| f64::from_le_bytes(*b)).collect(),
        Dtype::F32 => data.as_chunks::<4>().0.iter().map(|b| f64::from(f32::from_le_bytes(*b))).collect(),
        other => return Err(Error::file(path, format!("tensor {name:?} is {other:?}"), "write F64 or F32")),
    };
    if let Some(at) = values.iter().position(|v| !v.is_finite()) {
        let problem = format!("tensor {name:?} holds {} at index {at}", values[at]);
        return Err(Error::file(path, problem, "only finite numbers are taken"));
    }
    Ok(Tensor { shape: view.shape().to_vec(), values })
}

/// The answer of a problem: losses and gradients, by name.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Answer {
    /// In the order they are written.
    pub tensors: Vec<(String, Tensor)>,
}

impl Answer {
    fn push(&mut self, name: &str, shape: Vec<usize>, values: Vec<f64>) {
        self.tensors.push((name.to_owned(), Tensor { shape, values }));
    }

    fn push_network<T: Scalar>(&mut self, prefix: &str, gradient: &Parameters<T>) {
        let widths = gradient.mlp().widths();
        for layer in 0..gradient.mlp().layers() {
            let (inputs, outputs) = (widths[layer], widths[layer + 1]);
            self.push(&format!("{prefix}.{layer}.weight"), vec![outputs, inputs], wide(gradient.weight(layer)));
            self.push(&format!("{prefix}.{layer}.bias"), vec![outputs], wide(gradient.bias(layer)));
        }
    }

    fn push_phi<T: Scalar>(&mut self, prefix: &str, tensors: &[(String, Vec<usize>)], mut gradient: &[T]) {
        for (name, shape) in tensors {
            let (part, rest) = gradient.split_at(shape.iter().product());
            self.push(&format!("{prefix}.{name}"), shape.clone(), wide(part));
            gradient = rest;
        }
    }

    /// Writes the answer, in F64, atomically.
    ///
    /// # Errors
    /// A place that cannot be written to.
    pub fn write(&self, path: &Path) -> Result<()> {
        let bytes: Vec<Vec<u8>> =
            self.tensors.iter().map(|(_, t)| t.values.iter().flat_map(|v| v.to_le_bytes()).collect()).collect();
        let mut views = Vec::new();
        for ((name, tensor), bytes) in self.tensors.iter().zip(&bytes) {
            let view = TensorView::new(Dtype::F64, tensor.shape.clone(), bytes)
                .map_err(|e| Error::invalid(name, e.to_string(), "a tensor that safetensors can hold"))?;
            views.push((name.clone(), view));
        }
        let file = safetensors::serialize(views, None)
            .map_err(|e| Error::invalid("answer", e.to_string(), "tensors that safetensors can hold"))?;
        crate::atomic::write(path, |out| std::io::Write::write_all(out, &file))
    }
}
