//! Three sidecars with memories of their own share a Redis; they store, purge, read, look and end in any order, and Redis
//! loses what it can lose. Every step of a look is a step of its own, and may be the last one.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, Waker},
};

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use rand::{Rng, RngExt, SeedableRng, rngs::SmallRng};

use super::{super::link::Trouble, *};
use crate::tenant::Tenant;

const SIDECARS: usize = 3;
const KEYS: u64 = 6;
const STEPS: u64 = 250;

/// What Redis holds, and what the scripts do to it. Its clock may go back: another server may have taken its place.
#[derive(Default)]
struct Server {
    millis: u64,
    now: u64,
    hash: Hash,
    values: BTreeMap<u64, Value>,
    /// When each purge was first in the hash, by its identity, and when it was last told.
    settled: HashMap<u64, u64>,
    told: HashMap<u64, u64>,
    epochs: u64,
}

impl Server {
    fn next(&self, known: u64) -> u64 {
        self.millis.max(self.hash.seen.latest + 1).max(known + 1)
    }

    fn renew(&mut self, from: Seen, to: u64) {
        if self.hash.seen.epoch == from.epoch {
            self.epochs += 1;
            self.hash.seen = Seen { epoch: to, latest: self.next(from.latest) };
        }
    }

    fn purge(&mut self, known: Seen, purges: &[(Purge, u64)], fresh: u64) -> Option<Written> {
        if self.hash.seen.epoch != known.epoch {
            return None;
        }
        let number = self.next(known.latest);
        self.hash.seen.latest = number;
        let mut ids = Vec::new();
        for (purge, id) in purges {
            let other = self.hash.marks.get(purge).is_some_and(|there| there.id != *id);
            ids.push(if other { fresh } else { *id });
            self.hash.marks.insert(purge.clone(), Mark { number, id: ids[ids.len() - 1] });
            self.settled.entry(*id).or_insert(self.now);
            self.told.insert(*id, self.now);
        }
        Some(Written { number, ids })
    }
}

/// The way there and back: others go on meanwhile.
struct Wire(Arc<Mutex<Server>>);

impl Wire {
    async fn ask<T>(&self, question: impl FnOnce(&mut Server) -> T) -> Result<T, Trouble> {
        tick().await;
        let answer = question(&mut self.0.lock());
        tick().await;
        Ok(answer)
    }
}

async fn tick() {
    let mut waited = false;
    std::future::poll_fn(|_| match std::mem::replace(&mut waited, true) {
        true => Poll::Ready(()),
        false => Poll::Pending,
    })
    .await;
}

impl Ledger for Wire {
    async fn seen(&mut self) -> Result<Seen, Trouble> {
        self.ask(|server| server.hash.seen).await
    }

    async fn all(&mut self) -> Result<Hash, Trouble> {
        self.ask(|server| server.hash.clone()).await
    }

    async fn renew(&mut self, from: Seen, to: u64) -> Result<(), Trouble> {
        self.ask(|server| server.renew(from, to)).await
    }

    async fn purge(
        &mut self,
        known: Seen,
        purges: &[(Purge, u64)],
        fresh: u64,
    ) -> Result<Option<Written>, Trouble> {
        self.ask(|server| server.purge(known, purges, fresh)).await
    }
}

/// A stored answer.
#[derive(Clone, Copy)]
struct Value {
    made: u64,
    seen: Seen,
    /// When its writer began its last look that came to an end.
    looked: u64,
}

type Look = Pin<Box<dyn Future<Output = Result<Option<Trouble>, Trouble>>>>;

type Memory = Arc<Mutex<BTreeMap<u64, Value>>>;

#[derive(Default)]
struct Sidecar {
    marks: Arc<ArcSwap<Marks>>,
    memory: Memory,
    /// To be written.
    pile: VecDeque<(u64, Value)>,
    look: Option<Look>,
    began: u64,
    looked: u64,
    /// Which process it is.
    life: u64,
}

/// A purge that somebody asked for.
struct Asked {
    purge: Purge,
    id: u64,
    at: u64,
    life: u64,
}

/// What may happen to Redis and to sidecars in a world.
#[derive(Clone, Copy, Debug)]
struct Weather {
    /// Redis loses the hash, or all.
    losses: bool,
    /// It gets back the hash of some time ago, and keeps its values. Not where sidecars end: somebody must know better.
    rewinds: bool,
    /// Sidecars end, and others begin.
    restarts: bool,
}

struct World {
    seed: u64,
    rng: SmallRng,
    weather: Weather,
    server: Arc<Mutex<Server>>,
    sidecars: [Sidecar; SIDECARS],
    asked: Vec<Asked>,
    now: u64,
    lives: u64,
}

fn key(number: u64) -> Key {
    Key::of(number)
}

fn tags(number: u64) -> Tags {
    let (route, model) = ((number % 2).to_string(), (number % 3).to_string());
    let tenant = Tenant::from_bytes([u8::try_from(number % 2).unwrap_or(0); 16]);
    Tags { tenant, route: route.into(), arm: "a".into(), model: model.into() }
}

fn purge(rng: &mut impl Rng) -> Purge {
    let number = rng.random_range(0..KEYS);
    purge_of(rng.random_range(0..16), &key(number), &tags(number))
}

impl World {
    fn new(seed: u64) -> Self {
        let mut rng = SmallRng::seed_from_u64(seed);
        let rewinds = rng.random_bool(0.3);
        let restarts = !rewinds && rng.random_bool(0.5);
        let weather = Weather { losses: rng.random_bool(0.7), rewinds, restarts };
        let mut sidecars: [Sidecar; SIDECARS] = std::array::from_fn(|_| Sidecar::default());
        sidecars.iter_mut().zip(1..).for_each(|(sidecar, life)| sidecar.life = life);
        let (server, lives) = (Arc::default(), SIDECARS as u64);
        World { seed, rng, weather, server, sidecars, asked: Vec::new(), now: 0, lives }
    }

    fn run(mut self) {
        for now in 1..=STEPS {
            self.now = now;
            let jump = self.rng.random_range(0..3);
            let mut server = self.server.lock();
            (server.now, server.millis) = (now, server.millis + jump);
            drop(server);
            self.step();
        }
        self.come_to_rest();
    }

    fn step(&mut self) {
        let (who, number) = (self.rng.random_range(0..SIDECARS), self.rng.random_range(0..KEYS));
        match self.rng.random_range(0..100) {
            0..=4 => self.ask(who),
            5..=19 => self.make(who, number),
            20..=34 => self.write(who),
            35..=54 => self.read(who, number),
            55..=95 => self.look(who),
            96 => self.sidecars[who].look = None,
            97 if self.weather.restarts => self.restart(who),
            98 if self.weather.losses => self.lose(),
            99 if self.weather.rewinds => self.rewind(),
            _ => {}
        }
    }

    fn ask(&mut self, who: usize) {
        let (purge, id) = (purge(&mut self.rng), self.rng.random());
        let sidecar = &self.sidecars[who];
        change(&sidecar.marks, |marks| marks.ask(purge.clone(), id));
        forget(&sidecar.memory, &purge);
        self.asked.push(Asked { purge, id, at: self.now, life: sidecar.life });
    }

    fn make(&mut self, who: usize, number: u64) {
        let sidecar = &mut self.sidecars[who];
        let seen = sidecar.marks.load().seen();
        let value = Value { made: self.now, seen, looked: sidecar.looked };
        sidecar.memory.lock().insert(number, value);
        sidecar.pile.push_back((number, value));
    }

    fn write(&mut self, who: usize) {
        let sidecar = &mut self.sidecars[who];
        let epoch = sidecar.marks.load().seen().epoch;
        if epoch == NONE {
            return;
        }
        let Some((number, value)) = sidecar.pile.pop_front() else { return };
        if value.seen.epoch == epoch {
            self.server.lock().values.insert(number, value);
        }
    }

    fn read(&mut self, who: usize, number: u64) {
        let sidecar = &self.sidecars[who];
        let remembered = sidecar.memory.lock().get(&number).copied();
        if let Some(value) = remembered {
            return self.check(who, number, &value, true);
        }
        let Some(value) = self.server.lock().values.get(&number).copied() else { return };
        match self.standing(who, number, &value) {
            Standing::Good => {
                self.check(who, number, &value, false);
                sidecar.memory.lock().insert(number, value);
            }
            _ => self.check_refused(who, number, &value),
        }
    }

    fn standing(&self, who: usize, number: u64, value: &Value) -> Standing {
        self.sidecars[who].marks.load().judge(&key(number), &tags(number), value.seen)
    }

    /// The purges that a value was too old for.
    fn purged(&self, number: u64, value: &Value) -> impl Iterator<Item = &Asked> {
        let (key, tags, made) = (key(number), tags(number), value.made);
        self.asked.iter().filter(move |p| p.purge.means(&key, &tags) && made < p.at)
    }

    /// A sidecar serves it: it asked for no purge of it, and no look of it has begun after one was in Redis.
    fn check(&self, who: usize, number: u64, value: &Value, remembered: bool) {
        let (seed, sidecar, server) = (self.seed, &self.sidecars[who], self.server.lock());
        let Weather { losses, rewinds, .. } = self.weather;
        for purge in self.purged(number, value) {
            // Who knows of what was rewound may not have looked yet.
            let own = purge.life == sidecar.life && !rewinds;
            assert!(!own, "seed {seed}: not at once where it was asked for, {:?}", self.weather);
            let missed = server.settled.get(&purge.id).is_some_and(|at| *at < sidecar.looked);
            // Memory may lack a purge that Redis has lost, until those who know it have told it again.
            let excused = (remembered && losses) || rewinds;
            assert!(!missed || excused, "seed {seed}: served though purged, {:?}", self.weather);
        }
    }

    /// A sidecar does not serve it. Where nothing is lost, somebody has purged it, or its writer did not know all.
    fn check_refused(&self, who: usize, number: u64, value: &Value) {
        let reader = &self.sidecars[who].marks.load();
        let Weather { losses: false, rewinds: false, .. } = self.weather else { return };
        if reader.seen().epoch == NONE || self.purged(number, value).next().is_some() {
            return;
        }
        let (key, tags) = (key(number), tags(number));
        let server = self.server.lock();
        let knew = |p: &Asked| server.told.get(&p.id).is_some_and(|at| *at < value.looked);
        let mut concerned = self.asked.iter().filter(|p| p.purge.means(&key, &tags));
        let pending = reader.pending().iter().any(|(purge, _)| purge.means(&key, &tags));
        assert!(!concerned.all(knew) || pending, "seed {}: lost, purged by nobody", self.seed);
    }

    fn look(&mut self, who: usize) {
        let sidecar = &mut self.sidecars[who];
        let look = sidecar.look.get_or_insert_with(|| {
            let (marks, memory) = (Arc::clone(&sidecar.marks), Arc::clone(&sidecar.memory));
            let mut wire = Wire(Arc::clone(&self.server));
            let mut rng = SmallRng::seed_from_u64(self.rng.random());
            sidecar.began = self.now;
            Box::pin(async move {
                let forget = |purge: &Purge| forget(&memory, purge);
                look(&marks, &mut wire, &forget, || rng.random()).await
            })
        });
        let Poll::Ready(ended) = look.as_mut().poll(&mut Context::from_waker(Waker::noop())) else {
            return;
        };
        sidecar.look = None;
        // It is given up when one loss follows the other; what is known at rest tells whether looks succeed.
        if ended.is_ok() {
            sidecar.looked = sidecar.began;
        }
    }

    fn restart(&mut self, who: usize) {
        self.lives += 1;
        self.sidecars[who] = Sidecar { life: self.lives, ..Sidecar::default() };
    }

    fn lose(&mut self) {
        let mut server = self.server.lock();
        server.hash = Hash::default();
        if self.rng.random_bool(0.3) {
            server.values.clear();
        }
        server.millis = server.millis.saturating_sub(self.rng.random_range(0..100));
    }

    fn rewind(&mut self) {
        let mut server = self.server.lock();
        // No mark is given twice as long as the clock is right.
        server.millis = server.millis.max(server.hash.seen.latest + 1);
        // As it was at a time between its first mark and now.
        let until = self.rng.random_range(0..=server.hash.seen.latest);
        server.hash.marks.retain(|_, mark| mark.number <= until);
        server.hash.seen.latest = until;
    }

    /// All look until there is nothing new: then all know the same, and nothing is served that anybody can know of.
    fn come_to_rest(&mut self) {
        for round in 0..3 {
            for who in 0..SIDECARS {
                self.now += 1;
                self.sidecars[who].look = None;
                self.look(who);
                while self.sidecars[who].look.is_some() {
                    self.look(who);
                }
                assert!(round < 2 || self.sidecars[who].marks.load().pending().is_empty());
            }
        }
        let [one, two, three] = &self.sidecars;
        let known = |sidecar: &Sidecar| {
            let marks = sidecar.marks.load();
            (marks.seen, marks.taken_up, marks.marks.clone())
        };
        let seed = self.seed;
        assert!(
            known(one) == known(two) && known(two) == known(three),
            "seed {seed}: not the same"
        );
        for (who, number) in (0..SIDECARS).flat_map(|who| (0..KEYS).map(move |key| (who, key))) {
            self.check_at_rest(who, number);
        }
    }

    fn check_at_rest(&self, who: usize, number: u64) {
        let (seed, weather) = (self.seed, self.weather);
        let alive = |p: &Asked| self.sidecars.iter().any(|sidecar| sidecar.life == p.life);
        if let Some(value) = self.sidecars[who].memory.lock().get(&number) {
            // Who was told of a purge once takes it for known, though it was lost with what came after it.
            let missed = !weather.rewinds && self.purged(number, value).any(alive);
            assert!(!missed, "seed {seed}: in memory though purged, {weather:?}");
        }
        let stored = self.server.lock().values.get(&number).copied();
        let Some(value) = stored else { return };
        if self.standing(who, number, &value) == Standing::Good {
            let settled = |p: &Asked| self.server.lock().settled.contains_key(&p.id);
            let known = |p: &Asked| alive(p) || (!weather.rewinds && settled(p));
            let missed = self.purged(number, &value).any(known);
            assert!(!missed, "seed {seed}: in Redis though purged, {weather:?}");
        }
    }
}

fn forget(memory: &Memory, purge: &Purge) {
    memory.lock().retain(|number, _| !purge.means(&key(*number), &tags(*number)));
}

#[test]
fn what_was_purged_is_never_served_again_whatever_redis_loses() {
    (0..4_000).for_each(|seed| World::new(seed).run());
}
