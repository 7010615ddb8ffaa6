//! How many requests of each arm make a round, and where the others wait.
//!
//! The variance of a difference of means is that of the rarer sample, nearly, when the other is a
//! few times larger. So a round wants one request of the rarer arm, and of the commoner arm half as
//! many as come with one (half, because they come irregularly), but eight will do. A second request
//! of the rarer arm waits for a round of its own: in the same round it would be worth little.

use std::collections::VecDeque;

use super::{Side, contest::Hits};

/// Over how many requests the weights are learned.
const MEMORY: f64 = 1_000.0;

/// An arm is the commoner one when it has so many times the requests of the other.
const COMMONER: f64 = 1.5;

/// So many requests of the commoner arm are always enough.
const ENOUGH: f64 = 8.0;

/// How many requests may wait. What is above joins the present round.
const ROOM: usize = 8;

/// How often either arm is seen.
#[derive(Debug, Default)]
pub(super) struct Pace {
    guarded: f64,
    against: f64,
}

impl Pace {
    pub(super) fn count(&mut self, side: Side) {
        match side {
            Side::Guarded => self.guarded += 1.0,
            Side::Against => self.against += 1.0,
        }
        if self.guarded + self.against > MEMORY {
            self.guarded *= 0.5;
            self.against *= 0.5;
        }
    }

    /// Whether the arm is clearly the commoner one.
    pub(super) fn is_commoner(&self, side: Side) -> bool {
        self.ratio(side) > COMMONER
    }

    /// How many requests of the arm a round needs.
    pub(super) fn enough(&self, side: Side) -> u64 {
        (self.ratio(side) / 2.0).clamp(1.0, ENOUGH) as u64
    }

    /// How many requests of the arm come with one of the other.
    fn ratio(&self, side: Side) -> f64 {
        match side {
            Side::Guarded => self.guarded / self.against.max(1.0),
            Side::Against => self.against / self.guarded.max(1.0),
        }
    }
}

/// Requests of one arm that wait for the next rounds, first come, first served.
#[derive(Debug)]
pub(super) struct Waiting {
    side: Side,
    queue: VecDeque<Hits>,
}

impl Waiting {
    pub(super) fn new() -> Self {
        Self { side: Side::Guarded, queue: VecDeque::with_capacity(ROOM) }
    }

    /// Which arm waits, if one does.
    pub(super) fn side(&self) -> Option<Side> {
        (!self.queue.is_empty()).then_some(self.side)
    }

    /// False when there is no room, or the other arm waits.
    pub(super) fn push(&mut self, side: Side, hits: &Hits) -> bool {
        if self.queue.len() == ROOM || self.side().is_some_and(|waits| waits != side) {
            return false;
        }
        self.side = side;
        self.queue.push_back(*hits);
        true
    }

    pub(super) fn pop(&mut self) -> Option<Hits> {
        self.queue.pop_front()
    }

    pub(super) fn clear(&mut self) {
        self.queue.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pace(guarded: u32, against: u32) -> Pace {
        let mut pace = Pace::default();
        for _ in 0..20 {
            (0..guarded).for_each(|_| pace.count(Side::Guarded));
            (0..against).for_each(|_| pace.count(Side::Against));
        }
        pace
    }

    #[test]
    fn a_round_needs_half_of_what_comes_with_one_of_the_rarer_arm() {
        for (guarded, against, enough) in
            [(1, 99, (1, 8)), (1, 9, (1, 4)), (1, 1, (1, 1)), (2, 3, (1, 1)), (9, 1, (4, 1))]
        {
            let pace = pace(guarded, against);
            let found = (pace.enough(Side::Guarded), pace.enough(Side::Against));
            assert_eq!(enough, found, "{guarded} to {against}");
        }
        assert!(pace(1, 2).is_commoner(Side::Against) && !pace(1, 2).is_commoner(Side::Guarded));
        assert!(!pace(4, 5).is_commoner(Side::Against));
        assert!(pace(0, 1).is_commoner(Side::Against));
    }

    #[test]
    fn new_weights_are_learned() {
        let mut pace = pace(1, 99);
        for _ in 0..2_000 {
            pace.count(Side::Guarded);
            pace.count(Side::Against);
        }
        assert!(!pace.is_commoner(Side::Against));
    }

    #[test]
    fn only_one_arm_waits_and_only_a_few() {
        let mut waiting = Waiting::new();
        let hits = Hits::default();
        assert_eq!(None, waiting.side());
        for _ in 0..ROOM {
            assert!(waiting.push(Side::Against, &hits));
            assert!(!waiting.push(Side::Guarded, &hits));
        }
        assert!(!waiting.push(Side::Against, &hits));
        assert_eq!((Some(Side::Against), Some(hits)), (waiting.side(), waiting.pop()));
        waiting.clear();
        assert_eq!(None, waiting.side());
        assert!(waiting.push(Side::Guarded, &hits));
    }
}
