//! Seeded worlds of clients and a server around a lobby, in which every step is checked.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::{Duration, Instant};

use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};

use super::{Batch, Call, Closing, Lobby, Ticket, Turn};
use crate::batch::{Ended, Key, Size, Window};

const MS: Duration = Duration::from_millis(1);

/// How requests come.
#[derive(Clone, Copy, Debug)]
enum Clients {
    /// So many, each of which asks again when it has its answer, after a pause of up to so long.
    Closed { count: usize, pause: Duration },
    /// So many in a second, whatever becomes of them.
    Open { rate: f64 },
}

#[derive(Clone, Copy, Debug)]
struct Setup {
    seed: u64,
    window: Window,
    clients: Clients,
    keys: usize,
    /// Time of a call, and of each prompt in it.
    service: (Duration, Duration),
    /// Share of the requests with a deadline soon after.
    hurried: f64,
    /// Share of the requests whose client goes away soon after.
    fickle: f64,
    /// Share of the requests with more than one prompt.
    lists: f64,
    requests: usize,
}

impl Setup {
    /// All clients ask for one prompt each under one key, and stay.
    fn plain(clients: Clients, service: Duration) -> Self {
        let window = Window { wait: 5 * MS, requests: 32, bytes: 1 << 20 };
        let service = (service, Duration::ZERO);
        let (hurried, fickle, lists) = (0.0, 0.0, 0.0);
        Self {
            seed: 1,
            window,
            clients,
            keys: 1,
            service,
            hurried,
            fickle,
            lists,
            requests: 20_000,
        }
    }

    fn random(seed: u64) -> Self {
        let mut rng = SmallRng::seed_from_u64(seed);
        let micros =
            |rng: &mut SmallRng, most: u64| Duration::from_micros(rng.random_range(0..most));
        let clients = if rng.random() {
            Clients::Closed { count: rng.random_range(1..80), pause: micros(&mut rng, 10_000) }
        } else {
            Clients::Open { rate: rng.random_range(10.0..10_000.0) }
        };
        let requests = rng.random_range(1..40);
        let bytes = rng.random_range(1..20_000);
        let window = Window { wait: micros(&mut rng, 20_000), requests, bytes };
        let service = (micros(&mut rng, 30_000), micros(&mut rng, 1_000));
        let mut share = || if rng.random() { rng.random_range(0.0..0.5) } else { 0.0 };
        let (hurried, fickle, lists) = (share(), share(), share());
        let keys = rng.random_range(1..5);
        Self { seed, window, clients, keys, service, hurried, fickle, lists, requests: 1_000 }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    /// A client asks.
    Arrive,
    /// The time is over that this request was told.
    Wake(usize),
    /// The client of this request goes away.
    HangUp(usize),
    /// This call is answered.
    Answer(usize),
}

/// What is known of a request.
#[derive(Debug)]
struct Request {
    key: usize,
    size: Size,
    arrived: Instant,
    ticket: Option<Ticket>,
    end: Option<End>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Sent { waited: Duration, company: usize },
    Left,
}

struct World {
    setup: Setup,
    rng: SmallRng,
    now: Instant,
    lobby: Lobby<usize>,
    agenda: BinaryHeap<Reverse<(Instant, usize, Event)>>,
    /// How many events there were, so that those of one time keep their order.
    events: usize,
    requests: Vec<Request>,
    /// How many requests are still to arrive.
    to_come: usize,
    calls: Vec<Option<(Call, Instant, usize)>>,
}

impl World {
    fn run(setup: Setup) -> Self {
        let now = Instant::now();
        let mut world = Self {
            setup,
            rng: SmallRng::seed_from_u64(setup.seed),
            now,
            lobby: Lobby::new(setup.window),
            agenda: BinaryHeap::new(),
            events: 0,
            requests: Vec::new(),
            to_come: setup.requests,
            calls: Vec::new(),
        };
        let first = match setup.clients {
            Clients::Closed { count, .. } => count,
            Clients::Open { .. } => 1,
        };
        (0..first).for_each(|_| world.plan(Duration::ZERO, Event::Arrive));
        while let Some(Reverse((at, _, event))) = world.agenda.pop() {
            world.now = at;
            world.step(event);
        }
        world.check_end();
        world
    }

    fn plan(&mut self, after: Duration, event: Event) {
        self.events += 1;
        self.agenda.push(Reverse((self.now + after, self.events, event)));
    }

    fn step(&mut self, event: Event) {
        match event {
            Event::Arrive => self.arrive(),
            Event::Wake(request) => self.wake(request),
            Event::HangUp(request) => self.hang_up(request),
            Event::Answer(call) => self.answer(call),
        }
    }

    fn arrive(&mut self) {
        if self.to_come == 0 {
            return;
        }
        self.to_come -= 1;
        if let Clients::Open { rate } = self.setup.clients {
            let gap = -self.rng.random_range(f64::MIN_POSITIVE..1.0).ln() / rate;
            self.plan(Duration::from_secs_f64(gap), Event::Arrive);
        }
        let id = self.request();
        let deadline = self.rng.random_bool(self.setup.hurried);
        let deadline = deadline.then(|| self.now + MS * self.rng.random_range(0..50));
        if self.rng.random_bool(self.setup.fickle) {
            let after = Duration::from_micros(self.rng.random_range(0..20_000));
            self.plan(after, Event::HangUp(id));
        }
        let Request { key, size, .. } = self.requests[id];
        let turn = self.lobby.join(self.now, named(key), size, deadline, id);
        self.take(id, turn);
    }

    fn request(&mut self) -> usize {
        let list = self.rng.random_bool(self.setup.lists);
        let prompts = if list { self.rng.random_range(1..10) } else { 1 };
        let size = Size { prompts, bytes: self.rng.random_range(1..500) };
        let key = self.rng.random_range(0..self.setup.keys);
        self.requests.push(Request { key, size, arrived: self.now, ticket: None, end: None });
        self.requests.len() - 1
    }

    fn take(&mut self, id: usize, turn: Turn<usize>) {
        match turn {
            Turn::Send(batch) => {
                assert!(batch.items.contains(&id), "{:?}", self.setup);
                self.send(batch);
            }
            Turn::Wait { ticket, closes, pushed_out } => {
                assert!(closes > self.now, "nobody waits for nothing: {:?}", self.setup);
                self.requests[id].ticket = Some(ticket);
                self.plan(closes - self.now, Event::Wake(id));
                if let Some(batch) = pushed_out {
                    assert!(!batch.items.contains(&id), "{:?}", self.setup);
                    self.send(batch);
                }
            }
        }
    }

    fn wake(&mut self, id: usize) {
        let Some(ticket) = self.requests[id].ticket.clone() else { return };
        match self.lobby.close(&ticket, self.now) {
            Closing::Due(batch) => self.send(batch),
            Closing::NotYet(at) => panic!("told {:?} too early: {:?}", at - self.now, self.setup),
            Closing::Gone => assert!(self.requests[id].end.is_some(), "{id}: {:?}", self.setup),
        }
    }

    fn hang_up(&mut self, id: usize) {
        let Some(ticket) = self.requests[id].ticket.take() else { return };
        if let Some(item) = self.lobby.leave(&ticket) {
            assert_eq!(item, id);
            self.end(id, End::Left);
            self.ask_again();
        }
    }

    fn send(&mut self, batch: Batch<usize>) {
        self.check(&batch.items);
        let company = batch.items.len();
        for &id in &batch.items {
            let waited = self.now - self.requests[id].arrived;
            self.end(id, End::Sent { waited, company });
        }
        let prompts: usize = batch.items.iter().map(|&id| self.requests[id].size.prompts).sum();
        let time = self.setup.service.0 + self.setup.service.1 * prompts as u32;
        self.calls.push(Some((batch.call, self.now, company)));
        self.plan(time, Event::Answer(self.calls.len() - 1));
    }

    fn end(&mut self, id: usize, end: End) {
        let before = self.requests[id].end.replace(end);
        assert_eq!(before, None, "{id} ends twice: {:?}", self.setup);
    }

    /// A batch is of one key, in the order of arrival, within its bounds, and nobody waited too
    /// long.
    fn check(&self, items: &[usize]) {
        let Setup { window, .. } = self.setup;
        let requests: Vec<&Request> = items.iter().map(|&id| &self.requests[id]).collect();
        assert!(items.is_sorted() && !items.is_empty(), "{:?}", self.setup);
        assert!(requests.iter().all(|request| request.key == requests[0].key), "{:?}", self.setup);
        let waited = |request: &&Request| self.now - request.arrived;
        assert!(requests.iter().map(waited).max() <= Some(window.wait), "{:?}", self.setup);
        let prompts: usize = requests.iter().map(|request| request.size.prompts).sum();
        let bytes: u64 = requests.iter().map(|request| request.size.bytes).sum();
        let fits = prompts <= window.requests && bytes <= window.bytes;
        assert!(fits || items.len() == 1, "{:?}", self.setup);
    }

    fn answer(&mut self, call: usize) {
        let (call, since, company) = self.calls[call].take().unwrap();
        let ended = match self.rng.random_range(0..100) {
            0 if self.setup.fickle > 0.0 && company > 1 => Ended::RetryAlone,
            1 if self.setup.fickle > 0.0 => Ended::Failed,
            _ => Ended::Answered(self.now - since),
        };
        self.lobby.finished(call, ended, self.now);
        (0..company).for_each(|_| self.ask_again());
    }

    fn ask_again(&mut self) {
        if let Clients::Closed { pause, .. } = self.setup.clients {
            let pause = pause.mul_f64(self.rng.random());
            self.plan(pause, Event::Arrive);
        }
    }

    fn check_end(&self) {
        assert_eq!(self.requests.len(), self.setup.requests);
        assert_eq!(self.lobby.waiting(), 0, "{:?}", self.setup);
        let lost = self.requests.iter().position(|request| request.end.is_none());
        assert_eq!(lost, None, "{:?}", self.setup);
        assert!(self.calls.iter().all(Option::is_none));
    }

    fn sent(&self) -> impl Iterator<Item = (Duration, usize)> {
        self.requests.iter().filter_map(|request| match request.end {
            Some(End::Sent { waited, company }) => Some((waited, company)),
            Some(End::Left) | None => None,
        })
    }

    fn mean_wait(&self) -> Duration {
        self.sent().map(|(waited, _)| waited).sum::<Duration>() / self.sent().count() as u32
    }

    /// Requests for each call.
    fn mean_company(&self) -> f64 {
        self.sent().count() as f64 / self.calls.len() as f64
    }
}

fn named(key: usize) -> Key {
    let mut name = Key::new();
    name.extend(b"key", &key.to_le_bytes());
    name
}

#[test]
fn nobody_is_lost_or_sent_twice_or_waits_too_long() {
    let mut batched = 0;
    for seed in 0..400 {
        let world = World::run(Setup::random(seed));
        batched += world.sent().filter(|&(_, company)| company > 1).count();
    }
    assert!(batched > 50_000, "too few batches to test anything: {batched}");
}

#[test]
fn a_lone_client_pays_nothing() {
    for service in [0, 100, 1_000, 4_000, 20_000] {
        let clients = Clients::Closed { count: 1, pause: Duration::ZERO };
        let world = World::run(Setup::plain(clients, Duration::from_micros(service)));
        assert!(world.sent().all(|sent| sent == (Duration::ZERO, 1)), "service {service} us");
    }
}

#[test]
fn rare_requests_pay_nothing() {
    let world = World::run(Setup::plain(Clients::Open { rate: 50.0 }, 2 * MS));
    assert!(world.sent().all(|sent| sent == (Duration::ZERO, 1)));
}

#[test]
fn a_crowd_that_waits_for_its_answers_meets_without_waiting() {
    let clients = Clients::Closed { count: 24, pause: MS / 2 };
    let world = World::run(Setup::plain(clients, 10 * MS));
    assert!(world.mean_company() > 20.0, "{}", world.mean_company());
    assert!(world.mean_wait() < MS / 2, "{:?}", world.mean_wait());
}

#[test]
fn two_clients_meet_without_waiting() {
    let world = World::run(Setup::plain(Clients::Closed { count: 2, pause: MS / 10 }, 2 * MS));
    assert!(world.mean_company() > 1.9, "{}", world.mean_company());
    assert!(world.mean_wait() < MS / 4, "{:?}", world.mean_wait());
}

#[test]
fn a_stream_of_strangers_shares_calls() {
    let world = World::run(Setup::plain(Clients::Open { rate: 2_000.0 }, 20 * MS));
    assert!(world.mean_company() > 9.0, "{}", world.mean_company());
    assert!(world.mean_wait() > MS && world.mean_wait() < 4 * MS, "{:?}", world.mean_wait());
}
