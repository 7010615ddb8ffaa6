use std::collections::HashSet;

use outrigger_probes::{Api, Calls, function};

use super::*;
use crate::probes::{GpuWait, Method};

/// The samples of one metric as `(labels joined by a slash, value)`.
fn samples(metrics: &Metrics, name: &str) -> Vec<(String, f64)> {
    let families = metrics.gather();
    let Some(family) = families.iter().find(|family| family.name() == name) else {
        return Vec::new();
    };
    let value = |metric: &Metric| match family.get_field_type() {
        MetricType::COUNTER => metric.get_counter().get_value(),
        MetricType::GAUGE => metric.get_gauge().get_value(),
        _ => metric.get_histogram().get_sample_sum(),
    };
    let labels = |metric: &Metric| {
        metric.get_label().iter().map(LabelPair::value).collect::<Vec<_>>().join("/")
    };
    family.get_metric().iter().map(|metric| (labels(metric), value(metric))).collect()
}

fn sample(metrics: &Metrics, name: &str, labels: &str) -> Option<f64> {
    let all = samples(metrics, name);
    all.into_iter().find(|(found, _)| found == labels).map(|(_, value)| value)
}

/// One handle of every sort, each used.
fn busy() -> Metrics {
    let metrics = Metrics::new("1.2.3");
    let arm = metrics.arm("chat", "stable");
    arm.ended(Outcome::Ok, 200);
    arm.duration.observe(Duration::from_millis(1500));
    arm.route.retried(RetryReason::Connect);
    metrics.endpoint("stable", "127.0.0.1:1").ended(Outcome::ConnectFailed);
    metrics.backend("stable").connection(UpstreamConnection::Reused);
    metrics.backend("stable").circuit_open.set(0.0);
    metrics.listener("0.0.0.0:8800").accepted.inc();
    // What is not configured has no series.
    arm.route.compressed_in.add(3);
    arm.route.hedged(HedgeResult::Won);
    let endpoint = metrics.endpoint("stable", "127.0.0.1:1");
    endpoint.races_lost.inc();
    endpoint.warmed_up(Verdict::Success);
    endpoint.scraped(Verdict::Success);
    endpoint.agent_asked(Verdict::Success);
    endpoint.reported.iter().for_each(|level| level.set(0.5));
    metrics.mirror("chat", "shadow").ended(MirrorResult::Same);
    metrics.canary("chat", "canary").decided(CanaryVerdict::Stepped);
    metrics.batches("chat").batches.inc();
    let deadlines = metrics.deadlines("chat", "stable");
    deadlines.set(DeadlineKind::Gap, DeadlineBasis::Learned, Duration::from_secs(2));
    metrics.levels("chat").level.set(1);
    arm.route.budget(ClientBudget::Obeyed);
    metrics.redis().looked_up(RedisLookup::Hit);
    let age = Duration::from_secs(60);
    metrics.answers("chat").served(Served::Fallback, ServedFor::Deadline, age);
    metrics.store().warmed_up(WarmedUp::Answered);
    metrics.gate(Scope::Route, "chat").rejected(Rejection::Shed);
    metrics.probe(ProbeName::Requests).set(1);
    let app = metrics.app("stable", "127.0.0.1:1");
    app.timeline(TimelineResult::Complete);
    let took = Duration::from_millis(3);
    app.gpu_wait(&GpuWait { took, method: Method::Driver, among: 2 });
    metrics.probe(ProbeName::Sockets).set(1);
    let sockets = metrics.sockets("stable", "127.0.0.1:1");
    let [rtt, min_rtt] = [&sockets.rtt, &sockets.min_rtt];
    let unread = [&sockets.unread_bytes, &sockets.unread_connections, &sockets.unread_for];
    let queues = [&sockets.unacked, &sockets.accept_queue, &sockets.accept_limit];
    [rtt, min_rtt].into_iter().chain(unread).chain(queues).for_each(|level| level.set(2.0));
    sockets.processes_ran(1_500_000_000, 250_000_000);
    metrics.probe(ProbeName::Driver).set(1);
    let call = outrigger_probes::Histogram { count: 1, ..Default::default() };
    let labels = ["nvidia0", "NV_ESC_RM_ALLOC"].map(str::to_owned);
    metrics.driver().calls(BTreeMap::from([(labels, call)]));
    metrics.driver().xid(79);
    fenced(&metrics, call);
    metrics.rates("chat", RateKey::Tenant).decided(RateDecision::Tokens);
    metrics.traces().spans(SpanResult::Dropped, 3);
    let number = |name| function(Api::Cuda, name).expect("of the table");
    let (copy, launch) = (number("cuMemcpyDtoH_v2"), number("cuLaunchKernel"));
    metrics.gpu().attached([copy, launch].into_iter());
    metrics.gpu().refused([number("cuMemFree")].into_iter());
    metrics.gpu().update(|function| {
        let mut calls = Calls::default();
        calls.observe(1_500_000_000, 4096, 0);
        calls.observe(500_000_000, 1, 2);
        (function == copy).then_some(calls)
    });
    metrics
}

fn fenced(metrics: &Metrics, call: outrigger_probes::Histogram) {
    metrics.probe(ProbeName::Fences).set(1);
    metrics.fences().waits(call, [0; 2]);
    metrics.fences().jobs(BTreeMap::from([("gfx_0.0.0".to_owned(), [call; 2])]), 0);
}

#[test]
fn the_table_is_well_formed() {
    let names: HashSet<_> = TABLE.iter().map(|declaration| declaration.name).collect();
    assert_eq!(names.len(), TABLE.len(), "no name twice");
    for Declaration { name, help, kind, .. } in TABLE {
        assert_eq!(name.ends_with("_total"), *kind == MetricType::COUNTER, "{name}");
        assert!(help.ends_with('.'), "{name}");
    }
}

#[test]
fn every_declared_metric_is_written_with_its_labels() {
    let families = busy().gather();
    for declaration in TABLE {
        let family = families.iter().find(|family| family.name() == declaration.name);
        let family = family.expect(declaration.name);
        assert_eq!(family.get_field_type(), declaration.kind, "{}", declaration.name);
        for metric in family.get_metric() {
            let labels: Vec<_> = metric.get_label().iter().map(LabelPair::name).collect();
            assert_eq!(labels, declaration.labels, "{}", declaration.name);
        }
    }
    assert_eq!(families.len(), TABLE.len(), "and no other");
}

#[test]
fn what_is_counted_is_shown() {
    let metrics = busy();
    for (name, labels, value) in [
        ("outrigger_build_info", "1.2.3", 1.0),
        ("outrigger_requests_total", "chat/stable/ok/200", 1.0),
        ("outrigger_request_duration_seconds", "chat/stable", 1.5),
        ("outrigger_retries_total", "chat/connect", 1.0),
        ("outrigger_retries_total", "chat/server_error", 0.0),
        ("outrigger_endpoint_requests_total", "stable/127.0.0.1:1/connect_failed", 1.0),
        ("outrigger_upstream_connections_total", "stable/reused", 1.0),
        ("outrigger_connections_total", "0.0.0.0:8800", 1.0),
        ("outrigger_app_cpu_seconds_total", "stable/127.0.0.1:1", 1.5),
        ("outrigger_app_runnable_seconds_total", "stable/127.0.0.1:1", 0.25),
        ("outrigger_gpu_api_call_seconds", "cuda/cuMemcpyDtoH", 2.0),
        ("outrigger_gpu_api_bytes_total", "cuMemcpyDtoH", 4096.0),
        ("outrigger_gpu_api_failed_total", "cuMemcpyDtoH", 1.0),
        ("outrigger_gpu_api_launches_total", "cuLaunchKernel", 0.0),
        ("outrigger_gpu_api_refused", "cuMemFree", 1.0),
        ("outrigger_gpu_xid_total", "79", 1.0),
        ("outrigger_trace_spans_total", "dropped", 3.0),
    ] {
        assert_eq!(sample(&metrics, name, labels), Some(value), "{name} {labels}");
    }
}

#[test]
fn two_sets_do_not_share_anything() {
    let (one, two) = (busy(), Metrics::new("x"));
    assert_eq!(samples(&one, "outrigger_requests_total").len(), 1);
    assert_eq!(samples(&two, "outrigger_requests_total").len(), 0);
}

#[test]
fn label_sets_that_look_alike_when_joined_stay_apart() {
    let metrics = Metrics::new("x");
    metrics.arm("ab", "c").ended(Outcome::Ok, 200);
    metrics.arm("a", "bc").ended(Outcome::Ok, 200);
    assert_eq!(samples(&metrics, "outrigger_requests_total").len(), 2);
}

#[test]
fn a_handle_is_the_same_for_the_same_labels() {
    let metrics = Metrics::new("x");
    let arm = metrics.arm("r", "a");
    assert!(Arc::ptr_eq(&arm, &metrics.clone().arm("r", "a")));
    assert!(Arc::ptr_eq(&arm.route, &metrics.route("r")));
    assert!(!Arc::ptr_eq(&arm, &metrics.arm("r", "b")));
}

#[test]
fn a_forgotten_endpoint_leaves_no_series_and_starts_afresh() {
    let metrics = Metrics::new("x");
    let old = metrics.endpoint("b", "1:1");
    let stays = metrics.endpoint("b", "2:2");
    old.in_flight.inc();
    metrics.sockets("b", "1:1").retransmits.inc();
    stays.in_flight.inc();
    metrics.forget_endpoint("b", "1:1");
    old.ended(Outcome::Ok);
    old.ejection(EjectionReason::Failures);
    for family in metrics.gather() {
        for metric in family.get_metric() {
            assert!(metric.get_label().iter().all(|pair| pair.value() != "1:1"));
        }
    }
    assert_eq!(sample(&metrics, "outrigger_endpoint_in_flight", "b/2:2"), Some(1.0));
    assert_eq!(metrics.endpoint("b", "1:1").in_flight.get(), 0);
}

#[test]
fn too_many_label_sets_share_one() {
    let metrics = Metrics::new("x");
    for index in 0..MAX_HANDLES + 50 {
        metrics.endpoint("b", &index.to_string()).ended(Outcome::Ok);
    }
    let name = "outrigger_endpoint_requests_total";
    assert_eq!(samples(&metrics, name).len(), MAX_HANDLES + 1);
    assert_eq!(sample(&metrics, name, "other/other/ok"), Some(50.0));
    metrics.endpoint("b", "7").ended(Outcome::Ok);
    assert_eq!(sample(&metrics, name, "b/7/ok"), Some(2.0), "known ones keep theirs");
}

#[test]
fn outcomes_and_codes_are_counted_apart() {
    let table = OutcomeTable::default();
    table.inc(Outcome::Ok, 200);
    table.inc(Outcome::Ok, 200);
    table.inc(Outcome::Ok, 204);
    table.inc(Outcome::Internal, 200);
    let mut seen = Vec::new();
    table.for_each(|outcome, code, count| seen.push((outcome, code.to_owned(), count)));
    seen.sort();
    let ok = |code: &str, count| (Outcome::Ok, code.to_owned(), count);
    let internal = (Outcome::Internal, "200".to_owned(), 1);
    assert_eq!(seen, [ok("200", 2), ok("204", 1), internal]);
}

#[test]
fn invented_codes_are_bounded_and_nothing_is_lost() {
    let table = OutcomeTable::default();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| (100..600).for_each(|code| table.inc(Outcome::Ok, code)));
        }
    });
    let (mut series, mut total, mut codes) = (0, 0, HashSet::new());
    table.for_each(|_, code, count| {
        series += 1;
        total += count;
        codes.insert(code.to_owned());
    });
    assert_eq!((series, codes.len(), total), (SLOTS + 1, SLOTS + 1, 2000));
    assert!(codes.contains(OTHER));
}

#[test]
fn a_failed_reload_is_told_until_one_succeeds() {
    let metrics = Metrics::new("x");
    let at = |seconds| UNIX_EPOCH + Duration::from_secs(seconds);
    let gauge = |name| sample(&metrics, name, "");
    metrics.process().config_loaded(at(10));
    assert_eq!(gauge("outrigger_config_last_reload_success"), Some(1.0));
    metrics.process().config_reloaded(Verdict::Failure, at(20));
    assert_eq!(gauge("outrigger_config_last_reload_success"), Some(0.0));
    assert_eq!(gauge("outrigger_config_last_reload_timestamp_seconds"), Some(20.0));
    let reloads = |result| sample(&metrics, "outrigger_config_reloads_total", result);
    assert_eq!((reloads("failure"), reloads("success")), (Some(1.0), Some(0.0)));
}

#[test]
fn streamed_gaps_reach_their_arm() {
    let metrics = Metrics::new("x");
    let arm = metrics.arm("r", "a");
    let mut gaps = arm.gaps();
    gaps.observe(Duration::from_millis(30));
    gaps.observe(Duration::from_millis(20));
    drop(gaps);
    assert_eq!(sample(&metrics, "outrigger_chunk_gap_seconds", "r/a"), Some(0.05));
}
