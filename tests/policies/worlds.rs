//! The worlds in which policies are compared.
//!
//! Every engine is one kind of machine, a small model on one large accelerator: it reads 60,000 prompt tokens per second,
//! and a decoding step takes 5 ms and 50 µs more for each request in it. With 32 tokens in an answer such a fleet serves
//! thousands of requests per second. An engine's *utilisation* is the time that its tokens take, without the 5 ms: at 1
//! its queue grows without end.

use std::time::Duration;

use outrigger_tests::sim::engine::Parameters;

/// What the prompts of a world are like, in tokens.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Prompts {
    /// Log-normal with this median, each different.
    Short { median: f64 },
    /// Short ones, and a `share` that are `long.0..long.1`.
    Bimodal { median: f64, share: f64, long: (u64, u64) },
    /// One of `heads` heads of `tokens` tokens, by Zipf's law with this exponent, and an own tail of this median.
    Shared { heads: u64, zipf: f64, tokens: u64, median: f64 },
}

/// Endpoints that join a running fleet.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Late {
    /// How many.
    pub(crate) endpoints: usize,
    /// When.
    pub(crate) at: Duration,
    /// How much slower they are at first.
    pub(crate) slowdown: f64,
    /// For how long.
    pub(crate) cold_for: Duration,
    /// The window of their slow start, as a user would set it.
    pub(crate) slow_start: Option<Duration>,
}

/// Requests that reach some endpoints past all proxies.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Outside {
    /// The first so many endpoints get them, at random.
    pub(crate) endpoints: usize,
    /// Which share of all requests.
    pub(crate) share: f64,
}

/// A fleet and its traffic.
#[derive(Clone, Debug)]
pub(crate) struct World {
    pub(crate) name: &'static str,
    pub(crate) endpoints: usize,
    /// Proxies that share the fleet and do not know of each other.
    pub(crate) balancers: usize,
    pub(crate) engine: Parameters,
    /// How many endpoints are how many times slower, for ever.
    pub(crate) slow: (usize, f64),
    pub(crate) late: Option<Late>,
    pub(crate) outside: Option<Outside>,
    /// Requests per second, all together.
    pub(crate) rate: f64,
    pub(crate) prompts: Prompts,
    /// Tokens of an answer, on average; geometric.
    pub(crate) answer: f64,
    /// Requests that come before this are not measured.
    pub(crate) warm_up: Duration,
    /// For how long requests are measured.
    pub(crate) measured: Duration,
    /// What a good answer is: its first byte within this time,
    pub(crate) first_byte: Duration,
    /// and this much or less from one token to the next, on average.
    pub(crate) gap: Duration,
}

impl World {
    /// When the last request comes.
    pub(crate) fn ends(&self) -> Duration {
        self.warm_up + self.measured
    }

    /// How much slower than the others an endpoint is at first.
    pub(crate) fn slowdown(&self, endpoint: usize) -> f64 {
        match self.late {
            Some(late) if endpoint >= self.endpoints - late.endpoints => late.slowdown,
            _ if endpoint < self.slow.0 => self.slow.1,
            _ => 1.0,
        }
    }
}

/// All of them.
pub(crate) fn all() -> Vec<World> {
    vec![
        uniform(),
        one_slow(),
        bimodal(),
        cold_start(),
        shared(),
        other_clients(),
        small_fleet(),
        large_fleet(),
    ]
}

const fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn engine() -> Parameters {
    Parameters {
        prefill_rate: 60_000.0,
        prefill_chunk: 2048,
        step_base: Duration::from_micros(5000),
        step_per_request: Duration::from_micros(50),
        max_running: 256,
        kv_tokens: 262_144,
        kv_block: 256,
        jitter: 0.1,
        ..Parameters::default()
    }
}

fn uniform() -> World {
    World {
        name: "uniform",
        endpoints: 12,
        balancers: 1,
        engine: engine(),
        slow: (0, 1.0),
        late: None,
        outside: None,
        rate: 1_800.0,
        prompts: Prompts::Short { median: 150.0 },
        answer: 32.0,
        warm_up: seconds(5),
        measured: seconds(15),
        first_byte: Duration::from_millis(100),
        gap: Duration::from_millis(40),
    }
}

fn one_slow() -> World {
    World { name: "one slow", slow: (1, 3.0), rate: 1_650.0, ..uniform() }
}

fn bimodal() -> World {
    let prompts = Prompts::Bimodal { median: 120.0, share: 0.005, long: (8_000, 32_000) };
    World { name: "bimodal", prompts, rate: 1_500.0, ..uniform() }
}

fn cold_start() -> World {
    let late = Late {
        endpoints: 4,
        at: seconds(5),
        slowdown: 10.0,
        cold_for: seconds(10),
        slow_start: Some(seconds(30)),
    };
    World { name: "cold start", late: Some(late), rate: 1_350.0, ..uniform() }
}

fn shared() -> World {
    let prompts = Prompts::Shared { heads: 1000, zipf: 1.2, tokens: 2048, median: 80.0 };
    World { name: "shared prefixes", prompts, rate: 1_650.0, warm_up: seconds(10), ..uniform() }
}

fn other_clients() -> World {
    let outside = Some(Outside { endpoints: 3, share: 0.16 });
    World { name: "other clients", balancers: 6, outside, ..uniform() }
}

fn small_fleet() -> World {
    World {
        name: "small fleet",
        endpoints: 3,
        engine: Parameters {
            prefill_rate: 8_000.0,
            step_base: Duration::from_millis(20),
            step_per_request: Duration::from_micros(500),
            ..engine()
        },
        slow: (1, 2.0),
        rate: 10.5,
        prompts: Prompts::Short { median: 360.0 },
        answer: 200.0,
        warm_up: seconds(60),
        measured: seconds(300),
        first_byte: Duration::from_secs(1),
        gap: Duration::from_millis(100),
        ..uniform()
    }
}

fn large_fleet() -> World {
    World {
        name: "large fleet",
        endpoints: 64,
        balancers: 4,
        slow: (8, 2.0),
        rate: 8_400.0,
        warm_up: seconds(4),
        measured: seconds(6),
        ..uniform()
    }
}
