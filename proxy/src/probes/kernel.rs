//! What every family of programs needs of the kernel: how its types lie in memory, loading and attaching, and why not.

mod btf;
mod facts;
mod load;
mod obstacle;

pub(super) use facts::{Kernel, own_namespace, own_pids};
pub(super) use load::Programs;
pub use obstacle::Obstacle;
