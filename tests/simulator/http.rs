//! The plain HTTP side of the simulator, and the raw client that reads it.

use bytes::Bytes;
use futures_util::{SinkExt, StreamExt};
use http::{HeaderMap, HeaderName, HeaderValue};
use outrigger_tests::harness::{Broken, Call, Client, Closed, Protocol, Raw};
use outrigger_tests::sim::{Echo, Options, Simulator, pattern, sha256};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::Message;

fn simulator() -> Simulator {
    Simulator::start(Options::named("one").fast())
}

#[tokio::test]
async fn echo_tells_order_case_and_duplicates_of_http1_fields() {
    let simulator = simulator();
    let mut raw = Raw::connect(simulator.addr).await;
    let head = "POST /echo?a=b%20c HTTP/1.1\r\nHost: h\r\nX-B: 1\r\nx-a: 2\r\nX-B: 3\r\nContent-Length: 5\r\n\r\n";
    raw.send([head.as_bytes(), b"hello"].concat()).await;
    let echo: Echo = raw.response().await.json();
    let names: Vec<_> = echo.headers.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["Host", "X-B", "x-a", "X-B", "Content-Length"]);
    assert_eq!(echo.all("x-b"), ["1", "3"]);
    assert_eq!(echo.head.as_deref(), Some(head));
    assert_eq!((echo.method.as_str(), echo.target.as_str()), ("POST", "/echo?a=b%20c"));
    assert_eq!((echo.bytes, echo.sha256), (5, sha256(b"hello")));
}

#[tokio::test]
async fn echo_tells_each_head_on_a_kept_connection() {
    let simulator = simulator();
    let mut raw = Raw::connect(simulator.addr).await;
    for number in 0..5 {
        raw.post(&format!("/echo?{number}"), pattern(number * 40_000)).await;
        let echo: Echo = raw.response().await.json();
        assert!(echo.head.expect("a head").starts_with(&format!("POST /echo?{number} HTTP/1.1")));
        assert_eq!(echo.sha256, sha256(&pattern(number * 40_000)));
    }
    assert_eq!(simulator.state().accepted, 1);
    assert_eq!(simulator.state().seen("/echo"), 5);
}

#[tokio::test]
async fn echo_tells_request_trailers_over_both_protocols() {
    let simulator = simulator();
    for protocol in [Protocol::Http1, Protocol::H2] {
        let call = Call::post("/echo").header("trailer", "x-end").over(protocol);
        let (call, feed) = call.fed();
        let feeding = async {
            assert!(feed.send("some").await);
            let name = HeaderName::from_static("x-end");
            let trailers = HeaderMap::from_iter([(name, HeaderValue::from_static("yes"))]);
            assert!(feed.trailers(trailers).await);
        };
        let (answer, ()) = tokio::join!(call.send(simulator.addr), feeding);
        let echo = answer.echo();
        assert_eq!(echo.trailers, [("x-end".to_owned(), "yes".to_owned())]);
        assert_eq!(echo.bytes, 4);
    }
}

#[tokio::test]
async fn one_port_speaks_http1_and_h2() {
    let simulator = simulator();
    let one = Call::get("/echo").send(simulator.addr).await.echo();
    let two = Call::get("/echo").h2().host("example.com").send(simulator.addr).await.echo();
    assert_eq!((one.version.as_str(), two.version.as_str()), ("HTTP/1.1", "HTTP/2.0"));
    assert_eq!(two.header(":authority"), Some("example.com"));
    assert_eq!(two.head, None);
}

#[tokio::test]
async fn a_hundred_megabytes_pass_both_ways() {
    let simulator = simulator();
    let size = 100 << 20;
    let sent = Bytes::from(pattern(size));
    let echo = Call::post("/echo").body(sent.clone()).send(simulator.addr).await.echo();
    assert_eq!((echo.bytes, echo.sha256), (size as u64, sha256(&sent)));
    for target in [format!("/bytes/{size}"), format!("/bytes/{size}?chunked=1")] {
        let answer = Call::get(&target).send(simulator.addr).await;
        assert!(answer.body == sent, "{target} differs");
        assert_eq!(answer.header("content-length").is_some(), !target.contains("chunked"));
    }
}

#[tokio::test]
async fn mirror_answers_while_the_request_is_still_being_sent() {
    let simulator = simulator();
    for protocol in [Protocol::Http1, Protocol::H2] {
        let (call, feed) = Call::post("/mirror").over(protocol).fed();
        let mut answer = call.open(simulator.addr).await;
        for part in ["first", "second"] {
            assert!(feed.send(part).await);
            assert_eq!(answer.part().await.as_deref(), Some(part.as_bytes()));
        }
        drop(feed);
        assert_eq!(answer.part().await, None);
        assert_eq!(answer.cut(), None);
    }
}

#[tokio::test]
async fn a_request_whose_body_breaks_off_counts_as_aborted() {
    let simulator = simulator();
    for path in ["/echo", "/v1/chat/completions"] {
        let mut raw = Raw::connect(simulator.addr).await;
        let head = format!("POST {path} HTTP/1.1\r\nhost: h\r\ncontent-length: 100\r\n\r\n");
        raw.send(head + "only this").await;
        simulator.reached(|state| state.seen(path) == 1).await;
        drop(raw);
        simulator.aborted().await;
    }
    let state = simulator.reached(|state| state.in_flight == 0).await;
    assert_eq!((state.aborted, state.completed, state.bodies), (2, 0, 0));
}

#[tokio::test]
async fn targets_are_told_as_they_came() {
    let simulator = simulator();
    for target in ["http://other/echo?x", "/echo?", "/echo?a=%2F&b=c//d"] {
        let mut raw = Raw::connect(simulator.addr).await;
        raw.get(target).await;
        assert_eq!(raw.response().await.json::<Echo>().target, target);
    }
    let mut raw = Raw::connect(simulator.addr).await;
    raw.send("OPTIONS * HTTP/1.1\r\nhost: h\r\n\r\n").await;
    assert_eq!(raw.response().await.status(), 200);
}

#[tokio::test]
async fn requests_side_by_side_share_an_h2_connection() {
    let simulator = simulator();
    let mut client = Client::connect(simulator.addr, Protocol::H2).await;
    let mut other = client.share();
    let slow = client.send(Call::get("/echo").fault("stall_first_byte=100ms"));
    let quick = other.send(Call::get("/echo"));
    let (slow, quick) = tokio::join!(slow, quick);
    let (slow, quick) = (slow.expect("an answer"), quick.expect("an answer"));
    assert!(slow.whole_after >= quick.whole_after);
    assert_eq!(simulator.state().accepted, 1);
}

#[tokio::test]
async fn continue_comes_before_the_body_is_sent() {
    let simulator = simulator();
    let mut raw = Raw::connect(simulator.addr).await;
    raw.send("POST /echo HTTP/1.1\r\nhost: h\r\nexpect: 100-continue\r\ncontent-length: 3\r\n\r\n")
        .await;
    assert_eq!(raw.head().await.expect("a head").status, 100);
    raw.send("abc").await;
    assert_eq!(raw.response().await.json::<Echo>().bytes, 3);
}

#[tokio::test]
async fn a_refused_body_is_not_asked_for() {
    let simulator = simulator();
    let mut raw = Raw::connect(simulator.addr).await;
    raw.send(
        "POST /status/413 HTTP/1.1\r\nhost: h\r\nexpect: 100-continue\r\ncontent-length: 3\r\n\r\n",
    )
    .await;
    assert_eq!(raw.head().await.expect("a head").status, 413);
}

#[tokio::test]
async fn early_hints_come_before_the_answer_and_the_connection_goes_on() {
    let simulator = simulator();
    let mut raw = Raw::connect(simulator.addr).await;
    for _ in 0..2 {
        raw.get("/early").await;
        let response = raw.response().await;
        let hints: Vec<_> = response.informational.iter().map(|head| head.status).collect();
        assert_eq!(hints, [103]);
        assert!(response.informational[0].header("link").is_some());
        assert_eq!((response.status(), response.text().as_str()), (200, "late"));
    }
}

#[tokio::test]
async fn trailers_come_after_the_body() {
    let simulator = simulator();
    let mut raw = Raw::connect(simulator.addr).await;
    raw.get("/trailers").await;
    let response = raw.response().await;
    assert_eq!(response.text(), "trailed");
    assert_eq!(response.trailers, [("x-sim-trailer".to_owned(), "done".to_owned())]);
    assert_eq!(raw.closed().await, Closed::Fin(Vec::new()));
    let answer = Call::get("/trailers").h2().send(simulator.addr).await;
    assert_eq!(answer.text(), "trailed");
    assert_eq!(answer.trailers["x-sim-trailer"], "done");
}

#[tokio::test]
async fn answers_without_a_body_have_none() {
    let simulator = simulator();
    let mut raw = Raw::connect(simulator.addr).await;
    for code in [204, 304] {
        raw.get(&format!("/status/{code}")).await;
        let response = raw.response().await;
        assert_eq!((response.status(), response.pieces.len()), (code, 0));
    }
    raw.send("HEAD /bytes/1000 HTTP/1.1\r\nhost: h\r\n\r\n").await;
    let response = raw.try_response("HEAD").await.expect("a response");
    assert_eq!(response.header("content-length"), Some("1000"));
    raw.get("/health").await;
    assert_eq!(raw.response().await.status(), 200);
    simulator.reached(|state| state.completed == 4 && state.in_flight == 0).await;
}

#[tokio::test]
async fn redirects_statuses_and_heads_are_as_asked_for() {
    let simulator = simulator();
    let answer = Call::get("/redirect?to=/there&status=307").send(simulator.addr).await;
    assert_eq!((answer.status, answer.header("location")), (307, Some("/there")));
    assert_eq!(Call::get("/status/418").send(simulator.addr).await.status, 418);
    let answer = Call::get("/head/20000").send(simulator.addr).await;
    assert_eq!(answer.header("x-sim-big").map(str::len), Some(20_000));
    assert_eq!(Call::get("/nowhere").send(simulator.addr).await.status, 404);
    let mut raw = Raw::connect(simulator.addr).await;
    raw.get("/close").await;
    assert_eq!(raw.response().await.header("connection"), Some("close"));
    assert_eq!(raw.closed().await, Closed::Fin(Vec::new()));
}

#[tokio::test]
async fn raw_writes_what_it_is_told() {
    let simulator = simulator();
    for (bytes, result) in [
        ("HTTP/1.0 200 OK\r\n\r\nuntil the end", Ok("until the end")),
        ("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n", Err(Broken::Closed)),
        (
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabcdef",
            Err(Broken::Malformed),
        ),
        ("SSH-2.0-x\r\n\r\n", Err(Broken::Malformed)),
    ] {
        let mut raw = Raw::connect(simulator.addr).await;
        raw.post("/raw", bytes).await;
        let response = raw.try_response("POST").await.map(|response| response.text());
        assert_eq!(response.as_deref().map_err(|why| *why), result, "{bytes}");
    }
}

#[tokio::test]
async fn a_websocket_echoes_until_it_is_closed() {
    let simulator = simulator();
    let stream = TcpStream::connect(simulator.addr).await.expect("it listens");
    let (mut socket, _) =
        tokio_tungstenite::client_async("ws://test/ws", stream).await.expect("a handshake");
    for message in [Message::text("hello"), Message::binary(pattern(100_000))] {
        socket.send(message.clone()).await.expect("it reads");
        assert_eq!(socket.next().await.expect("a message").expect("in order"), message);
    }
    assert_eq!(simulator.state().in_flight, 1);
    socket.close(None).await.expect("it closes");
    simulator.reached(|state| state.in_flight == 0 && state.completed == 1).await;
}

#[tokio::test]
async fn events_keep_their_pace() {
    let simulator = simulator();
    let transcript =
        Call::get("/events/5?gap=30&size=100").open(simulator.addr).await.events().await;
    assert!(transcript.is_complete());
    assert_eq!(transcript.events.len(), 6);
    let whole = transcript.events[4].after - transcript.events[0].after;
    assert!(whole.as_millis() >= 100, "four gaps took {whole:?}");
}

#[tokio::test]
async fn dropping_the_simulator_closes_everything_at_once() {
    let simulator = simulator();
    let mut idle = Raw::connect(simulator.addr).await;
    idle.get("/health").await;
    idle.response().await;
    let mut stalled = Raw::connect(simulator.addr).await;
    stalled.send("GET /echo HTTP/1.1\r\nhost: h\r\nx-sim-fault: stall_first_byte\r\n\r\n").await;
    simulator.reached(|state| state.in_flight == 1).await;
    let address = simulator.addr;
    drop(simulator);
    assert!(TcpStream::connect(address).await.is_err());
    idle.closed().await;
    stalled.closed().await;
}

#[tokio::test]
async fn a_kept_client_uses_one_connection() {
    let simulator = simulator();
    for protocol in [Protocol::Http1, Protocol::H2] {
        let before = simulator.state().accepted;
        let mut client = Client::connect(simulator.addr, protocol).await;
        for _ in 0..3 {
            let answer = client.send(Call::get("/health")).await.expect("an answer");
            assert_eq!(answer.by(), "one");
        }
        assert_eq!(simulator.state().accepted, before + 1);
    }
}
