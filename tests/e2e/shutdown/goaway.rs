//! The end of an HTTP/2 connection, looked at frame by frame: a client library hides GOAWAY.

use nix::sys::signal::Signal;
use outrigger_tests::harness::{Broken, Call, Client, Protocol, Proxy, Raw};

use super::{draining, steady};

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const SETTINGS: u8 = 4;
const GOAWAY: u8 = 7;
const END_STREAM: u8 = 1;

/// A frame.
#[derive(Debug)]
struct Frame {
    kind: u8,
    flags: u8,
    payload: Vec<u8>,
}

fn frame(kind: u8, flags: u8, stream: u8, payload: &[u8]) -> Vec<u8> {
    let length = u8::try_from(payload.len()).expect("test frames are short");
    [&[0, 0, length, kind, flags, 0, 0, 0, stream], payload].concat()
}

/// Begins a connection that takes as much data as comes in these tests without more credit.
async fn connect(proxy: &Proxy) -> Raw {
    let mut raw = Raw::connect(proxy.address()).await;
    raw.send("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await;
    raw.send(frame(SETTINGS, 0, 0, &[])).await;
    raw
}

/// Asks for `path` on stream 1 in literal header fields (RFC 7541, 6.2.2).
async fn ask(raw: &mut Raw, path: &str) {
    let literal = |index: u8, value: &str| {
        let length = u8::try_from(value.len()).expect("short");
        [&[index, length], value.as_bytes()].concat()
    };
    // GET and http stand in the static table; 4 is :path and 1 is :authority there.
    let block = [vec![0x82, 0x86], literal(0x04, path), literal(0x01, "test")].concat();
    raw.send(frame(HEADERS, 0x4 | END_STREAM, 1, &block)).await;
}

async fn next(raw: &mut Raw) -> Result<Frame, Broken> {
    let head = raw.take(9).await?;
    let length = usize::from(head[0]) << 16 | usize::from(head[1]) << 8 | usize::from(head[2]);
    Ok(Frame { kind: head[3], flags: head[4], payload: raw.take(length).await? })
}

/// Everything up to the end of the connection; that is not how it ended.
async fn rest(raw: &mut Raw) -> (Vec<Frame>, Broken) {
    let mut frames = Vec::new();
    loop {
        match next(raw).await {
            Ok(frame) => frames.push(frame),
            Err(end) => return (frames, end),
        }
    }
}

/// The error codes of the GOAWAYs among them.
fn goaways(frames: &[Frame]) -> Vec<&[u8]> {
    frames.iter().filter(|frame| frame.kind == GOAWAY).map(|frame| &frame.payload[4..8]).collect()
}

#[tokio::test]
async fn an_idle_h2_client_gets_goaway_and_the_proxy_exits_at_once() {
    let simulator = steady();
    let proxy = Proxy::start(&draining(&simulator, "delay: 0s, timeout: 60s")).await;
    let mut raw = connect(&proxy).await;
    assert_eq!(next(&mut raw).await.expect("settings come first").kind, SETTINGS);
    proxy.signal(Signal::SIGTERM);
    let (frames, _) = rest(&mut raw).await;
    let codes = goaways(&frames);
    assert!(!codes.is_empty() && codes.iter().all(|code| *code == [0; 4]), "{frames:?}");
    proxy.wait_exit(super::AT_ONCE).await;
}

#[tokio::test]
async fn an_h2_stream_ends_well_after_goaway() {
    let simulator = steady();
    let proxy = Proxy::start(&draining(&simulator, "delay: 0s, timeout: 20s")).await;
    let mut raw = connect(&proxy).await;
    ask(&mut raw, "/events/20?gap=30").await;
    while next(&mut raw).await.expect("an answer").kind != DATA {}
    proxy.signal(Signal::SIGTERM);
    let (frames, end) = rest(&mut raw).await;
    let told = frames.iter().position(|frame| frame.kind == GOAWAY);
    let ended = frames.iter().position(|f| f.kind == DATA && f.flags & END_STREAM != 0);
    assert!(told.is_some() && told < ended, "GOAWAY {told:?}, end of stream {ended:?}");
    assert!(goaways(&frames).iter().all(|code| *code == [0; 4]), "{frames:?}");
    assert_eq!(end, Broken::Closed);
    let body: Vec<u8> =
        frames.into_iter().filter(|f| f.kind == DATA).flat_map(|f| f.payload).collect();
    assert!(String::from_utf8_lossy(&body).contains("[DONE]"));
    proxy.wait_exit(super::AT_ONCE).await;
}

#[tokio::test]
async fn streams_of_one_h2_connection_all_end_well() {
    let simulator = steady();
    let proxy = Proxy::start(&draining(&simulator, "delay: 50ms, timeout: 20s")).await;
    let client = Client::connect(proxy.address(), Protocol::H2).await;
    let mut streams = Vec::new();
    for _ in 0..20 {
        let call = Call::chat("how many canoes?").max_tokens(60).streaming();
        let mut stream = client.share().open(call).await.expect("an answer");
        assert!(stream.event().await.is_some());
        streams.push(tokio::spawn(stream.events()));
    }
    proxy.signal(Signal::SIGTERM);
    for stream in streams {
        assert!(stream.await.expect("it was read").is_complete());
    }
    proxy.wait_exit(super::AT_ONCE).await;
    assert!(client.share().send(Call::get("/echo")).await.is_err());
}
