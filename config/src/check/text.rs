//! Texts that are more than text: addresses, endpoints, names, headers, hosts.
//!
//! Decides how each is written, and says in a refusal how it would be right.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use super::Flawed;
use crate::pattern::{HostPattern, PathPattern};
use crate::validated::Host;

/// Headers that belong to one connection or frame a message: the proxy writes them itself.
const FRAMING: [&str; 9] = [
    "connection",
    "content-length",
    "keep-alive",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "host",
];

fn flaw<T>(message: impl Into<String>) -> Flawed<T> {
    Err((message.into(), None))
}

fn flaw_help<T>(message: impl Into<String>, help: impl Into<String>) -> Flawed<T> {
    Err((message.into(), Some(help.into())))
}

/// An address to listen on: IP and port.
pub(super) fn address(text: &str) -> Flawed<SocketAddr> {
    if let Ok(address) = text.parse() {
        return Ok(address);
    }
    let message = format!("\"{text}\" is not an IP address with a port");
    let port = text.rsplit_once(':').and_then(|(_, port)| port.parse::<u16>().ok());
    match (text.split(':').next(), port) {
        (Some(""), Some(port)) => flaw_help(message, format!("did you mean \"0.0.0.0:{port}\"?")),
        (Some("localhost"), Some(port)) => {
            flaw_help(message, format!("did you mean \"127.0.0.1:{port}\"?"))
        }
        _ => flaw_help(message, "such as 0.0.0.0:8800 or \"[::]:8800\""),
    }
}

/// A DNS server: IP and port.
pub(super) fn dns_server(text: &str) -> Flawed<SocketAddr> {
    let message = || format!("\"{text}\" is not an IP address with a port");
    match (text.parse::<SocketAddr>(), text.parse::<IpAddr>()) {
        (Ok(address), _) if address.port() > 0 => Ok(address),
        (_, Ok(ip)) => {
            let meant = SocketAddr::new(ip, 53);
            flaw_help(message(), format!("did you mean \"{meant}\"?"))
        }
        _ => flaw_help(message(), "such as 10.0.0.10:53"),
    }
}

/// Where an endpoint is: `host:port`, with or without `http://` before and `/` after it.
pub(crate) fn endpoint(text: &str) -> Flawed<(Host, u16)> {
    let rest = match text.split_once("://") {
        None => text,
        Some(("http", rest)) => rest.strip_suffix('/').unwrap_or(rest),
        Some(("https", _)) => {
            return flaw(format!("\"{text}\": TLS to endpoints is not supported"));
        }
        Some((scheme, _)) => {
            return flaw_help(format!("\"{text}\": unknown scheme \"{scheme}\""), "write http://");
        }
    };
    if rest.contains(['/', '?', '#', '@']) {
        let message = format!("\"{text}\" is more than a host and a port");
        return flaw_help(message, "paths are changed with `rewrite` of a route");
    }
    if rest.parse::<Ipv6Addr>().is_ok() {
        return flaw_help(format!("\"{text}\" has no port"), format!("write \"[{rest}]:8000\""));
    }
    let Some((name, port)) = rest.rsplit_once(':') else {
        return flaw_help(format!("\"{text}\" has no port"), format!("write \"{rest}:8000\""));
    };
    let Some(port) = port.parse().ok().filter(|port| *port > 0) else {
        return flaw(format!("\"{text}\": \"{port}\" is not a port, 1 to 65535"));
    };
    match host(name) {
        Some(host) => Ok((host, port)),
        None => flaw(format!("\"{text}\": \"{name}\" is neither an IP address nor a host name")),
    }
}

/// A name whose SRV records are endpoints, in lower case and without a closing dot.
pub(super) fn srv(text: &str) -> Flawed<String> {
    let prefixed = |label: &str| label.strip_prefix('_').is_some_and(|rest| !rest.is_empty());
    let mut labels = text.splitn(3, '.');
    let marked = (0..2).all(|_| labels.next().is_some_and(prefixed));
    match (host(text), labels.next().and_then(host)) {
        (Some(Host::Name(name)), Some(Host::Name(_))) if marked => Ok(name),
        _ => flaw_help(
            format!("\"{text}\" is not the name of a service"),
            "_service._proto.name, such as _http._tcp.vllm.default.svc.cluster.local",
        ),
    }
}

/// An IP address (IPv6 in brackets) or a DNS name.
fn host(text: &str) -> Option<Host> {
    if let Some(inner) = text.strip_prefix('[') {
        let address: Ipv6Addr = inner.strip_suffix(']')?.parse().ok()?;
        return Some(Host::Ip(IpAddr::V6(address)));
    }
    if let Ok(address) = text.parse() {
        return Some(Host::Ip(IpAddr::V4(address)));
    }
    let name = text.strip_suffix('.').unwrap_or(text);
    let letters = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    let label = |label: &str| (1..=63).contains(&label.len()) && label.chars().all(letters);
    // A name whose last label is a number is a mistyped address.
    let numeric = name.rsplit('.').next()?.chars().all(|c| c.is_ascii_digit());
    let good = name.len() <= 253 && name.split('.').all(label) && !numeric;
    good.then(|| Host::Name(name.to_ascii_lowercase()))
}

/// The name of a backend or a route; `more` are the characters besides letters and digits.
pub(super) fn name(text: &str, more: &str) -> Flawed<()> {
    let good = |c: char| c.is_ascii_alphanumeric() || more.contains(c);
    // A lone dash stands for "none" in metrics and logs.
    if (1..=100).contains(&text.len()) && text.chars().all(good) && text != "-" {
        return Ok(());
    }
    let more: Vec<_> = more.chars().map(String::from).collect();
    let help = format!("1 to 100 letters, digits and {}", more.join(" "));
    flaw_help(format!("\"{text}\" cannot be a name"), help)
}

/// A header name, in lower case.
pub(super) fn header_name(text: &str) -> Flawed<String> {
    match is_token(text) {
        true => Ok(text.to_ascii_lowercase()),
        false => flaw(format!("\"{text}\" is not a header name")),
    }
}

/// The name of a cookie.
pub(super) fn cookie_name(text: &str) -> Flawed<String> {
    match is_token(text) {
        true => Ok(text.to_owned()),
        false => flaw(format!("\"{text}\" is not a cookie name")),
    }
}

/// The name of a top-level field of a JSON body.
pub(super) fn body_field(text: &str) -> Flawed<String> {
    match text.is_empty() {
        false => Ok(text.to_owned()),
        true => flaw("is empty: name a field of the body"),
    }
}

/// The name of a header that a user may set or remove, in lower case.
pub(super) fn editable_header(text: &str) -> Flawed<String> {
    let name = header_name(text)?;
    match name.as_str() {
        "host" => flaw_help("\"host\" is not edited as a header", "use `rewrite.host`"),
        name if FRAMING.contains(&name) => {
            flaw(format!("\"{name}\" is written by the proxy itself"))
        }
        _ => Ok(name),
    }
}

/// A header value: visible text, blanks and tabs.
pub(super) fn header_value(text: &str) -> Flawed<String> {
    let good = |c: char| c == '\t' || !c.is_control();
    match text.chars().all(good) && text.trim() == text {
        true => Ok(text.to_owned()),
        false => flaw(format!("{text:?} is not a header value: line breaks, or blanks around it")),
    }
}

/// A word such as a method, a cookie name or a header name.
fn is_token(text: &str) -> bool {
    let good = |c: char| c.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~".contains(c);
    !text.is_empty() && text.chars().all(good)
}

/// A method, in upper case.
pub(super) fn method(text: &str) -> Flawed<String> {
    match is_token(text) && !text.contains('*') {
        true => Ok(text.to_ascii_uppercase()),
        false => flaw(format!("\"{text}\" is not a method")),
    }
}

/// A host pattern.
pub(super) fn host_pattern(text: &str) -> Flawed<HostPattern> {
    let bare = text.strip_prefix("*.").unwrap_or(text);
    if let Some((host, _)) =
        bare.split_once(':').filter(|_| !bare.starts_with('[') && !bare.contains('/'))
    {
        return flaw_help(
            format!("\"{text}\" has a port; hosts are compared without"),
            format!("write \"{host}\""),
        );
    }
    match HostPattern::new(text).filter(|_| !text.contains(['/', ' '])) {
        Some(pattern) => Ok(pattern),
        None => flaw_help(
            format!("\"{text}\" is not a host pattern"),
            "a host, *.domain, or * for every host",
        ),
    }
}

/// A path pattern.
pub(super) fn path_pattern(text: &str) -> Flawed<PathPattern> {
    if text.contains(['?', '#']) {
        return flaw_help(
            format!("\"{text}\" is more than a path"),
            "the query is matched with `match.query`",
        );
    }
    match text.starts_with(['/', '*']) {
        true => Ok(PathPattern::new(text)),
        false => {
            flaw_help(format!("\"{text}\" is not a path"), format!("did you mean \"/{text}\"?"))
        }
    }
}

/// A path as it is sent, perhaps with a query.
pub(super) fn path(text: &str) -> Flawed<String> {
    let visible = text.chars().all(|c| c.is_ascii_graphic());
    match text.starts_with('/') && visible && !text.contains('#') {
        true => Ok(text.to_owned()),
        false if visible && !text.is_empty() && !text.contains([':', '#']) => {
            flaw_help(format!("\"{text}\" is not a path"), format!("did you mean \"/{text}\"?"))
        }
        false => {
            flaw_help(format!("\"{text}\" is not a path"), "it starts with / and has no blanks")
        }
    }
}

/// A host as it is sent in `host`.
pub(super) fn sent_host(text: &str) -> Flawed<String> {
    let (name, port) = match text.rsplit_once(':') {
        Some((name, port)) if !port.ends_with(']') => (name, Some(port)),
        _ => (text, None),
    };
    let port_is_good = port.is_none_or(|port| port.parse::<u16>().is_ok_and(|port| port > 0));
    match host(name).is_some() && port_is_good {
        true => Ok(text.to_owned()),
        false => flaw_help(format!("\"{text}\" is not a host"), "host or host:port"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints() {
        for (text, host, port) in [
            ("127.0.0.1:8000", "127.0.0.1", 8000),
            ("http://10.0.0.1:80/", "10.0.0.1", 80),
            ("[::1]:8000", "::1", 8000),
            ("http://[fe80::1]:1", "fe80::1", 1),
            ("VLLM.default.svc:8000", "vllm.default.svc", 8000),
            ("a_b.example.:65535", "a_b.example", 65535),
        ] {
            let read = endpoint(text).map(|(host, port)| (host.to_string(), port));
            assert_eq!(read, Ok((host.to_owned(), port)), "{text}");
        }
    }

    #[test]
    fn wrong_endpoints_say_why() {
        for (text, why) in [
            ("", "has no port"),
            ("vllm", "has no port"),
            ("::1", "has no port"),
            ("::1:8000", "has no port"),
            ("fe80::1%eth0:8000", "neither"),
            ("vllm:0", "is not a port"),
            ("vllm:70000", "is not a port"),
            ("vllm:http", "is not a port"),
            ("https://vllm:443", "TLS"),
            ("unix://x:1", "unknown scheme"),
            ("vllm:8000/v1", "more than a host"),
            ("user@vllm:8000", "more than a host"),
            ("300.0.0.1:80", "neither"),
            ("a..b:80", "neither"),
            (":80", "neither"),
            ("[::1:80", "neither"),
            ("a b:80", "neither"),
        ] {
            let (message, _) = endpoint(text).expect_err(text);
            assert!(message.contains(why), "{text}: {message}");
        }
    }

    #[test]
    fn sent_hosts() {
        for good in ["a.example", "a.example:80", "[::1]", "[::1]:80", "10.0.0.1"] {
            assert_eq!(sent_host(good), Ok(good.to_owned()));
        }
        for bad in ["", "a/b", "a:b", "a:0", ":80", "http://a"] {
            sent_host(bad).expect_err(bad);
        }
    }
}
