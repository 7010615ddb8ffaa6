//! HTTP as it is on the wire: what is passed on, what is changed on the way, what is refused, and how things end.
//!
//! Here are only the pieces that the topics below share.

mod bodies;
mod connection;
mod events;
mod faults;
mod fields;
mod framing;
mod limits;
mod upgrade;
pub(crate) mod upstream;
mod versions;

use outrigger_tests::harness::{Proxy, Raw};
use outrigger_tests::sim::{Options, Simulator};

/// A proxy that sends everything to one HTTP/1.1 endpoint. `more` is further configuration.
pub(crate) async fn proxy_to(endpoint: &str, more: &str) -> Proxy {
    Proxy::start(&format!(
        "backends: {{ main: {{ endpoints: ['{endpoint}'] }} }}\nroutes: [{{ backend: main }}]\n{more}"
    ))
    .await
}

/// The same for an endpoint that speaks HTTP/2.
pub(crate) async fn h2c_proxy_to(endpoint: &str) -> Proxy {
    Proxy::start(&format!(
        "backends: {{ main: {{ endpoints: ['{endpoint}'], protocol: h2c }} }}\nroutes: [{{ backend: main }}]"
    ))
    .await
}

/// A simulator with a proxy before it.
pub(crate) async fn pair() -> (Simulator, Proxy) {
    pair_with("").await
}

/// A simulator with a proxy before it that has `more` in its configuration.
pub(crate) async fn pair_with(more: &str) -> (Simulator, Proxy) {
    let simulator = Simulator::start(Options::named("sim").fast());
    let proxy = proxy_to(&simulator.endpoint(), more).await;
    (simulator, proxy)
}

/// A simulator that is spoken to in HTTP/2, with a proxy before it.
pub(crate) async fn h2c_pair() -> (Simulator, Proxy) {
    let simulator = Simulator::start(Options::named("sim").fast());
    let proxy = h2c_proxy_to(&simulator.endpoint()).await;
    (simulator, proxy)
}

/// What comes back for exactly these bytes, which must be one request.
pub(crate) async fn answer_to(
    proxy: &Proxy,
    bytes: impl AsRef<[u8]>,
) -> outrigger_tests::harness::Message {
    let mut raw = Raw::connect(proxy.address()).await;
    raw.send(bytes).await;
    raw.response().await
}
