//! From text to the schema types, past the first mistake.
//!
//! Decides how all mistakes of form are found in one run: the text becomes a [`tree`] whose nodes
//! know their place; the tree is deserialized; where that fails, the problem is noted, the
//! offending node is set aside, and it is tried again without it. What comes out may have holes,
//! but only where a problem has been noted, so whoever checks the meaning afterwards keeps quiet
//! about places that already have one ([`Document::is_broken`]).
//!
//! Leaves out meaning: see `check`.

mod de;
pub(crate) mod tree;

use std::collections::HashSet;

use serde::de::DeserializeOwned;

use crate::report::{Problem, Report};
pub(crate) use de::nearest;
use de::{Deserializer, Error, Mistake};
use tree::{Kind, Node};

/// More mistakes than this are cut off: nobody reads them, and each costs another pass.
const MOST_PROBLEMS: usize = 100;

/// A tree, and what was found wrong with its form.
pub(crate) struct Document {
    pub(crate) source: String,
    pub(crate) root: Node,
    pub(crate) problems: Vec<Problem>,
    /// Nodes that are passed over, by [`Node::id`].
    aside: HashSet<usize>,
}

impl Document {
    /// Reads YAML; fails when the text cannot be made into a tree at all.
    pub(crate) fn read(text: &str, source: &str) -> Result<Self, Report> {
        let tree = tree::build(text).map_err(|flaw| Report { problems: vec![flaw.at(source)] })?;
        let mut aside = HashSet::new();
        let empty = tree.root.descendants().filter(|node| node.kind == Kind::Null);
        let mut problems: Vec<_> = tree.flaws.into_iter().map(|flaw| flaw.at(source)).collect();
        for node in empty.filter(|node| !node.path.is_empty()) {
            let help = "give it one, or remove the key".to_owned();
            problems.push(node.key_problem(source, "has no value", Some(help)));
            aside.insert(node.id);
        }
        Ok(Self { source: source.to_owned(), root: tree.root, problems, aside })
    }

    /// A document without text, for a configuration that comes from elsewhere.
    pub(crate) fn absent(source: &str) -> Self {
        let (root, problems) = (Node::nowhere(), Vec::new());
        Self { source: source.to_owned(), root, problems, aside: HashSet::new() }
    }

    /// Whether the text says nothing at all.
    pub(crate) fn is_empty(&self) -> bool {
        matches!(&self.root.kind, Kind::Map(entries) if entries.is_empty())
    }

    /// What the tree says, without the nodes that were set aside; `None` when nothing is left.
    pub(crate) fn deserialize<T: DeserializeOwned>(&mut self) -> Option<T> {
        while self.problems.len() < MOST_PROBLEMS {
            match T::deserialize(Deserializer::new(&self.root, &self.aside)) {
                Ok(value) => return Some(value),
                Err(error) => self.set_aside(&error)?,
            }
        }
        None
    }

    /// The nodes of a list of which `count` are left; the node itself for each when it is no such
    /// list.
    pub(crate) fn items<'n>(&self, list: &'n Node, count: usize) -> Vec<&'n Node> {
        let Kind::List(items) = &list.kind else { return vec![list; count] };
        let left: Vec<_> = items.iter().filter(|item| !self.aside.contains(&item.id)).collect();
        if left.len() == count { left } else { vec![list; count] }
    }

    /// Whether a mistake of form has been noted at or below `node`.
    pub(crate) fn is_broken(&self, node: &Node) -> bool {
        self.problems.iter().any(|problem| is_below(&problem.path, &node.path))
    }

    /// Notes the error and sets its node aside; `None` when that is the root.
    fn set_aside(&mut self, error: &Error) -> Option<()> {
        let node = self.root.by_id(error.at?)?;
        let silent = matches!(&error.mistake, Mistake::Missing(name)
            if node.get(name).is_some_and(|value| self.aside.contains(&value.id)));
        if !silent {
            let (message, help) = error.words(node);
            let problem = match error.mistake {
                Mistake::UnknownField(..) => node.key_problem(&self.source, &message, help),
                _ => node.problem(&self.source, &message, help),
            };
            self.problems.push(problem);
        }
        let fresh = self.aside.insert(node.id);
        (fresh && node.id != self.root.id).then_some(())
    }
}

/// Whether `path` is `above` or something in it.
fn is_below(path: &str, above: &str) -> bool {
    match path.strip_prefix(above) {
        Some(rest) => rest.is_empty() || above.is_empty() || rest.starts_with(['.', '[']),
        None => false,
    }
}
