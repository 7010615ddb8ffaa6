//! One response for several clients, as it comes.
//!
//! Why: identical requests that are in flight at the same time need one call. The call is nobody's: it is made by a task
//! of its own, and each request, also the first, only listens. So no request depends on another one's client: whoever
//! leaves, leaves alone, and the call ends when the last one has left.
//!
//! What it decides: who joins late gets the beginning first, as long as all of it is here. A response that grows beyond
//! the bound takes no more listeners, and keeps its last part only. The call goes on as fast as the fastest listener takes
//! it, as it would for a client; one that is further behind than the bound is cut, so that it holds up nobody and no
//! memory.
//!
//! What it leaves out: HTTP. What is told of a head, and what a client is sent, is [`crate::phase::answer`]'s.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    sync::{Arc, Weak},
    task::{Context, Poll, Waker},
};

use bytes::Bytes;
use parking_lot::Mutex;

use super::key::{Key, Proof};
use crate::{outcome::Outcome, wire::ResponseHead};

/// A response that several clients listen to.
pub struct Shared {
    state: Mutex<State>,
    proof: Proof,
    /// Bytes that are kept.
    limit: usize,
}

#[derive(Default)]
struct State {
    head: Option<Arc<Head>>,
    pieces: VecDeque<Bytes>,
    /// How many pieces were given up before the first that is here.
    given_up: usize,
    bytes: usize,
    end: Option<End>,
    /// Nobody joins any more.
    closed: bool,
    listeners: HashMap<usize, Ear>,
    /// Bytes that have come in all.
    came: u64,
    joined: usize,
    caller: Option<Waker>,
}

/// How far a listener is.
#[derive(Default)]
struct Ear {
    waker: Option<Waker>,
    /// Bytes that it has heard.
    taken: u64,
}

/// The head of a shared response.
pub struct Head {
    /// As it would go to a client.
    pub head: ResponseHead,
    /// It is for the first listener only; the others go their own way.
    pub private: bool,
}

/// How a shared response ended.
#[derive(Clone, Debug)]
pub enum End {
    /// Completely.
    Whole,
    /// It failed, or broke off.
    Failed(Outcome, String),
    /// Whoever made the call is gone.
    Dropped,
}

/// What a listener hears next.
#[derive(Debug)]
pub enum Heard {
    /// A piece of the body.
    Data(Bytes),
    /// The end.
    End(End),
    /// It was too slow: what it should have had next is gone.
    TooSlow,
}

impl Shared {
    /// A response to the request of this proof, of which at most `limit` bytes are kept.
    #[must_use]
    pub fn new(proof: Proof, limit: usize) -> Arc<Self> {
        Arc::new(Shared { state: Mutex::default(), proof, limit })
    }

    /// Listens from the beginning; `None` when that is not here any more.
    #[must_use]
    pub fn listen(self: &Arc<Self>) -> Option<Listener> {
        let mut state = self.state.lock();
        // A call that nobody listened to any more is being given up.
        let abandoned = state.joined > 0 && state.listeners.is_empty();
        if state.closed || (abandoned && state.end.is_none()) {
            return None;
        }
        let id = state.joined;
        state.joined += 1;
        state.listeners.insert(id, Ear::default());
        Some(Listener { shared: Arc::clone(self), id, next: 0 })
    }

    /// The head has come.
    pub fn begin(&self, head: Head) {
        let mut state = self.state.lock();
        state.closed |= head.private;
        state.head = Some(Arc::new(head));
        state.wake_listeners();
    }

    /// A piece of the body has come.
    pub fn push(&self, data: Bytes) {
        let mut state = self.state.lock();
        state.bytes += data.len();
        state.came += data.len() as u64;
        state.pieces.push_back(data);
        while state.bytes > self.limit
            && state.pieces.len() > 1
            && let Some(first) = state.pieces.pop_front()
        {
            state.closed = true;
            state.given_up += 1;
            state.bytes -= first.len();
        }
        state.wake_listeners();
    }

    /// It has ended. What is said first counts.
    pub fn end(&self, end: End) {
        let mut state = self.state.lock();
        state.closed |= !matches!(end, End::Whole);
        state.end.get_or_insert(end);
        state.wake_listeners();
    }

    /// Bytes that no listener has heard yet.
    pub fn unheard(&self) -> usize {
        self.state.lock().unheard()
    }

    /// Ready when those are no more than `most`.
    pub fn poll_heard(&self, most: usize, cx: &mut Context<'_>) -> Poll<()> {
        let mut state = self.state.lock();
        if state.unheard() <= most {
            return Poll::Ready(());
        }
        state.caller = Some(cx.waker().clone());
        Poll::Pending
    }

    /// Ready when nobody listens any more.
    pub fn poll_abandoned(&self, cx: &mut Context<'_>) -> Poll<()> {
        let mut state = self.state.lock();
        if state.listeners.is_empty() {
            return Poll::Ready(());
        }
        state.caller = Some(cx.waker().clone());
        Poll::Pending
    }
}

impl State {
    fn wake_listeners(&mut self) {
        self.listeners.values_mut().filter_map(|ear| ear.waker.take()).for_each(Waker::wake);
    }

    fn unheard(&self) -> usize {
        let furthest = self.listeners.values().map(|ear| ear.taken).max();
        furthest.map_or(0, |furthest| usize::try_from(self.came - furthest).unwrap_or(usize::MAX))
    }

    /// The listener wants to know what comes.
    fn wait(&mut self, id: usize, cx: &Context<'_>) {
        if let Some(ear) = self.listeners.get_mut(&id) {
            ear.waker = Some(cx.waker().clone());
        }
    }
}

/// One that listens, until it is dropped.
pub struct Listener {
    shared: Arc<Shared>,
    id: usize,
    next: usize,
}

impl Listener {
    /// Whether it is the one for which the call was made.
    #[must_use]
    pub fn is_first(&self) -> bool {
        self.id == 0
    }

    /// The head, or how it ended without one.
    pub fn poll_head(&mut self, cx: &mut Context<'_>) -> Poll<Result<Arc<Head>, End>> {
        let mut state = self.shared.state.lock();
        if let Some(head) = &state.head {
            return Poll::Ready(Ok(Arc::clone(head)));
        }
        if let Some(end) = &state.end {
            return Poll::Ready(Err(end.clone()));
        }
        state.wait(self.id, cx);
        Poll::Pending
    }

    /// What comes next of the body.
    pub fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Heard> {
        let state = &mut *self.shared.state.lock();
        let Some(index) = self.next.checked_sub(state.given_up) else {
            return Poll::Ready(Heard::TooSlow);
        };
        if let Some(piece) = state.pieces.get(index).cloned() {
            self.next += 1;
            if let Some(ear) = state.listeners.get_mut(&self.id) {
                ear.taken += piece.len() as u64;
            }
            state.caller.take().into_iter().for_each(Waker::wake);
            return Poll::Ready(Heard::Data(piece));
        }
        if let Some(end) = &state.end {
            return Poll::Ready(Heard::End(end.clone()));
        }
        state.wait(self.id, cx);
        Poll::Pending
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        let mut state = self.shared.state.lock();
        state.listeners.remove(&self.id);
        // Perhaps it was the last one, or the furthest.
        state.caller.take().into_iter().for_each(Waker::wake);
    }
}

/// The calls that are under way.
#[derive(Default)]
pub struct Calls {
    shared: Mutex<HashMap<Key, Weak<Shared>>>,
    refreshed: Mutex<HashSet<Key>>,
}

/// What a request finds that would share a call.
pub enum Joined {
    /// One that is under way.
    Theirs(Listener),
    /// It has to make the call itself, and listens to it.
    Ours(Listener, Arc<Shared>),
}

impl Calls {
    /// Joins the call for this key, or begins one of which at most `limit` bytes are kept; `None` where there is one with
    /// the same key for another request.
    #[must_use]
    pub fn join(&self, key: &Key, proof: &Proof, limit: usize) -> Option<Joined> {
        let mut calls = self.shared.lock();
        if let Some(theirs) = calls.get(key).and_then(Weak::upgrade) {
            if theirs.proof != *proof {
                return None;
            }
            if let Some(listener) = theirs.listen() {
                return Some(Joined::Theirs(listener));
            }
        }
        let call = Shared::new(*proof, limit);
        let listener = call.listen()?;
        calls.insert(*key, Arc::downgrade(&call));
        Some(Joined::Ours(listener, call))
    }

    /// The call for this key is over.
    pub fn over(&self, key: &Key, call: &Arc<Shared>) {
        let mut calls = self.shared.lock();
        if calls.get(key).is_some_and(|other| other.as_ptr() == Arc::as_ptr(call)) {
            calls.remove(key);
        }
    }

    /// A ticket for a call that refreshes the answer under this key: one for a key, and `most` in all.
    #[must_use]
    pub fn refresh(&self, key: Key, most: usize) -> bool {
        let mut refreshed = self.refreshed.lock();
        refreshed.len() < most && refreshed.insert(key)
    }

    /// The answer under this key is not being refreshed any more.
    pub fn refreshed(&self, key: &Key) {
        self.refreshed.lock().remove(key);
    }
}

#[cfg(test)]
mod tests {
    use rand::{RngExt, SeedableRng, rngs::SmallRng};

    use super::*;
    use crate::answers::key::{Body, Identity, tests::tenant};

    fn proof(target: &str) -> Proof {
        let (route, model, method, tenant) = ("r", "m", "POST", tenant("t"));
        let (arm, fields, body) = (None, vec![], Body::Bytes(b""));
        Identity { tenant, route, arm, model, method, target, fields, body }.digest().unwrap().1
    }

    fn head() -> Head {
        Head { head: ResponseHead::new(200), private: false }
    }

    fn cx() -> Context<'static> {
        Context::from_waker(Waker::noop())
    }

    /// Everything that a listener can hear now.
    fn heard(listener: &mut Listener) -> (Vec<u8>, Option<Heard>) {
        let mut bytes = Vec::new();
        loop {
            match listener.poll_next(&mut cx()) {
                Poll::Ready(Heard::Data(data)) => bytes.extend_from_slice(&data),
                Poll::Ready(last) => return (bytes, Some(last)),
                Poll::Pending => return (bytes, None),
            }
        }
    }

    #[test]
    fn whoever_listens_hears_everything_in_order_whenever_it_came() {
        for seed in 0..500 {
            let mut rng = SmallRng::seed_from_u64(seed);
            let shared = Shared::new(proof("/"), 1 << 20);
            let mut listeners: Vec<(Listener, Vec<u8>)> = Vec::new();
            let mut said = Vec::new();
            listeners.push((shared.listen().unwrap(), Vec::new()));
            shared.begin(head());
            for step in 0..100_u8 {
                match rng.random_range(0..5) {
                    0 => listeners.push((shared.listen().unwrap(), Vec::new())),
                    1 if listeners.len() > 1 => {
                        // Any of them leaves, also the first, and nobody else notices.
                        listeners.swap_remove(rng.random_range(0..listeners.len()));
                    }
                    2 => {
                        let one = rng.random_range(0..listeners.len());
                        let (listener, bytes) = &mut listeners[one];
                        bytes.extend(heard(listener).0);
                    }
                    _ => {
                        shared.push(Bytes::from(vec![step]));
                        said.push(step);
                    }
                }
            }
            shared.end(End::Whole);
            listeners.push((shared.listen().unwrap(), Vec::new()));
            for (mut listener, mut bytes) in listeners {
                let (rest, last) = heard(&mut listener);
                bytes.extend(rest);
                assert_eq!(bytes, said, "seed {seed}");
                assert!(matches!(last, Some(Heard::End(End::Whole))), "seed {seed}: {last:?}");
            }
        }
    }

    #[test]
    fn a_slow_listener_is_cut_and_costs_no_more_than_the_bound() {
        let shared = Shared::new(proof("/"), 1_000);
        let (mut slow, mut quick) = (shared.listen().unwrap(), shared.listen().unwrap());
        let mut bytes = 0;
        for _ in 0..100 {
            shared.push(vec![0; 100].into());
            bytes += heard(&mut quick).0.len();
            assert!(shared.state.lock().bytes <= 1_000);
        }
        assert_eq!(bytes, 10_000, "nobody else is held up");
        assert_eq!(shared.unheard(), 0, "nor is the call");
        assert!(matches!(heard(&mut slow).1, Some(Heard::TooSlow)));
        assert!(shared.listen().is_none(), "its beginning is not here any more");
    }

    #[test]
    fn the_call_goes_as_fast_as_the_fastest_listener() {
        let shared = Shared::new(proof("/"), 1_000);
        let (mut one, mut other) = (shared.listen().unwrap(), shared.listen().unwrap());
        shared.push(vec![0; 300].into());
        assert!(shared.poll_heard(200, &mut cx()).is_pending());
        assert_eq!(heard(&mut one).0.len(), 300);
        assert!(shared.poll_heard(200, &mut cx()).is_ready());
        drop(one);
        assert!(shared.poll_heard(200, &mut cx()).is_pending(), "now it is the other one");
        assert_eq!(heard(&mut other).0.len(), 300);
        assert!(shared.poll_heard(200, &mut cx()).is_ready());
    }

    #[test]
    fn the_call_is_given_up_when_the_last_listener_has_left() {
        let shared = Shared::new(proof("/"), 1_000);
        let (first, second) = (shared.listen().unwrap(), shared.listen().unwrap());
        drop(first);
        assert!(shared.poll_abandoned(&mut cx()).is_pending());
        drop(second);
        assert!(shared.poll_abandoned(&mut cx()).is_ready());
        assert!(shared.listen().is_none());
    }

    #[test]
    fn what_was_said_first_of_the_end_counts() {
        let shared = Shared::new(proof("/"), 1_000);
        let mut listener = shared.listen().unwrap();
        shared.end(End::Failed(Outcome::NoEndpoint, String::new()));
        shared.end(End::Dropped);
        let Poll::Ready(Err(End::Failed(outcome, _))) = listener.poll_head(&mut cx()) else {
            panic!("it has failed");
        };
        assert_eq!(outcome, Outcome::NoEndpoint);
        assert!(shared.listen().is_none(), "nobody joins a call that failed");
    }

    #[test]
    fn the_same_request_joins_and_another_one_does_not() {
        let (calls, key) = (Calls::default(), Key::of(1));
        let Some(Joined::Ours(first, call)) = calls.join(&key, &proof("/"), 100) else {
            panic!("the first one makes the call");
        };
        assert!(first.is_first());
        let joined = calls.join(&key, &proof("/"), 100);
        assert!(matches!(&joined, Some(Joined::Theirs(listener)) if !listener.is_first()));
        assert!(calls.join(&key, &proof("/other"), 100).is_none(), "a key is not believed alone");
        assert!(matches!(calls.join(&Key::of(2), &proof("/"), 100), Some(Joined::Ours(..))));
        call.begin(Head { private: true, ..head() });
        // What is not for others is not joined either.
        assert!(matches!(calls.join(&key, &proof("/"), 100), Some(Joined::Ours(..))));
        calls.over(&key, &call);
    }

    #[test]
    fn an_answer_is_refreshed_once_at_a_time_and_not_too_many_are() {
        let calls = Calls::default();
        assert!(calls.refresh(Key::of(1), 2) && !calls.refresh(Key::of(1), 2));
        assert!(calls.refresh(Key::of(2), 2) && !calls.refresh(Key::of(3), 2));
        calls.refreshed(&Key::of(1));
        assert!(calls.refresh(Key::of(3), 2));
    }
}
