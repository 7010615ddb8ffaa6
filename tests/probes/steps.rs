//! Every step of a request, to the byte: with a server that notes when it was about to do each thing, and when it had done it.
//!
//! Whichever way its programs hang in the kernel, what it says lies between two such notes. No bound is a guess at how fast a
//! machine is, so that all of this holds in an emulated one, too (`older.rs`).

use std::fs::File;
use std::io::{IsTerminal, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use outrigger_probes::{Burst, Connection};
use outrigger_tests::harness::{Call, Client, Protocol, Proxy, within};
use outrigger_tests::sim::{Options, Simulator};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use crate::guest::{await_gone, connections, held};
use crate::{DOCTOR, assert_nothing_lost, following, is_impossible, timelines};

/// How long the server works on a request, and pauses between two pieces of its answer.
const WORK: Duration = Duration::from_millis(5);

/// What the clock of programs may be off against that of everybody else while it is adjusted.
const CLOCK: Duration = Duration::from_micros(10);

/// What is sent from the disk: many pages, and not a whole number of them.
const FILE: usize = 300_001;

/// What the server did for a request.
struct Done {
    /// It had seen that something had come.
    came: Instant,
    /// It was about to read first, and had.
    read: (Instant, Instant),
    /// It was about to write first, and had.
    first: (Instant, Instant),
    /// It was about to write last, and had.
    last: (Instant, Instant),
    bytes_in: usize,
    bytes_out: usize,
    /// None when the kernel cut it into pieces.
    writes: Option<u64>,
}

enum Told {
    /// So many bytes of the request have been read.
    Read(usize),
    /// The answer is written, and the system call has returned.
    Done(Done),
}

struct Server {
    address: SocketAddr,
    told: UnboundedReceiver<Told>,
}

impl Server {
    fn start() -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
        let address = listener.local_addr().expect("an address");
        let (tell, told) = unbounded_channel();
        let file = Arc::new(file());
        thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let (tell, file) = (tell.clone(), Arc::clone(&file));
                thread::spawn(move || serve(stream, &file, &tell));
            }
        });
        Server { address, told }
    }

    async fn told(&mut self) -> Told {
        within("a word of the server", self.told.recv()).await.expect("the server goes on")
    }

    /// Waits until it has read so many bytes.
    async fn reads(&mut self, bytes: usize) {
        while !matches!(self.told().await, Told::Read(read) if read >= bytes) {}
    }

    async fn done(&mut self) -> Done {
        loop {
            if let Told::Done(done) = self.told().await {
                return done;
            }
        }
    }
}

/// It has no name, so that nothing is left of it when the process ends with the server's threads running.
fn file() -> File {
    let mut file = tempfile::tempfile().expect("a temporary file");
    file.write_all(&vec![b'x'; FILE]).expect("writable");
    file
}

fn serve(mut stream: TcpStream, file: &File, tell: &UnboundedSender<Told>) {
    let mut head = [0; 4096];
    while let Ok(peeked @ 1..) = stream.peek(&mut head) {
        let came = Instant::now();
        let head = String::from_utf8_lossy(&head[..peeked]).into_owned();
        let path: Vec<&str> = head.split(' ').nth(1).unwrap_or_default().split('/').collect();
        let number = path.get(2).and_then(|number| number.parse().ok()).unwrap_or(0);
        if path[1] == "wait" {
            thread::sleep(Duration::from_millis(number));
        }
        let Some((read, bytes_in)) = take(&mut stream, tell) else { return };
        thread::sleep(WORK);
        let pieces = if path[1] == "stream" { number } else { 1 };
        let closes = path[1] == "close";
        let mut answer = Answer::default();
        match path[1] {
            "file" => answer.copy(&mut stream, file),
            _ => answer.write(&mut stream, pieces, closes),
        }
        let Answer { notes, bytes_out, writes } = answer;
        let (Some(first), Some(last)) = (notes.first(), notes.last()) else { return };
        let (first, last) = (*first, *last);
        let _ =
            tell.send(Told::Done(Done { came, read, first, last, bytes_in, bytes_out, writes }));
        if closes {
            return;
        }
    }
}

/// Reads a request, whole; when the first read began and had ended, and how many bytes it was.
fn take(
    stream: &mut TcpStream,
    tell: &UnboundedSender<Told>,
) -> Option<((Instant, Instant), usize)> {
    let (mut all, mut buffer) = (Vec::new(), [0; 65536]);
    let begun = Instant::now();
    let mut first = None;
    loop {
        let count = stream.read(&mut buffer).ok().filter(|count| *count > 0)?;
        first = first.or_else(|| Some(Instant::now()));
        all.extend_from_slice(&buffer[..count]);
        let _ = tell.send(Told::Read(all.len()));
        let is_chunked = String::from_utf8_lossy(&all).contains("chunked");
        let end: &[u8] = if is_chunked { b"\r\n0\r\n\r\n" } else { b"\r\n\r\n" };
        if all.ends_with(end) {
            return Some(((begun, first?), all.len()));
        }
    }
}

/// How an answer is written.
#[derive(Default)]
struct Answer {
    /// Before and after each write.
    notes: Vec<(Instant, Instant)>,
    bytes_out: usize,
    writes: Option<u64>,
}

impl Answer {
    fn write(&mut self, stream: &mut TcpStream, pieces: u64, closes: bool) {
        let close = if closes { "connection: close\r\n" } else { "" };
        let head = format!("HTTP/1.1 200 OK\r\n{close}content-length: {}\r\n\r\n", 2 * pieces);
        self.piece(stream, format!("{head}ok").as_bytes());
        for _ in 1..pieces {
            thread::sleep(WORK);
            self.piece(stream, b"ok");
        }
        self.writes = Some(pieces);
    }

    /// The head, and then a file, which goes from the one to the other inside the kernel.
    fn copy(&mut self, stream: &mut TcpStream, file: &File) {
        let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {FILE}\r\n\r\n");
        self.piece(stream, head.as_bytes());
        let begun = Instant::now();
        let mut sent = 0;
        while sent < FILE as u64 {
            let left = FILE - sent as usize;
            rustix::fs::sendfile(&*stream, file, Some(&mut sent), left).expect("a client");
        }
        self.noted(begun, FILE);
    }

    fn piece(&mut self, stream: &mut TcpStream, bytes: &[u8]) {
        let begun = Instant::now();
        stream.write_all(bytes).expect("a client");
        self.noted(begun, bytes.len());
    }

    fn noted(&mut self, begun: Instant, bytes: usize) {
        self.notes.push((begun, Instant::now()));
        self.bytes_out += bytes;
    }
}

/// The kernel's times of a request lie between those of the server. The client began to send it at `begun`, and all that
/// the server does for it is done.
async fn assert_seen(proxy: &Proxy, begun: Instant, done: &Done) {
    let all = connections(proxy);
    assert_eq!(all.len(), 1, "one connection is kept: {all:?}");
    let seen = &all[0];
    let Connection { arrived, picked, read, first_write, last_write, .. } = *seen;
    assert_eq!((seen.bytes_in, seen.bytes_out), (done.bytes_in as u64, done.bytes_out as u64));
    assert!(done.writes.is_none_or(|writes| writes == seen.writes), "{seen:?}");
    assert_eq!(seen.flags & Burst::LATE, 0);
    let steps = [1, arrived, picked, read, first_write, last_write];
    assert!(steps.is_sorted(), "{seen:?}");
    between("in the socket", (arrived, picked), [begun, done.came, done.read.0, done.read.1]);
    let writing = [done.read.0, done.read.1, done.first.0, done.first.1];
    between("worked on", (picked, first_write), writing);
    between(
        "answered",
        (first_write, last_write),
        [done.first.0, done.first.1, done.last.0, done.last.1],
    );
}

/// An interval that began between the first two of these moments, and ended between the others.
fn between(what: &str, (from, to): (u64, u64), [begun, began, ends, ended]: [Instant; 4]) {
    let took = Duration::from_nanos(to - from);
    let least = ends.saturating_duration_since(began);
    let most = ended.saturating_duration_since(begun);
    assert!(took + CLOCK >= least && took <= most + CLOCK, "{what}: {least:?} {took:?} {most:?}");
}

/// So many requests are told of, all whole, in log and metrics.
async fn assert_told(proxy: &Proxy, count: usize) {
    for line in proxy.await_access(count).await {
        for step in ["app_wire_ms", "app_socket_wait_ms", "app_first_byte_ms", "app_answer_ms"] {
            assert!(line[step].is_number(), "{step}: {line:#}");
        }
        assert_eq!(line["app_pid"], std::process::id(), "{line:#}");
    }
    let metrics = proxy.metrics().await;
    assert_eq!(timelines(&metrics, "complete"), count as f64, "{}", metrics.text);
    assert_eq!(timelines(&metrics, ""), count as f64, "{}", metrics.text);
    assert_nothing_lost(&metrics);
}

#[test]
fn the_doctor_says_by_what_means() {
    if is_impossible("requests") {
        return;
    }
    let _ = writeln!(std::io::stderr(), "{}", *DOCTOR);
    let mut lines = DOCTOR.lines().skip_while(|line| !line.starts_with("requests"));
    let means = lines.nth(1).expect("a line of it");
    assert!(means.contains("reads and writes are seen by"), "{}", *DOCTOR);
}

#[tokio::test]
async fn requests_on_a_kept_connection_are_seen_whole() {
    if is_impossible("requests") {
        return;
    }
    let mut server = Server::start();
    let proxy = Proxy::start(&following(server.address)).await;
    let mut client = Client::connect(proxy.address(), Protocol::Http1).await;
    let targets = ["/wait/0", "/wait/25", "/wait/100", "/stream/5", "/file", "/wait/0"];
    for target in targets {
        let begun = Instant::now();
        let answer = client.send(Call::get(target)).await.expect("an answer");
        assert_eq!((answer.status, answer.cut), (200, None));
        let done = server.done().await;
        assert_seen(&proxy, begun, &done).await;
    }
    assert_told(&proxy, targets.len()).await;
    let lines = proxy.access_log();
    for (line, least) in lines.iter().zip([0.0, 25.0, 100.0]) {
        assert!(line["app_socket_wait_ms"].as_f64() >= Some(least), "{line:#}");
    }
    assert!(lines[3]["app_longest_gap_ms"].as_f64() >= Some(5.0), "{:#}", lines[3]);
}

#[tokio::test]
async fn an_upload_in_pieces_is_seen_whole() {
    if is_impossible("requests") {
        return;
    }
    let mut server = Server::start();
    let proxy = Proxy::start(&following(server.address)).await;
    let (call, body) = Call::post("/upload").fed();
    let begun = Instant::now();
    let feed = async {
        let mut least = 0;
        for piece in ["one", "two", "three"] {
            assert!(body.send(piece).await, "the body is read");
            least += piece.len();
            server.reads(least).await;
        }
        drop(body);
        server.done().await
    };
    let (answer, done) = tokio::join!(call.send(proxy.address()), feed);
    assert_eq!(answer.text(), "ok");
    assert_seen(&proxy, begun, &done).await;
    assert_told(&proxy, 1).await;
}

#[tokio::test]
async fn requests_after_which_the_server_closes_are_seen_whole() {
    if is_impossible("requests") {
        return;
    }
    let mut server = Server::start();
    let proxy = Proxy::start(&following(server.address)).await;
    for _ in 0..3 {
        assert_eq!(Call::get("/close").send(proxy.address()).await.text(), "ok");
        server.done().await;
    }
    assert_told(&proxy, 3).await;
}

/// Somebody who reads and waits for a byte after the other; what says that one has come.
fn waiting_reader() -> (TcpStream, UnboundedReceiver<()>) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
    let writer =
        TcpStream::connect(listener.local_addr().expect("an address")).expect("it listens");
    let (mut reader, _) = listener.accept().expect("it has connected");
    let (tell, told) = unbounded_channel();
    thread::spawn(move || while reader.read_exact(&mut [0]).is_ok() && tell.send(()).is_ok() {});
    (writer, told)
}

/// The kernel must not take from under it what it is to return through.
#[tokio::test]
async fn a_read_that_waits_while_the_programs_go_returns() {
    if is_impossible("requests") {
        return;
    }
    let (mut writer, mut told) = waiting_reader();
    let simulator = Simulator::start(Options::named("app").fast());
    let proxy = Proxy::start(&following(simulator.addr)).await;
    writer.write_all(b"a").expect("somebody reads");
    // From here on it waits in a read that the programs see.
    within("a read", told.recv()).await.expect("a byte");
    let programs = held(proxy.pid(), "prog_id");
    proxy.signal(Signal::SIGKILL);
    proxy.wait_exit(Duration::from_secs(10)).await;
    await_gone(&programs, &[]).await;
    for byte in [b"b", b"c"] {
        writer.write_all(byte).expect("somebody reads");
        within("a read", told.recv()).await.expect("a byte");
    }
}

#[tokio::test]
async fn calls_into_a_device_are_counted() {
    if is_impossible("driver") {
        return;
    }
    let simulator = Simulator::start(Options::named("app").fast());
    let probes = "probes: { driver: { devices: [/dev/zero] } }";
    let config = following(simulator.addr).replace("probes: { requests: true }", probes);
    let proxy = Proxy::start(&config).await;
    proxy.await_log("calls into the GPU driver are seen").await;
    let device = File::open("/dev/zero").expect("every machine has it");
    for _ in 0..1000 {
        // Asks for what only a terminal has.
        assert!(!device.is_terminal());
    }
    let count = "outrigger_gpu_driver_call_seconds_count";
    let metrics = proxy.await_metrics(|metrics| metrics.get(count, &[]) >= 1000.0).await;
    assert_eq!(metrics.get(count, &[]), 1000.0);
    assert_eq!(metrics.get("outrigger_gpu_driver_calls_in_flight", &[]), 0.0);
}
