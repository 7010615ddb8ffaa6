//! Copies of requests to another backend: what is copied, that nobody notices, and that there are never too many.
//!
//! What a copy got shows at the shadow's simulator; a rule about bodies makes it answer otherwise when the body came
//! through, and the proxy counts that.

mod nobody_notices;

use std::collections::BTreeMap;
use std::io::Write;
use std::time::Duration;

use nix::sys::signal::Signal;
use outrigger_tests::harness::{Call, Launch, Load, Metrics, Protocol, Proxy, Raw};
use outrigger_tests::sim::{Fault, Options, Rule, Seen, Simulator};
use serde_json::json;

use super::fleet::{attempts, await_idle, endpoints, reload, sim};

/// A server, its shadow, and a proxy between.
struct Shadowed {
    stable: Simulator,
    shadow: Simulator,
    proxy: Proxy,
}

impl Shadowed {
    /// `mirror` is what else the mirror says, `route` what else the route says.
    async fn start(mirror: &str, route: &str) -> Self {
        let (stable, shadow) = (sim("stable"), sim("shadow"));
        let proxy = Proxy::start(&config(&[&stable], &shadow, "", mirror, route)).await;
        Self { stable, shadow, proxy }
    }

    /// Waits until so many copies have ended, and nothing is under way.
    async fn ended(&self, count: u64) -> Metrics {
        let metrics = self.proxy.await_metrics(|metrics| all(metrics) >= count).await;
        assert_eq!(all(&metrics), count, "{}", told(&metrics));
        await_idle(&self.proxy).await;
        metrics
    }

    /// The requests that the shadow saw.
    fn copies(&self) -> u64 {
        self.shadow.state().requests()
    }
}

fn config(
    stable: &[&Simulator],
    shadow: &Simulator,
    backends: &str,
    mirror: &str,
    route: &str,
) -> String {
    format!(
        "backends:\n  stable: {{ endpoints: {}, {backends} }}\n  shadow: {{ endpoints: {}, {backends} }}\n\
         routes: [{{ name: all, backend: stable, expose: [attempts], \
         mirror: {{ backend: shadow, {mirror} }}, {route} }}]\n",
        endpoints(stable),
        endpoints(&[shadow]),
    )
}

/// Copies that ended so.
fn ended(metrics: &Metrics, result: &str) -> u64 {
    let labels = [("route", "all"), ("mirror", "shadow"), ("result", result)];
    metrics.get("outrigger_mirrored_requests_total", &labels) as u64
}

const RESULTS: [&str; 5] = ["same", "different", "failed", "too_many", "too_long"];

fn all(metrics: &Metrics) -> u64 {
    RESULTS.iter().map(|result| ended(metrics, result)).sum()
}

/// How many copies ended in which way, for messages.
fn told(metrics: &Metrics) -> String {
    let of = |result: &&str| format!("{result} {}", ended(metrics, result));
    RESULTS.iter().map(of).collect::<Vec<_>>().join(", ")
}

/// The header fields that belong to the request and not to its connection or its framing.
fn own_headers(seen: &Seen) -> BTreeMap<String, Vec<String>> {
    let mut headers = BTreeMap::<String, Vec<String>>::new();
    for (name, value) in &seen.headers {
        let of_copy = ["x-outrigger-mirrored", "content-length", "transfer-encoding", "connection"];
        if !of_copy.contains(&name.as_str()) {
            headers.entry(name.clone()).or_default().push(value.clone());
        }
    }
    headers
}

fn echo(text: &str) -> Call {
    Call::post("/echo?x=1&y").body(text.to_owned()).header("x-own", "one").header("x-own", "two")
}

#[tokio::test]
async fn a_copy_is_what_the_endpoint_of_the_original_saw() {
    let shadowed = Shadowed::start("share: 100%", "").await;
    // Only a shadow that got the whole body says so.
    let whole = Rule::always(Fault::Status(418, None)).holding("the whole canoe");
    shadowed.shadow.inflict(whole);
    for protocol in [Protocol::Http1, Protocol::H2] {
        let call = echo("the whole canoe").over(protocol).host("api.example.com");
        let answer = call.header("authorization", "Bearer x").send(shadowed.proxy.address()).await;
        assert_eq!((answer.status, answer.by()), (200, "stable"));
    }
    let metrics = shadowed.ended(2).await;
    assert_eq!(ended(&metrics, "different"), 2, "{}", told(&metrics));
    for (original, copy) in shadowed.stable.seen().iter().zip(shadowed.shadow.seen()) {
        assert_eq!((&copy.method, &copy.target), (&original.method, &original.target));
        assert_eq!(own_headers(&copy), own_headers(original));
        assert_eq!(copy.header("content-length"), Some("15"));
        assert_eq!(copy.header("x-outrigger-mirrored"), Some("1"));
        assert_eq!(original.header("x-outrigger-mirrored"), None);
    }
}

#[tokio::test]
async fn requests_of_every_method_are_copied() {
    let shadowed = Shadowed::start("share: 100%", "").await;
    let methods = ["GET", "HEAD", "DELETE", "OPTIONS", "PUT", "PATCH", "POST"];
    for method in methods {
        let answer = Call::new(method, "/bytes/100").send(shadowed.proxy.address()).await;
        assert_eq!(answer.status, 200, "{method}");
    }
    let metrics = shadowed.ended(methods.len() as u64).await;
    assert_eq!(ended(&metrics, "same"), methods.len() as u64, "{}", told(&metrics));
    let mut seen: Vec<_> = shadowed.shadow.seen().into_iter().map(|seen| seen.method).collect();
    seen.sort_by_key(|method| methods.iter().position(|known| known == method));
    assert_eq!(seen, methods);
}

#[tokio::test]
async fn a_body_of_unknown_length_is_copied_with_its_length() {
    let shadowed = Shadowed::start("share: 100%", "").await;
    let (call, feed) = Call::post("/echo").fed();
    let answer = tokio::spawn(call.send(shadowed.proxy.address()));
    for part in ["first, ", "second, ", "third"] {
        assert!(feed.send(part).await);
    }
    drop(feed);
    let original = answer.await.expect("an answer").echo();
    let metrics = shadowed.ended(1).await;
    assert_eq!(ended(&metrics, "same"), 1);
    let copy = shadowed.shadow.seen().remove(0);
    assert_eq!(copy.header("content-length"), Some(&*original.bytes.to_string()));
    assert_eq!(copy.header("transfer-encoding"), None);
}

#[tokio::test]
async fn a_client_that_waits_to_be_asked_for_its_body_is_copied_without_that() {
    let shadowed = Shadowed::start("share: 100%", "").await;
    let mut raw = Raw::connect(shadowed.proxy.address()).await;
    raw.send("POST /echo HTTP/1.1\r\nhost: h\r\nexpect: 100-continue\r\ncontent-length: 5\r\n\r\n")
        .await;
    assert_eq!(raw.head().await.expect("a head").status, 100);
    raw.send("canoe").await;
    assert_eq!(raw.response().await.status(), 200);
    shadowed.ended(1).await;
    let copy = shadowed.shadow.seen().remove(0);
    assert_eq!((copy.header("expect"), copy.header("content-length")), (None, Some("5")));
}

#[tokio::test]
async fn copies_go_to_servers_of_either_protocol() {
    for (protocol, version) in [("http1", "HTTP/1.1"), ("h2c", "HTTP/2.0")] {
        let (stable, shadow) = (sim("stable"), sim("shadow"));
        let protocol = format!("protocol: {protocol}");
        let yaml = config(&[&stable], &shadow, &protocol, "share: 100%", "");
        let proxy = Proxy::start(&yaml).await;
        let shadowed = Shadowed { stable, shadow, proxy };
        let whole = Rule::always(Fault::Status(418, None)).holding("the whole canoe");
        shadowed.shadow.inflict(whole);
        for index in 0..4 {
            let call = echo("the whole canoe");
            let call = if index % 2 == 0 { call } else { call.h2() };
            assert_eq!(call.send(shadowed.proxy.address()).await.by(), "stable");
        }
        let metrics = shadowed.ended(4).await;
        assert_eq!(ended(&metrics, "different"), 4, "{}", told(&metrics));
        assert!(shadowed.shadow.seen().iter().all(|seen| seen.version == version));
    }
}

#[tokio::test]
async fn what_the_route_rewrites_is_rewritten_in_the_copy() {
    let stable = Simulator::start(Options::named("stable").fast().models(&["real"]));
    let shadow = Simulator::start(Options::named("shadow").fast().models(&["real"]));
    let route = "rewrite: { model: real, path: /v1/completions, host: inner.example.com, \
                 request_headers: { set: { x-set: '1' }, remove: [x-own] } }, match: { path: /complete }";
    let yaml = config(&[&stable], &shadow, "", "share: 100%", route);
    let proxy = Proxy::start(&yaml).await;
    let shadowed = Shadowed { stable, shadow, proxy };
    let body = json!({"prompt": "a", "model": "an alias that is longer", "max_tokens": 2});
    let call = Call::post("/complete").json(body).header("x-own", "1");
    assert_eq!(call.send(shadowed.proxy.address()).await.status, 200);
    let metrics = shadowed.ended(1).await;
    assert_eq!(ended(&metrics, "same"), 1, "{}", told(&metrics));
    let (copy, original) = (shadowed.shadow.seen().remove(0), shadowed.stable.seen().remove(0));
    assert_eq!(
        (&*copy.target, copy.header("host")),
        ("/v1/completions", Some("inner.example.com"))
    );
    assert_eq!(own_headers(&copy), own_headers(&original));
    assert_eq!(copy.header("content-length"), original.header("content-length"));
}

/// The copy is what went to the endpoint: unpacked, where the proxy unpacks.
#[tokio::test]
async fn what_the_proxy_unpacks_is_unpacked_in_the_copy() {
    let shadowed = Shadowed::start("share: 100%", "decompress: {}").await;
    let whole = Rule::always(Fault::Status(418, None)).holding("the whole canoe");
    shadowed.shadow.inflict(whole);
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(b"the whole canoe").expect("memory takes everything");
    let call = Call::post("/echo").header("content-encoding", "gzip");
    let call = call.body(gzip.finish().expect("memory takes everything"));
    assert_eq!(call.send(shadowed.proxy.address()).await.echo().bytes, 15);
    let metrics = shadowed.ended(1).await;
    assert_eq!(ended(&metrics, "different"), 1, "{}", told(&metrics));
    let (copy, original) = (shadowed.shadow.seen().remove(0), shadowed.stable.seen().remove(0));
    assert_eq!(copy.header("content-length"), Some("15"));
    assert_eq!(own_headers(&copy), own_headers(&original));
}

#[tokio::test]
async fn about_the_share_that_was_asked_for_is_copied() {
    let shadowed = Shadowed::start("share: 25%, max_in_flight: 10000", "").await;
    let load = Load::of(2_000).at_once(8);
    let report = load.run(shadowed.proxy.address(), |_| Call::get("/bytes/1")).await;
    assert_eq!(report.ok(), 2_000, "{:?}", report.outcomes());
    await_idle(&shadowed.proxy).await;
    // Five standard deviations; the draws are independent.
    let copies = shadowed.copies();
    assert!((400..=600).contains(&copies), "{copies} of 2,000");
    shadowed.ended(copies).await;
}

#[tokio::test]
async fn no_more_copies_than_allowed_are_under_way() {
    let shadowed = Shadowed::start("share: 100%, max_in_flight: 3", "").await;
    shadowed.shadow.fault(Fault::StallFirstByte(None));
    let report = Load::of(20).run(shadowed.proxy.address(), |_| Call::get("/bytes/1")).await;
    assert_eq!(report.ok(), 20);
    shadowed.shadow.reached(|state| state.in_flight == 3).await;
    let metrics = shadowed.proxy.await_metrics(|metrics| ended(metrics, "too_many") == 17).await;
    assert_eq!((all(&metrics), shadowed.copies()), (17, 3));
    // When they have ended there is room again.
    shadowed.shadow.clear_faults();
    shadowed.shadow.hang_up();
    shadowed.proxy.await_metrics(|metrics| ended(metrics, "failed") == 3).await;
    assert_eq!(Call::get("/bytes/1").send(shadowed.proxy.address()).await.status, 200);
    let metrics = shadowed.ended(21).await;
    assert_eq!(ended(&metrics, "same"), 1);
}

/// A configuration that is applied again and again must not add up to a flood.
#[tokio::test]
async fn no_more_copies_than_allowed_are_under_way_after_reloads() {
    let shadowed = Shadowed::start("share: 100%, max_in_flight: 3", "").await;
    shadowed.shadow.fault(Fault::StallFirstByte(None));
    let mirror = "share: 100%, max_in_flight: 3";
    for round in 0..4 {
        let report = Load::of(5).run(shadowed.proxy.address(), |_| Call::get("/bytes/1")).await;
        assert_eq!(report.ok(), 5);
        let sent = 5 * (round + 1);
        let (stable, shadow) = (&shadowed.stable, &shadowed.shadow);
        shadowed
            .proxy
            .await_metrics(|metrics| all(metrics) + shadow.state().in_flight == sent)
            .await;
        let under_way = shadow.state().in_flight;
        assert_eq!(under_way, 3, "after {round} reloads");
        let limits = format!("limits: {{ headers: {} }}\n", 90 + round);
        let yaml = config(&[stable], shadow, "", mirror, "");
        reload(&shadowed.proxy, &format!("{yaml}{limits}")).await;
    }
}

#[tokio::test]
async fn bodies_longer_than_allowed_are_not_copied() {
    let shadowed = Shadowed::start("share: 100%, body: 1KiB", "").await;
    let send = async |bytes: usize| {
        let answer =
            Call::post("/echo").body(vec![b'x'; bytes]).send(shadowed.proxy.address()).await;
        assert_eq!(answer.echo().bytes, bytes as u64);
    };
    send(1025).await;
    send(1024).await;
    send(5_000_000).await;
    let (call, feed) = Call::post("/echo").fed();
    let answer = tokio::spawn(call.send(shadowed.proxy.address()));
    for _ in 0..3 {
        assert!(feed.send(vec![b'x'; 500]).await);
    }
    drop(feed);
    assert_eq!(answer.await.expect("an answer").echo().bytes, 1500);
    let metrics = shadowed.ended(4).await;
    assert_eq!((ended(&metrics, "too_long"), ended(&metrics, "same")), (3, 1));
    let copy = shadowed.shadow.seen().remove(0);
    assert_eq!((shadowed.copies(), copy.header("content-length")), (1, Some("1024")));
}

#[tokio::test]
async fn streams_are_copied_and_read_to_their_end() {
    let shadowed = Shadowed::start("share: 100%", "").await;
    for protocol in [Protocol::Http1, Protocol::H2] {
        let call = Call::chat("how deep?").max_tokens(30).streaming().over(protocol);
        let transcript = call.open(shadowed.proxy.address()).await.events().await;
        assert!(transcript.is_complete(), "{transcript:?}");
    }
    let metrics = shadowed.ended(2).await;
    assert_eq!(ended(&metrics, "same"), 2, "{}", told(&metrics));
    let state = shadowed.shadow.reached(|state| state.in_flight == 0).await;
    assert_eq!((state.completed, state.aborted, state.generated), (2, 0, 60));
    for answer in ["copy", "original"] {
        let labels = [("route", "all"), ("mirror", "shadow"), ("answer", answer)];
        let times = metrics.get("outrigger_mirror_first_byte_seconds_count", &labels);
        assert_eq!(times, 2.0, "{answer}");
    }
}

#[tokio::test]
async fn statuses_are_compared() {
    let shadowed = Shadowed::start("share: 100%", "").await;
    let send = async |path: &str, expected: u16| {
        let answer = Call::get(path).send(shadowed.proxy.address()).await;
        assert_eq!((answer.status, answer.by()), (expected, "stable"));
    };
    send("/bytes/1", 200).await;
    send("/status/404", 404).await;
    send("/status/204", 204).await;
    send("/redirect", 302).await;
    let metrics = shadowed.ended(4).await;
    assert_eq!(ended(&metrics, "same"), 4, "{}", told(&metrics));
    shadowed.shadow.inflict(Rule::always(Fault::Status(500, None)));
    send("/bytes/1", 200).await;
    send("/status/404", 404).await;
    send("/status/500", 500).await;
    let metrics = shadowed.ended(7).await;
    assert_eq!((ended(&metrics, "same"), ended(&metrics, "different")), (5, 2));
    shadowed.shadow.clear_faults();
    let broken = ["reset", "close", "garbage", "reset_mid=1", "close_mid=1", "wrong_length"];
    for (before, fault) in (7..).zip(broken) {
        shadowed.shadow.fault(fault.parse().expect("a fault"));
        send("/bytes/1000", 200).await;
        shadowed.proxy.await_metrics(|metrics| all(metrics) > before).await;
        shadowed.shadow.clear_faults();
    }
    let metrics = shadowed.ended(13).await;
    assert_eq!(ended(&metrics, "failed"), 6, "{}", told(&metrics));
}

#[tokio::test]
async fn a_retried_request_is_copied_once() {
    let (bad, stable, shadow) = (sim("bad"), sim("stable"), sim("shadow"));
    bad.fault(Fault::Status(503, None));
    let yaml = config(&[&bad, &stable], &shadow, "balance: round_robin", "share: 100%", "");
    let proxy = Proxy::start(&yaml).await;
    let shadowed = Shadowed { stable, shadow, proxy };
    let mut most = 0;
    for _ in 0..6 {
        let answer = echo("canoe").send(shadowed.proxy.address()).await;
        assert_eq!((answer.status, answer.by()), (200, "stable"));
        most = most.max(attempts(&answer));
    }
    assert_eq!(most, 2, "one was tried again");
    let metrics = shadowed.ended(6).await;
    assert_eq!((shadowed.copies(), ended(&metrics, "same")), (6, 6));
}

#[tokio::test]
async fn what_no_endpoint_answered_is_not_copied() {
    let shadowed = Shadowed::start("share: 100%", "retry: off").await;
    for fault in ["reset", "close", "garbage", "close_mid=1"] {
        shadowed.stable.fault(fault.parse().expect("a fault"));
        // It may be cut short in its body, which is no failure of the call.
        let _ = Call::get("/bytes/1000").try_send(shadowed.proxy.address()).await;
        shadowed.stable.clear_faults();
    }
    shadowed.stable.refuse().await;
    assert!(Call::get("/bytes/1").send(shadowed.proxy.address()).await.status >= 500);
    shadowed.stable.resume().await;
    shadowed.proxy.await_access(5).await;
    expect_only_the_next_is_copied(&shadowed).await;
}

/// Copies are sent in the order of their originals' ends, so that one that must come shows that none came before.
async fn expect_only_the_next_is_copied(shadowed: &Shadowed) {
    let mut pause = tokio::time::interval(Duration::from_millis(20));
    outrigger_tests::harness::within("an answer", async {
        // The endpoint may still be ejected.
        while Call::get("/bytes/7").send(shadowed.proxy.address()).await.status != 200 {
            pause.tick().await;
        }
    })
    .await;
    shadowed.proxy.await_metrics(|metrics| ended(metrics, "same") == 1).await;
    let targets: Vec<_> = shadowed.shadow.seen().into_iter().map(|seen| seen.target).collect();
    assert_eq!(targets, ["/bytes/7"]);
    let metrics = shadowed.proxy.metrics().await;
    assert_eq!(all(&metrics), 1, "{}", told(&metrics));
}

#[tokio::test]
async fn a_request_whose_client_went_away_is_not_copied() {
    let shadowed = Shadowed::start("share: 100%", "").await;
    let mut stream = Call::get("/events/1000?gap=20").open(shadowed.proxy.address()).await;
    assert!(stream.event().await.is_some());
    drop(stream);
    shadowed.stable.aborted().await;
    let (call, feed) = Call::post("/echo").fed();
    let uploading = tokio::spawn(call.try_send(shadowed.proxy.address()));
    assert!(feed.send("half of it").await);
    shadowed.stable.reached(|state| state.in_flight == 1).await;
    uploading.abort();
    shadowed.stable.aborted().await;
    let lines = shadowed.proxy.await_access(2).await;
    assert!(lines.iter().all(|line| line["outcome"] == "client_gone"), "{lines:?}");
    expect_only_the_next_is_copied(&shadowed).await;
}

/// An answer that comes before the body has been sent leaves no whole body to copy.
#[tokio::test]
async fn a_request_that_was_answered_before_its_end_is_not_copied() {
    let shadowed = Shadowed::start("share: 100%", "").await;
    let mut raw = Raw::connect(shadowed.proxy.address()).await;
    raw.send("POST /status/200 HTTP/1.1\r\nhost: h\r\ncontent-length: 100\r\n\r\nhalf").await;
    assert_eq!(raw.response().await.status(), 200);
    drop(raw);
    shadowed.proxy.await_access(1).await;
    assert_eq!(Call::get("/bytes/7").send(shadowed.proxy.address()).await.status, 200);
    shadowed.proxy.await_metrics(|metrics| ended(metrics, "same") == 1).await;
    assert_eq!(shadowed.copies(), 1);
}

/// There is no sense in sending half a conversation to somebody else.
#[tokio::test]
async fn a_tunnel_is_not_copied() {
    let shadowed = Shadowed::start("share: 100%", "").await;
    let mut raw = Raw::connect(shadowed.proxy.address()).await;
    raw.send(
        "GET /ws HTTP/1.1\r\nhost: h\r\nconnection: upgrade\r\nupgrade: websocket\r\n\
         sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
    )
    .await;
    assert_eq!(raw.head().await.expect("a head").status, 101);
    // A masked text of five bytes, then a close; both come back.
    raw.send(b"\x81\x85\0\0\0\0canoe").await;
    assert_eq!(raw.take(7).await.expect("an echo"), b"\x81\x05canoe");
    raw.send(b"\x88\x80\0\0\0\0").await;
    assert_eq!(raw.take(2).await.expect("a close"), b"\x88\0");
    raw.close_write().await;
    raw.closed().await;
    shadowed.proxy.await_access(1).await;
    expect_only_the_next_is_copied(&shadowed).await;
}

#[tokio::test]
async fn each_request_of_a_batch_is_copied_by_itself() {
    let batch = "batch: { window: 50ms, requests: 8, bytes: 1MiB }";
    let shadowed = Shadowed::start("share: 100%, max_in_flight: 1000", batch).await;
    let embed = |index: usize| {
        Call::post("/v1/embeddings").json(json!({"model": "m", "input": format!("reef {index}")}))
    };
    let load = Load::of(200).at_once(32);
    let report = load.run(shadowed.proxy.address(), embed).await;
    assert_eq!(report.ok(), 200, "{:?}", report.outcomes());
    let metrics = shadowed.ended(200).await;
    assert_eq!((ended(&metrics, "same"), shadowed.copies()), (200, 200), "{}", told(&metrics));
    assert!(shadowed.stable.state().requests() < 150, "they travelled together");
    let lengths = shadowed.shadow.seen();
    let lengths =
        lengths.iter().filter_map(|seen| seen.header("content-length")?.parse::<usize>().ok());
    let expected =
        (0..200).map(|i| json!({"model": "m", "input": format!("reef {i}")}).to_string());
    assert_eq!(lengths.sum::<usize>(), expected.map(|body| body.len()).sum::<usize>());
}

/// Two proxies that are each other's shadows must not play ball with a request for ever.
#[tokio::test]
async fn a_copy_is_not_copied_again() {
    let (one, two) = (sim("one"), sim("two"));
    let to = |simulator: &Simulator, shadow: &str| {
        format!(
            "backends:\n  stable: {{ endpoints: {} }}\n  shadow: {{ endpoints: ['{shadow}'] }}\n\
             routes: [{{ name: all, backend: stable, mirror: {{ backend: shadow, share: 100% }} }}]\n",
            endpoints(&[simulator])
        )
    };
    let first = Proxy::start(&to(&one, "127.0.0.1:9")).await;
    let second = Proxy::start(&to(&two, &first.address().to_string())).await;
    reload(&first, &to(&one, &second.address().to_string())).await;
    assert_eq!(Call::get("/bytes/1").send(first.address()).await.status, 200);
    two.reached(|state| state.requests() == 1).await;
    second.await_access(1).await;
    // A request of one's own to the second proxy ends after whatever the copy could have brought about there.
    assert_eq!(Call::get("/bytes/2").send(second.address()).await.status, 200);
    one.reached(|state| state.seen("/bytes/2") == 1).await;
    first.await_access(2).await;
    assert_eq!((one.state().seen("/bytes/1"), two.state().seen("/bytes/1")), (1, 1));
}

#[tokio::test]
async fn both_arms_of_a_split_are_copied() {
    let (stable, canary, shadow) = (sim("stable"), sim("canary"), sim("shadow"));
    let yaml = format!(
        "backends:\n  stable: {{ endpoints: {} }}\n  canary: {{ endpoints: {} }}\n  shadow: {{ endpoints: {} }}\n\
         routes: [{{ name: all, split: {{ stable: 1, canary: 1 }}, mirror: {{ backend: shadow }} }}]\n",
        endpoints(&[&stable]),
        endpoints(&[&canary]),
        endpoints(&[&shadow]),
    );
    let proxy = Proxy::start(&yaml).await;
    let report = Load::of(20).run(proxy.address(), |_| Call::get("/bytes/1")).await;
    assert_eq!((report.ok(), report.by_name()["canary"]), (20, 10));
    proxy.await_metrics(|metrics| all(metrics) == 20).await;
    assert_eq!(shadow.state().requests(), 20);
}

#[tokio::test]
async fn a_reload_begins_and_ends_the_copies() {
    let shadowed = Shadowed::start("share: 100%", "").await;
    let send = async || Call::get("/bytes/1").send(shadowed.proxy.address()).await.status;
    assert_eq!(send().await, 200);
    shadowed.ended(1).await;
    let with = config(&[&shadowed.stable], &shadowed.shadow, "", "share: 100%", "");
    let without = with.replace("mirror: { backend: shadow, share: 100% },", "");
    assert_ne!(with, without);
    reload(&shadowed.proxy, &without).await;
    assert_eq!(send().await, 200);
    reload(&shadowed.proxy, &with).await;
    assert_eq!(send().await, 200);
    shadowed.shadow.reached(|state| state.requests() == 2).await;
    shadowed.proxy.await_metrics(|metrics| all(metrics) == 2).await;
}

/// Copies are nobody's requests: whoever drains does not wait for them.
#[tokio::test]
async fn a_drain_does_not_wait_for_copies() {
    let (stable, shadow) = (sim("stable"), sim("shadow"));
    shadow.fault(Fault::StallFirstByte(None));
    let yaml = config(&[&stable], &shadow, "", "share: 100%", "");
    let proxy = Launch::new(&format!("{yaml}drain: {{ delay: 0s, timeout: 60s }}\n")).start().await;
    assert_eq!(Call::get("/bytes/1").send(proxy.address()).await.status, 200);
    shadow.reached(|state| state.in_flight == 1).await;
    proxy.signal(Signal::SIGTERM);
    let status = proxy.wait_exit(Duration::from_secs(10)).await;
    assert_eq!(status.code(), Some(0), "{status}");
    shadow.aborted().await;
}
