//! The second tier of stored answers: a Redis, in which they outlive this proxy and are shared with others.
//!
//! A request must never be worse off for it. So the side of the requests ([`Redis`]) touches no socket: it puts a
//! question through a door of bounded width and waits no longer than the configured time; what is to be written it lays
//! on a pile of bounded size and goes. The other side ([`Redis::serve`]) is one task on the runtime for background work,
//! which holds the connections, and decides with a `breaker` whether Redis is asked at all: while it is not, requests do
//! not even ask.
//!
//! Values are sealed in an `envelope` and believed only when everything about it is right. Purges reach every sidecar
//! through `marks`. `link` and `ledger` are what is said to Redis.
//!
//! What it leaves out: what an answer is, when it may be used, and the tier before this one.

mod breaker;
mod envelope;
mod ledger;
mod link;
mod marks;
mod work;

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use arc_swap::ArcSwap;
use bytes::Bytes;
use futures_util::{FutureExt, future::Shared};
use outrigger_config::validated as config;
use parking_lot::Mutex;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot},
    time::{Instant, timeout_at},
};

use super::{Answer, Key, Purge, store::unix_now};
use crate::telemetry::metrics::{RedisLookup, RedisMetrics, RedisWrite};
use envelope::Content;
use marks::{Marks, Seen, Standing, change};

/// Questions that may wait to be taken up. They wait for microseconds: more than this is a stall.
const DOOR: usize = 256;
/// What a write costs on the pile beside its bytes.
const OVERHEAD: usize = 256;
/// No answer lives longer here: purges must be remembered for so long. More than a week of being fresh and another of
/// being stale.
const LONGEST: Duration = Duration::from_secs(30 * 86_400);

/// The side of the requests: what they may ask and leave.
pub struct Redis {
    settings: config::Redis,
    metrics: Arc<RedisMetrics>,
    /// Whether it is asked at all.
    is_up: AtomicBool,
    marks: ArcSwap<Marks>,
    /// Held by a look at the purges: two of them must not meet.
    looking: tokio::sync::Mutex<()>,
    /// Whether the last look could tell Redis what was to be told.
    takes_purges: AtomicBool,
    /// What is asked at this moment: others who want the same wait for the same.
    asked: Mutex<HashMap<Key, Reply>>,
    /// Bytes left on the pile of writes.
    room: Arc<Semaphore>,
    questions: mpsc::Sender<Question>,
    writes: mpsc::UnboundedSender<Write>,
    errands: mpsc::UnboundedSender<Errand>,
    /// The other ends, until they are served.
    jobs: Mutex<Option<Jobs>>,
}

/// What comes of a question, for all who ask it.
type Reply = Shared<oneshot::Receiver<Found>>;

/// An answer from Redis.
pub struct Fetched<'a> {
    /// What it says.
    pub answer: Answer,
    /// The bytes that it was read from.
    pub record: Bytes,
    /// When its time is over, as Unix time.
    pub expires: Duration,
    /// Up to where its writer knew what was purged.
    seen: Seen,
    turn: Option<Turn<'a>>,
}

/// Until it is dropped, others who ask for the same get the same.
struct Turn<'a> {
    redis: &'a Redis,
    key: Key,
}

/// What the serving side takes.
struct Jobs {
    questions: mpsc::Receiver<Question>,
    writes: mpsc::UnboundedReceiver<Write>,
    errands: mpsc::UnboundedReceiver<Errand>,
}

/// Somebody wants the answer of a key.
struct Question {
    key: Key,
    /// Nobody waits for it any longer then.
    until: Instant,
    reply: oneshot::Sender<Found>,
}

/// What was found.
#[derive(Clone)]
enum Found {
    Content(Content),
    Nothing,
    /// Something that is not believed.
    Distrusted,
    /// It did not come in time.
    Late,
    /// Redis did not answer, or not with a value.
    Failed,
}

/// An answer to be written.
struct Write {
    key: Key,
    content: Content,
    _place: Place,
}

/// Its place on the pile, given back by its drop.
struct Place {
    metrics: Arc<RedisMetrics>,
    _room: OwnedSemaphorePermit,
}

/// Something to be done beside that.
enum Errand {
    /// Take a value away.
    Forget(Key),
    /// Tell Redis what was purged here, and look what others have purged.
    Look,
}

impl Redis {
    /// Nothing is connected before [`Redis::serve`] runs.
    #[must_use]
    pub fn new(settings: config::Redis, metrics: Arc<RedisMetrics>) -> Self {
        let (questions, asked) = mpsc::channel(DOOR);
        let (writes, to_write) = mpsc::unbounded_channel();
        let (errands, to_do) = mpsc::unbounded_channel();
        let room = usize::try_from(settings.queue).unwrap_or(usize::MAX);
        Redis {
            room: Arc::new(Semaphore::new(room.min(Semaphore::MAX_PERMITS))),
            settings,
            metrics,
            is_up: AtomicBool::new(false),
            marks: ArcSwap::default(),
            looking: tokio::sync::Mutex::default(),
            takes_purges: AtomicBool::new(true),
            asked: Mutex::default(),
            questions,
            writes,
            errands,
            jobs: Mutex::new(Some(Jobs { questions: asked, writes: to_write, errands: to_do })),
        }
    }

    /// What it was made of.
    #[must_use]
    pub fn settings(&self) -> &config::Redis {
        &self.settings
    }

    /// The answer of a key that `believe` finds to be one, if it is there, its time is not over and it was not purged;
    /// after the configured time at the latest. What is there and not believed is taken away. Redis is asked once for all
    /// who want the same at the same time.
    pub async fn fetch(
        &self,
        key: &Key,
        believe: impl FnOnce(&Bytes) -> Option<Answer>,
    ) -> Option<Fetched<'_>> {
        if !self.is_up.load(Relaxed) {
            self.metrics.looked_up(RedisLookup::Down);
            return None;
        }
        let begun = Instant::now();
        let found = self.ask(key, begun + self.settings.timeout).await;
        self.metrics.latency.observe(begun.elapsed());
        match found.and_then(|(content, turn)| self.believed(key, content, turn, believe)) {
            Ok(fetched) => {
                self.metrics.looked_up(RedisLookup::Hit);
                Some(fetched)
            }
            Err(why) => {
                self.metrics.looked_up(why);
                None
            }
        }
    }

    async fn ask(
        &self,
        key: &Key,
        until: Instant,
    ) -> Result<(Content, Option<Turn<'_>>), RedisLookup> {
        let (reply, turn) = self.join(key, until).ok_or(RedisLookup::Busy)?;
        match timeout_at(until, reply).await {
            Ok(Ok(Found::Content(content))) => Ok((content, turn)),
            Ok(Ok(Found::Nothing)) => Err(RedisLookup::Miss),
            Ok(Ok(Found::Distrusted)) => Err(RedisLookup::Distrusted),
            Ok(Ok(Found::Late)) | Err(_) => Err(RedisLookup::Timeout),
            // The other side hangs up on everybody when Redis has gone.
            Ok(Ok(Found::Failed) | Err(_)) => Err(RedisLookup::Error),
        }
    }

    /// Waits with those who ask for the same, or asks; not if too many are asking.
    fn join(&self, key: &Key, until: Instant) -> Option<(Reply, Option<Turn<'_>>)> {
        let mut asked = self.asked.lock();
        if let Some(theirs) = asked.get(key) {
            return Some((theirs.clone(), None));
        }
        let (reply, answer) = oneshot::channel();
        self.questions.try_send(Question { key: *key, until, reply }).ok()?;
        let answer = answer.shared();
        asked.insert(*key, answer.clone());
        Some((answer, Some(Turn { redis: self, key: *key })))
    }

    fn believed<'a>(
        &self,
        key: &Key,
        content: Content,
        turn: Option<Turn<'a>>,
        believe: impl FnOnce(&Bytes) -> Option<Answer>,
    ) -> Result<Fetched<'a>, RedisLookup> {
        let Content { record, seen, expires } = content;
        if expires <= unix_now() {
            return Err(RedisLookup::Miss);
        }
        let Some(answer) = believe(&record) else {
            self.forget(key);
            return Err(RedisLookup::Distrusted);
        };
        match self.marks.load().judge(key, &answer.tags, seen) {
            Standing::Good => Ok(Fetched { answer, record, expires, seen, turn }),
            Standing::Purged => {
                self.forget(key);
                Err(RedisLookup::Purged)
            }
            // It may be of an epoch that begins: whoever writes it anew takes it away.
            Standing::Unknown => Err(RedisLookup::Purged),
        }
    }

    /// Whether what was fetched has still not been purged. To be asked again by whoever keeps it, after it is kept: the
    /// news of a purge may have come in between.
    pub fn is_good(&self, key: &Key, fetched: &Fetched<'_>) -> bool {
        self.marks.load().judge(key, &fetched.answer.tags, fetched.seen) == Standing::Good
    }

    /// Writes a record when there is time; it is lost where there is no room for it on the pile. `expires` is in Unix
    /// time.
    pub fn store(&self, key: &Key, record: Bytes, expires: Duration) {
        if record.len() as u64 > self.settings.max {
            return self.metrics.wrote(RedisWrite::TooLong);
        }
        let weight = u32::try_from(record.len() + OVERHEAD).unwrap_or(u32::MAX);
        let Ok(room) = Arc::clone(&self.room).try_acquire_many_owned(weight) else {
            return self.metrics.wrote(RedisWrite::Dropped);
        };
        self.metrics.queue.inc();
        let place = Place { metrics: Arc::clone(&self.metrics), _room: room };
        let seen = self.marks.load().seen();
        let write = Write { key: *key, content: Content { record, seen, expires }, _place: place };
        // The receiver is gone only when the process ends.
        let _ = self.writes.send(write);
    }

    /// Takes a record away when there is time.
    fn forget(&self, key: &Key) {
        let _ = self.errands.send(Errand::Forget(*key));
    }

    /// Purges: here at once, and everywhere else within about a second, or as soon as Redis answers again. Says whether it
    /// answers now.
    pub fn purge(&self, purge: &Purge) -> bool {
        let id = rand::random();
        change(&self.marks, |marks| marks.ask(purge.clone(), id));
        let _ = self.errands.send(Errand::Look);
        self.is_up.load(Relaxed)
    }
}

impl Fetched<'_> {
    /// Whether it was asked for by this one, and not got along with others.
    #[must_use]
    pub fn is_first(&self) -> bool {
        self.turn.is_some()
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.redis.asked.lock().remove(&self.key);
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.metrics.queue.dec();
    }
}
