//! Shutting down without cutting anyone off.
//!
//! Not ready → keep accepting for `drain.delay`, so that whoever routes to us learns of it → stop accepting, close
//! idle connections, announce the end on the others → wait until the last request has ended, at most
//! `drain.timeout` → leave. Ready to leave at once when nothing is in flight.
//!
//! A request holds a [`InFlight`]; dropping the last one is what "drained" means.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::sync::{Notify, watch};

/// The state of the shutdown, shared by everyone who must know.
pub struct Drain {
    draining: AtomicBool,
    closing: watch::Sender<bool>,
    handed_over: watch::Sender<bool>,
    cut: watch::Sender<bool>,
    in_flight: AtomicUsize,
    connections: AtomicUsize,
    accepting: watch::Sender<bool>,
    idle: Notify,
}

impl Drain {
    /// Nobody wants to leave yet.
    pub fn new() -> Arc<Self> {
        Arc::new(Drain {
            draining: AtomicBool::new(false),
            closing: watch::channel(false).0,
            handed_over: watch::channel(false).0,
            cut: watch::channel(false).0,
            in_flight: AtomicUsize::new(0),
            connections: AtomicUsize::new(0),
            accepting: watch::channel(true).0,
            idle: Notify::new(),
        })
    }

    /// Whether the proxy is about to leave and wants no new traffic.
    pub fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Relaxed)
    }

    /// From now on the proxy says that it is not ready. `false` when it said so before.
    pub fn begin(&self) -> bool {
        !self.draining.swap(true, Ordering::Relaxed)
    }

    /// Turns true when listeners stop accepting and idle connections close.
    pub fn closing(&self) -> watch::Receiver<bool> {
        self.closing.subscribe()
    }

    /// Stops accepting.
    pub fn close(&self) {
        self.closing.send_replace(true);
    }

    /// Turns true when another process answers at the admin address.
    pub fn handed_over(&self) -> watch::Receiver<bool> {
        self.handed_over.subscribe()
    }

    /// Another process has taken the sockets over.
    pub fn hand_over(&self) {
        self.handed_over.send_replace(true);
    }

    /// Turns true when requests that are still in flight have no time left.
    pub fn cutting(&self) -> watch::Receiver<bool> {
        self.cut.subscribe()
    }

    /// Ends what is still in flight.
    pub fn cut(&self) {
        self.cut.send_replace(true);
    }

    /// Counts a request in until it is dropped.
    pub fn enter(self: &Arc<Self>) -> InFlight {
        self.in_flight.fetch_add(1, Ordering::AcqRel);
        InFlight(Arc::clone(self))
    }

    /// Requests in flight.
    pub fn in_flight(&self) -> usize {
        self.in_flight.load(Ordering::Acquire)
    }

    /// Counts a client connection in until it is dropped.
    pub fn connect(self: &Arc<Self>) -> Connected {
        self.connections.fetch_add(1, Ordering::AcqRel);
        Connected(Arc::clone(self))
    }

    /// Client connections that are open.
    pub fn connections(&self) -> usize {
        self.connections.load(Ordering::Acquire)
    }

    /// Every listener has stopped accepting.
    pub fn stopped_accepting(&self) {
        self.accepting.send_replace(false);
    }

    /// Waits until no listener accepts any more.
    pub async fn accepts_no_more(&self) {
        // The sender is ours.
        let _ = self.accepting.subscribe().wait_for(|accepting| !accepting).await;
    }

    /// Waits until no request is in flight; `false` when that took longer than `limit`.
    pub async fn idle(&self, limit: Duration) -> bool {
        tokio::time::timeout(limit, self.none(Self::in_flight)).await.is_ok()
    }

    /// Waits until every client connection has closed; `false` when that took longer than `limit`.
    pub async fn closed(&self, limit: Duration) -> bool {
        tokio::time::timeout(limit, self.none(Self::connections)).await.is_ok()
    }

    async fn none(&self, count: fn(&Self) -> usize) {
        loop {
            let notified = self.idle.notified();
            if count(self) == 0 {
                return;
            }
            notified.await;
        }
    }

    fn left(&self, count: &AtomicUsize) {
        if count.fetch_sub(1, Ordering::AcqRel) == 1 && self.is_draining() {
            self.idle.notify_waiters();
        }
    }
}

/// An open client connection.
pub struct Connected(Arc<Drain>);

impl Drop for Connected {
    fn drop(&mut self) {
        self.0.left(&self.0.connections);
    }
}

/// A request in flight.
pub struct InFlight(Arc<Drain>);

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.left(&self.0.in_flight);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn idle_when_the_last_request_ends_and_not_before() {
        let drain = Drain::new();
        let (first, second) = (drain.enter(), drain.enter());
        assert!(drain.begin() && !drain.begin());
        assert!(!drain.idle(Duration::from_secs(1)).await);
        drop(first);
        let waiter = tokio::spawn({
            let drain = Arc::clone(&drain);
            async move { drain.idle(Duration::from_secs(60)).await }
        });
        tokio::task::yield_now().await;
        drop(second);
        assert!(waiter.await.unwrap());
    }
}
