//! Times the jobs that processes hand to the DRM scheduler: how long they wait for the hardware, and how long it has them.
//!
//! Hooks: tracepoints of the group gpu_scheduler, which a module of the kernel brings: `drm_sched_job_queue`,
//! `drm_sched_job_run` and `drm_sched_job_done`, or by their names before Linux 6.17 `drm_sched_job`, `drm_run_job` and
//! `drm_sched_process_job`. Where their fields lie is read from tracefs.
//! Kernel: 5.11, which has the task by its type, built with BTF; run on 6.1.
//! Capabilities: CAP_BPF and CAP_PERFMON, and a tracefs that can be read.
//! Cost per event: see `ebpf/README.md`.
//!
//! Whose a job is can be told only when it is handed in: a task of another network namespace, or of the kernel itself, is let go
//! then. What happens to the job later happens in threads of the kernel and in interrupts, and is looked up by its fence.
//!
//! Left out: jobs that wait for others (the time counts as queued), and what never comes through the scheduler.

#![no_std]
#![no_main]
#![allow(
    missing_docs,
    unreachable_pub,
    reason = "the macros make public functions of their own, without a word"
)]

#[path = "../caller.rs"]
mod caller;
#[path = "../counts.rs"]
mod counts;
#[path = "../program.rs"]
mod program;

use aya_ebpf::{
    EbpfContext as _,
    helpers::{bpf_probe_read_kernel, generated::bpf_probe_read_kernel_str},
    macros::{map, tracepoint},
    maps::{HashMap, PerCpuArray, PerCpuHashMap},
    programs::TracePointContext,
};
use aya_log_ebpf::debug;
use outrigger_probes::{Histogram, Job, JobFact, JobKey, RING_BYTES, Ring};
use program::now;

/// Jobs that can be under way.
const JOBS_MOST: u32 = 4096;

/// Rings that are told apart, and [`Ring::OTHER`], which is put in before anything runs. Each takes 280 bytes for every
/// processor in either map: an interrupt cannot wait for memory.
const RINGS_MOST: u32 = 32 + 1;

/// The facts of [`JobFact`], put in before loading.
#[unsafe(no_mangle)]
static FACTS: [u32; JobFact::COUNT] = [0; JobFact::COUNT];

/// Jobs that are not done.
#[map]
static JOBS: HashMap<JobKey, Job> = HashMap::with_max_entries(JOBS_MOST, 0);

/// For how long jobs were queued that have run, by ring.
#[map]
static QUEUED: PerCpuHashMap<Ring, Histogram> = PerCpuHashMap::with_max_entries(RINGS_MOST, 0);

/// For how long jobs ran that are done, by ring.
#[map]
static RUN: PerCpuHashMap<Ring, Histogram> = PerCpuHashMap::with_max_entries(RINGS_MOST, 0);

/// Jobs that are not timed, for too many were under way.
#[map]
static LOST: PerCpuArray<u64> = PerCpuArray::with_max_entries(1, 0);

/// A job is handed in, by the task that this runs in.
#[tracepoint]
fn queued(ctx: TracePointContext) -> u32 {
    let key = key(&ctx, JobFact::QueuedFence, JobFact::QueuedSequence);
    if !caller::is_ours(&FACTS) {
        // The fence may lie where that of a job of ours lay of whose end nothing was said.
        if JOBS.remove(key).is_ok() {
            debug!(
                (),
                "job {}:{} is gone, and was neither done nor given up", key.fence, key.sequence
            );
        }
        return 0;
    }
    if JOBS.insert(key, Job::new(now(), ring(&ctx)), 0).is_err()
        && let Some(count) = LOST.get_ptr_mut(0)
    {
        // SAFETY: memory of this processor's own.
        unsafe { *count += 1 };
    }
    0
}

/// The scheduler hands a job to the hardware.
#[tracepoint]
fn runs(ctx: TracePointContext) -> u32 {
    let key = key(&ctx, JobFact::RunFence, JobFact::RunSequence);
    let Some(job) = JOBS.get_ptr_mut(key) else { return 0 };
    // SAFETY: a value of the map, all words of which are numbers; only one task runs a job.
    let job = unsafe { &mut *job };
    if let Some(took) = job.runs(now()) {
        let ring = job.ring;
        count(&QUEUED, ring, took);
    }
    0
}

/// The hardware has done a job.
#[tracepoint]
fn done(ctx: TracePointContext) -> u32 {
    let key = key(&ctx, JobFact::DoneFence, JobFact::DoneSequence);
    let Some(job) = JOBS.get_ptr(key) else { return 0 };
    // SAFETY: a value of the map, all words of which are numbers.
    let Job { queued, run, ring } = unsafe { *job };
    let _ = JOBS.remove(key);
    if let Some(took) = (Job { queued, run, ring }).done(now()) {
        count(&RUN, ring, took);
    }
    0
}

#[inline(always)]
fn count(counts: &PerCpuHashMap<Ring, Histogram>, ring: Ring, took: u64) {
    if !counts::count(counts, ring, took) {
        // Has been there from the beginning.
        counts::count(counts, Ring::OTHER, took);
    }
}

#[inline(always)]
fn key(ctx: &TracePointContext, fence: JobFact, sequence: JobFact) -> JobKey {
    let sequence = if fact(sequence) == 0 { 0 } else { field(ctx, sequence) };
    JobKey { fence: field(ctx, fence), sequence }
}

/// The name of the ring that a job is for, as much of it as fits.
#[inline(always)]
fn ring(ctx: &TracePointContext) -> Ring {
    let place: u32 = field(ctx, JobFact::QueuedRing);
    let name = ctx.as_ptr().cast::<u8>().wrapping_add((place & 0xffff) as usize);
    let mut ring = Ring::OTHER;
    // SAFETY: room for so many bytes; the helper checks the address, and what it cannot read stays zeros.
    unsafe {
        bpf_probe_read_kernel_str((&raw mut ring).cast(), RING_BYTES as u32, name.cast());
    }
    ring
}

/// A field of the tracepoint's record; zero if there is none.
#[inline(always)]
fn field<T: Default>(ctx: &TracePointContext, field: JobFact) -> T {
    let place = ctx.as_ptr().cast::<u8>().wrapping_add(fact(field) as usize);
    // SAFETY: the helper checks the address.
    unsafe { bpf_probe_read_kernel(place.cast::<T>()) }.unwrap_or_default()
}

#[inline(always)]
fn fact(fact: JobFact) -> u32 {
    program::fact(&FACTS, fact as usize)
}
