//! The command line: what is read, and what is refused in one line.

use std::{collections::BTreeSet, ffi::OsString, os::unix::ffi::OsStringExt as _, time::Duration};

use memleak::{
    exit::{self, ExitMessage, Stream},
    report::{
        format::{folded, human, json, text},
        output::OutputFile,
    },
    sampling::Sampling,
    settings::{ColorChoice, KernelOptions, KernelProbes, Settings, SortKey, TargetSpec, UnwindMode},
};

fn parse(arguments: &[&str]) -> Result<Settings, ExitMessage> {
    Settings::from_args(std::iter::once(&"memleak").chain(arguments))
}

fn settings(arguments: &[&str]) -> Settings {
    parse(arguments).unwrap_or_else(|message| panic!("{arguments:?}: {}", message.text))
}

fn pids<const N: usize>(pids: [u32; N]) -> TargetSpec {
    TargetSpec::Pids(BTreeSet::from(pids))
}

fn command(words: &[&str]) -> TargetSpec {
    TargetSpec::Command(words.iter().map(OsString::from).collect())
}

#[test]
fn defaults_are_those_of_the_spec() {
    let settings = settings(&["-p", "7"]);
    assert_eq!(settings.target, pids([7]));
    assert_eq!(settings.interval, Duration::from_secs(5));
    assert_eq!(settings.count, None);
    assert_eq!(settings.error_exitcode, None);
    assert_eq!(settings.verbosity, 0);
    let capture = settings.capture;
    assert_eq!((capture.min_size, capture.max_size), (0, u64::MAX));
    assert_eq!((capture.max_allocs, capture.stack_storage_size, capture.max_depth), (None, None, 127));
    assert_eq!((capture.trace, capture.follow_forks, capture.traps_only), (false, false, false));
    assert_eq!((capture.object, capture.symbols_prefix), (None, None));
    let report = settings.report;
    assert_eq!((report.format, report.top, report.sort), (None, 10, SortKey::Size));
    assert_eq!((report.show_allocs, report.combined_only), (false, false));
    assert_eq!((report.older, report.sampling), (Duration::from_millis(500), Sampling::All));
    assert_eq!(report.output, None);
}

/// People at a terminal get a form of their own; nothing else changes what is written.
#[test]
fn the_form_depends_on_the_terminal_if_nothing_is_asked_for() {
    let on = |arguments: &[&str], is_terminal| {
        let arguments = [&["-p", "7"], arguments].concat();
        settings(&arguments).report.format_on(is_terminal)
    };
    assert_eq!((on(&[], true), on(&[], false)), (human::KIND, text::KIND));
    assert_eq!((on(&["--output", "x"], true), on(&["--format", "text"], true)), (text::KIND, text::KIND));
    assert_eq!((on(&["--json"], true), on(&["--format", "human"], false)), (json::KIND, human::KIND));
}

#[test]
fn colours_are_for_terminals_unless_forced() {
    let on = |choice: ColorChoice, is_terminal, variables: &[(&str, &str)]| {
        let find =
            |name: &str| variables.iter().find(|(known, _)| *known == name).map(|(_, value)| value.into());
        choice.on(is_terminal, find)
    };
    let auto = ColorChoice::Auto;
    assert!(on(auto, true, &[("TERM", "xterm")]) && !on(auto, false, &[("TERM", "xterm")]));
    assert!(!on(auto, true, &[("TERM", "dumb")]) && !on(auto, true, &[]));
    assert!(!on(auto, true, &[("TERM", "xterm"), ("NO_COLOR", "1")]));
    assert!(on(auto, true, &[("TERM", "xterm"), ("NO_COLOR", "")]));
    assert!(on(auto, false, &[("CLICOLOR_FORCE", "1")]) && !on(auto, false, &[("CLICOLOR_FORCE", "0")]));
    assert!(!on(auto, false, &[("CLICOLOR_FORCE", "1"), ("NO_COLOR", "0")]));
    assert!(on(ColorChoice::Always, false, &[("NO_COLOR", "1")]));
    assert!(!on(ColorChoice::Never, true, &[("CLICOLOR_FORCE", "1"), ("TERM", "xterm")]));
    assert_eq!(settings(&["-p", "7", "--color", "never"]).report.color, ColorChoice::Never);
}

#[test]
fn targets() {
    let cases: &[(&[&str], TargetSpec)] = &[
        (&["-p", "1,2", "-p", "3", "--pid=2"], pids([1, 2, 3])),
        (&["-p12"], pids([12])),
        (&["-p", "31 42\n"], pids([31, 42])), // -p "$(pidof NAME)"
        (&["-p", "2147483647"], pids([i32::MAX as u32])),
        (&["-c", "./a 'b c' \"d e\" f\\ g"], command(&["./a", "b c", "d e", "f g"])),
        (&["--command", "a"], command(&["a"])),
        (&["--", "a", "-p", "--json", "--", "5"], command(&["a", "-p", "--json", "--", "5"])),
        (&["5", "2", "--", "a"], command(&["a"])),
        (&["--", "-x"], command(&["-x"])),
    ];
    for (arguments, expected) in cases {
        assert_eq!(&settings(arguments).target, expected, "{arguments:?}");
    }
}

#[test]
fn a_command_may_be_no_utf8() {
    let word = OsString::from_vec(b"\xff\xfe".to_vec());
    let arguments = ["memleak", "--", "a"].map(OsString::from).into_iter().chain([word.clone()]);
    let settings = Settings::from_args(arguments).expect("reads");
    assert_eq!(settings.target, TargetSpec::Command(vec!["a".into(), word]));
}

#[test]
fn interval_and_count() {
    let cases: &[(&[&str], f64, Option<u64>)] = &[
        (&["-p", "1", "10"], 10.0, None),
        (&["-p", "1", "5", "10"], 5.0, Some(10)),
        (&["5", "-p", "1", "10"], 5.0, Some(10)),
        (&["0.25", "1", "-p", "1"], 0.25, Some(1)),
        (&["5", "--", "cmd", "7"], 5.0, None),
        (&["--", "cmd", "7", "8"], 5.0, None),
    ];
    for (arguments, seconds, count) in cases {
        let settings = settings(arguments);
        assert_eq!(settings.interval.as_secs_f64(), *seconds, "{arguments:?}");
        assert_eq!(settings.count, *count, "{arguments:?}");
    }
}

#[test]
fn times_have_units() {
    let interval = |text: &str| settings(&["-p", "1", text]).interval;
    for (text, ms) in
        [("500ms", 500), ("5s", 5000), ("0.5", 500), ("1.5s", 1500), ("10m", 600_000), ("1h", 3_600_000)]
    {
        assert_eq!(interval(text), Duration::from_millis(ms), "{text}");
        assert_eq!(
            settings(&["-p", "1", "--duration", text]).duration,
            Some(Duration::from_millis(ms)),
            "{text}"
        );
    }
    assert_eq!(settings(&["-p", "1"]).duration, None);
    for text in ["5d", "ms", "0.0001ms", "nans", "1 h 2"] {
        let error = parse(&["-p", "1", text]).expect_err(text);
        assert!(
            error.text.starts_with("memleak: INTERVAL: ") || error.text.contains("one argument too many"),
            "{text}: {}",
            error.text
        );
    }
    for text in ["0", "0s", "inf", "5x"] {
        let error = parse(&["-p", "1", "--duration", text]).expect_err(text);
        assert!(error.text.starts_with("memleak: --duration: "), "{text}: {}", error.text);
    }
}

/// Files of the last report: one of them can go to standard output.
#[test]
fn files_are_asked_for_by_their_form() {
    let files = |arguments: &[&str]| {
        let arguments = [&["-p", "1"], arguments].concat();
        let files = settings(&arguments).report.files;
        files.iter().map(|file| (file.kind.name, file.path.clone())).collect::<Vec<_>>()
    };
    assert_eq!(files(&[]), []);
    let found = files(&["--pprof", "a.pb.gz", "--save=b", "--flamegraph", "-", "--flamegraph-by", "count"]);
    let expected = [("flamegraph", "-"), ("pprof", "a.pb.gz"), ("save", "b")];
    assert_eq!(found, expected.map(|(form, path)| (form, path.into())));
    let error = parse(&["-p", "1", "--pprof", "-", "--html", "-"]).expect_err("two at once").text;
    assert_eq!(
        error,
        "memleak: --html -: --pprof goes to standard output as well; name a file for one of them\n"
    );
}

#[test]
fn sizes_have_suffixes_of_1024() {
    for (text, expected) in [
        ("0", 0),
        ("1", 1),
        ("4K", 4096),
        ("4k", 4096),
        ("3M", 3_145_728),
        ("3m", 3_145_728),
        ("2G", 2_147_483_648),
        ("2g", 2_147_483_648),
        ("17179869183G", 18_446_744_072_635_809_792),
    ] {
        assert_eq!(settings(&["-p", "1", "-z", text]).capture.min_size, expected, "{text}");
        assert_eq!(settings(&["-p", "1", "--max-size", text]).capture.max_size, expected, "{text}");
    }
}

#[test]
fn every_option_has_its_effect() {
    let with = |arguments: &[&str]| settings(&[&["-p", "1"], arguments].concat());
    for (short, long) in [("-t", "--trace"), ("-a", "--show-allocs"), ("-C", "--combined-only")] {
        assert_eq!(with(&[short]), with(&[long]));
        assert_ne!(with(&[short]), with(&[]));
    }
    assert!(with(&["-t"]).capture.trace);
    assert!(with(&["-a"]).report.show_allocs);
    assert!(with(&["-C"]).report.combined_only);
    assert!(with(&["--follow-forks"]).capture.follow_forks);
    assert!(with(&["--traps-only"]).capture.traps_only);
    assert_eq!(with(&["-o", "0"]).report.older, Duration::ZERO);
    assert_eq!(with(&["--older", "1500"]).report.older, Duration::from_millis(1500));
    assert_eq!(with(&["--top", "5"]).report.top, 5);
    assert_eq!(with(&["-T5"]).report.top, 5);
    assert_eq!(with(&["-s", "100"]).report.sampling, Sampling::OneIn(100));
    assert_eq!(with(&["--sample-rate", "3"]).report.sampling, Sampling::OneIn(3));
    assert_eq!(with(&["--sample-bytes", "512K"]).report.sampling, Sampling::Bytes(512 << 10));
    assert_eq!(with(&["-O", "libfoo"]).capture.object.as_deref(), Some("libfoo"));
    assert_eq!(with(&["--obj", "/x/y"]).capture.object.as_deref(), Some("/x/y"));
    assert_eq!(with(&["-S", "je_"]).capture.symbols_prefix.as_deref(), Some("je_"));
    assert_eq!(with(&["--symbols-prefix", "mi_"]).capture.symbols_prefix.as_deref(), Some("mi_"));
    assert_eq!(with(&["--json"]).report.format, Some(json::KIND));
    assert_eq!(with(&["--folded"]).report.format, Some(folded::KIND));
    assert_eq!(with(&["--format", "text"]).report.format, Some(text::KIND));
    assert_eq!(with(&["--format", "JSON", "--json"]).report.format, Some(json::KIND));
    let output = |append| Some(OutputFile { path: "f".into(), append });
    assert_eq!(with(&["--output", "f"]).report.output, output(false));
    assert_eq!(with(&["--append", "--output", "f"]).report.output, output(true));
    assert!(parse(&["-p", "7", "--append"]).is_err_and(|message| message.text.contains("--output FILE")));
    assert_eq!(with(&["--max-depth", "1"]).capture.max_depth, 1);
    assert_eq!(with(&["--max-depth", "127"]).capture.max_depth, 127);
    assert_eq!(with(&["--stack-storage-size", "10"]).capture.stack_storage_size, Some(10));
    assert_eq!(with(&["--max-allocs", "134217728"]).capture.max_allocs, Some(1 << 27));
    assert_eq!(with(&["--error-exitcode", "99"]).error_exitcode, Some(99));
    assert_eq!(with(&["--error-exitcode", "0"]).error_exitcode, None); // as with valgrind
    assert_eq!(with(&["-v", "-v"]).verbosity, 2);
    assert_eq!(with(&["-vv"]).verbosity, 2);
    for (name, key) in [
        ("size", SortKey::Size),
        ("count", SortKey::Count),
        ("age", SortKey::Age),
        ("growth", SortKey::Growth),
        ("verdict", SortKey::Verdict),
    ] {
        assert_eq!(with(&["--sort", name]).report.sort, key);
    }
    for (name, mode) in [("auto", UnwindMode::Auto), ("dwarf", UnwindMode::Dwarf), ("fp", UnwindMode::Fp)] {
        assert_eq!(with(&["--unwind", name]).capture.unwind, mode);
    }
    // On anyway, in user mode too.
    assert_eq!(with(&["-F"]), with(&[]));
    assert_eq!(with(&["--wa-missing-free"]), with(&[]));
}

#[test]
fn the_last_of_two_wins_as_with_bcc() {
    assert_eq!(settings(&["-p", "1", "-T", "5", "--top", "6"]).report.top, 6);
    assert_eq!(settings(&["-a", "-a", "-c", "x", "-c", "y"]).target, command(&["y"]));
}

/// Arguments, what the line must name, and what it must advise.
const REFUSED: &[(&[&str], &str, &str)] = &[
    (&[], "no target", "-p PID"),
    (&["5", "10"], "no target", "-- COMMAND"),
    (&["1234"], "no target", "memleak -p 1234"),
    (&["--"], "no target", "-p PID"),
    (&["-p", "1", "-c", "x"], "-p and -c", "keep one"),
    (&["-p", "1", "--", "x"], "-p and -- COMMAND", "keep one"),
    (&["-c", "x", "--", "x"], "-c and -- COMMAND", "keep one"),
    (&["-k", "-p", "1"], "-p and -k", "keep one"),
    (&["-p", "abc"], "-p/--pid: 'abc' is not a process ID", "pidof"),
    (&["-p", "0"], "'0' is not a process ID", "pidof"),
    (&["-p", "-5"], "'-5' is not a process ID", "pidof"),
    (&["-p", "1,x,3"], "'x' is not a process ID", "pidof"),
    (&["-p", "2147483648"], "'2147483648' is not a process ID", "pidof"),
    (&["-p", "99999999999999999999999999"], "is not a process ID", "pidof"),
    (&["-p", ""], "-p/--pid: it is empty", "is the program running"),
    (&["-p", ","], "-p/--pid: it is empty", "is the program running"),
    (&["-p"], "--pid: no process ID follows", "is the program running"),
    (&["-p", "-T", "5"], "--pid: no process ID follows", "is the program running"),
    (&["-p", "1", "-P"], "-P/--percpu", "leave it out"),
    (&["-c", "x", "--kernel-probes", "auto"], "--kernel-probes", "memleak --kernel"),
    (&["-p", "1", "--slab", "dentry"], "--slab: it names a cache of the kernel", "memleak --kernel"),
    (&["-p", "1", "--only-pid", "1"], "--only-pid", "memleak --kernel"),
    (&["-p", "1", "--only-comm", "x"], "--only-comm", "memleak --kernel"),
    (&["-k", "-c", "x"], "-c and -k", "keep one"),
    (&["-k", "--", "x"], "-- COMMAND and -k", "keep one"),
    (&["-k", "-O", "libc"], "-O/--obj: it names an object of a process", "-p PID"),
    (&["-k", "-S", "je_"], "-S/--symbols-prefix", "-p PID"),
    (&["-k", "--follow-forks"], "--follow-forks", "-p PID"),
    (&["-k", "--unwind", "auto"], "--unwind", "-p PID"),
    (
        &["-k", "--kernel-probes", "fentry"],
        "'fentry' is not a way to watch the kernel",
        "auto, tracepoint, kprobe",
    ),
    (&["-k", "-P", "--kernel-probes", "kprobe"], "-P with --kernel-probes kprobe", "leave one"),
    (&["-k", "--slab", ""], "--slab: it is empty", "dentry"),
    (&["-k", "--slab"], "--slab", "value is missing"),
    (&["-k", "--only-pid", "0"], "--only-pid: '0'", "pidof"),
    (&["-k", "--only-pid", "nginx"], "--only-pid: 'nginx'", "pidof"),
    (&["-k", "--only-pid", "1,2"], "--only-pid: '1,2'", "pidof"),
    (&["-k", "--only-comm", ""], "--only-comm: it is empty", "nginx"),
    (
        &["-k", "--only-comm", "sixteen_bytes_ab"],
        "'sixteen_bytes_ab' has 16 bytes",
        "--only-comm 'sixteen_bytes_a'",
    ),
    (&["-k", "--only-comm", "aaaaaaaaaaaaaaé"], "has 16 bytes", "--only-comm 'aaaaaaaaaaaaaa'"),
    (&["-p", "1", "-T", "0"], "-T/--top: '0' is not a whole number from 1 up", "such as 10"),
    (&["-p", "1", "-T", "-3"], "-T/--top: '-3'", "such as 10"),
    (&["-p", "1", "-T", "x"], "-T/--top: 'x'", "such as 10"),
    (&["-p", "1", "-T"], "--top", "value is missing"),
    (&["-p", "1", "-z", "2K", "-Z", "1K"], "-z/--min-size: 2048 bytes are more than the 1024", "swap"),
    (&["-p", "1", "-z", "1T"], "-z/--min-size: '1T' is not a size", "64K"),
    (&["-p", "1", "-z", ""], "-z/--min-size: '' is not a size", "64K"),
    (&["-p", "1", "-z", "K"], "-z/--min-size: 'K' is not a size", "64K"),
    (&["-p", "1", "-Z", "-1"], "-Z/--max-size: '-1' is not a size", "64K"),
    (&["-p", "1", "-Z", "17179869184G"], "-Z/--max-size", "64K"),
    (&["-p", "1", "-Z", "4é"], "-Z/--max-size: '4é'", "64K"),
    (&["-p", "1", "--sort", "weight"], "--sort: 'weight' is not a sort key", "size, count, age, growth"),
    (&["-p", "1", "--unwind", "lbr"], "--unwind: 'lbr' is not a way to walk a stack", "auto, dwarf, fp"),
    (&["-p", "1", "-s", "0"], "-s/--sample-rate: '0'", "1 for all"),
    (&["-p", "1", "-o", "-1"], "-o/--older: '-1'", "milliseconds"),
    (&["-p", "1", "-o", "1s"], "-o/--older: '1s'", "milliseconds"),
    (&["-p", "1", "0"], "INTERVAL: '0'", "such as 5"),
    (&["-p", "1", "-5"], "INTERVAL: '-5'", "such as 5"),
    (&["-p", "1", "abc"], "INTERVAL: 'abc' is not a number of seconds", "such as 5"),
    (&["./program"], "INTERVAL: './program'", "after --"),
    (&["-p", "1", "nan"], "INTERVAL: 'nan'", "such as 5"),
    (&["-p", "1", "inf"], "INTERVAL: 'inf'", "such as 5"),
    (&["-p", "1", "1e300"], "INTERVAL: '1e300'", "such as 5"),
    (&["-p", "1", "0.0000001"], "INTERVAL", "such as 5"),
    (&["-p", "1", "5", "0"], "COUNT: '0'", "number of reports"),
    (&["-p", "1", "5", "1.5"], "COUNT: '1.5'", "number of reports"),
    (&["-p", "1", "5", "-1"], "COUNT: '-1'", "number of reports"),
    (&["-p", "1", "5", "1", "1"], "'1': one argument too many", "--"),
    (&["5", "1", "./program"], "'./program': one argument too many", "memleak -- COMMAND"),
    (&["-c", ""], "-c/--command: the command is empty", "name a program"),
    (&["-c", "  "], "-c/--command: the command is empty", "name a program"),
    (&["-c", "'' x"], "-c/--command: the command is empty", "name a program"),
    (&["--", ""], "--: the command is empty", "name a program"),
    (&["-c", "a 'b"], "-c/--command: a quote in 'a 'b' has no end", "close it"),
    (&["-c", "a \"b\nc"], "-c/--command: a quote", "close it"),
    (&["-p", "1", "-a", "-C"], "-a with -C", "keep one"),
    (
        &["-p", "1", "--max-allocs", "0"],
        "--max-allocs: '0' is not a whole number from 1 to 134217728",
        "1000000",
    ),
    (&["-p", "1", "--max-allocs", "134217729"], "--max-allocs", "1000000"),
    (&["-p", "1", "--stack-storage-size", "0"], "--stack-storage-size: '0'", "16384"),
    (&["-p", "1", "--stack-storage-size", "134217729"], "--stack-storage-size", "16384"),
    (&["-p", "1", "--max-depth", "0"], "--max-depth: '0' is not a whole number from 1 to 127", "frames"),
    (&["-p", "1", "--max-depth", "128"], "--max-depth: '128'", "frames"),
    (&["-p", "1", "--error-exitcode", "256"], "--error-exitcode: '256'", "such as 99"),
    (&["-p", "1", "--output", ""], "--output <FILE>", "value is missing"),
    (&["-p", "1", "-O", ""], "-O/--obj: it is empty", "libc"),
    (&["-p", "1", "-S", ""], "-S/--symbols-prefix: it is empty", "je_"),
    (&["-p", "1", "-r", "mmapp"], "-r/--resource: 'mmapp' is not a resource", "did you mean mmap?"),
    (&["-p", "1", "-r", "qqq"], "-r/--resource: 'qqq' is not a resource", "--list-resources"),
    (&["-p", "1", "-r", ""], "-r/--resource: a name in it is empty", "--list-resources"),
    (&["-p", "1", "-r", "heap,,mmap"], "-r/--resource: a name in it is empty", "--list-resources"),
    (&["-p", "1", "-r", "slab"], "-r/--resource: slab is the kernel's", "-k"),
    (&["-p", "1", "-r"], "--resource <NAME>: its value is missing", "--help"),
    (&["-k", "-r", "fd"], "-r/--resource with -k: the kernel's resources", "leave one of them out"),
    (
        &["-p", "1", "--acquire", "libfoo.so:foo_open -> foo"],
        "--acquire: column 23: expected ret, argN or *argN after ->, found 'foo'",
        "example: libfoo.so:foo_open",
    ),
    (&["-p", "1", "--acquire", ""], "--acquire: column 1: expected OBJECT:FUNCTION", "example: lib"),
    (&["-p", "1", "--acquire", "f -> ret"], "--acquire: nothing releases what 'f -> ret' acq", "--release"),
    (&["-p", "1", "--release", "f(arg1)"], "--release: no --acquire before 'f(arg1)'", "--acquire"),
    (
        &["-p", "1", "--release", "f(arg1)", "--acquire", "g -> ret"],
        "--release: no --acquire before 'f(arg1)'",
        "--acquire 'OBJECT:FUNCTION -> ret'",
    ),
    (
        &["-p", "1", "--acquire", "f -> ret", "--release", "g(arg7)"],
        "--release: column 3: expected arg1 to arg6, found 'arg7'",
        "example: libfoo.so:foo_close(arg1)",
    ),
    (
        &["-p", "1", "--acquire", "f -> ret", "--release", "g(arg1)", "--release", "x=h(arg1)"],
        "--release: nothing acquires what 'x=h(arg1)' releases",
        "--acquire 'NAME=",
    ),
    (
        &["-p", "1", "--acquire", "heap=f -> ret", "--release", "g(arg1)"],
        "--acquire: heap is a built-in resource's name",
        "another name",
    ),
    (
        &["-p", "1", "--acquire", "f -> *arg1 as int", "--release", "g(arg1)"],
        "resource f: 'f -> *arg1 as int': nothing says when the int",
        "add a condition",
    ),
    (
        &["-p", "1", "--acquire", "f -> ret, arg2", "--release", "g(arg1)"],
        "resource f: 'f -> ret, arg2': a second handle must directly follow",
        "write it as *argN",
    ),
    (
        &["-p", "1", "--resources-file", "/nope/x.toml"],
        "/nope/x.toml: cannot be read: No such",
        "name a file",
    ),
    (&["-p", "1", "--resources-file", "/dev/null"], "/dev/null describes no resource", "[[resource]]"),
    (&["-p", "1", "--resources-file", "/dev/zero"], "/dev/zero: is larger than 1 MiB", "short text"),
    (&["-p", "1", "--list-resource"], "--list-resource: no such option", "did you mean --list-resources"),
    (&["-p", "1", "--follow-fork"], "--follow-fork: no such option", "did you mean --follow-forks"),
    (&["-p", "1", "--qqq"], "--qqq: no such option", "memleak --help"),
    (&["-p", "1", "-q"], "-q: no such option", "memleak --help"),
    (&["-p", "1", "--format", "xml"], "'xml' is not a format", "give one of text, human, json, folded"),
    (&["-p", "1", "--format", "text", "--json"], "text and json were both", "keep one"),
    (&["-p", "1", "--color", "blue"], "'blue' is not a choice of colours", "auto, always, never"),
    (&["-p", "1", "--flamegraph-by", "age"], "'age' is not a measure", "bytes, count, growth, acquired"),
    (
        &["-p", "1", "--fail-if", "growth"],
        "'growth' is not a condition",
        "give growth>SIZE (such as growth>1M), lost>N or leak",
    ),
    (&["-p", "1", "--fail-if", "growth>x"], "'x' is not a size", "give growth>SIZE"),
    (&["-p", "1", "--fail-if", "new"], "no stacks that were not there before", "memleak diff OLD NEW"),
    (&["-p", "1", "--only", "("], "--only: '('", "a regular expression"),
    (&["-p", "1", "--suppressions", "/nonexistent"], "cannot be read: No such file", "name a file"),
    (
        &["-p", "1", "--completions", "bash"],
        "there are other options beside it",
        "memleak --completions SHELL alone",
    ),
    (&["-p", "1", "--folded", "-t"], "folded has no lines for the events", "another format"),
    (&["-p", "1", "--json=yes"], "--json: takes no value, but 'yes'", "leave the value out"),
];

#[test]
fn what_cannot_be_obeyed_is_one_line_that_says_what_to_do() {
    for (arguments, names, advises) in REFUSED {
        let Err(message) = parse(arguments) else { panic!("{arguments:?} was taken") };
        let ExitMessage { status, stream, text } = message;
        assert_eq!((status, stream), (exit::USAGE, Stream::Stderr), "{arguments:?}: {text}");
        assert!(text.starts_with("memleak: ") && text.ends_with('\n'), "{arguments:?}: {text}");
        assert_eq!(text.lines().count(), 1, "{arguments:?}: {text}");
        assert!(text.contains(names), "{arguments:?} should name {names:?}: {text}");
        assert!(text.contains(advises), "{arguments:?} should advise {advises:?}: {text}");
        assert!(
            text.contains(": ") && text.contains("; "),
            "{arguments:?}: no what, why, what to do: {text}"
        );
    }
}

#[test]
fn text_that_is_no_utf8_is_refused_in_one_line() {
    let bad = OsString::from_vec(b"\xff".to_vec());
    let message = Settings::from_args(["memleak".into(), "-c".into(), bad]).expect_err("is no text");
    assert_eq!((message.status, message.text.lines().count()), (exit::USAGE, 1), "{}", message.text);
    assert!(message.text.contains("UTF-8"), "{}", message.text);
}

#[test]
fn control_characters_of_an_argument_do_not_reach_the_terminal() {
    for arguments in [&["-p", "1\x1b[2J"] as &[&str], &["--x\x1b[2J\n"], &["1", "2", "\x1b[2J"]] {
        let message = parse(arguments).expect_err("refused");
        assert!(!message.text.trim_end().contains(char::is_control), "{:?}", message.text);
    }
}

fn kernel(arguments: &[&str]) -> KernelOptions {
    match settings(arguments).target {
        TargetSpec::Kernel(kernel) => kernel,
        other => panic!("{arguments:?}: {other:?}"),
    }
}

#[test]
fn the_kernel_is_a_target() {
    let all = KernelOptions {
        probes: KernelProbes::Auto,
        slab: None,
        only_pid: None,
        only_comm: None,
        percpu: false,
        check_stacks: false,
    };
    for arguments in [&["-k"] as &[&str], &["--kernel"], &["-k", "-F"], &["-k", "--kernel-probes", "auto"]] {
        assert_eq!(kernel(arguments), all, "{arguments:?}");
    }
    for arguments in [["-k", "-P"], ["--kernel", "--percpu"]] {
        assert_eq!(kernel(&arguments), KernelOptions { percpu: true, ..all.clone() });
    }
    for (name, probes) in [
        ("auto", KernelProbes::Auto),
        ("tracepoint", KernelProbes::Tracepoint),
        ("kprobe", KernelProbes::Kprobe),
    ] {
        assert_eq!(kernel(&["-k", "--kernel-probes", name]), KernelOptions { probes, ..all.clone() });
    }
    let narrowed = kernel(&["-k", "--slab", "kmalloc-64", "--only-pid", "12", "--only-comm", "kworker/0:1"]);
    assert_eq!((narrowed.slab.as_deref(), narrowed.only_pid), (Some("kmalloc-64"), Some(12)));
    assert_eq!(narrowed.only_comm.as_deref(), Some("kworker/0:1"));
    assert_eq!(
        kernel(&["-k", "--only-comm", "exactly15bytes_"]).only_comm.as_deref(),
        Some("exactly15bytes_")
    );
    // What all modes have in common.
    let common = settings(&[
        "-k",
        "-t",
        "-a",
        "-z",
        "1K",
        "-Z",
        "1M",
        "-s",
        "10",
        "-o",
        "0",
        "-T",
        "3",
        "--sort",
        "growth",
        "--json",
        "--max-depth",
        "8",
        "--stack-storage-size",
        "9",
        "--max-allocs",
        "7",
        "--error-exitcode",
        "5",
        "2",
        "4",
    ]);
    assert_eq!((common.count, common.error_exitcode), (Some(4), Some(5)));
    assert_eq!(
        (common.capture.min_size, common.capture.max_size, common.capture.trace),
        (1024, 1 << 20, true)
    );
    assert_eq!((common.report.sampling, common.report.sort), (Sampling::OneIn(10), SortKey::Growth));
    assert!(settings(&["-k", "-C"]).report.combined_only);
}

#[test]
fn help_and_version_go_to_standard_output() {
    for arguments in [["--help"], ["-h"], ["--version"], ["-V"]] {
        let message = parse(&arguments).expect_err("ends the program");
        assert_eq!((message.status, message.stream), (exit::DONE, Stream::Stdout), "{arguments:?}");
    }
    let help = parse(&["--help"]).expect_err("ends the program").text;
    for expected in [
        "INTERVAL",
        "Examples:",
        "Exit status:",
        "--error-exitcode",
        "-- ./program",
        "[default: 500]",
        "--only-comm <NAME>",
    ] {
        assert!(help.contains(expected), "{expected} is missing in:\n{help}");
    }
    assert!(!help.contains("traps-only"), "{help}");
    let version = parse(&["--version"]).expect_err("ends the program").text;
    assert_eq!(version, format!("memleak {}\n", env!("CARGO_PKG_VERSION")));
}

/// A terminal of 80 by 24 shows all of it, with the prompt below.
#[test]
fn the_short_help_is_one_screen() {
    let help = parse(&["-h"]).expect_err("ends the program").text;
    assert!(help.lines().count() <= 23, "{} lines", help.lines().count());
    for line in help.lines() {
        assert!(line.chars().count() <= 80, "{line}");
    }
    let all = parse(&["--help"]).expect_err("ends the program").text;
    let named = help.lines().flat_map(str::split_whitespace).filter(|word| word.starts_with("--"));
    for option in named.map(|word| word.trim_end_matches([',', ')', ']'])).filter(|word| word.len() > 2) {
        assert!(all.contains(option), "{option}");
    }
    assert_eq!(parse(&["-p", "7", "-vh"]).expect_err("ends the program").text, help);
}

/// Every letter of bcc's memleak, with its long name.
#[test]
fn every_option_of_bcc_keeps_its_letter_and_its_name() {
    let help = parse(&["--help"]).expect_err("ends the program").text;
    for names in [
        "-p, --pid",
        "-t, --trace",
        "-a, --show-allocs",
        "-o, --older",
        "-c, --command",
        "-C, --combined-only",
        "-F, --wa-missing-free",
        "-s, --sample-rate",
        "-T, --top",
        "-z, --min-size",
        "-Z, --max-size",
        "-O, --obj",
        "-P, --percpu",
        "-S, --symbols-prefix",
        "-k, --kernel",
    ] {
        assert!(help.contains(names), "{names} is missing in:\n{help}");
    }
}
