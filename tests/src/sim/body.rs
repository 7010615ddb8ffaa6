//! Response bodies: whole, streamed, interrupted by a fault, and always counted to their end.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context as Cx, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use http_body_util::{BodyExt, Full, combinators::UnsyncBoxBody};

use super::context::Guard;
use super::line::{Line, Order};

/// What every route answers with.
pub(crate) type SimBody = UnsyncBoxBody<Bytes, Infallible>;

/// A body that is there already.
pub(crate) fn whole(bytes: impl Into<Bytes>) -> SimBody {
    Full::new(bytes.into()).boxed_unsync()
}

const BAD_CHUNK: Bytes = Bytes::from_static(b"zz\r\nnot a chunk\r\n");

/// What happens to a response after some of its events.
#[derive(Clone, Debug)]
pub(crate) enum Break {
    Reset,
    Close,
    BadChunk,
    Stall(Option<Duration>),
}

type Wait = Pin<Box<dyn Future<Output = ()> + Send>>;

/// Passes `after` frames on, each only when the one before has left for the kernel, and then breaks.
///
/// A body of known length is no stream: its first frame is cut in two, so that "after one event" is the middle of it.
pub(crate) struct Interrupted {
    inner: SimBody,
    line: Arc<Line>,
    after: u64,
    how: Option<Break>,
    rest: Option<Bytes>,
    halve: bool,
    wait: Option<Wait>,
}

impl Interrupted {
    pub(crate) fn new(inner: SimBody, line: Arc<Line>, after: u64, how: Break) -> Self {
        let wait: Wait = Box::pin(line.written_beyond(line.written()));
        let halve = inner.size_hint().exact().is_some();
        Self { inner, line, after, how: Some(how), rest: None, halve, wait: Some(wait) }
    }

    fn wait_for(&mut self, what: impl Future<Output = ()> + Send + 'static) {
        self.wait = Some(Box::pin(what));
    }

    fn strike(&mut self, how: &Break) {
        match how {
            Break::Reset => self.line.end(Order::Reset),
            Break::Close => self.line.end(Order::Finish(Bytes::new())),
            Break::BadChunk => {
                self.line.end(Order::Finish(BAD_CHUNK));
            }
            Break::Stall(Some(time)) => return self.wait_for(tokio::time::sleep(*time)),
            Break::Stall(None) => {}
        }
        self.wait_for(std::future::pending());
    }

    fn cut(&mut self, frame: Frame<Bytes>) -> Frame<Bytes> {
        match frame.into_data() {
            Ok(mut data) if std::mem::take(&mut self.halve) => {
                self.rest = Some(data.split_off(data.len() / 2));
                Frame::data(data)
            }
            Ok(data) => Frame::data(data),
            Err(frame) => frame,
        }
    }
}

impl Body for Interrupted {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Cx<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let this = self.get_mut();
        loop {
            if let Some(wait) = &mut this.wait {
                ready!(wait.as_mut().poll(cx));
                this.wait = None;
            }
            if this.after == 0
                && let Some(how) = this.how.take()
            {
                this.strike(&how);
                continue;
            }
            let frame = match this.rest.take() {
                Some(rest) => Frame::data(rest),
                None => match ready!(Pin::new(&mut this.inner).poll_frame(cx)) {
                    Some(Ok(frame)) => this.cut(frame),
                    end => return Poll::Ready(end),
                },
            };
            this.after = this.after.saturating_sub(1);
            this.wait_for(this.line.written_beyond(this.line.written()));
            return Poll::Ready(Some(Ok(frame)));
        }
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_none() && self.how.is_none() && self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let rest = self.rest.as_ref().map_or(0, |rest| rest.len() as u64);
        match self.inner.size_hint().exact() {
            Some(size) => SizeHint::with_exact(size + rest),
            None => SizeHint::default(),
        }
    }
}

/// A request in progress on its connection, until dropped.
pub(crate) struct Busy(Arc<Line>);

impl Busy {
    pub(crate) fn new(line: &Arc<Line>) -> Self {
        line.request_began();
        Self(Arc::clone(line))
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.request_ended();
    }
}

/// Counts a request as completed when its body has been taken to the end, and as aborted when it is dropped before.
pub(crate) struct Counted {
    inner: SimBody,
    guard: Option<Guard>,
    _busy: Busy,
}

impl Counted {
    /// `bodiless`: the body will never be asked for, because of the method or the status.
    pub(crate) fn new(inner: SimBody, guard: Option<Guard>, busy: Busy, bodiless: bool) -> Self {
        let done = bodiless || inner.is_end_stream();
        let mut counted = Self { inner, guard, _busy: busy };
        if done {
            counted.complete();
        }
        counted
    }

    fn complete(&mut self) {
        if let Some(mut guard) = self.guard.take() {
            guard.completed();
        }
    }
}

impl Body for Counted {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Cx<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let frame = ready!(Pin::new(&mut self.inner).poll_frame(cx));
        if frame.is_none() || self.inner.is_end_stream() {
            self.complete();
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}
