//! Where the requests of a route wait for their mates, each key apart from the others.
//!
//! Why: [`Gathering`] decides, this holds. What goes in (a request, and the means
//! to answer it) comes out in exactly one [`Batch`], or is handed back by [`Lobby::leave`].
//!
//! How to use it: whoever gets a [`Batch`], from any call, sends it. A request that has to wait
//! sleeps until the time it was told and then calls [`Lobby::close`], unless its answer is there
//! before; the first who calls in time gets the batch. So no one has to be woken to close a batch,
//! and one whose leader went away is closed by the next.
//!
//! What it leaves out: locks. One lobby is for one thread, or behind a mutex that is held for the
//! length of a call. Memory is bounded by [`MAX_KEYS`], each up to some 16 KiB and the headers of a
//! request, and by the requests that wait.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::key::Key;
use super::window::{Ended, Gathering, Joined, Size, Window};

#[cfg(test)]
mod simulation;

/// Most keys that are known at once. Requests of further ones go by themselves.
pub const MAX_KEYS: usize = 1024;

/// Shortest time between two searches for keys that are no longer in use.
const SWEEP: Duration = Duration::from_secs(1);

/// Requests that travel together; often only one.
#[derive(Debug)]
pub struct Batch<T> {
    /// What joined, in the order of arrival; never empty.
    pub items: Vec<T>,
    /// To be given back when the call has ended.
    pub call: Call,
}

/// A batch under way: hand it to [`Lobby::finished`].
#[derive(Debug)]
#[must_use = "its requests count as under way until the lobby hears that they are not"]
pub struct Call {
    key: Arc<Key>,
    requests: usize,
}

/// The place of a request that waits.
#[derive(Clone, Debug)]
pub struct Ticket {
    key: Arc<Key>,
    batch: u64,
    seat: u64,
}

/// What becomes of a request that joins.
#[derive(Debug)]
pub enum Turn<T> {
    /// The batch, which the request is in, has to be sent now.
    Send(Batch<T>),
    /// The request waits.
    Wait {
        /// Its place.
        ticket: Ticket,
        /// When to call [`Lobby::close`].
        closes: Instant,
        /// Another batch, which has to be sent now.
        pushed_out: Option<Batch<T>>,
    },
}

/// What [`Lobby::close`] finds.
#[derive(Debug)]
pub enum Closing<T> {
    /// The batch has to be sent now.
    Due(Batch<T>),
    /// It is not yet time: call again then.
    NotYet(Instant),
    /// Somebody else has it: the answer will come.
    Gone,
}

/// The open batch of one key, if there is one, and what is known of the key.
#[derive(Debug)]
struct Room<T> {
    gathering: Gathering,
    /// The number of the open batch, or of the last one.
    batch: u64,
    seats: Vec<Seat<T>>,
}

#[derive(Debug)]
struct Seat<T> {
    number: u64,
    size: Size,
    item: T,
}

impl<T> Room<T> {
    fn empty(&mut self, key: &Arc<Key>) -> Batch<T> {
        let items: Vec<T> = self.seats.drain(..).map(|seat| seat.item).collect();
        Batch { call: Call { key: Arc::clone(key), requests: items.len() }, items }
    }
}

/// The waiting requests of one route.
#[derive(Debug)]
pub struct Lobby<T> {
    window: Window,
    rooms: HashMap<Arc<Key>, Room<T>>,
    /// The next ticket, of a batch or a seat.
    next: u64,
    swept: Option<Instant>,
}

impl<T> Lobby<T> {
    /// An empty lobby.
    #[must_use]
    pub fn new(window: Window) -> Self {
        Self { window, rooms: HashMap::new(), next: 0, swept: None }
    }

    /// A request arrives; `deadline` is when its answer must be there.
    pub fn join(
        &mut self,
        now: Instant,
        key: Key,
        size: Size,
        deadline: Option<Instant>,
        item: T,
    ) -> Turn<T> {
        let key = Arc::new(key);
        let number = self.number();
        let Some(room) = self.room(&key, now) else {
            return Turn::Send(Batch { items: vec![item], call: Call { key, requests: 1 } });
        };
        let seat = Seat { number, size, item };
        match room.gathering.join(now, size, deadline) {
            Joined::Alone => {
                Turn::Send(Batch { items: vec![seat.item], call: Call { key, requests: 1 } })
            }
            Joined::Full => {
                room.seats.push(seat);
                Turn::Send(room.empty(&key))
            }
            Joined::Leader { closes, pushed_out } => {
                let pushed_out = pushed_out.then(|| room.empty(&key));
                room.batch = number;
                Self::sit(room, key, seat, closes, pushed_out)
            }
            Joined::Member { closes } => Self::sit(room, key, seat, closes, None),
        }
    }

    fn sit(
        room: &mut Room<T>,
        key: Arc<Key>,
        seat: Seat<T>,
        closes: Instant,
        pushed_out: Option<Batch<T>>,
    ) -> Turn<T> {
        let ticket = Ticket { key, batch: room.batch, seat: seat.number };
        room.seats.push(seat);
        Turn::Wait { ticket, closes, pushed_out }
    }

    /// The time is over that a request was told.
    pub fn close(&mut self, ticket: &Ticket, now: Instant) -> Closing<T> {
        let Some(room) = self.open(ticket) else { return Closing::Gone };
        match room.gathering.closes() {
            Some(closes) if closes > now => Closing::NotYet(closes),
            Some(_) if room.gathering.close(now) => Closing::Due(room.empty(&ticket.key)),
            _ => Closing::Gone,
        }
    }

    /// A request that waits is not wanted any more: its client is gone. `None` when it is already
    /// in a batch that was taken; whoever took it finds out for whom it goes on.
    pub fn leave(&mut self, ticket: &Ticket) -> Option<T> {
        let room = self.open(ticket)?;
        let place = room.seats.iter().position(|seat| seat.number == ticket.seat)?;
        let seat = room.seats.remove(place);
        room.gathering.leave(seat.size);
        Some(seat.item)
    }

    /// A call has ended. To be told before any client has the end of its answer, see
    /// [`Gathering::finished`].
    pub fn finished(&mut self, call: Call, ended: Ended, now: Instant) {
        let Call { key, requests } = call;
        if let Some(room) = self.rooms.get_mut(&key) {
            room.gathering.finished(now, requests, ended);
        }
    }

    /// How many requests wait.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.rooms.values().map(|room| room.seats.len()).sum()
    }

    /// How many keys are known.
    #[must_use]
    pub fn keys(&self) -> usize {
        self.rooms.len()
    }

    const fn number(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    /// The room of a ticket, if its batch is still open.
    fn open(&mut self, ticket: &Ticket) -> Option<&mut Room<T>> {
        let room = self.rooms.get_mut(&ticket.key)?;
        (room.batch == ticket.batch && !room.seats.is_empty()).then_some(room)
    }

    /// The room of a key; a new one if there is space.
    fn room(&mut self, key: &Arc<Key>, now: Instant) -> Option<&mut Room<T>> {
        if !self.rooms.contains_key(key) {
            self.sweep(now);
            if self.rooms.len() >= MAX_KEYS {
                return None;
            }
            let gathering = Gathering::new(self.window);
            let room = Room { gathering, batch: 0, seats: Vec::new() };
            self.rooms.insert(Arc::clone(key), room);
        }
        self.rooms.get_mut(key)
    }

    /// Forgets the keys that are not in use, when there is no space left.
    fn sweep(&mut self, now: Instant) {
        let lately = |swept| now.saturating_duration_since(swept) < SWEEP;
        if self.rooms.len() >= MAX_KEYS && !self.swept.is_some_and(lately) {
            self.rooms.retain(|_, room| !room.gathering.is_idle(now));
            self.swept = Some(now);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);
    const WINDOW: Window = Window { wait: Duration::from_millis(5), requests: 4, bytes: 1000 };
    const SMALL: Size = Size { prompts: 1, bytes: 10 };

    fn key(name: &str) -> Key {
        let mut key = Key::new();
        key.extend(b"name", name.as_bytes());
        key
    }

    /// A lobby in which a hundred requests of each key have come at once and are under way.
    fn busy(keys: &[&str], window: Window) -> (Lobby<u32>, Instant) {
        let (mut lobby, start) = (Lobby::new(window), Instant::now());
        for name in keys {
            for _ in 0..100 {
                let size = Size { prompts: window.requests + 1, bytes: 0 };
                let Turn::Send(batch) = lobby.join(start, key(name), size, None, 0) else {
                    panic!("too large for any batch");
                };
                assert_eq!(batch.items, [0]);
            }
        }
        (lobby, start)
    }

    fn waits(turn: Turn<u32>) -> (Ticket, Instant) {
        match turn {
            Turn::Wait { ticket, closes, pushed_out: None } => (ticket, closes),
            other => panic!("{other:?}"),
        }
    }

    fn sent(turn: Turn<u32>) -> Vec<u32> {
        match turn {
            Turn::Send(batch) => batch.items,
            other @ Turn::Wait { .. } => panic!("{other:?}"),
        }
    }

    #[test]
    fn keys_never_meet() {
        let (mut lobby, now) = busy(&["a", "b"], WINDOW);
        let mut tickets = Vec::new();
        for (item, name) in ["a", "b", "a", "b", "b"].into_iter().enumerate() {
            tickets.push(waits(lobby.join(now, key(name), SMALL, None, item as u32)).0);
        }
        assert_eq!(lobby.waiting(), 5);
        let late = now + 5 * MS;
        let Closing::Due(batch) = lobby.close(&tickets[2], late) else { panic!("it is time") };
        assert_eq!(batch.items, [0, 2]);
        let Closing::Due(batch) = lobby.close(&tickets[1], late) else { panic!("it is time") };
        assert_eq!(batch.items, [1, 3, 4]);
        assert!(tickets.iter().all(|ticket| matches!(lobby.close(ticket, late), Closing::Gone)));
    }

    #[test]
    fn an_old_ticket_does_not_close_a_new_batch() {
        let (mut lobby, now) = busy(&["a"], WINDOW);
        let (old, _) = waits(lobby.join(now, key("a"), SMALL, None, 1));
        let next = lobby.join(now + MS, key("a"), Size { prompts: 4, bytes: 0 }, None, 2);
        let Turn::Wait { ticket, pushed_out: Some(first), .. } = next else { panic!("{next:?}") };
        assert_eq!(first.items, [1]);
        let late = now + 9 * MS;
        assert!(matches!(lobby.close(&old, late), Closing::Gone));
        assert!(lobby.leave(&old).is_none());
        let Closing::Due(second) = lobby.close(&ticket, late) else { panic!("it is time") };
        assert_eq!(second.items, [2]);
    }

    #[test]
    fn a_batch_is_closed_by_those_who_stay() {
        let (mut lobby, now) = busy(&["a"], WINDOW);
        let (leader, _) = waits(lobby.join(now, key("a"), SMALL, None, 1));
        let (member, closes) = waits(lobby.join(now + MS, key("a"), SMALL, None, 2));
        assert_eq!(lobby.leave(&leader), Some(1));
        assert_eq!(lobby.leave(&leader), None);
        assert!(matches!(lobby.close(&member, now + MS), Closing::NotYet(at) if at == closes));
        let Closing::Due(batch) = lobby.close(&member, closes) else { panic!("it is time") };
        assert_eq!(batch.items, [2]);
    }

    #[test]
    fn the_last_to_leave_closes_the_door() {
        let (mut lobby, now) = busy(&["a"], WINDOW);
        let (one, _) = waits(lobby.join(now, key("a"), SMALL, None, 1));
        assert_eq!(lobby.leave(&one), Some(1));
        assert!(matches!(lobby.close(&one, now + 9 * MS), Closing::Gone));
        let (_, closes) = waits(lobby.join(now + 9 * MS, key("a"), SMALL, None, 2));
        assert_eq!(closes, now + 14 * MS);
    }

    #[test]
    fn there_are_never_too_many_keys() {
        let names: Vec<String> = (0..=MAX_KEYS).map(|i| i.to_string()).collect();
        let (mut lobby, now) = (Lobby::new(WINDOW), Instant::now());
        let mut calls = Vec::new();
        for name in &names {
            let Turn::Send(batch) = lobby.join(now, key(name), SMALL, None, 0) else {
                panic!("nobody else is there")
            };
            calls.push(batch.call);
        }
        assert_eq!(lobby.keys(), MAX_KEYS);
        for call in calls {
            lobby.finished(call, Ended::Answered(MS), now);
        }
        assert_eq!(sent(lobby.join(now + 500 * MS, key("new"), SMALL, None, 1)), [1]);
        assert_eq!(lobby.keys(), MAX_KEYS, "all were in use lately");
        assert_eq!(sent(lobby.join(now + 5_000 * MS, key("new"), SMALL, None, 1)), [1]);
        assert_eq!(lobby.keys(), 1);
    }
}
