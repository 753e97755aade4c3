//! Inlined functions that have no linkage name, compared with those of a program that differs in
//! that its types have one.

use std::collections::BTreeSet;

use crate::tools::{Directory, fixture, nm, return_addresses, run, symbolize};

/// Names of the calls in `function` of the program, by call, innermost first, as far as DWARF and
/// linkage names write them alike: without parameters, arguments of templates and what is returned.
fn names(directory: &Directory, program: &str, function: &str) -> Vec<Vec<String>> {
    let file = directory.path(program);
    let functions = nm(&file);
    let is_it = |name: &String| name.contains(function);
    let (start, (size, _)) = functions.iter().find(|(_, (_, names))| names.iter().any(is_it)).unwrap();
    let within = |ip: &u64| (*start..start + size).contains(&(ip - 1));
    let ips: Vec<u64> = return_addresses(&file).into_iter().filter(within).collect();
    let frames = symbolize(directory, program, &ips);
    let name = |function: Option<String>| plain(&function.unwrap());
    frames.into_iter().map(|frames| frames.into_iter().map(|frame| name(frame.function)).collect()).collect()
}

fn plain(name: &str) -> String {
    let name = name.replace("(anonymous namespace)", "hidden");
    let (mut depth, mut out) = (0, String::new());
    for c in name.chars() {
        match c {
            '<' => depth += 1,
            '>' => depth -= 1,
            '(' if depth == 0 => break,
            _ if depth == 0 => out.push(c),
            _ => {}
        }
    }
    out.rsplit(' ').next().unwrap().to_owned()
}

#[test]
fn inlined_functions_have_the_names_of_what_they_are_in() {
    for (name, options) in [
        ("plain", "-g -O2"),
        ("dwarf4", "-g -gdwarf-4 -O2"),
        ("sections", "-g -O2 -ffunction-sections"),
        ("types", "-g -O2 -fdebug-types-section"),
        ("lto", "-g -O2 -flto"),
    ] {
        let directory = Directory::new();
        for (program, more) in [("hidden", ""), ("named", "-DNAMED")] {
            let line = format!("g++ -std=c++17 {options} {more} -o {{}} {{}}");
            run(&line, &[&directory.path(program), &fixture("scopes.cc")]);
        }
        // The compiler may inline other calls of them, but the functions are the same.
        let all = |program| -> BTreeSet<String> {
            let of = |function| names(&directory, program, function).into_iter().flatten();
            ["_Z7holdersi", "_Z6sharedi"].into_iter().flat_map(of).collect()
        };
        let (hidden, named) = (all("hidden"), all("named"));
        let unknown: Vec<&String> = hidden.difference(&named).collect();
        assert!(unknown.is_empty(), "{name}: {unknown:?} of {named:?}");
        assert!(hidden.len() > 12, "{name}: {hidden:?}");
    }
}

#[test]
fn what_is_of_a_closure_is_in_the_library() {
    let directory = Directory::new();
    run("g++ -std=c++17 -g -O2 -o {} {}", &[&directory.path("plain"), &fixture("scopes.cc")]);
    let names = names(&directory, "plain", "_Z8closures").concat();
    assert!(names.contains(&"std::function::function".to_owned()), "{names:?}");
    assert!(names.iter().all(|name| name == "closures" || name.starts_with("std::")), "{names:?}");
}
