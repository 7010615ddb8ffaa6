//! Which level of load a route is at.
//!
//! A level begins at once, when the load reaches its `from`: what it does is to protect, and cannot wait. It ends when
//! the load has been below its `from` by the hysteresis for the whole time of `hold`; then the load falls to the highest
//! level that it would still hold. So a load that swings around a bound does not switch with every request.
//!
//! Requests per second are those that arrived in the last second, counted in tenths of it; those that are turned away
//! count too, or turning away would end the reason for it.
//!
//! Left out: what is measured but requests per second, and what a level does.

use std::time::{Duration, Instant};

use outrigger_config::validated::{Level, Levels};

/// The tenths of a second that are counted apart, and how many of them are looked back on.
const SLOT: Duration = Duration::from_millis(100);
const SLOTS: usize = 10;

/// The level in force; 0 is below the first.
#[derive(Debug)]
pub struct Ladder {
    settings: Levels,
    level: usize,
    /// Since when the load has been low enough for a lower one.
    low_since: Option<Instant>,
}

impl Ladder {
    /// Below the first level.
    pub fn new(settings: Levels) -> Self {
        Self { settings, level: 0, low_since: None }
    }

    /// The load is this now; the number of the level that is in force with it.
    pub fn step(&mut self, load: f64, now: Instant) -> usize {
        let reached = self.highest(load, 1.0);
        if reached >= self.level {
            (self.level, self.low_since) = (reached, None);
            return reached;
        }
        let held = self.highest(load, 1.0 - self.settings.hysteresis);
        if held >= self.level {
            self.low_since = None;
            return self.level;
        }
        let since = *self.low_since.get_or_insert(now);
        if now.saturating_duration_since(since) >= self.settings.hold {
            (self.level, self.low_since) = (held, None);
        }
        self.level
    }

    /// The level in force; `None` below the first.
    pub fn in_force(&self) -> Option<&Level> {
        self.level.checked_sub(1).and_then(|index| self.settings.table.get(index))
    }

    /// The number of the level in force, from 1; 0 is below the first.
    pub fn number(&self) -> usize {
        self.level
    }

    /// How long the level in force lasts at least.
    pub fn lasts(&self, now: Instant) -> Duration {
        let low_for = self.low_since.map_or(Duration::ZERO, |at| now.saturating_duration_since(at));
        self.settings.hold.saturating_sub(low_for)
    }

    /// The highest level whose beginning, times `share`, is reached.
    fn highest(&self, load: f64, share: f64) -> usize {
        self.settings.table.iter().take_while(|level| load >= level.from * share).count()
    }
}

/// How many arrived in the last second.
#[derive(Debug)]
pub struct Arrivals {
    origin: Instant,
    counts: [u32; SLOTS],
    /// The slot that is being counted, from `origin`.
    slot: u64,
}

impl Arrivals {
    /// Nobody yet.
    pub fn new(now: Instant) -> Self {
        Self { origin: now, counts: [0; SLOTS], slot: 0 }
    }

    /// One arrives.
    pub fn arrived(&mut self, now: Instant) {
        self.turn_to(now);
        let count = &mut self.counts[(self.slot % SLOTS as u64) as usize];
        *count = count.saturating_add(1);
    }

    /// How many arrived in the last second.
    pub fn per_second(&mut self, now: Instant) -> f64 {
        self.turn_to(now);
        self.counts.iter().map(|count| f64::from(*count)).sum()
    }

    fn turn_to(&mut self, now: Instant) {
        let passed = now.saturating_duration_since(self.origin).as_nanos() / SLOT.as_nanos();
        let slot = u64::try_from(passed).unwrap_or(u64::MAX).max(self.slot);
        for gone in 1..=(slot - self.slot).min(SLOTS as u64) {
            self.counts[((self.slot + gone) % SLOTS as u64) as usize] = 0;
        }
        self.slot = slot;
    }
}

#[cfg(test)]
mod tests {
    use outrigger_config::validated::{LevelAction, LoadMeasure};
    use rand::{RngExt, SeedableRng, rngs::SmallRng};

    use super::*;

    const HOLD: Duration = Duration::from_secs(5);

    fn levels(from: &[f64]) -> Levels {
        let level = |from: &f64| Level {
            from: *from,
            scale: 1.0,
            first_byte: None,
            total: None,
            action: LevelAction::Normal,
        };
        Levels {
            by: LoadMeasure::RequestsPerSecond,
            table: from.iter().map(level).collect(),
            hysteresis: 0.2,
            hold: HOLD,
        }
    }

    #[test]
    fn a_level_begins_at_once_and_ends_after_the_hold() {
        let (mut ladder, start) = (Ladder::new(levels(&[100.0, 400.0])), Instant::now());
        let mut at = |seconds: f64, load: f64| {
            let now = start + Duration::from_secs_f64(seconds);
            (ladder.step(load, now), ladder.lasts(now).as_secs_f64())
        };
        assert_eq!(at(0.0, 99.0).0, 0);
        assert_eq!(at(1.0, 100.0), (1, 5.0));
        assert_eq!(at(2.0, 400.0), (2, 5.0));
        // Below its beginning, but not by a fifth.
        assert_eq!(at(3.0, 330.0), (2, 5.0));
        assert_eq!(at(9.0, 330.0), (2, 5.0));
        assert_eq!(at(10.0, 300.0), (2, 5.0));
        assert_eq!(at(13.0, 300.0), (2, 2.0));
        // High again in between: the time begins anew.
        assert_eq!(at(14.0, 321.0), (2, 5.0));
        assert_eq!(at(15.0, 10.0), (2, 5.0));
        assert_eq!(at(20.0, 90.0), (1, 5.0), "the level below would have held at 90");
        assert_eq!(at(21.0, 0.0), (1, 5.0));
        assert_eq!(at(26.0, 0.0).0, 0);
    }

    #[test]
    fn without_hold_and_hysteresis_the_level_is_that_of_the_load() {
        let settings = Levels { hysteresis: 0.0, hold: Duration::ZERO, ..levels(&[1.0, 2.0, 3.0]) };
        let (mut ladder, now) = (Ladder::new(settings), Instant::now());
        for load in [0.0, 3.0, 1.5, 2.0, 0.5, 9.0] {
            assert_eq!(ladder.step(load, now), load.min(3.0) as usize, "{load}");
        }
    }

    #[test]
    fn a_load_that_swings_switches_no_more_than_once_in_a_hold() {
        for seed in 0..500 {
            let mut rng = SmallRng::seed_from_u64(seed);
            let (mut ladder, start) = (Ladder::new(levels(&[50.0, 100.0, 200.0])), Instant::now());
            let (mut now, mut before, mut raised) = (start, 0, start);
            for _ in 0..400 {
                now += Duration::from_millis(rng.random_range(0..300));
                let load = rng.random_range(0.0..300.0);
                let level = ladder.step(load, now);
                let reached = [50.0, 100.0, 200.0].iter().filter(|from| load >= **from).count();
                assert!(level >= reached, "seed {seed}: never below what is reached");
                if level > before {
                    raised = now;
                }
                let lowered_early = level < before && now - raised < HOLD;
                assert!(!lowered_early, "seed {seed}: a level lasts for {HOLD:?}");
                assert_eq!(ladder.in_force().is_some(), level > 0, "seed {seed}");
                before = level;
            }
        }
    }

    #[test]
    fn arrivals_are_those_of_the_last_second() {
        for seed in 0..200 {
            let mut rng = SmallRng::seed_from_u64(seed);
            let start = Instant::now();
            let (mut arrivals, mut all, mut at) = (Arrivals::new(start), Vec::new(), 0.0);
            for _ in 0..500 {
                at += rng.random_range(0.0..0.05_f64).powi(2) * 100.0;
                let now = start + Duration::from_secs_f64(at);
                arrivals.arrived(now);
                all.push(at);
                let within = |span: f64| all.iter().filter(|then| at - **then < span).count();
                let counted = arrivals.per_second(now) as usize;
                // The slot that is being counted has not passed yet.
                let right = within(0.9)..=within(1.0);
                assert!(right.contains(&counted), "seed {seed}: {counted} of {right:?}");
            }
            let later = start + Duration::from_secs_f64(at + 5.0);
            assert_eq!(arrivals.per_second(later), 0.0, "seed {seed}");
        }
    }
}
