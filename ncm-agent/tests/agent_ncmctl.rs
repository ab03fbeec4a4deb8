//! The tool with a real agent: what was applied is in the tables under its names, with the agent running and stopped.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod agent_common;

use std::process::{Child, Command};
use std::time::Duration;

use agent_common::Agent;
use ncm_common::tables::{Flow, FlowKey, flow_kinds, flow_state, name_kinds, ticks};
use ncm_dataplane::{Dataplane, Options, Tables};
use nix::sys::signal::Signal;
use nix::time::{ClockId, clock_gettime};
use serde_json::{Value, json};

const EXAMPLE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/host1.yaml");

/// Runs the tool in an agent's namespaces, which stay while this does.
struct Tool {
    keeper: Child,
    directory: std::path::PathBuf,
}

impl Tool {
    fn of(agent: &Agent) -> Self {
        let target = agent.pid().to_string();
        let keeper =
            Command::new("nsenter").args(["--target", &target, "--net", "--mount", "sleep", "120"]).spawn();
        Self { keeper: keeper.unwrap(), directory: agent.scratch.0.clone() }
    }

    /// Exit code, standard output, standard error.
    fn run(&self, arguments: &[&str]) -> (i32, String, String) {
        let output = Command::new("nsenter")
            .args([
                "--target",
                &self.keeper.id().to_string(),
                "--net",
                "--mount",
                env!("CARGO_BIN_EXE_ncmctl"),
            ])
            .args(["--instance", "a-test"])
            .args(arguments)
            .env("NCM_SOCKET", self.directory.join("tool.sock"))
            .env("NCM_BPFFS", self.directory.join("bpf"))
            .output()
            .unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
    }

    #[track_caller]
    fn ok(&self, arguments: &[&str]) -> String {
        let (exit, out, err) = self.run(arguments);
        assert_eq!(exit, 0, "ncmctl {arguments:?}\n{out}\n{err}");
        out
    }

    #[track_caller]
    fn json(&self, arguments: &[&str]) -> Value {
        serde_json::from_str(&self.ok(&[arguments, &["-o", "json"]].concat())).unwrap()
    }
}

impl Drop for Tool {
    fn drop(&mut self) {
        drop(self.keeper.kill());
        drop(self.keeper.wait());
    }
}

#[test]
fn what_is_applied_is_held_programmed_and_shown_by_name_until_it_is_deleted() {
    let mut agent = Agent::start("");
    let tool = Tool::of(&agent);

    let would = tool.json(&["apply", "-f", EXAMPLE, "--dry-run"]);
    assert!(
        would["differences"].as_array().unwrap().iter().all(|row| row["change"] == "CHANGE_ADD"),
        "{would}"
    );
    assert_eq!(tool.json(&["get"]), json!([]), "a dry run changes nothing");

    let rows = tool.json(&["apply", "-f", EXAMPLE]);
    let of = |id: &str| rows.as_array().unwrap().iter().find(|row| row["id"] == id).unwrap();
    assert_eq!(of("red-router")["status"], "SUCCESS");
    // Its interface does not exist yet: it waits, and the tool can wait with it.
    assert_eq!(of("red-web1")["status"], "PENDING");
    assert!(of("red-web1")["cause"].as_str().unwrap().contains("tapred-web1"), "{rows}");
    assert_eq!(tool.run(&["apply", "-f", EXAMPLE, "--wait", "1"]).0, 4);
    agent.run(
        "ip link add tapred-web1 type veth peer name g1; ip link add tapblue-web1 type veth peer name g2",
    );
    tool.ok(&["apply", "-f", EXAMPLE, "--wait", "20"]);

    let port = &tool.json(&["get", "port", "red-web1"])[0];
    assert_eq!((&port["status"], &port["origin"]), (&json!("SUCCESS"), &json!("ORIGIN_TOOL")));
    assert_eq!(port["configuration"]["macAddress"], "02:00:00:00:00:11");
    assert_eq!(port["mtu"], 1450, "what an underlay of 1500 carries in the tunnel");
    assert!(tool.ok(&["get", "port", "red-web1"]).contains("1450"));

    // Both tenants have the address; names tell which is whose.
    let location = |vni: &str| {
        let key = format!("vni={vni},ip=10.0.0.11");
        tool.json(&["map", "get", "endpoints_ip", &key])["entry"]["location"].clone()
    };
    assert_eq!((location("101"), location("200")), (json!("port red-web1"), json!("port blue-web1")));
    let route = tool.json(&["map", "get", "routes", "from=red-web,prefix=10.0.1.7"]);
    assert_eq!(
        (&route["key"], &route["entry"]["subnet"]),
        (&json!("from=red-web,prefix=10.0.1.0/24"), &json!("red-db"))
    );
    let interface = tool.json(&["map", "get", "ports", "port=red-web1"])["entry"]["interface"].clone();
    assert_eq!(interface, "tapred-web1");

    // Every table can be listed and dumped, and says the same when no agent runs.
    let tables = tool.json(&["map", "list"]);
    let names: Vec<&str> =
        tables.as_array().unwrap().iter().map(|table| table["name"].as_str().unwrap()).collect();
    assert_eq!(names.len(), ncm_common::tables::TABLES.len());
    let configured =
        ["names", "node", "subnets", "ports", "vnis", "vteps", "endpoints_mac", "endpoints_ip", "routes"];
    let dumps = || configured.map(|name| tool.json(&["map", "dump", name]));
    let before = dumps();
    for name in &names {
        tool.ok(&["map", "dump", name]);
    }
    agent.signal(Signal::SIGTERM);
    agent.ended(Duration::from_secs(10));
    let (exit, out, err) = tool.run(&["map", "dump", "ports"]);
    assert!(
        exit == 0 && out.contains("red-web1") && err.contains("the agent is not running"),
        "{out}\n{err}"
    );
    assert_eq!(dumps(), before);
    tool.ok(&["drops"]);
    let (exit, _, err) = tool.run(&["status"]);
    assert!(exit == 3 && err.contains("is the agent running?"), "{err}");
}

#[test]
fn delete_takes_back_what_apply_did_to_the_last_entry() {
    let agent = Agent::start("");
    let tool = Tool::of(&agent);
    let tables = [
        "names",
        "subnets",
        "ports",
        "vnis",
        "subnet_prefixes",
        "vteps",
        "endpoints_mac",
        "endpoints_ip",
        "routes",
    ];
    tool.ok(&["apply", "-f", EXAMPLE]);
    assert!(
        tables.iter().all(|name| tool.json(&["map", "dump", name]) != json!([])),
        "something is not programmed"
    );
    tool.ok(&["delete", "-f", EXAMPLE]);
    assert_eq!(tool.json(&["get"]), json!([]));
    for name in tables.iter().filter(|name| **name != "names") {
        assert_eq!(tool.json(&["map", "dump", name]), json!([]), "{name}");
    }
    // What was deleted stays deleted, and is known to have been: once more is no failure. What never was is one.
    tool.ok(&["delete", "-f", EXAMPLE]);
    let other = agent.scratch.0.join("other.yaml");
    std::fs::write(&other, "vpcStates: {v: {configuration: {id: never-held}}}\n").unwrap();
    let (exit, out, _) = tool.run(&["delete", "-f", &other.display().to_string()]);
    assert!(exit == 1 && out.contains("failure"), "{out}");
}

/// A flow of now, of a port in these tables.
fn flow(tables: &Tables, port: u32, state: u32) -> Flow {
    let now = ticks(
        Duration::from(clock_gettime(ClockId::CLOCK_MONOTONIC).unwrap()).as_nanos().try_into().unwrap(),
    );
    let port = tables.ports.get(&port).unwrap().unwrap();
    Flow {
        state,
        seen: [now, now],
        created: now,
        timeout: ticks(600_000_000_000),
        port_generation: port.generation,
        port_epoch: port.epoch,
        ..Flow::default()
    }
}

#[test]
fn flows_are_listed_by_port_address_protocol_and_state_with_and_without_an_agent() {
    let mut agent = Agent::start("");
    let tool = Tool::of(&agent);
    tool.ok(&["apply", "-f", EXAMPLE]);
    let bpffs = format!("/proc/{}/root{}", agent.pid(), agent.scratch.0.join("bpf").display());
    let options = Options { bpffs: bpffs.into(), ..Options::pinned("a-test") };
    let dataplane = Dataplane::open(&options).unwrap();
    let tables = dataplane.tables();
    let index = |id: &str| {
        let names = tables.names.entries().unwrap();
        let of = names.iter().find(|(key, name)| key.kind == name_kinds::PORT && name.as_str() == id);
        of.unwrap().0.index
    };
    let (red, blue) = (index("red-web1"), index("blue-web1"));
    let address = |text: &str| text.parse::<std::net::Ipv4Addr>().unwrap().to_ipv6_mapped().octets();
    let key = |port, protocol, remote: &str, number: u16| FlowKey {
        port,
        protocol,
        local: address("10.0.0.11"),
        local_port: number.to_be_bytes(),
        remote: address(remote),
        remote_port: 443_u16.to_be_bytes(),
        ..FlowKey::default()
    };
    let answered = flow_state::ANSWERED | flow_state::CONFIRMED;
    for (key, state) in [
        (key(red, 6, "10.0.0.12", 1), answered),
        (key(red, 17, "10.0.0.13", 2), answered),
        (key(blue, 6, "10.0.0.12", 3), answered | flow_state::FIN_OUT),
    ] {
        tables.flows.put(&key, &flow(tables, key.port, state)).unwrap();
    }
    let new = key(blue, 6, "10.0.0.14", 4);
    tables.half_open.of(blue).unwrap().unwrap().put(&new, &flow(tables, blue, 0)).unwrap();
    let fragments = FlowKey { kind: flow_kinds::FRAGMENT_IN, ..new };
    tables.half_open.of(blue).unwrap().unwrap().put(&fragments, &flow(tables, blue, 0)).unwrap();

    // Each flow by the port that it has on its side.
    let listed = |arguments: &[&str]| {
        let rows = tool.json(&[&["flows"], arguments].concat());
        let of = |row: &Value| row["entry"]["local_port"].as_u64().unwrap();
        let mut ports: Vec<u64> = rows.as_array().unwrap().iter().map(of).collect();
        ports.sort_unstable();
        ports
    };
    let all_conditions = |more: &[&str]| {
        let with = |arguments: &[&str]| listed(&[arguments, more].concat());
        assert_eq!(with(&[]), [1, 2, 3, 4], "fragments are no flows");
        assert_eq!(with(&["--port", "red-web1"]), [1, 2]);
        assert_eq!(with(&["--address", "10.0.0.12"]), [1, 3], "the other side's");
        assert_eq!(with(&["--address", "10.0.0.11"]), [1, 2, 3, 4], "the guest's");
        assert_eq!(with(&["--protocol", "udp"]), [2]);
        assert_eq!(with(&["--protocol", "tcp", "--port", "blue-web1"]), [3, 4]);
        assert_eq!(with(&["--state", "closing"]), [3]);
        assert_eq!(with(&["--state", "new"]), [4]);
        assert_eq!(with(&["--state", "established", "--address", "10.0.0.13"]), [2]);
        assert_eq!(with(&["--address", "10.9.9.9"]), [0; 0]);
    };
    all_conditions(&[]);
    all_conditions(&["--offline"]);
    let text = tool.ok(&["flows", "--port", "red-web1"]);
    assert!(text.contains("red-web1") && text.contains("10.0.0.13") && !text.contains("blue-web1"), "{text}");
    let dumped = |conditions: &[&str]| {
        let only: Vec<&str> = conditions.iter().flat_map(|condition| ["--only", condition]).collect();
        tool.json(&[&["map", "dump", "flows"], only.as_slice()].concat()).as_array().unwrap().len()
    };
    assert_eq!((dumped(&[]), dumped(&["protocol=tcp"])), (3, 2));
    assert_eq!(dumped(&["protocol=tcp", "port=red-web1"]), 1, "all conditions together");
    assert_eq!(dumped(&["local|remote=10.0.0.13"]), 1, "either column");
    let (exit, _, err) = tool.run(&["map", "dump", "flows", "--only", "colour=red"]);
    assert!(exit != 0 && err.contains("colour"), "{err}");

    agent.signal(Signal::SIGTERM);
    agent.ended(Duration::from_secs(10));
    all_conditions(&[]);
}
