use super::*;

const ALL: [Coding; 3] = Coding::ALL;
const MODERN: &str = "gzip, deflate, br, zstd";

fn settings() -> Compress {
    Compress { algorithms: ALL.to_vec(), min: 1024, events: true }
}

fn request(method: Method, fields: &[(&str, &str)]) -> RequestHead {
    RequestHead::for_target(method, list(fields), "/v1/completions", 11)
}

fn list(fields: &[(&str, &str)]) -> Fields {
    let mut list = Fields::new();
    for (name, value) in fields {
        list.append(name, value);
    }
    list
}

fn response(status: u16, fields: &[(&str, &str)]) -> ResponseHead {
    let mut head = ResponseHead::new(status);
    head.fields = list(fields);
    head.body = match head.fields.get_str("content-length") {
        Some(length) => BodyLength::Exact(length.parse().unwrap()),
        None => BodyLength::Unknown,
    };
    head
}

/// The plan for a `GET` of a modern client, and the head after it.
fn planned(head: &ResponseHead) -> (Plan, ResponseHead) {
    let plan = plan(&settings(), &request(Method::GET, &[("Accept-Encoding", MODERN)]), head);
    let mut head = head.clone();
    plan.apply(&mut head);
    (plan, head)
}

fn text(head: &ResponseHead) -> Vec<(String, String)> {
    let owned = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    head.fields.iter().map(|(name, value)| (owned(name), owned(value))).collect()
}

#[test]
fn the_client_chooses_and_the_route_breaks_ties() {
    use Coding::{Br, Gzip, Zstd};
    let cases: [(&[&str], &[Coding], Option<Coding>); 30] = [
        (&[], &ALL, None),
        (&[""], &ALL, None),
        (&["gzip"], &ALL, Some(Gzip)),
        (&["x-gzip"], &ALL, Some(Gzip)),
        (&["GZip, BR"], &ALL, Some(Br)),
        (&[MODERN], &ALL, Some(Zstd)),
        (&[MODERN], &[Gzip, Br], Some(Gzip)),
        (&[MODERN], &[], None),
        (&["gzip", "zstd"], &ALL, Some(Zstd)),
        (&["gzip;q=1.0, zstd;q=0.5"], &ALL, Some(Gzip)),
        (&["gzip;q=0.501, zstd;q=0.5"], &ALL, Some(Gzip)),
        (&["gzip;q=0.5,zstd;q=0.50,br;q=0.500"], &ALL, Some(Zstd)),
        (&["gzip;q=0"], &ALL, None),
        (&["gzip;q=0.000"], &ALL, None),
        (&["gzip;q=0.001"], &ALL, Some(Gzip)),
        (&["*"], &ALL, Some(Zstd)),
        (&["*"], &[Gzip], Some(Gzip)),
        (&["*;q=0"], &ALL, None),
        (&["zstd;q=0, *"], &ALL, Some(Br)),
        (&["*;q=0.1, gzip"], &ALL, Some(Gzip)),
        (&["gzip, *;q=0"], &ALL, Some(Gzip)),
        (&["identity"], &ALL, None),
        (&["identity, gzip"], &ALL, Some(Gzip)),
        (&["identity, gzip;q=0.9"], &ALL, None),
        (&["identity;q=0.5, gzip;q=0.9"], &ALL, Some(Gzip)),
        (&["identity;q=0"], &ALL, None),
        (&["deflate, compress, snappy"], &ALL, None),
        (&["gzip ; Q=0.8 , br ; q=0.7"], &ALL, Some(Gzip)),
        (&["gzip, gzip;q=0"], &ALL, None),
        (&[",, gzip ,,"], &ALL, Some(Gzip)),
    ];
    for (accepted, offered, chosen) in cases {
        let values = accepted.iter().map(|value| value.as_bytes());
        assert_eq!(choose(values, offered), chosen, "{accepted:?} {offered:?}");
    }
}

#[test]
fn a_weight_that_can_not_be_read_refuses() {
    for weight in ["", "q", "2", "1.001", "0.1234", "-1", ".5", "0,5", "0.5x", "1e0", "0x1", "1.1"]
    {
        let value = format!("gzip;q={weight}");
        assert_eq!(choose([value.as_bytes()].into_iter(), &ALL), None, "{value}");
    }
    for (weight, thousand) in [("1", 1000), ("1.", 1000), ("1.000", 1000), ("0.5", 500), ("0", 0)] {
        assert_eq!(thousandths(weight.as_bytes()), Some(thousand), "{weight}");
    }
}

#[test]
fn types_that_are_worth_it() {
    let cases = [
        ("application/json", true),
        ("Application/JSON; charset=utf-8", true),
        ("application/problem+json", true),
        ("application/x-ndjson", true),
        ("application/xml", true),
        ("application/atom+xml", true),
        ("image/svg+xml", true),
        ("text/html", true),
        ("text/plain;version=0.0.4", true),
        ("text/javascript", true),
        ("application/openmetrics-text; version=1.0.0", true),
        ("text/event-stream", true),
        ("application/grpc", false),
        ("application/grpc+json", false),
        ("application/grpc-web-text", false),
        ("application/connect+json", false),
        ("application/x-protobuf", false),
        ("application/octet-stream", false),
        ("application/zip", false),
        ("application/gzip", false),
        ("image/png", false),
        ("audio/mpeg", false),
        ("video/mp4", false),
        ("multipart/form-data", false),
        ("application/jsonx", false),
        ("+json", true),
        ("", false),
    ];
    for (media, compressed) in cases {
        let (plan, head) = planned(&response(200, &[("Content-Type", media)]));
        assert_eq!(plan.coding.is_some(), compressed, "{media}");
        // What is never compressed for anyone does not vary.
        assert_eq!(head.fields.contains("vary"), compressed, "{media}");
    }
    let (plan, _) = planned(&response(200, &[("content-length", "5000")]));
    assert_eq!(plan, Plan::UNTOUCHED, "without a type");
}

#[test]
fn events_only_where_asked_for_and_flushed_then() {
    let head = response(200, &[("content-type", "text/event-stream; charset=utf-8")]);
    let (plan_, _) = planned(&head);
    assert_eq!((plan_.coding, plan_.flow), (Some(Coding::Zstd), Flow::Events));
    let off = Compress { events: false, ..settings() };
    let client = request(Method::POST, &[("accept-encoding", MODERN)]);
    assert_eq!(plan(&off, &client, &head), Plan::UNTOUCHED);
}

#[test]
fn lines_of_unknown_number_are_flushed_like_events() {
    let lines = ("content-type", "application/x-ndjson");
    assert_eq!(planned(&response(200, &[lines])).0.flow, Flow::Events);
    let whole = response(200, &[lines, ("content-length", "5000")]);
    assert_eq!(planned(&whole).0.flow, Flow::Body { length: Some(5000) });
    let json = response(200, &[("content-type", "application/json")]);
    assert_eq!(planned(&json).0.flow, Flow::Body { length: None });
}

#[test]
fn short_bodies_go_as_they_are_and_unknown_ones_do_not() {
    for (length, compressed) in [("0", false), ("1023", false), ("1024", true), ("9999", true)] {
        let head =
            response(200, &[("content-type", "application/json"), ("content-length", length)]);
        let (plan, after) = planned(&head);
        assert_eq!(plan.coding.is_some(), compressed, "{length}");
        assert_eq!(after.body == BodyLength::Unknown, compressed, "{length}");
    }
    let unknown = response(200, &[("content-type", "application/json")]);
    assert!(planned(&unknown).0.coding.is_some());
    let all = Compress { min: 0, ..settings() };
    let client = request(Method::GET, &[("accept-encoding", MODERN)]);
    let empty = response(200, &[("content-type", "text/plain"), ("content-length", "0")]);
    assert_eq!(plan(&all, &client, &empty).coding, None);
}

#[test]
fn statuses() {
    for status in [200, 201, 203, 299, 400, 401, 404, 422, 429, 500, 503] {
        let (plan, _) = planned(&response(status, &[("content-type", "application/json")]));
        assert!(plan.coding.is_some(), "{status}");
        assert!(plan.encoder().unwrap().is_some(), "{status}");
    }
    for status in [100, 101, 103, 204, 205, 206, 226] {
        let (plan, _) = planned(&response(status, &[("content-type", "application/json")]));
        assert_eq!(plan, Plan::UNTOUCHED, "{status}");
    }
    let part = [("content-type", "text/plain"), ("content-range", "bytes */9999")];
    assert_eq!(planned(&response(416, &part)).0, Plan::UNTOUCHED);
}

#[test]
fn never_twice_and_never_against_no_transform() {
    let json = ("content-type", "application/json");
    for field in [
        ("content-encoding", "gzip"),
        ("Content-Encoding", "identity, br"),
        ("content-encoding", "unheard-of"),
        ("cache-control", "public, No-Transform"),
    ] {
        let head = response(200, &[json, field, ("etag", "\"a\"")]);
        let (plan, after) = planned(&head);
        assert_eq!(plan, Plan::UNTOUCHED, "{field:?}");
        assert_eq!(text(&after), text(&head), "{field:?}");
    }
    let (_, after) = planned(&response(200, &[json, ("content-encoding", "identity")]));
    assert_eq!(after.fields.get_all("content-encoding").collect::<Vec<_>>(), [b"zstd"]);
    let fields = [("accept-encoding", MODERN), ("cache-control", "no-transform")];
    let careful = request(Method::GET, &fields);
    assert_eq!(plan(&settings(), &careful, &response(200, &[json])), Plan::UNTOUCHED);
    let connect = request(Method::CONNECT, &[("accept-encoding", MODERN)]);
    assert_eq!(plan(&settings(), &connect, &response(200, &[json])), Plan::UNTOUCHED);
}

#[test]
fn the_head_says_what_the_body_is() {
    let (plan, after) = planned(&response(
        200,
        &[
            ("Content-Type", "application/json"),
            ("Content-Length", "5000"),
            ("ETag", "\"v1\""),
            ("Accept-Ranges", "bytes"),
            ("Content-Digest", "sha-256=:AA==:"),
            ("Repr-Digest", "sha-256=:AA==:"),
            ("Digest", "sha-256=AA=="),
            ("Content-MD5", "AA=="),
            ("Vary", "origin"),
            ("X-Kept", "1"),
        ],
    ));
    assert_eq!(plan.flow, Flow::Body { length: Some(5000) });
    assert_eq!(after.body, BodyLength::Unknown);
    let expected = [
        ("Content-Type", "application/json"),
        ("Vary", "origin"),
        ("X-Kept", "1"),
        ("vary", "accept-encoding"),
        ("etag", "W/\"v1\""),
        ("content-encoding", "zstd"),
    ];
    assert_eq!(text(&after), expected.map(|(n, v)| (n.to_owned(), v.to_owned())));
}

#[test]
fn tags() {
    for (before, after) in
        [("\"a\"", Some("W/\"a\"")), ("W/\"a\"", Some("W/\"a\"")), ("a", None), ("", None)]
    {
        let head = response(200, &[("content-type", "text/plain"), ("etag", before)]);
        assert_eq!(planned(&head).1.fields.get_str("etag"), after, "{before}");
    }
}

#[test]
fn it_varies_also_for_clients_that_take_nothing() {
    let head = response(200, &[("content-type", "application/json"), ("etag", "\"a\"")]);
    for fields in [&[][..], &[("accept-encoding", "identity")], &[("accept-encoding", "lzma")]] {
        let plan = plan(&settings(), &request(Method::GET, fields), &head);
        let mut after = head.clone();
        plan.apply(&mut after);
        assert_eq!(after.fields.get_str("vary"), Some("accept-encoding"));
        // Its bytes are the origin's own, so its tag stays.
        assert_eq!(after.fields.get_str("etag"), Some("\"a\""));
        assert!(plan.encoder().unwrap().is_none());
    }
    for said in ["*", "Accept-Encoding", "origin, accept-encoding"] {
        let head = response(200, &[("content-type", "application/json"), ("vary", said)]);
        assert_eq!(planned(&head).1.fields.get_all("vary").count(), 1, "{said}");
    }
}

#[test]
fn who_asks_for_a_part_gets_the_bytes_as_they_are() {
    let fields = [("accept-encoding", MODERN), ("range", "bytes=0-99")];
    let head = response(200, &[("content-type", "text/plain"), ("accept-ranges", "bytes")]);
    let plan = plan(&settings(), &request(Method::GET, &fields), &head);
    let mut after = head.clone();
    plan.apply(&mut after);
    assert_eq!(plan.coding, None);
    assert!(after.fields.contains("accept-ranges") && after.fields.contains("vary"));
}

#[test]
fn head_is_answered_like_get_without_a_body() {
    let mut head = response(200, &[("content-type", "text/plain"), ("content-length", "5000")]);
    head.body = BodyLength::Empty;
    let client = request(Method::HEAD, &[("accept-encoding", MODERN)]);
    let plan_ = plan(&settings(), &client, &head);
    assert!(plan_.encoder().unwrap().is_none());
    plan_.apply(&mut head);
    assert_eq!(head.fields.get_str("content-encoding"), Some("zstd"));
    assert!(!head.fields.contains("content-length"));
    assert_eq!(head.body, BodyLength::Empty);
    // What `GET` would leave alone, `HEAD` does too.
    let mut short = response(200, &[("content-type", "text/plain"), ("content-length", "50")]);
    short.body = BodyLength::Empty;
    assert_eq!(plan(&settings(), &client, &short), Plan::UNTOUCHED);
}

#[test]
fn not_modified_carries_the_tag_that_the_client_has() {
    let mut head = response(304, &[("etag", "\"a\"")]);
    head.body = BodyLength::Empty;
    let (plan_, after) = planned(&head);
    assert_eq!(plan_.coding, None);
    assert_eq!(after.fields.get_str("etag"), Some("W/\"a\""));
    assert_eq!(after.fields.get_str("vary"), Some("accept-encoding"));
    assert_eq!(after.body, BodyLength::Empty);
    let plain = request(Method::GET, &[]);
    let mut strong = head.clone();
    plan(&settings(), &plain, &head).apply(&mut strong);
    assert_eq!(strong.fields.get_str("etag"), Some("\"a\""));
    let picture = response(304, &[("etag", "\"a\""), ("content-type", "image/png")]);
    assert_eq!(planned(&picture).0, Plan::UNTOUCHED);
}
