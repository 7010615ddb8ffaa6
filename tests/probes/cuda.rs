//! The probe of the GPU's user-space driver, in the real kernel: a stand-in library that is built here, called by a program
//! with a clock of its own.

use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use outrigger_tests::harness::{Call, Metrics, Process, Proxy, program};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::sync::{Mutex, MutexGuard};

use crate::guest::{held, still_there};
use crate::{is_impossible, not_tested};

/// What a millisecond is to the stand-in.
const MS: u64 = 1_000_000;

/// Each proxy finds every process of the namespace that has such a library, also that of another test.
static ALONE: Mutex<()> = Mutex::const_new(());

/// The stand-in for a GPU's library, under the names that drivers give it. There is one at a time.
struct Library {
    folder: TempDir,
    _alone: MutexGuard<'static, ()>,
}

impl Library {
    /// Builds it; `None`, said aloud, when that is impossible here.
    async fn build() -> Option<Self> {
        if is_impossible("cuda") {
            return None;
        }
        let folder = tempfile::tempdir().expect("a temporary directory");
        let source = folder.path().join("cuda.c");
        std::fs::write(&source, include_str!("cuda.c")).expect("writable");
        std::fs::write(folder.path().join("cuda.py"), include_str!("cuda.py")).expect("writable");
        let file = folder.path().join("libcuda.so.550.54.15");
        let mut compiler = Command::new("cc");
        compiler.args(["-O1", "-shared", "-fPIC", "-fcf-protection=none"]);
        compiler.arg("-Wl,-soname,libcuda.so.1").arg("-o").arg(&file).arg(&source);
        if Command::new("cc").arg("--version").output().is_err() {
            not_tested("there is no C compiler");
            return None;
        }
        let (status, told) = Process::finish(&mut compiler).await;
        assert!(status.success(), "{told:?}");
        let link = folder.path().join("libcuda.so.1");
        std::os::unix::fs::symlink(file.file_name().expect("a name"), link).expect("writable");
        Some(Library { folder, _alone: ALONE.lock().await })
    }

    fn file(&self) -> PathBuf {
        self.folder.path().join("libcuda.so.1")
    }

    /// A program that has not loaded it yet, started through others (`unshare`, say).
    fn program(&self, through: &[&str]) -> App {
        let python = std::env::var("OUTRIGGER_PYTHON").unwrap_or_else(|_| "python3".to_owned());
        let script = self.folder.path().join("cuda.py");
        let words = through.iter().map(AsRef::as_ref);
        let mut words = words.chain([python.as_ref(), script.as_os_str()]);
        let mut command = Command::new(words.next().expect("at least the interpreter"));
        command.args(words).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().expect("python can be run");
        let told = BufReader::new(child.stdout.take().expect("piped"));
        let tell = child.stdin.take().expect("piped");
        let mut app = App { child, tell, told, pid: 0 };
        app.pid = app.hear()["pid"].as_u64().expect("a number");
        app
    }

    /// A program that has loaded it.
    fn app(&self) -> App {
        let mut app = self.program(&[]);
        app.load(&self.file());
        app
    }
}

/// A program that calls the library when it is told to.
struct App {
    child: Child,
    tell: ChildStdin,
    told: BufReader<ChildStdout>,
    pid: u64,
}

impl App {
    fn hear(&mut self) -> Value {
        let mut line = String::new();
        self.told.read_line(&mut line).expect("the program is there");
        serde_json::from_str(&line).expect("an object, unless it has failed and said why")
    }

    fn ask(&mut self, what: &Value) -> Value {
        writeln!(self.tell, "{what}").expect("the program listens");
        self.hear()
    }

    fn load(&mut self, path: &Path) {
        self.ask(&json!({ "do": "load", "path": path }));
    }

    /// Calls a function, and gives the mean of how long that took in seconds.
    fn call(&mut self, name: &str, args: &[u64], times: u32) -> f64 {
        let told = self.ask(&json!({ "do": "call", "name": name, "args": args, "times": times }));
        told["mean"].as_f64().expect("a number")
    }

    fn code(&mut self, name: &str) -> String {
        let told = self.ask(&json!({ "do": "code", "name": name }));
        told["code"].as_str().expect("bytes").to_owned()
    }

    fn cost(&mut self, name: &str) -> f64 {
        let told = self.ask(&json!({ "do": "cost", "name": name, "rounds": 40, "calls": 20_000 }));
        told["nanos"].as_f64().expect("a number")
    }
}

impl Drop for App {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn watching(cuda: &str) -> String {
    format!(
        "backends: {{ app: {{ endpoints: ['127.0.0.1:9'] }} }}\nroutes: [{{ backend: app }}]\n\
         drain: {{ delay: 0s }}\nprobes: {{ cuda: {cuda} }}\n"
    )
}

async fn await_processes(proxy: &Proxy, count: u32) {
    let count = f64::from(count);
    proxy.await_metrics(|it| it.get("outrigger_gpu_api_processes", &[]) == count).await;
}

/// The processes that the proxy says it watches.
async fn watched(proxy: &Proxy) -> Vec<u64> {
    let page = proxy.admin_get("/probes").await.json();
    let processes = page["cuda"]["processes"].as_array().expect("a list").clone();
    processes.iter().map(|process| process["pid"].as_u64().expect("a number")).collect()
}

fn calls(metrics: &Metrics, function: &str) -> f64 {
    metrics.get("outrigger_gpu_api_call_seconds_count", &[("function", function)])
}

fn mean(metrics: &Metrics, function: &str) -> f64 {
    let sum = metrics.get("outrigger_gpu_api_call_seconds_sum", &[("function", function)]);
    sum / calls(metrics, function)
}

async fn await_calls(proxy: &Proxy, function: &str, count: u32) -> Metrics {
    proxy.await_metrics(|metrics| calls(metrics, function) >= f64::from(count)).await
}

#[tokio::test]
async fn calls_are_counted_and_timed_as_the_caller_does() {
    let Some(library) = Library::build().await else { return };
    let mut app = library.app();
    let proxy = Proxy::start(&watching("true")).await;
    await_processes(&proxy, 1).await;
    assert_eq!(watched(&proxy).await, [app.pid]);
    let mut told = String::new();
    let timed: [(&str, &str, &[u64], u32); 4] = [
        ("cuStreamSynchronize", "cuStreamSynchronize", &[2 * MS], 100),
        ("cuCtxSynchronize", "cuCtxSynchronize", &[MS / 5], 200),
        ("cuMemcpyDtoH_v2", "cuMemcpyDtoH", &[0, 5 * MS, 4096], 40),
        ("cuMemcpyHtoDAsync_v2_ptsz", "cuMemcpyHtoDAsync", &[0, 0, 1 << 33], 1000),
    ];
    for (symbol, function, args, times) in timed {
        let own = app.call(symbol, args, times);
        let metrics = await_calls(&proxy, function, times).await;
        assert_eq!(calls(&metrics, function), f64::from(times), "{function}");
        let (seen, tolerated) = (mean(&metrics, function), 0.01_f64.max(20e-6 / own));
        let _ =
            writeln!(told, "{function}: kernel {:.1} us, caller {:.1} us", seen * 1e6, own * 1e6);
        assert!((seen / own - 1.0).abs() <= tolerated, "{told}");
    }
    let metrics = proxy.metrics().await;
    let bytes = |function| metrics.get("outrigger_gpu_api_bytes_total", &[("function", function)]);
    assert_eq!(bytes("cuMemcpyDtoH"), 40.0 * 4096.0);
    assert_eq!(bytes("cuMemcpyHtoDAsync"), 1000.0 * f64::from(1 << 30) * 8.0);
    assert_eq!(metrics.get("outrigger_probe_lost_total", &[]), 0.0);
    let waits = proxy.admin_get("/probes").await.json()["cuda"]["waits"].as_u64();
    assert_eq!(waits, Some(340), "those that took longer than 100 us, of functions that wait");
    let _ = write!(std::io::stderr(), "{told}");
}

#[tokio::test]
async fn bytes_are_those_of_calls_that_succeeded_and_nested_calls_are_calls() {
    let Some(library) = Library::build().await else { return };
    let mut app = library.app();
    let proxy = Proxy::start(&watching("{ launches: true }")).await;
    await_processes(&proxy, 1).await;
    app.call("cuMemAlloc_v2", &[0, 1000], 10);
    app.call("cuMemAlloc_v2", &[0, 1 << 41], 3);
    app.call("cuMemAlloc", &[0, 7], 5);
    app.call("cuLaunchKernel", &[0], 12);
    app.call("cuUnknown", &[0], 1);
    app.call("cuGraphLaunch", &[20], 2);
    let metrics = await_calls(&proxy, "cuGraphLaunch", 40).await;
    assert_eq!(calls(&metrics, "cuGraphLaunch"), 40.0, "each of those that call themselves");
    let of = |metric: &str, function| metrics.get(metric, &[("function", function)]);
    assert_eq!(calls(&metrics, "cuMemAlloc"), 10.0 + 3.0 + 5.0 * 2.0);
    assert_eq!(of("outrigger_gpu_api_failed_total", "cuMemAlloc"), 3.0);
    assert_eq!(of("outrigger_gpu_api_bytes_total", "cuMemAlloc"), 10_000.0 + 2.0 * 35.0);
    assert_eq!(of("outrigger_gpu_api_launches_total", "cuLaunchKernel"), 12.0);
    assert!(!metrics.text.contains("cuUnknown"), "{}", metrics.text);
    assert_eq!(metrics.get("outrigger_probe_lost_total", &[]), 0.0);
}

#[tokio::test]
async fn processes_are_found_whenever_they_begin_load_or_fork() {
    let Some(library) = Library::build().await else { return };
    let proxy = Proxy::start(&watching("true")).await;
    let mut app = library.program(&[]);
    // A round later it is known, and has no library yet.
    let mut first = library.app();
    await_processes(&proxy, 1).await;
    assert_eq!(watched(&proxy).await, [first.pid]);
    app.load(&library.file());
    await_processes(&proxy, 2).await;
    let child = first.ask(&json!({ "do": "fork" }))["pid"].as_u64().expect("a number");
    await_processes(&proxy, 3).await;
    let mut expected = vec![app.pid, first.pid, child];
    expected.sort_unstable();
    assert_eq!(watched(&proxy).await, expected);
    first.call("cuEventSynchronize", &[MS], 20);
    let threads = json!({ "do": "call", "name": "cuEventSynchronize", "args": [MS], "times": 20, "threads": 4 });
    app.ask(&threads);
    let metrics = await_calls(&proxy, "cuEventSynchronize", 100).await;
    assert_eq!(calls(&metrics, "cuEventSynchronize"), 100.0, "the child's and all threads'");
    drop(app);
    await_processes(&proxy, 2).await;
}

#[tokio::test]
async fn a_function_that_would_be_single_stepped_is_refused_by_name() {
    let Some(library) = Library::build().await else { return };
    let mut app = library.app();
    let proxy = Proxy::start(&watching("true")).await;
    await_processes(&proxy, 1).await;
    let line = proxy.await_log("cuMemFree").await;
    assert!(line.contains("5 to 26 us") && line.contains("single_step: true"), "{line}");
    let refused = ("outrigger_gpu_api_refused", [("function", "cuMemFree")]);
    let metrics = proxy.metrics().await;
    assert_eq!(metrics.values(refused.0, "function"), ["cuMemFree"]);
    assert!(app.code("cuMemFree_v2").starts_with("4889ff"), "nothing is there");
    let (_, told) = Process::finish(Command::new(program()).arg("doctor")).await;
    let found = told.iter().find(|line| line.contains("libcuda.so.550.54.15"));
    assert!(found.is_some_and(|line| line.contains("refused: cuMemFree")), "{told:?}");
    drop(proxy);
    let proxy = Proxy::start(&watching("{ single_step: true }")).await;
    await_processes(&proxy, 1).await;
    app.call("cuMemFree_v2", &[0], 10);
    let metrics = await_calls(&proxy, "cuMemFree", 10).await;
    assert!(!metrics.has(refused.0, &refused.1), "{}", metrics.text);
}

#[tokio::test]
async fn the_switch_takes_the_probes_out_at_once() {
    let Some(library) = Library::build().await else { return };
    let mut app = library.app();
    let untouched = app.code("cuEventSynchronize");
    let proxy = Proxy::start(&watching("true")).await;
    await_processes(&proxy, 1).await;
    app.call("cuEventSynchronize", &[0], 10);
    await_calls(&proxy, "cuEventSynchronize", 10).await;
    assert_ne!(app.code("cuEventSynchronize"), untouched, "a breakpoint");
    let switch = async |to: &str| {
        let answer = Call::post(&format!("/probes/cuda/{to}")).send(proxy.admin()).await;
        assert_eq!(answer.status, 200, "{}", answer.text());
        answer.json()
    };
    assert_eq!(switch("off").await, json!({ "on": false, "changed": true }));
    assert_eq!(app.code("cuEventSynchronize"), untouched, "when it has answered");
    let metrics = proxy.metrics().await;
    assert_eq!(metrics.get("outrigger_probe_running", &[("probe", "cuda")]), 0.0);
    assert_eq!(metrics.get("outrigger_gpu_api_processes", &[]), 0.0);
    app.call("cuEventSynchronize", &[0], 1000);
    assert_eq!(switch("off").await["changed"], false);
    assert_eq!(switch("on").await, json!({ "on": true, "changed": true }));
    await_processes(&proxy, 1).await;
    app.call("cuEventSynchronize", &[0], 5);
    let metrics = await_calls(&proxy, "cuEventSynchronize", 15).await;
    assert_eq!(calls(&metrics, "cuEventSynchronize"), 15.0, "none of those while it was off");
}

#[tokio::test]
async fn a_wait_that_hangs_is_seen_while_it_does() {
    let Some(library) = Library::build().await else { return };
    let mut app = library.app();
    let proxy = Proxy::start(&watching("true")).await;
    await_processes(&proxy, 1).await;
    let oldest = |metrics: &Metrics| metrics.get("outrigger_gpu_api_oldest_call_seconds", &[]);
    assert_eq!(oldest(&proxy.metrics().await), 0.0);
    let began = Instant::now();
    app.ask(&json!({ "do": "begin", "name": "cuCtxSynchronize", "args": [3600 * 1000 * MS] }));
    let metrics = proxy.await_metrics(|metrics| oldest(metrics) > 1.5).await;
    assert!(oldest(&metrics) <= began.elapsed().as_secs_f64(), "{}", oldest(&metrics));
    assert_eq!(calls(&metrics, "cuCtxSynchronize"), 0.0, "it has not returned");
    drop(app);
    let metrics = proxy.await_metrics(|metrics| oldest(metrics) == 0.0).await;
    assert_eq!(metrics.get("outrigger_gpu_api_processes", &[]), 0.0, "it ended with its process");
}

#[tokio::test]
async fn another_network_namespace_is_left_alone_and_another_mount_namespace_is_not() {
    let Some(library) = Library::build().await else { return };
    let mut foreign = library.program(&["unshare", "--net"]);
    foreign.load(&library.file());
    let untouched = foreign.code("cuEventSynchronize");
    // Only there the library is under this path.
    let hidden = tempfile::tempdir().expect("a temporary directory");
    let hidden_file = hidden.path().join("libcuda.so.1");
    let script = format!(
        "mount -t tmpfs none '{}' && cp '{}' '{}' && exec \"$@\"",
        hidden.path().display(),
        library.file().display(),
        hidden_file.display()
    );
    let mut inner = library.program(&["unshare", "--mount", "sh", "-c", &script, "-"]);
    inner.load(&hidden_file);
    assert!(!hidden_file.exists(), "not visible from here");
    let proxy = Proxy::start(&watching("true")).await;
    // All were there in the first round.
    await_processes(&proxy, 1).await;
    assert_eq!(watched(&proxy).await, [inner.pid]);
    assert_eq!(foreign.code("cuEventSynchronize"), untouched);
    foreign.call("cuEventSynchronize", &[0], 100);
    inner.call("cuEventSynchronize", &[0], 7);
    let metrics = await_calls(&proxy, "cuEventSynchronize", 7).await;
    assert_eq!(calls(&metrics, "cuEventSynchronize"), 7.0);
}

#[tokio::test]
async fn a_proxy_that_is_killed_leaves_the_application_as_it_was() {
    let Some(library) = Library::build().await else { return };
    let mut app = library.app();
    let untouched = app.code("cuEventSynchronize");
    let proxy = Proxy::start(&watching("true")).await;
    await_processes(&proxy, 1).await;
    assert_ne!(app.code("cuEventSynchronize"), untouched, "a breakpoint");
    let (programs, maps) = (held(proxy.pid(), "prog_id"), held(proxy.pid(), "map_id"));
    assert!(still_there(&programs, &maps) >= 7, "what is there can be seen");
    // One is under way, and returns afterwards.
    app.ask(&json!({ "do": "begin", "name": "cuEventSynchronize", "args": [500 * MS] }));
    proxy.signal(Signal::SIGKILL);
    proxy.wait_exit(Duration::from_secs(10)).await;
    // The kernel takes them away when nobody can run them any more, and tells nobody.
    let mut pause = tokio::time::interval(Duration::from_millis(20));
    let patience = Instant::now() + Duration::from_secs(10);
    while still_there(&programs, &maps) > 0 || app.code("cuEventSynchronize") != untouched {
        assert!(Instant::now() < patience, "{programs:?} {maps:?} are left");
        pause.tick().await;
    }
    assert!(app.call("cuEventSynchronize", &[600 * MS], 1) >= 0.6, "it goes on");
    assert_eq!(app.child.try_wait().expect("ours").map(|status| status.code()), None);
}

#[tokio::test]
async fn without_the_capabilities_it_says_which() {
    if is_impossible("cuda") {
        return;
    }
    let without = "--bounding-set=-sys_admin,-sys_ptrace";
    let mut command = Command::new("setpriv");
    let (status, told) = Process::finish(command.arg(without).arg(program()).arg("doctor")).await;
    assert!(status.success(), "nothing is asked for: {told:?}");
    let line = told.iter().find(|line| line.starts_with("cuda")).expect("a line of each probe");
    assert!(line.contains("not permitted without CAP_SYS_ADMIN and CAP_SYS_PTRACE"), "{line}");
}

/// Not a test of anything but a measurement: what the probes add to a call, by how a function begins.
#[tokio::test]
#[ignore = "takes a quiet machine; prints figures for ebpf/README.md"]
async fn what_a_call_costs() {
    let Some(library) = Library::build().await else { return };
    let mut app = library.app();
    let functions = [
        ("cuMemcpyHtoDAsync_v2_ptsz", "nop5, timed"),
        ("cuEventSynchronize", "push, wait"),
        ("cuMemAlloc_v2", "endbr64 and push, timed"),
        ("cuLaunchKernel", "push, counted"),
        ("cuMemFree_v2", "mov, single-stepped"),
    ];
    let mut told = String::new();
    let without = functions.map(|(symbol, _)| app.cost(symbol));
    let proxy = Proxy::start(&watching("{ launches: true, single_step: true }")).await;
    await_processes(&proxy, 1).await;
    let with = functions.map(|(symbol, _)| app.cost(symbol));
    for (at, (_, what)) in functions.iter().enumerate() {
        let (without, with) = (without[at], with[at]);
        let added = with - without;
        let _ = writeln!(told, "{what}: {without:.1} ns, {with:.1} ns, {added:.0} ns more");
    }
    let _ = writeln!(std::io::stderr(), "{told}{}", proxy.await_log("are timed").await);
}
