//! The type of blocks, as the functions say that have acquired them.

use crate::{
    heap::{TypeAt, first_argument},
    report::names::is_library,
    symbolize::Frame,
};

/// What counts the owners of an object, before it: Rust's, and who else may have it and not own it.
pub(super) const COUNTED: [(&str, &str); 4] = [
    ("alloc::rc::RcInner<", "std::rc::Weak"),
    ("alloc::rc::RcBox<", "std::rc::Weak"),
    ("alloc::sync::ArcInner<", "std::sync::Weak"),
    ("std::_Sp_counted_ptr_inplace<", "std::weak_ptr"),
];
/// `std::string`.
const STRING: &str = "std::__cxx11::basic_string<char, std::char_traits<char>, std::allocator<char> >";
/// Bytes of the counters, in all of these.
const COUNTERS: u64 = 16;

/// The type that the allocator functions of C++ or Rust have acquired memory for, by their frames.
pub(super) fn allocated_type(frames: &[Frame]) -> Option<TypeAt> {
    let (name, place) = cpp(frames).or_else(|| rust(frames))?;
    let counted = COUNTED.iter().find_map(|(counter, _)| first_argument(name.strip_prefix(counter)?));
    let (name, offset) = counted.map_or((&*name, 0), |inner| (inner, COUNTERS));
    Some(TypeAt { name: name.replace(STRING, "std::string"), offset, place })
}

/// Who may have what these frames acquire and not own it, if its owners are counted.
pub(super) fn weak_pointer(frames: &[Frame]) -> Option<&'static str> {
    let (name, _) = cpp(frames).or_else(|| rust(frames))?;
    COUNTED.iter().find_map(|(counter, weak)| name.starts_with(counter).then_some(*weak))
}

/// The type, and an address in the object that has it.
fn cpp(frames: &[Frame]) -> Option<(String, u64)> {
    const ALLOCATORS: [&str; 3] = ["__new_allocator<", "new_allocator<", "std::allocator<"];
    const MAKES_STRING: &str = "std::__cxx11::basic_string<char,";
    let functions = || frames.iter().filter_map(|frame| Some((frame.function.as_deref()?, frame.ip)));
    // Its functions are in libstdc++, which does not say what they are made of.
    let makes_string = |function: &str| function.trim_start_matches("void ").starts_with(MAKES_STRING);
    if let Some((_, ip)) = functions().take(3).find(|(function, _)| makes_string(function)) {
        return Some(("std::string".to_owned(), ip));
    }
    let found = functions().find_map(|(function, ip)| {
        let (start, rest) = ALLOCATORS.iter().find_map(|name| {
            let at = function.find(name)?;
            Some((at, function.get(at + name.len()..)?))
        })?;
        let argument = first_argument(rest)?;
        // Not `std::allocator<T>` as an argument of another template.
        let is_own = function.get(..start).is_some_and(|before| !before.contains(['<', '(']));
        let is_acquiring = rest.contains(">::allocate(") || rest.ends_with(">::allocate");
        (is_own && is_acquiring).then(|| (argument.to_owned(), ip))
    });
    let Some((found, ip)) = found else {
        return functions().find_map(|(function, ip)| Some((closure(function)?, ip)));
    };
    let is_within = |name: &str| functions().any(|(function, _)| function.contains(name));
    if COUNTED.iter().any(|(counter, _)| found.starts_with(counter)) {
        return Some((found, ip));
    }
    if found == "char" && is_within("basic_string<char") {
        return Some(("std::string".to_owned(), ip));
    }
    let is_array = is_within("std::vector<") || is_within("_Vector_base<");
    Some((if is_array { format!("{found}[]") } else { found }, ip))
}

/// What a `std::function` holds that has no room for it.
fn closure(function: &str) -> Option<String> {
    const HOLDER: &str = "std::_Function_base::_Base_manager<";
    let at = function.find(HOLDER)?;
    first_argument(function.get(at + HOLDER.len()..)?).map(str::to_owned)
}

/// As [`cpp`]. Older names of functions have `T` where newer ones have the type; then the debug
/// information says it.
fn rust(frames: &[Frame]) -> Option<(String, u64)> {
    /// Functions of these types acquire memory for what they are made for: one, or an array.
    const OWNERS: [(&str, &str); 4] = [
        ("alloc::boxed::Box<", ""),
        ("alloc::raw_vec::RawVec<", "[]"),
        ("alloc::vec::Vec<", "[]"),
        ("hashbrown::raw::RawTable<", "[]"),
    ];
    let library = frames.iter().take_while(|frame| is_library(frame));
    let named = library.filter_map(|frame| Some((frame, frame.function.as_deref()?)));
    let mut made = named.filter_map(|(frame, function)| {
        // Newer names have brackets around the type: `<alloc::boxed::Box<app::Session>>::new`.
        let function = function.strip_prefix('<').unwrap_or(function);
        let (rest, many) =
            OWNERS.iter().find_map(|(owner, many)| Some((function.strip_prefix(owner)?, many)))?;
        let argument = match &frame.with_arguments {
            Some(name) => first_argument(name.split_once('<')?.1)?,
            None => first_argument(rest).filter(|argument| argument.len() > 1)?,
        };
        Some((frame, argument, *many))
    });
    let mut found = made.next()?;
    // Compilers merge functions of types of one layout: then a caller knows better.
    while let (false, "[]") = (found.0.inlined, found.2)
        && let Some(outer) = made.next()
        && outer.2 == "[]"
    {
        found = outer;
    }
    let (Frame { ip, .. }, argument, many) = found;
    let name = format!("{argument}{many}");
    let is_within = |start: &str| {
        frames.iter().any(|frame| frame.function.as_deref().is_some_and(|name| name.starts_with(start)))
    };
    let is_text = is_within("alloc::string::String") || is_within("<alloc::string::String");
    match &*name {
        "u8[]" if is_text => Some(("String".to_owned(), *ip)),
        _ => Some((name.replace(", alloc::alloc::Global", ""), *ip)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::symbolize::NoSymbol;

    fn frames(functions: &[&str]) -> Vec<Frame> {
        let frame = |function: &&str| {
            let nameless = Frame::without_function(1, None, None, NoSymbol::Unmapped);
            Frame { function: Some((*function).to_owned()), ..nameless }
        };
        functions.iter().map(frame).collect()
    }

    #[test]
    fn allocators_say_what_for() {
        let of = |functions: &[&str]| allocated_type(&frames(functions)).map(|found| found.name);
        let new = "operator new(unsigned long)";
        assert_eq!(of(&[new, "main"]), None);
        assert_eq!(
            of(&[new, "std::__new_allocator<node>::allocate(unsigned long, void const*)", "main"]).as_deref(),
            Some("node")
        );
        let string = "std::__cxx11::basic_string<char, std::char_traits<char>, std::allocator<char> >";
        let in_vector = [
            new,
            &format!("__gnu_cxx::new_allocator<{string} >::allocate(unsigned long, void const*)"),
            &format!("std::_Vector_base<{string}, std::allocator<{string} > >::_M_allocate(unsigned long)"),
        ];
        assert_eq!(of(&in_vector).as_deref(), Some("std::string[]"));
        let in_string = [new, &format!("{string}::_M_create(unsigned long&, unsigned long)")];
        assert_eq!(of(&in_string).as_deref(), Some("std::string"));
        let constructs =
            format!("void {string}::_M_construct<char*>(char*, char*, std::forward_iterator_tag)");
        assert_eq!(of(&[new, &constructs]).as_deref(), Some("std::string"));
        let shared = "std::__new_allocator<std::_Sp_counted_ptr_inplace<word, std::allocator<void>, (__gnu_cxx::_Lock_policy)2> >::allocate(unsigned long, void const*)";
        assert_eq!(of(&[new, shared]).as_deref(), Some("word"));
        let scoped = "std::__new_allocator<(anonymous namespace)::Foo>::allocate";
        assert_eq!(of(&[new, scoped]).as_deref(), Some("(anonymous namespace)::Foo"));
        let closure =
            "std::_Function_base::_Base_manager<f(int)::<lambda()> >::_M_create<f(int)::<lambda()> >";
        assert_eq!(of(&[new, closure]).as_deref(), Some("f(int)::<lambda()>"));
    }
}
