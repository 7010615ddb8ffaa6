//! A bound on retries as a share of requests, so that they cannot make an outage worse.
//!
//! In any ten seconds:
//!
//! ```text
//! retries ≤ requests × percent / 100 + min_per_second × 10
//! ```
//!
//! The form is Finagle's `RetryBudget` (defaults 20 %, 10 per second, 10 s), also in tower's
//! `TpsBudget`: deposits and withdrawals both lapse after the window, on top of a constant reserve
//! that lets a quiet route retry at all and is full at the start. With every request failing, a
//! route of 100 requests per second sends 20 + 10 retries per second, not 200.
//!
//! The window slides by whole seconds: the present, unfinished one and the nine before. Each is one
//! atomic word that holds the second it belongs to and its balance, so a deposit costs one
//! compare-and-swap and there is no lock.

use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::time::Instant;

/// How many seconds a deposit or a withdrawal counts.
const WINDOW: u32 = 10;

/// What one retry costs. A request brings in its percentage, so amounts are hundredths of a retry.
const RETRY: i32 = 100;

/// The retry budget of one route.
///
/// Any number of threads may use it, each with its own `now`. Withdrawals that race are never
/// granted beyond the bound; of two that race for the last one, both may be refused.
#[derive(Debug)]
pub struct Budget {
    /// What each request brings in.
    percent: i32,
    /// What can always be spent in a window.
    reserve: i64,
    /// From where seconds are counted.
    origin: Instant,
    slots: [AtomicU64; WINDOW as usize],
}

impl Budget {
    /// A full budget: `percent` retries for a hundred requests, and `min_per_second` whatever their
    /// number.
    pub fn new(percent: u32, min_per_second: u32, now: Instant) -> Self {
        Self {
            percent: i32::try_from(percent).unwrap_or(i32::MAX),
            reserve: i64::from(min_per_second) * i64::from(WINDOW) * i64::from(RETRY),
            origin: now,
            slots: [const { AtomicU64::new(0) }; WINDOW as usize],
        }
    }

    /// Counts a request; its first attempt, not its retries.
    pub fn deposit(&self, now: Instant) {
        self.book(self.second(now), self.percent);
    }

    /// Spends one retry, if there is one left.
    pub fn try_withdraw(&self, now: Instant) -> bool {
        let second = self.second(now);
        if !self.book(second, -RETRY) {
            return false;
        }
        // Spend first, look afterwards: of several threads the last one to spend sees what all the
        // others spent.
        let granted = self.balance(second) >= 0;
        if !granted {
            self.book(second, RETRY);
        }
        granted
    }

    /// Adds to the balance of a second; `false` when that second has left the window, which takes a
    /// thread that is ten seconds behind the others.
    fn book(&self, second: u32, amount: i32) -> bool {
        let slot = &self.slots[(second % WINDOW) as usize];
        let add = |word| Slot::unpack(word).add(second, amount).map(Slot::pack);
        slot.fetch_update(SeqCst, SeqCst, add).is_ok()
    }

    /// What is left to spend in the window that ends with `second`. Threads that are ahead count as
    /// present.
    fn balance(&self, second: u32) -> i64 {
        let slots = self.slots.iter().map(|slot| Slot::unpack(slot.load(SeqCst)));
        let current = slots.filter(|slot| second.saturating_sub(slot.second) < WINDOW);
        self.reserve + current.map(|slot| i64::from(slot.balance)).sum::<i64>()
    }

    fn second(&self, now: Instant) -> u32 {
        let seconds = now.saturating_duration_since(self.origin).as_secs();
        u32::try_from(seconds).unwrap_or(u32::MAX)
    }
}

/// The deposits less the withdrawals of one second.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Slot {
    second: u32,
    balance: i32,
}

impl Slot {
    const fn pack(self) -> u64 {
        (self.second as u64) << 32 | self.balance.cast_unsigned() as u64
    }

    const fn unpack(word: u64) -> Self {
        Self { second: (word >> 32) as u32, balance: (word as u32).cast_signed() }
    }

    /// The slot with `amount` booked for `second`: begun anew if it held an earlier one, `None` if
    /// a later one.
    const fn add(self, second: u32, amount: i32) -> Option<Self> {
        if second < self.second {
            return None;
        }
        let before = if second == self.second { self.balance } else { 0 };
        Some(Self { second, balance: before.saturating_add(amount) })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;
    use std::sync::Barrier;
    use std::thread;
    use std::time::Duration;

    use rand::rngs::SmallRng;
    use rand::{RngExt, SeedableRng};

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn budget(percent: u32, min_per_second: u32) -> (Budget, Instant) {
        let now = Instant::now();
        (Budget::new(percent, min_per_second, now), now)
    }

    /// How many of `asked` retries are granted.
    fn withdraw(budget: &Budget, now: Instant, asked: usize) -> usize {
        (0..asked).filter(|_| budget.try_withdraw(now)).count()
    }

    #[test]
    fn a_share_of_requests_and_a_reserve() {
        let (budget, now) = budget(20, 10);
        assert_eq!(withdraw(&budget, now, 1_000), 100, "the reserve of ten seconds");
        for _ in 0..50 {
            budget.deposit(now);
        }
        assert_eq!(withdraw(&budget, now, 1_000), 10, "a fifth of the requests");
    }

    #[test]
    fn without_a_reserve_five_requests_pay_for_one_retry() {
        let (budget, now) = budget(20, 0);
        let granted = |_| {
            budget.deposit(now);
            budget.try_withdraw(now)
        };
        let granted: Vec<bool> = (0..10).map(granted).collect();
        let fifth = |n| n % 5 == 4;
        assert_eq!(granted, (0..10).map(fifth).collect::<Vec<_>>());
    }

    #[test]
    fn deposits_and_withdrawals_lapse_with_the_window() {
        let (budget, start) = budget(100, 1);
        budget.deposit(start);
        assert_eq!(withdraw(&budget, start, 100), 11);
        assert_eq!(withdraw(&budget, start + 9 * SECOND, 100), 0);
        assert_eq!(
            withdraw(&budget, start + WINDOW * SECOND, 100),
            10,
            "the reserve is back, the deposit gone"
        );
        assert_eq!(withdraw(&budget, start + 1_000_000 * SECOND, 100), 10);
    }

    #[test]
    fn everything_failing_yields_the_stated_rate() {
        let (budget, start) = budget(20, 10);
        let mut granted = 0;
        for tick in 0..60 * 100 {
            let now = start + tick * SECOND / 100;
            budget.deposit(now);
            granted += withdraw(&budget, now, 2);
        }
        // 30 a second, and less than one window's worth of error.
        assert!((60 * 30 - 300..=60 * 30 + 300).contains(&granted), "{granted}");
    }

    /// The bound itself, kept as a list of events.
    struct Model {
        percent: i64,
        reserve: i64,
        events: VecDeque<(u64, i64)>,
    }

    impl Model {
        fn book(&mut self, second: u64, amount: i64) -> bool {
            self.events.retain(|&(at, _)| at + u64::from(WINDOW) > second);
            let balance = self.reserve + self.events.iter().map(|event| event.1).sum::<i64>();
            let fits = amount > 0 || balance + amount >= 0;
            if fits {
                self.events.push_back((second, amount));
            }
            fits
        }
    }

    #[test]
    fn agrees_with_the_bound_on_random_traffic() {
        for seed in 0..50 {
            let mut rng = SmallRng::seed_from_u64(seed);
            let (percent, min) = (rng.random_range(0..=100), rng.random_range(0..=3));
            let (budget, start) = budget(percent, min);
            let reserve = i64::from(min) * 10 * 100;
            let mut model = Model { percent: percent.into(), reserve, events: VecDeque::new() };
            let mut time = Duration::ZERO;
            for _ in 0..2_000 {
                time += SECOND.mul_f64(rng.random_range(0.0..0.1) * rng.random_range(0.0..4.0));
                let (now, second) = (start + time, time.as_secs());
                if rng.random_bool(0.6) {
                    budget.deposit(now);
                    model.book(second, model.percent);
                } else {
                    let granted = budget.try_withdraw(now);
                    assert_eq!(granted, model.book(second, -100), "seed {seed} at {time:?}");
                }
            }
        }
    }

    #[test]
    fn threads_that_race_never_exceed_the_bound() {
        for _ in 0..100 {
            let (budget, now) = budget(0, 10);
            let start = Barrier::new(8);
            let granted: usize = thread::scope(|scope| {
                let race = || {
                    start.wait();
                    withdraw(&budget, now, 500)
                };
                let threads: Vec<_> = (0..8).map(|_| scope.spawn(race)).collect();
                threads.into_iter().map(|thread| thread.join().unwrap()).sum()
            });
            assert!(granted <= 100, "{granted}");
            assert_eq!(granted + withdraw(&budget, now, 500), 100, "refusals give back in full");
        }
    }

    #[test]
    fn a_thread_far_behind_can_neither_deposit_nor_withdraw() {
        let (budget, start) = budget(100, 0);
        budget.deposit(start + WINDOW * SECOND);
        budget.deposit(start);
        assert!(!budget.try_withdraw(start));
        assert_eq!(withdraw(&budget, start + WINDOW * SECOND, 10), 1);
    }

    #[test]
    fn slots_survive_packing() {
        for slot in [(0, 0), (1, -1), (u32::MAX, i32::MIN), (7, i32::MAX)] {
            let slot = Slot { second: slot.0, balance: slot.1 };
            assert_eq!(Slot::unpack(slot.pack()), slot);
        }
    }

    #[test]
    fn extreme_settings_do_not_panic() {
        let (budget, now) = budget(u32::MAX, u32::MAX);
        for _ in 0..3 {
            budget.deposit(now);
        }
        assert!(budget.try_withdraw(now));
    }
}
