//! A model server under more load than it can serve, in virtual time: what the queue in front of it makes of that.
//!
//! The server works in steps, as engines that batch continuously do: whoever is let in joins at the next step, has its
//! first byte at the end of that one, and gives its place back some steps later. The gate in front of it is modelled by
//! the few lines that ask the queue.

use std::collections::HashMap;

use rand::{RngExt, SeedableRng, rngs::SmallRng};

use super::{tests::settings, *};

const MS: Duration = Duration::from_millis(1);
/// Of one step of the server, and how many an answer takes on average.
const STEP: u64 = 40;
const STEPS: u64 = 25;
/// The longest first byte of a server without load: the rest of the step under way, and the next.
const UNLOADED: u64 = 2 * STEP;
/// Nothing is counted before.
const SETTLED: u64 = 30_000;
const END: u64 = 130_000;

/// How long answers are.
#[derive(Clone, Copy, Debug)]
enum Lengths {
    /// All the same, so that places come free in waves.
    Same,
    /// From one step to twice the mean.
    Uniform,
    /// As if each step could be the last.
    Geometric,
}

#[derive(Clone, Copy, Debug)]
struct Case {
    seed: u64,
    places: u64,
    /// Requests that come, as a multiple of what can be served.
    load: f64,
    /// The share of the high class.
    high: f64,
    lengths: Lengths,
    target: Duration,
}

const CASE: Case = Case {
    seed: 0,
    places: 48,
    load: 3.0,
    high: 0.2,
    lengths: Lengths::Uniform,
    target: Duration::from_millis(80),
};

struct Running {
    item: usize,
    left: u64,
    silent: bool,
}

struct World {
    case: Case,
    rng: SmallRng,
    start: Instant,
    ms: u64,
    queue: Queue<usize>,
    /// Class and time of arrival of all requests.
    came: Vec<(usize, u64)>,
    waiting: HashMap<usize, (Ticket, Instant)>,
    joining: Vec<usize>,
    running: Vec<Running>,
    in_use: u64,
    freed: u64,
    result: Overload,
}

#[derive(Default)]
struct Overload {
    /// Milliseconds to the first byte, for each class.
    first_bytes: [Vec<u64>; 2],
    /// Milliseconds after which those turned away were told.
    told: Vec<u64>,
    asked: [usize; 2],
    completed: u64,
}

impl World {
    fn new(case: Case) -> Self {
        World {
            case,
            rng: SmallRng::seed_from_u64(case.seed),
            start: Instant::now(),
            ms: 0,
            queue: Queue::new(settings(200, 500 * MS, case.target)),
            came: Vec::new(),
            waiting: HashMap::new(),
            joining: Vec::new(),
            running: Vec::new(),
            in_use: 0,
            freed: 0,
            result: Overload::default(),
        }
    }

    fn now(&self) -> Instant {
        self.start + Duration::from_millis(self.ms)
    }

    fn counts(&self, item: usize) -> bool {
        self.came[item].1 >= SETTLED
    }

    fn run(mut self) -> Overload {
        let rate = self.case.load * self.case.places as f64 / ((STEPS * STEP) as f64);
        let mut next = 0.0;
        while self.ms < END {
            if self.ms.is_multiple_of(STEP) {
                self.end_step();
            }
            while next <= self.ms as f64 {
                next += -self.rng.random::<f64>().max(f64::MIN_POSITIVE).ln() / rate;
                self.arrive();
            }
            self.look();
            self.ms += 1;
        }
        self.result
    }

    fn end_step(&mut self) {
        let mut running = std::mem::take(&mut self.running);
        running.retain_mut(|one| {
            if std::mem::take(&mut one.silent) && self.counts(one.item) {
                let (class, came) = self.came[one.item];
                self.result.first_bytes[class].push(self.ms - came);
            }
            one.left -= 1;
            let over = one.left == 0;
            if over {
                self.result.completed += u64::from(self.ms >= SETTLED);
                (self.in_use, self.freed) = (self.in_use - 1, self.freed + 1);
                self.give_turns();
            }
            !over
        });
        for item in std::mem::take(&mut self.joining) {
            let left = self.length();
            running.push(Running { item, left, silent: true });
        }
        self.running = running;
    }

    fn length(&mut self) -> u64 {
        match self.case.lengths {
            Lengths::Same => STEPS,
            Lengths::Uniform => self.rng.random_range(1..2 * STEPS),
            Lengths::Geometric => {
                let (mut steps, mean) = (1, STEPS as f64);
                while self.rng.random_bool(1.0 - 1.0 / mean) {
                    steps += 1;
                }
                steps
            }
        }
    }

    fn arrive(&mut self) {
        let (item, now) = (self.came.len(), self.now());
        let class = usize::from(!self.rng.random_bool(self.case.high));
        self.came.push((class, self.ms));
        self.result.asked[class] += usize::from(self.counts(item));
        let kept = self.queue.favours(now).filter(|favoured| class > *favoured);
        let kept = kept.map_or(0, |_| crate::admission::gate::kept(self.case.places));
        if self.in_use + kept < self.case.places && self.queue.is_empty() {
            return self.let_in(item);
        }
        let mut gone = Vec::new();
        self.queue.found_no_place(std::mem::take(&mut self.freed), self.in_use);
        match self.queue.enter(Asked { class, deadline: None, again: None }, item, now, &mut gone) {
            Ok(ticket) => {
                let first = self.queue.first_look(&ticket, now);
                self.waiting.insert(item, (ticket, first));
            }
            Err(_) => self.turned_away(item),
        }
        gone.into_iter().for_each(|(item, _)| self.turned_away(item));
        self.give_turns();
    }

    fn give_turns(&mut self) {
        let mut gone = Vec::new();
        while self.in_use < self.case.places
            && let Some((item, _)) = self.queue.next(self.now(), &mut gone)
        {
            self.waiting.remove(&item);
            self.let_in(item);
        }
        gone.into_iter().for_each(|(item, _)| self.turned_away(item));
    }

    fn let_in(&mut self, item: usize) {
        self.in_use += 1;
        self.joining.push(item);
    }

    fn turned_away(&mut self, item: usize) {
        self.waiting.remove(&item);
        if self.counts(item) {
            self.result.told.push(self.ms - self.came[item].1);
        }
    }

    /// As each does who waits, when its time has come.
    fn look(&mut self) {
        let now = self.now();
        let due = |(item, (_, at)): (&usize, &(Ticket, Instant))| (*at <= now).then_some(*item);
        let mut due: Vec<usize> = self.waiting.iter().filter_map(due).collect();
        due.sort_unstable();
        for item in due {
            let Some((ticket, at)) = self.waiting.get_mut(&item) else { continue };
            match self.queue.look(ticket, now) {
                Look::Waits(until) => *at = until,
                Look::Gone(_) | Look::Unknown => self.turned_away(item),
            }
        }
    }
}

impl Overload {
    fn of(case: Case) -> Self {
        World::new(case).run()
    }

    fn first_byte(&self, q: f64) -> u64 {
        quantile(self.first_bytes.iter().flatten().copied().collect(), q)
    }

    /// The share of a class that was served.
    fn served(&self, class: usize) -> f64 {
        self.first_bytes[class].len() as f64 / self.asked[class].max(1) as f64
    }

    /// Of what can be served.
    fn goodput(&self, case: Case) -> f64 {
        let most = case.places * (END - SETTLED) / (STEPS * STEP);
        self.completed as f64 / most as f64
    }

    fn told(&self, case: Case) -> String {
        format!(
            "{case:?}: first byte {} {}, goodput {:.3}, served {:.2} {:.2}, told {} {} of {}",
            self.first_byte(0.5),
            self.first_byte(0.99),
            self.goodput(case),
            self.served(0),
            self.served(1),
            quantile(self.told.clone(), 0.9),
            quantile(self.told.clone(), 0.99),
            self.told.len(),
        )
    }
}

fn quantile(mut values: Vec<u64>, q: f64) -> u64 {
    values.sort_unstable();
    let rank = (values.len() as f64 * q).ceil() as usize;
    values.get(rank.max(1) - 1).copied().unwrap_or_default()
}

#[test]
fn of_two_classes_the_high_one_is_served_soon_and_the_others_are_told_at_once() {
    for (seed, lengths) in [Lengths::Uniform, Lengths::Geometric, Lengths::Same]
        .into_iter()
        .cycle()
        .take(9)
        .enumerate()
    {
        let case = Case { seed: seed as u64, lengths, ..CASE };
        let result = Overload::of(case);
        let told = result.told(case);
        assert!(result.first_byte(0.99) <= 2 * UNLOADED, "{told}");
        assert!(result.served(0) > 0.8 && result.served(0) > 4.0 * result.served(1), "{told}");
        assert!(result.served(1) > 0.1, "{told}");
        assert!(quantile(result.told.clone(), 0.95) <= 10, "{told}");
        assert!(result.goodput(case) > 0.93, "{told}");
    }
}

#[test]
fn of_one_class_nobody_waits_where_places_fill_by_themselves() {
    for (seed, high) in [(0, 0.0), (1, 1.0)] {
        let case = Case { seed, high, ..CASE };
        let result = Overload::of(case);
        let told = result.told(case);
        assert!(result.first_byte(0.99) <= UNLOADED + STEP / 2, "{told}");
        assert!(quantile(result.told.clone(), 0.99) <= 10, "{told}");
        assert!(result.goodput(case) > 0.93, "{told}");
    }
}

#[test]
fn where_places_would_stand_idle_they_are_waited_for() {
    for (seed, places, load) in [(0, 4, 3.0), (1, 48, 1.3), (2, 16, 1.5)] {
        let case = Case { seed, places, load, target: 500 * MS, ..CASE };
        let result = Overload::of(case);
        let told = result.told(case);
        assert!(result.goodput(case) > 0.93, "{told}");
        assert!(result.first_byte(0.99) <= UNLOADED + 600, "{told}");
        assert!(result.served(0) > result.served(1), "{told}");
    }
}

#[test]
fn a_class_that_is_shut_out_by_a_higher_one_gets_its_share_all_the_same() {
    let case = Case { high: 0.8, ..CASE };
    let result = Overload::of(case);
    let told = result.told(case);
    // One of ten and a few places, as promised.
    let share = result.first_bytes[1].len() as f64 / result.completed as f64;
    assert!(share > 0.5 / f64::from(PATIENCE + 2), "{share}, {told}");
}
