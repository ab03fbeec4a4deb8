//! bpf-linker, which links the eBPF object: one pinned version in the cache, installed once per machine.

use std::{
    fs::{self, File},
    path::PathBuf,
    process::{Command, Stdio},
};

use anyhow::{Context, Result, bail};

use crate::{object, workspace};

/// The version in use. Later releases want a system LLVM; this one borrows the compiler's own.
pub const VERSION: &str = "0.10.4";

fn directory() -> PathBuf {
    workspace::cache().join(format!("bpf-linker-{VERSION}"))
}

/// The linker, if the cache has it.
pub fn installed() -> Option<PathBuf> {
    let path = directory().join("bin/bpf-linker");
    path.is_file().then_some(path)
}

/// Installs the linker into the cache (about three minutes on two cores) unless it is there.
pub fn install() -> Result<PathBuf> {
    if let Some(path) = installed() {
        return Ok(path);
    }
    let directory = directory();
    fs::create_dir_all(&directory).with_context(|| format!("cannot create {}", directory.display()))?;
    let lock = File::create(directory.join(".lock")).context("cannot create the linker's lock file")?;
    lock.lock().context("cannot lock the linker's cache")?;
    if let Some(path) = installed() {
        return Ok(path);
    }
    eprintln!("installing bpf-linker {VERSION} into {} (once, about three minutes)", directory.display());
    let mut cargo = Command::new("cargo");
    object::clean_environment(&mut cargo);
    let status = cargo
        .args(["install", "bpf-linker", "--version", VERSION, "--locked", "--force", "--root"])
        .arg(&directory)
        // Its own directory: inside a build of this workspace the shared one is locked.
        .arg("--target-dir")
        .arg(directory.join("build"))
        .stdin(Stdio::null())
        .status()
        .context("cannot run cargo")?;
    if !status.success() {
        bail!("`cargo install bpf-linker --version {VERSION} --locked` failed; is crates.io reachable?");
    }
    // Half a gigabyte that nothing needs any more.
    drop(fs::remove_dir_all(directory.join("build")));
    installed().context("cargo installed bpf-linker, but not where it was told to")
}
