//! Namespaces that live as long as the test's thread: nothing is left behind, however the test ends.
#![allow(dead_code, reason = "each test binary uses a part of it")]

use std::path::Path;
use std::process::Command;

use ncm_dataplane::{Capacities, Options};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

/// Moves this thread into network and mount namespaces of its own, with an empty bpffs.
pub(crate) fn isolate() {
    assert!(nix::unistd::geteuid().is_root(), "these tests need root: run `sudo -E cargo xtask test`");
    unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS).expect("own namespaces");
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_PRIVATE | MsFlags::MS_REC, None::<&str>)
        .expect("mounts of our own");
    mount(Some("bpf"), ncm_dataplane::BPFFS, Some("bpf"), MsFlags::empty(), None::<&str>).expect("a bpffs");
    run("ip link set lo up");
}

/// Runs a command in this thread's namespaces.
pub(crate) fn run(command: &str) -> String {
    let mut words = command.split(' ');
    let output = Command::new(words.next().expect("a command")).args(words).output().expect("it starts");
    assert!(output.status.success(), "`{command}`: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// The index of an interface of this thread's namespace.
pub(crate) fn ifindex(name: &str) -> u32 {
    nix::net::if_::if_nametoindex(name).unwrap_or_else(|error| panic!("interface {name}: {error}"))
}

/// Small tables, so that a test loads quickly.
pub(crate) fn small(options: Options) -> Options {
    let mut capacities = Capacities::default();
    for (key, entries) in [
        ("endpoints", 20_000),
        ("hosts", 64),
        ("subnets", 64),
        ("ports", 64),
        ("vteps", 100),
        ("routes", 100),
        ("sources", 100),
        ("source_prefixes", 100),
        ("port_drops", 100),
        ("names", 100),
        ("flows", 20_000),
        ("half_open", 100),
        ("classes", 100),
        ("rules", 100),
        ("policy_counts", 100),
    ] {
        assert!(capacities.set(key, entries), "{key} is a key of the configuration");
    }
    Options { capacities, ..options }
}

/// The names in a directory, sorted.
pub(crate) fn list(path: &Path) -> Vec<String> {
    let mut names: Vec<String> = std::fs::read_dir(path)
        .map(|entries| entries.flatten().filter_map(|entry| entry.file_name().into_string().ok()).collect())
        .unwrap_or_default();
    names.sort();
    names
}
