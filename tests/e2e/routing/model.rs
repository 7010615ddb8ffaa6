//! Matching by the `model` field of a JSON body.

use outrigger_tests::harness::{Call, Protocol, Proxy, Raw};
use serde_json::json;

use super::{route_of, routes, taken};

async fn models() -> Proxy {
    routes(&["{ model: llama-* }", "{ model: [qwen, 'mi\"x'] }", "{ path: /plain }"]).await
}

async fn of_body(proxy: &Proxy, body: &str) -> Option<usize> {
    route_of(proxy, Call::post("/").body(body.to_owned())).await
}

#[tokio::test]
async fn the_model_at_the_head_of_a_body_decides() {
    let proxy = models().await;
    assert_eq!(of_body(&proxy, r#"{"model":"llama-3","messages":[]}"#).await, Some(0));
    assert_eq!(of_body(&proxy, r#"{"model":"qwen","messages":[]}"#).await, Some(1));
    assert_eq!(of_body(&proxy, r#"{"model":"gpt","messages":[]}"#).await, None);
}

#[tokio::test]
async fn the_model_at_the_tail_of_a_long_body_decides() {
    let proxy = models().await;
    let long = "word \\\" ".repeat(65_000);
    let body = format!(r#"{{"messages":[{{"content":"{long}"}}],"model":"llama-3"}}"#);
    assert!(body.len() > 500_000);
    assert_eq!(of_body(&proxy, &body).await, Some(0));
}

#[tokio::test]
async fn a_model_beyond_body_scan_is_not_looked_for() {
    let proxy = Proxy::start(
        "limits: { body_scan: 4KiB }\n\
         routes: [{ match: { model: m }, respond: { status: 201 } }, { respond: { status: 202 } }]",
    )
    .await;
    let near = format!(r#"{{"x":"{}","model":"m"}}"#, "a".repeat(1000));
    let far = format!(r#"{{"x":"{}","model":"m"}}"#, "a".repeat(2_000_000));
    assert_eq!(Call::post("/").body(near).send(proxy.address()).await.status, 201);
    assert_eq!(Call::post("/").body(far).send(proxy.address()).await.status, 202);
}

#[tokio::test]
async fn the_model_is_found_in_a_chunked_body() {
    let proxy = models().await;
    let (call, feed) = Call::post("/").fed();
    let send = async {
        for piece in ["{\"mess", "ages\":[],\"mo", "del\" : \"lla", "ma-3\"", "}"] {
            feed.send(piece).await;
        }
        drop(feed);
    };
    let (answer, ()) = tokio::join!(call.send(proxy.address()), send);
    assert_eq!(taken(&answer), Some(0));
}

#[tokio::test]
async fn the_model_decides_before_the_body_has_ended() {
    let proxy = models().await;
    let mut raw = Raw::connect(proxy.address()).await;
    raw.send("POST / HTTP/1.1\r\nhost: h\r\ncontent-length: 100000\r\n\r\n{\"model\":\"llama-3\",")
        .await;
    assert_eq!(raw.response().await.text(), "route 0");
}

#[tokio::test]
async fn the_model_of_an_h2_request_decides() {
    let proxy = models().await;
    let call = Call::post("/").json(json!({"messages": [], "model": "llama-3"}));
    assert_eq!(route_of(&proxy, call.over(Protocol::H2)).await, Some(0));
}

#[tokio::test]
async fn an_escaped_model_is_unescaped() {
    let proxy = models().await;
    assert_eq!(of_body(&proxy, r#"{"model":"ll\u0061ma-3"}"#).await, Some(0));
    assert_eq!(of_body(&proxy, r#"{"model":"mi\"x"}"#).await, Some(1));
    assert_eq!(of_body(&proxy, r#"{"mod\u0065l":"qwen"}"#).await, Some(1));
}

#[tokio::test]
async fn a_model_inside_another_value_is_not_the_model() {
    let proxy = models().await;
    for body in [
        r#"{"options":{"model":"llama-3"}}"#,
        r#"{"list":[{"model":"llama-3"}]}"#,
        r#"{"text":"\"model\":\"llama-3\""}"#,
        r#"[{"model":"llama-3"}]"#,
        r#"{"model":{"model":"llama-3"}}"#,
    ] {
        assert_eq!(of_body(&proxy, body).await, None, "{body}");
    }
    let decoy = r#"{"options":{"model":"llama-3"},"model":"qwen"}"#;
    assert_eq!(of_body(&proxy, decoy).await, Some(1));
}

#[tokio::test]
async fn a_model_that_is_no_text_matches_nothing() {
    let proxy = models().await;
    for body in [r#"{"model":1}"#, r#"{"model":null}"#, r#"{"model":["llama-3"]}"#, "{}"] {
        assert_eq!(of_body(&proxy, body).await, None, "{body}");
    }
}

#[tokio::test]
async fn a_body_with_two_models_is_refused() {
    let proxy = models().await;
    for body in [
        r#"{"model":"llama-3","model":"qwen"}"#,
        r#"{"model":"llama-3","x":1,"mod\u0065l":"qwen"}"#,
    ] {
        let answer = Call::post("/v1/chat/completions").body(body).send(proxy.address()).await;
        assert_eq!((answer.status, &answer.json()["error"]["code"]), (400, &"bad_request".into()));
        assert!(answer.json()["error"]["message"].as_str().unwrap().contains("model"), "{body}");
    }
}

#[tokio::test]
async fn a_body_that_is_not_json_has_no_model() {
    let proxy = models().await;
    for body in
        ["model=llama-3", "", "\0\u{1}\u{2}", "{\"model\"", "\"model\"", "<model>llama-3</model>"]
    {
        assert_eq!(of_body(&proxy, body).await, None, "{body:?}");
        assert_eq!(route_of(&proxy, Call::post("/plain").body(body)).await, Some(2), "{body:?}");
    }
}

#[tokio::test]
async fn a_request_without_a_body_has_no_model() {
    let proxy = models().await;
    assert_eq!(route_of(&proxy, Call::get("/")).await, None);
    assert_eq!(route_of(&proxy, Call::get("/plain")).await, Some(2));
}

#[tokio::test]
async fn white_space_does_not_hide_the_model() {
    let proxy = models().await;
    assert_eq!(of_body(&proxy, "\r\n\t { \"model\"\n:\t\"qwen\" }").await, Some(1));
}

#[tokio::test]
async fn the_model_counts_only_where_the_rest_of_the_match_holds() {
    let proxy = routes(&["{ path: /a, model: m }", "{ path: /b, model: m }"]).await;
    let call = |path| Call::post(path).json(json!({"model": "m"}));
    assert_eq!(route_of(&proxy, call("/b")).await, Some(1));
    assert_eq!(route_of(&proxy, call("/c")).await, None);
}

#[tokio::test]
async fn a_body_that_was_searched_arrives_whole() {
    let simulator =
        outrigger_tests::sim::Simulator::start(outrigger_tests::sim::Options::named("sim").fast());
    let proxy = Proxy::start(&format!(
        "backends: {{ main: {{ endpoints: ['{}'] }} }}\n\
         routes: [{{ match: {{ model: m }}, backend: main }}, {{ backend: main }}]",
        simulator.endpoint()
    ))
    .await;
    let long = "x".repeat(3_000_000);
    for body in [
        format!(r#"{{"model":"m","x":"{long}"}}"#),
        format!(r#"{{"x":"{}","model":"m"}}"#, &long[..600_000]),
        long,
    ] {
        let hash = outrigger_tests::sim::sha256(body.as_bytes());
        let length = body.len() as u64;
        let echo = Call::post("/echo").body(body).send(proxy.address()).await.echo();
        assert_eq!((echo.bytes, echo.sha256), (length, hash));
    }
}
