//! `cargo xtask docs`: the man page and shells' completions, written as the built tool prints them.
//! A test compares them (`memleak/tests/docs.rs`), so that they do not drift.

use std::{fs, process::Stdio};

use anyhow::{Context, Result, bail};
use xtask::run;

/// What is written where.
const FILES: [(&[&str], &str); 4] = [
    (&["--man"], "docs/memleak.1"),
    (&["--completions", "bash"], "docs/completions/memleak.bash"),
    (&["--completions", "zsh"], "docs/completions/_memleak"),
    (&["--completions", "fish"], "docs/completions/memleak.fish"),
];

/// Writes all of them.
pub(crate) fn run() -> Result<()> {
    for (arguments, file) in FILES {
        let mut cargo = run::cargo();
        cargo.args(["run", "--quiet", "--package", "memleak", "--"]).args(arguments).stderr(Stdio::inherit());
        let output = cargo.output().with_context(|| format!("cannot start `{}`", run::shown(&cargo)))?;
        if !output.status.success() {
            bail!("`{}` failed: {}", run::shown(&cargo), output.status);
        }
        let path = run::root().join(file);
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
        }
        fs::write(&path, output.stdout).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}
