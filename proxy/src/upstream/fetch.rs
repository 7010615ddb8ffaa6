//! Requests of our own to an endpoint: health checks, warm-ups, scrapes, mirrored and batched requests.
//!
//! One request, one whole answer, bounded in size. What it leaves out: time (the caller has a deadline for all of it),
//! retries, and what the answer means.

use std::{
    future::poll_fn,
    task::{Context, Poll, ready},
    time::Instant,
};

use bytes::{Bytes, BytesMut};
use http::Method;

use crate::clock;
use crate::endpoint::Endpoint;
use crate::wire::{
    BodyLength, Fields, Frame, RequestHead, ResponseHead, Side, Upstream, WireError, hop::LEFT_POD,
};

/// A whole answer.
#[derive(Debug)]
pub struct Fetched {
    /// Its status, never informational.
    pub status: u16,
    /// Its header fields.
    pub fields: Fields,
    /// Its body; empty when it has none.
    pub body: Bytes,
    /// When the first byte of the body came, or the end of an answer without one.
    pub first_byte: Instant,
}

/// The head of a request of our own to an endpoint. `purpose` is told in `user-agent`, so that an engine's log shows who
/// asked. One that leaves the pod says so: the other pod is asked about its own engine, not about ours.
pub fn head(
    method: Method,
    endpoint: &Endpoint,
    target: &str,
    body: &Bytes,
    purpose: &str,
) -> RequestHead {
    let mut fields = Fields::new();
    fields.append("host", &endpoint.name);
    let agent = concat!("outrigger/", env!("CARGO_PKG_VERSION"));
    fields.append("user-agent", format!("{agent} ({purpose})"));
    if endpoint.leaves_pod() {
        fields.append(LEFT_POD, "1");
    }
    let mut head = RequestHead::for_target(method, fields, target, 11);
    if !body.is_empty() {
        head.body = BodyLength::Exact(body.len() as u64);
    }
    head
}

/// Sends a request and reads the whole answer, at most `max` bytes of body.
///
/// # Errors
/// What the wire says; [`WireError::TooLarge`] for a longer body. The connection is of no use then.
pub async fn fetch(
    upstream: &mut Upstream,
    head: &RequestHead,
    body: Bytes,
    max: usize,
) -> Result<Fetched, WireError> {
    let response = ask(upstream, head, body).await?;
    let (body, first_byte) = collect(upstream, max).await?;
    Ok(Fetched { status: response.status, fields: response.fields, body, first_byte })
}

/// Sends a request and reads the head of the answer.
///
/// # Errors
/// What the wire says.
pub async fn ask(
    upstream: &mut Upstream,
    head: &RequestHead,
    body: Bytes,
) -> Result<ResponseHead, WireError> {
    upstream.send_head(head)?;
    if !body.is_empty() {
        upstream.send(Frame::Data(body));
    }
    upstream.send(Frame::End);
    poll_fn(|cx| {
        // An endpoint may answer before it has read everything, or without reading everything.
        let flushed = upstream.poll_flush(cx);
        match poll_final_head(upstream, cx) {
            Poll::Pending => match flushed {
                Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
                Poll::Ready(Ok(())) | Poll::Pending => Poll::Pending,
            },
            ready @ Poll::Ready(_) => ready,
        }
    })
    .await
}

fn poll_final_head(
    upstream: &mut Upstream,
    cx: &mut Context<'_>,
) -> Poll<Result<ResponseHead, WireError>> {
    loop {
        let head = ready!(upstream.poll_head(cx))?;
        if !head.is_informational() {
            return Poll::Ready(Ok(head));
        }
    }
}

async fn collect(upstream: &mut Upstream, max: usize) -> Result<(Bytes, Instant), WireError> {
    let mut body = BytesMut::new();
    let mut first = None;
    loop {
        match poll_fn(|cx| upstream.poll_frame(cx)).await? {
            Frame::Data(data) if body.len() + data.len() > max => {
                return Err(WireError::TooLarge("the answer is longer than it may be"));
            }
            Frame::Data(data) => {
                first.get_or_insert_with(clock::now);
                body.extend_from_slice(&data);
            }
            Frame::Trailers(_) => {}
            Frame::End => return Ok((body.freeze(), first.unwrap_or_else(clock::now))),
        }
    }
}
