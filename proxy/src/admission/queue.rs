//! Who waits for a place, and whose turn it is when one comes free.
//!
//! **Between classes** the first non-empty one is next. So that no class starves, one that was passed over
//! `PATIENCE` times is next instead: of any `PATIENCE + classes` places given while it waits, at least one is its own.
//! A full queue pushes out the newest of a lower class for a higher one, but never below a small share of the queue.
//!
//! **Within a class** whose deadline is nearest. That is the best order as long as all can make it and the worst when
//! they can not: then each is served just too late. So when more wait than can be served in the time they are allowed,
//! the newest is next (adaptive LIFO), and the oldest are turned away.
//!
//! **How long** one may wait follows CoDel. A queue that was empty lately is a good one: it levels out a burst, and each
//! may wait for `wait`. One that has had somebody in it for as long as `wait` is *standing*: it makes everybody slow and
//! nothing faster. Then each may wait for `target` only, or for as long as two places take to come free if that is
//! longer. It stops standing when nobody had to wait for the longer of `target` and the time of four places, and nobody
//! was turned away for `wait`.
//!
//! **At the door** whoever would not make it is turned away at once. How long it would take is known from the pace at
//! which its class has been given places; where nobody of its class waits, it is not asked. And in front of a standing
//! queue only those wait whose waiting is of use: it puts them before a lower class, or keeps places from standing idle
//! (`queue/crowd.rs`), or their class was passed over for too long. The others get a place that is free when they come, or none;
//! a few are kept for the highest class then ([`Queue::favours`]), as it could not push itself before those who do not wait.
//!
//! Whoever leaves is gone at once, with all that counted for it.

mod crowd;

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use crowd::Crowd;
use outrigger_config::validated::Queue as Settings;

/// How often a class that waits is passed over in favour of higher ones.
const PATIENCE: u32 = 9;
/// What the latest interval between two places counts for in the pace.
const LATEST: f64 = 0.1;
/// A class keeps this fraction of the queue, divided by the number of classes, from being pushed out.
const KEPT: usize = 4;

/// Requests that wait, each with an item of the caller's.
#[derive(Debug)]
pub struct Queue<T> {
    settings: Settings,
    classes: Vec<Class<T>>,
    waiting: usize,
    numbered: u64,
    /// When the present time of waiting began; it goes on over short moments in which nobody waits.
    since: Option<Instant>,
    /// Since when nobody has waited.
    empty_since: Option<Instant>,
    /// When somebody was last turned away because of the others.
    strained_at: Option<Instant>,
    pace: Pace,
    crowd: Crowd,
}

/// Who wants to wait.
#[derive(Clone, Copy, Debug)]
pub struct Asked {
    /// Its class; 0 is the highest.
    pub class: usize,
    /// When it is too late for it.
    pub deadline: Option<Instant>,
    /// It has waited before, had its turn and found no place after all: it gets the same seat again.
    pub again: Option<Ticket>,
}

/// One who waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ticket {
    class: usize,
    deadline: Instant,
    number: u64,
    entered: Instant,
}

/// Why somebody is turned away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// As many wait as may.
    Full,
    /// It waited for as long as it may.
    TimedOut,
    /// It would not make it, or stands in a queue that does not get shorter, or was pushed out.
    Shed,
}

/// How it stands with one who waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Look {
    /// It goes on waiting; to be asked again then.
    Waits(Instant),
    /// It is turned away, and out.
    Gone(Why),
    /// It is not in the queue any more.
    Unknown,
}

#[derive(Debug)]
struct Class<T> {
    /// By deadline.
    entries: BTreeMap<(Instant, u64), Entry<T>>,
    /// The deadlines, from the oldest to the newest.
    ages: BTreeMap<u64, Instant>,
    passed_over: u32,
    /// When one of it last found no place.
    came: Option<Instant>,
    pace: Pace,
}

#[derive(Debug)]
struct Entry<T> {
    entered: Instant,
    item: T,
}

/// How soon one place after the other is given.
#[derive(Clone, Copy, Debug, Default)]
struct Pace {
    seconds: Option<f64>,
    last: Option<Instant>,
}

impl Pace {
    /// Somebody waits again.
    fn begin(&mut self, now: Instant) {
        self.last = Some(now);
    }

    fn turn(&mut self, now: Instant) {
        let Some(last) = self.last.replace(now) else { return };
        let latest = now.saturating_duration_since(last).as_secs_f64();
        let seconds = self.seconds.get_or_insert(latest);
        *seconds += LATEST * (latest - *seconds);
    }

    /// Between two places; longer when the next one is overdue.
    fn interval(&self, now: Instant, waits: bool) -> Option<Duration> {
        let known = Duration::try_from_secs_f64(self.seconds?).ok()?;
        let overdue = self.last.filter(|_| waits).map(|last| now.saturating_duration_since(last));
        Some(known.max(overdue.unwrap_or_default()))
    }
}

impl<T> Default for Class<T> {
    fn default() -> Self {
        let (entries, ages) = (BTreeMap::new(), BTreeMap::new());
        Class { entries, ages, passed_over: 0, came: None, pace: Pace::default() }
    }
}

impl<T> Class<T> {
    /// Whether one of it has found no place within this time.
    fn wants(&self, now: Instant, within: Duration) -> bool {
        self.came.is_some_and(|at| now.saturating_duration_since(at) <= within)
    }
}

impl<T> Queue<T> {
    /// An empty queue.
    pub fn new(settings: Settings) -> Self {
        Queue {
            settings,
            classes: Vec::new(),
            waiting: 0,
            numbered: 0,
            since: None,
            empty_since: None,
            strained_at: None,
            pace: Pace::default(),
            crowd: Crowd::default(),
        }
    }

    /// Other bounds from now on. Whoever waits keeps the deadline it came with.
    pub fn configure(&mut self, settings: Settings) {
        self.settings = settings;
    }

    /// How many wait.
    pub fn len(&self) -> usize {
        self.waiting
    }

    /// Whether nobody waits.
    pub fn is_empty(&self) -> bool {
        self.waiting == 0
    }

    /// How many wait, for each class.
    pub fn lengths(&self) -> impl Iterator<Item = usize> {
        self.classes.iter().map(|class| class.entries.len())
    }

    /// Somebody has come and found no place. So many have come free since the one before came, and so many are in use.
    pub fn found_no_place(&mut self, freed: u64, in_use: u64) {
        self.crowd.found_no_place(freed, in_use);
    }

    /// Lets somebody wait. Who has to go for it, or has waited too long, is put into `gone`.
    ///
    /// # Errors
    /// Why it may not.
    pub fn enter(
        &mut self,
        asked: Asked,
        item: T,
        now: Instant,
        gone: &mut Vec<(T, Why)>,
    ) -> Result<Ticket, Why> {
        self.begin(asked.class, now);
        self.turn_away(now, gone);
        self.classes[asked.class].came = Some(now);
        let ticket = match asked.again {
            Some(ticket) if ticket.deadline <= now => return Err(Why::TimedOut),
            Some(ticket) => ticket,
            None => self.ticket(asked, now, gone)?,
        };
        let class = &mut self.classes[ticket.class];
        if class.entries.is_empty() {
            class.pace.begin(now);
        }
        let entry = Entry { entered: ticket.entered, item };
        class.entries.insert((ticket.deadline, ticket.number), entry);
        class.ages.insert(ticket.number, ticket.deadline);
        self.waiting += 1;
        self.empty_since = None;
        Ok(ticket)
    }

    /// A new one, if it may wait at all.
    fn ticket(
        &mut self,
        asked: Asked,
        now: Instant,
        gone: &mut Vec<(T, Why)>,
    ) -> Result<Ticket, Why> {
        if asked.deadline.is_some_and(|own| own <= now) {
            // It came too late by itself, which says nothing of the queue.
            return Err(Why::Shed);
        }
        let waits_until = now + self.settings.wait;
        let deadline = asked.deadline.map_or(waits_until, |own| own.min(waits_until));
        let late = deadline <= now || self.would_be_late(asked.class, deadline, now);
        if late || (self.is_standing(now) && !self.is_of_use(asked.class, now)) {
            self.turned_away(now);
            return Err(Why::Shed);
        }
        if self.waiting >= self.settings.size {
            let out = self.push_out_for(asked.class, now).ok_or(Why::Full)?;
            gone.push((out, Why::Shed));
        }
        self.numbered += 1;
        Ok(Ticket { class: asked.class, deadline, number: self.numbered, entered: now })
    }

    /// Whoever is next, if anybody is.
    pub fn next(&mut self, now: Instant, gone: &mut Vec<(T, Why)>) -> Option<(T, Ticket)> {
        self.turn_away(now, gone);
        let index = self.due_class()?;
        let newest_first = self.is_overfull(index, now);
        let class = &self.classes[index];
        let key = match newest_first {
            true => class.ages.last_key_value().map(|(number, deadline)| (*deadline, *number)),
            false => class.entries.first_key_value().map(|(key, _)| *key),
        }?;
        self.pace.turn(now);
        self.classes[index].pace.turn(now);
        self.classes[index].passed_over = 0;
        let wait = self.settings.wait;
        let lower = self.classes.iter_mut().skip(index + 1).filter(|class| class.wants(now, wait));
        lower.for_each(|class| class.passed_over = class.passed_over.saturating_add(1));
        let entry = self.remove(index, key, now)?;
        let ticket =
            Ticket { class: index, deadline: key.0, number: key.1, entered: entry.entered };
        Some((entry.item, ticket))
    }

    /// It does not wait any longer; `false` when it did not any more.
    pub fn leave(&mut self, ticket: &Ticket, now: Instant) -> bool {
        self.remove(ticket.class, (ticket.deadline, ticket.number), now).is_some()
    }

    /// How it stands with one who waits, now that the time has come to ask.
    pub fn look(&mut self, ticket: &Ticket, now: Instant) -> Look {
        let key = (ticket.deadline, ticket.number);
        if !self.classes.get(ticket.class).is_some_and(|class| class.entries.contains_key(&key)) {
            return Look::Unknown;
        }
        let ends = ticket.deadline.min(self.patience_ends(ticket, now));
        if ends > now {
            return Look::Waits(ends);
        }
        self.remove(ticket.class, key, now);
        self.turned_away(now);
        let timed_out = ticket.deadline <= now;
        Look::Gone(if timed_out { Why::TimedOut } else { Why::Shed })
    }

    /// When one who waits is to be asked about first.
    pub fn first_look(&self, ticket: &Ticket, now: Instant) -> Instant {
        ticket.deadline.min(self.patience_ends(ticket, now))
    }

    /// Whether it has not got shorter for too long.
    pub fn is_standing(&self, now: Instant) -> bool {
        self.since.is_some_and(|since| now.saturating_duration_since(since) >= self.settings.wait)
    }

    /// Whether it is standing, and that is not over but for somebody to notice.
    pub fn still_stands(&self, now: Instant) -> bool {
        self.is_standing(now) && (self.waiting > 0 || self.is_strained(now))
    }

    /// For how long it will stand at least, if it does.
    pub fn stands_for(&self, now: Instant) -> Duration {
        if self.still_stands(now) { self.settings.wait } else { Duration::ZERO }
    }

    /// The class for which some places are kept: the highest one that wants any, while the queue stands and lower ones
    /// take what is free. Before them all, one that waits pushes itself; before those who do not wait it can not.
    pub fn favours(&self, now: Instant) -> Option<usize> {
        let mut wanting = (0..self.classes.len())
            .filter(|class| self.classes[*class].wants(now, self.settings.wait));
        let (highest, lower) = (wanting.next()?, wanting.next());
        (lower.is_some() && self.still_stands(now)).then_some(highest)
    }

    /// How long it takes until all who wait now have had their turn, as far as that is known.
    pub fn drains_in(&self, now: Instant) -> Option<Duration> {
        let interval = self.pace.interval(now, self.waiting > 0)?;
        let places = u32::try_from(self.waiting + 1).unwrap_or(u32::MAX);
        Some(interval.saturating_mul(places))
    }

    /// Between two places, as far as that is known.
    pub fn interval(&self, now: Instant) -> Option<Duration> {
        self.pace.interval(now, self.waiting > 0)
    }

    /// Somebody of this class is about to wait.
    fn begin(&mut self, class: usize, now: Instant) {
        if self.classes.len() <= class {
            self.classes.resize_with(class + 1, Class::default);
        }
        if !self.is_empty() {
            return;
        }
        let calm = self.settings.target.max(self.pace.interval(now, false).unwrap_or_default() * 4);
        let calmed = |since: Instant| {
            let stood = self.since.is_some_and(|began| since >= began + self.settings.wait);
            now.saturating_duration_since(since) >= calm && !(stood && self.is_strained(now))
        };
        if self.empty_since.is_none_or(calmed) {
            self.since = Some(now);
            self.pace = Pace::default();
            self.classes.iter_mut().for_each(|class| class.pace = Pace::default());
        }
        self.pace.begin(now);
    }

    /// How long one of this class may wait now.
    fn allowed(&self, class: usize, now: Instant) -> Duration {
        if !self.is_standing(now) {
            return self.settings.wait;
        }
        let paces = [&self.classes[class].pace, &self.pace];
        let interval = paces.into_iter().find_map(|pace| pace.interval(now, false));
        let two = interval.unwrap_or_default() * 2;
        self.settings.target.max(two).min(self.settings.wait)
    }

    /// Between two places of this class; where it had none yet, between any two.
    fn interval_of(&self, class: usize, now: Instant) -> Option<Duration> {
        let own = &self.classes[class];
        own.pace.interval(now, !own.entries.is_empty()).or_else(|| self.interval(now))
    }

    /// Until when one who waits may, if the queue is standing by then.
    fn patience_ends(&self, ticket: &Ticket, now: Instant) -> Instant {
        if self.is_standing(now) {
            return ticket.entered + self.allowed(ticket.class, now);
        }
        let stands_at = self.since.map_or(now, |since| since + self.settings.wait);
        stands_at.max(ticket.entered + self.settings.target)
    }

    /// Whether more of a class wait than can be served in the time they are allowed.
    fn is_overfull(&self, class: usize, now: Instant) -> bool {
        let Some(interval) = self.interval_of(class, now).filter(|_| self.is_standing(now)) else {
            return false;
        };
        let waiting = u32::try_from(self.classes[class].entries.len()).unwrap_or(u32::MAX);
        interval.saturating_mul(waiting) > self.allowed(class, now)
    }

    /// Whether there is no hope for one who would enter now.
    fn would_be_late(&self, class: usize, deadline: Instant, now: Instant) -> bool {
        let own = &self.classes[class];
        if own.entries.is_empty() {
            return false;
        }
        let Some(interval) = self.interval_of(class, now) else { return false };
        let earlier = own.entries.range(..(deadline, u64::MAX)).count();
        let places = u32::try_from(earlier + 1).unwrap_or(u32::MAX);
        now + interval.saturating_mul(places) > deadline.min(now + self.allowed(class, now))
    }

    /// Whether it is of use to anybody that one more of this class waits before a standing queue.
    fn is_of_use(&self, class: usize, now: Instant) -> bool {
        let own = &self.classes[class];
        let due = own.entries.is_empty() && own.passed_over >= PATIENCE;
        let mut lower = self.classes.iter().skip(class + 1);
        due || lower.any(|class| class.wants(now, self.settings.wait)) || !self.crowd.fills_places()
    }

    fn turned_away(&mut self, now: Instant) {
        self.strained_at = Some(now);
        if self.is_empty() {
            // It would have waited.
            self.empty_since = Some(now);
        }
    }

    fn is_strained(&self, now: Instant) -> bool {
        self.strained_at.is_some_and(|at| now.saturating_duration_since(at) < self.settings.wait)
    }

    /// Those who have waited for too long.
    fn turn_away(&mut self, now: Instant, gone: &mut Vec<(T, Why)>) {
        for index in 0..self.classes.len() {
            while let Some((key, _)) = self.classes[index].entries.first_key_value()
                && key.0 <= now
            {
                let key = *key;
                gone.extend(self.remove(index, key, now).map(|entry| (entry.item, Why::TimedOut)));
            }
            if !self.is_standing(now) {
                continue;
            }
            let allowed = self.allowed(index, now);
            while let Some(key) = self.oldest(index)
                && self.classes[index].entries[&key].entered + allowed <= now
            {
                self.turned_away(now);
                gone.extend(self.remove(index, key, now).map(|entry| (entry.item, Why::Shed)));
            }
        }
    }

    fn oldest(&self, class: usize) -> Option<(Instant, u64)> {
        self.classes[class].ages.first_key_value().map(|(number, deadline)| (*deadline, *number))
    }

    /// Makes room for one of this class.
    fn push_out_for(&mut self, class: usize, now: Instant) -> Option<T> {
        let floor = (self.settings.size / (KEPT * self.classes.len())).max(1);
        let above = |at: &usize| self.classes[*at].entries.len() > floor;
        let lower = (class + 1..self.classes.len()).rev().find(above);
        let victim = lower.or_else(|| {
            // Its class has less than what is kept for it.
            let short = self.classes[class].entries.len() < floor;
            let others = (0..self.classes.len()).filter(|at| *at != class).filter(above);
            others.max_by_key(|at| self.classes[*at].entries.len()).filter(|_| short)
        })?;
        let (number, deadline) = self.classes[victim].ages.last_key_value()?;
        let key = (*deadline, *number);
        self.remove(victim, key, now).map(|entry| entry.item)
    }

    fn due_class(&self) -> Option<usize> {
        let waiting = || {
            let all = self.classes.iter().enumerate();
            all.filter(|(_, class)| !class.entries.is_empty())
        };
        let patient = waiting().filter(|(_, class)| class.passed_over >= PATIENCE);
        let most = patient.max_by_key(|(at, class)| (class.passed_over, std::cmp::Reverse(*at)));
        most.or_else(|| waiting().next()).map(|(index, _)| index)
    }

    fn remove(&mut self, class: usize, key: (Instant, u64), now: Instant) -> Option<Entry<T>> {
        let class = self.classes.get_mut(class)?;
        let entry = class.entries.remove(&key)?;
        class.ages.remove(&key.1);
        self.waiting -= 1;
        if self.waiting == 0 {
            self.empty_since = Some(now);
        }
        Some(entry)
    }
}

#[cfg(test)]
mod overload;

#[cfg(test)]
mod simulation;

#[cfg(test)]
mod tests;
