//! Builds the eBPF object, once per content: the output's directory is named by a hash of everything it is made of, so
//! that every profile, build script and tool that wants it finds the same file.

use std::{
    env,
    fs::{self, File},
    hash::{DefaultHasher, Hasher},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::SystemTime,
};

use anyhow::{Context, Result, bail};

use crate::{command::run, linker, toolchain, toolchain::Compiler, workspace};

/// Directories and files that the object is made of, relative to the workspace's root.
pub const SOURCES: [&str; 6] = [
    "ncm-ebpf/src",
    "ncm-ebpf/Cargo.toml",
    "ncm-common/src",
    "ncm-common/Cargo.toml",
    "Cargo.toml",
    "Cargo.lock",
];

/// How many outputs are kept: enough for going back and forth between branches.
const KEPT: usize = 8;

/// Builds the object with `features` of `ncm-ebpf` unless it is there already, and returns its path.
///
/// Fails with the remedy in the message where the compiler or the linker is missing.
pub fn build(features: &[&str]) -> Result<PathBuf> {
    let directory = workspace::target().join("ebpf");
    fs::create_dir_all(&directory).with_context(|| format!("cannot create {}", directory.display()))?;
    let lock = File::create(directory.join(".lock")).context("cannot create the object's lock file")?;
    lock.lock().context("cannot lock the object's directory")?;

    let compiler = toolchain::find().context("run `cargo xtask setup` first")?;
    let Some(linker) = linker::installed() else {
        bail!("bpf-linker {} is not installed; run `cargo xtask setup` first", linker::VERSION);
    };
    let key = key(&compiler, features)?;
    let output = directory.join(key);
    let object = output.join("ncm-ebpf");
    if !object.is_file() {
        let built = compile(&compiler, &linker, &directory, features)?;
        fs::create_dir_all(&output).with_context(|| format!("cannot create {}", output.display()))?;
        let temporary = output.join("ncm-ebpf.new");
        fs::copy(&built, &temporary).with_context(|| format!("cannot copy {}", built.display()))?;
        fs::rename(&temporary, &object).context("cannot put the object in its place")?;
        prune(&directory);
    }
    Ok(object)
}

/// Names everything that decides the object's content.
fn key(compiler: &Compiler, features: &[&str]) -> Result<String> {
    let mut hash = DefaultHasher::new();
    for part in
        [compiler.version.as_str(), linker::VERSION, &features.join(","), &flags(), include_str!("object.rs")]
    {
        hash.write(part.as_bytes());
        hash.write_u8(0);
    }
    for source in SOURCES {
        hash_tree(&workspace::root().join(source), &mut hash)?;
    }
    Ok(format!("{:016x}", hash.finish()))
}

fn hash_tree(path: &Path, hash: &mut DefaultHasher) -> Result<()> {
    let context = || format!("cannot read {}", path.display());
    if path.is_dir() {
        let entries: Result<Vec<_>, _> = fs::read_dir(path).with_context(context)?.collect();
        let mut paths: Vec<_> = entries.with_context(context)?.iter().map(fs::DirEntry::path).collect();
        paths.sort();
        for path in paths {
            hash_tree(&path, hash)?;
        }
        return Ok(());
    }
    let content = fs::read(path).with_context(context)?;
    hash.write(path.strip_prefix(workspace::root()).unwrap_or(path).as_os_str().as_encoded_bytes());
    hash.write_usize(content.len());
    hash.write(&content);
    Ok(())
}

/// Compiler flags: BTF for the loader and for `bpftool`, and which kernel's register layout the bindings follow.
fn flags() -> String {
    let arch = env::consts::ARCH;
    format!("-C debuginfo=2 -C link-arg=--btf --cfg bpf_target_arch=\"{arch}\"")
}

fn compile(compiler: &Compiler, linker: &Path, directory: &Path, features: &[&str]) -> Result<PathBuf> {
    eprintln!("building the eBPF object with {}", compiler.origin);
    let nested = directory.join("build");
    let mut cargo = nested_cargo(compiler, linker, directory, "build", &nested)?;
    cargo.env("CARGO_ENCODED_RUSTFLAGS", flags().replace(' ', "\x1f"));
    if !features.is_empty() {
        cargo.arg("--features").arg(features.join(","));
    }
    // Read here, as cargo hides what a build script prints.
    let output = cargo.output().with_context(|| format!("cannot run {}", compiler.cargo.display()))?;
    let shown = String::from_utf8_lossy(&output.stderr);
    if !output.status.success() {
        bail!("the eBPF object does not build:\n{shown}");
    }
    eprint!("{shown}");
    Ok(nested.join(target()).join("release/ncm-ebpf"))
}

/// Checks the programs for their own target, warnings being errors: with clippy where the compiler has it.
pub fn check() -> Result<()> {
    let directory = workspace::target().join("ebpf");
    fs::create_dir_all(&directory).with_context(|| format!("cannot create {}", directory.display()))?;
    let compiler = toolchain::find()?;
    let linker = linker::installed().unwrap_or_else(|| "bpf-linker".into());
    let driver = compiler.rustc.with_file_name("clippy-driver");
    let subcommand = if driver.is_file() && compiler.has_own_cargo() { "clippy" } else { "check" };
    let mut cargo = nested_cargo(&compiler, &linker, &directory, subcommand, &directory.join("lint"))?;
    cargo.env("CARGO_ENCODED_RUSTFLAGS", format!("{} -D warnings", flags()).replace(' ', "\x1f"));
    if subcommand == "clippy" {
        // What `cargo clippy` looks for on the path, beside the cargo that it belongs to.
        let path = env::var_os("PATH").unwrap_or_default();
        let own = compiler.rustc.parent().map(Path::to_owned).into_iter();
        cargo
            .env("PATH", env::join_paths(own.chain(env::split_paths(&path))).context("a path with a colon")?);
    }
    run(&mut cargo)
}

fn target() -> &'static str {
    if cfg!(target_endian = "big") { "bpfeb-unknown-none" } else { "bpfel-unknown-none" }
}

/// A cargo for the programs, with nothing of the build that it is called from.
fn nested_cargo(
    compiler: &Compiler,
    linker: &Path,
    directory: &Path,
    subcommand: &str,
    nested: &Path,
) -> Result<Command> {
    let target = target();
    let mut cargo = Command::new(&compiler.cargo);
    clean_environment(&mut cargo);
    cargo
        .current_dir(workspace::root())
        .args([subcommand, "--release", "--locked", "-p", "ncm-ebpf", "--bin", "ncm-ebpf"])
        .args(["-Z", "build-std=core", "--target", target, "--target-dir"])
        .arg(nested)
        .env("RUSTC", &compiler.rustc)
        .env(format!("CARGO_TARGET_{}_LINKER", target.to_uppercase().replace('-', "_")), linker)
        .env("LD_LIBRARY_PATH", borrowed_llvm(compiler, directory)?)
        // The kernel has no panics to report an overflow with; the whole object is one unit for the linker anyway.
        .env("CARGO_PROFILE_RELEASE_OVERFLOW_CHECKS", "false")
        .env("CARGO_PROFILE_RELEASE_INCREMENTAL", "false")
        .env("CARGO_PROFILE_RELEASE_CODEGEN_UNITS", "1")
        .stdin(Stdio::null())
        // In a build script stdout is for cargo's directives.
        .stdout(Stdio::null());
    if compiler.bootstrap {
        cargo.env("RUSTC_BOOTSTRAP", "1");
    }
    Ok(cargo)
}

/// A directory with nothing in it but the compiler's LLVM: the linker takes the first it finds on its way through the
/// library path, which has to be the one that wrote the bitcode.
fn borrowed_llvm(compiler: &Compiler, directory: &Path) -> Result<PathBuf> {
    let place = directory.join("llvm");
    fs::create_dir_all(&place).with_context(|| format!("cannot create {}", place.display()))?;
    let link = place.join("libLLVM.so");
    if fs::read_link(&link).ok().as_deref() != Some(&*compiler.llvm) {
        drop(fs::remove_file(&link));
        std::os::unix::fs::symlink(&compiler.llvm, &link).context("cannot link to the compiler's LLVM")?;
    }
    Ok(place)
}

/// Takes what an outer cargo, rustup's proxy or a build script's environment says about *its* build out of a command.
pub fn clean_environment(command: &mut Command) {
    /// The developer's own settings for cargo, which apply to every build.
    const KEPT: [&str; 8] = [
        "CARGO_HOME",
        "CARGO_HTTP",
        "CARGO_NET",
        "CARGO_REGISTR",
        "CARGO_SOURCE",
        "CARGO_TERM",
        "CARGO_HTTPS",
        "CARGO_LOG",
    ];
    const FOREIGN: [&str; 14] = [
        "CARGO",
        "DEP_",
        "RUSTC",
        "RUSTDOC",
        "RUSTFLAGS",
        "RUSTUP_TOOLCHAIN",
        "TARGET",
        "HOST",
        "OUT_DIR",
        "PROFILE",
        "OPT_LEVEL",
        "DEBUG",
        "NUM_JOBS",
        "LD_LIBRARY_PATH",
    ];
    for (name, _) in env::vars_os() {
        let text = name.to_string_lossy();
        let exact = |wanted: &str| text == wanted;
        let prefix = |wanted: &str| text.starts_with(wanted);
        let foreign = FOREIGN.iter().any(|f| match *f {
            "CARGO" | "DEP_" | "RUSTC" | "RUSTDOC" => prefix(f),
            _ => exact(f),
        });
        if foreign && !KEPT.iter().any(|k| prefix(k)) {
            command.env_remove(&name);
        }
    }
}

/// Removes all but the latest outputs. Failing to is no failure of the build.
fn prune(directory: &Path) {
    let mut outputs: Vec<(SystemTime, PathBuf)> = fs::read_dir(directory)
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| {
            let object = entry.path().join("ncm-ebpf");
            Some((object.metadata().ok()?.modified().ok()?, entry.path()))
        })
        .collect();
    outputs.sort();
    for (_, old) in outputs.iter().rev().skip(KEPT) {
        drop(fs::remove_dir_all(old));
    }
}
