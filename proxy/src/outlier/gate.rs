//! The state of an endpoint as far as requests need to see it, in one word.

use std::time::Duration;

/// The state in one word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Gate {
    /// Closed, and the last attempt succeeded.
    Calm,
    /// Closed, with failures counted.
    Failing,
    /// Half open, and a probe is on its way.
    Probing,
    /// Ejected until this long after the origin; half open from then on.
    Ejected(Duration),
}

impl Gate {
    /// Half open since for ever.
    pub(super) const HALF_OPEN: Self = Self::Ejected(Duration::ZERO);

    /// Three small numbers, and the nanoseconds of an ejection's end above them. 2⁶⁴ ns are 584
    /// years.
    pub(super) fn encode(self) -> u64 {
        match self {
            Self::Calm => 0,
            Self::Failing => 1,
            Self::Probing => 2,
            Self::Ejected(end) => u64::try_from(end.as_nanos()).unwrap_or(u64::MAX).max(3),
        }
    }

    pub(super) const fn decode(word: u64) -> Self {
        match word {
            0 => Self::Calm,
            1 => Self::Failing,
            2 => Self::Probing,
            end => Self::Ejected(Duration::from_nanos(end)),
        }
    }
}
