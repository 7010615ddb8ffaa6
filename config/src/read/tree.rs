//! YAML as a tree whose every node knows its line, its column and its path.
//!
//! Decides the YAML we take: one document, YAML 1.2 core scalars (so `off`, `on`, `yes` and `no`
//! are words), aliases within bounds, no tags, no merge keys, and no key twice in one mapping.

use std::collections::HashMap;

use saphyr_parser::{Event, Parser, ScalarStyle, ScanError, Span, StrInput};

use crate::report::Problem;

/// Deeper nesting than any configuration has; keeps recursion short.
const DEEPEST: usize = 32;
/// More nodes than any configuration has; keeps aliases from exploding.
const MOST_NODES: usize = 200_000;

/// One value, and the key it hangs on.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Node {
    /// Unique in its tree.
    pub(crate) id: usize,
    /// As `routes[0].split`.
    pub(crate) path: String,
    /// Where the value starts.
    place: Place,
    /// Where its key starts, when it is in a mapping.
    key_place: Option<Place>,
    pub(crate) kind: Kind,
}

/// Line and column, from 1; both 0 = nowhere.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Place {
    line: usize,
    column: usize,
}

/// What a node holds.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Kind {
    Null,
    Bool(bool),
    /// A whole number, with its text.
    Int(i64, String),
    /// Any other number, with its text.
    Float(f64, String),
    Text(String),
    List(Vec<Node>),
    Map(Vec<(String, Node)>),
}

/// Something wrong with the text itself.
#[derive(Debug)]
pub(crate) struct Flaw {
    place: Place,
    path: String,
    message: String,
}

/// A tree, and what was passed over while building it.
pub(crate) struct Tree {
    pub(crate) root: Node,
    pub(crate) flaws: Vec<Flaw>,
}

/// Builds the tree; fails where no tree can be made.
pub(crate) fn build(text: &str) -> Result<Tree, Flaw> {
    let mut builder =
        Builder { parser: Parser::new_from_str(text), anchors: HashMap::new(), made: 0 };
    let mut root = builder.document()?;
    let mut flaws = Vec::new();
    finish(&mut root, String::new(), &mut 0, &mut flaws);
    Ok(Tree { root, flaws })
}

impl Node {
    /// The root of a document that has no text.
    pub(crate) fn nowhere() -> Self {
        Self::new(Place::default(), Kind::Null)
    }

    fn new(place: Place, kind: Kind) -> Self {
        Self { id: 0, path: String::new(), place, key_place: None, kind }
    }

    /// The value of a key.
    pub(crate) fn get(&self, key: &str) -> Option<&Self> {
        let Kind::Map(entries) = &self.kind else { return None };
        entries.iter().find(|(name, _)| name == key).map(|(_, value)| value)
    }

    /// The value of a key, or this node where there is none: the nearest place to point at.
    pub(crate) fn at(&self, key: &str) -> &Self {
        self.get(key).unwrap_or(self)
    }

    /// The keys, in order.
    pub(crate) fn keys(&self) -> impl Iterator<Item = &str> {
        let entries = if let Kind::Map(entries) = &self.kind { entries.as_slice() } else { &[] };
        entries.iter().map(|(name, _)| name.as_str())
    }

    /// The line of the key, from 1; 0 = it has none.
    #[cfg(test)]
    pub(crate) fn key_line(&self) -> usize {
        self.key_place.unwrap_or_default().line
    }

    /// This node and everything below it, parents first.
    pub(crate) fn descendants(&self) -> Box<dyn Iterator<Item = &Self> + '_> {
        let below: Box<dyn Iterator<Item = &Self>> = match &self.kind {
            Kind::List(items) => Box::new(items.iter().flat_map(Self::descendants)),
            Kind::Map(entries) => {
                Box::new(entries.iter().flat_map(|(_, value)| value.descendants()))
            }
            _ => Box::new(std::iter::empty()),
        };
        Box::new(std::iter::once(self).chain(below))
    }

    /// The node of that id.
    pub(crate) fn by_id(&self, id: usize) -> Option<&Self> {
        self.descendants().find(|node| node.id == id)
    }

    /// A problem with the value.
    pub(crate) fn problem(&self, source: &str, message: &str, help: Option<String>) -> Problem {
        self.problem_at(self.place, source, message, help)
    }

    /// A problem with the key, or with the value where there is no key.
    pub(crate) fn key_problem(&self, source: &str, message: &str, help: Option<String>) -> Problem {
        self.problem_at(self.key_place.unwrap_or(self.place), source, message, help)
    }

    fn problem_at(
        &self,
        place: Place,
        source: &str,
        message: &str,
        help: Option<String>,
    ) -> Problem {
        let (source, path) = (source.to_owned(), self.path.clone());
        // One problem is one line, whatever was quoted.
        let message = message.replace(['\n', '\r'], "\\n");
        Problem { source, line: place.line, column: place.column, path, message, help }
    }

    /// What a person would call the value.
    pub(crate) fn describe(&self) -> String {
        match &self.kind {
            Kind::Null => "nothing".to_owned(),
            Kind::Bool(value) => value.to_string(),
            Kind::Int(_, text) | Kind::Float(_, text) => format!("the number {text}"),
            Kind::Text(text) => format!("{text:?}"),
            Kind::List(_) => "a list".to_owned(),
            Kind::Map(_) => "a mapping".to_owned(),
        }
    }
}

impl Flaw {
    fn new(place: Place, message: &str) -> Self {
        Self { place, path: String::new(), message: message.to_owned() }
    }

    /// The problem it is in that file.
    pub(crate) fn at(self, source: &str) -> Problem {
        let Self { place: Place { line, column }, path, message } = self;
        Problem { source: source.to_owned(), line, column, path, message, help: None }
    }
}

struct Builder<'t> {
    parser: Parser<'t, StrInput<'t>>,
    anchors: HashMap<usize, Node>,
    made: usize,
}

impl<'t> Builder<'t> {
    /// The only document of the text; an empty text is an empty mapping.
    fn document(&mut self) -> Result<Node, Flaw> {
        let mut root = None;
        loop {
            let (event, place) = self.next()?;
            match event {
                Event::StreamEnd => break,
                Event::StreamStart | Event::DocumentEnd | Event::Nothing => {}
                Event::DocumentStart(_) if root.is_some() => {
                    return Err(Flaw::new(place, "only one YAML document is read"));
                }
                Event::DocumentStart(_) => {
                    let (event, place) = self.next()?;
                    root = Some(self.node(&event, place, 0)?);
                }
                _ => return Err(Flaw::new(place, "not a YAML document")),
            }
        }
        let start = Place { line: 1, column: 1 };
        let root = root.unwrap_or_else(|| Node::new(start, Kind::Null));
        let nothing = root.kind == Kind::Null;
        Ok(if nothing { Node::new(start, Kind::Map(Vec::new())) } else { root })
    }

    fn next(&mut self) -> Result<(Event<'t>, Place), Flaw> {
        match self.parser.next_event() {
            Some(Ok((event, span))) => Ok((event, place(&span))),
            Some(Err(error)) => Err(syntax(&error)),
            None => Ok((Event::StreamEnd, Place::default())),
        }
    }

    fn node(&mut self, event: &Event<'t>, place: Place, depth: usize) -> Result<Node, Flaw> {
        self.made += 1;
        if depth > DEEPEST {
            return Err(Flaw::new(place, "nested too deeply"));
        }
        let (kind, anchor, tag) = match event {
            Event::Alias(anchor) => return self.alias(*anchor, place),
            Event::Scalar(text, style, anchor, tag) => (scalar(text, *style), *anchor, tag),
            Event::SequenceStart(anchor, tag) => (self.list(depth)?, *anchor, tag),
            Event::MappingStart(anchor, tag) => (self.map(depth)?, *anchor, tag),
            _ => return Err(Flaw::new(place, "a value is missing")),
        };
        if tag.is_some() {
            return Err(Flaw::new(place, "YAML tags are not read; write text in quotes"));
        }
        let node = Node::new(place, kind);
        if anchor > 0 {
            self.anchors.insert(anchor, node.clone());
        }
        Ok(node)
    }

    /// A copy of what the anchor named, placed where the alias stands.
    fn alias(&mut self, anchor: usize, place: Place) -> Result<Node, Flaw> {
        let Some(target) = self.anchors.get(&anchor) else {
            return Err(Flaw::new(place, "an alias within its own anchor"));
        };
        self.made += target.descendants().take(MOST_NODES).count();
        if self.made > MOST_NODES {
            return Err(Flaw::new(place, "too many values, counting what aliases repeat"));
        }
        Ok(Node { place, ..target.clone() })
    }

    fn list(&mut self, depth: usize) -> Result<Kind, Flaw> {
        let mut items = Vec::new();
        loop {
            let (event, place) = self.next()?;
            if matches!(event, Event::SequenceEnd | Event::StreamEnd) {
                return Ok(Kind::List(items));
            }
            items.push(self.node(&event, place, depth + 1)?);
        }
    }

    fn map(&mut self, depth: usize) -> Result<Kind, Flaw> {
        let mut entries = Vec::new();
        loop {
            let (event, key_place) = self.next()?;
            let key = match event {
                Event::MappingEnd | Event::StreamEnd => return Ok(Kind::Map(entries)),
                Event::Scalar(text, _, _, None) => text.into_owned(),
                _ => return Err(Flaw::new(key_place, "a key must be plain text")),
            };
            let (event, place) = self.next()?;
            let value = self.node(&event, place, depth + 1)?;
            entries.push((key, Node { key_place: Some(key_place), ..value }));
        }
    }
}

/// Gives every node its path and id, and removes keys that stand twice.
fn finish(node: &mut Node, path: String, count: &mut usize, flaws: &mut Vec<Flaw>) {
    node.id = *count;
    *count += 1;
    match &mut node.kind {
        Kind::List(items) => {
            for (index, item) in items.iter_mut().enumerate() {
                finish(item, format!("{path}[{index}]"), count, flaws);
            }
        }
        Kind::Map(entries) => {
            let mut first: HashMap<String, usize> = HashMap::new();
            entries.retain_mut(|(key, value)| {
                let below = join(&path, key);
                let place = value.key_place.unwrap_or(value.place);
                if let Some(line) = first.get(key) {
                    let message = format!("stands twice (first on line {line})");
                    flaws.push(Flaw { place, path: below, message });
                    return false;
                }
                first.insert(key.clone(), place.line);
                finish(value, below, count, flaws);
                true
            });
        }
        _ => {}
    }
    node.path = path;
}

/// `path.key`, or `path["key"]` where a dot would mislead.
pub(crate) fn join(path: &str, key: &str) -> String {
    let plain = |c: char| c.is_alphanumeric() || c == '_' || c == '-';
    match () {
        () if key.is_empty() || !key.chars().all(plain) => format!("{path}[{key:?}]"),
        () if path.is_empty() => key.to_owned(),
        () => format!("{path}.{key}"),
    }
}

fn place(span: &Span) -> Place {
    Place { line: span.start.line(), column: span.start.col() + 1 }
}

fn syntax(error: &ScanError) -> Flaw {
    let mark = error.marker();
    let place = Place { line: mark.line(), column: mark.col() + 1 };
    Flaw::new(place, &format!("not valid YAML: {}", error.info()))
}

/// The YAML 1.2 core schema.
fn scalar(text: &str, style: ScalarStyle) -> Kind {
    if style != ScalarStyle::Plain {
        return Kind::Text(text.to_owned());
    }
    match text {
        "" | "~" | "null" | "Null" | "NULL" => Kind::Null,
        "true" | "True" | "TRUE" => Kind::Bool(true),
        "false" | "False" | "FALSE" => Kind::Bool(false),
        _ => number(text).unwrap_or_else(|| Kind::Text(text.to_owned())),
    }
}

fn number(text: &str) -> Option<Kind> {
    let radix = |digits: &str, radix| i64::from_str_radix(digits, radix).ok();
    let whole = match text.as_bytes() {
        [b'0', b'x', b'0'..=b'9' | b'a'..=b'f' | b'A'..=b'F', ..] => radix(&text[2..], 16),
        [b'0', b'o', b'0'..=b'7', ..] => radix(&text[2..], 8),
        _ => text.parse().ok(),
    };
    if let Some(whole) = whole {
        return Some(Kind::Int(whole, text.to_owned()));
    }
    let start = text.trim_start_matches(['-', '+']).trim_start_matches('.');
    let float: f64 =
        text.parse().ok().filter(|_| start.starts_with(|c: char| c.is_ascii_digit()))?;
    Some(Kind::Float(float, text.to_owned()))
}
