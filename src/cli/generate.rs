use std::path::{Path, PathBuf};

use clap::Args;
use serde_json::json;

use super::run_folder::RunFolder;
use super::samples::scale;
use super::{Compute, console, on_device, subject};
use crate::checkpoint::Checkpoint;
use crate::device::Device;
use crate::personal::{AdaptedGenerator, Personal};
use crate::run::{
    AdaptationOptions, Tune, VideoJob, conditions_of, generate, generate_personal, own_conditions, personalise,
    video_job,
};
use crate::tasks::{ClipFolder, ClipTasks, Condition, FolderOptions, Given};
use crate::video::{ClipFormat, Montage, read_clip, refine, still_names, write_gif, write_npy, write_png_strip};
use crate::{Error, Result};

/// Generate clips with a trained or an adapted checkpoint
///
/// A generator makes clips from conditions of the kind it was trained with: pictures, which it continues (the default), labels,
/// vectors, texts or sounds. Without any given, an adapted checkpoint or a personal file takes those of the clips it was
/// adapted with, others take all labels, or the conditions of held-out tasks. More clips than conditions use each condition again with other noise.
#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// A run's folder, or a checkpoint; the newest run when absent
    #[arg(value_name = "CHECKPOINT")]
    checkpoint: Option<PathBuf>,
    /// Where to write: .gif (an animation), .png (a row of frames for each clip) or .npy (N, F, H, W, C)
    #[arg(long, value_name = "FILE", default_value = "generated.gif")]
    out: PathBuf,
    /// How many clips; with --personal, of each subject
    #[arg(long, default_value_t = 8)]
    count: usize,
    /// Seed of the noise
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Personal files (see adapt --tune) that belong to the checkpoint: all subjects are generated in one batch
    #[arg(long, value_name = "FILE", num_args = 1..)]
    personal: Vec<PathBuf>,
    /// Folders of a subject's clips to adapt to, one for each personal file that holds a meta-optimizer alone
    #[arg(long, value_name = "DIR", num_args = 1.., requires = "personal")]
    clips: Vec<PathBuf>,
    /// Smooth the clips in time; what changes much from frame to frame stays as it is
    #[arg(long)]
    refine: bool,
    #[command(flatten)]
    conditions: Conditions,
    #[command(flatten)]
    compute: Compute,
}

/// What clips are made from: one kind of condition.
#[derive(Debug, Args)]
#[group(multiple = false)]
struct Conditions {
    /// Pictures, clips or folders of clips, whose first frames are continued
    #[arg(long, visible_alias = "image", value_name = "PATH", num_args = 1..)]
    from: Vec<PathBuf>,
    /// Labels the checkpoint was trained with
    #[arg(long, value_name = "LABEL", num_args = 1..)]
    label: Vec<String>,
    /// .npy files of one vector each
    #[arg(long, value_name = "FILE", num_args = 1..)]
    vector: Vec<PathBuf>,
    /// Texts, each in quotes
    #[arg(long, value_name = "TEXT", num_args = 1..)]
    text: Vec<String>,
    /// .wav files
    #[arg(long, value_name = "FILE", num_args = 1..)]
    audio: Vec<PathBuf>,
}

/// Clips in a row of an animation.
const COLUMNS: usize = 8;

pub(super) fn run(arguments: &Arguments) -> Result<()> {
    let write = writer(&arguments.out)?;
    let checkpoint = Checkpoint::read(&RunFolder::find_checkpoint(arguments.checkpoint.as_deref())?)?;
    let job = video_job(&checkpoint)?;
    let format = job.source.format();
    let condition = &job.latent.condition;
    let frames = first_frames(job, &arguments.conditions.from)?;
    let given = arguments.conditions.given(&frames);
    let conditions = if !given.is_empty() {
        conditions_of(&checkpoint, given)?
    } else if *condition == Condition::None || !arguments.personal.is_empty() {
        Vec::new()
    } else {
        own_conditions(&checkpoint, arguments.count, || {
            let pools = job.source.open(condition, checkpoint.config.seed, 1, console::shows_progress());
            let absent = |e| Error::invalid("condition", format!("none is given, and {e}"), condition.wanted());
            Ok(pools.map_err(absent)?.held_out)
        })?
    };
    let (count, seed) = (arguments.count, arguments.seed);
    let precision = arguments.compute.precision_of(&checkpoint.config)?;
    let mut clips = on_device!(arguments.compute, precision, device => if arguments.personal.is_empty() {
        generate(&device, &checkpoint, &conditions, count, seed)
    } else {
        let subjects = arguments.subjects(&device, &checkpoint)?;
        let subjects: Vec<&AdaptedGenerator> = subjects.iter().collect();
        generate_personal(&device, &checkpoint, &subjects, &conditions, count, seed)
    })?;
    if arguments.refine {
        refine(&mut clips, &format)?;
    }
    let clips: Vec<&[f32]> = clips.chunks_exact(format.values()).collect();
    write(&arguments.out, &format, &clips, count)?;
    let out = arguments.out.to_string_lossy();
    let subjects = arguments.personal.iter().map(|path| path.to_string_lossy()).collect::<Vec<_>>();
    console::record(&json!({ "out": out, "clips": clips.len(), "format": format, "subjects": subjects }))?;
    say!("{} clips of {format}: {}", clips.len(), arguments.out.display());
    Ok(())
}

impl Arguments {
    /// The generators of the personal files; where a file holds a meta-optimizer alone, adapted here.
    fn subjects<D: Device<f32> + Clone>(&self, device: &D, checkpoint: &Checkpoint) -> Result<Vec<AdaptedGenerator>> {
        let mut clips = self.clips.iter();
        let mut subjects = Vec::new();
        for path in &self.personal {
            let personal = Personal::read(path, checkpoint)?;
            subjects.push(match (personal.adapted, personal.phi) {
                (Some(adapted), _) => adapted,
                (None, phi) => {
                    let folder = clips.next().ok_or_else(|| {
                        let problem = format!("missing for {}, which holds a meta-optimizer alone", path.display());
                        Error::invalid("--clips", problem, "a folder of clips for each such file")
                    })?;
                    let tuned = Checkpoint { phi: phi.unwrap_or_default(), ..checkpoint.clone() };
                    let source = subject::open(video_job(&tuned)?, folder, None, None)?;
                    let options =
                        AdaptationOptions { shots: None, steps: Some(personal.subject.steps), seed: self.seed };
                    let adapted = personalise(device, &tuned, source, &options, Tune::Weights)?.personal.adapted;
                    adapted.ok_or_else(|| Error::invalid("--clips", "nothing came of them", "clips to adapt to"))?
                }
            });
        }
        match clips.next() {
            Some(folder) => {
                let problem = format!("{}, which no personal file needs", folder.display());
                Err(Error::invalid("--clips", problem, "one folder for each file that holds a meta-optimizer alone"))
            }
            None => Ok(subjects),
        }
    }
}

impl Conditions {
    fn given<'a>(&'a self, frames: &'a [Vec<f32>]) -> Vec<Given<'a>> {
        let frames = frames.iter().map(|frame| Given::Frame(frame));
        let labels = self.label.iter().map(|label| Given::Label(label));
        let vectors = self.vector.iter().map(|path| Given::Vector(path));
        let texts = self.text.iter().map(|text| Given::Text(text));
        let sounds = self.audio.iter().map(|path| Given::Audio(path));
        frames.chain(labels).chain(vectors).chain(texts).chain(sounds).collect()
    }
}

/// Takes so many clips of each subject.
type Writer = fn(&Path, &ClipFormat, &[&[f32]], usize) -> Result<()>;

/// The writer that the file's extension asks for.
fn writer(path: &Path) -> Result<Writer> {
    let extension = path.extension().and_then(|e| e.to_str()).unwrap_or_default().to_ascii_lowercase();
    match extension.as_str() {
        "gif" => Ok(|path, format, clips, count| write_gif(path, &montage(format, clips, count, COLUMNS))),
        "png" => Ok(|path, format, clips, count| write_png_strip(path, &montage(format, clips, count, 1))),
        "npy" => Ok(|path, format, clips, _| write_npy(path, format, clips)),
        _ => Err(Error::invalid("--out", path.display().to_string(), "a name that ends in .gif, .png or .npy")),
    }
}

fn montage<'a>(format: &ClipFormat, clips: &[&'a [f32]], count: usize, columns: usize) -> Montage<'a> {
    let rows = clips.chunks(count).flat_map(|subject| subject.chunks(columns)).map(<[&[f32]]>::to_vec).collect();
    Montage { scale: scale(format), background: 255, ..Montage::new(*format, rows) }
}

/// The first frame of each picture or clip, and of every clip in a folder of clips.
fn first_frames(job: &VideoJob, paths: &[PathBuf]) -> Result<Vec<Vec<f32>>> {
    let format = ClipFormat { frames: 1, ..job.source.format() };
    let mut frames = Vec::new();
    for path in paths {
        if path.is_dir() && still_names(path)?.is_empty() {
            let options =
                FolderOptions { min_clips: 1, progress: console::shows_progress(), ..FolderOptions::default() };
            let folder = ClipFolder::open_single_task(path, format, &options)?;
            for clip in 0..folder.clips(0) {
                let mut frame = vec![0.0; format.values()];
                folder.read_into(0, clip, &mut frame);
                frames.push(frame);
            }
        } else {
            frames.push(read_clip(path, &format)?.values);
        }
    }
    Ok(frames)
}
