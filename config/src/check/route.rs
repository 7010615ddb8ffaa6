//! Routes: exactly one action, arms that exist, and a match that something can reach.

mod action;
mod body;
mod deadline;
mod guard;
mod hedge;
mod matching;

use std::collections::HashMap;

use super::{Checker, text};
use crate::pattern::PathPattern;
use crate::read::tree::Node;
use crate::schema::{self, File, Switch};
use crate::validated::{
    Action, Expose, HeaderEdits, Match, PathRewrite, Retry, RetryBudget, Rewrite, Route, Sticky,
};

/// Keys that mean nothing where no endpoint is asked.
const ABOUT_ENDPOINTS: [&str; 18] = [
    "sticky",
    "force_arm",
    "deadline",
    "levels",
    "retry",
    "hedge",
    "answers",
    "fallback",
    "rates",
    "limit",
    "queue",
    "priority",
    "rewrite",
    "expose",
    "mirror",
    "compress",
    "decompress",
    "batch",
];

impl Checker<'_> {
    pub(super) fn routes(&mut self, node: &Node, file: &File) -> Vec<Route> {
        if file.routes.is_empty() {
            self.wrong(node, "no routes: at least one is needed", None);
        }
        let items = self.document.items(node, file.routes.len());
        let names = self.route_names(&items, file);
        let mut matches = Vec::new();
        let mut routes = Vec::new();
        for ((item, route), name) in items.iter().zip(&file.routes).zip(&names) {
            let found = self.matches(item, route);
            routes.extend(self.route(item, route, name, found.clone().unwrap_or_default(), file));
            matches.push(found);
        }
        self.unreachable(&items, &names, &matches);
        routes
    }

    fn route_names(&mut self, items: &[&Node], file: &File) -> Vec<String> {
        let mut taken: HashMap<String, String> = HashMap::new();
        let mut names = Vec::new();
        for (index, (item, route)) in items.iter().zip(&file.routes).enumerate() {
            let name = route.name.clone().unwrap_or_else(|| format!("route-{}", index + 1));
            let at = item.at("name");
            self.text(at, text::name(&name, "-_./"));
            if let Some(other) = taken.insert(name.clone(), item.path.clone()) {
                self.wrong(at, format!("the name \"{name}\" is taken by {other}"), None);
            }
            names.push(name);
        }
        names
    }

    fn route(
        &mut self,
        node: &Node,
        route: &schema::Route,
        name: &str,
        matches: Match,
        file: &File,
    ) -> Option<Route> {
        let action = self.action(node, route, file);
        let sticky = route.sticky.as_ref().map(|sticky| self.sticky(node.at("sticky"), sticky));
        let force_arm = match &route.force_arm {
            Switch::Off => None,
            Switch::On(name) => self.text(node.at("force_arm"), text::header_name(name)),
        };
        let rewrite = self.rewrite(node, route, &matches);
        let deadline = self.deadline(node.at("deadline"), &route.deadline.0);
        let levels = self.levels(node.at("levels"), &route.levels, action.as_ref(), file);
        let retry = self.retry(node.at("retry"), &route.retry);
        let rates = self.rates(node.at("rates"), &route.rates);
        let limit = self.limit(node.at("limit"), &route.limit);
        let queue = self.queue(node.at("queue"), &route.queue);
        if queue.is_some() && route.limit == Switch::Off {
            let help = "set `limit` beside it".to_owned();
            self.wrong_key(node.at("queue"), "has nothing to wait for", Some(help));
        }
        let priority = route.priority.as_ref();
        let priority = priority.and_then(|priority| self.priority(node.at("priority"), priority));
        let hedge = self.hedge(node, route, &deadline);
        let guard = route.guard.as_ref();
        let guard = guard.and_then(|guard| self.guard(node, guard, action.as_ref()));
        let mirror = route.mirror.as_ref();
        let mirror =
            mirror.and_then(|mirror| self.mirror(node.at("mirror"), mirror, action.as_ref(), file));
        let (answers, fallback) = self.answers(node, route, file);
        let compress = self.compress(node.at("compress"), &route.compress);
        let route = Route {
            name: name.to_owned(),
            matches,
            action: action?,
            sticky: sticky.flatten(),
            force_arm,
            deadline,
            levels,
            retry,
            hedge,
            answers,
            fallback,
            rates,
            limit,
            queue,
            priority,
            rewrite,
            expose: expose(&route.expose),
            errors: route.errors,
            guard,
            mirror,
            compress,
            decompress: body::decompress(&route.decompress),
            batch: body::batch(&route.batch),
            key_fields: Vec::new(),
        };
        if !matches!(route.action, Action::Split(_)) {
            for ignored in ABOUT_ENDPOINTS.iter().filter_map(|key| node.get(key)) {
                self.warn(ignored, "has no effect: the route does not ask a backend");
            }
        }
        Some(route)
    }

    fn sticky(&mut self, node: &Node, sticky: &schema::Sticky) -> Option<Sticky> {
        match (&sticky.header, &sticky.cookie, &sticky.body) {
            (Some(name), None, None) => {
                self.text(node.at("header"), text::header_name(name)).map(Sticky::Header)
            }
            (None, Some(name), None) => {
                self.text(node.at("cookie"), text::cookie_name(name)).map(Sticky::Cookie)
            }
            (None, None, Some(field)) => {
                self.text(node.at("body"), text::body_field(field)).map(Sticky::Body)
            }
            _ => {
                self.wrong(node, "needs exactly one of `header`, `cookie` and `body`", None);
                None
            }
        }
    }

    fn retry(&mut self, node: &Node, retry: &Switch<schema::Retry>) -> Option<Retry> {
        let Switch::On(retry) = retry else { return None };
        let (backoff, max_backoff) = (retry.backoff.0, retry.max_backoff.0);
        self.ordered(node, ("backoff", backoff), ("max_backoff", max_backoff));
        if retry.when.is_empty() {
            let help = "switch retries off with `retry: off`".to_owned();
            self.wrong(node.at("when"), "is empty: nothing would be tried again", Some(help));
        }
        Some(Retry {
            attempts: retry.attempts.0,
            when: retry.when.iter().copied().collect(),
            backoff,
            max_backoff,
            max_retry_after: retry.max_retry_after.0,
            buffer: retry.buffer.0,
            budget: RetryBudget {
                percent: retry.budget.percent.0,
                min_per_second: retry.budget.min_per_second.0,
            },
        })
    }

    fn rewrite(&mut self, route_node: &Node, route: &schema::Route, matches: &Match) -> Rewrite {
        let (node, rewrite) = (route_node.at("rewrite"), &route.rewrite);
        let path = rewrite.path.as_ref();
        let path = path.and_then(|path| self.path_rewrite(route_node, path, matches));
        let host = rewrite.host.as_ref();
        let host = host.and_then(|host| self.text(node.at("host"), text::sent_host(host)));
        if rewrite.model.as_ref().is_some_and(String::is_empty) {
            self.wrong(node.at("model"), "is empty", None);
        }
        let request_headers = self.edits(node.at("request_headers"), &rewrite.request_headers);
        let response_headers = self.edits(node.at("response_headers"), &rewrite.response_headers);
        Rewrite { path, host, model: rewrite.model.clone(), request_headers, response_headers }
    }

    fn path_rewrite(&mut self, route: &Node, path: &str, matches: &Match) -> Option<PathRewrite> {
        let node = route.at("rewrite").at("path");
        let head = path.strip_suffix('*');
        let new = self.text(node, text::path(head.unwrap_or(path)))?;
        if new.contains(['*', '?']) {
            self.wrong(node, "has more than a path and a star at its end", None);
        }
        if head.is_none() {
            return Some(PathRewrite::Exact(new));
        }
        let prefix = |pattern: &PathPattern| matches!(pattern, PathPattern::Prefix(_));
        // A match with a problem of its own says nothing about the rewrite.
        let sound = route.get("match").is_none_or(|at| !self.document.is_broken(at));
        if sound && (matches.paths.is_empty() || !matches.paths.iter().all(prefix)) {
            let help = "end every `match.path` in a star too".to_owned();
            self.wrong(node, "replaces a prefix, but the match has none", Some(help));
        }
        Some(PathRewrite::Prefix(new))
    }

    fn edits(&mut self, node: &Node, edits: &schema::HeaderEdits) -> HeaderEdits {
        let set = self.header_map(node.at("set"), &edits.set);
        let items = self.document.items(node.at("remove"), edits.remove.len());
        let names = items.into_iter().zip(&edits.remove);
        let remove = names.filter_map(|(at, name)| self.text(at, text::editable_header(name)));
        HeaderEdits { set, remove: remove.collect() }
    }

    /// Headers that the user sets: names in lower case, none twice.
    pub(super) fn header_map<'f>(
        &mut self,
        node: &Node,
        headers: impl IntoIterator<Item = (&'f String, &'f String)>,
    ) -> Vec<(String, String)> {
        let mut checked: Vec<(String, String)> = Vec::new();
        for (name, value) in headers {
            let at = node.at(name);
            let value = self.text(at, text::header_value(value));
            match text::editable_header(name) {
                Err((message, help)) => self.wrong_key(at, message, help),
                Ok(name) if checked.iter().any(|(other, _)| *other == name) => {
                    self.wrong_key(at, format!("the header \"{name}\" stands twice"), None);
                }
                Ok(name) => checked.extend(value.map(|value| (name, value))),
            }
        }
        checked
    }
}

fn expose(words: &[schema::Expose]) -> Expose {
    use schema::Expose as Word;
    Expose {
        arm: words.contains(&Word::Arm),
        attempts: words.contains(&Word::Attempts),
        timing: words.contains(&Word::Timing),
        load: words.contains(&Word::Load),
        endpoint: words.contains(&Word::Endpoint),
    }
}
