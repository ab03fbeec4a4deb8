//! The distributed router: the sequence of a controller's pushes, routes with next hops, gateways and TTL.

use std::net::Ipv4Addr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use ncm_model::wire::{GoalState, NeighborType, OperationType};
use ncm_tests::testbed::{Cloud, Guest, HostOptions, Lab, TwoHosts, eventually, gateway_mac};

fn cloud_with_vnis(web: u32, db: u32) -> Cloud {
    let mut cloud = Cloud::new();
    cloud
        .vpc("red", 100)
        .subnet_with_vni("web", "red", "10.1.0.0/24", web)
        .subnet_with_vni("db", "red", "10.2.0.0/24", db)
        .port("web1", "web", "10.1.0.11", "host1")
        .port("web2", "web", "10.1.0.12", "host2")
        .port("db1", "db", "10.2.0.11", "host1")
        .port("db2", "db", "10.2.0.12", "host2");
    cloud
}

/// Before the router nothing crosses subnets; with it the gateway answers; with the neighbours the ping crosses; after
/// deletes it stops while others go on.
fn routing_sequence(lab: &Lab, mut cloud: Cloud) -> Result<()> {
    let net = TwoHosts::new(lab, HostOptions::default())?;
    let web1 = cloud.guest(lab, &net.host1, "web1")?;
    let web2 = cloud.guest(lab, &net.host2, "web2")?;
    let db1 = cloud.guest(lab, &net.host1, "db1")?;
    let db2 = cloud.guest(lab, &net.host2, "db2")?;
    let (gateway, other_gateway) = (Ipv4Addr::new(10, 1, 0, 1), Ipv4Addr::new(10, 2, 0, 1));

    net.push(&cloud)?;
    web1.expect_ping(web2.ip()).context("the same subnet, without a router")?;
    ensure!(!web1.ns.pings(db1.ip())?, "without a router another subnet's guest on the same host answered");
    ensure!(!web1.ns.pings(db2.ip())?, "without a router another subnet's guest on another host answered");
    ensure!(!web1.ns.pings(gateway)?, "without a router the gateway answered a ping");
    ensure!(
        web1.arp(gateway)? == Some(gateway_mac(gateway)),
        "the gateway's MAC is answered without a router too"
    );
    let background = web1.begin_ping(web2.ip())?;

    cloud.router("r", &["web", "db"]);
    for host in net.hosts() {
        let mut push = GoalState { format_version: 101, ..Default::default() };
        push.router_states.push(cloud.router_state("r", OperationType::Create));
        host.agent().push(&push)?.expect_success()?;
    }
    web1.expect_ping(gateway).context("the own gateway, with the router")?;
    web1.expect_ping(other_gateway).context("the router's other gateway")?;
    web1.expect_ping(db1.ip()).context("another subnet on the same host, with the router")?;
    ensure!(
        !web1.ns.pings(db2.ip())?,
        "without L3 neighbours another host's guest in another subnet answered"
    );

    let neighbors = |host: &str, operation| {
        let mut push = GoalState { format_version: 101, ..Default::default() };
        let far = cloud.ports.values().filter(|port| port.host != host);
        push.neighbor_states =
            far.map(|port| cloud.neighbor_state(&port.name, NeighborType::L3, operation)).collect();
        push
    };
    for host in net.hosts() {
        host.agent().push(&neighbors(host.name(), OperationType::Create))?.expect_success()?;
    }
    web1.expect_ping(db2.ip()).context("another subnet on another host, with L3 neighbours")?;
    db2.expect_ping(web1.ip())?;
    web1.expect_tcp(&db2, 1_000_000)?;

    for host in net.hosts() {
        host.agent().push(&neighbors(host.name(), OperationType::Delete))?.expect_success()?;
    }
    web1.expect_no_ping(db2.ip()).context("after the L3 neighbours were deleted")?;
    ensure!(web1.ns.pings(db1.ip())?, "deleting remote neighbours stopped local routing");

    for host in net.hosts() {
        host.agent().push(&neighbors(host.name(), OperationType::Create))?.expect_success()?;
    }
    web1.expect_ping(db2.ip()).context("after the L3 neighbours came back")?;
    for host in net.hosts() {
        let mut push = GoalState { format_version: 101, ..Default::default() };
        push.router_states.push(cloud.router_state("r", OperationType::Delete));
        host.agent().push(&push)?.expect_success()?;
    }
    web1.expect_no_ping(db2.ip()).context("after the router was deleted")?;
    ensure!(
        !web1.ns.pings(db1.ip())?,
        "after the router was deleted another subnet on the same host answered"
    );
    ensure!(!web1.ns.pings(gateway)?, "after the router was deleted the gateway answered");
    background.expect_no_loss().context("the same subnet, all the while")
}

#[test]
fn the_routing_sequence_with_one_vni_per_subnet() {
    Lab::story(|lab| routing_sequence(lab, cloud_with_vnis(101, 102)));
}

#[test]
fn the_routing_sequence_with_one_vni_shared_by_all() {
    Lab::story(|lab| routing_sequence(lab, cloud_with_vnis(0, 0)));
}

#[test]
fn the_longest_prefix_decides_on_the_next_hop() {
    Lab::story(|lab| {
        let mut cloud = cloud_with_vnis(101, 102);
        cloud
            .port("wide", "web", "10.1.0.20", "host1")
            .port("narrow", "web", "10.1.0.21", "host2")
            .router("r", &["web", "db"])
            .rule("r", "web", "172.16.0.0/12", "10.1.0.20")
            .rule("r", "web", "172.16.5.0/24", "10.1.0.21")
            .rule("r", "web", "0.0.0.0/0", "10.2.0.12");
        let all = ("0.0.0.0/0".to_owned(), String::new());
        for port in ["wide", "narrow", "db2"] {
            if let Some(port) = cloud.ports.get_mut(port) {
                port.allowed.push(all.clone());
            }
        }
        let net = TwoHosts::new(lab, HostOptions::default())?;
        let guest = |host, port| cloud.guest(lab, host, port);
        let web1 = guest(&net.host1, "web1")?;
        let (wide, narrow) = (guest(&net.host1, "wide")?, guest(&net.host2, "narrow")?);
        let db2 = guest(&net.host2, "db2")?;
        let _rest = [guest(&net.host2, "web2")?, guest(&net.host1, "db1")?];
        net.push(&cloud)?;

        let (by_wide, by_narrow, by_default) =
            (Ipv4Addr::new(172, 16, 1, 1), Ipv4Addr::new(172, 16, 5, 1), Ipv4Addr::new(8, 8, 8, 8));
        for (holder, address) in [(&wide, by_wide), (&narrow, by_narrow), (&db2, by_default)] {
            holder.ns.run(&format!("ip address add {address}/32 dev lo"))?;
        }
        let answers = |address: Ipv4Addr, holder: &Guest, others: [&Guest; 2]| -> Result<()> {
            let sniff = others.map(|other| other.packets());
            web1.expect_ping(address).with_context(|| format!("{address} is behind {}", holder.name()))?;
            for (socket, other) in sniff.into_iter().zip(others) {
                let stray = socket?.receive(Duration::from_millis(100), |frame| {
                    ncm_tests::testbed::packets::ipv4_of(frame).is_some_and(|(_, to, _)| to == address)
                })?;
                ensure!(stray.is_none(), "{} got a packet for {address}", other.name());
            }
            Ok(())
        };
        answers(by_wide, &wide, [&narrow, &db2])?;
        answers(by_narrow, &narrow, [&wide, &db2])?;
        answers(by_default, &db2, [&wide, &narrow])
    });
}

#[test]
fn ttl_runs_out_at_the_gateway() {
    Lab::story(|lab| {
        let mut cloud = cloud_with_vnis(101, 102);
        cloud.router("r", &["web", "db"]);
        let net = TwoHosts::new(lab, HostOptions::default())?;
        let web1 = cloud.guest(lab, &net.host1, "web1")?;
        let _others = [
            cloud.guest(lab, &net.host2, "web2")?,
            cloud.guest(lab, &net.host1, "db1")?,
            cloud.guest(lab, &net.host2, "db2")?,
        ];
        net.push(&cloud)?;
        let far = Ipv4Addr::new(10, 2, 0, 12);
        web1.expect_ping(far)?;

        let words = ["ping", "-n", "-c", "1", "-W", "1", "-t", "1", &far.to_string()].map(str::to_owned);
        let shown = web1.ns.outcome(&words)?.stdout;
        ensure!(
            shown.contains("From 10.1.0.1") && shown.contains("Time to live exceeded"),
            "expected the gateway 10.1.0.1 to say that the TTL ran out, came:\n{shown}"
        );
        let shown = web1.ns.run(&format!("tracepath -n -m 4 {far}"))?;
        let hops: Vec<&str> = shown.lines().filter(|line| line.contains("10.")).collect();
        ensure!(
            shown.contains("10.1.0.1 ") && shown.contains(&format!("{far} ")) && shown.contains("hops 2"),
            "expected the path 10.1.0.1, {far}, came:\n{}",
            hops.join("\n")
        );
        eventually("the counter of time exceeded moves", Duration::from_secs(2), || {
            Ok(net.host1.metric(&["ncm_path_packets_total{", "\"time_exceeded_sent\""])? >= 1.0)
        })
    });
}

#[test]
fn arp_is_answered_for_gateways_and_known_endpoints_and_nothing_else() {
    Lab::story(|lab| {
        let cloud = cloud_with_vnis(101, 102);
        let net = TwoHosts::new(lab, HostOptions::default())?;
        let web1 = cloud.guest(lab, &net.host1, "web1")?;
        let web2 = cloud.guest(lab, &net.host2, "web2")?;
        let _others = [cloud.guest(lab, &net.host1, "db1")?, cloud.guest(lab, &net.host2, "db2")?];
        net.push(&cloud)?;

        ensure!(web1.arp(web2.ip())? == Some(web2.mac()), "ARP for a guest on another host");
        let gateway = Ipv4Addr::new(10, 1, 0, 1);
        ensure!(web1.arp(gateway)? == Some(gateway_mac(gateway)), "ARP for the gateway");
        ensure!(web1.arp(Ipv4Addr::new(10, 1, 0, 99))?.is_none(), "ARP for an address that nobody has");
        ensure!(web1.arp(Ipv4Addr::new(10, 2, 0, 12))?.is_none(), "ARP for a guest of another subnet");
        // Duplicate address detection: a probe for the own address must stay unanswered.
        let probe = web1.arp_from(Ipv4Addr::UNSPECIFIED, web1.ip())?;
        ensure!(probe.is_none(), "a probe for the guest's own address was answered");
        ensure!(net.host1.drops("spoofed_arp")? == 0, "a probe counted as spoofing");
        Ok(())
    });
}
