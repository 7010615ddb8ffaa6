//! Joins what the kernel saw with the requests that the proxy knows.
//!
//! The kernel tells bursts of a connection by the offset of their first byte; the proxy knows from which byte to which a
//! request was sent. So the bursts of a request are those whose offsets lie in its span. They come late: a burst is told
//! when the next one begins or the connection ends, and until then it lies in the map, where it is looked up. A write may
//! be seen after the proxy has its bytes already, so a request is looked at when it has been over for a round, and again in
//! every round until all was seen or [`PATIENCE`] is over. A burst that was told does not change any more: under load nearly
//! every request is one, and is done with when that is heard, which costs half of looking for it later.
//!
//! A pure core: no kernel, no clock. A round is a call of [`Fold::round`].

use std::collections::VecDeque;

use outrigger_probes::Burst;
use rustc_hash::FxHashMap;

use super::timeline::{Timeline, merge};

/// Rounds for which the missing steps of a request are waited for: half a second, in which a processor that is fought over
/// lets everybody on.
const PATIENCE: u32 = 25;

/// Rounds for which a connection that was closed is remembered: its requests may end after it.
const AFTERLIFE: u32 = 50;

/// Bursts of a connection that are kept for requests that have not ended: a WebSocket's are without number, and are folded
/// into one beyond this. Those of requests that have ended are not: they wait for the next round, and are many under load.
const MOST_BURSTS: usize = 256;

/// Which bytes of which connection a request was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// The connection, as it was registered.
    pub connection: u64,
    /// Its key in the map.
    pub key: u64,
    /// Bytes sent on it before the request.
    pub start: u64,
    /// Bytes sent on it with the request.
    pub end: u64,
    /// When the proxy began to send it, in nanoseconds of CLOCK_MONOTONIC.
    pub sent: u64,
    /// When the proxy had all that it wanted of the answer, likewise.
    pub ended: u64,
    /// The response came to its end, so that all steps must have been taken.
    pub complete: bool,
}

impl Span {
    /// How many bytes it has.
    fn bytes(&self) -> u64 {
        self.end - self.start
    }

    /// When the proxy began to send it, and when it had the answer.
    fn times(&self) -> (u64, u64) {
        (self.sent, self.ended)
    }

    pub(super) fn has(&self, burst: &Burst) -> bool {
        burst.connection == self.connection && (self.start..self.end).contains(&burst.offset)
    }
}

/// What is heard of connections, and the requests that wait for it; `T` comes back with the timeline of a request.
pub(super) struct Fold<T> {
    connections: FxHashMap<u64, Heard<T>>,
    /// Connections with requests that wait; some of which may wait no more.
    listed: Vec<u64>,
    closed: VecDeque<Closed>,
    round: u32,
    patience: u32,
    is_prompt: bool,
}

struct Heard<T> {
    /// In order of their offsets.
    bursts: VecDeque<Burst>,
    /// Up to which byte requests have ended.
    ended: u64,
    /// In the order in which they ended.
    waiting: VecDeque<Waiting<T>>,
    is_listed: bool,
}

struct Waiting<T> {
    span: Span,
    since: u32,
    whose: T,
}

/// A connection that the proxy has closed. The application's end of it may live on for a moment, and be told of only then.
struct Closed {
    since: u32,
    connection: u64,
    key: u64,
}

/// When a round is, for how many of them one waits, and whether for one at least.
#[derive(Clone, Copy)]
struct Now {
    round: u32,
    patience: u32,
    is_prompt: bool,
}

impl<T> Heard<T> {
    fn new() -> Self {
        let (bursts, waiting) = (VecDeque::new(), VecDeque::new());
        Heard { bursts, ended: 0, waiting, is_listed: false }
    }

    fn bursts_of(&self, span: &Span) -> impl Iterator<Item = &Burst> + Clone {
        // Connections answer in order, so that it is nearly always the first.
        let first = self.bursts.iter().position(|burst| burst.offset >= span.start);
        let first = first.unwrap_or(self.bursts.len());
        self.bursts.range(first..).take_while(|burst| burst.offset < span.end)
    }

    /// What is known of a request by now, with what `look_up` tells to be under way.
    fn timeline(
        &self,
        span: &Span,
        look_up: &mut impl FnMut(u64) -> Option<Burst>,
    ) -> Option<Timeline> {
        // When all its bytes were read by what has ended, nothing of it can be under way.
        self.told(span).or_else(|| {
            let current = look_up(span.key).filter(|burst| span.has(burst));
            Timeline::of(span.times(), self.bursts_of(span).copied().chain(current))
        })
    }

    /// What is known of a request all of which was told.
    fn told(&self, span: &Span) -> Option<Timeline> {
        let told = self.bursts_of(span);
        let read: u64 = told.clone().map(|burst| burst.bytes_in).sum();
        (read >= span.bytes()).then(|| Timeline::of(span.times(), told.copied()))?
    }

    /// The first that waits, if this burst is all of it.
    fn whole(&mut self, burst: &Burst) -> Option<(Waiting<T>, Timeline)> {
        let span = &self.waiting.front().filter(|_| self.bursts.is_empty())?.span;
        let is_whole = span.has(burst) && burst.bytes_in >= span.bytes();
        let timeline = is_whole.then(|| Timeline::of(span.times(), [*burst]))??;
        let is_known = timeline.is_complete();
        Some((self.waiting.pop_front_if(|_| is_known)?, timeline))
    }

    /// Keeps a burst for requests that have not ended, or not waited for a round.
    fn keep(&mut self, burst: Burst) {
        let is_full = self.bursts.len() >= MOST_BURSTS;
        match self.bursts.back_mut() {
            Some(last) if is_full && last.offset >= self.ended => merge(last, &burst),
            _ => self.bursts.push_back(burst),
        }
    }

    /// Hands over those of whom all is known, or as much as will be.
    fn round(
        &mut self,
        now: Now,
        look_up: &mut impl FnMut(u64) -> Option<Burst>,
        done: &mut impl FnMut(T, Span, Option<Timeline>),
    ) {
        for _ in 0..self.waiting.len() {
            let Some(waiting) = self.waiting.pop_front() else { break };
            let (span, age) = (waiting.span, now.round.wrapping_sub(waiting.since));
            let timeline = match age {
                0 if now.is_prompt => self.told(&span),
                0 => None,
                _ => self.timeline(&span, look_up),
            };
            let is_known = timeline.is_some_and(|it| it.is_complete());
            if is_known || (age > 0 && (!span.complete || age >= now.patience)) {
                self.forget_until(&span);
                done(waiting.whose, span, timeline);
            } else {
                self.waiting.push_back(waiting);
            }
        }
    }

    /// Connections answer in order: what was before the end of a request that is known is of no use any more.
    fn forget_until(&mut self, span: &Span) {
        while self.bursts.pop_front_if(|burst| burst.offset < span.end).is_some() {}
    }
}

impl<T> Fold<T> {
    /// Nothing heard yet. A prompt one hands over a request as soon as all of it was told, without waiting for the next round.
    pub(super) fn new(is_prompt: bool) -> Self {
        Fold {
            connections: FxHashMap::default(),
            listed: Vec::new(),
            closed: VecDeque::new(),
            round: 0,
            patience: PATIENCE,
            is_prompt,
        }
    }

    /// A connection was registered.
    pub(super) fn opened(&mut self, connection: u64) {
        self.connections.insert(connection, Heard::new());
    }

    /// Whether a connection was registered and is not forgotten.
    pub(super) fn knows(&self, connection: u64) -> bool {
        self.connections.contains_key(&connection)
    }

    /// A connection was closed by the proxy.
    pub(super) fn closed(&mut self, connection: u64, key: u64) {
        self.closed.push_back(Closed { since: self.round, connection, key });
    }

    /// The kernel told of a burst. Those of connections that are forgotten are.
    pub(super) fn heard(&mut self, burst: Burst, mut done: impl FnMut(T, Span, Option<Timeline>)) {
        let Some(heard) = self.connections.get_mut(&burst.connection) else { return };
        let whole = if self.is_prompt { heard.whole(&burst) } else { None };
        match whole {
            Some((waiting, timeline)) => done(waiting.whose, waiting.span, Some(timeline)),
            None => heard.keep(burst),
        }
    }

    /// A request has ended. Comes back if nothing will be heard of its connection.
    pub(super) fn ended(&mut self, span: Span, whose: T) -> Option<T> {
        let Some(heard) = self.connections.get_mut(&span.connection) else { return Some(whose) };
        heard.ended = span.end;
        heard.waiting.push_back(Waiting { span, since: self.round, whose });
        if !heard.is_listed {
            heard.is_listed = true;
            self.listed.push(span.connection);
        }
        None
    }

    /// From now on nothing is waited for: in two rounds every request has what is known of it.
    pub(super) fn hurry(&mut self) {
        self.patience = 0;
    }

    /// Whether nobody waits for anything.
    pub(super) fn is_idle(&self) -> bool {
        self.listed.is_empty() && self.closed.is_empty()
    }

    /// Hands over every request of which all is known, or as much as will be; `look_up` tells the burst under way of a
    /// connection by its key. What was heard must have been told before.
    pub(super) fn round(
        &mut self,
        mut look_up: impl FnMut(u64) -> Option<Burst>,
        mut done: impl FnMut(T, Span, Option<Timeline>),
    ) {
        let Self { round, patience, is_prompt, .. } = *self;
        let now = Now { round, patience, is_prompt };
        self.listed.retain(|connection| {
            let Some(heard) = self.connections.get_mut(connection) else { return false };
            heard.round(now, &mut look_up, &mut done);
            heard.is_listed = !heard.waiting.is_empty();
            heard.is_listed
        });
        self.round = self.round.wrapping_add(1);
    }

    /// Forgets the next connection that was closed long ago and has no request that waits; it, and its key in the map.
    pub(super) fn forget(&mut self) -> Option<(u64, u64)> {
        let (round, connections) = (self.round, &self.connections);
        let may_go = |closed: &mut Closed| {
            round.wrapping_sub(closed.since) > AFTERLIFE
                && connections.get(&closed.connection).is_none_or(|heard| !heard.is_listed)
        };
        let Closed { connection, key, .. } = self.closed.pop_front_if(may_go)?;
        self.connections.remove(&connection);
        Some((connection, key))
    }
}

#[cfg(test)]
mod tests {
    use rand::{RngExt, SeedableRng, rngs::SmallRng};

    use super::*;

    fn span(start: u64, end: u64) -> Span {
        Span { connection: 1, key: 9, start, end, sent: 500, ended: u64::MAX, complete: true }
    }

    fn burst(offset: u64, bytes_in: u64) -> Burst {
        let at = 1000 + offset;
        Burst {
            connection: 1,
            offset,
            arrived: at,
            picked: at + 1,
            read: at + 1,
            first_write: at + 2,
            last_write: at + 3,
            bytes_in,
            bytes_out: 5,
            ..Burst::default()
        }
    }

    /// Has one that is not prompt hear of a burst.
    fn hear(fold: &mut Fold<&'static str>, burst: Burst) {
        fold.heard(burst, |whose, _, _| panic!("{whose} was handed over at once"));
    }

    /// Rounds until somebody is done, at most so many; who, and when their bytes arrived.
    fn rounds(
        fold: &mut Fold<&'static str>,
        most: u32,
        mut look_up: impl FnMut(u64) -> Option<Burst>,
    ) -> (u32, Vec<(&'static str, Option<u64>)>) {
        let mut found = Vec::new();
        for round in 1..=most {
            fold.round(&mut look_up, |whose, _, timeline| {
                found.push((whose, timeline.and_then(|it| it.arrived)));
            });
            if !found.is_empty() {
                return (round, found);
            }
        }
        (most, found)
    }

    #[test]
    fn a_request_gets_the_bursts_of_its_span() {
        let mut fold = Fold::new(false);
        fold.opened(1);
        fold.ended(span(0, 10), "first");
        fold.ended(span(10, 30), "second");
        hear(&mut fold, burst(0, 10));
        hear(&mut fold, burst(10, 20));
        hear(&mut fold, burst(30, 10));
        let never = |_| panic!("all was told");
        let (round, found) = rounds(&mut fold, 5, never);
        assert_eq!((round, found), (2, vec![("first", Some(1000)), ("second", Some(1010))]));
        fold.ended(span(30, 40), "third");
        assert_eq!(rounds(&mut fold, 5, never).1, vec![("third", Some(1030))]);
    }

    #[test]
    fn the_burst_under_way_is_looked_up() {
        let mut fold = Fold::new(false);
        fold.opened(1);
        fold.ended(span(0, 10), "first");
        let look_up = |key| (key == 9).then(|| burst(0, 10));
        assert_eq!(rounds(&mut fold, 5, look_up).1, vec![("first", Some(1000))]);
    }

    #[test]
    fn what_lies_at_the_key_may_be_another_connections_or_another_requests() {
        let mut fold = Fold::new(false);
        fold.opened(1);
        fold.ended(span(0, 10), "first");
        let other = Burst { connection: 2, ..burst(0, 10) };
        let (round, found) = rounds(&mut fold, 100, |_| Some(other));
        assert_eq!((round, found), (PATIENCE + 1, vec![("first", None)]));
        fold.ended(span(10, 20), "second");
        assert_eq!(rounds(&mut fold, 100, |_| Some(burst(20, 1))).1, vec![("second", None)]);
    }

    #[test]
    fn a_step_that_is_not_seen_yet_is_waited_for() {
        let mut fold = Fold::new(false);
        fold.opened(1);
        fold.ended(span(0, 10), "first");
        let mut looks = 0;
        let (_, found) = rounds(&mut fold, 100, |_| {
            looks += 1;
            let unseen = Burst { first_write: 0, last_write: 0, ..burst(0, 10) };
            Some(if looks < 5 { unseen } else { burst(0, 10) })
        });
        assert_eq!((looks, found), (5, vec![("first", Some(1000))]));
    }

    #[test]
    fn at_the_end_nothing_is_waited_for() {
        let mut fold = Fold::new(false);
        fold.opened(1);
        fold.ended(span(0, 10), "last");
        fold.hurry();
        assert_eq!(rounds(&mut fold, 100, |_| None), (2, vec![("last", None)]));
    }

    #[test]
    fn a_request_that_broke_off_is_not_waited_for() {
        let mut fold = Fold::new(false);
        fold.opened(1);
        fold.ended(Span { complete: false, ..span(0, 10) }, "cut");
        let unread = Burst { connection: 1, arrived: 7, ..Burst::default() };
        assert_eq!(rounds(&mut fold, 100, |_| Some(unread)), (2, vec![("cut", Some(7))]));
    }

    #[test]
    fn nothing_is_kept_of_connections_that_are_gone() {
        let mut fold = Fold::<&str>::new(false);
        fold.opened(1);
        hear(&mut fold, burst(0, 10));
        fold.closed(1, 9);
        fold.ended(span(0, 10), "late");
        assert_eq!(rounds(&mut fold, 5, |_| None).1, vec![("late", Some(1000))]);
        for _ in 2..=AFTERLIFE {
            assert_eq!(fold.forget(), None);
            fold.round(|_| None, |_, _, _| {});
        }
        assert!(fold.knows(1));
        assert_eq!((fold.forget(), fold.forget()), (Some((1, 9)), None));
        hear(&mut fold, burst(10, 10));
        assert!(!fold.knows(1) && fold.is_idle());
    }

    #[test]
    fn however_many_requests_wait_for_a_round_none_is_lost() {
        let mut fold = Fold::new(false);
        fold.opened(1);
        for request in 0..10_000 {
            fold.ended(span(10 * request, 10 * request + 10), "one");
        }
        (0..10_000).for_each(|request| hear(&mut fold, burst(10 * request, 10)));
        let (_, found) = rounds(&mut fold, 5, |_| panic!("all was told"));
        assert_eq!(found.iter().filter(|(_, arrived)| arrived.is_some()).count(), 10_000);
    }

    #[test]
    fn the_bursts_of_a_long_request_are_folded() {
        let mut fold = Fold::new(false);
        fold.opened(1);
        for message in 0..10_000 {
            hear(&mut fold, burst(10 * message, 10));
        }
        assert_eq!(fold.connections[&1].bursts.len(), MOST_BURSTS);
        fold.ended(span(0, 100_000), "tunnel");
        let mut found = None;
        for _ in 0..2 {
            fold.round(|_| panic!("all was told"), |_, _, timeline| found = timeline);
        }
        let timeline = found.expect("a timeline");
        assert_eq!((timeline.bytes_in, timeline.last_write), (100_000, Some(100_993)));
    }

    #[test]
    fn a_prompt_one_hands_over_what_one_burst_tells_whole() {
        let mut fold = Fold::new(true);
        let mut found = Vec::new();
        let mut hear = |fold: &mut Fold<_>, burst| {
            fold.heard(burst, |whose, _, timeline| {
                found.push((whose, timeline.and_then(|it| it.arrived)));
            });
            std::mem::take(&mut found)
        };
        fold.opened(1);
        fold.ended(span(0, 10), "first");
        fold.ended(span(10, 30), "second");
        fold.ended(span(30, 40), "third");
        assert_eq!(hear(&mut fold, burst(0, 10)), [("first", Some(1000))]);
        // In two pieces, and not all read before the next one.
        assert_eq!(hear(&mut fold, burst(10, 5)), []);
        assert_eq!(hear(&mut fold, burst(15, 15)), []);
        assert_eq!(hear(&mut fold, burst(30, 10)), [], "those before it come first");
        let never = |_| panic!("all was told");
        // Whoever comes behind them is not held up any more than they are.
        let expected = vec![("second", Some(1010)), ("third", Some(1030))];
        assert_eq!(rounds(&mut fold, 5, never), (1, expected));
        fold.ended(span(40, 50), "unread");
        assert_eq!(hear(&mut fold, Burst { picked: 0, ..burst(40, 10) }), []);
        assert_eq!(rounds(&mut fold, 100, never), (PATIENCE + 1, vec![("unread", Some(1040))]));
    }

    #[test]
    fn prompt_or_not_everybody_has_the_same_timeline() {
        let seen = |is_prompt| {
            let (mut fold, mut random) = (Fold::new(is_prompt), SmallRng::seed_from_u64(7));
            let mut found = std::collections::BTreeMap::new();
            let mut done = |whose, _, timeline: Option<Timeline>| {
                assert!(found.insert(whose, timeline).is_none(), "twice");
            };
            fold.opened(1);
            let mut at = 0;
            for request in 0..5_000_u64 {
                let pieces = random.random_range(1..4_u64);
                fold.ended(span(at, at + 10 * pieces), request);
                for piece in 0..pieces {
                    let mut burst = burst(at + 10 * piece, 10);
                    if random.random_ratio(1, 20) {
                        burst.last_write = 0;
                    }
                    fold.heard(burst, &mut done);
                }
                at += 10 * pieces;
                if random.random_ratio(1, 7) {
                    fold.round(|_| None, &mut done);
                }
            }
            (0..=PATIENCE).for_each(|_| fold.round(|_| None, &mut done));
            assert_eq!((found.len(), fold.is_idle()), (5_000, true));
            found
        };
        assert_eq!(seen(true), seen(false));
    }

    #[test]
    fn who_will_not_be_heard_of_comes_back() {
        let mut fold = Fold::new(true);
        assert_eq!(fold.ended(span(0, 10), "nobody's"), Some("nobody's"));
        assert!(fold.is_idle());
    }

    #[test]
    fn a_connection_is_not_forgotten_while_a_request_of_it_waits() {
        let mut fold = Fold::new(true);
        fold.opened(1);
        fold.closed(1, 9);
        (0..AFTERLIFE).for_each(|_| fold.round(|_| None, |_, _, _| panic!("nobody waits")));
        assert_eq!(fold.ended(span(0, 10), "late"), None);
        fold.round(|_| None, |_, _, _| panic!("not for a round yet"));
        assert_eq!(fold.forget(), None);
        assert_eq!(rounds(&mut fold, 100, |_| None).1, vec![("late", None)]);
        assert_eq!(fold.forget(), Some((1, 9)));
    }
}
