//! Videos that are not read here, through the `ffmpeg` program.

use std::ffi::{OsStr, OsString};
use std::io::{self, Read, Seek};
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};

use super::clip::{Clip, ClipFormat};
use super::frames::{Frames, from_byte};
use crate::{Error, Result};

pub(super) fn read(path: &Path, format: &ClipFormat) -> Result<Clip> {
    read_with(OsStr::new("ffmpeg"), path, format)
}

/// Has `program` decode the first video stream and shrink it to the format's H x W; takes raw RGB from its output.
fn read_with(program: &OsStr, path: &Path, format: &ClipFormat) -> Result<Clip> {
    // ffmpeg's complaints go to a file: a pipe that nobody empties could block it.
    let mut complaints = tempfile::tempfile().map_err(|e| Error::io(std::env::temp_dir(), "write to", e))?;
    let log = complaints.try_clone().map_err(|e| Error::io(std::env::temp_dir(), "write to", e))?;
    // `file:` keeps a name from being taken for an option or an address; other protocols are not to be opened.
    let mut input = OsString::from("file:");
    input.push(path);
    let mut child = Command::new(program)
        .args(["-nostdin", "-v", "error", "-xerror", "-protocol_whitelist", "file", "-i"])
        .arg(input)
        .args(["-map", "0:v:0", "-an", "-vf", &format!("scale={}:{}:flags=area", format.width, format.height)])
        .args(["-f", "rawvideo", "-pix_fmt", "rgb24", "pipe:1"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(log)
        .spawn()
        .map_err(|e| not_started(path, e))?;
    let frames = child.stdout.take().map(|output| gather(path, output, format));
    let status =
        finish(&mut child, matches!(frames, Some(Err(_)))).map_err(|e| Error::io(path, "read through ffmpeg", e))?;
    let clip = frames.unwrap_or_else(|| Ok(Frames::new(path, format)))?;
    let mut text = String::new();
    // What ffmpeg said is a courtesy: without it the error still stands.
    let _ = complaints.rewind().and_then(|()| complaints.read_to_string(&mut text));
    // A Matroska file that is cut short is a success to ffmpeg, but a complaint all the same.
    if !status.success() || text.contains("ended prematurely") {
        let reason = text.lines().map(str::trim).find(|line| !line.is_empty()).unwrap_or("no reason given");
        return Err(Error::file(path, format!("cannot be decoded by ffmpeg ({reason})"), "copy or export it again"));
    }
    clip.finish()
}

fn gather<'a>(path: &'a Path, mut output: ChildStdout, format: &ClipFormat) -> Result<Frames<'a>> {
    let mut frames = Frames::new(path, format);
    let mut picture = vec![0; format.height * format.width * 3];
    while fill(&mut output, &mut picture).map_err(|e| Error::io(path, "read through ffmpeg", e))? {
        frames.push(format.height, format.width, |i| std::array::from_fn(|c| from_byte(picture[3 * i + c])))?;
    }
    Ok(frames)
}

/// Fills `buffer`; false at the end of the stream. Part of a frame at the end is none.
fn fill(stream: &mut impl Read, buffer: &mut [u8]) -> io::Result<bool> {
    match stream.read_exact(buffer) {
        Ok(()) => Ok(true),
        Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
        Err(e) => Err(e),
    }
}

/// Waits for ffmpeg, having stopped it first if its output is of no use any more.
fn finish(child: &mut Child, stop: bool) -> io::Result<std::process::ExitStatus> {
    if stop {
        // It may have ended by itself already.
        let _ = child.kill();
    }
    child.wait()
}

fn not_started(path: &Path, error: io::Error) -> Error {
    let problem = match error.kind() {
        io::ErrorKind::NotFound => "needs the program ffmpeg, which is not on PATH".to_owned(),
        _ => format!("needs the program ffmpeg, which cannot be started ({error})"),
    };
    Error::file(path, problem, "install ffmpeg, or convert the clip to GIF, animated PNG, .y4m or .npy")
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn run(script: &str) -> Result<Clip> {
        let folder = tempfile::tempdir().unwrap();
        let program = folder.path().join("ffmpeg");
        std::fs::write(&program, format!("#!/bin/sh\n{script}\n")).unwrap();
        std::fs::set_permissions(&program, PermissionsExt::from_mode(0o755)).unwrap();
        read_with(program.as_os_str(), Path::new("clip.mp4"), &ClipFormat::new(2, 1, 2, 1).unwrap())
    }

    /// One test for all: a program being written by one thread cannot be started by another.
    #[test]
    fn raw_frames_become_a_clip_and_failures_say_what_to_do() {
        let clip = run("printf '\\000\\000\\000\\377\\377\\377\\377\\377\\377\\000\\000\\000'").unwrap();
        assert_eq!(clip.values, [-1.0, 1.0, 1.0, -1.0]);
        let message = run("echo moov atom not found >&2; echo and so on >&2; exit 1").unwrap_err().to_string();
        assert!(message.contains("clip.mp4") && message.contains("moov atom not found"), "{message}");
        let message = run("printf 'abcdefabcdef'; echo File ended prematurely >&2").unwrap_err().to_string();
        assert!(message.contains("File ended prematurely"), "{message}");
        let message = run("printf 'abcdef'").unwrap_err().to_string();
        assert!(message.contains("has 1 frame of the 2 needed"), "{message}");
        let format = ClipFormat::new(2, 1, 2, 1).unwrap();
        let error = read_with(OsStr::new("no-such-ffmpeg"), Path::new("clip.mp4"), &format).unwrap_err();
        assert!(error.to_string().contains("install ffmpeg"), "{error}");
    }
}
