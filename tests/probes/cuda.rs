//! The probe of the GPU's user-space driver, in the real kernel: a stand-in library that is built here, called by a program
//! with a clock of its own.
//!
//! There are two ways of hanging programs into a process, and each test is tried in both ([`Way`]), but for those of what only
//! one of them can.

use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use outrigger_tests::harness::{Call, Launch, Metrics, Process, Proxy, program};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::sync::{Mutex, MutexGuard};

use crate::guest::{held, script, still_there};
use crate::{DOCTOR, is_impossible, not_tested};

/// What a millisecond is to the stand-in.
const MS: u64 = 1_000_000;

/// Each proxy finds every process of the namespace that has such a library, also that of another test.
static ALONE: Mutex<()> = Mutex::const_new(());

/// How programs hang in a process.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    /// By one link at all functions.
    Links,
    /// By a perf event at each, as in kernels before 6.10.
    Events,
}

impl Way {
    /// What the proxy says of it.
    fn told(self) -> &'static str {
        match self {
            Way::Links => "uprobe_multi",
            Way::Events => "by a perf event for each function",
        }
    }

    /// Starts a proxy that takes this way. For the second it is told that the kernel is an older one.
    async fn start(self, library: &Library, cuda: &str) -> Proxy {
        let launch = Launch::new(&watching(cuda));
        let proxy = match self {
            Way::Links => launch.start().await,
            Way::Events => launch.binary(&older(library.folder.path(), &program())).start().await,
        };
        proxy.await_log(self.told()).await;
        proxy
    }
}

/// A program that runs another where the kernel says that it is an older one.
fn older(folder: &Path, inner: &Path) -> PathBuf {
    let release = folder.join("osrelease");
    std::fs::write(&release, "6.9.12\n").expect("writable");
    let text = format!(
        "exec unshare --mount --propagation private \\\n\
         sh -c 'mount --bind \"$0\" /proc/sys/kernel/osrelease && exec \"$@\"' '{}' '{}' \"$@\"",
        release.display(),
        inner.display()
    );
    script(&folder.join("older"), &text)
}

/// A program that runs the proxy with fewer capabilities: `bounds` as `setpriv` has them.
fn bounded(folder: &Path, bounds: &str) -> PathBuf {
    let text = format!("exec setpriv --bounding-set={bounds} '{}' \"$@\"", program().display());
    script(&folder.join("bounded"), &text)
}

/// Makes tests in both ways of these.
macro_rules! in_both_ways {
    ($($test:ident),* $(,)?) => {
        mod links {
            $(#[tokio::test]
            async fn $test() {
                super::$test(super::Way::Links).await;
            })*
        }
        mod events {
            $(#[tokio::test]
            async fn $test() {
                super::$test(super::Way::Events).await;
            })*
        }
    };
}

in_both_ways!(
    calls_are_counted_and_timed_as_the_caller_does,
    bytes_are_those_of_calls_that_succeeded_and_nested_calls_are_calls,
    processes_are_found_whenever_they_begin_load_or_fork,
    a_child_is_not_its_parent,
    a_function_that_would_be_single_stepped_is_refused_by_name,
    the_switch_takes_the_probes_out_at_once,
    a_wait_that_hangs_is_seen_while_it_does,
    another_network_namespace_is_left_alone_and_another_mount_namespace_is_not,
    a_proxy_that_is_killed_leaves_the_application_as_it_was,
);

/// The stand-in for a GPU's library, under the names that drivers give it. There is one at a time.
struct Library {
    folder: TempDir,
    _alone: MutexGuard<'static, ()>,
}

impl Library {
    /// Builds it; `None`, said aloud, when that is impossible here.
    async fn build(way: Way) -> Option<Self> {
        Self::build_with(way, &[]).await
    }

    async fn build_with(way: Way, flags: &[&str]) -> Option<Self> {
        if is_impossible("cuda") {
            return None;
        }
        if way == Way::Links && !DOCTOR.contains(way.told()) {
            not_tested("the kernel has no links at many places of user space");
            return None;
        }
        let folder = tempfile::tempdir().expect("a temporary directory");
        let source = folder.path().join("cuda.c");
        std::fs::write(&source, include_str!("cuda.c")).expect("writable");
        std::fs::write(folder.path().join("cuda.py"), include_str!("cuda.py")).expect("writable");
        let file = folder.path().join("libcuda.so.550.54.15");
        let mut compiler = Command::new("cc");
        compiler.args(["-O1", "-shared", "-fPIC", "-fcf-protection=none"]).args(flags);
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

async fn calls_are_counted_and_timed_as_the_caller_does(way: Way) {
    let Some(library) = Library::build(way).await else { return };
    let mut app = library.app();
    // Older kernels are not known to do a nop themselves, with which two of these begin.
    let proxy = way.start(&library, "{ single_step: true }").await;
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

async fn bytes_are_those_of_calls_that_succeeded_and_nested_calls_are_calls(way: Way) {
    let Some(library) = Library::build(way).await else { return };
    let mut app = library.app();
    let proxy = way.start(&library, "{ launches: true }").await;
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

async fn processes_are_found_whenever_they_begin_load_or_fork(way: Way) {
    let Some(library) = Library::build(way).await else { return };
    let proxy = way.start(&library, "true").await;
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

async fn a_child_is_not_its_parent(way: Way) {
    let Some(library) = Library::build(way).await else { return };
    let [mut parent, mut other] = [library.app(), library.app()];
    let proxy = way.start(&library, "true").await;
    await_processes(&proxy, 2).await;
    parent.call("cuEventSynchronize", &[0], 10);
    // It has all that its parent had in its memory, and is in no network namespace that the proxy looks into.
    parent.ask(&json!({ "do": "fork", "away": true }));
    parent.call("cuEventSynchronize", &[0], 1000);
    other.call("cuEventSynchronize", &[0], 5);
    other.call("cuCtxSynchronize", &[0], 1);
    let metrics = await_calls(&proxy, "cuCtxSynchronize", 1).await;
    assert_eq!(calls(&metrics, "cuEventSynchronize"), 15.0, "none of the child's");
    assert_eq!(metrics.get("outrigger_probe_lost_total", &[]), 0.0);
}

async fn a_function_that_would_be_single_stepped_is_refused_by_name(way: Way) {
    let Some(library) = Library::build(way).await else { return };
    let mut app = library.app();
    let proxy = way.start(&library, "true").await;
    await_processes(&proxy, 1).await;
    let line = proxy.await_log("function=\"cuMemFree\"").await;
    assert!(line.contains("5 to 26 us") && line.contains("single_step: true"), "{line}");
    let refused = ("outrigger_gpu_api_refused", [("function", "cuMemFree")]);
    let metrics = proxy.metrics().await;
    let expected: &[&str] = match way {
        Way::Links => &["cuMemFree"],
        // They begin with a nop, which older kernels do not do themselves.
        Way::Events => &["cuMemFree", "cuMemcpyHtoDAsync", "cuStreamSynchronize"],
    };
    assert_eq!(metrics.values(refused.0, "function"), expected);
    assert!(app.code("cuMemFree_v2").starts_with("4889ff"), "nothing is there");
    let (_, told) = Process::finish(Command::new(program()).arg("doctor")).await;
    let found = told.iter().find(|line| line.contains("libcuda.so.550.54.15"));
    assert!(found.is_some_and(|line| line.contains("refused: cuMemFree")), "{told:?}");
    drop(proxy);
    let proxy = way.start(&library, "{ single_step: true }").await;
    await_processes(&proxy, 1).await;
    app.call("cuMemFree_v2", &[0], 10);
    let metrics = await_calls(&proxy, "cuMemFree", 10).await;
    assert!(!metrics.has(refused.0, &refused.1), "{}", metrics.text);
}

async fn the_switch_takes_the_probes_out_at_once(way: Way) {
    let Some(library) = Library::build(way).await else { return };
    let mut app = library.app();
    let untouched = app.code("cuEventSynchronize");
    let proxy = way.start(&library, "true").await;
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

async fn a_wait_that_hangs_is_seen_while_it_does(way: Way) {
    let Some(library) = Library::build(way).await else { return };
    let mut app = library.app();
    let proxy = way.start(&library, "true").await;
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

async fn another_network_namespace_is_left_alone_and_another_mount_namespace_is_not(way: Way) {
    let Some(library) = Library::build(way).await else { return };
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
    // It has the very file that the foreign one has.
    let mut own = library.app();
    let proxy = way.start(&library, "true").await;
    // All were there in the first round.
    await_processes(&proxy, 2).await;
    let mut expected = [inner.pid, own.pid];
    expected.sort_unstable();
    assert_eq!(watched(&proxy).await, expected);
    assert_ne!(own.code("cuEventSynchronize"), untouched, "a breakpoint");
    assert_eq!(foreign.code("cuEventSynchronize"), untouched);
    foreign.call("cuEventSynchronize", &[0], 100);
    inner.call("cuEventSynchronize", &[0], 7);
    own.call("cuEventSynchronize", &[0], 4);
    let metrics = await_calls(&proxy, "cuEventSynchronize", 11).await;
    assert_eq!(calls(&metrics, "cuEventSynchronize"), 11.0);
}

async fn a_proxy_that_is_killed_leaves_the_application_as_it_was(way: Way) {
    let Some(library) = Library::build(way).await else { return };
    let mut app = library.app();
    let untouched = app.code("cuEventSynchronize");
    let proxy = way.start(&library, "true").await;
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
async fn one_link_holds_a_program_at_all_functions_of_a_library() {
    let Some(library) = Library::build(Way::Links).await else { return };
    let app = library.app();
    let proxy = Way::Links.start(&library, "{ launches: true }").await;
    await_processes(&proxy, 1).await;
    assert_eq!(held(proxy.pid(), "link_id").len(), 3, "one for each program");
    let page = proxy.admin_get("/probes").await.json();
    // Eight that are timed, at their beginnings and returns, and one that is counted.
    assert_eq!(page["cuda"]["processes"][0]["probes"], 17);
    let second = library.app();
    await_processes(&proxy, 2).await;
    assert_eq!(held(proxy.pid(), "link_id").len(), 6, "and of each process");
    drop(second);
    await_processes(&proxy, 1).await;
    // They are closed by somebody else, for that may take a while.
    let mut pause = tokio::time::interval(Duration::from_millis(20));
    let patience = Instant::now() + Duration::from_secs(10);
    while held(proxy.pid(), "link_id").len() > 3 {
        assert!(Instant::now() < patience, "they are still there");
        pause.tick().await;
    }
    assert_eq!(watched(&proxy).await, [app.pid]);
}

#[tokio::test]
async fn a_place_that_the_kernel_does_not_take_is_left_out_by_name() {
    let broken = ["-DBROKEN"];
    let Some(library) = Library::build_with(Way::Links, &broken).await else { return };
    let mut app = library.app();
    let untouched = app.code("cuMemHostAlloc");
    let proxy = Way::Links.start(&library, "{ single_step: true }").await;
    let line = proxy.await_log("the kernel takes no probe there").await;
    assert!(line.contains("cuMemHostAlloc"), "{line}");
    await_processes(&proxy, 1).await;
    assert_eq!(app.code("cuMemHostAlloc"), untouched);
    let functions =
        ["cuStreamSynchronize", "cuEventSynchronize", "cuCtxSynchronize", "cuMemFree_v2"];
    for (times, function) in (3..).zip(functions) {
        app.call(function, &[0], times);
        let function = function.trim_end_matches("_v2");
        let metrics = await_calls(&proxy, function, times).await;
        assert_eq!(calls(&metrics, function), f64::from(times), "{function}");
    }
    let metrics = proxy.metrics().await;
    assert_eq!(metrics.values("outrigger_gpu_api_refused", "function"), ["cuMemHostAlloc"]);
    assert_eq!(metrics.get("outrigger_probe_lost_total", &[]), 0.0);
}

/// All that a container is given by `drop: [ALL], add: [BPF, PERFMON, SYS_PTRACE]`.
const THREE: &str = "-all,+cap_39,+cap_38,+cap_19";

#[tokio::test]
async fn three_capabilities_are_enough() {
    let Some(library) = Library::build(Way::Links).await else { return };
    // Somebody else's, with all capabilities.
    let mut app = library.app();
    let binary = bounded(library.folder.path(), THREE);
    let proxy = Launch::new(&watching("true")).binary(&binary).start().await;
    await_processes(&proxy, 1).await;
    let status = std::fs::read_to_string(format!("/proc/{}/status", proxy.pid()));
    assert!(status.expect("a process").contains("CapEff:\t000000c000080000"));
    proxy.await_log(Way::Links.told()).await;
    app.call("cuEventSynchronize", &[MS], 20);
    let metrics = await_calls(&proxy, "cuEventSynchronize", 20).await;
    assert_eq!(calls(&metrics, "cuEventSynchronize"), 20.0);
}

/// What the doctor says of the probe, run by another program.
async fn doctor(through: &Path) -> String {
    let (status, told) = Process::finish(Command::new(through).arg("doctor")).await;
    assert!(status.success(), "nothing is asked for: {told:?}");
    let from = told.iter().position(|line| line.starts_with("cuda")).expect("a line of each probe");
    told[from..].join("\n")
}

#[tokio::test]
async fn without_the_capabilities_it_says_which() {
    if is_impossible("cuda") {
        return;
    }
    let folder = tempfile::tempdir().expect("a temporary directory");
    let folder = folder.path();
    if DOCTOR.contains(Way::Links.told()) {
        let told = doctor(&bounded(folder, "-cap_19,-cap_21,-cap_38,-cap_39")).await;
        assert!(told.contains("without CAP_BPF, CAP_PERFMON and CAP_SYS_PTRACE\n"), "{told}");
        assert!(!told.contains("SYS_ADMIN"), "{told}");
    }
    let told = doctor(&older(folder, &program())).await;
    assert!(told.contains(Way::Events.told()), "{told}");
    let told = doctor(&older(folder, &bounded(folder, "-cap_19,-cap_21"))).await;
    assert!(told.contains("not permitted without CAP_SYS_ADMIN and CAP_SYS_PTRACE\n"), "{told}");
}

/// Not a test of anything but a measurement: what the probes add to a call, by how a function begins, and how long it takes
/// to put them in and to take them out.
#[tokio::test]
#[ignore = "takes a quiet machine; prints figures for ebpf/README.md"]
async fn what_a_call_costs() {
    for way in [Way::Links, Way::Events] {
        let Some(library) = Library::build(way).await else { return };
        let mut told = format!("{}\n", way.told());
        let mut app = library.app();
        let functions = [
            ("cuMemcpyHtoDAsync_v2_ptsz", "nop5, timed"),
            ("cuEventSynchronize", "push, wait"),
            ("cuMemAlloc_v2", "endbr64 and push, timed"),
            ("cuLaunchKernel", "push, counted"),
            ("cuMemFree_v2", "mov, single-stepped"),
        ];
        let without = functions.map(|(symbol, _)| app.cost(symbol));
        let proxy = way.start(&library, "{ launches: true, single_step: true }").await;
        await_processes(&proxy, 1).await;
        let with = functions.map(|(symbol, _)| app.cost(symbol));
        for (at, (_, what)) in functions.iter().enumerate() {
            let (without, with) = (without[at], with[at]);
            let added = with - without;
            let _ = writeln!(told, "{what}: {without:.1} ns, {with:.1} ns, {added:.0} ns more");
        }
        let _ = writeln!(std::io::stderr(), "{told}taken out in ms: {:?}", taken_out(&proxy).await);
        for line in proxy.log().iter().filter(|line| line.contains("are timed")) {
            let _ = writeln!(std::io::stderr(), "{line}");
        }
    }
}

/// How long it takes to take all probes out, in milliseconds, five times; in between they are put in.
async fn taken_out(proxy: &Proxy) -> Vec<u128> {
    let mut took = Vec::new();
    for _ in 0..5 {
        let began = Instant::now();
        Call::post("/probes/cuda/off").send(proxy.admin()).await;
        took.push(began.elapsed().as_millis());
        Call::post("/probes/cuda/on").send(proxy.admin()).await;
        await_processes(proxy, 1).await;
    }
    took
}
