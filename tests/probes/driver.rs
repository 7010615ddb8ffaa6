//! The probe of the GPU's driver, in the real kernel: on a stand-in for a device whose calls take as long as we say.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::sys::signal::Signal;
use outrigger_tests::harness::{Call, Launch, Load, Metrics, Process, Proxy, program};
use outrigger_tests::sim::{Options, Simulator};
use serde_json::Value;
use tempfile::TempDir;

use crate::{is_impossible, not_tested};

/// What the kernel's mean and the caller's may differ by: 20 us, or one in a hundred.
const APART: f64 = 20e-6;

/// How often they may: whoever runs between the end of a call and the caller's look at the clock is in the caller's time
/// only.
const ATTEMPTS: usize = 3;

const SECONDS: &str = "outrigger_gpu_driver_call_seconds";

/// Whether this way is told. Where programs may hang on functions, that is done whatever else there is.
fn is_way(told: &str, way: &str) -> bool {
    told.contains(way) || told.contains("by the function of ioctl")
}

/// Makes tracefs readable.
pub(crate) const WITH_TRACEFS: &str =
    "[ -e /sys/kernel/tracing/events ] || mount -t tracefs none /sys/kernel/tracing";

/// Hides it.
pub(crate) const WITHOUT_TRACEFS: &str =
    "mount -t tmpfs none /sys/kernel/tracing && mount -t tmpfs none /sys/kernel/debug";

/// A file whose ioctls take as long as their command says, and somebody who calls them.
struct Device {
    process: Process,
    path: String,
    _folder: TempDir,
}

impl Device {
    /// One whose caller waits for [`Device::go_on`]; none when this machine cannot have one, which is said.
    async fn start() -> Option<Self> {
        Self::start_with(&[]).await
    }

    /// One that serves HTTP at a port, and calls for each answer.
    async fn serving() -> Option<(Self, u16)> {
        let device = Self::start_with(&["serve"]).await?;
        let line = device.process.await_log("port").await;
        let told = serde_json::from_str::<Value>(&line).expect("JSON");
        let port = told["port"].as_u64().and_then(|port| u16::try_from(port).ok());
        Some((device, port.expect("a port")))
    }

    async fn start_with(arguments: &[&str]) -> Option<Self> {
        let folder = tempfile::tempdir().expect("a temporary directory");
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("probes/device.py");
        let mut command = Command::new("unshare");
        command.args(["--mount", "python3", "-u"]).arg(script).arg(folder.path()).args(arguments);
        let process = Process::spawn(&mut command);
        let first = process.await_lines(|lines| lines.first().cloned()).await;
        let told = first.as_deref().and_then(|line| serde_json::from_str::<Value>(line).ok());
        let Some(path) = told.and_then(|told| told["device"].as_str().map(str::to_owned)) else {
            not_tested(&format!("no stand-in for a device: {:?}", process.log()));
            return None;
        };
        Some(Device { process, path, _folder: folder })
    }

    fn go_on(&self) {
        self.process.signal(Signal::SIGUSR1);
    }

    /// What the caller has told of its calls: how many of each number, and how long one took on average, in seconds.
    fn calls(&self) -> Vec<(u64, f64, f64)> {
        let told = self.process.log().into_iter();
        let told = told.filter_map(|line| serde_json::from_str::<Value>(&line).ok());
        told.filter_map(|it| {
            Some((it["number"].as_u64()?, it["count"].as_f64()?, it["seconds"].as_f64()?))
        })
        .collect()
    }
}

/// A proxy that watches the device, in a mount namespace that is made so first.
async fn watching(device: &Device, before: &str) -> (Proxy, Simulator) {
    let simulator = Simulator::start(Options::named("app").fast());
    let probes = format!("driver: {{ devices: ['{}'], stuck_after: 500ms }}", device.path);
    let config = config(&simulator.addr.to_string(), &format!("{probes}, feedback: true"));
    let folder = tempfile::tempdir().expect("a temporary directory");
    let proxy = Launch::new(&config).binary(&inside(folder.path(), before)).start().await;
    (proxy, simulator)
}

pub(crate) fn config(server: &str, probes: &str) -> String {
    format!(
        "backends: {{ app: {{ endpoints: ['{server}'] }} }}\nroutes: [{{ backend: app }}]\n\
         drain: {{ delay: 0s }}\naccess_log: {{ format: json }}\nprobes: {{ {probes} }}\n"
    )
}

/// A script that runs the program in a mount namespace of its own, after this.
pub(crate) fn inside(folder: &Path, before: &str) -> PathBuf {
    let path = folder.join("outrigger");
    let inner = format!("{before} || exit 9; exec \"$0\" \"$@\"");
    let text = format!(
        "#!/bin/sh\nexec unshare --mount sh -c '{inner}' '{}' \"$@\"\n",
        program().display()
    );
    std::fs::write(&path, text).expect("writable");
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(&path, mode).expect("ours");
    path
}

fn count(metrics: &Metrics, command: &str) -> f64 {
    metrics.get(&format!("{SECONDS}_count"), &[("command", command)])
}

/// The caller's numbers and the names that they are to have.
const COUNTED: [(u64, &str); 5] = [
    (0x2a, "NV_ESC_RM_CONTROL"),
    (0x2b, "NV_ESC_RM_ALLOC"),
    (0x29, "NV_ESC_RM_FREE"),
    (0x34, "NV_ESC_RM_DUP_OBJECT"),
    (0x35, "NV_ESC_RM_SHARE"),
];
const HANGS: &str = "NV_ESC_RM_MAP_MEMORY";

/// Every call is counted, whichever way it came to its descriptor, and no other is; says which took longer or shorter than
/// the caller says.
fn apart(device: &Device, metrics: &Metrics) -> Vec<String> {
    let (calls, mut apart) = (device.calls(), Vec::new());
    for (number, name) in COUNTED {
        let told = calls.iter().find(|(other, ..)| *other == number);
        let (_, many, seconds) = told.expect("the caller has told of it");
        assert_eq!(count(metrics, name), *many, "{name}: {}", metrics.text);
        let mean = metrics.get(&format!("{SECONDS}_sum"), &[("command", name)]) / many;
        let (kernel, caller) = (mean * 1e6, seconds * 1e6);
        let line = format!("{name}: kernel {kernel:.1} us, caller {caller:.1} us, {many} calls");
        let _ = writeln!(std::io::stderr(), "{line}");
        if (mean - seconds).abs() > APART.max(seconds / 100.0) {
            apart.push(line);
        }
    }
    let mut names = metrics.values(&format!("{SECONDS}_count"), "command");
    names.retain(|name| !COUNTED.iter().any(|(_, counted)| counted == name));
    assert_eq!(names, [] as [&str; 0], "other files, or another network namespace");
    let devices = metrics.values(&format!("{SECONDS}_count"), "device");
    assert_eq!(devices, [&*device.path]);
    apart
}

/// The call that hangs is seen while it does, told once, and gone afterwards.
async fn hangs_and_returns(device: &Device, proxy: &Proxy) {
    let gauge =
        |metrics: &Metrics, name: &str| metrics.get(&format!("outrigger_gpu_driver_{name}"), &[]);
    let hanging = |metrics: &Metrics| gauge(metrics, "stuck_calls") == 1.0;
    let metrics = proxy.await_metrics(hanging).await;
    assert_eq!(gauge(&metrics, "calls_in_flight"), 1.0);
    assert!(gauge(&metrics, "oldest_call_seconds") >= 0.5, "{}", metrics.text);
    assert_eq!(count(&metrics, HANGS), 0.0, "it has not returned");
    let line = proxy.await_log("does not return").await;
    let ready = proxy.admin_get("/ready").await;
    assert_eq!(ready.status, 503, "with feedback traffic goes elsewhere");
    assert!(ready.text().contains("has not returned for"), "{}", ready.text());
    assert!(
        line.contains(HANGS) && line.contains(&format!("pid={}", device.process.pid())),
        "{line}"
    );
    device.go_on();
    device.process.await_log("released").await;
    let metrics = proxy.await_metrics(|metrics| count(metrics, HANGS) == 1.0).await;
    assert_eq!(gauge(&metrics, "calls_in_flight"), 0.0, "{}", metrics.text);
    assert_eq!(gauge(&metrics, "stuck_calls"), 0.0);
    assert_eq!(gauge(&metrics, "oldest_call_seconds"), 0.0);
    assert_eq!(proxy.admin_get("/ready").await.status, 200);
    proxy.await_log("that was stuck has returned").await;
    let told = |what: &str| proxy.log().iter().filter(|line| line.contains(what)).count();
    assert_eq!((told("does not return"), told("has returned")), (1, 1));
    let lost = ["driver_counts", "driver_flights", "driver_calls"];
    for what in lost {
        assert_eq!(metrics.get("outrigger_probe_lost_total", &[("what", what)]), 0.0, "{what}");
    }
}

async fn calls_are_timed(before: &str, way: &str) {
    if is_impossible("driver") {
        return;
    }
    let mut apart = Vec::new();
    for _ in 0..ATTEMPTS {
        let Some(device) = Device::start().await else { return };
        apart = calls_are_seen(&device, before, way).await;
        if apart.is_empty() {
            break;
        }
    }
    assert!(apart.is_empty(), "the kernel and the caller disagree: {apart:?}");
}

/// One attempt: which calls took longer or shorter than the caller says.
async fn calls_are_seen(device: &Device, before: &str, way: &str) -> Vec<String> {
    let (proxy, _simulator) = watching(device, before).await;
    let line = proxy.await_log("calls into the GPU driver are seen").await;
    assert!(is_way(&line, way), "{line}");
    device.go_on();
    device.process.await_log("hangs").await;
    let told = device.calls();
    let all = |metrics: &Metrics| {
        let is_counted = |(number, name): &(u64, &str)| {
            let many = told.iter().find(|(other, ..)| other == number).map_or(1.0, |told| told.1);
            count(metrics, name) >= many
        };
        COUNTED.iter().all(is_counted)
    };
    let metrics = proxy.await_metrics(all).await;
    let apart = apart(device, &metrics);
    hangs_and_returns(device, &proxy).await;
    device.go_on();
    apart
}

#[tokio::test]
async fn calls_are_timed_by_the_tracepoints_of_ioctl() {
    calls_are_timed(WITH_TRACEFS, "by the tracepoints of ioctl").await;
}

#[tokio::test]
async fn calls_are_timed_by_looking_at_every_system_call() {
    calls_are_timed(WITHOUT_TRACEFS, "by looking at every system call").await;
}

#[tokio::test]
async fn a_request_is_told_how_long_the_driver_was_waited_for() {
    if is_impossible("driver") || is_impossible("requests") {
        return;
    }
    let Some((device, port)) = Device::serving().await else { return };
    let probes = format!("requests: true, driver: {{ devices: ['{}'] }}", device.path);
    let proxy = Proxy::start(&config(&format!("127.0.0.1:{port}"), &probes)).await;
    proxy.await_log("calls into the GPU driver are seen").await;
    for _ in 0..20 {
        assert_eq!(Call::get("/").send(proxy.address()).await.status, 204);
    }
    let millis = |line: &Value, field: &str| line[field].as_f64().unwrap_or(f64::NAN);
    for line in proxy.await_access(20).await {
        let (waited, worked) = (millis(&line, "gpu_wait_ms"), millis(&line, "app_first_byte_ms"));
        assert!(waited >= 5.0 && waited <= worked, "{line:#}");
        assert_eq!(
            (&line["gpu_wait_among"], &line["gpu_wait_method"]),
            (&1.into(), &"driver".into())
        );
    }
    let report = Load::of(40).at_once(4).run(proxy.address(), |_| Call::get("/")).await;
    assert_eq!(report.ok(), 40);
    let lines = proxy.await_access(60).await.split_off(20);
    let shared = lines.iter().filter(|line| line["gpu_wait_among"].as_u64() > Some(1)).count();
    assert!(shared >= 36, "four at once are not alone: {lines:#?}");
    let waits = "outrigger_app_gpu_wait_seconds_count";
    let metrics = proxy.metrics().await;
    assert!(metrics.get(waits, &[("attribution", "exact"), ("method", "driver")]) >= 20.0);
    assert!(metrics.get(waits, &[("attribution", "shared"), ("method", "driver")]) >= 36.0);
}

#[tokio::test]
async fn the_doctor_says_which_way_and_which_devices() {
    if is_impossible("driver") {
        return;
    }
    let folder = tempfile::tempdir().expect("a temporary directory");
    for (before, way) in
        [(WITH_TRACEFS, "by the tracepoints"), (WITHOUT_TRACEFS, "every system call")]
    {
        let mut doctor = Command::new(inside(folder.path(), before));
        let (status, told) = Process::finish(doctor.arg("doctor")).await;
        assert!(status.success(), "{told:?}");
        let at = told.iter().position(|line| line.starts_with("driver"));
        let how = at.and_then(|at| told.get(at + 1)).map_or("", String::as_str);
        assert!(is_way(how, way), "{told:?}");
    }
}
