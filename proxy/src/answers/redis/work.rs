//! The serving side: one task that keeps the connections, asks, writes and purges, and leaves Redis alone when that is
//! better.
//!
//! Two connections: a long answer on its way to Redis must not stand before a short question. When Redis is left alone
//! both are closed, whatever was under way ends without an answer, and what waits to be written goes on waiting.

use std::{pin::pin, sync::atomic::Ordering::Relaxed, time::Duration};

use futures_util::{StreamExt, stream::FuturesUnordered};
use rand::{SeedableRng, rngs::SmallRng};
use redis::RedisError;
use tokio::{
    task::spawn_blocking,
    time::{Interval, MissedTickBehavior, interval, sleep, timeout, timeout_at},
};

use super::{
    Errand, Found, Jobs, LONGEST, Question, Redis, Write,
    breaker::Breaker,
    envelope::{self, HEAD},
    link::{Link, Trouble, is_wrong_type},
    marks,
};
use crate::{
    answers::{Key, Purge, store::unix_now},
    telemetry::metrics::{RedisFailure, RedisWrite},
};

/// Questions under way at once: what a connection holds of them is bounded, like all else.
const ASKING: usize = 1024;
/// Writes under way at once: enough to hide the way to Redis and back, few enough to leave it to the questions.
const WRITING: usize = 4;
/// How long a write, a purge or a look at the purges may take. No request waits for it.
const PATIENCE: Duration = Duration::from_secs(1);
/// How often the purges of others are looked for: how late a purge may be noticed.
const LOOK: Duration = Duration::from_secs(1);

/// Open connections.
struct Links {
    asking: Link,
    writing: Link,
}

/// What was said last, so that the log tells of changes only.
#[derive(Default)]
struct Told {
    /// Why Redis is left alone.
    trouble: Option<RedisFailure>,
    /// It answers, but takes no writes.
    refuses: bool,
}

impl Redis {
    /// Serves for ever, once: whoever comes later has nothing to do. `purged` is told what others have purged.
    pub async fn serve(&self, purged: impl Fn(&Purge)) {
        let Some(mut jobs) = self.jobs.lock().take() else { return };
        // It may have the handle of one before.
        self.metrics.up.set(0);
        let (mut breaker, mut told) = (Breaker::default(), Told::default());
        let mut rng = SmallRng::from_rng(&mut rand::rng());
        loop {
            let trouble = match self.connect(&purged).await {
                Ok(links) => {
                    self.rise(&mut told);
                    breaker.returned();
                    self.work(&links, &mut jobs, &mut breaker, &mut told, &purged).await
                }
                Err(trouble) => {
                    self.metrics.failed(trouble.kind);
                    trouble
                }
            };
            self.fall(&trouble, &mut told);
            jobs.rest(breaker.pause(&mut rng)).await;
        }
    }

    /// Opens connections and takes up what was purged meanwhile: before that nothing is believed.
    async fn connect(&self, purged: &impl Fn(&Purge)) -> Result<Links, Trouble> {
        let asking = Link::open(&self.settings).await?;
        let links = Links { asking, writing: Link::open(&self.settings).await? };
        self.look(links.writing.clone(), purged).await?;
        Ok(links)
    }

    fn rise(&self, told: &mut Told) {
        self.is_up.store(true, Relaxed);
        self.metrics.up.set(1);
        told.trouble = None;
        tracing::info!("stored answers: redis {} answers", self.place());
    }

    /// Says why, unless that was said last time: it is tried again and again.
    fn fall(&self, trouble: &Trouble, told: &mut Told) {
        self.is_up.store(false, Relaxed);
        self.metrics.up.set(0);
        if told.trouble.replace(trouble.kind) != Some(trouble.kind) {
            let (place, reason) = (self.place(), &trouble.reason);
            tracing::warn!("stored answers: redis {place} is left alone: {reason}");
        }
    }

    fn place(&self) -> String {
        let nodes: Vec<_> = self.settings.nodes.iter().map(ToString::to_string).collect();
        nodes.join(", ")
    }

    /// Works until Redis is to be left alone, and says why.
    async fn work(
        &self,
        links: &Links,
        jobs: &mut Jobs,
        breaker: &mut Breaker,
        told: &mut Told,
        purged: &impl Fn(&Purge),
    ) -> Trouble {
        let mut asking = FuturesUnordered::new();
        let mut writing = FuturesUnordered::new();
        let mut errands = FuturesUnordered::new();
        let mut looks = looks();
        loop {
            let result = tokio::select! {
                Some(question) = jobs.questions.recv(), if asking.len() < ASKING => {
                    asking.push(self.answer(links.asking.clone(), question));
                    continue;
                }
                Some(write) = jobs.writes.recv(), if writing.len() < WRITING => {
                    writing.push(self.write(links.writing.clone(), write));
                    continue;
                }
                Some(errand) = jobs.errands.recv(), if errands.len() < WRITING => {
                    errands.push(self.run(links.writing.clone(), errand, purged));
                    continue;
                }
                _ = looks.tick(), if errands.is_empty() => {
                    errands.push(self.run(links.writing.clone(), Errand::Look, purged));
                    continue;
                }
                Some(result) = asking.next() => result,
                Some(result) = writing.next() => self.unless_refused(result, told),
                Some(result) = errands.next() => result,
            };
            let Err(trouble) = result else {
                breaker.succeeded();
                continue;
            };
            self.metrics.failed(trouble.kind);
            if trouble.kind == RedisFailure::Lost || breaker.failed() {
                (0..writing.len()).for_each(|_| self.metrics.wrote(RedisWrite::Failed));
                return trouble;
            }
        }
    }

    /// Answers one question, in time or not at all.
    async fn answer(&self, mut link: Link, question: Question) -> Result<(), Trouble> {
        let Question { key, until, reply } = question;
        let (found, result) = match timeout_at(until, link.value(&key, self.max() + HEAD)).await {
            Ok(Ok(value)) => (self.open(&key, &value), Ok(())),
            Ok(Err(error)) if is_wrong_type(&error) => (self.reject(&key), Ok(())),
            Ok(Err(error)) => (Found::Failed, Err(Trouble::from(&error))),
            Err(_) => (Found::Late, Err(Trouble::late("an answer", self.settings.timeout))),
        };
        // Whoever asked may have gone.
        let _ = reply.send(found);
        result
    }

    fn max(&self) -> usize {
        usize::try_from(self.settings.max).unwrap_or(usize::MAX - HEAD)
    }

    fn open(&self, key: &Key, value: &[u8]) -> Found {
        if value.is_empty() {
            return Found::Nothing;
        }
        self.metrics.read_bytes.add(value.len() as u64);
        match envelope::open(key, value, self.max()) {
            Ok(content) => Found::Content(content),
            Err(distrust) => {
                tracing::debug!(?distrust, "a value in redis is not believed");
                self.reject(key)
            }
        }
    }

    /// What is not believed is taken away, so that a good one can take its place.
    fn reject(&self, key: &Key) -> Found {
        self.forget(key);
        Found::Distrusted
    }

    /// Writes one answer.
    async fn write(&self, mut link: Link, write: Write) -> Result<(), Trouble> {
        let Write { key, content, _place } = write;
        let left = content.expires.checked_sub(unix_now()).filter(|left| !left.is_zero());
        // Nobody would believe one of another epoch.
        let left = left.filter(|_| content.seen.epoch == self.marks.load().seen().epoch);
        let Some(ttl) = left else {
            self.metrics.wrote(RedisWrite::Dropped);
            return Ok(());
        };
        let compress =
            self.settings.compress.map(|least| usize::try_from(least).unwrap_or(usize::MAX));
        // Away from the questions: a megabyte takes milliseconds to compress.
        let sealing = spawn_blocking(move || envelope::seal(&key, &content, compress));
        let Ok(value) = sealing.await else {
            self.metrics.wrote(RedisWrite::Failed);
            return Ok(());
        };
        let result = within("a write", link.store(&key, &value, ttl.min(LONGEST))).await;
        match &result {
            Ok(()) => {
                self.metrics.wrote(RedisWrite::Stored);
                self.metrics.written_bytes.add(value.len() as u64);
            }
            Err(_) => self.metrics.wrote(RedisWrite::Failed),
        }
        result
    }

    /// A Redis that takes no writes (it is full, or a replica) still answers questions: it is not left alone for that,
    /// and it is said once.
    fn unless_refused(&self, result: Result<(), Trouble>, told: &mut Told) -> Result<(), Trouble> {
        match &result {
            Err(trouble) if trouble.kind == RedisFailure::Refused => {
                self.metrics.failed(trouble.kind);
                if !std::mem::replace(&mut told.refuses, true) {
                    let (place, reason) = (self.place(), &trouble.reason);
                    tracing::warn!("stored answers: redis {place} takes no writes: {reason}");
                }
                Ok(())
            }
            Err(_) => result,
            Ok(()) => {
                if std::mem::take(&mut told.refuses) {
                    tracing::info!("stored answers: redis {} takes writes again", self.place());
                }
                result
            }
        }
    }

    async fn run(
        &self,
        mut link: Link,
        errand: Errand,
        purged: &impl Fn(&Purge),
    ) -> Result<(), Trouble> {
        match errand {
            Errand::Forget(key) => within("a deletion", link.forget(&key)).await,
            Errand::Look => self.look(link, purged).await,
        }
    }

    /// Puts into Redis what was purged here, and takes up what others have purged.
    async fn look(&self, mut link: Link, purged: &impl Fn(&Purge)) -> Result<(), Trouble> {
        let _alone = self.looking.lock().await;
        let refused = marks::look(&self.marks, &mut link, purged, rand::random).await?;
        if let Some(trouble) = &refused {
            self.metrics.failed(trouble.kind);
        }
        let place = self.place();
        match (&refused, self.takes_purges.swap(refused.is_none(), Relaxed)) {
            (Some(Trouble { reason, .. }), true) => {
                tracing::warn!("stored answers: redis {place} takes no purges: {reason}");
            }
            (None, false) => tracing::info!("stored answers: redis {place} takes purges again"),
            _ => {}
        }
        Ok(())
    }
}

impl Jobs {
    /// Leaves Redis alone for so long: who got through the door before it was shut goes away with nothing.
    async fn rest(&mut self, pause: Duration) {
        let mut over = pin!(sleep(pause));
        loop {
            tokio::select! {
                () = &mut over => return,
                Some(question) = self.questions.recv() => drop(question),
            }
        }
    }
}

/// The first look was taken while connecting.
fn looks() -> Interval {
    let mut looks = interval(LOOK);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    looks.reset();
    looks
}

/// What Redis answers, unless it takes too long.
pub(super) async fn within<T>(
    what: &str,
    doing: impl Future<Output = Result<T, RedisError>>,
) -> Result<T, Trouble> {
    match timeout(PATIENCE, doing).await {
        Ok(result) => result.map_err(|error| Trouble::from(&error)),
        Err(_) => Err(Trouble::late(what, PATIENCE)),
    }
}
