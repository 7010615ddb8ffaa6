//! What the proxy tells about itself: metrics, their text, and one log line per request.
//!
//! Why one module: all of it reads the same facts at the end of a request, and none of it may cost
//! the request anything worth measuring. So handles are resolved beforehand, instruments are plain
//! atomics, log lines are written by another thread, and nothing here takes a lock on the hot path.
//!
//! What it leaves out: deciding. Whoever routes, retries or ejects reports here; nobody asks here.

pub mod access_log;
pub mod exposition;
pub mod instruments;
pub mod metrics;
pub mod trace;
