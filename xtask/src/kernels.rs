//! `cargo xtask test kernels`: the product's own tests under the kernels of other distributions, each in an emulated machine.
//!
//! A machine has a kernel of Debian's, as its packages have it, and everything else in an initial file system that is made here:
//! busybox, the programs that tests run, what those are linked with, and the tests themselves. Nothing but qemu's software emulation
//! is asked of the processor. Packages are fetched by apt with lists of its own, so that this machine's are left alone.

use std::{
    collections::BTreeSet,
    fs,
    io::{BufRead, BufReader},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};

use crate::{
    command::{cargo, is_root, run, shown, which},
    setup::{self, Need},
    test::{OTHER_LAYOUT, other_layout},
    workspace,
};

/// Where a kernel comes from, and what it is there for.
struct Release {
    /// Debian's name of the suite.
    suite: &'static str,
    /// What its kernel is to us.
    role: &'static str,
}

/// The kernels, oldest first.
const RELEASES: [Release; 3] = [
    Release { suite: "bookworm", role: "Debian 12: without tcx, programs are filters" },
    Release { suite: "trixie", role: "Debian 13" },
    Release { suite: "sid", role: "the newest that Debian has" },
];

/// The test binaries that run there, and which of their tests (none: all): every program is loaded, every hook is attached and forwards,
/// guests on veth and tap, wires on XDP and tc; agents are restarted, exchanged, taken down, and refused.
const TESTS: [(&str, &[&str]); 5] = [
    ("e2e_forwarding", &[]),
    ("e2e_restart", &[]),
    ("e2e_clsact", &[]),
    ("serial_restart", &["nothing_that_happens"]),
    ("serial_upgrade", &["another_layout_takes_over", "programs_change"]),
];

/// Programs of this machine that the tests run.
const PROGRAMS: [&str; 6] = ["ip", "tc", "bpftool", "ping", "ethtool", "sysctl"];

/// Modules of a kernel that hosts and guests need; most cloud kernels have them apart.
const MODULES: [&str; 9] =
    ["veth", "vxlan", "tun", "tap", "udp_tunnel", "ip6_udp_tunnel", "sch_ingress", "cls_bpf", "cls_u32"];

/// Memory of a machine.
const MEMORY: &str = "3072";

/// How much longer than on a real processor the tests may take for each step.
const SLOWNESS: u32 = 12;

/// How long a machine may run.
const AT_MOST: Duration = Duration::from_secs(40 * 60);

/// Debian's keys, where a machine's sources do not name them.
const KEYS: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// What the machine says last.
const VERDICT: &str = "ncm-kernel-test: ";

/// Runs the tests under each kernel, or under that of one suite.
///
/// # Errors
/// If a kernel cannot be had, or a test fails under one.
pub fn test(only: Option<&str>) -> Result<()> {
    if !is_root() {
        bail!("the tests run as root on other kernels as well, and packages are fetched: run this as root");
    }
    let releases: Vec<&Release> =
        RELEASES.iter().filter(|release| only.is_none_or(|only| only == release.suite)).collect();
    if releases.is_empty() {
        bail!("no such suite: there are {}", RELEASES.map(|release| release.suite).join(", "));
    }
    setup::ensure(&[Need::Tools, Need::Object, Need::Emulator])?;
    other_layout()?;
    run(&mut cargo(["build", "--release"]))?;
    let tests = test_binaries()?;
    let (mut passed, mut failed) = (0_u32, Vec::new());
    for release in releases {
        let start = Instant::now();
        let kernel = Kernel::fetch(release)?;
        println!("== {} ({}, {})", kernel.version, release.suite, release.role);
        let held = kernel.boot(&kernel.file_system(&tests)?)?;
        let took = start.elapsed().as_secs();
        println!("== {}: {} in {took} s", kernel.version, if held { "ok" } else { "FAILED" });
        if held {
            passed += 1;
        } else {
            failed.push(kernel.version);
        }
    }
    println!("{passed} passed, {} failed", failed.len());
    ensure!(failed.is_empty(), "under these kernels tests failed: {}", failed.join(", "));
    Ok(())
}

/// Builds the tests; their names and where they are.
fn test_binaries() -> Result<Vec<(&'static str, PathBuf)>> {
    let mut command = cargo(["test", "--release", "--no-run", "-p", "ncm-tests"]);
    for (name, _) in TESTS {
        command.args(["--test", name]);
    }
    eprintln!("+ {}", shown(&command));
    let output = command.stderr(Stdio::piped()).output().context("cannot run cargo")?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "the tests do not build:\n{said}");
    let mut found = Vec::new();
    for (name, _) in TESTS {
        // "  Executable tests/NAME.rs (target/release/deps/NAME-0123456789abcdef)"
        let path = said
            .lines()
            .filter(|line| line.contains("Executable"))
            .filter_map(|line| line.split_once('(')?.1.strip_suffix(')'))
            .find(|path| path.contains(&format!("/{name}-")))
            .with_context(|| format!("cargo does not say where the test {name} is:\n{said}"))?;
        found.push((name, workspace::root().join(path)));
    }
    Ok(found)
}

/// A kernel that is unpacked.
struct Kernel {
    /// As `uname -r` says it.
    version: String,
    /// Where its packages are unpacked.
    tree: PathBuf,
    image: PathBuf,
    modules: PathBuf,
}

impl Kernel {
    /// The newest cloud kernel of a suite.
    fn fetch(release: &Release) -> Result<Self> {
        let directory = workspace::cache().join("kernels").join(release.suite);
        let lists = directory.join("lists");
        fs::create_dir_all(lists.join("partial")).context("make a place for package lists")?;
        fs::create_dir_all(directory.join("archives/partial")).context("make a place for packages")?;
        let sources = directory.join("sources.list");
        fs::write(&sources, sources_of(release.suite)?).context("write the sources of packages")?;
        let options = [
            format!("Dir::Etc::SourceList={}", sources.display()),
            "Dir::Etc::SourceParts=/dev/null".to_owned(),
            format!("Dir::State::Lists={}", lists.display()),
            format!("Dir::Cache={}", directory.display()),
            "APT::Sandbox::User=root".to_owned(),
        ];
        let apt = |program: &str| {
            let mut command = Command::new(program);
            command.arg("--quiet").current_dir(&directory).stdin(Stdio::null());
            for option in &options {
                command.args(["-o", option]);
            }
            command
        };
        run(apt("apt-get").arg("update").stdout(Stdio::null()))?;
        let pattern = r"^linux-(image|binary|modules)-[0-9][^ ]*-cloud-amd64$";
        let listed = apt("apt-cache").args(["search", "--names-only", pattern]).output()?;
        let names: Vec<String> = String::from_utf8_lossy(&listed.stdout)
            .lines()
            .filter_map(|line| Some(line.split_once(' ')?.0.to_owned()))
            .collect();
        let version = newest(&names)
            .with_context(|| format!("the suite {} has no kernel for clouds", release.suite))?;
        let tree = directory.join(&version);
        if !tree.join("complete").exists() {
            let packages: Vec<&String> =
                names.iter().filter(|name| name.ends_with(&format!("-{version}"))).collect();
            run(apt("apt-get").arg("download").args(&packages).stdout(Stdio::null()))?;
            for entry in fs::read_dir(&directory)?.flatten() {
                let path = entry.path();
                let name = entry.file_name().to_string_lossy().into_owned();
                if packages.iter().any(|package| name.starts_with(&format!("{package}_"))) {
                    run(Command::new("dpkg-deb").arg("-x").arg(&path).arg(&tree))?;
                    fs::remove_file(&path)?;
                }
            }
            fs::write(tree.join("complete"), "")?;
        }
        let modules = ["lib/modules", "usr/lib/modules"]
            .map(|part| tree.join(part).join(&version))
            .into_iter()
            .find(|path| path.is_dir())
            .with_context(|| format!("no modules in {}", tree.display()))?;
        let image = [tree.join("boot").join(format!("vmlinuz-{version}")), modules.join("vmlinuz")]
            .into_iter()
            .find(|path| path.is_file())
            .with_context(|| format!("no kernel in {}", tree.display()))?;
        Ok(Self { version, tree, image, modules })
    }

    /// Makes the initial file system, and gives the archive.
    fn file_system(&self, tests: &[(&str, PathBuf)]) -> Result<PathBuf> {
        let root = self.tree.join("root");
        if root.exists() {
            fs::remove_dir_all(&root)?;
        }
        for part in ["bin", "usr/bin", "proc", "sys", "dev/net", "run", "tmp", "etc", "var/lib", "tests"] {
            fs::create_dir_all(root.join(part))?;
        }
        let busybox = which("busybox").context("busybox is missing")?;
        fs::copy(busybox, root.join("bin/busybox"))?;
        let target = workspace::target().join("release");
        let mut programs: Vec<(String, PathBuf)> = Vec::new();
        for name in PROGRAMS {
            let path = which(name).with_context(|| format!("{name} is missing"))?;
            programs.push((format!("usr/bin/{name}"), path));
        }
        for name in ["ncm-agent", "ncmctl", &format!("{OTHER_LAYOUT}/ncm-agent")] {
            programs.push((format!("usr/bin/{name}"), target.join(name)));
        }
        for (name, path) in tests {
            programs.push((format!("tests/{name}"), path.clone()));
        }
        for (to, from) in &programs {
            let to = root.join(to);
            fs::create_dir_all(to.parent().unwrap_or(&root))?;
            fs::copy(from, &to).with_context(|| format!("copy {}", from.display()))?;
            if from.starts_with(&target) {
                run_quietly(Command::new("strip").arg(&to))?;
            }
        }
        for library in libraries(programs.iter().map(|(_, from)| from))? {
            let to = root.join(library.strip_prefix("/").unwrap_or(&library));
            fs::create_dir_all(to.parent().unwrap_or(&root))?;
            fs::copy(&library, to).with_context(|| format!("copy {}", library.display()))?;
        }
        self.copy_modules(&root)?;
        let init = root.join("init");
        fs::write(&init, init_script())?;
        fs::set_permissions(&init, fs::Permissions::from_mode(0o755))?;
        let archive = self.tree.join("initrd");
        let pack = format!("find . | busybox cpio -o -H newc 2>/dev/null | gzip -1 > {}", archive.display());
        run_quietly(Command::new("sh").args(["-c", &pack]).current_dir(&root))?;
        Ok(archive)
    }

    /// Copies the modules that are needed and that the kernel has apart, unpacked, with their dependencies' list.
    fn copy_modules(&self, root: &Path) -> Result<()> {
        let to = root.join("lib/modules").join(&self.version);
        fs::create_dir_all(&to)?;
        for path in files(&self.modules)? {
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let Some((stem, kind)) = name.split_once(".ko") else { continue };
            if !MODULES.contains(&stem) {
                continue;
            }
            let copy = to.join(&name);
            fs::copy(&path, &copy)?;
            if kind == ".xz" {
                run_quietly(Command::new("xz").arg("-d").arg(copy))?;
            }
        }
        for list in ["modules.builtin", "modules.order"] {
            let from = self.modules.join(list);
            if from.exists() {
                fs::copy(from, to.join(list))?;
            }
        }
        run_quietly(Command::new("busybox").args(["depmod", "-b", ".", &self.version]).current_dir(root))
    }

    /// Boots the machine, shows what it says, and tells whether all its tests passed.
    fn boot(&self, archive: &Path) -> Result<bool> {
        let mut command = Command::new("qemu-system-x86_64");
        // Without cmpxchg16b: the emulation of some versions leaves wrong flags behind it.
        command.args(["-cpu", "qemu64,-cx16,+ssse3,+sse4.1,+sse4.2,+popcnt", "-smp", "2", "-m", MEMORY]);
        command.args(["-nographic", "-no-reboot", "-nic", "none"]).arg("-kernel").arg(&self.image);
        command.arg("-initrd").arg(archive);
        command.args(["-append", "console=ttyS0 rdinit=/init panic=-1 quiet"]);
        let mut machine =
            command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().context("cannot run qemu")?;
        let output = machine.stdout.take().context("qemu has no output")?;
        let watched = machine.id();
        let watch = std::thread::spawn(move || {
            let begun = Instant::now();
            while begun.elapsed() < AT_MOST {
                std::thread::sleep(Duration::from_secs(1));
                if !Path::new(&format!("/proc/{watched}/exe")).exists() {
                    return;
                }
            }
            eprintln!("the machine takes too long: it is stopped");
            let _gone = Command::new("kill").arg(watched.to_string()).status();
        });
        let mut held = None;
        for line in BufReader::new(output).split(b'\n') {
            let line = line.context("cannot read what the machine says")?;
            // The firmware clears the screen.
            let line = String::from_utf8_lossy(&line).replace('\u{1b}', "");
            let line = line.trim_end();
            if let Some(verdict) = line.strip_prefix(VERDICT) {
                held = Some(verdict == "0");
            } else if !line.is_empty() {
                println!("   {line}");
            }
        }
        machine.wait()?;
        drop(watch);
        held.context("the machine ended without a result: see above")
    }
}

/// Where packages of a suite come from: where Debian's packages of this machine do.
fn sources_of(suite: &str) -> Result<String> {
    let format = "$(ORIGIN)|$(LABEL)|$(REPO_URI)|$(SIGNED_BY)";
    let asked = Command::new("apt-get").args(["indextargets", "--format", format]).output()?;
    let said = String::from_utf8_lossy(&asked.stdout);
    let debian = said.lines().find_map(|line| line.strip_prefix("Debian|Debian|"));
    let (place, keys) = debian.and_then(|line| line.split_once('|')).context(
        "this machine's packages are not Debian's, from which the kernels come: `apt-get indextargets` names no \
         repository of origin Debian (run `apt-get update` once)",
    )?;
    // Where it is not set, apt leaves the name as it is.
    let keys = if keys.starts_with('/') { keys } else { KEYS };
    Ok(format!("deb [signed-by={keys}] {place} {suite} main\n"))
}

/// The newest version that packages of kernels are of.
fn newest(names: &[String]) -> Option<String> {
    let numbers = |version: &str| -> Vec<u32> {
        version.split(|c: char| !c.is_ascii_digit()).filter_map(|part| part.parse().ok()).collect()
    };
    let versions = names.iter().filter_map(|name| name.strip_prefix("linux-image-"));
    versions.max_by_key(|version| numbers(version)).map(str::to_owned)
}

/// All files below a directory.
fn files(directory: &Path) -> Result<Vec<PathBuf>> {
    let (mut found, mut left) = (Vec::new(), vec![directory.to_owned()]);
    while let Some(next) = left.pop() {
        for entry in fs::read_dir(&next).with_context(|| format!("read {}", next.display()))? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                left.push(entry.path());
            } else {
                found.push(entry.path());
            }
        }
    }
    Ok(found)
}

/// What programs are linked with.
fn libraries<'a>(programs: impl Iterator<Item = &'a PathBuf>) -> Result<BTreeSet<PathBuf>> {
    let mut found = BTreeSet::new();
    for program in programs {
        let output = Command::new("ldd").arg(program).output().context("cannot run ldd")?;
        for word in String::from_utf8_lossy(&output.stdout).split_whitespace() {
            if word.starts_with('/') && Path::new(word).is_file() {
                found.insert(PathBuf::from(word));
            }
        }
    }
    Ok(found)
}

fn run_quietly(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| format!("cannot run {}", shown(command)))?;
    ensure!(status.success(), "`{}` failed ({status})", shown(command));
    Ok(())
}

/// What the machine does: everything it needs is mounted, then each test runs alone.
fn init_script() -> String {
    let mut script = String::from(
        "#!/bin/busybox sh\n\
         /bin/busybox --install -s /bin\n\
         export PATH=/usr/bin:/bin HOME=/ NCM_BIN_DIR=/usr/bin\n\
         mount -t proc proc /proc; mount -t sysfs sys /sys; mount -t devtmpfs dev /dev\n\
         mount -t tmpfs run /run; mount -t tmpfs tmp /tmp; mount -t bpf bpf /sys/fs/bpf\n\
         mkdir -p /dev/net; ip link set lo up; uname -r\n",
    );
    script.push_str(&format!("export NCM_TEST_SLOWNESS={SLOWNESS}\n"));
    for module in MODULES {
        script.push_str(&format!("modprobe -q {module}\n"));
    }
    script.push_str("failed=0\n");
    for (test, names) in TESTS {
        let names = names.join(" ");
        script.push_str(&format!(
            "echo 'running {test}'; /tests/{test} --test-threads=1 {names} 2>&1 || failed=1\n"
        ));
    }
    script.push_str(&format!("echo; echo \"{VERDICT}$failed\"\npoweroff -f\n"));
    script
}

#[cfg(test)]
mod tests {
    use super::newest;

    #[test]
    fn the_newest_version_is_so_by_number() {
        let names = ["6.12.94+deb13", "6.12.107+deb13", "6.1.0-50", "5.10.0-60"];
        let names = names.map(|version| format!("linux-image-{version}-cloud-amd64"));
        assert_eq!(newest(&names).as_deref(), Some("6.12.107+deb13-cloud-amd64"));
        assert_eq!(newest(&["linux-modules-7.0-cloud-amd64".to_owned()]), None);
    }
}
