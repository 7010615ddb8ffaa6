//! Many requests at once, and what became of them.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};

use tokio::task::JoinSet;

use super::call::{Answer, Call, Client, Protocol};

/// How many requests, and how many of them at a time.
#[derive(Clone, Copy, Debug)]
pub struct Load {
    workers: usize,
    requests: usize,
    protocol: Protocol,
    keep_alive: bool,
}

/// What became of one request.
#[derive(Clone, Debug)]
pub struct Sample {
    /// Which request, from 0.
    pub index: usize,
    /// When it was begun, from the start of the load.
    pub began: Duration,
    /// From its beginning to the end of its answer or its failure.
    pub took: Duration,
    /// The answer, or why there is none.
    pub answer: Result<Answer, String>,
}

/// What became of all of them, in order of their ends.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// One for each request.
    pub samples: Vec<Sample>,
    /// From the first beginning to the last end.
    pub took: Duration,
}

impl Load {
    /// So many requests in all, one at a time.
    pub fn of(requests: usize) -> Self {
        Self { workers: 1, requests, protocol: Protocol::Http1, keep_alive: true }
    }

    /// So many at a time, each on a connection of its own that is kept between requests.
    #[must_use]
    pub fn at_once(self, workers: usize) -> Self {
        Self { workers, ..self }
    }

    /// Speaks this protocol.
    #[must_use]
    pub fn over(self, protocol: Protocol) -> Self {
        Self { protocol, ..self }
    }

    /// A new connection for every request.
    #[must_use]
    pub fn without_keep_alive(self) -> Self {
        Self { keep_alive: false, ..self }
    }

    /// Sends them; `call` makes the request of each index.
    ///
    /// # Panics
    /// When a worker does.
    pub async fn run(
        self,
        to: SocketAddr,
        call: impl Fn(usize) -> Call + Send + Sync + 'static,
    ) -> Report {
        let (next, call, start) = (Arc::new(AtomicUsize::new(0)), Arc::new(call), Instant::now());
        let mut workers = JoinSet::new();
        for _ in 0..self.workers {
            let (next, call) = (Arc::clone(&next), Arc::clone(&call));
            workers.spawn(async move { self.work(to, start, &next, &*call).await });
        }
        let mut samples: Vec<_> = workers.join_all().await.into_iter().flatten().collect();
        samples.sort_by_key(|sample| sample.began + sample.took);
        Report { samples, took: start.elapsed() }
    }

    async fn work(
        self,
        to: SocketAddr,
        start: Instant,
        next: &AtomicUsize,
        call: &(impl Fn(usize) -> Call + Sync),
    ) -> Vec<Sample> {
        let (mut samples, mut client) = (Vec::new(), None);
        loop {
            let index = next.fetch_add(1, Relaxed);
            if index >= self.requests {
                return samples;
            }
            let began = Instant::now();
            let answer = self.send(to, &mut client, call(index)).await;
            let took = began.elapsed();
            samples.push(Sample { index, began: began.duration_since(start), took, answer });
        }
    }

    async fn send(
        self,
        to: SocketAddr,
        kept: &mut Option<Client>,
        call: Call,
    ) -> Result<Answer, String> {
        let mut client = match kept.take().filter(|client| !client.is_closed()) {
            Some(client) => client,
            None => Client::try_connect(to, self.protocol).await?,
        };
        let answer = client.send(call).await?;
        *kept = Some(client).filter(|_| self.keep_alive && answer.cut.is_none());
        Ok(answer)
    }
}

impl Report {
    /// The requests that were answered to the end with a status of 2xx.
    pub fn ok(&self) -> usize {
        let fine = |answer: &Answer| (200..300).contains(&answer.status) && answer.cut.is_none();
        self.samples.iter().filter(|sample| sample.answer.as_ref().is_ok_and(fine)).count()
    }

    /// The requests that got this status.
    pub fn status(&self, status: u16) -> usize {
        let same = |answer: &Answer| answer.status == status;
        self.samples.iter().filter(|sample| sample.answer.as_ref().is_ok_and(same)).count()
    }

    /// How many requests each simulator answered.
    pub fn by_name(&self) -> BTreeMap<String, usize> {
        let mut names = BTreeMap::new();
        for answer in self.samples.iter().filter_map(|sample| sample.answer.as_ref().ok()) {
            *names.entry(answer.by().to_owned()).or_default() += 1;
        }
        names
    }

    /// How often each thing happened: a status, `cut`, or the text of a failure. For messages of failed assertions.
    pub fn outcomes(&self) -> BTreeMap<String, usize> {
        let mut outcomes = BTreeMap::new();
        for sample in &self.samples {
            let outcome = match &sample.answer {
                Ok(answer) if answer.cut.is_some() => "cut".to_owned(),
                Ok(answer) => answer.status.to_string(),
                Err(why) => why.clone(),
            };
            *outcomes.entry(outcome).or_default() += 1;
        }
        outcomes
    }

    /// The time within which the share `q` (0.0 to 1.0) of the requests ended; zero when there were none.
    pub fn quantile(&self, q: f64) -> Duration {
        let mut times: Vec<_> = self.samples.iter().map(|sample| sample.took).collect();
        times.sort_unstable();
        let rank = (q * times.len() as f64).ceil() as usize;
        times.get(rank.saturating_sub(1)).copied().unwrap_or_default()
    }
}
