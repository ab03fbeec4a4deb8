//! Pairs of guests on two hosts: one pair connected by this project, one by the kernel's own bridge and vxlan.

use anyhow::Result;

use crate::testbed::{Cloud, Guest, HostOptions, Lab, TwoHosts};

/// Two guests, each on its own host. The lab comes last: it goes when all else has gone.
pub(super) struct Pair {
    /// A guest on the first host.
    pub(super) a: Guest,
    /// A guest on the second host.
    pub(super) b: Guest,
    /// The hosts.
    pub(super) net: TwoHosts,
    _lab: Lab,
}

fn cloud(taps: bool) -> Cloud {
    let mut cloud = Cloud { taps, ..Cloud::new() };
    cloud.vpc("red", 100).subnet("web", "red", "10.1.0.0/24").port("a", "web", "10.1.0.11", "host1").port(
        "b",
        "web",
        "10.1.0.12",
        "host2",
    );
    cloud
}

/// Connects the guests with two agents.
pub(super) fn ours(options: HostOptions, taps: bool) -> Result<Pair> {
    let (lab, cloud) = (Lab::new()?, cloud(taps));
    let net = TwoHosts::new(&lab, options)?;
    let (a, b) = (cloud.guest(&lab, &net.host1, "a")?, cloud.guest(&lab, &net.host2, "b")?);
    net.push(&cloud)?;
    a.expect_ping(b.ip())?;
    Ok(Pair { a, b, net, _lab: lab })
}

/// Connects the guests with Linux bridges and vxlan devices.
pub(super) fn kernel(options: HostOptions, taps: bool) -> Result<Pair> {
    let (lab, cloud) = (Lab::new()?, cloud(taps));
    let net = TwoHosts::unstarted(&lab, options)?;
    for (host, other) in [(&net.host1, net.host2.address), (&net.host2, net.host1.address)] {
        host.ns.ip(&format!(
            "link add br0 type bridge
             link set br0 up
             link add vxlan0 type vxlan id 100 dstport 4789 local {} remote {other}
             link set vxlan0 master br0 up",
            host.address
        ))?;
    }
    let (a, b) = (cloud.guest(&lab, &net.host1, "a")?, cloud.guest(&lab, &net.host2, "b")?);
    net.host1.ns.run(&format!("ip link set {} master br0", a.spec().interface))?;
    net.host2.ns.run(&format!("ip link set {} master br0", b.spec().interface))?;
    a.expect_ping(b.ip())?;
    Ok(Pair { a, b, net, _lab: lab })
}
