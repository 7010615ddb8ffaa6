//! The names that matter on the metrics page of each engine.
//!
//! Sources: the engines' own metrics code and documentation, and the model server protocol of the
//! Gateway API inference extension, which names the three loads for vLLM, SGLang, trtllm-serve and
//! Triton's TensorRT-LLM backend.
//!
//! A heartbeat must move, within seconds, while a single long answer is generated. So counters of
//! finished requests and of their tokens (`sglang:generation_tokens_total`,
//! `trtllm_generation_tokens_total`) are none, and neither is a rate (`sglang:gen_throughput`),
//! which can stand still while work is done.

use super::Engine;
use Engine::{LlamaCpp, Sglang, TensorrtLlm, Tgi, Triton, TritonTensorrtLlm, Vllm};
use Pick::{Every, OncePerRank, With};
use Quantity::{KvUsage, Progress, Running, Waiting};

/// What a metric tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Quantity {
    /// Requests that wait in the engine.
    Waiting,
    /// Requests that the engine works on.
    Running,
    /// The share of the key-value cache in use.
    KvUsage,
    /// A counter that grows with the work.
    Progress,
}

impl Quantity {
    pub(super) const COUNT: usize = 4;
    /// Those that are a load.
    pub(super) const LOAD: [Quantity; 3] = [Waiting, Running, KvUsage];
}

/// Which series of a metric count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pick {
    /// Every one.
    Every,
    /// Those with this label.
    With(&'static str, &'static str),
    /// One for each data-parallel rank. SGLang repeats a value for every tensor and pipeline rank
    /// of a data-parallel rank when it is told to, and splits one by priority beside the total,
    /// which has an empty priority.
    OncePerRank,
}

/// A metric that matters.
#[derive(Debug)]
pub(super) struct Metric {
    /// Without the engine's prefix.
    pub(super) name: &'static str,
    pub(super) engine: Engine,
    pub(super) quantity: Quantity,
    pub(super) pick: Pick,
}

const fn metric(engine: Engine, quantity: Quantity, name: &'static str, pick: Pick) -> Metric {
    Metric { name, engine, quantity, pick }
}

static VLLM: [Metric; 6] = [
    metric(Vllm, Waiting, "num_requests_waiting", Every),
    metric(Vllm, Running, "num_requests_running", Every),
    metric(Vllm, KvUsage, "kv_cache_usage_perc", Every),
    // An older name; a page with both has the same value twice.
    metric(Vllm, KvUsage, "gpu_cache_usage_perc", Every),
    metric(Vllm, Progress, "iteration_tokens_total_count", Every),
    // Counted at every step as well, and the only one that vLLM inside of Triton has.
    metric(Vllm, Progress, "generation_tokens_total", Every),
];

static SGLANG: [Metric; 5] = [
    metric(Sglang, Waiting, "num_queue_reqs", OncePerRank),
    metric(Sglang, Running, "num_running_reqs", OncePerRank),
    metric(Sglang, KvUsage, "token_usage", OncePerRank),
    // Every few dozen steps; and every piece of an answer, in versions that have no such counter.
    metric(Sglang, Progress, "realtime_tokens_total", Every),
    metric(Sglang, Progress, "inter_token_latency_seconds_count", Every),
];

static TGI: [Metric; 3] = [
    metric(Tgi, Waiting, "queue_size", Every),
    metric(Tgi, Running, "batch_current_size", Every),
    metric(Tgi, Progress, "batch_inference_count", Every),
];

static LLAMA_CPP: [Metric; 4] = [
    metric(LlamaCpp, Waiting, "requests_deferred", Every),
    metric(LlamaCpp, Running, "requests_processing", Every),
    // Only in older builds.
    metric(LlamaCpp, KvUsage, "kv_cache_usage_ratio", Every),
    metric(LlamaCpp, Progress, "n_decode_total", Every),
];

static TENSORRT_LLM: [Metric; 3] = [
    metric(TensorrtLlm, Waiting, "num_requests_waiting", Every),
    metric(TensorrtLlm, Running, "num_requests_running", Every),
    metric(TensorrtLlm, KvUsage, "kv_cache_utilization", Every),
];

static TRITON: [Metric; 6] = [
    metric(Triton, Waiting, "inference_pending_request_count", Every),
    metric(Triton, Progress, "inference_exec_count", Every),
    metric(TritonTensorrtLlm, Waiting, "trt_llm_request_metrics", With("request_type", "waiting")),
    metric(
        TritonTensorrtLlm,
        Running,
        "trt_llm_request_metrics",
        With("request_type", "scheduled"),
    ),
    metric(
        TritonTensorrtLlm,
        KvUsage,
        "trt_llm_kv_cache_block_metrics",
        With("kv_cache_block_type", "fraction"),
    ),
    metric(
        TritonTensorrtLlm,
        Progress,
        "trt_llm_general_metrics",
        With("general_type", "iteration_counter"),
    ),
];

/// The metrics under the prefix that a name begins with, and the rest of the name.
pub(super) fn of_prefix(name: &[u8]) -> Option<(&'static [Metric], &[u8])> {
    let (metrics, prefixes): (&'static [Metric], &[&str]) = match name.first()? {
        b'v' => (&VLLM, &["vllm:"]),
        b's' => (&SGLANG, &["sglang:", "sglang_"]),
        b'l' => (&LLAMA_CPP, &["llamacpp:"]),
        b'n' => (&TRITON, &["nv_"]),
        b't' if name.starts_with(b"tgi_") => (&TGI, &["tgi_"]),
        b't' => (&TENSORRT_LLM, &["trtllm_", "trtllm:"]),
        _ => return None,
    };
    prefixes.iter().find_map(|prefix| Some((metrics, name.strip_prefix(prefix.as_bytes())?)))
}
