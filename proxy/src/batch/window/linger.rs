//! For how much of the window waiting is of any use.

use std::time::Duration;

/// The shortest wait, as a part of the window.
const SHORTEST: u32 = 8;

/// How long a batch is kept open, at present.
#[derive(Debug)]
pub(super) struct Linger {
    longest: Duration,
    present: Duration,
}

impl Linger {
    pub(super) const fn new(longest: Duration) -> Self {
        Self { longest, present: longest }
    }

    pub(super) const fn wait(&self) -> Duration {
        self.present
    }

    /// From when on a mate is late, after the opening.
    pub(super) fn late(&self) -> Duration {
        self.present / 2
    }

    /// The time of a batch was over: whether a mate came late. If none did, half of the time would
    /// have been enough.
    pub(super) fn closed(&mut self, came_late: bool) {
        self.present = if came_late {
            (self.present * 2).min(self.longest)
        } else {
            (self.present / 2).max(self.longest / SHORTEST)
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONGEST: Duration = Duration::from_millis(8);

    #[test]
    fn it_stays_within_its_bounds() {
        let mut linger = Linger::new(LONGEST);
        let mut after = |came_late| {
            linger.closed(came_late);
            linger.wait().as_millis()
        };
        assert_eq!([false; 5].map(&mut after), [4, 2, 1, 1, 1]);
        assert_eq!([true; 5].map(&mut after), [2, 4, 8, 8, 8]);
    }
}
