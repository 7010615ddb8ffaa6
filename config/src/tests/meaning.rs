//! What a file means: defaults, forms of one thing, what a reload cannot change, what is printed.

mod admission;
mod backends;
mod deadlines;
mod routes;

use std::net::SocketAddr;
use std::time::Duration;

use serde_json::json;

use crate::pattern::{Glob, HostPattern, PathPattern};
use crate::validated::{
    Action, Arm, Balance, Bound, CudaProbe, Endpoint, HeaderEdits, HealthCheck, Host, Locality,
    LogField, LogFormat, LogPath, PathRewrite, Place, Protocol, RetryReason, Signals, StatusRange,
    Sticky,
};
use crate::{Config, EXAMPLE, changed_restart_settings, from_upstreams, parse};

fn read(text: &str) -> Config {
    parse(text, "x.yaml").unwrap_or_else(|report| panic!("{report}"))
}

const SMALL: &str = "
backends: { a: { endpoints: ['127.0.0.1:8000'] }, b: { endpoints: ['vllm:8000'] } }
routes:
  - { match: { path: /a }, backend: a }
  - { split: { b: 1, a: 0 } }
";

#[test]
fn everything_has_a_default() {
    let config = read(SMALL);
    assert_eq!(config.listeners[0].address, "0.0.0.0:8800".parse().expect("an address"));
    assert_eq!(config.admin.address, "127.0.0.1:8801".parse().expect("an address"));
    assert_eq!((config.runtime.threads, config.limits.headers), (1, 128));
    assert_eq!((config.limits.header_bytes, config.limits.body_bytes), (65_536, 536_870_912));
    assert_eq!(config.drain.timeout, Duration::from_secs(25));
    assert_eq!(config.access_log.format, Some(LogFormat::Auto));
    assert_eq!(config.access_log.path, LogPath::Stdout);
    assert_eq!(config.access_log.fields, LogField::ALL);
    let backend = config.backend("a").expect("named so");
    assert_eq!((backend.protocol, &backend.balance), (Protocol::Http1, &Balance::default()));
    assert_eq!((&backend.signals, &backend.locality), (&Signals::default(), &Locality::default()));
    assert_eq!((&backend.warm_up, &backend.slow_start), (&None, &None));
    assert_eq!(config.dns.servers, []);
    assert_eq!(config.tenant.header, ["authorization", "x-api-key", "api-key"]);
    assert_eq!((backend.max_connections, backend.health.as_ref()), (None, None));
    assert_eq!(backend.ejection.as_ref().map(|ejection| ejection.failures), Some(5));
    let route = &config.routes[1];
    assert_eq!(route.name, "route-2");
    assert!(route.matches.is_any() && !config.reads_bodies());
    assert_eq!(route.force_arm.as_deref(), Some("x-outrigger-arm"));
    assert_eq!(route.deadline.first_byte, Bound::Fixed(Duration::from_secs(120)));
    assert_eq!(route.deadline.total, None);
    let retry = route.retry.as_ref().expect("on");
    assert_eq!(retry.attempts, 3);
    let when = |reason: &RetryReason| retry.when.contains(*reason);
    let off: Vec<_> = RetryReason::ALL.into_iter().filter(|reason| !when(reason)).collect();
    assert_eq!(off, [RetryReason::FirstByte, RetryReason::ServerError]);
    assert_eq!((&route.guard, &route.mirror, &route.batch), (&None, &None, &None));
    assert_eq!((&route.compress, &route.decompress), (&None, &None));
    assert_eq!(config.warnings, []);
}

#[test]
fn backends_and_arms_keep_their_order_and_their_index() {
    let config = read(SMALL);
    let names: Vec<_> = config.backends.iter().map(|backend| backend.name.as_str()).collect();
    assert_eq!(names, ["a", "b"]);
    let arm = |name: &str, backend, weight| Arm { name: name.to_owned(), backend, weight };
    assert_eq!(config.routes[0].action, Action::Split(vec![arm("a", 0, 1)]));
    assert_eq!(config.routes[1].action, Action::Split(vec![arm("b", 1, 1), arm("a", 0, 0)]));
}

#[test]
fn the_full_example_means_what_it_says() {
    let config = read(EXAMPLE);
    let stable = &config.backends[0];
    let endpoint = |host, port| Endpoint::host(host, port);
    let ip = |text: &str| Host::Ip(text.parse().expect("an address"));
    let zone = |zone: &str| Some(zone.to_owned());
    let srv = Place::Srv("_http._tcp.vllm.models.svc.cluster.local".to_owned());
    let file = Place::File("/etc/outrigger/stable-endpoints.yaml".into());
    let plain = |place| Endpoint { place, weight: 1, zone: None, local: false };
    assert_eq!(
        stable.endpoints,
        [
            endpoint(Host::Name("vllm.models.svc".to_owned()), 8000),
            Endpoint { weight: 4, local: true, ..endpoint(ip("127.0.0.1"), 8000) },
            Endpoint { zone: zone("eu-1b"), ..endpoint(ip("10.0.3.8"), 8000) },
            Endpoint { zone: zone("eu-1a"), ..plain(srv) },
            plain(file),
        ]
    );
    let health = stable.health.as_ref().expect("given");
    assert_eq!(health.check, HealthCheck::Http("/health".to_owned()));
    assert!(health.accepts(204) && !health.accepts(201));
    assert_eq!(health.status[1], StatusRange { first: 204, last: 204 });
    assert_eq!(config.backends[1].ejection, None);
    let chat = &config.routes[0];
    assert_eq!(chat.matches.hosts[1], HostPattern::Suffix(".models.example.com".into()));
    assert_eq!(chat.matches.paths, [PathPattern::Prefix("/v1/".into())]);
    assert_eq!(chat.matches.headers, [("x-tenant".to_owned(), Glob::new("gold-*"))]);
    assert_eq!(chat.sticky, Some(Sticky::Header("x-user".to_owned())));
    assert_eq!(chat.rewrite.path, Some(PathRewrite::Prefix("/api/".to_owned())));
    assert_eq!(chat.rewritten_path("/v1/chat/x").as_deref(), Some("/api/chat/x"));
    assert!(chat.expose.arm && chat.expose.attempts && chat.expose.timing && chat.reads_body());
    assert!(chat.expose.load && chat.expose.endpoint);
    let remove = vec!["server".to_owned()];
    assert_eq!(chat.rewrite.response_headers, HeaderEdits { set: vec![], remove });
    let action = |name: &str| &config.routes.iter().find(|it| it.name == name).expect(name).action;
    assert!(matches!(action("moved"), Action::Redirect(to) if to.status == 307));
    assert!(matches!(action("ping"), Action::Respond(with) if with.body == "pong"));
}

#[test]
fn a_single_value_is_a_list_of_one_and_off_is_off() {
    let config = read(
        "
backends: { a: { endpoints: [{ address: 'a:1' }], ejection: { failures: 2 }, max_connections: 7,
                 health: { tcp: true } } }
routes:
  - match: { host: A.example, method: get, model: x, path: '*' }
    backend: a
    force_arm: off
    retry: off
    deadline: { gap: off, total: 1h30m }
    rewrite: { path: /only, request_headers: { set: { X-A: '1' } } }
access_log: { format: off, path: /var/log/access.log }
",
    );
    let (backend, route) = (&config.backends[0], &config.routes[0]);
    assert_eq!(backend.max_connections, Some(7));
    assert_eq!(backend.ejection.as_ref().map(|it| (it.failures, it.max.as_secs())), Some((2, 300)));
    assert_eq!(backend.health.as_ref().map(|health| &health.check), Some(&HealthCheck::Tcp));
    assert_eq!(route.matches.hosts, [HostPattern::Exact("a.example".into())]);
    assert_eq!(route.matches.methods, ["GET"]);
    assert_eq!((route.force_arm.as_ref(), route.retry.as_ref()), (None, None));
    assert_eq!(route.deadline.gap, Bound::Off);
    assert_eq!(route.deadline.total, Some(Duration::from_secs(5400)));
    assert_eq!(route.rewritten_path("/x").as_deref(), Some("/only"));
    assert_eq!(route.rewrite.request_headers.set, [("x-a".to_owned(), "1".to_owned())]);
    assert_eq!(config.access_log.format, None);
    assert_eq!(config.access_log.path, LogPath::File("/var/log/access.log".into()));
}

#[test]
fn what_yaml_1_1_makes_of_off_is_off() {
    let config = read(
        "
backends: { a: { endpoints: ['a:1'], ejection: false, max_connections: false } }
routes: [{ backend: a, retry: false, force_arm: false, deadline: { gap: false } }]
access_log: { format: false }
",
    );
    let (backend, route) = (&config.backends[0], &config.routes[0]);
    assert_eq!((backend.ejection.as_ref(), backend.max_connections), (None, None));
    assert_eq!((route.retry.as_ref(), route.force_arm.as_ref()), (None, None));
    assert_eq!((&route.deadline.gap, config.access_log.format), (&Bound::Off, None));
}

#[test]
fn aliases_repeat_a_value() {
    let config = read(
        "
backends:
  a: { endpoints: ['a:1'], health: &check { http: /health, interval: 1s } }
  b: { endpoints: ['b:1'], health: *check }
routes: [{ split: { a: 1, b: 1 } }]
",
    );
    assert_eq!(config.backends[0].health, config.backends[1].health);
    assert!(config.backends[1].health.is_some());
}

#[test]
fn odd_things_are_warnings() {
    let config = read(
        "
backends:
  a: { endpoints: ['a:1'] }
  spare: { endpoints: ['b:1'] }
routes:
  - { match: { path: /v1/* }, backend: a }
  - { name: late, match: { path: /v1/chat, method: POST }, backend: a }
  - match: { path: /ping }
    respond: {}
    retry: off
",
    );
    let warnings: Vec<_> = config.warnings.iter().map(ToString::to_string).collect();
    assert_eq!(
        warnings,
        [
            "x.yaml:4:3: backends.spare: no route uses this backend",
            "x.yaml:7:5: routes[1]: can never match: routes[0] (\"route-1\") takes all of it before; \
             move it up",
            "x.yaml:10:5: routes[2].retry: has no effect: the route does not ask a backend",
        ]
    );
}

#[test]
fn upstreams_need_no_file() {
    let listen: SocketAddr = "127.0.0.1:0".parse().expect("an address");
    let urls = ["http://127.0.0.1:8000", "vllm:8001"];
    let config = from_upstreams(&urls, Some(listen), None).expect("valid");
    assert_eq!(config.listeners[0].address, listen);
    assert_eq!(config.admin.address.port(), 8801);
    assert_eq!(config.backends.len(), 1);
    assert_eq!(
        (config.backends[0].name.as_str(), config.backends[0].endpoints.len()),
        ("upstream", 2)
    );
    assert_eq!(config.routes[0].name, "default");
    assert!(config.routes[0].matches.is_any() && config.warnings.is_empty());
}

#[test]
fn wrong_upstreams_are_all_named() {
    let report = from_upstreams(&["vllm", "https://b:1", "a:1"], None, None).expect_err("wrong");
    assert_eq!(
        report.to_string(),
        "command line: --upstream: \"vllm\" has no port (write \"vllm:8000\")\n\
         command line: --upstream: \"https://b:1\": TLS to endpoints is not supported"
    );
    let none: [&str; 0] = [];
    let report = from_upstreams(&none, None, None).expect_err("none");
    assert_eq!(report.to_string(), "command line: --upstream: at least one is needed");
    let taken = "127.0.0.1:8801".parse().ok();
    let report = from_upstreams(&["a:1"], taken, None).expect_err("the admin port");
    assert!(report.to_string().contains("is taken by 127.0.0.1:8801"), "{report}");
    let report = from_upstreams(&["a:1", "a:1"], None, None).expect_err("twice");
    assert_eq!(report.to_string(), "command line: a:1 is listed twice (give it a weight instead)");
}

#[test]
fn a_file_that_is_not_there_is_a_problem() {
    let report = crate::load(std::path::Path::new("/nowhere/at/all.yaml")).expect_err("not there");
    assert!(report.to_string().starts_with("/nowhere/at/all.yaml: cannot be read: "), "{report}");
}

#[test]
fn what_a_reload_cannot_change_is_named() {
    let old = read(SMALL);
    assert_eq!(changed_restart_settings(&old, &old.clone()), Vec::<&str>::new());
    let new = read(&format!("{SMALL}drain: {{ delay: 9s }}\nlog: {{ level: debug }}"));
    assert_ne!(old, new);
    assert_eq!(changed_restart_settings(&old, &new), Vec::<&str>::new());
    let new = read(&format!(
        "{SMALL}listeners: [{{ address: '[::]:80' }}]\nadmin: {{ address: 127.0.0.1:81 }}\n\
         runtime: {{ threads: 2, upgrade_socket: /x }}\nprobes: {{ requests: true }}"
    ));
    assert_eq!(
        changed_restart_settings(&old, &new),
        ["listeners", "admin.address", "runtime.threads", "probes", "runtime.upgrade_socket"]
    );
}

#[test]
fn the_probe_of_the_gpus_library_is_a_word_or_a_mapping() {
    let cuda = |text: &str| read(&format!("{SMALL}probes: {{ cuda: {text} }}")).probes.cuda;
    let plain = Some(CudaProbe { launches: false, single_step: false });
    assert_eq!(read(SMALL).probes.cuda, None);
    assert_eq!([cuda("true"), cuda("{}"), cuda("{ enabled: true }")], [plain; 3]);
    assert_eq!([cuda("false"), cuda("{ enabled: false, launches: true }")], [None; 2]);
    let launches = CudaProbe { launches: true, single_step: false };
    assert_eq!(cuda("{ launches: true }"), Some(launches));
}

#[test]
fn the_effective_configuration_has_units() {
    let printed = serde_json::to_value(read(EXAMPLE)).expect("JSON");
    assert_eq!(printed["limits"]["header_bytes"], "64KiB");
    assert_eq!(printed["limits"]["idle_timeout"], "1m15s");
    assert_eq!(printed["backends"][0]["max_connections"], 256);
    assert_eq!(printed["backends"][1]["max_connections"], "off");
    assert_eq!(printed["backends"][1]["ejection"], "off");
    assert_eq!(printed["backends"][0]["health"]["status"], json!(["200", "204"]));
    let route = &printed["routes"][0];
    assert_eq!(route["match"]["path"], json!(["/v1/*"]));
    assert_eq!(route["match"]["headers"], json!({ "x-tenant": "gold-*" }));
    assert_eq!(route["action"]["split"][1], json!({ "name": "canary", "weight": 10 }));
    assert_eq!(route["deadline"]["connect"], "2s");
    assert_eq!(route["deadline"]["first_byte"]["quantile"], "99.9%");
    assert_eq!(route["levels"]["table"][0]["first_byte"], "500ms");
    let when = json!(["connect", "refused", "reset", "overloaded", "stalled"]);
    assert_eq!(route["retry"]["when"], when);
    assert_eq!(route["rewrite"]["path"], "/api/*");
    assert_eq!(printed["routes"][1]["retry"], "off");
    assert_eq!(printed["access_log"]["path"], "stdout");
    assert_eq!(printed["access_log"]["fields"][0], "time");
}

#[test]
fn the_probe_of_fences_is_off_unless_it_is_asked_for() {
    assert!(!read(SMALL).probes.fences);
    assert!(read(&format!("{SMALL}probes: {{ fences: true }}")).probes.fences);
}

#[test]
fn the_drivers_probe_is_on_with_a_word_or_a_mapping() {
    let driver = |text: &str| read(&format!("{SMALL}probes: {{ driver: {text} }}")).probes.driver;
    let plain = driver("true").expect("on");
    assert_eq!((plain.devices.len(), plain.stuck_after.as_secs()), (0, 10));
    assert_eq!(driver("{}"), Some(plain));
    assert_eq!((driver("false"), driver("off")), (None, None));
    let named = driver("{ devices: [/dev/a, /dev/b], stuck_after: 1m }").expect("on");
    assert_eq!(named.devices, ["/dev/a", "/dev/b"].map(std::path::PathBuf::from));
    assert_eq!(named.stuck_after.as_secs(), 60);
}
