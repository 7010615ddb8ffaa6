//! How often requests ended by each outcome and status, without a lock and without a map.

use super::*;

/// Slots of an [`OutcomeTable`]: several times what one arm sees in its life.
pub(super) const SLOTS: usize = 64;

/// Counts by outcome and status code, without a lock and without room for all 23 × 500 pairs: a
/// slot is claimed when its pair first occurs. A pair that finds no slot is counted under its
/// outcome with the code `other`, so an upstream that invents codes cannot make series without end.
pub(super) struct OutcomeTable {
    slots: [Slot; SLOTS],
    beyond: [Counter; Outcome::ALL.len()],
}

#[derive(Default)]
pub(super) struct Slot {
    /// 0 = free, else one more than the index of the outcome, times 65536, plus the code.
    key: AtomicU32,
    count: AtomicU64,
}

impl Default for OutcomeTable {
    fn default() -> Self {
        Self {
            slots: std::array::from_fn(|_| Slot::default()),
            beyond: std::array::from_fn(|_| Counter::default()),
        }
    }
}

impl std::fmt::Debug for OutcomeTable {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut map = formatter.debug_map();
        self.for_each(|outcome, code, count| {
            map.entry(&(outcome, code), &count);
        });
        map.finish()
    }
}

impl OutcomeTable {
    pub(super) fn inc(&self, outcome: Outcome, code: u16) {
        let key = OUTCOME_KEYS[outcome.index()] + u32::from(code);
        let start = usize::from(code) + outcome.index() * 7;
        for step in 0..SLOTS {
            let slot = &self.slots[(start + step) % SLOTS];
            let mut holder = slot.key.load(Relaxed);
            if holder == 0 {
                let claimed = slot.key.compare_exchange(0, key, Relaxed, Relaxed);
                holder = claimed.err().unwrap_or(key);
            }
            if holder == key {
                slot.count.fetch_add(1, Relaxed);
                return;
            }
        }
        self.beyond[outcome.index()].inc();
    }

    pub(super) fn for_each(&self, mut write: impl FnMut(Outcome, &str, u64)) {
        let mut code = String::new();
        for slot in &self.slots {
            let (key, count) = (slot.key.load(Relaxed), slot.count.load(Relaxed));
            let Some(outcome) = Outcome::ALL.get((key >> 16).wrapping_sub(1) as usize) else {
                continue;
            };
            code.clear();
            // Writing to a string cannot fail.
            let _ = write!(code, "{}", key & 0xFFFF);
            write(*outcome, &code, count);
        }
        for (outcome, count) in Outcome::ALL.iter().zip(&self.beyond) {
            if count.get() > 0 {
                write(*outcome, OTHER, count.get());
            }
        }
    }
}

/// The part of a slot's key that stands for the outcome.
pub(super) const OUTCOME_KEYS: [u32; Outcome::ALL.len()] = {
    let mut keys = [0; Outcome::ALL.len()];
    let (mut index, mut key) = (0, 1 << 16);
    while index < keys.len() {
        keys[index] = key;
        index += 1;
        key += 1 << 16;
    }
    keys
};
