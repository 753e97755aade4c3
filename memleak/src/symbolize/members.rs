//! The members of types, from DWARF: what is at an offset of an object.

use std::collections::{HashMap, HashSet};

use gimli::{AttributeValue, DebuggingInformationEntry, UnitOffset};

use super::{demangle::printable_bytes, reader::LimitedReader};

/// Bases that a member may be inherited through.
const DEEPEST: u32 = 8;
/// Most members of a type.
const MOST: usize = 4096;

/// A member, or a base's member.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemberAt {
    /// Bytes from the object's beginning.
    pub offset: u64,
    /// Its name.
    pub name: String,
}

/// The name without what compilers and demanglers write in different ways.
pub(super) fn plain(name: &str) -> String {
    name.chars().filter(|c| !c.is_whitespace()).collect()
}

/// The members of these types (by [`plain`] name) as far as they are described, in order.
pub(super) fn members(
    dwarf: &gimli::Dwarf<LimitedReader>,
    wanted: &HashSet<String>,
) -> gimli::Result<HashMap<String, Vec<MemberAt>>> {
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
        wanted: &HashSet<String>,
        found: &mut HashMap<String, Vec<MemberAt>>,
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
            if !is_type && entry.tag() != gimli::DW_TAG_namespace {
                continue;
            }
            let name = self.name(entry).unwrap_or_else(|| "(anonymous namespace)".to_owned());
            let whole = match around.last() {
                Some((_, outer)) => format!("{outer}::{name}"),
                None => name,
            };
            if is_type && !entry.has_attr(gimli::DW_AT_declaration) {
                let plain = plain(&whole);
                if wanted.contains(&plain) && !found.contains_key(&plain) {
                    let mut members = Vec::new();
                    self.collect(entry.offset(), 0, 0, &mut members)?;
                    members.sort_by_key(|member: &MemberAt| member.offset);
                    found.insert(plain, members);
                }
            }
            around.push((depth, whole));
        }
        Ok(())
    }

    /// Adds the members of the type at `offset`, which begins at `base` of the whole.
    fn collect(
        &self,
        offset: UnitOffset<usize>,
        base: u64,
        depth: u32,
        members: &mut Vec<MemberAt>,
    ) -> gimli::Result<()> {
        let mut tree = self.unit.entries_tree(Some(offset))?;
        let mut children = tree.root()?.children();
        while let Some(child) = children.next()? {
            let entry = child.entry();
            let at = entry.attr_value(gimli::DW_AT_data_member_location);
            let Some(at) = at.and_then(|value| value.udata_value()) else { continue };
            match entry.tag() {
                gimli::DW_TAG_member if members.len() < MOST => {
                    if let Some(name) = self.name(entry) {
                        members.push(MemberAt { offset: base.saturating_add(at), name });
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

    fn name(&self, entry: &DebuggingInformationEntry<LimitedReader>) -> Option<String> {
        let value = entry.attr_value(gimli::DW_AT_name)?;
        let name = self.dwarf.attr_string(self.unit, value).ok()?;
        Some(printable_bytes(name.bytes()))
    }
}

fn is_type(entry: &DebuggingInformationEntry<LimitedReader>) -> bool {
    [gimli::DW_TAG_structure_type, gimli::DW_TAG_class_type, gimli::DW_TAG_union_type].contains(&entry.tag())
}
