//! The engine in real time: submits, aborts and delivers tokens as the clock passes.
//!
//! One mutex holds the engine and the receivers of its tokens; one task sleeps until the step in progress ends. Virtual
//! time is real time since the start, multiplied by `speed`.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, mpsc};
use tokio::time::Instant;

use super::engine::{Engine, Event, Job, JobId, Load, Parameters, Refusal, What};
use super::telemetry::{Extra, Finish, Telemetry};

/// A token of an answer, delivered when it is due.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Token {
    /// From 1.
    pub(crate) index: u64,
    pub(crate) last: bool,
    /// When the engine made it.
    pub(crate) made: Instant,
}

/// A live engine.
pub(crate) struct Pace {
    epoch: Instant,
    speed: f64,
    inner: Mutex<Inner>,
    changed: Notify,
}

struct Inner {
    engine: Engine,
    jobs: HashMap<JobId, Delivery>,
    telemetry: Telemetry,
}

struct Delivery {
    tokens: mpsc::UnboundedSender<Token>,
    finish: Finish,
    submitted: Duration,
    admitted: Option<Duration>,
    first: Duration,
    latest: Duration,
}

/// A place in the engine; dropping it gives the place back at once.
pub(crate) struct Ticket {
    pace: Arc<Pace>,
    job: JobId,
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.pace.abort(self.job);
    }
}

impl Pace {
    pub(crate) fn new(parameters: Parameters, speed: f64) -> Arc<Self> {
        let inner = Inner {
            engine: Engine::new(parameters),
            jobs: HashMap::new(),
            telemetry: Telemetry::new(),
        };
        Arc::new(Self {
            epoch: Instant::now(),
            speed,
            inner: Mutex::new(inner),
            changed: Notify::new(),
        })
    }

    /// Lets time pass for ever. `notice` is called whenever something happened.
    pub(crate) async fn run(&self, notice: impl Fn()) {
        loop {
            let due = self.lock().engine.next_event().map(|at| self.real(at));
            let step = async {
                match due {
                    Some(due) => tokio::time::sleep_until(due).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = step => {}
                () = self.changed.notified() => {}
            }
            self.catch_up(&mut self.lock());
            notice();
        }
    }

    /// Puts a request in the queue. Its tokens come through the receiver for as long as the ticket lives.
    pub(crate) fn submit(
        self: &Arc<Self>,
        job: Job,
        finish: Finish,
    ) -> Result<(Ticket, mpsc::UnboundedReceiver<Token>), Refusal> {
        let mut inner = self.lock();
        let now = self.catch_up(&mut inner);
        let prompt = job.prompt;
        let id = inner.engine.submit(job).inspect_err(|_| inner.telemetry.rejected())?;
        let (tokens, receiver) = mpsc::unbounded_channel();
        let delivery =
            Delivery { tokens, finish, submitted: now, admitted: None, first: now, latest: now };
        inner.jobs.insert(id, delivery);
        inner.telemetry.prompt_tokens += prompt;
        self.catch_up(&mut inner);
        drop(inner);
        self.changed.notify_one();
        Ok((Ticket { pace: Arc::clone(self), job: id }, receiver))
    }

    pub(crate) fn load(&self) -> Load {
        self.lock().engine.load()
    }

    pub(crate) fn generated_tokens(&self) -> u64 {
        self.lock().telemetry.generated_tokens
    }

    pub(crate) fn set_slowdown(&self, factor: f64) {
        self.lock().engine.set_slowdown(factor);
    }

    pub(crate) fn metrics(&self, model: &str, extra: &Extra) -> String {
        let inner = self.lock();
        let engine = &inner.engine;
        inner.telemetry.page(model, engine, extra)
    }

    fn abort(&self, job: JobId) {
        let mut inner = self.lock();
        self.catch_up(&mut inner);
        if inner.engine.abort(job) {
            inner.telemetry.aborted();
        }
        inner.jobs.remove(&job);
        drop(inner);
        self.changed.notify_one();
    }

    fn catch_up(&self, inner: &mut Inner) -> Duration {
        let now = self.epoch.elapsed().mul_f64(self.speed);
        for event in inner.engine.advance(now) {
            self.deliver(inner, &event);
        }
        now
    }

    fn deliver(&self, inner: &mut Inner, event: &Event) {
        let telemetry = &mut inner.telemetry;
        match event.what {
            What::Step { prefill, decode } => telemetry.step(prefill + decode),
            What::Preempted(_) => telemetry.preemptions += 1,
            What::Admitted(job) => {
                if let Some(job) = inner.jobs.get_mut(&job).filter(|job| job.admitted.is_none()) {
                    job.admitted = Some(event.at);
                    telemetry.queued(self.span(job.submitted, event.at));
                }
            }
            What::Token { job, index, last } => {
                telemetry.generated_tokens += 1;
                if let Some(delivery) = inner.jobs.get_mut(&job) {
                    self.measure(telemetry, delivery, event.at, index, last);
                    let made = self.real(event.at);
                    // The receiver may have been dropped an instant before its ticket.
                    let _ = delivery.tokens.send(Token { index, last, made });
                }
                if last {
                    inner.jobs.remove(&job);
                }
            }
        }
    }

    fn measure(
        &self,
        to: &mut Telemetry,
        job: &mut Delivery,
        at: Duration,
        index: u64,
        last: bool,
    ) {
        if index == 1 {
            job.first = at;
            let admitted = job.admitted.unwrap_or(job.submitted);
            to.first_token(self.span(job.submitted, at), self.span(admitted, at));
        } else {
            to.next_token(self.span(job.latest, at));
        }
        job.latest = at;
        if last {
            to.finished(job.finish, self.span(job.submitted, at), self.span(job.first, at));
        }
    }

    fn span(&self, from: Duration, to: Duration) -> Duration {
        to.saturating_sub(from).div_f64(self.speed)
    }

    fn real(&self, at: Duration) -> Instant {
        self.epoch + at.div_f64(self.speed)
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
