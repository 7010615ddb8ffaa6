//! Backends: endpoints that can be reached and do not lead back to us, and checks that can succeed.

mod balance;
mod ejection;
mod endpoints;

use super::{Checker, on, text};
use crate::read::tree::Node;
use crate::schema::{self, File, Switch};
use crate::validated::{
    Action, Backend, Health, HealthCheck, Listener, Route, SlowStart, StatusRange, WarmUp,
    WarmUpRequest,
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
        let warm_up = backend.warm_up.as_ref();
        let limit = self.limit(node.at("limit"), &backend.limit);
        let queue = self.queue(node.at("queue"), &backend.queue);
        let limited = backend.limit != Switch::Off
            || backend.max_connections != Switch::Off
            || backend.signals.agent != Switch::Off;
        if queue.is_some() && !limited {
            let help = "set `limit` or `max_connections` beside it".to_owned();
            self.wrong_key(node.at("queue"), "has nothing to wait for", Some(help));
        }
        Backend {
            name: name.to_owned(),
            endpoints: self.endpoints(node.at("endpoints"), backend, listeners),
            protocol: backend.protocol,
            balance: self.balance(node.at("balance"), &backend.balance.0),
            signals: self.signals(node.at("signals"), &backend.signals),
            locality: self.locality(node.at("locality"), &backend.locality),
            max_connections: on(&backend.max_connections).map(|most| most.0 as usize),
            limit,
            queue,
            health,
            warm_up: warm_up.map(|warm_up| self.warm_up(node.at("warm_up"), warm_up)),
            slow_start: on(&backend.slow_start).map(|brief| slow_start(&brief.0)),
            ejection: self.ejection(node.at("ejection"), &backend.ejection),
            breaker: self.breaker(node.at("breaker"), &backend.breaker),
            idle_connections: backend.idle_connections.0 as usize,
            idle_timeout: backend.idle_timeout.0,
            dns_refresh: backend.dns_refresh.0,
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

    fn warm_up(&mut self, node: &Node, warm_up: &schema::WarmUp) -> WarmUp {
        let (at, requests) = (node.at("requests"), &warm_up.requests);
        if requests.is_empty() {
            self.wrong(at, "no requests: at least one is needed", None);
        }
        let items = self.document.items(at, requests.len());
        let requests = items.into_iter().zip(requests);
        let requests = requests.filter_map(|(item, request)| self.warm_up_request(item, request));
        WarmUp { requests: requests.collect(), timeout: warm_up.timeout.0, retry: warm_up.retry.0 }
    }

    fn warm_up_request(
        &mut self,
        node: &Node,
        request: &schema::WarmUpRequest,
    ) -> Option<WarmUpRequest> {
        let method = self.text(node.at("method"), text::method(&request.method));
        let headers = self.header_map(node.at("headers"), &request.headers);
        if request.path.is_empty() {
            self.missing(node, "path");
            return None;
        }
        let path = self.text(node.at("path"), text::path(&request.path))?;
        let (body, repeat) = (request.body.clone(), request.repeat.0);
        Some(WarmUpRequest { method: method?, path, headers, body, repeat })
    }

    pub(super) fn unused_backends(&mut self, node: &Node, backends: &[Backend], routes: &[Route]) {
        let is_arm = |route: &Route, index| match &route.action {
            Action::Split(arms) => arms.iter().any(|arm| arm.backend == index),
            Action::Redirect(_) | Action::Respond(_) => false,
        };
        let uses = |route: &Route, index| {
            let mirrors = route.mirror.as_ref().is_some_and(|mirror| mirror.backend == index);
            is_arm(route, index) || mirrors
        };
        for (index, backend) in backends.iter().enumerate() {
            if !routes.iter().any(|route| uses(route, index)) {
                self.warn(node.at(&backend.name), "no route uses this backend");
            }
        }
    }
}

fn slow_start(slow_start: &schema::SlowStart) -> SlowStart {
    let (floor, aggression) = (slow_start.floor.0, slow_start.aggression.0);
    SlowStart { window: slow_start.window.0, floor, aggression }
}
