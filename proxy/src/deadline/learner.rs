//! What one arm of a route has learned about how long things take, and the deadlines that follow from it.
//!
//! Three times are learned: to **connect**, to the **first byte**, and the longest **gap** of a response. The longest
//! and not every one: of a thousand gaps one is beyond the 99.9th percentile of gaps, and every long stream would be
//! cut.
//!
//! **The first byte is predicted.** What it should take follows from the work before it (`prices`); what is learned
//! is the distribution of *taken over expected*. Its bound times the expectation of a request is its deadline. Where the
//! prices are wrong for a size of prompt, the distributions by size put it right, streams and whole answers apart.
//!
//! **Falling back.** A deadline is taken from the narrowest group that has enough samples: this size at this arm, the
//! arm, the route. Where none has, it is the ceiling: no deadline is better than a guessed one.
//!
//! **What was cut off teaches too**, or the estimate would shrink until everything is cut off. Two cases are told apart:
//!
//! - The endpoint gave others their first byte meanwhile: it works and was too slow for this one. That is a sample of "at
//!   least so long" (`histogram`).
//! - The endpoint was silent all the while: it hangs, or everything there has become much slower. Of how long answers
//!   take that says nothing, and its deadlines must not become longer for all endpoints because one hangs. Only this
//!   endpoint is given more time, twice as long after each time-out and eight times at most ([`Patience`]), until it
//!   serves something within the deadline. So one that hangs is cut off at once, and one that became slower is soon
//!   waited for long enough to learn from it.
//!
//! **Exploring.** A small share of requests has the ceiling for a deadline. They see what lies beyond, and what share of
//! them is served after what would have been the deadline is the measured rate of false alarms.

#[cfg(test)]
mod simulation;

use std::{
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU32, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use outrigger_config::validated::{Adaptive, Strategy};
use rand::{Rng, RngExt};

use super::{
    prices::{Amounts, Answer, Prices, Work},
    strategy::{Cell, Known},
};

/// Sizes of prompts that are told apart: below 256 tokens, and each four times the one before.
const SIZES: usize = 6;
/// Streams and whole answers.
const KINDS: usize = 2;

/// What is learned where nothing else is asked for: hedging wants to know how long first bytes take.
const UNASKED: Strategy = Strategy::Quantile { quantile: 0.999, margin: 2.0 };

/// Which deadlines are learned, and how.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Settings {
    /// To connect.
    pub connect: Option<Adaptive>,
    /// To the first byte.
    pub first_byte: Option<Adaptive>,
    /// The longest gap.
    pub gap: Option<Adaptive>,
}

/// What one arm has learned. Any thread may use it.
#[derive(Debug)]
pub struct Learner {
    settings: Settings,
    own: Knowledge,
    /// Of all arms of the route together, where there are several.
    route: Option<Arc<Knowledge>>,
}

/// What is known of one arm, or of all arms of a route.
#[derive(Debug)]
pub struct Knowledge {
    first_byte: FirstBytes,
    gap: Cell,
    connect: Cell,
}

/// First bytes, over what was expected of them.
#[derive(Debug)]
struct FirstBytes {
    strategy: Strategy,
    prices: Prices,
    /// By kind.
    all: [OnceLock<Box<Cell>>; KINDS],
    by_size: [[OnceLock<Box<Cell>>; SIZES]; KINDS],
}

/// Why a deadline is what it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Basis {
    /// It was learned.
    Learned,
    /// Too little is known: it is the ceiling.
    Unknown,
    /// It is the ceiling, to see what lies beyond.
    Explored,
}

/// A deadline and where it comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limit {
    /// The deadline.
    pub after: Duration,
    /// What was learned, also where the deadline is another one.
    pub learned: Option<Duration>,
    /// Why it is so.
    pub basis: Basis,
    /// How often it was doubled, see [`Patience`].
    pub patience: u32,
}

/// What is expected of the first byte of one attempt.
#[derive(Clone, Copy, Debug)]
pub struct Forecast {
    /// Its deadline, where that is learned.
    pub limit: Option<Limit>,
    amounts: Amounts,
    group: Group,
    /// In seconds, by the prices of the arm and of the route.
    expected: [f32; 2],
}

/// Requests of a kind and a size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Group {
    kind: usize,
    size: usize,
}

impl Learner {
    /// Nothing is known yet but what the `route` knows.
    pub fn new(settings: Settings, route: Option<Arc<Knowledge>>) -> Self {
        Self { own: Knowledge::new(&settings), settings, route }
    }

    /// Which deadlines are learned.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// What all arms of the route know together, where there are several.
    pub fn route(&self) -> Option<Arc<Knowledge>> {
        self.route.clone()
    }

    /// What is to be expected of the first byte of an attempt that has this work before it, at an endpoint with that
    /// [`Patience`].
    pub fn forecast(&self, work: &Work, patience: u32, rng: &mut impl Rng) -> Forecast {
        let (amounts, group) = (Amounts::from(work), Group::of(work));
        let expected = self.expected(&amounts);
        let bound = self.narrowest(group, expected, Cell::bound);
        // What waits at an endpoint that is silent is not being worked off: longer deadlines would make it more, and
        // more of it longer deadlines.
        let alone = (patience > 0).then(|| {
            let alone = self.expected(&Amounts::from(&work.alone()));
            self.narrowest(group, alone, Cell::bound)
        });
        let rule = self.settings.first_byte.as_ref();
        let limit =
            rule.map(|rule| Limit::new(rule, bound, alone.flatten().or(bound), patience, rng));
        Forecast { limit, amounts, group, expected }
    }

    /// The first byte came after so long; whether that was in time for what was learned.
    pub fn served(&self, forecast: &Forecast, after: Duration, now: Instant) -> bool {
        let seconds = after.as_secs_f32();
        self.own.first_byte.served(forecast, 0, seconds, now);
        if let Some(route) = &self.route {
            route.first_byte.served(forecast, 1, seconds, now);
        }
        forecast.limit.is_none_or(|limit| limit.is_kept_by(after))
    }

    /// No first byte came in so long from an endpoint that worked all the while.
    pub fn cut_off(&self, forecast: &Forecast, after: Duration, now: Instant) {
        let seconds = after.as_secs_f32();
        self.own.first_byte.cut_off(forecast, 0, seconds, now);
        if let Some(route) = &self.route {
            route.first_byte.cut_off(forecast, 1, seconds, now);
        }
    }

    /// The time within which the share `q` of such attempts get their first byte; `None` while too little is known.
    pub fn quantile(&self, q: f64, forecast: &Forecast) -> Option<Duration> {
        let ask = |cell: &Cell| cell.quantile(q);
        self.narrowest(forecast.group, forecast.expected, ask).map(duration)
    }

    /// The deadline for the gaps of a response from an endpoint with that [`Patience`].
    pub fn gap(&self, patience: u32, rng: &mut impl Rng) -> Option<Limit> {
        let rule = self.settings.gap.as_ref()?;
        let bound = self.plain(|known| &known.gap);
        Some(Limit::new(rule, bound, bound, patience, rng))
    }

    /// The longest gap of a complete response.
    pub fn longest_gap(&self, gap: Duration, now: Instant) {
        self.each(|known| known.gap.served(gap.as_secs_f32(), now));
    }

    /// A response was given up in a gap of this length, at an endpoint that worked all the while.
    pub fn gap_cut_off(&self, gap: Duration, now: Instant) {
        self.each(|known| known.gap.cut_off(gap.as_secs_f32(), now));
    }

    /// The deadline for connecting.
    pub fn connect(&self, rng: &mut impl Rng) -> Option<Limit> {
        let rule = self.settings.connect.as_ref()?;
        let bound = self.plain(|known| &known.connect);
        Some(Limit::new(rule, bound, bound, 0, rng))
    }

    /// A connection was made in so long.
    pub fn connected(&self, after: Duration, now: Instant) {
        self.each(|known| known.connect.served(after.as_secs_f32(), now));
    }

    /// No connection was made in so long. It is not asked whether the endpoint is there at all: the ceiling is short.
    pub fn not_connected(&self, after: Duration, now: Instant) {
        self.each(|known| known.connect.cut_off(after.as_secs_f32(), now));
    }

    /// What is known; groups without samples are left out.
    pub fn known(&self) -> Summary {
        Summary {
            first_byte: self.own.first_byte.known(),
            gap: self.own.gap.known(),
            connect: self.own.connect.known(),
        }
    }

    fn expected(&self, amounts: &Amounts) -> [f32; 2] {
        let route = self.route.as_ref().map(|route| route.first_byte.prices.expect(amounts));
        [self.own.first_byte.prices.expect(amounts), route.unwrap_or_default()]
    }

    /// In seconds, from the narrowest group that knows.
    fn narrowest(
        &self,
        group: Group,
        expected: [f32; 2],
        ask: impl Fn(&Cell) -> Option<f32>,
    ) -> Option<f32> {
        let own = &self.own.first_byte;
        let here = |cell: &OnceLock<Box<Cell>>| cell.get().and_then(|cell| ask(cell));
        let arm = || here(own.by_size(group)).or_else(|| here(own.all(group)));
        let route = || self.route.as_ref().and_then(|route| here(route.first_byte.all(group)));
        let arm = arm().map(|ratio| ratio * expected[0]);
        arm.or_else(|| route().map(|ratio| ratio * expected[1]))
    }

    fn plain(&self, cell: impl Fn(&Knowledge) -> &Cell) -> Option<f32> {
        let route = || self.route.as_ref().and_then(|route| cell(route).bound());
        cell(&self.own).bound().or_else(route)
    }

    fn each(&self, tell: impl Fn(&Knowledge)) {
        tell(&self.own);
        if let Some(route) = &self.route {
            tell(route);
        }
    }
}

/// What there is to show.
#[derive(Clone, Debug, Default)]
pub struct Summary {
    /// First bytes.
    pub first_byte: Vec<Size>,
    /// Longest gaps, in seconds.
    pub gap: Option<Known>,
    /// Connections, in seconds.
    pub connect: Option<Known>,
}

/// First bytes of requests of a kind and a size.
#[derive(Clone, Copy, Debug)]
pub struct Size {
    /// Of streams; else of answers as a whole.
    pub streamed: bool,
    /// The least tokens that a prompt of the size has.
    pub from: u64,
    /// A prompt in the middle of the size.
    pub typical: u64,
    /// What is expected of that one at an endpoint that has nothing else to do, in seconds.
    pub expected: f32,
    /// What is known, over what was expected.
    pub known: Known,
}

impl Limit {
    /// `bound` follows from all that is known, `alone` if there were nothing else at the endpoint.
    fn new(
        rule: &Adaptive,
        bound: Option<f32>,
        alone: Option<f32>,
        patience: u32,
        rng: &mut impl Rng,
    ) -> Self {
        let clamped = |bound: f32| duration(bound).clamp(rule.floor, rule.ceiling);
        let (learned, alone) = (bound.map(clamped), alone.map(clamped));
        let explores = rule.explore > 0.0 && rng.random_bool(rule.explore);
        let patience = patience.min(Patience::MOST);
        let (after, basis) = match learned {
            None => (rule.ceiling, Basis::Unknown),
            Some(_) if explores => (rule.ceiling, Basis::Explored),
            Some(learned) if patience > 0 => {
                let alone = alone.unwrap_or(learned);
                let most = alone.saturating_mul(1 << Patience::MOST);
                let after = alone.saturating_mul(1 << patience).max(learned.min(most));
                (after.min(rule.ceiling), Basis::Learned)
            }
            Some(learned) => (learned, Basis::Learned),
        };
        Self { after, learned, basis, patience }
    }

    /// Whether what took so long was in time for what was learned.
    pub fn is_kept_by(&self, after: Duration) -> bool {
        self.learned.is_none_or(|learned| after <= learned)
    }
}

fn duration(seconds: f32) -> Duration {
    Duration::try_from_secs_f32(seconds).unwrap_or(Duration::MAX)
}

impl Knowledge {
    /// Nothing is known yet.
    pub fn new(settings: &Settings) -> Self {
        let strategy = |rule: &Option<Adaptive>| rule.as_ref().map_or(UNASKED, |it| it.strategy);
        Self {
            first_byte: FirstBytes::new(strategy(&settings.first_byte)),
            gap: Cell::new(strategy(&settings.gap)),
            connect: Cell::new(strategy(&settings.connect)),
        }
    }
}

impl FirstBytes {
    fn new(strategy: Strategy) -> Self {
        Self {
            strategy,
            prices: Prices::new(),
            all: Default::default(),
            by_size: Default::default(),
        }
    }

    fn all(&self, group: Group) -> &OnceLock<Box<Cell>> {
        &self.all[group.kind]
    }

    fn by_size(&self, group: Group) -> &OnceLock<Box<Cell>> {
        &self.by_size[group.kind][group.size]
    }

    fn served(&self, forecast: &Forecast, whose: usize, seconds: f32, now: Instant) {
        let ratio = seconds / forecast.expected[whose];
        self.each(forecast.group, |cell| cell.served(ratio, now));
        self.prices.learn(&forecast.amounts, seconds);
    }

    fn cut_off(&self, forecast: &Forecast, whose: usize, seconds: f32, now: Instant) {
        let ratio = seconds / forecast.expected[whose];
        self.each(forecast.group, |cell| cell.cut_off(ratio, now));
        if ratio > 1.0 {
            // It took at least so long, so more was to be expected.
            self.prices.learn(&forecast.amounts, seconds);
        }
    }

    fn each(&self, group: Group, tell: impl Fn(&Cell)) {
        for cell in [self.all(group), self.by_size(group)] {
            tell(cell.get_or_init(|| Box::new(Cell::new(self.strategy))));
        }
    }

    fn known(&self) -> Vec<Size> {
        let mut all = Vec::new();
        for (kind, sizes) in self.by_size.iter().enumerate() {
            for (size, cell) in sizes.iter().enumerate() {
                let Some(known) = cell.get().and_then(|cell| cell.known()) else { continue };
                let (streamed, typical) = (kind == 0, 128 << (2 * size));
                let answer = if streamed { Answer::Streamed } else { Answer::Whole { most: None } };
                let work = Work { prompt: typical, answer, ..Work::default() };
                let expected = self.prices.expect(&Amounts::from(&work));
                all.push(Size { streamed, from: Group::least(size), typical, expected, known });
            }
        }
        all
    }
}

impl Group {
    fn of(work: &Work) -> Self {
        let log = (work.prompt | 1).ilog2() as usize;
        Self {
            kind: usize::from(work.answer != Answer::Streamed),
            size: (log.saturating_sub(6) / 2).min(SIZES - 1),
        }
    }

    /// The smallest prompt of a size, in tokens.
    const fn least(size: usize) -> u64 {
        match size {
            0 => 0,
            size => 64 << (2 * size),
        }
    }
}

/// How much longer than usual an endpoint is waited for that was silent when it last was. Doubles once for each time-out
/// in a row, not for each of a hundred requests that were sent together: those sent before it doubled do not count.
#[derive(Debug, Default)]
pub struct Patience(AtomicU32);

impl Patience {
    /// The most: eight times as long.
    pub const MOST: u32 = 3;

    /// How often a deadline is doubled.
    pub fn level(&self) -> u32 {
        self.0.load(Relaxed)
    }

    /// Nothing came from the endpoint until this limit had passed.
    pub fn was_silent(&self, limit: &Limit) {
        self.0.fetch_max((limit.patience + 1).min(Self::MOST), Relaxed);
    }

    /// A first byte came; `in_time` for what was learned. One that came later is no reason to wait for less.
    pub fn was_served(&self, in_time: bool) {
        if in_time && self.level() > 0 {
            self.0.store(0, Relaxed);
        }
    }
}
