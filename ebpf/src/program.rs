//! What every family of programs has, whatever it looks at: facts, a clock, a ring, and the words that the kernel asks for. A
//! module of each of the programs in `src/bin`, and not of the library, which does without `unsafe`.

use aya_ebpf::{bindings::BPF_RB_NO_WAKEUP, helpers::bpf_ktime_get_ns, maps::RingBuf};

/// One of the numbers that were put in before loading.
#[inline(always)]
pub(crate) fn fact<const N: usize>(facts: &'static [u32; N], at: usize) -> u32 {
    let place = core::ptr::from_ref(facts).cast::<u32>();
    // SAFETY: callers pass places of the array. Volatile, for the loader changes what the compiler takes for a constant.
    unsafe { place.add(at).read_volatile() }
}

/// Nanoseconds of CLOCK_MONOTONIC.
#[inline(always)]
pub(crate) fn now() -> u64 {
    // SAFETY: the kernel helper has no preconditions.
    unsafe { bpf_ktime_get_ns() }
}

/// Puts a record into a ring without waking anyone; whether there was room.
#[inline(always)]
#[allow(dead_code, reason = "not every family tells of single events")]
pub(crate) fn tell<T: 'static>(ring: &RingBuf, record: T) -> bool {
    let Some(mut place) = ring.reserve::<T>(0) else { return false };
    place.write(record);
    place.submit(u64::from(BPF_RB_NO_WAKEUP));
    true
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

/// The kernel lets helpers that read its memory be called by programs only that may be had under the GPL.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
