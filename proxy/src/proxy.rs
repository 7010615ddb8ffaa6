//! What every request and every background job shares.

use std::sync::Arc;

use arc_swap::ArcSwap;
use tokio::sync::Notify;

use crate::{
    drain::Drain,
    endpoint::Registry,
    probes::Probes,
    reload::ReloadState,
    snapshot::Snapshot,
    telemetry::{access_log::AccessLog, metrics::Metrics, trace::Tracer},
};

/// One running proxy. Nothing is global, so that a test can have two.
pub struct Proxy {
    /// The configuration in force.
    pub snapshot: ArcSwap<Snapshot>,
    /// Told after the configuration was replaced.
    pub snapshot_changed: Notify,
    /// Every endpoint.
    pub registry: Arc<Registry>,
    /// Every metric.
    pub metrics: Metrics,
    /// One line per request.
    pub access_log: AccessLog,
    /// What traces requests, where that is configured.
    pub tracer: Option<Tracer>,
    /// What the kernel is asked.
    pub probes: Arc<Probes>,
    /// The shutdown.
    pub drain: Arc<Drain>,
    /// How the last reload went.
    pub reload: ReloadState,
}
