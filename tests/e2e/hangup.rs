//! A client that hangs up frees its place at the model server at once, whatever phase its request is in.
//!
//! Each phase is entered five times for each protocol of the endpoint, and one of them must be within the bound: rounds
//! that the machine was too busy for prove nothing, five that are late do.

use std::sync::Arc;
use std::time::{Duration, Instant};

use outrigger_tests::harness::{Call, Client, Metrics, Protocol, Proxy, Raw, within};
use outrigger_tests::sim::{Options, Simulator};
use tokio::sync::Notify;
use tokio::task::JoinHandle;

use super::fleet::{
    BlackHole, await_endpoints, await_idle, chat, one_backend, one_backend_at, sim,
};

const BOUND: Duration = Duration::from_millis(100);
const ROUNDS: usize = 5;
const UPSTREAMS: [&str; 2] = ["http1", "h2c"];

/// The same phase for clients of both protocols.
macro_rules! for_both_clients {
    ($($phase:ident),* $(,)?) => { $(
        mod $phase {
            use outrigger_tests::harness::Protocol;

            #[tokio::test]
            async fn of_an_http1_client() {
                super::$phase(Protocol::Http1).await;
            }

            #[tokio::test]
            async fn of_an_h2_client() {
                super::$phase(Protocol::H2).await;
            }
        }
    )* };
}

for_both_clients!(
    queued_in_the_engine,
    waiting_for_the_first_byte,
    streaming,
    waiting_for_an_answer_that_is_no_stream,
    between_the_head_and_the_first_event,
    uploading,
    connecting,
    connecting_with_a_body,
    pausing_before_a_retry,
);

/// A client in a task of its own: aborting it hangs up.
struct Caller {
    task: JoinHandle<()>,
    /// Told with every part of the body.
    received: Arc<Notify>,
}

impl Caller {
    fn send(call: Call, proxy: &Proxy) -> Self {
        let (address, received) = (proxy.address(), Arc::new(Notify::new()));
        let told = Arc::clone(&received);
        let task = tokio::spawn(async move {
            let mut streaming = call.open(address).await;
            while streaming.part().await.is_some() {
                told.notify_one();
            }
        });
        Self { task, received }
    }

    async fn hang_up(self) {
        assert!(!self.task.is_finished(), "the request was over before its client hung up");
        self.task.abort();
        assert!(self.task.await.is_err_and(|error| error.is_cancelled()));
    }
}

fn in_time(phase: &str, times: Vec<Duration>) {
    assert_eq!(times.len(), ROUNDS);
    assert!(times.iter().min() <= Some(&BOUND), "{phase}: freed after {times:?}");
}

/// Hangs up on the only simulator as soon as `under_way` resolves, and measures until the simulator knows.
async fn freed(
    phase: &str,
    options: &Options,
    protocol: Protocol,
    call: impl Fn() -> Call,
    under_way: impl AsyncFn(&Simulator, &Caller),
) {
    for upstream in UPSTREAMS {
        let one = Simulator::start(options.clone());
        let backend = format!("protocol: {upstream}");
        let proxy = Proxy::start(&one_backend(&[&one], &backend, "")).await;
        let mut times = Vec::new();
        for round in 1..=ROUNDS as u64 {
            let caller = Caller::send(call().over(protocol), &proxy);
            within(phase, under_way(&one, &caller)).await;
            let began = Instant::now();
            caller.hang_up().await;
            one.aborted().await;
            times.push(began.elapsed());
            proxy.await_metrics(|metrics| gone(metrics) == round as f64).await;
        }
        let state = one.reached(|state| state.in_flight == 0 && state.running == 0).await;
        assert_eq!((state.waiting, state.kv_used), (0, 0), "{phase} over {upstream}");
        in_time(&format!("{phase} over {upstream}"), times);
        await_idle(&proxy).await;
    }
}

fn gone(metrics: &Metrics) -> f64 {
    metrics.get("outrigger_requests_total", &[("outcome", "client_gone")])
}

/// Slow enough that nothing is over by itself.
fn slow() -> Options {
    Options::named("one").steady(Duration::from_millis(20))
}

async fn queued_in_the_engine(protocol: Protocol) {
    for upstream in UPSTREAMS {
        let one = Simulator::start(slow().room(1, 100));
        let backend = format!("protocol: {upstream}");
        let proxy = Proxy::start(&one_backend(&[&one], &backend, "")).await;
        let _running = Caller::send(chat().max_tokens(5_000), &proxy);
        one.reached(|state| state.running == 1).await;
        let mut times = Vec::new();
        for _ in 0..ROUNDS {
            let caller = Caller::send(chat().over(protocol), &proxy);
            one.reached(|state| state.waiting == 1).await;
            let began = Instant::now();
            caller.hang_up().await;
            one.reached(|state| state.waiting == 0).await;
            times.push(began.elapsed());
        }
        assert_eq!(one.state().running, 1, "the other request is left alone");
        in_time(&format!("queued over {upstream}"), times);
    }
}

async fn waiting_for_the_first_byte(protocol: Protocol) {
    let stalled = || chat().streaming().fault("stall_first_byte");
    let there = async |one: &Simulator, _: &Caller| {
        one.reached(|state| state.in_flight == 1).await;
        one.reached(|state| state.bodies > state.aborted).await;
    };
    freed("waiting", &slow(), protocol, stalled, there).await;
}

async fn streaming(protocol: Protocol) {
    let long = || chat().streaming().max_tokens(5_000);
    let begun = async |_: &Simulator, caller: &Caller| caller.received.notified().await;
    freed("streaming", &slow(), protocol, long, begun).await;
}

async fn waiting_for_an_answer_that_is_no_stream(protocol: Protocol) {
    let long = || chat().max_tokens(5_000);
    let running = async |one: &Simulator, _: &Caller| {
        one.reached(|state| state.running == 1).await;
    };
    freed("not streaming", &slow(), protocol, long, running).await;
}

async fn between_the_head_and_the_first_event(protocol: Protocol) {
    let silent = || chat().streaming().fault("stall_mid=0");
    let there = async |one: &Simulator, _: &Caller| {
        one.reached(|state| state.running == 1).await;
    };
    freed("after the head", &slow(), protocol, silent, there).await;
}

async fn uploading(protocol: Protocol) {
    for upstream in UPSTREAMS {
        let one = sim("one");
        let backend = format!("protocol: {upstream}");
        let proxy = Proxy::start(&one_backend(&[&one], &backend, "")).await;
        let mut times = Vec::new();
        for _ in 0..ROUNDS {
            let (call, feed) = Call::post("/echo").over(protocol).fed();
            let caller = Caller::send(call, &proxy);
            assert!(feed.send("the first part of a long body").await);
            one.reached(|state| state.in_flight == 1).await;
            let began = Instant::now();
            caller.hang_up().await;
            one.aborted().await;
            times.push(began.elapsed());
        }
        assert_eq!(one.state().bodies, 0, "a half body was taken for a whole one");
        in_time(&format!("uploading over {upstream}"), times);
        await_idle(&proxy).await;
    }
}

/// Waits until no request is in flight on the route, and gives the time since `began`: at most a tick of the polling more
/// than it took. The access log would say it too, but is written in batches.
async fn let_go(proxy: &Proxy, began: Instant) -> Duration {
    let none = |m: &Metrics| m.get("outrigger_requests_in_flight", &[("route", "all")]) == 0.0;
    proxy.await_metrics(none).await;
    began.elapsed()
}

/// Hangs up on a proxy that cannot connect, and measures until the proxy has let the request go.
async fn freed_while_connecting(protocol: Protocol, call: impl Fn() -> Call) {
    let hole = BlackHole::open().await;
    let endpoints = format!("['{}']", hole.address);
    let route = "deadline: { connect: 5s }";
    let proxy = Proxy::start(&one_backend_at(&endpoints, "", route)).await;
    let mut times = Vec::new();
    for round in 1..=ROUNDS {
        let caller = Caller::send(call().over(protocol), &proxy);
        await_endpoints(&proxy, "an attempt", |all| all[0].in_flight == 1).await;
        let began = Instant::now();
        caller.hang_up().await;
        times.push(let_go(&proxy, began).await);
        let log = proxy.await_access(round).await;
        assert_eq!(log[round - 1]["outcome"], "client_gone", "{}", log[round - 1]);
    }
    in_time("connecting", times);
    await_idle(&proxy).await;
}

async fn connecting(protocol: Protocol) {
    freed_while_connecting(protocol, || Call::get("/v1/models")).await;
}

async fn connecting_with_a_body(protocol: Protocol) {
    freed_while_connecting(protocol, chat).await;
}

async fn pausing_before_a_retry(protocol: Protocol) {
    let (a, b) = (sim("a"), sim("b"));
    let proxy = Proxy::start(&one_backend(&[&a, &b], "", "")).await;
    let mut times = Vec::new();
    for round in 1..=ROUNDS {
        let call = chat().fault("status=503;retry_after=2").over(protocol);
        let caller = Caller::send(call, &proxy);
        let retried =
            |metrics: &Metrics| metrics.get("outrigger_retries_total", &[]) == round as f64;
        proxy.await_metrics(retried).await;
        let began = Instant::now();
        caller.hang_up().await;
        times.push(let_go(&proxy, began).await);
        let log = proxy.await_access(round).await;
        assert_eq!(log[round - 1]["outcome"], "client_gone", "{}", log[round - 1]);
    }
    in_time("pausing", times);
    let asked = a.state().requests() + b.state().requests();
    assert_eq!(asked, ROUNDS as u64, "nobody was asked on behalf of a client that had gone");
    await_idle(&proxy).await;
}

#[tokio::test]
async fn a_client_that_resets_its_connection_is_gone_too() {
    let one = sim("one");
    let proxy = Proxy::start(&one_backend(&[&one], "", "")).await;
    let mut times = Vec::new();
    for _ in 0..ROUNDS {
        let mut raw = Raw::connect(proxy.address()).await;
        raw.send("GET /bytes/1 HTTP/1.1\r\nhost: h\r\nx-sim-fault: stall_first_byte\r\n\r\n").await;
        one.reached(|state| state.in_flight == 1).await;
        let began = Instant::now();
        raw.reset();
        one.aborted().await;
        times.push(began.elapsed());
    }
    in_time("reset", times);
}

#[tokio::test]
async fn a_client_of_h2_that_gives_one_request_up_keeps_the_others() {
    let one = Simulator::start(slow());
    let proxy = Proxy::start(&one_backend(&[&one], "", "")).await;
    let client = Client::connect(proxy.address(), Protocol::H2).await;
    let (mut left, mut right) = (client.share(), client);
    let long = || chat().streaming().max_tokens(60).h2();
    let kept = left.open(long()).await.expect("an answer");
    let mut given_up = right.open(long()).await.expect("an answer");
    assert!(given_up.event().await.is_some());
    drop(given_up);
    // It would end in order otherwise.
    one.aborted().await;
    let transcript = kept.events().await;
    assert!(transcript.is_complete(), "{:?}", transcript.cut);
}
