//! Whether Redis is asked at all: after a few failures it is left alone for a while, so that a dead or paused one costs
//! the first requests their bound each and the others nothing.
//!
//! Failures strain, successes relieve, five of these for one of those; at the strain of three failures Redis is left
//! alone. So a steady share of failures above one in six trips it as well as a row of three, and now and then one does
//! not. A broken connection needs no further proof.
//!
//! Left alone, it is probed behind the requests' backs after a pause that doubles up to ten seconds, a random fifth
//! longer so that the sidecars of a fleet do not come all at once. When a probe succeeds it is asked again, under strain:
//! two failures are enough then, and pauses go on where they were. Only when all strain is gone they start anew: one
//! that answers probes and nothing else is asked ever more seldom.
//!
//! Pure: it knows no clock and is told what happened.

use std::time::Duration;

use rand::{Rng, RngExt};

/// What a failure adds, in successes.
const FAILURE: u32 = 5;
/// Three failures.
const LIMIT: u32 = 15;
/// What is left of the strain when a probe has succeeded.
const PROBATION: u32 = 5;
/// The first pause: shorter, and a restart that takes a second costs a dozen connections.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
/// The longest: after it, how soon one that came back is noticed matters more than a probe.
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

/// What is thought of Redis.
#[derive(Debug, Default)]
pub(super) struct Breaker {
    strain: u32,
    /// Pauses since it was last well.
    pauses: u32,
}

impl Breaker {
    /// It answered in time.
    pub(super) fn succeeded(&mut self) {
        self.strain = self.strain.saturating_sub(1);
        if self.strain == 0 {
            self.pauses = 0;
        }
    }

    /// It did not. Says whether it is to be left alone.
    pub(super) fn failed(&mut self) -> bool {
        self.strain += FAILURE;
        self.strain >= LIMIT
    }

    /// It is left alone: for so long.
    pub(super) fn pause(&mut self, rng: &mut impl Rng) -> Duration {
        let pause = FIRST_PAUSE.saturating_mul(1 << self.pauses.min(16)).min(LONGEST_PAUSE);
        self.pauses += 1;
        rng.random_range(pause..=pause + pause / 5)
    }

    /// A probe succeeded: it is asked again.
    pub(super) fn returned(&mut self) {
        self.strain = PROBATION;
    }
}

#[cfg(test)]
mod tests {
    use rand::{SeedableRng, rngs::SmallRng};

    use super::*;

    fn rng() -> SmallRng {
        SmallRng::seed_from_u64(1)
    }

    #[test]
    fn three_failures_in_a_row_are_enough_and_two_are_not() {
        let mut breaker = Breaker::default();
        assert_eq!([breaker.failed(), breaker.failed(), breaker.failed()], [false, false, true]);
    }

    #[test]
    fn one_that_came_back_has_less_credit_until_it_has_proved_itself() {
        let mut breaker = Breaker::default();
        breaker.returned();
        assert_eq!([breaker.failed(), breaker.failed()], [false, true]);
        breaker.returned();
        (0..PROBATION).for_each(|_| breaker.succeeded());
        assert_eq!([breaker.failed(), breaker.failed(), breaker.failed()], [false, false, true]);
    }

    /// How many requests it takes until it is left alone, if they fail with this chance.
    fn asked_until_left_alone(chance: f64, seed: u64) -> u32 {
        let (mut breaker, mut rng) = (Breaker::default(), SmallRng::seed_from_u64(seed));
        for asked in 1..5000 {
            match rng.random_bool(chance) {
                true if breaker.failed() => return asked,
                true => {}
                false => breaker.succeeded(),
            }
        }
        u32::MAX
    }

    #[test]
    fn a_third_of_failures_trips_it_soon_and_a_few_do_not() {
        for seed in 0..300 {
            let soon = asked_until_left_alone(1.0 / 3.0, seed);
            assert!(soon < 200, "seed {seed}: {soon}");
            let never = asked_until_left_alone(0.005, seed);
            assert_eq!(never, u32::MAX, "seed {seed}");
        }
    }

    #[test]
    fn pauses_double_to_ten_seconds_and_start_anew_when_it_is_well() {
        let (mut breaker, mut rng) = (Breaker::default(), rng());
        for expected in [100, 200, 400, 800, 1600, 3200, 6400, 10_000, 10_000] {
            let pause = breaker.pause(&mut rng).as_millis();
            assert!((expected..=expected * 6 / 5).contains(&pause), "{pause}, not {expected}");
            breaker.returned();
            assert!(!breaker.failed(), "one failure is not enough");
        }
        (0..LIMIT).for_each(|_| breaker.succeeded());
        assert!(breaker.pause(&mut rng) < 2 * FIRST_PAUSE);
    }

    #[test]
    fn requests_pay_ever_more_seldom_for_one_that_answers_probes_only() {
        let (mut breaker, mut rng) = (Breaker::default(), rng());
        let (mut elapsed, mut paid) = (Duration::ZERO, 0);
        while elapsed < Duration::from_secs(600) {
            paid += 1;
            if breaker.failed() {
                elapsed += breaker.pause(&mut rng);
                breaker.returned();
            }
        }
        assert!(paid < 150, "{paid} requests waited in vain in ten minutes");
    }
}
