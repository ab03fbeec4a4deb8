//! Traffic between guests in every constellation: same and different subnets, same and different hosts, veth and tap
//! guests, wires like a network card's and virtual ones, every hook.

use anyhow::Result;
use ncm_tests::testbed::{Cloud, Guest, HostOptions, Lab, TwoHosts};

/// Two subnets of one router, each with a guest on either host.
fn two_subnets() -> Cloud {
    let mut cloud = Cloud::new();
    cloud
        .vpc("red", 100)
        .subnet_with_vni("web", "red", "10.1.0.0/24", 101)
        .subnet_with_vni("db", "red", "10.2.0.0/24", 102)
        .port("web1", "web", "10.1.0.11", "host1")
        .port("web2", "web", "10.1.0.12", "host2")
        .port("web3", "web", "10.1.0.13", "host1")
        .port("db1", "db", "10.2.0.11", "host1")
        .port("db2", "db", "10.2.0.12", "host2")
        .router("r", &["web", "db"]);
    cloud
}

/// Pings and moves a few megabytes over TCP, both ways, between guests of one and two hosts and subnets.
fn everything_reaches_everything(lab: &Lab, net: &TwoHosts, cloud: &Cloud) -> Result<()> {
    let web1 = cloud.guest(lab, &net.host1, "web1")?;
    let web2 = cloud.guest(lab, &net.host2, "web2")?;
    let web3 = cloud.guest(lab, &net.host1, "web3")?;
    let db1 = cloud.guest(lab, &net.host1, "db1")?;
    let db2 = cloud.guest(lab, &net.host2, "db2")?;
    net.push(cloud)?;

    let both_ways = |left: &Guest, right: &Guest| -> Result<()> {
        left.expect_ping(right.ip())?;
        left.expect_steady_ping(right.ip(), 20)?;
        left.expect_tcp(right, 4_000_000)?;
        right.expect_tcp(left, 4_000_000).map(drop)
    };
    both_ways(&web1, &web3)?;
    both_ways(&web1, &web2)?;
    both_ways(&web1, &db1)?;
    both_ways(&web1, &db2)
}

#[test]
fn veth_guests_over_a_wire_between_network_cards() {
    Lab::story(|lab| {
        let net = TwoHosts::new(lab, HostOptions::default())?;
        everything_reaches_everything(lab, &net, &two_subnets())
    });
}

#[test]
fn tap_guests_over_a_wire_between_network_cards() {
    Lab::story(|lab| {
        let net = TwoHosts::new(lab, HostOptions::default())?;
        everything_reaches_everything(lab, &net, &Cloud { taps: true, ..two_subnets() })
    });
}

#[test]
fn veth_guests_over_a_virtual_wire_with_segmentation_offload() {
    Lab::story(|lab| {
        let net = TwoHosts::new(lab, HostOptions::virtual_wire())?;
        everything_reaches_everything(lab, &net, &two_subnets())
    });
}

#[test]
fn tap_guests_over_a_virtual_wire_with_segmentation_offload() {
    Lab::story(|lab| {
        let net = TwoHosts::new(lab, HostOptions::virtual_wire())?;
        everything_reaches_everything(lab, &net, &Cloud { taps: true, ..two_subnets() })
    });
}

#[test]
fn the_kernel_decapsulates_where_the_configuration_says_tc() {
    Lab::story(|lab| {
        let net = TwoHosts::new(lab, HostOptions::default().with("underlay", "mode", "\"tc\""))?;
        everything_reaches_everything(lab, &net, &two_subnets())
    });
}

#[test]
fn guests_on_xdp() {
    Lab::story(|lab| {
        let net = TwoHosts::new(lab, HostOptions::default().with("guest", "mode", "\"xdp\""))?;
        everything_reaches_everything(lab, &net, &two_subnets())
    });
}

#[test]
fn an_underlay_with_jumbo_frames_carries_full_sized_guest_frames() {
    Lab::story(|lab| {
        let net = TwoHosts::new(lab, HostOptions { mtu: 1600, ..HostOptions::default() })?;
        let cloud = two_subnets();
        let spec = |port: &str| -> Result<_> {
            let mut spec = cloud.guest_spec(port)?;
            spec.mtu = 1500;
            Ok(spec)
        };
        let web1 = Guest::new(lab, &net.host1.ns, spec("web1")?)?;
        let web2 = Guest::new(lab, &net.host2.ns, spec("web2")?)?;
        let _others = [
            cloud.guest(lab, &net.host1, "web3")?,
            cloud.guest(lab, &net.host1, "db1")?,
            cloud.guest(lab, &net.host2, "db2")?,
        ];
        net.push(&cloud)?;
        web1.expect_ping(web2.ip())?;
        web1.ns.run(&format!("ping -n -c 3 -i 0.05 -M do -s 1472 {}", web2.ip()))?;
        web1.expect_tcp(&web2, 4_000_000).map(drop)
    });
}
