use innerloop::device::cpu::CpuDevice;
use innerloop::model::{Activation, Mlp, Parameters};
use innerloop::objective::VideoWeights;
use innerloop::tasks::*;
use innerloop::video::*;
use innerloop::*;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use std::sync::Arc;
fn v(name: &str, d: f64) -> f64 {
    std::env::var(name).ok().map_or(d, |t| t.parse().unwrap())
}
fn main() -> Result<()> {
    let n = |name: &str, d: usize| v(name, d as f64) as usize;
    let format = ClipFormat::new(8, 16, 16, 1)?;
    let joint = v("JOINT", 0.0) > 0.0;
    let (t, k, q, s) = (n("T", 16), 5, 5, if joint { 0 } else { n("S", 5) });
    let latent = Latent { noise: n("NOISE", 0), condition: Condition::FirstFrame { height: 16, width: 16 } };
    let train: Arc<dyn ClipTasks> = Arc::new(MovingShapes::new(format, 1, n("TASKS", 1_000_000), n("CLIPS", 1000))?);
    let held: Arc<dyn ClipTasks> = Arc::new(MovingShapes::new(format, 2, 64, 20)?);
    let (tk, tq) = if joint { (1, 9) } else { (k, q) };
    let episodes = Episodes::new(train, latent, t, tk, tq)?;
    let test = Episodes::new(held, latent, 64, k, q)?;
    let generator = Mlp::with_hidden(latent.width(), &[256, 512], format.values(), Activation::Relu, Activation::Tanh)?;
    let discriminator = Mlp::with_hidden(format.values(), &[512, 256], 1, Activation::LeakyRelu, Activation::Linear)?;
    let adversarial = v("ADV", 0.0) > 0.0;
    let algorithm: Algorithm = std::env::var("ALG").unwrap_or("maml".into()).parse()?;
    let kind = RateKind::PerLayerPerStep;
    let config = VideoConfig {
        generator: generator.clone(),
        discriminator: discriminator.clone(),
        frames: 8,
        weights: VideoWeights { adversarial: v("ADV", 0.0), reconstruction: 1.0, motion: v("MOT", 0.0) },
        adversarial,
        inner: InnerConfig {
            rates: kind,
            learn_rates: v("PHI", 0.01) > 0.0,
            momentum: v("MOM", 0.0),
            ..InnerConfig::new(algorithm, s)
        },
    };
    let phi = |g: f64, d: f64| -> Result<Vec<MetaOptimizer<f32>>> {
        let mut all = vec![MetaOptimizer::uniform(kind, &generator, s, g)?];
        if adversarial {
            all.push(MetaOptimizer::uniform(kind, &discriminator, s, d)?);
        }
        Ok(all)
    };
    let device = CpuDevice::new(2)?;
    let shape = Shape { tasks: t, shots: tk, queries: tq };
    let mut rng = ChaCha8Rng::seed_from_u64(7);
    let mut learner =
        MetaLearner::new(device.clone(), config.clone(), shape, phi(v("ALPHA", 2.0), v("DALPHA", 0.01))?)?;
    learner.set_parameters(0, &Parameters::initialise(&generator, &mut rng))?;
    if adversarial {
        learner.set_parameters(1, &Parameters::initialise(&discriminator, &mut rng))?;
    }
    let steps = v("STEPS", 1500.0) as u64;
    let outer = OuterConfig {
        phi_learning_rate: v("PHI", 0.01).max(1e-9),
        clip: Some(v("CLIP", 10.0)),
        schedule: Schedule::Cosine { steps, floor: 0.05 },
        ..OuterConfig::adam(v("LR", 1e-3))
    };
    let mut batch = VideoBatch::default();
    let mut fixed = VideoBatch::default();
    let keep = v("KEEP", 1.0) as f32;
    let gain = v("GAIN", 1.0) as f32;
    let centre = |b: &mut VideoBatch| {
        for z in [&mut b.support_z, &mut b.query_z] {
            for row in z.chunks_mut(latent.width()) {
                let c = &mut row[latent.noise..];
                let m = c.iter().sum::<f32>() / c.len() as f32;
                c.iter_mut().for_each(|x| *x = gain * (*x - m + keep * m));
            }
        }
    };
    test.fixed(&(0..64).collect::<Vec<_>>(), &mut ChaCha8Rng::seed_from_u64(3), &mut fixed)?;
    centre(&mut fixed);
    let rows = |b: &VideoBatch| -> [Vec<f32>; 0] {
        let _ = b;
        []
    };
    let _ = rows;
    for step in 0..=steps {
        if step % (steps / 5) == 0 || step == steps {
            for alpha in if joint { vec![0.1, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0] } else { vec![0.0] } {
                let es = n("ES", 5);
                let p: Vec<_> = if joint {
                    vec![MetaOptimizer::uniform(kind, &generator, es, alpha)?]
                } else {
                    (0..1 + adversarial as usize).map(|i| learner.phi(i).with_steps(es)).collect()
                };
                let mut c = config.clone();
                c.inner.steps = es;
                let mut tracer = MetaLearner::tracer(device.clone(), c, Shape { tasks: 64, shots: k, queries: q }, p)?;
                for i in 0..1 + adversarial as usize {
                    tracer.set_parameters(i, &learner.parameters(i))?;
                }
                let b = &fixed;
                let trace = tracer.trace(
                    VideoRows {
                        support_x: &b.support_x,
                        support_z: &b.support_z,
                        query_x: &b.query_x,
                        query_z: &b.query_z,
                    },
                    &mut rng,
                )?;
                let w = format.values();
                if step == steps && (!joint || alpha == 0.5) {
                    let mut rows: Vec<Vec<&[f32]>> = vec![];
                    for task in 0..8 {
                        let i = task * q;
                        rows.push(vec![
                            &b.query_x[i * w..(i + 1) * w],
                            &trace.outputs[0][i * w..(i + 1) * w],
                            &trace.outputs[5][i * w..(i + 1) * w],
                        ]);
                    }
                    write_png_strip(
                        std::env::var("PNG").unwrap_or("/tmp/strip.png".into()),
                        &Montage { scale: 2, ..Montage::new(format, rows) },
                    )?;
                }
                let ps: Vec<String> = trace
                    .outputs
                    .iter()
                    .map(|o| {
                        let sum: f64 = o.chunks(w).zip(b.query_x.chunks(w)).map(|(a, x)| psnr(a, x).unwrap()).sum();
                        format!("{:.2}", sum / (64 * q) as f64)
                    })
                    .collect();
                println!("{step:5} {alpha} psnr {} ", ps.join(" "));
            }
        }
        if step == steps {
            break;
        }
        episodes.draw(&mut rng, &mut batch)?;
        centre(&mut batch);
        let b = &batch;
        learner.run(
            VideoRows { support_x: &b.support_x, support_z: &b.support_z, query_x: &b.query_x, query_z: &b.query_z },
            &mut rng,
        )?;
        learner.update(&outer)?;
    }
    println!("{:?}", learner.phi(0).values());
    Ok(())
}
