//! The type of blocks, as the functions say that have acquired them.

use crate::{heap::first_argument, symbolize::Frame};

/// The type that C++'s allocator functions have acquired memory for.
pub(super) fn allocated_type(frames: &[Frame]) -> Option<String> {
    const ALLOCATORS: [&str; 3] = ["__new_allocator<", "new_allocator<", "std::allocator<"];
    const STRING: &str = "std::__cxx11::basic_string<char,";
    let functions = || frames.iter().filter_map(|frame| frame.function.as_deref());
    // Its functions are in libstdc++, which does not say what they are made of.
    if functions().take(3).any(|function| function.trim_start_matches("void ").starts_with(STRING)) {
        return Some("std::string".to_owned());
    }
    let found = functions().find_map(|function| {
        let (start, rest) = ALLOCATORS.iter().find_map(|name| {
            let at = function.find(name)?;
            Some((at, function.get(at + name.len()..)?))
        })?;
        let argument = first_argument(rest)?;
        // Not `std::allocator<T>` as an argument of another template.
        let is_own = function.get(..start).is_some_and(|before| !before.contains(['<', '(']));
        let is_acquiring = rest.contains(">::allocate(") || rest.ends_with(">::allocate");
        (is_own && is_acquiring).then(|| argument.to_owned())
    });
    let Some(found) = found else { return functions().find_map(closure) };
    let is_within = |name: &str| functions().any(|function| function.contains(name));
    if let Some(shared) = found.strip_prefix("std::_Sp_counted_ptr_inplace<") {
        return first_argument(shared).map(str::to_owned);
    }
    if found == "char" && is_within("basic_string<char") {
        return Some("std::string".to_owned());
    }
    let found = found.replace(
        "std::__cxx11::basic_string<char, std::char_traits<char>, std::allocator<char> >",
        "std::string",
    );
    Some(if is_within("std::vector<") || is_within("_Vector_base<") { format!("{found}[]") } else { found })
}

/// What a `std::function` holds that has no room for it.
fn closure(function: &str) -> Option<String> {
    const HOLDER: &str = "std::_Function_base::_Base_manager<";
    let at = function.find(HOLDER)?;
    first_argument(function.get(at + HOLDER.len()..)?).map(str::to_owned)
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
        let of = |functions: &[&str]| allocated_type(&frames(functions));
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
