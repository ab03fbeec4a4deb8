//! What an agent finds of an earlier run: the indices that were given out stay with whom they were given to.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use ncm_tests::testbed::{Cloud, Guest, Host, HostOptions, Lab, TwoHosts, binary};

/// Ports of one subnet on the first host, and an address that tells them apart.
fn cloud(ports: &[(&str, u8)]) -> Cloud {
    let mut cloud = Cloud::new();
    cloud.vpc("red", 100).subnet("web", "red", "10.1.0.0/24");
    for (port, last) in ports {
        cloud.port(port, "web", &format!("10.1.0.{last}"), "host1");
    }
    cloud
}

fn guests(lab: &Lab, host: &Host, cloud: &Cloud) -> Result<Vec<Guest>> {
    cloud.ports.keys().map(|port| cloud.guest(lab, host, port)).collect()
}

/// The table of ports: (generation, MAC) by index.
fn ports(host: &Host) -> Result<BTreeMap<String, (String, String)>> {
    let text = host.expect_ncmctl(&["map", "dump", "ports", "-o", "json"])?;
    let rows: Vec<serde_json::Value> = serde_json::from_str(&text)?;
    let of = |row: &serde_json::Value| {
        let field = |name: &str| Some(row["entry"].get(name)?.to_string());
        Some((row["key"].to_string(), (field("generation")?, field("mac")?)))
    };
    rows.iter().map(|row| of(row).with_context(|| format!("no index, generation and MAC in {row}"))).collect()
}

/// An index that were given out anew under its old generation would deliver to another what still refers to it.
#[test]
fn an_index_whose_name_was_not_kept_is_not_given_to_another_after_a_restart() {
    Lab::story(|lab| {
        let net = TwoHosts::unstarted(
            lab,
            HostOptions::default().with("capacity", "names", "3").with("store", "journal", "false"),
        )?;
        let host = &net.host1;
        host.start()?;
        let first = cloud(&[("a", 11), ("b", 12), ("c", 13), ("d", 14)]);
        let first_guests = guests(lab, host, &first)?;
        host.agent().push(&first.goal_state("host1"))?.expect_success()?;
        first_guests[0].expect_ping(first_guests[3].ip())?;
        let before = ports(host)?;
        ensure!(before.len() == 4, "four ports are in the table: {before:?}");
        let names = host.expect_ncmctl(&["map", "dump", "names", "-o", "json"])?;
        let names: Vec<serde_json::Value> = serde_json::from_str(&names)?;
        ensure!(names.len() == 3, "there is no room for more than three names: {names:?}");

        host.stop()?;
        host.start()?;
        let second = cloud(&[("e", 21), ("f", 22), ("g", 23), ("h", 24)]);
        let second_guests = guests(lab, host, &second)?;
        host.agent().push(&second.goal_state("host1"))?.expect_success()?;
        second_guests[0].expect_ping(second_guests[3].ip())?;
        let after = ports(host)?;
        for (index, port) in &before {
            ensure!(
                after.get(index) == Some(port),
                "index {index} was {port:?} and is {:?}",
                after.get(index)
            );
        }
        ensure!(after.len() == 8, "the new ports have indices of their own: {after:?}");
        Ok(())
    });
}

/// Who is let in as a member of a group is so by its endpoint's entry, which the next run writes anew only when the
/// controller pushes the neighbour again; interfaces are looked after one by one. Neither is felt.
#[test]
fn members_go_on_being_let_in_while_the_state_is_pushed_again_in_parts() {
    Lab::story(|lab| {
        let mut cloud = cloud(&[("a", 11)]);
        cloud.port("b", "web", "10.1.0.12", "host2");
        cloud.group("servers", &["in any from group clients"]).group("clients", &["out any"]);
        cloud.member("a", &["servers"]).member("b", &["clients"]);
        let net = TwoHosts::new(lab, HostOptions::default())?;
        let (a, b) = (cloud.guest(lab, &net.host1, "a")?, cloud.guest(lab, &net.host2, "b")?);
        net.push(&cloud)?;
        b.expect_ping(a.ip())?;
        let on = b.begin_ping(a.ip())?;
        net.host1.stop()?;
        net.host1.start()?;
        let whole = cloud.goal_state("host1");
        let mut part = whole.clone();
        part.neighbor_states.clear();
        net.host1.agent().push(&part)?.expect_success()?;
        on.goes_on(25)?;
        b.expect_ping(a.ip()).context("a new flow of a member that is not pushed again yet")?;
        net.host1.agent().push(&whole)?.expect_success()?;
        on.goes_on(25)?;
        on.expect_no_loss().context("over a restart and a push in two parts")
    });
}

#[test]
fn a_second_agent_on_an_uplink_is_refused_and_the_first_is_not_touched() {
    Lab::story(|lab| {
        let mut cloud = cloud(&[("a", 11)]);
        cloud.port("b", "web", "10.1.0.12", "host2");
        let net = TwoHosts::new(lab, HostOptions::default())?;
        let (a, b) = (cloud.guest(lab, &net.host1, "a")?, cloud.guest(lab, &net.host2, "b")?);
        net.push(&cloud)?;
        let on = b.begin_ping(a.ip())?;
        on.goes_on(3)?;
        let host = &net.host1;
        let seen = "bpftool net show; ip -o link; find /sys/fs/bpf/ncm -type f";
        let before = host.ns.run_words(&["sh", "-c", seen])?;
        let refused = host.run_second()?;
        ensure!(!refused.success, "a second agent runs on eth0");
        for part in ["eth0", "wire_xdp", "instance \"host1\""] {
            ensure!(refused.stderr.contains(part), "{part} is not in {}", refused.stderr);
        }
        let after = host.ns.run_words(&["sh", "-c", seen])?;
        ensure!(after == before, "{before}\nbefore, and now\n{after}");
        on.goes_on(3)?;
        on.expect_no_loss()
    });
}

/// What a host has that an agent could have left: devices, addresses, neighbours that are kept, programs, pins, sockets, files.
fn traces(host: &Host) -> Result<String> {
    // Guests' interfaces lose their own address as they are set down; the file system of pins is the other host's too.
    let script = "ip -o link | awk '{print $2}'; ip -o address | grep -v tap | awk '{print $2, $4}'; \
                  ip -6 route | grep -v tap; ip route; ip neigh show | grep managed; tc qdisc show | grep -v noqueue; \
                  bpftool net show; ls -d /sys/fs/bpf/ncm/host1; ls /run/ncm | grep host1; ss -Hluln; true";
    host.ns.run_words(&["sh", "-c", script])
}

#[test]
fn a_teardown_leaves_nothing_and_the_next_start_has_everything_again() {
    Lab::story(|lab| {
        let mut cloud = cloud(&[("a", 11)]);
        cloud.port("b", "web", "10.1.0.12", "host2");
        let net = TwoHosts::unstarted(lab, HostOptions::default())?;
        let (a, b) = (cloud.guest(lab, &net.host1, "a")?, cloud.guest(lab, &net.host2, "b")?);
        net.host2.start()?;
        let host = &net.host1;
        let before = traces(host)?;
        host.start()?;
        net.push(&cloud)?;
        a.expect_ping(b.ip())?;
        let program = binary("ncm-agent")?.to_string_lossy().into_owned();
        let teardown = [program.as_str(), "--config", "/run/host1.toml", "--teardown"];
        let refused = host.ns.outcome(&teardown)?;
        ensure!(!refused.success && refused.stderr.contains("host1"), "{}", refused.stderr);
        a.expect_ping(b.ip()).context("after a teardown that was refused")?;
        host.kill();
        host.ns.run_words(&teardown)?;
        let after = traces(host)?;
        ensure!(after == before, "{before}\nbefore, and now\n{after}");
        a.expect_no_ping(b.ip())?;
        host.start()?;
        a.expect_ping(b.ip()).context("the journal knows it all")
    });
}
