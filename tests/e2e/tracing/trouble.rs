//! Collectors that are gone, slow or wrong: no request notices, what is lost is counted, and the end is not held up.

use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use outrigger_tests::harness::{Collector, Load, Mood, Proxy};

use super::{counted, named, traced};
use crate::fleet::{chat, one_backend, sim};

#[tokio::test]
async fn the_last_spans_are_sent_at_the_end() {
    let (engine, collector) = (sim("a"), Collector::start().await);
    let proxy = Proxy::start(&traced(&one_backend(&[&engine], "", ""), &collector, "")).await;
    let report = Load::of(50).at_once(5).run(proxy.address(), |_| chat()).await;
    assert_eq!(report.ok(), 50);
    proxy.signal(Signal::SIGTERM);
    proxy.wait_exit(Duration::from_secs(10)).await;
    let spans = collector.spans();
    assert_eq!((named(&spans, "SERVER").len(), named(&spans, "CLIENT").len()), (50, 50));
}

#[tokio::test]
async fn a_collector_that_is_gone_costs_spans_and_no_request() {
    let (engine, collector) = (sim("a"), Collector::start().await);
    let config = traced(&one_backend(&[&engine], "", ""), &collector, "");
    // Nobody listens at a port that was bound and let go of.
    let free = std::net::TcpListener::bind("127.0.0.1:0").and_then(|it| it.local_addr());
    let nobody = format!("http://{}", free.expect("a free port"));
    let proxy = Proxy::start(&config.replace(&collector.endpoint(), &nobody)).await;
    let report = Load::of(20).run(proxy.address(), |_| chat()).await;
    assert_eq!(report.ok(), 20);
    let metrics = proxy.await_metrics(|metrics| counted(metrics, "failed") >= 40.0).await;
    assert_eq!(counted(&metrics, "exported"), 0.0, "{}", metrics.text);
    let line = proxy.await_log("the collector does not get them").await;
    assert!(line.contains("WARN") && line.contains("can not connect"), "{line}");
}

#[tokio::test]
async fn a_collector_that_fails_is_asked_again_and_not_for_ever() {
    for (status, tries) in [(503, 4), (500, 1), (400, 1)] {
        let (engine, collector) = (sim("a"), Collector::start().await);
        collector.is(Mood::Answers(status));
        let proxy = Proxy::start(&traced(&one_backend(&[&engine], "", ""), &collector, "")).await;
        assert_eq!(chat().send(proxy.address()).await.status, 200);
        proxy.await_metrics(|metrics| counted(metrics, "failed") >= 2.0).await;
        assert_eq!(collector.messages(), tries, "{status}");
        let line = proxy.await_log("the collector does not get them").await;
        assert!(line.contains(&status.to_string()), "{line}");
        collector.is(Mood::Willing);
        assert_eq!(chat().send(proxy.address()).await.status, 200);
        proxy.await_log("the collector gets them again").await;
    }
}

#[tokio::test]
async fn a_collector_that_is_silent_is_given_up_and_holds_up_nothing() {
    let (engine, collector) = (sim("a"), Collector::start().await);
    collector.is(Mood::Silent);
    let config = traced(&one_backend(&[&engine], "", ""), &collector, "queue: 16, timeout: 20s");
    let proxy = Proxy::start(&config).await;
    assert_eq!(chat().send(proxy.address()).await.status, 200);
    collector.await_messages(1).await;
    // While that one is under way, others have the room that there is.
    let report = Load::of(100).at_once(10).run(proxy.address(), |_| chat()).await;
    assert_eq!(report.ok(), 100);
    proxy.await_metrics(|metrics| counted(metrics, "dropped") >= 84.0 * 2.0).await;
    let before = Instant::now();
    proxy.signal(Signal::SIGTERM);
    proxy.wait_exit(Duration::from_secs(10)).await;
    assert!(before.elapsed() < Duration::from_secs(6), "{:?}", before.elapsed());
    assert!(proxy.log().iter().any(|line| line.contains("last spans were not sent in time")));
}

#[tokio::test]
async fn a_batch_has_its_time_and_no_more() {
    let (engine, collector) = (sim("a"), Collector::start().await);
    collector.is(Mood::Silent);
    let config = traced(&one_backend(&[&engine], "", ""), &collector, "timeout: 100ms");
    let proxy = Proxy::start(&config).await;
    assert_eq!(chat().send(proxy.address()).await.status, 200);
    proxy.await_metrics(|metrics| counted(metrics, "failed") >= 2.0).await;
    let line = proxy.await_log("the collector does not get them").await;
    assert!(line.contains("no answer within 100ms"), "{line}");
    collector.is(Mood::Willing);
    assert_eq!(chat().send(proxy.address()).await.status, 200);
    collector.await_spans(2).await;
}

#[tokio::test]
async fn what_a_collector_rejects_is_counted_and_nonsense_is_no_harm() {
    let (engine, collector) = (sim("a"), Collector::start().await);
    let proxy = Proxy::start(&traced(&one_backend(&[&engine], "", ""), &collector, "")).await;
    collector.is(Mood::Garbled);
    assert_eq!(chat().send(proxy.address()).await.status, 200);
    proxy.await_metrics(|metrics| counted(metrics, "exported") >= 2.0).await;
    collector.is(Mood::Rejects(1));
    assert_eq!(chat().send(proxy.address()).await.status, 200);
    let metrics = proxy.await_metrics(|metrics| counted(metrics, "rejected") >= 1.0).await;
    assert_eq!((counted(&metrics, "rejected"), counted(&metrics, "failed")), (1.0, 0.0));
    let line = proxy.await_log("the collector says").await;
    assert!(line.contains("too old"), "{line}");
}

#[tokio::test]
async fn without_the_setting_there_is_nothing_of_it() {
    let engine = sim("a");
    let proxy = Proxy::start(&one_backend(&[&engine], "", "")).await;
    assert_eq!(chat().send(proxy.address()).await.status, 200);
    let metrics = proxy.metrics().await;
    assert!(!metrics.has("outrigger_trace_spans_total", &[]), "{}", metrics.text);
    let threads = std::fs::read_dir(format!("/proc/{}/task", proxy.pid())).expect("it runs");
    let names =
        threads.flatten().filter_map(|task| std::fs::read_to_string(task.path().join("comm")).ok());
    assert!(!names.into_iter().any(|name| name.trim() == "traces"));
}
