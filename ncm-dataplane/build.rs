//! Builds the eBPF object, or takes the one that `NCM_EBPF_OBJECT` names, and tells the crate where it is
//! (`env!("NCM_EBPF_OBJECT")`).

use std::path::PathBuf;

/// Names a ready-made object (for packagers), so that nothing is built.
const OVERRIDE: &str = "NCM_EBPF_OBJECT";

fn main() {
    println!("cargo::rerun-if-env-changed={OVERRIDE}");
    println!("cargo::rerun-if-env-changed=XDG_CACHE_HOME");
    let object = match std::env::var_os(OVERRIDE) {
        Some(path) if !path.is_empty() => PathBuf::from(path),
        _ => {
            for source in xtask::object::SOURCES {
                println!("cargo::rerun-if-changed={}", xtask::workspace::root().join(source).display());
            }
            let other = std::env::var_os("CARGO_FEATURE_LAYOUT_TEST").is_some();
            match xtask::object::build(if other { &["layout-test"] } else { &[] }) {
                Ok(object) => object,
                Err(error) => {
                    for line in format!("{error:#}").lines() {
                        println!("cargo::error={line}");
                    }
                    return;
                }
            }
        }
    };
    println!("cargo::rerun-if-changed={}", object.display());
    println!("cargo::rustc-env={OVERRIDE}={}", object.display());
}
