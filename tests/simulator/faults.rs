//! Each fault does to the wire what it says.

use std::time::{Duration, Instant};

use outrigger_tests::harness::{Broken, Call, Closed, Load, Raw};
use outrigger_tests::sim::{Fault, Options, Rule, Simulator};
use tokio::net::TcpStream;

fn simulator() -> Simulator {
    Simulator::start(Options::named("one").fast())
}

async fn chat(simulator: &Simulator, fault: &str, stream: bool) -> Raw {
    let mut raw = Raw::connect(simulator.addr).await;
    let body = format!(
        r#"{{"messages":[{{"role":"user","content":"hello"}}],"max_tokens":6,"stream":{stream}}}"#
    );
    let length = body.len();
    let head = "POST /v1/chat/completions HTTP/1.1\r\nhost: h\r\n";
    raw.send(format!("{head}x-sim-fault: {fault}\r\ncontent-length: {length}\r\n\r\n{body}")).await;
    raw
}

/// Reads pieces until the body ends or breaks.
async fn pieces(raw: &mut Raw) -> (Vec<String>, Option<Broken>) {
    let head = raw.head().await.expect("a head");
    let (mut body, mut texts) = (head.body("POST"), Vec::new());
    loop {
        match raw.piece(&mut body).await {
            Ok(Some(piece)) => texts.push(String::from_utf8_lossy(&piece.data).into_owned()),
            Ok(None) => return (texts, None),
            Err(why) => return (texts, Some(why)),
        }
    }
}

#[test]
fn faults_are_read_as_they_are_written() {
    for text in [
        "refuse",
        "refuse=2000ms",
        "reset",
        "reset_mid=3",
        "close",
        "close_mid=0",
        "stall_first_byte",
        "stall_first_byte=1500ms",
        "stall_mid=2",
        "stall_mid=2;for=10ms",
        "garbage",
        "bad_chunk=1",
        "slow=2.5",
        "status=503",
        "status=429;retry_after=1",
        "wrong_length=larger",
        "wrong_length=smaller",
        "no_health",
        "health_stall",
        "slow_health=250ms",
        "trickle=2ms",
    ] {
        let fault: Fault = text.parse().expect(text);
        assert_eq!(fault.to_string(), text);
    }
    assert_eq!("stall_first_byte=1.5".parse(), "stall_first_byte=1500ms".parse::<Fault>());
}

#[tokio::test]
async fn reset_and_close_end_the_connection_before_any_byte() {
    let simulator = simulator();
    assert_eq!(chat(&simulator, "reset", true).await.closed().await, Closed::Reset);
    assert_eq!(chat(&simulator, "close", true).await.closed().await, Closed::Fin(Vec::new()));
    let state = simulator.reached(|state| state.in_flight == 0).await;
    assert_eq!((state.faulted, state.aborted, state.bodies), (2, 0, 2));
}

#[tokio::test]
async fn mid_stream_faults_come_after_exactly_so_many_events() {
    let simulator = simulator();
    for (fault, broken) in [
        ("reset_mid=0", Broken::Reset),
        ("reset_mid=3", Broken::Reset),
        ("close_mid=3", Broken::Closed),
        ("bad_chunk=3", Broken::Malformed),
    ] {
        let (events, why) = pieces(&mut chat(&simulator, fault, true).await).await;
        assert_eq!(why, Some(broken), "{fault}");
        let wanted = usize::from(!fault.ends_with('0')) * 3;
        assert_eq!(events.len(), wanted, "{fault}: {events:?}");
        assert!(events.iter().all(|event| event.starts_with("data: {")));
    }
}

#[tokio::test]
async fn a_mid_fault_cuts_an_answer_that_is_no_stream_in_half() {
    let simulator = simulator();
    let mut raw = chat(&simulator, "close_mid=1", false).await;
    let head = raw.head().await.expect("a head");
    let length: usize =
        head.header("content-length").and_then(|v| v.parse().ok()).expect("a length");
    let closed = raw.closed().await;
    assert!(matches!(&closed, Closed::Fin(half) if half.len() == length / 2), "{closed:?}");
}

#[tokio::test]
async fn faults_cut_single_streams_of_h2_too() {
    let simulator = simulator();
    let call = Call::chat("hello").max_tokens(6).streaming().h2();
    let transcript = call.fault("reset_mid=2").open(simulator.addr).await.events().await;
    assert_eq!(transcript.events.len(), 2);
    assert!(transcript.cut.is_some());
}

#[tokio::test]
async fn a_stall_before_the_first_byte_lasts_as_long_as_it_says() {
    let simulator = simulator();
    let began = Instant::now();
    let mut raw = chat(&simulator, "stall_first_byte=150ms", true).await;
    assert_eq!(raw.head().await.expect("a head").status, 200);
    assert!(began.elapsed() >= Duration::from_millis(150));
}

#[tokio::test]
async fn an_endless_stall_ends_when_the_client_hangs_up() {
    let simulator = simulator();
    let raw = chat(&simulator, "stall_first_byte", true).await;
    simulator.reached(|state| state.in_flight == 1 && state.bodies == 1).await;
    drop(raw);
    simulator.aborted().await;
    assert_eq!(simulator.state().in_flight, 0);
}

#[tokio::test]
async fn an_endless_stall_ends_when_it_is_released_and_the_next_one_does_not() {
    let simulator = simulator();
    let mut raw = chat(&simulator, "stall_first_byte", true).await;
    simulator.reached(|state| state.in_flight == 1).await;
    simulator.release();
    assert_eq!(pieces(&mut raw).await.1, None);
    let first = simulator.reached(|state| state.completed == 1).await;
    let _next = chat(&simulator, "stall_first_byte", true).await;
    simulator.reached(|state| state.bodies > first.bodies).await;
    assert_eq!(simulator.state().in_flight, 1);
}

#[tokio::test]
async fn a_stall_in_the_middle_comes_after_its_events() {
    let simulator = simulator();
    let call = Call::chat("hello").max_tokens(6).streaming().fault("stall_mid=2;for=400ms");
    let transcript = call.open(simulator.addr).await.events().await;
    assert!(transcript.is_complete());
    let longest = transcript.gaps().into_iter().enumerate().max_by_key(|(_, gap)| *gap);
    let (index, gap) = longest.expect("gaps");
    assert_eq!(index, 1);
    assert!(gap >= Duration::from_millis(200), "{gap:?}");
}

#[tokio::test]
async fn a_stall_after_the_head_still_sends_the_head() {
    let simulator = simulator();
    let mut raw = chat(&simulator, "stall_mid=0", true).await;
    assert_eq!(raw.head().await.expect("a head").status, 200);
    drop(raw);
    simulator.aborted().await;
}

#[tokio::test]
async fn garbage_is_not_http() {
    let simulator = simulator();
    let mut raw = chat(&simulator, "garbage", true).await;
    assert_eq!(raw.head().await.expect_err("no head"), Broken::Malformed);
}

#[tokio::test]
async fn wrong_lengths_are_wrong_in_both_directions() {
    let simulator = simulator();
    let mut raw = chat(&simulator, "wrong_length", false).await;
    assert_eq!(raw.try_response("POST").await.expect_err("too short"), Broken::Closed);
    let mut raw = chat(&simulator, "wrong_length=smaller", false).await;
    assert_eq!(raw.response().await.status(), 200);
    assert!(matches!(raw.closed().await, Closed::Fin(rest) if rest.len() == 16));
}

#[tokio::test]
async fn a_status_fault_carries_its_retry_after() {
    let simulator = simulator();
    let call = || Call::chat("hello").max_tokens(1);
    let answer = call().fault("status=429;retry_after=7").send(simulator.addr).await;
    assert_eq!((answer.status, answer.header("retry-after")), (429, Some("7")));
    assert_eq!(answer.json()["error"]["code"], 429);
    assert_eq!(call().fault("status=503").send(simulator.addr).await.header("retry-after"), None);
}

#[tokio::test]
async fn an_unknown_fault_is_an_error_and_not_ignored() {
    let simulator = simulator();
    for fault in ["explode", "reset_mid=x", "reset;after=2"] {
        let answer = Call::get("/echo").fault(fault).send(simulator.addr).await;
        assert_eq!(answer.status, 400, "{fault}");
    }
}

#[tokio::test]
async fn a_rule_about_bodies_meets_only_those_that_hold_its_text() {
    let simulator = simulator();
    simulator.inflict(Rule::always(Fault::Status(400, None)).holding("poison").times(2));
    let status =
        async |text: &str| Call::chat(text).max_tokens(1).send(simulator.addr).await.status;
    assert_eq!(status("nothing to fear").await, 200);
    assert_eq!(status("a drop of poison").await, 400);
    assert_eq!(Call::get("/echo").send(simulator.addr).await.status, 200);
    assert_eq!(status("more poison").await, 400);
    assert_eq!(status("the last poison").await, 200);
}

#[tokio::test]
async fn a_fault_for_another_simulator_is_not_ours() {
    let simulator = simulator();
    let ask = |at: &str| Call::get("/echo").fault(&format!("status=500;at={at}"));
    assert_eq!(ask("two").send(simulator.addr).await.status, 200);
    assert_eq!(ask("one").send(simulator.addr).await.status, 500);
}

#[tokio::test]
async fn health_faults_concern_health_alone() {
    let simulator = simulator();
    let health = || Call::get("/health");
    simulator.fault(Fault::NoHealth);
    assert_eq!(health().send(simulator.addr).await.status, 500);
    assert_eq!(Call::get("/echo").send(simulator.addr).await.status, 200);
    simulator.clear_faults();
    assert_eq!(health().send(simulator.addr).await.status, 200);
    let answer = health().fault("slow_health=120ms").send(simulator.addr).await;
    assert!(answer.head_after >= Duration::from_millis(120));
    simulator.fault(Fault::HealthStall);
    let mut raw = Raw::connect(simulator.addr).await;
    raw.get("/health").await;
    simulator.reached(|state| state.in_flight == 1).await;
}

#[tokio::test]
async fn a_trickle_comes_byte_by_byte() {
    let simulator = simulator();
    let mut raw = Raw::connect(simulator.addr).await;
    let began = Instant::now();
    raw.send("GET /health HTTP/1.1\r\nhost: h\r\nx-sim-fault: trickle=1ms\r\n\r\n").await;
    let head = raw.response().await.head;
    let bytes = head.text.len() as u128;
    assert!(began.elapsed().as_millis() >= bytes - 1, "{bytes} bytes in {:?}", began.elapsed());
    raw.get("/bytes/100000").await;
    let began = Instant::now();
    assert_eq!(raw.response().await.body().len(), 100_000);
    assert!(began.elapsed() < Duration::from_secs(10), "the trickle did not end with its request");
}

#[tokio::test]
async fn slow_stretches_one_request_and_not_its_neighbour() {
    let options = Options::named("one").steady(Duration::from_millis(5));
    let simulator = Simulator::start(options);
    let call = || Call::chat("hello").max_tokens(10).streaming();
    let (slow, fast) =
        tokio::join!(async { call().fault("slow=8").send(simulator.addr).await }, async {
            call().send(simulator.addr).await
        },);
    assert!(slow.whole_after > fast.whole_after.mul_f64(3.0));
    assert!(slow.whole_after >= Duration::from_millis(8 * 9 * 5));
}

#[tokio::test]
async fn refusing_closes_idle_connections_and_resuming_keeps_the_port() {
    let simulator = simulator();
    let mut idle = Raw::connect(simulator.addr).await;
    idle.get("/health").await;
    idle.response().await;
    simulator.refuse().await;
    assert_eq!(idle.closed().await, Closed::Fin(Vec::new()));
    let error = TcpStream::connect(simulator.addr).await.expect_err("nobody listens");
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionRefused);
    simulator.resume().await;
    assert_eq!(Call::get("/health").send(simulator.addr).await.status, 200);
}

#[tokio::test]
async fn refusing_lets_a_request_in_progress_end() {
    let simulator = Simulator::start(Options::named("one").steady(Duration::from_millis(5)));
    let call = Call::chat("hello").max_tokens(40).streaming();
    let streaming = call.open(simulator.addr).await;
    simulator.refuse().await;
    assert!(streaming.events().await.is_complete());
    simulator.reached(|state| state.connections == 0).await;
}

#[tokio::test]
async fn the_control_listener_stays_while_the_other_refuses() {
    let local = "127.0.0.1:0".parse().expect("an address");
    let simulator = Simulator::start(Options { control: Some(local), ..Options::named("one") });
    let control = simulator.control.expect("it was asked for");
    let refuse = serde_json::json!({"fault": "refuse"});
    Call::post("/sim/faults").json(refuse).send(control).await;
    simulator.reached(|state| state.refusing).await;
    assert!(TcpStream::connect(simulator.addr).await.is_err());
    assert_eq!(Call::post("/sim/resume").send(control).await.status, 200);
    simulator.reached(|state| !state.refusing).await;
    assert_eq!(Call::get("/health").send(simulator.addr).await.status, 200);
}

#[tokio::test]
async fn refusing_for_a_time_ends_by_itself() {
    let simulator = simulator();
    simulator.fault(Fault::Refuse(Some(Duration::from_millis(50))));
    simulator.reached(|state| state.refusing).await;
    simulator.reached(|state| !state.refusing).await;
    assert_eq!(Call::get("/health").send(simulator.addr).await.status, 200);
}

#[tokio::test]
async fn the_control_endpoint_takes_counts_shares_and_clears() {
    let simulator = simulator();
    let status = serde_json::json!({"fault": "status", "arg": 500, "count": 2, "path": "/echo"});
    let rules = Call::post("/sim/faults").json(status).send(simulator.addr).await.json();
    assert_eq!(rules[0]["arg"], "500");
    let ask = async |path: &str| Call::get(path).send(simulator.addr).await.status;
    assert_eq!((ask("/bytes/1").await, ask("/echo").await, ask("/echo").await), (200, 500, 500));
    assert_eq!(ask("/echo").await, 200);
    Call::new("DELETE", "/sim/faults").send(simulator.addr).await;
    let wrong = serde_json::json!({"fault": "status", "shares": 2});
    assert_eq!(Call::post("/sim/faults").json(wrong).send(simulator.addr).await.status, 400);
    simulator.inflict(Rule::always(Fault::Status(503, None)).share(0.3));
    let report = Load::of(1000).at_once(8).run(simulator.addr, |_| Call::get("/bytes/1")).await;
    let hit = report.status(503);
    assert!((200..400).contains(&hit), "{hit} of 1000 met a fault with a share of 0.3");
}

#[tokio::test]
async fn hanging_up_closes_connections_in_the_middle_of_an_answer() {
    let simulator = simulator();
    let streaming = Call::get("/events/1000?gap=50").open(simulator.addr).await;
    simulator.hang_up();
    let transcript = streaming.events().await;
    assert!(transcript.cut.is_some() && transcript.events.len() < 1000);
}
