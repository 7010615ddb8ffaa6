//! Guarded arms: a canary that does worse is taken out, one that does as well stays and goes up its steps.
//!
//! How many requests that takes is the guard's own affair and tested there; here it is whether what it decides happens
//! to the traffic and is told everywhere. Evidence may grow only so fast in a quarter of a second, so the simulators
//! run at the speed of an engine and the load is that of a few clients.

mod keeping;
mod steps;

use outrigger_tests::harness::{Answer, Call, Load, Metrics, Proxy, Report};
use outrigger_tests::sim::{Fault, Options, Rule, Simulator};
use serde_json::Value;

use super::fleet::{attempts, endpoints, reload, sim};

/// Two arms behind a guard.
struct Guarded {
    stable: Simulator,
    canary: Simulator,
    proxy: Proxy,
    yaml: String,
}

const EVEN: &str = "{ stable: 50, canary: 50 }";

impl Guarded {
    /// Arms of equal weight; `guard` is what else the guard says.
    async fn start(stable: Options, canary: Options, guard: &str) -> Self {
        let (stable, canary) = (Simulator::start(stable), Simulator::start(canary));
        let yaml = config(&stable, &canary, EVEN, guard, "");
        let proxy = Proxy::start(&yaml).await;
        Self { stable, canary, proxy, yaml }
    }

    /// Two arms that are alike, at the speed of an engine.
    async fn alike(guard: &str) -> Self {
        Self::start(Options::named("stable"), Options::named("canary"), guard).await
    }

    /// What `/canaries` says of the route.
    async fn page(&self) -> Value {
        self.proxy.admin_get("/canaries").await.json()[0].clone()
    }

    async fn send(&self, count: usize) -> Report {
        let report = Load::of(count).at_once(6).run(self.proxy.address(), |_| ask()).await;
        assert_eq!(report.samples.len(), count);
        report
    }

    /// Sends requests until the metrics are as wished; fails when the canary has got more than `most` before that.
    async fn send_until(&self, most: u64, wished: impl Fn(&Metrics) -> bool) -> Metrics {
        loop {
            self.send(24).await;
            let metrics = self.proxy.metrics().await;
            if wished(&metrics) {
                return metrics;
            }
            let requests = self.canary.state().requests();
            if requests > most {
                let page = self.page().await;
                self.proxy.process().fail(&format!("not within {requests} requests: {page:#}"));
            }
        }
    }

    /// Makes the canary fail until it is taken out.
    async fn take_out(&self) -> Metrics {
        self.canary.fault(Fault::Status(500, None));
        let metrics = self.send_until(6_000, taken_out).await;
        self.canary.clear_faults();
        metrics
    }

    /// Sends requests and fails when one of them comes to the canary.
    async fn expect_canary_has_none(&self) {
        let before = self.canary.state().requests();
        let report = self.send(100).await;
        assert_eq!(report.ok(), 100, "{:?}", report.outcomes());
        assert_eq!(self.canary.state().requests(), before);
    }
}

fn config(stable: &Simulator, canary: &Simulator, split: &str, guard: &str, route: &str) -> String {
    format!(
        "backends:\n  stable: {{ endpoints: {} }}\n  canary: {{ endpoints: {} }}\n\
         routes: [{{ name: all, split: {split}, expose: [arm, attempts], \
         guard: {{ arm: canary, {guard} }}, {route} }}]\n",
        endpoints(&[stable]),
        endpoints(&[canary]),
    )
}

/// A short stream.
fn ask() -> Call {
    Call::chat("how deep is the lagoon?").max_tokens(3).streaming()
}

fn forced(arm: &str) -> Call {
    ask().header("x-outrigger-arm", arm)
}

const LABELS: [(&str, &str); 2] = [("route", "all"), ("arm", "canary")];

fn rolled_back(metrics: &Metrics) -> bool {
    metrics.get("outrigger_canary_rolled_back", &LABELS) == 1.0
}

/// Taken out, and everything that follows from it done.
fn taken_out(metrics: &Metrics) -> bool {
    rolled_back(metrics) && weight(metrics) == 0.0
}

fn weight(metrics: &Metrics) -> f64 {
    metrics.get("outrigger_canary_weight_percent", &LABELS)
}

fn verdicts(metrics: &Metrics, verdict: &str) -> f64 {
    let labels = [("route", "all"), ("arm", "canary"), ("verdict", verdict)];
    metrics.get("outrigger_canary_verdicts_total", &labels)
}

fn requests(metrics: &Metrics, arm: &str) -> u64 {
    metrics.get("outrigger_requests_total", &[("route", "all"), ("arm", arm)]) as u64
}

/// Fails unless everybody tells that the canary was taken out for `measure`.
async fn expect_told(guarded: &Guarded, measure: &str) {
    let metrics = guarded.proxy.metrics().await;
    assert_eq!(weight(&metrics), 0.0);
    for (verdict, count) in [("errors", 1.0), ("first_byte", 1.0), ("gap", 1.0), ("stepped", 0.0)] {
        let expected = if verdict == measure { count } else { 0.0 };
        let verdict =
            if verdict == "stepped" { verdict.into() } else { format!("rolled_back_{verdict}") };
        assert_eq!(verdicts(&metrics, &verdict), expected, "{verdict}");
    }
    let line = guarded.proxy.await_log("canary taken out").await;
    assert!(line.contains("ERROR") && line.contains(&format!("{measure}: ")), "{line}");
    assert!(line.contains("route=\"all\"") || line.contains("route=all"), "{line}");
    let page = guarded.page().await;
    assert_eq!((&page["weights"]["canary"], &page["route"]), (&0.into(), &"all".into()));
    assert!(page["weights"]["stable"].as_u64() > Some(0), "{page:#}");
    let why = page["state"]["rolled_back"].as_str().unwrap_or_default();
    assert!(why.starts_with(&format!("{measure}: ")) && why.contains(" against "), "{page:#}");
    assert!(line.contains(why), "the log and the page say the same: {line} {why}");
}

#[tokio::test]
async fn a_canary_that_fails_now_and_then_is_taken_out_for_good() {
    let guarded = Guarded::alike("").await;
    guarded.canary.inflict(Rule::always(Fault::Status(500, None)).share(0.3));
    let metrics = guarded.send_until(6_000, taken_out).await;
    assert!(guarded.canary.state().requests() < 600);
    assert!(requests(&metrics, "stable") > 0);
    expect_told(&guarded, "errors").await;
    guarded.canary.clear_faults();
    guarded.expect_canary_has_none().await;
}

/// The other way round nothing happens: the guard takes out the canary and nothing else. First bytes are not compared,
/// since an engine that fails half of its requests at once has less to do, and is the faster one.
#[tokio::test]
async fn a_stable_arm_that_fails_is_not_the_fault_of_the_canary() {
    let guarded = Guarded::alike("first_byte: off").await;
    guarded.stable.inflict(Rule::always(Fault::Status(500, None)).share(0.5));
    for _ in 0..12 {
        guarded.send(50).await;
    }
    let metrics = guarded.proxy.metrics().await;
    assert!(!rolled_back(&metrics) && weight(&metrics) == 50.0, "{:#}", guarded.page().await);
    let page = guarded.page().await;
    assert!(page["state"]["against"]["failed"].as_u64() > Some(50), "{page:#}");
}

#[tokio::test]
async fn errors_of_both_arms_alike_are_nobodys_fault() {
    let guarded = Guarded::alike("").await;
    for arm in [&guarded.stable, &guarded.canary] {
        arm.inflict(Rule::always(Fault::Status(500, None)).share(0.2));
    }
    for _ in 0..12 {
        guarded.send(50).await;
    }
    let metrics = guarded.proxy.metrics().await;
    assert!(!rolled_back(&metrics), "{:#}", guarded.page().await);
}

#[tokio::test]
async fn a_canary_that_does_as_well_stays() {
    let (stable, canary) = (Options::named("stable").fast(), Options::named("canary").fast());
    let guarded = Guarded::start(stable, canary, "").await;
    let load = Load::of(2_000).at_once(8);
    let report = load.run(guarded.proxy.address(), |_| ask()).await;
    assert_eq!(report.ok(), 2_000, "{:?}", report.outcomes());
    let names = report.by_name();
    assert_eq!((names["stable"], names["canary"]), (1_000, 1_000));
    let ended = |m: &Metrics| requests(m, "stable") + requests(m, "canary");
    let metrics = guarded.proxy.await_metrics(|m| ended(m) == 2_000).await;
    assert!(!rolled_back(&metrics) && weight(&metrics) == 50.0, "{:#}", guarded.page().await);
    let page = guarded.page().await;
    let state = &page["state"];
    assert_eq!(state["rolled_back"], Value::Null, "{page:#}");
    for side in ["guarded", "against"] {
        assert_eq!(state[side]["requests"], 1_000, "{side}: {page:#}");
        assert_eq!(state[side]["failed"], 0, "{side}: {page:#}");
        let median = state[side]["first_byte"]["p50_seconds"].as_f64();
        assert!(median.is_some_and(|seconds| seconds > 0.0 && seconds < 1.0), "{page:#}");
    }
    let measures: Vec<_> = state["measures"].as_array().expect("a list").iter().collect();
    let names: Vec<_> = measures.iter().filter_map(|m| m["measure"].as_str()).collect();
    assert_eq!(names, ["errors", "first_byte"]);
    assert!(measures.iter().all(|m| m["evidence"].as_f64() < m["alarm_at"].as_f64()));
}

#[tokio::test]
async fn a_canary_that_is_slower_is_taken_out_by_its_first_bytes() {
    let (stable, canary) = (Options::named("stable"), Options::named("canary").slowdown(3.0));
    let guarded = Guarded::start(stable, canary, "").await;
    guarded.send_until(6_000, taken_out).await;
    expect_told(&guarded, "first_byte").await;
    let page = guarded.page().await;
    let median = |side: &str| page["state"][side]["first_byte"]["p50_seconds"].as_f64();
    assert!(median("guarded") > median("against"), "{page:#}");
    guarded.expect_canary_has_none().await;
}

#[tokio::test]
async fn first_bytes_are_not_compared_when_that_is_off() {
    let (stable, canary) = (Options::named("stable"), Options::named("canary").slowdown(3.0));
    let guarded = Guarded::start(stable, canary, "first_byte: off").await;
    for _ in 0..12 {
        guarded.send(50).await;
    }
    let metrics = guarded.proxy.metrics().await;
    assert!(!rolled_back(&metrics) && weight(&metrics) == 50.0, "{:#}", guarded.page().await);
}

#[tokio::test]
async fn a_canary_that_is_slow_between_its_tokens_is_taken_out_by_its_gaps() {
    let (stable, canary) = (Options::named("stable"), Options::named("canary"));
    let guarded = Guarded::start(stable, canary, "first_byte: off, gap: 50%").await;
    guarded.canary.set_slowdown(4.0);
    guarded.send_until(6_000, taken_out).await;
    expect_told(&guarded, "gap").await;
}

#[tokio::test]
async fn whatever_way_a_canary_fails_it_is_taken_out() {
    for fault in ["reset", "close_mid=1", "garbage", "status=503"] {
        let guarded = Guarded::alike("").await;
        guarded.canary.fault(fault.parse().expect("a fault"));
        guarded.send_until(6_000, taken_out).await;
        expect_told(&guarded, "errors").await;
        guarded.canary.clear_faults();
        guarded.expect_canary_has_none().await;
    }
}

#[tokio::test]
async fn a_canary_that_is_not_there_is_taken_out() {
    let guarded = Guarded::alike("").await;
    guarded.canary.refuse().await;
    let out = async {
        loop {
            guarded.send(24).await;
            if taken_out(&guarded.proxy.metrics().await) {
                break;
            }
        }
    };
    outrigger_tests::harness::within("a rollback", out).await;
    expect_told(&guarded, "errors").await;
    guarded.expect_canary_has_none().await;
}

/// What a retry heals burned nobody, but the arm did fail.
#[tokio::test]
async fn failures_that_retries_hide_count_against_the_canary() {
    let (stable, good, bad) = (sim("stable"), sim("good"), sim("bad"));
    bad.fault(Fault::Status(503, None));
    let yaml = format!(
        "backends:\n  stable: {{ endpoints: {} }}\n  \
         canary: {{ endpoints: {}, balance: round_robin, ejection: off }}\n\
         routes: [{{ name: all, split: {EVEN}, expose: [attempts], guard: {{ arm: canary }}, \
         retry: {{ budget: {{ percent: 100, min_per_second: 1000 }} }} }}]\n",
        endpoints(&[&stable]),
        endpoints(&[&good, &bad]),
    );
    let proxy = Proxy::start(&yaml).await;
    let mut retried = 0;
    let out = async {
        loop {
            let report = Load::of(24).at_once(3).run(proxy.address(), |_| ask()).await;
            assert_eq!(report.ok(), 24, "{:?}", report.outcomes());
            let answers = report.samples.iter().filter_map(|sample| sample.answer.as_ref().ok());
            retried += answers.filter(|answer| attempts(answer) == 2).count();
            if taken_out(&proxy.metrics().await) {
                break;
            }
        }
    };
    outrigger_tests::harness::within("a rollback", out).await;
    assert!(retried > 0);
    proxy.await_log("canary taken out").await;
}

fn arm(answer: &Answer) -> &str {
    answer.header("x-outrigger-arm").expect("the route exposes the arm")
}

#[tokio::test]
async fn testers_still_reach_an_arm_that_was_taken_out() {
    let guarded = Guarded::alike("").await;
    guarded.take_out().await;
    let before = guarded.canary.state().requests();
    for _ in 0..20 {
        let answer = forced("canary").send(guarded.proxy.address()).await;
        assert_eq!((answer.status, answer.by(), arm(&answer)), (200, "canary", "canary"));
        let answer = ask().send(guarded.proxy.address()).await;
        assert_eq!((answer.by(), arm(&answer)), ("stable", "stable"));
    }
    assert_eq!(guarded.canary.state().requests(), before + 20);
    assert!(rolled_back(&guarded.proxy.metrics().await), "and that does not bring it back");
}

#[tokio::test]
async fn testers_are_not_judged() {
    let guarded = Guarded::alike("").await;
    guarded.canary.fault(Fault::Status(500, None));
    let load = Load::of(400).at_once(8);
    let report = load.run(guarded.proxy.address(), |_| forced("canary")).await;
    assert_eq!(report.status(500), 400, "{:?}", report.outcomes());
    let load = Load::of(50).at_once(8);
    load.run(guarded.proxy.address(), |_| forced("stable")).await;
    guarded.proxy.await_metrics(|m| requests(m, "canary") + requests(m, "stable") == 450).await;
    let page = guarded.page().await;
    for side in ["guarded", "against"] {
        assert_eq!(page["state"][side]["requests"], 0, "{side}: {page:#}");
    }
    assert_eq!(page["weights"]["canary"], 50);
}

#[tokio::test]
async fn clients_that_go_away_are_not_the_fault_of_the_arm() {
    let guarded = Guarded::alike("").await;
    for _ in 0..20 {
        let call = Call::chat("a long story").max_tokens(5_000).streaming();
        let mut stream = call.open(guarded.proxy.address()).await;
        assert!(stream.event().await.is_some());
    }
    let lines = guarded.proxy.await_access(20).await;
    assert!(lines.iter().all(|line| line["outcome"] == "client_gone"), "{lines:?}");
    let page = guarded.page().await;
    for side in ["guarded", "against"] {
        assert_eq!(page["state"][side]["failed"], 0, "{side}: {page:#}");
    }
}

#[tokio::test]
async fn requests_that_are_wrong_are_not_the_fault_of_the_arm() {
    let guarded = Guarded::alike("").await;
    let wrong = |_| Call::chat("hm").max_tokens(0);
    let report = Load::of(100).at_once(4).run(guarded.proxy.address(), wrong).await;
    assert_eq!(report.status(400), 100, "{:?}", report.outcomes());
    guarded.proxy.await_metrics(|m| requests(m, "canary") + requests(m, "stable") == 100).await;
    let page = guarded.page().await;
    for side in ["guarded", "against"] {
        assert_eq!(
            (&page["state"][side]["requests"], &page["state"][side]["failed"]),
            (&50.into(), &0.into())
        );
    }
}

#[tokio::test]
async fn everybody_counts_the_same() {
    let guarded = Guarded::alike("errors: 100%").await;
    guarded.canary.inflict(Rule::always(Fault::Status(500, None)).share(0.3));
    let report = guarded.send(300).await;
    let ended = |m: &Metrics| requests(m, "stable") + requests(m, "canary");
    let metrics = guarded.proxy.await_metrics(|m| ended(m) == 300).await;
    let page = guarded.page().await;
    for (side, arm, simulator) in
        [("guarded", "canary", &guarded.canary), ("against", "stable", &guarded.stable)]
    {
        let own = report.samples.iter().filter_map(|sample| sample.answer.as_ref().ok());
        let own: Vec<_> = own.filter(|answer| answer.by() == arm).collect();
        let failed = own.iter().filter(|answer| answer.status == 500).count();
        assert_eq!(requests(&metrics, arm), own.len() as u64, "{arm}");
        assert_eq!(simulator.state().requests(), own.len() as u64, "{arm}");
        let state = &page["state"][side];
        assert_eq!((&state["requests"], &state["failed"]), (&own.len().into(), &failed.into()));
        let labels = [("arm", arm), ("outcome", "server_error"), ("code", "500")];
        assert_eq!(metrics.get("outrigger_requests_total", &labels), failed as f64, "{arm}");
        let labels = [("backend", arm), ("outcome", "server_error")];
        assert_eq!(
            metrics.get("outrigger_endpoint_requests_total", &labels),
            failed as f64,
            "{arm}"
        );
    }
    assert_eq!(page["state"]["guarded"]["requests"], 150);
}

#[tokio::test]
async fn a_route_without_a_guard_is_not_on_the_page_and_not_in_the_metrics() {
    let (stable, canary) = (sim("stable"), sim("canary"));
    let yaml = config(&stable, &canary, EVEN, "", "").replace("guard: { arm: canary,  }, ", "");
    assert!(!yaml.contains("guard"), "{yaml}");
    let proxy = Proxy::start(&yaml).await;
    assert_eq!(ask().send(proxy.address()).await.status, 200);
    assert_eq!(proxy.admin_get("/canaries").await.json(), serde_json::json!([]));
    assert!(!proxy.metrics().await.has("outrigger_canary_rolled_back", &[]));
    reload(&proxy, &config(&stable, &canary, EVEN, "", "")).await;
    assert_eq!(weight(&proxy.metrics().await), 50.0);
}

#[tokio::test]
async fn each_route_has_a_guard_of_its_own() {
    let (stable, canary) = (Simulator::start(Options::named("stable")), sim("canary"));
    let route = |name: &str| {
        format!(
            "  - {{ name: {name}, match: {{ host: {name} }}, split: {EVEN}, guard: {{ arm: canary }} }}\n"
        )
    };
    let yaml = format!(
        "backends:\n  stable: {{ endpoints: {} }}\n  canary: {{ endpoints: {} }}\nroutes:\n{}{}",
        endpoints(&[&stable]),
        endpoints(&[&canary]),
        route("all"),
        route("other"),
    );
    let proxy = Proxy::start(&yaml).await;
    // Only what the first route's clients ask for fails.
    canary.inflict(Rule::always(Fault::Status(500, None)).holding("poison"));
    let all = |_| Call::chat("poison").max_tokens(3).host("all");
    let out = async {
        while !taken_out(&proxy.metrics().await) {
            Load::of(24).at_once(4).run(proxy.address(), all).await;
            Load::of(24).at_once(4).run(proxy.address(), |_| ask().host("other")).await;
        }
    };
    outrigger_tests::harness::within("a rollback", out).await;
    let metrics = proxy.metrics().await;
    let other = [("route", "other"), ("arm", "canary")];
    assert_eq!(metrics.get("outrigger_canary_rolled_back", &other), 0.0);
    assert_eq!(metrics.get("outrigger_canary_weight_percent", &other), 50.0);
    let load = Load::of(20);
    let report = load.run(proxy.address(), |_| ask().host("other")).await;
    assert_eq!(report.by_name().get("canary"), Some(&10));
}
