//! The family that times calls of a GPU's user-space driver: the CUDA driver API and HIP, by uprobes on the library that a
//! process has mapped.
//!
//! Why there: an application that waits for a GPU often waits in user space, without a system call that the kernel could
//! see; and everything that is built upon the driver (runtimes, frameworks, kernels compiled ahead or just in time) comes
//! through its library.
//!
//! Decides which processes, functions and places are probed at all (the modules below), and that everything can be taken
//! out of all processes at once. Left out: which request a call was for. Others may ask for the waits of the last seconds
//! ([`Cuda::waits`]).

mod library;
mod process;
mod prologue;
mod watch;

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    thread::{Builder, JoinHandle, park_timeout},
    time::{Duration, Instant},
};

use aya::maps::{HashMap, MapData, PerCpuArray, RingBuf};
use outrigger_config::validated as config;
use outrigger_probes::{Begun, Call, Calls, Frame};
use parking_lot::Mutex;

pub use watch::Process;

use super::{
    kernel::{
        Kernel, Obstacle, Release, UserPrograms, UserWay, monotonic, own_namespace, user_ways,
    },
    recent::Waits,
};
use crate::telemetry::metrics::{GpuMetrics, Metrics, ProbeName};
use library::Rules;
use watch::{SHORTEST, Watcher};

/// The programs, as `cargo xtask ebpf` built them; empty in a build without.
static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/cuda.o"));

/// Its programs.
const PROGRAMS: [&str; 3] = ["entered", "returned", "counted"];

/// Waits are told one by one from this many microseconds on.
const LEAST_WAIT: u32 = 100;

/// How often the ring is emptied while anything is watched.
const ROUND: Duration = Duration::from_millis(100);

/// Calls under way that are looked at.
const BEGUN_MOST: usize = 8192;

/// Programs that run in the kernel, and the maps that they share with us.
struct Loaded {
    programs: UserPrograms,
    waits: RingBuf<MapData>,
    maps: Maps,
}

/// What the kernel has counted.
struct Maps {
    begun: HashMap<MapData, [u64; Frame::WORDS], [u64; Begun::WORDS]>,
    calls: PerCpuArray<MapData, [u64; Calls::WORDS]>,
    /// Calls, then waits.
    lost: PerCpuArray<MapData, u64>,
    lost_before: [u64; 2],
}

/// Loads the programs, which are in no process yet.
fn load() -> Result<Loaded, Obstacle> {
    Kernel::running()?;
    let ways = user_ways(Release::running()?)?;
    let mut programs = UserPrograms::load(OBJECT, &[LEAST_WAIT], &PROGRAMS, &ways)?;
    let has = programs.programs();
    let maps = Maps {
        begun: has.map("BEGUN", HashMap::try_from)?,
        calls: has.map("CALLS", PerCpuArray::try_from)?,
        lost: has.map("LOST", PerCpuArray::try_from)?,
        lost_before: [0; 2],
    };
    Ok(Loaded { waits: has.map("WAITS", RingBuf::try_from)?, maps, programs })
}

/// Whether it can run here, and how: loads it and takes it out again.
///
/// # Errors
/// What stands in the way.
pub(super) fn attempt() -> Result<String, Obstacle> {
    Ok(told(load()?.programs.way()))
}

fn told(way: UserWay) -> String {
    format!("calls of the GPU's library are seen {way}")
}

/// The libraries that could be watched here, for people; one line each.
pub(super) fn found(settings: &config::Probes) -> Vec<String> {
    let (Ok(namespace), Ok(kernel)) = (own_namespace(), Release::running()) else { return vec![] };
    let rules = Rules { settings: settings.cuda.unwrap_or_default(), kernel };
    watch::found(namespace, rules)
}

/// The probe, while it runs.
pub struct Cuda {
    shared: Arc<Shared>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

struct Shared {
    watcher: Mutex<Watcher>,
    waits: Mutex<Waits>,
    metrics: Metrics,
    on: Arc<AtomicBool>,
    stop: AtomicBool,
}

impl Cuda {
    /// Starts it.
    ///
    /// # Errors
    /// What stands in the way.
    pub(super) fn start(settings: config::CudaProbe, metrics: &Metrics) -> Result<Self, Obstacle> {
        let Loaded { programs, waits, maps } = load()?;
        tracing::info!("{}", told(programs.way()));
        let rules = Rules { settings, kernel: Release::running()? };
        let on = Arc::new(AtomicBool::new(true));
        let watcher =
            Watcher::new(programs, rules, own_namespace()?, metrics.gpu(), Arc::clone(&on));
        let shared = Arc::new(Shared {
            watcher: Mutex::new(watcher),
            waits: Mutex::new(Waits::new(waits)),
            metrics: metrics.clone(),
            on,
            stop: AtomicBool::new(false),
        });
        let reader = Reader { shared: Arc::clone(&shared), maps, gpu: metrics.gpu() };
        let thread = Builder::new().name("gpu-probe".to_owned()).spawn(move || reader.run());
        let thread = thread.map_err(|error| Obstacle::Refused { why: error.to_string() })?;
        Ok(Cuda { shared, thread: Mutex::new(Some(thread)) })
    }

    /// Takes the probes out of all processes, or lets them be put in again. Returns when they are out, and whether anything
    /// has changed.
    pub fn switch(&self, on: bool) -> bool {
        let changed = self.shared.on.swap(on, SeqCst) != on;
        self.shared.metrics.probe(ProbeName::Cuda).set(on.into());
        if !on {
            self.shared.watcher.lock().detach();
        }
        self.wake();
        changed
    }

    /// Whether it is switched on, and what it watches.
    #[must_use]
    pub fn state(&self) -> (bool, Vec<Process>) {
        (self.shared.on.load(SeqCst), self.shared.watcher.lock().processes())
    }

    /// Waits of the last 10 s that ended after `from` and began before `to` (nanoseconds of CLOCK_MONOTONIC), by their ends.
    /// Those that took less than 100 us are not among them, nor those that have not ended.
    #[must_use]
    pub fn waits(&self, from: u64, to: u64) -> Vec<Call> {
        self.shared.waits.lock().overlapping(from, to)
    }

    fn wake(&self) {
        if let Some(thread) = &*self.thread.lock() {
            thread.thread().unpark();
        }
    }

    /// Takes everything out of processes and kernel.
    pub(super) fn finish(&self) {
        self.shared.stop.store(true, SeqCst);
        self.shared.on.store(false, SeqCst);
        self.wake();
        if let Some(thread) = self.thread.lock().take() {
            // One that panicked has said so.
            let _ = thread.join();
        }
        self.shared.watcher.lock().detach();
    }
}

/// The thread that looks for processes, and reads what the kernel has counted.
struct Reader {
    shared: Arc<Shared>,
    maps: Maps,
    gpu: Arc<GpuMetrics>,
}

impl Reader {
    fn run(mut self) {
        let mut due = Instant::now();
        while !self.shared.stop.load(SeqCst) {
            let now = Instant::now();
            // Switched on or off: do not wait.
            if now >= due || self.shared.watcher.lock().is_idle() {
                self.look(now);
                due = now + SHORTEST;
            }
            self.shared.waits.lock().read();
            let idle = self.shared.watcher.lock().is_idle();
            park_timeout(if idle { SHORTEST } else { ROUND });
        }
    }

    fn look(&mut self, now: Instant) {
        let mut watcher = self.shared.watcher.lock();
        watcher.round(now);
        let oldest = self.maps.oldest(|process| watcher.has_number(process));
        drop(watcher);
        self.gpu.oldest_call.set(oldest.as_secs_f64());
        self.maps.tell(&self.gpu);
    }
}

impl Maps {
    fn tell(&mut self, gpu: &GpuMetrics) {
        gpu.update(|function| {
            let mut all = Calls::default();
            let function = u32::try_from(function).ok()?;
            for words in self.calls.get(&function, 0).ok()?.iter() {
                all.merge(&Calls::from_words(words));
            }
            Some(all)
        });
        let counters = [&gpu.lost_calls, &gpu.lost_waits];
        for ((at, counter), before) in (0..).zip(counters).zip(&mut self.lost_before) {
            let Ok(counts) = self.lost.get(&at, 0) else { continue };
            let all: u64 = counts.iter().sum();
            counter.add(all.saturating_sub(*before));
            *before = all;
        }
    }

    /// How long the oldest call has been under way. Those of processes that are not watched any more will not return: they
    /// are forgotten.
    fn oldest(&mut self, is_watched: impl Fn(u64) -> bool) -> Duration {
        let begun = self.begun.iter().take(BEGUN_MOST).filter_map(Result::ok);
        let begun = begun.map(|(frame, begun)| (frame, Begun::from_words(begun)));
        let (there, gone): (Vec<_>, Vec<_>) = begun.partition(|(_, it)| is_watched(it.process));
        for (frame, _) in gone {
            // The kernel may have been faster.
            let _ = self.begun.remove(&frame);
        }
        let calls: Vec<_> =
            there.into_iter().map(|(frame, begun)| (Frame::from_words(frame), begun)).collect();
        oldest(&calls)
            .map_or(Duration::ZERO, |start| Duration::from_nanos(monotonic().saturating_sub(start)))
    }
}

/// When the oldest call began that has not been left without a return. A thread that has called from further up its stack
/// afterwards has left it.
fn oldest(calls: &[(Frame, Begun)]) -> Option<u64> {
    let place = |frame: &Frame| frame.place >> 8;
    let is_left = |(frame, begun): &(Frame, Begun)| {
        calls.iter().any(|(other, later)| {
            other.task == frame.task && later.start > begun.start && place(other) > place(frame)
        })
    };
    calls.iter().filter(|call| !is_left(call)).map(|(_, begun)| begun.start).min()
}

#[cfg(test)]
mod tests {
    use super::*;
    use outrigger_probes::Cookie;

    #[test]
    fn a_call_that_was_left_does_not_hang() {
        let cookie = Cookie::new(0, 1).expect("of the table");
        let call = |task, stack, start| {
            (Frame::entered(task, stack, cookie), Begun { start, ..Begun::default() })
        };
        assert_eq!(oldest(&[]), None);
        assert_eq!(oldest(&[call(1, 0x1000, 50), call(2, 0x2000, 40)]), Some(40));
        let nested = [call(1, 0x2000, 50), call(1, 0x1000, 60)];
        assert_eq!(oldest(&nested), Some(50), "called within the other");
        let left = [call(1, 0x1000, 50), call(1, 0x2000, 60)];
        assert_eq!(oldest(&left), Some(60), "called from further up");
        let others = [call(1, 0x1000, 50), call(2, 0x2000, 60)];
        assert_eq!(oldest(&others), Some(50), "another thread has another stack");
    }
}
