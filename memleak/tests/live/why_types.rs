//! `--why` names the types of circles that have no virtual functions, and their members: those of
//! C++ that no other file can see, closures, and Rust's. The programs' sources are the truth.

use std::{collections::BTreeSet, path::Path};

use crate::{
    guard::alone,
    programs::{Link, build, text},
    tracer::Tracer,
    why::rust_program,
};

/// A block of a circle: its type, and the member that holds the next.
type Member = (String, Option<String>);

/// The circles that the program leaves: how many of them, and their members.
fn circles(program: &Path) -> Vec<(u64, BTreeSet<Member>)> {
    let mut tracer = Tracer::start(&["--json", "--why", "-o", "0", "3600", "--", text(program)]);
    tracer.running().expect("READY");
    let report = tracer.stop_with_report();
    let cycles = report.cycles.expect("cycles");
    let member = |it: &serde_json::Value| {
        let name = it["type"].as_str().unwrap_or_default().replace("(anonymous namespace)::", "");
        (name, it["field"].as_str().map(str::to_owned))
    };
    let members =
        |it: &serde_json::Value| it["members"].as_array().expect("members").iter().map(member).collect();
    cycles.iter().map(|it| (it["count"].as_u64().expect("a number"), members(it))).collect()
}

fn expected(members: &[(&str, &str)]) -> BTreeSet<Member> {
    let field = |field: &str| Some(field.to_owned()).filter(|field| !field.is_empty());
    members.iter().map(|(name, of)| ((*name).to_owned(), field(of))).collect()
}

#[test]
fn circles_of_hidden_types_and_closures_of_cpp() {
    let _alone = alone();
    let found = circles(&build("cpp_owners.cc", Link::Dynamic, &["-std=c++17", "-O2", "-g"]));
    let all = [
        expected(&[("Button", "on_click"), ("closures()::<lambda()>", "")]),
        expected(&[
            ("Window", "buttons"),
            ("std::shared_ptr<Button>[]", ""),
            ("Button", "on_click"),
            ("windows(int)::<lambda()>", ""),
        ]),
    ];
    for members in &all {
        assert!(found.contains(&(3, members.clone())), "{members:?} in {found:?}");
    }
    let is_family = |members: &BTreeSet<Member>| {
        let has = |name: &str, field: &str| members.contains(&(name.to_owned(), Some(field.to_owned())));
        has("Child", "parent") && has("Parent", "children")
    };
    assert!(found.iter().any(|(count, members)| *count == 3 && is_family(members)), "{found:?}");
    assert_eq!(found.len(), 3, "{found:?}");
}

#[test]
fn circles_of_rust() {
    let _alone = alone();
    for (name, flags) in [("rust_owners", "-Copt-level=3"), ("rust_owners_slow", "-Copt-level=0")] {
        let found = circles(&rust_program("rust_owners.rs", name, &["-g", flags]));
        let crate_name = "rust_owners";
        let named = |members: &[(&str, &str)]| {
            let whole = |name: &str| name.replace("::::", &format!("{crate_name}::"));
            let members: Vec<(String, &str)> =
                members.iter().map(|(name, field)| (whole(name), *field)).collect();
            expected(&members.iter().map(|(name, field)| (name.as_str(), *field)).collect::<Vec<_>>())
        };
        let all = [
            named(&[
                ("core::cell::RefCell<::::Panel>", "children"),
                ("alloc::rc::Rc<core::cell::RefCell<::::Widget>>[]", ""),
                ("core::cell::RefCell<::::Widget>", "parent"),
            ]),
            named(&[
                ("::::Bus", "topics"),
                ("::::Bus", "callbacks"),
                ("(alloc::string::String, alloc::sync::Arc<::::Topic>)[]", ""),
                ("::::Topic", "bus"),
                (
                    "alloc::boxed::Box<(dyn core::ops::function::Fn<(), Output=usize> + core::marker::Send)>[]",
                    "",
                ),
                ("::::buses::{closure_env#0}", "own"),
            ]),
            named(&[
                ("::::Registry", "items"),
                ("alloc::rc::Rc<dyn ::::Handler>[]", ""),
                ("::::Owner", "registry"),
            ]),
        ];
        for members in &all {
            assert!(found.contains(&(3, members.clone())), "{name}: {members:?} in {found:?}");
        }
        assert_eq!(found.len(), all.len(), "{name}: {found:?}");
    }
}

/// Linkers differ in how they lay out data, and the kernel shows what begins as zero as memory of
/// nobody.
#[test]
fn variables_that_hold_blocks_are_named() {
    let _alone = alone();
    for link in [Link::Dynamic, Link::Lld, Link::Static] {
        let program = build("variables.cc", link, &["-O1"]);
        let mut tracer = Tracer::start(&["--json", "--why", "-o", "0", "3600", "--", text(&program)]);
        tracer.running().expect("READY");
        let held = tracer.stop_with_report().held.expect("held");
        for (bytes, variable) in [(30001, "server (+0x186a0)"), (30011, "settings (+0x8)")] {
            let by = held.iter().find(|it| it["bytes"] == bytes).and_then(|it| it["by"].as_str());
            let is_it = |by: &str| by.starts_with(&format!("global {variable} ["));
            assert!(by.is_some_and(is_it), "{link:?}: {variable}, and not {by:?}");
        }
    }
}
