//! A body that does not come from an attempt of this request, on its way to the client: from store, or from a call that
//! it shares.

use std::{
    collections::VecDeque,
    future::poll_fn,
    task::{Context, Poll},
    time::Instant,
};

use bytes::Bytes;

use crate::{
    answers::{
        record::Piece,
        shared::{End, Heard, Listener},
    },
    clock,
    compress::Broken,
    deadline::{Expiry, Next, Watchdog},
    outcome::Outcome,
    relay::Packer,
    request::{Failure, Request},
    wire::{BACKLOG, Downstream, Frame, Side},
};

/// Where a body comes from.
pub(super) enum Source {
    /// From store. With a pace: when the first of the pieces is due.
    Stored { pieces: VecDeque<Piece>, due: Option<Instant> },
    /// From a call that others listen to as well.
    Call(Listener),
}

/// What a source has next.
enum Step {
    Data(Bytes),
    End,
    Failed(Failure),
    /// Nothing yet; perhaps at this time.
    Wait(Option<Instant>),
}

impl Source {
    /// From store, all at once or as it came.
    pub(super) fn stored(pieces: Vec<Piece>, paced: bool) -> Self {
        let pieces = VecDeque::from(pieces);
        // The wait for the first byte is not repeated.
        let due = paced.then(clock::now);
        Source::Stored { pieces, due }
    }

    /// From this call.
    pub(super) fn call(listener: Listener) -> Self {
        Source::Call(listener)
    }

    fn next(&mut self, cx: &mut Context<'_>) -> Step {
        match self {
            Source::Stored { due: Some(at), .. } if *at > clock::now() => Step::Wait(Some(*at)),
            Source::Stored { pieces, due } => match pieces.pop_front() {
                None => Step::End,
                Some(piece) => {
                    let pause = pieces.front().map_or_else(Default::default, |next| next.after);
                    *due = due.map(|at| at + pause);
                    Step::Data(piece.data)
                }
            },
            Source::Call(listener) => match listener.poll_next(cx) {
                Poll::Pending => Step::Wait(None),
                Poll::Ready(Heard::Data(data)) => Step::Data(data),
                Poll::Ready(Heard::End(End::Whole)) => Step::End,
                Poll::Ready(Heard::End(End::Failed(outcome, detail))) => {
                    Step::Failed(Failure::new(outcome, detail))
                }
                Poll::Ready(Heard::End(End::Dropped)) => {
                    let detail = "the call that the request shared was given up";
                    Step::Failed(Failure::new(Outcome::Internal, detail))
                }
                Poll::Ready(Heard::TooSlow) => {
                    let detail = "the client reads too slowly for a call that it shares";
                    Step::Failed(Failure::new(Outcome::ClientTimeout, detail))
                }
            },
        }
    }
}

impl From<Broken> for Failure {
    fn from(_: Broken) -> Self {
        Failure::new(Outcome::Internal, "no memory to compress the response")
    }
}

/// Passes a body on to its end.
pub(super) async fn pour(
    request: &mut Request,
    client: &mut Downstream<'_>,
    watchdog: &mut Watchdog,
    packer: Option<Packer>,
    source: Source,
) -> Result<(), Failure> {
    request.packer = packer;
    let mut pouring = Pouring { source, over: false, behind_since: None };
    let poured = poll_fn(|cx| pouring.poll(request, client, watchdog, cx)).await;
    if poured.is_ok() {
        request.packer = None;
    }
    poured
}

struct Pouring {
    source: Source,
    over: bool,
    /// Since when the client has taken nothing of what waits for it.
    behind_since: Option<Instant>,
}

impl Pouring {
    fn poll(
        &mut self,
        request: &mut Request,
        client: &mut Downstream<'_>,
        watchdog: &mut Watchdog,
        cx: &mut Context<'_>,
    ) -> Poll<Result<(), Failure>> {
        let gone = || Failure::new(Outcome::ClientGone, "the client went away");
        loop {
            let (full, due) = self.fill(request, client, cx)?;
            let before = client.queued();
            match client.poll_flush(cx) {
                Poll::Ready(Err(_)) => return Poll::Ready(Err(gone())),
                Poll::Ready(Ok(())) if self.over => return Poll::Ready(Ok(())),
                Poll::Ready(Ok(())) => self.behind_since = None,
                Poll::Pending if self.behind_since.is_none() || client.queued() < before => {
                    self.behind_since = Some(clock::now());
                }
                Poll::Pending => {}
            }
            if full && client.queued() <= BACKLOG {
                continue;
            }
            if client.poll_gone(cx).is_ready() {
                return Poll::Ready(Err(gone()));
            }
            let patience = request.snapshot.config.limits.write_timeout;
            let next = Next::never()
                .or(due, Expiry::Gap)
                .or(self.behind_since.map(|since| since + patience), Expiry::ClientRead);
            match watchdog.poll_expired(next, cx) {
                Poll::Ready(Expiry::Gap) => {}
                Poll::Ready(_) => {
                    let detail = "the client does not read its response";
                    return Poll::Ready(Err(Failure::new(Outcome::ClientTimeout, detail)));
                }
                Poll::Pending => return Poll::Pending,
            }
        }
    }

    /// Queues what there is; whether it stopped because the client is behind, and when there may be more.
    fn fill(
        &mut self,
        request: &mut Request,
        client: &mut Downstream<'_>,
        cx: &mut Context<'_>,
    ) -> Result<(bool, Option<Instant>), Failure> {
        while !self.over {
            if client.queued() > BACKLOG {
                return Ok((true, None));
            }
            match self.source.next(cx) {
                Step::Data(data) => self.pass_on(data, request, client)?,
                Step::End => {
                    if let Some(packer) = request.packer.take() {
                        packer.end(client)?;
                    }
                    client.send(Frame::End);
                    self.over = true;
                }
                Step::Failed(failure) => return Err(failure),
                Step::Wait(due) => {
                    if let Some(packer) = &mut request.packer {
                        packer.flush(client)?;
                    }
                    return Ok((false, due));
                }
            }
        }
        Ok((false, None))
    }

    fn pass_on(
        &self,
        data: Bytes,
        request: &mut Request,
        client: &mut Downstream<'_>,
    ) -> Result<(), Failure> {
        match &self.source {
            // It says nothing about an endpoint.
            Source::Stored { .. } => request.progress.own(data.len()),
            Source::Call(_) => _ = request.progress.data(&data, clock::now()),
        }
        if data.is_empty() {
            return Ok(());
        }
        match &mut request.packer {
            Some(packer) => packer.data(&data, client)?,
            None => client.send(Frame::Data(data)),
        }
        Ok(())
    }
}
