//! Compiles the target programs of `tests/programs`, once for each way they are wanted.

use std::{
    collections::hash_map::DefaultHasher,
    fs,
    hash::{Hash as _, Hasher as _},
    path::{Path, PathBuf},
    process::Command,
    sync::{Mutex, PoisonError},
};

use crate::machine::IS_ARM;

/// How a program is linked.
#[derive(Clone, Copy, Debug, Hash)]
pub(crate) enum Link {
    /// Against glibc's shared library.
    Dynamic,
    /// The same, by clang and lld.
    Lld,
    /// With glibc in it.
    Static,
    /// With glibc in it, loaded anywhere.
    StaticPie,
    /// With musl in it.
    Musl,
    /// Against musl's shared library.
    MuslShared,
    /// As a shared library.
    Library,
    /// Without any libc.
    Bare,
}

impl Link {
    fn flags(self) -> &'static [&'static str] {
        match self {
            Self::Dynamic => &["-pthread"],
            Self::Lld => &["-pthread", "-fuse-ld=lld"],
            Self::Static => &["-pthread", "-static"],
            // What gcc's library has for arm64's atomics asks glibc what the processor can do.
            Self::MuslShared if IS_ARM => &["-pthread", "-mno-outline-atomics"],
            Self::Musl if IS_ARM => &["-pthread", "-static", "-mno-outline-atomics"],
            Self::MuslShared => &["-pthread"],
            Self::Musl => &["-pthread", "-static"],
            Self::StaticPie => &["-pthread", "-static-pie"],
            Self::Library => &["-shared", "-fPIC"],
            Self::Bare => &["-nostdlib", "-static"],
        }
    }
}

/// What all programs are built with: frame pointers and real calls, so that a stack names its site.
/// Later flags win.
const COMMON_FLAGS: &[&str] = &[
    "-g",
    "-O1",
    "-fno-omit-frame-pointer",
    "-fno-optimize-sibling-calls",
    "-fno-builtin",
    "-Wall",
    "-Wextra",
    "-Werror",
];

/// What redis-server is to be told: it keeps nothing on disk, and listens at `socket` alone.
pub(crate) fn redis_settings<'a>(folder: &'a Path, socket: &'a Path) -> [&'a str; 10] {
    let [folder, socket] = [folder, socket].map(text);
    ["--port", "0", "--unixsocket", socket, "--save", "", "--appendonly", "no", "--dir", folder]
}

/// A folder for what tests make, inside the build's own.
pub(crate) fn scratch_dir() -> PathBuf {
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join("live");
    fs::create_dir_all(&dir).expect("making the scratch folder");
    dir
}

/// Compiles `source` (a file of `tests/programs`) and returns the program's path. Built once for
/// the same sources and flags.
pub(crate) fn build(source: &str, link: Link, flags: &[&str]) -> PathBuf {
    static COMPILING: Mutex<()> = Mutex::new(());
    let _compiling = COMPILING.lock().unwrap_or_else(PoisonError::into_inner);
    let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/programs");
    let compiler = match (link, Path::new(source).extension().and_then(|e| e.to_str())) {
        (Link::Musl | Link::MuslShared, _) => "musl-gcc",
        (Link::Lld, Some("cc")) => "clang++",
        (Link::Lld, _) => "clang",
        (_, Some("cc")) => "g++",
        _ => "gcc",
    };
    let mut hasher = DefaultHasher::new();
    (compiler, link, flags, COMMON_FLAGS).hash(&mut hasher);
    for header in ["disturb.h", "ledger.h", "unusual.h", source] {
        fs::read(sources.join(header)).expect("reading a target program's source").hash(&mut hasher);
    }
    let stem = source.split('.').next().unwrap_or(source);
    let program = scratch_dir().join(format!("{stem}-{:016x}", hasher.finish()));
    if program.exists() {
        return program;
    }
    let unfinished = program.with_extension(std::process::id().to_string());
    let output = Command::new(compiler)
        .args(COMMON_FLAGS)
        .arg(sources.join(source))
        .arg("-o")
        .arg(&unfinished)
        .args(link.flags())
        .args(flags)
        .output()
        .unwrap_or_else(|error| panic!("{compiler}: {error}: is it installed?"));
    assert!(output.status.success(), "{compiler} {source}: {}", String::from_utf8_lossy(&output.stderr));
    fs::rename(&unfinished, &program).expect("naming the built program");
    program
}

/// A path as an argument.
pub(crate) fn text(path: &Path) -> &str {
    path.to_str().expect("a path in UTF-8")
}
