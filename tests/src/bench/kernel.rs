//! Pairs of guests on two hosts: one connected by this project, with a policy; and what it is held against, the kernel's own
//! bridge and vxlan, with the same policy by connection tracking or with none.

use anyhow::Result;
use ncm_model::wire::security_group_configuration::{Direction, SecurityGroupRule};
use ncm_model::wire::{EtherType, Protocol, port_configuration::SecurityGroupId};

use super::group::{group, rule};
use crate::testbed::{Cloud, Guest, HostOptions, Lab, TwoHosts};

/// What the guests may do, both ways: any TCP, UDP and ICMP within their subnet.
const SUBNET: &str = "10.1.0.0/24";

/// Two guests, each on its own host. The lab comes last: it goes when all else has gone.
pub(super) struct Pair {
    /// How they are connected.
    pub(super) name: &'static str,
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
    cloud.vpc("red", 100).subnet("web", "red", SUBNET).port("a", "web", "10.1.0.11", "host1").port(
        "b",
        "web",
        "10.1.0.12",
        "host2",
    );
    cloud
}

/// Connects the guests with two agents, in a security group.
pub(super) fn ours(options: HostOptions, taps: bool) -> Result<Pair> {
    let (lab, cloud) = (Lab::new()?, cloud(taps));
    let net = TwoHosts::new(&lab, options)?;
    let (a, b) = (cloud.guest(&lab, &net.host1, "a")?, cloud.guest(&lab, &net.host2, "b")?);
    for host in net.hosts() {
        let mut state = cloud.goal_state(host.name());
        state.security_group_states.push(group("guests", rules()));
        for port in state.port_states.iter_mut().filter_map(|port| port.configuration.as_mut()) {
            port.security_group_ids = vec![SecurityGroupId { id: "guests".to_owned() }];
        }
        host.agent().push(&state)?.expect_success()?;
    }
    a.expect_ping(b.ip())?;
    Ok(Pair { name: OURS, a, b, net, _lab: lab })
}

fn rules() -> Vec<SecurityGroupRule> {
    let mut rules = Vec::new();
    for direction in [Direction::Egress, Direction::Ingress] {
        for protocol in [Protocol::Tcp, Protocol::Udp, Protocol::Icmp] {
            let id = format!("{direction:?}-{protocol:?}");
            rules.push(rule(id, direction, EtherType::Ipv4, protocol, (0, 0), SUBNET.to_owned()));
        }
    }
    rules
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
        // Where connection tracking on bridges is loaded, it is on in a new namespace, without rules even.
        if host.ns.run("test -e /proc/sys/net/bridge").is_ok() {
            host.ns.sysctl("bridge.bridge-nf-call-iptables", "0")?;
        }
    }
    let (a, b) = (cloud.guest(&lab, &net.host1, "a")?, cloud.guest(&lab, &net.host2, "b")?);
    net.host1.ns.run(&format!("ip link set {} master br0", a.spec().interface))?;
    net.host2.ns.run(&format!("ip link set {} master br0", b.spec().interface))?;
    a.expect_ping(b.ip())?;
    Ok(Pair { name: BRIDGE, a, b, net, _lab: lab })
}

/// The same with connection tracking on both hosts, and the same rules, as hosts of clouds do it: bridged packets go through
/// the chains of `ip`. (Connection tracking of the bridge's own is not in every kernel.)
pub(super) fn stateful(options: HostOptions, taps: bool) -> Result<Pair> {
    let pair = Pair { name: CONNTRACK, ..kernel(options, taps)? };
    for host in pair.net.hosts() {
        host.ns.sysctl("bridge.bridge-nf-call-iptables", "1")?;
        let guests = format!("ip saddr {SUBNET} ip daddr {SUBNET}");
        let lines = [
            "add table ip guests".to_owned(),
            "add chain ip guests forward { type filter hook forward priority 0; policy drop; }".to_owned(),
            "add rule ip guests forward ct state established,related accept".to_owned(),
            "add rule ip guests forward ct state invalid drop".to_owned(),
            format!("add rule ip guests forward {guests} meta l4proto tcp accept"),
            format!("add rule ip guests forward {guests} meta l4proto udp accept"),
            format!("add rule ip guests forward {guests} meta l4proto icmp accept"),
        ];
        host.ns.run_words(&["nft", &lines.join("; ")])?;
    }
    pair.a.expect_ping(pair.b.ip())?;
    Ok(pair)
}

/// Ours as `docs/operations.md` advises for a wire that is a veth and no network card: native XDP copies each of its frames.
pub(super) fn advised(options: HostOptions) -> HostOptions {
    options.with("underlay", "mode", "\"tc\"").with("underlay", "relay_port", "4789")
}

/// What connects the pairs that are measured.
const OURS: &str = "ncm";
/// What the references are.
pub(super) const BRIDGE: &str = "Linux bridge + vxlan";
/// With connection tracking.
pub(super) const CONNTRACK: &str = "Linux bridge + vxlan + conntrack, same rules";
