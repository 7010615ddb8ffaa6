//! What a route takes, and whether anything is left for it to take.

use indexmap::IndexMap;

use crate::check::{Checker, Flawed, text};
use crate::pattern::{Glob, HostPattern, PathPattern};
use crate::read::tree::Node;
use crate::schema::{self, OneOrMany};
use crate::validated::Match;

impl Checker<'_> {
    /// The match of a route; `None` when it has a problem, so that nothing is concluded from it.
    pub(super) fn matches(&mut self, route_node: &Node, route: &schema::Route) -> Option<Match> {
        let before = self.problems.len();
        let node = route_node.at("match");
        let written = route.matches.clone().unwrap_or_default();
        let matches = Match {
            hosts: self.list(node.at("host"), &written.host, text::host_pattern),
            paths: self.list(node.at("path"), &written.path, text::path_pattern),
            methods: self.list(node.at("method"), &written.method, text::method),
            headers: self.header_globs(node.at("headers"), &written.headers),
            query: written
                .query
                .iter()
                .map(|(name, glob)| (name.clone(), Glob::new(glob)))
                .collect(),
            models: self.list(node.at("model"), &written.model, |text| Ok(Glob::new(text))),
        };
        let broken = route_node.get("match").is_some_and(|node| self.document.is_broken(node));
        (!broken && self.problems.len() == before).then_some(matches)
    }

    fn list<T>(
        &mut self,
        node: &Node,
        texts: &Option<OneOrMany<String>>,
        read: impl Fn(&str) -> Flawed<T>,
    ) -> Vec<T> {
        let Some(OneOrMany(texts)) = texts else { return Vec::new() };
        if texts.is_empty() {
            self.wrong(node, "is empty: nothing would match", None);
        }
        let items = self.document.items(node, texts.len());
        items.into_iter().zip(texts).filter_map(|(at, one)| self.text(at, read(one))).collect()
    }

    fn header_globs(
        &mut self,
        node: &Node,
        headers: &IndexMap<String, String>,
    ) -> Vec<(String, Glob)> {
        let mut globs = Vec::new();
        for (name, glob) in headers {
            match text::header_name(name) {
                Ok(name) => globs.push((name, Glob::new(glob))),
                Err((message, help)) => self.wrong_key(node.at(name), message, help),
            }
        }
        globs
    }

    /// Routes that an earlier one leaves nothing to.
    pub(super) fn unreachable(
        &mut self,
        items: &[&Node],
        names: &[String],
        matches: &[Option<Match>],
    ) {
        for (index, (item, narrow)) in items.iter().zip(matches).enumerate() {
            let Some(narrow) = narrow else { continue };
            let earlier = matches[..index].iter().zip(names).zip(items);
            let mut covering = earlier.filter_map(|((wide, name), at)| {
                let wide = wide.as_ref().filter(|wide| covers(wide, narrow))?;
                Some((wide.is_any(), name, &at.path))
            });
            match covering.next() {
                Some((true, name, path)) => {
                    let message =
                        format!("can never match: {path} (\"{name}\") takes everything before it");
                    self.wrong(item, message, Some("move it up".to_owned()));
                }
                Some((false, name, path)) => {
                    let message = format!(
                        "can never match: {path} (\"{name}\") takes all of it before; move it up"
                    );
                    self.warn(item, message);
                }
                None => {}
            }
        }
    }
}

/// Whether every request that fits `narrow` fits `wide`. May say no where the answer is yes, never
/// the reverse.
fn covers(wide: &Match, narrow: &Match) -> bool {
    wide.is_any()
        || (all(&wide.hosts, &narrow.hosts, HostPattern::covers)
            && all(&wide.paths, &narrow.paths, PathPattern::covers)
            && all(&wide.methods, &narrow.methods, |a, b| a == b)
            && all(&wide.models, &narrow.models, glob_covers)
            && pairs(&wide.headers, &narrow.headers)
            && pairs(&wide.query, &narrow.query))
}

/// For a list of which one must fit: each of `narrow` is covered by one of `wide`, or `wide` asks
/// for nothing.
fn all<T>(wide: &[T], narrow: &[T], covers: impl Fn(&T, &T) -> bool) -> bool {
    let covered = |small: &T| wide.iter().any(|large| covers(large, small));
    wide.is_empty() || (!narrow.is_empty() && narrow.iter().all(covered))
}

/// For pairs that must all fit: `narrow` asks for each of `wide`, as strictly or more.
fn pairs(wide: &[(String, Glob)], narrow: &[(String, Glob)]) -> bool {
    let asked = |(name, glob): &(String, Glob)| {
        narrow.iter().any(|(other, small)| other == name && glob_covers(glob, small))
    };
    wide.iter().all(asked)
}

fn glob_covers(wide: &Glob, narrow: &Glob) -> bool {
    wide == narrow || wide.is_any() || (!narrow.has_star() && wide.matches(narrow.as_str()))
}
