//! Rust's allocator crates, as a release build has them, with the program's symbols and without.

use std::{
    path::{Path, PathBuf},
    process::Command,
    sync::{Mutex, PoisonError},
};

use crate::{
    allocator_forms::{Seen, check},
    guard::alone,
    programs::scratch_dir,
};

/// The program, and the crates that may be its allocator.
pub(crate) const PROJECT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/programs/rust_allocators");

/// Cargo, without what it has set for our own build.
pub(crate) fn cargo() -> Command {
    let mut command = Command::new(env!("CARGO"));
    for (name, _) in std::env::vars_os() {
        let is_ours = |name: &str| name.starts_with("CARGO_") || name == "RUSTFLAGS";
        if name.to_str().is_some_and(|name| is_ours(name) && name != "CARGO_HOME") {
            command.env_remove(name);
        }
    }
    command
}

/// Builds the program with one crate as its allocator. Cargo keeps what it has built, so that only
/// the first run waits for the crates.
fn build(crate_name: &str, is_lto: bool) -> PathBuf {
    static BUILDING: Mutex<()> = Mutex::new(());
    let _building = BUILDING.lock().unwrap_or_else(PoisonError::into_inner);
    let target = scratch_dir().join(if is_lto { "rust_allocators_lto" } else { "rust_allocators" });
    let mut command = cargo();
    command.args(["build", "--release", "--locked", "--quiet", "--features", crate_name]);
    command.arg("--manifest-path").arg(Path::new(PROJECT).join("Cargo.toml"));
    command.arg("--target-dir").arg(&target);
    if is_lto {
        command.args(["--config", "profile.release.lto=\"fat\""]);
    }
    let status = command.status().expect("cargo");
    assert!(status.success(), "building with {crate_name}: {status}");
    let program = scratch_dir().join(format!("rust{crate_name}{}", if is_lto { "-lto" } else { "" }));
    // Another crate's program will have the name. The standard library's debug information takes
    // long to read.
    strip("-g", &target.join("release/rust_allocators"), &program);
    program
}

/// `-g`: of debug information; `-s`: of symbols, too; `-Kmain`: of all symbols but one.
fn strip(what: &str, from: &Path, to: &Path) {
    let status = Command::new("strip").arg(what).arg("-o").args([to, from]).status().expect("strip");
    assert!(status.success(), "strip: {status}");
}

/// Of a stripped program whose allocator this machine's compiler has made: exact if the table of
/// signatures has its code, which is that of Debian 12's; else a warning.
fn by_its_code(warning: &str) -> Seen<'_> {
    let output = Command::new("cc").arg("--version").output().expect("cc");
    let is_known = cfg!(target_arch = "x86_64")
        && String::from_utf8_lossy(&output.stdout).contains("(Debian 12.2.0-14+deb12u1) 12.2.0");
    if is_known { Seen::Exactly } else { Seen::InPart(warning) }
}

/// Exact with symbols, whole or dropped by the linker; without them a warning says which allocator
/// is not seen.
fn check_crate(crate_name: &str, expected_if_stripped: Seen<'_>) {
    let program = build(crate_name, false);
    let _alone = alone();
    check(crate_name, &mut Command::new(&program), Seen::Exactly);
    for what in ["-s", "-Kmain"] {
        let stripped = program.with_extension("stripped");
        strip(what, &program, &stripped);
        check(&format!("{crate_name}, strip {what}"), &mut Command::new(stripped), expected_if_stripped);
    }
}

#[test]
fn jemalloc_crate() {
    check_crate("jemalloc", by_its_code("contains jemalloc, but is stripped: what it allocates"));
}

#[test]
fn jemalloc_crate_without_a_prefix() {
    check_crate("unprefixed-jemalloc", by_its_code("contains jemalloc, but is stripped: calls of"));
}

#[test]
fn mimalloc_crate() {
    check_crate("mimalloc", by_its_code("contains mimalloc, but is stripped"));
}

#[test]
fn snmalloc_crate() {
    check_crate("snmalloc", Seen::InPart("contains snmalloc, but is stripped"));
}

#[test]
fn rpmalloc_crate() {
    check_crate("rpmalloc", Seen::InPart("contains rpmalloc, but is stripped"));
}

#[test]
fn scudo_crate() {
    check_crate("scudo", Seen::InPart("contains scudo, but is stripped"));
}

#[test]
fn mimalloc_crate_with_lto() {
    let program = build("mimalloc", true);
    let _alone = alone();
    check("mimalloc, LTO", &mut Command::new(&program), Seen::Exactly);
}

/// A release build without an allocator of its own.
#[test]
fn no_crate() {
    let program = build("", false);
    let _alone = alone();
    check("Rust's default", &mut Command::new(&program), Seen::Exactly);
    let stripped = program.with_extension("stripped");
    strip("-s", &program, &stripped);
    check("Rust's default, stripped", &mut Command::new(stripped), Seen::Exactly);
}
