use std::fmt;
use std::str::FromStr;

use crate::{Error, Result};

/// Which device is asked for: `cpu`, `cuda`, `cuda:N` or `auto`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DeviceKind {
    /// A GPU if there is one this build can use, the CPU otherwise.
    #[default]
    Auto,
    /// The CPU.
    Cpu,
    /// GPU number N, as the driver counts them; `cuda` alone is `cuda:0`.
    Cuda(usize),
}

impl DeviceKind {
    /// The device to use on this machine: never [`DeviceKind::Auto`].
    ///
    /// # Errors
    /// A GPU, where the crate was built without the feature `cuda`. Whether the GPU is there shows when it is opened.
    pub fn resolve(self) -> Result<Self> {
        match self {
            Self::Auto if gpus() > 0 => Ok(Self::Cuda(0)),
            Self::Auto => Ok(Self::Cpu),
            Self::Cuda(_) if cfg!(not(feature = "cuda")) => {
                let problem = format!("{self}, in a build without GPU support");
                Err(Error::invalid("device", problem, "cpu, or a build with `--features cuda`"))
            }
            other => Ok(other),
        }
    }
}

#[cfg(feature = "cuda")]
fn gpus() -> usize {
    super::cuda::GpuDriver::count()
}

#[cfg(not(feature = "cuda"))]
fn gpus() -> usize {
    0
}

impl fmt::Display for DeviceKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Cpu => f.write_str("cpu"),
            Self::Cuda(ordinal) => write!(f, "cuda:{ordinal}"),
        }
    }
}

impl FromStr for DeviceKind {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text.trim() {
            "auto" => Ok(Self::Auto),
            "cpu" => Ok(Self::Cpu),
            "cuda" => Ok(Self::Cuda(0)),
            other => other
                .strip_prefix("cuda:")
                .and_then(|n| n.parse().ok())
                .map(Self::Cuda)
                .ok_or_else(|| Error::invalid("device", format!("{text:?}"), "auto, cpu, cuda or cuda:N")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::DeviceKind;

    #[test]
    fn reads_what_it_writes_and_refuses_the_rest() {
        for kind in [DeviceKind::Auto, DeviceKind::Cpu, DeviceKind::Cuda(3)] {
            assert_eq!(kind.to_string().parse::<DeviceKind>().unwrap(), kind);
        }
        assert_eq!("cuda".parse::<DeviceKind>().unwrap(), DeviceKind::Cuda(0));
        for text in ["gpu", "cuda:", "cuda:x", "cuda:-1", "CPU", ""] {
            let message = text.parse::<DeviceKind>().unwrap_err().to_string();
            assert!(message.contains(&format!("{text:?}")) && message.contains("cuda:N"), "{message}");
        }
    }

    #[test]
    fn auto_is_resolved_and_a_build_without_gpus_says_so() {
        assert_ne!(DeviceKind::Auto.resolve().unwrap(), DeviceKind::Auto);
        assert_eq!(DeviceKind::Cpu.resolve().unwrap(), DeviceKind::Cpu);
        if cfg!(not(feature = "cuda")) {
            let message = DeviceKind::Cuda(1).resolve().unwrap_err().to_string();
            assert!(message.contains("cuda:1") && message.contains("--features cuda"), "{message}");
        }
    }
}
