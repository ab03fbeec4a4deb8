//! Makes a bare machine ready: whatever is missing is installed without questions, and what is there is left alone.
//!
//! Made for Debian 12 with nothing but rustup's stable toolchain and a C compiler (which cargo itself needs, to link);
//! elsewhere it says what to install.

use std::{
    fs,
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};

use crate::{
    command::{is_root, run, which},
    components::Component,
    linker, toolchain,
};

/// Programs that the tests, the demo and the benchmark run, and the Debian packages they come in.
const TOOLS: [(&str, &str); 17] = [
    ("arping", "arping"),
    ("bpftool", "bpftool"),
    ("curl", "curl"),
    ("dhclient", "isc-dhcp-client"),
    ("dhcpcd", "dhcpcd-base"),
    ("ethtool", "ethtool"),
    ("ip", "iproute2"),
    ("iperf3", "iperf3"),
    ("ncat", "ncat"),
    ("nft", "nftables"),
    ("nmap", "nmap"),
    ("ping", "iputils-ping"),
    ("rdisc6", "ndisc6"),
    ("sysctl", "procps"),
    ("tcpdump", "tcpdump"),
    ("tracepath", "iputils-tracepath"),
    ("udhcpc", "udhcpc"),
];

/// What fuzzing needs on top: libFuzzer is C++.
const FUZZ_TOOLS: [(&str, &str); 1] = [("c++", "g++")];

/// What other kernels are run with.
const EMULATOR_TOOLS: [(&str, &str); 6] = [
    ("apt-cache", "apt"),
    ("busybox", "busybox-static"),
    ("dpkg-deb", "dpkg"),
    ("qemu-system-x86_64", "qemu-system-x86"),
    ("strip", "binutils"),
    ("xz", "xz-utils"),
];

/// A distribution's compiler and its source: Debian 12 keeps this pair at a version that browsers need.
const DISTRIBUTION_COMPILER: [&str; 2] = ["rustc-web", "rust-web-src"];

/// What a task needs beyond cargo.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Need {
    /// A compiler and a linker for the eBPF object.
    Object,
    /// rustfmt and clippy.
    Components,
    /// The programs that tests run.
    Tools,
    /// A C++ compiler, for libFuzzer.
    Fuzzer,
    /// An emulated machine, for other kernels.
    Emulator,
}

/// Installs what is missing of `needs` and says what it did. Returns whether anything was missing.
///
/// What cannot be installed does not keep the rest from being: the error names all that is left to do by hand.
pub fn ensure(needs: &[Need]) -> Result<bool> {
    let mut packages: Vec<&str> = Vec::new();
    for need in needs {
        match need {
            Need::Tools => packages.extend(missing(&TOOLS)),
            Need::Fuzzer => packages.extend(missing(&FUZZ_TOOLS)),
            Need::Emulator => packages.extend(missing(&EMULATOR_TOOLS)),
            Need::Object | Need::Components => {}
        }
    }
    let mut outcomes = Vec::new();
    if !packages.is_empty() {
        outcomes.push(install_packages(&packages).map(|()| true));
    }
    if needs.contains(&Need::Components) {
        outcomes.push(ensure_components());
    }
    if needs.contains(&Need::Object) {
        outcomes.push(ensure_compiler());
        if linker::installed().is_none() {
            outcomes.push(linker::install().map(|_| true));
        }
    }
    let mut installed = false;
    let mut left = Vec::new();
    for outcome in outcomes {
        match outcome {
            Ok(some) => installed |= some,
            Err(error) => left.push(format!("{error:#}")),
        }
    }
    if !left.is_empty() {
        bail!("this machine is not ready:\n{}", left.join("\n"));
    }
    Ok(installed)
}

/// `cargo xtask setup`: everything, with a last word.
pub fn all() -> Result<()> {
    let start = Instant::now();
    let installed = ensure(&[Need::Tools, Need::Components, Need::Object, Need::Fuzzer])?;
    let compiler = toolchain::find()?;
    let outcome = if installed { "installed what was missing" } else { "everything is there" };
    eprintln!("{outcome} ({:.1} s)", start.elapsed().as_secs_f64());
    eprintln!("eBPF object: {}, bpf-linker {}", compiler.origin, linker::VERSION);
    Ok(())
}

fn missing(tools: &[(&str, &'static str)]) -> Vec<&'static str> {
    tools.iter().filter(|(program, _)| which(program).is_none()).map(|(_, package)| *package).collect()
}

/// rustfmt and clippy: what is there, else rustup's, else the distribution's.
fn ensure_components() -> Result<bool> {
    let absent: Vec<Component> =
        Component::ALL.into_iter().filter(|component| !component.is_there()).collect();
    if absent.is_empty() {
        return Ok(false);
    }
    let names: Vec<&str> = absent.iter().map(|component| component.name()).collect();
    eprintln!("trying `rustup component add {}`", names.join(" "));
    if rustup_adds(&names) && absent.iter().all(|component| component.is_there()) {
        return Ok(true);
    }
    let packages: Vec<&str> = absent.iter().map(|component| component.package()).collect();
    eprintln!("rustup could not download them; trying the distribution's: {}", packages.join(", "));
    install_packages(&packages).with_context(|| {
        format!(
            "{} is missing, a part of rustup's default profile; run one of these, then try again:\n  \
             rustup component add {}\n  apt-get install --no-install-recommends {}",
            names.join(" and "),
            names.join(" "),
            packages.join(" ")
        )
    })?;
    Ok(true)
}

/// A compiler with its source: what is there, else rustup's component, else the distribution's pair.
fn ensure_compiler() -> Result<bool> {
    let Err(refused) = toolchain::find() else { return Ok(false) };
    eprintln!("{refused:#}");
    eprintln!("trying `rustup component add rust-src`");
    if rustup_adds(&["rust-src"]) && toolchain::find().is_ok() {
        return Ok(true);
    }
    eprintln!("rustup could not download it; trying the distribution's compiler with its source");
    let manual = format!(
        "the eBPF target needs a compiler with its library source; run one of these, then try again:\n  \
         rustup component add rust-src\n  apt-get install --no-install-recommends {}",
        DISTRIBUTION_COMPILER.join(" ")
    );
    if let Err(error) = install_packages(&DISTRIBUTION_COMPILER) {
        bail!("{manual}\n({error:#})");
    }
    toolchain::find().context(manual)?;
    Ok(true)
}

/// Whether rustup can download components. Without a network it is given up on after two minutes.
fn rustup_adds(components: &[&str]) -> bool {
    let mut rustup = Command::new("rustup");
    rustup.args(["component", "add"]).args(components).stdin(Stdio::null());
    let Ok(mut child) = rustup.spawn() else { return false };
    let deadline = Instant::now() + Duration::from_secs(120);
    loop {
        match child.try_wait() {
            Ok(Some(status)) => return status.success(),
            Ok(None) if Instant::now() < deadline => thread::sleep(Duration::from_millis(100)),
            _ => {
                drop(child.kill());
                drop(child.wait());
                return false;
            }
        }
    }
}

fn install_packages(packages: &[&str]) -> Result<()> {
    let by_hand = format!("apt-get install --no-install-recommends {}", packages.join(" "));
    if which("apt-get").is_none() {
        bail!(
            "this machine has no apt-get; install what these Debian packages hold, then try again: {}",
            packages.join(" ")
        );
    }
    let prefix: &[&str] = if is_root() {
        &[]
    } else if sudo_without_password() {
        &["sudo", "-n"]
    } else {
        bail!("not root; run this as root, then try again:\n  {by_hand}");
    };
    eprintln!("installing with apt-get: {}", packages.join(" "));
    if !apt_lists_present() {
        apt(prefix, &["update"])?;
        return apt_install(prefix, packages).with_context(|| format!("run `{by_hand}` to see more"));
    }
    // Lists that are old name packages that the mirror no longer has.
    if apt_install(prefix, packages).is_err() {
        apt(prefix, &["update"])?;
        apt_install(prefix, packages).with_context(|| format!("run `{by_hand}` to see more"))?;
    }
    Ok(())
}

fn apt_install(prefix: &[&str], packages: &[&str]) -> Result<()> {
    let mut arguments = vec!["install", "--yes", "--no-install-recommends"];
    arguments.extend(packages);
    apt(prefix, &arguments)
}

fn apt(prefix: &[&str], arguments: &[&str]) -> Result<()> {
    let mut line: Vec<&str> = prefix.to_vec();
    line.extend(["env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "--quiet", "--quiet"]);
    // Another apt may be running on a machine that has just been started.
    line.extend(["-o", "DPkg::Lock::Timeout=300", "-o", "Dpkg::Use-Pty=0"]);
    line.extend(arguments);
    let (program, arguments) = line.split_first().context("an empty command")?;
    run(Command::new(program).args(arguments).stdin(Stdio::null()))
}

fn sudo_without_password() -> bool {
    let mut sudo = Command::new("sudo");
    sudo.args(["-n", "true"]).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    sudo.status().is_ok_and(|status| status.success())
}

/// Whether apt knows any package: an image is often delivered without its lists.
fn apt_lists_present() -> bool {
    let mut entries = fs::read_dir("/var/lib/apt/lists").into_iter().flatten().flatten();
    entries.any(|entry| {
        let name = entry.file_name().to_string_lossy().into_owned();
        name.contains("_Packages") || name.contains("_InRelease")
    })
}
