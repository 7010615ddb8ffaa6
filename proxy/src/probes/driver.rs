//! The family that times calls into the GPU's driver: ioctls on the files of its devices, counted in the kernel by device and
//! command, and those that do not return seen while they do not.
//!
//! Why: what holds a request up in the driver (memory that is allocated on its way, contexts, locks that a monitor holds, a
//! GPU that has hung) shows nowhere else. What it does not show is the work itself: CUDA hands it over without a call.
//!
//! Three ways lead to the calls ([`WAYS`]). The first costs other system calls nothing, and needs a kernel that lets programs
//! hang on its functions; the second costs them next to nothing, and needs a tracefs that can be read; the third needs
//! neither.
//!
//! Left out: applications in another network namespace, and what is inside the arguments of a call.

mod commands;
mod devices;
mod recent;
mod series;
mod stuck;
mod watch;
mod xid;

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    thread::{Builder, JoinHandle, park_timeout},
    time::Duration,
};

use aya::maps::{HashMap, MapData, PerCpuArray, PerCpuHashMap, RingBuf};
use outrigger_config::validated as config;
use outrigger_probes::{Call, DriverFact, Flight, Histogram, Place};
use parking_lot::Mutex;

use super::kernel::{Function, Hook, Kernel, Obstacle, Programs, Release, Way, own_namespace};
use crate::telemetry::metrics::Metrics;
use devices::Devices;
use watch::Watcher;

/// The programs, as `cargo xtask ebpf` built them; empty in a build without.
static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/driver.o"));

/// Where the kernel keeps the registers of a system call.
#[cfg(not(target_arch = "aarch64"))]
mod registers {
    pub(super) const CALL: &str = "orig_ax";
    pub(super) const FIRST: &str = "di";
    pub(super) const SECOND: &str = "si";
    /// Bytes from the field to the second argument.
    pub(super) const FURTHER: u32 = 0;
    pub(super) const IOCTL: u32 = 16;
    pub(super) const FUNCTION: &str = "__x64_sys_ioctl";
}

#[cfg(target_arch = "aarch64")]
mod registers {
    pub(super) const CALL: &str = "syscallno";
    pub(super) const FIRST: &str = "regs";
    pub(super) const SECOND: &str = "regs";
    /// Bytes from the field to the second argument.
    pub(super) const FURTHER: u32 = 8;
    pub(super) const IOCTL: u32 = 29;
    pub(super) const FUNCTION: &str = "__arm64_sys_ioctl";
}

/// Every fact that is an offset, and where it is to be found.
const FIELDS: [(DriverFact, &str, &[&str]); DriverFact::COUNT - 3] = [
    (DriverFact::Namespaces, "task_struct", &["nsproxy"]),
    (DriverFact::NetworkNamespace, "nsproxy", &["net_ns"]),
    (DriverFact::NamespaceNumber, "net", &["ns", "inum"]),
    (DriverFact::Files, "task_struct", &["files"]),
    (DriverFact::Table, "files_struct", &["fdt"]),
    (DriverFact::Places, "fdtable", &["max_fds"]),
    (DriverFact::First, "fdtable", &["fd"]),
    (DriverFact::Inode, "file", &["f_inode"]),
    (DriverFact::Mode, "inode", &["i_mode"]),
    (DriverFact::Device, "inode", &["i_rdev"]),
    (DriverFact::Number, "inode", &["i_ino"]),
    (DriverFact::FileSystem, "inode", &["i_sb"]),
    (DriverFact::FileSystemDevice, "super_block", &["s_dev"]),
    (DriverFact::Call, "pt_regs", &[registers::CALL]),
    (DriverFact::FirstArgument, "pt_regs", &[registers::FIRST]),
    (DriverFact::SecondArgument, "pt_regs", &[registers::SECOND]),
];

/// Before all others: of a call whose beginning is seen the end is to be seen, too.
const ENDED: (&str, Hook) = ("ended", Hook::Tracepoint("sched_process_exit"));

/// What the system call is inside the kernel; its parameter are the registers.
const IOCTL: Function = Function { name: registers::FUNCTION, parameters: 1 };

/// How ioctls are seen, the ends before the beginnings.
const WAYS: &[Way] = &[
    Way {
        told: "by the function of ioctl",
        programs: &[ENDED, ("returned", Hook::Return(IOCTL)), ("called", Hook::Entry(IOCTL))],
    },
    Way {
        told: "by the tracepoints of ioctl",
        programs: &[
            ENDED,
            ("left", Hook::Listed("syscalls", "sys_exit_ioctl")),
            ("entered", Hook::Listed("syscalls", "sys_enter_ioctl")),
        ],
    },
    Way {
        told: "by looking at every system call (a tracefs at /sys/kernel/tracing that can be read would make it cheaper)",
        programs: &[
            ENDED,
            ("any_left", Hook::Tracepoint("sys_exit")),
            ("any_entered", Hook::Tracepoint("sys_enter")),
        ],
    },
];

/// The first kernel that gives programs the task they run for by its type.
const TASK: Release = Release { major: 5, minor: 11 };

/// Programs that run in the kernel, and the maps that they share with us.
struct Loaded {
    way: &'static Way,
    /// Holds the programs.
    programs: Programs,
    devices: HashMap<MapData, [u64; Place::WORDS], u64>,
    flights: HashMap<MapData, u64, [u64; Flight::WORDS]>,
    counts: PerCpuHashMap<MapData, u64, [u64; Histogram::WORDS]>,
    calls: RingBuf<MapData>,
    lost: PerCpuArray<MapData, u64>,
}

/// Loads the programs and lets them run, by the cheapest way that can be. `named` says whether single files are looked for,
/// which costs every ioctl on a file a little.
fn load(named: bool) -> Result<Loaded, Obstacle> {
    TASK.required()?;
    let kernel = Kernel::running()?;
    let (mut programs, way) = Programs::hung(OBJECT, &facts(&kernel, named)?, &kernel, WAYS)?;
    Ok(Loaded {
        way,
        devices: programs.map("DEVICES", HashMap::try_from)?,
        flights: programs.map("FLIGHTS", HashMap::try_from)?,
        counts: programs.map("COUNTS", PerCpuHashMap::try_from)?,
        calls: programs.map("CALLS", RingBuf::try_from)?,
        lost: programs.map("LOST", PerCpuArray::try_from)?,
        programs,
    })
}

fn facts(kernel: &Kernel, named: bool) -> Result<[u32; DriverFact::COUNT], Obstacle> {
    let mut facts = [0; DriverFact::COUNT];
    let offsets = kernel.offsets(FIELDS.map(|(_, structure, path)| (structure, path)))?;
    for ((fact, ..), offset) in FIELDS.iter().zip(offsets) {
        facts[*fact as usize] = offset;
    }
    facts[DriverFact::SecondArgument as usize] += registers::FURTHER;
    facts[DriverFact::Ioctl as usize] = registers::IOCTL;
    facts[DriverFact::OwnNamespace as usize] = own_namespace()?;
    facts[DriverFact::Named as usize] = named.into();
    Ok(facts)
}

/// Whether it can run here, and how: loads it and takes it out again.
///
/// # Errors
/// What stands in the way.
pub(super) fn attempt() -> Result<String, Obstacle> {
    let way = load(false)?.way.told;
    let mut devices = Devices::new(&[]);
    devices.look();
    let xid = match xid::open() {
        Ok(_) => "Xid errors from the kernel's log".to_owned(),
        Err(error) => format!("no Xid errors, for the kernel's log cannot be read: {error}"),
    };
    Ok(format!("{way}; {}; {xid}", devices.found()))
}

/// The probe, while it runs.
pub struct Driver {
    watcher: Arc<Mutex<Watcher>>,
    stop: Arc<AtomicBool>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Driver {
    /// Starts it.
    ///
    /// # Errors
    /// What stands in the way.
    pub(super) fn start(settings: &config::Driver, metrics: &Metrics) -> Result<Self, Obstacle> {
        let loaded = load(!settings.devices.is_empty())?;
        let way = loaded.way.told;
        let watcher = Watcher::new(loaded, settings, metrics.driver());
        tracing::info!("calls into the GPU driver are seen {way}; {}", watcher.found());
        let watcher = Arc::new(Mutex::new(watcher));
        let stop = Arc::new(AtomicBool::new(false));
        let thread = Builder::new().name("driver".to_owned());
        let thread = thread.spawn({
            let (watcher, stop) = (Arc::clone(&watcher), Arc::clone(&stop));
            move || watch(&watcher, &stop)
        });
        let thread = thread.map_err(|error| Obstacle::Refused { why: error.to_string() })?;
        Ok(Driver { watcher, stop, thread: Mutex::new(Some(thread)) })
    }

    /// Calls of more than 20 us that returned at `since` or later, in the order in which they did; `since` and their times
    /// are in nanoseconds of CLOCK_MONOTONIC. Some seconds of them are kept. Fetches the newest from the kernel, which
    /// may take some milliseconds when there are many.
    #[must_use]
    pub fn calls(&self, since: u64) -> Vec<Call> {
        let mut watcher = self.watcher.lock();
        watcher.drain();
        watcher.recent().since(since)
    }

    /// For how long the oldest call has been stuck, if any is; those that are there to wait for something do not count. A
    /// quarter of a second old at most.
    #[must_use]
    pub fn stuck(&self) -> Option<Duration> {
        self.watcher.lock().stuck()
    }

    /// Takes the programs out of the kernel as soon as nobody uses this any more.
    pub(super) fn finish(&self) {
        self.stop.store(true, SeqCst);
        if let Some(thread) = self.thread.lock().take() {
            thread.thread().unpark();
            // One that panicked has said so.
            let _ = thread.join();
        }
    }
}

/// Nobody wakes this thread for a call: it looks every so often.
fn watch(watcher: &Mutex<Watcher>, stop: &AtomicBool) {
    while !stop.load(SeqCst) {
        let pause = watcher.lock().pass();
        park_timeout(pause);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_offset_has_a_place_in_the_kernel() {
        for (at, (fact, ..)) in FIELDS.iter().enumerate() {
            assert_eq!(*fact as usize, at, "in the order of the table");
        }
        assert_eq!(DriverFact::Ioctl as usize, FIELDS.len());
    }
}
