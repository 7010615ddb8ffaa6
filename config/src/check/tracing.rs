//! Where traces go: a collector that can be reached, and headers that may be sent.

use indexmap::IndexMap;

use super::{Checker, Flawed, text};
use crate::read::tree::Node;
use crate::schema;
use crate::validated::{Collector, Host, Secret, Tracing};

/// Where a collector takes OTLP over HTTP when its address does not say so.
const PORT: u16 = 4318;
/// Likewise, the path of traces.
const PATH: &str = "/v1/traces";

impl Checker<'_> {
    pub(super) fn tracing(&mut self, node: &Node, tracing: &schema::Tracing) -> Tracing {
        if tracing.endpoint.is_empty() {
            self.missing(node, "endpoint");
        }
        let nowhere = || {
            let (host, path) = (Host::Name("localhost".to_owned()), PATH.to_owned());
            Collector { host, port: PORT, path }
        };
        let endpoint = match tracing.endpoint.as_str() {
            "" => nowhere(),
            url => self.text(node.at("endpoint"), collector(url)).unwrap_or_else(nowhere),
        };
        if tracing.service_name.is_empty() {
            self.wrong(node.at("service_name"), "is empty", None);
        }
        Tracing {
            endpoint,
            sample: tracing.sample.0,
            service_name: tracing.service_name.clone(),
            attributes: self.attributes(node.at("attributes"), &tracing.attributes),
            headers: self.secret_headers(node.at("headers"), &tracing.headers),
            timeout: tracing.timeout.0,
            queue: tracing.queue.0 as usize,
        }
    }

    fn attributes(
        &mut self,
        node: &Node,
        attributes: &IndexMap<String, String>,
    ) -> Vec<(String, String)> {
        for name in attributes.keys() {
            if name.is_empty() {
                self.wrong_key(node.at(name), "an attribute has a name", None);
            } else if name == "service.name" {
                let help = Some("write it as `service_name`".to_owned());
                self.wrong_key(node.at(name), "\"service.name\" has a setting of its own", help);
            }
        }
        attributes.iter().map(|(name, value)| (name.clone(), value.clone())).collect()
    }

    fn secret_headers(
        &mut self,
        node: &Node,
        headers: &IndexMap<String, String>,
    ) -> Vec<(String, Secret)> {
        let secret = |(name, value): (String, String)| (name, secret(&value));
        // What is wrong with a value is said without the value.
        for (name, value) in headers {
            if text::header_value(value).is_err() {
                let message = "is not a header value: line breaks, or blanks around it";
                self.wrong(node.at(name), message, None);
            }
        }
        let good = headers.iter().filter(|(_, value)| text::header_value(value).is_ok());
        self.header_map(node, good).into_iter().map(secret).collect()
    }
}

/// The value itself, or where it stands.
fn secret(text: &str) -> Secret {
    match text.split_once(':') {
        Some(("file", path)) if path.starts_with('/') => Secret::File(path.into()),
        Some(("env", name)) if !name.is_empty() => Secret::Env(name.to_owned()),
        _ => Secret::Text(text.to_owned()),
    }
}

const FORMS: &str = "such as http://collector:4318";

fn flaw<T>(message: impl Into<String>) -> Flawed<T> {
    Err((message.into(), Some(FORMS.to_owned())))
}

/// `http://host[:port][/path]`.
fn collector(url: &str) -> Flawed<Collector> {
    let rest = match url.split_once("://") {
        Some(("http", rest)) => rest,
        Some(("https", _)) => {
            let help = "send to a collector in the pod or on the node, which passes traces on";
            return Err(("TLS to a collector is not supported".to_owned(), Some(help.to_owned())));
        }
        Some((scheme, _)) => return flaw(format!("unknown scheme \"{scheme}\"")),
        None => return flaw(format!("\"{url}\" is not the address of a collector")),
    };
    let (place, path) = rest.find('/').map_or((rest, "/"), |at| rest.split_at(at));
    if path.contains(['?', '#', ' ']) || !path.is_ascii() {
        return flaw(format!("\"{path}\" is not a path"));
    }
    let has_port = place.rsplit_once(':').is_some_and(|(_, port)| !port.contains(']'));
    let with_port = if has_port { place.to_owned() } else { format!("{place}:{PORT}") };
    let (host, port) = match text::endpoint(&with_port) {
        Ok(found) => found,
        Err((message, _)) => return flaw(message),
    };
    let path = if path == "/" { PATH } else { path };
    Ok(Collector { host, port, path: path.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_of_collectors() {
        for (url, whole) in [
            ("http://collector", "http://collector:4318/v1/traces"),
            ("http://collector:80/", "http://collector:80/v1/traces"),
            ("http://[::1]:1/otlp/v1/traces", "http://[::1]:1/otlp/v1/traces"),
            ("http://[::1]", "http://[::1]:4318/v1/traces"),
            ("http://127.0.0.1:9/x", "http://127.0.0.1:9/x"),
        ] {
            assert_eq!(collector(url).map(|it| it.to_string()), Ok(whole.to_owned()), "{url}");
        }
        for url in
            ["collector:4318", "grpc://c", "https://c", "http://", "http://c:0", "http://c/?a"]
        {
            assert!(collector(url).is_err(), "{url}");
        }
    }

    #[test]
    fn values_of_headers_are_there_or_elsewhere() {
        assert_eq!(secret("file:/run/key"), Secret::File("/run/key".into()));
        assert_eq!(secret("env:KEY"), Secret::Env("KEY".to_owned()));
        for text in ["file:key", "env:", "Bearer x", "a:b"] {
            assert_eq!(secret(text), Secret::Text(text.to_owned()));
        }
    }
}
