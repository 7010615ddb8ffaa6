//! The scheduler of a simulated model server: continuous batching, without a clock and without sockets.
//!
//! Decides which requests run in a step, how long that step takes, and which tokens it yields. It runs in steps, as real
//! engines do: every running request that has read its prompt decodes one token; what is left of the step's prefill
//! budget goes to prompts, first come first served; new requests are let in while there is room in the batch and in the
//! KV cache. When the cache is full the youngest request is put back and starts over later.
//!
//! The caller says what time it is, so the same type serves the simulator (real time, scaled) and simulations that run
//! faster than real time. Not modelled: prefix caching, speculative decoding, several ranks, batch-size effects on
//! prefill.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use super::random::Random;

/// How fast the engine is and how much it holds. All times are virtual.
#[derive(Clone, Debug)]
pub struct Parameters {
    /// Prompt tokens read per second; above 0.
    pub prefill_rate: f64,
    /// Most prompt tokens read in one step; at least 1.
    pub prefill_chunk: u64,
    /// Time of a step that decodes, before what each request adds.
    pub step_base: Duration,
    /// Time that every decoding request adds to a step.
    pub step_per_request: Duration,
    /// Most requests in the batch; at least 1.
    pub max_running: usize,
    /// Most requests waiting; more are refused.
    pub max_waiting: usize,
    /// Capacity of the KV cache in tokens.
    pub kv_tokens: u64,
    /// Tokens per KV block; at least 1.
    pub kv_block: u64,
    /// Every step takes this many times longer; above 0.
    pub slowdown: f64,
    /// A step takes up to this share longer or shorter, at random; 0.0 to below 1.0.
    pub jitter: f64,
    /// Seed of the jitter.
    pub seed: u64,
}

impl Default for Parameters {
    fn default() -> Self {
        Self {
            prefill_rate: 8000.0,
            prefill_chunk: 2048,
            step_base: Duration::from_micros(6000),
            step_per_request: Duration::from_micros(350),
            max_running: 256,
            max_waiting: usize::MAX,
            kv_tokens: 524_288,
            kv_block: 16,
            slowdown: 1.0,
            jitter: 0.0,
            seed: 0,
        }
    }
}

/// Names a submitted request; never reused by the same engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct JobId(u64);

/// What a request asks of the engine, in tokens; both are taken as at least 1.
#[derive(Clone, Copy, Debug)]
pub struct Job {
    /// Length of the prompt.
    pub prompt: u64,
    /// Length of the answer.
    pub answer: u64,
}

/// Why the engine does not take a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// Prompt and answer together can never fit the KV cache.
    TooLong,
    /// `max_waiting` requests wait already.
    QueueFull,
}

/// Something that happened in the engine, at a virtual time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// When.
    pub at: Duration,
    /// What.
    pub what: What,
}

/// The kinds of [`Event`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum What {
    /// A request entered the batch; again after it was preempted.
    Admitted(JobId),
    /// A request was put back at the head of the queue because the KV cache was full.
    Preempted(JobId),
    /// A request got its `index`-th token, counted from 1. After the `last` one it is gone.
    Token {
        /// The request.
        job: JobId,
        /// Which token of the answer, from 1.
        index: u64,
        /// Whether the answer is complete.
        last: bool,
    },
    /// A step ended that read `prefill` prompt tokens and decoded for `decode` requests.
    Step {
        /// Prompt tokens read.
        prefill: u64,
        /// Requests that decoded.
        decode: u64,
    },
}

/// How full the engine is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Load {
    /// Requests in the batch.
    pub running: usize,
    /// Requests that wait for a place.
    pub waiting: usize,
    /// KV blocks held by running requests.
    pub kv_blocks_used: u64,
    /// KV blocks in all.
    pub kv_blocks: u64,
}

impl Load {
    /// The share of the KV cache in use, 0.0 to 1.0.
    pub fn kv_usage(&self) -> f64 {
        if self.kv_blocks == 0 { 0.0 } else { self.kv_blocks_used as f64 / self.kv_blocks as f64 }
    }
}

#[derive(Debug)]
struct Running {
    ask: Job,
    /// Tokens whose KV entries must be computed before the next token can come.
    to_read: u64,
    read: u64,
    made: u64,
    blocks: u64,
}

impl Running {
    fn decodes(&self) -> bool {
        self.read == self.to_read
    }

    fn context(&self) -> u64 {
        self.ask.prompt + self.made
    }
}

#[derive(Debug, Default)]
struct Plan {
    prefill: Vec<(JobId, u64)>,
    decode: Vec<JobId>,
}

impl Plan {
    fn prefill_tokens(&self) -> u64 {
        self.prefill.iter().map(|(_, tokens)| tokens).sum()
    }

    fn is_empty(&self) -> bool {
        self.prefill.is_empty() && self.decode.is_empty()
    }
}

/// The engine. Times given to it must never run backwards.
#[derive(Debug)]
pub struct Engine {
    parameters: Parameters,
    random: Random,
    next_id: u64,
    jobs: BTreeMap<JobId, Running>,
    waiting: VecDeque<JobId>,
    running: Vec<JobId>,
    blocks_free: u64,
    step: Option<(Duration, Plan)>,
}

impl Engine {
    /// An idle engine.
    pub fn new(parameters: Parameters) -> Self {
        Self {
            random: Random::new(parameters.seed),
            next_id: 0,
            jobs: BTreeMap::new(),
            waiting: VecDeque::new(),
            running: Vec::new(),
            blocks_free: parameters.kv_tokens / parameters.kv_block,
            step: None,
            parameters,
        }
    }

    /// Puts a request at the end of the queue. Call [`Engine::advance`] with the same `now` before this, to take the
    /// events up to now, and after it, to let an idle engine start.
    ///
    /// # Errors
    /// When the request can never fit, or the queue is full.
    pub fn submit(&mut self, job: Job) -> Result<JobId, Refusal> {
        let ask = Job { prompt: job.prompt.max(1), answer: job.answer.max(1) };
        let blocks = self.parameters.kv_tokens / self.parameters.kv_block;
        if self.blocks_for(ask.prompt + ask.answer) > blocks {
            return Err(Refusal::TooLong);
        }
        if self.waiting.len() >= self.parameters.max_waiting {
            return Err(Refusal::QueueFull);
        }
        let id = JobId(self.next_id);
        self.next_id += 1;
        self.jobs.insert(id, Running { ask, to_read: ask.prompt, read: 0, made: 0, blocks: 0 });
        self.waiting.push_back(id);
        Ok(id)
    }

    /// Forgets a request and frees what it held, at once. False when it is not (or no longer) there.
    pub fn abort(&mut self, id: JobId) -> bool {
        let known = self.remove(id);
        self.waiting.retain(|other| *other != id);
        known
    }

    /// Lives through every step that ends at or before `now` and tells what happened, in order of time.
    pub fn advance(&mut self, now: Duration) -> Vec<Event> {
        let mut events = Vec::new();
        while let Some((at, plan)) = self.step.take_if(|(end, _)| *end <= now) {
            self.finish(at, &plan, &mut events);
            self.begin(at, &mut events);
        }
        if self.step.is_none() {
            self.begin(now, &mut events);
        }
        events
    }

    /// When the step in progress ends; none when the engine is idle.
    pub fn next_event(&self) -> Option<Duration> {
        self.step.as_ref().map(|(end, _)| *end)
    }

    /// How full the engine is now.
    pub fn load(&self) -> Load {
        let kv_blocks = self.parameters.kv_tokens / self.parameters.kv_block;
        Load {
            running: self.running.len(),
            waiting: self.waiting.len(),
            kv_blocks_used: kv_blocks - self.blocks_free,
            kv_blocks,
        }
    }

    /// Makes every later step take `factor` times its normal time; above 0.
    pub fn set_slowdown(&mut self, factor: f64) {
        self.parameters.slowdown = factor;
    }

    /// What it was made with, and the slowdown in force.
    pub fn parameters(&self) -> &Parameters {
        &self.parameters
    }

    fn begin(&mut self, at: Duration, events: &mut Vec<Event>) {
        let mut plan = Plan::default();
        let preempted = self.plan_decodes(at, &mut plan, events);
        self.plan_prefills(&mut plan);
        if !preempted || plan.is_empty() {
            self.admit(at, &mut plan, events);
        }
        if !plan.is_empty() {
            self.step = Some((at + self.step_time(&plan), plan));
        }
    }

    /// Gives every decoding request room for one more token; true when one had to be put back for it.
    fn plan_decodes(&mut self, at: Duration, plan: &mut Plan, events: &mut Vec<Event>) -> bool {
        let before = events.len();
        let mut index = 0;
        while let Some(id) = self.running.get(index).copied() {
            index += 1;
            let context = self.jobs.get(&id).filter(|job| job.decodes()).map(Running::context);
            if context.is_some_and(|tokens| self.grow(id, tokens, at, events)) {
                plan.decode.push(id);
            }
        }
        events.len() > before
    }

    /// Takes blocks until `id` holds enough for `tokens`, from the youngest requests when none are free. False when `id`
    /// itself had to go.
    fn grow(&mut self, id: JobId, tokens: u64, at: Duration, events: &mut Vec<Event>) -> bool {
        let wanted = self.blocks_for(tokens);
        while let Some(job) = self.jobs.get_mut(&id) {
            let missing = wanted.saturating_sub(job.blocks);
            if missing <= self.blocks_free {
                job.blocks += missing;
                self.blocks_free -= missing;
                return true;
            }
            if self.preempt_youngest(at, events).is_none_or(|victim| victim == id) {
                return false;
            }
        }
        false
    }

    fn preempt_youngest(&mut self, at: Duration, events: &mut Vec<Event>) -> Option<JobId> {
        let victim = self.running.pop()?;
        if let Some(job) = self.jobs.get_mut(&victim) {
            self.blocks_free += std::mem::take(&mut job.blocks);
            job.to_read = job.context();
            job.read = 0;
        }
        self.waiting.push_front(victim);
        events.push(Event { at, what: What::Preempted(victim) });
        Some(victim)
    }

    fn plan_prefills(&self, plan: &mut Plan) {
        let mut budget = self.parameters.prefill_chunk;
        for (id, job) in self.running.iter().filter_map(|id| Some((*id, self.jobs.get(id)?))) {
            let tokens = budget.min(job.to_read - job.read);
            if tokens > 0 {
                plan.prefill.push((id, tokens));
                budget -= tokens;
            }
        }
    }

    fn admit(&mut self, at: Duration, plan: &mut Plan, events: &mut Vec<Event>) {
        let mut budget = self.parameters.prefill_chunk.saturating_sub(plan.prefill_tokens());
        while budget > 0 && self.running.len() < self.parameters.max_running {
            let Some(id) = self.waiting.front().copied() else { return };
            let (to_read, blocks) = self.jobs.get(&id).map_or((0, 0), |job| {
                (job.to_read, job.to_read.div_ceil(self.parameters.kv_block))
            });
            if blocks > self.blocks_free {
                return;
            }
            self.blocks_free -= blocks;
            if let Some(job) = self.jobs.get_mut(&id) {
                job.blocks = blocks;
            }
            self.waiting.pop_front();
            self.running.push(id);
            events.push(Event { at, what: What::Admitted(id) });
            plan.prefill.push((id, budget.min(to_read)));
            budget -= budget.min(to_read);
        }
    }

    fn step_time(&mut self, plan: &Plan) -> Duration {
        let prefill = plan.prefill_tokens() as f64 / self.parameters.prefill_rate;
        let decode = match plan.decode.len() {
            0 => Duration::ZERO,
            n => self.parameters.step_base + self.parameters.step_per_request.mul_f64(n as f64),
        };
        let jitter = 1.0 + self.parameters.jitter * (2.0 * self.random.unit() - 1.0);
        Duration::from_secs_f64(
            (prefill + decode.as_secs_f64()) * jitter * self.parameters.slowdown,
        )
    }

    fn finish(&mut self, at: Duration, plan: &Plan, events: &mut Vec<Event>) {
        let (prefill, decode) = (plan.prefill_tokens(), plan.decode.len() as u64);
        events.push(Event { at, what: What::Step { prefill, decode } });
        for (id, tokens) in &plan.prefill {
            let Some(job) = self.jobs.get_mut(id) else { continue };
            job.read += tokens;
            if job.decodes() {
                self.emit(at, *id, events);
            }
        }
        for id in &plan.decode {
            self.emit(at, *id, events);
        }
    }

    fn emit(&mut self, at: Duration, id: JobId, events: &mut Vec<Event>) {
        let Some(job) = self.jobs.get_mut(&id) else { return };
        job.made += 1;
        let (index, last) = (job.made, job.made == job.ask.answer);
        events.push(Event { at, what: What::Token { job: id, index, last } });
        if last {
            self.remove(id);
        }
    }

    fn remove(&mut self, id: JobId) -> bool {
        let Some(job) = self.jobs.remove(&id) else { return false };
        self.blocks_free += job.blocks;
        self.running.retain(|other| *other != id);
        true
    }

    fn blocks_for(&self, tokens: u64) -> u64 {
        tokens.div_ceil(self.parameters.kv_block)
    }
}

#[cfg(test)]
mod tests;
