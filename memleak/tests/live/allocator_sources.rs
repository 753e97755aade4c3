//! Allocators that no package has as a static library, compiled from the sources in their crates:
//! linked in, static, preloaded, stripped, and optimized together with the program.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    process::Command,
    sync::{LazyLock, Mutex, PoisonError},
};

use crate::{
    allocator_forms::{Seen, check},
    guard::alone,
    programs::{Link, build, scratch_dir, text},
    rust_allocators::{PROJECT, cargo},
};

/// How an allocator that replaces malloc is compiled.
struct Recipe {
    name: &'static str,
    /// Of `tests/programs/rust_allocators`.
    package: &'static str,
    /// Folder of its sources, and that of its headers.
    sources: &'static str,
    headers: &'static str,
    files: &'static [&'static str],
    flags: &'static [&'static str],
}

const RECIPES: [Recipe; 4] = [
    Recipe {
        name: "mimalloc",
        package: "libmimalloc-sys",
        sources: "c_src/mimalloc/v2/src",
        headers: "c_src/mimalloc/v2/include",
        files: &["static.c"],
        flags: &["-DMI_MALLOC_OVERRIDE=1"],
    },
    Recipe {
        name: "rpmalloc",
        package: "rpmalloc-sys",
        sources: "rpmalloc/rpmalloc",
        headers: "rpmalloc/rpmalloc",
        files: &["rpmalloc.c"],
        flags: &["-std=gnu11", "-D_GNU_SOURCE", "-DENABLE_OVERRIDE=1", "-DENABLE_PRELOAD=1"],
    },
    Recipe {
        name: "snmalloc",
        package: "snmalloc-sys",
        sources: "upstream/src/snmalloc/override",
        headers: "upstream/src",
        files: &["malloc.cc", "new.cc"],
        flags: &["-std=c++20", "-mcx16", "-DSNMALLOC_USE_WAIT_ON_ADDRESS=1"],
    },
    Recipe {
        name: "scudo",
        package: "scudo-sys",
        sources: "scudo-standalone",
        headers: "scudo-standalone/include",
        files: &[
            "checksum.cpp",
            "common.cpp",
            "crc32_hw.cpp",
            "flags.cpp",
            "flags_parser.cpp",
            "linux.cpp",
            "release.cpp",
            "report.cpp",
            "string_utils.cpp",
            "wrappers_c.cpp",
            "wrappers_cpp.cpp",
        ],
        flags: &["-std=c++17", "-fno-exceptions", "-fno-rtti", "-msse4.2"],
    },
];

/// Where cargo has each package's sources.
fn folder_of(package: &str) -> PathBuf {
    static FOLDERS: LazyLock<HashMap<String, PathBuf>> = LazyLock::new(|| {
        let mut command = cargo();
        command.args(["metadata", "--format-version", "1", "--locked", "--manifest-path"]);
        command.arg(Path::new(PROJECT).join("Cargo.toml"));
        command.args(["--features", "mimalloc,rpmalloc,scudo,snmalloc"]);
        let output = command.output().expect("cargo");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let metadata: serde_json::Value = serde_json::from_slice(&output.stdout).expect("cargo's metadata");
        let packages = metadata["packages"].as_array().expect("packages").iter();
        let folder = |package: &serde_json::Value| {
            let manifest = PathBuf::from(package["manifest_path"].as_str()?);
            Some((package["name"].as_str()?.to_owned(), manifest.parent()?.to_owned()))
        };
        packages.filter_map(folder).collect()
    });
    FOLDERS.get(package).unwrap_or_else(|| panic!("{package} is not among the crates")).clone()
}

/// Whose optimizer is to see program and allocator as a whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Optimizer {
    Nobodys,
    Gccs,
    /// LLVM's: `thin` or `full`.
    Llvms(&'static str),
}

impl Optimizer {
    /// The compilers of C and C++.
    fn compilers(self) -> [&'static str; 2] {
        match self {
            Self::Llvms(_) => ["clang", "clang++"],
            Self::Nobodys | Self::Gccs => ["gcc", "g++"],
        }
    }

    fn flags(self) -> Vec<String> {
        match self {
            Self::Nobodys => Vec::new(),
            Self::Gccs => vec!["-flto".to_owned()],
            Self::Llvms(how) => vec![format!("-flto={how}")],
        }
    }
}

/// Compiles the allocator, or what a linker's optimizer is to see. Done once for each version.
fn objects_of(recipe: &Recipe, optimizer: Optimizer) -> Vec<PathBuf> {
    static COMPILING: Mutex<()> = Mutex::new(());
    let _compiling = COMPILING.lock().unwrap_or_else(PoisonError::into_inner);
    let folder = folder_of(recipe.package);
    let version = folder.file_name().and_then(|name| name.to_str()).expect("a crate's folder");
    let objects = scratch_dir().join(format!("{version}{}", optimizer.flags().concat()));
    std::fs::create_dir_all(&objects).expect("a folder for objects");
    let compile = |file: &&str| {
        let object = objects.join(file).with_extension("o");
        if object.exists() {
            return object;
        }
        let unfinished = object.with_extension(std::process::id().to_string());
        let [c, cc] = optimizer.compilers();
        let mut command = Command::new(if file.ends_with(".c") { c } else { cc });
        // As they are built to be preloaded.
        command.args(["-w", "-g1", "-O2", "-fPIC", "-DNDEBUG", "-c"]).args(recipe.flags);
        command.args(optimizer.flags());
        command.arg("-I").arg(folder.join(recipe.headers)).arg(folder.join(recipe.sources).join(file));
        let output = command.arg("-o").arg(&unfinished).output().expect("a compiler");
        assert!(output.status.success(), "{file}: {}", String::from_utf8_lossy(&output.stderr));
        std::fs::rename(&unfinished, &object).expect("naming the object");
        object
    };
    recipe.files.iter().map(compile).collect()
}

fn program(recipe: &Recipe, link: Link, optimizer: Optimizer, flags: &[&str]) -> PathBuf {
    let objects = objects_of(recipe, optimizer);
    let objects: Vec<&str> = objects.iter().map(|object| text(object)).collect();
    let of_optimizer = optimizer.flags();
    let mut optimize: Vec<&str> = of_optimizer.iter().map(String::as_str).collect();
    if !optimize.is_empty() {
        optimize.push("-O2");
    }
    build("allocator_forms.cc", link, &[&optimize[..], &objects, flags].concat())
}

fn every_form(name: &str) {
    let _alone = alone();
    let recipe = RECIPES.iter().find(|recipe| recipe.name == name).expect("a recipe");
    let hidden = format!("contains {name}, but is stripped: calls of its functions");
    let inlined = format!("optimized as a whole when it was linked (-flto), with {name} in it");
    let (no, lto) = (Optimizer::Nobodys, Optimizer::Gccs);
    for (form, link, optimizer, flags, expected) in [
        ("linked in", Link::Dynamic, no, &[][..], Seen::Exactly),
        ("static", Link::Static, no, &[], Seen::Exactly),
        ("linked in, stripped", Link::Dynamic, no, &["-s"], Seen::InPart(&hidden)),
        ("linked in, LTO", Link::Dynamic, lto, &[], Seen::InPart(&inlined)),
        ("static, LTO", Link::Static, lto, &[], Seen::InPart(&inlined)),
        ("linked in, LTO, stripped", Link::Dynamic, lto, &["-s"], Seen::InPart(&hidden)),
    ] {
        let program = program(recipe, link, optimizer, flags);
        check(&format!("{name}, {form}"), &mut Command::new(program), expected);
    }
    let objects = objects_of(recipe, no);
    let library = scratch_dir().join(format!("lib{name}.so"));
    let linked =
        Command::new("g++").args(["-shared", "-o"]).arg(&library).args(&objects).status().expect("g++");
    assert!(linked.success(), "{linked}");
    let program = build("allocator_forms.cc", Link::Dynamic, &[]);
    let mut command = Command::new(program);
    check(&format!("{name}, preloaded"), command.env("LD_PRELOAD", &library), Seen::Exactly);
}

/// Those in C: what LLVM's optimizers leave of names is the same for all.
#[test]
fn llvms_optimizers_are_warned_of() {
    let _alone = alone();
    for recipe in RECIPES.iter().filter(|recipe| recipe.files.iter().all(|file| file.ends_with(".c"))) {
        let inlined = format!("optimized as a whole when it was linked (-flto), with {} in it", recipe.name);
        let plain = program(recipe, Link::Lld, Optimizer::Nobodys, &[]);
        check(&format!("{}, by lld", recipe.name), &mut Command::new(plain), Seen::Exactly);
        for how in ["thin", "full"] {
            let program = program(recipe, Link::Lld, Optimizer::Llvms(how), &[]);
            let form = format!("{}, LLVM's {how} LTO", recipe.name);
            check(&form, &mut Command::new(program), Seen::InPart(&inlined));
        }
    }
}

#[test]
fn every_form_of_mimalloc() {
    every_form("mimalloc");
}

#[test]
fn every_form_of_rpmalloc() {
    every_form("rpmalloc");
}

#[test]
fn every_form_of_snmalloc() {
    every_form("snmalloc");
}

#[test]
fn every_form_of_scudo() {
    every_form("scudo");
}
