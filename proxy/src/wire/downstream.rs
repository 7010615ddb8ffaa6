//! The client's side of one request, whatever protocol version it speaks.

use std::task::{Context, Poll};

use super::{
    BodyLength, Frame, ResponseHead, Side, WireError,
    audience::{Audience, Own},
    h1::ServerConn,
    h2::ServerStream,
};

/// The client of one request.
pub enum Downstream<'a> {
    /// HTTP/1.1: the connection is lent for the time of one request.
    H1(&'a mut ServerConn),
    /// HTTP/2: the stream is this request's alone.
    H2(ServerStream),
    /// No client: a request of our own.
    Own(Own),
}

impl Downstream<'_> {
    /// The side of a request of our own, whose response goes there.
    pub fn own(audience: Box<dyn Audience>) -> Self {
        Downstream::Own(Own::new(audience))
    }

    /// Whether the request body has been read to its end.
    pub fn request_is_read(&self) -> bool {
        match self {
            Downstream::H1(conn) => conn.request_is_read(),
            Downstream::H2(stream) => stream.request_is_read(),
            Downstream::Own(_) => true,
        }
    }

    /// Ready when the client has gone away.
    pub fn poll_gone(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        match self {
            Downstream::H1(conn) => conn.poll_gone(cx),
            Downstream::H2(stream) => stream.poll_gone(cx),
            Downstream::Own(own) => own.poll_gone(cx),
        }
    }

    /// Asks the client to send the body that it holds back.
    pub fn send_continue(&mut self) {
        match self {
            Downstream::H1(conn) => conn.send_continue(),
            Downstream::H2(stream) => stream.send_informational(&ResponseHead::new(100)),
            Downstream::Own(_) => {}
        }
    }

    /// Queues an informational head.
    pub fn send_informational(&mut self, head: &ResponseHead) {
        match self {
            Downstream::H1(conn) => conn.send_informational(head),
            Downstream::H2(stream) => stream.send_informational(head),
            Downstream::Own(_) => {}
        }
    }

    /// Queues the head of the response. `head.fields` must hold no hop-by-hop fields.
    ///
    /// # Errors
    /// [`WireError::Closed`] when the client is gone.
    pub fn send_head(&mut self, head: &ResponseHead) -> Result<(), WireError> {
        match self {
            Downstream::H1(conn) => conn.send_head(head),
            Downstream::H2(stream) => {
                stream.send_head(head, head.body == BodyLength::Empty)?;
            }
            Downstream::Own(own) => own.send_head(head),
        }
        Ok(())
    }

    /// Whether the head of the response has been sent or queued.
    pub fn head_sent(&self) -> bool {
        match self {
            Downstream::H1(conn) => conn.head_sent(),
            Downstream::H2(stream) => stream.head_sent(),
            Downstream::Own(own) => own.head_sent(),
        }
    }

    /// The last event of a stream that broke off has been sent. HTTP/1.1 shows the break by a missing last chunk; an
    /// HTTP/2 stream that is reset takes what waits with it, so there the event has to say it alone.
    pub fn end_events(&mut self) {
        if let Downstream::H2(_) = self {
            self.send(Frame::End);
        }
    }

    /// The connection will not be used again after this response.
    pub fn close_after_response(&mut self) {
        if let Downstream::H1(conn) = self {
            conn.close_after_response();
        }
    }
}

impl Side for Downstream<'_> {
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Result<Frame, WireError>> {
        match self {
            Downstream::H1(conn) => conn.poll_frame(cx),
            Downstream::H2(stream) => stream.poll_frame(cx),
            Downstream::Own(_) => Poll::Ready(Ok(Frame::End)),
        }
    }

    fn send(&mut self, frame: Frame) {
        match self {
            Downstream::H1(conn) => conn.send(frame),
            Downstream::H2(stream) if !stream.has_ended() => stream.send(frame),
            Downstream::H2(_) => {}
            Downstream::Own(own) => own.send(frame),
        }
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), WireError>> {
        match self {
            Downstream::H1(conn) => conn.poll_flush(cx),
            Downstream::H2(stream) => stream.poll_flush(cx),
            Downstream::Own(own) => own.poll_flush(cx).map(Ok),
        }
    }

    fn queued(&self) -> usize {
        match self {
            Downstream::H1(conn) => conn.queued(),
            Downstream::H2(stream) => stream.queued(),
            Downstream::Own(own) => own.queued(),
        }
    }
}
