//! `signals.scrape`: the load that an engine's metrics page tells, and pages that tell nothing.

use std::time::Duration;

use outrigger_tests::harness::{Call, Load, Metrics, Proxy, Streaming};
use outrigger_tests::sim::{Options, Simulator};
use tokio::task::JoinSet;

use super::stub::{ELSEWHERE, Say, Stub, any_port, page, status};
use crate::fleet::{
    Endpoint, await_endpoints, chat, endpoint_states, in_flight, one_backend, plain, sim, stick,
};

const SCRAPE: &str = "signals: { scrape: { interval: 50ms } }";

/// Fills an engine behind the proxy's back for as long as the streams are held.
pub(super) async fn occupy(engine: &Simulator, count: usize) -> Vec<Streaming> {
    let before = engine.state().running;
    let mut streams = Vec::new();
    for _ in 0..count {
        let long = Call::chat("a long story").max_tokens(50_000).streaming();
        streams.push(long.open(engine.addr).await);
    }
    engine.reached(|state| state.running == before + count).await;
    streams
}

/// A page of vLLM.
fn load(running: f64, waiting: f64, kv_usage: f64) -> Say {
    let labels = "{engine=\"0\",model_name=\"m\"}";
    page(&format!(
        "# TYPE vllm:num_requests_running gauge\nvllm:num_requests_running{labels} {running}\n\
         vllm:num_requests_waiting{labels} {waiting}\nvllm:kv_cache_usage_perc{labels} {kv_usage}\n"
    ))
}

/// Two engines, at different addresses, and beside each of them a page on a port of its own.
struct Paged {
    a: Simulator,
    b: Simulator,
    page_of_a: Stub,
    page_of_b: Stub,
    proxy: Proxy,
}

impl Paged {
    async fn start(of_a: Say, of_b: Say) -> Self {
        let (page_of_a, page_of_b) = Stub::pair(true, of_a, of_b).await;
        Self::beside(page_of_a, page_of_b).await
    }

    async fn beside(page_of_a: Stub, page_of_b: Stub) -> Self {
        let a = sim("a");
        let b = Simulator::start(Options::named("b").fast().listen(any_port(ELSEWHERE)));
        let port = page_of_a.address.port();
        // Requests that are held for longer than anything takes would be called stalled.
        let backend =
            format!("ejection: off, signals: {{ scrape: {{ interval: 50ms, port: {port} }} }}");
        let proxy = Proxy::start(&one_backend(&[&a, &b], &backend, "")).await;
        Self { a, b, page_of_a, page_of_b, proxy }
    }

    async fn known(&self, what: &str, wished: impl Fn(&[Endpoint]) -> bool) -> Vec<Endpoint> {
        await_endpoints(&self.proxy, what, wished).await
    }

    /// Where `count` more requests go that all stay where they are.
    async fn stick(&self, count: usize) -> (Vec<u64>, impl Sized) {
        let held = stick(&self.proxy, &[&self.a, &self.b], (0..count).map(|_| plain())).await;
        (in_flight(&self.proxy).await, held)
    }
}

fn scrapes(metrics: &Metrics, address: &str, result: &str) -> f64 {
    let labels = [("endpoint", address), ("result", result)];
    metrics.get("outrigger_load_scrapes_total", &labels)
}

/// How often the log says something.
fn times(proxy: &Proxy, what: &str) -> usize {
    proxy.log().iter().filter(|line| line.contains(what)).count()
}

#[tokio::test]
async fn work_that_others_put_on_an_engine_sends_requests_elsewhere() {
    let (a, b) = (Simulator::start(Options::named("a")), sim("b"));
    let streams = occupy(&a, 40).await;
    let proxy = Proxy::start(&one_backend(&[&a, &b], SCRAPE, "")).await;
    let told = |running| {
        move |all: &[Endpoint]| {
            (all[0].value("running"), all[1].value("running")) == (Some(running), Some(0.0))
        }
    };
    await_endpoints(&proxy, "both pages to be read", told(40.0)).await;
    let _first = stick(&proxy, &[&a, &b], (0..6).map(|_| plain())).await;
    assert_eq!(in_flight(&proxy).await, [0, 6]);
    drop(streams);
    await_endpoints(&proxy, "the page to say that it is over", told(0.0)).await;
    let _then = stick(&proxy, &[&a, &b], (0..6).map(|_| plain())).await;
    assert_eq!(in_flight(&proxy).await, [6, 6]);
}

#[tokio::test]
async fn without_the_signal_nobody_knows_of_that_work() {
    let (a, b) = (Simulator::start(Options::named("a")), sim("b"));
    let _streams = occupy(&a, 40).await;
    let proxy = Proxy::start(&one_backend(&[&a, &b], "", "")).await;
    let _stuck = stick(&proxy, &[&a, &b], (0..6).map(|_| plain())).await;
    assert_eq!(in_flight(&proxy).await, [3, 3]);
    assert_eq!(a.state().seen("/metrics"), 0, "nobody asked for it");
    assert_eq!(endpoint_states(&proxy).await[0].said("running"), None);
}

#[tokio::test]
async fn work_of_our_own_is_not_taken_for_that_of_others() {
    let options = |name| Options::named(name).room(2, usize::MAX);
    let (a, b) = (Simulator::start(options("a")), Simulator::start(options("b")));
    let proxy = Proxy::start(&one_backend(&[&a, &b], SCRAPE, "")).await;
    let long = || Call::chat("a long story").max_tokens(50_000).streaming();
    let mut clients = JoinSet::new();
    let mut send = async |held: [u64; 2]| {
        for _ in 0..6 {
            clients.spawn(long().try_open(proxy.address()));
        }
        let there = |all: &[Endpoint]| all[0].in_flight + all[1].in_flight == held[0] + held[1];
        let all = await_endpoints(&proxy, "six more to be under way", there).await;
        assert_eq!([all[0].in_flight, all[1].in_flight], held);
    };
    send([3, 3]).await;
    let told = |all: &[Endpoint]| {
        all.iter().all(|e| (e.value("running"), e.value("waiting")) == (Some(2.0), Some(1.0)))
    };
    await_endpoints(&proxy, "both pages to be read", told).await;
    // Were its own three counted twice, the one with a fresh page would look busier than the other.
    send([6, 6]).await;
}

#[tokio::test]
async fn what_is_known_is_on_the_admin_pages() {
    let paged = Paged::start(load(7.0, 2.0, 0.25), load(0.0, 0.0, 0.0)).await;
    let both = |all: &[Endpoint]| all.iter().all(|e| e.value("kv_usage").is_some());
    let known = paged.known("both pages to be read", both).await;
    for (signal, value) in [("running", 7.0), ("waiting", 2.0), ("kv_usage", 0.25)] {
        let said = known[0].said(signal).expect("the page says it");
        assert_eq!((said.value, &*said.source), (value, "scrape"));
        assert!(said.age < Duration::from_secs(10), "{said:?}");
    }
    let metrics = paged.proxy.metrics().await;
    let address = paged.a.endpoint();
    for (signal, value) in [("running", 7.0), ("waiting", 2.0), ("kv_usage", 0.25)] {
        let labels = [("backend", "stable"), ("endpoint", &*address), ("signal", signal)];
        assert_eq!(metrics.get("outrigger_endpoint_reported_load", &labels), value, "{signal}");
    }
    assert!(scrapes(&metrics, &address, "success") >= 1.0);
    assert_eq!(scrapes(&metrics, &address, "failure"), 0.0);
    assert_eq!(times(&paged.proxy, "reading the engine's load"), 2, "once for each");
}

#[tokio::test]
async fn an_old_value_fades_and_with_it_what_it_did() {
    let paged = Paged::start(load(40.0, 0.0, 0.0), load(0.0, 0.0, 0.0)).await;
    paged.known("both pages", |all| all.iter().all(|e| e.value("running").is_some())).await;
    let (held, _first) = paged.stick(3).await;
    assert_eq!(held, [0, 3]);
    paged.page_of_a.say(status(500));
    let aged = |all: &[Endpoint]| {
        all[0].said("running").is_some_and(|said| said.age > Duration::from_secs(1))
    };
    let old = paged.known("the value to grow old", aged).await;
    let said = old[0].said("running").expect("it is old, not forgotten");
    assert_eq!((said.value, &*said.source), (40.0, "scrape"));
    assert!(old[1].said("running").expect("the other is read").age < said.age);
    // From two seconds to ten it fades, towards what the peers say.
    paged
        .known("the value to be nearly faded", |all| {
            all[0].said("running").is_none_or(|said| said.age > Duration::from_millis(8_600))
        })
        .await;
    let (held, _second) = paged.stick(1).await;
    assert_eq!(held.iter().sum::<u64>(), 4, "{held:?}");
    paged.known("the value to be forgotten", |all| all[0].said("running").is_none()).await;
    let (held, _third) = paged.stick(4).await;
    assert_eq!(held, [4, 4]);
    assert_eq!(times(&paged.proxy, "the engine's load is not known"), 1, "said once");
    let failures = scrapes(&paged.proxy.metrics().await, &paged.a.endpoint(), "failure");
    assert!(failures > 10.0, "{failures}");
}

#[tokio::test]
async fn a_page_that_comes_back_is_believed_again() {
    let paged = Paged::start(load(40.0, 0.0, 0.0), load(0.0, 0.0, 0.0)).await;
    let both = |all: &[Endpoint]| all.iter().all(|e| e.value("running").is_some());
    paged.known("both pages", both).await;
    paged.page_of_a.say(status(404));
    paged.proxy.await_log("the engine's load is not known").await;
    paged.page_of_a.say(load(3.0, 0.0, 0.0));
    paged.known("a page", |all| all[0].value("running") == Some(3.0)).await;
    assert_eq!(times(&paged.proxy, "reading the engine's load"), 3, "twice for the first");
}

/// A page that tells nothing does no harm: everybody serves, nothing is known, and the log says so once.
async fn harmless(of_a: impl FnMut(u64) -> Say + Send + 'static, reason: &str) {
    let (page_of_a, page_of_b) = Stub::pair(true, status(500), load(0.0, 0.0, 0.0)).await;
    page_of_a.script(of_a);
    let paged = Paged::beside(page_of_a, page_of_b).await;
    let line = paged.proxy.await_log(reason).await;
    assert!(line.contains("the engine's load is not known"), "{line}");
    let call = |_| chat();
    let report = Load::of(60).at_once(6).run(paged.proxy.address(), call).await;
    assert_eq!(report.ok(), 60, "{:?}", report.outcomes());
    let names = report.by_name();
    assert_eq!(names.len(), 2, "nobody is left out: {names:?}");
    paged.page_of_a.asked_again(3).await;
    let state = endpoint_states(&paged.proxy).await;
    for signal in ["running", "waiting", "kv_usage"] {
        assert_eq!(state[0].said(signal), None);
    }
    assert!(state[1].value("running") == Some(0.0), "the other's page is read all the while");
    let log = paged.proxy.log();
    let address = paged.a.endpoint();
    let told = log.iter().filter(|line| line.contains("is not known") && line.contains(&address));
    assert_eq!(told.count(), 1, "said once: {log:#?}");
    paged.page_of_a.say(load(1.0, 0.0, 0.0));
    paged.known("a page at last", |all| all[0].value("running") == Some(1.0)).await;
    assert!(paged.page_of_b.asked() > 0);
}

#[tokio::test]
async fn a_page_that_is_no_metrics_page_does_no_harm() {
    harmless(|_| page("<html>\n<p>It works!</p>\n</html>\n"), "no load of a known engine").await;
}

#[tokio::test]
async fn a_page_that_changes_and_never_tells_a_load_is_complained_of_once() {
    let growing = |nth: u64| page(&"process_threads 4\n".repeat(nth as usize));
    harmless(growing, "no load of a known engine").await;
}

#[tokio::test]
async fn an_empty_page_does_no_harm() {
    harmless(|_| page(""), "no load of a known engine").await;
}

#[tokio::test]
async fn a_page_that_is_not_there_does_no_harm() {
    harmless(|_| status(404), "/metrics answered 404").await;
}

#[tokio::test]
async fn a_page_elsewhere_is_not_followed() {
    let there = b"HTTP/1.1 302 Found\r\nlocation: /elsewhere\r\ncontent-length: 0\r\n\r\n";
    harmless(|_| Say::This(there.to_vec()), "/metrics answered 302").await;
}

#[tokio::test]
async fn a_page_of_twenty_megabytes_does_no_harm() {
    // The load is at its very beginning: all the same, a page like that is none.
    let beginning = "vllm:num_requests_running 5\nvllm:num_requests_waiting 5\n";
    let body = beginning.to_owned() + &"other_series{label=\"value\"} 1\n".repeat(700_000);
    assert!(body.len() > 20_000_000);
    let whole = page(&body);
    harmless(move |_| whole.clone(), "more than 8388608 bytes").await;
}

#[tokio::test]
async fn a_page_that_never_ends_does_no_harm() {
    let head = "HTTP/1.1 200 OK\r\nconnection: close\r\n\r\nvllm:num_requests_running 5\n";
    let more = "other_series{label=\"value\"} 1\n".repeat(1_000);
    let on = Say::AndOn(head.as_bytes().to_vec(), more.into_bytes());
    harmless(move |_| on.clone(), "more than 8388608 bytes").await;
}

#[tokio::test]
async fn a_line_that_never_ends_does_no_harm() {
    let head = "HTTP/1.1 200 OK\r\nconnection: close\r\n\r\nvllm:num_requests_running 5\nvllm:";
    let on = Say::AndOn(head.as_bytes().to_vec(), vec![b'x'; 64 * 1024]);
    harmless(move |_| on.clone(), "more than 8388608 bytes").await;
}

#[tokio::test]
async fn a_page_that_stops_in_the_middle_does_no_harm() {
    let head = "HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\nvllm:num_requests_running 5\n";
    let hold = Say::AndHold(head.as_bytes().to_vec());
    harmless(move |_| hold.clone(), "no page within 2s").await;
}

#[tokio::test]
async fn no_answer_at_all_does_no_harm() {
    harmless(|_| Say::AndHold(Vec::new()), "no page within 2s").await;
}

#[tokio::test]
async fn a_page_that_is_cut_off_does_no_harm() {
    let head = "HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\nvllm:num_requests_running 5\n";
    let cut = Say::This(head.as_bytes().to_vec());
    harmless(move |_| cut.clone(), "the engine's load is not known").await;
}

#[tokio::test]
async fn what_is_not_http_does_no_harm() {
    harmless(|_| Say::This(b"vllm:num_requests_running 5\n\n".to_vec()), "the engine's load").await;
}

#[tokio::test]
async fn numbers_that_are_no_load_are_unknown() {
    let paged = Paged::start(load(f64::NAN, -1.0, 0.5), load(0.0, 0.0, 0.0)).await;
    let known = paged.known("a page", |all| all[0].value("kv_usage") == Some(0.5)).await;
    assert_eq!((known[0].said("running"), known[0].said("waiting")), (None, None));
    paged.page_of_a.say(load(f64::INFINITY, 3.0, 7.0));
    let known = paged.known("a page", |all| all[0].value("waiting") == Some(3.0)).await;
    assert_eq!((known[0].said("running"), known[0].value("kv_usage")), (None, Some(1.0)));
}

#[tokio::test]
async fn pages_are_read_over_the_protocol_of_the_backend() {
    let one = sim("one");
    let backend = format!("protocol: h2c, {SCRAPE}");
    let proxy = Proxy::start(&one_backend(&[&one], &backend, "")).await;
    await_endpoints(&proxy, "the page", |all| all[0].value("running") == Some(0.0)).await;
    let seen = one.seen();
    assert!(seen.iter().all(|s| (&*s.target, &*s.version) == ("/metrics", "HTTP/2.0")), "{seen:?}");
    let agent = seen[0].header("user-agent").unwrap_or_default();
    assert!(agent.starts_with("outrigger/") && agent.ends_with(" (load)"), "{agent}");
}

#[tokio::test]
async fn a_memory_that_is_nearly_full_sends_requests_elsewhere() {
    let paged = Paged::start(load(0.0, 0.0, 1.0), load(0.0, 0.0, 0.1)).await;
    paged.known("both pages", |all| all.iter().all(|e| e.value("kv_usage").is_some())).await;
    let (held, _stuck) = paged.stick(8).await;
    assert_eq!(held, [0, 8]);
}
