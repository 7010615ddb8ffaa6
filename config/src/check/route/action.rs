//! What a route does: exactly one of `backend`, `split`, `redirect` and `respond`.

use indexmap::IndexMap;

use crate::check::Checker;
use crate::read::nearest;
use crate::read::tree::{Kind, Node};
use crate::schema::{self, File, Whole};
use crate::validated::{Action, Arm, Redirect, Respond};

const ACTIONS: [&str; 4] = ["backend", "split", "redirect", "respond"];
const REDIRECTS: [u32; 5] = [301, 302, 303, 307, 308];
const BODILESS: [u32; 3] = [204, 205, 304];

impl Checker<'_> {
    pub(super) fn action(
        &mut self,
        node: &Node,
        route: &schema::Route,
        file: &File,
    ) -> Option<Action> {
        let written: Vec<_> = ACTIONS.into_iter().filter(|key| node.get(key).is_some()).collect();
        if written.len() > 1 {
            let message = format!("has {}: exactly one is possible", listed(&written, "and"));
            self.wrong_action(node, &message);
            return None;
        }
        if let Some(name) = &route.backend {
            let backend = self.backend_index(node.at("backend"), name, file)?;
            return Some(Action::Split(vec![Arm { name: name.clone(), backend, weight: 1 }]));
        }
        if let Some(split) = &route.split {
            return self.split(node.at("split"), split, file).map(Action::Split);
        }
        if let Some(redirect) = &route.redirect {
            return self.redirect(node.at("redirect"), redirect).map(Action::Redirect);
        }
        if let Some(respond) = &route.respond {
            return Some(Action::Respond(self.respond(node.at("respond"), respond)));
        }
        if written.is_empty() {
            self.wrong_action(
                node,
                &format!("does nothing: it needs one of {}", listed(&ACTIONS, "or")),
            );
        }
        None
    }

    /// About the keys of the route, whatever else is wrong within it.
    fn wrong_action(&mut self, node: &Node, message: &str) {
        self.problems.push(node.problem(&self.document.source, message, None));
    }

    fn split(
        &mut self,
        node: &Node,
        split: &IndexMap<String, Whole<0, 10_000>>,
        file: &File,
    ) -> Option<Vec<Arm>> {
        if split.values().all(|weight| weight.0 == 0) {
            let empty = split.is_empty();
            let message = if empty { "is empty: name a backend" } else { "every weight is 0" };
            self.wrong(node, message, None);
        }
        let mut arms = Vec::new();
        for (name, weight) in split {
            let backend = self.backend_index(node.at(name), name, file);
            arms.extend(backend.map(|backend| Arm {
                name: name.clone(),
                backend,
                weight: weight.0,
            }));
        }
        Some(arms)
    }

    /// The place of the backend; `None` also when it has problems of its own.
    pub(super) fn backend_index(&mut self, node: &Node, name: &str, file: &File) -> Option<usize> {
        let index = file.backends.get_index_of(name);
        let backends = self.document.root.get("backends");
        if backends.is_some_and(|node| !matches!(node.kind, Kind::Map(_))) {
            return index;
        }
        let mut known: Vec<_> = backends.into_iter().flat_map(Node::keys).collect();
        known.sort_unstable();
        if index.is_none() && !known.contains(&name) {
            let help = nearest(name, &known);
            let message = format!("unknown backend \"{name}\"");
            // An arm is a key, `backend:` is a value.
            match node.path.ends_with("backend") {
                true => self.wrong(node, message, help),
                false => self.wrong_key(node, message, help),
            }
        }
        index
    }

    fn redirect(&mut self, node: &Node, redirect: &schema::Redirect) -> Option<Redirect> {
        if !REDIRECTS.contains(&redirect.status.0) {
            let message = format!("{} is not a redirect", redirect.status.0);
            let help = "301, 302, 303, 307 or 308".to_owned();
            self.wrong(node.at("status"), message, Some(help));
        }
        if redirect.to.is_empty() || !redirect.to.chars().all(|c| c.is_ascii_graphic()) {
            let message = format!("{:?} is not an address to go to", redirect.to);
            self.wrong(node.at("to"), message, Some("a URL or a path, without blanks".to_owned()));
        }
        let status = u16::try_from(redirect.status.0).ok()?;
        Some(Redirect { to: redirect.to.clone(), status })
    }

    fn respond(&mut self, node: &Node, respond: &schema::Respond) -> Respond {
        let status = respond.status.0;
        if BODILESS.contains(&status) && !respond.body.is_empty() {
            self.wrong(
                node.at("body"),
                format!("a response with status {status} has no body"),
                None,
            );
        }
        let headers = self.header_map(node.at("headers"), &respond.headers);
        let status = u16::try_from(status).unwrap_or(200);
        Respond { status, body: respond.body.clone(), headers }
    }
}

/// `` `a`, `b` and `c` ``
fn listed(words: &[&str], last_joint: &str) -> String {
    let quoted: Vec<_> = words.iter().map(|word| format!("`{word}`")).collect();
    match quoted.split_last() {
        Some((last, rest)) if !rest.is_empty() => {
            format!("{} {last_joint} {last}", rest.join(", "))
        }
        _ => quoted.join(""),
    }
}
