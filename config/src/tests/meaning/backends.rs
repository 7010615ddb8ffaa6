//! Backends: where they are, how an endpoint is chosen, when one is fit.

use std::net::SocketAddr;
use std::time::Duration;

use serde_json::json;

use super::read;
use crate::validated::{
    Agent, Backend, Balance, BalancePolicy, Breaker, Ejection, Endpoint, Engine, HashTable, Host,
    Key, Latency, Locality, Place, Route, Scrape, Signals, SlowStart, Stall, SuccessRate, WarmUp,
    WarmUpRequest,
};
use crate::{EXAMPLE, load_endpoints, parse_endpoints};

/// The backend that has these settings besides an endpoint.
fn backend(settings: &str) -> Backend {
    let config = read(&format!(
        "backends: {{ a: {{ endpoints: ['a:1'], {settings} }} }}\nroutes: [{{ backend: a }}]"
    ));
    config.backends[0].clone()
}

#[test]
fn a_policy_alone_is_that_policy_with_its_defaults() {
    for (name, policy) in [
        ("least_load", BalancePolicy::LeastLoad),
        ("least_connection", BalancePolicy::LeastConnection),
        ("power_of_two", BalancePolicy::PowerOfTwo),
        ("peak_ewma", BalancePolicy::PeakEwma),
        ("least_time", BalancePolicy::LeastTime),
        ("prequal", BalancePolicy::Prequal),
        ("prefix_affinity", BalancePolicy::PrefixAffinity),
        ("round_robin", BalancePolicy::RoundRobin),
    ] {
        assert_eq!(policy.name(), name);
        let short = backend(&format!("balance: {name}")).balance;
        assert_eq!(short, Balance::of(policy), "{name}");
        assert_eq!(short, backend(&format!("balance: {{ policy: {name} }}")).balance);
        assert_eq!(short.prefix.is_some(), policy.compares_prompts(), "{name}");
    }
    assert_eq!(Balance::default(), backend("max_connections: off").balance);
    assert_eq!(Balance::default().prefix, Some(32_768));
}

#[test]
fn a_policy_that_hashes_has_a_key_and_a_table() {
    let hash = |rest: &str| {
        backend(&format!("balance: {{ policy: consistent_hash, key: {{ header: X-User }}{rest} }}"))
    };
    let expected = Balance {
        policy: BalancePolicy::ConsistentHash,
        key: Some(Key::Header("x-user".to_owned())),
        table: HashTable::Maglev,
        bounded_load: Some(1.25),
        prefix: None,
    };
    assert_eq!(hash("").balance, expected);
    let ring = hash(", table: ring, bounded_load: off").balance;
    assert_eq!(ring, Balance { table: HashTable::Ring, bounded_load: None, ..expected });
    for (key, meant) in [
        ("cookie: sid", Key::Cookie("sid".to_owned())),
        ("body: user", Key::Body("user".to_owned())),
        ("client: true", Key::Client),
    ] {
        let session = format!("balance: {{ policy: session_affinity, key: {{ {key} }} }}");
        let session = backend(&session).balance;
        assert_eq!((session.key, session.bounded_load), (Some(meant), None), "{key}");
    }
    assert_eq!(backend("balance: { prefix: 2KiB }").balance.prefix, Some(2048));
    assert_eq!(backend("balance: { prefix: off }").balance.prefix, None);
}

#[test]
fn a_key_in_the_body_makes_the_routes_that_use_it_read_bodies() {
    let config = read(
        "
backends:
  a: { endpoints: ['a:1'], balance: { policy: consistent_hash, key: { body: user } } }
  b: { endpoints: ['b:1'], balance: { policy: session_affinity, key: { body: session } } }
  c: { endpoints: ['c:1'], balance: { policy: session_affinity, key: { header: session } } }
  d: { endpoints: ['d:1'], balance: prefix_affinity }
routes:
  - { match: { path: /ab }, split: { a: 1, b: 1 } }
  - { match: { path: /c }, split: { c: 1, d: 1 } }
  - { match: { path: /d }, backend: d, mirror: { backend: a } }
  - { match: { path: /e }, respond: {} }
",
    );
    let fields = config.routes.iter().map(|route| route.key_fields.join(" "));
    assert_eq!(fields.collect::<Vec<_>>(), ["session user", "", "user", ""]);
    let reads = config.routes.iter().map(Route::reads_body);
    assert_eq!(reads.collect::<Vec<_>>(), [true, false, true, false]);
}

#[test]
fn signals_are_off_until_they_are_asked_for() {
    assert_eq!(backend("signals: {}").signals, Signals::default());
    let on = backend("signals: { scrape: {}, agent: { port: 9999 }, orca: true, gateway: true }");
    let scrape = Scrape {
        path: "/metrics".to_owned(),
        port: None,
        interval: Duration::from_secs(1),
        engine: Engine::Auto,
    };
    let agent = Agent { port: 9999, interval: Duration::from_secs(2) };
    let expected =
        Signals { scrape: Some(scrape.clone()), orca: true, agent: Some(agent), gateway: true };
    assert_eq!(on.signals, expected);
    let other = backend("signals: { scrape: { path: /x?y, port: 65535, engine: llama_cpp } }");
    let path = "/x?y".to_owned();
    let expected = Scrape { path, port: Some(65_535), engine: Engine::LlamaCpp, ..scrape };
    assert_eq!(other.signals.scrape, Some(expected));
    assert_eq!(other.signals.agent, None);
}

#[test]
fn distance_always_has_a_price() {
    assert_eq!(backend("locality: {}").locality, Locality { zone: None, hop: 1.0, far: 4.0 });
    let zone = Some("eu-1a".to_owned());
    let given = backend("locality: { zone: eu-1a, hop: 0, far: 0.5 }").locality;
    assert_eq!(given, Locality { zone, hop: 0.0, far: 0.5 });
}

#[test]
fn a_slow_start_is_a_window_or_more() {
    let window = Duration::from_secs(20);
    let expected = SlowStart { window, floor: 0.1, aggression: 1.0 };
    assert_eq!(backend("slow_start: 20s").slow_start, Some(expected.clone()));
    assert_eq!(backend("slow_start: { window: 20s }").slow_start, Some(expected));
    let given = backend("slow_start: { floor: 2.5, aggression: 0.5 }").slow_start;
    let window = Duration::from_secs(30);
    assert_eq!(given, Some(SlowStart { window, floor: 0.025, aggression: 0.5 }));
    assert_eq!(backend("slow_start: off").slow_start, None);
}

#[test]
fn a_warm_up_is_its_requests() {
    let given = backend(
        "warm_up: { requests: [{ path: '/v1/x?y' }, { path: /z, method: get, headers: { X-A: b },
                                body: c, repeat: 3 }] }",
    );
    let (path, method) = ("/v1/x?y".to_owned(), "POST".to_owned());
    let plain = WarmUpRequest { method, path, headers: vec![], body: String::new(), repeat: 1 };
    let other = WarmUpRequest {
        method: "GET".to_owned(),
        path: "/z".to_owned(),
        headers: vec![("x-a".to_owned(), "b".to_owned())],
        body: "c".to_owned(),
        repeat: 3,
    };
    let (timeout, retry) = (Duration::from_secs(600), Duration::from_secs(2));
    assert_eq!(given.warm_up, Some(WarmUp { requests: vec![plain, other], timeout, retry }));
}

#[test]
fn an_ejection_watches_failures_rates_and_stalls_but_not_latency() {
    let window = Duration::from_secs(30);
    let expected = Ejection {
        failures: 5,
        base: Duration::from_secs(10),
        max: Duration::from_secs(300),
        jitter: 0.2,
        max_share: 0.5,
        success_rate: Some(SuccessRate { window, requests: 20, margin: 0.2 }),
        latency: None,
        stall: Some(Stall { gaps: 20, floor: Duration::from_secs(5) }),
    };
    assert_eq!(backend("idle_connections: 1").ejection, Some(expected.clone()));
    assert_eq!(backend("ejection: {}").ejection, Some(expected.clone()));
    let given = backend("ejection: { success_rate: off, stall: false, latency: {}, jitter: 0% }");
    let latency = Some(Latency { factor: 4.0, window, requests: 20 });
    let other = Ejection { success_rate: None, stall: None, latency, jitter: 0.0, ..expected };
    assert_eq!(given.ejection, Some(other));
}

#[test]
fn a_breaker_is_there_where_it_is_written() {
    assert_eq!(backend("idle_connections: 1").breaker, None);
    assert_eq!(backend("breaker: off").breaker, None);
    let expected = Breaker {
        failures: 0.5,
        attempts: 20,
        window: Duration::from_secs(10),
        base: Duration::from_secs(5),
        max: Duration::from_secs(60),
        jitter: 0.2,
    };
    assert_eq!(backend("breaker: {}").breaker, Some(expected.clone()));
    let given = backend("breaker: { failures: 80%, attempts: 5, base: 1m }").breaker;
    let base = Duration::from_secs(60);
    assert_eq!(given, Some(Breaker { failures: 0.8, attempts: 5, base, ..expected }));
}

#[test]
fn a_place_is_an_address_a_service_or_a_file() {
    let config = read(
        "
backends:
  a:
    endpoints:
      - { address: '[::1]:80', weight: 3, local: true, zone: z }
      - { srv: _HTTP._tcp.Vllm.example., zone: z }
      - { file: endpoints.yaml }
routes: [{ backend: a }]
dns: { servers: ['10.0.0.10:53', '[fd00::a]:5353'] }
",
    );
    let endpoints = &config.backends[0].endpoints;
    let host = Place::Host { host: Host::Ip("::1".parse().expect("an address")), port: 80 };
    let zone = Some("z".to_owned());
    let first = Endpoint { place: host, weight: 3, zone: zone.clone(), local: true };
    assert_eq!(endpoints[0], first);
    let place = Place::Srv("_http._tcp.vllm.example".to_owned());
    assert_eq!(endpoints[1], Endpoint { place, weight: 1, zone, local: false });
    assert_eq!(endpoints[2].place, Place::File("endpoints.yaml".into()));
    let printed: Vec<_> = endpoints.iter().map(ToString::to_string).collect();
    assert_eq!(printed, ["[::1]:80", "_http._tcp.vllm.example", "endpoints.yaml"]);
    let servers: Vec<_> = config.dns.servers.iter().map(SocketAddr::to_string).collect();
    assert_eq!(servers, ["10.0.0.10:53", "[fd00::a]:5353"]);
}

#[test]
fn a_file_of_endpoints_lists_addresses() {
    let text = "- 10.0.0.1:8000\n- { address: 'vllm:8000', weight: 2, zone: z, local: true }\n";
    let endpoints = parse_endpoints(text, "e.yaml").expect("valid");
    let name = Endpoint::host(Host::Name("vllm".to_owned()), 8000);
    let zone = Some("z".to_owned());
    assert_eq!(endpoints[1], Endpoint { weight: 2, zone, local: true, ..name });
    assert_eq!(endpoints.len(), 2);
    assert_eq!(parse_endpoints("[]", "e.yaml"), Ok(vec![]));
    let nowhere = load_endpoints(std::path::Path::new("/nowhere/at/all.yaml")).expect_err("none");
    assert!(nowhere.to_string().contains("cannot be read"), "{nowhere}");
}

#[test]
fn a_bad_file_of_endpoints_says_why() {
    for (text, said) in [
        ("", "e: is empty: write [] for no endpoints"),
        ("# nothing", "e: is empty: write [] for no endpoints"),
        ("a: 1", "e:1:1: expected a list, found a mapping"),
        ("[x", "e:2:1: not valid YAML: while parsing a flow sequence, expected ',' or ']'"),
        (
            "- a:1\n- b\n- {file: x}\n- {srv: _a._b.c}\n- a:1\n- 5\n- {address: 'c:1', wait: 2}",
            "e:2:3: [1]: \"b\" has no port (write \"b:8000\")\n\
             e:3:3: [2]: is no address: nothing else is read here\n\
             e:4:3: [3]: is no address: nothing else is read here\n\
             e:5:3: [4]: a:1 is listed twice (give it a weight instead)\n\
             e:6:3: [5]: expected \"host:port\" or a mapping, found the number 5\n\
             e:7:20: [6].wait: unknown field (known: address, srv, file, weight, zone, local)",
        ),
    ] {
        let report = parse_endpoints(text, "e").expect_err(text);
        assert_eq!(report.to_string(), said, "{text}");
    }
}

#[test]
fn a_backend_is_printed_as_it_is_written() {
    let printed = serde_json::to_value(read(EXAMPLE)).expect("JSON");
    let stable = &printed["backends"][0];
    assert_eq!(
        stable["endpoints"][1],
        json!({ "address": "127.0.0.1:8000", "weight": 4, "local": true })
    );
    assert_eq!(stable["endpoints"][3]["srv"], "_http._tcp.vllm.models.svc.cluster.local");
    assert_eq!(stable["endpoints"][4]["file"], "/etc/outrigger/stable-endpoints.yaml");
    assert_eq!(stable["balance"], json!({ "policy": "least_load", "prefix": "32KiB" }));
    assert_eq!(
        printed["backends"][2]["balance"],
        json!({ "policy": "consistent_hash", "key": { "header": "x-user" }, "table": "maglev",
                "bounded_load": 1.25 })
    );
    assert_eq!(printed["backends"][5]["balance"]["key"], "client");
    assert_eq!(stable["signals"]["scrape"]["interval"], "1s");
    assert_eq!(printed["backends"][1]["signals"]["scrape"], "off");
    assert_eq!(stable["slow_start"]["floor"], "10%");
    assert_eq!(printed["backends"][1]["slow_start"], "off");
    assert_eq!(stable["ejection"]["jitter"], "20%");
    assert_eq!(stable["warm_up"]["requests"][0]["headers"]["content-type"], "application/json");
}
