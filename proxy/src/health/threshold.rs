//! From single health checks to ready and unready.
//!
//! One answer of a busy model server proves little, so the state turns only after several checks in
//! a row agree. At the start there is nothing to protect: an endpoint begins unready, and the first
//! success it ever has is enough, however many failures came before while the model was loading.
//!
//! Left out: the check itself, its timeout and when it runs; [`jittered`] gives the pause between
//! two.

use std::time::Duration;

use rand::{Rng, RngExt};

/// The readiness of one endpoint, as its active checks see it.
#[derive(Clone, Copy, Debug)]
pub struct Threshold {
    healthy: u32,
    unhealthy: u32,
    ready: bool,
    /// It has been ready before.
    seasoned: bool,
    /// Checks in a row that speak against `ready`.
    against: u32,
}

/// What a check changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// The endpoint takes traffic from now on.
    Ready,
    /// The endpoint takes no traffic from now on.
    Unready,
}

impl Threshold {
    /// Unready, and ready at the first success; later after `healthy` successes in a row, and
    /// unready after `unhealthy` failures in a row. Zero is taken as one.
    pub const fn new(healthy: u32, unhealthy: u32) -> Self {
        Self { healthy, unhealthy, ready: false, seasoned: false, against: 0 }
    }

    /// Other numbers from now on, after a reload. The state and the checks so far stay.
    pub const fn configure(&mut self, healthy: u32, unhealthy: u32) {
        (self.healthy, self.unhealthy) = (healthy, unhealthy);
    }

    /// Whether the endpoint is ready.
    pub const fn is_ready(&self) -> bool {
        self.ready
    }

    /// Takes the result of a check.
    pub fn observe(&mut self, ok: bool) -> Option<Change> {
        self.against = if ok == self.ready { 0 } else { self.against.saturating_add(1) };
        let enough = self.against > 0 && self.against >= self.needed();
        enough.then(|| self.turn())
    }

    /// How many checks in a row turn the present state.
    const fn needed(&self) -> u32 {
        match (self.ready, self.seasoned) {
            (true, _) => self.unhealthy,
            (false, true) => self.healthy,
            (false, false) => 1,
        }
    }

    fn turn(&mut self) -> Change {
        (self.ready, self.seasoned, self.against) = (!self.ready, true, 0);
        if self.ready { Change::Ready } else { Change::Unready }
    }
}

/// `interval` ± 10 %, evenly: so that checks of many endpoints by many proxies do not fall
/// together.
pub fn jittered(interval: Duration, rng: &mut impl Rng) -> Duration {
    let least = interval - interval / 10;
    least.saturating_add(rng.random_range(Duration::ZERO..=interval / 5))
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;
    use rand::rngs::SmallRng;

    use super::*;

    const OK: bool = true;
    const BAD: bool = false;

    fn observe(threshold: &mut Threshold, checks: &[bool]) -> Vec<Option<Change>> {
        checks.iter().map(|&ok| threshold.observe(ok)).collect()
    }

    #[test]
    fn the_first_success_is_enough() {
        let mut threshold = Threshold::new(2, 3);
        assert!(!threshold.is_ready());
        assert_eq!(threshold.observe(OK), Some(Change::Ready));
        assert!(threshold.is_ready());
    }

    #[test]
    fn the_first_success_is_enough_after_a_long_start() {
        let mut threshold = Threshold::new(2, 3);
        assert_eq!(observe(&mut threshold, &[BAD; 100]), [None; 100]);
        assert_eq!(threshold.observe(OK), Some(Change::Ready));
    }

    #[test]
    fn failures_in_a_row_make_unready_and_successes_in_a_row_ready() {
        let mut threshold = Threshold::new(2, 3);
        let checks = [OK, BAD, BAD, OK, BAD, BAD, BAD, OK, BAD, OK, OK];
        let changes: Vec<_> = observe(&mut threshold, &checks)
            .into_iter()
            .enumerate()
            .filter_map(|(check, change)| change.map(|change| (check, change)))
            .collect();
        assert_eq!(changes, [(0, Change::Ready), (6, Change::Unready), (10, Change::Ready)]);
    }

    #[test]
    fn other_numbers_keep_the_state_and_the_count() {
        let mut threshold = Threshold::new(2, 5);
        assert_eq!(observe(&mut threshold, &[OK, BAD, BAD])[1..], [None, None]);
        threshold.configure(2, 3);
        assert!(threshold.is_ready());
        assert_eq!(threshold.observe(BAD), Some(Change::Unready));
    }

    #[test]
    fn zero_is_taken_as_one() {
        let mut threshold = Threshold::new(0, 0);
        assert_eq!(observe(&mut threshold, &[BAD, OK, OK]), [None, Some(Change::Ready), None]);
        let turns = [Some(Change::Unready), None, Some(Change::Ready)];
        assert_eq!(observe(&mut threshold, &[BAD, BAD, OK]), turns);
    }

    /// A state that has turned was asked for by the last checks, all of them; one that has not was
    /// not.
    #[test]
    fn any_sequence_turns_exactly_when_it_should() {
        for seed in 0..200 {
            let mut rng = SmallRng::seed_from_u64(seed);
            let (healthy, unhealthy) = (rng.random_range(1..=4), rng.random_range(1..=4));
            let mut threshold = Threshold::new(healthy, unhealthy);
            let (mut run, mut last, mut seasoned) = (0, BAD, false);
            for _ in 0..200 {
                let (before, ok) = (threshold.is_ready(), rng.random_bool(0.5));
                run = if ok == last { run + 1 } else { 1 };
                last = ok;
                let change = threshold.observe(ok);
                let needed = if before { unhealthy } else { healthy };
                let turns = ok != before && (run >= needed || !seasoned);
                assert_eq!(change.is_some(), turns, "seed {seed}");
                assert_eq!(threshold.is_ready(), before ^ turns, "seed {seed}");
                seasoned |= turns;
            }
        }
    }

    #[test]
    fn jitter_stays_within_ten_percent_and_uses_all_of_it() {
        let seed = 11;
        let mut rng = SmallRng::seed_from_u64(seed);
        let interval = Duration::from_secs(5);
        let pauses: Vec<_> = (0..10_000).map(|_| jittered(interval, &mut rng)).collect();
        let (least, most) = (pauses.iter().min().unwrap(), pauses.iter().max().unwrap());
        let millis = Duration::from_millis;
        assert!((millis(4_500)..millis(4_510)).contains(least), "seed {seed}: {least:?}");
        assert!((millis(5_490)..=millis(5_500)).contains(most), "seed {seed}: {most:?}");
        for extreme in [Duration::ZERO, Duration::from_nanos(1), Duration::MAX] {
            assert!(jittered(extreme, &mut rng) >= extreme / 2);
        }
    }
}
