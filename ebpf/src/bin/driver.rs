//! Times the calls of applications into the GPU's driver: ioctls on the files of its devices.
//!
//! Hooks: the function of the system call (fentry and fexit) where the kernel lets programs hang on functions, for then no
//! other system call pays; otherwise the tracepoints syscalls/sys_enter_ioctl and sys_exit_ioctl where user space can read
//! tracefs, which cost others next to nothing; otherwise `sys_enter` and `sys_exit` by their types in the kernel's BTF,
//! which see every system call and pick out ioctl. And `sched_process_exit`, for a thread that ended inside a call.
//! Kernel: 5.11, which has the task by its type, built with BTF; run on 5.15, 6.1, 6.12 and 6.18.
//! Capabilities: CAP_BPF and CAP_PERFMON.
//! Cost per event: see `ebpf/README.md`.
//!
//! A task of another network namespace is let go after a look at its namespace. Then the file is looked at behind the
//! descriptor, not the descriptor: whether it was opened before, duplicated or inherited makes no difference. Calls are
//! counted here, by device and command; single ones are told when somebody waited long, without waking anyone; what is
//! under way is in a map for everyone to look up.
//!
//! Left out: 32-bit programs on a 64-bit kernel. The first two ways do not see them; the third may take their lchown, which
//! has the number of ioctl, for one on a device.

#![no_std]
#![no_main]
#![allow(
    missing_docs,
    unreachable_pub,
    reason = "the macros make public functions of their own, without a word"
)]

#[path = "../counts.rs"]
mod counts;
#[path = "../program.rs"]
mod program;

use aya_ebpf::{
    EbpfContext as _,
    bindings::BPF_F_NO_PREALLOC,
    helpers::{
        bpf_get_current_pid_tgid, bpf_probe_read_kernel, generated::bpf_get_current_task_btf,
    },
    macros::{btf_tracepoint, fentry, fexit, map, tracepoint},
    maps::{HashMap, PerCpuArray, PerCpuHashMap, RingBuf},
    programs::{BtfTracePointContext, FEntryContext, FExitContext, TracePointContext},
};
use aya_log_ebpf::debug;
use outrigger_probes::{
    CHARACTER_DEVICE, Call, DriverFact, DriverLoss, FILE_TYPE, Flight, Histogram, Place, TOLD_FROM,
    What, major,
};
use program::now;

/// Drivers, devices and files that can be looked for.
const DEVICES_MOST: u32 = 256;

/// Pairs of device and command that are counted. Each takes 272 bytes for every processor, once it is seen.
const COUNTS_MOST: u32 = 1024;

/// Calls that can be under way.
const FLIGHTS_MOST: u32 = 4096;

/// Room for 26,000 calls that were waited for: a quarter of a second of two threads that do nothing else.
const RING_BYTES: u32 = 1 << 20;

/// Where the arguments of a system call begin in the record of its tracepoint: after eight bytes that all records have,
/// and its number. Has been so since there is such a tracepoint.
const RECORD_ARGUMENTS: usize = 16;

/// The facts of [`DriverFact`], put in before loading.
#[unsafe(no_mangle)]
static FACTS: [u32; DriverFact::COUNT] = [0; DriverFact::COUNT];

/// What is looked for, and the number it goes by: zero when that is the device's own.
#[map]
static DEVICES: HashMap<Place, u64> = HashMap::with_max_entries(DEVICES_MOST, 0);

/// Calls under way, by thread.
#[map]
static FLIGHTS: HashMap<u64, Flight> = HashMap::with_max_entries(FLIGHTS_MOST, 0);

/// Calls that have returned, by [`What`].
#[map]
static COUNTS: PerCpuHashMap<u64, Histogram> =
    PerCpuHashMap::with_max_entries(COUNTS_MOST, BPF_F_NO_PREALLOC);

/// Calls that were waited for.
#[map]
static CALLS: RingBuf = RingBuf::with_byte_size(RING_BYTES, 0);

/// What there was no room for, by [`DriverLoss`].
#[map]
static LOST: PerCpuArray<u64> = PerCpuArray::with_max_entries(DriverLoss::ALL.len() as u32, 0);

/// An ioctl begins.
#[tracepoint]
fn entered(ctx: TracePointContext) -> u32 {
    // SAFETY: inside the record; the verifier checks it.
    let argument = |at: usize| unsafe {
        ctx.as_ptr().cast::<u8>().add(RECORD_ARGUMENTS + 8 * at).cast::<u64>().read()
    };
    begins(argument(0) as u32, argument(1) as u32);
    0
}

/// An ioctl has returned.
#[tracepoint]
fn left(_: TracePointContext) -> u32 {
    ends();
    0
}

/// The function of ioctl begins, which has the registers of the system call for its argument.
#[fentry]
fn called(ctx: FEntryContext) -> i32 {
    begins_with(Typed(ctx.arg(0)));
    0
}

/// It has returned.
#[fexit]
fn returned(_: FExitContext) -> i32 {
    ends();
    0
}

/// Some system call begins.
#[btf_tracepoint(function = "sys_enter")]
fn any_entered(ctx: BtfTracePointContext) -> i32 {
    let number: u64 = ctx.arg(1);
    if number != u64::from(fact(DriverFact::Ioctl)) {
        return 0;
    }
    begins_with(Typed(ctx.arg(0)));
    0
}

/// Some system call has returned.
#[btf_tracepoint(function = "sys_exit")]
fn any_left(ctx: BtfTracePointContext) -> i32 {
    let registers = Typed(ctx.arg(0));
    let number: u32 = registers.field(DriverFact::Call);
    if number == fact(DriverFact::Ioctl) {
        ends();
    }
    0
}

/// A thread has ended. It may have done so inside a call, if the driver made it.
#[btf_tracepoint(function = "sched_process_exit")]
fn ended(_: BtfTracePointContext) -> i32 {
    let task = bpf_get_current_pid_tgid();
    // Most have none.
    if FLIGHTS.remove(task).is_ok() {
        debug!((), "thread {} of process {} has ended in a call", task as u32, task >> 32);
    }
    0
}

/// These are the registers of an ioctl that begins.
#[inline(always)]
fn begins_with(registers: Typed) {
    let descriptor: u64 = registers.field(DriverFact::FirstArgument);
    let command: u64 = registers.field(DriverFact::SecondArgument);
    begins(descriptor as u32, command as u32);
}

#[inline(always)]
fn begins(descriptor: u32, command: u32) {
    // SAFETY: the kernel helper has no preconditions.
    let task = Typed(unsafe { bpf_get_current_task_btf() }.cast());
    let namespaces: Typed = task.field(DriverFact::Namespaces);
    let network: Typed = namespaces.field(DriverFact::NetworkNamespace);
    let namespace: u32 = network.field(DriverFact::NamespaceNumber);
    if namespace != fact(DriverFact::OwnNamespace) {
        return;
    }
    let Some(device) = device_of(task, descriptor) else { return };
    let what = What { device, command }.to_word();
    let flight = Flight { start: now(), what };
    if FLIGHTS.insert(bpf_get_current_pid_tgid(), flight, 0).is_err() {
        lost(DriverLoss::Flights);
    }
}

#[inline(always)]
fn ends() {
    let task = bpf_get_current_pid_tgid();
    let Some(flight) = FLIGHTS.get_ptr(task) else { return };
    let end = now();
    // SAFETY: of this thread, so that nobody else writes it.
    let Flight { start, what } = unsafe { *flight };
    let _ = FLIGHTS.remove(task);
    let took = end.wrapping_sub(start);
    if !counts::count(&COUNTS, what, took) {
        lost(DriverLoss::Counts);
    }
    if took >= TOLD_FROM {
        if !program::tell(&CALLS, Call { start, end, task, what }) {
            lost(DriverLoss::Calls);
        }
    }
}

/// The device behind a descriptor of a task, if it is one that is looked for.
#[inline(always)]
fn device_of(task: Typed, descriptor: u32) -> Option<u32> {
    let files: Typed = task.field(DriverFact::Files);
    let table: Typed = files.field(DriverFact::Table);
    if descriptor >= table.field(DriverFact::Places) {
        return None;
    }
    let first: *const *const u8 = table.field(DriverFact::First);
    // From here on the verifier knows no types. A file that is closed meanwhile gives a wrong answer, not a fault.
    // SAFETY: the helper checks the address.
    let file = unsafe { bpf_probe_read_kernel(first.wrapping_add(descriptor as usize)) }.ok()?;
    let inode: *const u8 = read(file, DriverFact::Inode)?;
    let mode: u16 = read(inode, DriverFact::Mode)?;
    if mode & FILE_TYPE == CHARACTER_DEVICE {
        character(read(inode, DriverFact::Device)?)
    } else if fact(DriverFact::Named) != 0 {
        named(inode)
    } else {
        None
    }
}

#[inline(always)]
fn character(device: u32) -> Option<u32> {
    if fact(DriverFact::Named) != 0
        && let Some(name) = looked_for(Place::device(device))
    {
        return Some(name);
    }
    looked_for(Place::driver(major(device))).map(|_| device)
}

#[inline(always)]
fn named(inode: *const u8) -> Option<u32> {
    let number: u64 = read(inode, DriverFact::Number)?;
    let file_system: *const u8 = read(inode, DriverFact::FileSystem)?;
    let device: u32 = read(file_system, DriverFact::FileSystemDevice)?;
    looked_for(Place::file(device, number))
}

#[inline(always)]
fn looked_for(place: Place) -> Option<u32> {
    // SAFETY: one word, of which every value is one.
    unsafe { DEVICES.get(place) }.map(|name| *name as u32)
}

#[inline(always)]
fn lost(what: DriverLoss) {
    if let Some(count) = LOST.get_ptr_mut(what as u32) {
        // SAFETY: memory of this processor's own.
        unsafe { *count += 1 };
    }
}

/// A structure of the kernel that the verifier knows the type of.
#[derive(Clone, Copy)]
struct Typed(*const u8);

impl Typed {
    #[inline(always)]
    fn field<T: Copy>(self, field: DriverFact) -> T {
        // SAFETY: a pointer that the kernel passed, to a type of which BTF said where the fields are; the verifier
        // checks that there is such a field. Where it leads to nothing, the kernel reads zeros.
        unsafe { *self.0.add(fact(field) as usize).cast::<T>() }
    }
}

/// A field of what the verifier does not know the type of.
#[inline(always)]
fn read<T>(structure: *const u8, field: DriverFact) -> Option<T> {
    let address = structure.wrapping_add(fact(field) as usize).cast::<T>();
    // SAFETY: the helper checks the address.
    unsafe { bpf_probe_read_kernel(address) }.ok()
}

#[inline(always)]
fn fact(fact: DriverFact) -> u32 {
    program::fact(&FACTS, fact as usize)
}
