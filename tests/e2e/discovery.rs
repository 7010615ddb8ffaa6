//! Endpoints that are found: by name, by service record, in a file of their own, and by several of these at once.
//!
//! Names are asked of a server of the test's own, which remembers what it was asked and when.

mod denials;
mod files;
mod mixed;
mod names;
mod services;

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use outrigger_tests::harness::{DnsServer, Metrics, Proxy, Question, Says, within};
use outrigger_tests::sim::{Options, Simulator};
use serde_json::Value;

use crate::fleet::{await_endpoints, endpoint_states, one_backend_at};

/// The name that most tests look up.
const NAME: &str = "fleet.test";

/// Every endpoint in turn; an answer of the DNS lives as long as it says.
const IN_TURN: &str = "balance: round_robin, dns_refresh: 1h";

/// The same, with names looked up every second.
const REFRESHED: &str = "balance: round_robin, dns_refresh: 1s";

/// What a clock of ours and a timer of the proxy may differ by.
const SLACK: Duration = Duration::from_millis(50);

/// Simulators at these addresses, all on the same port, called by the addresses.
fn same_port(hosts: &[&str]) -> Vec<Simulator> {
    let at = |host: &str, port| {
        let host: IpAddr = host.parse().expect("an address");
        let options = Options::named(&host.to_string()).fast().listen(SocketAddr::new(host, port));
        Simulator::try_start(options)
    };
    let fleet = || {
        let first = at(hosts[0], 0).expect("a free port");
        let port = first.addr.port();
        let rest = hosts[1..].iter().map(|host| at(host, port)).collect::<Result<Vec<_>, _>>();
        rest.ok().map(|rest| std::iter::once(first).chain(rest).collect())
    };
    // The port that is free at the first address may be taken at another.
    (0..100).find_map(|_| fleet()).expect("a port that is free at all of these addresses")
}

/// A DNS server that knows [`NAME`].
async fn dns(says: Says) -> DnsServer {
    let server = DnsServer::start().await;
    server.set(NAME, says);
    server
}

/// One backend, `stable`, with these entries; `backend` are further settings of it.
fn config(dns: &DnsServer, entries: &str, backend: &str) -> String {
    format!("{}{}", dns.yaml(), one_backend_at(entries, backend, ""))
}

/// A proxy whose one entry is [`NAME`], on the port of these simulators.
async fn by_name(dns: &DnsServer, simulators: &[Simulator], backend: &str) -> Proxy {
    let entries = format!("['{NAME}:{}']", simulators[0].addr.port());
    Proxy::start(&config(dns, &entries, backend)).await
}

/// The addresses of these simulators, as the proxy shows them.
fn places<'a>(simulators: impl IntoIterator<Item = &'a Simulator>) -> Vec<String> {
    simulators.into_iter().map(Simulator::endpoint).collect()
}

/// Waits until the proxy has these endpoints, in this order.
async fn await_places(proxy: &Proxy, wanted: &[String]) {
    let what = format!("the endpoints to be {wanted:?}");
    await_endpoints(proxy, &what, |all| all.iter().map(|e| &e.address).eq(wanted)).await;
}

/// The endpoints that the proxy has now.
async fn present(proxy: &Proxy) -> Vec<String> {
    endpoint_states(proxy).await.into_iter().map(|endpoint| endpoint.address).collect()
}

/// Waits until the proxy shows these weights, in the order of the endpoints. There is no event to wait for: it asks every
/// 10 ms.
async fn await_weights(proxy: &Proxy, wanted: &[u32]) {
    let mut pause = tokio::time::interval(Duration::from_millis(10));
    within("the weights", async {
        while shown(proxy, "weight").await != wanted {
            pause.tick().await;
        }
    })
    .await;
}

/// What the proxy shows of every endpoint under this key.
async fn shown(proxy: &Proxy, key: &str) -> Vec<Value> {
    let backends = proxy.admin_get("/endpoints").await.json();
    let endpoints = backends[0]["endpoints"].as_array().expect("a list of endpoints");
    endpoints.iter().map(|endpoint| endpoint[key].clone()).collect()
}

/// Look-ups that ended so.
fn looked_up(metrics: &Metrics, result: &str) -> f64 {
    let labels = [("backend", "stable"), ("result", result)];
    metrics.get("outrigger_discovery_resolutions_total", &labels)
}

/// From each question to the next.
fn pauses(asked: &[Question]) -> Vec<Duration> {
    asked.windows(2).map(|two| two[1].at - two[0].at).collect()
}

/// Waits for a line of the log that contains this, and sees that there is no other.
async fn said_once(proxy: &Proxy, text: &str) {
    proxy.await_log(text).await;
    let lines = proxy.log().iter().filter(|line| line.contains(text)).count();
    assert_eq!(lines, 1, "{text:?}: {:#?}", proxy.log());
}
