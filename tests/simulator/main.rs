//! Tests of the simulator and the harness themselves, without the proxy: what the end-to-end tests rely on.

mod batching;
mod client;
mod faults;
mod http;
mod launch;
mod openai;
mod reports;
