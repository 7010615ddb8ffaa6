//! Who never shares a call: requests that ask for something else or as somebody else, and those that can not.

use outrigger_tests::harness::{Call, Load, Proxy};
use outrigger_tests::sim::{Options, Simulator};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::{
    COMPLETIONS, EMBEDDINGS, FULL, PATIENT, Table, at_once, batches, call_of, calls_of, complete,
    embed, expect_company, expect_own, text, told, travelled,
};
use crate::fleet::{endpoints, one_backend_at, sim};

/// Sends as many of two kinds as fill a batch each, mixed; expects each kind to travel together and not with the other.
async fn never_meet(
    table: &Table,
    what: &str,
    one: impl Fn(Value) -> Call,
    other: impl Fn(Value) -> Call,
) {
    table.expects_company(&one).await;
    table.expects_company(&other).await;
    let mixed = (0..2 * FULL).map(|index| match index % 2 {
        0 => one(text(index).into()),
        _ => other(text(index).into()),
    });
    let answers = at_once(table.address(), mixed).await;
    let of = |kind: usize| {
        let own = answers.iter().skip(kind).step_by(2).map(call_of);
        own.collect::<std::collections::BTreeSet<_>>()
    };
    assert_eq!((of(0).len(), of(1).len()), (1, 1), "{what}: {:?} {:?}", of(0), of(1));
    assert_ne!(of(0), of(1), "{what}");
    let like = |index: usize| match index % 2 {
        0 => one(text(index).into()),
        _ => other(text(index).into()),
    };
    expect_own(table, &answers, like).await;
}

#[tokio::test]
async fn models_never_meet() {
    let table = Table::set("").await;
    never_meet(&table, "model", embed, |input| embed(input).model("another")).await;
}

#[tokio::test]
async fn those_who_authorize_themselves_differently_never_meet() {
    let table = Table::set("").await;
    let with = |name: &'static str, value: &'static str| {
        move |input: Value| embed(input).header(name, value)
    };
    let bearer = |token| with("authorization", token);
    never_meet(&table, "nobody", embed, bearer("Bearer one")).await;
    never_meet(&table, "two bearers", bearer("Bearer one"), bearer("Bearer two")).await;
    never_meet(&table, "two keys", with("x-api-key", "one"), with("x-api-key", "two")).await;
    never_meet(&table, "two cookies", with("cookie", "s=1"), with("cookie", "s=2")).await;
    never_meet(&table, "two tenants", with("x-tenant", "a"), with("x-tenant", "b")).await;
}

#[tokio::test]
async fn each_bearer_is_what_the_server_sees_of_its_own_batch() {
    let table = Table::set("").await;
    let bearer =
        |token: &'static str| move |input: Value| embed(input).header("authorization", token);
    for token in ["Bearer one", "Bearer two"] {
        table.expects_company(bearer(token)).await;
        let answers =
            at_once(table.address(), (0..FULL).map(|i| bearer(token)(text(i).into()))).await;
        assert_eq!(calls_of(&answers).len(), 1);
        let seen = table.simulator.seen();
        let last = seen.last().and_then(|seen| seen.header("authorization"));
        assert_eq!(last, Some(token));
    }
}

#[tokio::test]
async fn parameters_never_meet() {
    let table = Table::set("").await;
    let with = |name: &'static str, value: Value| {
        move |input: Value| embed(input).field(name, value.clone())
    };
    never_meet(&table, "dimensions", embed, with("dimensions", 4.into())).await;
    never_meet(&table, "user", with("user", "a".into()), with("user", "b".into())).await;
    let form = |form: &str| with("encoding_format", form.into());
    never_meet(&table, "form", form("float"), form("base64")).await;
    never_meet(&table, "unknown", with("x", json!({"a": 1})), with("x", json!({"a": 2}))).await;
}

#[tokio::test]
async fn lengths_and_choices_of_completions_never_meet() {
    let table = Table::set("").await;
    never_meet(&table, "max_tokens", complete, |prompt| complete(prompt).max_tokens(6)).await;
    never_meet(&table, "n", complete, |prompt| complete(prompt).field("n", 2)).await;
}

#[tokio::test]
async fn embeddings_and_completions_never_meet() {
    let table = Table::set("").await;
    never_meet(&table, "api", embed, complete).await;
}

#[tokio::test]
async fn hosts_never_meet() {
    let table = Table::set("").await;
    let host = |host: &'static str| move |input: Value| embed(input).host(host);
    never_meet(&table, "host", host("a.example.com"), host("b.example.com")).await;
}

/// What stands behind the question mark is part of what is asked: Azure's `api-version`, a key of Google's.
#[tokio::test]
async fn queries_never_meet() {
    let table = Table::set("").await;
    let to = |target: &'static str| {
        move |input: Value| {
            let call = Call::post(target);
            call.json(json!({"model": "m", "input": input}))
        }
    };
    let (one, two) = ("/v1/embeddings?api-version=1", "/v1/embeddings?api-version=2");
    never_meet(&table, "query", to(one), to(two)).await;
    never_meet(&table, "no query", to(EMBEDDINGS), to(one)).await;
}

/// A server that tells each request its id, as some do: a whole answer for every request that it reads.
async fn telling_ids(listener: TcpListener) {
    while let Ok((stream, _)) = listener.accept().await {
        tokio::spawn(tell_ids(stream));
    }
}

async fn tell_ids(mut stream: TcpStream) -> Option<()> {
    let mut bytes = Vec::new();
    loop {
        let end = loop {
            if let Some(at) = bytes.windows(4).position(|part| part == b"\r\n\r\n") {
                break at + 4;
            }
            stream.read_buf(&mut bytes).await.ok().filter(|count| *count > 0)?;
        };
        let head = String::from_utf8_lossy(&bytes[..end]).to_lowercase();
        let field = |name: &str| {
            let line = head.lines().find_map(|line| line.strip_prefix(name));
            line.map(|value| value.trim().to_owned())
        };
        let length: usize = field("content-length:")?.parse().ok()?;
        while bytes.len() < end + length {
            stream.read_buf(&mut bytes).await.ok().filter(|count| *count > 0)?;
        }
        let ask: Value = serde_json::from_slice(&bytes[end..end + length]).ok()?;
        bytes.drain(..end + length);
        let prompts = ask["input"].as_array().map_or(1, Vec::len);
        let data = (0..prompts).map(|index| json!({"index": index, "embedding": [index]}));
        let body = json!({"id": "embd-told-0", "data": data.collect::<Vec<_>>()}).to_string();
        let id = field("x-request-id:")?;
        let head = format!(
            "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\nx-request-id: {id}\r\n\
             content-length: {}\r\n\r\n",
            body.len()
        );
        stream.write_all(&[head.as_bytes(), body.as_bytes()].concat()).await.ok()?;
    }
}

/// Whoever looks for his request in the server's log must not find another's.
#[tokio::test]
async fn nobody_is_told_the_id_of_another() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("an address");
    tokio::spawn(telling_ids(listener));
    let batch = "batch: { window: 50ms, requests: 8, bytes: 1MiB }";
    let proxy = Proxy::start(&one_backend_at(&format!("['{address}']"), "", batch)).await;
    let call =
        |index: usize| embed(text(index)).header("x-request-id", &format!("request-{index}"));
    let report = Load::of(400).at_once(32).run(proxy.address(), call).await;
    assert_eq!(report.ok(), 400, "{:?}", report.outcomes());
    assert!(travelled(&proxy.metrics().await, "together") > 0);
    for sample in &report.samples {
        let answer = sample.answer.as_ref().expect("an answer");
        let own = format!("request-{}", sample.index);
        assert!(answer.header("x-request-id").is_none_or(|id| id == own), "{own}: {answer:?}");
    }
}

#[tokio::test]
async fn arms_never_meet() {
    let (stable, canary) = (sim("stable"), sim("canary"));
    let yaml = format!(
        "backends:\n  stable: {{ endpoints: {} }}\n  canary: {{ endpoints: {} }}\n\
         routes: [{{ name: all, split: {{ stable: 50, canary: 50 }}, sticky: {{ body: user }}, \
         expose: [arm], {PATIENT} }}]\n",
        endpoints(&[&stable]),
        endpoints(&[&canary]),
    );
    let proxy = Proxy::start(&yaml).await;
    // Without a key they take turns, so that each arm has seen half of them.
    expect_company(&proxy, &[&stable, &canary], "tide", embed).await;
    expect_company(&proxy, &[&stable, &canary], "tide", embed).await;
    let answers = at_once(proxy.address(), (0..2 * FULL).map(|index| embed(text(index)))).await;
    for (arm, simulator) in [("stable", &stable), ("canary", &canary)] {
        let own: Vec<_> = answers.iter().filter(|answer| answer.by() == arm).cloned().collect();
        assert_eq!((own.len(), calls_of(&own).len()), (FULL, 1), "{arm}");
        assert!(own.iter().all(|answer| answer.header("x-outrigger-arm") == Some(arm)));
        for answer in &own {
            let index = answers.iter().position(|other| other.body == answer.body);
            let expected = embed(text(index.expect("one of them"))).send(simulator.addr).await;
            assert_eq!(answer.json()["data"], expected.json()["data"]);
        }
    }
}

#[tokio::test]
async fn streamed_completions_go_their_own_way() {
    let table = Table::set("").await;
    table.expects_company(complete).await;
    let mut streams = Vec::new();
    for index in 0..FULL {
        let call = complete(text(index)).streaming();
        streams.push(tokio::spawn(call.open(table.address())));
    }
    for (index, stream) in streams.into_iter().enumerate() {
        let transcript = stream.await.expect("it is answered").events().await;
        assert!(transcript.is_complete(), "{transcript:?}");
        let alone = table.alone(complete(text(index))).await.json();
        assert_eq!(json!(transcript.text()), alone["choices"][0]["text"]);
    }
    let metrics = table.proxy.metrics().await;
    let not_possible = travelled(&metrics, "not_possible");
    assert_eq!((not_possible, batches(&metrics)), (FULL as u64, 0), "{}", told(&metrics));
}

#[tokio::test]
async fn what_is_no_json_or_no_such_request_goes_its_own_way() {
    let table = Table::set("").await;
    table.expects_company(embed).await;
    let body = json!({"model": "m", "input": "tide"}).to_string();
    let plain = || Call::post(EMBEDDINGS).body(body.clone());
    let typed = |kind: &str, body: &str| {
        Call::post(EMBEDDINGS).header("content-type", kind).body(body.to_owned())
    };
    let json = "application/json";
    let twice = r#"{"input":"a","model":"m","Input":"b"}"#;
    let calls = [
        (plain(), 200),
        (typed("text/plain", &body), 200),
        (typed(json, "{"), 400),
        (typed(json, ""), 400),
        (typed(json, "[]"), 400),
        (typed(json, twice), 200),
        (typed(json, r#"{"input":""}"#), 400),
        (typed(json, r#"{"input":["a",[1]]}"#), 200),
        (typed(json, r#"{"input":"a","encoding_format":"bytes"}"#), 200),
        (typed(json, r#"{"input":"a","stream":true}"#), 200),
        (Call::get(EMBEDDINGS), 405),
        (Call::get("/v1/models"), 200),
        (Call::chat("how deep?").max_tokens(2), 200),
        (Call::post("/echo").json(json!({"input": "a"})), 200),
    ];
    let before = table.calls();
    let (calls, statuses): (Vec<_>, Vec<_>) = calls.into_iter().unzip();
    let count = calls.len();
    let answers = at_once(table.address(), calls).await;
    let found: Vec<_> = answers.iter().map(|answer| answer.status).collect();
    assert_eq!(found, statuses);
    assert_eq!(table.calls(), before + count as u64, "each went by itself");
    assert_eq!(batches(&table.proxy.metrics().await), 0);
}

#[tokio::test]
async fn bodies_too_long_for_a_batch_go_their_own_way_however_they_are_framed() {
    let simulator = sim("stable");
    let batch = "batch: { window: 1s, requests: 8, bytes: 1KiB }";
    let proxy = Proxy::start(&super::one_backend(&[&simulator], "", batch)).await;
    let table = Table { simulator, proxy };
    table.expects_company(embed).await;
    let before = table.calls();
    let long = |index: usize| embed(format!("{index}").repeat(1 << 20));
    // Of unknown length, so that only reading tells how long it is.
    let mut chunked = Vec::new();
    for index in 0..4 {
        let (call, feed) = long(index).fed();
        let body = json!({"model": "m", "input": format!("{index}").repeat(1 << 20)}).to_string();
        let answer = tokio::spawn(call.send(table.address()));
        for part in body.as_bytes().chunks(10_000) {
            assert!(feed.send(part.to_vec()).await);
        }
        chunked.push(answer);
    }
    let mut answers = at_once(table.address(), (0..4).map(long)).await;
    expect_own(&table, &answers, long).await;
    answers.clear();
    for answer in chunked {
        answers.push(answer.await.expect("it is answered"));
    }
    expect_own(&table, &answers, long).await;
    assert_eq!(table.calls(), before + 8 + 8, "each by itself, and what the test asked");
    assert_eq!(batches(&table.proxy.metrics().await), 0);
}

#[tokio::test]
async fn short_bodies_of_unknown_length_are_batched() {
    let table = Table::set("").await;
    table.expects_company(embed).await;
    let mut sent = Vec::new();
    for index in 0..FULL {
        let (call, feed) = embed("").fed();
        sent.push(tokio::spawn(call.send(table.address())));
        let body = json!({"model": "m", "input": text(index)}).to_string();
        for part in body.as_bytes().chunks(7) {
            assert!(feed.send(part.to_vec()).await);
        }
    }
    let mut answers = Vec::new();
    for answer in sent {
        answers.push(answer.await.expect("it is answered"));
    }
    assert_eq!(calls_of(&answers).len(), 1);
    expect_own(&table, &answers, |index| embed(text(index))).await;
}

#[tokio::test]
async fn a_route_without_batches_has_none() {
    let simulator = Simulator::start(Options::named("stable"));
    let proxy = Proxy::start(&super::one_backend(&[&simulator], "", "batch: off")).await;
    let report = Load::of(100).at_once(20).run(proxy.address(), |index| embed(text(index))).await;
    assert_eq!((report.ok(), simulator.state().seen(EMBEDDINGS)), (100, 100));
    assert_eq!(simulator.state().seen(COMPLETIONS), 0);
}
