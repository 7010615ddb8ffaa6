//! Being a good guest: nothing is left behind, and what is not permitted is said and done without.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use aya::maps::{HashMap, Map, MapData};
use nix::sys::signal::Signal;
use outrigger_probes::Connection;
use outrigger_tests::harness::{Call, Launch, Process, Proxy, program};
use outrigger_tests::sim::{Options, Simulator};

use crate::{DOCTOR, following, is_impossible};

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

/// Waits until the kernel has none of them any more.
pub(crate) async fn await_gone(programs: &[u32], maps: &[u32]) {
    // It frees them when nobody can run them any more, and tells nobody.
    let mut pause = tokio::time::interval(Duration::from_millis(20));
    let patience = Instant::now() + Duration::from_secs(10);
    while still_there(programs, maps) > 0 {
        assert!(Instant::now() < patience, "{programs:?} {maps:?} are left");
        pause.tick().await;
    }
}

/// What the kernel holds of the connections of this proxy.
pub(crate) fn connections(proxy: &Proxy) -> Vec<Connection> {
    let maps = held(proxy.pid(), "map_id").into_iter();
    let maps = maps.filter_map(|id| MapData::from_id(id).ok());
    let is_it = |map: &MapData| map.info().is_ok_and(|it| it.name() == b"CONNECTIONS");
    let map = Map::HashMap(maps.into_iter().find(is_it).expect("the map of the probe"));
    let map: HashMap<_, u64, [u64; Connection::WORDS]> = map.try_into().expect("its types");
    map.iter().filter_map(Result::ok).map(|(_, words)| Connection::from_words(words)).collect()
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
    await_gone(&programs, &maps).await;
}

/// What stands in the way; nothing does where this is `None`.
type Obstacle = Option<&'static str>;

const BOTH: Option<&str> = Some("not permitted without CAP_BPF and CAP_PERFMON");
const PERFMON: Option<&str> = Some("not permitted without CAP_PERFMON");
const BPF: Option<&str> = Some("not permitted without CAP_BPF");
const PTRACE: Option<&str> = Some("not permitted without CAP_SYS_PTRACE");
const ALL: Option<&str> = Some("not permitted without CAP_BPF, CAP_PERFMON and CAP_SYS_PTRACE");
const PERFMON_PTRACE: Option<&str> = Some("not permitted without CAP_PERFMON and CAP_SYS_PTRACE");
const BPF_PTRACE: Option<&str> = Some("not permitted without CAP_BPF and CAP_SYS_PTRACE");

/// Which capabilities are kept (of those that matter here), what then stands in the way of the probes whose programs hang in
/// the kernel, and what in that of `cuda`. The table of PROBES.md, for kernels in which programs hang in user space by links.
const MATRIX: &[(&[&str], Obstacle, Obstacle)] = &[
    (&[], BOTH, ALL),
    (&["bpf"], PERFMON, PERFMON_PTRACE),
    (&["perfmon"], BPF, BPF_PTRACE),
    (&["bpf", "perfmon"], None, PTRACE),
    (&["bpf", "perfmon", "sys_ptrace"], None, None),
    (&["sys_admin"], None, PTRACE),
    (&["sys_admin", "sys_ptrace"], None, None),
];

/// The capabilities that decide, by their numbers: older tools do not know the newer names.
const DECIDING: [(&str, &str); 4] =
    [("sys_ptrace", "cap_19"), ("sys_admin", "cap_21"), ("perfmon", "cap_38"), ("bpf", "cap_39")];

/// What `setpriv` is told so that of the deciding capabilities only these are left.
fn only(kept: &[&str]) -> String {
    let dropped = DECIDING.iter().filter(|(name, _)| !kept.contains(name));
    let dropped: Vec<String> = dropped.map(|(_, number)| format!("-{number}")).collect();
    format!("--bounding-set={}", dropped.join(","))
}

/// A program that runs the proxy with these capabilities only.
fn bound(folder: &Path, kept: &[&str]) -> PathBuf {
    let (only, program) = (only(kept), program());
    let text = format!("exec setpriv {only} '{}' \"$@\"", program.display());
    script(&folder.join("outrigger"), &text)
}

/// Writes a program of the shell.
pub(crate) fn script(path: &Path, text: &str) -> PathBuf {
    std::fs::write(path, format!("#!/bin/sh\n{text}\n")).expect("writable");
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(path, mode).expect("ours");
    path.to_owned()
}

#[tokio::test]
async fn each_capability_that_is_missing_is_named_and_the_proxy_works_without() {
    if is_impossible("requests") {
        return;
    }
    let simulator = Simulator::start(Options::named("app").fast());
    for (kept, in_kernel, in_library) in MATRIX {
        let mut command = Command::new("setpriv");
        command.arg(only(kept)).arg(program()).arg("doctor");
        let (status, told) = Process::finish(&mut command).await;
        assert!(status.success(), "nothing is asked for: {told:?}");
        let [requests, driver, fences] = ["requests", "driver", "fences"].map(|it| (it, in_kernel));
        let all = [requests, driver, fences, ("sockets", &None), ("cuda", in_library)];
        let has_links = DOCTOR.contains("uprobe_multi");
        for (probe, obstacle) in all.into_iter().filter(|it| has_links || it.0 != "cuda") {
            let line = told.iter().find(|line| line.starts_with(probe)).expect("a line");
            match obstacle {
                Some(obstacle) => assert!(line.contains(obstacle), "{kept:?}: {line}"),
                None => assert!(!line.contains("impossible"), "{kept:?}: {line}"),
            }
        }
        let folder = tempfile::tempdir().expect("a temporary directory");
        let binary = bound(folder.path(), kept);
        let proxy = Launch::new(&following(simulator.addr)).binary(&binary).start().await;
        assert_eq!(Call::get("/echo").send(proxy.address()).await.status, 200);
        let runs = f64::from(u8::from(in_kernel.is_none()));
        let running = [("probe", "requests")];
        assert_eq!(proxy.metrics().await.get("outrigger_probe_running", &running), runs);
        let line = proxy.await_access(1).await.remove(0);
        assert_eq!(line.get("app_socket_wait_ms").is_some(), runs > 0.0, "{kept:?}: {line:#}");
        if let Some(obstacle) = in_kernel {
            let line = proxy.await_log("the probe is off").await;
            assert!(line.contains(obstacle), "{kept:?}: {line}");
        }
    }
}
