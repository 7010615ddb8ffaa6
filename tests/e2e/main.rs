//! End-to-end tests: the `outrigger` binary between a client and simulated model servers.
//!
//! One binary for all of them, one module per topic.

mod admin;
mod balancing;
mod cli;
mod clients;
mod deadlines;
mod fleet;
mod hangup;
mod logs;
mod reload;
mod resilience;
mod rewrite;
mod routing;
mod shutdown;
mod smoke;
mod splitting;
mod wire;
