//! `cargo xtask fuzz`: libFuzzer over the targets in `fuzz/`, on a stable compiler.
//!
//! Coverage instrumentation is an LLVM pass that any compiler can be told to run; only the address sanitizer would need a
//! nightly. The decoder is safe Rust, where a mistake is a panic; the packet target puts a guard page behind each frame.

use std::{env::consts::ARCH, fs, process::Command};

use anyhow::{Context, Result, bail};

use crate::{
    command::{cargo, run},
    setup::{self, Need},
    workspace,
};

/// The fuzz targets: binaries of the crate in `fuzz/`.
pub const TARGETS: [&str; 2] = ["decoder", "packet"];

/// Fuzzes one target, or each in turn, for `seconds`; with 0 until it is stopped. Inputs that reach something new are
/// kept in `fuzz/corpus/`, one that breaks something in `fuzz/artifacts/`.
pub fn fuzz(only: Option<&str>, seconds: u64) -> Result<()> {
    if let Some(unknown) = only.filter(|only| !TARGETS.contains(only)) {
        bail!("no fuzz target {unknown}; there are: {}", TARGETS.join(", "));
    }
    setup::ensure(&[Need::Fuzzer])?;
    let directory = workspace::root().join("fuzz");
    let triple = format!("{ARCH}-unknown-linux-gnu");
    let target = workspace::target().join("fuzz");
    let coverage = [
        "-Cpasses=sancov-module",
        "-Cllvm-args=-sanitizer-coverage-level=4",
        "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
        "-Cllvm-args=-sanitizer-coverage-pc-table",
        "-Cllvm-args=-sanitizer-coverage-trace-compares",
        "--cfg=fuzzing",
        "-Ccodegen-units=1",
    ];
    // With a target named, the flags stay off build scripts and procedural macros.
    let mut build = cargo(["build", "--release", "--locked", "--target", &triple, "--target-dir"]);
    run(build.arg(&target).current_dir(&directory).env("RUSTFLAGS", coverage.join(" ")))?;
    for name in TARGETS.iter().filter(|name| only.is_none_or(|only| only == **name)) {
        let corpus = directory.join("corpus").join(name);
        let artifacts = directory.join("artifacts").join(name);
        for place in [&corpus, &artifacts] {
            fs::create_dir_all(place).with_context(|| format!("cannot create {}", place.display()))?;
        }
        let mut fuzzer = Command::new(target.join(&triple).join("release").join(name));
        fuzzer
            .arg(&corpus)
            .arg(directory.join("seeds").join(name))
            .arg(format!("-artifact_prefix={}/", artifacts.display()))
            .arg(format!("-max_total_time={seconds}"))
            .args(["-seed=1", "-timeout=10", "-rss_limit_mb=2048", "-max_len=65536", "-print_final_stats=1"])
            .current_dir(&directory);
        run(&mut fuzzer)
            .with_context(|| format!("{name}: an input that breaks it is in {}", artifacts.display()))?;
    }
    Ok(())
}
