//! Guests with addresses in several subnets of one family.

use std::net::Ipv6Addr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use ncm_tests::testbed::{Cloud, Guest, HostOptions, Lab, TwoHosts, eventually};

const SOON: Duration = Duration::from_secs(10);

/// Two subnets over IPv6 with a VNI each, and guests that are in both: of each host one.
fn cloud() -> Cloud {
    let mut cloud = Cloud::new();
    cloud
        .vpc("red", 100)
        .subnet("four", "red", "10.1.0.0/24")
        .subnet_with_vni("six", "red", "fd00:1::/64", 101)
        .subnet_with_vni("more", "red", "fd00:2::/64", 102);
    for (name, last, host) in [("one", 11, "host1"), ("near", 12, "host1"), ("far", 13, "host2")] {
        cloud.port(name, "four", &format!("10.1.0.{last}"), host);
        cloud.address(name, "six", &format!("fd00:1::{last}"));
        cloud.address(name, "more", &format!("fd00:2::{last}"));
    }
    cloud
}

/// Has the guest's system look whether a neighbour is still there. It asks from its link-local address then, as no packet waits.
fn expect_confirmed(guest: &Guest, neighbour: Ipv6Addr) -> Result<()> {
    let state = || guest.ns.run(&format!("ip -6 neighbour show {neighbour} dev eth0"));
    let shown = state()?;
    let mac = shown.split_whitespace().skip_while(|word| *word != "lladdr").nth(1);
    let mac = mac.with_context(|| format!("{neighbour} is known: {shown}"))?;
    guest.ns.run(&format!("ip -6 neighbour change {neighbour} dev eth0 lladdr {mac} nud probe"))?;
    eventually(&format!("{neighbour} is confirmed"), SOON, || {
        let shown = state()?;
        ensure!(!shown.contains("FAILED"), "nobody answered for {neighbour}: {shown}");
        Ok(shown.contains("REACHABLE"))
    })
}

#[test]
fn a_guest_in_two_subnets_over_ipv6_keeps_its_neighbours_in_both() {
    Lab::story(|lab| {
        let cloud = cloud();
        let net = TwoHosts::new(lab, HostOptions::default())?;
        let one = cloud.guest(lab, &net.host1, "one")?;
        let _others = (cloud.guest(lab, &net.host1, "near")?, cloud.guest(lab, &net.host2, "far")?);
        net.push(&cloud)?;
        for subnet in [1, 2] {
            for last in ["12", "13"] {
                let neighbour: Ipv6Addr = format!("fd00:{subnet}::{last}").parse()?;
                one.expect_ping(neighbour)?;
                expect_confirmed(&one, neighbour)?;
                one.expect_ping(neighbour)?;
            }
        }
        Ok(())
    });
}
