//! How the proxy ends: SIGTERM lets requests end within bounds, SIGINT stops at once, POST /drain only says no.
//!
//! HTTP/2 is in `goaway`, handing over to a successor in `upgrade`.

mod goaway;
mod upgrade;

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use outrigger_tests::harness::{Call, Closed, PATIENCE, Proxy, Raw, Streaming};
use outrigger_tests::sim::{Fault, Options, Simulator};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

/// How soon a proxy without anything to wait for must be gone, however busy the machine is: long before any drain here is
/// over.
const AT_ONCE: Duration = Duration::from_secs(8);

/// A configuration with one backend and this `drain`.
fn draining(simulator: &Simulator, drain: &str) -> String {
    format!(
        "backends: {{ only: {{ endpoints: ['{}'] }} }}\nroutes: [{{ name: all, backend: only }}]\n\
         drain: {{ {drain} }}\n",
        simulator.addr
    )
}

/// Ten milliseconds a token, for however many requests.
fn steady() -> Simulator {
    Simulator::start(Options::named("only").steady(Duration::from_millis(10)).room(256, 256))
}

/// Opens a stream and waits for its first event.
async fn stream(to: SocketAddr, tokens: u64) -> Streaming {
    let call = Call::chat("tell me about the lagoon").max_tokens(tokens).streaming();
    let mut stream = call.open(to).await;
    assert!(stream.event().await.is_some(), "{}", stream.status);
    stream
}

/// Waits until a fresh connection is refused.
async fn refused(to: SocketAddr) {
    let began = Instant::now();
    let mut pause = tokio::time::interval(Duration::from_millis(10));
    while TcpStream::connect(to).await.is_ok() {
        assert!(began.elapsed() < PATIENCE, "still accepting");
        pause.tick().await;
    }
}

#[tokio::test]
async fn sigterm_under_a_hundred_open_streams_cuts_none() {
    let simulator = steady();
    let proxy = Proxy::start(&draining(&simulator, "delay: 50ms, timeout: 20s")).await;
    let mut opening = JoinSet::new();
    (0..100).for_each(|_| drop(opening.spawn(stream(proxy.address(), 150))));
    let streams = opening.join_all().await;
    proxy.signal(Signal::SIGTERM);
    let mut reading = JoinSet::new();
    streams.into_iter().for_each(|stream| drop(reading.spawn(stream.events())));
    let transcripts = reading.join_all().await;
    let whole = transcripts.iter().filter(|transcript| transcript.is_complete()).count();
    assert_eq!(whole, 100);
    let status = proxy.wait_exit(AT_ONCE).await;
    assert_eq!(status.code(), Some(0), "{status}");
    assert_eq!(simulator.state().aborted, 0);
    let ended = proxy.access_log();
    assert_eq!(ended.iter().filter(|line| line["outcome"] == "ok").count(), 100);
}

#[tokio::test]
async fn during_the_delay_it_is_not_ready_and_still_serves() {
    let simulator = steady();
    let proxy = Proxy::start(&draining(&simulator, "delay: 30s, timeout: 60s")).await;
    assert_eq!(proxy.admin_get("/ready").await.status, 200);
    proxy.signal(Signal::SIGTERM);
    let metrics = proxy.await_metrics(|m| m.get("outrigger_draining", &[]) == 1.0).await;
    assert!(metrics.has("outrigger_draining", &[]));
    let ready = proxy.admin_get("/ready").await;
    assert_eq!((ready.status, &ready.json()["ready"]), (503, &false.into()));
    assert_eq!(ready.json()["reasons"][0], "draining");
    assert_eq!(proxy.admin_get("/live").await.status, 200, "alive until the end");
    assert_eq!(Call::get("/echo").send(proxy.address()).await.status, 200);
    assert_eq!(Call::get("/echo").h2().send(proxy.address()).await.status, 200);
}

#[tokio::test]
async fn the_delay_is_waited_for_and_no_longer() {
    let simulator = steady();
    let proxy = Proxy::start(&draining(&simulator, "delay: 500ms, timeout: 60s")).await;
    let began = Instant::now();
    proxy.signal(Signal::SIGTERM);
    let status = proxy.wait_exit(AT_ONCE).await;
    let took = began.elapsed();
    assert!(status.code() == Some(0) && took >= Duration::from_millis(450), "{status}, {took:?}");
}

#[tokio::test]
async fn after_the_delay_connections_are_refused_while_streams_go_on() {
    let simulator = steady();
    let proxy = Proxy::start(&draining(&simulator, "delay: 100ms, timeout: 20s")).await;
    let open = stream(proxy.address(), 400).await;
    proxy.signal(Signal::SIGTERM);
    refused(proxy.address()).await;
    assert!(proxy.is_running(), "a stream is still open");
    assert_eq!(proxy.admin_get("/ready").await.status, 503);
    assert!(open.events().await.is_complete());
    proxy.wait_exit(AT_ONCE).await;
}

#[tokio::test]
async fn it_exits_as_soon_as_the_last_stream_has_ended() {
    let simulator = steady();
    let proxy = Proxy::start(&draining(&simulator, "delay: 0s, timeout: 60s")).await;
    let open = stream(proxy.address(), 30).await;
    proxy.signal(Signal::SIGTERM);
    assert!(open.events().await.is_complete());
    proxy.wait_exit(AT_ONCE).await;
}

#[tokio::test]
async fn a_stream_beyond_the_drain_timeout_is_cut_and_logged() {
    let simulator = steady();
    let proxy = Proxy::start(&draining(&simulator, "delay: 0s, timeout: 300ms")).await;
    let call = Call::chat("endless").max_tokens(50).streaming().fault("stall_mid=1");
    let mut open = call.open(proxy.address()).await;
    assert!(open.event().await.is_some());
    proxy.signal(Signal::SIGTERM);
    let transcript = open.events().await;
    assert!(transcript.cut.is_some(), "a client must see that its answer is not whole");
    let status = proxy.wait_exit(AT_ONCE).await;
    assert_eq!(status.code(), Some(0), "{status}");
    proxy.await_log("drain timeout").await;
    let lines = proxy.access_log();
    assert_eq!(lines.len(), 1, "a request that was cut is logged as any other");
    assert_eq!(lines[0]["outcome"], "drain_cut", "{}", lines[0]);
}

#[tokio::test]
async fn the_drain_timeout_is_waited_for_and_no_longer() {
    let simulator = steady();
    let proxy = Proxy::start(&draining(&simulator, "delay: 0s, timeout: 500ms")).await;
    let call = Call::chat("endless").max_tokens(50).streaming().fault("stall_mid=1");
    let mut open = call.open(proxy.address()).await;
    assert!(open.event().await.is_some());
    let began = Instant::now();
    proxy.signal(Signal::SIGTERM);
    proxy.wait_exit(AT_ONCE).await;
    let took = began.elapsed();
    assert!(took >= Duration::from_millis(450), "{took:?}");
}

#[tokio::test]
async fn a_request_that_waits_for_its_first_byte_is_answered() {
    let simulator = steady();
    let proxy = Proxy::start(&draining(&simulator, "delay: 0s, timeout: 20s")).await;
    let address = proxy.address();
    let call = Call::get("/echo").fault("stall_first_byte=500ms");
    let waiting = tokio::spawn(call.send(address));
    simulator.reached(|state| state.in_flight == 1).await;
    proxy.signal(Signal::SIGTERM);
    let answer = waiting.await.expect("it got an answer");
    assert_eq!((answer.status, answer.cut), (200, None));
    proxy.wait_exit(AT_ONCE).await;
}

#[tokio::test]
async fn an_upload_that_has_begun_may_end() {
    let simulator = steady();
    let proxy = Proxy::start(&draining(&simulator, "delay: 0s, timeout: 20s")).await;
    let (call, feed) = Call::post("/echo").fed();
    let answer = tokio::spawn(call.send(proxy.address()));
    assert!(feed.send("first half, ").await);
    simulator.reached(|state| state.in_flight == 1).await;
    proxy.signal(Signal::SIGTERM);
    refused(proxy.address()).await;
    assert!(feed.send("second half").await);
    drop(feed);
    let answer = answer.await.expect("it got an answer");
    assert_eq!((answer.status, answer.echo().bytes), (200, 23));
    proxy.wait_exit(AT_ONCE).await;
}

#[tokio::test]
async fn an_idle_proxy_exits_at_once() {
    let simulator = steady();
    let proxy = Proxy::start(&draining(&simulator, "delay: 0s, timeout: 60s")).await;
    assert_eq!(Call::get("/echo").send(proxy.address()).await.status, 200);
    proxy.signal(Signal::SIGTERM);
    let status = proxy.wait_exit(AT_ONCE).await;
    assert_eq!(status.code(), Some(0), "{status}");
}

#[tokio::test]
async fn a_connection_without_a_request_is_closed_and_holds_nothing_up() {
    let simulator = steady();
    let proxy = Proxy::start(&draining(&simulator, "delay: 0s, timeout: 60s")).await;
    let mut used = Raw::connect(proxy.address()).await;
    used.get("/echo").await;
    assert_eq!(used.response().await.status(), 200);
    let mut fresh = Raw::connect(proxy.address()).await;
    // Admin connections that rest do not count either.
    let mut admin = Raw::connect(proxy.admin()).await;
    admin.get("/live").await;
    assert_eq!(admin.response().await.status(), 200);
    let open = |m: &outrigger_tests::harness::Metrics| m.get("outrigger_connections_open", &[]);
    proxy.await_metrics(|m| open(m) == 2.0).await;
    proxy.signal(Signal::SIGTERM);
    assert_eq!(used.closed().await, Closed::Fin(vec![]));
    assert_eq!(fresh.closed().await, Closed::Fin(vec![]));
    proxy.wait_exit(AT_ONCE).await;
}

#[tokio::test]
async fn answers_during_the_delay_close_their_connection() {
    let simulator = steady();
    let proxy = Proxy::start(&draining(&simulator, "delay: 30s, timeout: 60s")).await;
    let mut raw = Raw::connect(proxy.address()).await;
    raw.get("/echo").await;
    let before = raw.response().await;
    assert_ne!(before.header("connection"), Some("close"));
    proxy.signal(Signal::SIGTERM);
    proxy.await_metrics(|m| m.get("outrigger_draining", &[]) == 1.0).await;
    raw.get("/echo").await;
    let during = raw.response().await;
    assert_eq!((during.status(), during.header("connection")), (200, Some("close")));
    assert_eq!(raw.closed().await, Closed::Fin(vec![]));
}

#[tokio::test]
async fn a_second_sigterm_changes_nothing() {
    let simulator = steady();
    let proxy = Proxy::start(&draining(&simulator, "delay: 0s, timeout: 20s")).await;
    let open = stream(proxy.address(), 400).await;
    proxy.signal(Signal::SIGTERM);
    refused(proxy.address()).await;
    proxy.signal(Signal::SIGTERM);
    proxy.signal(Signal::SIGHUP);
    assert!(open.events().await.is_complete());
    assert_eq!(proxy.wait_exit(AT_ONCE).await.code(), Some(0));
}

#[tokio::test]
async fn sigterm_as_soon_as_the_ports_are_known_is_obeyed() {
    let simulator = steady();
    for round in 0..10 {
        let proxy = Proxy::start(&draining(&simulator, "delay: 0s, timeout: 1s")).await;
        proxy.signal(Signal::SIGTERM);
        let status = proxy.wait_exit(AT_ONCE).await;
        assert_eq!(status.code(), Some(0), "round {round}: {status}");
    }
}

#[tokio::test]
async fn sigint_stops_at_once_whatever_is_open() {
    let simulator = steady();
    let proxy = Proxy::start(&draining(&simulator, "delay: 30s, timeout: 60s")).await;
    let open = stream(proxy.address(), 1000).await;
    proxy.signal(Signal::SIGINT);
    let status = proxy.wait_exit(AT_ONCE).await;
    assert_eq!(status.code(), Some(0), "{status}");
    assert!(open.events().await.cut.is_some());
    simulator.aborted().await;
}

#[tokio::test]
async fn sigint_ends_a_drain() {
    let simulator = steady();
    let proxy = Proxy::start(&draining(&simulator, "delay: 30s, timeout: 60s")).await;
    proxy.signal(Signal::SIGTERM);
    proxy.await_metrics(|m| m.get("outrigger_draining", &[]) == 1.0).await;
    proxy.signal(Signal::SIGINT);
    proxy.wait_exit(AT_ONCE).await;
}

#[tokio::test]
async fn post_drain_makes_it_unready_and_nothing_else() {
    let simulator = steady();
    let proxy = Proxy::start(&draining(&simulator, "delay: 0s, timeout: 60s")).await;
    let answer = Call::post("/drain").send(proxy.admin()).await;
    assert_eq!((answer.status, &answer.json()["changed"]), (200, &true.into()));
    let again = Call::post("/drain").send(proxy.admin()).await;
    assert_eq!((again.status, &again.json()["changed"]), (200, &false.into()));
    let ready = proxy.admin_get("/ready").await;
    assert_eq!((ready.status, &ready.json()["reasons"][0]), (503, &"draining".into()));
    assert_eq!(proxy.metrics().await.get("outrigger_draining", &[]), 1.0);
    assert_eq!(Call::get("/echo").send(proxy.address()).await.status, 200);
    assert!(proxy.is_running());
    proxy.signal(Signal::SIGTERM);
    assert_eq!(proxy.wait_exit(AT_ONCE).await.code(), Some(0));
}

#[tokio::test]
async fn the_access_log_is_complete_at_the_end() {
    let simulator = Simulator::start(Options::named("only").fast());
    let proxy = Proxy::start(&draining(&simulator, "delay: 0s, timeout: 60s")).await;
    for _ in 0..20 {
        assert_eq!(Call::get("/echo").send(proxy.address()).await.status, 200);
    }
    proxy.signal(Signal::SIGTERM);
    proxy.wait_exit(AT_ONCE).await;
    assert_eq!(proxy.access_log().len(), 20);
}

#[tokio::test]
async fn checks_of_a_dead_endpoint_do_not_hold_up_the_exit() {
    let simulator = Simulator::start(Options::named("only").fast());
    simulator.fault(Fault::HealthStall);
    let config = draining(&simulator, "delay: 0s, timeout: 60s")
        .replace("'] }", "'], health: { http: /health, interval: 30s, timeout: 30s } }");
    let proxy = Proxy::start(&config).await;
    simulator.reached(|state| state.seen("/health") == 1).await;
    proxy.signal(Signal::SIGTERM);
    proxy.wait_exit(AT_ONCE).await;
}
