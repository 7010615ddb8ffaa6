//! Times how long processes wait in the kernel for the fences of a GPU: for work that was handed to it to be done.
//!
//! Hooks: `dma_fence_wait_start` and `dma_fence_wait_end` by their types in the kernel's BTF, and `sched_process_exit`, for a
//! wait whose end was missed.
//! Kernel: 5.11, which has the task by its type, built with BTF and CONFIG_DMA_SHARED_BUFFER; run on 6.1 and 6.18.
//! Capabilities: CAP_BPF and CAP_PERFMON.
//! Cost per event: see `ebpf/README.md`.
//!
//! A task of another network namespace, or of the kernel itself, is let go after a look at it. Waits are counted here;
//! single ones are told when they were long, without waking anyone.
//!
//! Left out: which fence, of which driver, and for whose work.

#![no_std]
#![no_main]
#![allow(
    missing_docs,
    unreachable_pub,
    reason = "the macros make public functions of their own, without a word"
)]

#[path = "../caller.rs"]
mod caller;
#[path = "../program.rs"]
mod program;

use aya_ebpf::{
    helpers::bpf_get_current_pid_tgid,
    macros::{btf_tracepoint, map},
    maps::{HashMap, PerCpuArray, RingBuf},
    programs::BtfTracePointContext,
};
use aya_log_ebpf::debug;
use outrigger_probes::{Call, FenceLoss, Histogram, TaskFact, WAIT_TOLD_FROM};
use program::now;

/// Waits that can be under way: one for each thread.
const FLIGHTS_MOST: u32 = 4096;

/// Room for 13,000 waits: what 13 threads can tell in 100 ms.
const RING_BYTES: u32 = 512 << 10;

/// The facts of [`TaskFact`], put in before loading.
#[unsafe(no_mangle)]
static FACTS: [u32; TaskFact::COUNT] = [0; TaskFact::COUNT];

/// When the waits under way began, by thread.
#[map]
static FLIGHTS: HashMap<u64, u64> = HashMap::with_max_entries(FLIGHTS_MOST, 0);

/// How long waits took that have ended.
#[map]
static COUNTS: PerCpuArray<Histogram> = PerCpuArray::with_max_entries(1, 0);

/// Waits that were long.
#[map]
static CALLS: RingBuf = RingBuf::with_byte_size(RING_BYTES, 0);

/// What there was no room for, by [`FenceLoss`].
#[map]
static LOST: PerCpuArray<u64> = PerCpuArray::with_max_entries(FenceLoss::ALL.len() as u32, 0);

/// A wait begins.
#[btf_tracepoint(function = "dma_fence_wait_start")]
fn begins(_: BtfTracePointContext) -> i32 {
    if caller::is_ours(&FACTS) && FLIGHTS.insert(bpf_get_current_pid_tgid(), now(), 0).is_err() {
        lost(FenceLoss::Flights);
    }
    0
}

/// It ends, because the fence was signaled, or because the time was over.
#[btf_tracepoint(function = "dma_fence_wait_end")]
fn ends(_: BtfTracePointContext) -> i32 {
    let task = bpf_get_current_pid_tgid();
    let Some(start) = FLIGHTS.get_ptr(task) else { return 0 };
    let end = now();
    // SAFETY: of this thread, so that nobody else writes it.
    let start = unsafe { *start };
    let _ = FLIGHTS.remove(task);
    let took = end.wrapping_sub(start);
    if let Some(counts) = COUNTS.get_ptr_mut(0) {
        // SAFETY: memory of this processor's own. A program that interrupts this one may write it too; all words are
        // numbers, of which every value is one.
        unsafe { &mut *counts }.observe(took);
    }
    if took >= WAIT_TOLD_FROM && !program::tell(&CALLS, Call { start, end, task, what: 0 }) {
        lost(FenceLoss::Calls);
    }
    0
}

/// A thread has ended. The kernel may have skipped the end of a wait.
#[btf_tracepoint(function = "sched_process_exit")]
fn ended(_: BtfTracePointContext) -> i32 {
    let task = bpf_get_current_pid_tgid();
    // Most have none.
    if FLIGHTS.remove(task).is_ok() {
        debug!((), "thread {} of process {} has ended in a wait", task as u32, task >> 32);
    }
    0
}

#[inline(always)]
fn lost(what: FenceLoss) {
    if let Some(count) = LOST.get_ptr_mut(what as u32) {
        // SAFETY: memory of this processor's own.
        unsafe { *count += 1 };
    }
}
