//! Requests that are answered without a backend: no route, redirects and fixed responses.

use outrigger_tests::harness::{Call, Protocol, Proxy, Raw};
use serde_json::json;

use super::routes;

#[tokio::test]
async fn no_route_under_v1_is_a_404_in_the_shape_of_openai() {
    let proxy = routes(&["{ path: /a }"]).await;
    for protocol in [Protocol::Http1, Protocol::H2] {
        let answer = Call::chat("hello").over(protocol).send(proxy.address()).await;
        assert_eq!((answer.status, answer.header("content-type")), (404, Some("application/json")));
        let error = &answer.json()["error"];
        assert_eq!(
            (&error["code"], &error["type"]),
            (&json!("no_route"), &json!("invalid_request_error"))
        );
        assert!(error["message"].as_str().unwrap().contains("/v1/chat/completions"), "{error}");
        assert_eq!(error["param"], json!(null));
    }
}

#[tokio::test]
async fn no_route_elsewhere_is_a_404_as_problem_json() {
    let proxy = routes(&["{ path: /a }"]).await;
    let answer = Call::get("/b?secret=1").send(proxy.address()).await;
    assert_eq!(answer.status, 404);
    assert_eq!(answer.header("content-type"), Some("application/problem+json"));
    let problem = answer.json();
    assert_eq!((&problem["status"], &problem["title"]), (&json!(404), &json!("Not Found")));
    assert_eq!(problem["outcome"], json!("no_route"));
    assert!(!answer.text().contains("secret"), "a query may hold what nobody should see");
}

#[tokio::test]
async fn the_shape_of_errors_can_be_chosen() {
    let proxy = Proxy::start(
        "backends: { dead: { endpoints: ['127.0.0.1:9'] } }\n\
         routes:\n\
         - { match: { path: /a }, backend: dead, errors: openai }\n\
         - { match: { path: /v1/b }, backend: dead, errors: problem }",
    )
    .await;
    let openai = Call::get("/a").send(proxy.address()).await;
    assert_eq!((openai.status, &openai.json()["error"]["code"]), (502, &json!("connect_failed")));
    let problem = Call::get("/v1/b").send(proxy.address()).await;
    assert_eq!((problem.status, &problem.json()["outcome"]), (502, &json!("connect_failed")));
}

#[tokio::test]
async fn a_redirect_tells_where_to() {
    let proxy = Proxy::start(
        "routes:\n\
         - { match: { path: /old }, redirect: { to: 'https://example.com/new', status: 308 } }\n\
         - { match: { path: /see }, redirect: { to: /other, status: 303 } }",
    )
    .await;
    for protocol in [Protocol::Http1, Protocol::H2] {
        let answer = Call::get("/old").over(protocol).send(proxy.address()).await;
        assert_eq!(
            (answer.status, answer.header("location")),
            (308, Some("https://example.com/new"))
        );
        let answer = Call::post("/see").body("x").over(protocol).send(proxy.address()).await;
        assert_eq!((answer.status, answer.header("location")), (303, Some("/other")));
    }
}

#[tokio::test]
async fn a_fixed_response_has_its_status_body_and_headers() {
    let proxy = Proxy::start(
        "routes: [{ match: { path: /ping }, respond: \
         { status: 418, body: pong, headers: { content-type: text/plain, x-a: b } } }]",
    )
    .await;
    for protocol in [Protocol::Http1, Protocol::H2] {
        let answer = Call::get("/ping").over(protocol).send(proxy.address()).await;
        assert_eq!((answer.status, answer.text()), (418, "pong".to_owned()));
        assert_eq!(
            (answer.header("content-type"), answer.header("x-a")),
            (Some("text/plain"), Some("b"))
        );
        assert!(answer.header("date").is_some());
    }
}

#[tokio::test]
async fn a_fixed_response_has_its_length() {
    let proxy = Proxy::start("routes: [{ respond: { status: 200, body: pong } }]").await;
    let answer = Call::get("/").send(proxy.address()).await;
    assert_eq!((answer.header("content-length"), answer.text()), (Some("4"), "pong".to_owned()));
}

#[tokio::test]
async fn a_fixed_response_without_a_body_has_the_length_zero() {
    let proxy = Proxy::start("routes: [{ respond: { status: 200 } }]").await;
    let mut raw = Raw::connect(proxy.address()).await;
    raw.get("/").await;
    let response = raw.response().await;
    assert_eq!((response.header("content-length"), response.body().len()), (Some("0"), 0));
}

#[tokio::test]
async fn a_fixed_204_has_no_length() {
    let proxy = Proxy::start("routes: [{ respond: { status: 204 } }]").await;
    let mut raw = Raw::connect(proxy.address()).await;
    raw.get("/").await;
    let head = raw.head().await.unwrap();
    assert_eq!((head.status, head.header("content-length")), (204, None));
    raw.get("/").await;
    assert_eq!(raw.head().await.unwrap().status, 204);
}

#[tokio::test]
async fn a_fixed_response_answers_a_large_upload() {
    let proxy = Proxy::start("routes: [{ respond: { status: 200, body: hi } }]").await;
    for protocol in [Protocol::Http1, Protocol::H2] {
        let call = Call::post("/").body(vec![0; 2_000_000]).over(protocol);
        let answer = call.send(proxy.address()).await;
        assert_eq!((answer.status, answer.text(), answer.cut), (200, "hi".to_owned(), None));
    }
}
