//! Many requests at full load: each must be seen in all its steps.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Instant;

use outrigger_tests::harness::Proxy;
use outrigger_tests::sim::{Options, Simulator, pattern};

use super::run::{self, END};
use super::say;
use crate::{assert_nothing_lost, following, is_impossible, timelines};

/// Connections of clients, with a thread each.
const CLIENTS: usize = 8;

/// Requests of each.
const EACH: usize = 12_500;

/// Without lines of the access log, which would be a load of their own.
fn config(server: SocketAddr) -> String {
    following(server).replace("format: json", "format: 'off'")
}

/// Sends `count` requests, one after the other, whose answers end with `end`.
fn client(to: SocketAddr, target: &str, count: usize, end: &[u8]) {
    let mut stream = TcpStream::connect(to).expect("the proxy listens");
    stream.set_nodelay(true).expect("a fresh socket takes options");
    let request = format!("GET {target} HTTP/1.1\r\nhost: test\r\n\r\n");
    let mut answer = vec![0; 16 * 1024];
    for _ in 0..count {
        stream.write_all(request.as_bytes()).expect("the proxy reads");
        let mut filled = 0;
        while filled == 0 || !answer[..filled].ends_with(end) {
            let count = stream.read(&mut answer[filled..]).expect("an answer");
            assert!(count > 0, "the answer broke off: {:?}", String::from_utf8_lossy(&answer));
            filled += count;
        }
        assert!(answer.starts_with(b"HTTP/1.1 200"), "{:?}", String::from_utf8_lossy(&answer));
    }
}

#[tokio::test]
async fn of_100_000_requests_at_full_load_999_in_1000_are_seen_in_all_steps() {
    if is_impossible("requests") {
        return;
    }
    let simulator = Simulator::start(Options::named("app").fast());
    let nginx = run::nginx().await;
    let (name, server, target, end) = match &nginx {
        Some(nginx) => ("nginx", nginx.address, "/small", END.to_vec()),
        None => ("simulator", simulator.addr, "/bytes/1000", pattern(1000)),
    };
    let proxy = Proxy::start(&config(server)).await;
    let (to, started) = (proxy.address(), Instant::now());
    let mut clients = tokio::task::JoinSet::new();
    for _ in 0..CLIENTS {
        let end = end.clone();
        clients.spawn_blocking(move || client(to, target, EACH, &end));
    }
    clients.join_all().await;
    let took = started.elapsed().as_secs_f64();
    let all = (CLIENTS * EACH) as f64;
    let metrics = proxy.await_metrics(|metrics| timelines(metrics, "") >= all).await;
    let complete = timelines(&metrics, "complete");
    say(&format!(
        "{name}: {complete} of {all} complete ({:.3} %), {:.0} requests per second",
        100.0 * complete / all,
        all / took
    ));
    assert_eq!(timelines(&metrics, ""), all, "{}", metrics.text);
    assert!(complete >= 0.999 * all, "{}", metrics.text);
    assert_nothing_lost(&metrics);
}
