//! How many mates a request may expect.

use std::time::{Duration, Instant};

/// The rate is an average over so many windows: long enough that a rate of one request in a window
/// is told from chance by four standard deviations, short enough to notice a burst within a few.
const MEMORY: u32 = 16;

/// Shortest time for which the size of the crowd is remembered; twice that at most.
const CROWD_MEMORY: Duration = Duration::from_secs(1);

/// Arrivals of one key, and how many of them are in the house at once.
#[derive(Debug)]
pub(super) struct Demand {
    /// Time over which arrivals are averaged.
    memory: Duration,
    /// Arrivals, each of which counts less as time goes by: the rate times `memory`.
    arrivals: f64,
    last: Option<Instant>,
    /// Requests that wait or are under way.
    inside: usize,
    /// Greatest number of them in the present period and in the one before.
    crowd: [usize; 2],
    period: Duration,
    began: Option<Instant>,
}

impl Demand {
    pub(super) const fn new(wait: Duration) -> Self {
        let memory = wait.saturating_mul(MEMORY);
        let longer = memory.as_nanos() > CROWD_MEMORY.as_nanos();
        Self {
            memory,
            arrivals: 0.0,
            last: None,
            inside: 0,
            crowd: [0; 2],
            period: if longer { memory } else { CROWD_MEMORY },
            began: None,
        }
    }

    /// Counts an arrival in. Returns how many others are to be expected within one window.
    pub(super) fn arrived(&mut self, now: Instant) -> f64 {
        self.fade(now);
        let expected = self.arrivals / f64::from(MEMORY);
        self.arrivals += 1.0;
        self.inside += 1;
        let others = self.crowd(now) - 1;
        expected.min(others as f64)
    }

    /// Counts requests out.
    pub(super) const fn left(&mut self, requests: usize) {
        self.inside = self.inside.saturating_sub(requests);
    }

    /// The greatest number of requests in the house lately, those of now included.
    pub(super) fn crowd(&mut self, now: Instant) -> usize {
        let began = *self.began.get_or_insert(now);
        let past = now.saturating_duration_since(began);
        if past >= self.period {
            let before = if past < self.period * 2 { self.crowd[0] } else { 0 };
            self.crowd = [0, before];
            self.began = Some(now);
        }
        self.crowd[0] = self.crowd[0].max(self.inside);
        self.crowd[0].max(self.crowd[1])
    }

    pub(super) fn is_idle(&self, now: Instant) -> bool {
        let quiet = |last| now.saturating_duration_since(last) >= self.period * 2;
        self.inside == 0 && self.last.is_none_or(quiet)
    }

    fn fade(&mut self, now: Instant) {
        let last = self.last.map_or(now, |last| last.max(now));
        let past = self.last.map_or(Duration::ZERO, |last| now.saturating_duration_since(last));
        if !self.memory.is_zero() {
            self.arrivals *= (-past.div_duration_f64(self.memory)).exp();
        }
        self.last = Some(last);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WAIT: Duration = Duration::from_millis(5);

    /// Arrivals every `gap` that all stay; the expectation at the end.
    fn steady(gap: Duration, count: u32) -> f64 {
        let (mut demand, start) = (Demand::new(WAIT), Instant::now());
        (0..count).map(|i| demand.arrived(start + gap * i)).last().unwrap()
    }

    fn arrive(demand: &mut Demand, now: Instant, count: usize) {
        for _ in 0..count {
            demand.arrived(now);
        }
    }

    #[test]
    fn the_expectation_is_the_arrivals_in_a_window() {
        for (gap, expected) in [(500, 10.0), (2_500, 2.0), (10_000, 0.5)] {
            let found = steady(Duration::from_micros(gap), 1_000);
            assert!((found / expected - 1.0).abs() < 0.1, "{found} for {expected}");
        }
    }

    #[test]
    fn a_burst_is_noticed_soon_and_forgotten_soon() {
        assert!(steady(Duration::ZERO, 16) < 1.0);
        assert!(steady(Duration::ZERO, 18) > 1.0);
        let (mut demand, start) = (Demand::new(WAIT), Instant::now());
        arrive(&mut demand, start, 100);
        assert!(demand.arrived(start + 20 * WAIT) > 1.0);
        assert!(demand.arrived(start + 100 * WAIT) < 0.1);
    }

    #[test]
    fn the_crowd_bounds_the_expectation() {
        let (mut demand, mut now) = (Demand::new(WAIT), Instant::now());
        for _ in 0..1_000 {
            demand.arrived(now);
            let second = demand.arrived(now);
            assert!(second <= 1.0);
            now += WAIT / 100;
            demand.left(2);
        }
        assert_eq!(demand.crowd(now), 2);
    }

    #[test]
    fn a_crowd_is_remembered_for_one_or_two_periods() {
        let (mut demand, start) = (Demand::new(WAIT), Instant::now());
        arrive(&mut demand, start, 8);
        demand.left(8);
        assert_eq!(demand.crowd(start + CROWD_MEMORY - WAIT), 8);
        assert_eq!(demand.crowd(start + CROWD_MEMORY + WAIT), 8);
        assert_eq!(demand.crowd(start + 2 * CROWD_MEMORY + 2 * WAIT), 0);
        arrive(&mut demand, start + 3 * CROWD_MEMORY, 8);
        demand.left(8);
        assert_eq!(demand.crowd(start + 5 * CROWD_MEMORY), 0, "after a long silence");
    }

    #[test]
    fn time_that_goes_back_does_no_harm() {
        let (mut demand, start) = (Demand::new(WAIT), Instant::now() + WAIT);
        demand.arrived(start);
        assert!(demand.arrived(start - WAIT) <= 1.0);
        assert_eq!(demand.crowd(start - WAIT), 2);
    }
}
