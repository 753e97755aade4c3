//! The initramfs: busybox, the modules that a disk needs, and a script that mounts the disks and
//! hands over.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, Result, bail, ensure};

use super::kernels::Kernel;

/// What a guest must have loaded before it sees a disk. Cloud kernels have ext4 built in.
const WANTED: [&str; 2] = ["virtio_pci", "virtio_blk"];

/// An archive in the format "newc" (Linux's
/// Documentation/driver-api/early-userspace/buffer-format.rst).
#[derive(Default)]
struct Archive {
    bytes: Vec<u8>,
    entries: u32,
}

impl Archive {
    fn folder(&mut self, name: &str) {
        self.add(name, 0o040_755, &[]);
    }

    fn program(&mut self, name: &str, content: &[u8]) {
        self.add(name, 0o100_755, content);
    }

    fn add(&mut self, name: &str, mode: u32, content: &[u8]) {
        self.entries += 1;
        let (links, size, length) = (1, content.len() as u32, name.len() as u32 + 1);
        // inode, mode, uid, gid, links, mtime, size, device and special device (two numbers each),
        // name, checksum
        let fields = [self.entries, mode, 0, 0, links, 0, size, 0, 0, 0, 0, length, 0];
        self.bytes.extend(b"070701");
        for field in fields {
            self.bytes.extend(format!("{field:08x}").bytes());
        }
        self.bytes.extend(name.bytes().chain([0]));
        self.pad();
        self.bytes.extend(content);
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }

    fn finish(mut self) -> Vec<u8> {
        self.add("TRAILER!!!", 0, &[]);
        self.bytes
    }
}

/// The whole initramfs for a kernel. `script` is what its process 1 does, in busybox's shell, when
/// the modules are in.
pub(super) fn build(kernel: &Kernel, busybox: &Path, script: &str) -> Result<Vec<u8>> {
    let mut archive = Archive::default();
    for folder in ["bin", "dev", "proc", "sys", "root", "modules"] {
        archive.folder(folder);
    }
    archive.program("bin/busybox", &read(busybox)?);
    let mut init = "#!/bin/busybox sh\n/bin/busybox --install -s /bin\nexport PATH=/bin\n".to_owned();
    for (number, module) in modules(kernel)?.iter().enumerate() {
        let name = format!("modules/{number}.ko");
        archive.program(&name, &decompressed(module)?);
        init += &format!("insmod /{name} || echo 'cannot load {}'\n", module.display());
    }
    init += script;
    archive.program("init", init.as_bytes());
    Ok(archive.finish())
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("cannot read {}", path.display()))
}

/// The files of the wanted modules and of those they need, in the order to load them in.
fn modules(kernel: &Kernel) -> Result<Vec<PathBuf>> {
    let Some(folder) = &kernel.modules else { return Ok(Vec::new()) };
    let dependencies = String::from_utf8_lossy(&read(&folder.join("modules.dep"))?).into_owned();
    let builtin = String::from_utf8_lossy(&read(&folder.join("modules.builtin"))?).into_owned();
    let order = load_order(&dependencies, &builtin, &WANTED)?;
    Ok(order.into_iter().map(|module| folder.join(module)).collect())
}

/// Paths below the modules' folder, as modules.dep has them: a module's line names all that it
/// needs, the last first.
fn load_order<'a>(dependencies: &'a str, builtin: &str, wanted: &[&str]) -> Result<Vec<&'a str>> {
    let name = |path: &str| {
        let file = path.rsplit('/').next().unwrap_or(path);
        file.split('.').next().unwrap_or(file).replace('-', "_")
    };
    let lines: BTreeMap<String, (&str, &str)> = dependencies
        .lines()
        .filter_map(|line| line.split_once(':'))
        .map(|line| (name(line.0), line))
        .collect();
    let mut order = Vec::new();
    for module in wanted {
        let Some(&(path, needs)) = lines.get(*module) else {
            ensure!(builtin.lines().any(|line| name(line) == *module), "the kernel has no module {module}");
            continue;
        };
        for path in needs.split_whitespace().rev().chain([path]) {
            if !order.contains(&path) {
                order.push(path);
            }
        }
    }
    Ok(order)
}

/// A module as the kernel takes it, which busybox does not decompress for it.
fn decompressed(module: &Path) -> Result<Vec<u8>> {
    let program = match module.extension().and_then(|extension| extension.to_str()) {
        Some("xz") => "xz",
        Some("zst") => "zstd",
        Some("ko") => return read(module),
        _ => bail!("{}: unknown compression", module.display()),
    };
    let output = Command::new(program)
        .args(["--decompress", "--stdout"])
        .arg(module)
        .stderr(Stdio::inherit())
        .output()
        .with_context(|| format!("cannot start {program}"))?;
    ensure!(output.status.success(), "{program} cannot decompress {}", module.display());
    Ok(output.stdout)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn archive_is_as_the_format_says() {
        let mut archive = Archive::default();
        archive.folder("dev");
        archive.program("init", b"hello");
        let bytes = archive.finish();
        let text = String::from_utf8_lossy(&bytes);
        let second = "07070100000002000081ed000000000000000000000001000000000000000500000000000000000000000000000000000000050\
                      0000000init\0\0hello\0\0\x00070701";
        assert_eq!(bytes.len() % 4, 0);
        assert!(text.contains(&second.replace(' ', "")), "{text}");
        assert!(text.ends_with("TRAILER!!!\0\0\0\0"), "{text}");
    }

    #[test]
    fn modules_are_loaded_after_what_they_need() -> Result<()> {
        let dependencies = "kernel/virtio/virtio.ko:\nkernel/virtio/virtio_ring.ko: kernel/virtio/virtio.ko\n\
             kernel/virtio/virtio_pci.ko.xz: kernel/virtio/virtio_ring.ko kernel/virtio/virtio.ko\n\
             kernel/block/virtio-blk.ko: kernel/virtio/virtio_ring.ko kernel/virtio/virtio.ko\n";
        let order = load_order(dependencies, "", &WANTED)?;
        let expected = [
            "kernel/virtio/virtio.ko",
            "kernel/virtio/virtio_ring.ko",
            "kernel/virtio/virtio_pci.ko.xz",
            "kernel/block/virtio-blk.ko",
        ];
        assert_eq!(order, expected);
        assert!(load_order(dependencies, "", &["ext4"]).is_err());
        assert!(load_order(dependencies, "kernel/fs/ext4/ext4.ko\n", &["ext4"])?.is_empty());
        Ok(())
    }
}
