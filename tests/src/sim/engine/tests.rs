//! The scheduler's promises, on hand-made cases and under seeded random load.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::super::random::Random;
use super::{Engine, Event, Job, JobId, Parameters, Refusal, Request, What};

fn ms(ms: f64) -> Duration {
    Duration::from_secs_f64(ms / 1000.0)
}

/// Runs until nothing is left to do.
fn exhaust(engine: &mut Engine) -> Vec<Event> {
    let mut events = engine.advance(Duration::ZERO);
    while let Some(at) = engine.next_event() {
        events.extend(engine.advance(at));
    }
    events
}

fn tokens(events: &[Event], wanted: JobId) -> Vec<Duration> {
    let of = |event: &&Event| matches!(event.what, What::Token { job, .. } if job == wanted);
    events.iter().filter(of).map(|event| event.at).collect()
}

fn near(a: Duration, b: Duration) -> bool {
    a.abs_diff(b) < Duration::from_micros(1)
}

#[test]
fn one_request_reads_its_prompt_and_decodes() {
    let mut engine = Engine::new(Parameters::default());
    let job = engine.submit(Job::new(800, 3)).unwrap();
    let times = tokens(&exhaust(&mut engine), job);
    // 800 tokens at 8000 per second, then steps of 6 + 0.35 ms.
    assert_eq!(times.len(), 3);
    for (time, wanted) in times.iter().zip([100.0, 106.35, 112.7]) {
        assert!(near(*time, ms(wanted)), "{time:?} instead of {wanted} ms");
    }
    assert_eq!((engine.load().running, engine.load().kv_blocks_used), (0, 0));
}

#[test]
fn a_long_prompt_is_read_in_chunks_and_does_not_stop_the_others() {
    let mut engine = Engine::new(Parameters::default());
    let short = engine.submit(Job::new(8, 50)).unwrap();
    engine.advance(Duration::ZERO);
    let long = engine.submit(Job::new(10_000, 1)).unwrap();
    let events = exhaust(&mut engine);
    let first = tokens(&events, long)[0];
    let meanwhile = tokens(&events, short).into_iter().filter(|at| *at < first).count();
    assert_eq!(meanwhile, 5, "one token with each chunk but the last, and one before the first");
    let largest = events.iter().filter_map(|event| match event.what {
        What::Step { prefill, .. } => Some(prefill),
        _ => None,
    });
    assert_eq!(largest.max(), Some(2048));
}

#[test]
fn a_step_takes_longer_the_more_requests_decode() {
    let gap = |requests: usize| {
        let mut engine = Engine::new(Parameters::default());
        let jobs: Vec<_> = (0..requests).map(|_| engine.submit(Job::new(1, 3)).unwrap()).collect();
        let times = tokens(&exhaust(&mut engine), jobs[0]);
        times[2] - times[1]
    };
    assert!(near(gap(1), ms(6.35)));
    assert!(near(gap(100), ms(41.0)));
}

#[test]
fn slowdown_multiplies_every_step() {
    let mut engine = Engine::new(Parameters { slowdown: 3.0, ..Parameters::default() });
    let job = engine.submit(Job::new(80, 2)).unwrap();
    let times = tokens(&exhaust(&mut engine), job);
    assert!(near(times[0], ms(30.0)) && near(times[1], ms(30.0 + 19.05)));
}

#[test]
fn what_can_never_fit_and_what_overflows_the_queue_is_refused() {
    let parameters =
        Parameters { kv_tokens: 160, max_running: 1, max_waiting: 2, ..Parameters::default() };
    let mut engine = Engine::new(parameters);
    assert_eq!(engine.submit(Job::new(150, 11)), Err(Refusal::TooLong));
    engine.submit(Job::new(150, 10)).unwrap();
    engine.advance(Duration::ZERO);
    engine.submit(Job::new(1, 1)).unwrap();
    engine.submit(Job::new(1, 1)).unwrap();
    assert_eq!(engine.submit(Job::new(1, 1)), Err(Refusal::QueueFull));
}

#[test]
fn a_full_cache_puts_the_youngest_back_and_it_loses_no_token() {
    let parameters = Parameters { kv_tokens: 96, ..Parameters::default() };
    let mut engine = Engine::new(parameters);
    let old = engine.submit(Job::new(32, 40)).unwrap();
    let young = engine.submit(Job::new(32, 40)).unwrap();
    let events = exhaust(&mut engine);
    let preempted = |job| events.iter().any(|event| event.what == What::Preempted(job));
    assert!(preempted(young) && !preempted(old));
    for job in [old, young] {
        assert_eq!(tokens(&events, job).len(), 40);
    }
}

#[test]
fn aborting_gives_the_place_and_the_memory_back_at_once() {
    let mut engine = Engine::new(Parameters { max_running: 1, ..Parameters::default() });
    let first = engine.submit(Job::new(100, 100)).unwrap();
    let second = engine.submit(Job::new(1, 1)).unwrap();
    engine.advance(Duration::ZERO);
    assert_eq!((engine.load().running, engine.load().waiting), (1, 1));
    assert!(engine.abort(first));
    assert_eq!((engine.load().running, engine.load().kv_blocks_used), (0, 0));
    assert!(!engine.abort(first), "it is gone");
    let events = exhaust(&mut engine);
    assert_eq!((tokens(&events, first).len(), tokens(&events, second).len()), (0, 1));
}

/// A prompt of `blocks` full blocks and one token more, the first `shared` of which are those of every prompt `head`.
fn prompt(head: u64, shared: u64, blocks: u64) -> Job {
    let name = |k| if k < shared { head * 1000 + k } else { u64::MAX - head * 1000 - k };
    Job { blocks: (0..blocks).map(name).collect(), ..Job::new(16 * blocks + 1, 2) }
}

/// How many tokens of its prompt a request that comes alone has to read.
fn tokens_read(engine: &mut Engine, job: Job) -> u64 {
    engine.submit(job).unwrap();
    let read = |event: &Event| match event.what {
        What::Step { prefill, .. } => prefill,
        _ => 0,
    };
    exhaust(engine).iter().map(read).sum()
}

#[test]
fn a_known_head_is_not_read_again() {
    let mut engine = Engine::new(Parameters::default());
    assert_eq!(tokens_read(&mut engine, prompt(1, 10, 10)), 161);
    assert_eq!(tokens_read(&mut engine, prompt(1, 10, 10)), 1, "the last token is always read");
    assert_eq!(tokens_read(&mut engine, prompt(1, 4, 10)), 161 - 4 * 16);
    assert_eq!(tokens_read(&mut engine, prompt(2, 10, 10)), 161);
    let whole = Job { blocks: (1000..1010).collect(), ..Job::new(160, 1) };
    assert_eq!(tokens_read(&mut engine, whole), 16, "and with it the block it is in");
    assert_eq!(engine.reuse().found, 160 + 4 * 16 + 144);
    assert_eq!(engine.load().kv_blocks_used, 0, "what nobody uses does not count");
}

#[test]
fn requests_at_the_same_time_hold_their_head_once() {
    let mut engine = Engine::new(Parameters::default());
    engine.submit(Job { answer: 50, ..prompt(1, 10, 10) }).unwrap();
    engine.submit(Job { answer: 50, ..prompt(1, 10, 10) }).unwrap();
    engine.advance(Duration::ZERO);
    assert_eq!(engine.load().kv_blocks_used, 22, "both read it: neither knew of the other");
    engine.advance(engine.next_event().unwrap());
    assert_eq!(engine.load().kv_blocks_used, 12);
    engine.submit(Job { answer: 50, ..prompt(1, 10, 10) }).unwrap();
    engine.advance(engine.next_event().unwrap());
    assert_eq!(engine.load().kv_blocks_used, 13);
}

#[test]
fn what_was_used_least_recently_goes_first_and_a_tail_before_its_head() {
    let mut engine = Engine::new(Parameters { kv_tokens: 16 * 25, ..Parameters::default() });
    for head in [1, 2, 1] {
        tokens_read(&mut engine, prompt(head, 10, 10));
    }
    // Twelve blocks: five are empty, seven are the tail of prompt 2.
    assert_eq!(tokens_read(&mut engine, Job::new(16 * 12, 1)), 16 * 12);
    assert_eq!(tokens_read(&mut engine, prompt(1, 10, 10)), 1);
    assert_eq!(tokens_read(&mut engine, prompt(2, 10, 10)), 161 - 3 * 16);
}

#[test]
fn a_request_that_was_put_back_finds_its_own_prompt_again() {
    let mut engine = Engine::new(Parameters { kv_tokens: 96, ..Parameters::default() });
    engine.submit(Job::new(32, 40)).unwrap();
    engine.submit(Job { answer: 30, ..prompt(1, 2, 2) }).unwrap();
    let events = exhaust(&mut engine);
    assert!(events.iter().any(|event| matches!(event.what, What::Preempted(_))));
    assert!(engine.reuse().found >= 16, "{:?}", engine.reuse());
}

/// Drives an engine with random arrivals and hang-ups and checks after every move what must always hold.
struct Trial {
    engine: Engine,
    random: Random,
    asked: BTreeMap<JobId, u64>,
    made: BTreeMap<JobId, u64>,
    aborted: BTreeSet<JobId>,
    finished: BTreeSet<JobId>,
    admitted: Vec<JobId>,
    events: Vec<Event>,
}

impl Trial {
    fn new(seed: u64) -> Self {
        let parameters = Parameters {
            max_running: 8,
            kv_tokens: 2048,
            prefill_chunk: 256,
            jitter: 0.2,
            seed,
            ..Parameters::default()
        };
        Self {
            engine: Engine::new(parameters),
            random: Random::new(seed),
            asked: BTreeMap::new(),
            made: BTreeMap::new(),
            aborted: BTreeSet::new(),
            finished: BTreeSet::new(),
            admitted: Vec::new(),
            events: Vec::new(),
        }
    }

    fn run(mut self) -> Vec<Event> {
        let mut now = Duration::ZERO;
        for _ in 0..2000 {
            now += Duration::from_micros(self.random.below(20_000));
            self.advance(now);
            if self.random.unit() < 0.7 {
                self.submit();
            }
            if self.random.unit() < 0.1 {
                self.abort();
            }
            self.advance(now);
        }
        while let Some(at) = self.engine.next_event() {
            self.advance(at);
        }
        let done = self.finished.len() + self.aborted.len();
        assert_eq!(done, self.asked.len(), "every request ends");
        assert_eq!(self.engine.load().kv_blocks_used, 0);
        self.events
    }

    fn submit(&mut self) {
        let (prompt, answer) = (1 + self.random.below(600), 1 + self.random.below(60));
        let head = 1 + self.random.below(4);
        let named = self.random.below(40);
        let job = Job { blocks: (0..named).map(|k| head * 1000 + k).collect(), prompt, answer };
        let id = self.engine.submit(job).unwrap();
        self.asked.insert(id, answer);
    }

    fn abort(&mut self) {
        let ids: Vec<_> = self.asked.keys().copied().collect();
        let Some(id) = ids.get(self.random.below(ids.len() as u64) as usize).copied() else {
            return;
        };
        let gone = self.finished.contains(&id) || self.aborted.contains(&id);
        assert_eq!(self.engine.abort(id), !gone, "only what is there can be aborted");
        if !gone {
            self.aborted.insert(id);
        }
    }

    fn advance(&mut self, now: Duration) {
        for event in self.engine.advance(now) {
            assert!(event.at <= now, "nothing happens before its time");
            assert!(self.events.last().is_none_or(|last| last.at <= event.at), "time goes forward");
            self.take(&event);
            self.events.push(event);
        }
        self.account();
        let load = self.engine.load();
        assert!(load.running <= 8 && load.kv_blocks_used <= load.kv_blocks);
        assert_eq!(
            load.running + load.waiting,
            self.asked.len() - self.finished.len() - self.aborted.len()
        );
        let idle = load.running + load.waiting == 0;
        assert!(idle || self.engine.next_event().is_some(), "work is never left lying");
    }

    /// Every block is empty, in the cache under a name, or held by one request alone.
    fn account(&self) {
        let cache = &self.engine.cache;
        let own = |request: &Request| request.blocks - request.named as u64;
        let held: u64 = self.engine.running.iter().map(own).sum();
        assert_eq!(cache.accounted() + held, cache.capacity());
        assert!(self.engine.waiting.iter().all(|request| request.blocks == 0));
    }

    fn take(&mut self, event: &Event) {
        match event.what {
            What::Token { job, index, last } => {
                let made = self.made.entry(job).or_default();
                *made += 1;
                assert_eq!(*made, index, "tokens come in order, none twice");
                assert!(!self.aborted.contains(&job) && !self.finished.contains(&job));
                assert_eq!(last, index == self.asked[&job]);
                if last {
                    self.finished.insert(job);
                }
            }
            What::Admitted(job) if !self.admitted.contains(&job) => {
                let later = self.admitted.last().is_none_or(|last| *last < job);
                assert!(later, "first come, first served");
                self.admitted.push(job);
            }
            What::Admitted(_) | What::Preempted(_) | What::Step { .. } => {}
        }
    }
}

#[test]
fn invariants_hold_under_random_load() {
    let mut preemptions = 0;
    for seed in 0..20 {
        let events = Trial::new(seed).run();
        preemptions += events.iter().filter(|e| matches!(e.what, What::Preempted(_))).count();
    }
    assert!(preemptions > 100, "the load must be heavy enough to fill the cache: {preemptions}");
}

#[test]
fn the_same_seed_gives_the_same_run() {
    assert_eq!(Trial::new(7).run(), Trial::new(7).run());
    assert_ne!(Trial::new(7).run(), Trial::new(8).run());
}
