//! The crates of a release, and `cargo install memleak` from them: in an empty folder, where cargo
//! knows of nothing but a folder with what a registry would have.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{self, Command},
};

use anyhow::{Context, Result};
use serde_json::json;
use xtask::run;

use super::release::{self, Release};
use crate::sources;

/// The crates of a release, those first that others depend on.
const CRATES: [&str; 2] = ["memleak-common", "memleak"];

/// What was installed, until it is dropped. It is not below `target`: nothing of the workspace may
/// be found from where it was built.
pub(super) struct Installed {
    folder: PathBuf,
}

impl Installed {
    /// Makes the crates and installs the program from them.
    pub(super) fn new(release: &Release) -> Result<Self> {
        let folder = std::env::temp_dir().join(format!("memleak-crates-{}", process::id()));
        fs::create_dir(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
        let installed = Self { folder };
        let (registry, empty) = (installed.folder.join("registry"), installed.folder.join("empty"));
        fs::create_dir(&empty)?;
        make(release, &registry)?;
        let mut install = run::cargo();
        // The lock file in the crate counts, with the sum of the other crate.
        install.current_dir(&empty).args([
            "install",
            "memleak",
            "--locked",
            "--offline",
            "--version",
            &release.version,
        ]);
        install.arg("--root").arg(&installed.folder);
        let settings = [
            r#"source.crates-io.replace-with="crates""#.to_owned(),
            format!("source.crates.directory={:?}", registry.display().to_string()),
        ];
        install.args(settings.iter().flat_map(|setting| ["--config", setting]));
        run::run(&mut install)?;
        Ok(installed)
    }

    /// The program.
    pub(super) fn program(&self) -> PathBuf {
        self.folder.join("bin/memleak")
    }
}

impl Drop for Installed {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.folder) {
            eprintln!("note: cannot remove {}: {error}", self.folder.display());
        }
    }
}

/// Packs the crates and unpacks them into a folder beside all crates that they need.
fn make(release: &Release, registry: &Path) -> Result<()> {
    // They are built from there: no need to have cargo try it.
    let mut package = run::cargo();
    package.args(["package", "--locked", "--allow-dirty", "--no-verify", "--target-dir"]);
    let packed = run::root().join("target/crates");
    run::run(package.arg(&packed).args(CRATES.iter().flat_map(|name| ["--package", name])))?;
    let mut vendor = run::cargo();
    vendor.args(["vendor", "--locked", "--quiet", "--versioned-dirs"]).arg(registry);
    // It says how to have cargo use the folder.
    run::output(&mut vendor)?;
    for name in CRATES {
        let name = format!("{name}-{}", release.version);
        let file = packed.join("package").join(&name).with_added_extension("crate");
        run::run(Command::new("tar").arg("-xzf").arg(&file).arg("-C").arg(registry))?;
        let sums = json!({ "files": {}, "package": sources::sum(&file)? });
        release::write(&registry.join(name).join(".cargo-checksum.json"), sums.to_string())?;
    }
    Ok(())
}
