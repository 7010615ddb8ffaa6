//! Load reports on answers (ORCA), for clients that ask for one by `endpoint-load-metrics-format`.
//!
//! As vLLM writes them: the engine's load at that moment under `named_metrics`, as `TEXT` or `JSON`; no other format is
//! known. The answers of the model server have one, in the header or, which vLLM does not do and gRPC servers do, in the
//! trailers.

use std::sync::Arc;

use http::header::TRAILER;
use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue, Response};
use http_body_util::BodyExt;

use super::body::SimBody;
use super::context::Context;
use super::options::Reports;

const FORMAT: &str = "endpoint-load-metrics-format";
const REPORT: HeaderName = HeaderName::from_static("endpoint-load-metrics");

/// A report that a client has asked for.
pub(crate) struct Wanted {
    context: Arc<Context>,
    json: bool,
}

impl Wanted {
    /// What the request asks for; none when the simulator does not report, or not on this.
    pub(crate) fn by(request: &Parts, context: &Arc<Context>) -> Option<Self> {
        let format = request.headers.get(FORMAT)?.to_str().ok()?;
        let json = match format {
            "text" => false,
            "json" => true,
            _ => return None,
        };
        let reports = context.options.reports != Reports::Never;
        let generates = request.uri.path().starts_with("/v1/");
        (reports && generates).then(|| Self { context: Arc::clone(context), json })
    }

    /// Adds the report to the answer.
    pub(crate) fn add(self, mut response: Response<SimBody>) -> Response<SimBody> {
        if self.context.options.reports == Reports::Header {
            response.headers_mut().extend(self.fields());
            return response;
        }
        // Without this hyper sends no trailers over HTTP/1.
        response.headers_mut().insert(TRAILER, HeaderValue::from_static("endpoint-load-metrics"));
        response.map(|body| {
            let fields = async move { Some(Ok(self.fields())) };
            body.with_trailers(fields).boxed_unsync()
        })
    }

    /// The report at this moment.
    fn fields(&self) -> HeaderMap {
        let load = self.context.pace.load();
        let (running, waiting, usage) = (load.running, load.waiting, load.kv_usage());
        let text = match self.json {
            true => format!(
                r#"JSON {{"named_metrics":{{"num_requests_running":{running},"num_requests_waiting":{waiting},"kv_cache_usage_perc":{usage}}}}}"#
            ),
            false => format!(
                "TEXT named_metrics.num_requests_running={running}, \
                 named_metrics.num_requests_waiting={waiting}, named_metrics.kv_cache_usage_perc={usage}"
            ),
        };
        HeaderValue::try_from(text).into_iter().map(|value| (REPORT, value)).collect()
    }
}
