//! Client connections: which protocol they speak, and one request after the other on them.
//!
//! Decides what a connection may do to us: how long it may take for a head, how long it may rest, how many there may
//! be. A resting connection holds no buffers.

mod http2;

use std::{
    future::{Future, poll_fn},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use async_trait::async_trait;
use http::Method;
use pingora_core::{apps::ServerApp, protocols::Stream, server::ShutdownWatch};

use crate::{
    chance, clock,
    deadline::Watchdog,
    gateway::{self, Cut},
    outcome::Outcome,
    proxy::Proxy,
    request::{Failure, Peer, Request},
    telemetry::metrics::ListenerMetrics,
    wire::{
        Downstream, Fields, RequestHead, WireError,
        h1::{Conn, ServerConn},
    },
};

/// What a client that speaks HTTP/2 from the start begins with (RFC 9113, 3.4).
const H2_PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// How long a client may go on sending after a response that ended its connection, so that it can read it.
const LINGER: Duration = Duration::from_secs(1);

/// The application of one listener.
pub struct Gateway {
    /// What all listeners share.
    pub proxy: Arc<Proxy>,
    /// The series of this listener.
    pub metrics: Arc<ListenerMetrics>,
}

#[async_trait]
impl ServerApp for Gateway {
    async fn process_new(self: &Arc<Self>, stream: Stream, _: &ShutdownWatch) -> Option<Stream> {
        self.metrics.accepted.inc();
        let _connected = self.proxy.drain.connect();
        let limit = self.proxy.snapshot.load().config.limits.connections;
        if self.proxy.drain.connections() <= limit {
            self.metrics.open.inc();
            serve(&self.proxy, stream).await;
            self.metrics.open.dec();
        } else {
            self.metrics.refused.inc();
        }
        None
    }
}

async fn serve(proxy: &Arc<Proxy>, stream: Stream) {
    let Some(peer) = peer_of(&stream) else { return };
    let mut closing = Closing::watch(proxy);
    let mut watchdog = Watchdog::new();
    let mut cut = Cut::watch(proxy);
    let mut conn = ServerConn::new(Conn::new(stream), proxy.snapshot.load().head_limits());
    // A connection that was accepted may say what it came for, even if the listeners have closed since.
    if !rest(proxy, &mut conn, &mut watchdog, None).await {
        return;
    }
    if speaks_h2(proxy, &mut conn, &mut watchdog).await {
        return Box::pin(http2::serve(proxy, &peer, conn, closing)).await;
    }
    while Box::pin(one_request(proxy, &peer, &mut conn, &mut watchdog, &mut cut)).await {
        conn.rest();
        if !rest(proxy, &mut conn, &mut watchdog, Some(&mut closing)).await {
            return;
        }
    }
    close(&mut conn).await;
}

fn peer_of(stream: &Stream) -> Option<Arc<Peer>> {
    let digest = stream.get_socket_digest()?;
    Some(Arc::new(Peer::new(*digest.peer_addr()?.as_inet()?)))
}

/// Waits for the first bytes of a request; `false` when none will come.
async fn rest(
    proxy: &Proxy,
    conn: &mut ServerConn,
    watchdog: &mut Watchdog,
    mut closing: Option<&mut Closing>,
) -> bool {
    let until = clock::now() + proxy.snapshot.load().config.limits.idle_timeout;
    poll_fn(|cx| {
        if let Poll::Ready(readable) = conn.poll_readable(cx) {
            return Poll::Ready(readable);
        }
        let closed = closing.as_mut().is_some_and(|closing| closing.poll(cx).is_ready());
        let over = closed || watchdog.poll_until(until, cx).is_ready();
        if over { Poll::Ready(false) } else { Poll::Pending }
    })
    .await
}

/// Whether the connection begins with the preface of HTTP/2, of which a first byte is here.
async fn speaks_h2(proxy: &Proxy, conn: &mut ServerConn, watchdog: &mut Watchdog) -> bool {
    let until = clock::now() + proxy.snapshot.load().config.limits.header_timeout;
    poll_fn(|cx| {
        loop {
            let input = conn.conn().input();
            if input.len() >= H2_PREFACE.len() || !H2_PREFACE.starts_with(input) {
                return Poll::Ready(input.starts_with(H2_PREFACE));
            }
            match conn.poll_more(cx) {
                Poll::Ready(true) => {}
                Poll::Ready(false) => return Poll::Ready(false),
                Poll::Pending => return watchdog.poll_until(until, cx).map(|()| false),
            }
        }
    })
    .await
}

/// Serves one request; `true` when another may follow on this connection.
async fn one_request(
    proxy: &Proxy,
    peer: &Arc<Peer>,
    conn: &mut ServerConn,
    watchdog: &mut Watchdog,
    cut: &mut Cut,
) -> bool {
    let snapshot = proxy.snapshot.load_full();
    let until = clock::now() + snapshot.config.limits.header_timeout;
    let head = poll_fn(|cx| match conn.poll_head(cx) {
        Poll::Ready(head) => Poll::Ready(Some(head)),
        Poll::Pending => watchdog.poll_until(until, cx).map(|()| None),
    });
    let (head, refused) = match head.await {
        Some(Ok(head)) => (head, None),
        Some(Err(error)) => match refusal(&error) {
            Some(failure) => (unreadable_head(), Some(failure)),
            None => return false,
        },
        None => (unreadable_head(), Some(late_head(snapshot.config.limits.header_timeout))),
    };
    let mut request = Request::new(snapshot, Arc::clone(peer), head, &mut chance::rng());
    let mut client = Downstream::H1(conn);
    match refused {
        None => {
            gateway::serve(proxy, &mut request, &mut client, watchdog, cut).await;
        }
        Some(failure) => {
            client.close_after_response();
            gateway::refuse(proxy, request, &mut client, watchdog, failure).await;
        }
    }
    conn.is_reusable()
}

/// What to answer to a head that can not be served; nothing to a client that is gone.
fn refusal(error: &WireError) -> Option<Failure> {
    match error {
        WireError::Invalid(what) => Some(Failure::new(Outcome::BadRequest, *what)),
        WireError::TooLarge(what) => Some(Failure::new(Outcome::HeaderTooLarge, *what)),
        WireError::Closed(_) | WireError::Refused => None,
    }
}

fn late_head(limit: Duration) -> Failure {
    let detail = format!("the request head was not complete after {limit:?}");
    Failure::new(Outcome::ClientTimeout, detail)
}

/// Stands for a head that could not be read.
fn unreadable_head() -> RequestHead {
    RequestHead::for_target(Method::GET, Fields::new(), "/", 11)
}

/// Closes so that the client can still read what was sent: unread input would reset the connection.
async fn close(conn: &mut ServerConn) {
    let linger = async {
        let _ = poll_fn(|cx| conn.poll_shutdown(cx)).await;
        while !conn.request_is_read() && !poll_fn(|cx| conn.poll_drain(cx)).await {}
    };
    // Whoever still sends after that does not listen.
    let _ = tokio::time::timeout(LINGER, linger).await;
}

/// The moment at which idle connections close, watched by one future for the whole connection.
struct Closing(Pin<Box<dyn Future<Output = ()> + Send + Sync>>);

impl Closing {
    fn watch(proxy: &Proxy) -> Self {
        let mut closing = proxy.drain.closing();
        Closing(Box::pin(async move {
            // The sender lives as long as the proxy; without it there is nothing to wait for either.
            let _ = closing.wait_for(|closing| *closing).await;
        }))
    }

    /// Must not be polled again once it was ready.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.0.as_mut().poll(cx)
    }
}
