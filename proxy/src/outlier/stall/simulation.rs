//! An engine that works is never called stalled, one that freezes soon is: the rules against a
//! simulated scheduler with continuous batching and chunked prefill.

use std::collections::HashMap;

use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};

use super::*;
use sim::engine::{Engine, Job, JobId, Parameters, What};

#[path = "../../../../tests/src/sim"]
#[expect(dead_code, unreachable_pub, reason = "it is made for others")]
mod sim {
    pub(super) mod engine;
    mod random;
}

const FLOOR: Duration = Duration::from_secs(5);
const SETTINGS: Settings = Settings { gaps: 20, floor: FLOOR };

/// An engine behind an endpoint, and the traffic that it gets.
struct World {
    engine: Engine,
    progress: Arc<Progress>,
    turns: HashMap<JobId, Turn>,
    origin: Instant,
    /// Seconds since the origin.
    time: f64,
    rng: SmallRng,
    /// When it was first called stalled.
    stalled: Option<f64>,
    frozen: bool,
}

impl World {
    fn new(parameters: &Parameters, seed: u64) -> Self {
        let origin = Instant::now();
        Self {
            engine: Engine::new(Parameters { seed, jitter: 0.2, ..parameters.clone() }),
            progress: Progress::new(SETTINGS, origin),
            turns: HashMap::new(),
            origin,
            time: 0.0,
            rng: SmallRng::seed_from_u64(seed),
            stalled: None,
            frozen: false,
        }
    }

    fn at(&self, seconds: f64) -> Instant {
        self.origin + Duration::from_secs_f64(seconds)
    }

    fn send(&mut self, prompt: u64, answer: u64) {
        let id = self.engine.submit(Job::new(prompt, answer)).expect("fits");
        self.turns.insert(id, self.progress.begin(prompt, true, self.at(self.time)));
        self.advance(self.time);
    }

    /// Lets so many seconds pass.
    fn pass(&mut self, seconds: f64) {
        let end = self.time + seconds;
        let next = |engine: &Engine| engine.next_event().map(|at| at.as_secs_f64());
        while !self.frozen
            && let Some(at) = next(&self.engine).filter(|at| *at <= end)
        {
            self.look(at);
            self.advance(at);
        }
        self.look(end);
        self.time = end;
    }

    fn advance(&mut self, seconds: f64) {
        if self.frozen {
            return;
        }
        for event in self.engine.advance(Duration::from_secs_f64(seconds)) {
            let What::Token { job, last, .. } = event.what else { continue };
            self.turns.get_mut(&job).expect("in flight").bytes(self.origin + event.at);
            if last {
                self.turns.remove(&job);
            }
        }
    }

    /// Whether the silence has been too long at any time before `until`.
    fn look(&mut self, until: f64) {
        let at = self.progress.stalls_at().filter(|at| *at < self.at(until));
        let seconds = at.map(|at| (at - self.origin).as_secs_f64());
        self.stalled = self.stalled.or(seconds);
    }

    fn exponential(&mut self, mean: f64) -> f64 {
        -mean * (1.0 - self.rng.random::<f64>()).ln()
    }

    fn long_tailed(&mut self, median: f64, most: f64) -> u64 {
        let radius = (-2.0 * (1.0 - self.rng.random::<f64>()).ln()).sqrt();
        let normal = radius * (std::f64::consts::TAU * self.rng.random::<f64>()).cos();
        (median * normal.exp()).clamp(10.0, most) as u64
    }

    fn chat(&mut self) {
        let long = self.rng.random_bool(0.02);
        let prompt = if long { 32_000 } else { self.long_tailed(400.0, 16_000.0) };
        let answer = self.long_tailed(100.0, 2_000.0);
        self.send(prompt, answer);
    }

    /// So many seconds of chats, on average so many per second.
    fn traffic(&mut self, seconds: f64, per_second: f64) {
        let end = self.time + seconds;
        while self.time < end {
            let pause = self.exponential(1.0 / per_second).min(end - self.time);
            self.pass(pause);
            self.chat();
        }
    }

    /// Anything that happens to an engine in a bad hour.
    fn act(&mut self) {
        match self.rng.random_range(0..7) {
            0 => (0..self.rng.random_range(10..80)).for_each(|_| self.chat()),
            1 => (0..self.rng.random_range(1..8)).for_each(|_| self.send(32_000, 50)),
            2 => self.pass(30.0),
            3 => {
                self.pass(60.0);
                self.send(32_000, 200);
                self.pass(10.0);
            }
            4 => {
                let slow = self.engine.parameters().slowdown > 1.0;
                self.engine.set_slowdown(if slow { 1.0 } else { 3.0 });
            }
            5 => self.traffic(20.0, 4.0),
            _ => self.traffic(20.0, 0.5),
        }
    }

    /// After how many seconds an engine is noticed that freezes now; it gets chats all the same.
    fn freeze(&mut self) -> f64 {
        assert_eq!(self.stalled, None);
        let start = self.time;
        self.frozen = true;
        while self.stalled.is_none() {
            assert!(self.time < start + 3_600.0, "not noticed in an hour");
            self.traffic(1.0, 2.0);
        }
        self.stalled.map_or(f64::NAN, |at| at - start)
    }
}

/// The engines of the simulations: as usual, with long steps, and short of KV cache.
fn engines() -> [(&'static str, Parameters); 3] {
    let usual = Parameters::default();
    let long_steps = Parameters { prefill_chunk: 8_192, ..usual.clone() };
    let small = Parameters { kv_tokens: 131_072, max_running: 32, ..usual.clone() };
    [("usual", usual), ("long steps", long_steps), ("small", small)]
}

#[test]
fn a_healthy_engine_is_never_called_stalled() {
    for (name, parameters) in engines() {
        for seed in 0..50 {
            let mut world = World::new(&parameters, seed);
            (0..20).for_each(|_| world.act());
            world.traffic(10.0, 4.0);
            assert_eq!(world.stalled, None, "{name}, seed {seed}");
        }
    }
}

/// Delays of 50 seeds in seconds, in order.
fn delays(mut delay: impl FnMut(u64) -> f64) -> Vec<f64> {
    let mut delays: Vec<_> = (0..50).map(&mut delay).collect();
    delays.sort_by(f64::total_cmp);
    println!("median {:.1} s, 90 % {:.1} s, worst {:.1} s", delays[25], delays[45], delays[49]);
    delays
}

/// What it has learned is at most a second, the longest step of an engine that has been slow.
#[test]
fn an_engine_that_freezes_among_streams_is_noticed_within_the_gaps() {
    let delays = delays(|seed| {
        let mut world = World::new(&Parameters::default(), seed);
        (0..8).for_each(|_| world.act());
        world.engine.set_slowdown(1.0);
        world.traffic(60.0, 4.0);
        while world.progress.streaming.load(Relaxed) == 0 {
            world.pass(0.1);
        }
        let gap = Duration::from_nanos(world.progress.gap.get().unwrap());
        let delay = world.freeze();
        assert!(delay <= (20 * gap).max(FLOOR).as_secs_f64() + 0.1, "{delay} s, gap {gap:?}");
        delay
    });
    assert!(delays[25] < 10.0 && delays[49] < 22.0, "{delays:?}");
}

/// Nothing streams and a short prompt comes; then more of them do.
#[test]
fn an_engine_that_freezes_while_idle_is_noticed_with_the_next_requests() {
    let delays = delays(|seed| {
        let mut world = World::new(&Parameters::default(), seed);
        world.traffic(300.0, 0.5);
        world.pass(120.0);
        world.send(500, 100);
        world.freeze()
    });
    assert!(delays[25] < 7.0 && delays[49] < 60.0, "{delays:?}");
}
