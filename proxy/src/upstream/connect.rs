//! A connection to an endpoint for one request: one that rests, or a new one.

use std::{net::SocketAddr, time::Duration};

use outrigger_config::validated::{self as config, Protocol};

use super::dial::{self, DialError, Observers};
use crate::{
    clock,
    endpoint::Endpoint,
    telemetry::metrics::UpstreamConnection,
    wire::{Upstream, h2::ClientStream},
};

/// Whether a resting connection will do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reuse {
    /// It will.
    Allowed,
    /// Only a new one will.
    Forbidden,
}

/// A resting connection to the endpoint, or a new one within `limit`.
///
/// # Errors
/// [`DialError`] when there is none in time.
pub async fn connect(
    endpoint: &Endpoint,
    protocol: Protocol,
    reuse: Reuse,
    limit: Option<Duration>,
) -> Result<(Upstream, UpstreamConnection), DialError> {
    if reuse == Reuse::Allowed
        && let Some(resting) = resting(endpoint, protocol).await
    {
        return Ok((resting, UpstreamConnection::Reused));
    }
    let began = clock::now();
    let upstream = opened(endpoint, protocol, limit).await?;
    endpoint.metrics.connect.observe(clock::now().saturating_duration_since(began));
    Ok((upstream, UpstreamConnection::Opened))
}

async fn opened(
    endpoint: &Endpoint,
    protocol: Protocol,
    limit: Option<Duration>,
) -> Result<Upstream, DialError> {
    let observers =
        Observers { follower: endpoint.follower.as_ref(), watched: endpoint.watched.as_deref() };
    match protocol {
        Protocol::Http1 => dial::http1(endpoint.address, limit, observers).await.map(Upstream::H1),
        Protocol::H2c => {
            let connection = dial::h2c(endpoint.address, limit, observers).await?;
            endpoint.pool.put_shared(connection.clone());
            Ok(Upstream::H2(Box::new(ClientStream::new(connection))))
        }
    }
}

async fn resting(endpoint: &Endpoint, protocol: Protocol) -> Option<Upstream> {
    match protocol {
        Protocol::Http1 => endpoint.pool.take().await.map(Upstream::H1),
        Protocol::H2c => {
            let connection = endpoint.pool.take_shared().await?;
            Some(Upstream::H2(Box::new(ClientStream::new(connection))))
        }
    }
}

/// A new connection that nobody else will use: checks must not be fooled by one that rests.
///
/// # Errors
/// [`DialError`] when there is none in time.
pub async fn fresh(
    address: SocketAddr,
    protocol: Protocol,
    limit: Option<Duration>,
) -> Result<Upstream, DialError> {
    match protocol {
        Protocol::Http1 => {
            dial::http1(address, limit, Observers::default()).await.map(Upstream::H1)
        }
        Protocol::H2c => {
            let connection = dial::h2c(address, limit, Observers::default()).await?;
            Ok(Upstream::H2(Box::new(ClientStream::new(connection))))
        }
    }
}

/// Lets a connection rest after a whole response, if it can carry another request.
pub fn rest(upstream: Upstream, endpoint: &Endpoint, settings: &config::Backend) {
    // An HTTP/2 connection has been shared all the time.
    let Upstream::H1(conn) = upstream else { return };
    if conn.is_reusable() {
        let (idle, most) = (settings.idle_timeout, settings.idle_connections);
        endpoint.pool.put(conn, clock::now(), idle, most);
    }
}
