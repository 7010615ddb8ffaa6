//! What the kernel saw of requests, as spans: inside of the attempt, without gaps, and as long as a server's own clock says.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::{Duration, Instant};

use outrigger_tests::harness::{Call, Collector, Proxy, Span};
use outrigger_tests::sim::{Options, Simulator};

use crate::requests::{BLOCKED, blocked_server};
use crate::{following, is_impossible};

/// What the kernel sees of a request, in order.
const STEPS: [&str; 4] = ["wire", "socket wait", "application", "answer"];

fn traced(config: &str, collector: &Collector) -> String {
    format!("{config}tracing: {{ endpoint: '{}', sample: 100% }}\n", collector.endpoint())
}

/// The attempts among these spans, each with what the kernel saw of it.
fn attempts(spans: &[Span]) -> Vec<(&Span, Vec<&Span>)> {
    let steps = |attempt: &Span| {
        let mut inner: Vec<_> = spans.iter().filter(|span| span.parent == attempt.id).collect();
        inner.retain(|span| span.says("outrigger.seen_by") == "kernel");
        inner.sort_by_key(|span| STEPS.iter().position(|step| *step == span.name));
        inner
    };
    let attempts = spans.iter().filter(|span| span.kind == "CLIENT");
    attempts.map(|attempt| (attempt, steps(attempt))).collect()
}

/// Each begins where the one before ended, and none is outside of the attempt.
fn follow_each_other(attempt: &Span, steps: &[&Span]) {
    let names: Vec<&str> = steps.iter().map(|step| &*step.name).collect();
    assert_eq!(names, STEPS, "{attempt:#?} {steps:#?}");
    assert!(
        attempt.start <= steps[0].start && steps[3].end <= attempt.end,
        "{attempt:#?} {steps:#?}"
    );
    for pair in steps.windows(2) {
        assert_eq!(pair[0].end, pair[1].start, "{steps:#?}");
    }
    let sum: u64 = steps.iter().map(|step| step.end - step.start).sum();
    assert_eq!(sum, steps[3].end - steps[0].start);
}

#[tokio::test]
async fn a_blocked_loop_shows_as_a_span_in_the_attempt() {
    if is_impossible("requests") {
        return;
    }
    let (server, seen) = blocked_server();
    let collector = Collector::start().await;
    let proxy = Proxy::start(&traced(&following(server), &collector)).await;
    for _ in 0..20 {
        assert_eq!(Call::get("/").send(proxy.address()).await.status, 200);
    }
    // A request, an attempt and four steps, and the making of the one connection.
    let spans = collector.await_spans(20 * 6 + 1).await;
    let mut errors = Vec::new();
    let mut attempts = attempts(&spans);
    attempts.sort_by_key(|(attempt, _)| attempt.start);
    assert_eq!(attempts.len(), 20);
    for (attempt, steps) in &attempts {
        let seen = seen.recv().expect("the server saw it too");
        follow_each_other(attempt, steps);
        let (waited, worked) = (steps[1].seconds(), steps[2].seconds());
        assert!(waited >= BLOCKED.as_secs_f64(), "{steps:#?}");
        assert_eq!(steps[2].says("app.pid"), std::process::id().to_string());
        assert_eq!(steps[3].says("app.writes"), "1");
        errors.push((waited - seen.waited.as_secs_f64()).abs());
        errors.push((worked - seen.worked.as_secs_f64()).abs());
    }
    errors.sort_by(f64::total_cmp);
    let median = errors[errors.len() / 2];
    let last = &attempts[19].0.trace;
    let last: Vec<Span> = spans.iter().filter(|span| span.trace == *last).cloned().collect();
    let _ = writeln!(std::io::stderr(), "{}median error {:.0} us", Span::tree(&last), median * 1e6);
    assert!(median < 0.001, "the kernel and the server disagree: {errors:?}");
}

#[tokio::test]
async fn a_stream_is_an_answer_with_its_writes() {
    if is_impossible("requests") {
        return;
    }
    let simulator = Simulator::start(Options::named("app").fast());
    let collector = Collector::start().await;
    let proxy = Proxy::start(&traced(&following(simulator.addr), &collector)).await;
    let call = Call::chat("a song").model("m").max_tokens(20).streaming();
    assert_eq!(call.send(proxy.address()).await.status, 200);
    let spans = collector.await_spans(7).await;
    let _ = writeln!(std::io::stderr(), "{}", Span::tree(&spans));
    let attempts = attempts(&spans);
    let [(attempt, steps)] = &attempts[..] else { panic!("one attempt: {spans:#?}") };
    follow_each_other(attempt, steps);
    let writes: u64 = steps[3].says("app.writes").parse().expect("a number");
    assert!(writes > 1 && steps[3].end > steps[3].start, "{steps:#?}");
}

/// Serves one client with answers in pieces, 2 ms apart, so many in each; tells when it had written each, by its own clock.
fn serves_pieces(pieces: &'static [usize]) -> (SocketAddr, Receiver<Vec<Instant>>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("an address");
    let (tell, told) = mpsc::channel();
    thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("the proxy");
        stream.set_nodelay(true).expect("a connection");
        for count in pieces {
            let mut head = [0; 4096];
            let length = stream.read(&mut head).expect("a request");
            assert!(head[..length].ends_with(b"\r\n\r\n"), "the whole head");
            let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", 3 * (count - 1));
            let mut written = Vec::new();
            for number in 0..*count {
                thread::sleep(Duration::from_millis(2));
                let piece = if number == 0 { head.as_bytes() } else { b"one" };
                stream.write_all(piece).expect("the proxy");
                written.push(Instant::now());
            }
            tell.send(written).expect("the test");
        }
    });
    (address, told)
}

#[tokio::test]
async fn each_write_of_an_answer_is_an_event_with_its_time() {
    if is_impossible("requests") {
        return;
    }
    let (server, told) = serves_pieces(&[40, 1, 200]);
    let collector = Collector::start().await;
    let proxy = Proxy::start(&traced(&following(server), &collector)).await;
    for _ in 0..3 {
        assert_eq!(Call::get("/").send(proxy.address()).await.status, 200);
    }
    let spans = collector.await_spans(3 * 6 + 1).await;
    let mut attempts = attempts(&spans);
    attempts.sort_by_key(|(attempt, _)| attempt.start);
    let mut errors = Vec::new();
    // As many as a span has: the first write is its beginning.
    for ((_, steps), most) in attempts.iter().zip([39, 0, 127]) {
        let written = told.recv().expect("the server told");
        assert_eq!(steps[3].says("app.writes"), written.len().to_string());
        let seen: Vec<u64> = steps[3].events.iter().map(|(_, at)| *at).collect();
        assert_eq!((seen.len(), seen.is_sorted()), (most, true), "{:#?}", steps[3]);
        assert!(steps[3].events.iter().all(|(name, _)| name == "write"));
        for (seen, written_at) in seen.iter().zip(&written[1..]) {
            let seen = seen - steps[3].start;
            let noted = (*written_at - written[0]).as_nanos() as u64;
            errors.push(seen.abs_diff(noted));
        }
    }
    errors.sort_unstable();
    let (median, p99) = (errors[errors.len() / 2], errors[errors.len() * 99 / 100]);
    let _ = writeln!(
        std::io::stderr(),
        "writes: median error {} us, p99 {} us",
        median / 1000,
        p99 / 1000
    );
    assert!(median < 50_000, "the kernel and the server disagree: {errors:?}");
}

#[tokio::test]
async fn the_spans_of_a_followed_request_come_at_the_end_as_well() {
    if is_impossible("requests") {
        return;
    }
    let simulator = Simulator::start(Options::named("app").fast());
    let collector = Collector::start().await;
    let proxy = Proxy::start(&traced(&following(simulator.addr), &collector)).await;
    for _ in 0..50 {
        assert_eq!(Call::get("/echo").send(proxy.address()).await.status, 200);
    }
    proxy.signal(nix::sys::signal::Signal::SIGTERM);
    proxy.wait_exit(Duration::from_secs(10)).await;
    let spans = collector.spans();
    let attempts = attempts(&spans);
    assert_eq!(attempts.len(), 50, "none is lost for want of a timeline");
    let whole = attempts.iter().filter(|(_, steps)| steps.len() == 4).count();
    assert!(whole >= 49, "{whole} of 50");
}
