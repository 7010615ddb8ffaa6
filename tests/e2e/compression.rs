//! Bodies made smaller on the way to the client: for whom, which, and that nothing is lost by it. Streams of events are
//! in `events`, compressed requests in `requests`.

mod coding;
mod events;
mod requests;

use std::process::Command;
use std::time::Duration;

use outrigger_tests::harness::{Answer, Call, Client, Load, Process, Protocol, Proxy};
use outrigger_tests::sim::{Simulator, text};
use serde_json::Value;

use self::coding::{ALL, Incremental, decode, encode};
use super::fleet::{await_idle, chat, one_backend, sim};

const UPSTREAMS: [&str; 2] = ["http1", "h2c"];
const CLIENTS: [Protocol; 2] = [Protocol::Http1, Protocol::H2];
const ON: &str = "compress: {}";

async fn before(sim: &Simulator, upstream: &str, route: &str) -> Proxy {
    Proxy::start(&one_backend(&[sim], &format!("protocol: {upstream}"), route)).await
}

async fn pair(route: &str) -> (Simulator, Proxy) {
    let sim = sim("sim");
    let proxy = before(&sim, "http1", route).await;
    (sim, proxy)
}

fn accepting(call: Call, codings: &str) -> Call {
    call.header("accept-encoding", codings)
}

/// The answer is in this coding, its head says nothing else, and this is what it holds.
fn unpacked(answer: &Answer, coding: &str) -> Vec<u8> {
    assert_eq!((answer.cut.as_deref(), answer.header("content-encoding")), (None, Some(coding)));
    assert_eq!(answer.header("content-length"), None, "{:?}", answer.headers);
    assert!(varies(answer), "{:?}", answer.headers);
    let decoded = decode(coding, &answer.body);
    assert!(decoded.is_ok(), "not {coding}: {decoded:?}: {answer:?}");
    decoded.unwrap_or_default()
}

fn varies(answer: &Answer) -> bool {
    let values = answer.headers.get_all("vary").iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).any(|name| name.trim() == "accept-encoding")
}

/// The answer is as the engine sent it.
fn untouched(answer: &Answer, body: &[u8], why: &str) {
    assert_eq!((answer.cut.as_deref(), answer.header("content-encoding")), (None, None), "{why}");
    assert!(answer.body == body, "{why}: {} bytes of {}", answer.body.len(), body.len());
}

/// Sends these bytes as the response of an HTTP/1.1 endpoint.
fn raw(response: impl Into<Vec<u8>>) -> Call {
    Call::post("/raw").body(response.into())
}

#[tokio::test]
async fn what_comes_out_is_what_the_engine_sent() {
    let sim = sim("sim");
    for upstream in UPSTREAMS {
        let proxy = before(&sim, upstream, ON).await;
        for client in CLIENTS {
            for coding in ALL {
                for (target, length) in [
                    ("/text/1024", 1_024),
                    ("/text/700001", 700_001),
                    ("/text/700001?chunked=1", 700_001),
                    ("/text/3?chunked=1", 3),
                ] {
                    let call = accepting(Call::get(target).over(client), coding);
                    let answer = call.send(proxy.address()).await;
                    let same = unpacked(&answer, coding) == text(length);
                    assert!(same, "{target} {coding} {upstream} {client:?}");
                    assert!(length < 9_999 || answer.body.len() < length * 9 / 10, "{coding}");
                }
            }
        }
    }
}

#[tokio::test]
async fn an_answer_of_a_model_comes_whole() {
    let (_sim, proxy) = pair(ON).await;
    for coding in ALL {
        let call = accepting(Call::chat("how deep?").max_tokens(900), coding);
        let answer = call.send(proxy.address()).await;
        let body: Value = serde_json::from_slice(&unpacked(&answer, coding)).expect("JSON");
        assert_eq!(body["usage"]["completion_tokens"], 900);
        let said = body["choices"][0]["message"]["content"].as_str().expect("an answer");
        assert_eq!(said.split_whitespace().count(), 900);
    }
    let log = proxy.await_access(3).await;
    assert!(log.iter().all(|line| line["tokens_out"] == 900), "{log:?}");
}

#[tokio::test]
async fn the_client_chooses() {
    let (_sim, proxy) = pair(ON).await;
    for (accepted, expected) in [
        ("gzip", Some("gzip")),
        ("GZip", Some("gzip")),
        ("x-gzip", Some("gzip")),
        ("gzip, deflate, br", Some("br")),
        ("gzip, br, zstd", Some("zstd")),
        ("br;q=0.5, gzip;q=0.8", Some("gzip")),
        ("br;q=1.0, gzip;q=0.001", Some("br")),
        ("br ; q=0.9 , gzip ; Q=0.95", Some("gzip")),
        ("*", Some("zstd")),
        ("zstd;q=0, *", Some("br")),
        ("*;q=0.5, gzip", Some("gzip")),
        ("gzip, identity", Some("gzip")),
        ("gzip;q=0.5, identity;q=0.4", Some("gzip")),
        ("identity, gzip;q=0.5", None),
        ("identity", None),
        ("", None),
        ("deflate, compress", None),
        ("gzip;q=0", None),
        ("gzip;q=0.000", None),
        ("*;q=0", None),
        ("gzip;q=2", None),
        ("gzip;q=-1", None),
        ("gzip;q=1.0000", None),
        ("gzip;q", None),
        ("gzipped", None),
    ] {
        let answer = accepting(Call::get("/text/5000"), accepted).send(proxy.address()).await;
        match expected {
            Some(coding) => assert!(unpacked(&answer, coding) == text(5_000), "{accepted:?}"),
            None => {
                untouched(&answer, &text(5_000), accepted);
                assert_eq!(answer.header("content-length"), Some("5000"), "{accepted:?}");
                assert!(varies(&answer), "another client would get something else: {accepted:?}");
            }
        }
    }
    let none = Call::get("/text/5000").send(proxy.address()).await;
    untouched(&none, &text(5_000), "no accept-encoding");
    assert!(varies(&none));
    let lines = accepting(accepting(Call::get("/text/5000"), "br;q=0.1"), "gzip;q=0.2");
    unpacked(&lines.send(proxy.address()).await, "gzip");
}

#[tokio::test]
async fn the_route_chooses_what_is_offered() {
    let (_sim, proxy) = pair("compress: { algorithms: [gzip, br], min: 100B }").await;
    for (accepted, expected) in [("zstd, br, gzip", "gzip"), ("*", "gzip"), ("zstd, br", "br")] {
        let answer = accepting(Call::get("/text/100"), accepted).send(proxy.address()).await;
        assert!(unpacked(&answer, expected) == text(100), "{accepted}");
    }
    let answer = accepting(Call::get("/text/5000"), "zstd").send(proxy.address()).await;
    untouched(&answer, &text(5_000), "zstd is not offered");
    let answer = accepting(Call::get("/text/99"), "gzip").send(proxy.address()).await;
    untouched(&answer, &text(99), "it is short");
}

#[tokio::test]
async fn nothing_is_compressed_unless_asked_for() {
    let (_sim, proxy) = pair("").await;
    let answer = accepting(Call::get("/text/5000"), "gzip, br, zstd").send(proxy.address()).await;
    untouched(&answer, &text(5_000), "off");
    assert_eq!((answer.header("vary"), answer.header("content-length")), (None, Some("5000")));
}

#[tokio::test]
async fn the_head_tells_no_lies() {
    let (_sim, proxy) = pair(ON).await;
    let call = || {
        let call = Call::get("/text/5000").header("x-sim-set", "etag=\"abc\"");
        let call = call.header("x-sim-set", "accept-ranges=bytes");
        let call = call.header("x-sim-set", "content-digest=sha-256=:AAAA:");
        call.header("x-sim-set", "vary=origin")
    };
    let packed = accepting(call(), "gzip").send(proxy.address()).await;
    assert!(unpacked(&packed, "gzip") == text(5_000));
    assert_eq!(packed.header("etag"), Some("W/\"abc\""));
    assert_eq!((packed.header("accept-ranges"), packed.header("content-digest")), (None, None));
    assert_eq!(packed.header("vary"), Some("origin"), "and accept-encoding after it");
    let plain = call().send(proxy.address()).await;
    untouched(&plain, &text(5_000), "nothing accepted");
    assert_eq!(plain.header("etag"), Some("\"abc\""));
    assert_eq!(plain.header("content-digest"), Some("sha-256=:AAAA:"));
    let weak = Call::get("/text/5000").header("x-sim-set", "etag=W/\"abc\"");
    let weak = accepting(weak, "br").send(proxy.address()).await;
    assert_eq!(weak.header("etag"), Some("W/\"abc\""));
    for vary in ["*", "Accept-Encoding", "origin, accept-encoding"] {
        let call = Call::get("/text/5000").header("x-sim-set", &format!("vary={vary}"));
        let answer = accepting(call, "br").send(proxy.address()).await;
        let all: Vec<_> = answer.headers.get_all("vary").iter().collect();
        assert_eq!(all, [vary]);
    }
}

#[tokio::test]
async fn what_is_not_worth_it_or_not_allowed_goes_as_it_came() {
    let (_sim, proxy) = pair(ON).await;
    let set = |field: &str| Call::get("/text/5000").header("x-sim-set", field);
    for (call, why) in [
        (Call::get("/text/1023"), "short"),
        (set("content-type=image/png"), "an image"),
        (set("content-type=application/octet-stream"), "bytes"),
        (set("content-type=application/grpc"), "gRPC"),
        (set("content-type=application/grpc+proto"), "gRPC"),
        (set("content-type=audio/wav"), "a sound"),
        (set("content-type=text/event-stream"), "events, which the route does not name"),
        (set("cache-control=max-age=5, no-transform"), "forbidden by the engine"),
        (set("content-range=bytes 0-4999/9999"), "a part"),
        (
            Call::get("/text/5000").header("cache-control", "no-transform"),
            "forbidden by the client",
        ),
        (Call::get("/text/5000").header("range", "bytes=0-"), "asked for in parts"),
    ] {
        let length = if why == "short" { 1_023 } else { 5_000 };
        let answer = accepting(call, "zstd, br, gzip").send(proxy.address()).await;
        untouched(&answer, &text(length), why);
        assert_eq!(answer.header("content-length"), Some(&*length.to_string()), "{why}");
    }
    for fine in [
        "application/json; charset=utf-8",
        "image/svg+xml",
        "TEXT/html",
        "application/problem+json",
    ] {
        let call = set(&format!("content-type={fine}"));
        assert!(unpacked(&accepting(call, "br").send(proxy.address()).await, "br") == text(5_000));
    }
    let untyped = Call::post("/mirror").body(text(5_000));
    untouched(&accepting(untyped, "br").send(proxy.address()).await, &text(5_000), "untyped");
}

#[tokio::test]
async fn nothing_is_compressed_twice() {
    let sim = sim("sim");
    for upstream in UPSTREAMS {
        let proxy = before(&sim, upstream, ON).await;
        let packed = encode("gzip", &text(50_000));
        let call = Call::post("/mirror").header("x-sim-set", "content-type=text/plain");
        let call = call.header("x-sim-set", "content-encoding=gzip").body(packed.clone());
        let answer = accepting(call, "zstd, gzip").send(proxy.address()).await;
        let codings: Vec<_> = answer.headers.get_all("content-encoding").iter().collect();
        assert_eq!(codings, ["gzip"]);
        assert!(answer.body == packed);
        let call = Call::get("/text/5000").header("x-sim-set", "content-encoding=identity");
        let answer = accepting(call, "zstd").send(proxy.address()).await;
        assert!(unpacked(&answer, "zstd") == text(5_000), "identity is no coding");
    }
}

#[tokio::test]
async fn answers_without_a_body_stay_without_one() {
    let sim = sim("sim");
    for upstream in UPSTREAMS {
        let proxy = before(&sim, upstream, ON).await;
        for client in CLIENTS {
            let mut connection = Client::connect(proxy.address(), client).await;
            for (method, target, status) in [
                ("HEAD", "/text/5000", 200),
                ("HEAD", "/text/5000?chunked=1", 200),
                ("GET", "/status/204", 204),
                ("GET", "/status/304", 304),
            ] {
                let call = accepting(Call::new(method, target), "br, gzip, zstd");
                let answer = connection.send(call).await.expect("an answer");
                let told = format!("{method} {target} {upstream} {client:?}: {answer:?}");
                assert_eq!(
                    (answer.status, answer.body.len(), &answer.cut),
                    (status, 0, &None),
                    "{told}"
                );
                let (coding, length) =
                    (answer.header("content-encoding"), answer.header("content-length"));
                assert!(coding.is_none() || length.is_none(), "the length of what? {told}");
                assert!(status == 200 || coding.is_none(), "{told}");
                // Had anything followed, this would not be an answer.
                let next = accepting(Call::get("/text/2000"), "br");
                let next = connection.send(next).await;
                let next = next.unwrap_or_else(|why| panic!("{why} after {told}"));
                assert!(unpacked(&next, "br") == text(2_000), "{told}");
            }
        }
    }
}

#[tokio::test]
async fn a_part_of_a_body_goes_as_it_came() {
    let (_sim, proxy) = pair(ON).await;
    let part = text(3_000);
    let head = "HTTP/1.1 206 Partial Content\r\ncontent-type: text/plain\r\n\
        content-range: bytes 0-2999/9000\r\ncontent-length: 3000\r\n\r\n";
    let answer = accepting(raw([head.as_bytes(), &part].concat()), "gzip");
    let answer = answer.send(proxy.address()).await;
    assert_eq!(answer.status, 206);
    untouched(&answer, &part, "a part");
}

#[tokio::test]
async fn an_error_is_compressed_like_anything_else() {
    let (_sim, proxy) = pair(ON).await;
    let body = text(3_000);
    let head = "HTTP/1.1 500 Oops\r\ncontent-type: text/plain\r\ncontent-length: 3000\r\n\r\n";
    let answer = accepting(raw([head.as_bytes(), &body].concat()), "gzip");
    let answer = answer.send(proxy.address()).await;
    assert_eq!(answer.status, 500);
    assert!(unpacked(&answer, "gzip") == body);
}

#[tokio::test]
async fn one_connection_serves_one_coding_after_the_other() {
    let sim = sim("sim");
    for upstream in UPSTREAMS {
        let proxy = before(&sim, upstream, ON).await;
        for client in CLIENTS {
            let mut connection = Client::connect(proxy.address(), client).await;
            for index in 0..60 {
                let (coding, length) = (ALL[index % 3], 1_024 + 997 * index);
                let call = accepting(Call::get(&format!("/text/{length}")), coding);
                let answer = connection.send(call).await.expect("an answer");
                assert!(unpacked(&answer, coding) == text(length), "{coding} {length}");
                let plain = connection.send(Call::get("/text/2000")).await.expect("an answer");
                untouched(&plain, &text(2_000), "nothing accepted");
            }
        }
    }
}

#[tokio::test]
async fn bytes_before_and_after_are_counted() {
    let (_sim, proxy) = pair(ON).await;
    let load = Load::of(30).at_once(5);
    let report = load
        .run(proxy.address(), |index| accepting(Call::get("/text/20000"), ALL[index % 3]))
        .await;
    let answers = report.samples.iter().filter_map(|sample| sample.answer.as_ref().ok());
    let sent: usize = answers.map(|answer| answer.body.len()).sum();
    Call::get("/text/20000").send(proxy.address()).await;
    let metrics = proxy.metrics().await;
    let counted = |name| metrics.get(name, &[("route", "all")]);
    assert_eq!(counted("outrigger_compression_input_bytes_total"), 600_000.0);
    assert_eq!(counted("outrigger_compression_output_bytes_total"), sent as f64);
    assert!(sent < 550_000, "{sent}");
}

/// A producer that pauses: what it has said so far is there, in every coding.
#[tokio::test]
async fn a_body_that_comes_slowly_is_not_held_back() {
    let sim = sim("sim");
    for upstream in UPSTREAMS {
        let proxy = before(&sim, upstream, ON).await;
        for (client, coding) in CLIENTS.into_iter().flat_map(|c| ALL.map(|coding| (c, coding))) {
            let call = Call::post("/mirror").header("x-sim-set", "content-type=text/plain");
            let (call, feed) = accepting(call.over(client), coding).fed();
            assert!(feed.send("piece 0;").await);
            let mut streaming = call.open(proxy.address()).await;
            assert_eq!(streaming.header("content-encoding"), Some(coding));
            let (mut decoder, mut said) = (Incremental::new(coding), "piece 0;".to_owned());
            for index in 1..12 {
                while decoder.text() != said {
                    assert!(said.starts_with(&decoder.text()), "{:?}", decoder.text());
                    decoder.feed(&streaming.part().await.expect("more"));
                }
                let piece = format!("piece {index};");
                said.push_str(&piece);
                assert!(feed.send(piece).await);
            }
            drop(feed);
            while let Some(part) = streaming.part().await {
                decoder.feed(&part);
            }
            assert_eq!((streaming.cut(), decoder.text()), (None, said), "{coding} {client:?}");
        }
    }
}

#[tokio::test]
async fn a_client_that_reads_slowly_slows_the_engine_down_and_gets_everything() {
    const LENGTH: usize = 32_000_000;
    let expected = text(LENGTH);
    for (upstream, client, coding) in [
        ("http1", Protocol::Http1, "zstd"),
        ("h2c", Protocol::H2, "gzip"),
        ("http1", Protocol::H2, "br"),
    ] {
        let (sim, target) = (sim("sim"), format!("/text/{LENGTH}"));
        let proxy = before(&sim, upstream, ON).await;
        let call = accepting(Call::get(&target).over(client), coding);
        let mut streaming = call.open(proxy.address()).await;
        let mut packed = streaming.part().await.expect("a part").to_vec();
        // A client that takes its time.
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert_eq!(sim.state().completed, 0, "the engine waits: {coding}");
        packed.extend_from_slice(&streaming.rest().await.body);
        let same = decode(coding, &packed).is_ok_and(|body| body == expected);
        assert!(same, "{coding} {upstream} {client:?}: {} bytes", packed.len());
        await_idle(&proxy).await;
    }
}

#[tokio::test]
async fn a_client_that_leaves_in_the_middle_frees_the_engine() {
    for upstream in UPSTREAMS {
        let sim = sim("sim");
        let proxy = before(&sim, upstream, ON).await;
        for (client, coding) in [(Protocol::Http1, "zstd"), (Protocol::H2, "br")] {
            let call = accepting(Call::get("/text/50000000").over(client), coding);
            let mut streaming = call.open(proxy.address()).await;
            assert!(streaming.part().await.is_some());
            drop(streaming);
            sim.aborted().await;
            await_idle(&proxy).await;
        }
    }
}

#[tokio::test]
async fn an_engine_that_breaks_off_is_not_completed() {
    let sim = sim("sim");
    for upstream in UPSTREAMS {
        let proxy = before(&sim, upstream, ON).await;
        for client in CLIENTS {
            for coding in ALL {
                for (fault, target) in [
                    ("reset_mid=1", "/text/100000"),
                    ("close_mid=1", "/text/100000"),
                    ("close_mid=2", "/text/1000000?chunked=1"),
                ] {
                    let call = accepting(Call::get(target).over(client), coding).fault(fault);
                    let answer = call.send(proxy.address()).await;
                    let told = format!("{fault} {target} {coding} {upstream} {client:?}");
                    assert_eq!(
                        (answer.status, answer.header("content-encoding")),
                        (200, Some(coding))
                    );
                    assert!(answer.cut.is_some(), "it looks whole: {told}");
                    assert!(decode(coding, &answer.body).is_err(), "it can be read whole: {told}");
                }
            }
        }
    }
}

#[tokio::test]
async fn trailers_follow_the_compressed_body() {
    let (_sim, proxy) = pair(ON).await;
    let body = text(9_000);
    let response = [
        b"HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ntransfer-encoding: chunked\r\n\
          trailer: x-mine, content-digest\r\n\r\n2328\r\n",
        &body[..],
        b"\r\n0\r\nx-mine: done\r\ncontent-digest: sha-256=:AAAA:\r\n\r\n",
    ];
    for client in CLIENTS {
        for coding in ALL {
            let call = raw(response.concat()).header("te", "trailers").over(client);
            let answer = accepting(call, coding).send(proxy.address()).await;
            assert!(unpacked(&answer, coding) == body, "{coding} {client:?}");
            let trailer = |name| answer.trailers.get(name).and_then(|value| value.to_str().ok());
            assert_eq!(trailer("x-mine"), Some("done"), "{coding} {client:?}");
            assert_eq!(trailer("content-digest"), None, "it was of other bytes");
        }
    }
}

#[tokio::test]
async fn answers_of_our_own_can_be_read_by_anybody() {
    let (_sim, proxy) = pair(ON).await;
    let answer = accepting(chat().fault("reset"), "br").send(proxy.address()).await;
    assert_eq!((answer.status, answer.header("content-encoding")), (502, None));
    assert!(answer.json()["error"]["code"].is_string());
}

/// curl has codings of its own.
#[tokio::test]
async fn curl_reads_every_coding() {
    let (_sim, proxy) = pair(ON).await;
    for coding in ["gzip", "br", "zstd", "gzip;q=0.1, br"] {
        let file = proxy.directory().join("answer");
        let mut curl = Command::new("curl");
        curl.args(["--compressed", "-sS", "--fail", "--max-time", "20", "-o"]).arg(&file);
        curl.arg("-H").arg(format!("accept-encoding: {coding}"));
        let (status, lines) =
            Process::finish(curl.arg(format!("http://{}/text/300000", proxy.address()))).await;
        assert!(status.success(), "{coding}: {lines:?}");
        assert!(std::fs::read(&file).expect("an answer") == text(300_000), "{coding}");
    }
    let metrics = proxy.metrics().await;
    assert_eq!(metrics.get("outrigger_compression_input_bytes_total", &[]), 1_200_000.0);
}
