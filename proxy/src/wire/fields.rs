//! The fields of a message head, kept as they came.
//!
//! Why not `http::HeaderMap`: building one hashes every name and counts references for every value, and a proxy
//! only looks at a few fields and writes all of them out again. Here the bytes of the head stay in one buffer and a
//! field is two ranges in it; order and case survive, and a lookup compares lengths first.

/// Header or trailer fields in order, names compared without case.
#[derive(Clone, Default)]
pub struct Fields {
    bytes: Vec<u8>,
    entries: Vec<Entry>,
}

#[derive(Clone, Copy)]
struct Entry {
    name: Span,
    value: Span,
}

/// A range in the buffer of a head. A head is at most a few hundred KiB, so 32 bits suffice.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Span {
    start: u32,
    len: u32,
}

impl Span {
    pub(crate) fn new(start: usize, len: usize) -> Self {
        Span { start: start as u32, len: len as u32 }
    }

    pub(crate) fn of(self, bytes: &[u8]) -> &[u8] {
        &bytes[self.start as usize..(self.start + self.len) as usize]
    }
}

impl Fields {
    /// No fields yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes over `head`, the raw bytes that the spans point into, leaving room for fields to be added.
    pub(crate) fn from_head(head: &[u8], fields: usize) -> Self {
        let mut bytes = Vec::with_capacity(head.len() + 512);
        bytes.extend_from_slice(head);
        Fields { bytes, entries: Vec::with_capacity(fields + 8) }
    }

    pub(crate) fn push_span(&mut self, name: Span, value: Span) {
        self.entries.push(Entry { name, value });
    }

    /// The bytes that spans of this head point into.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Stores bytes beside the fields (a rewritten request target).
    pub(crate) fn store(&mut self, value: &[u8]) -> Span {
        let span = Span::new(self.bytes.len(), value.len());
        self.bytes.extend_from_slice(value);
        span
    }

    /// The first value under `name`.
    pub fn get(&self, name: &str) -> Option<&[u8]> {
        self.entries
            .iter()
            .find(|entry| self.is(entry, name))
            .map(|entry| entry.value.of(&self.bytes))
    }

    /// The first value under `name`, where it is visible ASCII or UTF-8 text.
    pub fn get_str(&self, name: &str) -> Option<&str> {
        self.get(name).and_then(|value| std::str::from_utf8(value).ok())
    }

    /// Every value under `name`, in order.
    pub fn get_all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a [u8]> {
        self.entries
            .iter()
            .filter(move |entry| self.is(entry, name))
            .map(|entry| entry.value.of(&self.bytes))
    }

    /// Whether there is a field of this name.
    pub fn contains(&self, name: &str) -> bool {
        self.entries.iter().any(|entry| self.is(entry, name))
    }

    /// Adds a field at the end.
    pub fn append(&mut self, name: &str, value: impl AsRef<[u8]>) {
        let name = self.store(name.as_bytes());
        let value = self.store(value.as_ref());
        self.entries.push(Entry { name, value });
    }

    /// Adds a field whose value `write` puts into the buffer, without an intermediate string.
    pub fn append_with(&mut self, name: &str, write: impl FnOnce(&mut Vec<u8>)) {
        let name = self.store(name.as_bytes());
        let start = self.bytes.len();
        write(&mut self.bytes);
        let value = Span::new(start, self.bytes.len() - start);
        self.entries.push(Entry { name, value });
    }

    /// Replaces every field of this name by one.
    pub fn set(&mut self, name: &str, value: impl AsRef<[u8]>) {
        self.remove(name);
        self.append(name, value);
    }

    /// Removes every field of this name.
    pub fn remove(&mut self, name: &str) {
        let bytes = &self.bytes;
        self.entries.retain(|entry| !entry.name.of(bytes).eq_ignore_ascii_case(name.as_bytes()));
    }

    /// Keeps the fields for which `keep` holds.
    pub fn retain(&mut self, mut keep: impl FnMut(&[u8], &[u8]) -> bool) {
        let bytes = &self.bytes;
        self.entries.retain(|entry| keep(entry.name.of(bytes), entry.value.of(bytes)));
    }

    /// Name and value of each field, in order.
    pub fn iter(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        self.entries.iter().map(|e| (e.name.of(&self.bytes), e.value.of(&self.bytes)))
    }

    /// How many bytes the fields take on the wire, and some more.
    pub(crate) fn wire_len(&self) -> usize {
        self.bytes.len() + 4 * self.entries.len() + 128
    }

    /// How many fields there are.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    fn is(&self, entry: &Entry, name: &str) -> bool {
        entry.name.len as usize == name.len()
            && entry.name.of(&self.bytes).eq_ignore_ascii_case(name.as_bytes())
    }
}

impl std::fmt::Debug for Fields {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_map()
            .entries(
                self.iter().map(|(n, v)| (String::from_utf8_lossy(n), String::from_utf8_lossy(v))),
            )
            .finish()
    }
}

/// Whether a comma-separated field holds `token`, compared without case.
pub fn has_token<'a>(mut values: impl Iterator<Item = &'a [u8]>, token: &str) -> bool {
    values.any(|value| tokens(value).any(|t| t.eq_ignore_ascii_case(token.as_bytes())))
}

/// The members of a comma-separated field, trimmed, empty ones left out.
pub fn tokens(value: &[u8]) -> impl Iterator<Item = &[u8]> {
    value.split(|&b| b == b',').map(<[u8]>::trim_ascii).filter(|t| !t.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_compared_without_case_and_order_is_kept() {
        let mut fields = Fields::new();
        fields.append("X-A", "1");
        fields.append("x-b", "2");
        fields.append("x-a", "3");
        assert_eq!(fields.get("x-A"), Some(&b"1"[..]));
        assert_eq!(fields.get_all("x-a").count(), 2);
        fields.set("X-A", "4");
        let all: Vec<_> = fields.iter().map(|(n, v)| (n.to_vec(), v.to_vec())).collect();
        assert_eq!(all, [(b"x-b".to_vec(), b"2".to_vec()), (b"X-A".to_vec(), b"4".to_vec())]);
    }

    #[test]
    fn tokens_are_trimmed_and_found_without_case() {
        let value: &[u8] = b"keep-alive , Upgrade,,";
        assert_eq!(tokens(value).count(), 2);
        assert!(has_token([value].into_iter(), "upgrade"));
        assert!(!has_token([value].into_iter(), "up"));
    }
}
