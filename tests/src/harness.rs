//! What an end-to-end test reads like a sentence with: run the proxy, talk to it, look at what came out.
//!
//! ```no_run
//! # use outrigger_tests::{harness::{Call, Proxy}, sim::{Options, Simulator}};
//! # async fn test() {
//! let stable = Simulator::start(Options::named("stable").fast());
//! let proxy = Proxy::start(&format!(
//!     "backends: {{ stable: {{ endpoints: ['{}'] }} }}\nroutes: [{{ backend: stable }}]",
//!     stable.addr
//! ))
//! .await;
//! let answer = Call::chat("how deep is the lagoon?").max_tokens(8).send(proxy.address()).await;
//! assert_eq!(answer.status, 200);
//! # }
//! ```
//!
//! Everything that waits is bounded (20 s) and fails the test with what it was waiting for. Helpers panic instead of
//! returning errors: a test has nothing better to do with them. Not here: assertions about particular features, which
//! belong to the tests.

mod call;
mod collector;
mod dns;
mod load;
mod metrics;
mod process;
mod proxy;
mod raw;
mod redis;
mod streaming;

use std::time::Duration;

pub use self::call::{Answer, Call, Client, Feed, Protocol};
pub use self::collector::{Collector, Mood, Span};
pub use self::dns::{DnsServer, Question, RecordType, Says};
pub use self::load::{Load, Report, Sample};
pub use self::metrics::Metrics;
pub use self::process::Process;
pub use self::proxy::{Launch, Proxy, program};
pub use self::raw::{Body, Broken, Closed, Head, Message, Piece, Raw};
pub use self::redis::{Redis, RedisCluster, Reply, Setup};
pub use self::streaming::{Event, Streaming, Transcript};

/// How long anything that is awaited may take.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// Awaits `future`; fails the test, naming `what`, when that takes longer than [`PATIENCE`].
///
/// # Panics
/// After [`PATIENCE`].
pub async fn within<F: Future>(what: &str, future: F) -> F::Output {
    match tokio::time::timeout(PATIENCE, future).await {
        Ok(output) => output,
        Err(_) => fail(&format!("{what} took longer than {PATIENCE:?}")),
    }
}

/// Fails the test.
#[expect(clippy::panic, reason = "that is how a test fails")]
pub(crate) fn fail(why: &str) -> ! {
    panic!("{why}")
}
