//! Where tasks come from: a folder of clips, moving shapes, sinusoids; and how episodes are drawn from them.
//!
//! A task is one subject, told by its clips. [`ClipTasks`] is what all sources of clips share; [`Episodes`] draws
//! meta-batches from any of them, [`split`] holds tasks out.

mod cache;
mod clip_folder;
mod condition;
mod episodes;
mod kinds;
mod latent;
mod law;
mod listing;
mod moving_shapes;
mod shape;
mod sinusoids;
mod source;
mod split;

pub use clip_folder::{ClipFolder, FolderOptions};
pub use condition::{Condition, Given, Labels};
pub use episodes::{Episodes, VideoBatch};
pub use kinds::HeldOutKinds;
pub use latent::Latent;
pub use law::Law;
pub use moving_shapes::MovingShapes;
pub use sinusoids::{Sinusoid, Sinusoids};
pub use source::ClipTasks;
pub use split::{Subset, split};
