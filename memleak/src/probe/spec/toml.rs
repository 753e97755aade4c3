//! Resources in a TOML file.
//!
//! ```toml
//! [[resource]]
//! name = "db"                       # for -r; letters, digits and _ . $ -
//! description = "database handles"  # for --list-resources; may be left out
//! unit = "handles"                  # what several are called in a heading; may be left out
//!
//! [[resource.acquire]]
//! object = "libdb.so"               # a path, a file name or a library's name; without it any object is taken
//! function = "db_open"
//! handle = "*arg1"
//! second = "*(arg1+8)"              # a second handle; may be left out, as all that follows
//! size = "arg2"                     # or "arg1*arg2", or a number
//! success = "ret == 0"
//! counted = true
//! releasing = "arg3"
//!
//! [[resource.release]]
//! object = "libdb.so"
//! function = "db_close"
//! handle = "arg1"
//! success = "ret == 0"
//! ```
//!
//! Instead of a table, each side may be a text as `--acquire` and `--release` take it:
//! `acquire = ["libdb.so:db_open -> *arg1 if ret == 0"]`.

use std::ops::Range;

use toml::{
    Spanned,
    de::{DeString, DeTable, DeValue},
};

use super::{
    AcquireSpec, Handle, Head, ReleaseSpec, Size, SpecError, UserResource, ValuePlace, parse_acquire,
    parse_condition, parse_handle, parse_release, parse_size,
    parser::{is_resource_name, is_symbol},
};
use crate::near::nearest;

/// What is wrong with a file of resources, and where.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{path}:{line}:{column}: {what}")]
pub struct FileError {
    /// The file, as it was named.
    pub path: String,
    /// From 1.
    pub line: usize,
    /// In characters, from 1.
    pub column: usize,
    /// What is wrong; what to do.
    pub what: String,
}

/// Reads the resources of a file. `path` is for errors.
pub fn parse_file(path: &str, text: &str) -> Result<Vec<UserResource>, FileError> {
    let file = File { path, text };
    let root = DeTable::parse(text).map_err(|error| {
        let message = error.message().lines().collect::<Vec<_>>().join(", ");
        file.error(error.span().unwrap_or(0..0), format!("{message}; see a guide to TOML"))
    })?;
    let root = TomlTable::new(&file, root.span(), root.get_ref(), &["resource"], "a file of resources")?;
    let Some(list) = root.get("resource") else { return Ok(Vec::new()) };
    let mut resources: Vec<UserResource> = Vec::new();
    for entry in file.array(list, "write [[resource]] before each resource")? {
        let (resource, name_span) = file.resource(entry)?;
        if resources.iter().any(|other| other.name == resource.name) {
            let what = format!(
                "a resource named {} is already defined above; give this one another name",
                resource.name
            );
            return Err(file.error(name_span, what));
        }
        resources.push(resource);
    }
    Ok(resources)
}

type Value<'a> = Spanned<DeValue<'a>>;

struct File<'a> {
    path: &'a str,
    text: &'a str,
}

/// A table of which all keys are known.
struct TomlTable<'a, 'i> {
    file: &'a File<'i>,
    span: Range<usize>,
    table: &'a DeTable<'i>,
}

impl<'a, 'i> TomlTable<'a, 'i> {
    fn new(
        file: &'a File<'i>,
        span: Range<usize>,
        table: &'a DeTable<'i>,
        keys: &[&str],
        what: &str,
    ) -> Result<Self, FileError> {
        // In the file's order, not in that of the alphabet.
        let unknown = table.keys().filter(|key| !keys.contains(&key.get_ref().as_ref()));
        if let Some(key) = unknown.min_by_key(|key| key.span().start) {
            let name = key.get_ref();
            let advice = match nearest(name, keys.iter().copied()) {
                Some(near) => format!("did you mean {near}?"),
                None => format!("{what} has {}", keys.join(", ")),
            };
            return Err(file.error(key.span(), format!("unknown key '{name}'; {advice}")));
        }
        Ok(Self { file, span, table })
    }

    fn get(&self, key: &str) -> Option<&'a Value<'i>> {
        self.table.get(key)
    }

    fn string(&self, key: &str) -> Result<Option<(&'a DeString<'i>, Range<usize>)>, FileError> {
        match self.get(key).map(|value| (value.get_ref(), value.span())) {
            None => Ok(None),
            Some((DeValue::String(text), span)) => Ok(Some((text, span))),
            Some((other, span)) => {
                let what = format!("{key} is {}; write a string in quotes", kind(other));
                Err(self.file.error(span, what))
            }
        }
    }

    fn text(&self, key: &str) -> Result<String, FileError> {
        Ok(self.string(key)?.map(|(text, _)| text.to_string()).unwrap_or_default())
    }

    fn required(&self, key: &str, example: &str) -> Result<(&'a DeString<'i>, Range<usize>), FileError> {
        self.string(key)?.ok_or_else(|| self.missing(key, example))
    }

    fn missing(&self, key: &str, example: &str) -> FileError {
        self.file.error(self.span.clone(), format!("{key} is missing; add {key} = {example}"))
    }

    /// An expression of the grammar, read by `parse`.
    fn parsed<T>(
        &self,
        key: &str,
        parse: impl Fn(&str) -> Result<T, SpecError>,
    ) -> Result<Option<(T, Range<usize>)>, FileError> {
        let Some((text, span)) = self.string(key)? else { return Ok(None) };
        let value = parse(text).map_err(|error| self.file.within(&span, text, &error))?;
        Ok(Some((value, span)))
    }
}

impl<'i> File<'i> {
    fn resource(&self, entry: &Value<'i>) -> Result<(UserResource, Range<usize>), FileError> {
        let keys = ["name", "description", "unit", "acquire", "release"];
        let table = self.table(entry, &keys, "a resource")?;
        let (name, name_span) = table.required("name", "\"foo\"")?;
        if !is_resource_name(name) {
            let what =
                format!("'{name}' is not a valid resource name; take 1 to 64 letters, digits and _ . $ or -");
            return Err(self.error(name_span, what));
        }
        let mut resource = UserResource {
            name: name.to_string(),
            description: table.text("description")?,
            unit: table.text("unit")?,
            ..UserResource::default()
        };
        for entry in self.side(&table, "acquire")? {
            resource.acquires.push(self.acquire(entry)?);
        }
        for entry in self.side(&table, "release")? {
            resource.releases.push(self.release(entry)?);
        }
        Ok((resource, name_span))
    }

    /// The functions of one side of a resource: one at least.
    fn side<'a>(&self, table: &TomlTable<'a, 'i>, key: &str) -> Result<&'a [Value<'i>], FileError> {
        let advice = format!("{key} must be written as [[resource.{key}]], or as a list of strings");
        let list = match table.get(key) {
            Some(list) => self.array(list, &advice)?,
            None => &[],
        };
        match list {
            [] => {
                let what = format!("the resource has no {key}; add [[resource.{key}]]");
                Err(self.error(table.span.clone(), what))
            }
            list => Ok(list),
        }
    }

    fn acquire(&self, entry: &Value<'i>) -> Result<AcquireSpec, FileError> {
        if let DeValue::String(text) = entry.get_ref() {
            let read = parse_acquire(text).map_err(|error| self.within(&entry.span(), text, &error))?;
            return self.unnamed(&read.head, entry.span()).map(|()| read);
        }
        let keys = ["object", "function", "handle", "second", "size", "success", "counted", "releasing"];
        let table = self.table(entry, &keys, "an acquire")?;
        let head = self.head(&table)?;
        let handle = table.parsed("handle", parse_handle)?;
        let (handle, _) = handle.ok_or_else(|| table.missing("handle", "\"ret\""))?;
        let counted = match table.get("counted").map(|value| (value.get_ref(), value.span())) {
            None => false,
            Some((DeValue::Boolean(counted), _)) => *counted,
            Some((other, span)) => {
                return Err(self.error(span, format!("counted is {}; write true or false", kind(other))));
            }
        };
        Ok(AcquireSpec {
            head,
            size: self.size(&table)?,
            handle,
            second: table.parsed("second", parse_handle)?.map(|(second, _)| second),
            releases: self.released(&table, "releasing")?,
            counted,
            success: table.parsed("success", parse_condition)?.map(|(success, _)| success),
        })
    }

    fn release(&self, entry: &Value<'i>) -> Result<ReleaseSpec, FileError> {
        if let DeValue::String(text) = entry.get_ref() {
            let read = parse_release(text).map_err(|error| self.within(&entry.span(), text, &error))?;
            return self.unnamed(&read.head, entry.span()).map(|()| read);
        }
        let table = self.table(entry, &["object", "function", "handle", "success"], "a release")?;
        let head = self.head(&table)?;
        let handle = self.released(&table, "handle")?;
        Ok(ReleaseSpec {
            head,
            handle: handle.ok_or_else(|| table.missing("handle", "\"arg1\""))?,
            success: table.parsed("success", parse_condition)?.map(|(success, _)| success),
        })
    }

    /// A text of the command line's form names no resource here: it stands in one.
    fn unnamed(&self, head: &Head, span: Range<usize>) -> Result<(), FileError> {
        match &head.resource {
            None => Ok(()),
            Some(name) => {
                Err(self.error(span, format!("the resource has a name already; leave '{name}=' out")))
            }
        }
    }

    fn head(&self, table: &TomlTable<'_, 'i>) -> Result<Head, FileError> {
        let (function, span) = table.required("function", "\"foo_open\"")?;
        if !is_symbol(function) {
            let what = format!(
                "'{function}' is not a symbol; write it as nm prints it, a C++ function by its mangled name"
            );
            return Err(self.error(span, what));
        }
        let object = match table.string("object")? {
            Some((object, span)) if object.is_empty() => {
                return Err(self.error(span, "object is empty; name a library, or leave it out".to_owned()));
            }
            object => object.map(|(object, _)| object.to_string()),
        };
        Ok(Head { resource: None, object, function: function.to_string() })
    }

    fn size(&self, table: &TomlTable<'_, 'i>) -> Result<Size, FileError> {
        match table.get("size").map(|value| (value.get_ref(), value.span())) {
            Some((DeValue::Integer(number), span)) => {
                let bytes = u64::from_str_radix(number.as_str(), number.radix());
                bytes
                    .map(Size::Constant)
                    .map_err(|_| self.error(span, format!("{number} is not a size; write a number of bytes")))
            }
            _ => Ok(table.parsed("size", parse_size)?.map(|(size, _)| size).unwrap_or_default()),
        }
    }

    /// A handle that is read when the function is entered.
    fn released(&self, table: &TomlTable<'_, 'i>, key: &str) -> Result<Option<Handle>, FileError> {
        match table.parsed(key, parse_handle)? {
            Some((handle, span)) if handle.place == ValuePlace::Return => {
                let what =
                    format!("{key} is read when the function is entered; write argN or *argN, not ret");
                Err(self.error(span, what))
            }
            found => Ok(found.map(|(handle, _)| handle)),
        }
    }

    fn table<'a>(
        &'a self,
        entry: &'a Value<'i>,
        keys: &[&str],
        what: &str,
    ) -> Result<TomlTable<'a, 'i>, FileError> {
        match entry.get_ref() {
            DeValue::Table(table) => TomlTable::new(self, entry.span(), table, keys, what),
            other => Err(self.error(
                entry.span(),
                format!("{what} must be a table, not {}; see the example in docs/resources.md", kind(other)),
            )),
        }
    }

    fn array<'a>(&self, value: &'a Value<'i>, advice: &str) -> Result<&'a [Value<'i>], FileError> {
        match value.get_ref() {
            DeValue::Array(list) => Ok(list),
            other => Err(self.error(value.span(), format!("this is {}; {advice}", kind(other)))),
        }
    }

    /// An error inside of a text: at its own column, where the text stands in the file as it is.
    fn within(&self, span: &Range<usize>, text: &str, error: &SpecError) -> FileError {
        let raw = self.text.get(span.clone()).unwrap_or_default();
        let is_plain = raw.len() == text.len() + 2 && raw.get(1..=text.len()) == Some(text);
        let at = text.char_indices().nth(error.column - 1).map_or(text.len(), |(at, _)| at);
        let start = if is_plain { span.start + 1 + at } else { span.start };
        self.error(start..start, format!("{}; example: {}", error.what, error.kind.example()))
    }

    fn error(&self, span: Range<usize>, what: String) -> FileError {
        let before = self.text.get(..span.start).unwrap_or(self.text);
        let line_start = before.rfind('\n').map_or(0, |at| at + 1);
        FileError {
            path: self.path.to_owned(),
            line: before.matches('\n').count() + 1,
            column: before.get(line_start..).unwrap_or_default().chars().count() + 1,
            what,
        }
    }
}

/// What a value is, for an error.
fn kind(value: &DeValue<'_>) -> &'static str {
    match value {
        DeValue::String(_) => "a string",
        DeValue::Integer(_) => "a whole number",
        DeValue::Float(_) => "a number",
        DeValue::Boolean(_) => "true or false",
        DeValue::Datetime(_) => "a date",
        DeValue::Array(_) => "a list",
        DeValue::Table(_) => "a table",
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const WHOLE: &str = r#"
[[resource]]
name = "db"
description = "database handles"
unit = "handles"

[[resource.acquire]]
object = "libdb.so"
function = "db_open"
handle = "*arg1"
second = '*(arg1+8) as int'
size = "arg2"
success = "ret == 0"
counted = true
releasing = "arg3"

[[resource.release]]
function = "db_close"
handle = "arg1"
success = "ret == 0"

[[resource]]
name = "foo"
acquire = ["libfoo.so:foo_open(4096 size) -> ret", { function = "foo_dup", handle = "ret", size = 0x10 }]
release = ["libfoo.so:foo_close(arg1)"]
"#;

    #[test]
    fn reads_what_the_command_line_would() {
        let read = parse_file("f", WHOLE).expect("is right");
        let written = |resource: &UserResource| -> Vec<String> {
            let acquires = resource.acquires.iter().map(ToString::to_string);
            acquires.chain(resource.releases.iter().map(ToString::to_string)).collect()
        };
        let names: Vec<_> = read.iter().map(|resource| resource.name.as_str()).collect();
        assert_eq!(names, ["db", "foo"]);
        assert_eq!((read[0].description.as_str(), read[0].unit.as_str()), ("database handles", "handles"));
        assert_eq!(
            written(&read[0]),
            [
                "libdb.so:db_open(arg2 size) -> *arg1, *(arg1+8) as int counted releasing arg3 if ret == 0",
                "db_close(arg1) if ret == 0",
            ]
        );
        assert_eq!(
            written(&read[1]),
            ["libfoo.so:foo_open(4096 size) -> ret", "foo_dup(16 size) -> ret", "libfoo.so:foo_close(arg1)",]
        );
        assert_eq!(parse_file("f", "# nothing\n"), Ok(vec![]));
    }

    /// The file with one piece replaced, where the error is and its words.
    const WRONG: &[(&str, &str, &str, &str)] = &[
        (
            "handle = \"*arg1\"",
            "handel = \"*arg1\"",
            "f:10:1: ",
            "unknown key 'handel'; did you mean handle?",
        ),
        ("unit = \"handles\"", "zzz = 1", "f:5:1: ", "unknown key 'zzz'; a resource has name, description"),
        ("unit = \"handles\"", "unit = 1", "f:5:8: ", "unit is a whole number; write a string"),
        (
            "[[resource]]\nname = \"foo\"",
            "[[resources]]\nname = \"foo\"",
            "f:22:3: ",
            "did you mean resource?",
        ),
        ("handle = \"*arg1\"", "handle = \"*foo\"", "f:10:12: ", "expected argN or (argN+OFFSET) after *"),
        ("handle = \"*arg1\"", "handle = \"\\u002afoo\"", "f:10:10: ", "expected argN or (argN+OFFSET)"),
        ("size = \"arg2\"", "size = -1", "f:12:8: ", "-1 is not a size; write a number"),
        ("size = \"arg2\"", "size = \"arg2*x\"", "f:12:14: ", "expected an argument after *, found 'x'"),
        ("size = \"arg2\"", "size = 1.5", "f:12:8: ", "size is a number; write a string"),
        (
            "success = \"ret == 0\"\ncounted",
            "success = \"ret = 0\"\ncounted",
            "f:13:16: ",
            "expected one of ==",
        ),
        ("counted = true", "counted = 1", "f:14:11: ", "counted is a whole number; write true or false"),
        ("releasing = \"arg3\"", "releasing = \"ret\"", "f:15:13: ", "write argN or *argN, not ret"),
        ("handle = \"arg1\"\n", "", "f:17:1: ", "handle is missing; add handle = \"arg1\""),
        ("name = \"db\"", "name = \"d b\"", "f:3:8: ", "'d b' is not a valid resource name"),
        ("name = \"foo\"", "name = \"db\"", "f:23:8: ", "a resource named db is already defined above"),
        ("name = \"foo\"\n", "", "f:22:1: ", "name is missing; add name = \"foo\""),
        ("\"db_close\"", "\"db::close()\"", "f:18:12: ", "'db::close()' is not a symbol"),
        ("\"libdb.so\"", "\"\"", "f:8:10: ", "object is empty"),
        ("foo_close(arg1)\"", "foo_close(arg9)\"", "f:25:33: ", "expected arg1 to arg6, found 'arg9'"),
        ("libfoo.so:foo_close", "x=libfoo.so:foo_close", "f:25:12: ", "leave 'x=' out"),
        (
            "release = [\"libfoo.so:foo_close(arg1)\"]",
            "release = []",
            "f:22:1: ",
            "the resource has no release",
        ),
        ("release = [\"libfoo.so:foo_close(arg1)\"]", "", "f:22:1: ", "the resource has no release"),
        (
            "release = [\"libfoo.so:foo_close(arg1)\"]",
            "release = \"x(arg1)\"",
            "f:25:11: ",
            "this is a string; rel",
        ),
        (
            "[\"libfoo.so:foo_close(arg1)\"]",
            "[1]",
            "f:25:12: ",
            "a release must be a table, not a whole number",
        ),
        ("name = \"foo\"", "name = ", "f:23:8: ", "; see a guide to TOML"),
        ("\n[[resource]]\nname = \"foo\"\n", "", "f:21:1: ", ""),
    ];

    #[test]
    fn points_at_the_line_and_the_column() {
        for (piece, instead, place, words) in WRONG {
            assert!(WHOLE.contains(piece), "{piece}");
            let error = parse_file("f", &WHOLE.replacen(piece, instead, 1)).expect_err(instead).to_string();
            assert!(error.starts_with(place), "{instead}: {error}");
            assert!(error.contains(words), "{instead}: {error}");
            assert!(error.contains("; ") && !error.contains('\n'), "{instead}: {error}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn any_text_does_no_harm(text in any::<String>()) {
            let _ = parse_file("f", &text);
        }

        /// The file with a piece cut out, and something else put there.
        #[test]
        fn a_damaged_file_does_no_harm(at in 0..WHOLE.len(), len in 0..40usize, instead in "[\\[\\]{}=\"'\n0a.,]{0,4}") {
            let end = (at + len).min(WHOLE.len());
            let text = format!("{}{instead}{}", &WHOLE[..at], &WHOLE[end..]);
            if let Err(error) = parse_file("f", &text) {
                prop_assert!(error.line <= text.lines().count() + 1 && error.column >= 1);
                prop_assert!(!error.to_string().contains('\n'), "{}", error);
            }
        }
    }
}
