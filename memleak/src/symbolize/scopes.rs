//! Functions' names with the namespaces and types that they are in, from DWARF. Compilers give no
//! linkage name to what no other file can see: all that is of types in anonymous namespaces or in
//! functions (closures), templates of the libraries with such arguments included. And what
//! functions of Rust's library are made for.

use std::collections::HashMap;

use gimli::{
    AttributeValue, DebugInfoOffset, DebuggingInformationEntry, DwoId, UnitOffset, UnitRef, UnitSectionOffset,
};

use super::reader::LimitedReader;

/// Entries from an inlined call to where its function is declared.
const LONGEST_ORIGIN: u32 = 4;
/// Levels of namespaces and types.
const DEEPEST: usize = 64;

type Entry = DebuggingInformationEntry<LimitedReader>;

/// Where something is: the split file, the unit, and the place in it.
type Place = (Option<DwoId>, UnitSectionOffset<usize>, UnitOffset<usize>);

/// Scopes by where what is in them is declared.
#[derive(Debug, Default)]
pub(super) struct Scopes {
    known: HashMap<Place, Option<String>>,
}

/// What a function's linkage name does not say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Missing {
    /// There is none: what the function is in.
    Scope,
    /// What a function of Rust's library is made for: older names have `T` there.
    Arguments,
}

/// What this linkage name, or name, does not say.
pub(super) fn missing(name: &[u8], language: Option<gimli::DwLang>) -> Option<Missing> {
    const CPP: [gimli::DwLang; 6] = [
        gimli::DW_LANG_C_plus_plus,
        gimli::DW_LANG_C_plus_plus_03,
        gimli::DW_LANG_C_plus_plus_11,
        gimli::DW_LANG_C_plus_plus_14,
        gimli::DW_LANG_C_plus_plus_17,
        gimli::DW_LANG_C_plus_plus_20,
    ];
    /// Crates that acquire memory for others.
    const LIBRARIES: [&[u8]; 2] = [b"_ZN5alloc", b"_ZN9hashbrown"];
    let language = language?;
    if language == gimli::DW_LANG_Rust {
        let is_generic = name.windows(4).any(|part| part == b"$LT$");
        let is_library = LIBRARIES.iter().any(|crate_name| name.starts_with(crate_name));
        return (is_library && is_generic).then_some(Missing::Arguments);
    }
    (CPP.contains(&language) && !name.starts_with(b"_Z")).then_some(Missing::Scope)
}

impl Scopes {
    /// What the function of an entry (of its code, or of an inlined call) is declared in:
    /// `std::vector<(anonymous namespace)::T, ...>`; `None` if that is nothing or not known.
    pub(super) fn of(
        &mut self,
        unit: UnitRef<'_, LimitedReader>,
        entry: UnitOffset<usize>,
    ) -> gimli::Result<Option<String>> {
        at_declaration(unit, entry, |unit, at| self.around(unit, at))
    }

    /// The scope of what is declared here.
    fn around(
        &mut self,
        unit: UnitRef<'_, LimitedReader>,
        at: UnitOffset<usize>,
    ) -> gimli::Result<Option<String>> {
        let place = (unit.dwo_id, unit.header.offset(), at);
        if let Some(known) = self.known.get(&place) {
            return Ok(known.clone());
        }
        let scopes = enclosing(unit, at)?;
        let scope = (!scopes.is_empty()).then(|| scopes.join("::"));
        self.known.insert(place, scope.clone());
        Ok(scope)
    }
}

/// The function of an entry with its generic arguments, as Rust writes it: `new<app::Session>`.
pub(super) fn with_arguments(
    unit: UnitRef<'_, LimitedReader>,
    entry: UnitOffset<usize>,
) -> gimli::Result<Option<String>> {
    at_declaration(unit, entry, |unit, at| Ok(name_of(unit, &unit.entry(at)?)))
}

/// Gives what `look` finds where the function of an entry is declared.
fn at_declaration<T>(
    unit: UnitRef<'_, LimitedReader>,
    entry: UnitOffset<usize>,
    look: impl FnOnce(UnitRef<'_, LimitedReader>, UnitOffset<usize>) -> gimli::Result<Option<T>>,
) -> gimli::Result<Option<T>> {
    let place = match declared(unit, entry)? {
        Declared::Here(at) => return look(unit, at),
        Declared::There(place) => place,
    };
    let mut headers = unit.dwarf.units();
    while let Some(header) = headers.next()? {
        let Some(at) = place.to_unit_offset(&header) else { continue };
        let other = unit.dwarf.unit(header)?;
        let other = UnitRef::new(unit.dwarf, &other);
        return match declared(other, at)? {
            Declared::Here(at) => look(other, at),
            Declared::There(_) => Ok(None),
        };
    }
    Ok(None)
}

/// Where a function is declared: in this unit, or (after optimization of a whole program) in
/// another.
enum Declared {
    Here(UnitOffset<usize>),
    There(DebugInfoOffset<usize>),
}

/// From code to the function, and from its definition to its declaration in a type (DWARF 5,
/// sections 3.3.8 and 2.13).
fn declared(unit: UnitRef<'_, LimitedReader>, entry: UnitOffset<usize>) -> gimli::Result<Declared> {
    let mut at = entry;
    for _ in 0..LONGEST_ORIGIN {
        let entry = unit.entry(at)?;
        let origin = entry.attr_value(gimli::DW_AT_abstract_origin);
        match origin.or_else(|| entry.attr_value(gimli::DW_AT_specification)) {
            Some(AttributeValue::UnitRef(next)) => at = next,
            Some(AttributeValue::DebugInfoRef(place)) => return Ok(Declared::There(place)),
            _ => break,
        }
    }
    Ok(Declared::Here(at))
}

/// The names of what is around an entry, outermost first. Entries do not know their parents: on
/// each level the last that begins before it is looked for.
fn enclosing(unit: UnitRef<'_, LimitedReader>, wanted: UnitOffset<usize>) -> gimli::Result<Vec<String>> {
    let (mut scopes, mut at) = (Vec::new(), None);
    for _ in 0..DEEPEST {
        let mut tree = unit.entries_tree(at)?;
        let mut children = tree.root()?.children();
        let mut last = None;
        while let Some(child) = children.next()? {
            let offset = child.entry().offset();
            if offset > wanted {
                break;
            }
            last = Some(offset);
        }
        match last {
            Some(found) if found != wanted => {
                scopes.extend(scope_name(unit, &unit.entry(found)?));
                at = Some(found);
            }
            _ => break,
        }
    }
    Ok(scopes)
}

fn scope_name(unit: UnitRef<'_, LimitedReader>, entry: &Entry) -> Option<String> {
    match entry.tag() {
        gimli::DW_TAG_namespace => {
            Some(name_of(unit, entry).unwrap_or_else(|| "(anonymous namespace)".to_owned()))
        }
        gimli::DW_TAG_class_type
        | gimli::DW_TAG_structure_type
        | gimli::DW_TAG_union_type
        | gimli::DW_TAG_subprogram => name_of(unit, entry),
        _ => None, // a block of a function
    }
}

/// `DW_AT_name`.
pub(super) fn name_of(unit: UnitRef<'_, LimitedReader>, entry: &Entry) -> Option<String> {
    let name = unit.attr_string(entry.attr_value(gimli::DW_AT_name)?).ok()?;
    Some(String::from_utf8_lossy(name.bytes()).into_owned())
}
