//! The kernel's own type information (/sys/kernel/btf/vmlinux), as far as it is needed: where a member of a structure
//! is. Format: Documentation/bpf/btf.rst.

use std::io;

const PATH: &str = "/sys/kernel/btf/vmlinux";
const MAGIC: u16 = 0xeb9f;
const KIND_STRUCT: u32 = 4;

/// Byte offset of `member` in the kernel's `struct name`.
pub fn kernel_member_offset(name: &str, member: &str) -> io::Result<u32> {
    let bytes = std::fs::read(PATH)?;
    member_offset(&bytes, name, member).ok_or_else(|| {
        io::Error::new(io::ErrorKind::InvalidData, format!("no member {member} of struct {name} in it"))
    })
}

fn member_offset(btf: &[u8], name: &str, member: &str) -> Option<u32> {
    let word = |at: usize| Some(u32::from_le_bytes(btf.get(at..at + 4)?.try_into().ok()?));
    if u16::from_le_bytes(btf.get(..2)?.try_into().ok()?) != MAGIC {
        return None;
    }
    // struct btf_header
    let header_len = word(4)? as usize;
    let types = header_len.checked_add(word(8)? as usize)?;
    let types_end = types.checked_add(word(12)? as usize)?;
    let strings = header_len.checked_add(word(16)? as usize)?;
    let is_named = |offset: u32, wanted: &str| {
        let start = strings + offset as usize;
        btf.get(start..start + wanted.len()) == Some(wanted.as_bytes())
            && btf.get(start + wanted.len()) == Some(&0)
    };
    let mut at = types;
    while at < types_end {
        // struct btf_type: name_off, info, size or type
        let info = word(at + 4)?;
        let (kind, vlen) = (info >> 24 & 0x1f, (info & 0xffff) as usize);
        let members = at + 12;
        if kind == KIND_STRUCT && is_named(word(at)?, name) {
            let bitfields = info >> 31 != 0;
            return (0..vlen).find_map(|index| {
                // struct btf_member: name_off, type, offset in bits (the low 24 where there are bit fields)
                let entry = members + 12 * index;
                let bits = word(entry + 8)? & if bitfields { 0x00ff_ffff } else { u32::MAX };
                is_named(word(entry)?, member).then_some(bits / 8)
            });
        }
        at = members + trailing_bytes(kind, vlen)?;
    }
    None
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

    /// A BTF blob with an int, and `struct a { int x; int y; }`.
    fn sample() -> Vec<u8> {
        let strings = b"\0int\0a\0x\0y\0";
        let mut types = Vec::new();
        let mut push = |words: &[u32]| words.iter().for_each(|word| types.extend(word.to_le_bytes()));
        push(&[1, 1 << 24, 4, 32]);
        push(&[5, 4 << 24 | 2, 8, 7, 1, 0, 9, 1, 32]);
        let mut btf = Vec::new();
        btf.extend(MAGIC.to_le_bytes());
        btf.extend([1, 0]);
        for word in [24, 0, types.len() as u32, types.len() as u32, strings.len() as u32] {
            btf.extend(word.to_le_bytes());
        }
        btf.extend(types);
        btf.extend(strings);
        btf
    }

    #[test]
    fn finds_members_by_name() {
        assert_eq!(member_offset(&sample(), "a", "x"), Some(0));
        assert_eq!(member_offset(&sample(), "a", "y"), Some(4));
        assert_eq!(member_offset(&sample(), "a", "z"), None);
        assert_eq!(member_offset(&sample(), "b", "x"), None);
    }

    #[test]
    fn survives_truncation() {
        let btf = sample();
        for len in 0..btf.len() {
            member_offset(&btf[..len], "a", "y");
        }
    }
}
