//! The one error type of the crate.
//!
//! Every message is one line that names the file, field or value at fault and says what would be right.

use std::io;
use std::path::{Path, PathBuf};

/// What can go wrong, in the words a user needs.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The operating system refused to read or write a file.
    #[error("{}: cannot {action}: {source}{}", path.display(), io_remedy(source))]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What was tried, as a verb: "read", "write", "create".
        action: &'static str,
        /// The operating system's answer.
        source: io::Error,
    },
    /// A file was read but does not hold what it should.
    #[error("{}: {problem}; {remedy}", path.display())]
    File {
        /// The file or folder.
        path: PathBuf,
        /// What is wrong with its content.
        problem: String,
        /// What would be right.
        remedy: String,
    },
    /// An argument, a shape or a configuration field is out of range or does not fit.
    #[error("{field}: {problem}; expected {expected}")]
    Invalid {
        /// The argument or field.
        field: String,
        /// What was found.
        problem: String,
        /// What would be right.
        expected: String,
    },
    /// A device refused or broke off an operation.
    #[error("{device}: {action} failed: {problem}")]
    Device {
        /// The device.
        device: String,
        /// What was done: the operation and its shapes.
        action: String,
        /// The driver's answer.
        problem: String,
    },
    /// A loss, a gradient or a parameter became NaN or infinite.
    #[error("{what} became {value} at meta-step {step}; lower the inner or outer learning rate, or clip gradients")]
    Diverged {
        /// Which quantity.
        what: &'static str,
        /// Its value.
        value: f64,
        /// The meta-step, counted from 1.
        step: u64,
    },
}

/// The crate's result type.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// An operating-system error on `path` while trying to `action` it.
    pub fn io(path: impl AsRef<Path>, action: &'static str, source: io::Error) -> Self {
        Self::Io { path: path.as_ref().into(), action, source }
    }

    /// A file whose content is wrong.
    pub fn file(path: impl AsRef<Path>, problem: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self::File { path: path.as_ref().into(), problem: problem.into(), remedy: remedy.into() }
    }

    /// A value that does not fit.
    pub fn invalid(field: impl Into<String>, problem: impl Into<String>, expected: impl Into<String>) -> Self {
        Self::Invalid { field: field.into(), problem: problem.into(), expected: expected.into() }
    }
}

fn io_remedy(source: &io::Error) -> &'static str {
    match source.kind() {
        io::ErrorKind::NotFound => "; check the path",
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
            "; choose a place you may write to, or change its permissions"
        }
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            "; free some disk space and run again (nothing was overwritten)"
        }
        io::ErrorKind::UnexpectedEof => "; the file is cut short: copy it again",
        io::ErrorKind::IsADirectory | io::ErrorKind::NotADirectory => "; check whether a file or a folder is meant",
        _ => "",
    }
}
