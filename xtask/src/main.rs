//! Builds, tests, demonstrates and measures memleak: `cargo xtask --help`.
fn main() {}
