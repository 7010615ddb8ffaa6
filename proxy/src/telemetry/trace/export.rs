//! The way of records to the collector: a bounded queue, and a thread that makes spans of what has gathered and sends them.
//!
//! A thread of its own, as the access log has: making and encoding spans is work that must delay neither traffic nor a
//! scrape, and the last of them come when the server and its runtimes have ended.
//!
//! What it decides: a full queue drops the newest record; a batch is sent for as long as `timeout` says, with the tries that
//! OTLP allows, and then lost; one batch is under way at a time, so a collector that is slow fills the queue and no memory.
//! The thread looks every second, or when half a batch of records waits. Trouble is said once, when it begins and ends.

use std::{
    collections::HashMap,
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::SeqCst},
        mpsc::{Receiver, RecvTimeoutError, Sender, channel},
    },
    thread::Builder,
    time::Duration,
};

use crossbeam_queue::ArrayQueue;
use opentelemetry::{InstrumentationScope, KeyValue};
use opentelemetry_otlp::{Protocol, SpanExporter, WithExportConfig, WithHttpConfig};
use opentelemetry_sdk::{
    Resource,
    resource::EnvResourceDetector,
    trace::{SpanData, SpanExporter as _},
};
use outrigger_config::validated as config;
use parking_lot::Mutex;
use rand::rngs::SmallRng;
use tokio::sync::Notify;

use super::{
    collector::{Collector, Said},
    record::Finished,
    spans::{count, spans},
};
use crate::{
    chance,
    telemetry::metrics::{SpanResult, TraceMetrics},
};

/// Spans of one message: what the SDKs of OpenTelemetry send at once.
const BATCH: usize = 512;

/// So many records that wait have the thread look early; a request has a handful of spans.
const HIGH_WATER: usize = 64;

/// How long records gather.
const LINGER: Duration = Duration::from_secs(1);

/// What the path of a request and the thread share.
pub(super) struct Outbox {
    queue: ArrayQueue<Box<Finished>>,
    metrics: Arc<TraceMetrics>,
    wake: Notify,
    stop: AtomicBool,
}

impl Outbox {
    /// With room for so many requests.
    pub(super) fn new(room: usize, metrics: Arc<TraceMetrics>) -> Self {
        let (queue, wake) = (ArrayQueue::new(room), Notify::new());
        Outbox { queue, metrics, wake, stop: AtomicBool::new(false) }
    }

    /// Has the spans of a request sent. Never waits.
    pub(super) fn put(&self, finished: Box<Finished>) {
        if let Err(finished) = self.queue.push(finished) {
            self.metrics.spans(SpanResult::Dropped, count(&finished));
        }
        // Not each time: a word that was said is heard, however much comes meanwhile.
        if self.queue.len().is_multiple_of(HIGH_WATER) {
            self.wake.notify_one();
        }
    }
}

/// The thread, from outside.
pub(super) struct Exporter {
    outbox: Arc<Outbox>,
    /// Hears when the thread has ended.
    ended: Mutex<Receiver<()>>,
}

impl Exporter {
    pub(super) fn start(
        settings: &config::Tracing,
        metrics: Arc<TraceMetrics>,
    ) -> io::Result<Self> {
        let outbox = Arc::new(Outbox::new(settings.queue, metrics));
        let said = Arc::new(Said::default());
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (end, ended) = channel();
        let postman = Postman {
            outbox: Arc::clone(&outbox),
            exporter: exporter(settings, Arc::clone(&said))?,
            said,
            timeout: settings.timeout,
            scope: InstrumentationScope::builder("outrigger")
                .with_version(env!("CARGO_PKG_VERSION"))
                .build(),
            rng: chance::rng(),
            is_failing: false,
            _end: end,
        };
        let run = move || runtime.block_on(postman.run());
        Builder::new().name("traces".to_owned()).spawn(run)?;
        Ok(Exporter { outbox, ended: Mutex::new(ended) })
    }

    pub(super) fn outbox(&self) -> Arc<Outbox> {
        Arc::clone(&self.outbox)
    }

    pub(super) fn finish(&self, limit: Duration) -> bool {
        self.outbox.stop.store(true, SeqCst);
        self.outbox.wake.notify_one();
        // Nothing is ever sent there: it is closed when the thread ends.
        self.ended.lock().recv_timeout(limit) == Err(RecvTimeoutError::Disconnected)
    }
}

fn exporter(settings: &config::Tracing, said: Arc<Said>) -> io::Result<SpanExporter> {
    let mut headers = HashMap::new();
    for (name, value) in &settings.headers {
        let value = value.read();
        let wrong =
            |error| io::Error::other(format!("the header {name} for the collector: {error}"));
        headers.insert(name.clone(), value.map_err(wrong)?);
    }
    let mut exporter = SpanExporter::builder()
        .with_http()
        .with_http_client(Collector::new(settings.endpoint.clone(), said))
        .with_headers(headers)
        .with_protocol(Protocol::HttpBinary)
        .with_endpoint(settings.endpoint.to_string())
        .with_timeout(settings.timeout)
        .build()
        .map_err(io::Error::other)?;
    exporter.set_resource(&resource(settings));
    Ok(exporter)
}

/// What is told of the proxy: what the environment says by the custom of OpenTelemetry, and above it what the file says.
fn resource(settings: &config::Tracing) -> Resource {
    let attributes = settings.attributes.iter();
    Resource::builder_empty()
        .with_detector(Box::new(EnvResourceDetector::new()))
        .with_attribute(KeyValue::new("service.version", env!("CARGO_PKG_VERSION")))
        .with_attributes(attributes.map(|(name, value)| KeyValue::new(name.clone(), value.clone())))
        .with_service_name(settings.service_name.clone())
        .build()
}

/// The thread, from inside.
struct Postman {
    outbox: Arc<Outbox>,
    exporter: SpanExporter,
    said: Arc<Said>,
    timeout: Duration,
    scope: InstrumentationScope,
    rng: SmallRng,
    is_failing: bool,
    _end: Sender<()>,
}

impl Postman {
    async fn run(mut self) {
        loop {
            let _ = tokio::time::timeout(LINGER, self.outbox.wake.notified()).await;
            // Whoever says stop has put its last record before.
            let stops = self.outbox.stop.load(SeqCst);
            while let Some(batch) = self.gather() {
                self.send(batch).await;
            }
            if stops {
                return;
            }
        }
    }

    /// The spans of the next records, about as many as a message has.
    fn gather(&mut self) -> Option<Vec<SpanData>> {
        let mut batch = Vec::new();
        while batch.len() < BATCH {
            let Some(finished) = self.outbox.queue.pop() else { break };
            batch.extend(spans(&finished, &self.scope, &mut self.rng));
        }
        (!batch.is_empty()).then_some(batch)
    }

    async fn send(&mut self, batch: Vec<SpanData>) {
        let all = batch.len();
        let sent = tokio::time::timeout(self.timeout, self.exporter.export(batch)).await;
        let metrics = &self.outbox.metrics;
        let trouble = match sent {
            Ok(Ok(())) => {
                let rejected = self.said.take_rejected().min(all);
                metrics.spans(SpanResult::Rejected, rejected);
                metrics.spans(SpanResult::Exported, all - rejected);
                None
            }
            Ok(Err(error)) => Some(self.said.take_trouble().unwrap_or_else(|| error.to_string())),
            Err(_) => Some(format!("no answer within {:?}", self.timeout)),
        };
        if trouble.is_some() {
            metrics.spans(SpanResult::Failed, all);
        }
        self.tell(trouble.as_deref());
    }

    fn tell(&mut self, trouble: Option<&str>) {
        match (trouble, self.is_failing) {
            (Some(error), false) => {
                tracing::warn!("traces: the collector does not get them: {error}");
            }
            (None, true) => tracing::info!("traces: the collector gets them again"),
            _ => {}
        }
        self.is_failing = trouble.is_some();
    }
}
