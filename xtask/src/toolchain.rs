//! Finds a compiler for the eBPF target: one whose library source is at hand, as `core` is built for the target.
//!
//! In this order: a rustup nightly with rust-src; a rustup stable with rust-src; a distribution's compiler with its
//! source package. A source of another version than its compiler's does not build, so it does not count.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, Result, bail};

use crate::workspace;

/// A compiler that can build `core` for the eBPF target.
#[derive(Debug, Clone)]
pub struct Compiler {
    /// The compiler itself, not rustup's proxy.
    pub rustc: PathBuf,
    /// The cargo to run it with.
    pub cargo: PathBuf,
    /// The LLVM library it was linked with, which the linker borrows.
    pub llvm: PathBuf,
    /// Whether unstable options have to be unlocked.
    pub bootstrap: bool,
    /// All of `rustc -vV`, which tells two compilers apart.
    pub version: String,
    /// Where it came from, for the developer.
    pub origin: String,
}

impl Compiler {
    /// Whether the cargo is the one that came with the compiler.
    pub fn has_own_cargo(&self) -> bool {
        self.cargo.parent() == self.rustc.parent()
    }
}

/// Finds the first usable compiler; the error says why each one that was looked at does not do.
pub fn find() -> Result<Compiler> {
    let mut refused = Vec::new();
    for candidate in candidates() {
        match candidate.examine() {
            Ok(compiler) => return Ok(compiler),
            Err(reason) => refused.push(format!("  {}: {reason:#}", candidate.origin)),
        }
    }
    bail!("no Rust compiler with its library source for the eBPF target; looked at:\n{}", refused.join("\n"))
}

struct Candidate {
    origin: String,
    rustc: PathBuf,
    /// Its own cargo, if it comes with one.
    cargo: Option<PathBuf>,
}

fn candidates() -> Vec<Candidate> {
    let mut found: Vec<Candidate> = rustup_toolchains()
        .into_iter()
        .map(|(name, directory)| Candidate {
            origin: format!("rustup {name}"),
            rustc: directory.join("bin/rustc"),
            cargo: Some(directory.join("bin/cargo")),
        })
        .collect();
    found.push(Candidate {
        origin: "the distribution's compiler".into(),
        rustc: "/usr/bin/rustc".into(),
        cargo: None,
    });
    found
}

/// rustup's installed toolchains, nightlies first. Listing never downloads.
fn rustup_toolchains() -> Vec<(String, PathBuf)> {
    let Ok(output) = Command::new("rustup").args(["toolchain", "list", "-v"]).stdin(Stdio::null()).output()
    else {
        return Vec::new();
    };
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let mut toolchains: Vec<(String, PathBuf)> = Vec::new();
    for line in text.lines() {
        // "stable-x86_64-unknown-linux-gnu (active, default) /home/…/toolchains/stable-…"
        let Some(name) = line.split_whitespace().next() else { continue };
        let Some(start) = line.find(" /") else { continue };
        let directory = PathBuf::from(line[start..].trim());
        if !toolchains.iter().any(|(_, other)| *other == directory) {
            toolchains.push((name.to_owned(), directory));
        }
    }
    toolchains.sort_by_key(|(name, _)| !name.starts_with("nightly"));
    toolchains
}

impl Candidate {
    fn examine(&self) -> Result<Compiler> {
        if !self.rustc.is_file() {
            bail!("not installed");
        }
        let version = capture(&self.rustc, &["-vV"])?;
        let release = field(&version, "release: ")?;
        let wanted = minimum_version()?;
        if numbers(release) < numbers(&wanted) {
            bail!("{release} is older than this workspace's {wanted}");
        }
        let sysroot = PathBuf::from(capture(&self.rustc, &["--print", "sysroot"])?.trim());
        check_source(&sysroot.join("lib/rustlib/src/rust"), release)?;
        let llvm = find_llvm(&sysroot, field(&version, "LLVM version: ")?)?;
        let cargo = match &self.cargo {
            Some(own) if own.is_file() => own.clone(),
            _ => PathBuf::from(env::var_os("CARGO").unwrap_or_else(|| "cargo".into())),
        };
        let bootstrap = !release.contains("nightly");
        let origin = format!("{} ({release})", self.origin);
        Ok(Compiler { rustc: self.rustc.clone(), cargo, llvm, bootstrap, version, origin })
    }
}

fn check_source(source: &Path, release: &str) -> Result<()> {
    if !source.join("library/Cargo.lock").is_file() || !source.join("library/core/src/lib.rs").is_file() {
        bail!("its library source is not installed");
    }
    // rustup's component is always the compiler's own and has no such file; a distribution's source is a package
    // of its own, which may be of another version.
    if let Ok(text) = fs::read_to_string(source.join("src/version")) {
        let of_source = text.trim();
        if of_source != release.split('-').next().unwrap_or(release) {
            bail!("its library source is of version {of_source}, the compiler {release}");
        }
    }
    Ok(())
}

/// The LLVM library of a compiler: beside it (rustup) or among the system's libraries (a distribution).
fn find_llvm(sysroot: &Path, version: &str) -> Result<PathBuf> {
    let mut parts = version.split('.');
    let major = parts.next().unwrap_or(version);
    let minor = parts.next().unwrap_or("0");
    let multiarch = format!("{}-linux-gnu", env::consts::ARCH);
    let directories = [
        sysroot.join("lib"),
        sysroot.join("lib64"),
        sysroot.join("lib").join(multiarch),
        sysroot.join("lib").join(format!("llvm-{major}/lib")),
    ];
    let wanted = [format!("libLLVM.so.{major}.{minor}"), format!("libLLVM-{major}")];
    let mut found: Vec<PathBuf> = Vec::new();
    for directory in &directories {
        for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            // The smaller namesakes are linker scripts.
            let large = entry.path().metadata().is_ok_and(|m| m.len() > 1 << 20);
            if large && wanted.iter().any(|w| name.starts_with(w.as_str())) {
                found.push(entry.path());
            }
        }
    }
    found.sort();
    found
        .into_iter()
        .next()
        .with_context(|| format!("its LLVM {version} library is nowhere under {}", sysroot.display()))
}

/// The `rust-version` of the workspace.
fn minimum_version() -> Result<String> {
    let manifest =
        fs::read_to_string(workspace::root().join("Cargo.toml")).context("cannot read Cargo.toml")?;
    let line = manifest.lines().find_map(|line| line.strip_prefix("rust-version = "));
    Ok(line.context("the workspace names no rust-version")?.trim().trim_matches('"').to_owned())
}

/// The numbers of a version, for comparison: 1.96.0-nightly → [1, 96, 0].
fn numbers(version: &str) -> Vec<u32> {
    version.split('-').next().unwrap_or(version).split('.').filter_map(|part| part.parse().ok()).collect()
}

fn field<'a>(version: &'a str, name: &str) -> Result<&'a str> {
    let value = version.lines().find_map(|line| line.strip_prefix(name));
    value.with_context(|| format!("`rustc -vV` names no {name}"))
}

fn capture(program: &Path, arguments: &[&str]) -> Result<String> {
    let output = Command::new(program).args(arguments).stdin(Stdio::null()).output();
    let output = output.with_context(|| format!("cannot run {}", program.display()))?;
    if !output.status.success() {
        bail!("{} {} failed", program.display(), arguments.join(" "));
    }
    String::from_utf8(output.stdout).context("its output is not text")
}

#[cfg(test)]
mod tests {
    use super::numbers;

    #[test]
    fn versions_compare_by_number() {
        assert!(numbers("1.96.0-nightly") > numbers("1.95"));
        assert!(numbers("1.100.0") > numbers("1.99.9"));
        assert!(numbers("1.94.1") < numbers("1.95"));
    }
}
