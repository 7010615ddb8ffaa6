//! Whoever a response goes to when no client of ours made the request.

use std::task::{Context, Poll};

use super::{Frame, ResponseHead};

/// Takes a response in the place of a client: what several clients listen to, or nobody at all.
pub trait Audience: Send {
    /// The head of the response, which comes once.
    fn head(&mut self, head: &ResponseHead);

    /// What follows it.
    fn frame(&mut self, frame: Frame);

    /// Bytes that nobody of them has taken yet.
    fn queued(&self) -> usize;

    /// Ready when that is little.
    fn poll_taken(&mut self, cx: &mut Context<'_>) -> Poll<()>;

    /// Ready when nobody is interested any more.
    fn poll_gone(&mut self, cx: &mut Context<'_>) -> Poll<()>;
}

/// The client's side of a request of our own, whose body is here already.
pub struct Own {
    audience: Box<dyn Audience>,
    head_sent: bool,
}

impl Own {
    pub(super) fn new(audience: Box<dyn Audience>) -> Self {
        Own { audience, head_sent: false }
    }

    pub(super) fn send_head(&mut self, head: &ResponseHead) {
        self.head_sent = true;
        self.audience.head(head);
    }

    pub(super) fn head_sent(&self) -> bool {
        self.head_sent
    }

    pub(super) fn send(&mut self, frame: Frame) {
        self.audience.frame(frame);
    }

    pub(super) fn queued(&self) -> usize {
        self.audience.queued()
    }

    pub(super) fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.audience.poll_taken(cx)
    }

    pub(super) fn poll_gone(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.audience.poll_gone(cx)
    }
}
