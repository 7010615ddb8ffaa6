//! What every family of programs needs of the kernel: how its types lie in memory, loading and attaching, and why not.

mod bpf;
mod btf;
mod clock;
mod facts;
mod format;
mod hook;
mod load;
mod multi;
mod obstacle;
mod task;
mod user;
mod voice;

pub use clock::monotonic;
pub(super) use facts::{Kernel, own_namespace, own_pids};
pub(super) use format::{Format, format_of};
pub(super) use hook::{Function, Hook, Way};
pub(super) use load::Programs;
pub use obstacle::Obstacle;
pub use user::Release;
pub(super) use user::{MappedFile, Place, UserLink, UserPrograms, UserWay, user_ways};
