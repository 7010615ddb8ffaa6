//! How crowded it is in front of the places: does it help anybody that one more waits?
//!
//! One who waits sees to it that a place that comes free is taken. Where so many come that the next newcomer does that
//! just as well, waiting makes answers late and nothing faster. With `c` places and requests that come `r` times as fast
//! as places come free, on average `1 / (r - 1)` places stand idle when nobody waits: of more than one place, that is the
//! mean of a random walk that goes down when one comes and up when one leaves. So no more than one of [`BUSY`] stands
//! idle when `c · (r - 1)` is that much or more.
//!
//! What is left out: requests that find a place are not counted, so that they need not be; in a crowd hardly any does.

/// Waiting is of no use where less than one of so many places would stand idle without.
const BUSY: f64 = 20.0;
/// What the latest newcomer counts for.
const LATEST: f64 = 0.02;

/// What those who found no place have seen.
#[derive(Clone, Copy, Debug)]
pub(super) struct Crowd {
    /// Places that came free to one that came and found none.
    freed_each: f64,
    /// Places that are in use.
    in_use: u64,
}

impl Default for Crowd {
    fn default() -> Self {
        Crowd { freed_each: 1.0, in_use: 0 }
    }
}

impl Crowd {
    /// Somebody has come and found no place. So many have come free since the one before came, and so many are in use.
    pub(super) fn found_no_place(&mut self, freed: u64, in_use: u64) {
        // If more came free than are in use, it was another time.
        let freed = freed.min(in_use) as f64;
        self.freed_each += LATEST * (freed - self.freed_each);
        self.in_use = in_use;
    }

    /// Whether places are taken at once also when nobody waits for them.
    pub(super) fn fills_places(&self) -> bool {
        let excess = 1.0 / self.freed_each - 1.0;
        self.in_use as f64 * excess >= BUSY
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is thought after many have come, to so many places each time.
    fn after(freed: impl Fn(u64) -> u64, in_use: u64) -> bool {
        let mut crowd = Crowd::default();
        (0..1_000).for_each(|n| crowd.found_no_place(freed(n), in_use));
        crowd.fills_places()
    }

    #[test]
    fn places_fill_by_themselves_where_many_more_come_than_can_be_served() {
        let (third, as_many, none) = (|n| u64::from(n % 3 == 0), |_| 1, |_| 0);
        assert!(after(third, 48) && after(third, 11), "three come to each place");
        assert!(!after(third, 9), "one of twenty would be idle, and more");
        assert!(!after(as_many, 100_000) && !after(|_| 5, 100_000), "no more than can be served");
        assert!(after(none, 1), "nothing comes free at all");
        assert!(!Crowd::default().fills_places(), "nothing is known");
    }
}
