//! What a simulator is started with.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use super::engine::Parameters;

/// How a simulator listens, what it calls itself, and how fast it is.
#[derive(Clone, Debug)]
pub struct Options {
    /// Its name: in the header `x-sim-name`, in `system_fingerprint`, and what `;at=` of a fault refers to.
    pub name: String,
    /// Where to listen; port 0 = any free one.
    pub listen: SocketAddr,
    /// A second address that is never refused, for `/sim/*` while the first one is.
    pub control: Option<SocketAddr>,
    /// The models it serves; when empty it serves whatever it is asked for and lists `sim-model`.
    pub models: Vec<String>,
    /// How long an answer is when the request does not say.
    pub answers: Answers,
    /// Whether its answers tell clients that ask how busy it is (ORCA).
    pub reports: Reports,
    /// The engine; its times are virtual.
    pub engine: Parameters,
    /// How many virtual seconds pass in a real one; above 0. Tokio's timer ticks every millisecond, so above about 5
    /// the tokens of one request begin to come in bursts.
    pub speed: f64,
    /// Seed of answers and of the draw of faults; the jitter of steps has its own in `engine`.
    pub seed: u64,
}

/// The length of answers, in tokens, for requests without `max_tokens`.
#[derive(Clone, Copy, Debug)]
pub enum Answers {
    /// Always this long.
    Fixed(u64),
    /// Geometric with this mean, as if each token could be the last; the same prompt gets the same length.
    Geometric(f64),
}

/// Where load reports are, on answers to clients that ask for them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Reports {
    /// Nowhere: it knows nothing of them.
    #[default]
    Never,
    /// Among the header fields, as of the moment when the answer begins.
    Header,
    /// Among the trailers, as of the moment when it ends. Over HTTP/1 only for clients that say `te: trailers`.
    Trailer,
}

impl Options {
    /// A simulator called `name` on a free port of 127.0.0.1, at real speed.
    pub fn named(name: &str) -> Self {
        Self { name: name.to_owned(), ..Self::default() }
    }

    /// A hundred times faster than a real engine: what most tests want.
    #[must_use]
    pub fn fast(self) -> Self {
        self.speed(100.0)
    }

    /// Virtual seconds per real second.
    #[must_use]
    pub fn speed(self, speed: f64) -> Self {
        Self { speed, ..self }
    }

    /// `factor` times slower than its peers.
    #[must_use]
    pub fn slowdown(mut self, factor: f64) -> Self {
        self.engine.slowdown = factor;
        self
    }

    /// Serves these models and refuses others with 404.
    #[must_use]
    pub fn models(self, models: &[&str]) -> Self {
        Self { models: models.iter().map(|&model| model.to_owned()).collect(), ..self }
    }

    /// At most `running` requests in the batch and `waiting` in the queue.
    #[must_use]
    pub fn room(mut self, running: usize, waiting: usize) -> Self {
        self.engine.max_running = running;
        self.engine.max_waiting = waiting;
        self
    }

    /// Answers of `tokens` tokens when the request does not say.
    #[must_use]
    pub fn answers(self, tokens: u64) -> Self {
        Self { answers: Answers::Fixed(tokens), ..self }
    }

    /// Reports its load there.
    #[must_use]
    pub fn reports(self, reports: Reports) -> Self {
        Self { reports, ..self }
    }

    /// Listens here.
    #[must_use]
    pub fn listen(self, listen: SocketAddr) -> Self {
        Self { listen, ..self }
    }

    /// A fixed time of `step` per token, whatever the load: for tests about gaps.
    #[must_use]
    pub fn steady(mut self, step: Duration) -> Self {
        self.engine.step_base = step;
        self.engine.step_per_request = Duration::ZERO;
        self.engine.prefill_rate = 1e9;
        self.speed = 1.0;
        self
    }
}

impl Default for Options {
    fn default() -> Self {
        Self {
            name: "sim".to_owned(),
            listen: (Ipv4Addr::LOCALHOST, 0).into(),
            control: None,
            models: Vec::new(),
            answers: Answers::Geometric(128.0),
            reports: Reports::Never,
            engine: Parameters::default(),
            speed: 1.0,
            seed: 0,
        }
    }
}
