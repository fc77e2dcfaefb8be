use std::path::PathBuf;

use clap::Args;

use crate::Result;
use crate::device::DeviceKind;

/// Measure which tensor-core kernel is fastest for which shape, on a GPU
///
/// Where INNERLOOP_TILES names the file that is written, every command takes its kernels from there; kept as kernels/tiles.toml
/// it is built into the program.
#[derive(Debug, Args)]
pub struct Arguments {
    /// The GPU
    #[arg(long, default_value = "cuda:0", value_name = "cuda:N")]
    device: DeviceKind,
    /// Rows of the outputs: of all tasks, shots and blocks
    #[arg(long, value_delimiter = ',', value_name = "N,...")]
    rows: Vec<usize>,
    /// Columns of the outputs: widths of layers
    #[arg(long, value_delimiter = ',', value_name = "N,...")]
    columns: Vec<usize>,
    /// Length of the sums [default: 512]
    #[arg(long, value_name = "N")]
    inner: Option<usize>,
    /// Seconds for each kernel and shape, at least [default: 0.01]
    #[arg(long, value_name = "S")]
    seconds: Option<f64>,
    /// Told with the measurements: driver, date
    #[arg(long, default_value = "", value_name = "TEXT")]
    note: String,
    /// Where to write them; those of other GPUs that are there already stay
    #[arg(long, default_value = "tiles.toml", value_name = "FILE")]
    out: PathBuf,
}

pub fn run(arguments: &Arguments) -> Result<()> {
    match arguments.device.resolve()? {
        #[cfg(feature = "cuda")]
        DeviceKind::Cuda(ordinal) => on_gpu::run(arguments, ordinal),
        device => Err(crate::Error::invalid("device", device.to_string(), "a GPU, whose kernels are measured")),
    }
}

/// GPU number `ordinal`, with the measurements of the file that is named, if any.
#[cfg(feature = "cuda")]
pub fn tuned(ordinal: usize) -> Result<crate::device::cuda::CudaDevice<crate::device::cuda::GpuDriver>> {
    use crate::Error;
    use crate::device::cuda::{CudaDevice, Tiles};

    let device = CudaDevice::new(ordinal)?;
    let Some(path) = std::env::var_os("INNERLOOP_TILES") else { return Ok(device) };
    let text = std::fs::read_to_string(&path).map_err(|e| Error::io(&path, "read", e))?;
    let own = Tiles::parse_all(&text)?.into_iter().find(|tiles| tiles.gpu == device.model());
    let Some(own) = own else {
        let expected = format!("measurements of {}: innerloop tune --out FILE", device.model());
        return Err(Error::file(&path, "has none of this GPU", expected));
    };
    Ok(device.with_tiles(Some(&own)))
}

#[cfg(feature = "cuda")]
mod on_gpu {
    use std::io::Write;

    use super::Arguments;
    use crate::atomic;
    use crate::cli::console;
    use crate::device::cuda::{CudaDevice, Tiles, Tuning, tune};
    use crate::{Error, Result};

    pub fn run(arguments: &Arguments, ordinal: usize) -> Result<()> {
        let mut tuning = Tuning::default();
        let lists = [(&mut tuning.rows, &arguments.rows), (&mut tuning.columns, &arguments.columns)];
        lists.into_iter().filter(|(_, given)| !given.is_empty()).for_each(|(to, given)| to.clone_from(given));
        tuning.inner = arguments.inner.unwrap_or(tuning.inner);
        tuning.seconds = arguments.seconds.unwrap_or(tuning.seconds);
        // Before anything is measured, so that nothing measured is lost to a file that cannot be read.
        let before = match std::fs::read_to_string(&arguments.out) {
            Ok(text) => text,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => String::new(),
            Err(e) => return Err(Error::io(&arguments.out, "read", e)),
        };
        Tiles::parse_all(&before)?;
        let device = CudaDevice::new(ordinal)?;
        let bar = console::progress_bar("shapes", 0);
        let measured = tune(&device, &tuning, |done, all| {
            bar.set_length(all as u64);
            bar.set_position(done as u64);
        })?;
        bar.finish_and_clear();
        let (gpu, count) = (measured.gpu.clone(), measured.fastest.len());
        let text = Tiles { note: arguments.note.clone(), ..measured }.put_into(&before)?;
        atomic::write(&arguments.out, |file| file.write_all(text.as_bytes()))?;
        say!("{count} measurements of {gpu}: {}", arguments.out.display());
        Ok(())
    }
}
