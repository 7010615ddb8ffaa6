//! What a route changes on the way: path, host, headers and the model's name, and what it tells in the response.

use outrigger_tests::harness::{Answer, Call, Protocol, Proxy};
use outrigger_tests::sim::{Options, Simulator};
use serde_json::{Value, json};

/// A simulator behind one route with these settings; what does not match it gets a 299.
async fn routed(settings: &str) -> (Simulator, Proxy) {
    let simulator = Simulator::start(Options::named("sim").fast());
    // A second route that no request can reach would be refused.
    let rest = if settings.contains("match:") { "- { respond: { status: 299 } }" } else { "" };
    let proxy = Proxy::start(&format!(
        "backends: {{ main: {{ endpoints: ['{}'] }} }}\n\
         routes:\n  - {{ backend: main, {settings} }}\n  {rest}",
        simulator.endpoint()
    ))
    .await;
    (simulator, proxy)
}

/// The target that the endpoint sees for `target`.
async fn rewritten(settings: &str, target: &str) -> String {
    let (simulator, proxy) = routed(settings).await;
    Call::get(target).send(proxy.address()).await;
    simulator.seen().first().expect("the request was passed on").target.clone()
}

/// Posts `body` and gives the answer of `/mirror`, which is the body as the endpoint got it.
async fn mirrored(proxy: &Proxy, body: impl Into<bytes::Bytes>, protocol: Protocol) -> Answer {
    let answer = Call::post("/mirror").body(body).over(protocol).send(proxy.address()).await;
    assert_eq!((answer.status, answer.cut.as_deref()), (200, None));
    answer
}

#[tokio::test]
async fn an_exact_path_is_replaced_and_keeps_the_query() {
    let settings = "match: { path: /old }, rewrite: { path: /echo }";
    assert_eq!(rewritten(settings, "/old?a=b&c=%2F").await, "/echo?a=b&c=%2F");
}

#[tokio::test]
async fn a_path_is_replaced_without_a_query_where_there_is_none() {
    assert_eq!(rewritten("match: { path: /old }, rewrite: { path: /echo }", "/old").await, "/echo");
}

#[tokio::test]
async fn a_prefix_is_replaced_and_keeps_what_follows() {
    let settings = "match: { path: /api/* }, rewrite: { path: /v1/* }";
    assert_eq!(rewritten(settings, "/api/models/a%20b?q=1").await, "/v1/models/a%20b?q=1");
    assert_eq!(rewritten(settings, "/api/").await, "/v1/");
}

#[tokio::test]
async fn the_prefix_that_matched_is_the_one_that_is_replaced() {
    let settings = "match: { path: [/a/*, /long/b/*] }, rewrite: { path: /v1/* }";
    assert_eq!(rewritten(settings, "/long/b/x").await, "/v1/x");
    assert_eq!(rewritten(settings, "/a/long/b/x").await, "/v1/long/b/x");
}

#[tokio::test]
async fn a_longer_path_is_replaced_as_a_whole_by_an_exact_one() {
    let settings = "match: { path: /api/* }, rewrite: { path: /echo }";
    assert_eq!(rewritten(settings, "/api/x/y?q").await, "/echo?q");
}

#[tokio::test]
async fn a_path_is_rewritten_in_all_versions_of_http() {
    let simulator = Simulator::start(Options::named("sim").fast());
    let proxy = Proxy::start(&format!(
        "backends: {{ main: {{ endpoints: ['{}'], protocol: h2c }} }}\n\
         routes: [{{ backend: main, match: {{ path: /old }}, rewrite: {{ path: /echo, host: in.example }} }}]",
        simulator.endpoint()
    ))
    .await;
    for protocol in [Protocol::Http1, Protocol::H2] {
        let call = Call::get("/old?x=1").host("out.example").over(protocol);
        let echo = call.send(proxy.address()).await.echo();
        assert_eq!((&*echo.target, echo.header(":authority")), ("/echo?x=1", Some("in.example")));
    }
}

#[tokio::test]
async fn the_log_tells_the_path_that_the_client_asked_for() {
    let (_simulator, proxy) = routed("match: { path: /old }, rewrite: { path: /echo }").await;
    Call::get("/old").send(proxy.address()).await;
    assert_eq!(proxy.await_access(1).await[0]["path"], "/old");
}

#[tokio::test]
async fn the_host_is_replaced_and_told_in_x_forwarded_host() {
    let (_simulator, proxy) = routed("rewrite: { host: 'inner.example:81' }").await;
    let echo = Call::get("/echo").host("outer.example").send(proxy.address()).await.echo();
    assert_eq!(echo.all("host"), ["inner.example:81"]);
    assert_eq!(echo.all("x-forwarded-host"), ["outer.example"]);
}

#[tokio::test]
async fn request_headers_are_set_and_removed() {
    let edits =
        "rewrite: { request_headers: { set: { X-Set: new, x-add: added }, remove: [X-Gone] } }";
    let (_simulator, proxy) = routed(edits).await;
    let call = Call::get("/echo").header("x-set", "old").header("x-set", "older");
    let echo = call.header("x-gone", "1").header("x-kept", "1").send(proxy.address()).await.echo();
    assert_eq!((echo.all("x-set"), echo.all("x-add")), (vec!["new"], vec!["added"]));
    assert_eq!((echo.header("x-gone"), echo.header("x-kept")), (None, Some("1")));
}

#[tokio::test]
async fn response_headers_are_set_and_removed() {
    let edits = "rewrite: { response_headers: { set: { X-Set: new, x-sim-name: other }, remove: [Server] } }";
    let (_simulator, proxy) = routed(edits).await;
    for protocol in [Protocol::Http1, Protocol::H2] {
        let answer = Call::get("/echo").over(protocol).send(proxy.address()).await;
        assert_eq!(
            (answer.header("x-set"), answer.header("x-sim-name")),
            (Some("new"), Some("other"))
        );
        assert_eq!((answer.header("server"), answer.status), (None, 200));
        assert_eq!(answer.headers.get_all("x-sim-name").iter().count(), 1);
    }
}

/// Every body with its model, the same body with the new one. Members stand in the order given, which is also that of
/// their names: whether serde_json sorts depends on features that other crates turn on.
fn bodies() -> Vec<(Value, Value)> {
    let with = |before: &Value, model: &str, after: &Value| {
        let mut body = before.clone();
        body["model"] = model.into();
        for (name, value) in after.as_object().into_iter().flatten() {
            body[name] = value.clone();
        }
        body
    };
    let none = json!({});
    let around = [
        (none.clone(), none.clone()),
        (
            json!({"messages": [{"role": "user", "content": "the model is \"model\":\"m\""}]}),
            none.clone(),
        ),
        (json!({"a": {"model": "inner"}}), json!({"z": ["model", "old"]})),
        (json!({"a_long_text_before_the_model": "x".repeat(400_000)}), none.clone()),
        (none, json!({"z_long_text_behind_the_model": "x".repeat(2_000_000)})),
    ];
    let pair = |(before, after): &(Value, Value)| {
        (with(before, "old", after), with(before, "new \"name\"", after))
    };
    around.iter().map(pair).collect()
}

async fn models_are_rewritten(protocol: Protocol) {
    let (_simulator, proxy) = routed("rewrite: { model: 'new \"name\"' }").await;
    for (sent, expected) in bodies() {
        let answer = mirrored(&proxy, sent.to_string(), protocol).await;
        assert!(answer.json() == expected, "{:.200}", answer.text());
    }
}

#[tokio::test]
async fn the_model_is_rewritten_and_nothing_else() {
    models_are_rewritten(Protocol::Http1).await;
}

#[tokio::test]
async fn the_model_is_rewritten_over_h2() {
    models_are_rewritten(Protocol::H2).await;
}

#[tokio::test]
async fn a_rewritten_body_has_the_right_length() {
    let (_simulator, proxy) = routed("rewrite: { model: a-much-longer-name }").await;
    let body = r#"{ "model" : "m" , "n" : 1 }"#;
    let echo = Call::post("/echo").body(body).send(proxy.address()).await.echo();
    let expected = r#"{ "model" : "a-much-longer-name" , "n" : 1 }"#;
    assert_eq!(echo.all("content-length"), [expected.len().to_string()]);
    assert_eq!(
        (echo.bytes, echo.sha256),
        (expected.len() as u64, outrigger_tests::sim::sha256(expected.as_bytes()))
    );
}

#[tokio::test]
async fn a_chunked_body_is_rewritten() {
    let (_simulator, proxy) = routed("rewrite: { model: new }").await;
    let (call, feed) = Call::post("/mirror").fed();
    let send = async {
        for piece in ["{\"x\":1,\"mo", "del\":\"o", "ld\",\"y\"", ":2}"] {
            assert!(feed.send(piece).await);
        }
        drop(feed);
    };
    let (answer, ()) = tokio::join!(call.send(proxy.address()), send);
    assert_eq!(answer.text(), r#"{"x":1,"model":"new","y":2}"#);
}

#[tokio::test]
async fn an_escaped_model_is_replaced_as_a_whole() {
    let (_simulator, proxy) = routed("rewrite: { model: new }").await;
    let body = r#"{"mod\u0065l":"o\"l\u0064","y":2}"#;
    let answer = mirrored(&proxy, body, Protocol::Http1).await;
    assert_eq!(answer.json(), json!({"model": "new", "y": 2}));
}

#[tokio::test]
async fn a_body_without_a_model_is_left_as_it_is() {
    let (_simulator, proxy) = routed("rewrite: { model: new }").await;
    for body in ["not json", "{}", r#"{"x":{"model":"a"}}"#, r#"{"model":1}"#, ""] {
        assert_eq!(mirrored(&proxy, body, Protocol::Http1).await.text(), body);
    }
}

#[tokio::test]
async fn a_model_is_matched_before_it_is_rewritten() {
    let (_simulator, proxy) = routed("match: { model: nice }, rewrite: { model: real-8b }").await;
    let call = |model| Call::chat("hello").model(model).max_tokens(2);
    assert_eq!(call("nice").send(proxy.address()).await.json()["model"], "real-8b");
    assert_eq!(call("real-8b").send(proxy.address()).await.status, 299);
}

#[tokio::test]
async fn the_log_tells_the_model_that_the_client_asked_for() {
    let (_simulator, proxy) = routed("rewrite: { model: real-8b }").await;
    Call::chat("hello").model("nice").max_tokens(2).send(proxy.address()).await;
    assert_eq!(proxy.await_access(1).await[0]["model"], "nice");
}

#[tokio::test]
async fn another_attempt_sends_the_rewritten_body_too() {
    let endpoints = ["one", "two"].map(|name| Simulator::start(Options::named(name).fast()));
    let proxy = Proxy::start(&format!(
        "backends: {{ main: {{ endpoints: ['{}', '{}'], balance: round_robin }} }}\n\
         routes: [{{ backend: main, rewrite: {{ model: a-longer-name }} }}]",
        endpoints[0].endpoint(),
        endpoints[1].endpoint()
    ))
    .await;
    for _ in 0..2 {
        let call = Call::post("/mirror").body(r#"{"model":"m","x":1}"#).fault("reset;at=one");
        let answer = call.send(proxy.address()).await;
        assert_eq!(answer.text(), r#"{"model":"a-longer-name","x":1}"#);
    }
    // By turns: at least one of the two has met the endpoint that fails first.
    assert_eq!(endpoints[1].state().completed, 2);
    assert!(endpoints[0].state().faulted > 0);
}

#[tokio::test]
async fn nothing_is_exposed_unless_it_is_asked_for() {
    let (_simulator, proxy) = routed("").await;
    let answer = Call::get("/echo").send(proxy.address()).await;
    for name in ["x-outrigger-arm", "x-outrigger-attempts", "server-timing"] {
        assert_eq!(answer.header(name), None, "{name}");
    }
}

#[tokio::test]
async fn arm_attempts_and_timing_are_exposed() {
    let (_simulator, proxy) = routed("expose: [arm, attempts, timing]").await;
    for protocol in [Protocol::Http1, Protocol::H2] {
        let answer = Call::get("/echo").over(protocol).send(proxy.address()).await;
        assert_eq!(answer.header("x-outrigger-arm"), Some("main"));
        assert_eq!(answer.header("x-outrigger-attempts"), Some("1"));
        let timing = answer.header("server-timing").unwrap();
        assert!(timing.contains("upstream;dur="), "{timing}");
    }
}
