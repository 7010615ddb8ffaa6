//! End-to-end tests: the `outrigger` binary between a client and simulated model servers.
//!
//! One binary for all of them, one module per topic.

mod admin;
mod admission;
mod answers;
mod balancing;
mod batching;
mod breaking;
mod cli;
mod clients;
mod compression;
mod counters;
mod deadlines;
mod discovery;
mod fleet;
mod guarding;
mod hangup;
mod hedging;
mod liveness;
mod locality;
mod logs;
mod mirroring;
mod policies;
mod prompts;
mod redis;
mod reload;
mod resilience;
mod rewrite;
mod routing;
mod shutdown;
mod signals;
mod smoke;
mod splitting;
mod tracing;
mod warming;
mod wire;
mod worlds;
