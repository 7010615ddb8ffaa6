//! The Redis in which answers are kept, and the secret that opens it.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Serialize, Serializer};

use super::Host;
use crate::units;

/// A Redis, or a cluster of them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Redis {
    /// Where it is, at least one; several are nodes of one cluster. None twice.
    pub nodes: Vec<RedisNode>,
    /// Whether keys are spread over the nodes of a cluster. Always without a socket of the file
    /// system, and with database 0.
    pub cluster: bool,
    /// How it is spoken to in private; `None` = in the open.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls: Option<RedisTls>,
    /// The number of the database.
    pub database: u32,
    /// Who we are there; `None` = the default user.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub username: Option<String>,
    /// What shows it; `None` = nothing does.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub password: Option<Secret>,
    /// How long a request waits for a stored answer.
    #[serde(serialize_with = "units::duration")]
    pub timeout: Duration,
    /// Longer answers are compressed; `None` = none are.
    #[serde(serialize_with = "size_or_off")]
    pub compress: Option<u64>,
    /// Bytes of an answer; a longer one is not kept here.
    #[serde(serialize_with = "units::size")]
    pub max: u64,
    /// Bytes of the answers that wait to be written.
    #[serde(serialize_with = "units::size")]
    pub queue: u64,
}

/// Where a Redis listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RedisNode {
    /// Host and port.
    Tcp(Host, u16),
    /// A socket of the file system.
    Unix(PathBuf),
}

/// TLS to a Redis. Its certificate is always checked, its name too.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct RedisTls {
    /// The certificates (PEM) of who vouches for it; `None` = those of the system.
    pub ca: Option<PathBuf>,
}

/// A password, or where it stands. Neither `Debug` nor `Serialize` show it.
#[derive(Clone, PartialEq, Eq)]
pub enum Secret {
    /// The password itself.
    Text(String),
    /// A file that holds it.
    File(PathBuf),
    /// An environment variable that holds it.
    Env(String),
}

/// What is shown in the place of a password.
const HIDDEN: &str = "(hidden)";

impl Secret {
    /// The password as it is now.
    ///
    /// # Errors
    /// A sentence that says what can not be read, without what it holds.
    pub fn read(&self) -> Result<String, String> {
        match self {
            Self::Text(text) => Ok(text.clone()),
            Self::Env(name) => std::env::var(name)
                .map_err(|_| format!("the environment variable {name} holds no password")),
            Self::File(path) => match std::fs::read_to_string(path) {
                Ok(text) => Ok(text.trim_end_matches(['\r', '\n']).to_owned()),
                Err(error) => Err(format!("the password file {}: {error}", path.display())),
            },
        }
    }
}

impl fmt::Display for Secret {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Text(_) => out.write_str(HIDDEN),
            Self::File(path) => write!(out, "file {}", path.display()),
            Self::Env(name) => write!(out, "env {name}"),
        }
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, out)
    }
}

impl Serialize for Secret {
    fn serialize<S: Serializer>(&self, out: S) -> Result<S::Ok, S::Error> {
        out.collect_str(self)
    }
}

impl fmt::Display for RedisNode {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(Host::Ip(std::net::IpAddr::V6(ip)), port) => write!(out, "[{ip}]:{port}"),
            Self::Tcp(host, port) => write!(out, "{host}:{port}"),
            Self::Unix(path) => write!(out, "unix://{}", path.display()),
        }
    }
}

impl Serialize for RedisNode {
    fn serialize<S: Serializer>(&self, out: S) -> Result<S::Ok, S::Error> {
        out.collect_str(self)
    }
}

fn size_or_off<S: Serializer>(size: &Option<u64>, out: S) -> Result<S::Ok, S::Error> {
    match size {
        Some(size) => units::size(size, out),
        None => out.serialize_str("off"),
    }
}
