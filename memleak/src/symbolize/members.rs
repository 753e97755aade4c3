//! The members of types and variables, from DWARF: what is at an offset of an object, and what a
//! pointer there points to.

use std::collections::{HashMap, HashSet};

use gimli::{AttributeValue, DebuggingInformationEntry, UnitOffset, UnitRef};

use super::{demangle::printable_bytes, reader::LimitedReader, scopes::name_of};

/// Bases that a member may be inherited through.
const DEEPEST: u32 = 8;
/// Most members of a type.
const MOST: usize = 4096;

/// Types of Rust's library that hold another and say nothing: their members are that one's.
pub(crate) const WRAPPERS: [&str; 9] = [
    "RefCell<",
    "UnsafeCell<",
    "Cell<",
    "Mutex<",
    "RwLock<",
    "OnceCell<",
    "ManuallyDrop<",
    "MaybeUninit<",
    "CachePadded<",
];

/// Types and qualifiers on the way from a member to what it points to.
const LONGEST_TYPE: u32 = 16;

/// What has members.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Holder {
    /// A structure of this name.
    Type(String),
    /// A variable. One that is a pointer has a single member, itself.
    Variable(String),
}

impl Holder {
    /// Without what compilers and demanglers write in different ways.
    pub(super) fn plain(&self) -> Self {
        match self {
            Self::Type(name) => Self::Type(plain(name)),
            Self::Variable(name) => Self::Variable(plain(name)),
        }
    }
}

/// The type that a pointer leads to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PointsTo {
    /// Its name.
    pub name: String,
    /// How many pointers there are on the way: of `T *` 1.
    pub pointers: u32,
}

/// A member, or a base's member.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemberAt {
    /// Bytes from the object's beginning.
    pub offset: u64,
    /// Its name.
    pub name: String,
    /// The structure that it leads to, if it is a pointer to one.
    pub points_to: Option<PointsTo>,
    /// The structure that it is itself.
    pub is: Option<String>,
}

/// What members refer to by its place in a unit.
struct Unnamed {
    offset: u64,
    name: String,
    /// The structure that it is, or leads to by so many pointers.
    of: Option<(UnitOffset<usize>, u32)>,
}

/// The name without what compilers and demanglers write in different ways.
pub fn plain(name: &str) -> String {
    let name: String = name.chars().filter(|c| !c.is_whitespace()).collect();
    name.replace(",alloc::alloc::Global", "")
}

/// The members of these (by [`plain`] name) as far as they are described, in order.
pub(super) fn members(
    dwarf: &gimli::Dwarf<LimitedReader>,
    wanted: &HashSet<Holder>,
) -> gimli::Result<HashMap<Holder, Vec<MemberAt>>> {
    let mut found = HashMap::new();
    let mut units = dwarf.units();
    while let Some(header) = units.next()? {
        if found.len() == wanted.len() {
            break;
        }
        let unit = dwarf.unit(header)?;
        let unit = Described { dwarf, unit: &unit };
        // What is hostile in one unit is no reason to leave out the others.
        let _ = unit.find(wanted, &mut found);
    }
    Ok(found)
}

struct Described<'a> {
    dwarf: &'a gimli::Dwarf<LimitedReader>,
    unit: &'a gimli::Unit<LimitedReader>,
}

impl Described<'_> {
    fn find(
        &self,
        wanted: &HashSet<Holder>,
        found: &mut HashMap<Holder, Vec<MemberAt>>,
    ) -> gimli::Result<()> {
        let mut types = HashMap::new();
        let mut unnamed = Vec::new();
        // What is hostile behind what is wanted is no reason to leave that out.
        let result = self.search(wanted, &mut types, &mut unnamed);
        for (holder, members) in unnamed {
            let named = |it: Unnamed| {
                let of = it.of.and_then(|(of, pointers)| Some((types.get(&of)?.clone(), pointers)));
                let (is, points_to) = match of {
                    Some((name, 0)) => (Some(name), None),
                    Some((name, pointers)) => (None, Some(PointsTo { name, pointers })),
                    None => (None, None),
                };
                MemberAt { offset: it.offset, name: it.name, points_to, is }
            };
            found.entry(holder).or_insert_with(|| members.into_iter().map(named).collect());
        }
        result
    }

    /// Finds what is wanted, and the names of all types of the unit.
    fn search(
        &self,
        wanted: &HashSet<Holder>,
        types: &mut HashMap<UnitOffset<usize>, String>,
        found: &mut Vec<(Holder, Vec<Unnamed>)>,
    ) -> gimli::Result<()> {
        // The names of the namespaces and types around, each with its depth.
        let mut around: Vec<(isize, String)> = Vec::new();
        let mut entries = self.unit.entries();
        while let Some(entry) = entries.next_dfs()? {
            let depth = entry.depth();
            while around.last().is_some_and(|(of, _)| *of >= depth) {
                around.pop();
            }
            let is_type = is_type(entry);
            let is_variable = entry.tag() == gimli::DW_TAG_variable;
            if !is_type && !is_variable && entry.tag() != gimli::DW_TAG_namespace {
                continue;
            }
            let name = self.name(entry).unwrap_or_else(|| "(anonymous namespace)".to_owned());
            let whole = match around.last() {
                Some((_, outer)) => format!("{outer}::{name}"),
                None => name,
            };
            if is_type {
                types.insert(entry.offset(), whole.clone());
            }
            let is_declared = entry.has_attr(gimli::DW_AT_declaration);
            let holder = if is_type { Holder::Type(plain(&whole)) } else { Holder::Variable(plain(&whole)) };
            if (is_type || is_variable) && !is_declared && wanted.contains(&holder) {
                let mut members = Vec::new();
                match self.type_of(entry) {
                    _ if is_type => self.collect(entry.offset(), 0, 0, &mut members)?,
                    Some((of, 0)) => self.collect(of, 0, 0, &mut members)?,
                    of => members.push(Unnamed { offset: 0, name: whole.clone(), of }),
                }
                members.sort_by_key(|member| member.offset);
                found.push((holder, members));
            }
            if !is_variable {
                around.push((depth, whole));
            }
        }
        Ok(())
    }

    /// Adds the members of the type at `offset`, which begins at `base` of the whole.
    fn collect(
        &self,
        offset: UnitOffset<usize>,
        base: u64,
        depth: u32,
        members: &mut Vec<Unnamed>,
    ) -> gimli::Result<()> {
        let mut tree = self.unit.entries_tree(Some(offset))?;
        let root = tree.root()?;
        let name = self.name(root.entry()).unwrap_or_default();
        let is_wrapper = depth < DEEPEST && WRAPPERS.iter().any(|wrapper| name.starts_with(wrapper));
        let mut children = root.children();
        while let Some(child) = children.next()? {
            let entry = child.entry();
            let at = entry.attr_value(gimli::DW_AT_data_member_location);
            let Some(at) = at.and_then(|value| value.udata_value()) else { continue };
            match entry.tag() {
                gimli::DW_TAG_member if is_wrapper && let Some((held, 0)) = self.type_of(entry) => {
                    self.collect(held, base.saturating_add(at), depth + 1, members)?;
                }
                gimli::DW_TAG_member if members.len() < MOST => {
                    if let Some(name) = self.name(entry) {
                        let of = self.type_of(entry);
                        members.push(Unnamed { offset: base.saturating_add(at), name, of });
                    }
                }
                gimli::DW_TAG_inheritance if depth < DEEPEST => {
                    if let Some(AttributeValue::UnitRef(of)) = entry.attr_value(gimli::DW_AT_type) {
                        self.collect(of, base.saturating_add(at), depth + 1, members)?;
                    }
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// The structure that an entry is, or leads to by so many pointers.
    fn type_of(&self, entry: &DebuggingInformationEntry<LimitedReader>) -> Option<(UnitOffset<usize>, u32)> {
        let (mut value, mut pointers) = (entry.attr_value(gimli::DW_AT_type)?, 0);
        for _ in 0..LONGEST_TYPE {
            let AttributeValue::UnitRef(of) = value else { return None };
            let entry = self.unit.entry(of).ok()?;
            match entry.tag() {
                gimli::DW_TAG_pointer_type | gimli::DW_TAG_reference_type => pointers += 1,
                gimli::DW_TAG_typedef
                | gimli::DW_TAG_const_type
                | gimli::DW_TAG_volatile_type
                | gimli::DW_TAG_array_type => {}
                _ if is_type(&entry) => return Some((of, pointers)),
                _ => return None,
            }
            value = entry.attr_value(gimli::DW_AT_type)?;
        }
        None
    }

    fn name(&self, entry: &DebuggingInformationEntry<LimitedReader>) -> Option<String> {
        let name = name_of(UnitRef::new(self.dwarf, self.unit), entry)?;
        Some(printable_bytes(name.as_bytes()))
    }
}

fn is_type(entry: &DebuggingInformationEntry<LimitedReader>) -> bool {
    [gimli::DW_TAG_structure_type, gimli::DW_TAG_class_type, gimli::DW_TAG_union_type].contains(&entry.tag())
}
