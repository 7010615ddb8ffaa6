//! Which route a request takes, and what becomes of one that no backend serves.
//!
//! The routes here answer by themselves with their own name, so that an answer tells which one it was.

mod answers;
mod head;
mod model;

use outrigger_tests::harness::{Answer, Call, Proxy};

/// A proxy with these matches, each a route that answers with its index; no last resort.
pub(crate) async fn routes(matches: &[&str]) -> Proxy {
    let route = |(index, wanted)| {
        format!("  - {{ match: {wanted}, respond: {{ status: 200, body: 'route {index}' }} }}\n")
    };
    let routes: String = matches.iter().enumerate().map(route).collect();
    Proxy::start(&format!("routes:\n{routes}")).await
}

/// The index of the route that took the request; none when it was no route's.
pub(crate) fn taken(answer: &Answer) -> Option<usize> {
    assert!([200, 404].contains(&answer.status), "{}: {}", answer.status, answer.text());
    answer.text().strip_prefix("route ").and_then(|index| index.parse().ok())
}

/// Sends it and tells the route that took it.
pub(crate) async fn route_of(proxy: &Proxy, call: Call) -> Option<usize> {
    taken(&call.send(proxy.address()).await)
}
