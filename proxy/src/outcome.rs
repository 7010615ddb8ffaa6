//! How a request ended: one closed list, from which everything else follows.
//!
//! Why: the status we answer, whether a client should try again, whether an endpoint is to blame,
//! the metric label and the log field must never disagree. So each is a function of [`Outcome`]
//! with one arm per variant: a new variant does not compile until all of them are answered.
//!
//! What it decides: the wording and the shape of our own error answers ([`error_body`]).
//!
//! What it leaves out: retries inside the proxy (they look at attempts, not at the end of a
//! request), and answers of the model server, which are passed on as they are.

use serde_json::json;

/// How a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum Outcome {
    /// The upstream answered with 1xx, 2xx or 3xx and the answer was passed on completely.
    Ok,
    /// The upstream answered with 4xx, passed on completely.
    ClientError,
    /// The upstream answered with 5xx, passed on completely.
    ServerError,
    /// A route answered by itself: a redirect or a fixed response.
    Local,
    /// Answered from store, without asking an endpoint.
    Stored,
    /// Answered from store because the live path failed.
    Fallback,
    /// Only a stored answer was wanted, and there is none.
    NotStored,
    /// No route matches the request.
    NoRoute,
    /// The request is malformed, or means different things to different readers.
    BadRequest,
    /// The request body is longer than `limits.body_bytes`.
    TooLarge,
    /// The request head is longer than `limits.header_bytes` or has too many fields.
    HeaderTooLarge,
    /// The request body is compressed in a way that is not read here.
    UnsupportedCoding,
    /// The method is not allowed here, such as `CONNECT`.
    MethodNotAllowed,
    /// The client was too slow with its request, or in reading the answer.
    ClientTimeout,
    /// The client went away before the end. Its status, 499, is only written to logs and metrics.
    ClientGone,
    /// No endpoint of the chosen arm is ready.
    NoEndpoint,
    /// The chosen arm fails as a whole, and its breaker lets nobody through.
    CircuitOpen,
    /// Every endpoint, the backend or the route has as many requests as it may have.
    Overloaded,
    /// As many requests wait for a place as may.
    QueueFull,
    /// It waited for a place for as long as it may.
    QueueTimeout,
    /// It was turned away at once: by a load level of its route, or because it would have waited for too long.
    Shed,
    /// Whoever sent it asks too often, or for too much.
    RateLimited,
    /// The proxy is about to stop and takes no new requests.
    Draining,
    /// No connection to an endpoint could be made.
    ConnectFailed,
    /// No connection to an endpoint could be made within the connect deadline.
    ConnectTimeout,
    /// The first byte of the answer did not come within its deadline.
    FirstByteTimeout,
    /// The answer paused for longer than the gap deadline. What was already sent is cut off.
    GapTimeout,
    /// The answer was not complete within the total deadline. What was already sent is cut off.
    TotalTimeout,
    /// The endpoint stopped working on everything it had.
    Stalled,
    /// The endpoint closed the connection before its answer was complete.
    UpstreamReset,
    /// The endpoint answered with something that is not HTTP, or against its rules.
    UpstreamInvalid,
    /// The drain timeout passed before the request was complete.
    DrainCut,
    /// An error of the proxy itself.
    Internal,
}

impl Outcome {
    /// Every outcome, in the order of declaration: `ALL[o.index()] == o`.
    pub const ALL: [Self; 33] = [
        Self::Ok,
        Self::ClientError,
        Self::ServerError,
        Self::Local,
        Self::Stored,
        Self::Fallback,
        Self::NotStored,
        Self::NoRoute,
        Self::BadRequest,
        Self::TooLarge,
        Self::HeaderTooLarge,
        Self::UnsupportedCoding,
        Self::MethodNotAllowed,
        Self::ClientTimeout,
        Self::ClientGone,
        Self::NoEndpoint,
        Self::CircuitOpen,
        Self::Overloaded,
        Self::QueueFull,
        Self::QueueTimeout,
        Self::Shed,
        Self::RateLimited,
        Self::Draining,
        Self::ConnectFailed,
        Self::ConnectTimeout,
        Self::FirstByteTimeout,
        Self::GapTimeout,
        Self::TotalTimeout,
        Self::Stalled,
        Self::UpstreamReset,
        Self::UpstreamInvalid,
        Self::DrainCut,
        Self::Internal,
    ];

    /// The place in [`Outcome::ALL`].
    #[must_use]
    pub const fn index(self) -> usize {
        self as usize
    }

    /// The outcome of an answer of the upstream that was passed on completely.
    #[must_use]
    pub const fn of_upstream_status(status: u16) -> Self {
        match status {
            400..=499 => Self::ClientError,
            500..=u16::MAX => Self::ServerError,
            0..=399 => Self::Ok,
        }
    }

    /// Whether an endpoint's answer was passed on completely.
    #[must_use]
    pub const fn is_of_upstream(self) -> bool {
        matches!(self, Self::Ok | Self::ClientError | Self::ServerError)
    }

    /// The name in metrics and logs.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::ClientError => "client_error",
            Self::ServerError => "server_error",
            Self::Local => "local",
            Self::Stored => "stored",
            Self::Fallback => "fallback",
            Self::NotStored => "not_stored",
            Self::NoRoute => "no_route",
            Self::BadRequest => "bad_request",
            Self::TooLarge => "too_large",
            Self::HeaderTooLarge => "header_too_large",
            Self::UnsupportedCoding => "unsupported_coding",
            Self::MethodNotAllowed => "method_not_allowed",
            Self::ClientTimeout => "client_timeout",
            Self::ClientGone => "client_gone",
            Self::NoEndpoint => "no_endpoint",
            Self::CircuitOpen => "circuit_open",
            Self::Overloaded => "overloaded",
            Self::QueueFull => "queue_full",
            Self::QueueTimeout => "queue_timeout",
            Self::Shed => "shed",
            Self::RateLimited => "rate_limited",
            Self::Draining => "draining",
            Self::ConnectFailed => "connect_failed",
            Self::ConnectTimeout => "connect_timeout",
            Self::FirstByteTimeout => "first_byte_timeout",
            Self::GapTimeout => "gap_timeout",
            Self::TotalTimeout => "total_timeout",
            Self::Stalled => "stalled",
            Self::UpstreamReset => "upstream_reset",
            Self::UpstreamInvalid => "upstream_invalid",
            Self::DrainCut => "drain_cut",
            Self::Internal => "internal",
        }
    }

    /// The status we answer when nothing was sent yet. `None` where the answer has its own.
    #[must_use]
    pub const fn status(self) -> Option<u16> {
        match self {
            Self::Ok
            | Self::ClientError
            | Self::ServerError
            | Self::Local
            | Self::Stored
            | Self::Fallback => None,
            Self::BadRequest => Some(400),
            Self::NoRoute => Some(404),
            Self::MethodNotAllowed => Some(405),
            Self::ClientTimeout => Some(408),
            Self::TooLarge => Some(413),
            Self::UnsupportedCoding => Some(415),
            Self::RateLimited => Some(429),
            Self::HeaderTooLarge => Some(431),
            Self::ClientGone => Some(499),
            Self::Internal => Some(500),
            Self::ConnectFailed | Self::UpstreamReset | Self::UpstreamInvalid => Some(502),
            Self::NoEndpoint
            | Self::CircuitOpen
            | Self::Overloaded
            | Self::QueueFull
            | Self::QueueTimeout
            | Self::Shed
            | Self::Draining
            | Self::DrainCut => Some(503),
            Self::NotStored
            | Self::ConnectTimeout
            | Self::FirstByteTimeout
            | Self::GapTimeout
            | Self::TotalTimeout
            | Self::Stalled => Some(504),
        }
    }

    /// Whether it speaks against the endpoint that was tried. The total deadline does not: a long
    /// answer is no fault.
    #[must_use]
    pub const fn is_endpoint_fault(self) -> bool {
        match self {
            Self::ServerError
            | Self::ConnectFailed
            | Self::ConnectTimeout
            | Self::FirstByteTimeout
            | Self::GapTimeout
            | Self::Stalled
            | Self::UpstreamReset
            | Self::UpstreamInvalid => true,
            Self::Ok
            | Self::ClientError
            | Self::Local
            | Self::Stored
            | Self::Fallback
            | Self::NotStored
            | Self::NoRoute
            | Self::BadRequest
            | Self::TooLarge
            | Self::HeaderTooLarge
            | Self::UnsupportedCoding
            | Self::MethodNotAllowed
            | Self::ClientTimeout
            | Self::ClientGone
            | Self::NoEndpoint
            | Self::CircuitOpen
            | Self::Overloaded
            | Self::QueueFull
            | Self::QueueTimeout
            | Self::Shed
            | Self::RateLimited
            | Self::Draining
            | Self::TotalTimeout
            | Self::DrainCut
            | Self::Internal => false,
        }
    }

    /// What our answer says in `x-should-retry`, which the official clients of model servers obey.
    /// `None`: say nothing.
    ///
    /// Yes where no model has worked on the request, or what has is gone, so that trying again
    /// costs no double work. No where it would end the same way, or where the model may still be
    /// busy with the first try.
    #[must_use]
    pub const fn should_retry(self) -> Option<bool> {
        match self {
            Self::Ok
            | Self::ClientError
            | Self::ServerError
            | Self::Local
            | Self::Stored
            | Self::Fallback
            | Self::ClientGone => None,
            Self::ClientTimeout
            | Self::NoEndpoint
            | Self::CircuitOpen
            | Self::Overloaded
            | Self::QueueFull
            | Self::QueueTimeout
            | Self::Shed
            | Self::RateLimited
            | Self::Draining
            | Self::ConnectFailed
            | Self::ConnectTimeout
            | Self::UpstreamReset
            | Self::DrainCut => Some(true),
            Self::NotStored
            | Self::NoRoute
            | Self::BadRequest
            | Self::TooLarge
            | Self::HeaderTooLarge
            | Self::UnsupportedCoding
            | Self::MethodNotAllowed
            | Self::FirstByteTimeout
            | Self::GapTimeout
            | Self::TotalTimeout
            | Self::Stalled
            | Self::UpstreamInvalid
            | Self::Internal => Some(false),
        }
    }

    /// Whether our answer carries `Retry-After`. Every 429, 503 and 504 does, and every answer that asks
    /// for another try: a client without a hint comes back at once and makes it worse.
    #[must_use]
    pub const fn wants_retry_after(self) -> bool {
        matches!(self.status(), Some(429 | 503 | 504))
            || (matches!(self.should_retry(), Some(true)) && matches!(self.status(), Some(502)))
    }

    /// The status of gRPC for it (its own numbers).
    #[must_use]
    pub const fn grpc_status(self) -> u8 {
        match self {
            Self::Ok | Self::Stored | Self::Fallback => 0,
            Self::ClientTimeout | Self::ClientGone => 1,
            Self::ClientError | Self::ServerError | Self::Local => 2,
            Self::BadRequest => 3,
            Self::NotStored
            | Self::ConnectTimeout
            | Self::FirstByteTimeout
            | Self::GapTimeout
            | Self::TotalTimeout
            | Self::Stalled => 4,
            Self::TooLarge | Self::HeaderTooLarge | Self::RateLimited => 8,
            Self::NoRoute | Self::MethodNotAllowed | Self::UnsupportedCoding => 12,
            Self::UpstreamInvalid | Self::Internal => 13,
            Self::NoEndpoint
            | Self::CircuitOpen
            | Self::Overloaded
            | Self::QueueFull
            | Self::QueueTimeout
            | Self::Shed
            | Self::Draining
            | Self::ConnectFailed
            | Self::UpstreamReset
            | Self::DrainCut => 14,
        }
    }

    /// What happened and what to do about it, for the client.
    #[must_use]
    pub const fn message(self) -> &'static str {
        match self {
            Self::Ok => "The request was answered.",
            Self::ClientError => "The model server refused the request.",
            Self::ServerError => "The model server failed.",
            Self::Local => "The route answered by itself.",
            Self::Stored => "The request was answered from store.",
            Self::Fallback => "The request was answered from store in place of an error.",
            Self::NotStored => {
                "Only a stored answer was asked for, and there is none. Ask without only-if-cached."
            }
            Self::NoRoute => "No route matches this request. Check host, path, method and model.",
            Self::BadRequest => "The request is malformed or ambiguous. Correct it and send again.",
            Self::TooLarge => "The request body is larger than allowed here. Send a shorter one.",
            Self::HeaderTooLarge => "The request head is larger than allowed. Send fewer headers.",
            Self::UnsupportedCoding => {
                "The request body is compressed in a way that is not read here. Use one of accept-encoding."
            }
            Self::MethodNotAllowed => "This method is not allowed here. Use another one.",
            Self::ClientTimeout => "The request did not arrive in time. Send it again.",
            Self::ClientGone => "The client closed the connection before the answer was complete.",
            Self::NoEndpoint => "No model server is ready for this request. Try again shortly.",
            Self::CircuitOpen => {
                "The model servers of this request are failing and left alone for a moment. Try again then."
            }
            Self::Overloaded => "All model servers are busy. Try again shortly.",
            Self::QueueFull => "All model servers are busy and many wait. Try again shortly.",
            Self::QueueTimeout => "No model server became free in time. Try again shortly.",
            Self::Shed => "There are more requests than can be served in time. Try again shortly.",
            Self::RateLimited => "Requests come faster than is allowed. Slow down.",
            Self::Draining => "This instance is shutting down. Try again on a new connection.",
            Self::ConnectFailed => "The model server could not be reached. Try again shortly.",
            Self::ConnectTimeout => {
                "The model server did not accept a connection in time. Try again shortly."
            }
            Self::FirstByteTimeout => {
                "The model server did not begin its answer in time. It may still be working: \
                 do not repeat the request at once."
            }
            Self::GapTimeout => {
                "The model server stopped in the middle of its answer. Ask for less, or later."
            }
            Self::TotalTimeout => {
                "The answer was not complete in the time allowed. Ask for a shorter one."
            }
            Self::Stalled => {
                "The model server has stopped working. It may go on: do not repeat the request at once."
            }
            Self::UpstreamReset => {
                "The model server closed the connection before its answer was complete. Try again shortly."
            }
            Self::UpstreamInvalid => {
                "The model server's answer was not valid HTTP. Report it to the operator."
            }
            Self::DrainCut => {
                "This instance shut down before the answer was complete. Try again on a new \
                 connection."
            }
            Self::Internal => "The proxy failed. Report it to the operator.",
        }
    }
}

impl std::fmt::Display for Outcome {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(self.as_str())
    }
}

/// The shape of an error answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorFormat {
    /// `{"error": {"message", "type", "param", "code"}}`, as clients of LLM interfaces expect it.
    OpenAi,
    /// RFC 9457, `application/problem+json`.
    Problem,
}

/// The content type and the body of our error answer. `detail` is a phrase without a full stop, or
/// empty; it and the id appear in the body, so neither may hold a secret. An outcome without a
/// status of its own counts as 500.
#[must_use]
pub fn error_body(
    format: ErrorFormat,
    outcome: Outcome,
    detail: &str,
    request_id: &str,
) -> (&'static str, String) {
    let mut message = outcome.message().to_owned();
    if !detail.is_empty() {
        message = format!("{message} Cause: {detail}.");
    }
    let status = outcome.status().unwrap_or(500);
    match format {
        ErrorFormat::OpenAi => {
            let kind = match status {
                429 => "rate_limit_error",
                500.. => "server_error",
                _ => "invalid_request_error",
            };
            let body = json!({"error": {
                "message": format!("{message} (request {request_id})"),
                "type": kind,
                "param": null,
                "code": outcome.as_str(),
            }});
            ("application/json", body.to_string())
        }
        ErrorFormat::Problem => {
            let body = json!({
                "type": "about:blank",
                "title": title(outcome),
                "status": status,
                "detail": message,
                "outcome": outcome.as_str(),
                "request_id": request_id,
            });
            ("application/problem+json", body.to_string())
        }
    }
}

/// The phrase of the status, as RFC 9457 asks for where `type` is `about:blank`.
const fn title(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::BadRequest => "Bad Request",
        Outcome::NoRoute => "Not Found",
        Outcome::MethodNotAllowed => "Method Not Allowed",
        Outcome::ClientTimeout => "Request Timeout",
        Outcome::TooLarge => "Content Too Large",
        Outcome::UnsupportedCoding => "Unsupported Media Type",
        Outcome::HeaderTooLarge => "Request Header Fields Too Large",
        Outcome::ClientGone => "Client Closed Request",
        Outcome::ConnectFailed | Outcome::UpstreamReset | Outcome::UpstreamInvalid => "Bad Gateway",
        Outcome::RateLimited => "Too Many Requests",
        Outcome::NoEndpoint
        | Outcome::CircuitOpen
        | Outcome::Overloaded
        | Outcome::QueueFull
        | Outcome::QueueTimeout
        | Outcome::Shed
        | Outcome::Draining
        | Outcome::DrainCut => "Service Unavailable",
        Outcome::NotStored
        | Outcome::ConnectTimeout
        | Outcome::FirstByteTimeout
        | Outcome::GapTimeout
        | Outcome::TotalTimeout
        | Outcome::Stalled => "Gateway Timeout",
        Outcome::Ok
        | Outcome::ClientError
        | Outcome::ServerError
        | Outcome::Local
        | Outcome::Stored
        | Outcome::Fallback
        | Outcome::Internal => "Internal Server Error",
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use serde_json::Value;

    use super::*;

    #[test]
    fn all_lists_every_outcome_in_order_under_its_own_name() {
        for (index, outcome) in Outcome::ALL.into_iter().enumerate() {
            assert_eq!(outcome.index(), index);
            let debug = format!("{outcome:?}").to_lowercase();
            assert_eq!(outcome.as_str().replace('_', ""), debug);
        }
        // `Internal` is declared last: if the list were short, its index would lie outside.
        assert_eq!(Outcome::Internal.index() + 1, Outcome::ALL.len());
        let names: HashSet<_> = Outcome::ALL.map(Outcome::as_str).into();
        assert_eq!(names.len(), Outcome::ALL.len());
    }

    #[test]
    fn hints_agree_with_the_status() {
        for outcome in Outcome::ALL {
            let status = outcome.status();
            let is_sent = status.is_some_and(|code| code != 499);
            assert_eq!(outcome.should_retry().is_some(), is_sent, "{outcome}");
            if matches!(status, Some(429 | 503 | 504)) {
                assert!(outcome.wants_retry_after(), "{outcome}");
            }
            if matches!(status, Some(400..=407 | 409..=428 | 430..=499)) {
                assert_ne!(outcome.should_retry(), Some(true), "{outcome}");
                assert!(!outcome.is_endpoint_fault(), "{outcome}");
            }
            if matches!(status, Some(503)) {
                assert_eq!(outcome.should_retry(), Some(true), "{outcome}");
            }
        }
        assert!(Outcome::ConnectFailed.wants_retry_after());
        assert!(!Outcome::UpstreamInvalid.wants_retry_after());
        assert!(Outcome::ServerError.is_endpoint_fault());
        assert!(!Outcome::TotalTimeout.is_endpoint_fault());
    }

    #[test]
    fn grpc_is_told_what_the_status_says() {
        for outcome in Outcome::ALL {
            let grpc = outcome.grpc_status();
            assert_eq!(outcome.status() == Some(504), grpc == 4, "{outcome}");
            assert_eq!(
                matches!(outcome.status(), Some(503)),
                grpc == 14 && outcome.status() != Some(502),
                "{outcome}"
            );
            let good = matches!(outcome, Outcome::Ok | Outcome::Stored | Outcome::Fallback);
            assert_eq!(good, grpc == 0, "{outcome}");
        }
    }

    #[test]
    fn the_upstream_status_gives_the_outcome() {
        for (status, outcome) in [
            (101, Outcome::Ok),
            (304, Outcome::Ok),
            (399, Outcome::Ok),
            (400, Outcome::ClientError),
            (499, Outcome::ClientError),
            (500, Outcome::ServerError),
            (999, Outcome::ServerError),
        ] {
            assert_eq!(Outcome::of_upstream_status(status), outcome);
        }
    }

    #[test]
    fn messages_are_sentences() {
        for outcome in Outcome::ALL {
            let message = outcome.message();
            assert!(message.ends_with('.') && !message.contains("  "), "{message}");
        }
    }

    #[test]
    fn the_openai_shape() {
        let (media, body) =
            error_body(ErrorFormat::OpenAi, Outcome::NoEndpoint, "0 of 2 in \"stable\"", "r-1");
        let body: Value = serde_json::from_str(&body).expect("JSON");
        assert_eq!(media, "application/json");
        let expected = json!({"error": {
            "message": "No model server is ready for this request. Try again shortly. \
                        Cause: 0 of 2 in \"stable\". (request r-1)",
            "type": "server_error", "param": null, "code": "no_endpoint"}});
        assert_eq!(body, expected);
    }

    #[test]
    fn the_problem_shape() {
        let (media, body) = error_body(ErrorFormat::Problem, Outcome::TooLarge, "", "r-2");
        let body: Value = serde_json::from_str(&body).expect("JSON");
        assert_eq!(media, "application/problem+json");
        let expected = json!({
            "type": "about:blank", "title": "Content Too Large", "status": 413,
            "detail": "The request body is larger than allowed here. Send a shorter one.",
            "outcome": "too_large", "request_id": "r-2"});
        assert_eq!(body, expected);
    }

    #[test]
    fn hostile_text_stays_inside_its_string() {
        let hostile = "\"}\u{1b}[2J\n<script>";
        for format in [ErrorFormat::OpenAi, ErrorFormat::Problem] {
            for outcome in Outcome::ALL {
                let (_, body) = error_body(format, outcome, hostile, hostile);
                let parsed: Value = serde_json::from_str(&body).expect("JSON");
                assert!(parsed.is_object() && !body.contains(['\u{1b}', '\n']), "{body}");
            }
        }
    }
}
