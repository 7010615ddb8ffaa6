//! What the client is told: an endpoint's response with our edits, a local answer, or why there is none.

use std::{
    future::poll_fn,
    task::Poll,
    time::{Duration, Instant, SystemTime},
};

use bytes::Bytes;
use outrigger_config::validated as config;

use super::forward::{append_via, edit};
use crate::{
    deadline::{Expiry, Next, Watchdog},
    outcome::{Outcome, error_body},
    request::{Failure, Request},
    snapshot::Route,
    wire::{BodyLength, Downstream, Fields, Frame, ResponseHead, Side, fields::tokens},
};

/// Removes what concerns one connection alone, and what `connection` names besides (RFC 9110, 7.6.1).
pub fn strip_hop_by_hop(fields: &mut Fields) {
    let named: Vec<Vec<u8>> = fields
        .get_all("connection")
        .flat_map(tokens)
        .filter(|token| !is_hop_by_hop(token) && !is_framing(token))
        .map(<[u8]>::to_vec)
        .collect();
    fields.retain(|name, _| {
        !is_hop_by_hop(name) && !named.iter().any(|n| n.eq_ignore_ascii_case(name))
    });
}

/// Options and fields that never pass a proxy; `close` is an option, not a field, but no field has its name either.
fn is_hop_by_hop(name: &[u8]) -> bool {
    const NAMES: [&str; 9] = [
        "connection",
        "keep-alive",
        "proxy-connection",
        "te",
        "transfer-encoding",
        "upgrade",
        "close",
        "http2-settings",
        "proxy-authenticate",
    ];
    // Most names differ in length or first letter from all of these.
    NAMES
        .iter()
        .any(|known| known.len() == name.len() && name.eq_ignore_ascii_case(known.as_bytes()))
}

/// Fields that no `connection` option may take away.
fn is_framing(name: &[u8]) -> bool {
    name.eq_ignore_ascii_case(b"content-length") || name.eq_ignore_ascii_case(b"host")
}

/// Turns the head of an endpoint's response into the one that the client gets.
pub fn prepare(head: &mut ResponseHead, request: &Request, route: &Route) {
    let switch =
        (head.status == 101).then(|| head.fields.get("upgrade").map(<[u8]>::to_vec)).flatten();
    strip_hop_by_hop(&mut head.fields);
    if let Some(protocol) = switch {
        head.fields.append("upgrade", protocol);
    }
    append_via(&mut head.fields, head.version);
    edit(&mut head.fields, &route.settings.rewrite.response_headers);
    expose(&mut head.fields, request, &route.settings.expose);
}

fn expose(fields: &mut Fields, request: &Request, expose: &config::Expose) {
    if let (true, Some(backend)) = (expose.arm, &request.arm) {
        fields.set("x-outrigger-arm", backend.name.as_bytes());
    }
    if expose.attempts {
        fields.set("x-outrigger-attempts", request.trail.attempts.to_string());
    }
    if expose.timing {
        fields.append("server-timing", server_timing(request, Instant::now()));
    }
}

fn server_timing(request: &Request, now: Instant) -> String {
    let millis = |d: Duration| d.as_secs_f64() * 1e3;
    let total = millis(now.duration_since(request.start));
    match request.trail.connect {
        Some(connect) => format!("connect;dur={:.2}, upstream;dur={total:.2}", millis(connect)),
        None => format!("upstream;dur={total:.2}"),
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
    let Some(status) = failure.outcome.status().filter(|_| !client.head_sent()) else {
        return break_off(request, client, failure);
    };
    let (content_type, body) =
        error_body(request.error_format(), failure.outcome, &failure.detail, &request.id);
    let mut head = ResponseHead::new(status);
    head.fields.append("content-type", content_type);
    head.fields.append("date", httpdate::fmt_http_date(SystemTime::now()));
    head.fields.append("x-request-id", &request.id);
    if let Some(retry) = failure.outcome.should_retry() {
        head.fields.append("x-should-retry", if retry { "true" } else { "false" });
    }
    if failure.outcome.wants_retry_after() {
        let wait = failure.retry_after.map_or(1, |wait| wait.as_secs().max(1));
        head.fields.append("retry-after", wait.to_string());
    }
    // A client that does not take its error is gone; the outcome stays what it was.
    let _ = send(request, client, watchdog, head, body.into()).await;
}

/// The response has begun and can not be completed: an event stream says so in its own words, everything ends so
/// that nobody takes it for complete.
fn break_off(request: &mut Request, client: &mut Downstream<'_>, failure: &Failure) {
    if client.head_sent() && request.progress.is_event_stream() {
        let (_, body) = error_body(
            crate::outcome::ErrorFormat::OpenAi,
            failure.outcome,
            &failure.detail,
            &request.id,
        );
        client.send(Frame::Data(Bytes::from(format!("\n\ndata: {body}\n\n"))));
    }
    // What was queued leaves now or never.
    let _ = client.poll_flush(&mut std::task::Context::from_waker(std::task::Waker::noop()));
    // HTTP/1.1 ends without the last chunk; a stream that is dropped unfinished is reset once its data has left.
    client.close_after_response();
}

/// Sends a whole response of our own.
async fn send(
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
        request.progress.data(&body, Instant::now());
        client.send(Frame::Data(body));
    }
    client.send(Frame::End);
    let patience = Instant::now() + request.snapshot.config.limits.write_timeout;
    let next = Next::never().or(Some(patience), Expiry::ClientRead);
    poll_fn(|cx| match client.poll_flush(cx) {
        Poll::Ready(result) => Poll::Ready(result.map_err(gone)),
        Poll::Pending => watchdog.poll_expired(next, cx).map(|_| {
            Err(Failure::new(Outcome::ClientTimeout, "the client does not read its response"))
        }),
    })
    .await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_connection_names_goes_too_but_not_the_framing() {
        let mut fields = Fields::new();
        for (name, value) in [
            ("Connection", "close, X-Secret, Content-Length"),
            ("Keep-Alive", "timeout=5"),
            ("X-Secret", "1"),
            ("Content-Length", "3"),
            ("Transfer-Encoding", "chunked"),
            ("X-Kept", "1"),
        ] {
            fields.append(name, value);
        }
        strip_hop_by_hop(&mut fields);
        let left: Vec<_> =
            fields.iter().map(|(n, _)| String::from_utf8_lossy(n).into_owned()).collect();
        assert_eq!(left, ["Content-Length", "X-Kept"]);
    }
}
