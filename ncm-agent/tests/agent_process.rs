//! The daemon as a process: how it starts, refuses to start, and stops.

mod agent_common;

use std::os::unix::process::CommandExt;
use std::process::Command;
use std::time::Duration;

use agent_common::{Agent, Scratch};
use nix::sys::signal::Signal;

const AGENT: &str = env!("CARGO_BIN_EXE_ncm-agent");

#[test]
fn a_configuration_that_cannot_be_used_ends_the_start_with_78_and_the_key() {
    let scratch = Scratch::new();
    for (text, key) in [
        ("[underlay]\nmode = \"fast\"\n", "underlay.mode"),
        ("[api]\nlisteners = [\"0.0.0.0:50001\"]\n", "api.listeners"),
        ("[api]\nmax_message_bytes = \"much\"\n", "api.max_message_bytes"),
        ("surprise = true\n", "surprise"),
    ] {
        let path = scratch.0.join("bad.toml");
        std::fs::write(&path, text).expect("can be written");
        for check in [&[][..], &["--check"]] {
            let output =
                Command::new(AGENT).arg("--config").arg(&path).args(check).output().expect("can be run");
            let said = String::from_utf8_lossy(&output.stderr);
            assert_eq!(output.status.code(), Some(78), "{text:?}: {said}");
            assert!(said.contains(key), "expected {key} in: {said}");
        }
    }
}

#[test]
fn check_only_validates() {
    let scratch = Scratch::new();
    let output = Command::new(AGENT).arg("--config").arg(scratch.configure("")).arg("--check").output();
    let output = output.expect("can be run");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(!scratch.0.join("run").exists(), "it made its directories");
}

#[test]
fn a_second_agent_of_an_instance_is_refused_by_name() {
    let agent = Agent::start("");
    let config = agent.scratch.0.join("agent.toml");
    let output = Command::new(AGENT).arg("--config").arg(config).output().expect("can be run");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success(), "{said}");
    assert!(said.contains("a-test") && said.contains(&agent.pid().to_string()), "{said}");
}

#[test]
fn it_stops_within_a_second_and_leaves_its_pins_until_teardown() {
    let mut agent = Agent::start("");
    let dir = agent.scratch.0.clone();
    // A shell that keeps the namespaces, and with them the pins.
    let mut keeper = Command::new("nsenter")
        .args(["--target", &agent.pid().to_string(), "--net", "--mount", "sleep", "60"])
        .spawn()
        .expect("can run nsenter");
    let keep = keeper.id().to_string();
    let inside = |command: &str| {
        let output = Command::new("nsenter")
            .args(["--target", &keep, "--net", "--mount", "sh", "-c", command])
            .output()
            .expect("can run nsenter");
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
    };
    let begun = std::time::Instant::now();
    while !inside("true").is_empty() || !inside(&format!("ls {}/bpf", dir.display())).contains("ncm") {
        assert!(begun.elapsed() < Duration::from_secs(5), "the keeper does not start");
    }
    agent.signal(Signal::SIGTERM);
    let status = agent.ended(Duration::from_secs(1));
    assert!(status.success(), "{status:?}");
    let pins = inside(&format!("find {}/bpf -type f", dir.display()));
    assert!(pins.contains("ENDPOINTS_MAC") && pins.contains("wire_tc"), "its pins are gone: {pins}");
    assert!(!dir.join("tool.sock").exists(), "its socket is left");

    let said = inside(&format!("{AGENT} --config {}/agent.toml --teardown", dir.display()));
    let pins = inside(&format!("find {}/bpf/ncm -type f; ip link show type vxlan", dir.display()));
    let pins: Vec<_> = pins.lines().filter(|line| !line.contains("No such file")).collect();
    assert!(pins.is_empty(), "{pins:?} left after the teardown, which said: {said}");
    keeper.kill().expect("can be ended");
    keeper.wait().expect("has ended");
}

#[test]
fn the_socket_of_the_tool_is_closed_to_others() {
    let agent = Agent::start("");
    let metadata = std::fs::metadata(agent.scratch.0.join("tool.sock")).expect("is there");
    let mode = std::os::unix::fs::PermissionsExt::mode(&metadata.permissions());
    assert_eq!(mode & 0o777, 0o660);
}

#[test]
fn the_socket_of_the_tool_answers_root_and_the_group_whatever_its_mode() {
    const NOBODY: u32 = 65534;
    for (more, may_use) in [("", false), ("group = \"nogroup\"\n", true)] {
        let mut agent = Agent::start(more);
        let socket = agent.scratch.0.join("tool.sock");
        // A copy, as others may not get at where it was built.
        let tool = agent.scratch.0.join("ncmctl");
        std::fs::copy(env!("CARGO_BIN_EXE_ncmctl"), &tool).expect("can be copied");
        let status = |user: u32| {
            let mut tool = Command::new(&tool);
            tool.arg("status").env("NCM_SOCKET", &socket).current_dir("/").uid(user).gid(user);
            tool.output().expect("can be run")
        };
        assert!(status(0).status.success(), "{:?}", status(0));
        let output = status(NOBODY);
        assert_eq!(output.status.success(), may_use, "{output:?}");
        // A path that was opened by hand lets nobody else in either: the agent looks who it is.
        let everybody = std::os::unix::fs::PermissionsExt::from_mode(0o666);
        std::fs::set_permissions(&socket, everybody).expect("is ours");
        let output = status(NOBODY);
        assert_eq!(output.status.success(), may_use, "{output:?}");
        if !may_use {
            agent.wait_for_log("user 65534 is neither root nor of api.group");
        }
        assert!(status(0).status.success(), "root is served on");
    }
}
