//! Passive health of one endpoint: what its own requests tell of it.
//!
//! Three views, each with its own file under [`crate::outlier`]: failures in a row, the last seconds beside those of its
//! peers, and whether it works at all on what it has. This file holds them together and turns settings into theirs.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use outrigger_config::validated as config;
use rand::RngExt;

use crate::chance;
use crate::outlier::{
    self, Outlier,
    peers::{self, Window},
    stall::{self, Progress},
};

/// The passive health of one endpoint.
pub struct Passive {
    /// Whether it is ejected.
    pub outlier: Arc<Outlier>,
    /// What it did lately.
    pub window: Window,
    /// Whether it works on what it has.
    pub progress: Arc<Progress>,
}

impl Passive {
    /// Nothing seen yet.
    pub fn new(settings: &config::Ejection, now: Instant) -> Self {
        Passive {
            outlier: Outlier::new(outlier_settings(settings), chance::rng().random(), now),
            window: Window::new(&peer_settings(settings), now),
            progress: Progress::new(stall_settings(settings), now),
        }
    }

    /// Other settings from now on, after a reload.
    pub fn configure(&self, settings: &config::Ejection) {
        self.outlier.configure(outlier_settings(settings));
        self.window.configure(&peer_settings(settings));
        self.progress.configure(stall_settings(settings));
    }

    /// Another process may serve at its address from now on.
    pub fn forget(&self) {
        self.window.clear();
        self.progress.forget();
    }
}

fn outlier_settings(ejection: &config::Ejection) -> outlier::Settings {
    outlier::Settings {
        failures: ejection.failures,
        base: ejection.base,
        max: ejection.max,
        jitter: ejection.jitter,
        max_share: ejection.max_share,
    }
}

fn stall_settings(ejection: &config::Ejection) -> stall::Settings {
    let off = stall::Settings { gaps: 0, floor: Duration::ZERO };
    ejection
        .stall
        .as_ref()
        .map_or(off, |stall| stall::Settings { gaps: stall.gaps, floor: stall.floor })
}

/// What endpoints are compared by.
pub fn peer_settings(ejection: &config::Ejection) -> peers::Settings {
    let success_rate = ejection.success_rate.as_ref().map(|rate| peers::SuccessRate {
        window: rate.window,
        requests: rate.requests,
        margin: rate.margin,
    });
    let latency = ejection.latency.as_ref().map(|latency| peers::Latency {
        window: latency.window,
        requests: latency.requests,
        factor: latency.factor,
    });
    peers::Settings { success_rate, latency }
}
