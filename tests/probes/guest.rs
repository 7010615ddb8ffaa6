//! Being a good guest: nothing is left behind, and what is not permitted is said and done without.

use std::process::Command;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use outrigger_tests::harness::{Call, Launch, Process, Proxy, program};
use outrigger_tests::sim::{Options, Simulator};

use crate::{following, is_impossible};

/// The numbers that the kernel gives to what a process holds: programs, maps, links.
pub(crate) fn held(pid: u32, what: &str) -> Vec<u32> {
    let folder = std::fs::read_dir(format!("/proc/{pid}/fdinfo")).expect("a running process");
    let texts = folder.filter_map(|entry| std::fs::read_to_string(entry.ok()?.path()).ok());
    let mut ids: Vec<u32> = texts
        .filter_map(|text| {
            text.lines().find_map(|line| {
                line.strip_prefix(what)?.trim_start_matches(':').trim().parse().ok()
            })
        })
        .collect();
    ids.sort_unstable();
    ids.dedup();
    ids
}

/// Of these programs and maps, those that the kernel still has.
pub(crate) fn still_there(programs: &[u32], maps: &[u32]) -> usize {
    let all = aya::programs::loaded_programs().filter_map(Result::ok);
    let left = all.filter(|program| programs.contains(&program.id())).count();
    let all = aya::maps::loaded_maps().filter_map(Result::ok);
    left + all.filter(|map| maps.contains(&map.id())).count()
}

#[tokio::test]
async fn a_proxy_that_is_killed_leaves_nothing_in_the_kernel() {
    if is_impossible("requests") {
        return;
    }
    let simulator = Simulator::start(Options::named("app").fast());
    let proxy = Proxy::start(&following(simulator.addr)).await;
    assert_eq!(Call::get("/echo").send(proxy.address()).await.status, 200);
    let (programs, maps) = (held(proxy.pid(), "prog_id"), held(proxy.pid(), "map_id"));
    assert!(programs.len() >= 4 && maps.len() >= 3, "{programs:?} {maps:?}");
    assert!(still_there(&programs, &maps) >= 7, "what is there can be seen");
    proxy.signal(Signal::SIGKILL);
    proxy.wait_exit(Duration::from_secs(10)).await;
    // The kernel frees them when nobody can run them any more, and tells nobody.
    let mut pause = tokio::time::interval(Duration::from_millis(20));
    let patience = Instant::now() + Duration::from_secs(10);
    while still_there(&programs, &maps) > 0 {
        assert!(Instant::now() < patience, "{programs:?} {maps:?} are left");
        pause.tick().await;
    }
}

#[tokio::test]
async fn without_the_capabilities_the_proxy_works_and_says_what_is_missing() {
    if is_impossible("requests") {
        return;
    }
    let without = "--bounding-set=-sys_admin,-cap_38,-cap_39";
    let mut command = Command::new("setpriv");
    let (status, told) = Process::finish(command.arg(without).arg(program()).arg("doctor")).await;
    assert!(status.success(), "nothing is asked for: {told:?}");
    assert!(told.join("\n").contains("not permitted without CAP_BPF and CAP_PERFMON"), "{told:?}");
    let script = tempfile::tempdir().expect("a temporary directory");
    let path = script.path().join("outrigger");
    let text = format!("#!/bin/sh\nexec setpriv {without} '{}' \"$@\"\n", program().display());
    std::fs::write(&path, text).expect("writable");
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(&path, mode).expect("ours");
    let simulator = Simulator::start(Options::named("app").fast());
    let proxy = Launch::new(&following(simulator.addr)).binary(&path).start().await;
    assert_eq!(Call::get("/echo").send(proxy.address()).await.status, 200);
    let line = proxy.await_log("the probe is off").await;
    assert!(line.contains("CAP_BPF and CAP_PERFMON"), "{line}");
    assert_eq!(proxy.metrics().await.get("outrigger_probe_running", &[]), 0.0);
    let line = proxy.await_access(1).await.remove(0);
    assert!(line.get("app_socket_wait_ms").is_none(), "{line:#}");
}
