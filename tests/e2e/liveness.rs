//! Whether an engine works shows in its bytes, not in its health checks: one that has stopped working is left and what
//! waits at it goes elsewhere; one that is only slow, idle or not read from is left in peace.
//!
//! Deadlines are far away in all these tests, and every engine answers `/health` all the time, so that nothing else can
//! be the reason.

use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use outrigger_tests::harness::{
    Call, Load, Metrics, Protocol, Proxy, Streaming, Transcript, within,
};
use outrigger_tests::sim::{Fault, Options, Simulator};
use serde_json::json;
use tokio::task::JoinSet;

use super::fleet::{
    attempts, await_idle, await_ready, ended, endpoint_states, error_code, one_backend,
};

/// What is a stall: more than a busy machine ever keeps an engine of ours from running.
const FLOOR: Duration = Duration::from_secs(1);

/// The same where nothing is to be found stalled, and one hitch of the machine would be enough.
const WIDE_FLOOR: Duration = Duration::from_secs(2);

/// Far below any deadline, and enough for a machine that is busy with other tests.
const SOON: Duration = Duration::from_secs(20);

/// Slower than anything is waited for.
const FROZEN: f64 = 1e12;

const FAR: &str = "deadline: { first_byte: 60s, gap: 60s }";

/// A backend that ejects for nothing but a stall.
fn watchful(stall: &str, base: &str) -> String {
    format!(
        "balance: round_robin, health: {{ http: /health, interval: 100ms }}, \
         ejection: {{ failures: 1000, base: {base}, jitter: 0, success_rate: off, stall: {stall} }}"
    )
}

fn short() -> String {
    watchful("{ gaps: 5, floor: 1s }", "60s")
}

fn patient() -> String {
    watchful("{ gaps: 5, floor: 2s }", "60s")
}

/// An engine with a token every 5 ms.
fn engine(name: &str) -> Simulator {
    Simulator::start(Options::named(name).steady(Duration::from_millis(5)))
}

fn stream(tokens: u64) -> Call {
    Call::chat("how deep is the lagoon?").max_tokens(tokens).streaming()
}

/// An endpoint is judged by what it was like before: it has to have been something.
async fn teach(proxy: &Proxy, endpoints: usize) {
    let report = Load::of(14 * endpoints).run(proxy.address(), |_| stream(6)).await;
    assert_eq!(report.ok(), 14 * endpoints, "{:?}", report.outcomes());
}

/// Two engines whose pace is known.
async fn two(backend: &str, route: &str) -> (Simulator, Simulator, Proxy) {
    let (a, b) = (engine("a"), engine("b"));
    let proxy = Proxy::start(&one_backend(&[&a, &b], backend, route)).await;
    await_ready(&proxy).await;
    teach(&proxy, 2).await;
    (a, b, proxy)
}

/// One engine whose pace is known.
async fn one(backend: &str, route: &str) -> (Simulator, Proxy) {
    let one = engine("one");
    let proxy = Proxy::start(&one_backend(&[&one], backend, route)).await;
    await_ready(&proxy).await;
    teach(&proxy, 1).await;
    (one, proxy)
}

/// A stream that has ended, and whose it was.
#[derive(Debug)]
struct Told {
    by: String,
    attempts: String,
    transcript: Transcript,
}

async fn listen(streaming: Streaming) -> Told {
    let header = |name| streaming.header(name).unwrap_or("-").to_owned();
    let (by, attempts) = (header("x-sim-name"), header("x-outrigger-attempts"));
    Told { by, attempts, transcript: streaming.events().await }
}

/// The same call several times at once.
async fn at_once(proxy: &Proxy, count: usize, call: impl Fn() -> Call) -> Vec<Told> {
    let mut streams = JoinSet::new();
    for _ in 0..count {
        let (call, address) = (call(), proxy.address());
        streams.spawn(async move { listen(call.open(address).await).await });
    }
    streams.join_all().await
}

fn all_complete_by(told: &[Told], name: &str) {
    for one in told {
        assert!(one.by == name && one.transcript.is_complete(), "{one:?}");
    }
}

fn stalled_ejections(metrics: &Metrics) -> f64 {
    metrics.get("outrigger_endpoint_ejections_total", &[("reason", "stalled")])
}

fn stalled_retries(metrics: &Metrics) -> f64 {
    metrics.get("outrigger_retries_total", &[("reason", "stalled")])
}

/// Nobody was taken for stalled, in no respect.
async fn nobody_stalled(proxy: &Proxy) {
    let metrics = proxy.metrics().await;
    let requests = metrics.get("outrigger_requests_total", &[("outcome", "stalled")]);
    let found = (stalled_ejections(&metrics), stalled_retries(&metrics), requests);
    assert_eq!(found, (0.0, 0.0, 0.0), "ejections, retries and requests:\n{}", metrics.text);
    let ejected = endpoint_states(proxy).await.iter().any(|endpoint| endpoint.ejected);
    assert!(!ejected, "{:?}", endpoint_states(proxy).await);
}

async fn await_stalled_ejections(proxy: &Proxy, count: f64) {
    proxy.await_metrics(|metrics| stalled_ejections(metrics) == count).await;
}

#[tokio::test]
async fn what_waits_at_a_frozen_engine_is_served_by_another() {
    let (a, _b, proxy) = two(&short(), FAR).await;
    a.set_slowdown(FROZEN);
    let began = Instant::now();
    let told = at_once(&proxy, 8, || stream(4)).await;
    let took = began.elapsed();
    all_complete_by(&told, "b");
    assert!(took > FLOOR && took < SOON, "{took:?}");
    let retried = told.iter().filter(|one| one.attempts == "2").count();
    assert_eq!(retried, 4, "each second turn was a's: {told:?}");
    let metrics = proxy.metrics().await;
    assert_eq!((stalled_retries(&metrics), stalled_ejections(&metrics)), (4.0, 1.0));
    let endpoints = endpoint_states(&proxy).await;
    assert!(endpoints[0].ready && endpoints[0].ejected, "its health says nothing: {endpoints:?}");
    assert!(endpoints[1].ready && !endpoints[1].ejected, "{endpoints:?}");
    let after = at_once(&proxy, 6, || stream(4)).await;
    all_complete_by(&after, "b");
    assert!(after.iter().all(|one| one.attempts == "1"), "nobody goes there: {after:?}");
    a.reached(|state| state.in_flight == 0).await;
    await_idle(&proxy).await;
}

#[tokio::test]
async fn an_answer_that_had_begun_is_cut_by_its_gap_deadline_only() {
    let (a, _b, proxy) = two(&short(), "deadline: { first_byte: 60s, gap: 6s }").await;
    let mut begun = Vec::new();
    for _ in 0..4 {
        let mut streaming = stream(300).open(proxy.address()).await;
        assert!(streaming.event().await.is_some() && streaming.event().await.is_some());
        begun.push(streaming);
    }
    a.set_slowdown(FROZEN);
    let listening: Vec<_> = begun.into_iter().map(|begun| tokio::spawn(listen(begun))).collect();
    let began = Instant::now();
    let waiting = at_once(&proxy, 4, || stream(4)).await;
    assert!(began.elapsed() < Duration::from_secs(6), "{:?}", began.elapsed());
    all_complete_by(&waiting, "b");
    let (mut cut, mut whole) = (0, 0);
    for told in listening {
        let told = told.await.expect("a stream that is listened to");
        let events = &told.transcript.events;
        if told.by == "b" {
            assert!(told.transcript.is_complete(), "{told:?}");
            whole += 1;
            continue;
        }
        let last = events.last().expect("events");
        assert_eq!(last.json()["error"]["code"], "gap_timeout", "{told:?}");
        let spoke = events.iter().rev().find(|event| event.json()["choices"].is_array());
        let silent = last.after - spoke.expect("tokens").after;
        assert!(silent >= Duration::from_millis(5_900), "cut after a silence of {silent:?}");
        cut += 1;
    }
    assert_eq!((cut, whole), (2, 2));
    assert!(endpoint_states(&proxy).await[0].ejected);
}

/// Two requests of four meet this at `a`.
async fn silent(fault: &str, upstream: &str, client: Protocol) {
    let backend = format!("protocol: {upstream}, {}", short());
    let (a, _b, proxy) = two(&backend, FAR).await;
    let began = Instant::now();
    let told = at_once(&proxy, 4, || stream(4).over(client).fault(&format!("{fault};at=a"))).await;
    let took = began.elapsed();
    all_complete_by(&told, "b");
    assert!(took > FLOOR && took < SOON, "{fault} {upstream} {client:?}: {took:?}");
    let metrics = proxy.metrics().await;
    assert_eq!((stalled_retries(&metrics), stalled_ejections(&metrics)), (2.0, 1.0));
    // It is told that nobody waits for its answers any more.
    a.reached(|state| state.in_flight == 0).await;
    await_idle(&proxy).await;
}

#[tokio::test]
async fn the_head_of_a_stream_is_no_sign_of_life() {
    silent("stall_mid=0", "http1", Protocol::Http1).await;
    silent("stall_mid=0", "http1", Protocol::H2).await;
}

#[tokio::test]
async fn the_head_of_a_stream_is_no_sign_of_life_over_h2c() {
    silent("stall_mid=0", "h2c", Protocol::Http1).await;
    silent("stall_mid=0", "h2c", Protocol::H2).await;
}

#[tokio::test]
async fn an_endpoint_that_sends_nothing_at_all_is_left() {
    silent("stall_first_byte", "http1", Protocol::H2).await;
    silent("stall_first_byte", "h2c", Protocol::Http1).await;
}

#[tokio::test]
async fn it_is_watched_unless_told_otherwise() {
    let backend = "balance: round_robin, ejection: { failures: 1000, base: 60s }";
    let (_a, _b, proxy) = two(backend, FAR).await;
    let began = Instant::now();
    let told = at_once(&proxy, 2, || stream(4).fault("stall_mid=0;at=a")).await;
    let took = began.elapsed();
    all_complete_by(&told, "b");
    assert!((4_900..15_000).contains(&took.as_millis()), "the default floor is 5 s: {took:?}");
    assert_eq!(stalled_ejections(&proxy.metrics().await), 1.0);
}

#[tokio::test]
async fn the_only_endpoint_stays_and_its_request_is_told() {
    let (_one, proxy) = one(&short(), FAR).await;
    for (fault, times) in [("stall_mid=0", 1.0), ("stall_first_byte", 2.0)] {
        let began = Instant::now();
        let answer = stream(4).fault(fault).send(proxy.address()).await;
        let took = began.elapsed();
        assert!(took > FLOOR && took < SOON, "{took:?}");
        assert_eq!((answer.status, &*error_code(&answer)), (504, "stalled"), "{}", answer.text());
        proxy.await_metrics(|metrics| ended(metrics, "stalled", 504) == times).await;
        assert!(!endpoint_states(&proxy).await[0].ejected);
        let next = listen(stream(4).open(proxy.address()).await).await;
        assert!(next.transcript.is_complete(), "it is asked again at once: {next:?}");
    }
    assert_eq!(stalled_ejections(&proxy.metrics().await), 0.0);
}

#[tokio::test]
async fn when_both_have_stopped_the_request_is_told_after_the_second() {
    let (a, b, proxy) = two(&short(), FAR).await;
    a.set_slowdown(FROZEN);
    b.set_slowdown(FROZEN);
    let answer = stream(4).send(proxy.address()).await;
    assert_eq!((answer.status, &*error_code(&answer)), (504, "stalled"), "{}", answer.text());
    let metrics = proxy.metrics().await;
    let denied = metrics.get("outrigger_retries_denied_total", &[("reason", "no_endpoint")]);
    assert_eq!((stalled_retries(&metrics), denied), (1.0, 1.0));
    let ejected = endpoint_states(&proxy).await.iter().filter(|endpoint| endpoint.ejected).count();
    assert_eq!(ejected, 1, "one of two stays");
}

#[tokio::test]
async fn without_retries_it_is_told_at_once() {
    let (_a, _b, proxy) = two(&short(), &format!("{FAR}, retry: off")).await;
    let told = at_once(&proxy, 2, || stream(4).fault("stall_mid=0;at=a")).await;
    let (by_a, by_b): (Vec<_>, Vec<_>) = told.iter().partition(|one| one.by == "a");
    assert!(by_b.len() == 1 && by_b[0].transcript.is_complete(), "{told:?}");
    let last = by_a[0].transcript.events.last().expect("an event that tells");
    assert_eq!(last.json()["error"]["code"], "stalled", "{told:?}");
    proxy.await_metrics(|metrics| ended(metrics, "stalled", 200) == 1.0).await;
    await_stalled_ejections(&proxy, 1.0).await;
}

#[tokio::test]
async fn without_the_reason_stalled_it_is_not_retried() {
    let (_a, _b, proxy) =
        two(&short(), &format!("{FAR}, retry: {{ when: [connect, reset] }}")).await;
    let answers =
        Load::of(2).at_once(2).run(proxy.address(), |_| stream(4).fault("stall_first_byte;at=a"));
    let report = answers.await;
    assert_eq!((report.ok(), report.status(504)), (1, 1), "{:?}", report.outcomes());
    assert_eq!(stalled_retries(&proxy.metrics().await), 0.0);
}

#[tokio::test]
async fn after_its_time_one_stream_tries_it_and_it_is_back() {
    let backend = watchful("{ gaps: 5, floor: 1s }", "400ms");
    let (_a, _b, proxy) = two(&backend, FAR).await;
    all_complete_by(&at_once(&proxy, 2, || stream(4).fault("stall_mid=0;at=a")).await, "b");
    assert!(endpoint_states(&proxy).await[0].ejected);
    // The time itself is awaited: nothing happens at its end.
    tokio::time::sleep(Duration::from_millis(450)).await;
    let report = Load::of(40).at_once(4).run(proxy.address(), |_| stream(4)).await;
    assert_eq!(report.ok(), 40, "{:?}", report.outcomes());
    assert!(report.by_name()["a"] > 5, "{:?}", report.by_name());
    let metrics = proxy.metrics().await;
    assert_eq!((stalled_retries(&metrics), stalled_ejections(&metrics)), (1.0, 1.0));
    assert!(!endpoint_states(&proxy).await[0].ejected);
}

#[tokio::test]
async fn an_engine_that_stays_frozen_costs_no_stream_its_answer() {
    let backend = watchful("{ gaps: 5, floor: 1s }", "300ms");
    let (a, _b, proxy) = two(&backend, FAR).await;
    a.set_slowdown(FROZEN);
    let began = Instant::now();
    while stalled_ejections(&proxy.metrics().await) < 3.0 {
        assert!(began.elapsed() < Duration::from_secs(60), "it is tried again and again");
        all_complete_by(&at_once(&proxy, 3, || stream(10)).await, "b");
    }
}

#[tokio::test]
async fn a_slow_engine_is_not_a_frozen_one() {
    // It is silent for longer than the floor after every token.
    let slow = Options::named("a").steady(Duration::from_millis(500));
    let (a, b) = (Simulator::start(slow), engine("b"));
    let backend = watchful("{ gaps: 6, floor: 300ms }", "60s");
    let proxy = Proxy::start(&one_backend(&[&a, &b], &backend, FAR)).await;
    await_ready(&proxy).await;
    // First enough of them for it to be known, and then a few.
    for (count, at_once) in [(24, 24), (4, 2)] {
        let load = Load::of(count).at_once(at_once);
        let report = load.run(proxy.address(), |index| stream(3 + index as u64 % 3)).await;
        assert_eq!(report.ok(), count, "{:?}", report.outcomes());
        assert_eq!(report.by_name()["a"], count / 2, "{:?}", report.by_name());
    }
    nobody_stalled(&proxy).await;
}

#[tokio::test]
async fn an_answer_that_comes_as_a_whole_may_take_its_time() {
    let (_one, proxy) = one(&patient(), FAR).await;
    // Four seconds without a byte.
    let call = Call::chat("how deep?").max_tokens(800);
    let answer = call.send(proxy.address()).await;
    assert_eq!((answer.status, attempts(&answer)), (200, 1));
    assert!(answer.whole_after > Duration::from_millis(3_900), "{:?}", answer.whole_after);
    let call = Call::chat("how deep?").max_tokens(400).field("stream", false);
    assert_eq!(call.send(proxy.address()).await.status, 200);
    nobody_stalled(&proxy).await;
}

#[tokio::test]
async fn a_long_prompt_may_take_its_time() {
    // Prompts are read at 10,000 tokens a second, in steps of a fifth of one.
    let reader = || {
        let mut options = Options::named("one").steady(Duration::from_millis(5));
        options.engine.prefill_rate = 10_000.0;
        Simulator::start(options)
    };
    let one = reader();
    let proxy = Proxy::start(&one_backend(&[&one], &patient(), FAR)).await;
    await_ready(&proxy).await;
    teach(&proxy, 1).await;
    let long = || Call::chat(&"word ".repeat(32_000)).max_tokens(4).streaming();
    // Alone: more than three seconds in which nothing at all comes.
    let told = listen(long().open(proxy.address()).await).await;
    assert!(told.transcript.is_complete(), "{told:?}");
    assert!(told.transcript.events[0].after > Duration::from_secs(3), "{told:?}");
    nobody_stalled(&proxy).await;
    // And while others stream, whose tokens come once in a fifth of a second meanwhile.
    let others = tokio::spawn({
        let address = proxy.address();
        async move { Load::of(8).at_once(2).run(address, |_| stream(100)).await }
    });
    one.reached(|state| state.running == 2).await;
    let told = listen(long().open(proxy.address()).await).await;
    assert!(told.transcript.is_complete(), "{told:?}");
    assert_eq!(others.await.expect("a load").ok(), 8);
    nobody_stalled(&proxy).await;
}

#[tokio::test]
async fn an_idle_engine_is_not_silent() {
    let stall = watchful("{ gaps: 2, floor: 2s }", "60s");
    let (_a, _b, proxy) = two(&stall, FAR).await;
    // The time itself is awaited.
    tokio::time::sleep(Duration::from_millis(3_200)).await;
    nobody_stalled(&proxy).await;
    // Late, but not as late as it would be had the silence begun with the idleness.
    let told = at_once(&proxy, 2, || stream(4).fault("stall_mid=0;for=600ms")).await;
    assert!(told.iter().all(|one| one.transcript.is_complete() && one.attempts == "1"), "{told:?}");
    nobody_stalled(&proxy).await;
}

#[tokio::test]
async fn a_client_that_reads_nothing_does_not_make_the_engine_silent() {
    for client in [Protocol::Http1, Protocol::H2] {
        let (one, proxy) = one(&patient(), FAR).await;
        // So much that no buffer on the way holds it.
        let call = Call::post("/events/32000?size=1000").json(json!({"stream": true}));
        let mut paused = call.over(client).open(proxy.address()).await;
        let first = paused.event().await.expect("an event");
        assert_eq!(first.json()["index"], 0);
        // The time itself is awaited: what would be a stall, and half as much.
        tokio::time::sleep(WIDE_FLOOR * 3 / 2).await;
        // The checks of its health come and go.
        one.reached(|state| state.in_flight == 1).await;
        nobody_stalled(&proxy).await;
        // Others are served meanwhile, and it goes on where it was.
        let told = listen(stream(4).open(proxy.address()).await).await;
        assert!(told.transcript.is_complete(), "{told:?}");
        let rest = within("the rest", paused.events()).await;
        assert!(rest.is_complete() && rest.events.len() == 32_000, "{} events", rest.events.len());
        nobody_stalled(&proxy).await;
    }
}

/// The proxy itself does not run for a while, as in a throttled container: what the engines sent meanwhile is there to
/// be read, and nobody else was silent.
#[tokio::test]
async fn a_pause_of_the_proxy_is_not_the_engines() {
    let (_a, _b, proxy) = two(&patient(), FAR).await;
    let load = tokio::spawn({
        let address = proxy.address();
        async move { Load::of(200).at_once(8).run(address, |_| stream(40)).await }
    });
    for _ in 0..3 {
        proxy.await_metrics(|metrics| metrics.get("outrigger_requests_in_flight", &[]) > 4.0).await;
        proxy.signal(Signal::SIGSTOP);
        // The pause itself.
        tokio::time::sleep(WIDE_FLOOR * 3 / 2).await;
        proxy.signal(Signal::SIGCONT);
    }
    let report = load.await.expect("a load");
    assert_eq!(report.ok(), 200, "{:?}", report.outcomes());
    nobody_stalled(&proxy).await;
}

#[tokio::test]
async fn nothing_is_a_stall_when_that_is_off() {
    let off = watchful("off", "60s");
    let route = "deadline: { first_byte: 4s }, retry: { when: [stalled] }";
    let (a, _b, proxy) = two(&off, route).await;
    a.set_slowdown(FROZEN);
    let report =
        Load::of(4).at_once(4).run(proxy.address(), |_| stream(4).fault("stall_first_byte;at=a"));
    let report = report.await;
    assert_eq!((report.ok(), report.status(504)), (2, 2), "{:?}", report.outcomes());
    assert!(report.took >= Duration::from_secs(4), "{:?}", report.took);
    proxy.await_metrics(|metrics| ended(metrics, "first_byte_timeout", 504) == 2.0).await;
    nobody_stalled(&proxy).await;
}

#[tokio::test]
async fn an_endpoint_that_is_hardly_known_is_given_time() {
    let (a, b) = (engine("a"), engine("b"));
    let proxy = Proxy::start(&one_backend(&[&a, &b], &short(), FAR)).await;
    await_ready(&proxy).await;
    let told = at_once(&proxy, 2, || stream(4).fault("stall_mid=0;for=3s")).await;
    assert!(told.iter().all(|one| one.transcript.is_complete()), "{told:?}");
    nobody_stalled(&proxy).await;
}

#[tokio::test]
async fn only_who_sent_a_prompt_waits_for_the_head_until_the_first_event() {
    let one = engine("one");
    for upstream in ["http1", "h2c"] {
        let backend = format!("protocol: {upstream}");
        let proxy = Proxy::start(&one_backend(&[&one], &backend, FAR)).await;
        for client in [Protocol::Http1, Protocol::H2] {
            // No event will ever come, and the head is here.
            let call = Call::get("/events/9").header("accept", "text/event-stream").over(client);
            let head = call.fault("stall_mid=0").open(proxy.address()).await;
            assert_eq!(
                (head.status, head.header("content-type")),
                (200, Some("text/event-stream"))
            );
            drop(head);
            one.aborted().await;
            let call = Call::post("/events/9").header("content-type", "text/plain").body("hello");
            let head = call.over(client).fault("stall_mid=0").open(proxy.address()).await;
            assert_eq!(head.status, 200);
            drop(head);
            one.aborted().await;
            let call = stream(4).over(client).fault("stall_mid=0;for=400ms");
            let head = call.open(proxy.address()).await;
            assert!(head.head_after >= Duration::from_millis(400), "{:?}", head.head_after);
            assert!(listen(head).await.transcript.is_complete());
        }
    }
}

/// While its head is held back a client may leave as at any other time.
#[tokio::test]
async fn a_client_that_leaves_before_the_first_event_frees_the_engine() {
    let (a, b, proxy) = two(&watchful("off", "60s"), FAR).await;
    for client in [Protocol::Http1, Protocol::H2] {
        let address = proxy.address();
        let call = stream(4).over(client).fault("stall_mid=0");
        let waiting = tokio::spawn(async move { call.try_open(address).await.is_ok() });
        let by = tokio::select! {
            _ = a.reached(|state| state.running > 0) => &a,
            _ = b.reached(|state| state.running > 0) => &b,
        };
        waiting.abort();
        by.reached(|state| state.running == 0).await;
        by.aborted().await;
        await_idle(&proxy).await;
    }
}

/// A stream is retried with the whole of its prompt, however long.
#[tokio::test]
async fn a_long_prompt_goes_on_to_the_next_endpoint_whole() {
    let (_a, b, proxy) = two(&short(), FAR).await;
    let words = "reef ".repeat(40_000);
    let told = at_once(&proxy, 2, || {
        Call::chat(&words).max_tokens(3).streaming().fault("stall_mid=0;at=a")
    });
    let told = told.await;
    all_complete_by(&told, "b");
    let direct = Call::chat(&words).max_tokens(3).streaming().open(b.addr).await;
    let text = listen(direct).await.transcript.text();
    assert!(told.iter().all(|one| one.transcript.text() == text), "{text:?}: {told:?}");
}

/// An engine can hang for one and the same request; then it is not the engine that is silent.
#[tokio::test]
async fn while_others_get_bytes_one_silent_request_is_no_stall() {
    let (_one, proxy) = one(&patient(), FAR).await;
    let address = proxy.address();
    let stuck = tokio::spawn(async move {
        stream(4).fault("stall_mid=0;for=4500ms").open(address).await.events().await
    });
    while !stuck.is_finished() {
        let told = listen(stream(40).open(proxy.address()).await).await;
        assert!(told.transcript.is_complete(), "{told:?}");
    }
    let stuck = stuck.await.expect("a stream");
    assert!(stuck.is_complete(), "{stuck:?}");
    nobody_stalled(&proxy).await;
}

/// Rules of the simulator rather than a header of the request: nothing about the request is special.
#[tokio::test]
async fn an_engine_that_falls_silent_in_the_middle_of_traffic_loses_no_waiting_stream() {
    let (a, _b, proxy) = two(&short(), "deadline: { first_byte: 60s, gap: 60s }").await;
    let address = proxy.address();
    let load =
        tokio::spawn(async move { Load::of(60).at_once(6).run(address, |_| stream(20)).await });
    a.reached(|state| state.completed > 20).await;
    a.fault(Fault::StallMid(0, None));
    let report = load.await.expect("a load");
    assert_eq!(report.ok(), 60, "{:?}", report.outcomes());
    await_stalled_ejections(&proxy, 1.0).await;
    assert!(stalled_retries(&proxy.metrics().await) >= 1.0);
}
