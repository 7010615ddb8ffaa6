//! The model server: its answers, its streams and its metrics.

use outrigger_tests::harness::{Call, Event, Metrics};
use outrigger_tests::sim::{Options, Simulator};
use serde_json::json;

fn simulator() -> Simulator {
    Simulator::start(Options::named("one").fast())
}

#[tokio::test]
async fn it_says_what_it_is() {
    let simulator = simulator();
    let answer = Call::get("/v1/models").send(simulator.addr).await;
    assert_eq!(answer.header("server"), Some("outrigger-sim"));
    assert_eq!(answer.json()["data"][0]["owned_by"], "outrigger-sim");
}

#[tokio::test]
async fn a_chat_is_answered_whole_with_its_usage() {
    let simulator = simulator();
    let answer = Call::chat("0123456789abcdef").max_tokens(7).send(simulator.addr).await;
    let body = answer.json();
    assert_eq!(body["object"], "chat.completion");
    let usage = json!({"prompt_tokens": 4, "completion_tokens": 7, "total_tokens": 11});
    assert_eq!(body["usage"], usage);
    let choice = &body["choices"][0];
    assert_eq!(
        (&choice["finish_reason"], &choice["message"]["role"]),
        (&json!("length"), &json!("assistant"))
    );
    assert_eq!(
        choice["message"]["content"].as_str().map(|t| t.split_whitespace().count()),
        Some(7)
    );
}

#[tokio::test]
async fn a_streamed_chat_says_the_same_in_frames_as_vllm_writes_them() {
    let simulator = simulator();
    let ask = || Call::chat("how deep is the lagoon?").max_tokens(5);
    let whole = ask().send(simulator.addr).await.json();
    let streaming = ask().streaming().field("stream_options", json!({"include_usage": true}));
    let streaming = streaming.open(simulator.addr).await;
    assert_eq!(streaming.header("content-type"), Some("text/event-stream; charset=utf-8"));
    let transcript = streaming.events().await;
    assert!(transcript.is_complete());
    let events: Vec<_> = transcript.events.iter().map(Event::json).collect();
    assert_eq!(events.len(), 1 + 5 + 1 + 1, "role, tokens, usage, [DONE]");
    assert_eq!(events[0]["choices"][0]["delta"], json!({"role": "assistant", "content": ""}));
    assert_eq!(events[0]["object"], "chat.completion.chunk");
    assert_eq!(events[5]["choices"][0]["finish_reason"], "length");
    assert_eq!(events[6]["choices"], json!([]));
    assert_eq!(events[6]["usage"], whole["usage"]);
    assert_eq!(json!(transcript.text()), whole["choices"][0]["message"]["content"]);
}

#[tokio::test]
async fn completions_and_embeddings_answer_too() {
    let simulator = simulator();
    let ask = json!({"model": "m", "prompt": "abcdefgh", "max_tokens": 3, "stream": true});
    let transcript =
        Call::post("/v1/completions").json(ask).open(simulator.addr).await.events().await;
    assert!(transcript.is_complete());
    assert_eq!(transcript.events.len(), 4);
    assert_eq!(transcript.events[0].json()["object"], "text_completion");
    let ask = json!({"model": "m", "input": "abcdefgh"});
    let body = Call::post("/v1/embeddings").json(ask).send(simulator.addr).await.json();
    assert_eq!(body["data"][0]["embedding"].as_array().map(Vec::len), Some(16));
    assert_eq!(body["usage"]["prompt_tokens"], 2);
}

#[tokio::test]
async fn each_prompt_of_a_list_gets_what_it_would_get_alone() {
    let simulator = simulator();
    let ask = async |path: &str, field: &str, prompts: serde_json::Value| {
        let body = json!({"model": "m", field: prompts, "max_tokens": 5, "n": 2});
        let answer = Call::post(path).json(body).send(simulator.addr).await;
        assert_eq!(answer.status, 200, "{}", answer.text());
        answer.json()
    };
    for (path, field, output, of_each) in
        [("/v1/embeddings", "input", "data", 1), ("/v1/completions", "prompt", "choices", 2)]
    {
        let (texts, tokens) = (json!(["reef", "a longer text"]), json!([[1, 2], [3, 4, 5]]));
        for list in [texts, tokens] {
            let together = ask(path, field, list.clone()).await;
            let mut expected = Vec::new();
            for prompt in list.as_array().expect("a list") {
                let alone = ask(path, field, prompt.clone()).await;
                let outputs = alone[output].as_array().expect("outputs").clone();
                assert_eq!(outputs.len(), of_each);
                expected.extend(outputs);
            }
            for (index, item) in expected.iter_mut().enumerate() {
                item["index"] = index.into();
            }
            assert_eq!(together[output], json!(expected), "{path} {list}");
            expected.iter_mut().for_each(|item| item["index"] = 0.into());
            let different = expected.windows(2).all(|two| two[0] != two[1]);
            assert!(different, "different prompts have different outputs");
        }
    }
}

#[tokio::test]
async fn usage_is_that_of_all_prompts_of_a_list() {
    let simulator = simulator();
    let body = json!({"prompt": ["12345678", "1"], "max_tokens": 5, "n": 2});
    let body = Call::post("/v1/completions").json(body).send(simulator.addr).await.json();
    let usage = json!({"prompt_tokens": 3, "completion_tokens": 20, "total_tokens": 23});
    assert_eq!(body["usage"], usage);
}

#[tokio::test]
async fn embeddings_have_the_form_that_was_asked_for() {
    let simulator = simulator();
    let ask = |form: &str| json!({"input": "reef", "dimensions": 3, "encoding_format": form});
    let send = async |form: &str| {
        let answer = Call::post("/v1/embeddings").json(ask(form)).send(simulator.addr).await;
        answer.json()["data"][0]["embedding"].clone()
    };
    let (floats, text) = (send("float").await, send("base64").await);
    assert_eq!(floats.as_array().map(Vec::len), Some(3));
    // Twelve bytes.
    let text = text.as_str().expect("a text");
    assert!(text.len() == 16 && !text.contains('='), "{text}");
    let body = json!({"input": "reef", "dimensions": 1, "encoding_format": "base64"});
    let body = Call::post("/v1/embeddings").json(body).send(simulator.addr).await.json();
    let text = body["data"][0]["embedding"].as_str().unwrap_or_default().to_owned();
    assert!(text.len() == 8 && text.ends_with("=="), "{text}");
}

#[tokio::test]
async fn a_list_without_prompts_is_refused() {
    let simulator = simulator();
    for input in [json!([]), json!([""]), json!(["reef", ""]), json!([[]]), json!(null)] {
        let body = json!({"input": input});
        let answer = Call::post("/v1/embeddings").json(body).send(simulator.addr).await;
        assert_eq!(answer.status, 400, "{input}");
    }
}

#[tokio::test]
async fn answers_without_a_limit_stop_by_themselves_and_repeat() {
    let (one, two) = (simulator(), Simulator::start(Options::named("two").fast()));
    let ask = || Call::chat("what floats beside a canoe?");
    let (first, again) = (ask().send(one.addr).await.json(), ask().send(two.addr).await.json());
    assert_eq!(first["choices"][0]["finish_reason"], "stop");
    assert_eq!(first["choices"], again["choices"]);
    assert_eq!(first["usage"], again["usage"]);
}

#[tokio::test]
async fn wrong_requests_are_answered_as_errors() {
    let simulator = Simulator::start(Options::named("one").fast().models(&["reef"]));
    let status = async |call: Call| call.send(simulator.addr).await.status;
    assert_eq!(status(Call::chat("hello").model("reef").max_tokens(1)).await, 200);
    assert_eq!(status(Call::chat("hello").model("atoll")).await, 404);
    assert_eq!(status(Call::chat("hello").model("reef").max_tokens(0)).await, 400);
    assert_eq!(status(Call::chat("hello").model("reef").max_tokens(600_000)).await, 400);
    assert_eq!(status(Call::post("/v1/chat/completions").body("{")).await, 400);
    assert_eq!(status(Call::get("/v1/chat/completions")).await, 405);
}

#[tokio::test]
async fn the_head_of_a_prompt_is_found_in_the_cache() {
    let simulator = simulator();
    let head = "word ".repeat(100);
    for question in ["why?", "when?"] {
        Call::chat(&format!("{head}{question}")).max_tokens(1).send(simulator.addr).await;
    }
    let metrics = Metrics::parse(&Call::get("/metrics").send(simulator.addr).await.text());
    // 126 tokens and 126; of the 500 bytes that they share, seven blocks of 64 bytes are full.
    assert_eq!(metrics.get("vllm:prefix_cache_queries_total", &[]), 252.0);
    assert_eq!(metrics.get("vllm:prefix_cache_hits_total", &[]), 112.0);
}

#[tokio::test]
async fn metrics_have_the_names_and_labels_of_vllm() {
    let simulator = Simulator::start(Options::named("one").fast().models(&["reef"]));
    Call::chat("0123456789abcdef").model("reef").max_tokens(9).send(simulator.addr).await;
    let page = Call::get("/metrics").send(simulator.addr).await;
    let metrics = Metrics::parse(&page.text());
    let labels = [("engine", "0"), ("model_name", "reef")];
    for gauge in
        ["vllm:num_requests_running", "vllm:num_requests_waiting", "vllm:kv_cache_usage_perc"]
    {
        assert!(metrics.has(gauge, &labels), "{gauge}");
        assert_eq!(metrics.get(gauge, &labels), 0.0, "{gauge} of an idle engine");
    }
    assert_eq!(metrics.get("vllm:prompt_tokens_total", &labels), 4.0);
    assert_eq!(metrics.get("vllm:generation_tokens_total", &labels), 9.0);
    assert_eq!(metrics.get("vllm:request_success_total", &[("finished_reason", "length")]), 1.0);
    for (histogram, count) in [
        ("vllm:time_to_first_token_seconds", 1.0),
        ("vllm:inter_token_latency_seconds", 8.0),
        ("vllm:e2e_request_latency_seconds", 1.0),
        ("vllm:request_queue_time_seconds", 1.0),
        ("vllm:request_prefill_time_seconds", 1.0),
        ("vllm:request_decode_time_seconds", 1.0),
        ("vllm:iteration_tokens_total", 9.0),
    ] {
        assert_eq!(metrics.get(&format!("{histogram}_count"), &labels), count, "{histogram}");
        let last = metrics.get(&format!("{histogram}_bucket"), &[("le", "+Inf")]);
        assert_eq!(last, count, "{histogram}");
    }
    assert_eq!(metrics.get("vllm:cache_config_info", &[("block_size", "16")]), 1.0);
}
