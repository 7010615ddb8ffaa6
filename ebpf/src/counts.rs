//! Histograms that are made in the kernel, one for each thing that is counted. A module of the programs that count, for the
//! same reason as `program.rs`.

use aya_ebpf::maps::PerCpuHashMap;
use outrigger_probes::Histogram;

/// What a histogram is before anything is counted.
static NOTHING: Histogram = Histogram { count: 0, sum: 0, buckets: [0; 32] };

/// Counts what took so many nanoseconds; whether there was room.
#[inline(always)]
pub(crate) fn count<K>(counts: &PerCpuHashMap<K, Histogram>, what: K, took: u64) -> bool {
    let place = counts.get_ptr_mut(&what).or_else(|| {
        // Another processor may have been faster, which does no harm: each has memory of its own.
        let _ = counts.insert(&what, &NOTHING, 0);
        counts.get_ptr_mut(&what)
    });
    // SAFETY: memory of this processor's own. A program that interrupts this one may write it too; all words are numbers,
    // of which every value is one.
    place.map(|histogram| unsafe { &mut *histogram }.observe(took)).is_some()
}
