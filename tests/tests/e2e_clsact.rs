//! Programs that are filters on a clsact qdisc, as before there was tcx: everything an agent does with programs, it does with these.

use anyhow::{Context, Result, ensure};
use ncm_tests::testbed::{Cloud, Guest, Host, HostOptions, Lab, TwoHosts, binary};

/// How a filter of ours is found among others.
const OURS: &str = "prio 1 handle 0x6e636d bpf";

fn cloud() -> Cloud {
    let mut cloud = Cloud::new();
    cloud.vpc("red", 100).subnet("web", "red", "10.1.0.0/24").port("a", "web", "10.1.0.11", "host1").port(
        "b",
        "web",
        "10.1.0.12",
        "host2",
    );
    cloud
}

/// Filters everywhere: on the wire too.
fn options() -> HostOptions {
    HostOptions::default().by_clsact().with("underlay", "mode", "\"tc\"")
}

/// Two hosts whose guests reach each other, and verify clean.
fn ready(lab: &Lab) -> Result<(TwoHosts, Guest, Guest)> {
    let cloud = cloud();
    let net = TwoHosts::new(lab, options())?;
    let (a, b) = (cloud.guest(lab, &net.host1, "a")?, cloud.guest(lab, &net.host2, "b")?);
    net.push(&cloud)?;
    a.expect_ping(b.ip())?;
    net.host1.expect_ncmctl(&["verify"])?;
    Ok((net, a, b))
}

/// Where the first host has filters of its agent's: (interface, direction, program).
fn filters(host: &Host) -> Result<Vec<(String, String, String)>> {
    let mut found = Vec::new();
    for qdisc in host.ns.run("tc qdisc show")?.lines().filter(|line| line.starts_with("qdisc clsact")) {
        let interface = qdisc.split_whitespace().nth(4).context("an interface")?;
        for direction in ["ingress", "egress"] {
            let shown = host.ns.run(&format!("tc filter show dev {interface} {direction}"))?;
            for word in shown.split_whitespace().filter_map(|word| word.strip_prefix("ncm/host1/")) {
                let program = word.split('/').next().unwrap_or_default();
                found.push((interface.to_owned(), direction.to_owned(), program.to_owned()));
            }
        }
    }
    found.sort();
    Ok(found)
}

#[test]
fn every_hook_is_a_filter_that_is_named_when_it_is_missing_and_put_back() {
    Lab::story(|lab| {
        let (net, a, b) = ready(lab)?;
        let host = &net.host1;
        let before = filters(host)?;
        let mut programs: Vec<&str> = before.iter().map(|(_, _, program)| program.as_str()).collect();
        programs.sort_unstable();
        ensure!(programs == ["guest_tc", "hand_down_tc", "hand_up_tc", "relay_tc", "wire_tc"], "{before:?}");
        for (interface, direction, program) in &before {
            host.ns.run(&format!("tc filter del dev {interface} {direction} {OURS}"))?;
            let verified = host.ncmctl(&["verify"])?;
            let said = &verified.stdout;
            ensure!(!verified.success && said.contains("detached") && said.contains(program), "{said}");
            let repaired = host.expect_ncmctl(&["verify", "--repair"])?;
            ensure!(repaired.contains("1 programs attached"), "{repaired}");
            host.expect_ncmctl(&["verify"])?;
            a.expect_ping(b.ip())?;
        }
        ensure!(filters(host)? == before, "as before");
        // Somebody takes the whole qdisc away.
        let tap = Cloud::interface("a");
        host.ns.run(&format!("tc qdisc del dev {tap} clsact"))?;
        ensure!(!host.ncmctl(&["verify"])?.success, "nothing was found");
        host.expect_ncmctl(&["verify", "--repair"])?;
        a.expect_ping(b.ip())?;
        let bystander = host.ns.bystander(&tap)?;
        let said = host.ncmctl(&["verify"])?.stdout;
        ensure!(said.contains("foreign") && said.contains("guest_tc") && said.contains(&tap), "{said}");
        drop(bystander);
        host.expect_ncmctl(&["verify"]).map(drop)
    });
}

#[test]
fn a_restart_finds_its_filters_and_goes_on_with_each_in_its_place() {
    Lab::story(|lab| {
        let (net, a, b) = ready(lab)?;
        let host = &net.host1;
        let before = filters(host)?;
        let on = b.begin_ping(a.ip())?;
        on.goes_on(3)?;
        host.stop()?;
        ensure!(filters(host)? == before, "they stay: {:?}", filters(host)?);
        on.goes_on(3)?;
        host.start()?;
        ensure!(filters(host)? == before, "each has taken its predecessor's place: {:?}", filters(host)?);
        host.kill();
        on.goes_on(3)?;
        host.start()?;
        host.expect_ncmctl(&["verify"])?;
        ensure!(filters(host)? == before, "{:?}", filters(host)?);
        on.goes_on(3)?;
        on.expect_no_loss()?;
        // What goes, goes without a trace.
        let links = host.ns.run("find /sys/fs/bpf/ncm/host1 -path */links/*")?;
        ensure!(links.is_empty(), "nothing of them is pinned: {links}");
        a.expect_ping(b.ip())
    });
}

#[test]
fn a_second_agent_on_an_uplink_is_refused_and_told_whose_it_is() {
    Lab::story(|lab| {
        let (net, a, b) = ready(lab)?;
        let host = &net.host1;
        let before = filters(host)?;
        let refused = host.run_second()?;
        ensure!(!refused.success, "a second agent runs on eth0");
        for part in ["eth0", "wire_tc", "instance \"host1\""] {
            ensure!(refused.stderr.contains(part), "{part} is not in {}", refused.stderr);
        }
        ensure!(filters(host)? == before, "the first one's are not touched");
        a.expect_ping(b.ip())
    });
}

#[test]
fn a_teardown_takes_its_filters_and_qdiscs_and_leaves_those_of_others() {
    Lab::story(|lab| {
        let (net, a, b) = ready(lab)?;
        let host = &net.host1;
        let tap = Cloud::interface("a");
        host.ns.run("tc filter add dev eth0 ingress prio 7 u32 match u32 0 0 classid 1:1")?;
        host.kill();
        let program = binary("ncm-agent")?.to_string_lossy().into_owned();
        host.ns.run_words(&[program.as_str(), "--config", "/run/host1.toml", "--teardown"])?;
        ensure!(filters(host)?.is_empty(), "{:?}", filters(host)?);
        let left = host.ns.run(&format!("tc qdisc show dev {tap} clsact"))?;
        ensure!(left.is_empty(), "{left}");
        let left = host.ns.run("tc filter show dev eth0 ingress")?;
        ensure!(left.contains("u32") && !left.contains("ncm/"), "somebody else's stays: {left}");
        a.expect_no_ping(b.ip())?;
        host.start()?;
        a.expect_ping(b.ip()).context("the journal knows it all")
    });
}
