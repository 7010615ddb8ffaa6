//! Changing the configuration of a running proxy: what starts a reload, what a bad file does, and that no request
//! notices.
//!
//! What state lives through a reload is in `survival`.

mod survival;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use nix::sys::signal::Signal;
use outrigger_tests::harness::{Answer, Call, Client, Launch, Protocol, Proxy};
use outrigger_tests::sim::{Options, Simulator};
use serde_json::Value;

/// Answers everything with this text.
fn says(text: &str) -> String {
    format!("routes: [{{ name: only, respond: {{ status: 200, body: {text} }} }}]\n")
}

/// Sends everything to one backend, by a route of the same name.
fn to(name: &str, simulator: &Simulator) -> String {
    format!(
        "backends: {{ {name}: {{ endpoints: ['{}'] }} }}\nroutes: [{{ name: {name}, backend: {name} }}]\n",
        simulator.addr
    )
}

/// What the proxy answers now.
async fn said(proxy: &Proxy) -> String {
    Call::get("/").send(proxy.address()).await.text()
}

/// Waits until so many reloads have been accepted.
async fn accepted(proxy: &Proxy, count: f64) {
    let name = "outrigger_config_reloads_total";
    proxy.await_metrics(|m| m.get(name, &[("result", "success")]) >= count).await;
}

async fn post_reload(proxy: &Proxy) -> Answer {
    Call::post("/reload").send(proxy.admin()).await
}

/// Replaces the configuration and has it read at once.
async fn replace(proxy: &Proxy, yaml: &str) {
    proxy.rewrite_config(yaml);
    let answer = post_reload(proxy).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
}

async fn last_reload(proxy: &Proxy) -> Value {
    proxy.admin_get("/config").await.json()["reload"].clone()
}

/// Writes into the configuration file itself, as `echo > file` does.
fn overwrite(proxy: &Proxy, from: &str, to: &str) {
    let file = proxy.config_file();
    let text = std::fs::read_to_string(&file).expect("the proxy was started with a file");
    assert!(text.contains(from), "{text}");
    std::fs::write(&file, text.replace(from, to)).expect("the file is writable");
}

#[tokio::test]
async fn a_file_that_is_written_over_takes_effect() {
    let proxy = Proxy::start(&says("one")).await;
    assert_eq!(said(&proxy).await, "one");
    overwrite(&proxy, "one", "two");
    accepted(&proxy, 1.0).await;
    assert_eq!(said(&proxy).await, "two");
}

#[tokio::test]
async fn a_change_as_soon_as_the_ports_are_known_takes_effect() {
    for _ in 0..10 {
        let proxy = Proxy::start(&says("one")).await;
        proxy.rewrite_config(&says("two"));
        accepted(&proxy, 1.0).await;
        assert_eq!(said(&proxy).await, "two");
    }
}

#[tokio::test]
async fn a_file_renamed_over_the_old_one_takes_effect_each_time() {
    let proxy = Proxy::start(&says("start")).await;
    for (count, text) in [(1.0, "one"), (2.0, "two"), (3.0, "three")] {
        proxy.rewrite_config(&says(text));
        accepted(&proxy, count).await;
        assert_eq!(said(&proxy).await, text);
    }
}

#[tokio::test]
async fn a_configmap_that_is_swapped_takes_effect_each_time() {
    let proxy = Launch::new(&says("start")).as_configmap().start().await;
    for (count, text) in [(1.0, "one"), (2.0, "two"), (3.0, "three")] {
        proxy.rewrite_config_as_configmap(&says(text));
        accepted(&proxy, count).await;
        assert_eq!(said(&proxy).await, text);
    }
}

#[tokio::test]
async fn a_file_that_vanishes_and_comes_back_takes_effect() {
    let proxy = Proxy::start(&says("one")).await;
    std::fs::remove_file(proxy.config_file()).expect("the file is there");
    let name = "outrigger_config_reloads_total";
    proxy.await_metrics(|m| m.get(name, &[("result", "failure")]) == 1.0).await;
    assert_eq!(said(&proxy).await, "one");
    proxy.rewrite_config(&says("two"));
    accepted(&proxy, 1.0).await;
    assert_eq!(said(&proxy).await, "two");
}

#[tokio::test]
async fn files_beside_the_configuration_cause_no_reload() {
    let proxy = Proxy::start(&says("one")).await;
    let other = proxy.directory().join("notes.txt");
    (0..50).for_each(|n| std::fs::write(&other, n.to_string()).expect("the directory is writable"));
    // The next real change is reload number one.
    proxy.rewrite_config(&says("two"));
    accepted(&proxy, 1.0).await;
    assert_eq!(said(&proxy).await, "two");
    assert_eq!(last_reload(&proxy).await["attempts"], 1);
}

#[tokio::test]
async fn a_hangup_signal_reads_the_file_again() {
    let proxy = Proxy::start(&says("one")).await;
    // The file has not changed, so that nothing but the signal can be the cause.
    proxy.signal(Signal::SIGHUP);
    accepted(&proxy, 1.0).await;
    proxy.signal(Signal::SIGHUP);
    accepted(&proxy, 2.0).await;
    assert_eq!(said(&proxy).await, "one");
}

#[tokio::test]
async fn a_hangup_signal_as_soon_as_the_ports_are_known_does_not_end_the_proxy() {
    for round in 0..10 {
        let proxy = Proxy::start(&says("one")).await;
        proxy.signal(Signal::SIGHUP);
        accepted(&proxy, 1.0).await;
        assert!(proxy.is_running(), "round {round}");
    }
}

#[tokio::test]
async fn a_hangup_signal_without_a_file_does_not_end_the_proxy() {
    let simulator = Simulator::start(Options::named("only").fast());
    let proxy = Launch::upstream(&format!("http://{}", simulator.addr)).start().await;
    proxy.signal(Signal::SIGHUP);
    // A second process start is enough time for a signal to be delivered, and an event to wait for.
    drop(Proxy::start(&says("other")).await);
    assert!(proxy.is_running(), "SIGHUP ended it");
    assert_eq!(Call::get("/echo").send(proxy.address()).await.status, 200);
}

#[tokio::test]
async fn a_post_to_the_admin_interface_reads_the_file_at_once() {
    let proxy = Proxy::start(&says("one")).await;
    let before = proxy.admin_get("/config").await.json()["generation"].as_u64();
    proxy.rewrite_config(&says("two"));
    let answer = post_reload(&proxy).await;
    assert_eq!((answer.status, &answer.json()["accepted"]), (200, &Value::Bool(true)));
    assert_eq!(said(&proxy).await, "two");
    let config = proxy.admin_get("/config").await.json();
    assert!(config["generation"].as_u64() > before, "{before:?} {config}");
    assert_eq!(config["config"]["routes"][0]["name"], "only", "{config:#}");
}

#[tokio::test]
async fn without_a_file_a_post_to_reload_is_a_conflict() {
    let simulator = Simulator::start(Options::named("only").fast());
    let proxy = Launch::upstream(&format!("http://{}", simulator.addr)).start().await;
    assert_eq!(post_reload(&proxy).await.status, 409);
}

const MISTAKE: &str = "routes: [{ name: only, backnd: stable }]\n";

#[tokio::test]
async fn a_bad_file_keeps_the_old_configuration_and_says_why_everywhere() {
    let proxy = Proxy::start(&says("one")).await;
    proxy.rewrite_config(MISTAKE);
    let reloads = "outrigger_config_reloads_total";
    let metrics = proxy.await_metrics(|m| m.get(reloads, &[("result", "failure")]) > 0.0).await;
    assert_eq!(metrics.get("outrigger_config_last_reload_success", &[]), 0.0);
    assert_eq!(metrics.get(reloads, &[("result", "success")]), 0.0);
    let line = proxy.await_log("did you mean").await;
    assert!(line.contains("outrigger.yaml:4:") && line.contains("backnd"), "{line}");
    let reload = last_reload(&proxy).await;
    assert_eq!(reload["accepted"], false, "{reload}");
    assert!(reload["problems"].to_string().contains("backnd"), "{reload}");
    assert!(reload["at"].as_u64().is_some_and(|at| at > 0), "{reload}");
    assert_eq!(said(&proxy).await, "one");
    assert_eq!(proxy.admin_get("/ready").await.status, 200);
}

#[tokio::test]
async fn a_bad_file_is_refused_to_whoever_posts_with_every_problem() {
    let proxy = Proxy::start(&says("one")).await;
    proxy.rewrite_config("routes: [{ name: only, backnd: stable }, { backend: nowhere }]\n");
    let answer = post_reload(&proxy).await;
    assert_eq!(answer.status, 422);
    let body = answer.json();
    assert_eq!(body["accepted"], false);
    let problems = body["problems"].to_string();
    assert!(problems.contains("backnd") && problems.contains("nowhere"), "{problems}");
    assert_eq!(said(&proxy).await, "one");
}

#[tokio::test]
async fn a_good_file_after_a_bad_one_clears_the_failure() {
    let proxy = Proxy::start(&says("one")).await;
    proxy.rewrite_config(MISTAKE);
    assert_eq!(post_reload(&proxy).await.status, 422);
    replace(&proxy, &says("two")).await;
    assert_eq!(said(&proxy).await, "two");
    let metrics = proxy.metrics().await;
    assert_eq!(metrics.get("outrigger_config_last_reload_success", &[]), 1.0);
    let reload = last_reload(&proxy).await;
    assert_eq!((&reload["accepted"], &reload["problems"]), (&true.into(), &Value::Array(vec![])));
}

#[tokio::test]
async fn a_change_of_what_needs_a_restart_warns_and_the_rest_takes_effect() {
    let proxy = Proxy::start(&says("one")).await;
    let changed = "listeners: [{ address: 127.0.0.2:0 }]\nadmin: { address: 127.0.0.2:0 }\n\
                   runtime: { threads: 2 }\n";
    replace(&proxy, &format!("{changed}{}", says("two"))).await;
    let reload = last_reload(&proxy).await;
    assert_eq!(reload["accepted"], true, "{reload}");
    for setting in ["listeners", "admin", "runtime"] {
        assert!(reload["restart_needed"].to_string().contains(setting), "{setting}: {reload}");
    }
    for setting in ["listeners", "admin.address", "runtime.threads"] {
        let line = proxy.await_log(&format!("{setting} changed")).await;
        assert!(line.contains("WARN") && line.contains("restart"), "{line}");
    }
    assert_eq!(said(&proxy).await, "two");
    let config = proxy.admin_get("/config").await.json();
    assert!(!config["config"].to_string().contains("127.0.0.2"), "what is in force: {config:#}");
}

#[tokio::test]
async fn a_thousand_reloads_under_load_fail_no_request() {
    let stable = Simulator::start(Options::named("stable").fast());
    let canary = Simulator::start(Options::named("canary").fast());
    let (first, second) = (to("stable", &stable), to("canary", &canary));
    let proxy = Arc::new(Proxy::start(&first).await);
    let over = Arc::new(AtomicBool::new(false));
    let workers: Vec<_> = [Protocol::Http1, Protocol::Http1, Protocol::H2]
        .map(|protocol| tokio::spawn(keep_asking(Arc::clone(&proxy), protocol, Arc::clone(&over))))
        .into();
    for round in 0..500 {
        replace(&proxy, &second).await;
        replace(&proxy, &first).await;
        assert!(proxy.is_running(), "round {round}");
    }
    over.store(true, Relaxed);
    let mut asked = 0;
    for worker in workers {
        asked += worker.await.expect("a worker that failed has said why");
    }
    // Not a measure: there was load at all, and it met both configurations.
    assert!(asked > 500, "{asked} requests");
    assert!(stable.state().requests() > 100 && canary.state().requests() > 100);
    let metrics = proxy.metrics().await;
    assert!(metrics.get("outrigger_config_reloads_total", &[("result", "success")]) >= 1000.0);
    assert_eq!(metrics.get("outrigger_config_reloads_total", &[("result", "failure")]), 0.0);
    proxy.await_metrics(|m| m.get("outrigger_requests_in_flight", &[]) == 0.0).await;
}

/// Asks for short streams, one after the other, until told to stop; gives how many. Fails at the first that is not
/// whole.
async fn keep_asking(proxy: Arc<Proxy>, protocol: Protocol, over: Arc<AtomicBool>) -> usize {
    let mut client = Client::connect(proxy.address(), protocol).await;
    let mut asked = 0;
    while !over.load(Relaxed) {
        let call = Call::chat("how many canoes?").max_tokens(4).streaming();
        let answer = client.open(call).await;
        let answer = answer.unwrap_or_else(|why| proxy.process().fail(&why));
        let status = answer.status;
        let transcript = answer.events().await;
        assert!(status == 200 && transcript.is_complete(), "{status}: {transcript:?}");
        asked += 1;
    }
    asked
}
