//! Progress bars, all of one kind.

use std::fmt::Write;

use indicatif::{ProgressBar, ProgressState, ProgressStyle};

/// A bar that says what is done, how far it is, how fast it goes and how long it will take; hidden if not `shown`, and of
/// itself where standard error is no terminal.
pub(crate) fn bar(what: &'static str, total: u64, shown: bool) -> ProgressBar {
    if !shown {
        return ProgressBar::hidden();
    }
    let rate = |state: &ProgressState, out: &mut dyn Write| {
        let _ = write!(out, "{:.1}/s", state.per_sec());
    };
    let bar = ProgressBar::new(total).with_prefix(what);
    match ProgressStyle::with_template("{prefix} {wide_bar} {pos}/{len} {rate} {elapsed}<{eta} {msg}") {
        Ok(style) => bar.with_style(style.with_key("rate", rate)),
        Err(_) => bar,
    }
}
