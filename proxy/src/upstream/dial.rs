//! Making a connection to an endpoint. The one place that knows what a transport is made of; TLS will join here.

use std::{io, net::SocketAddr, time::Duration};

use bytes::Bytes;
use h2::client::SendRequest;
use pingora_core::protocols::{Stream, l4::stream::Stream as L4Stream};
use tokio::net::TcpStream;

use crate::{
    probes::{Follower, Watched},
    wire::h1::{ClientConn, Conn},
};

/// Credit an HTTP/2 endpoint has per stream and per connection, in bytes.
const WINDOW: u32 = 1024 * 1024;

/// Why there is no connection.
#[derive(Debug)]
pub enum DialError {
    /// The endpoint, or something on the way to it, said no.
    Failed(io::Error),
    /// Nobody answered in time.
    TimedOut(Duration),
}

impl std::fmt::Display for DialError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            DialError::Failed(error) => write!(f, "{error}"),
            DialError::TimedOut(after) => write!(f, "no connection within {after:?}"),
        }
    }
}

impl std::error::Error for DialError {}

/// What is told of a new connection in the kernel's terms.
#[derive(Clone, Copy, Default)]
pub struct Observers<'a> {
    /// Follows its requests.
    pub follower: Option<&'a Follower>,
    /// Asks how it is.
    pub watched: Option<&'a Watched>,
}

/// Connects for HTTP/1.1, and has the connection observed.
///
/// # Errors
/// [`DialError`] when there is no connection within `limit`.
pub async fn http1(
    address: SocketAddr,
    limit: Option<Duration>,
    observers: Observers<'_>,
) -> Result<Box<ClientConn>, DialError> {
    #[cfg(test)]
    if let Some(dialling) = crate::simulation::network::dial(address) {
        let conn = Conn::new(bounded(limit, dialling).await?);
        return Ok(Box::new(ClientConn::new(conn, None)));
    }
    let stream = bounded(limit, socket(address, observers.watched)).await?;
    let watch = observers.follower.and_then(|follower| {
        // Whoever dials 0.0.0.0 reaches another address.
        follower.follow(stream.local_addr().ok()?, stream.peer_addr().ok()?)
    });
    let conn = Conn::new(Box::new(L4Stream::from(stream)));
    Ok(Box::new(ClientConn::new(conn, watch)))
}

/// Connects and shakes hands for HTTP/2. The connection is driven by a task of its own until its last stream ends.
///
/// # Errors
/// As [`http1`].
pub async fn h2c(
    address: SocketAddr,
    limit: Option<Duration>,
    observers: Observers<'_>,
) -> Result<SendRequest<Bytes>, DialError> {
    bounded(limit, async {
        let stream = stream(address, observers.watched).await?;
        let mut builder = h2::client::Builder::new();
        builder
            .initial_window_size(WINDOW)
            .initial_connection_window_size(WINDOW)
            .enable_push(false);
        let (sender, connection) = builder.handshake(stream).await.map_err(io::Error::other)?;
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%address, %error, "h2 connection to endpoint ended");
            }
        });
        sender.ready().await.map_err(io::Error::other)
    })
    .await
}

/// Connects, and no more.
///
/// # Errors
/// What the operating system says.
pub async fn tcp(address: SocketAddr) -> io::Result<Stream> {
    stream(address, None).await
}

async fn stream(address: SocketAddr, watched: Option<&Watched>) -> io::Result<Stream> {
    #[cfg(test)]
    if let Some(dialling) = crate::simulation::network::dial(address) {
        return dialling.await;
    }
    Ok(Box::new(L4Stream::from(socket(address, watched).await?)))
}

async fn socket(address: SocketAddr, watched: Option<&Watched>) -> io::Result<TcpStream> {
    let stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    if let Some(watched) = watched {
        watched.dial(stream.local_addr()?);
    }
    Ok(stream)
}

async fn bounded<T>(
    limit: Option<Duration>,
    work: impl Future<Output = io::Result<T>>,
) -> Result<T, DialError> {
    let Some(limit) = limit else { return work.await.map_err(DialError::Failed) };
    match tokio::time::timeout(limit, work).await {
        Ok(result) => result.map_err(DialError::Failed),
        Err(_) => Err(DialError::TimedOut(limit)),
    }
}
