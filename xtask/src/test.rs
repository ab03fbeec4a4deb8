//! `cargo xtask test`: everything, in lanes, with one count at the end.
//!
//! The file name of a test in `tests/tests/` says its lane: `packet*` are packet-level, `serial_*` are sensitive to
//! timing and run one at a time after the others, `long_*` run only on demand; all others are end to end, in parallel.

use std::{
    fs,
    io::{BufRead, BufReader},
    process::{Command, Stdio},
    time::Instant,
};

use anyhow::{Context, Result, bail};

use crate::{
    command::{cargo, is_root, run, shown},
    object,
    setup::{self, Need},
    workspace,
};

/// Where the programs of another layout are, beside the product's.
pub(crate) const OTHER_LAYOUT: &str = "layout-test";

/// Which tests to run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Suite {
    /// All but [`Suite::Long`].
    All,
    /// Unit, property and integration tests of each crate.
    Unit,
    /// One program, packets in, packets out.
    Packet,
    /// Hosts, wires, guests and agents in network namespaces.
    EndToEnd,
    /// What takes long: `long_*` and every test marked as ignored.
    Long,
}

impl Suite {
    /// The suite of a command-line word.
    pub fn from_word(word: &str) -> Option<Suite> {
        match word {
            "all" => Some(Suite::All),
            "unit" => Some(Suite::Unit),
            "packet" => Some(Suite::Packet),
            "e2e" => Some(Suite::EndToEnd),
            "long" => Some(Suite::Long),
            _ => None,
        }
    }
}

/// Outcomes added up over all test binaries.
#[derive(Debug, Default)]
struct Count {
    passed: u64,
    failed: u64,
    ignored: u64,
    /// The tests that failed, and the lanes that ended without a result.
    failures: Vec<String>,
}

/// Runs a suite; `filters` go to every test binary.
pub fn test(suite: Suite, filters: &[String]) -> Result<()> {
    if !is_root() {
        bail!(
            "the tests load eBPF programs and make network namespaces, so they need root: \
             run `sudo -E env PATH=\"$PATH\" cargo xtask test`; without root: `cargo test --release -p ncm-model`"
        );
    }
    setup::ensure(&[Need::Tools, Need::Object])?;
    if matches!(suite, Suite::All | Suite::EndToEnd | Suite::Long) {
        other_layout()?;
    }
    // The end-to-end tests run the product's binaries.
    run(&mut cargo(["build", "--release"]))?;

    let mut count = Count::default();
    let start = Instant::now();
    for lane in lanes(suite)? {
        lane.run(filters, &mut count)?;
    }
    let took = start.elapsed().as_secs();
    for failure in &count.failures {
        println!("FAILED {failure}");
    }
    println!("{} passed, {} failed, {} ignored in {took} s", count.passed, count.failed, count.ignored);
    if count.failed > 0 || !count.failures.is_empty() {
        bail!("tests failed; one alone: `cargo xtask test {} NAME`", word(suite));
    }
    Ok(())
}

/// Builds an agent whose tables have another layout, for the tests of upgrades: apart from the product's, which is built after it, as
/// both have one name.
pub(crate) fn other_layout() -> Result<()> {
    run(&mut cargo(["build", "--release", "-p", "ncm-agent", "--features", "layout-test"]))?;
    let release = workspace::target().join("release");
    let directory = release.join(OTHER_LAYOUT);
    fs::create_dir_all(&directory).with_context(|| format!("cannot create {}", directory.display()))?;
    for name in ["ncm-agent", "ncmctl"] {
        // A new file: the one before may be running.
        let (place, temporary) = (directory.join(name), directory.join(format!("{name}.new")));
        fs::copy(release.join(name), &temporary).with_context(|| format!("cannot copy {name}"))?;
        fs::rename(&temporary, &place).with_context(|| format!("cannot put {name} in its place"))?;
    }
    Ok(())
}

fn word(suite: Suite) -> &'static str {
    match suite {
        Suite::All => "all",
        Suite::Unit => "unit",
        Suite::Packet => "packet",
        Suite::EndToEnd => "e2e",
        Suite::Long => "long",
    }
}

/// Name of the lane of packet-level tests.
const PACKET: &str = "packet";

/// One `cargo test`.
struct Lane {
    name: &'static str,
    /// Which tests, as cargo's arguments.
    select: Vec<String>,
    /// Arguments of the test binaries.
    harness: &'static [&'static str],
}

fn lanes(suite: Suite) -> Result<Vec<Lane>> {
    let mut lanes = Vec::new();
    let wanted = |one: Suite| suite == one || suite == Suite::All;
    let words = |words: &[&str]| words.iter().map(|w| (*w).to_owned()).collect::<Vec<_>>();
    if wanted(Suite::Unit) {
        let select = words(&["--workspace", "--exclude", "ncm-tests"]);
        lanes.push(Lane { name: "unit", select, harness: &[] });
        lanes.push(Lane { name: "testbed", select: words(&["-p", "ncm-tests", "--lib"]), harness: &[] });
    }
    let binaries = test_binaries()?;
    let mut add = |name: &'static str, chosen: Vec<&String>, harness: &'static [&'static str]| {
        if chosen.is_empty() {
            return;
        }
        let mut select = words(&["-p", "ncm-tests"]);
        for binary in chosen {
            select.extend(["--test".to_owned(), binary.clone()]);
        }
        lanes.push(Lane { name, select, harness });
    };
    let of = |prefix: &str| binaries.iter().filter(|name| name.starts_with(prefix)).collect::<Vec<_>>();
    if wanted(Suite::Packet) {
        add(PACKET, of("packet"), &[]);
    }
    if wanted(Suite::EndToEnd) {
        let special = ["packet", "serial_", "long_"];
        let parallel = binaries.iter().filter(|name| !special.iter().any(|p| name.starts_with(p))).collect();
        add("end to end", parallel, &[]);
        add("serial", of("serial_"), &["--test-threads=1"]);
    }
    if suite == Suite::Long {
        add("long", of("long_"), &["--test-threads=1"]);
        lanes.push(Lane {
            name: "ignored",
            select: words(&["--workspace"]),
            harness: &["--ignored", "--test-threads=1"],
        });
    }
    Ok(lanes)
}

/// The test binaries of the end-to-end crate, by name.
fn test_binaries() -> Result<Vec<String>> {
    let directory = workspace::root().join("tests/tests");
    let mut names = Vec::new();
    for entry in fs::read_dir(&directory).into_iter().flatten() {
        let path = entry.with_context(|| format!("cannot read {}", directory.display()))?.path();
        // One file is one binary, and so is a directory with a main.rs.
        let single = path.extension().is_some_and(|extension| extension == "rs");
        if (single || path.join("main.rs").is_file())
            && let Some(stem) = path.file_stem()
        {
            names.push(stem.to_string_lossy().into_owned());
        }
    }
    names.sort();
    Ok(names)
}

impl Lane {
    fn run(&self, filters: &[String], count: &mut Count) -> Result<()> {
        let mut command = cargo(["test", "--release", "--no-fail-fast"]);
        command.args(&self.select).arg("--").args(self.harness).args(filters);
        if self.name == PACKET {
            // The product's programs with a change in the middle of a decision.
            command.env("NCM_INTERJECT_OBJECT", object::build(&["interject"])?);
        }
        println!("== {}: {}", self.name, shown(&command));
        let start = Instant::now();
        let before = count.failed;
        let success = tally(&mut command, count)?;
        println!("== {}: {:.1} s", self.name, start.elapsed().as_secs_f64());
        if !success && count.failed == before {
            // A build error, or a binary that died before it could say.
            count.failures.push(format!("{}: ended without a result, see above", self.name));
        }
        Ok(())
    }
}

/// Runs `cargo test`, passes its output on, and adds up the results. Returns whether cargo was content.
fn tally(command: &mut Command, count: &mut Count) -> Result<bool> {
    let mut child = command.stdout(Stdio::piped()).spawn().context("cannot run cargo")?;
    let output = child.stdout.take().context("cargo has no output")?;
    for line in BufReader::new(output).split(b'\n') {
        let line = line.context("cannot read cargo's output")?;
        let line = String::from_utf8_lossy(&line);
        println!("{line}");
        count.line(&line);
    }
    Ok(child.wait().context("cannot wait for cargo")?.success())
}

impl Count {
    fn line(&mut self, line: &str) {
        if let Some(name) = line.strip_prefix("test ").and_then(|rest| rest.strip_suffix(" ... FAILED")) {
            self.failures.push(name.to_owned());
        }
        // "test result: ok. 12 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.01s"
        let Some(result) = line.strip_prefix("test result: ") else { return };
        let words: Vec<&str> = result.split([' ', ';']).filter(|word| !word.is_empty()).collect();
        for pair in words.windows(2) {
            let Ok(number) = pair[0].parse::<u64>() else { continue };
            match pair[1] {
                "passed" => self.passed += number,
                "failed" => self.failed += number,
                "ignored" => self.ignored += number,
                _ => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Count;

    #[test]
    fn results_of_all_binaries_add_up() {
        let mut count = Count::default();
        count.line(
            "test result: ok. 12 passed; 0 failed; 1 ignored; 0 measured; 3 filtered out; finished in 0.01s",
        );
        count.line("test a::b ... FAILED");
        count.line(
            "test result: FAILED. 1 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out; finished in 1s",
        );
        assert_eq!((count.passed, count.failed, count.ignored), (13, 1, 1));
        assert_eq!(count.failures, ["a::b"]);
    }
}
