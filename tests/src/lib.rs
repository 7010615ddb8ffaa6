//! What the end-to-end tests of Outrigger are made of: a simulated model server, and a harness that runs the `outrigger`
//! binary and talks to it.
//!
//! Nothing here links the proxy: it is a child process, tested as it is shipped.

pub mod harness;
pub mod sim;
