//! The video GAN on clips of your own: `cargo run --release --example video_gan`
//!
//! A task is a subject told by clips; here a disc that circles its centre with a radius, speed and size of its own. The
//! generator continues a first frame; how the subject moves it learns from three other clips. Shown: a type that implements
//! `ClipTasks`, latents, both players, a GIF of held-out subjects before and after adapting.

use std::ops::ControlFlow;
use std::sync::Arc;

use innerloop::device::cpu::CpuDevice;
use innerloop::model::{Activation, Mlp};
use innerloop::objective::VideoWeights;
use innerloop::rand::{RngExt, SeedableRng};
use innerloop::rand_chacha::ChaCha8Rng;
use innerloop::tasks::{ClipTasks, Condition, Episodes, Latent, VideoBatch};
use innerloop::video::{ClipFormat, Montage, psnr, write_gif};
use innerloop::{
    Algorithm, InnerConfig, MetaLearner, OuterConfig, Result, Schedule, Shape, Trainer, TrainingConfig, VideoConfig,
};

const FORMAT: ClipFormat = ClipFormat { frames: 6, height: 12, width: 12, channels: 1 };

/// Discs on circular paths. Everything follows from the numbers of the task and of the clip.
struct Discs {
    tasks: usize,
    seed: u64,
}

impl ClipTasks for Discs {
    fn format(&self) -> ClipFormat {
        FORMAT
    }

    fn len(&self) -> usize {
        self.tasks
    }

    fn name(&self, task: usize) -> String {
        format!("disc {task}")
    }

    fn clips(&self, _task: usize) -> usize {
        1000
    }

    fn read_into(&self, task: usize, clip: usize, out: &mut [f32]) {
        let mut subject = ChaCha8Rng::seed_from_u64(self.seed + task as u64);
        let speed: f32 = subject.random_range(-0.8..0.8);
        let (path, size): (f32, f32) = (subject.random_range(2.0..4.5), subject.random_range(1.5..2.5));
        subject.set_stream(1 + clip as u64);
        let start: f32 = subject.random_range(0.0..std::f32::consts::TAU);
        for (frame, pixels) in out.chunks_exact_mut(FORMAT.frame_values()).enumerate() {
            let (sin, cos) = (start + speed * frame as f32).sin_cos();
            let (x, y) = (5.5 + path * cos, 5.5 + path * sin);
            for (pixel, value) in pixels.iter_mut().enumerate() {
                let (row, column) = ((pixel / FORMAT.width) as f32, (pixel % FORMAT.width) as f32);
                let distance = ((row - y).powi(2) + (column - x).powi(2)).sqrt();
                *value = 2.0 * (size - distance + 0.5).clamp(0.0, 1.0) - 1.0;
            }
        }
    }
}

fn main() -> Result<()> {
    let device = CpuDevice::new(0)?;
    let latent = Latent { noise: 4, condition: Condition::FirstFrame { height: 12, width: 12 } };
    let clip = FORMAT.values();
    let objective = VideoConfig {
        generator: Mlp::with_hidden(latent.width(), &[128, 256], clip, Activation::Relu, Activation::Tanh)?,
        discriminator: Mlp::with_hidden(clip, &[128], 1, Activation::LeakyRelu, Activation::Linear)?,
        frames: FORMAT.frames,
        frame: None,
        weights: VideoWeights { adversarial: 0.001, reconstruction: 1.0, motion: 0.0, texture: 0.0 },
        adversarial: true,
        inner: InnerConfig { learn_rates: true, ..InnerConfig::new(Algorithm::Maml, 3) },
    };
    let shape = Shape { tasks: 8, shots: 3, queries: 3 };
    let episodes = |seed, tasks, batch| {
        Episodes::new(Arc::new(Discs { tasks, seed }), latent.clone(), batch, shape.shots, shape.queries)
    };
    const STEPS: u64 = 2000;
    let schedule = Schedule::Cosine { steps: STEPS, floor: 0.02 };
    let config = TrainingConfig {
        outer: OuterConfig { schedule, clip: Some(10.0), ..OuterConfig::adam(1e-3) },
        // The discriminator joins when the generator already makes something of a frame.
        adversarial_from: STEPS * 9 / 10,
        ..TrainingConfig::new(shape, &[1.0, 0.01])
    };
    let mut trainer = Trainer::new(device.clone(), objective.clone(), config, episodes(0, 1 << 20, shape.tasks)?)?;
    trainer.train(STEPS, |step| {
        if step.step.is_multiple_of(250) {
            let discriminator =
                step.discriminator_loss.map_or(String::new(), |loss| format!(", discriminator {loss:.3}"));
            println!("meta-step {:5}: generator {:.4}{discriminator}", step.step, step.loss);
        }
        ControlFlow::Continue(())
    })?;

    // Eight subjects that were never seen: adapt, and look at other clips of theirs before and after.
    const HELD_OUT: usize = 8;
    let (mut rng, mut batch) = (ChaCha8Rng::seed_from_u64(1), VideoBatch::default());
    episodes(1 << 40, HELD_OUT, HELD_OUT)?.draw(&mut rng, &mut batch)?;
    let learner = trainer.learner();
    let phi = vec![learner.phi(0).clone(), learner.phi(1).clone()];
    let mut tracer = MetaLearner::tracer(device, objective, Shape { tasks: HELD_OUT, ..shape }, phi)?;
    for network in 0..2 {
        tracer.set_parameters(network, &learner.parameters(network))?;
    }
    let trace = tracer.trace(batch.rows(), &mut rng)?;
    for (step, clips) in trace.outputs.iter().enumerate() {
        println!("PSNR after {step} inner steps: {:.2} dB", psnr(clips, &batch.query_x)?);
    }
    let first_clips = |values| <[f32]>::chunks_exact(values, clip).step_by(shape.queries).collect();
    let rows = [&batch.query_x, &trace.outputs[0], &trace.outputs[trace.outputs.len() - 1]].map(|v| first_clips(v));
    let path = std::env::temp_dir().join("innerloop-discs.gif");
    write_gif(&path, &Montage { scale: 6, ..Montage::new(FORMAT, rows.to_vec()) })?;
    println!("truth, before, after adapting: {}", path.display());
    Ok(())
}
