//! The kernel's own description of its types (BTF), as far as it is needed to say where a field lies.
//!
//! Structures differ between kernels and builds, so no offset is written down anywhere: each is looked up by name when the
//! probes are loaded. aya does not offer that. The format is that of the kernel's documentation, "BPF Type Format".
//!
//! Left out: everything but structures, unions, the names of tracepoints, and how many parameters functions have. Bytes that are no BTF give an error, never a
//! panic.

/// A structure, a union, and what leads to one under another name.
const STRUCT: u32 = 4;
const UNION: u32 = 5;
const TYPEDEF: u32 = 8;
const VOLATILE: u32 = 9;
const CONST: u32 = 10;
const FUNCTION: u32 = 12;
const PROTOTYPE: u32 = 13;
const TYPE_TAG: u32 = 18;

/// How deep structures may lie in each other, and names may stand for names.
const DEEPEST: u32 = 32;

/// Types of a kernel, by number.
pub(super) struct Btf<'a> {
    strings: &'a [u8],
    types: &'a [u8],
    /// Where each type begins; the first has number 1.
    starts: Vec<u32>,
}

#[derive(Clone, Copy)]
struct Type {
    /// Where its members begin.
    body: usize,
    name: u32,
    kind: u32,
    members: u32,
    /// Offsets of members hold the sizes of bit fields in their upper byte.
    has_bits: bool,
    /// The type that a name stands for.
    target: u32,
}

impl<'a> Btf<'a> {
    /// Reads `/sys/kernel/btf/vmlinux`, or what looks like it; `None` when it is no BTF of this machine's byte order.
    pub(super) fn parse(bytes: &'a [u8]) -> Option<Self> {
        let word = |at: usize| word(bytes, at);
        if bytes.get(..2)? != 0xEB9F_u16.to_ne_bytes() {
            return None;
        }
        let header = word(4)? as usize;
        let section = |start: u32, length: u32| {
            let start = header.checked_add(start as usize)?;
            bytes.get(start..start.checked_add(length as usize)?)
        };
        let types = section(word(8)?, word(12)?)?;
        let strings = section(word(16)?, word(20)?)?;
        let mut btf = Btf { strings, types, starts: Vec::new() };
        let mut at = 0;
        while at < types.len() {
            btf.starts.push(u32::try_from(at).ok()?);
            let found = btf.read(at)?;
            at = found.body + extra(found.kind, found.members)?;
        }
        Some(btf)
    }

    fn read(&self, at: usize) -> Option<Type> {
        let [name, info, target] = [0, 4, 8].map(|field| word(self.types, at + field));
        let info = info?;
        Some(Type {
            body: at + 12,
            name: name?,
            kind: info >> 24 & 0x1f,
            members: info & 0xffff,
            has_bits: info >> 31 == 1,
            target: target?,
        })
    }

    fn by_number(&self, number: u32) -> Option<Type> {
        let start = *self.starts.get(usize::try_from(number).ok()?.checked_sub(1)?)?;
        self.read(start as usize)
    }

    fn name(&self, offset: u32) -> &[u8] {
        let rest = self.strings.get(offset as usize..).unwrap_or_default();
        rest.split(|byte| *byte == 0).next().unwrap_or_default()
    }

    fn named(&self, kind: u32, name: &str) -> Option<Type> {
        let all = self.starts.iter().filter_map(|start| self.read(*start as usize));
        all.filter(|it| it.kind == kind).find(|it| self.name(it.name) == name.as_bytes())
    }

    /// Whether the kernel has this tracepoint.
    pub(super) fn has_tracepoint(&self, name: &str) -> bool {
        self.named(TYPEDEF, &format!("btf_trace_{name}")).is_some()
    }

    /// How many parameters this function has, if the kernel has it.
    pub(super) fn parameters(&self, function: &str) -> Option<u32> {
        let prototype = self.by_number(self.named(FUNCTION, function)?.target)?;
        (prototype.kind == PROTOTYPE).then_some(prototype.members)
    }

    /// How many bytes after the start of the structure the field lies that this path of names leads to. Structures and
    /// unions without a name are looked through.
    pub(super) fn offset(&self, structure: &str, path: &[&str]) -> Option<u32> {
        let mut found = self.named(STRUCT, structure)?;
        let mut bits = 0;
        for (step, name) in path.iter().enumerate() {
            let (offset, target) = self.member(found, name.as_bytes(), 0)?;
            bits += offset;
            if step + 1 < path.len() {
                found = self.structure(target)?;
            }
        }
        (bits % 8 == 0).then_some(bits / 8)
    }

    /// The bits before a member, and its type.
    fn member(&self, of: Type, name: &[u8], depth: u32) -> Option<(u32, u32)> {
        for at in 0..of.members as usize {
            let place = of.body + 12 * at;
            let [own, target, offset] = [0, 4, 8].map(|field| word(self.types, place + field));
            let (own, target, offset) = (own?, target?, offset?);
            let offset = if of.has_bits { offset & 0x00ff_ffff } else { offset };
            if own != 0 && self.name(own) == name {
                return Some((offset, target));
            }
            let inner = if own == 0 && depth < DEEPEST { self.structure(target) } else { None };
            if let Some((further, target)) = inner.and_then(|it| self.member(it, name, depth + 1)) {
                return Some((offset.checked_add(further)?, target));
            }
        }
        None
    }

    /// The structure or union of this number, whatever names lead to it.
    fn structure(&self, mut number: u32) -> Option<Type> {
        for _ in 0..DEEPEST {
            let found = self.by_number(number)?;
            match found.kind {
                STRUCT | UNION => return Some(found),
                TYPEDEF | VOLATILE | CONST | TYPE_TAG => number = found.target,
                _ => return None,
            }
        }
        None
    }
}

/// Bytes that follow the twelve which every type begins with; `None` for a kind that is not known.
fn extra(kind: u32, members: u32) -> Option<usize> {
    let members = members as usize;
    Some(match kind {
        // Pointer, forward declaration, typedef, volatile, const, restrict, function, float, type tag.
        2 | 7..=FUNCTION | 16 | 18 => 0,
        // Integer, variable, declaration tag.
        1 | 14 | 17 => 4,
        // Array.
        3 => 12,
        // Structure, union, section, enumeration of 64 bits.
        4 | 5 | 15 | 19 => 12 * members,
        // Enumeration, prototype of a function.
        6 | PROTOTYPE => 8 * members,
        _ => return None,
    })
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    let bytes = bytes.get(at..at.checked_add(4)?)?;
    Some(u32::from_ne_bytes(bytes.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `struct inner { int a; int b; }`, `struct outer { int x; union { inner_t in; int y; }; }`, a tracepoint, and
    /// `int call(int a, int b)`.
    fn sample() -> Vec<u8> {
        const STRINGS: &[u8] =
            b"\0int\0inner\0a\0b\0inner_t\0outer\0x\0in\0y\0btf_trace_ping\0call\0";
        let name = |text: &[u8]| {
            let text = [b"\0", text, b"\0"].concat();
            let at = STRINGS.windows(text.len()).position(|it| it == text).expect("a string");
            at as u32 + 1
        };
        let head = |kind: u32, members: u32| (kind << 24) | members;
        let types: Vec<u32> = [
            vec![name(b"int"), head(1, 0), 4, 32],
            vec![name(b"inner"), head(STRUCT, 2), 8, name(b"a"), 1, 0, name(b"b"), 1, 32],
            vec![name(b"inner_t"), head(TYPEDEF, 0), 2],
            vec![0, head(UNION, 2), 8, name(b"in"), 3, 0, name(b"y"), 1, 0],
            vec![name(b"outer"), head(STRUCT, 2), 12, name(b"x"), 1, 0, 0, 4, 32],
            vec![name(b"btf_trace_ping"), head(TYPEDEF, 0), 1],
            vec![0, head(PROTOTYPE, 2), 1, name(b"a"), 1, name(b"b"), 1],
            vec![name(b"call"), head(FUNCTION, 1), 7],
        ]
        .concat();
        let length = |bytes: usize| bytes as u32;
        let mut bytes = 0xEB9F_u16.to_ne_bytes().to_vec();
        bytes.extend([1, 0]);
        let (types_length, strings_length) = (length(types.len() * 4), length(STRINGS.len()));
        let rest = [24, 0, types_length, types_length, strings_length];
        bytes.extend(rest.iter().chain(&types).flat_map(|word| word.to_ne_bytes()));
        bytes.extend(STRINGS);
        bytes
    }

    #[test]
    fn fields_are_found_by_their_names() {
        let bytes = sample();
        let btf = Btf::parse(&bytes).expect("BTF");
        let outer = |path: &[&str]| btf.offset("outer", path);
        assert_eq!(btf.offset("inner", &["b"]), Some(4));
        assert_eq!(outer(&["x"]), Some(0));
        assert_eq!(outer(&["y"]), Some(4), "inside a union without a name");
        assert_eq!(outer(&["in", "b"]), Some(8), "through a name for a structure");
        assert_eq!(outer(&["z"]), None);
        assert_eq!(outer(&["x", "b"]), None, "an integer has no fields");
        assert_eq!(btf.offset("inner_t", &["a"]), None);
    }

    #[test]
    fn tracepoints_are_known_by_their_types() {
        let bytes = sample();
        let btf = Btf::parse(&bytes).expect("BTF");
        assert!(btf.has_tracepoint("ping"));
        assert!(!btf.has_tracepoint("pong"));
    }

    #[test]
    fn functions_are_known_by_how_many_parameters_they_have() {
        let bytes = sample();
        let btf = Btf::parse(&bytes).expect("BTF");
        assert_eq!(btf.parameters("call"), Some(2));
        assert_eq!(btf.parameters("btf_trace_ping"), None, "no function");
        assert_eq!(btf.parameters("cal"), None);
    }

    #[test]
    fn whatever_is_cut_or_changed_is_refused_or_read_without_harm() {
        let bytes = sample();
        for length in 0..bytes.len() {
            if let Some(btf) = Btf::parse(&bytes[..length]) {
                let _ = (btf.offset("outer", &["in", "b"]), btf.parameters("call"));
            }
        }
        for at in 0..bytes.len() {
            for value in [0, 1, 0x7f, 0xff] {
                let mut changed = bytes.clone();
                changed[at] = value;
                if let Some(btf) = Btf::parse(&changed) {
                    let _ = (btf.offset("outer", &["in", "b"]), btf.has_tracepoint("ping"));
                    let _ = btf.parameters("call");
                }
            }
        }
    }
}
