//! Stacks that are not to be reported: LeakSanitizer's `leak:pattern`, valgrind's suppressions, and
//! a few that we know ourselves.
//!
//! A stack is suppressed if a rule matches it. LeakSanitizer's pattern is looked for in each
//! frame's function, source file and object; `*` is any text, `^` and `$` are a name's ends. A rule
//! of valgrind's is a list of callers, from the innermost: `fun:` a function (its symbol, or as it
//! is written in the source), `obj:` an object, `...` any frames; `*` and `?` stand for text.

use memleak_common::probe::Resource;

use crate::symbolize::Frame;

/// What C and C++ libraries keep until the end on purpose.
///
/// Each is one of these: a table that a library fills once and keeps for the process, a record of a
/// thread or of something registered that lives as long as that, or a buffer that its owner keeps
/// for the next time. What a program has asked for and could give back (`newlocale`, `iconv_open`)
/// is none of them.
const KNOWN: &str = "\
# C library: thread-local storage, exit handlers, streams, locales, time zones, messages, names.
leak:^__cxa_get_globals$
leak:^_dl_allocate_tls
leak:^allocate_dtv$
leak:^_dl_new_object$
leak:^_dl_map_object
leak:^__new_exitfn$
leak:^__register_atfork$
leak:^_IO_file_doallocate$
leak:^setlocale$
leak:^_nl_intern_locale_data$
leak:^_nl_load_domain$
leak:^_nl_find_domain$
leak:^bindtextdomain$
leak:^textdomain$
leak:^init_cacheinfo$
leak:^__tzfile_read$
leak:^__tzstring
leak:^tzset_internal$
leak:^__nss_database
leak:^__nss_lookup_function$
leak:^__nss_module_allocate$
leak:^__gconv_read_conf
leak:^__add_to_environ$
# C++ library: names of locales, what is set up when it is loaded.
leak:^std::locale::classic
leak:^std::locale::facet::_S_initialize_once
# GLib, GTK, Qt: types and quarks are registered for ever; messages and fonts.
leak:^g_type_register_static
leak:^g_type_register_fundamental$
leak:^g_type_class_ref$
leak:^g_type_add_interface_static$
leak:^g_quark_from_static_string$
leak:^g_quark_from_string$
leak:^g_intern_string$
leak:^g_get_language_names
leak:^g_private_get
leak:^g_thread_self$
leak:^g_main_context_new
leak:^FcInit
leak:^FcPatternObject
leak:^QMetaType::registerNormalizedType
leak:^qRegisterResourceData
# Drivers and sound: state of the display for the process.
leak:libGLX_nvidia.so
leak:libnvidia-glcore.so
leak:^dri2_initialize
leak:^snd_config_update
# TLS and crypto: algorithms and errors are loaded once.
leak:^OPENSSL_init_crypto$
leak:^ERR_load_strings
leak:^gcry_check_version$
leak:^_gnutls_global_init
leak:^NSS_Init
# Databases and languages: interned names, loaded modules.
leak:^sqlite3_initialize$
leak:^PyUnicode_InternInPlace$
{
  The C++ library's reserve for exceptions when there is no memory
  Memcheck:Leak
  fun:malloc
  obj:*/libstdc++.so*
  fun:call_init*
}
{
  What the dynamic linker itself writes down of an object that dlopen has loaded
  Memcheck:Leak
  fun:*alloc
  obj:*/ld-*
  ...
  fun:dl_open_worker*
}
";

/// All rules of a run.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Suppressions(Vec<Rule>);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Rule {
    /// LeakSanitizer's.
    Anywhere(String),
    /// valgrind's.
    Callers(Vec<CallerRule>),
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum CallerRule {
    Function(String),
    Object(String),
    Any,
}

impl Suppressions {
    /// Those that we know, which hold wherever others were asked for.
    pub fn known() -> Self {
        Self::parse(KNOWN).unwrap_or_default()
    }

    /// Reads a file of either kind. An error is `<line>: <why>`.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut rules = Vec::new();
        let mut lines = text.lines().zip(1..).map(|(line, number)| (line.trim(), number));
        while let Some((line, number)) = lines.next() {
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            if line == "{" {
                rules.extend(valgrind(&mut lines, number)?);
                continue;
            }
            match line.split_once(':') {
                Some(("leak", pattern)) if !pattern.is_empty() => {
                    rules.push(Rule::Anywhere(pattern.to_owned()))
                }
                _ => return Err(format!("line {number}: '{line}' is neither leak:PATTERN nor {{")),
            }
        }
        Ok(Self(rules))
    }

    /// Those of `other` as well.
    pub fn extend(&mut self, other: Self) {
        self.0.extend(other.0);
    }

    /// A stack of this resource, callee first, is not to be reported.
    pub fn suppress<'a>(&self, resource: Resource, frames: impl Iterator<Item = &'a Frame> + Clone) -> bool {
        self.0.iter().any(|rule| match rule {
            Rule::Anywhere(pattern) => frames.clone().any(|frame| is_anywhere(pattern, frame)),
            Rule::Callers(callers) => {
                let frames: Vec<&Frame> = frames.clone().collect();
                are_callers(callers, &frames)
                    || resource == Resource::Heap && are_callers_of_allocator(callers, &frames)
            }
        })
    }
}

/// One of valgrind's: a name, its kind, then callers up to `}`. `None` if it is of another tool.
fn valgrind<'a>(
    lines: &mut impl Iterator<Item = (&'a str, u32)>,
    begin: u32,
) -> Result<Option<Rule>, String> {
    let mut callers = Vec::new();
    let mut is_leak = false;
    for (at, (line, number)) in lines.enumerate() {
        match (at, line.split_once(':')) {
            _ if line == "}" => return Ok(is_leak.then_some(Rule::Callers(callers))),
            (0, _) => {}
            // A kind of memcheck's that is no leak is no concern of ours.
            (1, Some((tools, kind))) => is_leak = tools.contains("Memcheck") && kind.trim() == "Leak",
            (_, Some(("fun", pattern))) => callers.push(CallerRule::Function(pattern.to_owned())),
            (_, Some(("obj", pattern))) => callers.push(CallerRule::Object(pattern.to_owned())),
            (_, Some(("match-leak-kinds" | "src", _))) => {}
            _ if line == "..." => callers.push(CallerRule::Any),
            _ if line.is_empty() || line.starts_with('#') => {}
            _ => return Err(format!("line {number}: '{line}' is none of fun:, obj:, ... and }}")),
        }
    }
    Err(format!("line {begin}: the suppression that begins there has no end (a line of its own with }})"))
}

/// LeakSanitizer's: text with `*`, which may be anywhere in a name, unless it begins with `^` or
/// ends in `$`.
fn is_anywhere(pattern: &str, frame: &Frame) -> bool {
    let (begins, pattern) = pattern.strip_prefix('^').map_or((false, pattern), |rest| (true, rest));
    let (ends, pattern) = pattern.strip_suffix('$').map_or((false, pattern), |rest| (true, rest));
    let pattern = format!("{}{pattern}{}", if begins { "" } else { "*" }, if ends { "" } else { "*" });
    let names = [&frame.function, &frame.symbol, &frame.file, &frame.module];
    names.into_iter().flatten().any(|name| is_like(&pattern, name))
}

/// What valgrind's rules begin with: its own versions of these functions are on its stacks.
const ALLOCATORS: [&str; 12] = [
    "malloc",
    "calloc",
    "realloc",
    "reallocarray",
    "posix_memalign",
    "aligned_alloc",
    "memalign",
    "valloc",
    "_Znwm",
    "_Znam",
    "_ZnwmSt11align_val_t",
    "_ZnamSt11align_val_t",
];

/// A rule from the allocator's function on, which was probed and so is not on our stacks. Which one
/// that was is not known: a rule for one of them is one for all. C++'s operators are in our stacks
/// where they call malloc, and one another.
fn are_callers_of_allocator(callers: &[CallerRule], frames: &[&Frame]) -> bool {
    let [CallerRule::Function(pattern), callers @ ..] = callers else { return false };
    let is_operator = |frame: &&&Frame| {
        frame.symbol.as_deref().is_some_and(|name| name.starts_with("_Znw") || name.starts_with("_Zna"))
    };
    let operators = frames.iter().take_while(is_operator).count();
    let frames = frames.get(operators..).unwrap_or_default();
    // valgrind's posix_memalign calls its memalign.
    let further = match callers {
        [CallerRule::Function(name), further @ ..] if ALLOCATORS.contains(&name.as_str()) => further,
        all => all,
    };
    ALLOCATORS.iter().any(|allocator| is_like(pattern, allocator))
        && (are_callers(callers, frames) || are_callers(further, frames))
}

fn are_callers(callers: &[CallerRule], frames: &[&Frame]) -> bool {
    let Some((caller, callers)) = callers.split_first() else { return true };
    let is_here = |frame: &Frame| match caller {
        CallerRule::Function(pattern) => {
            // Of several names of one place in the C library (strdup, __strdup) valgrind takes the
            // shorter.
            let names = [&frame.symbol, &frame.function].into_iter().flatten();
            names
                .flat_map(|name| [name.as_str(), name.trim_start_matches('_')])
                .any(|name| is_like(pattern, name))
        }
        CallerRule::Object(pattern) => frame.module.as_deref().is_some_and(|module| is_like(pattern, module)),
        CallerRule::Any => true,
    };
    match (caller, frames.split_first()) {
        (CallerRule::Any, _) => (0..=frames.len()).any(|skipped| are_callers(callers, &frames[skipped..])),
        (_, Some((frame, frames))) => is_here(frame) && are_callers(callers, frames),
        (_, None) => false,
    }
}

/// The whole text is like a pattern: `*` is any text, `?` any character.
fn is_like(pattern: &str, text: &str) -> bool {
    let (pattern, text): (Vec<char>, Vec<char>) = (pattern.chars().collect(), text.chars().collect());
    let (mut at, mut seen) = (0, 0);
    // Where the last star is, and what it covered up to.
    let mut star: Option<(usize, usize)> = None;
    while seen < text.len() {
        match pattern.get(at) {
            Some('*') => {
                star = Some((at, seen));
                at += 1;
            }
            Some(c) if *c == '?' || text.get(seen) == Some(c) => (at, seen) = (at + 1, seen + 1),
            _ => match &mut star {
                Some((place, covered)) => {
                    *covered += 1;
                    (at, seen) = (*place + 1, *covered);
                }
                None => return false,
            },
        }
    }
    pattern[at..].iter().all(|c| *c == '*')
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::symbolize::NoSymbol;

    fn frame(function: &str, symbol: &str, module: &str) -> Frame {
        let unknown = Frame::without_function(1, Some(module.to_owned()), None, NoSymbol::Unmapped);
        Frame { function: Some(function.to_owned()), symbol: Some(symbol.to_owned()), ..unknown }
    }

    /// As of a report: what was probed, malloc, is not in it.
    fn stack() -> Vec<Frame> {
        vec![
            frame("app::Cache::put(int)", "_ZN3app5Cache3putEi", "/bin/app"),
            frame("main", "main", "/bin/app"),
        ]
    }

    fn is_suppressed(rules: &str) -> bool {
        Suppressions::parse(rules).expect("rules").suppress(Resource::Heap, stack().iter())
    }

    #[test]
    fn rules_of_leaksanitizer() {
        for rule in
            ["Cache::put", "app::*::put", "^main$", "bin/ap", "^/bin/app$", "^app::Cache", "put(int)$"]
        {
            assert!(is_suppressed(&format!("# comment\n\nleak:{rule}\n")), "{rule}");
        }
        for rule in ["^Cache", "put$", "^mai$", "nothing"] {
            assert!(!is_suppressed(&format!("leak:{rule}")), "{rule}");
        }
    }

    #[test]
    fn rules_of_valgrind() {
        let rule = |callers: &str| {
            is_suppressed(&format!(
                "{{\n a name\n Memcheck:Leak\n match-leak-kinds: definite\n{callers}\n}}\n"
            ))
        };
        for callers in [
            "fun:malloc",
            "fun:malloc\nfun:_ZN3app5Cache*",
            "fun:malloc\n...\nfun:main",
            "...\nobj:/bin/app\nfun:ma?n",
            "fun:*alloc\nfun:_ZN3app5Cache*",
            "fun:memalign\nfun:posix_memalign\nfun:_ZN3app5Cache3putEi",
            "fun:_ZN3app5Cache3put*",
            "obj:/bin/app\nfun:main",
            "...",
        ] {
            assert!(rule(callers), "{callers}");
        }
        for callers in [
            "fun:main",
            "fun:malloc\nfun:main",
            "fun:malloc\nfun:*\nfun:*\nfun:*",
            "...\nfun:mainly",
            "fun:malloc\n...\nfun:main\nfun:more",
        ] {
            assert!(!rule(callers), "{callers}");
        }
        let of_malloc = Suppressions::parse("{\nname\nMemcheck:Leak\nfun:malloc\n...\n}").expect("rules");
        assert!(!of_malloc.suppress(Resource::Fd, stack().iter()), "no allocator has made it");
        let new = frame("operator new(unsigned long)", "_Znwm", "/lib/libstdc++.so.6");
        let array = Frame { symbol: Some("_Znam".to_owned()), ..new.clone() };
        let made_by_new: Vec<Frame> = [new, array].into_iter().chain(stack()).collect();
        let of_array = Suppressions::parse("{\nname\nMemcheck:Leak\nfun:_Znam\nfun:_ZN3app5Cache3putEi\n}");
        assert!(of_array.expect("rules").suppress(Resource::Heap, made_by_new.iter()));
        let copy: Vec<Frame> =
            [frame("__strdup", "__strdup", "/lib/libc.so.6")].into_iter().chain(stack()).collect();
        let of_copy = Suppressions::parse("{\nname\nMemcheck:Leak\nfun:malloc\nfun:strdup\nfun:_ZN3app*\n}");
        assert!(of_copy.expect("rules").suppress(Resource::Heap, copy.iter()));
        assert!(!is_suppressed("{\nname\nMemcheck:Cond\nfun:malloc\n}"), "is no leak");
    }

    #[test]
    fn what_is_wrong_is_said_with_its_line() {
        let error = |text: &str| Suppressions::parse(text).expect_err("an error");
        assert_eq!(error("leak:a\nrace:b"), "line 2: 'race:b' is neither leak:PATTERN nor {");
        assert_eq!(error("leak:"), "line 1: 'leak:' is neither leak:PATTERN nor {");
        assert!(
            error("\n{\nname\nMemcheck:Leak\nfun:a").starts_with("line 2: the suppression that begins there")
        );
        assert!(error("{\nname\nMemcheck:Leak\nfon:a\n}").starts_with("line 4: 'fon:a' is none of"));
    }

    #[test]
    fn ours_can_be_read() {
        assert_eq!(Suppressions::known().0.len(), 53);
    }

    /// The dynamic linker's own blocks are known, and not those of a library that it has begun.
    #[test]
    fn what_dlopen_leaves_is_ours_and_what_libraries_leave_is_not() {
        let opening = [
            frame("dl_open_worker_begin", "dl_open_worker_begin", "/lib64/ld-linux-x86-64.so.2"),
            frame("dlopen", "dlopen", "/lib/libc.so.6"),
            frame("main", "main", "/bin/app"),
        ];
        let under = |caller: Frame| {
            let frames: Vec<Frame> = [caller].into_iter().chain(opening.clone()).collect();
            Suppressions::known().suppress(Resource::Heap, frames.iter())
        };
        assert!(under(frame("add_to_global", "add_to_global", "/lib64/ld-linux-x86-64.so.2")));
        assert!(!under(frame("Plugin::Plugin()", "_ZN6PluginC2Ev", "/lib/plugin.so")));
    }
}
