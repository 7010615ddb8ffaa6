//! Where a prompt that began alike, or a session, was served lately.
//!
//! A table of fixed size that any thread may read and write without waiting. A key may map
//! to several endpoints, since a popular prefix is cached at several. Keys and endpoints are kept as
//! short tags that fit one word with the time of the last use; that two keys share a tag happens
//! once in some hundred thousand look-ups and costs a cache miss, not an error. When a set is full,
//! the entry that was not used for longest goes.
//!
//! It is a guess about the caches of others: an engine evicts by its own need and does not tell.
//! What is older than the caller asks for is not named.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

/// Entries of one set: one cache line.
const WAYS: usize = 8;

/// Each of the twelve hashes of 5,400 long prompts: 512 KiB.
const ENTRIES: usize = 65_536;

/// Remembers keys.
#[derive(Debug)]
pub struct Memory {
    entries: usize,
    /// Made when the first key comes: most policies remember nothing.
    table: OnceLock<Table>,
}

#[derive(Debug)]
struct Table {
    /// A power of two of them.
    sets: Box<[Set]>,
    origin: Instant,
}

#[derive(Debug, Default)]
#[repr(align(64))]
struct Set([AtomicU64; WAYS]);

impl Memory {
    /// A memory of the usual size, 512 KiB once it is used.
    pub fn new() -> Self {
        Self::with_capacity(ENTRIES)
    }

    /// A memory of at least this many entries of eight bytes. An entry is a key at one endpoint.
    pub fn with_capacity(entries: usize) -> Self {
        Self { entries, table: OnceLock::new() }
    }

    /// Notes that `key`, an evenly spread hash, is served by the endpoint of this id. It is
    /// remembered for up to `copies` endpoints, those of late.
    pub(super) fn remember(&self, key: u64, endpoint: u64, copies: usize, now: Instant) {
        let table = self.table.get_or_init(|| Table::new(self.entries, now));
        table.set(key).insert(Entry::new(key, endpoint, table.tick(now)), copies);
    }

    /// The endpoints that served `key` within the last `within` (at most 36 hours), as
    /// [`endpoint_tag`]s, in no order.
    pub(super) fn recall(
        &self,
        key: u64,
        within: Duration,
        now: Instant,
    ) -> impl Iterator<Item = u32> {
        let table = self.table.get();
        let sought = table.map(|table| (table.set(key), Entry::new(key, 0, table.tick(now))));
        let most = u16::try_from(within.as_secs() / Entry::TICK).unwrap_or(u16::MAX);
        let entries = sought.into_iter().flat_map(|(set, wanted)| {
            set.0.iter().map(|slot| Entry(slot.load(Relaxed))).map(move |entry| (entry, wanted))
        });
        let found = entries.filter(move |(entry, wanted)| {
            entry.is_used() && entry.key() == wanted.key() && entry.age(wanted.tick()) <= most
        });
        found.map(|(entry, _)| entry.endpoint())
    }
}

impl Default for Memory {
    fn default() -> Self {
        Self::new()
    }
}

impl Table {
    fn new(entries: usize, origin: Instant) -> Self {
        let sets = entries.div_ceil(WAYS).next_power_of_two();
        Self { sets: (0..sets).map(|_| Set::default()).collect(), origin }
    }

    /// The set of a key: by its low bits. Its high bits are the tag.
    fn set(&self, key: u64) -> &Set {
        &self.sets[key as usize & (self.sets.len() - 1)]
    }

    fn tick(&self, now: Instant) -> u16 {
        (now.saturating_duration_since(self.origin).as_secs() / Entry::TICK) as u16
    }
}

impl Set {
    fn insert(&self, new: Entry, copies: usize) {
        let entry = |way: &usize| Entry(self.0[*way].load(Relaxed));
        let of_key = |way: &usize| entry(way).is_used() && entry(way).key() == new.key();
        let same = (0..WAYS).find(|way| of_key(way) && entry(way).endpoint() == new.endpoint());
        let is_full = (0..WAYS).filter(of_key).count() >= copies;
        let replaceable = (0..WAYS).filter(|way| !is_full || of_key(way));
        let oldest = || replaceable.max_by_key(|way| entry(way).standing(new.tick()));
        if let Some(way) = same.or_else(oldest) {
            self.0[way].store(new.0, Relaxed);
        }
    }
}

/// The part of an endpoint's id that is remembered: [`Entry::ENDPOINT_BITS`] bits.
pub(super) const fn endpoint_tag(id: u64) -> u32 {
    (id >> (u64::BITS - Entry::ENDPOINT_BITS)) as u32
}

/// A key's tag, an endpoint's tag, and the time of the last use, from the high bits to the low.
/// Zero is an empty slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Entry(u64);

impl Entry {
    /// Seconds in a unit of time. The sixteen bits of it repeat after 72 hours.
    const TICK: u64 = 4;
    const TICK_BITS: u32 = 16;
    const ENDPOINT_BITS: u32 = 26;

    const fn new(key: u64, endpoint: u64, tick: u16) -> Self {
        let low = Self::TICK_BITS + Self::ENDPOINT_BITS;
        let key = key >> low << low;
        Self(key | (endpoint_tag(endpoint) as u64) << Self::TICK_BITS | tick as u64)
    }

    const fn is_used(self) -> bool {
        self.0 != 0
    }

    const fn key(self) -> u64 {
        self.0 >> (Self::TICK_BITS + Self::ENDPOINT_BITS)
    }

    const fn endpoint(self) -> u32 {
        (self.0 >> Self::TICK_BITS) as u32 & ((1 << Self::ENDPOINT_BITS) - 1)
    }

    const fn tick(self) -> u16 {
        self.0 as u16
    }

    /// Units of time since the last use. Another thread may have used it in what is the future here.
    const fn age(self, now: u16) -> u16 {
        match now.wrapping_sub(self.tick()) {
            u16::MAX => 0,
            age => age,
        }
    }

    /// Who goes first: the empty, then the oldest.
    const fn standing(self, now: u16) -> (bool, u16) {
        (!self.is_used(), self.age(now))
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use rand::rngs::SmallRng;
    use rand::{RngExt, SeedableRng};

    use super::*;

    const LONG: Duration = Duration::from_secs(36 * 3_600);

    /// An id whose tag is this number.
    fn id(tag: u32) -> u64 {
        u64::from(tag) << (u64::BITS - Entry::ENDPOINT_BITS)
    }

    /// A key of set 0 with this tag.
    fn key(tag: u64) -> u64 {
        tag << (u64::BITS - 22)
    }

    fn named(memory: &Memory, key: u64, within: Duration, now: Instant) -> Vec<u32> {
        let mut named: Vec<u32> = memory.recall(key, within, now).collect();
        named.sort_unstable();
        named
    }

    #[test]
    fn an_entry_keeps_its_parts() {
        let mut rng = SmallRng::seed_from_u64(1);
        for _ in 0..1_000 {
            let (key, id, tick): (u64, u64, u16) = (rng.random(), rng.random(), rng.random());
            let entry = Entry::new(key, id, tick);
            assert_eq!((entry.endpoint(), entry.tick()), (endpoint_tag(id), tick));
            assert_eq!(entry.key(), key >> 42);
        }
    }

    #[test]
    fn names_those_that_served_the_key_and_nobody_else() {
        let (memory, now) = (Memory::new(), Instant::now());
        let mut rng = SmallRng::seed_from_u64(2);
        let keys: Vec<u64> = (0..1_000).map(|_| rng.random()).collect();
        assert!(named(&memory, keys[0], LONG, now).is_empty());
        for (tag, &key) in (0..).zip(&keys) {
            memory.remember(key, id(tag), 3, now);
            memory.remember(key, id(tag + 1), 3, now);
        }
        for (tag, &key) in (0..).zip(&keys) {
            assert_eq!(named(&memory, key, LONG, now), [tag, tag + 1], "seed 2");
        }
        let strangers =
            (0..100_000).filter(|_| !named(&memory, rng.random(), LONG, now).is_empty());
        assert!(strangers.count() <= 3, "seed 2");
    }

    #[test]
    fn entries_age() {
        let (memory, now) = (Memory::new(), Instant::now());
        memory.remember(7, id(1), 3, now);
        memory.remember(7, id(2), 3, now + Duration::from_secs(300));
        let at = |seconds| {
            named(&memory, 7, Duration::from_secs(600), now + Duration::from_secs(seconds))
        };
        assert_eq!(at(600), [1, 2]);
        assert_eq!(at(604), [2]);
        assert!(at(904).is_empty());
        // A look from a moment before the last use sees it as well.
        assert_eq!(at(296), [1, 2]);
    }

    #[test]
    fn of_more_copies_the_oldest_goes() {
        let (memory, now) = (Memory::new(), Instant::now());
        for tag in 1..=5 {
            memory.remember(7, id(tag), 3, now + Duration::from_secs(4 * u64::from(tag)));
        }
        let end = now + Duration::from_secs(40);
        assert_eq!(named(&memory, 7, LONG, end), [3, 4, 5]);
        memory.remember(7, id(3), 3, end);
        memory.remember(7, id(6), 3, end);
        assert_eq!(named(&memory, 7, LONG, end), [3, 5, 6]);
    }

    #[test]
    fn a_single_copy_follows_the_last_use() {
        let (memory, now) = (Memory::new(), Instant::now());
        memory.remember(7, id(1), 1, now);
        memory.remember(7, id(2), 1, now);
        assert_eq!(named(&memory, 7, LONG, now), [2]);
    }

    #[test]
    fn a_full_set_forgets_what_was_not_used_for_longest() {
        let (memory, now) = (Memory::with_capacity(WAYS), Instant::now());
        let later = |ticks: u64| now + Duration::from_secs(Entry::TICK * ticks);
        for tag in 1..=8 {
            memory.remember(key(tag), id(1), 3, later(tag));
        }
        memory.remember(key(1), id(1), 3, later(9));
        memory.remember(key(9), id(1), 3, later(10));
        let known = |tag: &u64| !named(&memory, key(*tag), LONG, later(10)).is_empty();
        assert_eq!((1..=9).filter(known).collect::<Vec<_>>(), [1, 3, 4, 5, 6, 7, 8, 9]);
    }

    #[test]
    fn the_clock_of_entries_may_wrap() {
        let entry = Entry::new(1 << 63, id(1), u16::MAX - 1);
        assert_eq!((entry.age(3), entry.age(u16::MAX - 1), entry.age(u16::MAX - 2)), (5, 0, 0));
    }

    #[test]
    fn threads_read_only_what_was_written() {
        let (memory, now) = (Memory::with_capacity(64), Instant::now());
        let work = |thread: u64| {
            let mut rng = SmallRng::seed_from_u64(thread);
            for _ in 0..20_000 {
                let tag = rng.random_range(1..200_u32);
                let key = u64::from(tag).wrapping_mul(0x9E37_79B9_7F4A_7C15);
                memory.remember(key, id(tag), 3, now);
                assert!(memory.recall(key, LONG, now).all(|found| found == tag), "seed {thread}");
            }
        };
        thread::scope(|scope| {
            for thread in 0..4 {
                scope.spawn(move || work(thread));
            }
        });
    }
}
