//! Compiles the fixtures beside this file.

#![allow(dead_code, reason = "each test program uses a part")]

use std::{
    path::{Path, PathBuf},
    process::Command,
};

/// Runs a program and gives its standard output; fails with its standard error, or with what to
/// install.
pub(crate) fn run(command: &mut Command) -> String {
    let name = command.get_program().to_string_lossy().into_owned();
    let output = command.output().unwrap_or_else(|error| {
        panic!(
            "{name}: {error}; these tests want binutils, g++, clang, musl-tools, gdb and python3 installed"
        )
    });
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?} failed: {errors}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// The path of a fixture's source.
pub(crate) fn source(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/unwind_fixtures").join(name)
}

/// A path for something built, of this test's name alone.
pub(crate) fn built(name: &str) -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).join(name)
}

/// Compiles `source_name` with `compiler` and `flags` (split at spaces) into `name`.
pub(crate) fn compile(name: &str, compiler: &str, source_name: &str, flags: &str) -> PathBuf {
    let output = built(name);
    run(Command::new(compiler)
        .arg(source(source_name))
        .args(flags.split_whitespace())
        .arg("-o")
        .arg(&output));
    output
}

/// A shared object for aarch64: clang compiles for it anywhere, and Rust's own linker links for it.
pub(crate) fn compile_aarch64(name: &str, flags: &str) -> PathBuf {
    let object = compile(
        &format!("{name}.o"),
        "clang",
        "plain.c",
        &format!("--target=aarch64-linux-gnu -fPIC -c {flags}"),
    );
    let output = built(name);
    let rustc = std::env::var("RUSTC").unwrap_or_else(|_| "rustc".into());
    let sysroot = run(Command::new(&rustc).args(["--print", "sysroot"]));
    let host = run(Command::new(&rustc).arg("-vV"));
    let host = host.lines().find_map(|line| line.strip_prefix("host: ")).expect("rustc names its host");
    let linker = Path::new(sysroot.trim()).join("lib/rustlib").join(host).join("bin/rust-lld");
    run(Command::new(linker).args(["-flavor", "gnu", "-shared", "-o"]).arg(&output).arg(object));
    output
}

/// Where a shared library of the system lies, by the name that a C compiler links.
pub(crate) fn library(name: &str) -> PathBuf {
    let path = run(Command::new("gcc").arg(format!("-print-file-name={name}")));
    PathBuf::from(path.trim()).canonicalize().expect("gcc names a library that is there")
}
