//! Seeded worlds of requests that come, wait, leave and are served; every step is checked. Overload is in [`super::overload`].

use std::collections::HashMap;

use rand::{RngExt, SeedableRng, rngs::SmallRng};

use super::{tests::settings, *};

const SEEDS: u64 = 2_000;
const MS: Duration = Duration::from_millis(1);

/// What the world knows of one who waits.
#[derive(Clone, Copy, Debug)]
struct Known {
    ticket: Ticket,
    class: usize,
    asked: Option<Instant>,
    entered: Instant,
    /// How many places were given since it has waited.
    places: u32,
}

struct World {
    rng: SmallRng,
    queue: Queue<u64>,
    settings: Settings,
    classes: usize,
    now: Instant,
    known: HashMap<u64, Known>,
    next: u64,
    told: String,
    ends: [u64; 4],
}

impl World {
    fn new(seed: u64) -> Self {
        let mut rng = SmallRng::seed_from_u64(seed);
        let size = rng.random_range(1..60);
        let wait = rng.random_range(20..2_000) * MS;
        let target = wait / rng.random_range(1..20);
        let classes = rng.random_range(1..=4);
        let settings = settings(size, wait, target);
        World {
            told: format!("seed {seed}, {settings:?}, {classes} classes"),
            queue: Queue::new(settings.clone()),
            settings,
            classes,
            rng,
            now: Instant::now(),
            known: HashMap::new(),
            next: 0,
            ends: [0; 4],
        }
    }

    fn step(&mut self) {
        let pause = self.rng.random_range(0..40);
        self.now += pause * MS;
        match self.rng.random_range(0..10) {
            0..=4 => self.arrive(),
            5 | 6 => self.serve(),
            7 => self.leave(),
            _ => self.look(),
        }
        let lengths: usize = self.queue.lengths().sum();
        let counted = (self.queue.len(), lengths);
        assert_eq!(counted, (self.known.len(), self.known.len()), "{}", self.told);
        assert!(self.queue.len() <= self.settings.size, "{}", self.told);
        assert_eq!(self.queue.is_empty(), self.known.is_empty());
    }

    fn arrive(&mut self) {
        let class = self.rng.random_range(0..self.classes);
        let hurried = self.rng.random_bool(0.3);
        let asked = hurried.then(|| self.now + self.rng.random_range(0..500) * MS);
        let mut gone = Vec::new();
        self.next += 1;
        let ask = Asked { class, deadline: asked, again: None };
        let entered = self.queue.enter(ask, self.next, self.now, &mut gone);
        self.gone(gone);
        match entered {
            Ok(ticket) => {
                let known = Known { ticket, class, asked, entered: self.now, places: 0 };
                self.known.insert(self.next, known);
            }
            Err(Why::TimedOut) => panic!("{}: it has not waited", self.told),
            Err(Why::Full) => assert!(self.known.len() >= self.settings.size, "{}", self.told),
            Err(Why::Shed) => self.ends[3] += 1,
        }
    }

    fn gone(&mut self, gone: Vec<(u64, Why)>) {
        for (item, why) in gone {
            let known = self.known.remove(&item).expect("nobody goes twice");
            self.check_gone(known, why);
        }
    }

    fn check_gone(&mut self, known: Known, why: Why) {
        let due = known.entered + self.settings.wait;
        let due = known.asked.map_or(due, |asked| asked.min(due));
        match why {
            Why::TimedOut => assert!(due <= self.now, "{}", self.told),
            Why::Shed => self.ends[1] += 1,
            Why::Full => panic!("{}: it was in", self.told),
        }
    }

    fn serve(&mut self) {
        let standing = self.queue.is_standing(self.now);
        let mut gone = Vec::new();
        let served = self.queue.next(self.now, &mut gone);
        self.gone(gone);
        let Some((item, ticket)) = served else {
            return assert!(self.known.is_empty(), "{}: a place is left unused", self.told);
        };
        let known = self.known.remove(&item).expect("nobody is served twice");
        assert_eq!(ticket, known.ticket);
        assert!(ticket.deadline > self.now, "{}: served too late", self.told);
        let same = self.known.values().filter(|other| other.class == known.class);
        let nearest = same.map(|other| other.ticket.deadline).min();
        if !standing {
            assert!(nearest.is_none_or(|other| ticket.deadline <= other), "{}", self.told);
        }
        self.passes_over(known.class);
        self.ends[0] += 1;
    }

    /// A class that waits is not passed over for ever.
    fn passes_over(&mut self, served: usize) {
        let bound = PATIENCE + u32::try_from(self.classes).expect("few");
        for known in self.known.values_mut() {
            known.places = if known.class == served { 0 } else { known.places + 1 };
            assert!(known.places < bound, "{}: class {} starves", self.told, known.class);
        }
    }

    fn leave(&mut self) {
        let Some(item) = self.anybody() else { return };
        let known = self.known.remove(&item).expect("it waits");
        assert!(self.queue.leave(&known.ticket, self.now), "{}", self.told);
        assert_eq!(self.queue.look(&known.ticket, self.now), Look::Unknown);
        self.ends[2] += 1;
    }

    fn look(&mut self) {
        let Some(item) = self.anybody() else { return };
        let known = self.known[&item];
        match self.queue.look(&known.ticket, self.now) {
            Look::Waits(until) => assert!(until > self.now && until <= known.ticket.deadline),
            Look::Gone(why) => {
                self.known.remove(&item);
                self.check_gone(known, why);
            }
            Look::Unknown => panic!("{}: it waits", self.told),
        }
    }

    fn anybody(&mut self) -> Option<u64> {
        let mut all: Vec<u64> = self.known.keys().copied().collect();
        all.sort_unstable();
        (!all.is_empty()).then(|| all[self.rng.random_range(0..all.len())])
    }
}

#[test]
fn everyone_ends_once_in_order_in_time_and_no_class_starves() {
    let mut ends = [0; 4];
    for seed in 0..SEEDS {
        let mut world = World::new(seed);
        (0..300).for_each(|_| world.step());
        ends.iter_mut().zip(world.ends).for_each(|(sum, new)| *sum += new);
    }
    assert!(ends.iter().all(|count| *count > 1_000), "every end was met: {ends:?}");
}
