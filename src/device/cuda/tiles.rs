//! The fastest kernel for each product and shape, measured.

use serde::{Deserialize, Serialize};

use super::driver::Kernel;
use crate::device::MatrixPrecision;
use crate::{Error, Result};

/// Those that are kept with the kernels.
const KEPT: &str = include_str!("../../../kernels/tiles.toml");

/// Measurements of one GPU: for a product, a precision and a shape the kernel that was fastest. Other shapes take the nearest
/// one's.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tiles {
    /// What the GPU's maker calls it.
    pub gpu: String,
    /// Where the measurements are from: driver, date, whatever tells them apart.
    #[serde(default)]
    pub note: String,
    /// The measurements.
    #[serde(default)]
    pub fastest: Vec<Fastest>,
}

/// One measurement.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Fastest {
    /// The product, by the name of its kernel in f32.
    pub product: String,
    /// What operands are rounded to.
    pub precision: MatrixPrecision,
    /// Rows of the output, of all tasks and blocks.
    pub rows: usize,
    /// Columns of the output.
    pub columns: usize,
    /// The name of the fastest kernel.
    pub kernel: String,
    /// What it took, and what the others did, from the fastest on.
    pub microseconds: Vec<f64>,
}

/// A file of them.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    gpu: Vec<Tiles>,
}

impl Tiles {
    /// Those kept for a GPU, by what its maker calls it.
    pub fn kept(gpu: &str) -> Option<Self> {
        Self::parse_all(KEPT).ok()?.into_iter().find(|tiles| tiles.gpu == gpu)
    }

    /// All GPUs' in the text of a file.
    ///
    /// # Errors
    /// Text that is not such a file's, or a kernel that there is not.
    pub fn parse_all(text: &str) -> Result<Vec<Self>> {
        let file: File = toml::from_str(text).map_err(|e| {
            Error::invalid("tiles", e.to_string().trim().replace('\n', "; "), "a file written by innerloop tune")
        })?;
        for entry in file.gpu.iter().flat_map(|tiles| &tiles.fastest) {
            for name in [&entry.product, &entry.kernel] {
                if Kernel::named(name).is_none() {
                    let expected = "one of this version; innerloop tune measures anew";
                    return Err(Error::invalid("kernel in the tiles", name.as_str(), expected));
                }
            }
        }
        Ok(file.gpu)
    }

    /// The text of a file with these in the place of the same GPU's, if it has any.
    ///
    /// # Errors
    /// As [`Tiles::parse_all`].
    pub fn put_into(self, text: &str) -> Result<String> {
        let mut gpu = Self::parse_all(text)?;
        gpu.retain(|tiles| tiles.gpu != self.gpu);
        gpu.push(self);
        gpu.sort_by(|a, b| a.gpu.cmp(&b.gpu));
        let comment: String = text.lines().take_while(|line| line.starts_with('#')).flat_map(|l| [l, "\n"]).collect();
        let tables = toml::to_string(&File { gpu })
            .map_err(|e| Error::invalid("tiles", e.to_string(), "numbers that can be written"))?;
        Ok(if comment.is_empty() { tables } else { format!("{comment}\n{tables}") })
    }
}

/// The measurements as launches look them up.
#[derive(Debug)]
pub(super) struct Index {
    /// By the product's kernel in f32 and the precision: shapes and their fastest kernels.
    groups: Vec<((Kernel, MatrixPrecision), Vec<Place>)>,
}

/// A shape's rows and columns, in powers of two, and its fastest kernel.
type Place = ([f32; 2], Kernel);

fn place(rows: usize, columns: usize) -> [f32; 2] {
    [rows, columns].map(|size| (size.max(1) as f32).log2())
}

impl Index {
    pub fn new(tiles: &Tiles) -> Self {
        let mut groups: Vec<(_, Vec<Place>)> = Vec::new();
        for entry in &tiles.fastest {
            let (Some(product), Some(kernel)) = (Kernel::named(&entry.product), Kernel::named(&entry.kernel)) else {
                continue;
            };
            let (key, at) = ((product, entry.precision), place(entry.rows, entry.columns));
            match groups.iter_mut().find(|(group, _)| *group == key) {
                Some((_, places)) => places.push((at, kernel)),
                None => groups.push((key, vec![(at, kernel)])),
            }
        }
        Self { groups }
    }

    /// The kernel that was fastest at the shape nearest to this one, if the product was measured in that precision.
    pub fn kernel(&self, product: Kernel, precision: MatrixPrecision, rows: usize, columns: usize) -> Option<Kernel> {
        let (_, places) = self.groups.iter().find(|(group, _)| *group == (product, precision))?;
        let [rows, columns] = place(rows, columns);
        let apart = |[r, c]: [f32; 2]| (r - rows).abs() + (c - columns).abs();
        places.iter().min_by(|a, b| apart(a.0).total_cmp(&apart(b.0))).map(|(_, kernel)| *kernel)
    }
}
