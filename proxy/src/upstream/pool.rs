//! Connections to one endpoint that rest between requests.
//!
//! The last one used is the first one used again, so that spare ones grow old and are swept. Whether a connection is
//! still good is asked of the connection itself when it is taken: one that was closed, or spoke unasked, is dropped.
//! HTTP/2 connections are shared and stay here while they carry streams.
//!
//! The mutex is held for one push or pop, never across an await.

use std::{
    future::poll_fn,
    sync::atomic::{AtomicBool, Ordering},
    task::Poll,
    time::{Duration, Instant},
};

use bytes::Bytes;
use h2::client::SendRequest;
use parking_lot::Mutex;

use crate::wire::h1::ClientConn;

/// The resting connections of one endpoint.
#[derive(Default)]
pub struct Pool {
    resting: Mutex<Vec<Resting>>,
    shared: Mutex<Vec<SendRequest<Bytes>>>,
    /// The endpoint has left: nothing rests here any more.
    closed: AtomicBool,
}

struct Resting {
    conn: Box<ClientConn>,
    since: Instant,
    until: Instant,
}

impl Pool {
    /// A pool without connections.
    pub fn new() -> Self {
        Self::default()
    }

    /// A connection that may carry another request.
    pub async fn take(&self) -> Option<Box<ClientConn>> {
        loop {
            let mut conn = self.resting.lock().pop()?.conn;
            if poll_fn(|cx| Poll::Ready(conn.poll_is_quiet(cx))).await {
                return Some(conn);
            }
        }
    }

    /// Lets a connection rest for at most `idle`, where at most `max` of them may.
    pub fn put(&self, mut conn: Box<ClientConn>, now: Instant, idle: Duration, max: usize) {
        conn.rest();
        let mut resting = self.resting.lock();
        // Looked at under the lock that `close` takes afterwards, so that nothing slips in behind it.
        if resting.len() < max && !self.closed.load(Ordering::Acquire) {
            resting.push(Resting { conn, since: now, until: now + idle });
        }
    }

    /// An HTTP/2 connection that takes another stream.
    pub async fn take_shared(&self) -> Option<SendRequest<Bytes>> {
        loop {
            let candidate = self.shared.lock().last().cloned()?;
            let mut ready = candidate.clone();
            match poll_fn(|cx| Poll::Ready(ready.poll_ready(cx))).await {
                Poll::Ready(Ok(())) => return Some(ready),
                Poll::Pending => return None,
                Poll::Ready(Err(_)) => self.forget_last(),
            }
        }
    }

    fn forget_last(&self) {
        self.shared.lock().pop();
    }

    /// Shares an HTTP/2 connection from now on.
    pub fn put_shared(&self, connection: SendRequest<Bytes>) {
        self.shared.lock().push(connection);
    }

    /// Takes connections again.
    pub fn open(&self) {
        self.closed.store(false, Ordering::Release);
    }

    /// Closes every resting connection, and those that would come to rest.
    pub fn close(&self) {
        self.closed.store(true, Ordering::Release);
        self.resting.lock().clear();
        self.shared.lock().clear();
    }

    /// Closes connections that have rested long enough.
    pub fn sweep(&self, now: Instant) {
        self.resting.lock().retain(|resting| resting.until > now);
    }

    /// How many connections rest, and for how long the oldest has.
    pub fn resting(&self, now: Instant) -> (usize, Duration) {
        let resting = self.resting.lock();
        let oldest = resting.iter().map(|r| now.duration_since(r.since)).max();
        (resting.len(), oldest.unwrap_or_default())
    }
}
