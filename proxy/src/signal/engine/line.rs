//! The grammar of one line of a metrics page: a name, labels in braces, a value, and what may
//! follow it.
//!
//! It covers the Prometheus text format 0.0.4 and OpenMetrics 1.0 as far as they are alike:
//! timestamps and exemplars after the value are not looked at. A name in quotes inside the braces
//! (Prometheus 3) is not understood; it is only used for names that engines do not have.

use memchr::{memchr, memchr2};

use super::names::Pick;

/// Data-parallel ranks that are told apart; a series of a higher one is taken for unreadable.
pub(super) const MAX_RANKS: u32 = u128::BITS;

/// One series of a metric.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Series<'a> {
    /// Whether its labels are those that count.
    pub(super) wanted: bool,
    /// Its data-parallel rank; 0 when it has none.
    pub(super) rank: u32,
    /// The text of its value.
    pub(super) value: &'a [u8],
}

/// From where on a line holds a name, if it can; and whether the line only describes it. Other
/// comments have none.
pub(super) fn name_of(line: &[u8]) -> Option<(&[u8], bool)> {
    let line = match line.first()? {
        b' ' | b'\t' => line.trim_ascii_start(),
        _ => line,
    };
    match line.first()? {
        b'#' => Some((line.strip_prefix(b"# TYPE ")?, true)),
        _ => Some((line, false)),
    }
}

/// What follows `name` where `text` begins with exactly this name.
pub(super) fn after<'a>(text: &'a [u8], name: &str) -> Option<&'a [u8]> {
    let rest = text.strip_prefix(name.as_bytes())?;
    matches!(rest.first()?, b'{' | b' ' | b'\t').then_some(rest)
}

/// What follows the name of a metric; `None` when that is not labels and a value.
pub(super) fn series(rest: &[u8], pick: Pick) -> Option<Series<'_>> {
    let mut series = Series { wanted: !matches!(pick, Pick::With(..)), rank: 0, value: &[] };
    let mut rest = rest.trim_ascii_start();
    if let Some(labels) = rest.strip_prefix(b"{") {
        rest = labels;
        while let Some((key, value, after)) = label(rest)? {
            series.look_at(key, value, pick)?;
            rest = after;
        }
        rest = rest.trim_ascii_start().strip_prefix(b"}")?;
    }
    series.value = rest.trim_ascii().split(u8::is_ascii_whitespace).next()?;
    Some(series)
}

impl Series<'_> {
    fn look_at(&mut self, key: &[u8], value: &[u8], pick: Pick) -> Option<()> {
        match pick {
            Pick::Every => {}
            Pick::With(name, wanted) => {
                self.wanted |= key == name.as_bytes() && value == wanted.as_bytes();
            }
            Pick::OncePerRank if key == b"dp_rank" => {
                let rank: u32 = str::from_utf8(value).ok()?.parse().ok()?;
                self.rank = Some(rank).filter(|rank| *rank < MAX_RANKS)?;
            }
            Pick::OncePerRank => self.wanted &= key != b"priority" || value.is_empty(),
        }
        Some(())
    }
}

/// The name of a label, its value as it is written, and what follows.
type Label<'a> = (&'a [u8], &'a [u8], &'a [u8]);

/// The next label, or none before a closing brace; the outer `None` means that it is neither.
fn label(text: &[u8]) -> Option<Option<Label<'_>>> {
    let text = text.trim_ascii_start();
    if text.first()? == &b'}' {
        return Some(None);
    }
    let equals = memchr(b'=', text)?;
    let quoted = text[equals + 1..].trim_ascii_start().strip_prefix(b"\"")?;
    let end = closing_quote(quoted)?;
    let rest = quoted[end + 1..].trim_ascii_start();
    let rest = rest.strip_prefix(b",").unwrap_or(rest);
    Some(Some((text[..equals].trim_ascii(), &quoted[..end], rest)))
}

/// Where a quoted text ends: at the first quote that no backslash escapes.
fn closing_quote(text: &[u8]) -> Option<usize> {
    let mut at = 0;
    loop {
        at += memchr2(b'"', b'\\', text.get(at..)?)?;
        if text[at] == b'"' {
            return Some(at);
        }
        at += 2;
    }
}
