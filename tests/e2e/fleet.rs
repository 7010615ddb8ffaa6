//! Model servers behind a proxy: what the tests of splitting, balancing and resilience say again and again.

use std::time::Duration;

use outrigger_tests::harness::{Answer, Call, Metrics, Proxy, Streaming, within};
use outrigger_tests::sim::{Options, Simulator};
use serde_json::Value;
use tokio::net::{TcpSocket, TcpStream};
use tokio::task::JoinSet;

/// A simulator that answers at once.
pub(crate) fn sim(name: &str) -> Simulator {
    Simulator::start(Options::named(name).fast())
}

/// `['127.0.0.1:41001', …]`
pub(crate) fn endpoints(simulators: &[&Simulator]) -> String {
    let quoted: Vec<_> = simulators.iter().map(|sim| format!("'{}'", sim.addr)).collect();
    format!("[{}]", quoted.join(", "))
}

/// A configuration with one backend, `stable`, and one route, `all`; `backend` and `route` are further settings of
/// each, in YAML's flow style.
pub(crate) fn one_backend(simulators: &[&Simulator], backend: &str, route: &str) -> String {
    one_backend_at(&endpoints(simulators), backend, route)
}

/// The same for endpoints that are written out.
pub(crate) fn one_backend_at(endpoints: &str, backend: &str, route: &str) -> String {
    format!(
        "backends: {{ stable: {{ endpoints: {endpoints}, {backend} }} }}\n\
         routes: [{{ name: all, backend: stable, expose: [attempts], {route} }}]\n"
    )
}

/// A short question with a short answer.
pub(crate) fn chat() -> Call {
    Call::chat("how deep is the lagoon?").max_tokens(4)
}

/// A request without a prompt: as long as it is in flight it weighs one running request, no more.
pub(crate) fn plain() -> Call {
    Call::get("/bytes/1")
}

/// An endpoint as the admin interface shows it.
#[derive(Clone, Debug)]
pub(crate) struct Endpoint {
    pub(crate) address: String,
    pub(crate) ready: bool,
    pub(crate) ejected: bool,
    pub(crate) in_flight: u64,
    pub(crate) load: u64,
    pub(crate) warm: bool,
    /// Since it came into service.
    pub(crate) age: Duration,
    reported: Value,
}

impl Endpoint {
    fn read(value: &Value) -> Self {
        let number = |name: &str| value[name].as_u64().expect("a number");
        let truth = |name: &str| value[name].as_bool().expect("a truth value");
        Self {
            address: value["address"].as_str().expect("an address").to_owned(),
            ready: truth("ready"),
            ejected: truth("ejected"),
            in_flight: number("in_flight"),
            load: number("load"),
            warm: truth("warm"),
            age: Duration::from_secs_f64(value["in_service_seconds"].as_f64().expect("seconds")),
            reported: value["reported"].clone(),
        }
    }

    /// What it said last of its load, as long as that is believed.
    pub(crate) fn said(&self, signal: &str) -> Option<Said> {
        let said = self.reported.get(signal).expect("a signal that the page tells");
        Some(Said {
            value: said["value"].as_f64()?,
            source: said["source"].as_str()?.to_owned(),
            age: Duration::from_secs_f64(said["age_seconds"].as_f64()?),
        })
    }

    /// The value of it alone.
    pub(crate) fn value(&self, signal: &str) -> Option<f64> {
        self.said(signal).map(|said| said.value)
    }
}

/// What an endpoint said of its load.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Said {
    pub(crate) value: f64,
    pub(crate) source: String,
    pub(crate) age: Duration,
}

/// Every endpoint of every backend, in the order of the configuration.
pub(crate) async fn endpoint_states(proxy: &Proxy) -> Vec<Endpoint> {
    let backends = proxy.admin_get("/endpoints").await.json();
    let backends = backends.as_array().expect("a list of backends");
    let endpoints = backends.iter().flat_map(|b| b["endpoints"].as_array().expect("endpoints"));
    endpoints.map(Endpoint::read).collect()
}

/// The endpoints as soon as they are as wished. There is no event to wait for: it asks every 10 ms.
pub(crate) async fn await_endpoints(
    proxy: &Proxy,
    what: &str,
    wished: impl Fn(&[Endpoint]) -> bool,
) -> Vec<Endpoint> {
    let mut pause = tokio::time::interval(Duration::from_millis(10));
    within(what, async {
        loop {
            pause.tick().await;
            let endpoints = endpoint_states(proxy).await;
            if wished(&endpoints) {
                return endpoints;
            }
        }
    })
    .await
}

/// What the proxy counts as in flight, for each endpoint.
pub(crate) async fn in_flight(proxy: &Proxy) -> Vec<u64> {
    endpoint_states(proxy).await.iter().map(|endpoint| endpoint.in_flight).collect()
}

/// Lets requests get stuck at simulators, each one when the one before has arrived, besides what is there already.
pub(crate) async fn stick(
    proxy: &Proxy,
    simulators: &[&Simulator],
    calls: impl IntoIterator<Item = Call>,
) -> JoinSet<Result<Streaming, String>> {
    let mut stuck = JoinSet::new();
    let arrived = || simulators.iter().map(|sim| sim.state().in_flight).sum::<u64>();
    let sent = in_flight(proxy).await.iter().sum::<u64>();
    let before = arrived();
    for (index, call) in (1..).zip(calls) {
        stuck.spawn(call.fault("stall_first_byte").try_open(proxy.address()));
        await_endpoints(proxy, "a request to be under way", |all| {
            let now: u64 = all.iter().map(|endpoint| endpoint.in_flight).sum();
            (now, arrived()) == (sent + index, before + index)
        })
        .await;
    }
    stuck
}

/// Waits until the proxy holds nothing at any endpoint.
pub(crate) async fn await_idle(proxy: &Proxy) {
    let free = |endpoint: &Endpoint| endpoint.in_flight == 0 && endpoint.load == 0;
    await_endpoints(proxy, "every endpoint to be idle", |all| all.iter().all(free)).await;
}

/// Waits until `/ready` says yes.
pub(crate) async fn await_ready(proxy: &Proxy) {
    let mut pause = tokio::time::interval(Duration::from_millis(10));
    within("readiness", async {
        while proxy.admin_get("/ready").await.status != 200 {
            pause.tick().await;
        }
    })
    .await;
}

/// Puts another configuration into force.
pub(crate) async fn reload(proxy: &Proxy, yaml: &str) {
    proxy.rewrite_config(yaml);
    let answer = Call::post("/reload").send(proxy.admin()).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
}

/// How many attempts the proxy made, as it says in the answer.
pub(crate) fn attempts(answer: &Answer) -> u64 {
    let text = answer.header("x-outrigger-attempts").expect("the route exposes attempts");
    text.parse().expect("a number")
}

/// Requests that ended so, on the route `all`.
pub(crate) fn ended(metrics: &Metrics, outcome: &str, code: u16) -> f64 {
    let labels = [("route", "all"), ("outcome", outcome), ("code", &code.to_string())];
    metrics.get("outrigger_requests_total", &labels)
}

/// The OpenAI error code of an answer.
pub(crate) fn error_code(answer: &Answer) -> String {
    answer.json()["error"]["code"].as_str().unwrap_or_default().to_owned()
}

/// An address where connecting never ends: the queue of its listener is full.
pub(crate) struct BlackHole {
    pub(crate) address: String,
    _listener: tokio::net::TcpListener,
    _queue: Vec<TcpStream>,
}

impl BlackHole {
    pub(crate) async fn open() -> Self {
        let socket = TcpSocket::new_v4().expect("a socket");
        socket.bind(([127, 0, 0, 1], 0).into()).expect("a free port");
        let listener = socket.listen(1).expect("a listener");
        let address = listener.local_addr().expect("an address");
        let mut queue = Vec::new();
        // The kernel drops the SYN of whoever does not fit; the first one to be left waiting shows that it is full.
        while let Ok(connected) =
            tokio::time::timeout(Duration::from_millis(200), TcpStream::connect(address)).await
        {
            queue.push(connected.expect("a connection that waits to be accepted"));
            assert!(queue.len() < 64, "a queue of one never gets full");
        }
        Self { address: address.to_string(), _listener: listener, _queue: queue }
    }
}
