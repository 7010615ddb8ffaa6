//! `signals.gateway`: a scheduler in front names endpoints; it names them among those that are configured.

use outrigger_tests::harness::{Call, Load, Proxy};
use outrigger_tests::sim::{Fault, Simulator};
use tokio::net::TcpListener;

use crate::fleet::{attempts, await_endpoints, chat, one_backend, sim, stick};

const GATEWAY: &str = "balance: round_robin, signals: { gateway: true }";
const DESTINATION: &str = "x-gateway-destination-endpoint";

fn named(endpoints: &str) -> Call {
    chat().header(DESTINATION, endpoints)
}

async fn three(backend: &str, route: &str) -> ([Simulator; 3], Proxy) {
    let sims = [sim("a"), sim("b"), sim("c")];
    let proxy = Proxy::start(&one_backend(&[&sims[0], &sims[1], &sims[2]], backend, route)).await;
    (sims, proxy)
}

/// Who answers a number of requests like this one.
async fn by(proxy: &Proxy, call: impl Fn() -> Call + Send + Sync + 'static) -> Vec<String> {
    let report = Load::of(12).run(proxy.address(), move |_| call()).await;
    assert_eq!(report.ok(), 12, "{:?}", report.outcomes());
    report.by_name().into_keys().collect()
}

#[tokio::test]
async fn the_named_endpoint_serves() {
    let ([_a, b, _c], proxy) = three(GATEWAY, "").await;
    let list = b.endpoint();
    assert_eq!(by(&proxy, move || named(&list)).await, ["b"]);
    assert_eq!(by(&proxy, chat).await, ["a", "b", "c"], "without a name it is the policy's choice");
}

#[tokio::test]
async fn of_a_list_the_first_that_can_be_used_serves() {
    let ([a, b, c], proxy) = three(GATEWAY, "").await;
    let list = format!("10.9.8.7:1, {},{}", c.addr, b.addr);
    assert_eq!(by(&proxy, move || named(&list)).await, ["c"]);
    let (first, then) = (b.endpoint(), a.endpoint());
    let two_fields = move || named(&first).header(DESTINATION, &then);
    assert_eq!(by(&proxy, two_fields).await, ["b"]);
}

#[tokio::test]
async fn one_that_is_not_ready_is_passed_over() {
    let backend = format!("{GATEWAY}, health: {{ http: /health, interval: 30ms }}");
    let ([a, b, _c], proxy) = three(&backend, "").await;
    await_endpoints(&proxy, "all to be ready", |all| all.iter().all(|e| e.ready)).await;
    a.fault(Fault::NoHealth);
    await_endpoints(&proxy, "one to be unready", |all| !all[0].ready).await;
    let list = format!("{}, {}", a.addr, b.addr);
    assert_eq!(by(&proxy, move || named(&list)).await, ["b"]);
    let alone = a.endpoint();
    assert_eq!(by(&proxy, move || named(&alone)).await, ["b", "c"]);
}

#[tokio::test]
async fn one_that_is_full_is_passed_over() {
    let ([a, b, c], proxy) = three(&format!("{GATEWAY}, max_connections: 1"), "").await;
    let _stuck = stick(&proxy, &[&a, &b, &c], [named(&a.endpoint())]).await;
    assert_eq!(a.state().in_flight, 1);
    let list = format!("{}, {}", a.addr, c.addr);
    assert_eq!(by(&proxy, move || named(&list)).await, ["c"]);
}

#[tokio::test]
async fn another_attempt_goes_to_the_next_of_the_list() {
    let ([a, b, c], proxy) = three(GATEWAY, "").await;
    let list = format!("{}, {}, {}", c.addr, a.addr, b.addr);
    let answer = named(&list).fault("reset;at=c").send(proxy.address()).await;
    assert_eq!((answer.status, answer.by(), attempts(&answer)), (200, "a", 2));
    let list = c.endpoint();
    let answer = named(&list).fault("reset;at=c").send(proxy.address()).await;
    assert_eq!((answer.status, attempts(&answer)), (200, 2), "the policy's choice");
}

#[tokio::test]
async fn what_is_no_endpoint_is_never_dialled() {
    let trap = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = trap.local_addr().expect("an address");
    let ([a, _b, _c], proxy) = three(GATEWAY, "").await;
    let port = a.addr.port();
    let lists = [
        address.to_string(),
        format!("[::ffff:127.0.0.1]:{}", address.port()),
        format!("localhost:{}", address.port()),
        format!("http://{address}"),
        address.port().to_string(),
        "127.0.0.1".to_owned(),
        "127.0.0.1:0".to_owned(),
        "127.0.0.1:99999".to_owned(),
        format!("127.0.0.1:{port}:{port}"),
        ",,, ,".to_owned(),
        String::new(),
        "\u{fc}".to_owned(),
        "x".repeat(4_000),
        format!("{address},").repeat(200),
    ];
    for list in lists {
        let told = list.clone();
        assert_eq!(by(&proxy, move || named(&list)).await, ["a", "b", "c"], "{told}");
    }
    let dialled = tokio::time::timeout(std::time::Duration::ZERO, trap.accept()).await;
    assert!(dialled.is_err(), "somebody connected to what is no endpoint");
}

#[tokio::test]
async fn where_it_is_off_the_field_means_nothing() {
    let ([_a, b, _c], proxy) = three("balance: round_robin", "").await;
    let list = b.endpoint();
    assert_eq!(by(&proxy, move || named(&list)).await, ["a", "b", "c"]);
}
