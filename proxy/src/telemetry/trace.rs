//! Traces of requests for OpenTelemetry: what each one waited for, and which endpoint was asked for it when.
//!
//! Why by hand and not by a tracer of the SDK: a span of ours is finished when the kernel has told its part, long after the
//! request, and the path of a request shall pay for what it says only when it is sampled. So a request that is traced
//! carries a [`Trace`], a plain record; when it has ended the record is put on a bounded queue, and another thread makes
//! spans of it and sends them. Of the SDK we use what is shared by all: its data, its sampling, its exporter.
//!
//! What it decides: whether a request is traced ([`context`]); that a trace never holds up or ends a request: what has no
//! room is dropped, what the collector does not take is lost, and both are counted.
//!
//! What it leaves out: what a span says (`spans`), and spans of calls that the proxy makes for itself.

mod collector;
pub mod context;
mod export;
mod record;
mod spans;
mod steps;

use std::{io, time::Duration};

use opentelemetry::SpanId;
use opentelemetry_sdk::trace::Sampler;
use outrigger_config::validated as config;
use rand::Rng;

use crate::{telemetry::metrics::Metrics, wire::Fields};
use context::{TRACEPARENT, TRACESTATE, decide, id, single};
use export::Exporter;
pub use record::{About, Ending, Finished, Trace, Why};

/// The longest `tracestate` that spans repeat, in bytes: what everybody passes on (W3C Trace Context, 3.3.1.5). A longer one is
/// passed on, too.
const LONGEST_STATE: usize = 512;

/// What traces requests, where that is configured.
pub struct Tracer {
    sampler: Sampler,
    exporter: Exporter,
}

impl Tracer {
    /// Traces by these settings, and begins to send.
    ///
    /// # Errors
    /// A header's value can not be read, or there is no thread to be had.
    pub fn start(settings: &config::Tracing, metrics: &Metrics) -> io::Result<Self> {
        let exporter = Exporter::start(settings, metrics.traces())?;
        Ok(Tracer { sampler: Sampler::TraceIdRatioBased(settings.sample), exporter })
    }

    /// The record of a request with these fields that has just come, if it is traced. What is sent on is of its trace.
    pub fn begin(&self, fields: &mut Fields, rng: &mut impl Rng) -> Option<Box<Trace>> {
        let parent = single(fields, TRACEPARENT).and_then(context::Parent::parse);
        let trace = decide(parent, &self.sampler, rng)?;
        let state = parent.and_then(|_| joined(fields, TRACESTATE));
        if parent.is_none() {
            fields.remove(TRACESTATE);
        }
        let parent = parent.map_or(SpanId::INVALID, |parent| parent.span);
        let trace = Trace::new(self.exporter.outbox(), trace, (id(rng), parent), state);
        trace.identify(fields);
        Some(Box::new(trace))
    }

    /// Sends what has come, at most for so long. Blocks the thread; returns whether all was sent or given up.
    #[must_use]
    pub fn finish(&self, limit: Duration) -> bool {
        self.exporter.finish(limit)
    }
}

/// The members of a list that may stand in several fields; `None` when there are none, or more than is told.
fn joined(fields: &Fields, name: &str) -> Option<Box<str>> {
    let values: Vec<&str> =
        fields.get_all(name).filter_map(|value| std::str::from_utf8(value).ok()).collect();
    let whole = values.join(",");
    (1..=LONGEST_STATE).contains(&whole.len()).then(|| whole.into())
}
