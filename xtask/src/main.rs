//! `cargo xtask`: the one entry point for every developer task.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a command-line tool")]

use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use xtask::{
    command::{cargo, is_root, run},
    fuzz, kernels, lint, object,
    setup::{self, Need},
    test::{self, Suite},
    workspace,
};

const HELP: &str = "\
cargo xtask TASK

  setup                      install what is missing on this machine
  build [CARGO-ARGUMENTS]    build the agent and its tool, the eBPF object inside
  test [unit|packet|e2e] [NAME…]
                             run all tests, or one suite, or those with NAME in their name (root)
  test long [NAME…]          run what takes long, and every test marked as ignored (root)
  test kernels [SUITE]       run the most telling tests under the kernels of Debian's releases, or of one, emulated (root)
  lint [format|clippy|doc]   check the format, clippy and rustdoc; warnings are errors
  doc                        build the code's documentation
  demo                       two hosts, two tenants, real traffic, in a minute (root)
  bench [--quick] [--only NAME] [--json FILE]
                             measure, each figure next to its reference (root)
  fuzz [decoder|packet] [--seconds N]
                             fuzz what outsiders can reach; 30 seconds each, 0: until stopped
  object [--features LIST]   build the eBPF object alone and print its path
";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match task(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn task(arguments: &[String]) -> Result<()> {
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words.as_slice() {
        [] | ["help" | "--help" | "-h", ..] => {
            print!("{HELP}");
            Ok(())
        }
        ["setup"] => setup::all(),
        ["build", rest @ ..] => {
            setup::ensure(&[Need::Object])?;
            run(cargo(["build", "--release"]).args(rest))
        }
        ["test", "kernels"] => kernels::test(None),
        ["test", "kernels", suite] => kernels::test(Some(suite)),
        ["test", rest @ ..] => {
            let named = rest.first().and_then(|word| Suite::from_word(word));
            test::test(named.unwrap_or(Suite::All), &arguments[1 + usize::from(named.is_some())..])
        }
        ["lint"] => lint::lint(None),
        ["lint", part] if lint::PARTS.contains(part) => lint::lint(Some(part)),
        ["doc"] => lint::doc(),
        ["demo", rest @ ..] => program("demo", rest),
        ["bench", rest @ ..] => program("bench", rest),
        ["fuzz", rest @ ..] => fuzzed(rest),
        ["object"] => built(&[]),
        ["object", "--features", features] => built(&features.split(',').collect::<Vec<_>>()),
        _ => bail!("unknown task `{}`\n\n{HELP}", words.join(" ")),
    }
}

/// Runs one of the testbed's programs, with the product's binaries built.
fn program(name: &str, arguments: &[&str]) -> Result<()> {
    if !is_root() {
        bail!("{name} loads eBPF programs and makes network namespaces, so it needs root");
    }
    setup::ensure(&[Need::Tools, Need::Object])?;
    run(&mut cargo(["build", "--release"]))?;
    let directory = workspace::target().join("release");
    let mut command = std::process::Command::new(directory.join(name));
    command.args(arguments).current_dir(workspace::root()).env("NCM_BIN_DIR", &directory);
    if name == "bench" {
        // The product's programs, and what they are compared with.
        command.env("NCM_BENCH_OBJECT", object::build(&["bench"])?);
    }
    run(&mut command)
}

fn fuzzed(arguments: &[&str]) -> Result<()> {
    let (only, rest) = match arguments {
        [target, rest @ ..] if !target.starts_with('-') => (Some(*target), rest),
        rest => (None, rest),
    };
    let seconds = match rest {
        [] => 30,
        ["--seconds", seconds] => seconds.parse().context("--seconds takes a number")?,
        _ => bail!("unknown arguments `{}`\n\n{HELP}", rest.join(" ")),
    };
    fuzz::fuzz(only, seconds)
}

fn built(features: &[&str]) -> Result<()> {
    setup::ensure(&[Need::Object])?;
    println!("{}", object::build(features)?.display());
    Ok(())
}
