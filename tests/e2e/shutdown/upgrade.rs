//! SIGQUIT: the listeners go to a second process, and no client notices.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use nix::sys::signal::Signal;
use outrigger_tests::harness::{Call, Launch, Proxy};
use outrigger_tests::sim::{Options, Simulator};

use super::{AT_ONCE, draining, steady, stream};

/// Two ports that were free a moment ago. A successor finds sockets by their address, so it must be told.
fn free_ports() -> [SocketAddr; 2] {
    let hold = || TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("there are free ports");
    let held = [hold(), hold()];
    held.map(|listener| listener.local_addr().expect("a bound socket has an address"))
}

fn fixed(simulator: &Simulator, drain: &str) -> String {
    let [traffic, admin] = free_ports();
    format!(
        "listeners: [{{ address: '{traffic}' }}]\nadmin: {{ address: '{admin}' }}\n{}",
        draining(simulator, drain)
    )
}

/// Starts a successor and lets `old` hand over to it.
async fn succeed(old: &Proxy) -> Proxy {
    let starting = Launch::successor_of(old).start();
    // The old process tries for a while to reach the new one.
    old.signal(Signal::SIGQUIT);
    let new = starting.await;
    assert_eq!((new.address(), new.admin()), (old.address(), old.admin()));
    new
}

#[tokio::test]
async fn sigquit_hands_over_without_a_failed_connection() {
    hand_over_under_load("delay: 200ms, timeout: 20s").await;
}

/// The old process stops accepting at once, so that connections which it has just accepted are the last it hears of.
#[tokio::test]
async fn sigquit_without_a_delay_hands_over_without_a_failed_connection() {
    hand_over_under_load("delay: 0s, timeout: 20s").await;
}

async fn hand_over_under_load(drain: &str) {
    let simulator = Simulator::start(Options::named("only").fast());
    let old = Proxy::start(&fixed(&simulator, drain)).await;
    let over = Arc::new(AtomicBool::new(false));
    let workers: Vec<_> =
        (0..4).map(|_| tokio::spawn(keep_connecting(old.address(), Arc::clone(&over)))).collect();
    simulator.reached(|state| state.requests() > 50).await;
    let new = succeed(&old).await;
    let status = old.wait_exit(AT_ONCE).await;
    assert_eq!(status.code(), Some(0), "{status}");
    let count = simulator.state().requests();
    simulator.reached(|state| state.requests() > count + 50).await;
    over.store(true, Relaxed);
    for worker in workers {
        worker.await.expect("the worker lives").expect("every request succeeds");
    }
    assert!(new.is_running());
    let served = new.metrics().await.get("outrigger_requests_total", &[("outcome", "ok")]);
    assert!(served >= 50.0, "{served}");
}

/// Sends requests, each on a fresh connection, until told to stop; the first failure ends it.
async fn keep_connecting(to: SocketAddr, over: Arc<AtomicBool>) -> Result<(), String> {
    while !over.load(Relaxed) {
        let answer = Call::get("/echo").try_send(to).await?;
        if answer.status != 200 || answer.cut.is_some() {
            return Err(format!("{answer:?}"));
        }
    }
    Ok(())
}

#[tokio::test]
async fn a_stream_of_the_old_process_ends_well() {
    let simulator = steady();
    let old = Proxy::start(&fixed(&simulator, "delay: 50ms, timeout: 20s")).await;
    let open = stream(old.address(), 400).await;
    let new = succeed(&old).await;
    assert_eq!(Call::get("/echo").send(new.address()).await.status, 200);
    assert!(open.events().await.is_complete());
    assert_eq!(old.wait_exit(AT_ONCE).await.code(), Some(0));
    assert!(new.is_running());
}

#[tokio::test]
async fn after_the_handover_the_admin_pages_are_the_successors() {
    let simulator = steady();
    let old = Proxy::start(&fixed(&simulator, "delay: 50ms, timeout: 20s")).await;
    let open = stream(old.address(), 600).await;
    let new = succeed(&old).await;
    for _ in 0..50 {
        let ready = new.admin_get("/ready").await;
        assert_eq!(ready.status, 200, "readiness of the old process: {}", ready.text());
    }
    drop(open);
    old.wait_exit(AT_ONCE).await;
}

#[tokio::test]
async fn a_successor_can_hand_over_again() {
    let simulator = Simulator::start(Options::named("only").fast());
    let first = Proxy::start(&fixed(&simulator, "delay: 0s, timeout: 60s")).await;
    let second = succeed(&first).await;
    first.wait_exit(AT_ONCE).await;
    std::fs::remove_file(second.directory().join("successor-ports.json")).expect("it was written");
    let third = succeed(&second).await;
    second.wait_exit(AT_ONCE).await;
    assert_eq!(Call::get("/echo").send(third.address()).await.status, 200);
    third.signal(Signal::SIGTERM);
    assert_eq!(third.wait_exit(AT_ONCE).await.code(), Some(0));
}

#[tokio::test]
async fn sigquit_without_a_successor_changes_nothing() {
    let simulator = steady();
    let proxy = Proxy::start(&draining(&simulator, "delay: 0s, timeout: 60s")).await;
    proxy.signal(Signal::SIGQUIT);
    proxy.await_log("nobody took the listeners over").await;
    assert_eq!(Call::get("/echo").send(proxy.address()).await.status, 200);
    assert_eq!(proxy.admin_get("/ready").await.status, 200);
    proxy.signal(Signal::SIGTERM);
    assert_eq!(proxy.wait_exit(AT_ONCE).await.code(), Some(0));
}
