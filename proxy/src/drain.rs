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

    /// Waits until no request is in flight; `false` when that took longer than `limit`.
    pub async fn idle(&self, limit: Duration) -> bool {
        let idle = async {
            loop {
                let notified = self.idle.notified();
                if self.in_flight() == 0 {
                    return;
                }
                notified.await;
            }
        };
        tokio::time::timeout(limit, idle).await.is_ok()
    }
}

/// A request in flight.
pub struct InFlight(Arc<Drain>);

impl Drop for InFlight {
    fn drop(&mut self) {
        if self.0.in_flight.fetch_sub(1, Ordering::AcqRel) == 1 && self.0.is_draining() {
            self.0.idle.notify_waiters();
        }
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
