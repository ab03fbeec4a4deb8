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

#[test]
fn a_member_of_the_group_by_a_supplementary_group_may_use_the_socket() {
    let mut agent = Agent::start("group = \"nogroup\"\n");
    let socket = agent.scratch.0.join("tool.sock");
    let tool = agent.scratch.0.join("ncmctl");
    std::fs::copy(env!("CARGO_BIN_EXE_ncmctl"), &tool).expect("can be copied");
    let everybody = std::os::unix::fs::PermissionsExt::from_mode(0o666);
    let status = |groups: &str| {
        let mut command = Command::new("setpriv");
        command.args(["--reuid", "65533", "--regid", "65532", "--groups", groups]).arg(&tool).arg("status");
        command.env("NCM_SOCKET", &socket).current_dir("/").output().expect("can be run")
    };
    // More groups than are asked for at first, the one that counts being the last.
    let many: Vec<String> = (1000..1100).chain([65534]).map(|group: u32| group.to_string()).collect();
    for groups in ["65534", "1000,65534", &many.join(",")] {
        let output = status(groups);
        assert!(output.status.success(), "{groups}: {output:?}; {}", agent.log());
    }
    // By the socket's mode, and by what the agent sees.
    assert_eq!(status("1000,1001").status.code(), Some(3));
    std::fs::set_permissions(&socket, everybody).expect("is ours");
    assert_eq!(status("1000,1001").status.code(), Some(3));
    agent.wait_for_log("user 65533 is neither root nor of api.group");
}

/// Starts an agent that cannot start, after `prepare` in its namespaces, with one line of its configuration replaced.
/// Returns what it said, and what it left: pins, sockets, devices of its own.
fn failed_start(prepare: &str, line: (&str, &str)) -> (String, String) {
    let scratch = Scratch::new();
    let config = scratch.configure("");
    let text = std::fs::read_to_string(&config).expect("was written");
    assert!(text.contains(line.0), "{text}");
    std::fs::write(&config, text.replace(line.0, line.1)).expect("can be written");
    let script = format!(
        "mount --make-rprivate /; mkdir -p {dir}/bpf; mount -t bpf bpf {dir}/bpf; ip link set lo up; \
         ip link add up0 type veth peer name up1; ip addr add 192.0.2.1/24 dev up0; ip link set up0 up; \
         ip link set up1 up; {prepare}; {AGENT} --config {config} && exit 1; \
         find {dir} -path '*/ncm/*' -o -type s; ip -o link show type vxlan | grep ncm-; true",
        dir = scratch.0.display(),
        config = config.display(),
    );
    let output = Command::new("unshare").args(["--net", "--mount", "sh", "-c", &script]).output();
    let output = output.expect("can run unshare");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "it started, or nothing could be prepared: {said}");
    (said, String::from_utf8_lossy(&output.stdout).into_owned())
}

#[test]
fn a_first_start_that_fails_leaves_nothing_behind() {
    // An address that is not the host's: found out before anything is loaded.
    let (said, left) = failed_start("true", ("127.0.0.1:9477", "192.0.2.77:9477"));
    assert!(said.contains("metrics.listen"), "{said}");
    assert_eq!(left, "", "after {said}");
    // Another device has the relay's port: found out when everything is loaded and pinned.
    let prepare = "ip link add other type vxlan external dstport 47890; ip link set other up";
    let (said, left) = failed_start(prepare, ("mode = \"tc\"", "mode = \"tc\""));
    assert!(said.contains("relay_port"), "{said}");
    assert_eq!(left, "", "after {said}");
}

#[test]
fn a_journal_that_cannot_be_used_ends_the_start_before_anything_is_made() {
    for path in ["/proc/nowhere", "/dev/null"] {
        let (said, left) = failed_start("true", ("state = \"", &format!("state = \"{path}\"\n# \"")));
        assert!(said.contains("paths.state") && said.contains(path), "{said}");
        assert_eq!(left, "", "after {said}");
    }
}
