//! The Redis of stored answers: addresses that can be reached together, and a password that stands in one place.
//!
//! What is said about an address never repeats it whole: a password may be part of it.

use super::{Checker, Flawed, on, text};
use crate::read::tree::Node;
use crate::schema;
use crate::validated::{Redis, RedisNode, RedisTls, Secret};

/// Where a Redis listens when its address does not say so.
const PORT: u16 = 6379;

/// What one address says.
#[derive(Debug, PartialEq, Eq)]
struct Address {
    node: RedisNode,
    access: Access,
}

/// What all addresses must have in common.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Access {
    tls: bool,
    username: Option<String>,
    password: Option<String>,
    database: u32,
}

impl Checker<'_> {
    pub(super) fn redis(&mut self, node: &Node, redis: &schema::Redis) -> Redis {
        let (nodes, access) = self.redis_nodes(node, redis);
        let cluster = self.is_cluster(node, redis, &nodes, &access);
        if let (Some(ca), false) = (node.get("ca"), access.tls) {
            self.wrong_key(ca, "only a rediss:// address is checked by certificates", None);
        }
        if redis.ca.as_ref().is_some_and(|path| path.as_os_str().is_empty()) {
            self.wrong(node.at("ca"), "is empty", None);
        }
        let username = self.redis_username(node, redis, access.username);
        let password = self.redis_password(node, redis, access.password);
        Redis {
            nodes,
            cluster,
            tls: access.tls.then(|| RedisTls { ca: redis.ca.clone() }),
            database: access.database,
            username,
            password,
            timeout: redis.timeout.0,
            compress: on(&redis.compress).map(|size| size.0),
            max: redis.max.0,
            queue: redis.queue.0,
        }
    }

    fn redis_nodes(&mut self, node: &Node, redis: &schema::Redis) -> (Vec<RedisNode>, Access) {
        let at = node.at("url");
        if redis.url.0.is_empty() {
            self.missing(node, "url");
        }
        let (mut nodes, mut common) = (Vec::new(), None);
        let items = self.document.items(at, redis.url.0.len());
        for (item, url) in items.into_iter().zip(&redis.url.0) {
            let Some(address) = self.text(item, address(url)) else { continue };
            if nodes.contains(&address.node) {
                self.wrong(item, format!("{} is listed twice", address.node), None);
            }
            nodes.push(address.node);
            let first = common.get_or_insert_with(|| address.access.clone());
            if *first != address.access {
                let message = "differs from the first address in more than host and port";
                self.wrong(item, message, Some("all nodes are opened in the same way".to_owned()));
            }
        }
        (nodes, common.unwrap_or_default())
    }

    fn is_cluster(
        &mut self,
        node: &Node,
        redis: &schema::Redis,
        nodes: &[RedisNode],
        access: &Access,
    ) -> bool {
        let several = redis.url.0.len() > 1;
        let cluster = redis.cluster.unwrap_or(several);
        if several && !cluster {
            let message = "several addresses are always the nodes of one cluster";
            self.wrong(node.at("cluster"), message, None);
        }
        if !cluster {
            return false;
        }
        if nodes.iter().any(|node| matches!(node, RedisNode::Unix(_))) {
            let message = "a cluster has no sockets of the file system: its nodes tell each other hosts and ports";
            self.wrong(node.at("url"), message, None);
        }
        if access.database != 0 {
            self.wrong(node.at("url"), "a cluster has no database but number 0", None);
        }
        true
    }

    fn redis_username(
        &mut self,
        node: &Node,
        redis: &schema::Redis,
        in_address: Option<String>,
    ) -> Option<String> {
        if let (Some(_), Some(_)) = (&redis.username, &in_address) {
            self.wrong_key(node.at("username"), "the address has a user already", None);
        }
        if redis.username.as_ref().is_some_and(String::is_empty) {
            self.wrong(node.at("username"), "is empty", None);
        }
        redis.username.clone().or(in_address)
    }

    fn redis_password(
        &mut self,
        node: &Node,
        redis: &schema::Redis,
        in_address: Option<String>,
    ) -> Option<Secret> {
        let Some(password) = &redis.password else { return in_address.map(Secret::Text) };
        let at = node.at("password");
        if in_address.is_some() {
            self.wrong_key(at, "the address has a password already", None);
        }
        self.text(at, secret(password))
    }
}

/// Where a password stands. The text is not repeated: it may be the password.
fn secret(text: &str) -> Flawed<Secret> {
    let help = || Some("file:/run/secrets/redis or env:REDIS_PASSWORD".to_owned());
    match text.split_once(':') {
        Some(("file", path)) if !path.is_empty() => Ok(Secret::File(path.into())),
        Some(("env", name)) if !name.is_empty() => Ok(Secret::Env(name.to_owned())),
        Some(("file" | "env", _)) => Err(("names nothing".to_owned(), help())),
        _ => Err(("is neither a file nor an environment variable".to_owned(), help())),
    }
}

const FORMS: &str = "redis://host:6379, rediss://host:6379 for TLS, or unix:///path";

fn flaw<T>(message: impl Into<String>) -> Flawed<T> {
    Err((message.into(), Some(FORMS.to_owned())))
}

/// An address: `redis[s]://[user[:password]@]host[:port][/database]` or `unix:///path`.
fn address(url: &str) -> Flawed<Address> {
    let Some((scheme, rest)) = url.split_once("://") else {
        return flaw("is not the address of a Redis");
    };
    let tls = match scheme {
        "redis" => false,
        "rediss" => true,
        "unix" if rest.starts_with('/') => {
            let node = RedisNode::Unix(rest.into());
            return Ok(Address { node, access: Access::default() });
        }
        "unix" => return flaw("the path of a socket starts with /"),
        _ => return flaw(format!("unknown scheme \"{scheme}\"")),
    };
    let (user, rest) =
        rest.rsplit_once('@').map_or((None, rest), |(user, rest)| (Some(user), rest));
    let (place, database) = rest.split_once('/').unwrap_or((rest, ""));
    let (username, password) = user.map_or(Ok((None, None)), user_and_password)?;
    let node = place_of(place)?;
    let database = match database {
        "" => 0,
        number => match number.parse() {
            Ok(number) => number,
            Err(_) => return flaw(format!("\"{number}\" is not the number of a database")),
        },
    };
    Ok(Address { node, access: Access { tls, username, password, database } })
}

/// Host and port, where the port may be left out.
fn place_of(text: &str) -> Flawed<RedisNode> {
    let has_port = text.rsplit_once(':').is_some_and(|(_, port)| !port.contains(']'));
    let with_port = if has_port { text.to_owned() } else { format!("{text}:{PORT}") };
    match text::endpoint(&with_port) {
        Ok((host, port)) => Ok(RedisNode::Tcp(host, port)),
        Err((message, _)) => flaw(message),
    }
}

type UserAndPassword = (Option<String>, Option<String>);

fn user_and_password(text: &str) -> Flawed<UserAndPassword> {
    let (user, password) = text.split_once(':').map_or((text, None), |(u, p)| (u, Some(p)));
    let read = |part: &str| {
        decoded(part).ok_or_else(|| {
            let help = "write special characters as % and two hexadecimal digits".to_owned();
            ("the user or the password is not readable".to_owned(), Some(help))
        })
    };
    let some = |text: String| Some(text).filter(|text| !text.is_empty());
    Ok((some(read(user)?), password.map(read).transpose()?.and_then(some)))
}

/// `%41` is `A`.
fn decoded(text: &str) -> Option<String> {
    let (mut bytes, mut rest) = (Vec::new(), text.as_bytes());
    while let Some((first, tail)) = rest.split_first() {
        if *first != b'%' {
            bytes.push(*first);
            rest = tail;
            continue;
        }
        let digits = std::str::from_utf8(tail.get(..2)?).ok()?;
        bytes.push(u8::from_str_radix(digits, 16).ok()?);
        rest = &tail[2..];
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn good(url: &str) -> (String, Access) {
        let address = address(url).unwrap_or_else(|flaw| panic!("{url}: {flaw:?}"));
        (address.node.to_string(), address.access)
    }

    #[test]
    fn addresses() {
        let plain = Access::default;
        for (url, node, access) in [
            ("redis://cache", "cache:6379", plain()),
            ("redis://cache:7/", "cache:7", plain()),
            ("redis://[::1]", "[::1]:6379", plain()),
            ("rediss://[::1]:7/3", "[::1]:7", Access { tls: true, database: 3, ..plain() }),
            ("unix:///run/redis.sock", "unix:///run/redis.sock", plain()),
        ] {
            assert_eq!(good(url), (node.to_owned(), access), "{url}");
        }
    }

    #[test]
    fn users_and_passwords() {
        for (url, username, password) in [
            ("redis://:p@h", None, Some("p")),
            ("redis://u@h", Some("u"), None),
            ("redis://u:p%40%3a%2F@h", Some("u"), Some("p@:/")),
            ("redis://u:p@q@h", Some("u"), Some("p@q")),
        ] {
            let (_, access) = good(url);
            let found = (access.username.as_deref(), access.password.as_deref());
            assert_eq!(found, (username, password), "{url}");
        }
    }

    #[test]
    fn what_is_wrong_is_said_without_the_password() {
        for url in [
            "sekret",
            "http://u:sekret@h",
            "redis://u:sekret@",
            "redis://u:sekret@h:0",
            "redis://u:sekret@h/x",
            "redis://u:sekret@h:6379?x=1",
            "redis://u:sekret%4@h",
            "redis://u:sekret%zz@h",
            "unix://x",
        ] {
            let (message, help) = address(url).expect_err(url);
            assert!(!format!("{message} {help:?}").contains("sekret"), "{url}: {message}");
        }
    }
}
