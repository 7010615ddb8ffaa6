//! A connection to Redis, or to a cluster of them, and what is said over it.
//!
//! The crate's connections multiplex: many commands are under way at once, answered in order. Its own retries and
//! reconnections are not used beyond what a cluster needs to follow a slot that moved: when to try again is for the
//! breaker, and how long something may take for whoever asks.

use std::time::Duration;

use outrigger_config::validated::{self as config, Host, RedisNode};
use redis::{
    Client, Cmd, ConnectionAddr, ConnectionInfo, ErrorKind, FromRedisValue, IntoConnectionInfo,
    RedisError, RedisResult, ServerErrorKind, TlsCertificates, aio::MultiplexedConnection,
    cluster::ClusterClient, cluster_async::ClusterConnection,
};

use crate::{answers::Key, telemetry::metrics::RedisFailure};

/// How long a connection may take to be made, with TLS, log-in and all.
const CONNECT_PATIENCE: Duration = Duration::from_secs(2);

/// What every key begins with. The number is that of the layout of values and of the way keys are made: it changes with
/// either, so that different versions of the proxy do not meet.
const PREFIX: &str = "outrigger:a1:";

/// What went wrong.
#[derive(Clone, Debug)]
pub(super) struct Trouble {
    /// What sort of thing it is.
    pub(super) kind: RedisFailure,
    /// In words, for the log.
    pub(super) reason: String,
}

/// An open connection. Clones are the same.
#[derive(Clone)]
pub(super) enum Link {
    Single(MultiplexedConnection),
    Cluster(ClusterConnection),
}

impl Link {
    /// Opens a connection: addresses, certificates and the password are read anew each time.
    pub(super) async fn open(settings: &config::Redis) -> Result<Self, Trouble> {
        let password = match &settings.password {
            Some(secret) => Some(secret.read().map_err(Trouble::here)?),
            None => None,
        };
        let certificates = certificates(settings)?;
        let nodes =
            settings.nodes.iter().map(|node| connection(node, settings, password.as_deref()));
        let opening = async {
            let nodes = nodes.collect::<RedisResult<Vec<_>>>()?;
            match settings.cluster {
                true => cluster(nodes, certificates).await.map(Link::Cluster),
                false => single(nodes, certificates).await.map(Link::Single),
            }
        };
        match tokio::time::timeout(CONNECT_PATIENCE, opening).await {
            Ok(opened) => opened.map_err(|error| Trouble::connecting(&error)),
            Err(_) => Err(Trouble::late("a connection", CONNECT_PATIENCE)),
        }
    }

    /// The value of a key, cut where it is longer than `most` bytes; nothing when there is none.
    pub(super) async fn value(&mut self, key: &Key, most: usize) -> Result<Vec<u8>, RedisError> {
        // Unlike GET it never takes in more than it can use, whatever somebody has put there.
        self.ask(redis::cmd("GETRANGE").arg(name(key)).arg(0).arg(most)).await
    }

    /// Keeps a value for so long.
    pub(super) async fn store(
        &mut self,
        key: &Key,
        value: &[u8],
        ttl: Duration,
    ) -> Result<(), RedisError> {
        let millis = u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX).max(1);
        self.ask(redis::cmd("SET").arg(name(key)).arg(value).arg("PX").arg(millis)).await
    }

    /// Takes a value away.
    pub(super) async fn forget(&mut self, key: &Key) -> Result<(), RedisError> {
        self.ask(redis::cmd("UNLINK").arg(name(key))).await
    }

    /// Says anything.
    pub(super) async fn ask<T: FromRedisValue>(&mut self, command: &Cmd) -> Result<T, RedisError> {
        match self {
            Link::Single(connection) => command.query_async(connection).await,
            Link::Cluster(connection) => command.query_async(connection).await,
        }
    }
}

/// The name of an answer in Redis.
fn name(key: &Key) -> String {
    format!("{PREFIX}{key}")
}

async fn single(
    nodes: Vec<ConnectionInfo>,
    certificates: Option<TlsCertificates>,
) -> RedisResult<MultiplexedConnection> {
    let Some(node) = nodes.into_iter().next() else { return Err(no_node()) };
    let client = match certificates {
        Some(certificates) => Client::build_with_tls(node, certificates)?,
        None => Client::open(node)?,
    };
    let patient =
        redis::AsyncConnectionConfig::new().set_connection_timeout(None).set_response_timeout(None);
    client.get_multiplexed_async_connection_with_config(&patient).await
}

async fn cluster(
    nodes: Vec<ConnectionInfo>,
    certificates: Option<TlsCertificates>,
) -> RedisResult<ClusterConnection> {
    // A slot that moved is followed; anything else is soon over, and whoever asked has gone by then.
    let builder = ClusterClient::builder(nodes).retries(2).response_timeout(CONNECT_PATIENCE);
    let builder = match certificates {
        Some(certificates) => builder.certs(certificates),
        None => builder,
    };
    builder.build()?.get_async_connection().await
}

/// Validation lets no configuration through without one.
fn no_node() -> RedisError {
    (ErrorKind::InvalidClientConfig, "no address").into()
}

fn connection(
    node: &RedisNode,
    settings: &config::Redis,
    password: Option<&str>,
) -> RedisResult<ConnectionInfo> {
    let address = match node {
        RedisNode::Unix(path) => ConnectionAddr::Unix(path.clone()),
        RedisNode::Tcp(host, port) => {
            let (host, port) = (host_text(host), *port);
            match &settings.tls {
                Some(_) => ConnectionAddr::TcpTls { host, port, insecure: false, tls_params: None },
                None => ConnectionAddr::Tcp(host, port),
            }
        }
    };
    let info = address.into_connection_info()?;
    let mut log_in = info.redis_settings().clone().set_db(i64::from(settings.database));
    if let Some(username) = &settings.username {
        log_in = log_in.set_username(username);
    }
    if let Some(password) = password {
        log_in = log_in.set_password(password);
    }
    Ok(info.set_redis_settings(log_in))
}

fn host_text(host: &Host) -> String {
    match host {
        Host::Ip(ip) => ip.to_string(),
        Host::Name(name) => name.clone(),
    }
}

fn certificates(settings: &config::Redis) -> Result<Option<TlsCertificates>, Trouble> {
    let Some(tls) = &settings.tls else { return Ok(None) };
    // Said, not left to be guessed from what is compiled in; the first one who says it is heard.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let read = |path: &std::path::PathBuf| {
        std::fs::read(path).map_err(|error| {
            Trouble::here(format!("the certificates of {}: {error}", path.display()))
        })
    };
    let root_cert = tls.ca.as_ref().map(read).transpose()?;
    Ok(Some(TlsCertificates { client_tls: None, root_cert }))
}

impl Trouble {
    /// Something here, before anything was sent.
    fn here(reason: String) -> Self {
        Trouble { kind: RedisFailure::Connect, reason }
    }

    /// It did not come in time.
    pub(super) fn late(what: &str, patience: Duration) -> Self {
        let reason = format!("{what} took longer than {patience:?}");
        Trouble { kind: RedisFailure::Timeout, reason }
    }

    /// Whether Redis is well and said no.
    pub(super) fn is_answer(&self) -> bool {
        matches!(self.kind, RedisFailure::Refused | RedisFailure::Denied)
    }

    /// What failed was the making of a connection.
    fn connecting(error: &RedisError) -> Self {
        let trouble = Trouble::from(error);
        let kind = match trouble.kind {
            RedisFailure::Lost => RedisFailure::Connect,
            kind => kind,
        };
        Trouble { kind, ..trouble }
    }
}

impl From<&RedisError> for Trouble {
    fn from(error: &RedisError) -> Self {
        let denied = matches!(error.code(), Some("NOAUTH" | "WRONGPASS" | "NOPERM"));
        let kind = if error.kind() == ErrorKind::AuthenticationFailed || denied {
            RedisFailure::Denied
        } else if error.is_timeout() {
            RedisFailure::Timeout
        } else if UNREADY.contains(&error.kind()) {
            RedisFailure::Unready
        } else if error.is_io_error() || error.is_unrecoverable_error() {
            RedisFailure::Lost
        } else {
            RedisFailure::Refused
        };
        Trouble { kind, reason: error.to_string() }
    }
}

/// What passes by itself.
const UNREADY: [ErrorKind; 4] = [
    ErrorKind::Server(ServerErrorKind::BusyLoading),
    ErrorKind::Server(ServerErrorKind::ClusterDown),
    ErrorKind::Server(ServerErrorKind::MasterDown),
    ErrorKind::ClusterConnectionNotFound,
];

/// Whether something else than a text stands under the key.
pub(super) fn is_wrong_type(error: &RedisError) -> bool {
    error.code() == Some("WRONGTYPE")
}
