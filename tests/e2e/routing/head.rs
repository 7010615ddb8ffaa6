//! Matching by what is in the head of a request.

use outrigger_tests::harness::{Call, Protocol};

use super::{route_of, routes};

#[tokio::test]
async fn a_host_is_matched_exactly() {
    let proxy = routes(&["{ host: api.example.com }"]).await;
    let host = |host| route_of(&proxy, Call::get("/").host(host));
    assert_eq!(host("api.example.com").await, Some(0));
    assert_eq!(host("www.example.com").await, None);
    assert_eq!(host("api.example.com.evil").await, None);
    assert_eq!(host("x.api.example.com").await, None);
}

#[tokio::test]
async fn a_host_is_matched_without_its_port() {
    let proxy = routes(&["{ host: api.example.com }"]).await;
    assert_eq!(route_of(&proxy, Call::get("/").host("api.example.com:8080")).await, Some(0));
}

#[tokio::test]
async fn a_host_is_matched_whatever_its_case() {
    let proxy = routes(&["{ host: Api.example.com }"]).await;
    assert_eq!(route_of(&proxy, Call::get("/").host("aPI.Example.COM")).await, Some(0));
}

#[tokio::test]
async fn a_host_may_be_any_of_a_list() {
    let proxy = routes(&["{ host: [a.example, b.example] }"]).await;
    assert_eq!(route_of(&proxy, Call::get("/").host("b.example")).await, Some(0));
    assert_eq!(route_of(&proxy, Call::get("/").host("c.example")).await, None);
}

#[tokio::test]
async fn a_wildcard_host_stands_for_what_is_below_it() {
    let proxy = routes(&["{ host: '*.example.com' }"]).await;
    assert_eq!(route_of(&proxy, Call::get("/").host("a.example.com")).await, Some(0));
    assert_eq!(route_of(&proxy, Call::get("/").host("example.com")).await, None);
    assert_eq!(route_of(&proxy, Call::get("/").host("aexample.com")).await, None);
}

#[tokio::test]
async fn an_h2_request_is_matched_by_its_authority() {
    let proxy = routes(&["{ host: api.example.com }"]).await;
    assert_eq!(route_of(&proxy, Call::get("/").host("api.example.com:1").h2()).await, Some(0));
    assert_eq!(route_of(&proxy, Call::get("/").host("other.example.com").h2()).await, None);
}

#[tokio::test]
async fn an_ipv6_host_is_matched_without_its_port() {
    let proxy = routes(&["{ host: '[::1]' }"]).await;
    assert_eq!(route_of(&proxy, Call::get("/").host("[::1]:8080")).await, Some(0));
    assert_eq!(route_of(&proxy, Call::get("/").host("[::2]:8080")).await, None);
}

#[tokio::test]
async fn a_path_without_a_star_is_matched_exactly() {
    let proxy = routes(&["{ path: /v1/models }"]).await;
    for (path, expected) in [
        ("/v1/models", Some(0)),
        ("/v1/models?limit=1", Some(0)),
        ("/v1/models/", None),
        ("/v1/model", None),
        ("/V1/models", None),
        ("/v1/models/x", None),
    ] {
        assert_eq!(route_of(&proxy, Call::get(path)).await, expected, "{path}");
    }
}

#[tokio::test]
async fn a_path_with_a_star_at_its_end_is_a_prefix() {
    let proxy = routes(&["{ path: /v1/* }"]).await;
    for (path, expected) in
        [("/v1/", Some(0)), ("/v1/a/b", Some(0)), ("/v1", None), ("/v10/a", None), ("/a/v1/", None)]
    {
        assert_eq!(route_of(&proxy, Call::get(path)).await, expected, "{path}");
    }
}

#[tokio::test]
async fn a_path_with_a_star_inside_is_a_glob() {
    let proxy = routes(&["{ path: /v1/*/tokens }"]).await;
    for (path, expected) in [
        ("/v1/a/tokens", Some(0)),
        ("/v1/a/b/tokens", Some(0)),
        ("/v1/tokens", None),
        ("/v1/a/tokens/x", None),
    ] {
        assert_eq!(route_of(&proxy, Call::get(path)).await, expected, "{path}");
    }
}

#[tokio::test]
async fn the_query_is_no_part_of_the_path() {
    let proxy = routes(&["{ path: /a/*/end }"]).await;
    assert_eq!(route_of(&proxy, Call::get("/a/b?x=/end")).await, None);
}

#[tokio::test]
async fn a_method_is_matched_with_its_case() {
    let proxy = routes(&["{ method: [POST, PUT] }", "{ method: GET }"]).await;
    assert_eq!(route_of(&proxy, Call::new("PUT", "/")).await, Some(0));
    assert_eq!(route_of(&proxy, Call::post("/")).await, Some(0));
    assert_eq!(route_of(&proxy, Call::get("/")).await, Some(1));
    assert_eq!(route_of(&proxy, Call::new("DELETE", "/")).await, None);
    assert_eq!(route_of(&proxy, Call::new("get", "/")).await, None);
}

#[tokio::test]
async fn a_header_is_matched_by_a_glob() {
    let proxy = routes(&["{ headers: { X-Tenant: gold-* } }"]).await;
    assert_eq!(route_of(&proxy, Call::get("/").header("x-tenant", "gold-1")).await, Some(0));
    assert_eq!(route_of(&proxy, Call::get("/").header("x-tenant", "silver")).await, None);
    assert_eq!(route_of(&proxy, Call::get("/")).await, None);
}

#[tokio::test]
async fn a_star_means_that_the_header_is_there() {
    let proxy = routes(&["{ headers: { x-debug: '*' } }"]).await;
    assert_eq!(route_of(&proxy, Call::get("/").header("x-debug", "")).await, Some(0));
    assert_eq!(route_of(&proxy, Call::get("/")).await, None);
}

#[tokio::test]
async fn any_of_repeated_headers_may_match() {
    let proxy = routes(&["{ headers: { x-tenant: gold } }"]).await;
    let call = Call::get("/").header("x-tenant", "silver").header("x-tenant", "gold");
    assert_eq!(route_of(&proxy, call).await, Some(0));
}

#[tokio::test]
async fn all_of_several_headers_must_match() {
    let proxy = routes(&["{ headers: { x-a: '1', x-b: '2' } }"]).await;
    assert_eq!(route_of(&proxy, Call::get("/").header("x-a", "1")).await, None);
    let both = Call::get("/").header("x-a", "1").header("x-b", "2");
    assert_eq!(route_of(&proxy, both).await, Some(0));
}

#[tokio::test]
async fn a_query_parameter_is_matched_by_a_glob() {
    let proxy = routes(&["{ query: { debug: '1*' } }"]).await;
    for (target, expected) in [
        ("/?debug=1", Some(0)),
        ("/?a=b&debug=12", Some(0)),
        ("/?debug=2", None),
        ("/?xdebug=1", None),
        ("/?debug", None),
        ("/", None),
    ] {
        assert_eq!(route_of(&proxy, Call::get(target)).await, expected, "{target}");
    }
}

#[tokio::test]
async fn a_star_means_that_the_query_parameter_is_there() {
    let proxy = routes(&["{ query: { debug: '*' } }"]).await;
    assert_eq!(route_of(&proxy, Call::get("/?debug")).await, Some(0));
    assert_eq!(route_of(&proxy, Call::get("/?debug=")).await, Some(0));
    assert_eq!(route_of(&proxy, Call::get("/?other")).await, None);
}

#[tokio::test]
async fn all_keys_of_a_match_must_hold() {
    let wanted =
        "{ host: a.example, path: /p, method: POST, headers: { x-a: '1' }, query: { q: '1' } }";
    let proxy = routes(&[wanted]).await;
    let call =
        |host, method, target, value| Call::new(method, target).host(host).header("x-a", value);
    assert_eq!(route_of(&proxy, call("a.example", "POST", "/p?q=1", "1")).await, Some(0));
    for other in [
        call("b.example", "POST", "/p?q=1", "1"),
        call("a.example", "GET", "/p?q=1", "1"),
        call("a.example", "POST", "/o?q=1", "1"),
        call("a.example", "POST", "/p?q=2", "1"),
        call("a.example", "POST", "/p?q=1", "2"),
    ] {
        let told = format!("{other:?}");
        assert_eq!(route_of(&proxy, other).await, None, "{told}");
    }
}

#[tokio::test]
async fn the_first_match_wins() {
    let proxy = routes(&["{ path: /a/b }", "{ path: /a/* }", "{ path: /a/b }", "{}"]).await;
    for protocol in [Protocol::Http1, Protocol::H2] {
        let path = |path| route_of(&proxy, Call::get(path).over(protocol));
        assert_eq!(path("/a/b").await, Some(0));
        assert_eq!(path("/a/c").await, Some(1));
        assert_eq!(path("/b").await, Some(3));
    }
}

#[tokio::test]
async fn an_absolute_target_is_matched_by_its_own_host_and_path() {
    let proxy = routes(&["{ host: real.example, path: /p }"]).await;
    let request = "GET http://real.example/p HTTP/1.1\r\nhost: other.example\r\n\r\n";
    assert_eq!(crate::wire::answer_to(&proxy, request).await.text(), "route 0");
}
