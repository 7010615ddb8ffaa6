//! The simulator's `/metrics`, in vLLM's names and labels.
//!
//! Latencies are in real seconds, so that they agree with what a client of a sped-up simulator measures. Series that
//! vLLM has and a simulator has nothing to say about (LoRA, process) are left out.

use std::fmt::Write as _;
use std::time::Duration;

use super::engine::Engine;

const FIRST_TOKEN: &[f64] = &[
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0,
    20.0, 40.0, 80.0, 160.0, 640.0, 2560.0,
];
const BETWEEN_TOKENS: &[f64] = &[
    0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0,
    40.0, 80.0,
];
const WHOLE_REQUEST: &[f64] = &[
    0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0, 240.0,
    480.0, 960.0, 1920.0, 7680.0,
];
const STEP_TOKENS: &[f64] =
    &[1.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0, 2048.0, 4096.0, 8192.0, 16384.0];

#[derive(Debug)]
struct Histogram {
    bounds: &'static [f64],
    counts: Vec<u64>,
    sum: f64,
}

impl Histogram {
    fn new(bounds: &'static [f64]) -> Self {
        Self { bounds, counts: vec![0; bounds.len() + 1], sum: 0.0 }
    }

    fn record(&mut self, value: f64) {
        let bucket = self.bounds.partition_point(|bound| *bound < value);
        if let Some(count) = self.counts.get_mut(bucket) {
            *count += 1;
        }
        self.sum += value;
    }
}

/// Why an answer ended, as vLLM labels it.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Finish {
    Stop,
    Length,
    Abort,
}

impl Finish {
    const ALL: [Self; 3] = [Self::Stop, Self::Length, Self::Abort];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Stop => "stop",
            Self::Length => "length",
            Self::Abort => "abort",
        }
    }
}

/// All counters and histograms of one simulator.
#[derive(Debug)]
pub(crate) struct Telemetry {
    first_token: Histogram,
    between_tokens: Histogram,
    whole_request: Histogram,
    queue: Histogram,
    prefill: Histogram,
    decode: Histogram,
    step_tokens: Histogram,
    finished: [u64; 3],
    rejected: u64,
    pub(crate) prompt_tokens: u64,
    pub(crate) generated_tokens: u64,
    pub(crate) preemptions: u64,
}

impl Telemetry {
    pub(crate) fn new() -> Self {
        Self {
            first_token: Histogram::new(FIRST_TOKEN),
            between_tokens: Histogram::new(BETWEEN_TOKENS),
            whole_request: Histogram::new(WHOLE_REQUEST),
            queue: Histogram::new(WHOLE_REQUEST),
            prefill: Histogram::new(WHOLE_REQUEST),
            decode: Histogram::new(WHOLE_REQUEST),
            step_tokens: Histogram::new(STEP_TOKENS),
            finished: [0; 3],
            rejected: 0,
            prompt_tokens: 0,
            generated_tokens: 0,
            preemptions: 0,
        }
    }

    pub(crate) fn queued(&mut self, time: Duration) {
        self.queue.record(time.as_secs_f64());
    }

    pub(crate) fn first_token(&mut self, since_submit: Duration, since_admitted: Duration) {
        self.first_token.record(since_submit.as_secs_f64());
        self.prefill.record(since_admitted.as_secs_f64());
    }

    pub(crate) fn next_token(&mut self, gap: Duration) {
        self.between_tokens.record(gap.as_secs_f64());
    }

    pub(crate) fn finished(&mut self, how: Finish, whole: Duration, decode: Duration) {
        self.finished[how as usize] += 1;
        self.whole_request.record(whole.as_secs_f64());
        self.decode.record(decode.as_secs_f64());
    }

    pub(crate) fn aborted(&mut self) {
        self.finished[Finish::Abort as usize] += 1;
    }

    pub(crate) fn rejected(&mut self) {
        self.rejected += 1;
    }

    pub(crate) fn step(&mut self, tokens: u64) {
        self.step_tokens.record(tokens as f64);
    }

    /// The whole page.
    pub(crate) fn page(&self, model: &str, engine: &Engine, extra: &Extra) -> String {
        let load = engine.load();
        let mut page = Page { text: String::with_capacity(16 * 1024), model };
        page.gauge("vllm:num_requests_running", load.running as f64);
        page.gauge("vllm:num_requests_waiting", load.waiting as f64);
        page.gauge("vllm:kv_cache_usage_perc", load.kv_usage());
        let block = engine.parameters().kv_block.to_string();
        let blocks = load.kv_blocks.to_string();
        let info = [("block_size", &*block), ("num_gpu_blocks", &*blocks)];
        page.head("vllm:cache_config_info", "gauge");
        page.sample("vllm:cache_config_info", &info, 1.0);
        page.counter("vllm:prefix_cache_queries_total", engine.reuse().asked);
        page.counter("vllm:prefix_cache_hits_total", engine.reuse().found);
        page.counter("vllm:num_preemptions_total", self.preemptions);
        page.counter("vllm:prompt_tokens_total", self.prompt_tokens);
        page.counter("vllm:generation_tokens_total", self.generated_tokens);
        page.head("vllm:request_success_total", "counter");
        for how in Finish::ALL {
            let count = self.finished[how as usize] as f64;
            page.sample("vllm:request_success_total", &[("finished_reason", how.name())], count);
        }
        page.head("vllm:admission_rejections_total", "counter");
        let rejected = self.rejected as f64;
        page.sample("vllm:admission_rejections_total", &[("reason", "queue_full")], rejected);
        page.histogram("vllm:iteration_tokens_total", &self.step_tokens);
        page.histogram("vllm:time_to_first_token_seconds", &self.first_token);
        page.histogram("vllm:inter_token_latency_seconds", &self.between_tokens);
        page.histogram("vllm:e2e_request_latency_seconds", &self.whole_request);
        page.histogram("vllm:request_queue_time_seconds", &self.queue);
        page.histogram("vllm:request_prefill_time_seconds", &self.prefill);
        page.histogram("vllm:request_decode_time_seconds", &self.decode);
        page.counter("sim_aborted_total", extra.aborted);
        page.counter("sim_completed_total", extra.completed);
        page.counter("sim_faulted_total", extra.faulted);
        page.text
    }
}

/// Counts that are not the engine's.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Extra {
    pub(crate) aborted: u64,
    pub(crate) completed: u64,
    pub(crate) faulted: u64,
}

struct Page<'a> {
    text: String,
    model: &'a str,
}

impl Page<'_> {
    fn head(&mut self, name: &str, kind: &str) {
        let _ = writeln!(self.text, "# HELP {name} Simulated.");
        let _ = writeln!(self.text, "# TYPE {name} {kind}");
    }

    fn sample(&mut self, name: &str, labels: &[(&str, &str)], value: f64) {
        let model = escape(self.model);
        let _ = write!(self.text, "{name}{{engine=\"0\",model_name=\"{model}\"");
        for (label, text) in labels {
            let _ = write!(self.text, ",{label}=\"{}\"", escape(text));
        }
        let _ = writeln!(self.text, "}} {value:?}");
    }

    fn gauge(&mut self, name: &str, value: f64) {
        self.head(name, "gauge");
        self.sample(name, &[], value);
    }

    fn counter(&mut self, name: &str, value: u64) {
        self.head(name, "counter");
        self.sample(name, &[], value as f64);
    }

    fn histogram(&mut self, name: &str, histogram: &Histogram) {
        self.head(name, "histogram");
        let mut total = 0;
        let bounds = histogram.bounds.iter().map(|bound| format!("{bound:?}"));
        for (bound, count) in bounds.chain(["+Inf".to_owned()]).zip(&histogram.counts) {
            total += count;
            self.sample(&format!("{name}_bucket"), &[("le", &bound)], total as f64);
        }
        self.sample(&format!("{name}_sum"), &[], histogram.sum);
        self.sample(&format!("{name}_count"), &[], total as f64);
    }
}

fn escape(text: &str) -> String {
    text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}
