//! What is in `contrib/`: it reads, and asks for nothing that is not there.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

fn contrib(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../contrib").join(file)
}

fn text(file: &str) -> String {
    fs::read_to_string(contrib(file)).unwrap_or_else(|error| panic!("{file}: {error}"))
}

/// Metrics' names in a text.
fn metrics(text: &str) -> impl Iterator<Item = &str> {
    let is_part = |c: char| c.is_ascii_alphanumeric() || c == '_';
    text.split(move |c: char| !is_part(c)).filter(|word| word.starts_with("memleak_"))
}

#[test]
fn alerts_and_dashboard_ask_for_metrics_that_are_described() {
    let described = fs::read_to_string(contrib("../docs/fleet.md")).expect("the page");
    for file in ["prometheus/alerts.yaml", "prometheus/alerts-test.yaml", "grafana/memleak.json"] {
        let text = text(file);
        assert!(metrics(&text).count() > 4, "{file}");
        for metric in metrics(&text) {
            assert!(described.contains(&format!("`{metric}`")), "{file}: {metric}");
        }
    }
    let dashboard: serde_json::Value = serde_json::from_str(&text("grafana/memleak.json")).expect("JSON");
    assert!(dashboard["panels"].as_array().is_some_and(|panels| panels.len() > 5));
}

#[test]
fn units_ask_for_the_same_capabilities() {
    let systemd = text("systemd/memleak@.service");
    let line = systemd.lines().find_map(|line| line.strip_prefix("CapabilityBoundingSet=")).expect("a line");
    let systemd: Vec<&str> = line.split(' ').map(|one| one.trim_start_matches("CAP_")).collect();
    let kubernetes = text("kubernetes/daemonset.yaml");
    let line = kubernetes.lines().find_map(|line| line.trim().strip_prefix("add: [")).expect("a line");
    let kubernetes: Vec<&str> = line.trim_end_matches(']').split(", ").collect();
    assert_eq!(systemd, kubernetes);
}

/// systemd knows all that our unit says, and has nothing to say itself.
#[test]
fn systemd_reads_our_unit() {
    let folder = tempfile::tempdir().expect("a folder");
    let unit = text("systemd/memleak@.service").replace("/usr/bin/memleak", env!("CARGO_BIN_EXE_memleak"));
    let verify = |unit: &str| {
        let file = folder.path().join("memleak@nginx.service");
        fs::write(&file, unit).expect("written");
        let output = Command::new("systemd-analyze").args(["verify", "--man=no"]).arg(&file).output().ok()?;
        Some((
            output.status.success(),
            String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned(),
        ))
    };
    let Some(said) = verify(&unit) else {
        println!("systemd-analyze is not here: our unit was not read");
        return;
    };
    assert_eq!(said, (true, String::new()));
    // It would say something.
    let wrong = verify(&unit.replace("ProtectSystem=", "ProtectSytem=")).expect("systemd-analyze");
    assert!(wrong.1.contains("ProtectSytem"), "{wrong:?}");
}
