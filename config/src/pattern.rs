//! Patterns a route is matched with, sorted into kinds once so that a request only compares bytes.
//!
//! Decides what a star means. In a path: none = the whole path, one at the end = a prefix, anywhere
//! else = a glob. In a host: `*.example.com` = any name below. In headers, query and model: always
//! a glob. A star stands for any bytes, also none, also `/`. There is no other wildcard and no
//! escape.
//!
//! Leaves out percent-decoding and normalising: the caller says which bytes are the path.

use std::fmt;

use serde::{Serialize, Serializer};

/// Text with `*` for "any bytes, also none". Compared by bytes, case matters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Glob(Box<str>);

impl Glob {
    /// Takes any text; there is no text that is not a glob.
    #[must_use]
    pub fn new(text: &str) -> Self {
        Self(text.into())
    }

    /// The text it was made from.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether there is a star at all.
    #[must_use]
    pub fn has_star(&self) -> bool {
        self.0.contains('*')
    }

    /// Whether it matches whatever it is given (one or more stars and nothing else).
    #[must_use]
    pub fn is_any(&self) -> bool {
        !self.0.is_empty() && self.0.bytes().all(|byte| byte == b'*')
    }

    /// Whether the whole of `text` fits. At most `pattern × text` steps, no allocation.
    #[must_use]
    pub fn matches(&self, text: &str) -> bool {
        self.matches_bytes(text.as_bytes())
    }

    /// The same for bytes that need not be UTF-8, such as a header value.
    #[must_use]
    pub fn matches_bytes(&self, text: &[u8]) -> bool {
        let pattern = self.0.as_bytes();
        let (mut at, mut read) = (0, 0);
        // The last star and how much text it has swallowed: only that one ever needs to take more.
        let mut star: Option<(usize, usize)> = None;
        while read < text.len() {
            if pattern.get(at) == Some(&b'*') {
                star = Some((at, read));
                at += 1;
            } else if pattern.get(at) == Some(&text[read]) {
                at += 1;
                read += 1;
            } else if let Some((star_at, swallowed)) = star {
                star = Some((star_at, swallowed + 1));
                at = star_at + 1;
                read = swallowed + 1;
            } else {
                return false;
            }
        }
        pattern[at..].iter().all(|byte| *byte == b'*')
    }

    /// The bytes before the first star: whatever matches starts with them.
    fn literal_head(&self) -> &str {
        self.0.split('*').next().unwrap_or_default()
    }
}

/// A pattern for the path of a request (without the query). Case matters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PathPattern {
    /// `/ping`: this path and no other.
    Exact(Box<str>),
    /// `/v1/*`: starts with these bytes (`/v1/`; so `/v1` itself does not fit). `*` alone is the
    /// empty prefix.
    Prefix(Box<str>),
    /// `/v1/*/tokens`: stars elsewhere; a star crosses `/`.
    Glob(Glob),
}

impl PathPattern {
    /// Sorts `text` into its kind.
    #[must_use]
    pub fn new(text: &str) -> Self {
        match text.find('*') {
            None => Self::Exact(text.into()),
            Some(at) if at + 1 == text.len() => Self::Prefix(text[..at].into()),
            Some(_) => Self::Glob(Glob::new(text)),
        }
    }

    /// Whether the whole of `path` fits.
    #[must_use]
    pub fn matches(&self, path: &str) -> bool {
        match self {
            Self::Exact(text) => **text == *path,
            Self::Prefix(prefix) => path.starts_with(&**prefix),
            Self::Glob(glob) => glob.matches(path),
        }
    }

    /// Whether every path fits.
    #[must_use]
    pub fn is_any(&self) -> bool {
        match self {
            Self::Exact(_) => false,
            Self::Prefix(prefix) => prefix.is_empty() || **prefix == *"/",
            Self::Glob(glob) => glob.is_any(),
        }
    }

    /// Whether everything that fits `other` fits `self` too. May say no where the answer is yes,
    /// never the reverse.
    #[must_use]
    pub fn covers(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Prefix(prefix), Self::Prefix(text) | Self::Exact(text)) => {
                text.starts_with(&**prefix)
            }
            (Self::Prefix(prefix), Self::Glob(glob)) => glob.literal_head().starts_with(&**prefix),
            (Self::Glob(glob), Self::Exact(text)) => glob.matches(text),
            _ => self == other,
        }
    }
}

/// A pattern for the host of a request. Letter case does not matter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HostPattern {
    /// `*`: every host, also an absent one.
    Any,
    /// `api.example.com`: this one; kept in lower case.
    Exact(Box<str>),
    /// `*.example.com`: any name below it, at any depth; kept as `.example.com` in lower case.
    Suffix(Box<str>),
}

impl HostPattern {
    /// Sorts `text` into its kind; `None` when a star stands anywhere but as the whole first label.
    #[must_use]
    pub fn new(text: &str) -> Option<Self> {
        let text = text.to_ascii_lowercase();
        if text == "*" {
            return Some(Self::Any);
        }
        let (rest, suffix) = match text.strip_prefix('*') {
            Some(rest) => (rest, true),
            None => (text.as_str(), false),
        };
        match () {
            () if rest.contains('*') || rest.is_empty() => None,
            () if suffix && (!rest.starts_with('.') || rest.len() < 2) => None,
            () if suffix => Some(Self::Suffix(rest.into())),
            () => Some(Self::Exact(rest.into())),
        }
    }

    /// Whether `host` fits: a host without its port, see [`host_without_port`].
    #[must_use]
    pub fn matches(&self, host: &str) -> bool {
        match self {
            Self::Any => true,
            Self::Exact(text) => text.eq_ignore_ascii_case(host),
            Self::Suffix(suffix) => {
                let (host, suffix) = (host.as_bytes(), suffix.as_bytes());
                host.len() > suffix.len()
                    && host[host.len() - suffix.len()..].eq_ignore_ascii_case(suffix)
            }
        }
    }

    /// Whether everything that fits `other` fits `self` too.
    #[must_use]
    pub fn covers(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Any, _) => true,
            (Self::Suffix(wide), Self::Suffix(narrow)) => narrow.ends_with(&**wide),
            (Self::Suffix(_), Self::Exact(text)) => self.matches(text),
            _ => self == other,
        }
    }
}

/// The host part of `Host` or `:authority`: the port is cut off, and the brackets of an IPv6
/// address stay.
#[must_use]
pub fn host_without_port(authority: &str) -> &str {
    match authority.rfind(':') {
        Some(at) if authority[at + 1..].bytes().all(|byte| byte.is_ascii_digit()) => {
            &authority[..at]
        }
        _ => authority,
    }
}

impl fmt::Display for Glob {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&self.0)
    }
}

impl fmt::Display for PathPattern {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exact(text) => out.write_str(text),
            Self::Prefix(prefix) => write!(out, "{prefix}*"),
            Self::Glob(glob) => glob.fmt(out),
        }
    }
}

impl fmt::Display for HostPattern {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Any => out.write_str("*"),
            Self::Exact(text) => out.write_str(text),
            Self::Suffix(suffix) => write!(out, "*{suffix}"),
        }
    }
}

impl Serialize for Glob {
    fn serialize<S: Serializer>(&self, out: S) -> Result<S::Ok, S::Error> {
        out.collect_str(self)
    }
}

impl Serialize for PathPattern {
    fn serialize<S: Serializer>(&self, out: S) -> Result<S::Ok, S::Error> {
        out.collect_str(self)
    }
}

impl Serialize for HostPattern {
    fn serialize<S: Serializer>(&self, out: S) -> Result<S::Ok, S::Error> {
        out.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_glob_fits_the_whole_text() {
        let cases: [(&str, &str, bool); 16] = [
            ("", "", true),
            ("", "a", false),
            ("*", "", true),
            ("*", "anything/at all", true),
            ("**", "x", true),
            ("gold", "gold", true),
            ("gold", "golden", false),
            ("gold", "Gold", false),
            ("llama-*", "llama-3-8b", true),
            ("llama-*", "llama", false),
            ("*-instruct", "llama-3-instruct", true),
            ("*-instruct", "llama-3-instruct-v2", false),
            ("a*b*c", "a-b-b-c", true),
            ("a*b*c", "a-c-b", false),
            ("a*ab", "aab", true),
            ("*é*", "café!", true),
        ];
        for (pattern, text, expected) in cases {
            assert_eq!(Glob::new(pattern).matches(text), expected, "{pattern:?} against {text:?}");
        }
    }

    /// The textbook recursion, exponential but obviously right.
    fn plain(pattern: &[u8], text: &[u8]) -> bool {
        match (pattern.first(), text.first()) {
            (None, None) => true,
            (Some(b'*'), _) => {
                plain(&pattern[1..], text) || (!text.is_empty() && plain(pattern, &text[1..]))
            }
            (Some(want), Some(have)) => want == have && plain(&pattern[1..], &text[1..]),
            _ => false,
        }
    }

    #[test]
    fn a_glob_agrees_with_the_textbook_on_every_short_text() {
        let words = |alphabet: &'static [u8], length: u32| {
            (0..(alphabet.len() as u32).pow(length)).map(move |mut code| {
                let mut word = String::new();
                for _ in 0..length {
                    word.push(char::from(alphabet[code as usize % alphabet.len()]));
                    code /= alphabet.len() as u32;
                }
                word
            })
        };
        let mut fits = 0;
        for pattern in (0..=5).flat_map(|length| words(b"ab*", length)) {
            for text in (0..=6).flat_map(|length| words(b"ab", length)) {
                let expected = plain(pattern.as_bytes(), text.as_bytes());
                assert_eq!(Glob::new(&pattern).matches(&text), expected, "{pattern} {text}");
                fits += u32::from(expected);
            }
        }
        assert!(fits > 1000, "the comparison must have met real matches, met {fits}");
    }

    #[test]
    fn a_hostile_glob_ends_in_time() {
        let pattern = Glob::new(&"a*".repeat(200));
        let text = format!("{}b", "a".repeat(20_000));
        assert!(pattern.matches(&text));
        assert!(!Glob::new(&format!("{}c", "a*".repeat(200))).matches(&text));
    }

    #[test]
    fn a_path_is_sorted_by_where_its_star_stands() {
        assert_eq!(PathPattern::new("/ping"), PathPattern::Exact("/ping".into()));
        assert_eq!(PathPattern::new("/v1/*"), PathPattern::Prefix("/v1/".into()));
        assert_eq!(PathPattern::new("/v1/*/x"), PathPattern::Glob(Glob::new("/v1/*/x")));
        assert_eq!(PathPattern::new("/a*b*"), PathPattern::Glob(Glob::new("/a*b*")));
        for text in ["/ping", "/v1/*", "/v1/*/x", "*"] {
            assert_eq!(PathPattern::new(text).to_string(), text);
        }
    }

    #[test]
    fn paths() {
        let cases = [
            ("/ping", "/ping", true),
            ("/ping", "/ping/", false),
            ("/v1/*", "/v1/", true),
            ("/v1/*", "/v1/chat/completions", true),
            ("/v1/*", "/v1", false),
            ("/v1*", "/v10", true),
            ("*", "/", true),
            ("/v1/*/tokens", "/v1/a/b/tokens", true),
            ("/v1/*/tokens", "/v1/tokens", false),
        ];
        for (pattern, path, expected) in cases {
            assert_eq!(PathPattern::new(pattern).matches(path), expected, "{pattern} {path}");
        }
    }

    #[test]
    fn hosts() {
        let cases = [
            ("api.example.com", "API.example.COM", true),
            ("API.example.com", "api.example.com", true),
            ("api.example.com", "example.com", false),
            ("*.example.com", "a.example.com", true),
            ("*.example.com", "a.b.Example.com", true),
            ("*.example.com", "example.com", false),
            ("*.example.com", ".example.com", false),
            ("*.example.com", "badexample.com", false),
            ("*", "anything", true),
        ];
        for (pattern, host, expected) in cases {
            let pattern = HostPattern::new(pattern).expect("a good pattern");
            assert_eq!(pattern.matches(host), expected, "{pattern} {host}");
        }
        for bad in ["", "a.*.com", "*a.com", "**", "*.", "a*"] {
            assert_eq!(HostPattern::new(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn a_suffix_does_not_split_a_character() {
        let pattern = HostPattern::new("*.é").expect("a good pattern");
        assert!(!pattern.matches("aéé"));
    }

    #[test]
    fn the_port_is_cut_off() {
        for (authority, host) in [
            ("a.example:8800", "a.example"),
            ("a.example", "a.example"),
            ("[::1]:80", "[::1]"),
            ("[::1]", "[::1]"),
            ("a:", "a"),
            ("", ""),
        ] {
            assert_eq!(host_without_port(authority), host);
        }
    }

    #[test]
    fn covering_is_never_claimed_wrongly() {
        let patterns = ["*", "/*", "/v1/*", "/v1/chat", "/v1/*/x", "/v*", "/v1*", "/v1", "/a*b*"];
        let paths = ["/", "/v1", "/v1/", "/v1/chat", "/v1/a/x", "/v10", "/a-b-", "/ab", "/v1/b/x"];
        let mut claimed = 0;
        for wide in patterns.map(PathPattern::new) {
            for narrow in patterns.map(PathPattern::new) {
                if wide.covers(&narrow) {
                    claimed += 1;
                    for path in paths {
                        assert!(wide.matches(path) || !narrow.matches(path), "{wide} {narrow}");
                    }
                }
            }
        }
        assert!(claimed > patterns.len(), "more than itself");
    }
}
