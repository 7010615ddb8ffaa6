//! Where stored answers are kept beyond one proxy: a Redis.

use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::values::{Moment, OneOrMany, Size, Switch, Time};
use super::{GIB, KIB, MIB};

/// The Redis (5 or newer, or a Valkey) in which answers outlive this proxy and are shared with others.
#[derive(Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(extend("required" = ["url"]))]
pub struct Redis {
    /// Where it is: redis://host:6379, rediss://host:6379 for TLS, or unix:///path of a socket. A user,
    /// a password and the number of a database may be part of it: redis://user:password@host:6379/1.
    /// Several are nodes of one cluster.
    #[serde(skip_serializing_if = "no_urls")]
    pub url: OneOrMany<String>,
    /// Whether it is a cluster; several addresses always are. Default: false, with one address.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cluster: Option<bool>,
    /// The user. Default: that of the address, else the default user of the server.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub username: Option<String>,
    /// Where the password stands: file:/path of a file that holds nothing else, or env:NAME of an
    /// environment variable. It is read whenever a connection is made. Default: that of the address,
    /// else none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub password: Option<String>,
    /// A file with the certificates (PEM) of who is believed to vouch for the server; only with
    /// rediss. Default: those of the system.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ca: Option<PathBuf>,
    /// How long a request waits for a stored answer before it goes on without, 100us to 1s. Default:
    /// 20ms.
    pub timeout: Moment,
    /// Longer answers are compressed, 64B to 1GiB, or off for none. Default: 4KiB.
    pub compress: Switch<Size<64, GIB>>,
    /// A longer answer is not kept here, 1KiB to 256MiB. Default: 4MiB.
    pub max: Size<KIB, { 256 * MIB }>,
    /// Size of the answers that wait to be written; further ones are dropped, 64KiB to 1GiB. Default:
    /// 32MiB.
    pub queue: Size<{ 64 * KIB }, GIB>,
}

fn no_urls(urls: &OneOrMany<String>) -> bool {
    urls.0.is_empty()
}

impl Default for Redis {
    fn default() -> Self {
        Self {
            url: OneOrMany(Vec::new()),
            cluster: None,
            username: None,
            password: None,
            ca: None,
            timeout: Time::millis(20),
            compress: Switch::On(Size(4 * KIB)),
            max: Size(4 * MIB),
            queue: Size(32 * MIB),
        }
    }
}

/// Without the addresses: a password may be part of them.
impl std::fmt::Debug for Redis {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("Redis").field("timeout", &self.timeout).finish_non_exhaustive()
    }
}
