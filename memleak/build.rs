//! Packs the BPF programs of the machine that the program is built for: a sixth of their bytes go
//! into it.

use std::{env, error::Error, fs, io::Write as _, path::Path};

use flate2::{Compression, write::GzEncoder};

fn main() -> Result<(), Box<dyn Error>> {
    let machine = env::var("CARGO_CFG_TARGET_ARCH")?;
    let path = format!("ebpf/memleak-{machine}.bpf.o");
    println!("cargo::rerun-if-changed={path}");
    println!("cargo::rerun-if-changed=build.rs");
    let object =
        fs::read(&path).map_err(|error| format!("{path}: {error}; cargo xtask build-ebpf makes it"))?;
    let mut packer = GzEncoder::new(Vec::new(), Compression::best());
    packer.write_all(&object)?;
    fs::write(Path::new(&env::var("OUT_DIR")?).join("memleak.bpf.o.gz"), packer.finish()?)?;
    Ok(())
}
