//! From what was written to what it means: the second half of reading, where several values are
//! looked at together.
//!
//! Decides every rule that one value cannot break alone (names that must exist, addresses that
//! collide, routes that can never match), and reads the texts that are more than text: addresses,
//! hosts, header names, patterns.
//!
//! Every function goes on after a problem; what it returns then is thrown away, because one problem
//! is enough for [`check`] to give no configuration. Places that already have a problem of form get
//! no second one.

mod admission;
mod answers;
mod backend;
mod probes;
mod redis;
mod route;
mod text;
mod tracing;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use crate::read::Document;
use crate::read::tree::Node;
use crate::report::{Problem, Report};
use crate::schema::{EndpointEntry, File, OneOrMany, Switch};
use crate::units::format_duration;
use crate::validated::{
    AccessLog, Action, Admin, Backend, Config, Dns, Drain, Endpoint, Forwarding, Host, Key, Limits,
    Listener, Log, LogField, LogPath, Place, Route, Runtime, Tenant,
};

pub(crate) use text::endpoint as parse_endpoint;

/// The configuration that `file`, read from `document`, means; or every problem of both.
pub(crate) fn check(mut document: Document, file: &File) -> Result<Config, Report> {
    let mut checker = Checker { document: &document, problems: vec![], warnings: vec![] };
    let config = checker.file(file);
    let (found, mut warnings) = (checker.problems, checker.warnings);
    document.problems.extend(found);
    let mut problems = document.problems;
    if problems.is_empty() {
        sort(&mut warnings);
        return Ok(Config { warnings, ..config });
    }
    sort(&mut problems);
    Err(Report { problems })
}

/// The endpoints of a file that lists nothing else; or every problem of both.
pub(crate) fn check_endpoints(
    mut document: Document,
    entries: &[EndpointEntry],
) -> Result<Vec<Endpoint>, Report> {
    let mut checker = Checker { document: &document, problems: vec![], warnings: vec![] };
    let endpoints = checker.addresses(&document.root, entries);
    let found = checker.problems;
    document.problems.extend(found);
    sort(&mut document.problems);
    match document.problems.is_empty() {
        true => Ok(endpoints),
        false => Err(Report { problems: document.problems }),
    }
}

/// In the order of the file.
pub(crate) fn sort(problems: &mut Vec<Problem>) {
    problems.sort_by(|a, b| (a.line, a.column, &a.path).cmp(&(b.line, b.column, &b.path)));
    problems.dedup();
}

/// What is wrong with a text: a message and perhaps some help.
type Flawed<T> = Result<T, (String, Option<String>)>;

struct Checker<'d> {
    document: &'d Document,
    problems: Vec<Problem>,
    warnings: Vec<Problem>,
}

impl Checker<'_> {
    /// Notes a problem, unless one of form is already there.
    fn wrong(&mut self, node: &Node, message: impl AsRef<str>, help: Option<String>) {
        if !self.document.is_broken(node) {
            self.problems.push(node.problem(&self.document.source, message.as_ref(), help));
        }
    }

    /// The same, pointing at the key.
    fn wrong_key(&mut self, node: &Node, message: impl AsRef<str>, help: Option<String>) {
        if !self.document.is_broken(node) {
            self.problems.push(node.key_problem(&self.document.source, message.as_ref(), help));
        }
    }

    /// Notes that a text is not there or is empty, whatever else is wrong beside it.
    fn missing(&mut self, node: &Node, key: &str) {
        match node.get(key) {
            Some(empty) => self.wrong(empty, "is empty", None),
            None => {
                let message = format!("missing field \"{key}\"");
                self.problems.push(node.problem(&self.document.source, &message, None));
            }
        }
    }

    fn warn(&mut self, node: &Node, message: impl AsRef<str>) {
        self.warnings.push(node.key_problem(&self.document.source, message.as_ref(), None));
    }

    /// Notes a problem when the duration of key `high` is shorter than that of key `low`.
    fn ordered(&mut self, node: &Node, low: (&str, Duration), high: (&str, Duration)) {
        let unread = node.get(low.0).is_some_and(|node| self.document.is_broken(node));
        if high.1 < low.1 && !unread {
            let (short, long) = (format_duration(high.1), format_duration(low.1));
            let message = format!("`{}` ({short}) is shorter than `{}` ({long})", high.0, low.0);
            self.wrong(node.at(high.0), message, None);
        }
    }

    /// The value of a text, or a problem at `node`.
    fn text<T>(&mut self, node: &Node, read: Flawed<T>) -> Option<T> {
        read.map_err(|(message, help)| self.wrong(node, message, help)).ok()
    }

    fn file(&mut self, file: &File) -> Config {
        let root = &self.document.root;
        let listeners = self.listeners(root.at("listeners"), file);
        let admin = self.admin(root, file, &listeners);
        let backends = self.backends(root.at("backends"), file, &listeners);
        let mut routes = self.routes(root.at("routes"), file);
        for route in &mut routes {
            route.key_fields = key_fields(route, &backends);
        }
        self.unused_backends(root.at("backends"), &backends, &routes);
        Config {
            listeners,
            admin,
            runtime: runtime(file),
            limits: limits(file),
            dns: self.dns(root.at("dns").at("servers"), file),
            backends,
            routes,
            answers: self.answer_store(root.at("answers"), file),
            forwarding: Forwarding { trusted_hops: file.forwarding.trusted_hops.0 as usize },
            tenant: self.tenant(root.at("tenant").at("header"), file),
            access_log: self.access_log(root.at("access_log"), file),
            drain: Drain { delay: file.drain.delay.0, timeout: file.drain.timeout.0 },
            log: Log { level: file.log.level },
            probes: self.probes(root.at("probes"), file),
            tracing: on(&file.tracing).map(|tracing| self.tracing(root.at("tracing"), tracing)),
            warnings: Vec::new(),
        }
    }

    fn listeners(&mut self, node: &Node, file: &File) -> Vec<Listener> {
        if file.listeners.is_empty() {
            self.wrong(node, "is empty: at least one listener is needed", None);
        }
        let mut listeners: Vec<Listener> = Vec::new();
        let items = self.document.items(node, file.listeners.len());
        for (item, listener) in items.into_iter().zip(&file.listeners) {
            let at = item.at("address");
            let Some(address) = self.text(at, text::address(&listener.address)) else { continue };
            if let Some(other) = listeners.iter().find(|other| collide(other.address, address)) {
                let message = format!("{address} cannot be taken beside {}", other.address);
                self.wrong(at, message, Some("an earlier listener has it".to_owned()));
            }
            listeners.push(Listener { address });
        }
        listeners
    }

    fn admin(&mut self, root: &Node, file: &File, listeners: &[Listener]) -> Admin {
        let node = root.at("admin").at("address");
        let fallback = SocketAddr::from(([127, 0, 0, 1], 0));
        let address = self.text(node, text::address(&file.admin.address)).unwrap_or(fallback);
        if let Some(other) = listeners.iter().find(|other| collide(other.address, address)) {
            // The default address has no place of its own.
            let node = if root.get("admin").is_some() { node } else { root.at("listeners") };
            let message = format!("the admin address {address} is taken by {}", other.address);
            self.wrong(node, message, Some("give the admin server another port".to_owned()));
        }
        Admin { address }
    }

    fn dns(&mut self, node: &Node, file: &File) -> Dns {
        let mut servers = Vec::new();
        let items = self.document.items(node, file.dns.servers.len());
        for (item, server) in items.into_iter().zip(&file.dns.servers) {
            let Some(server) = self.text(item, text::dns_server(server)) else { continue };
            if servers.contains(&server) {
                self.wrong(item, format!("{server} is listed twice"), None);
            }
            servers.push(server);
        }
        Dns { servers }
    }

    fn tenant(&mut self, node: &Node, file: &File) -> Tenant {
        let OneOrMany(names) = &file.tenant.header;
        if names.is_empty() {
            self.wrong(node, "is empty: at least one header is needed", None);
        }
        let mut header = Vec::new();
        let items = self.document.items(node, names.len());
        for (item, name) in items.into_iter().zip(names) {
            let Some(name) = self.text(item, text::header_name(name)) else { continue };
            if header.contains(&name) {
                self.wrong(item, format!("\"{name}\" is listed twice"), None);
            }
            header.push(name);
        }
        Tenant { header }
    }

    fn access_log(&mut self, node: &Node, file: &File) -> AccessLog {
        let log = &file.access_log;
        if log.path.is_empty() {
            self.wrong(node.at("path"), "is empty", Some("stdout, stderr or a file".to_owned()));
        }
        let path = match log.path.as_str() {
            "stdout" => LogPath::Stdout,
            "stderr" => LogPath::Stderr,
            path => LogPath::File(PathBuf::from(path)),
        };
        AccessLog {
            format: on(&log.format).copied(),
            path,
            fields: self.log_fields(node.at("fields"), &log.fields),
        }
    }

    fn log_fields(&mut self, node: &Node, fields: &[LogField]) -> Vec<LogField> {
        if fields.is_empty() {
            let help = "switch the log off with `format: off`".to_owned();
            self.wrong(node, "is empty: at least one field is needed", Some(help));
        }
        let items = self.document.items(node, fields.len());
        for (index, (item, field)) in items.into_iter().zip(fields).enumerate() {
            if fields[..index].contains(field) {
                self.wrong(item, format!("\"{}\" is listed twice", field.name()), None);
            }
        }
        fields.to_vec()
    }
}

/// The value that is not `off`.
fn on<T>(switch: &Switch<T>) -> Option<&T> {
    match switch {
        Switch::Off => None,
        Switch::On(value) => Some(value),
    }
}

fn runtime(file: &File) -> Runtime {
    let upgrade_socket = file.runtime.upgrade_socket.clone();
    Runtime { threads: file.runtime.threads.0 as usize, upgrade_socket }
}

fn limits(file: &File) -> Limits {
    let limits = &file.limits;
    Limits {
        header_bytes: limits.header_bytes.0,
        headers: limits.headers.0 as usize,
        body_bytes: limits.body_bytes.0,
        body_scan: limits.body_scan.0,
        header_timeout: limits.header_timeout.0,
        body_timeout: limits.body_timeout.0,
        write_timeout: limits.write_timeout.0,
        idle_timeout: limits.idle_timeout.0,
        connections: limits.connections.0 as usize,
    }
}

/// Whether two sockets cannot be bound beside each other; port 0 always can.
fn collide(a: SocketAddr, b: SocketAddr) -> bool {
    let everywhere = a.ip().is_unspecified() || b.ip().is_unspecified();
    a.port() != 0 && a.port() == b.port() && (everywhere || a.ip() == b.ip())
}

/// Whether the endpoint is this listener: traffic to it would come back.
fn is_own(listener: SocketAddr, endpoint: &Endpoint) -> bool {
    let Place::Host { host, port } = &endpoint.place else { return false };
    let local = match host {
        Host::Ip(ip) => {
            *ip == listener.ip() || (ip.is_loopback() && listener.ip().is_unspecified())
        }
        Host::Name(name) => {
            name == "localhost" && (listener.ip().is_loopback() || listener.ip().is_unspecified())
        }
    };
    local && listener.port() == *port
}

/// See [`Route::key_fields`].
fn key_fields(route: &Route, backends: &[Backend]) -> Vec<String> {
    let arms = if let Action::Split(arms) = &route.action { arms.as_slice() } else { &[] };
    let used = arms.iter().map(|arm| arm.backend);
    let used = used.chain(route.mirror.iter().map(|mirror| mirror.backend));
    let keys = used.filter_map(|index| backends.get(index)?.balance.key.as_ref());
    let mut fields: Vec<_> = keys
        .filter_map(|key| match key {
            Key::Body(field) => Some(field.clone()),
            Key::Header(_) | Key::Cookie(_) | Key::Client => None,
        })
        .collect();
    fields.sort_unstable();
    fields.dedup();
    fields
}
