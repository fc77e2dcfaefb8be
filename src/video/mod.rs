//! Reading, writing and judging clips.
//!
//! A clip is one row of `F*H*W*C` values in [-1, 1]: frame after frame, each frame row by row, the channels of a pixel
//! side by side. [`ClipFormat`] gives F, H, W and C. [`read_clip`] brings any clip file or folder of pictures to a
//! format; [`decode`] does the same for bytes in memory. [`write_gif`], [`write_png_strip`] and [`write_npy`] write
//! clips, never leaving half a file behind. [`refine`] calms generated ones. [`psnr`], [`ssim`], [`motion_error`],
//! [`texture_error`] and [`flicker`] compare a clip with the one it should be, [`FrechetReference`] many clips with many.

mod animation;
mod clip;
mod differences;
mod ffmpeg;
mod frames;
mod frechet;
mod montage;
mod natural;
mod npy;
mod npy_header;
mod quality;
mod read;
mod refine;
mod resize;
mod stills;
mod write;
mod y4m;

pub use clip::{Clip, ClipFormat};
pub use differences::{flicker, motion_error, texture_error};
pub use frechet::FrechetReference;
pub use montage::Montage;
pub use quality::{psnr, ssim};
pub use read::{decode, read_clip};
pub use refine::refine;
pub use write::{write_gif, write_npy, write_png_strip};

pub(crate) use frames::plural;
pub(crate) use natural::natural_order;
pub(crate) use npy::read_vector;
pub(crate) use read::{Kind, kind_of_file, read_bounded};
pub(crate) use resize::shrink_to_gray;
pub(crate) use stills::still_names;
