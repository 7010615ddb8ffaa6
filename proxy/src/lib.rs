//! Outrigger, the data plane: a sidecar proxy for GPU inference pods on pingora.
//!
//! The path of a request, top to bottom: [`connection`] reads its head, [`gateway`] strings the phases together:
//! [`phase::admit`] → [`phase::route`] → [`phase::bound`] → [`phase::answer`] → [`phase::enter`] → [`phase::attempt`] →
//! [`phase::respond`] → [`phase::conclude`]; an attempt is one [`relay`] between a client and an endpoint.
//!
//! Pure decisions, which take a time and a seed and touch nothing: [`admission`], [`split`], [`balance`], [`outlier`],
//! [`retry`], [`hedge`], [`scan`], [`stream`], [`health::threshold`], [`guard`], [`signal`], [`level`], most of
//! [`answers`] and [`deadline`]. State that outlives a request: [`snapshot`] (the configuration in force), [`endpoint`]
//! (what is known about each endpoint). [`app`] puts it all together.

pub mod admin;
pub mod admission;
pub mod answers;
pub mod app;
pub mod balance;
pub mod batch;
pub mod canary;
pub mod chance;
pub mod cli;
pub mod clock;
pub mod compress;
pub mod connection;
pub mod deadline;
pub mod discovery;
pub mod drain;
pub mod endpoint;
pub mod explain;
pub mod gateway;
pub mod guard;
pub mod health;
pub mod hedge;
pub mod learning;
pub mod level;
pub mod log;
pub mod outcome;
pub mod outlier;
pub mod phase;
pub mod probes;
pub mod proxy;
pub mod relay;
pub mod reload;
pub mod request;
pub mod retry;
pub mod scan;
pub mod signal;
#[cfg(test)]
mod simulation;
pub mod snapshot;
pub mod split;
pub mod stream;
pub mod supervise;
pub mod telemetry;
pub mod tenant;
pub mod upstream;
pub mod wire;
