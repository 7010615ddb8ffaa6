//! Waits for fences: for work of a GPU that others have handed in.

/// A wait that takes so long is told as one of its own, besides being counted: 100 us, in nanoseconds.
pub const WAIT_TOLD_FROM: u64 = 100_000;

/// What there was no room for: the places of the array that the programs count it in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum FenceLoss {
    /// Waits that were not seen at all, for too many were under way.
    Flights,
    /// Waits that are counted but not told as ones of their own.
    Calls,
}

impl FenceLoss {
    /// All of them.
    pub const ALL: [Self; 2] = [Self::Flights, Self::Calls];
}
