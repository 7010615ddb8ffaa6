//! End-to-end tests: the `outrigger` binary between a client and simulated model servers.
//!
//! One binary for all of them, one module per topic.

mod smoke;
