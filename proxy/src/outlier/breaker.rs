//! The breaker of a whole backend: while all of it fails, requests fail at once instead of trying
//! one endpoint after the other.
//!
//! The state machine is that of an endpoint, an [`Outlier`]; only what opens it differs, since a
//! backend that mostly works sees failures in a row every day:
//!
//! - of the attempts that ended in the last [`Settings::window`] at least [`Settings::attempts`]
//!   are known and the share [`Settings::failures`] of them failed; or
//! - nobody could be connected to: `TRIES` failed connections for each endpoint and none that was
//!   made in between. That is known before the window is full.
//!
//! Open, it admits nobody for `base × times`, jittered, as an ejection lasts. Half open, it admits
//! one request at a time as a probe: its first byte closes the breaker, its failure opens it for
//! longer. What happened before is forgotten when it closes, so it takes a new window to open it
//! again; together with `base` that bounds how often it can flap.
//!
//! An attempt is a success when its answer begins, since a stream may go on for minutes in which
//! others fail; one that breaks off later is a failure on top. Otherwise it counts as it does for its
//! endpoint: busy (429, 503) is no failure, and an attempt that nobody waits for any more, of a
//! client that left or a race that was lost, is nothing.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::peers::Window;
use super::{Admit, Circuit, Failure, Group, Outlier, Pass, Reason, Transition};

/// Failed connections for each endpoint, one after the other, that say that nobody is there. One
/// alone may be a restart, as for an endpoint.
const TRIES: u32 = 2;

/// There are no others to spare: a backend stands for itself.
const ALONE: Group = Group { all: 1, out: 0, serving: 1 };

/// When it opens, and for how long.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Settings {
    /// The share of the attempts in the window that must have failed, above 0.0 to 1.0.
    pub failures: f64,
    /// Attempts in the window that are needed to judge.
    pub attempts: u32,
    /// What is looked back on.
    pub window: Duration,
    /// How long it is open the first time; see [`super::Settings::base`].
    pub base: Duration,
    /// The longest, before jitter.
    pub max: Duration,
    /// It stays open up to so much longer; a share, 0.0 to 1.0.
    pub jitter: f64,
}

impl Settings {
    const fn outlier(&self) -> super::Settings {
        let (base, max, jitter) = (self.base, self.max, self.jitter);
        super::Settings { failures: 1, base, max, jitter, max_share: 1.0 }
    }
}

/// The breaker of one backend.
#[derive(Debug)]
pub struct Breaker {
    outlier: Arc<Outlier>,
    window: Window,
    settings: Mutex<Settings>,
    /// Connections that failed since one was made.
    unreached: AtomicU32,
}

impl Breaker {
    /// Closed. The seed is that of the jitter; see [`Outlier::new`].
    pub fn new(settings: Settings, seed: u64, now: Instant) -> Self {
        Self {
            outlier: Outlier::new(settings.outlier(), seed, now),
            window: Window::of_ends(settings.window, now),
            settings: Mutex::new(settings),
            unreached: AtomicU32::new(0),
        }
    }

    /// Other settings from now on, after a reload. When it is open it stays so for as long as it
    /// was to be.
    pub fn configure(&self, settings: Settings) {
        self.outlier.configure(settings.outlier());
        self.window.configure_ends(settings.window);
        *self.settings.lock() = settings;
    }

    /// Where it stands.
    pub fn circuit(&self, now: Instant) -> Circuit {
        self.outlier.circuit(now)
    }

    /// Whether an attempt would be let in now, as a probe or as any other.
    pub fn admits(&self, now: Instant) -> bool {
        self.outlier.admits(now) != Admit::No
    }

    /// Whether one that is not a probe would be. One atomic load.
    pub fn is_closed(&self) -> bool {
        !self.outlier.is_ejected()
    }

    /// The right to make one attempt now.
    pub fn acquire(&self, now: Instant) -> Option<Pass> {
        self.outlier.acquire(now)
    }

    /// Somebody could be connected to.
    pub fn reached(&self) {
        if self.unreached.load(Relaxed) > 0 {
            self.unreached.store(0, Relaxed);
        }
    }

    /// The attempt succeeded, as far as the backend is concerned.
    pub fn succeeded(&self, pass: Pass, now: Instant) -> Option<Transition> {
        self.window.succeeded(now);
        let transition = self.outlier.on_success(pass, now);
        if transition == Some(Transition::Restored) {
            self.window.clear();
        }
        transition
    }

    /// The attempt failed, in a backend of so many endpoints.
    pub fn failed(
        &self,
        pass: Pass,
        failure: Failure,
        endpoints: usize,
        now: Instant,
    ) -> Option<Transition> {
        self.window.failed(now);
        let nobody = self.finds_nobody(failure, endpoints);
        if pass.is_probe() {
            return self.outlier.on_failure(pass, failure, now, || ALONE);
        }
        let settings = *self.settings.lock();
        if !nobody && !self.fails(&settings, now) {
            return None;
        }
        let since = now.checked_sub(settings.window).unwrap_or(now);
        self.outlier.eject(Reason::Failures, since, now, || ALONE)
    }

    /// Counts a connection that could not be made; whether that was one too many.
    fn finds_nobody(&self, failure: Failure, endpoints: usize) -> bool {
        if !matches!(failure, Failure::ConnectRefused | Failure::ConnectTimeout) {
            return false;
        }
        let unreached = self.unreached.fetch_add(1, Relaxed).saturating_add(1);
        let enough = u32::try_from(endpoints.max(1)).unwrap_or(u32::MAX).saturating_mul(TRIES);
        unreached >= enough
    }

    fn fails(&self, settings: &Settings, now: Instant) -> bool {
        let (successes, failures) = self.window.ends(now);
        let ended = successes.saturating_add(failures);
        ended >= settings.attempts && f64::from(failures) >= settings.failures * f64::from(ended)
    }
}

#[cfg(test)]
mod tests;

#[cfg(test)]
mod simulation;
