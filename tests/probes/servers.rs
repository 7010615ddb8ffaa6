//! The probe that follows requests, against servers that others wrote: uvicorn in both its flavours, nginx, Python's
//! `http.server`, one that does everything through `io_uring`, and the simulator.
//!
//! Each is as it comes; those that can are told to write down by their own clock, which is the kernel's, when they read and
//! wrote. What is asserted leaves room for a machine that is busy with other things; what was measured is said aloud. A
//! server that is not there is said aloud too, and `cargo xtask setup` installs it.

mod clocks;
mod flow;
mod load;
mod run;

use std::io::Write;

/// Says it past the test runner's capture.
fn say(text: &str) {
    let _ = writeln!(std::io::stderr(), "{text}");
}
