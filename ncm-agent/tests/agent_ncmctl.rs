//! The tool with a real agent: what was applied is in the tables under its names, with the agent running and stopped.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod agent_common;

use std::process::{Child, Command};
use std::time::Duration;

use agent_common::Agent;
use nix::sys::signal::Signal;
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
