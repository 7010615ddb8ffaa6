//! The sending half of a stream: frames wait here for flow-control credit.

use std::{
    collections::VecDeque,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use h2::SendStream;

use super::{error, map_of};
use crate::wire::{Fields, Frame, WireError};

#[derive(Default)]
pub(super) struct Sending {
    stream: Option<SendStream<Bytes>>,
    data: VecDeque<Bytes>,
    queued: usize,
    trailers: Option<Fields>,
    end: bool,
    ended: bool,
}

impl Sending {
    /// The head has been sent; `ended` when it was all there is.
    pub(super) fn open(&mut self, stream: SendStream<Bytes>, ended: bool) {
        self.stream = Some(stream);
        self.ended = ended;
    }

    pub(super) fn is_open(&self) -> bool {
        self.stream.is_some()
    }

    pub(super) fn has_ended(&self) -> bool {
        self.ended
    }

    pub(super) fn queued(&self) -> usize {
        self.queued
    }

    pub(super) fn push(&mut self, frame: Frame) {
        match frame {
            Frame::Data(data) => {
                self.queued += data.len();
                self.data.push_back(data);
            }
            Frame::Trailers(fields) => self.trailers = Some(fields),
            Frame::End => self.end = true,
        }
    }

    pub(super) fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), WireError>> {
        let Some(stream) = &mut self.stream else { return Poll::Ready(Ok(())) };
        while let Some(chunk) = self.data.front_mut() {
            let credit = ready!(poll_credit(stream, chunk.len(), cx))?;
            let part = chunk.split_to(credit.min(chunk.len()));
            let last = chunk.is_empty();
            if last {
                self.data.pop_front();
            }
            self.queued -= part.len();
            let end = self.end && self.data.is_empty() && self.trailers.is_none();
            stream.send_data(part, end).map_err(error)?;
            self.ended = end;
        }
        if self.end && !self.ended {
            self.ended = true;
            match self.trailers.take() {
                Some(fields) => stream.send_trailers(map_of(&fields)).map_err(error)?,
                None => stream.send_data(Bytes::new(), true).map_err(error)?,
            }
        }
        Poll::Ready(Ok(()))
    }

    /// Tells the peer that this stream is broken off.
    pub(super) fn reset(&mut self, reason: h2::Reason) {
        if let Some(stream) = &mut self.stream {
            stream.send_reset(reason);
        }
        self.ended = true;
        self.data.clear();
        self.queued = 0;
    }

    /// Ready when the peer reset the stream or the connection is gone.
    pub(super) fn poll_reset(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        match &mut self.stream {
            Some(stream) => stream.poll_reset(cx).map(drop),
            None => Poll::Pending,
        }
    }
}

fn poll_credit(
    stream: &mut SendStream<Bytes>,
    wanted: usize,
    cx: &mut Context<'_>,
) -> Poll<Result<usize, WireError>> {
    stream.reserve_capacity(wanted);
    while stream.capacity() == 0 {
        match ready!(stream.poll_capacity(cx)) {
            Some(Ok(_)) => {}
            Some(Err(e)) => return Poll::Ready(Err(error(e))),
            None => return Poll::Ready(Err(WireError::truncated())),
        }
    }
    Poll::Ready(Ok(stream.capacity()))
}
