//! The memory tier: records up to a number of bytes, shared by all threads.
//!
//! Why our own and no crate of those looked at: `moka` lets the bytes run over the bound by what waits in its log of
//! writes (hundreds of records of up to a megabyte each), `tinyufo` can not be walked, so nothing can be purged from it,
//! and `quick_cache` admits by another rule. What is needed is small.
//!
//! What it decides, by TinyLFU (Einziger, Friedman, Manes: *TinyLFU: A Highly Efficient Cache Admission Policy*): a
//! sketch counts how often each key was asked for lately, in a few bits each, also keys that are not stored. Where there
//! is no room, a new record takes the place of those longest unused, one by one, but only as long as each of them was
//! asked for no more often than the new one. So a run of requests that never come again can not push out what is asked
//! for all the time. The counts are halved now and then, so that old fame fades. A record whose time is over gives way
//! to anybody.
//!
//! Keys are digests, so they are their own hash: for the choice of a shard, the map and the sketch.

use std::{
    collections::HashMap,
    hash::{BuildHasherDefault, Hasher},
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::Duration,
};

use bytes::Bytes;
use parking_lot::Mutex;

use super::key::{Key, Tags};

/// What a record costs beside its bytes: its place in the map and the list, its tags.
pub const OVERHEAD: usize = 256;
/// A shard for so many bytes; few enough that a large record fits in each, enough that threads seldom meet.
const BYTES_PER_SHARD: u64 = 16 << 20;
const MOST_SHARDS: u64 = 16;
/// The sketch has counters for so many records as there would be if each had this size.
const USUAL_RECORD: u64 = 2 * 1024;

/// Records by key.
pub struct Memory {
    shards: Box<[Mutex<Shard>]>,
    bytes: AtomicU64,
    entries: AtomicU64,
}

/// What became of a record that was to be stored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Kept {
    /// It is stored.
    pub admitted: bool,
    /// So many others had to go for it, or had their time over.
    pub evicted: u64,
}

impl Memory {
    /// Room for so many bytes.
    #[must_use]
    pub fn new(capacity: u64) -> Self {
        let shards = (capacity / BYTES_PER_SHARD).clamp(1, MOST_SHARDS).next_power_of_two();
        let shard = |_| Mutex::new(Shard::new(capacity / shards));
        let shards = (0..shards).map(shard).collect();
        Memory { shards, bytes: AtomicU64::new(0), entries: AtomicU64::new(0) }
    }

    fn shard(&self, key: &Key) -> &Mutex<Shard> {
        &self.shards[usize::from(key.bytes()[31]) & (self.shards.len() - 1)]
    }

    /// Room for so many bytes from now on. Returns how many records had to go.
    pub fn resize(&self, capacity: u64) -> u64 {
        let each = capacity / self.shards.len() as u64;
        self.on_all(|shard| {
            shard.capacity = each;
            shard.shrink()
        })
    }

    /// The record of that key, if it is there and its time is not over. Asking counts, whether it is there or not.
    pub fn get(&self, key: &Key, now: Duration) -> Option<Bytes> {
        let mut shard = self.shard(key).lock();
        shard.sketch.count(key);
        let place = *shard.places.get(key)?;
        if shard.slots[place].expires <= now {
            let freed = shard.remove(place);
            self.freed(1, freed);
            return None;
        }
        shard.unlink(place);
        shard.link_first(place);
        Some(shard.slots[place].record.clone())
    }

    /// Stores a record until `expires`, in place of the one under that key, if it is worth its room.
    pub fn put(
        &self,
        key: Key,
        tags: &Tags,
        record: Bytes,
        expires: Duration,
        now: Duration,
    ) -> Kept {
        let mut shard = self.shard(&key).lock();
        let before = (shard.bytes, shard.places.len());
        if let Some(place) = shard.places.get(&key).copied() {
            shard.remove(place);
        }
        let weight = (record.len() + OVERHEAD) as u64;
        let (admitted, evicted) = shard.make_room(&key, weight, now);
        if admitted {
            let tags = tags.clone();
            shard.insert(Slot { key, tags, record, expires, weight, before: NONE, after: NONE });
        }
        let after = (shard.bytes, shard.places.len());
        self.bytes.fetch_add(after.0.wrapping_sub(before.0), Relaxed);
        self.entries.fetch_add((after.1 as u64).wrapping_sub(before.1 as u64), Relaxed);
        Kept { admitted, evicted }
    }

    /// Takes out every record for which `wanted` holds. Returns how many those were.
    pub fn purge(&self, wanted: impl Fn(&Key, &Tags) -> bool) -> u64 {
        self.on_all(|shard| {
            let all: Vec<usize> = shard.places.values().copied().collect();
            let chosen = all.into_iter().filter(|place| {
                let slot = &shard.slots[*place];
                wanted(&slot.key, &slot.tags)
            });
            let chosen: Vec<usize> = chosen.collect();
            chosen.iter().for_each(|place| _ = shard.remove(*place));
            chosen.len() as u64
        })
    }

    /// Does this to each shard in turn, and notes what it took out.
    fn on_all(&self, mut change: impl FnMut(&mut Shard) -> u64) -> u64 {
        let mut gone = 0;
        for shard in &self.shards {
            let mut shard = shard.lock();
            let before = shard.bytes;
            let removed = change(&mut shard);
            self.freed(removed, before - shard.bytes);
            gone += removed;
        }
        gone
    }

    fn freed(&self, entries: u64, bytes: u64) {
        self.entries.fetch_sub(entries, Relaxed);
        self.bytes.fetch_sub(bytes, Relaxed);
    }

    /// Bytes in use.
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Relaxed)
    }

    /// Records stored.
    pub fn entries(&self) -> u64 {
        self.entries.load(Relaxed)
    }
}

/// No place.
const NONE: usize = usize::MAX;

struct Shard {
    capacity: u64,
    bytes: u64,
    places: HashMap<Key, usize, BuildHasherDefault<OwnHash>>,
    slots: Vec<Slot>,
    free: Vec<usize>,
    /// Used last, and used longest ago.
    first: usize,
    last: usize,
    sketch: Sketch,
}

struct Slot {
    key: Key,
    tags: Tags,
    record: Bytes,
    expires: Duration,
    weight: u64,
    before: usize,
    after: usize,
}

impl Shard {
    fn new(capacity: u64) -> Self {
        Shard {
            capacity,
            bytes: 0,
            places: HashMap::default(),
            slots: Vec::new(),
            free: Vec::new(),
            first: NONE,
            last: NONE,
            sketch: Sketch::new(capacity / USUAL_RECORD),
        }
    }

    /// Whether there is room for so much more, made at the cost of what is asked for no more often.
    fn make_room(&mut self, key: &Key, weight: u64, now: Duration) -> (bool, u64) {
        if weight > self.capacity {
            return (false, 0);
        }
        let (fame, mut evicted) = (self.sketch.estimate(key), 0);
        while self.bytes + weight > self.capacity {
            let victim = &self.slots[self.last];
            if victim.expires > now && self.sketch.estimate(&victim.key) > fame {
                return (false, evicted);
            }
            self.remove(self.last);
            evicted += 1;
        }
        (true, evicted)
    }

    /// Takes out what does not fit any more.
    fn shrink(&mut self) -> u64 {
        let mut removed = 0;
        while self.bytes > self.capacity {
            self.remove(self.last);
            removed += 1;
        }
        removed
    }

    fn insert(&mut self, slot: Slot) {
        let (key, weight) = (slot.key, slot.weight);
        let place = match self.free.pop() {
            Some(place) => {
                self.slots[place] = slot;
                place
            }
            None => {
                self.slots.push(slot);
                self.slots.len() - 1
            }
        };
        self.places.insert(key, place);
        self.bytes += weight;
        self.link_first(place);
    }

    /// Takes out the record at this place; returns what it weighed.
    fn remove(&mut self, place: usize) -> u64 {
        self.unlink(place);
        let slot = &mut self.slots[place];
        slot.record = Bytes::new();
        let weight = slot.weight;
        self.places.remove(&slot.key);
        self.bytes -= weight;
        self.free.push(place);
        weight
    }

    fn unlink(&mut self, place: usize) {
        let (before, after) = (self.slots[place].before, self.slots[place].after);
        match before {
            NONE => self.first = after,
            before => self.slots[before].after = after,
        }
        match after {
            NONE => self.last = before,
            after => self.slots[after].before = before,
        }
    }

    fn link_first(&mut self, place: usize) {
        let second = self.first;
        (self.slots[place].before, self.slots[place].after) = (NONE, second);
        match second {
            NONE => self.last = place,
            second => self.slots[second].before = place,
        }
        self.first = place;
    }
}

/// A key is a digest: any part of it is a hash.
#[derive(Default)]
struct OwnHash(u64);

impl Hasher for OwnHash {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        let mut word = [0; 8];
        let used = bytes.len().min(8);
        word[..used].copy_from_slice(&bytes[..used]);
        self.0 ^= u64::from_le_bytes(word);
    }
}

/// Counts how often keys are asked for, roughly: never too low, sometimes too high (a count-min sketch).
struct Sketch {
    counters: Box<[u8]>,
    counted: u64,
}

/// Counters for each record that there is room for.
const COUNTERS_EACH: u64 = 8;
/// The most that one counter says; more fame makes no difference.
const MOST: u8 = 15;
/// Rows, each with its own part of the key.
const ROWS: usize = 4;

impl Sketch {
    fn new(records: u64) -> Self {
        let counters = (records * COUNTERS_EACH).next_power_of_two().clamp(1 << 10, 1 << 22);
        Sketch { counters: vec![0; counters as usize].into(), counted: 0 }
    }

    fn cells(&self, key: &Key) -> [usize; ROWS] {
        let mask = self.counters.len() - 1;
        let bytes = key.bytes();
        std::array::from_fn(|row| {
            let part = [4 * row, 4 * row + 1, 4 * row + 2, 4 * row + 3].map(|at| bytes[at]);
            u32::from_le_bytes(part) as usize & mask
        })
    }

    fn count(&mut self, key: &Key) {
        let least = self.estimate(key);
        if least < MOST {
            for cell in self.cells(key) {
                // Only the lowest are raised: the others are too high already.
                self.counters[cell] = self.counters[cell].max(least + 1);
            }
        }
        self.counted += 1;
        if self.counted >= 2 * self.counters.len() as u64 {
            self.counters.iter_mut().for_each(|counter| *counter /= 2);
            self.counted = 0;
        }
    }

    fn estimate(&self, key: &Key) -> u8 {
        self.cells(key).into_iter().map(|cell| self.counters[cell]).min().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use rand::{RngExt, SeedableRng, rngs::SmallRng};

    use super::*;
    use crate::answers::record::tests::tags;

    const NOW: Duration = Duration::from_secs(1_000);
    const LATER: Duration = Duration::from_secs(2_000);

    fn record(bytes: usize) -> Bytes {
        vec![7; bytes].into()
    }

    impl Memory {
        /// What must hold after every step.
        fn check(&self, seed: u64) {
            let (mut bytes, mut entries) = (0, 0);
            for shard in &self.shards {
                let shard = shard.lock();
                assert!(shard.bytes <= shard.capacity, "seed {seed}");
                let (mut weight, mut linked, mut place) = (0, 0, shard.first);
                while place != NONE {
                    let slot = &shard.slots[place];
                    assert_eq!(shard.places.get(&slot.key), Some(&place), "seed {seed}");
                    assert_eq!(slot.weight, (slot.record.len() + OVERHEAD) as u64, "seed {seed}");
                    weight += slot.weight;
                    linked += 1;
                    assert!(linked <= shard.slots.len(), "a ring, seed {seed}");
                    place = slot.after;
                }
                assert_eq!((weight, linked), (shard.bytes, shard.places.len()), "seed {seed}");
                bytes += shard.bytes;
                entries += shard.places.len() as u64;
            }
            assert_eq!((bytes, entries), (self.bytes(), self.entries()), "seed {seed}");
        }
    }

    #[test]
    fn whatever_is_done_the_bytes_are_bounded_and_counted() {
        for seed in 0..300 {
            let mut rng = SmallRng::seed_from_u64(seed);
            let capacity = [10_000, 100_000, 40 << 20][rng.random_range(0..3)];
            let memory = Memory::new(capacity);
            let tags = [tags("a", "chat", "m"), tags("b", "chat", "n")];
            for _ in 0..200 {
                let (key, which) = (Key::of(rng.random_range(0..60)), rng.random_range(0..2));
                let now = Duration::from_secs(rng.random_range(0..100));
                match rng.random_range(0..12) {
                    0 => _ = memory.purge(|_, tags| *tags.model == *["m", "n"][which]),
                    1 => _ = memory.purge(|other, _| *other == key),
                    2 => _ = memory.resize(rng.random_range(1_000..capacity * 2)),
                    3..7 => _ = memory.get(&key, now),
                    _ => {
                        let expires = now + Duration::from_secs(rng.random_range(0..50));
                        let record = record(rng.random_range(0..9_000));
                        memory.put(key, &tags[which], record, expires, now);
                    }
                }
                memory.check(seed);
            }
        }
    }

    #[test]
    fn what_is_stored_is_there_until_its_time_is_over() {
        let (memory, key) = (Memory::new(1 << 20), Key::of(1));
        assert!(memory.get(&key, NOW).is_none());
        assert!(memory.put(key, &tags("a", "r", ""), record(5), LATER, NOW).admitted);
        assert_eq!(memory.get(&key, NOW), Some(record(5)));
        memory.put(key, &tags("a", "r", ""), record(6), LATER, NOW);
        assert_eq!((memory.get(&key, NOW), memory.entries()), (Some(record(6)), 1));
        assert_eq!(memory.get(&key, LATER), None);
        assert_eq!((memory.entries(), memory.bytes()), (0, 0));
    }

    #[test]
    fn what_is_asked_for_all_the_time_outlives_a_long_run_of_others() {
        for seed in 0..20 {
            let mut rng = SmallRng::seed_from_u64(seed);
            let memory = Memory::new(100 * (1_000 + OVERHEAD as u64));
            let tags = tags("a", "r", "");
            let mut hits = 0;
            for round in 0..4_000_u64 {
                let popular = Key::of(rng.random_range(0..50));
                hits += u32::from(memory.get(&popular, NOW).is_some());
                memory.put(popular, &tags, record(1_000), LATER, NOW);
                let once = Key::of(1_000_000 * (seed + 1) + round);
                memory.get(&once, NOW);
                memory.put(once, &tags, record(1_000), LATER, NOW);
            }
            // Without admission by fame a list of the last used would lose most of the fifty time and again.
            assert!(hits > 3_600, "seed {seed}: {hits} hits of 4000");
        }
    }

    #[test]
    fn a_record_that_fits_nowhere_is_not_stored_and_throws_nothing_out() {
        let memory = Memory::new(10_000);
        memory.put(Key::of(1), &tags("a", "r", ""), record(100), LATER, NOW);
        let kept = memory.put(Key::of(2), &tags("a", "r", ""), record(10_000), LATER, NOW);
        assert_eq!(kept, Kept { admitted: false, evicted: 0 });
        assert!(memory.get(&Key::of(1), NOW).is_some());
    }

    #[test]
    fn threads_that_store_and_purge_at_once_leave_it_consistent() {
        let memory = Memory::new(64 << 20);
        std::thread::scope(|scope| {
            for thread in 0..4 {
                let memory = &memory;
                scope.spawn(move || {
                    let tags = tags(&thread.to_string(), "r", "");
                    for round in 0..2_000_u64 {
                        let key = Key::of(round % 300);
                        memory.put(key, &tags, record(2_000), LATER, NOW);
                        memory.get(&Key::of(round % 7), NOW);
                        if round % 100 == 0 {
                            memory.purge(|_, found| found.tenant == tags.tenant);
                        }
                    }
                });
            }
        });
        memory.check(0);
        memory.purge(|_, _| true);
        assert_eq!((memory.bytes(), memory.entries()), (0, 0));
    }
}
