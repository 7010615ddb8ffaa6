//! Which arm of a route's split serves a request.
//!
//! Two ways to honour the same weights:
//!
//! - [`Schedule`] deals the arms out in turn. Every period holds each arm exactly as often as its
//!   weight says and spreads it evenly: 5/1/1 is `a a b a c a a`, not `a a a a a b c`, so that a
//!   canary of 10 % is one request in ten and never a burst. The order is nginx's *smooth weighted
//!   round robin* (`ngx_http_upstream_round_robin.c`): for each pick, `current[i] += weight[i]`,
//!   the largest current wins, and the winner pays the sum of the weights. That walk is periodic,
//!   so it is made once, when the configuration is compiled; a request then takes one atomic step
//!   along it.
//! - [`Sticky`] maps a key (a user, a session) to an arm by a stable hash: the same key gets the
//!   same arm from every proxy, before and after a restart, for as long as the weights stay.
//!
//! Weight zero is legal and means "never": an arm may be configured before it takes traffic.
//!
//! Left out: what the key is, forcing an arm by a header, and what happens when an arm has no
//! endpoint. The first two are the route's, and a request stays inside its arm, so the last is an
//! error, not another pick.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::{error, fmt};

use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

/// The longest period, in picks, that a [`Schedule`] may have: 200 kB of memory, two bytes a pick.
///
/// The period is the sum of the weights divided by their greatest common divisor.
pub const MAX_PERIOD: u64 = 100_000;

/// The most arms that a [`Schedule`] or a [`Sticky`] may have; an arm is numbered by 16 bits.
pub const MAX_ARMS: usize = 1 << 16;

/// Why a list of weights is no split.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ScheduleError {
    /// No arm has a weight above zero, or there is no arm at all.
    AllZero,
    /// There are more than [`MAX_ARMS`] arms.
    TooManyArms {
        /// How many there are.
        arms: usize,
    },
    /// The pattern repeats only after more than [`MAX_PERIOD`] picks.
    TooLong {
        /// After how many picks it would repeat.
        period: u64,
    },
}

impl fmt::Display for ScheduleError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AllZero => write!(f, "at least one weight must be above zero"),
            Self::TooManyArms { arms } => write!(f, "{arms} weights are more than {MAX_ARMS}"),
            Self::TooLong { period } => write!(
                f,
                "the weights repeat only after {period} picks, more than {MAX_PERIOD}; \
                 choose weights with a common divisor"
            ),
        }
    }
}

impl error::Error for ScheduleError {}

/// Weighted turns: a fixed cyclic sequence of arms and a shared position in it.
///
/// Any number of threads may call [`next`](Self::next). Each position is handed out once, so over
/// any number of whole periods the counts are exact, whichever thread took which pick.
#[derive(Debug)]
pub struct Schedule {
    /// One period. Never empty; each entry is the index of an arm whose weight is above zero.
    sequence: Box<[u16]>,
    /// How many picks have been made. Wraps after 2⁶⁴ of them, which costs one uneven period.
    picks: AtomicUsize,
}

impl Schedule {
    /// The exact schedule of `weights`, one per arm.
    ///
    /// # Errors
    ///
    /// Any [`ScheduleError`].
    pub fn new(weights: &[u32]) -> Result<Self, ScheduleError> {
        let total = checked_total(weights)?;
        let divisor = weights.iter().copied().fold(0, gcd);
        let period = total / u64::from(divisor);
        if period > MAX_PERIOD {
            return Err(ScheduleError::TooLong { period });
        }
        Ok(Self { sequence: smooth(weights, divisor), picks: AtomicUsize::new(0) })
    }

    /// The schedule of `weights`, made coarser until it fits into [`MAX_PERIOD`].
    ///
    /// For weights that nobody can be asked to correct, such as those of discovered endpoints. They
    /// are halved, and rounded up so that none is lost, as often as needed: a thousand endpoints
    /// with weights about 500 are halved three times and each keeps its share within 2 %.
    ///
    /// # Errors
    ///
    /// [`ScheduleError::AllZero`] or [`ScheduleError::TooManyArms`].
    pub fn fitted(weights: &[u32]) -> Result<Self, ScheduleError> {
        let mut weights = weights.to_vec();
        // Ends: when every weight is 0 or 1 the period is at most MAX_ARMS, which is below
        // MAX_PERIOD.
        loop {
            match Self::new(&weights) {
                Err(ScheduleError::TooLong { .. }) => halve(&mut weights),
                done => return done,
            }
        }
    }

    /// The same schedule, begun at another pick.
    ///
    /// A random start keeps proxies that were started together from walking over the endpoints in
    /// step.
    #[must_use]
    pub fn starting_at(self, pick: usize) -> Self {
        Self { picks: AtomicUsize::new(pick), ..self }
    }

    /// The arm whose turn it is. Wait-free: one atomic addition.
    pub fn next(&self) -> usize {
        let pick = self.picks.fetch_add(1, Relaxed) % self.sequence.len();
        usize::from(self.sequence[pick])
    }

    /// After how many picks the sequence repeats, `1..=MAX_PERIOD`.
    pub fn period(&self) -> usize {
        self.sequence.len()
    }
}

/// The sum of the weights, when there is one to divide by.
fn checked_total(weights: &[u32]) -> Result<u64, ScheduleError> {
    if weights.len() > MAX_ARMS {
        return Err(ScheduleError::TooManyArms { arms: weights.len() });
    }
    match weights.iter().copied().map(u64::from).sum() {
        0 => Err(ScheduleError::AllZero),
        total => Ok(total),
    }
}

/// The greatest common divisor; `gcd(0, n)` is `n`, so zero weights do not count.
const fn gcd(a: u32, b: u32) -> u32 {
    if b == 0 { a } else { gcd(b, a % b) }
}

fn halve(weights: &mut [u32]) {
    for weight in weights {
        *weight = weight.div_ceil(2);
    }
}

/// One period of smooth weighted round robin.
///
/// Equal weights are kept together as one [`Class`]. The picks are the same, and ten thousand equal
/// endpoints cost ten thousand steps instead of a hundred million.
fn smooth(weights: &[u32], divisor: u32) -> Box<[u16]> {
    let mut classes = Class::all(weights, divisor);
    let total: i64 = classes.iter().map(Class::sum).sum();
    (0..total).map_while(|_| step(&mut classes, total)).collect()
}

/// One pick: everyone gains its weight, the richest (of equals the first in the list) wins and pays
/// `total`.
fn step(classes: &mut [Class], total: i64) -> Option<u16> {
    for class in &mut *classes {
        class.current += class.weight;
    }
    let richest = classes.iter_mut().max_by_key(|class| (class.current, Reverse(class.head())))?;
    Some(richest.take(total))
}

/// The arms of one weight.
///
/// They gain alike, so the richest is one that has paid least often: they win in turn, in the order
/// of the list.
struct Class {
    weight: i64,
    /// Never empty.
    members: Vec<u16>,
    /// Which member is next.
    turn: usize,
    /// The current of the member that is next. The others have the same, or `total` less if they
    /// won this round.
    current: i64,
}

impl Class {
    /// The classes of all weights above zero.
    fn all(weights: &[u32], divisor: u32) -> Vec<Self> {
        let mut members = BTreeMap::<u32, Vec<u16>>::new();
        for (arm, &weight) in (0..=u16::MAX).zip(weights).filter(|(_, weight)| **weight > 0) {
            members.entry(weight / divisor).or_default().push(arm);
        }
        let class = |(weight, members)| Self::new(weight, members);
        members.into_iter().map(class).collect()
    }

    fn new(weight: u32, members: Vec<u16>) -> Self {
        Self { weight: weight.into(), members, turn: 0, current: 0 }
    }

    fn sum(&self) -> i64 {
        self.members.iter().map(|_| self.weight).sum()
    }

    fn head(&self) -> u16 {
        self.members[self.turn]
    }

    fn take(&mut self, total: i64) -> u16 {
        let winner = self.head();
        self.turn += 1;
        if self.turn == self.members.len() {
            self.turn = 0;
            self.current -= total;
        }
        winner
    }
}

/// Weighted shares of the space of keys.
///
/// `xxh3(key)` is read as a fraction of 2⁶⁴ and scaled to the sum of the weights; the arm is the
/// one in whose stretch of the cumulative weights that point falls. With two arms, moving weight to
/// one of them moves only keys of the other: from 90/10 to 80/20 nobody leaves the canary. The
/// whole hash is scaled, instead of its remainder by some number of buckets, so that no weight is
/// too small to receive a key.
#[derive(Clone, Debug)]
pub struct Sticky {
    /// The sum of the weights up to and including each arm.
    cumulative: Box<[u64]>,
    total: u64,
}

impl Sticky {
    /// The shares of `weights`, one per arm.
    ///
    /// # Errors
    ///
    /// [`ScheduleError::AllZero`] or [`ScheduleError::TooManyArms`].
    pub fn new(weights: &[u32]) -> Result<Self, ScheduleError> {
        let total = checked_total(weights)?;
        let up_to = |sum: &mut u64, weight: &u32| {
            *sum += u64::from(*weight);
            Some(*sum)
        };
        Ok(Self { cumulative: weights.iter().scan(0, up_to).collect(), total })
    }

    /// The arm of `key`. Any bytes are a key, the empty string too.
    pub fn arm(&self, key: &[u8]) -> usize {
        let point = scale(xxh3_64(key), self.total);
        self.cumulative.partition_point(|&end| end <= point)
    }
}

impl Sticky {
    /// The arm of `key` by another hash, so that it says nothing of what [`Sticky::arm`] of another one says.
    pub fn arm_apart(&self, key: &[u8]) -> usize {
        let point = scale(xxh3_64_with_seed(key, 1), self.total);
        self.cumulative.partition_point(|&end| end <= point)
    }
}

/// `hash / 2⁶⁴ × total`, rounded down: below `total`, and evenly spread when the hash is.
fn scale(hash: u64, total: u64) -> u64 {
    let point = (u128::from(hash) * u128::from(total)) >> 64;
    u64::try_from(point).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use std::thread;

    use rand::rngs::SmallRng;
    use rand::{RngExt, SeedableRng};

    use super::*;

    fn schedule(weights: &[u32]) -> Schedule {
        Schedule::new(weights).unwrap()
    }

    fn take(schedule: &Schedule, picks: usize) -> Vec<usize> {
        (0..picks).map(|_| schedule.next()).collect()
    }

    fn counts(picks: &[usize], arms: usize) -> Vec<usize> {
        let mut counts = vec![0; arms];
        for &arm in picks {
            counts[arm] += 1;
        }
        counts
    }

    /// The algorithm as nginx states it, arm by arm.
    fn reference(weights: &[u32], picks: usize) -> Vec<usize> {
        let total: i64 = weights.iter().copied().map(i64::from).sum();
        let mut current = vec![0; weights.len()];
        let mut pick = || {
            let mut best = None;
            for arm in 0..weights.len() {
                current[arm] += i64::from(weights[arm]);
                if weights[arm] > 0 && best.is_none_or(|best: usize| current[arm] > current[best]) {
                    best = Some(arm);
                }
            }
            let best = best.unwrap();
            current[best] -= total;
            best
        };
        (0..picks).map(|_| pick()).collect()
    }

    #[test]
    fn five_one_one_is_smooth() {
        assert_eq!(take(&schedule(&[5, 1, 1]), 7), [0, 0, 1, 0, 2, 0, 0]);
    }

    #[test]
    fn ninety_ten_gives_exactly_one_in_ten() {
        let schedule = schedule(&[90, 10]);
        assert_eq!(schedule.period(), 10);
        let picks = take(&schedule, 10_000);
        assert_eq!(counts(&picks, 2), [9_000, 1_000]);
        for window in picks.chunks(10) {
            assert_eq!(window, [0, 0, 0, 0, 0, 1, 0, 0, 0, 0]);
        }
    }

    #[test]
    fn agrees_with_the_reference_on_random_weights() {
        for seed in 0..200 {
            let mut rng = SmallRng::seed_from_u64(seed);
            let arms = rng.random_range(1..=12);
            let highest = rng.random_range(1..=40);
            let mut weights: Vec<u32> = (0..arms).map(|_| rng.random_range(0..=highest)).collect();
            weights[0] += 1;
            let schedule = schedule(&weights);
            let picks = 2 * schedule.period() + 3;
            let expected = reference(&weights, picks);
            assert_eq!(take(&schedule, picks), expected, "seed {seed}: {weights:?}");
        }
    }

    #[test]
    fn weight_zero_is_never_picked() {
        assert_eq!(counts(&take(&schedule(&[0, 3, 0, 1, 0]), 400), 5), [0, 300, 0, 100, 0]);
        let sticky = Sticky::new(&[0, 3, 0, 1, 0]).unwrap();
        assert!((0..10_000u32).all(|key| [1, 3].contains(&sticky.arm(&key.to_le_bytes()))));
    }

    #[test]
    fn one_arm_gets_everything() {
        let schedule = schedule(&[10_000]);
        assert_eq!(schedule.period(), 1);
        assert_eq!(take(&schedule, 3), [0, 0, 0]);
    }

    #[test]
    fn what_is_no_split_is_refused() {
        assert_eq!(Schedule::new(&[]).unwrap_err(), ScheduleError::AllZero);
        assert_eq!(Schedule::new(&[0, 0]).unwrap_err(), ScheduleError::AllZero);
        assert_eq!(Sticky::new(&[0, 0]).unwrap_err(), ScheduleError::AllZero);
        let many = vec![1; MAX_ARMS + 1];
        let arms = many.len();
        assert_eq!(Schedule::new(&many).unwrap_err(), ScheduleError::TooManyArms { arms });
        let period = MAX_PERIOD + 1;
        assert_eq!(Schedule::new(&[1, 100_000]).unwrap_err(), ScheduleError::TooLong { period });
    }

    #[test]
    fn the_largest_split_is_accepted() {
        let longest = schedule(&[1, 99_999]);
        assert_eq!(longest.period() as u64, MAX_PERIOD);
        let widest = schedule(&vec![7; MAX_ARMS]);
        assert_eq!(take(&widest, MAX_ARMS), (0..MAX_ARMS).collect::<Vec<_>>());
    }

    #[test]
    fn a_fitted_schedule_keeps_the_shares() {
        let seed = 7;
        let mut rng = SmallRng::seed_from_u64(seed);
        let weights: Vec<u32> = (0..1_000).map(|_| rng.random_range(400..=600)).collect();
        let total: u32 = weights.iter().sum();
        let schedule = Schedule::fitted(&weights).unwrap();
        let counts = counts(&take(&schedule, schedule.period()), weights.len());
        for (&count, &weight) in counts.iter().zip(&weights) {
            let got = count as f64 / schedule.period() as f64;
            let wanted = f64::from(weight) / f64::from(total);
            assert!((got / wanted - 1.0).abs() < 0.02, "seed {seed}: {got} for {wanted}");
        }
    }

    #[test]
    fn a_fitted_schedule_loses_no_arm_and_gains_none() {
        let schedule = Schedule::fitted(&[u32::MAX, 1, 0]).unwrap();
        let counts = counts(&take(&schedule, schedule.period()), 3);
        assert_eq!((counts[1], counts[2]), (1, 0));
    }

    #[test]
    fn threads_share_one_sequence() {
        let schedule = schedule(&[5, 3, 1]);
        let picks = thread::scope(|scope| {
            let threads: Vec<_> = (0..8).map(|_| scope.spawn(|| take(&schedule, 9_000))).collect();
            threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect::<Vec<_>>()
        });
        assert_eq!(counts(&picks, 3), [40_000, 24_000, 8_000]);
    }

    #[test]
    fn another_start_is_the_same_cycle() {
        let picks = take(&schedule(&[5, 1, 1]).starting_at(2), 7);
        assert_eq!(picks, [1, 0, 2, 0, 0, 0, 0]);
    }

    #[test]
    fn keys_stay_when_the_canary_grows() {
        let before = Sticky::new(&[90, 10]).unwrap();
        let after = Sticky::new(&[80, 20]).unwrap();
        let keys: Vec<String> = (0..100_000).map(|user| format!("user-{user}")).collect();
        let share = |sticky: &Sticky| {
            keys.iter().filter(|key| sticky.arm(key.as_bytes()) == 1).count() as f64
                / keys.len() as f64
        };
        assert!((share(&before) - 0.1).abs() < 0.01, "{}", share(&before));
        assert!((share(&after) - 0.2).abs() < 0.01, "{}", share(&after));
        let left =
            |key: &&String| before.arm(key.as_bytes()) == 1 && after.arm(key.as_bytes()) != 1;
        assert_eq!(keys.iter().find(left), None);
    }

    #[test]
    fn a_key_keeps_its_arm_across_releases() {
        // Pinned: another hash or another seed would move every user of every running canary.
        let sticky = Sticky::new(&[1; 10]).unwrap();
        let arms: Vec<usize> =
            ["", "alice", "bob", "carol"].iter().map(|key| sticky.arm(key.as_bytes())).collect();
        assert_eq!(arms, [1, 3, 0, 8]);
    }

    #[test]
    fn the_smallest_share_still_receives_keys() {
        let sticky = Sticky::new(&[1_000_000, 1]).unwrap();
        assert_eq!((scale(0, 1_000_001), scale(u64::MAX, 1_000_001)), (0, 1_000_000));
        assert_eq!(sticky.cumulative.partition_point(|&end| end <= 1_000_000), 1);
    }
}
