//! Looks at what the programs have left in their maps, and gives it to metrics and log. The kernel wakes nobody.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use super::{
    jobs::{self, Jobs},
    waits::FenceWaits,
};
use crate::{
    probes::kernel::{Kernel, Obstacle},
    telemetry::metrics::FenceMetrics,
};

/// Between two readings of what was counted.
const COUNT: Duration = Duration::from_secs(1);

/// Between two looks for the scheduler's tracepoints, as long as there are none, and for jobs that were given up.
const SEARCH: Duration = Duration::from_secs(10);

/// The parts of the family: each runs, or why it does not. Not both are missing.
pub(super) struct Parts {
    pub(super) waits: Result<FenceWaits, Obstacle>,
    pub(super) jobs: Result<Jobs, Obstacle>,
}

impl Parts {
    /// How each part goes, in words, one for each.
    pub(super) fn told(&self) -> [String; 2] {
        let not = |what: &str, obstacle: &Obstacle| {
            format!("no {what}: {obstacle}; {}", obstacle.remedy())
        };
        [
            match &self.waits {
                Ok(waits) => format!("waits for fences are seen {}", waits.told),
                Err(obstacle) => not("waits for fences", obstacle),
            },
            match &self.jobs {
                Ok(jobs) => format!("jobs are seen {}", jobs.told),
                Err(obstacle) => not("jobs of the DRM scheduler", obstacle),
            },
        ]
    }
}

/// The user's end of the programs.
pub(super) struct Watcher {
    parts: Parts,
    metrics: Arc<FenceMetrics>,
    counted: Option<Instant>,
    searched: Instant,
}

impl Watcher {
    pub(super) fn new(parts: Parts, metrics: Arc<FenceMetrics>) -> Self {
        Watcher { parts, metrics, counted: None, searched: Instant::now() }
    }

    /// Does what is due.
    pub(super) fn pass(&mut self) {
        let now = Instant::now();
        if now - self.searched >= SEARCH {
            self.searched = now;
            self.search();
        }
        if self.counted.is_none_or(|last| now - last >= COUNT) {
            self.counted = Some(now);
            self.count();
        }
    }

    /// A module with the scheduler may have been loaded since.
    fn search(&mut self) {
        match &mut self.parts.jobs {
            Ok(jobs) => jobs.forget(),
            Err(Obstacle::NoHook(_)) if jobs::are_there() => {
                self.parts.jobs = Kernel::running().and_then(|kernel| jobs::load(&kernel));
                tracing::info!("{}", self.parts.told()[1]);
            }
            Err(_) => {}
        }
    }

    fn count(&mut self) {
        if let Ok(waits) = &mut self.parts.waits {
            if let Some(times) = waits.times() {
                self.metrics.waits(times, waits.lost());
            }
            waits.write_down();
        }
        if let Ok(jobs) = &mut self.parts.jobs {
            self.metrics.jobs(jobs.times(), jobs.lost());
            jobs.write_down();
        }
    }
}
