//! Reads an engine's load from its metrics page (Prometheus or OpenMetrics text).
//!
//! Why it exists: a page has hundreds of lines of which three to five matter, a sidecar reads it
//! every second, and a client library would build a tree of all of it. So the page is read once, as
//! it arrives, without allocating: a line is dismissed by its first bytes, and only the lines under
//! known names are looked into.
//!
//! What it decides: which engine wrote the page, and what the page says of waiting and running
//! requests, of the key-value cache, and of progress. Series of several data-parallel ranks or
//! models become one value: counts are added, shares are averaged.
//! What it leaves out: fetching the page and bounding its size. A page is judged as far as it was
//! fed, so only a page that arrived whole should be [finished](Reader::finish).
//!
//! Unknown is not idle: a name that is missing is `None`, and so is one of which any series can not
//! be read or is NaN, infinite or negative, because the sum of the others would be too small.

mod line;
mod names;
#[cfg(test)]
mod tests;

use memchr::memchr;

use self::names::{Metric, Pick, Quantity};
use super::{is_load, load};
use crate::balance::reported::Report;

/// The longest line that is read, in bytes. A longer one is skipped; if it is under a known name,
/// what it would have said is unknown.
pub const MAX_LINE: usize = 2048;

/// Who writes a metrics page.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Engine {
    /// vLLM.
    Vllm,
    /// SGLang, started with `--enable-metrics`.
    Sglang,
    /// Text Generation Inference.
    Tgi,
    /// The server of llama.cpp, started with `--metrics`.
    LlamaCpp,
    /// TensorRT-LLM's own server; its page is at `/prometheus/metrics`.
    TensorrtLlm,
    /// Triton with any other backend; its page has a port of its own, usually 8002.
    Triton,
    /// Triton with the TensorRT-LLM backend.
    TritonTensorrtLlm,
}

impl Engine {
    /// All of them. Of two that a page tells equally much about, the first is taken to be its
    /// writer.
    pub const ALL: [Engine; 7] = [
        Engine::Vllm,
        Engine::Sglang,
        Engine::TensorrtLlm,
        Engine::TritonTensorrtLlm,
        Engine::Tgi,
        Engine::LlamaCpp,
        Engine::Triton,
    ];

    /// A name for logs and labels, in snake case.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Engine::Vllm => "vllm",
            Engine::Sglang => "sglang",
            Engine::Tgi => "tgi",
            Engine::LlamaCpp => "llama_cpp",
            Engine::TensorrtLlm => "tensorrt_llm",
            Engine::Triton => "triton",
            Engine::TritonTensorrtLlm => "triton_tensorrt_llm",
        }
    }

    /// Whether a page of this engine will do where `expected` is configured: a Triton may have any
    /// backend.
    fn is(self, expected: Engine) -> bool {
        self == expected || (self, expected) == (Engine::TritonTensorrtLlm, Engine::Triton)
    }
}

/// What a page says.
#[derive(Clone, Debug, PartialEq)]
pub struct Reading {
    /// Who wrote it.
    pub engine: Engine,
    /// The load. `utilization` is never set: no engine has such a number that is always there.
    pub report: Report,
    /// A heartbeat: a sum of counters that grows, every second or so, while the engine generates.
    /// Its unit differs between engines, so that only two values of the same endpoint can be
    /// compared: equal means that no step was counted in between, smaller that the engine was
    /// restarted. vLLM counts steps that gave a token, so that while it does nothing but read one
    /// very long prompt the heartbeat stands still; so it does during one execution of a Triton
    /// backend of which nothing more is known. `None` where the engine has no such counter
    /// (TensorRT-LLM's own server).
    pub progress: Option<f64>,
}

/// The page names no engine that is known, or not the expected one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unrecognised {
    /// The engine whose names were looked for; `None` = any.
    pub expected: Option<Engine>,
    /// Lines of the page.
    pub lines: u64,
}

impl std::fmt::Display for Unrecognised {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let lines = self.lines;
        match self.expected {
            Some(engine) => write!(f, "no load of {} among {lines} lines", engine.name()),
            None => write!(f, "no load of a known engine among {lines} lines"),
        }
    }
}

impl std::error::Error for Unrecognised {}

/// Reads one page, fed in pieces cut anywhere. Of fixed size, about 3 KiB; allocates nothing.
#[derive(Debug)]
pub struct Reader {
    expected: Option<Engine>,
    tallies: [Tally; Engine::ALL.len()],
    lines: u64,
    /// The beginning of a line whose end has not been fed yet.
    held: [u8; MAX_LINE],
    held_len: usize,
    /// The held line is longer than what is held of it.
    cut: bool,
}

impl Reader {
    /// Before the first byte of a page. With an `expected` engine the names of others are not
    /// looked at.
    #[must_use]
    pub fn new(expected: Option<Engine>) -> Self {
        Self {
            expected,
            tallies: std::array::from_fn(|_| Tally::default()),
            lines: 0,
            held: [0; MAX_LINE],
            held_len: 0,
            cut: false,
        }
    }

    /// Reads on. Where the page is cut into pieces makes no difference.
    pub fn feed(&mut self, mut piece: &[u8]) {
        while let Some(end) = memchr(b'\n', piece) {
            let (line, rest) = (&piece[..end], &piece[end + 1..]);
            if self.held_len == 0 {
                self.line(line);
            } else {
                self.hold(line);
                self.held_line();
            }
            piece = rest;
        }
        self.hold(piece);
    }

    /// What the whole page says. A last line without an end counts, so that a page that was cut off
    /// on its way could end in a wrong number: drop the reader then.
    ///
    /// # Errors
    /// [`Unrecognised`] when the page has none of the names that are looked for. An engine that has
    /// not served a request yet may name nothing, which is the same as an unknown load.
    pub fn finish(mut self) -> Result<Reading, Unrecognised> {
        if self.held_len > 0 {
            self.held_line();
        }
        let unrecognised = Unrecognised { expected: self.expected, lines: self.lines };
        let engine = self.writer().ok_or(unrecognised)?;
        let report = Report {
            waiting: self.waiting(engine),
            running: self.of(engine, Quantity::Running).sum(),
            kv_usage: self.of(engine, Quantity::KvUsage).mean().map(|share| share.min(1.0)),
            utilization: None,
        };
        Ok(Reading { engine, report, progress: self.progress(engine) })
    }

    /// Keeps the beginning of a line; a line never takes more than [`MAX_LINE`].
    fn hold(&mut self, piece: &[u8]) {
        let room = MAX_LINE - self.held_len;
        let kept = &piece[..piece.len().min(room)];
        self.held[self.held_len..][..kept.len()].copy_from_slice(kept);
        self.held_len += kept.len();
        self.cut |= kept.len() < piece.len();
    }

    fn held_line(&mut self) {
        let (held, len) = (self.held, self.held_len);
        let cut = std::mem::take(&mut self.cut);
        self.held_len = 0;
        self.read(&held[..len], cut);
    }

    fn line(&mut self, line: &[u8]) {
        let kept = &line[..line.len().min(MAX_LINE)];
        self.read(kept, kept.len() < line.len());
    }

    /// Reads one line, or the beginning of one that is longer.
    fn read(&mut self, line: &[u8], cut: bool) {
        self.lines += 1;
        let Some((prefix, comment)) = line::name_of(line) else { return };
        let Some((metrics, name)) = names::of_prefix(prefix) else { return };
        for metric in metrics {
            if !self.expects(metric.engine) {
                continue;
            }
            if let Some(rest) = line::after(name, metric.name) {
                let tally = &mut self.tallies[metric.engine as usize];
                tally.named = true;
                match (comment, cut) {
                    (true, _) => {}
                    (false, true) => tally.spoil(metric),
                    (false, false) => tally.count(metric, rest),
                }
            }
        }
    }

    /// Whether the names of `engine` matter. Those of Triton, of its backend and of vLLM inside of
    /// it go together.
    fn expects(&self, engine: Engine) -> bool {
        use Engine::{Triton, TritonTensorrtLlm, Vllm};
        match self.expected {
            None => true,
            Some(Triton | TritonTensorrtLlm) => {
                matches!(engine, Triton | TritonTensorrtLlm | Vllm)
            }
            Some(expected) => engine == expected,
        }
    }

    /// Who wrote the page: the engine that it says most of, then the first in [`Engine::ALL`].
    fn writer(&self) -> Option<Engine> {
        let told = |engine: &Engine| {
            let tally = &self.tallies[*engine as usize];
            Quantity::LOAD
                .iter()
                .filter(|quantity| tally.sums[**quantity as usize].seen > 0)
                .count()
        };
        let named = Engine::ALL.into_iter().rev().filter(|engine| {
            self.tallies[*engine as usize].named
                && self.expected.is_none_or(|expected| engine.is(expected))
        });
        named.max_by_key(told)
    }

    fn of(&self, engine: Engine, quantity: Quantity) -> &Sum {
        &self.tallies[engine as usize].sums[quantity as usize]
    }

    /// In Triton a request waits before the TensorRT-LLM backend or in it, never in both.
    fn waiting(&self, engine: Engine) -> Option<f64> {
        let within = self.of(engine, Quantity::Waiting);
        let before = self.of(Engine::Triton, Quantity::Waiting);
        if engine != Engine::TritonTensorrtLlm || before.seen == 0 {
            return within.sum();
        }
        Some(within.sum()? + before.sum()?)
    }

    /// Triton counts executions, of which a language model needs one for a whole answer. vLLM
    /// inside of it counts its own steps.
    fn progress(&self, engine: Engine) -> Option<f64> {
        let vllm = self.of(Engine::Vllm, Quantity::Progress);
        match engine {
            Engine::Triton if vllm.seen > 0 => vllm.sum(),
            _ => self.of(engine, Quantity::Progress).sum(),
        }
    }
}

/// What a page says under the names of one engine.
#[derive(Debug, Default)]
struct Tally {
    named: bool,
    sums: [Sum; Quantity::COUNT],
}

impl Tally {
    /// Counts what follows the name of `metric`.
    fn count(&mut self, metric: &Metric, rest: &[u8]) {
        let Some(series) = line::series(rest, metric.pick) else { return self.spoil(metric) };
        let sum = &mut self.sums[metric.quantity as usize];
        let once = metric.pick == Pick::OncePerRank;
        if series.wanted && (!once || sum.is_new(series.rank)) {
            sum.add(load(series.value).unwrap_or(f64::NAN));
        }
    }

    /// A series of `metric` could not be read.
    fn spoil(&mut self, metric: &Metric) {
        self.sums[metric.quantity as usize].add(f64::NAN);
    }
}

/// The series under one name.
#[derive(Debug, Default)]
struct Sum {
    total: f64,
    seen: u32,
    /// One bit for every rank that was counted.
    ranks: u128,
}

impl Sum {
    /// Whether the rank, less than [`line::MAX_RANKS`], was not counted yet; it is from now on.
    fn is_new(&mut self, rank: u32) -> bool {
        let bit = 1 << rank;
        let new = self.ranks & bit == 0;
        self.ranks |= bit;
        new
    }

    /// One number that is none (NaN) spoils the sum for good.
    fn add(&mut self, value: f64) {
        self.total += value;
        self.seen += 1;
    }

    fn sum(&self) -> Option<f64> {
        (self.seen > 0 && is_load(self.total)).then_some(self.total)
    }

    fn mean(&self) -> Option<f64> {
        Some(self.sum()? / f64::from(self.seen))
    }
}
