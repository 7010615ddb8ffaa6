//! The collector, as the exporter of OpenTelemetry sees it: one that takes a request and gives an answer, over our own
//! HTTP.
//!
//! A connection for each message: there is one in a second or so, and none that rests can turn out closed. What it leaves
//! out: how long that may take, and whether it is tried again, which are the exporter's.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
};

use async_trait::async_trait;
use bytes::Bytes;
use http::{Request, Response, header::HOST};
use opentelemetry_http::{HttpClient, HttpError};
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceResponse;
use outrigger_config::validated::{self as config, Protocol};
use parking_lot::Mutex;
use prost::Message;
use tokio::net::lookup_host;

use crate::{
    upstream::{
        connect::fresh,
        fetch::{Fetched, fetch},
    },
    wire::{BodyLength, Fields, RequestHead, Upstream},
};

/// The most that an answer may have; it says how many spans were not taken, and why.
const MAX_ANSWER: usize = 64 << 10;

/// The most of its words that is repeated in the log.
const MAX_WORDS: usize = 200;

/// What the collector said beside the status of its answers, since that was last asked for.
#[derive(Default)]
pub(super) struct Said {
    rejected: AtomicUsize,
    trouble: Mutex<Option<String>>,
}

impl Said {
    /// Spans that it did not take from messages that it took.
    pub(super) fn take_rejected(&self) -> usize {
        self.rejected.swap(0, Relaxed)
    }

    /// What went wrong.
    pub(super) fn take_trouble(&self) -> Option<String> {
        self.trouble.lock().take()
    }

    fn answered(&self, answer: &Fetched) {
        if !(200..300).contains(&answer.status) {
            *self.trouble.lock() = Some(format!("it answers {}", answer.status));
            return;
        }
        // What is no such message is as good as none: the status has said that all is well.
        let message = ExportTraceServiceResponse::decode(answer.body.clone()).unwrap_or_default();
        let Some(part) = message.partial_success else { return };
        let rejected = usize::try_from(part.rejected_spans).unwrap_or(0);
        self.rejected.fetch_add(rejected, Relaxed);
        if !part.error_message.is_empty() {
            let words: String = part.error_message.chars().take(MAX_WORDS).collect();
            tracing::warn!(rejected, "traces: the collector says: {words:?}");
        }
    }
}

/// Where messages are posted.
pub(super) struct Collector {
    place: config::Collector,
    said: Arc<Said>,
}

impl Collector {
    pub(super) fn new(place: config::Collector, said: Arc<Said>) -> Self {
        Collector { place, said }
    }

    async fn post(&self, request: &Request<Bytes>) -> Result<Fetched, String> {
        let mut upstream = self.connect().await?;
        let (head, body) = (self.head(request), request.body().clone());
        fetch(&mut upstream, &head, body, MAX_ANSWER).await.map_err(|error| error.to_string())
    }

    /// A connection to the first of its addresses that takes one.
    async fn connect(&self) -> Result<Upstream, String> {
        let authority = self.place.authority();
        let found = lookup_host(&authority).await;
        let addresses = found.map_err(|error| format!("can not look up {authority}: {error}"))?;
        let mut trouble = format!("{authority} has no address");
        for address in addresses {
            match fresh(address, Protocol::Http1, None).await {
                Ok(upstream) => return Ok(upstream),
                Err(error) => trouble = format!("can not connect to {address}: {error}"),
            }
        }
        Err(trouble)
    }

    fn head(&self, request: &Request<Bytes>) -> RequestHead {
        let mut fields = Fields::new();
        fields.append("host", self.place.authority());
        let agent = concat!("outrigger/", env!("CARGO_PKG_VERSION"), " (traces)");
        fields.append("user-agent", agent);
        for (name, value) in request.headers() {
            if name != HOST {
                fields.set(name.as_str(), value.as_bytes());
            }
        }
        let length = request.body().len() as u64;
        fields.set("content-length", length.to_string());
        let method = request.method().clone();
        let mut head = RequestHead::for_target(method, fields, &self.place.path, 11);
        head.body = BodyLength::Exact(length);
        head
    }
}

impl fmt::Debug for Collector {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "Collector({})", self.place)
    }
}

#[async_trait]
impl HttpClient for Collector {
    async fn send_bytes(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let answer = match self.post(&request).await {
            Ok(answer) => answer,
            Err(error) => {
                *self.said.trouble.lock() = Some(error.clone());
                return Err(error.into());
            }
        };
        self.said.answered(&answer);
        let mut response = Response::builder().status(answer.status);
        if let Some(after) = answer.fields.get("retry-after") {
            response = response.header("retry-after", after);
        }
        Ok(response.body(answer.body)?)
    }
}
