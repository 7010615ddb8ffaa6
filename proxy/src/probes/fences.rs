//! The family that times what the kernel itself knows of a GPU's work: how long processes wait in it for fences, and how long
//! their jobs wait and run in the DRM scheduler.
//!
//! Why: drivers that share the kernel's DRM code (AMD, Intel, and others without CUDA) tell when work was handed in, when the
//! hardware got it and when it was done, without a word from the application. NVIDIA's own stack goes past all of that.
//!
//! Decides: the two parts run each by itself, for the scheduler is a module that may not be there. Its tracepoints are looked
//! for again while there are none.
//!
//! Left out: waits that do not go through the kernel's function for them (syncobjs, which Vulkan waits for, and i915's own
//! requests; the family `driver` sees their calls), and which fence or job a request was.

mod jobs;
mod waits;
mod watch;

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    thread::{Builder, JoinHandle, park_timeout},
    time::Duration,
};

use outrigger_probes::Call;
use parking_lot::Mutex;

use super::{
    kernel::{Kernel, Obstacle},
    recent::Waits,
};
use crate::telemetry::metrics::Metrics;
use watch::{Parts, Watcher};

/// Between two looks into the ring: it holds what 13 threads can tell in that time.
const ROUND: Duration = Duration::from_millis(100);

/// Both parts, and the waits that the first of them tells of, if it runs.
type Loaded = (Parts, Option<Waits>);

/// Loads the programs of both parts and lets them run.
///
/// # Errors
/// Neither can; what stands in the way of the first.
fn load() -> Result<Loaded, Obstacle> {
    let kernel = Kernel::running()?;
    let (waits, ring) = waits::load(&kernel)
        .map_or_else(|obstacle| (Err(obstacle), None), |(waits, ring)| (Ok(waits), Some(ring)));
    let parts = Parts { waits, jobs: jobs::load(&kernel) };
    match &parts {
        Parts { waits: Err(obstacle), jobs: Err(_) } => Err(obstacle.clone()),
        _ => Ok((parts, ring)),
    }
}

/// Whether it can run here, and how each part would: loads it and takes it out again.
///
/// # Errors
/// What stands in the way of both.
pub(super) fn attempt() -> Result<Vec<String>, Obstacle> {
    Ok(load()?.0.told().to_vec())
}

/// The probe, while it runs.
pub struct Fences {
    recent: Arc<Mutex<Option<Waits>>>,
    stop: Arc<AtomicBool>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Fences {
    /// Starts it.
    ///
    /// # Errors
    /// What stands in the way of both parts.
    pub(super) fn start(metrics: &Metrics) -> Result<Self, Obstacle> {
        let (parts, ring) = load()?;
        for told in parts.told() {
            tracing::info!("{told}");
        }
        let watcher = Watcher::new(parts, metrics.fences());
        let (recent, stop) = (Arc::new(Mutex::new(ring)), Arc::new(AtomicBool::new(false)));
        let thread = Builder::new().name("fences".to_owned());
        let thread = thread.spawn({
            let (recent, stop) = (Arc::clone(&recent), Arc::clone(&stop));
            move || watch(watcher, &recent, &stop)
        });
        let thread = thread.map_err(|error| Obstacle::Refused { why: error.to_string() })?;
        Ok(Fences { recent, stop, thread: Mutex::new(Some(thread)) })
    }

    /// Waits of the last 10 s that took 100 us or more and ended after `since`, in nanoseconds of CLOCK_MONOTONIC, by their
    /// ends. One that has not ended is not among them.
    #[must_use]
    pub fn waits(&self, since: u64) -> Vec<Call> {
        let mut recent = self.recent.lock();
        recent.as_mut().map_or_else(Vec::new, |recent| recent.overlapping(since, u64::MAX))
    }

    /// Whether it tells of waits, which is one of its parts.
    pub(super) fn has_waits(&self) -> bool {
        self.recent.lock().is_some()
    }

    /// Takes the programs out of the kernel.
    pub(super) fn finish(&self) {
        self.stop.store(true, SeqCst);
        if let Some(thread) = self.thread.lock().take() {
            thread.thread().unpark();
            // One that panicked has said so.
            let _ = thread.join();
        }
    }
}

/// Nobody wakes this thread for a wait: it looks every so often.
fn watch(mut watcher: Watcher, recent: &Mutex<Option<Waits>>, stop: &AtomicBool) {
    while !stop.load(SeqCst) {
        if let Some(recent) = &mut *recent.lock() {
            recent.read();
        }
        watcher.pass();
        park_timeout(ROUND);
    }
}
