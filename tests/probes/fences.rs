//! The probe of fences, in the real kernel: here, where no GPU has any, that each part runs or says why not; in an emulated
//! machine (`older.rs`), whose kernel has the module vgem, on fences that are signaled as late as we say.

use std::path::Path;
use std::process::Command;

use outrigger_tests::harness::{Call, Launch, Process, Proxy};
use outrigger_tests::sim::{Options, Simulator};

use crate::driver::{WITH_TRACEFS, WITHOUT_TRACEFS, config, inside};
use crate::guest::held;
use crate::{assert_nothing_lost, is_impossible};

const FENCES: &str = "waits for fences are seen by the tracepoints of fences";

/// What is said of the scheduler where its tracepoints can be read.
fn of_the_scheduler() -> &'static str {
    if Path::new("/sys/module/gpu_sched").exists() {
        "jobs are seen by the DRM scheduler's tracepoints"
    } else {
        "no jobs of the DRM scheduler: the kernel has no tracepoint `drm_sched_job_done` and no tracepoint \
         `drm_sched_process_job`; is there while a module has it that uses it"
    }
}

const UNREADABLE: &str =
    "no jobs of the DRM scheduler: the tracefs at /sys/kernel/tracing cannot be read";

#[tokio::test]
async fn the_doctor_says_of_each_part_whether_it_would_run() {
    if is_impossible("fences") {
        return;
    }
    let folder = tempfile::tempdir().expect("a temporary directory");
    for (before, jobs) in [(WITH_TRACEFS, of_the_scheduler()), (WITHOUT_TRACEFS, UNREADABLE)] {
        let mut doctor = Command::new(inside(folder.path(), before));
        let (status, told) = Process::finish(doctor.arg("doctor")).await;
        assert!(status.success(), "{told:?}");
        let mut lines = told.iter().skip_while(|line| !line.starts_with("fences")).skip(1);
        assert!(lines.next().is_some_and(|line| line.contains(FENCES)), "{told:#?}");
        assert!(lines.next().is_some_and(|line| line.contains(jobs)), "{told:#?}");
    }
}

#[tokio::test]
async fn waits_are_watched_where_the_scheduler_is_not() {
    if is_impossible("fences") {
        return;
    }
    let simulator = Simulator::start(Options::named("app").fast());
    let folder = tempfile::tempdir().expect("a temporary directory");
    let config = config(&simulator.addr.to_string(), "fences: true");
    let binary = inside(folder.path(), WITHOUT_TRACEFS);
    let proxy = Launch::new(&config).binary(&binary).start().await;
    proxy.await_log(FENCES).await;
    proxy.await_log(UNREADABLE).await;
    let count = "outrigger_gpu_fence_wait_seconds_count";
    let metrics = proxy.await_metrics(|metrics| metrics.has(count, &[])).await;
    assert_eq!(metrics.get("outrigger_probe_running", &[("probe", "fences")]), 1.0);
    assert!(!metrics.has("outrigger_gpu_job_run_seconds_count", &[]), "{}", metrics.text);
    assert_eq!(held(proxy.pid(), "prog_id").len(), 3);
    assert_eq!(Call::get("/echo").send(proxy.address()).await.status, 200);
    assert_nothing_lost(&metrics);
}

/// In the machine that is emulated: run there by name.
mod vgem {
    use std::io::{BufRead, BufReader, Lines, Read, Write};
    use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
    use std::process::{Child, ChildStdin, ChildStdout, Stdio};
    use std::thread;

    use outrigger_tests::harness::Metrics;
    use serde_json::Value;

    use super::*;

    const COUNT: &str = "outrigger_gpu_fence_wait_seconds_count";

    /// What the clock of programs may be off against that of everybody else while it is adjusted, in nanoseconds.
    const CLOCK: f64 = 10_000.0;

    /// The program of `fence.c`.
    struct Waiter {
        child: Child,
        tell: ChildStdin,
        told: Lines<BufReader<ChildStdout>>,
        descriptor: String,
    }

    impl Waiter {
        fn start(arguments: &[&str]) -> Self {
            let mut command = Command::new("/fence");
            command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped());
            let mut child = command.spawn().expect("it is in the archive");
            let mut told = BufReader::new(child.stdout.take().expect("piped")).lines();
            let tell = child.stdin.take().expect("piped");
            let ready = told.next().expect("a word").expect("text");
            let descriptor = ready.strip_prefix("READY ").expect(&ready).to_owned();
            Waiter { child, tell, told, descriptor }
        }

        /// Waits once for so many milliseconds; how many nanoseconds it took at least and at most, and with all calls.
        fn wait(&mut self, millis: u32) -> [f64; 3] {
            writeln!(self.tell, "{millis}").expect("it reads");
            let answer = self.told.next().expect("an answer").expect("text");
            numbers(&answer)
        }
    }

    fn numbers(text: &str) -> [f64; 3] {
        let mut numbers = text.split(' ').map(|nanos| nanos.parse().expect(text));
        std::array::from_fn(|_| numbers.next().expect(text))
    }

    impl Drop for Waiter {
        fn drop(&mut self) {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }

    #[tokio::test]
    #[ignore = "needs vgem: run in an emulated machine by older.rs"]
    async fn waits_are_counted_exactly_and_are_as_long_as_the_caller_says() {
        let simulator = Simulator::start(Options::named("app").fast());
        let proxy = Proxy::start(&config(&simulator.addr.to_string(), "fences: true")).await;
        proxy.await_log(FENCES).await;
        let mut stranger = Waiter::start(&["apart"]);
        let (mut waiter, mut bounds) = (Waiter::start(&[]), [0.0, 0.0]);
        let waits = [[1; 20].as_slice(), &[30; 5], &[200]].concat();
        for millis in &waits {
            stranger.wait(1);
            let told = waiter.wait(*millis);
            assert!(told[0] >= f64::from(*millis) * 1e6 && told.is_sorted(), "{told:?}");
            bounds = [bounds[0] + told[0], bounds[1] + told[1]];
        }
        let all = waits.len() as f64;
        let metrics = proxy.await_metrics(|metrics| metrics.get(COUNT, &[]) >= all).await;
        assert_eq!(metrics.get(COUNT, &[]), all, "the stranger's are not among them");
        let [least, most] = bounds;
        let seen = metrics.get("outrigger_gpu_fence_wait_seconds_sum", &[]) * 1e9;
        let _ = writeln!(std::io::stderr(), "{all} waits, ns: {least} {seen} {most}");
        assert!(seen + all * CLOCK >= least && seen <= most + all * CLOCK, "{least} {seen} {most}");
        let short = [("le", "0.067108864")];
        let bucket = metrics.get("outrigger_gpu_fence_wait_seconds_bucket", &short);
        assert!(bucket > 0.0 && bucket < all, "one took 200 ms: {}", metrics.text);
        assert_nothing_lost(&metrics);
    }

    /// An HTTP server that waits for a fence in each answer, which says what [`Waiter::wait`] does.
    fn serving(mut waiter: Waiter, millis: u32) -> SocketAddr {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
        let address = listener.local_addr().expect("an address");
        thread::spawn(move || {
            for mut stream in listener.incoming().map_while(Result::ok) {
                while take(&mut stream) {
                    let [least, most, all] = waiter.wait(millis);
                    let body = format!("{least} {most} {all}");
                    let length = body.len();
                    let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {length}\r\n\r\n");
                    if stream.write_all((head + &body).as_bytes()).is_err() {
                        break;
                    }
                }
            }
        });
        address
    }

    /// Reads a request without a body; whether there was one.
    fn take(stream: &mut TcpStream) -> bool {
        let mut read = Vec::new();
        let mut piece = [0; 4096];
        while !read.ends_with(b"\r\n\r\n") {
            match stream.read(&mut piece) {
                Ok(length @ 1..) => read.extend_from_slice(&piece[..length]),
                _ => return false,
            }
        }
        true
    }

    /// The requests of this proxy are told how long their server waited, known by this method.
    async fn are_told(proxy: &Proxy, count: usize, method: &str) {
        for at in 0..count {
            let body = Call::get("/").send(proxy.address()).await.text();
            let [least, wait, all] = numbers(&body);
            // The driver's calls are those around the wait, too.
            let most = if method == "driver" { all } else { wait };
            let line = proxy.await_access(at + 1).await.remove(at);
            let told = line["gpu_wait_ms"].as_f64().expect("a number") * 1e6;
            assert!(told + CLOCK >= least && told <= most + CLOCK, "{least} {most} {line:#}");
            let how = (&line["gpu_wait_among"], &line["gpu_wait_method"]);
            assert_eq!(how, (&1.into(), &Value::from(method)));
        }
        let waits = "outrigger_app_gpu_wait_seconds_count";
        let exact = [("attribution", "exact"), ("method", method)];
        assert_eq!(proxy.metrics().await.get(waits, &exact), count as f64);
    }

    #[tokio::test]
    #[ignore = "needs vgem: run in an emulated machine by older.rs"]
    async fn a_request_is_told_how_long_a_fence_was_waited_for() {
        let server = serving(Waiter::start(&[]), 10);
        let probes = "requests: true, fences: true";
        let proxy = Proxy::start(&config(&server.to_string(), probes)).await;
        proxy.await_log(FENCES).await;
        are_told(&proxy, 10, "fence").await;
    }

    #[tokio::test]
    #[ignore = "needs vgem: run in an emulated machine by older.rs"]
    async fn a_wait_inside_a_call_into_the_driver_counts_once() {
        let waiter = Waiter::start(&[]);
        // The buffer as a device, so that the call which waits is one into a driver.
        let device = format!("/proc/{}/fd/{}", waiter.child.id(), waiter.descriptor);
        let server = serving(waiter, 30);
        let probes = format!("requests: true, fences: true, driver: {{ devices: ['{device}'] }}");
        let proxy = Proxy::start(&config(&server.to_string(), &probes)).await;
        proxy.await_log("calls into the GPU driver are seen").await;
        proxy.await_log(FENCES).await;
        are_told(&proxy, 10, "driver").await;
        let calls = "outrigger_gpu_driver_call_seconds_count";
        // Beside those that put the fence there and signal it.
        let that_wait = [("command", "0x62/0x00")];
        let all = |metrics: &Metrics| [metrics.get(COUNT, &[]), metrics.get(calls, &that_wait)];
        let seen = proxy.await_metrics(|metrics| all(metrics).iter().all(|it| *it >= 10.0)).await;
        assert_eq!(all(&seen), [10.0, 10.0], "{}", seen.text);
    }

    #[tokio::test]
    #[ignore = "needs gpu-sched: run in an emulated machine by older.rs"]
    async fn jobs_are_watched_as_soon_as_there_is_a_scheduler() {
        let simulator = Simulator::start(Options::named("app").fast());
        let proxy = Proxy::start(&config(&simulator.addr.to_string(), "fences: true")).await;
        proxy.await_log("no jobs of the DRM scheduler: the kernel has no tracepoint").await;
        assert_eq!(held(proxy.pid(), "prog_id").len(), 3);
        let status = Command::new("insmod").arg("/modules/gpu-sched.ko").status();
        assert!(status.expect("it is in the archive").success());
        proxy.await_log("jobs are seen by the DRM scheduler's tracepoints").await;
        assert_eq!(held(proxy.pid(), "prog_id").len(), 6);
        assert!(!proxy.log().iter().any(|line| line.contains("panicked")), "{:#?}", proxy.log());
    }
}
