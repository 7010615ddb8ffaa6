//! Waits for fences: the programs that time them, and what they have counted.

use aya::maps::{MapData, PerCpuArray, RingBuf};
use outrigger_probes::{FenceLoss, Histogram};

use crate::probes::{
    kernel::{Hook, Kernel, Obstacle, Programs, Way},
    recent::Waits,
};

/// The programs, as `cargo xtask ebpf` built them; empty in a build without.
static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/fences.o"));

/// The ends before the beginnings: of a wait whose beginning is seen the end is to be seen, too.
const WAYS: &[Way] = &[Way {
    told: "by the tracepoints of fences",
    programs: &[
        ("ended", Hook::Tracepoint("sched_process_exit")),
        ("ends", Hook::Tracepoint("dma_fence_wait_end")),
        ("begins", Hook::Tracepoint("dma_fence_wait_start")),
    ],
}];

/// The programs in the kernel, and the maps that they share with us.
pub(super) struct FenceWaits {
    pub(super) told: &'static str,
    /// Holds the programs.
    programs: Programs,
    counts: PerCpuArray<MapData, [u64; Histogram::WORDS]>,
    lost: PerCpuArray<MapData, u64>,
}

/// Loads the programs and lets them run.
///
/// # Errors
/// What stands in the way.
pub(super) fn load(kernel: &Kernel) -> Result<(FenceWaits, Waits), Obstacle> {
    let (mut programs, way) = Programs::hung(OBJECT, &kernel.task()?, kernel, WAYS)?;
    let ring = programs.map("CALLS", RingBuf::try_from)?;
    let waits = FenceWaits {
        told: way.told,
        counts: programs.map("COUNTS", PerCpuArray::try_from)?,
        lost: programs.map("LOST", PerCpuArray::try_from)?,
        programs,
    };
    Ok((waits, Waits::new(ring)))
}

impl FenceWaits {
    /// How long waits took since it runs; `None` when that cannot be read.
    pub(super) fn times(&self) -> Option<Histogram> {
        let mut sum = Histogram::default();
        let processors = self.counts.get(&0, 0).ok()?;
        processors.iter().for_each(|words| sum.merge(&Histogram::from_words(words)));
        Some(sum)
    }

    /// What there was no room for, in the order of [`FenceLoss::ALL`].
    pub(super) fn lost(&self) -> [u64; FenceLoss::ALL.len()] {
        FenceLoss::ALL.map(|what| {
            let counts = self.lost.get(&(what as u32), 0);
            counts.map_or(0, |counts| counts.iter().sum())
        })
    }

    /// Writes down what the programs have said since.
    pub(super) fn write_down(&mut self) {
        self.programs.write_down();
    }
}
