//! What both sides of the kernel boundary share: records, keys, and how one request's facts are put together.
//!
//! The programs (`src/bin`) only fetch numbers from the kernel and call what is here; user space reads the same records
//! back. So the decisions can be tested without a kernel, and neither side can misread the other.
//!
//! Left out: loading, attaching, joining with the proxy's requests. That is `proxy/src/probes`.

#![no_std]
#![forbid(unsafe_code)]

mod call;
mod connection;
mod driver;
mod fact;
mod fence;
mod gpu;
mod job;
mod key;
mod record;
mod task;

pub use call::{Call, Histogram};
pub use connection::{Burst, Connection, Write};
pub use driver::*;
pub use fact::SocketFact;
pub use fence::{FenceLoss, WAIT_TOLD_FROM};
pub use gpu::{Api, Begun, Calls, Cookie, Detail, FUNCTIONS, Frame, Function, function};
pub use job::{Job, JobFact, JobKey, RING_BYTES, Ring};
pub use key::{fold_v6, key};
pub use task::{KERNEL_THREAD, TaskFact};
