//! What the client is told: an endpoint's response with our edits, a local answer, or why there is none.

use std::{
    future::poll_fn,
    task::Poll,
    time::{Duration, Instant, SystemTime},
};

use bytes::Bytes;
use outrigger_config::{units::format_duration, validated as config};

use super::forward::{append_via, edit};
use crate::{
    clock,
    compress::{self, Encoder},
    deadline::{Expiry, Next, Watchdog},
    outcome::{ErrorFormat, Outcome, error_body},
    probes::Timeline,
    request::{Failure, Request, Retry},
    snapshot::Route,
    stream::Kind,
    wire::{BodyLength, Downstream, Fields, Frame, ResponseHead, Side, hop::strip_hop_by_hop},
};

/// When to come back where nothing is known of how long it will last: the least that the field can say.
const RETRY_AFTER: Duration = Duration::from_secs(1);
/// How much there is, how much is left, and when all of it is there again; of requests and of tokens.
const RATE_FIELDS: [[&str; 3]; 2] = [
    ["x-ratelimit-limit-requests", "x-ratelimit-remaining-requests", "x-ratelimit-reset-requests"],
    ["x-ratelimit-limit-tokens", "x-ratelimit-remaining-tokens", "x-ratelimit-reset-tokens"],
];
/// How long a client may take to read why its response broke off.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// Turns the head of an endpoint's response into the one that the client gets.
pub fn prepare(head: &mut ResponseHead, request: &Request, route: &Route) {
    let switch =
        (head.status == 101).then(|| head.fields.get("upgrade").map(<[u8]>::to_vec)).flatten();
    strip_hop_by_hop(&mut head.fields);
    if let Some(protocol) = switch {
        head.fields.append("upgrade", protocol);
    }
    append_via(&mut head.fields, head.version);
    tell_rates(&mut head.fields, request);
    edit(&mut head.fields, &route.settings.rewrite.response_headers);
    expose(&mut head.fields, request, &route.settings.expose);
}

/// Decides whether the response is compressed, and edits its head accordingly.
pub fn pack(head: &mut ResponseHead, request: &Request, route: &Route) -> Option<Encoder> {
    let settings = route.settings.compress.as_ref()?;
    let plan = compress::plan(settings, &request.head, head);
    // Without memory for an encoder it goes as it came.
    let encoder = plan.encoder().ok()?;
    plan.apply(head);
    encoder
}

fn expose(fields: &mut Fields, request: &Request, expose: &config::Expose) {
    if let (true, Some(backend)) = (expose.arm, &request.arm) {
        fields.set("x-outrigger-arm", backend.name.as_bytes());
    }
    if let (true, Some(endpoint)) = (expose.endpoint, &request.trail.endpoint) {
        fields.set("x-outrigger-endpoint", &endpoint.name);
    }
    if expose.attempts {
        fields.set("x-outrigger-attempts", request.trail.attempts.to_string());
    }
    if expose.timing {
        fields.append("server-timing", server_timing(request, clock::now()));
    }
}

fn server_timing(request: &Request, now: Instant) -> String {
    let millis = |d: Duration| d.as_secs_f64() * 1e3;
    let total = millis(now.duration_since(request.start));
    let app = seen_so_far(request);
    let seen = |step: fn(&Timeline) -> Option<Duration>| app.as_ref().and_then(step);
    let parts = [
        ("queue", request.trail.queued),
        ("connect", request.trail.connect),
        ("wire", seen(Timeline::wire)),
        ("socket", seen(Timeline::socket_wait)),
        ("app", seen(Timeline::first_byte)),
    ];
    let mut text = String::new();
    for (name, part) in parts {
        if let Some(part) = part {
            text += &format!("{name};dur={:.2}, ", millis(part));
        }
    }
    text + &format!("upstream;dur={total:.2}")
}

/// What the kernel saw of a request whose answer has begun, where it is followed. Its first write may not be seen yet.
fn seen_so_far(request: &Request) -> Option<Timeline> {
    let follower = request.trail.endpoint.as_ref()?.follower.as_ref()?;
    follower.so_far(request.trail.followed.as_ref()?)
}

/// How its allowances stand, by the names that clients of the OpenAI interface know.
fn tell_rates(fields: &mut Fields, request: &Request) {
    let Some(standing) = request.admitted.standing() else { return };
    let kinds = [(standing.requests, RATE_FIELDS[0]), (standing.tokens, RATE_FIELDS[1])];
    for (standing, [limit, remaining, reset]) in kinds {
        let Some(standing) = standing else { continue };
        fields.set(limit, standing.limit.to_string());
        fields.set(remaining, standing.remaining.to_string());
        let millis = standing.full_in.as_nanos().div_ceil(1_000_000);
        let full_in = Duration::from_millis(u64::try_from(millis).unwrap_or(u64::MAX));
        fields.set(reset, format_duration(full_in));
    }
}

/// Answers with what the route says.
///
/// # Errors
/// [`Outcome::ClientGone`].
pub async fn local(
    request: &mut Request,
    client: &mut Downstream<'_>,
    watchdog: &mut Watchdog,
    action: &config::Action,
) -> Result<Outcome, Failure> {
    let (mut head, body) = match action {
        config::Action::Redirect(redirect) => {
            let mut head = ResponseHead::new(redirect.status);
            head.fields.append("location", &redirect.to);
            (head, Bytes::new())
        }
        config::Action::Respond(respond) => {
            let mut head = ResponseHead::new(respond.status);
            for (name, value) in &respond.headers {
                head.fields.append(name, value);
            }
            (head, Bytes::copy_from_slice(respond.body.as_bytes()))
        }
        config::Action::Split(_) => return Ok(Outcome::Internal),
    };
    head.fields.append("date", httpdate::fmt_http_date(SystemTime::now()));
    send(request, client, watchdog, head, body).await?;
    Ok(Outcome::Local)
}

/// Tells the client why there is no response, if it can still be told.
pub async fn failure(
    request: &mut Request,
    client: &mut Downstream<'_>,
    watchdog: &mut Watchdog,
    failure: &Failure,
) {
    if failure.outcome == Outcome::ClientGone {
        return client.close_after_response();
    }
    let Some(status) = failure.outcome.status().filter(|_| !client.head_sent()) else {
        return break_off(request, client, watchdog, failure).await;
    };
    if request.is_grpc() {
        return grpc_failure(request, client, watchdog, failure).await;
    }
    let (content_type, body) =
        error_body(request.error_format(), failure.outcome, &failure.detail, &request.id);
    let mut head = ResponseHead::new(status);
    head.fields.append("content-type", content_type);
    head.fields.append("date", httpdate::fmt_http_date(SystemTime::now()));
    head.fields.append("x-request-id", &request.id);
    if failure.outcome == Outcome::UnsupportedCoding {
        head.fields.append("accept-encoding", compress::decode::ACCEPTED);
    }
    tell_rates(&mut head.fields, request);
    tell_retry(&mut head.fields, failure);
    // A client that does not take its error is gone; the outcome stays what it was.
    let _ = send(request, client, watchdog, head, body.into()).await;
}

/// The same to a client of gRPC: the status is in the head, which is all there is.
async fn grpc_failure(
    request: &mut Request,
    client: &mut Downstream<'_>,
    watchdog: &mut Watchdog,
    failure: &Failure,
) {
    let mut head = ResponseHead::new(200);
    head.fields.append("content-type", "application/grpc");
    tell_grpc(&mut head.fields, failure);
    match failure.retry {
        // What is below zero says no.
        Some(Retry::Never) => head.fields.append("grpc-retry-pushback-ms", "-1"),
        _ if !failure.outcome.wants_retry_after() => {}
        Some(Retry::After(after)) => {
            head.fields.append("grpc-retry-pushback-ms", whole_millis(after).to_string());
        }
        None => {
            head.fields.append("grpc-retry-pushback-ms", whole_millis(RETRY_AFTER).to_string());
        }
    }
    head.fields.append("x-request-id", &request.id);
    let _ = send(request, client, watchdog, head, Bytes::new()).await;
}

/// The status and the message of gRPC.
fn tell_grpc(fields: &mut Fields, failure: &Failure) {
    fields.append("grpc-status", failure.outcome.grpc_status().to_string());
    fields.append_with("grpc-message", |out| {
        let words = failure.outcome.message().bytes().chain(*b" Cause: ");
        for byte in words.chain(failure.detail.bytes()) {
            match byte {
                b' '..=b'~' if byte != b'%' => out.push(byte),
                _ => out.extend_from_slice(format!("%{byte:02X}").as_bytes()),
            }
        }
    });
}

/// Never too early.
fn whole_millis(after: Duration) -> u128 {
    after.as_nanos().div_ceil(1_000_000)
}

/// Whether and when to try again. What is known in milliseconds is told so too, to the clients that read it.
fn tell_retry(fields: &mut Fields, failure: &Failure) {
    let outcome = failure.outcome;
    let never = failure.retry == Some(Retry::Never);
    if let Some(retry) = outcome.should_retry() {
        fields.append("x-should-retry", if retry && !never { "true" } else { "false" });
    }
    if never || !outcome.wants_retry_after() {
        return;
    }
    let known = match failure.retry {
        Some(Retry::After(after)) => Some(after),
        Some(Retry::Never) | None => None,
    };
    let seconds = known.unwrap_or(RETRY_AFTER).as_nanos().div_ceil(1_000_000_000).max(1);
    fields.append("retry-after", seconds.to_string());
    if let Some(known) = known {
        fields.append("retry-after-ms", whole_millis(known).to_string());
    }
}

/// The response has begun and can not be completed: an event stream and gRPC say so in their own words, everything ends so
/// that nobody takes it for complete.
async fn break_off(
    request: &mut Request,
    client: &mut Downstream<'_>,
    watchdog: &mut Watchdog,
    failure: &Failure,
) {
    if client.head_sent() && request.progress.is_event_stream() {
        let (_, body) =
            error_body(ErrorFormat::OpenAi, failure.outcome, &failure.detail, &request.id);
        let event = format!("\n\ndata: {body}\n\n");
        match request.packer.take() {
            // Without memory to encode it there are no last words.
            Some(packer) => _ = packer.last_words(event.as_bytes(), client),
            None => client.send(Frame::Data(Bytes::from(event))),
        }
        client.end_events();
    } else if client.head_sent() && request.head.version == 20 && request.is_grpc() {
        let mut trailers = Fields::new();
        tell_grpc(&mut trailers, failure);
        client.send(Frame::Trailers(trailers));
        client.end_events();
    }
    let next = Next::never().or(Some(clock::now() + LAST_WORDS), Expiry::ClientRead);
    poll_fn(|cx| match client.poll_flush(cx) {
        Poll::Ready(_) => Poll::Ready(()),
        Poll::Pending => watchdog.poll_expired(next, cx).map(|_| ()),
    })
    .await;
    // HTTP/1.1 ends without the last chunk; a stream that is dropped unfinished is reset.
    client.close_after_response();
}

/// Passes on a response of an endpoint whose body is here as a whole.
///
/// # Errors
/// [`Outcome::ClientGone`], [`Outcome::ClientTimeout`].
pub async fn whole(
    request: &mut Request,
    client: &mut Downstream<'_>,
    watchdog: &mut Watchdog,
    route: &Route,
    mut head: ResponseHead,
    body: Bytes,
) -> Result<(), Failure> {
    let kind = Kind::of(head.fields.get("content-type"), head.fields.get("content-encoding"));
    let gaps = request.metrics.gaps();
    request.progress.begin(kind, gaps);
    request.progress.data(&body, clock::now());
    head.body = BodyLength::Exact(body.len() as u64);
    let body = match pack(&mut head, request, route) {
        Some(encoder) => encoded(encoder, &body).unwrap_or(body),
        None => body,
    };
    deliver(request, client, watchdog, head, body).await
}

fn encoded(mut encoder: Encoder, body: &[u8]) -> Option<Bytes> {
    let mut out = Vec::new();
    encoder.feed(body, &mut out, false).ok()?;
    encoder.finish(&mut out).ok()?;
    Some(out.into())
}

/// Sends a whole response of our own.
async fn send(
    request: &mut Request,
    client: &mut Downstream<'_>,
    watchdog: &mut Watchdog,
    head: ResponseHead,
    body: Bytes,
) -> Result<(), Failure> {
    if request.head.method != http::Method::HEAD {
        request.progress.own(body.len());
    }
    deliver(request, client, watchdog, head, body).await
}

async fn deliver(
    request: &mut Request,
    client: &mut Downstream<'_>,
    watchdog: &mut Watchdog,
    mut head: ResponseHead,
    body: Bytes,
) -> Result<(), Failure> {
    head.body = match body.len() {
        0 => BodyLength::Empty,
        length => BodyLength::Exact(length as u64),
    };
    if !body.is_empty() {
        head.fields.set("content-length", body.len().to_string());
    }
    let gone = |_| Failure::new(Outcome::ClientGone, "the client went away");
    request.trail.status = Some(head.status);
    client.send_head(&head).map_err(gone)?;
    if !body.is_empty() && request.head.method != http::Method::HEAD {
        client.send(Frame::Data(body));
    }
    client.send(Frame::End);
    let patience = clock::now() + request.snapshot.config.limits.write_timeout;
    let next = Next::never().or(Some(patience), Expiry::ClientRead);
    poll_fn(|cx| match client.poll_flush(cx) {
        Poll::Ready(result) => Poll::Ready(result.map_err(gone)),
        Poll::Pending => watchdog.poll_expired(next, cx).map(|_| {
            Err(Failure::new(Outcome::ClientTimeout, "the client does not read its response"))
        }),
    })
    .await
}
