//! Outrigger's configuration: from a YAML file that a person wrote to the [`Config`] that the proxy
//! runs.
//!
//! - [`load`] a file, [`parse`] a text, or make one [`from_upstreams`]: all give a [`Config`] or a
//!   [`Report`] with every problem at once, each with file, line, column, path and, where it can be
//!   known, what was meant.
//! - [`Config`] (see [`validated`]) is plain data, defaulted and checked: backends and routes are
//!   lists in file order, an arm of a split counts into the backends, durations are `Duration`
//!   (`None` where the file says `off`), patterns are sorted into kinds and have `matches(&str) ->
//!   bool` ([`pattern`]). It serializes to the effective configuration, with units.
//! - [`load_endpoints`] reads a list of endpoints that stands in a file of its own.
//! - [`changed_restart_settings`] names what a reload cannot change.
//! - [`json_schema`] and [`EXAMPLE`] are what `outrigger schema` and `outrigger example` print.

mod check;
pub mod pattern;
mod read;
pub mod report;
pub mod schema;
#[cfg(test)]
mod tests;
pub mod units;
pub mod validated;

use std::net::SocketAddr;
use std::path::Path;

use indexmap::IndexMap;

use read::Document;
pub use report::{Problem, Report};
pub use schema::json_schema;
pub use validated::Config;
use validated::Endpoint;

/// Every setting with its meaning and its default, as YAML.
pub const EXAMPLE: &str = include_str!("../examples/full.yaml");

/// The smallest useful file, as YAML.
pub const MINIMAL: &str = include_str!("../examples/minimal.yaml");

/// The name of the backend that [`from_upstreams`] makes.
pub const UPSTREAM_BACKEND: &str = "upstream";

/// The name of the route that [`from_upstreams`] makes.
pub const UPSTREAM_ROUTE: &str = "default";

/// Reads a file.
///
/// # Errors
/// The file cannot be read, or has problems: all of them, in the order of the file.
pub fn load(path: &Path) -> Result<Config, Report> {
    let source = path.display().to_string();
    parse(&read(path, &source)?, &source)
}

/// Reads a text; `source` is what problems call it.
///
/// # Errors
/// Every problem of the text, in its order.
pub fn parse(text: &str, source: &str) -> Result<Config, Report> {
    let mut document = Document::read(text, source)?;
    match document.deserialize::<schema::File>() {
        Some(file) => check::check(document, &file),
        None => Err(all(document)),
    }
}

/// Reads a file that a backend names as [`validated::Place::File`]: a list of endpoints, each with an
/// address. The list may be empty (`[]`).
///
/// # Errors
/// The file cannot be read, or has problems: all of them, in the order of the file. An empty file is
/// one: it is more likely half written than meant.
pub fn load_endpoints(path: &Path) -> Result<Vec<Endpoint>, Report> {
    let source = path.display().to_string();
    parse_endpoints(&read(path, &source)?, &source)
}

/// The same for a text; `source` is what problems call it.
///
/// # Errors
/// Every problem of the text, in its order.
pub fn parse_endpoints(text: &str, source: &str) -> Result<Vec<Endpoint>, Report> {
    let mut document = Document::read(text, source)?;
    if document.is_empty() {
        return Err(report(source, "", "is empty: write [] for no endpoints".to_owned()));
    }
    match document.deserialize::<Vec<schema::EndpointEntry>>() {
        Some(entries) => check::check_endpoints(document, &entries),
        None => Err(all(document)),
    }
}

/// The configuration of a proxy that sends everything to these endpoints (`http://host:port` or
/// `host:port`).
///
/// # Errors
/// No endpoint is given, one is wrong, or the addresses collide.
pub fn from_upstreams(
    urls: &[impl AsRef<str>],
    listen: Option<SocketAddr>,
    admin: Option<SocketAddr>,
) -> Result<Config, Report> {
    let source = "command line";
    if urls.is_empty() {
        return Err(report(source, "--upstream", "at least one is needed".to_owned()));
    }
    let mut document = Document::absent(source);
    for (message, help) in urls.iter().filter_map(|url| check::parse_endpoint(url.as_ref()).err()) {
        let path = "--upstream".to_owned();
        let source = source.to_owned();
        document.problems.push(Problem { source, line: 0, column: 0, path, message, help });
    }
    if !document.problems.is_empty() {
        return Err(Report { problems: document.problems });
    }
    check::check(document, &upstream_file(urls, listen, admin))
}

fn upstream_file(
    urls: &[impl AsRef<str>],
    listen: Option<SocketAddr>,
    admin: Option<SocketAddr>,
) -> schema::File {
    let mut file = schema::File::default();
    let endpoints = urls.iter().map(|url| schema::Brief::short(url.as_ref().to_owned())).collect();
    let backend = schema::Backend { endpoints, ..schema::Backend::default() };
    file.backends = IndexMap::from([(UPSTREAM_BACKEND.to_owned(), backend)]);
    file.routes = vec![schema::Route {
        name: Some(UPSTREAM_ROUTE.to_owned()),
        backend: Some(UPSTREAM_BACKEND.to_owned()),
        ..schema::Route::default()
    }];
    if let Some(address) = listen {
        file.listeners = vec![schema::Listener { address: address.to_string() }];
    }
    if let Some(address) = admin {
        file.admin = schema::Admin { address: address.to_string() };
    }
    file
}

/// Which settings differ that a reload cannot change, by their names in the file; the running ones
/// stay.
#[must_use]
pub fn changed_restart_settings(old: &Config, new: &Config) -> Vec<&'static str> {
    let changed = [
        ("listeners", old.listeners != new.listeners),
        ("admin.address", old.admin.address != new.admin.address),
        ("runtime.threads", old.runtime.threads != new.runtime.threads),
        ("probes", old.probes != new.probes),
        ("tracing", old.tracing != new.tracing),
        ("runtime.upgrade_socket", old.runtime.upgrade_socket != new.runtime.upgrade_socket),
    ];
    changed.into_iter().filter(|(_, differs)| *differs).map(|(name, _)| name).collect()
}

fn read(path: &Path, source: &str) -> Result<String, Report> {
    let text = std::fs::read_to_string(path);
    text.map_err(|error| report(source, "", format!("cannot be read: {error}")))
}

/// What is wrong with the form of a document.
fn all(mut document: Document) -> Report {
    check::sort(&mut document.problems);
    Report { problems: document.problems }
}

fn report(source: &str, path: &str, message: String) -> Report {
    let (source, path) = (source.to_owned(), path.to_owned());
    Report { problems: vec![Problem { source, line: 0, column: 0, path, message, help: None }] }
}
