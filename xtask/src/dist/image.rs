//! The container image: the static program alone, in the layout of the OCI's image specification
//! 1.0, as one tar.

use anyhow::Result;
use serde_json::{Value, json};

use super::{
    archive::{self, Entry},
    release::{self, Release, parts},
};
use crate::sources;

/// Where the program is in the image.
const PROGRAM: &str = "usr/bin/memleak";
/// Folders of the image, with their permission bits. Files of reports may want the last.
const FOLDERS: [(&str, u32); 6] = [
    ("usr/", 0o755),
    ("usr/bin/", 0o755),
    ("usr/share/", 0o755),
    ("usr/share/doc/", 0o755),
    (DOCUMENTS, 0o755),
    ("tmp/", 0o1777),
];
const DOCUMENTS: &str = "usr/share/doc/memleak/";

/// Something that is found by the sum of its bytes.
struct Blob {
    entry: Entry,
    digest: String,
    size: usize,
}

impl Blob {
    fn new(bytes: Vec<u8>) -> Self {
        let (sum, size) = (sources::sum_of(&bytes), bytes.len());
        Self {
            entry: Entry::file(format!("blobs/sha256/{sum}"), bytes),
            digest: format!("sha256:{sum}"),
            size,
        }
    }

    fn descriptor(&self, kind: &str) -> Value {
        let media = format!("application/vnd.oci.image.{kind}");
        json!({ "mediaType": media, "digest": self.digest, "size": self.size })
    }
}

/// Writes the image.
pub(super) fn write(release: &Release) -> Result<()> {
    let unpacked = archive::tar(&files()?, release.time)?;
    let layer = Blob::new(archive::gzip(&unpacked)?);
    let config = json!({
        "architecture": release.container_machine(),
        "os": "linux",
        "config": {
            // For what follows `--` in `kubectl debug`, which replaces the entry point.
            "Env": ["PATH=/usr/bin"],
            "Entrypoint": [format!("/{PROGRAM}")],
            "WorkingDir": "/",
            "Labels": {
                "org.opencontainers.image.title": "memleak",
                "org.opencontainers.image.version": release.version,
                "org.opencontainers.image.licenses": "MIT OR Apache-2.0",
            },
        },
        "rootfs": { "type": "layers", "diff_ids": [format!("sha256:{}", sources::sum_of(&unpacked))] },
        "history": [{ "created_by": "cargo xtask dist" }],
    });
    let config = Blob::new(config.to_string().into_bytes());
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": config.descriptor("config.v1+json"),
        "layers": [layer.descriptor("layer.v1.tar+gzip")],
    });
    let manifest = Blob::new(manifest.to_string().into_bytes());
    let mut described = manifest.descriptor("manifest.v1+json");
    described["platform"] = json!({ "architecture": release.container_machine(), "os": "linux" });
    described["annotations"] = json!({
        "org.opencontainers.image.ref.name": release.version,
        // What docker and containerd call an image that they load.
        "io.containerd.image.name": format!("localhost/memleak:{}", release.version),
    });
    let index = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": [described],
    });
    let mut entries = vec![
        Entry::file("oci-layout", json!({ "imageLayoutVersion": "1.0.0" }).to_string()),
        Entry::file("index.json", index.to_string()),
        Entry::folder("blobs/", 0o755),
        Entry::folder("blobs/sha256/", 0o755),
    ];
    entries.extend([manifest, config, layer].map(|blob| blob.entry));
    release::write(&release.image(), archive::tar(&entries, release.time)?)
}

/// What a container of it finds in its file system.
fn files() -> Result<Vec<Entry>> {
    let mut entries: Vec<Entry> = FOLDERS.iter().map(|(path, mode)| Entry::folder(*path, *mode)).collect();
    entries.push(Entry::program(PROGRAM, release::read(&parts().join("memleak"))?));
    for name in release::LICENCES {
        entries.push(Entry::file(format!("{DOCUMENTS}{name}"), release::read(&parts().join(name))?));
    }
    Ok(entries)
}
