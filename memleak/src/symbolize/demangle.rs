//! Names as people write them: C++ (Itanium ABI), Rust (legacy and v0) and D undone, and made safe
//! to print.

use std::{
    cell::Cell,
    fmt::{self, Write},
    path::Path,
    thread,
    time::Instant,
};

use cpp_demangle::{DemangleOptions, ParseOptions, Symbol};

use super::dlang;

/// Longest mangled name that is taken apart, bytes.
const MAX_MANGLED: usize = 16 << 10;

/// Longest result, bytes. Back references let a name of a few hundred bytes stand for gigabytes.
const MAX_DEMANGLED: usize = 64 << 10;

/// Nesting that the caller's stack is good for: under 1.5 MiB in a build without optimization, a
/// fraction with it.
const SHALLOW: u32 = 64;

/// Nesting that a name may have at most, for which there is a stack of its own (bytes). The parser
/// tries one reading after the other, so that its time can double with every few levels: a name of
/// 208 bytes took ten seconds at 144.
const DEEP: (u32, usize) = (112, 64 << 20);

/// Time (ns) that names deeper than [`SHALLOW`] may take a thread in all: a file can have thousands
/// of bad ones.
const DEEP_TIME: u64 = 2_000_000_000;

/// The demangled form of `name`, or `name` itself if it is not a mangled one (or one that is out of
/// bounds).
pub fn demangle(name: &str) -> String {
    let demangled = match name.len() <= MAX_MANGLED {
        true => rust(name).or_else(|| cpp_of_any_letters(name)).or_else(|| dlang::demangle(name)),
        false => None,
    };
    printable(&demangled.unwrap_or_else(|| name.to_owned()))
}

/// `bytes` as text for one line of a terminal: control characters (line ends, escape sequences) are
/// replaced.
pub fn printable_bytes(bytes: &[u8]) -> String {
    printable(&String::from_utf8_lossy(bytes))
}

/// A path as text, made safe to print.
pub fn printable_path(path: &Path) -> String {
    printable(&path.to_string_lossy())
}

fn printable(text: &str) -> String {
    match text.contains(char::is_control) {
        true => text.replace(char::is_control, "\u{fffd}"),
        false => text.to_owned(),
    }
}

fn rust(name: &str) -> Option<String> {
    let demangled = rustc_demangle::try_demangle(name).ok()?;
    let mut out = Bounded(String::new());
    // The alternate form leaves out the hash.
    write!(out, "{demangled:#}").ok()?;
    Some(out.0)
}

/// Identifiers may have letters of all languages, which the parser does not know: each of them is
/// replaced by as many letters that it knows as it has bytes, and put back into the result.
fn cpp_of_any_letters(name: &str) -> Option<String> {
    /// No identifier but a compiler's own has it, and no demangled name.
    const MARK: char = '$';
    const NUMBERS: &str = "0123456789abcdefghijklmnopqrstuvwxyz";
    if name.is_ascii() {
        return cpp(name);
    }
    let mut letters: Vec<char> = name.chars().filter(|letter| !letter.is_ascii()).collect();
    letters.sort_unstable();
    letters.dedup();
    if name.contains(MARK) || letters.len() > NUMBERS.len() {
        return None;
    }
    let stand_in = |(letter, number): (&char, char)| {
        let known = format!("{MARK}{number:_<width$}", width = letter.len_utf8() - 1);
        (letter.to_string(), known)
    };
    let stand_ins: Vec<(String, String)> = letters.iter().zip(NUMBERS.chars()).map(stand_in).collect();
    let known = stand_ins.iter().fold(name.to_owned(), |name, (letter, known)| name.replace(letter, known));
    let demangled = cpp(&known)?;
    Some(stand_ins.iter().fold(demangled, |name, (letter, known)| name.replace(known, letter)))
}

fn cpp(name: &str) -> Option<String> {
    // `_GLOBAL__sub_I_x` and the like are the compiler's own names for parts of a file's start and
    // end; the parser takes names of types too, so that any short word would be "demangled" were it
    // not for this check.
    if !["_Z", "__Z", "___Z", "____Z", "_GLOBAL_"].iter().any(|prefix| name.starts_with(prefix)) {
        return None;
    }
    match cpp_within(name, SHALLOW) {
        Err(Refusal::TooDeep) => cpp_deep(name),
        Err(Refusal::NoName) => cpp_without_signature(name),
        Ok(demangled) => Some(demangled),
    }
}

fn cpp_deep(name: &str) -> Option<String> {
    thread_local! {
        static SPENT: Cell<u64> = const { Cell::new(0) };
    }
    if SPENT.get() > DEEP_TIME {
        return None;
    }
    let begin = Instant::now();
    let demangled = thread::scope(|scope| {
        let deep = thread::Builder::new().stack_size(DEEP.1);
        deep.spawn_scoped(scope, || cpp_within(name, DEEP.0).ok()).ok()?.join().ok()?
    });
    let took = u64::try_from(begin.elapsed().as_nanos()).unwrap_or(u64::MAX);
    // A name that reads well takes microseconds, and the thread some tens of them.
    if took > 1_000_000 {
        SPENT.set(SPENT.get().saturating_add(took));
    }
    demangled
}

/// The name of a function template whose signature the parser cannot read (g++ writes
/// `std::enable_if` conditions in a way of its own): name and template arguments come first, so the
/// longest part that is a name by itself.
fn cpp_without_signature(name: &str) -> Option<String> {
    /// Ends of nested parts that are tried, the last ones first.
    const TRIED: usize = 64;
    let ends = name.match_indices("E").map(|(at, _)| at + 1).filter(|end| name.is_char_boundary(*end));
    let ends: Vec<usize> = ends.collect();
    ends.iter().rev().take(TRIED).find_map(|end| {
        let part = name.get(..*end)?;
        let demangled = cpp_within(part, SHALLOW).ok()?;
        demangled.ends_with('>').then(|| format!("{demangled}(...)"))
    })
}

/// Why a name stays as it is.
enum Refusal {
    /// It nests deeper than was allowed (or is longer, when written out, which looks the same).
    TooDeep,
    NoName,
}

fn cpp_within(name: &str, depth: u32) -> Result<String, Refusal> {
    let parse = ParseOptions::default().recursion_limit(depth);
    let symbol = Symbol::new_with_options(name, &parse).map_err(|error| match error {
        cpp_demangle::error::Error::TooMuchRecursion => Refusal::TooDeep,
        _ => Refusal::NoName,
    })?;
    let mut out = Bounded(String::new());
    let options = DemangleOptions::new().recursion_limit(depth);
    symbol.structured_demangle(&mut out, &options).map_err(|_| Refusal::TooDeep)?;
    Ok(out.0)
}

/// Text that refuses to grow beyond [`MAX_DEMANGLED`], which ends the demangler that writes to it.
struct Bounded(String);

impl Write for Bounded {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        if self.0.len() + text.len() > MAX_DEMANGLED {
            return Err(fmt::Error);
        }
        self.0.push_str(text);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn names_of_each_kind() {
        let table = [
            ("_Z5leakym", "leaky(unsigned long)"),
            ("_ZNSt6vectorIiSaIiEE9push_backEOi", "std::vector<int, std::allocator<int> >::push_back(int&&)"),
            ("_ZN3FooC2Ev", "Foo::Foo()"),
            ("_ZN3FooC1Ev", "Foo::Foo()"),
            ("_Znwm", "operator new(unsigned long)"),
            ("_ZN4core3fmt9Formatter3pad17h0123456789abcdefE", "core::fmt::Formatter::pad"),
            ("_RNvCsfLfZDOCZTvu_4demo4main", "demo::main"),
            ("_RNvMs_CsfLfZDOCZTvu_4demoNtB4_3Foo3new", "<demo::Foo>::new"),
            (
                "_ZN4core3ops8function6FnOnce9call_once17h0123456789abcdefE.llvm.12345",
                "core::ops::function::FnOnce::call_once",
            ),
            // c++filt has the signature too: std::shared_ptr<...>
            // std::make_shared<...>(word_counter&).
            (
                "_ZSt11make_sharedI13count_printerJR12word_counterEESt10shared_ptrINSt9enable_ifIXntsrSt8is_arrayIT_E5valueES4_E4typeEEDpOT0_",
                "std::make_shared<count_printer, word_counter&>(...)",
            ),
            ("malloc", "malloc"),
            ("main", "main"),
            ("i", "i"),
            ("_Z", "_Z"),
            ("_Zgarbage", "_Zgarbage"),
            ("", ""),
        ];
        for (mangled, expected) in table {
            assert_eq!(demangle(mangled), expected, "{mangled}");
        }
    }

    /// As `nm -C` has them, of what g++ 12 compiled.
    #[test]
    fn names_have_letters_of_all_languages() {
        let table = [
            ("_ZN5ünï14größe_日本Em", "ünï::größe_日本(unsigned long)"),
            ("_ZN7FüllerI4ЖЯE3addERKS0_", "Füller<ЖЯ>::add(ЖЯ const&)"),
            ("_ZN7größeD1Ev", "größe::~größe()"),
            (
                "_ZN9日本語10ΩμέγαI4ЖЯJ7größeiEEET_S3_DpT0_",
                "ЖЯ 日本語::Ωμέγα<ЖЯ, größe, int>(ЖЯ, größe, int)",
            ),
            ("_ZN9日本語2λE", "日本語::λ"),
            ("größe", "größe"),
            ("_ZN7größe$Ev", "_ZN7größe$Ev"),
        ];
        for (mangled, expected) in table {
            assert_eq!(demangle(mangled), expected, "{mangled}");
        }
        let most: String = ('α'..='ω').collect();
        assert_eq!(demangle(&format!("_Z{}{most}v", most.len())), format!("{most}()"));
        let more: String = ('Α'..='ω').collect();
        let too_many = format!("_Z{}{more}v", more.len());
        assert_eq!(demangle(&too_many), too_many);
    }

    #[test]
    fn clones_say_so() {
        assert_eq!(demangle("_Z5leakym.cold"), "leaky(unsigned long) [clone .cold]");
        assert_eq!(demangle("_Z5leakym.part.0"), "leaky(unsigned long) [clone .part.0]");
        assert_eq!(demangle("plain.cold"), "plain.cold");
    }

    #[test]
    fn control_characters_are_not_passed_on() {
        assert_eq!(demangle("a\nb\u{1b}[31m"), "a\u{fffd}b\u{fffd}[31m");
        assert_eq!(printable_bytes(b"a\xffb\0"), "a\u{fffd}b\u{fffd}");
    }

    /// Runs `name` on the stack that a thread has by default, and says how long it took.
    fn time(name: String) -> Duration {
        let run = move || {
            let start = Instant::now();
            demangle(&name);
            start.elapsed()
        };
        thread::Builder::new().stack_size(2 << 20).spawn(run).unwrap().join().unwrap()
    }

    #[test]
    fn deep_names_neither_overflow_nor_hang() {
        let mut hostile: Vec<String> = Vec::new();
        for unit in [
            "P", "K", "N", "I", "F", "S_", "T_", "Dp", "U", "Z", "X", "L", "sr", "cv", "A_", "M", "il", "J",
            "dT", "DT", "_Z", "L_Z",
        ] {
            hostile.push(format!("_Z1f{}", unit.repeat(MAX_MANGLED / unit.len() - 4)));
            hostile.push(format!("_Z{}", unit.repeat(MAX_MANGLED / unit.len() - 4)));
        }
        for unit in ["R", "S", "T", "F", "NvC", "INvC1a1b", "Nv", "M", "X", "Y", "P", "DNt", "A"] {
            hostile.push(format!("_RNvC1a1b{}", unit.repeat(4000)));
            hostile.push(format!("_R{}", unit.repeat(4000 / unit.len())));
        }
        for name in hostile {
            let shown = name.get(..40).unwrap_or(&name).to_owned();
            let took = time(name);
            assert!(took < Duration::from_secs(3), "{shown}: {took:?}");
        }
    }

    #[test]
    fn names_that_are_deep_for_a_reason_are_demangled() {
        // A template of a template of a template...
        let depth = 20;
        let name = format!("_Z1f{}i{}", "1AI".repeat(depth), "E".repeat(depth));
        let expected = format!("f({}int{})", "A<".repeat(depth), " >".repeat(depth).replacen(' ', "", 1));
        assert_eq!(demangle(&name), expected);
    }

    /// Found by fuzzing: each template's arguments were read in two ways, and those in them again.
    #[test]
    fn a_name_with_many_readings_does_not_hang() {
        let unit = "ozIS_ozIS_IctozIS_IS_IiSaIS_ozIS_IiSt6vectEESaII8pathN1";
        for count in 1..20 {
            let took = time(format!("_ZNSt6vect{}_E_EpOT_", unit.repeat(count)));
            assert!(took < Duration::from_secs(3), "{count}: {took:?}");
        }
        let found = "_ZNSt6vectozIS_ozIS_IctozIS_IS_IiSaIS_ozIS_IiSt6vectEESaII8pathN1tozIS_IS_IiSaIS_ozIS_IiSt6vectEESaII8pat\
                     hNiSt6vectozIS_IS_IiSaIS_ozIS_IiSt6vectEESaII8pathN1tozIS_IS_IiSaIS_ozIS_IiSt6vectEESaII8pathN1_E_EpOT_";
        let took = time(found.to_owned());
        assert!(took < Duration::from_secs(3), "{took:?}");
    }

    #[test]
    fn names_that_grow_without_bound_are_left_as_they_are() {
        // Each substitution names a pair of the one before: 2^60 bytes when written out.
        let mut doubling = String::from("_Z1f1AIiiE");
        for step in 0..60 {
            let back = match step {
                0 => "S_".to_owned(),
                _ => format!("S{}_", radix_36(step - 1)),
            };
            doubling.push_str(&format!("1AI{back}{back}E"));
        }
        let start = Instant::now();
        let result = demangle(&doubling);
        assert!(start.elapsed() < Duration::from_millis(500));
        assert!(result.len() <= MAX_DEMANGLED);
    }

    fn radix_36(value: u32) -> String {
        let digit = char::from_digit(value % 36, 36).unwrap().to_ascii_uppercase();
        match value / 36 {
            0 => digit.to_string(),
            more => format!("{}{digit}", radix_36(more)),
        }
    }

    #[test]
    fn random_names_are_survived() {
        const ALPHABET: &[u8] = b"_ZNKSTIERLXJPOVCDFABMabcdefilmnstuvx0123456789.$";
        let mut random = 0x9e37_79b9_7f4a_7c15_u64;
        let mut next = || {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            random as usize
        };
        let start = Instant::now();
        for round in 0..20_000 {
            let prefix = ["_Z", "_R", "_ZN", "_Z1fI"][round % 4];
            let length = next() % 60;
            let tail: String = (0..length).map(|_| char::from(ALPHABET[next() % ALPHABET.len()])).collect();
            demangle(&format!("{prefix}{tail}"));
        }
        assert!(start.elapsed() < Duration::from_secs(20));
    }
}
