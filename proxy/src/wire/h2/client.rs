//! One request to an endpoint that speaks HTTP/2.

use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use h2::{
    RecvStream,
    client::{ResponseFuture, SendRequest},
};
use http::{Method, Request, Response, Uri, Version};

use super::{error, fields_of, map_of, poll_receive, sending::Sending};
use crate::wire::{
    BodyLength, Frame, RequestHead, ResponseHead, Side, WireError, head::never_has_body,
};

/// The stream of one request.
pub struct ClientStream {
    connection: SendRequest<Bytes>,
    response: Option<ResponseFuture>,
    receive: Option<RecvStream>,
    sending: Sending,
    method: Method,
    answered: bool,
}

impl ClientStream {
    /// A stream to be opened on a connection that is ready for one.
    pub fn new(connection: SendRequest<Bytes>) -> Self {
        ClientStream {
            connection,
            response: None,
            receive: None,
            sending: Sending::default(),
            method: Method::GET,
            answered: false,
        }
    }

    /// Opens the stream with the head of the request.
    ///
    /// # Errors
    /// [`WireError::Refused`] when the connection takes no more streams, [`WireError::Invalid`] for a head that
    /// HTTP/2 can not carry.
    pub fn send_head(&mut self, head: &RequestHead) -> Result<(), WireError> {
        self.method = head.method.clone();
        let end = head.body == BodyLength::Empty;
        let request = request_of(head)?;
        let (response, stream) =
            self.connection.send_request(request, end).map_err(|_| WireError::Refused)?;
        self.response = Some(response);
        self.sending.open(stream, end);
        Ok(())
    }

    /// The next response head, informational ones included.
    ///
    /// # Errors
    /// [`WireError::Refused`] when the endpoint did not work on the request, [`WireError::Closed`] otherwise.
    pub fn poll_head(&mut self, cx: &mut Context<'_>) -> Poll<Result<ResponseHead, WireError>> {
        let Some(future) = &mut self.response else {
            return Poll::Ready(Err(WireError::truncated()));
        };
        if let Poll::Ready(Some(Ok(response))) = future.poll_informational(cx) {
            return Poll::Ready(Ok(head_of(&response, BodyLength::Empty)));
        }
        let response = ready!(Pin::new(future).poll(cx)).map_err(error)?;
        self.response = None;
        let (parts, receive) = response.into_parts();
        let response = Response::from_parts(parts, ());
        let body = self.body_length(&response, receive.is_end_stream());
        self.receive = Some(receive);
        self.answered = true;
        Poll::Ready(Ok(head_of(&response, body)))
    }

    fn body_length(&self, response: &Response<()>, ended: bool) -> BodyLength {
        if ended || never_has_body(&self.method, response.status().as_u16()) {
            return BodyLength::Empty;
        }
        let length = response.headers().get("content-length").and_then(|v| v.to_str().ok());
        length.and_then(|v| v.parse().ok()).map_or(BodyLength::Unknown, BodyLength::Exact)
    }

    /// Whether anything at all came back for the present request.
    pub fn has_heard(&self) -> bool {
        self.answered
    }

    /// Tells the endpoint to stop working on the request.
    pub fn cancel(&mut self) {
        self.sending.reset(h2::Reason::CANCEL);
    }
}

impl Side for ClientStream {
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Result<Frame, WireError>> {
        match &mut self.receive {
            Some(receive) => poll_receive(receive, cx),
            None => Poll::Ready(Err(WireError::truncated())),
        }
    }

    fn send(&mut self, frame: Frame) {
        // A request without a body ended with its head.
        if !self.sending.has_ended() {
            self.sending.push(frame);
        }
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), WireError>> {
        self.sending.poll_flush(cx)
    }

    fn queued(&self) -> usize {
        self.sending.queued()
    }
}

fn request_of(head: &RequestHead) -> Result<Request<()>, WireError> {
    let invalid = |_| WireError::Invalid("request can not be expressed in HTTP/2");
    let mut uri = http::uri::Parts::default();
    uri.scheme = Some(http::uri::Scheme::HTTP);
    uri.authority = Some(head.host().parse().map_err(|_| WireError::Invalid("malformed Host"))?);
    uri.path_and_query =
        Some(head.target().parse().map_err(|_| WireError::Invalid("malformed request target"))?);
    let mut request = Request::new(());
    *request.method_mut() = head.method.clone();
    *request.uri_mut() = Uri::from_parts(uri).map_err(invalid)?;
    *request.version_mut() = Version::HTTP_2;
    *request.headers_mut() = map_of(&head.fields);
    request.headers_mut().remove("host");
    Ok(request)
}

fn head_of(response: &Response<()>, body: BodyLength) -> ResponseHead {
    ResponseHead {
        status: response.status().as_u16(),
        fields: fields_of(response.headers()),
        body,
        version: 20,
    }
}
