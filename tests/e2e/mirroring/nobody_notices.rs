//! Whatever happens to the copies, no client sees it, waits for it or pays for it.

use std::time::Duration;

use outrigger_tests::harness::{Call, Load, Proxy};
use outrigger_tests::sim::{Fault, Rule, Simulator};

use super::{Shadowed, all, config, echo, ended, told};
use crate::fleet::{BlackHole, await_idle, endpoints, sim};

/// Fails unless so many requests in a row are answered by the stable server, and none waits for its shadow.
async fn all_is_well(proxy: &Proxy, count: usize) {
    let report = Load::of(count).run(proxy.address(), |_| echo("canoe")).await;
    assert_eq!(report.ok(), count, "{:?}", report.outcomes());
    assert_eq!(report.by_name().get("stable"), Some(&count));
    assert!(report.quantile(1.0) < Duration::from_secs(8), "{:?}", report.quantile(1.0));
}

#[tokio::test]
async fn nobody_waits_for_a_shadow_that_stalls() {
    let shadowed = Shadowed::start("share: 100%, max_in_flight: 10000", "").await;
    shadowed.shadow.fault(Fault::StallFirstByte(None));
    all_is_well(&shadowed.proxy, 50).await;
    shadowed.shadow.reached(|state| state.in_flight == 50).await;
    assert_eq!(all(&shadowed.proxy.metrics().await), 0, "not one copy has ended");
}

#[tokio::test]
async fn nobody_sees_the_answer_to_a_copy() {
    let shadowed = Shadowed::start("share: 100%, max_in_flight: 10000", "").await;
    for fault in ["status=500", "status=429;retry_after=9", "garbage", "reset", "bad_chunk=1"] {
        shadowed.shadow.fault(fault.parse().expect("a fault"));
        all_is_well(&shadowed.proxy, 20).await;
        shadowed.shadow.clear_faults();
    }
    let metrics = shadowed.ended(100).await;
    let name = "outrigger_requests_total";
    let labels = [("route", "all"), ("outcome", "ok"), ("code", "200"), ("arm", "stable")];
    assert_eq!((metrics.get(name, &labels), metrics.get(name, &[])), (100.0, 100.0));
    let lines = shadowed.proxy.await_access(100).await;
    assert_eq!(lines.len(), 100, "copies are not in the access log");
    assert!(lines.iter().all(|line| line["arm"] == "stable" && line["status"] == 200));
}

#[tokio::test]
async fn a_copy_that_takes_too_long_is_given_up() {
    let shadowed = Shadowed::start("share: 100%, timeout: 200ms", "").await;
    shadowed.shadow.fault(Fault::StallFirstByte(None));
    all_is_well(&shadowed.proxy, 1).await;
    let metrics = shadowed.ended(1).await;
    assert_eq!(ended(&metrics, "failed"), 1, "{}", told(&metrics));
    shadowed.shadow.aborted().await;
    shadowed.shadow.clear_faults();
    // The time is for all of it, not for its first byte.
    shadowed.shadow.inflict(Rule::always(Fault::StallMid(0, None)));
    all_is_well(&shadowed.proxy, 1).await;
    let metrics = shadowed.ended(2).await;
    assert_eq!(ended(&metrics, "failed"), 2, "{}", told(&metrics));
    shadowed.shadow.aborted().await;
}

#[tokio::test]
async fn a_shadow_that_is_down_costs_nothing() {
    let shadowed = Shadowed::start("share: 100%, max_in_flight: 10000", "").await;
    let plain = Proxy::start(&crate::fleet::one_backend(&[&shadowed.stable], "", "")).await;
    let median = async |proxy: &Proxy| {
        let report = Load::of(300).run(proxy.address(), |_| echo("canoe")).await;
        assert_eq!(report.ok(), 300, "{:?}", report.outcomes());
        report.quantile(0.5)
    };
    shadowed.shadow.refuse().await;
    let (without, with) = (median(&plain).await, median(&shadowed.proxy).await);
    assert!(with < without + Duration::from_millis(50), "{with:?} against {without:?}");
    let metrics = shadowed.ended(300).await;
    assert_eq!(ended(&metrics, "failed"), 300, "{}", told(&metrics));
    assert_eq!(shadowed.proxy.admin_get("/ready").await.status, 200);
    shadowed.shadow.resume().await;
    // Once it is no longer ejected it gets copies again, without anybody's doing.
    let mut pause = tokio::time::interval(Duration::from_millis(100));
    outrigger_tests::harness::within("a copy that arrives", async {
        while shadowed.copies() == 0 {
            pause.tick().await;
            assert_eq!(echo("canoe").send(shadowed.proxy.address()).await.status, 200);
        }
    })
    .await;
}

#[tokio::test]
async fn a_shadow_that_never_connects_costs_nothing() {
    let (stable, hole) = (sim("stable"), BlackHole::open().await);
    let yaml = format!(
        "backends:\n  stable: {{ endpoints: {} }}\n  shadow: {{ endpoints: ['{}'] }}\n\
         routes: [{{ name: all, backend: stable, \
         mirror: {{ backend: shadow, max_in_flight: 5, timeout: 4s }} }}]\n",
        endpoints(&[&stable]),
        hole.address,
    );
    let proxy = Proxy::start(&yaml).await;
    all_is_well(&proxy, 30).await;
    let metrics = proxy.await_metrics(|metrics| all(metrics) == 30).await;
    let (failed, too_many) = (ended(&metrics, "failed"), ended(&metrics, "too_many"));
    assert!(failed >= 5 && too_many > 0, "{failed} and {too_many}");
    await_idle(&proxy).await;
}

/// A shadow whose only endpoint takes no more is no reason to make anybody wait or to open more connections.
#[tokio::test]
async fn a_shadow_that_is_full_loses_copies_and_nothing_else() {
    let (stable, shadow) = (sim("stable"), sim("shadow"));
    let yaml = config(&[&stable], &shadow, "", "share: 100%, max_in_flight: 100", "");
    let open = format!("shadow: {{ endpoints: {},", endpoints(&[&shadow]));
    let yaml = yaml.replace(&open, &format!("{open} max_connections: 2,"));
    let proxy = Proxy::start(&yaml).await;
    shadow.fault(Fault::StallFirstByte(None));
    all_is_well(&proxy, 30).await;
    proxy.await_metrics(|metrics| ended(metrics, "failed") == 28).await;
    assert_eq!(shadow.state().in_flight, 2);
}

#[tokio::test]
async fn whatever_becomes_of_copies_their_places_are_given_back() {
    let shadowed = Shadowed::start("share: 100%, max_in_flight: 50, timeout: 300ms", "").await;
    for fault in
        ["reset", "garbage", "stall_first_byte", "stall_mid=0", "close_mid=1", "status=503"]
    {
        let fault: Fault = fault.parse().expect("a fault");
        shadowed.shadow.inflict(Rule::always(fault).share(0.15));
    }
    let load = Load::of(400).at_once(16);
    let call = |index: usize| match index % 3 {
        0 => Call::chat("how deep?").max_tokens(5).streaming(),
        1 => echo("canoe"),
        _ => Call::get("/bytes/100000"),
    };
    let report = load.run(shadowed.proxy.address(), call).await;
    assert_eq!(report.ok(), 400, "{:?}", report.outcomes());
    shadowed.shadow.hang_up();
    let metrics = shadowed.ended(400).await;
    for result in ["same", "different", "failed"] {
        assert!(ended(&metrics, result) > 0, "{result}: {}", told(&metrics));
    }
    let name = "outrigger_endpoint_in_flight";
    shadowed.proxy.await_metrics(|metrics| metrics.get(name, &[]) == 0.0).await;
    shadowed.shadow.reached(|state| state.in_flight == 0).await;
}

/// The peak of the resident memory of the proxy, in bytes.
fn peak(proxy: &Proxy) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", proxy.pid()));
    let status = status.expect("a running process has a status");
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kilobytes = line.and_then(|line| line.trim().strip_suffix(" kB")?.trim().parse().ok());
    kilobytes.map(|kilobytes: u64| kilobytes << 10).expect("the kernel tells the peak")
}

/// By how much an upload of 100 MB lets the memory of the proxy grow.
async fn growth(stable: &Simulator, shadow: &Simulator, share: &str) -> u64 {
    let mirror = format!("share: {share}, body: 1GiB");
    let proxy = Proxy::start(&config(&[stable], shadow, "", &mirror, "")).await;
    assert_eq!(echo("small").send(proxy.address()).await.status, 200);
    let before = peak(&proxy);
    let answer = Call::post("/echo").body(vec![b'x'; 100_000_000]).send(proxy.address()).await;
    assert_eq!(answer.echo().bytes, 100_000_000);
    peak(&proxy) - before
}

#[tokio::test]
async fn a_request_that_is_not_drawn_is_not_kept() {
    let (stable, shadow) = (sim("stable"), sim("shadow"));
    let kept = growth(&stable, &shadow, "100%").await;
    assert!(kept > 90_000_000, "a body that is to be copied is kept whole: {kept}");
    // One in ten thousand is drawn.
    let kept = growth(&stable, &shadow, "0.01%").await;
    assert!(kept < 50_000_000, "{kept} bytes for a request that is not copied");
}
