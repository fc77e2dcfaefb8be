//! What the commands say: text for people, nothing, or JSON for programs.

use std::io::Write;
use std::sync::OnceLock;

use clap::Args;
use indicatif::ProgressBar;
use serde::Serialize;

use crate::{Error, Result, progress};

/// How much is said; the same for every command.
#[derive(Clone, Copy, Debug, Args)]
pub(super) struct Verbosity {
    /// Say nothing but errors
    #[arg(long, short, global = true, conflicts_with = "json")]
    quiet: bool,
    /// Results as JSON on standard output, one object a line, and nothing else there
    #[arg(long, global = true)]
    json: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Mode {
    Text,
    Quiet,
    Json,
}

/// Standard output belongs to the whole process, and so does what goes there.
static MODE: OnceLock<Mode> = OnceLock::new();

impl Verbosity {
    /// Holds from here on.
    pub(super) fn apply(self) {
        let mode = match self {
            Self { quiet: true, .. } => Mode::Quiet,
            Self { json: true, .. } => Mode::Json,
            _ => Mode::Text,
        };
        let _ = MODE.set(mode);
    }
}

fn mode() -> Mode {
    MODE.get().copied().unwrap_or(Mode::Text)
}

/// Prints a line for people; results are in files as well, so that nobody reads along is no failure.
pub(super) fn line(text: std::fmt::Arguments<'_>) {
    if mode() == Mode::Text {
        let _ = writeln!(std::io::stdout(), "{text}");
    }
}

/// Prints a line for programs.
///
/// # Errors
/// None for values that JSON can hold.
pub(super) fn record(value: &impl Serialize) -> Result<()> {
    if mode() == Mode::Json {
        let text =
            serde_json::to_string(value).map_err(|e| Error::invalid("--json", e.to_string(), "what JSON can hold"))?;
        let _ = writeln!(std::io::stdout(), "{text}");
    }
    Ok(())
}

/// Prints a line for programs that says what it is about.
///
/// # Errors
/// As [`record`].
pub(super) fn event(event: &'static str, content: &impl Serialize) -> Result<()> {
    #[derive(Serialize)]
    struct Event<'a, T> {
        event: &'static str,
        #[serde(flatten)]
        content: &'a T,
    }
    record(&Event { event, content })
}

/// Says what was passed over or done without.
pub(super) fn notes(notes: &[String]) {
    if mode() != Mode::Quiet {
        notes.iter().for_each(|note| eprintln!("note: {note}"));
    }
}

/// Whether progress bars are shown.
pub(super) fn shows_progress() -> bool {
    mode() == Mode::Text
}

/// A progress bar of a command.
pub(super) fn progress_bar(what: &'static str, total: u64) -> ProgressBar {
    progress::bar(what, total, shows_progress())
}
