//! Other programs that account for a heap, to compare with. They start the program that they look
//! into, where memleak and bcc's memleak look into one that runs.

use std::{ffi::OsString, fs, process::Command};

use anyhow::{Context, Result};
use xtask::{
    packages::{self, Package},
    run,
};

use crate::{
    processes::{Program, Target},
    results::Variant,
};

/// The peers, and what bcc's memleak needs.
const PACKAGES: [Package; 4] = [
    Package { names: &["heaptrack"], purpose: "a peer to compare with" },
    Package { names: &["valgrind"], purpose: "two peers to compare with: memcheck and DHAT" },
    Package { names: &["bpfcc-tools"], purpose: "a peer to compare with: bcc's memleak" },
    Package {
        names: &["linux-headers-amd64", "linux-headers-generic"],
        purpose: "what bcc's memleak compiles its programs against",
    },
];

/// Frames that valgrind keeps of a stack, where it would keep 12: as many as the deepest has.
const CALLERS: &str = "--num-callers=64";

/// Sees to it that the peers are there. One that is missing all the same is left out, and its row
/// says why.
pub(crate) fn ensure() {
    // One by one: that one of them is not to be had is no reason to leave out the others.
    for package in PACKAGES {
        if let Err(error) = packages::ensure(&[package]) {
            eprintln!("bench: {error:#}");
        }
    }
}

/// The words that begin a command line, for one of them to look into the program that follows.
pub(crate) fn words(peer: Variant) -> Result<Vec<OsString>> {
    let (name, words) = match peer {
        Variant::Memcheck => ("valgrind", vec!["-q".into(), "--tool=memcheck".into(), CALLERS.into()]),
        Variant::Dhat => (
            "valgrind",
            vec!["-q".into(), "--tool=dhat".into(), CALLERS.into(), "--dhat-out-file=/dev/null".into()],
        ),
        _ => {
            let folder = run::root().join("target/bench");
            fs::create_dir_all(&folder)?;
            let help = run::output(Command::new("heaptrack").arg("--help")).unwrap_or_default();
            // Where it is known: else it would show what it has recorded in a window, if it can.
            let own = help.contains("--record-only").then(|| "--record-only".into());
            let output = ["-o".into(), folder.join("heaptrack").into()];
            ("heaptrack", own.into_iter().chain(output).collect())
        }
    };
    let program = run::find_program(name).with_context(|| format!("{name} is not installed"))?;
    Ok(std::iter::once(program.into()).chain(words).collect())
}

/// Starts a program under one of them.
pub(crate) fn start(peer: Variant, program: &Program, arguments: &[&str]) -> Result<Target> {
    program.start_under(&words(peer)?, arguments)
}
