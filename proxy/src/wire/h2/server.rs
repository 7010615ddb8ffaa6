//! One request of a client that speaks HTTP/2.

use std::task::{Context, Poll};

use bytes::Bytes;
use h2::{RecvStream, server::SendResponse};
use http::{Method, Request, Response, StatusCode};

use super::{error, fields_of, map_of, poll_receive, sending::Sending};
use crate::wire::{BodyLength, Fields, Frame, RequestHead, ResponseHead, Side, WireError};

/// The stream of one request.
pub struct ServerStream {
    receive: RecvStream,
    respond: SendResponse<Bytes>,
    sending: Sending,
    read: bool,
}

impl ServerStream {
    /// Takes a request over from the connection.
    ///
    /// # Errors
    /// [`WireError::Invalid`] for a request that must not be passed on; the stream can still answer it.
    pub fn new(
        request: Request<RecvStream>,
        respond: SendResponse<Bytes>,
    ) -> (Self, Result<RequestHead, WireError>) {
        let (parts, receive) = request.into_parts();
        let ended = receive.is_end_stream();
        let head = head_of(&parts, ended);
        (ServerStream { receive, respond, sending: Sending::default(), read: ended }, head)
    }

    /// Whether the request body has been read to its end.
    pub fn request_is_read(&self) -> bool {
        self.read
    }

    /// Ready when the client has reset the stream or gone away.
    pub fn poll_gone(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.sending.is_open() {
            return self.sending.poll_reset(cx);
        }
        self.respond.poll_reset(cx).map(drop)
    }

    /// Queues an informational head.
    pub fn send_informational(&mut self, head: &ResponseHead) {
        if let Some(response) = response_of(head) {
            // A client that is gone is noticed by the relay itself.
            let _ = self.respond.send_informational(response);
        }
    }

    /// Sends the head of the response; `end` when no body and no trailers follow.
    ///
    /// # Errors
    /// [`WireError::Closed`] when the client is gone.
    pub fn send_head(&mut self, head: &ResponseHead, end: bool) -> Result<(), WireError> {
        let response = response_of(head).ok_or(WireError::Invalid("status code out of range"))?;
        let stream = self.respond.send_response(response, end).map_err(error)?;
        self.sending.open(stream, end);
        Ok(())
    }

    /// Whether the head of the response has been sent.
    pub fn head_sent(&self) -> bool {
        self.sending.is_open()
    }

    /// Whether the response was sent to its end.
    pub fn has_ended(&self) -> bool {
        self.sending.has_ended()
    }
}

impl Side for ServerStream {
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Result<Frame, WireError>> {
        if self.read {
            return Poll::Ready(Ok(Frame::End));
        }
        let frame = poll_receive(&mut self.receive, cx);
        if let Poll::Ready(Ok(Frame::Trailers(_) | Frame::End)) = frame {
            self.read = true;
        }
        frame
    }

    fn send(&mut self, frame: Frame) {
        self.sending.push(frame);
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), WireError>> {
        self.sending.poll_flush(cx)
    }

    fn queued(&self) -> usize {
        self.sending.queued()
    }
}

fn head_of(parts: &http::request::Parts, ended: bool) -> Result<RequestHead, WireError> {
    let mut fields = fields_of(&parts.headers);
    join_cookies(&mut fields);
    if let Some(authority) = parts.uri.authority() {
        fields.set("host", authority.as_str());
    }
    if !fields.contains("host") {
        return Err(WireError::Invalid("request without authority"));
    }
    let target = match parts.uri.path_and_query() {
        Some(target) => target.as_str(),
        None if parts.method == Method::CONNECT => "/",
        None => return Err(WireError::Invalid("request without path")),
    };
    let body = match (ended, parts.headers.get("content-length")) {
        (true, _) => BodyLength::Empty,
        (false, Some(length)) => length
            .to_str()
            .ok()
            .and_then(|text| text.parse().ok())
            .map(BodyLength::Exact)
            .ok_or(WireError::Invalid("Content-Length is not a number"))?,
        (false, None) => BodyLength::Unknown,
    };
    let target = fields.store(target.as_bytes());
    let mut head = RequestHead::new(parts.method.clone(), fields, target, 20);
    head.body = body;
    Ok(head)
}

/// HTTP/2 may send cookies one by one; HTTP/1.1 knows only one field of them (RFC 9113, 8.2.3).
fn join_cookies(fields: &mut Fields) {
    if fields.get_all("cookie").nth(1).is_some() {
        let all = fields.get_all("cookie").collect::<Vec<_>>().join(&b"; "[..]);
        fields.set("cookie", all);
    }
}

fn response_of(head: &ResponseHead) -> Option<Response<()>> {
    let mut response = Response::new(());
    *response.status_mut() = StatusCode::from_u16(head.status).ok()?;
    *response.headers_mut() = map_of(&head.fields);
    Some(response)
}
