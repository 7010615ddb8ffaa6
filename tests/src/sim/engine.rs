//! The scheduler of a simulated model server: continuous batching, without a clock and without sockets.
//!
//! Decides which requests run in a step, how long that step takes, and which tokens it yields. It runs in steps, as real
//! engines do: every running request that has read its prompt decodes one token; what is left of the step's prefill
//! budget goes to prompts, first come first served; new requests are let in while there is room in the batch and in the
//! KV cache. When the cache is full the youngest request is put back and starts over later. Blocks of prompts that say
//! what is in them ([`Job::blocks`]) stay in the cache until their room is needed, and are not read again.
//!
//! The caller says what time it is, so the same type serves the simulator (real time, scaled) and simulations that run
//! faster than real time. Not modelled: caching of answers, speculative decoding, several ranks, batch-size effects on
//! prefill.

use std::collections::VecDeque;
use std::time::Duration;

use self::cache::Cache;
use super::random::Random;

mod cache;

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

/// What a request asks of the engine.
#[derive(Clone, Debug, Default)]
pub struct Job {
    /// Length of the prompt in tokens; taken as at least 1.
    pub prompt: u64,
    /// Length of the answer in tokens; taken as at least 1.
    pub answer: u64,
    /// Names of the first full blocks of the prompt, `kv_block` tokens each. A name stands for all the text up to the
    /// end of its block, so that two prompts share a block only when they share everything before it. Blocks without a
    /// name are never found in the cache.
    pub blocks: Vec<u64>,
}

impl Job {
    /// A request that shares nothing with any other.
    pub const fn new(prompt: u64, answer: u64) -> Self {
        Self { prompt, answer, blocks: Vec::new() }
    }
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

/// How much of the prompts was found in the cache, in tokens since the start. As vLLM counts: at every admission.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reuse {
    /// Prompt tokens of all admitted requests.
    pub asked: u64,
    /// Those that were in the cache.
    pub found: u64,
}

/// What a request does in the step in progress.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Share {
    Nothing,
    Read(u64),
    Decode,
}

#[derive(Debug)]
struct Request {
    id: JobId,
    ask: Job,
    /// Tokens whose KV entries must be computed before the next token can come.
    to_read: u64,
    read: u64,
    made: u64,
    /// Blocks held, shared ones among them.
    blocks: u64,
    /// How many of them, from the first on, are in the cache under their name.
    named: usize,
    share: Share,
}

impl Request {
    fn decodes(&self) -> bool {
        self.read == self.to_read
    }

    fn context(&self) -> u64 {
        self.ask.prompt + self.made
    }
}

/// A step in progress.
#[derive(Clone, Copy, Debug)]
struct Step {
    ends: Duration,
    prefill: u64,
    decode: u64,
}

/// The engine. Times given to it must never run backwards.
#[derive(Debug)]
pub struct Engine {
    parameters: Parameters,
    random: Random,
    next_id: u64,
    waiting: VecDeque<Request>,
    /// In order of admission.
    running: Vec<Request>,
    cache: Cache,
    reuse: Reuse,
    step: Option<Step>,
}

impl Engine {
    /// An idle engine.
    pub fn new(parameters: Parameters) -> Self {
        Self {
            random: Random::new(parameters.seed),
            next_id: 0,
            waiting: VecDeque::new(),
            running: Vec::new(),
            cache: Cache::new(parameters.kv_tokens / parameters.kv_block),
            reuse: Reuse::default(),
            step: None,
            parameters,
        }
    }

    /// Puts a request at the end of the queue. Call [`Engine::advance`] with the same `now` before this, to take the
    /// events up to now, and after it, to let an idle engine start.
    ///
    /// # Errors
    /// When the request can never fit, or the queue is full.
    pub fn submit(&mut self, mut job: Job) -> Result<JobId, Refusal> {
        (job.prompt, job.answer) = (job.prompt.max(1), job.answer.max(1));
        job.blocks.truncate((job.prompt / self.parameters.kv_block) as usize);
        if self.blocks_for(job.prompt + job.answer) > self.cache.capacity() {
            return Err(Refusal::TooLong);
        }
        if self.waiting.len() >= self.parameters.max_waiting {
            return Err(Refusal::QueueFull);
        }
        let id = JobId(self.next_id);
        self.next_id += 1;
        self.waiting.push_back(Request {
            id,
            to_read: job.prompt,
            ask: job,
            read: 0,
            made: 0,
            blocks: 0,
            named: 0,
            share: Share::Nothing,
        });
        Ok(id)
    }

    /// Forgets a request and frees what it held, at once. False when it is not (or no longer) there.
    pub fn abort(&mut self, id: JobId) -> bool {
        if let Some(place) = self.running.iter().position(|request| request.id == id) {
            let request = self.running.remove(place);
            self.cache.free(&request.ask.blocks[..request.named], request.blocks);
            return true;
        }
        let before = self.waiting.len();
        self.waiting.retain(|request| request.id != id);
        self.waiting.len() < before
    }

    /// Lives through every step that ends at or before `now` and tells what happened, in order of time.
    pub fn advance(&mut self, now: Duration) -> Vec<Event> {
        let mut events = Vec::new();
        while let Some(step) = self.step.take_if(|step| step.ends <= now) {
            self.finish(step, &mut events);
            self.begin(step.ends, &mut events);
        }
        if self.step.is_none() {
            self.begin(now, &mut events);
        }
        events
    }

    /// When the step in progress ends; none when the engine is idle.
    pub fn next_event(&self) -> Option<Duration> {
        self.step.map(|step| step.ends)
    }

    /// How full the engine is now.
    pub fn load(&self) -> Load {
        Load {
            running: self.running.len(),
            waiting: self.waiting.len(),
            kv_blocks_used: self.cache.capacity() - self.cache.available(),
            kv_blocks: self.cache.capacity(),
        }
    }

    /// How much of the prompts it did not have to read.
    pub fn reuse(&self) -> Reuse {
        self.reuse
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
        let (decode, preempted) = self.plan_decodes(at, events);
        let mut prefill = self.plan_prefills();
        if !preempted || decode + prefill == 0 {
            prefill += self.admit(at, self.parameters.prefill_chunk - prefill, events);
        }
        if decode + prefill > 0 {
            let ends = at + self.step_time(prefill, decode);
            self.step = Some(Step { ends, prefill, decode });
        }
    }

    /// Gives every decoding request room for one more token. How many decode, and whether one had to be put back.
    fn plan_decodes(&mut self, at: Duration, events: &mut Vec<Event>) -> (u64, bool) {
        let before = events.len();
        let (mut index, mut planned) = (0, 0);
        while index < self.running.len() {
            if self.running[index].decodes() && self.grow(index, at, events) {
                self.running[index].share = Share::Decode;
                planned += 1;
            }
            index += 1;
        }
        (planned, events.len() > before)
    }

    /// Takes blocks until the request at `index` holds enough for its context, from the youngest when none are free.
    /// False when it had to go itself.
    fn grow(&mut self, index: usize, at: Duration, events: &mut Vec<Event>) -> bool {
        while let Some(request) = self.running.get(index) {
            let wanted = self.blocks_for(request.context());
            let missing = wanted.saturating_sub(request.blocks);
            if missing <= self.cache.available() {
                self.cache.take(missing);
                self.running[index].blocks += missing;
                return true;
            }
            self.preempt_youngest(at, events);
        }
        false
    }

    fn preempt_youngest(&mut self, at: Duration, events: &mut Vec<Event>) {
        let Some(mut victim) = self.running.pop() else { return };
        self.cache.free(&victim.ask.blocks[..victim.named], victim.blocks);
        (victim.blocks, victim.named) = (0, 0);
        (victim.read, victim.to_read) = (0, victim.context());
        events.push(Event { at, what: What::Preempted(victim.id) });
        self.waiting.push_front(victim);
    }

    fn plan_prefills(&mut self) -> u64 {
        let mut budget = self.parameters.prefill_chunk;
        for request in self.running.iter_mut().filter(|request| !request.decodes()) {
            let tokens = budget.min(request.to_read - request.read);
            request.share = if tokens > 0 { Share::Read(tokens) } else { Share::Nothing };
            budget -= tokens;
        }
        self.parameters.prefill_chunk - budget
    }

    /// Lets waiting requests in and plans up to `budget` tokens of their prompts; how many it planned.
    fn admit(&mut self, at: Duration, budget: u64, events: &mut Vec<Event>) -> u64 {
        let mut left = budget;
        while left > 0 && self.running.len() < self.parameters.max_running {
            let Some(mut request) = self.waiting.pop_front() else { break };
            if !self.settle(&mut request) {
                self.waiting.push_front(request);
                break;
            }
            let tokens = left.min(request.to_read - request.read);
            request.share = Share::Read(tokens);
            left -= tokens;
            events.push(Event { at, what: What::Admitted(request.id) });
            self.running.push(request);
        }
        budget - left
    }

    /// Gives a request the blocks for its context, cached ones first; false when there is no room. The last token is
    /// always read: it is what the next one comes from.
    fn settle(&mut self, request: &mut Request) -> bool {
        let most = (request.to_read - 1) / self.parameters.kv_block;
        let known = &request.ask.blocks[..request.ask.blocks.len().min(most as usize)];
        let blocks = self.blocks_for(request.to_read);
        let Some(found) = self.cache.settle(known, blocks) else { return false };
        (request.blocks, request.named) = (blocks, found);
        request.read = found as u64 * self.parameters.kv_block;
        self.reuse.asked += request.to_read;
        self.reuse.found += request.read;
        true
    }

    fn step_time(&mut self, prefill: u64, decode: u64) -> Duration {
        let reading = prefill as f64 / self.parameters.prefill_rate;
        let decoding = match decode {
            0 => Duration::ZERO,
            n => self.parameters.step_base + self.parameters.step_per_request.mul_f64(n as f64),
        };
        let jitter = 1.0 + self.parameters.jitter * (2.0 * self.random.unit() - 1.0);
        Duration::from_secs_f64(
            (reading + decoding.as_secs_f64()) * jitter * self.parameters.slowdown,
        )
    }

    fn finish(&mut self, step: Step, events: &mut Vec<Event>) {
        let (at, prefill, decode) = (step.ends, step.prefill, step.decode);
        events.push(Event { at, what: What::Step { prefill, decode } });
        let block = self.parameters.kv_block;
        self.running.retain_mut(|request| {
            let makes = match std::mem::replace(&mut request.share, Share::Nothing) {
                Share::Nothing => false,
                Share::Read(tokens) => {
                    request.read += tokens;
                    let full = request.ask.blocks.len().min((request.read / block) as usize);
                    self.cache.keep(&request.ask.blocks[request.named.min(full)..full]);
                    request.named = request.named.max(full);
                    request.decodes()
                }
                Share::Decode => true,
            };
            let last = makes && emit(request, at, events);
            if last {
                self.cache.free(&request.ask.blocks[..request.named], request.blocks);
            }
            !last
        });
    }

    fn blocks_for(&self, tokens: u64) -> u64 {
        tokens.div_ceil(self.parameters.kv_block)
    }
}

/// Makes the next token; true when it is the last one.
fn emit(request: &mut Request, at: Duration, events: &mut Vec<Event>) -> bool {
    request.made += 1;
    let (job, index, last) = (request.id, request.made, request.made == request.ask.answer);
    events.push(Event { at, what: What::Token { job, index, last } });
    last
}

#[cfg(test)]
mod tests;
