//! Names of functions as people read them, and which functions are nobody's fault: those of the C
//! and C++ libraries, of allocators and of containers.

use std::borrow::Cow;

use crate::{escape::printable, symbolize::Frame};

/// Levels of template arguments that are shown.
const SHOWN_LEVELS: usize = 1;
/// A name that is longer is shown without template arguments.
const LONG: usize = 60;

/// Template arguments that their templates have by themselves.
const DEFAULTS: [&str; 7] = [
    "std::allocator<",
    "std::char_traits<",
    "std::less<",
    "std::hash<",
    "std::equal_to<",
    "std::default_delete<",
    "alloc::alloc::Global",
];

/// `name` without the return type, parameters as `(...)`, and without the template arguments that
/// nobody has written.
pub fn shorten(name: &str) -> String {
    let name = name.replace("std::__cxx11::", "std::").replace("std::__1::", "std::");
    let name = name.replace("[abi:cxx11]", "");
    let name = name.split(" [clone ").next().unwrap_or_default();
    let short = shortened(name, SHOWN_LEVELS);
    if short.chars().count() > LONG { shortened(name, 0) } else { short }
}

fn shortened(name: &str, levels: usize) -> String {
    let mut out = String::with_capacity(name.len());
    let mut rest = name;
    let mut has_parameters = false;
    while let Some(c) = rest.chars().next() {
        if let Some(operator) = operator(rest, &out) {
            out.push_str(operator);
            rest = &rest[operator.len()..];
            continue;
        }
        match (c, bracketed(rest)) {
            ('(', Some("anonymous namespace")) => {
                out.push_str("(anonymous namespace)");
                rest = &rest["(anonymous namespace)".len()..];
            }
            ('(', Some(inside)) => {
                has_parameters = true;
                out.push_str(if inside.is_empty() { "()" } else { "(...)" });
                rest = &rest[inside.len() + 2..];
            }
            ('<', Some(inside)) => {
                out.push_str(&arguments(inside, levels, out.is_empty()));
                rest = &rest[inside.len() + 2..];
            }
            _ => {
                out.push(c);
                rest = &rest[c.len_utf8()..];
            }
        }
    }
    let out = out.replace("std::basic_string<char>", "std::string");
    // Only what has parameters has a return type: names of scripts and of C have spaces of their
    // own.
    if has_parameters { without_return_type(&out).to_owned() } else { out }
}

/// `rest` begins with an operator's name that has brackets in it.
fn operator<'a>(rest: &'a str, before: &str) -> Option<&'a str> {
    const OPERATORS: [&str; 9] = ["<=>", "<<=", "<<", "<=", "<", "->*", "->", ">>", "()"];
    let is_word = |text: &str| {
        text.strip_suffix("operator").is_some_and(|before| {
            !before.chars().next_back().is_some_and(|c| c.is_alphanumeric() || c == '_')
        })
    };
    if rest.starts_with("->") {
        return rest.get(..2);
    }
    let found = OPERATORS.iter().find(|operator| rest.starts_with(**operator))?;
    is_word(before).then(|| rest.get(..found.len())).flatten()
}

/// What is between the bracket that `text` begins with and the one that closes it.
fn bracketed(text: &str) -> Option<&str> {
    let mut depth = 0usize;
    let mut before = ' ';
    for (at, c) in text.char_indices() {
        match c {
            '(' | '<' | '[' | '{' => depth += 1,
            '>' if before == '-' || before == '=' => {}
            ')' | '>' | ']' | '}' => {
                depth = depth.checked_sub(1)?;
                if depth == 0 {
                    return text.get(1..at);
                }
            }
            _ => {}
        }
        before = c;
    }
    None
}

/// Template arguments, or Rust's `<Type as Trait>`, which a name may begin with.
fn arguments(inside: &str, levels: usize, is_first: bool) -> String {
    if is_first {
        return format!("<{}>", shortened(inside, levels));
    }
    let written: Vec<&str> = split(inside)
        .into_iter()
        .map(str::trim)
        .filter(|argument| !DEFAULTS.iter().any(|default| argument.starts_with(default)))
        .collect();
    match levels {
        _ if written.is_empty() => String::new(),
        0 if inside == "char" => "<char>".to_owned(),
        0 => "<...>".to_owned(),
        _ => {
            let shown: Vec<String> =
                written.into_iter().map(|argument| shortened(argument, levels - 1)).collect();
            let shown = shown.join(", ");
            format!("<{shown}>")
        }
    }
}

/// Arguments apart, at commas outside of brackets.
fn split(arguments: &str) -> Vec<&str> {
    let (mut parts, mut depth, mut start) = (Vec::new(), 0usize, 0);
    for (at, c) in arguments.char_indices() {
        match c {
            '(' | '<' | '[' | '{' => depth += 1,
            ')' | '>' | ']' | '}' => depth = depth.saturating_sub(1),
            ',' if depth == 0 => {
                parts.push(&arguments[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    parts.push(&arguments[start..]);
    parts
}

/// What follows the last space outside of brackets; spaces of an operator's name are its own.
fn without_return_type(name: &str) -> &str {
    let name = ["const", "volatile", "&", "&&"].iter().fold(name, |name, qualifier| {
        name.strip_suffix(qualifier).and_then(|name| name.strip_suffix(' ')).unwrap_or(name)
    });
    let end = name.find("operator").unwrap_or(name.len());
    let mut depth = 0usize;
    let mut start = 0;
    for (at, c) in name[..end].char_indices() {
        match c {
            '(' | '<' | '[' | '{' => depth += 1,
            ')' | '>' | ']' | '}' => depth = depth.saturating_sub(1),
            ' ' if depth == 0 => start = at + 1,
            _ => {}
        }
    }
    name[start..].trim_start_matches(['*', '&'])
}

/// The name of a frame: its function, in full or not, or the place where one would be.
pub fn name(frame: &Frame, full: bool) -> Cow<'_, str> {
    match &frame.function {
        Some(function) if full => printable(function),
        Some(function) => printable(&shorten(function)).into_owned().into(),
        None => without_symbol(frame).into(),
    }
}

/// What a frame is called that has no function: `[libfoo.so]+0x1234`.
pub fn without_symbol(frame: &Frame) -> String {
    use crate::symbolize::NoSymbol;
    let why = match frame.no_symbol {
        Some(NoSymbol::Unmapped) => " (nothing is mapped there)",
        Some(NoSymbol::Anonymous) => " (no file is mapped there: code made at run time?)",
        Some(NoSymbol::Uncertain) => " (what was mapped there then was not seen in time)",
        Some(NoSymbol::UnreadableObject | NoSymbol::NotInSymbolTable) | None => "",
    };
    match (frame.module.as_deref().map(module_name), frame.offset) {
        (Some(module), Some(offset)) => format!("{module}+{offset:#x}"),
        (Some(module), None) => module,
        (None, _) => format!("[unknown]{why}"),
    }
}

/// `[libc.so.6]` for a path; a module that is not a path has its brackets already (`[vdso]`).
pub fn module_name(module: &str) -> String {
    let name = printable(basename(module));
    if name.starts_with('[') && name.ends_with(']') { name.into_owned() } else { format!("[{name}]") }
}

/// Where a frame is: `wordcount.cc:64`, or its module; nothing if its name says that already.
pub fn place(frame: &Frame) -> String {
    match (frame.file.as_deref().map(basename), frame.line) {
        (Some(file), Some(line)) => format!("{}:{line}", printable(file)),
        (Some(file), None) => printable(file).into_owned(),
        (None, _) if frame.function.is_none() => String::new(),
        (None, _) => frame.module.as_deref().map(module_name).unwrap_or_default(),
    }
}

/// What follows the last slash; all of it if nothing does.
pub fn basename(path: &str) -> &str {
    match path.rsplit('/').next() {
        Some(name) if !name.is_empty() => name,
        _ => path,
    }
}

/// Objects of which all functions are a library's that every program uses, by how their files'
/// names begin.
const MODULES: [&str; 20] = [
    "libc.so",
    "libc-2.",
    "libc++",
    "libstdc++",
    "libgcc_s",
    "libm.so",
    "libpthread",
    "libdl.so",
    "librt.so",
    "ld-linux",
    "ld-musl",
    "libjemalloc",
    "libtcmalloc",
    "libmimalloc",
    "libsnmalloc",
    "librpmalloc",
    "libtbbmalloc",
    "libscudo",
    "[vdso]",
    "libclang_rt",
];

/// How functions of such libraries begin, in whatever object.
const PREFIXES: [&str; 40] = [
    "std::",
    "__gnu_cxx::",
    "__cxxabiv1::",
    "operator new",
    "operator delete",
    "alloc::",
    "core::",
    "hashbrown::",
    "<std::",
    "<alloc::",
    "<core::",
    "<hashbrown::",
    "<&",
    "__rust_",
    "__rustc",
    "__rdl_",
    "__rg_",
    "rust_begin_unwind",
    "boost::container::",
    "boost::unordered",
    "absl::container_internal",
    "je_",
    "mi_",
    "tc_",
    "__libc_",
    "g_malloc",
    "g_realloc",
    "g_slice_alloc",
    "g_strdup",
    "CRYPTO_malloc",
    "CRYPTO_zalloc",
    "CRYPTO_realloc",
    "PyMem_",
    "_PyMem_",
    "PyObject_Malloc",
    "PyObject_Realloc",
    "PyObject_Calloc",
    "__kmalloc",
    "kmem_cache_alloc",
    "__vmalloc",
];

/// Functions of such libraries, whole names.
const FUNCTIONS: [&str; 46] = [
    "malloc",
    "calloc",
    "realloc",
    "reallocarray",
    "memalign",
    "aligned_alloc",
    "posix_memalign",
    "valloc",
    "pvalloc",
    "strdup",
    "strndup",
    "asprintf",
    "vasprintf",
    "mmap",
    "mmap64",
    "mremap",
    "xmalloc",
    "xcalloc",
    "xrealloc",
    "xstrdup",
    "zmalloc",
    "zcalloc",
    "zrealloc",
    "ztrymalloc_usable",
    "zmalloc_usable",
    "ngx_alloc",
    "ngx_calloc",
    "_start",
    "start_thread",
    "clone",
    "clone3",
    "kmalloc",
    "kvmalloc_node",
    "__kvmalloc_node_noprof",
    "kmemdup",
    "kmemdup_noprof",
    "kstrdup",
    "krealloc",
    "vmalloc",
    "alloc_pages_mpol",
    "alloc_pages_noprof",
    "alloc_pages_mpol_noprof",
    "__alloc_pages_noprof",
    "__alloc_frozen_pages_noprof",
    "folio_alloc_noprof",
    "__get_free_pages",
];

/// Where compilers have the sources of what they bring along: C++'s headers, Rust's library.
const SOURCES: [&str; 4] =
    ["/usr/include/c++/", "/include/c++/v1/", "/lib/rustlib/src/rust/library/", "/usr/src/rustc-"];

fn is_library_source(file: &str) -> bool {
    // Rust's own builds are at no place that there is.
    let is_of_rust = || file.starts_with("/rustc/") && file.contains("/library/");
    is_of_rust() || SOURCES.iter().any(|folder| file.contains(folder))
}

/// A frame of the C or C++ library, of an allocator or of a container: not what is responsible.
pub fn is_library(frame: &Frame) -> bool {
    let in_module = frame.module.as_deref().is_some_and(|module| {
        let name = basename(module);
        MODULES.iter().any(|library| name.starts_with(library))
    });
    let in_source = || frame.file.as_deref().is_some_and(is_library_source);
    in_module
        || in_source()
        || frame.function.as_deref().is_some_and(|function| is_library_function(&shorten(function)))
}

fn is_library_function(short: &str) -> bool {
    let name = short.split('(').next().unwrap_or_default();
    PREFIXES.iter().any(|prefix| short.starts_with(prefix)) || FUNCTIONS.contains(&name)
}

/// What a library's frame belongs to, in a word: `std::vector`, `operator new`, `malloc`.
pub fn family(frame: &Frame) -> String {
    let short = name(frame, false);
    let plain = short.split(['(', '<']).find(|part| !part.is_empty()).unwrap_or(&short);
    let is_of_std = ["std::", "alloc::", "core::", "boost::", "absl::"].iter();
    match is_of_std.clone().any(|prefix| plain.starts_with(prefix)) {
        true => {
            let mut parts = plain.trim_end_matches(':').split("::");
            match (parts.next(), parts.next()) {
                (Some(first), Some(second)) => format!("{first}::{second}"),
                _ => plain.to_owned(),
            }
        }
        false => plain.trim_end_matches(':').to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::symbolize::NoSymbol;

    fn frame(function: &str, module: &str) -> Frame {
        let unknown = Frame::without_function(1, Some(module.to_owned()), None, NoSymbol::Unmapped);
        Frame { function: Some(function.to_owned()), no_symbol: None, ..unknown }
    }

    #[test]
    fn names_lose_what_nobody_reads() {
        let cases = [
            ("main", "main"),
            ("leaky(unsigned long)", "leaky(...)"),
            ("word_counter::word_count()", "word_counter::word_count()"),
            ("operator new(unsigned long)", "operator new(...)"),
            ("operator new[](unsigned long)", "operator new[](...)"),
            (
                "void std::vector<std::__cxx11::basic_string<char, std::char_traits<char>, std::allocator<char> >, \
                 std::allocator<std::__cxx11::basic_string<char, std::char_traits<char>, std::allocator<char> > > \
                 >::_M_realloc_insert<std::__cxx11::basic_string<char, std::char_traits<char>, std::allocator<char> > \
                 const&>(__gnu_cxx::__normal_iterator<int*, int>, int const&)",
                "std::vector<...>::_M_realloc_insert<...>(...)",
            ),
            ("std::vector<int, std::allocator<int> >::push_back(int&&)", "std::vector<int>::push_back(...)"),
            (
                "std::map<int, std::vector<int, std::allocator<int> >, std::less<int> >::at(int const&) const",
                "std::map<int, std::vector<...>>::at(...)",
            ),
            ("(anonymous namespace)::f(int)", "(anonymous namespace)::f(...)"),
            ("ns::f()::{lambda(int)#1}::operator()(int) const", "ns::f()::{lambda(...)#1}::operator()(...)"),
            ("A::operator<(A const&) const", "A::operator<(...)"),
            ("std::ostream& operator<< <char>(std::ostream&, char)", "operator<< <char>(...)"),
            ("A::operator->() const", "A::operator->()"),
            ("Cache::operator std::string() const", "Cache::operator std::string()"),
            (
                "std::__cxx11::basic_string<char, std::char_traits<char>, std::allocator<char> >::f()",
                "std::string::f()",
            ),
            ("f(int) [clone .isra.0]", "f(...)"),
            (
                "<alloc::vec::Vec<T> as core::clone::Clone>::clone",
                "<alloc::vec::Vec<T> as core::clone::Clone>::clone",
            ),
            ("alloc::vec::Vec<T,A>::push", "alloc::vec::Vec<T, A>::push"),
            ("app::serve::{{closure}}", "app::serve::{{closure}}"),
            ("LazyCompile:~f /app/x.js:3", "LazyCompile:~f /app/x.js:3"),
            ("main.(*Server).Serve", "main.(...).Serve"),
            ("f(", "f("),
            ("a>b<", "a>b<"),
            ("", ""),
        ];
        for (name, expected) in cases {
            assert_eq!(shorten(name), expected, "{name}");
        }
    }

    #[test]
    fn libraries_are_told_from_programs() {
        for name in
            ["malloc", "operator new(unsigned long)", "void std::vector<int>::push_back(int)", "je_malloc"]
        {
            assert!(is_library(&frame(name, "/bin/app")), "{name}");
        }
        for name in ["mallocate", "main", "app::std::f()", "alloc_page_for(int)", "standard()"] {
            assert!(!is_library(&frame(name, "/bin/app")), "{name}");
        }
        let at = |file: &str| Frame {
            file: Some(file.to_owned()),
            ..frame("<T as ConvertVec>::to_vec", "/bin/app")
        };
        assert!(is_library(&at(
            "/rustc/59807616e1fa2540724bfbac14d7976d7e4a3860/library/alloc/src/slice.rs"
        )));
        assert!(is_library(&at("/usr/include/c++/12/bits/stl_vector.h")));
        assert!(!is_library(&at("/home/me/library/vec.rs")) && !is_library(&at("src/include/c++.h")));
        assert!(is_library(&frame("qsort", "/usr/lib/x86_64-linux-gnu/libc.so.6")));
        assert!(!is_library(&frame("f", "/opt/libcurl.so.4")));
    }

    #[test]
    fn a_familys_name_is_short() {
        let of = |name| family(&frame(name, "/bin/app"));
        assert_eq!(of("std::vector<int>::push_back(int)"), "std::vector");
        assert_eq!(of("void std::__copy_move_a<false, int*>(int*)"), "std::__copy_move_a");
        assert_eq!(of("operator new(unsigned long)"), "operator new");
        assert_eq!(of("malloc"), "malloc");
        assert_eq!(of("<alloc::vec::Vec<T> as core::clone::Clone>::clone"), "alloc::vec");
    }
}
