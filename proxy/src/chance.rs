//! Chance, from one place: every generator that the path of a request draws from is made here.
//!
//! So that a simulation that is run again with the same seed meets with the same luck.

use rand::{SeedableRng, rngs::SmallRng};

/// A generator of its own: cheap to make, and good enough for ties, jitter and ids.
pub fn rng() -> SmallRng {
    #[cfg(test)]
    if let Some(rng) = simulated::next() {
        return rng;
    }
    SmallRng::from_rng(&mut rand::rng())
}

/// Luck that can be had again.
#[cfg(test)]
pub(crate) mod simulated {
    use std::cell::RefCell;

    use rand::{SeedableRng, rngs::SmallRng};

    thread_local! {
        static SOURCE: RefCell<Option<SmallRng>> = const { RefCell::new(None) };
    }

    /// From now on this thread draws by this seed; by none, it is as unpredictable as ever.
    pub(crate) fn seed(seed: Option<u64>) {
        SOURCE.with_borrow_mut(|source| *source = seed.map(SmallRng::seed_from_u64));
    }

    pub(super) fn next() -> Option<SmallRng> {
        SOURCE.with_borrow_mut(|source| source.as_mut().map(SmallRng::from_rng))
    }
}
