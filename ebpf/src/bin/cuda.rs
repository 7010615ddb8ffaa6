//! Times calls of a GPU's user-space driver: the CUDA driver API, and HIP.
//!
//! Hooks: uprobes at the first instruction of the functions of `outrigger_probes::FUNCTIONS`, and where they return, in the
//! processes that user space attaches them to and in no other.
//! Kernel: 5.15, for what a probe is told of where it is attached (its cookie); x86-64.
//! Capabilities: CAP_BPF and CAP_PERFMON where they hang by links (`uprobe_multi`, from 6.10 on); otherwise CAP_SYS_ADMIN, for
//! then a uprobe is a perf event.
//! Cost per call: see `ebpf/README.md`.
//!
//! The beginning of a call is kept until it returns, by thread, function and frame. Calls are counted on the processor
//! that they return on; those that were waited for go into the ring, too, without waking anyone, when they took longer than
//! user space has said.

#![no_std]
#![no_main]
#![allow(
    missing_docs,
    unreachable_pub,
    reason = "the macros make public functions of their own, without a word"
)]

#[path = "../program.rs"]
mod program;

use aya_ebpf::{
    EbpfContext,
    helpers::{bpf_get_attach_cookie, bpf_get_current_pid_tgid},
    macros::{map, uprobe, uretprobe},
    maps::{LruHashMap, PerCpuArray, RingBuf},
    programs::{ProbeContext, RetProbeContext},
};
use aya_log_ebpf::debug;
use outrigger_probes::{Begun, Call, Calls, Cookie, FUNCTIONS, Frame};
use program::now;

/// Calls that can be under way at once: one per thread, as a rule, and half a MiB of the kernel's memory.
const BEGUN_MOST: u32 = 8192;

/// Room for 13,000 waits, which is what 13 threads tell in 100 ms when each wait is as short as may be told.
const RING_BYTES: u32 = 512 << 10;

/// Where registers are in what the kernel keeps of them on x86-64, in words: the stack pointer, and the second, third and
/// fifth argument.
const RSP: usize = 19;
const RSI: usize = 13;
const RDX: usize = 12;
const R8: usize = 9;

/// A wait that took less microseconds is not told, only counted. Put in before loading.
#[unsafe(no_mangle)]
static FACTS: [u32; 1] = [0];

/// The calls that are under way.
#[map]
static BEGUN: LruHashMap<Frame, Begun> = LruHashMap::with_max_entries(BEGUN_MOST, 0);

/// The calls of each function.
#[map]
static CALLS: PerCpuArray<Calls> = PerCpuArray::with_max_entries(FUNCTIONS.len() as u32, 0);

/// Waits that have ended.
#[map]
static WAITS: RingBuf = RingBuf::with_byte_size(RING_BYTES, 0);

/// Calls whose beginning was not there any more when they returned, and waits for which the ring had no room.
#[map]
static LOST: PerCpuArray<u64> = PerCpuArray::with_max_entries(2, 0);
const LOST_CALLS: u32 = 0;
const LOST_WAITS: u32 = 1;

/// A function begins.
#[uprobe]
fn entered(ctx: ProbeContext) -> u32 {
    let cookie = cookie(&ctx);
    let frame = Frame::entered(bpf_get_current_pid_tgid(), register(&ctx, RSP), cookie);
    let (bytes, process) = (argument(&ctx, cookie.bytes()), cookie.process());
    let begun = Begun { start: now(), bytes, process };
    if BEGUN.insert(&frame, &begun, 0).is_err() {
        lose(LOST_CALLS);
    }
    0
}

/// It returns.
#[uretprobe]
fn returned(ctx: RetProbeContext) -> u32 {
    let end = now();
    let cookie = cookie(&ctx);
    let task = bpf_get_current_pid_tgid();
    let frame = Frame::returned(task, register(&ctx, RSP), cookie);
    // SAFETY: nobody else has the frame of a thread that is here.
    let Some(begun) = (unsafe { BEGUN.get(&frame) }).copied() else {
        debug!((), "function {} has returned without having begun", cookie.function());
        lose(LOST_CALLS);
        return 0;
    };
    // It was there.
    let _ = BEGUN.remove(&frame);
    let took = end.saturating_sub(begun.start);
    if let Some(calls) = calls(cookie) {
        calls.observe(took, begun.bytes, ctx.ret());
    }
    if cookie.waits() && took >= least_wait() {
        let call = Call { start: begun.start, end, task, what: cookie.function() };
        if !program::tell(&WAITS, call) {
            lose(LOST_WAITS);
        }
    }
    0
}

/// A function begins that is called too often to be timed.
#[uprobe]
fn counted(ctx: ProbeContext) -> u32 {
    if let Some(calls) = calls(cookie(&ctx)) {
        calls.count();
    }
    0
}

#[inline(always)]
fn cookie(ctx: &impl EbpfContext) -> Cookie {
    // SAFETY: the context that the program was called with.
    Cookie(unsafe { bpf_get_attach_cookie(ctx.as_ptr()) })
}

#[inline(always)]
fn register(ctx: &impl EbpfContext, at: usize) -> u64 {
    // SAFETY: the context is the registers of the task, of which that is one; the verifier checks the offset. Volatile, for
    // the verifier wants to know which one is read, and the compiler would make one read of several.
    unsafe { ctx.as_ptr().cast::<u64>().add(at).read_volatile() }
}

/// An argument, counted from 1; of those that are no number of bytes in any function it is nothing.
#[inline(always)]
fn argument(ctx: &ProbeContext, number: u64) -> u64 {
    let [second, third, fifth] = [RSI, RDX, R8].map(|at| register(ctx, at));
    match number {
        2 => second,
        3 => third,
        5 => fifth,
        _ => 0,
    }
}

#[inline(always)]
fn calls(cookie: Cookie) -> Option<&'static mut Calls> {
    let calls = CALLS.get_ptr_mut(cookie.function() as u32)?;
    // SAFETY: memory of this processor's own, which stays while the program runs. A program that interrupts this one may
    // write it too; all words are numbers, of which every value is one.
    Some(unsafe { &mut *calls })
}

/// In nanoseconds.
#[inline(always)]
fn least_wait() -> u64 {
    u64::from(program::fact(&FACTS, 0)) * 1000
}

#[inline(always)]
fn lose(what: u32) {
    if let Some(lost) = LOST.get_ptr_mut(what) {
        // SAFETY: memory of this processor's own.
        unsafe { *lost += 1 };
    }
}
