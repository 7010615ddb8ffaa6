//! A client connection that speaks HTTP/2: the `h2` crate drives it, every stream is a task.

use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::{Buf, Bytes, BytesMut};
use h2::{RecvStream, server::SendResponse};
use pingora_core::protocols::Stream;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::{Closing, refusal, unreadable_head};
use crate::{
    chance,
    deadline::Watchdog,
    gateway::{self, Cut},
    proxy::Proxy,
    request::{Peer, Request},
    wire::{Downstream, h1::ServerConn, h2::ServerStream},
};

/// Streams that a client may have open at once.
const MAX_STREAMS: u32 = 256;
/// How long a client may take to answer that the connection ends.
const GOODBYE: Duration = Duration::from_secs(1);
/// Credit a client has per stream and per connection, in bytes.
const WINDOW: u32 = 1024 * 1024;

/// Serves a connection whose preface has been read but not consumed.
pub(super) async fn serve(
    proxy: &Arc<Proxy>,
    peer: &Arc<Peer>,
    conn: ServerConn,
    mut closing: Closing,
) {
    let limits = proxy.snapshot.load().config.limits.clone();
    let (stream, read) = conn.into_conn().into_parts();
    let handshake = builder(limits.header_bytes).handshake(Replay { read, stream });
    let Ok(Ok(mut connection)) = tokio::time::timeout(limits.header_timeout, handshake).await
    else {
        return;
    };
    let mut leaving = false;
    loop {
        let patience = if leaving { GOODBYE } else { limits.idle_timeout };
        let idle = tokio::time::sleep(patience);
        tokio::select! {
            accepted = connection.accept() => match accepted {
                Some(Ok((request, respond))) => spawn(proxy, peer, request, respond),
                Some(Err(_)) | None => return,
            },
            () = std::future::poll_fn(|cx| closing.poll(cx)), if !leaving => {
                leaving = true;
                connection.graceful_shutdown();
            }
            () = idle => match (connection.has_streams(), leaving) {
                (true, _) => {}
                (false, false) => {
                    leaving = true;
                    connection.graceful_shutdown();
                }
                // It was told to go and says nothing.
                (false, true) => return,
            },
        }
    }
}

fn builder(header_bytes: u64) -> h2::server::Builder {
    let mut builder = h2::server::Builder::new();
    builder
        .max_concurrent_streams(MAX_STREAMS)
        .initial_window_size(WINDOW)
        .initial_connection_window_size(WINDOW)
        .max_header_list_size(u32::try_from(header_bytes).unwrap_or(u32::MAX));
    builder
}

fn spawn(
    proxy: &Arc<Proxy>,
    peer: &Arc<Peer>,
    request: http::Request<RecvStream>,
    respond: SendResponse<Bytes>,
) {
    let (proxy, peer) = (Arc::clone(proxy), Arc::clone(peer));
    tokio::spawn(async move {
        let (stream, head) = ServerStream::new(request, respond);
        let mut client = Downstream::H2(stream);
        let mut watchdog = Watchdog::new();
        let snapshot = proxy.snapshot.load_full();
        let new = |head| Request::new(snapshot, peer, head, &mut chance::rng());
        match head {
            Ok(head) => {
                let mut cut = Cut::watch(&proxy);
                let mut request = new(head);
                gateway::serve(&proxy, &mut request, &mut client, &mut watchdog, &mut cut).await;
            }
            Err(error) => {
                if let Some(failure) = refusal(&error) {
                    let request = new(unreadable_head());
                    gateway::refuse(&proxy, request, &mut client, &mut watchdog, failure).await;
                }
            }
        }
    });
}

/// A stream that begins with what was already read from it.
struct Replay {
    read: BytesMut,
    stream: Stream,
}

impl AsyncRead for Replay {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.read.is_empty() {
            return Pin::new(&mut self.stream).poll_read(cx, buffer);
        }
        let count = self.read.len().min(buffer.remaining());
        buffer.put_slice(&self.read[..count]);
        self.read.advance(count);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Replay {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
