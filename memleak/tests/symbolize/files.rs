//! Objects as compilers and distributions make them.

use std::{fs, io::Write as _, path::Path, process::Command};

use memleak::symbolize::{Frame, NoSymbol};

use crate::tools::{Directory, addr2line, fixture, mappings, nm, return_addresses, run, symbolize};

/// File name and line as one word, no directories: compilers write those in different ways.
fn place(file: &str, line: &str) -> String {
    format!("{}:{line}", Path::new(file).file_name().unwrap().to_string_lossy())
}

/// Compares every call in `/NAME` with addr2line and nm, which read `truth`: the file with all its
/// debug information.
fn compare_all(directory: &Directory, name: &str, truth: &Path) {
    let ips = return_addresses(truth);
    assert!(ips.len() > 5, "{} calls", ips.len());
    let calls: Vec<u64> = ips.iter().map(|ip| ip - 1).collect();
    let (expected, functions) = (addr2line(truth, &calls), nm(truth));
    let mut inlined = 0;
    for ((ip, frames), expected) in ips.iter().zip(symbolize(directory, name, &ips)).zip(expected) {
        assert_eq!(frames.len(), expected.len(), "{ip:#x}: {frames:#?} {expected:#?}");
        let (start, (size, names)) = functions.range(..ip).next_back().unwrap();
        assert!(ip - 1 < start + size, "{ip:#x}");
        for (index, (frame, (function, at))) in frames.iter().zip(&expected).enumerate() {
            let last = index + 1 == frames.len();
            assert_eq!(frame.inlined, !last, "{frame:?}");
            assert_eq!(frame.function_offset, Some(ip - start), "{frame:?}");
            let symbol = frame.symbol.as_deref().unwrap();
            match last {
                true => assert!(names.iter().any(|name| name == symbol), "{symbol} {names:?}"),
                // binutils names the innermost function by the symbol table, which has no inlined
                // ones.
                false if index == 0 => assert!(names.contains(function) || symbol == function, "{frame:?}"),
                false => assert_eq!(symbol, function, "{frame:?}"),
            }
            inlined += usize::from(!last);
            let (file, line) = at.rsplit_once(':').unwrap();
            // `<artificial>` is what binutils calls a file of a program that was optimized as a
            // whole.
            if line != "?" {
                let ours = place(frame.file.as_deref().unwrap(), &frame.line.unwrap().to_string());
                match file {
                    _ if file.ends_with("<artificial>") => {
                        assert!(ours.ends_with(&format!(":{line}")), "{ip:#x} {frame:?}")
                    }
                    _ => assert_eq!(ours, place(file, line), "{ip:#x} {frame:?}"),
                }
            }
        }
    }
    assert!(inlined > 3, "the fixture has inlined calls");
}

fn compile(directory: &Directory, name: &str, options: &str) {
    let line = format!("g++ {options} -o {{}} {{}}");
    run(&line, &[&directory.path(name), &fixture("shapes.cc")]);
}

fn keep_debug(directory: &Directory, name: &str, debug: &str) {
    let (file, debug) = (directory.path(name), directory.path(debug));
    run("objcopy --only-keep-debug {} {}", &[&file, &debug]);
}

fn build_id(file: &Path) -> String {
    let notes = run("readelf -nW {}", &[file]);
    notes.split("Build ID: ").nth(1).unwrap().split_whitespace().next().unwrap().to_owned()
}

fn named(frames: &[Vec<Frame>]) -> usize {
    frames.iter().flatten().filter(|frame| frame.function.is_some()).count()
}

#[test]
fn debug_information_of_each_form() {
    for (name, options) in [
        ("plain", "-g -O2"),
        ("slow", "-g -O0 -finline"),
        ("dwarf4", "-g -gdwarf-4 -O2"),
        ("dwarf64", "-g -gdwarf64 -O2"),
        ("sections", "-g -O2 -ffunction-sections -Wl,--gc-sections"),
        ("zlib", "-g -O2 -gz=zlib"),
        ("old-zlib", "-g -O2 -gz=zlib-gnu"),
        ("fixed", "-g -O2 -no-pie"),
        ("static", "-g -O2 -static -no-pie"),
        ("static-pie", "-g -O2 -static-pie"),
        ("no-separate-code", "-g -O2 -Wl,-z,noseparate-code"),
        ("lto", "-g -O2 -flto"),
    ] {
        let directory = Directory::new();
        compile(&directory, name, options);
        let file = directory.path(name);
        match name.starts_with("static") {
            // binutils reads these in part only; the code is the same as without.
            false if ["dwarf64", "old-zlib"].contains(&name) => {
                let truth = directory.path("truth");
                compile(&directory, "truth", "-g -O2");
                assert_eq!(return_addresses(&truth), return_addresses(&file));
                compare_all(&directory, name, &truth);
            }
            false => compare_all(&directory, name, &file),
            // Most of it is the C library, built without debug information.
            true => compare_own(&directory, name, &file),
        }
    }
}

/// Of a static program only its own functions, by name.
fn compare_own(directory: &Directory, name: &str, file: &Path) {
    let functions = nm(file);
    let (start, (size, _)) =
        functions.iter().find(|(_, (_, names))| names.contains(&"_ZN6shapes5outerEm".to_owned())).unwrap();
    let ips: Vec<u64> =
        return_addresses(file).into_iter().filter(|ip| (*start..start + size).contains(&(ip - 1))).collect();
    let lines: Vec<Vec<u32>> = symbolize(directory, name, &ips)
        .iter()
        .map(|frames| frames.iter().filter_map(|frame| frame.line).collect())
        .collect();
    let truth: Vec<Vec<u32>> = addr2line(file, &ips.iter().map(|ip| ip - 1).collect::<Vec<_>>())
        .iter()
        .map(|frames| frames.iter().map(|(_, at)| at.rsplit_once(':').unwrap().1.parse().unwrap()).collect())
        .collect();
    assert!(ips.len() >= 2);
    assert_eq!(lines, truth);
}

#[test]
fn inlined_calls_one_after_the_other() {
    let directory = Directory::new();
    compile(&directory, "plain", "-g -O2");
    let file = directory.path("plain");
    let outer = "_ZN6shapes5outerEm";
    let (start, (size, _)) = nm(&file).into_iter().find(|(_, (_, names))| names[0] == outer).unwrap();
    let ip =
        return_addresses(&file).into_iter().find(|ip| (start..start + size).contains(&(ip - 1))).unwrap();
    let frames = symbolize(&directory, "plain", &[ip]).concat();
    let line = |text: &str| {
        let source = fs::read_to_string(fixture("shapes.cc")).unwrap();
        source.lines().position(|line| line.contains(text)).map(|index| index as u32 + 1)
    };
    let expected = [
        ("innermost", line("= std::malloc(size)"), true),
        ("middle", line("= innermost(size + 1)"), true),
        ("shapes::outer(unsigned long)", line("= middle(size)"), false),
    ];
    assert_eq!(frames.len(), expected.len());
    for (frame, (function, line, inlined)) in frames.iter().zip(expected) {
        assert_eq!(frame.function.as_deref(), Some(function));
        assert_eq!((frame.line, frame.inlined, frame.no_symbol), (line, inlined, None));
        assert_eq!(frame.function_offset, Some(ip - start));
    }
    assert_eq!(frames[2].symbol.as_deref(), Some(outer));
}

#[test]
fn zstd_debug_sections() {
    let directory = Directory::new();
    compile(&directory, "before", "-g -O2");
    let (before, after) = (directory.path("before"), directory.path("after"));
    run("objcopy --compress-debug-sections=zstd {} {}", &[&before, &after]);
    assert!(run("readelf -tW {}", &[&after]).contains("ZSTD"));
    compare_all(&directory, "after", &before);
}

#[test]
fn split_debug_information() {
    for (name, options) in [("five", "-gdwarf-5"), ("four", "-gdwarf-4")] {
        let directory = Directory::new();
        let line = format!("g++ {options} -O2 -gsplit-dwarf -c -o {{}} {{}}");
        run(&line, &[&directory.path("shapes.o"), &fixture("shapes.cc")]);
        run("g++ -o {} {}", &[&directory.path(name), &directory.path("shapes.o")]);
        // The same code, with its debug information in it: binutils does not read split units.
        let truth = directory.path("truth");
        run(&format!("g++ {options} -O2 -o {{}} {{}}"), &[&truth, &fixture("shapes.cc")]);
        let ips = return_addresses(&truth);
        assert_eq!(ips, return_addresses(&directory.path(name)));
        let compare = |what: &str, frames: Vec<Vec<Frame>>| {
            let truth = addr2line(&truth, &ips.iter().map(|ip| ip - 1).collect::<Vec<_>>());
            let lines = |frames: &Vec<Frame>| frames.iter().filter_map(|it| it.line).collect::<Vec<_>>();
            let truth_lines = truth.iter().map(|frames| {
                frames
                    .iter()
                    .filter_map(|(_, at)| at.rsplit_once(':').unwrap().1.parse().ok())
                    .collect::<Vec<u32>>()
            });
            assert_eq!(
                frames.iter().map(lines).collect::<Vec<_>>(),
                truth_lines.collect::<Vec<_>>(),
                "{name}: {what}"
            );
            assert!(frames.iter().flatten().filter(|frame| frame.inlined).count() > 3, "{name}");
        };
        let path = directory.path(name);
        let path = path.strip_prefix("/").unwrap().to_str().unwrap();
        // The compiler wrote the path of the .dwo as we named it: from this machine's root.
        compare("file", symbolize_at_root(path, &ips));
        let (dwo, package) = (directory.path("shapes.dwo"), directory.path(&format!("{name}.dwp")));
        if options == "-gdwarf-4" {
            // The same in a package, with the .dwo gone. (Debian 12's dwp crashes on version 5.)
            run("dwp -e {} -o {}", &[&directory.path(name), &package]);
            fs::remove_file(&dwo).unwrap();
            compare("package", symbolize_at_root(path, &ips));
            fs::remove_file(&package).unwrap();
        }
        // A .dwo of another build is not believed: no inlined calls then.
        let other = directory.path("other.o");
        run(&format!("g++ {options} -O1 -gsplit-dwarf -c -o {{}} {{}}"), &[&other, &fixture("shapes.cc")]);
        fs::rename(directory.path("other.dwo"), &dwo).unwrap();
        let wrong = symbolize_at_root(path, &ips);
        assert_eq!(wrong.iter().flatten().filter(|frame| frame.inlined).count(), 0);
    }
}

/// Symbolizes with this machine's root as the target's.
fn symbolize_at_root(name: &str, vaddrs: &[u64]) -> Vec<Vec<Frame>> {
    let root = Directory("/".into());
    let frames = symbolize(&root, name, vaddrs);
    std::mem::forget(root);
    frames
}

#[test]
fn a_stripped_object_with_a_debug_link() {
    for place in [
        "bin/.debug/shapes.debug",
        "bin/shapes.debug",
        "usr/lib/debug/bin/shapes.debug",
        "host-debug/bin/shapes.debug",
    ] {
        let directory = Directory::new();
        fs::create_dir_all(directory.0.join("host-debug")).unwrap();
        compile(&directory, "full", "-g -O2 -Wl,--build-id=none");
        let (full, debug, bin) =
            (directory.path("full"), directory.path(place), directory.path("bin/shapes"));
        keep_debug(&directory, "full", place);
        run("strip -o {} {}", &[&bin, &full]);
        run("objcopy --add-gnu-debuglink={} {}", &[&debug, &bin]);
        compare_all(&directory, "bin/shapes", &full);
        // One byte more, and the CRC is another: it is not believed.
        fs::OpenOptions::new().append(true).open(&debug).unwrap().write_all(b"x").unwrap();
        let frames = symbolize(&directory, "bin/shapes", &return_addresses(&full));
        assert_eq!(named(&frames), 0, "{place}");
        assert!(frames.iter().flatten().all(|frame| frame.no_symbol == Some(NoSymbol::NotInSymbolTable)));
    }
}

#[test]
fn a_stripped_object_with_a_build_id() {
    for place in ["usr/lib/debug", "host-debug"] {
        let directory = Directory::new();
        fs::create_dir_all(directory.0.join("host-debug")).unwrap();
        compile(&directory, "full", "-g -O2 -Wl,--build-id=sha1");
        let (full, bin) = (directory.path("full"), directory.path("shapes"));
        let id = build_id(&full);
        let debug = format!("{place}/.build-id/{}/{}.debug", &id[..2], &id[2..]);
        keep_debug(&directory, "full", &debug);
        run("strip -o {} {}", &[&bin, &full]);
        compare_all(&directory, "shapes", &full);
        // Another program's debug file in that place is not believed.
        compile(&directory, "other", "-g -O1 -Wl,--build-id=sha1");
        keep_debug(&directory, "other", &debug);
        assert_eq!(named(&symbolize(&directory, "shapes", &return_addresses(&full))), 0);
    }
}

#[test]
fn mini_debug_info() {
    let directory = Directory::new();
    compile(&directory, "full", "-O2");
    let (full, mini, bin) = (directory.path("full"), directory.path("mini"), directory.path("shapes"));
    run("objcopy --only-keep-debug {} {}", &[&full, &mini]);
    run("xz -f {}", &[&mini]);
    run("strip -o {} {}", &[&bin, &full]);
    run("objcopy --add-section .gnu_debugdata={} {}", &[&directory.path("mini.xz"), &bin]);
    let functions = nm(&full);
    let ips = return_addresses(&full);
    for (ip, frames) in ips.iter().zip(symbolize(&directory, "shapes", &ips)) {
        let (start, (_, names)) = functions.range(..ip).next_back().unwrap();
        let [frame] = &frames[..] else { panic!("{frames:?}") };
        assert!(names.contains(frame.symbol.as_ref().unwrap()), "{frame:?} {names:?}");
        assert_eq!(frame.function_offset, Some(ip - start));
    }
}

#[test]
fn symbols_of_every_state() {
    let directory = Directory::new();
    run("gcc -nostdlib -static -o {} {}", &[&directory.path("aliases"), &fixture("aliases.s")]);
    let text = run("nm {}", &[&directory.path("aliases")]);
    let address = |name: &str| {
        let line = text.lines().find(|line| line.ends_with(&format!(" {name}"))).unwrap();
        u64::from_str_radix(line.split_whitespace().next().unwrap(), 16).unwrap()
    };
    for (place, offset, expected) in [
        ("good_name", 1, Some(("good_name", 1))),
        ("global_name", 1, Some(("global_name", 1))),
        ("global_name", 2, Some(("global_name", 2))),
        ("global_name", 3, None),
        ("global_name", 12, None),
        ("no_size", 1, Some(("no_size", 1))),
        ("no_size", 8, Some(("no_size", 8))),
        ("no_type", 1, Some(("no_type", 1))),
        ("no_type", 8, Some(("no_type", 8))),
        ("holder", 4, Some(("holder", 4))),
        // The label inside is a place in the function that has a size.
        ("place_inside", 1, Some(("holder", 5))),
        ("nested", 4, Some(("nested", 4))),
        ("nested", 5, Some(("holder", 13))),
        // The byte before a function's first belongs to the one before.
        ("holder", 0, Some(("no_type", 8))),
        ("no_function", 1, None),
    ] {
        let frames = symbolize(&directory, "aliases", &[address(place) + offset]);
        let [frame] = &frames[0][..] else { panic!("{frames:?}") };
        let found = frame.symbol.as_deref().zip(frame.function_offset);
        assert_eq!(found, expected, "{place}+{offset}");
        assert_eq!(frame.no_symbol, expected.is_none().then_some(NoSymbol::NotInSymbolTable));
    }
}

#[test]
fn rust_names_and_lines() {
    let directory = Directory::new();
    let file = directory.path("crate");
    run("rustc --edition 2024 -g -O -o {} {}", &[&file, &fixture("crate.rs")]);
    let (start, (size, _)) = nm(&file)
        .into_iter()
        .find(|(_, (_, names))| names.iter().any(|name| name.contains("Holder") && name.contains("grow")))
        .unwrap();
    let ips: Vec<u64> =
        return_addresses(&file).into_iter().filter(|ip| (start..start + size).contains(&(ip - 1))).collect();
    let frames = symbolize(&directory, "crate", &ips);
    let expected = addr2line(&file, &ips.iter().map(|ip| ip - 1).collect::<Vec<_>>());
    for (frames, expected) in frames.iter().zip(&expected) {
        assert_eq!(frames.len(), expected.len());
        let last = frames.last().unwrap();
        let function = last.function.as_deref().unwrap();
        assert!(
            ["crate::Holder<T>::grow", "<crate::Holder<alloc::string::String>>::grow"].contains(&function),
            "{function}"
        );
    }
    let innermost = |frames: &Vec<Frame>| {
        frames.iter().any(|frame| frame.inlined && frame.function.as_deref() == Some("crate::small"))
    };
    assert!(frames.iter().any(innermost), "{frames:#?}");
}

#[test]
fn source_files_are_named_as_the_compiler_was_told() {
    let directory = Directory::new();
    fs::create_dir_all(directory.0.join("src")).unwrap();
    fs::copy(fixture("waits.c"), directory.0.join("src/waits.c")).unwrap();
    let status = Command::new("gcc")
        .args(["-g", "-o", "waits", "src/waits.c"])
        .current_dir(&directory.0)
        .status()
        .unwrap();
    assert!(status.success());
    let ips = return_addresses(&directory.path("waits"));
    let files: Vec<_> =
        symbolize(&directory, "waits", &ips).concat().into_iter().filter_map(|it| it.file).collect();
    assert!(!files.is_empty() && files.iter().all(|file| file == "src/waits.c"), "{files:?}");
}

#[test]
fn mappings_come_from_the_segments() {
    // The helper itself: what the kernel maps of a file is executable once, at page boundaries.
    let directory = Directory::new();
    compile(&directory, "plain", "-g");
    let maps = mappings(&directory.path("plain"), "plain", 0);
    assert_eq!(maps.iter().filter(|mapping| mapping.executable).count(), 1);
    assert!(maps.iter().all(|mapping| mapping.start % 4096 == 0 && mapping.end % 4096 == 0));
}

/// The way back from a signal handler is returned to at its first byte, and the kernel alone has
/// made the call: it has its own name, and not what the byte before belongs to. What a real call
/// returns to has the caller's name, also where the next function begins there.
#[test]
fn ways_back_from_signal_handlers_have_their_own_name() {
    let directory = Directory::new();
    let source = directory.path("signal.c");
    let user = "#include <signal.h>\nint main(void) { return signal(SIGINT, SIG_IGN) == SIG_ERR; }\n";
    fs::write(&source, user).unwrap();
    for (name, compiler) in [("glibc", "gcc"), ("musl", "musl-gcc")] {
        run(&format!("{compiler} -O2 -static -no-pie -o {{}} {{}}"), &[&directory.path(name), &source]);
    }
    let assembly = directory.path("arm.s");
    fs::write(
        &assembly,
        ".text\n.type before, %function\nbefore:\nbl before\n.size before, . - before\n\
         .type __restore_rt, %function\n__restore_rt:\nmov x8, #139\nsvc #0\n.size __restore_rt, . - __restore_rt\n\
         .type calls, %function\ncalls:\nbl before\n.size calls, . - calls\n\
         .type after, %function\nafter:\nmov x8, #93\nsvc #0\n.size after, . - after\n",
    )
    .unwrap();
    run(
        "clang --target=aarch64-linux-gnu -nostdlib -shared -fuse-ld=lld -o {} {}",
        &[&directory.path("arm"), &assembly],
    );
    for name in ["glibc", "musl", "arm"] {
        let functions = nm(&directory.path(name));
        let address = |function: &str| {
            let is_it = |names: &[String]| names.iter().any(|name| name == function);
            let mut found = functions.iter().filter(|(_, (_, names))| is_it(names));
            found.next().map(|(start, _)| *start).unwrap_or_else(|| panic!("{name} has {function}"))
        };
        let named = |vaddr: u64| {
            let frames = symbolize(&directory, name, &[vaddr]).remove(0);
            (frames[0].function.clone(), frames[0].function_offset)
        };
        let way_back = address("__restore_rt");
        assert_eq!(named(way_back), (Some("__restore_rt".to_owned()), Some(0)), "{name}");
        if name == "arm" {
            assert_eq!(named(address("after")), (Some("calls".to_owned()), Some(4)));
        }
    }
}
