//! `--why` names the types of circles that have no virtual functions, and their members: those of
//! C++ that no other file can see, closures, and Rust's. The programs' sources are the truth.

use std::{collections::BTreeSet, path::Path, process::Command};

use crate::{
    guard::alone,
    process::Running,
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

/// A weak pointer, or a plain one back to the owner, closes a circle that keeps nothing alive; one
/// object may be its own owner.
#[test]
fn what_does_not_own_is_no_circle() {
    let _alone = alone();
    let cpp = |flags: &[&str]| {
        let mut found =
            circles(&build("weak_links.cc", Link::Dynamic, &[&["-std=c++17", "-O2"], flags].concat()));
        found.sort();
        found
    };
    let closure = "waits_for_itself()::<lambda()>";
    let owned = [
        expected(&[("both", "self")]),
        expected(&[("later", "done"), (closure, "")]),
        expected(&[("own", "self")]),
    ];
    assert_eq!(cpp(&["-g"]), owned.map(|members| (2, members)));
    // Without types of members the numbers of owners tell, but not what is plain and what may be
    // the weak one.
    let told = [
        expected(&[("", ""), ("later", "")]),
        expected(&[("both", "")]),
        expected(&[("child", ""), ("parent", "")]),
        expected(&[("own", "")]),
        expected(&[("tree", "")]),
    ];
    assert_eq!(cpp(&["-g0"]), told.map(|members| (2, members)));
    let rust = circles(&rust_program("weak_links.rs", "weak_links", &["-g", "-O"]));
    assert_eq!(rust, [(2, expected(&[("weak_links::Own", "me")]))]);
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

/// Where they were acquired nobody knows, but not what they are.
#[test]
fn blocks_from_before_the_attach_are_told_by_type_and_size() {
    let _alone = alone();
    let program = build("cpp_owners.cc", Link::Dynamic, &["-std=c++17", "-O2", "-g"]);
    let mut target = Running::start(&mut Command::new(program));
    target.expect("READY");
    let pid = target.pid().to_string();
    let report =
        Tracer::start(&["--json", "--why", "-p", &pid, "-o", "0", "0.1", "1"]).wait().reports.remove(0);
    let before = &report.why.expect("why")["before_attach"];
    let count = |kinds: &str, of: &str| {
        let kinds = before[kinds].as_array().expect("kinds");
        let is_it = |kind: &&serde_json::Value| kind["type"].as_str().is_some_and(|name| name.ends_with(of));
        kinds.iter().find(is_it).and_then(|kind| kind["count"].as_u64()).unwrap_or(0)
    };
    // Of buttons 3 in closures, and 5, 6 and 7 of windows.
    for (name, expected) in [("::Button", 21), ("::Window", 3), ("::Parent", 3), ("::Child", 9)] {
        assert_eq!(count("in_use_kinds", name), expected, "{name}: {before}");
        // The last one's address may be left in a register.
        let lost = count("lost_kinds", name);
        assert!((expected * 2 / 3..=expected).contains(&lost), "{name}: {lost}: {before}");
    }
    let sums = |kinds: &str| -> Option<u64> {
        before[kinds].as_array().expect("kinds").iter().map(|it| it["count"].as_u64()).sum()
    };
    // All kinds are told, or there would be more than 20 of them.
    assert_eq!(sums("lost_kinds"), before["lost"]["count"].as_u64(), "{before}");
}
