//! Compressed requests: what they hold reaches the engine as if nobody had compressed it, and what must not be unpacked
//! is refused, soon and with the right words.

use std::time::{Duration, Instant};

use outrigger_tests::harness::{Answer, Call, Client, Load, Protocol, Proxy, Raw};
use outrigger_tests::sim::{Fault, Rule, Simulator, pattern, sha256, text};
use serde_json::{Value, json};
use tokio::task::JoinSet;

use super::super::fleet::{attempts, await_idle, endpoints, one_backend, sim};
use super::coding::{ALL, READ, encode, name};
use super::{CLIENTS, UPSTREAMS, before};

const UNPACK: &str = "decompress: { max: 1MiB, ratio: 100 }";

async fn pair(route: &str) -> (Simulator, Proxy) {
    let sim = sim("sim");
    let proxy = before(&sim, "http1", route).await;
    (sim, proxy)
}

/// A POST whose body is in this coding.
fn packed(target: &str, coding: &str, body: &[u8]) -> Call {
    let call = Call::post(target).header("content-encoding", name(coding));
    call.body(encode(coding, body))
}

fn packed_json(target: &str, coding: &str, body: &Value) -> Call {
    packed(target, coding, body.to_string().as_bytes()).header("content-type", "application/json")
}

fn chat_body(prompt: &str, more: &Value) -> Value {
    let mut body = json!({"model": "sim-model", "max_tokens": 4,
        "messages": [{"role": "user", "content": prompt}]});
    let more = more.as_object().expect("members").clone();
    body.as_object_mut().expect("members").extend(more);
    body
}

/// A prompt that does not shrink so much that it looks like a bomb.
fn words(length: usize) -> String {
    String::from_utf8(text(length)).expect("letters").replace('\n', " ")
}

/// The engine got exactly this, and a head that says so.
fn arrived(answer: &Answer, body: &[u8], told: &str) {
    assert_eq!(answer.status, 200, "{told}: {}", answer.text());
    let echo = answer.echo();
    assert_eq!((echo.bytes, echo.sha256), (body.len() as u64, sha256(body)), "{told}");
    let echo = answer.echo();
    assert_eq!(echo.header("content-encoding"), None, "{told}");
    if let Some(length) = echo.header("content-length") {
        assert_eq!(length, body.len().to_string(), "{told}");
    }
}

#[tokio::test]
async fn what_was_compressed_arrives() {
    let sim = sim("sim");
    for upstream in UPSTREAMS {
        let proxy = before(&sim, upstream, UNPACK).await;
        for client in CLIENTS {
            for coding in READ {
                for length in [1, 1_000, 700_000] {
                    let (body, told) =
                        (text(length), format!("{coding} {length} {upstream} {client:?}"));
                    let call = packed("/echo", coding, &body).over(client);
                    arrived(&call.send(proxy.address()).await, &body, &told);
                }
            }
        }
    }
}

#[tokio::test]
async fn digests_of_other_bytes_are_not_passed_on() {
    let (_sim, proxy) = pair(UNPACK).await;
    let call = packed("/echo", "gzip", b"hello").header("content-digest", "sha-256=:AAAA:");
    let echo = call.send(proxy.address()).await.echo();
    assert_eq!((echo.header("content-digest"), echo.bytes), (None, 5));
}

#[tokio::test]
async fn a_body_that_comes_in_pieces_arrives_in_pieces() {
    let sim = sim("sim");
    for upstream in UPSTREAMS {
        let proxy = before(&sim, upstream, UNPACK).await;
        for client in CLIENTS {
            for coding in READ {
                let body = text(3_000);
                let call = Call::post("/echo").header("content-encoding", name(coding));
                let (call, feed) = call.over(client).fed();
                let address = proxy.address();
                let sending = tokio::spawn(async move { call.send(address).await });
                for byte in encode(coding, &body).chunks(7) {
                    assert!(feed.send(byte.to_vec()).await);
                }
                drop(feed);
                let told = format!("{coding} {upstream} {client:?}");
                arrived(&sending.await.expect("an answer"), &body, &told);
            }
        }
    }
}

#[tokio::test]
async fn what_can_be_unpacked_is_passed_on_before_the_rest_comes() {
    let (_sim, proxy) = pair("decompress: { max: 64MiB }").await;
    let body = text(400_000);
    let whole = encode("gzip", &body);
    let (first, rest) = whole.split_at(whole.len() / 2);
    let (call, feed) = Call::post("/mirror").header("content-encoding", "gzip").fed();
    assert!(feed.send(first.to_vec()).await);
    let mut streaming = call.open(proxy.address()).await;
    let mut came = Vec::new();
    while came.len() < 100_000 {
        came.extend_from_slice(&streaming.part().await.expect("half of the body"));
    }
    assert!(feed.send(rest.to_vec()).await);
    drop(feed);
    came.extend_from_slice(&streaming.rest().await.body);
    assert!(came == body);
}

#[tokio::test]
async fn one_coding_on_top_of_another_is_taken_off() {
    let (_sim, proxy) = pair(UNPACK).await;
    let body = text(50_000);
    for (inner, outer) in [("gzip", "zstd"), ("br", "gzip"), ("zstd", "br"), ("gzip", "gzip")] {
        let both = encode(outer, &encode(inner, &body));
        let call = Call::post("/echo").header("content-encoding", &format!("{inner}, {outer}"));
        arrived(&call.body(both.clone()).send(proxy.address()).await, &body, inner);
        let call = Call::post("/echo").header("content-encoding", inner);
        let call = call.header("content-encoding", outer).body(both);
        arrived(&call.send(proxy.address()).await, &body, "in two lines");
    }
    let call = Call::post("/echo").header("content-encoding", "identity, gzip");
    let answer = call.body(encode("gzip", &body)).send(proxy.address()).await;
    arrived(&answer, &body, "identity is none");
}

#[tokio::test]
async fn several_members_are_one_body() {
    let (_sim, proxy) = pair(UNPACK).await;
    for coding in ["gzip", "zstd"] {
        let both = [encode(coding, b"how deep "), encode(coding, b"is the lagoon?")].concat();
        let call = Call::post("/echo").header("content-encoding", coding).body(both);
        arrived(&call.send(proxy.address()).await, b"how deep is the lagoon?", coding);
    }
}

#[tokio::test]
async fn an_empty_body_is_empty_in_every_coding() {
    let sim = sim("sim");
    for upstream in UPSTREAMS {
        let proxy = before(&sim, upstream, UNPACK).await;
        for client in CLIENTS {
            for coding in READ {
                let none = Call::post("/echo").header("content-encoding", name(coding));
                let answer = none.over(client).send(proxy.address()).await;
                assert_eq!((answer.status, answer.echo().bytes), (200, 0), "{coding} {client:?}");
                let (call, feed) =
                    Call::post("/echo").header("content-encoding", name(coding)).over(client).fed();
                drop(feed);
                arrived(&call.send(proxy.address()).await, b"", coding);
                arrived(
                    &packed("/echo", coding, b"").over(client).send(proxy.address()).await,
                    b"",
                    coding,
                );
            }
        }
    }
}

#[tokio::test]
async fn without_the_setting_it_goes_on_as_it_is() {
    let sim = sim("sim");
    for upstream in UPSTREAMS {
        let proxy = before(&sim, upstream, "").await;
        for coding in READ.into_iter().chain(["compress"]) {
            let body = encode(coding, &text(5_000));
            let call = Call::post("/echo").header("content-encoding", name(coding));
            let echo = call.body(body.clone()).send(proxy.address()).await.echo();
            assert_eq!((echo.sha256.as_str(), echo.bytes), (&*sha256(&body), body.len() as u64));
            assert_eq!(echo.header("content-encoding"), Some(name(coding)));
            assert_eq!(echo.header("content-length"), Some(&*body.len().to_string()));
        }
    }
}

#[tokio::test]
async fn with_the_setting_what_is_not_compressed_goes_on_as_it_is() {
    let (_sim, proxy) = pair(UNPACK).await;
    let body = pattern(3_000_000);
    for coding in [None, Some("identity")] {
        let mut call = Call::post("/echo").body(body.clone());
        if let Some(coding) = coding {
            call = call.header("content-encoding", coding);
        }
        let echo = call.send(proxy.address()).await.echo();
        assert_eq!((echo.bytes, echo.sha256), (3_000_000, sha256(&body)));
    }
}

#[tokio::test]
async fn a_model_is_found_in_a_compressed_body() {
    let (a, b) = (sim("a"), sim("b"));
    let proxy = Proxy::start(&format!(
        "backends: {{ a: {{ endpoints: {} }}, b: {{ endpoints: {} }} }}\n\
         routes:\n  - {{ match: {{ model: alpha }}, backend: a, {UNPACK} }}\n\
         \x20 - {{ match: {{ model: beta }}, backend: b, {UNPACK}, rewrite: {{ model: sim-model-with-a-long-name }} }}\n",
        endpoints(&[&a]),
        endpoints(&[&b]),
    ))
    .await;
    for client in CLIENTS {
        for coding in READ {
            for (model, by) in [("alpha", "a"), ("beta", "b")] {
                let body = chat_body(&words(90_000), &json!({"model": model}));
                let call = packed_json("/v1/chat/completions", coding, &body).over(client);
                let answer = call.send(proxy.address()).await;
                assert_eq!((answer.status, answer.by()), (200, by), "{coding}: {}", answer.text());
                let rewritten = if by == "a" { model } else { "sim-model-with-a-long-name" };
                assert_eq!(answer.json()["model"], rewritten);
            }
            let body = chat_body("how deep?", &json!({"model": "gamma"}));
            let call = packed_json("/v1/chat/completions", coding, &body).over(client);
            assert_eq!(call.send(proxy.address()).await.status, 404);
        }
    }
}

#[tokio::test]
async fn a_rewritten_body_is_the_same_but_for_its_model() {
    let sim = sim("sim");
    let route = format!("{UNPACK}, rewrite: {{ model: other }}");
    for upstream in UPSTREAMS {
        let proxy = before(&sim, upstream, &route).await;
        for coding in READ {
            let tail = words(500_000);
            let body = format!("{{\"model\":\"mine\",\"prompt\":\"{tail}\"}}");
            let call = packed("/echo", coding, body.as_bytes());
            let call = call.header("content-type", "application/json");
            let expected = body.replace("\"mine\"", "\"other\"");
            arrived(&call.send(proxy.address()).await, expected.as_bytes(), coding);
        }
    }
}

/// Three routes, of which the second decompresses.
async fn three_routes(first: &str, second: &str, third: &str) -> (Vec<Simulator>, Proxy) {
    let fleet = vec![sim("a"), sim("b"), sim("c")];
    let backends: Vec<_> = fleet
        .iter()
        .map(|s| format!("{}: {{ endpoints: {} }}", s.name(), endpoints(&[s])))
        .collect();
    let proxy = Proxy::start(&format!(
        "backends: {{ {} }}\nroutes:\n  - {{ backend: a, {first} }}\n  - {{ backend: b, {second} }}\n\
         \x20 - {{ backend: c, {third} }}\n",
        backends.join(", "),
    ))
    .await;
    (fleet, proxy)
}

/// A compressed body arrived as it was sent.
fn untouched(answer: &Answer, coding: &str, body: &[u8], told: &str) {
    assert_eq!(answer.status, 200, "{told}: {}", answer.text());
    let (echo, packed) = (answer.echo(), encode(coding, body));
    assert_eq!((echo.bytes, &*echo.sha256), (packed.len() as u64, &*sha256(&packed)), "{told}");
    assert_eq!(echo.header("content-encoding"), Some(name(coding)), "{told}");
    assert_eq!(echo.header("content-digest"), Some("sha-256=:AAAA:"), "{told}");
}

#[tokio::test]
async fn routes_that_read_the_body_before_or_after_do_not_disturb() {
    let beta = format!("match: {{ model: beta }}, {UNPACK}");
    let (_fleet, proxy) = three_routes("match: { model: alpha }", &beta, UNPACK).await;
    for coding in READ {
        for (model, by) in [("alpha", "c"), ("beta", "b"), ("gamma", "c")] {
            let body = json!({"model": model, "prompt": words(100_000)}).to_string();
            let call = packed("/echo", coding, body.as_bytes());
            let call = call.header("content-type", "application/json");
            let answer = call.send(proxy.address()).await;
            assert_eq!(answer.by(), by, "{coding} {model}: the first does not decompress");
            arrived(&answer, body.as_bytes(), coding);
        }
        let body = json!({"model": "alpha"}).to_string();
        let plain =
            Call::post("/echo").body(body.clone()).header("content-type", "application/json");
        assert_eq!(plain.send(proxy.address()).await.by(), "a");
    }
}

/// A route that looks inside and then does not take the request has changed nothing for the next one, which may pass
/// requests on as they are, look for the model as well, or ask for the coding by its name.
#[tokio::test]
async fn what_one_route_unpacks_the_next_gets_as_it_came() {
    let beta = format!("match: {{ model: beta }}, {UNPACK}");
    for (third, by) in [
        ("", "c"),
        ("match: { headers: { content-encoding: '*' } }", "c"),
        ("decompress: off, rewrite: { request_headers: { set: { x-seen: 'yes' } } }", "c"),
    ] {
        let (fleet, proxy) = three_routes("match: { path: /elsewhere }", &beta, third).await;
        for client in CLIENTS {
            for coding in READ {
                for length in [10, 3_000, 300_000] {
                    let told = format!("{coding} {length} {client:?} {third}");
                    let body = json!({"model": "gamma", "prompt": words(length)}).to_string();
                    let whole = |call: Call| {
                        call.header("content-encoding", name(coding))
                            .header("content-digest", "sha-256=:AAAA:")
                            .header("content-type", "application/json")
                            .over(client)
                    };
                    let call = whole(Call::post("/echo")).body(encode(coding, body.as_bytes()));
                    let answer = call.send(proxy.address()).await;
                    assert_eq!(answer.by(), by, "{told}");
                    untouched(&answer, coding, body.as_bytes(), &told);
                    let length = answer.echo().bytes.to_string();
                    assert_eq!(answer.echo().header("content-length"), Some(&*length), "{told}");
                    // The same without a length, in pieces of which the first ones do not tell the model.
                    let (call, feed) = whole(Call::post("/echo")).fed();
                    let sending = tokio::spawn(call.send(proxy.address()));
                    let packed = encode(coding, body.as_bytes());
                    for piece in packed.chunks(packed.len().div_ceil(9)) {
                        assert!(feed.send(piece.to_vec()).await, "{told}");
                    }
                    drop(feed);
                    let answer = sending.await.expect("an answer");
                    untouched(&answer, coding, body.as_bytes(), &told);
                }
            }
        }
        assert_eq!(fleet[1].state().requests(), 0);
    }
}

/// What the first may not unpack so far a later one may: each has its own bounds.
#[tokio::test]
async fn each_route_unpacks_within_its_own_bounds() {
    let first = "match: { model: beta }, decompress: { max: 256KiB, ratio: 1000 }";
    let second = "match: { model: [alpha, gamma] }, decompress: { max: 128KiB, ratio: 1000 }";
    let third = "decompress: { max: 512KiB, ratio: 1000 }";
    let (_fleet, proxy) = three_routes(first, second, third).await;
    for coding in READ {
        for (model, length, status, by) in [
            ("beta", 200_000, 200, "a"),
            ("beta", 400_000, 413, "-"),
            ("gamma", 100_000, 200, "b"),
            ("gamma", 200_000, 413, "-"),
            ("delta", 400_000, 200, "c"),
            ("delta", 600_000, 413, "-"),
        ] {
            let body = json!({"model": model, "prompt": words(length)}).to_string();
            let call = packed("/echo", coding, body.as_bytes());
            let call = call.header("content-type", "application/json");
            let answer = call.send(proxy.address()).await;
            let told = format!("{coding} {model} {length}");
            assert_eq!((answer.status, answer.by()), (status, by), "{told}: {}", answer.text());
            if status == 200 {
                arrived(&answer, body.as_bytes(), &told);
            }
        }
    }
}

#[tokio::test]
async fn another_attempt_sends_it_unpacked_again() {
    for upstream in UPSTREAMS {
        let (a, b) = (sim("a"), sim("b"));
        let backend = format!("protocol: {upstream}, balance: round_robin, ejection: off");
        let proxy = Proxy::start(&one_backend(&[&a, &b], &backend, UNPACK)).await;
        for client in CLIENTS {
            for coding in READ {
                let body = text(300_000);
                let call = packed("/echo", coding, &body).over(client).fault("close;at=a");
                let answer = call.send(proxy.address()).await;
                assert_eq!(answer.by(), "b");
                arrived(&answer, &body, coding);
            }
        }
        let retried = proxy.metrics().await.get("outrigger_retries_total", &[("reason", "reset")]);
        assert!(retried >= 4.0, "{retried}");
    }
}

#[tokio::test]
async fn a_connection_that_was_closed_at_rest_costs_nothing() {
    let (sim, proxy) = pair(UNPACK).await;
    for coding in READ {
        let body = text(40_000);
        arrived(&packed("/echo", coding, &body).send(proxy.address()).await, &body, coding);
        sim.inflict(Rule::always(Fault::Close).times(1));
        let answer = packed("/echo", coding, &body).send(proxy.address()).await;
        arrived(&answer, &body, coding);
        assert_eq!(attempts(&answer), 1);
    }
}

/// A refusal of ours, in no time.
async fn refused(proxy: &Proxy, call: Call, status: u16, outcome: &str, told: &str) {
    let began = Instant::now();
    let answer = call.send(proxy.address()).await;
    let took = began.elapsed();
    assert_eq!(answer.status, status, "{told}: {}", answer.text());
    assert_eq!(answer.json()["outcome"], outcome, "{told}");
    assert!(took < Duration::from_secs(12), "{told}: {took:?}");
}

#[tokio::test]
async fn bombs_are_refused() {
    let bombs: Vec<_> = ALL.map(|coding| (coding, encode(coding, &vec![0; 64 << 20]))).into();
    for route in [
        UNPACK,
        "decompress: { max: 64MiB, ratio: 100 }",
        "decompress: { max: 1MiB, ratio: 10000 }",
    ] {
        for upstream in UPSTREAMS {
            let sim = sim("sim");
            let proxy = before(&sim, upstream, route).await;
            for client in CLIENTS {
                for (coding, bomb) in &bombs {
                    let call = Call::post("/echo").header("content-encoding", coding).over(client);
                    let told = format!("{coding} {route} {upstream} {client:?}");
                    let call = call.body(bomb.clone());
                    refused(&proxy, call, 413, "too_large", &told).await;
                    let twice = format!("{coding}, gzip");
                    let call = Call::post("/echo").header("content-encoding", &twice).over(client);
                    let call = call.body(encode("gzip", bomb));
                    refused(&proxy, call, 413, "too_large", &told).await;
                }
            }
            sim.reached(|state| state.in_flight == 0).await;
            assert_eq!(sim.state().bodies, 0, "no engine got one whole");
            await_idle(&proxy).await;
        }
    }
}

#[tokio::test]
async fn what_is_just_allowed_is_not_refused() {
    let (_sim, proxy) = pair(UNPACK).await;
    for coding in ALL {
        let body = text(1 << 20);
        arrived(&packed("/echo", coding, &body).send(proxy.address()).await, &body, coding);
        let more = text((1 << 20) + 1);
        refused(&proxy, packed("/echo", coding, &more), 413, "too_large", coding).await;
        // Short enough to grow as much as it likes.
        let zeros = vec![0; 60_000];
        arrived(&packed("/echo", coding, &zeros).send(proxy.address()).await, &zeros, coding);
    }
}

#[tokio::test]
async fn what_is_not_what_it_says_is_refused() {
    for route in [UNPACK.to_owned(), format!("match: {{ model: m }}, {UNPACK}")] {
        for upstream in UPSTREAMS {
            let sim = sim("sim");
            let proxy = before(&sim, upstream, &route).await;
            let body = json!({"model": "m", "prompt": "reef ".repeat(9)}).to_string();
            for coding in READ {
                let whole = encode(coding, body.as_bytes());
                let mut spoiled = whole.clone();
                spoiled[0] ^= 0x55;
                let truncated = whole[..whole.len() - 3].to_vec();
                let trailing = [&whole[..], b"more"].concat();
                for (bytes, why) in [
                    (truncated, "truncated"),
                    (trailing, "trailing"),
                    (spoiled, "spoiled"),
                    (b"{\"model\":\"m\"}".to_vec(), "plain"),
                ] {
                    for client in CLIENTS {
                        let told = format!("{coding} {why} {upstream} {client:?} {route}");
                        let call = Call::post("/echo").header("content-encoding", name(coding));
                        let call = call.header("content-type", "application/json").over(client);
                        refused(&proxy, call.body(bytes.clone()), 400, "bad_request", &told).await;
                    }
                }
            }
            sim.reached(|state| state.in_flight == 0).await;
            assert_eq!(sim.state().bodies, 0, "no engine got one whole");
            let fine = packed("/echo", "gzip", body.as_bytes());
            let fine = fine.header("content-type", "application/json").send(proxy.address()).await;
            arrived(&fine, body.as_bytes(), "afterwards");
        }
    }
}

#[tokio::test]
async fn a_checksum_that_is_wrong_is_refused() {
    let (sim, proxy) = pair(UNPACK).await;
    let mut bytes = encode("gzip", &text(100_000));
    let at = bytes.len() - 6;
    bytes[at] ^= 1;
    let call = Call::post("/echo").header("content-encoding", "gzip").body(bytes);
    refused(&proxy, call, 400, "bad_request", "gzip").await;
    assert_eq!(sim.state().bodies, 0);
}

#[tokio::test]
async fn an_unknown_coding_is_refused_with_those_that_are_known() {
    let (sim, proxy) = pair(UNPACK).await;
    for coding in ["compress", "snappy", "gzip, snappy", "gzip, br, zstd", "gzip, gzip, gzip"] {
        for client in CLIENTS {
            let call = Call::post("/echo").header("content-encoding", coding).over(client);
            let answer = call.body("whatever").send(proxy.address()).await;
            assert_eq!(answer.status, 415, "{coding}: {}", answer.text());
            let known = answer.header("accept-encoding").unwrap_or_default();
            assert!(
                ["gzip", "deflate", "br", "zstd"].iter().all(|name| known.contains(name)),
                "{known:?}"
            );
            assert_eq!(answer.header("x-should-retry"), Some("false"));
        }
    }
    assert_eq!(sim.state().requests(), 0, "no engine was asked");
    let log = proxy.await_access(10).await;
    assert!(log.iter().all(|line| line["outcome"] == log[0]["outcome"] && line["status"] == 415));
}

#[tokio::test]
async fn a_client_that_waits_for_permission_gets_it() {
    for upstream in UPSTREAMS {
        let sim = sim("sim");
        let proxy = before(&sim, upstream, UNPACK).await;
        for coding in ALL {
            let body = text(5_000);
            let bytes = encode(coding, &body);
            let mut raw = Raw::connect(proxy.address()).await;
            raw.send(format!(
                "POST /echo HTTP/1.1\r\nhost: h\r\nexpect: 100-continue\r\n\
                 content-encoding: {coding}\r\ncontent-length: {}\r\n\r\n",
                bytes.len()
            ))
            .await;
            assert_eq!(raw.head().await.map(|head| head.status), Ok(100));
            raw.send(&bytes).await;
            let response = raw.response().await;
            let echo: outrigger_tests::sim::Echo = response.json();
            assert_eq!((response.status(), echo.sha256), (200, sha256(&body)));
            assert_eq!(response.informational.len(), 0, "permission is given once");
            // The connection is in order.
            raw.get("/bytes/3").await;
            assert_eq!(raw.response().await.body(), [0, 1, 2]);
        }
    }
}

#[tokio::test]
async fn a_client_that_waits_with_a_coding_that_nobody_knows_is_refused_at_once() {
    let (_sim, proxy) = pair(UNPACK).await;
    let mut raw = Raw::connect(proxy.address()).await;
    raw.send(
        "POST /echo HTTP/1.1\r\nhost: h\r\nexpect: 100-continue\r\n\
         content-encoding: snappy\r\ncontent-length: 9\r\n\r\n",
    )
    .await;
    let response = raw.response().await;
    assert_eq!((response.status(), response.informational.len()), (415, 0));
}

#[tokio::test]
async fn trailers_of_a_compressed_body_are_kept() {
    let sim = sim("sim");
    let proxy = before(&sim, "h2c", UNPACK).await;
    let call = Call::post("/echo").header("content-encoding", "gzip").header("trailer", "x-mine");
    let (call, feed) = call.h2().fed();
    let trailers = http::HeaderMap::from_iter([(
        http::HeaderName::from_static("x-mine"),
        http::HeaderValue::from_static("yes"),
    )]);
    let (answer, sent) = tokio::join!(call.send(proxy.address()), async {
        feed.send(encode("gzip", b"hello")).await && feed.trailers(trailers).await
    });
    assert!(sent);
    let echo = answer.echo();
    assert_eq!((echo.bytes, echo.trailers), (5, vec![("x-mine".to_owned(), "yes".to_owned())]));
}

#[tokio::test]
async fn twenty_megabytes_come_out_of_every_coding() {
    let sim = sim("sim");
    let body = text(20_000_000);
    for upstream in UPSTREAMS {
        let proxy = before(&sim, upstream, "decompress: { max: 32MiB }").await;
        for (client, coding) in
            [(Protocol::Http1, "zstd"), (Protocol::H2, "br"), (Protocol::H2, "gzip")]
        {
            let call = packed("/echo", coding, &body).over(client);
            arrived(&call.send(proxy.address()).await, &body, coding);
        }
    }
}

#[tokio::test]
async fn one_connection_carries_one_coding_after_the_other() {
    let (_sim, proxy) = pair(UNPACK).await;
    for protocol in CLIENTS {
        let mut client = Client::connect(proxy.address(), protocol).await;
        for index in 0..60 {
            let (coding, body) = (READ[index % 6], text(1 + 1_013 * index));
            let answer = client.send(packed("/echo", coding, &body)).await.expect("an answer");
            arrived(&answer, &body, coding);
        }
    }
}

#[tokio::test]
async fn many_at_once_do_not_get_into_each_others_bodies() {
    let sim = sim("sim");
    for upstream in UPSTREAMS {
        let proxy = before(&sim, upstream, UNPACK).await;
        let length = |index: usize| 1 + (index * 7_919) % 90_000;
        let load = Load::of(200).at_once(20);
        let call = move |index: usize| packed("/echo", READ[index % 6], &text(length(index)));
        let report = load.run(proxy.address(), call).await;
        assert_eq!(report.ok(), 200, "{:?}", report.outcomes());
        for sample in &report.samples {
            let answer = sample.answer.as_ref().expect("an answer");
            arrived(answer, &text(length(sample.index)), "one of many");
        }
    }
}

#[tokio::test]
async fn a_client_that_leaves_half_way_frees_the_engine() {
    for upstream in UPSTREAMS {
        let sim = sim("sim");
        let proxy = before(&sim, upstream, UNPACK).await;
        let bytes = encode("gzip", &text(500_000));
        let (call, feed) = Call::post("/echo").header("content-encoding", "gzip").fed();
        let address = proxy.address();
        let sending = tokio::spawn(async move { call.try_send(address).await });
        assert!(feed.send(bytes[..bytes.len() / 2].to_vec()).await);
        sim.reached(|state| state.in_flight == 1).await;
        sending.abort();
        sim.aborted().await;
        await_idle(&proxy).await;
    }
}

#[tokio::test]
async fn a_copy_of_the_request_is_unpacked_too() {
    let (stable, shadow) = (sim("stable"), sim("shadow"));
    let proxy = Proxy::start(&format!(
        "backends: {{ stable: {{ endpoints: {} }}, shadow: {{ endpoints: {} }} }}\n\
         routes: [{{ name: all, backend: stable, {UNPACK}, mirror: {{ backend: shadow, share: 100% }} }}]\n",
        endpoints(&[&stable]),
        endpoints(&[&shadow]),
    ))
    .await;
    // A copy that is not what it should be would not hold this.
    shadow.inflict(Rule::always(Fault::Status(418, None)).holding("lagoon"));
    for (coding, times) in READ.into_iter().zip(1..) {
        let body = chat_body("how deep is the lagoon?", &json!({}));
        let call = packed_json("/v1/chat/completions", coding, &body);
        assert_eq!(call.send(proxy.address()).await.status, 200);
        shadow.reached(|state| state.requests() == times).await;
        proxy
            .await_metrics(|metrics| {
                let different = [("route", "all"), ("result", "different")];
                metrics.get("outrigger_mirrored_requests_total", &different) == times as f64
            })
            .await;
        let seen = shadow.seen();
        let copy = seen.last().expect("a copy");
        let field =
            |name: &str| copy.headers.iter().find(|(n, _)| n == name).map(|(_, v)| v.clone());
        assert_eq!(field("content-encoding"), None);
        assert_eq!(field("content-length"), Some(body.to_string().len().to_string()));
    }
}

#[tokio::test]
async fn compressed_requests_travel_together() {
    let (sim, proxy) = pair(&format!("{UNPACK}, batch: {{ window: 1s, requests: 4 }}")).await;
    let call = |index: usize| {
        let body = json!({"model": "m", "input": format!("text {index}")});
        packed_json("/v1/embeddings", READ[index % 6], &body)
    };
    // Enough at once that some of them meet.
    let mut rounds = 0;
    while proxy.metrics().await.get("outrigger_batched_requests_total", &[("result", "together")])
        == 0.0
    {
        rounds += 1;
        assert!(rounds < 20, "nobody met:\n{}", proxy.metrics().await.text);
        let mut calls = JoinSet::new();
        for index in 0..24 {
            calls.spawn(call(index).send(proxy.address()));
        }
        for answer in calls.join_all().await {
            assert_eq!(answer.status, 200, "{}", answer.text());
            assert_eq!(answer.json()["data"].as_array().map(Vec::len), Some(1));
        }
    }
    assert!(sim.state().requests() < 24 * rounds, "{rounds}");
    for index in 0..6 {
        let direct = Call::post("/v1/embeddings")
            .json(json!({"model": "m", "input": format!("text {index}")}));
        let direct = direct.send(sim.addr).await.json();
        let answer = call(index).send(proxy.address()).await.json();
        assert_eq!(answer["data"], direct["data"], "{index}");
    }
}

/// A stream that waits at an engine that has stopped: that it is one stands inside of what was compressed.
#[tokio::test]
async fn a_compressed_prompt_that_asks_for_a_stream_is_known_as_one() {
    let (a, b) = (sim("a"), sim("b"));
    let backend =
        "balance: round_robin, ejection: { failures: 1000, stall: { gaps: 5, floor: 300ms } }";
    let proxy = Proxy::start(&one_backend(&[&a, &b], backend, UNPACK)).await;
    let body = chat_body("how deep is the lagoon?", &json!({"stream": true, "max_tokens": 20}));
    let call = || packed_json("/v1/chat/completions", "zstd", &body);
    assert_eq!(Load::of(1).run(proxy.address(), |_| Call::get("/bytes/1")).await.ok(), 1);
    for _ in 0..32 {
        assert_eq!(call().send(proxy.address()).await.status, 200);
    }
    let began = Instant::now();
    let mut calls = JoinSet::new();
    for _ in 0..2 {
        calls.spawn(call().fault("stall_mid=0;at=a").send(proxy.address()));
    }
    for answer in calls.join_all().await {
        assert_eq!((answer.status, answer.by()), (200, "b"), "{}", answer.text());
    }
    assert!(began.elapsed() < Duration::from_secs(15), "{:?}", began.elapsed());
}
