//! Which type a block is of, as its own memory says: an object of C++ with virtual functions begins
//! with the address of its vtable, before which is that of its `std::type_info`, which has the
//! type's name (the Itanium C++ ABI, 2.5.2 and 2.9.5). No symbols are needed.

use rustc_hash::FxHashMap;

use super::Block;
use crate::{
    proc::{
        maps::Mapping,
        memory::{ProcessMemory, ReadMemory},
    },
    symbolize::demangle::demangle,
};

/// Longest name of a type that is read, bytes.
const MAX_NAME: u64 = 4096;
/// The distance from a vtable to its object's beginning may be that much.
const MAX_OBJECT: u64 = 1 << 30;

/// Where in a block an object of a type begins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TypeAt {
    /// Its name.
    pub name: String,
    /// Bytes from the block's beginning.
    pub offset: u64,
    /// An address in the object file that has the type.
    pub place: u64,
}

/// Reads the types of a process's blocks.
pub struct TypeNames<'a> {
    memory: Box<dyn ReadMemory + 'a>,
    mappings: Vec<Mapping>,
    /// By address of the vtable.
    known: FxHashMap<u64, Option<String>>,
}

impl std::fmt::Debug for TypeNames<'_> {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("TypeNames").field("known", &self.known).finish_non_exhaustive()
    }
}

impl<'a> TypeNames<'a> {
    /// Of process `pid`.
    pub fn of(pid: u32) -> std::io::Result<Self> {
        Ok(Self::new(Box::new(ProcessMemory::open(pid)?), crate::proc::maps::read_maps(pid)?))
    }

    fn new(memory: Box<dyn ReadMemory + 'a>, mappings: Vec<Mapping>) -> Self {
        Self { memory, mappings, known: FxHashMap::default() }
    }

    /// The type of a block; `None` if it does not say.
    pub fn at(&mut self, block: &Block) -> Option<TypeAt> {
        if block.size < 8 {
            return None;
        }
        if let Some(name) = self.object_at(block.start) {
            let place = self.memory.read_u64(block.start).ok()?;
            let (name, offset) = match made_shared(&name) {
                Some((inner, offset)) => (inner.to_owned(), offset),
                None => (name, 0),
            };
            return Some(TypeAt { name, offset, place });
        }
        // An array whose objects are destroyed has their number before it.
        let count = self.memory.read_u64(block.start).ok().filter(|count| *count > 0)?;
        if block.size < 16 || !(block.size - 8).is_multiple_of(count) {
            return None;
        }
        let name = self.object_at(block.start + 8)?;
        let place = self.memory.read_u64(block.start + 8).ok()?;
        Some(TypeAt { name: format!("{name}[]"), offset: 8, place })
    }

    /// The type of which a vtable is at this address.
    pub fn of_vtable(&self, vtable: u64) -> Option<String> {
        let name = self.name_of(vtable)?;
        Some(made_shared(&name).map_or_else(|| name.clone(), |(inner, _)| inner.to_owned()))
    }

    /// The type of the object at `address`, if it has a vtable.
    fn object_at(&mut self, address: u64) -> Option<String> {
        let vtable = self.memory.read_u64(address).ok()?;
        if let Some(known) = self.known.get(&vtable) {
            return known.clone();
        }
        let name = self.name_of(vtable);
        self.known.insert(vtable, name.clone());
        name
    }

    fn name_of(&self, vtable: u64) -> Option<String> {
        self.data_of_file(vtable)?;
        let to_top = self.memory.read_u64(vtable.checked_sub(16)?).ok()?;
        if to_top.wrapping_neg() > MAX_OBJECT {
            return None;
        }
        let info = self.data_of_file(self.memory.read_u64(vtable - 8).ok()?)?;
        // A type_info is an object with a vtable itself.
        self.data_of_file(self.memory.read_u64(info).ok()?)?;
        let name = self.text(self.memory.read_u64(info + 8).ok()?)?;
        // GCC marks names that are to be compared by address.
        let mangled = name.strip_prefix('*').unwrap_or(&name);
        let demangled = demangle(&format!("_ZTS{mangled}"));
        demangled.strip_prefix("typeinfo name for ").map(str::to_owned)
    }

    /// `address`, if it is of a word of a file's data.
    fn data_of_file(&self, address: u64) -> Option<u64> {
        let at = self.mappings.partition_point(|mapping| mapping.end <= address);
        let mapping = self.mappings.get(at).filter(|mapping| mapping.start <= address)?;
        (mapping.is_data_of_file() && address.is_multiple_of(8)).then_some(address)
    }

    fn text(&self, address: u64) -> Option<String> {
        let at = self.mappings.partition_point(|mapping| mapping.end <= address);
        let mapping = self.mappings.get(at).filter(|mapping| mapping.start <= address)?;
        let mut bytes = vec![0; MAX_NAME.min(mapping.end - address) as usize];
        self.memory.read_exact_at(address, &mut bytes).ok()?;
        let length = bytes.iter().position(|byte| *byte == 0).filter(|length| *length > 0)?;
        bytes.truncate(length);
        String::from_utf8(bytes).ok().filter(|name| name.bytes().all(|byte| byte.is_ascii_graphic()))
    }
}

/// What a control block of `std::make_shared` holds, and where: libstdc++ and libc++.
fn made_shared(name: &str) -> Option<(&str, u64)> {
    let forms = [("std::_Sp_counted_ptr_inplace<", 16), ("std::__1::__shared_ptr_emplace<", 24)];
    forms.into_iter().find_map(|(prefix, offset)| Some((first_argument(name.strip_prefix(prefix)?)?, offset)))
}

/// The first of a template's arguments, which `arguments` begins with.
pub(crate) fn first_argument(arguments: &str) -> Option<&str> {
    let mut depth = 0_u32;
    for (at, byte) in arguments.bytes().enumerate() {
        match byte {
            b'<' | b'(' | b'[' => depth += 1,
            b',' | b'>' if depth == 0 => return Some(arguments[..at].trim()),
            b'>' | b')' | b']' => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;
    use crate::proc::maps::Backing;

    #[test]
    fn arguments_of_templates() {
        assert_eq!(first_argument("a::b<c, d>, e>"), Some("a::b<c, d>"));
        assert_eq!(first_argument("word_counter>::allocate"), Some("word_counter"));
        assert_eq!(first_argument("void (int, char)>"), Some("void (int, char)"));
        assert_eq!(first_argument("a<b"), None);
        let name =
            "std::_Sp_counted_ptr_inplace<word_counter, std::allocator<void>, (__gnu_cxx::_Lock_policy)2>";
        assert_eq!(made_shared(name), Some(("word_counter", 16)));
        assert_eq!(made_shared("std::_Sp_counted_ptr<word_counter*>"), None);
    }

    /// Memory in words from an address on.
    struct Words(u64, Vec<u64>);

    impl ReadMemory for Words {
        fn read_exact_at(&self, address: u64, buffer: &mut [u8]) -> io::Result<()> {
            let bytes: Vec<u8> = self.1.iter().flat_map(|word| word.to_ne_bytes()).collect();
            let from = address.checked_sub(self.0).ok_or(io::ErrorKind::InvalidInput)? as usize;
            let part = bytes.get(from..from + buffer.len()).ok_or(io::ErrorKind::UnexpectedEof)?;
            buffer.copy_from_slice(part);
            Ok(())
        }
    }

    #[test]
    fn a_vtable_leads_to_a_name() {
        let file = |start, end| Mapping {
            start,
            end,
            executable: false,
            readable: true,
            writable: false,
            file_offset: 0,
            device: (0, 0),
            inode: 1,
            backing: Backing::File { path: "/x".into(), deleted: false },
        };
        let name = u64::from_ne_bytes(*b"4node\0\0\0");
        // 0x1000: the block; 0x1020: vtable with what is before it; 0x1038: type_info; 0x1048: its
        // name.
        let words = vec![0x1030, 7, 2, 0x1030, 0, 0x1038, 0x5555, 0x1030, 0x1048, name];
        let mut types = TypeNames::new(Box::new(Words(0x1000, words)), vec![file(0x1020, 0x1050)]);
        let block = |start, size| Block { start, size, birth: 0, stack: 0 };
        let mut at = |start, size| types.at(&block(start, size)).map(|found| (found.name, found.offset));
        assert_eq!(at(0x1000, 16), Some(("node".to_owned(), 0)));
        assert_eq!(at(0x1010, 24), Some(("node[]".to_owned(), 8)), "two of 8 bytes");
        assert_eq!([at(0x1008, 8), at(0x1000, 4), at(0x1010, 17)], [None, None, None]);
    }
}
