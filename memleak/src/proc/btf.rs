//! The kernel's own type information (/sys/kernel/btf/vmlinux), as far as it is needed: where a
//! member of a structure is, what a function's parameters are called, and which tracepoints there
//! are. Format: Documentation/bpf/btf.rst.

use std::{io, ops::Range};

const PATH: &str = "/sys/kernel/btf/vmlinux";
const MAGIC: u16 = 0xeb9f;

/// `BTF_KIND_*` (include/uapi/linux/btf.h).
mod kind {
    pub(super) const STRUCT: u32 = 4;
    pub(super) const UNION: u32 = 5;
    pub(super) const TYPEDEF: u32 = 8;
    pub(super) const FUNC: u32 = 12;
    pub(super) const FUNC_PROTO: u32 = 13;
}

/// Anonymous structures and unions within each other that are looked into.
const MAX_NESTING: u32 = 8;

/// Type information, read and indexed once.
#[derive(Debug)]
pub struct Btf {
    bytes: Vec<u8>,
    /// Where names are, in `bytes`.
    strings: Range<usize>,
    /// Where each `struct btf_type` is, in `bytes`: that of type N (they count from 1) at N - 1.
    types: Vec<u32>,
}

/// A `struct btf_type`: its fixed part.
#[derive(Clone, Copy)]
struct Type {
    /// Offset of its name in the strings; 0 for none.
    name: u32,
    kind: u32,
    /// `kind_flag`: what it says depends on the kind.
    flag: bool,
    /// How many entries follow.
    entries: usize,
    /// Bytes, or another type's number.
    size_or_type: u32,
    /// Where the entries are, in the file.
    at: usize,
}

impl Btf {
    /// The running kernel's. An error says why there is none, or that it cannot be read.
    pub fn kernel() -> io::Result<Self> {
        let bytes = std::fs::read(PATH)?;
        Self::parse(bytes).ok_or_else(|| {
            io::Error::new(
                io::ErrorKind::InvalidData,
                format!("{PATH} is not type information in a known form"),
            )
        })
    }

    /// Indexes the content of a BTF file; `None` if it is none, or holds a kind of type newer
    /// than this reader.
    pub fn parse(bytes: Vec<u8>) -> Option<Self> {
        if u16::from_le_bytes(bytes.get(..2)?.try_into().ok()?) != MAGIC {
            return None;
        }
        // struct btf_header: the sections' places count from its end
        let section = |offset: usize, len: usize| {
            let start = (word(&bytes, 4)? as usize).checked_add(word(&bytes, offset)? as usize)?;
            let end = start.checked_add(word(&bytes, len)? as usize)?;
            (end <= bytes.len()).then_some(start..end)
        };
        let (section_of_types, strings) = (section(8, 12)?, section(16, 20)?);
        let mut types = Vec::new();
        let mut at = section_of_types.start;
        while at < section_of_types.end {
            types.push(u32::try_from(at).ok()?);
            let one = type_at(&bytes, at)?;
            at = one.at.checked_add(trailing_bytes(one.kind, one.entries)?)?;
        }
        (at == section_of_types.end).then_some(Self { bytes, strings, types })
    }

    /// Byte offset of `member` in `struct structure`, also of a member of an anonymous structure or
    /// union in it. A bit field's offset is that of the byte where it begins.
    pub fn member_offset(&self, structure: &str, member: &str) -> Option<u32> {
        let found = self.find(kind::STRUCT, structure)?;
        Some(self.member_bits(found, member, MAX_NESTING)? / 8)
    }

    /// Bytes of `struct structure`.
    pub fn size(&self, structure: &str) -> Option<u32> {
        Some(self.find(kind::STRUCT, structure)?.size_or_type)
    }

    /// A member of `struct structure` that is a structure itself, and no pointer to one.
    pub fn holds(&self, structure: &str, member: &str) -> bool {
        let Some(found) = self.find(kind::STRUCT, structure) else { return false };
        (0..found.entries).any(|index| {
            let entry = found.at + 12 * index;
            let name = word(&self.bytes, entry).and_then(|name| self.name(name));
            let of = word(&self.bytes, entry + 4).and_then(|number| self.by_number(number));
            name == Some(member.as_bytes()) && of.is_some_and(|of| of.kind == kind::STRUCT)
        })
    }

    fn member_bits(&self, structure: Type, member: &str, nesting: u32) -> Option<u32> {
        // struct btf_member: name_off, type, offset in bits (the low 24 if there are bit fields)
        let mask = if structure.flag { 0x00ff_ffff } else { u32::MAX };
        for index in 0..structure.entries {
            let entry = structure.at + 12 * index;
            let (name, bits) = (word(&self.bytes, entry)?, word(&self.bytes, entry + 8)? & mask);
            if name != 0 {
                if self.name(name) == Some(member.as_bytes()) {
                    return Some(bits);
                }
                continue;
            }
            let inner = word(&self.bytes, entry + 4).and_then(|number| self.by_number(number));
            if let Some(inner) = inner.filter(|inner| matches!(inner.kind, kind::STRUCT | kind::UNION))
                && nesting > 0
                && let Some(within) = self.member_bits(inner, member, nesting - 1)
            {
                return bits.checked_add(within);
            }
        }
        None
    }

    /// Names of the parameters of the kernel function `name`, in order (empty for one without a
    /// name); `None` if there is no such function.
    pub fn function_parameters(&self, name: &str) -> Option<Vec<String>> {
        let function = self.find(kind::FUNC, name)?;
        let prototype =
            self.by_number(function.size_or_type).filter(|found| found.kind == kind::FUNC_PROTO)?;
        // struct btf_param: name_off, type
        let name_of = |index| {
            let name = self.name(word(&self.bytes, prototype.at + 8 * index)?)?;
            Some(String::from_utf8_lossy(name).into_owned())
        };
        (0..prototype.entries).map(name_of).collect()
    }

    /// Names of what the tracepoint `name` hands over, in the order in which a raw tracepoint
    /// program finds them in its context (`ctx->args[0]`, `[1]`, ...). They are the parameters of
    /// `__traceiter_NAME`, which calls those who listen (include/linux/tracepoint.h), but for its
    /// first one, `__data`. `None` if the kernel has no such tracepoint, or does not tell these
    /// names.
    pub fn tracepoint_arguments(&self, name: &str) -> Option<Vec<String>> {
        let mut parameters = self.function_parameters(&format!("__traceiter_{name}"))?;
        if parameters.first()? != "__data" {
            return None;
        }
        parameters.remove(0);
        Some(parameters)
    }

    /// Whether the kernel has a function of this name that type information was kept of. (Of
    /// functions that exist several times, or are called in ways of their own, it is not: an
    /// address in kallsyms says more.)
    pub fn has_function(&self, name: &str) -> bool {
        self.find(kind::FUNC, name).is_some()
    }

    /// Whether the kernel has the tracepoint `name`: `btf_trace_NAME` (include/trace/bpf_probe.h).
    pub fn has_tracepoint(&self, name: &str) -> bool {
        self.find(kind::TYPEDEF, &format!("btf_trace_{name}")).is_some()
    }

    fn find(&self, kind: u32, name: &str) -> Option<Type> {
        self.types
            .iter()
            .filter_map(|at| type_at(&self.bytes, *at as usize))
            .find(|found| found.kind == kind && self.name(found.name) == Some(name.as_bytes()))
    }

    /// Type number `number`; 0 is `void`, which is none.
    fn by_number(&self, number: u32) -> Option<Type> {
        let at = self.types.get(number.checked_sub(1)? as usize)?;
        type_at(&self.bytes, *at as usize)
    }

    /// The string at `offset`, without its zero.
    fn name(&self, offset: u32) -> Option<&[u8]> {
        let rest = self.bytes.get(self.strings.clone())?.get(offset as usize..)?;
        rest.split(|byte| *byte == 0).next()
    }
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at.checked_add(4)?)?.try_into().ok()?))
}

fn type_at(bytes: &[u8], at: usize) -> Option<Type> {
    // struct btf_type: name_off, info, size or type
    let info = word(bytes, at.checked_add(4)?)?;
    Some(Type {
        name: word(bytes, at)?,
        kind: info >> 24 & 0x1f,
        flag: info >> 31 != 0,
        entries: (info & 0xffff) as usize,
        size_or_type: word(bytes, at.checked_add(8)?)?,
        at: at.checked_add(12)?,
    })
}

/// Bytes that follow a `struct btf_type` of this kind.
fn trailing_bytes(kind: u32, vlen: usize) -> Option<usize> {
    Some(match kind {
        1 | 14 | 17 => 4,             // INT, VAR, DECL_TAG
        2 | 7..=12 | 16 | 18 => 0,    // PTR, FWD, TYPEDEF, qualifiers, FUNC, FLOAT, TYPE_TAG
        3 => 12,                      // ARRAY
        4 | 5 | 15 | 19 => 12 * vlen, // STRUCT, UNION, DATASEC, ENUM64
        6 | 13 => 8 * vlen,           // ENUM, FUNC_PROTO
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Puts BTF blobs together.
    #[derive(Default)]
    struct Builder {
        strings: Vec<u8>,
        types: Vec<u8>,
        count: u32,
    }

    impl Builder {
        fn string(&mut self, text: &str) -> u32 {
            if self.strings.is_empty() {
                self.strings.push(0);
            }
            if text.is_empty() {
                return 0;
            }
            let at = self.strings.len() as u32;
            self.strings.extend(text.as_bytes());
            self.strings.push(0);
            at
        }

        /// Adds a type and gives its number; `words` are what follows the name.
        fn add(&mut self, name: &str, words: &[u32]) -> u32 {
            let name = self.string(name);
            for word in [&[name], words].concat() {
                self.types.extend(word.to_le_bytes());
            }
            self.count += 1;
            self.count
        }

        fn int(&mut self) -> u32 {
            self.add("int", &[1 << 24, 4, 32])
        }

        /// `members`: name, type, offset in bits.
        fn structure(&mut self, kind: u32, name: &str, flags: u32, members: &[(&str, u32, u32)]) -> u32 {
            let mut words = vec![flags | kind << 24 | members.len() as u32, 8];
            for (name, number, bits) in members {
                words.extend([self.string(name), *number, *bits]);
            }
            self.add(name, &words)
        }

        fn function(&mut self, name: &str, parameters: &[&str]) {
            let mut words = vec![kind::FUNC_PROTO << 24 | parameters.len() as u32, 1];
            for parameter in parameters {
                words.extend([self.string(parameter), 1]);
            }
            let prototype = self.add("", &words);
            self.add(name, &[kind::FUNC << 24, prototype]);
        }

        fn bytes(self) -> Vec<u8> {
            let (types, strings) = (self.types.len() as u32, self.strings.len() as u32);
            let mut btf = MAGIC.to_le_bytes().to_vec();
            btf.extend([1, 0]);
            for word in [24, 0, types, types, strings] {
                btf.extend(word.to_le_bytes());
            }
            btf.extend(self.types);
            btf.extend(self.strings);
            btf
        }
    }

    /// `struct a { int x; int y; struct { union { int u; int v; }; int w; }; int bits: 3; }`, two
    /// functions, and the typedef of a tracepoint.
    fn sample() -> Vec<u8> {
        let mut btf = Builder::default();
        let int = btf.int();
        let union = btf.structure(kind::UNION, "", 0, &[("u", int, 0), ("v", int, 0)]);
        let inner = btf.structure(kind::STRUCT, "", 0, &[("", union, 0), ("w", int, 32)]);
        let members = [("x", int, 0), ("y", int, 32), ("", inner, 64), ("bits", int, 3 << 24 | 133)];
        btf.structure(kind::STRUCT, "a", 1 << 31, &members);
        btf.function("__traceiter_kmalloc", &["__data", "call_site", "ptr"]);
        btf.function("plain", &[]);
        btf.function("__traceiter_odd", &["call_site"]);
        btf.add("btf_trace_kmalloc", &[kind::TYPEDEF << 24, 1]);
        btf.bytes()
    }

    /// The parameters of `__traceiter_kmalloc` as they were, from include/trace/events/kmem.h at
    /// each version.
    const KMALLOC: &[(&str, &[&str], usize)] = &[
        // 5.15: DECLARE_EVENT_CLASS(kmem_alloc, ...)
        ("5.15", &["__data", "call_site", "ptr", "bytes_req", "bytes_alloc", "gfp_flags"], 3),
        // 5.19, 6.0: with the cache, for its name
        ("5.19", &["__data", "call_site", "ptr", "s", "bytes_req", "bytes_alloc", "gfp_flags"], 4),
        // 6.1 and after
        ("6.1", &["__data", "call_site", "ptr", "bytes_req", "bytes_alloc", "gfp_flags", "node"], 3),
    ];

    #[test]
    fn finds_members_by_name() {
        let btf = Btf::parse(sample()).expect("parses");
        for (member, offset) in [("x", 0), ("y", 4), ("u", 8), ("v", 8), ("w", 12), ("bits", 16)] {
            assert_eq!(btf.member_offset("a", member), Some(offset), "{member}");
        }
        assert_eq!(btf.member_offset("a", "z"), None);
        assert_eq!(btf.member_offset("a", ""), None);
        assert_eq!(btf.member_offset("b", "x"), None);
        assert_eq!(btf.size("a"), Some(8));
        assert_eq!(btf.size("b"), None);
        assert!(!btf.holds("a", "x") && !btf.holds("b", "x") && !btf.holds("a", "z"));
        assert_eq!(btf.member_offset("", "u"), Some(0), "a structure without a name is one of that name");
    }

    #[test]
    fn tells_structures_from_pointers_to_them() {
        let mut builder = Builder::default();
        let inner = builder.structure(kind::STRUCT, "inner", 0, &[]);
        let pointer = builder.add("", &[2 << 24, inner]);
        builder.structure(kind::STRUCT, "outer", 0, &[("at", pointer, 0), ("within", inner, 64)]);
        let btf = Btf::parse(builder.bytes()).expect("parses");
        assert!(btf.holds("outer", "within") && !btf.holds("outer", "at"));
    }

    #[test]
    fn finds_functions_and_tracepoints() {
        let btf = Btf::parse(sample()).expect("parses");
        assert_eq!(btf.function_parameters("plain"), Some(vec![]));
        assert_eq!(btf.function_parameters("a"), None, "a structure is not a function");
        assert_eq!(btf.tracepoint_arguments("kmalloc"), Some(vec!["call_site".to_owned(), "ptr".to_owned()]));
        assert_eq!(btf.tracepoint_arguments("odd"), None, "not what we know: no __data");
        assert_eq!(btf.tracepoint_arguments("kfree"), None);
        assert!(btf.has_function("plain") && !btf.has_function("kmalloc"));
        assert!(btf.has_tracepoint("kmalloc") && !btf.has_tracepoint("plain"));
    }

    #[test]
    fn arguments_that_moved_are_found_by_name() {
        for (version, parameters, bytes_alloc) in KMALLOC {
            let mut builder = Builder::default();
            builder.int();
            builder.function("__traceiter_kmalloc", parameters);
            let btf = Btf::parse(builder.bytes()).expect("parses");
            let arguments = btf.tracepoint_arguments("kmalloc").expect("is there");
            assert_eq!(arguments, parameters[1..], "{version}");
            let at = arguments.iter().position(|name| name == "bytes_alloc");
            assert_eq!(at, Some(*bytes_alloc), "{version}");
        }
    }

    #[test]
    fn a_structure_within_itself_ends() {
        let mut builder = Builder::default();
        builder.structure(kind::STRUCT, "a", 0, &[("", 1, 0), ("", 1, 0), ("x", 1, 32)]);
        let btf = Btf::parse(builder.bytes()).expect("parses");
        assert_eq!(btf.member_offset("a", "nothing"), None);
    }

    #[test]
    fn survives_truncation_and_damage() {
        let btf = sample();
        assert!(Btf::parse(btf.clone()).is_some());
        for len in 0..btf.len() {
            assert!(Btf::parse(btf[..len].to_vec()).is_none(), "{len} bytes of it");
        }
        for at in 0..btf.len() {
            for value in [0, 1, 0x7f, 0xff] {
                let mut damaged = btf.clone();
                damaged[at] = value;
                if let Some(damaged) = Btf::parse(damaged) {
                    let _ = (damaged.member_offset("a", "nothing"), damaged.tracepoint_arguments("kmalloc"));
                }
            }
        }
    }
}
