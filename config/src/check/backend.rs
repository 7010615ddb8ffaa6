//! Backends: endpoints that can be reached and do not lead back to us, and checks that can succeed.

use super::{Checker, is_own, text};
use crate::read::tree::Node;
use crate::schema::{self, File, Switch};
use crate::validated::Action;
use crate::validated::{
    Backend, Ejection, Endpoint, Health, HealthCheck, Listener, Route, StatusRange,
};

impl Checker<'_> {
    pub(super) fn backends(
        &mut self,
        node: &Node,
        file: &File,
        listeners: &[Listener],
    ) -> Vec<Backend> {
        let mut backends = Vec::new();
        for (name, backend) in &file.backends {
            let at = node.at(name);
            if let Err((message, help)) = text::name(name, "-_.") {
                self.wrong_key(at, message, help);
            }
            backends.push(self.backend(at, name, backend, listeners));
        }
        backends
    }

    fn backend(
        &mut self,
        node: &Node,
        name: &str,
        backend: &schema::Backend,
        listeners: &[Listener],
    ) -> Backend {
        let at = node.at("health");
        let health = backend.health.as_ref().and_then(|health| self.health(at, health));
        Backend {
            name: name.to_owned(),
            endpoints: self.endpoints(node.at("endpoints"), backend, listeners),
            protocol: backend.protocol,
            balance: backend.balance,
            max_connections: match backend.max_connections {
                Switch::Off => None,
                Switch::On(most) => Some(most.0 as usize),
            },
            health,
            ejection: self.ejection(node.at("ejection"), &backend.ejection),
            idle_connections: backend.idle_connections.0 as usize,
            idle_timeout: backend.idle_timeout.0,
            dns_refresh: backend.dns_refresh.0,
        }
    }

    fn endpoints(
        &mut self,
        node: &Node,
        backend: &schema::Backend,
        listeners: &[Listener],
    ) -> Vec<Endpoint> {
        if backend.endpoints.is_empty() {
            self.wrong(node, "no endpoints: at least one is needed", None);
        }
        let mut endpoints: Vec<Endpoint> = Vec::new();
        let items = self.document.items(node, backend.endpoints.len());
        for (item, entry) in items.into_iter().zip(&backend.endpoints) {
            let at = item.at("address");
            let read = text::endpoint(&entry.address);
            let Some((host, port)) = self.text(at, read) else { continue };
            let endpoint = Endpoint { host, port, weight: entry.weight.0 };
            self.endpoint(at, &endpoint, &endpoints, listeners);
            endpoints.push(endpoint);
        }
        endpoints
    }

    fn endpoint(
        &mut self,
        node: &Node,
        endpoint: &Endpoint,
        earlier: &[Endpoint],
        listeners: &[Listener],
    ) {
        let same = |other: &&Endpoint| (&other.host, other.port) == (&endpoint.host, endpoint.port);
        if earlier.iter().any(|other| same(&other)) {
            let help = "give it a weight instead".to_owned();
            self.wrong(node, format!("{endpoint} is listed twice"), Some(help));
        }
        if let Some(listener) = listeners.iter().find(|own| is_own(own.address, endpoint)) {
            let message = format!("{endpoint} leads back to the listener {}", listener.address);
            self.wrong(node, message, None);
        }
    }

    fn health(&mut self, node: &Node, health: &schema::Health) -> Option<Health> {
        let check = match (&health.http, health.tcp.unwrap_or(false)) {
            (Some(path), false) => HealthCheck::Http(self.text(node.at("http"), text::path(path))?),
            (None, true) => HealthCheck::Tcp,
            (Some(_), true) => {
                self.wrong(node, "has both `http` and `tcp`: exactly one is needed", None);
                return None;
            }
            (None, false) => {
                let help = "`http: /health` or `tcp: true`".to_owned();
                self.wrong(node, "has neither `http` nor `tcp`", Some(help));
                return None;
            }
        };
        if let (HealthCheck::Tcp, Some(status)) = (&check, node.get("status")) {
            self.wrong_key(status, "only an `http` check has a status", None);
        }
        if health.status.0.is_empty() {
            self.wrong(node.at("status"), "is empty: nothing would be a success", None);
        }
        let ranges = health.status.0.iter();
        Some(Health {
            check,
            interval: health.interval.0,
            timeout: health.timeout.0,
            healthy: health.healthy.0,
            unhealthy: health.unhealthy.0,
            status: ranges
                .map(|entry| StatusRange { first: entry.first, last: entry.last })
                .collect(),
        })
    }

    fn ejection(&mut self, node: &Node, ejection: &Switch<schema::Ejection>) -> Option<Ejection> {
        let Switch::On(ejection) = ejection else { return None };
        let (base, max) = (ejection.base.0, ejection.max.0);
        self.ordered(node, ("base", base), ("max", max));
        Some(Ejection { failures: ejection.failures.0, base, max })
    }

    pub(super) fn unused_backends(&mut self, node: &Node, backends: &[Backend], routes: &[Route]) {
        let uses = |route: &Route, index| match &route.action {
            Action::Split(arms) => arms.iter().any(|arm| arm.backend == index),
            Action::Redirect(_) | Action::Respond(_) => false,
        };
        for (index, backend) in backends.iter().enumerate() {
            if !routes.iter().any(|route| uses(route, index)) {
                self.warn(node.at(&backend.name), "no route uses this backend");
            }
        }
    }
}
