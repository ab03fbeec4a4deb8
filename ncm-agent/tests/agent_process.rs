//! The daemon as a process: how it starts, refuses to start, and stops.

mod agent_common;

use std::os::unix::net::UnixDatagram;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::time::Duration;

use agent_common::{Agent, PATIENCE, Scratch};
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
fn a_second_agent_of_an_instance_is_refused_by_name_wherever_it_has_its_directories() {
    let agent = Agent::start("");
    let dir = agent.scratch.0.display().to_string();
    let other = Scratch::new();
    let text = std::fs::read_to_string(other.configure("")).expect("was written");
    let config = other.0.join("agent.toml");
    std::fs::write(&config, text.replace("127.0.0.1:9477", "127.0.0.1:9478")).expect("can be written");
    let said = agent.run(&format!("{AGENT} --config {} 2>&1 && exit 1; true", config.display()));
    assert!(said.contains("a-test") && said.contains(&format!("process {}", agent.pid())), "{said}");
    assert_eq!(said.trim().lines().filter(|line| line.starts_with("ncm-agent:")).count(), 1, "{said}");
    assert!(agent.run(&format!("{} --instance a-test status", tool(&dir))).contains("a-test"));
}

/// The operator's tool, for an agent with its directories there.
fn tool(dir: &str) -> String {
    format!("NCM_SOCKET={dir}/tool.sock {}", env!("CARGO_BIN_EXE_ncmctl"))
}

#[test]
fn a_second_agent_on_an_uplink_is_refused_by_name_and_the_first_is_untouched() {
    let mut agent = Agent::start("");
    let dir = agent.scratch.0.display().to_string();
    let text = std::fs::read_to_string(format!("{dir}/agent.toml")).expect("was written");
    for mode in ["tc", "auto"] {
        let text = text
            .replace("a-test", "second")
            .replace("mode = \"tc\"", &format!("mode = \"{mode}\"\nrelay_port = 4790"))
            .replace("9477", "9478")
            .replace(".sock", "-second.sock");
        std::fs::write(format!("{dir}/{mode}.toml"), text).expect("can be written");
    }
    let second = |mode: &str| format!("{AGENT} --config {dir}/{mode}.toml 2>&1 && exit 1; true");
    let state = format!(
        "bpftool net show; find {dir}/bpf -type f; ip -o link; sysctl -a 2>/dev/null | grep 'conf.default'"
    );
    let before = agent.run(&state);
    for mode in ["tc", "auto"] {
        let said = agent.run(&second(mode));
        assert!(said.contains("up0") && said.contains("instance \"a-test\""), "{mode}: {said}");
        assert_eq!(
            agent.run(&state),
            before,
            "something of the first was touched, or something is left: {said}"
        );
    }
    // That the first is not running now does not make the interface free.
    let keeper = Keeper::of(&agent);
    agent.signal(Signal::SIGKILL);
    agent.ended(PATIENCE);
    let said = keeper.run(&second("auto"));
    assert!(said.contains("up0") && said.contains("--instance a-test --teardown"), "{said}");
}

/// A process that keeps an agent's namespaces, and with them its pins.
struct Keeper(std::process::Child);

impl Keeper {
    /// Enters them; returns when it has.
    fn of(agent: &Agent) -> Self {
        let target = agent.pid().to_string();
        let sleep =
            Command::new("nsenter").args(["--target", &target, "--net", "--mount", "sleep", "60"]).spawn();
        let keeper = Self(sleep.expect("can run nsenter"));
        let begun = std::time::Instant::now();
        while !keeper.run(&format!("ls {}/bpf", agent.scratch.0.display())).contains("ncm") {
            assert!(begun.elapsed() < Duration::from_secs(5), "the keeper does not start");
        }
        keeper
    }

    /// Runs a command there, and says what it says.
    fn run(&self, command: &str) -> String {
        let target = self.0.id().to_string();
        let output = Command::new("nsenter")
            .args(["--target", &target, "--net", "--mount", "sh", "-c", command])
            .output()
            .expect("can run nsenter");
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

#[test]
fn the_supervisor_is_told_that_it_is_ready_that_it_works_and_that_it_stops() {
    let scratch = Scratch::new();
    let path = scratch.0.join("notify").display().to_string();
    let socket = UnixDatagram::bind(&path).expect("can be bound");
    socket.set_read_timeout(Some(PATIENCE)).expect("can be set");
    let said = || {
        let mut bytes = [0; 64];
        let length = socket.recv(&mut bytes).expect("something is said");
        String::from_utf8_lossy(&bytes[..length]).into_owned()
    };
    let variables = [("NOTIFY_SOCKET", path.as_str()), ("WATCHDOG_USEC", "200000")];
    let mut agent = Agent::start_with("", &variables);
    let first = std::iter::repeat_with(said).find(|text| text != "WATCHDOG=1");
    assert_eq!(first.as_deref(), Some("READY=1"));
    for _ in 0..5 {
        assert_eq!(said(), "WATCHDOG=1");
    }
    agent.signal(Signal::SIGTERM);
    let last = std::iter::repeat_with(said).find(|text| text != "WATCHDOG=1");
    assert_eq!(last.as_deref(), Some("STOPPING=1"));
    assert!(agent.ended(Duration::from_secs(1)).success());
}

#[test]
fn it_stops_within_a_second_and_leaves_its_pins_until_teardown() {
    let mut agent = Agent::start("");
    let dir = agent.scratch.0.clone();
    let keeper = Keeper::of(&agent);
    let inside = |command: &str| keeper.run(command);
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
