//! How long the requests of one key wait for each other.
//!
//! Why: waiting costs the one who waits, and pays only if somebody comes. [`Gathering`] decides for
//! each request whether to open a batch, to join the open one or to go at once.
//!
//! **When a batch closes.** When its time is over, at most [`Window::wait`] after it was opened;
//! when it is full, in prompts or bytes; when a member could otherwise miss its deadline, which is
//! the deadline less the time that answers take here (mean plus twice the mean deviation; half of
//! what is left while nothing is known); or when everybody is in who was there lately.
//!
//! **Who waits at all.** A request that finds no open batch waits only if at least one mate is to
//! be expected in the window. The expectation is the smaller of two: arrivals at the present rate,
//! and the others of the crowd. The rate alone would not do: one client that sends its next request
//! when it has the answer to the last may be as fast as many, and it would wait for itself. The
//! crowd is the greatest number of requests of the key that were waiting or under way at once in
//! the last seconds; for such a client that is one, so it never waits. A hundred clients that all
//! wait for their answers make batches of up to a hundred, closed as the last of them comes.
//!
//! **How long.** The whole window at first. A batch whose time is over and that nobody joined in
//! the second half of it halves the time of the next, down to an eighth of the window; one that
//! somebody joined late doubles it. Clients whose requests come in bursts, because their last batch
//! was answered, thus do not wait on for those whose answers are still under way.
//!
//! **When not to.** A batch that came to nothing ([`Ended::RetryAlone`]) has cost a call and time.
//! The key then rests: requests go by themselves for a second, and twice as long after each further
//! failure, up to five minutes; a batch that succeeds begins anew. An upstream that cannot do it
//! thus costs next to nothing.
//!
//! Left out: timers and the requests themselves ([`Lobby`](super::Lobby)).

use std::time::{Duration, Instant};

use demand::Demand;
use linger::Linger;
use rest::Rest;
use service::Service;

mod demand;
mod linger;
mod rest;
mod service;

/// The bounds of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    /// Longest time that a request waits for mates. Zero: there are no batches.
    pub wait: Duration,
    /// Most prompts of a batch, and so most requests: one with a list counts for each prompt in it,
    /// because that is what servers bound (text-embeddings-inference at 32, unless told otherwise).
    pub requests: usize,
    /// Most bytes of all prompts of a batch, as written.
    pub bytes: u64,
}

impl Window {
    const fn holds(&self, size: Size) -> bool {
        size.prompts <= self.requests && size.bytes <= self.bytes
    }

    const fn filled_by(&self, size: Size) -> bool {
        size.prompts >= self.requests || size.bytes >= self.bytes
    }
}

/// How much of a batch a request takes, or all of its requests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Size {
    /// Prompts.
    pub prompts: usize,
    /// Bytes of the prompts, as written.
    pub bytes: u64,
}

impl Size {
    const fn plus(self, other: Self) -> Self {
        Self {
            prompts: self.prompts.saturating_add(other.prompts),
            bytes: self.bytes.saturating_add(other.bytes),
        }
    }

    const fn minus(self, other: Self) -> Self {
        Self {
            prompts: self.prompts.saturating_sub(other.prompts),
            bytes: self.bytes.saturating_sub(other.bytes),
        }
    }
}

/// What becomes of a request that joins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Joined {
    /// It goes at once and by itself. An open batch stays as it is.
    Alone,
    /// It opened a batch.
    Leader {
        /// When to send it, unless it is complete before.
        closes: Instant,
        /// There was an open batch with too little room: that one is complete and has to be sent
        /// now.
        pushed_out: bool,
    },
    /// It is in the open batch.
    Member {
        /// When to send it, unless it is complete before; never later than what others were told.
        closes: Instant,
    },
    /// It is in the open batch, which is complete with it and has to be sent now.
    Full,
}

/// How a call ended, alone or of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// There is an answer, after so long from the call.
    Answered(Duration),
    /// The answer was [`Verdict::RetryAlone`](super::Verdict::RetryAlone).
    RetryAlone,
    /// There is no answer that says anything about batches or times.
    Failed,
}

/// A batch that is being collected.
#[derive(Clone, Copy, Debug)]
struct Open {
    requests: usize,
    size: Size,
    closes: Instant,
    /// From when on a mate comes late.
    late: Instant,
    came_late: bool,
}

/// The requests of one key: at most one open batch, and what was learned from the earlier ones.
#[derive(Debug)]
pub struct Gathering {
    window: Window,
    open: Option<Open>,
    demand: Demand,
    linger: Linger,
    service: Service,
    rest: Rest,
}

impl Gathering {
    /// Nobody is there yet.
    #[must_use]
    pub const fn new(window: Window) -> Self {
        Self {
            window,
            open: None,
            demand: Demand::new(window.wait),
            linger: Linger::new(window.wait),
            service: Service::new(),
            rest: Rest::new(),
        }
    }

    /// A request arrives. `deadline` is when its answer must be there. Whatever the answer, it
    /// counts as under way until [`finished`](Self::finished) or [`leave`](Self::leave).
    pub fn join(&mut self, now: Instant, size: Size, deadline: Option<Instant>) -> Joined {
        let mates = self.demand.arrived(now);
        let latest = deadline.map(|deadline| self.service.latest_start(now, deadline));
        let in_time = latest.is_none_or(|latest| latest > now);
        let closes = now + self.linger.wait();
        let closes = latest.map_or(closes, |latest| latest.min(closes));
        let fits = |open: &Open| self.window.holds(open.size.plus(size));
        match self.open {
            _ if !self.window.holds(size) || self.window.wait.is_zero() => Joined::Alone,
            Some(open) if fits(&open) => self.enter(now, open, size, closes),
            _ if !in_time || self.rest.is_resting(now) => Joined::Alone,
            Some(_) => self.lead(now, size, closes, true),
            None if mates >= 1.0 => self.lead(now, size, closes, false),
            None => Joined::Alone,
        }
    }

    fn lead(&mut self, now: Instant, size: Size, closes: Instant, pushed_out: bool) -> Joined {
        let late = now + self.linger.late();
        self.open = Some(Open { requests: 1, size, closes, late, came_late: false });
        Joined::Leader { closes, pushed_out }
    }

    fn enter(&mut self, now: Instant, open: Open, size: Size, closes: Instant) -> Joined {
        let size = open.size.plus(size);
        let closes = open.closes.min(closes);
        let requests = open.requests + 1;
        let all_in = requests >= self.demand.crowd(now);
        if closes <= now || all_in || self.window.filled_by(size) {
            self.open = None;
            return Joined::Full;
        }
        let came_late = open.came_late || now >= open.late;
        self.open = Some(Open { requests, size, closes, came_late, ..open });
        Joined::Member { closes }
    }

    /// When the open batch is to be sent.
    #[must_use]
    pub fn closes(&self) -> Option<Instant> {
        self.open.map(|open| open.closes)
    }

    /// Takes the open batch out if its time is over: `true` means that it is to be sent now.
    pub fn close(&mut self, now: Instant) -> bool {
        let Some(open) = self.open.take_if(|open| open.closes <= now) else { return false };
        // One that a deadline cut short tells nothing.
        if open.closes > open.late {
            self.linger.closed(open.came_late);
        }
        true
    }

    /// A member of the open batch left before it was sent.
    pub fn leave(&mut self, size: Size) {
        self.demand.left(1);
        let Some(open) = &mut self.open else { return };
        open.requests = open.requests.saturating_sub(1);
        open.size = open.size.minus(size);
        if open.requests == 0 {
            self.open = None;
        }
    }

    /// A call of so many requests ended. To be called before a client can know the answer: one that
    /// sends its next request at once would otherwise look like two.
    pub fn finished(&mut self, now: Instant, requests: usize, ended: Ended) {
        self.demand.left(requests);
        match ended {
            Ended::Answered(took) => {
                self.service.took(took);
                if requests > 1 {
                    self.rest.succeeded();
                }
            }
            Ended::RetryAlone => self.rest.failed(now),
            Ended::Failed => {}
        }
    }

    /// Whether nothing would be lost by forgetting this: nobody waits or is under way, nobody came
    /// lately, and there is nothing to rest from.
    #[must_use]
    pub fn is_idle(&self, now: Instant) -> bool {
        self.open.is_none() && self.demand.is_idle(now) && !self.rest.is_resting(now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);
    const WINDOW: Window = Window { wait: Duration::from_millis(5), requests: 4, bytes: 1000 };
    const SMALL: Size = Size { prompts: 1, bytes: 10 };

    /// A gathering that has seen a crowd of a hundred at a high rate, all of them still under way.
    fn busy(window: Window) -> (Gathering, Instant) {
        let start = Instant::now();
        let mut gathering = Gathering::new(Window { bytes: 0, ..window });
        for i in 0..100 {
            assert_eq!(gathering.join(start + MS / 10 * i, SMALL, None), Joined::Alone);
        }
        gathering.window = window;
        (gathering, start + 10 * MS)
    }

    fn leader(closes: Instant) -> Joined {
        Joined::Leader { closes, pushed_out: false }
    }

    #[test]
    fn a_first_request_goes_at_once() {
        let mut gathering = Gathering::new(WINDOW);
        assert_eq!(gathering.join(Instant::now(), SMALL, None), Joined::Alone);
        assert_eq!(gathering.closes(), None);
    }

    #[test]
    fn a_client_alone_never_waits_however_fast() {
        let mut gathering = Gathering::new(WINDOW);
        let mut now = Instant::now();
        for _ in 0..10_000 {
            assert_eq!(gathering.join(now, SMALL, None), Joined::Alone);
            now += MS / 10;
            gathering.finished(now, 1, Ended::Answered(MS / 10));
        }
    }

    #[test]
    fn rare_requests_do_not_wait_even_in_a_crowd() {
        let mut gathering = Gathering::new(WINDOW);
        let mut now = Instant::now();
        for _ in 0..1_000 {
            assert_eq!(gathering.join(now, SMALL, None), Joined::Alone);
            now += 6 * MS;
        }
    }

    #[test]
    fn a_batch_closes_by_time() {
        let (mut gathering, now) = busy(WINDOW);
        assert_eq!(gathering.join(now, SMALL, None), leader(now + 5 * MS));
        assert_eq!(gathering.join(now + MS, SMALL, None), Joined::Member { closes: now + 5 * MS });
        assert!(!gathering.close(now + 4 * MS));
        assert!(gathering.close(now + 5 * MS));
        assert!(!gathering.close(now + 5 * MS), "closed once");
    }

    #[test]
    fn a_batch_closes_when_it_is_full() {
        let (mut gathering, now) = busy(WINDOW);
        gathering.join(now, SMALL, None);
        gathering.join(now, Size { prompts: 2, bytes: 10 }, None);
        assert_eq!(gathering.join(now, SMALL, None), Joined::Full);
        assert_eq!(gathering.closes(), None);
        gathering.join(now, Size { prompts: 1, bytes: 400 }, None);
        assert_eq!(gathering.join(now, Size { prompts: 1, bytes: 600 }, None), Joined::Full);
    }

    #[test]
    fn what_does_not_fit_opens_the_next() {
        let (mut gathering, now) = busy(WINDOW);
        gathering.join(now, Size { prompts: 3, bytes: 10 }, None);
        let next = gathering.join(now + MS, Size { prompts: 2, bytes: 10 }, None);
        assert_eq!(next, Joined::Leader { closes: now + 6 * MS, pushed_out: true });
        assert_eq!(
            gathering.join(now + 2 * MS, SMALL, None),
            Joined::Member { closes: now + 6 * MS }
        );
    }

    #[test]
    fn what_never_fits_goes_alone() {
        let (mut gathering, now) = busy(WINDOW);
        gathering.join(now, SMALL, None);
        assert_eq!(gathering.join(now, Size { prompts: 5, bytes: 10 }, None), Joined::Alone);
        assert_eq!(gathering.join(now, Size { prompts: 1, bytes: 1001 }, None), Joined::Alone);
        assert_eq!(gathering.closes(), Some(now + 5 * MS), "and leaves the open batch alone");
        let (mut gathering, now) = busy(Window { wait: Duration::ZERO, ..WINDOW });
        assert_eq!(gathering.join(now, SMALL, None), Joined::Alone);
    }

    #[test]
    fn deadlines_close_a_batch_early() {
        let (mut gathering, now) = busy(WINDOW);
        for _ in 0..100 {
            gathering.finished(now, 0, Ended::Answered(20 * MS));
        }
        assert_eq!(gathering.join(now, SMALL, Some(now + 60 * MS)), leader(now + 5 * MS));
        let Joined::Member { closes } = gathering.join(now, SMALL, Some(now + 23 * MS)) else {
            panic!("there is time to wait");
        };
        assert!(closes > now + 2 * MS && closes <= now + 3 * MS, "{:?}", closes - now);
        assert_eq!(gathering.join(now + MS, SMALL, Some(now + 20 * MS)), Joined::Full);
        assert_eq!(gathering.join(now, SMALL, Some(now + 20 * MS)), Joined::Alone);
        assert_eq!(gathering.join(now, SMALL, Some(now - MS)), Joined::Alone);
    }

    #[test]
    fn half_of_the_time_is_kept_while_nothing_is_known() {
        let (mut gathering, now) = busy(WINDOW);
        assert_eq!(gathering.join(now, SMALL, Some(now + 4 * MS)), leader(now + 2 * MS));
    }

    #[test]
    fn a_batch_closes_when_everybody_is_in() {
        let window = Window { requests: 1_000, bytes: 10_000, ..WINDOW };
        let (mut gathering, now) = busy(window);
        gathering.finished(now, 100, Ended::Failed);
        // Of the hundred who were there lately, all come again.
        assert_eq!(gathering.join(now, SMALL, None), leader(now + 5 * MS));
        for _ in 0..98 {
            assert!(matches!(gathering.join(now, SMALL, None), Joined::Member { .. }));
        }
        assert_eq!(gathering.join(now, SMALL, None), Joined::Full);
    }

    #[test]
    fn the_time_is_halved_when_nobody_comes_late() {
        let (mut gathering, mut now) = busy(WINDOW);
        let mut open = |mate_after: Duration| {
            now += 20 * MS;
            let Joined::Leader { closes, .. } = gathering.join(now, SMALL, None) else {
                panic!("many are to be expected");
            };
            gathering.join(now + mate_after, SMALL, None);
            assert!(gathering.close(closes));
            closes - now
        };
        assert_eq!([MS, MS, MS / 2].map(&mut open), [5 * MS, 5 * MS / 2, 5 * MS / 4]);
        assert_eq!([MS / 2, MS / 4].map(&mut open), [5 * MS / 8, 5 * MS / 4]);
    }

    #[test]
    fn a_time_cut_short_teaches_nothing() {
        let (mut gathering, now) = busy(WINDOW);
        let hurried = gathering.join(now, SMALL, Some(now + 4 * MS));
        assert_eq!(hurried, leader(now + 2 * MS));
        assert!(gathering.close(now + 2 * MS));
        assert_eq!(gathering.join(now + 2 * MS, SMALL, None), leader(now + 7 * MS));
    }

    #[test]
    fn those_who_leave_make_room() {
        let (mut gathering, now) = busy(WINDOW);
        gathering.join(now, SMALL, None);
        gathering.join(now, Size { prompts: 2, bytes: 10 }, None);
        gathering.leave(Size { prompts: 2, bytes: 10 });
        assert!(matches!(gathering.join(now, SMALL, None), Joined::Member { .. }));
        gathering.leave(SMALL);
        gathering.leave(SMALL);
        assert!(!gathering.close(now + 5 * MS), "an empty batch is not sent");
    }

    #[test]
    fn a_key_rests_after_a_failure() {
        let (mut gathering, now) = busy(WINDOW);
        gathering.join(now, SMALL, None);
        gathering.finished(now, 2, Ended::RetryAlone);
        assert!(matches!(gathering.join(now, SMALL, None), Joined::Member { .. }), "it is open");
        assert!(gathering.close(now + 5 * MS));
        assert_eq!(gathering.join(now + 5 * MS, SMALL, None), Joined::Alone);
        assert!(!gathering.is_idle(now + 900 * MS));
    }

    #[test]
    fn what_nobody_uses_is_idle() {
        let (mut gathering, now) = busy(WINDOW);
        assert!(!gathering.is_idle(now + 3600 * 1000 * MS), "a hundred are under way");
        gathering.finished(now, 100, Ended::Failed);
        assert!(!gathering.is_idle(now));
        assert!(gathering.is_idle(now + 10_000 * MS));
    }
}
